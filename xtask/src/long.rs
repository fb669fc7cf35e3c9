//! `cargo xtask long NAME`: runs the long forms of checks whose short forms are tests, and writes
//! their figures into `bench/RESULTS.md`.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    results,
    steps::{cargo, output, step, target},
    tools::{END_TO_END, prepare_python},
};

/// Number of secrets for which every kernel must give the same result as the portable one. The
/// tests take a tenth.
const SECRETS: &str = "1000000000";

/// Number of searches that are stopped and resumed until they end, many of them by SIGKILL. The
/// tests take a fiftieth.
const TRIALS: &str = "10000";

/// Number of times that a server with operations is killed. The tests take a twentieth.
const KILLS: &str = "1000";

/// Seconds between the starts of operations that search the same secrets. In the tests, it is one
/// second.
const APART: &str = "60";

/// Number of random schedules of the engine, of operations and of the cancellation layer. The tests
/// take at most a tenth.
const SCHEDULES: &str = "1000000";

/// Number of streams that are started and cancelled. The tests take a tenth.
const STREAMS: &str = "1000000";

/// Compares all kernels over many secrets.
pub(crate) fn kernels() -> Result<()> {
    let mut build = cargo("test --release -p hashfinder-kernels --test kernels --no-run");
    step("the tests", &mut build)?;
    let mut tests =
        cargo("test --release -p hashfinder-kernels --test kernels secrets_as_the_portable");
    let (minutes, _) = timed(tests.env("KERNEL_SECRETS", SECRETS))?;
    write(
        "Kernels against the portable one",
        "kernels",
        &format!("{SECRETS} secrets, no difference, in {minutes:.1} minutes."),
    )
}

/// Stops searches in every way, and resumes them.
pub(crate) fn kills() -> Result<()> {
    step(
        "the program",
        &mut cargo("build --workspace --bins --features hashfinder/jemalloc"),
    )?;
    let mut tests = Command::new(prepare_python()?);
    tests
        .args(["-m", "pytest", "--quiet", "-rA", "--timeout=0"])
        .args(["-k", "stopped_in_any_way"])
        .arg(format!("{END_TO_END}/test_resume.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HASHFINDER", target().join("debug/hashfinder"))
        .env("TRIALS", TRIALS);
    let (minutes, printed) = timed(&mut tests)?;
    let stops = printed
        .lines()
        .find_map(|line| line.strip_prefix("stops: "));
    let stops = stops.context("the test did not print how it stopped searches")?;
    write(
        "Stops",
        "kills",
        &format!(
            "{TRIALS} searches, stopped and resumed until they ended, lost nothing, in {minutes:.0} \
             minutes. Stops: {stops}."
        ),
    )
}

/// Kills a server with operations again and again.
pub(crate) fn operations() -> Result<()> {
    step(
        "the program",
        &mut cargo("build --workspace --bins --features hashfinder/jemalloc"),
    )?;
    let mut tests = Command::new(prepare_python()?);
    tests
        .args(["-m", "pytest", "--quiet", "-rA", "--timeout=0"])
        .arg(format!("{END_TO_END}/test_operation_kills.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HASHFINDER", target().join("debug/hashfinder"))
        .env("KILLS", KILLS)
        .env("APART_S", APART);
    let (minutes, printed) = timed(&mut tests)?;
    let figure = |name: &str| {
        let figure = printed.lines().find_map(|line| line.strip_prefix(name));
        figure.with_context(|| format!("the tests did not print {name:?}"))
    };
    let (kills, apart) = (figure("kills: ")?, figure("apart: ")?);
    write(
        "Operations",
        "operations",
        &format!(
            "Nothing that was acknowledged was lost, in {minutes:.0} minutes: {kills}.\n\n{apart}."
        ),
    )
}

/// Runs many random schedules of the engine, of operations and of the cancellation layer.
pub(crate) fn schedules() -> Result<()> {
    let mut text = String::new();
    for (what, arguments) in [
        (
            "the engine",
            "test --release -p hashfinder-search --lib schedules",
        ),
        (
            "operations",
            "test --release -p hashfinder-operations --lib runner",
        ),
        (
            "the cancellation layer",
            "test --release -p tonic-cancel --test schedules",
        ),
    ] {
        step("the tests", &mut cargo(&format!("{arguments} --no-run")))?;
        let (minutes, _) = timed(cargo(arguments).env("SCHEDULES", SCHEDULES))?;
        text += &format!(
            "{SCHEDULES} schedules of {what} without a failure, in {minutes:.1} minutes.\n"
        );
    }
    write("Schedules", "schedules", &text)
}

/// Starts and cancels many streams.
pub(crate) fn streams() -> Result<()> {
    let test = "test --release -p tonic-cancel --test cancel_many";
    step("the test", &mut cargo(&format!("{test} --no-run")))?;
    let (minutes, _) = timed(cargo(test).env("CANCELLED_STREAMS", STREAMS))?;
    write(
        "Cancelled streams",
        "streams",
        &format!("{STREAMS} streams, all ended as cancelled, in {minutes:.1} minutes."),
    )
}

/// Runs tests, and returns their duration in minutes and what they printed.
///
/// # Errors
///
/// If a test fails, or none ran.
fn timed(command: &mut Command) -> Result<(f64, String)> {
    let began = Instant::now();
    let printed = output(command)?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    // Parses the summary line of `cargo test` or of pytest.
    let passed = |line: &str| {
        let line = line.strip_prefix("test result: ok. ").unwrap_or(line);
        let number = line.split_once(" passed")?.0.parse::<u64>().ok();
        number.filter(|number| *number > 0)
    };
    ensure!(
        printed.lines().any(|line| passed(line).is_some()),
        "{command:?} ran no test:\n{printed}"
    );
    Ok((minutes, printed))
}

fn write(title: &str, name: &str, text: &str) -> Result<()> {
    let intro = format!("`cargo xtask long {name}` on: {}", results::cpu());
    results::write(title, &format!("{intro}\n\n{text}"))
}

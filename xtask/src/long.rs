//! `cargo xtask long NAME`: runs the long forms of checks whose short forms are tests, and writes
//! their figures into `bench/RESULTS.md`.

use std::{env, fmt::Write as _, fs, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    results,
    steps::{cargo, output, root, step, target},
    tools::{END_TO_END, prepare_brokers, prepare_python},
};

/// Number of secrets for which every kernel must give the same result as the portable one. The
/// tests take a tenth.
const SECRETS: &str = "1000000000";

/// Number of searches that are stopped and resumed until they end, many of them by SIGKILL. The
/// tests take a fiftieth.
const TRIALS: &str = "10000";

/// Number of times that a server with operations is killed. The tests take a twentieth.
const KILLS: &str = "1000";

/// Number of simulated schedules of a small fleet; of kills of the processes of a real one, without
/// and with operations; and how often its broker loses values. The tests take a fiftieth or so.
const FLEET_SCHEDULES: &str = "100000";
const FLEET_SIZES: [(&str, &str); 3] = [
    ("FLEET_KILLS", "500"),
    ("FLEET_OPERATION_KILLS", "500"),
    ("FLEET_OPERATION_LOSSES", "200"),
];

/// Sizes of large simulated fleets, how often each runs, and the number of searches.
const FLEETS: [(&str, &str, &str); 2] = [("2200", "200", "40"), ("10000", "3", "10")];

/// The last commit whose agents speak version 1 of the protocol of fleets.
const EARLIER: &str = "79b9dcb";

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

/// Runs one of the long checks of fleets, or all of them. Together they take seven hours. Their
/// sizes can be set by `FLEET_SCHEDULES`, `FLEET_RUNS` and [`FLEET_SIZES`], and the sections say
/// them.
pub(crate) fn fleet(part: Option<&str>) -> Result<()> {
    if part.is_none_or(|part| part == "schedules") {
        fleet_schedules()?;
    }
    if part.is_none_or(|part| part == "waits") {
        fleet_waits()?;
    }
    if part.is_none_or(|part| part == "kills") {
        fleet_kills()?;
    }
    if part.is_none_or(|part| part == "operations") {
        fleet_operations()?;
    }
    if part.is_none_or(|part| part == "versions") {
        fleet_versions()?;
    }
    Ok(())
}

const SIMULATION: &str = "test --release -p hashfinder-fleet --test simulation";

fn size(variable: &str, default: &str) -> String {
    env::var(variable).unwrap_or_else(|_| default.to_owned())
}

/// Simulates small fleets.
fn fleet_schedules() -> Result<()> {
    step("the tests", &mut cargo(&format!("{SIMULATION} --no-run")))?;
    let schedules = size("FLEET_SCHEDULES", FLEET_SCHEDULES);
    let mut small = cargo(&format!("{SIMULATION} whatever_fails"));
    let (minutes, _) = timed(small.env("FLEET_SCHEDULES", &schedules))?;
    write(
        "Fleets: simulated schedules",
        "fleet schedules",
        &format!(
            "{schedules} schedules of up to 8 agents and 3 servers: every answer is that of one \
             thread, in {minutes:.0} minutes."
        ),
    )
}

/// Measures how long answers of large simulated fleets wait.
fn fleet_waits() -> Result<()> {
    step("the tests", &mut cargo(&format!("{SIMULATION} --no-run")))?;
    let mut text = "Searches, one after another, with and without trouble (a hundredth of all \
                    messages lost, an agent's death each second). Every answer is that of one \
                    thread. The wait is from the hit to the answer:\n\n"
        .to_owned();
    for (agents, runs, searches) in FLEETS {
        let runs = size("FLEET_RUNS", runs);
        let mut large = cargo(&format!("{SIMULATION} soon_after_a_hit -- --nocapture"));
        large
            .env("FLEET_AGENTS", agents)
            .env("FLEET_RUNS", &runs)
            .env("FLEET_SEARCHES", searches);
        // The figures are printed on stderr, where libtest does not capture them.
        let output = large.current_dir(root()).output()?;
        ensure!(output.status.success(), "{large:?} failed");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        for line in printed.lines().filter(|line| line.starts_with("agents ")) {
            writeln!(text, "- runs {runs} of {searches} searches, {line}")?;
        }
    }
    write("Fleets: waits for answers", "fleet waits", &text)
}

/// Kills the processes of a real fleet again and again.
fn fleet_kills() -> Result<()> {
    let (minutes, printed) = real_fleet("test_fleet_kills.py")?;
    let kills = figure(&printed, "fleet kills: ")?;
    write(
        "Fleets: kills",
        "fleet kills",
        &format!("Processes killed in {minutes:.0} minutes: {kills}."),
    )
}

/// Kills the processes of a real fleet that runs operations, and makes its broker lose values.
fn fleet_operations() -> Result<()> {
    let (minutes, printed) = real_fleet("test_fleet_operation_kills.py")?;
    let kills = figure(&printed, "fleet operation kills: ")?;
    let losses = figure(&printed, "fleet operation losses: ")?;
    write(
        "Fleets: operations",
        "fleet operations",
        &format!(
            "Nothing that was acknowledged was lost, each watcher saw each event once, and each \
             operation ended as with one thread, in {minutes:.0} minutes.\n\n\
             - Processes killed: {kills}.\n\
             - Times that values of the bucket were removed or set back: {losses}."
        ),
    )
}

/// Builds an agent that speaks the first version of the protocol, and lets it meet a leader of this
/// version.
fn fleet_versions() -> Result<()> {
    let (code, built) = (target().join("earlier"), target().join("earlier-build"));
    if !code.exists() {
        let mut checkout = Command::new("git");
        checkout.args(["worktree", "add", "--force", "--detach"]);
        step("the earlier code", checkout.arg(&code).arg(EARLIER))?;
    }
    step(
        "the earlier program",
        cargo("build -p hashfinder --bin hashfinder")
            .arg("--manifest-path")
            .arg(code.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&built),
    )?;
    step(
        "the program",
        &mut cargo("build --workspace --bins --features hashfinder/jemalloc"),
    )?;
    let python = prepare_python()?;
    step(
        "an earlier agent",
        Command::new(&python)
            .args(["-m", "pytest", "--quiet", "-rs"])
            .arg(format!("{END_TO_END}/test_fleet_versions.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BROKERS", prepare_brokers(&python)?)
            .env("HASHFINDER", target().join("debug/hashfinder"))
            .env("OLD_HASHFINDER", built.join("debug/hashfinder")),
    )
}

/// Runs tests of a fleet of real processes. Returns their duration in minutes and what they
/// printed.
fn real_fleet(tests: &str) -> Result<(f64, String)> {
    let python = prepare_python()?;
    step(
        "the program",
        &mut cargo("build --workspace --bins --features hashfinder/jemalloc"),
    )?;
    // A copy, so that a build meanwhile does not replace it.
    let program = target().join("long-hashfinder");
    fs::copy(target().join("debug/hashfinder"), &program)?;
    let mut command = Command::new(&python);
    command
        .args(["-m", "pytest", "--quiet", "-rA", "--timeout=0"])
        .arg(format!("{END_TO_END}/{tests}"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BROKERS", prepare_brokers(&python)?)
        .env("HASHFINDER", program);
    for (variable, default) in FLEET_SIZES {
        command.env(variable, size(variable, default));
    }
    timed(&mut command)
}

/// Returns what a test has printed after this.
fn figure<'a>(printed: &'a str, before: &str) -> Result<&'a str> {
    let figure = printed.lines().find_map(|line| {
        // Pytest prints a dot for the test before.
        line.trim_start_matches('.').strip_prefix(before)
    });
    figure.with_context(|| format!("the test did not print its {before}"))
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

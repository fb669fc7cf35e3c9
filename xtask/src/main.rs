//! The commands that people and CI run; `cargo xtask` lists them.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it does is told there")]

mod attack;
mod boundaries;
mod cancel;
mod engine;
mod fuzz;
mod graph;
mod image;
mod imports;
mod peers;
mod results;
mod steps;
mod tools;

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use self::{
    steps::{cargo, print_times, root, runs, step, target},
    tools::{END_TO_END, node_packages, python},
};

const USAGE: &str = "\
usage: cargo xtask COMMAND

commands:
  test    check the formatting, the lints and the docs, and run every test;
          installs what the tests need under target/
  boundaries
          check that packages and files depend only on what they may, and print what packages depend on
  bench peers
          measure the kernels beside hashcat, on one core, and write bench/RESULTS.md;
          installs hashcat and pocl by Debian's package manager where they are missing
  bench engine
          measure what thousands of searches cost, and write bench/RESULTS.md;
          installs h2load by Debian's package manager where it is missing
  bench cancel
          measure what the cancellation layer costs, and write bench/RESULTS.md
  image   build the static program of packaging/Containerfile as that does, and run it where there is
          nothing else; takes a few minutes
  attack  attack a server in every way that there is, for half a minute each, and write SECURITY.md
  soak    play unruly clients that come and go at a server for half an hour, check whether its memory grows and
          whether anything of them is left, and write SECURITY.md
  fuzz [TARGET] [--seconds N | --runs N] [--leaks] [--keep] [--results]
          make up inputs for each fuzz target, or one: 200 seconds each, then 10^8 in all, if nothing else is said;
          --leaks looks for leaks too, and needs a nightly compiler; --keep puts what was found
          into the corpus, and --results the figures into SECURITY.md
  picture record a search at a terminal, and write docs/find.svg; leave the machine alone for it";

/// package.json of Buf, which checks the protobuf of our own contract by the rules in
/// `proto/buf.yaml`.
const BUF: &str = r#"{"dependencies": {"@bufbuild/buf": "1.75.0"}}"#;

/// Tests of tonic-cancel against other implementations of gRPC, below the root.
const INTEROP: &str = "lib/tonic-cancel/interop/tests";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["test"] => test(),
        ["boundaries"] => boundaries::run(),
        ["bench", "peers"] => peers::run(),
        ["bench", "engine"] => engine::run(),
        ["bench", "cancel"] => cancel::run(),
        ["image"] => image::run(),
        ["attack"] => attack::run(),
        ["soak"] => attack::soak(),
        ["fuzz", ref rest @ ..] => fuzz::run(rest),
        ["picture"] => picture(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every check, and prints how long each step took and what was skipped, also when one fails.
fn test() -> Result<()> {
    let began = Instant::now();
    let mut skipped = Vec::new();
    let checked = check_all(&mut skipped);
    print_times();
    println!("{:8.1} s  in all", began.elapsed().as_secs_f64());
    for what in &skipped {
        println!("skipped: {what}");
    }
    checked?;
    println!("all is well");
    Ok(())
}

/// Everything that must hold, cheapest first. Adds to `skipped` what this machine cannot check, and
/// why.
fn check_all(skipped: &mut Vec<&'static str>) -> Result<()> {
    step("formatting", &mut cargo("fmt --all --check"))?;
    boundaries::run()?;
    step(
        "lints",
        &mut cargo("clippy --workspace --all-targets -- -D warnings"),
    )?;
    let has_npm =
        runs(Command::new("node").arg("--version")) && runs(Command::new("npm").arg("--version"));
    if has_npm {
        let buf = node_packages("buf", BUF)?.join("node_modules/.bin/buf");
        let mut buf = Command::new(buf);
        step("lints of the protobuf", buf.args(["lint", "proto"]))?;
    } else {
        skipped.push("lints of the protobuf: needs node and npm");
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
    if runs(Command::new("cargo-deny").arg("--version")) {
        step(
            "dependencies",
            &mut cargo("deny check bans licenses sources"),
        )?;
    } else {
        skipped.push("dependencies (deny.toml): cargo-deny is not installed");
    }
    step("tests of the crates", &mut cargo("test --workspace"))?;
    // Always all crates, so that dependencies are compiled once, with the features that any of the
    // crates needs.
    step(
        "which kernels were tested",
        &mut cargo("test --workspace --test kernels -- --nocapture names_the_kernels_that_ran"),
    )?;
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
    )?;
    if runs(Command::new("c++").arg("--version")) {
        fuzz::short()?;
    } else {
        skipped.push("fuzzing: needs c++");
    }
    match other_architecture()? {
        Checked::Tested => {}
        Checked::Compiled => skipped
            .push("tests of the kernel for aarch64: needs qemu-aarch64 and aarch64-linux-gnu-gcc"),
        Checked::Not => skipped
            .push("the kernel for aarch64: needs `rustup target add aarch64-unknown-linux-gnu`"),
    }
    // Debug builds, which check assertions and overflows, and share the dependencies of the tests.
    let built = target().join("debug");
    step(
        "the programs",
        &mut cargo("build --workspace --bins --tests"),
    )?;
    attack::short(&built)?;
    let python = python()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    step(
        "end-to-end tests",
        Command::new(&python)
            // Twice as many processes as cores, because the tests mostly wait.
            .args(["-m", "pytest", "--quiet", "-rs", "--numprocesses"])
            .arg((2 * cores).to_string())
            .args(["--dist", "worksteal", END_TO_END])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HASHFINDER", built.join("hashfinder")),
    )?;
    let mut interop = Command::new(&python);
    interop
        .args(["-m", "pytest", "--quiet", "-rs", INTEROP])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("INTEROP", built.join("tonic-cancel-interop"));
    if has_npm {
        let wanted = root().join(INTEROP).join("peers/package.json");
        let wanted = fs::read_to_string(&wanted).context("cannot read the package.json")?;
        interop.env("INTEROP_NODE", node_packages("interop-node", &wanted)?);
    } else {
        skipped.push("interoperability with grpc-js: needs node and npm");
    }
    step("interoperability tests", &mut interop)
}

/// Draws the picture in the README.
fn picture() -> Result<()> {
    step("the program", &mut cargo("build --release"))?;
    step(
        "the picture",
        Command::new(python()?)
            .arg("xtask/picture.py")
            .arg(target().join("release/hashfinder"))
            .arg("docs/find.svg"),
    )
}

/// How far the kernel for the other architecture could be checked.
enum Checked {
    Tested,
    Compiled,
    Not,
}

/// Compiles the kernels for aarch64 if its target is installed, and tests them if there are an
/// emulator and a linker for it.
fn other_architecture() -> Result<Checked> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    const LINKER: &str = "aarch64-linux-gnu-gcc";
    // An emulator is slow; the kernel's own machine takes the full number.
    const SECRETS: &str = "2000000";
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.context("cannot run rustc")?.stdout;
    let sysroot = PathBuf::from(String::from_utf8(sysroot)?.trim());
    if !sysroot.join("lib/rustlib").join(TARGET).exists() {
        return Ok(Checked::Not);
    }
    step(
        "lints of the kernels for aarch64",
        &mut cargo(&format!(
            "clippy -p hashfinder-kernels --target {TARGET} -- -D warnings"
        )),
    )?;
    if !runs(Command::new("qemu-aarch64").arg("--version"))
        || !runs(Command::new(LINKER).arg("--version"))
    {
        return Ok(Checked::Compiled);
    }
    step(
        "tests of the kernels for aarch64",
        cargo(&format!(
            "test -p hashfinder-kernels --tests --target {TARGET} -- --nocapture"
        ))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu",
        )
        .env("KERNEL_SECRETS", SECRETS),
    )?;
    Ok(Checked::Tested)
}

//! `cargo xtask long attack` and `cargo xtask long soak`: measure how attacks affect a server and
//! its other clients, and what unruly clients leave behind.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::steps::{Form, cargo, root, step, target};

/// Runs all attacks, and a control run for each. This takes most of an hour, and needs an otherwise
/// idle machine.
pub(crate) fn attack(form: Form) -> Result<()> {
    measured("attacks", "run", form)
}

/// Runs unruly clients for half an hour, after a warm-up of ten minutes. This needs an otherwise
/// idle machine.
pub(crate) fn soak(form: Form) -> Result<()> {
    measured("a soak", "soak", form)
}

fn measured(name: &str, command: &str, form: Form) -> Result<()> {
    if form == Form::Short {
        // The short form skips checks that would fail on a busy machine.
        let built = target().join("debug");
        return step(name, tool(&built, command).arg("--short"));
    }
    // One build for both packages, so that common dependencies are compiled once, with the features
    // that either package needs.
    let mut build =
        cargo("build --release -p hashfinder -p hashfinder-attack --features hashfinder/jemalloc");
    step("the program, and its attacker", &mut build)?;
    let mut tool = tool(&target().join("release"), command);
    let file = root().join("bench/ATTACKS.md");
    step(name, tool.arg("--results").arg(file))
}

/// Returns the tool's command, with the server that it attacks.
fn tool(built: &Path, command: &str) -> Command {
    let mut tool = Command::new(built.join("hashfinder-attack"));
    tool.arg(command)
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    tool
}

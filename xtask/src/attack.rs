//! `cargo xtask attack` and `cargo xtask soak`: measure how attacks affect a server and its other
//! clients, and what unruly clients leave behind.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::steps::{cargo, root, step, target};

/// Runs all attacks, each beside a control run. This takes most of an hour, on an otherwise idle
/// machine.
pub(crate) fn run() -> Result<()> {
    measured("attacks", "run")
}

/// Runs unruly clients for half an hour after a warm-up of ten minutes, on an otherwise idle
/// machine.
pub(crate) fn soak() -> Result<()> {
    measured("a soak", "soak")
}

fn measured(name: &str, command: &str) -> Result<()> {
    // One build, so that common dependencies are compiled once, with the features that both
    // packages need.
    let mut build = cargo("build --release -p hashfinder -p hashfinder-attack");
    step("the program, and its attacker", &mut build)?;
    let mut tool = tool(&target().join("release"), command);
    let file = root().join("SECURITY.md");
    step(name, tool.arg("--results").arg(file))
}

/// Runs every attack and a soak briefly, without checks that a busy machine could fail, using the
/// programs in the folder `built`.
pub(crate) fn short(built: &Path) -> Result<()> {
    step("attacks", tool(built, "run").arg("--short"))?;
    step("a short soak", tool(built, "soak").arg("--short"))
}

/// Returns the tool's command, with the server that it attacks.
fn tool(built: &Path, command: &str) -> Command {
    let mut tool = Command::new(built.join("hashfinder-attack"));
    tool.arg(command)
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    tool
}

//! `cargo xtask attack` and `cargo xtask soak`: what attacks do to a server and to its other clients, and what
//! unruly clients leave behind.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::steps::{cargo, root, step, target};

/// All attacks, beside control runs; this takes the better part of an hour, on a machine that has nothing
/// else to do.
pub(crate) fn run() -> Result<()> {
    measured("attacks", "run")
}

/// Unruly clients for half an hour after a warm-up of ten minutes, on a machine that has nothing else to do.
pub(crate) fn soak() -> Result<()> {
    measured("a soak", "soak")
}

fn measured(name: &str, command: &str) -> Result<()> {
    // In one go: what they have in common is compiled once, with the features that both want.
    let mut build = cargo("build --release -p hashfinder -p hashfinder-attack");
    step("the program, and its attacker", &mut build)?;
    let mut tool = tool(&target().join("release"), command);
    let file = root().join("SECURITY.md");
    step(name, tool.arg("--results").arg(file))
}

/// Each for a moment, with nothing that a busy machine could fail, by programs that are in a folder.
pub(crate) fn short(built: &Path) -> Result<()> {
    step("attacks", tool(built, "run").arg("--short"))?;
    step("a short soak", tool(built, "soak").arg("--short"))
}

/// The tool, with the server that it attacks.
fn tool(built: &Path, command: &str) -> Command {
    let mut tool = Command::new(built.join("hashfinder-attack"));
    tool.arg(command)
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    tool
}

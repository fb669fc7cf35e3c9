//! `cargo xtask attack` and `cargo xtask soak`: what attacks do to a server, and to its other clients, and what
//! careless ones leave behind.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, root, step, target};

/// All attacks, beside control runs; this takes the better part of an hour, on a machine that has nothing
/// else to do.
pub(crate) fn run() -> Result<()> {
    programs()?;
    let file = root().join("SECURITY.md");
    step("attacks", tool("run").arg("--results").arg(file))
}

/// Careless clients for half an hour after a warm-up of ten minutes, on a machine that has nothing else to do.
pub(crate) fn soak() -> Result<()> {
    programs()?;
    let file = root().join("SECURITY.md");
    step("a soak", tool("soak").arg("--results").arg(file))
}

/// Both, in one go: what they have in common is compiled once, with the features that both want.
pub(crate) fn programs() -> Result<()> {
    let mut build = cargo("build --release -p hashfinder -p hashfinder-attack");
    step("the program, and its attacker", &mut build)
}

/// Each for a moment, with nothing that a busy machine could fail.
pub(crate) fn short() -> Result<()> {
    step("attacks", tool("run").arg("--short"))?;
    step("a short soak", tool("soak").arg("--short"))
}

/// The tool, with the server that it attacks.
fn tool(command: &str) -> Command {
    let built = target().join("release");
    let mut tool = Command::new(built.join("hashfinder-attack"));
    tool.arg(command)
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    tool
}

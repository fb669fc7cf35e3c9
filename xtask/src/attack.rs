//! `cargo xtask attack` and `cargo xtask soak`: what attacks do to a server, and to its other clients, and what
//! careless ones leave behind.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, root, step, target};

/// All attacks, beside control runs; this takes the better part of an hour, on a machine that has nothing
/// else to do.
pub(crate) fn run() -> Result<()> {
    step("the program", &mut cargo("build --release"))?;
    let file = root().join("SECURITY.md");
    step("attacks", tool("run")?.arg("--results").arg(file))
}

/// Careless clients for half an hour after a warm-up of ten minutes, on a machine that has nothing else to do.
pub(crate) fn soak() -> Result<()> {
    step("the program", &mut cargo("build --release"))?;
    let file = root().join("SECURITY.md");
    step("a soak", tool("soak")?.arg("--results").arg(file))
}

/// Each for a moment, with nothing that a busy machine could fail.
pub(crate) fn short() -> Result<()> {
    step("attacks", tool("run")?.arg("--short"))?;
    step("a short soak", tool("soak")?.arg("--short"))
}

/// The tool, with the server that it attacks.
fn tool(command: &str) -> Result<Command> {
    step(
        "the attacker",
        &mut cargo("build --release -p hashfinder-attack"),
    )?;
    let built = target().join("release");
    let mut tool = Command::new(built.join("hashfinder-attack"));
    tool.arg(command)
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    Ok(tool)
}

//! `cargo xtask attack`: what attacks do to a server, and to its other clients.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, root, step, target};

/// All attacks, beside control runs; this takes the better part of an hour, on a machine that has nothing
/// else to do.
pub(crate) fn run() -> Result<()> {
    step("the program", &mut cargo("build --release"))?;
    let file = root().join("SECURITY.md");
    step("attacks", attacks()?.arg("--results").arg(file))
}

/// Each for a moment, with nothing that a busy machine could fail.
pub(crate) fn short() -> Result<()> {
    step("attacks", attacks()?.arg("--short"))
}

/// The tool, with the server that it attacks.
fn attacks() -> Result<Command> {
    step(
        "the attacker",
        &mut cargo("build --release -p hashfinder-attack"),
    )?;
    let built = target().join("release");
    let mut command = Command::new(built.join("hashfinder-attack"));
    command
        .arg("run")
        .arg("--server-binary")
        .arg(built.join("hashfinder"));
    Ok(command)
}

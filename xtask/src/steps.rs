//! Runs the commands that a task consists of, and records how long each took.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The name and the duration of each step so far, in their order.
static STEPS: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// Runs a command in the project's root, and prints and records how long it took.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("== {name}");
    let began = Instant::now();
    let status = command
        .current_dir(root())
        .status()
        .with_context(|| format!("{name}: cannot run {command:?}"))?;
    took(name, began.elapsed());
    if !status.success() {
        bail!("{name}: {command:?} failed with {status}");
    }
    println!("== {name}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Records how long a step took, for [`print_times`].
pub(crate) fn took(name: &str, time: Duration) {
    let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
    steps.push((name.to_owned(), time));
}

/// Prints how long each step took.
pub(crate) fn print_times() {
    println!("== time of each step");
    for (name, took) in STEPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{:8.1} s  {name}", took.as_secs_f64());
    }
}

/// Whether a command can be run, and succeeds.
pub(crate) fn runs(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// `cargo` with arguments, which are separated by single spaces.
pub(crate) fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments.split(' '));
    command
}

/// The folder for build outputs.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    // This package lies in the workspace's root.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

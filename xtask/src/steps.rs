//! Runs the commands that a task consists of, and records how long each took and what was skipped.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The name and the duration of each step so far, in the order in which the steps ended.
static STEPS: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// Checks that were skipped, and why.
static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

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

/// Runs a command in the project's root and returns what it printed on stdout.
///
/// # Errors
///
/// If the command cannot be run or fails. If it fails, the error contains all of its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .current_dir(root())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} failed with {}:\n{stdout}{stderr}",
            output.status
        );
    }
    Ok(stdout)
}

/// Records how long a step took, for [`print_summary`].
pub(crate) fn took(name: &str, time: Duration) {
    let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
    steps.push((name.to_owned(), time));
}

/// Records that a check is skipped because this machine lacks what it needs.
///
/// # Errors
///
/// With `CI=true`, because no check may be skipped there: .ci/run installs what the checks need.
pub(crate) fn skip(check: &str, needs: &str) -> Result<()> {
    if env::var_os("CI").is_some_and(|value| value == "true") {
        bail!("{check}: needs {needs}; with CI=true, no check may be skipped");
    }
    skip_always(check, &format!("needs {needs}"));
    Ok(())
}

/// Records that a check is skipped on every machine, and why.
pub(crate) fn skip_always(check: &str, why: &str) {
    let mut skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    skipped.push(format!("{check}: {why}"));
}

/// Prints how long each step took, and what was skipped.
pub(crate) fn print_summary(all: Duration) {
    println!("== time of each step");
    for (name, took) in STEPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{:8.1} s  {name}", took.as_secs_f64());
    }
    println!("{:8.1} s  in all", all.as_secs_f64());
    for what in SKIPPED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        println!("skipped: {what}");
    }
}

/// Whether a command can be run, and succeeds.
pub(crate) fn runs(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Returns a command that runs `cargo` with these arguments, which are separated by single spaces.
pub(crate) fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments.split(' '));
    command
}

/// Returns the folder for build outputs.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Returns the root of the workspace.
pub(crate) fn root() -> &'static Path {
    // This package's folder lies in the workspace's root.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// How much a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Everything, in release builds. Writes the results into the repository.
    Long,
    /// Only enough to show that the command works, with the programs of the tests. Writes nothing
    /// into the repository.
    Short,
}

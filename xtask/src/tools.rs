//! Installs, under target/, the packages of Python and JavaScript that some steps need.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::steps::{root, step, target};

/// Where the end-to-end tests are, below the root.
pub(crate) const END_TO_END: &str = "crates/finder/tests/e2e";

/// Returns the `python` of an environment with the packages that the end-to-end tests need. Makes a
/// new one when their list has changed.
pub(crate) fn python() -> Result<PathBuf> {
    let wanted = root().join(END_TO_END).join("requirements.txt");
    let wanted_text = fs::read_to_string(&wanted).context("cannot read the requirements")?;
    let environment = target().join("python");
    let python = environment.join("bin/python");
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted_text) {
        return Ok(python);
    }
    step(
        "a Python environment (needs python3 with venv)",
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    step(
        "the Python packages",
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(&wanted),
    )?;
    // Last, so that an interrupted installation is repeated.
    fs::write(installed, wanted_text)?;
    Ok(python)
}

/// Returns a folder under target/ with the JavaScript packages that a package.json names. Installs
/// them again when that has changed.
pub(crate) fn node_packages(folder: &str, wanted: &str) -> Result<PathBuf> {
    let folder = target().join(folder);
    let installed = folder.join("installed.json");
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).context("cannot make a folder for the JavaScript packages")?;
    fs::write(folder.join("package.json"), wanted).context("cannot write package.json")?;
    step(
        "the JavaScript packages",
        Command::new("npm")
            .args(["install", "--no-package-lock", "--no-audit", "--no-fund"])
            .args(["--ignore-scripts", "--silent", "--prefix"])
            .arg(&folder),
    )?;
    // Last, so that an interrupted installation is repeated.
    fs::write(installed, wanted)?;
    Ok(folder)
}

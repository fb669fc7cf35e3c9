//! Checks the kernels for aarch64 on a machine of another architecture, with an emulator.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::steps::{cargo, output, runs, skip, skip_always, step, target};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// Runs a program with the libraries that it was linked with.
///
/// Without the library path, the loader first finds the libc of Debian's architecture arm64. If
/// that libc has another version than the loader, the first thread that starts hangs.
const RUNNER: &str = "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu \
    -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib";

/// Number of secrets of the longest test. An emulator is slow; on real hardware, the test takes its
/// default number.
const SECRETS: &str = "2000000";

/// Compiles the kernels and their tests, and runs them in an emulator. Skips what this machine
/// lacks the tools for.
pub(crate) fn check() -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        skip_always("the kernels for aarch64", "the other tests have run them");
        return Ok(());
    }
    let Some(toolchain) = Toolchain::find()? else {
        return skip(
            "the kernels for aarch64",
            "a toolchain for aarch64-unknown-linux-gnu: `rustup target add` it, or install \
             Debian's packages that .ci/run lists",
        );
    };
    if !runs(Command::new(LINKER).arg("--version")) {
        return skip("the kernels for aarch64", LINKER);
    }
    let tests = format!("test -p hashfinder-kernels --tests --target {TARGET}");
    step(
        "compiling the kernels for aarch64",
        toolchain
            .cargo(&format!("{tests} --no-run"))
            .env("RUSTFLAGS", "-D warnings"),
    )?;
    if !runs(Command::new("qemu-aarch64").arg("--version")) {
        return skip("tests of the kernels for aarch64", "qemu-aarch64");
    }
    step(
        "tests of the kernels for aarch64",
        toolchain
            .cargo(&tests)
            .env("RUSTFLAGS", "-D warnings")
            .env("KERNEL_SECRETS", SECRETS),
    )
}

/// A toolchain that can compile for aarch64.
enum Toolchain {
    /// The one that runs this program.
    Usual,
    /// Debian's packages rustc-web and cargo-web.
    Debian,
}

impl Toolchain {
    fn find() -> Result<Option<Toolchain>> {
        let has_target = |rustc: &str| -> Result<bool> {
            let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
            let sysroot = PathBuf::from(sysroot.trim());
            Ok(sysroot.join("lib/rustlib").join(TARGET).exists())
        };
        if has_target("rustc")? {
            return Ok(Some(Toolchain::Usual));
        }
        let is_installed = runs(Command::new(DEBIAN.0).arg("--version"))
            && runs(Command::new(DEBIAN.1).arg("--version"));
        Ok((is_installed && has_target(DEBIAN.0)?).then_some(Toolchain::Debian))
    }

    fn cargo(&self, arguments: &str) -> Command {
        let mut command = match self {
            Toolchain::Usual => cargo(arguments),
            Toolchain::Debian => {
                let mut command = Command::new(DEBIAN.1);
                command.args(arguments.split(' ')).env("RUSTC", DEBIAN.0);
                // Artifacts of different compilers would replace each other in one folder.
                command.env("CARGO_TARGET_DIR", target().join("aarch64"));
                command.env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        command
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", RUNNER);
        command
    }
}

/// `rustc` and `cargo` of Debian's packages.
const DEBIAN: (&str, &str) = ("/usr/bin/rustc", "/usr/bin/cargo");

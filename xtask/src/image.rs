//! `cargo xtask long image`: builds the static program of the container image, and checks that it
//! runs, without a container engine.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    results,
    steps::{Form, root, step, target},
};

const CONTAINERFILE: &str = "packaging/Containerfile";

/// Commands that check the image's program. They resolve an address and start threads, but connect
/// to nothing.
const COMMANDS: [&str; 2] = [
    "serve --check --host 0.0.0.0 --listen-unprotected",
    "find doc --quiet",
];

/// Settings for a quick build, for the short form. It uses another target folder, so that its
/// program is never mistaken for the image's.
const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
];

/// Builds as the Containerfile does, and runs the program in an otherwise empty folder. The long
/// form writes the size of the program into `bench/RESULTS.md`.
pub(crate) fn run(form: Form) -> Result<()> {
    let text = fs::read_to_string(root().join(CONTAINERFILE));
    let text = text.with_context(|| format!("cannot read {CONTAINERFILE}"))?;
    // The other RUN commands install what this machine already has.
    let mut commands = instructions(&text)
        .filter_map(|line| line.strip_prefix("RUN ").map(str::to_owned))
        .filter(|command| command.contains("cargo build "));
    let (Some(command), None) = (commands.next(), commands.next()) else {
        bail!("{CONTAINERFILE} is expected to have one RUN with cargo build");
    };
    let folder = match form {
        Form::Long => "target/image",
        Form::Short => "target/image-quick",
    };
    let mut build = Command::new("sh");
    build.args(["-c", &command.replace("target/image", folder)]);
    if form == Form::Short {
        build.envs(QUICK);
    }
    step("the program of the image", &mut build)?;
    let built = root().join(folder).join("hashfinder");
    let linked = Command::new("ldd")
        .arg(&built)
        .output()
        .context("cannot run ldd")?;
    let linked = [linked.stdout, linked.stderr].concat();
    let linked = String::from_utf8_lossy(&linked);
    ensure!(
        linked.contains("statically linked") || linked.contains("not a dynamic executable"),
        "the program needs libraries: {linked}"
    );
    let empty = target().join("image-root");
    fs::create_dir_all(&empty).context("cannot make a folder to run it in")?;
    fs::copy(&built, empty.join("hashfinder")).context("cannot copy the program")?;
    for command in COMMANDS {
        step(
            &format!("alone: hashfinder {command}"),
            &mut alone(&empty, command),
        )?;
    }
    let length = fs::metadata(&built)?.len();
    let length = format!("{:.1} MB", length as f64 / 1e6);
    println!("{}: {length}, static", built.display());
    match form {
        Form::Short => Ok(()),
        Form::Long => results::write(
            "Image",
            &format!(
                "`cargo xtask long image`: the static program of the container image has {length}."
            ),
        ),
    }
}

/// Returns a command that runs the program in its own user namespace, with `folder` as the root of
/// the file system.
fn alone(folder: &Path, command: &str) -> Command {
    let mut alone = Command::new("unshare");
    alone
        .arg("--map-root-user")
        .arg("--root")
        .arg(folder)
        .arg("/hashfinder");
    alone.args(command.split(' ')).env_clear();
    alone
}

/// Returns the instructions of a Containerfile, one per line.
fn instructions(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    joined
        .lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

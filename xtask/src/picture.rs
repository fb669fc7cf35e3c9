//! `cargo xtask picture`: records a search at a terminal for the README, and an operation.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    steps::{Form, cargo, step, target},
    tools::prepare_python,
};

/// Draws `docs/find.svg` and `docs/operation.svg`. The short form records for a second, and draws
/// under target/.
pub(crate) fn run(form: Form) -> Result<()> {
    let python = prepare_python()?;
    if form == Form::Long {
        step("the program", &mut cargo("build --release"))?;
    }
    for (name, seconds, what) in [("find", "9", None), ("operation", "10", Some("operation"))] {
        let (program, file, seconds) = match form {
            Form::Long => ("release", format!("docs/{name}.svg").into(), seconds),
            Form::Short => ("debug", target().join(format!("{name}.svg")), "1"),
        };
        let mut draw = Command::new(&python);
        draw.arg("xtask/picture.py")
            .arg(target().join(program).join("hashfinder"))
            .arg::<PathBuf>(file)
            .arg(seconds)
            .args(what);
        step(&format!("the picture of {name}"), &mut draw)?;
    }
    Ok(())
}

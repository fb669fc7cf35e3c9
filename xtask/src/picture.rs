//! `cargo xtask picture`: records a search at a terminal for the README, an operation, and the
//! status of a fleet.

use std::{ffi::OsStr, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    steps::{Form, cargo, step, target},
    tools::{BROKER, prepare_brokers, prepare_python},
};

/// Draws `docs/find.svg`, `docs/operation.svg` and `docs/fleet.svg`. The short form records for a
/// second, and draws under target/.
pub(crate) fn run(form: Form) -> Result<()> {
    let python = prepare_python()?;
    if form == Form::Long {
        step("the program", &mut cargo("build --release"))?;
    }
    let brokers = prepare_brokers(&python)?;
    let broker = brokers.join(BROKER).join("bin/nats-server");
    let pictures: [(_, _, &[&OsStr]); 3] = [
        ("find", "9", &[]),
        ("operation", "10", &["operation".as_ref()]),
        ("fleet", "20", &["fleet".as_ref(), broker.as_ref()]),
    ];
    for (name, seconds, what) in pictures {
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

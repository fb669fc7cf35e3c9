//! `cargo xtask picture`: records a search at a terminal for the README.

use std::process::Command;

use anyhow::Result;

use crate::{
    steps::{Form, cargo, step, target},
    tools::prepare_python,
};

/// Draws `docs/find.svg`. The short form records for a second, and draws under target/.
pub(crate) fn run(form: Form) -> Result<()> {
    let mut draw = Command::new(prepare_python()?);
    draw.arg("xtask/picture.py");
    match form {
        Form::Long => {
            step("the program", &mut cargo("build --release"))?;
            draw.arg(target().join("release/hashfinder"));
            draw.args(["docs/find.svg", "9"]);
        }
        Form::Short => {
            draw.arg(target().join("debug/hashfinder"));
            draw.arg(target().join("find.svg")).arg("1");
        }
    }
    step("the picture", &mut draw)
}

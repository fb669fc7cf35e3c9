//! Entry point of the fuzz target for the configuration file. This module exists only with
//! `cfg(fuzzing)`.

use std::sync::LazyLock;

use clap::{CommandFactory, FromArgMatches};

use crate::{
    cli::{Cli, with_file_settings},
    config::fuzzing::{self as configuration, Program},
};

/// Reads a text as the configuration file, and uses it as every command would.
///
/// # Panics
///
/// If an error in the text has no message, if a setting is not read back as `config show` writes
/// it, or if clap accepts a command line from which no `Cli` can be made.
pub fn config(text: &str) {
    static PROGRAM: LazyLock<Program> =
        LazyLock::new(|| Program::new(with_file_settings(Cli::command())));
    configuration::config(text, &PROGRAM, |matches| {
        Cli::from_arg_matches(matches).expect("what clap matched is a command line");
    });
}

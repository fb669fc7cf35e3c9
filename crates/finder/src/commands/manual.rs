//! `hashfinder completions` and `hashfinder man`: completions for shells, and manual pages.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use crate::{exit::Exit, terminal::print};

/// Name of the program.
const PROGRAM: &str = "hashfinder";

/// Print completions for a shell.
#[derive(Args, Debug)]
#[command(after_help = "\
Installation:
  hashfinder completions bash > ~/.local/share/bash-completion/completions/hashfinder
  hashfinder completions fish > ~/.config/fish/completions/hashfinder.fish
  hashfinder completions zsh > ~/.zfunc/_hashfinder    # with fpath+=~/.zfunc before compinit
  hashfinder completions elvish >> ~/.config/elvish/rc.elv
  hashfinder completions powershell >> $PROFILE

Exit codes:
  0  printed
  2  the command line is wrong
  5  the output failed")]
pub(crate) struct CompletionsArguments {
    /// Shell to complete commands in
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page, or write a page for each command.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder man | man -l -
  hashfinder man --directory ~/.local/share/man/man1    # then: man hashfinder-find

Exit codes:
  0  printed, or written
  2  the command line is wrong
  5  the output failed, or a page cannot be written")]
pub(crate) struct ManArguments {
    /// Write a page for each command into this folder
    ///
    /// The folder is created if it does not exist.
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
}

/// Prints the script with which a shell completes the command line of `program`.
pub(crate) fn completions(arguments: &CompletionsArguments, mut program: Command) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, PROGRAM, &mut script);
    print(script)?;
    Ok(Exit::Success)
}

/// Prints the manual page of `program`, or writes a page for each of its commands.
pub(crate) fn man(arguments: &ManArguments, program: Command) -> Result<Exit> {
    let mut program = program.disable_help_subcommand(true);
    // This gives each command its full name and the global flags.
    program.build();
    match &arguments.directory {
        Some(directory) => {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create the folder {}", directory.display()))?;
            write_pages(&program, directory)?;
        }
        None => {
            print(page(&program)?)?;
        }
    }
    Ok(Exit::Success)
}

fn write_pages(command: &Command, directory: &Path) -> Result<()> {
    let file = directory.join(Man::new(command.clone()).get_filename());
    fs::write(&file, page(command)?).with_context(|| format!("cannot write {}", file.display()))?;
    for inner in command.get_subcommands() {
        write_pages(inner, directory)?;
    }
    Ok(())
}

/// Returns the manual page of a command, in roff.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .source(format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_help() {
        after_help(&text.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// Returns the text below the options (examples, exit codes and notes), in roff. clap_mangen would
/// join the lines of tables in it.
fn after_help(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut in_notes = false;
    for paragraph in text.split("\n\n") {
        let title = paragraph.split_once(":\n");
        let title = title.filter(|(title, rest)| !title.contains('\n') && rest.starts_with("  "));
        let body = match title {
            Some((title, rest)) => {
                roff.control("SH", [title.to_uppercase().as_str()]);
                in_notes = false;
                rest
            }
            None => {
                if !in_notes {
                    roff.control("SH", ["NOTES"]);
                }
                roff.control("PP", []);
                in_notes = true;
                paragraph
            }
        };
        let is_table = body.lines().any(|line| line.starts_with("  "));
        if is_table {
            roff.control("nf", []);
        }
        for line in body.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        if is_table {
            roff.control("fi", []);
        }
    }
    roff
}

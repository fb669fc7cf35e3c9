//! `hashfinder config`: shows the settings, or prints a file with their defaults.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Command, Subcommand};

use crate::{
    config,
    exit::Exit,
    terminal::{print, say},
};

/// Show the configuration, or print a file to begin one with.
///
/// Nearly every flag is a setting, which can also be given by an environment variable or in a file;
/// what only concerns one call, as --json and --resume do, cannot. The command line decides; then
/// the environment does, then the file, then the default.
#[derive(Args, Debug)]
#[command(after_help = "\
The file is the one that --config or HASHFINDER_CONFIG names, or else
$XDG_CONFIG_HOME/hashfinder/config.toml (~/.config/hashfinder/config.toml), if there is one.
--config /dev/null goes without. In the file, a command is a table and a flag is a key:

  kernel = \"avx2\"                  # for every command that has --kernel

  [find]
  quiet = true                     # --no-quiet on the command line takes it back

  [serve]
  maximum-hashes = 1_000_000_000
  client-weight = [\"10.0.0.7=4\"]  # a flag that can be given more than once is a list

The same in the environment is HASHFINDER_KERNEL=avx2, HASHFINDER_FIND_QUIET=true (or 1, yes, on;
the opposite is false, 0, no, off), HASHFINDER_SERVE_MAXIMUM_HASHES=1000000000 and
HASHFINDER_SERVE_CLIENT_WEIGHT=10.0.0.7=4, with commas between the parts of a list. An empty
variable counts as none. What is for one command goes before what is for all that have the flag;
only flags that several have can be set for all.

A setting that another one excludes is left out if that one comes from a place that goes before it,
and a line on stderr says so. An unknown key is an error. An unknown variable is only a warning,
because another program may use it.

Examples:
  hashfinder config show
  mkdir -p ~/.config/hashfinder
  hashfinder config default > ~/.config/hashfinder/config.toml

Exit codes:
  0  printed
  2  the command line, the file or a variable is wrong
  5  the output failed")]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print every setting, its value, and where that comes from
    Show {
        /// Print one JSON object for each setting: command, setting, value (null: none), source
        /// (default, environment or file), and the variable, or the file and line
        #[arg(long)]
        json: bool,
    },
    /// Print a file with every setting and its default, all of them commented out
    Default,
}

/// Runs the command, for the flags of `program` and the file that the command line names, if any.
pub(crate) fn run(
    arguments: &ConfigArguments,
    program: Command,
    file: Option<&PathBuf>,
) -> Result<Exit> {
    let text = match arguments.what {
        What::Show { json } => match config::show(program, file, json) {
            Ok(text) => text,
            // The exit code for wrong settings is the same for every command.
            Err(wrong) => {
                say(format_args!("{wrong:#}"));
                return Ok(Exit::Usage);
            }
        },
        What::Default => config::default_file(program),
    };
    print(text)?;
    Ok(Exit::Success)
}

//! `hashfinder config`: shows the settings, or prints a file with their defaults.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Command, Subcommand};

use crate::{
    config,
    exit::Exit,
    terminal::{print, say},
};

/// Show the configuration, or print a default configuration file.
///
/// Every flag is a setting, which an environment variable or a file can set, too. Exceptions are
/// flags of a single run, such as --json and --resume. The command line overrides the environment,
/// which overrides the file.
#[derive(Args, Debug)]
#[command(after_help = "\
--config or HASHFINDER_CONFIG names the file; the default is
$XDG_CONFIG_HOME/hashfinder/config.toml (~/.config/hashfinder/config.toml). With --config /dev/null,
no file is read. In the file, a command is a table and a flag is a key:

  kernel = \"avx2\"                  # for all commands with --kernel

  [find]
  quiet = true                     # --quiet=false on the command line overrides it

  [serve]
  maximum-hashes = 1_000_000_000
  client-weight = [\"10.0.0.7=4\"]  # a repeatable flag is a list

  [serve.limits]                   # settings that are not flags
  idle-timeout = \"5m\"

The same in the environment: HASHFINDER_KERNEL=avx2, HASHFINDER_FIND_QUIET=true (or 1, yes, on; the
opposite is false, 0, no, off), HASHFINDER_SERVE_MAXIMUM_HASHES=1000000000,
HASHFINDER_SERVE_CLIENT_WEIGHT=10.0.0.7=4 (a list has commas) and HASHFINDER_SERVE_IDLE_TIMEOUT=5m.
An empty variable counts as unset. A value for one command overrides one for all commands; only a
flag of several commands can be set for all.

If two settings conflict, the overridden one is ignored, with a note on stderr. An unknown key is an
error. An unknown variable is only a warning, because another program may use it.

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
    /// Print each setting with its value and where the value comes from
    Show {
        /// Print one JSON object per line for each setting
        ///
        /// Its fields are command, setting, value (null if there is none), source (default,
        /// environment or file) and, depending on the source, variable, or file and line.
        #[arg(long)]
        json: bool,
    },
    /// Print a configuration file with all settings and defaults, commented out
    Default,
}

/// Runs the command for the settings of `program`. `file` is the file that the command line names,
/// if any.
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

//! The command line: the commands, and `--config`, which all of them have.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    agent::AgentArguments,
    bench::BenchArguments,
    config::ConfigArguments,
    estimate::EstimateArguments,
    find::FindArguments,
    fleet::FleetCommandArguments,
    git_commit::GitCommitArguments,
    hashcash::HashcashArguments,
    health::HealthArguments,
    keys::KeysArguments,
    manual::{CompletionsArguments, ManArguments},
    operations::OperationsArguments,
    searches::SearchesArguments,
    serve::{LimitsArguments, ServeArguments},
    verify::VerifyArguments,
};

/// Display order of `--config` in the help: below the command's own flags.
const LAST: usize = 900;

/// Find inputs whose hash contains a word you choose.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    // By default, the help has the name that the program was called by, which can be anything.
    bin_name = "hashfinder",
    max_term_width = 100,
    after_help = "\
Examples:
  hashfinder find doctor
  hashfinder find c0ffee --algorithm sha256 --encoding hex --anchor prefix
  hashfinder estimate hashfinder

Environment variables and a configuration file can set most flags: see `hashfinder config --help`."
)]
pub(crate) struct Cli {
    /// Configuration file [default: ~/.config/hashfinder/config.toml]
    #[arg(long, global = true, value_name = "PATH", display_order = LAST)]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Find(FindArguments),
    Serve(Box<ServeArguments>),
    Agent(AgentArguments),
    Fleet(FleetCommandArguments),
    Bench(BenchArguments),
    Estimate(EstimateArguments),
    Verify(VerifyArguments),
    Searches(SearchesArguments),
    Operations(OperationsArguments),
    Health(HealthArguments),
    Keys(KeysArguments),
    GitCommit(GitCommitArguments),
    Hashcash(HashcashArguments),
    Config(ConfigArguments),
    Completions(CompletionsArguments),
    Man(ManArguments),
}

/// Adds the settings of `serve` that only the file and the environment can give.
///
/// Their help heading is the name of their table within the command's table.
pub(crate) fn with_file_settings(program: clap::Command) -> clap::Command {
    let limits = LimitsArguments::augment_args(clap::Command::new("limits"));
    let limits = limits.get_arguments().cloned();
    let limits: Vec<_> = limits
        .map(|limit| limit.help_heading("limits").hide(true))
        .collect();
    program.mut_subcommand("serve", |serve| serve.args(limits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        with_file_settings(Cli::command()).debug_assert();
    }
}

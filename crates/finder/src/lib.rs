//! `hashfinder`: finds secrets whose hashed names spell a desired name, in this process or as a
//! service.
//!
//! This is the whole program. It is a library so that the fuzz targets can call the code that reads
//! untrusted input. Without `cfg(fuzzing)`, its only public item is [`main`].

#![forbid(unsafe_code)]

mod arguments;
mod cli;
mod commands;
mod config;
mod exit;
#[cfg(fuzzing)]
pub mod fuzzing;
mod signals;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use hashfinder_server::Server;
use hashfinder_system::threads::{block_on, block_on_all_cores};

use crate::{
    cli::{Cli, Command, with_file_settings},
    commands::{
        agent, bench, config as configuration, estimate, find, fleet, git_commit, hashcash, health,
        keys, manual, operations, searches, serve, verify,
    },
    exit::Exit,
};

/// Runs the program with the command line of this process. Returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let program = Cli::command();
    let settings = with_file_settings(program.clone());
    let cli = match config::parse(program, settings) {
        Ok(matches) => Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()),
        Err(error) => {
            terminal::say(format_args!("{error:#}"));
            return Exit::Usage.into();
        }
    };
    run(cli).unwrap_or_else(|error| {
        terminal::say(format_args!("{error:#}"));
        Exit::Failed.into()
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let exit = match cli.command {
        Command::Find(arguments) => block_on(find::run(arguments)),
        Command::Serve(arguments) if arguments.check => serve::check(*arguments),
        Command::Serve(arguments) => block_on_all_cores(Server::THREADS, serve::run(*arguments)),
        Command::Agent(arguments) => block_on(agent::run(arguments)),
        Command::Fleet(arguments) => block_on(fleet::run(arguments)),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Estimate(arguments) => estimate::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Searches(arguments) => block_on(searches::run(arguments)),
        Command::Operations(arguments) => block_on(operations::run(arguments)),
        Command::Health(arguments) => block_on(health::run(arguments)),
        Command::Keys(arguments) => keys::run(arguments),
        Command::GitCommit(arguments) => block_on(git_commit::run(&arguments)),
        Command::Hashcash(arguments) => hashcash::run(&arguments),
        Command::Config(arguments) => {
            let program = with_file_settings(Cli::command());
            configuration::run(&arguments, program, cli.config.as_ref())
        }
        Command::Completions(arguments) => manual::completions(&arguments, Cli::command()),
        Command::Man(arguments) => manual::man(&arguments, Cli::command()),
    };
    exit.map(ExitCode::from)
}

//! `hashfinder`: finds secrets whose hashed names spell a desired name, in this process or as a
//! service.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod connection;
mod estimate;
mod find;
mod listener;
mod log;
mod rpc;
mod searches;
mod serve;
mod signals;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    run(cli).unwrap_or_else(|error| {
        cli::say(format_args!("{error:#}"));
        cli::Exit::Failed.into()
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let exit = match cli.command {
        Command::Find(arguments) => runtime.block_on(find::run(arguments)),
        Command::Serve(arguments) => runtime.block_on(serve::run(arguments)),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Estimate(arguments) => estimate::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Searches(arguments) => runtime.block_on(searches::run(arguments)),
    };
    // What is still going on, a connection that nobody reads for one, does not keep the process.
    runtime.shutdown_background();
    exit.map(ExitCode::from)
}

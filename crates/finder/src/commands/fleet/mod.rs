//! `hashfinder fleet`: shows a fleet.

mod status;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::status::StatusArguments;
use crate::exit::Exit;

/// Show the agents of a fleet.
#[derive(Args, Debug)]
pub(crate) struct FleetCommandArguments {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    Status(StatusArguments),
}

/// Runs the command. Dropping the future closes the connection.
pub(crate) async fn run(arguments: FleetCommandArguments) -> Result<Exit> {
    match arguments.command {
        FleetCommand::Status(arguments) => status::run(arguments).await,
    }
}

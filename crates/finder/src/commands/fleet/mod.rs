//! `hashfinder fleet`: shows a fleet, and changes it.

mod agents;
mod connection;
mod manage;
mod nats_config;
mod status;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use self::{
    agents::AgentsArguments,
    manage::{BanArguments, DrainArguments, UnbanArguments},
    nats_config::NatsConfigArguments,
    status::StatusArguments,
};
use crate::{exit::Exit, signals::Signals};

/// Show and manage the agents of a fleet.
#[derive(Args, Debug)]
pub(crate) struct FleetCommandArguments {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    Status(StatusArguments),
    Agents(AgentsArguments),
    Drain(DrainArguments),
    Ban(BanArguments),
    Unban(UnbanArguments),
    NatsConfig(NatsConfigArguments),
}

/// Runs the command. Dropping the future closes the connection.
pub(crate) async fn run(arguments: FleetCommandArguments) -> Result<Exit> {
    let arguments = match arguments.command {
        FleetCommand::Status(arguments) => return status::run(arguments).await,
        FleetCommand::NatsConfig(arguments) => return nats_config::run(arguments),
        other => other,
    };
    let mut signals = Signals::new().context("cannot receive signals")?;
    let command = async {
        match arguments {
            FleetCommand::Agents(arguments) => agents::run(arguments).await,
            FleetCommand::Drain(arguments) => arguments.run().await,
            FleetCommand::Ban(arguments) => arguments.run().await,
            FleetCommand::Unban(arguments) => arguments.run().await,
            FleetCommand::Status(_) | FleetCommand::NatsConfig(_) => Ok(Exit::Success),
        }
    };
    tokio::select! {
        exit = command => exit,
        signal = signals.next() => Ok(signal.exit()),
    }
}

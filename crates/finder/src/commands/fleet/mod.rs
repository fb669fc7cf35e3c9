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
    match arguments.command {
        FleetCommand::Status(arguments) => status::run(arguments).await,
        FleetCommand::Agents(arguments) => until_signal(agents::run(arguments)).await,
        FleetCommand::Drain(arguments) => until_signal(arguments.run()).await,
        FleetCommand::Ban(arguments) => until_signal(arguments.run()).await,
        FleetCommand::Unban(arguments) => until_signal(arguments.run()).await,
        FleetCommand::NatsConfig(arguments) => nats_config::run(arguments),
    }
}

/// Runs a command until it ends, or until a signal arrives.
async fn until_signal(command: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let mut signals = Signals::new().context("cannot receive signals")?;
    tokio::select! {
        exit = command => exit,
        signal = signals.next() => Ok(signal.exit()),
    }
}

//! `hashfinder fleet agents`: the agents of a fleet, and those that are banned.

use std::io::{self, IsTerminal};

use anyhow::Result;
use clap::Args;
use hashfinder_fleet_nats::{FleetStatus, means, status};

use super::{connection::connect, status::state};
use crate::{
    arguments::FleetArguments,
    commands::searches::rows::in_table,
    exit::Exit,
    terminal::{as_text, live::show, say},
};

/// List the agents of a fleet, and those that are banned.
///
/// A line for each agent: its name, its state (as in `fleet status`), false reports, and why it is
/// banned. Bans of agents that are not there have a line, too. If the output is not a terminal,
/// columns are separated by tabs. `fleet status` shows more of the agents that are there, and
/// `fleet status --json` shows all as JSON.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder fleet agents
  hashfinder fleet agents --fleet tls://broker.example --fleet-credentials operator.txt

Exit codes:
  0  shown
  1  no server leads the fleet
  2  the command line or a file is wrong
  5  the broker, the leader or the output failed")]
pub(super) struct AgentsArguments {
    #[command(flatten)]
    fleet: FleetArguments,
}

/// Runs the command. Dropping the future closes the connection.
pub(super) async fn run(arguments: AgentsArguments) -> Result<Exit> {
    let broker = match connect(arguments.fleet).await? {
        Ok(broker) => broker,
        Err(exit) => return Ok(exit),
    };
    let status = match status(&broker).await {
        Ok(status) => status,
        Err(wrong) if wrong.is_without_leader() => {
            say(wrong);
            return Ok(Exit::No);
        }
        Err(error) => return Err(error.into()),
    };
    let rows = rows(&status);
    let text = if io::stdout().is_terminal() {
        let titles = ["AGENT", "STATE", "WRONG", "BANNED BECAUSE"].map(str::to_owned);
        let all: Vec<_> = std::iter::once(titles).chain(rows).collect();
        in_table(&all).join("\n") + "\n"
    } else {
        rows.iter().map(|row| row.join("\t") + "\n").collect()
    };
    show(text).await?;
    Ok(Exit::Success)
}

fn rows(status: &FleetStatus) -> Vec<[String; 4]> {
    let reason = |agent: &str| {
        let ban = status.bans.iter().find(|ban| means(&ban.name, agent));
        ban.map_or_else(String::new, |ban| as_text(&ban.reason))
    };
    let agents = status.agents.iter().map(|agent| {
        [
            as_text(&agent.agent),
            state(agent).to_owned(),
            agent.false_reports.to_string(),
            reason(&agent.agent),
        ]
    });
    let is_there = |name: &str| status.agents.iter().any(|agent| means(name, &agent.agent));
    let others = status.bans.iter().filter(|ban| !is_there(&ban.name));
    let others = others.map(|ban| {
        [
            as_text(&ban.name),
            "banned".to_owned(),
            String::new(),
            as_text(&ban.reason),
        ]
    });
    agents.chain(others).collect()
}

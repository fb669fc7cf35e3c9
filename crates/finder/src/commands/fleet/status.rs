//! `hashfinder fleet status`: the leader and the agents of a fleet.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use hashfinder_fleet_nats::{Ban, FleetStatus, Listed, status};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::connection::connect;
use crate::{
    arguments::FleetArguments,
    commands::searches::rows::in_table,
    exit::Exit,
    signals::Signals,
    terminal::{
        self, as_text,
        live::{Live, height, show},
        say, takes_escapes,
    },
};

/// Time between two updates of the table.
const UPDATED_EVERY: Duration = Duration::from_secs(1);

/// Show the leader and the agents of a fleet.
///
/// On a terminal, the table is updated each second until ctrl-C. Otherwise it is printed once, with
/// a line for each agent and columns separated by tabs: the agent, its state (working, idle,
/// draining, silent, distrusted or banned), hashes per second, leases, seconds since its last
/// message, false reports, and its version.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder fleet status
  hashfinder fleet status --json | jq '.agents | length'

Exit codes:
    0  shown
    1  no server leads the fleet
    2  the command line or a file is wrong
    5  the broker, the leader or the output failed (on a terminal, the table says so instead)
  130  stopped by ctrl-C before anything was shown (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(super) struct StatusArguments {
    #[command(flatten)]
    fleet: FleetArguments,

    /// Print the state once, as a JSON object (schema: docs/fleet-status.schema.json)
    #[arg(long)]
    json: bool,
}

/// Runs the command. Dropping the future closes the connection.
pub(super) async fn run(arguments: StatusArguments) -> Result<Exit> {
    let mut signals = Signals::new().context("cannot receive signals")?;
    let is_live = !arguments.json && io::stdout().is_terminal() && takes_escapes();
    let mut live = Live::default();
    let showing = show_status(arguments, is_live, &mut live);
    let exit = tokio::select! {
        exit = showing => exit?,
        signal = signals.next() => signal.exit(),
    };
    live.end().await;
    Ok(if live.is_drawn() { Exit::Success } else { exit })
}

/// Prints the state of the fleet, once or each second. Dropping the future closes the connection.
async fn show_status(arguments: StatusArguments, is_live: bool, live: &mut Live) -> Result<Exit> {
    let broker = match connect(arguments.fleet).await? {
        Ok(broker) => broker,
        Err(exit) => return Ok(exit),
    };
    let mut ticks = interval(UPDATED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = status(&broker).await;
        let text = match status {
            Ok(status) if arguments.json => as_json(&status),
            Ok(status) if is_live => {
                let height = height();
                live.draw(&table(&status, height), height)
            }
            Ok(status) => tabs(&status),
            Err(wrong) if is_live => live.draw(&[wrong.to_string()], height()),
            Err(wrong) if wrong.is_without_leader() => {
                say(wrong);
                return Ok(Exit::No);
            }
            Err(error) => return Err(error.into()),
        };
        if !show(text).await? || !is_live {
            return Ok(Exit::Success);
        }
    }
}

/// Returns what an agent does.
pub(super) fn state(agent: &Listed) -> &'static str {
    if agent.is_banned {
        "banned"
    } else if !agent.is_trusted {
        "distrusted"
    } else if agent.silent_for >= hashfinder_fleet_nats::SILENT_AFTER {
        "silent"
    } else if agent.is_draining {
        "draining"
    } else if agent.leases == 0 {
        "idle"
    } else {
        "working"
    }
}

fn as_json(status: &FleetStatus) -> String {
    let agents = status.agents.iter().map(|agent| {
        json!({
            "agent": &*agent.agent,
            "state": state(agent),
            "hashes_per_second": agent.rate.round(),
            "leases": agent.leases,
            "silent_for_seconds": agent.silent_for.as_secs_f64(),
            "false_reports": agent.false_reports,
            "version": &*agent.version,
        })
    });
    let object = json!({
        "leader": &*status.leader.server,
        "term": status.leader.term.number,
        "hashes_per_second": status.leader.rate.round(),
        "searches": status.calls,
        "agents": agents.collect::<Vec<_>>(),
        "bans": status.bans.iter().map(ban_as_json).collect::<Vec<_>>(),
    });
    terminal::json(&object) + "\n"
}

fn ban_as_json(ban: &Ban) -> serde_json::Value {
    let since = Timestamp::try_from(ban.since).unwrap_or_default();
    json!({"name": ban.name, "reason": ban.reason, "since": since.to_string()})
}

fn tabs(status: &FleetStatus) -> String {
    let lines = status.agents.iter().map(|agent| {
        format!(
            "{}\t{}\t{:.0}\t{}\t{:.1}\t{}\t{}\n",
            as_text(&agent.agent),
            state(agent),
            agent.rate,
            agent.leases,
            agent.silent_for.as_secs_f64(),
            agent.false_reports,
            as_text(&agent.version),
        )
    });
    lines.collect()
}

/// Returns the table, with at most `height` lines, but at least one agent.
fn table(status: &FleetStatus, height: usize) -> Vec<String> {
    let leader = &status.leader;
    let (searches, agents) = (status.calls, leader.agents);
    let mut lines = vec![
        format!(
            "leader {}, term {}; {searches} {}",
            as_text(&leader.server),
            leader.term.number,
            if searches == 1 { "search" } else { "searches" },
        ),
        format!(
            "{agents} {}, {:.1} MH/s together",
            if agents == 1 {
                "agent gets leases"
            } else {
                "agents get leases"
            },
            leader.rate / 1e6
        ),
    ];
    if status.agents.is_empty() {
        return lines;
    }
    let titles = [
        "AGENT", "STATE", "MH/S", "LEASES", "SEEN", "WRONG", "VERSION",
    ];
    // The lines above, an empty one and the titles take four. If not all agents fit, the line "and
    // N more" takes another.
    let (mut room, all) = (height.saturating_sub(4).max(1), status.agents.len());
    if all > room {
        room = room.saturating_sub(1).max(1);
    }
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(status.agents.iter().take(room).map(|agent| {
        [
            as_text(&agent.agent),
            state(agent).to_owned(),
            format!("{:.1}", agent.rate / 1e6),
            agent.leases.to_string(),
            format!("{:.1} s ago", agent.silent_for.as_secs_f64()),
            agent.false_reports.to_string(),
            as_text(&agent.version),
        ]
    }));
    lines.push(String::new());
    lines.extend(in_table(&rows));
    if all > room {
        lines.push(format!("and {} more", all - room));
    }
    lines
}

#[cfg(test)]
mod tests {
    use hashfinder_fleet_nats::{Beat, Term};

    use super::*;

    #[test]
    fn the_table_fits_on_the_terminal() {
        let agent = |number: usize| Listed {
            agent: format!("agent-{number}").into(),
            version: "1".into(),
            rate: 1e6,
            leases: 2,
            silent_for: Duration::ZERO,
            is_draining: false,
            false_reports: 0,
            is_banned: false,
            is_trusted: true,
        };
        let status = |agents: usize| FleetStatus {
            leader: Beat {
                term: Term::default(),
                server: "web".into(),
                resigns: false,
                agents: agents as u32,
                rate: 1e6,
            },
            calls: 1,
            agents: (0..agents).map(agent).collect(),
            bans: Vec::new(),
        };
        for (agents, height, lines, last) in [
            (0, 24, 2, "0 agents get leases, 1.0 MH/s together"),
            (20, 24, 24, "agent-19"),
            (21, 24, 24, "and 2 more"),
            (4_000, 24, 24, "and 3981 more"),
            (5, 3, 6, "and 4 more"),
        ] {
            let table = table(&status(agents), height);
            assert_eq!(table.len(), lines, "{agents} agents");
            assert!(table.last().unwrap().starts_with(last), "{table:?}");
        }
    }
}

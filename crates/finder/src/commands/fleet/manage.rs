//! `hashfinder fleet drain`, `ban` and `unban`.

use anyhow::Result;
use clap::Args;
use hashfinder_fleet_nats::{Manage, ManageError, manage};

use super::connection::connect;
use crate::{arguments::FleetArguments, exit::Exit, terminal::say};

/// Make agents return their work and end.
///
/// They end as after SIGTERM, with exit code 0, within some seconds. Something that restarts them,
/// such as a container's restart policy, has to be stopped first. To keep agents away, use `ban`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder fleet drain node7.desk          # all agents of this machine
  hashfinder fleet drain node7               # all agents of this user of the broker

Exit codes:
  0  the agents were told
  1  no agent has this name, or no server leads the fleet
  2  the command line or a file is wrong
  5  the broker or the leader failed")]
pub(super) struct DrainArguments {
    /// Name of an agent as in `fleet agents`, or its first parts
    agent: String,

    #[command(flatten)]
    fleet: FleetArguments,
}

/// Keep agents from getting work.
///
/// What they have is given to others, and what they have reported as tried is tried again, as far
/// as the leader remembers it (1,024 leases of each, since it was elected). The ban holds until
/// `unban`, also for agents that start later, and under other leaders.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder fleet ban node7.desk --reason 'its memory is broken'
  hashfinder fleet ban node7

Exit codes:
  0  banned, and saved at the broker
  1  no server leads the fleet, the ban is not possible, or it was not saved
  2  the command line or a file is wrong
  5  the broker or the leader failed")]
pub(super) struct BanArguments {
    /// Name of an agent as in `fleet agents`, or its first parts
    agent: String,

    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "banned by an operator")]
    reason: String,

    #[command(flatten)]
    fleet: FleetArguments,
}

/// End a ban.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  the ban has ended, and that is saved at the broker
  1  no ban has this name, no server leads the fleet, or it was not saved
  2  the command line or a file is wrong
  5  the broker or the leader failed")]
pub(super) struct UnbanArguments {
    /// Name of the ban, as in `fleet agents`
    agent: String,

    #[command(flatten)]
    fleet: FleetArguments,
}

impl DrainArguments {
    /// Runs the command. Dropping the future closes the connection.
    pub(super) async fn run(self) -> Result<Exit> {
        carry_out(self.fleet, Manage::Drain(self.agent), |count| {
            format!("{} will end", agents(count))
        })
        .await
    }
}

impl BanArguments {
    /// Runs the command. Dropping the future closes the connection.
    pub(super) async fn run(self) -> Result<Exit> {
        let order = Manage::Ban {
            name: self.agent,
            reason: self.reason,
        };
        carry_out(self.fleet, order, |count| {
            format!("banned; this name means {} now", agents(count))
        })
        .await
    }
}

impl UnbanArguments {
    /// Runs the command. Dropping the future closes the connection.
    pub(super) async fn run(self) -> Result<Exit> {
        let order = Manage::Unban(self.agent);
        carry_out(self.fleet, order, |_| "the ban has ended".to_owned()).await
    }
}

async fn carry_out(
    fleet: FleetArguments,
    order: Manage,
    done: impl FnOnce(u32) -> String,
) -> Result<Exit> {
    let broker = match connect(fleet).await? {
        Ok(broker) => broker,
        Err(exit) => return Ok(exit),
    };
    match manage(&broker, order).await {
        Ok(count) => {
            say(done(count));
            Ok(Exit::Success)
        }
        Err(wrong @ ManageError::Rejected(_)) => {
            say(wrong);
            Ok(Exit::No)
        }
        Err(ManageError::Leader(wrong)) if wrong.is_without_leader() => {
            say(wrong);
            Ok(Exit::No)
        }
        Err(error) => Err(error.into()),
    }
}

fn agents(count: u32) -> String {
    match count {
        1 => "1 agent".to_owned(),
        count => format!("{count} agents"),
    }
}

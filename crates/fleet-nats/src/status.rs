//! What operators ask of the leader: the state of the fleet, and changes.

use std::time::{Duration, SystemTime};

use async_nats::RequestErrorKind;
use bytes::Bytes;
use hashfinder_fleet::{Beat, Listed};
use hashfinder_proto::fleet::v1 as pb;
use tokio::time::timeout;

use crate::{
    broker::{Broker, BrokerAddress},
    wire,
};

/// Time that the leader has to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Time that the leader has to carry out an order, which the broker may have to save.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetStatus {
    /// The leader, and its fleet in total.
    pub leader: Beat,
    /// Number of searches that the fleet works on.
    pub calls: u32,
    /// The agents whose messages have arrived in the last minute, by name: the first 4,096 of them.
    pub agents: Vec<Listed>,
    /// Agents that get no leases.
    pub bans: Vec<Ban>,
}

/// A ban of agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The ID of an agent, or its first parts.
    pub name: String,
    /// Why, for people.
    pub reason: String,
    /// When it began.
    pub since: SystemTime,
}

/// Why the state of a fleet is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// The connection to the broker is down.
    #[error("no connection to the broker {0}; trying again")]
    NoBroker(BrokerAddress),
    /// No server leads the fleet.
    #[error(
        "no server leads this fleet; an election takes 2 to 3 s; if it lasts longer, start a server \
         with `hashfinder serve --fleet`"
    )]
    NoLeader,
    /// The leader has not answered in time.
    #[error(
        "no answer within {} s; the leader is slow, or this user of the broker may not publish to \
         {subject}", .limit.as_secs()
    )]
    TimedOut {
        /// The subject of the question.
        subject: String,
        /// Time that the leader had.
        limit: Duration,
    },
    /// Its answer cannot be read.
    #[error("the leader's answer cannot be read: {0}")]
    Invalid(String),
    /// The connection does not work.
    #[error("the connection to the broker does not work: {0}")]
    Connection(String),
}

impl StatusError {
    /// Whether no server leads the fleet.
    #[must_use]
    pub fn is_without_leader(&self) -> bool {
        matches!(self, StatusError::NoLeader)
    }
}

/// Asks the leader for the state of the fleet.
///
/// Dropping the future ignores the answer.
///
/// # Errors
///
/// If the connection is down, if no server leads, or if the leader does not answer within 2
/// seconds.
pub async fn status(broker: &Broker) -> Result<FleetStatus, StatusError> {
    let status: pb::Status = ask(broker, "any.status", Bytes::new(), TIMEOUT).await?;
    let agents = status.agents.into_iter().map(wire::read_agent);
    let invalid = |error: wire::Invalid| StatusError::Invalid(error.to_string());
    Ok(FleetStatus {
        leader: wire::read_beat(status.leader.unwrap_or_default()),
        calls: status.calls,
        agents: agents.collect::<Result<_, _>>().map_err(invalid)?,
        bans: status.bans.into_iter().map(read_ban).collect(),
    })
}

fn read_ban(ban: pb::Ban) -> Ban {
    let since = ban.since.and_then(|since| since.try_into().ok());
    Ban {
        name: ban.name,
        reason: ban.reason,
        since: since.unwrap_or(SystemTime::UNIX_EPOCH),
    }
}

/// An order of an operator. Each name is the ID of an agent, `USER.MACHINE.PROCESS`, or its first
/// parts, which mean all agents of a user, or of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manage {
    /// Agents return their leases, and end.
    Drain(String),
    /// Agents get no leases, also later ones with this name. What they have reported as tried since
    /// the leader was elected is tried again, up to 1,024 leases of each.
    Ban {
        /// Whom to ban.
        name: String,
        /// Why, for people.
        reason: String,
    },
    /// A ban ends.
    Unban(String),
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// The leader cannot be asked.
    #[error(transparent)]
    Leader(#[from] StatusError),
    /// The leader says why.
    #[error("{0}")]
    Rejected(String),
}

/// Gives the leader an order. Returns how many agents it concerns now or, for [`Manage::Unban`], 1.
/// When it returns, a ban or its end is saved at the broker.
///
/// Dropping the future ignores the answer: the order may be carried out.
///
/// # Errors
///
/// As for [`status`], after 5 seconds; or if the name is wrong or unknown, there are too many bans,
/// or the broker does not save them.
pub async fn manage(broker: &Broker, order: Manage) -> Result<u32, ManageError> {
    use pb::manage::Action;
    let action = match order {
        Manage::Drain(name) => Action::Drain(name),
        Manage::Ban { name, reason } => Action::Ban(pb::Ban {
            name,
            reason,
            since: None,
        }),
        Manage::Unban(name) => Action::Unban(name),
    };
    let order = wire::encode(&pb::Manage {
        action: Some(action),
    });
    let done: pb::Managed = ask(broker, "any.manage", order, SAVE_TIMEOUT).await?;
    if done.error.is_empty() {
        Ok(done.count)
    } else {
        Err(ManageError::Rejected(done.error))
    }
}

/// Sends a request to the leader, and returns its answer.
async fn ask<M: prost::Message + Default>(
    broker: &Broker,
    to: &str,
    message: Bytes,
    limit: Duration,
) -> Result<M, StatusError> {
    if !broker.is_connected() {
        return Err(StatusError::NoBroker(broker.address.clone()));
    }
    let subject = broker.subject(to);
    let timed_out = |subject| StatusError::TimedOut { subject, limit };
    let request = broker.client.request(subject.clone(), message);
    let reply = match timeout(limit, request).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                RequestErrorKind::NoResponders => StatusError::NoLeader,
                RequestErrorKind::TimedOut => timed_out(subject),
                _ => StatusError::Connection(error.to_string()),
            });
        }
        Err(_) => return Err(timed_out(subject)),
    };
    wire::decode(&reply.payload).map_err(|error| StatusError::Invalid(error.to_string()))
}

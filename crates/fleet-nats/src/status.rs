//! The state of a fleet, from its leader.

use std::time::Duration;

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

/// The state of a fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetStatus {
    /// The leader, and its fleet in total.
    pub leader: Beat,
    /// Number of searches that the fleet works on.
    pub calls: u32,
    /// The agents whose messages have arrived in the last minute, by name: the first 4,096 of them.
    pub agents: Vec<Listed>,
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
         {subject}", TIMEOUT.as_secs()
    )]
    TimedOut {
        /// The subject of the question.
        subject: String,
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
    if !broker.is_connected() {
        return Err(StatusError::NoBroker(broker.address.clone()));
    }
    let subject = broker.subject("any.status");
    let request = broker.client.request(subject.clone(), Bytes::new());
    let reply = match timeout(TIMEOUT, request).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                RequestErrorKind::NoResponders => StatusError::NoLeader,
                RequestErrorKind::TimedOut => StatusError::TimedOut { subject },
                _ => StatusError::Connection(error.to_string()),
            });
        }
        Err(_) => return Err(StatusError::TimedOut { subject }),
    };
    let invalid = |error: wire::Invalid| StatusError::Invalid(error.to_string());
    let status: pb::Status = wire::decode(&reply.payload).map_err(invalid)?;
    let agents = status.agents.into_iter().map(wire::read_agent);
    Ok(FleetStatus {
        leader: wire::read_beat(status.leader.unwrap_or_default()),
        calls: status.calls,
        agents: agents.collect::<Result<_, _>>().map_err(invalid)?,
    })
}

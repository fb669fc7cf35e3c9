//! The machines of a fleet, and their messages through a NATS broker.
//!
//! `hashfinder-fleet` decides who tries what. This crate connects its state machines to a broker:
//!
//! - [`run_agent`] tries leases with the threads of this machine.
//! - [`Fleet`] is a server's part: it takes over searches, and leads if it is elected.
//! - [`status`](status()) asks the leader which agents there are.
//!
//! # Subjects
//!
//! All begin with `hf.POOL`. Messages are those of `hashfinder.fleet.v1`.
//!
//! | subject | from, to | message, reply |
//! | --- | --- | --- |
//! | `.TERM.work.AGENT` | agent, leader | `Work`, `Orders` |
//! | `.TERM.renew` | server, leader | `CallRenewal` |
//! | `.TERM.end` | server, leader | `End`, empty |
//! | `.any.leader` | any, leader | empty, `Beat` |
//! | `.any.status` | any, leader | empty, `Status` |
//! | `.beat` | leader, servers | `Beat`, every half second |
//! | `.update.SERVER` | leader, server | `CallUpdate` |
//! | `.term` | leader, agents | `Beat`, once at the start of a term |
//! | `.notice.AGENT` | leader, agent | `Notice` |
//!
//! The leader's term is the value of the key `leader` in the bucket `hf_POOL`. Agents do not read
//! it: they need no rights on streams, and thousands of them need no consumers there.

#![forbid(unsafe_code)]

mod agent;
mod broker;
mod bucket;
mod call;
mod fleet;
mod id;
mod key;
mod leading;
mod member;
mod operations;
mod shared;
mod status;
mod warnings;
mod wire;

pub use hashfinder_fleet::{Beat, LeaderSettings, Listed, SILENT_AFTER, Term};

pub use self::{
    agent::{AgentError, AgentOptions, run_agent},
    broker::{Broker, BrokerAddress, BrokerOptions, ConnectError, InvalidAddress, OLDEST_BROKER},
    call::{FleetAdvance, FleetRelease, FleetSearch, FleetStopper, OnRelease},
    fleet::Fleet,
    shared::FleetMetrics,
    status::{FleetStatus, StatusError, status},
};

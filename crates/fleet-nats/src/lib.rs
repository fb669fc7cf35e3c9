//! The machines of a fleet, and their messages through a NATS broker.
//!
//! `hashfinder-fleet` decides who tries what. This crate connects its state machines to a broker:
//!
//! - [`run_agent`] tries leases with the threads of this machine.
//! - [`Fleet`] is a server's part: it takes over searches, and leads if it is elected.
//! - [`status`](status()) asks the leader which agents there are, and [`manage`] changes that.
//! - [`rights_of`] returns the rights that each of them needs at the broker.
//!
//! # Subjects
//!
//! All begin with `hf.POOL`. Messages are those of `hashfinder.fleet.v1`.
//!
//! | subject | from, to | message, reply |
//! | --- | --- | --- |
//! | `.TERM.work.USER.MACHINE.PROCESS` | agent, leader | `Work`, `Orders` |
//! | `.TERM.renew` | server, leader | `CallRenewal` |
//! | `.TERM.end` | server, leader | `End`, empty |
//! | `.any.leader` | any, leader | empty, `Beat` |
//! | `.any.status` | operator, leader | empty, `Status` |
//! | `.any.manage` | operator, leader | `Manage`, `Managed` |
//! | `.beat` | leader, servers | `Beat`, every half second |
//! | `.update.SERVER` | leader, server | `CallUpdate` |
//! | `.term` | leader, agents | `Beat`, once at the start of a term |
//! | `.notice.USER.MACHINE.PROCESS` | leader, agent | `Notice` |
//!
//! The leader's term is the value of the key `leader` in the bucket `hf_POOL`. Agents do not read
//! it: they need no rights on streams, and thousands of them need no consumers there.

#![forbid(unsafe_code)]

mod agent;
mod bans;
mod broker;
mod bucket;
mod call;
mod credentials;
mod fleet;
mod id;
mod key;
mod leading;
mod member;
mod operations;
mod rights;
mod shared;
mod status;
mod warnings;
mod wire;

pub use hashfinder_fleet::{ANYONE, Beat, LeaderSettings, Listed, SILENT_AFTER, Term, means};

pub use self::{
    agent::{AgentError, AgentOptions, run_agent},
    broker::{
        Broker, BrokerAddress, BrokerOptions, ConnectError, InvalidAddress, OLDEST_BROKER, Role,
    },
    call::{FleetAdvance, FleetRelease, FleetSearch, FleetStopper, OnRelease},
    fleet::Fleet,
    rights::{Rights, is_name, new_key, public_key, rights_of},
    shared::FleetMetrics,
    status::{Ban, FleetStatus, Manage, ManageError, StatusError, manage, status},
};

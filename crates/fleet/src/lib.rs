//! Distributes searches over many machines. Machines may fail, and messages may be lost.
//!
//! A *leader* has searches, and deals [leases](Order) to *agents*, which try them. This crate is
//! both sides of that as state machines, without sockets, threads or clocks:
//!
//! - A [`Leader`] answers each [`Work`] message of an agent with [`Orders`], and each
//!   [`CallRenewal`] of a server about a call with a [`CallUpdate`].
//! - An [`Agent`] makes these messages, and knows what to try next.
//!
//! Messages may be lost, delayed, repeated or reordered, and machines may stop, pause or lose their
//! memory. The answers stay those of one thread that tries one secret after another: a lease ends
//! once, and whatever arrives later is ignored.
//!
//! `now` is always the time since some fixed moment, on a clock that never goes back.

#![forbid(unsafe_code)]

mod agent;
mod audit;
mod calls;
mod election;
mod leader;
mod messages;
mod remote;
mod retry;
mod roster;

pub use self::{
    agent::{Agent, Command, Task},
    calls::{CallUpdate, RENEWED_FOR},
    election::{Claim, Election, KeyAction, Stored},
    leader::{Banned, Leader, LeaderSettings, MOST_QUERY_BYTES, query_bytes},
    messages::{
        ANYONE, AgentId, BEAT, Beat, CallId, CallRenewal, NewSet, Order, Orders, OutOfRange,
        Report, ServerId, Term, WireIndex, Work, means, narrow, widen,
    },
    remote::RemoteSearch,
    roster::{Listed, RECALLED_FOR, SILENT_AFTER},
};

//! `hashfinder.v1.Finder`: our own contract.

mod drain_last;
mod estimates;
mod events;
mod filter;
mod frames;
mod operations;
mod pace;
mod service;
mod watch;

pub(crate) use self::{drain_last::DrainWatchesLast, service::FinderService};

//! The connections of a server: where they come from, who is at their other end, and what they may do.

mod activity;
mod admission;
mod counts;
mod frames;
mod lifetime;
mod listener;
mod meter;
mod peer;
mod server;
mod tls;
mod validity;

pub(crate) use self::{
    activity::OpenCall,
    admission::Admission,
    counts::Counts,
    lifetime::Lifetimes,
    listener::{Listener, addresses},
    meter::FloodLimits,
    peer::{ClientName, Origin, Peer},
    server::{Limits, Server},
    tls::Tls,
};

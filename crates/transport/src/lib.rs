//! An HTTP/2 listener for a server that strangers can reach: it accepts connections, knows who is at their other end,
//! and keeps unruly, broken and hostile clients from taking what others need.
//!
//! Start with [`Server`]: it serves any [`tower_service::Service`] to whatever comes from a [`Listener`]. Each request
//! carries its [`Peer`] and its [`OpenCall`] as extensions.
//!
//! - [`Listener`] is a TCP port or a Unix socket; [`Peer`] and [`ClientName`] say who is at the other end.
//! - [`Tls`] shakes hands, with certificates from files that may change.
//! - [`Admission`] takes a connection or does not; a meter counts what costs a server much and a client little.
//! - [`Settings`] has the limits of all this, with their defaults and reasons; [`Counts`] counts what comes of them.
//! - [`rate`] is the token bucket that the limits are made of.
//!
//! It knows nothing of what the calls are for. Of this workspace it must not depend on anything but
//! `hashfinder-system` and `hashfinder-tls`.

#![forbid(unsafe_code)]

mod activity;
mod admission;
mod counts;
mod frames;
mod lifetime;
mod listener;
mod meter;
mod peer;
pub mod rate;
mod server;
mod settings;
mod tls;
mod validity;

pub use self::{
    activity::OpenCall,
    admission::{Admission, Place},
    counts::{Closed, Counts},
    lifetime::Lifetimes,
    listener::{Connection, Listener, addresses},
    meter::FloodLimits,
    peer::{ClientName, Origin, Peer},
    server::{OnClose, Server},
    settings::{LEAST_HEADER_LIST, Limits, Settings, TooFewFiles, open_files},
    tls::{Certificate, ClientCertificates, Tls, TlsFiles},
    validity::Warning,
};

//! Connects to a search service: over TCP, TLS or a Unix socket, optionally with a credential.
//! Waits for a server that does not answer yet.
//!
//! Start with [`Connection::open`], which takes a [`ServerAddress`] and [`ConnectOptions`]; pass
//! the connection's [`channel`](Connection::channel) to a generated client of `hashfinder-proto`.
//!
//! This crate parses no command line and prints nothing: `hashfinder` (the program) turns flags
//! into [`ConnectOptions`]. The crate must not depend on the server.

#![forbid(unsafe_code)]

mod access;
mod address;
mod connection;
mod connector;
mod options;

pub use self::{
    access::{CREDENTIAL, Credential, advice},
    address::ServerAddress,
    connection::Connection,
    options::ConnectOptions,
};

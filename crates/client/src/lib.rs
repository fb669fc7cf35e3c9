//! Connections to a search service: over TCP, TLS or a Unix socket, with a credential, waiting for
//! a server that does not answer yet.
//!
//! Start with [`Connection::open`], which takes a [`ServerAddress`] and [`ConnectOptions`]; the
//! generated clients of `hashfinder-proto` are made of its [`channel`](Connection::channel).
//!
//! It knows no command line and prints nothing: `hashfinder` (the program) turns flags into
//! [`ConnectOptions`]. It must not depend on the server.

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

//! Connects to a search service: over TCP, TLS or a Unix socket, optionally with a credential.
//! Waits for a server that does not answer yet.
//!
//! Start with [`Connection::open`], which takes a [`ServerAddress`] and [`ConnectOptions`]; pass
//! the connection's [`channel`](Connection::channel) to a generated client of `hashfinder-proto`.
//!
//! This crate parses no command line and prints nothing: `hashfinder` (the program) turns flags
//! into [`ConnectOptions`]. The crate must not depend on the server.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use hashfinder_client::{ConnectOptions, Connection, ServerAddress};
//! use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
//!
//! # async fn run() -> anyhow::Result<()> {
//! let server: ServerAddress = "localhost:50051".parse().map_err(anyhow::Error::msg)?;
//! let patience = Duration::from_secs(20);
//! let connection = Connection::open(
//!     &server,
//!     &ConnectOptions::default(),
//!     patience,
//!     patience,
//!     |note| eprintln!("{note}"),
//! )
//! .await?;
//! let mut health = HealthClient::new(connection.channel());
//! let response = health.check(HealthCheckRequest::default()).await?;
//! println!("{:?}", response.into_inner().status());
//! drop(health);
//! connection.close().await;
//! # Ok(())
//! # }
//! ```

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

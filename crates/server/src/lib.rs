//! The search service: `hash_name.HashFinder` and `hashfinder.v1.Finder` over gRPC, with
//! authentication, limits, metrics, traces and an orderly shutdown.
//!
//! Pass [`Settings`] to [`Server::new`]. By default, the server listens on the loopback address:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), hashfinder_server::StartError> {
//! use hashfinder_server::{Server, Settings};
//!
//! let server = Server::new(Settings::default()).await?;
//! assert!(server.address().is_some_and(|address| address.starts_with("127.0.0.1:")));
//! let report = server.serve(async { "an example" }, std::future::pending::<&str>()).await;
//! assert_eq!(report.expect("it was asked to stop").stopped_calls, 0);
//! # Ok(())
//! # }
//! ```
//!
//! A call passes these layers in this order: metrics and spans, the protocol check, the limits of
//! its address, and authentication. Then a service handles it. All searches run on one engine, from
//! `hashfinder-search`.
//!
//! The crate does not deal with the command line, the terminal or exit codes: the program
//! `hashfinder` turns flags into [`Settings`]. Only error messages name flags, because operators
//! know the settings by these names. Except in tests, the crate must not depend on the client.

#![forbid(unsafe_code)]

pub mod auth;
mod call_info;
mod errors;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layers;
pub mod log;
mod metrics;
pub mod operations;
mod rejections;
mod searches;
mod server;
mod services;
mod settings;
mod trace;
mod violation;

pub use self::{
    server::{Activity, Checked, DrainReport, Server, StartError},
    settings::{
        ALL_OPEN_CALLS, BudgetStatus, Calls, FleetSettings, HostPort, Listen, MAXIMUM_WEIGHT,
        Searches, Settings, Traces,
    },
};

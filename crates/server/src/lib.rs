//! The search service: `hash_name.HashFinder` and `hashfinder.v1.Finder` over gRPC, with
//! authentication, limits, metrics, traces and an orderly shutdown.
//!
//! Start with [`Settings`], whose default is a server on the loopback address, and [`Server`]:
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
//! A call passes the layers from the outside in: metrics and spans, the check of what gRPC demands,
//! the limits of its address, and authentication. Then a service begins a search on the engine of
//! `hashfinder-search`, which all calls share.
//!
//! The crate knows no command line, no terminal and no process exit: `hashfinder` (the program)
//! turns flags into [`Settings`]. Only its error messages name flags, because operators know the
//! settings by these names. It must not depend on the client.

#![forbid(unsafe_code)]

pub mod auth;
mod call_info;
mod errors;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layers;
pub mod log;
mod metrics;
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
        ALL_OPEN_CALLS, BudgetStatus, Calls, HostPort, Listen, MAXIMUM_WEIGHT, Searches, Settings,
        Traces,
    },
};

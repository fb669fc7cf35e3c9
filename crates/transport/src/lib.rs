//! An HTTP/2 listener for a server that is open to untrusted clients. It accepts connections,
//! identifies the clients, and keeps unruly, broken and hostile clients from taking the resources
//! that others need.
//!
//! Start with [`Server`]: it serves any [`tower_service::Service`] on the connections of a
//! [`Listener`]. Each request carries its [`Peer`] and its [`OpenCall`] as extensions.
//!
//! - [`Listener`] is a TCP port or a Unix socket; [`Peer`] and [`ClientName`] identify the client.
//! - [`Tls`] performs handshakes, with certificates from files that may change.
//! - [`Admission`] accepts or rejects a connection; a meter limits the frames that cost the server
//!   much and the client little.
//! - [`Settings`] has the limits, with their defaults and the reasons for them; [`Counts`] has the
//!   metrics.
//! - [`rate`] is the token bucket behind the rate limits.
//!
//! This crate knows nothing about the purpose of the calls. Of the crates of this workspace, it may
//! depend only on `hashfinder-system` and `hashfinder-tls`.
//!
//! # Example
//!
//! ```
//! use std::{
//!     convert::Infallible,
//!     future::{Ready, ready},
//!     sync::Arc,
//!     task::{Context, Poll},
//! };
//!
//! use hashfinder_transport::{Counts, Listener, Server, Settings, open_files};
//! use http::{Request, Response};
//! use tonic::body::Body;
//! use tower_service::Service;
//!
//! /// Answers every request with an empty response.
//! #[derive(Clone)]
//! struct Empty;
//!
//! impl Service<Request<Body>> for Empty {
//!     type Response = Response<Body>;
//!     type Error = Infallible;
//!     type Future = Ready<Result<Response<Body>, Infallible>>;
//!
//!     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
//!         Poll::Ready(Ok(()))
//!     }
//!
//!     fn call(&mut self, _: Request<Body>) -> Self::Future {
//!         ready(Ok(Response::new(Body::empty())))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = Listener::tcp(&["127.0.0.1:0".parse()?], false)?;
//! println!("listening on {}", listener.address()?);
//! let limits = Settings::default().limits(open_files())?;
//! let server = Server::new(Empty, None, limits, Counts::default(), Arc::new(|_| {}));
//! // A real server would wait for a signal.
//! let shutdown = async {};
//! server.serve(listener, shutdown).await?;
//! # Ok(())
//! # }
//! ```

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
    settings::{LEAST_HEADER_LIST, Limits, PROXY_FACTOR, Settings, TooFewFiles, open_files},
    tls::{Certificate, ClientCertificates, Tls, TlsFiles},
    validity::Warning,
};

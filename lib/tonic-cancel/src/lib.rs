//! Cancellation, deadlines and draining that reach the work behind a tonic service, and call
//! handles for its clients.
//!
//! tonic drops a handler's future when its client goes away, and nothing more: work on other
//! threads runs on, the cause is unknown, and a deadline holds only until the response's headers.
//! This library closes that, in gRPC's own terms.
//!
//! # Server
//!
//! [`CallContextLayer`] puts a [`CallContext`] into every request. The handler asks it whether the
//! call is still wanted, hands its [`StopFlag`] to the threads that do the work, and registers what
//! must happen at the end with [`CallContext::add_callback`]:
//!
//! ```
//! use tonic::{Request, Response, Status};
//! use tonic_cancel::CallContext;
//!
//! async fn report(request: Request<String>) -> Result<Response<u64>, Status> {
//!     let context = CallContext::of(&request);
//!     let stop = context.stop_flag();
//!     let sum = tokio::task::spawn_blocking(move || {
//!         // One atomic load every so often; the work is never killed, it is told.
//!         (0..1_000_000_u64).take_while(|_| !stop.is_requested()).sum()
//!     });
//!     Ok(Response::new(sum.await.map_err(|e| Status::internal(e.to_string()))?))
//! }
//! ```
//!
//! A [`Drain`] shared by the layers of a server ends it in bounded time: close, wait, force.
//!
//! # Client
//!
//! [`Call`] and [`StreamingCall`] are handles of a call that is already under way: wait for them,
//! wait for a while, cancel them from elsewhere, be told when they are done.
//!
//! ```no_run
//! # async fn doc(mut client: tonic_health::pb::health_client::HealthClient<tonic::transport::Channel>) {
//! use std::time::Duration;
//! use tonic::Request;
//! use tonic_cancel::{Call, CallOptions};
//!
//! let request = Request::new(tonic_health::pb::HealthCheckRequest::default());
//! let options = CallOptions::new().timeout(Duration::from_secs(60));
//! let mut call = Call::start(request, options, |request| async move { client.check(request).await });
//! let canceller = call.canceller();
//! if call.result(Duration::from_millis(100)).await.is_err() {
//!     // Still running. Let somebody else decide how long is too long.
//!     canceller.cancel();
//! }
//! # }
//! ```
//!
//! A call on a channel that cannot connect fails at once; over a [`ReadyChannel`] it can wait.
//!
//! ## A channel that cancels a lot
//!
//! What a server had sent before it heard of a cancellation arrives all the same, and h2 takes it
//! for a sign of an ill-meaning peer: it counts such frames for as long as the connection lives, and
//! in the end closes it, and with it every other call on it. If you trust the server, lift both
//! limits; then a connection outlives any number of cancelled calls (a test of this crate counts to
//! 100,000):
//!
//! ```
//! # use tonic::transport::Endpoint;
//! let endpoint = Endpoint::from_static("http://127.0.0.1:50051")
//!     // How many frames may arrive for streams that are forgotten; 1,024 otherwise.
//!     .http2_max_local_error_reset_streams(None)
//!     // Half of it is what small messages for cancelled streams may use up in all.
//!     .initial_connection_window_size((1 << 31) - 1);
//! ```
//!
//! # Features
//!
//! `server` and `client`, each a half of its own; both are there by default.

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod link;
#[cfg(feature = "server")]
mod server;

#[cfg(feature = "client")]
pub use client::{
    Backoff, Call, CallOptions, Canceller, Done, ReadyChannel, StillRunning, StreamingCall,
};
#[cfg(feature = "server")]
pub use server::{
    CallBody, CallContext, CallContextLayer, CallContextService, CallEnd, CancelReason, Drain,
    Drained, ResponseFuture, StopFlag,
};

//! Cancellation, deadlines and draining that reach the work behind a tonic service, and call
//! handles for its clients.
//!
//! # The problem
//!
//! When a client cancels a call, tonic drops the handler's future, and nothing more. That is enough for
//! a handler that only awaits. It is not for one behind which there is work: a model that generates, a
//! report, a search, a query to somebody else.
//!
//! - Work on other threads runs on, for nobody. A client that asks and leaves in a loop fills the machine.
//! - The handler is not told: it cannot clean up, and nobody can say later why a call ended.
//! - A deadline is enforced until the response's headers, and then no more; it cannot be asked for, is not
//!   passed on, and is reported as CANCELLED.
//! - A server that is to stop waits for ever for one stream that nobody reads.
//! - A client's call is a future: it cannot be waited for with a timeout and kept, cancelled from elsewhere,
//!   or asked whether it is done.
//!
//! This library closes that, in gRPC's own terms. It knows nothing of what your service does.
//!
//! # A call's life
//!
//! ```text
//!   client                          server
//!   ──────                          ──────
//!   Call::start ──── request ─────▶ CallContextLayer: deadline, drain, panics
//!     │                               │
//!     │ result(timeout)               ▼
//!     │ add_done_callback           handler ── CallContext::of(&request)
//!     │                               │   ├─ StopFlag, child_token ─▶ work on other threads
//!     │                               │   ├─ outgoing(request) ─────▶ the next server
//!     │                               │   └─ add_callback ──────────▶ runs once, however it ends
//!     │                               │
//!   cancel() ────── RST_STREAM ─────▶ ended: the flag is set, the future dropped, the callbacks
//!     │                               run: ClientGone
//!     │             the deadline ───▶ the same: DeadlineExceeded
//!     │   cancel_with_status(..) ───▶ the same, and the client gets that status: Server
//!     │        Drain, after grace ──▶ told to stop, may still answer; then ended: Drain
//!     ▼                               ▼
//!   CANCELLED, here and at once     the work looks at its flag, ends, and gives its permit back
//! ```
//!
//! What exactly is promised, and what becomes of everything that can be dropped, is told in
#![cfg_attr(
    all(feature = "client", feature = "server"),
    doc = "[`semantics`]; whoever comes from gRPC in Python, Go or Java finds its words in [`coming_from`]."
)]
//!
//! # Server
//!
//! [`CallContextLayer`] puts a [`CallContext`] into every request. The handler asks it whether the
//! call is still wanted, hands its [`StopFlag`] to the threads that do the work, and registers what
//! must happen at the end with [`CallContext::add_callback`]:
//!
#![cfg_attr(
    feature = "server",
    doc = "```
use tonic::{Request, Response, Status};
use tonic_cancel::CallContext;

async fn report(request: Request<String>) -> Result<Response<u64>, Status> {
    let context = CallContext::of(&request);
    context.add_callback(|end| println!(\"it ended with {:?}, {:?}\", end.code, end.cancelled));
    // One atomic load every so often; the work is never killed, it is told.
    let sum = context.run_blocking(|stop| (0..1_000_000_u64).take_while(|_| !stop.is_requested()).sum());
    Ok(Response::new(sum.await?))
}
```"
)]
//!
//! - [`CallContext::run_blocking`] and [`CallContext::run_on`] run work that blocks, on tokio's threads or
//!   yours; a [`WorkLimit`] bounds how much there is of it, also where its calls are over.
//! - [`CallContext::cancel_with_status`] ends a call from any thread, also in the middle of a stream.
//! - [`CallContext::outgoing`] hands deadline and cancellation on to the calls that a handler makes.
//! - [`CallContext::requests`] tells a client's stream that has ended from one that was cut.
//! - A [`DeadlinePolicy`] bounds how long calls may take.
//! - A [`Drain`] shared by the layers of a server ends it in bounded time: close, wait, force.
//!   [`Drain::serve`] runs it to its end.
//!
//! `examples/cpu_bound.rs` is a whole server with work behind it, `examples/proxy.rs` one that calls
//! another.
//!
//! # Client
//!
//! [`Call`] and [`StreamingCall`] are handles of a call that is already under way: wait for them,
//! wait for a while, cancel them from elsewhere, be told when they are done.
//!
#![cfg_attr(
    feature = "client",
    doc = "```no_run
# async fn doc(mut client: tonic_health::pb::health_client::HealthClient<tonic::transport::Channel>) {
use std::time::Duration;
use tonic::Request;
use tonic_cancel::{Call, CallOptions};

let request = Request::new(tonic_health::pb::HealthCheckRequest::default());
let options = CallOptions::new().timeout(Duration::from_secs(60));
let mut call = Call::start(request, options, |request| async move { client.check(request).await });
let canceller = call.canceller();
if call.result(Duration::from_millis(100)).await.is_err() {
    // Still running. Let somebody else decide how long is too long.
    canceller.cancel();
}
# }
```"
)]
//!
//! A call on a channel that cannot connect fails at once; over a [`ReadyChannel`] it can wait.
//! `examples/ctrl_c.rs` is a client, and a server, that ctrl-C stops.
//!
//! ## A channel that cancels a lot
//!
//! What a server had sent before it heard of a cancellation arrives all the same, and h2 takes it
//! for a sign of an ill-meaning peer: it counts such frames for as long as the connection lives, and
//! in the end closes it, and with it every other call on it. If you trust the server, lift both
//! limits; then a connection outlives some millions of cancelled calls (a test of this crate counts to
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
//! `server` and `client`, each a half of its own; both are there by default. With one of them alone, what
//! this page says of the other is missing.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(feature = "client", feature = "server")),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "half of what the documentation speaks of is not there"
    )
)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod link;
#[cfg(feature = "server")]
mod server;
#[cfg(any(feature = "client", feature = "server"))]
mod timeout;

#[cfg(feature = "client")]
pub use client::{
    Backoff, Call, CallOptions, Canceller, Done, ReadyChannel, StillRunning, StreamingCall,
};
#[cfg(feature = "server")]
pub use server::{
    CallBody, CallContext, CallContextLayer, CallContextService, CallEnd, CancelReason,
    DeadlinePolicy, Drain, DrainOptions, Drained, Job, Requests, ResponseFuture, Shutdown,
    StopFlag, WorkGuard, WorkLimit,
};

#[cfg(all(feature = "client", feature = "server"))]
#[doc = include_str!("../docs/semantics.md")]
pub mod semantics {}

#[cfg(all(feature = "client", feature = "server"))]
#[doc = include_str!("../docs/coming_from.md")]
pub mod coming_from {}

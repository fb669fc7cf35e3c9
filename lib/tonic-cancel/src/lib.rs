//! Cancellation, deadlines and draining that reach the work behind a tonic service, and call
//! handles for its clients.
//!
//! # The problem
//!
//! When a client cancels a call, tonic drops the handler's future and does nothing else. That is
//! enough for a handler that only awaits. It is not enough for a handler with work behind it: a
//! model that generates text, a report, a search, a query to another service.
//!
//! - Work on other threads continues although its result is no longer needed. A client that calls
//!   and cancels in a loop can overload the server.
//! - The handler is not notified: it cannot clean up, and cannot record why a call ended.
//! - A deadline is enforced only until the response headers. The handler cannot query it, tonic
//!   does not propagate it to other calls, and a call that exceeds it ends with CANCELLED.
//! - A graceful shutdown waits forever for a single stream that its client does not read.
//! - A client's call is a future: the client cannot wait for it with a timeout and keep it, cancel
//!   it from elsewhere, or query whether it is done.
//!
//! This library solves these problems, in gRPC's own terms. It does not depend on what your service
//! does.
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
//!     │        Drain, after grace ──▶ asked to stop, may still answer; then ended: Drain
//!     ▼                               ▼
//!   CANCELLED, here and at once     the work checks its flag, ends, and returns its permit
//! ```
//!
//! The exact guarantees, and what happens when a future or handle is dropped, are described in
#![cfg_attr(
    all(feature = "client", feature = "server"),
    doc = "[`semantics`]. For users of gRPC in Python, Go and Java, [`coming_from`] lists the equivalents."
)]
//!
//! # Server
//!
//! [`CallContextLayer`] puts a [`CallContext`] into every request. The handler uses it to check
//! whether the call is still wanted, passes its [`StopFlag`] to the threads that do the work, and
//! registers cleanup with [`CallContext::add_callback`]:
//!
#![cfg_attr(
    feature = "server",
    doc = "```
use tonic::{Request, Response, Status};
use tonic_cancel::CallContext;

async fn report(request: Request<String>) -> Result<Response<u64>, Status> {
    let context = CallContext::of(&request);
    context.add_callback(|end| println!(\"it ended with {:?}, {:?}\", end.code, end.cancelled));
    // The work stops by itself: checking the flag costs one atomic load.
    let sum = context.run_blocking(|stop| (0..1_000_000_u64).take_while(|_| !stop.is_requested()).sum());
    Ok(Response::new(sum.await?))
}
```"
)]
//!
//! - [`CallContext::run_blocking`] and [`CallContext::run_on`] run blocking work, on tokio's
//!   threads or on yours. A [`WorkLimit`] limits how many pieces of work run at a time, including
//!   those whose call has ended.
//! - [`CallContext::cancel_with_status`] ends a call from any thread, even in the middle of a
//!   stream.
//! - [`CallContext::outgoing`] propagates deadline and cancellation to the calls that a handler
//!   makes.
//! - [`CallContext::requests`] distinguishes a request stream that ended from one that was cut off.
//! - A [`DeadlinePolicy`] limits how long calls may take.
//! - A [`Drain`] shared by the layers of a server shuts it down in bounded time: close, wait,
//!   force. [`Drain::serve`] runs a server until it has shut down.
//!
//! `examples/cpu_bound.rs` is a complete server with CPU-bound work. `examples/proxy.rs` is a
//! server that calls another one.
//!
//! # Client
//!
//! [`Call`] and [`StreamingCall`] are handles of a running call: wait for it, wait with a timeout,
//! cancel it from elsewhere, or get a callback when it is done.
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
    // Still running, so give up. A canceller can also be moved to another task.
    canceller.cancel();
}
# }
```"
)]
//!
//! A call on a channel that cannot connect fails. Over a [`ReadyChannel`], it can wait for a
//! connection instead. `examples/ctrl_c.rs` is a client and a server that both stop on ctrl-C.
//!
//! ## A channel that cancels a lot
//!
//! Frames that the server sent before it received a cancellation still arrive. h2 treats them as a
//! sign of a malicious peer. It counts them in two ways for the lifetime of the connection. When
//! either count reaches its limit, h2 closes the connection with all its calls. If you trust the
//! server, lift one limit and raise the other. The connection then survives some millions of
//! cancelled calls (a test of this crate makes 100,000):
//!
//! ```
//! # use tonic::transport::Endpoint;
//! let endpoint = Endpoint::from_static("http://127.0.0.1:50051")
//!     // Maximum number of frames for cancelled streams. The default is 1,024.
//!     .http2_max_local_error_reset_streams(None)
//!     // Each small message for a cancelled stream counts as up to 256 bytes. h2's limit for
//!     // their sum is half of this window.
//!     .initial_connection_window_size((1 << 31) - 1);
//! ```
//!
//! # Features
//!
//! `server` and `client` are independent halves, both enabled by default. With only one of them
//! enabled, this page lacks the documentation of the other.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(feature = "client", feature = "server")),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "the documentation links to items of both halves"
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

//! Calls with a single response.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::{
    handle::{Canceller, handle},
    options::CallOptions,
    shared::{self, Done, End, Shared, carrier_lost},
};

/// A running call. Awaiting it returns the response.
///
/// The call continues whether or not a task waits for it. If the task that carries the call dies
/// (the client's code panics, or the runtime shuts down), the call ends with UNKNOWN. Like every
/// future, the handle must not be polled again after it has returned the response. Dropping the
/// handle cancels the call, unless it was [`detach`](Call::detach)ed.
pub struct Call<T> {
    shared: Arc<Shared>,
    /// Present until the response is handed out.
    outcome: Option<mpsc::Receiver<Result<Response<T>, Status>>>,
    detached: bool,
}

/// Error of a wait that timed out while the call was still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillRunning;

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call is still running")
    }
}

impl std::error::Error for StillRunning {}

impl<T: Send + 'static> Call<T> {
    /// Starts a call. `rpc` receives the request, and passes it to a method of a client.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, which is needed to carry the call.
    pub fn start<R, F>(
        request: Request<R>,
        options: CallOptions,
        rpc: impl FnOnce(Request<R>) -> F,
    ) -> Call<T>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let (shared, outcome) =
            shared::start(request, options, 1, rpc, |carrier, call| async move {
                let result = carrier.shared.carry(call).await;
                if let Ok(response) = &result {
                    carrier.shared.initial_metadata_arrived(response.metadata());
                }
                let end = End::of(result.as_ref().map(Response::metadata));
                // The receiver may be gone.
                carrier
                    .shared
                    .finish(end, || drop(carrier.sender.try_send(result)));
            });
        Call {
            shared,
            outcome: Some(outcome),
            detached: false,
        }
    }
}

impl<T> Call<T> {
    /// Waits for the response, at most for `timeout`. When the time is up, the call continues. The
    /// response is handed out only once.
    ///
    /// Dropping the future stops only the waiting.
    ///
    /// # Errors
    ///
    /// Returns [`StillRunning`] when the time is up.
    ///
    /// # Panics
    ///
    /// Panics if the response was already handed out, or outside of a tokio runtime with a timer.
    pub async fn result(
        &mut self,
        timeout: Duration,
    ) -> Result<Result<Response<T>, Status>, StillRunning> {
        let result = tokio::time::timeout(timeout, self).await;
        result.map_err(|_| StillRunning)
    }
}

handle!(Call);

impl<T> Future for Call<T> {
    type Output = Result<Response<T>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.outcome.as_mut();
        let outcome = outcome.expect("the call's response was handed out before");
        let result = ready!(outcome.poll_recv(cx)).unwrap_or_else(|| Err(carrier_lost()));
        self.outcome = None;
        Poll::Ready(result)
    }
}

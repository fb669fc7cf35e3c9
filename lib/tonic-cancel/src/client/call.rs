//! A unary call, or any other that ends in one response.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

use super::{CallOptions, Canceller, Carrier, Done, Shared, carrier_lost};

/// A call that is under way; awaiting it gives its response.
///
/// It goes on whether or not anybody waits. If what carries it goes down (the client's own code
/// panics, the runtime is shut down), it ends with UNKNOWN. Like every future it must not be polled
/// again once it has given its response. Dropping the handle cancels the call, unless it was
/// [`detach`](Call::detach)ed.
pub struct Call<T> {
    shared: Arc<Shared>,
    outcome: oneshot::Receiver<Result<Response<T>, Status>>,
    detached: bool,
}

/// A call was waited for and is still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillRunning;

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call is still running")
    }
}

impl std::error::Error for StillRunning {}

impl<T: Send + 'static> Call<T> {
    /// Starts a call: `rpc` is a method of a client, given the request.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, which carries the call.
    pub fn start<R, F>(
        mut request: Request<R>,
        options: CallOptions,
        rpc: impl FnOnce(Request<R>) -> F,
    ) -> Call<T>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let shared = Shared::new(&mut request, options);
        let (sender, outcome) = oneshot::channel();
        let call = rpc(request);
        tokio::spawn({
            let carrier = Carrier(Arc::clone(&shared));
            async move {
                // Dropped in the reverse order, whichever way this ends.
                let (sender, carrier) = (sender, carrier);
                let Carrier(shared) = &carrier;
                let result = shared.carry(call).await;
                let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
                // Nobody need be waiting for it any more.
                shared.finish(code, || drop(sender.send(result)));
            }
        });
        Call {
            shared,
            outcome,
            detached: false,
        }
    }
}

impl<T> Call<T> {
    /// Waits for the response for `timeout` at most; then the call goes on. The response is handed
    /// out once.
    ///
    /// Dropping the future stops the waiting and nothing else.
    ///
    /// # Errors
    ///
    /// [`StillRunning`] when the time is up.
    ///
    /// # Panics
    ///
    /// If the response was handed out before.
    pub async fn result(
        &mut self,
        timeout: Duration,
    ) -> Result<Result<Response<T>, Status>, StillRunning> {
        let result = tokio::time::timeout(timeout, self).await;
        result.map_err(|_| StillRunning)
    }
}

super::handle!(Call);

impl<T> Future for Call<T> {
    type Output = Result<Response<T>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome)
            .poll(cx)
            .map(|result| result.unwrap_or_else(|_| Err(carrier_lost())))
    }
}

//! Calls with a stream of responses.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    handle::{Canceller, handle},
    options::CallOptions,
    shared::{self, Done, End, Shared, carrier_lost},
};

/// Maximum number of messages that wait in the handle's queue. The connection's flow-control
/// windows hold many more; the queue only passes messages between two tasks.
const QUEUE: usize = 16;

/// A running call with a stream of responses. The handle is a stream of these messages and, if the
/// call fails, its status at the end.
///
/// Flow control on the connection holds back messages that are not read. Messages that have arrived
/// can be read even after the call is over. Dropping the handle cancels the call, unless it was
/// [`detach`](StreamingCall::detach)ed.
///
/// The end of a call also ends its request stream, if it has one. In one case the server receives a
/// cancellation late: if its response has begun, and flow control holds back a request because the
/// server has stopped reading. The server then receives the cancellation when it reads again or the
/// connection ends.
pub struct StreamingCall<T> {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Result<T, Status>>,
    /// Whether the reader has received the final error.
    error_returned: bool,
    detached: bool,
}

impl<T: Send + 'static> StreamingCall<T> {
    /// Starts a call. `rpc` receives the request, and passes it to a method of a client.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, which is needed to carry the call.
    pub fn start<R, F>(
        request: Request<R>,
        options: CallOptions,
        rpc: impl FnOnce(Request<R>) -> F,
    ) -> StreamingCall<T>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
    {
        let (shared, messages) =
            shared::start(request, options, QUEUE, rpc, |carrier, call| async move {
                let forward = async {
                    let (metadata, mut stream, _) = call.await?.into_parts();
                    carrier.shared.initial_metadata_arrived(&metadata);
                    while let Some(message) = stream.message().await? {
                        // Sending fails only if the handle is gone. The call then continues only
                        // if the handle was detached.
                        let _ = carrier.sender.send(Ok(message)).await;
                    }
                    Ok(stream.trailers().await?.unwrap_or_default())
                };
                let result = carrier.shared.carry(forward).await;
                carrier.shared.finish(End::of(result.as_ref()), || ());
                if let Err(status) = result {
                    // Sent last: the reader may be slow, and the call's resources are already
                    // released.
                    let _ = carrier.sender.send(Err(status)).await;
                }
            });
        StreamingCall {
            shared,
            messages,
            error_returned: false,
            detached: false,
        }
    }
}

impl<T> StreamingCall<T> {
    /// Waits for the next message. Returns `None` at the end of a stream whose status is OK.
    ///
    /// Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// If the call's status is not OK, returns the status once, and then `None`.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

handle!(StreamingCall);

impl<T> Stream for StreamingCall<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.messages.poll_recv(cx)).or_else(|| {
            // A stream that was cut off must not look complete.
            let complete = self.shared.done().is_some_and(|done| done.code == Code::Ok);
            (!complete && !self.error_returned).then(|| Err(carrier_lost()))
        });
        self.error_returned |= matches!(next, Some(Err(_)));
        Poll::Ready(next)
    }
}

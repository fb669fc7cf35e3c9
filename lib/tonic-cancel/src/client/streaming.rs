//! A call that answers with a stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{CallOptions, Canceller, Carrier, Done, Shared, carrier_lost};

/// How many messages may wait in the handle. The connection's own windows hold many more; this is
/// only the hand-over between two tasks.
const QUEUE: usize = 16;

/// A streaming call that is under way; a stream of its messages, which ends after its status.
///
/// Messages that nobody takes are held back by the connection's flow control; those that have arrived
/// can be read even after the call is over. Dropping the handle
/// cancels the call, unless it was [`detach`](StreamingCall::detach)ed.
pub struct StreamingCall<T> {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Result<T, Status>>,
    /// Whether the reader was told of an end that is not OK.
    told: bool,
    detached: bool,
}

impl<T: Send + 'static> StreamingCall<T> {
    /// Starts a call: `rpc` is a method of a client, given the request.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, which carries the call.
    pub fn start<R, F>(
        mut request: Request<R>,
        options: CallOptions,
        rpc: impl FnOnce(Request<R>) -> F,
    ) -> StreamingCall<T>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
    {
        let shared = Shared::new(&mut request, options);
        let (sender, messages) = mpsc::channel(QUEUE);
        let call = rpc(request);
        tokio::spawn({
            let carrier = Carrier(Arc::clone(&shared));
            async move {
                // Dropped in the reverse order, whichever way this ends.
                let (sender, carrier) = (sender, carrier);
                let Carrier(shared) = &carrier;
                let forward = async {
                    let mut stream = call.await?.into_inner();
                    while let Some(message) = stream.message().await? {
                        // Only a detached handle is gone while the call goes on.
                        let _ = sender.send(Ok(message)).await;
                    }
                    Ok(())
                };
                let result = shared.carry(forward).await;
                let code = result.as_ref().map_or_else(Status::code, |()| Code::Ok);
                shared.finish(code, || ());
                if let Err(status) = result {
                    // The reader may be slow; the call, and what it held, is gone by now.
                    let _ = sender.send(Err(status)).await;
                }
            }
        });
        StreamingCall {
            shared,
            messages,
            told: false,
            detached: false,
        }
    }
}

impl<T> StreamingCall<T> {
    /// Waits for the next message; `None` is the end of a stream whose status is OK.
    ///
    /// Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// The call's status, if it is not OK, once; then `None` again.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

super::handle!(StreamingCall);

impl<T> Stream for StreamingCall<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.messages.poll_recv(cx)).or_else(|| {
            // A stream that was cut off must not look like one that is complete.
            let complete = self.shared.done().is_some_and(|done| done.code == Code::Ok);
            (!complete && !self.told).then(|| Err(carrier_lost()))
        });
        self.told |= matches!(next, Some(Err(_)));
        Poll::Ready(next)
    }
}

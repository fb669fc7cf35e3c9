//! Notifies a stream that its call was cancelled, so that the stream can still send its last
//! messages.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tonic_cancel::{CallContext, CancelReason};

type Waiting = Pin<Box<dyn Future<Output = Option<CancelReason>> + Send>>;

/// Becomes ready once, when a call is cancelled or ends. From then on, it is pending.
pub(crate) struct Cancelled(Option<Waiting>);

impl Cancelled {
    pub(crate) fn new(context: &CallContext) -> Cancelled {
        let context = context.clone();
        Cancelled(Some(Box::pin(async move { context.cancelled().await })))
    }

    /// Returns the reason when the call is cancelled, or `None` when it ends by itself.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<CancelReason>> {
        let Some(waiting) = &mut self.0 else {
            return Poll::Pending;
        };
        let reason = ready!(waiting.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(reason)
    }
}

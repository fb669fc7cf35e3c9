//! The moment at which a call is told to stop while its stream may still say something.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tonic_cancel::{CallContext, CancelReason};

type Told = Pin<Box<dyn Future<Output = Option<CancelReason>> + Send>>;

/// Ready once, when a call is told to stop; pending ever after.
pub(super) struct ToldToStop(Option<Told>);

impl ToldToStop {
    pub(super) fn new(context: &CallContext) -> ToldToStop {
        let context = context.clone();
        ToldToStop(Some(Box::pin(async move { context.cancelled().await })))
    }

    /// Why, if there is a reason: a call that has ended of itself has none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<CancelReason>> {
        let Some(told) = &mut self.0 else {
            return Poll::Pending;
        };
        let reason = ready!(told.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(reason)
    }
}

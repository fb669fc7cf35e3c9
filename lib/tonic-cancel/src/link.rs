//! The link from a call that a handler makes to the call that it handles.

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

/// Request extension that makes the call started with the request a child of another call. The
/// child's deadline is no later than its parent's, and the child is cancelled when its parent is
/// cancelled or ends.
///
/// The server half inserts it and the client half removes it. It never leaves the process.
#[derive(Clone)]
pub(crate) struct Parent {
    /// The time by which the child must have ended: the parent's deadline less its margin.
    pub(crate) deadline: Option<Instant>,
    ended: Arc<dyn Fn() -> Ended + Send + Sync>,
}

type Ended = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

impl Parent {
    /// Creates the link. Each future that `ended` returns must complete when the parent is
    /// cancelled or has ended, or at once if that has already happened. Its output is the reason
    /// for cancelling the children, if known.
    #[allow(dead_code, reason = "the server half is its only user")]
    pub(crate) fn new<F>(
        deadline: Option<Instant>,
        ended: impl Fn() -> F + Send + Sync + 'static,
    ) -> Parent
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        Parent {
            deadline,
            ended: Arc::new(move || Box::pin(ended())),
        }
    }

    /// Waits until the parent is cancelled or has ended, and returns the reason. Dropping the
    /// future has no effect.
    pub(crate) async fn ended(&self) -> Option<String> {
        (self.ended)().await
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parent")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

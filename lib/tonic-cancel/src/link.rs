//! What ties a call that a handler makes to the call that it handles.

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

/// Put into a request's extensions, it makes the call that is started with the request a child: the
/// child has no later deadline than its parent, and is cancelled when its parent has ended.
///
/// The server half makes it, the client half takes it out again; it never leaves the process.
#[derive(Clone)]
pub(crate) struct Parent {
    /// When the parent must be over.
    pub(crate) deadline: Option<Instant>,
    ended: Arc<dyn Fn() -> Ended + Send + Sync>,
}

type Ended = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

impl Parent {
    /// Each future that `ended` gives must complete when the parent has ended, at once if it already
    /// has, with the reason, if one is known, that its children are to be cancelled with.
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

    /// Waits until the parent has ended; gives the reason. Dropping the future has no effect.
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

//! Links a handler's outgoing call to the incoming call that it is made for.

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

/// Request extension that makes an outgoing call the child of an incoming one. The child must end
/// before its parent's deadline, and is cancelled when its parent is asked to stop or ends.
///
/// The server half inserts the extension and the client half removes it. It never leaves the
/// process.
#[derive(Clone)]
pub(crate) struct Parent {
    /// The time by which the child must have ended: the parent's deadline minus the layer's margin.
    pub(crate) deadline: Option<Instant>,
    ended: Arc<dyn Fn() -> Ended + Send + Sync>,
}

type Ended = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

impl Parent {
    /// Creates the link. Each future that `ended` returns must complete when the parent is asked to
    /// stop or ends, or at once if that has already happened. Its output is why the parent was
    /// cancelled or asked to stop, or `None` if it ended by itself.
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

    /// Waits until the parent is asked to stop or ends, and returns the reason, if there is one.
    /// Dropping the future has no effect.
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

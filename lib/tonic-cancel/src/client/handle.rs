//! Methods shared by the handles of unary and streaming calls, and [`Canceller`].

use std::{fmt, sync::Arc};

use super::shared::Shared;

/// Implements the shared methods for a handle type.
macro_rules! handle {
    ($name:ident) => {
        impl<T> $name<T> {
            /// Cancels the call; see [`Canceller::cancel`].
            pub fn cancel(&self) -> bool {
                self.canceller().cancel()
            }

            /// Cancels the call with a reason; see [`Canceller::cancel_with_reason`].
            pub fn cancel_with_reason(&self, reason: impl Into<String>) -> bool {
                self.canceller().cancel_with_reason(reason)
            }

            /// Returns a handle that can cancel the call from elsewhere, such as another task.
            #[must_use]
            pub fn canceller(&self) -> Canceller {
                Canceller {
                    shared: Arc::clone(&self.shared),
                }
            }

            /// Registers a callback for the end of the call. Returns `false` if the call was over
            /// and the callback has already run.
            ///
            /// The callback runs exactly once: at once, on this thread, if the call is over, and
            /// otherwise on the task that carries the call. A callback that panics does not affect
            /// the others.
            pub fn add_done_callback(&self, callback: impl FnOnce(Done) + Send + 'static) -> bool {
                self.shared.add_done_callback(Box::new(callback))
            }

            /// Whether the call is over.
            #[must_use]
            pub fn done(&self) -> bool {
                self.shared.done().is_some()
            }

            /// Whether the call is over because this side cancelled it.
            #[must_use]
            pub fn cancelled(&self) -> bool {
                self.shared.done().is_some_and(|done| done.cancelled)
            }

            /// Returns why this side cancelled the call, once the call is over; `None` if this side
            /// did not cancel it, or gave no reason.
            #[must_use]
            pub fn cancel_reason(&self) -> Option<String> {
                self.shared.done()?.reason
            }

            /// Returns the code of the call's status, once the call is over.
            #[must_use]
            pub fn code(&self) -> Option<Code> {
                self.shared.done().map(|done| done.code)
            }

            /// Waits for the initial metadata, which the server sends before the first message.
            /// Returns `None` if the call ended without it.
            ///
            /// For a call with one response, tonic merges initial and trailing metadata and returns
            /// them with the response. For a [`Call`](crate::Call), this method therefore waits for
            /// the response, and returns the same as
            /// [`trailing_metadata`](Self::trailing_metadata). If the call failed, it returns
            /// `None`, and only `trailing_metadata` has the metadata.
            ///
            /// Dropping the future stops only the waiting.
            pub async fn initial_metadata(&self) -> Option<MetadataMap> {
                self.shared.initial_metadata().await
            }

            /// Returns the trailing metadata, which the server sends after the last message or with
            /// an error. Returns `None` until the call is over. The metadata is empty if this side
            /// ended the call.
            #[must_use]
            pub fn trailing_metadata(&self) -> Option<MetadataMap> {
                self.shared.trailing_metadata()
            }

            /// Drops the handle without cancelling the call. The response is discarded.
            pub fn detach(mut self) {
                self.detached = true;
            }
        }

        impl<T> Drop for $name<T> {
            fn drop(&mut self) {
                if !self.detached {
                    self.cancel();
                }
            }
        }

        impl<T> std::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("done", &self.shared.done())
                    .finish()
            }
        }
    };
}
pub(super) use handle;

/// Status message of a call that the caller cancelled.
const BY_CALLER: &str = "the caller cancelled the call";

/// Cancels a call from elsewhere. Clones cancel the same call.
#[derive(Clone)]
pub struct Canceller {
    pub(super) shared: Arc<Shared>,
}

impl Canceller {
    /// Cancels the call: it ends with CANCELLED here, and the server is notified. Returns `false`
    /// if the call was already done or cancelled.
    pub fn cancel(&self) -> bool {
        self.shared.cancel(BY_CALLER, None)
    }

    /// Like [`cancel`](Self::cancel), with a reason that is added to the message of the call's
    /// status. The reason stays on this side, because HTTP/2 cannot transmit it.
    pub fn cancel_with_reason(&self, reason: impl Into<String>) -> bool {
        self.shared.cancel(BY_CALLER, Some(reason.into()))
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller")
            .field("done", &self.shared.done())
            .finish()
    }
}

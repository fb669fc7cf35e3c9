//! Methods shared by the handles of unary and streaming calls, and a way to cancel a call from
//! elsewhere.

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

            /// Returns a handle that cancels the call from elsewhere.
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

            /// Waits for the initial metadata, sent before the first message. Returns it as soon as
            /// it arrives, or `None` if the call ended without it.
            ///
            /// For a call with one response, tonic returns all metadata merged, together with the
            /// response. A [`Call`](crate::Call) therefore has none before its end, and cannot
            /// separate initial from trailing metadata: this method and
            /// [`trailing_metadata`](Self::trailing_metadata) then return the same. If the call
            /// failed, only the latter has the metadata.
            ///
            /// Dropping the future stops only the waiting.
            pub async fn initial_metadata(&self) -> Option<MetadataMap> {
                self.shared.initial_metadata().await
            }

            /// Returns the trailing metadata, which is sent after the last message, even if the
            /// call failed. Returns `None` until the call is over. It is empty if this side ended
            /// the call.
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

/// Status message of a call that its caller cancelled.
const BY_CALLER: &str = "the caller cancelled the call";

/// Cancels a call from elsewhere; clones cancel the same call.
#[derive(Clone)]
pub struct Canceller {
    pub(super) shared: Arc<Shared>,
}

impl Canceller {
    /// Cancels the call: it ends with CANCELLED here, and the server is notified. Returns whether
    /// the call was neither done nor cancelled yet.
    pub fn cancel(&self) -> bool {
        self.shared.cancel(BY_CALLER, None)
    }

    /// Like [`cancel`](Self::cancel), with a reason that is added to the call's status. The reason
    /// stays on this side, because HTTP/2 cannot transmit it.
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

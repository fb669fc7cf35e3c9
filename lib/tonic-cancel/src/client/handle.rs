//! Methods that the handles of unary and of streaming calls share, and what cancels a call from elsewhere.

use std::{fmt, sync::Arc};

use super::shared::Shared;

/// What the handles of unary and of streaming calls have in common, as methods of each.
macro_rules! handle {
    ($name:ident) => {
        impl<T> $name<T> {
            /// Cancels the call; see [`Canceller::cancel`].
            pub fn cancel(&self) -> bool {
                self.canceller().cancel()
            }

            /// Cancels the call and says why; see [`Canceller::cancel_with_reason`].
            pub fn cancel_with_reason(&self, reason: impl Into<String>) -> bool {
                self.canceller().cancel_with_reason(reason)
            }

            /// What cancels the call from elsewhere.
            #[must_use]
            pub fn canceller(&self) -> Canceller {
                Canceller {
                    shared: Arc::clone(&self.shared),
                }
            }

            /// Registers what is to be done when the call is done with, and says whether that is
            /// still to come. It runs exactly once: at once, on this thread, if the call is done
            /// (then this returns `false`), and otherwise on the task that carries the call. One
            /// that panics harms no other.
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

            /// Why this side cancelled the call, once it is over; `None` if it did not, or gave no
            /// reason.
            #[must_use]
            pub fn cancel_reason(&self) -> Option<String> {
                self.shared.done()?.reason
            }

            /// The code of its status, once it is over.
            #[must_use]
            pub fn code(&self) -> Option<Code> {
                self.shared.done().map(|done| done.code)
            }

            /// The metadata that came before the first message, as soon as it has come; `None` if the
            /// call ended without.
            ///
            /// tonic hands over the metadata of a call with one response in one piece, with the
            /// response. A [`Call`](crate::Call) therefore knows of none before its end, nor which of
            /// it came first: this is then all there is, and
            /// [`trailing_metadata`](Self::trailing_metadata) is the same. If the call failed, only
            /// that one has it.
            ///
            /// Dropping the future stops the waiting and nothing else.
            pub async fn initial_metadata(&self) -> Option<MetadataMap> {
                self.shared.initial_metadata().await
            }

            /// The metadata that came after the last message, a failed call's included; `None` before
            /// the end. It is empty if this side ended the call.
            #[must_use]
            pub fn trailing_metadata(&self) -> Option<MetadataMap> {
                self.shared.trailing_metadata()
            }

            /// Lets the call go on without its handle; what it answers is thrown away.
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

/// What the status of a call says that its caller cancelled.
const BY_CALLER: &str = "the caller cancelled the call";

/// Cancels a call from elsewhere; clones cancel the same call.
#[derive(Clone)]
pub struct Canceller {
    pub(super) shared: Arc<Shared>,
}

impl Canceller {
    /// Cancels the call: it ends with CANCELLED here, and the server is told. Says whether the call
    /// was not done and not cancelled yet.
    pub fn cancel(&self) -> bool {
        self.shared.cancel(BY_CALLER, None)
    }

    /// Like [`cancel`](Self::cancel), with a reason that the call's status tells. It stays on this
    /// side, for HTTP/2 has no words for it.
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

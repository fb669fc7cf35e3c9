//! The client's half: handles of calls that are under way.

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
use handle;

mod call;
mod ready;
mod shared;
mod streaming;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use crate::link::Parent;
use shared::Shared;

pub use call::{Call, StillRunning};
pub use ready::{Backoff, ReadyChannel};
pub use streaming::StreamingCall;

/// The longest timeout that can be written into a request: eight digits of hours (gRPC over HTTP/2,
/// "Timeout"). A longer one is no deadline: it lies 11,000 years ahead.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// What the status of a call says that its caller cancelled.
const BY_CALLER: &str = "the caller cancelled the call";

/// What a call is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
    deadline: Option<std::time::Instant>,
    wait_for_ready: bool,
}

impl CallOptions {
    /// No deadline, and no waiting for a channel that cannot connect.
    #[must_use]
    pub const fn new() -> CallOptions {
        CallOptions {
            timeout: None,
            deadline: None,
            wait_for_ready: false,
        }
    }

    /// The call must be over within `timeout` of its start, connecting and a stream's last message
    /// included. The server is told, and when the time is up the call ends with DEADLINE_EXCEEDED,
    /// whatever the server says. A timeout of over 99,999,999 hours is none.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> CallOptions {
        self.timeout = Some(timeout);
        self
    }

    /// The call must be over at `deadline`, in the same way; for calls that share a deadline. With a
    /// [`timeout`](Self::timeout) as well, the earlier of the two counts.
    #[must_use]
    pub const fn deadline(mut self, deadline: std::time::Instant) -> CallOptions {
        self.deadline = Some(deadline);
        self
    }

    /// Whether a call on a channel that cannot connect waits until it can, as long as there is time
    /// (gRPC's `doc/wait-for-ready.md`). Without it, such a call makes one attempt to connect, and ends with
    /// UNAVAILABLE as soon as that fails; set a `connect_timeout` on the endpoint.
    ///
    /// It needs a client that is built over a [`ReadyChannel`]. With another one, a call that cannot
    /// connect ends with FAILED_PRECONDITION.
    #[must_use]
    pub const fn wait_for_ready(mut self, wait: bool) -> CallOptions {
        self.wait_for_ready = wait;
        self
    }

    /// When a call that starts now must be over. A time beyond what the clock can show, or what a
    /// request can tell, is no deadline.
    fn ends_at(&self, parent: Option<&Parent>, now: Instant) -> Option<Instant> {
        let own = self.timeout.and_then(|timeout| now.checked_add(timeout));
        let given = [self.deadline, parent.and_then(|parent| parent.deadline)];
        let given = given.into_iter().flatten().map(Instant::from_std);
        let earliest = own.into_iter().chain(given).min();
        earliest.filter(|deadline| deadline.duration_since(now) <= MAX_TIMEOUT)
    }
}

/// How a call was done with, as its callbacks are told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// The code of its status.
    pub code: Code,
    /// Whether it was this side that cancelled it.
    pub cancelled: bool,
    /// Why this side cancelled it, if it did and said why.
    pub reason: Option<String>,
}

/// Cancels a call from elsewhere; clones cancel the same call.
#[derive(Clone)]
pub struct Canceller {
    shared: Arc<Shared>,
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

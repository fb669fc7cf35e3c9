//! Options of a call.

use std::time::Duration;

use tokio::time::Instant;

use crate::link::Parent;

/// The longest timeout that can be written into a request: eight digits of hours (gRPC over HTTP/2,
/// "Timeout"). A longer one is no deadline: it lies 11,000 years ahead.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// What a call is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
    deadline: Option<std::time::Instant>,
    pub(super) wait_for_ready: bool,
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
    /// It needs a client that is built over a [`ReadyChannel`](crate::ReadyChannel). With another one, a call that cannot
    /// connect ends with FAILED_PRECONDITION.
    #[must_use]
    pub const fn wait_for_ready(mut self, wait: bool) -> CallOptions {
        self.wait_for_ready = wait;
        self
    }

    /// When a call that starts now must be over. A time beyond what the clock can show, or what a
    /// request can tell, is no deadline.
    pub(super) fn ends_at(&self, parent: Option<&Parent>, now: Instant) -> Option<Instant> {
        let own = self.timeout.and_then(|timeout| now.checked_add(timeout));
        let given = [self.deadline, parent.and_then(|parent| parent.deadline)];
        let given = given.into_iter().flatten().map(Instant::from_std);
        let earliest = own.into_iter().chain(given).min();
        earliest.filter(|deadline| deadline.duration_since(now) <= MAX_TIMEOUT)
    }
}

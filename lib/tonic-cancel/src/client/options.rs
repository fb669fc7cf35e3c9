//! Options of a call.

use std::time::Duration;

use tokio::time::Instant;

use crate::link::Parent;

/// Maximum timeout that can be written into a request: eight digits of hours (gRPC over HTTP/2,
/// "Timeout"). A longer one, over 11,000 years, counts as no deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// Options for starting a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
    deadline: Option<std::time::Instant>,
    pub(super) wait_for_ready: bool,
}

impl CallOptions {
    /// Creates options without a deadline and without waiting for a channel that cannot connect.
    #[must_use]
    pub const fn new() -> CallOptions {
        CallOptions {
            timeout: None,
            deadline: None,
            wait_for_ready: false,
        }
    }

    /// Sets the maximum time from the call's start to its end, including connecting and a stream's
    /// last message. It is sent to the server. When the time is up, the call ends with
    /// DEADLINE_EXCEEDED, regardless of the server. A timeout of more than 99,999,999 hours is no
    /// deadline.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> CallOptions {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the point in time by which the call must have ended, with the same effect; useful for
    /// calls that share a deadline. With a [`timeout`](Self::timeout) as well, the earlier of the
    /// two counts.
    #[must_use]
    pub const fn deadline(mut self, deadline: std::time::Instant) -> CallOptions {
        self.deadline = Some(deadline);
        self
    }

    /// Sets whether a call on a channel that cannot connect waits until it can, until its deadline
    /// (gRPC's `doc/wait-for-ready.md`). Without it, such a call makes one attempt to connect, and
    /// ends with UNAVAILABLE as soon as that fails. Set a `connect_timeout` on the endpoint.
    ///
    /// It needs a client that is built over a [`ReadyChannel`](crate::ReadyChannel). With another
    /// channel, a call that cannot connect ends with FAILED_PRECONDITION.
    #[must_use]
    pub const fn wait_for_ready(mut self, wait: bool) -> CallOptions {
        self.wait_for_ready = wait;
        self
    }

    /// Returns the deadline of a call that starts at `now`. A time beyond the range of the clock,
    /// or of a request's timeout, counts as no deadline.
    pub(super) fn ends_at(&self, parent: Option<&Parent>, now: Instant) -> Option<Instant> {
        let own = self.timeout.and_then(|timeout| now.checked_add(timeout));
        let given = [self.deadline, parent.and_then(|parent| parent.deadline)];
        let given = given.into_iter().flatten().map(Instant::from_std);
        let earliest = own.into_iter().chain(given).min();
        earliest.filter(|deadline| deadline.duration_since(now) <= MAX_TIMEOUT)
    }
}

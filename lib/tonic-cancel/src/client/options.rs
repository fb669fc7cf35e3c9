//! Options of a call.

use std::time::Duration;

use tokio::time::Instant;

use crate::link::Parent;

/// Maximum timeout that fits into a request: 99,999,999 hours, over 11,000 years (gRPC over HTTP/2,
/// "Requests"). A longer timeout counts as no deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// Options for starting a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
    deadline: Option<std::time::Instant>,
    pub(super) wait_for_ready: bool,
}

impl CallOptions {
    /// Creates the default options: no deadline, and no waiting for a channel that cannot connect.
    #[must_use]
    pub const fn new() -> CallOptions {
        CallOptions {
            timeout: None,
            deadline: None,
            wait_for_ready: false,
        }
    }

    /// Sets the maximum time from the call's start to its end, including connecting and a stream's
    /// last message. The timeout is sent to the server. When the time is up, the call ends with
    /// DEADLINE_EXCEEDED, whatever the server does. A timeout of more than 99,999,999 hours counts
    /// as no deadline.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> CallOptions {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the time by which the call must have ended, for example for several calls that share a
    /// deadline. It has the same effect as [`timeout`](Self::timeout). If both are set, the earlier
    /// one counts.
    #[must_use]
    pub const fn deadline(mut self, deadline: std::time::Instant) -> CallOptions {
        self.deadline = Some(deadline);
        self
    }

    /// Sets whether the call waits while its channel cannot connect, at most until the call's
    /// deadline (gRPC's `doc/wait-for-ready.md`). By default, the call makes one attempt to
    /// connect, and ends with UNAVAILABLE if that fails. If calls wait, set a `connect_timeout` on
    /// the endpoint, too.
    ///
    /// Waiting requires a client that is built over a [`ReadyChannel`](crate::ReadyChannel). With
    /// another channel, a call that should wait but cannot connect ends with FAILED_PRECONDITION.
    #[must_use]
    pub const fn wait_for_ready(mut self, wait: bool) -> CallOptions {
        self.wait_for_ready = wait;
        self
    }

    /// Returns the deadline of a call that starts at `now`: the earliest of its timeout, its
    /// deadline and that of its parent. A time that the clock or a request's timeout cannot
    /// represent counts as no deadline.
    pub(super) fn ends_at(&self, parent: Option<&Parent>, now: Instant) -> Option<Instant> {
        let own = self.timeout.and_then(|timeout| now.checked_add(timeout));
        let given = [self.deadline, parent.and_then(|parent| parent.deadline)];
        let given = given.into_iter().flatten().map(Instant::from_std);
        let earliest = own.into_iter().chain(given).min();
        earliest.filter(|deadline| deadline.duration_since(now) <= MAX_TIMEOUT)
    }
}

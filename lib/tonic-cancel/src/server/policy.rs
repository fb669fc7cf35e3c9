//! Limits on how long calls may take.

use std::time::Duration;

use tonic::Status;

/// Limits on how long a server's calls may take; see
/// [`CallContextLayer::deadlines`](crate::CallContextLayer::deadlines).
///
/// A limit applies to unary calls and to whole streams. By default, no limit is set: a call has the
/// deadline that its client sets, or none.
///
/// ```
/// use std::time::Duration;
/// use tonic_cancel::{CallContextLayer, DeadlinePolicy};
///
/// let policy = DeadlinePolicy::new()
///     .default(Duration::from_secs(30))
///     .minimum(Duration::from_millis(5))
///     .maximum(Duration::from_secs(3600));
/// let layer = CallContextLayer::new().deadlines(policy);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadlinePolicy {
    default: Option<Duration>,
    minimum: Option<Duration>,
    maximum: Option<Duration>,
}

impl DeadlinePolicy {
    /// Creates a policy that keeps every client's deadline as it is.
    #[must_use]
    pub const fn new() -> DeadlinePolicy {
        DeadlinePolicy {
            default: None,
            minimum: None,
            maximum: None,
        }
    }

    /// Sets the timeout of calls whose client sets none. Without a default, they get the maximum,
    /// if there is one.
    #[must_use]
    pub const fn default(mut self, timeout: Duration) -> DeadlinePolicy {
        self.default = Some(timeout);
        self
    }

    /// Sets the minimum timeout that a client may set. A call with a shorter one is rejected with
    /// DEADLINE_EXCEEDED before its handler runs: the client would give up anyway, so it is better
    /// not to start work that cannot finish in time. The minimum does not apply to the default.
    #[must_use]
    pub const fn minimum(mut self, timeout: Duration) -> DeadlinePolicy {
        self.minimum = Some(timeout);
        self
    }

    /// Sets the maximum timeout. Longer ones, including the default, are reduced to it.
    #[must_use]
    pub const fn maximum(mut self, timeout: Duration) -> DeadlinePolicy {
        self.maximum = Some(timeout);
        self
    }

    /// Returns the timeout of a call whose client set `asked`, or DEADLINE_EXCEEDED if it is
    /// rejected.
    pub(crate) fn allow(&self, asked: Option<Duration>) -> Result<Option<Duration>, Status> {
        if let (Some(asked), Some(minimum)) = (asked, self.minimum)
            && asked < minimum
        {
            return Err(Status::deadline_exceeded(format!(
                "the call's timeout of {asked:?} is too short for it; give it at least {minimum:?}"
            )));
        }
        let wanted = asked.or(self.default);
        Ok(match (wanted, self.maximum) {
            (Some(wanted), Some(maximum)) => Some(wanted.min(maximum)),
            (wanted, maximum) => wanted.or(maximum),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_kept_within_the_policy() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let (short, long) = (Duration::from_millis(999), Duration::from_secs(61));
        let none = DeadlinePolicy::new();
        for (policy, asked, allowed) in [
            (none, None, Ok(None)),
            (none, Some(long), Ok(Some(long))),
            (none, Some(Duration::ZERO), Ok(Some(Duration::ZERO))),
            (none.default(minute), None, Ok(Some(minute))),
            (none.default(minute), Some(long), Ok(Some(long))),
            (none.maximum(minute), None, Ok(Some(minute))),
            (none.maximum(minute), Some(long), Ok(Some(minute))),
            (none.maximum(minute), Some(second), Ok(Some(second))),
            (none.maximum(minute).default(second), None, Ok(Some(second))),
            (none.maximum(minute).default(long), None, Ok(Some(minute))),
            (none.minimum(second), None, Ok(None)),
            (none.minimum(second), Some(second), Ok(Some(second))),
            (none.minimum(second), Some(short), Err(())),
            (none.minimum(second).default(short), None, Ok(Some(short))),
        ] {
            let got = policy.allow(asked);
            if let Err(status) = &got {
                assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
                assert!(status.message().contains("at least 1s"), "{status}");
            }
            assert_eq!(got.map_err(|_| ()), allowed, "{policy:?}, {asked:?}");
        }
    }
}

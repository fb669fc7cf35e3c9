//! How long calls may take, whatever their clients say.

use std::time::Duration;

use tonic::Status;

/// How long a server lets its calls take; see
/// [`CallContextLayer::deadlines`](crate::CallContextLayer::deadlines).
///
/// It holds for unary calls and for whole streams alike. By default nothing is set, and a call has
/// the deadline that its client gives it, or none.
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
    /// Every call as its client wants it.
    #[must_use]
    pub const fn new() -> DeadlinePolicy {
        DeadlinePolicy {
            default: None,
            minimum: None,
            maximum: None,
        }
    }

    /// How long a call may take whose client names no time. Without it that is the maximum.
    #[must_use]
    pub const fn default(mut self, timeout: Duration) -> DeadlinePolicy {
        self.default = Some(timeout);
        self
    }

    /// How much time a client must give. A call with less is refused with DEADLINE_EXCEEDED before
    /// its handler sees it: no server can lengthen what its client gives up on, and work that cannot
    /// be done in time is better not begun. The default is not measured by it.
    #[must_use]
    pub const fn minimum(mut self, timeout: Duration) -> DeadlinePolicy {
        self.minimum = Some(timeout);
        self
    }

    /// How long any call may take; one that is given more, the default included, gets this much.
    #[must_use]
    pub const fn maximum(mut self, timeout: Duration) -> DeadlinePolicy {
        self.maximum = Some(timeout);
        self
    }

    /// How long a call may take for which its client asks so much; an error if it is refused.
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
    fn what_is_allowed() {
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

//! Causes for stopping a search before it ends by itself.

use tonic_cancel::CancelReason;

use crate::errors::Canceller;

/// Cause for stopping a search. If a search has several, the first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// Its client cancelled it, or is gone.
    Client,
    /// The deadline of its call passed.
    Deadline,
    /// An operator cancelled it, or the server ended its call.
    Operator,
    /// The server is shutting down, or closes the connection of its call.
    Drain,
    /// Its client does not read the response.
    Unread,
    /// Its operation is paused, because it cannot be saved.
    Pause,
    /// Its operation has found the maximum number of candidates.
    TooManyCandidates,
}

impl StopCause {
    /// All causes, each at the index that equals its discriminant.
    pub(crate) const ALL: [StopCause; 7] = [
        StopCause::Client,
        StopCause::Deadline,
        StopCause::Operator,
        StopCause::Drain,
        StopCause::Unread,
        StopCause::Pause,
        StopCause::TooManyCandidates,
    ];

    /// Returns its name in the metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StopCause::Client => "client",
            StopCause::Deadline => "deadline",
            StopCause::Operator => "operator",
            StopCause::Drain => "drain",
            StopCause::Unread => "unread",
            StopCause::Pause => "pause",
            StopCause::TooManyCandidates => "too_many_candidates",
        }
    }
}

impl From<CancelReason> for StopCause {
    fn from(reason: CancelReason) -> StopCause {
        match reason {
            CancelReason::ClientGone => StopCause::Client,
            CancelReason::DeadlineExceeded => StopCause::Deadline,
            CancelReason::Server => StopCause::Operator,
            CancelReason::Drain => StopCause::Drain,
            // The library may add reasons in a later version. If a call ends for an unknown reason,
            // its client no longer waits for the search.
            _ => StopCause::Client,
        }
    }
}

impl From<Canceller> for StopCause {
    fn from(canceller: Canceller) -> StopCause {
        match canceller {
            Canceller::Client => StopCause::Client,
            Canceller::Operator => StopCause::Operator,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_at_its_own_index() {
        for (index, cause) in StopCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index);
        }
    }
}

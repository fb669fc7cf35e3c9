//! The `google.rpc.ErrorInfo` in the details of a status: its domain, its metadata, and how a
//! client reads it.

use tonic::Status;
use tonic_types::StatusExt;

use crate::Reason;

/// Domain of every `ErrorInfo` that a server of ours sends.
pub const DOMAIN: &str = "hashfinder";

/// Metadata key of the cursor from which the search can be resumed.
pub const CURSOR: &str = "cursor";

/// Metadata key of the reason that the caller of `CancelSearch` gave.
pub const CANCEL_REASON: &str = "reason";

/// Metadata key of the number of hashes that were computed.
pub const HASHES_TRIED: &str = "hashes_tried";

/// What a client can read from the details of an error status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Why the call failed; `None` if the status does not come from a server of ours, or if this
    /// version does not know the reason.
    pub reason: Option<Reason>,
    /// Cursor from which the search can be resumed, as the server sent it.
    pub cursor: Option<String>,
}

impl Details {
    /// Reads the details of a status. They are empty if the status has no `ErrorInfo`, or one of
    /// another domain.
    #[must_use]
    pub fn of(status: &Status) -> Details {
        let info = status.get_details_error_info();
        let Some(mut info) = info.filter(|info| info.domain == DOMAIN) else {
            return Details::default();
        };
        Details {
            reason: Reason::parse(&info.reason),
            cursor: info.metadata.remove(CURSOR),
        }
    }

    /// Returns whether the call failed for this reason.
    #[must_use]
    pub fn has(&self, reason: Reason) -> bool {
        self.reason == Some(reason)
    }

    /// Returns whether the hash budget or the client's quota of hashes is spent.
    #[must_use]
    pub fn limit_reached(&self) -> bool {
        self.has(Reason::HashBudgetSpent) || self.has(Reason::HashQuotaSpent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::Code;
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(domain: &str, reason: &str) -> Status {
        let metadata = HashMap::from([(CURSOR.to_owned(), "c1".to_owned())]);
        let details = ErrorDetails::with_error_info(reason, domain, metadata);
        Status::with_error_details(Code::Cancelled, "the message", details)
    }

    #[test]
    fn details_have_the_reason_and_the_cursor() {
        let details = Details::of(&status(DOMAIN, "HASH_QUOTA_SPENT"));
        assert!(details.has(Reason::HashQuotaSpent) && details.limit_reached());
        assert_eq!(details.cursor.as_deref(), Some("c1"));
        assert!(!Details::of(&status(DOMAIN, "DRAINING")).limit_reached());
    }

    #[test]
    fn a_cursor_is_read_with_an_unknown_reason_too() {
        let details = Details::of(&status(DOMAIN, "ADDED_LATER"));
        assert_eq!(details.reason, None);
        assert_eq!(details.cursor.as_deref(), Some("c1"));
    }

    #[test]
    fn details_of_another_domain_are_ignored() {
        for status in [status("example.com", "DRAINING"), Status::cancelled("")] {
            assert_eq!(Details::of(&status), Details::default());
        }
    }
}

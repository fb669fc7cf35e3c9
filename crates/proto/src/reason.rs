//! The reasons for which calls fail.

/// Defines `Reason` from one line per reason, with its text and its kind.
///
/// The kind is `rejection` if a server can reject a call for this reason before it starts any work,
/// and `end` otherwise.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $reason:ident = $text:literal, $kind:ident;)*) => {
        /// Why a server rejected or ended a call: the reason of the `google.rpc.ErrorInfo` in the
        /// status.
        ///
        /// Reasons are part of the contract: reasons may be added, but the text of a reason never
        /// changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])* $reason,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Reason] = &[$(Reason::$reason,)*];

            /// Returns the text of the reason on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$reason => $text,)*
                }
            }

            /// Returns whether a server can reject a call for this reason before it starts any
            /// work.
            ///
            /// [`HashQuotaSpent`](Reason::HashQuotaSpent), [`Draining`](Reason::Draining) and
            /// [`CredentialRefused`](Reason::CredentialRefused) can end a call later, too.
            #[must_use]
            pub const fn is_rejection(self) -> bool {
                match self {
                    $(Reason::$reason => reasons!(@is_rejection $kind),)*
                }
            }
        }
    };
    (@is_rejection rejection) => { true };
    (@is_rejection end) => { false };
}

reasons! {
    /// The call's hash budget is spent.
    HashBudgetSpent = "HASH_BUDGET_SPENT", end;
    /// The client's quota of hashes is spent.
    HashQuotaSpent = "HASH_QUOTA_SPENT", rejection;
    /// The server has its maximum number of searches.
    TooManySearches = "TOO_MANY_SEARCHES", rejection;
    /// The client has its maximum number of searches.
    TooManySearchesOfClient = "TOO_MANY_SEARCHES_OF_CLIENT", rejection;
    /// The connection has its maximum number of searches.
    TooManySearchesOfConnection = "TOO_MANY_SEARCHES_OF_CONNECTION", rejection;
    /// The server is shutting down, or is closing the connection because of a time limit.
    Draining = "DRAINING", rejection;
    /// All secrets of the keyspace were tried.
    KeyspaceExhausted = "KEYSPACE_EXHAUSTED", end;
    /// The search failed because of a bug in the server.
    SearchFailed = "SEARCH_FAILED", end;
    /// The client cancelled its search with `CancelSearch`.
    CancelledByClient = "CANCELLED_BY_CLIENT", end;
    /// An operator cancelled the search with `CancelSearch`.
    CancelledByOperator = "CANCELLED_BY_OPERATOR", end;
    /// No search has the requested id, or the search belongs to another client.
    SearchNotFound = "SEARCH_NOT_FOUND", rejection;
    /// The call is reserved for operators.
    NotAnOperator = "NOT_AN_OPERATOR", rejection;
    /// The client, or the server as a whole, has its maximum number of `WatchSearches` calls.
    TooManyWatches = "TOO_MANY_WATCHES", rejection;
    /// The client has its maximum number of waiting `Estimate` calls.
    TooManyEstimates = "TOO_MANY_ESTIMATES", rejection;
    /// The message of the request is too long.
    MessageTooLong = "MESSAGE_TOO_LONG", rejection;
    /// The client left the response unread for longer than the server allows.
    StreamNotRead = "STREAM_NOT_READ", end;
    /// The server requires a credential, and the call has none.
    CredentialMissing = "CREDENTIAL_MISSING", rejection;
    /// The credential is invalid, expired or revoked.
    CredentialRefused = "CREDENTIAL_REFUSED", rejection;
    /// The request ended without a message.
    MessageMissing = "MESSAGE_MISSING", rejection;
    /// The request has more messages than the method takes.
    TooManyMessages = "TOO_MANY_MESSAGES", rejection;
    /// The request did not arrive completely in time.
    RequestTimeout = "REQUEST_TIMEOUT", rejection;
    /// The client's address exceeded its rate limit for calls.
    TooManyCalls = "TOO_MANY_CALLS", rejection;
    /// The client's address, or the server as a whole, has its maximum number of open calls.
    TooManyOpenCalls = "TOO_MANY_OPEN_CALLS", rejection;
    /// The client's address sent too many invalid credentials. For a while, the server checks no
    /// credential from this address.
    TooManyRefusedCredentials = "TOO_MANY_REFUSED_CREDENTIALS", rejection;
    /// The server has no folder to save operations in.
    OperationsDisabled = "OPERATIONS_DISABLED", rejection;
    /// No operation has the requested name, or the operation belongs to another client.
    OperationNotFound = "OPERATION_NOT_FOUND", rejection;
    /// The operation has not ended, so it cannot be deleted.
    OperationRunning = "OPERATION_RUNNING", rejection;
    /// The operation of the repeated request was deleted.
    OperationDeleted = "OPERATION_DELETED", rejection;
    /// The request id belongs to another request of the client.
    RequestIdReused = "REQUEST_ID_REUSED", rejection;
    /// The client has its maximum number of saved or running operations.
    TooManyOperations = "TOO_MANY_OPERATIONS", rejection;
    /// Operations cannot be saved at the moment, for example because the disk is full.
    StoreUnavailable = "STORE_UNAVAILABLE", rejection;
    /// The saved operations are damaged, and an operator must recover them.
    StoreDamaged = "STORE_DAMAGED", rejection;
    /// The operation found the maximum number of candidates.
    TooManyCandidates = "TOO_MANY_CANDIDATES", end;
    /// The API key of the operation's client was revoked.
    KeyRevoked = "KEY_REVOKED", end;
}

impl Reason {
    /// Returns the reason with this text on the wire, or `None` if it is unknown.
    #[must_use]
    pub fn parse(text: &str) -> Option<Reason> {
        let mut all = Reason::ALL.iter().copied();
        all.find(|reason| reason.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_parsed_from_its_text() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::parse("DRAINING "), None);
    }

    #[test]
    fn every_reason_in_the_contract_is_known() {
        let contract = include_str!("../../../proto/hashfinder/v1/finder.proto");
        let quoted = contract.split('`').skip(1).step_by(2);
        let is_reason = |text: &&str| {
            text.contains("_")
                && text.len() > 1
                && text.chars().all(|c| c == '_' || c.is_ascii_uppercase())
        };
        let mut reasons = 0;
        for text in quoted.filter(is_reason) {
            assert!(Reason::parse(text).is_some(), "{text}");
            reasons += 1;
        }
        assert!(reasons > 10, "{reasons}");
    }
}

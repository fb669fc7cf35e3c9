//! Errors of calls, and the statuses that clients receive for them.
//!
//! Each error is described in two places: its message is an attribute of its variant in
//! [`CallError`], and everything else is its row in [`CallError::row`]. The compiler checks that no
//! variant lacks either. The status, the reason in the log and in the metrics, and the wrong field
//! are derived from them.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt, iter,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use hashfinder_proto::{
    Reason,
    details::{CANCEL_REASON, CURSOR, DOMAIN, HASHES_TRIED},
};
use hashfinder_search::{Cursor, OverLimit};
use humantime::format_duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Names of errors whose status has no `ErrorInfo`, for the log and the metrics.
const BAD_REQUEST: &str = "BAD_REQUEST";
const BROKEN: &str = "BROKEN";

/// Maximum length of a status message, in bytes. A message may quote the request. Clients commonly
/// accept 8 KiB of trailers. A message can take up to six times its length there: once
/// percent-encoded in `grpc-message`, and twice in base64 in `grpc-status-details-bin`, as the
/// message and as the description of a detail.
pub(crate) const MESSAGE_LEN: usize = 512;

/// Returns `text`. If it is longer than `length` bytes, cuts it to this length, including the mark
/// "...".
pub(crate) fn cut(text: &str, length: usize) -> Cow<'_, str> {
    const MARK: &str = "...";
    if text.len() <= length {
        return text.into();
    }
    let whole = (0..=length - MARK.len()).rev();
    let end = whole.into_iter().find(|end| text.is_char_boundary(*end));
    format!("{}{MARK}", &text[..end.unwrap_or(0)]).into()
}

/// Retry delay after a drain: another server, or the restarted one, should be up by then.
const RETRY_AFTER_DRAIN: Duration = Duration::from_secs(1);

/// Retry delay if another call has to end first. When one will end cannot be predicted.
const RETRY_AFTER_OVERLOAD: Duration = Duration::from_secs(1);

/// Why a call fails.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum CallError {
    /// A field of the request is wrong, or the query can never match.
    #[error("{message}")]
    BadRequest { field: String, message: String },
    /// The server has its maximum number of RPCs that search.
    #[error("the server's limit of {0} concurrent searches is reached; try again later")]
    TooManyRpcs(NonZeroUsize),
    /// The hash budget is spent. In the reference contract, the operator chooses the code.
    #[error("the hash budget of this call is spent; hashes tried: {hashes}")]
    BudgetSpent {
        code: Code,
        hashes: u64,
        cursor: Cursor,
    },
    /// A limit of the engine is reached, for this client or in total.
    #[error("{0}; try again later")]
    OverLimit(OverLimit),
    /// The client's quota of hashes is spent.
    #[error("this client's hash quota is spent; resume later from the cursor")]
    QuotaSpent {
        cursor: Cursor,
        retry_after: Duration,
    },
    /// All secrets of the keyspace were tried.
    #[error("the keyspace ended without a match")]
    Exhausted,
    /// The server is shutting down, or closing the connection. The cursor is missing if no search
    /// was started, or if the drain ended the call without its handler.
    #[error(
        "the server is shutting down or closing this connection; try another, or this one later"
    )]
    Draining(Option<Cursor>),
    /// The client did not read the response for too long.
    #[error(
        "the response was not read in time; resume from the cursor and keep reading the response"
    )]
    Unread(Cursor),
    /// The search panicked.
    #[error("the search failed; see the server's log")]
    Failed(Cursor),
    /// The work of an Estimate panicked, or the system gave no thread for it.
    #[error("{message}")]
    Broken { code: Code, message: String },
    /// The search was cancelled by its id.
    #[error("the search was cancelled by {by}{}{reason}", if .reason.is_empty() { "" } else { ": " })]
    Cancelled {
        by: Canceller,
        reason: String,
        cursor: Cursor,
    },
    /// No search has this id, or it belongs to another client.
    #[error(
        "no search has this id, or it belongs to another client; ended searches are kept only \
         for a while"
    )]
    NoSuchSearch,
    /// Only operators may see the searches of other clients.
    #[error(
        "only an operator can see what belongs to other clients; leave client empty to see your own"
    )]
    NotAnOperator,
    /// The server has its maximum number of watches.
    #[error("limit of watching calls reached; try again later")]
    TooManyWatches,
    /// The client has its maximum number of watches.
    #[error("this client already has {limit} watch calls, the maximum; end one of them first")]
    TooManyWatchesOfClient { limit: usize },
    /// The client has its maximum number of waiting Estimates.
    #[error(
        "limit of {limit} waiting Estimate calls for this client reached; try again when they end"
    )]
    TooManyEstimates { limit: usize },
    /// The message is too long. `length` and `limit` are in bytes.
    #[error("the request message has {length} bytes; the maximum is {limit}")]
    MessageTooLong { length: u32, limit: u32 },
    /// The server requires a credential, and the call has none.
    #[error(
        "this server requires a credential, sent as the metadata `authorization: Bearer CREDENTIAL`"
    )]
    CredentialMissing,
    /// The credential is not valid. Only the log says why, so that an attacker learns nothing from
    /// the status.
    #[error("the credential is invalid, expired or revoked; use another one")]
    CredentialRefused,
    /// Only operators may call the method.
    #[error("only an operator may call this method")]
    OperatorsOnly,
    /// The request ended without a message.
    #[error("the request has no message; this method requires one")]
    MessageMissing,
    /// The request has more messages than the method takes.
    #[error("{}", too_many_messages(*.limit))]
    TooManyMessages { limit: usize },
    /// The request did not arrive completely in time.
    #[error(
        "the request did not arrive completely within {}; send it at once, then end the stream",
        format_duration(*.limit)
    )]
    RequestTimeout { limit: Duration },
    /// The client's address exceeded its rate limit for calls.
    #[error(
        "rate limit of {per_second} calls per second for this address exceeded; try again later"
    )]
    TooManyCalls {
        per_second: NonZeroU32,
        retry_after: Duration,
    },
    /// The server has its maximum number of open calls.
    #[error("limit of {limit} open calls reached; try again later")]
    TooManyOpenCalls { limit: NonZeroUsize },
    /// The client's address has its maximum number of open calls.
    #[error("limit of {limit} open calls for this address reached; end one of them first")]
    TooManyOpenCallsOfAddress { limit: NonZeroUsize },
    /// The server saves no operations.
    #[error(
        "this server saves no operations; its operator can enable that with `hashfinder serve \
         --state FOLDER`"
    )]
    OperationsDisabled,
    /// The client cannot own operations: its address may belong to another client tomorrow.
    #[error(
        "this address cannot own operations; send a credential, or connect from the server's own \
         machine"
    )]
    OperationNeedsOwner,
    /// No operation has this name, or it belongs to another client.
    #[error("no operation has this name, or it belongs to another client")]
    NoSuchOperation,
    /// The operation has not ended, so it cannot be deleted.
    #[error("the operation has not ended; cancel it before you delete it")]
    OperationNotEnded,
    /// The operation of the repeated request was deleted.
    #[error("the operation of this request was deleted; use a new request id to start another")]
    OperationDeleted,
    /// The request id belongs to another request of the client.
    #[error("this request id belongs to another request; use a new one")]
    RequestIdReused,
    /// The client has its maximum number of operations that have not ended.
    #[error(
        "this client already has {limit} operations that have not ended, the maximum; wait for one \
         to end, or cancel one"
    )]
    TooManyRunningOperations { limit: u64 },
    /// The client has its maximum number of operations.
    #[error(
        "this client already has {limit} saved operations, the maximum; delete some that have ended"
    )]
    TooManySavedOperations { limit: u64 },
    /// Operations cannot be saved or read at the moment.
    #[error("operations cannot be saved or read at the moment: {0}; try again later")]
    StoreUnavailable(String),
    /// The saved operations are damaged.
    #[error(
        "the saved operations are damaged; the operator has to stop the server and run `hashfinder \
         operations recover`"
    )]
    StoreDamaged(String),
    /// The hash budget of an operation is spent.
    #[error("the hash budget of this operation is spent; hashes tried: {hashes}")]
    OperationBudgetSpent { hashes: u64, cursor: Cursor },
    /// An operation found the maximum number of candidates.
    #[error("the operation found {limit} candidates, the maximum; resume from the cursor")]
    TooManyCandidates { limit: u64, cursor: Cursor },
    /// The API key of an operation's client was revoked.
    #[error("the operation was cancelled because the API key of its client was revoked")]
    KeyRevoked(Cursor),
    /// An operation failed because of a bug.
    #[error("the operation failed: {why}")]
    OperationFailed { why: String, cursor: Cursor },
    /// The client's address sent too many invalid credentials. The server checks none from it for a
    /// while.
    #[error("too many invalid credentials from this address; try again later with a valid one")]
    TooManyRefusedCredentials { retry_after: Duration },
}

/// Who cancelled a search by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canceller {
    /// The client that owns the search.
    Client,
    Operator,
}

impl fmt::Display for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Canceller::Client => "its client",
            Canceller::Operator => "an operator",
        })
    }
}

/// Returns the message of [`CallError::TooManyMessages`].
fn too_many_messages(limit: usize) -> String {
    match limit {
        1 => "the request has more than one message; this method takes one".to_owned(),
        _ => {
            format!("the request has more than {limit} messages; send the rest in another call")
        }
    }
}

/// The parts of an error's status other than its message.
struct Row<'a> {
    code: Code,
    /// The reason of the `ErrorInfo`; `None` for a status without one.
    reason: Option<Reason>,
    /// Metadata of the `ErrorInfo`.
    metadata: Vec<(&'static str, &'a dyn fmt::Display)>,
    /// Subject of the `QuotaFailure`.
    quota: Option<&'static str>,
    /// Description of the `QuotaFailure`, unless it is the message.
    quota_description: Option<String>,
    /// Delay of the `RetryInfo`.
    retry_after: Option<Duration>,
    /// Field of the `BadRequest`.
    field: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn new(code: Code, reason: impl Into<Option<Reason>>) -> Row<'a> {
        Row {
            code,
            reason: reason.into(),
            metadata: Vec::new(),
            quota: None,
            quota_description: None,
            retry_after: None,
            field: None,
        }
    }

    /// Returns the row of an error that ends a search. The search can be resumed from `cursor`.
    fn stopped(code: Code, reason: Reason, cursor: &'a Cursor) -> Row<'a> {
        Row::new(code, reason).with(CURSOR, cursor)
    }

    /// Returns the row of a limit that has room again after `retry_after`.
    fn exceeded(reason: Reason, subject: &'static str, retry_after: Duration) -> Row<'a> {
        Row {
            quota: Some(subject),
            retry_after: Some(retry_after),
            ..Row::new(Code::ResourceExhausted, reason)
        }
    }

    /// Returns the row of a limit that has room again when another call ends.
    fn overloaded(reason: Reason, subject: &'static str) -> Row<'a> {
        Row::exceeded(reason, subject, RETRY_AFTER_OVERLOAD)
    }

    /// Adds metadata.
    fn with(mut self, key: &'static str, value: &'a dyn fmt::Display) -> Row<'a> {
        self.metadata.push((key, value));
        self
    }
}

impl CallError {
    /// Returns the error for a wrong field of a request.
    pub(crate) fn wrong(field: &str, message: impl Into<String>) -> CallError {
        CallError::BadRequest {
            field: field.to_owned(),
            message: cut(&message.into(), MESSAGE_LEN).into_owned(),
        }
    }

    /// Returns the names of all errors with which a call can be rejected before any work.
    pub(crate) fn rejections() -> impl Iterator<Item = &'static str> {
        let reasons = Reason::ALL.iter().filter(|reason| reason.is_rejection());
        iter::once(BAD_REQUEST).chain(reasons.map(|reason| reason.as_str()))
    }

    /// Returns the error's name for the log and the metrics: the reason of its `ErrorInfo`, if it
    /// has one.
    pub(crate) fn reason(&self) -> &'static str {
        let row = self.row();
        match row.reason {
            Some(reason) => reason.as_str(),
            None if row.field.is_some() => BAD_REQUEST,
            None => BROKEN,
        }
    }

    /// Returns the wrong field of the request, if the error is about a field.
    pub(crate) fn field(&self) -> Option<&str> {
        self.row().field
    }

    /// Returns the parts of the error's status other than its message.
    fn row(&self) -> Row<'_> {
        use Reason as R;
        match self {
            Self::BadRequest { field, .. } => Row {
                field: Some(field),
                ..Row::new(Code::InvalidArgument, None)
            },
            Self::TooManyRpcs(_) => {
                Row::overloaded(R::TooManySearches, "server:maximum_concurrent_rpcs")
            }
            Self::BudgetSpent {
                code,
                hashes,
                cursor,
            } => Row {
                quota: Some("rpc:maximum_hashes"),
                quota_description: Some(format!("at most {hashes} hashes per call")),
                ..Row::stopped(*code, R::HashBudgetSpent, cursor).with(HASHES_TRIED, hashes)
            },
            Self::OverLimit(limit) => match limit {
                OverLimit::SearchesOfClient { .. } => {
                    Row::overloaded(R::TooManySearchesOfClient, "client:searches")
                }
                OverLimit::SearchesOfConnection { .. } => {
                    Row::overloaded(R::TooManySearchesOfConnection, "connection:searches")
                }
                OverLimit::Hashes { retry_after, .. } => {
                    Row::exceeded(R::HashQuotaSpent, "client:hashes", *retry_after)
                }
                OverLimit::Searches { .. } => {
                    Row::overloaded(R::TooManySearches, "server:searches")
                }
            },
            Self::QuotaSpent {
                cursor,
                retry_after,
            } => {
                Row::exceeded(R::HashQuotaSpent, "client:hashes", *retry_after).with(CURSOR, cursor)
            }
            Self::Exhausted => Row::new(Code::NotFound, R::KeyspaceExhausted),
            Self::Draining(cursor) => {
                let row = Row {
                    retry_after: Some(RETRY_AFTER_DRAIN),
                    ..Row::new(Code::Unavailable, R::Draining)
                };
                match cursor {
                    Some(cursor) => row.with(CURSOR, cursor),
                    None => row,
                }
            }
            Self::Unread(cursor) => Row::stopped(Code::ResourceExhausted, R::StreamNotRead, cursor),
            Self::Failed(cursor) => Row::stopped(Code::Unknown, R::SearchFailed, cursor),
            Self::Broken { code, .. } => Row::new(*code, None),
            Self::Cancelled { by, reason, cursor } => {
                let who = match by {
                    Canceller::Client => R::CancelledByClient,
                    Canceller::Operator => R::CancelledByOperator,
                };
                Row::stopped(Code::Cancelled, who, cursor).with(CANCEL_REASON, reason)
            }
            Self::NoSuchSearch => Row::new(Code::NotFound, R::SearchNotFound),
            Self::NotAnOperator | Self::OperatorsOnly => {
                Row::new(Code::PermissionDenied, R::NotAnOperator)
            }
            Self::TooManyWatches => Row::overloaded(R::TooManyWatches, "server:watches"),
            Self::TooManyWatchesOfClient { .. } => {
                Row::overloaded(R::TooManyWatches, "client:watches")
            }
            Self::TooManyEstimates { .. } => {
                Row::overloaded(R::TooManyEstimates, "client:estimates")
            }
            Self::MessageTooLong { .. } => Row::new(Code::ResourceExhausted, R::MessageTooLong),
            Self::CredentialMissing => Row::new(Code::Unauthenticated, R::CredentialMissing),
            Self::CredentialRefused => Row::new(Code::Unauthenticated, R::CredentialRefused),
            // gRPC specifies UNIMPLEMENTED for a unary call with no message or with several.
            Self::MessageMissing => Row::new(Code::Unimplemented, R::MessageMissing),
            Self::TooManyMessages { limit: 1 } => Row::new(Code::Unimplemented, R::TooManyMessages),
            Self::TooManyMessages { .. } => Row::new(Code::ResourceExhausted, R::TooManyMessages),
            Self::RequestTimeout { .. } => Row::new(Code::DeadlineExceeded, R::RequestTimeout),
            Self::TooManyCalls { retry_after, .. } => {
                Row::exceeded(R::TooManyCalls, "address:calls_per_second", *retry_after)
            }
            Self::TooManyOpenCalls { .. } => {
                Row::overloaded(R::TooManyOpenCalls, "server:open_calls")
            }
            Self::TooManyOpenCallsOfAddress { .. } => {
                Row::overloaded(R::TooManyOpenCalls, "address:open_calls")
            }
            Self::OperationsDisabled => Row::new(Code::FailedPrecondition, R::OperationsDisabled),
            Self::OperationNeedsOwner => Row::new(Code::Unauthenticated, R::CredentialMissing),
            Self::NoSuchOperation => Row::new(Code::NotFound, R::OperationNotFound),
            Self::OperationNotEnded => Row::new(Code::FailedPrecondition, R::OperationRunning),
            Self::OperationDeleted => Row::new(Code::AlreadyExists, R::OperationDeleted),
            Self::RequestIdReused => Row::new(Code::AlreadyExists, R::RequestIdReused),
            // Only the client itself can make room.
            Self::TooManyRunningOperations { .. } => Row {
                quota: Some("client:running_operations"),
                ..Row::new(Code::ResourceExhausted, R::TooManyOperations)
            },
            Self::TooManySavedOperations { .. } => Row {
                quota: Some("client:saved_operations"),
                ..Row::new(Code::ResourceExhausted, R::TooManyOperations)
            },
            Self::StoreUnavailable(_) => Row {
                retry_after: Some(RETRY_AFTER_OVERLOAD),
                ..Row::new(Code::Unavailable, R::StoreUnavailable)
            },
            Self::StoreDamaged(_) => Row::new(Code::Unavailable, R::StoreDamaged),
            Self::OperationBudgetSpent { hashes, cursor } => Row {
                quota: Some("operation:maximum_hashes"),
                quota_description: Some(format!("at most {hashes} hashes per operation")),
                ..Row::stopped(Code::ResourceExhausted, R::HashBudgetSpent, cursor)
                    .with(HASHES_TRIED, hashes)
            },
            Self::TooManyCandidates { cursor, .. } => Row {
                quota: Some("operation:candidates"),
                ..Row::stopped(Code::ResourceExhausted, R::TooManyCandidates, cursor)
            },
            Self::KeyRevoked(cursor) => Row::stopped(Code::Cancelled, R::KeyRevoked, cursor),
            Self::OperationFailed { cursor, .. } => {
                Row::stopped(Code::Internal, R::SearchFailed, cursor)
            }
            Self::TooManyRefusedCredentials { retry_after } => Row::exceeded(
                R::TooManyRefusedCredentials,
                "address:refused_credentials",
                *retry_after,
            ),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        let (row, message) = (error.row(), error.to_string());
        let mut details = ErrorDetails::new();
        if let Some(reason) = row.reason {
            let metadata = row.metadata.iter();
            let metadata = metadata.map(|(key, value)| ((*key).to_owned(), value.to_string()));
            details.set_error_info(reason.as_str(), DOMAIN, metadata.collect::<HashMap<_, _>>());
        } else if let Some(field) = row.field {
            details.add_bad_request_violation(field, &message);
        } else {
            return Status::new(row.code, message);
        }
        if let Some(subject) = row.quota {
            let description = row.quota_description.unwrap_or_else(|| message.clone());
            details.add_quota_failure_violation(subject, description);
        }
        if let Some(delay) = row.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(row.code, message, details)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, num::NonZeroU64};

    use hashfinder_proto::Details;
    use hashfinder_search::{Distance, Query};

    use super::*;

    fn cursor() -> Cursor {
        let query = Query::new("doctor".parse().unwrap(), Distance::ZERO);
        Cursor::new(&query.unwrap(), 1234)
    }

    /// The parts of a status that a client reads.
    #[derive(Debug, PartialEq)]
    struct Read {
        code: Code,
        reason: Option<Reason>,
        metadata: Vec<String>,
        quota: Option<String>,
        retry_seconds: Option<u64>,
        field: Option<String>,
    }

    fn read(status: &Status) -> Read {
        let details = status.check_error_details().unwrap();
        let info = details.error_info();
        assert!(info.is_none_or(|info| info.domain == DOMAIN));
        let metadata = info.map(|info| info.metadata.keys().cloned().collect());
        let mut metadata: Vec<String> = metadata.unwrap_or_default();
        metadata.sort_unstable();
        let violations = details.bad_request().map(|it| &it.field_violations[0]);
        let quotas = details.quota_failure().map(|it| &it.violations[0]);
        let retry_info = details.retry_info().and_then(|it| it.retry_delay);
        Read {
            code: status.code(),
            reason: info.map(|info| Reason::parse(&info.reason).unwrap()),
            metadata,
            quota: quotas.map(|quota| quota.subject.clone()),
            retry_seconds: retry_info.map(|delay| delay.as_secs()),
            field: violations.map(|violation| violation.field.clone()),
        }
    }

    /// Builds the list of cases. Does not compile unless there is a case for every variant.
    macro_rules! cases {
        ($($variant:pat => $error:expr, $code:ident, $reason:expr, $metadata:expr, $quota:expr, $retry:expr;)*) => {{
            let _exhaustive = |error: &CallError| match error {
                $($variant => {})*
            };
            let cases = [$(($error, Code::$code, $reason, &$metadata[..], $quota, $retry),)*];
            $(assert!(cases.iter().any(|case| matches!(case.0, $variant)));)*
            cases.into_iter()
        }};
    }

    /// Returns each variant of an error with its code, reason, metadata, subject of the quota, and
    /// seconds until a retry.
    #[rustfmt::skip]
    #[allow(unreachable_patterns, reason = "some variants have several cases")]
    #[allow(clippy::type_complexity, reason = "a table")]
    fn cases() -> impl Iterator<
        Item = (CallError, Code, Option<Reason>, &'static [&'static str], Option<&'static str>, Option<u64>),
    > {
        use CallError as E;
        use Reason as R;
        let (one, later) = (NonZeroUsize::MIN, Duration::from_secs(3));
        let cancelled = |by, reason: &str| E::Cancelled { by, reason: reason.to_owned(), cursor: cursor() };
        cases! {
            E::BadRequest { .. } => E::wrong("query.anchor", "what is wrong"), InvalidArgument, None, [], None, None;
            E::TooManyRpcs(_) => E::TooManyRpcs(one), ResourceExhausted,
                Some(R::TooManySearches), [], Some("server:maximum_concurrent_rpcs"), Some(1);
            E::BudgetSpent { .. } => E::BudgetSpent { code: Code::Cancelled, hashes: 1234, cursor: cursor() }, Cancelled,
                Some(R::HashBudgetSpent), ["cursor", "hashes_tried"], Some("rpc:maximum_hashes"), None;
            E::OverLimit(_) => E::OverLimit(OverLimit::Searches { limit: 3 }), ResourceExhausted,
                Some(R::TooManySearches), [], Some("server:searches"), Some(1);
            E::OverLimit(_) => E::OverLimit(OverLimit::SearchesOfClient { limit: 3 }), ResourceExhausted,
                Some(R::TooManySearchesOfClient), [], Some("client:searches"), Some(1);
            E::OverLimit(_) => E::OverLimit(OverLimit::SearchesOfConnection { limit: 3 }), ResourceExhausted,
                Some(R::TooManySearchesOfConnection), [], Some("connection:searches"), Some(1);
            E::OverLimit(_) => E::OverLimit(OverLimit::Hashes { per_second: NonZeroU64::MIN, retry_after: later }),
                ResourceExhausted, Some(R::HashQuotaSpent), [], Some("client:hashes"), Some(3);
            E::QuotaSpent { .. } => E::QuotaSpent { cursor: cursor(), retry_after: later }, ResourceExhausted,
                Some(R::HashQuotaSpent), ["cursor"], Some("client:hashes"), Some(3);
            E::Exhausted => E::Exhausted, NotFound, Some(R::KeyspaceExhausted), [], None, None;
            E::Draining(_) => E::Draining(None), Unavailable, Some(R::Draining), [], None, Some(1);
            E::Draining(_) => E::Draining(Some(cursor())), Unavailable, Some(R::Draining), ["cursor"], None, Some(1);
            E::Unread(_) => E::Unread(cursor()), ResourceExhausted, Some(R::StreamNotRead), ["cursor"], None, None;
            E::Failed(_) => E::Failed(cursor()), Unknown, Some(R::SearchFailed), ["cursor"], None, None;
            E::Broken { .. } => E::Broken { code: Code::Internal, message: "x".to_owned() }, Internal,
                None, [], None, None;
            E::Cancelled { .. } => cancelled(Canceller::Client, ""), Cancelled,
                Some(R::CancelledByClient), ["cursor", "reason"], None, None;
            E::Cancelled { .. } => cancelled(Canceller::Operator, "maintenance"), Cancelled,
                Some(R::CancelledByOperator), ["cursor", "reason"], None, None;
            E::NoSuchSearch => E::NoSuchSearch, NotFound, Some(R::SearchNotFound), [], None, None;
            E::NotAnOperator => E::NotAnOperator, PermissionDenied, Some(R::NotAnOperator), [], None, None;
            E::OperatorsOnly => E::OperatorsOnly, PermissionDenied, Some(R::NotAnOperator), [], None, None;
            E::TooManyWatches => E::TooManyWatches, ResourceExhausted,
                Some(R::TooManyWatches), [], Some("server:watches"), Some(1);
            E::TooManyWatchesOfClient { .. } => E::TooManyWatchesOfClient { limit: 3 }, ResourceExhausted,
                Some(R::TooManyWatches), [], Some("client:watches"), Some(1);
            E::TooManyEstimates { .. } => E::TooManyEstimates { limit: 3 }, ResourceExhausted,
                Some(R::TooManyEstimates), [], Some("client:estimates"), Some(1);
            E::MessageTooLong { .. } => E::MessageTooLong { length: 5, limit: 4 }, ResourceExhausted,
                Some(R::MessageTooLong), [], None, None;
            E::CredentialMissing => E::CredentialMissing, Unauthenticated, Some(R::CredentialMissing), [], None, None;
            E::CredentialRefused => E::CredentialRefused, Unauthenticated, Some(R::CredentialRefused), [], None, None;
            E::MessageMissing => E::MessageMissing, Unimplemented, Some(R::MessageMissing), [], None, None;
            E::TooManyMessages { .. } => E::TooManyMessages { limit: 1 }, Unimplemented,
                Some(R::TooManyMessages), [], None, None;
            E::TooManyMessages { .. } => E::TooManyMessages { limit: 100 }, ResourceExhausted,
                Some(R::TooManyMessages), [], None, None;
            E::RequestTimeout { .. } => E::RequestTimeout { limit: later }, DeadlineExceeded,
                Some(R::RequestTimeout), [], None, None;
            E::TooManyCalls { .. } => E::TooManyCalls { per_second: NonZeroU32::MIN, retry_after: later },
                ResourceExhausted, Some(R::TooManyCalls), [], Some("address:calls_per_second"), Some(3);
            E::TooManyOpenCalls { .. } => E::TooManyOpenCalls { limit: one }, ResourceExhausted,
                Some(R::TooManyOpenCalls), [], Some("server:open_calls"), Some(1);
            E::TooManyOpenCallsOfAddress { .. } => E::TooManyOpenCallsOfAddress { limit: one }, ResourceExhausted,
                Some(R::TooManyOpenCalls), [], Some("address:open_calls"), Some(1);
            E::OperationsDisabled => E::OperationsDisabled, FailedPrecondition,
                Some(R::OperationsDisabled), [], None, None;
            E::OperationNeedsOwner => E::OperationNeedsOwner, Unauthenticated,
                Some(R::CredentialMissing), [], None, None;
            E::NoSuchOperation => E::NoSuchOperation, NotFound, Some(R::OperationNotFound), [], None, None;
            E::OperationNotEnded => E::OperationNotEnded, FailedPrecondition,
                Some(R::OperationRunning), [], None, None;
            E::OperationDeleted => E::OperationDeleted, AlreadyExists, Some(R::OperationDeleted), [], None, None;
            E::RequestIdReused => E::RequestIdReused, AlreadyExists, Some(R::RequestIdReused), [], None, None;
            E::TooManyRunningOperations { .. } => E::TooManyRunningOperations { limit: 3 }, ResourceExhausted,
                Some(R::TooManyOperations), [], Some("client:running_operations"), None;
            E::TooManySavedOperations { .. } => E::TooManySavedOperations { limit: 3 }, ResourceExhausted,
                Some(R::TooManyOperations), [], Some("client:saved_operations"), None;
            E::StoreUnavailable(_) => E::StoreUnavailable("EIO".to_owned()), Unavailable,
                Some(R::StoreUnavailable), [], None, Some(1);
            E::StoreDamaged(_) => E::StoreDamaged("x".to_owned()), Unavailable, Some(R::StoreDamaged), [], None, None;
            E::OperationBudgetSpent { .. } => E::OperationBudgetSpent { hashes: 1234, cursor: cursor() },
                ResourceExhausted, Some(R::HashBudgetSpent), ["cursor", "hashes_tried"],
                Some("operation:maximum_hashes"), None;
            E::TooManyCandidates { .. } => E::TooManyCandidates { limit: 3, cursor: cursor() }, ResourceExhausted,
                Some(R::TooManyCandidates), ["cursor"], Some("operation:candidates"), None;
            E::KeyRevoked(_) => E::KeyRevoked(cursor()), Cancelled, Some(R::KeyRevoked), ["cursor"], None, None;
            E::OperationFailed { .. } => E::OperationFailed { why: "x".to_owned(), cursor: cursor() }, Internal,
                Some(R::SearchFailed), ["cursor"], None, None;
            E::TooManyRefusedCredentials { .. } => E::TooManyRefusedCredentials { retry_after: later },
                ResourceExhausted, Some(R::TooManyRefusedCredentials), [], Some("address:refused_credentials"), Some(3);
        }
    }

    #[test]
    fn every_error_has_its_code_and_its_details() {
        for (error, code, reason, metadata, quota, retry_seconds) in cases() {
            let status = Status::from(error.clone());
            assert!(!status.message().is_empty(), "{error:?}");
            let expected = Read {
                code,
                reason,
                metadata: metadata.iter().map(|&key| key.to_owned()).collect(),
                quota: quota.map(str::to_owned),
                retry_seconds,
                field: match &error {
                    CallError::BadRequest { field, .. } => Some(field.clone()),
                    _ => None,
                },
            };
            assert_eq!(read(&status), expected, "{error:?}");
            assert_eq!(
                status.details().is_empty(),
                matches!(error, CallError::Broken { .. })
            );
            let carries_cursor = metadata.contains(&CURSOR);
            let read = Details::of(&status).cursor;
            assert_eq!(read, carries_cursor.then(|| cursor().to_string()));
        }
    }

    #[test]
    fn every_reason_has_an_error() {
        let produced: HashSet<_> = cases().map(|(error, ..)| error.reason()).collect();
        let all = Reason::ALL.iter().map(|reason| reason.as_str());
        assert_eq!(produced, all.chain([BAD_REQUEST, BROKEN]).collect());
    }

    #[test]
    fn a_call_that_was_rejected_is_counted_as_a_rejection() {
        let is_end = |error: &CallError| {
            let cursor = error.row().metadata.iter().any(|(key, _)| *key == CURSOR);
            cursor || matches!(error, CallError::Exhausted | CallError::Broken { .. })
        };
        let rejections = cases().filter(|(error, ..)| !is_end(error));
        let reasons: HashSet<_> = rejections.map(|(error, ..)| error.reason()).collect();
        assert_eq!(reasons, CallError::rejections().collect());
    }

    #[test]
    fn a_message_that_quotes_long_text_is_cut() {
        for quoted in ["x".repeat(4000), "\u{1f980}".repeat(1000)] {
            let CallError::BadRequest { message, .. } = CallError::wrong("query", &*quoted) else {
                panic!("another error");
            };
            assert!(message.len() <= MESSAGE_LEN && message.len() > MESSAGE_LEN - 4);
            assert!(quoted.starts_with(message.strip_suffix("...").unwrap()));
        }
    }
}

//! How a call that gets no answer ends on the wire, and how a client reads it.

use std::{
    borrow::Cow,
    collections::HashMap,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use hashfinder_search::{Cursor, OverLimit};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `google.rpc.ErrorInfo` that comes from here.
const DOMAIN: &str = "hashfinder";

const HASH_BUDGET_SPENT: &str = "HASH_BUDGET_SPENT";
const HASH_QUOTA_SPENT: &str = "HASH_QUOTA_SPENT";
const TOO_MANY_SEARCHES: &str = "TOO_MANY_SEARCHES";
const TOO_MANY_SEARCHES_OF_CLIENT: &str = "TOO_MANY_SEARCHES_OF_CLIENT";
const TOO_MANY_SEARCHES_OF_CONNECTION: &str = "TOO_MANY_SEARCHES_OF_CONNECTION";
const DRAINING: &str = "DRAINING";
const KEYSPACE_EXHAUSTED: &str = "KEYSPACE_EXHAUSTED";
const SEARCH_FAILED: &str = "SEARCH_FAILED";
const CANCELLED_BY_CLIENT: &str = "CANCELLED_BY_CLIENT";
const CANCELLED_BY_OPERATOR: &str = "CANCELLED_BY_OPERATOR";
const SEARCH_NOT_FOUND: &str = "SEARCH_NOT_FOUND";
const NOT_AN_OPERATOR: &str = "NOT_AN_OPERATOR";
const TOO_MANY_WATCHES: &str = "TOO_MANY_WATCHES";
const TOO_MANY_ESTIMATES: &str = "TOO_MANY_ESTIMATES";
const MESSAGE_TOO_LONG: &str = "MESSAGE_TOO_LONG";
const STREAM_NOT_READ: &str = "STREAM_NOT_READ";
const CREDENTIAL_MISSING: &str = "CREDENTIAL_MISSING";
const CREDENTIAL_REFUSED: &str = "CREDENTIAL_REFUSED";
const MESSAGE_MISSING: &str = "MESSAGE_MISSING";
const TOO_MANY_MESSAGES: &str = "TOO_MANY_MESSAGES";
const REQUEST_TIMEOUT: &str = "REQUEST_TIMEOUT";
const TOO_MANY_CALLS: &str = "TOO_MANY_CALLS";
const TOO_MANY_OPEN_CALLS: &str = "TOO_MANY_OPEN_CALLS";
const TOO_MANY_REFUSED_CREDENTIALS: &str = "TOO_MANY_REFUSED_CREDENTIALS";

/// For the metrics alone: what a client gets for these has no `ErrorInfo`.
const BAD_REQUEST: &str = "BAD_REQUEST";
const BROKEN: &str = "BROKEN";

const CURSOR: &str = "cursor";
const REASON: &str = "reason";
const HASHES_TRIED: &str = "hashes_tried";

/// Maximum length of a status message, in bytes. A message may quote the request. Clients commonly accept 8 KiB of
/// trailers, and a message can take up to six times its length there: percent-encoded in `grpc-message`, and twice
/// in base64 in `grpc-status-details-bin`, as the message and as the description of a detail.
pub(super) const MESSAGE_LEN: usize = 512;

/// A text of at most `length` bytes, cut and marked with "..." if it is longer.
pub(super) fn cut(text: &str, length: usize) -> Cow<'_, str> {
    const MARK: &str = "...";
    if text.len() <= length {
        return text.into();
    }
    let whole = (0..=length - MARK.len()).rev();
    let end = whole.into_iter().find(|end| text.is_char_boundary(*end));
    format!("{}{MARK}", &text[..end.unwrap_or(0)]).into()
}

/// When to try again where another server, or this one started anew, should be there by then.
const RETRY_AFTER_DRAIN: Duration = Duration::from_secs(1);

/// When to try again where somebody else's call has to end first, which nobody can foretell.
const RETRY_AFTER_OVERLOAD: Duration = Duration::from_secs(1);

/// Why a call ends without the answer it asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallError {
    /// The request is wrong, in this field, or can never match.
    BadRequest { field: String, message: String },
    /// As many RPCs as there may be are searching.
    TooManyRpcs(NonZeroUsize),
    /// The hash budget is spent; the code is the operator's choice.
    BudgetSpent {
        code: Code,
        hashes: u64,
        cursor: Cursor,
    },
    /// The client has as much as it may have, or everybody together.
    OverLimit(OverLimit),
    /// The client's quota of hashes is spent.
    QuotaSpent {
        cursor: Cursor,
        retry_after: Duration,
    },
    /// The keyspace ended.
    Exhausted,
    /// The server is shutting down. Without a cursor no work was started.
    Draining(Option<Cursor>),
    /// Nobody read what the search had found.
    Unread(Cursor),
    /// The search panicked.
    Failed(Cursor),
    /// What was done for the call panicked, or came to an end that nobody foresaw.
    Broken { code: Code, message: String },
    /// The search was cancelled by its id.
    Cancelled {
        by: Canceller,
        reason: String,
        cursor: Cursor,
    },
    /// There is no search with this id, or none of this client's.
    NoSuchSearch,
    /// Only operators may ask for what is another client's.
    NotAnOperator,
    /// So many calls watch already that this one may not.
    TooManyWatches,
    /// So many calls of this client watch already.
    TooManyWatchesOfClient { limit: usize },
    /// So many Estimates of this client wait already.
    TooManyEstimates { limit: usize },
    /// The request is longer than any may be, in bytes.
    MessageTooLong { length: u32, limit: u32 },
    /// Who calls has to show a credential, and shows none.
    CredentialMissing,
    /// The credential is bad. In which way is told to nobody but the log, so that nobody learns from it.
    CredentialRefused,
    /// Only operators may call the method.
    OperatorsOnly,
    /// The request ended without the message that the method takes.
    MessageMissing,
    /// There are more messages than the method takes.
    TooManyMessages { limit: usize },
    /// The request did not come to its end in time.
    RequestTimeout { limit: Duration },
    /// The client's address begins more calls than any may.
    TooManyCalls {
        per_second: NonZeroU32,
        retry_after: Duration,
    },
    /// As many calls are open as may be.
    TooManyOpenCalls { limit: NonZeroUsize },
    /// As many of this address are.
    TooManyOpenCallsOfAddress { limit: NonZeroUsize },
    /// So many credentials from this address were refused that none is looked at.
    TooManyRefusedCredentials { retry_after: Duration },
}

/// Who cancelled a search by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canceller {
    /// The client whose search it was.
    Client,
    Operator,
}

impl CallError {
    /// The reasons for which calls are commonly refused before any work.
    pub(crate) const REFUSALS: [&str; 19] = [
        BAD_REQUEST,
        TOO_MANY_SEARCHES,
        TOO_MANY_SEARCHES_OF_CLIENT,
        TOO_MANY_SEARCHES_OF_CONNECTION,
        HASH_QUOTA_SPENT,
        DRAINING,
        SEARCH_NOT_FOUND,
        NOT_AN_OPERATOR,
        TOO_MANY_WATCHES,
        TOO_MANY_ESTIMATES,
        MESSAGE_TOO_LONG,
        CREDENTIAL_MISSING,
        CREDENTIAL_REFUSED,
        MESSAGE_MISSING,
        TOO_MANY_MESSAGES,
        REQUEST_TIMEOUT,
        TOO_MANY_CALLS,
        TOO_MANY_OPEN_CALLS,
        TOO_MANY_REFUSED_CREDENTIALS,
    ];

    /// A request that is wrong in this field.
    pub(crate) fn wrong(field: &str, message: impl Into<String>) -> CallError {
        CallError::BadRequest {
            field: field.to_owned(),
            message: cut(&message.into(), MESSAGE_LEN).into_owned(),
        }
    }

    /// Which kind it is, in one word: the reason of its `ErrorInfo`, where it has one.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            CallError::BadRequest { .. } => BAD_REQUEST,
            CallError::TooManyRpcs(_) => TOO_MANY_SEARCHES,
            CallError::BudgetSpent { .. } => HASH_BUDGET_SPENT,
            CallError::OverLimit(OverLimit::SearchesOfClient { .. }) => TOO_MANY_SEARCHES_OF_CLIENT,
            CallError::OverLimit(OverLimit::SearchesOfConnection { .. }) => {
                TOO_MANY_SEARCHES_OF_CONNECTION
            }
            CallError::OverLimit(OverLimit::Hashes { .. }) => HASH_QUOTA_SPENT,
            CallError::OverLimit(_) => TOO_MANY_SEARCHES,
            CallError::QuotaSpent { .. } => HASH_QUOTA_SPENT,
            CallError::Exhausted => KEYSPACE_EXHAUSTED,
            CallError::Draining(_) => DRAINING,
            CallError::Unread(_) => STREAM_NOT_READ,
            CallError::Failed(_) => SEARCH_FAILED,
            CallError::Broken { .. } => BROKEN,
            CallError::Cancelled { by, .. } => match by {
                Canceller::Client => CANCELLED_BY_CLIENT,
                Canceller::Operator => CANCELLED_BY_OPERATOR,
            },
            CallError::NoSuchSearch => SEARCH_NOT_FOUND,
            CallError::NotAnOperator => NOT_AN_OPERATOR,
            CallError::TooManyWatches | CallError::TooManyWatchesOfClient { .. } => {
                TOO_MANY_WATCHES
            }
            CallError::TooManyEstimates { .. } => TOO_MANY_ESTIMATES,
            CallError::MessageTooLong { .. } => MESSAGE_TOO_LONG,
            CallError::CredentialMissing => CREDENTIAL_MISSING,
            CallError::CredentialRefused => CREDENTIAL_REFUSED,
            CallError::OperatorsOnly => NOT_AN_OPERATOR,
            CallError::MessageMissing => MESSAGE_MISSING,
            CallError::TooManyMessages { .. } => TOO_MANY_MESSAGES,
            CallError::RequestTimeout { .. } => REQUEST_TIMEOUT,
            CallError::TooManyCalls { .. } => TOO_MANY_CALLS,
            CallError::TooManyOpenCalls { .. } | CallError::TooManyOpenCallsOfAddress { .. } => {
                TOO_MANY_OPEN_CALLS
            }
            CallError::TooManyRefusedCredentials { .. } => TOO_MANY_REFUSED_CREDENTIALS,
        }
    }

    /// The field of the request that is wrong, if it is one.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            CallError::BadRequest { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        let info = |reason: &str, metadata: HashMap<String, String>| {
            ErrorDetails::with_error_info(reason, DOMAIN, metadata)
        };
        let plain = |code: Code, reason: &str, message: &str| {
            Status::with_error_details(code, message, info(reason, HashMap::new()))
        };
        let stopped = |code: Code, reason: &str, message: &str, cursor: Cursor| {
            let metadata = HashMap::from([(CURSOR.to_owned(), cursor.to_string())]);
            Status::with_error_details(code, message, info(reason, metadata))
        };
        let exceeded = |reason: &str, subject: &str, retry_after: Duration, message: String| {
            let mut details = info(reason, HashMap::new());
            details.add_quota_failure_violation(subject, message.clone());
            details.set_retry_info(Some(retry_after));
            Status::with_error_details(Code::ResourceExhausted, message, details)
        };
        let overload = |reason: &str, subject: &str, message: String| {
            exceeded(reason, subject, RETRY_AFTER_OVERLOAD, message)
        };
        match error {
            CallError::BadRequest { field, message } => {
                let details = ErrorDetails::with_bad_request_violation(field, message.clone());
                Status::with_error_details(Code::InvalidArgument, message, details)
            }
            CallError::TooManyRpcs(limit) => {
                let message = format!(
                    "{limit} RPCs are searching, which is as many as this server takes; try again later"
                );
                overload(TOO_MANY_SEARCHES, "server:maximum_concurrent_rpcs", message)
            }
            CallError::BudgetSpent {
                code,
                hashes,
                cursor,
            } => {
                let message =
                    format!("the hash budget of this RPC is spent; hashes tried: {hashes}");
                let mut details = info(
                    HASH_BUDGET_SPENT,
                    HashMap::from([
                        (CURSOR.to_owned(), cursor.to_string()),
                        (HASHES_TRIED.to_owned(), hashes.to_string()),
                    ]),
                );
                details.add_quota_failure_violation(
                    "rpc:maximum_hashes",
                    format!("at most {hashes} hashes are tried for one RPC"),
                );
                Status::with_error_details(code, message, details)
            }
            CallError::OverLimit(limit) => {
                let (reason, subject, retry_after) = match limit {
                    OverLimit::SearchesOfClient { .. } => {
                        let reason = TOO_MANY_SEARCHES_OF_CLIENT;
                        (reason, "client:searches", RETRY_AFTER_OVERLOAD)
                    }
                    OverLimit::SearchesOfConnection { .. } => (
                        TOO_MANY_SEARCHES_OF_CONNECTION,
                        "connection:searches",
                        RETRY_AFTER_OVERLOAD,
                    ),
                    OverLimit::Hashes { retry_after, .. } => {
                        (HASH_QUOTA_SPENT, "client:hashes", retry_after)
                    }
                    _ => (TOO_MANY_SEARCHES, "server:searches", RETRY_AFTER_OVERLOAD),
                };
                let message = format!("{limit}; try again later");
                exceeded(reason, subject, retry_after, message)
            }
            CallError::QuotaSpent {
                cursor,
                retry_after,
            } => {
                let message = "this client's quota of hashes is spent; go on later from the cursor";
                let cursor = HashMap::from([(CURSOR.to_owned(), cursor.to_string())]);
                let mut details = info(HASH_QUOTA_SPENT, cursor);
                details.add_quota_failure_violation("client:hashes", message);
                details.set_retry_info(Some(retry_after));
                Status::with_error_details(Code::ResourceExhausted, message, details)
            }
            CallError::Exhausted => plain(
                Code::NotFound,
                KEYSPACE_EXHAUSTED,
                "the keyspace ended without an answer",
            ),
            CallError::Draining(cursor) => {
                let cursor = cursor.map(|cursor| (CURSOR.to_owned(), cursor.to_string()));
                let mut details = info(DRAINING, cursor.into_iter().collect());
                details.set_retry_info(Some(RETRY_AFTER_DRAIN));
                let message = "the server is shutting down, or closes this connection; try another, or this one again later";
                Status::with_error_details(Code::Unavailable, message, details)
            }
            CallError::Unread(cursor) => stopped(
                Code::ResourceExhausted,
                STREAM_NOT_READ,
                "the response was not read for longer than this server waits; go on from the cursor, and \
                 read what comes",
                cursor,
            ),
            CallError::Failed(cursor) => stopped(
                Code::Unknown,
                SEARCH_FAILED,
                "the search failed; the server's log says more",
                cursor,
            ),
            CallError::Broken { code, message } => Status::new(code, message),
            CallError::Cancelled { by, reason, cursor } => {
                let (name, who) = match by {
                    Canceller::Client => (CANCELLED_BY_CLIENT, "its client"),
                    Canceller::Operator => (CANCELLED_BY_OPERATOR, "an operator"),
                };
                let mut message = format!("the search was cancelled by {who}");
                if !reason.is_empty() {
                    message += ": ";
                    message += &reason;
                }
                let metadata = HashMap::from([
                    (CURSOR.to_owned(), cursor.to_string()),
                    (REASON.to_owned(), reason),
                ]);
                Status::with_error_details(Code::Cancelled, message, info(name, metadata))
            }
            CallError::NoSuchSearch => plain(
                Code::NotFound,
                SEARCH_NOT_FOUND,
                "there is no search with this id, or it is somebody else's; those that ended some \
                 time ago are forgotten",
            ),
            CallError::NotAnOperator => plain(
                Code::PermissionDenied,
                NOT_AN_OPERATOR,
                "only an operator sees the searches of other clients; leave the client out to see \
                 your own",
            ),
            CallError::TooManyWatches => {
                let message = "as many calls are watching as this server takes; try again later";
                overload(TOO_MANY_WATCHES, "server:watches", message.to_owned())
            }
            CallError::TooManyWatchesOfClient { limit } => {
                let message = format!(
                    "{limit} calls of this client are watching, which is as many as may; end another one"
                );
                overload(TOO_MANY_WATCHES, "client:watches", message)
            }
            CallError::TooManyEstimates { limit } => {
                let message = format!(
                    "{limit} Estimates of this client are waiting, which is as many as may; try again \
                     when they are answered"
                );
                overload(TOO_MANY_ESTIMATES, "client:estimates", message)
            }
            CallError::MessageTooLong { length, limit } => plain(
                Code::ResourceExhausted,
                MESSAGE_TOO_LONG,
                &format!("the request's message has {length} bytes; {limit} is the most"),
            ),
            CallError::CredentialMissing => plain(
                Code::Unauthenticated,
                CREDENTIAL_MISSING,
                "this server wants a credential: send it as the metadata `authorization: Bearer \
                 CREDENTIAL`",
            ),
            CallError::CredentialRefused => plain(
                Code::Unauthenticated,
                CREDENTIAL_REFUSED,
                "the credential is not good here, or not any more; send another one as the metadata \
                 `authorization: Bearer CREDENTIAL`",
            ),
            CallError::OperatorsOnly => plain(
                Code::PermissionDenied,
                NOT_AN_OPERATOR,
                "only an operator may call this method",
            ),
            // gRPC's status codes have UNIMPLEMENTED for a unary call with no message or with several.
            CallError::MessageMissing => plain(
                Code::Unimplemented,
                MESSAGE_MISSING,
                "the method takes one message, and the request has none",
            ),
            CallError::TooManyMessages { limit: 1 } => plain(
                Code::Unimplemented,
                TOO_MANY_MESSAGES,
                "the method takes one message, and the request has more",
            ),
            CallError::TooManyMessages { limit } => plain(
                Code::ResourceExhausted,
                TOO_MANY_MESSAGES,
                &format!(
                    "the request has more than {limit} messages; make another call for the others"
                ),
            ),
            CallError::RequestTimeout { limit } => plain(
                Code::DeadlineExceeded,
                REQUEST_TIMEOUT,
                &format!(
                    "the request did not arrive in whole within {}; end it, or send it at once",
                    humantime::format_duration(limit)
                ),
            ),
            CallError::TooManyCalls {
                per_second,
                retry_after,
            } => {
                let message = format!(
                    "this address begins more than {per_second} calls a second, which is as many as \
                     may; try again later"
                );
                exceeded(
                    TOO_MANY_CALLS,
                    "address:calls_per_second",
                    retry_after,
                    message,
                )
            }
            CallError::TooManyOpenCalls { limit } => {
                let message = format!(
                    "{limit} calls are open, which is as many as this server takes; try again later"
                );
                overload(TOO_MANY_OPEN_CALLS, "server:open_calls", message)
            }
            CallError::TooManyOpenCallsOfAddress { limit } => {
                let message = format!(
                    "{limit} calls of this address are open, which is as many as may; end another one"
                );
                overload(TOO_MANY_OPEN_CALLS, "address:open_calls", message)
            }
            CallError::TooManyRefusedCredentials { retry_after } => {
                let message = "so many credentials from this address were refused that none is looked \
                               at; try again later with a good one";
                let subject = "address:refused_credentials";
                exceeded(
                    TOO_MANY_REFUSED_CREDENTIALS,
                    subject,
                    retry_after,
                    message.to_owned(),
                )
            }
        }
    }
}

/// What a client finds in the details of a status that comes from a hashfinder.
#[derive(Debug, Default)]
pub(crate) struct Details {
    /// Whether the hash budget or the client's quota ended the call.
    pub(crate) limit_reached: bool,
    /// Whether every secret that there is was tried.
    pub(crate) exhausted: bool,
    /// Whether the server is shutting down.
    pub(crate) draining: bool,
    /// Whether the request was longer than any may be.
    pub(crate) too_long: bool,
    /// Where to go on.
    pub(crate) cursor: Option<Cursor>,
}

impl Details {
    pub(crate) fn of(status: &Status) -> Details {
        match status.get_details_error_info() {
            Some(info) if info.domain == DOMAIN => Details {
                limit_reached: [HASH_BUDGET_SPENT, HASH_QUOTA_SPENT]
                    .contains(&info.reason.as_str()),
                exhausted: info.reason == KEYSPACE_EXHAUSTED,
                draining: info.reason == DRAINING,
                too_long: info.reason == MESSAGE_TOO_LONG,
                cursor: info.metadata.get(CURSOR).and_then(|text| text.parse().ok()),
            },
            _ => Details::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashfinder_search::{Distance, Query};

    fn cursor() -> Cursor {
        let query = Query::new("doctor".parse().unwrap(), Distance::ZERO);
        Cursor::new(&query.unwrap(), 1234)
    }

    #[test]
    fn every_error_has_its_code_and_its_details() {
        for (error, code, field, reason, quota, retry, carries_cursor) in [
            (
                CallError::wrong("query.anchor", "what is wrong"),
                Code::InvalidArgument,
                Some("query.anchor"),
                None,
                false,
                false,
                false,
            ),
            (
                CallError::TooManyRpcs(NonZeroUsize::MIN),
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_SEARCHES),
                true,
                true,
                false,
            ),
            (
                CallError::BudgetSpent {
                    code: Code::Cancelled,
                    hashes: 1234,
                    cursor: cursor(),
                },
                Code::Cancelled,
                None,
                Some(HASH_BUDGET_SPENT),
                true,
                false,
                true,
            ),
            (
                CallError::OverLimit(OverLimit::SearchesOfClient { limit: 3 }),
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_SEARCHES_OF_CLIENT),
                true,
                true,
                false,
            ),
            (
                CallError::QuotaSpent {
                    cursor: cursor(),
                    retry_after: Duration::from_secs(3),
                },
                Code::ResourceExhausted,
                None,
                Some(HASH_QUOTA_SPENT),
                true,
                true,
                true,
            ),
            (
                CallError::Exhausted,
                Code::NotFound,
                None,
                Some(KEYSPACE_EXHAUSTED),
                false,
                false,
                false,
            ),
            (
                CallError::Draining(None),
                Code::Unavailable,
                None,
                Some(DRAINING),
                false,
                true,
                false,
            ),
            (
                CallError::Draining(Some(cursor())),
                Code::Unavailable,
                None,
                Some(DRAINING),
                false,
                true,
                true,
            ),
            (
                CallError::Unread(cursor()),
                Code::ResourceExhausted,
                None,
                Some(STREAM_NOT_READ),
                false,
                false,
                true,
            ),
            (
                CallError::Failed(cursor()),
                Code::Unknown,
                None,
                Some(SEARCH_FAILED),
                false,
                false,
                true,
            ),
            (
                CallError::Cancelled {
                    by: Canceller::Client,
                    reason: String::new(),
                    cursor: cursor(),
                },
                Code::Cancelled,
                None,
                Some(CANCELLED_BY_CLIENT),
                false,
                false,
                true,
            ),
            (
                CallError::Cancelled {
                    by: Canceller::Operator,
                    reason: "maintenance".to_owned(),
                    cursor: cursor(),
                },
                Code::Cancelled,
                None,
                Some(CANCELLED_BY_OPERATOR),
                false,
                false,
                true,
            ),
            (
                CallError::NoSuchSearch,
                Code::NotFound,
                None,
                Some(SEARCH_NOT_FOUND),
                false,
                false,
                false,
            ),
            (
                CallError::NotAnOperator,
                Code::PermissionDenied,
                None,
                Some(NOT_AN_OPERATOR),
                false,
                false,
                false,
            ),
            (
                CallError::TooManyWatches,
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_WATCHES),
                true,
                true,
                false,
            ),
            (
                CallError::TooManyWatchesOfClient { limit: 3 },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_WATCHES),
                true,
                true,
                false,
            ),
            (
                CallError::TooManyEstimates { limit: 3 },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_ESTIMATES),
                true,
                true,
                false,
            ),
            (
                CallError::MessageTooLong {
                    length: 5,
                    limit: 4,
                },
                Code::ResourceExhausted,
                None,
                Some(MESSAGE_TOO_LONG),
                false,
                false,
                false,
            ),
            (
                CallError::CredentialMissing,
                Code::Unauthenticated,
                None,
                Some(CREDENTIAL_MISSING),
                false,
                false,
                false,
            ),
            (
                CallError::CredentialRefused,
                Code::Unauthenticated,
                None,
                Some(CREDENTIAL_REFUSED),
                false,
                false,
                false,
            ),
            (
                CallError::OperatorsOnly,
                Code::PermissionDenied,
                None,
                Some(NOT_AN_OPERATOR),
                false,
                false,
                false,
            ),
            (
                CallError::OverLimit(OverLimit::SearchesOfConnection { limit: 3 }),
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_SEARCHES_OF_CONNECTION),
                true,
                true,
                false,
            ),
            (
                CallError::MessageMissing,
                Code::Unimplemented,
                None,
                Some(MESSAGE_MISSING),
                false,
                false,
                false,
            ),
            (
                CallError::TooManyMessages { limit: 1 },
                Code::Unimplemented,
                None,
                Some(TOO_MANY_MESSAGES),
                false,
                false,
                false,
            ),
            (
                CallError::TooManyMessages { limit: 100 },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_MESSAGES),
                false,
                false,
                false,
            ),
            (
                CallError::RequestTimeout {
                    limit: Duration::from_secs(3),
                },
                Code::DeadlineExceeded,
                None,
                Some(REQUEST_TIMEOUT),
                false,
                false,
                false,
            ),
            (
                CallError::TooManyCalls {
                    per_second: NonZeroU32::MIN,
                    retry_after: Duration::from_secs(3),
                },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_CALLS),
                true,
                true,
                false,
            ),
            (
                CallError::TooManyOpenCalls {
                    limit: NonZeroUsize::MIN,
                },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_OPEN_CALLS),
                true,
                true,
                false,
            ),
            (
                CallError::TooManyOpenCallsOfAddress {
                    limit: NonZeroUsize::MIN,
                },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_OPEN_CALLS),
                true,
                true,
                false,
            ),
            (
                CallError::TooManyRefusedCredentials {
                    retry_after: Duration::from_secs(3),
                },
                Code::ResourceExhausted,
                None,
                Some(TOO_MANY_REFUSED_CREDENTIALS),
                true,
                true,
                false,
            ),
        ] {
            let status = Status::from(error.clone());
            assert_eq!(status.code(), code, "{error:?}");
            assert!(!status.message().is_empty(), "{error:?}");
            let details = status.check_error_details().unwrap();
            let violations = details.bad_request().map(|b| &b.field_violations);
            assert_eq!(violations.map(|v| v[0].field.as_str()), field, "{error:?}");
            assert!(reason.is_none_or(|reason| reason == error.reason()));
            let info = details.error_info();
            assert_eq!(info.map(|info| info.reason.as_str()), reason, "{error:?}");
            assert_eq!(details.quota_failure().is_some(), quota, "{error:?}");
            assert_eq!(details.retry_info().is_some(), retry, "{error:?}");
            let read = Details::of(&status);
            assert_eq!(read.cursor, carries_cursor.then(cursor), "{error:?}");
            let limits = [Some(HASH_BUDGET_SPENT), Some(HASH_QUOTA_SPENT)];
            assert_eq!(read.limit_reached, limits.contains(&reason));
            assert_eq!(read.draining, reason == Some(DRAINING));
            assert_eq!(read.exhausted, reason == Some(KEYSPACE_EXHAUSTED));
            assert_eq!(read.too_long, reason == Some(MESSAGE_TOO_LONG));
        }
    }

    #[test]
    fn a_message_that_quotes_much_is_cut() {
        for quoted in ["x".repeat(4000), "\u{1f980}".repeat(1000)] {
            let CallError::BadRequest { message, .. } = CallError::wrong("query", &*quoted) else {
                panic!("another error");
            };
            assert!(message.len() <= MESSAGE_LEN && message.len() > MESSAGE_LEN - 4);
            assert!(quoted.starts_with(message.strip_suffix("...").unwrap()));
        }
    }
}

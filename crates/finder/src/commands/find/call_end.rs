//! How a search's call at a server ended.

use hashfinder_client::{ServerAddress, advice};
use hashfinder_proto::{Details, Reason};
use hashfinder_search::Cursor;
use tonic::{Code, Status};

use super::source::SearchEnd;
use crate::terminal::as_text;

/// Returns whether a call, which this process did not cancel, was ended by its connection and not
/// by the server.
///
/// The status code does not say so: if a connection ends, hyper's code depends on the moment. A
/// call that was not sent yet, for example, is CANCELLED with "operation was canceled".
pub(super) fn is_lost(status: &Status) -> bool {
    // A status that a server sent has no source.
    let is_ours = std::error::Error::source(status).is_some();
    is_ours && status.code() != Code::DeadlineExceeded
}

/// Returns whether a server rejected a call about operations because it is stopping or starting.
pub(super) fn is_restarting(status: &Status) -> bool {
    let details = Details::of(status);
    details.has(Reason::StoreUnavailable) || details.has(Reason::Draining)
}

/// Returns the end of a search whose call ended with this status and without an answer. `cancelled`
/// says whether this process cancelled the call.
pub(super) fn search_end(
    status: &Status,
    cancelled: bool,
    cursor: Cursor,
    server: &ServerAddress,
) -> SearchEnd {
    let message = as_text(status.message());
    let details = Details::of(status);
    match status.code() {
        Code::Ok => SearchEnd::Failed("the server ended the call too early".to_owned(), cursor),
        Code::Cancelled if cancelled => SearchEnd::Stopped(cursor),
        _ if details.limit_reached() => SearchEnd::Limit(message, cursor),
        _ if is_lost(status) => {
            let why = format!("lost the connection to the server at {server}: {message}");
            SearchEnd::Failed(why, cursor)
        }
        _ if details.has(Reason::MessageTooLong) || status.code() == Code::InvalidArgument => {
            let why = format!("the server at {server} rejected the request: {message}");
            SearchEnd::Refused(why, cursor)
        }
        // Another client or an operator cancelled the search. The reference server sends the same
        // status when its hash budget is spent.
        Code::Cancelled => {
            let why = format!("the server cancelled the search: {message}");
            SearchEnd::Limit(why, cursor)
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            let why = advice(status, server);
            SearchEnd::Failed(why.unwrap_or(message), cursor)
        }
        // The server is full, or this client's quota is used up.
        Code::ResourceExhausted => SearchEnd::Limit(message, cursor),
        Code::DeadlineExceeded => {
            SearchEnd::Limit("the maximum time has passed".to_owned(), cursor)
        }
        // The code alone is not enough: a proxy may send it for another reason.
        Code::NotFound if details.has(Reason::KeyspaceExhausted) => SearchEnd::Exhausted,
        code => {
            let why = format!("the server at {server} failed: {message} ({code:?})");
            SearchEnd::Failed(why, cursor)
        }
    }
}

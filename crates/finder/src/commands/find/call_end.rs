//! How a search's call at a server ended.

use hashfinder_client::{ServerAddress, advice};
use hashfinder_proto::{Details, Reason};
use hashfinder_search::Cursor;
use tonic::{Code, Status};

use super::source::SearchEnd;
use crate::terminal::as_text;

/// Returns whether a call that was not cancelled was ended by its connection, and not by the
/// server.
///
/// What hyper makes of a connection that ends depends on the moment: a call that was not sent yet
/// is CANCELLED, with "operation was canceled".
pub(super) fn is_lost(status: &Status) -> bool {
    // A status that a server sent has no source.
    let is_ours = std::error::Error::source(status).is_some();
    is_ours && status.code() != Code::DeadlineExceeded
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
        // A user of the server did it. The reference server sends the same when its budget is
        // spent.
        Code::Cancelled => {
            let why = format!("the server cancelled the search: {message}");
            SearchEnd::Limit(why, cursor)
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            let why = advice(status, server);
            SearchEnd::Failed(why.unwrap_or(message), cursor)
        }
        // The server is full, or this client's quota is.
        Code::ResourceExhausted => SearchEnd::Limit(message, cursor),
        Code::DeadlineExceeded => {
            SearchEnd::Limit("the maximum time has passed".to_owned(), cursor)
        }
        // A proxy may send this code for another reason.
        Code::NotFound if details.has(Reason::KeyspaceExhausted) => SearchEnd::Exhausted,
        code => {
            let why = format!("the server at {server} failed: {message} ({code:?})");
            SearchEnd::Failed(why, cursor)
        }
    }
}

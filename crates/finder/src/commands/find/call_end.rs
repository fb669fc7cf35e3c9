//! How a search's call at a server ended.

use hashfinder_search::Cursor;
use tonic::{Code, Status};

use super::source::Ending;
use crate::{connection::advice, rpc::Details, server_address::ServerAddress, terminal::as_text};

/// Returns whether a call that was not cancelled was ended by its connection, and not by the server.
///
/// What hyper makes of a connection that ends depends on the moment: a call that was not sent yet is CANCELLED, with
/// "operation was canceled".
pub(super) fn is_lost(status: &Status) -> bool {
    // A status that a server sent has no source.
    let is_ours = std::error::Error::source(status).is_some();
    is_ours && status.code() != Code::DeadlineExceeded
}

/// What a status comes to that is not an answer, given whether we cancelled the call.
pub(super) fn ending(
    status: &Status,
    cancelled: bool,
    cursor: Cursor,
    server: &ServerAddress,
) -> Ending {
    let message = as_text(status.message());
    let details = Details::of(status);
    match status.code() {
        Code::Ok => Ending::Failed("the server ended without an answer".to_owned(), cursor),
        Code::Cancelled if cancelled => Ending::Stopped(cursor),
        _ if details.limit_reached => Ending::Limit(message, cursor),
        _ if is_lost(status) => {
            let why = format!("the connection to the server at {server} was lost: {message}");
            Ending::Failed(why, cursor)
        }
        _ if details.too_long || status.code() == Code::InvalidArgument => {
            let why = format!("the server at {server} refuses that: {message}");
            Ending::Refused(why, cursor)
        }
        // Somebody did it there. The reference server says no more than this when its budget is spent.
        Code::Cancelled => {
            let why = format!("the server cancelled the search: {message}");
            Ending::Limit(why, cursor)
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            let why = advice(status, server);
            Ending::Failed(why.unwrap_or(message), cursor)
        }
        // The server, or what this client may have of it, is full.
        Code::ResourceExhausted => Ending::Limit(message, cursor),
        Code::DeadlineExceeded => Ending::Limit("the maximum time has passed".to_owned(), cursor),
        // Others than the server may say this, and mean something else.
        Code::NotFound if details.exhausted => Ending::Exhausted,
        code => Ending::Failed(format!("the server failed: {message} ({code:?})"), cursor),
    }
}

//! The fuzz target for requests.

use hashfinder_proto::{
    hash_name::HashNameRequest,
    limits::MAX_REASON_LEN,
    v1::{EstimateRequest, SearchRequest, search_request::From},
};
use hashfinder_search::{Cursor, Query};
use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};

use crate::{
    errors::{CallError, Canceller},
    layers::protocol_check::MAX_MESSAGE_LEN,
    searches::query,
};

/// Maximum length of the trailers of a status, in bytes, that clients commonly accept.
const TRAILERS_LEN: usize = 8192;

/// Reads the message of a request as the services do. The first byte selects the method: Find,
/// FindRange, Search or Estimate.
///
/// # Panics
///
/// If an accepted query cannot be resumed from its cursor by another request, has an end that does
/// not fit into the trailers that clients accept, or has secrets that are not where its keyspace
/// says. Also if a request is rejected without a message, or with one that is too long.
pub fn request(data: &[u8]) {
    let Some((method, message)) = data.split_first() else {
        return;
    };
    // The protocol check rejects longer messages.
    if message.len() > MAX_MESSAGE_LEN as usize {
        return;
    }
    let parsed = match method % 4 {
        method @ 0..=1 => HashNameRequest::decode(message)
            .map(|request| query::of_reference(&request, method == 1)),
        2 => SearchRequest::decode(message).map(|request| query::of_search(&request)),
        _ => EstimateRequest::decode(message).map(|request| query::of_estimate(&request)),
    };
    match parsed {
        // tonic rejects these.
        Err(_) => {}
        Ok(Ok(query)) => accepted(&query),
        Ok(Err(error)) => {
            let CallError::BadRequest { field, message } = &error else {
                panic!("a request was rejected as {error:?}");
            };
            assert!(!field.is_empty() && !message.is_empty());
            let status = Status::from(error);
            assert_eq!(status.code(), Code::InvalidArgument);
            fits(&status);
        }
    }
}

fn accepted(query: &Query) {
    let keyspace = query.keyspace();
    assert!((1..=Query::MAX_NAMES).contains(&query.names().len()));
    assert!(query.start() <= keyspace.end());
    for index in [query.start(), keyspace.end() - 1] {
        // A search that was stopped at the end of its keyspace has no secret left.
        if index < keyspace.end() {
            let secret = keyspace.secret(index);
            let nearest = query.nearest(&secret).map(|candidate| candidate.index);
            assert_eq!(nearest, Some(index), "{secret:?}");
        }
    }
    let cursor = Cursor::new(query, query.start() / 2 + keyspace.end() / 2);
    let request = SearchRequest {
        from: Some(From::Cursor(cursor.to_string())),
        maximum_hashes: u64::MAX,
        progress_interval: Some(prost_types::Duration {
            seconds: i64::MIN,
            nanos: i32::MIN,
        }),
    };
    assert!(request.encoded_len() <= MAX_MESSAGE_LEN as usize);
    let again = query::of_search(&request);
    assert_eq!(again, Ok(query.clone().starting_at(cursor.frontier())));
    // No other end has a longer status. Each of these characters takes three bytes in a header.
    fits(&Status::from(CallError::Cancelled {
        by: Canceller::Operator,
        reason: "%".repeat(MAX_REASON_LEN),
        cursor,
    }));
}

fn fits(status: &Status) {
    let mut trailers = HeaderMap::new();
    let added = status.add_header(&mut trailers);
    added.expect("a status fits into headers");
    let sizes = trailers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    assert!(sizes.sum::<usize>() <= TRAILERS_LEN, "{status:?}");
}

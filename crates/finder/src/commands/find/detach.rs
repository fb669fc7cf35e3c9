//! Starts an operation: a search that continues on the server when this command has ended.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use hashfinder_client::{Connection, ServerAddress};
use hashfinder_proto::v1::{StartSearchRequest, finder_client::FinderClient, start_search_request};
use hashfinder_search::{Cursor, Query};
use tokio::time::sleep;
use tonic::{Code, Request, Response};
use tonic_cancel::{Call, CallOptions};

use super::{
    arguments::FindArguments,
    call_end::{is_lost, is_restarting, search_end},
    source::SearchEnd,
    status::Status,
};
use crate::{
    arguments::ANSWER_TIMEOUT,
    terminal::{as_text, quoted},
};

/// Pause before a request is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Starts an operation, and returns its name. If the server rejects it, returns that end, or the
/// error.
///
/// A request that was not answered is repeated with the same id, so it starts only one operation.
/// Dropping the future does not prevent the operation from being started.
pub(super) async fn detach(
    server: &ServerAddress,
    query: &Query,
    arguments: &Arc<FindArguments>,
    status: &Arc<Status>,
) -> Result<String, Result<SearchEnd>> {
    let server = &arguments.connection.address(server);
    let message = StartSearchRequest {
        from: Some(start_search_request::From::Cursor(
            Cursor::new(query, query.start()).to_string(),
        )),
        maximum_hashes: arguments.maximum_hashes.map_or(0, NonZeroU64::get),
        request_id: request_id(),
        ..StartSearchRequest::default()
    };
    let began = Instant::now();
    let timeout = arguments.connect_timeout;
    let mut left = timeout;
    loop {
        let options = (&arguments.connection).into();
        let opening = Connection::open(server, &options, left, timeout, |note| status.say(note));
        let mut client = FinderClient::new(opening.await.map_err(Err)?.channel());
        let request = Request::new(message.clone());
        let options = CallOptions::new().timeout(ANSWER_TIMEOUT);
        let call = Call::start(request, options, |request| async move {
            client.start_search(request).await
        });
        let failed = match call.await.map(Response::into_inner) {
            Ok(operation) => {
                let name = as_text(&operation.name);
                let at = arguments.connection.flags(server);
                let quoted = quoted(&name);
                status.say(format_args!(
                    "started; watch it with: hashfinder operations watch {quoted} {at}"
                ));
                return Ok(name);
            }
            Err(failed) => failed,
        };
        let is_unanswered = is_lost(&failed) || failed.code() == Code::DeadlineExceeded;
        if (is_unanswered || is_restarting(&failed)) && began.elapsed() < timeout {
            sleep(RETRY_PAUSE).await;
            left = timeout.saturating_sub(began.elapsed());
            continue;
        }
        let message = as_text(failed.message());
        let why = match failed.code() {
            _ if is_unanswered => format!(
                "the server at {server} did not answer; the operation may have started: see \
                 `hashfinder operations list {}`",
                arguments.connection.flags(server)
            ),
            Code::Unimplemented => format!(
                "the server at {server} supports no operations; leave --detach out, or use \
                 another server"
            ),
            Code::FailedPrecondition | Code::AlreadyExists | Code::Unavailable => {
                format!("the server at {server} rejected the request: {message}")
            }
            _ => {
                let cursor = Cursor::new(query, query.start());
                return Err(Ok(search_end(&failed, false, cursor, server)));
            }
        };
        return Err(Err(anyhow!(why)));
    }
}

/// Returns an id that no other request has: 128 bits, from the random keys of this process.
fn request_id() -> String {
    let random = RandomState::new();
    let halves = [0, 1].map(|half: u8| random.hash_one(half));
    format!("{:016x}{:016x}", halves[0], halves[1])
}

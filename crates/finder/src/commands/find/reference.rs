//! A search at a server that offers only the reference contract.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_client::{Connection, ServerAddress};
use hashfinder_proto::hash_name::{
    HashNameRequest, HashNameResponse, hash_finder_client::HashFinderClient,
};
use hashfinder_search::{Cursor, Index, Query};
use tonic::{Request, Response, Status};
use tonic_cancel::{Call, CallOptions, StreamingCall};

use super::{
    call_end::search_end,
    finding::Finding,
    source::{SearchEnd, SearchEvent, Source, Stopper},
};

/// A search whose frontier is unknown: the contract does not report it, and the reference server
/// skips some secrets.
pub(super) struct ReferenceSearch {
    query: Query,
    call: Either,
    began: Instant,
    server: ServerAddress,
    connection: Connection,
}

/// Find, or FindRange if candidates are to be shown.
enum Either {
    Unary(Call<HashNameResponse>),
    Stream(StreamingCall<HashNameResponse>),
}

impl ReferenceSearch {
    /// Begins the search. The contract has neither a start nor a hash budget, so those of `query`
    /// are not sent.
    pub(super) fn start(
        connection: Connection,
        query: &Query,
        shows_candidates: bool,
        options: CallOptions,
        server: &ServerAddress,
    ) -> ReferenceSearch {
        let request = Request::new(HashNameRequest {
            desired_name: query.names()[0].as_str().to_owned(),
            ideal_hamming_distance: i32::from(query.ideal_distance().get()),
            interesting_hamming_distance: i32::from(query.interesting_distance().get()),
        });
        let mut client = HashFinderClient::new(connection.channel());
        let call = if shows_candidates {
            Either::Stream(StreamingCall::start(
                request,
                options,
                |request| async move { client.find_range(request).await },
            ))
        } else {
            Either::Unary(Call::start(request, options, |request| async move {
                client.find(request).await
            }))
        };
        ReferenceSearch {
            query: query.clone(),
            call,
            began: Instant::now(),
            server: server.clone(),
            connection,
        }
    }

    /// Reads a response and checks it.
    fn read(&self, response: &HashNameResponse) -> Result<SearchEvent> {
        let secret = BASE64_STANDARD
            .decode(&response.secret)
            .context("invalid answer from the server: its secret is not base64")?;
        let (finding, _) = Finding::checked(&secret, &response.hashed_name, &self.query)?;
        if finding.distance <= self.query.ideal_distance().get() {
            return Ok(SearchEvent::Ended(SearchEnd::Found(finding)));
        }
        match self.call {
            Either::Stream(_) => Ok(SearchEvent::Candidate(finding)),
            Either::Unary(_) => bail!(
                "invalid answer from the server: {} is at distance {}",
                finding.hashed_name,
                finding.distance
            ),
        }
    }
}

impl Source for ReferenceSearch {
    async fn next(&mut self) -> Result<SearchEvent> {
        let (received, cancelled) = match &mut self.call {
            Either::Unary(call) => {
                let received = (&mut *call).await.map(Response::into_inner).map(Some);
                (received, call.cancelled())
            }
            Either::Stream(call) => (call.message().await, call.cancelled()),
        };
        let cursor = Cursor::new(&self.query, self.query.start());
        let status = match received {
            Ok(Some(response)) => {
                let event = self.read(&response);
                let failed = |wrong: anyhow::Error| SearchEnd::Failed(format!("{wrong:#}"), cursor);
                return Ok(event.unwrap_or_else(|wrong| SearchEvent::Ended(failed(wrong))));
            }
            Ok(None) => Status::ok(""),
            Err(status) => status,
        };
        let end = search_end(&status, cancelled, cursor, &self.server);
        Ok(SearchEvent::Ended(end))
    }

    fn stopper(&self) -> Stopper {
        let canceller = match &self.call {
            Either::Unary(call) => call.canceller(),
            Either::Stream(call) => call.canceller(),
        };
        Box::new(move || {
            canceller.cancel();
        })
    }

    fn frontier(&mut self) -> Option<Index> {
        None
    }

    fn elapsed(&self) -> Duration {
        // The server continues to search while this process is stopped.
        self.began.elapsed()
    }

    fn summary(&self) -> Option<String> {
        None
    }

    fn resumes_at(&self) -> Option<&str> {
        // The contract cannot resume a search.
        None
    }

    async fn close(self) {
        drop(self.call);
        self.connection.close().await;
    }
}

//! A search that a server does that speaks the reference contract alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::{Cursor, Index, Query};
use tonic::{Request, Response, Status};
use tonic_cancel::{Call, CallOptions, StreamingCall};

use super::{
    call_end::ending,
    finding::Finding,
    source::{Ending, Source, Stopper, Told},
};
use crate::{
    connection::Connection,
    rpc::pb::{HashNameRequest, HashNameResponse, hash_finder_client::HashFinderClient},
    server_address::ServerAddress,
};

/// A search of which nobody can know how far it came: the contract has no word for it, and the reference
/// server leaves secrets out.
pub(super) struct ReferenceSearch {
    query: Query,
    call: Either,
    began: Instant,
    server: ServerAddress,
    connection: Connection,
}

/// Find, or FindRange where candidates are to be shown.
enum Either {
    Unary(Call<HashNameResponse>),
    Stream(StreamingCall<HashNameResponse>),
}

impl ReferenceSearch {
    /// Begins it. The query's beginning and its budget are not for this contract.
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

    /// Reads an answer and checks it: what a server says is not yet so.
    fn read(&self, response: &HashNameResponse) -> Result<Told> {
        let secret = BASE64_STANDARD
            .decode(&response.secret)
            .context("the server's secret is not base64")?;
        let (finding, _) = Finding::checked(&secret, &response.hashed_name, &self.query)?;
        if finding.distance <= self.query.ideal_distance().get() {
            return Ok(Told::Ended(Ending::Found(finding)));
        }
        match self.call {
            Either::Stream(_) => Ok(Told::Candidate(finding)),
            Either::Unary(_) => bail!(
                "the server's answer is wrong: {} is {} from the name",
                finding.hashed_name,
                finding.distance
            ),
        }
    }
}

impl Source for ReferenceSearch {
    async fn next(&mut self) -> Result<Told> {
        let (told, cancelled) = match &mut self.call {
            Either::Unary(call) => {
                let told = (&mut *call).await.map(Response::into_inner).map(Some);
                (told, call.cancelled())
            }
            Either::Stream(call) => (call.message().await, call.cancelled()),
        };
        let cursor = Cursor::new(&self.query, self.query.start());
        let status = match told {
            Ok(Some(response)) => {
                let told = self.read(&response);
                let failed = |wrong: anyhow::Error| Ending::Failed(format!("{wrong:#}"), cursor);
                return Ok(told.unwrap_or_else(|wrong| Told::Ended(failed(wrong))));
            }
            Ok(None) => Status::ok(""),
            Err(status) => status,
        };
        let ending = ending(&status, cancelled, cursor, &self.server);
        Ok(Told::Ended(ending))
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
        // The server searches also while this process is stopped.
        self.began.elapsed()
    }

    fn summary(&self) -> Option<String> {
        None
    }

    fn resumes_at(&self) -> Option<&str> {
        // Here one can only begin.
        None
    }

    async fn close(self) {
        drop(self.call);
        self.connection.close().await;
    }
}

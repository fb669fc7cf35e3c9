//! `hash_name.HashFinder`: the reference contract on our engine.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hashfinder_proto::hash_name::{
    HashNameRequest, HashNameResponse, hash_finder_server::HashFinder,
};
use hashfinder_search::{Candidate, Event, Keyspace, Spelling};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use crate::searches::{
    answer::Answer,
    query,
    shared::{Caller, Searches},
};

/// The service.
pub(crate) struct HashFinderService {
    searches: Arc<Searches>,
    /// Status code for a spent hash budget.
    budget_code: Code,
}

impl HashFinderService {
    pub(crate) fn new(searches: Arc<Searches>, budget_code: Code) -> HashFinderService {
        HashFinderService {
            searches,
            budget_code,
        }
    }

    async fn begin(
        &self,
        request: Request<HashNameRequest>,
        interesting: bool,
    ) -> Result<Answer, Status> {
        let caller = Caller::of(&request);
        let begun = match query::of_reference(request.get_ref(), interesting) {
            Ok(query) => self.searches.begin(&caller, query, None).await,
            Err(error) => Err(error),
        };
        begun.map_err(|error| self.searches.reject(&caller, error))
    }
}

#[tonic::async_trait]
impl HashFinder for HashFinderService {
    type FindRangeStream = Candidates;

    async fn find(
        &self,
        request: Request<HashNameRequest>,
    ) -> Result<Response<HashNameResponse>, Status> {
        let mut answer = self.begin(request, false).await?;
        loop {
            match poll_fn(|cx| answer.poll_event(cx, 1)).await {
                Event::Candidates(_) => {}
                Event::Ended(outcome) => {
                    let candidate = answer.conclude(outcome, self.budget_code)?;
                    return Ok(Response::new(response(candidate)));
                }
            }
        }
    }

    async fn find_range(
        &self,
        request: Request<HashNameRequest>,
    ) -> Result<Response<Candidates>, Status> {
        Ok(Response::new(Candidates {
            answer: self.begin(request, true).await?,
            budget_code: self.budget_code,
            ready: Vec::new().into_iter(),
            ended: false,
        }))
    }
}

/// Converts a candidate to a response. This contract has only the default spelling and keyspace.
fn response(candidate: Candidate) -> HashNameResponse {
    let secret = Keyspace::default().secret(candidate.index);
    HashNameResponse {
        secret: BASE64_STANDARD.encode(&secret),
        hashed_name: Spelling::default().hashed_name(&secret).to_string(),
        hamming_distance: i32::from(candidate.distance),
    }
}

/// The response stream of a FindRange.
pub(crate) struct Candidates {
    answer: Answer,
    budget_code: Code,
    ready: std::vec::IntoIter<Candidate>,
    ended: bool,
}

impl Stream for Candidates {
    type Item = Result<HashNameResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(candidate) = self.ready.next() {
            return Poll::Ready(Some(Ok(response(candidate))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match self.answer.poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Event::Candidates(candidates)) => {
                self.ready = candidates.into_iter();
                Poll::Ready(self.ready.next().map(|candidate| Ok(response(candidate))))
            }
            Poll::Ready(Event::Ended(outcome)) => {
                self.ended = true;
                let last = self.answer.conclude(outcome, self.budget_code);
                Poll::Ready(Some(last.map(response).map_err(Status::from)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Counts, searches::shared::Limits};
    use hashfinder_proto::hash_name::{
        hash_finder_client::HashFinderClient, hash_finder_server::HashFinderServer,
    };
    use hashfinder_search::{Backend, Engine, Found, Index, Kernel, Matcher};
    use std::{
        collections::HashMap,
        num::{NonZeroU64, NonZeroUsize},
        ops::Range,
    };
    use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
    use tonic_cancel::CallContextLayer;

    /// A kernel that panics at one index.
    struct PanicsAt(Index);

    impl Backend for PanicsAt {
        fn scan(
            &self,
            slice: Range<Index>,
            matcher: &Matcher,
            limit: usize,
            hits: &mut Vec<Found>,
        ) -> Index {
            assert!(!slice.contains(&self.0), "a panic that this test wants");
            Backend::scan(&Kernel::best(), slice, matcher, limit, hits)
        }
    }

    async fn serve(backend: impl Backend, maximum_concurrent_rpcs: usize) -> Channel {
        let started = std::time::Instant::now();
        let engine = Engine::start(2, backend, move || started.elapsed()).unwrap();
        let limits = Limits {
            maximum_hashes: NonZeroU64::MAX,
            maximum_concurrent_rpcs: NonZeroUsize::new(maximum_concurrent_rpcs).unwrap(),
            weights: HashMap::new(),
            quotas: HashMap::new(),
        };
        let searches = Arc::new(Searches::new(engine, None, limits, Counts::default()));
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let server = Server::builder()
            .layer(CallContextLayer::new())
            .add_service(HashFinderServer::new(HashFinderService::new(
                searches,
                Code::Cancelled,
            )));
        tokio::spawn(server.serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect().await.unwrap()
    }

    fn request(name: &str, interesting: i32) -> HashNameRequest {
        HashNameRequest {
            desired_name: name.to_owned(),
            ideal_hamming_distance: 0,
            interesting_hamming_distance: interesting,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_of_the_search_ends_its_call_with_unknown_and_no_other() {
        // The number of calls is limited to two, so that the test fails if a panic does not return
        // its permit.
        let mut client = HashFinderClient::new(serve(PanicsAt(500_000), 2).await);
        // This search is parked before it reaches the index, because the test reads only a few of
        // its candidates.
        let unread = client.find_range(request("hashfinderhashfinder", 28)).await;
        let mut bystander = unread.unwrap().into_inner();
        for _ in 0..5 {
            // "docto" is first found at the 899,147th secret, "doc" at the 450th.
            let status = client.find(request("docto", 0)).await.unwrap_err();
            assert_eq!(status.code(), Code::Unknown, "{status}");
            let answer = client.find(request("doc", 0)).await.unwrap().into_inner();
            assert_eq!(answer.hamming_distance, 0);
            assert!(bystander.message().await.unwrap().is_some());
        }
    }
}

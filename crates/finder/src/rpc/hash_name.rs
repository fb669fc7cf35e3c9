//! `hash_name.HashFinder`: the reference contract on our engine.

use std::{
    collections::HashMap,
    future::poll_fn,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hashfinder_search::{
    Candidate, Client, DesiredName, Distance, Engine, Event, Keyspace, Outcome, OverLimit, Query,
    Search, Spelling, StopCause,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};
use tonic_cancel::{CallContext, CancelReason, WorkGuard, WorkLimit};

use super::{
    pb::{HashNameRequest, HashNameResponse, hash_finder_server::HashFinder},
    record::CallRecord,
    status::CallError,
};
use crate::listener::{ClientName, Peer};

/// How many candidates make a frame that costs its reader no more than its bytes. HTTP/2
/// implementations count frames of under 256 bytes that wait to be read and close the connection
/// over too many of them; a candidate takes about fifty.
const FULL_FRAME: usize = 8;

/// How long candidates that do not fill a frame are kept for others to join them.
const FRAME_PACE: Duration = Duration::from_millis(10);

/// How long a call waits for another one's permit before it is refused. The work of a call that was
/// answered lets go within a slice, so that a client that makes one call after another is never in
/// its own way; on a machine that is very busy this takes longer.
const PERMIT_PATIENCE: Duration = Duration::from_millis(50);

/// When a call first asks again whether its client has room for it; each pause is twice the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// What one RPC, and all of them together, may take.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The hash budget of one RPC.
    pub(crate) maximum_hashes: NonZeroU64,
    /// The code that says that it is spent.
    pub(crate) budget_code: Code,
    /// How many RPCs may search at a time.
    pub(crate) maximum_concurrent_rpcs: NonZeroUsize,
    /// The shares of those clients that do not have the share of 1.
    pub(crate) weights: HashMap<ClientName, NonZeroU32>,
}

/// The service; all calls share the engine.
pub(crate) struct HashFinderService {
    engine: Engine,
    limits: Limits,
    room: WorkLimit,
}

impl HashFinderService {
    pub(crate) fn new(engine: Engine, limits: Limits) -> HashFinderService {
        HashFinderService {
            engine,
            room: WorkLimit::new(limits.maximum_concurrent_rpcs.get()),
            limits,
        }
    }

    /// Everything that can be refused is refused here, before any work.
    async fn begin(
        &self,
        method: &'static str,
        request: &Request<HashNameRequest>,
        interesting: bool,
    ) -> Result<Answer, Status> {
        let admitted = self.admit(method, request, interesting).await;
        admitted.map_err(|error| {
            let status = Status::from(error);
            tracing::info!(
                method,
                peer = request.extensions().get::<Peer>().map(tracing::field::display),
                code = ?status.code(),
                reason = status.message(),
                "call refused",
            );
            status
        })
    }

    async fn admit(
        &self,
        method: &'static str,
        request: &Request<HashNameRequest>,
        interesting: bool,
    ) -> Result<Answer, CallError> {
        let query = parse(request.get_ref(), interesting)?;
        let query = query.hash_budget(self.limits.maximum_hashes);
        let peer = request.extensions().get::<Peer>();
        let client = peer.map_or_else(Client::default, |peer| self.client(peer));
        let context = CallContext::of(request);
        let until = Instant::now() + PERMIT_PATIENCE;
        let mut pause = FIRST_PAUSE;
        let (search, record) = loop {
            let guard = self.room(&context, until).await?;
            let name = query.names()[0].as_str();
            let record = Arc::new(CallRecord::new(method, peer.cloned(), name));
            let at_release = Arc::clone(&record);
            let search = (self.engine).search(client.clone(), query.clone(), move |report| {
                // It is the work's: it goes back when the last worker has let go.
                drop(guard);
                at_release.released(report);
            });
            match search {
                Ok(search) => break (search, record),
                // As for a permit, and for the same reason.
                Err(OverLimit::SearchesOfClient { .. }) if Instant::now() < until => {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(over) => return Err(CallError::OverLimit(over)),
            }
        };
        // A stream that nobody reads is not polled, so its end has to reach the work by itself.
        let stopper = search.stopper();
        context.add_callback(move |end| {
            stopper.stop(end.cancelled.map_or(StopCause::Client, cause_of));
            record.ended(end);
        });
        Ok(Answer {
            told_to_stop: Some(Box::pin({
                let context = context.clone();
                async move { context.cancelled().await }
            })),
            context,
            search,
            budget_code: self.limits.budget_code,
            maximum_hashes: self.limits.maximum_hashes,
        })
    }

    async fn room(&self, context: &CallContext, until: Instant) -> Result<WorkGuard, CallError> {
        let patience = until.saturating_duration_since(Instant::now());
        let guard = self.room.begin_within(context, patience).await;
        guard.map_err(|_| match context.cancel_reason() {
            Some(CancelReason::Drain) => CallError::Draining(None),
            // Who is gone for another reason is told nothing any more.
            _ => CallError::TooManyRpcs(self.limits.maximum_concurrent_rpcs),
        })
    }

    /// For whom a call is, and with which share.
    fn client(&self, peer: &Peer) -> Client {
        let name = peer.client();
        let weight = self.limits.weights.get(&name).copied();
        Client {
            name: name.0,
            connection: peer.connection,
            weight: weight.unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// Who wants a search to stop whose call was cancelled.
fn cause_of(reason: CancelReason) -> StopCause {
    match reason {
        CancelReason::DeadlineExceeded => StopCause::Deadline,
        CancelReason::Server => StopCause::Operator,
        CancelReason::Drain => StopCause::Drain,
        _ => StopCause::Client,
    }
}

#[tonic::async_trait]
impl HashFinder for HashFinderService {
    type FindRangeStream = Candidates;

    async fn find(
        &self,
        request: Request<HashNameRequest>,
    ) -> Result<Response<HashNameResponse>, Status> {
        let mut answer = self.begin("Find", &request, false).await?;
        loop {
            match poll_fn(|cx| answer.poll_event(cx, 1)).await {
                Event::Candidates(_) => {}
                Event::Ended(outcome) => {
                    let candidate = answer.conclude(outcome)?;
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
            answer: self.begin("FindRange", &request, true).await?,
            ready: Vec::new().into_iter(),
            paced: None,
            ended: false,
        }))
    }
}

fn parse(request: &HashNameRequest, interesting: bool) -> Result<Query, CallError> {
    let distance = |field, value: i32| {
        Distance::try_from(i64::from(value)).map_err(|error| CallError::Distance(field, error))
    };
    let name: DesiredName = request.desired_name.parse().map_err(CallError::Name)?;
    let ideal = distance("ideal_hamming_distance", request.ideal_hamming_distance)?;
    let mut near = Distance::ZERO;
    // Find ignores the field, whatever it holds.
    if interesting {
        near = distance(
            "interesting_hamming_distance",
            request.interesting_hamming_distance,
        )?;
    }
    let query = Query::new(name, ideal).map_err(CallError::Impossible)?;
    Ok(query.interesting(near))
}

/// In the reference's spelling, among all byte strings.
fn response(candidate: Candidate) -> HashNameResponse {
    let secret = Keyspace::default().secret(candidate.index);
    HashNameResponse {
        secret: BASE64_STANDARD.encode(&secret),
        hashed_name: Spelling::default().hashed_name(&secret).to_string(),
        hamming_distance: i32::from(candidate.distance),
    }
}

/// A search on behalf of a call. Dropping it, as tonic does when the client is gone, stops the
/// search.
struct Answer {
    context: CallContext,
    search: Search,
    /// Ready when the call is told to stop and its handler may still say something.
    told_to_stop: Option<Pin<Box<dyn Future<Output = Option<CancelReason>> + Send>>>,
    budget_code: Code,
    maximum_hashes: NonZeroU64,
}

impl Drop for Answer {
    /// Tells the search why, which it could not know of its handle's being dropped.
    fn drop(&mut self) {
        if let Some(reason) = self.context.cancel_reason() {
            self.search.stopper().stop(cause_of(reason));
        }
    }
}

impl Answer {
    fn poll_event(&mut self, cx: &mut Context<'_>, at_least: usize) -> Poll<Event> {
        if let Some(told) = &mut self.told_to_stop
            && let Poll::Ready(reason) = told.as_mut().poll(cx)
        {
            self.told_to_stop = None;
            let cause = reason.map_or(StopCause::Client, cause_of);
            self.search.stopper().stop(cause);
        }
        self.search.poll_next(cx, at_least)
    }

    fn conclude(&self, outcome: Outcome) -> Result<Candidate, Status> {
        let error = match outcome {
            Outcome::Ideal(candidate) => return Ok(candidate),
            Outcome::Exhausted => CallError::Exhausted,
            Outcome::BudgetSpent(cursor) => CallError::BudgetSpent {
                code: self.budget_code,
                hashes: self.maximum_hashes.get(),
                cursor,
            },
            Outcome::QuotaSpent {
                cursor,
                retry_after,
            } => CallError::QuotaSpent {
                cursor,
                retry_after,
            },
            // Only a drain leaves its handler the last word; and an engine that was dropped is a
            // server on its way down too.
            Outcome::Cancelled { cursor, .. } => CallError::Draining(Some(cursor)),
            Outcome::Failed(cursor) => CallError::Failed(cursor),
            other => return Err(Status::internal(format!("an unknown outcome: {other:?}"))),
        };
        Err(error.into())
    }
}

/// The stream of a FindRange.
///
/// What is ready goes out in one frame, because tonic puts into one frame what its stream yields
/// without pausing. A frame that is not full is followed by the next one only after a pause.
pub(crate) struct Candidates {
    answer: Answer,
    ready: std::vec::IntoIter<Candidate>,
    /// Until when only a full frame goes out.
    paced: Option<Pin<Box<Sleep>>>,
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
        if let Some(pause) = &mut self.paced
            && pause.as_mut().poll(cx).is_ready()
        {
            self.paced = None;
        }
        let at_least = if self.paced.is_some() { FULL_FRAME } else { 1 };
        match self.answer.poll_event(cx, at_least) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Event::Candidates(candidates)) => {
                if candidates.len() < FULL_FRAME {
                    self.paced = Some(Box::pin(sleep_until(Instant::now() + FRAME_PACE)));
                }
                self.ready = candidates.into_iter();
                Poll::Ready(self.ready.next().map(|candidate| Ok(response(candidate))))
            }
            Poll::Ready(Event::Ended(outcome)) => {
                self.ended = true;
                let last = self.answer.conclude(outcome).map(response);
                Poll::Ready(Some(last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::pb::{
        hash_finder_client::HashFinderClient, hash_finder_server::HashFinderServer,
    };
    use hashfinder_search::{Backend, Found, Index, Kernel, Sought};
    use std::ops::Range;
    use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
    use tonic_cancel::CallContextLayer;

    /// A kernel that panics where it comes to one index.
    struct PanicsAt(Index);

    impl Backend for PanicsAt {
        fn scan(
            &self,
            slice: Range<Index>,
            sought: &Sought,
            limit: usize,
            hits: &mut Vec<Found>,
        ) -> Index {
            assert!(!slice.contains(&self.0), "a panic that this test wants");
            Backend::scan(&Kernel::best(), slice, sought, limit, hits)
        }
    }

    async fn serve(backend: impl Backend, maximum_concurrent_rpcs: usize) -> Channel {
        let started = std::time::Instant::now();
        let engine = Engine::start(2, backend, move || started.elapsed()).unwrap();
        let limits = Limits {
            maximum_hashes: NonZeroU64::MAX,
            budget_code: Code::Cancelled,
            maximum_concurrent_rpcs: NonZeroUsize::new(maximum_concurrent_rpcs).unwrap(),
            weights: HashMap::new(),
        };
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let server = Server::builder()
            .layer(CallContextLayer::new())
            .add_service(HashFinderServer::new(HashFinderService::new(
                engine, limits,
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
        // So few calls at a time that a permit that a panic kept would be missed.
        let mut client = HashFinderClient::new(serve(PanicsAt(500_000), 2).await);
        // Parked before it comes to the index, because nobody reads on.
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

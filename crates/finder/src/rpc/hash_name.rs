//! `hash_name.HashFinder`: the reference contract on our engine.

use std::{
    future::poll_fn,
    num::{NonZeroU64, NonZeroUsize},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hashfinder_search::{Candidate, DesiredName, Distance, Engine, Event, Outcome, Query, Search};
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep_until},
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};
use tonic_cancel::{CallContext, CancelReason};

use super::{
    pb::{HashNameRequest, HashNameResponse, hash_finder_server::HashFinder},
    record::CallRecord,
    status::CallError,
};

/// How many candidates make a frame that costs its reader no more than its bytes. HTTP/2
/// implementations count frames of under 256 bytes that wait to be read and close the connection
/// over too many of them; a candidate takes about fifty.
const FULL_FRAME: usize = 8;

/// How long candidates that do not fill a frame are kept for others to join them.
const FRAME_PACE: Duration = Duration::from_millis(10);

/// What one RPC, and all of them together, may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The hash budget of one RPC.
    pub(crate) maximum_hashes: NonZeroU64,
    /// The code that says that it is spent.
    pub(crate) budget_code: Code,
    /// How many RPCs may search at a time.
    pub(crate) maximum_concurrent_rpcs: NonZeroUsize,
}

/// The service; all calls share the engine.
pub(crate) struct HashFinderService {
    engine: Engine,
    limits: Limits,
    permits: Arc<Semaphore>,
}

impl HashFinderService {
    pub(crate) fn new(engine: Engine, limits: Limits) -> HashFinderService {
        HashFinderService {
            engine,
            limits,
            permits: Arc::new(Semaphore::new(limits.maximum_concurrent_rpcs.get())),
        }
    }

    /// Everything that can be refused is refused here, before any work.
    fn begin(
        &self,
        method: &'static str,
        request: &Request<HashNameRequest>,
        interesting: bool,
    ) -> Result<Answer, Status> {
        self.admit(method, request, interesting).map_err(|error| {
            let status = Status::from(error);
            tracing::info!(
                method,
                peer = request.remote_addr().map(tracing::field::display),
                code = ?status.code(),
                reason = status.message(),
                "call refused",
            );
            status
        })
    }

    fn admit(
        &self,
        method: &'static str,
        request: &Request<HashNameRequest>,
        interesting: bool,
    ) -> Result<Answer, CallError> {
        let query = parse(request.get_ref(), interesting)?;
        let limit = self.limits.maximum_concurrent_rpcs;
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| CallError::TooManyRpcs(limit))?;

        let context = CallContext::of(request);
        let name = query.name().as_str();
        let record = Arc::new(CallRecord::new(method, request.remote_addr(), name));
        let budget = self.limits.maximum_hashes;
        let at_release = Arc::clone(&record);
        let search = self
            .engine
            .search(query.hash_budget(budget), move |report| {
                // The permit is the work's: it goes back when the last worker has let go.
                drop(permit);
                at_release.released(report);
            });
        // A stream that nobody reads is not polled, so its end has to reach the work by itself.
        let stopper = search.stopper();
        context.add_callback(move |end| {
            stopper.stop();
            record.ended(end);
        });
        Ok(Answer {
            told_to_stop: Box::pin(async move { context.cancelled().await }),
            stopped: None,
            search,
            limits: self.limits,
        })
    }
}

#[tonic::async_trait]
impl HashFinder for HashFinderService {
    type FindRangeStream = Candidates;

    async fn find(
        &self,
        request: Request<HashNameRequest>,
    ) -> Result<Response<HashNameResponse>, Status> {
        let mut answer = self.begin("Find", &request, false)?;
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
            answer: self.begin("FindRange", &request, true)?,
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

fn response(candidate: Candidate) -> HashNameResponse {
    HashNameResponse {
        secret: candidate.secret.to_base64(),
        hashed_name: candidate.hashed_name().to_string(),
        hamming_distance: i32::from(candidate.distance),
    }
}

/// A search on behalf of a call. Dropping it, as tonic does when the client is gone, stops the
/// search.
struct Answer {
    search: Search,
    /// Ready when the call is told to stop and its handler may still say something.
    told_to_stop: Pin<Box<dyn Future<Output = Option<CancelReason>> + Send>>,
    stopped: Option<CancelReason>,
    limits: Limits,
}

impl Answer {
    fn poll_event(&mut self, cx: &mut Context<'_>, at_least: usize) -> Poll<Event> {
        if self.stopped.is_none()
            && let Poll::Ready(Some(reason)) = self.told_to_stop.as_mut().poll(cx)
        {
            self.stopped = Some(reason);
            self.search.stopper().stop();
        }
        self.search.poll_next(cx, at_least)
    }

    fn conclude(&self, outcome: Outcome) -> Result<Candidate, Status> {
        let error = match outcome {
            Outcome::Ideal(candidate) => return Ok(candidate),
            Outcome::Exhausted => CallError::Exhausted,
            Outcome::BudgetSpent(cursor) => CallError::BudgetSpent {
                code: self.limits.budget_code,
                hashes: self.limits.maximum_hashes.get(),
                cursor,
            },
            // Only a drain leaves its handler the last word; and an engine that was dropped is a
            // server on its way down too.
            Outcome::Cancelled(cursor) => CallError::Draining(Some(cursor)),
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

//! A search of a server that the fleet works on.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use hashfinder_fleet::{Ask, CallId, ServerId};
use hashfinder_search::{
    Advance, Candidate, Checkpoint, Client, Cursor, Index, Outcome, Progress, Query, SearchState,
};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use crate::{
    server::Request,
    wire::{News, NewsEnd},
};

/// Time without a word from the leader after which the server searches itself: longer than an
/// election takes.
const STRANDED_AFTER: Duration = Duration::from_secs(10);

/// Time between two messages about a call.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// The calls of a server that the fleet works on.
pub(crate) type Calls = Mutex<HashMap<CallId, Arc<Call>>>;

/// What is called when the fleet has left a search.
pub type OnRelease = Box<dyn FnOnce(FleetRelease) + Send>;

/// The fleet has left a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetRelease {
    /// How the search ended.
    pub outcome: Outcome,
    /// Number of secrets covered since the query's start.
    pub covered: u64,
    /// Time from its stop until the leader had recalled its leases.
    pub took: Duration,
}

/// A call has ended: the leader has to hear of it.
pub(crate) struct Ended {
    pub(crate) call: CallId,
    outcome: Outcome,
    covered: u64,
    at: Instant,
    on_release: OnRelease,
}

impl Ended {
    /// The fleet has left the search.
    pub(crate) fn release(self) {
        (self.on_release)(FleetRelease {
            outcome: self.outcome,
            covered: self.covered,
            took: self.at.elapsed(),
        });
    }
}

pub(crate) struct Call {
    pub(crate) id: CallId,
    client: Client,
    query: Query,
    state: Mutex<State>,
    on_release: Mutex<Option<OnRelease>>,
}

struct State {
    checkpoint: Checkpoint,
    /// Every candidate below this index has arrived.
    from: Index,
    /// Those that the reader has not taken.
    queue: Vec<Candidate>,
    outcome: Option<Outcome>,
    search_state: SearchState,
    waker: Option<Waker>,
    /// When the leader was last asked, and when it was last heard of.
    asked: Option<Duration>,
    heard: Duration,
    is_stranded: bool,
}

impl Call {
    pub(crate) fn new(
        id: CallId,
        client: Client,
        query: Query,
        checkpoint: Checkpoint,
        on_release: OnRelease,
        now: Duration,
    ) -> Call {
        Call {
            id,
            client,
            query,
            on_release: Mutex::new(Some(on_release)),
            state: Mutex::new(State {
                from: checkpoint.frontier(),
                checkpoint,
                queue: Vec::new(),
                outcome: None,
                search_state: SearchState::Queued,
                waker: None,
                asked: None,
                heard: now,
                is_stranded: false,
            }),
        }
    }

    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    /// Returns the message about the call, if one is due.
    pub(crate) fn ask(&self, server: &ServerId, now: Duration) -> Option<Ask> {
        let mut state = self.lock();
        let is_recent = |asked: Duration| now.saturating_sub(asked) < RENEWED_EVERY;
        if state.outcome.is_some() || state.asked.is_some_and(is_recent) {
            return None;
        }
        state.asked = Some(now);
        Some(Ask {
            call: Arc::clone(&self.id),
            server: Arc::clone(server),
            client: self.client.clone(),
            query: self.query.clone(),
            checkpoint: state.checkpoint.clone(),
            from: state.from,
        })
    }

    /// Takes what the leader says. Old and repeated messages change nothing.
    pub(crate) fn hear(&self, news: News, now: Duration) {
        let mut state = self.lock();
        state.heard = now;
        let is_next = news.from == state.from
            && state.queue.is_empty()
            && state.outcome.is_none()
            && news.checkpoint.frontier() >= state.checkpoint.frontier()
            && news.checkpoint.end() <= state.checkpoint.end();
        if !is_next {
            return;
        }
        state.search_state = news.state;
        if let Some(last) = news.candidates.last() {
            state.from = last.index + 1;
            // There may be more: the next message confirms these.
            state.asked = None;
        }
        state.queue = news.candidates;
        state.checkpoint = news.checkpoint;
        match news.end {
            Some(NewsEnd::Outcome(outcome)) => state.outcome = Some(outcome),
            Some(NewsEnd::Full) => state.is_stranded = true,
            None => {}
        }
        if !state.queue.is_empty() || state.outcome.is_some() || state.is_stranded {
            wake(state);
        }
    }

    /// Gives the call back to its server if the fleet does not work on it. Returns whether it is
    /// given back now.
    pub(crate) fn check(&self, has_agents: bool, now: Duration) -> bool {
        let mut state = self.lock();
        let is_lost = now.saturating_sub(state.heard) >= STRANDED_AFTER;
        let is_stranded = state.outcome.is_none() && !state.is_stranded && (is_lost || !has_agents);
        if is_stranded {
            state.is_stranded = true;
            wake(state);
        }
        is_stranded
    }

    /// The leader has changed, so it has to hear of the call at once.
    pub(crate) fn ask_at_once(&self) {
        self.lock().asked = None;
    }

    fn progress(&self, state: &State) -> Progress {
        let covered = state.checkpoint.covered(&self.query);
        Progress {
            state: match state.outcome {
                Some(_) => SearchState::Ended,
                None => state.search_state,
            },
            frontier: state.checkpoint.frontier(),
            hashes: covered,
            tests: covered,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the reader, without the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A search that the fleet works on. Dropping it ends the search: its agents are free within
/// milliseconds.
pub struct FleetSearch(pub(crate) FleetStopper);

/// Stops a search that the fleet works on, from any thread, without owning it.
#[derive(Clone)]
pub struct FleetStopper {
    pub(crate) call: Arc<Call>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) requests: UnboundedSender<Request>,
}

/// What a search in a fleet has done since the last time.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetAdvance {
    /// Candidates, checkpoint, outcome and progress of the same moment.
    pub advance: Advance,
    /// Whether the fleet has no agents, no leader or no room, so that the server should continue
    /// the search itself, from this checkpoint.
    pub is_stranded: bool,
}

impl FleetSearch {
    /// Takes the candidates that have arrived, with a checkpoint of the same moment. `waker` is
    /// woken once when there are more, or when the search has ended or is stranded.
    pub fn advance(&mut self, waker: &Waker) -> FleetAdvance {
        let call = &self.0.call;
        let mut state = call.lock();
        if state.outcome.is_none() {
            state.waker = Some(waker.clone());
        }
        FleetAdvance {
            is_stranded: state.is_stranded && state.outcome.is_none(),
            advance: Advance {
                candidates: std::mem::take(&mut state.queue),
                progress: call.progress(&state),
                checkpoint: state.checkpoint.clone(),
                outcome: state.outcome.clone(),
            },
        }
    }

    /// Returns a handle that can stop the search from another thread.
    #[must_use]
    pub fn stopper(&self) -> FleetStopper {
        self.0.clone()
    }
}

impl FleetStopper {
    /// Stops the search. Its agents are free within milliseconds. A search that has ended keeps its
    /// outcome.
    pub fn stop(&self) {
        let mut state = self.call.lock();
        if state.outcome.is_none() {
            let cursor = Cursor::new(&self.call.query, state.checkpoint.frontier());
            state.outcome = Some(Outcome::Stopped(cursor));
            wake(state);
        } else {
            drop(state);
        }
        self.leave();
    }

    /// Returns the progress of the search.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.call.progress(&self.call.lock())
    }

    /// Ends the call, if it has not ended yet.
    fn leave(&self) {
        let calls = self.calls.lock();
        let mut calls = calls.unwrap_or_else(PoisonError::into_inner);
        calls.remove(&self.call.id);
        drop(calls);
        let on_release = self.call.on_release.lock();
        let on_release = on_release.unwrap_or_else(PoisonError::into_inner).take();
        let Some(on_release) = on_release else { return };
        let state = self.call.lock();
        let stopped = || {
            let cursor = Cursor::new(&self.call.query, state.checkpoint.frontier());
            Outcome::Stopped(cursor)
        };
        let ended = Ended {
            call: Arc::clone(&self.call.id),
            outcome: state.outcome.clone().unwrap_or_else(stopped),
            covered: state.checkpoint.covered(&self.call.query),
            at: Instant::now(),
            on_release,
        };
        drop(state);
        // If the task that sends the message has ended, there is no fleet to release.
        if let Err(unsent) = self.requests.send(Request::Ended(ended))
            && let Request::Ended(ended) = unsent.0
        {
            ended.release();
        }
    }
}

impl Drop for FleetSearch {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl fmt::Debug for FleetSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FleetSearch").field(&self.0.call.id).finish()
    }
}

impl fmt::Debug for FleetStopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FleetStopper").field(&self.call.id).finish()
    }
}

//! A search of a server that the fleet works on.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use hashfinder_fleet::{CallId, CallRenewal, RemoteSearch, ServerId};
use hashfinder_search::{Advance, Index, Outcome, Progress, Query};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time::Instant,
};

/// The calls of a server that the fleet works on.
pub(crate) type Calls = Mutex<HashMap<CallId, Arc<Call>>>;

/// What the task of a server has to do.
pub(crate) enum Request {
    /// A message about this call may be due.
    Due(CallId),
    Ended(Ended),
    Leave(oneshot::Sender<()>),
}

/// Callback for the moment when the fleet has left a search.
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

/// A call that has ended; the leader has to be notified. Dropping this means that the fleet has
/// left the search.
pub(crate) struct Ended {
    pub(crate) call: CallId,
    pub(crate) outcome: Outcome,
    covered: u64,
    at: Instant,
    on_release: Option<OnRelease>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(on_release) = self.on_release.take() {
            on_release(FleetRelease {
                outcome: self.outcome.clone(),
                covered: self.covered,
                took: self.at.elapsed(),
            });
        }
    }
}

/// A search that the fleet works on, and its reader.
pub(crate) struct Call {
    id: CallId,
    query: Query,
    state: Mutex<State>,
    on_release: Mutex<Option<OnRelease>>,
}

struct State {
    search: RemoteSearch,
    waker: Option<Waker>,
    stopped: Option<Instant>,
}

impl Call {
    pub(crate) fn new(id: CallId, search: RemoteSearch, on_release: OnRelease) -> Call {
        Call {
            id,
            query: search.query().clone(),
            state: Mutex::new(State {
                search,
                waker: None,
                stopped: None,
            }),
            on_release: Mutex::new(Some(on_release)),
        }
    }

    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    /// Calls `change`, and wakes the reader if that returns `true`.
    pub(crate) fn change(&self, change: impl FnOnce(&mut RemoteSearch) -> bool) -> bool {
        let mut state = self.lock();
        let is_news = change(&mut state.search);
        let waker = state.waker.take_if(|_| is_news);
        // The reader is woken without the lock.
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        is_news
    }

    /// Ends the search. Returns the notice for the leader, or `None` if an earlier call returned
    /// it.
    pub(crate) fn end(&self) -> Option<Ended> {
        let on_release = self.on_release.lock();
        let on_release = on_release.unwrap_or_else(PoisonError::into_inner).take()?;
        let mut state = self.lock();
        let ended = Ended {
            call: Arc::clone(&self.id),
            outcome: state.search.end().clone(),
            covered: state.search.progress().tests,
            at: state.stopped.unwrap_or_else(Instant::now),
            on_release: Some(on_release),
        };
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(ended)
    }

    /// Whether the search has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().search.outcome().is_some()
    }

    /// Returns the message about the call, if one is due.
    pub(crate) fn renewal(&self, server: &ServerId, now: Duration) -> Option<CallRenewal> {
        self.lock().search.renewal(server, now)
    }

    /// Returns the index below which every candidate has arrived.
    pub(crate) fn from(&self) -> Index {
        self.lock().search.from()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// When the server's clock began.
    pub(crate) started: Instant,
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
        let mut state = self.0.call.lock();
        let search = &mut state.search;
        let (candidates, checkpoint) = search.take();
        let advance = FleetAdvance {
            is_stranded: search.is_stranded(),
            advance: Advance {
                candidates,
                checkpoint,
                outcome: search.outcome().cloned(),
                progress: search.progress(),
            },
        };
        if advance.advance.outcome.is_none() {
            state.waker = Some(waker.clone());
        }
        drop(state);
        if !advance.advance.candidates.is_empty() {
            let call = Arc::clone(&self.0.call.id);
            // If the task has ended that sends the message, the search is stranded.
            let _ = self.0.requests.send(Request::Due(call));
        }
        advance
    }

    /// Returns a handle that can stop the search from another thread.
    #[must_use]
    pub fn stopper(&self) -> FleetStopper {
        self.0.clone()
    }
}

impl FleetStopper {
    /// Stops the search. Its agents are free within milliseconds. It ends once they have reported
    /// what they have tried, or after half a second. A search that has ended keeps its outcome.
    pub fn stop(&self) {
        let mut state = self.call.lock();
        state.search.stop(self.started.elapsed());
        state.stopped.get_or_insert_with(Instant::now);
        drop(state);
        // If the task that sends the message has ended, the search ends here.
        let due = Request::Due(Arc::clone(&self.call.id));
        if self.requests.send(due).is_err() {
            self.leave();
        }
    }

    /// Returns the progress of the search.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.call.lock().search.progress()
    }

    /// Ends the call, if it has not ended yet.
    fn leave(&self) {
        let calls = self.calls.lock();
        let mut calls = calls.unwrap_or_else(PoisonError::into_inner);
        calls.remove(&self.call.id);
        drop(calls);
        let Some(ended) = self.call.end() else { return };
        // If the task has ended that sends the message, this releases the call.
        let _ = self.requests.send(Request::Ended(ended));
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

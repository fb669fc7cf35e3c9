//! The calls of a fleet: what each has found that its server has not confirmed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
    time::Duration,
};

use hashfinder_search::{
    Advance, Candidate, Checkpoint, Client, Dispatcher, Index, Outcome, Query, SearchId,
    SearchState,
};

use crate::{
    messages::{CallId, CallRenewal, ServerId},
    retry::{Of, Retry},
    roster::Covered,
};

/// Time after which a call ends unless its server renews it.
pub const RENEWED_FOR: Duration = Duration::from_secs(3);

/// Maximum number of unconfirmed candidates of a call. Beyond it, the leader takes no more from the
/// search, which waits.
const MOST_UNCONFIRMED: usize = 512;

/// Maximum number of hits beyond a call's frontier in a message. With more, its server receives
/// only the frontier: messages about a call, one a second, would otherwise grow to many kilobytes.
/// Only if the leader dies, what lies beyond the frontier is searched again.
const MOST_HELD_SENT: usize = 512;

/// The leader's answer to [`CallRenewal`]. It also sends one when there is news.
#[derive(Clone, Debug, PartialEq)]
pub struct CallUpdate {
    /// [`CallRenewal::from`] of the latest message about the call.
    pub from: Index,
    /// All candidates at or beyond [`CallRenewal::from`] that were found so far, in order.
    pub candidates: Vec<Candidate>,
    /// The state of the search after these candidates. A server that keeps it can continue the call
    /// with another leader.
    pub checkpoint: Checkpoint,
    /// How the search has ended, if it has.
    pub outcome: Option<Outcome>,
    /// Whether agents are trying its secrets.
    pub state: SearchState,
}

#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: BTreeMap<CallId, Call>,
    news: Arc<News>,
}

/// Calls that may have news for their servers.
#[derive(Debug, Default)]
struct News(Mutex<BTreeSet<CallId>>);

/// Adds a call to the news.
struct Bell {
    call: CallId,
    news: Arc<News>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let mut news = self.news.0.lock().unwrap_or_else(PoisonError::into_inner);
        news.insert(self.call.clone());
    }
}

#[derive(Debug)]
struct Call {
    search: SearchId,
    server: ServerId,
    renewed: Duration,
    /// [`CallRenewal::from`] of the latest message.
    from: Index,
    waker: Waker,
    /// What the server has not confirmed.
    unconfirmed: Vec<Candidate>,
    /// The state of the search after these.
    checkpoint: Checkpoint,
    outcome: Option<Outcome>,
    /// The last step of the search. It is taken when the call ends: if something has to be tried
    /// again, that is later. A checkpoint without the outcome would not be enough to continue.
    last: Option<Advance>,
    /// What has to be tried again.
    retry: Retry,
    client: Client,
    query: Query,
}

impl Calls {
    /// Renews a call, or begins it with `begin`.
    pub(crate) fn renew<E>(
        &mut self,
        renewal: &CallRenewal,
        now: Duration,
        begin: impl FnOnce() -> Result<SearchId, E>,
    ) -> Result<(), E> {
        if let Some(call) = self.calls.get_mut(&renewal.call) {
            call.renewed = now;
            call.from = call.from.max(renewal.from);
            return Ok(());
        }
        let bell = Bell {
            call: renewal.call.clone(),
            news: Arc::clone(&self.news),
        };
        let call = Call {
            search: begin()?,
            server: renewal.server.clone(),
            renewed: now,
            from: renewal.from,
            waker: Arc::new(bell).into(),
            unconfirmed: Vec::new(),
            checkpoint: renewal.checkpoint.clone(),
            outcome: None,
            last: None,
            retry: Retry::default(),
            client: renewal.client.clone(),
            query: renewal.query.clone(),
        };
        self.calls.insert(renewal.call.clone(), call);
        Ok(())
    }

    /// Takes what is new of a call, forgets what its server has confirmed, and returns the rest,
    /// with the server.
    pub(crate) fn update(
        &mut self,
        call: &str,
        dispatcher: &mut Dispatcher,
    ) -> Option<(ServerId, CallUpdate)> {
        let call = self.calls.get_mut(call)?;
        call.confirm();
        let mut state = SearchState::Parked;
        if call.outcome.is_some() {
            state = SearchState::Ended;
        } else if call.last.is_some() {
            state = SearchState::Running;
        } else if call.unconfirmed.len() < MOST_UNCONFIRMED {
            let advance = dispatcher.advance(call.search, &call.waker)?;
            state = advance.progress.state;
            if advance.outcome.is_some() {
                call.last = Some(advance);
            } else {
                call.take(advance);
            }
        }
        if call.outcome.is_none() {
            let ended = call.last.as_ref().and_then(|last| last.outcome.as_ref());
            let outcome = call
                .retry
                .outcome(ended, call.checkpoint.frontier(), call.end());
            if let Some((outcome, hidden)) = outcome {
                state = SearchState::Ended;
                call.outcome = Some(outcome);
                if let Some(last) = call.last.take() {
                    call.take(last);
                }
                if let Some(hidden) = hidden {
                    call.end_at(hidden);
                }
            } else if call.last.is_some() {
                state = SearchState::Running;
            }
        }
        let update = CallUpdate {
            from: call.from,
            candidates: call.unconfirmed.clone(),
            checkpoint: call.checkpoint.clone(),
            outcome: call.outcome.clone(),
            state,
        };
        Some((call.server.clone(), update))
    }

    /// Returns the search of a call.
    pub(crate) fn search(&self, call: &str) -> Option<SearchId> {
        Some(self.calls.get(call)?.search)
    }

    /// Returns all searches of all calls, also those that have tried something again.
    pub(crate) fn searches(&self) -> HashSet<SearchId> {
        let of_call = |call: &Call| {
            let retries = call.retry.all().iter().copied();
            retries.chain([call.search]).collect::<Vec<_>>()
        };
        self.calls.values().flat_map(of_call).collect()
    }

    /// Returns all calls.
    pub(crate) fn all(&self) -> BTreeSet<CallId> {
        self.calls.keys().cloned().collect()
    }

    /// Returns the calls that may have news since the last time.
    pub(crate) fn take_updates(&mut self) -> BTreeSet<CallId> {
        let mut news = self.news.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut news)
    }

    /// Removes a call, and returns its searches.
    pub(crate) fn remove(&mut self, call: &str) -> Vec<SearchId> {
        let call = self.calls.remove(call);
        call.map(Call::into_searches).unwrap_or_default()
    }

    /// Has secrets tried again whose agent cannot be trusted, for the calls for which they counted.
    pub(crate) fn try_again(&mut self, covered: Vec<Covered>) {
        let calls = self
            .calls
            .values_mut()
            .filter(|call| call.outcome.is_none());
        let mut calls: Vec<&mut Call> = calls.collect();
        let mut places: HashMap<SearchId, usize> = HashMap::new();
        for (place, call) in calls.iter().enumerate() {
            places.insert(call.search, place);
            places.extend(call.retry.all().iter().map(|search| (*search, place)));
        }
        for (searches, range) in covered {
            for search in searches.iter() {
                if let Some(place) = places.get(search) {
                    calls[*place].retry.add(range.clone());
                }
            }
        }
    }

    /// Begins and continues the searches that try secrets again.
    pub(crate) fn tick(&mut self, dispatcher: &mut Dispatcher, now: Duration) {
        for (id, call) in &mut self.calls {
            let of = Of {
                client: &call.client,
                query: &call.query,
                waker: &call.waker,
                end: call.end(),
            };
            if call.retry.tick(dispatcher, of, now) {
                let mut news = self.news.0.lock().unwrap_or_else(PoisonError::into_inner);
                news.insert(id.clone());
            }
        }
    }

    /// Removes the calls that were not renewed, and returns their searches.
    pub(crate) fn expired(&mut self, now: Duration) -> Vec<SearchId> {
        let mut old = Vec::new();
        self.calls.retain(|_, call| {
            let is_old = now.saturating_sub(call.renewed) >= RENEWED_FOR;
            if is_old {
                old.push(call.search);
                old.extend(call.retry.searches());
            }
            !is_old
        });
        old
    }

    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }
}

impl Call {
    /// Takes what is new of the search.
    fn take(&mut self, advance: Advance) {
        let Advance {
            candidates,
            checkpoint,
            ..
        } = advance;
        self.unconfirmed.extend(candidates);
        self.checkpoint = if checkpoint.held().count() <= MOST_HELD_SENT {
            checkpoint
        } else {
            checkpoint.up_to_frontier()
        };
        // An old message may have begun the call, far below what has arrived since.
        self.confirm();
    }

    /// Returns one past the last index that matters.
    fn end(&self) -> Index {
        let last = self.last.as_ref().map(|last| &last.checkpoint);
        last.unwrap_or(&self.checkpoint).end()
    }

    /// Ends the call with an ideal hit that was hidden. What was found after it does not count.
    fn end_at(&mut self, hidden: Index) {
        self.unconfirmed.retain(|found| found.index < hidden);
        let ended = Checkpoint::restore(&self.query, Vec::new(), &[], hidden + 1);
        if let Ok(ended) = ended {
            self.checkpoint = ended;
        }
    }

    /// Forgets what the server has confirmed.
    fn confirm(&mut self) {
        self.unconfirmed.retain(|found| found.index >= self.from);
    }

    fn into_searches(self) -> Vec<SearchId> {
        let mut searches = vec![self.search];
        searches.extend(self.retry.searches());
        searches
    }
}

impl CallUpdate {
    /// Returns the index from which a server asks next, once it has this answer: everything below
    /// it has arrived.
    #[must_use]
    pub fn next(&self, before: Index) -> Index {
        let last = self.candidates.last();
        last.map_or(before, |last| last.index + 1)
    }
}

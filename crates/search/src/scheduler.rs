//! Which search is next, as a state machine without threads, clocks or locks.
//!
//! Searches take turns, one slice each. Everything that happens to a search goes through here, and
//! what has to happen outside of the lock as a consequence comes back as [`Effects`].

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use hashfinder_kernels::Filter;

use crate::{
    cursor::Cursor,
    engine::{Event, Outcome, Release, Report},
    keyspace::Index,
    query::{Candidate, Query},
    sweep::{QUEUE_LIMIT, RangeEnd, Sweep},
};

/// How long a slice should take. A stop costs at most one slice on each worker, and a search that
/// has just arrived waits for one at most; much shorter ones would spend their time being set up.
pub(crate) const SLICE_TIME: Duration = Duration::from_micros(500);

/// The first slice of a search, until its speed is known. Small, because many a search is over
/// within it.
const FIRST_SLICE: u64 = 1 << 10;

/// The shortest slice, so that one odd measurement does not drown a search in overhead.
const MIN_SLICE: u64 = 1 << 8;

/// The longest slice, whatever the clock says: at a thousand million secrets a second it still
/// takes no more than a quarter of a millisecond.
const MAX_SLICE: u64 = 1 << 18;

/// How many hits end a slice early, for a search that reports candidates. It bounds what a search
/// can hold beyond its queue.
const HITS_PER_SLICE: usize = 256;

const _: () = assert!(HITS_PER_SLICE <= QUEUE_LIMIT);

pub(crate) type SearchId = u64;

/// A slice for a worker to try.
pub(crate) struct Job {
    pub(crate) search: SearchId,
    pub(crate) slice: Range<Index>,
    pub(crate) filter: Arc<Filter>,
    pub(crate) hit_limit: usize,
    /// Set when the search has been told to stop; looked at once, before the slice begins.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) began: Duration,
}

/// What became of a job.
pub(crate) enum Done {
    /// Every index of the slice below `tried` was tried.
    Tried { tried: Index, hits: Vec<Candidate> },
    /// The backend panicked.
    Panicked,
}

/// What the caller does once it has let go of the lock.
#[derive(Default)]
#[must_use]
pub(crate) struct Effects {
    pub(crate) wake: Option<Waker>,
    /// A waker that is not needed any more; dropping one may run anything.
    pub(crate) stale: Option<Waker>,
    pub(crate) released: Option<(Release, Report)>,
    /// There may be work for a worker that found none before.
    pub(crate) work: bool,
}

#[derive(Default)]
pub(crate) struct Scheduler {
    searches: HashMap<SearchId, Entry>,
    /// Searches that may have a slice to give out, each at most once, the next one in front.
    turns: VecDeque<SearchId>,
    next_id: SearchId,
}

struct Entry {
    sweep: Sweep,
    filter: Arc<Filter>,
    hit_limit: usize,
    stop: Arc<AtomicBool>,
    /// When the search was told to stop, and why it ends.
    stopped: Option<(Duration, Stop)>,
    in_turns: bool,
    /// How many workers are on one of its slices.
    workers: usize,
    slice_length: u64,
    hashes: u64,
    /// Set once nothing can change it any more.
    outcome: Option<Outcome>,
    on_release: Option<Release>,
    reader: Option<(Waker, usize)>,
    /// Whether the handle is gone, so that nobody will ask for the outcome.
    abandoned: bool,
}

#[derive(Clone, Copy)]
enum Stop {
    Asked,
    Panicked,
}

impl Scheduler {
    pub(crate) fn submit(&mut self, query: Query, on_release: Release) -> (SearchId, Effects) {
        let id = self.next_id;
        self.next_id += 1;
        let mut entry = Entry {
            filter: Arc::new(query.filter()),
            hit_limit: if query.reports_candidates() {
                HITS_PER_SLICE
            } else {
                // The first hit is the answer.
                1
            },
            sweep: Sweep::new(query),
            stop: Arc::new(AtomicBool::new(false)),
            stopped: None,
            in_turns: false,
            workers: 0,
            slice_length: FIRST_SLICE,
            hashes: 0,
            outcome: None,
            on_release: Some(on_release),
            reader: None,
            abandoned: false,
        };
        // An empty range, from a cursor at the very end, ends before it begins.
        let mut effects = entry.settle(Duration::ZERO);
        if entry.outcome.is_none() {
            entry.in_turns = true;
            self.turns.push_back(id);
            effects.work = true;
        }
        self.searches.insert(id, entry);
        (id, effects)
    }

    /// The next slice of the search whose turn it is.
    pub(crate) fn next_job(&mut self, now: Duration) -> Option<Job> {
        while let Some(id) = self.turns.pop_front() {
            let Some(entry) = self.searches.get_mut(&id) else {
                continue;
            };
            entry.in_turns = false;
            let Some(slice) = entry.take() else { continue };
            entry.workers += 1;
            let job = Job {
                search: id,
                slice,
                filter: Arc::clone(&entry.filter),
                hit_limit: entry.hit_limit,
                stop: Arc::clone(&entry.stop),
                began: now,
            };
            self.queue_turn(id);
            return Some(job);
        }
        None
    }

    /// Takes a job back.
    pub(crate) fn finish(&mut self, job: Job, done: Done, now: Duration) -> Effects {
        let Some(entry) = self.searches.get_mut(&job.search) else {
            return Effects::default();
        };
        entry.workers -= 1;
        match done {
            Done::Tried { tried, hits } => {
                entry.adapt(&job, tried, now);
                entry.hashes += tried - job.slice.start;
                entry.sweep.finish(job.slice, tried, hits);
            }
            Done::Panicked => entry.stop(now, Stop::Panicked),
        }
        let mut effects = entry.settle(now);
        effects.work = self.queue_turn(job.search);
        self.forget(job.search);
        effects
    }

    /// Tells a search to stop. Its cores are free once the slices that are being tried have come
    /// back; without any, at once. A search that has ended stays as it ended.
    pub(crate) fn stop(&mut self, id: SearchId, now: Duration) -> Effects {
        let Some(entry) = self.searches.get_mut(&id) else {
            return Effects::default();
        };
        entry.stop(now, Stop::Asked);
        entry.settle(now)
    }

    /// Stops a search whose handle is gone, and forgets it when its last worker has let go.
    pub(crate) fn abandon(&mut self, id: SearchId, now: Duration) -> Effects {
        let mut effects = self.stop(id, now);
        if let Some(entry) = self.searches.get_mut(&id) {
            entry.abandoned = true;
            effects.stale = entry.reader.take().map(|(waker, _)| waker);
        }
        self.forget(id);
        effects
    }

    /// Stops every search.
    pub(crate) fn stop_all(&mut self, now: Duration) -> Vec<Effects> {
        let ids: Vec<SearchId> = self.searches.keys().copied().collect();
        ids.into_iter().map(|id| self.stop(id, now)).collect()
    }

    /// The reader's turn: candidates, when `at_least` of them are there or no more will come, then
    /// the end. Until then `waker` is kept, to be woken once.
    pub(crate) fn poll(
        &mut self,
        id: SearchId,
        at_least: usize,
        waker: &Waker,
    ) -> (Poll<Event>, Effects) {
        let mut effects = Effects::default();
        let Some(entry) = self.searches.get_mut(&id) else {
            // The handle is what keeps the entry, and the handle asks.
            unreachable!("search {id} was forgotten before its handle was dropped");
        };
        if entry.may_tell(at_least) {
            let candidates = entry.sweep.drain();
            effects.work = self.queue_turn(id);
            return (Poll::Ready(Event::Candidates(candidates)), effects);
        }
        if let Some(outcome) = &entry.outcome {
            return (Poll::Ready(Event::Ended(outcome.clone())), effects);
        }
        let stale = entry.reader.replace((waker.clone(), at_least));
        effects.stale = stale.map(|(waker, _)| waker);
        (Poll::Pending, effects)
    }

    /// How far a search has come.
    pub(crate) fn frontier(&self, id: SearchId) -> Option<Index> {
        Some(self.searches.get(&id)?.sweep.frontier())
    }

    /// Gives a search a turn if it has a slice to give out; says whether it has.
    fn queue_turn(&mut self, id: SearchId) -> bool {
        match self.searches.get_mut(&id) {
            Some(entry) if entry.has_work() => {
                if !entry.in_turns {
                    entry.in_turns = true;
                    self.turns.push_back(id);
                }
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, id: SearchId) {
        if let Some(entry) = self.searches.get(&id)
            && entry.abandoned
            && entry.on_release.is_none()
        {
            self.searches.remove(&id);
        }
    }
}

impl Entry {
    fn has_work(&self) -> bool {
        self.outcome.is_none() && self.stopped.is_none() && self.sweep.next_start().is_some()
    }

    fn take(&mut self) -> Option<Range<Index>> {
        if self.has_work() {
            self.sweep.take(self.slice_length)
        } else {
            None
        }
    }

    /// Sizes the next slice from how long this one took.
    fn adapt(&mut self, job: &Job, tried: Index, now: Duration) {
        let count = tried - job.slice.start;
        let length = self.slice_length;
        self.slice_length = if tried < job.slice.end {
            // So dense are the hits that a longer slice only comes back sooner.
            count
        } else {
            let took = now.saturating_sub(job.began).as_nanos().max(1);
            let wanted = u128::from(count) * SLICE_TIME.as_nanos() / took;
            // By a factor of two at a time: one slice during which the system had something else
            // to do says little.
            u64::try_from(wanted)
                .unwrap_or(MAX_SLICE)
                .clamp(length / 2, length * 2)
        }
        .clamp(MIN_SLICE, MAX_SLICE);
    }

    fn stop(&mut self, now: Duration, why: Stop) {
        if self.outcome.is_none() && self.stopped.is_none() {
            self.stopped = Some((now, why));
            // Nothing is published by this but the wish itself.
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn may_tell(&self, at_least: usize) -> bool {
        let queued = self.sweep.queued();
        queued > 0 && (queued >= at_least.min(QUEUE_LIMIT) || self.outcome.is_some())
    }

    /// Draws the consequences of whatever has just happened.
    fn settle(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.outcome.is_none() {
            self.outcome = self.conclude();
        }
        if let Some(outcome) = &self.outcome
            && self.workers == 0
            && let Some(release) = self.on_release.take()
        {
            let stopped = self.stopped.map(|(when, _)| now.saturating_sub(when));
            effects.released = Some((
                release,
                Report {
                    outcome: outcome.clone(),
                    hashes: self.hashes,
                    stop_latency: stopped,
                },
            ));
        }
        let at_least = self.reader.as_ref().map(|(_, at_least)| *at_least);
        if at_least.is_some_and(|at_least| self.outcome.is_some() || self.may_tell(at_least)) {
            effects.wake = self.reader.take().map(|(waker, _)| waker);
        }
        effects
    }

    /// How the search has ended, if it has.
    fn conclude(&self) -> Option<Outcome> {
        let cursor = || Cursor::new(self.sweep.query(), self.sweep.frontier());
        if let Some(end) = self.sweep.ended() {
            return Some(match end {
                RangeEnd::Ideal(candidate) => Outcome::Ideal(candidate),
                RangeEnd::Keyspace => Outcome::Exhausted,
                RangeEnd::Budget => Outcome::BudgetSpent(cursor()),
            });
        }
        let (_, why) = self.stopped?;
        // What the workers still bring back belongs to the frontier that the cursor tells.
        (self.workers == 0).then(|| match why {
            Stop::Asked => Outcome::Cancelled(cursor()),
            Stop::Panicked => Outcome::Failed(cursor()),
        })
    }
}

#[cfg(test)]
mod tests;

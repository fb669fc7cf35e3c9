//! A search in this process.

use std::{
    collections::VecDeque,
    num::{NonZeroU64, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{self, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hashfinder_search::{
    Candidate, Client, Cursor, Distance, Engine, Event, Index, Kernel, Outcome, Query, Search,
};
use hashfinder_system::{running_time::Stopwatch, threads::NO_THREAD};

use super::{
    finding::Finding,
    rate::{hashes, summarize},
    source::{SearchEnd, SearchEvent, Source, Stopper},
    status::Status,
};

/// Maximum share of secrets that the engine reports to keep track of the nearest one so far. One in
/// ten thousand has no measurable cost, and the first one is found soon.
const NEAR_AT_MOST: f64 = 1e-4;

pub(super) struct LocalSearch {
    /// The search under way. After an answer that is not the last, another search begins at the
    /// next secret.
    search: Search,
    /// The query of the command, which cursors hold.
    query: Query,
    /// The query of the engine. It also reports secrets that are not near enough to be printed, to
    /// keep track of the nearest one so far.
    watched: Query,
    /// Hash budget of all searches together.
    budget: Option<NonZeroU64>,
    /// Number of answers that are still wanted.
    wanted: u64,
    /// Index at which to continue after an answer.
    next: Option<Index>,
    /// Queries to search after this one; each begins where the one before it ends.
    later: VecDeque<Query>,
    /// Whether the end of the search under way was reported.
    ended: bool,
    stop: Arc<Mutex<Stop>>,
    pending: VecDeque<Candidate>,
    stopwatch: Arc<Stopwatch>,
    took: Duration,
    kernel: Kernel,
    /// The threads that search. They end when this value is dropped.
    engine: Engine,
}

/// State shared with stoppers: whether a stop was requested (no other search may then begin), and
/// the stopper of the search under way.
struct Stop {
    requested: bool,
    stopper: hashfinder_search::Stopper,
}

impl LocalSearch {
    /// Begins a search that ends with the last of `wanted` answers. `threads` is one for each core
    /// by default. If the system allows only some of them, searches with those and prints a note.
    pub(super) fn start(
        query: &Query,
        wanted: u64,
        threads: Option<NonZeroUsize>,
        kernel: Option<Kernel>,
        status: &Status,
    ) -> Result<LocalSearch> {
        let threads = threads.or_else(|| thread::available_parallelism().ok());
        let (began, stopwatch) = (Instant::now(), Stopwatch::start());
        let threads = threads.map_or(1, usize::from);
        let kernel = kernel.unwrap_or_else(Kernel::best);
        let engine = Engine::start(threads, kernel, move || began.elapsed()).context(NO_THREAD)?;
        if engine.workers() < threads {
            status.say(format_args!(
                "searching with {} of {threads} threads: the system allows no more (see ulimit -u)",
                engine.workers()
            ));
        }
        let interesting = query.interesting_distance().max(near(query));
        let watched = query.clone().interesting(interesting);
        let search = engine.search(Client::default(), watched.clone(), |_| ())?;
        let stop = Stop {
            requested: false,
            stopper: search.stopper(),
        };
        Ok(LocalSearch {
            search,
            query: query.clone(),
            watched,
            budget: query.budget(),
            wanted,
            next: None,
            later: VecDeque::new(),
            ended: false,
            stop: Arc::new(Mutex::new(stop)),
            pending: VecDeque::new(),
            stopwatch,
            took: Duration::ZERO,
            kernel,
            engine,
        })
    }

    /// Sets the queries that are searched after this one: each when the budget of the one before it
    /// is spent without an answer. Each begins at the index at which the one before it ends.
    /// Otherwise they differ only in the prefix and the suffix of their secrets.
    pub(super) fn then(mut self, later: impl IntoIterator<Item = Query>) -> LocalSearch {
        self.later = later.into_iter().collect();
        self
    }

    /// Begins the query that follows one whose budget is spent. Returns the end of the search
    /// instead if a stop was requested.
    fn begin_next_query(&mut self, query: &Query) -> Result<Option<SearchEnd>> {
        // `self.query` keeps the start of the command's first query.
        self.query = query.clone().starting_at(self.query.start());
        self.watched = query
            .clone()
            .interesting(self.watched.interesting_distance());
        self.begin(self.watched.clone())
    }

    /// Begins the search for the next answer. Returns the end of the search instead if its budget
    /// is spent or a stop was requested.
    fn continue_from(&mut self, from: Index) -> Result<Option<SearchEnd>> {
        let mut query = self.watched.clone().starting_at(from);
        if let Some(budget) = self.budget {
            let left = budget.get() - (from - self.query.start());
            let Some(left) = NonZeroU64::new(left) else {
                return Ok(Some(self.budget_spent(from)));
            };
            query = query.hash_budget(left);
        }
        self.begin(query)
    }

    /// Begins another search. Returns the end instead if a stop was requested.
    fn begin(&mut self, query: Query) -> Result<Option<SearchEnd>> {
        // The lock is held throughout. Otherwise a stopper could stop the old search after the new
        // one has begun.
        let mut stop = lock(&self.stop);
        if stop.requested {
            let cursor = Cursor::new(&self.query, query.start());
            return Ok(Some(SearchEnd::Stopped(cursor)));
        }
        self.search = self.engine.search(Client::default(), query, |_| ())?;
        stop.stopper = self.search.stopper();
        self.ended = false;
        Ok(None)
    }

    fn end(&mut self, outcome: Outcome) -> SearchEvent {
        self.ended = true;
        let again = |cursor: Cursor| Cursor::new(&self.query, cursor.frontier());
        let end = match outcome {
            Outcome::Ideal(candidate) if self.wanted > 1 => {
                self.wanted -= 1;
                self.next = Some(candidate.index + 1);
                return SearchEvent::Answer(self.found(candidate));
            }
            Outcome::Ideal(candidate) => SearchEnd::Found(self.found(candidate)),
            Outcome::Exhausted => SearchEnd::Exhausted,
            Outcome::BudgetSpent(cursor) => self.budget_spent(cursor.frontier()),
            Outcome::Stopped(cursor) => SearchEnd::Stopped(again(cursor)),
            Outcome::Failed(cursor) => {
                SearchEnd::Failed("the search failed".to_owned(), again(cursor))
            }
            Outcome::QuotaSpent { .. } => unreachable!("a search on this machine has no quota"),
        };
        self.took = self.stopwatch.elapsed();
        SearchEvent::Ended(end)
    }

    fn found(&self, candidate: Candidate) -> Finding {
        Finding::new(&self.query, candidate)
    }

    fn budget_spent(&self, frontier: Index) -> SearchEnd {
        let tried = frontier - self.query.start();
        let why = format!("hash budget spent after {}", hashes(tried));
        SearchEnd::Limit(why, Cursor::new(&self.query, frontier))
    }
}

fn lock(stop: &Mutex<Stop>) -> MutexGuard<'_, Stop> {
    stop.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the greatest interesting distance at which the engine reports at most [`NEAR_AT_MOST`]
/// of all secrets, to keep track of the nearest one so far.
fn near(query: &Query) -> Distance {
    let is_rare = |near: &Distance| query.clone().interesting(*near).hit_rate() <= NEAR_AT_MOST;
    let nearer = (1..=Distance::MAX.get()).map(Distance::from);
    nearer.take_while(is_rare).last().unwrap_or(Distance::ZERO)
}

impl Source for LocalSearch {
    async fn next(&mut self) -> Result<SearchEvent> {
        loop {
            if let Some(candidate) = self.pending.pop_front() {
                return Ok(SearchEvent::Candidate(self.found(candidate)));
            }
            if let Some(from) = self.next.take()
                && let Some(end) = self.continue_from(from)?
            {
                self.took = self.stopwatch.elapsed();
                return Ok(SearchEvent::Ended(end));
            }
            match self.search.next().await {
                Event::Candidates(candidates) => self.pending = candidates.into(),
                Event::Ended(Outcome::BudgetSpent(_)) if !self.later.is_empty() => {
                    if let Some(query) = self.later.pop_front()
                        && let Some(end) = self.begin_next_query(&query)?
                    {
                        self.took = self.stopwatch.elapsed();
                        return Ok(SearchEvent::Ended(end));
                    }
                }
                Event::Ended(outcome) => return Ok(self.end(outcome)),
            }
        }
    }

    fn stopper(&self) -> Stopper {
        let stop = Arc::clone(&self.stop);
        Box::new(move || {
            let mut stop = lock(&stop);
            stop.requested = true;
            stop.stopper.stop();
        })
    }

    fn frontier(&mut self) -> Option<Index> {
        // The frontier is read before the queue: whatever is found from now on lies beyond it.
        let frontier = self.search.frontier();
        let mut unreported = self.pending.front().map(|candidate| candidate.index);
        if unreported.is_none() {
            // This replaces the task's waker in the engine. `next` restores it, because it is
            // called again before the task waits.
            let mut context = task::Context::from_waker(Waker::noop());
            match self.search.poll_next(&mut context, 1) {
                Poll::Ready(Event::Candidates(candidates)) => {
                    self.pending = candidates.into();
                    unreported = self.pending.front().map(|candidate| candidate.index);
                }
                // The answer lies below the frontier of a search that has ended with it.
                Poll::Ready(Event::Ended(Outcome::Ideal(answer))) if !self.ended => {
                    unreported = Some(answer.index);
                }
                _ => {}
            }
        }
        Some(unreported.map_or(frontier, |index| frontier.min(index)))
    }

    fn elapsed(&self) -> Duration {
        self.stopwatch.elapsed()
    }

    fn summary(&self) -> Option<String> {
        let tried = self.search.frontier() - self.query.start();
        let means = self.query.matcher().hashed_by(self.kernel);
        Some(summarize(tried, self.took, &means))
    }

    fn resumes_at(&self) -> Option<&str> {
        None
    }

    async fn close(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session stores the frontier: a secret below it that was not reported would be lost.
    #[tokio::test]
    async fn nothing_is_reported_below_a_frontier() {
        let query = Query::new("docto".parse().unwrap(), Distance::ZERO).unwrap();
        let query = query.interesting(Distance::from(4));
        let search = LocalSearch::start(&query, 3, NonZeroUsize::new(2), None, &Status::new(true));
        let mut search = search.unwrap();
        let (mut frontier, mut reported) = (0, 0);
        let last = loop {
            let finding = match search.next().await.unwrap() {
                SearchEvent::Candidate(finding) | SearchEvent::Answer(finding) => finding,
                SearchEvent::Ended(SearchEnd::Found(finding)) => break finding,
                SearchEvent::Ended(_) => panic!("there are three"),
            };
            let index = query.keyspace().index_of(&finding.secret).unwrap();
            assert!(frontier <= index, "{index} was reported after {frontier}");
            frontier = search.frontier().unwrap();
            assert!(index < frontier, "{index} was reported, and comes again");
            reported += 1;
        };
        assert!(reported > 1000);
        let index = query.keyspace().index_of(&last.secret).unwrap();
        assert!(frontier <= index);
        assert_eq!(search.frontier(), Some(index + 1));
    }

    #[test]
    fn near_candidates_are_rare_but_not_too_rare() {
        // One secret in 240,000 is at distance 1 of six letters: 23 * 6 * 32^-5. One in 3,000 is at
        // distance 2: 23 * 15 * 32^-4.
        for (length, near) in [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 5), (27, 21)] {
            let name = "hashfinderhashfinderhashfic="[..length].parse().unwrap();
            let query = Query::new(name, Distance::ZERO).unwrap();
            assert_eq!(super::near(&query), Distance::from(near), "{length}");
        }
    }
}

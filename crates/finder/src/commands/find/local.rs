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
    StopCause,
};

use super::{
    finding::Finding,
    rate::summary_of,
    source::{Ending, Source, Stopper, Told},
    status::Status,
};
use crate::{clock::Stopwatch, threads::NO_THREAD};

/// How many secrets, at most, are worth remembering as the nearest so far: one in ten thousand costs
/// nothing that could be measured, and comes up soon.
const NEAR_AT_MOST: f64 = 1e-4;

pub(super) struct LocalSearch {
    /// The one under way: after an answer that is not the last, another begins at the next secret.
    search: Search,
    /// What was asked for, as the cursor has to tell it.
    query: Query,
    /// What the engine is asked for: some more, so that there is a nearest.
    watched: Query,
    /// The budget of all searches together.
    budget: Option<NonZeroU64>,
    /// How many answers are still wanted.
    wanted: u64,
    /// Where to go on after an answer.
    next: Option<Index>,
    /// What is searched after this query, each for where the one before ends.
    later: VecDeque<Query>,
    /// Whether the end of the one under way was told.
    ended: bool,
    stop: Arc<Mutex<Stop>>,
    pending: VecDeque<Candidate>,
    stopwatch: Arc<Stopwatch>,
    took: Duration,
    kernel: Kernel,
    /// Threads that search, until the search is dropped.
    engine: Engine,
}

/// What a stopper needs: the search that is under way, and whether another may begin.
struct Stop {
    requested: bool,
    stopper: hashfinder_search::Stopper,
}

impl LocalSearch {
    /// Begins it; it ends with the last of as many answers as are wanted. If the system gives fewer threads than
    /// `threads`, it searches with those and says so.
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
                "only {} of {threads} threads search: the system gives no more (ulimit -u)",
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

    /// Goes on with these queries, one after another, where the budget of the one before is spent in
    /// vain. They differ in nothing but what stands around the searched part of their secrets, and each
    /// begins at the index at which the one before ends.
    pub(super) fn then(mut self, later: impl IntoIterator<Item = Query>) -> LocalSearch {
        self.later = later.into_iter().collect();
        self
    }

    /// Begins with what comes after a query that had its budget, or tells why not.
    fn begin_later(&mut self, query: &Query) -> Result<Option<Ending>> {
        // What was asked for still began where it did.
        self.query = query.clone().starting_at(self.query.start());
        self.watched = query
            .clone()
            .interesting(self.watched.interesting_distance());
        self.begin(self.watched.clone())
    }

    /// Begins the search for the next answer, or tells why there is none.
    fn go_on(&mut self, from: Index) -> Result<Option<Ending>> {
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

    /// Begins another search, unless it was stopped.
    fn begin(&mut self, query: Query) -> Result<Option<Ending>> {
        // Held throughout, so that nobody stops the old search when the new one has begun.
        let mut stop = lock(&self.stop);
        if stop.requested {
            let cursor = Cursor::new(&self.query, query.start());
            return Ok(Some(Ending::Stopped(cursor)));
        }
        self.search = self.engine.search(Client::default(), query, |_| ())?;
        stop.stopper = self.search.stopper();
        self.ended = false;
        Ok(None)
    }

    fn end(&mut self, outcome: Outcome) -> Told {
        self.ended = true;
        let again = |cursor: Cursor| Cursor::new(&self.query, cursor.frontier());
        let ending = match outcome {
            Outcome::Ideal(candidate) if self.wanted > 1 => {
                self.wanted -= 1;
                self.next = Some(candidate.index + 1);
                return Told::Answer(self.found(candidate));
            }
            Outcome::Ideal(candidate) => Ending::Found(self.found(candidate)),
            Outcome::Exhausted => Ending::Exhausted,
            Outcome::BudgetSpent(cursor) => self.budget_spent(cursor.frontier()),
            Outcome::Cancelled { cursor, .. } => Ending::Stopped(again(cursor)),
            Outcome::Failed(cursor) => {
                Ending::Failed("the search failed".to_owned(), again(cursor))
            }
            other => unreachable!("an outcome that this version does not know: {other:?}"),
        };
        self.took = self.stopwatch.elapsed();
        Told::Ended(ending)
    }

    fn found(&self, candidate: Candidate) -> Finding {
        Finding::new(&self.query, candidate)
    }

    fn budget_spent(&self, frontier: Index) -> Ending {
        let tried = frontier - self.query.start();
        let why = format!("the hash budget is spent; hashes tried: {tried}");
        Ending::Limit(why, Cursor::new(&self.query, frontier))
    }
}

fn lock(stop: &Mutex<Stop>) -> MutexGuard<'_, Stop> {
    stop.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The greatest interesting distance under which no more than [`NEAR_AT_MOST`] of all secrets are, for
/// somebody who stops the search without an answer.
fn near(query: &Query) -> Distance {
    let is_rare = |near: &Distance| query.clone().interesting(*near).hit_rate() <= NEAR_AT_MOST;
    let nearer = (1..=Distance::MAX.get()).map(Distance::from);
    nearer.take_while(is_rare).last().unwrap_or(Distance::ZERO)
}

impl Source for LocalSearch {
    async fn next(&mut self) -> Result<Told> {
        loop {
            if let Some(candidate) = self.pending.pop_front() {
                return Ok(Told::Candidate(self.found(candidate)));
            }
            if let Some(from) = self.next.take()
                && let Some(ending) = self.go_on(from)?
            {
                self.took = self.stopwatch.elapsed();
                return Ok(Told::Ended(ending));
            }
            match self.search.next().await {
                Event::Candidates(candidates) => self.pending = candidates.into(),
                Event::Ended(Outcome::BudgetSpent(_)) if !self.later.is_empty() => {
                    if let Some(query) = self.later.pop_front()
                        && let Some(ending) = self.begin_later(&query)?
                    {
                        self.took = self.stopwatch.elapsed();
                        return Ok(Told::Ended(ending));
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
            stop.stopper.stop(StopCause::Client);
        })
    }

    fn frontier(&mut self) -> Option<Index> {
        // Before the queue is looked at: what is found from now on lies beyond it.
        let frontier = self.search.frontier();
        let mut untold = self.pending.front().map(|candidate| candidate.index);
        if untold.is_none() {
            // `next` is called again before anybody waits, and leaves a waker that wakes.
            let mut nobody = task::Context::from_waker(Waker::noop());
            match self.search.poll_next(&mut nobody, 1) {
                Poll::Ready(Event::Candidates(candidates)) => {
                    self.pending = candidates.into();
                    untold = self.pending.front().map(|candidate| candidate.index);
                }
                // The answer lies below the frontier of a search that has ended with it.
                Poll::Ready(Event::Ended(Outcome::Ideal(answer))) if !self.ended => {
                    untold = Some(answer.index);
                }
                _ => {}
            }
        }
        Some(untold.map_or(frontier, |index| frontier.min(index)))
    }

    fn elapsed(&self) -> Duration {
        self.stopwatch.elapsed()
    }

    fn summary(&self) -> Option<String> {
        let tried = self.search.frontier() - self.query.start();
        let means = self.query.sought().hashed_by(self.kernel);
        Some(summary_of(tried, self.took, &means))
    }

    fn resumes_at(&self) -> Option<&str> {
        None
    }

    async fn close(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a session is written by: a frontier beyond something that was not told would lose it.
    #[tokio::test]
    async fn nothing_is_told_that_lies_below_a_frontier() {
        let query = Query::new("docto".parse().unwrap(), Distance::ZERO).unwrap();
        let query = query.interesting(Distance::from(4));
        let search = LocalSearch::start(&query, 3, NonZeroUsize::new(2), None, &Status::new(true));
        let mut search = search.unwrap();
        let (mut frontier, mut told) = (0, 0);
        let last = loop {
            let finding = match search.next().await.unwrap() {
                Told::Candidate(finding) | Told::Answer(finding) => finding,
                Told::Ended(Ending::Found(finding)) => break finding,
                Told::Ended(_) => panic!("there are three"),
            };
            let index = query.keyspace().index_of(&finding.secret).unwrap();
            assert!(frontier <= index, "{index} was told after {frontier}");
            frontier = search.frontier().unwrap();
            assert!(index < frontier, "{index} was told, and comes again");
            told += 1;
        };
        assert!(told > 1000);
        let index = query.keyspace().index_of(&last.secret).unwrap();
        assert!(frontier <= index);
        assert_eq!(search.frontier(), Some(index + 1));
    }

    #[test]
    fn near_is_rare_and_not_too_rare() {
        // One in 23 * 6 * 32^-5 = 2.4 million is at distance 1 of six letters, and one in
        // 23 * 15 * 32^-4 = 3,000 at distance 2.
        for (length, near) in [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 5), (27, 21)] {
            let name = "hashfinderhashfinderhashfic="[..length].parse().unwrap();
            let query = Query::new(name, Distance::ZERO).unwrap();
            assert_eq!(super::near(&query), Distance::from(near), "{length}");
        }
    }
}

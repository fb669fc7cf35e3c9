//! A search in this process.

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hashfinder_search::{
    Candidate, Cursor, Distance, Engine, Event, Kernel, Outcome, Query, Search,
};

use super::{Ending, Source, Stopper, Told};
use crate::cli::FindArguments;

/// How far beyond the ideal distance a candidate is still worth remembering, for somebody who
/// stops the search without an answer. At two, a few secrets in ten thousand are near to a name of
/// six letters, which costs nothing that could be measured.
const NEAR: u8 = 2;

pub(super) struct LocalSearch {
    search: Search,
    /// What was asked for, as the cursor has to tell it.
    query: Query,
    pending: VecDeque<Candidate>,
    began: Instant,
    took: Duration,
    /// Threads that search, until the search is dropped.
    _engine: Engine,
}

impl LocalSearch {
    pub(super) fn start(query: &Query, arguments: &FindArguments) -> Result<LocalSearch> {
        let threads = arguments
            .threads
            .or_else(|| thread::available_parallelism().ok());
        let began = Instant::now();
        let threads = threads.map_or(1, usize::from);
        let engine = Engine::start(threads, Kernel::best(), move || began.elapsed())
            .context("cannot start the search threads")?;
        // One more than the farthest distance, because interesting means less than it.
        let near = Distance::from(query.ideal_distance().get().saturating_add(NEAR + 1));
        let watched = query
            .clone()
            .interesting(query.interesting_distance().max(near));
        Ok(LocalSearch {
            search: engine.search(watched, |_| ()),
            query: query.clone(),
            pending: VecDeque::new(),
            began,
            took: Duration::ZERO,
            _engine: engine,
        })
    }

    fn end(&mut self, outcome: Outcome) -> Ending {
        self.took = self.began.elapsed();
        let again = |cursor: Cursor| Cursor::new(&self.query, cursor.frontier());
        match outcome {
            Outcome::Ideal(candidate) => Ending::Found(candidate.into()),
            Outcome::Exhausted => Ending::Exhausted,
            Outcome::BudgetSpent(cursor) => {
                let tried = cursor.frontier() - self.query.start();
                let why = format!("the hash budget is spent: {tried} secrets were tried");
                Ending::Limit(why, again(cursor))
            }
            Outcome::Cancelled(cursor) => Ending::Stopped(again(cursor)),
            Outcome::Failed(cursor) => {
                Ending::Failed("the search failed".to_owned(), again(cursor))
            }
            other => unreachable!("an outcome that this version does not know: {other:?}"),
        }
    }
}

impl Source for LocalSearch {
    async fn next(&mut self) -> Result<Told> {
        loop {
            if let Some(candidate) = self.pending.pop_front() {
                return Ok(Told::Candidate(candidate.into()));
            }
            match self.search.next().await {
                Event::Candidates(candidates) => self.pending = candidates.into(),
                Event::Ended(outcome) => return Ok(Told::Ended(self.end(outcome))),
            }
        }
    }

    fn stopper(&self) -> Stopper {
        let stopper = self.search.stopper();
        Box::new(move || stopper.stop())
    }

    fn summary(&self) -> Option<String> {
        let tried = self.search.frontier() - self.query.start();
        let millions = tried as f64 / self.took.as_secs_f64().max(1e-9) / 1e6;
        let took = self.took;
        Some(format!(
            "{tried} secrets in {took:.2?}, {millions:.1} million a second"
        ))
    }

    async fn close(self) {}
}

//! A search in this process.

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hashfinder_search::{
    Candidate, Client, Cursor, DesiredName, Distance, Engine, Event, Kernel, Outcome, Query,
    Search, StopCause,
};

use super::{Ending, Source, Stopper, Told};
use crate::cli::FindArguments;

/// How many secrets, at most, are worth remembering as the nearest so far: one in ten thousand costs
/// nothing that could be measured, and comes up soon.
const NEAR_AT_MOST: f64 = 1e-4;

pub(super) struct LocalSearch {
    search: Search,
    /// What was asked for, as the cursor has to tell it.
    query: Query,
    pending: VecDeque<Candidate>,
    began: Instant,
    took: Duration,
    kernel: Kernel,
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
        let kernel = arguments.kernel.unwrap_or_else(Kernel::best);
        let engine = Engine::start(threads, kernel, move || began.elapsed())
            .context("cannot start the search threads")?;
        let near = near(query.name().character_count());
        let watched = query
            .clone()
            .interesting(query.interesting_distance().max(near));
        Ok(LocalSearch {
            search: engine.search(Client::default(), watched, |_| ())?,
            query: query.clone(),
            pending: VecDeque::new(),
            began,
            took: Duration::ZERO,
            kernel,
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
                let why = format!("the hash budget is spent; secrets tried: {tried}");
                Ending::Limit(why, again(cursor))
            }
            Outcome::Cancelled { cursor, .. } => Ending::Stopped(again(cursor)),
            Outcome::Failed(cursor) => {
                Ending::Failed("the search failed".to_owned(), again(cursor))
            }
            other => unreachable!("an outcome that this version does not know: {other:?}"),
        }
    }
}

/// The greatest interesting distance under which about [`NEAR_AT_MOST`] of all secrets are, for
/// somebody who stops the search without an answer.
///
/// A letter agrees with one digit in 32, both of its cases being right. A window is at distance `d`
/// if the other characters agree, in any of the ways to choose them. The sum over the windows is
/// good enough here.
fn near(length: usize) -> Distance {
    let windows = (DesiredName::MAX_LEN + 1 - length) as f64;
    let mut ways = 1.0;
    for agreeing in (0..=length).rev() {
        let share = windows * ways / 32_f64.powi(agreeing as i32);
        if share > NEAR_AT_MOST {
            // Interesting means less than this.
            return Distance::from((length - agreeing) as u8);
        }
        ways *= agreeing as f64 / (length - agreeing + 1) as f64;
    }
    Distance::MAX
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
        Box::new(move || stopper.stop(StopCause::Client))
    }

    fn summary(&self) -> Option<String> {
        let tried = self.search.frontier() - self.query.start();
        let millions = tried as f64 / self.took.as_secs_f64().max(1e-9) / 1e6;
        let (took, kernel) = (self.took, self.kernel.name());
        Some(format!(
            "{tried} secrets in {took:.2?}, {millions:.1} million a second ({kernel})"
        ))
    }

    async fn close(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_rare_and_not_too_rare() {
        // One in 23 * 6 * 32^-5 = 2.4 million is at distance 1 of six letters, and one in
        // 23 * 15 * 32^-4 = 3,000 at distance 2.
        for (length, near) in [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 5), (28, 22)] {
            assert_eq!(super::near(length), Distance::from(near), "{length}");
        }
    }
}

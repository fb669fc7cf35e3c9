//! Tries secrets again whose agent was caught lying.
//!
//! What such an agent has reported as tried may hide hits. Other searches try these secrets again,
//! beside that of the call. The call ends after the last of them. Its outcome is then correct: if
//! an ideal hit was hidden, it is that one. Candidates that are not ideal, and that the agent has
//! hidden, are not reported: later ones have been.

use std::{ops::Range, task::Waker, time::Duration};

use hashfinder_search::{
    Candidate, Checkpoint, Client, Dispatcher, Index, MAX_RANGES, Outcome, Query, SearchId,
};

/// Maximum number of searches of a call that try secrets again at the same time.
const MOST_AT_ONCE: usize = 16;

/// What has to be tried again for a call.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    /// What no search tries yet.
    ranges: Vec<Range<Index>>,
    /// The searches that try secrets now, each with its first secret.
    searches: Vec<(SearchId, Index)>,
    /// All searches, also those that have ended. Another liar may have worked for them.
    all: Vec<SearchId>,
    /// The first ideal hit that was found.
    ideal: Option<Candidate>,
    /// That trying the secrets has panicked, if it has.
    failed: Option<Outcome>,
}

/// A call, as far as it matters here.
#[derive(Clone, Copy)]
pub(crate) struct Of<'a> {
    pub(crate) client: &'a Client,
    pub(crate) query: &'a Query,
    pub(crate) waker: &'a Waker,
    /// One past the last index that matters.
    pub(crate) end: Index,
}

impl Retry {
    /// Adds secrets.
    pub(crate) fn add(&mut self, range: Range<Index>) {
        self.ranges.push(range);
    }

    /// Returns the searches that try secrets now.
    pub(crate) fn searches(&self) -> impl Iterator<Item = SearchId> {
        self.searches.iter().map(|(search, _)| *search)
    }

    /// Returns these searches and all that have ended.
    pub(crate) fn all(&self) -> &[SearchId] {
        &self.all
    }

    fn is_done(&self) -> bool {
        self.ranges.is_empty() && self.searches.is_empty()
    }

    /// Begins searches, and notes what the others have found. Returns whether there is news.
    pub(crate) fn tick(&mut self, dispatcher: &mut Dispatcher, of: Of<'_>, now: Duration) -> bool {
        if self.is_done() {
            return false;
        }
        let mut has_news = false;
        let end = self.ideal.map_or(of.end, |ideal| ideal.index.min(of.end));
        let mut searches = std::mem::take(&mut self.searches);
        searches.retain(|(search, start)| {
            // Its candidates are read, because otherwise it would wait for its reader.
            let Some(advance) = dispatcher.advance(*search, of.waker) else {
                return false;
            };
            match advance.outcome {
                None if *start < end => return true,
                // The call ends before its first secret.
                None => {}
                Some(Outcome::Ideal(found))
                    if self.ideal.is_none_or(|ideal| found.index < ideal.index) =>
                {
                    self.ideal = Some(found);
                }
                Some(Outcome::Ideal(_) | Outcome::Exhausted | Outcome::BudgetSpent(_)) => {}
                Some(failed @ Outcome::Failed(_)) => self.failed = Some(failed),
                // It continues once some of its quota is available again.
                Some(Outcome::QuotaSpent { .. } | Outcome::Stopped(_)) => {
                    let left = &advance.checkpoint;
                    self.ranges.extend_from_slice(left.to_cover());
                    // It may have found the hit before it has tried all that comes before.
                    let held = left.held().map(|index| of.query.candidate(index));
                    let found = held
                        .into_iter()
                        .find(|found| of.query.is_ideal(found.distance));
                    let ideals = found.into_iter().chain(self.ideal);
                    self.ideal = ideals.min_by_key(|ideal| ideal.index);
                }
            }
            has_news = true;
            dispatcher.forget(*search, now);
            false
        });
        self.searches = searches;
        self.begin(dispatcher, of, now);
        has_news || self.is_done()
    }

    /// Begins searches, as far as the client's limits allow.
    fn begin(&mut self, dispatcher: &mut Dispatcher, of: Of<'_>, now: Duration) {
        if self.ranges.is_empty() || self.searches.len() >= MOST_AT_ONCE {
            return;
        }
        let end = self.ideal.map_or(of.end, |ideal| ideal.index.min(of.end));
        let ranges = std::mem::take(&mut self.ranges);
        self.ranges = merged(ranges, &(of.query.start()..end));
        while self.searches.len() < MOST_AT_ONCE && !self.ranges.is_empty() {
            let some: Vec<_> = self.ranges.iter().take(MAX_RANGES).cloned().collect();
            let (first, last) = (some[0].start, some[some.len() - 1].end);
            let Ok(checkpoint) = Checkpoint::restore(of.query, some.clone(), &[], last) else {
                // They are not secrets of this query.
                self.ranges.drain(..some.len());
                continue;
            };
            let (client, query) = (of.client.clone(), of.query.clone());
            let Ok(search) = dispatcher.begin(client, query, checkpoint, now) else {
                return;
            };
            self.ranges.drain(..some.len());
            self.searches.push((search, first));
            self.all.push(search);
        }
    }

    /// Returns the outcome of the call, if it has one, and the hit that was hidden, if that is the
    /// outcome. Its own search has `ended`, or its frontier has passed the hit. `end` is one past
    /// the last index that matters.
    pub(crate) fn outcome(
        &self,
        ended: Option<&Outcome>,
        frontier: Index,
        end: Index,
    ) -> Option<(Outcome, Option<Index>)> {
        if self.failed.is_some() {
            return self.failed.clone().map(|failed| (failed, None));
        }
        // It was stopped, or has failed.
        if let Some(
            outcome @ (Outcome::QuotaSpent { .. } | Outcome::Stopped(_) | Outcome::Failed(_)),
        ) = ended
        {
            return Some((outcome.clone(), None));
        }
        if !self.is_done() {
            return None;
        }
        let hidden = self.ideal.filter(|hidden| {
            let is_first = match ended {
                Some(Outcome::Ideal(found)) => hidden.index < found.index,
                _ => hidden.index < end,
            };
            is_first && (ended.is_some() || hidden.index < frontier)
        });
        match (hidden, ended) {
            (Some(hidden), _) => Some((Outcome::Ideal(hidden), Some(hidden.index))),
            (None, ended) => ended.cloned().map(|outcome| (outcome, None)),
        }
    }
}

/// Sorts ranges, joins those that touch, and leaves out what is not within `all`.
fn merged(mut ranges: Vec<Range<Index>>, all: &Range<Index>) -> Vec<Range<Index>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<Index>> = Vec::new();
    for range in ranges {
        let range = range.start.max(all.start)..range.end.min(all.end);
        match merged.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use hashfinder_search::{Cursor, Distance};

    use super::*;

    /// A call's end, for example of its budget, holds for what is tried again: others that share
    /// its leases may go further.
    #[test]
    fn what_is_beyond_the_end_of_a_call_is_not_its_outcome() {
        let query = Query::new("tom".parse().unwrap(), Distance::ZERO).unwrap();
        let hit = |index| query.candidate(index);
        let spent = Outcome::BudgetSpent(Cursor::new(&query, 100));
        let mut retry = Retry {
            ideal: Some(hit(99)),
            ..Retry::default()
        };
        let outcome = |retry: &Retry, ended, frontier| retry.outcome(ended, frontier, 100);
        let found = Some((Outcome::Ideal(hit(99)), Some(99)));
        assert_eq!(outcome(&retry, Some(&spent), 100), found);
        // The frontier of the call's search has not passed it.
        assert_eq!(outcome(&retry, None, 99), None);
        let earlier = Outcome::Ideal(hit(98));
        let expected = Some((earlier.clone(), None));
        assert_eq!(outcome(&retry, Some(&earlier), 99), expected);
        retry.ideal = Some(hit(100));
        let expected = Some((spent.clone(), None));
        assert_eq!(outcome(&retry, Some(&spent), 100), expected);
        retry.add(20..30);
        assert_eq!(outcome(&retry, Some(&spent), 100), None);
        let stopped = Outcome::Stopped(Cursor::new(&query, 50));
        assert!(outcome(&retry, Some(&stopped), 50).is_some());
    }

    #[test]
    fn ranges_are_joined_and_cut() {
        let ranges = vec![30..40, 0..12, 11..20, 20..25, 95..130, 200..300];
        assert_eq!(merged(ranges, &(5..100)), [5..25, 30..40, 95..100]);
    }
}

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
    searches: Vec<SearchId>,
    /// The first ideal hit that was found.
    ideal: Option<Candidate>,
    /// That trying the secrets has panicked, if it has.
    failed: Option<Outcome>,
}

impl Retry {
    /// Adds secrets.
    pub(crate) fn add(&mut self, range: Range<Index>) {
        self.ranges.push(range);
    }

    /// Returns the searches that try secrets now.
    pub(crate) fn searches(&self) -> impl Iterator<Item = SearchId> {
        self.searches.iter().copied()
    }

    fn is_done(&self) -> bool {
        self.ranges.is_empty() && self.searches.is_empty()
    }

    /// Begins searches, and notes what the others have found. Returns whether there is news.
    pub(crate) fn tick(
        &mut self,
        dispatcher: &mut Dispatcher,
        client: &Client,
        query: &Query,
        waker: &Waker,
        now: Duration,
    ) -> bool {
        if self.is_done() {
            return false;
        }
        let mut has_news = false;
        let mut searches = std::mem::take(&mut self.searches);
        searches.retain(|search| {
            // Its candidates are read, because otherwise it would wait for its reader.
            let Some(advance) = dispatcher.advance(*search, waker) else {
                return false;
            };
            match advance.outcome {
                None => return true,
                Some(Outcome::Ideal(found)) => {
                    let first = self.ideal.is_none_or(|ideal| found.index < ideal.index);
                    if first {
                        self.ideal = Some(found);
                    }
                }
                Some(Outcome::Exhausted | Outcome::BudgetSpent(_)) => {}
                Some(failed @ Outcome::Failed(_)) => self.failed = Some(failed),
                // It continues once some of its quota is available again.
                Some(Outcome::QuotaSpent { .. } | Outcome::Stopped(_)) => {
                    self.ranges.extend_from_slice(advance.checkpoint.to_cover());
                }
            }
            has_news = true;
            dispatcher.forget(*search, now);
            false
        });
        self.searches = searches;
        if let Some(ideal) = self.ideal {
            self.ranges.retain(|range| range.start < ideal.index);
        }
        self.begin(dispatcher, client, query, now);
        has_news
    }

    /// Begins searches, as far as the client's limits allow.
    fn begin(
        &mut self,
        dispatcher: &mut Dispatcher,
        client: &Client,
        query: &Query,
        now: Duration,
    ) {
        if self.ranges.is_empty() || self.searches.len() >= MOST_AT_ONCE {
            return;
        }
        self.ranges = merged(std::mem::take(&mut self.ranges), query);
        while self.searches.len() < MOST_AT_ONCE && !self.ranges.is_empty() {
            let some: Vec<_> = self.ranges.iter().take(MAX_RANGES).cloned().collect();
            let end = some.last().map_or(0, |last| last.end);
            let Ok(checkpoint) = Checkpoint::restore(query, some.clone(), &[], end) else {
                // They are not secrets of this query.
                self.ranges.drain(..some.len());
                continue;
            };
            let begun = dispatcher.begin(client.clone(), query.clone(), checkpoint, now);
            let Ok(search) = begun else { return };
            self.ranges.drain(..some.len());
            self.searches.push(search);
        }
    }

    /// Returns the outcome of the call, if it has one: its own search has `ended`, or its frontier
    /// has passed a hit that was hidden.
    pub(crate) fn outcome(&self, ended: Option<&Outcome>, frontier: Index) -> Option<Outcome> {
        let ideal = |found: Candidate| Some(Outcome::Ideal(found));
        if self.failed.is_some() {
            return self.failed.clone();
        }
        match (ended, self.ideal) {
            // It was stopped, or has failed.
            (
                Some(
                    outcome @ (Outcome::QuotaSpent { .. }
                    | Outcome::Stopped(_)
                    | Outcome::Failed(_)),
                ),
                _,
            ) => Some(outcome.clone()),
            _ if !self.is_done() => None,
            (Some(Outcome::Ideal(found)), Some(hidden)) if found.index < hidden.index => {
                ideal(*found)
            }
            (Some(_), Some(hidden)) => ideal(hidden),
            (Some(outcome), None) => Some(outcome.clone()),
            (None, Some(hidden)) if hidden.index < frontier => ideal(hidden),
            (None, _) => None,
        }
    }
}

/// Sorts ranges, joins those that touch, and leaves out what the query does not have.
fn merged(mut ranges: Vec<Range<Index>>, query: &Query) -> Vec<Range<Index>> {
    let all = query.start()..query.keyspace().end();
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

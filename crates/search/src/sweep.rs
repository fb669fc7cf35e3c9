//! One search's way through its range: what is given out, what came back, what may be told.
//!
//! Slices come back in any order; hits are told in enumeration order. So a hit waits until the
//! frontier has passed it, and the end of the range moves down to the first ideal hit known so far:
//! nothing behind it matters any more. What is told, and where it ends, is therefore what one
//! worker going through the range secret by secret would tell.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use crate::{
    keyspace::{Index, KEYSPACE_END},
    query::{Candidate, Query},
};

/// How many candidates may wait for their reader before the search is parked. A few frames' worth:
/// enough that a reader who comes back finds something to read, and a few kilobytes for each search.
pub(crate) const QUEUE_LIMIT: usize = 256;

/// How many slices beyond the frontier may have come back. A worker that the system holds up stops
/// the frontier; the others go on for this long, about half a second on one core, and then wait.
pub(crate) const MAX_AHEAD: usize = 1024;

/// How a range that nobody stopped came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeEnd {
    Ideal(Candidate),
    Keyspace,
    Budget,
}

#[derive(Debug)]
pub(crate) struct Sweep {
    query: Query,
    /// Every index below it has been tried.
    frontier: Index,
    /// Nothing from here on was given out, but for nothing at all.
    next: Index,
    /// One past the last index that matters.
    end: Index,
    /// The ideal hit at `end - 1`, once there is one.
    ideal: Option<Candidate>,
    /// Parts of slices that came back untried, below `next`, in order.
    gaps: VecDeque<Range<Index>>,
    /// What came back from beyond the frontier, by its first index: one past its last, and its hits.
    ahead: BTreeMap<Index, (Index, Vec<Candidate>)>,
    /// How many hits `ahead` holds.
    held: usize,
    /// Hits below the frontier that the reader has not taken yet.
    queue: VecDeque<Candidate>,
}

impl Sweep {
    pub(crate) fn new(query: Query) -> Sweep {
        let range = query.range();
        Sweep {
            query,
            frontier: range.start,
            next: range.start,
            end: range.end,
            ideal: None,
            gaps: VecDeque::new(),
            ahead: BTreeMap::new(),
            held: 0,
            queue: VecDeque::new(),
        }
    }

    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    pub(crate) fn frontier(&self) -> Index {
        self.frontier
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Where the next slice would begin, if one may be given out now.
    pub(crate) fn next_start(&self) -> Option<Index> {
        let start = self.gaps.front().map_or(self.next, |gap| gap.start);
        // The slice at the frontier waits for the reader alone. If it also waited for what is held
        // beyond it, the two would wait for each other.
        let waiting = if start == self.frontier {
            self.queue.len()
        } else {
            self.queue.len() + self.held
        };
        let room = waiting < QUEUE_LIMIT && self.ahead.len() < MAX_AHEAD;
        (start < self.end && (room || start == self.frontier && waiting < QUEUE_LIMIT))
            .then_some(start)
    }

    /// Gives out the next slice, of at most `length` secrets.
    pub(crate) fn take(&mut self, length: u64) -> Option<Range<Index>> {
        let start = self.next_start()?;
        if let Some(gap) = self.gaps.front_mut() {
            let slice = start..gap.end.min(start.saturating_add(length));
            gap.start = slice.end;
            if gap.is_empty() {
                self.gaps.pop_front();
            }
            return Some(slice);
        }
        self.next = self.end.min(start.saturating_add(length));
        Some(start..self.next)
    }

    /// Takes a slice back: `hits` are those of `slice.start..tried`, in order; what is left of the
    /// slice will be given out again.
    pub(crate) fn finish(&mut self, slice: Range<Index>, tried: Index, mut hits: Vec<Candidate>) {
        debug_assert!(slice.start <= tried && tried <= slice.end);
        if tried < slice.end.min(self.end) {
            let at = self.gaps.partition_point(|gap| gap.start < tried);
            self.gaps.insert(at, tried..slice.end.min(self.end));
        }
        let ideal = |hit: &Candidate| self.query.is_ideal(hit.distance);
        if let Some(first) = hits.iter().position(ideal) {
            let index = hits[first].secret.index();
            if index < self.end {
                self.ideal = Some(hits[first]);
                self.end_at(index + 1);
            }
            hits.truncate(first);
        }
        let tried = tried.min(self.end);
        if slice.start >= tried {
            return;
        }
        hits.retain(|hit| hit.secret.index() < tried);
        if slice.start == self.frontier {
            self.advance(tried, hits);
            while let Some(next) = self.ahead.first_entry() {
                if *next.key() != self.frontier {
                    break;
                }
                let (end, hits) = next.remove();
                self.held -= hits.len();
                self.advance(end, hits);
            }
        } else {
            self.held += hits.len();
            self.ahead.insert(slice.start, (tried, hits));
        }
    }

    fn advance(&mut self, frontier: Index, hits: Vec<Candidate>) {
        self.frontier = frontier;
        self.queue.extend(hits);
    }

    /// Forgets everything from `end` on.
    fn end_at(&mut self, end: Index) {
        self.end = end;
        self.next = self.next.min(end);
        self.gaps.retain_mut(|gap| {
            gap.end = gap.end.min(end);
            !gap.is_empty()
        });
        self.ahead.split_off(&end);
        if let Some(mut last) = self.ahead.last_entry() {
            let (last_end, hits) = last.get_mut();
            *last_end = end.min(*last_end);
            hits.retain(|hit| hit.secret.index() < end);
        }
        self.held = self.ahead.values().map(|(_, hits)| hits.len()).sum();
    }

    /// How the range ended, once the frontier has reached its end.
    pub(crate) fn ended(&self) -> Option<RangeEnd> {
        (self.frontier >= self.end).then_some(match self.ideal {
            Some(ideal) => RangeEnd::Ideal(ideal),
            None if self.end == KEYSPACE_END => RangeEnd::Keyspace,
            None => RangeEnd::Budget,
        })
    }

    /// Hands the queued hits to the reader.
    pub(crate) fn drain(&mut self) -> Vec<Candidate> {
        std::mem::take(&mut self.queue).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distance, Secret};
    use proptest::prelude::*;
    use std::num::NonZeroU64;

    const LENGTH: u64 = 400;

    fn query(budget: u64) -> Query {
        Query::new("a".parse().unwrap(), Distance::ZERO)
            .unwrap()
            .interesting(Distance::from(2))
            .starting_at(1000)
            .hash_budget(NonZeroU64::new(budget).unwrap())
    }

    fn hit(offset: u64, distance: u8) -> Candidate {
        Candidate {
            secret: Secret::at(1000 + offset),
            distance,
            window: 0,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        /// Whatever the order in which slices come back, however much of each was tried, and
        /// however rarely the reader reads: it is told what a single pass would tell.
        #[test]
        fn tells_what_a_single_pass_tells(
            world in proptest::collection::vec(
                prop_oneof![10 => Just(None), 6 => Just(Some(1_u8)), 1 => Just(Some(0))],
                LENGTH as usize,
            ),
            choices: Vec<u64>,
            workers in 1..6_usize,
        ) {
            let mut choices = choices.into_iter().chain(std::iter::repeat(7)).enumerate()
                .map(|(turn, choice)| choice.wrapping_add(turn as u64 * 31));
            let mut choose = move |below: u64| choices.next().unwrap() % below;

            let first_ideal = world.iter().position(|hit| *hit == Some(0));
            let told_until = first_ideal.unwrap_or(world.len());
            let expected: Vec<_> = (0..told_until as u64)
                .filter(|offset| world[*offset as usize] == Some(1))
                .map(|offset| hit(offset, 1))
                .collect();

            let mut sweep = Sweep::new(query(LENGTH));
            let mut out = Vec::new();
            let mut told = Vec::new();
            while sweep.ended().is_none() {
                while out.len() < workers {
                    match sweep.take(1 + choose(60)) {
                        Some(slice) => out.push(slice),
                        None => break,
                    }
                }
                prop_assert!(!out.is_empty() || sweep.queued() >= QUEUE_LIMIT, "stuck");
                if !out.is_empty() {
                    let slice = out.swap_remove(choose(out.len() as u64) as usize);
                    let tried = slice.start + 1 + choose(slice.end - slice.start);
                    let hits = (slice.start - 1000..tried - 1000)
                        .filter_map(|offset| {
                            world[offset as usize].map(|distance| hit(offset, distance))
                        })
                        .collect();
                    sweep.finish(slice, tried, hits);
                }
                if choose(4) == 0 || sweep.queued() >= QUEUE_LIMIT {
                    told.extend(sweep.drain());
                }
            }
            told.extend(sweep.drain());
            prop_assert_eq!(told, expected);
            let end = sweep.ended().unwrap();
            match first_ideal {
                Some(index) => {
                    prop_assert_eq!(end, RangeEnd::Ideal(hit(index as u64, 0)));
                    prop_assert_eq!(sweep.frontier(), 1000 + index as u64 + 1);
                }
                None => {
                    prop_assert_eq!(end, RangeEnd::Budget);
                    prop_assert_eq!(sweep.frontier(), 1000 + LENGTH);
                }
            }
        }
    }

    #[test]
    fn a_full_queue_gives_out_nothing_until_it_is_read() {
        let mut sweep = Sweep::new(query(1_000_000));
        while let Some(slice) = sweep.take(100) {
            let hits = (slice.start - 1000..slice.end - 1000)
                .map(|offset| hit(offset, 1))
                .collect();
            sweep.finish(slice.clone(), slice.end, hits);
        }
        assert!((QUEUE_LIMIT..QUEUE_LIMIT + 100).contains(&sweep.queued()));
        assert_eq!(sweep.ended(), None);
        assert_eq!(sweep.drain().len(), 300);
        assert!(sweep.take(100).is_some());
    }

    #[test]
    fn a_held_up_slice_stops_the_others_in_the_end() {
        let mut sweep = Sweep::new(query(1_000_000));
        let held_up = sweep.take(10).unwrap();
        let mut given_out = 0;
        while let Some(slice) = sweep.take(10) {
            sweep.finish(slice.clone(), slice.end, Vec::new());
            given_out += 1;
        }
        assert_eq!(given_out, MAX_AHEAD);
        sweep.finish(held_up.clone(), held_up.end, Vec::new());
        assert_eq!(sweep.frontier(), 1000 + 10 * (1 + MAX_AHEAD as u64));
        assert!(sweep.take(10).is_some());
    }
}

//! Which part of a keyspace has been handed out, and which part has been tried.
//!
//! Workers take slices, try them and hand them back: in any order, and possibly only partly tried.
//! The ledger knows the *frontier*: every index below it has been tried. It does not know which
//! searches a slice serves; that is the scheduler's job.
//!
//! ```text
//!   start ......... done ......................... next ................
//!         tried          partly tried (`ahead`),        not handed out
//!                        handed out, or returned
//!                        untried (`gaps`)
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use crate::keyspace::Index;

#[derive(Debug)]
pub(crate) struct Ledger {
    /// The frontier: every index from the start up to here (exclusive) has been tried.
    done: Index,
    /// First index that was never handed out.
    next: Index,
    /// Ranges below `next` that came back untried, in ascending order.
    gaps: VecDeque<Range<Index>>,
    /// Finished ranges beyond `done`: start -> end (exclusive). They do not overlap.
    ahead: BTreeMap<Index, Index>,
    /// Maximum number of them.
    most_ahead: usize,
}

impl Ledger {
    /// Creates a ledger whose frontier is at `start`. Up to `most_ahead` finished slices may wait
    /// for the frontier.
    pub(crate) fn new(start: Index, most_ahead: usize) -> Ledger {
        Ledger {
            done: start,
            next: start,
            gaps: VecDeque::new(),
            ahead: BTreeMap::new(),
            most_ahead,
        }
    }

    /// Returns the frontier: every index from the start up to here (exclusive) has been tried.
    pub(crate) fn done(&self) -> Index {
        self.done
    }

    /// Returns the first index that was never handed out.
    pub(crate) fn next(&self) -> Index {
        self.next
    }

    /// Returns where the next slice would begin, or `None` while too many slices wait for the
    /// frontier. The slice at the frontier itself is always available.
    pub(crate) fn next_start(&self) -> Option<Index> {
        let start = self.gaps.front().map_or(self.next, |gap| gap.start);
        (start == self.done || self.ahead.len() < self.most_ahead).then_some(start)
    }

    /// Returns the number of indices below `end` that could be handed out.
    pub(crate) fn available(&self, end: Index) -> u64 {
        let gaps = self.gaps.iter().take_while(|gap| gap.start < end);
        let gaps: u64 = gaps.map(|gap| gap.end.min(end) - gap.start).sum();
        gaps + end.saturating_sub(self.next)
    }

    /// Hands out the next slice: at most `length` indices, all below `end`.
    ///
    /// Ranges that came back untried go first. Returns `None` if nothing below `end` is left, or if
    /// [`next_start`](Ledger::next_start) does.
    pub(crate) fn take(&mut self, length: u64, end: Index) -> Option<Range<Index>> {
        let start = self.next_start()?;
        let end = start.saturating_add(length).min(end);
        if start >= end {
            return None;
        }
        let Some(gap) = self.gaps.front_mut() else {
            self.next = end;
            return Some(start..end);
        };
        gap.start = gap.end.min(end);
        let slice = start..gap.start;
        if gap.is_empty() {
            self.gaps.pop_front();
        }
        Some(slice)
    }

    /// Records that `slice` was tried up to `tried` (exclusive). The rest of it will be handed out
    /// again.
    ///
    /// Finish each slice exactly once: a second report would stop the frontier forever.
    pub(crate) fn finish(&mut self, slice: Range<Index>, tried: Index) {
        debug_assert!(slice.start <= tried && tried <= slice.end);
        if tried < slice.end {
            let at = self.gaps.partition_point(|gap| gap.start < tried);
            self.gaps.insert(at, tried..slice.end);
        }
        if slice.start < tried {
            self.ahead.insert(slice.start, tried);
        }
        while let Some(first) = self.ahead.first_entry()
            && *first.key() == self.done
        {
            self.done = first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST_AHEAD: usize = 1024;

    proptest! {
        /// In whatever order slices come back, each index is tried exactly once, and the frontier
        /// never passes an untried index.
        #[test]
        fn every_index_is_tried_exactly_once(choices: Vec<u64>, workers in 1..6_usize) {
            const END: Index = 500;
            let mut choices = choices.into_iter().chain(std::iter::repeat(7)).enumerate()
                .map(|(turn, choice)| choice.wrapping_add(turn as u64 * 31));
            let mut choose = move |below: u64| choices.next().unwrap() % below;
            let mut ledger = Ledger::new(10, MOST_AHEAD);
            let mut tries = vec![0; END as usize];
            let mut out: Vec<Range<Index>> = Vec::new();
            while ledger.done() < END {
                while out.len() < workers {
                    let Some(slice) = ledger.take(1 + choose(60), END) else { break };
                    out.push(slice);
                }
                prop_assert!(!out.is_empty(), "stuck");
                let slice = out.swap_remove(choose(out.len() as u64) as usize);
                let tried = slice.start + 1 + choose(slice.end - slice.start);
                for index in slice.start..tried {
                    tries[index as usize] += 1;
                }
                ledger.finish(slice, tried);
                prop_assert!(tries[10..ledger.done() as usize].iter().all(|tries| *tries == 1));
            }
            prop_assert!(ledger.take(1, END).is_none());
        }
    }

    #[test]
    fn a_stalled_slice_blocks_the_others_after_some_slices() {
        let mut ledger = Ledger::new(1000, MOST_AHEAD);
        let stalled = ledger.take(10, Index::MAX).unwrap();
        let mut handed_out = 0;
        while let Some(slice) = ledger.take(10, Index::MAX) {
            ledger.finish(slice.clone(), slice.end);
            handed_out += 1;
        }
        assert_eq!(handed_out, MOST_AHEAD);
        ledger.finish(stalled.clone(), stalled.end);
        assert_eq!(ledger.done(), 1000 + 10 * (1 + MOST_AHEAD as u64));
        assert!(ledger.take(10, Index::MAX).is_some());
    }

    #[test]
    fn an_untried_slice_is_handed_out_again() {
        let mut ledger = Ledger::new(0, MOST_AHEAD);
        let slice = ledger.take(100, 50).unwrap();
        assert_eq!(slice, 0..50);
        ledger.finish(slice, 0);
        assert_eq!(ledger.take(30, 50), Some(0..30));
        assert_eq!(ledger.take(30, 40), Some(30..40));
        assert_eq!(ledger.take(30, 40), None);
        assert_eq!(ledger.take(30, 60), Some(40..50));
    }
}

//! A place in the keyspace from which slices are given out.
//!
//! Slices come back in any order, and a slice may come back half tried. A front knows up to where
//! everything has been tried; whom that serves is the scheduler's business.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use crate::keyspace::Index;

/// How many slices beyond what is done may have come back. A worker that the system holds up stops
/// what is done; the others go on for this long, about half a second on one core, and then wait.
pub(crate) const MAX_AHEAD: usize = 1024;

#[derive(Debug)]
pub(crate) struct Front {
    /// Everything from where it began up to here has been tried.
    done: Index,
    /// Nothing from here on was given out, but for nothing at all.
    next: Index,
    /// Parts of slices that came back untried, below `next`, in order.
    gaps: VecDeque<Range<Index>>,
    /// What came back from beyond `done`: the first index, and one past the last.
    ahead: BTreeMap<Index, Index>,
}

impl Front {
    pub(crate) fn new(at: Index) -> Front {
        Front {
            done: at,
            next: at,
            gaps: VecDeque::new(),
            ahead: BTreeMap::new(),
        }
    }

    /// Everything from where it began up to here has been tried.
    pub(crate) fn done(&self) -> Index {
        self.done
    }

    /// Nothing from here on was given out.
    pub(crate) fn next(&self) -> Index {
        self.next
    }

    /// Where the next slice begins, if one may be given out now.
    pub(crate) fn next_start(&self) -> Option<Index> {
        let start = self.gaps.front().map_or(self.next, |gap| gap.start);
        (start == self.done || self.ahead.len() < MAX_AHEAD).then_some(start)
    }

    /// Gives out the next slice, of at most `length` secrets and none from `end` on.
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

    /// Takes a slice back that was tried up to `tried`; what is left of it is given out again.
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

    proptest! {
        /// However slices come back, each index is tried once, and done says no more than the truth.
        #[test]
        fn every_index_is_tried_once(choices: Vec<u64>, workers in 1..6_usize) {
            const END: Index = 500;
            let mut choices = choices.into_iter().chain(std::iter::repeat(7)).enumerate()
                .map(|(turn, choice)| choice.wrapping_add(turn as u64 * 31));
            let mut choose = move |below: u64| choices.next().unwrap() % below;
            let mut front = Front::new(10);
            let mut tries = vec![0; END as usize];
            let mut out: Vec<Range<Index>> = Vec::new();
            while front.done() < END {
                while out.len() < workers {
                    let Some(slice) = front.take(1 + choose(60), END) else { break };
                    out.push(slice);
                }
                prop_assert!(!out.is_empty(), "stuck");
                let slice = out.swap_remove(choose(out.len() as u64) as usize);
                let tried = slice.start + 1 + choose(slice.end - slice.start);
                for index in slice.start..tried {
                    tries[index as usize] += 1;
                }
                front.finish(slice, tried);
                prop_assert!(tries[10..front.done() as usize].iter().all(|tries| *tries == 1));
            }
            prop_assert!(front.take(1, END).is_none());
        }
    }

    #[test]
    fn a_held_up_slice_stops_the_others_in_the_end() {
        let mut front = Front::new(1000);
        let held_up = front.take(10, Index::MAX).unwrap();
        let mut given_out = 0;
        while let Some(slice) = front.take(10, Index::MAX) {
            front.finish(slice.clone(), slice.end);
            given_out += 1;
        }
        assert_eq!(given_out, MAX_AHEAD);
        front.finish(held_up.clone(), held_up.end);
        assert_eq!(front.done(), 1000 + 10 * (1 + MAX_AHEAD as u64));
        assert!(front.take(10, Index::MAX).is_some());
    }

    #[test]
    fn a_slice_that_came_back_untried_is_given_out_again() {
        let mut front = Front::new(0);
        let slice = front.take(100, 50).unwrap();
        assert_eq!(slice, 0..50);
        front.finish(slice, 0);
        assert_eq!(front.take(30, 50), Some(0..30));
        assert_eq!(front.take(30, 40), Some(30..40));
        assert_eq!(front.take(30, 40), None);
        assert_eq!(front.take(30, 60), Some(40..50));
    }
}

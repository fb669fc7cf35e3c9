//! Sets of indices.

use std::{collections::BTreeMap, ops::Range};

use hashfinder_search::Index;

/// A set of indices: start -> end (exclusive). The ranges neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Indices(BTreeMap<Index, Index>);

impl Indices {
    pub(crate) fn add(&mut self, range: Range<Index>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((&from, &to)) = self.0.range(..=end).next_back()
            && to >= start
        {
            start = start.min(from);
            end = end.max(to);
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn has(&self, range: &Range<Index>) -> bool {
        let around = self.0.range(..=range.start).next_back();
        range.is_empty() || around.is_some_and(|(_, end)| *end >= range.end)
    }
}

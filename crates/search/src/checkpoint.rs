//! What has to be saved of a search so that it can resume exactly.

use std::ops::Range;

use crate::{
    keyspace::Index,
    outcome::Outcome,
    progress::Progress,
    query::{Candidate, Query},
};

/// Maximum number of ranges that a search has yet to cover, and so of a [`Checkpoint`]: one for its
/// own scan, and three for other searches' scans. More would cover its range a little sooner, but
/// make each of its steps more expensive.
pub const MAX_RANGES: usize = 4;

/// The state of a search at one moment: what it has yet to cover, and what it has found beyond its
/// frontier.
///
/// A [`Cursor`](crate::Cursor) holds only the frontier. A search that shares slices with others may
/// have covered much beyond it. A search that [resumes](crate::Engine::resume) from a checkpoint
/// tries nothing twice, reports every candidate once, and ends at the same secret as a search that
/// was never stopped.
///
/// ```text
///   start ...... frontier ............................................ end
///        covered         |--- to cover ---|  covered  |-- to cover --|
///        (reported)          found, held      held
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub(crate) to_cover: Vec<Range<Index>>,
    /// Candidates at or beyond the frontier, by index.
    pub(crate) held: Vec<Candidate>,
    /// An ideal hit at `end - 1`.
    pub(crate) ideal: Option<Candidate>,
    pub(crate) end: Index,
}

/// Reason why numbers are not a checkpoint of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint of this search: {0}")]
pub struct InvalidCheckpoint(&'static str);

impl Checkpoint {
    /// Creates the checkpoint of a search that has not begun. The search may try the secrets from
    /// the query's start to its end, or to the end of its budget.
    #[must_use]
    pub fn new(query: &Query) -> Checkpoint {
        let range = query.range();
        Checkpoint {
            end: range.end,
            to_cover: Some(range)
                .filter(|range| !range.is_empty())
                .into_iter()
                .collect(),
            held: Vec::new(),
            ideal: None,
        }
    }

    /// Creates a checkpoint from saved numbers: the [ranges to cover](Self::to_cover), the
    /// [indices held](Self::held) and the [end](Self::end). What the indices stand for is
    /// recomputed.
    ///
    /// # Errors
    ///
    /// If these numbers cannot be a checkpoint of a search for `query`.
    pub fn restore(
        query: &Query,
        to_cover: Vec<Range<Index>>,
        held: &[Index],
        end: Index,
    ) -> Result<Checkpoint, InvalidCheckpoint> {
        if to_cover.len() > MAX_RANGES {
            return Err(InvalidCheckpoint("it has too many ranges"));
        }
        if end > query.keyspace().end() || end < query.start() {
            return Err(InvalidCheckpoint("its end is not in the keyspace"));
        }
        let mut from = query.start();
        for range in &to_cover {
            if range.start < from || range.is_empty() || range.end > end {
                return Err(InvalidCheckpoint("its ranges are not in order"));
            }
            from = range.end;
        }
        let mut checkpoint = Checkpoint {
            to_cover,
            held: Vec::new(),
            ideal: None,
            end,
        };
        let mut from = checkpoint.frontier();
        for index in held {
            if !(from..end).contains(index) {
                return Err(InvalidCheckpoint("its hits are not in order"));
            }
            from = index + 1;
            let found = query.candidate(*index);
            if query.is_ideal(found.distance) {
                if from != end {
                    return Err(InvalidCheckpoint("its ideal hit is not at its end"));
                }
                checkpoint.ideal = Some(found);
            } else if query.is_interesting(found.distance) {
                checkpoint.held.push(found);
            } else {
                return Err(InvalidCheckpoint("a hit is not near enough"));
            }
        }
        Ok(checkpoint)
    }

    /// Forgets what is covered beyond the frontier, and found there. It is searched again.
    #[must_use]
    pub fn up_to_frontier(&self) -> Checkpoint {
        let (frontier, end) = (self.frontier(), self.end);
        Checkpoint {
            to_cover: Some(frontier..end)
                .filter(|range| !range.is_empty())
                .into_iter()
                .collect(),
            held: Vec::new(),
            ideal: None,
            end,
        }
    }

    /// Returns the frontier: every index below it has been covered, and what was found there has
    /// been reported.
    #[must_use]
    pub fn frontier(&self) -> Index {
        self.to_cover.first().map_or(self.end, |first| first.start)
    }

    /// Returns the ranges that the search has yet to cover, in order: at most [`MAX_RANGES`].
    /// Everything else between the query's start and the end is covered.
    #[must_use]
    pub fn to_cover(&self) -> &[Range<Index>] {
        &self.to_cover
    }

    /// Returns the indices of what was found at or beyond the frontier, in order.
    pub fn held(&self) -> impl Iterator<Item = Index> {
        let held = self.held.iter().chain(&self.ideal);
        held.map(|candidate| candidate.index)
    }

    /// Returns one past the last index that the search may try. It does not change when the search
    /// resumes, so a hash budget ends the search at the same secret. After an ideal hit, it is one
    /// past this hit.
    #[must_use]
    pub fn end(&self) -> Index {
        self.end
    }

    /// Returns how many secrets have been covered since the query's start.
    #[must_use]
    pub fn covered(&self, query: &Query) -> u64 {
        let left = self.to_cover.iter().map(|range| range.end - range.start);
        (self.end - query.start().min(self.end)) - left.sum::<u64>()
    }
}

/// What a search has done since the last time, taken at one moment: the candidates lie below the
/// frontier of the checkpoint, and every candidate below it has been taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Candidates that have not been taken before, in enumeration order.
    pub candidates: Vec<Candidate>,
    /// The state of the search after these candidates.
    pub checkpoint: Checkpoint,
    /// How the search has ended, if it has.
    pub outcome: Option<Outcome>,
    /// Progress at this moment.
    pub progress: Progress,
}

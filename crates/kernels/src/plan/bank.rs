//! The filter for many names at once.
//!
//! For names that must match exactly, this is the idea of Teddy, which Hyperscan (`src/fdr`) and
//! Rust's `aho-corasick` use to search text. This filter also allows a small number of mismatches.

use super::classes::ClassTable;
use crate::{
    digits::{CharSet, GROUPS},
    name::Name,
};

/// Names in eight buckets. All may differ in the same number of characters.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// Maximum number of characters in which a name may differ.
    pub(crate) errors: u8,
    /// For each of the first characters: the buckets in which it satisfies some name.
    pub(crate) characters: Vec<ClassTable>,
}

impl Bank {
    pub(crate) const BUCKETS: usize = 8;

    /// Maximum number of errors: with more, a separate window filter is nearly as cheap.
    pub(crate) const MAX_ERRORS: u8 = 2;

    /// Maximum number of characters that a bank checks.
    pub(crate) const MAX_LEN: usize = 8;

    /// Maximum number of names in a bucket: with more, nearly everything passes.
    const MAX_IN_BUCKET: usize = 16;

    /// Returns the cheapest number of names per bucket and number of characters to check, and their
    /// cost.
    pub(super) fn cheapest(names: &[&Name], errors: u8, stray: f64) -> ((usize, usize), f64) {
        if names.is_empty() {
            return ((1, 1), 0.0);
        }
        let mut best = ((1, 1), f64::INFINITY);
        // Fewest banks first: once these are cheap, many other shapes can be skipped.
        for in_bucket in (1..=Self::MAX_IN_BUCKET.min(names.len())).rev() {
            for length in 1..=Self::MAX_LEN {
                let banks = names.chunks(in_bucket * Self::BUCKETS);
                let operations = banks.len() as f64 * Self::operations(length, errors);
                if operations >= best.1 {
                    break;
                }
                let rate: f64 = banks
                    .map(|bank| Self::pass_rate(bank, in_bucket, length, errors))
                    .sum();
                let cost = operations + stray * rate.min(1.0);
                if cost < best.1 {
                    best = ((in_bucket, length), cost);
                }
            }
        }
        best
    }

    pub(crate) fn new(names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> Bank {
        let mut buckets = names.chunks(in_bucket);
        let buckets: [&[&Name]; Self::BUCKETS] =
            std::array::from_fn(|_| buckets.next().unwrap_or_default());
        let characters =
            (0..length).map(|index| ClassTable::new(buckets.map(|names| union(names, index))));
        Bank {
            errors,
            characters: characters.collect(),
        }
    }

    /// Returns the number of vector operations: for each character and group a lookup, an alignment
    /// in three of four places, and a step for each number of errors.
    fn operations(length: usize, errors: u8) -> f64 {
        length as f64 * GROUPS as f64 * (1.75 + 0.75 * f64::from(errors + 1))
    }

    /// Returns the fraction of hashes that pass.
    fn pass_rate(names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> f64 {
        let buckets = names.chunks(in_bucket);
        let rates = buckets.map(|bucket| {
            // Probability that none, one or two of the characters so far disagree.
            let mut disagree = [1.0, 0.0, 0.0];
            for index in 0..length {
                let agrees = union(bucket, index).map_or(1.0, CharSet::share);
                let [none, one, two] = disagree;
                disagree = [
                    none * agrees,
                    one * agrees + none * (1.0 - agrees),
                    two * agrees + one * (1.0 - agrees),
                ];
            }
            let near: f64 = disagree[..=usize::from(errors)].iter().sum();
            near * bucket.iter().map(|name| name.windows()).max().unwrap_or(0) as f64
        });
        rates.sum()
    }
}

/// Returns the characters that satisfy the character with this index in at least one of the names:
/// the empty set if `names` is empty, `None` if one of the names is shorter.
fn union(names: &[&Name], index: usize) -> Option<CharSet> {
    let mut characters = names.iter().map(|name| name.characters.get(index).copied());
    characters.try_fold(CharSet::EMPTY, |union, set| Some(union.or(set?)))
}

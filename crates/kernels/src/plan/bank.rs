//! The filter for many names at once.
//!
//! For names that must match exactly, it works like Teddy, the algorithm that Hyperscan (`src/fdr`)
//! and Rust's `aho-corasick` use to search text. This filter also allows a small number of
//! mismatches.

use super::classes::ClassTable;
use crate::{
    digits::{CharSet, Text},
    name::Name,
};

/// Names in eight buckets. All have the same maximum distance.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// Maximum number of characters in which a name may differ.
    pub(crate) errors: u8,
    /// A table for each of the names' first characters. It maps a digit to a byte with a bit for
    /// each bucket: whether the digit satisfies that character of at least one of the bucket's
    /// names.
    pub(crate) characters: Vec<ClassTable>,
}

impl Bank {
    pub(crate) const BUCKETS: usize = 8;

    /// Maximum number of errors: with more, a window filter for each name is nearly as cheap.
    pub(crate) const MAX_ERRORS: u8 = 2;

    /// Maximum number of characters that a bank checks.
    pub(crate) const MAX_LEN: usize = 8;

    /// Maximum number of names in a bucket: with more, nearly everything passes.
    const MAX_IN_BUCKET: usize = 16;

    /// Returns the cheapest shape, and its cost: the number of names per bucket, and the number of
    /// characters to check.
    pub(super) fn cheapest(
        text: Text,
        names: &[&Name],
        errors: u8,
        stray: f64,
    ) -> ((usize, usize), f64) {
        if names.is_empty() {
            return ((1, 1), 0.0);
        }
        let mut best = ((1, 1), f64::INFINITY);
        // Fewest banks first: once a cheap shape is known, many others can be skipped.
        for in_bucket in (1..=Self::MAX_IN_BUCKET.min(names.len())).rev() {
            for length in 1..=Self::MAX_LEN {
                let banks = names.chunks(in_bucket * Self::BUCKETS);
                let operations = banks.len() as f64 * Self::operations(text, length, errors);
                if operations >= best.1 {
                    break;
                }
                let rate: f64 = banks
                    .map(|bank| Self::pass_rate(text, bank, in_bucket, length, errors))
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
        let text = names.first().map_or(Text::Base64, |name| name.text);
        let mut buckets = names.chunks(in_bucket);
        let buckets: [&[&Name]; Self::BUCKETS] =
            std::array::from_fn(|_| buckets.next().unwrap_or_default());
        let characters = (0..length)
            .map(|index| ClassTable::new(text, buckets.map(|names| union(names, index))));
        Bank {
            errors,
            characters: characters.collect(),
        }
    }

    /// Returns the number of vector operations. Each character takes, for each group, a lookup, an
    /// alignment (but one character in four needs none), and a step for each number of errors from
    /// 0 to `errors`.
    fn operations(text: Text, length: usize, errors: u8) -> f64 {
        length as f64 * text.groups() as f64 * (1.75 + 0.75 * f64::from(errors + 1))
    }

    /// Estimates the fraction of hashes that pass: the sum over the bank's buckets and windows.
    fn pass_rate(text: Text, names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> f64 {
        let buckets = names.chunks(in_bucket);
        let rates = buckets.map(|bucket| {
            // Probability that exactly none, one or two of the characters so far disagree.
            let mut disagree = [1.0, 0.0, 0.0];
            for index in 0..length {
                let agrees = union(bucket, index).map_or(1.0, |set| set.share(text));
                let [none, one, two] = disagree;
                disagree = [
                    none * agrees,
                    one * agrees + none * (1.0 - agrees),
                    two * agrees + one * (1.0 - agrees),
                ];
            }
            let near: f64 = disagree[..=usize::from(errors)].iter().sum();
            near * bucket
                .iter()
                .map(|name| text.places() + 1 - name.characters.len())
                .max()
                .unwrap_or(0) as f64
        });
        rates.sum()
    }
}

/// Returns the characters that satisfy the character with this index in at least one of the names.
///
/// The set is empty if there are no names. It is `None`, which every character satisfies, if one of
/// the names does not have a character with this index.
fn union(names: &[&Name], index: usize) -> Option<CharSet> {
    let mut characters = names.iter().map(|name| name.characters.get(index).copied());
    characters.try_fold(CharSet::EMPTY, |union, set| Some(union.or(set?)))
}

//! The filter of a kernel: whether a name occurs in the 28 characters, within its maximum distance.

use crate::{
    digits::{CharSet, HASHED_NAME_LEN, digits},
    name::Name,
    plan::Plan,
};

/// Maximum number of names in a [`Filter`]: a [`Match`] numbers them with 16 bits.
pub const MAX_NAMES: usize = 1 << 16;

/// The names that a kernel looks for, each with the maximum distance at which a secret passes.
///
/// The method depends on the names. One name has its own filter, a few share one, and hundreds are
/// found through an index of their four-character sequences. Each method only rules secrets out:
/// the secrets that remain are compared with the names character by character.
///
/// ```
/// use hashfinder_kernels::{CharSet, Filter, sha1};
///
/// let letters = |name: &str| -> Vec<CharSet> {
///     name.bytes()
///         .map(|letter| CharSet::digits_where(|digit| digit.eq_ignore_ascii_case(&letter)))
///         .collect()
/// };
/// // The SHA-1 of the empty message is "2jmj7l5rSw0yVb/vlWAYkK/YBwk=".
/// let filter = Filter::any([(&letters("doctor")[..], 0), (&letters("ways")[..], 1)]);
/// let mut found = Vec::new();
/// filter.check(&sha1(b""), |hit| found.push((hit.name, hit.distance, hit.window)));
/// // "WAYk" begins at the 18th character, and differs from "ways" in one character.
/// assert_eq!(found, [(1, 1, 17)]);
/// ```
#[derive(Clone, Debug)]
pub struct Filter {
    names: Vec<Name>,
    plan: Plan,
}

/// The nearest window of a name in a hashed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Number of the name within the filter, from 0.
    pub name: u16,
    /// Number of characters of the window that differ from the name.
    pub distance: u8,
    /// Place in the hashed name where the first window at that distance begins, from 0.
    pub window: u8,
}

impl Filter {
    /// Creates a filter for one name.
    ///
    /// A digest passes if at least one window of `characters.len()` places differs from
    /// `characters` in at most `max_distance` places.
    ///
    /// # Panics
    ///
    /// If `characters` is empty, or longer than [`HASHED_NAME_LEN`].
    #[must_use]
    pub fn new(characters: &[CharSet], max_distance: u8) -> Filter {
        Filter::any([(characters, max_distance)])
    }

    /// Creates a filter for several names, each with its maximum distance.
    ///
    /// A digest passes if at least one name matches as for [`new`](Self::new).
    /// [`check`](Self::check) reports each name that does.
    ///
    /// # Panics
    ///
    /// If `names` is empty or has more than [`MAX_NAMES`] elements, or if one of them is empty or
    /// longer than [`HASHED_NAME_LEN`].
    #[must_use]
    pub fn any<'a>(names: impl IntoIterator<Item = (&'a [CharSet], u8)>) -> Filter {
        let names = names.into_iter();
        let names: Vec<Name> = names.map(|(name, most)| Name::new(name, most)).collect();
        assert!(
            (1..=MAX_NAMES).contains(&names.len()),
            "a filter takes 1 to {MAX_NAMES} names, not {}",
            names.len()
        );
        let plan = Plan::new(&names);
        Filter { names, plan }
    }

    /// Creates a filter with a plan that a test has chosen.
    #[cfg(test)]
    pub(crate) fn planned(names: Vec<Name>, plan: Plan) -> Filter {
        Filter { names, plan }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Calls `found` with the nearest window of every name that has a window within its maximum
    /// distance, in the order of the names.
    ///
    /// `digest` holds the five words of a SHA-1 digest.
    #[inline]
    pub fn check(&self, digest: &[u32; 5], found: impl FnMut(Match)) {
        let digits = digits(digest);
        if let [name] = &self.names[..] {
            if name.may_match(&digits) {
                self.compare([0], &digits, found);
            }
            return;
        }
        let mut candidates = Vec::new();
        for &number in &self.plan.apart {
            if self.names[usize::from(number)].may_match(&digits) {
                candidates.push(number);
            }
        }
        if let Some(grams) = &self.plan.grams {
            grams.candidates(&digits, |number, window| {
                if self.names[usize::from(number)].is_at(window, &digits) {
                    candidates.push(number);
                }
            });
        }
        if !candidates.is_empty() {
            candidates.sort_unstable();
            candidates.dedup();
            self.compare(candidates, &digits, found);
        }
    }

    #[cold]
    fn compare(
        &self,
        candidates: impl IntoIterator<Item = u16>,
        digits: &[u8; HASHED_NAME_LEN],
        mut found: impl FnMut(Match),
    ) {
        for number in candidates {
            let name = &self.names[usize::from(number)];
            if let Some((distance, window)) = name.nearest(digits) {
                found(Match {
                    name: number,
                    distance,
                    window,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::{ALPHABET, PADDING};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Random digests rarely contain a random name, so the name is copied from a window of the
        /// digest. Some of its characters are then replaced by ones that never agree.
        #[test]
        fn a_planted_name_passes_at_its_distance(
            digest: [u32; 5],
            length in 1..=28_usize,
            window in 0..28_usize,
            spoilt in proptest::collection::vec(any::<bool>(), 28),
        ) {
            let window = window % (HASHED_NAME_LEN - length + 1);
            let planted = &digits(&digest)[window..window + length];
            let characters: Vec<CharSet> = planted
                .iter()
                .zip(&spoilt)
                .map(|(digit, spoilt)| match (*spoilt, *digit) {
                    (true, _) => CharSet::EMPTY,
                    (false, PADDING) => CharSet::PADDING,
                    (false, digit) => {
                        CharSet::digits_where(|c| c == ALPHABET[usize::from(digit)])
                    }
                })
                .collect();
            let cost = spoilt[..length].iter().filter(|spoilt| **spoilt).count() as u8;
            let mut found = None;
            Filter::new(&characters, cost).check(&digest, |hit| found = Some(hit));
            prop_assert!(found.is_some_and(|found| found.distance <= cost), "{found:?}");
        }
    }
}

//! What a kernel looks for: is one of the names somewhere in the 28 characters, near enough?

use crate::{
    digits::{CharSet, HASHED_NAME_LEN, digits},
    name::Name,
    plan::Plan,
};

/// The most names that a [`Filter`] takes: what a [`Match`] can tell apart.
pub const MAX_NAMES: usize = 1 << 16;

/// What a kernel looks for: names, each with the greatest distance at which a secret passes for it.
///
/// How it is looked for depends on the names: one name has a filter of its own, a few share one,
/// and hundreds are found through an index of the four-letter sequences that occur in them. Every
/// way only rules secrets out; what remains is compared with the names character by character.
///
/// ```
/// use hashfinder_kernels::{CharSet, Filter, sha1};
///
/// let letters = |name: &str| -> Vec<CharSet> {
///     name.bytes()
///         .map(|letter| CharSet::digits_where(|digit| digit.eq_ignore_ascii_case(&letter)))
///         .collect()
/// };
/// // The SHA-1 of nothing is "2jmj7l5rSw0yVb/vlWAYkK/YBwk=".
/// let filter = Filter::any([(&letters("doctor")[..], 0), (&letters("ways")[..], 1)]);
/// let mut found = Vec::new();
/// filter.check(&sha1(b""), |hit| found.push((hit.name, hit.distance, hit.window)));
/// // "WAYk" begins at the 18th character, and is "ways" but for one.
/// assert_eq!(found, [(1, 1, 17)]);
/// ```
#[derive(Clone, Debug)]
pub struct Filter {
    names: Vec<Name>,
    plan: Plan,
}

/// Where a name lies nearest in a hashed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Which name of the filter it is, from 0 on.
    pub name: u16,
    /// How many characters of the window differ from the name.
    pub distance: u8,
    /// The first window at that distance: where in the hashed name it begins.
    pub window: u8,
}

impl Filter {
    /// A filter that lets a digest pass when some window of `characters.len()` places disagrees
    /// with `characters` in at most `max_distance` places.
    ///
    /// # Panics
    ///
    /// If there are no characters, or more than [`HASHED_NAME_LEN`].
    #[must_use]
    pub fn new(characters: &[CharSet], max_distance: u8) -> Filter {
        Filter::any([(characters, max_distance)])
    }

    /// A filter that lets a digest pass when any of several names does, as for
    /// [`new`](Self::new), and tells for which.
    ///
    /// # Panics
    ///
    /// If there are no names or more than [`MAX_NAMES`], or one of them has no characters or more
    /// than [`HASHED_NAME_LEN`].
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

    /// A filter of a plan that a test has chosen.
    #[cfg(test)]
    pub(crate) fn planned(names: Vec<Name>, plan: Plan) -> Filter {
        Filter { names, plan }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the nearest window of every name that has one near enough to `found`, in the order of
    /// the names. `digest` is in SHA-1's own five words.
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

        /// Random digests hardly ever hold a random name, so plant one at every window.
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

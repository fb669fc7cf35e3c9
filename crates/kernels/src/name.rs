//! A name to search for in hashed names, and the checks for it, fast and exact.

use crate::{
    digits::{CharSet, HASHED_NAME_LEN, PADDING},
    mismatches::Mismatches,
};

/// A name: for each of its characters, the set that satisfies it, and the maximum distance.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) characters: Vec<CharSet>,
    pub(crate) max_distance: u8,
    mismatches: Mismatches<{ PADDING as usize + 1 }>,
}

impl Name {
    pub(crate) fn new(characters: &[CharSet], max_distance: u8) -> Name {
        assert!(
            (1..=HASHED_NAME_LEN).contains(&characters.len()),
            "a name has 1 to {HASHED_NAME_LEN} characters, not {}",
            characters.len()
        );
        let satisfies = |character: usize, digit| characters[character].contains(digit);
        Name {
            mismatches: Mismatches::new(characters.len(), max_distance, satisfies),
            characters: characters.to_vec(),
            max_distance,
        }
    }

    /// Returns the number of windows: places of a hashed name where the name can begin.
    pub(crate) fn windows(&self) -> usize {
        HASHED_NAME_LEN + 1 - self.characters.len()
    }

    /// Whether the name may match. This check is fast, but also passes some digests that do not
    /// match.
    #[inline(always)]
    pub(crate) fn may_match(&self, digits: &[u8; HASHED_NAME_LEN]) -> bool {
        self.mismatches.may_match(digits)
    }

    /// Whether the window that begins at place `window` exists and is near enough.
    pub(crate) fn is_at(&self, window: usize, digits: &[u8; HASHED_NAME_LEN]) -> bool {
        let digits = digits.get(window..window + self.characters.len());
        let mut left = self.max_distance;
        digits.is_some_and(|digits| {
            let mut pairs = self.characters.iter().zip(digits);
            pairs.all(|(set, digit)| {
                if set.contains(*digit) {
                    return true;
                }
                let may_differ = left > 0;
                left = left.saturating_sub(1);
                may_differ
            })
        })
    }

    /// Returns the smallest distance of all windows, and the first window at that distance, if it
    /// is near enough.
    pub(crate) fn nearest(&self, digits: &[u8; HASHED_NAME_LEN]) -> Option<(u8, u8)> {
        let distances = digits.windows(self.characters.len()).map(|window| {
            let pairs = self.characters.iter().zip(window);
            pairs.filter(|(set, digit)| !set.contains(**digit)).count()
        });
        // `min_by_key` keeps the first of equals. Both numbers are at most 28, so they fit into a
        // byte.
        let (window, distance) = distances.enumerate().min_by_key(|(_, d)| *d)?;
        let (distance, window) = (distance as u8, window as u8);
        (distance <= self.max_distance).then_some((distance, window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::{ALPHABET, digits};
    use proptest::prelude::*;

    fn any_character() -> impl Strategy<Value = CharSet> {
        prop_oneof![
            8 => (0..64_usize).prop_map(|digit| {
                let letter = ALPHABET[digit];
                CharSet::digits_where(move |c| c.eq_ignore_ascii_case(&letter))
            }),
            1 => Just(CharSet::PADDING),
            1 => Just(CharSet::EMPTY),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The fast check may pass digests that do not match, but never rejects a match.
        #[test]
        fn the_fast_check_never_rejects_a_match(
            characters in proptest::collection::vec(any_character(), 1..=28),
            max_distance in 0..=28_u8,
            digest: [u32; 5],
        ) {
            let name = Name::new(&characters, max_distance);
            let digits = digits(&digest);
            let found = name.nearest(&digits);
            prop_assert!(found.is_none() || name.may_match(&digits), "{found:?}");
            for window in 0..HASHED_NAME_LEN {
                let at = name.is_at(window, &digits);
                prop_assert!(!at || found.is_some());
                if let Some((_, nearest)) = found {
                    prop_assert!(name.is_at(nearest.into(), &digits));
                }
            }
        }
    }
}

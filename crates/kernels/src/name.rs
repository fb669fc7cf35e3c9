//! A name to search for in hashed names, and the checks for it, fast and exact.

use std::ops::Range;

use crate::{
    digits::{CharSet, PADDING, Text},
    mismatches::Mismatches,
};

/// A name to search for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// For each of its characters, the set that satisfies it.
    pub characters: &'a [CharSet],
    /// Maximum number of characters that may differ.
    pub max_distance: u8,
    /// The only place at which it may begin, from 0; `None` allows every place.
    pub at: Option<usize>,
}

/// A name: for each of its characters, the set that satisfies it, and the maximum distance.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) text: Text,
    pub(crate) characters: Vec<CharSet>,
    pub(crate) max_distance: u8,
    pub(crate) at: Option<usize>,
    mismatches: Mismatches<{ PADDING as usize + 1 }>,
}

impl Name {
    pub(crate) fn new(text: Text, target: Target<'_>) -> Name {
        let Target {
            characters,
            max_distance,
            at,
        } = target;
        let length = characters.len();
        assert!(
            (1..=text.places()).contains(&length),
            "a name has 1 to {} characters, not {length}",
            text.places()
        );
        assert!(
            at.is_none_or(|at| at <= text.places() - length),
            "a name of {length} characters cannot begin at {at:?}"
        );
        let satisfies = |character: usize, digit| characters[character].contains(digit);
        Name {
            text,
            mismatches: Mismatches::new(length, max_distance, satisfies),
            characters: characters.to_vec(),
            max_distance,
            at,
        }
    }

    /// Returns the windows: places where the name can begin.
    pub(crate) fn windows(&self) -> Range<usize> {
        match self.at {
            Some(at) => at..at + 1,
            None => 0..self.text.places() + 1 - self.characters.len(),
        }
    }

    /// Whether the name may match. This check is fast, but also passes some digests that do not
    /// match.
    #[inline(always)]
    pub(crate) fn may_match(&self, places: &[u8]) -> bool {
        match self.at {
            Some(at) => self.is_at(at, places),
            None => self.mismatches.may_match(places),
        }
    }

    /// Whether the window that begins at place `window` exists and is near enough.
    pub(crate) fn is_at(&self, window: usize, places: &[u8]) -> bool {
        let places = places.get(window..window + self.characters.len());
        let mut left = self.max_distance;
        places.is_some_and(|places| {
            let mut pairs = self.characters.iter().zip(places);
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
    pub(crate) fn nearest(&self, places: &[u8]) -> Option<(u8, u8)> {
        let distances = self.windows().map(|window| {
            let pairs = self.characters.iter().zip(&places[window..]);
            let distance = pairs.filter(|(set, digit)| !set.contains(**digit)).count();
            (distance, window)
        });
        // `min_by_key` keeps the first of equals. Both numbers are less than 256.
        let (distance, window) = distances.min_by_key(|(distance, _)| *distance)?;
        let (distance, window) = (distance as u8, window as u8);
        (distance <= self.max_distance).then_some((distance, window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::{ALPHABET, places};
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
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        /// The fast check may pass digests that do not match, but never rejects a match.
        #[test]
        fn the_fast_check_never_rejects_a_match(
            text in proptest::sample::select(&Text::ALL[..]),
            characters in proptest::collection::vec(any_character(), 1..=28),
            max_distance in 0..=28_u8,
            digest: [u32; 5],
        ) {
            let target = Target { characters: &characters, max_distance, at: None };
            let name = Name::new(text, target);
            let digits = places(text, &digest);
            let found = name.nearest(&digits);
            prop_assert!(found.is_none() || name.may_match(&digits), "{found:?}");
            for window in 0..text.places() {
                let at = name.is_at(window, &digits);
                prop_assert!(!at || found.is_some());
                if let Some((_, nearest)) = found {
                    prop_assert!(name.is_at(nearest.into(), &digits));
                }
            }
        }
    }
}

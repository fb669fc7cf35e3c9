//! The filter of a kernel: whether a name occurs in the text of a digest, within its maximum
//! distance.

use crate::{
    digits::{CharSet, Text, base32_places, base64_places, hex_places},
    name::{Name, Target},
    plan::Plan,
};

/// Maximum number of names in a [`Filter`]: a [`Match`] numbers them with 16 bits.
pub const MAX_NAMES: usize = 1 << 16;

/// The names that a kernel looks for, each with the maximum distance at which a secret passes.
///
/// The method depends on the names. A name at a given place is compared with the digest's bits. A
/// name at any place has its own filter, a few share one, and hundreds are found through an index
/// of their four-character sequences. Each method only rules secrets out: the secrets that remain
/// are compared with the names character by character.
///
/// ```
/// use hashfinder_kernels::{CharSet, Filter, Target, Text, sha1};
///
/// let letters = |name: &str| -> Vec<CharSet> {
///     name.bytes()
///         .map(|letter| CharSet::digits_where(|digit| digit.eq_ignore_ascii_case(&letter)))
///         .collect()
/// };
/// // The SHA-1 of the empty message is "2jmj7l5rSw0yVb/vlWAYkK/YBwk=".
/// let (doctor, ways) = (letters("doctor"), letters("ways"));
/// let target = |characters, max_distance| Target { characters, max_distance, at: None };
/// let filter = Filter::any(Text::Base64, [target(&doctor, 0), target(&ways, 1)]);
/// let mut found = Vec::new();
/// filter.check(&sha1(b""), |hit| found.push((hit.name, hit.distance, hit.window)));
/// // "WAYk" begins at the 18th character, and differs from "ways" in one character.
/// assert_eq!(found, [(1, 1, 17)]);
/// ```
#[derive(Clone, Debug)]
pub struct Filter {
    text: Text,
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
    /// Creates a filter for one name at any place of base64.
    ///
    /// A digest passes if at least one window of `characters.len()` places differs from
    /// `characters` in at most `max_distance` places.
    ///
    /// # Panics
    ///
    /// Like [`any`](Self::any).
    #[must_use]
    pub fn new(characters: &[CharSet], max_distance: u8) -> Filter {
        let target = Target {
            characters,
            max_distance,
            at: None,
        };
        Filter::any(Text::Base64, [target])
    }

    /// Creates a filter for several names in digests with this encoding.
    ///
    /// A digest passes if at least one name matches as for [`new`](Self::new), at its place if it
    /// has one. [`check`](Self::check) reports each name that does.
    ///
    /// # Panics
    ///
    /// If `targets` is empty or has more than [`MAX_NAMES`] elements, or if one of them is empty,
    /// longer than the text, or reaches beyond it at its place.
    #[must_use]
    pub fn any<'a>(text: Text, targets: impl IntoIterator<Item = Target<'a>>) -> Filter {
        let names = targets.into_iter().map(|target| Name::new(text, target));
        let names: Vec<Name> = names.collect();
        assert!(
            (1..=MAX_NAMES).contains(&names.len()),
            "a filter takes 1 to {MAX_NAMES} names, not {}",
            names.len()
        );
        let plan = Plan::new(text, &names);
        Filter { text, names, plan }
    }

    /// Creates a filter with a plan that a test has chosen.
    #[cfg(test)]
    pub(crate) fn planned(text: Text, names: Vec<Name>, plan: Plan) -> Filter {
        Filter { text, names, plan }
    }

    pub(crate) fn text(&self) -> Text {
        self.text
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
        match self.text {
            Text::Base64 => self.check_places(&base64_places(digest), found),
            Text::Base32 => self.check_places(&base32_places(digest), found),
            Text::Hex => self.check_places(&hex_places(digest), found),
        }
    }

    /// Checks a number of places that is known when this is compiled, so that it needs no loop.
    #[inline(always)]
    fn check_places<const N: usize>(&self, places: &[u8; N], found: impl FnMut(Match)) {
        if let [name] = &self.names[..] {
            if name.may_match(places) {
                self.compare([0], places, found);
            }
            return;
        }
        let mut candidates = Vec::new();
        for &number in &self.plan.apart {
            if self.names[usize::from(number)].may_match(places) {
                candidates.push(number);
            }
        }
        if let Some(grams) = &self.plan.grams {
            grams.candidates(places, |number, window| {
                if self.names[usize::from(number)].is_at(window, places) {
                    candidates.push(number);
                }
            });
        }
        if !candidates.is_empty() {
            candidates.sort_unstable();
            candidates.dedup();
            self.compare(candidates, places, found);
        }
    }

    #[cold]
    fn compare(
        &self,
        candidates: impl IntoIterator<Item = u16>,
        places: &[u8],
        mut found: impl FnMut(Match),
    ) {
        for number in candidates {
            let name = &self.names[usize::from(number)];
            if let Some((distance, window)) = name.nearest(places) {
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
    use crate::digits::{PADDING, places};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Random digests rarely contain a random name, so the name is copied from a window of the
        /// digest. Some of its characters are then replaced by ones that never agree.
        #[test]
        fn a_planted_name_passes_at_its_distance(
            text in proptest::sample::select(&Text::ALL[..]),
            digest: [u32; 5],
            length in 1..=40_usize,
            window in 0..40_usize,
            is_anchored: bool,
            spoilt in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let length = length.min(text.places());
            let window = window % (text.places() - length + 1);
            let places = places(text, &digest);
            let planted = &places[window..window + length];
            let characters: Vec<CharSet> = planted
                .iter()
                .zip(&spoilt)
                .map(|(digit, spoilt)| match (*spoilt, *digit) {
                    (true, _) => CharSet::EMPTY,
                    (false, PADDING) => CharSet::PADDING,
                    (false, digit) => CharSet::values_where(|value| value == digit),
                })
                .collect();
            let cost = spoilt[..length].iter().filter(|spoilt| **spoilt).count() as u8;
            let target = Target {
                characters: &characters,
                max_distance: cost,
                at: is_anchored.then_some(window),
            };
            let mut found = None;
            Filter::any(text, [target]).check(&digest, |hit| found = Some(hit));
            prop_assert!(found.is_some_and(|found| found.distance <= cost), "{found:?}");
        }
    }
}

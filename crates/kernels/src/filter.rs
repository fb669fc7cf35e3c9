//! The window filter: is the name somewhere in the 28 characters, within the distance?

use crate::digits::{CharSet, HASHED_NAME_LEN, PADDING, digits};

/// How many characters of a name the fast filter looks at. Each needs a field of [`FIELD_BITS`]
/// bits in one 64-bit word; a longer name's first characters are a necessary condition.
const FAST_LEN: usize = 12;

/// Wide enough for [`NEVER`] and as many mismatches on top of it as there are characters.
const FIELD_BITS: usize = 5;

/// What the fields of a name that began before the first character start with: more than any
/// distance that the fast filter tests for, so that such a window never passes.
const NEVER: u64 = 16;

/// The shift that leaves the last character's field alone.
const TOP: usize = u64::BITS as usize - FIELD_BITS;

const _: () = assert!(FAST_LEN * FIELD_BITS <= u64::BITS as usize);
const _: () = assert!(NEVER as usize >= FAST_LEN);
const _: () = assert!(NEVER as usize + FAST_LEN < 1 << FIELD_BITS);

/// What a kernel looks for: a name, as the set of characters that satisfies each of its places, and
/// the greatest distance at which a secret passes.
///
/// The fast part is the shift-add algorithm of Baeza-Yates and Gonnet ("A New Approach to Text
/// Searching", 1992): one word holds, for every prefix of the name, how many characters disagree
/// when that prefix ends at the current place. A step shifts every count on to the next longer
/// prefix and adds a table entry with a one for each character that the digit does not satisfy. Its
/// cost does not depend on the distance.
#[derive(Clone, Debug)]
pub struct Filter {
    characters: Vec<CharSet>,
    max_distance: u8,
    /// For each digit and the padding: a one in the field of every character it does not satisfy.
    mismatches: [u64; PADDING as usize + 1],
    /// The word before the first place.
    start: u64,
    /// A word passes when it is less than this; `None` lets every word pass.
    bound: Option<u64>,
    classes: Classes,
}

/// The first characters of a name, as filters that look digits up in tables want them.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    /// Eight characters each, in order.
    pub(crate) tables: Vec<ClassTable>,
    /// How many of these characters agree wherever the whole name is near enough.
    pub(crate) least: u8,
}

/// Eight consecutive characters of a name, or fewer at its end.
#[derive(Clone, Debug)]
pub(crate) struct ClassTable {
    /// For each digit, a bit for each of the characters that it satisfies.
    pub(crate) digits: [u8; 64],
    /// The same for the padding.
    pub(crate) padding: u8,
}

impl Classes {
    /// How many hashes may pass without being hits. Each costs a few dozen times what the filter
    /// does (an estimate), so that with fewer than these a further table would cost more than it
    /// saves.
    const STRAYS: f64 = 1.0 / 2000.0;

    /// As few characters as let few enough hashes pass, or all of them.
    fn new(characters: &[CharSet], max_distance: u8) -> Classes {
        let mut classes = Classes {
            tables: Vec::new(),
            least: 0,
        };
        let mut seen = 0;
        for eight in characters.chunks(ClassTable::LEN) {
            classes.tables.push(ClassTable::new(eight));
            seen += eight.len();
            classes.least = (seen as u8).saturating_sub(max_distance);
            if pass_rate(seen, classes.least) <= Self::STRAYS {
                break;
            }
        }
        classes
    }
}

/// About how many hashes have a window in which at least `least` of `length` characters agree. A
/// letter agrees with one digit in 32, and the sum over the windows is good enough here.
fn pass_rate(length: usize, least: u8) -> f64 {
    let ways = (0..u32::from(least)).map(|k| (length as f64 - f64::from(k)) / f64::from(k + 1));
    let windows = (HASHED_NAME_LEN + 1 - length) as f64;
    windows * ways.product::<f64>() / 32_f64.powi(i32::from(least))
}

impl ClassTable {
    /// How many characters a byte has a bit for.
    const LEN: usize = 8;

    fn new(characters: &[CharSet]) -> ClassTable {
        let class = |digit| {
            let satisfied = characters.iter().enumerate();
            satisfied.fold(0, |class, (index, character)| {
                class | u8::from(character.contains(digit)) << index
            })
        };
        ClassTable {
            digits: std::array::from_fn(|digit| class(digit as u8)),
            padding: class(PADDING),
        }
    }
}

/// Where a name lies nearest in a hashed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
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
        assert!(
            (1..=HASHED_NAME_LEN).contains(&characters.len()),
            "a name has 1 to {HASHED_NAME_LEN} characters, not {}",
            characters.len()
        );
        let fast = &characters[..characters.len().min(FAST_LEN)];
        // The last character's field is the top one, so that a plain comparison reads it.
        let field = |character: usize| TOP - FIELD_BITS * (fast.len() - 1 - character);
        let mut mismatches = [0; PADDING as usize + 1];
        for (digit, entry) in (0..).zip(&mut mismatches) {
            for (index, character) in fast.iter().enumerate() {
                *entry |= u64::from(!character.contains(digit)) << field(index);
            }
        }
        let every = usize::from(max_distance) >= fast.len();
        Filter {
            characters: characters.to_vec(),
            max_distance,
            mismatches,
            start: (0..fast.len()).fold(0, |start, index| start | NEVER << field(index)),
            bound: (!every).then(|| (u64::from(max_distance) + 1) << TOP),
            classes: Classes::new(characters, max_distance),
        }
    }

    pub(crate) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The nearest window, if it is near enough. `digest` is in SHA-1's own five words.
    #[inline(always)]
    #[must_use]
    pub fn check(&self, digest: &[u32; 5]) -> Option<Match> {
        let digits = digits(digest);
        if let Some(bound) = self.bound {
            let mut word = self.start;
            let mut least = u64::MAX;
            for digit in digits {
                word = (word << FIELD_BITS) + self.mismatches[usize::from(digit)];
                least = least.min(word);
            }
            if least >= bound {
                return None;
            }
        }
        self.check_exactly(digest)
    }

    /// [`check`](Self::check) for a digest that another filter let pass.
    #[cold]
    pub(crate) fn check_exactly(&self, digest: &[u32; 5]) -> Option<Match> {
        let digits = digits(digest);
        let distances = digits.windows(self.characters.len()).map(|window| {
            let pairs = self.characters.iter().zip(window);
            pairs.filter(|(set, digit)| !set.contains(**digit)).count()
        });
        // `min_by_key` keeps the first of equals, and a window has at most 28 characters.
        let (window, distance) = distances.enumerate().min_by_key(|(_, d)| *d)?;
        let nearest = Match {
            distance: distance as u8,
            window: window as u8,
        };
        (nearest.distance <= self.max_distance).then_some(nearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_character() -> impl Strategy<Value = CharSet> {
        prop_oneof![
            8 => (0..64_usize).prop_map(|digit| {
                let wanted = crate::ALPHABET[digit];
                CharSet::digits_where(move |c| c.eq_ignore_ascii_case(&wanted))
            }),
            1 => Just(CharSet::PADDING),
            1 => Just(CharSet::EMPTY),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The fast part may let too much pass, never too little.
        #[test]
        fn the_fast_part_never_rejects_a_match(
            characters in proptest::collection::vec(any_character(), 1..=28),
            max_distance in 0..=28_u8,
            digest: [u32; 5],
        ) {
            let filter = Filter::new(&characters, max_distance);
            prop_assert_eq!(filter.check(&digest), filter.check_exactly(&digest));
        }

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
                        CharSet::digits_where(|c| c == crate::ALPHABET[usize::from(digit)])
                    }
                })
                .collect();
            let cost = spoilt[..length].iter().filter(|spoilt| **spoilt).count() as u8;
            let found = Filter::new(&characters, cost).check(&digest);
            prop_assert!(found.is_some_and(|found| found.distance <= cost), "{found:?}");
        }
    }
}

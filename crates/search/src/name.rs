//! What is looked for, and how near is near enough.

use std::{fmt, ops::RangeInclusive};

use crate::spelling::{Chars, LONGEST_TEXT, Spelling};

/// A name to look for in hashed names: 1 to as many characters as these have, of any kind, and what
/// satisfies each of them in a [`Spelling`].
///
/// ```
/// use hashfinder_search::{DesiredName, Encoding, Spelling};
///
/// let name: DesiredName = "doctor".parse()?;
/// assert_eq!(name.least_distance(), 0);
/// // A hyphen appears in no hashed name, so it always costs one.
/// assert_eq!("doc-tor".parse::<DesiredName>()?.least_distance(), 1);
/// let url = Spelling { encoding: Encoding::Base64Url, ..Spelling::default() };
/// assert_eq!(DesiredName::new("doc-tor", url)?.least_distance(), 0);
/// # Ok::<(), hashfinder_search::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredName {
    text: String,
    spelling: Spelling,
    characters: Vec<Chars>,
}

/// Why a text is not a desired name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("the desired name is empty; give 1 to {longest} characters")]
    Empty {
        /// How many characters a hashed name has.
        longest: usize,
    },
    /// It is longer than a hashed name.
    #[error(
        "the desired name has {characters} characters; a hashed name has only {longest}, so give 1 to {longest}"
    )]
    TooLong {
        /// How many characters it has.
        characters: usize,
        /// How many characters a hashed name has.
        longest: usize,
    },
}

/// Where a name lies nearest in a hashed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nearest {
    /// How many characters of the window differ from the name.
    pub distance: u8,
    /// The first window at that distance: where in the hashed name it begins, from 0 on.
    pub window: u8,
}

impl DesiredName {
    /// A name to look for in the hashed names of a spelling.
    ///
    /// # Errors
    ///
    /// [`NameError`] if it is empty, or longer than a hashed name.
    pub fn new(text: &str, spelling: Spelling) -> Result<DesiredName, NameError> {
        let longest = spelling.text_len();
        let satisfying = |character| spelling.satisfying(character);
        let characters: Vec<Chars> = text.chars().map(satisfying).collect();
        match characters.len() {
            0 => Err(NameError::Empty { longest }),
            length if length <= longest => Ok(DesiredName {
                text: text.to_owned(),
                spelling,
                characters,
            }),
            characters => Err(NameError::TooLong {
                characters,
                longest,
            }),
        }
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// In what it is looked for, and how.
    #[must_use]
    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// How many characters it has.
    #[must_use]
    pub fn character_count(&self) -> usize {
        self.characters.len()
    }

    /// For each character, what satisfies it.
    pub(crate) fn characters(&self) -> &[Chars] {
        &self.characters
    }

    /// Where it may begin in a hashed name.
    pub(crate) fn windows(&self) -> RangeInclusive<usize> {
        self.spelling.windows(self.characters.len())
    }

    /// Where the last of its windows in a hashed name ends.
    pub(crate) fn end(&self) -> usize {
        self.windows().end() + self.characters.len()
    }

    /// Where the name lies nearest in what a secret's digest spells.
    #[must_use]
    pub fn nearest(&self, secret: &[u8]) -> Nearest {
        let hashed_name = self.spelling.hashed_name(secret);
        let within = self.within(hashed_name.as_bytes(), self.characters.len());
        within.expect("no distance is greater than the name is long")
    }

    /// Where it lies nearest in a hashed name, if at most so many characters differ there.
    #[inline]
    pub(crate) fn within(&self, hashed_name: &[u8], most: usize) -> Option<Nearest> {
        let mut nearest = None;
        let mut left = most;
        for window in self.windows() {
            let shown = &hashed_name[window..window + self.characters.len()];
            let mut differ = 0;
            for (set, character) in self.characters.iter().zip(shown) {
                differ += usize::from(!set.contains(*character));
                if differ > left {
                    break;
                }
            }
            if differ <= left {
                nearest = Some(Nearest {
                    distance: differ as u8,
                    window: window as u8,
                });
                // Only what is nearer still matters from here on.
                match differ.checked_sub(1) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        }
        nearest
    }

    /// The least distance that any hashed name can have from this name.
    ///
    /// It is exact: the bits of a digest are independent, so any places that can be satisfied one by
    /// one can be satisfied together.
    #[must_use]
    pub fn least_distance(&self) -> u8 {
        self.best_window().len() as u8
    }

    /// The characters that the window which costs least cannot show, the last of equals, each with its
    /// place in the hashed name.
    fn best_window(&self) -> Vec<(char, usize)> {
        let costs = self.windows().rev().map(|window| {
            let characters = self.text.chars().zip(&self.characters).zip(window..);
            let unspellable =
                characters.filter(|((_, set), index)| !set.intersects(self.spelling.place(*index)));
            unspellable
                .map(|((character, _), index)| (character, index))
                .collect::<Vec<_>>()
        });
        // There is at least one window for a name that is no longer than a hashed name.
        costs.min_by_key(Vec::len).unwrap_or_default()
    }

    /// Why the name costs at least [`least_distance`](Self::least_distance), for people.
    pub(crate) fn why_unspellable(&self) -> String {
        let last = self.spelling.text_len() - 1;
        let because = |(character, index): (char, usize)| {
            let shown = character.escape_debug();
            let place = self.spelling.place(index);
            let satisfying = self.spelling.satisfying(character);
            if place == Chars::PADDING {
                let padding = (0..last).find(|index| self.spelling.place(*index) == place);
                return match padding {
                    None => format!("the last character is always '=', never '{shown}'"),
                    Some(first) => {
                        let count = last + 1 - first;
                        format!("the last {count} characters are always '=', never '{shown}'")
                    }
                };
            }
            if satisfying == Chars::NONE {
                return format!("'{shown}' appears in no hashed name");
            }
            if satisfying == Chars::PADDING {
                return "'=' stands only at the end of a hashed name".to_owned();
            }
            let can: String = self.shown_in_order(place);
            format!(
                "the {}th character is one of {can}, never '{shown}'",
                index + 1
            )
        };
        let mut reasons: Vec<String> = self.best_window().into_iter().map(because).collect();
        reasons.dedup();
        reasons.join("; ")
    }

    /// What a place can show, in the order of the digits.
    fn shown_in_order(&self, place: Chars) -> String {
        let digits = self.spelling.encoding.digits().iter();
        let shown = digits.filter(|digit| place.contains(**digit));
        shown.map(|digit| char::from(*digit)).collect()
    }
}

impl std::str::FromStr for DesiredName {
    type Err = NameError;

    /// In the reference's spelling.
    fn from_str(text: &str) -> Result<DesiredName, NameError> {
        DesiredName::new(text, Spelling::default())
    }
}

impl fmt::Display for DesiredName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// A Hamming distance in characters.
///
/// No hashed name has more than 128 characters, so every number above [`Distance::MAX`] means the same
/// as that one, which every secret is within and less than.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance(u8);

/// A distance below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a distance counts characters, so it cannot be {0}; give 0 or more")]
pub struct NegativeDistance(pub i64);

impl Distance {
    /// No character differs.
    pub const ZERO: Distance = Distance(0);

    /// More than any distance there is.
    pub const MAX: Distance = Distance(LONGEST_TEXT as u8 + 1);

    /// The number of characters.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<i64> for Distance {
    type Error = NegativeDistance;

    fn try_from(characters: i64) -> Result<Distance, NegativeDistance> {
        let characters = u64::try_from(characters).map_err(|_| NegativeDistance(characters))?;
        Ok(Distance(characters.min(u64::from(Self::MAX.0)) as u8))
    }
}

impl From<u8> for Distance {
    fn from(characters: u8) -> Distance {
        Distance(characters.min(Self::MAX.0))
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_distances() {
        for (name, least) in [
            ("doctor", 0),
            ("DOCTOR", 0),
            ("+/", 0),
            ("=", 0),
            ("doc-tor", 1),
            ("a\0b", 1),
            ("na\u{ef}ve", 1),
            ("\u{1f980}\u{1f980}", 2),
            ("==", 1),
            ("b=", 1),
            ("B=", 1),
            ("c=", 0),
            ("C=", 0),
            ("0=", 0),
            ("1=", 1),
            ("=a", 1),
            ("abcdefghijklmnopqrstuvwxyza=", 0),
            ("abcdefghijklmnopqrstuvwxyzz=", 1),
            ("abcdefghijklmnopqrstuvwxyzab", 1),
            ("abcdefghijklmnopqrstuvwxyzbb", 2),
        ] {
            let parsed: DesiredName = name.parse().unwrap();
            assert_eq!(parsed.least_distance(), least, "{name:?}");
        }
    }

    #[test]
    fn lengths_count_characters_and_not_bytes() {
        let empty = NameError::Empty { longest: 28 };
        assert_eq!("".parse::<DesiredName>(), Err(empty));
        let crabs = "\u{1f980}".repeat(28);
        assert_eq!(crabs.parse::<DesiredName>().unwrap().character_count(), 28);
        let many = "a".repeat(29);
        let too_long = NameError::TooLong {
            characters: 29,
            longest: 28,
        };
        assert_eq!(many.parse::<DesiredName>(), Err(too_long));
    }

    #[test]
    fn distances_saturate() {
        assert_eq!(Distance::try_from(i64::from(i32::MAX)).unwrap().get(), 129);
        assert_eq!(Distance::try_from(-1_i64), Err(NegativeDistance(-1)));
        assert_eq!(Distance::from(200).get(), 129);
    }
}

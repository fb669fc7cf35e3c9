//! Desired names and distances.

use std::{fmt, ops::RangeInclusive};

use crate::spelling::{Chars, Encoding, LONGEST_TEXT, Spelling};

/// Maximum number of reasons in an error message, and of characters in one reason. Without it,
/// there could be as many as the name has characters.
const REASONS: usize = 3;

/// A name to search for in the hashed names of a [`Spelling`].
///
/// Its text has any characters, at least one and at most as many as a hashed name. For each of
/// them, it has the set of characters that satisfy it.
///
/// ```
/// use hashfinder_search::{DesiredName, Encoding, Spelling};
///
/// let name: DesiredName = "doctor".parse()?;
/// assert_eq!(name.least_distance(), 0);
/// // A hyphen appears in no base64 text, so it always adds one to the distance.
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

/// Reason why a text is not a desired name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("the desired name is empty; give 1 to {longest} characters")]
    Empty {
        /// Number of characters of a hashed name.
        longest: usize,
    },
    /// The text is longer than a hashed name.
    #[error(
        "the desired name has {characters} characters, but a hash has only {longest}; give \
         1 to {longest}"
    )]
    TooLong {
        /// Number of characters of the text.
        characters: usize,
        /// Number of characters of a hashed name.
        longest: usize,
    },
}

/// The nearest window of a name in a hashed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nearest {
    /// Number of characters of the window that differ from the name.
    pub distance: u8,
    /// Place in the hashed name where the first window at that distance begins, from 0.
    pub window: u8,
}

impl DesiredName {
    /// Creates a name to search for in the hashed names of a spelling.
    ///
    /// # Errors
    ///
    /// [`NameError`] if the text is empty, or longer than a hashed name.
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

    /// Returns the name's text, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the spelling of the hashed names to search.
    #[must_use]
    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// Returns the number of characters of the name.
    #[must_use]
    pub fn character_count(&self) -> usize {
        self.characters.len()
    }

    /// Returns, for each character of the name, the set of characters that satisfy it.
    pub(crate) fn characters(&self) -> &[Chars] {
        &self.characters
    }

    /// Returns the places of a hashed name where the name may begin.
    pub(crate) fn windows(&self) -> RangeInclusive<usize> {
        self.spelling.windows(self.characters.len())
    }

    /// Returns one past the last place of a hashed name that one of the name's windows covers.
    pub(crate) fn end(&self) -> usize {
        self.windows().end() + self.characters.len()
    }

    /// Returns the nearest window of the name in a secret's hashed name.
    #[must_use]
    pub fn nearest(&self, secret: &[u8]) -> Nearest {
        let hashed_name = self.spelling.hashed_name(secret);
        let within = self.within(hashed_name.as_bytes(), self.characters.len());
        within.expect("no distance is greater than the name is long")
    }

    /// Returns the name's nearest window in a hashed name, if at most `most` characters differ
    /// there.
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
                // From here on, only a nearer window matters.
                match differ.checked_sub(1) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        }
        nearest
    }

    /// Returns the smallest distance that any hashed name can have from this name.
    ///
    /// The value is exact: the bits of a digest are independent, so places that can be satisfied
    /// one by one can be satisfied together.
    #[must_use]
    pub fn least_distance(&self) -> u8 {
        self.best_window().len() as u8
    }

    /// Returns the characters that the best window cannot show, each with its place in the hashed
    /// name. The best window has the fewest. If several are equally good, it is the last of them.
    fn best_window(&self) -> Vec<(char, usize)> {
        let mut best: Option<Vec<(char, usize)>> = None;
        for window in self.windows().rev() {
            let characters = self.text.chars().zip(&self.characters).zip(window..);
            let unspellable =
                characters.filter(|((_, set), index)| !set.intersects(self.spelling.place(*index)));
            let cost = unspellable.map(|((character, _), index)| (character, index));
            let cost: Vec<_> = cost.collect();
            if best.as_ref().is_none_or(|best| cost.len() < best.len()) {
                let is_free = cost.is_empty();
                best = Some(cost);
                if is_free {
                    break;
                }
            }
        }
        // A name that is not longer than a hashed name has at least one window.
        best.unwrap_or_default()
    }

    /// Explains why the name's [`least_distance`](Self::least_distance) is more than `ideal`, and
    /// what would help.
    pub(crate) fn why_impossible(&self, ideal: Distance) -> String {
        let mut nowhere: Vec<String> = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for (character, index) in self.best_window() {
            let satisfying = self.spelling.satisfying(character);
            let (list, reason) = if satisfying == Chars::NONE {
                (&mut nowhere, format!("'{}'", character.escape_debug()))
            } else {
                let reason = self.why_not_there(character, index, satisfying);
                (&mut reasons, reason)
            };
            if !list.contains(&reason) {
                list.push(reason);
            }
        }
        if let Some(appear) = listed(&nowhere, "appears", "appear") {
            let Spelling {
                algorithm,
                encoding,
                ..
            } = self.spelling;
            let reason = format!("{appear} in no hash ({algorithm} in {encoding})");
            reasons.insert(0, reason);
        }
        reasons.truncate(REASONS);
        if !nowhere.is_empty()
            && let Some(change) = self.possible_change(ideal)
        {
            reasons.push(format!("it can match {change}"));
        }
        reasons.join("; ")
    }

    /// Returns a single change of the spelling that lets the name match within the distance, if
    /// there is one.
    fn possible_change(&self, ideal: Distance) -> Option<String> {
        let can_match = |spelling| {
            let name = DesiredName::new(&self.text, spelling);
            name.is_ok_and(|name| name.least_distance() <= ideal.get())
        };
        let in_any_case = Spelling {
            case_sensitive: false,
            ..self.spelling
        };
        if can_match(in_any_case) {
            return Some("if case is ignored".to_owned());
        }
        let in_encoding = |encoding: &Encoding| {
            can_match(Spelling {
                encoding: *encoding,
                ..self.spelling
            })
        };
        let encoding = Encoding::ALL.into_iter().find(in_encoding)?;
        Some(format!("in {encoding}"))
    }

    /// Explains why a character that can occur elsewhere cannot occur at a place.
    fn why_not_there(&self, character: char, index: usize, satisfying: Chars) -> String {
        let shown = character.escape_debug();
        let place = self.spelling.place(index);
        if place == Chars::PADDING {
            let padding = (0..=index).find(|index| self.spelling.place(*index) == place);
            let count = self.spelling.text_len() - padding.unwrap_or(index);
            return match count {
                1 => format!("the last character is always '=', never '{shown}'"),
                _ => format!("the last {count} characters are always '=', never '{shown}'"),
            };
        }
        if satisfying == Chars::PADDING {
            return "'=' occurs only at the end of a hash".to_owned();
        }
        let (can, place) = (self.shown_in_order(place), ordinal(index + 1));
        format!("the {place} character is one of {can}, never '{shown}'")
    }

    /// Returns the characters that a place can show, in the order of the digits.
    fn shown_in_order(&self, place: Chars) -> String {
        let digits = self.spelling.encoding.digits().iter();
        let shown = digits.filter(|digit| place.contains(**digit));
        shown.map(|digit| char::from(*digit)).collect()
    }
}

/// Lists some of the texts and the number of the others, followed by a verb. Returns `None` if
/// there are no texts.
fn listed(all: &[String], singular: &str, plural: &str) -> Option<String> {
    Some(match all {
        [] => return None,
        [one] => format!("{one} {singular}"),
        [first @ .., last] if all.len() <= REASONS => {
            format!("{} and {last} {plural}", first.join(", "))
        }
        [..] => {
            let (some, others) = all.split_at(REASONS);
            format!("{} and {} others {plural}", some.join(", "), others.len())
        }
    })
}

/// Returns an ordinal number, for example "27th".
fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

impl std::str::FromStr for DesiredName {
    type Err = NameError;

    /// Parses a name in the default spelling, that of the reference service.
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
/// No hashed name has more than 128 characters. So greater numbers than [`Distance::MAX`] are
/// replaced by it: every secret is nearer than that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance(u8);

/// A distance below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("distance {0} is negative; give 0 or more")]
pub struct NegativeDistance(pub i64);

impl Distance {
    /// No character differs.
    pub const ZERO: Distance = Distance(0);

    /// Greater than every possible distance.
    pub const MAX: Distance = Distance(LONGEST_TEXT as u8 + 1);

    /// Returns the number of characters.
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
    use crate::spelling::{Algorithm, Anchor};

    #[test]
    fn the_least_distance_counts_impossible_characters() {
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

    /// Regression: `-`, `\u{fc}` and a crab were rejected because "the last character is always
    /// '='".
    #[test]
    fn an_impossible_name_gets_the_real_reason() {
        let spelled = |encoding| Spelling {
            encoding,
            ..Spelling::default()
        };
        let base64 = spelled(Encoding::Base64);
        let hex = spelled(Encoding::Hex);
        let exact_hex = Spelling {
            case_sensitive: true,
            ..hex
        };
        let at_end = Spelling {
            anchor: Anchor::Suffix,
            ..base64
        };
        let sha256 = Spelling {
            algorithm: Algorithm::Sha256,
            ..base64
        };
        let nowhere = "in no hash (sha1 in base64)";
        for (spelling, name, distance, why) in [
            (
                base64,
                "-",
                0,
                format!("'-' appears {nowhere}; it can match in base64url"),
            ),
            (
                base64,
                "_a",
                0,
                format!("'_' appears {nowhere}; it can match in base64url"),
            ),
            (base64, "-.", 0, format!("'-' and '.' appear {nowhere}")),
            (
                base64,
                "-.",
                1,
                format!("'-' and '.' appear {nowhere}; it can match in base64url"),
            ),
            (
                base64,
                "\u{1f980}",
                0,
                format!("'\u{1f980}' appears {nowhere}"),
            ),
            (base64, "\u{fc}", 0, format!("'\u{fc}' appears {nowhere}")),
            (
                base64,
                "\u{1b}",
                0,
                format!("'\\u{{1b}}' appears {nowhere}"),
            ),
            (base64, " =", 0, format!("' ' appears {nowhere}")),
            (
                base64,
                "a-",
                0,
                format!("'-' appears {nowhere}; it can match in base64url"),
            ),
            (at_end, "-", 0, format!("'-' appears {nowhere}")),
            (
                at_end,
                "r",
                0,
                "the last character is always '=', never 'r'".to_owned(),
            ),
            (
                spelled(Encoding::Base64Url),
                "a+",
                0,
                "'+' appears in no hash (sha1 in base64url); it can match in base64".to_owned(),
            ),
            (
                spelled(Encoding::Base32),
                "=",
                0,
                "'=' appears in no hash (sha1 in base32); it can match in base64".to_owned(),
            ),
            (
                hex,
                "xyz",
                0,
                "'x', 'y' and 'z' appear in no hash (sha1 in hex); it can match in base64"
                    .to_owned(),
            ),
            (
                exact_hex,
                "AbC",
                0,
                "'A' and 'C' appear in no hash (sha1 in hex); it can match if case is ignored"
                    .to_owned(),
            ),
            (
                base64,
                "b=",
                0,
                "the 27th character is one of AEIMQUYcgkosw048, never 'b'".to_owned(),
            ),
            (
                base64,
                "=a",
                0,
                "'=' occurs only at the end of a hash".to_owned(),
            ),
            (
                sha256,
                "-=",
                0,
                "'-' appears in no hash (sha256 in base64)".to_owned(),
            ),
        ] {
            let parsed = DesiredName::new(name, spelling).unwrap();
            assert_eq!(
                parsed.why_impossible(Distance::from(distance)),
                why,
                "{name:?}"
            );
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

//! What is looked for, and how near is near enough.

use std::fmt;

use hashfinder_kernels::{ALPHABET, CharSet, Filter, HASHED_NAME_LEN, Match, place, sha1};

/// A name to look for in hashed names: 1 to 28 characters, of any kind, letters in either case.
///
/// ```
/// use hashfinder_search::DesiredName;
///
/// let name: DesiredName = "doctor".parse()?;
/// assert_eq!(name.least_distance(), 0);
/// // A hyphen appears in no hashed name, so it always costs one.
/// assert_eq!("doc-tor".parse::<DesiredName>()?.least_distance(), 1);
/// # Ok::<(), hashfinder_search::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredName {
    text: String,
    characters: Vec<CharSet>,
}

/// Why a text is not a desired name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("the desired name is empty; give 1 to {HASHED_NAME_LEN} characters")]
    Empty,
    /// It is longer than a hashed name.
    #[error(
        "the desired name has {0} characters; a hashed name has only {HASHED_NAME_LEN}, so give 1 to {HASHED_NAME_LEN}"
    )]
    TooLong(usize),
}

impl DesiredName {
    /// The longest name, in characters.
    pub const MAX_LEN: usize = HASHED_NAME_LEN;

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How many characters it has.
    #[must_use]
    pub fn character_count(&self) -> usize {
        self.characters.len()
    }

    /// For each character, the digits that satisfy it.
    pub(crate) fn characters(&self) -> &[CharSet] {
        &self.characters
    }

    /// Where the name lies nearest in the hashed name of a secret of any length.
    #[must_use]
    pub fn nearest(&self, secret: &[u8]) -> Match {
        let everything = Filter::new(&self.characters, HASHED_NAME_LEN as u8);
        let mut nearest = None;
        everything.check(&sha1(secret), |found| nearest = Some(found));
        nearest.expect("no distance is greater than a hashed name is long")
    }

    /// The least distance that any hashed name can have from this name.
    ///
    /// It is exact: the 160 bits of a digest are independent, so any places that can be satisfied
    /// one by one can be satisfied together.
    #[must_use]
    pub fn least_distance(&self) -> u8 {
        self.best_window().1.len() as u8
    }

    /// The window that costs least, the last of equals, and the characters that it cannot show,
    /// each with its place in the hashed name.
    fn best_window(&self) -> (usize, Vec<(char, usize)>) {
        let windows = 0..=HASHED_NAME_LEN - self.characters.len();
        let costs = windows.rev().map(|window| {
            let unspellable = self
                .text
                .chars()
                .zip(&self.characters)
                .zip(window..)
                .filter(|((_, set), index)| !set.intersects(place(*index)))
                .map(|((character, _), index)| (character, index))
                .collect::<Vec<_>>();
            (window, unspellable)
        });
        // A name of at most 28 characters has at least one window.
        costs.min_by_key(|(_, cost)| cost.len()).unwrap_or_default()
    }

    /// Why the name costs at least [`least_distance`](Self::least_distance), for people.
    pub(crate) fn why_unspellable(&self) -> String {
        let (_, characters) = self.best_window();
        let mut reasons: Vec<String> = characters
            .into_iter()
            .map(|(character, index)| {
                let shown = character.escape_debug();
                match index {
                    27 => format!("the last character is always '=', never '{shown}'"),
                    26 if ALPHABET.contains(&(character as u32).try_into().unwrap_or(0)) => {
                        format!("the 27th character is one of AEIMQUYcgkosw048, never '{shown}'")
                    }
                    _ if character == '=' => {
                        "'=' stands only at the end of a hashed name".to_owned()
                    }
                    _ => format!("'{shown}' appears in no hashed name"),
                }
            })
            .collect();
        reasons.dedup();
        reasons.join("; ")
    }
}

impl std::str::FromStr for DesiredName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<DesiredName, NameError> {
        let characters: Vec<CharSet> = text.chars().map(satisfying).collect();
        match characters.len() {
            0 => Err(NameError::Empty),
            1..=Self::MAX_LEN => Ok(DesiredName {
                text: text.to_owned(),
                characters,
            }),
            more => Err(NameError::TooLong(more)),
        }
    }
}

impl fmt::Display for DesiredName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// What satisfies a character of a name: itself in either case, or nothing where base64 has no
/// such character.
fn satisfying(character: char) -> CharSet {
    if character == '=' {
        CharSet::PADDING
    } else {
        CharSet::digits_where(|digit| char::from(digit).eq_ignore_ascii_case(&character))
    }
}

/// A Hamming distance in characters.
///
/// No hashed name is further than 28 from any name, so every number above [`Distance::MAX`] means
/// the same as that one, which every secret is within and less than.
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
    pub const MAX: Distance = Distance(HASHED_NAME_LEN as u8 + 1);

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
        assert_eq!("".parse::<DesiredName>(), Err(NameError::Empty));
        let crabs = "\u{1f980}".repeat(28);
        assert_eq!(crabs.parse::<DesiredName>().unwrap().character_count(), 28);
        let many = "a".repeat(29);
        assert_eq!(many.parse::<DesiredName>(), Err(NameError::TooLong(29)));
    }

    #[test]
    fn distances_saturate() {
        assert_eq!(Distance::try_from(i64::from(i32::MAX)).unwrap().get(), 29);
        assert_eq!(Distance::try_from(-1_i64), Err(NegativeDistance(-1)));
        assert_eq!(Distance::from(200).get(), 29);
    }
}

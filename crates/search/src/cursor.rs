//! The text from which a stopped search goes on.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hashfinder_kernels::sha1;

use crate::{
    keyspace::Index,
    name::{DesiredName, Distance},
    query::Query,
};

/// Every cursor of this version begins with it.
const PREFIX: &str = "hf1_";

/// How many bytes of the SHA-1 of what stands before it close a cursor. Four let one damaged text
/// in four thousand million through.
const CHECKSUM_LEN: usize = 4;

/// What was being searched and how far it came: every index below the frontier has been tried.
///
/// Written out it is `hf1_` and the URL-safe base64 of the ideal distance (one byte), the
/// interesting distance (one byte), the frontier (eight bytes, big-endian), the name in UTF-8 and
/// the first four bytes of the SHA-1 of the prefix and all of these.
///
/// ```
/// use hashfinder_search::{Cursor, Distance, Query};
///
/// let query = Query::new("doctor".parse()?, Distance::ZERO)?;
/// let text = Cursor::new(&query, 1_000_000).to_string();
/// let query = text.parse::<Cursor>()?.query();
/// assert_eq!((query.name().as_str(), query.start()), ("doctor", 1_000_000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The stopped search, beginning at its frontier and without its budget.
    query: Query,
}

/// Why a text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// It does not begin as a cursor does.
    #[error(
        "this is not a cursor: one begins with \"{PREFIX}\"; copy the whole text that was printed"
    )]
    Foreign,
    /// It begins as a cursor of another version does.
    #[error(
        "this cursor was made by another version of hashfinder; this one reads \"{PREFIX}...\""
    )]
    OtherVersion,
    /// Something in it was changed or is missing.
    #[error("this cursor is damaged: its check sum is wrong; copy the whole text that was printed")]
    Damaged,
}

impl Cursor {
    /// The place `frontier` of the search for `query`.
    #[must_use]
    pub fn new(query: &Query, frontier: Index) -> Cursor {
        let mut query = query.clone().starting_at(frontier);
        query.budget = None;
        Cursor { query }
    }

    /// The search that goes on from here; it has no budget until it is given one.
    #[must_use]
    pub fn query(&self) -> Query {
        self.query.clone()
    }

    /// Every index below this one has been tried.
    #[must_use]
    pub fn frontier(&self) -> Index {
        self.query.start
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.query.ideal.get(), self.query.interesting.get()];
        bytes.extend(self.query.start.to_be_bytes());
        bytes.extend(self.query.name.as_str().as_bytes());
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            return Err(
                match text.strip_prefix("hf").and_then(|t| t.split_once('_')) {
                    Some((version, _)) if version.parse::<u32>().is_ok() => {
                        CursorError::OtherVersion
                    }
                    _ => CursorError::Foreign,
                },
            );
        };
        decode(encoded).ok_or(CursorError::Damaged)
    }
}

fn decode(encoded: &str) -> Option<Cursor> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let (payload, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>()?;
    if checksum(payload) != *sum {
        return None;
    }
    let ([ideal, interesting], rest) = payload.split_first_chunk()?;
    let (frontier, name) = rest.split_first_chunk()?;
    let name: DesiredName = std::str::from_utf8(name).ok()?.parse().ok()?;
    let query = Query::new(name, Distance::from(*ideal)).ok()?;
    let query = query.interesting(Distance::from(*interesting));
    Some(Cursor::new(&query, Index::from_be_bytes(*frontier)))
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_LEN] {
    let [first, ..] = sha1(&[PREFIX.as_bytes(), payload].concat());
    first.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_reads_back(
            name in "[A-Za-z0-9\u{ef}]{1,28}",
            ideal in 2..=28_u8,
            interesting in 0..=28_u8,
            frontier: u64,
        ) {
            prop_assume!(name.matches('\u{ef}').count() < 2);
            let query = Query::new(name.parse().unwrap(), Distance::from(ideal)).unwrap();
            let cursor = Cursor::new(&query.interesting(Distance::from(interesting)), frontier);
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn a_changed_character_is_noticed(place in 0..22_usize, letter in "[A-Za-z0-9_-]") {
            let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
            let text = Cursor::new(&query, 1 << 40).to_string();
            let mut damaged = text.clone();
            damaged.replace_range(place..=place, &letter);
            prop_assume!(damaged != text);
            prop_assert!(damaged.parse::<Cursor>().is_err());
        }

        #[test]
        fn no_text_panics(text in "(hf1_)?.{0,60}") {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("", CursorError::Foreign),
            ("doctor", CursorError::Foreign),
            ("hf_", CursorError::Foreign),
            ("hf2_AAAA", CursorError::OtherVersion),
            ("hf1_", CursorError::Damaged),
            ("hf1_AAAA", CursorError::Damaged),
            ("hf1_!", CursorError::Damaged),
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(error), "{text:?}");
        }
    }
}

//! The text from which a stopped search goes on.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hashfinder_kernels::sha1;

use crate::{
    keyspace::{Alphabet, Index, Keyspace},
    name::{DesiredName, Distance},
    query::Query,
    spelling::{Algorithm, Anchor, Encoding, Spelling},
};

/// A cursor of what the reference contract has words for begins with it.
const PREFIX: &str = "hf1_";

/// Every other cursor begins with it.
const PREFIX_OF_ALL: &str = "hf2_";

/// How many bytes of the SHA-1 of what stands before it close a cursor. Four let one damaged text
/// in four thousand million through.
const CHECKSUM_LEN: usize = 4;

/// What was being searched and how far it came: every index below the frontier has been tried.
///
/// Written out it is a prefix and the URL-safe base64 of some fields, all numbers big-endian, and of the
/// first four bytes of the SHA-1 of the prefix and these fields.
///
/// - `hf1_`, for one name in the reference's spelling among all byte strings: the ideal distance (one
///   byte), the interesting distance (one byte), the frontier (eight bytes) and the name in UTF-8.
/// - `hf2_`, for everything else: the algorithm, the encoding and the anchor, each as its place in
///   `ALL` (a byte), whether case matters (a byte), the two distances and the frontier as before, the
///   number of names (a byte), for each of them its length (two bytes) and its text in UTF-8; and then
///   the lengths of the keyspace's alphabet (two bytes), prefix (four bytes) and suffix (two bytes),
///   each followed by its bytes. All bytes as the alphabet have the length 0.
///
/// ```
/// use hashfinder_search::{Cursor, Distance, Query};
///
/// let query = Query::new("doctor".parse()?, Distance::ZERO)?;
/// let text = Cursor::new(&query, 1_000_000).to_string();
/// let query = text.parse::<Cursor>()?.query();
/// assert_eq!((query.names()[0].as_str(), query.start()), ("doctor", 1_000_000));
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
        "this is not a cursor: one begins with \"{PREFIX}\" or \"{PREFIX_OF_ALL}\"; copy the whole text that was printed"
    )]
    Foreign,
    /// It begins as a cursor of another version does.
    #[error(
        "this cursor was made by another version of hashfinder; this one reads \"{PREFIX}...\" and \"{PREFIX_OF_ALL}...\""
    )]
    OtherVersion,
    /// Something in it was changed or is missing, or makes no sense to this version.
    #[error("this cursor is damaged, or of a later version; copy the whole text that was printed")]
    Damaged,
}

impl Cursor {
    /// The place `frontier` of the search for `query`.
    #[must_use]
    pub fn new(query: &Query, frontier: Index) -> Cursor {
        Cursor {
            query: query.clone().starting_at(frontier).without_budget(),
        }
    }

    /// The search that goes on from here; it has no budget until it is given one.
    #[must_use]
    pub fn query(&self) -> Query {
        self.query.clone()
    }

    /// Every index below this one has been tried.
    #[must_use]
    pub fn frontier(&self) -> Index {
        self.query.start()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = &self.query;
        let mut fields = vec![
            query.ideal_distance().get(),
            query.interesting_distance().get(),
        ];
        fields.extend(query.start().to_be_bytes());
        let prefix = match query.names() {
            [name]
                if query.spelling() == Spelling::default()
                    && *query.keyspace() == **Keyspace::all() =>
            {
                fields.extend(name.as_str().as_bytes());
                PREFIX
            }
            _ => {
                let spelling = query.spelling();
                let of_all = [
                    place(&Algorithm::ALL, &spelling.algorithm),
                    place(&Encoding::ALL, &spelling.encoding),
                    place(&Anchor::ALL, &spelling.anchor),
                    u8::from(spelling.case_sensitive),
                ];
                fields.splice(0..0, of_all);
                // The limits of each make its length fit.
                fields.push(query.names().len() as u8);
                for name in query.names() {
                    fields.extend((name.as_str().len() as u16).to_be_bytes());
                    fields.extend(name.as_str().as_bytes());
                }
                let keyspace = query.keyspace();
                let alphabet = match keyspace.alphabet().as_bytes() {
                    all if *all == *Alphabet::bytes().as_bytes() => &[],
                    some => some,
                };
                fields.extend((alphabet.len() as u16).to_be_bytes());
                fields.extend(alphabet);
                fields.extend((keyspace.prefix().len() as u32).to_be_bytes());
                fields.extend(keyspace.prefix());
                fields.extend((keyspace.suffix().len() as u16).to_be_bytes());
                fields.extend(keyspace.suffix());
                PREFIX_OF_ALL
            }
        };
        fields.extend(checksum(prefix, &fields));
        write!(f, "{prefix}{}", BASE64URL_NOPAD.encode(&fields))
    }
}

fn place<T: PartialEq>(all: &[T], one: &T) -> u8 {
    // All of them are among all.
    let place = all.iter().position(|other| other == one);
    place.unwrap_or_default() as u8
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        let decoded = if let Some(encoded) = text.strip_prefix(PREFIX) {
            fields(PREFIX, encoded).and_then(|fields| simple(&fields))
        } else if let Some(encoded) = text.strip_prefix(PREFIX_OF_ALL) {
            fields(PREFIX_OF_ALL, encoded).and_then(|fields| general(&fields))
        } else {
            let version = text.strip_prefix("hf").and_then(|t| t.split_once('_'));
            let is_version = version.is_some_and(|(version, _)| version.parse::<u32>().is_ok());
            return Err(if is_version {
                CursorError::OtherVersion
            } else {
                CursorError::Foreign
            });
        };
        decoded.ok_or(CursorError::Damaged)
    }
}

/// What a cursor says, if it is not damaged.
fn fields(prefix: &str, encoded: &str) -> Option<Vec<u8>> {
    let mut fields = BASE64URL_NOPAD.decode(encoded.as_bytes()).ok()?;
    let at = fields.len().checked_sub(CHECKSUM_LEN)?;
    let sum = fields.split_off(at);
    (checksum(prefix, &fields)[..] == sum[..]).then_some(fields)
}

/// Goes through the fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, length: usize) -> Option<u64> {
        let bytes = self.take(length)?.iter();
        Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// Bytes with their length before them, itself of so many bytes.
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let length = self.number(length)?;
        self.take(length as usize)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(usize::from(self.byte()?)).copied()
    }
}

/// The query of a cursor in the reference's spelling.
fn simple(fields: &[u8]) -> Option<Cursor> {
    let mut fields = Fields(fields);
    let (ideal, interesting, frontier) = (fields.byte()?, fields.byte()?, fields.number(8)?);
    let name = std::str::from_utf8(fields.0).ok()?.parse().ok()?;
    let query = Query::new(name, Distance::from(ideal)).ok()?;
    going_on(query, interesting, frontier)
}

/// The query of any other.
fn general(fields: &[u8]) -> Option<Cursor> {
    let mut fields = Fields(fields);
    let spelling = Spelling {
        algorithm: fields.one_of(&Algorithm::ALL)?,
        encoding: fields.one_of(&Encoding::ALL)?,
        anchor: fields.one_of(&Anchor::ALL)?,
        case_sensitive: fields.one_of(&[false, true])?,
    };
    let (ideal, interesting, frontier) = (fields.byte()?, fields.byte()?, fields.number(8)?);
    let count = fields.byte()?;
    if !(1..=Query::MAX_NAMES).contains(&usize::from(count)) {
        return None;
    }
    let names = (0..count).map(|_| {
        let text = std::str::from_utf8(fields.bytes(2)?).ok()?;
        DesiredName::new(text, spelling).ok()
    });
    let names: Vec<DesiredName> = names.collect::<Option<_>>()?;
    let alphabet = match fields.bytes(2)? {
        [] => Alphabet::bytes(),
        some => Alphabet::given(some).ok()?,
    };
    let (prefix, suffix) = (fields.bytes(4)?, fields.bytes(2)?);
    let keyspace = Keyspace::new(prefix, alphabet, suffix).ok()?;
    let query = Query::any(names, Distance::from(ideal))
        .ok()?
        .among(keyspace);
    if !fields.0.is_empty() {
        return None;
    }
    going_on(query, interesting, frontier)
}

fn going_on(query: Query, interesting: u8, frontier: Index) -> Option<Cursor> {
    let query = query.interesting(Distance::from(interesting));
    (frontier <= query.keyspace().end()).then(|| Cursor::new(&query, frontier))
}

fn checksum(prefix: &str, fields: &[u8]) -> [u8; CHECKSUM_LEN] {
    let [first, ..] = sha1(&[prefix.as_bytes(), fields].concat());
    first.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spellings() -> impl Strategy<Value = Spelling> {
        let of = proptest::sample::select::<Algorithm>;
        (
            of(Algorithm::ALL.to_vec()),
            proptest::sample::select(Encoding::ALL.to_vec()),
            proptest::sample::select(Anchor::ALL.to_vec()),
            any::<bool>(),
        )
            .prop_map(|(algorithm, encoding, anchor, case_sensitive)| Spelling {
                algorithm,
                encoding,
                anchor,
                case_sensitive,
            })
    }

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
        fn a_cursor_of_anything_reads_back(
            names in proptest::collection::vec("[A-Fa-f0-9]{1,12}", 1..5),
            spelling in spellings(),
            (prefix, suffix) in (proptest::collection::vec(any::<u8>(), 0..300), proptest::collection::vec(any::<u8>(), 0..9)),
            alphabet in prop_oneof![Just(Alphabet::bytes()), Just(Alphabet::digits()), Just(Alphabet::given(b"ba").unwrap())],
            frontier: u64,
            byte: usize,
        ) {
            let names = names.iter().map(|name| DesiredName::new(name, spelling).unwrap());
            let query = Query::any(names, Distance::from(28)).unwrap();
            let query = query.among(Keyspace::new(&prefix, alphabet, &suffix).unwrap());
            let cursor = Cursor::new(&query, frontier.min(query.keyspace().end()));
            let text = cursor.to_string();
            prop_assert_eq!(text.parse(), Ok(cursor));
            // Whatever was changed, it neither panics nor is taken for another.
            let mut damaged = text.clone().into_bytes();
            let byte = byte % damaged.len();
            damaged[byte] = if damaged[byte] == b'A' { b'B' } else { b'A' };
            prop_assert!(String::from_utf8(damaged).unwrap().parse::<Cursor>().is_err());
        }

        #[test]
        fn fields_that_say_nonsense_are_no_cursor(fields in proptest::collection::vec(any::<u8>(), 0..60)) {
            for prefix in [PREFIX, PREFIX_OF_ALL] {
                let closed = [&fields[..], &checksum(prefix, &fields)].concat();
                let _ = format!("{prefix}{}", BASE64URL_NOPAD.encode(&closed)).parse::<Cursor>();
            }
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
        fn no_text_panics(text in "(hf[12]_)?.{0,60}") {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("", CursorError::Foreign),
            ("doctor", CursorError::Foreign),
            ("hf_", CursorError::Foreign),
            ("hf3_AAAA", CursorError::OtherVersion),
            ("hf2_AAAA", CursorError::Damaged),
            ("hf1_", CursorError::Damaged),
            ("hf1_AAAA", CursorError::Damaged),
            ("hf1_!", CursorError::Damaged),
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(error), "{text:?}");
        }
    }
}

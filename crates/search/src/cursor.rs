//! The text from which a stopped search resumes.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hashfinder_kernels::sha1;

use crate::{
    keyspace::{Alphabet, Index, Keyspace},
    name::{DesiredName, Distance},
    query::Query,
    spelling::{Algorithm, Anchor, Encoding, Spelling},
};

/// The forms of a cursor. Each has its own prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    prefix: &'static str,
    /// Whether the form has fields for every part of a query. The other forms are shorter, and hold
    /// only what the reference contract can express.
    is_general: bool,
    has_nearest: bool,
}

impl Form {
    const ALL: [Form; 4] = [
        Form::new("hf1_", false, false),
        Form::new("hf2_", true, false),
        Form::new("hf3_", false, true),
        Form::new("hf4_", true, true),
    ];

    const fn new(prefix: &'static str, is_general: bool, has_nearest: bool) -> Form {
        Form {
            prefix,
            is_general,
            has_nearest,
        }
    }

    fn of(cursor: &Cursor) -> Form {
        let query = &cursor.query;
        let is_simple = query.names().len() == 1
            && query.spelling() == Spelling::default()
            && *query.keyspace() == **Keyspace::all();
        let [simple, general, simple_with_nearest, general_with_nearest] = Form::ALL;
        match (is_simple, cursor.nearest.is_some()) {
            (true, false) => simple,
            (false, false) => general,
            (true, true) => simple_with_nearest,
            (false, true) => general_with_nearest,
        }
    }
}

/// Number of bytes of the checksum at the end of a cursor: the first bytes of the SHA-1 of
/// everything before them. With four bytes, one in four billion damaged texts is accepted.
const CHECKSUM_LEN: usize = 4;

/// A stopped search: its query and its frontier. Every index below the frontier has been tried. A
/// cursor may also contain the nearest secret so far.
///
/// As text, a cursor is a prefix followed by URL-safe base64 of its fields and of a checksum: the
/// first four bytes of the SHA-1 of the prefix and the fields. All numbers are big-endian.
///
/// - `hf1_`, for one name in the reference's spelling among all byte strings: the ideal distance
///   (one byte), the interesting distance (one byte), the frontier (eight bytes) and the name in
///   UTF-8.
/// - `hf2_`, for all other queries: the algorithm, the encoding and the anchor, each as its
///   position in `ALL` (one byte); whether case matters (one byte); the two distances and the
///   frontier as in `hf1_`; the number of names (one byte); for each name its length (two bytes)
///   and its text in UTF-8. Then the keyspace's alphabet, prefix and suffix, each as its length
///   (two, four and two bytes) followed by its bytes. The alphabet of all bytes has the length 0.
/// - `hf3_` and `hf4_`, with the nearest secret: the same as `hf1_` and `hf2_`, with the secret's
///   index (eight bytes) after the frontier.
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
    /// The stopped search's query, starting at the frontier and without a budget.
    query: Query,
    /// Index of the nearest secret, below the frontier.
    nearest: Option<Index>,
}

/// Reason why a text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// The text does not begin like a cursor.
    #[error("not a cursor: a cursor begins with \"hf1_\" to \"hf4_\"; copy the whole text")]
    Foreign,
    /// The text begins like a cursor from another version of hashfinder.
    #[error(
        "this cursor is from another version of hashfinder; this version reads \"hf1_\" to \"hf4_\""
    )]
    OtherVersion,
    /// Part of the text was changed or is missing, or has no meaning in this version.
    #[error("this cursor is damaged or from a later version; copy the whole text")]
    Damaged,
}

impl Cursor {
    /// Creates the cursor of the search for `query` at this frontier.
    #[must_use]
    pub fn new(query: &Query, frontier: Index) -> Cursor {
        Cursor {
            query: query.clone().starting_at(frontier).without_budget(),
            nearest: None,
        }
    }

    /// Adds the index of the nearest secret found so far. An index at or beyond the frontier is
    /// left out: that secret will be found again.
    #[must_use]
    pub fn with_nearest(self, nearest: Option<Index>) -> Cursor {
        let nearest = nearest.filter(|index| *index < self.frontier());
        Cursor { nearest, ..self }
    }

    /// Returns the index of the nearest secret found before the search was stopped, if the cursor
    /// contains it. It is below the frontier.
    #[must_use]
    pub fn nearest(&self) -> Option<Index> {
        self.nearest
    }

    /// Whether this is a cursor of the search for `query`, whatever that query's start and budget
    /// are.
    #[must_use]
    pub fn is_of(&self, query: &Query) -> bool {
        self.query == Cursor::new(query, self.frontier()).query
    }

    /// Returns the query that resumes here. It has no budget.
    #[must_use]
    pub fn query(&self) -> Query {
        self.query.clone()
    }

    /// Returns the frontier: every index below it has been tried.
    #[must_use]
    pub fn frontier(&self) -> Index {
        self.query.start()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (query, form) = (&self.query, Form::of(self));
        let mut fields = Vec::new();
        if form.is_general {
            let spelling = query.spelling();
            fields.extend([
                place(&Algorithm::ALL, &spelling.algorithm),
                place(&Encoding::ALL, &spelling.encoding),
                place(&Anchor::ALL, &spelling.anchor),
                u8::from(spelling.case_sensitive),
            ]);
        }
        fields.extend([
            query.ideal_distance().get(),
            query.interesting_distance().get(),
        ]);
        fields.extend(query.start().to_be_bytes());
        if let Some(nearest) = self.nearest {
            fields.extend(nearest.to_be_bytes());
        }
        if form.is_general {
            // Each length fits because of the limits on a query.
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
        } else {
            fields.extend(query.names()[0].as_str().as_bytes());
        }
        let prefix = form.prefix;
        fields.extend(checksum(prefix, &fields));
        write!(f, "{prefix}{}", BASE64URL_NOPAD.encode(&fields))
    }
}

fn place<T: PartialEq>(all: &[T], one: &T) -> u8 {
    // Every value is contained in `all`.
    let place = all.iter().position(|other| other == one);
    place.unwrap_or_default() as u8
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        for form in Form::ALL {
            if let Some(encoded) = text.strip_prefix(form.prefix) {
                let fields = fields(form.prefix, encoded);
                let cursor = fields.and_then(|fields| read(form, &fields));
                return cursor.ok_or(CursorError::Damaged);
            }
        }
        let version = text.strip_prefix("hf").and_then(|t| t.split_once('_'));
        let is_version = version.is_some_and(|(version, _)| version.parse::<u32>().is_ok());
        Err(if is_version {
            CursorError::OtherVersion
        } else {
            CursorError::Foreign
        })
    }
}

/// Returns the fields of a cursor, or `None` if it is damaged.
fn fields(prefix: &str, encoded: &str) -> Option<Vec<u8>> {
    let mut fields = BASE64URL_NOPAD.decode(encoded.as_bytes()).ok()?;
    let at = fields.len().checked_sub(CHECKSUM_LEN)?;
    let sum = fields.split_off(at);
    (checksum(prefix, &fields)[..] == sum[..]).then_some(fields)
}

/// Reads the fields one by one.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a number of `length` bytes.
    fn number(&mut self, length: usize) -> Option<u64> {
        let bytes = self.take(length)?.iter();
        Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// Reads bytes that follow their length, which is a number of `length` bytes.
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let length = self.number(length)?;
        self.take(length as usize)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(usize::from(self.byte()?)).copied()
    }
}

/// Returns the cursor with these fields, or `None` if they are not valid.
fn read(form: Form, fields: &[u8]) -> Option<Cursor> {
    let mut fields = Fields(fields);
    let spelling = match form.is_general {
        true => Spelling {
            algorithm: fields.one_of(&Algorithm::ALL)?,
            encoding: fields.one_of(&Encoding::ALL)?,
            anchor: fields.one_of(&Anchor::ALL)?,
            case_sensitive: fields.one_of(&[false, true])?,
        },
        false => Spelling::default(),
    };
    let (ideal, interesting) = (fields.byte()?, fields.byte()?);
    let frontier = fields.number(8)?;
    let nearest = match form.has_nearest {
        true => Some(fields.number(8).filter(|nearest| *nearest < frontier)?),
        false => None,
    };
    let ideal = Distance::from(ideal);
    let query = match form.is_general {
        true => general(&mut fields, spelling, ideal)?,
        false => {
            let name = std::str::from_utf8(fields.0).ok()?.parse().ok()?;
            Query::new(name, ideal).ok()?
        }
    };
    let query = query.interesting(Distance::from(interesting));
    let is_possible = frontier <= query.keyspace().end();
    is_possible.then(|| Cursor::new(&query, frontier).with_nearest(nearest))
}

/// Reads the names and the keyspace of a general cursor.
fn general(fields: &mut Fields<'_>, spelling: Spelling, ideal: Distance) -> Option<Query> {
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
    let query = Query::any(names, ideal).ok()?.among(keyspace);
    fields.0.is_empty().then_some(query)
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
        fn a_cursor_is_read_back(
            name in "[A-Za-z0-9\u{ef}]{1,28}",
            // At least three: one for the character that no hashed name contains, and two for the
            // last two places.
            ideal in 3..=28_u8,
            interesting in 0..=28_u8,
            frontier: u64,
            nearest: Option<u64>,
        ) {
            prop_assume!(name.matches('\u{ef}').count() < 2);
            let query = Query::new(name.parse().unwrap(), Distance::from(ideal)).unwrap();
            let query = query.interesting(Distance::from(interesting));
            let cursor = Cursor::new(&query, frontier).with_nearest(nearest);
            prop_assert!(cursor.is_of(&query.starting_at(7)));
            prop_assert_eq!(cursor.nearest(), nearest.filter(|nearest| *nearest < frontier));
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn a_general_cursor_is_read_back(
            names in proptest::collection::vec("[A-Fa-f0-9]{1,12}", 1..5),
            spelling in spellings(),
            (prefix, suffix) in (proptest::collection::vec(any::<u8>(), 0..300), proptest::collection::vec(any::<u8>(), 0..9)),
            alphabet in prop_oneof![Just(Alphabet::bytes()), Just(Alphabet::digits()), Just(Alphabet::given(b"ba").unwrap())],
            frontier: u64,
            nearest: Option<u64>,
            byte: usize,
        ) {
            let names = names.iter().map(|name| DesiredName::new(name, spelling).unwrap());
            let query = Query::any(names, Distance::from(28)).unwrap();
            let query = query.among(Keyspace::new(&prefix, alphabet, &suffix).unwrap());
            let cursor = Cursor::new(&query, frontier.min(query.keyspace().end()));
            let cursor = cursor.with_nearest(nearest);
            let text = cursor.to_string();
            prop_assert_eq!(text.parse(), Ok(cursor));
            // A damaged text must be rejected without a panic.
            let mut damaged = text.clone().into_bytes();
            let byte = byte % damaged.len();
            damaged[byte] = if damaged[byte] == b'A' { b'B' } else { b'A' };
            prop_assert!(String::from_utf8(damaged).unwrap().parse::<Cursor>().is_err());
        }

        #[test]
        fn meaningless_fields_do_not_panic(fields in proptest::collection::vec(any::<u8>(), 0..60)) {
            for Form { prefix, .. } in Form::ALL {
                let closed = [&fields[..], &checksum(prefix, &fields)].concat();
                let _ = format!("{prefix}{}", BASE64URL_NOPAD.encode(&closed)).parse::<Cursor>();
            }
        }

        #[test]
        fn a_changed_character_is_rejected(place in 0..22_usize, letter in "[A-Za-z0-9_-]") {
            let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
            let text = Cursor::new(&query, 1 << 40).to_string();
            let mut damaged = text.clone();
            damaged.replace_range(place..=place, &letter);
            prop_assume!(damaged != text);
            prop_assert!(damaged.parse::<Cursor>().is_err());
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "(hf[1-4]_)?.{0,60}") {
            let _ = text.parse::<Cursor>();
        }
    }

    /// If such a cursor were accepted, a secret that has not been tried yet would be shown as
    /// found.
    #[test]
    fn a_nearest_secret_beyond_the_frontier_is_rejected() {
        let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
        for (nearest, is_right) in [(6, true), (7, false), (u64::MAX, false)] {
            let mut fields = vec![0, 0];
            fields.extend(7_u64.to_be_bytes());
            fields.extend(u64::to_be_bytes(nearest));
            fields.extend(b"doctor");
            fields.extend(checksum("hf3_", &fields));
            let cursor = format!("hf3_{}", BASE64URL_NOPAD.encode(&fields)).parse();
            let right = Cursor::new(&query, 7).with_nearest(Some(nearest));
            let expected = is_right.then_some(right).ok_or(CursorError::Damaged);
            assert_eq!(cursor, expected, "{nearest}");
        }
    }

    #[test]
    fn each_invalid_text_has_its_error() {
        for (text, error) in [
            ("", CursorError::Foreign),
            ("doctor", CursorError::Foreign),
            ("hf_", CursorError::Foreign),
            ("hf5_AAAA", CursorError::OtherVersion),
            ("hf3_AAAA", CursorError::Damaged),
            ("hf2_AAAA", CursorError::Damaged),
            ("hf1_", CursorError::Damaged),
            ("hf1_AAAA", CursorError::Damaged),
            ("hf1_!", CursorError::Damaged),
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(error), "{text:?}");
        }
    }
}

//! The secrets that a search tries, and their enumeration order.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, LazyLock, OnceLock},
};

use hashfinder_kernels::{Block, Secrets};

/// A secret's position in enumeration order.
pub type Index = u64;

/// Maximum number of bytes of the searched part of a secret. It matters only for an alphabet of a
/// single byte. With any other alphabet, the index reaches the end of its range earlier.
const MAX_SEARCHED: usize = 64;

/// The bytes of which the searched part of a secret consists, in the order in which they are tried.
#[derive(Clone, PartialEq, Eq)]
pub struct Alphabet(Vec<u8>);

/// Reason why bytes are not an alphabet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlphabetError {
    /// The alphabet is empty.
    #[error("the alphabet is empty; give at least one byte")]
    Empty,
    /// A byte occurs twice, so every secret that contains it would be tried more than once.
    #[error("the alphabet contains the byte '{}' twice; give each byte once", .0.escape_ascii())]
    Twice(u8),
}

impl Alphabet {
    /// Returns all 256 bytes, in ascending order.
    #[must_use]
    pub fn bytes() -> Alphabet {
        Alphabet((0..=u8::MAX).collect())
    }

    /// Returns the 95 printable characters of ASCII, from the space to `~`, in ascending order.
    #[must_use]
    pub fn printable() -> Alphabet {
        Alphabet((b' '..=b'~').collect())
    }

    /// Returns `0` to `9`, `A` to `Z` and `a` to `z`.
    #[must_use]
    pub fn alphanumeric() -> Alphabet {
        let alphanumeric = (b'0'..=b'z').filter(u8::is_ascii_alphanumeric);
        Alphabet(alphanumeric.collect())
    }

    /// Returns `0` to `9`.
    #[must_use]
    pub fn digits() -> Alphabet {
        Alphabet((b'0'..=b'9').collect())
    }

    /// Creates an alphabet of these bytes, in this order.
    ///
    /// # Errors
    ///
    /// [`AlphabetError`] if `bytes` is empty, or if one of them occurs twice.
    pub fn given(bytes: &[u8]) -> Result<Alphabet, AlphabetError> {
        let mut seen = [false; 256];
        for &byte in bytes {
            if std::mem::replace(&mut seen[usize::from(byte)], true) {
                return Err(AlphabetError::Twice(byte));
            }
        }
        match bytes {
            [] => Err(AlphabetError::Empty),
            _ => Ok(Alphabet(bytes.to_vec())),
        }
    }

    /// Returns the bytes, in order.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Alphabet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alphabet({})", self.0.escape_ascii())
    }
}

/// A set of secrets: a fixed prefix, a searched part and a fixed suffix.
///
/// The secrets are enumerated by the length of the searched part, starting with the empty one.
/// Within a length, the searched part is a big-endian counter whose digits are the alphabet's bytes
/// in their order. The last byte changes fastest. By default the prefix and the suffix are empty,
/// and the alphabet is all bytes.
///
/// ```
/// use hashfinder_search::{Alphabet, Keyspace};
///
/// let keyspace = Keyspace::new(b"nonce: ", Alphabet::digits(), b"\n")?;
/// assert_eq!(keyspace.secret(0), b"nonce: \n");
/// assert_eq!(keyspace.secret(1), b"nonce: 0\n");
/// assert_eq!(keyspace.secret(12), b"nonce: 01\n");
/// assert_eq!(keyspace.index_of(b"nonce: 01\n"), Some(12));
/// # Ok::<(), hashfinder_search::KeyspaceError>(())
/// ```
#[derive(Clone)]
pub struct Keyspace {
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    alphabet: Alphabet,
    /// The index of the first secret of each length.
    firsts: Vec<Index>,
    end: Index,
    /// The secrets as the kernels expect them, with the tables that they make of them.
    secrets: OnceLock<Arc<Secrets>>,
}

impl PartialEq for Keyspace {
    fn eq(&self, other: &Keyspace) -> bool {
        // Everything else follows from these.
        (&self.prefix, &self.alphabet, &self.suffix)
            == (&other.prefix, &other.alphabet, &other.suffix)
    }
}

impl Eq for Keyspace {}

/// Reason why a keyspace is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// The prefix is too long.
    #[error("the prefix has {0} bytes; give at most {most}", most = Keyspace::MAX_PREFIX)]
    LongPrefix(usize),
    /// The suffix is too long.
    #[error("the suffix has {0} bytes; give at most {most}", most = Keyspace::MAX_SUFFIX)]
    LongSuffix(usize),
}

impl Keyspace {
    /// Maximum length of the prefix in bytes. It is hashed only once, so it could be longer, but
    /// every cursor contains it.
    pub const MAX_PREFIX: usize = 1 << 16;

    /// Maximum length of the suffix in bytes. It is hashed with every secret, and slices must stay
    /// short.
    pub const MAX_SUFFIX: usize = 1 << 10;

    /// Creates the keyspace of secrets that begin with `prefix`, end with `suffix`, and have bytes
    /// of `alphabet` in between.
    ///
    /// # Errors
    ///
    /// [`KeyspaceError`] if the prefix or the suffix is too long.
    pub fn new(
        prefix: &[u8],
        alphabet: Alphabet,
        suffix: &[u8],
    ) -> Result<Keyspace, KeyspaceError> {
        if prefix.len() > Self::MAX_PREFIX {
            return Err(KeyspaceError::LongPrefix(prefix.len()));
        }
        if suffix.len() > Self::MAX_SUFFIX {
            return Err(KeyspaceError::LongSuffix(suffix.len()));
        }
        Ok(Keyspace::of(prefix.to_vec(), alphabet, suffix.to_vec()))
    }

    fn of(prefix: Vec<u8>, alphabet: Alphabet, suffix: Vec<u8>) -> Keyspace {
        let radix = alphabet.0.len() as u128;
        let (mut firsts, mut end, mut count) = (Vec::new(), 0, 1);
        // The index has 64 bits, so the keyspace may end within a length. With all bytes it ends
        // within length 8. Getting there takes 585 years at a billion secrets a second.
        while firsts.len() <= MAX_SEARCHED && end < u128::from(Index::MAX) {
            firsts.push(end as Index);
            end = (end + count).min(Index::MAX.into());
            count *= radix;
        }
        Keyspace {
            prefix,
            suffix,
            alphabet,
            firsts,
            end: end as Index,
            secrets: OnceLock::new(),
        }
    }

    /// Returns the keyspace of all byte strings, as one shared instance.
    pub(crate) fn all() -> &'static Arc<Keyspace> {
        static ALL: LazyLock<Arc<Keyspace>> =
            LazyLock::new(|| Arc::new(Keyspace::of(Vec::new(), Alphabet::bytes(), Vec::new())));
        &ALL
    }

    /// Returns the prefix of every secret.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Returns the suffix of every secret.
    #[must_use]
    pub fn suffix(&self) -> &[u8] {
        &self.suffix
    }

    /// Returns the bytes of which the searched part of every secret consists.
    #[must_use]
    pub fn alphabet(&self) -> &Alphabet {
        &self.alphabet
    }

    /// Returns one past the last index.
    #[must_use]
    pub fn end(&self) -> Index {
        self.end
    }

    /// Returns the index of the first secret whose searched part has `length` bytes; `None` if
    /// there is none.
    #[must_use]
    pub fn first_of_length(&self, length: usize) -> Option<Index> {
        self.firsts.get(length).copied()
    }

    /// Returns the secret at an index.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`end`](Self::end).
    #[must_use]
    pub fn secret(&self, index: Index) -> Vec<u8> {
        let (_, digits) = self.digits(index);
        let bytes = digits.iter().map(|digit| self.alphabet.0[*digit]);
        let searched: Vec<u8> = bytes.collect();
        [&*self.prefix, &*searched, &*self.suffix].concat()
    }

    /// Returns a secret's index, if it is in the keyspace.
    #[must_use]
    pub fn index_of(&self, secret: &[u8]) -> Option<Index> {
        let searched = secret.strip_prefix(&*self.prefix)?;
        let searched = searched.strip_suffix(&*self.suffix)?;
        let radix = self.alphabet.0.len() as u128;
        let first = u128::from(self.first_of_length(searched.len())?);
        let mut counter = 0_u128;
        for byte in searched {
            let digit = self.alphabet.0.iter().position(|letter| letter == byte)?;
            counter = counter * radix + digit as u128;
        }
        let index = Index::try_from(first + counter).ok()?;
        (index < self.end).then_some(index)
    }

    /// Returns two values for the secret at `index`: the index (exclusive) up to which secrets have
    /// the same length, and the digits of the searched part, as positions in the alphabet.
    fn digits(&self, index: Index) -> (Index, Vec<usize>) {
        assert!(index < self.end, "the keyspace ends before {index}");
        let length = self.firsts.partition_point(|first| *first <= index) - 1;
        let end = self.firsts.get(length + 1).copied().unwrap_or(self.end);
        let mut digits = vec![0; length];
        let radix = self.alphabet.0.len() as u64;
        let mut counter = index - self.firsts[length];
        for digit in digits.iter_mut().rev() {
            *digit = (counter % radix) as usize;
            counter /= radix;
        }
        (end, digits)
    }

    /// Returns the secrets as the kernels expect them.
    pub(crate) fn secrets(&self) -> &Secrets {
        self.secrets
            .get_or_init(|| Arc::new(Secrets::new(&self.prefix, &self.alphabet.0, &self.suffix)))
    }

    /// Splits a range of indices where the length of the searched part changes. Returns the blocks
    /// in order, each with the index of its first secret.
    pub(crate) fn blocks(&self, range: Range<Index>) -> impl Iterator<Item = (Index, Block<'_>)> {
        let secrets = self.secrets();
        let mut at = range.start;
        std::iter::from_fn(move || {
            (at < range.end).then(|| {
                let length = self.firsts.partition_point(|first| *first <= at) - 1;
                let end = self.firsts.get(length + 1).copied().unwrap_or(self.end);
                let end = end.min(range.end);
                let first = at - self.firsts[length];
                let block = secrets.block(length as u32, first, end - at);
                (std::mem::replace(&mut at, end), block)
            })
        })
    }

    /// Calls `each` with the secrets of a range, without the prefix, until it returns `false`.
    /// Returns one past the last index tried.
    pub(crate) fn for_each(
        &self,
        range: Range<Index>,
        mut each: impl FnMut(Index, &[u8]) -> bool,
    ) -> Index {
        let mut at = range.start;
        while at < range.end {
            let (end, mut digits) = self.digits(at);
            let end = end.min(range.end);
            let mut secret: Vec<u8> = digits.iter().map(|digit| self.alphabet.0[*digit]).collect();
            secret.extend(&self.suffix);
            loop {
                if !each(at, &secret) {
                    return at + 1;
                }
                at += 1;
                if at == end {
                    break;
                }
                let searched = &mut secret[..digits.len()];
                for (digit, byte) in digits.iter_mut().zip(searched).rev() {
                    *digit += 1;
                    if let Some(next) = self.alphabet.0.get(*digit) {
                        *byte = *next;
                        break;
                    }
                    (*digit, *byte) = (0, self.alphabet.0[0]);
                }
            }
        }
        at
    }
}

impl Default for Keyspace {
    fn default() -> Keyspace {
        (**Keyspace::all()).clone()
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace")
            .field("prefix", &format_args!("{}", self.prefix.escape_ascii()))
            .field("alphabet", &self.alphabet)
            .field("suffix", &format_args!("{}", self.suffix.escape_ascii()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_enumerated_by_length_and_value() {
        let all = Keyspace::default();
        for (index, bytes) in [
            (0, &[][..]),
            (1, &[0]),
            (2, &[1]),
            (256, &[255]),
            (257, &[0, 0]),
            (258, &[0, 1]),
            (257 + 65_535, &[255, 255]),
            (257 + 65_536, &[0, 0, 0]),
        ] {
            assert_eq!(all.secret(index), bytes);
            assert_eq!(all.index_of(bytes), Some(index));
        }
    }

    #[test]
    fn all_byte_strings_end_within_eight_bytes() {
        let all = Keyspace::default();
        let last = all.secret(all.end() - 1);
        assert_eq!((all.end(), last.len()), (Index::MAX, 8));
        assert_eq!(all.index_of(&last), Some(Index::MAX - 1));
        assert_eq!(all.index_of(&[255; 8]), None);
        assert_eq!(all.index_of(&[0; 9]), None);
    }

    #[test]
    fn an_alphabet_of_one_byte_ends_with_its_longest_secret() {
        let keyspace = Keyspace::new(b"<", Alphabet::given(b"x").unwrap(), b">").unwrap();
        assert_eq!(keyspace.end(), 65);
        let longest = format!("<{}>", "x".repeat(64));
        assert_eq!(keyspace.secret(64), longest.as_bytes());
        assert_eq!(keyspace.index_of(b"<>"), Some(0));
        assert_eq!(keyspace.index_of(b"<y>"), None);
        assert_eq!(keyspace.index_of(b"<"), None);
    }

    #[test]
    fn alphabets_are_validated() {
        assert_eq!(Alphabet::printable().as_bytes().len(), 95);
        assert_eq!(Alphabet::alphanumeric().as_bytes().len(), 62);
        assert_eq!(Alphabet::digits().as_bytes(), b"0123456789");
        assert_eq!(Alphabet::given(b""), Err(AlphabetError::Empty));
        assert_eq!(Alphabet::given(b"aba"), Err(AlphabetError::Twice(b'a')));
        let said = Alphabet::given(b"\n\n").unwrap_err().to_string();
        assert!(said.contains("'\\n'"), "{said}");
    }

    #[test]
    fn overlong_prefixes_and_suffixes_are_rejected() {
        let long = vec![0; Keyspace::MAX_PREFIX + 1];
        let refused = |prefix: &[u8], suffix: &[u8]| {
            Keyspace::new(prefix, Alphabet::bytes(), suffix).unwrap_err()
        };
        assert_eq!(refused(&long, b""), KeyspaceError::LongPrefix(65_537));
        assert_eq!(refused(b"", &long[..1025]), KeyspaceError::LongSuffix(1025));
    }

    #[test]
    fn blocks_are_split_where_lengths_change() {
        let blocks: Vec<_> = Keyspace::all().blocks(0..70_000).collect();
        let lengths: Vec<_> = blocks.iter().map(|(at, b)| (*at, b.length())).collect();
        assert_eq!(lengths, [(0, 0), (1, 1), (257, 2), (65_793, 3)]);
        assert_eq!(blocks.iter().map(|(_, b)| b.count()).sum::<u64>(), 70_000);
    }

    fn keyspaces() -> impl Strategy<Value = Keyspace> {
        let alphabet = prop_oneof![
            Just(Alphabet::bytes()),
            Just(Alphabet::printable()),
            Just(Alphabet::digits()),
            Just(Alphabet::given(b"ba").unwrap()),
        ];
        let around = proptest::collection::vec(any::<u8>(), 0..5);
        (around.clone(), alphabet, around).prop_map(|(prefix, alphabet, suffix)| {
            Keyspace::new(&prefix, alphabet, &suffix).unwrap()
        })
    }

    proptest! {
        #[test]
        fn indices_and_secrets_are_one_to_one(keyspace in keyspaces(), index in 0..Index::MAX, shift in 0..64) {
            let index = index >> shift;
            let secret = keyspace.secret(index);
            prop_assert_eq!(keyspace.index_of(&secret), Some(index));
        }

        #[test]
        fn for_each_visits_every_secret_of_a_range(keyspace in keyspaces(), start in 0..70_000_u64, count in 0..600_u64) {
            let mut expected = start;
            let end = keyspace.for_each(start..start + count, |index, rest| {
                let secret = [keyspace.prefix(), rest].concat();
                assert_eq!((index, secret), (expected, keyspace.secret(expected)));
                expected += 1;
                true
            });
            prop_assert_eq!((end, expected), (start + count, start + count));
        }
    }
}

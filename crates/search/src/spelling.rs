//! How a secret is hashed, how its digest is written as text, and where names may occur in that
//! text.

use std::fmt;

use data_encoding::{BASE32, BASE64, BASE64URL, HEXLOWER};

/// A hash algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-1, 160 bits (FIPS 180-4).
    #[default]
    Sha1,
    /// SHA-256, 256 bits (FIPS 180-4).
    Sha256,
    /// SHA-512, 512 bits (FIPS 180-4).
    Sha512,
    /// BLAKE3, 256 bits, as in its paper of 2020.
    Blake3,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Algorithm; 4] = [
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
        Algorithm::Blake3,
    ];

    /// Returns the number of bits of a digest.
    #[must_use]
    pub fn digest_bits(self) -> usize {
        match self {
            Algorithm::Sha1 => 160,
            Algorithm::Sha256 | Algorithm::Blake3 => 256,
            Algorithm::Sha512 => 512,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        })
    }
}

/// A text encoding of digests. All are those of RFC 4648, with padding, except that hexadecimal is
/// in lower case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Base64: letters, digits, `+`, `/` and the padding `=`.
    #[default]
    Base64,
    /// Base64 with `-` for `+` and `_` for `/`.
    Base64Url,
    /// Hexadecimal, in lower case.
    Hex,
    /// Base32: capital letters, the digits 2 to 7 and the padding `=`.
    Base32,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Encoding; 4] = [
        Encoding::Base64,
        Encoding::Base64Url,
        Encoding::Hex,
        Encoding::Base32,
    ];

    /// Returns the digits, by value.
    pub(crate) const fn digits(self) -> &'static [u8] {
        match self {
            Encoding::Base64 => hashfinder_kernels::ALPHABET,
            Encoding::Base64Url => {
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
            }
            Encoding::Hex => b"0123456789abcdef",
            Encoding::Base32 => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
        }
    }

    /// Returns the set of all digits.
    fn set(self) -> Chars {
        const BASE64: Chars = Chars::of(Encoding::Base64.digits());
        const BASE64URL: Chars = Chars::of(Encoding::Base64Url.digits());
        const HEX: Chars = Chars::of(Encoding::Hex.digits());
        const BASE32: Chars = Chars::of(Encoding::Base32.digits());
        match self {
            Encoding::Base64 => BASE64,
            Encoding::Base64Url => BASE64URL,
            Encoding::Hex => HEX,
            Encoding::Base32 => BASE32,
        }
    }

    /// Returns the number of bits of a digit.
    fn bits(self) -> usize {
        self.digits().len().ilog2() as usize
    }

    /// Returns the size of a group of characters: padding makes the length of a text a multiple of
    /// it.
    fn group(self) -> usize {
        match self {
            Encoding::Base64 | Encoding::Base64Url => 4,
            Encoding::Hex => 1,
            Encoding::Base32 => 8,
        }
    }

    /// Returns how many of a digest's first bytes suffice for the first `characters` characters of
    /// its text. It may be a few more than needed.
    pub(crate) fn bytes_of(self, characters: usize) -> usize {
        // Eight characters hold as many bytes as one character holds bits. Padding comes only at
        // the end.
        characters.div_ceil(8) * self.bits()
    }

    fn encoder(self) -> data_encoding::Encoding {
        match self {
            Encoding::Base64 => BASE64,
            Encoding::Base64Url => BASE64URL,
            Encoding::Hex => HEXLOWER,
            Encoding::Base32 => BASE32,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Encoding::Base64 => "base64",
            Encoding::Base64Url => "base64url",
            Encoding::Hex => "hex",
            Encoding::Base32 => "base32",
        })
    }
}

/// Where a desired name has to be in a hashed name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Anchor {
    /// At any place.
    #[default]
    Anywhere,
    /// At the beginning.
    Prefix,
    /// At the very end. Padding is part of the hashed name, so the name then ends with it.
    Suffix,
}

impl Anchor {
    /// All anchors.
    pub const ALL: [Anchor; 3] = [Anchor::Anywhere, Anchor::Prefix, Anchor::Suffix];
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Anchor::Anywhere => "anywhere",
            Anchor::Prefix => "prefix",
            Anchor::Suffix => "suffix",
        })
    }
}

/// How secrets are hashed and written, and how names are compared with the result. The default is
/// that of the reference service: SHA-1 in base64, anywhere, in either case.
///
/// ```
/// use hashfinder_search::{Algorithm, Encoding, Spelling};
///
/// let reference = Spelling::default();
/// assert_eq!(reference.hashed_name(b"").as_str(), "2jmj7l5rSw0yVb/vlWAYkK/YBwk=");
/// let hex = Spelling { algorithm: Algorithm::Sha256, encoding: Encoding::Hex, ..reference };
/// assert_eq!(hex.text_len(), 64);
/// assert!(hex.hashed_name(b"").as_str().starts_with("e3b0c44298fc1c14"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spelling {
    /// How secrets are hashed.
    pub algorithm: Algorithm,
    /// How digests are written.
    pub encoding: Encoding,
    /// Where the name has to be.
    pub anchor: Anchor,
    /// Whether letters have to agree in case too.
    pub case_sensitive: bool,
}

/// Maximum number of characters of a hashed name: SHA-512 in hexadecimal.
pub(crate) const LONGEST_TEXT: usize = 128;

impl Spelling {
    /// Returns the number of characters of a hashed name.
    #[must_use]
    pub fn text_len(&self) -> usize {
        let digits = self.algorithm.digest_bits().div_ceil(self.encoding.bits());
        digits.next_multiple_of(self.encoding.group())
    }

    /// Returns the characters that can occur at place `index` of a hashed name, counted from 0.
    pub(crate) fn place(&self, index: usize) -> Chars {
        let bits = self.encoding.bits();
        match self.algorithm.digest_bits().saturating_sub(index * bits) {
            0 => Chars::PADDING,
            // Only the digit's upper bits belong to the digest; the others are zero.
            left if left < bits => {
                let digits = self.encoding.digits().iter().step_by(1 << (bits - left));
                digits.fold(Chars::NONE, |set, digit| set.with(*digit))
            }
            _ => self.encoding.set(),
        }
    }

    /// Returns the characters of a hashed name that satisfy `character` of a desired name: the
    /// character itself, in either case unless case matters. The set is empty if no hashed name can
    /// contain it.
    pub(crate) fn satisfying(&self, character: char) -> Chars {
        let mut set = Chars::NONE;
        for &digit in self.encoding.digits() {
            let shown = char::from(digit);
            let satisfies = if self.case_sensitive {
                shown == character
            } else {
                shown.eq_ignore_ascii_case(&character)
            };
            if satisfies {
                set = set.with(digit);
            }
        }
        if character == '=' && self.place(self.text_len() - 1) == Chars::PADDING {
            set = Chars::PADDING;
        }
        set
    }

    /// Returns the places where a name of `length` characters may begin.
    pub(crate) fn windows(&self, length: usize) -> std::ops::RangeInclusive<usize> {
        let last = self.text_len() - length;
        match self.anchor {
            Anchor::Anywhere => 0..=last,
            Anchor::Prefix => 0..=0,
            Anchor::Suffix => last..=last,
        }
    }

    /// Returns the hashed name of a secret.
    #[must_use]
    pub fn hashed_name(&self, secret: &[u8]) -> HashedName {
        let mut name = HashedName::blank();
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(secret);
        name.write(self.encoding, hasher.digest().bytes());
        name
    }
}

/// The text of a digest in a [`Spelling`], in ASCII.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashedName {
    text: [u8; LONGEST_TEXT],
    length: u8,
}

impl HashedName {
    /// Creates an empty text.
    pub(crate) fn blank() -> HashedName {
        HashedName {
            text: [0; LONGEST_TEXT],
            length: 0,
        }
    }

    /// Replaces the text with that of a digest, or of its first bytes.
    /// [`bytes_of`](Encoding::bytes_of) returns the number of bytes needed for a number of
    /// characters.
    #[inline]
    pub(crate) fn write(&mut self, encoding: Encoding, digest: &[u8]) {
        let encoder = encoding.encoder();
        let length = encoder.encode_len(digest.len());
        encoder.encode_mut(digest, &mut self.text[..length]);
        self.length = length as u8;
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every encoding's digits are ASCII, so the default is never used.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Returns the text, one byte for each character.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }
}

impl fmt::Display for HashedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for HashedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashedName({self})")
    }
}

/// A digest in progress.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    // Boxed because it takes two kilobytes, nearly all of them for messages beyond a kilobyte.
    Blake3(Box<blake3::Hasher>),
}

/// A digest of at most 64 bytes.
pub(crate) struct Digest {
    bytes: [u8; 64],
    length: usize,
}

impl Digest {
    #[inline]
    fn of(digest: &[u8]) -> Digest {
        let mut bytes = [0; 64];
        bytes[..digest.len()].copy_from_slice(digest);
        Digest {
            bytes,
            length: digest.len(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha1 => Hasher::Sha1(sha1::Sha1::default()),
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::default()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::default()),
            Algorithm::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        use sha1::Digest as _;
        match self {
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
            Hasher::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// Returns the digest of all updates so far followed by `rest`.
    #[inline]
    pub(crate) fn digest_with(&self, rest: &[u8]) -> Digest {
        use sha1::Digest as _;
        match self {
            Hasher::Sha1(hasher) => Digest::of(&hasher.clone().chain_update(rest).finalize()),
            Hasher::Sha256(hasher) => Digest::of(&hasher.clone().chain_update(rest).finalize()),
            Hasher::Sha512(hasher) => Digest::of(&hasher.clone().chain_update(rest).finalize()),
            Hasher::Blake3(hasher) if hasher.count() == 0 => {
                Digest::of(blake3::hash(rest).as_bytes())
            }
            Hasher::Blake3(hasher) => {
                let mut hasher = hasher.clone();
                hasher.update(rest);
                Digest::of(hasher.finalize().as_bytes())
            }
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest_with(&[])
    }
}

/// A set of ASCII characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chars(u128);

impl Chars {
    pub(crate) const NONE: Chars = Chars(0);

    /// Only `=`.
    pub(crate) const PADDING: Chars = Chars::NONE.with(b'=');

    const fn of(characters: &[u8]) -> Chars {
        let mut set = Chars::NONE;
        let mut index = 0;
        while index < characters.len() {
            set = set.with(characters[index]);
            index += 1;
        }
        set
    }

    /// Returns the set with one more character, which must be ASCII.
    pub(crate) const fn with(self, character: u8) -> Chars {
        Chars(self.0 | 1 << character)
    }

    pub(crate) fn intersects(self, other: Chars) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the intersection of both sets.
    pub(crate) fn and(self, other: Chars) -> Chars {
        Chars(self.0 & other.0)
    }

    pub(crate) fn contains(self, character: u8) -> bool {
        self.0 >> character & 1 == 1
    }

    /// Returns the number of characters in the set.
    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Returns the characters in the set, by value.
    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..128).filter(move |character| self.contains(*character))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spellings() -> impl Iterator<Item = Spelling> {
        Algorithm::ALL.into_iter().flat_map(|algorithm| {
            Encoding::ALL.into_iter().map(move |encoding| Spelling {
                algorithm,
                encoding,
                ..Spelling::default()
            })
        })
    }

    /// Digests of the empty message, from NIST's and BLAKE3's test vectors.
    #[test]
    fn digests_match_the_published_examples() {
        for (algorithm, hex) in [
            (Algorithm::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (
                Algorithm::Sha256,
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                Algorithm::Sha512,
                "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                 47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
            ),
            (
                Algorithm::Blake3,
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            ),
        ] {
            let spelling = Spelling {
                algorithm,
                encoding: Encoding::Hex,
                ..Spelling::default()
            };
            assert_eq!(spelling.hashed_name(b"").as_str(), hex);
        }
    }

    #[test]
    fn the_first_characters_are_made_of_the_first_bytes() {
        for spelling in spellings() {
            let whole = spelling.hashed_name(b"");
            let mut hasher = Hasher::new(spelling.algorithm);
            hasher.update(b"");
            let digest = hasher.digest();
            for length in 1..=spelling.text_len() {
                let bytes = spelling.encoding.bytes_of(length).min(digest.bytes().len());
                let mut first = HashedName::blank();
                first.write(spelling.encoding, &digest.bytes()[..bytes]);
                assert_eq!(
                    first.as_bytes()[..length],
                    whole.as_bytes()[..length],
                    "{spelling:?}"
                );
            }
        }
    }

    #[test]
    fn a_digest_continues_from_its_prefix() {
        let message: Vec<u8> = (0..3000_u32).map(|number| number as u8).collect();
        for algorithm in Algorithm::ALL {
            let mut whole = Hasher::new(algorithm);
            whole.update(&message);
            for cut in [0, 1, 63, 64, 65, 1024, 1025, 3000] {
                let mut first = Hasher::new(algorithm);
                first.update(&message[..cut]);
                let rest = first.digest_with(&message[cut..]);
                assert_eq!(rest.bytes(), whole.digest().bytes(), "{algorithm} at {cut}");
            }
        }
    }

    #[test]
    fn texts_have_the_right_length_and_last_characters() {
        for (algorithm, encoding, length, last) in [
            (Algorithm::Sha1, Encoding::Base64, 28, "="),
            (Algorithm::Sha1, Encoding::Base64Url, 28, "="),
            (Algorithm::Sha1, Encoding::Hex, 40, "0123456789abcdef"),
            (
                Algorithm::Sha1,
                Encoding::Base32,
                32,
                "234567ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            ),
            (Algorithm::Sha256, Encoding::Base64, 44, "="),
            (Algorithm::Sha256, Encoding::Base32, 56, "="),
            (Algorithm::Sha512, Encoding::Hex, 128, "0123456789abcdef"),
            (Algorithm::Sha512, Encoding::Base64, 88, "="),
            (Algorithm::Sha512, Encoding::Base32, 104, "="),
        ] {
            let spelling = Spelling {
                algorithm,
                encoding,
                ..Spelling::default()
            };
            assert_eq!(spelling.text_len(), length, "{spelling:?}");
            let shown: Vec<u8> = spelling.place(length - 1).iter().collect();
            assert_eq!(shown, last.as_bytes(), "{spelling:?}");
        }
        let place = Spelling::default().place(26);
        assert_eq!(place.iter().collect::<Vec<_>>(), b"048AEIMQUYcgkosw");
    }

    /// [`Spelling::place`] returns exactly the characters that occur at that place of hashed names.
    #[test]
    fn digests_show_exactly_the_characters_of_their_places() {
        for spelling in spellings() {
            let mut seen = vec![Chars::NONE; spelling.text_len()];
            for secret in 0..4000_u32 {
                let name = spelling.hashed_name(&secret.to_be_bytes());
                assert_eq!(name.as_bytes().len(), spelling.text_len());
                for (seen, shown) in seen.iter_mut().zip(name.as_bytes()) {
                    *seen = seen.with(*shown);
                }
            }
            for (index, seen) in seen.into_iter().enumerate() {
                assert_eq!(seen, spelling.place(index), "{spelling:?} at {index}");
            }
        }
    }
}

//! A digest as the characters of its text.

/// Number of characters of a hashed name in base64: 27 digits for the 160 bits, and the padding.
pub const HASHED_NAME_LEN: usize = Text::Base64.places();

/// An encoding of digests: how many bits a digit holds. All are those of RFC 4648, with padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Text {
    /// Base64 and base64url: six bits.
    #[default]
    Base64,
    /// Base32: five bits.
    Base32,
    /// Hexadecimal: four bits.
    Hex,
}

impl Text {
    /// All encodings.
    pub const ALL: [Text; 3] = [Text::Base64, Text::Base32, Text::Hex];

    /// Returns the number of bits of a digit.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Text::Base64 => 6,
            Text::Base32 => 5,
            Text::Hex => 4,
        }
    }

    /// Returns the number of characters of the text of a SHA-1 digest, including the padding.
    #[must_use]
    pub const fn places(self) -> usize {
        match self {
            Text::Base64 => 28,
            Text::Base32 => 32,
            Text::Hex => 40,
        }
    }

    /// Returns the number of values of a digit.
    pub(crate) const fn values(self) -> usize {
        1 << self.bits()
    }

    /// Returns the number of groups of four places.
    pub(crate) const fn groups(self) -> usize {
        self.places() / 4
    }

    /// Whether the last place is the padding. It is the case only for base64.
    pub(crate) const fn is_padded(self) -> bool {
        self.places() * self.bits() > DIGEST_BITS + self.bits()
    }
}

/// Number of bits of a digest.
pub(crate) const DIGEST_BITS: usize = 160;

const _: () = assert!(Text::Base64.is_padded() && !Text::Base32.is_padded());

/// The digits of standard base64, indexed by value.
pub const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value that stands for the padding `=`, one above the digits.
pub(crate) const PADDING: u8 = 64;

/// Returns the places of a digest's text: each is a digit's value or [`PADDING`].
#[cfg(test)]
pub(crate) fn places(text: Text, digest: &[u32; 5]) -> Vec<u8> {
    match text {
        Text::Base64 => base64_places(digest).to_vec(),
        Text::Base32 => base32_places(digest).to_vec(),
        Text::Hex => hex_places(digest).to_vec(),
    }
}

/// Returns the places of a digest in hexadecimal.
#[inline(always)]
pub(crate) fn hex_places(digest: &[u32; 5]) -> [u8; Text::Hex.places()] {
    let mut places = [0; Text::Hex.places()];
    for (eight, word) in places.chunks_exact_mut(8).zip(digest) {
        for (place, digit) in eight.iter_mut().enumerate() {
            *digit = (word >> (28 - 4 * place)) as u8 & 15;
        }
    }
    places
}

/// Returns the places of a digest in base32.
#[inline(always)]
pub(crate) fn base32_places(digest: &[u32; 5]) -> [u8; Text::Base32.places()] {
    let [a, b, c, d, e] = digest.map(u64::from);
    // Eight digits are forty bits.
    let groups = [
        a << 8 | b >> 24,
        b << 16 | c >> 16,
        c << 24 | d >> 8,
        d << 32 | e,
    ];
    let mut places = [0; Text::Base32.places()];
    for (eight, group) in places.chunks_exact_mut(8).zip(groups) {
        for (place, digit) in eight.iter_mut().enumerate() {
            *digit = (group >> (35 - 5 * place)) as u8 & 31;
        }
    }
    places
}

/// Returns the places of a digest in base64.
#[inline(always)]
pub(crate) fn base64_places(digest: &[u32; 5]) -> [u8; HASHED_NAME_LEN] {
    let [a, b, c, d, e] = digest;
    let groups = [
        a >> 8,
        a << 16 | b >> 16,
        b << 8 | c >> 24,
        *c,
        d >> 8,
        d << 16 | e >> 16,
        e << 8,
    ];
    let mut places = [0; HASHED_NAME_LEN];
    for (four, group) in places.chunks_exact_mut(4).zip(groups) {
        for (place, digit) in four.iter_mut().enumerate() {
            *digit = (group >> (18 - 6 * place)) as u8 & 63;
        }
    }
    places[HASHED_NAME_LEN - 1] = PADDING;
    places
}

/// Returns the standard base64 text of a digest, with its padding.
#[must_use]
pub fn hashed_name(digest: &[u32; 5]) -> [u8; HASHED_NAME_LEN] {
    base64_places(digest).map(|digit| *ALPHABET.get(usize::from(digit)).unwrap_or(&b'='))
}

/// A set of the characters of which hashed names consist: up to 64 digits, and `=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CharSet {
    digits: u64,
    padding: bool,
}

impl CharSet {
    /// The empty set. A name's character with this set never agrees, so it always adds one to the
    /// distance.
    pub const EMPTY: CharSet = CharSet {
        digits: 0,
        padding: false,
    };

    /// Only the padding `=`.
    pub const PADDING: CharSet = CharSet {
        digits: 0,
        padding: true,
    };

    /// Returns the set of digits whose character in standard base64 satisfies `predicate`.
    #[must_use]
    pub fn digits_where(predicate: impl Fn(u8) -> bool) -> CharSet {
        CharSet::values_where(|value| predicate(ALPHABET[usize::from(value)]))
    }

    /// Returns the set of digits whose value satisfies `predicate`. It is called with values up to
    /// 63, whatever the encoding.
    #[must_use]
    pub fn values_where(predicate: impl Fn(u8) -> bool) -> CharSet {
        let digits = (0..64).filter(|value| predicate(*value));
        let digits = digits.fold(0, |set, value| set | 1 << value);
        CharSet {
            digits,
            padding: false,
        }
    }

    /// Whether the two sets have a character in common.
    #[must_use]
    pub fn intersects(self, other: CharSet) -> bool {
        self.digits & other.digits != 0 || self.padding && other.padding
    }

    /// Returns the union of both sets.
    pub(crate) fn or(self, other: CharSet) -> CharSet {
        CharSet {
            digits: self.digits | other.digits,
            padding: self.padding || other.padding,
        }
    }

    /// Returns the fraction of an encoding's digits that are in the set.
    #[must_use]
    pub fn share(self, text: Text) -> f64 {
        let values = text.values();
        let all = u64::MAX >> (64 - values);
        f64::from((self.digits & all).count_ones()) / values as f64
    }

    /// Returns the digits in the set as a bit mask: bit `n` stands for the digit with the value
    /// `n`.
    pub(crate) fn bits(self) -> u64 {
        self.digits
    }

    /// Whether the set contains the character with this value: a digit's, or [`PADDING`].
    #[inline(always)]
    pub(crate) fn contains(self, digit: u8) -> bool {
        if digit == PADDING {
            self.padding
        } else {
            self.digits >> digit & 1 == 1
        }
    }
}

/// Returns the characters that can occur at place `index` of a hashed name in base64.
///
/// The 160 bits fill 26 digits and four bits of the 27th. The padding follows.
///
/// # Panics
///
/// If `index` is 28 or more.
#[must_use]
pub fn place(index: usize) -> CharSet {
    match index {
        0..=25 => CharSet {
            digits: u64::MAX,
            padding: false,
        },
        // The lower two of this digit's six bits lie beyond the digest and are zero.
        26 => CharSet {
            digits: 0x1111_1111_1111_1111,
            padding: false,
        },
        27 => CharSet::PADDING,
        _ => panic!("a hashed name has {HASHED_NAME_LEN} characters, not {index}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hashed_name_is_standard_base64(digest: [u32; 5]) {
            let name = hashed_name(&digest);
            let bytes: Vec<u8> = digest.into_iter().flat_map(u32::to_be_bytes).collect();
            prop_assert_eq!(std::str::from_utf8(&name).unwrap(), BASE64.encode(&bytes));
        }
    }

    #[test]
    fn the_27th_character_is_one_of_sixteen() {
        let shown: Vec<u8> = (0..64)
            .filter(|digit| place(26).contains(*digit))
            .map(|digit| ALPHABET[usize::from(digit)])
            .collect();
        assert_eq!(shown, b"AEIMQUYcgkosw048");
    }
}

//! A digest as the 28 characters of its base64 text.

/// Number of characters of a hashed name: 27 digits for the 160 bits, and the padding.
pub const HASHED_NAME_LEN: usize = 28;

/// Number of groups of four places in a hashed name.
pub(crate) const GROUPS: usize = HASHED_NAME_LEN / 4;

/// The digits of standard base64, indexed by value.
pub const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value that stands for the padding `=`, one above the digits.
pub(crate) const PADDING: u8 = 64;

/// Returns the 28 places of a digest, each as a digit's value or [`PADDING`].
#[inline(always)]
pub(crate) fn digits(digest: &[u32; 5]) -> [u8; HASHED_NAME_LEN] {
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
    let mut digits = [0; HASHED_NAME_LEN];
    for (four, group) in digits.chunks_exact_mut(4).zip(groups) {
        for (place, digit) in four.iter_mut().enumerate() {
            *digit = (group >> (18 - 6 * place)) as u8 & 63;
        }
    }
    digits[HASHED_NAME_LEN - 1] = PADDING;
    digits
}

/// Returns the standard base64 text of a digest, with its padding.
#[must_use]
pub fn hashed_name(digest: &[u32; 5]) -> [u8; HASHED_NAME_LEN] {
    digits(digest).map(|digit| *ALPHABET.get(usize::from(digit)).unwrap_or(&b'='))
}

/// A set of the characters of which hashed names consist: the 64 digits and `=`.
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

    /// Returns the set of digits whose character satisfies `predicate`.
    #[must_use]
    pub fn digits_where(predicate: impl Fn(u8) -> bool) -> CharSet {
        let digits = (0..64)
            .filter(|digit| predicate(ALPHABET[*digit]))
            .fold(0, |set, digit| set | 1 << digit);
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

    /// Returns the fraction of the 64 digits that are in the set.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.digits.count_ones()) / 64.0
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

/// Returns the characters that can occur at place `index` of a hashed name.
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
    use base64::{Engine, prelude::BASE64_STANDARD};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hashed_name_is_standard_base64(digest: [u32; 5]) {
            let name = hashed_name(&digest);
            let bytes: Vec<u8> = digest.into_iter().flat_map(u32::to_be_bytes).collect();
            prop_assert_eq!(std::str::from_utf8(&name).unwrap(), BASE64_STANDARD.encode(bytes));
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

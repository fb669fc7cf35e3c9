//! All secrets, in enumeration order.

use std::{fmt, ops::Range};

use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_kernels::{Block, MAX_SECRET_LEN, hashed_name, sha1};

/// A secret's place in enumeration order: by length, from the empty string on; within a length as
/// a big-endian counter over all byte values, the last byte fastest.
pub type Index = u64;

/// One past the last index.
///
/// 64 bits reach through every secret of up to seven bytes and most of those of eight. At a billion
/// secrets a second that takes 585 years, so a wider index would buy nothing.
pub const KEYSPACE_END: Index = Index::MAX;

/// How many secrets are shorter than `length` bytes, which is the index of the first of that many.
const fn first_of(length: u32) -> u128 {
    // 1 + 256 + 256^2 + ..., whose hexadecimal form is 1 followed by as many 01 as it has terms.
    ((1 << (8 * length)) - 1) / 255
}

const _: () = assert!(first_of(MAX_SECRET_LEN) < KEYSPACE_END as u128);
const _: () = assert!(first_of(MAX_SECRET_LEN + 1) > KEYSPACE_END as u128);

/// A candidate: up to eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Secret {
    length: u8,
    bytes: [u8; MAX_SECRET_LEN as usize],
}

impl Secret {
    /// The secret at an index.
    ///
    /// # Panics
    ///
    /// If there is none, which is so for [`KEYSPACE_END`] alone.
    #[must_use]
    pub fn at(index: Index) -> Secret {
        assert!(index < KEYSPACE_END, "the keyspace ends before {index}");
        let (length, counter) = split(index);
        let mut bytes = counter.to_be_bytes();
        bytes.rotate_left((MAX_SECRET_LEN - length) as usize);
        Secret {
            length: length as u8,
            bytes,
        }
    }

    /// Its place in enumeration order.
    #[must_use]
    pub fn index(&self) -> Index {
        let counter = self
            .as_bytes()
            .iter()
            .fold(0, |counter, byte| counter << 8 | u64::from(*byte));
        // Every secret was made from an index, so the sum is one again.
        first_of(u32::from(self.length)) as u64 + counter
    }

    /// The secret with these bytes, if it is in the keyspace.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Secret> {
        let length = u8::try_from(bytes.len()).ok()?;
        let mut padded = [0; MAX_SECRET_LEN as usize];
        padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let secret = Secret {
            length,
            bytes: padded,
        };
        let counter = bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        (first_of(u32::from(length)) + counter < u128::from(KEYSPACE_END)).then_some(secret)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Its bytes in standard base64, as the wire carries them.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64_STANDARD.encode(self.as_bytes())
    }

    /// What its SHA-1 spells.
    #[must_use]
    pub fn hashed_name(&self) -> HashedName {
        HashedName::of(self.as_bytes())
    }
}

impl fmt::LowerHex for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self:x})")
    }
}

/// The 28 characters of a digest in standard base64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashedName([u8; hashfinder_kernels::HASHED_NAME_LEN]);

impl HashedName {
    /// What the SHA-1 of any bytes spells.
    #[must_use]
    pub fn of(bytes: &[u8]) -> HashedName {
        HashedName(hashed_name(&sha1(bytes)))
    }

    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The alphabet is ASCII, so this never takes the default.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for HashedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A secret's length and its counter within that length.
fn split(index: Index) -> (u32, u64) {
    let wide = u128::from(index);
    let mut length = MAX_SECRET_LEN;
    while first_of(length) > wide {
        length -= 1;
    }
    (length, (wide - first_of(length)) as u64)
}

/// Cuts a range of indices where the length of the secrets changes: each block with the index of
/// its first secret, in order.
pub(crate) fn blocks(range: Range<Index>) -> impl Iterator<Item = (Index, Block)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let (length, counter) = split(at);
            let end = first_of(length + 1).min(u128::from(range.end)) as u64;
            let block = Block::new(length, counter, end - at);
            (std::mem::replace(&mut at, end), block)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_secrets_in_order() {
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
            assert_eq!(Secret::at(index).as_bytes(), bytes);
            assert_eq!(Secret::from_bytes(bytes).unwrap().index(), index);
        }
    }

    #[test]
    fn the_keyspace_ends_within_eight_bytes() {
        let last = Secret::at(KEYSPACE_END - 1);
        assert_eq!(last.as_bytes().len(), 8);
        assert_eq!(Secret::from_bytes(last.as_bytes()), Some(last));
        assert_eq!(Secret::from_bytes(&[255; 8]), None);
        assert_eq!(Secret::from_bytes(&[0; 9]), None);
    }

    #[test]
    fn blocks_meet_where_lengths_change() {
        let blocks: Vec<_> = blocks(0..70_000).collect();
        let lengths: Vec<_> = blocks.iter().map(|(at, b)| (*at, b.length())).collect();
        assert_eq!(lengths, [(0, 0), (1, 1), (257, 2), (65_793, 3)]);
        assert_eq!(blocks.iter().map(|(_, b)| b.count()).sum::<u64>(), 70_000);
    }

    proptest! {
        #[test]
        fn indices_and_secrets_are_one_to_one(index in 0..KEYSPACE_END, shift in 0..64) {
            let index = index >> shift;
            let secret = Secret::at(index);
            prop_assert_eq!(secret.index(), index);
            prop_assert_eq!(Secret::from_bytes(secret.as_bytes()), Some(secret));
        }
    }
}

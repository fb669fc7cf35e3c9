//! The filter for hundreds of names: an index of *grams*, sequences of four characters. In every
//! match of a name, one of its grams occurs.
//!
//! A name that may differ in `d` characters is cut into `d + 1` pieces, of which one must occur
//! unchanged. If a piece has at least `s + 3` characters, one of its first `s` grams begins at a
//! multiple of `s`, wherever the piece occurs. So only every `s`-th place is looked up.

use crate::{
    bitmap::Bitmap,
    digits::{ALPHABET, CharSet, HASHED_NAME_LEN, Text},
    name::Name,
};

/// A name, cut into pieces of which one must occur unchanged.
pub(super) struct Pieces {
    /// Where each piece begins in the name, and the codes of its characters.
    pieces: Vec<(usize, Vec<u32>)>,
    /// Length of every piece, in characters.
    length: usize,
}

impl Pieces {
    /// Cuts a name into pieces. Returns `None` if the pieces would be shorter than a gram, if the
    /// text is not base64, or if the set of one of the characters does not have exactly one code.
    pub(super) fn of(name: &Name) -> Option<Pieces> {
        let count = usize::from(name.max_distance) + 1;
        let length = name.characters.len() / count;
        if length < Grams::LEN || name.text != Text::Base64 {
            return None;
        }
        let codes = name.characters.iter().map(|set| code_of(*set));
        let codes: Vec<u32> = codes.collect::<Option<_>>()?;
        let begins = (0..count).map(|piece| piece * codes.len() / count);
        let pieces = begins.map(|at| (at, codes[at..at + length].to_vec()));
        Some(Pieces {
            pieces: pieces.collect(),
            length,
        })
    }

    /// Whether every piece has at least `stride` grams, so that one of them begins at a multiple of
    /// `stride`.
    pub(super) fn are_found_at_every(&self, stride: usize) -> bool {
        stride > 0 && self.length >= Grams::LEN - 1 + stride
    }

    /// Returns the keys of the first `stride` grams of each piece, each with the place in the name
    /// where the gram begins.
    fn grams(&self, stride: usize) -> impl Iterator<Item = (u32, u8)> {
        self.pieces.iter().flat_map(move |(begin, codes)| {
            let grams = codes.windows(Grams::LEN).take(stride).zip(*begin..);
            grams.map(|(codes, at)| (key(codes.iter().copied()), at as u8))
        })
    }
}

/// An index of sequences of four characters.
///
/// A character is represented by a code of five bits. Both cases of a letter have the same code.
/// `6` to `9`, `+` and `/` share the codes of `a` to `f`.
#[derive(Clone, Debug)]
pub(crate) struct Grams {
    stride: usize,
    /// The grams' keys. Only their lowest bits are compared.
    bitmap: Bitmap,
    /// Sorted by key.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The gram's codes, the first one in the lowest bits.
    key: u32,
    name: u16,
    /// Where the gram begins in the name.
    at: u8,
}

impl Grams {
    const LEN: usize = 4;

    /// Number of bits of a code.
    pub(crate) const CODE_BITS: u32 = 5;

    /// Maximum stride: a longer one saves hardly anything.
    pub(crate) const STRIDES: usize = 8;

    /// Last place where a gram can begin: no gram contains the padding.
    const LAST_PLACE: usize = HASHED_NAME_LEN - 1 - Self::LEN;

    /// Cost of looking up one place for sixteen hashes, in vector operations. Most of it is a
    /// gather, which takes about twenty cycles.
    const COST: f64 = 45.0;

    /// Number of bits of the bitmap per gram: enough that few hashes pass.
    const BITS_FOR_GRAM: usize = 256;

    /// Minimum and maximum number of bits of a bitmap: 512 bytes and 128 KiB. A smaller bitmap is
    /// not faster, and the largest one has a bit for every key.
    const MIN_BITS: usize = 1 << 12;
    const MAX_BITS: usize = 1 << (Self::LEN as u32 * Self::CODE_BITS);

    pub(super) fn new(names: &[(u16, &Pieces)], stride: usize) -> Grams {
        let entries = names.iter().flat_map(|&(name, pieces)| {
            pieces
                .grams(stride)
                .map(move |(key, at)| Entry { key, name, at })
        });
        let mut entries: Vec<Entry> = entries.collect();
        entries.sort_unstable();
        let mut bitmap = Bitmap::new(Self::bits(entries.len()));
        for entry in &entries {
            bitmap.insert(entry.key);
        }
        Grams {
            stride,
            bitmap,
            entries,
        }
    }

    /// Returns the number of bits of the bitmap for this number of grams.
    fn bits(grams: usize) -> usize {
        let bits = (grams * Self::BITS_FOR_GRAM).next_power_of_two();
        bits.clamp(Self::MIN_BITS, Self::MAX_BITS)
    }

    /// Returns the cost of searching for these names, or 0 if there are none. `stray` is the cost
    /// if all hashes pass.
    pub(super) fn cost<'a>(
        names: impl Iterator<Item = &'a Pieces>,
        stride: usize,
        stray: f64,
    ) -> f64 {
        let grams: usize = names.map(|name| stride * name.pieces.len()).sum();
        if grams == 0 {
            return 0.0;
        }
        let places = Self::places_of(stride).count() as f64;
        // An upper bound: a gram that occurs in several names is counted once for each.
        let rate = places * grams as f64 / Self::bits(grams) as f64;
        Text::Base64.groups() as f64 + places * Self::COST + stray * rate.min(1.0)
    }

    /// Returns the places where grams are looked up.
    #[inline(always)]
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        Self::places_of(self.stride)
    }

    #[inline(always)]
    fn places_of(stride: usize) -> impl Iterator<Item = usize> {
        (0..=Self::LAST_PLACE).step_by(stride)
    }

    /// Returns the bitmap of the grams' keys, of which only the lowest bits are compared.
    #[inline(always)]
    pub(crate) fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// Whether there may be a gram with this key.
    #[inline(always)]
    pub(crate) fn may_have(&self, key: u32) -> bool {
        self.bitmap.contains(key)
    }

    /// Calls `found` for every gram that occurs, with its name and the place where that name would
    /// begin.
    #[inline(always)]
    pub(crate) fn candidates(&self, digits: &[u8], mut found: impl FnMut(u16, usize)) {
        for place in self.places() {
            let gram = digits[place..place + Self::LEN].iter();
            let key = key(gram.map(|digit| u32::from(CODES[usize::from(*digit)])));
            if self.may_have(key) {
                let first = self.entries.partition_point(|entry| entry.key < key);
                let same = self.entries[first..].iter();
                for entry in same.take_while(|entry| entry.key == key) {
                    if let Some(begin) = place.checked_sub(usize::from(entry.at)) {
                        found(entry.name, begin);
                    }
                }
            }
        }
    }
}

/// The code of each digit, indexed by the digit's value.
pub(crate) const CODES: [u8; 64] = {
    let mut codes = [0; 64];
    let mut digit = 0;
    while digit < 64 {
        // The lower-case letters follow the upper-case ones.
        let folded = if digit < 26 { digit } else { digit - 26 };
        codes[digit] = (folded % (1 << Grams::CODE_BITS)) as u8;
        digit += 1;
    }
    codes
};

/// Returns the code that all characters of a set have in common, if there is exactly one.
fn code_of(set: CharSet) -> Option<u32> {
    if set.intersects(CharSet::PADDING) {
        return None;
    }
    let digits = (0..ALPHABET.len() as u8).filter(|digit| set.contains(*digit));
    let mut codes = digits.map(|digit| u32::from(CODES[usize::from(digit)]));
    let first = codes.next()?;
    codes.all(|code| code == first).then_some(first)
}

/// Returns a gram's key.
#[inline(always)]
fn key(codes: impl DoubleEndedIterator<Item = u32>) -> u32 {
    codes
        .rev()
        .fold(0, |key, code| key << Grams::CODE_BITS | code)
}

/// Returns the key of four codes, the first one in the lowest bits.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn key_of(codes: [u8; Grams::LEN]) -> u32 {
    key(codes.into_iter().map(u32::from))
}

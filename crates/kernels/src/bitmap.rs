//! A set of keys that compares only their lowest bits.

/// A set of keys that compares only their lowest bits, so it may contain keys that were not
/// inserted.
///
/// The number of words is a power of two. So a key ANDed with [`mask`](Self::mask) is always the
/// index of a bit in [`words`](Self::words). Gather instructions rely on that, and no code outside
/// this module can change it.
#[derive(Clone, Debug)]
pub(crate) struct Bitmap(Box<[u32]>);

impl Bitmap {
    /// Maximum number of bits. It keeps the mask within 32 bits, and word indices within the signed
    /// 32-bit integers that a gather takes.
    const MAX_BITS: usize = 1 << 31;

    /// Creates an empty set with `bits` bits, rounded up to a power of two and to a whole word.
    ///
    /// # Panics
    ///
    /// If `bits` is above 2^31.
    pub(crate) fn new(bits: usize) -> Bitmap {
        assert!(bits <= Self::MAX_BITS, "a bitmap of {bits} bits");
        let words = bits.div_ceil(32).max(1).next_power_of_two();
        Bitmap(vec![0; words].into())
    }

    /// Adds a key.
    pub(crate) fn insert(&mut self, key: u32) {
        let bit = key & self.mask();
        self.0[bit as usize / 32] |= 1 << (bit % 32);
    }

    /// Whether the key, or another with the same lowest bits, was inserted.
    #[inline(always)]
    pub(crate) fn contains(&self, key: u32) -> bool {
        let bit = key & self.mask();
        self.0[bit as usize / 32] >> (bit % 32) & 1 == 1
    }

    /// Returns the mask that selects the compared bits of a key.
    #[inline(always)]
    pub(crate) fn mask(&self) -> u32 {
        // There are at most 2^31 bits, so the cast loses nothing.
        (self.0.len() * 32 - 1) as u32
    }

    /// Returns the bits, 32 to a word, the lowest first.
    #[inline(always)]
    pub(crate) fn words(&self) -> &[u32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_bit_at_any_size() {
        for (bits, words) in [(0, 1), (1, 1), (32, 1), (33, 2), (96, 4), (4096, 128)] {
            let mut bitmap = Bitmap::new(bits);
            assert_eq!(bitmap.words().len(), words);
            assert_eq!(bitmap.mask() as usize, 32 * words - 1);
            for key in [0, 1, 31, 32, u32::MAX] {
                assert!(!Bitmap::new(bits).contains(key));
                bitmap.insert(key);
                assert!(bitmap.contains(key));
            }
        }
    }
}

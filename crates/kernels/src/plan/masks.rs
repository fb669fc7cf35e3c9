//! The filter for a name at a given place: its digits' bits are compared with the digest's.

use crate::{
    digits::{CharSet, DIGEST_BITS},
    name::Name,
};

/// Bits of a digest that have to agree with a part of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    /// For each word of the digest, the bits that are compared.
    pub(crate) bits: [u32; 5],
    /// What they have to be. All other bits are zero.
    pub(crate) wanted: [u32; 5],
}

impl Mask {
    /// Returns the masks of a name: at least one of them agrees with every digest within its
    /// distance.
    ///
    /// A name that may differ in `d` characters is cut into `d + 1` parts. If every part had a
    /// character that differs, there would be `d + 1`, so one part agrees completely. There is no
    /// mask if the name cannot match.
    pub(super) fn all(name: &Name) -> Vec<Mask> {
        let at = name.at.unwrap_or_default();
        let mut characters = Vec::new();
        // Characters that nothing satisfies always differ.
        let mut left = usize::from(name.max_distance);
        for (place, set) in (at..).zip(&name.characters) {
            if *set != CharSet::EMPTY {
                characters.push(Mask::of(name, place, *set));
            } else if left == 0 {
                return Vec::new();
            } else {
                left -= 1;
            }
        }
        // Those with the most bits first, so that the parts get about the same number.
        characters.sort_by_key(|mask| std::cmp::Reverse(mask.count()));
        let mut parts = vec![Mask::default(); left + 1];
        for mask in characters {
            if let Some(least) = parts.iter_mut().min_by_key(|part| part.count()) {
                least.add(&mask);
            }
        }
        parts
    }

    /// Replaces masks that compare the same bits, and of which two differ in one of them, by a mask
    /// without that bit. The names `c0` to `c3` become one mask of six bits.
    pub(super) fn merge(masks: &mut Vec<Mask>) {
        if masks.len() > Self::MOST_MERGED {
            return;
        }
        let mut at = 0;
        while at < masks.len() {
            let partner = (at + 1..masks.len()).find(|other| masks[at].is_merged(&masks[*other]));
            match partner {
                Some(other) => {
                    let other = masks.swap_remove(other);
                    for word in 0..5 {
                        let differ = masks[at].wanted[word] ^ other.wanted[word];
                        masks[at].bits[word] &= !differ;
                        masks[at].wanted[word] &= !differ;
                    }
                    // The new mask may go together with an earlier one.
                    at = 0;
                }
                None => at += 1,
            }
        }
    }

    /// Maximum number of masks that are compared with one another.
    const MOST_MERGED: usize = 64;

    /// Whether two masks compare the same bits, and want different ones in at most one place.
    fn is_merged(&self, other: &Mask) -> bool {
        let words = self.wanted.iter().zip(other.wanted);
        let differ: u32 = words.map(|(a, b)| (a ^ b).count_ones()).sum();
        self.bits == other.bits && differ <= 1
    }

    /// Returns the bits that all digits of a set have in common.
    fn of(name: &Name, place: usize, set: CharSet) -> Mask {
        let width = name.text.bits();
        let mut mask = Mask::default();
        for bit in 0..width {
            let at = place * width + bit;
            let has = |value: &u8| value >> (width - 1 - bit) & 1 == 1;
            let mut values = (0..name.text.values() as u8).filter(|value| set.contains(*value));
            let Some(first) = values.next().as_ref().map(has) else {
                // Only the padding, or nothing: there is no bit to compare.
                continue;
            };
            // The last digit may have more bits than are left of the digest.
            if at < DIGEST_BITS && values.all(|value| has(&value) == first) {
                let (word, bit) = (at / 32, 31 - at % 32);
                mask.bits[word] |= 1 << bit;
                mask.wanted[word] |= u32::from(first) << bit;
            }
        }
        mask
    }

    fn add(&mut self, other: &Mask) {
        for word in 0..5 {
            self.bits[word] |= other.bits[word];
            self.wanted[word] |= other.wanted[word];
        }
    }

    /// Returns the number of bits that are compared.
    fn count(&self) -> u32 {
        self.bits.iter().map(|bits| bits.count_ones()).sum()
    }

    /// Returns the cost of comparing with these masks, in vector operations for sixteen hashes.
    /// `stray` is that of sixteen hashes that pass.
    pub(super) fn cost(masks: &[Mask], stray: f64) -> f64 {
        let words = |mask: &Mask| mask.bits.iter().filter(|bits| **bits != 0).count();
        let operations = masks.iter().map(|mask| 2.0 * words(mask) as f64 + 2.0);
        let rates = masks.iter().map(|mask| 0.5_f64.powi(mask.count() as i32));
        operations.sum::<f64>() + stray * rates.sum::<f64>().min(1.0)
    }
}

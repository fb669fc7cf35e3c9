//! A block of consecutive secrets.

/// The longest secret that a [`Block`] can hold, in bytes: its varying part is one 64-bit counter.
pub const MAX_SECRET_LEN: u32 = 8;

/// Consecutive secrets of one length: the big-endian counters from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub(crate) length: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Block {
    /// `count` secrets of `length` bytes, the first of them being `first` written big-endian.
    ///
    /// # Panics
    ///
    /// If `length` is above [`MAX_SECRET_LEN`], or the block reaches beyond the last secret of its
    /// length: both are mistakes of the caller, which splits its ranges at the lengths' ends.
    #[must_use]
    pub fn new(length: u32, first: u64, count: u64) -> Block {
        assert!(length <= MAX_SECRET_LEN, "no secrets of {length} bytes");
        let secrets = 1_u128 << (8 * length);
        assert!(
            u128::from(first) + u128::from(count) <= secrets,
            "{count} secrets from {first} on do not exist in {length} bytes"
        );
        Block {
            length,
            first,
            count,
        }
    }

    /// How many bytes each secret has.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// How many secrets there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

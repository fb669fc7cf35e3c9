//! A block of consecutive secrets.

/// Maximum length of a secret in a [`Block`], in bytes: each secret is a 64-bit counter.
pub const MAX_SECRET_LEN: u32 = 8;

/// Consecutive secrets of one length: big-endian counters, starting from `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub(crate) length: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Block {
    /// Creates a block of `count` secrets of `length` bytes. The first secret is `first`, written
    /// big-endian.
    ///
    /// # Panics
    ///
    /// If `length` is above [`MAX_SECRET_LEN`], or the block reaches beyond the last secret of its
    /// length. The caller has to split its ranges where the length changes.
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

    /// Returns the length of each secret in bytes.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Returns the number of secrets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

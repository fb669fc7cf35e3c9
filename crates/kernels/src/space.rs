//! What all secrets of a search have in common, and the messages that are hashed for them.

use std::fmt;

use crate::split::INITIAL;

/// Number of bytes that SHA-1 hashes at a time (FIPS 180-4, 5.2.1).
pub(crate) const BLOCK: usize = 64;

/// The byte that follows a message (FIPS 180-4, 5.1.1).
const TERMINATOR: u8 = 0x80;

/// A fixed prefix, of which whole blocks are hashed already, an alphabet, and a fixed suffix.
pub(crate) struct Space {
    /// The state after the whole blocks of the prefix.
    state: [u32; 5],
    /// Number of bytes of these blocks.
    hashed: u64,
    /// The rest of the prefix, which is shorter than a block.
    head: Vec<u8>,
    alphabet: Vec<u8>,
    suffix: Vec<u8>,
    /// For each byte of the alphabet, the next one. The first follows the last.
    next: [u8; 256],
}

impl Space {
    /// Panics if `alphabet` is empty or contains a byte twice.
    pub(crate) fn new(prefix: &[u8], alphabet: &[u8], suffix: &[u8]) -> Space {
        assert!(!alphabet.is_empty(), "the alphabet is empty");
        let mut next = [0; 256];
        let mut seen = [false; 256];
        let after = alphabet[1..].iter().chain(&alphabet[..1]);
        for (byte, after) in alphabet.iter().zip(after) {
            let seen = &mut seen[usize::from(*byte)];
            assert!(!*seen, "the alphabet contains {byte} twice");
            *seen = true;
            next[usize::from(*byte)] = *after;
        }
        let (blocks, head) = prefix.as_chunks::<BLOCK>();
        let mut state = INITIAL;
        sha1::block_api::compress(&mut state, blocks);
        Space {
            state,
            hashed: blocks.as_flattened().len() as u64,
            head: head.to_vec(),
            alphabet: alphabet.to_vec(),
            suffix: suffix.to_vec(),
            next,
        }
    }

    /// Returns the number of searched parts of `length` bytes, at most 2^127.
    pub(crate) fn count(&self, length: u32) -> u128 {
        let count = (self.alphabet.len() as u128).checked_pow(length);
        count.unwrap_or(u128::MAX).min(1 << 127)
    }

    /// Returns the number of blocks that are hashed for a secret with a searched part of the usual
    /// length.
    pub(crate) fn blocks(&self) -> f64 {
        const USUAL: usize = 6;
        let end = self.head.len() + USUAL;
        let blocks = (end + self.suffix.len() + 9).div_ceil(BLOCK);
        (blocks - (end - 1) / BLOCK) as f64
    }

    /// Whether these are all byte strings, with nothing around them.
    pub(crate) fn are_all(&self) -> bool {
        self.are_bytes() && self.head.is_empty() && self.hashed == 0 && self.suffix.is_empty()
    }

    /// Whether the digits of the searched parts are all bytes, in ascending order.
    pub(crate) fn are_bytes(&self) -> bool {
        self.alphabet.len() == 256 && self.alphabet.is_sorted()
    }

    pub(crate) fn alphabet(&self) -> &[u8] {
        &self.alphabet
    }

    /// Returns the number of digits that a byte of the searched part can have.
    pub(crate) fn radix(&self) -> u64 {
        self.alphabet.len() as u64
    }

    /// Returns the state after the blocks that are hashed already.
    pub(crate) fn state(&self) -> [u32; 5] {
        self.state
    }

    /// Returns where the searched part begins in the first block that is not hashed yet.
    pub(crate) fn place(&self) -> usize {
        self.head.len()
    }

    /// Returns the blocks that are not hashed yet, with the padding, and with a searched part of
    /// `length` zeros.
    pub(crate) fn message(&self, length: u32) -> Vec<[u8; BLOCK]> {
        let searched = vec![0; length as usize];
        let mut message = [&self.head[..], &searched, &self.suffix, &[TERMINATOR]].concat();
        let bits = 8 * (self.hashed + message.len() as u64 - 1);
        // The number of bits fills the last eight bytes of the last block.
        let end = (message.len() + 8).next_multiple_of(BLOCK);
        message.resize(end - 8, 0);
        message.extend(bits.to_be_bytes());
        message.as_chunks::<BLOCK>().0.to_vec()
    }

    /// Writes the searched part that is the counter `counter`.
    pub(crate) fn write(&self, mut counter: u64, searched: &mut [u8]) {
        for byte in searched.iter_mut().rev() {
            *byte = self.alphabet[(counter % self.radix()) as usize];
            counter /= self.radix();
        }
    }

    /// Replaces a searched part with the next one.
    #[inline]
    pub(crate) fn advance(&self, searched: &mut [u8]) {
        for byte in searched.iter_mut().rev() {
            *byte = self.next[usize::from(*byte)];
            if *byte != self.alphabet[0] {
                break;
            }
        }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("hashed", &self.hashed)
            .field("head", &format_args!("{}", self.head.escape_ascii()))
            .field(
                "alphabet",
                &format_args!("{}", self.alphabet.escape_ascii()),
            )
            .field("suffix", &format_args!("{}", self.suffix.escape_ascii()))
            .finish_non_exhaustive()
    }
}

//! The linear split of SHA-1's message schedule, which is the basis of the vector kernels.
//!
//! SHA-1 expands sixteen message words to eighty by
//! `W[t] = (W[t-3] ^ W[t-8] ^ W[t-14] ^ W[t-16]) <<< 1` (FIPS 180-4, 6.1.2). That is linear over
//! GF(2): the expansion of the XOR of two messages is the XOR of their expansions. Secrets are
//! hashed in *chunks* of 2^14 whose counters differ only in the last fourteen bits. The message of
//! each secret is the XOR of three parts:
//!
//! - the *base*: everything that the whole chunk has in common, including the padding;
//! - the *lane*: the last [`LANE_BITS`] bits of the counter, one value for each lane of the
//!   vectors;
//! - the *row*: the next [`ROW_BITS`] bits.
//!
//! (The idea of expanding the varying part separately is from Jens Steube, "Exploiting a SHA1
//! weakness in password cracking", Passwords^12, 2012.)
//!
//! So `W[t] = base[t] ^ lane[t] ^ row[t]`, and each part is expanded separately: the lanes and rows
//! only once for each length of secret, the base once for each chunk. A row of 64 secrets then
//! needs no schedule, only its words as scalars that are broadcast. That saves the vector
//! operations of the schedule, and the registers that would hold its window of sixteen words.
//!
//! How a word enters its round depends on which parts make it vary within a chunk ([`Word`]). The
//! numbers are for secrets of four bytes, where the fourteen bits lie in one word of the message,
//! and for secrets of five bytes, where they span two:
//!
//! - Neither lane nor row (31 of the 80 words, or 17): one addition of a constant that includes the
//!   round's own constant.
//! - Both, in bits that never overlap (21, or 9): two additions, because an addition can replace
//!   the XOR. The lane's part includes the round's constant.
//! - Both, in bits that overlap (28, or 39): one XOR and two additions.
//! - Only the row (none, or 15): one addition of a scalar.
//!
//! A round has six operations: two rotations, the ternary function, and the additions of function,
//! rotation and word. With the 77 more that the words above need, a vector of hashes takes 557
//! operations, for secrets of four bytes. A plain schedule takes 752: three more for each of its 64
//! words, and one for each round's constant. The first rounds, where most of the state is known,
//! save thirteen operations, and the digests' additions take four: 548.
//!
//! Only AVX-512 tries all byte strings in this way. For other secrets, and on other CPUs, the words
//! are split as well, but all of them as if their bits overlapped ([`layout`](crate::layout)).

/// Number of vector operations that hashing takes for each vector of secrets.
pub(crate) const OPERATIONS: f64 = 548.0;

/// Number of the counter's last bits that select the lane. 64 lanes are four vectors of sixteen.
pub(crate) const LANE_BITS: u32 = 6;

/// Number of lanes of a row.
pub(crate) const LANES: usize = 1 << LANE_BITS;

/// Number of bits that select the row, before those that select the lane. The rows' table (320
/// bytes per row, 80 KiB in all) stays in the second-level cache.
pub(crate) const ROW_BITS: u32 = 8;

/// Number of rows of a chunk.
pub(crate) const ROWS: usize = 1 << ROW_BITS;

/// Number of secrets of a chunk.
pub(crate) const CHUNK: u64 = 1 << (LANE_BITS + ROW_BITS);

/// Maximum number of words that are a [`Word::Add`] or [`Word::Row`].
pub(crate) const SUMS: usize = 32;

/// Maximum number of words that are a [`Word::Xor`].
pub(crate) const XORS: usize = 48;

/// SHA-1's initial state (FIPS 180-4, 5.3.1).
pub(crate) const INITIAL: [u32; 5] = [
    0x6745_2301,
    0xefcd_ab89,
    0x98ba_dcfe,
    0x1032_5476,
    0xc3d2_e1f0,
];

/// Returns the constant of round `t` (FIPS 180-4, 4.2.1).
pub(crate) const fn constant(t: usize) -> u32 {
    match t / 20 {
        0 => 0x5a82_7999,
        1 => 0x6ed9_eba1,
        2 => 0x8f1b_bcdc,
        _ => 0xca62_c1d6,
    }
}

/// How an expanded word is composed, and the slot that holds its row's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The same for the whole chunk.
    Constant,
    /// Lane and row, in bits that overlap.
    Xor(usize),
    /// Lane and row, in bits that never overlap.
    Add(usize),
    /// Only the row.
    Row(usize),
}

/// The possible positions of the fourteen bits: in the message's first word, across both words, or
/// in the second. The rounds depend on nothing else. Rotating every word of a message rotates its
/// expansion, so the position within a word does not matter.
pub(crate) const CASES: [Case; 3] = [case(4), case(5), case(6)];

/// Returns the index in [`CASES`] for secrets of `length` bytes.
pub(crate) const fn case_of(length: u32) -> usize {
    match length {
        0..=4 => 0,
        5 => 1,
        _ => 2,
    }
}

pub(crate) struct Case {
    /// The composition of each expanded word.
    pub(crate) words: [Word; 80],
}

const fn case(length: u32) -> Case {
    let (lanes, rows) = (lane_mask(length), row_mask(length));
    let mut words = [Word::Constant; 80];
    let (mut xors, mut sums) = (0, 0);
    let mut t = 0;
    while t < 80 {
        match (lanes[t] != 0, rows[t] != 0) {
            (false, false) => {}
            (false, true) => {
                words[t] = Word::Row(sums);
                sums += 1;
            }
            (true, true) if lanes[t] & rows[t] == 0 => {
                words[t] = Word::Add(sums);
                sums += 1;
            }
            (true, true) => {
                words[t] = Word::Xor(xors);
                xors += 1;
            }
            (true, false) => panic!("no word varies in the lane alone"),
        }
        t += 1;
    }
    assert!(xors <= XORS && sums <= SUMS);
    Case { words }
}

/// Returns the bits of each expanded word in which lanes can differ.
const fn lane_mask(length: u32) -> [u32; 80] {
    mask(length, 0, LANE_BITS)
}

/// Returns the bits of each expanded word in which rows can differ.
const fn row_mask(length: u32) -> [u32; 80] {
    mask(length, LANE_BITS, LANE_BITS + ROW_BITS)
}

/// [`row_mask`], computed at compile time.
pub(crate) fn row_mask_of(length: u32) -> &'static [u32; 80] {
    static MASKS: [[u32; 80]; 9] = {
        let mut masks = [[0; 80]; 9];
        let mut length = 1;
        while length <= 8 {
            masks[length as usize] = row_mask(length);
            length += 1;
        }
        masks
    };
    &MASKS[length as usize]
}

const fn mask(length: u32, from: u32, to: u32) -> [u32; 80] {
    let mut mask = [0; 80];
    let mut bit = from;
    while bit < to {
        let words = expand_front(shifted(1 << bit, length));
        let mut t = 0;
        while t < 80 {
            mask[t] |= words[t];
            t += 1;
        }
        bit += 1;
    }
    mask
}

/// Returns a counter shifted to its position in the first eight bytes of the message, for a secret
/// of `length` bytes. Bits that do not fit into `length` bytes are lost.
pub(crate) const fn shifted(counter: u64, length: u32) -> u64 {
    counter << (64 - 8 * length)
}

pub(crate) const fn expand_front(front: u64) -> [u32; 80] {
    let mut words = [0; 80];
    words[0] = (front >> 32) as u32;
    words[1] = front as u32;
    expand(words)
}

pub(crate) const fn expand(mut words: [u32; 80]) -> [u32; 80] {
    let mut t = 16;
    while t < 80 {
        words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        t += 1;
    }
    words
}

/// Returns the expanded base of a chunk: the expansion of the message of its first secret.
pub(crate) fn base(length: u32, first: u64) -> [u32; 80] {
    let front = shifted(first, length);
    let mut words = [0; 80];
    words[0] = (front >> 32) as u32;
    words[1] = front as u32;
    // The byte that follows the message (FIPS 180-4, 5.1.1).
    words[length as usize / 4] |= 0x8000_0000 >> (8 * (length % 4));
    words[15] = 8 * length;
    expand(words)
}

/// A row's part of the expanded words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Row {
    /// The part of the words that are [`Word::Add`] or [`Word::Row`].
    pub(crate) sums: [u32; SUMS],
    /// The part of the words that are [`Word::Xor`].
    pub(crate) xors: [u32; XORS],
}

/// The expanded words of the lanes and rows, for one length of secrets.
pub(crate) struct Tables {
    /// For each expanded word, the part of every lane.
    pub(crate) lanes: [Lanes; 80],
    /// The part of every row.
    pub(crate) rows: [Row; ROWS],
}

/// The part of every lane for one expanded word.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [u32; LANES]);

impl Tables {
    /// Returns the tables for secrets of `length` bytes (at least one). They are built on first
    /// use.
    pub(crate) fn of(length: u32) -> &'static Tables {
        use std::sync::OnceLock;
        static TABLES: [OnceLock<Box<Tables>>; 9] = [const { OnceLock::new() }; 9];
        TABLES[length as usize].get_or_init(|| Box::new(Tables::new(length)))
    }

    fn new(length: u32) -> Tables {
        let mut tables = Tables {
            lanes: [Lanes([0; LANES]); 80],
            rows: [Row {
                sums: [0; SUMS],
                xors: [0; XORS],
            }; ROWS],
        };
        for lane in 0..LANES {
            let words = expand_front(shifted(lane as u64, length));
            for (lanes, word) in tables.lanes.iter_mut().zip(words) {
                lanes.0[lane] = word;
            }
        }
        let kinds = &CASES[case_of(length)].words;
        for (row, number) in tables.rows.iter_mut().zip(0_u64..) {
            let words = expand_front(shifted(number << LANE_BITS, length));
            for (kind, word) in kinds.iter().zip(words) {
                match *kind {
                    Word::Constant => debug_assert_eq!(word, 0),
                    Word::Xor(slot) => row.xors[slot] = word,
                    Word::Add(slot) | Word::Row(slot) => row.sums[slot] = word,
                }
            }
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_message_for_every_length() {
        for length in 1..=8_u32 {
            let tables = Tables::of(length);
            let kinds = &CASES[case_of(length)].words;
            let (lane_mask, row_mask) = (lane_mask(length), row_mask(length));
            let bits = 8 * length;
            let first = (0x0123_4567_89ab_cdef_u64 >> (64 - bits)) & !(CHUNK - 1);
            let last = (CHUNK - 1).min((1 << bits.min(32)) - 1);
            for counter in [0, 1, 63, 64, 200, 5000, CHUNK - 1].map(|counter| last.min(counter)) {
                let (row, lane) = ((counter >> LANE_BITS) as usize, counter as usize % LANES);
                let (base, whole) = (base(length, first), base(length, first + counter));
                for t in 0..80 {
                    let row = match kinds[t] {
                        Word::Constant => 0,
                        Word::Xor(slot) => tables.rows[row].xors[slot],
                        Word::Add(slot) | Word::Row(slot) => tables.rows[row].sums[slot],
                    };
                    assert_eq!(
                        base[t] ^ tables.lanes[t].0[lane] ^ row,
                        whole[t],
                        "word {t}"
                    );
                    // A case is computed for one length, and must hold for all lengths that use it.
                    match kinds[t] {
                        Word::Constant => assert_eq!((lane_mask[t], row_mask[t]), (0, 0)),
                        Word::Add(_) => assert_eq!(lane_mask[t] & row_mask[t], 0),
                        Word::Row(_) => assert_eq!(lane_mask[t], 0),
                        Word::Xor(_) => {}
                    }
                }
            }
        }
    }
}

//! The linear split of [`split`](crate::split) for CPUs with SHA instructions. These instructions
//! take the words of one message four at a time. For each four words, one XOR replaces the
//! instructions for the schedule.

use std::sync::OnceLock;

use crate::{
    rows::ExpandedChunk,
    split::{LANE_BITS, LANES, ROWS, base, expand_front, shifted},
};

/// Four consecutive words, in the order that the CPU's instructions expect.
pub(crate) type Quad = [u32; 4];

/// The eighty expanded words of a message, or of one of its parts.
pub(crate) type Words = [Quad; 20];

/// XORed with a word's number within its quad to get the word's position in a vector. x86 expects
/// the first word at the highest position, ARM at the lowest.
const FIRST_IS_LAST: usize = if cfg!(target_arch = "x86_64") { 3 } else { 0 };

/// The expanded words of the lanes and rows, for one length of secrets.
struct Tables {
    lanes: [Words; LANES],
    rows: [Words; ROWS],
}

impl Tables {
    /// Returns the tables for secrets of `length` bytes (at least one). They are built on first
    /// use.
    fn of(length: u32) -> &'static Tables {
        static TABLES: [OnceLock<Box<Tables>>; 9] = [const { OnceLock::new() }; 9];
        TABLES[length as usize].get_or_init(|| {
            let words = |counter: usize| quads(expand_front(shifted(counter as u64, length)));
            Box::new(Tables {
                lanes: std::array::from_fn(words),
                rows: std::array::from_fn(|row| words(row << LANE_BITS)),
            })
        })
    }
}

fn quads(words: [u32; 80]) -> Words {
    std::array::from_fn(|quad| std::array::from_fn(|t| words[4 * quad + (t ^ FIRST_IS_LAST)]))
}

/// A chunk's part of the expanded words.
pub(crate) struct Chunk {
    tables: &'static Tables,
    base: Words,
}

/// The part of the expanded words that a row's lanes have in common: the row's and the chunk's.
#[repr(C, align(64))]
pub(crate) struct Row(pub(crate) Words);

impl ExpandedChunk for Chunk {
    type Row = Row;

    /// Creates the chunk that begins with the secret `first`.
    fn new(length: u32, first: u64) -> Chunk {
        Chunk {
            tables: Tables::of(length),
            base: quads(base(length, first)),
        }
    }

    #[inline(always)]
    fn row(&self, number: usize) -> Row {
        let mut words = self.tables.rows[number];
        for quad in 0..20 {
            for t in 0..4 {
                words[quad][t] ^= self.base[quad][t];
            }
        }
        Row(words)
    }
}

impl Chunk {
    /// Returns a lane's part of the expanded words.
    #[inline(always)]
    pub(crate) fn lane(&self, number: usize) -> &'static Words {
        &self.tables.lanes[number]
    }
}

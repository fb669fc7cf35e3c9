//! The linear split for any secrets: a kernel's way through those of one length.
//!
//! [`split`](crate::split) describes the split. Here the lanes are the last characters of the
//! searched part, and the rows are those before them. Both are in the same block of the message,
//! the *varying* one. Everything before the first word that varies is hashed once for each chunk:
//! earlier blocks, and the first rounds of the varying one. Blocks after it are the same for all
//! secrets, apart from the state with which they begin.

use crate::{
    space::{BLOCK, Space},
    split::{constant, expand},
    walk::Walk,
};

/// How a kernel takes its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In vectors of one word of several hashes. With the number of hashes in a vector, and that of
    /// the hashes that the kernel makes at a time.
    Vectors { width: usize, group: usize },
    /// In quads of four words of one hash. With the number of hashes that the kernel makes at a
    /// time.
    Quads { group: usize },
}

impl Form {
    fn width(self) -> usize {
        match self {
            Form::Vectors { width, .. } => width,
            Form::Quads { .. } => 1,
        }
    }

    fn group(self) -> usize {
        match self {
            Form::Vectors { group, .. } | Form::Quads { group } => group,
        }
    }

    /// Returns the words in the order in which the kernel takes them.
    fn ordered(self, words: &[u32; 80]) -> [u32; 80] {
        match self {
            Form::Vectors { .. } => *words,
            // x86 expects the first word of a quad at the highest position, ARM at the lowest.
            Form::Quads { .. } if cfg!(target_arch = "x86_64") => {
                std::array::from_fn(|t| words[t ^ 3])
            }
            Form::Quads { .. } => *words,
        }
    }
}

/// Sixteen words, aligned like the widest vectors.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; Line::WORDS]);

impl Line {
    pub(crate) const WORDS: usize = 16;
}

/// The eighty words of a message, or of a part of it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Words(pub(crate) [u32; 80]);

/// How a kernel walks through the secrets of one length.
pub(crate) struct Layout {
    form: Form,
    /// Number of lanes of a row: the number of secrets that differ only in the last characters.
    lanes: usize,
    /// The first round whose word varies within a chunk.
    start: usize,
    /// The lanes' part of the words: for each vector of lanes one after another, or for each lane
    /// if the kernel takes quads. There are lanes for whole groups.
    lane_words: Vec<Line>,
    row_words: Vec<Words>,
    /// The state before the message.
    state: [u32; 5],
    /// The message up to the varying block, without the searched part.
    message: Vec<[u8; BLOCK]>,
    /// Where the searched part begins in the message, and how long it is.
    searched: (usize, usize),
    /// The words of the blocks after the varying one. A kernel that takes vectors does not add the
    /// rounds' constants, so they are included for it.
    tail: Vec<Words>,
}

/// Maximum number of lanes, at 320 bytes each. A kernel reads them in order, so they need not fit
/// into a cache.
const MOST_LANES: u64 = 2048;

/// Maximum number of rows, at 320 bytes each.
const MOST_ROWS: u64 = 256;

/// Number of lanes if the alphabet is all bytes: the lower six bits of the last byte select one.
const BYTE_LANES: u64 = 64;

/// The share of a row's hashes that must belong to lanes. Only if it is less are more characters
/// made lanes, because they need larger tables.
const WELL_USED: f64 = 0.9;

impl Layout {
    pub(crate) fn new(space: &Space, length: u32, form: Form) -> Layout {
        let mut message = space.message(length);
        let place = space.place();
        let end = place + length as usize;
        // The block with the last character.
        let varying = (end - 1) / BLOCK;
        let inside = (end - varying * BLOCK).min(length as usize) as u32;
        let (lanes, rows) = if space.are_bytes() {
            let all = 1_u64 << (8 * inside).min(32);
            (BYTE_LANES, (all / BYTE_LANES).min(MOST_ROWS))
        } else {
            let radix = space.radix();
            let characters = best_characters(radix, inside, form.group());
            let lanes = radix.pow(characters);
            let mut rows = 1;
            for _ in characters..inside {
                if radix < 2 || rows * radix > MOST_ROWS {
                    break;
                }
                rows *= radix;
            }
            (lanes, rows)
        };

        // A part of the message is what a counter changes in the message of counter 0.
        let mut zero = vec![0; length as usize];
        space.write(0, &mut zero);
        let part = |counter: u64| -> [u32; 80] {
            let mut searched = vec![0; length as usize];
            space.write(counter, &mut searched);
            let mut blocks = vec![[0; BLOCK]; varying + 1];
            let bytes = blocks.as_flattened_mut()[place..end].iter_mut();
            for ((byte, searched), zero) in bytes.zip(&searched).zip(&zero) {
                *byte = searched ^ zero;
            }
            expanded(&blocks[varying])
        };
        let row_words: Vec<[u32; 80]> = (0..rows).map(|row| part(row * lanes)).collect();
        let mut start = 15;
        let (width, padded) = (
            form.width(),
            (lanes as usize).next_multiple_of(form.group()),
        );
        let mut lane_words = vec![Line([0; Line::WORDS]); (padded * 80).div_ceil(Line::WORDS)];
        let places = lane_words.iter_mut().flat_map(|line| &mut line.0);
        let places: Vec<&mut u32> = places.collect();
        let mut places = places.into_iter();
        let parts: Vec<[u32; 80]> = (0..lanes).map(part).collect();
        let all: Vec<[u32; 80]> = parts.iter().map(|words| form.ordered(words)).collect();
        for vector in 0..padded / width {
            for t in 0..80 {
                for lane in vector * width..(vector + 1) * width {
                    // The lanes beyond the last are not used.
                    let words = all.get(lane).unwrap_or(&all[0]);
                    if let Some(place) = places.next() {
                        *place = words[t];
                    }
                }
            }
        }
        for words in parts.iter().chain(&row_words) {
            let first = words.iter().position(|word| *word != 0);
            start = start.min(first.unwrap_or(start));
        }
        if let Form::Quads { .. } = form {
            start -= start % 4;
        }
        let tail = message.split_off(varying + 1);
        let tail = tail.iter().map(|block| {
            let mut words = expanded(block);
            if let Form::Vectors { .. } = form {
                for (t, word) in words.iter_mut().enumerate() {
                    *word = word.wrapping_add(constant(t));
                }
            }
            Words(form.ordered(&words))
        });
        Layout {
            form,
            lanes: lanes as usize,
            start,
            lane_words,
            row_words: row_words
                .iter()
                .map(|words| Words(form.ordered(words)))
                .collect(),
            state: space.state(),
            message,
            searched: (place, length as usize),
            tail: tail.collect(),
        }
    }

    /// Returns the number of secrets of a chunk.
    pub(crate) fn chunk_len(&self) -> u64 {
        (self.lanes * self.row_words.len()) as u64
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Returns the lanes' part of the words from the vector or the lane with this number on.
    #[inline(always)]
    pub(crate) fn lane_words(&self, number: usize) -> &[Line] {
        let lines = self.form.width() * 80 / Line::WORDS;
        &self.lane_words[number * lines..]
    }

    pub(crate) fn tail(&self) -> &[Words] {
        &self.tail
    }

    /// Returns the chunk that begins with the searched part `first`.
    pub(crate) fn chunk(&self, space: &Space, first: u64) -> Chunk {
        // The searched part begins in the first block, and is not longer than a block.
        let mut message = [[0; BLOCK]; 2];
        let message = &mut message[..self.message.len()];
        message.copy_from_slice(&self.message);
        let (place, length) = self.searched;
        space.write(
            first,
            &mut message.as_flattened_mut()[place..place + length],
        );
        let mut before = self.state;
        let [earlier @ .., varying] = message else {
            unreachable!("a message has a block with its searched part");
        };
        sha1::block_api::compress(&mut before, earlier);
        let base = expanded(varying);
        let mut state = before;
        for t in 0..self.start {
            state = round(state, t, base[t]);
        }
        Chunk {
            before,
            state,
            base: Words(self.form.ordered(&base)),
        }
    }

    /// Returns the part of the words that a row's lanes have in common: the row's and the chunk's.
    #[inline(always)]
    pub(crate) fn row(&self, chunk: &Chunk, number: usize) -> Words {
        let mut words = self.row_words[number];
        for t in 0..80 {
            words.0[t] ^= chunk.base.0[t];
        }
        words
    }
}

/// What a chunk's secrets have in common.
pub(crate) struct Chunk {
    /// The state before the varying block.
    pub(crate) before: [u32; 5],
    /// The state before the first round whose word varies.
    pub(crate) state: [u32; 5],
    base: Words,
}

/// Returns how many of the last characters are lanes, out of `inside`: as few as use the kernel's
/// groups well, otherwise those that use them best.
fn best_characters(radix: u64, inside: u32, group: usize) -> u32 {
    let used = |characters: u32| {
        let lanes = radix.pow(characters);
        lanes as f64 / lanes.next_multiple_of(group as u64) as f64
    };
    let fits = |characters: &u32| {
        let lanes = radix.checked_pow(*characters);
        *characters == 1 || lanes.is_some_and(|lanes| lanes <= MOST_LANES)
    };
    let possible: Vec<u32> = (1..=inside).take_while(fits).collect();
    let well = possible.iter().find(|n| used(**n) >= WELL_USED);
    let best = possible
        .iter()
        .max_by(|a, b| used(**a).total_cmp(&used(**b)));
    well.or(best).copied().unwrap_or(1)
}

/// Returns the expanded words of a block.
fn expanded(block: &[u8; BLOCK]) -> [u32; 80] {
    let mut words = [0; 80];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    expand(words)
}

/// Returns the state after round `t` (FIPS 180-4, 6.1.2).
fn round([a, b, c, d, e]: [u32; 5], t: usize, word: u32) -> [u32; 5] {
    let f = match t / 20 {
        0 => b & c | !b & d,
        2 => b & c | b & d | c & d,
        _ => b ^ c ^ d,
    };
    let sum = f.wrapping_add(e).wrapping_add(word);
    let sum = sum.wrapping_add(constant(t)).wrapping_add(a.rotate_left(5));
    [sum, a, b.rotate_left(30), c, d]
}

/// The walk through the secrets of one length by a [`Layout`].
#[derive(Clone, Copy)]
pub(crate) struct Around<'l>(pub(crate) &'l Space, pub(crate) &'l Layout);

impl Walk for Around<'_> {
    type Chunk = Chunk;
    type Row = Words;

    const CASES: usize = 1;

    fn case(&self) -> usize {
        0
    }

    fn lanes(&self) -> usize {
        self.1.lanes
    }

    fn chunk_len(&self) -> u64 {
        self.1.chunk_len()
    }

    fn chunk(&self, first: u64) -> Chunk {
        self.1.chunk(self.0, first)
    }

    #[inline(always)]
    fn row(&self, chunk: &Chunk, number: usize) -> Words {
        self.1.row(chunk, number)
    }
}

//! Runs a vector kernel over a block: chunk by chunk, row by row.
//!
//! [`split`](crate::split) defines these terms, and a [`Walk`] their sizes. A row is always hashed
//! as a whole. If a block begins or ends within a row, the hashes outside the block are discarded
//! afterwards.

use std::hint::black_box;

use crate::{
    filter::Filter,
    hits::{Hit, Hits},
    secrets::Block,
    simd::{Digests, Simd},
    walk::Walk,
    windows::{CheckMore, Windows},
};

/// Hashes a row, `N` vectors at a time.
pub(crate) trait Hasher<W: Walk, const N: usize>: Copy {
    /// The vectors that hold the digests.
    type Simd: CheckMore;

    fn simd(self) -> Self::Simd;

    /// Returns the digests of `N` vectors of the row's lanes, starting with `lane`. `CASE` is what
    /// [`Walk::case`] returns.
    fn hash<const CASE: usize>(
        self,
        walk: &W,
        chunk: &W::Chunk,
        row: &W::Row,
        lane: usize,
    ) -> [Digests<Self::Simd>; N];
}

/// The secrets of a block that lie in one chunk.
#[derive(Clone, Copy)]
struct Part {
    /// The chunk's first secret.
    chunk: u64,
    /// Offset of the part's first secret from the chunk's first.
    from: u64,
    count: u64,
    /// Offset of the part's first secret from the block's first.
    offset: u64,
    /// Number of lanes of a row.
    lanes: usize,
}

impl Part {
    /// Returns the part that begins `offset` secrets after the block's first.
    fn of(walk: &impl Walk, block: &Block<'_>, offset: u64) -> Part {
        let first = block.first + offset;
        let from = first % walk.chunk_len();
        Part {
            chunk: first - from,
            from,
            count: (walk.chunk_len() - from).min(block.count - offset),
            offset,
            lanes: walk.lanes(),
        }
    }

    /// Returns the rows that contain the part.
    fn rows(self) -> std::ops::Range<usize> {
        let lanes = self.lanes as u64;
        let end = (self.from + self.count).div_ceil(lanes);
        (self.from / lanes) as usize..end as usize
    }

    /// Returns the lanes of a row that belong to the part.
    fn lanes(self, row: usize) -> std::ops::Range<usize> {
        let first = (row * self.lanes) as u64;
        let end = (self.from + self.count).min(first + self.lanes as u64);
        (self.from.max(first) - first) as usize..(end - first) as usize
    }
}

/// See [`Kernel::scan`](crate::kernel::Kernel::scan).
#[inline(always)]
pub(crate) fn scan<H: Hasher<W, N>, W: Walk, const N: usize>(
    hasher: H,
    walk: &W,
    block: &Block<'_>,
    filter: &Filter,
    hits: &mut Hits,
) -> u64 {
    if hits.is_full() {
        return 0;
    }
    let windows = Windows::new(hasher.simd(), filter);
    let mut offset = 0;
    while offset < block.count {
        let part = Part::of(walk, block, offset);
        let chunk = walk.chunk(part.chunk);
        let tried = match walk.case() {
            1 if W::CASES > 1 => {
                scan_part::<H, W, N, 1>(hasher, walk, &chunk, &windows, filter, part, hits)
            }
            2 if W::CASES > 2 => {
                scan_part::<H, W, N, 2>(hasher, walk, &chunk, &windows, filter, part, hits)
            }
            _ => scan_part::<H, W, N, 0>(hasher, walk, &chunk, &windows, filter, part, hits),
        };
        offset += tried;
        if hits.is_full() {
            break;
        }
    }
    offset
}

/// Tries a part of a chunk. Returns the number of secrets tried: all, or those up to and including
/// the last hit if the list became full.
#[inline(always)]
fn scan_part<H: Hasher<W, N>, W: Walk, const N: usize, const CASE: usize>(
    hasher: H,
    walk: &W,
    chunk: &W::Chunk,
    windows: &Windows<'_, H::Simd>,
    filter: &Filter,
    part: Part,
    hits: &mut Hits,
) -> u64 {
    let simd = hasher.simd();
    for number in part.rows() {
        // Hides the chunk from the optimizer, which would otherwise load everything that all rows
        // share before the loop, run out of registers, and spill it to the stack.
        let chunk = black_box(chunk);
        let row = walk.row(chunk, number);
        // Keeps the row in memory: the rounds broadcast its words from there, one by one.
        let row = black_box(&row);
        let mut lane = 0;
        while lane < part.lanes {
            let digests = hasher.hash::<CASE>(walk, chunk, row, lane);
            let mut passed = [0; N];
            for v in 0..N {
                passed[v] = windows.check(simd, &digests[v]);
            }
            if passed != [0; N] {
                for v in 0..N {
                    let first = lane + v * H::Simd::WIDTH;
                    if passed[v] != 0
                        && confirm(
                            &stored(simd, &digests[v]),
                            (number, first),
                            passed[v],
                            filter,
                            part,
                            hits,
                        )
                    {
                        let last = hits.last().map_or(0, |hit| hit.offset);
                        return last + 1 - part.offset;
                    }
                }
            }
            lane += N * H::Simd::WIDTH;
        }
    }
    part.count
}

/// Number of words of the widest vectors.
const WIDEST: usize = 16;

#[inline(always)]
fn stored<S: Simd>(simd: S, digests: &Digests<S>) -> [[u32; WIDEST]; 5] {
    let mut words = [[0; WIDEST]; 5];
    for word in 0..5 {
        simd.store(digests[word], &mut words[word]);
    }
    words
}

/// Checks the hashes of a vector that passed the fast filter, and adds the hits. Returns whether
/// that filled the list. `row` and `first` are the row and the lane of the vector's first hash.
#[cold]
#[inline(never)]
fn confirm(
    words: &[[u32; WIDEST]; 5],
    (row, first): (usize, usize),
    passed: u64,
    filter: &Filter,
    part: Part,
    hits: &mut Hits,
) -> bool {
    let lanes = part.lanes(row);
    for lane in 0..WIDEST {
        // Each hash has four bits, of which at least one is set if the hash passed.
        if passed >> (4 * lane) & 0xf == 0 || !lanes.contains(&(first + lane)) {
            continue;
        }
        let digest = std::array::from_fn(|word| words[word][lane]);
        let counter = (row * part.lanes + first + lane) as u64;
        let offset = part.offset + (counter - part.from);
        filter.check(&digest, |found| hits.push(Hit::new(offset, found)));
        if hits.is_full() {
            return true;
        }
    }
    false
}

/// See [`Kernel::digest_sum`](crate::kernel::Kernel::digest_sum).
#[inline(always)]
pub(crate) fn digest_sum<H: Hasher<W, N>, W: Walk, const N: usize>(
    hasher: H,
    walk: &W,
    block: &Block<'_>,
) -> u32 {
    let mut sum = 0;
    let mut offset = 0;
    while offset < block.count {
        let part = Part::of(walk, block, offset);
        let chunk = walk.chunk(part.chunk);
        sum ^= match walk.case() {
            1 if W::CASES > 1 => part_sum::<H, W, N, 1>(hasher, walk, &chunk, part),
            2 if W::CASES > 2 => part_sum::<H, W, N, 2>(hasher, walk, &chunk, part),
            _ => part_sum::<H, W, N, 0>(hasher, walk, &chunk, part),
        };
        offset += part.count;
    }
    sum
}

#[inline(always)]
fn part_sum<H: Hasher<W, N>, W: Walk, const N: usize, const CASE: usize>(
    hasher: H,
    walk: &W,
    chunk: &W::Chunk,
    part: Part,
) -> u32 {
    let simd = hasher.simd();
    let mut sums = [simd.set1(0); N];
    let mut sum = 0;
    for number in part.rows() {
        let chunk = black_box(chunk);
        let row = walk.row(chunk, number);
        let row = black_box(&row);
        let lanes = part.lanes(number);
        let mut lane = 0;
        while lane < part.lanes {
            let digests = hasher.hash::<CASE>(walk, chunk, row, lane);
            for v in 0..N {
                let first = lane + v * H::Simd::WIDTH;
                if lanes.start <= first && first + H::Simd::WIDTH <= lanes.end {
                    sums[v] = simd.xor(sums[v], digests[v][0]);
                } else {
                    let words = stored(simd, &digests[v]);
                    for (lane, word) in (first..first + H::Simd::WIDTH).zip(words[0]) {
                        sum ^= if lanes.contains(&lane) { word } else { 0 };
                    }
                }
            }
            lane += N * H::Simd::WIDTH;
        }
    }
    for v in 0..N {
        let mut words = [0; WIDEST];
        simd.store(sums[v], &mut words);
        sum ^= words.iter().fold(0, |sum, word| sum ^ word);
    }
    sum
}

/// Makes the methods `scan` and `digest_sum` of a vector kernel, compiled for its instructions. A
/// value of the kernel's type proves that the CPU has these instructions.
///
/// The walk is that of a [`Layout`](crate::layout::Layout), which gives the words the form `$form`.
/// For all byte strings, a kernel may have another walk, `$bytes`.
macro_rules! kernel {
    ($features:literal, $form:expr $(, $bytes:ident)?) => {
        /// See [`Kernel::scan`](crate::kernel::Kernel::scan).
        pub(crate) fn scan(
            self,
            block: &crate::secrets::Block<'_>,
            filter: &crate::filter::Filter,
            hits: &mut crate::hits::Hits,
        ) -> u64 {
            #[target_feature(enable = $features)]
            fn compiled<H: crate::rows::Hasher<W, VECTORS>, W: crate::walk::Walk>(
                hasher: H,
                walk: &W,
                block: &crate::secrets::Block<'_>,
                filter: &crate::filter::Filter,
                hits: &mut crate::hits::Hits,
            ) -> u64 {
                crate::rows::scan(hasher, walk, block, filter, hits)
            }
            if block.length < 1 {
                return crate::portable::scan(block, filter, hits);
            }
            $(
                if block.secrets.space().are_all() && block.length <= $bytes::LONGEST {
                    let walk = $bytes(block.length);
                    // SAFETY: `self` proves that the CPU has the features.
                    return unsafe { compiled(self, &walk, block, filter, hits) };
                }
            )?
            let layout = block.secrets.layout(block.length, $form);
            let walk = crate::layout::Around(block.secrets.space(), &layout);
            // SAFETY: as above.
            unsafe { compiled(self, &walk, block, filter, hits) }
        }

        /// See [`Kernel::digest_sum`](crate::kernel::Kernel::digest_sum).
        pub(crate) fn digest_sum(self, block: &crate::secrets::Block<'_>) -> u32 {
            #[target_feature(enable = $features)]
            fn compiled<H: crate::rows::Hasher<W, VECTORS>, W: crate::walk::Walk>(
                hasher: H,
                walk: &W,
                block: &crate::secrets::Block<'_>,
            ) -> u32 {
                crate::rows::digest_sum(hasher, walk, block)
            }
            if block.length < 1 {
                return crate::portable::digest_sum(block);
            }
            $(
                if block.secrets.space().are_all() && block.length <= $bytes::LONGEST {
                    let walk = $bytes(block.length);
                    // SAFETY: `self` proves that the CPU has the features.
                    return unsafe { compiled(self, &walk, block) };
                }
            )?
            let layout = block.secrets.layout(block.length, $form);
            let walk = crate::layout::Around(block.secrets.space(), &layout);
            // SAFETY: as above.
            unsafe { compiled(self, &walk, block) }
        }
    };
}

pub(crate) use kernel;

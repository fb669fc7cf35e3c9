//! SHA-1's rounds with one hash in each lane of a vector, on the words from
//! [`split`](crate::split).

use crate::{
    rows::ExpandedChunk,
    simd::{Digests, Simd},
    split::{
        CASES, INITIAL, LANES, Lanes, SUMS, Tables, Word, XORS, base, case_of, constant,
        row_mask_of,
    },
};

/// A chunk's part of the expanded words.
pub(crate) struct Chunk {
    tables: &'static Tables,
    /// The lanes' part of each [`Word::Xor`] and [`Word::Add`], including the base's bits. That of
    /// a [`Word::Add`] also includes the round's constant, but not the base's bits in which rows
    /// differ.
    lanes: [Lanes; 80],
    /// Each [`Word::Constant`], plus the round's constant.
    constants: [u32; 80],
    /// For each of a row's sums, the base's bits that the lanes do not include.
    base: [u32; SUMS],
    /// For each of a row's sums, the round's constant if the lanes do not include it, otherwise 0.
    addend: [u32; SUMS],
}

impl ExpandedChunk for Chunk {
    type Row = Row;

    /// Creates the chunk that begins with the secret `first`.
    ///
    /// This is inlined, so that the compiler vectorizes its loops with the widest vectors that the
    /// kernel may use.
    #[inline(always)]
    fn new(length: u32, first: u64) -> Chunk {
        let tables = Tables::of(length);
        let base = base(length, first);
        let rows = row_mask_of(length);
        let mut chunk = Chunk {
            tables,
            lanes: [Lanes([0; LANES]); 80],
            constants: [0; 80],
            base: [0; SUMS],
            addend: [0; SUMS],
        };
        for (t, word) in CASES[case_of(length)].words.iter().enumerate() {
            // The lanes include the base's bits, except for those that go into the row's sums.
            let (kept, added) = match *word {
                Word::Constant => {
                    chunk.constants[t] = base[t].wrapping_add(added(t));
                    continue;
                }
                Word::Row(slot) => {
                    chunk.base[slot] = base[t];
                    chunk.addend[slot] = added(t);
                    continue;
                }
                Word::Add(slot) => {
                    chunk.base[slot] = base[t] & rows[t];
                    (base[t] & !rows[t], added(t))
                }
                Word::Xor(_) => (base[t], 0),
            };
            for lane in 0..LANES {
                chunk.lanes[t].0[lane] = (tables.lanes[t].0[lane] ^ kept).wrapping_add(added);
            }
        }
        chunk
    }

    /// Returns a row's part of the expanded words.
    #[inline(always)]
    fn row(&self, number: usize) -> Row {
        let row = &self.tables.rows[number];
        let mut sums = [0; SUMS];
        for slot in 0..SUMS {
            sums[slot] = (row.sums[slot] ^ self.base[slot]).wrapping_add(self.addend[slot]);
        }
        Row {
            sums,
            xors: &row.xors,
        }
    }
}

/// A row's part of the expanded words: one word for each slot of [`Word`].
#[repr(C, align(64))]
pub(crate) struct Row {
    sums: [u32; SUMS],
    xors: &'static [u32; XORS],
}

/// Returns the sum that round `t` adds for every message.
///
/// It includes the round's constant. In the first rounds, it also includes the contribution of the
/// initial state. In the last round, it includes the initial word that makes the result the
/// digest's first word.
const fn added(t: usize) -> u32 {
    let [a, b, c, d, e] = INITIAL;
    let (a_later, b_later) = (a.rotate_left(30), b.rotate_left(30));
    constant(t).wrapping_add(match t {
        0 => choose(b, c, d)
            .wrapping_add(e)
            .wrapping_add(a.rotate_left(5)),
        1 => choose(a, b_later, c).wrapping_add(d),
        2 => c,
        3 => b_later,
        4 => a_later,
        79 => a,
        _ => 0,
    })
}

/// The function of the first twenty rounds (FIPS 180-4, 4.1.1).
const fn choose(b: u32, c: u32, d: u32) -> u32 {
    b & c | !b & d
}

/// Returns the digests of `N` vectors of lanes, starting with `lane`. The vectors' rounds are
/// interleaved: while one vector waits for a result, the CPU works on the others.
#[inline(always)]
pub(crate) fn hash<S: Simd, const CASE: usize, const N: usize>(
    simd: S,
    chunk: &Chunk,
    row: &Row,
    lane: usize,
) -> [Digests<S>; N] {
    let mut a = [simd.set1(INITIAL[0]); N];
    let mut b = [simd.set1(INITIAL[1]); N];
    let mut c = [simd.set1(INITIAL[2]); N];
    let mut d = [simd.set1(INITIAL[3]); N];
    let mut e = [simd.set1(INITIAL[4]); N];
    macro_rules! round {
        ($t:literal) => {
            for v in 0..N {
                let lanes = || &chunk.lanes[$t].0[lane + v * S::WIDTH..];
                let word = match const { CASES[CASE].words[$t] } {
                    Word::Constant => simd.set1(chunk.constants[$t]),
                    Word::Xor(slot) => {
                        let word = simd.xor(simd.load(lanes()), simd.set1(row.xors[slot]));
                        simd.add(word, simd.set1(const { added($t) }))
                    }
                    Word::Add(slot) => simd.add(simd.load(lanes()), simd.set1(row.sums[slot])),
                    Word::Row(slot) => simd.set1(row.sums[slot]),
                };
                // FIPS 180-4, 4.1.1.
                let f = match $t / 20 {
                    0 => simd.select(b[v], c[v], d[v]),
                    2 => simd.majority(b[v], c[v], d[v]),
                    _ => simd.parity(b[v], c[v], d[v]),
                };
                let sum = if $t > 4 { simd.add(e[v], word) } else { word };
                let sum = if $t > 1 { simd.add(sum, f) } else { sum };
                let sum = if $t > 0 {
                    simd.add(sum, simd.rotate_left_5(a[v]))
                } else {
                    sum
                };
                (e[v], d[v], c[v]) = (d[v], c[v], simd.rotate_left_30(b[v]));
                (b[v], a[v]) = (a[v], sum);
            }
        };
    }
    macro_rules! rounds {
        ($($t:literal)*) => { $(round!($t);)* };
    }
    rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
    rounds!(20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39);
    rounds!(40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
    rounds!(60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79);

    let mut digests = [[simd.set1(0); 5]; N];
    for v in 0..N {
        let state = [a[v], b[v], c[v], d[v], e[v]];
        digests[v][0] = a[v];
        for word in 1..5 {
            digests[v][word] = simd.add(state[word], simd.set1(INITIAL[word]));
        }
    }
    digests
}

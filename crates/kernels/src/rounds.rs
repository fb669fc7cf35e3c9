//! SHA-1's rounds with one hash in each lane of a vector, on the words from
//! [`split`](crate::split) or [`layout`].

use std::hint::black_box;

use crate::{
    layout::{self, Around, Line, Words},
    rows::Hasher,
    simd::{Digests, Simd},
    split::{
        CASES, CHUNK, INITIAL, LANES, Lanes, SUMS, Tables, Word, XORS, base, case_of, constant,
        row_mask_of,
    },
    walk::Walk,
    windows::CheckMore,
};

/// Vectors with one hash in each lane, whose kernel does these rounds.
pub(crate) trait HashInEachLane: CheckMore {}

impl<S: HashInEachLane, const N: usize> Hasher<Bytes, N> for S {
    type Simd = S;

    #[inline(always)]
    fn simd(self) -> S {
        self
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        _: &Bytes,
        chunk: &Chunk,
        row: &Row,
        lane: usize,
    ) -> [Digests<S>; N] {
        hash::<S, CASE, N>(self, chunk, row, lane)
    }
}

impl<S: HashInEachLane, const N: usize> Hasher<Around<'_>, N> for S {
    type Simd = S;

    #[inline(always)]
    fn simd(self) -> S {
        self
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        walk: &Around<'_>,
        chunk: &layout::Chunk,
        row: &Words,
        lane: usize,
    ) -> [Digests<S>; N] {
        hash_around(self, walk, chunk, row, lane)
    }
}

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

/// The walk through all byte strings of this length (at least one).
#[derive(Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u32);

impl Bytes {
    /// Maximum length: a counter has 64 bits.
    pub(crate) const LONGEST: u32 = 8;
}

impl Walk for Bytes {
    type Chunk = Chunk;
    type Row = Row;

    const CASES: usize = CASES.len();

    fn case(&self) -> usize {
        case_of(self.0)
    }

    fn lanes(&self) -> usize {
        LANES
    }

    fn chunk_len(&self) -> u64 {
        CHUNK
    }

    /// This is inlined, so that the compiler vectorizes its loops with the widest vectors that the
    /// kernel may use.
    #[inline(always)]
    fn chunk(&self, first: u64) -> Chunk {
        let length = self.0;
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
    fn row(&self, chunk: &Chunk, number: usize) -> Row {
        let row = &chunk.tables.rows[number];
        let mut sums = [0; SUMS];
        for slot in 0..SUMS {
            sums[slot] = (row.sums[slot] ^ chunk.base[slot]).wrapping_add(chunk.addend[slot]);
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

/// Calls a macro with the number of each round.
macro_rules! eighty {
    ($round:ident) => {
        eighty!($round 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        eighty!($round 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39);
        eighty!($round 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
        eighty!($round 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79);
    };
    ($round:ident $($t:literal)*) => { $($round!($t);)* };
}

/// Does round `t` of one vector, with its word, to which the round's constant was added (FIPS
/// 180-4, 6.1.2). In the first rounds, `known` says that the word includes what the round adds for
/// a known initial state.
macro_rules! round {
    ($simd:ident, $t:literal, $state:ident[$v:ident], $word:expr, known: $known:expr) => {
        let [a, b, c, d, e] = $state[$v];
        // FIPS 180-4, 4.1.1.
        let f = match $t / 20 {
            0 => $simd.select(b, c, d),
            2 => $simd.majority(b, c, d),
            _ => $simd.parity(b, c, d),
        };
        let sum = if $known && $t <= 4 {
            $word
        } else {
            $simd.add(e, $word)
        };
        let sum = if $known && $t <= 1 {
            sum
        } else {
            $simd.add(sum, f)
        };
        let sum = if $known && $t == 0 {
            sum
        } else {
            $simd.add(sum, $simd.rotate_left_5(a))
        };
        $state[$v] = [sum, a, $simd.rotate_left_30(b), c, d];
    };
}

/// Returns `N` vectors of the state with these words.
#[inline(always)]
fn repeated<S: Simd, const N: usize>(simd: S, words: &[u32; 5]) -> [Digests<S>; N] {
    let mut state = [simd.set1(0); 5];
    for word in 0..5 {
        state[word] = simd.set1(words[word]);
    }
    [state; N]
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
    let mut state = repeated::<S, N>(simd, &INITIAL);
    macro_rules! split {
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
                round!(simd, $t, state[v], word, known: true);
            }
        };
    }
    eighty!(split);
    // The last round's word includes the first word of the initial state.
    // Not in `state`: the caller may keep the digests in memory, and then every round would store
    // its state there.
    let mut digests = state;
    for v in 0..N {
        for word in 1..5 {
            digests[v][word] = simd.add(state[v][word], simd.set1(INITIAL[word]));
        }
    }
    digests
}

/// Returns the digests of `N` vectors of lanes of any secrets, starting with `lane`.
#[inline(always)]
pub(crate) fn hash_around<S: Simd, const N: usize>(
    simd: S,
    Around(_, layout): &Around<'_>,
    chunk: &layout::Chunk,
    row: &Words,
    lane: usize,
) -> [Digests<S>; N] {
    let mut lines: [&[Line]; N] = [&[]; N];
    for v in 0..N {
        lines[v] = layout.lane_words(lane / S::WIDTH + v);
        // So that the rounds need no checks.
        assert!(lines[v].len() >= 80 * S::WIDTH / Line::WORDS);
    }
    let start = layout.start();
    let mut state = repeated::<S, N>(simd, &chunk.state);
    macro_rules! varying {
        ($t:literal) => {
            // No word before the sixteenth is made of others.
            if $t >= 15 || start <= $t {
                for v in 0..N {
                    let at = $t * S::WIDTH;
                    let lanes = &lines[v][at / Line::WORDS].0[at % Line::WORDS..];
                    let word = simd.xor(simd.load(lanes), simd.set1(row.0[$t]));
                    let word = simd.add(word, simd.set1(const { constant($t) }));
                    round!(simd, $t, state[v], word, known: false);
                }
            }
        };
    }
    eighty!(varying);
    let mut before = repeated::<S, N>(simd, &chunk.before);
    for v in 0..N {
        for word in 0..5 {
            before[v][word] = simd.add(before[v][word], state[v][word]);
        }
    }
    let tail = layout.tail();
    // Most messages end here. Before a loop, the digests would go to memory and back.
    if tail.is_empty() {
        return before;
    }
    for words in tail {
        let words = black_box(words);
        let mut state = before;
        macro_rules! constant {
            ($t:literal) => {
                for v in 0..N {
                    round!(simd, $t, state[v], simd.set1(words.0[$t]), known: false);
                }
            };
        }
        eighty!(constant);
        for v in 0..N {
            for word in 0..5 {
                before[v][word] = simd.add(before[v][word], state[v][word]);
            }
        }
    }
    before
}

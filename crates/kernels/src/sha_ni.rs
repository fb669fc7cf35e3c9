//! The kernel for x86 CPUs with the SHA extensions: one hash to a vector, four hashes at a time.
//! The filter is that of [`avx2`](crate::avx2), on eight hashes.

use std::arch::x86_64::*;

use crate::{
    avx2::Avx2,
    layout::{Around, Chunk, Form, Line, Words},
    rows::{Hasher, kernel},
    simd::Digests,
};

/// Number of vectors of digests that are made at a time: one, with eight digests.
const VECTORS: usize = 1;

/// Number of hashes in flight. They keep the SHA unit busy while each hash's four rounds wait for
/// its previous four.
const IN_FLIGHT: usize = 4;

/// Number of lines with the words of a lane.
const LINES: usize = 80 / Line::WORDS;

/// Proof that the CPU has the SHA extensions and AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShaNi(Avx2);

impl ShaNi {
    /// Returns the proof, or `None` if the CPU lacks one of them.
    pub(crate) fn detect() -> Option<ShaNi> {
        let avx2 = Avx2::detect()?;
        is_x86_feature_detected!("sha").then_some(ShaNi(avx2))
    }

    kernel!("sha,avx2", FORM);
}

/// Form of the words.
const FORM: Form = Form::Quads {
    group: 2 * IN_FLIGHT,
};

impl Hasher<Around<'_>, VECTORS> for ShaNi {
    type Simd = Avx2;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        walk: &Around<'_>,
        chunk: &Chunk,
        row: &Words,
        lane: usize,
    ) -> [Digests<Avx2>; VECTORS] {
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        [unsafe { hash_eight(walk, chunk, row, lane) }]
    }
}

/// Returns the digests of eight lanes: one vector for each of the five words.
#[inline]
#[target_feature(enable = "sha,avx2")]
fn hash_eight(walk: &Around<'_>, chunk: &Chunk, row: &Words, lane: usize) -> [__m256i; 5] {
    let lower = hash(walk, chunk, row, lane);
    let upper = hash(walk, chunk, row, lane + IN_FLIGHT);
    let mut digests = [_mm256_setzero_si256(); 5];
    for word in 0..5 {
        digests[word] = _mm256_set_m128i(upper[word], lower[word]);
    }
    digests
}

/// A state in two vectors, as the instructions take it: its first four words, and the fifth.
#[derive(Clone, Copy)]
struct State(__m128i, __m128i);

#[inline]
#[target_feature(enable = "sha,avx2")]
fn state(words: &[u32; 5]) -> State {
    let [a, b, c, d, e] = words.map(|word| word as i32);
    State(_mm_set_epi32(a, b, c, d), _mm_set_epi32(e, 0, 0, 0))
}

/// Does the rounds from `start` on, which is a multiple of four and at most 12, of four states.
/// `word` returns the words of a hash and of four rounds, in an expression.
macro_rules! rounds {
    ($start:expr, $states:ident, |$quad:ident, $n:ident| $words:expr) => {
        rounds!($start, $states, |$quad, $n| $words,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19)
    };
    ($start:expr, $states:ident, |$quad:ident, $n:ident| $words:expr, $($number:literal)*) => { $(
        // Only the first sixteen words can be the same for a whole chunk.
        if $number >= 3 || 4 * $number >= $start {
            for $n in 0..IN_FLIGHT {
                let $quad = $number;
                let words = $words;
                let State(abcd, e) = $states[$n];
                // Later, the fifth word is one of those before the last four rounds, rotated.
                let words = if $number <= 3 && 4 * $number == $start {
                    _mm_add_epi32(e, words)
                } else {
                    _mm_sha1nexte_epu32(e, words)
                };
                $states[$n] = State(_mm_sha1rnds4_epu32::<{ $number / 5 }>(abcd, words), abcd);
            }
        }
    )* };
}

/// Adds what the rounds have made of a state to what it was before them.
#[inline]
#[target_feature(enable = "sha,avx2")]
fn sum(State(abcd, e): State, State(after, before_last): State) -> State {
    State(
        _mm_add_epi32(abcd, after),
        _mm_sha1nexte_epu32(before_last, e),
    )
}

/// Returns the digests of four lanes: one vector for each of the five words.
#[inline]
#[target_feature(enable = "sha,avx2")]
fn hash(Around(_, layout): &Around<'_>, chunk: &Chunk, row: &Words, lane: usize) -> [__m128i; 5] {
    let lanes = &layout.lane_words(lane)[..LINES * IN_FLIGHT];
    let mut states = [state(&chunk.state); IN_FLIGHT];
    rounds!(layout.start(), states, |quad, n| _mm_xor_si128(
        load(&lanes[LINES * n + quad / 4].0[4 * (quad % 4)..]),
        load(&row.0[4 * quad..]),
    ));
    let before = state(&chunk.before);
    for n in 0..IN_FLIGHT {
        states[n] = sum(before, states[n]);
    }
    for words in layout.tail() {
        let before = states;
        rounds!(0, states, |quad, n| load(&words.0[4 * quad..]));
        for n in 0..IN_FLIGHT {
            states[n] = sum(before[n], states[n]);
        }
    }
    let [d, c, b, a] = transposed(states.map(|State(abcd, _)| abcd));
    let [_, _, _, e] = transposed(states.map(|State(_, e)| e));
    [a, b, c, d, e]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[u32]) -> __m128i {
    let words = &words[..4];
    // SAFETY: the slice is as long as the vector.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
    let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (more_ab, more_cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    [
        _mm_unpacklo_epi64(ab, cd),
        _mm_unpackhi_epi64(ab, cd),
        _mm_unpacklo_epi64(more_ab, more_cd),
        _mm_unpackhi_epi64(more_ab, more_cd),
    ]
}

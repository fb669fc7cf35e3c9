//! The kernel for x86 CPUs with the SHA extensions: one hash to a vector, four hashes at a time.
//! The filter is that of [`avx2`](crate::avx2), on eight hashes.

use std::arch::x86_64::*;

use crate::{
    avx2::Avx2,
    quads::{Chunk, Quad, Row},
    rows::{Hasher, kernel},
    simd::Digests,
    split::INITIAL,
};

/// Number of vectors of digests that are made at a time: one, with eight digests.
const VECTORS: usize = 1;

/// Number of hashes in flight. They keep the SHA unit busy while each hash's four rounds wait for
/// its previous four.
const IN_FLIGHT: usize = 4;

/// Proof that the CPU has the SHA extensions and AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShaNi(Avx2);

impl ShaNi {
    /// Returns the proof, or `None` if the CPU lacks one of them.
    pub(crate) fn detect() -> Option<ShaNi> {
        let avx2 = Avx2::detect()?;
        is_x86_feature_detected!("sha").then_some(ShaNi(avx2))
    }

    kernel!("sha,avx2");
}

impl Hasher<VECTORS> for ShaNi {
    type Simd = Avx2;
    type Chunk = Chunk;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        chunk: &Chunk,
        row: &Row,
        lane: usize,
    ) -> [Digests<Avx2>; VECTORS] {
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        [unsafe { hash_eight(chunk, row, lane) }]
    }
}

/// Returns the digests of eight lanes: one vector for each of the five words.
#[inline]
#[target_feature(enable = "sha,avx2")]
fn hash_eight(chunk: &Chunk, row: &Row, lane: usize) -> [__m256i; 5] {
    let lower = hash(chunk, row, lane);
    let upper = hash(chunk, row, lane + IN_FLIGHT);
    let mut digests = [_mm256_setzero_si256(); 5];
    for word in 0..5 {
        digests[word] = _mm256_set_m128i(upper[word], lower[word]);
    }
    digests
}

/// Returns the digests of four lanes: one vector for each of the five words.
#[inline]
#[target_feature(enable = "sha,avx2")]
fn hash(chunk: &Chunk, row: &Row, lane: usize) -> [__m128i; 5] {
    let [a, b, c, d, e] = INITIAL.map(|word| word as i32);
    let (first_abcd, first_e) = (_mm_set_epi32(a, b, c, d), _mm_set_epi32(e, 0, 0, 0));
    let mut abcd = [first_abcd; IN_FLIGHT];
    // The state before the four rounds that were done last. The fifth word for the next four rounds
    // is one of its words, rotated.
    let mut before = [first_e; IN_FLIGHT];
    macro_rules! rounds {
        ($($quad:literal)*) => { $(
            let common = load(&row.0[$quad]);
            for n in 0..IN_FLIGHT {
                let words = _mm_xor_si128(load(&chunk.lane(lane + n)[$quad]), common);
                let words = if $quad == 0 {
                    _mm_add_epi32(before[n], words)
                } else {
                    _mm_sha1nexte_epu32(before[n], words)
                };
                before[n] = abcd[n];
                abcd[n] = _mm_sha1rnds4_epu32::<{ $quad / 5 }>(abcd[n], words);
            }
        )* };
    }
    rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
    for n in 0..IN_FLIGHT {
        before[n] = _mm_sha1nexte_epu32(before[n], first_e);
        abcd[n] = _mm_add_epi32(abcd[n], first_abcd);
    }
    let [d, c, b, a] = transposed(abcd);
    let [_, _, _, e] = transposed(before);
    [a, b, c, d, e]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(quad: &Quad) -> __m128i {
    // SAFETY: the array is as long as the vector.
    unsafe { _mm_loadu_si128(quad.as_ptr().cast()) }
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

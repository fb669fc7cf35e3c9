//! The kernel for CPUs with AVX-512: sixteen hashes to a vector, four vectors at a time.

use std::arch::x86_64::*;

use crate::{
    plan::{CODES, Grams},
    rounds::{self, Chunk, Row},
    rows::{Digests, Hasher, kernel},
    simd::{Simd, operations},
};

/// How many vectors are in flight, so that the ports are busy while a round waits for the one before.
/// Two are 2% slower; more do not find registers.
const VECTORS: usize = 4;

/// The instructions of AVX-512 that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if the CPU has them.
    pub(crate) fn detect() -> Option<Avx512> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("avx512bitalg");
        available.then_some(Avx512(()))
    }

    kernel!("avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg");
}

impl Hasher<VECTORS> for Avx512 {
    type Simd = Avx512;
    type Chunk = Chunk;
    type Row = Row;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self
    }

    #[inline(always)]
    fn chunk(self, length: u32, first: u64) -> Chunk {
        Chunk::new(length, first)
    }

    #[inline(always)]
    fn row(self, chunk: &Chunk, number: usize) -> Row {
        chunk.row(number)
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        chunk: &Chunk,
        row: &Row,
        lane: usize,
    ) -> [Digests<Self>; VECTORS] {
        rounds::hash::<Self, CASE, VECTORS>(self, chunk, row, lane)
    }
}

impl Simd for Avx512 {
    type Vector = __m512i;
    type Digits = __m512i;
    type Table = __m512i;

    const WIDTH: usize = 16;

    #[inline(always)]
    fn set1(self, word: u32) -> __m512i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { _mm512_set1_epi32(word as i32) }
    }

    #[inline(always)]
    fn load(self, words: &[u32]) -> __m512i {
        let words = &words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m512i, words: &mut [u32]) {
        let words = &mut words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
    }

    operations! {
        add(a, b) = _mm512_add_epi32(a, b);
        and(a, b) = _mm512_and_si512(a, b);
        or(a, b) = _mm512_or_si512(a, b);
        xor(a, b) = _mm512_xor_si512(a, b);
        and_or(a, b, c) = _mm512_ternarylogic_epi32::<0xea>(a, b, c);
        select(mask, a, b) = _mm512_ternarylogic_epi32::<0xca>(mask, a, b);
        parity(a, b, c) = _mm512_ternarylogic_epi32::<0x96>(a, b, c);
        majority(a, b, c) = _mm512_ternarylogic_epi32::<0xe8>(a, b, c);
        rotate_left_5(a) = _mm512_rol_epi32::<5>(a);
        rotate_left_30(a) = _mm512_rol_epi32::<30>(a);
        // The digits are the lower six bits of each byte; the lookups ignore the two above them.
        upper_digits(word) = _mm512_multishift_epi64_epi8(selector([26, 20, 14, 8]), word);
        lower_digits(word) = _mm512_multishift_epi64_epi8(selector([18, 12, 6, 0]), word);
        count_ones(bytes) = _mm512_popcnt_epi8(bytes);
        add_bytes(a, b) = _mm512_add_epi8(a, b);
        max_bytes(a, b) = _mm512_max_epu8(a, b);
    }

    #[inline(always)]
    fn look_on<const PLACES: u8>(self, near: __m512i, far: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            match PLACES {
                1 => _mm512_shrdi_epi32::<8>(near, far),
                2 => _mm512_shrdi_epi32::<16>(near, far),
                3 => _mm512_shrdi_epi32::<24>(near, far),
                _ => near,
            }
        }
    }

    #[inline(always)]
    fn prepare(self, digits: __m512i) -> __m512i {
        digits
    }

    #[inline(always)]
    fn table(self, bytes: &[u8; 64]) -> __m512i {
        // SAFETY: `self` proves that the CPU has it; the array is as long as the vector.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn lookup(self, table: &__m512i, digits: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { _mm512_permutexvar_epi8(digits, *table) }
    }

    #[inline(always)]
    fn lookup_last(self, table: &__m512i, digits: __m512i, padding: __m512i) -> __m512i {
        let but_the_top = 0x7777_7777_7777_7777;
        // SAFETY: `self` proves that the CPU has it.
        unsafe { _mm512_mask_permutexvar_epi8(padding, but_the_top, digits, *table) }
    }

    #[inline(always)]
    fn not_less(self, a: __m512i, b: __m512i) -> u64 {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { _mm512_cmpge_epu8_mask(a, b) }
    }

    #[inline(always)]
    fn codes(self, digits: __m512i) -> __m512i {
        self.lookup(&self.table(&CODES), digits)
    }

    #[inline(always)]
    fn known(self, grams: &Grams, codes: __m512i) -> __m512i {
        let bitmap = grams.bitmap();
        // SAFETY: `self` proves that the CPU has it; the mask is less than the bitmap's bits, so
        // that every index is one of the bitmap's words.
        unsafe {
            let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x2001));
            let keys = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x0400_0001));
            let keys = _mm512_and_si512(keys, self.set1(grams.mask()));
            let words = _mm512_srli_epi32::<5>(keys);
            let words = _mm512_i32gather_epi32::<4>(words, bitmap.as_ptr().cast());
            _mm512_and_si512(words, _mm512_rolv_epi32(self.set1(1), keys))
        }
    }
}

/// For each of the two words in eight bytes, where to take its four digits from.
#[inline]
#[target_feature(enable = "avx512f")]
fn selector(shifts: [u8; 4]) -> __m512i {
    let [a, b, c, d] = shifts;
    let (lower, upper) = ([a, b, c, d], [a + 32, b + 32, c + 32, d + 32]);
    let both = u64::from(u32::from_le_bytes(upper)) << 32 | u64::from(u32::from_le_bytes(lower));
    _mm512_set1_epi64(both as i64)
}

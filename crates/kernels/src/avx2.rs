//! The kernel for CPUs with AVX2: eight hashes to a vector, two vectors at a time.

use std::arch::x86_64::*;

use crate::{
    plan::Grams,
    rounds::{self, Chunk, Row},
    rows::{Digests, Hasher, kernel},
    simd::{Simd, operations},
};

/// How many vectors are in flight: a hash's state takes five of sixteen registers.
const VECTORS: usize = 2;

/// The instructions of AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if the CPU has them.
    pub(crate) fn detect() -> Option<Avx2> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }

    kernel!("avx2");
}

impl Hasher<VECTORS> for Avx2 {
    type Simd = Avx2;
    type Chunk = Chunk;
    type Row = Row;

    #[inline(always)]
    fn simd(self) -> Avx2 {
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
    ) -> [Digests<Avx2>; VECTORS] {
        rounds::hash::<Self, CASE, VECTORS>(self, chunk, row, lane)
    }
}

impl Simd for Avx2 {
    type Vector = __m256i;
    type Digits = Digits;
    type Table = Table;

    const WIDTH: usize = 8;

    #[inline(always)]
    fn set1(self, word: u32) -> __m256i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { _mm256_set1_epi32(word as i32) }
    }

    #[inline(always)]
    fn load(self, words: &[u32]) -> __m256i {
        let words = &words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m256i, words: &mut [u32]) {
        let words = &mut words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
    }

    operations! {
        add(a, b) = _mm256_add_epi32(a, b);
        and(a, b) = _mm256_and_si256(a, b);
        or(a, b) = _mm256_or_si256(a, b);
        xor(a, b) = _mm256_xor_si256(a, b);
        and_or(a, b, c) = _mm256_or_si256(_mm256_and_si256(a, b), c);
        select(mask, a, b) =
            _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(a, b), mask), b);
        parity(a, b, c) = _mm256_xor_si256(_mm256_xor_si256(a, b), c);
        majority(a, b, c) = _mm256_or_si256(
            _mm256_and_si256(a, b),
            _mm256_and_si256(_mm256_or_si256(a, b), c),
        );
        rotate_left_5(a) = _mm256_or_si256(_mm256_slli_epi32::<5>(a), _mm256_srli_epi32::<27>(a));
        rotate_left_30(a) = _mm256_or_si256(_mm256_slli_epi32::<30>(a), _mm256_srli_epi32::<2>(a));
        upper_digits(word) = spread(_mm256_shuffle_epi8(word, bytes([2, 3, 1, 2])));
        lower_digits(word) = spread(_mm256_shuffle_epi8(word, bytes([1, 2, 0, 1])));
        count_ones(bytes) = {
            let ones = sixteen([0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4]);
            let lower = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15));
            _mm256_add_epi8(_mm256_shuffle_epi8(ones, lower), _mm256_shuffle_epi8(ones, upper))
        };
        add_bytes(a, b) = _mm256_add_epi8(a, b);
        max_bytes(a, b) = _mm256_max_epu8(a, b);
    }

    #[inline(always)]
    fn look_on<const PLACES: u8>(self, near: __m256i, far: __m256i) -> __m256i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            match PLACES {
                1 => _mm256_or_si256(_mm256_srli_epi32::<8>(near), _mm256_slli_epi32::<24>(far)),
                2 => _mm256_or_si256(_mm256_srli_epi32::<16>(near), _mm256_slli_epi32::<16>(far)),
                3 => _mm256_or_si256(_mm256_srli_epi32::<24>(near), _mm256_slli_epi32::<8>(far)),
                _ => near,
            }
        }
    }

    #[inline(always)]
    fn prepare(self, digits: __m256i) -> Digits {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            // Below 26 the difference wraps around, and is greater.
            let folded = _mm256_min_epu8(digits, _mm256_sub_epi8(digits, _mm256_set1_epi8(26)));
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(folded), _mm256_set1_epi8(15));
            Digits { folded, upper }
        }
    }

    #[inline(always)]
    fn table(self, bytes: &[u8; 64]) -> Table {
        let (mut lower, mut upper) = ([0; 16], [0; 16]);
        for (digit, byte) in bytes.iter().enumerate() {
            let folded = if digit < 26 { digit } else { digit - 26 };
            lower[folded % 16] |= byte;
            upper[folded / 16] |= byte;
        }
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            Table {
                lower: sixteen(lower),
                upper: sixteen(upper),
            }
        }
    }

    #[inline(always)]
    fn lookup(self, table: &Table, digits: Digits) -> __m256i {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            _mm256_and_si256(
                _mm256_shuffle_epi8(table.lower, digits.folded),
                _mm256_shuffle_epi8(table.upper, digits.upper),
            )
        }
    }

    #[inline(always)]
    fn lookup_last(self, table: &Table, digits: Digits, padding: __m256i) -> __m256i {
        let but_the_top = self.set1(0x00ff_ffff);
        self.and_or(self.lookup(table, digits), but_the_top, padding)
    }

    #[inline(always)]
    fn not_less(self, a: __m256i, b: __m256i) -> u64 {
        // SAFETY: `self` proves that the CPU has it.
        let bits = unsafe { _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(a, b), a)) };
        u64::from(bits as u32)
    }

    #[inline(always)]
    fn codes(self, digits: Digits) -> __m256i {
        // The digits and signs, which come after the letters, have the codes of letters.
        self.and(digits.folded, self.set1_byte(31))
    }

    #[inline(always)]
    fn known(self, grams: &Grams, codes: __m256i) -> __m256i {
        let bitmap = grams.bitmap();
        // SAFETY: `self` proves that the CPU has it; the mask is less than the bitmap's bits, so
        // that every index is one of the bitmap's words.
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x2001));
            let keys = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0400_0001));
            let keys = _mm256_and_si256(keys, self.set1(grams.mask()));
            let words = _mm256_srli_epi32::<5>(keys);
            let words = _mm256_i32gather_epi32::<4>(bitmap.as_ptr().cast(), words);
            let bit = _mm256_and_si256(keys, self.set1(31));
            _mm256_and_si256(words, _mm256_sllv_epi32(self.set1(1), bit))
        }
    }
}

/// Digits with the letters' cases folded together, which leaves 38 values: a byte lookup has sixteen
/// entries only, so that a table is looked up by the lower and the upper half.
#[derive(Clone, Copy)]
pub(crate) struct Digits {
    folded: __m256i,
    upper: __m256i,
}

/// What each half of a folded digit allows. Together they allow what the table holds, and more only
/// where it distinguishes cases or unites several letters.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    lower: __m256i,
    upper: __m256i,
}

/// Four digits from three bytes, which lie as second, first, third and second again.
///
/// That is Mula's way: two multiplications shift each of the four by a distance of its own (Mula and
/// Lemire, "Faster Base64 Encoding and Decoding Using AVX2 Instructions", 2018).
#[inline]
#[target_feature(enable = "avx2")]
fn spread(bytes: __m256i) -> __m256i {
    let odd = _mm256_and_si256(bytes, _mm256_set1_epi32(0x0fc0_fc00));
    let odd = _mm256_mulhi_epu16(odd, _mm256_set1_epi32(0x0400_0040));
    let even = _mm256_and_si256(bytes, _mm256_set1_epi32(0x003f_03f0));
    let even = _mm256_mullo_epi16(even, _mm256_set1_epi32(0x0100_0010));
    _mm256_or_si256(odd, even)
}

/// For each word, which of its bytes to take.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(of_word: [u8; 4]) -> __m256i {
    let words = [0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c];
    let [a, b, c, d] = words.map(|word: u32| (word + u32::from_le_bytes(of_word)) as i32);
    _mm256_setr_epi32(a, b, c, d, a, b, c, d)
}

/// A table of sixteen bytes, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn sixteen(table: [u8; 16]) -> __m256i {
    let table = u128::from_le_bytes(table);
    let (lower, upper) = (table as u64 as i64, (table >> 64) as u64 as i64);
    _mm256_setr_epi64x(lower, upper, lower, upper)
}

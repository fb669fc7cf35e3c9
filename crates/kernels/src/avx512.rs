//! The kernel for CPUs with AVX-512: sixteen hashes to a vector, four vectors at a time.

use std::arch::x86_64::*;

use crate::{
    bitmap::Bitmap,
    layout::Form,
    plan::CODES,
    rounds::{Bytes, HashInEachLane},
    rows::kernel,
    simd::{Digests, Simd, operations},
    windows::{CheckMore, Windows},
};

/// Number of vectors in flight. They keep the execution ports busy while each vector's round waits
/// for its previous one. Two vectors are 2% slower; more than four do not fit into the registers.
const VECTORS: usize = 4;

/// Proof that the CPU has the subset of AVX-512 that is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Returns the proof, or `None` if the CPU lacks one of the instruction sets.
    pub(crate) fn detect() -> Option<Avx512> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("avx512bitalg");
        available.then_some(Avx512(()))
    }

    kernel!(
        "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg",
        FORM,
        Bytes
    );
}

/// Form of the words of any secrets.
const FORM: Form = Form::Vectors {
    width: Avx512::WIDTH,
    group: VECTORS * Avx512::WIDTH,
};

impl HashInEachLane for Avx512 {}

impl Simd for Avx512 {
    type Vector = __m512i;
    type Digits = __m512i;
    type Table = __m512i;

    const WIDTH: usize = 16;

    operations! {
        fn set1(word: u32) -> __m512i = set1;
        fn load(words: &[u32]) -> __m512i = load;
        fn store(vector: __m512i, words: &mut [u32]) -> () = store;

        add(a, b) = _mm512_add_epi32;
        and(a, b) = _mm512_and_si512;
        or(a, b) = _mm512_or_si512;
        xor(a, b) = _mm512_xor_si512;
        and_or(a, b, c) = _mm512_ternarylogic_epi32::<0xea>;
        select(mask, a, b) = _mm512_ternarylogic_epi32::<0xca>;
        parity(a, b, c) = _mm512_ternarylogic_epi32::<0x96>;
        majority(a, b, c) = _mm512_ternarylogic_epi32::<0xe8>;
        rotate_left_5(a) = _mm512_rol_epi32::<5>;
        rotate_left_30(a) = _mm512_rol_epi32::<30>;

        fn advance<const PLACES: u8>(near: __m512i, far: __m512i) -> __m512i = advance::<PLACES>;
        upper_digits(word) = upper_digits;
        lower_digits(word) = lower_digits;
        fn hex_digits<const FIRST: u32>(word: __m512i) -> __m512i = hex_digits::<FIRST>;
        fn base32_digits<const FIRST: i32>(high: __m512i, low: __m512i) -> __m512i = base32_digits::<FIRST>;
        fn prepare(digits: __m512i) -> __m512i = prepare;
        fn table(bytes: &[u8; 64], digits: usize) -> __m512i = table;
        fn lookup(table: &__m512i, digits: __m512i) -> __m512i = lookup;
        fn lookup_last(table: &__m512i, digits: __m512i, padding: __m512i) -> __m512i = lookup_last;

        count_ones(bytes) = _mm512_popcnt_epi8;
        add_bytes(a, b) = _mm512_add_epi8;
        max_bytes(a, b) = _mm512_max_epu8;
        fn not_less(a: __m512i, b: __m512i) -> u64 = _mm512_cmpge_epu8_mask;

        fn zeros(words: __m512i) -> u64 = zeros;

        fn codes(digits: __m512i) -> __m512i = codes;
        fn known(bitmap: &Bitmap, codes: __m512i) -> __m512i = known;
    }
}

impl CheckMore for Avx512 {
    #[inline(always)]
    fn check_more(self, windows: &Windows<'_, Self>, digest: &Digests<Avx512>) -> u64 {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
        fn compiled(simd: Avx512, windows: &Windows<'_, Avx512>, digest: &Digests<Avx512>) -> u64 {
            windows.check_more(simd, digest)
        }
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        unsafe { compiled(self, windows, digest) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn set1(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[u32]) -> __m512i {
    let words = &words[..Avx512::WIDTH];
    // SAFETY: the slice is as long as the vector.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vector: __m512i, words: &mut [u32]) {
    let words = &mut words[..Avx512::WIDTH];
    // SAFETY: the slice is as long as the vector.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn advance<const PLACES: u8>(near: __m512i, far: __m512i) -> __m512i {
    match PLACES {
        1 => _mm512_shrdi_epi32::<8>(near, far),
        2 => _mm512_shrdi_epi32::<16>(near, far),
        3 => _mm512_shrdi_epi32::<24>(near, far),
        _ => near,
    }
}

/// Returns the digits in the lower six bits of each byte. The lookups ignore the two upper bits.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn upper_digits(word: __m512i) -> __m512i {
    _mm512_multishift_epi64_epi8(selector([26, 20, 14, 8]), word)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn lower_digits(word: __m512i) -> __m512i {
    _mm512_multishift_epi64_epi8(selector([18, 12, 6, 0]), word)
}

/// Returns the digits in the lower four bits of each byte. The tables have the same entry for all
/// values of the two bits above them, and the lookups ignore the others.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn hex_digits<const FIRST: u32>(word: __m512i) -> __m512i {
    let shifts = match FIRST {
        0 => [28, 24, 20, 16],
        _ => [12, 8, 4, 0],
    };
    _mm512_multishift_epi64_epi8(selector(shifts), word)
}

/// Returns the digits in the lower five bits of each byte. For the other bits, see [`hex_digits`].
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi,avx512vbmi2")]
fn base32_digits<const FIRST: i32>(high: __m512i, low: __m512i) -> __m512i {
    let top = match FIRST {
        0 => high,
        _ => _mm512_shldi_epi32::<FIRST>(high, low),
    };
    _mm512_multishift_epi64_epi8(selector([27, 22, 17, 12]), top)
}

/// Returns the bit positions of the four digits of each word. A position counts from the lowest bit
/// of the eight bytes that contain the word.
#[inline]
#[target_feature(enable = "avx512f")]
fn selector(shifts: [u8; 4]) -> __m512i {
    let [a, b, c, d] = shifts;
    let (lower, upper) = ([a, b, c, d], [a + 32, b + 32, c + 32, d + 32]);
    let both = u64::from(u32::from_le_bytes(upper)) << 32 | u64::from(u32::from_le_bytes(lower));
    _mm512_set1_epi64(both as i64)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn zeros(words: __m512i) -> u64 {
    let mut zeros = u64::from(_mm512_testn_epi32_mask(words, words));
    if zeros != 0 {
        // Moves the bits apart, from one to four for each word.
        zeros = (zeros | zeros << 24) & 0x0000_00ff_0000_00ff;
        zeros = (zeros | zeros << 12) & 0x000f_000f_000f_000f;
        zeros = (zeros | zeros << 6) & 0x0303_0303_0303_0303;
        zeros = (zeros | zeros << 3) & 0x1111_1111_1111_1111;
    }
    zeros
}

/// Returns the digits unchanged: the lookups need no preparation.
#[inline]
#[target_feature(enable = "avx512f")]
fn prepare(digits: __m512i) -> __m512i {
    digits
}

/// Returns the table, repeated so that bits above those of a digit do not matter.
#[inline]
#[target_feature(enable = "avx512f")]
fn table(bytes: &[u8; 64], digits: usize) -> __m512i {
    let mut repeated = *bytes;
    for digit in digits..64 {
        repeated[digit] = repeated[digit - digits];
    }
    let bytes = &repeated;
    // SAFETY: the array is as long as the vector.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn lookup(table: &__m512i, digits: __m512i) -> __m512i {
    _mm512_permutexvar_epi8(digits, *table)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn lookup_last(table: &__m512i, digits: __m512i, padding: __m512i) -> __m512i {
    let but_the_top = 0x7777_7777_7777_7777;
    _mm512_mask_permutexvar_epi8(padding, but_the_top, digits, *table)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn codes(digits: __m512i) -> __m512i {
    lookup(&table(&CODES, 64), digits)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn known(bitmap: &Bitmap, codes: __m512i) -> __m512i {
    let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x2001));
    let keys = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x0400_0001));
    let keys = _mm512_and_si512(keys, set1(bitmap.mask()));
    let words = _mm512_srli_epi32::<5>(keys);
    // SAFETY: a masked key is the index of a bit of the bitmap, so `words` are indices of its
    // words.
    let words = unsafe { _mm512_i32gather_epi32::<4>(words, bitmap.words().as_ptr().cast()) };
    _mm512_and_si512(words, _mm512_rolv_epi32(set1(1), keys))
}

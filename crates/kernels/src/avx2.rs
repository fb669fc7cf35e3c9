//! The kernel for CPUs with AVX2: eight hashes to a vector, two vectors at a time.

use std::arch::x86_64::*;

use crate::{
    bitmap::Bitmap,
    layout::Form,
    rounds::{Bytes, HashInEachLane},
    rows::kernel,
    simd::{self, Simd, operations},
    windows::{CheckMore, Windows},
};

/// Number of vectors in flight. The state of each takes five of the sixteen registers.
const VECTORS: usize = 2;

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Returns the proof, or `None` if the CPU does not have AVX2.
    pub(crate) fn detect() -> Option<Avx2> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }

    kernel!("avx2", FORM, Bytes);
}

/// Form of the words of any secrets.
const FORM: Form = Form::Vectors {
    width: Avx2::WIDTH,
    group: VECTORS * Avx2::WIDTH,
};

impl HashInEachLane for Avx2 {}

impl Simd for Avx2 {
    type Vector = __m256i;
    type Digits = Digits;
    type Table = Table;

    const WIDTH: usize = 8;

    operations! {
        fn set1(word: u32) -> __m256i = set1;
        fn load(words: &[u32]) -> __m256i = load;
        fn store(vector: __m256i, words: &mut [u32]) -> () = store;

        add(a, b) = _mm256_add_epi32;
        and(a, b) = _mm256_and_si256;
        or(a, b) = _mm256_or_si256;
        xor(a, b) = _mm256_xor_si256;
        and_or(a, b, c) = and_or;
        select(mask, a, b) = select;
        parity(a, b, c) = parity;
        majority(a, b, c) = majority;
        rotate_left_5(a) = rotate_left_5;
        rotate_left_30(a) = rotate_left_30;

        fn advance<const PLACES: u8>(near: __m256i, far: __m256i) -> __m256i = advance::<PLACES>;
        upper_digits(word) = upper_digits;
        lower_digits(word) = lower_digits;
        fn hex_digits<const FIRST: u32>(word: __m256i) -> __m256i = hex_digits::<FIRST>;
        fn base32_digits<const FIRST: i32>(high: __m256i, low: __m256i) -> __m256i = base32_digits::<FIRST>;
        fn prepare(digits: __m256i) -> Digits = prepare;
        fn table(bytes: &[u8; 64], digits: usize) -> Table = table;
        fn lookup(table: &Table, digits: Digits) -> __m256i = lookup;
        fn lookup_last(table: &Table, digits: Digits, padding: __m256i) -> __m256i = lookup_last;

        count_ones(bytes) = count_ones;
        add_bytes(a, b) = _mm256_add_epi8;
        max_bytes(a, b) = _mm256_max_epu8;
        fn not_less(a: __m256i, b: __m256i) -> u64 = not_less;

        fn zeros(words: __m256i) -> u64 = zeros;

        fn codes(digits: Digits) -> __m256i = codes;
        fn known(bitmap: &Bitmap, codes: __m256i) -> __m256i = known;
    }
}

impl CheckMore for Avx2 {
    #[inline(always)]
    fn check_more(self, windows: &Windows<'_, Self>, digest: &simd::Digests<Avx2>) -> u64 {
        #[inline(never)]
        #[target_feature(enable = "avx2")]
        fn compiled(simd: Avx2, windows: &Windows<'_, Avx2>, digest: &simd::Digests<Avx2>) -> u64 {
            windows.check_more(simd, digest)
        }
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        unsafe { compiled(self, windows, digest) }
    }
}

/// Digits with upper and lower case folded together, which leaves 38 values. A byte lookup has only
/// sixteen entries, so a table is looked up twice: by the lower and by the upper half of the digit.
#[derive(Clone, Copy)]
pub(crate) struct Digits {
    folded: __m256i,
    upper: __m256i,
}

/// The bits that each half of a folded digit allows. The AND of both has all bits of the original
/// table. It has additional bits only for characters that distinguish cases or accept several
/// letters.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    lower: __m256i,
    upper: __m256i,
}

#[inline]
#[target_feature(enable = "avx2")]
fn set1(word: u32) -> __m256i {
    _mm256_set1_epi32(word as i32)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[u32]) -> __m256i {
    let words = &words[..Avx2::WIDTH];
    // SAFETY: the slice is as long as the vector.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(vector: __m256i, words: &mut [u32]) {
    let words = &mut words[..Avx2::WIDTH];
    // SAFETY: the slice is as long as the vector.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn and_or(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_and_si256(a, b), c)
}

#[inline]
#[target_feature(enable = "avx2")]
fn select(mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(a, b), mask), b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn parity(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), c)
}

#[inline]
#[target_feature(enable = "avx2")]
fn majority(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_or_si256(
        _mm256_and_si256(a, b),
        _mm256_and_si256(_mm256_or_si256(a, b), c),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate_left_5(a: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<5>(a), _mm256_srli_epi32::<27>(a))
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate_left_30(a: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<30>(a), _mm256_srli_epi32::<2>(a))
}

#[inline]
#[target_feature(enable = "avx2")]
fn advance<const PLACES: u8>(near: __m256i, far: __m256i) -> __m256i {
    match PLACES {
        1 => _mm256_or_si256(_mm256_srli_epi32::<8>(near), _mm256_slli_epi32::<24>(far)),
        2 => _mm256_or_si256(_mm256_srli_epi32::<16>(near), _mm256_slli_epi32::<16>(far)),
        3 => _mm256_or_si256(_mm256_srli_epi32::<24>(near), _mm256_slli_epi32::<8>(far)),
        _ => near,
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn upper_digits(word: __m256i) -> __m256i {
    spread(_mm256_shuffle_epi8(word, bytes([2, 3, 1, 2])))
}

#[inline]
#[target_feature(enable = "avx2")]
fn lower_digits(word: __m256i) -> __m256i {
    spread(_mm256_shuffle_epi8(word, bytes([1, 2, 0, 1])))
}

#[inline]
#[target_feature(enable = "avx2")]
fn hex_digits<const FIRST: u32>(word: __m256i) -> __m256i {
    let pairs = match FIRST {
        0 => bytes([3, 3, 2, 2]),
        _ => bytes([1, 1, 0, 0]),
    };
    let pairs = _mm256_shuffle_epi8(word, pairs);
    let upper = _mm256_and_si256(_mm256_srli_epi32::<4>(pairs), set1(0x000f_000f));
    and_or(pairs, set1(0x0f00_0f00), upper)
}

#[inline]
#[target_feature(enable = "avx2")]
fn base32_digits<const FIRST: i32>(high: __m256i, low: __m256i) -> __m256i {
    let (left, right) = (set1(FIRST as u32), set1(32 - FIRST as u32));
    let top = match FIRST {
        ..=12 => _mm256_sllv_epi32(high, left),
        _ => _mm256_or_si256(_mm256_sllv_epi32(high, left), _mm256_srlv_epi32(low, right)),
    };
    let first = _mm256_srli_epi32::<27>(top);
    let second = _mm256_and_si256(_mm256_srli_epi32::<14>(top), set1(0x0000_1f00));
    let third = _mm256_and_si256(_mm256_srli_epi32::<1>(top), set1(0x001f_0000));
    let fourth = _mm256_and_si256(_mm256_slli_epi32::<12>(top), set1(0x1f00_0000));
    _mm256_or_si256(
        _mm256_or_si256(first, second),
        _mm256_or_si256(third, fourth),
    )
}

/// Returns the four digits of three bytes, which lie in the order second, first, third, second.
///
/// This is Mula's method: two multiplications shift each of the four digits by its own distance
/// (Mula and Lemire, "Faster Base64 Encoding and Decoding Using AVX2 Instructions", 2018).
#[inline]
#[target_feature(enable = "avx2")]
fn spread(bytes: __m256i) -> __m256i {
    let odd = _mm256_and_si256(bytes, _mm256_set1_epi32(0x0fc0_fc00));
    let odd = _mm256_mulhi_epu16(odd, _mm256_set1_epi32(0x0400_0040));
    let even = _mm256_and_si256(bytes, _mm256_set1_epi32(0x003f_03f0));
    let even = _mm256_mullo_epi16(even, _mm256_set1_epi32(0x0100_0010));
    _mm256_or_si256(odd, even)
}

/// Returns the shuffle control that takes these bytes from each word.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(of_word: [u8; 4]) -> __m256i {
    let words = [0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c];
    let [a, b, c, d] = words.map(|word: u32| (word + u32::from_le_bytes(of_word)) as i32);
    _mm256_setr_epi32(a, b, c, d, a, b, c, d)
}

/// Returns a table of sixteen bytes, repeated in both halves of the vector.
#[inline]
#[target_feature(enable = "avx2")]
fn sixteen(table: [u8; 16]) -> __m256i {
    let table = u128::from_le_bytes(table);
    let (lower, upper) = (table as u64 as i64, (table >> 64) as u64 as i64);
    _mm256_setr_epi64x(lower, upper, lower, upper)
}

#[inline]
#[target_feature(enable = "avx2")]
fn prepare(digits: __m256i) -> Digits {
    // For digits below 26, the difference wraps around and is greater than the digit.
    let folded = _mm256_min_epu8(digits, _mm256_sub_epi8(digits, _mm256_set1_epi8(26)));
    let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(folded), _mm256_set1_epi8(15));
    Digits { folded, upper }
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(bytes: &[u8; 64], digits: usize) -> Table {
    let (mut lower, mut upper) = ([0; 16], [0; 16]);
    for (digit, byte) in bytes[..digits].iter().enumerate() {
        let folded = if digit < 26 { digit } else { digit - 26 };
        lower[folded % 16] |= byte;
        upper[folded / 16] |= byte;
    }
    Table {
        lower: sixteen(lower),
        upper: sixteen(upper),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn lookup(table: &Table, digits: Digits) -> __m256i {
    _mm256_and_si256(
        _mm256_shuffle_epi8(table.lower, digits.folded),
        _mm256_shuffle_epi8(table.upper, digits.upper),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn lookup_last(table: &Table, digits: Digits, padding: __m256i) -> __m256i {
    let but_the_top = set1(0x00ff_ffff);
    and_or(lookup(table, digits), but_the_top, padding)
}

#[inline]
#[target_feature(enable = "avx2")]
fn count_ones(bytes: __m256i) -> __m256i {
    let ones = sixteen([0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4]);
    let lower = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15));
    _mm256_add_epi8(
        _mm256_shuffle_epi8(ones, lower),
        _mm256_shuffle_epi8(ones, upper),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn not_less(a: __m256i, b: __m256i) -> u64 {
    let bits = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(a, b), a));
    u64::from(bits as u32)
}

#[inline]
#[target_feature(enable = "avx2")]
fn zeros(words: __m256i) -> u64 {
    let zeros = _mm256_cmpeq_epi32(words, _mm256_setzero_si256());
    u64::from(_mm256_movemask_epi8(zeros) as u32)
}

/// Returns the code of each digit. The last six digits, `6` to `9`, `+` and `/`, share the codes of
/// letters.
#[inline]
#[target_feature(enable = "avx2")]
fn codes(digits: Digits) -> __m256i {
    _mm256_and_si256(digits.folded, _mm256_set1_epi8(31))
}

#[inline]
#[target_feature(enable = "avx2")]
fn known(bitmap: &Bitmap, codes: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x2001));
    let keys = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0400_0001));
    let keys = _mm256_and_si256(keys, set1(bitmap.mask()));
    let words = _mm256_srli_epi32::<5>(keys);
    // SAFETY: a masked key is the index of a bit of the bitmap, so `words` are indices of its
    // words.
    let words = unsafe { _mm256_i32gather_epi32::<4>(bitmap.words().as_ptr().cast(), words) };
    let bit = _mm256_and_si256(keys, set1(31));
    _mm256_and_si256(words, _mm256_sllv_epi32(set1(1), bit))
}

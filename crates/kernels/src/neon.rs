//! The kernel for ARM CPUs with the SHA extension: one hash to a vector, four hashes at a time.

use std::arch::{aarch64::*, is_aarch64_feature_detected};

use crate::{
    bitmap::Bitmap,
    layout::{Around, Chunk, Form, Line, Words},
    plan::{CODES, key_of},
    rows::{Hasher, kernel},
    simd::{Digests, Simd, operations},
    split::constant,
    windows::{CheckMore, Windows},
};

/// Number of vectors of digests that are made at a time: one, with four digests.
const VECTORS: usize = 1;

/// Number of hashes in flight: a SHA instruction has a latency of four cycles.
const IN_FLIGHT: usize = 4;

/// Number of lines with the words of a lane.
const LINES: usize = 80 / Line::WORDS;

/// Proof that the CPU has NEON and the SHA extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// Returns the proof, or `None` if the CPU lacks one of them.
    pub(crate) fn detect() -> Option<Neon> {
        let available =
            is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("sha2");
        available.then_some(Neon(()))
    }

    kernel!("neon,sha2", FORM);
}

/// Form of the words.
const FORM: Form = Form::Quads { group: IN_FLIGHT };

impl Hasher<Around<'_>, VECTORS> for Neon {
    type Simd = Neon;

    #[inline(always)]
    fn simd(self) -> Neon {
        self
    }

    #[inline(always)]
    fn hash<const CASE: usize>(
        self,
        walk: &Around<'_>,
        chunk: &Chunk,
        row: &Words,
        lane: usize,
    ) -> [Digests<Neon>; VECTORS] {
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        [unsafe { hash(walk, chunk, row, lane) }]
    }
}

/// A state as the instructions take it: its first four words, and the fifth.
#[derive(Clone, Copy)]
struct State(uint32x4_t, u32);

#[inline]
#[target_feature(enable = "neon")]
fn state([a, b, c, d, e]: [u32; 5]) -> State {
    State(load(&[a, b, c, d]), e)
}

/// Does the rounds from `start` on, which is a multiple of four and at most 12, of four states.
/// `words` returns the words of a hash and of four rounds.
macro_rules! rounds {
    ($start:expr, $states:ident, |$quad:ident, $n:ident| $words:expr) => {
        rounds!($start, $states, |$quad, $n| $words,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19)
    };
    ($start:expr, $states:ident, |$quad:ident, $n:ident| $words:expr, $($number:literal)*) => { $(
        // Only the first sixteen words can be the same for a whole chunk.
        if $number >= 3 || 4 * $number >= $start {
            let added = vdupq_n_u32(const { constant(4 * $number) });
            for $n in 0..IN_FLIGHT {
                let $quad = $number;
                let words = vaddq_u32($words, added);
                let State(abcd, e) = $states[$n];
                let next_e = vsha1h_u32(vgetq_lane_u32::<0>(abcd));
                let abcd = match $number / 5 {
                    0 => vsha1cq_u32(abcd, e, words),
                    2 => vsha1mq_u32(abcd, e, words),
                    _ => vsha1pq_u32(abcd, e, words),
                };
                $states[$n] = State(abcd, next_e);
            }
        }
    )* };
}

/// Returns the digests of four lanes: one vector for each of the five words.
#[inline]
#[target_feature(enable = "neon,sha2")]
fn hash(
    Around(_, layout): &Around<'_>,
    chunk: &Chunk,
    row: &Words,
    lane: usize,
) -> [uint32x4_t; 5] {
    let lanes = &layout.lane_words(lane)[..LINES * IN_FLIGHT];
    let mut states = [state(chunk.state); IN_FLIGHT];
    rounds!(layout.start(), states, |quad, n| veorq_u32(
        load(&lanes[LINES * n + quad / 4].0[4 * (quad % 4)..]),
        load(&row.0[4 * quad..]),
    ));
    let before = state(chunk.before);
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
    let [a, b, c, d] = transposed(states.map(|State(abcd, _)| abcd));
    let e = states.map(|State(_, e)| e);
    [a, b, c, d, load(&e)]
}

/// Adds what the rounds have made of a state to what it was before them.
#[inline]
#[target_feature(enable = "neon")]
fn sum(State(abcd, e): State, State(after, e_after): State) -> State {
    State(vaddq_u32(abcd, after), e.wrapping_add(e_after))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(words: &[u32]) -> uint32x4_t {
    let words = &words[..4];
    // SAFETY: the slice is as long as the vector.
    unsafe { vld1q_u32(words.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn transposed([a, b, c, d]: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    let wide = |vector| vreinterpretq_u64_u32(vector);
    let narrow = |vector| vreinterpretq_u32_u64(vector);
    let (ab, cd) = (wide(vzip1q_u32(a, b)), wide(vzip1q_u32(c, d)));
    let (more_ab, more_cd) = (wide(vzip2q_u32(a, b)), wide(vzip2q_u32(c, d)));
    [
        narrow(vzip1q_u64(ab, cd)),
        narrow(vzip2q_u64(ab, cd)),
        narrow(vzip1q_u64(more_ab, more_cd)),
        narrow(vzip2q_u64(more_ab, more_cd)),
    ]
}

impl Simd for Neon {
    type Vector = uint32x4_t;
    type Digits = uint8x16_t;
    type Table = uint8x16x4_t;

    const WIDTH: usize = 4;

    operations! {
        fn set1(word: u32) -> uint32x4_t = vdupq_n_u32;
        fn load(words: &[u32]) -> uint32x4_t = load;
        fn store(vector: uint32x4_t, words: &mut [u32]) -> () = store_words;

        add(a, b) = vaddq_u32;
        and(a, b) = vandq_u32;
        or(a, b) = vorrq_u32;
        xor(a, b) = veorq_u32;
        and_or(a, b, c) = and_or;
        select(mask, a, b) = vbslq_u32;
        parity(a, b, c) = parity;
        majority(a, b, c) = majority;
        rotate_left_5(a) = rotate_left_5;
        rotate_left_30(a) = rotate_left_30;

        fn advance<const PLACES: u8>(near: uint32x4_t, far: uint32x4_t) -> uint32x4_t = advance::<PLACES>;
        upper_digits(word) = upper_digits;
        lower_digits(word) = lower_digits;
        fn hex_digits<const FIRST: u32>(word: uint32x4_t) -> uint32x4_t = hex_digits::<FIRST>;
        fn base32_digits<const FIRST: i32>(high: uint32x4_t, low: uint32x4_t) -> uint32x4_t = base32_digits::<FIRST>;
        fn prepare(digits: uint32x4_t) -> uint8x16_t = vreinterpretq_u8_u32;
        fn table(bytes: &[u8; 64], digits: usize) -> uint8x16x4_t = table;
        fn lookup(table: &uint8x16x4_t, digits: uint8x16_t) -> uint32x4_t = lookup;
        fn lookup_last(table: &uint8x16x4_t, digits: uint8x16_t, padding: uint32x4_t) -> uint32x4_t = lookup_last;

        count_ones(bytes) = count_ones;
        add_bytes(a, b) = add_bytes;
        max_bytes(a, b) = max_bytes;
        fn not_less(a: uint32x4_t, b: uint32x4_t) -> u64 = not_less;

        fn zeros(words: uint32x4_t) -> u64 = zeros;

        fn codes(digits: uint8x16_t) -> uint32x4_t = codes;
        fn known(bitmap: &Bitmap, codes: uint32x4_t) -> uint32x4_t = known;
    }
}

impl CheckMore for Neon {
    #[inline(always)]
    fn check_more(self, windows: &Windows<'_, Self>, digest: &Digests<Neon>) -> u64 {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        fn compiled(simd: Neon, windows: &Windows<'_, Neon>, digest: &Digests<Neon>) -> u64 {
            windows.check_more(simd, digest)
        }
        // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing
        // else.
        unsafe { compiled(self, windows, digest) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_words(vector: uint32x4_t, words: &mut [u32]) {
    let words = &mut words[..Neon::WIDTH];
    // SAFETY: the slice is as long as the vector.
    unsafe { vst1q_u32(words.as_mut_ptr(), vector) }
}

#[inline]
#[target_feature(enable = "neon")]
fn and_or(a: uint32x4_t, b: uint32x4_t, c: uint32x4_t) -> uint32x4_t {
    vorrq_u32(vandq_u32(a, b), c)
}

#[inline]
#[target_feature(enable = "neon")]
fn parity(a: uint32x4_t, b: uint32x4_t, c: uint32x4_t) -> uint32x4_t {
    veorq_u32(veorq_u32(a, b), c)
}

#[inline]
#[target_feature(enable = "neon")]
fn majority(a: uint32x4_t, b: uint32x4_t, c: uint32x4_t) -> uint32x4_t {
    vbslq_u32(veorq_u32(a, b), c, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn rotate_left_5(a: uint32x4_t) -> uint32x4_t {
    vsriq_n_u32::<27>(vshlq_n_u32::<5>(a), a)
}

#[inline]
#[target_feature(enable = "neon")]
fn rotate_left_30(a: uint32x4_t) -> uint32x4_t {
    vsriq_n_u32::<2>(vshlq_n_u32::<30>(a), a)
}

#[inline]
#[target_feature(enable = "neon")]
fn advance<const PLACES: u8>(near: uint32x4_t, far: uint32x4_t) -> uint32x4_t {
    match PLACES {
        1 => vsliq_n_u32::<24>(vshrq_n_u32::<8>(near), far),
        2 => vsliq_n_u32::<16>(vshrq_n_u32::<16>(near), far),
        3 => vsliq_n_u32::<8>(vshrq_n_u32::<24>(near), far),
        _ => near,
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn upper_digits(word: uint32x4_t) -> uint32x4_t {
    spread(word, [2, 3, 1, 2])
}

#[inline]
#[target_feature(enable = "neon")]
fn lower_digits(word: uint32x4_t) -> uint32x4_t {
    spread(word, [1, 2, 0, 1])
}

#[inline]
#[target_feature(enable = "neon")]
fn hex_digits<const FIRST: u32>(word: uint32x4_t) -> uint32x4_t {
    let pairs = match FIRST {
        0 => taken(word, [3, 3, 2, 2]),
        _ => taken(word, [1, 1, 0, 0]),
    };
    let upper = vandq_u32(vshrq_n_u32::<4>(pairs), vdupq_n_u32(0x000f_000f));
    and_or(pairs, vdupq_n_u32(0x0f00_0f00), upper)
}

#[inline]
#[target_feature(enable = "neon")]
fn base32_digits<const FIRST: i32>(high: uint32x4_t, low: uint32x4_t) -> uint32x4_t {
    // A negative distance shifts to the right, and by 32 bits nothing is left.
    let (left, right) = (vdupq_n_s32(FIRST), vdupq_n_s32(FIRST - 32));
    let top = vorrq_u32(vshlq_u32(high, left), vshlq_u32(low, right));
    let first = vshrq_n_u32::<27>(top);
    let second = vandq_u32(vshrq_n_u32::<14>(top), vdupq_n_u32(0x0000_1f00));
    let third = vandq_u32(vshrq_n_u32::<1>(top), vdupq_n_u32(0x001f_0000));
    let fourth = vandq_u32(vshlq_n_u32::<12>(top), vdupq_n_u32(0x1f00_0000));
    vorrq_u32(vorrq_u32(first, second), vorrq_u32(third, fourth))
}

/// Returns these bytes of each word.
#[inline]
#[target_feature(enable = "neon")]
fn taken(word: uint32x4_t, of_word: [u8; 4]) -> uint32x4_t {
    let words = [0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c];
    let taken = words.map(|word: u32| word + u32::from_le_bytes(of_word));
    vreinterpretq_u32_u8(vqtbl1q_u8(
        vreinterpretq_u8_u32(word),
        vreinterpretq_u8_u32(load(&taken)),
    ))
}

/// Returns the four digits of three bytes of each word. `of_word` lists the bytes in the order
/// second, first, third, second: each half of the word then holds two digits, which are shifted
/// apart.
#[inline]
#[target_feature(enable = "neon")]
fn spread(word: uint32x4_t, of_word: [u8; 4]) -> uint32x4_t {
    let halves = vreinterpretq_u16_u32(taken(word, of_word));
    // A negative distance shifts to the right: `right` by ten and six bits. `left` shifts to the
    // left by four and eight bits.
    let right = vreinterpretq_s16_u32(vdupq_n_u32(u32::from_le_bytes([0xf6, 0xff, 0xfa, 0xff])));
    let left = vreinterpretq_s16_u32(vdupq_n_u32(0x0008_0004));
    let first = vandq_u16(vshlq_u16(halves, right), vdupq_n_u16(0x003f));
    let second = vandq_u16(vshlq_u16(halves, left), vdupq_n_u16(0x3f00));
    vreinterpretq_u32_u16(vorrq_u16(first, second))
}

#[inline]
#[target_feature(enable = "neon")]
fn table(bytes: &[u8; 64], _: usize) -> uint8x16x4_t {
    // SAFETY: the array is as long as the four vectors.
    unsafe { vld1q_u8_x4(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn lookup(table: &uint8x16x4_t, digits: uint8x16_t) -> uint32x4_t {
    vreinterpretq_u32_u8(vqtbl4q_u8(*table, digits))
}

#[inline]
#[target_feature(enable = "neon")]
fn lookup_last(table: &uint8x16x4_t, digits: uint8x16_t, padding: uint32x4_t) -> uint32x4_t {
    vbslq_u32(vdupq_n_u32(0x00ff_ffff), lookup(table, digits), padding)
}

#[inline]
#[target_feature(enable = "neon")]
fn count_ones(bytes: uint32x4_t) -> uint32x4_t {
    vreinterpretq_u32_u8(vcntq_u8(vreinterpretq_u8_u32(bytes)))
}

#[inline]
#[target_feature(enable = "neon")]
fn add_bytes(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)))
}

#[inline]
#[target_feature(enable = "neon")]
fn max_bytes(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    vreinterpretq_u32_u8(vmaxq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)))
}

#[inline]
#[target_feature(enable = "neon")]
fn not_less(a: uint32x4_t, b: uint32x4_t) -> u64 {
    let bytes = vcgeq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b));
    // One of a hash's four bits is enough for the caller.
    let any = vtstq_u32(vreinterpretq_u32_u8(bytes), vdupq_n_u32(u32::MAX));
    u64::from(vaddvq_u32(vandq_u32(
        any,
        load(&[0x1, 0x10, 0x100, 0x1000]),
    )))
}

#[inline]
#[target_feature(enable = "neon")]
fn zeros(words: uint32x4_t) -> u64 {
    let zeros = vceqzq_u32(words);
    u64::from(vaddvq_u32(vandq_u32(
        zeros,
        load(&[0x1, 0x10, 0x100, 0x1000]),
    )))
}

#[inline]
#[target_feature(enable = "neon")]
fn codes(digits: uint8x16_t) -> uint32x4_t {
    lookup(&table(&CODES, 64), digits)
}

#[inline]
#[target_feature(enable = "neon")]
fn known(bitmap: &Bitmap, codes: uint32x4_t) -> uint32x4_t {
    let mut words = [0; Neon::WIDTH];
    store_words(codes, &mut words);
    for word in &mut words {
        *word = u32::from(bitmap.contains(key_of(word.to_le_bytes())));
    }
    load(&words)
}

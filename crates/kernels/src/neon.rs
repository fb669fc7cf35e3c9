//! The kernel for ARM's CPUs with the SHA extension: one hash to a vector, four at a time.

use std::arch::{aarch64::*, is_aarch64_feature_detected};

use crate::{
    plan::{CODES, Grams},
    quads::{Chunk, Quad, Row},
    rows::{Digests, Hasher, kernel},
    simd::{Simd, operations},
    split::{INITIAL, constant},
};

/// One vector of four digests.
const VECTORS: usize = 1;

/// How many hashes are in flight: the latency of a SHA instruction is four cycles.
const IN_FLIGHT: usize = 4;

/// NEON and the SHA extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// The proof, if the CPU has them.
    pub(crate) fn detect() -> Option<Neon> {
        let available =
            is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("sha2");
        available.then_some(Neon(()))
    }

    kernel!("neon,sha2");
}

impl Hasher<VECTORS> for Neon {
    type Simd = Neon;
    type Chunk = Chunk;
    type Row = Row;

    #[inline(always)]
    fn simd(self) -> Neon {
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
    ) -> [Digests<Neon>; VECTORS] {
        // SAFETY: `self` proves that the CPU has the instructions.
        [unsafe { hash(chunk, row, lane) }]
    }
}

/// The digests of four lanes, a vector for each of their words.
#[inline]
#[target_feature(enable = "neon,sha2")]
fn hash(chunk: &Chunk, row: &Row, lane: usize) -> [uint32x4_t; 5] {
    let [a, b, c, d, first_e] = INITIAL;
    let first_abcd = load(&[a, b, c, d]);
    let mut abcd = [first_abcd; IN_FLIGHT];
    let mut e = [first_e; IN_FLIGHT];
    macro_rules! rounds {
        ($($quad:literal)*) => { $(
            let common = load(&row.0[$quad]);
            let added = vdupq_n_u32(const { constant(4 * $quad) });
            for n in 0..IN_FLIGHT {
                let words = veorq_u32(load(&chunk.lane(lane + n)[$quad]), common);
                let words = vaddq_u32(words, added);
                let next_e = vsha1h_u32(vgetq_lane_u32::<0>(abcd[n]));
                abcd[n] = match $quad / 5 {
                    0 => vsha1cq_u32(abcd[n], e[n], words),
                    2 => vsha1mq_u32(abcd[n], e[n], words),
                    _ => vsha1pq_u32(abcd[n], e[n], words),
                };
                e[n] = next_e;
            }
        )* };
    }
    rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
    for n in 0..IN_FLIGHT {
        abcd[n] = vaddq_u32(abcd[n], first_abcd);
        e[n] = e[n].wrapping_add(first_e);
    }
    let [a, b, c, d] = transposed(abcd);
    [a, b, c, d, load(&e)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(quad: &Quad) -> uint32x4_t {
    // SAFETY: the array is as long as the vector.
    unsafe { vld1q_u32(quad.as_ptr()) }
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

    #[inline(always)]
    fn set1(self, word: u32) -> uint32x4_t {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { vdupq_n_u32(word) }
    }

    #[inline(always)]
    fn load(self, words: &[u32]) -> uint32x4_t {
        let words = &words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { vld1q_u32(words.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, vector: uint32x4_t, words: &mut [u32]) {
        let words = &mut words[..Self::WIDTH];
        // SAFETY: `self` proves that the CPU has it; the slice is as long as the vector.
        unsafe { vst1q_u32(words.as_mut_ptr(), vector) }
    }

    operations! {
        add(a, b) = vaddq_u32(a, b);
        and(a, b) = vandq_u32(a, b);
        or(a, b) = vorrq_u32(a, b);
        xor(a, b) = veorq_u32(a, b);
        and_or(a, b, c) = vorrq_u32(vandq_u32(a, b), c);
        select(mask, a, b) = vbslq_u32(mask, a, b);
        parity(a, b, c) = veorq_u32(veorq_u32(a, b), c);
        majority(a, b, c) = vbslq_u32(veorq_u32(a, b), c, b);
        rotate_left_5(a) = vsriq_n_u32::<27>(vshlq_n_u32::<5>(a), a);
        rotate_left_30(a) = vsriq_n_u32::<2>(vshlq_n_u32::<30>(a), a);
        upper_digits(word) = spread(word, [2, 3, 1, 2]);
        lower_digits(word) = spread(word, [1, 2, 0, 1]);
        count_ones(bytes) = vreinterpretq_u32_u8(vcntq_u8(vreinterpretq_u8_u32(bytes)));
        add_bytes(a, b) = vreinterpretq_u32_u8(vaddq_u8(
            vreinterpretq_u8_u32(a),
            vreinterpretq_u8_u32(b),
        ));
        max_bytes(a, b) = vreinterpretq_u32_u8(vmaxq_u8(
            vreinterpretq_u8_u32(a),
            vreinterpretq_u8_u32(b),
        ));
    }

    #[inline(always)]
    fn look_on<const PLACES: u8>(self, near: uint32x4_t, far: uint32x4_t) -> uint32x4_t {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            match PLACES {
                1 => vsliq_n_u32::<24>(vshrq_n_u32::<8>(near), far),
                2 => vsliq_n_u32::<16>(vshrq_n_u32::<16>(near), far),
                3 => vsliq_n_u32::<8>(vshrq_n_u32::<24>(near), far),
                _ => near,
            }
        }
    }

    #[inline(always)]
    fn prepare(self, digits: uint32x4_t) -> uint8x16_t {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { vreinterpretq_u8_u32(digits) }
    }

    #[inline(always)]
    fn table(self, bytes: &[u8; 64]) -> uint8x16x4_t {
        // SAFETY: `self` proves that the CPU has it; the array is as long as the four vectors.
        unsafe { vld1q_u8_x4(bytes.as_ptr()) }
    }

    #[inline(always)]
    fn lookup(self, table: &uint8x16x4_t, digits: uint8x16_t) -> uint32x4_t {
        // SAFETY: `self` proves that the CPU has it.
        unsafe { vreinterpretq_u32_u8(vqtbl4q_u8(*table, digits)) }
    }

    #[inline(always)]
    fn lookup_last(
        self,
        table: &uint8x16x4_t,
        digits: uint8x16_t,
        padding: uint32x4_t,
    ) -> uint32x4_t {
        self.select(self.set1(0x00ff_ffff), self.lookup(table, digits), padding)
    }

    #[inline(always)]
    fn not_less(self, a: uint32x4_t, b: uint32x4_t) -> u64 {
        // SAFETY: `self` proves that the CPU has it.
        unsafe {
            let bytes = vcgeq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b));
            // One of a hash's four bits is enough.
            let any = vtstq_u32(vreinterpretq_u32_u8(bytes), self.set1(u32::MAX));
            u64::from(vaddvq_u32(vandq_u32(
                any,
                self.load(&[0x1, 0x10, 0x100, 0x1000]),
            )))
        }
    }

    #[inline(always)]
    fn codes(self, digits: uint8x16_t) -> uint32x4_t {
        self.lookup(&self.table(&CODES), digits)
    }

    #[inline(always)]
    fn known(self, grams: &Grams, codes: uint32x4_t) -> uint32x4_t {
        let mut words = [0; Self::WIDTH];
        self.store(codes, &mut words);
        for word in &mut words {
            *word = u32::from(grams.may_have_codes(word.to_le_bytes()));
        }
        self.load(&words)
    }
}

/// Four digits from three bytes of each word, which are taken as second, first, third and second
/// again: each half of the word then holds two digits, which are shifted apart.
#[inline]
#[target_feature(enable = "neon")]
fn spread(word: uint32x4_t, taken: [u8; 4]) -> uint32x4_t {
    let words = [0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c];
    let taken = words.map(|word: u32| word + u32::from_le_bytes(taken));
    let bytes = vqtbl1q_u8(
        vreinterpretq_u8_u32(word),
        vreinterpretq_u8_u32(load(&taken)),
    );
    let halves = vreinterpretq_u16_u8(bytes);
    // By signed distances to the left: ten and six to the right, four and eight to the left.
    let right = vreinterpretq_s16_u32(vdupq_n_u32(u32::from_le_bytes([0xf6, 0xff, 0xfa, 0xff])));
    let left = vreinterpretq_s16_u32(vdupq_n_u32(0x0008_0004));
    let first = vandq_u16(vshlq_u16(halves, right), vdupq_n_u16(0x003f));
    let second = vandq_u16(vshlq_u16(halves, left), vdupq_n_u16(0x3f00));
    vreinterpretq_u32_u16(vorrq_u16(first, second))
}

//! The kernel for CPUs with AVX-512: sixteen hashes to a vector, four vectors at a time, so that the
//! latency of one round is hidden behind three others.
//!
//! [`split`](crate::split) explains what spares it the message schedule. The window filter works on
//! the digests as they are, transposed: a byte for each of a hashed name's 28 places.

use std::{arch::x86_64::*, ops::Range};

use crate::{
    Block, Filter, Hit, Hits,
    digits::HASHED_NAME_LEN,
    filter::Classes,
    portable,
    split::{
        CASES, CHUNK, INITIAL, LANE_BITS, LANES, Lanes, Row, SUMS, Tables, Word, base, case_of,
        constant, row_mask,
    },
};

/// How many vectors are in flight.
const VECTORS: usize = 4;

/// How many hashes a vector holds.
const WIDTH: usize = LANES / VECTORS;

/// Whether the CPU has all that is used here.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512bitalg")
}

/// See [`Kernel::scan`](crate::Kernel::scan).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
pub(crate) fn scan(block: &Block, filter: &Filter, hits: &mut Hits) -> u64 {
    // Not even a chunk of these exists.
    if block.length < 2 {
        return portable::scan(block, filter, hits);
    }
    if hits.is_full() {
        return 0;
    }
    let windows = WindowFilter::new(filter.classes());
    let tables = Tables::of(block.length);
    let mut offset = 0;
    while offset < block.count {
        let first = block.first + offset;
        let chunk = Chunk::new(block.length, first & !(CHUNK - 1), tables);
        let count = (CHUNK - first % CHUNK).min(block.count - offset);
        let part = Part {
            from: first % CHUNK,
            count,
            offset,
        };
        let tried = match case_of(block.length) {
            0 => scan_chunk::<0>(&chunk, tables, &windows, filter, part, hits),
            1 => scan_chunk::<1>(&chunk, tables, &windows, filter, part, hits),
            _ => scan_chunk::<2>(&chunk, tables, &windows, filter, part, hits),
        };
        offset += tried;
        if tried < count || hits.is_full() {
            break;
        }
    }
    offset
}

/// See [`Kernel::digest_sum`](crate::Kernel::digest_sum).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
pub(crate) fn digest_sum(block: &Block) -> u32 {
    if block.length < 2 {
        return portable::digest_sum(block);
    }
    let tables = Tables::of(block.length);
    let mut sum = 0;
    let mut offset = 0;
    while offset < block.count {
        let first = block.first + offset;
        let count = (CHUNK - first % CHUNK).min(block.count - offset);
        let chunk = Chunk::new(block.length, first & !(CHUNK - 1), tables);
        let wanted = first % CHUNK..first % CHUNK + count;
        sum ^= match case_of(block.length) {
            0 => chunk_sum::<0>(&chunk, tables, wanted),
            1 => chunk_sum::<1>(&chunk, tables, wanted),
            _ => chunk_sum::<2>(&chunk, tables, wanted),
        };
        offset += count;
    }
    sum
}

/// The XOR of the first words of a part of a chunk.
#[target_feature(enable = "avx512f")]
fn chunk_sum<const CASE: usize>(chunk: &Chunk, tables: &Tables, wanted: Range<u64>) -> u32 {
    let rows = wanted.start >> LANE_BITS..wanted.end.div_ceil(LANES as u64);
    let mut sums = [_mm512_setzero_si512(); VECTORS];
    for number in rows {
        let chunk = std::hint::black_box(chunk);
        let digests = hash::<CASE>(chunk, &tables.rows[number as usize]);
        for (vector, (sum, digest)) in sums.iter_mut().zip(&digests).enumerate() {
            // A row is always hashed as a whole.
            let first = (number << LANE_BITS) + (vector * WIDTH) as u64;
            let lanes = (0..WIDTH as u64).filter(|lane| wanted.contains(&(first + lane)));
            let lanes = if wanted.contains(&first) && first + WIDTH as u64 <= wanted.end {
                u16::MAX
            } else {
                lanes.fold(0, |mask, lane| mask | 1 << lane)
            };
            *sum = _mm512_mask_xor_epi32(*sum, lanes, *sum, digest[0]);
        }
    }
    let mut sum = 0;
    for vector in sums {
        sum ^= words(vector).iter().fold(0, |sum, word| sum ^ word);
    }
    sum
}

/// The part of a chunk that is wanted.
#[derive(Clone, Copy)]
struct Part {
    /// Its first secret, counted within the chunk.
    from: u64,
    /// How many secrets it has.
    count: u64,
    /// How far its first secret lies behind the block's.
    offset: u64,
}

/// What a chunk brings to each round.
struct Chunk {
    /// The lanes' part of each word that varies, the base's bits folded in, and the round's constant
    /// where the row's part is added.
    lanes: [[__m512i; VECTORS]; 80],
    /// Each word that does not vary, with the round's constant.
    constants: [u32; 80],
    /// The base's part of the words that a row's sums are made of.
    base: [__m512i; SUMS / WIDTH],
    /// What is added to them: the round's constant where no lane brings it.
    addend: [__m512i; SUMS / WIDTH],
}

impl Chunk {
    #[target_feature(enable = "avx512f")]
    fn new(length: u32, first: u64, tables: &Tables) -> Chunk {
        let base = base(length, first);
        let rows = row_mask_of(length);
        let mut sums = Lanes([0; LANES]);
        let mut addends = Lanes([0; LANES]);
        let mut chunk = Chunk {
            lanes: [[_mm512_setzero_si512(); VECTORS]; 80],
            constants: [0; 80],
            base: [_mm512_setzero_si512(); SUMS / WIDTH],
            addend: [_mm512_setzero_si512(); SUMS / WIDTH],
        };
        for (t, word) in CASES[case_of(length)].words.iter().enumerate() {
            // The base's bits go with the lanes, but for those that the row's sums need.
            let (kept, added) = match *word {
                Word::Constant => {
                    chunk.constants[t] = base[t].wrapping_add(constant(t));
                    continue;
                }
                Word::Row(slot) => {
                    sums.0[slot] = base[t];
                    addends.0[slot] = constant(t);
                    continue;
                }
                Word::Add(slot) => {
                    sums.0[slot] = base[t] & rows[t];
                    (base[t] & !rows[t], constant(t))
                }
                Word::Xor(_) => (base[t], 0),
            };
            let (kept, added) = (set1(kept), set1(added));
            for (lanes, part) in chunk.lanes[t].iter_mut().zip(vectors(&tables.lanes[t])) {
                *lanes = _mm512_add_epi32(_mm512_xor_si512(part, kept), added);
            }
        }
        let (sums, addends) = (vectors(&sums), vectors(&addends));
        chunk.base.copy_from_slice(&sums[..SUMS / WIDTH]);
        chunk.addend.copy_from_slice(&addends[..SUMS / WIDTH]);
        chunk
    }
}

/// [`row_mask`], worked out once.
fn row_mask_of(length: u32) -> &'static [u32; 80] {
    static MASKS: [[u32; 80]; 9] = {
        let mut masks = [[0; 80]; 9];
        let mut length = 2;
        while length <= 8 {
            masks[length as usize] = row_mask(length);
            length += 1;
        }
        masks
    };
    &MASKS[length as usize]
}

/// Tries a part of a chunk; see [`scan`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
fn scan_chunk<const CASE: usize>(
    chunk: &Chunk,
    tables: &Tables,
    windows: &WindowFilter,
    filter: &Filter,
    part: Part,
    hits: &mut Hits,
) -> u64 {
    let end = part.from + part.count;
    let rows = (part.from >> LANE_BITS) as usize..end.div_ceil(LANES as u64) as usize;
    for number in rows {
        // Hidden from the optimiser, which would otherwise load what is the same in every row
        // before the loop, run out of registers, and keep it on the stack instead.
        let chunk = std::hint::black_box(chunk);
        let digests = hash::<CASE>(chunk, &tables.rows[number]);
        let mut passed = [0; VECTORS];
        for (passed, digest) in passed.iter_mut().zip(&digests) {
            *passed = windows.check(digest);
        }
        if passed != [0; VECTORS] {
            let first = (number as u64) << LANE_BITS;
            let full = confirm(&digests, passed, filter, first, part, hits);
            if let Some(tried) = full {
                return tried;
            }
        }
    }
    part.count
}

/// Looks closely at the hashes of a row that passed the fast filter, and adds those that are hits.
/// Gives how much of the part was tried if that fills the list.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f")]
fn confirm(
    digests: &[Digests; VECTORS],
    passed: [u64; VECTORS],
    filter: &Filter,
    first: u64,
    part: Part,
    hits: &mut Hits,
) -> Option<u64> {
    for (vector, (digests, passed)) in digests.iter().zip(passed).enumerate() {
        if passed == 0 {
            continue;
        }
        #[allow(
            clippy::redundant_closure,
            reason = "a function with CPU features is no closure"
        )]
        let words = digests.map(|word| words(word));
        #[allow(
            clippy::needless_range_loop,
            reason = "the lanes go across five arrays"
        )]
        for lane in 0..WIDTH {
            // Four bytes of the vector for each hash, one for each four of its windows.
            if passed >> (4 * lane) & 0xf == 0 {
                continue;
            }
            let counter = first + (vector * WIDTH + lane) as u64;
            // A row is always hashed as a whole.
            let Some(offset) = counter.checked_sub(part.from) else {
                continue;
            };
            if offset >= part.count {
                return None;
            }
            let digest = std::array::from_fn(|word| words[word][lane]);
            if let Some(found) = filter.check_exactly(&digest) {
                hits.push(Hit {
                    offset: part.offset + offset,
                    distance: found.distance,
                    window: found.window,
                });
                if hits.is_full() {
                    return Some(offset + 1);
                }
            }
        }
    }
    None
}

/// The five words of sixteen digests.
type Digests = [__m512i; 5];

/// The digests of one row.
#[inline]
#[target_feature(enable = "avx512f")]
fn hash<const CASE: usize>(chunk: &Chunk, row: &Row) -> [Digests; VECTORS] {
    let mut sums = [Sums([0; WIDTH]); SUMS / WIDTH];
    for (index, sums) in sums.iter_mut().enumerate() {
        let part = load(&row.sums, index);
        let word = _mm512_xor_si512(part, chunk.base[index]);
        sums.store(_mm512_add_epi32(word, chunk.addend[index]));
    }
    // The rounds take them one by one, as operands that are broadcast from memory.
    let sums = std::hint::black_box(&sums);

    let [mut a, mut b, mut c, mut d, mut e] = INITIAL.map(|word| [set1(word); VECTORS]);
    macro_rules! round {
        ($t:literal) => {
            for v in 0..VECTORS {
                let sum = match const { CASES[CASE].words[$t] } {
                    Word::Constant => _mm512_add_epi32(e[v], set1(chunk.constants[$t])),
                    Word::Xor(slot) => {
                        let word = _mm512_xor_si512(chunk.lanes[$t][v], set1(row.xors[slot]));
                        let sum = _mm512_add_epi32(e[v], word);
                        _mm512_add_epi32(sum, set1(const { constant($t) }))
                    }
                    Word::Add(slot) => {
                        let sum = _mm512_add_epi32(e[v], chunk.lanes[$t][v]);
                        _mm512_add_epi32(sum, set1(sums[slot / WIDTH].0[slot % WIDTH]))
                    }
                    Word::Row(slot) => {
                        _mm512_add_epi32(e[v], set1(sums[slot / WIDTH].0[slot % WIDTH]))
                    }
                };
                // The functions of FIPS 180-4, 4.1.1, by their truth tables.
                let f = match $t / 20 {
                    0 => _mm512_ternarylogic_epi32::<0xca>(b[v], c[v], d[v]),
                    2 => _mm512_ternarylogic_epi32::<0xe8>(b[v], c[v], d[v]),
                    _ => _mm512_ternarylogic_epi32::<0x96>(b[v], c[v], d[v]),
                };
                let sum = _mm512_add_epi32(sum, f);
                let sum = _mm512_add_epi32(sum, _mm512_rol_epi32::<5>(a[v]));
                (e[v], d[v], c[v]) = (d[v], c[v], _mm512_rol_epi32::<30>(b[v]));
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

    let mut digests = [[_mm512_setzero_si512(); 5]; VECTORS];
    for v in 0..VECTORS {
        let state = [a[v], b[v], c[v], d[v], e[v]];
        for word in 0..5 {
            digests[v][word] = _mm512_add_epi32(state[word], set1(INITIAL[word]));
        }
    }
    digests
}

/// Four places of a hashed name are a group: in a vector, four bytes for each hash.
const GROUPS: usize = HASHED_NAME_LEN / 4;

/// The window filter: the characters of a name, eight to a table, and how many must agree.
struct WindowFilter {
    tables: Vec<Table>,
    least: __m512i,
}

/// Eight characters of a name.
struct Table {
    /// For each digit, a bit for each of the characters that it satisfies.
    digits: __m512i,
    /// The same for the padding, in the last place of the last group.
    padding: __m512i,
}

impl WindowFilter {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(classes: &Classes) -> WindowFilter {
        let mut tables = Vec::new();
        for table in &classes.tables {
            tables.push(Table {
                digits: load(&table.digits, 0),
                padding: set1(u32::from(table.padding) << 24),
            });
        }
        WindowFilter {
            tables,
            least: _mm512_set1_epi8(classes.least as i8),
        }
    }

    /// Which hashes have a window near enough: at least one of the four bits of each that does.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
    fn check(&self, digest: &Digests) -> u64 {
        let digits = digits(digest);
        let Some((first, further)) = self.tables.split_first() else {
            return u64::MAX;
        };
        let mut agree = first.agree(&digits);
        for (number, table) in further.iter().enumerate() {
            // The next eight characters of a window lie eight places, that is two groups, further
            // on.
            let begin = 2 * (number + 1);
            let more = table.agree(&digits);
            for (agree, more) in agree.iter_mut().zip(&more[begin..]) {
                *agree = _mm512_add_epi8(*agree, *more);
            }
        }
        let mut most = agree[0];
        for agree in &agree[1..] {
            most = _mm512_max_epu8(most, *agree);
        }
        _mm512_cmpge_epu8_mask(most, self.least)
    }
}

impl Table {
    /// For each window, in the byte of the place where it begins, how many of these characters agree.
    ///
    /// First each byte says which characters its digit satisfies. Then the bytes of a window are
    /// brought together along the diagonal, where character `p` belongs to place `p` of the window,
    /// in three steps of 4, 2 and 1 places: the step of `s` takes the bits of those characters whose
    /// number has the bit `s` from `s` places further on. In the end a byte holds a bit for each
    /// character that agrees.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512bitalg")]
    fn agree(&self, digits: &[__m512i; GROUPS]) -> [__m512i; GROUPS] {
        // What lies beyond the last place agrees with nothing, so one more group stays zero.
        let mut bytes = [_mm512_setzero_si512(); GROUPS + 1];
        for group in 0..GROUPS - 1 {
            bytes[group] = _mm512_permutexvar_epi8(digits[group], self.digits);
        }
        let but_the_last = 0x7777_7777_7777_7777;
        let (last, digits) = (&mut bytes[GROUPS - 1], digits[GROUPS - 1]);
        *last = _mm512_mask_permutexvar_epi8(self.padding, but_the_last, digits, self.digits);

        for group in 0..GROUPS {
            bytes[group] = merge::<0x0f>(bytes[group], bytes[group + 1]);
        }
        for group in 0..GROUPS {
            let far = _mm512_shrdi_epi32::<16>(bytes[group], bytes[group + 1]);
            bytes[group] = merge::<0x33>(bytes[group], far);
        }
        let mut agree = [_mm512_setzero_si512(); GROUPS];
        for group in 0..GROUPS {
            let far = _mm512_shrdi_epi32::<8>(bytes[group], bytes[group + 1]);
            agree[group] = _mm512_popcnt_epi8(merge::<0x55>(bytes[group], far));
        }
        agree
    }
}

/// The digits of each group, four bytes for each hash. Six bits of a byte are the digit; the lookups
/// ignore the two above them.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi,avx512vbmi2")]
fn digits(digest: &Digests) -> [__m512i; GROUPS] {
    let [h0, h1, h2, h3, h4] = *digest;
    // Four digits are 24 bits; where they span two words, those are brought together first.
    let (low, high) = (selector([18, 12, 6, 0]), selector([26, 20, 14, 8]));
    [
        _mm512_multishift_epi64_epi8(high, h0),
        _mm512_multishift_epi64_epi8(low, _mm512_shldi_epi32::<16>(h0, h1)),
        _mm512_multishift_epi64_epi8(low, _mm512_shldi_epi32::<8>(h1, h2)),
        _mm512_multishift_epi64_epi8(low, h2),
        _mm512_multishift_epi64_epi8(high, h3),
        _mm512_multishift_epi64_epi8(low, _mm512_shldi_epi32::<16>(h3, h4)),
        _mm512_multishift_epi64_epi8(low, _mm512_slli_epi32::<8>(h4)),
    ]
}

/// The bits of `near` that `KEEP` has in every byte, and those of `far` that it has not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn merge<const KEEP: i8>(near: __m512i, far: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(KEEP), near, far)
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

#[inline]
#[target_feature(enable = "avx512f")]
fn set1(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

/// One vector of a row's sums, in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([u32; WIDTH]);

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(&mut self, vector: __m512i) {
        // SAFETY: the array is as long as the vector, and its type is aligned as a vector is.
        unsafe { _mm512_store_si512(self.0.as_mut_ptr().cast(), vector) }
    }
}

/// The `index`th vector of an array of integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<T: Integer, const N: usize>(array: &[T; N], index: usize) -> __m512i {
    let width = size_of::<__m512i>() / size_of::<T>();
    let part = &array[index * width..][..width];
    // SAFETY: the slice is as long as the vector, and every pattern of bits is a vector.
    unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
}

/// The integers that [`load`] loads: without padding, so that every byte has a value.
trait Integer {}
impl Integer for u8 {}
impl Integer for u32 {}

#[target_feature(enable = "avx512f")]
fn vectors(lanes: &Lanes) -> [__m512i; VECTORS] {
    let mut vectors = [_mm512_setzero_si512(); VECTORS];
    for (index, vector) in vectors.iter_mut().enumerate() {
        *vector = load(&lanes.0, index);
    }
    vectors
}

#[target_feature(enable = "avx512f")]
fn words(vector: __m512i) -> [u32; WIDTH] {
    let mut words = Sums([0; WIDTH]);
    words.store(vector);
    words.0
}

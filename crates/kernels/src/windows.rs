//! The fast filter of the vector kernels. It works on the digests in their vectors. For names at
//! any place, further vectors hold one byte for each of a hashed name's places, four to a word:
//! seven vectors for the 28 places of base64.
//!
//! The filter is a necessary condition: it passes every match, and a few other digests.
//! [`plan`](crate::plan) describes its parts.

use crate::{
    digits::Text,
    filter::Filter,
    plan::{Agreement, Bank, ClassTable, Classes, Grams, Mask},
    simd::{Digests, Simd},
};

/// Vectors with a function for the less frequent checks. It is compiled only once, because it is
/// not inlined.
pub(crate) trait CheckMore: Simd {
    /// Calls [`Windows::check_more`].
    fn check_more(self, windows: &Windows<'_, Self>, digest: &Digests<Self>) -> u64;
}

/// An encoding, as a type, with `G` groups of four places.
trait Encoding<const G: usize> {
    const TEXT: Text;

    /// Returns the digits of each group.
    fn digits<S: Simd>(simd: S, digest: &Digests<S>) -> [S::Vector; G];
}

const BASE64: usize = Text::Base64.groups();

struct Base64;

impl Encoding<BASE64> for Base64 {
    const TEXT: Text = Text::Base64;

    #[inline(always)]
    fn digits<S: Simd>(simd: S, digest: &Digests<S>) -> [S::Vector; BASE64] {
        let [h0, h1, h2, h3, h4] = *digest;
        // Four digits are 24 bits. If they span two words, both parts are combined first.
        let mut groups = [h0; BASE64];
        groups[0] = simd.upper_digits(h0);
        groups[1] = simd.lower_digits(simd.advance::<2>(h1, h0));
        groups[2] = simd.lower_digits(simd.advance::<3>(h2, h1));
        groups[3] = simd.lower_digits(h2);
        groups[4] = simd.upper_digits(h3);
        groups[5] = simd.lower_digits(simd.advance::<2>(h4, h3));
        groups[6] = simd.lower_digits(simd.advance::<3>(simd.set1(0), h4));
        groups
    }
}

const BASE32: usize = Text::Base32.groups();

struct Base32;

impl Encoding<BASE32> for Base32 {
    const TEXT: Text = Text::Base32;

    #[inline(always)]
    fn digits<S: Simd>(simd: S, digest: &Digests<S>) -> [S::Vector; BASE32] {
        let [h0, h1, h2, h3, h4] = *digest;
        // Four digits are twenty bits.
        let mut groups = [h0; BASE32];
        groups[0] = simd.base32_digits::<0>(h0, h1);
        groups[1] = simd.base32_digits::<20>(h0, h1);
        groups[2] = simd.base32_digits::<8>(h1, h2);
        groups[3] = simd.base32_digits::<28>(h1, h2);
        groups[4] = simd.base32_digits::<16>(h2, h3);
        groups[5] = simd.base32_digits::<4>(h3, h4);
        groups[6] = simd.base32_digits::<24>(h3, h4);
        groups[7] = simd.base32_digits::<12>(h4, h4);
        groups
    }
}

const HEX: usize = Text::Hex.groups();

struct Hex;

impl Encoding<HEX> for Hex {
    const TEXT: Text = Text::Hex;

    #[inline(always)]
    fn digits<S: Simd>(simd: S, digest: &Digests<S>) -> [S::Vector; HEX] {
        let mut groups = [digest[0]; HEX];
        for word in 0..5 {
            groups[2 * word] = simd.hex_digits::<0>(digest[word]);
            groups[2 * word + 1] = simd.hex_digits::<16>(digest[word]);
        }
        groups
    }
}

/// A filter, prepared for one kernel. It is prepared for each block anew, which takes a few
/// microseconds for every hundred names in banks.
pub(crate) struct Windows<'f, S: Simd> {
    text: Text,
    masks: Vec<MaskFilter<S>>,
    names: Vec<NameFilter<S>>,
    banks: Vec<BankFilter<S>>,
    grams: Option<&'f Grams>,
    parts: Parts,
}

/// The parts of a filter apart from the masks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    Nothing,
    /// One name in base64, the most frequent case. Its check is inlined.
    OneName,
    More,
}

impl<'f, S: Simd> Windows<'f, S> {
    #[inline(always)]
    pub(crate) fn new(simd: S, filter: &'f Filter) -> Windows<'f, S> {
        let plan = filter.plan();
        let mut masks = Vec::with_capacity(plan.masks.len());
        for mask in &plan.masks {
            masks.push(MaskFilter::new(simd, mask));
        }
        let mut names = Vec::with_capacity(plan.alone.len());
        for classes in &plan.alone {
            names.push(NameFilter::new(simd, classes));
        }
        let mut banks = Vec::with_capacity(plan.banks.len());
        for bank in &plan.banks {
            banks.push(BankFilter::new(simd, bank));
        }
        let grams = plan.grams.as_ref();
        let parts = match (filter.text(), names.len(), banks.len(), grams) {
            (_, 0, 0, None) => Parts::Nothing,
            (Text::Base64, 1, 0, None) => Parts::OneName,
            _ => Parts::More,
        };
        Windows {
            text: filter.text(),
            masks,
            names,
            banks,
            grams,
            parts,
        }
    }

    /// Returns four bits for each hash, of which at least one is set if the hash may match.
    #[inline(always)]
    pub(crate) fn check(&self, simd: S, digest: &Digests<S>) -> u64
    where
        S: CheckMore,
    {
        let mut passed = 0;
        for mask in &self.masks {
            passed |= mask.check(simd, digest);
        }
        match self.parts {
            Parts::Nothing => passed,
            Parts::OneName => {
                let digits = prepared::<S, Base64, BASE64>(simd, digest);
                passed | self.names[0].check::<Base64, BASE64, { BASE64 + 2 }>(simd, &digits)
            }
            // A copy, so that the digest itself needs no place in memory.
            Parts::More => passed | simd.check_more(self, &{ *digest }),
        }
    }

    /// Checks the names at any place.
    #[inline(always)]
    pub(crate) fn check_more(&self, simd: S, digest: &Digests<S>) -> u64 {
        match self.text {
            Text::Base64 => self.check_all::<Base64, BASE64, { BASE64 + 2 }>(simd, digest),
            Text::Base32 => self.check_all::<Base32, BASE32, { BASE32 + 2 }>(simd, digest),
            Text::Hex => self.check_all::<Hex, HEX, { HEX + 2 }>(simd, digest),
        }
    }

    #[inline(always)]
    fn check_all<E: Encoding<G>, const G: usize, const B: usize>(
        &self,
        simd: S,
        digest: &Digests<S>,
    ) -> u64 {
        let digits = prepared::<S, E, G>(simd, digest);
        let mut passed = 0;
        for name in &self.names {
            passed |= name.check::<E, G, B>(simd, &digits);
        }
        for bank in &self.banks {
            passed |= match bank.errors {
                0 => bank.check::<E, G, B, 0>(simd, &digits),
                1 => bank.check::<E, G, B, 1>(simd, &digits),
                _ => bank.check::<E, G, B, 2>(simd, &digits),
            };
        }
        if E::TEXT == Text::Base64
            && let Some(grams) = self.grams
        {
            passed |= check_grams::<S, G, B>(simd, grams, &digits);
        }
        passed
    }
}

/// The digits of each group, as the lookups expect them.
type Digits<S, const G: usize> = [<S as Simd>::Digits; G];

#[inline(always)]
fn prepared<S: Simd, E: Encoding<G>, const G: usize>(simd: S, digest: &Digests<S>) -> Digits<S, G> {
    let plain = E::digits(simd, digest);
    let mut digits = [simd.prepare(plain[0]); G];
    for group in 1..G {
        digits[group] = simd.prepare(plain[group]);
    }
    digits
}

/// A [`Mask`] in vectors.
struct MaskFilter<S: Simd> {
    /// For each word: whether it is compared, the bits, and what they have to be.
    words: [(bool, S::Vector, S::Vector); 5],
}

impl<S: Simd> MaskFilter<S> {
    #[inline(always)]
    fn new(simd: S, mask: &Mask) -> MaskFilter<S> {
        let nothing = simd.set1(0);
        let mut words = [(false, nothing, nothing); 5];
        for word in 0..5 {
            let (bits, wanted) = (simd.set1(mask.bits[word]), simd.set1(mask.wanted[word]));
            words[word] = (mask.bits[word] != 0, bits, wanted);
        }
        MaskFilter { words }
    }

    #[inline(always)]
    fn check(&self, simd: S, digest: &Digests<S>) -> u64 {
        let mut differ = simd.set1(0);
        for word in 0..5 {
            let (is_compared, bits, wanted) = &self.words[word];
            if *is_compared {
                differ = simd.and_or(simd.xor(digest[word], *wanted), *bits, differ);
            }
        }
        simd.zeros(differ)
    }
}

/// Looks up a byte for each place. The last two of the `B` groups stand for places beyond the last
/// one.
#[inline(always)]
fn bytes<S: Simd, E: Encoding<G>, const G: usize, const B: usize>(
    simd: S,
    table: &Lookup<S>,
    digits: &Digits<S, G>,
) -> [S::Vector; B] {
    let mut bytes = [table.beyond; B];
    for group in 0..G - 1 {
        bytes[group] = simd.lookup(&table.digits, digits[group]);
    }
    let last = digits[G - 1];
    bytes[G - 1] = if E::TEXT.is_padded() {
        simd.lookup_last(&table.digits, last, table.padding)
    } else {
        simd.lookup(&table.digits, last)
    };
    bytes
}

/// A [`ClassTable`] in vectors.
struct Lookup<S: Simd> {
    digits: S::Table,
    /// The padding's byte, in the top byte of each word.
    padding: S::Vector,
    beyond: S::Vector,
}

impl<S: Simd> Lookup<S> {
    #[inline(always)]
    fn new(simd: S, table: &ClassTable) -> Lookup<S> {
        Lookup {
            digits: simd.table(&table.digits, table.values),
            padding: simd.set1(u32::from(table.padding) << 24),
            beyond: simd.set1_byte(table.beyond),
        }
    }
}

/// The window filter for one name.
struct NameFilter<S: Simd> {
    agreement: Agreement,
    first: Lookup<S>,
    further: Vec<Lookup<S>>,
    least: S::Vector,
}

impl<S: Simd> NameFilter<S> {
    #[inline(always)]
    fn new(simd: S, classes: &Classes) -> NameFilter<S> {
        let mut further = Vec::new();
        for table in &classes.further {
            further.push(Lookup::new(simd, table));
        }
        NameFilter {
            agreement: classes.agreement,
            first: Lookup::new(simd, &classes.first),
            further,
            least: simd.set1_byte(classes.least),
        }
    }

    #[inline(always)]
    fn check<E: Encoding<G>, const G: usize, const B: usize>(
        &self,
        simd: S,
        digits: &Digits<S, G>,
    ) -> u64 {
        let agree = match self.agreement {
            Agreement::Even => diagonals::<S, E, G, B, false>(simd, &self.first, digits),
            Agreement::All => diagonals::<S, E, G, B, true>(simd, &self.first, digits),
            Agreement::Count => self.count::<E, G, B>(simd, digits),
        };
        let mut most = agree[0];
        for group in 1..G {
            most = simd.max_bytes(most, agree[group]);
        }
        simd.not_less(most, self.least)
    }

    /// Returns for each window, in the byte of the place where it begins, the number of characters
    /// that agree.
    #[inline(always)]
    fn count<E: Encoding<G>, const G: usize, const B: usize>(
        &self,
        simd: S,
        digits: &Digits<S, G>,
    ) -> [S::Vector; G] {
        let mut agree = diagonals::<S, E, G, B, true>(simd, &self.first, digits);
        for group in 0..G {
            agree[group] = simd.count_ones(agree[group]);
        }
        for number in 0..self.further.len() {
            let more = diagonals::<S, E, G, B, true>(simd, &self.further[number], digits);
            // The next eight characters of a window are eight places, that is two groups, further
            // on.
            let begin = 2 * (number + 1);
            for group in begin..G {
                let more = simd.count_ones(more[group]);
                agree[group - begin] = simd.add_bytes(agree[group - begin], more);
            }
        }
        agree
    }
}

/// Returns for each window, in the byte of the place where it begins, one bit for each of the
/// table's characters that agrees.
///
/// At first, each byte has the bits of the characters that its digit satisfies. Then the bits of a
/// window are collected along the diagonal, where character `p` belongs to place `p` of the window.
/// This takes three steps, of 4, 2 and 1 places. The step of `s` takes the bits of some characters
/// from `s` places further on: of those in whose index the bit `s` is set. If only characters with
/// even indices matter, the step of 1 is left out.
#[inline(always)]
fn diagonals<S: Simd, E: Encoding<G>, const G: usize, const B: usize, const ODD: bool>(
    simd: S,
    table: &Lookup<S>,
    digits: &Digits<S, G>,
) -> [S::Vector; G] {
    let mut bytes = bytes::<S, E, G, B>(simd, table, digits);
    let (step_4, step_2, step_1) = (
        simd.set1_byte(0x0f),
        simd.set1_byte(0x33),
        simd.set1_byte(0x55),
    );
    for group in 0..G {
        bytes[group] = simd.select(step_4, bytes[group], bytes[group + 1]);
    }
    for group in 0..G {
        let far = simd.advance::<2>(bytes[group], bytes[group + 1]);
        bytes[group] = simd.select(step_2, bytes[group], far);
    }
    let mut agree = [bytes[0]; G];
    for group in 0..G {
        agree[group] = if ODD {
            let far = simd.advance::<1>(bytes[group], bytes[group + 1]);
            simd.select(step_1, bytes[group], far)
        } else {
            bytes[group]
        };
    }
    agree
}

/// The filter for a bank.
struct BankFilter<S: Simd> {
    errors: u8,
    /// For each of the names' first characters, the table of the buckets that a digit satisfies.
    characters: Vec<Lookup<S>>,
}

/// For each window, the buckets with a name that differs from it in at most 0, 1 and 2 characters.
type Within<S, const G: usize> = [[<S as Simd>::Vector; G]; 3];

impl<S: Simd> BankFilter<S> {
    #[inline(always)]
    fn new(simd: S, bank: &Bank) -> BankFilter<S> {
        let mut characters = Vec::new();
        for table in &bank.characters {
            characters.push(Lookup::new(simd, table));
        }
        BankFilter {
            errors: bank.errors,
            characters,
        }
    }

    /// Checks all windows against all buckets at once, character by character. `within` holds the
    /// buckets that differ from each window in at most 0, 1 and 2 characters so far.
    ///
    /// This is the bit-parallel automaton of Wu and Manber ("Fast Text Searching Allowing Errors",
    /// 1992), restricted to substitutions. It processes the windows side by side instead of one
    /// after another.
    #[inline(always)]
    fn check<E: Encoding<G>, const G: usize, const B: usize, const ERRORS: usize>(
        &self,
        simd: S,
        digits: &Digits<S, G>,
    ) -> u64 {
        let mut within = [[simd.set1_byte(0xff); G]; 3];
        macro_rules! character {
            ($p:literal) => {
                if let Some(table) = self.characters.get($p) {
                    step::<S, E, G, B, ERRORS, $p, { $p % 4 }>(simd, table, digits, &mut within);
                }
            };
        }
        character!(0);
        character!(1);
        character!(2);
        character!(3);
        character!(4);
        character!(5);
        character!(6);
        character!(7);
        let mut any = within[ERRORS][0];
        for group in 1..G {
            any = simd.or(any, within[ERRORS][group]);
        }
        simd.not_less(any, simd.set1_byte(1))
    }
}

/// The step of [`BankFilter::check`] for character `P`, which lies `ON` places into its group.
#[inline(always)]
fn step<
    S: Simd,
    E: Encoding<G>,
    const G: usize,
    const B: usize,
    const ERRORS: usize,
    const P: usize,
    const ON: u8,
>(
    simd: S,
    table: &Lookup<S>,
    digits: &Digits<S, G>,
    within: &mut Within<S, G>,
) {
    let bytes = bytes::<S, E, G, B>(simd, table, digits);
    for group in 0..G {
        let (near, far) = (
            bytes[group + P / 4],
            bytes[group + P / 4 + usize::from(ON > 0)],
        );
        let agrees = simd.advance::<ON>(near, far);
        if ERRORS > 1 {
            within[2][group] = simd.and_or(within[2][group], agrees, within[1][group]);
        }
        if ERRORS > 0 {
            within[1][group] = simd.and_or(within[1][group], agrees, within[0][group]);
        }
        within[0][group] = simd.and(within[0][group], agrees);
    }
}

/// Returns four bits for each hash, of which at least one is set if the hash may have an indexed
/// gram at one of the places where grams are looked up.
#[inline(always)]
fn check_grams<S: Simd, const G: usize, const B: usize>(
    simd: S,
    grams: &Grams,
    digits: &Digits<S, G>,
) -> u64 {
    let mut codes = [simd.codes(digits[0]); B];
    for group in 1..G {
        codes[group] = simd.codes(digits[group]);
    }
    let mut known = simd.set1(0);
    for place in grams.places() {
        let (near, far) = (codes[place / 4], codes[place / 4 + 1]);
        let gram = match place % 4 {
            0 => near,
            1 => simd.advance::<1>(near, far),
            2 => simd.advance::<2>(near, far),
            _ => simd.advance::<3>(near, far),
        };
        known = simd.or(known, simd.known(grams.bitmap(), gram));
    }
    simd.not_less(known, simd.set1_byte(1))
}

//! The fast filter of the vector kernels. It works on the digests in their vectors: seven vectors
//! hold one byte for each of a hashed name's 28 places, four to a word.
//!
//! The filter is a necessary condition: it passes every match, and a few other digests.
//! [`plan`](crate::plan) describes its parts.

use crate::{
    digits::GROUPS,
    filter::Filter,
    plan::{Agreement, Bank, ClassTable, Classes, Grams},
    simd::{Digests, Simd},
};

/// A filter, prepared for one kernel. It is prepared for each block anew, which takes a few
/// microseconds for every hundred names in banks.
pub(crate) struct Windows<'f, S: Simd> {
    names: Vec<NameFilter<S>>,
    banks: Vec<BankFilter<S>>,
    grams: Option<&'f Grams>,
}

impl<'f, S: Simd> Windows<'f, S> {
    #[inline(always)]
    pub(crate) fn new(simd: S, filter: &'f Filter) -> Windows<'f, S> {
        let plan = filter.plan();
        let mut names = Vec::with_capacity(plan.alone.len());
        for classes in &plan.alone {
            names.push(NameFilter::new(simd, classes));
        }
        let mut banks = Vec::with_capacity(plan.banks.len());
        for bank in &plan.banks {
            banks.push(BankFilter::new(simd, bank));
        }
        Windows {
            names,
            banks,
            grams: plan.grams.as_ref(),
        }
    }

    /// Returns four bits for each hash, of which at least one is set if the hash may have a window
    /// near enough.
    #[inline(always)]
    pub(crate) fn check(&self, simd: S, digest: &Digests<S>) -> u64 {
        let plain = digits(simd, digest);
        let mut digits = [simd.prepare(plain[0]); GROUPS];
        for group in 1..GROUPS {
            digits[group] = simd.prepare(plain[group]);
        }
        let mut passed = 0;
        for name in &self.names {
            passed |= name.check(simd, &digits);
        }
        for bank in &self.banks {
            passed |= match bank.errors {
                0 => bank.check::<0>(simd, &digits),
                1 => bank.check::<1>(simd, &digits),
                _ => bank.check::<2>(simd, &digits),
            };
        }
        if let Some(grams) = self.grams {
            passed |= check_grams(simd, grams, &digits);
        }
        passed
    }
}

/// Returns the digits of each group.
#[inline(always)]
fn digits<S: Simd>(simd: S, digest: &Digests<S>) -> [S::Vector; GROUPS] {
    let [h0, h1, h2, h3, h4] = *digest;
    // Four digits are 24 bits. If they span two words, both parts are combined first.
    [
        simd.upper_digits(h0),
        simd.lower_digits(simd.advance::<2>(h1, h0)),
        simd.lower_digits(simd.advance::<3>(h2, h1)),
        simd.lower_digits(h2),
        simd.upper_digits(h3),
        simd.lower_digits(simd.advance::<2>(h4, h3)),
        simd.lower_digits(simd.advance::<3>(simd.set1(0), h4)),
    ]
}

/// Looks up a byte for each place. The last two groups stand for places beyond the last one.
#[inline(always)]
fn bytes<S: Simd>(
    simd: S,
    table: &Lookup<S>,
    digits: &[S::Digits; GROUPS],
) -> [S::Vector; GROUPS + 2] {
    let mut bytes = [table.beyond; GROUPS + 2];
    for group in 0..GROUPS - 1 {
        bytes[group] = simd.lookup(&table.digits, digits[group]);
    }
    let last = digits[GROUPS - 1];
    bytes[GROUPS - 1] = simd.lookup_last(&table.digits, last, table.padding);
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
            digits: simd.table(&table.digits),
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
    fn check(&self, simd: S, digits: &[S::Digits; GROUPS]) -> u64 {
        let agree = match self.agreement {
            Agreement::Even => diagonals::<S, false>(simd, &self.first, digits),
            Agreement::All => diagonals::<S, true>(simd, &self.first, digits),
            Agreement::Count => self.count(simd, digits),
        };
        let mut most = agree[0];
        for group in 1..GROUPS {
            most = simd.max_bytes(most, agree[group]);
        }
        simd.not_less(most, self.least)
    }

    /// Returns for each window, in the byte of the place where it begins, the number of characters
    /// that agree.
    #[inline(always)]
    fn count(&self, simd: S, digits: &[S::Digits; GROUPS]) -> [S::Vector; GROUPS] {
        let mut agree = diagonals::<S, true>(simd, &self.first, digits);
        for group in 0..GROUPS {
            agree[group] = simd.count_ones(agree[group]);
        }
        for number in 0..self.further.len() {
            let more = diagonals::<S, true>(simd, &self.further[number], digits);
            // The next eight characters of a window are eight places, that is two groups, further
            // on.
            let begin = 2 * (number + 1);
            for group in begin..GROUPS {
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
fn diagonals<S: Simd, const ODD: bool>(
    simd: S,
    table: &Lookup<S>,
    digits: &[S::Digits; GROUPS],
) -> [S::Vector; GROUPS] {
    let mut bytes = bytes(simd, table, digits);
    let (step_4, step_2, step_1) = (
        simd.set1_byte(0x0f),
        simd.set1_byte(0x33),
        simd.set1_byte(0x55),
    );
    for group in 0..GROUPS {
        bytes[group] = simd.select(step_4, bytes[group], bytes[group + 1]);
    }
    for group in 0..GROUPS {
        let far = simd.advance::<2>(bytes[group], bytes[group + 1]);
        bytes[group] = simd.select(step_2, bytes[group], far);
    }
    let mut agree = [bytes[0]; GROUPS];
    for group in 0..GROUPS {
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
type Within<S> = [[<S as Simd>::Vector; GROUPS]; 3];

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
    fn check<const ERRORS: usize>(&self, simd: S, digits: &[S::Digits; GROUPS]) -> u64 {
        let mut within = [[simd.set1_byte(0xff); GROUPS]; 3];
        macro_rules! character {
            ($p:literal) => {
                if let Some(table) = self.characters.get($p) {
                    step::<S, ERRORS, $p, { $p % 4 }>(simd, table, digits, &mut within);
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
        for group in 1..GROUPS {
            any = simd.or(any, within[ERRORS][group]);
        }
        simd.not_less(any, simd.set1_byte(1))
    }
}

/// The step of [`BankFilter::check`] for character `P`, which lies `ON` places into its group.
#[inline(always)]
fn step<S: Simd, const ERRORS: usize, const P: usize, const ON: u8>(
    simd: S,
    table: &Lookup<S>,
    digits: &[S::Digits; GROUPS],
    within: &mut Within<S>,
) {
    let bytes = bytes(simd, table, digits);
    for group in 0..GROUPS {
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
fn check_grams<S: Simd>(simd: S, grams: &Grams, digits: &[S::Digits; GROUPS]) -> u64 {
    let mut codes = [simd.codes(digits[0]); GROUPS + 1];
    for group in 1..GROUPS {
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

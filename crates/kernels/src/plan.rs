//! Of which parts the fast filter for a set of names is made.
//!
//! - A name *alone* has its own window filter ([`Classes`]): a bit for each of eight characters.
//! - A *bank* ([`Bank`]) holds many names in eight buckets: a bit for each bucket. For names that must
//!   match exactly this is the idea of Teddy, which Hyperscan (`src/fdr`) and Rust's `aho-corasick` have
//!   for searching text; a small number of mismatches may be allowed too.
//! - *Grams* ([`Grams`]) are for hundreds: an index of the sequences of four characters of which one
//!   must occur. A name that may differ in `d` characters is cut into `d + 1` pieces, of which one
//!   must occur unchanged; and of a piece of `s + 3` characters one of the first `s` grams begins at a
//!   multiple of `s`, so that only every `s`-th place is looked up.
//!
//! Which names go where is what costs least by the estimates below, in vector operations for sixteen
//! hashes. They only decide how fast a search is, never what it finds.

use crate::{
    digits::{ALPHABET, CharSet, HASHED_NAME_LEN, PADDING},
    filter::Name,
};

/// What a filter is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) alone: Vec<Classes>,
    pub(crate) banks: Vec<Bank>,
    pub(crate) grams: Option<Grams>,
    /// The names that the grams do not stand for.
    pub(crate) apart: Vec<u16>,
    /// What it costs by the estimates, in vector operations for sixteen hashes.
    pub(crate) cost: f64,
}

/// What a hash costs that passes without being a hit, and on top of it what each name costs that has
/// to be compared with it: the digest is taken out of its vectors, and looked at one by one.
const STRAY: f64 = 300.0;
const STRAY_NAME: f64 = 80.0;

/// How many hashes the estimates are for.
const HASHES: f64 = 16.0;

/// How many groups of four places a filter goes through.
const GROUPS: f64 = 7.0;

impl Plan {
    pub(crate) fn new(names: &[Name]) -> Plan {
        if let [name] = names {
            let classes = Classes::new(name);
            return Plan {
                cost: classes.cost(),
                alone: vec![classes],
                banks: Vec::new(),
                grams: None,
                apart: vec![0],
            };
        }
        let pieces: Vec<Option<Pieces>> = names.iter().map(Pieces::of).collect();
        let mut best: Option<Draft> = None;
        let mut apart_before = None;
        // Grams at every `stride`-th place, or no grams.
        for stride in (0..=Grams::STRIDES).rev() {
            let apart: Vec<u16> = (0..=u16::MAX)
                .zip(&pieces)
                .filter(|(_, pieces)| {
                    !pieces
                        .as_ref()
                        .is_some_and(|pieces| pieces.are_found_at_every(stride))
                })
                .map(|(number, _)| number)
                .collect();
            // A shorter stride that finds no more names is no better.
            if stride > 0 && apart_before.replace(apart.len()) == Some(apart.len()) {
                continue;
            }
            let draft = Draft::new(names, &pieces, stride, apart);
            if best.as_ref().is_none_or(|best| draft.cost < best.cost) {
                best = Some(draft);
            }
        }
        match best {
            Some(draft) => draft.plan(names, &pieces),
            None => unreachable!("there is always the plan without grams"),
        }
    }

    /// The plan that leaves to grams what can be found at every `stride`-th place, if any.
    #[cfg(test)]
    fn with_stride(names: &[Name], stride: usize) -> Plan {
        let pieces: Vec<Option<Pieces>> = names.iter().map(Pieces::of).collect();
        let found = |number: &u16| {
            let pieces = &pieces[usize::from(*number)];
            pieces
                .as_ref()
                .is_some_and(|pieces| pieces.are_found_at_every(stride))
        };
        let apart = (0..names.len() as u16).filter(|number| !found(number));
        Draft::new(names, &pieces, stride, apart.collect()).plan(names, &pieces)
    }
}

/// A plan that was only thought of.
struct Draft {
    cost: f64,
    stride: usize,
    apart: Vec<u16>,
    /// For each number of errors: how many names share a bucket, and how many of their characters a
    /// bank looks at.
    shapes: [(usize, usize); Bank::MAX_ERRORS as usize + 1],
}

impl Draft {
    fn new(names: &[Name], pieces: &[Option<Pieces>], stride: usize, apart: Vec<u16>) -> Draft {
        let stray = HASHES * (STRAY + STRAY_NAME * apart.len() as f64);
        let indexed = pieces.iter().flatten();
        let indexed = indexed.filter(|pieces| pieces.are_found_at_every(stride));
        let mut draft = Draft {
            cost: Grams::cost(indexed, stride, stray),
            stride,
            apart,
            shapes: [(1, 1); _],
        };
        for errors in 0..=Bank::MAX_ERRORS {
            let alike = draft.alike(names, errors);
            let (shape, cost) = Bank::cheapest(&alike, errors, stray);
            draft.shapes[usize::from(errors)] = shape;
            draft.cost += cost;
        }
        let alone = draft.alone(names).map(|name| Classes::new(name).cost());
        draft.cost += alone.sum::<f64>();
        draft
    }

    /// The names apart that may differ in so many characters, in the order in which banks take them.
    fn alike<'a>(&self, names: &'a [Name], errors: u8) -> Vec<&'a Name> {
        let apart = self.apart.iter().map(|number| &names[usize::from(*number)]);
        let mut alike: Vec<&Name> = apart.filter(|name| name.max_distance == errors).collect();
        // Names that share a bucket do best if they are as long and begin alike.
        alike.sort_by_key(|name| {
            let length = name.characters.len().min(Bank::MAX_LEN);
            (length, name.characters.first().map(|first| first.bits()))
        });
        alike
    }

    /// The names that no bank takes.
    fn alone<'a>(&'a self, names: &'a [Name]) -> impl Iterator<Item = &'a Name> {
        let apart = self.apart.iter().map(|number| &names[usize::from(*number)]);
        apart.filter(|name| name.max_distance > Bank::MAX_ERRORS)
    }

    fn plan(self, names: &[Name], pieces: &[Option<Pieces>]) -> Plan {
        let mut banks = Vec::new();
        for errors in 0..=Bank::MAX_ERRORS {
            let (in_bucket, length) = self.shapes[usize::from(errors)];
            let alike = self.alike(names, errors);
            let chunks = alike.chunks(in_bucket * Bank::BUCKETS);
            banks.extend(chunks.map(|names| Bank::new(names, in_bucket, length, errors)));
        }
        let indexed = (0..=u16::MAX).zip(pieces).filter_map(|(number, pieces)| {
            let pieces = pieces
                .as_ref()
                .filter(|pieces| pieces.are_found_at_every(self.stride))?;
            Some((number, pieces))
        });
        let indexed: Vec<_> = indexed.collect();
        Plan {
            alone: self.alone(names).map(Classes::new).collect(),
            banks,
            grams: (!indexed.is_empty()).then(|| Grams::new(&indexed, self.stride)),
            apart: self.apart,
            cost: self.cost,
        }
    }
}

/// A byte of bits for every character: which of eight characters of a name, or of eight buckets, it
/// satisfies.
#[derive(Clone, Debug)]
pub(crate) struct ClassTable {
    pub(crate) digits: [u8; 64],
    pub(crate) padding: u8,
    /// What lies beyond the last place satisfies.
    pub(crate) beyond: u8,
}

impl ClassTable {
    /// Bit `n` is for the `n`-th of `sets`; `None` is satisfied by every character, and also where the
    /// hashed name has ended.
    fn new(sets: [Option<CharSet>; 8]) -> ClassTable {
        let class = |satisfied: &dyn Fn(CharSet) -> bool| {
            let bits = sets.iter().enumerate();
            bits.fold(0, |class, (bit, set)| {
                class | u8::from(set.is_none_or(satisfied)) << bit
            })
        };
        ClassTable {
            digits: std::array::from_fn(|digit| class(&|set| set.contains(digit as u8))),
            padding: class(&|set| set.contains(PADDING)),
            beyond: class(&|_| false),
        }
    }
}

/// Which of a name's characters must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// All whose numbers are even.
    Even,
    /// All.
    All,
    /// So many of them, which are counted.
    Count,
}

/// The first characters of a name, eight to a table.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    pub(crate) agreement: Agreement,
    pub(crate) first: ClassTable,
    pub(crate) further: Vec<ClassTable>,
    /// What a window's byte is at least wherever the whole name is near enough: how many of these
    /// characters agree, or with [`Agreement::Even`] and [`Agreement::All`] the bits of all of them.
    pub(crate) least: u8,
}

impl Classes {
    /// How many characters a table has a bit for.
    const TABLE: usize = 8;

    /// How many hashes may pass without being hits. Each costs a few dozen times what the filter
    /// does, so that with fewer than these a further table would cost more than it saves.
    const STRAYS: f64 = 1.0 / 2000.0;

    /// A name that has three characters with even numbers lets one hash in 1,400 pass by these, which
    /// costs less than the other characters do.
    const EVEN_FROM: usize = 5;

    fn new(name: &Name) -> Classes {
        let characters = &name.characters;
        if name.max_distance == 0 {
            let even = characters.len() >= Self::EVEN_FROM;
            return Classes {
                agreement: if even {
                    Agreement::Even
                } else {
                    Agreement::All
                },
                first: ClassTable::new(std::array::from_fn(|index| {
                    let skipped = even && index % 2 == 1;
                    characters.get(index).copied().filter(|_| !skipped)
                })),
                further: Vec::new(),
                least: u8::MAX,
            };
        }
        let table = |eight: &[CharSet]| {
            // A character that is not there agrees with nothing, so that it is not counted.
            ClassTable::new(std::array::from_fn(|index| {
                Some(eight.get(index).copied().unwrap_or(CharSet::EMPTY))
            }))
        };
        // As few characters as let few enough hashes pass, or all of them.
        let mut tables = characters.chunks(Self::TABLE);
        let first = tables.next().unwrap_or_default();
        let mut seen = first.len();
        let mut further = Vec::new();
        let least = |seen: usize| (seen as u8).saturating_sub(name.max_distance);
        while pass_rate(seen, least(seen)) > Self::STRAYS
            && let Some(eight) = tables.next()
        {
            further.push(table(eight));
            seen += eight.len();
        }
        Classes {
            agreement: Agreement::Count,
            first: table(first),
            further,
            least: least(seen),
        }
    }

    fn cost(&self) -> f64 {
        8.0 * GROUPS * (1 + self.further.len()) as f64
    }
}

/// About how many hashes have a window in which at least `least` of `length` characters agree. A
/// letter agrees with one digit in 32, and the sum over the windows is good enough here.
fn pass_rate(length: usize, least: u8) -> f64 {
    let ways = (0..u32::from(least)).map(|k| (length as f64 - f64::from(k)) / f64::from(k + 1));
    let windows = (HASHED_NAME_LEN + 1 - length) as f64;
    windows * ways.product::<f64>() / 32_f64.powi(i32::from(least))
}

/// Names in eight buckets that may each differ in as many characters.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// In how many characters.
    pub(crate) errors: u8,
    /// For each of the first characters: the buckets in which it satisfies some name.
    pub(crate) characters: Vec<ClassTable>,
}

impl Bank {
    const BUCKETS: usize = 8;

    /// More than this, and a window filter of its own is nearly as cheap.
    const MAX_ERRORS: u8 = 2;

    /// How many characters it may look at.
    const MAX_LEN: usize = 8;

    /// More names in a bucket than this let nearly everything pass.
    const MAX_IN_BUCKET: usize = 16;

    /// How many names best share a bucket, and how many of their characters are best looked at, with
    /// what that costs.
    fn cheapest(names: &[&Name], errors: u8, stray: f64) -> ((usize, usize), f64) {
        if names.is_empty() {
            return ((1, 1), 0.0);
        }
        let mut best = ((1, 1), f64::INFINITY);
        // Fewest banks first, because once these are cheap, many need not be looked at.
        for in_bucket in (1..=Self::MAX_IN_BUCKET.min(names.len())).rev() {
            for length in 1..=Self::MAX_LEN {
                let banks = names.chunks(in_bucket * Self::BUCKETS);
                let operations = banks.len() as f64 * Self::operations(length, errors);
                if operations >= best.1 {
                    break;
                }
                let rate: f64 = banks
                    .map(|bank| Self::pass_rate(bank, in_bucket, length, errors))
                    .sum();
                let cost = operations + stray * rate.min(1.0);
                if cost < best.1 {
                    best = ((in_bucket, length), cost);
                }
            }
        }
        best
    }

    fn new(names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> Bank {
        let mut buckets = names.chunks(in_bucket);
        let buckets: [&[&Name]; Self::BUCKETS] =
            std::array::from_fn(|_| buckets.next().unwrap_or_default());
        let characters =
            (0..length).map(|index| ClassTable::new(buckets.map(|names| union(names, index))));
        Bank {
            errors,
            characters: characters.collect(),
        }
    }

    /// A lookup, an alignment in three places of four, and a step for each number of errors.
    fn operations(length: usize, errors: u8) -> f64 {
        length as f64 * GROUPS * (1.75 + 0.75 * f64::from(errors + 1))
    }

    /// How many hashes pass.
    fn pass_rate(names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> f64 {
        let buckets = names.chunks(in_bucket);
        let rates = buckets.map(|bucket| {
            // How likely it is that none, one or two of the characters so far disagree.
            let mut disagree = [1.0, 0.0, 0.0];
            for index in 0..length {
                let agrees = union(bucket, index).map_or(1.0, CharSet::share);
                let [none, one, two] = disagree;
                disagree = [
                    none * agrees,
                    one * agrees + none * (1.0 - agrees),
                    two * agrees + one * (1.0 - agrees),
                ];
            }
            let near: f64 = disagree[..=usize::from(errors)].iter().sum();
            near * bucket.iter().map(|name| name.windows()).max().unwrap_or(0) as f64
        });
        rates.sum()
    }
}

/// What the character with this index may be for some of these names; nothing if there are none, and
/// `None` if one of them is shorter.
fn union(names: &[&Name], index: usize) -> Option<CharSet> {
    let mut characters = names.iter().map(|name| name.characters.get(index).copied());
    characters.try_fold(CharSet::EMPTY, |union, set| Some(union.or(set?)))
}

/// A name cut so that one of the pieces must occur unchanged.
struct Pieces {
    /// Where each begins, and its characters' codes.
    pieces: Vec<(usize, Vec<u32>)>,
    /// How long the shortest of them is.
    length: usize,
}

impl Pieces {
    /// `None` if the pieces are shorter than a gram, or some characters have more than one code or
    /// none.
    fn of(name: &Name) -> Option<Pieces> {
        let count = usize::from(name.max_distance) + 1;
        let length = name.characters.len() / count;
        if length < Grams::LEN {
            return None;
        }
        let codes = name.characters.iter().map(|set| code_of(*set));
        let codes: Vec<u32> = codes.collect::<Option<_>>()?;
        let begins = (0..count).map(|piece| piece * codes.len() / count);
        let pieces = begins.map(|at| (at, codes[at..at + length].to_vec()));
        Some(Pieces {
            pieces: pieces.collect(),
            length,
        })
    }

    /// Whether a piece's first `stride` grams exist, so that one of them is at any `stride`-th place.
    fn are_found_at_every(&self, stride: usize) -> bool {
        stride > 0 && self.length >= Grams::LEN - 1 + stride
    }

    /// The first `stride` grams of each, with where they begin in the name.
    fn grams(&self, stride: usize) -> impl Iterator<Item = (u32, u8)> {
        self.pieces.iter().flat_map(move |(begin, codes)| {
            let grams = codes.windows(Grams::LEN).take(stride).zip(*begin..);
            grams.map(|(codes, at)| (key(codes.iter().copied()), at as u8))
        })
    }
}

/// An index of sequences of four characters.
///
/// Characters are told apart by codes of five bits. The codes of a letter's two cases are the same; so
/// are those of a few other characters.
#[derive(Clone, Debug)]
pub(crate) struct Grams {
    stride: usize,
    /// A bit for each value of a gram's lowest bits: whether there is such a gram.
    bitmap: Vec<u32>,
    /// In the order of their keys.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The gram's codes, the first one lowest.
    key: u32,
    name: u16,
    /// Where it is in the name.
    at: u8,
}

impl Grams {
    const LEN: usize = 4;

    /// Bits of a code.
    pub(crate) const CODE_BITS: u32 = 5;

    /// More than this saves nothing worth having.
    const STRIDES: usize = 8;

    /// The last place at which a gram can begin: the padding is part of none.
    const LAST_PLACE: usize = HASHED_NAME_LEN - 1 - Self::LEN;

    /// What the lookup of one place costs for sixteen hashes: above all a gather, about twenty cycles.
    const COST: f64 = 45.0;

    /// Bits of the bitmap for each gram, so that few hashes pass.
    const BITS_FOR_GRAM: usize = 256;

    /// A bitmap smaller than this is no faster, and one larger than this has a bit for every key
    /// already: 512 bytes, and 128 KiB.
    const MIN_BITS: usize = 1 << 12;
    const MAX_BITS: usize = 1 << (Self::LEN as u32 * Self::CODE_BITS);

    fn new(names: &[(u16, &Pieces)], stride: usize) -> Grams {
        let entries = names.iter().flat_map(|&(name, pieces)| {
            pieces
                .grams(stride)
                .map(move |(key, at)| Entry { key, name, at })
        });
        let mut entries: Vec<Entry> = entries.collect();
        entries.sort_unstable();
        let mut grams = Grams {
            stride,
            bitmap: vec![0; Self::bits(entries.len()) / 32],
            entries,
        };
        for entry in &grams.entries {
            let key = entry.key & grams.mask();
            grams.bitmap[key as usize / 32] |= 1 << (key % 32);
        }
        grams
    }

    /// How many bits the bitmap for so many grams has.
    fn bits(grams: usize) -> usize {
        let bits = (grams * Self::BITS_FOR_GRAM).next_power_of_two();
        bits.clamp(Self::MIN_BITS, Self::MAX_BITS)
    }

    /// What looking for these names costs; nothing if there are none.
    fn cost<'a>(names: impl Iterator<Item = &'a Pieces>, stride: usize, stray: f64) -> f64 {
        let grams: usize = names.map(|name| stride * name.pieces.len()).sum();
        if grams == 0 {
            return 0.0;
        }
        let places = Self::places_of(stride).count() as f64;
        // Grams that occur in several names only make it less.
        let rate = places * grams as f64 / Self::bits(grams) as f64;
        GROUPS + places * Self::COST + stray * rate.min(1.0)
    }

    /// The places at which grams are looked up.
    #[inline(always)]
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        Self::places_of(self.stride)
    }

    #[inline(always)]
    fn places_of(stride: usize) -> impl Iterator<Item = usize> {
        (0..=Self::LAST_PLACE).step_by(stride)
    }

    /// The bits of a key that the bitmap tells apart.
    #[inline(always)]
    pub(crate) fn mask(&self) -> u32 {
        32 * self.bitmap.len() as u32 - 1
    }

    /// One bit for each value of the bits of [`mask`](Self::mask).
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn bitmap(&self) -> &[u32] {
        &self.bitmap
    }

    /// Whether there may be a gram with this key.
    #[inline(always)]
    pub(crate) fn may_have(&self, key: u32) -> bool {
        let key = key & self.mask();
        self.bitmap[key as usize / 32] >> (key % 32) & 1 == 1
    }

    /// [`may_have`](Self::may_have) for four codes.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn may_have_codes(&self, codes: [u8; Self::LEN]) -> bool {
        self.may_have(key(codes.into_iter().map(u32::from)))
    }

    /// Gives every name of which a gram occurs, with the place at which the name would begin.
    #[inline(always)]
    pub(crate) fn candidates(
        &self,
        digits: &[u8; HASHED_NAME_LEN],
        mut found: impl FnMut(u16, usize),
    ) {
        for place in self.places() {
            let gram = digits[place..place + Self::LEN].iter();
            let key = key(gram.map(|digit| u32::from(CODES[usize::from(*digit)])));
            if self.may_have(key) {
                let first = self.entries.partition_point(|entry| entry.key < key);
                let same = self.entries[first..].iter();
                for entry in same.take_while(|entry| entry.key == key) {
                    if let Some(begin) = place.checked_sub(usize::from(entry.at)) {
                        found(entry.name, begin);
                    }
                }
            }
        }
    }
}

/// The code of each digit.
pub(crate) const CODES: [u8; 64] = {
    let mut codes = [0; 64];
    let mut digit = 0;
    while digit < 64 {
        // The lower-case letters follow the upper-case ones.
        let folded = if digit < 26 { digit } else { digit - 26 };
        codes[digit] = (folded % (1 << Grams::CODE_BITS)) as u8;
        digit += 1;
    }
    codes
};

/// The code that all of a set's characters have.
fn code_of(set: CharSet) -> Option<u32> {
    if set.intersects(CharSet::PADDING) {
        return None;
    }
    let digits = (0..ALPHABET.len() as u8).filter(|digit| set.contains(*digit));
    let mut codes = digits.map(|digit| u32::from(CODES[usize::from(digit)]));
    let first = codes.next()?;
    codes.all(|code| code == first).then_some(first)
}

/// A gram's key.
#[inline(always)]
fn key(codes: impl DoubleEndedIterator<Item = u32>) -> u32 {
    codes
        .rev()
        .fold(0, |key, code| key << Grams::CODE_BITS | code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filter, digits::digits, sha1};

    fn name(text: &[u8], max_distance: u8) -> Name {
        let set = |letter: &u8| {
            let letter = *letter;
            match letter {
                b'=' => CharSet::PADDING,
                _ => CharSet::digits_where(|digit| digit.eq_ignore_ascii_case(&letter)),
            }
        };
        Name::new(&text.iter().map(set).collect::<Vec<_>>(), max_distance)
    }

    /// Whatever the estimates say: every stride, and banks of every shape, pass names at every place.
    #[test]
    fn every_plan_passes_what_it_must() {
        for errors in 0..=3_u8 {
            for length in [4, 5, 6, 7, 8, 9, 12, 16, 24] {
                // A digest and a name for every window, spoilt in as many characters as may be.
                let windows = HASHED_NAME_LEN + 1 - length;
                let digest = |window: usize| sha1(&[errors, length as u8, window as u8]);
                let names: Vec<Name> = (0..windows)
                    .map(|window| {
                        let mut text =
                            crate::hashed_name(&digest(window))[window..][..length].to_vec();
                        for error in 0..usize::from(errors) {
                            text[(error * 5 + window) % length] = b'!';
                        }
                        name(&text, errors)
                    })
                    .collect();
                for stride in 0..=Grams::STRIDES {
                    let plan = Plan::with_stride(&names, stride);
                    let filter = Filter::planned(names.clone(), plan);
                    for window in 0..windows {
                        let mut found = Vec::new();
                        filter.check(&digest(window), |hit| found.push(hit.name));
                        assert!(
                            found.contains(&(window as u16)),
                            "{errors} of {length} characters, window {window}, stride {stride}"
                        );
                        assert!(names[window].is_at(window, &digits(&digest(window))));
                        for kernel in crate::Kernel::all() {
                            let block = crate::Block::new(3, secret(errors, length, window), 1);
                            let mut hits = crate::Hits::with_limit(usize::MAX);
                            kernel.scan(&block, &filter, &mut hits);
                            let names: Vec<u16> = hits.iter().map(|hit| hit.name).collect();
                            assert_eq!(names, found, "{}", kernel.name());
                        }
                    }
                }
            }
        }
    }

    /// The three bytes as a counter.
    fn secret(errors: u8, length: usize, window: usize) -> u64 {
        u64::from(errors) << 16 | (length as u64) << 8 | window as u64
    }

    #[test]
    fn banks_of_every_shape_pass_what_they_must() {
        for errors in 0..=Bank::MAX_ERRORS {
            let digest = |number: usize| sha1(&[errors, number as u8, 7]);
            let names: Vec<Name> = (0..40)
                .map(|number| {
                    // Lengths from 1 to 12 at places from the first to the last.
                    let length = 1 + number % 12;
                    let window = number * 11 % (HASHED_NAME_LEN + 1 - length);
                    let mut text =
                        crate::hashed_name(&digest(number))[window..window + length].to_vec();
                    for error in 0..usize::from(errors).min(length) {
                        text[(error * 3 + number) % length] = b'!';
                    }
                    name(&text, errors)
                })
                .collect();
            for in_bucket in [1, 2, 3, 5, 16] {
                for length in 1..=Bank::MAX_LEN {
                    let all: Vec<&Name> = names.iter().collect();
                    let banks = all.chunks(in_bucket * Bank::BUCKETS);
                    let plan = Plan {
                        alone: Vec::new(),
                        banks: banks
                            .map(|names| Bank::new(names, in_bucket, length, errors))
                            .collect(),
                        grams: None,
                        apart: (0..names.len() as u16).collect(),
                        cost: 0.0,
                    };
                    let filter = Filter::planned(names.clone(), plan);
                    for number in 0..names.len() {
                        let counter = u64::from(errors) << 16 | (number as u64) << 8 | 7;
                        for kernel in crate::Kernel::all() {
                            let mut hits = crate::Hits::with_limit(usize::MAX);
                            kernel.scan(&crate::Block::new(3, counter, 1), &filter, &mut hits);
                            assert!(
                                hits.iter().any(|hit| usize::from(hit.name) == number),
                                "{}: name {number}, {errors} errors, {in_bucket} to a bucket, \
                                 {length} characters",
                                kernel.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

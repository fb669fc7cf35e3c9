//! Of which parts the fast filter for a set of names is made.
//!
//! - A name *alone* has its own window filter ([`Classes`]): a bit for each of eight characters.
//! - A *bank* ([`Bank`]) holds many names in eight buckets: a bit for each bucket. For names that must
//!   match exactly this is the idea of Teddy, the filter of Hyperscan's and Rust's multiple-string
//!   search (Wang and others, "Hyperscan: A Fast Multi-pattern Regex Matcher for Modern CPUs", 2019);
//!   a small number of mismatches may be allowed too.
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
}

/// What a hash costs that passes without being a hit, and on top of it what each name costs that has
/// to be compared with it: half and twice as much both made slower plans.
const STRAY: f64 = 300.0;
const STRAY_NAME: f64 = 80.0;

/// How many hashes the estimates are for.
const HASHES: f64 = 16.0;

/// How many groups of four places a filter goes through.
const GROUPS: f64 = 7.0;

impl Plan {
    pub(crate) fn new(names: &[Name]) -> Plan {
        if let [name] = names {
            return Plan {
                alone: vec![Classes::new(name)],
                banks: Vec::new(),
                grams: None,
                apart: vec![0],
            };
        }
        // No grams, or grams at every `stride`-th place.
        let plans = (0..=Grams::STRIDES).map(|stride| Plan::with_stride(names, stride));
        let cheapest = plans.min_by(|(a, _), (b, _)| a.total_cmp(b));
        cheapest
            .map(|(_, plan)| plan)
            .unwrap_or_else(|| Plan::with_stride(names, 0).1)
    }

    /// The plan that leaves to the grams whatever can be found at every `stride`-th place, with what
    /// it costs.
    fn with_stride(names: &[Name], stride: usize) -> (f64, Plan) {
        let numbers = 0..=u16::MAX;
        let (indexed, apart): (Vec<_>, Vec<_>) = numbers
            .zip(names)
            .partition(|(_, name)| stride > 0 && Grams::can_find(name, stride));
        let mut plan = Plan {
            alone: Vec::new(),
            banks: Vec::new(),
            grams: (!indexed.is_empty()).then(|| Grams::new(&indexed, stride)),
            apart: apart.iter().map(|(number, _)| *number).collect(),
        };
        let stray = HASHES * (STRAY + STRAY_NAME * plan.apart.len() as f64);
        let mut cost = plan.grams.as_ref().map_or(0.0, |grams| grams.cost(stray));
        for errors in 0..=Bank::MAX_ERRORS {
            let alike = apart.iter().map(|(_, name)| *name);
            let alike: Vec<&Name> = alike.filter(|name| name.max_distance == errors).collect();
            let (banks, banks_cost) = Bank::banks(alike, errors, stray);
            plan.banks.extend(banks);
            cost += banks_cost;
        }
        for (_, name) in apart {
            if name.max_distance > Bank::MAX_ERRORS {
                let classes = Classes::new(name);
                cost += classes.cost();
                plan.alone.push(classes);
            }
        }
        (cost, plan)
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
    /// Bit `n` is for the `n`-th of `sets`; `None` is satisfied by anything and by nothing at all.
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

/// How many steps a window filter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steps {
    /// The characters with even numbers must all agree.
    Even,
    /// All must agree.
    All,
    /// Some must agree, and are counted.
    Count,
}

/// The first characters of a name, eight to a table.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    pub(crate) steps: Steps,
    pub(crate) first: ClassTable,
    pub(crate) further: Vec<ClassTable>,
    /// What a window's byte is at least wherever the whole name is near enough: how many of these
    /// characters agree, or with [`Steps::Even`] and [`Steps::All`] the bits of all of them.
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
                steps: if even { Steps::Even } else { Steps::All },
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
            steps: Steps::Count,
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

    /// The cheapest banks for these names, with what they cost.
    fn banks(mut names: Vec<&Name>, errors: u8, stray: f64) -> (Vec<Bank>, f64) {
        // Names that share a bucket do best if they are as long and begin alike.
        names.sort_by_key(|name| {
            let length = name.characters.len().min(Self::MAX_LEN);
            (length, name.characters.first().map(|first| first.bits()))
        });
        let mut best = (
            Vec::new(),
            if names.is_empty() { 0.0 } else { f64::INFINITY },
        );
        for in_bucket in 1..=Self::MAX_IN_BUCKET.min(names.len()) {
            for length in 1..=Self::MAX_LEN {
                let banks = || names.chunks(in_bucket * Self::BUCKETS);
                let cost = banks()
                    .map(|names| Self::cost(names, in_bucket, length, errors, stray))
                    .sum();
                if cost < best.1 {
                    let banks = banks().map(|names| Self::new(names, in_bucket, length, errors));
                    best = (banks.collect(), cost);
                }
            }
        }
        best
    }

    fn new(names: &[&Name], in_bucket: usize, length: usize, errors: u8) -> Bank {
        let mut buckets = names.chunks(in_bucket);
        // A bucket without names must agree with nothing.
        let buckets: [&[&Name]; Self::BUCKETS] =
            std::array::from_fn(|_| buckets.next().unwrap_or_default());
        let characters = (0..length).map(|index| {
            ClassTable::new(buckets.map(|bucket| match union(bucket, index) {
                None if bucket.is_empty() => Some(CharSet::EMPTY),
                set => set,
            }))
        });
        Bank {
            errors,
            characters: characters.collect(),
        }
    }

    fn cost(names: &[&Name], in_bucket: usize, length: usize, errors: u8, stray: f64) -> f64 {
        // A lookup, an alignment in three places of four, and a step for each number of errors.
        let operations = length as f64 * GROUPS * (1.75 + 0.75 * f64::from(errors + 1));
        let rate: f64 = names
            .chunks(in_bucket)
            .map(|bucket| {
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
            })
            .sum();
        operations + stray * rate.min(1.0)
    }
}

/// What the character with this index may be for some of these names; `None` if one has none.
fn union(names: &[&Name], index: usize) -> Option<CharSet> {
    let mut characters = names.iter().map(|name| name.characters.get(index).copied());
    characters.try_fold(CharSet::EMPTY, |union, set| Some(union.or(set?)))
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

    /// What the lookup of one place costs for sixteen hashes.
    const COST: f64 = 45.0;

    /// Bits of the bitmap for each gram, so that few hashes pass, and the bounds of its size: the
    /// bitmap should stay in the first-level cache, and is at most all keys.
    const BITS_FOR_GRAM: usize = 256;
    const MIN_BITS: usize = 1 << 12;
    const MAX_BITS: usize = 1 << (Self::LEN as u32 * Self::CODE_BITS);

    /// The pieces of a name one of which must occur unchanged: where they begin, and their
    /// characters' codes. `None` if some characters have more than one code, or none.
    fn pieces(name: &Name) -> Option<Vec<(usize, Vec<u32>)>> {
        let codes = name.characters.iter().map(|set| code_of(*set));
        let codes: Vec<u32> = codes.collect::<Option<_>>()?;
        let count = usize::from(name.max_distance) + 1;
        let length = codes.len() / count;
        if length < Self::LEN {
            return None;
        }
        let begins = (0..count).map(|piece| piece * codes.len() / count);
        Some(
            begins
                .map(|at| (at, codes[at..at + length].to_vec()))
                .collect(),
        )
    }

    fn can_find(name: &Name, stride: usize) -> bool {
        let pieces = Self::pieces(name).unwrap_or_default();
        pieces
            .first()
            .is_some_and(|(_, codes)| codes.len() >= Self::LEN - 1 + stride)
    }

    fn new(names: &[(u16, &Name)], stride: usize) -> Grams {
        let mut entries = Vec::new();
        for &(number, name) in names {
            for (begin, codes) in Self::pieces(name).unwrap_or_default() {
                for (at, gram) in codes.windows(Self::LEN).take(stride).enumerate() {
                    entries.push(Entry {
                        key: key(gram.iter().copied()),
                        name: number,
                        at: (begin + at) as u8,
                    });
                }
            }
        }
        entries.sort_unstable();
        let bits = (entries.len() * Self::BITS_FOR_GRAM).next_power_of_two();
        let bits = bits.clamp(Self::MIN_BITS, Self::MAX_BITS);
        let mut grams = Grams {
            stride,
            bitmap: vec![0; bits / 32],
            entries,
        };
        for entry in &grams.entries {
            let key = entry.key & grams.mask();
            grams.bitmap[key as usize / 32] |= 1 << (key % 32);
        }
        grams
    }

    fn cost(&self, stray: f64) -> f64 {
        let places = self.places().count() as f64;
        let set: u32 = self.bitmap.iter().map(|word| word.count_ones()).sum();
        let rate = places * f64::from(set) / (32 * self.bitmap.len()) as f64;
        GROUPS + places * Self::COST + stray * rate.min(1.0)
    }

    /// The places at which grams are looked up.
    #[inline(always)]
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        (0..=Self::LAST_PLACE).step_by(self.stride)
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

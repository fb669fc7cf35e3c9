//! The window filter of one name.

use crate::{
    digits::{CharSet, GROUPS, HASHED_NAME_LEN, PADDING},
    name::Name,
};

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
    pub(super) fn new(sets: [Option<CharSet>; 8]) -> ClassTable {
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

    pub(super) fn new(name: &Name) -> Classes {
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

    pub(super) fn cost(&self) -> f64 {
        8.0 * GROUPS as f64 * (1 + self.further.len()) as f64
    }
}

/// About how many hashes have a window in which at least `least` of `length` characters agree. A
/// letter agrees with one digit in 32, and the sum over the windows is good enough here.
fn pass_rate(length: usize, least: u8) -> f64 {
    let ways = (0..u32::from(least)).map(|k| (length as f64 - f64::from(k)) / f64::from(k + 1));
    let windows = (HASHED_NAME_LEN + 1 - length) as f64;
    windows * ways.product::<f64>() / 32_f64.powi(i32::from(least))
}

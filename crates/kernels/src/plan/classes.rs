//! The window filter for one name.

use crate::{
    digits::{CharSet, PADDING, Text},
    name::Name,
};

/// A byte for every character of a hashed name. Its bits say which of eight characters of a name,
/// or which of eight buckets, the character satisfies.
#[derive(Clone, Debug)]
pub(crate) struct ClassTable {
    pub(crate) digits: [u8; 64],
    /// Number of digits that there are. The other bytes are zero.
    pub(crate) values: usize,
    pub(crate) padding: u8,
    /// The byte for places beyond the end of the hashed name.
    pub(crate) beyond: u8,
}

impl ClassTable {
    /// Creates a table in which bit `n` stands for the `n`-th of `sets`. `None` is satisfied by
    /// every character, and also beyond the end of the hashed name.
    pub(super) fn new(text: Text, sets: [Option<CharSet>; 8]) -> ClassTable {
        let class = |satisfied: &dyn Fn(CharSet) -> bool| {
            let bits = sets.iter().enumerate();
            bits.fold(0, |class, (bit, set)| {
                class | u8::from(set.is_none_or(satisfied)) << bit
            })
        };
        ClassTable {
            digits: std::array::from_fn(|digit| match digit < text.values() {
                true => class(&|set| set.contains(digit as u8)),
                false => 0,
            }),
            values: text.values(),
            padding: class(&|set| set.contains(PADDING)),
            beyond: class(&|_| false),
        }
    }
}

/// Which of a name's characters must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// Those with even indices.
    Even,
    /// All.
    All,
    /// A minimum number of them: those that agree are counted.
    Count,
}

/// The first characters of a name, eight to a table.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    pub(crate) agreement: Agreement,
    pub(crate) first: ClassTable,
    pub(crate) further: Vec<ClassTable>,
    /// Minimum value of a window's byte if the whole name is near enough. With
    /// [`Agreement::Count`], that byte is the number of the tables' characters that agree. With
    /// [`Agreement::Even`] and [`Agreement::All`], it has a bit for each character, and all must be
    /// set.
    pub(crate) least: u8,
}

impl Classes {
    /// Number of characters that a table has bits for.
    const TABLE: usize = 8;

    /// Fraction of hashes that may pass without being hits. By the planner's estimates, each of
    /// them costs as much as filtering a hundred hashes. Once so few pass, another table costs more
    /// than it saves.
    const STRAYS: f64 = 1.0 / 2000.0;

    /// Fraction of hashes that may pass because only the characters with even indices are checked.
    /// That costs less than checking the other characters of every hash. A name of five letters in
    /// base64 has three such characters, and one hash in 1,400 passes.
    const EVEN_STRAYS: f64 = 1.0 / 1000.0;

    pub(super) fn new(name: &Name) -> Classes {
        let (text, characters) = (name.text, &name.characters);
        if name.max_distance == 0 {
            let checked = characters.len().min(Self::TABLE).div_ceil(2);
            let even = pass_rate(text, checked, checked as u8) < Self::EVEN_STRAYS;
            return Classes {
                agreement: if even {
                    Agreement::Even
                } else {
                    Agreement::All
                },
                first: ClassTable::new(
                    text,
                    std::array::from_fn(|index| {
                        let skipped = even && index % 2 == 1;
                        characters.get(index).copied().filter(|_| !skipped)
                    }),
                ),
                further: Vec::new(),
                least: u8::MAX,
            };
        }
        let table = |eight: &[CharSet]| {
            // Nothing agrees with a missing character, so it is not counted.
            ClassTable::new(
                text,
                std::array::from_fn(|index| {
                    Some(eight.get(index).copied().unwrap_or(CharSet::EMPTY))
                }),
            )
        };
        // Adds tables until few enough hashes pass, or until all characters are checked.
        let mut tables = characters.chunks(Self::TABLE);
        let first = tables.next().unwrap_or_default();
        let mut seen = first.len();
        let mut further = Vec::new();
        let least = |seen: usize| (seen as u8).saturating_sub(name.max_distance);
        while pass_rate(text, seen, least(seen)) > Self::STRAYS
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

    pub(super) fn cost(&self, text: Text) -> f64 {
        8.0 * text.groups() as f64 * (1 + self.further.len()) as f64
    }
}

/// Returns the approximate fraction of hashes that have a window in which at least `least` of
/// `length` characters agree. A letter of base64 agrees with two digits, one of base32 or
/// hexadecimal with one. The sum over the windows is accurate enough here.
fn pass_rate(text: Text, length: usize, least: u8) -> f64 {
    let ways = (0..u32::from(least)).map(|k| (length as f64 - f64::from(k)) / f64::from(k + 1));
    let windows = (text.places() + 1 - length) as f64;
    let values: f64 = match text {
        Text::Base64 | Text::Base32 => 32.0,
        Text::Hex => 16.0,
    };
    windows * ways.product::<f64>() / values.powi(i32::from(least))
}

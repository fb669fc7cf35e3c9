//! A fast check of whether a name can occur in a text.

/// Maximum number of characters of a name that are checked. Each needs a field of [`FIELD_BITS`]
/// bits in one 64-bit word.
const MAX_CHECKED: usize = 12;

/// Bits of a field: wide enough for [`NEVER`] plus one mismatch for each character.
const FIELD_BITS: usize = 5;

/// Initial value of the fields. They belong to windows that would begin before the text. The value
/// is greater than any distance that is tested for, so these windows never pass.
const NEVER: u64 = 16;

/// Shift of the last character's field, which is the top one.
const TOP: usize = u64::BITS as usize - FIELD_BITS;

const _: () = assert!(MAX_CHECKED * FIELD_BITS <= u64::BITS as usize);
const _: () = assert!(NEVER as usize >= MAX_CHECKED);
const _: () = assert!(NEVER as usize + MAX_CHECKED < 1 << FIELD_BITS);

/// Rules out texts that cannot contain a name within a distance, in a few operations per character.
///
/// This is the shift-add algorithm of Baeza-Yates and Gonnet ("A New Approach to Text Searching",
/// 1992). One word holds, for every prefix of the name, the number of characters that disagree if
/// that prefix ends at the current place. A step shifts every count to the next longer prefix. Then
/// it adds the table entry of the next symbol, which has a one for each character that the symbol
/// does not satisfy. The cost does not depend on the distance.
#[derive(Clone, Debug)]
pub struct Mismatches<const SYMBOLS: usize> {
    /// For each symbol: a one in the field of every character that it does not satisfy.
    table: [u64; SYMBOLS],
    /// The word before the first symbol of the text.
    start: u64,
    /// A word passes when it is less than this; `None` lets every word pass.
    bound: Option<u64>,
}

impl<const SYMBOLS: usize> Mismatches<SYMBOLS> {
    /// Maximum number of characters of a name that are checked.
    ///
    /// Of a longer name, only this many first characters are checked: a necessary condition.
    pub const MAX_CHECKED: usize = MAX_CHECKED;

    /// Creates the check for a name of `length` characters, of which at most `max_distance` may
    /// differ.
    ///
    /// `satisfies(character, symbol)` returns whether a symbol agrees with the character at a place
    /// of the name.
    #[must_use]
    pub fn new(
        length: usize,
        max_distance: u8,
        satisfies: impl Fn(usize, u8) -> bool,
    ) -> Mismatches<SYMBOLS> {
        let length = length.min(MAX_CHECKED);
        // The last character's field is the top one, so that a plain comparison reads it.
        let field = |character: usize| TOP - FIELD_BITS * (length - 1 - character);
        let mut table = [0; SYMBOLS];
        for (symbol, entry) in (0..).zip(&mut table) {
            for character in 0..length {
                *entry |= u64::from(!satisfies(character, symbol)) << field(character);
            }
        }
        let every = usize::from(max_distance) >= length;
        Mismatches {
            table,
            start: (0..length).fold(0, |start, character| start | NEVER << field(character)),
            bound: (!every).then(|| (u64::from(max_distance) + 1) << TOP),
        }
    }

    /// Whether the text may contain the name within the distance. `false` is certain, `true` is
    /// not.
    ///
    /// # Panics
    ///
    /// If the text has a symbol that is not less than `SYMBOLS`.
    #[inline(always)]
    #[must_use]
    pub fn may_match(&self, text: &[u8]) -> bool {
        let Some(bound) = self.bound else {
            return true;
        };
        let mut word = self.start;
        let mut least = u64::MAX;
        for symbol in text {
            word = (word << FIELD_BITS) + self.table[usize::from(*symbol)];
            least = least.min(word);
        }
        least < bound
    }
}

//! A quick look whether a name can be in a text.

/// How many characters of a name are looked at. Each needs a field of [`FIELD_BITS`] bits in one 64-bit
/// word.
const LOOKED_AT: usize = 12;

/// Wide enough for [`NEVER`] and as many mismatches on top of it as there are characters.
const FIELD_BITS: usize = 5;

/// What the fields of a name that began before the first character start with: more than any
/// distance that is tested for, so that such a window never passes.
const NEVER: u64 = 16;

/// The shift that leaves the last character's field alone.
const TOP: usize = u64::BITS as usize - FIELD_BITS;

const _: () = assert!(LOOKED_AT * FIELD_BITS <= u64::BITS as usize);
const _: () = assert!(NEVER as usize >= LOOKED_AT);
const _: () = assert!(NEVER as usize + LOOKED_AT < 1 << FIELD_BITS);

/// Tells texts that cannot hold a name within a distance, in a few operations for each character.
///
/// This is the shift-add algorithm of Baeza-Yates and Gonnet ("A New Approach to Text Searching", 1992):
/// one word holds, for every prefix of the name, how many characters disagree when that prefix ends at
/// the current place. A step shifts every count on to the next longer prefix and adds a table entry with
/// a one for each character that the symbol does not satisfy. Its cost does not depend on the distance.
#[derive(Clone, Debug)]
pub struct Mismatches<const SYMBOLS: usize> {
    /// For each symbol: a one in the field of every character it does not satisfy.
    table: [u64; SYMBOLS],
    /// The word before the first place.
    start: u64,
    /// A word passes when it is less than this; `None` lets every word pass.
    bound: Option<u64>,
}

impl<const SYMBOLS: usize> Mismatches<SYMBOLS> {
    /// How many characters of a name are looked at; a longer one's first characters are a necessary
    /// condition.
    pub const LOOKED_AT: usize = LOOKED_AT;

    /// For a name of `length` characters, of which `max_distance` may differ. `satisfies` tells of a
    /// character, by its place in the name, and a symbol whether they agree.
    #[must_use]
    pub fn new(
        length: usize,
        max_distance: u8,
        satisfies: impl Fn(usize, u8) -> bool,
    ) -> Mismatches<SYMBOLS> {
        let length = length.min(LOOKED_AT);
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

    /// Whether the name may be somewhere in the text, near enough. It is not if this says so; it may not
    /// be either if this does not.
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

//! The probability that one hash matches, and what it implies for a search.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::{Range, RangeInclusive},
    rc::Rc,
    slice,
};

use crate::{
    name::{DesiredName, Distance},
    spelling::Chars,
};

/// The chance that one hash matches a desired name, or any of several, within a distance.
///
/// A digest is practically random, and its characters are independent. Each is equally likely to be
/// any digit of the encoding, except that the last digit holds only the remaining bits, and the
/// padding is always `=`. A hash matches if *some* window of its text is near enough. Windows
/// overlap, so the chance is not the sum of the windows' chances: for `aaa` at distance 1 in base64
/// the sum is 60% too high.
///
/// The chance is computed place by place, with the probability of every *state*: how many errors
/// each window that has begun may still have. A text in which a window is near enough whatever
/// follows counts as a match, and a window that can no longer be near enough is forgotten. (This is
/// the Markov chain embedding of Fu and Koutras, "Distribution theory of runs", 1994.) Several
/// names have their windows side by side in one state. If there are too many states, or too many
/// windows for one state, only a lower and an upper bound are computed: from the states that were
/// kept, and from the chances that both windows of a pair are near enough.
///
/// All figures are ranges, from the lowest to the highest possible value. Both ends are equal if
/// the chance [is exact](Self::is_exact). Rounding errors begin at the 13th digit.
///
/// ```
/// use hashfinder_search::{DesiredName, Distance, Odds};
///
/// let odds = Odds::of(&"doctor".parse()?, Distance::ZERO);
/// assert!(odds.is_exact());
/// assert_eq!(format!("{:.3e}", odds.chance().end()), "1.956e-8");
/// // Half of all searches have ended after 35 million hashes.
/// assert_eq!((odds.hashes_for(0.5).end() / 1e6).round(), 35.0);
/// assert_eq!((odds.chance_after(35_440_958).end() * 1e6).round(), 500_000.0);
///
/// let names: [DesiredName; 2] = ["doctor".parse()?, "master".parse()?];
/// let odds = Odds::any(&names, Distance::ZERO);
/// assert_eq!(format!("{:.3e}", odds.chance().end()), "3.912e-8");
/// # Ok::<(), hashfinder_search::NameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Odds {
    low: f64,
    high: f64,
}

impl Odds {
    /// Returns the chance that a hash is within `distance` of `name`, in the name's spelling.
    ///
    /// See [`any`](Self::any).
    #[must_use]
    pub fn of(name: &DesiredName, distance: Distance) -> Odds {
        Odds::any(slice::from_ref(name), distance)
    }

    /// Returns the chance that a hash is within `distance` of any of `names`.
    ///
    /// The chance is 0 if and only if no hash can match. Its lower end is 1 only if every hash
    /// matches. The converse holds if one window is always near enough, or if the chance is exact.
    /// (To determine in general whether some hash is far from all names is as hard as the farthest
    /// string problem, which is NP-hard: Lanctot and others, "Distinguishing string selection
    /// problems", 2003.)
    ///
    /// For one name at the beginning or at the end, the chance is always exact. For one name
    /// anywhere, it was exact in all measurements of names of up to eight characters, or at
    /// distance 0 or 1. For several names it is exact if they have few characters in total. For
    /// inexact chances under 1%, the upper bound was at most 2.4 times the lower one (the worst
    /// names were fifty to eighty equal characters in hexadecimal), and at most 1.13 times for
    /// SHA-1 in base64. For greater chances, it was up to 5 times the lower one. For many long
    /// names, the factor may be as high as the number of names.
    ///
    /// This takes some milliseconds. The slowest of 4,000 combinations of a name and a distance
    /// took 32 milliseconds on one core for SHA-1 in base64, and 95 milliseconds in any spelling.
    /// Several names took up to 60 milliseconds. The result is always the same for the same names
    /// and distance.
    ///
    /// # Panics
    ///
    /// If `names` is empty, or has names of different spellings.
    #[must_use]
    pub fn any(names: &[DesiredName], distance: Distance) -> Odds {
        Text::of(names, distance).odds(Effort::DEFAULT)
    }

    /// Returns the probability that one hash matches.
    #[must_use]
    pub fn chance(&self) -> RangeInclusive<f64> {
        self.low..=self.high
    }

    /// Whether the chance itself is known, and not only its bounds.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.low == self.high
    }

    /// Returns the average number of hashes of a search, `1 / p`. It is infinite if nothing can
    /// match.
    #[must_use]
    pub fn expected_hashes(&self) -> RangeInclusive<f64> {
        self.high.recip()..=self.low.recip()
    }

    /// Returns the number of hashes within which a search ends with this probability: 0.5 gives the
    /// median.
    ///
    /// That is `ln(1 - chance) / ln(1 - p)`, the quantile of a geometric distribution, not rounded,
    /// and at least 1. It is infinite if nothing can match.
    ///
    /// A search has no memory: after a billion secrets without a match, the expected number of
    /// remaining hashes is the same as at the start.
    ///
    /// # Panics
    ///
    /// If `chance` is not strictly between 0 and 1.
    #[must_use]
    pub fn hashes_for(&self, chance: f64) -> RangeInclusive<f64> {
        assert!(
            0.0 < chance && chance < 1.0,
            "expected a chance between 0 and 1, not {chance}"
        );
        let hashes = |p: f64| ((-chance).ln_1p() / (-p).ln_1p()).max(1.0);
        hashes(self.high)..=hashes(self.low)
    }

    /// Returns the chance that a search ends within `hashes` hashes: `1 - (1 - p)^hashes`.
    #[must_use]
    pub fn chance_after(&self, hashes: u64) -> RangeInclusive<f64> {
        let after = |p: f64| match hashes {
            // 0 even if every hash matches.
            0 => 0.0,
            _ => -(hashes as f64 * (-p).ln_1p()).exp_m1(),
        };
        after(self.low)..=after(self.high)
    }

    /// The odds if every hash matches.
    const CERTAIN: Odds = Odds {
        low: 1.0,
        high: 1.0,
    };

    /// Creates the odds for a chance that is not 1, from its bounds.
    fn uncertain(low: f64, high: f64) -> Odds {
        // Rounding may have raised a value near 1 to 1 or more, or put two equal bounds in the
        // wrong order.
        let least = low.min(1.0_f64.next_down());
        Odds {
            low: least,
            high: if high <= low { least } else { high.min(1.0) },
        }
    }
}

/// Limits on the work for one chance.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Maximum number of states between two places of the text.
    states: usize,
    /// Maximum number of examinations of a window, in total over all places and states. If these
    /// would not last to the end of the text, fewer states are kept.
    looks: usize,
    /// Maximum number of sums to compute for the pairs of windows.
    sums: usize,
}

impl Effort {
    /// The effort of [`Odds::any`], whose documentation has the times that result from it. Doubling
    /// `looks` and `sums` would double the times. For SHA-1 in base64, so would doubling only
    /// `states`.
    const DEFAULT: Effort = Effort {
        states: 1 << 12,
        looks: 1 << 24,
        sums: 1 << 24,
    };
}

/// Cost of looking up a state's probability, in examinations of a window.
const LOOKS_PER_STATE: usize = 16;

/// A name to search for in a text.
#[derive(Clone, Debug)]
struct Target<'a> {
    /// For each of the name's characters, the set that satisfies it.
    characters: &'a [Chars],
    /// Places where the name may begin.
    windows: RangeInclusive<usize>,
}

/// Characters that a place may show and that satisfy the same characters of the names.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Class {
    /// One bit for each character of the names, the first one lowest: whether this class satisfies
    /// it.
    satisfies: u128,
    /// The probability that the place shows one of them.
    chance: f64,
}

/// A kind of place: which characters such a place shows, and which of the names' characters they
/// satisfy. The characters of all names are numbered consecutively.
struct Kind {
    /// Number of characters that such a place can show, all equally likely.
    shown: u32,
    /// For each character of the names, a mask with one bit for each character shown: whether the
    /// shown character satisfies it.
    satisfying: Vec<u64>,
}

impl Kind {
    fn new(place: Chars, targets: &[Target<'_>]) -> Kind {
        let shown: Vec<u8> = place.iter().collect();
        assert!(
            shown.len() <= u64::BITS as usize,
            "no encoding has more digits"
        );
        let characters = targets.iter().flat_map(|target| target.characters);
        let satisfying: Vec<u64> = characters
            .map(|set| {
                let bit = |(at, character): (usize, &u8)| u64::from(set.contains(*character)) << at;
                shown.iter().enumerate().map(bit).sum()
            })
            .collect();
        Kind {
            shown: shown.len() as u32,
            satisfying,
        }
    }

    /// Returns the classes of the characters shown. The names must not have more characters than a
    /// class has bits.
    fn classes(&self) -> Vec<Class> {
        let mut classes: Vec<Class> = Vec::new();
        for at in 0..self.shown {
            let numbers = self.satisfying.iter().enumerate();
            let satisfies = numbers.fold(0, |bits, (number, satisfying)| {
                bits | u128::from(satisfying >> at & 1) << number
            });
            match classes
                .iter_mut()
                .find(|class| class.satisfies == satisfies)
            {
                Some(class) => class.chance += 1.0,
                None => classes.push(Class {
                    satisfies,
                    chance: 1.0,
                }),
            }
        }
        for class in &mut classes {
            class.chance /= f64::from(self.shown);
        }
        classes
    }

    /// Returns the number of characters shown that satisfy the names' character with this number.
    fn satisfy(&self, number: usize) -> u32 {
        self.satisfying[number].count_ones()
    }
}

/// What a window's unseen characters can turn out to be. All lists are indexed by the number of
/// characters that have been seen.
struct Outlook {
    /// Number of the unseen characters that differ in every text.
    least: Vec<usize>,
    /// Number of the unseen characters that can differ, each considered separately.
    most: Vec<usize>,
    /// Probabilities that at most 0, 1, 2 ... of the unseen characters differ.
    within: Vec<Vec<f64>>,
}

/// What is known of a window of which some characters have been seen.
enum Verdict {
    Near,
    Far,
    Open,
}

impl Outlook {
    /// Creates the outlook of a window whose characters are numbered from `first`.
    fn new(places: &[&Kind], first: usize, distance: usize) -> Outlook {
        let length = places.len();
        let (mut least, mut most) = (vec![0; length + 1], vec![0; length + 1]);
        let mut within = vec![vec![1.0; distance + 1]; length + 1];
        for at in (0..length).rev() {
            let (satisfy, shown) = (places[at].satisfy(first + at), places[at].shown);
            least[at] = least[at + 1] + usize::from(satisfy == 0);
            most[at] = most[at + 1] + usize::from(satisfy < shown);
            let agree = f64::from(satisfy) / f64::from(shown);
            let differ = f64::from(shown - satisfy) / f64::from(shown);
            for wrong in 0..=distance {
                let fewer = wrong.checked_sub(1);
                let fewer = fewer.map_or(0.0, |fewer| within[at + 1][fewer]);
                within[at][wrong] = agree * within[at + 1][wrong] + differ * fewer;
            }
        }
        Outlook {
            least,
            most,
            within,
        }
    }

    /// Returns whether the window is near enough, if at most `wrong` of the unseen characters may
    /// differ.
    fn verdict(&self, seen: usize, wrong: usize) -> Verdict {
        if wrong < self.least[seen] {
            Verdict::Far
        } else if wrong >= self.most[seen] {
            Verdict::Near
        } else {
            Verdict::Open
        }
    }
}

/// A position where a name may be near enough.
struct Window {
    /// The places that it covers.
    places: Range<usize>,
    /// The number of the name's first character.
    first: usize,
    /// Position of its field in a state, in bits.
    shift: usize,
    outlook: Rc<Outlook>,
}

impl Window {
    /// Returns the probability that the window is near enough, before any of its characters is
    /// seen.
    fn chance(&self) -> f64 {
        self.outlook.within[0].last().copied().unwrap_or_default()
    }

    /// Returns the number of the character at a place.
    fn character(&self, place: usize) -> usize {
        self.first + place - self.places.start
    }
}

/// A random text of independent characters, and the names to search for in it.
///
/// This type does not depend on encodings: the tests use smaller texts.
struct Text {
    kinds: Vec<Kind>,
    /// The kind of each place.
    places: Vec<u8>,
    /// Maximum number of a name's characters that may differ.
    distance: usize,
    /// The windows that are near enough in at least one text. Those of one name are consecutive,
    /// from first to last.
    windows: Vec<Window>,
    /// The windows of each name.
    names: Vec<Range<usize>>,
    layout: Layout,
}

/// The probability of each state. The hasher has no random seed, so states are added up in the same
/// order in every run, and rounding is the same.
type States = HashMap<State, f64, BuildHasherDefault<StateHasher>>;

/// For each open window, one more than the number of its unseen characters that may differ; 0 for
/// all other windows.
///
/// These numbers are stored side by side in fields. The field of a window is the place where the
/// window begins, modulo the number of the name's fields. It is never shared by two windows that
/// are open at the same time.
type State = u128;

/// The layout of a state.
#[derive(Clone, Copy)]
struct Layout {
    /// Number of fields.
    fields: usize,
    /// Number of bits of each field.
    bits: usize,
}

impl Layout {
    /// Creates a layout without fields, with room in each field for names of at most `longest`
    /// characters.
    fn new(longest: usize, distance: usize) -> Layout {
        // A window that has begun is open only while the number of its characters that may still
        // differ is less than the number still unseen.
        let most = longest.saturating_sub(1).min(distance + 1).max(1);
        Layout {
            fields: 0,
            bits: most.ilog2() as usize + 1,
        }
    }

    /// Assigns fields to the windows of a name.
    fn place(&mut self, windows: &mut [Window]) {
        let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
            return;
        };
        // A window is in no state before its first character was seen, or after its last.
        let open = first.places.len().saturating_sub(1).max(1);
        let fields = open.min(last.places.start - first.places.start + 1);
        for window in windows {
            window.shift = (self.fields + window.places.start % fields) * self.bits;
        }
        self.fields += fields;
    }

    fn fits(self) -> bool {
        self.fields * self.bits <= State::BITS as usize
    }

    /// Returns how many of a window's unseen characters may differ, or `None` if the window is not
    /// open.
    fn wrong(self, state: State, window: &Window) -> Option<usize> {
        let field = state >> window.shift & ((1 << self.bits) - 1);
        (field as usize).checked_sub(1)
    }
}

/// The possible successors of a state. At one place, no two windows have the same character of a
/// name.
struct Step {
    /// The characters of the names that open windows have at the place.
    open: u128,
    /// Those of the open characters that make a window near enough if they agree.
    near: u128,
    /// The next state if none of the open characters agrees.
    if_none: State,
    /// For each open character, the bits of `if_none` that change if the character agrees.
    changes: [State; u128::BITS as usize],
}

impl Step {
    const NONE: Step = Step {
        open: 0,
        near: 0,
        if_none: 0,
        changes: [0; u128::BITS as usize],
    };

    /// Adds an open window of which `wrong` characters may still differ, the one at the place
    /// included.
    fn add(&mut self, window: &Window, place: usize, wrong: usize) {
        let character = window.character(place);
        let seen = place - window.places.start + 1;
        let after = |wrong: usize| match window.outlook.verdict(seen, wrong) {
            Verdict::Open => (wrong as State + 1) << window.shift,
            Verdict::Near | Verdict::Far => 0,
        };
        // A character that differs cannot make a window near enough: the window would have been so
        // before.
        let differs = wrong.checked_sub(1).map_or(0, after);
        self.open |= 1 << character;
        if matches!(window.outlook.verdict(seen, wrong), Verdict::Near) {
            self.near |= 1 << character;
        }
        self.if_none |= differs;
        self.changes[character] = differs ^ after(wrong);
    }

    /// Returns the next state if, of the open characters, only those in `agree` agree. Returns
    /// `None` if that makes a window near enough.
    fn to(&self, mut agree: u128) -> Option<State> {
        if agree & self.near != 0 {
            return None;
        }
        let mut state = self.if_none;
        while agree != 0 {
            state ^= self.changes[agree.trailing_zeros() as usize];
            agree &= agree - 1;
        }
        Some(state)
    }
}

/// A state, with the cost of forgetting it.
struct Forgettable {
    state: State,
    probability: f64,
    /// The minimum probability that a text in this state matches, and how much higher that
    /// probability may be. Both are multiplied by the state's probability.
    low: f64,
    gap: f64,
}

/// Precomputed data for the pass over the places.
struct Course {
    /// The classes of each kind of place.
    classes: Vec<Vec<Class>>,
    /// For each place, the windows that began before it and cover it.
    begun: Vec<Vec<usize>>,
    /// For each place, the windows that begin there.
    begin: Vec<Vec<usize>>,
}

impl Course {
    /// Returns `None` if a state has too few bits for all windows, or a class has too few for all
    /// characters.
    fn new(text: &Text) -> Option<Course> {
        let characters = text.kinds.iter().map(|kind| kind.satisfying.len()).max()?;
        if !text.layout.fits() || characters > u128::BITS as usize {
            return None;
        }
        let mut course = Course {
            classes: text.kinds.iter().map(Kind::classes).collect(),
            begun: vec![Vec::new(); text.places.len()],
            begin: vec![Vec::new(); text.places.len()],
        };
        for (number, window) in text.windows.iter().enumerate() {
            course.begin[window.places.start].push(number);
            for place in window.places.clone().skip(1) {
                course.begun[place].push(number);
            }
        }
        Some(course)
    }
}

/// The result of the pass over the places.
struct Sweep {
    /// The chance, or its lower bound.
    low: f64,
    /// How much higher the chance may be, if there were too many states.
    gap: Option<f64>,
    /// Whether every text has matched, leaving aside those whose states were forgotten because
    /// there were too many.
    all: bool,
}

/// Probabilities that two windows are both near enough.
struct Pairs<'a> {
    windows: &'a [Window],
    /// Number of windows, counted from the first, of which all pairs are known.
    paired: usize,
    /// For each of these windows, the sum of the probabilities that it and another of them are both
    /// near enough, over all the others.
    with_others: Vec<f64>,
    /// For each window, the highest probability, among its known pairs, that it and an earlier
    /// window are both near enough.
    with_one_before: Vec<f64>,
}

impl Pairs<'_> {
    /// Adds the pairs that have no place in common and so are independent.
    fn add_distant(&mut self, text_len: usize) {
        let paired = &self.windows[..self.paired];
        // The sums of the probabilities of the windows that end before a place, and of those that
        // begin there or later.
        let (mut ended, mut to_come) = (vec![0.0; text_len + 1], vec![0.0; text_len + 1]);
        for window in paired {
            ended[window.places.end] += window.chance();
            to_come[window.places.start] += window.chance();
        }
        for place in 0..text_len {
            ended[place + 1] += ended[place];
            to_come[text_len - 1 - place] += to_come[text_len - place];
        }
        for (window, with_others) in paired.iter().zip(&mut self.with_others) {
            let distant = ended[window.places.start] + to_come[window.places.end];
            *with_others += window.chance() * distant;
        }
    }

    /// Returns the lower and upper bound of the chance that some window is near enough.
    fn bounds(&self) -> (f64, f64) {
        // If n windows of a text are near enough, each of them counts 1/n, so the text counts one
        // in total. For whole n, 1/n is at least the chord through its values at k and k + 1. The
        // chord needs only the mean of n, over the texts in which the window is near enough. The k
        // just below that mean gives the best bound (Kuai, Alajaji and Takahara, "A lower bound on
        // the probability of a finite union of events", 2000). With k = 1 for all windows it is
        // Bonferroni's second inequality.
        let (mut low, mut high) = (0.0, 0.0);
        for (window, with_others) in self.windows[..self.paired].iter().zip(&self.with_others) {
            let chance = window.chance();
            let k = (1.0 + with_others / chance).floor();
            low += (2.0 * chance - with_others / k) / (k + 1.0);
        }
        // A window adds at most the probability that it is near enough and a window that was
        // counted before is not (Hunter, "An upper bound for the probability of a union", 1976).
        for (window, with_one_before) in self.windows.iter().zip(&self.with_one_before) {
            low = f64::max(low, window.chance());
            high += (window.chance() - with_one_before).max(0.0);
        }
        (low, high)
    }
}

/// Computes the sums for pairs of windows, up to a maximum number of sums.
struct Sums {
    left: usize,
    /// The probability of each pair of numbers of differing characters. The row is the number for
    /// the first window, the column that for the second. A row and a column of zeros come first.
    table: Vec<f64>,
    row: Vec<f64>,
}

impl Sums {
    /// Takes `sums` from the sums that are left, or returns `None` if there are too few.
    fn take(&mut self, sums: usize) -> Option<()> {
        self.left = self.left.checked_sub(sums)?;
        Some(())
    }

    /// Returns the probability that two windows with places in common are both near enough, or
    /// `None` if too few sums are left.
    fn both(&mut self, text: &Text, one: &Window, other: &Window) -> Option<f64> {
        let (first, second) = if one.places.start <= other.places.start {
            (one, other)
        } else {
            (other, one)
        };
        let distance = text.distance;
        let side = distance + 2;
        self.table.clear();
        self.table.resize(side * side, 0.0);
        self.row.resize(side, 0.0);
        self.table[side + 1] = 1.0;
        // The greatest numbers of differing characters so far, for the first window and the second.
        let (mut down, mut right) = (0, 0);
        let common = second.places.start..first.places.end.min(second.places.end);
        for place in first.places.start..common.end {
            let kind = text.kind(place);
            let satisfying = |window: &Window| kind.satisfying[window.character(place)];
            let all = u64::MAX >> (u64::BITS - kind.shown);
            let chance =
                |characters: u64| f64::from(characters.count_ones()) / f64::from(kind.shown);
            let satisfy_first = satisfying(first);
            let satisfy_second = if common.contains(&place) {
                satisfying(second)
            } else {
                all
            };
            let neither = chance(satisfy_first & satisfy_second);
            let the_first = chance(satisfy_second & !satisfy_first);
            let the_second = chance(satisfy_first & !satisfy_second);
            let both = chance(all & !satisfy_first & !satisfy_second);
            down = distance.min(down + 1);
            right = distance.min(right + usize::from(common.contains(&place)));
            self.take((down + 1) * (right + 1))?;
            for differ in (1..=down + 1).rev() {
                let (above, here) = self.table.split_at_mut(differ * side);
                let above = &above[(differ - 1) * side..][..right + 2];
                let here = &mut here[..right + 2];
                let cells = above.windows(2).zip(here.windows(2));
                for ((above, here), sum) in cells.zip(&mut self.row) {
                    *sum = here[1] * neither
                        + above[1] * the_first
                        + here[0] * the_second
                        + above[0] * both;
                }
                here[1..].copy_from_slice(&self.row[..=right]);
            }
        }
        // One of the windows may extend further. There, it may differ in as many more characters as
        // are left of the distance.
        let rest_first = &first.outlook.within[common.end - first.places.start];
        let rest_second = &second.outlook.within[common.end - second.places.start];
        let rows = self.table.chunks_exact(side).skip(1);
        let rows = rows.zip(rest_first.iter().rev()).map(|(row, of_first)| {
            let cells = row[1..].iter().zip(rest_second.iter().rev());
            of_first * cells.map(|(cell, of_second)| cell * of_second).sum::<f64>()
        });
        Some(rows.sum())
    }
}

impl Text {
    /// Creates the text for the hashed names of a spelling, with `names` to search for in it.
    fn of(names: &[DesiredName], distance: Distance) -> Text {
        assert!(!names.is_empty(), "odds need at least one name");
        let spelling = names[0].spelling();
        let places = (0..spelling.text_len()).map(|index| spelling.place(index));
        let mut targets: Vec<Target<'_>> = Vec::new();
        for name in names {
            assert_eq!(name.spelling(), spelling, "names of different spellings");
            let characters = name.characters();
            // If case does not matter, names that differ only in case are the same.
            if targets.iter().all(|other| other.characters != characters) {
                targets.push(Target {
                    characters,
                    windows: name.windows(),
                });
            }
        }
        let distance = usize::from(distance.get());
        Text::new(&places.collect::<Vec<_>>(), &targets, distance)
    }

    fn new(places: &[Chars], targets: &[Target<'_>], distance: usize) -> Text {
        let mut shown: Vec<Chars> = Vec::new();
        for place in places {
            if !shown.contains(place) {
                shown.push(*place);
            }
        }
        let kind_of = |place| shown.iter().position(|kind| kind == place);
        let longest = targets.iter().map(|name| name.characters.len()).max();
        let mut text = Text {
            places: places
                .iter()
                .flat_map(kind_of)
                .map(|kind| kind as u8)
                .collect(),
            kinds: shown
                .iter()
                .map(|place| Kind::new(*place, targets))
                .collect(),
            distance,
            windows: Vec::new(),
            names: Vec::new(),
            layout: Layout::new(longest.unwrap_or_default(), distance),
        };
        let mut first = 0;
        let mut names = Vec::new();
        for name in targets {
            names.push(text.windows_of(name, first));
            first += name.characters.len();
        }
        // If the effort does not suffice for all names, the names that matter least should be left
        // out.
        let chance = |windows: &Vec<Window>| windows.iter().map(Window::chance).sum::<f64>();
        names.sort_by(|a, b| chance(b).total_cmp(&chance(a)));
        for mut windows in names {
            text.layout.place(&mut windows);
            let before = text.windows.len();
            text.windows.append(&mut windows);
            text.names.push(before..text.windows.len());
        }
        text
    }

    /// Returns the windows of a name whose characters are numbered from `first`. Windows that are
    /// near enough in no text are left out.
    fn windows_of(&self, target: &Target<'_>, first: usize) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for start in target.windows.clone() {
            let places = start..start + target.characters.len();
            let alike = |last: &&Window| self.are_alike(last.places.start, start, places.len());
            let outlook = match windows.last().filter(alike) {
                Some(last) => Rc::clone(&last.outlook),
                None => {
                    let kinds: Vec<&Kind> = places.clone().map(|place| self.kind(place)).collect();
                    Rc::new(Outlook::new(&kinds, first, self.distance))
                }
            };
            if !matches!(outlook.verdict(0, self.distance), Verdict::Far) {
                windows.push(Window {
                    places,
                    first,
                    shift: 0,
                    outlook,
                });
            }
        }
        windows
    }

    fn kind(&self, place: usize) -> &Kind {
        &self.kinds[usize::from(self.places[place])]
    }

    /// Whether `length` places from `one` are of the same kinds as those from `other`.
    fn are_alike(&self, one: usize, other: usize, length: usize) -> bool {
        self.places[one..one + length] == self.places[other..other + length]
    }

    /// Returns the chance that the text contains one of the names.
    fn odds(&self, effort: Effort) -> Odds {
        let is_certain =
            |window: &Window| matches!(window.outlook.verdict(0, self.distance), Verdict::Near);
        if self.windows.iter().any(is_certain) {
            return Odds::CERTAIN;
        }
        let sweep = Course::new(self).map(|course| self.sweep(&course, effort));
        if let Some(Sweep {
            low,
            gap: None,
            all,
        }) = sweep
        {
            return if all {
                Odds::CERTAIN
            } else {
                Odds::uncertain(low, low)
            };
        }
        let (mut low, mut high) = self.pairs(effort.sums).bounds();
        if let Some(Sweep {
            low: least,
            gap: Some(gap),
            ..
        }) = sweep
        {
            low = low.max(least);
            high = high.min(least + gap);
        }
        Odds::uncertain(low, high)
    }

    /// Passes over the places with the probability of every state, but with no more states at a
    /// time than the effort allows.
    ///
    /// If there are more, those that cost least are forgotten. The chance of such a state is at
    /// least that of its best window, and at most the sum over all its windows. The cost is the
    /// difference, times the state's probability.
    fn sweep(&self, course: &Course, effort: Effort) -> Sweep {
        let mut looks = 0;
        let (mut low, mut gap) = (0.0, None);
        let mut states = States::from_iter([(0, 1.0)]);
        // Reused at every place.
        let mut next = States::default();
        let mut step = Step::NONE;
        for (place, kind) in self.places.iter().enumerate() {
            let (looks_before, states_before) = (looks, states.len().max(1));
            for (state, probability) in states.drain() {
                looks += course.begun[place].len();
                self.look_ahead(place, state, course, &mut step);
                // Most characters do not affect a state's few open windows. One branch stands for
                // all of them.
                let mut others = 0.0;
                for class in &course.classes[usize::from(*kind)] {
                    let agree = class.satisfies & step.open;
                    if agree == 0 {
                        others += class.chance;
                        continue;
                    }
                    let probability = probability * class.chance;
                    looks += LOOKS_PER_STATE;
                    match step.to(agree) {
                        Some(state) => *next.entry(state).or_default() += probability,
                        None => low += probability,
                    }
                }
                if others > 0.0 {
                    looks += LOOKS_PER_STATE;
                    *next.entry(step.if_none).or_default() += probability * others;
                }
            }
            std::mem::swap(&mut states, &mut next);
            // The number of states for which the remaining looks suffice, if every later state
            // needs as many as those of this place.
            let looks_of_one = (looks - looks_before).div_ceil(states_before).max(1);
            let looks_of_place = effort.looks.saturating_sub(looks) / (self.places.len() - place);
            let max_states = effort.states.min(looks_of_place / looks_of_one);
            if states.len() > max_states {
                looks += states.len() * course.begun.get(place + 1).map_or(0, Vec::len);
                let mut looked_at = self.look_at(&states, place + 1, course);
                looked_at.select_nth_unstable_by(max_states, |a, b| b.gap.total_cmp(&a.gap));
                for forgotten in looked_at.drain(max_states..) {
                    low += forgotten.low;
                    gap = Some(gap.unwrap_or(0.0) + forgotten.gap);
                }
                states.clear();
                states.extend(looked_at.iter().map(|kept| (kept.state, kept.probability)));
            }
        }
        Sweep {
            low,
            gap,
            all: states.is_empty(),
        }
    }

    /// Computes the possible successors of a state at a place.
    fn look_ahead(&self, place: usize, state: State, course: &Course, step: &mut Step) {
        (step.open, step.near, step.if_none) = (0, 0, 0);
        for window in &course.begun[place] {
            let window = &self.windows[*window];
            if let Some(wrong) = self.layout.wrong(state, window) {
                step.add(window, place, wrong);
            }
        }
        for window in &course.begin[place] {
            step.add(&self.windows[*window], place, self.distance);
        }
    }

    /// Returns the states before a place, each with the cost of forgetting it.
    fn look_at(&self, states: &States, place: usize, course: &Course) -> Vec<Forgettable> {
        let to_come = self.windows.iter();
        let to_come = to_come.filter(|window| window.places.start >= place);
        let (best_to_come, all_to_come) = to_come.fold((0.0, 0.0), |(best, all), window| {
            (f64::max(best, window.chance()), all + window.chance())
        });
        let begun = course.begun.get(place).map_or(&[][..], Vec::as_slice);
        let look = |(&state, &probability): (&State, &f64)| {
            let (mut best, mut all) = (best_to_come, all_to_come);
            for window in begun {
                let window = &self.windows[*window];
                if let Some(wrong) = self.layout.wrong(state, window) {
                    let chance = window.outlook.within[place - window.places.start][wrong];
                    best = f64::max(best, chance);
                    all += chance;
                }
            }
            Forgettable {
                state,
                probability,
                low: probability * best,
                gap: probability * (all.min(1.0) - best),
            }
        };
        states.iter().map(look).collect()
    }

    /// Computes the probabilities of pairs of windows, for as many names as `max_sums` allows.
    fn pairs(&self, max_sums: usize) -> Pairs<'_> {
        let mut pairs = Pairs {
            windows: &self.windows,
            paired: 0,
            with_others: vec![0.0; self.windows.len()],
            with_one_before: vec![0.0; self.windows.len()],
        };
        let mut sums = Sums {
            left: max_sums,
            table: Vec::new(),
            row: Vec::new(),
        };
        for (number, name) in self.names.iter().enumerate() {
            let known = pairs.with_others.clone();
            let mut others = self.names[..=number].iter();
            if others.any(|other| self.pair(other, name, &mut sums, &mut pairs).is_none()) {
                pairs.with_others = known;
                break;
            }
            pairs.paired = name.end;
        }
        pairs.add_distant(self.places.len());
        pairs
    }

    /// Adds the pairs of a window of `before` and a window of `name` that have places in common.
    /// `before` is an earlier name or the same one. Returns `None` if too few sums were left.
    fn pair(
        &self,
        before: &Range<usize>,
        name: &Range<usize>,
        sums: &mut Sums,
        pairs: &mut Pairs<'_>,
    ) -> Option<()> {
        // For each offset of the two windows, where the last such pair began and its probability.
        // The next such pair has the same probability if its places are of the same kinds, as most
        // are.
        let mut last: Vec<Option<(usize, f64)>> = vec![None; 2 * self.places.len()];
        for one in before.clone() {
            let window = &self.windows[one];
            let others = &self.windows[name.clone()];
            let from = others.partition_point(|other| other.places.end <= window.places.start);
            let to = others.partition_point(|other| other.places.start < window.places.end);
            // A pair of windows of the same name counts once.
            for other in (name.start + from).max(one + 1)..name.start + to {
                let places = &self.windows[other].places;
                let start = window.places.start.min(places.start);
                let length = window.places.end.max(places.end) - start;
                sums.take(length)?;
                let last = &mut last[self.places.len() + places.start - window.places.start];
                let both = match *last {
                    Some((alike, both)) if self.are_alike(alike, start, length) => both,
                    _ => sums.both(self, window, &self.windows[other])?,
                };
                *last = Some((start, both));
                pairs.with_others[one] += both;
                pairs.with_others[other] += both;
                pairs.with_one_before[other] = f64::max(pairs.with_one_before[other], both);
            }
        }
        Some(())
    }
}

/// Hashes states: XORs the two halves of a product with an odd number (Knuth, "The Art of Computer
/// Programming", volume 3, 6.4). The standard library's hasher would take five times as long.
#[derive(Default)]
struct StateHasher(u64);

impl Hasher for StateHasher {
    fn write_u128(&mut self, state: u128) {
        // The factor is 2^64 divided by the golden ratio. States with few windows have only zeros
        // in the upper half.
        let half = |half: u128| (half & u128::from(u64::MAX)) * 0x9e37_79b9_7f4a_7c15;
        let product = half(state) ^ half(state >> 64).rotate_left(32);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a state is one word");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;

//! How likely it is that one hash matches, and what follows for a search.

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
/// A digest is as good as random, and its characters are independent: each is any of the encoding's,
/// but the last digit holds what bits are left, and the padding is always `=`. A hash matches if *some*
/// window of them is near enough, and windows overlap, so that the chance is not the sum of theirs: for
/// `aaa` at distance 1 in base64 the sum is 60% too much.
///
/// It is computed by going over the places one by one with the probability of every *state*: how
/// many characters each window that has begun may still have wrong. A window that is near enough
/// whatever follows ends that text, and one that cannot be any more is forgotten. (That is the Markov
/// chain embedding of Fu and Koutras, "Distribution theory of runs", 1994.) Several names have their
/// windows side by side in one state. Where there are too many states, or too many windows for one, the
/// chance is bounded from both sides, by what is left of the states and by how likely each two windows
/// are to be near enough both.
///
/// All figures are ranges, from the least value that it can be to the greatest; the two ends are equal
/// where the chance [is exact](Self::is_exact). Rounding costs the 13th digit.
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
    /// The chance that a hash is within `distance` of `name`, in the name's spelling.
    ///
    /// See [`any`](Self::any).
    #[must_use]
    pub fn of(name: &DesiredName, distance: Distance) -> Odds {
        Odds::any(slice::from_ref(name), distance)
    }

    /// The chance that a hash is within `distance` of any of `names`.
    ///
    /// It is 0 exactly if no hash can ever be. Its lower end is 1 only if every hash is; and it is 1 if
    /// one window is always near enough, or where the chance is exact. (To know in general whether some
    /// hash is far from all names is as hard as the farthest string problem, which is NP-hard: Lanctot
    /// and others, "Distinguishing string selection problems", 2003.)
    ///
    /// One name at the beginning or the end is always exact. Anywhere, so was every one that was measured
    /// of up to eight characters, or at distance 0 or 1; several are if they have few characters together.
    /// Where a chance under 1% was not, the upper bound was 2.4 times the lower at most, for fifty to
    /// eighty equal characters in hexadecimal, and 1.13 times for SHA-1 in base64; of greater chances it
    /// was up to 5 times. Of many long names it may be as many times as there are names.
    ///
    /// This takes some milliseconds. The worst of 4,000 names and distances took 32 milliseconds on one
    /// core for SHA-1 in base64, and 95 in any spelling; several names took 60. It always gives the same.
    ///
    /// # Panics
    ///
    /// If there are no names, or they are of different spellings.
    #[must_use]
    pub fn any(names: &[DesiredName], distance: Distance) -> Odds {
        Text::of(names, distance).odds(Effort::WHAT_IT_IS_WORTH)
    }

    /// The probability that one hash matches.
    #[must_use]
    pub fn chance(&self) -> RangeInclusive<f64> {
        self.low..=self.high
    }

    /// Whether the chance is known exactly, and not only its bounds.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.low == self.high
    }

    /// How many hashes a search takes on average, `1 / p`; infinitely many if nothing can match.
    #[must_use]
    pub fn expected_hashes(&self) -> RangeInclusive<f64> {
        self.high.recip()..=self.low.recip()
    }

    /// By how many hashes a search has ended with this chance: 0.5 gives the median.
    ///
    /// That is `ln(1 - chance) / ln(1 - p)`, the quantile of a geometric distribution, not rounded,
    /// and 1 at least. It is infinite if nothing can match.
    ///
    /// A search has no memory: one that has tried a billion secrets in vain has as many before it as
    /// one that begins.
    ///
    /// # Panics
    ///
    /// If `chance` is not between 0 and 1, or is one of these.
    #[must_use]
    pub fn hashes_for(&self, chance: f64) -> RangeInclusive<f64> {
        assert!(
            0.0 < chance && chance < 1.0,
            "no number of hashes has a chance of {chance}"
        );
        let hashes = |p: f64| ((-chance).ln_1p() / (-p).ln_1p()).max(1.0);
        hashes(self.high)..=hashes(self.low)
    }

    /// The chance that a search has ended by so many hashes: `1 - (1 - p)^hashes`.
    #[must_use]
    pub fn chance_after(&self, hashes: u64) -> RangeInclusive<f64> {
        let after = |p: f64| match hashes {
            // Even if every hash matches.
            0 => 0.0,
            _ => -(hashes as f64 * (-p).ln_1p()).exp_m1(),
        };
        after(self.low)..=after(self.high)
    }

    /// Every hash matches.
    const SURE: Odds = Odds {
        low: 1.0,
        high: 1.0,
    };

    /// A chance that is not 1, from its bounds.
    fn unsure(low: f64, high: f64) -> Odds {
        // Rounding may have brought one that is near 1 there or further, and crossed two that are equal.
        let least = low.min(1.0_f64.next_down());
        Odds {
            low: least,
            high: if high <= low { least } else { high.min(1.0) },
        }
    }
}

/// How much may be done for a chance.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// How many states there may be between two places of the text.
    states: usize,
    /// How often a window of a state may be looked at. There are fewer states where that would not last
    /// to the end of the text.
    looks: usize,
    /// How many sums there may be for the pairs of windows.
    sums: usize,
}

impl Effort {
    /// It decides how long [`Odds::any`] takes, whose docs have what was measured. Twice the looks and
    /// sums would take twice as long; twice the states alone would do so for SHA-1 in base64.
    const WHAT_IT_IS_WORTH: Effort = Effort {
        states: 1 << 12,
        looks: 1 << 24,
        sums: 1 << 24,
    };
}

/// To find a state's probability costs as much as so many looks at windows.
const LOOKS_OF_A_STATE: usize = 16;

/// A name that a text may hold.
#[derive(Clone, Debug)]
struct Wanted<'a> {
    /// For each of its characters, what satisfies it.
    characters: &'a [Chars],
    /// Where it may begin.
    windows: RangeInclusive<usize>,
}

/// Characters that a place may show and that satisfy the same characters of the names.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Class {
    /// A bit for each character of the names, the first one lowest: whether these satisfy it.
    satisfies: u128,
    /// How likely the place is to show one of them.
    chance: f64,
}

/// What the places that show the same characters mean to the names. All characters of the names are
/// numbered through.
struct Kind {
    /// How many characters such a place shows, all equally likely.
    shown: u32,
    /// For each character of the names, a bit for each that is shown: whether it satisfies it.
    satisfying: Vec<u64>,
}

impl Kind {
    fn new(place: Chars, wanted: &[Wanted<'_>]) -> Kind {
        let shown: Vec<u8> = place.iter().collect();
        assert!(
            shown.len() <= u64::BITS as usize,
            "no encoding has more digits"
        );
        let characters = wanted.iter().flat_map(|wanted| wanted.characters);
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

    /// The classes of the characters that are shown. The names have no more characters than a class
    /// has bits.
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

    /// How many of the characters that are shown satisfy one of the names'.
    fn satisfy(&self, number: usize) -> u32 {
        self.satisfying[number].count_ones()
    }
}

/// What can be told of a window before the text is known. The index is how many of its characters
/// have been seen.
struct Outlook {
    /// How many of the others differ in any text.
    least: Vec<usize>,
    /// How many of the others differ in some text, if each is looked at alone.
    most: Vec<usize>,
    /// How likely it is that no more of the others differ than so many.
    within: Vec<Vec<f64>>,
}

/// What is known of a window whose first characters have been seen.
enum Verdict {
    Near,
    Far,
    Open,
}

impl Outlook {
    /// Of a window whose characters are numbered from `first` on.
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

    /// Whether it is near enough, if `wrong` of the characters that were not yet seen may differ.
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

/// Where a name may be near enough.
struct Window {
    /// The places.
    places: Range<usize>,
    /// The number of the name's first character.
    first: usize,
    /// Where a state has it.
    shift: usize,
    outlook: Rc<Outlook>,
}

impl Window {
    /// How likely it is to be near enough, before anything was seen.
    fn chance(&self) -> f64 {
        self.outlook.within[0].last().copied().unwrap_or_default()
    }

    /// The number of the character that stands at a place.
    fn character(&self, place: usize) -> usize {
        self.first + place - self.places.start
    }
}

/// A random text of independent characters, and names that it may hold.
///
/// Nothing here knows of encodings: the tests have smaller texts.
struct Text {
    kinds: Vec<Kind>,
    /// Of which kind each place is.
    places: Vec<u8>,
    /// How many of a name's characters may differ.
    distance: usize,
    /// Those that are near enough in some text: a name's side by side, from first to last.
    windows: Vec<Window>,
    /// Which windows a name has.
    names: Vec<Range<usize>>,
    layout: Layout,
}

/// The probability of each state. The hasher's order is the same in every run, and so are the sums.
type States = HashMap<State, f64, BuildHasherDefault<StateHasher>>;

/// For each window that is open, how many of its characters that were not yet seen may differ, and one
/// more; 0 for all others.
///
/// They lie side by side in fields. Of the windows of a name that are open at a time, no two have the
/// same number modulo the name's fields.
type State = u128;

/// How a state is made up.
#[derive(Clone, Copy)]
struct Layout {
    /// How many fields there are.
    fields: usize,
    /// How many bits each has.
    bits: usize,
}

impl Layout {
    /// Without a field yet, for names of so many characters at most.
    fn new(longest: usize, distance: usize) -> Layout {
        // A window that has begun is open only while fewer may differ than are yet to come.
        let most = longest.saturating_sub(1).min(distance + 1).max(1);
        Layout {
            fields: 0,
            bits: most.ilog2() as usize + 1,
        }
    }

    /// Gives the windows of a name their fields.
    fn place(&mut self, windows: &mut [Window]) {
        let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
            return;
        };
        // One that has seen none or all of its characters is in no state.
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

    /// How many more characters of a window may differ, if it is open.
    fn wrong(self, state: State, window: &Window) -> Option<usize> {
        let field = state >> window.shift & ((1 << self.bits) - 1);
        (field as usize).checked_sub(1)
    }
}

/// What can follow on a state. No two windows have the same of a name's characters at a place.
struct Step {
    /// The characters that windows which are open have at the place.
    open: u128,
    /// Those of them which a window is near enough with.
    near: u128,
    /// The state if none of them agrees.
    if_none: State,
    /// What agreeing changes in it, for each character that is open.
    changes: [State; u128::BITS as usize],
}

impl Step {
    const NONE: Step = Step {
        open: 0,
        near: 0,
        if_none: 0,
        changes: [0; u128::BITS as usize],
    };

    /// Adds a window that is open, of whose characters from the place on so many may differ.
    fn add(&mut self, window: &Window, place: usize, wrong: usize) {
        let character = window.character(place);
        let seen = place - window.places.start + 1;
        let after = |wrong: usize| match window.outlook.verdict(seen, wrong) {
            Verdict::Open => (wrong as State + 1) << window.shift,
            Verdict::Near | Verdict::Far => 0,
        };
        // It is not near enough by what differs: it would have been so before.
        let differs = wrong.checked_sub(1).map_or(0, after);
        self.open |= 1 << character;
        if matches!(window.outlook.verdict(seen, wrong), Verdict::Near) {
            self.near |= 1 << character;
        }
        self.if_none |= differs;
        self.changes[character] = differs ^ after(wrong);
    }

    /// The state if these of the open characters agree and no others; none if a window is now near enough.
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

/// A state that is looked at for what forgetting it would cost.
struct Forgettable {
    state: State,
    probability: f64,
    /// How likely a text of it is to match, at least, and how much more that may be, both times its
    /// probability.
    low: f64,
    gap: f64,
}

/// What it takes to go over the places.
struct Course {
    /// The classes of each kind of place.
    classes: Vec<Vec<Class>>,
    /// For each place the windows that have begun before it and reach it.
    begun: Vec<Vec<usize>>,
    /// For each place the windows that begin there.
    begin: Vec<Vec<usize>>,
}

impl Course {
    /// None if a state does not hold all windows, or a class all characters.
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

/// What going over the places gives.
struct Sweep {
    /// The chance, or the least that it can be.
    low: f64,
    /// How much more it may be, if there were too many states.
    gap: Option<f64>,
    /// Whether no state is left: whatever is not forgotten has matched.
    all: bool,
}

/// How likely windows are to be near enough together.
struct Pairs<'a> {
    windows: &'a [Window],
    /// For how many of the windows, the first ones, all pairs of them are known.
    paired: usize,
    /// For each of these the sum over the others of how likely both are.
    with_others: Vec<f64>,
    /// For each window how likely it is together with that one before it, of those which are known,
    /// with which it is likeliest.
    with_one_before: Vec<f64>,
}

impl Pairs<'_> {
    /// Adds the pairs that have no place in common and so do not depend on each other.
    fn add_distant(&mut self, text_len: usize) {
        let paired = &self.windows[..self.paired];
        // How likely those are, in sum, that end before a place; and those that begin there or later.
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

    /// The least and the greatest chance that some window is near enough.
    fn bounds(&self) -> (f64, f64) {
        // A text of which n windows are near enough counts for each of them with 1/n, which makes one.
        // For whole n, 1/n is at least the chord that goes through its values at k and k + 1. That
        // needs the mean of n alone, of the texts of which this window is near enough; the k under that
        // mean gives most (Kuai, Alajaji and Takahara, "A lower bound on the probability of a finite
        // union of events", 2000). With a k of one for all it is Bonferroni's second inequality.
        let (mut low, mut high) = (0.0, 0.0);
        for (window, with_others) in self.windows[..self.paired].iter().zip(&self.with_others) {
            let chance = window.chance();
            let k = (1.0 + with_others / chance).floor();
            low += (2.0 * chance - with_others / k) / (k + 1.0);
        }
        // A window adds no more than what it is likely without one that was counted before it (Hunter,
        // "An upper bound for the probability of a union", 1976).
        for (window, with_one_before) in self.windows.iter().zip(&self.with_one_before) {
            low = f64::max(low, window.chance());
            high += (window.chance() - with_one_before).max(0.0);
        }
        (low, high)
    }
}

/// Sums for two windows, of which there may only be so many.
struct Sums {
    left: usize,
    /// How likely it is that so many characters differ of the one, and of the other. There is a row and
    /// a column of zeros before the first.
    table: Vec<f64>,
    row: Vec<f64>,
}

impl Sums {
    /// None if there are not so many left.
    fn take(&mut self, sums: usize) -> Option<()> {
        self.left = self.left.checked_sub(sums)?;
        Some(())
    }

    /// How likely two windows with places in common are to be near enough both.
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
        // How many may differ so far.
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
        // One of them may go on, and then differ in as many more as are left of its distance.
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
    /// The hashed names that may hold these.
    fn of(names: &[DesiredName], distance: Distance) -> Text {
        assert!(!names.is_empty(), "the odds are those of one name at least");
        let spelling = names[0].spelling();
        let places = (0..spelling.text_len()).map(|index| spelling.place(index));
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for name in names {
            assert_eq!(name.spelling(), spelling, "names of different spellings");
            let characters = name.characters();
            // What differs only in a case that does not matter is the same.
            if wanted.iter().all(|other| other.characters != characters) {
                wanted.push(Wanted {
                    characters,
                    windows: name.windows(),
                });
            }
        }
        let distance = usize::from(distance.get());
        Text::new(&places.collect::<Vec<_>>(), &wanted, distance)
    }

    fn new(places: &[Chars], wanted: &[Wanted<'_>], distance: usize) -> Text {
        let mut shown: Vec<Chars> = Vec::new();
        for place in places {
            if !shown.contains(place) {
                shown.push(*place);
            }
        }
        let kind_of = |place| shown.iter().position(|kind| kind == place);
        let longest = wanted.iter().map(|name| name.characters.len()).max();
        let mut text = Text {
            places: places
                .iter()
                .flat_map(kind_of)
                .map(|kind| kind as u8)
                .collect(),
            kinds: shown
                .iter()
                .map(|place| Kind::new(*place, wanted))
                .collect(),
            distance,
            windows: Vec::new(),
            names: Vec::new(),
            layout: Layout::new(longest.unwrap_or_default(), distance),
        };
        let mut first = 0;
        let mut names = Vec::new();
        for name in wanted {
            names.push(text.windows_of(name, first));
            first += name.characters.len();
        }
        // What there is no effort left for should matter least.
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

    /// The windows of a name whose characters are numbered from `first` on, but those that no text
    /// brings near enough.
    fn windows_of(&self, wanted: &Wanted<'_>, first: usize) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for start in wanted.windows.clone() {
            let places = start..start + wanted.characters.len();
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

    /// Whether so many places from the one on show what those from the other on do.
    fn are_alike(&self, one: usize, other: usize, length: usize) -> bool {
        self.places[one..one + length] == self.places[other..other + length]
    }

    /// How likely the text is to hold one of the names.
    fn odds(&self, effort: Effort) -> Odds {
        let is_sure =
            |window: &Window| matches!(window.outlook.verdict(0, self.distance), Verdict::Near);
        if self.windows.iter().any(is_sure) {
            return Odds::SURE;
        }
        let sweep = Course::new(self).map(|course| self.sweep(&course, effort));
        if let Some(Sweep {
            low,
            gap: None,
            all,
        }) = sweep
        {
            return if all {
                Odds::SURE
            } else {
                Odds::unsure(low, low)
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
        Odds::unsure(low, high)
    }

    /// Goes over the places with the probability of every state, but of no more at a time than the effort
    /// allows.
    ///
    /// If there are more, those are forgotten about which least is left to know. Of such a state the
    /// chance is at least that of its best window, and at most the sum of all its windows'; what is
    /// lost is the difference, as often as the state occurs.
    fn sweep(&self, course: &Course, effort: Effort) -> Sweep {
        let mut looks = 0;
        let (mut low, mut gap) = (0.0, None);
        let mut states = States::from_iter([(0, 1.0)]);
        // Its memory is used again at every place.
        let mut next = States::default();
        let mut step = Step::NONE;
        for (place, kind) in self.places.iter().enumerate() {
            let (looks_before, states_before) = (looks, states.len().max(1));
            for (state, probability) in states.drain() {
                looks += course.begun[place].len();
                self.look_ahead(place, state, course, &mut step);
                // Most characters do nothing for a state's few windows, and need one branch.
                let mut others = 0.0;
                for class in &course.classes[usize::from(*kind)] {
                    let agree = class.satisfies & step.open;
                    if agree == 0 {
                        others += class.chance;
                        continue;
                    }
                    let probability = probability * class.chance;
                    looks += LOOKS_OF_A_STATE;
                    match step.to(agree) {
                        Some(state) => *next.entry(state).or_default() += probability,
                        None => low += probability,
                    }
                }
                if others > 0.0 {
                    looks += LOOKS_OF_A_STATE;
                    *next.entry(step.if_none).or_default() += probability * others;
                }
            }
            std::mem::swap(&mut states, &mut next);
            // As many as the looks that are left suffice for, if those to come need as many.
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

    /// What can follow on a state at a place.
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

    /// What is known of the states before a place.
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

    /// How likely windows are together, for as many names as so many sums suffice for.
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

    /// Adds the pairs that have places in common, of a name's windows with those of one that is not
    /// after it. None if there were not enough sums left.
    fn pair(
        &self,
        before: &Range<usize>,
        name: &Range<usize>,
        sums: &mut Sums,
        pairs: &mut Pairs<'_>,
    ) -> Option<()> {
        // For each offset of the two windows, where the last such pair began and how likely it was: that
        // is the same wherever the places look alike, which most do.
        let mut last: Vec<Option<(usize, f64)>> = vec![None; 2 * self.places.len()];
        for one in before.clone() {
            let window = &self.windows[one];
            let others = &self.windows[name.clone()];
            let from = others.partition_point(|other| other.places.end <= window.places.start);
            let to = others.partition_point(|other| other.places.start < window.places.end);
            // A pair of a name's own windows counts once.
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

/// Spreads states over a table: the two halves of a product with an odd number (Knuth, "The Art of
/// Computer Programming", volume 3, 6.4), which the standard library's hasher would take five times
/// as long for.
#[derive(Default)]
struct StateHasher(u64);

impl Hasher for StateHasher {
    fn write_u128(&mut self, state: u128) {
        // 2^64 over the golden ratio. States of few windows have nothing in the upper half.
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
mod tests {
    use super::*;
    use crate::{
        query::Query,
        sought::Sought,
        spelling::{Algorithm, Anchor, Encoding, Spelling},
    };
    use hashfinder_kernels::{Block, Hits, Kernel};
    use proptest::prelude::*;

    fn odds(name: &str, distance: u8) -> Odds {
        Odds::of(&name.parse().unwrap(), Distance::from(distance))
    }

    /// The chance where it must be exact.
    fn exactly(name: &str, distance: u8) -> f64 {
        let odds = odds(name, distance);
        assert!(odds.is_exact(), "{name} at {distance}");
        assert_eq!(odds.chance().start(), odds.chance().end());
        *odds.chance().start()
    }

    fn spelling(algorithm: Algorithm, encoding: Encoding, anchor: Anchor) -> Spelling {
        Spelling {
            algorithm,
            encoding,
            anchor,
            case_sensitive: false,
        }
    }

    fn case_sensitive(algorithm: Algorithm, encoding: Encoding) -> Spelling {
        Spelling {
            case_sensitive: true,
            ..spelling(algorithm, encoding, Anchor::Anywhere)
        }
    }

    /// The odds of any of some names in a spelling.
    fn odds_in(spelling: Spelling, names: &[&str], distance: u8) -> Odds {
        let names = names
            .iter()
            .map(|name| DesiredName::new(name, spelling).unwrap());
        Odds::any(&names.collect::<Vec<_>>(), Distance::from(distance))
    }

    fn exactly_in(spelling: Spelling, names: &[&str], distance: u8) -> f64 {
        let odds = odds_in(spelling, names, distance);
        assert!(odds.is_exact(), "{names:?} at {distance} in {spelling:?}");
        odds.low
    }

    #[test]
    fn known_values() {
        for (name, distance, chance) in [
            ("doctor", 0, "1.956e-8"),
            ("doctor", 1, "3.747e-6"),
            ("doctor", 2, "2.985e-4"),
            ("hashfinder", 3, "5.738e-8"),
        ] {
            assert_eq!(format!("{:.3e}", exactly(name, distance)), chance, "{name}");
        }
    }

    #[test]
    fn values_that_can_be_worked_out_by_hand() {
        let same = |name: &str, distance: u8, chance: f64| {
            let odds = exactly(name, distance);
            assert!((odds / chance - 1.0).abs() < 1e-12, "{name}: {odds}");
        };
        // Anywhere but in the first 26 places, and not there either.
        same("+", 0, 1.0 - (63.0_f64 / 64.0).powi(26));
        // The 27th shows A, but no a and no b.
        same("a", 0, 1.0 - (31.0_f64 / 32.0).powi(26) * (15.0 / 16.0));
        same("b", 0, 1.0 - (31.0_f64 / 32.0).powi(26));
        // At the end, or nowhere.
        same("c=", 0, 1.0 / 16.0);
        same("ac=", 0, 1.0 / 16.0 / 32.0);
        // Its second character, in the second place or after it.
        same("=a", 1, 1.0 - (31.0_f64 / 32.0).powi(25) * (15.0 / 16.0));
        // One window alone, of which the last character costs nothing.
        same(&("+".repeat(26) + "a="), 0, 64_f64.powi(-26) / 16.0);
    }

    #[test]
    fn values_of_other_spellings_that_can_be_worked_out_by_hand() {
        use {Algorithm::*, Anchor::*, Encoding::*};
        let same = |spelling: Spelling, names: &[&str], distance: u8, chance: f64| {
            let odds = exactly_in(spelling, names, distance);
            assert!(
                (odds / chance - 1.0).abs() < 1e-12,
                "{names:?} in {spelling:?}: {odds}"
            );
        };
        let long = "0123456789abcdef".repeat(8);
        for length in 1..=128 {
            let chance = 16_f64.powi(-(length as i32));
            same(spelling(Sha512, Hex, Prefix), &[&long[..length]], 0, chance);
        }
        for anchor in Anchor::ALL {
            same(
                spelling(Sha512, Hex, anchor),
                &[&long],
                0,
                16_f64.powi(-128),
            );
            // One of 128 differs, or none.
            same(
                spelling(Sha512, Hex, anchor),
                &[&long],
                1,
                16_f64.powi(-128) * (1.0 + 128.0 * 15.0),
            );
        }
        let any = 1.0 - (15.0_f64 / 16.0).powi(64);
        same(spelling(Blake3, Hex, Anywhere), &["a"], 0, any);
        // Its letters are capitals alone, and its last place is not special in SHA-1.
        same(
            spelling(Sha1, Base32, Prefix),
            &["doctor"],
            0,
            32_f64.powi(-6),
        );
        same(
            spelling(Sha1, Base32, Suffix),
            &["doctor"],
            0,
            32_f64.powi(-6),
        );
        let doctor = Spelling {
            anchor: Prefix,
            ..case_sensitive(Sha256, Base64)
        };
        same(doctor, &["doctor"], 0, 64_f64.powi(-6));
        same(
            spelling(Sha256, Base64, Prefix),
            &["doctor"],
            0,
            32_f64.powi(-6),
        );
        // Any of sixteen before the padding, and of these one or two letters.
        same(
            spelling(Sha1, Base64, Suffix),
            &["ac="],
            0,
            1.0 / 16.0 / 32.0,
        );
        same(spelling(Sha256, Base64, Suffix), &["c="], 0, 1.0 / 16.0);
        same(
            case_sensitive(Sha256, Base64),
            &["ac="],
            0,
            1.0 / 64.0 / 16.0,
        );
        // Four bits' padding: one of four, and of two; one bit: one of two.
        same(spelling(Sha512, Base64, Suffix), &["g=="], 0, 1.0 / 4.0);
        same(spelling(Sha512, Base32, Suffix), &["y="], 0, 1.0 / 4.0);
        same(spelling(Sha256, Base32, Suffix), &["q===="], 0, 1.0 / 2.0);
        same(spelling(Blake3, Base32, Suffix), &["bq===="], 0, 1.0 / 64.0);
        // The last digit is A or Q: always one of these.
        assert_eq!(
            exactly_in(spelling(Blake3, Base32, Anywhere), &["a", "q===="], 0),
            1.0
        );
        // Twice the same counts once, and what cannot be together adds up.
        same(
            spelling(Sha1, Base64, Prefix),
            &["doctor", "DOCTOR"],
            0,
            32_f64.powi(-6),
        );
        same(
            spelling(Sha1, Hex, Prefix),
            &["abc", "abd", "ab"],
            0,
            16_f64.powi(-2),
        );
        same(
            spelling(Sha1, Hex, Prefix),
            &["abc", "abd", "abe"],
            0,
            3.0 * 16_f64.powi(-3),
        );
        let many: Vec<String> = (0..64).map(|name| format!("{name:08x}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        same(
            spelling(Sha512, Hex, Suffix),
            &many,
            0,
            64.0 * 16_f64.powi(-8),
        );
    }

    /// No window alone is always near enough, and yet every hash matches.
    #[test]
    fn sure_without_a_sure_window() {
        use {Algorithm::*, Anchor::*, Encoding::*};
        // Whatever a place in the middle shows agrees with the name in some window.
        for (spelling, name) in [
            (spelling(Sha1, Hex, Anywhere), "0123456789abcdef"),
            (spelling(Sha512, Hex, Anywhere), "fedcba9876543210"),
        ] {
            let most = name.len() as u8 - 1;
            assert_eq!(odds_in(spelling, &[name], most).chance(), 1.0..=1.0);
            assert!(odds_in(spelling, &[&name[1..]], most - 1).low < 1.0);
        }
        let digits: Vec<String> = (0..16).map(|digit| format!("{digit:x}")).collect();
        let digits: Vec<&str> = digits.iter().map(String::as_str).collect();
        let prefix = spelling(Sha256, Hex, Prefix);
        assert_eq!(odds_in(prefix, &digits, 0).chance(), 1.0..=1.0);
        let fewer = exactly_in(prefix, &digits[1..], 0);
        assert!((fewer - 15.0 / 16.0).abs() < 1e-12);
    }

    /// It is not 1, though no number tells it from that.
    #[test]
    fn all_but_sure() {
        let hex = spelling(Algorithm::Sha512, Encoding::Hex, Anchor::Anywhere);
        let chance = exactly_in(hex, &["01234"], 4);
        assert!(1.0 - 1e-15 < chance && chance < 1.0);
    }

    /// There is no effort for most of their pairs.
    #[test]
    fn many_long_names_are_bounded() {
        let hex = spelling(Algorithm::Sha512, Encoding::Hex, Anchor::Anywhere);
        let digits = "0123456789abcdef".repeat(8);
        let names: Vec<&str> = (0..64)
            .map(|name| &digits[name % 16..][..50 + name % 7])
            .collect();
        let odds = odds_in(hex, &names, 30);
        let one = odds_in(hex, &names[..1], 30);
        assert!(!odds.is_exact() && odds.high < 1e-6, "{odds:?}");
        assert!(one.low <= odds.low && odds.low < odds.high && odds.high <= 64.0 * one.high);
    }

    #[test]
    #[should_panic(expected = "different spellings")]
    fn names_are_of_one_spelling() {
        let hex = spelling(Algorithm::Sha1, Encoding::Hex, Anchor::Anywhere);
        let names = ["a".parse().unwrap(), DesiredName::new("a", hex).unwrap()];
        let _ = Odds::any(&names, Distance::ZERO);
    }

    #[test]
    fn never_and_always() {
        for (name, distance) in [("==", 0), ("doc-tor", 0), ("b=", 0), ("\u{1f980}", 0)] {
            assert_eq!(exactly(name, distance), 0.0, "{name}");
            assert_eq!(odds(name, distance).chance_after(u64::MAX), 0.0..=0.0);
            assert_eq!(*odds(name, distance).hashes_for(0.5).start(), f64::INFINITY);
            assert_eq!(*odds(name, distance).expected_hashes().end(), f64::INFINITY);
        }
        for (name, distance) in [
            ("=", 0),
            ("a=", 1),
            ("doctor", 6),
            ("doctor", 29),
            ("==", 1),
        ] {
            assert_eq!(exactly(name, distance), 1.0, "{name}");
            assert_eq!(odds(name, distance).chance_after(0), 0.0..=0.0);
            assert_eq!(odds(name, distance).chance_after(1), 1.0..=1.0);
            assert_eq!(odds(name, distance).hashes_for(0.99), 1.0..=1.0);
            assert_eq!(odds(name, distance).expected_hashes(), 1.0..=1.0);
        }
    }

    #[test]
    fn tiny_chances_lose_nothing() {
        let chance = exactly("abcdefghijklmnopqrst", 0);
        assert!(chance < 1e-28);
        let odds = odds("abcdefghijklmnopqrst", 0);
        let median = *odds.hashes_for(0.5).end();
        assert!((median * chance / std::f64::consts::LN_2 - 1.0).abs() < 1e-12);
        let after = *odds.chance_after(1_000_000_000).end();
        assert!((after / chance / 1e9 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_greatest_distances_are_nearly_sure() {
        // All characters of the only window differ with a chance of (31/32)^26 * 15/16.
        let name = "abcdefghijklmnopqrstuvwxyzab";
        let chance = exactly(name, 27);
        // The last of its characters never is '=', and the 27th is A in one case of sixteen.
        let expected = 1.0 - (31.0_f64 / 32.0).powi(26) * (15.0 / 16.0);
        assert!((chance / expected - 1.0).abs() < 1e-12, "{chance}");
    }

    /// Names from one character to 28: different ones, the same one, periods, any.
    fn names() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z0-9+/=-]{1,28}",
            "a{1,28}",
            "[ab]{1,28}",
            "(abc){1,9}=?"
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_greater_distance_is_as_likely_or_likelier(name in names(), distance in 0..28_u8) {
            let (near, far) = (odds(&name, distance), odds(&name, distance + 1));
            // Of what is bounded alone, no more can be said than that the bounds do not contradict it.
            let (near, far) = (near.chance(), far.chance());
            prop_assert!(0.0 <= *near.start() && near.start() <= near.end() && *far.end() <= 1.0);
            prop_assert!(*near.start() <= far.end() * (1.0 + 1e-12), "{near:?} {far:?}");
            if near.start() == near.end() && far.start() == far.end() {
                prop_assert!(*near.end() <= far.start() * (1.0 + 1e-12), "{near:?} {far:?}");
            }
        }

        #[test]
        fn it_is_0_where_a_query_is_impossible(name in names(), distance in 0..6_u8) {
            let parsed: DesiredName = name.parse().unwrap();
            let possible = parsed.least_distance() <= distance;
            prop_assert_eq!(*odds(&name, distance).chance().start() > 0.0, possible);
            prop_assert_eq!(*odds(&name, distance).chance().end() > 0.0, possible);
        }
    }

    /// A small text: what its places show, the names it may hold, where, and within which distance.
    #[derive(Clone, Debug)]
    struct Small {
        places: Vec<Chars>,
        names: Vec<(Vec<Chars>, RangeInclusive<usize>)>,
        distance: usize,
    }

    impl Small {
        fn text(&self) -> Text {
            let names = self.names.iter();
            let wanted = names.map(|(characters, windows)| Wanted {
                characters,
                windows: windows.clone(),
            });
            let wanted: Vec<_> = wanted.collect();
            Text::new(&self.places, &wanted, self.distance)
        }

        /// The chance of the texts that are `counted`, which is asked with what tells whether a window
        /// of a name is near enough.
        fn enumerate(&self, counted: impl Fn(&dyn Fn(&[Chars], usize) -> bool) -> bool) -> f64 {
            let shown: Vec<Vec<u8>> = self
                .places
                .iter()
                .map(|place| place.iter().collect())
                .collect();
            let texts: usize = shown.iter().map(Vec::len).product();
            let mut matches = 0;
            for mut number in 0..texts {
                let mut text = Vec::new();
                for shown in &shown {
                    text.push(shown[number % shown.len()]);
                    number /= shown.len();
                }
                let near = |name: &[Chars], start: usize| {
                    let pairs = name.iter().zip(&text[start..]);
                    pairs.filter(|(set, shown)| !set.contains(**shown)).count() <= self.distance
                };
                matches += usize::from(counted(&near));
            }
            matches as f64 / texts as f64
        }

        /// From every text there is.
        fn chance(&self) -> f64 {
            self.enumerate(|near| {
                let mut names = self.names.iter();
                names.any(|(name, windows)| windows.clone().any(|start| near(name, start)))
            })
        }
    }

    /// Up to seven places that show up to four characters, and one to three names anywhere, at the
    /// beginning or at the end.
    fn small_texts() -> impl Strategy<Value = Small> {
        let set = |least: u8| {
            (least..16).prop_map(|bits| {
                let characters = (0..4).filter(|at| bits >> at & 1 == 1);
                characters.fold(Chars::NONE, |set, at| set.with(b'a' + at))
            })
        };
        let places = proptest::collection::vec(set(1), 1..=7);
        let name = proptest::collection::vec(set(0), 1..=5);
        let names = proptest::collection::vec((name, 0..3_u8), 1..=3);
        (places, names, 0..5_usize).prop_map(|(places, names, distance)| {
            let names = names.into_iter().map(|(mut name, anchor)| {
                name.truncate(places.len());
                let last = places.len() - name.len();
                let windows = match anchor {
                    0 => 0..=last,
                    1 => 0..=0,
                    _ => last..=last,
                };
                (name, windows)
            });
            Small {
                names: names.collect(),
                places,
                distance,
            }
        })
    }

    const ENDLESS: Effort = Effort {
        states: usize::MAX,
        looks: usize::MAX,
        sums: usize::MAX,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn it_is_what_enumeration_gives(small in small_texts()) {
            let expected = small.chance();
            let odds = small.text().odds(ENDLESS);
            prop_assert!(odds.is_exact());
            prop_assert!((odds.low - expected).abs() < 1e-12, "{odds:?}, and not {expected}");
            // Where it is 0 or 1, it says so exactly, and nowhere else.
            prop_assert_eq!(odds.low == 0.0, expected == 0.0);
            prop_assert_eq!(odds.low == 1.0, expected == 1.0);
        }

        #[test]
        fn the_bounds_contain_it(small in small_texts(), states in 0..4_usize, sums in 0..400_usize) {
            let expected = small.chance();
            let effort = Effort { states, sums, ..ENDLESS };
            let odds = small.text().odds(effort);
            prop_assert!(odds.low < expected + 1e-12, "{odds:?}, and not {expected}");
            prop_assert!(expected < odds.high + 1e-12, "{odds:?}, and not {expected}");
            prop_assert_eq!(odds.low == 0.0, expected == 0.0);
            prop_assert!(odds.low < 1.0 || expected == 1.0);
        }

        /// As where a state does not hold all windows.
        #[test]
        fn the_bounds_by_pairs_contain_it(small in small_texts(), sums in 0..2_000_usize) {
            let expected = small.chance();
            let (low, high) = small.text().pairs(sums).bounds();
            prop_assert!(low < expected + 1e-12, "{low}, and not {expected}");
            prop_assert!(expected < high + 1e-12, "{high}, and not {expected}");
        }

        #[test]
        fn pairs_are_what_enumeration_gives(small in small_texts()) {
            let text = small.text();
            let pairs = text.pairs(usize::MAX);
            prop_assert_eq!(pairs.paired, text.windows.len());
            let name = |window: &Window| {
                let characters = small.names.iter().flat_map(|(name, _)| name).copied();
                characters.skip(window.first).take(window.places.len()).collect::<Vec<_>>()
            };
            for (number, one) in text.windows.iter().enumerate() {
                let one_name = name(one);
                let others = text.windows.iter().enumerate();
                let with_others = others.filter(|(other, _)| *other != number).map(|(_, other)| {
                    let other_name = name(other);
                    small.enumerate(|near| {
                        near(&one_name, one.places.start) && near(&other_name, other.places.start)
                    })
                });
                let expected: f64 = with_others.sum();
                prop_assert!((pairs.with_others[number] - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_bounds_of_names_contain_their_chances() {
        for (name, distance) in [
            ("doctor", 2),
            ("doctor", 4),
            ("hashfinder", 8),
            ("abababab", 4),
            ("catcatcat", 5),
            ("aaaaaaaaaaaaaaaa", 14),
        ] {
            let exact = exactly(name, distance);
            let text = Text::of(&[name.parse().unwrap()], Distance::from(distance));
            for states in [0, 1, 4] {
                let odds = text.odds(Effort { states, ..ENDLESS });
                assert!(!odds.is_exact(), "{name} with {states}");
                let (low, high) = (odds.low / exact, odds.high / exact);
                assert!(0.4 < low && low < 1.0 + 1e-12, "{name}: {odds:?}, {exact}");
                assert!(
                    1.0 - 1e-12 < high && high < 2.5,
                    "{name}: {odds:?}, {exact}"
                );
            }
        }
    }

    #[test]
    fn what_is_bounded_is_known_well() {
        for (name, distance) in [("thequickbrownf", 10), ("catcatdogcatcatcat", 15)] {
            let odds = odds(name, distance);
            assert!(!odds.is_exact());
            assert!(odds.high < 1.11 * odds.low, "{name}: {odds:?}");
        }
    }

    /// Ten million hashes, always the same ones, so that this passes for ever or never.
    #[test]
    fn real_hashes_match_as_often_as_they_should() {
        const HASHES: u64 = 10_000_000;
        const TURN: u64 = 1 << 16;
        // Three standard deviations are exceeded by one look in 370. With twenty looks, each has a
        // twentieth of that chance (Bonferroni's correction): one in 7,400.
        const DEVIATIONS: f64 = 3.82;
        let looks = [
            ("doctor", 2),
            ("hashfinder", 6),
            ("hash", 1),
            ("Zz9+/", 2),
            ("aa", 0),
            ("aaa", 0),
            ("aaa", 1),
            ("aaaaaaaaaa", 6),
            ("abab", 0),
            ("abab", 1),
            ("abababab", 4),
            ("abcabc", 2),
            ("c=", 0),
            ("bc=", 0),
            ("bcd=", 1),
            ("docs=", 2),
            ("doc-tor", 3),
            ("na\u{ef}ve", 2),
            ("thequickbrownf", 11),
            ("abcdefghijklmnopqrstuvwxyzAc", 23),
        ];
        let queries = looks.map(|(name, distance)| {
            Query::new(name.parse().unwrap(), Distance::from(distance)).unwrap()
        });
        let sought = Sought::new(&queries);
        let filter = sought.filter().unwrap();
        let mut counts = [0_u64; 20];
        for first in (0..HASHES).step_by(TURN as usize) {
            let block = Block::new(4, first, TURN.min(HASHES - first));
            let mut hits = Hits::with_limit(usize::MAX);
            Kernel::best().scan(&block, filter, &mut hits);
            for hit in hits.iter() {
                counts[usize::from(hit.name)] += 1;
            }
        }
        for ((name, distance), count) in looks.into_iter().zip(counts) {
            let odds = odds(name, distance);
            let hashes = HASHES as f64;
            let deviation = |p: f64| DEVIATIONS * (hashes * p * (1.0 - p)).sqrt();
            let least = hashes * odds.low - deviation(odds.low);
            let most = hashes * odds.high + deviation(odds.high);
            eprintln!("{name} at {distance}: {count}, and {least:.0} to {most:.0} expected");
            assert!(count >= 100, "{name} is too rare to tell anything");
            assert!(least <= count as f64 && count as f64 <= most, "{name}");
        }
    }

    /// As above, fifty thousand of each digest and spelling that is looked for.
    #[test]
    fn real_hashes_of_other_spellings_match_as_often_as_they_should() {
        use {Algorithm::*, Anchor::*, Encoding::*};
        const HASHES: u32 = 50_000;
        // One look of 24 in 8,900.
        const DEVIATIONS: f64 = 3.86;
        let looks: [(Spelling, &[&str], u8); 24] = [
            (spelling(Sha1, Hex, Anywhere), &["abc"], 0),
            (spelling(Sha1, Hex, Anywhere), &["0011"], 1),
            (spelling(Sha1, Hex, Anywhere), &["000", "0000", "123"], 0),
            (spelling(Sha1, Hex, Prefix), &["dead", "beef"], 2),
            (spelling(Sha1, Base32, Suffix), &["AB", "cd", "ef"], 0),
            (spelling(Sha1, Base32, Anywhere), &["ababab", "BABABA"], 3),
            (spelling(Sha1, Base64Url, Anywhere), &["-_"], 0),
            (spelling(Sha1, Base64, Suffix), &["ac=", "bg="], 0),
            (spelling(Sha1, Base64, Prefix), &["ab", "ba", "cc"], 0),
            (spelling(Sha256, Base64, Suffix), &["ac=", "b0="], 0),
            (case_sensitive(Sha256, Base64), &["aA"], 0),
            (case_sensitive(Sha256, Base64), &["aaaa"], 2),
            (spelling(Sha256, Base32, Suffix), &["aq===="], 0),
            (spelling(Sha256, Base32, Anywhere), &["a=", "bca"], 0),
            (spelling(Sha256, Base32, Anywhere), &["abcdefgh"], 5),
            (spelling(Sha256, Hex, Anywhere), &["0123456789abcdef"], 12),
            (spelling(Sha256, Hex, Prefix), &["0", "1", "23"], 0),
            (spelling(Sha512, Hex, Anywhere), &["aaaa"], 1),
            (
                spelling(Sha512, Hex, Anywhere),
                &["abcd", "bcda", "cdab"],
                1,
            ),
            (spelling(Sha512, Base64, Suffix), &["Aaag=="], 3),
            (spelling(Sha512, Base32, Anywhere), &["aa", "q="], 0),
            (spelling(Blake3, Base64Url, Anywhere), &["hash", "find"], 2),
            (
                spelling(Blake3, Base32, Prefix),
                &["hash", "fash", "has"],
                2,
            ),
            (spelling(Blake3, Hex, Suffix), &["fe", "bee"], 0),
        ];
        let looks = looks.map(|(spelling, names, distance)| {
            let names = names
                .iter()
                .map(|name| DesiredName::new(name, spelling).unwrap());
            (names.collect::<Vec<_>>(), distance)
        });
        let mut counts = [0_u32; 24];
        for algorithm in Algorithm::ALL {
            for encoding in Encoding::ALL {
                let shown = spelling(algorithm, encoding, Anywhere);
                let looks = looks.iter().zip(&mut counts).filter(|((names, _), _)| {
                    let own = names[0].spelling();
                    own.algorithm == algorithm && own.encoding == encoding
                });
                let mut looks: Vec<_> = looks.collect();
                for secret in 0..if looks.is_empty() { 0 } else { HASHES } {
                    let hashed_name = shown.hashed_name(&secret.to_be_bytes());
                    for ((names, distance), count) in &mut looks {
                        let near = |name: &DesiredName| {
                            name.within(hashed_name.as_bytes(), usize::from(*distance))
                                .is_some()
                        };
                        **count += u32::from(names.iter().any(near));
                    }
                }
            }
        }
        for ((names, distance), count) in looks.into_iter().zip(counts) {
            let odds = Odds::any(&names, Distance::from(distance));
            let hashes = f64::from(HASHES);
            let deviation = |p: f64| DEVIATIONS * (hashes * p * (1.0 - p)).sqrt();
            let least = hashes * odds.low - deviation(odds.low);
            let most = hashes * odds.high + deviation(odds.high);
            let texts: Vec<&str> = names.iter().map(DesiredName::as_str).collect();
            let which = format!("{texts:?} at {distance} in {:?}", names[0].spelling());
            eprintln!("{which}: {count}, and {least:.0} to {most:.0} expected");
            assert!(count >= 100, "{which} is too rare to tell anything");
            assert!(
                least <= f64::from(count) && f64::from(count) <= most,
                "{which}"
            );
        }
    }
}

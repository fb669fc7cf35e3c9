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
        Text::of(names, distance).odds(Effort::DEFAULT)
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
    const CERTAIN: Odds = Odds {
        low: 1.0,
        high: 1.0,
    };

    /// A chance that is not 1, from its bounds.
    fn uncertain(low: f64, high: f64) -> Odds {
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
    const DEFAULT: Effort = Effort {
        states: 1 << 12,
        looks: 1 << 24,
        sums: 1 << 24,
    };
}

/// To find a state's probability costs as much as so many looks at windows.
const LOOKS_PER_STATE: usize = 16;

/// A name that a text may hold.
#[derive(Clone, Debug)]
struct Target<'a> {
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
        let mut targets: Vec<Target<'_>> = Vec::new();
        for name in names {
            assert_eq!(name.spelling(), spelling, "names of different spellings");
            let characters = name.characters();
            // What differs only in a case that does not matter is the same.
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

    /// Whether so many places from the one on show what those from the other on do.
    fn are_alike(&self, one: usize, other: usize, length: usize) -> bool {
        self.places[one..one + length] == self.places[other..other + length]
    }

    /// How likely the text is to hold one of the names.
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
mod tests;

//! How likely it is that one hash matches, and what follows for a search.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::RangeInclusive,
};

use crate::{
    name::{DesiredName, Distance},
    spelling::Chars,
};

/// How many states the exact computation may have between two places of the text.
///
/// It decides how long [`Odds::of`] takes: the worst of 3,472 names and distances that were measured,
/// of 13 to 18 characters with most of them free to differ, take about 30 milliseconds on one core,
/// and twice as many states would take twice as long. Of them every name of up to ten characters is
/// exact, and where the others are not, the upper bound is 1.11 times the lower at most.
const MAX_STATES: usize = 1 << 12;

/// The chance that one hash matches a desired name within a distance.
///
/// A digest is as good as random, and its 28 characters are independent: the first 26 are any of
/// base64's 64, the 27th is any of sixteen, and the last is `=`. A hash matches if *some* window of
/// them is near enough, and windows overlap, so that the chance is not the sum of theirs: for `aaa`
/// at distance 1 the sum is 60% too much.
///
/// It is computed by going over the places one by one with the probability of every *state*: how
/// many characters each window that has begun may still have wrong. A window that is near enough
/// whatever follows ends that text, and one that cannot be any more is forgotten. (That is the Markov
/// chain embedding of Fu and Koutras, "Distribution theory of runs", 1994.) Where there are too many
/// states, it is bounded from both sides. All figures are ranges, from the least value that it can be
/// to the greatest; the two ends are equal where the chance [is exact](Self::is_exact). Rounding
/// costs the 13th digit.
///
/// ```
/// use hashfinder_search::{Distance, Odds};
///
/// let odds = Odds::of(&"doctor".parse()?, Distance::ZERO);
/// assert!(odds.is_exact());
/// assert_eq!(format!("{:.3e}", odds.chance().end()), "1.956e-8");
/// // Half of all searches have ended after 35 million hashes.
/// assert_eq!((odds.hashes_for(0.5).end() / 1e6).round(), 35.0);
/// assert_eq!((odds.chance_after(35_440_958).end() * 1e6).round(), 500_000.0);
/// # Ok::<(), hashfinder_search::NameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Odds {
    low: f64,
    high: f64,
    exact: bool,
}

impl Odds {
    /// The chance that a hash is within `distance` of `name`.
    ///
    /// It is 0 exactly if no hash can ever be, and 1 exactly if every hash is. This takes up to some
    /// tens of milliseconds, and always gives the same.
    #[must_use]
    pub fn of(name: &DesiredName, distance: Distance) -> Odds {
        Text::hashed(name, distance).odds(MAX_STATES)
    }

    /// The probability that one hash matches.
    #[must_use]
    pub fn chance(&self) -> RangeInclusive<f64> {
        self.low..=self.high
    }

    /// Whether the chance is known exactly, and not only its bounds.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.exact
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
}

/// Characters that a place may show and that satisfy the same characters of the name.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Class {
    /// A bit for each character of the name, the first one lowest: whether these satisfy it.
    satisfies: u32,
    /// How likely the place is to show one of them.
    chance: f64,
}

/// What a place that can show the characters of `shown` means to a name.
fn classes(name: &[Chars], shown: Chars) -> Vec<Class> {
    let characters: Vec<u8> = shown.iter().collect();
    let mut classes: Vec<(u32, u32)> = Vec::new();
    for character in &characters {
        let satisfied = name.iter().enumerate();
        let satisfies = satisfied
            .filter(|(_, wanted)| wanted.contains(*character))
            .fold(0, |bits, (at, _)| bits | 1 << at);
        match classes.iter_mut().find(|class| class.0 == satisfies) {
            Some(class) => class.1 += 1,
            None => classes.push((satisfies, 1)),
        }
    }
    let class = |(satisfies, count)| Class {
        satisfies,
        chance: f64::from(count) / characters.len() as f64,
    };
    classes.into_iter().map(class).collect()
}

/// A random text of independent characters, and a name that it may hold.
///
/// Nothing here knows of base64: the tests have smaller texts.
struct Text {
    places: Vec<Vec<Class>>,
    /// The name's.
    length: usize,
    /// How many of the name's characters may differ.
    distance: usize,
    windows: Vec<Window>,
}

/// What can be told of a window before the text is known. The index is how many of its characters
/// have been seen.
struct Window {
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

impl Window {
    fn new(places: &[Vec<Class>], distance: usize) -> Window {
        let length = places.len();
        let (mut least, mut most) = (vec![0; length + 1], vec![0; length + 1]);
        let mut within = vec![vec![1.0; distance + 1]; length + 1];
        for at in (0..length).rev() {
            let satisfy = |class: &Class| class.satisfies >> at & 1 == 1;
            least[at] = least[at + 1] + usize::from(!places[at].iter().any(satisfy));
            most[at] = most[at + 1] + usize::from(!places[at].iter().all(satisfy));
            let agree = places[at].iter().filter(|class| satisfy(class));
            let agree: f64 = agree.map(|class| class.chance).sum();
            for wrong in 0..=distance {
                let fewer = wrong.checked_sub(1);
                let fewer = fewer.map_or(0.0, |fewer| within[at + 1][fewer]);
                within[at][wrong] = agree * within[at + 1][wrong] + (1.0 - agree) * fewer;
            }
        }
        Window {
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

    /// How likely it is to be near enough, before anything was seen.
    fn chance(&self) -> f64 {
        self.within[0].last().copied().unwrap_or_default()
    }
}

/// The probability of each state. The hasher's order is the same in every run, and so are the sums.
type States = HashMap<State, f64, BuildHasherDefault<StateHasher>>;

/// For each window that is open, how many of its characters that were not yet seen may differ, and one
/// more; 0 for all others.
///
/// They lie side by side in fields of `bits` bits: of the windows that are open at a time, no two have
/// the same number modulo `fields`.
type State = u64;

#[derive(Clone, Copy)]
struct Layout {
    fields: usize,
    bits: usize,
}

impl Layout {
    fn new(windows: usize, length: usize) -> Layout {
        // A window that has begun is open only while fewer may differ than are yet to come, so that
        // a field is less than the name is long.
        let layout = Layout {
            fields: windows.min(length),
            bits: if length <= 16 { 4 } else { 5 },
        };
        assert!(
            length <= 1 << layout.bits && layout.fields * layout.bits <= State::BITS as usize,
            "{windows} windows of {length} characters do not fit in a state"
        );
        layout
    }

    fn shift(self, window: usize) -> usize {
        window % self.fields * self.bits
    }

    /// How many more characters of a window may differ, if it is open.
    fn wrong(self, state: State, window: usize) -> Option<usize> {
        let field = state >> self.shift(window) & ((1 << self.bits) - 1);
        (field as usize).checked_sub(1)
    }

    fn with(self, state: State, window: usize, wrong: usize) -> State {
        state | (wrong as State + 1) << self.shift(window)
    }
}

/// A window that is open at a place.
struct Open {
    window: usize,
    /// Which of its characters stands there.
    at: usize,
    /// How many may differ from there on.
    wrong: usize,
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

impl Text {
    /// A hashed name that may hold the desired one.
    fn hashed(name: &DesiredName, distance: Distance) -> Text {
        let spelling = name.spelling();
        let places =
            (0..spelling.text_len()).map(|at| classes(name.characters(), spelling.place(at)));
        let distance = usize::from(distance.get());
        Text::new(places.collect(), name.character_count(), distance)
    }

    fn new(places: Vec<Vec<Class>>, length: usize, distance: usize) -> Text {
        let windows = places.windows(length);
        let windows = windows.map(|places| Window::new(places, distance));
        Text {
            windows: windows.collect(),
            places,
            length,
            distance,
        }
    }

    /// How likely the text is to hold the name, with at most so many states at a time.
    fn odds(&self, max_states: usize) -> Odds {
        let exactly = |chance| Odds {
            low: chance,
            high: chance,
            exact: true,
        };
        let sure = |window: &Window| matches!(window.verdict(0, self.distance), Verdict::Near);
        if self.windows.iter().any(sure) {
            // Not left to the sums, which rounding may bring to a little less. No other name is sure:
            // there is a hashed name of which no character but the `=` satisfies a window's, for all
            // that a name wants is 56 of the 64 at most, and at the 27th place, which two windows
            // reach at most, two of the sixteen.
            return exactly(1.0);
        }
        let (low, gap) = self.sweep(max_states);
        let Some(gap) = gap else {
            return exactly(low.min(1.0));
        };
        let sum: f64 = self.windows.iter().map(Window::chance).sum();
        let high = (low + gap).min(sum).min(1.0);
        Odds {
            low: low.max(sum - self.pairs()).min(high),
            high,
            exact: false,
        }
    }

    /// The chance, and how much more it may be if there were too many states.
    ///
    /// Then those are forgotten about which least is left to know. Of such a state the chance is at
    /// least that of its best window, and at most the sum of all its windows'; what is lost is the
    /// difference, as often as the state occurs.
    fn sweep(&self, max_states: usize) -> (f64, Option<f64>) {
        let layout = Layout::new(self.windows.len(), self.length);
        let (mut low, mut gap) = (0.0, None);
        let mut states = States::from_iter([(0, 1.0)]);
        // Its memory is used again at every place.
        let mut next = States::default();
        let mut open = Vec::with_capacity(layout.fields);
        for place in 0..self.places.len() {
            for (state, probability) in states.drain() {
                self.open_at(place, state, layout, &mut open);
                let matter = open.iter().fold(0, |bits, open| bits | 1 << open.at);
                // Most characters do nothing for a state's few windows, and need one branch.
                let mut others = 0.0;
                for class in &self.places[place] {
                    if class.satisfies & matter == 0 {
                        others += class.chance;
                        continue;
                    }
                    let probability = probability * class.chance;
                    match self.step(&open, class.satisfies, layout) {
                        Some(state) => *next.entry(state).or_default() += probability,
                        None => low += probability,
                    }
                }
                if others > 0.0 {
                    match self.step(&open, 0, layout) {
                        Some(state) => *next.entry(state).or_default() += probability * others,
                        None => low += probability * others,
                    }
                }
            }
            std::mem::swap(&mut states, &mut next);
            if states.len() > max_states {
                let mut looked_at = self.look_at(&states, place + 1, layout);
                looked_at.select_nth_unstable_by(max_states, |a, b| b.gap.total_cmp(&a.gap));
                for forgotten in looked_at.drain(max_states..) {
                    low += forgotten.low;
                    gap = Some(gap.unwrap_or(0.0) + forgotten.gap);
                }
                states.clear();
                states.extend(looked_at.iter().map(|kept| (kept.state, kept.probability)));
            }
        }
        (low, gap)
    }

    /// The windows of a state that are open at a place, with the one that begins there.
    fn open_at(&self, place: usize, state: State, layout: Layout, open: &mut Vec<Open>) {
        open.clear();
        for window in self.begun(place) {
            open.extend(layout.wrong(state, window).map(|wrong| Open {
                window,
                at: place - window,
                wrong,
            }));
        }
        if let Some(begins) = self.windows.get(place)
            && matches!(begins.verdict(0, self.distance), Verdict::Open)
        {
            open.push(Open {
                window: place,
                at: 0,
                wrong: self.distance,
            });
        }
    }

    /// The windows that have begun before a place and reach it.
    fn begun(&self, place: usize) -> std::ops::Range<usize> {
        (place + 1).saturating_sub(self.length)..place.min(self.windows.len())
    }

    /// The state that follows on a character which satisfies these of the name's; none if a window is
    /// now near enough.
    fn step(&self, open: &[Open], satisfies: u32, layout: Layout) -> Option<State> {
        let mut next = 0;
        for open in open {
            let differs = satisfies >> open.at & 1 == 0;
            let Some(wrong) = open.wrong.checked_sub(usize::from(differs)) else {
                continue;
            };
            match self.windows[open.window].verdict(open.at + 1, wrong) {
                Verdict::Near => return None,
                Verdict::Far => {}
                Verdict::Open => next = layout.with(next, open.window, wrong),
            }
        }
        Some(next)
    }

    /// What is known of the states before a place.
    fn look_at(&self, states: &States, place: usize, layout: Layout) -> Vec<Forgettable> {
        let to_come = self.windows.iter().skip(place).map(Window::chance);
        let (best_to_come, all_to_come) = to_come.fold((0.0, 0.0), |(best, all), chance| {
            (f64::max(best, chance), all + chance)
        });
        let look = |(&state, &probability): (&State, &f64)| {
            let (mut best, mut all) = (best_to_come, all_to_come);
            for window in self.begun(place) {
                if let Some(wrong) = layout.wrong(state, window) {
                    let chance = self.windows[window].within[place - window][wrong];
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

    /// The sum over all pairs of windows of how likely both are near enough. Less it, the sum over the
    /// windows is at most the chance: Bonferroni's second inequality (Feller, "An Introduction to
    /// Probability Theory and Its Applications", volume I, IV.5).
    fn pairs(&self) -> f64 {
        let mut sum = 0.0;
        for first in 0..self.windows.len() {
            for second in first + 1..self.windows.len() {
                sum += self.both(first, second);
            }
        }
        sum
    }

    /// How likely two windows are to be near enough both.
    fn both(&self, first: usize, second: usize) -> f64 {
        if second >= first + self.length {
            // They have no place in common.
            return self.windows[first].chance() * self.windows[second].chance();
        }
        // How likely it is that so many characters differ of the one, and of the other.
        let side = self.distance + 1;
        let mut differ = vec![0.0; side * side];
        differ[0] = 1.0;
        for place in first..second + self.length {
            // Of all classes it matters only which of the two they differ from.
            let mut chances = [0.0; 4];
            for class in &self.places[place] {
                let differs = |window: usize| {
                    let at = place.checked_sub(window).filter(|at| *at < self.length);
                    usize::from(at.is_some_and(|at| class.satisfies >> at & 1 == 0))
                };
                chances[2 * differs(first) + differs(second)] += class.chance;
            }
            let mut next = vec![0.0; side * side];
            for (which, chance) in chances.into_iter().enumerate() {
                let (down, right) = (which / 2, which % 2);
                for row in 0..side - down {
                    for column in 0..side - right {
                        next[(row + down) * side + column + right] +=
                            differ[row * side + column] * chance;
                    }
                }
            }
            differ = next;
        }
        differ.iter().sum()
    }
}

/// Spreads states over a table: the two halves of a product with an odd number (Knuth, "The Art of
/// Computer Programming", volume 3, 6.4), which the standard library's hasher would take five times
/// as long for.
#[derive(Default)]
struct StateHasher(u64);

impl Hasher for StateHasher {
    fn write_u64(&mut self, state: u64) {
        // 2^64 over the golden ratio.
        let product = u128::from(state) * 0x9e37_79b9_7f4a_7c15;
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
    use crate::{query::Query, sought::Sought};
    use hashfinder_kernels::Kernel;
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

    /// Small texts of any kind: up to seven places of up to four classes.
    fn texts() -> impl Strategy<Value = (Vec<Vec<Class>>, usize, usize)> {
        let class = (0..32_u32, 1..5_u32);
        let place = proptest::collection::vec(class, 1..=4).prop_map(|classes| {
            let all: u32 = classes.iter().map(|(_, weight)| weight).sum();
            let class = |(satisfies, weight)| Class {
                satisfies,
                chance: f64::from(weight) / f64::from(all),
            };
            classes.into_iter().map(class).collect::<Vec<_>>()
        });
        let places = proptest::collection::vec(place, 1..=7);
        (places, 1..=5_usize, 0..5_usize).prop_map(|(places, length, distance)| {
            let length = length.min(places.len());
            (places, length, distance)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn it_is_what_enumeration_gives((places, length, distance) in texts()) {
            let expected = by_enumeration(&places, length, distance);
            let text = Text::new(places, length, distance);
            let odds = text.odds(usize::MAX);
            prop_assert!(odds.is_exact());
            prop_assert!((odds.low - expected).abs() < 1e-12, "{odds:?}, and not {expected}");
        }

        #[test]
        fn the_bounds_contain_it(
            (places, length, distance) in texts(),
            max_states in 0..4_usize,
        ) {
            let expected = by_enumeration(&places, length, distance);
            let odds = Text::new(places, length, distance).odds(max_states);
            prop_assert!(odds.low < expected + 1e-12, "{odds:?}, and not {expected}");
            prop_assert!(expected < odds.high + 1e-12, "{odds:?}, and not {expected}");
        }

        #[test]
        fn pairs_are_what_enumeration_gives((places, length, distance) in texts()) {
            let text = Text::new(places.clone(), length, distance);
            for second in 1..text.windows.len() {
                for first in 0..second {
                    let expected = both_by_enumeration(&places, length, distance, [first, second]);
                    prop_assert!((text.both(first, second) - expected).abs() < 1e-12);
                }
            }
        }
    }

    /// The chance from every text there is.
    fn by_enumeration(places: &[Vec<Class>], length: usize, distance: usize) -> f64 {
        let any = |near: &dyn Fn(usize) -> bool| (0..=places.len() - length).any(near);
        enumerate(places, length, distance, any)
    }

    /// The chance that two windows are near enough both, from every text there is.
    fn both_by_enumeration(
        places: &[Vec<Class>],
        length: usize,
        distance: usize,
        windows: [usize; 2],
    ) -> f64 {
        let both = |near: &dyn Fn(usize) -> bool| windows.into_iter().all(near);
        enumerate(places, length, distance, both)
    }

    /// The chance of the texts that are `counted`, which is asked with what tells whether a window is
    /// near enough.
    fn enumerate(
        places: &[Vec<Class>],
        length: usize,
        distance: usize,
        counted: impl Fn(&dyn Fn(usize) -> bool) -> bool,
    ) -> f64 {
        let mut chance = 0.0;
        let texts: usize = places.iter().map(Vec::len).product();
        for mut text in 0..texts {
            let mut probability = 1.0;
            let mut shown = Vec::new();
            for classes in places {
                let class = classes[text % classes.len()];
                text /= classes.len();
                probability *= class.chance;
                shown.push(class.satisfies);
            }
            let near = |window: usize| {
                let differs = |at: &usize| shown[window + at] >> at & 1 == 0;
                (0..length).filter(differs).count() <= distance
            };
            if counted(&near) {
                chance += probability;
            }
        }
        chance
    }

    #[test]
    fn the_bounds_of_names_contain_their_chances() {
        for (name, distance) in [
            ("doctor", 2),
            ("doctor", 4),
            ("hashfinder", 8),
            ("abababab", 4),
            ("thequickbrownfoxjum", 4),
            ("aaaaaaaaaaaaaaaa", 14),
        ] {
            let exact = exactly(name, distance);
            let text = Text::hashed(&name.parse().unwrap(), Distance::from(distance));
            for max_states in [0, 1, 4] {
                let odds = text.odds(max_states);
                assert!(!odds.is_exact(), "{name} with {max_states}");
                let (low, high) = (odds.low / exact, odds.high / exact);
                assert!(0.2 < low && low < 1.0 + 1e-12, "{name}: {odds:?}, {exact}");
                assert!(
                    1.0 - 1e-12 < high && high < 6.0,
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
        let names = looks.map(|(name, _)| name.parse::<DesiredName>().unwrap());
        let queries: Vec<Query> = names
            .into_iter()
            .zip(looks)
            .map(|(name, (_, distance))| Query::new(name, Distance::from(distance)).unwrap())
            .collect();
        let sought = Sought::new(&queries);
        let all = queries[0].keyspace();
        let first = all.first_of_length(4).unwrap();
        let mut counts = [0_u64; 20];
        for start in (first..first + HASHES).step_by(TURN as usize) {
            let turn = start..(start + TURN).min(first + HASHES);
            let mut hits = Vec::new();
            sought.scan(Kernel::best(), turn, usize::MAX, &mut hits);
            for hit in hits {
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
}

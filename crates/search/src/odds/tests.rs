//! Tests of the odds against other ways to compute them.

use super::*;
use crate::{
    matcher::Matcher,
    query::Query,
    spelling::{Algorithm, Anchor, Encoding, Spelling},
};
use hashfinder_kernels::{Block, Hits, Kernel};
use proptest::prelude::*;

fn odds(name: &str, distance: u8) -> Odds {
    Odds::of(&name.parse().unwrap(), Distance::from(distance))
}

/// Returns the chance, which must be exact.
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

/// Returns the odds of any of some names in a spelling.
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
    // `+` can occur only in the first 26 places.
    same("+", 0, 1.0 - (63.0_f64 / 64.0).powi(26));
    // The 27th place can show A, but neither a nor b nor B.
    same("a", 0, 1.0 - (31.0_f64 / 32.0).powi(26) * (15.0 / 16.0));
    same("b", 0, 1.0 - (31.0_f64 / 32.0).powi(26));
    // These can occur only at the end.
    same("c=", 0, 1.0 / 16.0);
    same("ac=", 0, 1.0 / 16.0 / 32.0);
    // Only its second character can agree, at the second place or after it.
    same("=a", 1, 1.0 - (31.0_f64 / 32.0).powi(25) * (15.0 / 16.0));
    // There is only one window, and its last character always agrees.
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
        // At most one of 128 characters differs.
        same(
            spelling(Sha512, Hex, anchor),
            &[&long],
            1,
            16_f64.powi(-128) * (1.0 + 128.0 * 15.0),
        );
    }
    let any = 1.0 - (15.0_f64 / 16.0).powi(64);
    same(spelling(Blake3, Hex, Anywhere), &["a"], 0, any);
    // Base32 has only capital letters, and the last place of SHA-1 is not special.
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
    // The character before the padding is one of sixteen. Before that one, a letter agrees with two
    // of 64 digits, or with one if case matters.
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
    // If the last digit holds two bits of the digest, it is one of four; if it holds one bit, one
    // of two.
    same(spelling(Sha512, Base64, Suffix), &["g=="], 0, 1.0 / 4.0);
    same(spelling(Sha512, Base32, Suffix), &["y="], 0, 1.0 / 4.0);
    same(spelling(Sha256, Base32, Suffix), &["q===="], 0, 1.0 / 2.0);
    same(spelling(Blake3, Base32, Suffix), &["bq===="], 0, 1.0 / 64.0);
    // The last digit is A or Q, and each matches one of the names.
    assert_eq!(
        exactly_in(spelling(Blake3, Base32, Anywhere), &["a", "q===="], 0),
        1.0
    );
    // Equal names count once, and the chances of names that exclude each other add up.
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

/// No single window is always near enough, but every hash matches.
#[test]
fn a_match_can_be_certain_without_a_certain_window() {
    use {Algorithm::*, Anchor::*, Encoding::*};
    // Whatever character a place in the middle shows, it agrees with the name in one of the
    // windows.
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

/// The chance is less than 1, and must stay so although it rounds to 1.
#[test]
fn a_chance_that_rounds_to_1_stays_below_1() {
    let hex = spelling(Algorithm::Sha512, Encoding::Hex, Anchor::Anywhere);
    let chance = exactly_in(hex, &["01234"], 4);
    assert!(1.0 - 1e-15 < chance && chance < 1.0);
}

/// The effort does not suffice for most pairs of the names' windows.
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
fn names_of_different_spellings_panic() {
    let hex = spelling(Algorithm::Sha1, Encoding::Hex, Anchor::Anywhere);
    let names = ["a".parse().unwrap(), DesiredName::new("a", hex).unwrap()];
    let _ = Odds::any(&names, Distance::ZERO);
}

#[test]
fn impossible_and_certain_matches_have_exact_odds() {
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
fn tiny_chances_keep_their_precision() {
    let chance = exactly("abcdefghijklmnopqrst", 0);
    assert!(chance < 1e-28);
    let odds = odds("abcdefghijklmnopqrst", 0);
    let median = *odds.hashes_for(0.5).end();
    assert!((median * chance / std::f64::consts::LN_2 - 1.0).abs() < 1e-12);
    let after = *odds.chance_after(1_000_000_000).end();
    assert!((after / chance / 1e9 - 1.0).abs() < 1e-12);
}

#[test]
fn the_greatest_distances_are_nearly_certain() {
    // All characters of the only window differ with a chance of (31/32)^26 * 15/16.
    let name = "abcdefghijklmnopqrstuvwxyzab";
    let chance = exactly(name, 27);
    // The last character of the name never agrees with '=', and the 27th place is A one time in
    // sixteen.
    let expected = 1.0 - (31.0_f64 / 32.0).powi(26) * (15.0 / 16.0);
    assert!((chance / expected - 1.0).abs() < 1e-12, "{chance}");
}

/// Names of 1 to 28 characters: arbitrary, of one or two different characters, and periodic.
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
    fn a_greater_distance_is_at_least_as_likely(name in names(), distance in 0..28_u8) {
        let (near, far) = (odds(&name, distance), odds(&name, distance + 1));
        // If a chance is only bounded, the bounds merely must not contradict the claim.
        let (near, far) = (near.chance(), far.chance());
        prop_assert!(0.0 <= *near.start() && near.start() <= near.end() && *far.end() <= 1.0);
        prop_assert!(*near.start() <= far.end() * (1.0 + 1e-12), "{near:?} {far:?}");
        if near.start() == near.end() && far.start() == far.end() {
            prop_assert!(*near.end() <= far.start() * (1.0 + 1e-12), "{near:?} {far:?}");
        }
    }

    #[test]
    fn the_chance_is_0_if_the_query_is_impossible(name in names(), distance in 0..6_u8) {
        let parsed: DesiredName = name.parse().unwrap();
        let possible = parsed.least_distance() <= distance;
        prop_assert_eq!(*odds(&name, distance).chance().start() > 0.0, possible);
        prop_assert_eq!(*odds(&name, distance).chance().end() > 0.0, possible);
    }
}

/// A small text: the characters of its places, the names, their windows, and the distance.
#[derive(Clone, Debug)]
struct Small {
    places: Vec<Chars>,
    names: Vec<(Vec<Chars>, RangeInclusive<usize>)>,
    distance: usize,
}

impl Small {
    fn text(&self) -> Text {
        let names = self.names.iter();
        let targets = names.map(|(characters, windows)| Target {
            characters,
            windows: windows.clone(),
        });
        let targets: Vec<_> = targets.collect();
        Text::new(&self.places, &targets, self.distance)
    }

    /// Returns the fraction of texts for which `counted` returns `true`. `counted` gets a function
    /// that returns whether a window of a name is near enough.
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

    /// Returns the chance, by enumerating every text.
    fn chance(&self) -> f64 {
        self.enumerate(|near| {
            let mut names = self.names.iter();
            names.any(|(name, windows)| windows.clone().any(|start| near(name, start)))
        })
    }
}

/// Texts of up to seven places, each of which can show one to four characters, with one to three
/// names. The names may be anywhere, only at the beginning, or only at the end.
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
    fn the_chance_matches_enumeration(small in small_texts()) {
        let expected = small.chance();
        let odds = small.text().odds(ENDLESS);
        prop_assert!(odds.is_exact());
        prop_assert!((odds.low - expected).abs() < 1e-12, "{odds:?}, expected {expected}");
        // The result is exactly 0 or 1 if and only if the chance is.
        prop_assert_eq!(odds.low == 0.0, expected == 0.0);
        prop_assert_eq!(odds.low == 1.0, expected == 1.0);
    }

    #[test]
    fn the_bounds_contain_the_chance(small in small_texts(), states in 0..4_usize, sums in 0..400_usize) {
        let expected = small.chance();
        let effort = Effort { states, sums, ..ENDLESS };
        let odds = small.text().odds(effort);
        prop_assert!(odds.low < expected + 1e-12, "{odds:?}, expected {expected}");
        prop_assert!(expected < odds.high + 1e-12, "{odds:?}, expected {expected}");
        prop_assert_eq!(odds.low == 0.0, expected == 0.0);
        prop_assert!(odds.low < 1.0 || expected == 1.0);
    }

    /// Only these bounds are used if a state has too few bits for all windows.
    #[test]
    fn the_pair_bounds_contain_the_chance(small in small_texts(), sums in 0..2_000_usize) {
        let expected = small.chance();
        let (low, high) = small.text().pairs(sums).bounds();
        prop_assert!(low < expected + 1e-12, "{low}, expected {expected}");
        prop_assert!(expected < high + 1e-12, "{high}, expected {expected}");
    }

    #[test]
    fn pairs_match_enumeration(small in small_texts()) {
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
fn bounds_are_tight() {
    for (name, distance) in [("thequickbrownf", 10), ("catcatdogcatcatcat", 15)] {
        let odds = odds(name, distance);
        assert!(!odds.is_exact());
        assert!(odds.high < 1.11 * odds.low, "{name}: {odds:?}");
    }
}

/// Ten million hashes, always the same ones, so the test either always passes or always fails.
#[test]
fn real_hashes_match_as_often_as_they_should() {
    const HASHES: u64 = 10_000_000;
    const TURN: u64 = 1 << 16;
    // By chance, one look in 370 exceeds three standard deviations. With twenty looks, each is
    // allowed a twentieth of that probability (Bonferroni's correction): one in 7,400.
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
    let matcher = Matcher::new(&queries);
    let filter = matcher.filter().unwrap();
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
        eprintln!("{name} at {distance}: {count}, expected {least:.0} to {most:.0}");
        assert!(count >= 100, "{name} is too rare to test");
        assert!(least <= count as f64 && count as f64 <= most, "{name}");
    }
}

/// The same test, with fifty thousand hashes of each algorithm and encoding in the list.
#[test]
fn real_hashes_of_other_spellings_match_as_often_as_they_should() {
    use {Algorithm::*, Anchor::*, Encoding::*};
    const HASHES: u32 = 50_000;
    // With 24 looks, each is allowed a probability of one in 8,900.
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
        eprintln!("{which}: {count}, expected {least:.0} to {most:.0}");
        assert!(count >= 100, "{which} is too rare to test");
        assert!(
            least <= f64::from(count) && f64::from(count) <= most,
            "{which}"
        );
    }
}

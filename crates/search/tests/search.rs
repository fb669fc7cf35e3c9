//! Compares the engine with an oracle that tries one secret after another, on plain strings.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::Waker,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, Backend, Candidate, Checkpoint, Client, Cursor, DesiredName,
    Distance, Encoding, Engine, Event, Found, Index, Kernel, Keyspace, Matcher, Outcome, Query,
    Report, Search, Spelling,
};
use proptest::prelude::*;
use sha1::Digest;

fn clock() -> impl Fn() -> Duration + Send + Sync + 'static {
    let started = Instant::now();
    move || started.elapsed()
}

/// Engines with 1, 2, 3 and 8 workers for every kernel. Most tests share them, so their searches
/// also run next to each other.
fn engines() -> &'static [Engine] {
    static ENGINES: OnceLock<Vec<Engine>> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let start = |kernel| {
            let workers = [1, 2, 3, 8].into_iter();
            workers.map(move |workers| Engine::start(workers, kernel, clock()).unwrap())
        };
        Kernel::all().flat_map(start).collect()
    })
}

/// Returns all candidates that a search reports, and its outcome.
fn run(search: &mut Search) -> (Vec<Candidate>, Outcome) {
    let mut reported = Vec::new();
    loop {
        match search.blocking_next() {
            Event::Candidates(candidates) => {
                assert!(!candidates.is_empty());
                reported.extend(candidates);
            }
            Event::Ended(outcome) => return (reported, outcome),
        }
    }
}

/// Replaces a secret with the next one in enumeration order, counting in base 256 on a plain
/// vector.
fn increment(secret: &mut Vec<u8>) {
    for byte in secret.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return;
        }
    }
    secret.insert(0, 0);
}

fn oracle_distance(secret: &[u8], name: &str) -> (u8, u8) {
    let hashed = BASE64_STANDARD
        .encode(sha1::Sha1::digest(secret))
        .to_lowercase();
    let hashed: Vec<char> = hashed.chars().collect();
    let name: Vec<char> = name.to_lowercase().chars().collect();
    (0..=hashed.len() - name.len())
        .map(|window| {
            let differ = (0..name.len()).filter(|at| hashed[window + at] != name[*at]);
            (differ.count() as u8, window as u8)
        })
        .min()
        .unwrap()
}

#[derive(Debug, PartialEq)]
enum Oracle {
    Ideal(Candidate),
    BudgetSpent,
}

fn oracle(
    name: &str,
    ideal: u8,
    interesting: u8,
    start: u64,
    budget: u64,
) -> (Vec<Candidate>, Oracle) {
    let mut reported = Vec::new();
    let mut secret = Keyspace::default().secret(start);
    for index in start..start + budget {
        let (distance, window) = oracle_distance(&secret, name);
        let candidate = Candidate {
            index,
            name: 0,
            distance,
            window,
        };
        if distance <= ideal {
            return (reported, Oracle::Ideal(candidate));
        }
        if distance < interesting {
            reported.push(candidate);
        }
        increment(&mut secret);
    }
    (reported, Oracle::BudgetSpent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// The answer and the cursor match the oracle's, for any number of workers.
    #[test]
    fn answers_match_the_oracle(
        name in "[A-Za-z0-9+/]{1,6}|[a-z]{7,28}|[a-z.=]{1,4}",
        ideal in prop_oneof![9 => 0..6_u8, 1 => 0..=30_u8],
        interesting in prop_oneof![9 => 0..9_u8, 1 => 0..=30_u8],
        start in prop_oneof![Just(0), 0..1_000_u64, 60_000..70_000_u64, 16_800_000..16_900_000_u64],
        budget in 1..6_000_u64,
    ) {
        let Ok(query) = Query::new(name.parse().unwrap(), Distance::from(ideal)) else {
            let (_, end) = oracle(&name, ideal, 0, start, budget);
            prop_assert_eq!(end, Oracle::BudgetSpent);
            return Ok(());
        };
        let whole = query
            .interesting(Distance::from(interesting))
            .starting_at(start);
        let query = whole.clone().hash_budget(NonZeroU64::new(budget).unwrap());
        let (expected, end) = oracle(&name, ideal, interesting, start, budget);
        let expected_outcome = match end {
            Oracle::Ideal(candidate) => Outcome::Ideal(candidate),
            Oracle::BudgetSpent => Outcome::BudgetSpent(Cursor::new(&whole, start + budget)),
        };
        for engine in engines() {
            let (reported, outcome) = run(&mut engine.search(Client::default(), query.clone(), |_| ()).unwrap());
            prop_assert_eq!(&reported, &expected, "{} workers", engine.workers());
            prop_assert_eq!(&outcome, &expected_outcome, "{} workers", engine.workers());
        }
    }

    /// A search that is stopped anywhere and resumed, any number of times, reports nothing twice
    /// and skips nothing.
    #[test]
    fn a_stopped_search_resumes_from_its_cursor(
        name in "[a-z]{3,5}",
        interesting in 2..4_u8,
        stops in proptest::collection::vec(0..3_usize, 1..6),
    ) {
        let query = Query::new(name.parse().unwrap(), Distance::ZERO)
            .unwrap()
            .interesting(Distance::from(interesting));
        let budget = 40_000;
        let (expected, end) = oracle(&name, 0, interesting, 0, budget);
        let engine = &engines()[1];
        let mut reported = Vec::new();
        let mut next = query;
        let mut stops = stops.into_iter();
        let outcome = loop {
            let left = NonZeroU64::new(budget - next.start()).unwrap();
            let mut search = engine.search(Client::default(), next.clone().hash_budget(left), |_| ()).unwrap();
            if let Some(batches) = stops.next() {
                for _ in 0..batches {
                    if let Event::Candidates(more) = search.blocking_next() {
                        reported.extend(more);
                    }
                }
                search.stopper().stop();
            }
            let (more, outcome) = run(&mut search);
            reported.extend(more);
            match outcome {
                // Users pass the cursor from one search to the next as text.
                Outcome::Stopped(cursor) => {
                    next = cursor.to_string().parse::<Cursor>().unwrap().query();
                }
                outcome => break outcome,
            }
        };
        prop_assert_eq!(reported, expected);
        match (outcome, end) {
            (Outcome::Ideal(found), Oracle::Ideal(candidate)) => prop_assert_eq!(found, candidate),
            (Outcome::BudgetSpent(cursor), Oracle::BudgetSpent) => {
                prop_assert_eq!(cursor.frontier(), budget);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// A query in plain values.
#[derive(Clone, Debug)]
struct PlainQuery {
    names: Vec<String>,
    spelling: Spelling,
    alphabet: Vec<u8>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    ideal: u8,
    interesting: u8,
    start: u64,
    budget: u64,
}

impl PlainQuery {
    fn query(&self) -> Option<Query> {
        let names = self.names.iter();
        let names = names.map(|name| DesiredName::new(name, self.spelling).unwrap());
        let alphabet = Alphabet::given(&self.alphabet).unwrap();
        let keyspace = Keyspace::new(&self.prefix, alphabet, &self.suffix).unwrap();
        let query = Query::any(names, Distance::from(self.ideal)).ok()?;
        let query = query.among(keyspace).starting_at(self.start);
        Some(query.interesting(Distance::from(self.interesting)))
    }

    fn hashed_name(&self, secret: &[u8]) -> String {
        let digest = match self.spelling.algorithm {
            Algorithm::Sha1 => sha1::Sha1::digest(secret).to_vec(),
            Algorithm::Sha256 => sha2::Sha256::digest(secret).to_vec(),
            Algorithm::Sha512 => sha2::Sha512::digest(secret).to_vec(),
            Algorithm::Blake3 => blake3::hash(secret).as_bytes().to_vec(),
        };
        match self.spelling.encoding {
            Encoding::Base64 => BASE64_STANDARD.encode(digest),
            Encoding::Base64Url => BASE64_STANDARD
                .encode(digest)
                .replace('+', "-")
                .replace('/', "_"),
            Encoding::Hex => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            Encoding::Base32 => {
                let bits: String = digest.iter().map(|byte| format!("{byte:08b}")).collect();
                let digits = bits.as_bytes().chunks(5).map(|five| {
                    let five = format!("{:0<5}", std::str::from_utf8(five).unwrap());
                    let value = u8::from_str_radix(&five, 2).unwrap();
                    char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(value)])
                });
                let digits: String = digits.collect();
                let length = digits.len().next_multiple_of(8);
                format!("{digits:=<length$}")
            }
        }
    }

    /// Returns the smallest distance, the first name that has it, and its first window.
    fn nearest(&self, secret: &[u8]) -> (u8, u8, u8) {
        let fold = |text: &str| -> Vec<char> {
            let text = text.chars();
            if self.spelling.case_sensitive {
                text.collect()
            } else {
                text.map(|c| c.to_ascii_lowercase()).collect()
            }
        };
        let hashed = fold(&self.hashed_name(secret));
        let each = (0..).zip(&self.names).flat_map(|(number, name)| {
            let name = fold(name);
            let last = hashed.len() - name.len();
            let windows = match self.spelling.anchor {
                Anchor::Anywhere => 0..=last,
                Anchor::Prefix => 0..=0,
                Anchor::Suffix => last..=last,
            };
            let hashed = &hashed;
            windows.map(move |window| {
                let differ = (0..name.len()).filter(|at| hashed[window + at] != name[*at]);
                (differ.count() as u8, number, window as u8)
            })
        });
        each.min().unwrap()
    }

    /// Tries one secret after another, counted on plain vectors. Returns the reported candidates
    /// and the outcome.
    fn answer(&self) -> (Vec<Candidate>, Outcome) {
        let query = self.query().unwrap();
        let mut searched = Vec::new();
        let mut reported = Vec::new();
        for index in 0..self.start + self.budget {
            if index >= self.start {
                let digits = searched.iter().map(|digit: &usize| self.alphabet[*digit]);
                let digits: Vec<u8> = digits.collect();
                let secret = [&*self.prefix, &digits, &*self.suffix].concat();
                let (distance, name, window) = self.nearest(&secret);
                let candidate = Candidate {
                    index,
                    name,
                    distance,
                    window,
                };
                if distance <= self.ideal {
                    return (reported, Outcome::Ideal(candidate));
                }
                if distance < self.interesting {
                    reported.push(candidate);
                }
            }
            // Advances to the next secret.
            let carries = searched.iter_mut().rev().all(|digit| {
                *digit = (*digit + 1) % self.alphabet.len();
                *digit == 0
            });
            if carries {
                searched.insert(0, 0);
            }
            if searched.len() > 64 {
                return (reported, Outcome::Exhausted);
            }
        }
        let cursor = Cursor::new(&query, self.start + self.budget);
        (reported, Outcome::BudgetSpent(cursor))
    }
}

fn plain_query() -> impl Strategy<Value = PlainQuery> {
    let spelling = (
        proptest::sample::select(Algorithm::ALL.to_vec()),
        proptest::sample::select(Encoding::ALL.to_vec()),
        proptest::sample::select(Anchor::ALL.to_vec()),
        any::<bool>(),
    );
    let spelling = prop_oneof![
        1 => Just((Algorithm::Sha1, Encoding::Base64, Anchor::Anywhere, false)),
        3 => spelling,
    ];
    let around = || proptest::collection::vec(any::<u8>(), 0..70);
    let keyspace = prop_oneof![
        Just(((0..=255).collect(), Vec::new(), Vec::new())),
        (
            prop_oneof![
                Just((0..=255).collect::<Vec<u8>>()),
                Just(b"0123456789".to_vec()),
                Just(b"ba".to_vec()),
                Just(b"x".to_vec()),
            ],
            around(),
            around(),
        ),
    ];
    (
        proptest::collection::vec("[a-f0-9]{1,5}|[A-Z2-7]{1,4}|[a-z_+=-]{1,3}", 1..4),
        spelling,
        keyspace,
        0..4_u8,
        0..5_u8,
        prop_oneof![Just(0), 0..3_000_u64],
        1..3_000_u64,
    )
        .prop_map(
            |(names, spelling, keyspace, ideal, interesting, start, budget)| {
                let (algorithm, encoding, anchor, case_sensitive) = spelling;
                let (alphabet, prefix, suffix) = keyspace;
                PlainQuery {
                    names,
                    spelling: Spelling {
                        algorithm,
                        encoding,
                        anchor,
                        case_sensitive,
                    },
                    alphabet,
                    prefix,
                    suffix,
                    ideal,
                    interesting,
                    start,
                    budget,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// For any query, and next to any other searches, the answer matches the oracle's.
    #[test]
    fn answers_to_any_queries_match_the_oracle(
        plain in proptest::collection::vec(plain_query(), 1..6),
        alike in any::<bool>(),
        engine in 0..engines().len(),
    ) {
        let first = plain[0].clone();
        let mut plain = plain;
        if alike {
            // The same secrets and digests, so that the searches can share slices.
            for other in &mut plain {
                other.spelling.algorithm = first.spelling.algorithm;
                other.spelling.encoding = first.spelling.encoding;
                other.alphabet.clone_from(&first.alphabet);
                other.prefix.clone_from(&first.prefix);
                other.suffix.clone_from(&first.suffix);
            }
        }
        plain.retain(|plain| plain.query().is_some());
        let engine = &engines()[engine];
        let begin = |plain: &PlainQuery| {
            let query = plain.query().unwrap();
            let query = query.hash_budget(NonZeroU64::new(plain.budget).unwrap());
            engine.search(Client::default(), query, |_| ()).unwrap()
        };
        let mut searches: Vec<Search> = plain.iter().map(begin).collect();
        for (plain, search) in plain.iter().zip(&mut searches) {
            let (reported, outcome) = run(search);
            let expected = plain.answer();
            prop_assert_eq!(&reported, &expected.0, "{:?}", plain);
            prop_assert_eq!(&outcome, &expected.1, "{:?}", plain);
            if let Outcome::Ideal(found) = outcome {
                let query = plain.query().unwrap();
                let secret = query.keyspace().secret(found.index);
                prop_assert_eq!(query.nearest(&secret), Some(found));
                let hashed_name = query.spelling().hashed_name(&secret);
                prop_assert_eq!(hashed_name.as_str(), plain.hashed_name(&secret));
            }
        }
    }
}

/// Cursors that users have saved must keep their meaning forever.
#[test]
fn saved_cursors_keep_their_meaning() {
    let doctor = Query::new("doctor".parse().unwrap(), Distance::from(1)).unwrap();
    let doctor = doctor.interesting(Distance::from(3));
    let text = "hf1_AQMAAAAAAAAwOWRvY3RvcpYD4Es";
    assert_eq!(Cursor::new(&doctor, 12_345).to_string(), text);
    let text = "hf3_AQMAAAAAAAAwOQAAAAAAADA4ZG9jdG9yCSAM9g";
    let nearest = Some(12_344);
    assert_eq!(
        Cursor::new(&doctor, 12_345)
            .with_nearest(nearest)
            .to_string(),
        text
    );

    let spelling = Spelling {
        algorithm: Algorithm::Sha512,
        encoding: Encoding::Base32,
        anchor: Anchor::Suffix,
        case_sensitive: true,
    };
    let names = ["ABC=", "XYZ"].map(|name| DesiredName::new(name, spelling).unwrap());
    let query = Query::any(names, Distance::from(4)).unwrap();
    let query = query.among(Keyspace::new(b"<", Alphabet::digits(), b">").unwrap());
    let text = "hf2_AgMCAQQAAAAAAAAAMDkCAARBQkM9AANYWVoACjAxMjM0NTY3ODkAAAABPAABPqBmb18";
    assert_eq!(Cursor::new(&query, 12_345).to_string(), text);
    let text = "hf4_AgMCAQQAAAAAAAAAMDkAAAAAAAAwOAIABEFCQz0AA1hZWgAKMDEyMzQ1Njc4OQAAAAE8AAE-chjwpA";
    assert_eq!(
        Cursor::new(&query, 12_345)
            .with_nearest(nearest)
            .to_string(),
        text
    );
}

/// Searches with several names each, which run together for long enough to share slices.
#[test]
fn hits_of_searches_that_share_reach_the_right_search() {
    let letters = |number: u32| -> String {
        let letter = |place: u32| char::from(b'a' + (number * 7919 / 26_u32.pow(place) % 26) as u8);
        (0..5).map(letter).collect()
    };
    let query = |search: u32| {
        let names = (3 * search..3 * search + 3).map(|number| letters(number).parse().unwrap());
        let query = Query::any(names, Distance::ZERO).unwrap();
        query.interesting(Distance::from(2))
    };
    for kernel in Kernel::all() {
        let engine = Engine::start(2, kernel, clock()).unwrap();
        let begin = |query: &Query| {
            engine
                .search(Client::default(), query.clone(), |_| ())
                .unwrap()
        };
        let queries: Vec<Query> = (0..12).map(query).collect();
        let alone: Vec<_> = queries.iter().map(|query| run(&mut begin(query))).collect();
        let before = engine.metrics();
        let searches: Vec<Search> = queries.iter().map(begin).collect();
        let readers: Vec<_> = searches
            .into_iter()
            .map(|mut search| std::thread::spawn(move || run(&mut search)))
            .collect();
        let together: Vec<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
        assert_eq!(together, alone);
        let after = engine.metrics();
        let tests = after.tests - before.tests;
        assert!(
            tests > 2 * (after.hashes - before.hashes),
            "they did not share"
        );
    }
}

fn hard() -> Query {
    Query::new("hashfinderhashfinder".parse().unwrap(), Distance::ZERO).unwrap()
}

fn released(engine: &Engine, query: Query) -> (Search, mpsc::Receiver<Report>) {
    let (sender, receiver) = mpsc::channel();
    let search = engine.search(Client::default(), query, move |report| {
        // This fails if the test has dropped the receiver, which is fine.
        let _ = sender.send(report);
    });
    (search.unwrap(), receiver)
}

#[test]
fn a_distance_of_the_whole_name_matches_the_first_secret() {
    for engine in engines() {
        let query = Query::new("doctor".parse().unwrap(), Distance::from(200)).unwrap();
        let (_, outcome) = run(&mut engine.search(Client::default(), query, |_| ()).unwrap());
        assert!(
            matches!(outcome, Outcome::Ideal(found) if found.index == 0),
            "{outcome:?}"
        );
    }
}

/// The answer to the example in the documentation, computed by a pass over eleven million secrets
/// that shares no code with the engine.
#[test]
fn the_first_doctor_is_found() {
    let mut secret = Vec::new();
    let mut index = 0;
    loop {
        let mut text = BASE64_STANDARD.encode(sha1::Sha1::digest(&secret));
        text.make_ascii_lowercase();
        if text.contains("doctor") {
            break;
        }
        increment(&mut secret);
        index += 1;
    }
    assert_eq!((&*secret, index), (&[0xa4, 0xed, 0x06][..], 10_874_375));

    let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
    for engine in engines() {
        let (_, outcome) = run(&mut engine
            .search(Client::default(), query.clone(), |_| ())
            .unwrap());
        assert!(matches!(outcome, Outcome::Ideal(found) if found.index == index));
    }
}

/// Every secret's distance is less than 29, but not every secret's is less than 28.
#[test]
fn the_farthest_secrets_are_interesting_too() {
    let name = "bcbcbcbcbcbcbcbcbcbcbcbcbcab";
    let query = Query::new(name.parse().unwrap(), Distance::from(20)).unwrap();
    for interesting in [28, 29, 30, 255] {
        let (expected, _) = oracle(name, 20, interesting, 0, 1000);
        assert_eq!(expected.len() == 1000, interesting > 28);
        let query = query.clone().interesting(Distance::from(interesting));
        let query = query.hash_budget(NonZeroU64::new(1000).unwrap());
        let (reported, _) = run(&mut engines()[1]
            .search(Client::default(), query, |_| ())
            .unwrap());
        assert_eq!(reported, expected);
    }
}

#[test]
fn a_search_ends_with_its_keyspace() {
    let end = Keyspace::default().end();
    for start in [end - 1000, end] {
        for engine in engines() {
            let (mut search, report) = released(engine, hard().starting_at(start));
            assert_eq!(run(&mut search).1, Outcome::Exhausted);
            assert_eq!(report.recv().unwrap().hashes, end - start);
        }
    }
}

#[test]
fn a_dropped_search_is_released() {
    for engine in engines() {
        let (search, report) = released(engine, hard());
        while search.frontier() == 0 {
            std::thread::yield_now();
        }
        drop(search);
        let report = report.recv().unwrap();
        assert!(matches!(report.outcome, Outcome::Stopped(_)), "{report:?}");
        assert!(report.stop_latency.is_some());
    }
}

#[test]
fn dropping_the_engine_stops_every_search_and_reports_it() {
    let engine = Engine::start(2, Kernel::best(), clock()).unwrap();
    let mut searches: Vec<_> = (0..100).map(|_| released(&engine, hard())).collect();
    drop(engine);
    for (search, report) in &mut searches {
        assert!(matches!(run(search).1, Outcome::Stopped(_)));
        assert!(report.recv().is_ok());
    }
}

/// A backend that panics at a given index, to see which searches are affected.
struct PanicsAt(Index);

impl Backend for PanicsAt {
    fn scan(
        &self,
        slice: std::ops::Range<Index>,
        matcher: &Matcher,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        assert!(!slice.contains(&self.0), "a panic that this test wants");
        Backend::scan(&Kernel::best(), slice, matcher, limit, hits)
    }
}

#[test]
fn a_panic_in_the_backend_ends_one_search_and_no_other() {
    let engine = Engine::start(2, PanicsAt(1_000_000_000), clock()).unwrap();
    let (mut healthy, _healthy_report) = released(&engine, hard());
    let (mut struck, report) = released(&engine, hard().starting_at(999_999_000));
    assert!(matches!(run(&mut struck).1, Outcome::Failed(_)));
    assert!(report.recv().is_ok());

    // Both workers must still be running.
    let before = healthy.frontier();
    while healthy.frontier() < before + 100_000 {
        std::thread::yield_now();
    }
    healthy.stopper().stop();
    assert!(matches!(run(&mut healthy).1, Outcome::Stopped(_)));
}

/// A backend that counts slices, to see that a parked search takes no core.
#[derive(Clone, Default)]
struct Counting {
    slices: Arc<AtomicU64>,
}

impl Backend for Counting {
    fn scan(
        &self,
        slice: std::ops::Range<Index>,
        matcher: &Matcher,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        self.slices.fetch_add(1, Ordering::SeqCst);
        Backend::scan(&Kernel::best(), slice, matcher, limit, hits)
    }
}

#[test]
fn an_unread_search_is_parked() {
    let counting = Counting::default();
    let engine = Engine::start(2, counting.clone(), clock()).unwrap();
    let chatty = hard().interesting(Distance::from(28));
    let (mut unread, report) = released(&engine, chatty.clone());

    // Each of these searches ends only after its turns. By then the unread one has had its turns,
    // too, and its queue is full.
    let turn = |_| {
        let easy = Query::new("a".parse().unwrap(), Distance::ZERO).unwrap();
        run(&mut engine.search(Client::default(), easy, |_| ()).unwrap());
    };
    (0..100).for_each(turn);
    let slices = counting.slices.load(Ordering::SeqCst);
    let frontier = unread.frontier();
    (0..100).for_each(turn);
    assert_eq!(unread.frontier(), frontier, "it advanced without a reader");
    assert!(counting.slices.load(Ordering::SeqCst) > slices);

    // Once read, it continues where it was, in order.
    let Event::Candidates(first) = unread.blocking_next() else {
        panic!("it has an end");
    };
    let indices: Vec<Index> = first.iter().map(|c| c.index).collect();
    assert_eq!(indices, (0..first.len() as u64).collect::<Vec<_>>());
    let Event::Candidates(second) = unread.blocking_next() else {
        panic!("it has an end");
    };
    assert_eq!(second[0].index, first.len() as u64);
    drop(unread);
    assert!(matches!(
        report.recv().unwrap().outcome,
        Outcome::Stopped(_)
    ));
}

/// Searches are killed again and again, and resume from what was saved of them, as numbers.
/// Together they report what a search reports that nothing interrupts.
#[test]
fn searches_that_resume_from_checkpoints_report_what_an_uninterrupted_one_does() {
    const BUDGET: u64 = 3_000_000;
    let engine = Engine::start(3, Kernel::best(), clock()).unwrap();
    let query = |name: &str| {
        let query = Query::new(name.parse().unwrap(), Distance::ZERO).unwrap();
        let query = query.interesting(Distance::from(3));
        query.hash_budget(NonZeroU64::new(BUDGET).unwrap())
    };
    for name in ["doctor", "hashes", "finder"] {
        let query = query(name);
        let mut search = engine
            .search(Client::default(), query.clone(), |_| ())
            .unwrap();
        let mut expected = Vec::new();
        let outcome = loop {
            match search.blocking_next() {
                Event::Candidates(candidates) => expected.extend(candidates),
                Event::Ended(outcome) => break outcome,
            }
        };
        assert!(!expected.is_empty());
        let mut checkpoint = Checkpoint::new(&query);
        let mut reported = Vec::new();
        for run in 0.. {
            let mut resumed = engine.resume(
                engine.admit(Client::default()).unwrap(),
                query.clone(),
                checkpoint.clone(),
                run % 2 == 0,
                |_| (),
            );
            // Another search of the same secrets, which may share its scan.
            let other = engine.search(Client::default(), query.clone().without_budget(), |_| ());
            let before = checkpoint.covered(&query);
            let advance = loop {
                std::thread::yield_now();
                let advance = resumed.advance(Waker::noop());
                reported.extend(advance.candidates.iter().copied());
                let covered = advance.checkpoint.covered(&query);
                if advance.outcome.is_some() || covered > before + BUDGET / 20 {
                    break advance;
                }
            };
            drop((resumed, other));
            let saved = &advance.checkpoint;
            let held: Vec<Index> = saved.held().collect();
            let restored =
                Checkpoint::restore(&query, saved.to_cover().to_vec(), &held, saved.end());
            checkpoint = restored.unwrap();
            assert_eq!(&checkpoint, saved);
            if let Some(ended) = advance.outcome {
                assert_eq!(ended, outcome);
                assert_eq!(checkpoint.covered(&query), BUDGET);
                assert!(run > 2, "it was hardly interrupted");
                break;
            }
        }
        assert_eq!(reported, expected);
    }
}

#[test]
fn numbers_that_are_no_checkpoint_are_rejected() {
    let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
    let query = query.starting_at(100);
    let restore = |ranges: &[(u64, u64)], held: &[Index], end| {
        let ranges = ranges.iter().map(|(from, to)| *from..*to).collect();
        Checkpoint::restore(&query, ranges, held, end).map(|checkpoint| checkpoint.frontier())
    };
    assert_eq!(restore(&[(100, 1000)], &[], 1000), Ok(100));
    assert_eq!(
        restore(&[(200, 300), (300, 400), (500, 1000)], &[], 1000),
        Ok(200)
    );
    assert_eq!(restore(&[], &[], 1000), Ok(1000));
    for (ranges, held, end) in [
        (&[(99, 1000)][..], &[][..], 1000),
        (&[(100, 1001)], &[], 1000),
        (&[(200, 200)], &[], 1000),
        (&[(300, 400), (200, 250)], &[], 1000),
        (
            &[(101, 102), (103, 104), (105, 106), (107, 108), (109, 110)],
            &[],
            1000,
        ),
        // None of these is near enough.
        (&[(200, 1000)], &[200], 1000),
        (&[(200, 1000)], &[150], 1000),
        (&[], &[], 50),
    ] {
        let restored = restore(ranges, held, end);
        assert!(restored.is_err(), "{ranges:?} {held:?} {end}: {restored:?}");
    }
}

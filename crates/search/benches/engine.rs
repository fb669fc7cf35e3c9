//! Compares the cost of many searches with that of one. Prints one figure per line, for
//! `cargo xtask bench engine`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "it prints figures, and waits for time to pass"
)]

use std::{
    fs,
    num::NonZeroU64,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use hashfinder_search::{
    Client, Distance, Engine, Kernel, Keyspace, Limits, Query, Report, Search,
};

/// How long, and with how many searches, the benchmark measures.
#[derive(Clone, Copy)]
struct Size {
    /// Duration of a rate measurement.
    pace: Duration,
    /// Number of searches in a measurement with many searches.
    many: u32,
}

/// The size without `--short`.
const FULL: Size = Size {
    pace: Duration::from_secs(2),
    many: 10_000,
};

/// The size with `--short`, which only shows that the benchmark works.
const SHORT: Size = Size {
    pace: Duration::from_millis(100),
    many: 100,
};

fn main() {
    let has = |wanted| std::env::args().any(|argument| argument == wanted);
    // `cargo bench` passes this argument. Without it, the program does nothing.
    if !has("--bench") {
        return;
    }
    let size = if has("--short") { SHORT } else { FULL };
    shared(size);
    unshared(size);
    stops(size);
    all_at_once(size);
    fairness(size);
    stalled(size);
}

fn figure(name: &str, value: f64) {
    println!("{name}\t{value}");
}

fn engine() -> Engine {
    let started = Instant::now();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let limits = Limits {
        searches: usize::MAX,
        searches_per_client: usize::MAX,
        ..Limits::default()
    };
    let clock = move || started.elapsed();
    Engine::with_limits(workers, Kernel::best(), clock, limits).expect("threads")
}

/// Pseudorandom numbers: xorshift (Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// Returns a query for an exact name of 12 to 16 letters, which will not be found during the
    /// benchmark.
    fn hard(&mut self) -> Query {
        let length = 12 + self.below(5);
        let letters = (0..length).map(|_| char::from(b'a' + self.below(26) as u8));
        let name: String = letters.collect();
        Query::new(name.parse().expect("letters"), Distance::ZERO).expect("letters")
    }
}

fn random() -> Random {
    Random(0x2545_f491_4f6c_dd1d)
}

fn search(engine: &Engine, query: Query) -> Search {
    engine
        .search(Client::default(), query, |_| ())
        .expect("no limits")
}

/// Measures hashes and tests per second.
fn rates(engine: &Engine, Size { pace, .. }: Size) -> (f64, f64) {
    let (before, began) = (engine.metrics(), Instant::now());
    thread::sleep(pace);
    let (after, took) = (engine.metrics(), began.elapsed().as_secs_f64());
    let hashes = (after.hashes - before.hashes) as f64 / took;
    (hashes, (after.tests - before.tests) as f64 / took)
}

/// Measures searches that arrive one after another, once all share their slices.
fn shared(size: Size) {
    let alone = {
        let engine = engine();
        let _search = search(&engine, random().hard());
        thread::sleep(size.pace / 2);
        rates(&engine, size).1
    };
    figure("tests a second, 1 search", alone);
    for count in [16, 64, size.many / 10, size.many] {
        let engine = engine();
        let mut random = random();
        let _searches: Vec<Search> = (0..count).map(|_| search(&engine, random.hard())).collect();
        let submitted = Instant::now();
        together(&engine, count, size);
        figure(
            &format!("seconds until {count} searches go together"),
            submitted.elapsed().as_secs_f64(),
        );
        let (_, tests) = rates(&engine, size);
        figure(
            &format!("tests a second, {count} searches / 1"),
            tests / alone,
        );
    }
}

/// Waits until each hashed secret is tested for nearly all of `count` searches.
fn together(engine: &Engine, count: u32, size: Size) {
    let began = Instant::now();
    loop {
        let before = engine.metrics();
        thread::sleep(size.pace / 8);
        let after = engine.metrics();
        let tests = (after.tests - before.tests) as f64;
        if tests > 0.95 * f64::from(count) * (after.hashes - before.hashes).max(1) as f64 {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "they never go together"
        );
    }
}

/// Measures searches whose ranges do not overlap.
fn unshared(size: Size) {
    let one = {
        let engine = engine();
        let _search = search(&engine, random().hard());
        thread::sleep(size.pace / 2);
        rates(&engine, size).0
    };
    let engine = engine();
    let mut random = random();
    let before = resident();
    let many = size.many;
    let range = Keyspace::default().end() / u64::from(2 * many);
    let searches: Vec<Search> = (0..many)
        .map(|number| {
            let query = random.hard().starting_at(u64::from(number) * range);
            search(
                &engine,
                query.hash_budget(NonZeroU64::new(range).expect("some")),
            )
        })
        .collect();
    // Waits until each search has had a turn.
    thread::sleep(size.pace * 3);
    let memory = (resident() - before) / searches.len() as f64;
    figure(
        &format!("hashes a second, {many} searches that cannot share / 1"),
        rates(&engine, size).0 / one,
    );
    figure(
        &format!("bytes for each of {many} waiting searches"),
        memory,
    );
}

/// Returns the bytes of memory in use.
fn resident() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    4096.0 * pages.unwrap_or(0.0)
}

/// Measures how long it takes to stop one of many searches.
fn stops(size: Size) {
    let many = size.many;
    let engine = engine();
    let mut random = random();
    let (sender, reports) = mpsc::channel::<Report>();
    let begin = |query: Query| {
        let sender = sender.clone();
        let released = move |report| {
            // Fails at the end, for searches that are released after the receiver was dropped.
            let _ = sender.send(report);
        };
        engine
            .search(Client::default(), query, released)
            .expect("no limits")
    };
    let mut searches: Vec<Search> = (0..many).map(|_| begin(random.hard())).collect();
    together(&engine, many, size);
    let mut latencies: Vec<Duration> = (0..many)
        .map(|_| {
            let index = random.below(searches.len() as u64) as usize;
            let stopper = searches[index].stopper();
            let stopped = Instant::now();
            stopper.stop();
            let report = reports.recv().expect("it is released");
            assert!(report.stop_latency.is_some(), "it was stopped");
            let took = stopped.elapsed();
            searches[index] = begin(random.hard());
            took
        })
        .collect();
    latencies.sort();
    let last = latencies.len() - 1;
    for (name, index) in [("p50", last / 2), ("p99", last * 99 / 100), ("worst", last)] {
        let latency = latencies[index].as_secs_f64() * 1e3;
        figure(
            &format!("ms from a stop to the release, {many} searches, {name}"),
            latency,
        );
    }
}

fn all_at_once(size: Size) {
    let many = size.many;
    let engine = engine();
    let mut random = random();
    let (sender, reports) = mpsc::channel::<()>();
    let searches: Vec<Search> = (0..many)
        .map(|_| {
            let sender = sender.clone();
            let released = move |_| {
                let _ = sender.send(());
            };
            let searching = engine.search(Client::default(), random.hard(), released);
            searching.expect("no limits")
        })
        .collect();
    thread::sleep(size.pace);
    let began = Instant::now();
    for search in &searches {
        search.stopper().stop();
    }
    for _ in &searches {
        reports.recv().expect("each is released");
    }
    figure(
        &format!("ms until every core is free, {many} searches stopped at once"),
        began.elapsed().as_secs_f64() * 1e3,
    );
}

/// Measures the shares of ten clients: one has a tenth of `many` searches, the others have one
/// each.
fn fairness(size: Size) {
    let crowd = size.many / 10;
    let engine = engine();
    let mut random = random();
    let client = |name: u64| Client {
        name: name.to_string().into(),
        ..Client::default()
    };
    let mut searches: Vec<Search> = Vec::new();
    for (name, count) in (0..10).map(|name| (name, if name == 0 { crowd } else { 1 })) {
        for _ in 0..count {
            let search = engine.search(client(name), random.hard(), |_| ());
            searches.push(search.expect("no limits"));
        }
    }
    let time = |name: u64| engine.usage(&name.to_string()).core_time.as_secs_f64();
    let before: Vec<f64> = (0..10).map(time).collect();
    thread::sleep(size.pace * 5);
    let had: Vec<f64> = (0..10)
        .map(|name| time(name) - before[name as usize])
        .collect();
    let all: f64 = had.iter().sum();
    let least = had[1..].iter().copied().fold(f64::INFINITY, f64::min);
    figure(
        &format!("least share of nine clients beside one with {crowd} searches, in tenths"),
        10.0 * least / all,
    );
}

/// Measures searches whose candidates are not read.
fn stalled(size: Size) {
    let crowd = size.many / 10;
    let engine = engine();
    let searches: Vec<Search> = (0..crowd)
        .map(|_| search(&engine, random().hard().interesting(Distance::from(10))))
        .collect();
    thread::sleep(size.pace);
    let (before, cpu, began) = (resident(), core_time(), Instant::now());
    thread::sleep(size.pace * 5);
    let cores = (core_time() - cpu) / began.elapsed().as_secs_f64();
    figure(&format!("cores in use with {crowd} stalled readers"), cores);
    figure(
        &format!(
            "bytes that they grow in {} s",
            (size.pace * 5).as_secs_f64()
        ),
        resident() - before,
    );
    drop(searches);
}

/// Returns the CPU time of this process in seconds, on all cores together.
fn core_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = [11, 12].map(|field| {
        fields
            .get(field)
            .and_then(|ticks| ticks.parse::<f64>().ok())
    });
    // There are a hundred ticks per second on every Linux.
    ticks.iter().flatten().sum::<f64>() / 100.0
}

//! Tries every order in which the engine's threads can run, with at most two preemptions. Nothing
//! may be lost or released twice, and no worker may sleep while there is work.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hashfinder-search --test loom --release`

#![cfg(loom)]

use std::{
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashfinder_search::{
    Backend, Client, Distance, Engine, Event, Found, Index, Matcher, Outcome, Query,
};

/// A backend that finds nothing, immediately.
struct Nothing {
    is_at_hand: bool,
}

impl Backend for Nothing {
    fn scan(&self, slice: Range<Index>, _: &Matcher, _: usize, _: &mut Vec<Found>) -> Index {
        slice.end
    }

    fn is_at_hand(&self, _: &Matcher) -> bool {
        self.is_at_hand
    }
}

/// Returns a query that takes two slices.
fn query() -> Query {
    let name = "hashfinderhashfinder".parse().unwrap();
    let query = Query::new(name, Distance::ZERO).unwrap();
    query.hash_budget(NonZeroU64::new(1500).unwrap())
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    with_preemptions(2, test);
}

fn with_preemptions(bound: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(test);
}

fn engine(workers: usize, is_at_hand: bool) -> Engine {
    Engine::start(workers, Nothing { is_at_hand }, || Duration::ZERO).unwrap()
}

/// Starts a search, stops it if `stop` is set, and checks its end and its release.
fn run(workers: usize, is_at_hand: bool, stop: bool) {
    let releases = Arc::new(AtomicUsize::new(0));
    let engine = engine(workers, is_at_hand);
    let counted = Arc::clone(&releases);
    let mut search = engine
        .search(Client::default(), query(), move |report| {
            assert!(report.tests <= 1500 && report.hashes <= 1500);
            counted.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    if stop {
        search.stopper().stop();
    }
    let Event::Ended(outcome) = search.blocking_next() else {
        panic!("it has no candidates");
    };
    match outcome {
        Outcome::BudgetSpent(cursor) => assert_eq!(cursor.frontier(), 1500),
        Outcome::Stopped(cursor) => assert!(stop && cursor.frontier() <= 1500),
        other => panic!("{other:?}"),
    }
    drop(search);
    drop(engine);
    assert_eq!(releases.load(Ordering::SeqCst), 1);
}

#[test]
fn a_search_ends() {
    model(|| run(1, false, false));
}

#[test]
fn two_workers_share_a_search() {
    model(|| run(2, false, false));
}

#[test]
fn the_calling_thread_tries_the_first_slice() {
    model(|| run(1, true, false));
}

#[test]
fn a_stop_is_never_lost() {
    model(|| run(1, false, true));
    model(|| run(1, true, true));
}

#[test]
fn a_stop_from_another_thread_is_never_lost() {
    model(|| {
        let releases = Arc::new(AtomicUsize::new(0));
        let engine = engine(1, false);
        let counted = Arc::clone(&releases);
        let released = move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let mut search = engine.search(Client::default(), query(), released).unwrap();
        let stopper = search.stopper();
        let other = loom::thread::spawn(move || stopper.stop());
        assert!(matches!(search.blocking_next(), Event::Ended(_)));
        other.join().unwrap();
        drop(search);
        drop(engine);
        assert_eq!(releases.load(Ordering::SeqCst), 1);
    });
}

/// The clock advances, so the worker also merges the two searches.
#[test]
fn two_searches_share_and_one_leaves() {
    let shared = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&shared);
    with_preemptions(1, move || {
        let releases = Arc::new(AtomicUsize::new(0));
        let time = AtomicUsize::new(0);
        let clock = move || Duration::from_millis(time.fetch_add(1, Ordering::Relaxed) as u64);
        let engine = Engine::start(1, Nothing { is_at_hand: false }, clock).unwrap();
        let begin = || {
            let counted = Arc::clone(&releases);
            let released = move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            };
            engine.search(Client::default(), query(), released).unwrap()
        };
        let (mut stays, leaves) = (begin(), begin());
        let other = loom::thread::spawn(move || drop(leaves));
        let Event::Ended(Outcome::BudgetSpent(cursor)) = stays.blocking_next() else {
            panic!("it was not stopped and finds nothing");
        };
        assert_eq!(cursor.frontier(), 1500);
        other.join().unwrap();
        drop(stays);
        let metrics = engine.metrics();
        seen.fetch_add(
            usize::from(metrics.hashes < metrics.tests),
            Ordering::SeqCst,
        );
        drop(engine);
        assert_eq!(releases.load(Ordering::SeqCst), 2);
    });
    assert!(shared.load(Ordering::SeqCst) > 0, "they never shared");
}

#[test]
fn dropping_the_engine_ends_its_searches() {
    model(|| {
        let releases = Arc::new(AtomicUsize::new(0));
        let engine = engine(1, false);
        let counted = Arc::clone(&releases);
        let released = move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let mut search = engine.search(Client::default(), query(), released).unwrap();
        drop(engine);
        assert!(matches!(search.blocking_next(), Event::Ended(_)));
        drop(search);
        assert_eq!(releases.load(Ordering::SeqCst), 1);
    });
}

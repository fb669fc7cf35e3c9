//! A dispatcher whose workers are slow, fast, silent, gone or lying, compared with one thread that
//! tries one secret after another.

use std::{collections::HashSet, num::NonZeroU64, ops::Range, task::Waker, time::Duration};

use fastrand::Rng;
use hashfinder_search::{
    Candidate, Checkpoint, Client, Dispatcher, Distance, FalseReport, Index, Kernel, Lease,
    LeaseId, Limits, Outcome, Pacing, Query, SearchId, Worker,
};

mod oracle;

use self::oracle::{Oracle, SECRETS, oracles};

/// Secrets per second of a worker of speed 1.
const RATE: f64 = 2_000.0;

const PACING: Pacing = Pacing {
    slice_time: Duration::from_secs(2),
    most_ahead: 64,
    most_growth: 8,
    most_followers: 64,
    most_held: 64,
    hits_per_slice: 8,
};

/// A search, and what it has reported.
struct Watched {
    oracle: &'static Oracle,
    query: Query,
    range: Range<Index>,
    /// `None` while the server that runs it is down.
    id: Option<SearchId>,
    checkpoint: Checkpoint,
    reported: Vec<Candidate>,
    outcome: Option<Outcome>,
    is_stopped: bool,
}

/// A lease at a worker.
struct Held {
    lease: Lease,
    worker: Worker,
    /// Whether the dispatcher has taken it back.
    is_over: bool,
}

struct World {
    rng: Rng,
    dispatcher: Dispatcher,
    now: Duration,
    held: Vec<Held>,
    recalled: HashSet<LeaseId>,
    watched: Vec<Watched>,
}

impl World {
    fn note(&mut self) {
        for id in self.dispatcher.take_recalls() {
            assert!(self.recalled.insert(id), "recalled twice");
        }
    }

    fn begin(&mut self) {
        let oracle = &oracles()[self.rng.usize(..oracles().len())];
        let start = [0, self.rng.u64(..SECRETS / 2)][self.rng.usize(..2)];
        let budget = self.rng.u64(1..=SECRETS - start);
        let query = oracle.query.clone().starting_at(start);
        let query = query.hash_budget(NonZeroU64::new(budget).unwrap());
        self.watched.push(Watched {
            oracle,
            range: start..start + budget,
            checkpoint: Checkpoint::new(&query),
            query,
            id: None,
            reported: Vec::new(),
            outcome: None,
            is_stopped: false,
        });
        self.resume(self.watched.len() - 1);
    }

    fn resume(&mut self, number: usize) {
        let one = &mut self.watched[number];
        let client = Client {
            name: ["a", "b"][number % 2].into(),
            ..Client::default()
        };
        let (query, checkpoint) = (one.query.clone(), one.checkpoint.clone());
        let begun = self.dispatcher.begin(client, query, checkpoint, self.now);
        one.id = Some(begun.unwrap());
    }

    /// A worker takes a lease.
    fn lease(&mut self) {
        let speed = [0.1, 1.0, 3.0, 20.0][self.rng.usize(..4)];
        let worker = Worker {
            speed,
            longest_slice: 1 << 16,
            share: 1.0,
            parts: self.rng.u32(1..=4),
        };
        let lease = self.dispatcher.lease(worker, self.now);
        self.note();
        if let Some(lease) = lease {
            self.held.push(Held {
                lease,
                worker,
                is_over: false,
            });
        }
    }

    /// A worker reports a lease: the whole of it, or a part after a recall or because it ends.
    fn report(&mut self, number: usize) {
        let is_partial = self.rng.u8(..4) == 0;
        let Held {
            lease,
            worker,
            is_over,
        } = self.held.swap_remove(number);
        let range = lease.range();
        let end = match is_partial {
            true => self.rng.u64(range.start..=range.end),
            false => range.end,
        };
        let mut hits = Vec::new();
        let limit = lease.hit_limit();
        let tried = (lease.matcher()).scan(Kernel::best(), range.start..end, limit, &mut hits);
        let mut hits: Vec<Index> = hits.iter().map(|hit| hit.index).collect();
        hits.dedup();
        let count = (tried - range.start) as f64;
        let took = Duration::from_secs_f64(count / RATE / worker.speed);
        self.now += Duration::from_millis(self.rng.u64(..50));
        let now = self.now;
        if self.rng.u8(..20) == 0 {
            // It lies, so its slice counts as untried.
            let lie = self.rng.u64(range.clone());
            let is_hit = hits.contains(&lie);
            hits.push(lie);
            let reported = self.dispatcher.finish(lease.id(), tried, &hits, took, now);
            match reported {
                Ok(()) => assert!(is_over),
                Err(FalseReport::NotAHit { index }) => assert!(index == lie || is_hit),
                Err(other) => panic!("{other}"),
            }
            return;
        }
        let before = self.dispatcher.metrics().slices;
        let reported = self.dispatcher.finish(lease.id(), tried, &hits, took, now);
        reported.expect("it is true");
        let counted = self.dispatcher.metrics().slices - before;
        assert_eq!(counted, u64::from(!is_over), "a lease ends once");
        self.note();
    }

    /// Takes what a search has found, and compares it with the oracle.
    fn advance(&mut self, number: usize) {
        let one = &mut self.watched[number];
        let Some(id) = one.id else { return };
        let advance = self.dispatcher.advance(id, Waker::noop()).unwrap();
        one.reported.extend(&advance.candidates);
        one.checkpoint = advance.checkpoint;
        let frontier = one.checkpoint.frontier();
        let (expected, ideal) = one.oracle.expect(one.range.start..frontier);
        assert_eq!(one.reported, expected);
        if one.outcome.is_none()
            && let Some(outcome) = advance.outcome
        {
            match &outcome {
                Outcome::Ideal(found) => assert_eq!(Some(*found), ideal),
                Outcome::BudgetSpent(cursor) => {
                    assert_eq!((frontier, ideal), (one.range.end, None));
                    assert_eq!(cursor.query().start(), frontier);
                }
                Outcome::Stopped(_) => assert!(one.is_stopped && ideal.is_none()),
                other => panic!("{other:?}"),
            }
            one.outcome = Some(outcome);
        } else {
            assert!(one.outcome.is_some() || ideal.is_none(), "it has ended");
        }
    }

    fn is_over(&self) -> bool {
        self.watched.iter().all(|one| one.outcome.is_some())
    }
}

/// Plays one schedule.
fn play(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let limits = Limits {
        queue_length: [1, 4, 256][rng.usize(..3)],
        ..Limits::default()
    };
    let mut world = World {
        rng,
        dispatcher: Dispatcher::new(limits, PACING),
        now: Duration::ZERO,
        held: Vec::new(),
        recalled: HashSet::new(),
        watched: Vec::new(),
    };
    let searches = world.rng.usize(1..6);
    for turn in 0.. {
        assert!(turn < 100_000, "it never ends");
        if world.watched.len() == searches && world.is_over() {
            break;
        }
        world.now += Duration::from_millis(world.rng.u64(..20));
        match world.rng.u8(..16) {
            0 if world.watched.len() < searches => world.begin(),
            1 if !world.watched.is_empty() => {
                let number = world.rng.usize(..world.watched.len());
                world.advance(number);
                if world.watched[number].id.is_none() {
                    world.resume(number);
                }
            }
            2 if !world.watched.is_empty() && world.rng.u8(..20) == 0 => {
                let number = world.rng.usize(..world.watched.len());
                let one = &mut world.watched[number];
                if let Some(id) = one.id
                    && one.outcome.is_none()
                {
                    match world.rng.u8(..3) {
                        0 => {
                            one.is_stopped = true;
                            world.dispatcher.stop(id, world.now);
                        }
                        // What was not taken is lost, and searched again.
                        _ if !one.is_stopped => {
                            one.id = None;
                            world.dispatcher.forget(id, world.now);
                        }
                        _ => {}
                    }
                    world.note();
                }
            }
            // A worker is silent. It may still report.
            3 if !world.held.is_empty() && world.rng.u8(..3) == 0 => {
                let number = world.rng.usize(..world.held.len());
                let held = &mut world.held[number];
                held.is_over = true;
                world.dispatcher.give_back(held.lease.id(), world.now);
                world.note();
            }
            4..=8 if world.held.len() < 12 => world.lease(),
            _ if !world.held.is_empty() => {
                let number = world.rng.usize(..world.held.len());
                world.report(number);
            }
            _ => {}
        }
    }
}

#[test]
fn whatever_becomes_of_workers_the_answers_are_those_of_one_thread() {
    let first = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let schedules = std::env::var("SCHEDULES").map_or(300, |count| count.parse().unwrap());
    for number in 0..if first.is_some() { 1 } else { schedules } {
        let seed: u64 = first.unwrap_or_else(|| fastrand::u64(..) ^ number);
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_lease_lasts_as_long_for_a_fast_worker_as_for_a_slow_one() {
    let mut dispatcher = Dispatcher::new(Limits::default(), PACING);
    let query = Query::new("hashfinderhashfinder".parse().unwrap(), Distance::ZERO).unwrap();
    let checkpoint = Checkpoint::new(&query);
    let mut now = Duration::ZERO;
    dispatcher
        .begin(Client::default(), query, checkpoint, now)
        .unwrap();
    let speeds = [1.0, 1.0, 1.0, 0.5, 200.0, 3.0];
    for (number, speed) in speeds.into_iter().enumerate() {
        let worker = Worker {
            speed,
            longest_slice: 1 << 40,
            share: 1.0,
            parts: 1,
        };
        let lease = dispatcher.lease(worker, now).unwrap();
        let range = lease.range();
        let took = Duration::from_secs_f64((range.end - range.start) as f64 / RATE / speed);
        // The report arrives later than the worker was done.
        now += took + Duration::from_secs(1);
        let done = dispatcher.finish(lease.id(), range.end, &[], took, now);
        assert_eq!(done, Ok(()));
        // The first slice is short, because the speed is not known yet.
        let wanted = PACING.slice_time.as_secs_f64();
        assert!(
            number == 0 || (took.as_secs_f64() / wanted - 1.0).abs() < 0.01,
            "{took:?}"
        );
    }
    assert_eq!(dispatcher.metrics().slices, 6);
}

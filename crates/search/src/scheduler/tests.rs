//! The scheduler under a fake clock, with workers that are lines of a table.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{Distance, Secret};

/// How many secrets a simulated worker tries in a millisecond.
const SPEED: u64 = 20_000;

#[derive(Default)]
struct World {
    scheduler: Scheduler,
    now: Duration,
    reports: Arc<Mutex<Vec<(SearchId, Report)>>>,
}

impl World {
    fn submit(&mut self, query: Query) -> SearchId {
        let reports = Arc::clone(&self.reports);
        let next = self.scheduler.next_id;
        let release = Box::new(move |report| {
            let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.push((next, report));
        });
        let (id, effects) = self.scheduler.submit(query, release);
        assert_eq!(id, next);
        carry_out(effects);
        id
    }

    fn take(&mut self) -> Option<Job> {
        self.scheduler.next_job(self.now)
    }

    /// Finishes a job without hits, the time it takes later.
    fn finish(&mut self, job: Job) {
        let count = job.slice.end - job.slice.start;
        self.now += Duration::from_millis(1) * u32::try_from(count).unwrap()
            / u32::try_from(SPEED).unwrap();
        let tried = job.slice.end;
        self.finish_with(
            job,
            Done::Tried {
                tried,
                hits: vec![],
            },
        );
    }

    fn finish_with(&mut self, job: Job, done: Done) {
        carry_out(self.scheduler.finish(job, done, self.now));
    }

    fn stop(&mut self, id: SearchId) {
        carry_out(self.scheduler.stop(id, self.now));
    }

    fn report(&self, id: SearchId) -> Option<Report> {
        let reports = self.reports.lock().unwrap();
        let mut of_id = reports.iter().filter(|(search, _)| *search == id);
        let report = of_id.next().map(|(_, report)| report.clone());
        assert_eq!(of_id.next(), None, "released twice");
        report
    }

    fn poll(&mut self, id: SearchId) -> Poll<Event> {
        let (event, effects) = self.scheduler.poll(id, 1, Waker::noop());
        carry_out(effects);
        event
    }
}

fn carry_out(effects: Effects) {
    if let Some((release, report)) = effects.released {
        release(report);
    }
}

fn hard() -> Query {
    Query::new("hashfinderhashfinder".parse().unwrap(), Distance::ZERO).unwrap()
}

fn chatty() -> Query {
    hard().interesting(Distance::from(28))
}

fn hits(slice: &Range<Index>) -> Vec<Candidate> {
    let hit = |index| Candidate {
        secret: Secret::at(index),
        distance: 20,
        window: 0,
    };
    slice.clone().map(hit).collect()
}

#[test]
fn searches_take_turns() {
    let mut world = World::default();
    let searches: Vec<SearchId> = (0..10).map(|_| world.submit(hard())).collect();
    let mut turns = Vec::new();
    for _ in 0..50 {
        let job = world.take().unwrap();
        turns.push(job.search);
        world.finish(job);
    }
    for five in turns.chunks(10) {
        assert_eq!(five, searches);
    }
}

#[test]
fn one_search_takes_every_worker_and_a_new_one_is_next() {
    let mut world = World::default();
    let first = world.submit(hard());
    let jobs: Vec<Job> = (0..8).map(|_| world.take().unwrap()).collect();
    assert!(jobs.iter().all(|job| job.search == first));
    let second = world.submit(hard());
    for job in jobs {
        world.finish(job);
    }
    let next: Vec<SearchId> = (0..2).map(|_| world.take().unwrap().search).collect();
    assert!(next.contains(&second), "{next:?}");
}

#[test]
fn slices_grow_until_they_take_their_time() {
    let mut world = World::default();
    world.submit(hard());
    let mut length = 0;
    for _ in 0..20 {
        let job = world.take().unwrap();
        length = job.slice.end - job.slice.start;
        world.finish(job);
    }
    assert_eq!(length, SPEED / 2);

    // A worker that was held up for a second makes one slice shorter, not all of them.
    let job = world.take().unwrap();
    world.now += Duration::from_secs(1);
    world.finish(job);
    let job = world.take().unwrap();
    assert_eq!(job.slice.end - job.slice.start, SPEED / 4);
}

#[test]
fn a_stop_waits_for_the_workers_and_keeps_what_they_bring() {
    let mut world = World::default();
    let id = world.submit(hard());
    let jobs: Vec<Job> = (0..3).map(|_| world.take().unwrap()).collect();
    let end = jobs[2].slice.end;
    world.stop(id);
    assert!(jobs[0].stop.load(Ordering::Relaxed));
    assert!(world.take().is_none(), "a stopped search gives out nothing");
    let asked = world.now;
    for job in jobs {
        assert_eq!(world.report(id), None);
        assert_eq!(world.poll(id), Poll::Pending);
        world.finish(job);
    }
    let report = world.report(id).unwrap();
    assert_eq!(report.stop_latency, Some(world.now - asked));
    assert_eq!(
        report.outcome,
        Outcome::Cancelled(Cursor::new(&hard(), end))
    );
    assert_eq!(world.poll(id), Poll::Ready(Event::Ended(report.outcome)));
}

#[test]
fn a_search_that_waits_for_its_turn_stops_without_one() {
    let mut world = World::default();
    let id = world.submit(hard());
    world.stop(id);
    let report = world.report(id).unwrap();
    assert_eq!(
        (report.hashes, report.stop_latency),
        (0, Some(Duration::ZERO))
    );
    assert_eq!(report.outcome, Outcome::Cancelled(Cursor::new(&hard(), 0)));
    assert!(world.take().is_none());
}

#[test]
fn an_unread_search_is_parked_and_can_be_stopped_and_read_on() {
    for read_on in [false, true] {
        let mut world = World::default();
        let id = world.submit(chatty());
        while let Some(job) = world.take() {
            assert!(job.hit_limit <= HITS_PER_SLICE);
            let tried = job.slice.end.min(job.slice.start + job.hit_limit as u64);
            let hits = hits(&(job.slice.start..tried));
            world.finish_with(job, Done::Tried { tried, hits });
        }
        let queued = world.scheduler.searches[&id].sweep.queued();
        assert!(queued < QUEUE_LIMIT + HITS_PER_SLICE, "{queued}");
        if read_on {
            assert!(
                matches!(world.poll(id), Poll::Ready(Event::Candidates(all)) if all.len() == queued)
            );
            assert!(world.take().is_some());
        } else {
            world.stop(id);
            assert!(world.report(id).is_some());
            assert!(matches!(world.poll(id), Poll::Ready(Event::Candidates(_))));
            assert!(matches!(world.poll(id), Poll::Ready(Event::Ended(_))));
        }
    }
}

#[test]
fn the_answer_is_told_before_the_last_worker_lets_go() {
    let mut world = World::default();
    let id = world.submit(hard());
    let (first, second) = (world.take().unwrap(), world.take().unwrap());
    let found = Candidate {
        secret: Secret::at(5),
        distance: 0,
        window: 3,
    };
    world.finish_with(
        first,
        Done::Tried {
            tried: 6,
            hits: vec![found],
        },
    );
    assert_eq!(
        world.poll(id),
        Poll::Ready(Event::Ended(Outcome::Ideal(found)))
    );
    assert_eq!(world.report(id), None);
    world.finish(second);
    assert_eq!(world.report(id).unwrap().outcome, Outcome::Ideal(found));
}

#[test]
fn a_panic_ends_its_own_search_only() {
    let mut world = World::default();
    let (first, second) = (world.submit(hard()), world.submit(hard()));
    let job = world.take().unwrap();
    assert_eq!(job.search, first);
    world.finish_with(job, Done::Panicked);
    assert_eq!(
        world.report(first).unwrap().outcome,
        Outcome::Failed(Cursor::new(&hard(), 0))
    );
    for _ in 0..5 {
        assert_eq!(world.take().unwrap().search, second);
    }
}

#[test]
fn an_abandoned_search_leaves_nothing_behind() {
    let mut world = World::default();
    let (idle, busy) = (world.submit(hard()), world.submit(hard()));
    carry_out(world.scheduler.abandon(idle, world.now));
    let job = world.take().unwrap();
    assert_eq!(job.search, busy);
    carry_out(world.scheduler.abandon(busy, world.now));
    assert_eq!(world.report(busy), None);
    world.finish(job);
    assert!(world.report(busy).is_some() && world.report(idle).is_some());
    assert!(world.scheduler.searches.is_empty());
    assert!(world.take().is_none() && world.scheduler.turns.is_empty());
}

#[test]
fn a_budget_is_spent_to_the_hash() {
    let mut world = World::default();
    let budget = NonZeroU64::new(123_457).unwrap();
    let id = world.submit(hard().hash_budget(budget));
    while let Some(job) = world.take() {
        world.finish(job);
    }
    let report = world.report(id).unwrap();
    assert_eq!(report.hashes, budget.get());
    assert_eq!(
        report.outcome,
        Outcome::BudgetSpent(Cursor::new(&hard(), budget.get()))
    );
}

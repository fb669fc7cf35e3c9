//! Tests of the scheduler with a fake clock, simulated workers and invented hits.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::{Mutex, OnceLock, PoisonError, atomic::Ordering},
    task::Wake,
};

use proptest::prelude::*;

use super::*;
use crate::{
    checkpoint::Checkpoint, client::Quota, cursor::Cursor, matcher::Matcher, name::Distance,
    outcome::Outcome, pacing, query::Query, slice::FIRST_SLICE, sync::AtomicBool,
};

/// Number of secrets that a simulated worker tries per millisecond.
const SPEED: u64 = 20_000;

fn with_limits(limits: Limits) -> Scheduler {
    Scheduler::new(limits, Pacing::default())
}

fn hits_per_slice() -> usize {
    Pacing::default().hits_per_slice
}

#[derive(Default)]
struct World {
    scheduler: Scheduler,
    now: Duration,
    /// What takes the next slice.
    worker: Worker,
    /// Slices that were recalled.
    recalls: Vec<JobId>,
    /// What each search finds, by index, and where its backend panics.
    plans: HashMap<SearchId, Plan>,
    reports: Arc<Mutex<HashMap<SearchId, Report>>>,
    /// Number of released searches.
    releases: Arc<Mutex<usize>>,
    /// Cost of a secret for each search submitted from now on, if it is alone; [`COST`] if `None`.
    cost: Option<f64>,
}

/// Cost of a secret for a search that is alone.
const COST: f64 = 1.1;

/// All searches share one matcher, which simulated workers do not use.
fn request(query: Query) -> Request {
    static MATCHER: OnceLock<Arc<Matcher>> = OnceLock::new();
    Request {
        matcher: Arc::clone(MATCHER.get_or_init(|| Arc::new(query.matcher()))),
        rate: query.hit_rate(),
        cost: COST,
        query,
        resume: None,
    }
}

#[derive(Clone, Default, Debug)]
struct Plan {
    hits: BTreeMap<Index, u8>,
    poison: Option<Index>,
    /// Number of names that the search has beyond the first.
    more_names: u8,
}

impl Plan {
    /// Returns the number of the name that is nearest to a hit.
    fn nearest(&self, index: Index) -> u8 {
        (index % (u64::from(self.more_names) + 1)) as u8
    }

    /// Returns each name that is near enough to a hit, with its distance.
    fn distances(&self, index: Index, distance: u8) -> impl Iterator<Item = (u8, u8)> {
        let nearest = self.nearest(index);
        let names = (0..=self.more_names).map(move |name| match name == nearest {
            true => (name, distance),
            false => (name, distance + 1 + name % 2),
        });
        names.filter(move |(name, distance)| *name == nearest || *distance < 5)
    }
}

impl World {
    fn submit(&mut self, query: Query) -> SearchId {
        self.submit_for(Client::default(), query, Plan::default())
    }

    fn submit_for(&mut self, client: Client, query: Query, plan: Plan) -> SearchId {
        let admitted = self.scheduler.admit(&client, self.now);
        admitted.expect("within every limit");
        self.submit_admitted(client, query, plan, 0)
    }

    fn submit_admitted(
        &mut self,
        client: Client,
        query: Query,
        plan: Plan,
        tried: u64,
    ) -> SearchId {
        self.submit_request(client, request(query), plan, tried)
    }

    fn submit_request(
        &mut self,
        client: Client,
        request: Request,
        plan: Plan,
        tried: u64,
    ) -> SearchId {
        let (reports, releases) = (Arc::clone(&self.reports), Arc::clone(&self.releases));
        // The ID of the next search.
        let id = self.scheduler.next_id + 1;
        self.plans.insert(id, plan);
        let release = Box::new(move |report| {
            *releases.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(reports.insert(id, report).is_none(), "released twice");
        });
        let took = Duration::from_nanos(50 * tried);
        let request = Request {
            cost: self.cost.unwrap_or(COST),
            ..request
        };
        let submitted = (self.scheduler).submit(client, request, tried, took, release, self.now);
        let (submitted, effects) = submitted;
        assert_eq!(submitted, id);
        carry_out(effects);
        id
    }

    fn take(&mut self) -> Option<Job> {
        let build = self.scheduler.upkeep(self.now);
        let mut effects = Effects::default();
        let job = build.or_else(|| self.scheduler.next_job(self.worker, self.now, &mut effects));
        carry_out(effects);
        job
    }

    /// Returns the next slice. Before that, makes and installs any groups that are due.
    fn slice(&mut self) -> Option<Slice> {
        loop {
            match self.take()? {
                Job::Slice(slice) => return Some(slice),
                Job::Build(mut build) => {
                    build.make(|_| COST);
                    while !self.scheduler.install(&mut build, self.now) {}
                }
            }
        }
    }

    /// Tries the next slice and returns its end. After a search's first slice, there are slices for
    /// any number of workers.
    fn begin(&mut self) -> Index {
        let slice = self.slice().unwrap();
        let end = slice.range.end;
        self.finish(slice);
        end
    }

    /// Returns the result of a slice from a simulated backend.
    fn tried(&self, slice: &Slice) -> SliceResult {
        let range = slice.range.clone();
        if slice.stop.load(Ordering::Relaxed) {
            return SliceResult::Tried {
                tried: range.start,
                hits: Vec::new(),
            };
        }
        let mut hits = Vec::new();
        let mut first = 0;
        for id in slice.group.members() {
            let plan = &self.plans[id];
            if plan.poison.is_some_and(|poison| range.contains(&poison)) {
                return SliceResult::Panicked;
            }
            for (&index, &distance) in plan.hits.range(range.clone()) {
                let names = plan.distances(index, distance);
                hits.extend(names.map(|(name, distance)| Found {
                    index,
                    number: first + u16::from(name),
                    distance,
                    window: 0,
                }));
            }
            first += u16::from(plan.more_names) + 1;
        }
        hits.sort_by_key(|found| (found.index, found.number));
        let mut tried = range.end;
        if let Some(last) = hits.get(slice.hit_limit - 1) {
            let last = last.index;
            hits.retain(|found| found.index <= last);
            tried = last + 1;
        }
        SliceResult::Tried { tried, hits }
    }

    /// Advances the clock by the time that a slice takes, and finishes the slice.
    fn finish(&mut self, slice: Slice) {
        let count = slice.range.end - slice.range.start;
        self.now += Duration::from_millis(1) * count as u32 / SPEED as u32;
        let result = self.tried(&slice);
        self.finish_with(slice, result);
    }

    #[allow(clippy::needless_pass_by_value, reason = "it is gone")]
    fn finish_with(&mut self, slice: Slice, result: SliceResult) {
        let mut effects = self.scheduler.finish(slice.id, result, self.now);
        self.recalls.append(&mut effects.recalls);
        carry_out(effects);
    }

    fn stop(&mut self, id: SearchId) {
        let mut effects = self.scheduler.stop(id, self.now);
        self.recalls.append(&mut effects.recalls);
        carry_out(effects);
    }

    fn report(&self, id: SearchId) -> Option<Report> {
        self.reports.lock().unwrap().get(&id).cloned()
    }

    fn poll(&mut self, id: SearchId) -> Poll<Event> {
        let (event, effects) = self.scheduler.poll(id, 1, Waker::noop().clone());
        carry_out(effects);
        event
    }
}

fn carry_out(effects: Effects) {
    for (release, report) in effects.released {
        release(report);
    }
    for waker in effects.wake {
        waker.wake();
    }
}

/// Whether a reader was woken since it began to wait.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn hit(index: Index, distance: u8) -> Candidate {
    Candidate {
        index,
        name: 0,
        distance,
        window: 0,
    }
}

fn hard() -> Query {
    Query::new("hashfinderhashfinder".parse().unwrap(), Distance::ZERO).unwrap()
}

/// A query whose search shares with no other: half of all secrets would be interesting.
fn chatty() -> Query {
    hard().interesting(Distance::from(28))
}

fn client(name: &str, connection: u64) -> Client {
    Client {
        name: name.into(),
        connection,
        ..Client::default()
    }
}

#[test]
fn one_search_takes_every_worker_and_a_new_one_is_next() {
    let mut world = World::default();
    let first = world.submit(hard());
    world.begin();
    let slices: Vec<Slice> = (0..8).map(|_| world.slice().unwrap()).collect();
    assert!(slices.iter().all(|slice| slice.group.members() == [first]));
    let second = world.submit(hard());
    let next = world.slice().unwrap();
    assert_eq!(next.group.members(), [second]);
    for slice in slices {
        world.finish(slice);
    }
}

#[test]
fn slices_grow_to_their_target_duration() {
    let mut world = World::default();
    world.submit(hard());
    let mut length = 0;
    for _ in 0..20 {
        let slice = world.slice().unwrap();
        length = slice.range.end - slice.range.start;
        world.finish(slice);
    }
    assert_eq!(length, SPEED / 2);

    // A worker that stalls for a second only halves the next slice.
    let slice = world.slice().unwrap();
    world.now += Duration::from_secs(1);
    world.finish(slice);
    let slice = world.slice().unwrap();
    assert_eq!(slice.range.end - slice.range.start, SPEED / 4);
}

#[test]
fn a_slice_takes_a_fast_worker_as_long_as_a_slow_one() {
    let mut world = World::default();
    world.submit(hard());
    for _ in 0..20 {
        world.begin();
    }
    for speed in [8.0, 1.0, 0.25] {
        world.worker.speed = speed;
        let slice = world.slice().unwrap();
        let length = slice.range.end - slice.range.start;
        assert_eq!(length, (SPEED as f64 / 2.0 * speed) as u64);
        world.now += pacing::SLICE_TIME;
        let result = world.tried(&slice);
        world.finish_with(slice, result);
    }
    world.worker = Worker {
        speed: 1e9,
        longest_slice: 1 << 20,
        share: 1.0,
        parts: 1,
    };
    let slice = world.slice().unwrap();
    assert_eq!(slice.range.end - slice.range.start, 1 << 20);
    world.worker.parts = 4;
    let part = world.slice().unwrap();
    assert_eq!(part.range.end - part.range.start, 1 << 18);
}

#[test]
fn an_ideal_hit_recalls_the_slices_that_it_waits_for_and_those_beyond_it() {
    let mut world = World::default();
    let plan = Plan {
        hits: BTreeMap::from([(70_000, 0), (30_000, 0)]),
        ..Plan::default()
    };
    world.submit_for(Client::default(), hard(), plan);
    while world.begin() < 15_000 {}
    let slices: Vec<Slice> = (0..8).map(|_| world.slice().unwrap()).collect();
    let holding = |index| slices.iter().position(|slice| slice.range.contains(&index));
    let (low, high) = (holding(30_000).unwrap(), holding(70_000).unwrap());
    let ids: Vec<JobId> = slices.iter().map(|slice| slice.id).collect();
    let mut slices: Vec<Option<Slice>> = slices.into_iter().map(Some).collect();
    world.finish(slices[high].take().unwrap());
    // The search ends at this hit or a lower one, so all slices are wanted soon or not at all.
    let all = |ids: &[JobId], without: usize| {
        let others = ids.iter().enumerate();
        let others = others.filter(|(number, _)| *number != without);
        others.map(|(_, id)| *id).collect::<Vec<_>>()
    };
    let mut recalled = std::mem::take(&mut world.recalls);
    recalled.sort_unstable();
    assert_eq!(recalled, all(&ids, high));
    // Each is recalled once, and comes back partly tried. The rest is handed out again.
    let second = slices[low].take().unwrap();
    let tried = second.range.start + 10;
    let hits = Vec::new();
    world.finish_with(second, SliceResult::Tried { tried, hits });
    assert_eq!(world.slice().unwrap().range.start, tried);
    assert_eq!(world.recalls, []);
}

#[test]
fn a_stop_recalls_the_slices_that_no_other_search_wants() {
    let mut world = World::default();
    let id = world.submit(chatty());
    let other = world.submit(chatty());
    for _ in 0..10 {
        world.begin();
    }
    let slices: Vec<Slice> = (0..6).map(|_| world.slice().unwrap()).collect();
    world.stop(id);
    let own = slices.iter().filter(|slice| slice.group.members() == [id]);
    let own: Vec<JobId> = own.map(|slice| slice.id).collect();
    assert!(!own.is_empty() && own.len() < slices.len());
    assert_eq!(std::mem::take(&mut world.recalls), own);
    world.stop(other);
    assert_eq!(world.recalls.len(), slices.len() - own.len());
}

#[test]
fn a_stop_waits_for_the_workers_and_keeps_their_results() {
    let mut world = World::default();
    let id = world.submit(hard());
    world.begin();
    let slices: Vec<Slice> = (0..3).map(|_| world.slice().unwrap()).collect();
    let end = slices[2].range.end;
    world.stop(id);
    assert!(slices[0].stop.load(Ordering::Relaxed));
    assert!(
        world.slice().is_none(),
        "a stopped search hands out no slice"
    );
    let stopped_at = world.now;
    for slice in slices {
        assert_eq!(world.report(id), None);
        assert_eq!(world.poll(id), Poll::Pending);
        world.now += Duration::from_micros(10);
        // As if each had begun before the stop.
        let tried = slice.range.end;
        world.finish_with(
            slice,
            SliceResult::Tried {
                tried,
                hits: Vec::new(),
            },
        );
    }
    let report = world.report(id).unwrap();
    assert_eq!(report.stop_latency, Some(world.now - stopped_at));
    assert_eq!(report.outcome, Outcome::Stopped(Cursor::new(&hard(), end)));
    assert_eq!((report.hashes, report.tests), (end, end));
    assert_eq!(world.poll(id), Poll::Ready(Event::Ended(report.outcome)));
}

/// Regression: a stop also waited for slices that were handed out after it.
#[test]
fn a_stop_waits_only_for_slices_that_were_in_flight() {
    let mut world = World::default();
    let (first, second) = (world.submit(hard()), world.submit(hard()));
    while world
        .scheduler
        .scans
        .values()
        .all(|scan| scan.followers.len() < 2)
        || world.scheduler.scans.len() > 1
    {
        world.begin();
    }
    let slice = world.slice().unwrap();
    world.stop(first);
    let later = world.slice().unwrap();
    assert_eq!(world.report(first), None);
    world.finish(slice);
    assert!(world.report(first).is_some());
    world.finish(later);
    assert_eq!(world.report(second), None);
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
    let expected = Outcome::Stopped(Cursor::new(&hard(), 0));
    assert_eq!(report.outcome, expected);
    assert!(world.slice().is_none());
}

#[test]
fn an_unread_search_is_parked_and_can_be_stopped_or_resumed() {
    for read_on in [false, true] {
        let mut world = World::default();
        let all = (0..100_000).map(|index| (index, 20)).collect();
        let plan = Plan {
            hits: all,
            ..Plan::default()
        };
        let id = world.submit_for(Client::default(), chatty(), plan);
        while let Some(slice) = world.slice() {
            assert!(slice.hit_limit <= hits_per_slice());
            world.finish(slice);
        }
        let queued = world.scheduler.searches[&id].queue.len();
        let limit = world.scheduler.accounts.limits().queue_length;
        assert!(
            (limit..limit + hits_per_slice()).contains(&queued),
            "{queued}"
        );
        assert_eq!(world.scheduler.metrics().parked, 1);
        if read_on {
            assert!(
                matches!(world.poll(id), Poll::Ready(Event::Candidates(all)) if all.len() == queued)
            );
            assert!(world.slice().is_some());
        } else {
            world.stop(id);
            assert!(world.report(id).is_some());
            assert!(matches!(world.poll(id), Poll::Ready(Event::Candidates(_))));
            assert!(matches!(world.poll(id), Poll::Ready(Event::Ended(_))));
        }
    }
}

#[test]
fn the_answer_is_reported_before_the_last_slice_comes_back() {
    let mut world = World::default();
    let plan = Plan {
        hits: BTreeMap::from([(1500, 0)]),
        ..Plan::default()
    };
    let id = world.submit_for(Client::default(), hard(), plan);
    world.begin();
    let (first, second) = (world.slice().unwrap(), world.slice().unwrap());
    world.finish(first);
    let found = Outcome::Ideal(hit(1500, 0));
    assert_eq!(world.poll(id), Poll::Ready(Event::Ended(found.clone())));
    assert_eq!(world.report(id), None);
    world.finish(second);
    let report = world.report(id).unwrap();
    assert_eq!((report.outcome, report.tests), (found, 1501));
}

/// The matcher made on the caller's thread serves all slices of a search that does not share.
#[test]
fn one_search_alone_plans_its_filter_once() {
    let mut world = World::default();
    let matcher = Arc::new(hard().matcher());
    let request = Request {
        matcher: Arc::clone(&matcher),
        ..request(hard())
    };
    let client = Client::default();
    world.scheduler.admit(&client, world.now).unwrap();
    let release = Box::new(|_| ());
    let submitted = (world.scheduler).submit(
        client,
        request,
        FIRST_SLICE,
        pacing::SLICE_TIME,
        release,
        world.now,
    );
    let (id, effects) = submitted;
    carry_out(effects);
    world.plans.insert(id, Plan::default());
    for _ in 0..20 {
        let slice = world.slice().unwrap();
        assert!(Arc::ptr_eq(slice.group.matcher(), &matcher));
        world.finish(slice);
    }
    // The scan has taken the matcher, which is freed with the scan.
    assert!(world.scheduler.searches[&id].matcher.is_none());
}

/// Such a search never starts a scan of its own, which would take the matcher.
#[test]
fn a_search_that_joins_a_scan_at_its_own_start_keeps_no_matcher() {
    let mut world = World::default();
    world.submit(hard());
    let at = world.begin();
    let newcomer = world.submit(hard().starting_at(at));
    let build = (0..100).find_map(|_| {
        world.now += Duration::from_millis(1);
        match world.scheduler.upkeep(world.now) {
            Some(Job::Build(build)) => Some(build),
            _ => None,
        }
    });
    let mut build = build.unwrap();
    build.make(|_| COST);
    while !world.scheduler.install(&mut build, world.now) {}
    let entry = &world.scheduler.searches[&newcomer];
    assert_eq!(entry.scans().count(), 1);
    assert_eq!(entry.segments.len(), 1);
    assert!(entry.matcher.is_none());
}

#[test]
fn a_search_that_has_ended_keeps_no_matcher() {
    let mut world = World::default();
    let id = world.submit(hard());
    assert!(world.scheduler.searches[&id].matcher.is_some());
    world.stop(id);
    assert!(world.scheduler.searches[&id].matcher.is_none());
}

#[test]
fn an_abandoned_search_leaves_nothing_behind() {
    let mut world = World::default();
    let (busy, idle) = (world.submit(hard()), world.submit(hard()));
    let slice = world.slice().unwrap();
    assert_eq!(slice.group.members(), [busy]);
    carry_out(world.scheduler.abandon(idle, world.now));
    carry_out(world.scheduler.abandon(busy, world.now));
    assert_eq!(world.report(busy), None);
    world.finish(slice);
    assert!(world.report(busy).is_some() && world.report(idle).is_some());
    let scheduler = &world.scheduler;
    assert!(scheduler.searches.is_empty() && scheduler.scans.is_empty());
    assert!(scheduler.jobs.is_empty());
    assert!(world.slice().is_none());
}

#[test]
fn a_budget_is_spent_to_the_hash() {
    let mut world = World::default();
    let budget = NonZeroU64::new(123_457).unwrap();
    let id = world.submit(hard().hash_budget(budget));
    while let Some(slice) = world.slice() {
        world.finish(slice);
    }
    let report = world.report(id).unwrap();
    assert_eq!((report.hashes, report.tests), (budget.get(), budget.get()));
    let cursor = Cursor::new(&hard(), budget.get());
    assert_eq!(report.outcome, Outcome::BudgetSpent(cursor));
}

/// Searches that arrive one after another end up sharing every slice. The secrets that a search has
/// missed are hashed once more for it.
#[test]
fn searches_that_arrive_one_after_another_end_up_sharing() {
    let mut world = World::default();
    let mut searches = Vec::new();
    for _ in 0..16 {
        searches.push(world.submit(hard()));
        for _ in 0..20 {
            let slice = world.slice().unwrap();
            world.finish(slice);
        }
    }
    let together = |world: &World| {
        let mut scans = world.scheduler.scans.values();
        scans.next().is_some_and(|scan| scan.followers.len() == 16) && scans.next().is_none()
    };
    let mut slices = 0;
    while !together(&world) {
        let slice = world.slice().unwrap();
        world.finish(slice);
        slices += 1;
        assert!(slices < 10_000, "they never share one scan");
    }
    let before = world.scheduler.metrics();
    for _ in 0..100 {
        let slice = world.slice().unwrap();
        assert_eq!(slice.group.len(), 16);
        world.finish(slice);
    }
    let after = world.scheduler.metrics();
    assert_eq!(
        after.tests - before.tests,
        16 * (after.hashes - before.hashes)
    );
}

/// Nine clients have one search each, another client has a thousand, and no search can share. Every
/// client gets a tenth of the time.
#[test]
fn a_client_with_a_thousand_searches_gets_no_more_than_others() {
    let mut world = World::default();
    for connection in 0..1000 {
        world.submit_for(client("many", connection % 7), chatty(), Plan::default());
    }
    for name in 0..9 {
        world.submit_for(client(&format!("one {name}"), 0), chatty(), Plan::default());
    }
    let mut given: HashMap<Arc<str>, Duration> = HashMap::new();
    for _ in 0..20_000 {
        let slice = world.slice().unwrap();
        let name = Arc::clone(&world.scheduler.jobs[&slice.id].client.name);
        let before = world.now;
        world.finish(slice);
        *given.entry(name).or_default() += world.now - before;
    }
    let all: Duration = given.values().sum();
    assert_eq!(given.len(), 10);
    for (name, time) in given {
        let share = time.as_secs_f64() / all.as_secs_f64();
        assert!((0.095..0.105).contains(&share), "{name}: {share}");
    }
}

#[test]
fn time_is_shared_by_weight_and_connection() {
    let mut world = World::default();
    let heavy = Client {
        weight: NonZeroU32::new(3).unwrap(),
        ..client("heavy", 0)
    };
    world.submit_for(heavy, chatty(), Plan::default());
    // Within a client, its connections share evenly, however many searches each has.
    world.submit_for(client("light", 1), chatty(), Plan::default());
    for _ in 0..9 {
        world.submit_for(client("light", 2), chatty(), Plan::default());
    }
    let mut given: HashMap<(Arc<str>, u64), f64> = HashMap::new();
    for _ in 0..8_000 {
        let slice = world.slice().unwrap();
        let client = world.scheduler.jobs[&slice.id].client.clone();
        let before = world.now;
        world.finish(slice);
        *given.entry((client.name, client.connection)).or_default() +=
            (world.now - before).as_secs_f64();
    }
    let all: f64 = given.values().sum();
    for (key, expected) in [
        (("heavy", 0), 0.75),
        (("light", 1), 0.125),
        (("light", 2), 0.125),
    ] {
        let share = given[&(key.0.into(), key.1)] / all;
        assert!((share / expected - 1.0).abs() < 0.05, "{key:?}: {share}");
    }
}

/// Sharing benefits a client with many searches, but must not harm a client with few: the slices of
/// a client with one search must not become a hundred times as slow to save slices of the other
/// client.
#[test]
fn a_group_that_costs_too_much_is_not_made() {
    for (cost_of_many, expected) in [(1.5, 11), (90.0, 1)] {
        let mut world = World::default();
        let alone = world.submit_for(client("alone", 0), hard(), Plan::default());
        for _ in 0..20 {
            world.begin();
        }
        for _ in 0..10 {
            world.submit_for(client("many", 0), hard(), Plan::default());
        }
        for _ in 0..10_000 {
            match world.take().unwrap() {
                Job::Slice(slice) => world.finish(slice),
                Job::Build(mut build) => {
                    let includes = build.members().any(|id| id == alone);
                    build.make(|_| if includes { cost_of_many } else { 1.2 });
                    while !world.scheduler.install(&mut build, world.now) {}
                }
            }
        }
        let mut sizes = world.scheduler.scans.values().map(|scan| {
            let follows = scan.followers.iter().any(|(_, id)| *id == alone);
            (follows, scan.followers.len())
        });
        let with_alone = sizes.find(|(follows, _)| *follows).unwrap();
        assert_eq!(with_alone.1, expected);
    }
}

/// A search that is much more expensive than another would slow it down, so the two do not share.
/// Two searches of the same cost do.
#[test]
fn an_expensive_search_does_not_slow_down_a_cheap_one() {
    for (costs, together) in [
        ([50.0, 50.0], true),
        ([50.0, 1.5], false),
        ([1.5, 50.0], false),
    ] {
        let mut world = World::default();
        let mut searches = Vec::new();
        for (name, cost) in ["a", "b"].iter().zip(costs) {
            world.cost = Some(cost);
            searches.push(world.submit_for(client(name, 0), hard(), Plan::default()));
        }
        for _ in 0..1000 {
            match world.take().unwrap() {
                Job::Slice(slice) => world.finish(slice),
                Job::Build(mut build) => {
                    let both = build.members().count() == 2;
                    build.make(|_| if both { costs[0] + costs[1] } else { costs[0] });
                    while !world.scheduler.install(&mut build, world.now) {}
                }
            }
        }
        let sizes = world
            .scheduler
            .scans
            .values()
            .map(|scan| scan.followers.len());
        assert_eq!(sizes.max(), Some(if together { 2 } else { 1 }), "{costs:?}");
    }
}

/// A search finds nothing to do because the last slice was handed out in another search's turn. The
/// slice comes back partly tried, and the other search has ended.
#[test]
fn a_search_that_waits_for_a_slice_tries_the_rest_of_it() {
    let mut world = World::default();
    let query = || hard().hash_budget(NonZeroU64::new(200_000).unwrap());
    let searches = [world.submit(query()), world.submit(query())];
    let is_shared = |world: &World| {
        let mut scans = world.scheduler.scans.values();
        scans.next().is_some_and(|scan| scan.followers.len() == 2) && scans.next().is_none()
    };
    while !is_shared(&world) {
        world.begin();
    }
    let mut slices: Vec<Slice> = std::iter::from_fn(|| world.slice()).collect();
    let last = slices.pop().unwrap();
    let whose = world.scheduler.jobs[&last.id].search;
    for slice in slices {
        world.finish(slice);
    }
    assert!(world.slice().is_none(), "the rest is in flight");
    world.stop(whose);
    let tried = last.range.start + 1;
    world.finish_with(
        last,
        SliceResult::Tried {
            tried,
            hits: Vec::new(),
        },
    );
    assert_eq!(world.slice().unwrap().range.start, tried);
    let waiting = searches.into_iter().find(|id| *id != whose).unwrap();
    assert_eq!(world.report(waiting), None);
}

/// After a slice panics, each search that shared it tries the slice's secrets alone. The one that
/// caused the panic fails; the others then share again.
#[test]
fn after_a_panic_the_other_searches_share_again() {
    let mut world = World::default();
    let guilty = Plan {
        poison: Some(300_000),
        ..Plan::default()
    };
    world.submit_for(Client::default(), hard(), guilty);
    for _ in 0..3 {
        world.submit(hard());
    }
    let sizes = |world: &World| -> Vec<usize> {
        let scans = world.scheduler.scans.values();
        scans.map(|scan| scan.followers.len()).collect()
    };
    let mut slices = 0;
    while world.scheduler.metrics().ended.failed == 0 || sizes(&world) != [3] {
        world.begin();
        slices += 1;
        assert!(slices < 20_000, "they still share as {:?}", sizes(&world));
    }
}

/// Of two searches that share a scan, the second has covered much beyond its own position. When it
/// is killed and resumes, it must not try that again.
#[test]
fn a_checkpoint_keeps_what_another_searchs_scan_has_covered() {
    let mut world = World::default();
    world.submit(hard());
    for _ in 0..40 {
        world.begin();
    }
    let second = world.submit(hard());
    let shares = |world: &World| world.scheduler.searches[&second].segments.len() == 2;
    while !shares(&world) {
        world.begin();
    }
    for _ in 0..40 {
        world.begin();
    }
    let (advance, effects) = world.scheduler.advance(second, Waker::noop().clone());
    carry_out(effects);
    let checkpoint = advance.checkpoint;
    let [own, shared] = checkpoint.to_cover() else {
        panic!("two ranges: {checkpoint:?}");
    };
    assert!(
        own.end < shared.start,
        "covered between {own:?} and {shared:?}"
    );
    carry_out(world.scheduler.stop(second, world.now));
    let (stopped, effects) = world.scheduler.advance(second, Waker::noop().clone());
    carry_out(effects);
    assert!(matches!(stopped.outcome, Some(Outcome::Stopped(_))));
    assert_eq!(stopped.checkpoint, checkpoint);
    carry_out(world.scheduler.abandon(second, world.now));
    let resume = |world: &mut World| {
        let request = Request {
            resume: Some(Resume {
                checkpoint: checkpoint.clone(),
                alone: true,
            }),
            ..request(hard())
        };
        world.submit_request(Client::default(), request, Plan::default(), 0)
    };
    let third = resume(&mut world);
    let mut tried = Vec::new();
    while world.scheduler.frontier(third).unwrap() < shared.start {
        let slice = world.slice().unwrap();
        if slice.group.members() == [third] {
            tried.push(slice.range.clone());
        }
        world.finish(slice);
    }
    let again = |slice: &Range<Index>| slice.start < shared.start && own.end < slice.end;
    assert!(!tried.iter().any(again), "tried again: {tried:?}");
    // The same index counts once, whichever run covered it.
    let progress = world.scheduler.progress(third).unwrap();
    let covered = checkpoint.covered(&hard()) + progress.tests;
    assert!(covered >= progress.frontier);
    // What an earlier run has tested can be discarded, too. It counts as in vain, but not as tested
    // by this one.
    let fourth = resume(&mut world);
    let before = world.scheduler.metrics();
    world.scheduler.discard_ahead(fourth);
    let after = world.scheduler.metrics();
    assert_eq!(after.in_vain - before.in_vain, shared.start - own.end);
    assert_eq!(after.tests, before.tests);
    assert_eq!(world.scheduler.progress(fourth).unwrap().tests, 0);
}

/// A client that starts one search after another must not gain from always having the newest one.
#[test]
fn starting_new_searches_all_the_time_gains_nothing() {
    let mut world = World::default();
    let steady = world.submit_for(client("steady", 0), chatty(), Plan::default());
    let mut steady_time = Duration::ZERO;
    let began = world.now;
    world.submit_for(client("busy", 0), chatty(), Plan::default());
    for _ in 0..5_000 {
        let slice = world.slice().unwrap();
        let job = &world.scheduler.jobs[&slice.id];
        let (id, before) = (job.search, world.now);
        world.finish(slice);
        if id == steady {
            steady_time += world.now - before;
        } else {
            carry_out(world.scheduler.abandon(id, world.now));
            world.submit_for(client("busy", 0), chatty(), Plan::default());
        }
    }
    let share = steady_time.as_secs_f64() / (world.now - began).as_secs_f64();
    assert!(share > 0.45, "{share}");
}

#[test]
fn limits_reject_searches_and_a_spent_quota_ends_one_with_a_cursor() {
    let per_second = NonZeroU64::new(1_000_000).unwrap();
    let mut scheduler = with_limits(Limits {
        searches: 3,
        searches_per_client: 2,
        hashes_per_second_per_client: Some(per_second),
        quota_saved_for: Duration::from_secs(1),
        ..Limits::default()
    });
    let now = Duration::ZERO;
    let submit = |scheduler: &mut Scheduler, name: &str, now| {
        let client = client(name, 0);
        scheduler.admit(&client, now)?;
        let release = Box::new(|_| ());
        let (id, effects) =
            scheduler.submit(client, request(hard()), 0, Duration::ZERO, release, now);
        carry_out(effects);
        Ok(id)
    };
    let first = submit(&mut scheduler, "a", now).unwrap();
    submit(&mut scheduler, "a", now).unwrap();
    let refused = submit(&mut scheduler, "a", now);
    assert_eq!(refused, Err(OverLimit::SearchesOfClient { limit: 2 }));
    let other = submit(&mut scheduler, "b", now).unwrap();
    assert_eq!(
        submit(&mut scheduler, "c", now),
        Err(OverLimit::Searches { limit: 3 })
    );
    carry_out(scheduler.abandon(other, now));

    let mut world = World {
        scheduler,
        ..World::default()
    };
    for id in 1..100 {
        world.plans.entry(id).or_default();
    }
    while let Some(slice) = world.slice() {
        world.finish(slice);
    }
    let Poll::Ready(Event::Ended(Outcome::QuotaSpent { cursor, .. })) = world.poll(first) else {
        panic!("the quota does not end the search");
    };
    assert!(cursor.frontier() > 0);
    let metrics = world.scheduler.metrics();
    assert!(
        (1_000_000..1_100_000).contains(&metrics.hashes),
        "{metrics:?}"
    );
    assert_eq!(metrics.ended.quota_spent, 2);
    let refused = submit(&mut world.scheduler, "a", world.now);
    assert!(
        matches!(refused, Err(OverLimit::Hashes { retry_after, .. }) if retry_after > Duration::ZERO)
    );
    // Two seconds later some of the quota is available again.
    assert!(
        submit(
            &mut world.scheduler,
            "a",
            world.now + Duration::from_secs(2)
        )
        .is_ok()
    );
}

#[test]
fn one_connection_leaves_a_quarter_of_its_clients_searches_to_the_others() {
    let mut scheduler = with_limits(Limits {
        searches_per_client: 8,
        ..Limits::default()
    });
    let (first, second) = (client("a", 1), client("a", 2));
    for _ in 0..6 {
        scheduler.admit(&first, Duration::ZERO).unwrap();
    }
    let refused = scheduler.admit(&first, Duration::ZERO);
    assert_eq!(refused, Err(OverLimit::SearchesOfConnection { limit: 6 }));
    for _ in 0..2 {
        scheduler.admit(&second, Duration::ZERO).unwrap();
    }
    let refused = scheduler.admit(&second, Duration::ZERO);
    assert_eq!(refused, Err(OverLimit::SearchesOfClient { limit: 8 }));
    // The limit counts searches that were not released yet, separately for each client.
    scheduler.accounts.close(&first, 0);
    scheduler.admit(&first, Duration::ZERO).unwrap();
    scheduler
        .admit(&client("b", 1), Duration::ZERO)
        .expect("another client's connection has the same number");
    // A small limit is not divided.
    for most in 1..4 {
        let client = Client {
            quota: Quota {
                searches: Some(most),
                ..Quota::default()
            },
            ..client(&format!("at most {most}"), 1)
        };
        for _ in 0..most {
            scheduler.admit(&client, Duration::ZERO).unwrap();
        }
    }
}

#[test]
fn a_clients_own_quota_replaces_the_default() {
    let second = Duration::from_secs(1);
    let mut scheduler = with_limits(Limits {
        searches_per_client: 2,
        hashes_per_second_per_client: NonZeroU64::new(1_000_000),
        quota_saved_for: second,
        ..Limits::default()
    });
    let poor = Client {
        quota: Quota {
            searches: Some(1),
            hashes_per_second: NonZeroU64::new(1_000),
        },
        ..client("poor", 0)
    };
    let rich = Client {
        quota: Quota {
            searches: Some(3),
            ..Quota::default()
        },
        ..client("rich", 0)
    };
    let other = client("other", 0);
    for (client, limit) in [(&poor, 1), (&rich, 3), (&other, 2)] {
        for _ in 0..limit {
            scheduler.admit(client, Duration::ZERO).unwrap();
        }
        let refused = scheduler.admit(client, Duration::ZERO);
        assert_eq!(refused, Err(OverLimit::SearchesOfClient { limit }));
    }
    // Each client is charged 2,000 hashes: two seconds' worth of the poor client's quota, and
    // little for the others.
    for client in [&poor, &rich, &other] {
        scheduler.charge_tried(client, 2_000, Duration::ZERO, Duration::ZERO);
        scheduler.accounts.close(client, 0);
    }
    let refused = scheduler.admit(&poor, Duration::ZERO);
    assert_eq!(
        refused,
        Err(OverLimit::Hashes {
            per_second: NonZeroU64::new(1_000).unwrap(),
            retry_after: 2 * second,
        })
    );
    assert!(scheduler.admit(&rich, Duration::ZERO).is_ok());
    assert!(scheduler.admit(&other, Duration::ZERO).is_ok());
    // After `retry_after`, it is admitted.
    assert!(scheduler.admit(&poor, 2 * second).is_ok());
}

fn random_seed() -> u64 {
    let state = std::hash::RandomState::new();
    std::hash::BuildHasher::hash_one(&state, ())
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn random_from(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    }
}

/// What a search has reported, and what it is expected to report.
struct Watched {
    id: SearchId,
    start: Index,
    end: Index,
    plan: Plan,
    reported: Vec<Candidate>,
    ended: Option<Outcome>,
    stopped: bool,
    abandoned: bool,
    frontier: Index,
    /// Waker of the waiting reader.
    waits: Option<Arc<Woken>>,
    /// Ranges tried by the slices that served the search.
    tried: Vec<Range<Index>>,
    /// What was saved of the search, if it can resume.
    saved: Option<Saved>,
}

/// What was saved of a search that is killed, or stopped, and resumes.
struct Saved {
    client: Client,
    query: Query,
    checkpoint: Checkpoint,
    /// Number of candidates reported with the checkpoint.
    reported: usize,
    /// Whether it waits to be resumed.
    is_dormant: bool,
    /// Whether it was stopped in order to resume it later.
    is_pausing: bool,
    was_resumed: bool,
}

impl Watched {
    fn is_dormant(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.is_dormant)
    }

    /// Saves the state of the search at this moment, as a server does every half second.
    fn save(&mut self, world: &mut World) {
        let Some(saved) = &mut self.saved else { return };
        let (advance, effects) = world.scheduler.advance(self.id, Waker::noop().clone());
        carry_out(effects);
        let frontier = advance.checkpoint.frontier();
        assert_eq!(frontier, advance.progress.frontier);
        let below = |candidate: &Candidate| candidate.index < frontier;
        assert!(advance.candidates.iter().all(below));
        self.reported.extend(advance.candidates);
        assert!(
            saved.checkpoint.frontier() <= frontier,
            "a frontier moved back"
        );
        saved.checkpoint = advance.checkpoint;
        saved.reported = self.reported.len();
        match advance.outcome {
            Some(Outcome::Stopped(_)) if saved.is_pausing => self.kill(world),
            Some(Outcome::QuotaSpent { .. }) => self.kill(world),
            outcome => self.ended = outcome,
        }
    }

    /// Loses everything that was not saved.
    fn kill(&mut self, world: &mut World) {
        let Some(saved) = &mut self.saved else { return };
        carry_out(world.scheduler.abandon(self.id, world.now));
        saved.is_dormant = true;
        saved.is_pausing = false;
        self.reported.truncate(saved.reported);
        self.frontier = saved.checkpoint.frontier();
        // Only what the checkpoint says was tried.
        self.tried.clear();
        let mut from = self.start;
        for range in saved.checkpoint.to_cover() {
            self.tried.push(from..range.start);
            from = range.end;
        }
        self.tried.push(from..saved.checkpoint.end());
    }

    /// Resumes the search, if the limits allow it.
    fn resume(&mut self, world: &mut World, alone: bool) {
        let Some(saved) = &mut self.saved else { return };
        if world.scheduler.admit(&saved.client, world.now).is_err() {
            return;
        }
        let checkpoint = saved.checkpoint.clone();
        let request = Request {
            resume: Some(Resume { checkpoint, alone }),
            ..request(saved.query.clone())
        };
        let client = saved.client.clone();
        self.id = world.submit_request(client, request, self.plan.clone(), 0);
        saved.is_dormant = false;
        saved.was_resumed = true;
    }
}

impl Watched {
    fn expect(&self, until: Index) -> Vec<Candidate> {
        let hits = self.plan.hits.range(self.start..until);
        let interesting = hits.filter(|(_, distance)| **distance > 0);
        interesting
            .map(|(index, distance)| Candidate {
                name: self.plan.nearest(*index),
                ..hit(*index, *distance)
            })
            .collect()
    }

    /// Checks that every index below the frontier was hashed for the search.
    fn check_coverage(&self, frontier: Index) {
        let mut tried = self.tried.clone();
        tried.sort_unstable_by_key(|range| range.start);
        let mut covered = self.start;
        for range in &tried {
            if range.start <= covered {
                covered = covered.max(range.end);
            }
        }
        assert!(
            covered >= frontier,
            "only tried up to {covered} of {frontier}"
        );
    }

    /// Compares the search's candidates and outcome with one pass through its range.
    fn check(&self, report: &Report) {
        let outcome = self.ended.as_ref().unwrap();
        assert_eq!(&report.outcome, outcome);
        let ideal = self.plan.hits.range(self.start..self.end);
        let ideal = ideal
            .filter(|(_, distance)| **distance == 0)
            .map(|(index, _)| *index)
            .next();
        let reached = match outcome {
            Outcome::Ideal(found) => {
                assert_eq!(Some(found.index), ideal);
                found.index + 1
            }
            Outcome::BudgetSpent(cursor) => {
                assert_eq!(ideal, None);
                assert_eq!(cursor.frontier(), self.end);
                self.end
            }
            Outcome::Stopped(cursor) => {
                assert!(self.stopped);
                cursor.frontier()
            }
            Outcome::QuotaSpent {
                cursor,
                retry_after,
            } => {
                assert!(*retry_after > Duration::ZERO);
                cursor.frontier()
            }
            Outcome::Failed(cursor) => {
                assert!(cursor.frontier() <= self.plan.poison.expect("only its own panic"));
                cursor.frontier()
            }
            other => panic!("{other:?}"),
        };
        self.check_coverage(reached);
        assert!(ideal.is_none_or(|ideal| ideal + 1 >= reached));
        assert_eq!(
            self.reported,
            self.expect(reached),
            "reported up to {reached} from {}, then {outcome:?}; {report:?}",
            self.start
        );
        if self.saved.as_ref().is_some_and(|saved| saved.was_resumed) {
            return;
        }
        // Each secret below the frontier counts as exactly one test. A stopped search may also have
        // tested secrets beyond its frontier.
        assert!(report.tests >= reached - self.start);
        if matches!(outcome, Outcome::Ideal(_) | Outcome::BudgetSpent(_)) {
            assert_eq!(report.tests, reached - self.start);
        }
    }
}

/// Tries a slice and hands it back. Returns the number of hashes. `cut` makes it come back only
/// partly tried, as after a recall.
#[allow(clippy::needless_pass_by_value, reason = "it is gone")]
fn try_slice(world: &mut World, watched: &mut [Watched], slice: Slice, cut: Option<u64>) -> u64 {
    let mut result = world.tried(&slice);
    let mut hashed = 0;
    if let (SliceResult::Tried { tried, hits }, Some(cut)) = (&mut result, cut) {
        *tried = slice.range.start + cut % (*tried - slice.range.start + 1);
        hits.retain(|found| found.index < *tried);
    }
    if let SliceResult::Tried { tried, .. } = &result {
        hashed = tried - slice.range.start;
        let members = slice.group.members();
        for one in watched.iter_mut().filter(|one| members.contains(&one.id)) {
            one.tried.push(slice.range.start..*tried);
        }
    }
    // A thread reads the clock before it takes the lock, so another thread may already have
    // reported a later time.
    let now = (world.now).saturating_sub(Duration::from_micros(slice.id % 7));
    carry_out(world.scheduler.finish(slice.id, result, now));
    hashed
}

/// Plays one schedule: arrivals, stops, slow readers, slices that come back in any order, and
/// panics.
fn play(seed: u64) {
    let mut random = random_from(seed);
    let limits = Limits {
        queue_length: [1, 2, 20, 256][random(4) as usize],
        searches_per_client: [2, 100][random(2) as usize],
        hashes_per_second_per_client: (random(8) == 0)
            .then_some(NonZeroU64::new(2_000_000).unwrap()),
        quota_saved_for: Duration::from_millis(20),
        ..Limits::default()
    };
    // One of the three clients may have its own quota.
    let mut quotas = [Quota::default(); 3];
    if random(4) == 0 {
        quotas[2] = Quota {
            searches: [Some(1), None][random(2) as usize],
            hashes_per_second: [NonZeroU64::new(3_000_000), None][random(2) as usize],
        };
    }
    let mut world = World {
        scheduler: with_limits(limits),
        ..World::default()
    };
    let workers = 1 + random(4) as usize;
    // Whether workers have different speeds, and slices come back partly tried.
    let is_distant = random(3) == 0;
    let mut tests = 0;
    let count = 1 + random(7);
    let density = [40, 400, 4_000][random(3) as usize];
    let mut watched: Vec<Watched> = Vec::new();
    let mut under_way: Vec<Slice> = Vec::new();
    let mut builds: Vec<Build> = Vec::new();
    let mut hashed = 0;
    let mut submitted = 0;
    for turn in 0.. {
        assert!(turn < 200_000, "the schedule never ends");
        let arriving = watched.len() < count as usize;
        if !arriving
            && watched
                .iter()
                .all(|one| one.ended.is_some() || one.abandoned)
        {
            break;
        }
        world.now += Duration::from_micros(random(200));
        let counted = world.scheduler.metrics().tests;
        assert!(tests <= counted, "the number of tests decreased");
        tests = counted;
        for one in watched.iter_mut().filter(|one| !one.abandoned) {
            if one.is_dormant() {
                continue;
            }
            let frontier = world.scheduler.frontier(one.id).unwrap();
            assert!(one.frontier <= frontier, "a frontier moved back");
            one.frontier = frontier;
            let ahead = world.scheduler.searches[&one.id].out_of_order.len();
            assert!(
                ahead <= limits.queue_length + hits_per_slice(),
                "{ahead} out-of-order hits"
            );
        }
        match random(10) {
            0 if arriving => {
                let start = [0, 0, random(30_000)][random(3) as usize];
                let end = start + 1 + random(30_000);
                let mut plan = Plan::default();
                let mut index = start.saturating_sub(100);
                while index < end + 5_000 {
                    let ideal = random(60) == 0;
                    plan.hits
                        .insert(index, if ideal { 0 } else { 1 + random(4) as u8 });
                    index += 1 + random(2 * density);
                }
                if random(12) == 0 {
                    plan.poison = Some(start + random(end - start));
                }
                plan.more_names = [0, 0, 2][random(3) as usize];
                let names = (0..=plan.more_names).map(|_| hard().names()[0].clone());
                let query = Query::any(names, Distance::ZERO)
                    .expect("letters")
                    .interesting(Distance::from(5))
                    .starting_at(start)
                    .hash_budget(NonZeroU64::new(end - start).unwrap());
                let name = random(3);
                let client = Client {
                    weight: NonZeroU32::new(1 + name as u32).unwrap(),
                    quota: quotas[name as usize],
                    ..client(&name.to_string(), random(2))
                };
                let quota = client.quota;
                if let Err(over) = world.scheduler.admit(&client, world.now) {
                    assert!(match over {
                        OverLimit::Hashes { per_second, .. } => {
                            let every = limits.hashes_per_second_per_client;
                            quota.hashes_per_second.or(every) == Some(per_second)
                        }
                        OverLimit::SearchesOfClient { limit } => {
                            limit == quota.searches.unwrap_or(limits.searches_per_client)
                        }
                        OverLimit::Searches { .. } | OverLimit::SearchesOfConnection { .. } => {
                            false
                        }
                    });
                    continue;
                }
                // The caller's thread may have tried the first secrets without a hit.
                let first = plan.hits.range(start..end).next();
                let most = first.map_or(end - 1, |(index, _)| *index) - start;
                let most = plan.poison.map_or(most, |poison| most.min(poison - start));
                let can_resume = random(3) == 0;
                let tried = match can_resume {
                    true => 0,
                    false => random(2) * most.min(FIRST_SLICE),
                };
                hashed += tried;
                let saved = can_resume.then(|| Saved {
                    client: client.clone(),
                    query: query.clone(),
                    checkpoint: Checkpoint::new(&query),
                    reported: 0,
                    is_dormant: false,
                    is_pausing: false,
                    was_resumed: false,
                });
                let resume = saved.as_ref().map(|saved| Resume {
                    checkpoint: saved.checkpoint.clone(),
                    alone: random(8) == 0,
                });
                let request = Request {
                    resume,
                    ..request(query)
                };
                submitted += 1;
                let id = world.submit_request(client, request, plan.clone(), tried);
                watched.push(Watched {
                    id,
                    start,
                    end,
                    plan,
                    reported: Vec::new(),
                    ended: None,
                    stopped: false,
                    abandoned: false,
                    frontier: 0,
                    waits: None,
                    tried: std::iter::once(start..start + tried).collect(),
                    saved,
                });
            }
            1 if random(12) == 0 && !watched.is_empty() => {
                let index = random(watched.len() as u64) as usize;
                let one = &mut watched[index];
                if one.is_dormant() || one.ended.is_some() {
                    continue;
                }
                if let Some(saved) = &mut one.saved
                    && random(8) > 0
                    && !one.abandoned
                    && !one.stopped
                {
                    if random(2) == 0 {
                        one.kill(&mut world);
                    } else {
                        saved.is_pausing = true;
                        world.stop(one.id);
                    }
                    continue;
                }
                one.stopped = true;
                if random(4) == 0 && !one.abandoned {
                    one.abandoned = true;
                    carry_out(world.scheduler.abandon(one.id, world.now));
                } else {
                    world.stop(one.id);
                }
            }
            2 | 3 if !watched.is_empty() => {
                let index = random(watched.len() as u64) as usize;
                let one = &mut watched[index];
                if one.is_dormant() {
                    let before = one.id;
                    one.resume(&mut world, random(8) == 0);
                    submitted += usize::from(one.id != before);
                } else if one.saved.is_some() && one.ended.is_none() && !one.abandoned {
                    one.save(&mut world);
                } else if one.ended.is_none() && !one.abandoned {
                    let woken = Arc::new(Woken::default());
                    let waker = Waker::from(Arc::clone(&woken));
                    // A search's reader always waits for the same number of candidates.
                    let at_least = 1 + one.id as usize % 3;
                    let (event, effects) = world.scheduler.poll(one.id, at_least, waker);
                    carry_out(effects);
                    if let Some(waited) = one.waits.take() {
                        let was_woken = waited.0.load(Ordering::Relaxed);
                        assert!(event.is_pending() || was_woken, "the reader was not woken");
                    }
                    match event {
                        Poll::Pending => one.waits = Some(woken),
                        Poll::Ready(Event::Candidates(candidates)) => {
                            one.reported.extend(candidates);
                        }
                        Poll::Ready(Event::Ended(outcome)) => one.ended = Some(outcome),
                    }
                }
            }
            4 if !builds.is_empty() => {
                let is_installed = world.scheduler.install(&mut builds[0], world.now);
                if is_installed {
                    builds.remove(0);
                }
            }
            5..=6 if under_way.len() + builds.len() < workers => {
                if is_distant {
                    world.worker.speed = [0.2, 1.0, 7.0][random(3) as usize];
                }
                match world.take() {
                    Some(Job::Slice(slice)) => under_way.push(slice),
                    Some(Job::Build(mut build)) => {
                        let cost = [1.1, 1.1, 1.5, 5.0, 500.0][random(5) as usize];
                        build.make(|_| cost);
                        builds.push(build);
                    }
                    None => {}
                }
            }
            _ if !under_way.is_empty() => {
                let slice = under_way.swap_remove(random(under_way.len() as u64) as usize);
                let cut = (is_distant && random(3) == 0).then(|| random(u64::MAX));
                hashed += try_slice(&mut world, &mut watched, slice, cut);
            }
            _ => {}
        }
    }
    while let Some(slice) = under_way.pop() {
        hashed += try_slice(&mut world, &mut watched, slice, None);
    }
    let reports = world.reports.lock().unwrap();
    let metrics = world.scheduler.metrics();
    for one in watched.iter().filter(|one| !one.abandoned) {
        one.check(&reports[&one.id]);
    }
    assert_eq!(reports.len(), submitted, "a search was not released");
    assert_eq!(metrics.hashes, hashed);
    assert_eq!(
        reports.values().map(|report| report.hashes).sum::<u64>(),
        hashed
    );
    let reported = reports.values().map(|report| report.tests).sum::<u64>() + metrics.in_vain;
    let has_resumed = |one: &Watched| one.saved.as_ref().is_some_and(|saved| saved.was_resumed);
    if watched.iter().any(has_resumed) {
        // What was discarded may have been tested by an earlier run.
        assert!(reported >= metrics.tests);
    } else {
        assert_eq!(reported, metrics.tests);
    }
    assert_eq!((metrics.active, metrics.queued, metrics.parked), (0, 0, 0));
    drop(reports);
    // Nothing is left once every handle is dropped.
    for one in watched.iter().filter(|one| !one.abandoned) {
        carry_out(world.scheduler.abandon(one.id, world.now));
    }
    assert!(world.scheduler.searches.is_empty());
    assert!(world.scheduler.scans.is_empty());
    assert!(world.scheduler.jobs.is_empty());
}

/// Plays clients with weights, whose searches come and go on several connections, with any number
/// of workers. Each client gets its share of the time, divided evenly between its connections.
fn play_fairly(seed: u64) {
    let mut random = random_from(seed);
    let mut world = World::default();
    let mut clients: Vec<(Client, u64)> = Vec::new();
    for number in 0..2 + random(4) {
        let weight = NonZeroU32::new(1 + random(4) as u32).unwrap();
        for connection in 0..1 + random(3) {
            let client = client(&number.to_string(), connection);
            clients.push((Client { weight, ..client }, 1 + random(20)));
        }
    }
    let mut searches: Vec<(SearchId, Client)> = Vec::new();
    for (client, count) in &clients {
        for _ in 0..*count {
            let id = world.submit_for(client.clone(), chatty(), Plan::default());
            searches.push((id, client.clone()));
        }
    }
    let workers = 1 + random(4) as usize;
    let mut given: HashMap<Client, Duration> = HashMap::new();
    let mut under_way = Vec::new();
    // Enough that even the client with the smallest share gets about two hundred slices: which
    // client gets the first and the last ones is arbitrary.
    const SLICES: u32 = 10_000;
    for turn in 0..SLICES {
        // A search's second slice waits for its first, so the remaining new searches may be too few
        // for all workers.
        while under_way.len() < workers
            && let Some(slice) = world.slice()
        {
            under_way.push(slice);
        }
        let slice: Slice = under_way.swap_remove(random(under_way.len() as u64) as usize);
        let job = &world.scheduler.jobs[&slice.id];
        let (client, began) = (job.client.clone(), job.began);
        world.finish(slice);
        *given.entry(client).or_default() += world.now - began;
        if turn % 10 == 0 {
            // Replaces a search with another of the same client. The client keeps its debts.
            let index = random(searches.len() as u64) as usize;
            let (id, client) = searches[index].clone();
            carry_out(world.scheduler.abandon(id, world.now));
            let new = world.submit_for(client.clone(), chatty(), Plan::default());
            searches[index] = (new, client);
        }
    }
    let all: Duration = given.values().sum();
    let names: HashMap<&str, u32> = (clients.iter())
        .map(|(client, _)| (&*client.name, client.weight.get()))
        .collect();
    let weights: u32 = names.values().sum();
    for (client, _) in &clients {
        let connections = clients
            .iter()
            .filter(|(other, _)| other.name == client.name);
        let expected = f64::from(client.weight.get()) / f64::from(weights);
        let expected = expected / connections.count() as f64;
        let time = given.get(client).copied().unwrap_or_default();
        let share = time.as_secs_f64() / all.as_secs_f64();
        assert!(
            (share / expected - 1.0).abs() < 0.1,
            "{client:?} got {share} and not {expected}"
        );
    }
}

#[test]
fn clients_get_their_shares_while_searches_come_and_go() {
    let first = random_seed();
    for number in 0..100 {
        let seed = first.wrapping_add(number);
        if let Err(panic) = std::panic::catch_unwind(|| play_fairly(seed)) {
            eprintln!("the seed was {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Set `SCHEDULER_SEED` to repeat one schedule, or `SCHEDULES` to change the number of schedules.
#[test]
fn ten_thousand_schedules() {
    if let Ok(seed) = std::env::var("SCHEDULER_SEED") {
        play(seed.parse().unwrap());
        return;
    }
    let first = random_seed();
    let schedules = std::env::var("SCHEDULES").map_or(10_000, |count| count.parse().unwrap());
    for number in 0..schedules {
        let seed = first.wrapping_add(number);
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            eprintln!("SCHEDULER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

proptest! {
    /// If proptest finds a schedule that fails, it reports its seed.
    #[test]
    fn any_schedule(seed: u64) {
        play(seed);
    }
}

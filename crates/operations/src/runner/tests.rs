//! Simulates a server that runs operations: searches, a store, requests, crashes and a disk that
//! fails. Compares what the store holds with one thread that tries one secret after another.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    ops::Range,
    rc::Rc,
    sync::{Mutex, OnceLock},
    task::Wake,
};

use fastrand::Rng;
use hashfinder_search::{Candidate, Cursor, Distance, Progress, Query, SearchState};

use super::*;
use crate::{
    record::Request,
    store::{ClockReading, Store},
};

/// Number of secrets that the oracle has tried.
const SECRETS: Index = 30_000;

/// Maximum number of candidates of an operation.
const MOST: u64 = 40;

/// Maximum number of candidates that a simulated search queues.
const QUEUE: usize = 8;

/// Candidates and ideal hits of a query, in order: what one thread finds.
struct Oracle {
    query: Query,
    hits: Vec<Candidate>,
}

fn oracles() -> &'static [Oracle] {
    static ORACLES: OnceLock<Vec<Oracle>> = OnceLock::new();
    ORACLES.get_or_init(|| {
        let kinds = [
            ("abc", 0, 2),
            ("zzz", 1, 2),
            ("doctor", 1, 4),
            ("search", 2, 5),
        ];
        let oracle = |(name, ideal, interesting): (&str, u8, u8)| {
            let query = Query::new(name.parse().unwrap(), Distance::from(ideal)).unwrap();
            let query = query.interesting(Distance::from(interesting));
            let near = ideal.max(interesting.saturating_sub(1));
            let all = (0..SECRETS).map(|index| query.candidate(index));
            let hits = all.filter(|found| found.distance <= near).collect();
            Oracle { query, hits }
        };
        kinds.into_iter().map(oracle).collect()
    })
}

impl Oracle {
    fn is_ideal(&self, found: &Candidate) -> bool {
        found.distance <= self.query.ideal_distance().get()
    }

    /// Returns the indices that one thread reports from `start` to `end`, and whether the last one
    /// is ideal.
    fn report(&self, range: Range<Index>) -> (Vec<Index>, bool) {
        let mut indices = Vec::new();
        for found in self
            .hits
            .iter()
            .filter(|found| range.contains(&found.index))
        {
            indices.push(found.index);
            if self.is_ideal(found) {
                return (indices, true);
            }
        }
        (indices, false)
    }
}

/// A search as the simulated engine knows it.
struct Running {
    kind: usize,
    query: Query,
    to_cover: Vec<Range<Index>>,
    held: BTreeMap<Index, Candidate>,
    queue: Vec<Candidate>,
    end: Index,
    is_stopped: bool,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
    /// Where the backend panics.
    poison: Option<Index>,
}

impl Running {
    fn frontier(&self) -> Index {
        self.to_cover.first().map_or(self.end, |range| range.start)
    }

    fn checkpoint(&self) -> Checkpoint {
        let frontier = self.frontier();
        let held: Vec<Index> = self
            .held
            .range(frontier..)
            .map(|(index, _)| *index)
            .collect();
        Checkpoint::restore(&self.query, self.to_cover.clone(), &held, self.end).unwrap()
    }

    fn settle(&mut self) {
        let frontier = self.frontier();
        while let Some(first) = self.held.first_entry()
            && *first.key() < frontier
        {
            let found = first.remove();
            if found.distance <= self.query.ideal_distance().get() {
                self.outcome = Some(Outcome::Ideal(found));
            } else {
                self.queue.push(found);
            }
        }
        if self.outcome.is_none() && self.to_cover.is_empty() {
            self.outcome = Some(Outcome::BudgetSpent(Cursor::new(&self.query, self.end)));
        }
        if (self.outcome.is_some() || self.queue.len() >= QUEUE / 2)
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// Covers some secrets, not always the first ones.
    fn step(&mut self, rng: &mut Rng) {
        if self.outcome.is_some() {
            return;
        }
        if self.is_stopped {
            self.outcome = Some(Outcome::Stopped(Cursor::new(&self.query, self.frontier())));
            return self.settle();
        }
        if self.queue.len() >= QUEUE {
            return;
        }
        let number = rng.usize(..self.to_cover.len());
        let range = self.to_cover[number].clone();
        let can_split = self.to_cover.len() < hashfinder_search::MAX_RANGES;
        let from = match can_split && rng.u8(..3) == 0 {
            true => rng.u64(range.clone()),
            false => range.start,
        };
        let to = (from + rng.u64(1..4_000)).min(range.end);
        if self
            .poison
            .is_some_and(|poison| (from..to).contains(&poison))
        {
            self.outcome = Some(Outcome::Failed(Cursor::new(&self.query, self.frontier())));
            return self.settle();
        }
        let rest = [range.start..from, to..range.end];
        let rest = rest.into_iter().filter(|range| !range.is_empty());
        self.to_cover.splice(number..=number, rest);
        let oracle = &oracles()[self.kind];
        for found in oracle
            .hits
            .iter()
            .filter(|found| (from..to).contains(&found.index))
        {
            if found.index < self.end {
                self.held.insert(found.index, *found);
                if oracle.is_ideal(found) {
                    self.end = found.index + 1;
                    let end = self.end;
                    self.held.split_off(&end);
                    self.to_cover.retain_mut(|range| {
                        range.end = range.end.min(end);
                        !range.is_empty() && range.start < end
                    });
                }
            }
        }
        self.settle();
    }
}

/// What the simulated server shares.
#[derive(Default)]
struct Engine {
    places: usize,
    searches: BTreeMap<u64, Running>,
    next: u64,
    /// Operations whose searches crash the server, once they begin.
    crashers: HashSet<Name>,
    poisons: HashMap<Name, Index>,
    revoked: HashSet<String>,
    has_crashed: bool,
    /// Number of places that each client has.
    taken: HashMap<String, usize>,
    /// Maximum number of places of a client.
    most_of_client: usize,
    /// Whether one search in four is refused because the client's quota is spent.
    has_quotas: bool,
}

impl Engine {
    /// Returns the number of places taken.
    fn taken(&self) -> usize {
        self.taken.values().sum()
    }
}

#[derive(Clone)]
struct World(Rc<RefCell<Engine>>);

struct Place(World, String);

impl Drop for Place {
    fn drop(&mut self) {
        let mut engine = self.0.0.borrow_mut();
        engine.places += 1;
        *engine.taken.get_mut(&self.1).unwrap() -= 1;
    }
}

struct Handle {
    world: World,
    id: u64,
    waker: Waker,
    _place: Place,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.world.0.borrow_mut().searches.remove(&self.id);
    }
}

impl Host for World {
    type Place = Place;
    type Search = Handle;

    fn reserve(&mut self, client: &str) -> Result<Place, Refused> {
        let mut engine = self.0.borrow_mut();
        if engine.taken.get(client).copied().unwrap_or(0) >= engine.most_of_client {
            return Err(Refused::TooManySearches);
        }
        if engine.has_quotas && fastrand::u8(..4) == 0 {
            return Err(Refused::Quota {
                retry_after: Duration::from_millis(100),
            });
        }
        engine.places = engine.places.checked_sub(1).ok_or(Refused::Full)?;
        *engine.taken.entry(client.to_owned()).or_default() += 1;
        Ok(Place(self.clone(), client.to_owned()))
    }

    fn begin(&mut self, place: Place, record: &Record, alone: bool, waker: Waker) -> Handle {
        assert!(record.end.is_none() && record.cancel.is_none());
        assert!(alone || record.failures == 0, "it is not tried alone");
        let mut engine = self.0.borrow_mut();
        engine.has_crashed |= engine.crashers.contains(&record.name);
        engine.next += 1;
        let id = engine.next;
        let kind = oracles()
            .iter()
            .position(|oracle| oracle.query.names() == record.query().names());
        let checkpoint = &record.checkpoint;
        let mut running = Running {
            kind: kind.unwrap(),
            query: record.query().clone(),
            to_cover: checkpoint.to_cover().to_vec(),
            held: checkpoint
                .held()
                .map(|index| (index, record.query().candidate(index)))
                .collect(),
            queue: Vec::new(),
            end: checkpoint.end(),
            is_stopped: false,
            outcome: None,
            waker: None,
            poison: engine.poisons.get(&record.name).copied(),
        };
        running.settle();
        engine.searches.insert(id, running);
        drop(engine);
        Handle {
            world: self.clone(),
            id,
            waker,
            _place: place,
        }
    }

    fn is_revoked(&mut self, client: &str) -> bool {
        self.0.borrow().revoked.contains(client)
    }
}

impl Search for Handle {
    fn advance(&mut self) -> Advance {
        let mut engine = self.world.0.borrow_mut();
        let running = engine.searches.get_mut(&self.id).unwrap();
        running.waker = Some(self.waker.clone());
        Advance {
            candidates: mem::take(&mut running.queue),
            checkpoint: running.checkpoint(),
            outcome: running.outcome.clone(),
            progress: Progress {
                state: SearchState::Running,
                frontier: running.frontier(),
                hashes: 0,
                tests: 0,
            },
        }
    }

    fn stop(&mut self, _cause: StopCause) {
        let mut engine = self.world.0.borrow_mut();
        engine.searches.get_mut(&self.id).unwrap().is_stopped = true;
    }

    fn id(&self) -> Option<Arc<str>> {
        Some(self.id.to_string().into())
    }
}

type Woken = Arc<Mutex<Vec<Name>>>;

struct Nudge(Name, Woken);

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0.clone());
    }
}

/// The operation of a request, the request's text and hash budget, and whether it was deleted.
type Remembered = (Name, String, u64, bool);

/// A store in memory that survives the simulated server.
#[derive(Default)]
struct Memory {
    operations: BTreeMap<Name, (Record, Vec<Index>)>,
    requests: HashMap<(Arc<str>, String), Remembered>,
    /// Operations to check.
    changed: HashSet<Name>,
}

impl Store for Memory {
    fn commit(
        &mut self,
        changes: &[Change],
        _now: ClockReading,
    ) -> Result<Vec<Creation>, StoreError> {
        let mut creations = Vec::new();
        for change in changes {
            match change {
                Change::Create(record) => {
                    let request = &record.request;
                    let key = (Arc::clone(&request.client), request.request_id.clone());
                    let (text, most) = (request.text(), request.maximum_hashes);
                    creations.push(match self.requests.get(&key) {
                        Some((name, old, old_most, false)) if (old, *old_most) == (&text, most) => {
                            Creation::Existing(name.clone())
                        }
                        Some((_, old, old_most, true)) if (old, *old_most) == (&text, most) => {
                            Creation::Rejected(Rejection::Deleted)
                        }
                        Some(_) => Creation::Rejected(Rejection::RequestIdReused),
                        None => {
                            let name = record.name.clone();
                            self.requests.insert(key, (name.clone(), text, most, false));
                            let old = self.operations.insert(name, (record.clone(), Vec::new()));
                            assert!(old.is_none(), "a name was used twice");
                            Creation::New
                        }
                    });
                }
                Change::Update { record, candidates } => {
                    let (saved, all) = self.operations.get_mut(&record.name).unwrap();
                    assert!(saved.end.is_none(), "changed after its end: {record:?}");
                    let before = (saved.checkpoint.frontier(), saved.candidates);
                    let after = (record.checkpoint.frontier(), record.candidates);
                    assert!(before <= after, "went back");
                    assert!(saved.cancel.is_none() || record.cancel == saved.cancel);
                    self.changed.insert(record.name.clone());
                    *saved = record.clone();
                    all.extend(candidates);
                    assert_eq!(all.len() as u64, saved.candidates);
                }
                Change::Delete(name) => {
                    let deleted = self.operations.remove(name);
                    assert!(deleted.is_none_or(|(record, _)| record.end.is_some()));
                    for request in self
                        .requests
                        .values_mut()
                        .filter(|request| request.0 == *name)
                    {
                        request.3 = true;
                    }
                }
            }
        }
        Ok(creations)
    }

    fn unfinished(&mut self) -> Result<Vec<Record>, StoreError> {
        let all = self.operations.values().map(|(record, _)| record.clone());
        Ok(all.filter(|record| record.end.is_none()).collect())
    }

    fn expire(&mut self, _now: Millis) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn last_reading(&mut self) -> Result<Option<ClockReading>, StoreError> {
        Ok(None)
    }
}

impl Memory {
    /// Compares each operation with one thread that tries one secret after another.
    fn check(&mut self) {
        let changed = mem::take(&mut self.changed);
        let changed = changed.iter().filter_map(|name| self.operations.get(name));
        for (record, candidates) in changed {
            let query = record.query();
            let oracle = oracles()
                .iter()
                .find(|oracle| oracle.query.names() == query.names());
            let start = query.start();
            let end = start + record.budget;
            let (mut expected, mut has_ideal) =
                oracle.unwrap().report(start..record.checkpoint.frontier());
            if expected.len() as u64 > MOST {
                expected.truncate(MOST as usize);
                has_ideal = false;
            }
            assert_eq!(*candidates, expected, "{}", record.name);
            assert!(record.checkpoint.frontier() <= end);
            let Some(reason) = record.end.as_ref().map(|end| end.reason) else {
                assert!(!has_ideal, "an ideal secret was reported without an end");
                continue;
            };
            let frontier = record.checkpoint.frontier();
            match reason {
                EndReason::Found => {
                    assert!(has_ideal);
                    assert_eq!(record.found(), candidates.last().copied());
                    assert_eq!(record.hashes(), candidates.last().unwrap() + 1 - start);
                }
                EndReason::BudgetSpent => {
                    assert_eq!(
                        (frontier, record.hashes(), has_ideal),
                        (end, record.budget, false)
                    );
                }
                EndReason::TooManyCandidates => {
                    assert_eq!(candidates.len() as u64, MOST);
                    assert_eq!(frontier, candidates.last().unwrap() + 1);
                    assert_eq!(record.hashes(), frontier - start);
                }
                EndReason::CancelledByClient
                | EndReason::CancelledByOperator
                | EndReason::KeyRevoked => {
                    assert_eq!(record.cancel.map(EndReason::from), Some(reason));
                    assert!(!has_ideal);
                }
                EndReason::Failed => assert!(!has_ideal),
                EndReason::KeyspaceExhausted => panic!("nothing is exhausted"),
            }
        }
    }
}

/// What a client expects of a request.
enum Expected {
    Start(Box<Record>),
    Cancel(Name),
    Delete(Name),
    Drain,
}

struct Simulation {
    rng: Rng,
    world: World,
    woken: Woken,
    runner: Runner<World, usize>,
    store: Memory,
    now: Now,
    tickets: Vec<Option<Expected>>,
    batch: Option<Vec<Change>>,
    /// Operations that were acknowledged.
    started: Vec<Name>,
    /// Those that a request may have deleted, whatever its reply was.
    deleted: HashSet<Name>,
    /// Operations that had begun without progress when the process was killed.
    unlucky: HashSet<Name>,
    /// Whether the disk, and the process, no longer fail.
    is_calm: bool,
}

/// Simulations without faults.
impl Simulation {
    fn calm(most_of_client: usize) -> Simulation {
        let mut simulation = Simulation::new(1);
        simulation.is_calm = true;
        let mut engine = simulation.world.0.borrow_mut();
        (engine.places, engine.has_quotas) = (4, false);
        engine.most_of_client = most_of_client;
        drop(engine);
        simulation
    }

    /// Starts an operation of the client "a".
    fn start_one(&mut self, number: u128, budget: u64) -> Name {
        let request = Request {
            client: "a".into(),
            request_id: number.to_string(),
            display_name: String::new(),
            query: oracles()[0].query.clone(),
            maximum_hashes: budget,
            keep: Duration::from_secs(60),
        };
        let name = Name::new(number);
        let record = Record::new(name.clone(), request, budget, self.now.wall);
        let ticket = self.ticket(Expected::Start(Box::new(record.clone())));
        self.runner.start(record, ticket, self.now);
        name
    }

    fn commit_one(&mut self, batch: &[Change]) {
        let creations = self.store.commit(batch, ClockReading::default());
        self.runner.committed(creations.unwrap(), self.now);
    }

    /// Commits until nothing is left to save. Returns the number of commits.
    fn settle(&mut self) -> u32 {
        let mut commits = 0;
        while let Some(batch) = self.runner.next_batch(self.now) {
            self.commit_one(&batch);
            commits += 1;
        }
        commits
    }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut rng = Rng::with_seed(seed);
        fastrand::seed(seed);
        let world = World(Rc::new(RefCell::new(Engine {
            places: rng.usize(1..5),
            most_of_client: rng.usize(1..4),
            has_quotas: rng.u8(..3) == 0,
            ..Engine::default()
        })));
        let woken = Woken::default();
        let mut simulation = Simulation {
            runner: runner(&world, &woken),
            rng,
            world,
            woken,
            store: Memory::default(),
            now: Now::default(),
            tickets: Vec::new(),
            batch: None,
            started: Vec::new(),
            deleted: HashSet::new(),
            unlucky: HashSet::new(),
            is_calm: false,
        };
        simulation.open();
        simulation
    }

    fn open(&mut self) {
        let records = self.store.unfinished().unwrap();
        let full = (!self.is_calm && self.rng.u8(..8) == 0).then(|| "full".into());
        self.runner.opened(records, full, self.now);
    }

    /// The process dies, and another one starts.
    fn crash(&mut self, is_killed: bool) {
        let operations = self.store.operations.values();
        let begun = operations.filter(|(record, _)| is_killed && record.resumes > 0);
        self.unlucky
            .extend(begun.map(|(record, _)| record.name.clone()));
        self.batch = None;
        self.tickets.iter_mut().for_each(|ticket| *ticket = None);
        self.runner = runner(&self.world, &self.woken);
        let mut engine = self.world.0.borrow_mut();
        assert!(engine.searches.is_empty());
        engine.has_crashed = false;
        drop(engine);
        self.woken.lock().unwrap().clear();
        self.open();
    }

    fn ticket(&mut self, expected: Expected) -> usize {
        self.tickets.push(Some(expected));
        self.tickets.len() - 1
    }

    fn step(&mut self) {
        let any = |names: &[Name], rng: &mut Rng| {
            (!names.is_empty()).then(|| names[rng.usize(..names.len())].clone())
        };
        match self.rng.u8(..24) {
            0 if self.started.len() < 8 && !self.is_calm => self.start(),
            1 if self.rng.u8(..10) == 0 => {
                if let Some(name) = any(&self.started, &mut self.rng) {
                    let by = [Canceller::Client, Canceller::Operator][self.rng.usize(..2)];
                    let ticket = self.ticket(Expected::Cancel(name.clone()));
                    self.runner
                        .cancel(&name, by, String::new(), ticket, self.now);
                }
            }
            2 if self.rng.u8(..10) == 0 => {
                if let Some(name) = any(&self.started, &mut self.rng) {
                    let ticket = self.ticket(Expected::Delete(name.clone()));
                    let saved = self.store.operations.get(&name);
                    if saved.is_some_and(|(record, _)| record.end.is_some()) {
                        self.deleted.insert(name.clone());
                    }
                    self.runner.delete(&name, ticket);
                }
            }
            3 if !self.is_calm && self.rng.u8(..20) == 0 => self.crash(true),
            4 if !self.is_calm && self.rng.u8(..40) == 0 => {
                let client = ["a", "b"][self.rng.usize(..2)];
                let mut engine = self.world.0.borrow_mut();
                engine.revoked.insert(client.to_owned());
            }
            5 if !self.is_calm && self.rng.u8(..40) == 0 => {
                let ticket = self.ticket(Expected::Drain);
                self.runner.drain(ticket, self.now);
            }
            6 => self.runner.has_room(self.now),
            7..=9 => {
                let millis = [1, 20, 300, 1500][self.rng.usize(..4)];
                self.now.running += Duration::from_millis(millis);
                self.now.wall += millis.cast_signed();
                self.runner.tick(self.now);
            }
            10..=12 => self.commit(),
            13..=14 => {
                let name = self.woken.lock().unwrap().pop();
                if let Some(name) = name {
                    self.runner.wake(&name, self.now);
                }
            }
            _ => {
                let mut engine = self.world.0.borrow_mut();
                let ids: Vec<u64> = engine.searches.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[self.rng.usize(..ids.len())];
                    engine.searches.get_mut(&id).unwrap().step(&mut self.rng);
                }
            }
        }
        if self.world.0.borrow().has_crashed {
            self.crash(false);
        }
        if self.batch.is_none() {
            self.batch = self.runner.next_batch(self.now);
        }
        self.take_replies();
        self.store.check();
        if !self.runner.can_search() {
            let engine = self.world.0.borrow();
            assert_eq!(engine.taken(), engine.searches.len(), "unused places");
        }
    }

    fn start(&mut self) {
        let oracle = &oracles()[self.rng.usize(..oracles().len())];
        let start = [0, self.rng.u64(..1000)][self.rng.usize(..2)];
        let client = ["a", "b", "c"][self.rng.usize(..3)];
        let budget = self.rng.u64(1..SECRETS - start);
        let request = Request {
            client: client.into(),
            request_id: self.rng.u32(..40).to_string(),
            display_name: String::new(),
            query: oracle.query.clone().starting_at(start),
            maximum_hashes: budget,
            keep: Duration::from_secs(60),
        };
        let name = Name::new(self.rng.u128(..));
        let mut engine = self.world.0.borrow_mut();
        if self.rng.u8(..30) == 0 {
            engine.crashers.insert(name.clone());
        }
        if self.rng.u8(..10) == 0 {
            engine
                .poisons
                .insert(name.clone(), start + self.rng.u64(..budget));
        }
        drop(engine);
        let record = Record::new(name, request, budget, self.now.wall);
        let ticket = self.ticket(Expected::Start(Box::new(record.clone())));
        self.runner.start(record, ticket, self.now);
    }

    /// The commit under way is done, or fails: before or after it was written.
    fn commit(&mut self) {
        let Some(batch) = self.batch.take() else {
            return;
        };
        let kind = if self.is_calm { 9 } else { self.rng.u8(..40) };
        let creations = match kind {
            0 => None,
            _ => Some(self.store.commit(&batch, ClockReading::default()).unwrap()),
        };
        match creations {
            Some(creations) if kind > 1 => self.runner.committed(creations, self.now),
            _ => {
                self.runner
                    .failed(&StoreError::Unavailable("EIO".to_owned()));
                self.take_replies();
                // Unless the process has ended, the store is opened again.
                if matches!(self.runner.health(), Health::Unavailable(_)) {
                    self.open();
                }
            }
        }
    }

    fn take_replies(&mut self) {
        let effects = self.runner.take_effects();
        for (ticket, reply) in effects.replies {
            let expected = self.tickets[ticket]
                .take()
                .expect("one reply to each request");
            match (expected, reply) {
                (Expected::Start(record), Ok(Replied::Started(snapshot))) => {
                    assert_eq!(snapshot.record.request, record.request);
                    assert!(self.store.operations.contains_key(&record.name));
                    self.started.push(record.name);
                }
                (Expected::Start(record), Ok(Replied::Existing(name))) => {
                    let (existing, _) = &self.store.operations[&name];
                    assert_eq!(existing.request.text(), record.request.text());
                }
                (Expected::Cancel(name), Ok(Replied::Done)) => {
                    let saved = self.store.operations.get(&name);
                    assert!(
                        saved.is_none_or(|(record, _)| record.end.is_some()),
                        "not ended"
                    );
                }
                (Expected::Delete(name), Ok(Replied::Done)) => {
                    assert!(!self.store.operations.contains_key(&name), "not deleted");
                    self.started.retain(|started| *started != name);
                }
                (Expected::Drain, Ok(Replied::Done)) => {
                    assert!(self.world.0.borrow().searches.is_empty());
                    // The process ends. If the store failed, that it did not crash is not saved.
                    let is_saved =
                        matches!(self.runner.health(), Health::Working | Health::Full(_));
                    self.crash(!is_saved);
                    return;
                }
                (_, Ok(replied)) => panic!("a wrong reply: {replied:?}"),
                (_, Err(_)) => {}
            }
        }
        for (name, snapshot) in effects.changed {
            if let Some(snapshot) = snapshot {
                // Clients see only what is saved.
                let (seen, (saved, _)) = (&snapshot.record, &self.store.operations[&name]);
                assert!(seen.candidates <= saved.candidates);
                assert!(seen.checkpoint.frontier() <= saved.checkpoint.frontier());
                assert!(seen.end.is_none() || seen.end == saved.end);
            }
        }
    }
}

fn runner(world: &World, woken: &Woken) -> Runner<World, usize> {
    let woken = Arc::clone(woken);
    Runner::new(world.clone(), Pace::DISK, MOST, move |name| {
        Waker::from(Arc::new(Nudge(name.clone(), Arc::clone(&woken))))
    })
}

/// Plays one schedule of requests, searches, commits, crashes and failures.
fn play(seed: u64) -> BTreeMap<&'static str, u32> {
    let mut simulation = Simulation::new(seed);
    for _ in 0..600 {
        simulation.step();
    }
    simulation.is_calm = true;
    for turn in 0.. {
        simulation.step();
        let operations = simulation.store.operations.values();
        if turn > 100 && operations.clone().all(|(record, _)| record.end.is_some()) {
            break;
        }
        let left = || operations.filter(|(record, _)| record.end.is_none());
        assert!(turn < 20_000, "they never end: {}", left().count());
    }
    let mut ended = BTreeMap::new();
    let engine = simulation.world.0.borrow();
    for (name, (record, _)) in &simulation.store.operations {
        let reason = record.end.as_ref().unwrap().reason;
        *ended.entry(reason.name()).or_default() += 1;
        if reason == EndReason::Failed {
            let can_fail = engine.crashers.contains(name)
                || engine.poisons.contains_key(name)
                || simulation.unlucky.contains(name);
            let end = record.end.as_ref().map(|end| &end.message);
            assert!(can_fail, "innocent {name} failed: {end:?}");
        }
    }
    for name in simulation
        .started
        .iter()
        .filter(|name| !simulation.deleted.contains(name))
    {
        assert!(
            simulation.store.operations.contains_key(name),
            "{name} was lost"
        );
    }
    ended
}

#[test]
fn operations_find_what_one_thread_finds_whatever_fails() {
    let first = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let schedules = std::env::var("SCHEDULES").map_or(2_000, |count| count.parse().unwrap());
    let mut ended: BTreeMap<&str, u32> = BTreeMap::new();
    for number in 0..if first.is_some() { 1 } else { schedules } {
        let seed = first
            .unwrap_or_else(|| fastrand::Rng::new().u64(..))
            .wrapping_add(number);
        match std::panic::catch_unwind(|| play(seed)) {
            Ok(reasons) => {
                for (reason, count) in reasons {
                    *ended.entry(reason).or_default() += count;
                }
            }
            Err(panic) => {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if first.is_none() {
        assert_eq!(
            ended.len(),
            EndReason::ALL.len() - 1,
            "not every end occurred: {ended:?}"
        );
    }
}

#[test]
fn operations_that_wait_take_no_places_and_cost_no_commits() {
    let mut simulation = Simulation::calm(1);
    for number in 0..20 {
        simulation.start_one(number, 1_000);
        simulation.settle();
    }
    let mut commits = 0;
    for _ in 0..100 {
        simulation.now.running += Duration::from_millis(100);
        simulation.runner.tick(simulation.now);
        commits += simulation.settle();
        let engine = simulation.world.0.borrow();
        assert_eq!((engine.searches.len(), engine.taken()), (1, 1));
    }
    assert_eq!(commits, 0, "nothing has changed");
    let resumes = simulation.store.operations.values();
    let resumes: u32 = resumes.map(|(record, _)| record.resumes).sum();
    assert_eq!(resumes, 1, "only one has begun");
}

/// A search begins only once this is saved, also if the batch under way takes back an earlier
/// begin.
#[test]
fn a_search_does_not_begin_while_its_begin_is_taken_back() {
    let mut simulation = Simulation::calm(1);
    let name = simulation.start_one(1, 1_000);
    simulation.settle();
    let mut engine = simulation.world.0.borrow_mut();
    let search = engine.searches.values_mut().next().unwrap();
    search.outcome = Some(Outcome::Stopped(Cursor::new(&search.query, 0)));
    drop(engine);
    simulation.runner.wake(&name, simulation.now);
    let taken_back = simulation.runner.next_batch(simulation.now).unwrap();
    let begun = |simulation: &Simulation| simulation.world.0.borrow().searches.len();
    for _ in 0..3 {
        simulation.runner.tick(simulation.now);
        assert_eq!(begun(&simulation), 0, "a crash now would not be counted");
    }
    simulation.commit_one(&taken_back);
    assert_eq!(begun(&simulation), 0);
    simulation.settle();
    assert_eq!(begun(&simulation), 1);
    assert_eq!(simulation.store.operations[&name].0.resumes, 1);
}

/// A search's first slices are short, so it makes a little progress before it fails again at the
/// same secret.
#[test]
fn an_operation_whose_search_fails_at_a_secret_is_tried_twice() {
    let mut simulation = Simulation::calm(1);
    let mut tried = HashSet::new();
    let name = simulation.start_one(1, SECRETS - 1);
    loop {
        simulation.settle();
        let mut engine = simulation.world.0.borrow_mut();
        let Some((id, search)) = engine.searches.iter_mut().next() else {
            break;
        };
        if tried.insert(*id) {
            search.to_cover[0].start += 1_000;
        } else {
            let cursor = Cursor::new(&search.query, search.frontier());
            search.outcome = Some(Outcome::Failed(cursor));
        }
        drop(engine);
        simulation.runner.wake(&name, simulation.now);
        simulation.runner.tick(simulation.now);
    }
    let engine = simulation.world.0.borrow();
    assert_eq!(engine.next, 2, "searches");
    let end = simulation.store.operations[&name].0.end.clone();
    assert_eq!(end.unwrap().reason, EndReason::Failed);
}

/// A search that has begun has not crashed the server if the store fails and is opened again.
#[test]
fn only_a_crash_of_the_server_counts_as_one() {
    let mut simulation = Simulation::calm(4);
    let names: Vec<Name> = (1..4)
        .map(|number| simulation.start_one(number, 1_000))
        .collect();
    simulation.settle();
    let resumes = |simulation: &Simulation| {
        let saved = simulation.store.operations.values();
        saved.map(|(record, _)| record.resumes).collect::<Vec<_>>()
    };
    let begun = |simulation: &Simulation| simulation.world.0.borrow().searches.len();
    assert_eq!((begun(&simulation), resumes(&simulation)), (3, vec![1; 3]));
    let fail = |simulation: &mut Simulation, full: Option<&str>| {
        simulation
            .runner
            .failed(&StoreError::Unavailable("EIO".to_owned()));
        let records = simulation.store.unfinished().unwrap();
        let full = full.map(Arc::from);
        simulation.runner.opened(records, full, simulation.now);
    };
    for _ in 0..5 {
        fail(&mut simulation, None);
        assert!(simulation.settle() > 0);
        assert_eq!((begun(&simulation), resumes(&simulation)), (3, vec![1; 3]));
    }
    // On a full disk, that is saved later.
    fail(&mut simulation, Some("full"));
    assert_eq!((simulation.settle(), begun(&simulation)), (0, 0));
    simulation.runner.has_room(simulation.now);
    simulation.settle();
    assert_eq!((begun(&simulation), resumes(&simulation)), (3, vec![1; 3]));
    // After the second crash, one begins at a time. The others say why they wait.
    for _ in 0..2 {
        simulation.runner = runner(&simulation.world, &simulation.woken);
        let records = simulation.store.unfinished().unwrap();
        simulation.runner.opened(records, None, simulation.now);
        simulation.settle();
    }
    assert_eq!(begun(&simulation), 1);
    let waiting = names.iter().filter(|name| {
        let phase = simulation.runner.phase(&simulation.runner.live[*name]);
        phase == Phase::Queued(WAITS_FOR_TRIAL.into())
    });
    assert_eq!(waiting.count(), 2);
}

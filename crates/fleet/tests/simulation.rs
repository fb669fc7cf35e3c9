//! A simulated fleet: agents, servers, leaders and a network that loses, delays and repeats
//! messages. Their answers are compared with those of one thread that tries one secret after
//! another.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    num::NonZeroU64,
    ops::Range,
    time::Duration,
};

use fastrand::Rng;
use hashfinder_fleet::{
    Agent, AgentId, Ask, CallId, Command, Leader, LeaderSettings, Order, Orders, Report, Term,
    Told, Work,
};
use hashfinder_search::{Candidate, Checkpoint, Client, Index, LeaseId, Limits, Outcome, Query};

#[path = "../../search/tests/oracle/mod.rs"]
mod oracle;

use self::oracle::{Oracle, SECRETS, oracles};

fn oracle_of(query: &Query) -> &'static Oracle {
    let mut all = oracles().iter();
    let oracle = all.find(|oracle| oracle.query.names() == query.names());
    oracle.expect("every query has an oracle")
}

/// What arrives, and where.
enum Event {
    Work(Work),
    Orders(Work, Orders),
    Recall(AgentId, Term, Vec<LeaseId>),
    Ask(Ask),
    Told(CallId, Box<Told>),
    Wake(AgentId),
    /// An agent has computed for a while.
    Computed(AgentId, u64),
    /// A server renews a call.
    Renews(CallId),
    Ticks,
}

struct Machine {
    agent: Agent,
    boot: u64,
    /// Hashes per second.
    rate: f64,
    is_drained: bool,
    /// What it tries, the first one first.
    tasks: VecDeque<Task>,
}

/// A lease that a machine tries, as far as it has.
struct Task {
    order: Order,
    report: Report,
}

/// A call at its server.
struct Call {
    query: Query,
    range: Range<Index>,
    checkpoint: Checkpoint,
    from: Index,
    reported: Vec<Candidate>,
    outcome: Option<Outcome>,
}

struct World {
    rng: Rng,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    leader: Leader,
    term: Term,
    machines: BTreeMap<AgentId, Machine>,
    calls: BTreeMap<CallId, Call>,
    /// Until when messages are lost and machines die.
    troubled_until: Duration,
    next: u64,
}

/// How long an agent computes before it looks at the next message.
const STEP: Duration = Duration::from_millis(100);

const FIRST: Term = Term {
    number: 1,
    nonce: 0,
};

const SECOND: Duration = Duration::from_secs(1);

impl World {
    fn at(&mut self, when: Duration, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((when, self.next)));
        self.events.insert(self.next, event);
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.at(self.now + pause, event);
    }

    fn is_troubled(&self) -> bool {
        self.now < self.troubled_until
    }

    /// Sends a message, which may be lost, late, or arrive twice.
    fn send(&mut self, make: impl Fn() -> Event) {
        let copies = match self.rng.u8(..20) {
            0 if self.is_troubled() => 0,
            1 if self.is_troubled() => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let most = match self.rng.u8(..20) {
                0 if self.is_troubled() => 60_000,
                1..3 if self.is_troubled() => 3_000,
                _ => 30,
            };
            let delay = Duration::from_millis(self.rng.u64(1..=most));
            self.after(delay, make());
        }
    }

    fn speak(&mut self, id: &AgentId) {
        let machine = self.machines.get_mut(id).unwrap();
        machine.is_drained |= machine.agent.is_drained();
        if !machine.is_drained {
            let work = machine.agent.work(self.now);
            self.send(|| Event::Work(work.clone()));
        }
    }

    /// Returns the indices of hits that an agent finds, and one past the last index that it tries.
    fn scan(order: &Order, range: Range<Index>, found: usize) -> (Index, Vec<Index>) {
        let mut hits: Vec<Index> = order
            .queries
            .iter()
            .flat_map(|query| {
                let hits = oracle_of(query).hits(range.clone()).iter();
                hits.map(|hit| hit.index)
            })
            .collect();
        hits.sort_unstable();
        hits.dedup();
        let limit = order.hit_limit - found;
        match hits.get(limit - 1).copied() {
            Some(last) => {
                hits.truncate(limit);
                (last + 1, hits)
            }
            None => (range.end, hits),
        }
    }

    /// Tries secrets for a step, and does what the agent says.
    fn compute(&mut self, id: &AgentId) {
        let machine = self.machines.get_mut(id).unwrap();
        let mut left = machine.rate * STEP.as_secs_f64();
        while left >= 1.0
            && let Some(Task { order, report }) = machine.tasks.front_mut()
        {
            let end = order.range.end.min(report.tried + left as u64);
            let (tried, hits) = World::scan(order, report.tried..end, report.hits.len());
            let count = (tried - report.tried) as f64;
            left -= count;
            report.tried = tried;
            report.hits.extend(hits);
            report.took += Duration::from_secs_f64(count / machine.rate);
            if tried < order.range.end && report.hits.len() < order.hit_limit {
                break;
            }
            let report = machine.tasks.pop_front().unwrap().report;
            machine.agent.done(report, self.now);
        }
        machine.agent.tick(self.now);
        let boot = machine.boot;
        self.act(id);
        self.after(STEP, Event::Computed(id.clone(), boot));
    }

    /// Does what an agent says, and sends its message if it is due.
    fn act(&mut self, id: &AgentId) {
        let machine = self.machines.get_mut(id).unwrap();
        for command in machine.agent.take_commands() {
            match command {
                Command::Try(order) => machine.tasks.push_back(Task {
                    report: Report {
                        lease: order.lease,
                        tried: order.range.start,
                        hits: Vec::new(),
                        took: Duration::ZERO,
                        failed: false,
                    },
                    order,
                }),
                Command::Stop(lease) => {
                    let mut tasks = machine.tasks.iter();
                    let place = tasks.position(|task| task.order.lease == lease);
                    if let Some(task) = place.and_then(|place| machine.tasks.remove(place)) {
                        machine.agent.done(task.report, self.now);
                    }
                }
            }
        }
        if machine.agent.is_due(self.now) {
            self.speak(id);
        }
    }

    fn boot(&mut self, id: &AgentId) {
        self.next += 1;
        let boot = self.next;
        let rate = [500.0, 2_000.0, 9_000.0][self.rng.usize(..3)];
        // What it measured at its start may be wrong.
        let believed = rate * [0.1, 1.0, 1.0, 30.0][self.rng.usize(..4)];
        let machine = Machine {
            agent: Agent::new(id.clone(), boot, believed, "1".into()),
            boot,
            rate,
            is_drained: false,
            tasks: VecDeque::new(),
        };
        self.machines.insert(id.clone(), machine);
        self.after(STEP, Event::Computed(id.clone(), boot));
    }

    fn begin(&mut self, number: usize) {
        let oracle = &oracles()[self.rng.usize(..oracles().len())];
        let start = [0, self.rng.u64(..SECRETS / 2)][self.rng.usize(..2)];
        let budget = self.rng.u64(1..=SECRETS - start);
        let query = oracle.query.clone().starting_at(start);
        let query = query.hash_budget(NonZeroU64::new(budget).unwrap());
        let call = Call {
            range: start..start + budget,
            checkpoint: Checkpoint::new(&query),
            query,
            from: start,
            reported: Vec::new(),
            outcome: None,
        };
        let id: CallId = number.to_string().into();
        self.calls.insert(id.clone(), call);
        self.after(SECOND / 100, Event::Renews(id));
    }

    fn renew(&mut self, id: &CallId) {
        let call = &self.calls[id];
        if call.outcome.is_some() {
            return;
        }
        let ask = Ask {
            call: id.clone(),
            server: "server".into(),
            client: Client {
                name: ["a", "b"][id.len() % 2].into(),
                ..Client::default()
            },
            query: call.query.clone(),
            checkpoint: call.checkpoint.clone(),
            from: call.from,
        };
        self.send(|| Event::Ask(ask.clone()));
        self.after(SECOND, Event::Renews(id.clone()));
    }

    fn told(&mut self, id: &CallId, told: &Told) {
        let call = self.calls.get_mut(id).unwrap();
        if told.from != call.from || call.outcome.is_some() {
            // An answer to an earlier question.
            return;
        }
        let is_older = told.checkpoint.frontier() < call.checkpoint.frontier();
        if is_older {
            return;
        }
        call.reported.extend(&told.candidates);
        call.from = told.next(call.from);
        call.checkpoint = told.checkpoint.clone();
        let frontier = call.checkpoint.frontier();
        let oracle = oracle_of(&call.query);
        let (expected, ideal) = oracle.expect(call.range.start..frontier);
        assert_eq!(call.reported, expected, "call {id} up to {frontier}");
        match &told.outcome {
            None => assert!(frontier < call.range.end || !told.candidates.is_empty()),
            Some(Outcome::Ideal(found)) => assert_eq!(Some(*found), ideal),
            Some(Outcome::BudgetSpent(_)) => {
                assert_eq!((frontier, ideal), (call.range.end, None));
            }
            Some(other) => panic!("{other:?}"),
        }
        call.outcome.clone_from(&told.outcome);
        if call.outcome.is_some() {
            self.leader.end(id, self.now);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Work(work) => {
                let orders = self.leader.work(&work, true, self.now);
                self.send(|| Event::Orders(work.clone(), orders.clone()));
            }
            Event::Orders(work, orders) => {
                let machine = self.machines.get_mut(&work.agent).unwrap();
                if machine.boot == work.boot {
                    machine.agent.orders(&work, orders, self.now);
                    self.act(&work.agent);
                }
            }
            Event::Recall(id, term, leases) => {
                let machine = self.machines.get_mut(&id).unwrap();
                if term == self.term {
                    machine.agent.recall(&leases);
                    self.act(&id);
                }
            }
            Event::Wake(id) => {
                self.machines.get_mut(&id).unwrap().agent.wake();
                self.act(&id);
            }
            Event::Ask(ask) => {
                let told = self.leader.ask(&ask, self.now).expect("within every limit");
                if let Some(told) = told {
                    let told = Box::new(told);
                    self.send(|| Event::Told(ask.call.clone(), told.clone()));
                }
            }
            Event::Told(id, told) => self.told(&id, &told),
            Event::Computed(id, boot) => {
                if self.machines[&id].boot == boot {
                    self.compute(&id);
                }
            }
            Event::Renews(id) => self.renew(&id),
            Event::Ticks => self.tick(),
        }
        for (_, call, told) in self.leader.take_news(self.now) {
            self.send(|| Event::Told(call.clone(), Box::new(told.clone())));
        }
        if self.leader.take_wake() {
            let ids: Vec<AgentId> = self.machines.keys().cloned().collect();
            for id in ids {
                self.send(|| Event::Wake(id.clone()));
            }
        }
        for (id, leases) in self.leader.take_recalls() {
            let term = self.term;
            self.send(|| Event::Recall(id.clone(), term, leases.clone()));
        }
    }

    fn tick(&mut self) {
        self.leader.tick(self.now);
        self.after(STEP, Event::Ticks);
        if !self.is_troubled() {
            return;
        }
        let ids: Vec<AgentId> = self.machines.keys().cloned().collect();
        let id = &ids[self.rng.usize(..ids.len())];
        match self.rng.u16(..200) {
            // A machine dies, and starts again.
            0 => self.boot(id),
            1 => self.machines.get_mut(id).unwrap().agent.drain(),
            // The leader dies, and another one takes over.
            2..8 => {
                self.term.number += 1;
                self.leader = Leader::new(self.term, settings());
            }
            _ => {}
        }
    }
}

fn settings() -> LeaderSettings {
    LeaderSettings {
        limits: Limits {
            queue_length: 16,
            ..Limits::default()
        },
        ..LeaderSettings::default()
    }
}

/// Plays one schedule. Returns how long it took.
fn play(seed: u64) -> Duration {
    let mut rng = Rng::with_seed(seed);
    let troubled_until = [Duration::ZERO, 120 * SECOND][rng.usize(..2)];
    let mut world = World {
        rng,
        now: Duration::ZERO,
        queue: BinaryHeap::new(),
        events: BTreeMap::new(),
        leader: Leader::new(FIRST, settings()),
        term: FIRST,
        machines: BTreeMap::new(),
        calls: BTreeMap::new(),
        troubled_until,
        next: 0,
    };
    for number in 0..world.rng.usize(1..=8) {
        let id: AgentId = format!("agent {number}").into();
        world.boot(&id);
    }
    for number in 0..world.rng.usize(1..=5) {
        world.begin(number);
    }
    world.after(STEP, Event::Ticks);
    let spare: AgentId = "spare".into();
    while world.calls.values().any(|call| call.outcome.is_none()) {
        let Reverse((when, number)) = world.queue.pop().unwrap();
        if world.now < troubled_until && when >= troubled_until {
            // If all others have been drained, this one does the rest.
            world.boot(&spare);
        }
        world.now = when;
        assert!(when < 3_000 * SECOND, "it never ends");
        let event = world.events.remove(&number).unwrap();
        world.handle(event);
    }
    world.now
}

#[test]
fn a_fleet_finds_what_one_thread_finds_whatever_fails() {
    let first = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let schedules = std::env::var("SCHEDULES").ok();
    let schedules: Option<u64> = schedules.map(|count| count.parse().unwrap());
    let count = if first.is_some() {
        1
    } else {
        schedules.unwrap_or(40)
    };
    for number in 0..count {
        // The short form always plays the same schedules.
        let seed: u64 = first.unwrap_or_else(|| match schedules {
            Some(_) => fastrand::u64(..),
            None => number,
        });
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

//! The machines of a simulated fleet, and what happens to them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    num::NonZeroU64,
    ops::Range,
    sync::OnceLock,
    time::{Duration, Instant},
};

use fastrand::Rng;
use hashfinder_fleet::{
    Agent, AgentId, Beat, CallId, CallRenewal, CallUpdate, Command, Election, KeyAction, Leader,
    LeaderSettings, Orders, RemoteSearch, ServerId, Task, Term, Work,
};
use hashfinder_search::{
    Candidate, Checkpoint, Client, Index, Kernel, LeaseId, Limits, Outcome, Pacing, Query, TaskId,
    Tried,
};

use crate::{
    broker::{Broker, KeyResult},
    oracle::{Oracle, SECRETS, oracles},
    tried::Indices,
};

/// How long an agent computes before it looks at the next message, and a server waits before it
/// looks at what is due.
const STEP: Duration = Duration::from_millis(100);

const SECOND: Duration = Duration::from_secs(1);

/// Time after which a machine must not work on what no search wants, and after which searches must
/// make progress when all trouble is over.
const MOST_WASTED: Duration = Duration::from_secs(12);
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);

/// As in the servers of a fleet.
const LEADER_GONE_AFTER: Duration = Duration::from_secs(3);
const AGENTS_GONE_AFTER: Duration = Duration::from_secs(6);

/// Secrets per second of a server that searches itself.
const LOCAL_RATE: f64 = 1_000.0;

/// How large a simulated fleet is, and what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Up to 8 agents and 3 servers. In half of the schedules, anything may happen to them.
    Small,
    /// The same number of machines, without trouble.
    Calm,
    /// Many agents, whose speeds differ 200-fold, and many searches.
    Large {
        agents: usize,
        /// Searches, one after another.
        searches: usize,
        /// Whether a hundredth of all messages is lost, and an agent dies each second.
        trouble: bool,
    },
}

/// Number of secrets that a large fleet may try for each search.
const MANY_SECRETS: Index = 200_000_000;

/// Returns the oracles of large fleets. Each name is in one of 47 million hashes.
fn large_oracles() -> &'static [Oracle] {
    static ORACLES: OnceLock<Vec<Oracle>> = OnceLock::new();
    let names = ["doctor", "tardis", "oxygen", "finder"];
    ORACLES.get_or_init(|| {
        let names = names.into_iter();
        names
            .map(|name| Oracle::new(name, 0, 2, MANY_SECRETS))
            .collect()
    })
}

/// One end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Agent(usize),
    Server(usize),
}

/// What happens to a machine.
#[derive(Clone, Debug)]
enum Event {
    // To the leader of this term.
    Work(Work),
    CallRenewal(Term, CallRenewal),
    Ended(Term, CallId),
    // To the leader of any term.
    Who(usize),
    // To an agent.
    Orders(usize, Work, Orders),
    Notice(usize, AgentId, Term, Vec<LeaseId>),
    Term(usize, Term),
    /// A task that was stopped is left now.
    Left(usize, AgentId, TaskId),
    /// With the number of the plan that this belongs to.
    Computes(usize, u64),
    // To a server.
    Beat(usize, Beat),
    CallUpdate(usize, CallId, Box<CallUpdate>),
    Key(usize, u64, KeyResult),
    Ticks(usize, u64),
    // Not a message.
    Starts(End),
    Chaos,
}

/// What can happen to the process of a machine.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// Number of the process; 0 while there is none.
    boot: u64,
    paused_until: Duration,
    deaf_until: Duration,
    mute_until: Duration,
}

struct Machine {
    fate: Fate,
    id: AgentId,
    agent: Agent,
    /// Hashes per second.
    rate: f64,
    is_liar: bool,
    /// What it tries, the first one first.
    tasks: VecDeque<Trying>,
    /// What was stopped, and is not left yet.
    leaving: Vec<Tried>,
    /// Until when it has computed, and how many secrets of the next step that was.
    computed: Duration,
    rest: f64,
    /// Since when it has tried only what no search wants.
    wasting: Option<Duration>,
    /// Number of the latest plan, when to compute next.
    plan: u64,
    /// When it last looked for a leader.
    asked: Duration,
}

/// A task of a machine, as far as it has tried it.
struct Trying {
    task: Task,
    tried: Tried,
}

struct Server {
    fate: Fate,
    id: ServerId,
    election: Election,
    leader: Option<Leader>,
    calls: BTreeMap<CallId, Call>,
    beat: Option<(Beat, Duration)>,
    had_agents: Option<Duration>,
}

/// A call at its server.
struct Call {
    oracle: usize,
    query: Query,
    range: Range<Index>,
    place: Place,
    reported: Vec<Candidate>,
    /// The index below which these were compared with the oracle's, and how many that was.
    compared: (Index, usize),
    began: Duration,
    progressed: Duration,
    /// The most that the leader has covered of it since all trouble is over. It may have begun
    /// again then, by a message that took a minute, and agents may be slow.
    covered: u64,
}

enum Place {
    Fleet(Box<RemoteSearch>),
    /// The server searches itself, and has come so far.
    Here(Index),
}

pub(crate) struct World {
    size: Size,
    oracles: &'static [Oracle],
    /// Whether all leases are audited.
    is_untrusted: bool,
    rng: Rng,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    broker: Broker,
    machines: Vec<Machine>,
    servers: Vec<Server>,
    /// Which secrets were tried for each oracle's query.
    tried: Vec<Indices>,
    /// When a search for each oracle's query ended last.
    ended: Vec<Duration>,
    /// Calls that have not begun, and how many have not ended.
    to_begin: Vec<(usize, Range<Index>)>,
    running: usize,
    /// Maximum time that a message usually takes, in milliseconds.
    latency: u64,
    /// Until when messages are lost and machines die.
    troubled_until: Duration,
    last_trouble: Duration,
    next: u64,
    /// When agents have tried the secrets that are hits for an oracle's query.
    hits: BTreeMap<(usize, Index), Vec<Duration>>,
    /// Times from then until the server of the search had the answer.
    pub(crate) waits: Vec<Duration>,
    /// CPU time that leaders took.
    pub(crate) leaders: Duration,
}

/// Returns the number of an agent's machine.
fn machine_of(agent: &AgentId) -> usize {
    agent.split('.').next().unwrap().parse().unwrap()
}

fn oracle_of(oracles: &[Oracle], query: &Query) -> usize {
    find_oracle(oracles, query).expect("every query has an oracle")
}

/// Returns the oracle of a query; `None` if the query is a decoy.
fn find_oracle(oracles: &[Oracle], query: &Query) -> Option<usize> {
    let mut all = oracles.iter();
    let name = query.names()[0].as_str();
    all.position(|oracle| oracle.query.names()[0].as_str() == name)
}

fn settings(size: Size, is_untrusted: bool) -> LeaderSettings {
    let default = LeaderSettings {
        is_untrusted,
        ..LeaderSettings::default()
    };
    if size != Size::Small {
        return default;
    }
    // So small that searches often wait for their readers.
    LeaderSettings {
        limits: Limits {
            queue_length: 16,
            ..default.limits
        },
        pacing: Pacing {
            most_held: 16,
            ..default.pacing
        },
        ..default
    }
}

impl World {
    pub(crate) fn new(seed: u64, size: Size) -> World {
        let mut rng = Rng::with_seed(seed);
        let (oracles, secrets) = match size {
            Size::Large { .. } => (large_oracles(), MANY_SECRETS),
            _ => (oracles(), SECRETS),
        };
        let troubled_until = match size {
            Size::Small => [Duration::ZERO, 120 * SECOND][rng.usize(..2)],
            Size::Calm | Size::Large { trouble: false, .. } => Duration::ZERO,
            Size::Large { trouble: true, .. } => Duration::MAX,
        };
        let mut world = World {
            size,
            oracles,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            broker: Broker::new(),
            machines: Vec::new(),
            servers: Vec::new(),
            tried: vec![Indices::default(); oracles.len()],
            ended: vec![Duration::ZERO; oracles.len()],
            to_begin: Vec::new(),
            running: 0,
            latency: 30,
            troubled_until,
            // Messages that were sent in trouble arrive up to a minute later.
            last_trouble: match size {
                Size::Small if troubled_until > Duration::ZERO => troubled_until + 60 * SECOND,
                _ => Duration::ZERO,
            },
            next: 0,
            hits: BTreeMap::new(),
            waits: Vec::new(),
            leaders: Duration::ZERO,
            is_untrusted: false,
            rng,
        };
        world.is_untrusted = size == Size::Small && world.rng.u8(..4) == 0;
        if size == Size::Small && world.rng.u8(..8) == 0 {
            world.latency = 800;
        }
        let agents = match size {
            Size::Large { agents, .. } => agents,
            _ => world.rng.usize(1..=8),
        };
        for number in 0..agents {
            let is_liar = size == Size::Small && world.rng.u8(..10) == 0;
            world.machines.push(Machine {
                fate: Fate::default(),
                id: "".into(),
                agent: Agent::new("".into(), 0.0, "1".into()),
                rate: 0.0,
                is_liar,
                tasks: VecDeque::new(),
                leaving: Vec::new(),
                computed: Duration::ZERO,
                rest: 0.0,
                wasting: None,
                plan: 0,
                asked: Duration::ZERO,
            });
            // A large fleet is ready before the first search begins.
            world.at(Duration::ZERO, Event::Starts(End::Agent(number)));
        }
        for number in 0..world.rng.usize(1..=3) {
            let id: ServerId = "".into();
            world.servers.push(Server {
                fate: Fate::default(),
                election: Election::new(id.clone(), 0, Duration::ZERO),
                id,
                leader: None,
                calls: BTreeMap::new(),
                beat: None,
                had_agents: None,
            });
            world.at(Duration::ZERO, Event::Starts(End::Server(number)));
        }
        let searches = match size {
            Size::Large { searches, .. } => searches,
            _ => world.rng.usize(1..=5),
        };
        for _ in 0..searches {
            let oracle = world.rng.usize(..oracles.len());
            let start = [0, world.rng.u64(..secrets / 2)][world.rng.usize(..2)];
            let budget = match size {
                Size::Large { .. } => secrets - start,
                _ => world.rng.u64(1..=secrets - start),
            };
            world.to_begin.push((oracle, start..start + budget));
        }
        world.running = world.to_begin.len();
        world.after(STEP, Event::Chaos);
        world
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Makes the broker's streams have no leader from a moment on.
    pub(crate) fn without_streams_from(mut self, from: Duration) -> World {
        self.broker.leaderless_from = from;
        self
    }

    /// Returns how long a machine that tries one secret a second would take for all searches.
    pub(crate) fn secrets(&self) -> Duration {
        let ranges = self
            .to_begin
            .iter()
            .map(|(_, range)| range.end - range.start);
        Duration::from_secs(ranges.sum())
    }

    /// Returns how many secrets all agents try per second.
    pub(crate) fn rate(&self) -> f64 {
        self.machines.iter().map(|machine| machine.rate).sum()
    }

    /// Plays the schedule to its end.
    pub(crate) fn run(mut self) -> World {
        while self.running > 0 {
            let Reverse((when, number)) = self.queue.pop().unwrap();
            self.now = when;
            assert!(when < 10_000 * SECOND, "it never ends");
            let event = self.events.remove(&number).unwrap();
            self.happen(event);
        }
        self
    }

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

    fn fate(&mut self, end: End) -> &mut Fate {
        match end {
            End::Agent(number) => &mut self.machines[number].fate,
            End::Server(number) => &mut self.servers[number].fate,
        }
    }

    /// Sends a message, which may be lost, late, or arrive twice.
    fn send(&mut self, from: End, event: &Event) {
        let now = self.now;
        if !self.broker.is_up(now) || self.fate(from).mute_until > now {
            return;
        }
        if let Size::Large { trouble, .. } = self.size {
            if !trouble || self.rng.u8(..100) > 0 {
                let delay = Duration::from_micros(self.rng.u64(300..5_000));
                self.after(delay, event.clone());
            }
            return;
        }
        let copies = match self.rng.u8(..20) {
            0 if self.is_troubled() => 0,
            1 if self.is_troubled() => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let most = match self.rng.u8(..20) {
                0 if self.is_troubled() => 60_000,
                1..3 if self.is_troubled() => 3_000,
                _ => self.latency,
            };
            let delay = Duration::from_millis(self.rng.u64(1..=most));
            self.after(delay, event.clone());
        }
    }

    /// Returns whom an event happens to, and whether it is a message.
    fn addressee(&self, event: &Event) -> Option<(End, bool)> {
        let leads = |term: Option<Term>| {
            let leads = |server: &Server| {
                let own = server.leader.as_ref().map(Leader::term);
                own.is_some() && (term.is_none() || own == term)
            };
            let place = self.servers.iter().position(leads);
            place.map(|place| (End::Server(place), true))
        };
        match event {
            Event::Work(work) => leads(Some(work.term)),
            Event::CallRenewal(term, _) | Event::Ended(term, _) => leads(Some(*term)),
            Event::Who(_) => leads(None),
            Event::Orders(to, ..) | Event::Notice(to, ..) | Event::Term(to, _) => {
                Some((End::Agent(*to), true))
            }
            Event::Computes(to, _) | Event::Left(to, ..) => Some((End::Agent(*to), false)),
            Event::Beat(to, _) | Event::CallUpdate(to, ..) => Some((End::Server(*to), true)),
            Event::Key(to, ..) | Event::Ticks(to, _) => Some((End::Server(*to), false)),
            Event::Starts(_) | Event::Chaos => None,
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some((end, is_message)) = self.addressee(&event) {
            let (now, is_up) = (self.now, self.broker.is_up(self.now));
            let fate = self.fate(end);
            if fate.boot == 0 || is_message && (!is_up || fate.deaf_until > now) {
                return;
            }
            let resumes = fate.paused_until;
            if resumes > now {
                self.at(resumes, event);
                return;
            }
        }
        match event {
            Event::Work(work) => self.work(&work),
            Event::CallRenewal(term, ask) => self.ask(term, &ask),
            Event::Ended(term, call) => {
                if let Some(place) = self.leads(term) {
                    let now = self.now;
                    self.leader(place).end(&call, now);
                    self.tell(place);
                }
            }
            Event::Who(agent) => {
                let leads = |server: &Server| server.leader.is_some();
                if let Some(place) = self.servers.iter().position(leads) {
                    let term = self.leader(place).term();
                    self.send(End::Server(place), &Event::Term(agent, term));
                }
            }
            Event::Orders(to, work, orders) => {
                if self.machines[to].id == work.agent {
                    let now = self.now;
                    self.compute(to);
                    self.machines[to].agent.orders(&work, orders, now);
                    self.act(to);
                }
            }
            Event::Notice(to, agent, term, leases) => {
                let machine = &self.machines[to];
                if machine.id == agent && machine.agent.term() == term {
                    self.compute(to);
                    self.machines[to].agent.notice(&leases);
                    self.act(to);
                }
            }
            Event::Left(to, agent, task) => {
                let (now, machine) = (self.now, &mut self.machines[to]);
                let mut leaving = machine.leaving.iter();
                let place = leaving.position(|tried| tried.task == task);
                if machine.id == agent
                    && let Some(place) = place
                {
                    let tried = machine.leaving.remove(place);
                    machine.agent.done(tried, now);
                    self.act(to);
                }
            }
            Event::Term(to, term) => {
                let now = self.now;
                self.machines[to].agent.heard(term, now);
                self.act(to);
            }
            Event::Computes(to, plan) => {
                if self.machines[to].plan == plan {
                    self.compute(to);
                    self.act(to);
                }
            }
            Event::Beat(to, beat) => self.beat(to, &beat),
            Event::CallUpdate(to, call, told) => self.told(to, &call, *told),
            Event::Key(to, boot, result) => {
                if self.servers[to].fate.boot == boot {
                    self.key(to, result);
                }
            }
            Event::Ticks(to, boot) => {
                if self.servers[to].fate.boot == boot {
                    self.tick(to);
                }
            }
            Event::Starts(End::Agent(number)) => self.start_agent(number),
            Event::Starts(End::Server(number)) => self.start_server(number),
            Event::Chaos => self.chaos(),
        }
    }

    // Agents.

    fn start_agent(&mut self, number: usize) {
        self.next += 1;
        let boot = self.next;
        let rate = match self.size {
            Size::Large { .. } => 100.0 * 200_f64.powf(self.rng.f64()),
            _ => [500.0, 2_000.0, 9_000.0][self.rng.usize(..3)],
        };
        // What it measured at its start may be wrong.
        let believed = rate * [0.1, 1.0, 1.0, 30.0][self.rng.usize(..4)];
        let believed = match self.size {
            Size::Large { .. } => rate * (0.8 + 0.4 * self.rng.f64()),
            _ => believed,
        };
        let id: AgentId = format!("{number}.machine.{boot}").into();
        let machine = &mut self.machines[number];
        machine.fate = Fate {
            boot,
            ..Fate::default()
        };
        machine.agent = Agent::new(id.clone(), believed, "1".into());
        machine.id = id;
        machine.rate = rate;
        machine.tasks.clear();
        machine.leaving.clear();
        machine.computed = self.now;
        machine.rest = 0.0;
        machine.wasting = None;
        self.act(number);
    }

    /// Tries the secrets that an agent has had time for.
    fn compute(&mut self, number: usize) {
        let (now, oracles) = (self.now, self.oracles);
        let machine = &mut self.machines[number];
        // It does nothing while it is paused.
        let since = machine.computed.max(machine.fate.paused_until);
        machine.computed = now;
        let mut left = machine.rest + machine.rate * now.saturating_sub(since).as_secs_f64();
        while left >= 1.0
            && let Some(Trying { task, tried }) = machine.tasks.front_mut()
        {
            let is_wanted = |query| {
                let oracle = find_oracle(oracles, query);
                oracle.is_some_and(|oracle| now < self.ended[oracle] + SECOND)
            };
            if task.set.queries().any(is_wanted) {
                machine.wasting = None;
            } else {
                // It may have a lease of a call that a late message has begun again.
                let wasting = *machine.wasting.get_or_insert(since);
                assert!(
                    now < wasting.max(machine.fate.paused_until) + MOST_WASTED || self.running == 0,
                    "agent {number} works on what no search wants"
                );
            }
            let start = tried.tried;
            let end = task.range.end.min(start + left as u64);
            let (reached, hits) = scan(oracles, task, start..end, tried.hits.len());
            for query in task.set.queries() {
                let Some(oracle) = find_oracle(oracles, query) else {
                    continue;
                };
                self.tried[oracle].add(start..reached);
                for index in &hits {
                    self.hits.entry((oracle, *index)).or_default().push(now);
                }
            }
            let count = (reached - start) as f64;
            left -= count;
            tried.tried = reached;
            tried.hits.extend(hits);
            tried.took += Duration::from_secs_f64(count / machine.rate);
            let ends_early = reached < end || tried.hits.len() >= task.hit_limit;
            if reached < task.range.end && !ends_early {
                break;
            }
            let tried = machine.tasks.pop_front().unwrap().tried;
            machine.agent.done(tried, now);
        }
        machine.rest = if machine.tasks.is_empty() {
            machine.wasting = None;
            0.0
        } else {
            left.min(1.0)
        };
        machine.agent.tick(now);
    }

    /// Plans when an agent computes next: when its first lease is done, or something may be due.
    fn plan(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let left = machine.tasks.front().map_or(f64::MAX, |trying| {
            (trying.task.range.end - trying.tried.tried) as f64 / machine.rate
        });
        let most = match self.size {
            Size::Large { .. } => SECOND / 4,
            _ => STEP,
        };
        let pause = Duration::try_from_secs_f64(left).map_or(most, |left| left.min(most));
        self.next += 1;
        let plan = self.next;
        self.machines[number].plan = plan;
        self.after(
            pause + Duration::from_micros(1),
            Event::Computes(number, plan),
        );
    }

    /// Does what an agent says, sends its message if it is due, and plans what comes next.
    fn act(&mut self, number: usize) {
        let now = self.now;
        for command in self.machines[number].agent.take_commands() {
            let machine = &mut self.machines[number];
            match command {
                Command::Try(task) => machine.tasks.push_back(Trying {
                    tried: Tried {
                        task: task.id,
                        tried: task.range.start,
                        hits: Vec::new(),
                        took: Duration::ZERO,
                        failed: false,
                    },
                    task,
                }),
                Command::Stop(id) => {
                    let mut tasks = machine.tasks.iter();
                    let place = tasks.position(|trying| trying.task.id == id);
                    if let Some(stopped) = place.and_then(|place| machine.tasks.remove(place)) {
                        machine.leaving.push(stopped.tried);
                        let event = Event::Left(number, machine.id.clone(), id);
                        let delay = match self.size {
                            Size::Large { .. } => 500,
                            _ => self.rng.u64(..100_000),
                        };
                        self.after(Duration::from_micros(delay), event);
                    }
                }
            }
        }
        self.plan(number);
        let machine = &mut self.machines[number];
        let is_drained = machine.agent.is_drained();
        let has_leader = machine.agent.term() != Term::default();
        let work = (has_leader && machine.agent.is_due(now)).then(|| machine.agent.work(now));
        let looks = machine.agent.is_lost(now) && now >= machine.asked + SECOND;
        if looks {
            machine.asked = now;
        }
        if is_drained {
            // Another process takes its place.
            machine.fate.boot = 0;
            self.after(SECOND, Event::Starts(End::Agent(number)));
            return;
        }
        if let Some(mut work) = work {
            if self.machines[number].is_liar {
                self.lie(&mut work);
            }
            self.send(End::Agent(number), &Event::Work(work));
        }
        if looks {
            self.send(End::Agent(number), &Event::Who(number));
        }
    }

    /// Changes a report so that it cannot be true.
    fn lie(&mut self, work: &mut Work) {
        let Some(report) = work.reports.first_mut() else {
            return;
        };
        match self.rng.u8(..6) {
            0 => report.tried += 1_000_000,
            1 => report.hits.push(report.tried),
            2 => report.hits.insert(0, report.tried.saturating_sub(1)),
            3 => report.hits.insert(0, 0),
            4 => report.hits.reverse(),
            _ => {}
        }
    }

    // Servers.

    fn start_server(&mut self, number: usize) {
        self.next += 1;
        let boot = self.next;
        let id: ServerId = format!("{number}.{boot}").into();
        let seed = self.rng.u64(..);
        let server = &mut self.servers[number];
        assert!(server.calls.is_empty());
        server.fate = Fate {
            boot,
            ..Fate::default()
        };
        server.election = Election::new(id.clone(), seed, self.now);
        server.id = id;
        server.leader = None;
        server.beat = None;
        server.had_agents = None;
        self.after(STEP, Event::Ticks(number, boot));
    }

    fn leads(&self, term: Term) -> Option<usize> {
        let leads = |server: &Server| server.leader.as_ref().map(Leader::term) == Some(term);
        self.servers.iter().position(leads)
    }

    fn leader(&mut self, place: usize) -> &mut Leader {
        self.servers[place].leader.as_mut().expect("it leads")
    }

    fn work(&mut self, work: &Work) {
        let Some(place) = self.leads(work.term) else {
            return;
        };
        let now = self.now;
        let may_deal = self.servers[place].election.may_deal(now);
        let began = Instant::now();
        let orders = self.leader(place).work(work, may_deal, now);
        self.leaders += began.elapsed();
        let to = machine_of(&work.agent);
        self.send(End::Server(place), &Event::Orders(to, work.clone(), orders));
        self.tell(place);
    }

    fn ask(&mut self, term: Term, ask: &CallRenewal) {
        let Some(place) = self.leads(term) else {
            return;
        };
        let now = self.now;
        let began = Instant::now();
        let told = self.leader(place).renew(ask, now);
        self.leaders += began.elapsed();
        let told = told.expect("within every limit");
        if let Some(told) = told {
            self.say(place, &ask.server, &ask.call, told);
        }
        self.tell(place);
    }

    fn say(&mut self, place: usize, server: &ServerId, call: &CallId, told: CallUpdate) {
        let mut servers = self.servers.iter();
        if let Some(to) = servers.position(|one| one.id == *server) {
            let event = Event::CallUpdate(to, call.clone(), Box::new(told));
            self.send(End::Server(place), &event);
        }
    }

    /// Sends all that a leader has to say.
    fn tell(&mut self, place: usize) {
        let now = self.now;
        let leader = self.leader(place);
        let term = leader.term();
        let news = leader.take_updates(now);
        let banned = leader.take_banned();
        let notices = leader.take_notices();
        for (server, call, told) in news {
            self.say(place, &server, &call, told);
        }
        for ban in banned {
            let machine = &self.machines[machine_of(&ban.agent)];
            assert!(machine.is_liar, "{ban:?}");
        }
        let from = End::Server(place);
        for (agent, leases) in notices {
            let to = machine_of(&agent);
            self.send(from, &Event::Notice(to, agent, term, leases));
        }
    }

    fn tick(&mut self, place: usize) {
        let (now, boot) = (self.now, self.servers[place].fate.boot);
        self.after(STEP, Event::Ticks(place, boot));
        let is_connected = self.broker.is_up(now);
        let server = &mut self.servers[place];
        server.election.connection(is_connected, now);
        if let Some(action) = server.election.tick(now) {
            self.carry_out(place, action);
        }
        if let Some(leader) = &mut self.servers[place].leader {
            let began = Instant::now();
            leader.tick(now);
            self.leaders += began.elapsed();
        }
        self.show_life(place);
        self.leads_on(place);
        let is_free =
            !matches!(self.size, Size::Large { .. }) || self.running == self.to_begin.len();
        if self.rng.u8(..20) == 0
            && is_free
            && let Some((oracle, range)) = self.to_begin.pop()
        {
            self.begin(place, oracle, range);
        }
        self.check_calls(place);
        self.renew(place);
    }

    fn carry_out(&mut self, place: usize, action: KeyAction) {
        let boot = self.servers[place].fate.boot;
        let trouble = self.is_troubled();
        // A write may be stored after its writer has died.
        let result = self
            .broker
            .carry_out(action, trouble, &mut self.rng, self.now);
        let most = if trouble && self.rng.u8(..10) == 0 {
            5_000
        } else {
            30
        };
        let delay = Duration::from_millis(self.rng.u64(1..=most));
        self.after(delay, Event::Key(place, boot, result));
    }

    fn key(&mut self, place: usize, result: KeyResult) {
        let now = self.now;
        let election = &mut self.servers[place].election;
        let next = match result {
            KeyResult::Read(stored) => election.has_read(stored, now),
            KeyResult::Written(revision) => election.has_written(revision, now),
            KeyResult::Released => None,
        };
        if let Some(action) = next {
            self.carry_out(place, action);
        }
        self.leads_on(place);
    }

    fn show_life(&mut self, place: usize) {
        let now = self.now;
        let server = &mut self.servers[place];
        let Some(leader) = &server.leader else { return };
        if !server.election.take_beat(now) {
            return;
        }
        let capacity = leader.capacity(now);
        let Some(beat) = server.election.beat(capacity, now) else {
            return;
        };
        for to in 0..self.servers.len() {
            if to == place {
                self.hears(place, &beat);
            } else {
                self.send(End::Server(place), &Event::Beat(to, beat.clone()));
            }
        }
    }

    fn hears(&mut self, place: usize, beat: &Beat) {
        let now = self.now;
        let server = &mut self.servers[place];
        if beat.agents > 0 {
            server.had_agents = Some(now);
        }
        server.beat = Some((beat.clone(), now));
    }

    fn beat(&mut self, place: usize, beat: &Beat) {
        let now = self.now;
        let election = &mut self.servers[place].election;
        let before = election.leader(now);
        election.heard(beat, now);
        if election.leader(now) != Some(beat.term) {
            return;
        }
        self.leads_on(place);
        self.hears(place, beat);
        if before != Some(beat.term) {
            self.follow_new(place);
        }
    }

    fn follow_new(&mut self, place: usize) {
        for call in self.servers[place].calls.values_mut() {
            if let Place::Fleet(search) = &mut call.place {
                search.renew_at_once();
            }
        }
        self.renew(place);
    }

    fn leads_on(&mut self, place: usize) {
        let server = &self.servers[place];
        let term = server.election.term();
        if server.leader.as_ref().map(Leader::term) == term {
            return;
        }
        let (settings, seed) = (settings(self.size, self.is_untrusted), self.rng.u8(..));
        let server = &mut self.servers[place];
        server.leader = term.map(|term| Leader::new(term, settings, [seed; 32]));
        if let Some(term) = term {
            for to in 0..self.machines.len() {
                self.send(End::Server(place), &Event::Term(to, term));
            }
            self.follow_new(place);
        }
    }

    // Calls.

    fn begin(&mut self, place: usize, oracle: usize, range: Range<Index>) {
        let query = self.oracles[oracle].query.clone().starting_at(range.start);
        let budget = NonZeroU64::new(range.end - range.start).unwrap();
        let query = query.hash_budget(budget);
        self.next += 1;
        let id: CallId = self.next.to_string().into();
        let call = Call {
            oracle,
            query,
            place: Place::Here(range.start),
            compared: (range.start, 0),
            range,
            reported: Vec::new(),
            began: self.now,
            progressed: self.now,
            covered: 0,
        };
        self.ended[oracle] = self.now;
        self.servers[place].calls.insert(id, call);
    }

    /// Searches for calls that are not in the fleet, and moves calls to it and from it.
    fn check_calls(&mut self, place: usize) {
        let now = self.now;
        let server = &mut self.servers[place];
        let beat = server.beat.as_ref();
        let has_fleet = beat.is_some_and(|(beat, at)| {
            beat.agents > 0 && now.saturating_sub(*at) < LEADER_GONE_AFTER
        });
        let had_agents = server.had_agents;
        let has_agents = had_agents.is_some_and(|at| now.saturating_sub(at) < AGENTS_GONE_AFTER);
        let ids: Vec<CallId> = server.calls.keys().cloned().collect();
        for id in ids {
            let call = self.servers[place].calls.get_mut(&id).unwrap();
            let stuck = now.saturating_sub(call.progressed.max(self.last_trouble));
            // Where messages are slow, searches that wait for their readers are, too.
            let most = if self.latency < 100 {
                PROGRESS_WITHIN
            } else {
                PROGRESS_WITHIN * 4
            };
            assert!(stuck < most, "call {id} makes no progress");
            match &mut call.place {
                Place::Fleet(search) => {
                    search.check(has_agents, now);
                    if search.outcome().is_some() {
                        // It was stopped, and the leader has not answered in time.
                        self.stopped(place, &id);
                        continue;
                    }
                    if search.is_stranded() {
                        let (candidates, checkpoint) = search.take();
                        call.reported.extend(candidates);
                        call.place = Place::Here(checkpoint.frontier());
                    }
                }
                Place::Here(frontier) => {
                    let from = *frontier;
                    let to = (from + (LOCAL_RATE * STEP.as_secs_f64()) as u64).min(call.range.end);
                    let (expected, ideal) = self.oracles[call.oracle].expect(from..to);
                    call.reported.extend(expected);
                    let to = ideal.map_or(to, |found| found.index + 1);
                    self.tried[call.oracle].add(from..to);
                    call.progressed = now;
                    if ideal.is_some() || to == call.range.end {
                        self.end(place, &id, ideal);
                        continue;
                    }
                    call.place = Place::Here(to);
                    if has_fleet {
                        self.pass_on(place, &id, to);
                    }
                }
            }
        }
    }

    /// Passes a call to the fleet. There, it has another number each time.
    fn pass_on(&mut self, place: usize, id: &CallId, frontier: Index) {
        self.next += 1;
        let new: CallId = self.next.to_string().into();
        let now = self.now;
        let mut call = self.servers[place].calls.remove(id).unwrap();
        let end = Checkpoint::new(&call.query).end();
        let to_cover = std::iter::once(frontier..end).collect();
        let checkpoint = Checkpoint::restore(&call.query, to_cover, &[], end).unwrap();
        let client = Client {
            name: ["a", "b"][call.oracle % 2].into(),
            ..Client::default()
        };
        let search = RemoteSearch::new(new.clone(), client, call.query.clone(), checkpoint, now);
        call.place = Place::Fleet(Box::new(search));
        self.servers[place].calls.insert(new, call);
    }

    fn renew(&mut self, place: usize) {
        let now = self.now;
        let server = &mut self.servers[place];
        let Some(term) = server.election.leader(now) else {
            return;
        };
        let id = server.id.clone();
        let asks = server
            .calls
            .values_mut()
            .filter_map(|call| match &mut call.place {
                Place::Fleet(search) => search.renewal(&id, now),
                Place::Here(_) => None,
            });
        let asks: Vec<CallRenewal> = asks.collect();
        for ask in asks {
            self.send(End::Server(place), &Event::CallRenewal(term, ask));
        }
    }

    fn told(&mut self, place: usize, id: &CallId, told: CallUpdate) {
        let now = self.now;
        let Some(call) = self.servers[place].calls.get_mut(id) else {
            return;
        };
        let Place::Fleet(search) = &mut call.place else {
            return;
        };
        let before = search.progress();
        let covered = told.checkpoint.covered(&call.query);
        search.update(told, now);
        if search.progress().tests > before.tests {
            call.progressed = now;
        }
        if now >= self.last_trouble && covered > call.covered {
            call.covered = covered;
            call.progressed = now;
        }
        if self.rng.u8(..4) == 0 && search.outcome().is_none() {
            // The reader is slow.
            return;
        }
        let (candidates, checkpoint) = search.take();
        call.reported.extend(candidates);
        let frontier = checkpoint.frontier();
        let oracle = &self.oracles[call.oracle];
        let (from, count) = call.compared;
        assert!(
            frontier >= from,
            "call {id} goes back from {from} to {frontier}"
        );
        let (expected, ideal) = oracle.expect(from..frontier);
        let new = &call.reported[count..];
        assert_eq!(new, expected, "call {id} from {from} to {frontier}");
        if ideal.is_none() {
            call.compared = (frontier, call.reported.len());
        }
        let covered = call.range.start..frontier;
        assert!(
            self.tried[call.oracle].has(&covered),
            "call {id}: {covered:?} was not tried for it"
        );
        match search.outcome() {
            None => {}
            Some(Outcome::Ideal(found)) => assert_eq!(Some(*found), ideal),
            Some(Outcome::BudgetSpent(_)) => {
                assert_eq!((frontier, ideal), (call.range.end, None));
            }
            Some(Outcome::Stopped(cursor)) => {
                assert_eq!(cursor.frontier(), frontier);
                self.stopped(place, id);
                return;
            }
            Some(other) => panic!("{other:?}"),
        }
        if search.outcome().is_some() {
            self.end(place, id, ideal);
        }
    }

    fn end(&mut self, place: usize, id: &CallId, ideal: Option<Candidate>) {
        let call = self.servers[place].calls.remove(id).unwrap();
        let oracle: &Oracle = &self.oracles[call.oracle];
        let (expected, found) = oracle.expect(call.range.clone());
        assert_eq!((call.reported, ideal), (expected, found), "call {id}");
        if let Some(found) = ideal
            && let Some(tries) = self.hits.get(&(call.oracle, found.index))
            && let Some(first) = tries.iter().find(|at| **at >= call.began)
        {
            self.waits.push(self.now.saturating_sub(*first));
        }
        self.running -= 1;
        self.leave(place, id, call.oracle);
    }

    /// Notes that a call is over, and sends its end to the leader.
    fn leave(&mut self, place: usize, id: &CallId, oracle: usize) {
        let now = self.now;
        let is_wanted = |call: &Call| call.oracle == oracle;
        let mut calls = self.servers.iter().flat_map(|server| server.calls.values());
        self.ended[oracle] = if calls.any(is_wanted) {
            Duration::from_secs(1 << 40)
        } else {
            now
        };
        if let Some(term) = self.servers[place].election.leader(now) {
            self.send(End::Server(place), &Event::Ended(term, id.clone()));
        }
    }

    // Trouble.

    fn chaos(&mut self) {
        self.after(STEP, Event::Chaos);
        for oracle in 0..self.oracles.len() {
            let mut calls = self.servers.iter().flat_map(|server| server.calls.values());
            if calls.any(|call| call.oracle == oracle) {
                self.ended[oracle] = self.now;
            }
        }
        if !self.is_troubled() {
            return;
        }
        if let Size::Large { agents, .. } = self.size {
            self.last_trouble = self.now;
            if self.now.as_millis() % 1_000 < STEP.as_millis() {
                let agent = self.rng.usize(..agents);
                self.machines[agent].fate.boot = 0;
                self.machines[agent].plan = 0;
                self.after(5 * SECOND, Event::Starts(End::Agent(agent)));
            }
            return;
        }
        let agent = self.rng.usize(..self.machines.len());
        let server = self.rng.usize(..self.servers.len());
        let end = if self.rng.bool() {
            End::Agent(agent)
        } else {
            End::Server(server)
        };
        let pause = |rng: &mut Rng, most: u64| Duration::from_millis(rng.u64(..most));
        match self.rng.u16(..700) {
            0..2 => {
                self.machines[agent].fate.boot = 0;
                let pause = pause(&mut self.rng, 5_000);
                self.after(pause, Event::Starts(End::Agent(agent)));
            }
            2 => self.machines[agent].agent.drain(),
            3 => {
                let pause = pause(&mut self.rng, 60_000);
                self.fate(end).paused_until = self.now + pause;
            }
            4 => self.kill_server(server),
            5 => self.broker.down_until = self.now + pause(&mut self.rng, 5_000),
            6 => self.broker.leaderless_until = self.now + [7, 40][self.rng.usize(..2)] * SECOND,
            7 => self.broker.lose_key(),
            8 => self.broker.restore_old(&mut self.rng),
            9 => self.broker.set_back(&mut self.rng),
            10 => self.fate(end).deaf_until = self.now + pause(&mut self.rng, 20_000),
            11 => self.fate(end).mute_until = self.now + pause(&mut self.rng, 20_000),
            12 => self.cancel(server),
            13 => {
                if let Some((beat, action)) = self.servers[server].election.resign() {
                    for to in 0..self.servers.len() {
                        self.send(End::Server(server), &Event::Beat(to, beat.clone()));
                    }
                    self.carry_out(server, action);
                }
                self.kill_server(server);
            }
            _ => return,
        }
        let paused = self.machines.iter().map(|machine| &machine.fate);
        let paused = paused.chain(self.servers.iter().map(|server| &server.fate));
        let paused = paused.map(|fate| fate.paused_until.max(fate.deaf_until).max(fate.mute_until));
        // Messages that were sent in trouble arrive up to a minute later.
        self.last_trouble = paused.fold(self.troubled_until + 60 * SECOND, Duration::max);
    }

    fn kill_server(&mut self, place: usize) {
        let server = &mut self.servers[place];
        if server.fate.boot == 0 {
            return;
        }
        server.fate.boot = 0;
        server.leader = None;
        // Its clients call again, at another server or later.
        for call in std::mem::take(&mut server.calls).into_values() {
            self.to_begin.push((call.oracle, call.range));
        }
        let pause = Duration::from_millis(self.rng.u64(..10_000));
        self.after(pause, Event::Starts(End::Server(place)));
    }

    /// Cancels a call. Half of them wait for the leader to say how far they came.
    fn cancel(&mut self, place: usize) {
        let now = self.now;
        let Some(id) = self.servers[place].calls.keys().next().cloned() else {
            return;
        };
        if let Some(call) = self.servers[place].calls.get_mut(&id)
            && let Place::Fleet(search) = &mut call.place
            && self.rng.bool()
        {
            search.stop(now);
            self.renew(place);
            return;
        }
        self.stopped(place, &id);
    }

    /// Notes that a call was stopped.
    fn stopped(&mut self, place: usize, id: &CallId) {
        let call = self.servers[place].calls.remove(id).unwrap();
        self.running -= 1;
        self.leave(place, id, call.oracle);
    }
}

/// Returns one past the last index that an agent tries, and the indices of the hits that it finds.
/// It has found some of the lease before.
fn scan(oracles: &[Oracle], task: &Task, range: Range<Index>, found: usize) -> (Index, Vec<Index>) {
    let mut hits: Vec<Index> = Vec::new();
    for query in task.set.queries() {
        if let Some(oracle) = find_oracle(oracles, query) {
            let of_query = oracles[oracle].hits(range.clone()).iter();
            hits.extend(of_query.map(|hit| hit.index));
        } else {
            let mut found = Vec::new();
            let matcher = query.matcher();
            matcher.scan(Kernel::best(), range.clone(), usize::MAX, &mut found);
            hits.extend(found.iter().map(|found| found.index));
        }
    }
    hits.sort_unstable();
    hits.dedup();
    // A hit that ends a search ends the lease.
    let ideal = task.set.ending().filter_map(|query| {
        let oracle = &oracles[oracle_of(oracles, query)];
        let mut hits = oracle.hits(range.clone()).iter();
        hits.find(|hit| oracle.is_ideal(hit)).map(|hit| hit.index)
    });
    if let Some(ideal) = ideal.min() {
        hits.retain(|hit| *hit <= ideal);
        if hits.len() + found < task.hit_limit {
            return (ideal + 1, hits);
        }
    }
    let limit = task.hit_limit - found;
    match hits.get(limit - 1).copied() {
        Some(last) => {
            hits.truncate(limit);
            (last + 1, hits)
        }
        None => (range.end, hits),
    }
}

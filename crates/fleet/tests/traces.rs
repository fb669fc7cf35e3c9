//! Sequences of events that have broken a design of a fleet, each as a test.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use hashfinder_fleet::{
    Agent, AgentId, CallRenewal, CallUpdate, Command, Leader, LeaderSettings, Order, Orders,
    Report, SILENT_AFTER, Task, Term, Work,
};
use hashfinder_search::{Checkpoint, Client, Distance, Index, Kernel, Outcome, Query, Tried};

const SECOND: Duration = Duration::from_secs(1);

fn term_of(number: u64) -> Term {
    Term { number, nonce: 0 }
}

struct Scene {
    leader: Leader,
    term: Term,
    now: Duration,
    sequence: u64,
}

impl Scene {
    fn new(term: u64) -> Scene {
        let settings = LeaderSettings {
            // The agents of these tests do not really try their leases.
            audited: 0,
            ..LeaderSettings::default()
        };
        Scene {
            leader: Leader::new(term_of(term), settings, [0; 32]),
            term: term_of(term),
            now: SECOND,
            sequence: 0,
        }
    }

    /// Begins or renews a call for a name, and returns the leader's answer.
    fn ask(&mut self, name: &str) -> CallUpdate {
        let query = Query::new(name.parse().unwrap(), Distance::ZERO).unwrap();
        self.ask_about(name, &query, Checkpoint::new(&query), 0)
    }

    fn ask_about(
        &mut self,
        call: &str,
        query: &Query,
        checkpoint: Checkpoint,
        from: Index,
    ) -> CallUpdate {
        let ask = CallRenewal {
            call: call.into(),
            server: "server".into(),
            client: Client::default(),
            query: query.clone(),
            checkpoint,
            from,
            stops: false,
        };
        self.leader.renew(&ask, self.now).unwrap().unwrap()
    }

    fn frontier(&mut self, name: &str) -> Index {
        self.ask(name).checkpoint.frontier()
    }

    fn work(&mut self, agent: &str, holds: &[&Order], reports: Vec<Report>) -> Orders {
        let work = self.message(agent, holds, reports);
        self.leader.work(&work, true, self.now)
    }

    fn message(&mut self, agent: &str, holds: &[&Order], reports: Vec<Report>) -> Work {
        self.sequence += 1;
        Work {
            agent: AgentId::from(agent),
            sequence: self.sequence,
            answered: self.sequence - 1,
            term: self.term,
            rate: 1e6,
            version: "1".into(),
            is_draining: false,
            holds: holds.iter().map(|order| order.lease).collect(),
            reports,
            knows: Vec::new(),
        }
    }
}

/// Returns the report of a lease that was tried completely, without a hit.
fn done(order: &Order) -> Report {
    Report {
        lease: order.lease,
        tried: order.range.end,
        hits: Vec::new(),
        took: order.planned,
        failed: false,
    }
}

const HARD: &str = "hashfinderhashfinder";

/// A is silent, so its lease goes to B. Later A reports it after all.
#[test]
fn a_report_after_the_lease_was_taken_back_counts_for_nothing() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let first = scene.work("A", &[], Vec::new()).leases.remove(0);
    scene.now += SILENT_AFTER;
    scene.ask(HARD);
    scene.leader.tick(scene.now);
    let again = scene.work("B", &[], Vec::new()).leases.remove(0);
    assert_eq!(again.range, first.range);
    let late = scene.work("A", &[&first], vec![done(&first)]);
    assert_eq!(late.over, [first.lease]);
    assert_eq!(scene.frontier(HARD), 0);
    scene.work("B", &[], vec![done(&again)]);
    assert_eq!(scene.frontier(HARD), again.range.end);
    scene.work("B", &[], vec![done(&again)]);
    assert_eq!(scene.frontier(HARD), again.range.end);
}

/// Each leader numbers its leases from the start, so only the term distinguishes them.
#[test]
fn a_report_of_an_earlier_term_counts_for_nothing() {
    let mut old = Scene::new(1);
    old.ask(HARD);
    let lease = old.work("A", &[], Vec::new()).leases.remove(0);
    let mut new = Scene::new(2);
    new.ask("anotherverylongname");
    let same = new.work("A", &[], Vec::new()).leases.remove(0);
    assert_eq!((same.lease, &same.range), (lease.lease, &lease.range));
    let late = old.message("A", &[], vec![done(&lease)]);
    let orders = new.leader.work(&late, true, new.now);
    assert_eq!((orders.term, orders.leases), (term_of(2), Vec::new()));
    assert_eq!(new.frontier("anotherverylongname"), 0);
    new.work("A", &[], vec![done(&same)]);
    assert_eq!(new.frontier("anotherverylongname"), same.range.end);
}

/// A call that shares the leases of another one is covered far beyond its own frontier when its
/// leader dies.
#[test]
fn the_next_leader_deals_nothing_that_is_covered_beyond_the_frontier() {
    const OTHER: &str = "anotherverylongname";
    let query = Query::new(OTHER.parse().unwrap(), Distance::ZERO).unwrap();
    let mut scene = Scene::new(1);
    let work = |scene: &mut Scene| {
        scene.now += SECOND / 10;
        let leases = scene.work("A", &[], Vec::new()).leases;
        scene.work(
            "A",
            &leases.iter().collect::<Vec<_>>(),
            leases.iter().map(done).collect(),
        );
        leases
    };
    scene.ask(HARD);
    for _ in 0..20 {
        work(&mut scene);
    }
    let told = loop {
        let told = scene.ask(OTHER);
        if told.checkpoint.to_cover().len() > 1 {
            break told;
        }
        scene.ask(HARD);
        work(&mut scene);
    };
    let to_cover = told.checkpoint.to_cover().to_vec();
    let mut next = Scene::new(2);
    next.ask_about(OTHER, &query, told.checkpoint, told.from);
    let last = to_cover.last().unwrap().start;
    while next.frontier(OTHER) <= last {
        for lease in work(&mut next) {
            let is_left = |left: &Range<Index>| {
                left.start <= lease.range.start && lease.range.end <= left.end
            };
            assert!(to_cover.iter().any(is_left), "{:?} again", lease.range);
        }
    }
}

/// The agent with the first lease is slow. So many hits are found beyond it that the leader has to
/// stop dealing: if it dropped some of them, their secrets would have to be tried again.
#[test]
fn no_secret_is_tried_twice_however_many_hits_have_to_wait() {
    // One secret in 600 is near enough.
    let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
    let query = query.interesting(Distance::from(3)).starting_at(1 << 40);
    let matcher = query.matcher();
    let mut scene = Scene::new(1);
    let new = Checkpoint::new(&query);
    scene.ask_about("call", &query, new.clone(), 0);
    let first = scene.work("slow", &[], Vec::new()).leases.remove(0);
    // The first slice of a scan is the only one until it is back.
    let half = Report {
        tried: first.range.start + 1,
        ..done(&first)
    };
    scene.work("slow", &[], vec![half]);
    let slow = scene.work("slow", &[], Vec::new()).leases.remove(0);

    let mut tried: BTreeMap<Index, Index> = BTreeMap::new();
    let mut held = 0;
    for agent in (0..40).cycle().take(4_000) {
        let agent = format!("agent {agent}");
        let leases = scene.work(&agent, &[], Vec::new()).leases;
        let mut reports = Vec::new();
        for lease in &leases {
            let mut found = Vec::new();
            let (kernel, range) = (Kernel::best(), lease.range.clone());
            let end = matcher.scan(kernel, range.clone(), lease.hit_limit, &mut found);
            held += found.len();
            let before = tried.range(..end).next_back();
            assert!(before.is_none_or(|(_, before)| *before <= range.start));
            tried.insert(range.start, end);
            reports.push(Report {
                tried: end,
                hits: found.iter().map(|found| found.index).collect(),
                took: lease.planned / 10,
                ..done(lease)
            });
        }
        scene.now += SECOND / 40;
        // It is alive, and wants no more work.
        let mut alive = scene.message("slow", &[&slow], Vec::new());
        alive.is_draining = true;
        scene.leader.work(&alive, true, scene.now);
        scene.work(&agent, &[], reports);
        scene.ask_about("call", &query, new.clone(), 0);
        scene.leader.tick(scene.now);
    }
    assert!(held > 2_000, "{held}");
    scene.work("slow", &[], vec![done(&slow)]);
    let reached = *tried.values().next_back().unwrap();
    assert_eq!(
        scene
            .ask_about("call", &query, new, 0)
            .checkpoint
            .frontier(),
        reached
    );
}

/// The agent does not know the leases in a reply that was lost.
#[test]
fn leases_of_a_lost_reply_are_dealt_again_at_once() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let lost = scene.work("A", &[], Vec::new()).leases;
    let again = scene.work("A", &[], Vec::new()).leases;
    let ranges = |orders: &[Order]| {
        orders
            .iter()
            .map(|order| order.range.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ranges(&again)[0].start, ranges(&lost)[0].start);
    assert!(
        lost.iter()
            .zip(&again)
            .all(|(lost, again)| lost.lease != again.lease)
    );
}

/// A message that was overtaken by a later one does not say what the agent has now.
#[test]
fn an_overtaken_message_takes_no_lease_back() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let early = scene.message("A", &[], Vec::new());
    let lease = scene.work("A", &[], Vec::new()).leases.remove(0);
    let orders = scene.leader.work(&early, true, scene.now);
    assert_eq!(orders.leases, Vec::new());
    scene.work("A", &[], vec![done(&lease)]);
    assert_eq!(scene.frontier(HARD), lease.range.end);
}

/// Once a call has ended, its leases are recalled, and no agent gets more of them.
#[test]
fn the_end_of_a_call_recalls_its_leases() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let lease = scene.work("A", &[], Vec::new()).leases.remove(0);
    scene.leader.end(HARD, scene.now);
    let notices = scene.leader.take_notices();
    assert_eq!(notices[&AgentId::from("A")], [lease.lease]);
    // The message with the recall was lost, so the next reply repeats it.
    let orders = scene.work("A", &[&lease], Vec::new());
    assert_eq!(
        (orders.recalls, orders.leases),
        (vec![lease.lease], Vec::new())
    );
    assert_eq!(scene.leader.calls(), 0);
}

/// An agent, and the tasks that it tries, the first one first.
struct Machine {
    agent: Agent,
    tasks: Vec<(Index, Task)>,
}

impl Machine {
    fn new(id: &str, rate: f64, scene: &Scene) -> Machine {
        let mut agent = Agent::new(id.into(), rate, "1".into());
        agent.heard(scene.term, scene.now);
        let tasks = Vec::new();
        Machine { agent, tasks }
    }

    /// Tries this many secrets, which takes a tenth of a second, and does what the agent says.
    fn step(&mut self, secrets: u64, now: Duration) {
        self.agent.tick(now);
        let mut stopped = Vec::new();
        for command in self.agent.take_commands() {
            match command {
                Command::Try(task) => self.tasks.push((task.range.start, task)),
                Command::Stop(task) => stopped.push(task),
            }
        }
        if let Some((tried, task)) = self.tasks.first_mut() {
            *tried = task.range.end.min(*tried + secrets);
        }
        self.tasks.retain(|(tried, task)| {
            let is_over = *tried == task.range.end || stopped.contains(&task.id);
            if is_over {
                let count = (*tried - task.range.start) as f64 / secrets as f64;
                let took = (SECOND / 10).mul_f64(count);
                self.agent.done(tried_until(task, *tried, took), now);
            }
            !is_over
        });
    }
}

fn tried_until(task: &Task, tried: Index, took: Duration) -> Tried {
    Tried {
        task: task.id,
        tried,
        hits: Vec::new(),
        took,
        failed: false,
    }
}

/// It would drop each lease before its end. So it reports the part that it has tried, and the
/// leader corrects its rate.
#[test]
fn an_agent_that_overestimates_its_speed_makes_progress() {
    const SECRETS_PER_STEP: u64 = 1_000;
    let mut scene = Scene::new(1);
    let mut machine = Machine::new("A", 1e9, &scene);
    for _ in 0..600 {
        scene.now += SECOND / 10;
        scene.ask(HARD);
        let work = machine.agent.work(scene.now);
        let orders = scene.leader.work(&work, true, scene.now);
        machine.agent.orders(&work, orders, scene.now);
        machine.step(SECRETS_PER_STEP, scene.now);
    }
    // All but the first secrets, and what it has in hand, count.
    let frontier = scene.frontier(HARD);
    assert!(frontier > 400 * SECRETS_PER_STEP, "{frontier}");
    let rate = scene.leader.agents(scene.now)[0].rate;
    assert!(rate < 1e6, "{rate}");
}

/// The next message leaves before the reply to the one before it arrives.
#[test]
fn an_agent_whose_replies_take_longer_than_its_messages_are_apart_makes_progress() {
    const DELAY: Duration = Duration::from_millis(700);
    let mut scene = Scene::new(1);
    let mut machine = Machine::new("A", 1e5, &scene);
    let (mut to_leader, mut to_agent) = (VecDeque::new(), VecDeque::new());
    let mut messages = 0;
    for _ in 0..600 {
        scene.now += SECOND / 10;
        scene.ask(HARD);
        scene.leader.tick(scene.now);
        if machine.agent.is_due(scene.now) {
            messages += 1;
            to_leader.push_back((scene.now + DELAY, machine.agent.work(scene.now)));
        }
        while let Some((_, work)) = to_leader.pop_front_if(|(at, _)| *at <= scene.now) {
            let orders = scene.leader.work(&work, true, scene.now);
            to_agent.push_back((scene.now + DELAY, work, orders));
        }
        while let Some((_, work, orders)) = to_agent.pop_front_if(|(at, ..)| *at <= scene.now) {
            machine.agent.orders(&work, orders, scene.now);
        }
        machine.step(10_000, scene.now);
    }
    // It is idle while leases grow from the first one, of a millisecond.
    let frontier = scene.frontier(HARD);
    assert!(frontier > 3_000_000, "{frontier}");
    assert!(messages < 90, "{messages} messages in a minute");
}

/// Each term numbers its leases from the start, and a thread may still be busy with one of an
/// earlier term.
#[test]
fn a_task_of_an_earlier_term_is_not_reported_in_a_later_one() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let mut machine = Machine::new("A", 1e6, &scene);
    let mut follow = |scene: &mut Scene| {
        machine.agent.heard(scene.term, scene.now);
        let work = machine.agent.work(scene.now);
        assert_eq!(work.reports, []);
        let orders = scene.leader.work(&work, true, scene.now);
        let lease = orders.leases[0].lease;
        machine.agent.orders(&work, orders, scene.now);
        let commands = machine.agent.take_commands();
        let Some(Command::Try(task)) = commands.last() else {
            panic!("{commands:?}");
        };
        (lease, task.clone(), machine.agent.clone())
    };
    let (lease, old, _) = follow(&mut scene);
    let mut next = Scene::new(2);
    next.ask("anotherverylongname");
    let (same, new, mut agent) = follow(&mut next);
    assert_eq!(same, lease);
    agent.done(tried_until(&old, old.range.end, SECOND), next.now);
    let work = agent.work(next.now);
    assert_eq!((work.reports.len(), work.holds), (0, vec![lease]));
    agent.done(tried_until(&new, new.range.end, SECOND), next.now);
    assert_eq!(agent.work(next.now).reports.len(), 1);
}

/// Each term numbers its sets of queries from the start, too.
#[test]
fn a_lease_is_not_tried_for_the_queries_of_an_earlier_term() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let mut agent = Agent::new("A".into(), 1e6, "1".into());
    agent.heard(scene.term, scene.now);
    let work = agent.work(scene.now);
    let orders = scene.leader.work(&work, true, scene.now);
    let number = orders.sets[0].number;
    agent.orders(&work, orders, scene.now);
    assert_eq!(agent.work(scene.now).knows, [number]);
    let mut next = Scene::new(2);
    next.ask("anotherverylongname");
    agent.heard(next.term, next.now);
    agent.take_commands();
    let work = agent.work(next.now);
    assert_eq!(work.knows, []);
    let mut orders = next.leader.work(&work, true, next.now);
    assert_eq!(orders.leases[0].set, number);
    // As if the leader took the set for known.
    orders.sets.clear();
    agent.orders(&work, orders, next.now);
    assert!(agent.take_commands().is_empty());
    let handed_back = agent.work(next.now).reports;
    assert_eq!((handed_back[0].tried, handed_back.len()), (0, 1));
}

/// Returns the report that trying a lease has panicked.
fn panicked(order: &Order) -> Report {
    Report {
        tried: order.range.start,
        failed: true,
        ..done(order)
    }
}

#[test]
fn a_machine_on_which_every_lease_panics_ends_no_search() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    for _ in 0..3 {
        let lease = scene.work("broken", &[], Vec::new()).leases.remove(0);
        let reports = vec![panicked(&lease)];
        // Its next message asks for no work, so that another agent gets the lease.
        let mut work = scene.message("broken", &[], reports);
        work.is_draining = true;
        scene.leader.work(&work, true, scene.now);
        let again = scene.work("A", &[], Vec::new()).leases.remove(0);
        assert_eq!(again.range.start, lease.range.start);
        scene.work("A", &[], vec![done(&again)]);
        assert_eq!(scene.ask(HARD).outcome, None);
        scene.work("A", &[], Vec::new());
        scene.leader.end(HARD, scene.now);
        scene.ask(HARD);
    }
    assert!(scene.work("broken", &[], Vec::new()).leases.is_empty());
    assert!(!scene.leader.trusts("broken"));
    assert!(scene.leader.trusts("A"));
}

#[test]
fn a_search_that_makes_two_agents_panic_fails() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let mut outcomes = Vec::new();
    for agent in ["A", "A", "A", "B"] {
        let lease = scene.work(agent, &[], Vec::new()).leases.remove(0);
        scene.work(agent, &[], vec![panicked(&lease)]);
        // What the same reply has brought is of no interest here.
        let mut goodbye = scene.message(agent, &[], Vec::new());
        goodbye.is_draining = true;
        scene.leader.work(&goodbye, true, scene.now);
        outcomes.push(scene.ask(HARD).outcome);
    }
    assert!(outcomes[..3].iter().all(Option::is_none));
    assert!(matches!(outcomes[3], Some(Outcome::Failed(_))));
    assert!(scene.leader.trusts("A") && scene.leader.trusts("B"));
}

/// A leader that hands over recalls all leases. Then it sends all servers the state of their calls,
/// so that the next leader begins where the agents have stopped.
#[test]
fn a_leader_that_hands_over_loses_no_work() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let first = scene.work("A", &[], Vec::new()).leases.remove(0);
    let more = scene.work("A", &[], vec![done(&first)]).leases;
    scene.leader.close(scene.now);
    let notices = scene.leader.take_notices();
    let leases: Vec<_> = more.iter().map(|order| order.lease).collect();
    assert_eq!(notices[&AgentId::from("A")], leases);
    let part = more[0].range.start + 10;
    let untried = more.iter().map(|order| Report {
        tried: order.range.start,
        ..done(order)
    });
    let mut reports: Vec<Report> = untried.collect();
    reports[0].tried = part;
    assert!(scene.work("A", &[], reports).leases.is_empty());
    assert_eq!(scene.leader.leases(), 0);
    let mut updates = scene.leader.all_updates();
    let (_, _, update) = updates.remove(0);
    assert!(updates.is_empty());
    assert_eq!(update.checkpoint.frontier(), part);
}

/// Otherwise, thousands of agents would ask for a single lease.
#[test]
fn few_of_many_idle_agents_are_notified_of_work() {
    let mut scene = Scene::new(1);
    for agent in 0..1_000 {
        assert!(
            scene
                .work(&agent.to_string(), &[], Vec::new())
                .leases
                .is_empty()
        );
    }
    assert!(scene.leader.take_notices().is_empty());
    scene.ask(HARD);
    let mut notified = VecDeque::from_iter(scene.leader.take_notices());
    assert!((1..10).contains(&notified.len()));
    let (mut count, mut busy) = (0, 0);
    while let Some((agent, recalls)) = notified.pop_front() {
        assert!(recalls.is_empty());
        count += 1;
        let orders = scene.work(&agent, &[], Vec::new());
        busy += usize::from(!orders.leases.is_empty());
        let reports = orders.leases.iter().map(done).collect();
        scene.work(&agent, &[], reports);
        notified.extend(scene.leader.take_notices());
        if busy > 900 {
            break;
        }
    }
    // There is work for all once the first lease is done, and all hear of it.
    assert!(busy > 900, "{busy} of {count}");
}

#[test]
fn a_reply_that_arrives_twice_counts_once() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let mut agent = Agent::new("A".into(), 1e6, "1".into());
    agent.heard(term_of(1), scene.now);
    let work = agent.work(scene.now);
    let orders = scene.leader.work(&work, true, scene.now);
    let leases: Vec<_> = orders.leases.iter().map(|order| order.lease).collect();
    for _ in 0..2 {
        agent.orders(&work, orders.clone(), scene.now);
    }
    assert_eq!(agent.work(scene.now).holds, leases);
}

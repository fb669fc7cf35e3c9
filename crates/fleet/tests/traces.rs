//! Sequences of events that have broken a design of a fleet, each as a test.

use std::time::Duration;

use hashfinder_fleet::{
    Agent, AgentId, Ask, Command, Leader, LeaderSettings, Order, Orders, Report, SILENT_AFTER,
    Term, Told, Work,
};
use hashfinder_search::{Checkpoint, Client, Distance, Index, Query};

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
        Scene {
            leader: Leader::new(term_of(term), LeaderSettings::default()),
            term: term_of(term),
            now: SECOND,
            sequence: 0,
        }
    }

    /// Begins or renews a call for a name, and returns the leader's answer.
    fn ask(&mut self, name: &str) -> Told {
        let query = Query::new(name.parse().unwrap(), Distance::ZERO).unwrap();
        let ask = Ask {
            call: name.into(),
            server: "server".into(),
            client: Client::default(),
            checkpoint: Checkpoint::new(&query),
            query,
            from: 0,
            stops: false,
        };
        self.leader.ask(&ask, self.now).unwrap().unwrap()
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
            boot: 1,
            sequence: self.sequence,
            term: self.term,
            rate: 1e6,
            version: "1".into(),
            is_draining: false,
            holds: holds.iter().map(|order| order.lease).collect(),
            reports,
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

/// The agent has never heard of the leases in a reply that was lost.
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
    let recalls = scene.leader.take_recalls();
    assert_eq!(recalls[&AgentId::from("A")], [lease.lease]);
    // The message with the recall was lost, so the next reply repeats it.
    let orders = scene.work("A", &[&lease], Vec::new());
    assert_eq!(
        (orders.recalls, orders.leases),
        (vec![lease.lease], Vec::new())
    );
    assert_eq!(scene.leader.calls(), 0);
}

/// It would drop each lease before its end. So it reports the part that it has tried, and the
/// leader learns its rate.
#[test]
fn an_agent_that_believes_to_be_faster_than_it_is_makes_progress() {
    const SECRETS_PER_STEP: u64 = 1_000;
    let mut scene = Scene::new(1);
    let mut agent = Agent::new("A".into(), 1, 1e9, "1".into());
    agent.heard(term_of(1), scene.now);
    let mut tasks: Vec<(Index, Order)> = Vec::new();
    for _ in 0..600 {
        scene.now += SECOND / 10;
        scene.ask(HARD);
        let work = agent.work(scene.now);
        let orders = scene.leader.work(&work, true, scene.now);
        agent.orders(&work, orders, scene.now);
        agent.tick(scene.now);
        let mut stopped = Vec::new();
        for command in agent.take_commands() {
            match command {
                Command::Try(order) => tasks.push((order.range.start, order)),
                Command::Stop(lease) => stopped.push(lease),
            }
        }
        if let Some((tried, order)) = tasks.first_mut() {
            *tried = order.range.end.min(*tried + SECRETS_PER_STEP);
        }
        tasks.retain(|(tried, order)| {
            let is_over = *tried == order.range.end || stopped.contains(&order.lease);
            if is_over {
                let count = (*tried - order.range.start) as f64 / SECRETS_PER_STEP as f64;
                let report = Report {
                    tried: *tried,
                    took: (SECOND / 10).mul_f64(count),
                    ..done(order)
                };
                agent.done(report, scene.now);
            }
            !is_over
        });
    }
    // All but the first secrets, and what it has in hand, count.
    let frontier = scene.frontier(HARD);
    assert!(frontier > 400 * SECRETS_PER_STEP, "{frontier}");
    let rate = scene.leader.agents(scene.now)[0].rate;
    assert!(rate < 1e6, "{rate}");
}

#[test]
fn a_reply_that_arrives_twice_counts_once() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let mut agent = Agent::new("A".into(), 1, 1e6, "1".into());
    agent.heard(term_of(1), scene.now);
    let work = agent.work(scene.now);
    let orders = scene.leader.work(&work, true, scene.now);
    let leases: Vec<_> = orders.leases.iter().map(|order| order.lease).collect();
    for _ in 0..2 {
        agent.orders(&work, orders.clone(), scene.now);
    }
    assert_eq!(agent.work(scene.now).holds, leases);
}

/// Its leases are those of the process that runs now.
#[test]
fn a_message_of_a_process_that_has_ended_counts_for_nothing() {
    let mut scene = Scene::new(1);
    scene.ask(HARD);
    let late = scene.message("A", &[], Vec::new());
    let mut again = scene.message("A", &[], Vec::new());
    again.boot += 1;
    let lease = scene.leader.work(&again, true, scene.now).leases.remove(0);
    let orders = scene.leader.work(&late, true, scene.now);
    assert_eq!(orders.leases, Vec::new());
    let mut report = scene.message("A", &[], vec![done(&lease)]);
    report.boot = again.boot;
    scene.leader.work(&report, true, scene.now);
    assert_eq!(scene.frontier(HARD), lease.range.end);
}

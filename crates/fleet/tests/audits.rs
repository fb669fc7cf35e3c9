//! Agents that lie about what they have tried.

use std::{num::NonZeroU64, ops::Range, time::Duration};

use hashfinder_fleet::{
    Agent, CallRenewal, CallUpdate, Command, Leader, LeaderSettings, Task, Term,
};
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, Checkpoint, Client, DesiredName, Distance, Encoding, Index,
    Kernel, Keyspace, Matcher, Outcome, Query, Spelling, Tried,
};

const AGENT: &str = "user.machine.1";

/// Nothing has this name within the secrets of these tests.
const HARD: &str = "hashfinder";

/// Secrets per second of an agent: small enough for debug builds.
const RATE: f64 = 6_000.0;

const TERM: Term = Term {
    number: 1,
    nonce: 0,
};

/// A leader, and a search.
struct Scene {
    leader: Leader,
    now: Duration,
    query: Query,
    /// The leases that agents have tried.
    tried: Vec<Range<Index>>,
}

/// What an agent reports of a lease that it should try: one past the last index, and the hits.
type Tries = fn(&Task) -> (Index, Vec<Index>);

impl Scene {
    fn new(seed: u64, is_untrusted: bool, query: Query) -> Scene {
        let settings = LeaderSettings {
            is_untrusted,
            ..LeaderSettings::default()
        };
        Scene::with(seed, settings, query)
    }

    fn with(seed: u64, settings: LeaderSettings, query: Query) -> Scene {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut scene = Scene {
            leader: Leader::new(TERM, settings, bytes),
            now: Duration::ZERO,
            query,
            tried: Vec::new(),
        };
        scene.ask();
        scene
    }

    fn hard(seed: u64, is_untrusted: bool) -> Scene {
        let query = Query::new(HARD.parse().unwrap(), Distance::ZERO).unwrap();
        Scene::new(seed, is_untrusted, query)
    }

    /// Renews the call.
    fn ask(&mut self) -> CallUpdate {
        let renewal = CallRenewal {
            call: "call".into(),
            server: "server".into(),
            client: Client::default(),
            query: self.query.clone(),
            checkpoint: Checkpoint::new(&self.query),
            from: 0,
            stops: false,
        };
        self.leader.renew(&renewal, self.now).unwrap().unwrap()
    }

    fn agent(&self, id: &str) -> Agent {
        let mut agent = Agent::new(id.into(), RATE, "1".into());
        agent.heard(TERM, self.now);
        agent
    }

    /// Lets an agent report and get leases, and try them. Returns how many of them are long enough
    /// to be audited.
    fn works(&mut self, agent: &mut Agent, tries: Tries) -> usize {
        self.ask();
        self.leader.tick(self.now);
        let work = agent.work(self.now);
        let orders = self.leader.work(&work, true, self.now);
        agent.orders(&work, orders, self.now);
        let mut long = 0;
        for command in agent.take_commands() {
            if let Command::Try(task) = command {
                let count = task.range.end - task.range.start;
                long += usize::from(count >= 4096);
                let took = Duration::from_secs_f64(count as f64 / RATE);
                self.now += took;
                self.tried.push(task.range.clone());
                let (tried, hits) = tries(&task);
                let tried = Tried {
                    task: task.id,
                    tried,
                    hits,
                    took,
                    failed: false,
                };
                agent.done(tried, self.now);
            }
        }
        self.now += Duration::from_millis(10);
        long
    }

    fn is_banned(&self, agent: &str) -> bool {
        self.leader.ban_of(agent).is_some()
    }
}

/// Returns the hits of some queries in a range.
fn hits(queries: impl Iterator<Item = Query>, range: &Range<Index>) -> Vec<Index> {
    let mut indices = Vec::new();
    for query in queries {
        let matcher: Matcher = query.matcher();
        let mut found = Vec::new();
        matcher.scan(Kernel::best(), range.clone(), usize::MAX, &mut found);
        indices.extend(found.iter().map(|hit| hit.index));
    }
    indices.sort_unstable();
    indices.dedup();
    indices
}

fn honest(task: &Task) -> (Index, Vec<Index>) {
    (
        task.range.end,
        hits(task.set.queries().cloned(), &task.range),
    )
}

/// Tries the first half, and says that it has tried everything.
fn half(task: &Task) -> (Index, Vec<Index>) {
    let Range { start, end } = task.range;
    let first = start..start.midpoint(end);
    (end, hits(task.set.queries().cloned(), &first))
}

/// Stops trying when it has found two decoys, which it can tell from the name.
fn until_two_ringers(task: &Task) -> (Index, Vec<Index>) {
    let (end, mut found) = honest(task);
    found.truncate(2);
    (end, found)
}

/// Reports everything as tried, and finds nothing.
fn nothing(task: &Task) -> (Index, Vec<Index>) {
    (task.range.end, Vec::new())
}

/// Returns the share of runs in which an agent is caught within this many leases.
fn caught_within(leases: usize, runs: u64, tries: Tries) -> f64 {
    let is_caught = |seed: &u64| {
        let mut scene = Scene::hard(*seed, true);
        let mut agent = scene.agent(AGENT);
        // Reports of these leases arrive with the message after them.
        let mut done = 0;
        while done <= leases {
            let new = scene.works(&mut agent, tries);
            if scene.is_banned(AGENT) {
                return true;
            }
            done += new;
        }
        false
    };
    let caught = (0..runs).filter(is_caught).count();
    caught as f64 / runs as f64
}

#[test]
fn an_agent_that_tries_half_of_each_lease_is_caught() {
    let share = caught_within(4, 4_000, half);
    eprintln!(
        "tries half of each lease: {:.2}% caught within 4 leases",
        share * 100.0
    );
    assert!(share >= 0.99, "{share}");
}

#[test]
fn an_agent_that_stops_at_its_second_ringer_is_caught() {
    let share = caught_within(50, 1_000, until_two_ringers);
    eprintln!(
        "stops at its second ringer: {:.2}% caught within 50 leases",
        share * 100.0
    );
    assert!(share >= 0.99, "{share}");
}

#[test]
fn an_honest_agent_is_never_caught() {
    for is_untrusted in [false, true] {
        let mut scene = Scene::hard(1, is_untrusted);
        let mut agent = scene.agent(AGENT);
        let mut done = 0;
        while done < 300 {
            done += scene.works(&mut agent, honest);
        }
        assert!(scene.leader.take_banned().is_empty());
        assert!(scene.ask().checkpoint.frontier() >= 250 * RATE as u64);
    }
}

/// Agents that are trusted are audited, too: their machines may be broken.
#[test]
fn a_broken_machine_is_caught_in_a_trusted_fleet() {
    for seed in 0..10 {
        let mut scene = Scene::hard(seed, false);
        let mut agent = scene.agent(AGENT);
        let mut done = 0;
        while !scene.is_banned(AGENT) {
            done += scene.works(&mut agent, nothing);
            assert!(done < 64 * 10, "seed {seed}");
        }
        let banned = scene.leader.take_banned();
        assert_eq!(
            (&*banned[0].agent, &*banned[0].name),
            (AGENT, "user.machine")
        );
        // Other machines of the same user are not broken.
        assert!(!scene.is_banned("user.other.1") && scene.is_banned("user.machine.2"));
    }
}

/// The secrets that a banned agent has reported are tried again before the search ends, and what it
/// has hidden is the answer.
#[test]
fn what_a_banned_agent_has_hidden_is_found() {
    let query = Query::new("tomm".parse().unwrap(), Distance::ZERO).unwrap();
    let all = hits(std::iter::once(query.clone()), &(0..4_000_000));
    let apart = all.windows(2).find(|pair| pair[1] - pair[0] > 25_000);
    let first = apart.unwrap()[1];
    // The search ends soon after the hit, at a later hit, or after a later hit.
    for budget in [40_000, 3_000_000] {
        let query = query.clone().starting_at(first - 20_000);
        let query = query.hash_budget(NonZeroU64::new(budget).unwrap());
        let settings = LeaderSettings {
            // An operator bans the agents.
            audited: 0,
            ..LeaderSettings::default()
        };
        let mut scene = Scene::with(1, settings, query);
        let mut liar = scene.agent(AGENT);
        while scene.ask().checkpoint.frontier() <= first {
            scene.works(&mut liar, nothing);
        }
        scene.leader.ban("user".into(), "caught".into(), scene.now);
        // The next one hides it, too, unless the search would end with that.
        let mut second = scene.agent("second.machine.1");
        for _ in 0..if budget > 1_000_000 { 20 } else { 0 } {
            scene.works(&mut second, nothing);
        }
        scene
            .leader
            .ban("second".into(), "caught".into(), scene.now);
        let mut other = scene.agent("other.machine.1");
        let deadline = scene.now + Duration::from_secs(3_600);
        let update = loop {
            scene.works(&mut other, honest);
            let update = scene.ask();
            if update.outcome.is_some() {
                break update;
            }
            assert!(scene.now < deadline, "{update:?}");
        };
        let Some(Outcome::Ideal(found)) = update.outcome else {
            panic!("{:?}", update.outcome);
        };
        assert_eq!(found.index, first);
        // What is saved of the search says the same.
        assert_eq!(update.checkpoint.frontier(), first + 1);
        assert_eq!(update.checkpoint.end(), first + 1);
        assert!(update.candidates.is_empty());
    }
}

/// A machine that was restarted, or has left, is still the same machine.
#[test]
fn what_earlier_agents_of_a_banned_machine_have_tried_is_tried_again() {
    let mut scene = Scene::hard(1, false);
    let mut agent = scene.agent(AGENT);
    let mut done = 0;
    while done < 3 {
        done += scene.works(&mut agent, honest);
    }
    let covered = scene.ask().checkpoint.frontier();
    for _ in 0..100 {
        scene.now += Duration::from_secs(1);
        scene.ask();
        scene.leader.tick(scene.now);
    }
    assert!(scene.leader.agents(scene.now).is_empty());
    scene
        .leader
        .ban("user.machine".into(), "broken".into(), scene.now);
    let mut other = scene.agent("other.machine.1");
    scene.tried.clear();
    for _ in 0..100 {
        scene.works(&mut other, honest);
    }
    assert!(scene.ask().checkpoint.frontier() > covered);
    let mut again: Vec<_> = scene
        .tried
        .iter()
        .filter(|range| range.start < covered)
        .collect();
    again.sort_by_key(|range| range.start);
    let next = again.iter().fold(0, |next, range| {
        assert_eq!(range.start, next);
        range.end
    });
    assert_eq!(next, covered);
}

/// Names, keyspaces and hashes of all kinds can be audited, and honest agents pass.
#[test]
fn all_kinds_of_searches_are_audited() {
    let all = Keyspace::new(b"", Alphabet::bytes(), b"").unwrap();
    let words = Keyspace::new(b"word: ", Alphabet::alphanumeric(), b"\n").unwrap();
    let mut kinds = 0;
    for (algorithm, encoding, anchor) in Algorithm::ALL.into_iter().flat_map(|algorithm| {
        let encodings = Encoding::ALL.into_iter();
        encodings.flat_map(move |encoding| Anchor::ALL.map(|anchor| (algorithm, encoding, anchor)))
    }) {
        let spelling = Spelling {
            algorithm,
            encoding,
            anchor,
            ..Spelling::default()
        };
        // Some names are impossible at the end of a hash, so this one is from a hash.
        let keyspace = [&all, &words][kinds % 2].clone();
        let text = spelling.hashed_name(&keyspace.secret(1 << 40));
        let name = match anchor {
            Anchor::Suffix => &text.as_str()[text.as_str().len() - 12..],
            _ => &text.as_str()[..12],
        };
        let name = DesiredName::new(name, spelling).unwrap();
        let query = Query::new(name, Distance::ZERO).unwrap();
        kinds += 1;
        let mut scene = Scene::new(1, true, query.among(keyspace));
        let mut agent = scene.agent(AGENT);
        let mut done = 0;
        while done < 5 {
            done += scene.works(&mut agent, honest);
        }
        assert!(!scene.is_banned(AGENT), "{spelling:?}");
        let mut liar = scene.agent("liar.machine.1");
        for _ in 0..20 {
            scene.works(&mut liar, nothing);
        }
        assert!(scene.is_banned("liar.machine.1"), "{spelling:?}");
    }
    assert_eq!(kinds, 48);
}

#[test]
fn a_ban_means_a_user_a_machine_or_a_process() {
    for (name, is_banned) in [
        ("user", true),
        ("user.machine", true),
        ("user.machine.1", true),
        ("user.machine.10", false),
        ("us", false),
        ("machine", false),
        ("user.machine.1.x", false),
    ] {
        let mut scene = Scene::hard(1, false);
        let mut agent = scene.agent(AGENT);
        let mut is_dealt = |scene: &mut Scene| {
            let work = agent.work(scene.now);
            let orders = scene.leader.work(&work, true, scene.now);
            let is_dealt = !orders.leases.is_empty();
            agent.orders(&work, orders, scene.now);
            is_dealt
        };
        assert!(is_dealt(&mut scene));
        scene.leader.ban(name.into(), "why".into(), scene.now);
        assert_eq!(scene.is_banned(AGENT), is_banned, "{name}");
        assert_eq!(scene.leader.leases() == 0, is_banned, "{name}");
        if is_banned {
            assert!(!is_dealt(&mut scene), "{name}");
            assert!(scene.leader.unban(name) && !scene.leader.unban(name));
            assert!(is_dealt(&mut scene), "{name}");
        }
    }
}

//! Elections of a fleet's leader, step by step.

use std::time::Duration;

use hashfinder_fleet::{Beat, Claim, Election, KeyAction, Stored, Term};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// A server that is connected, and its clock.
struct Server {
    election: Election,
    name: &'static str,
    now: Duration,
}

impl Server {
    fn new(name: &'static str, seed: u64) -> Server {
        let mut election = Election::new(name.into(), seed, Duration::ZERO);
        election.connection(true, Duration::ZERO);
        Server {
            election,
            name,
            now: Duration::ZERO,
        }
    }

    /// Waits for the next action on the key, for at most `time`.
    fn act_within(&mut self, time: Duration) -> Option<KeyAction> {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            if let Some(action) = self.election.tick(self.now) {
                return Some(action);
            }
        }
        None
    }

    /// Becomes the leader with a key that only this server writes.
    fn lead(&mut self) -> Claim {
        assert_eq!(self.act_within(4 * SECOND), Some(KeyAction::Read));
        let claim = self.claim(Stored::default());
        assert_eq!(self.election.has_written(Some(1), self.now), None);
        assert_eq!(self.election.term(), Some(claim.term));
        claim
    }

    /// Passes the key to the server, and returns what it claims then.
    fn claim(&mut self, stored: Stored) -> Claim {
        let revision = stored.revision;
        match self.election.has_read(Some(stored), self.now) {
            Some(KeyAction::Write { expected, claim }) if expected == revision => claim,
            other => panic!("{} does {other:?}", self.name),
        }
    }

    fn beat(&self) -> Beat {
        Beat {
            term: self.election.term().expect("it leads"),
            server: self.name.into(),
            resigns: false,
            agents: 1,
            rate: 1.0,
        }
    }
}

fn stored(revision: u64, claim: &Claim) -> Stored {
    Stored {
        revision,
        claim: Some(claim.clone()),
    }
}

#[test]
fn a_server_that_hears_beats_claims_nothing() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    a.lead();
    for _ in 0..100 {
        b.election.heard(&a.beat(), b.now);
        assert_eq!(b.act_within(SECOND / 2), None);
    }
    // Within three seconds of silence, it does.
    assert_eq!(b.act_within(3 * SECOND + TICK), Some(KeyAction::Read));
}

/// The write succeeds, and its acknowledgement is lost.
#[test]
fn a_claim_whose_acknowledgement_is_lost_counts() {
    let mut server = Server::new("a", 1);
    assert_eq!(server.act_within(4 * SECOND), Some(KeyAction::Read));
    let claim = server.claim(Stored::default());
    let next = server.election.has_written(None, server.now);
    assert_eq!(next, Some(KeyAction::Read));
    server
        .election
        .has_read(Some(stored(1, &claim)), server.now);
    assert_eq!(server.election.term(), Some(claim.term));
}

#[test]
fn a_leader_whose_acknowledgements_are_lost_stays_and_deals() {
    let mut server = Server::new("a", 1);
    let claim = server.lead();
    for revision in 2..20 {
        let action = server.act_within(3 * SECOND);
        assert!(
            matches!(action, Some(KeyAction::Write { .. })),
            "{action:?}"
        );
        let next = server.election.has_written(None, server.now);
        assert_eq!(next, Some(KeyAction::Read));
        server
            .election
            .has_read(Some(stored(revision, &claim)), server.now);
        assert_eq!(server.election.term(), Some(claim.term));
        assert!(server.election.may_deal(server.now));
    }
}

#[test]
fn a_server_that_was_slower_follows_the_faster_one() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    let claim = a.lead();
    assert_eq!(b.act_within(4 * SECOND), Some(KeyAction::Read));
    b.claim(Stored::default());
    assert_eq!(b.election.has_written(None, b.now), Some(KeyAction::Read));
    b.election.has_read(Some(stored(1, &claim)), b.now);
    assert_eq!(b.election.term(), None);
    // It gives the other one time to be heard.
    assert_eq!(b.act_within(2 * SECOND), None);
}

#[test]
fn a_leader_steps_down_for_a_later_one() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    let first = a.lead();
    assert_eq!(b.act_within(4 * SECOND), Some(KeyAction::Read));
    let second = b.claim(stored(1, &first));
    assert!(second.term > first.term);
    b.election.has_written(Some(2), b.now);
    // A beat of the other one arrives, or it reads the key.
    let mut deaf = Server::new("a", 1);
    let same = deaf.lead();
    assert_eq!(same, first);
    deaf.act_within(3 * SECOND);
    deaf.election.has_written(None, deaf.now);
    deaf.election.has_read(Some(stored(2, &second)), deaf.now);
    assert_eq!(deaf.election.term(), None);
    a.election.heard(&b.beat(), a.now);
    assert_eq!(a.election.term(), None);
    assert_eq!(a.election.leader(a.now), Some(second.term));
    // The beats of the first one, which was slow, change nothing.
    let late = Beat {
        term: first.term,
        server: "a".into(),
        ..b.beat()
    };
    b.election.heard(&late, b.now);
    assert_eq!(b.election.term(), Some(second.term));
}

/// It wakes up, and does not know that another server leads.
#[test]
fn a_leader_that_was_paused_deals_nothing_until_it_has_written() {
    let mut server = Server::new("a", 1);
    let claim = server.lead();
    assert!(server.election.may_deal(server.now));
    server.now += 60 * SECOND;
    assert!(!server.election.may_deal(server.now));
    let action = server.act_within(TICK);
    let write = KeyAction::Write { expected: 1, claim };
    assert_eq!(action, Some(write));
    server.election.has_written(Some(2), server.now);
    assert!(server.election.may_deal(server.now));
}

#[test]
fn a_leader_without_a_store_deals_for_ten_seconds() {
    let mut server = Server::new("a", 1);
    server.lead();
    let written = server.now;
    while server.now < written + 30 * SECOND {
        if let Some(action) = server.act_within(TICK) {
            match action {
                KeyAction::Read => server.election.has_read(None, server.now),
                _ => server.election.has_written(None, server.now),
            };
        }
        let is_recent = server.now < written + 10 * SECOND;
        assert_eq!(server.election.may_deal(server.now), is_recent);
    }
    assert!(server.election.term().is_some());
}

#[test]
fn a_leader_restores_a_key_that_the_broker_has_lost_or_set_back() {
    let old = Claim {
        term: Term {
            number: 1,
            nonce: 7,
        },
        server: "old".into(),
    };
    for lost in [Stored::default(), stored(9, &old)] {
        let mut server = Server::new("a", 1);
        server.election.knows(Term {
            number: 5,
            nonce: 0,
        });
        let claim = server.lead();
        assert_eq!(claim.term.number, 6);
        server.act_within(3 * SECOND);
        server.election.has_written(None, server.now);
        server.election.has_read(Some(lost.clone()), server.now);
        assert_eq!(server.election.term(), Some(claim.term));
        let action = server.act_within(3 * SECOND);
        let expected = lost.revision;
        assert_eq!(action, Some(KeyAction::Write { expected, claim }));
    }
}

/// Both have claimed the first term, because the broker has lost the first claim.
#[test]
fn terms_of_different_leaders_are_never_equal() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    let (first, second) = (a.lead(), b.lead());
    assert_eq!(first.term.number, second.term.number);
    assert_ne!(first.term, second.term);
    // Both agree which one is later.
    let (beat_a, beat_b) = (a.beat(), b.beat());
    a.election.heard(&beat_b, a.now);
    b.election.heard(&beat_a, b.now);
    let leads = [a.election.term(), b.election.term()];
    assert_eq!(leads.iter().flatten().count(), 1);
}

/// All servers lose their connections, and have them back at about the same time.
#[test]
fn a_restart_of_the_broker_is_not_the_death_of_the_leader() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    a.lead();
    b.election.heard(&a.beat(), b.now);
    b.election.connection(false, b.now);
    b.now += 20 * SECOND;
    assert_eq!(b.act_within(SECOND), None);
    b.election.connection(true, b.now);
    assert_eq!(b.act_within(4 * SECOND), None);
    assert_eq!(b.act_within(3 * SECOND), Some(KeyAction::Read));
}

#[test]
fn a_leader_that_resigns_is_replaced_at_once() {
    let (mut a, mut b) = (Server::new("a", 1), Server::new("b", 2));
    let claim = a.lead();
    b.election.heard(&a.beat(), b.now);
    let (beat, action) = a.election.resign().expect("it leads");
    assert_eq!(action, KeyAction::Release { expected: 1 });
    assert_eq!((a.election.term(), a.act_within(60 * SECOND)), (None, None));
    b.election.heard(&beat, b.now);
    assert_eq!(b.act_within(SECOND / 2), Some(KeyAction::Read));
    let next = b.claim(Stored {
        revision: 2,
        claim: None,
    });
    assert!(next.term > claim.term);
}

/// An action without a result is repeated after its timeout.
#[test]
fn a_read_without_an_answer_is_repeated() {
    let mut server = Server::new("a", 1);
    assert_eq!(server.act_within(4 * SECOND), Some(KeyAction::Read));
    assert_eq!(server.act_within(2 * SECOND), None);
    assert_eq!(server.act_within(2 * SECOND), Some(KeyAction::Read));
}

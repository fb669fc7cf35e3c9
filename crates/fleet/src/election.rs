//! Which server leads.
//!
//! The leader's term is the value of one key of a store that can compare and set. The server that
//! writes the key leads, and shows it to the others with [`Beat`]s. Nothing that is computed
//! depends on there being a single leader: terms only keep two leaders apart.

use std::time::Duration;

use fastrand::Rng;

use crate::messages::{BEAT, Beat, ServerId, Term};

/// Time without a beat after which a server tries to become the leader.
const SILENCE: Duration = Duration::from_secs(2);

/// Maximum random time that each server waits in addition, so that they rarely try at once.
const JITTER: Duration = Duration::from_secs(1);

/// Time after a connection is back, within which silence means nothing: a restart of the broker is
/// not the death of the leader.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// The random time doubles if the leader has changed within this time.
const CALM_AFTER: Duration = Duration::from_secs(10);

/// Maximum number of times that it doubles.
const MOST_DOUBLINGS: u32 = 4;

/// Time between two writes of the leader.
const RENEWED_EVERY: Duration = Duration::from_secs(2);

/// Time since its last write, from which a leader deals no more leases: another one may have been
/// elected, and the agents belong to that one.
const DEALS_FOR: Duration = Duration::from_secs(10);

/// Time after which a read or a write whose result has not arrived is repeated.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);

/// The value of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub server: ServerId,
}

/// The key, as it was read: its revision, which each write increases, and its value. An absent key
/// has revision 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Number of the write that made it.
    pub revision: u64,
    /// The value; `None` if there is none.
    pub claim: Option<Claim>,
}

/// What to do with the key. The result goes to [`Election::has_read`] or [`Election::has_written`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAction {
    /// Read it.
    Read,
    /// Write this value if the key still has this revision.
    Write {
        /// The revision.
        expected: u64,
        /// The value.
        claim: Claim,
    },
    /// Remove the value, if the key still has this revision.
    Release {
        /// The revision.
        expected: u64,
    },
}

/// A server's part in the election of the leader.
#[derive(Debug)]
pub struct Election {
    server: ServerId,
    rng: Rng,
    role: Role,
    /// The highest number of a term that this server knows of.
    highest: u64,
    /// The leader whose beat arrived last.
    leader: Option<Term>,
    /// When that was, or when silence began to count.
    heard: Duration,
    /// Additional time of silence to wait for.
    jitter: Duration,
    /// Whether the leader has resigned, so that its silence means nothing.
    is_vacant: bool,
    is_connected: bool,
    /// When the leader changed last, and how often in a row within [`CALM_AFTER`].
    changed: Option<Duration>,
    doublings: u32,
    /// Since when the result of the last action is awaited.
    waiting: Option<Duration>,
    has_resigned: bool,
}

#[derive(Clone, Debug)]
enum Role {
    Follower,
    /// Wants to lead, and does not know the key yet.
    Reading,
    /// Has tried to write its claim. The revision is the one that it expected.
    Claiming(Claim, u64),
    Leader(Leader),
}

#[derive(Clone, Debug)]
struct Leader {
    claim: Claim,
    revision: u64,
    /// When the last write that succeeded was begun.
    written: Duration,
    /// When the last write was begun.
    tried: Duration,
    /// Whether the result of that write is unknown, so that the key has to be read.
    is_unsure: bool,
    /// When the last beat was sent.
    beat: Option<Duration>,
}

impl Election {
    /// Creates a server's part in the election. `seed` should be random.
    #[must_use]
    pub fn new(server: ServerId, seed: u64, now: Duration) -> Election {
        let mut election = Election {
            server,
            rng: Rng::with_seed(seed),
            role: Role::Follower,
            highest: 0,
            leader: None,
            heard: now,
            jitter: Duration::ZERO,
            is_vacant: false,
            is_connected: false,
            changed: None,
            doublings: 0,
            waiting: None,
            has_resigned: false,
        };
        election.draw_jitter();
        election
    }

    /// Notes whether this server has a connection.
    pub fn connection(&mut self, is_connected: bool, now: Duration) {
        if is_connected && !self.is_connected {
            let had_leader = self.leader.is_some();
            let grace = if had_leader {
                SETTLED_AFTER - SILENCE
            } else {
                Duration::ZERO
            };
            self.heard = self.heard.max(now + grace);
            self.waiting = None;
        }
        self.is_connected = is_connected;
    }

    /// Notes a beat.
    pub fn heard(&mut self, beat: &Beat, now: Duration) {
        self.highest = self.highest.max(beat.term.number);
        if beat.server == self.server {
            return;
        }
        if self.term().is_some_and(|own| own > beat.term) {
            // It steps down once it gets a beat of this server, or writes the key.
            return;
        }
        let is_known = self.leader == Some(beat.term);
        if self.leader.is_some_and(|known| known > beat.term)
            && now.saturating_sub(self.heard) < SILENCE
        {
            return;
        }
        self.role = Role::Follower;
        self.waiting = None;
        if !is_known {
            self.leader_changed(now);
        }
        self.leader = Some(beat.term);
        self.heard = now;
        self.is_vacant = beat.resigns;
        if beat.resigns {
            self.jitter /= 4;
        }
    }

    /// Notes that an agent or a server knows of this term.
    pub fn knows(&mut self, term: Term) {
        self.highest = self.highest.max(term.number);
    }

    /// Returns what to do with the key now. Call this ten times a second.
    pub fn tick(&mut self, now: Duration) -> Option<KeyAction> {
        if !self.is_connected || self.has_resigned {
            return None;
        }
        if let Some(since) = self.waiting {
            if now.saturating_sub(since) < STORE_TIMEOUT {
                return None;
            }
            self.waiting = None;
            self.unknown();
        }
        let action = match &mut self.role {
            Role::Follower => {
                let silent = now.saturating_sub(self.heard);
                let patience = if self.is_vacant {
                    Duration::ZERO
                } else {
                    SILENCE
                };
                if silent < patience + self.jitter {
                    return None;
                }
                self.role = Role::Reading;
                KeyAction::Read
            }
            Role::Reading | Role::Claiming(..) => KeyAction::Read,
            Role::Leader(leader) if leader.is_unsure => KeyAction::Read,
            Role::Leader(leader) => {
                if now.saturating_sub(leader.tried) < RENEWED_EVERY {
                    return None;
                }
                leader.tried = now;
                KeyAction::Write {
                    expected: leader.revision,
                    claim: leader.claim.clone(),
                }
            }
        };
        self.waiting = Some(now);
        Some(action)
    }

    /// Takes the result of [`KeyAction::Read`]; `None` if there is none. Returns what to do next.
    pub fn has_read(&mut self, stored: Option<Stored>, now: Duration) -> Option<KeyAction> {
        self.waiting.take()?;
        let Some(stored) = stored else {
            self.unknown();
            return None;
        };
        if let Some(claim) = &stored.claim {
            self.highest = self.highest.max(claim.term.number);
        }
        let claim = match &mut self.role {
            Role::Follower => return None,
            Role::Reading => Claim {
                term: Term {
                    number: self.highest.saturating_add(1),
                    nonce: self.rng.u64(..),
                },
                server: self.server.clone(),
            },
            // The acknowledgement of the write was lost, or it failed.
            Role::Claiming(claim, _) if stored.claim.as_ref() == Some(claim) => {
                let claim = claim.clone();
                self.lead(claim, stored.revision, now);
                return None;
            }
            Role::Claiming(_, expected) => {
                if stored.revision != *expected && stored.claim.is_some() {
                    // Another server was faster. Its beats follow, or silence counts again.
                    self.follow(now);
                    return None;
                }
                self.role = Role::Reading;
                return None;
            }
            Role::Leader(leader) => {
                leader.is_unsure = false;
                let is_own = stored.claim.as_ref() == Some(&leader.claim);
                if is_own && stored.revision > leader.revision {
                    leader.written = leader.tried;
                }
                let is_later = |other: &Claim| other.term > leader.claim.term;
                if stored.claim.as_ref().is_some_and(is_later) {
                    self.follow(now);
                    return None;
                }
                // If the broker has lost the claim, the next write restores it.
                leader.revision = stored.revision;
                return None;
            }
        };
        self.role = Role::Claiming(claim.clone(), stored.revision);
        self.waiting = Some(now);
        Some(KeyAction::Write {
            expected: stored.revision,
            claim,
        })
    }

    /// Takes the result of [`KeyAction::Write`]: the new revision; `None` if it failed, or if that
    /// is unknown. Returns what to do next.
    ///
    /// A write can succeed and its acknowledgement be lost, so only reading the key shows that it
    /// failed.
    pub fn has_written(&mut self, revision: Option<u64>, now: Duration) -> Option<KeyAction> {
        let since = self.waiting.take()?;
        match (&mut self.role, revision) {
            (Role::Claiming(claim, _), Some(revision)) => {
                let claim = claim.clone();
                self.lead(claim, revision, since);
                None
            }
            (Role::Leader(leader), Some(revision)) => {
                leader.revision = revision;
                leader.written = since;
                None
            }
            (Role::Leader(_) | Role::Claiming(..), None) => {
                self.unknown();
                self.waiting = Some(now);
                Some(KeyAction::Read)
            }
            (Role::Follower | Role::Reading, _) => None,
        }
    }

    /// Returns the term for which this server leads, if it does.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        match &self.role {
            Role::Leader(leader) => Some(leader.claim.term),
            _ => None,
        }
    }

    /// Returns the term of the leader whose beats arrive, which may be this server.
    #[must_use]
    pub fn leader(&self, now: Duration) -> Option<Term> {
        let heard = now.saturating_sub(self.heard) < SILENCE + JITTER;
        self.term().or(self.leader.filter(|_| heard))
    }

    /// Whether this server may deal leases.
    #[must_use]
    pub fn may_deal(&self, now: Duration) -> bool {
        match &self.role {
            Role::Leader(leader) => now.saturating_sub(leader.written) < DEALS_FOR,
            _ => false,
        }
    }

    /// Whether the leader has to send a beat now. It then counts as sent.
    pub fn take_beat(&mut self, now: Duration) -> bool {
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let is_due = leader
            .beat
            .is_none_or(|sent| now.saturating_sub(sent) >= BEAT);
        if is_due {
            leader.beat = Some(now);
        }
        is_due
    }

    /// Returns a beat, if this server leads. `capacity` is the number of its agents, and the hashes
    /// of a fast kernel per second of all of them together. While the server may not deal, it has
    /// none: other servers then search themselves.
    #[must_use]
    pub fn beat(&self, capacity: (u32, f64), now: Duration) -> Option<Beat> {
        let (agents, rate) = if self.may_deal(now) {
            capacity
        } else {
            (0, 0.0)
        };
        Some(Beat {
            term: self.term()?,
            server: self.server.clone(),
            resigns: false,
            agents,
            rate,
        })
    }

    /// Takes part in no election from now on. If this server leads, another one does soon: returns
    /// the last beat, and what to do with the key.
    pub fn resign(&mut self) -> Option<(Beat, KeyAction)> {
        self.has_resigned = true;
        match std::mem::replace(&mut self.role, Role::Follower) {
            Role::Leader(leader) => Some((
                Beat {
                    term: leader.claim.term,
                    server: self.server.clone(),
                    resigns: true,
                    agents: 0,
                    rate: 0.0,
                },
                KeyAction::Release {
                    expected: leader.revision,
                },
            )),
            _ => None,
        }
    }

    fn lead(&mut self, claim: Claim, revision: u64, written: Duration) {
        self.highest = self.highest.max(claim.term.number);
        self.role = Role::Leader(Leader {
            claim,
            revision,
            written,
            tried: written,
            is_unsure: false,
            beat: None,
        });
        self.leader_changed(written);
    }

    fn follow(&mut self, now: Duration) {
        self.role = Role::Follower;
        self.heard = now;
        self.is_vacant = false;
        self.draw_jitter();
    }

    /// Notes that the result of the last action is unknown.
    fn unknown(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.is_unsure = true;
        }
    }

    fn leader_changed(&mut self, now: Duration) {
        let is_soon = |last: Duration| now.saturating_sub(last) < CALM_AFTER;
        self.doublings = match self.changed {
            Some(last) if is_soon(last) => (self.doublings + 1).min(MOST_DOUBLINGS),
            _ => 0,
        };
        self.changed = Some(now);
        self.draw_jitter();
    }

    fn draw_jitter(&mut self) {
        self.jitter = JITTER.mul_f64(self.rng.f64()) * 2_u32.pow(self.doublings);
    }
}

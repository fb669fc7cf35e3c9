//! The broker, as far as the machines of a fleet see it: its one key, and what may go wrong with
//! it.

use std::time::Duration;

use fastrand::Rng;
use hashfinder_fleet::{Claim, KeyAction, Stored};

/// The broker of a simulated fleet.
pub(crate) struct Broker {
    /// When it is back, if it is down.
    pub(crate) down_until: Duration,
    /// When its streams have a leader again.
    pub(crate) leaderless_until: Duration,
    /// From when on they have none.
    pub(crate) leaderless_from: Duration,
    /// The values that the key has had, with their revisions.
    log: Vec<(u64, Option<Claim>)>,
}

/// Result of an action on the key.
#[derive(Clone, Debug)]
pub(crate) enum KeyResult {
    Read(Option<Stored>),
    Written(Option<u64>),
    Released,
}

impl Broker {
    pub(crate) fn new() -> Broker {
        Broker {
            down_until: Duration::ZERO,
            leaderless_until: Duration::ZERO,
            leaderless_from: Duration::MAX,
            log: Vec::new(),
        }
    }

    pub(crate) fn is_up(&self, now: Duration) -> bool {
        now >= self.down_until
    }

    fn last(&self) -> Stored {
        let last = self.log.last().cloned().unwrap_or_default();
        let (revision, claim) = last;
        Stored { revision, claim }
    }

    /// Carries out an action. In trouble, reads may be stale, and results may be lost.
    pub(crate) fn carry_out(
        &mut self,
        action: KeyAction,
        trouble: bool,
        rng: &mut Rng,
        now: Duration,
    ) -> KeyResult {
        let is_leaderless = now < self.leaderless_until || now >= self.leaderless_from;
        let is_lost = !self.is_up(now) || is_leaderless;
        let loses_result = trouble && rng.u8(..10) == 0;
        match action {
            KeyAction::Read if is_lost || loses_result => KeyResult::Read(None),
            KeyAction::Read => {
                let is_stale = trouble && rng.u8(..10) == 0 && self.log.len() > 1;
                let stored = match self.log.len().checked_sub(2) {
                    Some(place) if is_stale => {
                        let (revision, claim) = self.log[place].clone();
                        Stored { revision, claim }
                    }
                    _ => self.last(),
                };
                KeyResult::Read(Some(stored))
            }
            KeyAction::Write { expected, claim } => {
                let is_done = !is_lost && self.last().revision == expected;
                if is_done {
                    self.log.push((expected + 1, Some(claim)));
                }
                KeyResult::Written((is_done && !loses_result).then_some(expected + 1))
            }
            KeyAction::Release { expected } => {
                if !is_lost && self.last().revision == expected {
                    self.log.push((expected + 1, None));
                }
                KeyResult::Released
            }
        }
    }

    /// Forgets the key.
    pub(crate) fn lose_key(&mut self) {
        self.log.clear();
    }

    /// Writes an earlier value again, as a backup that is restored does.
    pub(crate) fn restore_old(&mut self, rng: &mut Rng) {
        if !self.log.is_empty() {
            let (_, claim) = self.log[rng.usize(..self.log.len())].clone();
            let revision = self.last().revision;
            self.log.push((revision + 1, claim));
        }
    }

    /// Undoes the last writes.
    pub(crate) fn set_back(&mut self, rng: &mut Rng) {
        let kept = self.log.len() - rng.usize(..=self.log.len().min(5));
        self.log.truncate(kept);
    }
}

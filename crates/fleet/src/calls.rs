//! The calls of a fleet: what each has found that its server has not confirmed.

use std::{collections::BTreeMap, time::Duration};

use hashfinder_search::{Advance, Candidate, Checkpoint, Dispatcher, Index, Outcome, SearchId};

use crate::messages::{Ask, CallId};

/// Time after which a call ends that its server has not renewed.
pub const RENEWED_FOR: Duration = Duration::from_secs(3);

/// Number of candidates of a call that its server has not confirmed, from which the leader takes no
/// more. The search then waits.
const MOST_UNCONFIRMED: usize = 512;

/// The leader's answer to [`Ask`].
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// All candidates at or beyond [`Ask::from`] that were found so far, in order.
    pub candidates: Vec<Candidate>,
    /// The state of the search after these candidates. A server that keeps it can continue the call
    /// with another leader.
    pub checkpoint: Checkpoint,
    /// How the search has ended, if it has.
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Default)]
pub(crate) struct Calls(BTreeMap<CallId, Call>);

#[derive(Debug)]
struct Call {
    search: SearchId,
    renewed: Duration,
    /// What the server has not confirmed.
    unconfirmed: Vec<Candidate>,
    /// The state of the search after these.
    checkpoint: Checkpoint,
    outcome: Option<Outcome>,
}

impl Calls {
    /// Renews a call, or begins it with `begin`.
    pub(crate) fn renew<E>(
        &mut self,
        ask: &Ask,
        now: Duration,
        begin: impl FnOnce() -> Result<SearchId, E>,
    ) -> Result<(), E> {
        if let Some(call) = self.0.get_mut(&ask.call) {
            call.renewed = now;
            return Ok(());
        }
        let call = Call {
            search: begin()?,
            renewed: now,
            unconfirmed: Vec::new(),
            checkpoint: ask.checkpoint.clone(),
            outcome: None,
        };
        self.0.insert(ask.call.clone(), call);
        Ok(())
    }

    /// Takes what is new of a call, forgets what its server has confirmed, and returns the rest.
    pub(crate) fn tell(&mut self, ask: &Ask, dispatcher: &mut Dispatcher) -> Option<Told> {
        let call = self.0.get_mut(&ask.call)?;
        let confirm = |call: &mut Call| call.unconfirmed.retain(|found| found.index >= ask.from);
        confirm(call);
        if call.outcome.is_none() && call.unconfirmed.len() < MOST_UNCONFIRMED {
            let Advance {
                candidates,
                checkpoint,
                outcome,
                ..
            } = dispatcher.advance(call.search)?;
            call.unconfirmed.extend(candidates);
            call.checkpoint = checkpoint;
            call.outcome = outcome;
            // An old message may have begun the call, far below what has arrived since.
            confirm(call);
        }
        Some(Told {
            candidates: call.unconfirmed.clone(),
            checkpoint: call.checkpoint.clone(),
            outcome: call.outcome.clone(),
        })
    }

    /// Removes a call, and returns its search.
    pub(crate) fn remove(&mut self, call: &str) -> Option<SearchId> {
        Some(self.0.remove(call)?.search)
    }

    /// Removes the calls that were not renewed, and returns their searches.
    pub(crate) fn expired(&mut self, now: Duration) -> Vec<SearchId> {
        let mut old = Vec::new();
        self.0.retain(|_, call| {
            let is_old = now.saturating_sub(call.renewed) >= RENEWED_FOR;
            if is_old {
                old.push(call.search);
            }
            !is_old
        });
        old
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Told {
    /// Returns the index from which a server asks next, once it has this answer: everything below
    /// it has arrived.
    #[must_use]
    pub fn next(&self, before: Index) -> Index {
        let last = self.candidates.last();
        last.map_or(before, |last| last.index + 1)
    }
}

//! The calls of a fleet: what each has found that its server has not confirmed.

use std::{collections::BTreeMap, time::Duration};

use hashfinder_search::{Advance, Candidate, Checkpoint, Dispatcher, Index, Outcome, SearchId};

use crate::messages::{Ask, CallId};

/// Time after which a call ends that its server has not renewed.
pub const RENEWED_FOR: Duration = Duration::from_secs(3);

/// Maximum number of candidates in one answer. The others follow in the next ones.
const MOST_TOLD: usize = 256;

/// Number of candidates of a call that its server has not confirmed, from which the leader takes no
/// more. The search then waits.
const MOST_UNCONFIRMED: usize = 2 * MOST_TOLD;

/// The leader's answer to [`Ask`].
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Candidates at or beyond [`Ask::from`], in order.
    pub candidates: Vec<Candidate>,
    /// The state of the search after these candidates. A server that keeps it can continue the call
    /// with another leader.
    pub checkpoint: Checkpoint,
    /// How the search has ended, if it has, and all its candidates are in this answer or before it.
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Default)]
pub(crate) struct Calls(BTreeMap<CallId, Call>);

#[derive(Debug)]
struct Call {
    search: SearchId,
    renewed: Duration,
    /// What the server has not confirmed, with the checkpoint after each step.
    steps: Vec<Step>,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Step {
    candidates: Vec<Candidate>,
    checkpoint: Checkpoint,
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
            steps: Vec::new(),
            outcome: None,
        };
        self.0.insert(ask.call.clone(), call);
        Ok(())
    }

    /// Takes what is new of a call, forgets what its server has confirmed, and returns the rest.
    pub(crate) fn tell(&mut self, ask: &Ask, dispatcher: &mut Dispatcher) -> Option<Told> {
        let call = self.0.get_mut(&ask.call)?;
        let unconfirmed = call.steps.iter().map(|step| step.candidates.len());
        if call.outcome.is_none() && unconfirmed.sum::<usize>() < MOST_UNCONFIRMED {
            let Advance {
                candidates,
                checkpoint,
                outcome,
                ..
            } = dispatcher.advance(call.search)?;
            call.outcome = outcome;
            call.steps.push(Step {
                candidates,
                checkpoint,
            });
        }
        let is_confirmed = |step: &Step| {
            let last = step.candidates.last();
            last.is_none_or(|last| last.index < ask.from)
        };
        // The last step has the latest checkpoint.
        while call.steps.len() > 1 && is_confirmed(&call.steps[0]) {
            call.steps.remove(0);
        }
        let mut told = Told {
            candidates: Vec::new(),
            checkpoint: call.steps.first()?.checkpoint.clone(),
            outcome: None,
        };
        let mut is_all = true;
        for step in &call.steps {
            let left = step.candidates.iter();
            let left = left.filter(|candidate| candidate.index >= ask.from);
            if !told.candidates.is_empty()
                && told.candidates.len() + left.clone().count() > MOST_TOLD
            {
                is_all = false;
                break;
            }
            told.candidates.extend(left);
            told.checkpoint = step.checkpoint.clone();
        }
        if is_all {
            told.outcome.clone_from(&call.outcome);
        }
        Some(told)
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

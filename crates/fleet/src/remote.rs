//! A search of a server that a fleet works on, as the server knows it.

use std::{sync::Arc, time::Duration};

use hashfinder_search::{
    Candidate, Checkpoint, Client, Cursor, Index, Outcome, Progress, Query, SearchState,
};

use crate::{
    calls::CallUpdate,
    messages::{CallId, CallRenewal, ServerId},
};

/// Time without a word from the leader after which the server searches itself: longer than an
/// election takes.
const STRANDED_AFTER: Duration = Duration::from_secs(10);

/// Time that a search which is stopped waits for the leader to say how far it came. Agents answer a
/// recall within milliseconds. What one with slow messages reports later is searched again.
const STOPS_WITHIN: Duration = Duration::from_millis(500);

/// Time between two messages about a call.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// A search that a server has passed to a fleet.
///
/// The server sends an [`CallRenewal`] each second, and takes each [`CallUpdate`] that arrives.
/// What it knows is always true, whichever leader said it: a candidate arrives once, and the
/// checkpoint is that after the last one. So the search can continue elsewhere at any time.
#[derive(Clone, Debug)]
pub struct RemoteSearch {
    call: CallId,
    client: Client,
    query: Query,
    checkpoint: Checkpoint,
    /// Every candidate below this index has arrived.
    from: Index,
    /// Those that were not taken yet.
    ready: Vec<Candidate>,
    outcome: Option<Outcome>,
    state: SearchState,
    /// When the call was last renewed, and when the leader last answered.
    asked: Option<Duration>,
    heard: Duration,
    is_stranded: bool,
    /// When it was stopped.
    stopped: Option<Duration>,
}

impl RemoteSearch {
    /// Creates a search that continues from a checkpoint. `query` must be the one that the
    /// checkpoint belongs to.
    #[must_use]
    pub fn new(
        call: CallId,
        client: Client,
        query: Query,
        checkpoint: Checkpoint,
        now: Duration,
    ) -> RemoteSearch {
        RemoteSearch {
            call,
            client,
            query,
            from: checkpoint.frontier(),
            checkpoint,
            ready: Vec::new(),
            outcome: None,
            state: SearchState::Queued,
            asked: None,
            heard: now,
            is_stranded: false,
            stopped: None,
        }
    }

    /// Returns the query.
    #[must_use]
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Returns the message for the leader, if one is due.
    pub fn renewal(&mut self, server: &ServerId, now: Duration) -> Option<CallRenewal> {
        let is_recent = |asked: Duration| now.saturating_sub(asked) < RENEWED_EVERY;
        if self.outcome.is_some() || self.asked.is_some_and(is_recent) {
            return None;
        }
        self.asked = Some(now);
        Some(CallRenewal {
            call: Arc::clone(&self.call),
            server: Arc::clone(server),
            client: self.client.clone(),
            query: self.query.clone(),
            checkpoint: self.checkpoint.clone(),
            from: self.from,
            stops: self.stopped.is_some(),
        })
    }

    /// Makes the next message due at once, because there is a new leader.
    pub fn renew_at_once(&mut self) {
        self.asked = None;
    }

    /// Applies an update of a leader; returns whether the reader has to be woken. Ignores old and
    /// repeated ones, and all of them while candidates are unread.
    pub fn update(&mut self, update: CallUpdate, now: Duration) -> bool {
        self.heard = now;
        // An ideal hit that an agent has hidden is found after what comes later.
        let is_late = matches!(&update.outcome, Some(Outcome::Ideal(found))
            if update.checkpoint.frontier() == found.index + 1);
        let goes_on = update.checkpoint.frontier() >= self.checkpoint.frontier();
        let is_next = update.from == self.from
            && self.ready.is_empty()
            && self.outcome.is_none()
            && (goes_on || is_late)
            && update.checkpoint.end() <= self.checkpoint.end();
        if !is_next {
            return false;
        }
        self.state = update.state;
        self.from = update.next(self.from);
        self.ready = update.candidates;
        self.checkpoint = update.checkpoint;
        self.outcome = update.outcome;
        !self.ready.is_empty() || self.outcome.is_some()
    }

    /// Notes a message of the leader that brings nothing new.
    pub fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// Returns the index below which every candidate has arrived.
    #[must_use]
    pub fn from(&self) -> Index {
        self.from
    }

    /// Gives the search back to its server, for example because the leader has no room for it;
    /// returns whether the reader has to be woken.
    pub fn strand(&mut self) -> bool {
        self.outcome.is_none() && !std::mem::replace(&mut self.is_stranded, true)
    }

    /// Gives the search back to its server if the fleet does not work on it: it has no agents, or
    /// its leader is silent. Ends it if it was stopped and the leader does not answer. Returns
    /// whether the reader has to be woken.
    pub fn check(&mut self, has_agents: bool, now: Duration) -> bool {
        if let Some(stopped) = self.stopped {
            let ends = self.outcome.is_none() && now.saturating_sub(stopped) >= STOPS_WITHIN;
            if ends {
                self.end();
            }
            return ends;
        }
        let is_lost = now.saturating_sub(self.heard) >= STRANDED_AFTER;
        (is_lost || !has_agents) && self.strand()
    }

    /// Whether the server should continue the search itself, from the [checkpoint](Self::take).
    #[must_use]
    pub fn is_stranded(&self) -> bool {
        self.is_stranded && self.outcome.is_none() && self.stopped.is_none()
    }

    /// Takes the candidates that have arrived, with a checkpoint of the same moment. After some,
    /// the next message is due at once: it confirms them, and brings the next ones.
    pub fn take(&mut self) -> (Vec<Candidate>, Checkpoint) {
        if !self.ready.is_empty() {
            self.asked = None;
        }
        (std::mem::take(&mut self.ready), self.checkpoint.clone())
    }

    /// Returns how the search has ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Stops the search: the next message, due at once, says so to the leader. The search ends when
    /// the leader has answered, or after half a second. One that has ended keeps its outcome.
    pub fn stop(&mut self, now: Duration) {
        if self.stopped.is_none() {
            self.stopped = Some(now);
            self.asked = None;
        }
    }

    /// Ends the search here and now. What agents have not reported is lost. One that has ended
    /// keeps its outcome.
    pub fn end(&mut self) -> &Outcome {
        let (query, frontier) = (&self.query, self.checkpoint.frontier());
        self.outcome
            .get_or_insert_with(|| Outcome::Stopped(Cursor::new(query, frontier)))
    }

    /// Returns the progress of the search.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let covered = self.checkpoint.covered(&self.query);
        Progress {
            state: match self.outcome {
                Some(_) => SearchState::Ended,
                None => self.state,
            },
            frontier: self.checkpoint.frontier(),
            hashes: covered,
            tests: covered,
        }
    }
}

//! Progress of a search, and the engine's metrics.

use crate::{keyspace::Index, outcome::Outcome};

/// Totals and current state of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Searches that are being worked on, alone or sharing slices with others. A search that has
    /// ended also counts until its last slice has come back.
    pub active: usize,
    /// Searches that wait for their turn, without a slice in flight that serves them.
    pub queued: usize,
    /// Searches that wait for their reader.
    pub parked: usize,
    /// Secrets hashed.
    pub hashes: u64,
    /// Secrets tested, each counted once for every search that it was tested for.
    pub tests: u64,
    /// Tests whose results were discarded: beyond a search's end, or because there were too many
    /// hits to hold. They are included in `tests`, except for those that a search has brought from
    /// its checkpoint.
    pub in_vain: u64,
    /// Slices tried.
    pub slices: u64,
    /// Searches that have ended, by outcome.
    pub ended: Ended,
    /// Number of stopped searches by the time from the stop until the last worker released them: up
    /// to 1, 2, 4, 8 ... microseconds. The last element also counts all longer times.
    pub stop_latency: [u64; 24],
}

/// Progress of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Current state of the search.
    pub state: SearchState,
    /// Every index below this one has been tried.
    pub frontier: Index,
    /// Number of secrets hashed in the search's own turns.
    pub hashes: u64,
    /// Number of secrets tested for the search, in its own turns or in others'.
    pub tests: u64,
}

/// State of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SearchState {
    /// The search waits for its turn, and no slice in flight serves it.
    Queued,
    /// The search is being worked on, alone or sharing slices with others.
    Running,
    /// The search waits for its reader.
    Parked,
    /// The search has ended, whether or not its reader has seen the end.
    Ended,
}

/// Number of ended searches, by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Ended with an ideal secret.
    pub ideal: u64,
    /// Ended because every secret of the keyspace was tried.
    pub exhausted: u64,
    /// Ended because their hash budget was spent.
    pub budget_spent: u64,
    /// Ended because their client's quota was spent.
    pub quota_spent: u64,
    /// Ended because they were stopped.
    pub stopped: u64,
    /// Ended with a panic of the backend.
    pub failed: u64,
}

impl Ended {
    /// Counts a search that ended with `outcome`.
    pub fn count(&mut self, outcome: &Outcome) {
        let ended = match outcome {
            Outcome::Ideal(_) => &mut self.ideal,
            Outcome::Exhausted => &mut self.exhausted,
            Outcome::BudgetSpent(_) => &mut self.budget_spent,
            Outcome::QuotaSpent { .. } => &mut self.quota_spent,
            Outcome::Stopped(_) => &mut self.stopped,
            Outcome::Failed(_) => &mut self.failed,
        };
        *ended += 1;
    }
}

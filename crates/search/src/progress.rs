//! Progress of a search, and the engine's metrics.

use crate::{keyspace::Index, outcome::Outcome};

/// What the engine has done, and is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Searches that are being worked on, alone or with others.
    pub active: usize,
    /// Searches that wait for their turn, and no slice in flight serves them.
    pub queued: usize,
    /// Searches that wait for their reader.
    pub parked: usize,
    /// Secrets hashed.
    pub hashes: u64,
    /// Secrets tested, counted for each search that they were tested for.
    pub tests: u64,
    /// Tests whose results were discarded: beyond a search's end, or because there were too many hits to hold.
    pub in_vain: u64,
    /// Slices tried.
    pub slices: u64,
    /// Searches that have ended, by how.
    pub ended: Ended,
    /// How many stopped searches were let go of within 1, 2, 4, 8 ... microseconds of the request; the last
    /// counts all that took longer.
    pub stop_latency: [u64; 24],
}

/// Progress of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub state: SearchState,
    /// Every index below this one has been tried.
    pub frontier: Index,
    /// How many secrets were hashed when it was its turn.
    pub hashes: u64,
    /// How many secrets were tested for it, in its own turns or others'.
    pub tests: u64,
}

/// What a search is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SearchState {
    /// It waits for its turn, and no slice in flight serves it.
    Queued,
    /// It is being worked on, alone or with others.
    Running,
    /// It waits for its reader.
    Parked,
    /// It has ended, whether or not its reader knows.
    Ended,
}

/// How searches ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// With the first ideal secret.
    pub ideal: u64,
    /// With the last secret there is.
    pub exhausted: u64,
    /// With their hash budget spent.
    pub budget_spent: u64,
    /// With their client's quota spent.
    pub quota_spent: u64,
    /// Because they were stopped.
    pub stopped: u64,
    /// With a panic.
    pub failed: u64,
}

impl Ended {
    /// Counts a search that ended like this.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
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

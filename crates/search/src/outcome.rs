//! A search's events and outcome.

use std::time::Duration;

use crate::{
    cursor::Cursor,
    keyspace::Index,
    query::{Candidate, Query},
};

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A secret within the ideal distance was found: the first one in enumeration order.
    Ideal(Candidate),
    /// Every secret from the search's start to the end of the keyspace was tried, and none was
    /// ideal.
    Exhausted,
    /// Exactly the hash budget was spent. The search can resume from the cursor.
    BudgetSpent(Cursor),
    /// The quota of hashes of the search's client is spent.
    QuotaSpent {
        /// Where the search can resume.
        cursor: Cursor,
        /// Time until a second's worth of the quota is available again.
        retry_after: Duration,
    },
    /// A [`Stopper`](crate::Stopper) stopped the search, or its handle or the engine was dropped.
    /// The search can resume from the cursor.
    Stopped(Cursor),
    /// The backend panicked. Everything reported before is valid.
    Failed(Cursor),
}

impl Outcome {
    /// Returns the outcome of a search that has tried every secret before `end`, found none that is
    /// ideal, and may try no more.
    pub(crate) fn nothing_found(query: &Query, end: Index) -> Outcome {
        if end == query.keyspace().end() {
            Outcome::Exhausted
        } else {
            Outcome::BudgetSpent(Cursor::new(query, end))
        }
    }
}

/// An event that a search reports to its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next interesting secrets, in enumeration order; at least one.
    Candidates(Vec<Candidate>),
    /// The end of the search. No event follows it.
    Ended(Outcome),
}

/// What a search cost, reported once its last slice has come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How the search ended.
    pub outcome: Outcome,
    /// Number of secrets hashed in the search's own turns. The search may also have tested secrets
    /// that were hashed in other searches' turns. Some of its hashes may lie beyond its end.
    pub hashes: u64,
    /// Number of secrets tested for the search, in its own turns or in others'.
    pub tests: u64,
    /// Time from the stop until the last worker released the search; `None` if the search was not
    /// stopped. A spent quota and a panic also stop a search.
    pub stop_latency: Option<Duration>,
}

pub(crate) type Release = Box<dyn FnOnce(Report) + Send>;

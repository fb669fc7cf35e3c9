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
    /// Every secret of the keyspace was tried, and none was ideal.
    Exhausted,
    /// The hash budget is spent, exactly. The search can resume from here.
    BudgetSpent(Cursor),
    /// Its client's quota of hashes is spent.
    QuotaSpent {
        /// Where the search can resume.
        cursor: Cursor,
        /// Time until a second's worth of the quota is available again.
        retry_after: Duration,
    },
    /// A [`Stopper`](crate::Stopper) stopped it, or its handle or the engine was dropped. The
    /// search can resume from here.
    Stopped(Cursor),
    /// The backend panicked. Everything reported before is valid.
    Failed(Cursor),
}

impl Outcome {
    /// Returns the outcome of a search that has tried every secret before `end` without an ideal
    /// one, and may try no more.
    pub(crate) fn nothing_found(query: &Query, end: Index) -> Outcome {
        if end == query.keyspace().end() {
            Outcome::Exhausted
        } else {
            Outcome::BudgetSpent(Cursor::new(query, end))
        }
    }
}

/// An event of a search, for its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next interesting secrets, in enumeration order; at least one.
    Candidates(Vec<Candidate>),
    /// The end. No event follows it.
    Ended(Outcome),
}

/// What a search cost, reported once its last slice has come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Number of secrets hashed in the search's own turns. The search may also have tested secrets
    /// that were hashed in other searches' turns. Some of its hashes may lie beyond its end.
    pub hashes: u64,
    /// Number of secrets tested for the search, in its own turns or in others'.
    pub tests: u64,
    /// Time from the stop request until the last worker released the search; `None` if it ended
    /// without being stopped.
    pub stop_latency: Option<Duration>,
}

pub(crate) type Release = Box<dyn FnOnce(Report) + Send>;

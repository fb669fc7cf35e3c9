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
    /// The first secret within the ideal distance.
    Ideal(Candidate),
    /// Every secret of the keyspace was tried, and none was ideal.
    Exhausted,
    /// The hash budget is spent, exactly; the search can go on from here.
    BudgetSpent(Cursor),
    /// Its client's quota of hashes is spent.
    QuotaSpent {
        /// Where the search can go on.
        cursor: Cursor,
        /// When a second's worth of the quota will be there again.
        retry_after: Duration,
    },
    /// A [`Stopper`](crate::Stopper) stopped it, or its handle or the engine was dropped. The search can
    /// resume from here.
    Stopped(Cursor),
    /// The backend panicked; what came before can be relied on.
    Failed(Cursor),
}

impl Outcome {
    /// How a search ends that has tried every secret before `end` without an ideal one, and may try no more.
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
    /// The end; nothing follows it.
    Ended(Outcome),
}

/// What a search cost, reported once its last slice has come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// How many secrets were hashed when it was its turn. Others may have been tested too, and some of
    /// them lie beyond its end.
    pub hashes: u64,
    /// How many secrets were tested for it, in its own turns or others'.
    pub tests: u64,
    /// Time from the stop request until the last worker had let go; `None` if it ended
    /// without being stopped.
    pub stop_latency: Option<Duration>,
}

pub(crate) type Release = Box<dyn FnOnce(Report) + Send>;

//! An operation as it is saved: its request, its progress and its end.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use hashfinder_search::{Checkpoint, Cursor, Index, Query};

/// A time on the system's clock, in milliseconds since 1970.
pub type Millis = i64;

/// Length of the random part of a name, in hexadecimal digits: 128 bits.
const ID_LEN: usize = 32;

/// The collection of all operations, which every name begins with.
pub const COLLECTION: &str = "operations";

/// Name of an operation: `operations/` and 32 hexadecimal digits. Names are random and never used
/// again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// Creates a name from random bits.
    #[must_use]
    pub fn new(random: u128) -> Name {
        Name(format!("{random:032x}").into())
    }

    /// Returns the name without `operations/`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{COLLECTION}/{}", self.0)
    }
}

/// A text that is not the name of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an operation: expected \"operations/\" and 32 hexadecimal digits")]
pub struct InvalidName;

impl FromStr for Name {
    type Err = InvalidName;

    /// Parses a name as `Display` writes it.
    fn from_str(text: &str) -> Result<Name, InvalidName> {
        let id = text
            .strip_prefix(COLLECTION)
            .and_then(|rest| rest.strip_prefix('/'));
        let id = id.ok_or(InvalidName)?;
        let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        let is_id = id.len() == ID_LEN && id.chars().all(is_digit);
        is_id.then(|| Name(id.into())).ok_or(InvalidName)
    }
}

/// What a client requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client that owns the operation.
    pub client: Arc<str>,
    /// Identifies the request among those of the client; empty if it has no id.
    pub request_id: String,
    /// Name for people.
    pub display_name: String,
    /// What to search for, and where to start. It has no budget.
    pub query: Query,
    /// Hash budget in the request; 0 if it has none.
    pub maximum_hashes: u64,
    /// How long to keep the operation after its end.
    pub keep: Duration,
}

impl Request {
    /// Returns the query and its start as text. Two requests with the same text and the same
    /// `maximum_hashes` are the same.
    #[must_use]
    pub fn text(&self) -> String {
        Cursor::new(&self.query, self.query.start()).to_string()
    }
}

/// Who cancelled an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canceller {
    /// The client that owns it.
    Client,
    /// An operator.
    Operator,
    /// The server, because the API key of the client was revoked.
    Revocation,
}

/// Why an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// A secret within the ideal distance was found.
    Found,
    /// All secrets were tried.
    KeyspaceExhausted,
    /// The hash budget is spent.
    BudgetSpent,
    /// Its client cancelled it.
    CancelledByClient,
    /// An operator cancelled it.
    CancelledByOperator,
    /// The API key of its client was revoked.
    KeyRevoked,
    /// It found the maximum number of candidates.
    TooManyCandidates,
    /// It failed because of a bug in the server.
    Failed,
}

impl EndReason {
    /// All reasons.
    pub const ALL: [EndReason; 8] = [
        EndReason::Found,
        EndReason::KeyspaceExhausted,
        EndReason::BudgetSpent,
        EndReason::CancelledByClient,
        EndReason::CancelledByOperator,
        EndReason::KeyRevoked,
        EndReason::TooManyCandidates,
        EndReason::Failed,
    ];

    /// Returns its name in the store and in the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EndReason::Found => "found",
            EndReason::KeyspaceExhausted => "keyspace_exhausted",
            EndReason::BudgetSpent => "hash_budget_spent",
            EndReason::CancelledByClient => "cancelled_by_client",
            EndReason::CancelledByOperator => "cancelled_by_operator",
            EndReason::KeyRevoked => "key_revoked",
            EndReason::TooManyCandidates => "too_many_candidates",
            EndReason::Failed => "failed",
        }
    }
}

impl From<Canceller> for EndReason {
    fn from(by: Canceller) -> EndReason {
        match by {
            Canceller::Client => EndReason::CancelledByClient,
            Canceller::Operator => EndReason::CancelledByOperator,
            Canceller::Revocation => EndReason::KeyRevoked,
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// When it ended.
    pub at: Millis,
    /// Why it ended.
    pub reason: EndReason,
    /// Explanation, if there is one.
    pub message: String,
}

/// An operation as it is saved. A candidate is a function of its index, so a store keeps indices
/// only; they are not part of the record, because there can be thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Identifies the operation.
    pub name: Name,
    /// What its client requested.
    pub request: Request,
    /// When it was created.
    pub created: Millis,
    /// Its hash budget.
    pub budget: u64,
    /// What it has yet to cover, and what it holds beyond its frontier.
    pub checkpoint: Checkpoint,
    /// Number of candidates below the frontier, including the secret that ended it.
    pub candidates: u64,
    /// When it was last saved.
    pub updated: Millis,
    /// How many times its search was begun without any progress since.
    pub resumes: u32,
    /// How many times its search failed without much progress since.
    pub failures: u32,
    /// Who cancelled it, if it is to end.
    pub cancel: Option<Canceller>,
    /// How it ended, if it has.
    pub end: Option<End>,
}

impl Record {
    /// Creates the record of a new operation. `budget` is at least 1.
    #[must_use]
    pub fn new(name: Name, request: Request, budget: u64, now: Millis) -> Record {
        let query = request.query.clone();
        let query = match std::num::NonZeroU64::new(budget) {
            Some(budget) => query.hash_budget(budget),
            None => query,
        };
        Record {
            name,
            created: now,
            budget,
            checkpoint: Checkpoint::new(&query),
            candidates: 0,
            updated: now,
            resumes: 0,
            failures: 0,
            cancel: None,
            end: None,
            request,
        }
    }

    /// Returns the query, starting where the operation started.
    #[must_use]
    pub fn query(&self) -> &Query {
        &self.request.query
    }

    /// Returns the number of secrets tried.
    #[must_use]
    pub fn hashes(&self) -> u64 {
        self.checkpoint.covered(self.query())
    }

    /// Returns the index of the secret that ended the operation, if it found one.
    #[must_use]
    pub fn found(&self) -> Option<Index> {
        let end = self.end.as_ref()?;
        // An ideal hit lowers the end to one past itself.
        let found = end.reason == EndReason::Found;
        found.then(|| self.checkpoint.end().checked_sub(1))?
    }

    /// Returns the cursor from which an operation that has ended can be resumed, if anything is
    /// left to search.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match self.end.as_ref()?.reason {
            EndReason::Found | EndReason::KeyspaceExhausted => None,
            _ => Some(Cursor::new(self.query(), self.checkpoint.frontier())),
        }
    }

    /// Returns when the operation is deleted, if it has ended.
    #[must_use]
    pub fn expires(&self) -> Option<Millis> {
        let keep = Millis::try_from(self.request.keep.as_millis()).unwrap_or(Millis::MAX);
        Some(self.end.as_ref()?.at.saturating_add(keep))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        let name = Name::new(0x1234);
        assert_eq!(name.to_string(), format!("operations/{:032x}", 0x1234));
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        for wrong in [
            "",
            "operations",
            "operations/",
            name.id(),
            &format!("operations/{}", name.id().to_uppercase().replace('0', "A")),
            &format!("operations/{}0", name.id()),
            &format!(" {name}"),
        ] {
            assert_eq!(wrong.parse::<Name>(), Err(InvalidName), "{wrong}");
        }
    }
}

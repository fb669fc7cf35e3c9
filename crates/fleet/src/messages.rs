//! The messages between the machines of a fleet.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use hashfinder_search::{Checkpoint, Client, Index, LeaseId, Query};

/// An index on the wire and in stores. It is wider than the engine's, so that larger keyspaces will
/// not need another protocol.
pub type WireIndex = u128;

/// Returns an index for the wire.
#[must_use]
pub fn widen(index: Index) -> WireIndex {
    index.into()
}

/// Returns an index from the wire.
///
/// # Errors
///
/// If this version cannot search that far.
pub fn narrow(index: WireIndex) -> Result<Index, OutOfRange> {
    Index::try_from(index).map_err(|_| OutOfRange(index))
}

/// An index from the wire is beyond what this version can search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index {0} is beyond what this version can search")]
pub struct OutOfRange(pub WireIndex);

/// A leader's time in office.
///
/// Each leader takes a higher number than all that it knows of. If the broker has lost the highest
/// one, two leaders can have the same number, so a random nonce distinguishes them: leases and
/// reports of different terms never mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Higher for a later leader.
    pub number: u64,
    /// Random.
    pub nonce: u64,
}

/// Writes the term as a single token of a subject.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.number, self.nonce)
    }
}

/// Identifies a server in its fleet.
pub type ServerId = Arc<str>;

/// Heartbeat of the leader, for the servers. It sends one every [`BEAT`].
#[derive(Clone, Debug, PartialEq)]
pub struct Beat {
    /// The leader's term.
    pub term: Term,
    /// The server that is the leader.
    pub server: ServerId,
    /// Whether it is the last one: the leader shuts down.
    pub resigns: bool,
    /// Number of agents that get leases; 0 while the leader may not deal any.
    pub agents: u32,
    /// Hashes of a fast kernel per second, of all of them together.
    pub rate: f64,
}

/// Time between two beats of a leader.
pub const BEAT: Duration = Duration::from_millis(500);

/// Identifies an agent in its fleet: `USER.MACHINE.PROCESS`. A user of the broker may have several
/// agents.
pub type AgentId = Arc<str>;

/// User of all agents without credentials.
pub const ANYONE: &str = "anyone";

/// Whether a name means an agent: it is the agent's ID, or the first parts of it.
#[must_use]
pub fn means(name: &str, agent: &str) -> bool {
    let rest = agent.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Identifies a call in its fleet.
pub type CallId = Arc<str>;

/// A message of an agent to the leader: reports what it has tried, asks for more, and shows that it
/// is alive. It sends one at least once a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The agent.
    pub agent: AgentId,
    /// Number of this message since the agent's start, from 1.
    pub sequence: u64,
    /// Number of the latest message whose reply has arrived. The agent does not have the leases of
    /// earlier replies that are missing in `holds`; those of later replies may be under way.
    pub answered: u64,
    /// The term that the agent follows.
    pub term: Term,
    /// Hashes of a fast kernel that it computes per second, as measured at its start.
    pub rate: f64,
    /// Its version of hashfinder, for people.
    pub version: Arc<str>,
    /// Whether it takes no more leases, because it is about to end.
    pub is_draining: bool,
    /// Leases that it has, apart from those that it reports.
    pub holds: Vec<LeaseId>,
    /// Leases that it has done. A report is repeated until the leader has replied to it.
    pub reports: Vec<Report>,
    /// Numbers of the sets of queries that it knows.
    pub knows: Vec<u64>,
}

/// What an agent has tried of a lease. The lease is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The lease.
    pub lease: LeaseId,
    /// One past the last index tried: every secret of the lease below it was.
    pub tried: Index,
    /// The indices of the hits among these, in order.
    pub hits: Vec<Index>,
    /// Time that this took, without pauses.
    pub took: Duration,
    /// Whether trying the next secrets panicked. `tried` is then the start of the lease.
    pub failed: bool,
}

/// The leader's reply to [`Work`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    /// The leader's term. If it is not the message's, the reply says nothing else.
    pub term: Term,
    /// New leases, in the order in which to try them.
    pub leases: Vec<Order>,
    /// Leases to report now, as far as they are tried.
    pub recalls: Vec<LeaseId>,
    /// Leases that are over: nothing that the agent reports of them counts.
    pub over: Vec<LeaseId>,
    /// The sets of queries of new leases that the agent does not know.
    pub sets: Vec<NewSet>,
    /// Whether the agent should return its leases and end.
    pub ends: bool,
}

/// Queries whose names are searched for together.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSet {
    /// Identifies the set within its term.
    pub number: u64,
    /// The queries.
    pub queries: Arc<[Query]>,
    /// Number of the first queries of which an ideal hit ends a lease.
    pub ending: usize,
}

/// A lease, as an agent gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The lease.
    pub lease: LeaseId,
    /// The secrets to try.
    pub range: Range<Index>,
    /// Number of the set of queries whose names it looks for.
    pub set: u64,
    /// Number of hits after which it stops.
    pub hit_limit: usize,
    /// Time that it should take. The agent drops the lease after three times as long.
    pub planned: Duration,
}

/// A message of a server to the leader about one of its calls. It sends one each second: a call
/// that is not renewed ends.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRenewal {
    /// The call.
    pub call: CallId,
    /// The server that has the call.
    pub server: ServerId,
    /// Whose call it is.
    pub client: Client,
    /// What it searches for.
    pub query: Query,
    /// Where the call begins or, under a new leader, continues: the last checkpoint that
    /// the server has.
    pub checkpoint: Checkpoint,
    /// Every candidate below this index has arrived.
    pub from: Index,
    /// Whether to stop the search. It then ends once its leases are over.
    pub stops: bool,
}

//! What the handles and the task of a server share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashfinder_fleet::{Beat, RemoteSearch, Term};
use hashfinder_search::Ended as Ends;
use tokio::{sync::watch, time::Instant};

use crate::{broker::Broker, call::Calls};

/// Time without a beat after which new searches stay with their server.
const LEADER_GONE_AFTER: Duration = Duration::from_secs(3);

/// What the handles and the task of a server share.
pub(crate) struct Shared {
    pub(crate) calls: Arc<Calls>,
    pub(crate) state: Mutex<State>,
    pub(crate) started: Instant,
    /// The connection, once there is one.
    pub(crate) broker: watch::Sender<Option<Broker>>,
    /// The term in which this server leads, if it does.
    pub(crate) leads: watch::Sender<Option<Term>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// The last beat, and when it came.
    pub(crate) beat: Option<(Beat, Duration)>,
    /// When there were agents last.
    pub(crate) had_agents: Option<Duration>,
    pub(crate) metrics: FleetMetrics,
}

/// What a server knows of its fleet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetMetrics {
    /// Whether this server has a connection to a broker.
    pub is_connected: bool,
    /// Whether this server leads.
    pub leads: bool,
    /// Number of the leader's term; 0 without a leader.
    pub term: u64,
    /// Number of agents that get leases.
    pub agents: u32,
    /// Hashes of a fast kernel per second, of all agents together.
    pub rate: f64,
    /// Number of this server's searches that the fleet works on.
    pub calls: usize,
    /// Number of leases that agents have, if this server leads.
    pub leases: usize,
    /// Number of bans of agents, if this server leads.
    pub bans: usize,
    /// Number of agents that this server has banned as the leader, because of what they did.
    pub banned: u64,
    /// Number of leaders since the start whose beats have arrived here.
    pub leaders: u64,
    /// Number of this server's searches that the fleet gave back, because it had no agents, no
    /// leader or no room.
    pub stranded: u64,
    /// Number of secrets that the fleet has covered for this server's searches.
    pub secrets: u64,
    /// This server's searches that have ended in the fleet, by outcome.
    pub ended: Ends,
}

impl State {
    /// Returns the last beat of the current leader; `None` if it is too old.
    pub(crate) fn leader(&self, now: Duration) -> Option<&Beat> {
        let (beat, at) = self.beat.as_ref()?;
        (now.saturating_sub(*at) < LEADER_GONE_AFTER).then_some(beat)
    }
}

impl Shared {
    pub(crate) fn new() -> Shared {
        Shared {
            calls: Arc::default(),
            state: Mutex::default(),
            started: Instant::now(),
            broker: watch::Sender::new(None),
            leads: watch::Sender::new(None),
        }
    }

    /// Returns the time since the server's start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether agents would work on a search now.
    pub(crate) fn has_agents(&self) -> bool {
        let now = self.now();
        self.lock().leader(now).is_some_and(|beat| beat.agents > 0)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Gives all searches back to their server.
    pub(crate) fn strand_all(&self) {
        for call in lock(&self.calls).values() {
            if call.change(RemoteSearch::strand) {
                self.lock().metrics.stranded += 1;
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

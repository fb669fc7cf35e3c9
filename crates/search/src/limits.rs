//! Limits and quotas of clients, and what they have used.

use std::{
    collections::{HashMap, hash_map::Entry},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use crate::client::{Client, Quota};

/// Limits of the engine. The defaults reject only what would take much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of searches of all clients. Each takes one or two kilobytes while it waits.
    pub searches: usize,
    /// Maximum number of searches of one client. One connection may have [three quarters] of these,
    /// so that the client's other connections can still start some.
    ///
    /// [three quarters]: OverLimit::SearchesOfConnection
    pub searches_per_client: usize,
    /// Maximum number of secrets hashed per second for one client, on average.
    pub hashes_per_second_per_client: Option<NonZeroU64>,
    /// Period over which a client can save up unused quota.
    pub quota_saved_for: Duration,
    /// Maximum number of candidates that wait for their reader before a search is parked. The
    /// default fills a few network frames, so that a returning reader finds something to read. A
    /// full queue takes a few kilobytes. 0 counts as 1.
    pub queue_length: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            searches: 100_000,
            searches_per_client: 100_000,
            hashes_per_second_per_client: None,
            quota_saved_for: Duration::from_secs(60),
            queue_length: 256,
        }
    }
}

/// Reason why a search was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// The engine has the maximum number of searches.
    #[error("limit of {limit} searches reached")]
    Searches {
        /// Maximum number of searches.
        limit: usize,
    },
    /// The client has its maximum number of searches.
    #[error("limit of {limit} searches for this client reached")]
    SearchesOfClient {
        /// Maximum number of searches of the client.
        limit: usize,
    },
    /// The connection has its maximum number of searches. A quarter of the client's maximum,
    /// rounded down, is reserved for the client's other connections.
    #[error("limit of {limit} searches for this connection reached; use another connection")]
    SearchesOfConnection {
        /// Maximum number of searches of the connection.
        limit: usize,
    },
    /// The client's quota of hashes is spent.
    #[error("this client's quota of {per_second} hashes per second is spent")]
    Hashes {
        /// The quota.
        per_second: NonZeroU64,
        /// Time until a second's worth of the quota is available again.
        retry_after: Duration,
    },
}

/// Counts the clients' searches and hashes.
#[derive(Default)]
pub(crate) struct Accounts {
    limits: Limits,
    searches: usize,
    clients: HashMap<Arc<str>, Account>,
    /// Number of clients that triggers the next sweep of idle ones.
    next_sweep: usize,
}

/// Minimum number of clients that triggers a sweep.
const SWEPT_FROM: usize = 1000;

struct Account {
    /// Maximum number of the client's searches.
    searches: usize,
    hashes: Option<HashQuota>,
    usage: Usage,
    /// Number of searches that were not released yet, for each connection that has any.
    connections: HashMap<u64, usize>,
}

/// A client's quota of hashes, and what is left of it.
struct HashQuota {
    per_second: NonZeroU64,
    /// Number of hashes that are available after a long pause.
    full: f64,
    /// Number of hashes still available. If it is negative, the client has used hashes in advance.
    left: f64,
    /// When `left` was computed.
    at: Duration,
}

/// Usage of a client since it started its first search.
///
/// The engine forgets a client once it has no searches. It keeps a client with a quota of hashes
/// longer, at least until the quota is full again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of the client's searches that were not released yet.
    pub searches: usize,
    /// Number of secrets hashed in the client's turns.
    pub hashes: u64,
    /// Number of secrets tested for the client's searches, without those that were not released
    /// yet.
    pub tests: u64,
    /// Time that the hashes took, summed over all cores.
    pub core_time: Duration,
}

impl Accounts {
    pub(crate) fn new(limits: Limits) -> Accounts {
        Accounts {
            limits,
            next_sweep: SWEPT_FROM,
            ..Accounts::default()
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts a new search, if the client's limits allow it.
    pub(crate) fn open(&mut self, client: &Client, now: Duration) -> Result<(), OverLimit> {
        let limits = self.limits;
        if self.searches >= limits.searches {
            return Err(OverLimit::Searches {
                limit: limits.searches,
            });
        }
        self.sweep(now);
        let name = Arc::clone(&client.name);
        let account = self.clients.entry(name);
        let account = account.or_insert_with(|| Account::new(limits, client.quota, now));
        if account.usage.searches >= account.searches {
            return Err(OverLimit::SearchesOfClient {
                limit: account.searches,
            });
        }
        let limit = account.searches_of_connection();
        let of_connection = account.connections.get(&client.connection);
        if of_connection.is_some_and(|searches| *searches >= limit) {
            return Err(OverLimit::SearchesOfConnection { limit });
        }
        if let Some(hashes) = &mut account.hashes
            && let Some(retry_after) = hashes.retry_after(now)
        {
            return Err(OverLimit::Hashes {
                per_second: hashes.per_second,
                retry_after,
            });
        }
        self.reopen(client, now);
        Ok(())
    }

    /// Counts a search that was counted before, whatever the limits.
    pub(crate) fn reopen(&mut self, client: &Client, now: Duration) {
        let limits = self.limits;
        let account = self.clients.entry(Arc::clone(&client.name));
        let account = account.or_insert_with(|| Account::new(limits, client.quota, now));
        account.usage.searches += 1;
        *account.connections.entry(client.connection).or_default() += 1;
        self.searches += 1;
    }

    /// Counts a search that was released.
    pub(crate) fn close(&mut self, client: &Client, tests: u64) {
        self.searches -= 1;
        if let Some(account) = self.clients.get_mut(&client.name) {
            account.usage.searches -= 1;
            account.usage.tests += tests;
            if let Entry::Occupied(mut searches) = account.connections.entry(client.connection) {
                *searches.get_mut() -= 1;
                if *searches.get() == 0 {
                    searches.remove();
                }
            }
            if account.may_be_forgotten() {
                self.clients.remove(&client.name);
            }
        }
    }

    /// Counts hashes that were done for a client.
    pub(crate) fn spend(&mut self, client: &Arc<str>, hashes: u64, took: Duration, now: Duration) {
        if let Some(account) = self.clients.get_mut(client) {
            account.usage.hashes += hashes;
            account.usage.core_time += took;
            if let Some(quota) = &mut account.hashes {
                quota.refill(now);
                quota.left -= hashes as f64;
            }
        }
    }

    /// Refills a client's quota of hashes. If the quota is spent, returns the time until a second's
    /// worth of it is available again.
    pub(crate) fn retry_after(&mut self, client: &Arc<str>, now: Duration) -> Option<Duration> {
        self.clients
            .get_mut(client)?
            .hashes
            .as_mut()?
            .retry_after(now)
    }

    /// Returns the usage of a client.
    pub(crate) fn usage(&self, client: &str) -> Usage {
        let account = self.clients.get(client);
        account.map_or(Usage::default(), |account| account.usage)
    }

    /// Forgets clients that have no searches and whose quota of hashes, if any, is full. Does so
    /// only once there are [`SWEPT_FROM`] more than twice as many clients as after the last sweep.
    fn sweep(&mut self, now: Duration) {
        if self.clients.len() < self.next_sweep {
            return;
        }
        self.clients.retain(|_, account| {
            if let Some(hashes) = &mut account.hashes {
                hashes.refill(now);
            }
            !account.may_be_forgotten()
        });
        self.next_sweep = SWEPT_FROM + 2 * self.clients.len();
    }
}

impl Account {
    fn new(limits: Limits, quota: Quota, now: Duration) -> Account {
        let per_second = quota.hashes_per_second;
        let per_second = per_second.or(limits.hashes_per_second_per_client);
        Account {
            searches: quota.searches.unwrap_or(limits.searches_per_client),
            hashes: per_second.map(|per_second| {
                let full = per_second.get() as f64 * limits.quota_saved_for.as_secs_f64();
                HashQuota {
                    per_second,
                    full,
                    left: full,
                    at: now,
                }
            }),
            usage: Usage::default(),
            connections: HashMap::new(),
        }
    }

    /// Returns the maximum number of searches of one connection. The quarter is rounded down, so a
    /// client that may have three searches may have all of them on one connection.
    fn searches_of_connection(&self) -> usize {
        self.searches - self.searches / 4
    }

    /// Whether the client has no searches, and its quota of hashes, if any, is full.
    fn may_be_forgotten(&self) -> bool {
        let is_full = |hashes: &HashQuota| hashes.left >= hashes.full;
        self.usage.searches == 0 && self.hashes.as_ref().is_none_or(is_full)
    }
}

impl HashQuota {
    /// Refills the quota. If it is spent, returns the time until a second's worth of it is
    /// available again.
    fn retry_after(&mut self, now: Duration) -> Option<Duration> {
        self.refill(now);
        (self.left <= 0.0).then(|| {
            let rate = self.per_second.get() as f64;
            Duration::from_secs_f64((1.0 - self.left / rate).max(0.0))
        })
    }

    fn refill(&mut self, now: Duration) {
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + since * self.per_second.get() as f64).min(self.full);
        // Threads read the clock before they take the lock, so `now` may be earlier than in the
        // last call.
        self.at = self.at.max(now);
    }
}

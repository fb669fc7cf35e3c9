//! What a client may have, and what it has had.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc, time::Duration};

/// What the engine allows. The defaults allow everything that costs the engine nothing worth naming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many searches there may be. Each takes one or two kilobytes while it waits.
    pub searches: usize,
    /// How many of them may be one client's.
    pub searches_per_client: usize,
    /// How many secrets a client may have hashed each second, on average.
    pub hashes_per_second_per_client: Option<NonZeroU64>,
    /// For how long a client may save up what it does not use of that.
    pub quota_saved_for: Duration,
    /// How many candidates may wait for their reader before a search is parked. The default is a few
    /// frames' worth: enough that a reader who comes back finds something to read, and a few kilobytes
    /// for each search. 0 counts as 1.
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

/// Why a search was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverLimit {
    /// There are as many searches as there may be.
    #[error("{limit} searches are under way, which is as many as there may be")]
    Searches {
        /// How many that is.
        limit: usize,
    },
    /// One client has as many searches as it may have.
    #[error("{limit} of this client's searches are under way, which is as many as it may have")]
    SearchesOfClient {
        /// How many that is.
        limit: usize,
    },
    /// The client's quota of hashes is spent.
    #[error("this client has spent its quota of {per_second} hashes a second")]
    Hashes {
        /// The quota.
        per_second: NonZeroU64,
        /// When a second's worth of it will be there again.
        retry_after: Duration,
    },
}

/// Keeps count of the clients' searches and hashes.
#[derive(Default)]
pub(crate) struct Accounts {
    limits: Limits,
    searches: usize,
    clients: HashMap<Arc<str>, Account>,
    /// With how many clients those are looked through that may be forgotten.
    next_sweep: usize,
}

/// So many clients are never looked through.
const SWEPT_FROM: usize = 1000;

struct Account {
    /// Hashes that it may still have; below zero, it has had them in advance.
    left: f64,
    /// When `left` was worked out.
    at: Duration,
    usage: Usage,
}

/// What a client has had since it began its first search; forgotten when its last one is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Its searches that are under way.
    pub searches: usize,
    /// Secrets hashed in its turns.
    pub hashes: u64,
    /// Secrets tested for those of its searches that are over.
    pub tests: u64,
    /// What that took of all cores together.
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

    /// Counts a new search, if the client may have it.
    pub(crate) fn open(&mut self, client: &Arc<str>, now: Duration) -> Result<(), OverLimit> {
        let limits = self.limits;
        if self.searches >= limits.searches {
            return Err(OverLimit::Searches {
                limit: limits.searches,
            });
        }
        self.refill(client, now);
        self.sweep(now);
        let full = limits.full();
        let account = self.clients.entry(Arc::clone(client)).or_insert(Account {
            left: full,
            at: now,
            usage: Usage::default(),
        });
        if account.usage.searches >= limits.searches_per_client {
            return Err(OverLimit::SearchesOfClient {
                limit: limits.searches_per_client,
            });
        }
        let searches = account.usage.searches;
        if let Some(per_second) = limits.hashes_per_second_per_client
            && let Some(retry_after) = self.is_spent(client, now)
        {
            return Err(OverLimit::Hashes {
                per_second,
                retry_after,
            });
        }
        if let Some(account) = self.clients.get_mut(client) {
            account.usage.searches = searches + 1;
        }
        self.searches += 1;
        Ok(())
    }

    /// Counts a search that was let go of.
    pub(crate) fn close(&mut self, client: &Arc<str>, tests: u64) {
        self.searches -= 1;
        let full = self.limits.full();
        if let Some(account) = self.clients.get_mut(client) {
            account.usage.searches -= 1;
            account.usage.tests += tests;
            // One that has no searches and owes nothing need not be known.
            if account.usage.searches == 0 && account.left >= full {
                self.clients.remove(client);
            }
        }
    }

    /// Counts hashes that were done for a client.
    pub(crate) fn spend(&mut self, client: &Arc<str>, hashes: u64, took: Duration, now: Duration) {
        self.refill(client, now);
        let limited = self.limits.hashes_per_second_per_client.is_some();
        if let Some(account) = self.clients.get_mut(client) {
            account.usage.hashes += hashes;
            account.usage.core_time += took;
            if limited {
                account.left -= hashes as f64;
            }
        }
    }

    /// When a second's worth of a client's quota of hashes will be there again, if it is spent.
    pub(crate) fn is_spent(&mut self, client: &Arc<str>, now: Duration) -> Option<Duration> {
        let per_second = self.limits.hashes_per_second_per_client?;
        self.refill(client, now);
        let account = self.clients.get(client)?;
        (account.left <= 0.0).then(|| {
            let rate = per_second.get() as f64;
            Duration::from_secs_f64((1.0 - account.left / rate).max(0.0))
        })
    }

    /// What a client has had.
    pub(crate) fn usage(&self, client: &str) -> Usage {
        let account = self.clients.get(client);
        account.map_or(Usage::default(), |account| account.usage)
    }

    /// Forgets clients that have no searches and owe nothing, when there are twice as many as last time.
    fn sweep(&mut self, now: Duration) {
        if self.clients.len() < self.next_sweep {
            return;
        }
        let names: Vec<Arc<str>> = self.clients.keys().cloned().collect();
        for name in &names {
            self.refill(name, now);
        }
        let full = self.limits.full();
        self.clients
            .retain(|_, account| account.usage.searches > 0 || account.left < full);
        self.next_sweep = SWEPT_FROM + 2 * self.clients.len();
    }

    fn refill(&mut self, client: &Arc<str>, now: Duration) {
        let full = self.limits.full();
        if let Some(per_second) = self.limits.hashes_per_second_per_client
            && let Some(account) = self.clients.get_mut(client)
        {
            let since = now.saturating_sub(account.at).as_secs_f64();
            account.left = (account.left + since * per_second.get() as f64).min(full);
            // Threads read the clock before they come here, so it may seem to go back.
            account.at = account.at.max(now);
        }
    }
}

impl Limits {
    /// What a client may have at once that has used nothing for long.
    fn full(&self) -> f64 {
        let per_second = self.hashes_per_second_per_client;
        per_second.map_or(0.0, |rate| {
            rate.get() as f64 * self.quota_saved_for.as_secs_f64()
        })
    }
}

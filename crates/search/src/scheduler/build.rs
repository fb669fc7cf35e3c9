//! A group in the making: which searches could share a scan, and whether that would benefit all of
//! them.
//!
//! A group is as slow as its filter, so expensive searches can make each other slower than they
//! would be with only their own turns. Two rules prevent that, based on the kernel's estimate of
//! what a filter costs and on each search's share of the time. Sharing must not make any search
//! slower than it would be alone. Newcomers must not make the followers slower: the cost may grow
//! only in proportion to the time of all turns together. If a group breaks a rule, half as many
//! newcomers are tried next time, those with the fewest expected hits first. In the end, a search
//! that does not fit is left out.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hashfinder_kernels::MAX_NAMES;

use super::entry::{Entry, MAX_SHARED_RATE};
use crate::{
    client::Client,
    group::Group,
    ids::{ScanId, SearchId},
    matcher::Matcher,
    query::Query,
};

/// Maximum cost of a secret for a group, in a fast kernel's hashes. If a secret cost more, slices
/// would hold so few secrets that the overhead of each slice would matter.
const MAX_SHARED_COST: f64 = 1000.0;

/// Factor by which sharing may make a search slower after all, because costs are only estimates.
const TOLERANCE: f64 = 1.2;

/// Progress in finding searches that could share a scan.
#[derive(Default)]
pub(super) struct Upkeep {
    pub(super) step: Step,
    /// Nothing is done before this time.
    pub(super) next: Duration,
    /// Whether there may be a scan to check.
    pub(super) is_due: bool,
}

#[derive(Default)]
pub(super) enum Step {
    #[default]
    Rest,
    /// Finding the scan with the highest product of its number of followers and the number of
    /// changes since it was last checked. In this way, every scan is checked eventually.
    Choose {
        after: ScanId,
        best: Option<(u64, ScanId)>,
    },
    /// Finding the searches that could follow the chosen scan.
    Gather { after: SearchId, build: Build },
    /// A worker makes the group.
    Build,
}

/// Searches that may soon share a scan.
pub(crate) struct Build {
    pub(super) scan: ScanId,
    /// Searches that follow the scan already.
    pub(super) followers: Vec<Member>,
    /// Searches that could follow it, too.
    pub(super) newcomers: Vec<Member>,
    /// Maximum number of newcomers to try.
    pub(super) max_newcomers: usize,
    /// Maximum number of followers.
    most_followers: usize,
    /// The scan's current cost of a secret, in a fast kernel's hashes.
    pub(super) cost: f64,
    /// Number of searches that want turns, of each connection of each client.
    pub(super) crowd: HashMap<Arc<str>, HashMap<u64, u32>>,
    /// Whether most searches that the scan's matcher is for have left.
    pub(super) is_stale: bool,
    /// When a worker began to make the group.
    pub(super) began: Duration,
    /// The group; `None` until it is made, and if it was rejected or making it panicked.
    pub(super) made: Option<Made>,
}

pub(super) struct Member {
    pub(super) id: SearchId,
    query: Arc<Query>,
    rate: f64,
    cost: f64,
    client: Client,
}

pub(super) struct Made {
    pub(super) group: Arc<Group>,
    /// The scan's previous group.
    pub(super) old: Option<Arc<Group>>,
    /// Matchers that members do not need any more, to be dropped outside of the lock.
    pub(super) stale_matchers: Vec<Arc<Matcher>>,
    pub(super) cost: f64,
    /// Expected hits per secret, of all members together.
    pub(super) rate: f64,
    /// Number of members that have been let into the scan so far.
    pub(super) installed: usize,
}

impl Upkeep {
    /// Requests a check of the scans.
    pub(super) fn mark_due(&mut self) {
        self.is_due = true;
    }
}

impl Member {
    pub(super) fn new(id: SearchId, entry: &Entry) -> Member {
        Member {
            id,
            query: Arc::clone(&entry.query),
            rate: entry.rate(),
            cost: entry.cost,
            client: entry.client.clone(),
        }
    }
}

impl Build {
    pub(super) fn new(
        scan: ScanId,
        max_newcomers: usize,
        most_followers: usize,
        cost: f64,
    ) -> Build {
        Build {
            scan,
            most_followers,
            followers: Vec::new(),
            newcomers: Vec::new(),
            max_newcomers,
            cost,
            crowd: HashMap::new(),
            is_stale: false,
            began: Duration::ZERO,
            made: None,
        }
    }

    /// Counts a search that wants turns.
    pub(super) fn count(&mut self, client: &Client) {
        if !self.crowd.contains_key(&client.name) {
            self.crowd.insert(Arc::clone(&client.name), HashMap::new());
        }
        if let Some(connections) = self.crowd.get_mut(&client.name) {
            *connections.entry(client.connection).or_default() += 1;
        }
    }

    /// Makes the group, plans its filter, and checks that all members benefit. That takes
    /// microseconds for a few searches and tens of milliseconds for thousands, so a worker does it
    /// outside of the scheduler's lock. `cost_of` returns the cost of a secret, in a fast kernel's
    /// hashes.
    pub(crate) fn make(&mut self, cost_of: impl Fn(&Matcher) -> f64) {
        let by_rate = |a: &Member, b: &Member| a.rate.total_cmp(&b.rate).then(a.id.cmp(&b.id));
        self.newcomers.sort_by(by_rate);
        let mut rate: f64 = self.followers.iter().map(|member| member.rate).sum();
        let room = self.most_followers.saturating_sub(self.followers.len());
        let fitting = self.newcomers.iter().take(room.min(self.max_newcomers));
        let followers = self.followers.iter();
        let mut names: usize = followers.map(|member| member.query.names().len()).sum();
        let fitting = fitting.take_while(|member| {
            rate += member.rate;
            names += member.query.names().len();
            rate <= MAX_SHARED_RATE && names <= MAX_NAMES
        });
        let fitting = fitting.count();
        self.newcomers.truncate(fitting);
        if self.newcomers.is_empty() && !self.is_stale {
            return;
        }

        let members = || self.followers.iter().chain(&self.newcomers);
        let group = Group::new(
            members().map(|member| Arc::clone(&member.query)).collect(),
            members().map(|member| member.id).collect(),
        );
        let cost = cost_of(group.matcher());
        if self.newcomers.is_empty() || self.benefits_all(cost) {
            self.made = Some(Made {
                group: Arc::new(group),
                old: None,
                stale_matchers: Vec::new(),
                cost,
                rate: members().map(|member| member.rate).sum(),
                installed: 0,
            });
        }
    }

    #[cfg(test)]
    pub(super) fn members(&self) -> impl Iterator<Item = SearchId> {
        let members = self.followers.iter().chain(&self.newcomers);
        members.map(|member| member.id)
    }

    /// Whether every member is at least as fast as alone, and every follower at least as fast as it
    /// is now.
    fn benefits_all(&self, cost: f64) -> bool {
        let all = || self.followers.iter().chain(&self.newcomers);
        let shares = |members: &[Member]| members.iter().map(|member| self.share(member)).sum();
        let before: f64 = shares(&self.followers);
        let after = before + shares(&self.newcomers);
        // Alone, a search has its own share of the time, and pays its own cost.
        let benefits =
            |member: &Member| cost * self.share(member) <= TOLERANCE * member.cost * after;
        cost <= MAX_SHARED_COST
            && cost * before <= TOLERANCE * self.cost * after
            && all().all(benefits)
    }

    /// Returns a search's share of the time, in a unit that is the same for all: its client's
    /// weight, divided evenly between the client's connections, and then between a connection's
    /// searches.
    fn share(&self, member: &Member) -> f64 {
        let client = &member.client;
        let connections = self.crowd.get(&client.name);
        let searches = connections.and_then(|all| all.get(&client.connection));
        // A search that wants no turn now will want one later, so it counts as at least one search.
        let (connections, searches) = (connections.map_or(1, HashMap::len), searches.unwrap_or(&1));
        f64::from(client.weight.get()) / connections as f64 / f64::from(*searches)
    }
}

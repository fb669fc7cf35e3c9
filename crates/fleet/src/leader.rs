//! Deals the secrets of all calls to agents.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use hashfinder_search::{
    Dispatcher, Lease, LeaseId, Limits, Matcher, OverLimit, Pacing, Query, Worker,
};

use crate::{
    calls::{Calls, Told},
    messages::{AgentId, Ask, CallId, Order, Orders, ServerId, Term, Work},
    roster::{Listed, Member, Roster},
};

/// Time that a lease should take. A hit is final only once everything below it is done, so longer
/// leases make answers later. Shorter ones would cost more messages: an agent sends one each second
/// anyway.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// Time of the work that an agent has in hand: it tries one lease while the next one arrives.
const IN_HAND: Duration = Duration::from_secs(2);

/// Maximum number of leases that an agent has. Small ranges are left over where leases came back
/// partly tried, and a fast agent tries many in one round trip.
const MOST_LEASES: usize = 16;

/// Hashes per second of a worker of speed 1.
const UNIT: f64 = 1e6;

/// Settings of a leader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeaderSettings {
    /// Limits of clients.
    pub limits: Limits,
    /// How searches are cut into leases.
    pub pacing: Pacing,
    /// Maximum number of secrets of a lease.
    pub longest_lease: u64,
}

impl Default for LeaderSettings {
    fn default() -> LeaderSettings {
        LeaderSettings {
            limits: Limits::default(),
            pacing: Pacing {
                slice_time: LEASE_TIME,
                // 2,200 agents hold 4,500 to 6,500 ranges ahead of the frontier.
                most_ahead: 1 << 17,
                // An agent may be wrong about its own speed. Besides, searches that begin soon
                // after each other share what lies beyond the leases that are out, so leases should
                // not get long before the searches have met.
                most_growth: 2,
                // Each query takes up to 3 KiB of a message to an agent, which may have 1 MiB.
                most_followers: 256,
                // 400 KiB of a leader's memory for each search, with its queue.
                most_held: 8192,
                hits_per_slice: 256,
            },
            longest_lease: 1 << 44,
        }
    }
}

/// Deals leases for one term.
///
/// Messages to a leader may be lost, repeated and reordered, and their senders may be gone.
pub struct Leader {
    term: Term,
    settings: LeaderSettings,
    dispatcher: Dispatcher,
    roster: Roster,
    calls: Calls,
    /// The queries of each matcher that leases have in use.
    queries: HashMap<usize, KnownSet>,
    /// Hashes per second of all agents that take leases, at the last tick.
    rate: f64,
    /// Number of the next set of queries.
    next_set: u64,
    /// Leases to recall at once, by agent.
    recalls: BTreeMap<AgentId, Vec<LeaseId>>,
    /// Whether an agent wanted more leases than there were.
    is_short: bool,
}

/// The queries of leases with the same matcher.
struct KnownSet {
    matcher: Weak<Matcher>,
    queries: Arc<[Query]>,
    number: u64,
}

impl Leader {
    /// Creates a leader without agents and calls.
    #[must_use]
    pub fn new(term: Term, settings: LeaderSettings) -> Leader {
        let LeaderSettings { limits, pacing, .. } = settings;
        // A search whose queue is full drops what it has covered beyond its frontier: here, that is
        // the work of all agents.
        let queue_length = limits.queue_length.max(pacing.most_held);
        let limits = Limits {
            queue_length,
            ..limits
        };
        Leader {
            term,
            settings,
            dispatcher: Dispatcher::new(limits, pacing),
            roster: Roster::default(),
            calls: Calls::default(),
            queries: HashMap::new(),
            rate: 0.0,
            next_set: 0,
            recalls: BTreeMap::new(),
            is_short: false,
        }
    }

    /// Returns the leader's term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Replies to a message of an agent. It gets new leases only if the leader
    /// [may deal](crate::Election::may_deal).
    pub fn work(&mut self, work: &Work, may_deal: bool, now: Duration) -> Orders {
        let mut orders = Orders {
            term: self.term,
            ..Orders::default()
        };
        if work.term != self.term {
            return orders;
        }
        let agent = &work.agent;
        let known = self.roster.agents.get(agent).map(|member| member.boot);
        if known > Some(work.boot) {
            // A process that has ended since.
            return orders;
        }
        if known != Some(work.boot) {
            // An agent that has started again has lost its leases.
            for lease in self.roster.take_others(agent, &BTreeSet::new()) {
                self.dispatcher.give_back(lease, now);
            }
            let member = Member::new(work, now);
            self.roster.agents.insert(agent.clone(), member);
        }
        for report in &work.reports {
            if !self.roster.take(agent, report.lease) {
                // It has ended, by an earlier copy of this report or because the agent was silent.
                continue;
            }
            let hashes = self.dispatcher.hashes(report.lease, report.tried);
            let (tried, hits) = (report.tried, &report.hits);
            let done = if report.failed {
                self.dispatcher.fail(report.lease, now);
                Ok(())
            } else {
                let (lease, took) = (report.lease, report.took);
                self.dispatcher.finish(lease, tried, hits, took, now)
            };
            let Some(member) = self.roster.agents.get_mut(agent) else {
                continue;
            };
            match done {
                Ok(()) => {
                    if let Some(hashes) = hashes.filter(|_| !report.failed) {
                        member.measured(hashes, report.took);
                    }
                }
                Err(_) => member.false_reports += 1,
            }
        }
        let Some(member) = self.roster.agents.get_mut(agent) else {
            return orders;
        };
        if work.sequence <= member.sequence {
            // A message that was overtaken: the agent ignores the reply.
            self.note_recalls(now);
            return orders;
        }
        member.sequence = work.sequence;
        member.last_heard = now;
        member.is_draining = work.is_draining;
        // If a reply was lost, the agent does not have its leases.
        let held: BTreeSet<LeaseId> = work.holds.iter().copied().collect();
        let over = held
            .iter()
            .filter(|lease| !member.leases.contains_key(lease));
        orders.over = over.copied().collect();
        for lease in self.roster.take_others(agent, &held) {
            self.dispatcher.give_back(lease, now);
        }
        if may_deal && !work.is_draining && self.trusts(agent) {
            self.deal(agent, &mut orders.leases, now);
        }
        self.note_recalls(now);
        self.recalls.remove(agent);
        if let Some(member) = self.roster.agents.get(agent) {
            let recalled = member.leases.iter().filter(|(_, (_, at))| at.is_some());
            orders.recalls = recalled.map(|(lease, _)| *lease).collect();
        }
        orders
    }

    /// Gives an agent leases, until it has enough in hand.
    fn deal(&mut self, agent: &AgentId, leases: &mut Vec<Order>, now: Duration) {
        loop {
            let Some(member) = self.roster.agents.get(agent) else {
                return;
            };
            if member.leases.len() >= MOST_LEASES || member.in_hand() >= IN_HAND {
                return;
            }
            let worker = Worker {
                speed: member.rate / UNIT,
                longest_slice: self.settings.longest_lease,
                share: (member.rate / self.rate.max(member.rate)).min(1.0),
            };
            let Some(lease) = self.dispatcher.lease(worker, now) else {
                self.is_short = true;
                return;
            };
            self.roster.give(agent, lease.id(), lease.planned());
            let (queries, set) = self.queries_of(&lease);
            leases.push(Order {
                lease: lease.id(),
                range: lease.range(),
                queries,
                set,
                hit_limit: lease.hit_limit(),
                planned: lease.planned(),
            });
            if lease.is_urgent() {
                return;
            }
        }
    }

    /// Returns the queries of a lease, which it shares with other leases of the same searches, and
    /// their number.
    fn queries_of(&mut self, lease: &Lease) -> (Arc<[Query]>, u64) {
        let matcher = lease.matcher();
        let key = Arc::as_ptr(matcher).addr();
        let is_used = |set: &KnownSet| set.matcher.strong_count() > 0;
        if let Some(set) = self.queries.get(&key).filter(|set| is_used(set)) {
            return (Arc::clone(&set.queries), set.number);
        }
        self.queries.retain(|_, set| is_used(set));
        self.next_set += 1;
        let set = KnownSet {
            matcher: Arc::downgrade(matcher),
            queries: lease.queries().cloned().collect(),
            number: self.next_set,
        };
        let known = (Arc::clone(&set.queries), set.number);
        self.queries.insert(key, set);
        known
    }

    /// Answers a server about one of its calls, and begins the call if it is new.
    ///
    /// # Errors
    ///
    /// If the call's client, or the fleet, has reached a limit.
    pub fn ask(&mut self, ask: &Ask, now: Duration) -> Result<Option<Told>, OverLimit> {
        let dispatcher = &mut self.dispatcher;
        self.calls.renew(ask, now, || {
            let (query, checkpoint) = (ask.query.clone(), ask.checkpoint.clone());
            dispatcher.begin(ask.client.clone(), query, checkpoint, now)
        })?;
        if ask.stops
            && let Some(search) = self.calls.search(&ask.call)
        {
            self.dispatcher.stop(search, now);
        }
        let told = self.calls.tell(&ask.call, &mut self.dispatcher);
        self.note_recalls(now);
        Ok(told.map(|(_, told)| told))
    }

    /// Returns what servers should be told at once. A message that is lost costs only time, because
    /// servers ask each second.
    pub fn take_news(&mut self, now: Duration) -> Vec<(ServerId, CallId, Told)> {
        let calls = self.calls.take_news().into_iter();
        let news = calls.filter_map(|call| {
            let (server, told) = self.calls.tell(&call, &mut self.dispatcher)?;
            Some((server, call, told))
        });
        let news = news.collect();
        self.note_recalls(now);
        news
    }

    /// Whether agents without leases should ask again, because there may be work for them now.
    pub fn take_wake(&mut self) -> bool {
        let has_work = self.dispatcher.take_work();
        has_work && std::mem::take(&mut self.is_short)
    }

    /// Returns how many agents take leases, and how many hashes of a fast kernel they compute per
    /// second together.
    #[must_use]
    pub fn capacity(&self, now: Duration) -> (u32, f64) {
        self.roster.capacity(now)
    }

    /// Ends a call. Its agents are free once they hear of it.
    pub fn end(&mut self, call: &str, now: Duration) {
        if let Some(search) = self.calls.remove(call) {
            self.dispatcher.forget(search, now);
            self.note_recalls(now);
        }
    }

    /// Ends what was not renewed, and gives leases of silent agents to others. Call this ten times
    /// a second.
    pub fn tick(&mut self, now: Duration) {
        for search in self.calls.expired(now) {
            self.dispatcher.forget(search, now);
        }
        for lease in self.roster.overdue(now) {
            self.dispatcher.give_back(lease, now);
        }
        self.dispatcher.tick(now);
        (_, self.rate) = self.roster.capacity(now);
        self.note_recalls(now);
    }

    /// Returns leases to recall at once, by agent: to send in messages of their own. One that is
    /// lost costs only time, because the next [`Orders`] repeat it.
    pub fn take_recalls(&mut self) -> BTreeMap<AgentId, Vec<LeaseId>> {
        std::mem::take(&mut self.recalls)
    }

    /// Whether an agent gets leases, as far as its reports are concerned.
    #[must_use]
    pub fn trusts(&self, agent: &str) -> bool {
        let member = self.roster.agents.get(agent);
        member.is_none_or(Member::is_trusted)
    }

    /// Returns the agents that were heard of in the last minute.
    #[must_use]
    pub fn agents(&self, now: Duration) -> Vec<Listed> {
        self.roster.list(now)
    }

    /// Returns the number of calls.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Notes when leases were recalled, and sorts them by agent.
    fn note_recalls(&mut self, now: Duration) {
        for lease in self.dispatcher.take_recalls() {
            if let Some(agent) = self.roster.recall(lease, now) {
                self.recalls.entry(agent).or_default().push(lease);
            }
        }
    }
}

//! Deals the secrets of all calls to agents.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use hashfinder_search::{
    Cursor, Dispatcher, Index, Lease, LeaseId, Limits, Matcher, OverLimit, Pacing, Query, SearchId,
    Worker,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    audit::{Audit, Missed},
    calls::{CallUpdate, Calls},
    messages::{
        ANYONE, AgentId, CallId, CallRenewal, NewSet, Order, Orders, Report, ServerId, Term, Work,
        means,
    },
    roster::{Dealt, Listed, MOST_FALSE_REPORTS, Member, Roster},
};

/// Time that a lease should take. A hit is final only once everything below it is done, so longer
/// leases make answers later. Shorter ones would cost more messages: an agent sends one each second
/// anyway.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// Maximum number of leases in that time, with as many clients or more. Then each client gets its
/// share within a minute, even of two agents.
const MOST_PARTS: usize = 4;

/// Time of the work that an agent has in hand: it tries one lease while the next one arrives.
const IN_HAND: Duration = Duration::from_secs(2);

/// Maximum number of leases that an agent has. Small ranges are left over where leases came back
/// partly tried, and a fast agent tries many in one round trip.
const MOST_LEASES: usize = 16;

/// Maximum size of a query in a fleet, in bytes of its text: more than the names of one call can
/// have. Larger ones would not leave room for many queries in a message.
pub const MOST_QUERY_BYTES: usize = 6 << 10;

/// Maximum number of queries that share leases.
const MOST_FOLLOWERS: usize = 128;

/// Maximum size of the sets of queries in one reply: one set of the most and the longest queries.
/// With the rest of the reply, it fits into a message of 1 MiB.
const MOST_SETS_BYTES: usize = MOST_QUERY_BYTES * MOST_FOLLOWERS;

/// Number of idle agents to notify at once that there may be work. While there is, each message of
/// one of them causes as many more notices. If all were notified, thousands would ask for the one
/// lease that is left.
const NOTIFIED_AT_ONCE: usize = 4;

/// Maximum number of leases to remember that an agent has failed to try.
const MOST_FAILURES: usize = 1024;

/// One in this many leases of agents that are trusted is audited. It finds machines that are
/// broken, and costs less than a hundredth of the fleet's work.
const AUDITED: u32 = 64;

/// Minimum number of secrets of an audited lease, of agents that are trusted and of others. A lease
/// of fewer takes microseconds, unless its agent says that it is slow.
const LEAST_TRUSTED: u64 = 4096;
const LEAST_UNTRUSTED: u64 = 16;

/// Maximum size of the set of queries of an audited lease, in bytes: it is sent only for this
/// lease.
const MOST_AUDITED_BYTES: usize = 16 << 10;

/// Time between two looks at what agents have tried for searches that have ended.
const FORGETS_EVERY: Duration = Duration::from_secs(30);

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
    /// One in this many leases of agents that are trusted is audited; 0 for none.
    pub audited: u32,
    /// Whether agents may lie. Then all leases are audited.
    pub is_untrusted: bool,
}

/// An agent that the leader has banned by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banned {
    /// The agent.
    pub agent: AgentId,
    /// The name that is banned: it [means] this agent, and those that the same machine or, if
    /// agents may lie, the same user starts later.
    pub name: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
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
                most_followers: MOST_FOLLOWERS,
                // 400 KiB of a leader's memory for each search, with its queue.
                most_held: 8192,
                hits_per_slice: 256,
            },
            longest_lease: 1 << 44,
            audited: AUDITED,
            is_untrusted: false,
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
    /// Agents that wanted more leases than there were.
    short: BTreeSet<AgentId>,
    /// Where agents have panicked: the set of queries and the first secret of the lease, the agent,
    /// and how often it did.
    failures: HashMap<(u64, Index), BTreeMap<AgentId, u64>>,
    /// Draws decoys.
    rng: StdRng,
    /// Names of agents that get no leases, and why.
    bans: BTreeMap<Arc<str>, Arc<str>>,
    /// Agents that were banned since the last time.
    banned: Vec<Banned>,
    /// Agents whose leases have panicked too often, since the last time.
    distrusted: Vec<AgentId>,
    /// Whether all leases are recalled, and no more are dealt.
    is_closing: bool,
    /// When the leases of ended searches were forgotten.
    forgot: Duration,
}

/// The queries of leases with the same matcher.
struct KnownSet {
    matcher: Weak<Matcher>,
    queries: Arc<[Query]>,
    number: u64,
    /// Size of the queries in a message.
    bytes: usize,
    /// The searches of the queries.
    searches: Arc<[SearchId]>,
}

/// Returns the size of a query in a message, in bytes.
#[must_use]
pub fn query_bytes(query: &Query) -> usize {
    Cursor::new(query, 0).to_string().len()
}

impl Leader {
    /// Creates a leader without agents and calls. `seed` must be random, and unknown to agents:
    /// they could find out where decoys are.
    #[must_use]
    pub fn new(term: Term, settings: LeaderSettings, seed: [u8; 32]) -> Leader {
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
            short: BTreeSet::new(),
            failures: HashMap::new(),
            rng: StdRng::from_seed(seed),
            bans: BTreeMap::new(),
            banned: Vec::new(),
            distrusted: Vec::new(),
            is_closing: false,
            forgot: Duration::ZERO,
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
        let is_banned = self.ban_of(agent).is_some();
        if !self.has_room_for(agent) {
            return orders;
        }
        let member = self.roster.agents.entry(agent.clone());
        let member = member.or_insert_with(|| Member::new(work, now));
        member.is_banned = is_banned;
        for report in &work.reports {
            self.take_report(agent, report, now);
        }
        let Some(member) = self.roster.agents.get_mut(agent) else {
            return orders;
        };
        if work.sequence <= member.sequence {
            // A message that was repeated or overtaken.
            self.note_recalls(now);
            return orders;
        }
        member.sequence = work.sequence;
        member.last_heard = now;
        member.is_draining = work.is_draining;
        let held: BTreeSet<LeaseId> = work.holds.iter().copied().collect();
        let over = held
            .iter()
            .filter(|lease| !member.leases.contains_key(lease));
        orders.over = over.copied().collect();
        for lease in self.roster.take_lost(agent, &held, work.answered) {
            self.dispatcher.give_back(lease, now);
        }
        self.short.remove(agent);
        let member = self.roster.agents.get(agent);
        orders.ends = member.is_some_and(|member| member.ends);
        let takes_leases = member.is_some_and(|member| member.is_trusted() && !member.ends);
        if may_deal && !self.is_closing && !work.is_draining && takes_leases {
            self.deal(work, &mut orders, now);
        }
        self.note_recalls(now);
        self.recalls.remove(agent);
        if let Some(member) = self.roster.agents.get(agent) {
            let recalled = member.leases.iter();
            let recalled = recalled.filter(|(_, lease)| lease.recalled.is_some());
            orders.recalls = recalled.map(|(id, _)| *id).collect();
        }
        orders
    }

    /// Takes an agent's report of a lease, if the agent has it. It may be over, by an earlier copy
    /// of this report or because the agent was silent.
    fn take_report(&mut self, agent: &AgentId, report: &Report, now: Duration) {
        let Some(dealt) = self.roster.take(agent, report.lease) else {
            return;
        };
        if let Some(member) = self.roster.agents.get_mut(agent) {
            member.answered(dealt.recalled, now);
        }
        if report.failed {
            self.take_failure(agent, &dealt, report.lease, now);
            return;
        }
        // An agent cannot have had it for longer.
        let took = report.took.min(now.saturating_sub(dealt.at));
        let lease = report.lease;
        let decoys = dealt.audit.as_ref().map_or(0, Audit::decoys);
        let Range { start, end } = dealt.range;
        // Many hits would take long to check.
        if !(start..=end).contains(&report.tried)
            || report.hits.len() > 2 * (dealt.hit_limit + decoys)
        {
            self.dispatcher.give_back(lease, now);
            self.count_false_report(agent, now);
            return;
        }
        if let Some(audit) = &dealt.audit
            && let Err(Missed(index)) = audit.check(report)
        {
            self.dispatcher.give_back(lease, now);
            let reason = format!("it reported secrets as tried, but missed the hit at {index}");
            self.ban_agent(agent, reason.into(), now);
            return;
        }
        let (tried, hits) = self.without_decoys(&dealt, report);
        let hashes = self.dispatcher.hashes(lease, tried);
        let done = self.dispatcher.finish(lease, tried, &hits, took, now);
        let Some(member) = self.roster.agents.get_mut(agent) else {
            return;
        };
        match (done, hashes) {
            (Ok(()), hashes) => {
                if let Some(hashes) = hashes {
                    member.measured(hashes, took);
                }
                self.roster
                    .covered(agent, dealt.searches, dealt.range.start..tried);
            }
            (Err(_), _) => self.count_false_report(agent, now),
        }
    }

    /// Returns what of a report counts for the searches.
    fn without_decoys(&self, dealt: &Dealt, report: &Report) -> (Index, Vec<Index>) {
        let (mut tried, mut hits) = (report.tried, report.hits.clone());
        let Some(audit) = &dealt.audit else {
            return (tried, hits);
        };
        let first = dealt.range.start;
        hits.retain(|index| {
            // Others are false, which is noticed later.
            let is_tried = (first..tried).contains(index);
            !(is_tried && audit.is_decoy(*index) && !self.dispatcher.is_hit(report.lease, *index))
        });
        // The agent has stopped after more, because some of them could have been decoys.
        if hits.len() > dealt.hit_limit {
            hits.truncate(dealt.hit_limit);
            tried = hits.last().map_or(tried, |last| last + 1);
        }
        (tried, hits)
    }

    /// Counts a report that was not true, and bans its agent after some.
    fn count_false_report(&mut self, agent: &AgentId, now: Duration) {
        let Some(member) = self.roster.agents.get_mut(agent) else {
            return;
        };
        member.false_reports += 1;
        if member.false_reports >= MOST_FALSE_REPORTS && !member.is_banned {
            let reason = format!(
                "it sent {MOST_FALSE_REPORTS} false reports (wrong hits, or secrets outside its \
                 leases)"
            );
            self.ban_agent(agent, reason.into(), now);
        }
    }

    /// Bans an agent that has done something wrong.
    fn ban_agent(&mut self, agent: &AgentId, reason: Arc<str>, now: Duration) {
        let name = self.unit(agent);
        self.ban(Arc::clone(&name), Arc::clone(&reason), now);
        self.banned.push(Banned {
            agent: agent.clone(),
            name,
            reason,
        });
    }

    /// Returns the name of what an agent belongs to: its machine or, if agents may lie, its user.
    /// Another machine of the same user is not broken, but a liar can choose the name of its
    /// machine.
    fn unit(&self, agent: &str) -> Arc<str> {
        let user = agent.split('.').next().unwrap_or_default();
        let is_user = self.settings.is_untrusted && user != ANYONE;
        let parts = if is_user { 1 } else { 2 };
        let end = agent.match_indices('.').nth(parts - 1);
        end.map_or(agent, |(end, _)| &agent[..end]).into()
    }

    /// Bans agents: they get no leases, what they have is given to others, and what they have
    /// reported as tried in this term is tried again.
    pub fn ban(&mut self, name: Arc<str>, reason: Arc<str>, now: Duration) {
        let agents = self.roster.agents.iter_mut();
        let meant = agents.filter(|(agent, member)| !member.is_banned && means(&name, agent));
        let mut ids = Vec::new();
        for (agent, member) in meant {
            member.is_banned = true;
            ids.push(agent.clone());
        }
        let covered = self.roster.take_covered(&name);
        for agent in ids {
            for lease in self.roster.take_all(&agent) {
                self.dispatcher.give_back(lease, now);
            }
        }
        self.calls.try_again(covered);
        self.bans.insert(name, reason);
        self.note_recalls(now);
    }

    /// Allows agents that were banned by this name to get leases again. Returns whether there was
    /// such a ban.
    pub fn unban(&mut self, name: &str) -> bool {
        let was_banned = self.bans.remove(name).is_some();
        let bans = &self.bans;
        for (agent, member) in &mut self.roster.agents {
            let is_banned = bans.keys().any(|name| means(name, agent));
            if member.is_banned && !is_banned {
                member.is_banned = false;
                member.false_reports = 0;
                member.panics = 0;
            }
        }
        was_banned
    }

    /// Returns why an agent is banned, and by which name, if it is.
    #[must_use]
    pub fn ban_of(&self, agent: &str) -> Option<(&Arc<str>, &Arc<str>)> {
        self.bans.iter().find(|(name, _)| means(name, agent))
    }

    /// Takes the agents that were banned since the last time, because of what they did.
    pub fn take_banned(&mut self) -> Vec<Banned> {
        std::mem::take(&mut self.banned)
    }

    /// Takes the agents that get no more leases since the last time, because trying them has
    /// panicked too often.
    pub fn take_distrusted(&mut self) -> Vec<AgentId> {
        std::mem::take(&mut self.distrusted)
    }

    /// Whether an agent may get leases.
    #[must_use]
    pub fn trusts(&self, agent: &str) -> bool {
        let member = self.roster.agents.get(agent);
        member.map_or_else(|| self.ban_of(agent).is_none(), Member::is_trusted)
    }

    /// Tells agents to return their leases and to end. Returns how many there are.
    pub fn end_agents(&mut self, name: &str) -> usize {
        let agents = self.roster.agents.iter_mut();
        let mut told = 0;
        for (agent, member) in agents.filter(|(agent, _)| means(name, agent)) {
            member.ends = true;
            // It learns it with its next message, within a second. An idle one asks at once.
            self.recalls.entry(agent.clone()).or_default();
            told += 1;
        }
        told
    }

    /// Recalls all leases and deals no more, because another server is about to lead.
    pub fn close(&mut self, now: Duration) {
        self.is_closing = true;
        for lease in self.roster.all() {
            if let Some(agent) = self.roster.recall(lease, now) {
                self.recalls.entry(agent).or_default().push(lease);
            }
        }
    }

    /// Whether an agent can be heard: it is known, or there is room for it.
    #[must_use]
    pub fn has_room_for(&self, agent: &str) -> bool {
        let user = agent.split('.').next().unwrap_or_default();
        self.roster.agents.contains_key(agent)
            || self.roster.has_room()
                && !(self.settings.is_untrusted && user != ANYONE && self.roster.is_full_of(user))
    }

    /// Whether agents that have panicked at the same secrets confirm each other. They must not be
    /// of the same machine (or user, if agents may lie), unless all are.
    fn is_confirmed(&self, before: &BTreeMap<AgentId, u64>, agent: &AgentId) -> bool {
        let unit = self.unit(agent);
        let is_other = |other: &AgentId| self.unit(other) != unit;
        if before.keys().any(is_other) {
            return true;
        }
        let mut able = self.roster.agents.iter();
        let has_others = able.any(|(other, member)| member.is_trusted() && is_other(other));
        !has_others && before.keys().any(|other| other != agent)
    }

    /// Handles an agent's report that trying a lease has panicked. Another agent tries it next.
    /// Only if that one panics, too, the cause is a search, and not the first agent's machine.
    fn take_failure(&mut self, agent: &AgentId, dealt: &Dealt, lease: LeaseId, now: Duration) {
        let key = (dealt.set, dealt.range.start);
        if let Some(before) = self.failures.get(&key)
            && self.is_confirmed(before, agent)
        {
            for (other, times) in self.failures.remove(&key).unwrap_or_default() {
                if let Some(other) = self.roster.agents.get_mut(&other) {
                    other.panics = other.panics.saturating_sub(times);
                }
            }
            self.dispatcher.fail(lease, now);
            return;
        }
        if self.failures.len() >= MOST_FAILURES {
            self.failures.clear();
        }
        let before = self.failures.entry(key).or_default();
        *before.entry(agent.clone()).or_default() += 1;
        if let Some(member) = self.roster.agents.get_mut(agent) {
            member.panics += 1;
            if member.panics == MOST_FALSE_REPORTS {
                self.distrusted.push(agent.clone());
            }
        }
        self.dispatcher.give_back(lease, now);
    }

    /// Gives an agent leases, until it has enough in hand.
    fn deal(&mut self, work: &Work, orders: &mut Orders, now: Duration) {
        let agent = &work.agent;
        let mut bytes = 0;
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
                parts: self.dispatcher.waiting_clients().clamp(1, MOST_PARTS) as u32,
            };
            let Some(lease) = self.dispatcher.lease(worker, now) else {
                self.short.insert(agent.clone());
                return;
            };
            let set = self.set_of(&lease);
            let (base, searches) = (set.number, Arc::clone(&set.searches));
            let mut set = (
                NewSet {
                    number: base,
                    queries: Arc::clone(&set.queries),
                    ending: set.queries.len(),
                },
                set.bytes,
            );
            let audit = self.plan_audit(&lease, &mut set);
            let (set, size) = set;
            let number = set.number;
            let is_new = !work.knows.contains(&number)
                && !orders.sets.iter().any(|new| new.number == number);
            if is_new {
                bytes += size;
                if bytes > MOST_SETS_BYTES {
                    // The agent gets it with the next reply.
                    self.dispatcher.give_back(lease.id(), now);
                    return;
                }
                orders.sets.push(set);
            }
            orders.leases.push(Order {
                lease: lease.id(),
                range: lease.range(),
                set: number,
                hit_limit: lease.hit_limit() + audit.as_ref().map_or(0, Audit::decoys),
                planned: lease.planned(),
            });
            let dealt = Dealt {
                planned: lease.planned(),
                at: now,
                sequence: work.sequence,
                recalled: None,
                set: base,
                range: lease.range(),
                searches,
                hit_limit: lease.hit_limit(),
                audit,
            };
            self.roster.give(agent, lease.id(), dealt);
            if lease.is_urgent() {
                return;
            }
        }
    }

    /// Decides whether a lease is audited. If it is, adds decoys to its set of queries, whose size
    /// in bytes is the second value.
    fn plan_audit(&mut self, lease: &Lease, set: &mut (NewSet, usize)) -> Option<Audit> {
        let (set, bytes) = set;
        let is_drawn = match (self.settings.is_untrusted, self.settings.audited) {
            (true, _) => true,
            (false, 0) => false,
            (false, audited) => self.rng.random_range(0..audited) == 0,
        };
        if !is_drawn || *bytes > MOST_AUDITED_BYTES {
            return None;
        }
        let is_untrusted = self.settings.is_untrusted;
        let least = if is_untrusted {
            LEAST_UNTRUSTED
        } else {
            LEAST_TRUSTED
        };
        let range = lease.range();
        if range.end - range.start < least {
            return None;
        }
        let audit = Audit::plan(&mut self.rng, &set.queries, &range)?;
        self.next_set += 1;
        *set = NewSet {
            number: self.next_set,
            // A ringer must not end the lease. Agents that may lie must not learn which queries are
            // decoys.
            ending: if is_untrusted { 0 } else { set.queries.len() },
            queries: if is_untrusted {
                audit.mix(&mut self.rng, &set.queries)
            } else {
                audit.append(&set.queries)
            },
        };
        *bytes = set.queries.iter().map(query_bytes).sum();
        Some(audit)
    }

    /// Returns the queries of a lease, which it shares with other leases of the same searches.
    fn set_of(&mut self, lease: &Lease) -> &KnownSet {
        let matcher = lease.matcher();
        let key = Arc::as_ptr(matcher).addr();
        let is_used = |set: &KnownSet| set.matcher.strong_count() > 0;
        if !self.queries.get(&key).is_some_and(is_used) {
            self.queries.retain(|_, set| is_used(set));
            self.next_set += 1;
        }
        let number = self.next_set;
        self.queries.entry(key).or_insert_with(|| KnownSet {
            matcher: Arc::downgrade(matcher),
            queries: lease.queries().cloned().collect(),
            number,
            bytes: lease.queries().map(query_bytes).sum(),
            searches: lease.searches().into(),
        })
    }

    /// Answers a server about one of its calls, and begins the call if it is new.
    ///
    /// # Errors
    ///
    /// If the call's client, or the fleet, has reached a limit.
    pub fn renew(
        &mut self,
        renewal: &CallRenewal,
        now: Duration,
    ) -> Result<Option<CallUpdate>, OverLimit> {
        let dispatcher = &mut self.dispatcher;
        self.calls.renew(renewal, now, || {
            let (query, checkpoint) = (renewal.query.clone(), renewal.checkpoint.clone());
            dispatcher.begin(renewal.client.clone(), query, checkpoint, now)
        })?;
        if renewal.stops
            && let Some(search) = self.calls.search(&renewal.call)
        {
            self.dispatcher.stop(search, now);
        }
        let update = self.calls.update(&renewal.call, &mut self.dispatcher);
        self.note_recalls(now);
        Ok(update.map(|(_, update)| update))
    }

    /// Returns what servers should know of all calls before another server leads.
    pub fn all_updates(&mut self) -> Vec<(ServerId, CallId, CallUpdate)> {
        let calls = self.calls.all().into_iter();
        let updates = calls.filter_map(|call| {
            let (server, update) = self.calls.update(&call, &mut self.dispatcher)?;
            Some((server, call, update))
        });
        updates.collect()
    }

    /// Returns messages that servers should get at once. One that is lost costs only time, because
    /// servers ask each second.
    pub fn take_updates(&mut self, now: Duration) -> Vec<(ServerId, CallId, CallUpdate)> {
        let calls = self.calls.take_updates().into_iter();
        let news = calls.filter_map(|call| {
            let (server, update) = self.calls.update(&call, &mut self.dispatcher)?;
            Some((server, call, update))
        });
        let news = news.collect();
        self.note_recalls(now);
        news
    }

    /// Returns how many agents take leases, and how many hashes of a fast kernel they compute per
    /// second together.
    #[must_use]
    pub fn capacity(&self, now: Duration) -> (u32, f64) {
        self.roster.capacity(now)
    }

    /// Ends a call. Its agents are free once they hear of it.
    pub fn end(&mut self, call: &str, now: Duration) {
        for search in self.calls.remove(call) {
            self.dispatcher.forget(search, now);
        }
        self.note_recalls(now);
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
        self.calls.tick(&mut self.dispatcher, now);
        (_, self.rate) = self.roster.capacity(now);
        if now.saturating_sub(self.forgot) >= FORGETS_EVERY {
            self.forgot = now;
            let searches = self.calls.searches();
            self.roster
                .forget_covered(|search| !searches.contains(&search));
        }
        let agents = &self.roster.agents;
        self.short.retain(|agent| agents.contains_key(agent));
        self.note_recalls(now);
    }

    /// Returns [notices](crate::Agent::notice) to send at once: the leases to recall, by agent. An
    /// agent without any should ask for leases, because there may be some now. A notice that is
    /// lost costs only time: the next [`Orders`] repeat recalls, and agents ask each second.
    pub fn take_notices(&mut self) -> BTreeMap<AgentId, Vec<LeaseId>> {
        let mut notices = std::mem::take(&mut self.recalls);
        if self.dispatcher.has_work() {
            for _ in 0..NOTIFIED_AT_ONCE {
                let Some(agent) = self.short.pop_first() else {
                    break;
                };
                notices.entry(agent).or_default();
            }
        }
        notices
    }

    /// Returns how many leases agents have.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.roster.leases()
    }

    /// Returns the agents whose messages have arrived in the last minute.
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

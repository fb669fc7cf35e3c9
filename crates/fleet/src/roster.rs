//! The agents of a fleet: which leases each has, how fast it is, and when its last message arrived.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use hashfinder_search::{Index, LeaseId, SearchId};

use crate::{
    audit::Audit,
    messages::{AgentId, Work, means},
};

/// Time of silence after which an agent's leases are given to others.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Time after which a recalled lease is given to others, if its agent does not answer. It is longer
/// for an agent whose messages take longer: otherwise, no recalled lease of such an agent would
/// count, and a search whose last secrets it alone tries would never end.
pub const RECALLED_FOR: Duration = Duration::from_millis(250);

/// Time of silence after which an agent is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Number of false reports after which an agent is banned, and of panics after which it gets no
/// leases: its machine is broken, or it lies.
pub(crate) const MOST_FALSE_REPORTS: u64 = 3;

/// Number of leases of an agent that are tried again if it is banned. Of a machine that hides all
/// hits, 64 are tried on average until then.
const MOST_RECENT: usize = 1024;

/// Maximum number of leases to remember for that, of all agents together: 64 MiB. With more than
/// 2,048 agents, each has fewer.
const MOST_RECENT_IN_ALL: usize = 1 << 21;

/// Maximum number of agents of a user, if agents may lie.
const MOST_AGENTS_OF_USER: usize = 1024;

/// Maximum number of agents. One that is forgotten makes room.
const MOST_AGENTS: usize = 1 << 14;

/// Maximum rate of an agent, in hashes of a fast kernel per second: a thousand times that of the
/// fastest machines. What an agent says of itself must not make the leases of others meaningless.
const MOST_RATE: f64 = 1e13;

/// Maximum number of characters of an agent's version.
const MOST_VERSION: usize = 40;

/// How much of a new measurement counts in an agent's rate, if it lasted a second. One that lasted
/// less counts less: the first leases of a search take microseconds, and mostly measure overhead.
const NEWEST: f64 = 0.3;

#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub(crate) agents: BTreeMap<AgentId, Member>,
    /// The agent that has each lease.
    holders: BTreeMap<LeaseId, AgentId>,
    /// What each agent has reported as tried: the latest leases, in order. Those that have left are
    /// there, too.
    recent: BTreeMap<AgentId, VecDeque<Covered>>,
}

/// An agent, as the leader knows it.
#[derive(Debug)]
pub(crate) struct Member {
    version: Arc<str>,
    /// Number of its last message.
    pub(crate) sequence: u64,
    pub(crate) last_heard: Duration,
    /// Hashes of a fast kernel per second.
    pub(crate) rate: f64,
    pub(crate) is_draining: bool,
    pub(crate) leases: BTreeMap<LeaseId, Dealt>,
    /// Time that it has to answer a recall.
    answers_within: Duration,
    /// Number of its reports that were not true.
    pub(crate) false_reports: u64,
    /// Number of leases whose trying has panicked, without another agent that has the same panic.
    pub(crate) panics: u64,
    /// Whether it gets no leases.
    pub(crate) is_banned: bool,
    /// Whether it should end.
    pub(crate) ends: bool,
}

/// Secrets that an agent has reported as tried, and the searches for which they count.
pub(crate) type Covered = (Arc<[SearchId]>, Range<Index>);

/// A lease of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Dealt {
    /// How long it should take.
    pub(crate) planned: Duration,
    /// When it was dealt, and the number of the agent's message that asked for it.
    pub(crate) at: Duration,
    pub(crate) sequence: u64,
    /// When it was recalled.
    pub(crate) recalled: Option<Duration>,
    /// Its set of queries, without decoys.
    pub(crate) set: u64,
    /// The secrets to try.
    pub(crate) range: Range<Index>,
    /// The searches that it serves.
    pub(crate) searches: Arc<[SearchId]>,
    /// Number of hits of these that end it.
    pub(crate) hit_limit: usize,
    /// Its decoys, if it is audited.
    pub(crate) audit: Option<Audit>,
}

/// An agent in the list of agents.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The agent.
    pub agent: AgentId,
    /// Its version of hashfinder.
    pub version: Arc<str>,
    /// Hashes of a fast kernel per second.
    pub rate: f64,
    /// Number of its leases.
    pub leases: usize,
    /// Time since its last message.
    pub silent_for: Duration,
    /// Whether it takes no more leases.
    pub is_draining: bool,
    /// Number of its reports that were not true.
    pub false_reports: u64,
    /// Whether it is banned.
    pub is_banned: bool,
    /// Whether it still gets leases.
    pub is_trusted: bool,
}

/// Returns what is shown of a version. An agent could send a megabyte.
fn cut(version: &Arc<str>) -> Arc<str> {
    match version.char_indices().nth(MOST_VERSION) {
        Some((end, _)) => version[..end].into(),
        None => Arc::clone(version),
    }
}

impl Member {
    pub(crate) fn new(work: &Work, now: Duration) -> Member {
        Member {
            version: cut(&work.version),
            sequence: 0,
            last_heard: now,
            rate: if work.rate.is_normal() {
                work.rate.clamp(1.0, MOST_RATE)
            } else {
                1.0
            },
            is_draining: false,
            leases: BTreeMap::new(),
            answers_within: RECALLED_FOR,
            false_reports: 0,
            panics: 0,
            is_banned: false,
            ends: false,
        }
    }

    /// Whether the agent may get leases. One whose leases panic gets none until it starts again, or
    /// another server leads: its machine is broken, or no other agent has confirmed yet that a
    /// search is to blame.
    pub(crate) fn is_trusted(&self) -> bool {
        !self.is_banned && self.panics < MOST_FALSE_REPORTS
    }

    /// Includes a measurement in the rate.
    pub(crate) fn measured(&mut self, hashes: f64, took: Duration) {
        let rate = hashes / took.as_secs_f64();
        if rate.is_normal() && rate > 1.0 {
            let weight = NEWEST * took.as_secs_f64().min(1.0);
            // On a logarithmic scale, one slow lease says as little as one fast lease.
            self.rate *= (rate / self.rate).powf(weight);
            self.rate = self.rate.min(MOST_RATE);
        }
    }

    /// Notes how long the answer to a recall took.
    pub(crate) fn answered(&mut self, recalled: Option<Duration>, now: Duration) {
        if let Some(at) = recalled {
            let took = now.saturating_sub(at);
            // A report that crossed the recall took less.
            let needed = (took * 2).max(self.answers_within / 2);
            self.answers_within = needed.clamp(RECALLED_FOR, SILENT_AFTER);
        }
    }

    /// Returns how much work the agent has in hand.
    pub(crate) fn in_hand(&self) -> Duration {
        self.leases.values().map(|lease| lease.planned).sum()
    }
}

impl Roster {
    /// Whether there is room for another agent.
    pub(crate) fn has_room(&self) -> bool {
        self.agents.len() < MOST_AGENTS
    }

    /// Records secrets that an agent has tried.
    pub(crate) fn covered(
        &mut self,
        agent: &AgentId,
        searches: Arc<[SearchId]>,
        range: Range<Index>,
    ) {
        if range.is_empty() {
            return;
        }
        let most = (MOST_RECENT_IN_ALL / (self.recent.len() + 1)).min(MOST_RECENT);
        let recent = self.recent.entry(agent.clone()).or_default();
        if let Some((of, last)) = recent.back_mut()
            && Arc::ptr_eq(of, &searches)
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        while recent.len() >= most.max(1) {
            recent.pop_front();
        }
        recent.push_back((searches, range));
    }

    /// Takes what the agents that a name means have tried, also those that have left.
    pub(crate) fn take_covered(&mut self, name: &str) -> Vec<Covered> {
        let agents = self.recent.keys().filter(|agent| means(name, agent));
        let agents: Vec<AgentId> = agents.cloned().collect();
        let taken = agents.iter().filter_map(|agent| self.recent.remove(agent));
        taken.flatten().collect()
    }

    /// Forgets what agents have tried for searches that have all ended.
    pub(crate) fn forget_covered(&mut self, is_over: impl Fn(SearchId) -> bool) {
        let mut known: HashMap<*const SearchId, bool> = HashMap::new();
        self.recent.retain(|_, recent| {
            recent.retain(|(searches, _)| {
                let all = || searches.iter().all(|search| is_over(*search));
                !*known.entry(searches.as_ptr()).or_insert_with(all)
            });
            !recent.is_empty()
        });
    }

    /// Gives an agent a lease.
    pub(crate) fn give(&mut self, agent: &AgentId, lease: LeaseId, dealt: Dealt) {
        if let Some(member) = self.agents.get_mut(agent) {
            member.leases.insert(lease, dealt);
            self.holders.insert(lease, agent.clone());
        }
    }

    /// Takes a lease from its agent, if this agent has it.
    pub(crate) fn take(&mut self, agent: &AgentId, lease: LeaseId) -> Option<Dealt> {
        let taken = self.agents.get_mut(agent)?.leases.remove(&lease)?;
        self.holders.remove(&lease);
        Some(taken)
    }

    /// Takes all leases of an agent.
    pub(crate) fn take_all(&mut self, agent: &AgentId) -> Vec<LeaseId> {
        let member = self.agents.get(agent);
        let leases: Vec<LeaseId> = member
            .map(|member| member.leases.keys().copied().collect())
            .unwrap_or_default();
        for lease in &leases {
            self.take(agent, *lease);
        }
        leases
    }

    /// Whether the roster has as many agents of a user as it may have, if agents may lie.
    pub(crate) fn is_full_of(&self, user: &str) -> bool {
        let of_user = self.agents.keys().filter(|agent| means(user, agent));
        of_user.count() >= MOST_AGENTS_OF_USER
    }

    /// Returns all leases of all agents, in order.
    pub(crate) fn all(&self) -> Vec<LeaseId> {
        self.holders.keys().copied().collect()
    }

    /// Takes the leases that an agent does not have, although it got the replies to all messages up
    /// to `answered`: the reply with these leases was lost.
    pub(crate) fn take_lost(
        &mut self,
        agent: &AgentId,
        held: &BTreeSet<LeaseId>,
        answered: u64,
    ) -> Vec<LeaseId> {
        let Some(member) = self.agents.get(agent) else {
            return Vec::new();
        };
        let is_lost =
            |(id, lease): &(&LeaseId, &Dealt)| lease.sequence <= answered && !held.contains(id);
        let lost = member.leases.iter().filter(is_lost);
        let lost: Vec<LeaseId> = lost.map(|(id, _)| *id).collect();
        for lease in &lost {
            self.take(agent, *lease);
        }
        lost
    }

    /// Notes that a lease was recalled. Returns its agent.
    pub(crate) fn recall(&mut self, lease: LeaseId, now: Duration) -> Option<AgentId> {
        let agent = self.holders.get(&lease)?.clone();
        let dealt = self.agents.get_mut(&agent)?.leases.get_mut(&lease)?;
        dealt.recalled.get_or_insert(now);
        Some(agent)
    }

    /// Takes the leases whose agents have been silent for too long, and forgets agents that are
    /// gone.
    pub(crate) fn overdue(&mut self, now: Duration) -> Vec<LeaseId> {
        let mut overdue = Vec::new();
        self.agents.retain(|_, member| {
            let silent = now.saturating_sub(member.last_heard);
            let answers_within = member.answers_within;
            let mut was_late = false;
            member.leases.retain(|lease, dealt| {
                let is_late = dealt
                    .recalled
                    .is_some_and(|at| now.saturating_sub(at) >= answers_within);
                was_late |= is_late;
                let is_overdue = is_late || silent >= SILENT_AFTER;
                if is_overdue {
                    overdue.push(*lease);
                }
                !is_overdue
            });
            if was_late {
                member.answers_within = (answers_within * 2).min(SILENT_AFTER);
            }
            // A draining agent without leases has left.
            let is_gone = member.is_draining && member.leases.is_empty();
            silent
                < if is_gone {
                    SILENT_AFTER
                } else {
                    FORGOTTEN_AFTER
                }
        });
        for lease in &overdue {
            self.holders.remove(lease);
        }
        overdue
    }

    /// Returns how many agents take leases, and their rates together.
    pub(crate) fn capacity(&self, now: Duration) -> (u32, f64) {
        let is_able = |member: &&Member| {
            !member.is_draining
                && member.is_trusted()
                && !member.ends
                && now.saturating_sub(member.last_heard) < SILENT_AFTER
        };
        let able = self.agents.values().filter(is_able);
        able.fold((0, 0.0), |(count, rate), member| {
            (count + 1, rate + member.rate)
        })
    }

    /// Returns how many leases all agents have.
    pub(crate) fn leases(&self) -> usize {
        self.holders.len()
    }

    pub(crate) fn list(&self, now: Duration) -> Vec<Listed> {
        let agents = self.agents.iter();
        let listed = agents.map(|(agent, member)| Listed {
            agent: agent.clone(),
            version: Arc::clone(&member.version),
            rate: member.rate,
            leases: member.leases.len(),
            silent_for: now.saturating_sub(member.last_heard),
            is_draining: member.is_draining || member.ends,
            false_reports: member.false_reports,
            is_banned: member.is_banned,
            is_trusted: member.is_trusted(),
        });
        listed.collect()
    }
}

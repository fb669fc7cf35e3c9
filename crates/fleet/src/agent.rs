//! An agent: its leases, and its messages to the leader.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use hashfinder_search::LeaseId;

use crate::{
    messages::{AgentId, Order, Orders, Report, Term, Work},
    roster::SILENT_AFTER,
};

/// Factor by which trying a lease may take longer than planned before the agent reports the part
/// that it has tried: the leader believes that it is faster than it is.
const REPORTED_AFTER: u32 = 2;

/// Factor by which a lease may take longer than planned before the agent drops it unreported, but
/// at least [`SILENT_AFTER`]: the machine was suspended, and another agent has the lease.
const DROPPED_AFTER: u32 = 3;

/// Time between two messages, at most: the leader takes longer silence for the agent's end.
const SPEAKS_EVERY: Duration = Duration::from_secs(1);

/// Time after which a reply that has not come counts as lost.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// With less work than this in hand, the agent reports at once, to get more: longer than a reply
/// takes.
const LEAST_IN_HAND: Duration = Duration::from_millis(200);

/// The state of an agent. What tries the secrets is elsewhere: it carries out [`Command`]s, and
/// says when a lease is [done](Agent::done).
#[derive(Debug)]
pub struct Agent {
    id: AgentId,
    boot: u64,
    term: Term,
    /// Number of the last message, and when it was sent.
    sequence: u64,
    sent_at: Option<Duration>,
    /// Whether its reply has not come yet.
    is_waiting: bool,
    /// When the last reply came.
    replied_at: Duration,
    rate: f64,
    version: Arc<str>,
    is_draining: bool,
    /// Whether the leader has replied to a message that said so.
    has_told: bool,
    /// Whether there may be work for an agent that has none.
    is_woken: bool,
    /// Leases to try, the first one first.
    tasks: VecDeque<Task>,
    /// Reports that the leader has not replied to.
    reports: Vec<Report>,
    /// How many of them, from the first on, the last message had.
    sent: usize,
    /// Whether an unsent report should be sent at once.
    is_urgent: bool,
    /// Whether the leader may have something to say at once.
    is_called: bool,
    commands: Vec<Command>,
}

/// What to do with a lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Try it, after all leases before it.
    Try(Order),
    /// Stop trying it. It then is [done](Agent::done), as far as it is tried.
    Stop(LeaseId),
}

/// A lease at an agent.
#[derive(Clone, Debug)]
struct Task {
    lease: LeaseId,
    planned: Duration,
    /// When it became the first one.
    began: Option<Duration>,
    is_stopping: bool,
}

impl Agent {
    /// Creates an agent without leases. `boot` must be greater each time that its process starts,
    /// and `rate` is how many hashes of a fast kernel it computes per second. `version` is for
    /// people.
    #[must_use]
    pub fn new(id: AgentId, boot: u64, rate: f64, version: Arc<str>) -> Agent {
        Agent {
            id,
            boot,
            term: Term::default(),
            sequence: 0,
            sent_at: None,
            is_waiting: false,
            replied_at: Duration::ZERO,
            rate,
            version,
            is_draining: false,
            has_told: false,
            is_woken: false,
            tasks: VecDeque::new(),
            reports: Vec::new(),
            sent: 0,
            is_urgent: false,
            is_called: false,
            commands: Vec::new(),
        }
    }

    /// Returns the term of the leader that the agent works for.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Notes that there is a leader of this term. The agent follows the latest one. An earlier one
    /// is followed only if the current one is silent: the broker may have lost the later term.
    pub fn heard(&mut self, term: Term, now: Duration) {
        if term > self.term || self.is_lost(now) {
            self.follow(term);
        }
    }

    /// Whether the leader has not replied for so long that the agent should look for another one.
    #[must_use]
    pub fn is_lost(&self, now: Duration) -> bool {
        now.saturating_sub(self.replied_at) >= SILENT_AFTER
    }

    /// Follows the leader of a term. What the agent has from another leader is of no use.
    fn follow(&mut self, term: Term) {
        if term == self.term {
            return;
        }
        self.term = term;
        for task in self.tasks.drain(..) {
            self.commands.push(Command::Stop(task.lease));
        }
        self.reports.clear();
        self.sent = 0;
        self.is_waiting = false;
        self.is_woken = true;
    }

    /// Notes that there may be work again.
    pub fn wake(&mut self) {
        self.is_woken = true;
    }

    /// Takes no more leases, and hands back what is left of those that it has.
    pub fn drain(&mut self) {
        if self.is_draining {
            return;
        }
        self.is_draining = true;
        self.is_woken = true;
        let leases: Vec<LeaseId> = self.tasks.iter().map(|task| task.lease).collect();
        self.recall(&leases);
    }

    /// Whether a message should be sent now.
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        let Some(sent) = self.sent_at else {
            return true;
        };
        let since = now.saturating_sub(sent);
        if since >= SPEAKS_EVERY {
            return true;
        }
        if self.is_waiting && since < REPLY_TIMEOUT {
            return false;
        }
        // A reply that is still awaited here was lost.
        let has_news = self.is_waiting || self.reports.len() > self.sent;
        let wants_work = self.is_woken && self.tasks.is_empty();
        self.is_called
            || wants_work
            || has_news && (self.is_urgent || self.in_hand(now) < LEAST_IN_HAND)
    }

    /// Returns how long the leases in hand should still take.
    fn in_hand(&self, now: Duration) -> Duration {
        let planned: Duration = self.tasks.iter().map(|task| task.planned).sum();
        let began = self.tasks.front().and_then(|first| first.began);
        planned.saturating_sub(began.map_or(Duration::ZERO, |began| now.saturating_sub(began)))
    }

    /// Returns the next message to the leader. Earlier ones do not matter any more, nor do their
    /// replies.
    pub fn work(&mut self, now: Duration) -> Work {
        self.sequence += 1;
        self.sent_at = Some(now);
        self.is_waiting = true;
        self.is_woken = false;
        self.is_urgent = false;
        self.is_called = false;
        self.sent = self.reports.len();
        Work {
            agent: self.id.clone(),
            boot: self.boot,
            sequence: self.sequence,
            term: self.term,
            rate: self.rate,
            version: Arc::clone(&self.version),
            is_draining: self.is_draining,
            holds: self.tasks.iter().map(|task| task.lease).collect(),
            reports: self.reports.clone(),
        }
    }

    /// Takes the reply to this message.
    pub fn orders(&mut self, work: &Work, orders: Orders, now: Duration) {
        if orders.term != self.term {
            self.heard(orders.term, now);
            return;
        }
        if work.sequence != self.sequence || !self.is_waiting {
            return;
        }
        self.is_waiting = false;
        self.replied_at = now;
        self.has_told |= work.is_draining;
        self.reports.drain(..std::mem::take(&mut self.sent));
        let commands = &mut self.commands;
        self.tasks.retain(|task| {
            let is_over = orders.over.contains(&task.lease);
            if is_over {
                commands.push(Command::Stop(task.lease));
            }
            !is_over
        });
        for order in orders.leases {
            self.tasks.push_back(Task {
                lease: order.lease,
                planned: order.planned,
                began: None,
                is_stopping: false,
            });
            self.commands.push(Command::Try(order));
        }
        self.begin_first(now);
        self.recall(&orders.recalls);
        if self.is_draining {
            // A message that was sent before brought them.
            let leases: Vec<LeaseId> = self.tasks.iter().map(|task| task.lease).collect();
            self.recall(&leases);
        }
    }

    /// Stops these leases, to report them as far as they are tried.
    pub fn recall(&mut self, leases: &[LeaseId]) {
        let is_here = |lease| self.tasks.iter().any(|task| task.lease == lease);
        if !leases.iter().all(|lease| is_here(*lease)) {
            // It may be in a reply that has not come yet. The next one repeats the recall.
            self.is_called = true;
        }
        for task in &mut self.tasks {
            if leases.contains(&task.lease) && !task.is_stopping {
                task.is_stopping = true;
                self.commands.push(Command::Stop(task.lease));
            }
        }
    }

    /// Returns what to do with leases, in this order.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Records that a lease is done: completely, or as far as it was tried when it was stopped.
    /// Ignores a lease that the agent does not have any more.
    pub fn done(&mut self, report: Report, now: Duration) {
        let is_this = |task: &Task| task.lease == report.lease;
        let Some(place) = self.tasks.iter().position(is_this) else {
            return;
        };
        let task = self.tasks.remove(place);
        let is_stopped = task.is_some_and(|task| task.is_stopping);
        self.is_urgent |= is_stopped || report.failed || !report.hits.is_empty();
        self.reports.push(report);
        self.begin_first(now);
    }

    fn begin_first(&mut self, now: Duration) {
        if let Some(first) = self.tasks.front_mut() {
            first.began.get_or_insert(now);
        }
    }

    /// Stops a lease that takes too long, and drops it if that does not help. Call this ten times a
    /// second. `now` is on a clock that also counts the time for which the machine was suspended.
    pub fn tick(&mut self, now: Duration) {
        let Some(first) = self.tasks.front() else {
            return;
        };
        let (lease, planned) = (first.lease, first.planned);
        let time = first
            .began
            .map_or(Duration::ZERO, |began| now.saturating_sub(began));
        if time >= SILENT_AFTER.max(planned * DROPPED_AFTER) {
            self.recall(&[lease]);
            self.tasks.pop_front();
            self.begin_first(now);
        } else if time >= planned * REPORTED_AFTER {
            self.recall(&[lease]);
        }
    }

    /// Whether the agent has no leases.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Whether a draining agent has nothing left to report.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_draining && self.has_told && self.tasks.is_empty() && self.reports.is_empty()
    }
}

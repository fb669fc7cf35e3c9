//! An agent: its leases, and its messages to the leader.

use std::{collections::VecDeque, time::Duration};

use hashfinder_search::{Index, LeaseId};

use crate::messages::{AgentId, Order, Orders, Report, Term, Work};

/// Factor by which a lease may take longer than planned before the agent drops it: by then, another
/// agent has it.
const MOST_OVERTIME: u32 = 3;

/// Factor by which trying a lease may take longer than planned before the agent reports the part
/// that it has tried: the leader believes that it is faster than it is.
const REPORTED_AFTER: u32 = 2;

/// The state of an agent. What tries the secrets is elsewhere.
#[derive(Debug)]
pub struct Agent {
    id: AgentId,
    boot: u64,
    term: Term,
    /// Number of the last message.
    sequence: u64,
    /// Whether its reply has not come yet.
    is_waiting: bool,
    rate: f64,
    is_draining: bool,
    /// Leases to try, the first one first.
    tasks: VecDeque<Task>,
    /// Reports that the leader has not replied to.
    reports: Vec<Report>,
    /// How many of them, from the first on, the last message had.
    sent: usize,
}

/// A lease at an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The lease.
    pub order: Order,
    /// Every secret of the lease below this index was tried.
    pub tried: Index,
    /// The indices of the hits among these.
    pub hits: Vec<Index>,
    /// Time that this took.
    pub took: Duration,
    /// When the agent got the lease.
    since: Duration,
}

impl Agent {
    /// Creates an agent without leases. `boot` must be greater each time that its process starts,
    /// and `rate` is how many hashes of a fast kernel it computes per second.
    #[must_use]
    pub fn new(id: AgentId, boot: u64, rate: f64) -> Agent {
        Agent {
            id,
            boot,
            term: Term::default(),
            sequence: 0,
            is_waiting: false,
            rate,
            is_draining: false,
            tasks: VecDeque::new(),
            reports: Vec::new(),
            sent: 0,
        }
    }

    /// Follows the leader of a term. What the agent has from another leader is of no use.
    pub fn follow(&mut self, term: Term) {
        if term != self.term {
            self.term = term;
            self.tasks.clear();
            self.reports.clear();
            self.sent = 0;
        }
    }

    /// Takes no more leases, and hands back what is left of those that it has.
    pub fn drain(&mut self) {
        self.is_draining = true;
        let leases: Vec<LeaseId> = self.tasks.iter().map(|task| task.order.lease).collect();
        self.recall(&leases);
    }

    /// Returns the next message to the leader. Earlier ones do not matter any more, nor do their
    /// replies.
    pub fn work(&mut self) -> Work {
        self.sequence += 1;
        self.is_waiting = true;
        self.sent = self.reports.len();
        Work {
            agent: self.id.clone(),
            boot: self.boot,
            sequence: self.sequence,
            term: self.term,
            rate: self.rate,
            is_draining: self.is_draining,
            holds: self.tasks.iter().map(|task| task.order.lease).collect(),
            reports: self.reports.clone(),
        }
    }

    /// Takes the reply to the message with this number.
    pub fn orders(&mut self, sequence: u64, orders: Orders, now: Duration) {
        if orders.term > self.term {
            self.follow(orders.term);
            return;
        }
        if orders.term != self.term || sequence != self.sequence || !self.is_waiting {
            return;
        }
        self.is_waiting = false;
        self.reports.drain(..std::mem::take(&mut self.sent));
        self.tasks
            .retain(|task| !orders.over.contains(&task.order.lease));
        let new = orders.leases.into_iter().map(|order| Task {
            tried: order.range.start,
            order,
            hits: Vec::new(),
            took: Duration::ZERO,
            since: now,
        });
        self.tasks.extend(new);
        self.recall(&orders.recalls);
    }

    /// Reports these leases as far as they are tried, and begins no more of them.
    pub fn recall(&mut self, leases: &[LeaseId]) {
        let (recalled, others) = std::mem::take(&mut self.tasks)
            .into_iter()
            .partition(|task| leases.contains(&task.order.lease));
        self.tasks = others;
        self.reports.extend(recalled.into_iter().map(Task::report));
    }

    /// Returns the lease to try next, from [`Task::tried`] on.
    #[must_use]
    pub fn next(&self) -> Option<&Task> {
        self.tasks.front()
    }

    /// Records that secrets of a lease were tried: from its [`Task::tried`] to `tried`, in `took`.
    /// Ignores a lease that the agent does not have any more.
    pub fn tried(&mut self, lease: LeaseId, tried: Index, hits: &[Index], took: Duration) {
        let task = self.tasks.iter().position(|task| task.order.lease == lease);
        let Some(position) = task else { return };
        let task = &mut self.tasks[position];
        task.tried = tried;
        task.hits.extend(hits);
        task.took += took;
        let is_done = tried >= task.order.range.end
            || task.hits.len() >= task.order.hit_limit
            || task.took >= task.order.planned * REPORTED_AFTER;
        if is_done && let Some(task) = self.tasks.remove(position) {
            self.reports.push(task.report());
        }
    }

    /// Drops leases that take too long: others have them by now. `now` is on a clock that also
    /// counts the time for which the machine was suspended.
    pub fn drop_late(&mut self, now: Duration) {
        let mut begins = None;
        self.tasks.retain(|task| {
            // A lease begins when the one before it should be done.
            let begin = begins.unwrap_or(task.since).max(task.since);
            let due = begin + task.order.planned * MOST_OVERTIME;
            begins = Some(due);
            now < due
        });
    }

    /// Whether there is something to tell the leader at once.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.reports.len() > self.sent
    }

    /// Whether a draining agent has nothing left to report.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_draining && self.tasks.is_empty() && self.reports.is_empty()
    }
}

impl Task {
    fn report(self) -> Report {
        Report {
            lease: self.order.lease,
            tried: self.tried,
            hits: self.hits,
            took: self.took,
        }
    }
}

//! An agent: its leases, and its messages to the leader.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use hashfinder_search::{Index, LeaseId, QuerySet, TaskId, Tried};

use crate::{
    messages::{AgentId, Orders, Report, Term, Work},
    roster::SILENT_AFTER,
};

/// Factor by which trying a lease may take longer than planned before the agent reports the part
/// that it has tried: the leader believes that it is faster than it is.
const REPORTED_AFTER: u32 = 2;

/// Factor by which a lease may take longer than planned before the agent drops it unreported, but
/// at least [`SILENT_AFTER`]: the machine was suspended, and another agent has the lease.
const DROPPED_AFTER: u32 = 3;

/// Maximum time between two messages. After a longer silence the leader assumes that the agent is
/// gone.
const SPEAKS_EVERY: Duration = Duration::from_secs(1);

/// Time after which a reply that has not arrived counts as lost. After each one that does not
/// arrive in time, it is doubled, up to [`SPEAKS_EVERY`]: a leader that is slow must not get more
/// messages because of that.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// Number of sets of queries, and so of planned filters, that an agent keeps.
const MOST_SETS: usize = 16;

/// With less work than this in hand, the agent reports at once, to get more: longer than a reply
/// takes.
const LEAST_IN_HAND: Duration = Duration::from_millis(200);

/// The state of an agent. What tries the secrets is elsewhere: it carries out [`Command`]s, and
/// says when a task is [done](Agent::done).
#[derive(Clone, Debug)]
pub struct Agent {
    id: AgentId,
    term: Term,
    /// Number of the last message, and when it was sent.
    sequence: u64,
    sent_at: Option<Duration>,
    /// Number of the latest message whose reply has arrived, and when that was.
    answered: u64,
    answered_at: Duration,
    /// Time after which a reply counts as lost.
    reply_timeout: Duration,
    rate: f64,
    version: Arc<str>,
    is_draining: bool,
    /// Whether the leader has replied to a message that announced this.
    has_announced: bool,
    /// Whether there may be work for an agent that has none.
    is_woken: bool,
    /// Leases to try, the first one first.
    leases: VecDeque<Held>,
    /// Number of the last task.
    last_task: TaskId,
    /// Sets of queries, the one that was used last at the end. Each term numbers its own.
    sets: Vec<(Term, u64, QuerySet)>,
    /// Reports that the leader has not replied to, with the number of the first message that had
    /// them; 0 before that.
    reports: Vec<(u64, Report)>,
    /// Whether an unsent report should be sent at once.
    is_urgent: bool,
    /// Whether the leader may have an urgent message.
    is_called: bool,
    commands: Vec<Command>,
}

/// What to do with a task.
#[derive(Clone, Debug)]
pub enum Command {
    /// Try it, after all tasks before it.
    Try(Task),
    /// Stop trying it. It then is [done](Agent::done), as far as it is tried.
    Stop(TaskId),
}

/// The secrets of a lease, for what tries them.
#[derive(Clone, Debug)]
pub struct Task {
    /// Number of the task. It is never used again, other than that of the lease: each term numbers
    /// its leases from the start, and a task of an earlier term may still be running.
    pub id: TaskId,
    /// The secrets to try.
    pub range: Range<Index>,
    /// The queries whose names to look for.
    pub set: QuerySet,
    /// Number of hits after which to stop.
    pub hit_limit: usize,
}

/// A lease at an agent.
#[derive(Clone, Debug)]
struct Held {
    task: TaskId,
    lease: LeaseId,
    planned: Duration,
    /// When it became the first one.
    began: Option<Duration>,
    is_stopping: bool,
}

impl Agent {
    /// Creates an agent without leases. No other agent may have the same ID, nor may an earlier
    /// process of this machine have had it. `rate` is how many hashes of a fast kernel it computes
    /// per second. `version` is for people.
    #[must_use]
    pub fn new(id: AgentId, rate: f64, version: Arc<str>) -> Agent {
        Agent {
            id,
            term: Term::default(),
            sequence: 0,
            sent_at: None,
            answered: 0,
            answered_at: Duration::ZERO,
            reply_timeout: REPLY_TIMEOUT,
            rate,
            version,
            is_draining: false,
            has_announced: false,
            is_woken: false,
            leases: VecDeque::new(),
            last_task: 0,
            sets: Vec::new(),
            reports: Vec::new(),
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
            self.follow(term, now);
        }
    }

    /// Whether the leader has not replied for so long that the agent should look for another one.
    #[must_use]
    pub fn is_lost(&self, now: Duration) -> bool {
        now.saturating_sub(self.answered_at) >= SILENT_AFTER
    }

    /// Follows the leader of a term. What the agent has from another leader is of no use.
    fn follow(&mut self, term: Term, now: Duration) {
        if term == self.term {
            return;
        }
        self.term = term;
        for held in self.leases.drain(..) {
            self.commands.push(Command::Stop(held.task));
        }
        self.reports.clear();
        self.answered = self.sequence;
        self.answered_at = now;
        self.reply_timeout = REPLY_TIMEOUT;
        self.is_woken = true;
    }

    /// Takes a notice of the leader: leases to stop now, and to report as far as they are tried.
    /// Without any, it means that there may be work.
    pub fn notice(&mut self, recalls: &[LeaseId]) {
        self.is_woken |= recalls.is_empty();
        self.recall(recalls);
    }

    /// Takes no more leases, and hands back what is left of those that it has.
    pub fn drain(&mut self) {
        if self.is_draining {
            return;
        }
        self.is_draining = true;
        self.is_woken = true;
        self.stop_all();
    }

    /// Whether the agent takes no more leases, because it was told to [drain](Self::drain), here or
    /// by the leader.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    fn stop_all(&mut self) {
        let leases: Vec<LeaseId> = self.leases.iter().map(|held| held.lease).collect();
        self.recall(&leases);
    }

    /// Whether a reply is awaited.
    fn is_waiting(&self) -> bool {
        self.answered < self.sequence
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
        if self.is_waiting() && since < self.reply_timeout {
            return false;
        }
        // A reply that is still awaited here was lost.
        let has_news = self.is_waiting() || self.reports.iter().any(|(sent, _)| *sent == 0);
        let wants_work = self.is_woken && self.leases.is_empty();
        self.is_called
            || wants_work
            || has_news && (self.is_urgent || self.in_hand(now) < LEAST_IN_HAND)
    }

    /// Returns how long the leases in hand should still take.
    fn in_hand(&self, now: Duration) -> Duration {
        let planned = self.leases.iter().map(|held| held.planned);
        let planned = planned.fold(Duration::ZERO, Duration::saturating_add);
        let began = self.leases.front().and_then(|first| first.began);
        planned.saturating_sub(began.map_or(Duration::ZERO, |began| now.saturating_sub(began)))
    }

    /// Returns the next message to the leader.
    pub fn work(&mut self, now: Duration) -> Work {
        if self.is_waiting() {
            self.reply_timeout = (self.reply_timeout * 2).min(SPEAKS_EVERY);
        }
        self.sequence += 1;
        self.sent_at = Some(now);
        self.is_woken = false;
        self.is_urgent = false;
        self.is_called = false;
        for (sent, _) in &mut self.reports {
            if *sent == 0 {
                *sent = self.sequence;
            }
        }
        let known = self.sets.iter().filter(|(term, ..)| *term == self.term);
        Work {
            agent: self.id.clone(),
            sequence: self.sequence,
            answered: self.answered,
            term: self.term,
            rate: self.rate,
            version: Arc::clone(&self.version),
            is_draining: self.is_draining,
            holds: self.leases.iter().map(|held| held.lease).collect(),
            reports: self
                .reports
                .iter()
                .map(|(_, report)| report.clone())
                .collect(),
            knows: known.map(|(_, number, _)| *number).collect(),
        }
    }

    /// Takes the reply to this message. Replies that come after the reply to a later message are
    /// ignored: the leader has taken their leases back.
    pub fn orders(&mut self, work: &Work, orders: Orders, now: Duration) {
        if orders.term != self.term {
            self.heard(orders.term, now);
            return;
        }
        if work.term != self.term || work.sequence <= self.answered {
            return;
        }
        // The leases of replies that were lost, or overtaken, should be dealt again soon.
        self.is_called |= work.sequence > self.answered + 1;
        self.answered = work.sequence;
        self.answered_at = now;
        if !self.is_waiting() {
            self.reply_timeout = REPLY_TIMEOUT;
        }
        self.has_announced |= work.is_draining;
        self.reports
            .retain(|(sent, _)| *sent == 0 || *sent > work.sequence);
        let commands = &mut self.commands;
        self.leases.retain(|held| {
            let is_over = orders.over.contains(&held.lease);
            if is_over {
                commands.push(Command::Stop(held.task));
            }
            !is_over
        });
        for set in &orders.sets {
            self.sets
                .retain(|(term, number, _)| (*term, *number) != (self.term, set.number));
            // Leases of a set that cannot be searched for are handed back.
            if let Some(queries) = QuerySet::new(&set.queries) {
                let queries = queries.ending_at(set.ending);
                self.sets.push((self.term, set.number, queries));
            }
        }
        for order in orders.leases {
            let is_this = |(term, number, _): &(Term, u64, QuerySet)| {
                (*term, *number) == (self.term, order.set)
            };
            let Some(place) = self.sets.iter().position(is_this) else {
                let untried = Report {
                    lease: order.lease,
                    tried: order.range.start,
                    hits: Vec::new(),
                    took: Duration::ZERO,
                    failed: false,
                };
                self.is_urgent = true;
                self.reports.push((0, untried));
                continue;
            };
            let used = self.sets.remove(place);
            let set = used.2.clone();
            self.sets.push(used);
            self.last_task += 1;
            self.leases.push_back(Held {
                task: self.last_task,
                lease: order.lease,
                planned: order.planned,
                began: None,
                is_stopping: false,
            });
            self.commands.push(Command::Try(Task {
                id: self.last_task,
                range: order.range,
                set,
                hit_limit: order.hit_limit,
            }));
        }
        let too_many = self.sets.len().saturating_sub(MOST_SETS);
        self.sets.drain(..too_many);
        self.begin_first(now);
        self.recall(&orders.recalls);
        if orders.ends {
            self.drain();
        }
        if self.is_draining {
            // A message that was sent before brought them.
            self.stop_all();
        }
    }

    /// Stops these leases, to report them as far as they are tried.
    fn recall(&mut self, leases: &[LeaseId]) {
        let is_here = |lease| self.leases.iter().any(|held| held.lease == lease);
        if !leases.iter().all(|lease| is_here(*lease)) {
            // It may be in a reply that has not come yet. The next one repeats the recall.
            self.is_called = true;
        }
        for held in &mut self.leases {
            if leases.contains(&held.lease) && !held.is_stopping {
                held.is_stopping = true;
                self.commands.push(Command::Stop(held.task));
            }
        }
    }

    /// Returns what to do with tasks, in this order.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Records that a task is done: completely, or as far as it was tried when it was stopped.
    /// Ignores a task whose lease the agent does not have any more.
    pub fn done(&mut self, tried: Tried, now: Duration) {
        let is_this = |held: &Held| held.task == tried.task;
        let place = self.leases.iter().position(is_this);
        let Some(held) = place.and_then(|place| self.leases.remove(place)) else {
            return;
        };
        let Tried {
            tried,
            hits,
            took,
            failed,
            ..
        } = tried;
        self.is_urgent |= held.is_stopping || failed || !hits.is_empty();
        let report = Report {
            lease: held.lease,
            tried,
            hits,
            took,
            failed,
        };
        self.reports.push((0, report));
        self.begin_first(now);
    }

    fn begin_first(&mut self, now: Duration) {
        if let Some(first) = self.leases.front_mut() {
            first.began.get_or_insert(now);
        }
    }

    /// Stops a lease that takes too long, and drops it if that does not help. Call this ten times a
    /// second. `now` is on a clock that also counts the time for which the machine was suspended.
    pub fn tick(&mut self, now: Duration) {
        let Some(first) = self.leases.front() else {
            return;
        };
        let (lease, planned) = (first.lease, first.planned);
        let began = first.began.unwrap_or(now);
        let time = now.saturating_sub(began);
        if time >= SILENT_AFTER.max(planned.saturating_mul(DROPPED_AFTER)) {
            self.recall(&[lease]);
            self.leases.pop_front();
            self.begin_first(now);
        } else if time >= planned.saturating_mul(REPORTED_AFTER) {
            self.recall(&[lease]);
        }
    }

    /// Whether the agent has no leases.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether a draining agent has nothing left to report.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_draining && self.has_announced && self.leases.is_empty() && self.reports.is_empty()
    }
}

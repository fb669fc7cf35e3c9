//! Runs operations: which of them are searched, what is saved when, and how each ends. A state
//! machine without threads, clocks or files.
//!
//! ```text
//!   requests ─▶ ┌────────┐ ─▶ replies, snapshots
//!   wakes    ─▶ │ Runner │ ─▶ batch ─▶ Store::commit ─┐
//!   time     ─▶ └────────┘ ◀────────── committed ──────┘
//!                  │  ▲
//!            begin ▼  │ advance
//!                 searches
//! ```
//!
//! At most one batch is being committed. Everything that changes meanwhile is in the next one. What
//! a search has found leaves it only together with a checkpoint of the same moment, and both are
//! committed together. If a commit fails, the runner forgets everything, and continues from what
//! the store holds.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    mem,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use hashfinder_search::{Advance, Checkpoint, Index, Outcome};

use crate::{
    record::{Canceller, End, EndReason, Millis, Name, Record},
    store::{Change, Creation, Rejection, StoreError},
};

/// How often progress is saved, and for how long operations run without that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Interval at which the progress of all operations is saved. A crash repeats at most this much
    /// searching, and what the commit before it takes.
    pub save_every: Duration,
    /// If a commit is under way, and the progress that is saved is older than this, operations
    /// pause until the commit is done. A crash repeats at most this much searching, and the slices
    /// that are being tried then, however slow the store is.
    pub pause_after: Duration,
    /// Why operations pause then, for people.
    pub slow: &'static str,
}

impl Pace {
    /// The pace on a disk: a crash repeats at most a second of searching.
    pub const DISK: Pace = Pace {
        save_every: Duration::from_millis(500),
        pause_after: Duration::from_millis(900),
        slow: "the server's disk is slow",
    };
}

/// How often a search may begin without any progress being saved. An operation that crashes the
/// server does not crash it forever.
pub const BEGINS_WITHOUT_PROGRESS: u32 = 3;

/// If an operation has begun so often without progress, all operations are resumed one at a time,
/// so that only the one that crashes the server reaches [`BEGINS_WITHOUT_PROGRESS`].
const SUSPECT_FROM: u32 = 2;

/// When the first progress of a search is saved, after it has begun. It is earlier than
/// [`Pace::save_every`]: a crash before it counts against the operation.
const FIRST_SAVE: Duration = Duration::from_millis(100);

/// How often a search may fail without trying [`FAILURE_SPAN`] secrets in between: once beside
/// others, and once alone.
const FAILURES: u32 = 2;

/// Number of secrets that a search must try after a failure before it counts as progress. What made
/// the search fail lies nearer: this is as much as the engine tries beyond the frontier.
const FAILURE_SPAN: u64 = 1 << 28;

/// Pause before an operation is resumed again whose client has no room for it.
const RETRY: Duration = Duration::from_secs(1);

/// Minimum pause of an operation whose client's quota of hashes is spent. Unused quota is saved, so
/// a longer pause costs nothing, and a short one would resume the search every second.
const QUOTA_PAUSE: Duration = Duration::from_secs(10);

/// Number of candidates of one operation from which they are saved at once.
const MANY_CANDIDATES: usize = 128;

/// Maximum number of unsaved candidates of one operation. With more, its search waits.
const MOST_CANDIDATES: usize = 1024;

/// Maximum number of requests that wait for the commit under way to end. Each takes about a
/// kilobyte.
const MOST_REQUESTS: usize = 1000;

/// Maximum number of searches that begin before other work is done. To begin one may take some
/// milliseconds, and the progress of the others has to be saved in time.
const MOST_BEGINS: u32 = 32;

/// Interval of checks for revoked keys.
const CHECK_KEYS_EVERY: Duration = Duration::from_secs(1);

/// The time, on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Time since some fixed moment; never goes back.
    pub running: Duration,
    /// Time on the system's clock.
    pub wall: Millis,
}

/// What runs the searches of operations.
pub trait Host {
    /// A place among the searches of the server, and among those of a client.
    type Place;
    /// A search under way. Dropping it stops it.
    type Search: Search;

    /// Takes a place for a search of this client.
    ///
    /// # Errors
    ///
    /// [`Refused`] if there is none.
    fn reserve(&mut self, client: &str) -> Result<Self::Place, Refused>;

    /// Begins to search for an operation, from its checkpoint. `waker` is woken as
    /// [`ResumableSearch::advance`](hashfinder_search::ResumableSearch::advance) says.
    fn begin(
        &mut self,
        place: Self::Place,
        record: &Record,
        alone: bool,
        waker: Waker,
    ) -> Self::Search;

    /// Returns whether the credential of a client was revoked.
    fn is_revoked(&mut self, client: &str) -> bool;
}

/// A search under way.
pub trait Search {
    /// Takes what is new, as
    /// [`ResumableSearch::advance`](hashfinder_search::ResumableSearch::advance) does.
    fn advance(&mut self) -> Advance;

    /// Stops the search. The first cause counts.
    fn stop(&mut self, cause: StopCause);

    /// Returns its id in the list of searches.
    fn id(&self) -> Option<Arc<str>>;
}

/// Why the search of an operation is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The operation was cancelled.
    Cancelled(Canceller),
    /// It found the maximum number of candidates.
    TooManyCandidates,
    /// It cannot be saved at the moment, and is resumed later.
    Paused,
    /// The server is shutting down.
    Draining,
}

/// Why a search does not begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The server has its maximum number of searches.
    Full,
    /// The client has its maximum number of searches.
    TooManySearches,
    /// The client's quota of hashes is spent.
    Quota {
        /// Time until a part of it is available again.
        retry_after: Duration,
    },
}

/// What an operation is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a place, for this reason.
    Queued(Cow<'static, str>),
    /// Its search runs.
    Running,
    /// It is paused, for this reason, and continues by itself.
    Paused(Arc<str>),
    /// It has ended.
    Ended,
}

/// An operation as clients see it: what is saved of it, and what it is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is saved.
    pub record: Arc<Record>,
    /// What it is doing.
    pub phase: Phase,
    /// Id of its search in the list of searches, while it runs.
    pub search: Option<Arc<str>>,
}

impl Snapshot {
    /// Creates the snapshot of an operation that does not run.
    #[must_use]
    pub fn of(record: Record, why: &'static str) -> Snapshot {
        let phase = match record.end {
            Some(_) => Phase::Ended,
            None => Phase::Queued(why.into()),
        };
        Snapshot {
            record: Arc::new(record),
            phase,
            search: None,
        }
    }
}

/// Why a request about an operation fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The operation was not created.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The operation has not ended, so it cannot be deleted.
    #[error("the operation has not ended; cancel it first")]
    NotEnded,
    /// Operations cannot be saved or read at the moment.
    #[error("operations cannot be saved at the moment: {0}")]
    Unavailable(Arc<str>),
    /// The saved operations are damaged.
    #[error("the saved operations are damaged: {0}")]
    Damaged(Arc<str>),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// The response to a request.
pub type Reply = Result<Replied, Error>;

/// What a successful request did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replied {
    /// The operation was created.
    Started(Snapshot),
    /// The same request created this operation before.
    Existing(Name),
    /// The operation was cancelled or deleted, or had ended; or the runner has drained.
    Done,
}

/// Whether operations can be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// They can.
    Working,
    /// The disk is full. Only cancellations and deletions are saved.
    Full(Arc<str>),
    /// They are being loaded.
    Loading,
    /// They cannot be saved at the moment.
    Unavailable(Arc<str>),
    /// The saved operations are damaged.
    Damaged(Arc<str>),
}

impl Health {
    pub(crate) fn error(&self) -> Option<Error> {
        match self {
            Health::Working => None,
            Health::Loading => Some(Error::Unavailable("they are being loaded".into())),
            Health::Full(why) | Health::Unavailable(why) => {
                Some(Error::Unavailable(Arc::clone(why)))
            }
            Health::Damaged(why) => Some(Error::Damaged(Arc::clone(why))),
        }
    }
}

/// What to do after a change, outside of the runner.
#[derive(Debug)]
pub struct Effects<T> {
    /// Replies to requests.
    pub replies: Vec<(T, Reply)>,
    /// Operations that have changed. Without a snapshot, the store has the latest state.
    pub changed: Vec<(Name, Option<Snapshot>)>,
    /// Operations that have ended, and this is saved.
    pub ended: Vec<Arc<Record>>,
}

impl<T> Default for Effects<T> {
    fn default() -> Effects<T> {
        Effects {
            replies: Vec::new(),
            changed: Vec::new(),
            ended: Vec::new(),
        }
    }
}

/// Numbers of operations that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that run.
    pub running: usize,
    /// Those that wait for a place.
    pub queued: usize,
    /// Those that are paused.
    pub paused: usize,
}

/// Runs operations. `T` identifies a request that awaits a reply.
pub struct Runner<H: Host, T> {
    host: H,
    pace: Pace,
    waker: Box<dyn Fn(&Name) -> Waker + Send>,
    /// Maximum number of candidates of an operation.
    most_candidates: u64,
    health: Health,
    /// Operations that have not ended, or whose end is not saved yet.
    live: HashMap<Name, Live<H, T>>,
    /// Those that do not run, in the order of their creation.
    queue: BTreeSet<(Millis, Name)>,
    /// Clients whose operations wait, until when, and why.
    waits: HashMap<Arc<str>, (Duration, &'static str)>,
    /// Cancellations of operations that are being created.
    early_cancels: Vec<(Name, Canceller, String, T)>,
    /// Requests for the next batch.
    requests: Vec<Pending<H, T>>,
    in_flight: Option<InFlight<H, T>>,
    /// Whether operations are paused because a commit takes long.
    is_stalled: bool,
    /// When the progress was collected that is saved.
    saved_at: Duration,
    /// Whether the store has not been opened yet, so that a crash may have ended the last process.
    is_new: bool,
    next_save: Duration,
    next_key_check: Duration,
    next_trial: Duration,
    /// Whether more searches can begin, after other work.
    has_more: bool,
    /// Requests to drain.
    draining: Vec<T>,
    is_draining: bool,
    effects: Effects<T>,
}

struct Live<H: Host, T> {
    /// What is saved.
    saved: Arc<Record>,
    /// What is to be saved.
    record: Record,
    /// Candidates that are not in a batch yet.
    candidates: Vec<Index>,
    /// The last candidate; the highest index if it is not known.
    last_candidate: Option<Index>,
    /// Whether `record` has changed since the last batch.
    is_dirty: bool,
    /// Whether it must not wait for the next regular batch.
    is_urgent: bool,
    search: Option<H::Search>,
    /// A place for its search, while the begin of the search is being saved.
    place: Option<H::Place>,
    /// Number of resumes that the last batch with this operation saves. It may be under way.
    sent_resumes: u32,
    /// How often the server crashed when its search had begun and made no progress. While it
    /// runs, one more is saved.
    crashes: u32,
    /// Whether its search must share nothing.
    is_alone: bool,
    /// How many secrets had been tried when its search failed last.
    failed_at: u64,
    /// Whether its search waits until its candidates are saved.
    is_full: bool,
    /// Why it does not run.
    why: &'static str,
    cancels: Vec<T>,
    /// Why it was cancelled, for people.
    message: String,
}

enum Pending<H: Host, T> {
    Create(Box<Record>, Option<H::Place>, T),
    Delete(Name, T),
}

struct InFlight<H: Host, T> {
    since: Duration,
    /// Whether it has the progress of all operations.
    is_regular: bool,
    requests: Vec<Pending<H, T>>,
    updates: Vec<Record>,
}

const WAITS_FOR_PLACE: &str = "the server runs its maximum number of searches";
const WAITS_FOR_CLIENT: &str = "its client runs its maximum number of searches";
const WAITS_FOR_TRIAL: &str =
    "operations begin one at a time, because one of them may have crashed the server";
const IS_ABOUT_TO_BEGIN: &str = "its search is about to begin";
const WAITS_FOR_QUOTA: &str = "its client's quota of hashes is spent";

impl<H: Host, T> Runner<H, T> {
    /// Creates a runner that waits for [`opened`](Self::opened). `waker` returns the waker that
    /// leads to a call of [`wake`](Self::wake) for an operation.
    pub fn new(
        host: H,
        pace: Pace,
        most_candidates: u64,
        waker: impl Fn(&Name) -> Waker + Send + 'static,
    ) -> Runner<H, T> {
        Runner {
            host,
            pace,
            waker: Box::new(waker),
            most_candidates,
            health: Health::Loading,
            live: HashMap::new(),
            queue: BTreeSet::new(),
            waits: HashMap::new(),
            early_cancels: Vec::new(),
            requests: Vec::new(),
            in_flight: None,
            is_stalled: false,
            saved_at: Duration::ZERO,
            is_new: true,
            next_save: Duration::ZERO,
            next_key_check: Duration::ZERO,
            next_trial: Duration::ZERO,
            has_more: false,
            draining: Vec::new(),
            is_draining: false,
            effects: Effects::default(),
        }
    }

    /// Returns whether operations can be saved.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns what has to happen because of earlier calls.
    pub fn take_effects(&mut self) -> Effects<T> {
        mem::take(&mut self.effects)
    }

    /// Counts the operations that have not ended.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for live in self.live.values() {
            match self.phase(live) {
                Phase::Running => counts.running += 1,
                Phase::Queued(_) => counts.queued += 1,
                Phase::Paused(_) => counts.paused += 1,
                Phase::Ended => {}
            }
        }
        counts
    }

    /// Returns how long the commit under way has taken.
    #[must_use]
    pub fn commit_lag(&self, now: Now) -> Duration {
        let since = self.in_flight.as_ref().map(|batch| batch.since);
        since.map_or(Duration::ZERO, |since| now.running.saturating_sub(since))
    }

    /// The store was opened, and holds these unfinished operations. `full` says why only
    /// cancellations and deletions can be saved, if that is so.
    pub fn opened(&mut self, records: Vec<Record>, full: Option<Arc<str>>, now: Now) {
        self.health = full.map_or(Health::Working, Health::Full);
        self.is_stalled = false;
        let mut before = mem::take(&mut self.live);
        self.queue.clear();
        for record in records {
            let mut live = Live::new(record);
            if let Some(before) = before.remove(&live.record.name) {
                // The process has not crashed since. The commit that failed may have saved
                // progress.
                let has_progress = live.record.hashes() > before.saved.hashes();
                live.crashes = if has_progress { 0 } else { before.crashes };
            } else if !self.is_new {
                live.crashes = 0;
            }
            if self.health == Health::Working {
                live.uncount();
            }
            self.queue
                .insert((live.record.created, live.record.name.clone()));
            self.live.insert(live.record.name.clone(), live);
        }
        for name in before.into_keys() {
            self.effects.changed.push((name, None));
        }
        self.is_new = false;
        let cancelled = self.live.values().filter_map(|live| {
            let by = live.record.cancel?;
            Some((live.record.name.clone(), by))
        });
        // A crash came between a cancellation and the end of the search.
        for (name, by) in cancelled.collect::<Vec<_>>() {
            self.end(&name, by.into(), String::new(), now);
        }
        self.next_save = now.running + self.pace.save_every;
        self.saved_at = now.running;
        self.begin_searches(now);
        for name in self.live.keys().cloned().collect::<Vec<_>>() {
            self.publish(&name);
        }
    }

    /// A commit failed, or the store could not be opened. Everything that was not saved is
    /// forgotten, until the store is [`opened`](Self::opened) again.
    pub fn failed(&mut self, error: &StoreError) {
        let why: Arc<str> = error.to_string().into();
        self.health = match error {
            StoreError::Damaged(_) => Health::Damaged(why),
            StoreError::Full(_) | StoreError::Unavailable(_) => Health::Unavailable(why),
        };
        let error = self.health.error().unwrap_or(Error::Draining);
        let batch = self.in_flight.take();
        let requests = batch.into_iter().flat_map(|batch| batch.requests);
        for request in requests.chain(mem::take(&mut self.requests)) {
            let (Pending::Create(_, _, ticket) | Pending::Delete(_, ticket)) = request;
            self.effects.replies.push((ticket, Err(error.clone())));
        }
        for (_, _, _, ticket) in mem::take(&mut self.early_cancels) {
            self.effects.replies.push((ticket, Err(error.clone())));
        }
        for live in self.live.values_mut() {
            for ticket in live.cancels.drain(..) {
                self.effects.replies.push((ticket, Err(error.clone())));
            }
            if let Some(mut search) = live.search.take() {
                search.stop(StopCause::Paused);
            }
            live.place = None;
        }
        self.queue.clear();
        for name in self.live.keys().cloned().collect::<Vec<_>>() {
            self.publish(&name);
        }
        self.reply_drained();
    }

    /// The disk has room again.
    pub fn has_room(&mut self, now: Now) {
        if let Health::Full(_) = self.health {
            self.health = Health::Working;
            // Only now can this be saved.
            for live in self.live.values_mut() {
                live.uncount();
            }
            self.begin_searches(now);
            for name in self.live.keys().cloned().collect::<Vec<_>>() {
                self.publish(&name);
            }
        }
    }

    /// Starts an operation. The reply comes once it is saved.
    pub fn start(&mut self, mut record: Record, ticket: T, now: Now) {
        let error = self.health.error();
        let error = error.or(self.is_draining.then_some(Error::Draining));
        if let Some(error) = error.or_else(|| self.is_overloaded()) {
            self.effects.replies.push((ticket, Err(error)));
            return;
        }
        // If there is a place, the begin of the search is saved together with the operation. While
        // another commit is under way, it might take long, and a place must not wait for it.
        let may_begin = self.queue.is_empty()
            && self.in_flight.is_none()
            && !self.is_one_at_a_time()
            && self.can_search();
        let place = may_begin.then(|| self.host.reserve(&record.request.client));
        let place = place.and_then(Result::ok);
        record.resumes = u32::from(place.is_some());
        record.updated = now.wall;
        let request = Pending::Create(Box::new(record), place, ticket);
        self.requests.push(request);
    }

    /// Cancels an operation. Its search is stopped at once; the reply comes once its end is saved.
    pub fn cancel(&mut self, name: &Name, by: Canceller, message: String, ticket: T, now: Now) {
        let error = match &self.health {
            // The reserve has room for it.
            Health::Full(_) => None,
            health => health.error(),
        };
        if let Some(error) = error {
            self.effects.replies.push((ticket, Err(error)));
            return;
        }
        if self.is_being_created(name) {
            // Readers may see an operation a moment before its commit is reported.
            self.early_cancels.push((name.clone(), by, message, ticket));
            return;
        }
        match self.live.get_mut(name) {
            Some(live) => live.cancels.push(ticket),
            // It has ended.
            None => self.effects.replies.push((ticket, Ok(Replied::Done))),
        }
        self.cancel_now(name, by, message, now);
    }

    fn is_being_created(&self, name: &Name) -> bool {
        let in_flight = self.in_flight.iter().flat_map(|batch| &batch.requests);
        let mut requests = in_flight.chain(&self.requests);
        requests.any(|request| match request {
            Pending::Create(record, ..) => record.name == *name,
            Pending::Delete(..) => false,
        })
    }

    /// Returns an error if no more requests may wait for the store.
    fn is_overloaded(&self) -> Option<Error> {
        if self.is_stalled {
            return Some(Error::Unavailable(self.pace.slow.into()));
        }
        let is_full = self.requests.len() >= MOST_REQUESTS;
        is_full.then(|| Error::Unavailable("too many requests are waiting".into()))
    }

    fn cancel_now(&mut self, name: &Name, by: Canceller, message: String, now: Now) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        if live.record.end.is_some() || live.record.cancel.is_some() {
            return;
        }
        live.record.cancel = Some(by);
        live.message = message;
        live.is_dirty = true;
        live.is_urgent = true;
        match &mut live.search {
            Some(search) => {
                search.stop(StopCause::Cancelled(by));
                self.collect(name, now);
            }
            None => self.end_cancelled(name, by, now),
        }
    }

    /// Deletes an operation that has ended.
    pub fn delete(&mut self, name: &Name, ticket: T) {
        let error = match &self.health {
            Health::Full(_) => None,
            health => health.error(),
        };
        let is_unfinished = self.live.contains_key(name) || self.is_being_created(name);
        let error = error.or(is_unfinished.then_some(Error::NotEnded));
        let error = error.or_else(|| self.is_overloaded());
        match error {
            Some(error) => self.effects.replies.push((ticket, Err(error))),
            None => self.requests.push(Pending::Delete(name.clone(), ticket)),
        }
    }

    /// A search has ended, or half of its queue is full.
    pub fn wake(&mut self, name: &Name, now: Now) {
        self.collect(name, now);
    }

    /// Stops all searches and saves their progress. The reply comes once that is done. From now on,
    /// no search begins.
    pub fn drain(&mut self, ticket: T, now: Now) {
        self.is_draining = true;
        self.draining.push(ticket);
        self.stop_all(StopCause::Draining, now);
        self.reply_drained();
    }

    /// Returns when [`tick`](Self::tick) and [`next_batch`](Self::next_batch) have to be called
    /// again, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        if !self.can_write() {
            return self.next_key_check;
        }
        if self.has_more {
            return Duration::ZERO;
        }
        let mut deadline = self.next_save.min(self.next_key_check);
        if self.live.values().any(Live::is_on_trial) {
            deadline = deadline.min(self.next_trial);
        }
        if self.in_flight.is_some() {
            // Nothing can be saved now.
            deadline = self.next_key_check;
            if !self.is_stalled {
                deadline = deadline.min(self.saved_at + self.pace.pause_after);
            }
        }
        deadline
    }

    /// Does what is due: pauses operations while a commit takes long, resumes those that waited,
    /// and checks for revoked keys.
    pub fn tick(&mut self, now: Now) {
        let is_late = now.running >= self.saved_at + self.pace.pause_after;
        if self.in_flight.is_some() && is_late && !self.is_stalled {
            self.is_stalled = true;
            self.stop_all(StopCause::Paused, now);
        }
        if now.running >= self.next_trial {
            self.next_trial = now.running + FIRST_SAVE;
            let on_trial = self.live.values().filter(|live| live.is_on_trial());
            for name in on_trial
                .map(|live| live.record.name.clone())
                .collect::<Vec<_>>()
            {
                self.collect(&name, now);
                if let Some(live) = self.live.get_mut(&name) {
                    live.is_urgent |= live.is_dirty;
                }
            }
        }
        if now.running >= self.next_key_check {
            self.next_key_check = now.running + CHECK_KEYS_EVERY;
            self.cancel_revoked(now);
        }
        self.begin_searches(now);
    }

    fn cancel_revoked(&mut self, now: Now) {
        if self.health != Health::Working {
            return;
        }
        let mut revoked: HashMap<Arc<str>, bool> = HashMap::new();
        let mut names = Vec::new();
        for live in self
            .live
            .values()
            .filter(|live| live.record.cancel.is_none())
        {
            let client = &live.record.request.client;
            let host = &mut self.host;
            let is_revoked = revoked.entry(Arc::clone(client));
            if *is_revoked.or_insert_with(|| host.is_revoked(client)) {
                names.push(live.record.name.clone());
            }
        }
        for name in names {
            self.cancel_now(&name, Canceller::Revocation, String::new(), now);
        }
    }

    /// Returns what to commit now, if there is something and no commit is under way. The result
    /// must be passed to [`committed`](Self::committed) or [`failed`](Self::failed).
    pub fn next_batch(&mut self, now: Now) -> Option<Vec<Change>> {
        if self.in_flight.is_some() || !self.can_write() {
            return None;
        }
        let is_regular = now.running >= self.next_save;
        if is_regular {
            self.next_save = now.running + self.pace.save_every;
            let searched = self.live.values().filter(|live| live.search.is_some());
            let names: Vec<Name> = searched.map(|live| live.record.name.clone()).collect();
            for name in names {
                self.collect(&name, now);
            }
        }
        let mut changes = Vec::new();
        for request in &self.requests {
            changes.push(match request {
                Pending::Create(record, _, _) => Change::Create((**record).clone()),
                Pending::Delete(name, _) => Change::Delete(name.clone()),
            });
        }
        let mut updates = Vec::new();
        let due = self.live.values_mut();
        for live in due.filter(|live| live.is_dirty && (is_regular || live.is_urgent)) {
            live.is_dirty = false;
            live.is_urgent = false;
            live.record.updated = now.wall;
            live.sent_resumes = live.record.resumes;
            updates.push(live.record.clone());
            changes.push(Change::Update {
                record: live.record.clone(),
                candidates: mem::take(&mut live.candidates),
            });
        }
        if changes.is_empty() {
            if is_regular {
                self.saved_at = now.running;
            }
            return None;
        }
        self.in_flight = Some(InFlight {
            since: now.running,
            is_regular,
            requests: mem::take(&mut self.requests),
            updates,
        });
        Some(changes)
    }

    /// The last batch was committed. `creations` says what became of each [`Change::Create`].
    pub fn committed(&mut self, creations: Vec<Creation>, now: Now) {
        let Some(batch) = self.in_flight.take() else {
            return;
        };
        let was_stalled = mem::take(&mut self.is_stalled);
        if batch.is_regular {
            self.saved_at = batch.since;
        }
        for record in batch.updates {
            self.saved(record);
        }
        let mut creations = creations.into_iter();
        let mut started = Vec::new();
        for request in batch.requests {
            match request {
                Pending::Delete(name, ticket) => {
                    self.effects.changed.push((name, None));
                    self.effects.replies.push((ticket, Ok(Replied::Done)));
                }
                Pending::Create(record, place, ticket) => {
                    let reply = match creations.next() {
                        Some(Creation::New) => {
                            started.push((record.name.clone(), ticket));
                            self.created(*record, place, now);
                            continue;
                        }
                        Some(Creation::Existing(name)) => Ok(Replied::Existing(name)),
                        Some(Creation::Rejected(why)) => Err(why.into()),
                        None => Err(Error::Unavailable("it returned no result".into())),
                    };
                    self.effects.replies.push((ticket, reply));
                }
            }
        }
        let full = self
            .live
            .values_mut()
            .filter_map(|live| mem::take(&mut live.is_full).then(|| live.record.name.clone()));
        for name in full.collect::<Vec<_>>() {
            self.collect(&name, now);
        }
        self.begin_searches(now);
        for (name, ticket) in started {
            let snapshot = self.snapshot(&self.live[&name]);
            let reply = Ok(Replied::Started(snapshot.clone()));
            self.effects.replies.push((ticket, reply));
            self.effects.changed.push((name, Some(snapshot)));
        }
        if was_stalled {
            for name in self.live.keys().cloned().collect::<Vec<_>>() {
                self.publish(&name);
            }
        }
        self.reply_drained();
    }

    fn saved(&mut self, record: Record) {
        let name = record.name.clone();
        let Some(live) = self.live.get_mut(&name) else {
            return;
        };
        if record.hashes() > live.saved.hashes() {
            live.crashes = 0;
        }
        let saved = Arc::new(record);
        live.saved = Arc::clone(&saved);
        self.publish(&name);
        if saved.end.is_none() {
            return;
        }
        self.effects.ended.push(saved);
        self.effects.changed.push((name.clone(), None));
        if let Some(live) = self.live.remove(&name) {
            let replies = live
                .cancels
                .into_iter()
                .map(|ticket| (ticket, Ok(Replied::Done)));
            self.effects.replies.extend(replies);
        }
    }

    fn created(&mut self, record: Record, place: Option<H::Place>, now: Now) {
        let name = record.name.clone();
        self.queue.insert((record.created, name.clone()));
        let mut live = Live::new(record);
        live.crashes = 0;
        live.place = place;
        if live.place.is_some() {
            live.why = IS_ABOUT_TO_BEGIN;
        } else {
            live.uncount();
        }
        self.live.insert(name.clone(), live);
        let is_of = |cancel: &mut (Name, Canceller, String, T)| cancel.0 == name;
        for (name, by, message, ticket) in
            self.early_cancels.extract_if(.., is_of).collect::<Vec<_>>()
        {
            self.cancel(&name, by, message, ticket, now);
        }
    }

    /// Whether an operation may have crashed the server so often that operations are resumed one at
    /// a time.
    fn is_one_at_a_time(&self) -> bool {
        let mut crashes = self.live.values().map(|live| live.crashes);
        crashes.any(|crashes| crashes >= SUSPECT_FROM)
    }

    /// Returns an operation that is on trial. Of several, it is one that runs, or the
    /// oldest.
    fn on_trial(&self) -> Option<Name> {
        let order = |live: &&Live<H, T>| {
            let record = &live.record;
            (live.search.is_none(), record.created, record.name.clone())
        };
        let first = self.live.values().filter(|live| live.is_on_trial());
        let first = first.min_by_key(order);
        first.map(|live| live.record.name.clone())
    }

    fn can_write(&self) -> bool {
        matches!(self.health, Health::Working | Health::Full(_))
    }

    fn can_search(&self) -> bool {
        self.health == Health::Working && !self.is_draining && !self.is_stalled
    }

    /// Begins the searches of operations that wait, the oldest first. The begin of a search is
    /// saved before it begins.
    fn begin_searches(&mut self, now: Now) {
        self.has_more = false;
        if !self.can_search() || self.queue.is_empty() {
            return;
        }
        let mut begun = 0;
        let mut on_trial = self.on_trial();
        let one_at_a_time = self.is_one_at_a_time();
        let mut is_full = false;
        self.waits.retain(|_, (until, _)| now.running < *until);
        for (created, name) in self.queue.clone() {
            let Some(live) = self.live.get_mut(&name) else {
                self.queue.remove(&(created, name));
                continue;
            };
            if one_at_a_time && on_trial.as_ref().is_some_and(|other| *other != name) {
                if mem::replace(&mut live.why, WAITS_FOR_TRIAL) != WAITS_FOR_TRIAL {
                    self.publish(&name);
                }
                continue;
            }
            if live.place.is_none() {
                let client = &live.record.request.client;
                let wait = self.waits.get(client).map(|(_, why)| *why);
                let wait = wait.or(is_full.then_some(WAITS_FOR_PLACE));
                let refused = match wait {
                    Some(why) => Err(why),
                    None => self.host.reserve(client).map_err(|refused| match refused {
                        Refused::Full => {
                            is_full = true;
                            WAITS_FOR_PLACE
                        }
                        Refused::TooManySearches => {
                            let until = now.running + RETRY;
                            let wait = (until, WAITS_FOR_CLIENT);
                            self.waits.insert(Arc::clone(client), wait);
                            WAITS_FOR_CLIENT
                        }
                        Refused::Quota { retry_after } => {
                            let until = now.running + retry_after.max(QUOTA_PAUSE);
                            let wait = (until, WAITS_FOR_QUOTA);
                            self.waits.insert(Arc::clone(client), wait);
                            WAITS_FOR_QUOTA
                        }
                    }),
                };
                let why = refused.as_ref().err().copied();
                let why = why.unwrap_or(IS_ABOUT_TO_BEGIN);
                let has_changed = mem::replace(&mut live.why, why) != why;
                live.place = refused.ok();
                if live.place.is_none() {
                    // Later ones may already have a place.
                    if has_changed {
                        self.publish(&name);
                    }
                    continue;
                }
                if live.crashes >= BEGINS_WITHOUT_PROGRESS {
                    let message = format!(
                        "it was resumed {BEGINS_WITHOUT_PROGRESS} times without any progress"
                    );
                    self.end(&name, EndReason::Failed, message, now);
                    continue;
                }
                if live.record.resumes <= live.crashes {
                    // Progress that is not saved yet counts, too: it is saved together with this.
                    live.record.resumes += 1;
                    live.is_dirty = true;
                    live.is_urgent = true;
                    on_trial = Some(name);
                    continue;
                }
            }
            if !live.is_counted() {
                continue;
            }
            if begun == MOST_BEGINS {
                self.has_more = true;
                break;
            }
            let Some(place) = live.place.take() else {
                continue;
            };
            begun += 1;
            let waker = (self.waker)(&name);
            let search = self.host.begin(place, &live.record, live.is_alone, waker);
            live.search = Some(search);
            self.queue.remove(&(created, name.clone()));
            self.publish(&name);
            // It may have ended at once.
            self.collect(&name, now);
        }
    }

    /// Stops all searches, and gives back the places of those that have not begun.
    fn stop_all(&mut self, cause: StopCause, now: Now) {
        let mut stopped = Vec::new();
        for live in self.live.values_mut() {
            if let Some(search) = &mut live.search {
                search.stop(cause);
                stopped.push(live.record.name.clone());
            } else {
                live.place = None;
                live.uncount();
            }
        }
        let in_flight = self.in_flight.iter_mut();
        let in_flight = in_flight.flat_map(|batch| &mut batch.requests);
        for request in in_flight.chain(&mut self.requests) {
            if let Pending::Create(_, place, _) = request {
                // Once the operation is created, its begin is taken back.
                *place = None;
            }
        }
        for name in stopped {
            self.collect(&name, now);
        }
    }

    /// Takes what is new from an operation's search.
    fn collect(&mut self, name: &Name, now: Now) {
        let most_candidates = self.most_candidates;
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        let Some(search) = &mut live.search else {
            return;
        };
        if live.candidates.len() >= MOST_CANDIDATES {
            live.is_full = true;
            return;
        }
        let advance = search.advance();
        let record = &mut live.record;
        let before = record.checkpoint.frontier();
        if advance.checkpoint != record.checkpoint {
            let before = record.hashes();
            record.checkpoint = advance.checkpoint;
            live.is_dirty = true;
            if record.hashes() > before {
                record.resumes = 0;
            }
            if record.hashes() >= live.failed_at.saturating_add(FAILURE_SPAN) {
                record.failures = 0;
            }
        }
        for candidate in advance.candidates {
            live.is_dirty = true;
            live.candidates.push(candidate.index);
            live.last_candidate = Some(candidate.index);
            record.candidates += 1;
            if record.candidates >= most_candidates {
                let (end, next) = (record.checkpoint.end(), candidate.index + 1);
                let left = Some(next..end).filter(|left| !left.is_empty());
                let left = left.into_iter().collect();
                let checkpoint = Checkpoint::restore(&record.request.query, left, &[], end);
                record.checkpoint = checkpoint.unwrap_or_else(|_| record.checkpoint.clone());
                let message = format!("it found {most_candidates} candidates, the maximum");
                search.stop(StopCause::TooManyCandidates);
                self.end(name, EndReason::TooManyCandidates, message, now);
                return;
            }
        }
        if live.candidates.len() >= MANY_CANDIDATES {
            live.is_urgent = true;
        }
        let Some(outcome) = advance.outcome else {
            return;
        };
        live.search = None;
        live.is_dirty = true;
        live.is_urgent = true;
        let created = live.record.created;
        match outcome {
            // A fleet has found it after later candidates, which are saved in order. It is the
            // result, but not one of the candidates.
            Outcome::Ideal(found)
                if found.index < before
                    && live.last_candidate.is_some_and(|last| last > found.index) =>
            {
                self.end(name, EndReason::Found, String::new(), now);
            }
            Outcome::Ideal(found) => {
                live.candidates.push(found.index);
                live.record.candidates += 1;
                self.end(name, EndReason::Found, String::new(), now);
            }
            Outcome::Exhausted => self.end(name, EndReason::KeyspaceExhausted, String::new(), now),
            Outcome::BudgetSpent(_) => self.end(name, EndReason::BudgetSpent, String::new(), now),
            Outcome::QuotaSpent { retry_after, .. } => {
                live.why = WAITS_FOR_QUOTA;
                let client = Arc::clone(&live.record.request.client);
                let until = now.running + retry_after.max(QUOTA_PAUSE);
                self.waits.insert(client, (until, WAITS_FOR_QUOTA));
                self.requeue(created, name, now);
            }
            Outcome::Stopped(_) => self.requeue(created, name, now),
            Outcome::Failed(_) => {
                live.record.failures += 1;
                live.failed_at = live.record.hashes();
                live.is_alone = true;
                if live.record.failures >= FAILURES {
                    let message = "its search failed twice; see the server's log".to_owned();
                    self.end(name, EndReason::Failed, message, now);
                } else {
                    self.requeue(created, name, now);
                }
            }
        }
    }

    /// Makes an operation wait for its next search, or ends it if it was cancelled.
    fn requeue(&mut self, created: Millis, name: &Name, now: Now) {
        let cancel = self.live.get(name).and_then(|live| live.record.cancel);
        if let Some(by) = cancel {
            self.end_cancelled(name, by, now);
        } else {
            if let Some(live) = self.live.get_mut(name) {
                live.uncount();
            }
            self.queue.insert((created, name.clone()));
            self.publish(name);
        }
    }

    fn end_cancelled(&mut self, name: &Name, by: Canceller, now: Now) {
        let live = self.live.get_mut(name);
        let message = live.map(|live| mem::take(&mut live.message));
        self.end(name, by.into(), message.unwrap_or_default(), now);
    }

    /// Ends an operation, as soon as that is saved. The first end counts.
    fn end(&mut self, name: &Name, reason: EndReason, message: String, now: Now) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        if live.record.end.is_none() {
            live.record.end = Some(End {
                at: now.wall,
                reason,
                message,
            });
        }
        live.search = None;
        live.place = None;
        live.is_dirty = true;
        live.is_urgent = true;
        self.queue.remove(&(live.record.created, name.clone()));
    }

    fn reply_drained(&mut self) {
        let is_saved = |live: &Live<H, T>| live.search.is_none() && !live.is_dirty;
        let is_done = !self.can_write()
            || self.in_flight.is_none()
                && self.requests.is_empty()
                && self.live.values().all(is_saved);
        if self.is_draining && is_done {
            let tickets = self.draining.drain(..);
            let replies = tickets.map(|ticket| (ticket, Ok(Replied::Done)));
            self.effects.replies.extend(replies);
        }
    }

    fn phase(&self, live: &Live<H, T>) -> Phase {
        if live.saved.end.is_some() {
            return Phase::Ended;
        }
        if live.search.is_some() {
            return Phase::Running;
        }
        match &self.health {
            Health::Working if self.is_draining => {
                Phase::Paused("the server is shutting down".into())
            }
            Health::Working if self.is_stalled => Phase::Paused(self.pace.slow.into()),
            Health::Working if live.why == WAITS_FOR_QUOTA => Phase::Paused(live.why.into()),
            Health::Working | Health::Loading => Phase::Queued(live.why.into()),
            Health::Full(why) | Health::Unavailable(why) | Health::Damaged(why) => {
                Phase::Paused(Arc::clone(why))
            }
        }
    }

    fn snapshot(&self, live: &Live<H, T>) -> Snapshot {
        Snapshot {
            record: Arc::clone(&live.saved),
            phase: self.phase(live),
            search: live.search.as_ref().and_then(Search::id),
        }
    }

    fn publish(&mut self, name: &Name) {
        if let Some(live) = self.live.get(name) {
            let snapshot = self.snapshot(live);
            self.effects.changed.push((name.clone(), Some(snapshot)));
        }
    }
}

impl<H: Host, T> Live<H, T> {
    /// Takes back that the search has begun: it has ended, or did not begin, without a crash. That
    /// is saved before another search begins.
    fn uncount(&mut self) {
        if self.record.resumes > self.crashes {
            self.record.resumes = self.crashes;
            self.is_dirty = true;
            self.is_urgent = true;
        }
    }

    /// Whether its search has begun, as far as the store knows, and has made no progress that is
    /// saved.
    fn is_on_trial(&self) -> bool {
        self.record.resumes.max(self.saved.resumes) > self.crashes && self.record.end.is_none()
    }

    /// Whether the begin of its search is saved, and no batch under way takes that back.
    fn is_counted(&self) -> bool {
        let resumes = self.saved.resumes.min(self.sent_resumes);
        resumes.min(self.record.resumes) > self.crashes
    }

    fn new(record: Record) -> Live<H, T> {
        let record_crashes = record.resumes;
        Live {
            saved: Arc::new(record.clone()),
            is_alone: record.failures > 0,
            failed_at: record.hashes(),
            last_candidate: (record.candidates > 0).then_some(Index::MAX),
            record,
            candidates: Vec::new(),
            is_dirty: false,
            is_urgent: false,
            search: None,
            place: None,
            sent_resumes: record_crashes,
            crashes: record_crashes,
            is_full: false,
            why: WAITS_FOR_PLACE,
            cancels: Vec::new(),
            message: String::new(),
        }
    }
}

#[cfg(test)]
mod tests;

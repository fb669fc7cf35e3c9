//! Operations in a running server: the threads around the runner and the store.
//!
//! Three threads: one owns the runner, one writes the store, and one reads it. Neither a slow disk
//! nor a search blocks an async task.

use std::{
    collections::HashMap,
    fmt, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError},
    },
    task::{Wake, Waker},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hashfinder_search::Index;
use tokio::sync::{oneshot, watch};

use crate::{
    expiry::Expiry,
    record::{Canceller, EndReason, Millis, Name, Record},
    runner::{
        Counts, Effects, Error, Health, Host, Now, Pace, Phase, Replied, Reply, Runner, Snapshot,
    },
    sqlite::{FULL, Folder, OpenError, Sqlite, SqliteReader},
    store::{Change, ClientLimits, Creation, Reader, Selection, Store, StoreError},
};

/// Pause before a store that failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Interval at which operations whose time is over are deleted, and a full disk is checked for
/// room.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Maximum number of reads that wait. A read takes about a millisecond.
const READS: usize = 1024;

/// Why an operation does not run that the store has and the runner does not know.
const NOT_LIVE: &str = "the server is loading it";

/// Why operations are unavailable after a bug.
const BROKEN: &str = "an internal error stopped them; see the log, and restart the server";

/// Why a read failed because of a bug.
const READ_FAILED: &str = "an internal error stopped the read; see the server's log";

/// How long a dropped server waits for the last progress to be saved.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bounds of the histogram of commit times, in seconds.
pub const COMMIT_SECONDS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Limits of operations, with their defaults and reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum numbers of operations of one client. Default: 100 that have not ended, more than a
    /// person follows, and 1,000 in all, which take about a megabyte. Nothing is deleted to make
    /// room.
    pub of_client: ClientLimits,
    /// Maximum number of candidates of an operation. Default: 10,000, which take about half a
    /// megabyte. A query with more of them is not selective.
    pub candidates: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            of_client: ClientLimits {
                running: 100,
                saved: 1000,
            },
            candidates: 10_000,
        }
    }
}

/// State of the operations of a server, for its metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Whether operations can be saved.
    pub health: Health,
    /// Numbers of operations that have not ended.
    pub counts: Counts,
    /// Numbers of operations that have ended since the start, by reason.
    pub ended: [(EndReason, u64); EndReason::ALL.len()],
    /// Number of commits by duration: each element counts those up to a bound of
    /// [`COMMIT_SECONDS`], the last one those that took longer. A commit counts in one of them.
    pub commits: [u64; COMMIT_SECONDS.len() + 1],
    /// Total duration of all commits.
    pub commit_time: Duration,
    /// Number of commits that failed.
    pub failed_commits: u64,
    /// How long the commit under way has taken.
    pub commit_lag: Duration,
    /// Size of the store, in bytes.
    pub bytes: u64,
}

/// The operations of a server. Clones share them.
///
/// Dropping the last clone stops their searches, and waits up to three seconds until their progress
/// is saved.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

struct Inner {
    /// Passes a command to the runner. Returns false if the runner has ended.
    commands: Box<dyn Fn(Command) -> bool + Send + Sync>,
    shared: Arc<Shared>,
    reads: SyncSender<Read>,
    /// Fails once the store is closed.
    closed: Mutex<Receiver<()>>,
    is_closed: watch::Receiver<()>,
}

type Read = Box<dyn FnOnce(&mut Result<Box<dyn Reader>, StoreError>) + Send>;

/// Opens a store: at the start, and again after each failure.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Store>, StoreError> + Send>;

/// Opens a reader: at the start, and again after each failure.
pub type OpenReader = Box<dyn FnMut() -> Result<Box<dyn Reader>, StoreError> + Send>;

/// A store, and how operations use it.
pub struct StoreOptions {
    /// Where it is, for the log.
    pub place: String,
    /// How often progress is saved.
    pub pace: Pace,
    /// Opens it, on the thread that writes it.
    pub open: Open,
    /// Opens a reader, on the thread that reads.
    pub read: OpenReader,
}

/// What the threads share with async tasks.
struct Shared {
    /// Operations that have not ended.
    live: Mutex<HashMap<Name, watch::Sender<Snapshot>>>,
    metrics: Mutex<Metrics>,
    /// Whether the store was opened, or could not be.
    is_loaded: watch::Sender<bool>,
    /// Whether a thread has panicked.
    is_broken: AtomicBool,
    /// Where the store is, for the log.
    place: String,
}

/// A request to the runner.
#[derive(Debug)]
pub enum Command {
    /// Start an operation.
    Start(Box<Record>, oneshot::Sender<Reply>),
    /// Cancel an operation, with an explanation for people.
    Cancel(Name, Canceller, String, oneshot::Sender<Reply>),
    /// Delete an operation.
    Delete(Name, oneshot::Sender<Reply>),
    /// Stop all searches, save their progress, and begin no others.
    Drain(oneshot::Sender<Reply>),
    /// Drain, then close the store. No command follows.
    Close,
}

enum Message {
    Command(Command),
    Wake(Name),
    Store(Event),
}

/// What the runner sends to the thread that writes the store.
struct Batch {
    changes: Vec<Change>,
    /// How many failures of the store the runner knew of. A batch from before the last one has been
    /// forgotten.
    failures: u64,
}

/// What the thread that writes the store reports.
enum Event {
    Opened {
        records: Vec<Record>,
        full: Option<Arc<str>>,
    },
    Committed(Vec<Creation>, Duration),
    Failed(StoreError),
    HasRoom,
    Size(u64),
}

impl Operations {
    /// Number of threads that operations need: three, and one more at the leader of a fleet.
    pub const THREADS: usize = 4;

    /// Locks a folder, and starts the threads. The store is opened by one of them; until then,
    /// requests wait.
    ///
    /// `host` is made on the thread that uses it.
    ///
    /// # Errors
    ///
    /// If another process uses the folder, it cannot be used, or a thread cannot be started.
    pub fn open<H: Host + 'static>(
        path: &Path,
        limits: Limits,
        host: impl FnOnce() -> H + Send + 'static,
    ) -> Result<Operations, OpenError> {
        let folder = Arc::new(Folder::lock(path)?);
        folder.check_version()?;
        let (of_open, file) = (Arc::clone(&folder), folder.file());
        let store = StoreOptions {
            place: folder.path().display().to_string(),
            pace: Pace::DISK,
            open: Box::new(move || {
                let store = Sqlite::open(&of_open, limits.of_client)?;
                Ok(Box::new(store))
            }),
            read: Box::new(move || Ok(Box::new(SqliteReader::open(&file)?))),
        };
        let started = Operations::run(store, Some(folder), limits.candidates, host);
        started.map_err(|error| OpenError::Unusable {
            path: path.to_owned(),
            why: error.to_string(),
        })
    }

    /// Starts the threads for operations in another store. It is opened by one of them; until then,
    /// requests wait.
    ///
    /// `host` is made on the thread that uses it. `most_candidates` is the maximum number of
    /// candidates of an operation.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn on_store<H: Host + 'static>(
        store: StoreOptions,
        most_candidates: u64,
        host: impl FnOnce() -> H + Send + 'static,
    ) -> io::Result<Operations> {
        Operations::run(store, None, most_candidates, host)
    }

    /// Returns operations whose runner is elsewhere, and the relay that keeps them up to date.
    /// `commands` passes a command to the runner, and returns whether it could.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn elsewhere(
        commands: impl Fn(Command) -> bool + Send + Sync + 'static,
        read: OpenReader,
    ) -> io::Result<(Operations, Relay)> {
        let shared = Arc::new(Shared::new(String::new()));
        let reads = start_reader(read)?;
        let (close, closed) = mpsc::channel::<()>();
        let (closing, is_closed) = watch::channel(());
        let operations = Operations(Arc::new(Inner {
            commands: Box::new(commands),
            shared: Arc::clone(&shared),
            reads,
            closed: Mutex::new(closed),
            is_closed,
        }));
        let relay = Relay {
            shared,
            _close: Mutex::new(close),
            _closing: closing,
        };
        Ok((operations, relay))
    }

    fn run<H: Host + 'static>(
        store: StoreOptions,
        folder: Option<Arc<Folder>>,
        most_candidates: u64,
        host: impl FnOnce() -> H + Send + 'static,
    ) -> io::Result<Operations> {
        let StoreOptions {
            place,
            pace,
            open,
            read,
        } = store;
        let shared = Arc::new(Shared::new(place));
        let (messages, received) = mpsc::channel();
        let (batches, to_commit) = mpsc::channel();
        let (close, closed) = mpsc::channel::<()>();
        let (closing, is_closed) = watch::channel(());
        let clock = Clock(Instant::now());
        let (of_writer, of_write) = (messages.clone(), Arc::clone(&shared));
        start(
            "operations-write",
            Box::new(move || {
                let events = of_writer.clone();
                let writer = Writer {
                    open,
                    folder,
                    clock,
                    events: of_writer,
                    full: None,
                    failures: 0,
                };
                if catch_unwind(AssertUnwindSafe(|| writer.run(&to_commit))).is_err() {
                    // The panic hook has reported it. What is saved is intact.
                    of_write.is_broken.store(true, Ordering::Relaxed);
                    let broken = Event::Failed(StoreError::Unavailable(BROKEN.to_owned()));
                    let _ = events.send(Message::Store(broken));
                }
                drop((close, closing));
            }),
        )?;
        let reads = start_reader(read)?;
        let (of_runner, nudge) = (Arc::clone(&shared), messages.clone());
        start(
            "operations",
            Box::new(move || {
                let waker = move |name: &Name| {
                    Waker::from(Arc::new(Nudge {
                        name: name.clone(),
                        messages: Mutex::new(nudge.clone()),
                    }))
                };
                let work = AssertUnwindSafe(|| {
                    let runner = Runner::new(host(), pace, most_candidates, waker);
                    run(runner, &received, &batches, &of_runner, clock);
                });
                if catch_unwind(work).is_err() {
                    // The panic hook has reported it. What is saved is intact.
                    of_runner.broken();
                }
                // Now the writer ends.
                drop(batches);
            }),
        )?;
        let commands = move |command| messages.send(Message::Command(command)).is_ok();
        Ok(Operations(Arc::new(Inner {
            commands: Box::new(commands),
            shared,
            reads,
            closed: Mutex::new(closed),
            is_closed,
        })))
    }

    /// Starts an operation, or returns the one that the same request started before. Returns once
    /// it is saved.
    ///
    /// Dropping the future does not prevent the operation from being started.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] if a limit or an earlier request forbids it, and the other errors if
    /// operations cannot be saved.
    pub async fn start(&self, record: Record) -> Result<Snapshot, Error> {
        match self
            .request(|reply| Command::Start(Box::new(record), reply))
            .await?
        {
            Replied::Started(snapshot) => Ok(snapshot),
            Replied::Existing(name) => {
                let existing = self.get(&name).await?;
                // It was deleted a moment ago.
                existing.ok_or(Error::Rejected(crate::store::Rejection::Deleted))
            }
            Replied::Done => Err(Error::Draining),
        }
    }

    /// Cancels an operation. Its search is stopped at once; returns once its end is saved. An
    /// operation that has ended does not change. `message` says why, for people.
    ///
    /// Dropping the future does not prevent the cancellation.
    ///
    /// # Errors
    ///
    /// If operations cannot be saved.
    pub async fn cancel(&self, name: &Name, by: Canceller, message: String) -> Result<(), Error> {
        let name = name.clone();
        self.request(|reply| Command::Cancel(name, by, message, reply))
            .await
            .map(drop)
    }

    /// Deletes an operation that has ended. Returns once that is saved.
    ///
    /// Dropping the future does not prevent the deletion.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnded`] if it has not ended, and the other errors if that cannot be saved.
    pub async fn delete(&self, name: &Name) -> Result<(), Error> {
        let name = name.clone();
        self.request(|reply| Command::Delete(name, reply))
            .await
            .map(drop)
    }

    /// Stops the searches of all operations, and returns once their progress is saved. They are
    /// resumed when the store is opened again, or by the next leader of a fleet.
    ///
    /// Dropping the future does not resume them.
    ///
    /// # Errors
    ///
    /// If the threads have ended.
    pub async fn drain(&self) -> Result<(), Error> {
        self.request(Command::Drain).await.map(drop)
    }

    /// Does the same as [`drain`](Self::drain), and returns once the store is closed.
    ///
    /// Dropping the future does not prevent that.
    pub async fn close(&self) {
        // The last connection that is closed tidies up the file.
        let _ = self.0.reads.try_send(Box::new(|reader| {
            *reader = Err(StoreError::Unavailable("closed".to_owned()));
        }));
        (self.0.commands)(Command::Close);
        // Nothing is ever sent: this fails when the writer has ended.
        let _ = self.0.is_closed.clone().changed().await;
    }

    async fn request(
        &self,
        command: impl FnOnce(oneshot::Sender<Reply>) -> Command,
    ) -> Result<Replied, Error> {
        self.loaded().await;
        let (sender, reply) = oneshot::channel();
        if !(self.0.commands)(command(sender)) {
            return Err(self.0.shared.gone());
        }
        reply.await.map_err(|_| self.0.shared.gone())?
    }

    /// Waits until the store was opened, which takes a moment after a start, or could not be.
    async fn loaded(&self) {
        // The sender lives as long as `self`.
        let _ = self
            .0
            .shared
            .is_loaded
            .subscribe()
            .wait_for(|is_loaded| *is_loaded)
            .await;
    }

    /// Returns an operation as it is saved, if there is one with this name.
    ///
    /// Dropping the future discards the result.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn get(&self, name: &Name) -> Result<Option<Snapshot>, Error> {
        if let Some(live) = self.0.shared.live().get(name) {
            return Ok(Some(live.borrow().clone()));
        }
        let mut snapshot = self.read_one(name).await?;
        if snapshot
            .as_ref()
            .is_some_and(|found| found.phase == Phase::Queued(NOT_LIVE.into()))
        {
            // It may have ended since it was read.
            snapshot = self.read_one(name).await?;
        }
        Ok(snapshot)
    }

    async fn read_one(&self, name: &Name) -> Result<Option<Snapshot>, Error> {
        let name = name.clone();
        let record = self.read(move |reader| reader.get(&name)).await?;
        Ok(record.map(|record| self.0.shared.snapshot(record)))
    }

    /// Watches an operation that has not ended. The channel closes after the last snapshot, or if
    /// the store failed and has a later state; [`get`](Self::get) then returns it.
    #[must_use]
    pub fn watch(&self, name: &Name) -> Option<watch::Receiver<Snapshot>> {
        self.0.shared.live().get(name).map(watch::Sender::subscribe)
    }

    /// Returns the operations that are not being searched although they have not ended, and what
    /// they do instead.
    #[must_use]
    pub fn waiting(&self) -> Vec<(Name, Phase)> {
        let live = self.0.shared.live();
        let phases = live
            .iter()
            .map(|(name, live)| (name.clone(), live.borrow().phase.clone()));
        let is_waiting = |phase: &Phase| matches!(phase, Phase::Queued(_) | Phase::Paused(_));
        phases.filter(|(_, phase)| is_waiting(phase)).collect()
    }

    /// Returns up to `limit` operations, ordered by creation time and name.
    ///
    /// Dropping the future discards the result.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn list(&self, selection: Selection, limit: usize) -> Result<Vec<Snapshot>, Error> {
        let records = self
            .read(move |reader| reader.list(&selection, limit))
            .await?;
        let mut snapshots = Vec::new();
        for record in records {
            let mut snapshot = self.0.shared.snapshot(record);
            if snapshot.phase == Phase::Queued(NOT_LIVE.into()) {
                let now = self.get(&snapshot.record.name).await?;
                snapshot = now.unwrap_or(snapshot);
            }
            snapshots.push(snapshot);
        }
        Ok(snapshots)
    }

    /// Returns up to `limit` indices of an operation's candidates from `from` on, in order. The
    /// last one of an operation that found a secret is that secret's.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn candidates(
        &self,
        record: &Record,
        from: Index,
        limit: usize,
    ) -> Result<Vec<Index>, Error> {
        let name = record.name.clone();
        let end = record.query().keyspace().end();
        let indices = self
            .read(move |reader| reader.candidates(&name, from, limit))
            .await?;
        if indices.iter().any(|index| *index >= end) {
            let why = format!("a candidate of {} is not in its keyspace", record.name);
            return Err(Error::Damaged(why.into()));
        }
        Ok(indices)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        self.loaded().await;
        let (sender, result) = oneshot::channel();
        let job: Read = Box::new(move |reader| {
            let result = match reader {
                Ok(reader) => catch_unwind(AssertUnwindSafe(|| read(&mut **reader)))
                    .unwrap_or_else(|_| Err(StoreError::Unavailable(READ_FAILED.to_owned()))),
                Err(error) => Err(mem::replace(
                    error,
                    StoreError::Unavailable("not open".into()),
                )),
            };
            if result.is_err() && reader.is_ok() {
                // It is opened again for the next read.
                *reader = Err(StoreError::Unavailable("not open".to_owned()));
            }
            // The receiver is gone if its call has ended.
            drop(sender.send(result));
        });
        match self.0.reads.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(Error::Unavailable(
                    "too many reads are waiting; try again".into(),
                ));
            }
            Err(TrySendError::Disconnected(_)) => return Err(Error::Draining),
        }
        let result = result.await.map_err(|_| Error::Draining)?;
        result.map_err(|error| match (error, &self.0.shared.metrics().health) {
            (_, Health::Damaged(why)) => Error::Damaged(Arc::clone(why)),
            (StoreError::Damaged(why), _) => Error::Damaged(why.into()),
            (StoreError::Full(why) | StoreError::Unavailable(why), _) => {
                Error::Unavailable(why.into())
            }
        })
    }

    /// Whether a thread has panicked, so that no operation runs any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.shared.is_broken.load(Ordering::Relaxed)
    }

    /// Returns the state of all operations, for metrics.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.shared.metrics().clone()
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        (self.commands)(Command::Close);
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails at once when the thread has ended.
        let _ = closed.recv_timeout(CLOSE_TIMEOUT);
    }
}

/// Starts the thread that reads a store.
fn start_reader(mut open: OpenReader) -> io::Result<SyncSender<Read>> {
    let (reads, to_read) = mpsc::sync_channel::<Read>(READS);
    start(
        "operations-read",
        Box::new(move || {
            let mut reader = Err(StoreError::Unavailable("not open".to_owned()));
            for job in to_read {
                if reader.is_err() {
                    reader = open();
                }
                job(&mut reader);
            }
        }),
    )?;
    Ok(reads)
}

fn start(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop)
}

/// Keeps [`Operations`] whose runner is elsewhere up to date. Dropping it closes them.
pub struct Relay {
    shared: Arc<Shared>,
    _close: Mutex<Sender<()>>,
    _closing: watch::Sender<()>,
}

impl Relay {
    /// An operation has changed. Without a snapshot, it has ended or is gone, and the reader has
    /// its latest state.
    pub fn changed(&self, name: &Name, snapshot: Option<Snapshot>) {
        self.shared.changed(name, snapshot);
    }

    /// Sets the metrics. Once the health is not [`Health::Loading`], requests no longer wait.
    pub fn set_metrics(&self, metrics: Metrics) {
        let is_loaded = metrics.health != Health::Loading;
        *self.shared.metrics() = metrics;
        if is_loaded {
            self.shared.set_loaded();
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("place", &self.place)
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Returns the metrics of operations of which nothing is known yet but their health.
    #[must_use]
    pub fn new(health: Health) -> Metrics {
        Metrics {
            health,
            counts: Counts::default(),
            ended: EndReason::ALL.map(|reason| (reason, 0)),
            commits: [0; COMMIT_SECONDS.len() + 1],
            commit_time: Duration::ZERO,
            failed_commits: 0,
            commit_lag: Duration::ZERO,
            bytes: 0,
        }
    }
}

impl Shared {
    fn new(place: String) -> Shared {
        Shared {
            is_loaded: watch::Sender::new(false),
            is_broken: AtomicBool::new(false),
            place,
            live: Mutex::default(),
            metrics: Mutex::new(Metrics::new(Health::Loading)),
        }
    }

    fn set_loaded(&self) {
        self.is_loaded
            .send_if_modified(|is_loaded| !mem::replace(is_loaded, true));
    }

    fn changed(&self, name: &Name, snapshot: Option<Snapshot>) {
        let mut live = self.live();
        match snapshot {
            Some(snapshot) => match live.get(name) {
                Some(sender) => drop(sender.send_replace(snapshot)),
                None => drop(live.insert(name.clone(), watch::Sender::new(snapshot))),
            },
            None => drop(live.remove(name)),
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Name, watch::Sender<Snapshot>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the snapshot of an operation that was read from the store.
    fn snapshot(&self, record: Record) -> Snapshot {
        if let Some(live) = self.live().get(&record.name) {
            return live.borrow().clone();
        }
        Snapshot::of(record, NOT_LIVE)
    }

    /// Records that the runner has panicked, so that its thread has ended.
    fn broken(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
        self.live().clear();
        self.metrics().health = Health::Unavailable(BROKEN.into());
        self.is_loaded.send_replace(true);
    }

    /// Returns the error for a request that no thread answers.
    fn gone(&self) -> Error {
        match self.metrics().health.error() {
            Some(error) => error,
            None => Error::Draining,
        }
    }

    fn update(&self, effects: Effects<oneshot::Sender<Reply>>, health: &Health, counts: Counts) {
        for (name, snapshot) in effects.changed {
            self.changed(&name, snapshot);
        }
        let mut metrics = self.metrics();
        for record in effects.ended {
            let Some(end) = &record.end else { continue };
            let counts = metrics.ended.iter_mut();
            for (_, count) in counts.filter(|(reason, _)| *reason == end.reason) {
                *count += 1;
            }
            tracing::info!(
                operation = %record.name,
                client = %record.request.client,
                reason = end.reason.name(),
                hashes = record.hashes(),
                candidates = record.candidates,
                "operation ended"
            );
        }
        if metrics.health != *health {
            metrics.health = health.clone();
        }
        metrics.counts = counts;
        drop(metrics);
        if *health != Health::Loading {
            self.set_loaded();
        }
        // After the rest, so that a client that reads after its reply sees its own change.
        for (ticket, reply) in effects.replies {
            // The receiver is gone if its call has ended.
            drop(ticket.send(reply));
        }
    }
}

/// Reads both clocks.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Now {
        Now {
            running: self.0.elapsed(),
            wall: now(),
        }
    }
}

/// Returns the time on the system's clock.
#[must_use]
pub fn now() -> Millis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| {
        Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
    })
}

/// Wakes the runner for an operation.
struct Nudge {
    name: Name,
    messages: Mutex<Sender<Message>>,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        // The runner is gone if the server has ended.
        let _ = messages.send(Message::Wake(self.name.clone()));
    }
}

/// The loop of the thread that owns the runner.
fn run<H: Host>(
    mut runner: Runner<H, oneshot::Sender<Reply>>,
    messages: &Receiver<Message>,
    batches: &Sender<Batch>,
    shared: &Shared,
    clock: Clock,
) {
    let mut failures = 0;
    // Set when the server ends: the last progress is being saved.
    let mut closing: Option<oneshot::Receiver<Reply>> = None;
    loop {
        let timeout = runner.deadline().saturating_sub(clock.now().running);
        let mut message = match messages.recv_timeout(timeout) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let now = clock.now();
        while let Some(received) = message {
            match received {
                Message::Command(Command::Start(record, reply)) => {
                    runner.start(*record, reply, now);
                }
                Message::Command(Command::Cancel(name, by, message, reply)) => {
                    runner.cancel(&name, by, message, reply, now);
                }
                Message::Command(Command::Delete(name, reply)) => runner.delete(&name, reply),
                Message::Command(Command::Drain(reply)) => runner.drain(reply, now),
                Message::Command(Command::Close) => {
                    let (sender, reply) = oneshot::channel();
                    runner.drain(sender, now);
                    closing = Some(reply);
                }
                Message::Wake(name) => runner.wake(&name, now),
                Message::Store(event) => {
                    failures += u64::from(matches!(event, Event::Failed(_)));
                    of_store(&mut runner, event, shared, now);
                }
            }
            message = messages.try_recv().ok();
        }
        runner.tick(now);
        if let Some(changes) = runner.next_batch(now) {
            let batch = Batch { changes, failures };
            // The writer ends before this thread only because of a bug.
            let _ = batches.send(batch);
        }
        shared.metrics().commit_lag = runner.commit_lag(now);
        let effects = runner.take_effects();
        shared.update(effects, runner.health(), runner.counts());
        if let Some(reply) = &mut closing
            && reply.try_recv() != Err(oneshot::error::TryRecvError::Empty)
        {
            return;
        }
    }
}

fn of_store<H: Host>(
    runner: &mut Runner<H, oneshot::Sender<Reply>>,
    event: Event,
    shared: &Shared,
    now: Now,
) {
    match event {
        Event::Opened { records, full } => {
            tracing::info!(
                operations = records.len(),
                full = full.as_deref(),
                "operations loaded"
            );
            runner.opened(records, full, now);
        }
        Event::Committed(creations, took) => {
            let mut metrics = shared.metrics();
            let seconds = took.as_secs_f64();
            let bucket = COMMIT_SECONDS.partition_point(|bound| *bound < seconds);
            metrics.commits[bucket] += 1;
            metrics.commit_time += took;
            drop(metrics);
            runner.committed(creations, now);
        }
        Event::Failed(error) => {
            shared.metrics().failed_commits += 1;
            let before = runner.health().clone();
            runner.failed(&error);
            // The store is opened every second, and the same error is logged once.
            if *runner.health() == before {
                return;
            }
            let store = &shared.place;
            match &error {
                StoreError::Damaged(_) => tracing::error!(
                    %store,
                    %error,
                    "the saved operations are damaged; stop the server, and restore a backup or run \
                     `hashfinder operations recover`"
                ),
                StoreError::Full(_) | StoreError::Unavailable(_) => tracing::error!(
                    %store,
                    %error,
                    "operations cannot be saved; they are paused"
                ),
            }
        }
        Event::HasRoom => {
            tracing::info!("the disk has room again; operations continue");
            runner.has_room(now);
        }
        Event::Size(bytes) => shared.metrics().bytes = bytes,
    }
}

/// The thread that writes the store.
struct Writer {
    open: Open,
    folder: Option<Arc<Folder>>,
    clock: Clock,
    events: Sender<Message>,
    /// Why only cancellations and deletions are saved, if the disk is full.
    full: Option<Arc<str>>,
    /// How often the store has failed.
    failures: u64,
}

/// Why a part of the writer's loop ends.
enum Stop {
    /// The runner's thread has ended.
    Closed,
    /// The store failed, and must be opened again.
    Failed(StoreError),
}

impl Writer {
    fn run(mut self, batches: &Receiver<Batch>) {
        loop {
            match self.serve(batches) {
                Stop::Closed => return,
                Stop::Failed(error) => {
                    let is_damaged = matches!(error, StoreError::Damaged(_));
                    if let (StoreError::Full(why), Some(folder)) = (&error, &self.folder) {
                        self.full = Some(why.as_str().into());
                        folder.release_reserve();
                    }
                    self.failures += 1;
                    self.send(Event::Failed(error));
                    // The runner sends no batch before the store is open again. A damaged store is
                    // not opened again: an operator has to recover it.
                    let closed = match is_damaged {
                        true => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
                        false => batches.recv_timeout(REOPEN_AFTER),
                    };
                    if let Err(RecvTimeoutError::Disconnected) = closed {
                        return;
                    }
                }
            }
        }
    }

    /// Opens the store, and commits batches until it fails.
    fn serve(&mut self, batches: &Receiver<Batch>) -> Stop {
        match self.try_serve(batches) {
            Ok(()) => Stop::Closed,
            Err(error) => Stop::Failed(error),
        }
    }

    fn try_serve(&mut self, batches: &Receiver<Batch>) -> Result<(), StoreError> {
        let mut store = (self.open)()?;
        let now = self.clock.now();
        let last = store.last_reading()?;
        let mut expiry = Expiry::new(now.running, now.wall, last);
        let mut saved_doubt = last.unwrap_or_default().doubtful_until;
        let records = store.unfinished()?;
        self.check_room();
        let full = self.full.clone();
        self.send(Event::Opened { records, full });
        let mut next_check = now.running;
        loop {
            let now = self.clock.now();
            if now.running >= next_check {
                next_check = now.running + CHECK_EVERY;
                if self.full.is_some() && self.check_room() {
                    self.send(Event::HasRoom);
                }
                let may_delete = expiry.read(now.running, now.wall);
                let reading = expiry.last();
                if reading.doubtful_until != saved_doubt && self.full.is_none() {
                    // Even if nothing else is saved: a later process must not doubt the same jump.
                    store.commit(&[], reading)?;
                    saved_doubt = reading.doubtful_until;
                }
                if may_delete && self.full.is_none() {
                    let deleted = store.expire(now.wall)?;
                    if deleted > 0 {
                        tracing::info!(operations = deleted, "deleted expired operations");
                    }
                }
                if let Some(folder) = &self.folder {
                    self.send(Event::Size(folder.size()));
                }
            }
            let timeout = next_check.saturating_sub(now.running);
            match batches.recv_timeout(timeout) {
                Ok(batch) if batch.failures != self.failures => {}
                Ok(batch) => {
                    let began = self.clock.now();
                    expiry.read(began.running, began.wall);
                    let began = Instant::now();
                    let creations = store.commit(&batch.changes, expiry.last())?;
                    saved_doubt = expiry.last().doubtful_until;
                    self.send(Event::Committed(creations, began.elapsed()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Returns whether the disk has room for the reserve and more.
    fn check_room(&mut self) -> bool {
        let folder = self.folder.as_ref();
        // Once the reserve was used, refilling it must not take the last room again.
        let fill = |folder: &Arc<Folder>| {
            (self.full.is_none() || folder.has_room()) && folder.fill_reserve()
        };
        let has_room = folder.is_none_or(fill);
        self.full = match has_room {
            true => None,
            false => self.full.take().or(Some(FULL.into())),
        };
        has_room
    }

    fn send(&self, event: Event) {
        // The runner's thread has ended if the server has.
        let _ = self.events.send(Message::Store(event));
    }
}

#[cfg(test)]
mod tests;

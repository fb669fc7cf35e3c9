//! The worker threads, and the handles of searches.

use std::{
    fmt, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use hashfinder_kernels::Kernel;

use crate::{
    checkpoint::{Advance, Checkpoint},
    client::Client,
    cursor::Cursor,
    ids::SearchId,
    keyspace::Index,
    limits::{Limits, OverLimit, Usage},
    matcher::{Found, Matcher},
    outcome::{Event, Outcome, Release, Report},
    pacing::{Pacing, Worker},
    progress::{Metrics, Progress, SearchState},
    query::{Candidate, Query},
    scheduler::{Effects, Job, Request, Resume, Scheduler},
    slice::{FIRST_SLICE, Slice, SliceResult},
    sync::{
        AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard,
        thread::{self, JoinHandle, Thread},
    },
};

/// Tries slices, with the CPU's kernels or on another machine.
///
/// The engine calls [`scan`](Self::scan) once for each slice and never interrupts it. Slices are
/// short, so no search waits long for one, unless a single secret takes long.
pub trait Backend: Send + Sync + 'static {
    /// Tries the secrets of `slice` in order, and adds those that [match](Matcher) to `hits`.
    /// Returns one past the last index tried: the end of the slice or, once `hits` holds `limit`
    /// hits, one past the last hit.
    ///
    /// A panic ends only the search that caused it, with [`Outcome::Failed`]: searches that shared
    /// the slice try it again, each alone.
    fn scan(
        &self,
        slice: Range<Index>,
        matcher: &Matcher,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index;

    /// Estimates what it costs to try a secret, in hashes of a fast kernel. The estimate decides
    /// which searches share slices, and how long their first slices are; it never affects the
    /// answer.
    fn cost(&self, matcher: &Matcher) -> f64 {
        matcher.cost(Kernel::best())
    }

    /// Whether a thousand secrets take only a few microseconds on the calling thread. If so,
    /// [`Engine::search`] itself tries the first 1,024 secrets of a search that reports no
    /// candidates. Many searches end within these, and waiting for a worker would take several
    /// times as long.
    fn is_at_hand(&self, _matcher: &Matcher) -> bool {
        false
    }
}

/// Maximum cost of a secret, in hashes of a fast kernel, at which the calling thread tries the
/// first slice itself. With one name, a secret costs a little more than a hash.
const AT_HAND: f64 = 2.0;

impl Backend for Kernel {
    fn scan(
        &self,
        slice: Range<Index>,
        matcher: &Matcher,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        matcher.scan(*self, slice, limit, hits)
    }

    fn cost(&self, matcher: &Matcher) -> f64 {
        matcher.cost(*self)
    }

    fn is_at_hand(&self, matcher: &Matcher) -> bool {
        // For the first slice, the fast kernels take 7-20 us, the portable one 100 us.
        self.name() != "portable" && matcher.is_ready() && matcher.cost(*self) <= AT_HAND
    }
}

/// Result of trying a search's first secrets on the calling thread.
enum Head {
    /// The search has ended.
    Ended(Outcome),
    /// There are more secrets to try.
    Continues(Request),
}

/// A fixed set of threads that all searches share.
///
/// Dropping the engine stops every search, waits until the threads have finished their slices, and
/// joins them. A slice takes about half a millisecond, or as long as a single secret if that is
/// longer. With thousands of searches, a thread may be planning a filter for them, which takes tens
/// of milliseconds. Handles of searches stay usable and report how the search ended.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    scheduler: Mutex<Scheduler>,
    /// Signalled when there may be work for a worker that found none.
    work: Condvar,
    /// Number of workers that wait for `work`, changed under the scheduler's lock. It saves a
    /// signal, which is a system call, if no worker waits.
    sleepers: AtomicUsize,
    closing: AtomicBool,
    backend: Box<dyn Backend>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl Engine {
    /// Starts `workers` threads that run slices on `backend`, or fewer if the system cannot start
    /// as many. [`workers`](Self::workers) returns their number.
    ///
    /// `clock` returns the time since some fixed moment and never goes back. The engine sizes
    /// slices by it, and calls it while holding its lock, so `clock` must not use the engine.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    ///
    /// # Panics
    ///
    /// If `workers` is 0: no search would ever end.
    pub fn start(
        workers: usize,
        backend: impl Backend,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> io::Result<Engine> {
        Engine::with_limits(workers, backend, clock, Limits::default())
    }

    /// Like [`start`](Self::start), with limits other than the default ones.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    ///
    /// # Panics
    ///
    /// If `workers` is 0.
    pub fn with_limits(
        workers: usize,
        backend: impl Backend,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
        limits: Limits,
    ) -> io::Result<Engine> {
        assert!(workers > 0, "an engine needs at least one worker");
        let mut engine = Engine {
            shared: Arc::new(Shared {
                scheduler: Mutex::new(Scheduler::new(limits, Pacing::default())),
                work: Condvar::new(),
                sleepers: AtomicUsize::new(0),
                closing: AtomicBool::new(false),
                backend: Box::new(backend),
                clock: Box::new(clock),
            }),
            workers: Vec::new(),
        };
        for number in 0..workers {
            let shared = Arc::clone(&engine.shared);
            let thread = thread::Builder::new().name(format!("search-{number}"));
            match thread.spawn(move || shared.work()) {
                Ok(worker) => engine.workers.push(worker),
                Err(error) if engine.workers.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(engine)
    }

    /// Starts a search for a client.
    ///
    /// The calling thread plans the query's filter. That takes longer the more names the query has,
    /// up to [`Query::MAX_NAMES`]. If the query reports no candidates and the backend [is
    /// fast](Backend::is_at_hand), the calling thread also tries the first 1,024 secrets, which
    /// takes 7-20 us.
    ///
    /// `on_release` is called once, when the search has ended *and* no worker uses it any more. It
    /// can own what has to live as long as the work, such as a permit. It runs on the thread that
    /// releases the search, possibly the calling one, so it should be quick.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] if the client or the engine has reached a limit; `on_release` is then dropped
    /// without being called.
    pub fn search(
        &self,
        client: Client,
        query: Query,
        on_release: impl FnOnce(Report) + Send + 'static,
    ) -> Result<Search, OverLimit> {
        let clock = &self.shared.clock;
        // A separate statement releases the lock before `on_release` is dropped: dropping it may
        // run any code.
        let admitted = self.shared.lock().admit(&client, clock());
        admitted?;
        let release: Release = Box::new(on_release);
        let began = clock();
        let start = query.range().start;
        let (until, head) = self.shared.try_head(query);
        let now = clock();
        let (hashes, took) = (until - start, now.saturating_sub(began));
        let mut scheduler = self.shared.lock();
        let (state, effects) = match head {
            Head::Ended(outcome) => {
                let report = Report {
                    outcome: outcome.clone(),
                    hashes,
                    tests: hashes,
                    stop_latency: None,
                };
                let effects = scheduler.record_ended(&client, release, report, took, now);
                (State::Ended(outcome, until), effects)
            }
            Head::Continues(request) => {
                let (id, effects) = scheduler.submit(client, request, hashes, took, release, now);
                (State::UnderWay(id), effects)
            }
        };
        drop(scheduler);
        self.shared.carry_out(effects);
        Ok(Search {
            state,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Counts a search that is to be [resumed](Self::resume) soon as one of its client.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] if the client or the engine has reached a limit.
    pub fn admit(&self, client: Client) -> Result<Admission, OverLimit> {
        let now = (self.shared.clock)();
        self.shared.lock().admit(&client, now)?;
        Ok(Admission {
            client: Some(client),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Counts a search that this engine has admitted before, which continues elsewhere for a while.
    /// The limits do not apply to it again.
    pub fn readmit(&self, client: Client) -> Admission {
        let now = (self.shared.clock)();
        self.shared.lock().readmit(&client, now);
        Admission {
            client: Some(client),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Resumes a search from a checkpoint, or starts one from [`Checkpoint::new`]. The result's
    /// [`advance`](ResumableSearch::advance) returns the next checkpoints.
    ///
    /// `query` must be the one that the checkpoint belongs to. Its budget is ignored: the
    /// checkpoint has the end. If `alone` is `true`, the search shares slices with no other, so a
    /// panic of the backend is certainly its own.
    ///
    /// `on_release` is called as in [`search`](Self::search). The calling thread plans the filter,
    /// but tries no secrets.
    ///
    /// # Panics
    ///
    /// If another engine admitted the search.
    pub fn resume(
        &self,
        mut admission: Admission,
        query: Query,
        checkpoint: Checkpoint,
        alone: bool,
        on_release: impl FnOnce(Report) + Send + 'static,
    ) -> ResumableSearch {
        let is_own = Arc::ptr_eq(&self.shared, &admission.shared);
        let client = admission.client.take().filter(|_| is_own);
        let client = client.expect("this engine has admitted the search");
        let clock = &self.shared.clock;
        let release: Release = Box::new(on_release);
        let frontier = checkpoint.frontier();
        let failed = Outcome::Failed(Cursor::new(&query, frontier));
        let unplanned = checkpoint.clone();
        let request = self.shared.plan(query, Resume { checkpoint, alone });
        let now = clock();
        let mut scheduler = self.shared.lock();
        let (state, unplanned, effects) = match request {
            Some(request) => {
                let took = Duration::ZERO;
                let (id, effects) = scheduler.submit(client, request, 0, took, release, now);
                (State::UnderWay(id), None, effects)
            }
            None => {
                let report = Report {
                    outcome: failed.clone(),
                    hashes: 0,
                    tests: 0,
                    stop_latency: None,
                };
                let took = Duration::ZERO;
                let effects = scheduler.record_ended(&client, release, report, took, now);
                let ended = Advance {
                    candidates: Vec::new(),
                    checkpoint: unplanned,
                    outcome: Some(failed.clone()),
                    progress: Progress {
                        state: SearchState::Ended,
                        frontier,
                        hashes: 0,
                        tests: 0,
                    },
                };
                (
                    State::Ended(failed, frontier),
                    Some(Box::new(ended)),
                    effects,
                )
            }
        };
        drop(scheduler);
        self.shared.carry_out(effects);
        let shared = Arc::clone(&self.shared);
        ResumableSearch {
            search: Search { state, shared },
            unplanned,
        }
    }

    /// Returns the engine's totals and its current state.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.lock().metrics()
    }

    /// Returns what a client has used. All values are zero if the engine does not know the client,
    /// or has forgotten it.
    #[must_use]
    pub fn usage(&self, client: &str) -> Usage {
        self.shared.lock().usage(client)
    }

    /// Returns the number of worker threads.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }
}

/// Counts as one search of a client until it is passed to [`Engine::resume`], or dropped.
pub struct Admission {
    /// Absent once the search has begun.
    client: Option<Client>,
    shared: Arc<Shared>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(client) = &self.client {
            self.shared.lock().dismiss(client);
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admission").field(&self.client).finish()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let stopped = {
            let now = (self.shared.clock)();
            // Set under the lock, so that no worker is between its check of `closing` and its wait.
            let mut scheduler = self.shared.lock();
            self.shared.closing.store(true, Ordering::Release);
            scheduler.stop_all(now)
        };
        self.shared.work.notify_all();
        self.shared.carry_out(stopped);
        for worker in self.workers.drain(..) {
            // A worker catches the backend's panics. If it panicked elsewhere, its result is of no
            // use here.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Scheduler> {
        // An assertion that fails for one search must not stop all others.
        self.scheduler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans a query's filter. Also tries the query's first secrets, if the backend is fast and the
    /// query reports no candidates. Returns the index up to which secrets were tried. The request
    /// carries the matcher, so that no worker plans the filter again.
    ///
    /// A matcher for several searches is only ever made by a worker ([`Job::Build`]).
    fn try_head(&self, query: Query) -> (Index, Head) {
        let range = query.range();
        let slice = range.start..range.end.min(range.start.saturating_add(FIRST_SLICE));
        let mut hits = Vec::new();
        let scan = AssertUnwindSafe(|| {
            let matcher = Arc::new(query.matcher());
            let is_here = !query.reports_candidates() && self.backend.is_at_hand(&matcher);
            let tried = is_here.then(|| self.backend.scan(slice, &matcher, 1, &mut hits));
            let cost = self.backend.cost(&matcher);
            (tried, cost, matcher)
        });
        let Ok((tried, cost, matcher)) = catch_unwind(scan) else {
            let failed = Outcome::Failed(Cursor::new(&query, range.start));
            return (range.start, Head::Ended(failed));
        };
        let tried = tried.unwrap_or(range.start);
        // All hits are of one secret: one hit for each name that is near enough.
        let candidates = hits.iter().filter_map(|hit| {
            Some(Candidate {
                index: hit.index,
                name: u8::try_from(hit.number).ok()?,
                distance: hit.distance,
                window: hit.window,
            })
        });
        let head = match candidates.min_by_key(Candidate::nearness) {
            Some(nearest) => Head::Ended(Outcome::Ideal(nearest)),
            None if tried == range.end => Head::Ended(Outcome::nothing_found(&query, tried)),
            None => Head::Continues(Request {
                rate: query.hit_rate(),
                cost,
                matcher,
                query,
                resume: None,
            }),
        };
        (tried, head)
    }

    /// Plans the filter of a query that resumes. Returns `None` if that panics.
    fn plan(&self, query: Query, resume: Resume) -> Option<Request> {
        let plan = AssertUnwindSafe(|| {
            let matcher = Arc::new(query.matcher());
            (self.backend.cost(&matcher), matcher)
        });
        let (cost, matcher) = catch_unwind(plan).ok()?;
        Some(Request {
            rate: query.hit_rate(),
            cost,
            matcher,
            query,
            resume: Some(resume),
        })
    }

    /// Runs jobs until the engine is dropped.
    fn work(&self) {
        while let Some(job) = self.wait_for_job() {
            match job {
                Job::Slice(slice) => self.run_slice(&slice),
                Job::Build(mut build) => {
                    // If this panics, `build` has no group, and fewer newcomers are tried next
                    // time.
                    let cost_of = |matcher: &Matcher| self.backend.cost(matcher);
                    let _ = catch_unwind(AssertUnwindSafe(|| build.make(cost_of)));
                    loop {
                        let now = (self.clock)();
                        if self.lock().install(&mut build, now) {
                            break;
                        }
                        thread::yield_now();
                    }
                }
            }
        }
    }

    /// Tries a slice and hands it back.
    fn run_slice(&self, slice: &Slice) {
        let result = self.try_slice(slice);
        let now = (self.clock)();
        let effects = self.lock().finish(slice.id, result, now);
        self.carry_out(effects);
    }

    fn try_slice(&self, slice: &Slice) -> SliceResult {
        // Read only before the slice begins: a stop waits at most for the slices that are being
        // tried.
        if slice.stop.load(Ordering::Relaxed) {
            return SliceResult::Tried {
                tried: slice.range.start,
                hits: Vec::new(),
            };
        }
        let mut hits = Vec::new();
        let scan = AssertUnwindSafe(|| {
            let matcher = slice.group.matcher();
            self.backend
                .scan(slice.range.clone(), matcher, slice.hit_limit, &mut hits)
        });
        match catch_unwind(scan) {
            Ok(tried) => SliceResult::Tried { tried, hits },
            Err(_) => SliceResult::Panicked,
        }
    }

    fn wait_for_job(&self) -> Option<Job> {
        loop {
            let mut effects = Effects::default();
            let mut scheduler = self.lock();
            // Read after taking the lock, because waiting for the lock is not part of the slice.
            let now = (self.clock)();
            if self.closing.load(Ordering::Acquire) {
                return None;
            }
            let job = scheduler
                .upkeep(now)
                .or_else(|| scheduler.next_job(Worker::default(), now, &mut effects));
            if job.is_none() && effects.is_empty() && !scheduler.has_work() {
                self.sleepers.fetch_add(1, Ordering::Relaxed);
                // Drops the guard and starts again: after a sleep, the clock has to be read again.
                let woken = self.work.wait(scheduler);
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
                drop(woken.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            effects.work = job.is_some() && scheduler.has_work();
            drop(scheduler);
            self.carry_out(effects);
            if job.is_some() {
                return job;
            }
        }
    }

    fn stop(&self, id: SearchId) {
        let now = (self.clock)();
        let effects = self.lock().stop(id, now);
        self.carry_out(effects);
    }

    /// Carries out what a change requires. Never call this with the lock held: wakers and releases
    /// run code that the engine does not know.
    fn carry_out(&self, effects: Effects) {
        if effects.work {
            // One at a time: a worker that finds more than it can take wakes the next. A worker
            // that is about to wait has seen this work, because both held the lock.
            if self.sleepers.load(Ordering::Relaxed) > 0 {
                self.work.notify_one();
            }
        }
        for (release, report) in effects.released {
            // A worker must survive a panic in code that it does not know.
            let _ = catch_unwind(AssertUnwindSafe(|| release(report)));
        }
        for waker in effects.wake {
            waker.wake();
        }
        drop(effects.stale);
        drop(effects.stale_matchers);
    }
}

/// The reader's handle of a search.
///
/// The search runs until its queue is full, even if its events are not read. Then it waits for its
/// reader and takes no core. Dropping the handle stops the search.
pub struct Search {
    state: State,
    shared: Arc<Shared>,
}

enum State {
    UnderWay(SearchId),
    /// The search ended while the thread that started it tried the first secrets, up to this index.
    Ended(Outcome, Index),
}

impl Search {
    /// Waits for the next candidates, or for the end. After the end, every call returns the same
    /// end.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_next(cx, 1)).await
    }

    /// Like [`next`](Self::next), but waits until there are `at_least` candidates, the queue is
    /// full, or no more will come. Only the task of the latest call is woken.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, at_least: usize) -> Poll<Event> {
        let id = match &self.state {
            State::UnderWay(id) => *id,
            State::Ended(outcome, _) => return Poll::Ready(Event::Ended(outcome.clone())),
        };
        let waker = cx.waker().clone();
        let (event, effects) = self.shared.lock().poll(id, at_least, waker);
        self.shared.carry_out(effects);
        event
    }

    /// Like [`next`](Self::next), but blocks the thread.
    pub fn blocking_next(&mut self) -> Event {
        struct Unpark(Thread);

        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }

        let waker = Arc::new(Unpark(thread::current())).into();
        let mut next = pin!(self.next());
        loop {
            match next.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(event) => return event,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Returns a handle that can stop the search from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            id: self.id(),
            shared: Arc::clone(&self.shared),
        }
    }

    fn id(&self) -> Option<SearchId> {
        match self.state {
            State::UnderWay(id) => Some(id),
            State::Ended(..) => None,
        }
    }

    /// Returns the search's frontier: every index below it has been tried.
    #[must_use]
    pub fn frontier(&self) -> Index {
        match self.state {
            // The scheduler keeps the search as long as this handle exists.
            State::UnderWay(id) => self.shared.lock().frontier(id).unwrap_or_default(),
            State::Ended(_, frontier) => frontier,
        }
    }

    /// Returns the state of a search that was stopped, to continue it elsewhere. It includes what
    /// the last slices brought back. `None` before the end was [read](Self::next), and for a search
    /// that ended within [`Engine::search`].
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.shared.lock().checkpoint(self.id()?)
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        if let Some(id) = self.id() {
            let now = (self.shared.clock)();
            let effects = self.shared.lock().abandon(id, now);
            self.shared.carry_out(effects);
        }
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Search").field(&self.id()).finish()
    }
}

/// The handle of a search whose state is saved while it runs.
///
/// The search runs until its queue is full. Dropping the handle stops it.
#[derive(Debug)]
pub struct ResumableSearch {
    search: Search,
    /// What [`advance`](Self::advance) returns if planning the filter panicked, so that the search
    /// has ended.
    unplanned: Option<Box<Advance>>,
}

impl ResumableSearch {
    /// Takes the candidates that are ready, and returns them with a checkpoint of the same moment.
    /// `waker` is woken once, when half of the queue is full or the search has ended. It replaces
    /// the waker of the previous call.
    ///
    /// After the end, every call returns the same outcome and checkpoint. The checkpoint includes
    /// what the last slices brought back.
    pub fn advance(&mut self, waker: &Waker) -> Advance {
        if let Some(ended) = &self.unplanned {
            return (**ended).clone();
        }
        let State::UnderWay(id) = self.search.state else {
            unreachable!("a search that resumes is submitted, or its filter was not planned");
        };
        let (advance, effects) = self.search.shared.lock().advance(id, waker.clone());
        self.search.shared.carry_out(effects);
        advance
    }

    /// Returns a handle that can stop the search from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.search.stopper()
    }

    /// Returns a handle for a reader that reads events, and saves nothing.
    #[must_use]
    pub fn into_search(self) -> Search {
        self.search
    }
}

/// Stops a search, from any thread, without owning it.
#[derive(Clone)]
pub struct Stopper {
    /// `None` if the search ended within [`Engine::search`], so that it never got an ID.
    id: Option<SearchId>,
    shared: Arc<Shared>,
}

impl Stopper {
    /// Stops the search. Every worker leaves it by the end of its current slice; a search that
    /// waits for its turn or its reader ends at once. Has no effect on a search that has ended.
    pub fn stop(&self) {
        if let Some(id) = self.id {
            self.shared.stop(id);
        }
    }

    /// Returns the search's progress; `None` if the search ended within [`Engine::search`], or if
    /// it was released after its handle was dropped.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.shared.lock().progress(self.id?)
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stopper").field(&self.id).finish()
    }
}

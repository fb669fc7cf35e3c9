//! The threads around the scheduler.

use std::{
    fmt, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Context, Poll, Wake},
    time::Duration,
};

use hashfinder_kernels::Kernel;

use crate::{
    client::Client,
    cursor::Cursor,
    ids::SearchId,
    keyspace::Index,
    limits::{Limits, OverLimit, Usage},
    outcome::{Event, Outcome, Release, Report},
    progress::{Metrics, Progress},
    query::{Candidate, Query},
    scheduler::{Effects, Job, Scheduler, Wish},
    slice::{Done, FIRST_SLICE, Slice},
    sought::{Found, Sought},
    sync::{
        AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard,
        thread::{self, JoinHandle, Thread},
    },
};

/// What tries slices: the CPU's kernels, or another machine's.
///
/// It is called once for each slice and never told to stop; the engine keeps slices so short that
/// nobody has to wait for one, but for secrets that take long each.
pub trait Backend: Send + Sync + 'static {
    /// Tries the secrets of `slice` in order, adds those that are [`sought`](Sought) to `hits`, and returns
    /// one past the last index tried: the slice's end, or, when `hits` has come to hold `limit`, one past
    /// the last hit's.
    ///
    /// A panic ends the search with [`Outcome::Failed`] and no other: searches that shared the slice
    /// go on, each alone.
    fn scan(
        &self,
        slice: Range<Index>,
        sought: &Sought,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index;

    /// About what trying a secret costs, in hashes of a fast kernel. By this it is decided which searches
    /// share slices, and how long their first slices are; the answer is the same whatever it says.
    fn cost(&self, sought: &Sought) -> f64 {
        sought.cost(Kernel::best())
    }

    /// Whether a thousand secrets are tried in a few microseconds, on the thread that asks. Then whoever
    /// begins a search tries the first of them itself: many a search is over with these, and to hand
    /// it to a worker and wait would take several times as long.
    fn is_at_hand(&self, _sought: &Sought) -> bool {
        false
    }
}

/// What a secret may cost for a thousand to be tried at once. For one name it is a little more than its
/// hash.
const AT_HAND: f64 = 2.0;

impl Backend for Kernel {
    fn scan(
        &self,
        slice: Range<Index>,
        sought: &Sought,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        sought.scan(*self, slice, limit, hits)
    }

    fn cost(&self, sought: &Sought) -> f64 {
        sought.cost(*self)
    }

    fn is_at_hand(&self, sought: &Sought) -> bool {
        // The fast ones take seven to twenty microseconds, the portable one a tenth of a millisecond.
        self.name() != "portable" && sought.cost(*self) <= AT_HAND
    }
}

/// What came of the first secrets of a search.
enum Head {
    /// They were all that it takes.
    Over(Outcome),
    /// There are more to try, and each costs so much.
    Goes { cost: f64 },
}

/// A fixed set of threads that all searches share.
///
/// Dropping the engine stops every search, waits for the threads to finish the slices that they are on
/// (about half a millisecond, or as long as a single secret takes where that is longer; with thousands of
/// searches, a filter for them may be under way, which takes tens of milliseconds), and joins them.
/// Handles of searches stay usable and tell the end.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    scheduler: Mutex<Scheduler>,
    /// Signalled when a worker that found nothing to do may find something.
    work: Condvar,
    /// How many workers wait for that; changed under the scheduler's lock. A signal is a system call
    /// whether or not anybody waits.
    sleepers: AtomicUsize,
    closing: AtomicBool,
    backend: Box<dyn Backend>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl Engine {
    /// Starts threads that run slices on `backend`: `workers`, or as many as the system gives, which
    /// [`workers`](Self::workers) returns.
    ///
    /// `clock` returns the time since some fixed moment and never goes back; slices are sized by it. It is
    /// called while the engine holds its lock, so it must not use the engine.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    ///
    /// # Panics
    ///
    /// If `workers` is 0: nothing would ever end.
    pub fn start(
        workers: usize,
        backend: impl Backend,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> io::Result<Engine> {
        Engine::with_limits(workers, backend, clock, Limits::default())
    }

    /// Like [`start`](Self::start), with other limits than the default ones.
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
        assert!(workers > 0, "an engine without workers searches nothing");
        let mut engine = Engine {
            shared: Arc::new(Shared {
                scheduler: Mutex::new(Scheduler::new(limits)),
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

    /// Begins a search for a client. Where the backend is at hand, the first 1,024 secrets of one that asks
    /// for nothing but its answer are tried here and now, which takes seven to twenty microseconds.
    ///
    /// `on_release` is called once, when the search has ended *and* its last worker has let go of it; what
    /// must live as long as the work, a permit say, goes in there. It runs on whichever thread brings
    /// the release about, this one perhaps, so it should be quick.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] if the client or all of them have as much as they may have; `on_release` is dropped.
    pub fn search(
        &self,
        client: Client,
        query: Query,
        on_release: impl FnOnce(Report) + Send + 'static,
    ) -> Result<Search, OverLimit> {
        let clock = &self.shared.clock;
        // By itself, so that the lock is gone before what is released in vain, which is other people's code.
        let admitted = self.shared.lock().admit(&client, clock());
        admitted?;
        let release: Release = Box::new(on_release);
        let began = clock();
        let (until, head) = self.shared.try_head(&query);
        let now = clock();
        let (hashes, took) = (until - query.range().start, now.saturating_sub(began));
        let head = match head {
            Head::Over(outcome) => Err(outcome),
            Head::Goes { cost } => Ok(Wish {
                rate: query.hit_rate(),
                cost,
                query,
            }),
        };
        let mut scheduler = self.shared.lock();
        let (state, effects) = match head {
            Err(outcome) => {
                let report = Report {
                    outcome: outcome.clone(),
                    hashes,
                    tests: hashes,
                    stop_latency: None,
                };
                let effects = scheduler.ended_at_once(&client, release, report, took, now);
                (State::Ended(outcome, until), effects)
            }
            Ok(wish) => {
                let (id, effects) = scheduler.submit(client, wish, hashes, took, release, now);
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

    /// What the engine has done, and is doing.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.lock().metrics()
    }

    /// What a client has had; nothing for one that has no searches.
    #[must_use]
    pub fn usage(&self, client: &str) -> Usage {
        self.shared.lock().usage(client)
    }

    /// Returns how many threads search.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let stopped = {
            let now = (self.shared.clock)();
            // Under the lock, so that no worker is between looking and going to sleep.
            let mut scheduler = self.shared.lock();
            self.shared.closing.store(true, Ordering::Release);
            scheduler.stop_all(now)
        };
        self.shared.work.notify_all();
        self.shared.carry_out(stopped);
        for worker in self.workers.drain(..) {
            // A worker catches the backend's panics; if one still died, there is nothing to join.
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
        // A failed assertion in one search must not take every other one down with it.
        self.scheduler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries the first secrets of a search, if that is done here, and tells up to which index.
    fn try_head(&self, query: &Query) -> (Index, Head) {
        let range = query.range();
        let slice = range.start..range.end.min(range.start.saturating_add(FIRST_SLICE));
        let mut hits = Vec::new();
        let scan = AssertUnwindSafe(|| {
            let sought = query.sought();
            let is_here = !query.reports_candidates() && self.backend.is_at_hand(&sought);
            let tried = is_here.then(|| self.backend.scan(slice, &sought, 1, &mut hits));
            (tried, self.backend.cost(&sought))
        });
        let (tried, cost) = match catch_unwind(scan) {
            Ok((tried, cost)) => (tried.unwrap_or(range.start), cost),
            Err(_) => {
                let failed = Outcome::Failed(Cursor::new(query, range.start));
                return (range.start, Head::Over(failed));
            }
        };
        // Of one secret, for each of the names that it is near enough to.
        let candidates = hits.iter().filter_map(|hit| {
            Some(Candidate {
                index: hit.index,
                name: u8::try_from(hit.number).ok()?,
                distance: hit.distance,
                window: hit.window,
            })
        });
        let head = match candidates.min_by_key(Candidate::nearness) {
            Some(nearest) => Head::Over(Outcome::Ideal(nearest)),
            None if tried == range.end => Head::Over(Outcome::in_vain(query, tried)),
            None => Head::Goes { cost },
        };
        (tried, head)
    }

    /// A worker's life.
    fn work(&self) {
        while let Some(job) = self.wait_for_job() {
            match job {
                Job::Slice(slice) => self.carry_through(&slice),
                Job::Build(mut build) => {
                    // One whose making panics is not made, and those who were to be in it are told apart.
                    let cost_of = |sought: &Sought| self.backend.cost(sought);
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
    fn carry_through(&self, slice: &Slice) {
        let done = self.try_slice(slice);
        let now = (self.clock)();
        let effects = self.lock().finish(slice.id, done, now);
        self.carry_out(effects);
    }

    fn try_slice(&self, slice: &Slice) -> Done {
        // Read once per slice, so that stopping costs at most the slice that is being tried.
        if slice.stop.load(Ordering::Relaxed) {
            return Done::Tried {
                tried: slice.range.start,
                hits: Vec::new(),
            };
        }
        let mut hits = Vec::new();
        let scan = AssertUnwindSafe(|| {
            let sought = slice.set.sought();
            self.backend
                .scan(slice.range.clone(), sought, slice.hit_limit, &mut hits)
        });
        match catch_unwind(scan) {
            Ok(tried) => Done::Tried { tried, hits },
            Err(_) => Done::Panicked,
        }
    }

    fn wait_for_job(&self) -> Option<Job> {
        loop {
            let mut effects = Effects::default();
            let mut scheduler = self.lock();
            // Not before there is the lock: waiting for it is no part of the slice.
            let now = (self.clock)();
            if self.closing.load(Ordering::Acquire) {
                return None;
            }
            let job = scheduler
                .upkeep(now)
                .or_else(|| scheduler.next_job(now, &mut effects));
            if job.is_none() && effects.is_empty() && !scheduler.has_work() {
                self.sleepers.fetch_add(1, Ordering::Relaxed);
                // The guard is dropped at once: after a sleep it takes a new look at the clock.
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

    /// Never called with the lock held: wakers and releases are other people's code.
    fn carry_out(&self, effects: Effects) {
        if effects.work {
            // One at a time: whoever comes and finds more than it can take calls the next. Whoever is
            // about to wait has seen the work that this is about, because both had the lock.
            if self.sleepers.load(Ordering::Relaxed) > 0 {
                self.work.notify_one();
            }
        }
        for (release, report) in effects.released {
            // A worker must survive what it is given to run.
            let _ = catch_unwind(AssertUnwindSafe(|| release(report)));
        }
        for waker in effects.wake {
            waker.wake();
        }
        drop(effects.stale);
    }
}

/// A search that is going on, as its reader sees it.
///
/// It goes on whether or not it is read, until its queue is full; then it waits for its reader and
/// takes no core. Dropping it stops the search.
pub struct Search {
    state: State,
    shared: Arc<Shared>,
}

enum State {
    UnderWay(SearchId),
    /// With its first secrets, up to this index.
    Ended(Outcome, Index),
}

impl Search {
    /// Waits for the next candidates, or for the end. After the end it tells the same end again.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_next(cx, 1)).await
    }

    /// Like [`next`](Self::next), but waits until there are `at_least` candidates, the queue is
    /// full, or no more will come. The task of the latest call is the one that is woken.
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

    /// Like [`next`](Self::next), for a thread that may wait.
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

    /// What stops the search from elsewhere.
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

    /// Every index below this one has been tried.
    #[must_use]
    pub fn frontier(&self) -> Index {
        match self.state {
            // The handle keeps the search known.
            State::UnderWay(id) => self.shared.lock().frontier(id).unwrap_or_default(),
            State::Ended(_, frontier) => frontier,
        }
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

/// Stops a search, from any thread, without owning it.
#[derive(Clone)]
pub struct Stopper {
    /// `None` for a search that had ended before it had one.
    id: Option<SearchId>,
    shared: Arc<Shared>,
}

impl Stopper {
    /// Stops the search: every worker lets go of it within the slice that it is on, and a search that waits
    /// for its turn or its reader ends at once. Does nothing to a search that has ended.
    pub fn stop(&self) {
        if let Some(id) = self.id {
            self.shared.stop(id);
        }
    }

    /// How the search comes on; `None` for one that ended before it had a stopper, or that nobody
    /// has a handle of any more.
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

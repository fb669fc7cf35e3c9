//! Threads that try leases of a dispatcher in another process.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    time::Duration,
};

use crate::{
    engine::Backend,
    group::Group,
    keyspace::Index,
    ledger::Ledger,
    matcher::Found,
    pacing::{Pacing, SLICE_TIME, Worker},
    query::Query,
    slice::FIRST_SLICE,
    sync::{
        Condvar, Mutex, MutexGuard,
        thread::{self, JoinHandle},
    },
};

/// Queries whose names are searched for together. Clones share the filter, which the first thread
/// that needs it plans.
#[derive(Clone)]
pub struct QuerySet {
    group: Arc<Group>,
    /// Number of the first queries of which an ideal hit ends a task.
    ending: usize,
}

impl QuerySet {
    /// Creates a set from the queries of a [`Lease`](crate::Lease), in the same order. `None` if
    /// there are none, or if they cannot be searched for together: they differ in more than their
    /// names, distances and anchors.
    #[must_use]
    pub fn new(queries: &[Query]) -> Option<QuerySet> {
        let first = queries.first()?;
        let is_compatible = queries.iter().all(|query| first.is_compatible_with(query));
        is_compatible.then(|| {
            // A member's number is the place of its query.
            let members = (0..).take(queries.len()).collect();
            let ending = queries.len();
            let queries = queries.iter().cloned().map(Arc::new);
            QuerySet {
                group: Arc::new(Group::new(queries.collect(), members)),
                ending,
            }
        })
    }

    /// Makes tasks of this set end early only at an ideal hit of one of its first queries, this
    /// many.
    #[must_use]
    pub fn ending_at(self, ending: usize) -> QuerySet {
        QuerySet { ending, ..self }
    }

    /// Returns the queries of which an ideal hit ends a task.
    pub fn ending(&self) -> impl Iterator<Item = &Query> {
        self.queries().take(self.ending)
    }

    /// Returns the queries.
    pub fn queries(&self) -> impl Iterator<Item = &Query> {
        self.group.queries()
    }

    /// Whether a hit ends the task.
    fn is_ideal(&self, hit: &Found) -> bool {
        let owner = self.group.owner(hit.number);
        let query = owner.and_then(|(place, _)| self.ending().nth(place as usize));
        query.is_some_and(|query| query.is_ideal(hit.distance))
    }
}

impl fmt::Debug for QuerySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.group.queries()).finish()
    }
}

/// What was tried of a task. No thread works on it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The task.
    pub task: TaskId,
    /// One past the last index tried: every secret of the task below it was.
    pub tried: Index,
    /// The indices of the hits among these, in order.
    pub hits: Vec<Index>,
    /// Time since the first of them was tried.
    pub took: Duration,
    /// Whether trying the secrets panicked. `tried` is then the start of the task.
    pub failed: bool,
}

/// Number of a task. Its owner chooses it, and uses it only once for each [`Crew`]: leases of
/// different dispatchers may have the same number.
pub type TaskId = u64;

/// A fixed set of threads that try the secrets of tasks, one task after another.
///
/// All threads work on the first task, and begin the next one while its last slices are tried. A
/// task is done early at a hit that ends one of the searches, unless its set
/// [excludes it](QuerySet::ending_at). One that is [stopped](Self::stop) is
/// left within one slice, half a millisecond. Dropping the crew joins the threads, which takes as
/// long; tasks that are not done are never reported.
pub struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when there are slices for threads that wait.
    work: Condvar,
    backend: Box<dyn Backend>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    on_done: Box<dyn Fn(Tried) + Send + Sync>,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    /// Number of secrets of the next slice.
    length: u64,
    is_closing: bool,
}

/// A task that is being tried.
struct Task {
    id: TaskId,
    set: QuerySet,
    range: Range<Index>,
    hit_limit: usize,
    ledger: Ledger,
    /// Hits, also beyond the frontier.
    hits: BTreeSet<Index>,
    /// The first hit that ends a search.
    ideal: Option<Index>,
    /// Number of its slices that threads have.
    out: usize,
    began: Option<Duration>,
    is_stopping: bool,
    failed: bool,
}

/// A part of a task, for one thread.
struct Part {
    id: TaskId,
    set: QuerySet,
    range: Range<Index>,
    hit_limit: usize,
}

impl Crew {
    /// Starts `workers` threads, or fewer if the system cannot start as many.
    ///
    /// `clock` returns the time since some fixed moment and never goes back. `on_done` is called
    /// once for each task, when it is done or stopped, on any thread.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    ///
    /// # Panics
    ///
    /// If `workers` is 0: no task would ever be done.
    pub fn start(
        workers: usize,
        backend: impl Backend,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
        on_done: impl Fn(Tried) + Send + Sync + 'static,
    ) -> io::Result<Crew> {
        assert!(workers > 0, "a crew needs at least one worker");
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            backend: Box::new(backend),
            clock: Box::new(clock),
            on_done: Box::new(on_done),
        });
        let mut crew = Crew {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        for number in 0..workers {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("search-{number}"));
            match thread.spawn(move || shared.run()) {
                Ok(thread) => crew.threads.push(thread),
                Err(error) if crew.threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(crew)
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Adds a task, to be tried after those before it.
    pub fn begin(&self, id: TaskId, set: QuerySet, range: Range<Index>, hit_limit: usize) {
        let mut state = self.shared.lock();
        let last = state.tasks.back();
        if last.is_none_or(|last| !Arc::ptr_eq(&last.set.group, &set.group)) {
            state.length = FIRST_SLICE;
        }
        state.tasks.push_back(Task {
            id,
            set,
            ledger: Ledger::new(range.start, Pacing::default().most_ahead),
            range,
            hit_limit: hit_limit.max(1),
            hits: BTreeSet::new(),
            ideal: None,
            out: 0,
            began: None,
            is_stopping: false,
            failed: false,
        });
        // A task without secrets is done at once.
        let done = state.take_done(id, (self.shared.clock)());
        drop(state);
        self.shared.work.notify_all();
        self.shared.report(done);
    }

    /// Stops a task: it is done as soon as its slices have come back. A task that is done already
    /// is ignored.
    pub fn stop(&self, id: TaskId) {
        let mut state = self.shared.lock();
        if let Some(task) = state.task(id) {
            task.is_stopping = true;
        }
        let done = state.take_done(id, (self.shared.clock)());
        drop(state);
        self.shared.report(done);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closing = true;
        state.tasks.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread catches the backend's panics. If it panicked elsewhere, its result is of no
            // use here.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew")
            .field("workers", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, done: Option<Tried>) {
        if let Some(done) = done {
            (self.on_done)(done);
        }
    }

    /// Tries slices until the crew is dropped.
    fn run(&self) {
        let mut hits = Vec::new();
        loop {
            let mut state = self.lock();
            let part = loop {
                if state.is_closing {
                    return;
                }
                let now = (self.clock)();
                if let Some(part) = state.take(now) {
                    break part;
                }
                let waited = self.work.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let began = (self.clock)();
            hits.clear();
            let scan = AssertUnwindSafe(|| {
                let matcher = part.set.group.matcher();
                let (range, limit) = (part.range.clone(), part.hit_limit);
                self.backend.scan(range, matcher, limit, &mut hits)
            });
            let tried = catch_unwind(scan).ok();
            let now = (self.clock)();
            let mut state = self.lock();
            state.finish(&part, tried, &hits, now.saturating_sub(began));
            let done = state.take_done(part.id, now);
            drop(state);
            self.report(done);
        }
    }
}

impl State {
    fn task(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.id == id)
    }

    /// Returns the next part to try.
    fn take(&mut self, now: Duration) -> Option<Part> {
        let length = self.length;
        self.tasks.iter_mut().find_map(|task| {
            if task.is_stopping || task.failed {
                return None;
            }
            let range = task.ledger.take(length, task.range.end)?;
            task.began.get_or_insert(now);
            task.out += 1;
            Some(Part {
                id: task.id,
                set: task.set.clone(),
                range,
                hit_limit: task.hit_limit,
            })
        })
    }

    /// Records what was tried of a part; `None` if that panicked.
    fn finish(&mut self, part: &Part, tried: Option<Index>, hits: &[Found], took: Duration) {
        let length = part.range.end - part.range.start;
        if tried == Some(part.range.end) && length == self.length {
            let longest = Worker::default().longest_slice;
            if took < SLICE_TIME / 2 {
                self.length = (length * 2).min(longest);
            } else if took > SLICE_TIME * 2 {
                self.length = (length / 2).max(1);
            }
        }
        let Some(task) = self.task(part.id) else {
            return;
        };
        task.out -= 1;
        match tried {
            Some(tried) => {
                task.ledger.finish(part.range.clone(), tried);
                task.hits.extend(hits.iter().map(|hit| hit.index));
                let ideal = hits.iter().find(|hit| part.set.is_ideal(hit));
                let ideal = ideal.map(|hit| hit.index).into_iter();
                task.ideal = task.ideal.into_iter().chain(ideal).min();
            }
            None => task.failed = true,
        }
    }

    /// Removes a task and returns what was tried of it, if it is done.
    fn take_done(&mut self, id: TaskId, now: Duration) -> Option<Tried> {
        let place = self.tasks.iter().position(|task| task.id == id)?;
        let task = &self.tasks[place];
        let frontier = task.ledger.done();
        let last = task.hits.iter().nth(task.hit_limit - 1).copied();
        // A hit that ends a search should be reported at once.
        let last = last.into_iter().chain(task.ideal).min();
        let last = last.filter(|last| *last < frontier);
        let is_done = last.is_some()
            || frontier >= task.range.end
            || task.out == 0 && (task.is_stopping || task.failed);
        if !is_done {
            return None;
        }
        let task = self.tasks.remove(place)?;
        let tried = match last {
            _ if task.failed => task.range.start,
            Some(last) => last + 1,
            None => frontier,
        };
        let took = task
            .began
            .map_or(Duration::ZERO, |began| now.saturating_sub(began));
        Some(Tried {
            task: id,
            tried,
            hits: task.hits.range(..tried).copied().collect(),
            took,
            failed: task.failed,
        })
    }
}

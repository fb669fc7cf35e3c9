//! A search wherever it runs: on this server's engine, or in a fleet.
//!
//! A search begins on the engine. The search of a call moves to the fleet after [`STAYS_FOR`] if
//! there are agents; that of an operation moves as soon as there are agents. If the fleet cannot
//! work on it, it comes back. Each move takes the search's
//! checkpoint along, so it changes neither the answer nor the budget.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use hashfinder_fleet_nats::{Fleet, FleetAdvance, FleetRelease, FleetSearch};
use hashfinder_search::{
    Admission, Advance, Candidate, Checkpoint, Client, Engine, Event, Outcome, Progress, Query,
    Report, ResumableSearch, Search,
};
use tokio::time::{Instant, Sleep, sleep};

use crate::searches::{record::Record, stopper::Stopper};

/// Time for which the search of a call stays on its server: most end within it, and passing one on
/// takes a few milliseconds.
const STAYS_FOR: Duration = Duration::from_millis(200);

/// Time after which a search that stayed, because the fleet had no agents, tries again.
const TRIES_EVERY: Duration = Duration::from_secs(1);

/// Callback for the moment when all work on a search has stopped.
type OnRelease = Box<dyn FnOnce(Report) + Send>;

/// Runs that callback once, after every place where the search was has released it, with the report
/// of the last one.
pub(crate) struct Release(Mutex<ReleaseState>);

struct ReleaseState {
    on_release: Option<OnRelease>,
    /// Number of places where the search was.
    places: u64,
    /// Number of these that have not released it.
    unreleased: u64,
    /// Number of secrets that were covered before it came to the last one.
    covered: u64,
    /// Whether it is being stopped there, to leave that place.
    is_leaving: bool,
    /// The report of the last one.
    report: Option<Report>,
}

/// A place where a search is.
pub(crate) struct Visit {
    number: u64,
    release: Arc<Release>,
}

impl Release {
    pub(crate) fn new(on_release: impl FnOnce(Report) + Send + 'static) -> Arc<Release> {
        Arc::new(Release(Mutex::new(ReleaseState {
            on_release: Some(Box::new(on_release)),
            places: 0,
            unreleased: 0,
            covered: 0,
            is_leaving: false,
            report: None,
        })))
    }

    /// Notes that the search comes to another place, after it has covered this number of secrets.
    pub(crate) fn visit(self: &Arc<Release>, covered: u64) -> Visit {
        let mut state = self.lock();
        state.places += 1;
        state.unreleased += 1;
        state.covered = covered;
        state.is_leaving = false;
        state.report = None;
        Visit {
            number: state.places,
            release: Arc::clone(self),
        }
    }

    /// Notes whether the search is being stopped to leave its place.
    fn set_leaving(&self, is_leaving: bool) {
        let mut state = self.lock();
        state.is_leaving = is_leaving;
        finish(state);
    }

    fn lock(&self) -> MutexGuard<'_, ReleaseState> {
        // No code under this lock panics in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// The engine has released the search.
    pub(crate) fn by_engine(self, report: Report) {
        let mut state = self.release.lock();
        state.unreleased -= 1;
        if state.places == self.number {
            state.report = Some(Report {
                hashes: report.hashes + state.covered,
                tests: report.tests + state.covered,
                ..report
            });
        }
        finish(state);
    }

    /// The fleet has released the search.
    fn by_fleet(self, release: FleetRelease) {
        let FleetRelease {
            outcome,
            covered,
            took,
        } = release;
        let mut state = self.release.lock();
        state.unreleased -= 1;
        if state.places == self.number {
            let is_stopped = matches!(outcome, Outcome::Stopped(_) | Outcome::QuotaSpent { .. });
            state.report = Some(Report {
                outcome,
                hashes: covered,
                tests: covered,
                stop_latency: is_stopped.then_some(took),
            });
        }
        finish(state);
    }
}

/// Runs the callback, without the lock, if all work has stopped.
fn finish(mut state: MutexGuard<'_, ReleaseState>) {
    if state.unreleased > 0 || state.is_leaving {
        return;
    }
    let Some(report) = state.report.take() else {
        return;
    };
    let on_release = state.on_release.take();
    drop(state);
    if let Some(on_release) = on_release {
        on_release(report);
    }
}

/// The reader's handle of a search, wherever it runs. Dropping it stops the search.
pub(crate) struct Run {
    place: Place,
    travel: Option<Travel>,
}

enum Place {
    Engine(Search),
    /// The admission counts the search as one of its client.
    Fleet(FleetSearch, Option<Admission>),
}

/// State of a search that can move.
pub(crate) struct Travel {
    pub(crate) engine: Arc<Engine>,
    pub(crate) fleet: Fleet,
    pub(crate) client: Client,
    pub(crate) query: Query,
    pub(crate) record: Arc<Record>,
    pub(crate) release: Arc<Release>,
    /// Whether the search was stopped on the engine, to leave it.
    is_leaving: bool,
    /// Number of secrets that were covered before the search came to the engine.
    covered: u64,
    /// Candidates from the fleet that were not read yet.
    ready: Vec<Candidate>,
    /// When to look for agents.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Travel {
    /// Creates what a search needs that begins on the engine.
    pub(crate) fn new(
        engine: Arc<Engine>,
        fleet: Fleet,
        client: Client,
        query: Query,
        record: Arc<Record>,
        release: Arc<Release>,
    ) -> Travel {
        Travel {
            engine,
            fleet,
            client,
            query,
            record,
            release,
            is_leaving: false,
            covered: 0,
            ready: Vec::new(),
            timer: None,
        }
    }

    /// Whether the search should move to the fleet now. If not, the task is woken later.
    fn should_leave(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_leaving {
            return false;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(STAYS_FOR)));
        while timer.as_mut().poll(cx).is_ready() {
            if self.fleet.has_agents() {
                return true;
            }
            timer.as_mut().reset(Instant::now() + TRIES_EVERY);
        }
        false
    }

    /// Moves the search to the fleet.
    fn leave(&mut self, checkpoint: Checkpoint) -> (FleetSearch, Option<Admission>) {
        self.timer = None;
        let query = self.query.clone();
        let admission = self.engine.readmit(self.client.clone());
        let visit = self.release.visit(checkpoint.covered(&query));
        let on_release = Box::new(move |left| visit.by_fleet(left));
        let search = (self.fleet).search(self.client.clone(), query, checkpoint, on_release);
        (search, Some(admission))
    }

    /// Moves the search back to the engine.
    fn come_back(&mut self, admission: Admission, checkpoint: Checkpoint) -> ResumableSearch {
        self.covered = checkpoint.covered(&self.query);
        let (query, visit) = (self.query.clone(), self.release.visit(self.covered));
        let on_release = move |report| visit.by_engine(report);
        (self.engine).resume(admission, query, checkpoint, false, on_release)
    }
}

impl Run {
    /// Returns the handle of a search that has begun on the engine. With `travel`, it can move.
    pub(crate) fn new(search: Search, travel: Option<Travel>) -> Run {
        Run {
            place: Place::Engine(search),
            travel,
        }
    }

    /// Returns what stops the search where it is now.
    fn stopper(&self) -> Stopper {
        match &self.place {
            Place::Engine(search) => {
                let covered = self.travel.as_ref().map_or(0, |travel| travel.covered);
                Stopper::Engine(search.stopper(), covered)
            }
            Place::Fleet(search, _) => Stopper::Fleet(search.stopper()),
        }
    }

    /// Returns the progress of the search, unless it ended with its first secrets.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.stopper().progress()
    }

    /// Returns the next candidates once there are `at_least` of them, the queue is full, or no more
    /// will come. After the last candidates, returns the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>, at_least: usize) -> Poll<Event> {
        loop {
            let event = match (&mut self.place, &mut self.travel) {
                (Place::Engine(search), None) => return search.poll_next(cx, at_least),
                (Place::Engine(search), Some(travel)) => {
                    if !travel.ready.is_empty() {
                        let ready = std::mem::take(&mut travel.ready);
                        return Poll::Ready(Event::Candidates(ready));
                    }
                    let event = search.poll_next(cx, at_least);
                    if event.is_pending() && travel.should_leave(cx) {
                        travel.is_leaving = true;
                        travel.release.set_leaving(true);
                        search.stopper().stop();
                        continue;
                    }
                    event
                }
                (Place::Fleet(search, admission), Some(travel)) => {
                    let FleetAdvance {
                        advance,
                        is_stranded,
                    } = search.advance(cx.waker());
                    travel.ready.extend(advance.candidates);
                    if is_stranded && let Some(admission) = admission.take() {
                        let search = travel.come_back(admission, advance.checkpoint);
                        travel.timer = Some(Box::pin(sleep(TRIES_EVERY)));
                        self.move_to(Place::Engine(search.into_search()));
                        continue;
                    }
                    let has_ended = advance.outcome.is_some();
                    let ready = travel.ready.len();
                    if ready >= at_least || has_ended && ready > 0 {
                        let ready = std::mem::take(&mut travel.ready);
                        return Poll::Ready(Event::Candidates(ready));
                    }
                    let ended = advance.outcome.map(Event::Ended);
                    return ended.map_or(Poll::Pending, Poll::Ready);
                }
                (Place::Fleet(..), None) => {
                    unreachable!("only a search that can move is in a fleet")
                }
            };
            let (Poll::Ready(Event::Ended(outcome)), Some(travel)) = (&event, &mut self.travel)
            else {
                return event;
            };
            if !std::mem::take(&mut travel.is_leaving) {
                return event;
            }
            let is_over = travel.record.is_stopped() || !matches!(outcome, Outcome::Stopped(_));
            let checkpoint = match &self.place {
                Place::Engine(search) if !is_over => search.checkpoint(),
                _ => None,
            };
            let Some(checkpoint) = checkpoint else {
                travel.release.set_leaving(false);
                return event;
            };
            let (fleet, admission) = travel.leave(checkpoint);
            self.move_to(Place::Fleet(fleet, admission));
        }
    }

    /// Notes where the search is now. If it was stopped on the way, it is stopped there.
    fn move_to(&mut self, place: Place) {
        self.place = place;
        let stopper = self.stopper();
        if let Some(travel) = &self.travel {
            travel.record.started(&stopper);
        }
    }
}

/// The runner's handle of an operation's search, wherever it runs. Dropping it stops the search.
pub(crate) struct OperationRun {
    place: OperationPlace,
    travel: Option<Travel>,
}

enum OperationPlace {
    Engine(ResumableSearch),
    Fleet(FleetSearch, Option<Admission>),
}

impl OperationRun {
    /// Returns the handle of a search that has begun on the engine. With `travel`, it can move.
    pub(crate) fn new(search: ResumableSearch, travel: Option<Travel>) -> OperationRun {
        OperationRun {
            place: OperationPlace::Engine(search),
            travel,
        }
    }

    /// Takes new candidates and progress, as [`ResumableSearch::advance`] does. Also checks whether
    /// the fleet has agents, so call it regularly.
    pub(crate) fn advance(&mut self, waker: &Waker) -> Advance {
        let Some(travel) = &mut self.travel else {
            return match &mut self.place {
                OperationPlace::Engine(search) => search.advance(waker),
                OperationPlace::Fleet(search, _) => search.advance(waker).advance,
            };
        };
        let (place, mut advance) = match &mut self.place {
            OperationPlace::Engine(search) => {
                let mut advance = search.advance(waker);
                // As the list of searches counts.
                advance.progress.hashes += travel.covered;
                advance.progress.tests += travel.covered;
                if advance.outcome.is_none() {
                    if !travel.is_leaving && travel.fleet.has_agents() {
                        travel.is_leaving = true;
                        travel.release.set_leaving(true);
                        search.stopper().stop();
                    }
                    return advance;
                }
                if !std::mem::take(&mut travel.is_leaving) {
                    return advance;
                }
                let is_stopped = matches!(advance.outcome, Some(Outcome::Stopped(_)));
                if travel.record.is_stopped() || !is_stopped {
                    travel.release.set_leaving(false);
                    return advance;
                }
                let (search, admission) = travel.leave(advance.checkpoint.clone());
                (OperationPlace::Fleet(search, admission), advance)
            }
            OperationPlace::Fleet(search, admission) => {
                let FleetAdvance {
                    advance,
                    is_stranded,
                } = search.advance(waker);
                let admission = admission.take_if(|_| is_stranded);
                let Some(admission) = admission else {
                    return advance;
                };
                let search = travel.come_back(admission, advance.checkpoint.clone());
                (OperationPlace::Engine(search), advance)
            }
        };
        self.place = place;
        let stopper = match &self.place {
            OperationPlace::Engine(search) => Stopper::Engine(search.stopper(), travel.covered),
            OperationPlace::Fleet(search, _) => Stopper::Fleet(search.stopper()),
        };
        travel.record.started(&stopper);
        // So that the waker is woken.
        let next = match &mut self.place {
            OperationPlace::Engine(search) => search.advance(waker),
            OperationPlace::Fleet(search, _) => search.advance(waker).advance,
        };
        advance.candidates.extend(next.candidates);
        Advance {
            candidates: advance.candidates,
            ..next
        }
    }
}

impl Drop for OperationRun {
    /// The search ends where it is.
    fn drop(&mut self) {
        if let Some(travel) = &self.travel
            && travel.is_leaving
        {
            travel.release.set_leaving(false);
        }
    }
}

impl Drop for Run {
    /// The search ends where it is.
    fn drop(&mut self) {
        if let Some(travel) = &self.travel
            && travel.is_leaving
        {
            travel.release.set_leaving(false);
        }
    }
}

//! The record of one search: what the list of searches shows, why it was stopped, and how it ended.
//!
//! A record does not refer to the call that began the search, so a search can outlive its call or
//! have none.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use hashfinder_operations::Name;
use hashfinder_proto::{
    v1 as v1pb,
    v1::{EndReason, SearchEnded, SearchSummary},
};
use hashfinder_search::{Cursor, DesiredName, Index, Outcome, Progress, Query, SearchState};
use hashfinder_transport::ClientName;

use crate::{
    call_info::MethodName,
    errors::{CallError, Canceller},
    searches::{stop_cause::StopCause, stopper::Stopper},
};

/// The record of a search, from its admission on.
pub(crate) struct Record {
    /// The method that began it.
    method: MethodName,
    /// The operation that it belongs to, if it does.
    operation: Option<Name>,
    client: ClientName,
    /// The part of the query that the list shows. The query itself takes ten times as much memory;
    /// it belongs to the `Answer` and is dropped with it.
    names: Box<[Box<str>]>,
    ideal_distance: u8,
    /// Where the search began, and where its keyspace ends.
    start: Index,
    end: Index,
    began: Instant,
    began_at: SystemTime,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The id under which the search is listed, if it is.
    id: Option<Arc<str>>,
    /// Stops the search. Present from its start to its end.
    stopper: Option<Stopper>,
    /// The latest progress that was read from the engine.
    progress: Option<Progress>,
    /// The first reason to stop the search.
    stop: Option<Stop>,
    end: Option<SearchEnd>,
}

/// A reason to stop a search.
#[derive(Clone, Debug)]
enum Stop {
    /// It was cancelled by its id, with this message.
    Cancelled(Canceller, String),
    Other(StopCause),
}

/// The result of cancelling a search by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelResult {
    /// This was the first reason to stop it.
    Now,
    /// It was being stopped already.
    Before,
    /// It had ended, and nothing changed.
    HadEnded,
}

/// How a search ended.
#[derive(Clone, Debug)]
struct SearchEnd {
    at: SystemTime,
    reason: EndReason,
    message: String,
    cursor: String,
    hashes: u64,
    frontier: Index,
}

/// The part of a search's record that changes, for callers that watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    state: v1pb::SearchState,
    hashes: u64,
    frontier: Index,
}

impl Record {
    pub(crate) fn new(method: MethodName, client: ClientName, query: &Query) -> Record {
        let names = query.names().iter().map(DesiredName::as_str);
        Record {
            method,
            operation: None,
            client,
            names: names.map(Box::from).collect(),
            ideal_distance: query.ideal_distance().get(),
            start: query.start(),
            end: query.keyspace().end(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            state: Mutex::default(),
        }
    }

    /// Sets the operation that the search belongs to.
    pub(crate) fn of_operation(self, operation: Name) -> Record {
        Record {
            operation: Some(operation),
            ..self
        }
    }

    /// Returns the operation that the search belongs to, if it does.
    pub(crate) fn operation(&self) -> Option<&Name> {
        self.operation.as_ref()
    }

    /// Returns the method that began the search.
    pub(crate) fn method(&self) -> &MethodName {
        &self.method
    }

    /// Returns the client whose search it is.
    pub(crate) fn client(&self) -> &ClientName {
        &self.client
    }

    /// Returns the names that are searched for.
    pub(crate) fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Returns when the search was admitted.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Keeps the stopper of the search, which has begun here or has moved here. If there already is
    /// a reason to stop the search, stops it at once.
    pub(crate) fn started(&self, stopper: &Stopper) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        state.stopper = Some(stopper.clone());
        let is_stopped = state.stop.is_some();
        // Without the lock: the stop may release the work on this thread, and the release locks the
        // record.
        drop(state);
        if is_stopped {
            stopper.stop();
        }
    }

    /// Sets the id under which the search is listed. Returns whether the search has ended already.
    pub(crate) fn set_id(&self, id: Arc<str>) -> bool {
        let mut state = self.lock();
        state.id = Some(id);
        state.end.is_some()
    }

    /// Returns the id under which the search is listed, if it is.
    pub(crate) fn id(&self) -> Option<Arc<str>> {
        self.lock().id.clone()
    }

    /// Records how the search ended. Its reader and its last worker may both report the end; only
    /// the first report counts. Returns whether this report is the first and the search is listed.
    pub(crate) fn ended(&self, outcome: &Outcome, hashes: u64) -> bool {
        let mut state = self.lock();
        if state.end.is_some() {
            return false;
        }
        let end = SearchEnd::new(self.end, outcome, hashes, state.stop.as_ref());
        state.end = Some(end);
        let stopper = state.stopper.take();
        let is_listed = state.id.is_some();
        // The stopper may hold the last reference to the state of an engine, which must not be
        // dropped under the lock.
        drop(state);
        drop(stopper);
        is_listed
    }

    /// Stops the search by its id. Its reader receives the reason.
    pub(crate) fn cancel(&self, by: Canceller, reason: &str) -> CancelResult {
        let (result, stopper) = self.keep_stop(Stop::Cancelled(by, reason.to_owned()));
        if let Some(stopper) = stopper {
            stopper.stop();
        }
        result
    }

    /// Stops the search. Only the first stop of a search takes the engine's lock.
    pub(crate) fn stop(&self, cause: StopCause) {
        if let (_, Some(stopper)) = self.keep_stop(Stop::Other(cause)) {
            stopper.stop();
        }
    }

    /// Records why the search is being stopped, for a caller that itself stops it by dropping its
    /// handle.
    pub(crate) fn note_stop(&self, cause: StopCause) {
        self.keep_stop(Stop::Other(cause));
    }

    /// Records the reason if it is the first one, and then also returns the stopper. The stopper
    /// must be used without the lock: a stop may release the work on this thread, and the release
    /// locks the record.
    fn keep_stop(&self, stop: Stop) -> (CancelResult, Option<Stopper>) {
        let mut state = self.lock();
        if state.end.is_some() {
            return (CancelResult::HadEnded, None);
        }
        if state.stop.is_some() {
            return (CancelResult::Before, None);
        }
        state.stop = Some(stop);
        (CancelResult::Now, state.stopper.clone())
    }

    /// Whether there is a reason to stop the search.
    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stop.is_some()
    }

    /// Returns why the search was stopped. Meaningful only for a search that was stopped.
    pub(crate) fn stop_cause(&self) -> StopCause {
        cause_of(self.lock().stop.as_ref())
    }

    /// Returns the error that the reader of a stopped search receives.
    pub(crate) fn stopped(&self, cursor: Cursor) -> CallError {
        let stop = self.lock().stop.clone();
        let cause = cause_of(stop.as_ref());
        match (stop, cause) {
            (Some(Stop::Cancelled(by, reason)), _) => CallError::Cancelled { by, reason, cursor },
            (_, StopCause::Unread) => CallError::Unread(cursor),
            // Of these causes, only a drain lets the reader receive the error.
            (_, _) => CallError::Draining(Some(cursor)),
        }
    }

    /// Returns how the search ended, if it has.
    pub(crate) fn end(&self) -> Option<SearchEnded> {
        let end = self.lock().end.clone()?;
        Some(SearchEnded {
            reason: end.reason.into(),
            message: end.message,
            cursor: end.cursor,
            hashes: end.hashes,
            frontier: end.frontier,
        })
    }

    /// Returns the current values of the part of the record that changes.
    pub(crate) fn mark(&self) -> Mark {
        self.mark_of(&mut self.lock())
    }

    fn mark_of(&self, state: &mut State) -> Mark {
        if let Some(end) = &state.end {
            return Mark {
                state: v1pb::SearchState::Ended,
                hashes: end.hashes,
                frontier: end.frontier,
            };
        }
        // The engine has no progress between the end of the work and the report of that end.
        let progress = state.stopper.as_ref().and_then(Stopper::progress);
        state.progress = progress.or(state.progress);
        match state.progress {
            Some(progress) => Mark {
                state: wire_state(progress.state),
                hashes: progress.tests,
                frontier: progress.frontier,
            },
            None => Mark {
                state: v1pb::SearchState::Queued,
                hashes: 0,
                frontier: self.start,
            },
        }
    }

    /// Returns the current entry of the search in a list of searches.
    pub(crate) fn summary(&self) -> SearchSummary {
        let mut state = self.lock();
        let mark = self.mark_of(&mut state);
        let mut summary = SearchSummary {
            method: self.method.to_string(),
            client: self.client.to_string(),
            desired_names: self.names.iter().map(ToString::to_string).collect(),
            ideal_distance: i32::from(self.ideal_distance),
            state: mark.state.into(),
            started_at: Some(self.began_at.into()),
            hashes: mark.hashes,
            frontier: mark.frontier,
            operation: self
                .operation
                .as_ref()
                .map(Name::to_string)
                .unwrap_or_default(),
            ..SearchSummary::default()
        };
        if let Some(id) = &state.id {
            summary.search_id = id.to_string();
        }
        if let Some(end) = &state.end {
            summary.ended_at = Some(end.at.into());
            summary.end_reason = end.reason.into();
            summary.end_message.clone_from(&end.message);
            summary.cursor.clone_from(&end.cursor);
        }
        summary
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SearchEnd {
    fn new(keyspace_end: Index, outcome: &Outcome, hashes: u64, stop: Option<&Stop>) -> SearchEnd {
        let mut message = String::new();
        let (reason, cursor) = match outcome {
            Outcome::Ideal(_) => (EndReason::Found, None),
            Outcome::Exhausted => (EndReason::KeyspaceExhausted, None),
            Outcome::BudgetSpent(cursor) => (EndReason::HashBudgetSpent, Some(cursor)),
            Outcome::QuotaSpent { cursor, .. } => (EndReason::HashQuotaSpent, Some(cursor)),
            Outcome::Stopped(cursor) => {
                if let Some(Stop::Cancelled(_, why)) = stop {
                    message.clone_from(why);
                }
                let reason = match cause_of(stop) {
                    StopCause::Client => EndReason::CancelledByClient,
                    StopCause::Deadline => EndReason::DeadlineExceeded,
                    StopCause::Operator => EndReason::CancelledByOperator,
                    StopCause::Drain => EndReason::Draining,
                    StopCause::Unread => EndReason::StreamNotRead,
                    StopCause::Pause => EndReason::Paused,
                    StopCause::TooManyCandidates => EndReason::TooManyCandidates,
                };
                (reason, Some(cursor))
            }
            Outcome::Failed(cursor) => (EndReason::Failed, Some(cursor)),
        };
        let frontier = match (outcome, cursor) {
            (_, Some(cursor)) => cursor.frontier(),
            (Outcome::Ideal(candidate), None) => candidate.index + 1,
            (_, None) => keyspace_end,
        };
        SearchEnd {
            at: SystemTime::now(),
            reason,
            message,
            cursor: cursor.map(ToString::to_string).unwrap_or_default(),
            hashes,
            frontier,
        }
    }
}

impl Mark {
    pub(crate) fn of(summary: &SearchSummary) -> Mark {
        Mark {
            state: summary.state(),
            hashes: summary.hashes,
            frontier: summary.frontier,
        }
    }

    pub(crate) fn state(self) -> v1pb::SearchState {
        self.state
    }

    pub(crate) fn has_ended(self) -> bool {
        self.state == v1pb::SearchState::Ended
    }
}

/// Converts the engine's state of a search whose record has no end yet.
pub(crate) fn wire_state(state: SearchState) -> v1pb::SearchState {
    match state {
        SearchState::Queued => v1pb::SearchState::Queued,
        SearchState::Parked => v1pb::SearchState::Parked,
        // Such a search counts as running, even if the engine has ended it.
        SearchState::Running | SearchState::Ended => v1pb::SearchState::Running,
    }
}

/// Returns the cause of a stop. Without a stop, the engine itself stopped the search because it was
/// dropped, which happens when the server shuts down.
fn cause_of(stop: Option<&Stop>) -> StopCause {
    match stop {
        Some(Stop::Cancelled(by, _)) => (*by).into(),
        Some(Stop::Other(cause)) => *cause,
        None => StopCause::Drain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::searches::registry::{Registry, Viewer};
    use hashfinder_search::{Client, Distance, Engine, Event, Kernel, Search};
    use std::num::NonZeroU64;

    fn query() -> Query {
        Query::new("aa".parse().unwrap(), Distance::ZERO).unwrap()
    }

    /// A search that ends only when it is stopped.
    fn endless() -> Query {
        let name = "hashfinderhashfinder".parse().unwrap();
        Query::new(name, Distance::ZERO).unwrap()
    }

    fn method() -> MethodName {
        MethodName::new("a.Service", "Method")
    }

    fn client() -> ClientName {
        ClientName::unknown()
    }

    fn begin(query: &Query) -> (Engine, Search, Record) {
        let started = Instant::now();
        let engine = Engine::start(1, Kernel::best(), move || started.elapsed()).unwrap();
        let search = engine.search(Client::default(), query.clone(), |_| {});
        let search = search.unwrap();
        let record = Record::new(method(), client(), query);
        record.started(&Stopper::Engine(search.stopper(), 0));
        (engine, search, record)
    }

    fn record() -> Record {
        Record::new(method(), client(), &query())
    }

    fn stopped() -> Outcome {
        Outcome::Stopped(Cursor::new(&query(), 7))
    }

    #[test]
    fn the_first_cancel_counts() {
        let record = record();
        record.set_id("id".into());
        let first = record.cancel(Canceller::Client, "the first");
        assert_eq!(first, CancelResult::Now);
        let second = record.cancel(Canceller::Operator, "the second");
        assert_eq!(second, CancelResult::Before);
        assert!(record.ended(&stopped(), 7));
        // A second report of the end changes nothing.
        assert!(!record.ended(&Outcome::Exhausted, 9));
        let third = record.cancel(Canceller::Operator, "the third");
        assert_eq!(third, CancelResult::HadEnded);
        let end = record.end().unwrap();
        assert_eq!(end.reason(), EndReason::CancelledByClient);
        assert_eq!(
            (&end.message[..], end.hashes, end.frontier),
            ("the first", 7, 7)
        );
        let cursor = Cursor::new(&query(), 7);
        assert_eq!(
            record.stopped(cursor.clone()),
            CallError::Cancelled {
                by: Canceller::Client,
                reason: "the first".to_owned(),
                cursor,
            }
        );
    }

    #[test]
    fn a_cancel_after_another_cause_leaves_no_message() {
        let record = record();
        record.stop(StopCause::Drain);
        let late = record.cancel(Canceller::Operator, "too late");
        assert_eq!(late, CancelResult::Before);
        record.ended(&stopped(), 7);
        let end = record.end().unwrap();
        assert_eq!((end.reason(), &end.message[..]), (EndReason::Draining, ""));
        let cursor = Cursor::new(&query(), 7);
        let draining = CallError::Draining(Some(cursor.clone()));
        assert_eq!(record.stopped(cursor), draining);
    }

    #[test]
    fn each_cause_has_its_end_reason_and_the_first_one_is_kept() {
        for (cause, reason) in [
            (StopCause::Client, EndReason::CancelledByClient),
            (StopCause::Deadline, EndReason::DeadlineExceeded),
            (StopCause::Operator, EndReason::CancelledByOperator),
            (StopCause::Drain, EndReason::Draining),
            (StopCause::Unread, EndReason::StreamNotRead),
            (StopCause::Pause, EndReason::Paused),
            (StopCause::TooManyCandidates, EndReason::TooManyCandidates),
        ] {
            for note in [Record::stop, Record::note_stop] {
                let record = record();
                note(&record, cause);
                for later in StopCause::ALL {
                    record.stop(later);
                    record.note_stop(later);
                }
                assert_eq!(record.stop_cause(), cause);
                record.ended(&stopped(), 7);
                assert_eq!(record.end().unwrap().reason(), reason);
            }
        }
    }

    #[test]
    fn a_search_whose_engine_was_dropped_was_drained() {
        let (engine, mut search, record) = begin(&endless());
        drop(engine);
        let Event::Ended(outcome) = search.blocking_next() else {
            panic!("it reports no candidates");
        };
        record.ended(&outcome, 0);
        assert_eq!(record.end().unwrap().reason(), EndReason::Draining);
        assert_eq!(record.stop_cause(), StopCause::Drain);
    }

    #[test]
    fn a_record_without_a_call_is_listed_cancelled_and_read() {
        let (_engine, mut search, record) = begin(&endless());
        let (record, registry) = (Arc::new(record), Registry::default());
        let id = registry.add(&record);
        let viewer = Viewer {
            client: client(),
            is_operator: false,
            is_local: false,
        };
        let listed = registry.find(&viewer, &id).unwrap();
        let summary = listed.summary();
        assert_eq!(
            (&summary.search_id[..], &summary.method[..]),
            (&*id, "a.Service/Method")
        );
        assert_ne!(summary.state(), v1pb::SearchState::Ended);
        assert_eq!(record.end(), None);
        let cancelled = listed.cancel(Canceller::Operator, "enough");
        assert_eq!(cancelled, CancelResult::Now);
        let Event::Ended(outcome) = search.blocking_next() else {
            panic!("it reports no candidates");
        };
        registry.ended(&record, &outcome, 5);
        let end = record.end().unwrap();
        assert_eq!(
            (end.reason(), &end.message[..], end.hashes),
            (EndReason::CancelledByOperator, "enough", 5)
        );
        assert_eq!(listed.summary().state(), v1pb::SearchState::Ended);
    }

    #[test]
    fn a_search_that_begins_after_its_stop_ends_at_once() {
        // Without the stop, the search would end with its budget spent.
        let query = endless().hash_budget(NonZeroU64::new(1_000_000_000).unwrap());
        let record = Record::new(method(), client(), &query);
        record.stop(StopCause::Client);
        let started = Instant::now();
        let engine = Engine::start(1, Kernel::best(), move || started.elapsed()).unwrap();
        let search = engine.search(Client::default(), query, |_| {});
        let mut search = search.unwrap();
        record.started(&Stopper::Engine(search.stopper(), 0));
        let ended = search.blocking_next();
        let Event::Ended(Outcome::Stopped(_)) = ended else {
            panic!("the search did not stop: {ended:?}");
        };
    }

    #[test]
    fn a_noted_stop_does_not_end_the_search() {
        let (_engine, search, record) = begin(&endless());
        record.note_stop(StopCause::Client);
        // This is the second stop, which does nothing.
        record.stop(StopCause::Deadline);
        let far = search.frontier() + 1_000_000;
        while search.frontier() < far {
            let state = search.stopper().progress().map(|progress| progress.state);
            let has_ended = matches!(state, None | Some(SearchState::Ended));
            assert!(!has_ended, "the noted stop ended the search");
            std::thread::yield_now();
        }
        assert_eq!(record.stop_cause(), StopCause::Client);
    }
}

//! One call that searches: what the list shows of it, and its line in the log.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hashfinder_search::{
    Cursor, DesiredName, Index, Outcome, Progress, Query, Report, SearchState, StopCause, Stopper,
};
use tonic_cancel::CallEnd;

use super::{
    status::{CallError, Canceller},
    v1pb::{self, EndReason, SearchEnded, SearchSummary},
};
use crate::transport::{ClientName, OpenCall, Peer};

/// A call that searches, from its admission on.
pub(super) struct Call {
    /// As a path has it, without the first slash.
    method: &'static str,
    peer: Option<Peer>,
    /// Whether its response is being read.
    open: Option<OpenCall>,
    client: ClientName,
    /// What the list shows of the query. The query itself is the answer's, and gone with that: it takes ten
    /// times as much memory.
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
    listing: Option<Listing>,
    /// Who was the first to cancel it by its id, and why.
    cancelled: Option<(Canceller, String)>,
    search: Option<SearchEnd>,
    /// How the call ended, and after how long.
    call: Option<(CallEnd, Duration)>,
    /// What the work cost, once the last worker has let go and until the log is told.
    work: Option<Report>,
}

struct Listing {
    id: Arc<str>,
    /// Gone when the search has ended.
    stopper: Option<Stopper>,
    /// As it was when it was last looked at.
    progress: Option<Progress>,
}

/// What became of the wish to cancel a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancelled {
    /// It was told to stop, and nobody had told it before.
    Now,
    /// Somebody had told it to stop before.
    Before,
    /// It had ended, and nothing was changed.
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

/// What of a search can change, for those who watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    state: v1pb::SearchState,
    hashes: u64,
    frontier: Index,
}

impl Call {
    pub(super) fn new(
        method: &'static str,
        peer: Option<Peer>,
        open: Option<OpenCall>,
        client: ClientName,
        query: &Query,
    ) -> Call {
        let names = query.names().iter().map(DesiredName::as_str);
        Call {
            method,
            peer,
            open,
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

    /// Whose it is.
    pub(super) fn client(&self) -> &ClientName {
        &self.client
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Gives it the id by which it is listed; says whether its search has ended already.
    pub(super) fn list(&self, id: Arc<str>, stopper: Stopper) -> bool {
        let mut state = self.lock();
        let has_ended = state.search.is_some();
        state.listing = Some(Listing {
            id,
            stopper: (!has_ended).then_some(stopper),
            progress: None,
        });
        has_ended
    }

    /// By which it is listed, if it is.
    pub(super) fn id(&self) -> Option<Arc<str>> {
        let state = self.lock();
        state
            .listing
            .as_ref()
            .map(|listing| Arc::clone(&listing.id))
    }

    /// The search has ended. Whoever reads its events and whoever lets go of it last both say so; the
    /// first counts, and is told whether a search that is listed is over by that.
    pub(super) fn search_ended(&self, outcome: &Outcome, hashes: u64) -> bool {
        let mut state = self.lock();
        if state.search.is_some() {
            return false;
        }
        let cancelled = state.cancelled.as_ref();
        state.search = Some(SearchEnd::new(self.end, outcome, hashes, cancelled));
        let Some(listing) = &mut state.listing else {
            return false;
        };
        let stopper = listing.stopper.take();
        // It may be the last part of an engine, which is not to go with the lock held.
        drop(state);
        drop(stopper);
        true
    }

    /// The call has ended, whatever its work does.
    pub(super) fn call_ended(&self, end: CallEnd) {
        let mut state = self.lock();
        state.call = Some((end, self.began.elapsed()));
        self.log_if_over(state);
    }

    /// The last worker has let go.
    pub(super) fn released(&self, report: Report) {
        let mut state = self.lock();
        state.work = Some(report);
        self.log_if_over(state);
    }

    /// Tells the search to stop, for a reason that whoever waits for it is told. The first one to cancel it
    /// counts, unless what is under way ends it otherwise.
    ///
    /// # Panics
    ///
    /// If it is not listed, for then nobody can know of it.
    pub(super) fn cancel(&self, by: Canceller, reason: &str) -> Cancelled {
        let mut state = self.lock();
        if state.search.is_some() {
            return Cancelled::HadEnded;
        }
        let stopper = state.listing.as_ref();
        let stopper = stopper.and_then(|listing| listing.stopper.clone());
        let stopper = stopper.expect("a listed search that has not ended has a stopper");
        let became = match state.cancelled {
            None => Cancelled::Now,
            Some(_) => Cancelled::Before,
        };
        let cancelled = state.cancelled.get_or_insert((by, reason.to_owned()));
        let cause = cause_of(cancelled.0);
        // The stop may release the work on this thread, which comes back here.
        drop(state);
        stopper.stop(cause);
        became
    }

    /// Whether it came by this connection.
    pub(super) fn is_of(&self, connection: u64) -> bool {
        (self.peer.as_ref()).is_some_and(|peer| peer.connection == connection)
    }

    /// For how long its response has been waiting to be read, if it is.
    pub(super) fn unread_for(&self) -> Option<Duration> {
        self.open.as_ref().and_then(OpenCall::unread_for)
    }

    /// Tells a search that is listed to stop, if it has not ended; whoever waits for it is told why.
    pub(super) fn stop(&self, cause: StopCause) {
        let stopper = (self.lock().listing.as_ref()).and_then(|listing| listing.stopper.clone());
        // Without the lock: the stop may release the work on this thread, which comes back here.
        if let Some(stopper) = stopper {
            stopper.stop(cause);
        }
    }

    /// What whoever waits for a search is told that was stopped.
    pub(super) fn stopped(&self, cause: StopCause, cursor: Cursor) -> CallError {
        match self.lock().cancelled.clone() {
            Some((by, reason)) if cause_of(by) == cause => {
                CallError::Cancelled { by, reason, cursor }
            }
            _ if cause == StopCause::Unread => CallError::Unread(cursor),
            // Only a drain leaves its handler the last word else; and an engine that was dropped is a
            // server on its way down too.
            _ => CallError::Draining(Some(cursor)),
        }
    }

    /// Whether its search has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().search.is_some()
    }

    /// How its search ended, if it has.
    pub(super) fn end(&self) -> Option<SearchEnded> {
        let end = self.lock().search.clone()?;
        Some(SearchEnded {
            reason: end.reason.into(),
            message: end.message,
            cursor: end.cursor,
            hashes: end.hashes,
            frontier: end.frontier,
        })
    }

    /// What of it can change, as it is now.
    pub(super) fn mark(&self) -> Mark {
        self.mark_of(&mut self.lock())
    }

    fn mark_of(&self, state: &mut State) -> Mark {
        if let Some(end) = &state.search {
            return Mark {
                state: v1pb::SearchState::Ended,
                hashes: end.hashes,
                frontier: end.frontier,
            };
        }
        let progress = state.listing.as_mut().and_then(|listing| {
            // There is none in the moment between the work's end and its being told.
            let progress = listing.stopper.as_ref().and_then(Stopper::progress);
            listing.progress = progress.or(listing.progress);
            listing.progress
        });
        match progress {
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

    /// As it is now, for those who see it listed.
    pub(super) fn summary(&self) -> SearchSummary {
        let mut state = self.lock();
        let mark = self.mark_of(&mut state);
        let mut summary = SearchSummary {
            method: self.method.to_owned(),
            client: self.client.0.to_string(),
            desired_names: self.names.iter().map(ToString::to_string).collect(),
            ideal_distance: i32::from(self.ideal_distance),
            state: mark.state.into(),
            started_at: Some(self.began_at.into()),
            hashes: mark.hashes,
            frontier: mark.frontier,
            ..SearchSummary::default()
        };
        if let Some(listing) = &state.listing {
            summary.search_id = listing.id.to_string();
        }
        if let Some(end) = &state.search {
            summary.ended_at = Some(end.at.into());
            summary.end_reason = end.reason.into();
            summary.end_message.clone_from(&end.message);
            summary.cursor.clone_from(&end.cursor);
        }
        summary
    }

    /// Writes the log's line when both the call and its work are over.
    fn log_if_over(&self, mut state: MutexGuard<'_, State>) {
        let Some((end, took)) = state.call else {
            return;
        };
        let Some(report) = state.work.take() else {
            return;
        };
        let id = (state.listing.as_ref()).map(|listing| Arc::clone(&listing.id));
        drop(state);
        let work = match report.outcome {
            Outcome::Ideal(_) => "found",
            Outcome::Exhausted => "keyspace exhausted",
            Outcome::BudgetSpent(_) => "hash budget spent",
            Outcome::QuotaSpent { .. } => "hash quota spent",
            Outcome::Cancelled { .. } => "stopped",
            Outcome::Failed(_) => "panicked",
            _ => "ended",
        };
        let cause = end
            .cancelled
            .map_or("completed".to_owned(), |why| why.to_string());
        tracing::info!(
            method = name_of(self.method),
            search = id.as_ref().map(tracing::field::display),
            peer = self.peer.as_ref().map(tracing::field::display),
            client = %self.client,
            // How much was asked for; what for is the client's own business.
            names = self.names.len(),
            characters = self.names.iter().map(|name| name.chars().count()).sum::<usize>(),
            code = ?end.code,
            cause,
            work,
            hashes = report.hashes,
            tests = report.tests,
            took = ?took,
            stopped_in = report.stop_latency.map(tracing::field::debug),
            "call ended",
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SearchEnd {
    fn new(
        keyspace_end: Index,
        outcome: &Outcome,
        hashes: u64,
        cancelled: Option<&(Canceller, String)>,
    ) -> SearchEnd {
        let mut message = String::new();
        let (reason, cursor) = match outcome {
            Outcome::Ideal(_) => (EndReason::Found, None),
            Outcome::Exhausted => (EndReason::KeyspaceExhausted, None),
            Outcome::BudgetSpent(cursor) => (EndReason::HashBudgetSpent, Some(cursor)),
            Outcome::QuotaSpent { cursor, .. } => (EndReason::HashQuotaSpent, Some(cursor)),
            Outcome::Cancelled { cause, cursor } => {
                if let Some((by, why)) = cancelled
                    && cause_of(*by) == *cause
                {
                    message.clone_from(why);
                }
                let reason = match cause {
                    StopCause::Deadline => EndReason::DeadlineExceeded,
                    StopCause::Operator => EndReason::CancelledByOperator,
                    StopCause::Drain => EndReason::Draining,
                    StopCause::Unread => EndReason::StreamNotRead,
                    _ => EndReason::CancelledByClient,
                };
                (reason, Some(cursor))
            }
            Outcome::Failed(cursor) => (EndReason::Failed, Some(cursor)),
            _ => (EndReason::Failed, None),
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
    pub(super) fn of(summary: &SearchSummary) -> Mark {
        Mark {
            state: summary.state(),
            hashes: summary.hashes,
            frontier: summary.frontier,
        }
    }

    pub(super) fn state(self) -> v1pb::SearchState {
        self.state
    }

    pub(super) fn has_ended(self) -> bool {
        self.state == v1pb::SearchState::Ended
    }
}

/// A method's name without its service's.
pub(super) fn name_of(method: &'static str) -> &'static str {
    method.rsplit_once('/').map_or(method, |(_, name)| name)
}

/// What a search is doing, as the wire has it.
pub(super) fn wire_state(state: SearchState) -> v1pb::SearchState {
    match state {
        SearchState::Queued => v1pb::SearchState::Queued,
        SearchState::Parked => v1pb::SearchState::Parked,
        // Workers have yet to let go of one that has ended, or its reader has yet to be told.
        _ => v1pb::SearchState::Running,
    }
}

fn cause_of(canceller: Canceller) -> StopCause {
    match canceller {
        Canceller::Client => StopCause::Client,
        Canceller::Operator => StopCause::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashfinder_search::{Client, Distance, Engine, Kernel};

    fn query() -> Query {
        Query::new("aa".parse().unwrap(), Distance::ZERO).unwrap()
    }

    /// A call that is listed, and whose search nothing stops.
    fn call() -> Call {
        let engine = Engine::start(1, Kernel::best(), || Duration::ZERO).unwrap();
        let search = engine.search(Client::default(), query(), |_| {}).unwrap();
        let client = ClientName(Client::default().name);
        let call = Call::new("a.Service/Method", None, None, client, &query());
        assert!(!call.list("id".into(), search.stopper()));
        call
    }

    fn stopped(cause: StopCause) -> Outcome {
        Outcome::Cancelled {
            cause,
            cursor: Cursor::new(&query(), 7),
        }
    }

    #[test]
    fn the_first_who_cancels_counts() {
        let call = call();
        assert_eq!(call.cancel(Canceller::Client, "the first"), Cancelled::Now);
        let second = call.cancel(Canceller::Operator, "the second");
        assert_eq!(second, Cancelled::Before);
        assert!(call.search_ended(&stopped(StopCause::Client), 7));
        // Once is enough, however it is told.
        assert!(!call.search_ended(&Outcome::Exhausted, 9));
        let third = call.cancel(Canceller::Operator, "the third");
        assert_eq!(third, Cancelled::HadEnded);
        let end = call.end().unwrap();
        assert_eq!(end.reason(), EndReason::CancelledByClient);
        assert_eq!(
            (&end.message[..], end.hashes, end.frontier),
            ("the first", 7, 7)
        );
        let cursor = Cursor::new(&query(), 7);
        assert_eq!(
            call.stopped(StopCause::Client, cursor.clone()),
            CallError::Cancelled {
                by: Canceller::Client,
                reason: "the first".to_owned(),
                cursor,
            }
        );
    }

    #[test]
    fn a_reason_is_told_only_where_it_was_the_reason() {
        let call = call();
        // In the same moment a drain told it to stop, and was first.
        call.cancel(Canceller::Operator, "too late");
        call.search_ended(&stopped(StopCause::Drain), 7);
        let end = call.end().unwrap();
        assert_eq!((end.reason(), &end.message[..]), (EndReason::Draining, ""));
        let cursor = Cursor::new(&query(), 7);
        let draining = CallError::Draining(Some(cursor.clone()));
        assert_eq!(call.stopped(StopCause::Drain, cursor), draining);
    }
}

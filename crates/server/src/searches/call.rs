//! A call that searches: its line in the log, and its span.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashfinder_search::{Outcome, Report};
use hashfinder_transport::{OpenCall, Peer};
use tonic_cancel::CallEnd;

use crate::{
    call_info::CallInfo,
    log,
    searches::record::Record,
    trace::{self, CallSpan},
};

/// A call that searches, from the start of its search on.
///
/// Its log line is written, and its span is completed, when both the call and the work for it are
/// over.
pub(crate) struct Call {
    record: Arc<Record>,
    peer: Option<Peer>,
    /// Tracks whether its response is being read. `None` in a test without the transport.
    open: Option<OpenCall>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How the call ended, and after how long.
    end: Option<(CallEnd, Duration)>,
    /// The cost of the work. Present from when the last worker has released the search until the
    /// log line is written.
    work: Option<Report>,
    /// Present until the log line is written, if the call is traced.
    span: Option<CallSpan>,
}

impl Call {
    pub(crate) fn new(record: &Arc<Record>, info: &CallInfo) -> Call {
        Call {
            record: Arc::clone(record),
            peer: info.peer.clone(),
            open: info.open.clone(),
            state: Mutex::new(State {
                span: info.span.clone(),
                ..State::default()
            }),
        }
    }

    /// Returns the record of its search.
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Returns whether the call came in on this connection.
    pub(crate) fn is_of(&self, connection: u64) -> bool {
        (self.peer.as_ref()).is_some_and(|peer| peer.connection == connection)
    }

    /// Returns how long its response has been waiting for its reader, or `None` if it is not
    /// waiting.
    pub(crate) fn unread_for(&self) -> Option<Duration> {
        self.open.as_ref().and_then(OpenCall::unread_for)
    }

    /// Records the end of the call. The work for it may still continue.
    pub(crate) fn ended(&self, end: CallEnd) {
        let mut state = self.lock();
        state.end = Some((end, self.record.began().elapsed()));
        self.log_if_over(state);
    }

    /// Records that the last worker has released the search.
    pub(crate) fn released(&self, report: Report) {
        let mut state = self.lock();
        state.work = Some(report);
        self.log_if_over(state);
    }

    /// Writes the log line if both the call and its work are over.
    fn log_if_over(&self, mut state: MutexGuard<'_, State>) {
        let Some((end, took)) = state.end else {
            return;
        };
        let Some(report) = state.work.take() else {
            return;
        };
        let span = state.span.take();
        drop(state);
        let id = self.record.id();
        let names = self.record.names();
        let work = work(&report.outcome);
        let cause = end
            .cancelled
            .map_or("completed".to_owned(), |why| why.to_string());
        tracing::info!(
            method = &**self.record.method().name(),
            search = id.as_ref().map(tracing::field::display),
            peer = self.peer.as_ref().map(tracing::field::display),
            client = %self.record.client(),
            // Only the number and the length of the names are logged: the names are private.
            names = names.len(),
            characters = names.iter().map(|name| name.chars().count()).sum::<usize>(),
            code = ?end.code,
            cause,
            work,
            hashes = report.hashes,
            tests = report.tests,
            took_ms = log::milliseconds(took),
            stopped_in_ms = report.stop_latency.map(log::milliseconds),
            trace = span.as_ref().map(|span| tracing::field::display(span.trace())),
            "call ended",
        );
        if let Some(span) = span {
            span.searched(trace::Search {
                id: id.as_deref(),
                cause,
                work,
                hashes: report.hashes,
                tests: report.tests,
                stopped_in: report.stop_latency,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how a search ended, for the log and for spans.
pub(crate) fn work(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Ideal(_) => "found",
        Outcome::Exhausted => "keyspace exhausted",
        Outcome::BudgetSpent(_) => "hash budget spent",
        Outcome::QuotaSpent { .. } => "hash quota spent",
        Outcome::Stopped(_) => "stopped",
        Outcome::Failed(_) => "panicked",
    }
}

/// The open calls whose searches are listed. Clones share them.
///
/// When a connection closes, or a response is not read, the search of the call has to be stopped.
/// The call is found here and not through the record of its search, so that a record needs no call.
#[derive(Clone, Default)]
pub(crate) struct OpenCalls(Arc<Mutex<HashMap<Arc<str>, Arc<Call>>>>);

impl OpenCalls {
    /// Adds the call of the search with this id.
    pub(crate) fn add(&self, id: Arc<str>, call: &Arc<Call>) {
        self.lock().insert(id, Arc::clone(call));
    }

    /// Removes the call of the search with this id, if there is one.
    pub(crate) fn remove(&self, id: &str) {
        let call = self.lock().remove(id);
        // Dropped without the lock: this may be the last reference to the call.
        drop(call);
    }

    /// Returns the calls for which `holds` returns `true`.
    pub(crate) fn which(&self, holds: impl Fn(&Call) -> bool) -> Vec<Arc<Call>> {
        let calls = self.lock();
        let calls = calls.values().filter(|call| holds(call));
        calls.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Call>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

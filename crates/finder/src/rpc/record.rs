//! One line in the log for each call, when both the call and its work are over.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use hashfinder_search::{Outcome, Report};
use tonic_cancel::CallEnd;

use crate::listener::Peer;

/// What is known of a call. Whoever ends it and whoever lets go of its work last each write their
/// part and drop it; the last of them writes the line.
pub(super) struct CallRecord {
    method: &'static str,
    peer: Option<Peer>,
    name: String,
    began: Instant,
    end: OnceLock<(CallEnd, Duration)>,
    work: OnceLock<Report>,
}

impl CallRecord {
    pub(super) fn new(method: &'static str, peer: Option<Peer>, name: &str) -> CallRecord {
        CallRecord {
            method,
            peer,
            name: name.to_owned(),
            began: Instant::now(),
            end: OnceLock::new(),
            work: OnceLock::new(),
        }
    }

    pub(super) fn ended(&self, end: CallEnd) {
        // A call ends once.
        let _ = self.end.set((end, self.began.elapsed()));
    }

    pub(super) fn released(&self, report: Report) {
        let _ = self.work.set(report);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        // Both are missing only where the process is going down in the middle of a call.
        let (Some((end, took)), Some(report)) = (self.end.get(), self.work.get()) else {
            return;
        };
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
            method = self.method,
            peer = self.peer.as_ref().map(tracing::field::display),
            name = ?self.name,
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
}

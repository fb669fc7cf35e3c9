//! Counts rejected calls, and logs up to 100 of them per second.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hashfinder_transport::{
    ClientName, Peer,
    rate::{Bucket, Rate},
};
use tokio::{runtime::Handle, time::sleep};
use tonic::Status;

use crate::{errors::CallError, metrics::Counts, violation::Violation};

/// Maximum rate of logged rejections. It is high enough to show which clients are rejected and why.
/// Without a limit, a flood of rejected calls would fill a disk or keep a core busy.
const LINES: Rate = Rate {
    per_second: 100.0,
    burst: 100.0,
};

/// Time for which no rejection is logged after the limit was exceeded. Then one line reports how
/// many were left out, and logging resumes.
const SILENCE: Duration = Duration::from_secs(1);

/// Counts and logs rejected calls. Clones share the counts and the limit.
#[derive(Clone)]
pub(crate) struct Rejections {
    counts: Counts,
    lines: Arc<Mutex<Lines>>,
}

/// State of the limit on log lines.
struct Lines {
    left: Bucket,
    /// Number of rejections that were not logged since the last line that reported this number.
    left_out: u64,
}

impl Rejections {
    pub(crate) fn new(counts: Counts) -> Rejections {
        let lines = Lines {
            left: Bucket::new(LINES, Instant::now()),
            left_out: 0,
        };
        Rejections {
            counts,
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    /// Counts and logs a call that is rejected with this error. Returns its status.
    pub(crate) fn reject(
        &self,
        error: CallError,
        method: &str,
        peer: Option<&Peer>,
        client: Option<&ClientName>,
    ) -> Status {
        self.reject_because(error, method, peer, client, None)
    }

    /// Like [`reject`](Rejections::reject), with a cause that is logged but not sent to the client.
    pub(crate) fn reject_because(
        &self,
        error: CallError,
        method: &str,
        peer: Option<&Peer>,
        client: Option<&ClientName>,
        why: Option<&'static str>,
    ) -> Status {
        let reason = error.reason();
        let field = error.field().map(str::to_owned);
        self.counts.refused(reason);
        let status = Status::from(error);
        if self.take_line() {
            // The status message is not logged: it may quote the request, which is private.
            tracing::info!(
                method,
                peer = peer.map(tracing::field::display),
                client = client.map(tracing::field::display),
                code = ?status.code(),
                reason,
                field,
                why,
                "call rejected",
            );
        }
        status
    }

    /// Counts and logs a call that violates the protocol. `code` is the status that the client
    /// receives.
    pub(crate) fn reject_violation(
        &self,
        why: Violation,
        method: &str,
        peer: Option<&Peer>,
        code: impl Debug,
    ) {
        let reason = why.reason();
        self.counts.refused(reason);
        if self.take_line() {
            let peer = peer.map(tracing::field::display);
            tracing::info!(method, peer, ?code, reason, "call rejected");
        }
    }

    /// Takes a line from the limit. If none is left, or the silence after that has not ended,
    /// counts the rejection as left out and returns `false`.
    fn take_line(&self) -> bool {
        let mut lines = self.lock();
        if lines.left_out == 0 && lines.left.try_take(LINES, Instant::now()).is_ok() {
            return true;
        }
        lines.left_out += 1;
        let is_first = lines.left_out == 1;
        drop(lines);
        // Without a runtime, as in tests, the silence does not end by itself.
        if is_first && let Ok(runtime) = Handle::try_current() {
            let rejections = self.clone();
            runtime.spawn(async move {
                sleep(SILENCE).await;
                let left_out = rejections.end_silence();
                tracing::warn!(refusals = left_out, "rejected calls left out of the log");
            });
        }
        false
    }

    /// Resumes logging. Returns how many rejections were left out.
    fn end_silence(&self) -> u64 {
        std::mem::take(&mut self.lock().left_out)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_rejections_is_logged_in_part() {
        let rejections = Rejections::new(Counts::default());
        let logged = (0..1000).filter(|_| rejections.take_line()).count();
        assert!((100..1000).contains(&logged), "{logged}");
        // Nothing is logged before the silence ends, however long that takes.
        assert_eq!(rejections.end_silence(), 1000 - logged as u64);
        assert_eq!(rejections.end_silence(), 0);
    }
}

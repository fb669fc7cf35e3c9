//! Calls that were refused: all are counted, and the log is told of so many each second.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time::sleep};
use tonic::Status;

use super::status::CallError;
use crate::{
    metrics::Counts,
    rate::{Bucket, Rate},
    transport::{ClientName, Peer},
};

/// How many refusals the log is told of: enough to see who is refused and why, and not so many that whoever is
/// refused all the time fills a disk, or keeps a core busy with lines.
const LINES: Rate = Rate {
    per_second: 100.0,
    burst: 100.0,
};

/// For how long no more is told once it was too much. Then the log hears how many were left out, and has room
/// for as many as at first.
const SILENCE: Duration = Duration::from_secs(1);

/// Why a call is refused that is none of gRPC's, or that a library refuses, and for which there is no
/// [`CallError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The HTTP method is another one than POST.
    NotPost,
    /// The content type is not that of gRPC.
    NotGrpc,
    /// There are too many headers.
    TooManyFields,
    UnknownMethod,
    /// The `grpc-timeout` cannot be read.
    BadTimeout,
    /// The message cannot be read, or there is none.
    Malformed,
}

impl Unfit {
    pub(crate) const ALL: [Unfit; 6] = [
        Unfit::NotPost,
        Unfit::NotGrpc,
        Unfit::TooManyFields,
        Unfit::UnknownMethod,
        Unfit::BadTimeout,
        Unfit::Malformed,
    ];

    /// The word for the metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Unfit::NotPost => "NOT_POST",
            Unfit::NotGrpc => "NOT_GRPC",
            Unfit::TooManyFields => "TOO_MANY_FIELDS",
            Unfit::UnknownMethod => "UNKNOWN_METHOD",
            Unfit::BadTimeout => "BAD_TIMEOUT",
            Unfit::Malformed => "MALFORMED",
        }
    }
}

/// Counts the calls that were refused, and tells the log of them; clones do it together.
#[derive(Clone)]
pub(crate) struct Refusals {
    counts: Counts,
    lines: Arc<Mutex<Lines>>,
}

/// What the log is told.
struct Lines {
    left: Bucket,
    /// How many refusals it was not told of, since it was last told how many those were.
    left_out: u64,
}

impl Refusals {
    pub(crate) fn new(counts: Counts) -> Refusals {
        let lines = Lines {
            left: Bucket::new(LINES, Instant::now()),
            left_out: 0,
        };
        Refusals {
            counts,
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    /// The status of a call that is refused for this error.
    pub(crate) fn refused(
        &self,
        error: CallError,
        method: &str,
        peer: Option<&Peer>,
        client: Option<&ClientName>,
    ) -> Status {
        self.refused_because(error, method, peer, client, None)
    }

    /// As [`refused`](Refusals::refused), with more that the log is told and the client is not.
    pub(crate) fn refused_because(
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
        if self.may_tell() {
            // What the client is told may repeat what it has sent, which is not the log's.
            tracing::info!(
                method,
                peer = peer.map(tracing::field::display),
                client = client.map(tracing::field::display),
                code = ?status.code(),
                reason,
                field,
                why,
                "call refused",
            );
        }
        status
    }

    /// A call is refused that has come no further than to the edge.
    pub(super) fn unfit(&self, why: Unfit, method: &str, peer: Option<&Peer>, code: impl Debug) {
        let reason = why.reason();
        self.counts.refused(reason);
        if self.may_tell() {
            let peer = peer.map(tracing::field::display);
            tracing::info!(method, peer, ?code, reason, "call refused");
        }
    }

    fn may_tell(&self) -> bool {
        let mut lines = self.lock();
        if lines.left_out == 0 && lines.left.try_take(LINES, Instant::now()).is_ok() {
            return true;
        }
        lines.left_out += 1;
        let is_first = lines.left_out == 1;
        drop(lines);
        // Without a runtime there are no calls either.
        if is_first && let Ok(runtime) = Handle::try_current() {
            let refusals = self.clone();
            runtime.spawn(async move {
                sleep(SILENCE).await;
                let left_out = refusals.end_silence();
                tracing::warn!(refusals = left_out, "left out of the log");
            });
        }
        false
    }

    /// How many refusals there were in it.
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
    fn a_flood_of_refusals_is_told_in_part() {
        let refusals = Refusals::new(Counts::default());
        let told = (0..1000).filter(|_| refusals.may_tell()).count();
        assert!((100..1000).contains(&told), "{told}");
        // However long it takes, nothing is told until it was told how many there were.
        assert_eq!(refusals.end_silence(), 1000 - told as u64);
        assert_eq!(refusals.end_silence(), 0);
    }
}

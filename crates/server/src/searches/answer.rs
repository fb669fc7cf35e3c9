//! A search on behalf of a call, from its first candidate to its end.

use std::{
    num::NonZeroU64,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hashfinder_search::{Candidate, Event, Outcome, Progress, Query};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Code;
use tonic_cancel::CallContext;

use crate::{
    errors::CallError,
    searches::{
        cancelled::Cancelled, record::Record, registry::Registry, run::Run, stop_cause::StopCause,
    },
};

/// Number of candidates that make a full frame. HTTP/2 implementations count unread frames of less
/// than 256 bytes, and close a connection that has too many of them. A candidate takes about 50
/// bytes.
pub(crate) const FULL_FRAME: usize = 8;

/// Pause after a frame that is not full. During the pause, only full frames and the last one are
/// sent.
const FRAME_PACE: Duration = Duration::from_millis(10);

/// A search on behalf of a call. Dropping it stops the search; tonic drops it when the client is
/// gone.
pub(crate) struct Answer {
    context: CallContext,
    run: Run,
    query: Query,
    record: Arc<Record>,
    registry: Arc<Registry>,
    cancelled: Cancelled,
    /// Until this pause has passed, only full frames and the last one are sent.
    paced: Option<Pin<Box<Sleep>>>,
    maximum_hashes: NonZeroU64,
}

impl Drop for Answer {
    /// Records the cause of the stop. The search itself is stopped when its handle is dropped,
    /// right after this.
    fn drop(&mut self) {
        let reason = self.context.cancel_reason();
        self.record
            .note_stop(reason.map_or(StopCause::Client, StopCause::from));
    }
}

impl Answer {
    pub(crate) fn new(
        context: CallContext,
        run: Run,
        query: Query,
        record: Arc<Record>,
        registry: Arc<Registry>,
        maximum_hashes: NonZeroU64,
    ) -> Answer {
        Answer {
            cancelled: Cancelled::new(&context),
            paced: None,
            context,
            run,
            query,
            record,
            registry,
            maximum_hashes,
        }
    }

    /// Returns the search's record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the query of the search.
    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    /// Adds the search to the list, even if it has ended. Returns its id.
    pub(crate) fn add_to_list(&self) -> Arc<str> {
        self.registry.add(&self.record)
    }

    /// Returns the hash budget of the search.
    pub(crate) fn maximum_hashes(&self) -> NonZeroU64 {
        self.maximum_hashes
    }

    /// Returns the progress of the search, unless it ended with its first secrets.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.run.progress()
    }

    /// Returns the next candidates once there are `at_least` of them, the queue is full, or no more
    /// will come. After the last candidates, returns the end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>, at_least: usize) -> Poll<Event> {
        if let Poll::Ready(reason) = self.cancelled.poll(cx) {
            self.record
                .stop(reason.map_or(StopCause::Client, StopCause::from));
        }
        let event = self.run.poll_next(cx, at_least);
        if let Poll::Ready(Event::Ended(outcome)) = &event {
            // The end is recorded before the reader sees it, so that the list agrees with it. If
            // the search ended with its first secrets, its end has been recorded already.
            if let Some(progress) = self.progress() {
                self.registry.ended(&self.record, outcome, progress.tests);
            }
        }
        event
    }

    /// Returns the event to send next. All candidates that are ready are sent in one frame, because
    /// tonic puts everything that a stream yields without pausing into one frame. After a frame
    /// that is not full, the next one is sent only after a pause, unless it is full or the last
    /// one.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(pause) = &mut self.paced
            && pause.as_mut().poll(cx).is_ready()
        {
            self.paced = None;
        }
        let at_least = if self.paced.is_some() { FULL_FRAME } else { 1 };
        let event = self.poll_event(cx, at_least);
        if let Poll::Ready(Event::Candidates(candidates)) = &event
            && candidates.len() < FULL_FRAME
        {
            self.paced = Some(Box::pin(sleep_until(Instant::now() + FRAME_PACE)));
        }
        event
    }

    /// Returns how the call ends. `budget_code` is the code for a spent hash budget.
    pub(crate) fn conclude(
        &self,
        outcome: Outcome,
        budget_code: Code,
    ) -> Result<Candidate, CallError> {
        Err(match outcome {
            Outcome::Ideal(candidate) => return Ok(candidate),
            Outcome::Exhausted => CallError::Exhausted,
            Outcome::BudgetSpent(cursor) => CallError::BudgetSpent {
                code: budget_code,
                hashes: self.maximum_hashes.get(),
                cursor,
            },
            Outcome::QuotaSpent {
                cursor,
                retry_after,
            } => CallError::QuotaSpent {
                cursor,
                retry_after,
            },
            Outcome::Stopped(cursor) => self.record.stopped(cursor),
            Outcome::Failed(cursor) => CallError::Failed(cursor),
        })
    }
}

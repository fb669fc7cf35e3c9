//! The events of a Search.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hashfinder_proto::v1::{Accepted, Progress, SearchEnded, SearchEvent, search_event::Event};
use hashfinder_search::{self as search, Odds, Query, SearchState};
use prost::Message;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::{estimates, frames::padding};
use crate::{
    searches::{
        answer::{Answer, FULL_FRAME},
        record::wire_state,
    },
    services::operations,
};

/// The odds of a search, once they are computed; `None` if they cannot be.
pub(super) type OddsFuture = Pin<Box<dyn Future<Output = Option<Odds>> + Send>>;

/// The response stream of a Search.
///
/// It holds at most one batch of the engine's candidates and one progress event. It reads no more
/// from the engine until its reader has taken these.
pub(crate) struct Events {
    answer: Answer,
    odds: Result<Option<Odds>, OddsFuture>,
    ready: VecDeque<SearchEvent>,
    ticks: Interval,
    /// The time of the latest progress event, and its number of tests.
    last_progress: (Instant, u64),
    /// How the call ends. Set once its last event is in `ready`.
    end: Option<Result<(), Status>>,
    is_over: bool,
}

impl Events {
    pub(super) fn new(
        answer: Answer,
        odds: Result<Option<Odds>, OddsFuture>,
        interval: Duration,
    ) -> Events {
        let known = odds.as_ref().ok().and_then(Option::as_ref);
        let accepted = Event::Accepted(Accepted {
            search_id: answer.add_to_list().to_string(),
            odds: known.map(estimates::odds),
            maximum_hashes: answer.maximum_hashes().get(),
        });
        let mut ticks = interval_at(tokio::time::Instant::now() + interval, interval);
        // A slow reader receives the current state, and not the ones that it missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Events {
            last_progress: (answer.record().began(), 0),
            answer,
            odds,
            ready: VecDeque::from([accepted.into()]),
            ticks,
            end: None,
            is_over: false,
        }
    }

    /// Adds at least one event to `ready`.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(odds) = &mut self.odds
            && let Poll::Ready(odds) = odds.as_mut().poll(cx)
        {
            self.odds = Ok(odds);
        }
        if self.ticks.poll_tick(cx).is_ready() {
            // The progress is read before the candidates, so that all candidates below its frontier
            // are sent before it. If the search has ended, only its end is sent.
            let progress = self.answer.progress();
            let progress = progress.filter(|progress| progress.state != SearchState::Ended);
            let event = self.answer.poll_event(cx, 1);
            if let Poll::Ready(event) = event {
                self.take(event);
            }
            if self.end.is_none()
                && let Some(progress) = progress
            {
                let progress = self.progress_event(progress);
                self.ready.push_back(Event::Progress(progress).into());
            }
            if !self.ready.is_empty() {
                return Poll::Ready(());
            }
        }
        let event = ready!(self.answer.poll_frame(cx));
        self.take(event);
        Poll::Ready(())
    }

    fn take(&mut self, event: search::Event) {
        let query = self.answer.query();
        let outcome = match event {
            search::Event::Candidates(candidates) => {
                let candidates = candidates.into_iter();
                let events = candidates.map(|found| wire(query, found, false).into());
                self.ready.extend(events);
                return;
            }
            search::Event::Ended(outcome) => outcome,
        };
        if let search::Outcome::Ideal(found) = &outcome {
            self.ready.push_back(wire(query, *found, true).into());
        }
        // The search has ended, so its record has the end.
        let ended: SearchEnded = self.answer.record().end().unwrap_or_default();
        self.ready.push_back(Event::Ended(ended).into());
        let end = self.answer.conclude(outcome, Code::ResourceExhausted);
        self.end = Some(end.map(drop).map_err(Status::from));
    }

    /// Pads the events in `ready`, so that they do not make a small frame. They are sent together.
    fn pad(&mut self) {
        // As many events as a full frame has are never a small frame.
        if self.ready.len() < FULL_FRAME {
            let bytes = self.ready.iter().map(Message::encoded_len).sum();
            if let Some(last) = self.ready.back_mut() {
                last.padding = padding(bytes);
            }
        }
    }

    /// Returns the next progress event. Its rate is measured since the previous event.
    fn progress_event(&mut self, progress: search::Progress) -> Progress {
        let now = Instant::now();
        let (last_at, last) = std::mem::replace(&mut self.last_progress, (now, progress.tests));
        let rate = |hashes: u64, since: Instant| {
            let seconds = now.saturating_duration_since(since).as_secs_f64();
            // The clock may show the same time twice.
            if seconds > 0.0 {
                hashes as f64 / seconds
            } else {
                0.0
            }
        };
        let chance = self.odds.as_ref().ok().and_then(Option::as_ref);
        let chance = chance.map(|odds| estimates::bounds(&odds.chance_after(progress.tests)));
        Progress {
            hashes: progress.tests,
            hashes_per_second: rate(progress.tests.saturating_sub(last), last_at),
            average_hashes_per_second: rate(progress.tests, self.answer.record().began()),
            frontier: progress.frontier,
            chance_by_now: chance,
            state: wire_state(progress.state).into(),
        }
    }
}

impl Stream for Events {
    type Item = Result<SearchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            if let Some(end) = self.end.take() {
                self.is_over = true;
                return Poll::Ready(end.err().map(Err));
            }
            ready!(self.poll_more(cx));
            self.pad();
        }
    }
}

/// Returns a candidate of a search for `query` as an event.
fn wire(query: &Query, found: search::Candidate, is_ideal: bool) -> Event {
    Event::Candidate(operations::wire(query, found, is_ideal))
}

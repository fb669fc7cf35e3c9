//! The events of a Search.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hashfinder_search::{self as search, Odds, Query, SearchState};
use prost::Message;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::{figures, padding};
use crate::rpc::{
    answer::{Answer, FULL_FRAME},
    call::wire_state,
    v1pb::{Accepted, Candidate, Progress, SearchEnded, SearchEvent, search_event::Event},
};

/// Odds that are yet to come, or that nobody will know.
pub(super) type Reckoning = Pin<Box<dyn Future<Output = Option<Odds>> + Send>>;

/// The stream of a Search.
///
/// What waits in it for its reader is what the engine gave in one go, and one progress: who does not read
/// is asked for nothing.
pub(crate) struct Events {
    answer: Answer,
    odds: Result<Option<Odds>, Reckoning>,
    ready: VecDeque<SearchEvent>,
    ticks: Interval,
    /// When progress was told last, and how many tests it was.
    told: (Instant, u64),
    /// How the call ends, once its last event is among those that are ready.
    end: Option<Result<(), Status>>,
    is_over: bool,
}

impl Events {
    pub(super) fn new(
        answer: Answer,
        odds: Result<Option<Odds>, Reckoning>,
        interval: Duration,
    ) -> Events {
        let known = odds.as_ref().ok().and_then(Option::as_ref);
        let accepted = Event::Accepted(Accepted {
            search_id: answer.id().to_string(),
            odds: known.map(figures::odds),
            maximum_hashes: answer.maximum_hashes().get(),
        });
        let mut ticks = interval_at(tokio::time::Instant::now() + interval, interval);
        // Who was slow to read is told how things stand now, and not what was missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Events {
            told: (answer.call().began(), 0),
            answer,
            odds,
            ready: VecDeque::from([accepted.into()]),
            ticks,
            end: None,
            is_over: false,
        }
    }

    /// Gets at least one more event ready.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(reckoning) = &mut self.odds
            && let Poll::Ready(odds) = reckoning.as_mut().poll(cx)
        {
            self.odds = Ok(odds);
        }
        if self.ticks.poll_tick(cx).is_ready() {
            // Before the candidates: those below its frontier are among what is asked for then, so that
            // they are told before it is. Of a search that has ended, the answer is not, and the end follows.
            let progress = self.answer.progress();
            let progress = progress.filter(|progress| progress.state != SearchState::Ended);
            let event = self.answer.poll_event(cx, 1);
            if let Poll::Ready(event) = event {
                self.take(event);
            }
            if self.end.is_none()
                && let Some(progress) = progress
            {
                let progress = self.tell(progress);
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
        // The search has ended, so there is one.
        let ended: SearchEnded = self.answer.call().end().unwrap_or_default();
        self.ready.push_back(Event::Ended(ended).into());
        let end = self.answer.conclude(outcome, Code::ResourceExhausted);
        self.end = Some(end.map(drop).map_err(Status::from));
    }

    /// Makes what is ready, and goes out together, no small frame.
    fn pad(&mut self) {
        // So many cannot be one.
        if self.ready.len() < FULL_FRAME {
            let bytes = self.ready.iter().map(Message::encoded_len).sum();
            if let Some(last) = self.ready.back_mut() {
                last.padding = padding(bytes);
            }
        }
    }

    fn tell(&mut self, progress: search::Progress) -> Progress {
        let now = Instant::now();
        let (told_at, told) = self.told;
        self.told = (now, progress.tests);
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
        let chance = chance.map(|odds| figures::bounds(&odds.chance_after(progress.tests)));
        Progress {
            hashes: progress.tests,
            hashes_per_second: rate(progress.tests.saturating_sub(told), told_at),
            average_hashes_per_second: rate(progress.tests, self.answer.call().began()),
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

/// A candidate of a search for `query`, as the wire has it.
fn wire(query: &Query, found: search::Candidate, is_ideal: bool) -> Event {
    let secret = query.keyspace().secret(found.index);
    let name = &query.names()[usize::from(found.name)];
    Event::Candidate(Candidate {
        hashed_name: query.spelling().hashed_name(&secret).to_string(),
        secret,
        desired_name: name.as_str().to_owned(),
        distance: i32::from(found.distance),
        window: i32::from(found.window),
        is_ideal,
        index: found.index,
    })
}

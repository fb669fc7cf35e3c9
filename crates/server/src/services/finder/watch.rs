//! The response stream of a WatchSearches: the changes of searches.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hashfinder_proto::v1::WatchSearchesResponse;
use hashfinder_transport::ClientName;
use prost::Message;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tonic::Status;
use tonic_cancel::CallContext;

use super::{
    filter::Filter,
    frames::{MESSAGE_BYTES, padding},
};
use crate::{
    errors::CallError,
    searches::{
        cancelled::Cancelled,
        record::{Mark, Record},
        registry::{Place, Viewer},
        shared::Searches,
    },
};

/// Maximum number of watching calls of one client. Up to ten times a second, each reads all records
/// that it may see, and it keeps its last report of each search. A person needs one for each open
/// window.
const WATCHES_OF_CLIENT: usize = 16;

/// Maximum number of watching calls in all.
const WATCHES: usize = 256;

/// Number of these calls that are reserved for operators, so that an operator can watch even while
/// users have all others.
const WATCHES_OF_OPERATORS: usize = 16;

/// Counts the watching calls. Clones share the count.
#[derive(Clone, Default)]
pub(super) struct Watches(Arc<Mutex<HashMap<ClientName, usize>>>);

/// A watching call. It is included in the count until this value is dropped.
pub(super) struct Watch {
    watches: Watches,
    client: ClientName,
}

impl Watches {
    pub(super) fn begin(&self, viewer: &Viewer) -> Result<Watch, CallError> {
        let Viewer {
            client,
            is_operator,
            is_local: _,
        } = viewer;
        let mut clients = self.lock();
        let of_all = clients.values().sum::<usize>();
        let of_client = clients.get(client).copied().unwrap_or(0);
        if of_client >= WATCHES_OF_CLIENT {
            return Err(CallError::TooManyWatchesOfClient {
                limit: WATCHES_OF_CLIENT,
            });
        }
        let kept = if *is_operator {
            0
        } else {
            WATCHES_OF_OPERATORS
        };
        if of_all >= WATCHES - kept {
            return Err(CallError::TooManyWatches);
        }
        clients.insert(client.clone(), of_client + 1);
        Ok(Watch {
            watches: self.clone(),
            client: client.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut clients = self.watches.lock();
        if let Entry::Occupied(mut of_client) = clients.entry(self.client.clone()) {
            *of_client.get_mut() -= 1;
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
    }
}

/// The response stream of a WatchSearches.
///
/// It looks for changes when its reader is ready for them, and at most once per interval. It keeps
/// its last report of each search that its filter has selected, and a queue of the searches to
/// report next.
pub(crate) struct Changes {
    searches: Arc<Searches>,
    filter: Filter,
    ticks: Interval,
    reports: HashMap<Place, Report>,
    ready: VecDeque<(Place, Arc<Record>)>,
    has_begun: bool,
    cancelled: Cancelled,
    stage: Stage,
    _watch: Watch,
}

/// Stage of the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Watching,
    /// The call is cancelled, and the last changes are in `ready`.
    Stopping,
    Over,
}

/// What the stream last reported about a search, or would have reported if its filter had selected
/// the search.
struct Report {
    record: Arc<Record>,
    mark: Mark,
    /// Whether the filter selected the search then.
    is_watched: bool,
}

impl Report {
    /// Returns whether the search can no longer change.
    fn is_final(&self) -> bool {
        self.mark.has_ended()
    }
}

impl Changes {
    pub(super) fn new(
        context: &CallContext,
        searches: Arc<Searches>,
        filter: Filter,
        time: Duration,
        watch: Watch,
    ) -> Changes {
        let mut ticks = interval(time);
        // A slow reader receives the current state, and not the ones that it missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Changes {
            searches,
            filter,
            ticks,
            reports: HashMap::new(),
            ready: VecDeque::new(),
            has_begun: false,
            cancelled: Cancelled::new(context),
            stage: Stage::Watching,
            _watch: watch,
        }
    }

    /// Queues the searches that have changed since their last reports.
    fn find_changes(&mut self) {
        let Filter { viewer, .. } = &self.filter;
        let registry = self.searches.registry();
        let listed = registry.seen_by(viewer, self.filter.client(), None);
        let mut reports = HashMap::with_capacity(listed.len());
        for (place, record) in listed {
            let now = match self.reports.remove(&place) {
                Some(before) if before.is_final() => Some(before),
                before => self.compare(place, record, before.as_ref()),
            };
            if let Some(now) = now {
                reports.insert(place, now);
            }
        }
        // The remaining searches are no longer listed. Their ends may not have been reported.
        for (place, before) in mem::take(&mut self.reports) {
            if !before.is_final() {
                let record = Arc::clone(&before.record);
                self.compare(place, record, Some(&before));
            }
        }
        self.reports = reports;
    }

    /// Queues a search if it has changed since its last report. Returns the report to keep.
    fn compare(
        &mut self,
        place: Place,
        record: Arc<Record>,
        before: Option<&Report>,
    ) -> Option<Report> {
        let mark = record.mark();
        let is_watched = self.filter.takes(mark.state());
        let is_news = match before {
            Some(before) if is_watched => before.mark != mark || !before.is_watched,
            // The filter no longer selects it; that is reported once.
            Some(before) => before.is_watched,
            None => is_watched,
        };
        if is_news {
            self.ready.push_back((place, Arc::clone(&record)));
        }
        (is_watched || before.is_some()).then_some(Report {
            record,
            mark,
            is_watched,
        })
    }

    /// Returns a message with as many searches from the queue as it can hold, each in its current
    /// state.
    fn take_message(&mut self) -> WatchSearchesResponse {
        let mut message = WatchSearchesResponse::default();
        let mut bytes = 0;
        while bytes <= MESSAGE_BYTES
            && let Some((place, record)) = self.ready.pop_front()
        {
            let summary = record.summary();
            if let Some(report) = self.reports.get_mut(&place) {
                report.mark = Mark::of(&summary);
                report.is_watched = self.filter.takes(report.mark.state());
            }
            bytes += summary.encoded_len();
            message.searches.push(summary);
        }
        message.padding = padding(bytes);
        message
    }
}

impl Stream for Changes {
    type Item = Result<WatchSearchesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Some(Ok(self.take_message())));
            }
            match self.stage {
                Stage::Watching => {}
                Stage::Stopping => {
                    self.stage = Stage::Over;
                    let status = Status::from(CallError::Draining(None));
                    return Poll::Ready(Some(Err(status)));
                }
                Stage::Over => return Poll::Ready(None),
            }
            if self.cancelled.poll(cx).is_ready() {
                self.stage = Stage::Stopping;
                self.find_changes();
                continue;
            }
            ready!(self.ticks.poll_tick(cx));
            self.find_changes();
            // The first message is sent even if it has no searches.
            if !mem::replace(&mut self.has_begun, true) && self.ready.is_empty() {
                return Poll::Ready(Some(Ok(WatchSearchesResponse::default())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer(client: usize, is_operator: bool) -> Viewer {
        Viewer {
            client: format!("user:{client}").parse().unwrap(),
            is_operator,
            is_local: false,
        }
    }

    #[test]
    fn operators_can_watch_when_clients_cannot() {
        let watches = Watches::default();
        let mut held = Vec::new();
        let refused = loop {
            let viewer = viewer(held.len() / WATCHES_OF_CLIENT, false);
            match watches.begin(&viewer) {
                Ok(watch) => held.push(watch),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, CallError::TooManyWatches);
        assert_eq!(held.len(), WATCHES - WATCHES_OF_OPERATORS);
        let operator = viewer(999, true);
        for _ in 0..WATCHES_OF_OPERATORS {
            held.push(watches.begin(&operator).unwrap());
        }
        assert!(watches.begin(&operator).is_err());
        held.clear();
        assert!(watches.begin(&viewer(0, false)).is_ok());
        assert!(watches.lock().is_empty());
    }

    #[test]
    fn a_client_with_too_many_watches_gets_its_own_error() {
        let (watches, viewer) = (Watches::default(), viewer(0, true));
        let held: Vec<Watch> = (0..WATCHES_OF_CLIENT)
            .map(|_| watches.begin(&viewer).unwrap())
            .collect();
        let refused = watches.begin(&viewer).err();
        let limit = held.len();
        assert_eq!(refused, Some(CallError::TooManyWatchesOfClient { limit }));
    }
}

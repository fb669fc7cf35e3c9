//! The changes that a WatchSearches tells.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use prost::Message;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tonic::Status;
use tonic_cancel::{CallContext, CancelReason};

use super::{Filter, MESSAGE_BYTES};
use crate::{
    listener::ClientName,
    rpc::{
        call::{Call, Mark},
        registry::Place,
        searches::Searches,
        status::CallError,
        v1pb::{SearchSummary, WatchSearchesResponse},
    },
};

/// How many calls of one client may watch: each goes over all that it sees up to ten times a second, and
/// holds as much memory as it told, which somebody with a few windows open does not need more often.
const WATCHES_OF_CLIENT: usize = 16;

/// How many calls may watch in all.
const WATCHES: usize = 256;

/// Counts those who watch; clones are the same count.
#[derive(Clone, Default)]
pub(super) struct Watches(Arc<Mutex<HashMap<ClientName, usize>>>);

/// One of those who watch, until it is dropped.
pub(super) struct Watch {
    watches: Watches,
    client: ClientName,
}

impl Watches {
    pub(super) fn begin(&self, client: &ClientName) -> Result<Watch, CallError> {
        let mut clients = self.lock();
        let of_all = clients.values().sum::<usize>();
        let of_client = clients.get(client).copied().unwrap_or(0);
        for (watching, limit) in [(of_client, WATCHES_OF_CLIENT), (of_all, WATCHES)] {
            if watching >= limit {
                return Err(CallError::TooManyWatches { limit });
            }
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

/// The stream of a WatchSearches.
///
/// It looks at the searches when its reader has room for what it finds, and at most once per interval. It
/// holds what it told of each search that is listed, and what was found in one look and is yet to be told.
pub(crate) struct Changes {
    searches: Arc<Searches>,
    filter: Filter,
    ticks: Interval,
    told: HashMap<Place, Told>,
    ready: VecDeque<SearchSummary>,
    has_begun: bool,
    /// Ready when the server wants the call to end; gone when it has been.
    told_to_stop: Option<Pin<Box<dyn Future<Output = Option<CancelReason>> + Send>>>,
    is_over: bool,
    _watch: Watch,
}

/// What was told of a search.
struct Told {
    call: Arc<Call>,
    mark: Mark,
    /// Whether it was one of those that are watched.
    is_watched: bool,
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
        // Who was slow to read is told how things stand now, and not what was missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let context = context.clone();
        Changes {
            searches,
            filter,
            ticks,
            told: HashMap::new(),
            ready: VecDeque::new(),
            has_begun: false,
            told_to_stop: Some(Box::pin(async move { context.cancelled().await })),
            is_over: false,
            _watch: watch,
        }
    }

    /// Finds what has changed since the last time.
    fn look(&mut self) {
        let Filter { viewer, .. } = &self.filter;
        let registry = self.searches.registry();
        let listed = registry.seen_by(viewer, self.filter.client(), None);
        let mut told = HashMap::with_capacity(listed.len());
        for (place, call) in listed {
            let before = self.told.remove(&place);
            if let Some(now) = self.compare(call, before.as_ref()) {
                told.insert(place, now);
            }
        }
        // What is left is not listed any more. Its end may have been told, or may not.
        for (_, before) in std::mem::take(&mut self.told) {
            if !before.mark.has_ended() {
                let call = Arc::clone(&before.call);
                self.compare(call, Some(&before));
            }
        }
        self.told = told;
    }

    /// Tells of a search if that is news, and gives what there is to remember of it.
    fn compare(&mut self, call: Arc<Call>, before: Option<&Told>) -> Option<Told> {
        let summary = call.summary();
        let mark = Mark::of(&summary);
        let is_watched = self.filter.takes(&summary);
        let is_news = match before {
            Some(before) if is_watched => before.mark != mark || !before.is_watched,
            // It has left those that are watched, which is told once.
            Some(before) => before.is_watched,
            None => is_watched,
        };
        if is_news {
            self.ready.push_back(summary);
        }
        (is_watched || before.is_some()).then_some(Told {
            call,
            mark,
            is_watched,
        })
    }

    /// As much of what is ready as goes into one message.
    fn message(&mut self) -> WatchSearchesResponse {
        let mut message = WatchSearchesResponse::default();
        let mut bytes = 0;
        while bytes <= MESSAGE_BYTES
            && let Some(summary) = self.ready.pop_front()
        {
            bytes += summary.encoded_len();
            message.searches.push(summary);
        }
        message
    }
}

impl Stream for Changes {
    type Item = Result<WatchSearchesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Some(Ok(self.message())));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let Some(told) = &mut self.told_to_stop else {
                self.is_over = true;
                let status = Status::from(CallError::Draining(None));
                return Poll::Ready(Some(Err(status)));
            };
            if told.as_mut().poll(cx).is_ready() {
                // How the searches ended is the last thing that is told.
                self.told_to_stop = None;
                self.look();
                continue;
            }
            ready!(self.ticks.poll_tick(cx));
            self.look();
            // The first message is there even if there are no searches.
            if !std::mem::replace(&mut self.has_begun, true) && self.ready.is_empty() {
                return Poll::Ready(Some(Ok(WatchSearchesResponse::default())));
            }
        }
    }
}

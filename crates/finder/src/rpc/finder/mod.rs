//! `hashfinder.v1.Finder`: our own contract.

mod aside;
mod events;
mod figures;
mod watch;

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use hashfinder_proto::limits::{
    DEFAULT_INTERVAL, LONGEST_INTERVAL, MAX_REASON_LEN, SHORTEST_INTERVAL,
};
use hashfinder_search::Kernel;
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    call::Cancelled,
    query,
    registry::Viewer,
    searches::{Caller, Searches},
    status::{CallError, Canceller},
    v1pb::{
        self, CancelSearchRequest, CancelSearchResponse, EstimateRequest, EstimateResponse,
        ListSearchesRequest, ListSearchesResponse, SearchRequest, WatchSearchesRequest,
        finder_server::Finder,
    },
};
pub(crate) use aside::WatchAside;
use events::{Events, Reckoning};
use figures::Figures;
use watch::{Changes, Watches};

const SEARCH: &str = "hashfinder.v1.Finder/Search";
const ESTIMATE: &str = "hashfinder.v1.Finder/Estimate";
const LIST_SEARCHES: &str = "hashfinder.v1.Finder/ListSearches";
const WATCH_SEARCHES: &str = "hashfinder.v1.Finder/WatchSearches";
const CANCEL_SEARCH: &str = "hashfinder.v1.Finder/CancelSearch";

/// How many searches a page has if nobody says so: a few screens.
const PAGE: usize = 100;

/// The most searches of one page.
const LARGEST_PAGE: usize = 1000;

/// Beyond how many bytes a message takes no more searches: one that nobody reads holds that much for as long, and an
/// address may have a thousand of them.
const MESSAGE_BYTES: usize = 32 << 10;

/// Below how many bytes a frame is small. HTTP/2 implementations close a connection over a hundred and more
/// small frames that wait to be read (h2, which our own client has, counts the bytes that 256 are more than
/// each), however few a second there are of them. Longer ones fill the stream's window, and then nothing is
/// sent.
const SMALL_FRAME: usize = 256;

/// How long a search's first event waits for its odds. They mostly take less; while those of others are
/// reckoned they may take seconds, and a search tells where it is without them then.
const ODDS_PATIENCE: Duration = Duration::from_millis(20);

/// The service.
#[derive(Clone)]
pub(crate) struct FinderService {
    searches: Arc<Searches>,
    figures: Arc<Figures>,
    watches: Watches,
}

impl FinderService {
    /// `kernel` is what the searches' engine runs on.
    pub(crate) fn new(searches: Arc<Searches>, kernel: Kernel) -> FinderService {
        FinderService {
            figures: Arc::new(Figures::new(kernel, searches.workers())),
            watches: Watches::default(),
            searches,
        }
    }

    async fn begin(&self, caller: &Caller, request: &SearchRequest) -> Result<Events, CallError> {
        let query = query::of_search(request)?;
        let wished = NonZeroU64::new(request.maximum_hashes);
        let answer = self.searches.begin(SEARCH, caller, query.clone(), wished);
        let answer = answer.await?;
        let (figures, caller) = (Arc::clone(&self.figures), caller.clone());
        // The search has begun, and so its end tells more than what may be wrong here.
        let mut odds: Reckoning = Box::pin(async move { figures.odds(&caller, &query).await.ok() });
        let reckoned = timeout(ODDS_PATIENCE, &mut odds).await;
        let interval = interval(request.progress_interval.as_ref());
        Ok(Events::new(answer, reckoned.map_err(|_| odds), interval))
    }

    async fn reckon(
        &self,
        caller: &Caller,
        request: &EstimateRequest,
    ) -> Result<EstimateResponse, CallError> {
        let query = query::of_estimate(request)?;
        let _counted = self.figures.begin(caller)?;
        let odds = self.figures.odds(caller, &query).await?;
        let rate = self.figures.rate(caller, &query).await?;
        Ok(figures::estimate(&odds, rate))
    }

    fn list(
        &self,
        caller: &Caller,
        request: &ListSearchesRequest,
    ) -> Result<ListSearchesResponse, CallError> {
        let filter = Filter::new(
            self.searches.viewer(caller),
            &request.client,
            &request.states,
        )?;
        let size = match usize::try_from(request.page_size) {
            Ok(0) => PAGE,
            Ok(size) => size.min(LARGEST_PAGE),
            Err(_) => {
                let message = format!("a page cannot have {} searches", request.page_size);
                return Err(CallError::wrong("page_size", message));
            }
        };
        let registry = self.searches.registry();
        let after = match &request.page_token[..] {
            "" => None,
            token => Some(registry.place_of(token).ok_or_else(|| {
                let message = "this is no page token of this server since it was started; begin \
                               with the first page";
                CallError::wrong("page_token", message)
            })?),
        };
        let mut response = ListSearchesResponse::default();
        let (mut last, mut bytes) = (None, 0);
        for (place, call) in registry.seen_by(&filter.viewer, filter.client(), after) {
            let summary = call.summary();
            if !filter.takes(summary.state()) {
                continue;
            }
            if response.searches.len() == size || bytes > MESSAGE_BYTES {
                let token = last.map(|place| registry.page_token(place));
                response.next_page_token = token.unwrap_or_default();
                break;
            }
            bytes += summary.encoded_len();
            last = Some(place);
            response.searches.push(summary);
        }
        Ok(response)
    }

    fn watch(&self, caller: &Caller, request: &WatchSearchesRequest) -> Result<Changes, CallError> {
        let filter = Filter::new(
            self.searches.viewer(caller),
            &request.client,
            &request.states,
        )?;
        let watch = self.watches.begin(&filter.viewer)?;
        let searches = Arc::clone(&self.searches);
        let interval = interval(request.interval.as_ref());
        Ok(Changes::new(
            &caller.context,
            searches,
            filter,
            interval,
            watch,
        ))
    }

    fn cancel(
        &self,
        caller: &Caller,
        request: &CancelSearchRequest,
    ) -> Result<CancelSearchResponse, CallError> {
        let reason = &request.reason[..];
        let length = reason.len();
        if length > MAX_REASON_LEN {
            let message = format!("the reason has {length} bytes; {MAX_REASON_LEN} is the most");
            return Err(CallError::wrong("reason", message));
        }
        if reason.chars().any(char::is_control) {
            let message =
                "the reason holds a control character, a line's end for one; leave it out";
            return Err(CallError::wrong("reason", message));
        }
        if request.search_id.is_empty() {
            let message = "there is no id; ListSearches tells those of all searches";
            return Err(CallError::wrong("search_id", message));
        }
        let viewer = self.searches.viewer(caller);
        let call = self.searches.registry().find(&viewer, &request.search_id);
        let call = call.ok_or(CallError::NoSuchSearch)?;
        let is_own = *call.client() == viewer.client;
        let by = if is_own {
            Canceller::Client
        } else {
            Canceller::Operator
        };
        // An operator's reasons are for whoever looks after the server; a client's own are nobody's.
        let noted = (by == Canceller::Operator).then_some(reason);
        let summary = call.summary();
        let cancelled = call.cancel(by, reason);
        let had_ended = cancelled == Cancelled::HadEnded;
        tracing::info!(
            search = %request.search_id,
            peer = caller.peer().map(tracing::field::display),
            client = %viewer.client,
            ?by,
            reason = noted,
            had_ended,
            is_first = cancelled == Cancelled::Now,
            "search cancelled",
        );
        let search = if had_ended { call.summary() } else { summary };
        Ok(CancelSearchResponse {
            search: Some(search),
            had_ended,
        })
    }
}

#[tonic::async_trait]
impl Finder for FinderService {
    type SearchStream = Events;
    type WatchSearchesStream = Changes;

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Events>, Status> {
        let caller = Caller::of(&request);
        let events = self.begin(&caller, &request.into_inner()).await;
        events
            .map(Response::new)
            .map_err(|error| self.searches.refused(SEARCH, &caller, error))
    }

    async fn estimate(
        &self,
        request: Request<EstimateRequest>,
    ) -> Result<Response<EstimateResponse>, Status> {
        let caller = Caller::of(&request);
        let estimate = self.reckon(&caller, &request.into_inner()).await;
        estimate
            .map(Response::new)
            .map_err(|error| self.searches.refused(ESTIMATE, &caller, error))
    }

    async fn list_searches(
        &self,
        request: Request<ListSearchesRequest>,
    ) -> Result<Response<ListSearchesResponse>, Status> {
        let caller = Caller::of(&request);
        self.list(&caller, request.get_ref())
            .map(Response::new)
            .map_err(|error| self.searches.refused(LIST_SEARCHES, &caller, error))
    }

    async fn watch_searches(
        &self,
        request: Request<WatchSearchesRequest>,
    ) -> Result<Response<Changes>, Status> {
        let caller = Caller::of(&request);
        self.watch(&caller, request.get_ref())
            .map(Response::new)
            .map_err(|error| self.searches.refused(WATCH_SEARCHES, &caller, error))
    }

    async fn cancel_search(
        &self,
        request: Request<CancelSearchRequest>,
    ) -> Result<Response<CancelSearchResponse>, Status> {
        let caller = Caller::of(&request);
        self.cancel(&caller, request.get_ref())
            .map(Response::new)
            .map_err(|error| self.searches.refused(CANCEL_SEARCH, &caller, error))
    }
}

/// Which searches somebody wants to see.
struct Filter {
    viewer: Viewer,
    client: String,
    /// Each once; empty for all of them.
    states: Vec<v1pb::SearchState>,
}

impl Filter {
    fn new(viewer: Viewer, client: &str, states: &[i32]) -> Result<Filter, CallError> {
        if !viewer.is_operator && !client.is_empty() && *client != *viewer.client.0 {
            return Err(CallError::NotAnOperator);
        }
        let states = states.iter().enumerate().map(|(place, state)| {
            v1pb::SearchState::try_from(*state).map_err(|_| {
                let field = format!("states[{place}]");
                let message = format!("{field}: this server does not know the value {state}");
                CallError::wrong(&field, message)
            })
        });
        let mut states: Vec<v1pb::SearchState> = states.collect::<Result<_, _>>()?;
        states.sort_unstable();
        states.dedup();
        if states.contains(&v1pb::SearchState::Unspecified) {
            states.clear();
        }
        Ok(Filter {
            viewer,
            client: client.to_owned(),
            states,
        })
    }

    fn client(&self) -> Option<&str> {
        Some(&self.client[..]).filter(|client| !client.is_empty())
    }

    fn takes(&self, state: v1pb::SearchState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}

/// What makes a message of so many bytes, or one of more, so long that it costs its reader no more than its
/// bytes.
fn padding(bytes: usize) -> Vec<u8> {
    vec![0; SMALL_FRAME.saturating_sub(bytes)]
}

/// The interval that is asked for, or the nearest that there is.
fn interval(asked: Option<&prost_types::Duration>) -> Duration {
    let Some(asked) = asked else {
        return DEFAULT_INTERVAL;
    };
    // Only one below zero is none.
    let asked = Duration::try_from(*asked).unwrap_or_default();
    asked.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

//! `hashfinder.v1.Finder`: our own contract.

mod aside;
mod events;
mod figures;
mod watch;

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use hashfinder_search::Kernel;
use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    query,
    registry::Viewer,
    searches::{Caller, Searches},
    status::{CallError, Canceller},
    v1pb::{
        self, CancelSearchRequest, CancelSearchResponse, EstimateRequest, EstimateResponse,
        ListSearchesRequest, ListSearchesResponse, SearchRequest, SearchSummary,
        WatchSearchesRequest, finder_server::Finder,
    },
};
pub(crate) use aside::WatchAside;
use events::Events;
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

/// Beyond how many bytes a message takes no more searches, so that it stays far below the four mebibytes
/// that clients commonly take.
const MESSAGE_BYTES: usize = 1 << 20;

/// The longest reason for cancelling a search, in characters. It travels in a header, and so does the
/// cursor.
const REASON_LEN: usize = 256;

/// How often is told how things stand, if nobody says so.
const INTERVAL: Duration = Duration::from_secs(1);

/// The shortest such interval: ten times a second looks like always.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// The longest such interval: after that, who reads along would think that nothing is there any more.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

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
        let odds = match self.figures.odds(caller, &query).await {
            Ok(odds) => Some(odds),
            // It has begun, and so its end tells more than this would.
            Err(CallError::Draining(_)) => None,
            Err(error) => return Err(error),
        };
        let interval = interval(request.progress_interval.as_ref());
        Ok(Events::new(answer, odds, interval))
    }

    async fn reckon(
        &self,
        caller: &Caller,
        request: &EstimateRequest,
    ) -> Result<EstimateResponse, CallError> {
        let query = query::of_estimate(request)?;
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
            if !filter.takes(&summary) {
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
        let watch = self.watches.begin(&filter.viewer.client)?;
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
        let length = reason.chars().count();
        if length > REASON_LEN {
            let message = format!("the reason has {length} characters; {REASON_LEN} is the most");
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
        let summary = call.summary();
        let had_ended = call.cancel(by, reason);
        tracing::info!(
            search = %request.search_id,
            peer = caller.peer().map(tracing::field::display),
            ?by,
            reason,
            had_ended,
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
    /// Empty for all of them.
    states: Vec<i32>,
}

impl Filter {
    fn new(viewer: Viewer, client: &str, states: &[i32]) -> Result<Filter, CallError> {
        if !viewer.is_operator && !client.is_empty() && *client != *viewer.client.0 {
            return Err(CallError::NotAnOperator);
        }
        for (place, state) in states.iter().enumerate() {
            if v1pb::SearchState::try_from(*state).is_err() {
                let field = format!("states[{place}]");
                let message = format!("{field}: this server does not know the value {state}");
                return Err(CallError::wrong(&field, message));
            }
        }
        let any = i32::from(v1pb::SearchState::Unspecified);
        let states = if states.contains(&any) { &[] } else { states };
        Ok(Filter {
            viewer,
            client: client.to_owned(),
            states: states.to_vec(),
        })
    }

    fn client(&self) -> Option<&str> {
        Some(&self.client[..]).filter(|client| !client.is_empty())
    }

    fn takes(&self, summary: &SearchSummary) -> bool {
        self.states.is_empty() || self.states.contains(&summary.state)
    }
}

/// The interval that is asked for, or the nearest that there is.
fn interval(asked: Option<&prost_types::Duration>) -> Duration {
    let Some(asked) = asked else { return INTERVAL };
    // Only one below zero is none.
    let asked = Duration::try_from(*asked).unwrap_or_default();
    asked.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

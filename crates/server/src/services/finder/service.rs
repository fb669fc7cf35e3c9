//! The methods of `hashfinder.v1.Finder`.

use std::{num::NonZeroU64, sync::Arc};

use hashfinder_proto::{
    google::longrunning::Operation,
    limits::MAX_REASON_LEN,
    v1::{
        CancelSearchRequest, CancelSearchResponse, EstimateRequest, EstimateResponse,
        ListCandidatesRequest, ListCandidatesResponse, ListSearchesRequest, ListSearchesResponse,
        SearchRequest, SearchState, StartSearchRequest, WatchOperationRequest,
        WatchSearchesRequest, finder_server::Finder,
    },
};
use hashfinder_search::Kernel;
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    estimates::{self, Estimates},
    events::{Events, OddsFuture},
    filter::Filter,
    frames::MESSAGE_BYTES,
    operations::{self, OperationEvents},
    pace::{ODDS_PATIENCE, interval},
    watch::{Changes, Watches},
};
use crate::{
    errors::{CallError, Canceller},
    searches::{
        query,
        record::CancelResult,
        shared::{Caller, Searches},
    },
    services::operations::Access,
};

/// Default number of searches on a page: a few screens.
const PAGE: usize = 100;

/// Maximum number of searches on a page.
const LARGEST_PAGE: usize = 1000;

/// The service.
#[derive(Clone)]
pub(crate) struct FinderService {
    searches: Arc<Searches>,
    estimates: Arc<Estimates>,
    watches: Watches,
    operations: Access,
    /// Hash budget of an operation.
    maximum_hashes: u64,
}

impl FinderService {
    /// Creates the service. `kernel` is the one that the searches' engine uses.
    /// `maximum_hashes` is the hash budget of an operation.
    pub(crate) fn new(
        searches: Arc<Searches>,
        kernel: Kernel,
        operations: Access,
        maximum_hashes: u64,
    ) -> FinderService {
        FinderService {
            operations,
            maximum_hashes,
            estimates: Arc::new(Estimates::new(kernel, searches.workers())),
            watches: Watches::default(),
            searches,
        }
    }

    async fn begin(&self, caller: &Caller, request: &SearchRequest) -> Result<Events, CallError> {
        let query = query::of_search(request)?;
        let wished = NonZeroU64::new(request.maximum_hashes);
        let answer = self.searches.begin(caller, query.clone(), wished);
        let answer = answer.await?;
        let (estimates, caller) = (Arc::clone(&self.estimates), caller.clone());
        // Errors of the odds are ignored: the search has begun, and its result matters more to the
        // client.
        let mut odds: OddsFuture =
            Box::pin(async move { estimates.odds(&caller, &query).await.ok() });
        let known = timeout(ODDS_PATIENCE, &mut odds).await;
        let interval = interval(request.progress_interval.as_ref());
        Ok(Events::new(answer, known.map_err(|_| odds), interval))
    }

    async fn estimate_of(
        &self,
        caller: &Caller,
        request: &EstimateRequest,
    ) -> Result<EstimateResponse, CallError> {
        let query = query::of_estimate(request)?;
        let _counted = self.estimates.admit(caller)?;
        let odds = self.estimates.odds(caller, &query).await?;
        let rate = self.estimates.rate(caller, &query).await?;
        Ok(estimates::estimate(&odds, rate))
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
                let message = format!(
                    "page size {} is negative; give 0 or more",
                    request.page_size
                );
                return Err(CallError::wrong("page_size", message));
            }
        };
        let registry = self.searches.registry();
        let after = match &request.page_token[..] {
            "" => None,
            token => Some(registry.place_of(token).ok_or_else(|| {
                let message = "unknown page token (tokens are valid until the server restarts); \
                               start with the first page";
                CallError::wrong("page_token", message)
            })?),
        };
        let mut response = ListSearchesResponse::default();
        let (mut last, mut bytes) = (None, 0);
        for (place, record) in registry.seen_by(&filter.viewer, filter.client(), after) {
            let summary = record.summary();
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

    async fn cancel(
        &self,
        caller: &Caller,
        request: &CancelSearchRequest,
    ) -> Result<CancelSearchResponse, CallError> {
        let reason = &request.reason[..];
        let length = reason.len();
        if length > MAX_REASON_LEN {
            let message = format!("the reason has {length} bytes; give at most {MAX_REASON_LEN}");
            return Err(CallError::wrong("reason", message));
        }
        if reason.chars().any(char::is_control) {
            let message =
                "the reason contains a control character, such as a line break; remove it";
            return Err(CallError::wrong("reason", message));
        }
        if request.search_id.is_empty() {
            let message = "the search id is empty; ListSearches returns the ids";
            return Err(CallError::wrong("search_id", message));
        }
        let viewer = self.searches.viewer(caller);
        let record = self.searches.registry().find(&viewer, &request.search_id);
        let record = record.ok_or(CallError::NoSuchSearch)?;
        let by = if viewer.owns(&record) {
            Canceller::Client
        } else {
            Canceller::Operator
        };
        // The log is for operators. A client's reason for cancelling its own search is private.
        let noted = (by == Canceller::Operator).then_some(reason);
        let summary = record.summary();
        if let (Some(name), false) = (record.operation(), summary.state() == SearchState::Ended) {
            // Otherwise the operation would resume its search.
            let operation = self.operations.find(caller, &name.to_string()).await?;
            self.operations.cancel(caller, &operation, reason).await?;
        }
        let cancelled = record.cancel(by, reason);
        let had_ended = summary.state() == SearchState::Ended;
        tracing::info!(
            search = %request.search_id,
            peer = caller.peer().map(tracing::field::display),
            client = %viewer.client,
            ?by,
            reason = noted,
            had_ended,
            is_first = cancelled == CancelResult::Now,
            "search cancelled",
        );
        let search = if had_ended { record.summary() } else { summary };
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
    type WatchOperationStream = OperationEvents;

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Events>, Status> {
        let caller = Caller::of(&request);
        let events = self.begin(&caller, &request.into_inner()).await;
        events
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn estimate(
        &self,
        request: Request<EstimateRequest>,
    ) -> Result<Response<EstimateResponse>, Status> {
        let caller = Caller::of(&request);
        let estimate = self.estimate_of(&caller, &request.into_inner()).await;
        estimate
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn list_searches(
        &self,
        request: Request<ListSearchesRequest>,
    ) -> Result<Response<ListSearchesResponse>, Status> {
        let caller = Caller::of(&request);
        self.list(&caller, request.get_ref())
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn watch_searches(
        &self,
        request: Request<WatchSearchesRequest>,
    ) -> Result<Response<Changes>, Status> {
        let caller = Caller::of(&request);
        self.watch(&caller, request.get_ref())
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn cancel_search(
        &self,
        request: Request<CancelSearchRequest>,
    ) -> Result<Response<CancelSearchResponse>, Status> {
        let caller = Caller::of(&request);
        let cancelled = self.cancel(&caller, request.get_ref()).await;
        cancelled
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn start_search(
        &self,
        request: Request<StartSearchRequest>,
    ) -> Result<Response<Operation>, Status> {
        let caller = Caller::of(&request);
        let (access, maximum_hashes) = (&self.operations, self.maximum_hashes);
        let started = operations::start(access, &caller, maximum_hashes, request.get_ref()).await;
        started
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn watch_operation(
        &self,
        request: Request<WatchOperationRequest>,
    ) -> Result<Response<OperationEvents>, Status> {
        let caller = Caller::of(&request);
        let events = async {
            let watch = self.watches.begin(&self.searches.viewer(&caller))?;
            let estimates = Arc::clone(&self.estimates);
            operations::watch(
                &self.operations,
                &caller,
                estimates,
                watch,
                request.get_ref(),
            )
            .await
        };
        events
            .await
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }

    async fn list_candidates(
        &self,
        request: Request<ListCandidatesRequest>,
    ) -> Result<Response<ListCandidatesResponse>, Status> {
        let caller = Caller::of(&request);
        let listed = operations::list(&self.operations, &caller, request.get_ref()).await;
        listed
            .map(Response::new)
            .map_err(|error| self.searches.reject(&caller, error))
    }
}

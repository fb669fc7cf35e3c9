//! `google.longrunning.Operations`: returns, lists, awaits, cancels and deletes operations.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hashfinder_operations::{COLLECTION, Millis, Phase, Selection, Snapshot};
use hashfinder_proto::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest, operations_server::Operations,
};
use prost::Message;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Response, Status};

use super::operations::{Access, operation};
use crate::{errors::CallError, searches::shared::Caller};

/// Default number of operations on a page, and the maximum.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// Number of operations that are read from the store at a time.
const READ_AT_ONCE: usize = 200;

/// Maximum number of operations that are read for one page. A filter may select few of them; then
/// the page has fewer, and the next one continues.
const READ_FOR_PAGE: usize = 2000;

/// Maximum length of a page, in bytes.
const PAGE_BYTES: usize = 1 << 20;

/// Maximum time for which WaitOperation waits. Proxies commonly end calls that are silent for
/// longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Interval at which WaitOperation checks whether a store that failed works again.
const REOPENED_AFTER: Duration = Duration::from_secs(1);

/// Minimum time before a call's deadline at which WaitOperation returns the latest state.
const ANSWER_TIME: Duration = Duration::from_millis(50);

/// The service.
#[derive(Clone)]
pub(crate) struct LongRunning(Access);

impl LongRunning {
    pub(crate) fn new(access: Access) -> LongRunning {
        LongRunning(access)
    }

    async fn list(
        &self,
        caller: &Caller,
        request: &ListOperationsRequest,
    ) -> Result<ListOperationsResponse, CallError> {
        let operations = self.0.operations()?;
        if !request.name.is_empty() && request.name != COLLECTION {
            let message = format!("unknown collection; use {COLLECTION:?} or leave it empty");
            return Err(CallError::wrong("name", message));
        }
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
        let owner = self.0.owner(caller);
        let filter = Filter::parse(&request.filter)
            .map_err(|message| CallError::wrong("filter", message))?;
        let client = match (&filter.client, owner.is_operator) {
            (Some(client), true) => Some(client.clone()),
            (Some(client), false) if owner.client.as_deref() != Some(client) => {
                return Err(CallError::NotAnOperator);
            }
            (None, true) => None,
            // A caller that can own no operation sees none: no client has an empty name.
            (_, false) => Some(owner.client.as_deref().unwrap_or_default().to_owned()),
        };
        let mut selection = Selection {
            client,
            after: match &request.page_token[..] {
                "" => None,
                token => Some(place_of(token).ok_or_else(|| {
                    let message = "unknown page token; start with the first page";
                    CallError::wrong("page_token", message)
                })?),
            },
            ended: filter.ended(),
        };
        let mut response = ListOperationsResponse::default();
        let (mut read, mut bytes) = (0, 0);
        let _read = self.0.read(caller).await;
        loop {
            let some = operations.list(selection.clone(), READ_AT_ONCE).await?;
            let is_last = some.len() < READ_AT_ONCE;
            read += some.len();
            for snapshot in some {
                if response.operations.len() == size || bytes > PAGE_BYTES {
                    let after = selection.after;
                    response.next_page_token = after.map(page_token).unwrap_or_default();
                    return Ok(response);
                }
                let record = &snapshot.record;
                selection.after = Some((record.created, record.name.id().to_owned()));
                if filter.selects(&snapshot) {
                    let operation = operation(&snapshot);
                    bytes += operation.encoded_len();
                    response.operations.push(operation);
                }
            }
            if is_last {
                return Ok(response);
            }
            if read >= READ_FOR_PAGE {
                let after = selection.after;
                response.next_page_token = after.map(page_token).unwrap_or_default();
                return Ok(response);
            }
        }
    }

    async fn delete(&self, caller: &Caller, name: &str) -> Result<(), CallError> {
        let found = self.0.find(caller, name).await?;
        let name = &found.record.name;
        self.0.operations()?.delete(name).await?;
        tracing::info!(operation = %name, client = %caller.client(), "operation deleted");
        Ok(())
    }

    async fn wait(
        &self,
        caller: &Caller,
        request: &WaitOperationRequest,
    ) -> Result<Operation, CallError> {
        let asked = match request.timeout {
            None => LONGEST_WAIT,
            Some(timeout) => Duration::try_from(timeout).map_err(|_| {
                CallError::wrong("timeout", "the timeout is negative; give 0 or more")
            })?,
        };
        let wait = match caller.context.time_remaining() {
            // The response has to arrive before the deadline.
            Some(left) => asked.min(left.saturating_sub((left / 10).max(ANSWER_TIME))),
            None => asked,
        };
        let until = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let found = self.0.find(caller, &request.name).await?;
            let is_over = Instant::now() >= until || caller.context.is_cancelled();
            if found.phase == Phase::Ended || is_over {
                return Ok(operation(&found));
            }
            let changes = self.0.operations()?.watch(&found.record.name);
            let ended = async {
                match changes {
                    Some(mut changes) => {
                        let ended = changes.wait_for(|now| now.phase == Phase::Ended).await;
                        drop(ended);
                    }
                    // The store failed, and is being opened again.
                    None => sleep(REOPENED_AFTER).await,
                }
            };
            tokio::select! {
                () = ended => {}
                () = sleep_until(until) => {}
                // Only a drain lets this future continue after a cancellation.
                _ = caller.context.cancelled() => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Operations for LongRunning {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let caller = Caller::of(&request);
        let listed = self.list(&caller, request.get_ref()).await;
        listed
            .map(Response::new)
            .map_err(|error| self.0.searches().reject(&caller, error))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let caller = Caller::of(&request);
        let found = self.0.find(&caller, &request.get_ref().name).await;
        found
            .map(|found| Response::new(operation(&found)))
            .map_err(|error| self.0.searches().reject(&caller, error))
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request);
        let deleted = self.delete(&caller, &request.get_ref().name).await;
        deleted
            .map(Response::new)
            .map_err(|error| self.0.searches().reject(&caller, error))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request);
        let cancelled = async {
            let found = self.0.find(&caller, &request.get_ref().name).await?;
            self.0.cancel(&caller, &found, "").await
        };
        cancelled
            .await
            .map(Response::new)
            .map_err(|error| self.0.searches().reject(&caller, error))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let caller = Caller::of(&request);
        let operation = self.wait(&caller, request.get_ref()).await;
        operation
            .map(Response::new)
            .map_err(|error| self.0.searches().reject(&caller, error))
    }
}

/// Returns the token with which a list continues after a place. It is valid on every server that
/// has the operations.
fn page_token((created, id): (Millis, String)) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("{created} {id}"))
}

fn place_of(token: &str) -> Option<(Millis, String)> {
    let place = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (created, id) = place.split_once(' ')?;
    Some((created.parse().ok()?, id.to_owned()))
}

/// Which operations to list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    client: Option<String>,
    state: Option<State>,
    done: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running,
    Paused,
    Ended,
}

impl Filter {
    /// Parses a filter such as `state = RUNNING AND client = "key:0123"`, a part of the language of
    /// AIP-160.
    fn parse(text: &str) -> Result<Filter, String> {
        let mut filter = Filter::default();
        if text.trim().is_empty() {
            return Ok(filter);
        }
        for term in text.split(" AND ") {
            let help = "use terms such as `state = RUNNING`, `client = \"key:0123\"` and \
                        `done = true`, joined by AND";
            let parts = term.split_once('=').or_else(|| term.split_once(':'));
            let (field, value) = parts.ok_or_else(|| format!("no value in {term:?}; {help}"))?;
            let value = value.trim().trim_matches('"');
            let is_second = match field.trim() {
                "client" => filter.client.replace(value.to_owned()).is_some(),
                "done" => {
                    let done = value.parse().map_err(|_| {
                        format!("invalid value {value:?} of done; use true or false; {help}")
                    })?;
                    filter.done.replace(done).is_some()
                }
                "state" => {
                    let state = match value {
                        "QUEUED" => State::Queued,
                        "RUNNING" => State::Running,
                        "PAUSED" => State::Paused,
                        "ENDED" => State::Ended,
                        _ => {
                            return Err(format!(
                                "unknown state {value:?}; use QUEUED, RUNNING, PAUSED or ENDED; \
                                 {help}"
                            ));
                        }
                    };
                    filter.state.replace(state).is_some()
                }
                field => return Err(format!("unknown field {field:?}; {help}")),
            };
            if is_second {
                return Err(format!("{} is given twice; {help}", field.trim()));
            }
        }
        Ok(filter)
    }

    /// Whether only operations that have ended are selected, or only others.
    fn ended(&self) -> Option<bool> {
        let of_state = self.state.map(|state| state == State::Ended);
        of_state.or(self.done)
    }

    fn selects(&self, snapshot: &Snapshot) -> bool {
        let state = match snapshot.phase {
            Phase::Queued(_) => State::Queued,
            Phase::Running => State::Running,
            Phase::Paused(_) => State::Paused,
            Phase::Ended => State::Ended,
        };
        let is_done = state == State::Ended;
        self.state.is_none_or(|wanted| wanted == state)
            && self.done.is_none_or(|done| done == is_done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed() {
        let parse = |text| Filter::parse(text);
        assert_eq!(parse(" "), Ok(Filter::default()));
        let filter = parse("state = RUNNING AND client = \"key:a=b\"").unwrap();
        assert_eq!(filter.client.as_deref(), Some("key:a=b"));
        assert_eq!(
            (filter.state, filter.ended()),
            (Some(State::Running), Some(false))
        );
        assert_eq!(parse("done:true").unwrap().ended(), Some(true));
        for wrong in [
            "state",
            "state = ON",
            "done = yes",
            "name = x",
            "state = RUNNING OR done",
            "state = RUNNING AND state = ENDED",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn page_tokens_are_read_back() {
        let place = (1_234_567, "0123".to_owned());
        assert_eq!(place_of(&page_token(place.clone())), Some(place));
        assert_eq!(place_of("x"), None);
        assert_eq!(place_of(""), None);
    }
}

//! What the services of operations share: access, errors, and the messages of the contract.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hashfinder_operations::{
    Canceller as By, EndReason, Error, Millis, Name, Operations, Phase, Record, Rejection, Snapshot,
};
use hashfinder_proto::{
    google::longrunning::{Operation, operation},
    v1 as v1pb,
    v1::{OperationState, SearchMetadata, SearchResult},
};
use hashfinder_search::{self as search, Index, Query};
use hashfinder_transport::ClientName;
use prost::Message;
use prost_types::{Any, Timestamp};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::{
    errors::{CallError, Canceller},
    operations::{Owner, owner_of},
    searches::{
        query,
        shared::{Caller, Searches},
    },
};

/// Maximum number of calls of a client that read saved operations at a time; further ones wait. One
/// thread reads for all clients, and a page takes it some milliseconds.
const READS_OF_CLIENT: usize = 4;

/// The operations of a server, as its services see them. Clones share them.
#[derive(Clone)]
pub(crate) struct Access {
    operations: Option<Operations>,
    searches: Arc<Searches>,
    /// The clients that read at the moment.
    readers: Arc<Mutex<HashMap<ClientName, Weak<Semaphore>>>>,
}

impl Access {
    /// Without `operations`, every request is rejected.
    pub(crate) fn new(operations: Option<Operations>, searches: Arc<Searches>) -> Access {
        Access {
            operations,
            searches,
            readers: Arc::default(),
        }
    }

    /// Returns the operations, if the server saves any.
    pub(crate) fn operations(&self) -> Result<&Operations, CallError> {
        self.operations
            .as_ref()
            .ok_or(CallError::OperationsDisabled)
    }

    pub(crate) fn searches(&self) -> &Searches {
        &self.searches
    }

    /// Waits until other reads of the caller's client have ended, if there are too many. The read
    /// counts until the result is dropped. A caller must not wait for a second read with the first
    /// one's result.
    ///
    /// Dropping the future gives up its place.
    pub(crate) async fn read(&self, caller: &Caller) -> impl Sized + use<> {
        let client = caller.client();
        let semaphore = {
            // No code under this lock panics.
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            readers.retain(|_, semaphore| semaphore.strong_count() > 0);
            let known = readers.get(&client).and_then(Weak::upgrade);
            let semaphore = known.unwrap_or_else(|| Arc::new(Semaphore::new(READS_OF_CLIENT)));
            readers.insert(client, Arc::downgrade(&semaphore));
            semaphore
        };
        // It is never closed.
        semaphore.acquire_owned().await.ok()
    }

    /// Returns whose operations a caller may see.
    pub(crate) fn owner(&self, caller: &Caller) -> Owner {
        Owner {
            client: owner_of(caller),
            is_operator: self.searches.viewer(caller).is_operator,
        }
    }

    /// Returns the operation with this name, if the caller may see it.
    pub(crate) async fn find(&self, caller: &Caller, name: &str) -> Result<Snapshot, CallError> {
        let operations = self.operations()?;
        if name.is_empty() {
            let message = "the name is empty; ListOperations returns the names";
            return Err(CallError::wrong("name", message));
        }
        let name: Name = name
            .parse()
            .map_err(|error: hashfinder_operations::InvalidName| {
                CallError::wrong("name", error.to_string())
            })?;
        let read = self.read(caller).await;
        let found = operations.get(&name).await.map_err(CallError::from)?;
        drop(read);
        let owner = self.owner(caller);
        let visible = found.filter(|found| owner.sees(&found.record.request.client));
        visible.ok_or(CallError::NoSuchOperation)
    }

    /// Cancels an operation that the caller may see.
    pub(crate) async fn cancel(
        &self,
        caller: &Caller,
        found: &Snapshot,
        reason: &str,
    ) -> Result<(), CallError> {
        let name = &found.record.name;
        let is_own = owner_of(caller).as_deref() == Some(&*found.record.request.client);
        let by = if is_own { By::Client } else { By::Operator };
        let message = reason.to_owned();
        self.operations()?.cancel(name, by, message).await?;
        if found.record.end.is_none() {
            let client = caller.client();
            tracing::info!(operation = %name, %client, ?by, "operation cancelled");
        }
        Ok(())
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> CallError {
        match error {
            Error::Rejected(Rejection::RequestIdReused) => CallError::RequestIdReused,
            Error::Rejected(Rejection::Deleted) => CallError::OperationDeleted,
            Error::Rejected(Rejection::TooManyRunning { limit }) => {
                CallError::TooManyRunningOperations { limit }
            }
            Error::Rejected(Rejection::TooManySaved { limit }) => {
                CallError::TooManySavedOperations { limit }
            }
            Error::NotEnded => CallError::OperationNotEnded,
            Error::Unavailable(why) => CallError::StoreUnavailable(why.to_string()),
            Error::Damaged(why) => CallError::StoreDamaged(why.to_string()),
            Error::Draining => CallError::Draining(None),
        }
    }
}

/// Returns the message for an operation.
pub(crate) fn operation(snapshot: &Snapshot) -> Operation {
    let record = &*snapshot.record;
    let result = record.end.as_ref().map(|_| match record.found() {
        Some(index) => {
            let result = SearchResult {
                found: Some(candidate(record.query(), index)),
                hashes: record.hashes(),
            };
            operation::Result::Response(any("SearchResult", &result))
        }
        None => operation::Result::Error(status(record)),
    });
    Operation {
        name: record.name.to_string(),
        metadata: Some(any("SearchMetadata", &metadata(snapshot))),
        done: record.end.is_some(),
        result,
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/hashfinder.v1.{name}"),
        value: message.encode_to_vec(),
    }
}

fn metadata(snapshot: &Snapshot) -> SearchMetadata {
    let record = &*snapshot.record;
    let (state, state_message) = match &snapshot.phase {
        Phase::Queued(why) => (OperationState::Queued, why.to_string()),
        Phase::Running => (OperationState::Running, String::new()),
        Phase::Paused(why) => (OperationState::Paused, why.to_string()),
        Phase::Ended => (OperationState::Ended, String::new()),
    };
    let end = record.end.as_ref();
    let ended = ended(record);
    SearchMetadata {
        display_name: record.request.display_name.clone(),
        client: record.request.client.to_string(),
        query: Some(query::to_wire(record.query())),
        start: record.query().start(),
        maximum_hashes: record.budget,
        state: state.into(),
        state_message,
        hashes: record.hashes(),
        frontier: record.checkpoint.frontier(),
        candidates: record.candidates,
        create_time: Some(timestamp(record.created)),
        update_time: Some(timestamp(record.updated)),
        end_time: end.map(|end| timestamp(end.at)),
        expire_time: record.expires().map(timestamp),
        end_reason: ended.reason,
        end_message: ended.message,
        cursor: ended.cursor,
        search_id: snapshot.search.as_deref().unwrap_or_default().to_owned(),
        start_cursor: record.request.text(),
    }
}

/// Returns how an operation ended, as an event; empty if it has not ended.
pub(crate) fn ended(record: &Record) -> v1pb::SearchEnded {
    let Some(end) = &record.end else {
        return v1pb::SearchEnded::default();
    };
    let reason = match end.reason {
        EndReason::Found => v1pb::EndReason::Found,
        EndReason::KeyspaceExhausted => v1pb::EndReason::KeyspaceExhausted,
        EndReason::BudgetSpent => v1pb::EndReason::HashBudgetSpent,
        EndReason::CancelledByClient => v1pb::EndReason::CancelledByClient,
        EndReason::CancelledByOperator => v1pb::EndReason::CancelledByOperator,
        EndReason::KeyRevoked => v1pb::EndReason::KeyRevoked,
        EndReason::TooManyCandidates => v1pb::EndReason::TooManyCandidates,
        EndReason::Failed => v1pb::EndReason::Failed,
    };
    v1pb::SearchEnded {
        reason: reason.into(),
        message: end.message.clone(),
        cursor: record
            .cursor()
            .map(|cursor| cursor.to_string())
            .unwrap_or_default(),
        hashes: record.hashes(),
        frontier: record.checkpoint.frontier(),
    }
}

/// Returns the status of an operation that ended without a result.
fn status(record: &Record) -> tonic_types::Status {
    let cursor = record.cursor();
    let message = record.end.as_ref().map(|end| end.message.clone());
    let message = message.unwrap_or_default();
    let error = match (record.end.as_ref().map(|end| end.reason), cursor) {
        (Some(EndReason::BudgetSpent), Some(cursor)) => CallError::OperationBudgetSpent {
            hashes: record.budget,
            cursor,
        },
        (Some(EndReason::CancelledByClient), Some(cursor)) => CallError::Cancelled {
            by: Canceller::Client,
            reason: message,
            cursor,
        },
        (Some(EndReason::CancelledByOperator), Some(cursor)) => CallError::Cancelled {
            by: Canceller::Operator,
            reason: message,
            cursor,
        },
        (Some(EndReason::KeyRevoked), Some(cursor)) => CallError::KeyRevoked(cursor),
        (Some(EndReason::TooManyCandidates), Some(cursor)) => CallError::TooManyCandidates {
            limit: record.candidates,
            cursor,
        },
        (Some(EndReason::Failed), Some(cursor)) => CallError::OperationFailed {
            why: message,
            cursor,
        },
        // All other ends have a cursor or a result.
        _ => CallError::Exhausted,
    };
    let status = Status::from(error);
    let details = tonic_types::Status::decode(status.details());
    details.unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// Returns the candidate at an index.
pub(crate) fn candidate(query: &Query, index: Index) -> v1pb::Candidate {
    let found = query.candidate(index);
    wire(query, found, found.distance <= query.ideal_distance().get())
}

/// Returns a candidate of a search for `query` as a message.
pub(crate) fn wire(query: &Query, found: search::Candidate, is_ideal: bool) -> v1pb::Candidate {
    let secret = query.keyspace().secret(found.index);
    let name = &query.names()[usize::from(found.name)];
    v1pb::Candidate {
        hashed_name: query.spelling().hashed_name(&secret).to_string(),
        secret,
        desired_name: name.as_str().to_owned(),
        distance: i32::from(found.distance),
        window: i32::from(found.window),
        is_ideal,
        index: found.index,
    }
}

fn timestamp(time: Millis) -> Timestamp {
    let since = Duration::from_millis(time.max(0).unsigned_abs());
    let time: Option<SystemTime> = UNIX_EPOCH.checked_add(since);
    time.map(Timestamp::from).unwrap_or_default()
}

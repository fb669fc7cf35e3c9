//! Runs the searches of operations.

use std::{sync::Arc, task::Waker};

use hashfinder_operations::{Canceller, Host, Record, Refused, Search, StopCause as Stop};
use hashfinder_search::Advance;

use crate::{
    auth::Auth,
    searches::{
        record::Record as SearchRecord,
        run::OperationRun,
        shared::{OperationPermit, Searches},
        stop_cause::StopCause,
    },
    trace::Traces,
};

/// Runs the searches of operations on the engine that calls use, too.
pub(crate) struct ServerHost {
    searches: Arc<Searches>,
    auth: Arc<Auth>,
    traces: Option<Traces>,
}

impl ServerHost {
    pub(crate) fn new(
        searches: Arc<Searches>,
        auth: Arc<Auth>,
        traces: Option<Traces>,
    ) -> ServerHost {
        ServerHost {
            searches,
            auth,
            traces,
        }
    }
}

impl Host for ServerHost {
    type Place = OperationPermit;
    type Search = OperationSearch;

    fn reserve(&mut self, client: &str) -> Result<OperationPermit, Refused> {
        self.searches.reserve(client)
    }

    fn begin(
        &mut self,
        place: OperationPermit,
        record: &Record,
        alone: bool,
        waker: Waker,
    ) -> OperationSearch {
        let traces = self.traces.clone();
        let (search, record) = self.searches.resume(place, record, alone, traces);
        OperationSearch {
            search,
            record,
            searches: Arc::clone(&self.searches),
            waker,
        }
    }

    fn is_revoked(&mut self, client: &str) -> bool {
        self.auth.is_revoked(client)
    }
}

/// The search of an operation.
pub(crate) struct OperationSearch {
    search: OperationRun,
    record: Arc<SearchRecord>,
    searches: Arc<Searches>,
    waker: Waker,
}

impl Search for OperationSearch {
    fn advance(&mut self) -> Advance {
        let advance = self.search.advance(&self.waker);
        if let Some(outcome) = &advance.outcome {
            // So that the list of searches shows the end before the operation does.
            let tests = advance.progress.tests;
            self.searches.ended(&self.record, outcome, tests);
        }
        advance
    }

    fn stop(&mut self, cause: Stop) {
        self.record.stop(match cause {
            Stop::Cancelled(Canceller::Client) => StopCause::Client,
            Stop::Cancelled(Canceller::Operator | Canceller::Revocation) => StopCause::Operator,
            Stop::TooManyCandidates => StopCause::TooManyCandidates,
            Stop::Paused => StopCause::Pause,
            Stop::Draining => StopCause::Drain,
        });
    }

    fn id(&self) -> Option<Arc<str>> {
        self.record.id()
    }
}

impl Drop for OperationSearch {
    /// Records why the search is stopped, if it has not ended. Dropping its handle stops it.
    fn drop(&mut self) {
        self.record.note_stop(StopCause::Drain);
    }
}

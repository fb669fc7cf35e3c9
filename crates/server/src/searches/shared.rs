//! The searches of all calls, of both services. A search is admitted or rejected, started, listed,
//! and stopped when its call ends.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashfinder_fleet_nats::Fleet;
use hashfinder_operations::Refused;
use hashfinder_proto::v1::finder_server;
use hashfinder_search::{
    Admission, Client, Engine, Metrics, Outcome, OverLimit, Query, Quota, Report,
};
use hashfinder_transport::{ClientName, Peer};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tonic::{Request, Status};
use tonic_cancel::{CallContext, CancelReason, WorkGuard, WorkLimit};

use crate::{
    auth::Role,
    call_info::{CallInfo, MethodName},
    errors::CallError,
    metrics::Counts,
    rejections::Rejections,
    searches::{
        answer::Answer,
        call::{Call, OpenCalls, work},
        owner_client::{client_of, is_local},
        record::Record,
        registry::{Registry, Viewer},
        run::{OperationRun, Release, Run, Travel},
        stop_cause::StopCause,
        stopper::Stopper,
    },
    trace::{self, Traces},
};

/// Time that a call waits for a permit before it is rejected. A call gets its response shortly
/// before its last worker returns the permit, and a client that makes one call after another must
/// not be rejected for that. The worker needs a slice of CPU time, which takes hundreds of
/// milliseconds if other processes keep all cores busy.
const PERMIT_PATIENCE: Duration = Duration::from_secs(1);

/// First pause before retrying a search that exceeded a limit of its client or its connection. Each
/// further pause is twice as long as the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Number of checks for unread responses within the time that a response may stay unread. So a
/// search is stopped at most an eighth of this time too late, or `SHORTEST_PAUSE` if that is
/// longer.
const CHECKS: u32 = 8;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The operations of a client share its time like one more connection.
const CONNECTION_OF_OPERATIONS: u64 = u64::MAX;

/// Limits of each RPC, of all RPCs together, and of clients.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The hash budget of one RPC.
    pub(crate) maximum_hashes: NonZeroU64,
    /// Maximum number of RPCs that search at a time.
    pub(crate) maximum_concurrent_rpcs: NonZeroUsize,
    /// The weights of the clients whose weight is not 1.
    pub(crate) weights: HashMap<ClientName, NonZeroU32>,
    /// The quotas of the clients that do not have the default quota.
    pub(crate) quotas: HashMap<ClientName, Quota>,
}

/// The searches of all calls, of both services.
pub(crate) struct Searches {
    engine: Arc<Engine>,
    fleet: Option<Fleet>,
    limits: Limits,
    room: WorkLimit,
    registry: Arc<Registry>,
    open_calls: OpenCalls,
    counts: Counts,
    rejections: Rejections,
    /// Has a reference for each permit of an operation.
    operations: Arc<()>,
}

/// Permit for the search of an operation.
pub(crate) struct OperationPermit {
    admission: Admission,
    permit: WorkGuard,
    counted: Arc<()>,
}

impl Searches {
    /// Creates the searches of a server. If it is part of a fleet, they move there.
    pub(crate) fn new(
        engine: Engine,
        fleet: Option<Fleet>,
        limits: Limits,
        counts: Counts,
    ) -> Searches {
        Searches {
            engine: Arc::new(engine),
            fleet,
            rejections: Rejections::new(counts.clone()),
            counts,
            room: WorkLimit::new(limits.maximum_concurrent_rpcs.get()),
            registry: Arc::default(),
            open_calls: OpenCalls::default(),
            operations: Arc::default(),
            limits,
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the counter and logger of rejected calls.
    pub(crate) fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Returns the number of threads that search.
    pub(crate) fn workers(&self) -> usize {
        self.engine.workers()
    }

    /// Returns the number of permits in use. An RPC that searches holds one until its work has
    /// ended.
    pub(crate) fn active_work(&self) -> usize {
        self.room.active_work()
    }

    /// Returns the fleet that the server is part of, if it is.
    pub(crate) fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_ref()
    }

    /// Returns the engine's metrics. Its workers wait while it counts all searches.
    pub(crate) fn metrics(&self) -> Metrics {
        self.engine.metrics()
    }

    /// Returns how many searches were stopped, by cause.
    pub(crate) fn stopped(&self) -> [(StopCause, u64); StopCause::ALL.len()] {
        self.counts.stopped()
    }

    /// Returns the viewer that decides which searches the caller may see.
    pub(crate) fn viewer(&self, caller: &Caller) -> Viewer {
        Viewer {
            is_operator: caller.role() == Role::Operator,
            is_local: is_local(&caller.client(), caller.peer()),
            client: caller.client(),
        }
    }

    /// Starts a search for a call. A call over a limit is rejected here, before any work.
    ///
    /// `maximum_hashes` is the hash budget of the request. The server's own limit applies if it is
    /// lower.
    ///
    /// Dropping the future gives up its place in the queue for a permit.
    pub(crate) async fn begin(
        &self,
        caller: &Caller,
        query: Query,
        maximum_hashes: Option<NonZeroU64>,
    ) -> Result<Answer, CallError> {
        let most = self.limits.maximum_hashes;
        let maximum_hashes = maximum_hashes.map_or(most, |wished| wished.min(most));
        let query = query.hash_budget(maximum_hashes);
        let name = caller.client();
        let client = self.client(&name, caller);
        let until = Instant::now() + PERMIT_PATIENCE;
        let mut pause = FIRST_PAUSE;
        let (search, record, call, release) = loop {
            let guard = self.room(&caller.context, until).await?;
            let method = caller.info.method.clone();
            let record = Arc::new(Record::new(method, name.clone(), &query));
            let call = Arc::new(Call::new(&record, &caller.info));
            let (of_release, registry) = (Arc::clone(&call), Arc::clone(&self.registry));
            let counts = self.counts.clone();
            let release = Release::new(move |report: Report| {
                let record = of_release.record();
                registry.ended(record, &report.outcome, report.tests);
                if let Outcome::Stopped(_) = report.outcome {
                    counts.search_stopped(record.stop_cause());
                }
                if let Some(latency) = report.stop_latency {
                    counts.stop_took(latency);
                }
                of_release.released(report);
                // The permit is returned last: a drain waits for it, and the log line and the span
                // have to exist by then.
                drop(guard);
            });
            let visit = release.visit(0);
            let on_release = move |report| visit.by_engine(report);
            let search = (self.engine).search(client.clone(), query.clone(), on_release);
            match search {
                Ok(search) => break (search, record, call, release),
                // The call waits, as for a permit and for the same reason.
                Err(
                    OverLimit::SearchesOfClient { .. } | OverLimit::SearchesOfConnection { .. },
                ) if Instant::now() < until => {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(over) => return Err(CallError::OverLimit(over)),
            }
        };
        let stopper = Stopper::Engine(search.stopper(), 0);
        // A search that ended with its first secrets has no progress: it ended before a client
        // could list it.
        let is_under_way = stopper.progress().is_some();
        record.started(&stopper);
        if is_under_way {
            self.open_calls.add(self.registry.add(&record), &call);
        }
        // The server does not poll a stream that its client does not read, so the end of the call
        // has to stop the search by itself.
        let open_calls = self.open_calls.clone();
        caller.context.add_callback(move |end| {
            let record = call.record();
            record.stop(end.cancelled.map_or(StopCause::Client, StopCause::from));
            if let Some(id) = record.id() {
                open_calls.remove(&id);
            }
            call.ended(end);
        });
        let travel = is_under_way.then(|| self.travel(client, &query, &record, release));
        let travel = travel.flatten();
        Ok(Answer::new(
            caller.context.clone(),
            Run::new(search, travel),
            query,
            record,
            Arc::clone(&self.registry),
            maximum_hashes,
        ))
    }

    /// Takes a permit for the search of an operation. A quarter of all permits, rounded down, is
    /// reserved for calls: operations last for weeks.
    pub(crate) fn reserve(&self, client: &str) -> Result<OperationPermit, Refused> {
        let client = self.client_named(&client_of(client), CONNECTION_OF_OPERATIONS);
        let admission = self.engine.admit(client).map_err(|over| match over {
            OverLimit::Searches { .. } => Refused::Full,
            OverLimit::SearchesOfClient { .. } | OverLimit::SearchesOfConnection { .. } => {
                Refused::TooManySearches
            }
            OverLimit::Hashes { retry_after, .. } => Refused::Quota { retry_after },
        })?;
        let all = self.limits.maximum_concurrent_rpcs.get();
        let of_operations = Arc::clone(&self.operations);
        // One reference is that of this struct.
        if Arc::strong_count(&of_operations) > all - all / 4 + 1 {
            return Err(Refused::Full);
        }
        Ok(OperationPermit {
            admission,
            permit: self.room.try_begin().ok_or(Refused::Full)?,
            counted: of_operations,
        })
    }

    /// Begins or resumes the search of an operation. It is listed. When it has ended, its span is
    /// added to `traces`.
    pub(crate) fn resume(
        &self,
        permit: OperationPermit,
        operation: &hashfinder_operations::Record,
        alone: bool,
        traces: Option<Traces>,
    ) -> (OperationRun, Arc<Record>) {
        let query = operation.query();
        let client = self.client_named(
            &client_of(&operation.request.client),
            CONNECTION_OF_OPERATIONS,
        );
        let name = client_of(&operation.request.client);
        let OperationPermit {
            admission,
            permit,
            counted,
        } = permit;
        let method = MethodName::new(finder_server::SERVICE_NAME, "StartSearch");
        let at = query.clone().starting_at(operation.checkpoint.frontier());
        let record = Record::new(method, name, &at).of_operation(operation.name.clone());
        let record = Arc::new(record);
        let (of_release, registry) = (Arc::clone(&record), Arc::clone(&self.registry));
        let counts = self.counts.clone();
        let checkpoint = operation.checkpoint.clone();
        let (operation_name, began) = (operation.name.to_string(), SystemTime::now());
        let release = Release::new(move |report: Report| {
            registry.ended(&of_release, &report.outcome, report.tests);
            let mut cause = "completed";
            if let Outcome::Stopped(_) = report.outcome {
                counts.search_stopped(of_release.stop_cause());
                cause = of_release.stop_cause().name();
            }
            if let Some(latency) = report.stop_latency {
                counts.stop_took(latency);
            }
            if let Some(traces) = traces {
                let id = of_release.id();
                let search = trace::Search {
                    id: id.as_deref(),
                    cause: cause.to_owned(),
                    work: work(&report.outcome),
                    hashes: report.hashes,
                    tests: report.tests,
                    stopped_in: report.stop_latency,
                };
                traces.add_operation(operation_name, began, search);
            }
            drop((permit, counted));
        });
        let visit = release.visit(0);
        let on_release = move |report| visit.by_engine(report);
        let search = (self.engine).resume(admission, query.clone(), checkpoint, alone, on_release);
        record.started(&Stopper::Engine(search.stopper(), 0));
        self.registry.add(&record);
        // A search that has failed shares nothing with others, so it stays here.
        let travel = (!alone).then(|| self.travel(client, query, &record, release));
        let travel = travel.flatten();
        (OperationRun::new(search, travel), record)
    }

    /// Returns what a search needs to move to the fleet, if it can.
    fn travel(
        &self,
        client: Client,
        query: &Query,
        record: &Arc<Record>,
        release: Arc<Release>,
    ) -> Option<Travel> {
        let fleet = self.fleet.as_ref().filter(|fleet| fleet.takes(query))?;
        let (engine, record) = (Arc::clone(&self.engine), Arc::clone(record));
        let (fleet, query) = (fleet.clone(), query.clone());
        Some(Travel::new(engine, fleet, client, query, record, release))
    }

    /// Records the end of an operation's search.
    pub(crate) fn ended(&self, record: &Record, outcome: &Outcome, tests: u64) {
        self.registry.ended(record, outcome, tests);
    }

    /// Stops the searches of a connection that is about to be closed.
    pub(crate) fn stop_those_of(&self, connection: u64) {
        for call in self.open_calls.which(|call| call.is_of(connection)) {
            call.record().stop(StopCause::Drain);
        }
    }

    /// Repeatedly checks for responses that have waited for their reader for `patience`, and stops
    /// their searches. The results of such a search are kept for the reader; its place in the
    /// engine is freed.
    ///
    /// Dropping the future ends the checks.
    pub(crate) async fn stop_unread(self: Arc<Self>, patience: Duration) {
        let mut checks = interval((patience / CHECKS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            checks.tick().await;
            let is_unread = |call: &Call| call.unread_for().is_some_and(|time| time >= patience);
            for call in self.open_calls.which(is_unread) {
                call.record().stop(StopCause::Unread);
            }
        }
    }

    /// Counts and logs a call that is rejected with this error. Returns its status.
    pub(crate) fn reject(&self, caller: &Caller, error: CallError) -> Status {
        let (method, client) = (caller.info.method.name(), caller.client());
        self.rejections
            .reject(error, method, caller.peer(), Some(&client))
    }

    async fn room(&self, context: &CallContext, until: Instant) -> Result<WorkGuard, CallError> {
        let patience = until.saturating_duration_since(Instant::now());
        let guard = self.room.begin_within(context, patience).await;
        guard.map_err(|_| match context.cancel_reason() {
            Some(CancelReason::Drain) => CallError::Draining(None),
            // No permit came in time. A call that was cancelled for another reason sends no status.
            _ => CallError::TooManyRpcs(self.limits.maximum_concurrent_rpcs),
        })
    }

    /// Returns the client as the engine knows it, with its share and quota.
    fn client(&self, name: &ClientName, caller: &Caller) -> Client {
        self.client_named(name, caller.peer().map_or(0, |peer| peer.connection))
    }

    fn client_named(&self, name: &ClientName, connection: u64) -> Client {
        let weight = self.limits.weights.get(name).copied();
        let quota = self.limits.quotas.get(name).copied();
        Client {
            name: Arc::clone(name.as_str()),
            connection,
            weight: weight.unwrap_or(NonZeroU32::MIN),
            quota: quota.unwrap_or_default(),
        }
    }
}

/// A call that a service has received, and its caller.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) context: CallContext,
    info: CallInfo,
}

impl Caller {
    /// Returns the caller of a request. From now on, the call ends if its API key is revoked.
    pub(crate) fn of<T>(request: &Request<T>) -> Caller {
        let context = CallContext::of(request);
        let info = CallInfo::of(request.extensions()).clone();
        if let Some(principal) = &info.principal {
            principal.begins(&context);
        }
        Caller { context, info }
    }

    pub(crate) fn client(&self) -> ClientName {
        match &self.info.principal {
            Some(principal) => principal.name.clone(),
            // Only in a test without the layer for authentication.
            None => ClientName::unknown(),
        }
    }

    fn role(&self) -> Role {
        let principal = self.info.principal.as_ref();
        principal.map_or(Role::User, |principal| principal.role)
    }

    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.info.peer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashfinder_search::{Distance, Kernel};

    fn searches() -> Searches {
        let started = std::time::Instant::now();
        let engine = Engine::start(1, Kernel::best(), move || started.elapsed()).unwrap();
        let limits = Limits {
            maximum_hashes: NonZeroU64::MAX,
            maximum_concurrent_rpcs: NonZeroUsize::MIN,
            weights: HashMap::new(),
            quotas: HashMap::new(),
        };
        Searches::new(engine, None, limits, Counts::default())
    }

    #[tokio::test]
    async fn a_stopped_search_is_counted_once_by_its_first_cause() {
        type Stop = fn(&Caller, Answer);
        let stops: [(Stop, StopCause); 3] = [
            (|_, answer| drop(answer), StopCause::Client),
            (
                |caller, answer| {
                    assert!(caller.context.cancel());
                    drop(answer);
                },
                StopCause::Operator,
            ),
            (
                |caller, answer| {
                    answer.record().stop(StopCause::Unread);
                    assert!(caller.context.cancel());
                    drop(answer);
                },
                StopCause::Unread,
            ),
        ];
        let searches = searches();
        for (stop, expected) in stops {
            let before = searches.stopped();
            let caller = Caller::of(&Request::new(()));
            let endless = "hashfinderhashfinder".parse().unwrap();
            let query = Query::new(endless, Distance::ZERO).unwrap();
            let answer = searches.begin(&caller, query, None).await.unwrap();
            stop(&caller, answer);
            // It is counted before its permit is returned.
            while searches.active_work() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let counted =
                before.map(|(cause, count)| (cause, count + u64::from(cause == expected)));
            assert_eq!(searches.stopped(), counted);
        }
    }
}

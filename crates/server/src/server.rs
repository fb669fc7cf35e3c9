//! Starts a server, serves connections, and drains.

use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hashfinder_fleet_nats::{Fleet, LeaderSettings};
use hashfinder_operations::Operations;
use hashfinder_proto::{
    DESCRIPTORS,
    google::longrunning::operations_server::{self, OperationsServer},
    hash_name::hash_finder_server::{self, HashFinderServer},
    v1::finder_server,
};
use hashfinder_search::{Engine, Kernel};
use hashfinder_system::{
    files::Watch,
    threads::{NO_THREAD, aside, startable, with_low_priority},
};
use hashfinder_transport::{self as transport, ClientName, Listener, Tls};
use socket2::SockAddr;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    task::JoinSet,
    time::timeout,
};
use tonic::{
    Code, Status,
    service::{LayerExt, Routes},
};
use tonic_cancel::{CallContextLayer, Drain, DrainOptions};
use tonic_health::{
    pb::health_server::{Health, HealthServer},
    server::{HealthReporter, HealthService},
};
use tower_layer::Layer;

use crate::{
    auth::{Auth, AuthLayer, AuthService, Rules, check_bind_policy},
    errors::CallError,
    layers::{
        protocol_check::{ProtocolCheckLayer, ProtocolCheckService},
        rate_limit::{AddressLimits, RateLimitLayer, RateLimitService, RateLimits},
    },
    log::{Log, LostLines},
    metrics::{self, CallsLayer, CallsService, Counts, Exporter},
    operations::{self, ServerHost},
    rejections::Rejections,
    searches::shared::{Limits, Searches},
    services::{
        ALL_DESCRIPTORS,
        finder::{DrainWatchesLast, FinderService},
        hash_name::HashFinderService,
        longrunning::LongRunning,
        operations::Access,
    },
    settings::{BudgetStatus, FleetSettings, Listen, MAXIMUM_WEIGHT, Settings, Traces},
    trace,
};

/// Time that a call has to send its cursor after a drain has stopped it. Its search stops within a
/// slice, so nearly all of this time is a reserve for a machine whose cores are busy with other
/// processes.
const DRAIN_NOTICE: Duration = Duration::from_secs(3);

/// Time that connections have to close once every call has ended, so that clients can read the last
/// statuses. Connections that take longer are left open.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that operations have to save their last progress. On a working disk, that takes
/// milliseconds.
const OPERATIONS_TIMEOUT: Duration = Duration::from_secs(2);

/// Why settings are wrong that save operations in two places.
const TWO_STORES: &str = "state: with --fleet, operations are saved at the broker, and not in a folder; \
                          remove --state (in the systemd unit: HASHFINDER_SERVE_STATE=)";

/// Why settings are wrong that save operations at a missing fleet.
const NO_FLEET: &str = "operations cannot be saved at the broker of a fleet without --fleet";

/// Services whose health is reported, in addition to that of the server as a whole.
const SERVICES: [&str; 3] = [
    hash_finder_server::SERVICE_NAME,
    finder_server::SERVICE_NAME,
    operations_server::SERVICE_NAME,
];

/// Why a server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong, or a file that the settings name.
    #[error("{0:#}")]
    Settings(anyhow::Error),
    /// The system does not provide what the server needs, such as a port or a thread.
    #[error("{0:#}")]
    System(anyhow::Error),
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> StartError {
        StartError::System(error)
    }
}

/// Checked settings, and what was loaded from the files that they name.
pub struct Checked {
    connections: transport::Limits,
    tls: Option<Tls>,
    auth: Auth,
    place: Place,
    metrics_addresses: Option<Vec<SocketAddr>>,
    settings: Settings,
}

/// Where a server listens, with its host name resolved to addresses.
enum Place {
    Nowhere,
    Tcp(Vec<SocketAddr>, bool),
    Unix(PathBuf),
}

impl Settings {
    /// Checks the settings without starting anything: reads the files that they name, and resolves
    /// host names. This can block. It also raises the process's limit on open files to the maximum.
    ///
    /// # Errors
    ///
    /// If a setting or a file is wrong, or if other machines could reach the server although it
    /// lacks TLS or authentication. The messages name settings as the program `hashfinder` does.
    pub fn check(self) -> Result<Checked> {
        let too_heavy = |weight: &&NonZeroU32| weight.get() > MAXIMUM_WEIGHT;
        if let Some(weight) = self.searches.weights.values().find(too_heavy) {
            bail!("client-weight: {weight} is more than {MAXIMUM_WEIGHT}");
        }
        if let Some(Traces { share, .. }) = &self.traces
            && !(0.0..=1.0).contains(share)
        {
            bail!("otlp-sampling: {share} is not between 0 and 1");
        }
        let limits = self.connections.limits(transport::open_files());
        let mut connections = limits.map_err(|error| match self.connections.connections {
            Some(given) if error.fitting.is_some() => {
                anyhow!("maximum-connections {given}: {error}")
            }
            _ => error.into(),
        })?;
        let (_, of_address) = self.calls.open(self.searches.concurrent_rpcs);
        // One connection leaves a quarter of its address's open calls to other connections. A
        // client at this limit waits for one of its calls to end, as HTTP/2 requires, and is not
        // rejected.
        let of_connection = of_address.get() - of_address.get() / 4;
        connections.concurrent_streams = u32::try_from(of_connection)
            .unwrap_or(u32::MAX)
            .min(connections.concurrent_streams);
        let tls = self.tls.clone().map(Tls::load).transpose()?;
        let has_client_certificates = self.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
        let auth = Auth::load(&self.auth, has_client_certificates)?;
        if let Some(fleet) = &self.fleet {
            fleet.broker.check()?;
        }
        let place = self.operations.as_ref().map(|settings| &settings.place);
        match (place, &self.fleet) {
            (Some(operations::Place::Folder(_)), Some(_)) => bail!(TWO_STORES),
            (Some(operations::Place::Fleet), None) => bail!(NO_FLEET),
            _ => {}
        }
        let place = match &self.listen {
            None => Place::Nowhere,
            Some(Listen::Unix(path)) => {
                let shown = path.display();
                SockAddr::unix(path)
                    .with_context(|| format!("{shown} is not a valid socket path"))?;
                Place::Unix(path.clone())
            }
            Some(Listen::Tcp { at, reuse_port }) => {
                Place::Tcp(transport::addresses(&at.host, at.port)?, *reuse_port)
            }
        };
        if let (Place::Tcp(addresses, _), false) = (&place, self.auth.listen_unprotected) {
            check_bind_policy(addresses, tls.is_some(), auth.is_configured())?;
        }
        ensure!(
            self.metrics.is_none() || self.listen.is_some(),
            "metrics: the server listens on no address, so it has no metrics port"
        );
        let at = self.metrics.as_ref();
        let metrics_addresses = at.map(|at| transport::addresses(&at.host, at.port));
        let metrics_addresses = metrics_addresses.transpose().context("metrics")?;
        if let (Some(metrics), Place::Tcp(addresses, _)) = (&metrics_addresses, &place)
            && let Some(metrics) = metrics.first()
            && metrics.port() != 0
            && addresses.first() == Some(metrics)
        {
            bail!("metrics: {metrics} is the server's address; use another port");
        }
        Ok(Checked {
            connections,
            tls,
            auth,
            place,
            metrics_addresses,
            settings: self,
        })
    }
}

impl Checked {
    /// Returns the problems of the TLS files that do not prevent the server from starting.
    ///
    /// An expired certificate is one of them. The server loads a new certificate as soon as there
    /// is one; a server that refused to start would stay down.
    #[must_use]
    pub fn warnings(&self) -> Vec<transport::Warning> {
        self.tls.as_ref().map(Tls::warnings).unwrap_or_default()
    }

    /// Binds the sockets, and starts the threads that search.
    async fn start(self) -> Result<Server> {
        let Checked {
            connections,
            tls,
            auth,
            place,
            metrics_addresses,
            settings,
        } = self;
        let listener = match &place {
            Place::Nowhere => None,
            Place::Tcp(addresses, reuse_port) => Some(Listener::tcp(addresses, *reuse_port)?),
            Place::Unix(path) => Some(Listener::unix(path)?),
        };
        let address = listener.as_ref().map(Listener::address).transpose()?;
        let metrics_listener = metrics_addresses.map(|addresses| {
            let listener = Listener::tcp(&addresses, false);
            listener.context("metrics")
        });
        let metrics_listener = metrics_listener.transpose()?;
        let owner = listener.as_ref().map(Listener::owner).transpose();
        let owner = owner
            .context("cannot determine the user who runs this server")?
            .flatten();
        let auth = Arc::new(auth.with_operators(operators(&settings, owner)));

        let kernel = settings.searches.kernel.unwrap_or_else(Kernel::best);
        let limits = engine_limits(&settings);
        let engine = engine(&settings, kernel, limits)?;
        let fleet = match &settings.fleet {
            Some(fleet) => Some(join(fleet, limits).await?),
            None => None,
        };
        let (counts, connection_counts) = (Counts::default(), transport::Counts::default());
        let limits = Limits {
            maximum_hashes: settings.searches.maximum_hashes,
            maximum_concurrent_rpcs: settings.searches.concurrent_rpcs,
            weights: settings.searches.weights.clone(),
            quotas: settings.searches.quotas.clone(),
        };
        let searches = Arc::new(Searches::new(engine, fleet.clone(), limits, counts.clone()));
        let rate_limits = RateLimits::new(address_limits(&settings));
        // A drain waits for searches and short calls. Calls of the health service, of WatchSearches
        // and of reflection are aside: they are ended last.
        let refused = counts.clone();
        let drain = Drain::with_status(move || {
            let error = CallError::Draining(None);
            refused.refused(error.reason());
            Status::from(error)
        });
        let traces = settings.traces.as_ref();
        let traces = traces.map(|traces| trace::Traces::to(&traces.collector, traces.share));
        let traces = traces.transpose()?;
        let calls =
            metrics::Calls::new(&ALL_DESCRIPTORS).context("cannot read the service descriptors")?;
        let watches = [auth.watch()?, tls.as_ref().map(Tls::watch).transpose()?];
        let health = HealthReporter::new();
        for service in SERVICES {
            let status = tonic_health::ServingStatus::Serving;
            health.set_service_status(service, status).await;
        }
        let lost_lines = Arc::new(OnceLock::new());
        let metrics_operations = Arc::new(OnceLock::new());
        let mut tasks = JoinSet::new();
        let stall_timeout = connections.lifetimes.unread;
        tasks.spawn(Arc::clone(&searches).stop_unread(stall_timeout));
        if let Some(listener) = metrics_listener {
            let server = metrics::Server {
                searches: Arc::clone(&searches),
                drain: drain.clone(),
                rate_limits: rate_limits.clone(),
                lost_lines: Arc::clone(&lost_lines),
                traces: traces.clone(),
                tls: tls.clone(),
                runtime: Handle::current().metrics(),
                operations: Arc::clone(&metrics_operations),
            };
            let registry = metrics::registry(kernel, server, &counts, &calls, &connection_counts);
            warn_if_exposed(&listener)?;
            let health = HealthService::from_health_reporter(health.clone());
            tasks.spawn(Exporter::new(registry, health).serve(listener));
        }
        let budget_code = match settings.searches.budget_status {
            BudgetStatus::Cancelled => Code::Cancelled,
            BudgetStatus::ResourceExhausted => Code::ResourceExhausted,
        };
        let operations = settings.operations.as_ref();
        let operations = operations.map(|operations| {
            let (searches, auth) = (Arc::clone(&searches), Arc::clone(&auth));
            let traces = traces.clone();
            let host = move || {
                let (searches, auth) = (Arc::clone(&searches), Arc::clone(&auth));
                ServerHost::new(searches, auth, traces.clone())
            };
            let limits = operations.limits();
            anyhow::Ok(match (&operations.place, &fleet) {
                (operations::Place::Folder(folder), _) => Operations::open(folder, limits, host)?,
                (operations::Place::Fleet, Some(fleet)) => fleet.operations(limits, host)?,
                (operations::Place::Fleet, None) => bail!(NO_FLEET),
            })
        });
        let operations = operations.transpose()?;
        let _ = metrics_operations.set(operations.clone());
        let maximum_hashes = settings.operations.as_ref();
        let maximum_hashes = maximum_hashes.map_or(0, |settings| settings.maximum_hashes.get());
        let access = Access::new(operations.clone(), Arc::clone(&searches));
        let finder = FinderService::new(
            Arc::clone(&searches),
            kernel,
            access.clone(),
            maximum_hashes,
        );
        let routes = routes(
            &searches,
            finder,
            access,
            budget_code,
            &drain,
            HealthServer::new(HealthService::from_health_reporter(health.clone())),
        )?;
        let service = layered(
            routes,
            &calls,
            traces.clone(),
            searches.rejections(),
            rate_limits,
            auth,
            settings.calls.request_timeout,
        )?;
        let of_connection = Arc::clone(&searches);
        let on_close = Arc::new(move |connection| of_connection.stop_those_of(connection));
        let transport =
            transport::Server::new(service, tls, connections, connection_counts, on_close);
        tracing::info!(
            address,
            workers = searches.workers(),
            kernel = kernel.name(),
            "listening"
        );
        Ok(Server {
            transport,
            listener,
            address,
            searches,
            drain,
            traces,
            health,
            drain_grace: settings.drain_grace,
            lost_lines,
            operations,
            _tasks: tasks,
            _watches: watches,
        })
    }
}

/// Writes where the server would listen.
impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Nowhere => f.write_str("nowhere")?,
            // There is at least one address: a host without any is an error.
            Place::Tcp(addresses, _) => addresses.first().map_or(Ok(()), |first| first.fmt(f))?,
            Place::Unix(path) => write!(f, "unix:{}", path.display())?,
        }
        match self.metrics_addresses.as_ref().and_then(|all| all.first()) {
            Some(metrics) => write!(f, ", with metrics on {metrics}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checked").field(&self.settings).finish()
    }
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// How many calls outlasted the grace period and were stopped.
    pub stopped_calls: usize,
    /// How many of these did not answer in time, and were ended without their handlers.
    pub forced_calls: usize,
    /// Whether connections were left open, because they did not close in time or the drain was cut
    /// short.
    pub left_behind: bool,
    /// Whether the drain was cut short, so that calls may not have ended.
    pub cut_short: bool,
}

/// A future whose type is erased, so that only this crate compiles it. A crate that polls another
/// crate's `async fn` compiles that function again, and with it the whole HTTP/2 stack.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The service of each connection: the layers around the services of both contracts.
type Service = CallsService<ProtocolCheckService<RateLimitService<AuthService<Routes>>>>;

/// Numbers of calls and searches of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Number of open calls that a drain waits for.
    pub calls: usize,
    /// Number of searches that are being worked on. Queued and parked ones do not count.
    pub searches: usize,
}

/// A server with bound sockets. It accepts connections only once [`serve`](Server::serve) is
/// called; its port for metrics and health, if there is one, answers from the beginning.
///
/// Dropping it closes its sockets, and ends its searches and threads.
pub struct Server {
    transport: transport::Server<Service>,
    listener: Option<Listener>,
    address: Option<String>,
    searches: Arc<Searches>,
    drain: Drain,
    traces: Option<trace::Traces>,
    health: HealthReporter,
    drain_grace: Duration,
    lost_lines: Arc<OnceLock<LostLines>>,
    operations: Option<Operations>,
    /// Tasks that run as long as the server: the metrics port, and the checks for unread responses.
    _tasks: JoinSet<()>,
    /// Watches of the files of API keys and of certificates. Each has its own threads, so that keys
    /// are revoked even while reading certificates is blocked.
    _watches: [Option<Watch>; 2],
}

impl Server {
    /// Number of threads that a server needs besides those of its runtime and those that search:
    /// one each for the log, deadlines, spans, the allocator and an estimate, two each for the
    /// files of keys and of certificates, four for operations, and one while it starts.
    pub const THREADS: usize = 10 + Operations::THREADS;

    /// Reads the files, binds the sockets and starts the threads that search. It raises the limit
    /// on open files of the process to the maximum.
    ///
    /// Dropping the future stops this, and closes the sockets that are bound already.
    ///
    /// # Errors
    ///
    /// If the settings are wrong, or the system does not provide what the server needs.
    ///
    /// # Panics
    ///
    /// If the future is polled outside of a tokio runtime.
    pub async fn new(settings: Settings) -> Result<Server, StartError> {
        started(settings).await
    }

    /// Adds the number of lost lines of this log to the metrics, and logs it when the server stops.
    #[must_use]
    pub fn with_log(self, log: &Log) -> Server {
        // A second log is ignored: the process writes to the first one.
        let _ = self.lost_lines.set(log.lost_lines());
        self
    }

    /// Returns where the server listens, as clients write it: `HOST:PORT` or `unix:PATH`.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Returns the numbers of open calls and of searches that are being worked on.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity {
            calls: self.drain.active_calls(),
            searches: self.searches.metrics().active,
        }
    }

    /// Serves a connection that does not come from a socket, such as a pipe within the process. It
    /// has no address, so a client without a credential is named `nobody`.
    ///
    /// Dropping the future closes the connection. Its calls end as if the client had disconnected.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.transport.serve_connection(io).await;
    }

    /// Serves until `shutdown` is ready, and then drains. When `at_once` is ready, returns without
    /// waiting for calls and connections.
    ///
    /// During a drain, the server accepts no new calls. Searches that outlast the grace period are
    /// stopped and get a cursor. The log shows what `shutdown` and `at_once` return.
    ///
    /// Dropping the future closes the sockets and leaves connections to the runtime.
    ///
    /// # Errors
    ///
    /// If the settings name nowhere to listen, or the server stops by itself.
    pub async fn serve(
        self,
        shutdown: impl Future<Output: fmt::Display> + Send,
        at_once: impl Future<Output: fmt::Display> + Send,
    ) -> Result<DrainReport> {
        let shutdown = Box::pin(async { shutdown.await.to_string() });
        let at_once = Box::pin(async { at_once.await.to_string() });
        self.serve_until(shutdown, at_once).await
    }

    fn serve_until<'a>(
        self,
        shutdown: Boxed<'a, String>,
        at_once: Boxed<'a, String>,
    ) -> Boxed<'a, Result<DrainReport>> {
        Box::pin(self.serve_and_drain(shutdown, at_once))
    }

    async fn serve_and_drain(
        self,
        shutdown: impl Future<Output = String>,
        at_once: impl Future<Output = String>,
    ) -> Result<DrainReport> {
        let Server {
            transport,
            listener,
            drain,
            traces,
            health,
            drain_grace,
            lost_lines,
            operations,
            address: _,
            searches,
            _tasks,
            _watches,
        } = self;
        let listener = listener.context("no address to listen on")?;
        let closed = operations.clone();
        let closing = async {
            let reason = shutdown.await;
            tracing::info!(signal = %reason, calls = drain.active_calls(), "draining");
            for service in SERVICES.into_iter().chain([""]) {
                let status = tonic_health::ServingStatus::NotServing;
                health.set_service_status(service, status).await;
            }
            if let Some(operations) = operations.clone() {
                // Their searches stop at once: the next server resumes them.
                let _ = timeout(OPERATIONS_TIMEOUT, operations.drain()).await;
            }
        };
        let options = DrainOptions::new()
            .grace(drain_grace)
            .notice(DRAIN_NOTICE)
            .close(CLOSE_TIMEOUT);
        let serving = drain.serve(closing, options, |shutdown| {
            transport.serve(listener, shutdown)
        });
        let serving = async {
            let drained = serving.await?;
            if let Some(traces) = &traces {
                traces.flush().await;
            }
            if let Some(operations) = &closed {
                let _ = timeout(OPERATIONS_TIMEOUT, operations.close()).await;
            }
            if let Some(fleet) = searches.fleet() {
                fleet.leave().await;
            }
            anyhow::Ok(drained)
        };
        let report = tokio::select! {
            drained = serving => {
                let drained = drained?;
                anyhow::ensure!(drain.is_closed(), "the server stopped unexpectedly");
                tracing::info!(told = drained.told, forced = drained.forced, "drained");
                if drained.left_behind {
                    tracing::warn!("some connections did not close in time");
                }
                DrainReport {
                    stopped_calls: drained.told,
                    forced_calls: drained.forced,
                    left_behind: drained.left_behind,
                    cut_short: false,
                }
            }
            reason = at_once => {
                tracing::warn!(signal = %reason, calls = drain.active_calls(), "stopping at once");
                if let Some(traces) = &traces {
                    traces.abandon().await;
                }
                DrainReport {
                    left_behind: true,
                    cut_short: true,
                    ..DrainReport::default()
                }
            }
        };
        let lost_lines = lost_lines.get().map(LostLines::count);
        let lost_spans = traces.as_ref().map(trace::Traces::lost);
        tracing::info!(lost_lines, lost_spans, "stopped");
        Ok(report)
    }
}

fn started(settings: Settings) -> Boxed<'static, Result<Server, StartError>> {
    Box::pin(async {
        let checked = aside("setup", move || settings.check()).await;
        let checked = checked.map_err(anyhow::Error::from)?;
        let checked = checked.map_err(StartError::Settings)?;
        Ok(checked.start().await?)
    })
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Starts the threads that search.
fn engine(
    settings: &Settings,
    kernel: Kernel,
    limits: hashfinder_search::Limits,
) -> Result<Engine> {
    let workers = settings.searches.workers;
    let workers = workers.or_else(|| thread::available_parallelism().ok());
    let wanted = workers.map_or(1, usize::from);
    // Leaves room for the threads that the server starts later.
    let free = startable(wanted + Server::THREADS);
    let workers = wanted.min(free.saturating_sub(Server::THREADS)).max(1);
    let started = Instant::now();
    let clock = move || started.elapsed();
    let engine = with_low_priority(move || Engine::with_limits(workers, kernel, clock, limits));
    let engine = engine.flatten().context(NO_THREAD)?;
    let workers = engine.workers();
    if workers < wanted {
        tracing::warn!(
            workers,
            wanted,
            "fewer search threads than wanted; raise the limit on threads"
        );
    }
    Ok(engine)
}

fn engine_limits(settings: &Settings) -> hashfinder_search::Limits {
    hashfinder_search::Limits {
        // RPCs have a limit of their own: each waits for a permit.
        searches: usize::MAX,
        searches_per_client: settings.searches.searches_of_client(),
        hashes_per_second_per_client: settings.searches.hashes_per_second_of_client,
        queue_length: settings.searches.queue_length.get(),
        ..hashfinder_search::Limits::default()
    }
}

/// Joins a fleet. If this server leads, its limits on hashes apply to the whole fleet; the number
/// of searches is limited by each server.
async fn join(fleet: &FleetSettings, limits: hashfinder_search::Limits) -> Result<Fleet> {
    let settings = LeaderSettings {
        limits: hashfinder_search::Limits {
            searches_per_client: usize::MAX,
            ..limits
        },
        is_untrusted: fleet.is_untrusted,
        ..LeaderSettings::default()
    };
    Ok(Fleet::join(fleet.broker.clone(), settings).await?)
}

/// Returns the services, each with the drain that it needs.
///
/// # Errors
///
/// If the descriptors for reflection cannot be read. A test checks that they can.
fn routes(
    searches: &Arc<Searches>,
    finder: FinderService,
    operations: Access,
    budget_code: Code,
    drain: &Drain,
    health: HealthServer<impl Health>,
) -> Result<Routes> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let operations = OperationsServer::new(LongRunning::new(operations));
    let reference = HashFinderService::new(Arc::clone(searches), budget_code);
    let reference = HashFinderServer::new(reference);
    let aside = CallContextLayer::with_drain(drain.aside());
    Ok(Routes::default()
        .add_service(aside.named_layer(health))
        .add_service(aside.named_layer(reflection().build_v1()?))
        .add_service(aside.named_layer(reflection().build_v1alpha()?))
        .add_service(aside.named_layer(operations))
        .add_service(DrainWatchesLast::new(finder, drain))
        .add_service(CallContextLayer::with_drain(drain.clone()).named_layer(reference))
        .prepare())
}

/// Wraps the services in the layers that check every call.
///
/// # Errors
///
/// If a method has no authorization rule. A test checks that each has one.
fn layered(
    routes: Routes,
    calls: &metrics::Calls,
    traces: Option<trace::Traces>,
    rejections: &Rejections,
    rate_limits: RateLimits,
    auth: Arc<Auth>,
    request_timeout: Duration,
) -> Result<Service> {
    let rules =
        Rules::new(&ALL_DESCRIPTORS).context("the access rules do not match the methods")?;
    let rules = Arc::new(rules);
    let auth = AuthLayer::new(
        auth,
        Arc::clone(&rules),
        rejections.clone(),
        rate_limits.clone(),
    );
    let limited = RateLimitLayer::new(rate_limits, rules, rejections.clone());
    let checked = ProtocolCheckLayer::new(calls.clone(), rejections.clone(), request_timeout);
    let counted = CallsLayer {
        calls: calls.clone(),
        traces,
    };
    Ok(counted.layer(checked.layer(limited.layer(auth.layer(routes)))))
}

/// Logs where metrics are served, and a warning if other machines can reach them.
fn warn_if_exposed(listener: &Listener) -> Result<()> {
    let address = listener.address()?;
    tracing::info!(address, "serving metrics");
    let is_open = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
    if address.parse().is_ok_and(is_open) {
        tracing::warn!(
            address,
            "other machines can reach the metrics port, which has no TLS and no authentication; \
             restrict it with a firewall"
        );
    }
    Ok(())
}

/// Returns the clients that may see and cancel the searches of all clients: the configured ones
/// and, on a Unix socket, root and the user who runs the server. The latter two can control the
/// server's process anyway.
fn operators(settings: &Settings, owner: Option<u32>) -> HashSet<ClientName> {
    const ROOT: u32 = 0;
    let users = owner.into_iter().flat_map(|owner| [owner, ROOT]);
    let users = users.map(ClientName::of_user);
    users.chain(settings.operators.iter().cloned()).collect()
}

fn address_limits(settings: &Settings) -> AddressLimits {
    let calls = &settings.calls;
    let (open_calls, open_calls_of_address) = calls.open(settings.searches.concurrent_rpcs);
    AddressLimits {
        calls_per_second: calls.per_second_of_address,
        open_calls,
        open_calls_of_address,
        refused_credentials_per_second: calls.refused_credentials_per_second,
    }
}

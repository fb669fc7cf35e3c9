//! `hashfinder serve`: the server process, from its socket to its last call.

pub(crate) mod arguments;

use std::{
    collections::{HashMap, HashSet},
    io::Write,
    net::SocketAddr,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hashfinder_search::{Engine, Kernel, Quota};
use rustix::process::setpriority_process;
use socket2::SockAddr;
use tokio::{runtime::Handle, sync::oneshot};
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

pub(crate) use self::arguments::ServeArguments;
use self::arguments::{BudgetStatus, QuotaArguments, open_files};
use crate::{
    auth::{Auth, AuthLayer, AuthService, Rules, check_exposure},
    exit::Exit,
    log,
    metrics::{self, Calls, CallsLayer, CallsService, Counts, Exporter},
    rpc::{
        ALL_DESCRIPTORS, AddressLimits, CallError, DESCRIPTORS, EdgeLayer, EdgeService,
        FinderService, HashFinderService, Limits, RateLimitLayer, RateLimitService, RateLimits,
        Refusals, Searches, WatchAside,
        pb::hash_finder_server::{self, HashFinderServer},
        v1pb::finder_server,
    },
    signals::Signals,
    terminal::{as_text, say},
    threads::{NO_THREAD, SERVER_THREADS, aside, startable},
    trace::Traces,
    transport::{self, ClientName, Listener, Tls},
};

/// How much the threads that search step back behind those that answer, which take a core for microseconds: so
/// that nobody waits for the rest of somebody else's slice. Where nothing else wants the cores it costs nothing.
const SEARCH_NICENESS: i32 = 5;

/// Maximum time for a call that a drain has stopped to send its cursor. Its search stops within a slice, so nearly
/// all of this is for a machine whose cores are busy with other processes.
const DRAIN_NOTICE: Duration = Duration::from_secs(3);

/// How long connections may take to close once every call has ended: the time for last statuses
/// to be read. A peer that does not read is left behind.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until it is told to stop, then drains. Dropping the future closes the socket and leaves
/// connections to the runtime.
pub(crate) async fn run(arguments: ServeArguments) -> Result<Exit> {
    // Before it says that it listens, so that nobody who waits for that can signal too early.
    let mut signals = Signals::new()?;
    let filter = match log::filter() {
        Ok(filter) => filter,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    let log = log::to_stderr(filter, arguments.log_format).context(NO_THREAD)?;
    let arguments = Arc::new(arguments);
    // Reading files and resolving names can block, and a signal ends the process all the same.
    let named = Arc::clone(&arguments);
    let setup = tokio::select! {
        setup = aside("setup", move || setup(&named)) => setup?,
        signal = signals.next() => {
            tracing::info!(%signal, "stopped before it was listening");
            return Ok(Exit::Success);
        }
    };
    let setup = match setup {
        Ok(setup) => setup,
        Err(wrong) => {
            say(format_args!("{wrong:#}"));
            return Ok(Exit::Usage);
        }
    };
    let Setup {
        connections,
        tls,
        auth,
        addresses,
        metrics_addresses,
        ..
    } = setup;
    let listener = match &arguments.unix {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(&addresses, arguments.reuse_port)?,
    };
    let address = listener.address()?;
    let metrics_listener = metrics_addresses.map(|addresses| {
        let listener = Listener::tcp(&addresses, false);
        listener.context("for the metrics")
    });
    let metrics_listener = metrics_listener.transpose()?;

    let kernel = arguments.kernel.unwrap_or_else(Kernel::best);
    let workers = arguments
        .workers
        .or_else(|| thread::available_parallelism().ok());
    let wanted = workers.map_or(1, usize::from);
    // The threads that are started later have to find room as well.
    let free = startable(wanted + SERVER_THREADS);
    let workers = wanted.min(free.saturating_sub(SERVER_THREADS)).max(1);
    let started = Instant::now();
    let every_search = hashfinder_search::Limits {
        // RPCs have a limit of their own, whose permits are waited for.
        searches: usize::MAX,
        searches_per_client: arguments.maximum_searches_per_client(),
        hashes_per_second_per_client: arguments.maximum_hashes_per_second,
        queue_length: arguments.queue_length.get(),
        ..hashfinder_search::Limits::default()
    };
    let clock = move || started.elapsed();
    let start = thread::Builder::new().spawn(move || {
        // Threads begin as nice as the one that starts them. If the system does not let us, all are alike.
        let _ = setpriority_process(None, SEARCH_NICENESS);
        Engine::with_limits(workers, kernel, clock, every_search)
    });
    let start = start.context(NO_THREAD)?;
    let engine = start.join().unwrap_or_else(|panic| resume_unwind(panic));
    let engine = engine.context(NO_THREAD)?;
    let workers = engine.workers();
    if workers < wanted {
        tracing::warn!(
            workers,
            wanted,
            "fewer threads search than wanted; raise the limit on threads"
        );
    }
    // Without its thread, memory that is not needed any more goes back to the system a little later.
    #[cfg(not(fuzzing))]
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "the allocator's background thread cannot be started");
    }
    let limits = Limits {
        maximum_hashes: arguments.maximum_hashes,
        maximum_concurrent_rpcs: arguments.maximum_concurrent_rpcs,
        weights: arguments.client_weights.iter().cloned().collect(),
        quotas: quotas(&arguments.quota),
    };
    let auth = Arc::new(auth.with_operators(operators(&arguments, &listener)?));
    let budget_code = match arguments.budget_status {
        BudgetStatus::Cancelled => Code::Cancelled,
        BudgetStatus::ResourceExhausted => Code::ResourceExhausted,
    };
    let counts = Counts::default();
    let connection_counts = transport::Counts::default();
    let searches = Arc::new(Searches::new(engine, limits, counts.clone()));

    let rate_limits = rate_limits(&arguments);
    let refusals = searches.refusals().clone();

    // Searches are what a drain waits for. Who watches our health is told of it and let go last.
    let refused = counts.clone();
    let drain = Drain::with_status(move || {
        let error = CallError::Draining(None);
        refused.refused(error.reason());
        Status::from(error)
    });
    let collector = arguments.traces.otlp_endpoint.as_ref();
    let share = arguments.traces.otlp_sampling;
    let traces = collector.map(|collector| Traces::to(collector, share));
    let traces = traces.transpose()?;
    let calls = Calls::new(&ALL_DESCRIPTORS)?;
    let rules = Rules::new(&ALL_DESCRIPTORS).context("not everything has its rule")?;
    // Each has threads of its own, so that keys are revoked while certificates cannot be read.
    let _watches = (auth.watch()?, tls.as_ref().map(Tls::watch).transpose()?);
    let health = HealthReporter::new();
    let health_service = || HealthService::from_health_reporter(health.clone());
    let services = [
        hash_finder_server::SERVICE_NAME,
        finder_server::SERVICE_NAME,
    ];
    for service in services {
        let status = tonic_health::ServingStatus::Serving;
        health.set_service_status(service, status).await;
    }
    if let Some(listener) = metrics_listener {
        let server = metrics::Server {
            searches: Arc::clone(&searches),
            drain: drain.clone(),
            rate_limits: rate_limits.clone(),
            lost_lines: log.lost_lines(),
            traces: traces.clone(),
            tls: tls.clone(),
            runtime: Handle::current().metrics(),
        };
        let registry = metrics::registry(kernel, server, &counts, &calls, &connection_counts);
        let address = listener.address()?;
        tracing::info!(address, "showing metrics");
        let is_open = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
        if address.parse().is_ok_and(is_open) {
            tracing::warn!(
                address,
                "other machines can reach the metrics, which have no TLS and no authentication; let a firewall \
                 keep strangers out"
            );
        }
        tokio::spawn(Exporter::new(registry, health_service()).serve(listener));
    }
    let around = Around {
        calls,
        traces: traces.clone(),
        refusals,
        request_timeout: arguments.quota.request_timeout,
        rate_limits,
        auth,
        rules,
    };
    let service = served(
        around,
        Arc::clone(&searches),
        kernel,
        budget_code,
        &drain,
        HealthServer::new(health_service()),
    )?;
    let stop = Arc::clone(&searches);
    let on_close = Arc::new(move |connection| stop.stop_those_of(connection));
    let server = transport::Server::new(service, tls, connections, connection_counts, on_close);
    tokio::spawn(searches.stop_unread(arguments.transport.stream_stall_timeout));

    tracing::info!(address, workers, kernel = kernel.name(), "listening");
    announce(&address)?;

    let (hand_over, handed_over) = oneshot::channel();
    let signal = async {
        let signal = signals.next().await;
        tracing::info!(%signal, calls = drain.active_calls(), "draining");
        for service in services.into_iter().chain([""]) {
            let status = tonic_health::ServingStatus::NotServing;
            health.set_service_status(service, status).await;
        }
        // Whoever waits for it is there as long as this is.
        let _ = hand_over.send(signals);
    };
    let options = DrainOptions::new()
        .grace(arguments.drain_grace)
        .notice(DRAIN_NOTICE)
        .close(CLOSE_TIMEOUT);
    let serving = drain.serve(signal, options, |shutdown| server.serve(listener, shutdown));
    let serving = async {
        let drained = serving.await?;
        if let Some(traces) = &traces {
            traces.flush().await;
        }
        anyhow::Ok(drained)
    };
    let hurried = async {
        match handed_over.await {
            Ok(mut signals) => signals.next().await,
            // The server stopped by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        drained = serving => {
            let drained = drained?;
            anyhow::ensure!(drain.is_closed(), "the server stopped by itself");
            tracing::info!(told = drained.told, forced = drained.forced, "drained");
            if drained.left_behind {
                tracing::warn!("left behind connections that did not close");
            }
        }
        signal = hurried => {
            tracing::warn!(%signal, calls = drain.active_calls(), "leaving at once");
            if let Some(traces) = &traces {
                traces.abandon().await;
            }
        }
    }
    let lost_spans = traces.as_ref().map(Traces::lost);
    let lost_lines = log.lost_lines().count();
    tracing::info!(lost_lines, lost_spans, "stopped");
    Ok(Exit::Success)
}

/// What looks at every call, whatever it asks for.
pub(crate) struct Around {
    pub(crate) calls: Calls,
    pub(crate) traces: Option<Traces>,
    pub(crate) refusals: Refusals,
    pub(crate) request_timeout: Duration,
    pub(crate) rate_limits: RateLimits,
    pub(crate) auth: Arc<Auth>,
    pub(crate) rules: Rules,
}

/// What a connection is served with.
pub(crate) type Served = CallsService<EdgeService<RateLimitService<AuthService<Routes>>>>;

/// The services, and the layers around them.
///
/// # Errors
///
/// If the descriptors that reflection shows cannot be read, which a test would have seen.
pub(crate) fn served(
    around: Around,
    searches: Arc<Searches>,
    kernel: Kernel,
    budget_code: Code,
    drain: &Drain,
    health: HealthServer<impl Health>,
) -> Result<Served> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let finder = FinderService::new(Arc::clone(&searches), kernel);
    let reference = HashFinderServer::new(HashFinderService::new(searches, budget_code));
    let aside = CallContextLayer::with_drain(drain.aside());
    let routes = Routes::default()
        .add_service(aside.named_layer(health))
        .add_service(aside.named_layer(reflection().build_v1()?))
        .add_service(aside.named_layer(reflection().build_v1alpha()?))
        .add_service(WatchAside::new(finder, drain))
        .add_service(CallContextLayer::with_drain(drain.clone()).named_layer(reference))
        .prepare();
    let Around {
        calls,
        traces,
        refusals,
        request_timeout,
        rate_limits,
        auth,
        rules,
    } = around;
    let rules = Arc::new(rules);
    let auth = AuthLayer::new(
        auth,
        Arc::clone(&rules),
        calls.clone(),
        refusals.clone(),
        rate_limits.clone(),
    );
    let limited = RateLimitLayer::new(rate_limits, rules, calls.clone(), refusals.clone());
    let edge = EdgeLayer::new(calls.clone(), refusals, request_timeout);
    let counted = CallsLayer { calls, traces };
    Ok(counted.layer(edge.layer(limited.layer(auth.layer(routes)))))
}

/// Says where it would listen, or what keeps it from that, as far as this can be known without
/// listening. A server with an expired certificate would listen, so that is a warning: it takes a new one as
/// soon as there is one, while a server that had not started would stay down.
pub(crate) fn check(arguments: &ServeArguments) -> Result<Exit> {
    match log::filter().and_then(|_| setup(arguments)) {
        Ok(Setup { places, tls, .. }) => {
            for warning in tls.iter().flat_map(Tls::warnings) {
                say(format_args!("warning: {warning}"));
            }
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "hashfinder would listen on {}", as_text(&places))?;
            Ok(Exit::Success)
        }
        Err(wrong) => {
            say(format_args!("{wrong:#}"));
            Ok(Exit::Usage)
        }
    }
}

/// What is listened on and who is let in, with all read that the arguments name.
struct Setup {
    connections: transport::Limits,
    tls: Option<Tls>,
    auth: Auth,
    /// None where it is a Unix socket.
    addresses: Vec<SocketAddr>,
    metrics_addresses: Option<Vec<SocketAddr>>,
    /// Where that is, as people read it.
    places: String,
}

/// Looks at everything that can be wrong before anything is begun.
///
/// # Errors
///
/// If there is anything wrong, or if strangers could do there what they are not to.
fn setup(arguments: &ServeArguments) -> Result<Setup> {
    let mut connections = arguments.transport.limits(open_files())?;
    let (_, of_address) = arguments
        .quota
        .open_calls(arguments.maximum_concurrent_rpcs);
    // One connection leaves a quarter of its address's calls to the others. Its client waits for the end of a call
    // then, by HTTP/2's own rules, instead of being refused.
    let of_connection = of_address.get() - of_address.get() / 4;
    connections.concurrent_streams = u32::try_from(of_connection)
        .unwrap_or(u32::MAX)
        .min(connections.concurrent_streams);
    let tls = Tls::load(&arguments.tls)?;
    let auth = Auth::load(&arguments.auth, arguments.tls.tls_client_ca.is_some())?;
    let (addresses, mut places) = match &arguments.unix {
        Some(path) => {
            let shown = path.display();
            SockAddr::unix(path).with_context(|| format!("{shown} can be no socket's path"))?;
            (Vec::new(), format!("unix:{shown}"))
        }
        None => {
            let addresses = transport::addresses(&arguments.host, arguments.port)?;
            let address = addresses.first().context("there is no address")?;
            let shown = address.to_string();
            (addresses, shown)
        }
    };
    if !arguments.auth.listen_unprotected {
        check_exposure(&addresses, tls.is_some(), auth.is_configured())?;
    }
    let at = arguments.metrics_address.as_ref();
    let metrics_addresses = at.map(|at| transport::addresses(&at.host, at.port));
    let metrics_addresses = metrics_addresses.transpose().context("for the metrics")?;
    if let Some(metrics) = &metrics_addresses {
        let metrics = metrics.first().context("there is no address")?;
        if metrics.port() != 0 && addresses.first() == Some(metrics) {
            bail!("metrics need a port of their own; {metrics} is the server's");
        }
        places = format!("{places}, with metrics on {metrics}");
    }
    Ok(Setup {
        connections,
        tls,
        auth,
        addresses,
        metrics_addresses,
        places,
    })
}

/// Who sees and cancels the searches of all clients: those who were named and, where clients are users,
/// whoever runs this server, and root, who can do to it what they like anyway.
fn operators(arguments: &ServeArguments, listener: &Listener) -> Result<HashSet<ClientName>> {
    const ROOT: u32 = 0;
    let owner = listener
        .owner()
        .context("cannot tell who runs this server")?;
    let users = owner.into_iter().flat_map(|owner| [owner, ROOT]);
    let users = users.map(ClientName::of_user);
    Ok(users.chain(arguments.operators.iter().cloned()).collect())
}

/// What those clients may have for whom that was said.
fn quotas(arguments: &QuotaArguments) -> HashMap<ClientName, Quota> {
    let mut quotas: HashMap<ClientName, Quota> = HashMap::new();
    for (client, searches) in &arguments.client_searches {
        quotas.entry(client.clone()).or_default().searches = Some(searches.get());
    }
    for (client, hashes) in &arguments.client_hashes_per_second {
        let quota = quotas.entry(client.clone()).or_default();
        quota.hashes_per_second = Some(*hashes);
    }
    quotas
}

fn rate_limits(arguments: &ServeArguments) -> RateLimits {
    let quota = &arguments.quota;
    let (open_calls, open_calls_of_address) = quota.open_calls(arguments.maximum_concurrent_rpcs);
    RateLimits::new(AddressLimits {
        calls_per_second: quota.maximum_calls_per_second_per_address,
        open_calls,
        open_calls_of_address,
        refused_credentials_per_second: quota.maximum_refused_credentials_per_second,
    })
}

/// The line that tells people and scripts that the server is there, and where.
fn announce(address: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "hashfinder listening on {}", as_text(address));
    let written = written.and_then(|()| stdout.flush());
    // Whoever started it waits for this line.
    written.with_context(|| format!("cannot tell on stdout that it listens on {address}"))
}

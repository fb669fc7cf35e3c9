//! `hashfinder serve`: the server process, from its socket to its last call.

use std::{
    io::{IsTerminal, Write},
    net::{SocketAddr, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hashfinder_search::{Engine, Kernel};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tonic::{
    Code, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_cancel::{CallContextLayer, Drain};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{BudgetStatus, Exit, ServeArguments},
    rpc::{
        CallError, DESCRIPTORS, EdgeLayer, HashFinderService, Limits,
        pb::hash_finder_server::{HashFinderServer, SERVICE_NAME},
    },
};

/// How many connections may wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 1024;

/// How many calls one connection may have open. gRPC's own advice is about a hundred; this leaves
/// room for one busy client behind a proxy, where tonic's default is no limit at all.
const MAX_CONCURRENT_STREAMS: u32 = 1000;

/// How many streams of a connection may be reset over errors of the peer's making before it is
/// closed. This is the default of the HTTP/2 library, which tonic otherwise lifts.
const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// How often a connection on which nothing happens is asked whether its peer is still there. A
/// peer that vanished without a word holds its searches for this long and the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long the peer may take to answer that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call that is told of the drain may take to say where to go on. Its search stops
/// within a slice, so nearly all of this is for a machine that is very busy.
const DRAIN_NOTICE: Duration = Duration::from_secs(1);

/// How long connections may take to close once every call has ended: the time for last statuses
/// to be read. A peer that does not read is left behind.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the log to stderr, as much of it as HASHFINDER_LOG says.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("HASHFINDER_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Serves until it is told to stop, then drains. Dropping the future closes the socket and leaves
/// connections to the runtime.
pub(crate) async fn run(arguments: ServeArguments) -> Result<Exit> {
    // Before it says that it listens, so that nobody who waits for that can signal too early.
    let mut signals = Signals::new()?;
    let listener = listen(&arguments)?;
    let address = listener.local_addr()?;

    let kernel = Kernel::best();
    let workers = arguments
        .workers
        .or_else(|| thread::available_parallelism().ok());
    let workers = workers.map_or(1, usize::from);
    let started = Instant::now();
    let engine = Engine::start(workers, kernel, move || started.elapsed())
        .context("cannot start the search threads")?;
    let limits = Limits {
        maximum_hashes: arguments.maximum_hashes,
        budget_code: match arguments.budget_status {
            BudgetStatus::Cancelled => Code::Cancelled,
            BudgetStatus::ResourceExhausted => Code::ResourceExhausted,
        },
        maximum_concurrent_rpcs: arguments.maximum_concurrent_rpcs,
    };

    let drain = Drain::with_status(|| Status::from(CallError::Draining(None)));
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<HashFinderServer<HashFinderService>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (close, closing) = oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(CallContextLayer::with_drain(drain.clone()))
        .layer(EdgeLayer)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(HashFinderServer::new(HashFinderService::new(
            engine, limits,
        )))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async {
                // The sender is dropped only where nobody waits for the server any more.
                let _ = closing.await;
            },
        );
    let mut server = std::pin::pin!(server);

    tracing::info!(%address, workers, kernel = kernel.name(), "listening");
    announce(address)?;

    let name = tokio::select! {
        ended = &mut server => {
            ended?;
            anyhow::bail!("the server stopped by itself");
        }
        name = signals.next() => name,
    };
    tracing::info!(signal = name, calls = drain.active_calls(), "draining");
    health
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
    health
        .set_service_status(SERVICE_NAME, tonic_health::ServingStatus::NotServing)
        .await;
    // Closes the socket, and asks every connection to open no more calls.
    let _ = close.send(());
    let draining = async {
        let drained = drain.drain(arguments.drain_grace, DRAIN_NOTICE).await;
        tracing::info!(told = drained.told, forced = drained.forced, "drained");
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    };
    tokio::select! {
        ended = &mut server => ended?,
        () = draining => tracing::warn!("left behind connections that did not close"),
        name = signals.next() => {
            tracing::warn!(signal = name, calls = drain.active_calls(), "leaving at once");
        }
    }
    tracing::info!("stopped");
    Ok(Exit::Success)
}

/// The line that tells people and scripts that the server is there, and where.
fn announce(address: SocketAddr) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "hashfinder listening on {address}")?;
    stdout.flush()?;
    Ok(())
}

fn listen(arguments: &ServeArguments) -> Result<TcpListener> {
    let (host, port) = (arguments.host.as_str(), arguments.port);
    let bind = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // So that a server that was just stopped can be started again at once.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(arguments.reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    let addresses = (host.trim_matches(['[', ']']), port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve the host {host:?}"))?;
    let mut failure = anyhow::anyhow!("the host {host:?} has no address");
    for address in addresses {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                failure = anyhow::Error::new(error).context(format!("cannot listen on {address}"));
            }
        }
    }
    Err(failure)
}

/// SIGINT and SIGTERM, which no longer end the process by themselves once this exists.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either and gives its name. Dropping the future loses no signal.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

//! A connection to a server, from the first attempt on.

use std::{error::Error, pin::Pin, sync::Mutex, time::Duration};

use anyhow::{Context, Result, bail};
use hashfinder_system::text::as_text;
use http::Uri;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tonic::{
    Code, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    access::{Access, Credential},
    address::ServerAddress,
    connector::Connector,
    options::ConnectOptions,
};

/// Time to wait for the server before a note says so.
const NOTICE_AFTER: Duration = Duration::from_millis(200);

/// Time limit of one attempt to reach the server. After it, another connection is tried.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the first failed attempt. Each later pause is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Maximum pause: short enough that a server that starts is found soon.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Error text for a server that does not answer.
const SILENT: &str = "no answer";

/// Maximum time to wait, when a connection is closed, until it has sent what is left to send.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A future whose type is erased, so that it is compiled in this crate, once. A crate that polls an
/// `async fn` compiles it itself, and with it the whole HTTP/2 stack.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection to a server that has answered, and the tasks behind it.
pub struct Connection {
    channel: Channel,
    credential: Credential,
    tasks: TaskTracker,
}

impl Connection {
    /// Connects, and waits for a server that does not answer yet. If that takes long enough to be
    /// noticed, calls `say` with a note that it waits up to `shown`. Dropping the future cancels
    /// the attempt.
    ///
    /// # Errors
    ///
    /// If the options are wrong, no server answers within `timeout`, the peer is not a gRPC server,
    /// or the TLS handshake fails.
    pub async fn open(
        server: &ServerAddress,
        options: &ConnectOptions,
        timeout: Duration,
        shown: Duration,
        say: impl FnOnce(String),
    ) -> Result<Connection> {
        let access = Access::read(server, options).await?;
        let last_error = Mutex::new(SILENT.to_owned());
        let why = || last_error.lock().map(|why| why.clone()).unwrap_or_default();
        let mut reached = reach(server, &access, &last_error);
        let within = humantime::format_duration(timeout);
        let at_once = NOTICE_AFTER.min(timeout);
        if let Ok(connection) = tokio::time::timeout(at_once, &mut reached).await {
            return connection;
        }
        if at_once < timeout {
            let shown = humantime::format_duration(shown);
            say(format!(
                "waiting up to {shown} for the server at {server}: {}",
                why()
            ));
        }
        match tokio::time::timeout(timeout - at_once, reached).await {
            Ok(connection) => connection,
            Err(_) => bail!(
                "cannot reach {server} within {within}: {}; start a server with `hashfinder \
                 serve`, or give another with --server HOST:PORT",
                why()
            ),
        }
    }

    /// Returns the channel for a generated client. It sends the credential with every call.
    #[must_use]
    pub fn channel(&self) -> InterceptedService<Channel, Credential> {
        InterceptedService::new(self.channel.clone(), self.credential.clone())
    }

    /// Waits until the connection is closed, so that cancellations are sent before the process
    /// ends. Calls and clients on it have to be dropped before. If it takes too long, or the future
    /// is dropped, the server notices the end of the connection.
    pub async fn close(self) {
        let Connection { channel, tasks, .. } = self;
        drop(channel);
        tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await;
    }
}

/// Tries to connect until the server answers.
fn reach<'a>(
    server: &'a ServerAddress,
    access: &'a Access,
    last_error: &'a Mutex<String>,
) -> Boxed<'a, Result<Connection>> {
    Box::pin(reach_by_retries(server, access, last_error))
}

async fn reach_by_retries(
    server: &ServerAddress,
    access: &Access,
    last_error: &Mutex<String>,
) -> Result<Connection> {
    let tasks = TaskTracker::new();
    let connector = access.connector(server);
    let endpoint = endpoint(server)?.executor(Spawner(tasks.clone()));
    let mut pause = FIRST_RETRY;
    loop {
        let attempt = attempt(&endpoint, connector.clone());
        let failure = match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
            Ok(Ok(channel)) => {
                return Ok(Connection {
                    channel,
                    credential: access.credential(),
                    tasks,
                });
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Passing(SILENT.to_owned()),
        };
        // This takes precedence over the error from HTTP/2.
        if let Some(failure) = connector.failure() {
            bail!(access.advice(&failure, server));
        }
        let error = match failure {
            Failure::Passing(error) => as_text(&error),
            Failure::SomethingElse => {
                bail!("{server} is not a gRPC server; give the address of a hashfinder server")
            }
        };
        if let Ok(mut last_error) = last_error.lock() {
            *last_error = error;
        }
        sleep(pause).await;
        pause = (2 * pause).min(LAST_RETRY);
    }
}

/// Why an attempt failed.
enum Failure {
    /// The next attempt may succeed.
    Passing(String),
    /// The peer is not a gRPC server.
    SomethingElse,
}

/// Returns the endpoint, which addresses requests. The connector determines where they are sent.
fn endpoint(server: &ServerAddress) -> Result<Endpoint> {
    let (address, origin) = match server {
        ServerAddress::Tcp(authority) => (format!("http://{authority}"), None),
        // With `https` here, tonic would use its own TLS.
        ServerAddress::Tls(authority) => (
            format!("http://{authority}"),
            Some(format!("https://{authority}")),
        ),
        ServerAddress::Unix(_) => ("http://localhost".to_owned(), None),
    };
    let wrong = || format!("invalid server address {server}");
    let endpoint = Endpoint::from_shared(address).with_context(wrong)?;
    Ok(match origin {
        Some(origin) => endpoint.origin(origin.parse::<Uri>().with_context(wrong)?),
        None => endpoint,
    })
}

/// Connects and checks the server's health, because anything may listen at the address.
async fn attempt(endpoint: &Endpoint, connector: Connector) -> Result<Channel, Failure> {
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| {
        // The innermost error of the chain is the informative one.
        Failure::Passing(anyhow::Error::new(error).root_cause().to_string())
    })?;
    let request = Request::new(HealthCheckRequest::default());
    match HealthClient::new(channel.clone()).check(request).await {
        Err(status) if breaks_http2(&status) => Err(Failure::SomethingElse),
        // Any other status, UNIMPLEMENTED for example, comes from a server.
        Err(status) if status.code() == Code::Unavailable || is_transports(&status) => {
            Err(Failure::Passing(status.message().to_owned()))
        }
        _ => Ok(channel),
    }
}

/// Whether the transport created a status: a status from a server has no source.
fn is_transports(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether the response was not HTTP/2, as from a web server.
fn breaks_http2(status: &Status) -> bool {
    is_transports(status) && status.code() == Code::Internal
}

/// Spawns a connection's tasks so that they can be waited for.
#[derive(Clone)]
struct Spawner(TaskTracker);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Spawner {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }
}

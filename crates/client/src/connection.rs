//! Connects to a server, and waits for a server that does not answer yet.

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

/// Time to wait for the server before a note says that the client is waiting.
const NOTICE_AFTER: Duration = Duration::from_millis(200);

/// Time limit of one attempt to reach the server. When it is reached, the client makes a new
/// connection.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the first failed attempt. Each later pause is twice as long as the one before, up to
/// [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Maximum pause between attempts: short enough that the client soon finds a server that starts.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Error text for a server that does not answer.
const SILENT: &str = "no answer";

/// Maximum time for a connection that is being closed to send its remaining data.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A future whose type is erased, so that this crate compiles it, once. A crate that polls an
/// `async fn` compiles it itself, and the whole HTTP/2 stack with it.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection to a server that has answered, and the connection's background tasks.
pub struct Connection {
    channel: Channel,
    credential: Credential,
    tasks: TaskTracker,
}

impl Connection {
    /// Connects, and waits for a server that does not answer yet. If that takes more than 200 ms,
    /// calls `say` once with a note that the client waits up to `shown`. Dropping the future
    /// cancels the attempt.
    ///
    /// # Errors
    ///
    /// If the options are invalid, no server answers within `timeout`, the peer is not a gRPC
    /// server, or the TLS handshake fails.
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
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let within = humantime::format_duration(Duration::from_millis(millis));
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
    /// ends. Drop the connection's calls and clients first. If closing takes more than 1 s, or the
    /// future is dropped, cancellations may not be sent, but the server notices the end of the
    /// connection.
    pub async fn close(self) {
        let Connection { channel, tasks, .. } = self;
        drop(channel);
        tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await;
    }
}

/// Tries to connect until the server answers, or until a failure shows that it never will.
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
        // The connector's failure takes precedence over the error from HTTP/2.
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

/// Returns the endpoint, which determines the URIs of requests. The connector determines where to
/// send them.
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

/// Connects, and checks the server's health, because any program may listen at the address.
async fn attempt(endpoint: &Endpoint, connector: Connector) -> Result<Channel, Failure> {
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| {
        // Only the innermost error of the chain is informative.
        Failure::Passing(anyhow::Error::new(error).root_cause().to_string())
    })?;
    let request = Request::new(HealthCheckRequest::default());
    match HealthClient::new(channel.clone()).check(request).await {
        Err(status) if breaks_http2(&status) => Err(Failure::SomethingElse),
        // The transport failed, or the server is not ready. Any other status, such as
        // UNIMPLEMENTED, comes from a gRPC server that answers.
        Err(status) if status.code() == Code::Unavailable || is_transports(&status) => {
            Err(Failure::Passing(status.message().to_owned()))
        }
        _ => Ok(channel),
    }
}

/// Whether the transport created a status. Such a status has a source, unlike one from a server.
fn is_transports(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether the response was not HTTP/2, for example one from an HTTP/1.1 web server.
fn breaks_http2(status: &Status) -> bool {
    is_transports(status) && status.code() == Code::Internal
}

/// Spawns a connection's tasks so that `close` can wait for them.
#[derive(Clone)]
struct Spawner(TaskTracker);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Spawner {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }
}

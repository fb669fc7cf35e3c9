//! Connections to a server, for the commands that ask one.

mod access;

use std::{
    error::Error,
    pin::{Pin, pin},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tonic::{
    Code, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use self::access::{Access, Credential};
pub(crate) use self::access::{CREDENTIAL, advice};
use crate::cli::{ConnectionArguments, ServerAddress};

/// How long we wait for the server before we say so.
const NOTICE_AFTER: Duration = Duration::from_millis(200);

/// How long one attempt to reach it may take before another connection is tried.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after the first attempt that failed; each one after it is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// The longest pause, so that a server that comes up is found soon.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// When the system asks whether the server's machine is still there, how often again, and how many
/// silent answers mean that it is not. HTTP/2 has pings of its own, but other servers close
/// connections over them.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// What is wrong with a server from which nothing comes.
const SILENT: &str = "it does not answer";

/// How long we wait, at the end, for the connection to tell the server what there is left to tell.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a server that has answered, and the tasks behind it.
pub(crate) struct Connection {
    channel: Channel,
    credential: Credential,
    tasks: TaskTracker,
}

impl Connection {
    /// Connects, waiting for a server that is not there yet; tells `say` when it takes long enough to be
    /// noticed. Dropping the future gives it up.
    ///
    /// # Errors
    ///
    /// If the flags cannot be followed, no server has answered within `timeout`, what answers is something
    /// else than a server, or there is no TLS with it as there should be.
    pub(crate) async fn open(
        server: &ServerAddress,
        arguments: &ConnectionArguments,
        timeout: Duration,
        say: impl FnOnce(String),
    ) -> Result<Connection> {
        let access = Access::new(server, arguments)?;
        let last_error = Mutex::new(SILENT.to_owned());
        let why = || last_error.lock().map(|why| why.clone()).unwrap_or_default();
        let mut reached = pin!(reach(server, &access, &last_error));
        let shown = humantime::format_duration(timeout);
        let notice = NOTICE_AFTER.min(timeout);
        if let Ok(connection) = tokio::time::timeout(notice, &mut reached).await {
            return connection;
        }
        if notice < timeout {
            say(format!(
                "waiting up to {shown} for a server at {server}: {}",
                why()
            ));
        }
        match tokio::time::timeout(timeout - notice, reached).await {
            Ok(connection) => connection,
            Err(_) => bail!(
                "no server at {server} within {shown}: {}; start one with `hashfinder serve`, or give \
                 another with --server HOST:PORT",
                why()
            ),
        }
    }

    /// What a client is made of.
    pub(crate) fn channel(&self) -> InterceptedService<Channel, Credential> {
        InterceptedService::new(self.channel.clone(), self.credential.clone())
    }

    /// Waits until it is closed, so that a cancellation has been sent when we leave. Whoever has calls or
    /// clients on it has to drop them before. If it takes too long, or the future is dropped, the server
    /// notices by the connection's end.
    pub(crate) async fn close(self) {
        let Connection { channel, tasks, .. } = self;
        drop(channel);
        tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await;
    }
}

/// Tries until it is there.
async fn reach(
    server: &ServerAddress,
    access: &Access,
    last_error: &Mutex<String>,
) -> Result<Connection> {
    let (after, interval, retries) = KEEPALIVE;
    let tasks = TaskTracker::new();
    let endpoint = access
        .endpoint(server)?
        .executor(Spawner(tasks.clone()))
        .tcp_keepalive(Some(after))
        .tcp_keepalive_interval(Some(interval))
        .tcp_keepalive_retries(Some(retries));
    let mut pause = FIRST_RETRY;
    loop {
        let error =
            match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt(&endpoint, access, server)).await {
                Ok(Ok(channel)) => {
                    return Ok(Connection {
                        channel,
                        credential: access.credential(),
                        tasks,
                    });
                }
                Ok(Err(Failure::Passing(error))) => as_text(&error),
                Ok(Err(Failure::Lasting(error))) => bail!(error),
                Err(_) => SILENT.to_owned(),
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
    /// What may be otherwise the next time.
    Passing(String),
    /// What will be the same however often it is tried; says what to do.
    Lasting(String),
}

/// Connects and asks for a sign of life, for a connection alone may be anybody's.
async fn attempt(
    endpoint: &Endpoint,
    access: &Access,
    server: &ServerAddress,
) -> Result<Channel, Failure> {
    let channel = endpoint.connect().await.map_err(|error| {
        match access.tls_failure(&error, server) {
            Some(why) => Failure::Lasting(why),
            // The part of the chain that says something is the innermost.
            None => Failure::Passing(anyhow::Error::new(error).root_cause().to_string()),
        }
    })?;
    let request = Request::new(HealthCheckRequest::default());
    let Err(status) = HealthClient::new(channel.clone()).check(request).await else {
        return Ok(channel);
    };
    let is_transports = is_transports(&status);
    if is_transports && let Some(why) = access.tls_failure(&status, server) {
        return Err(Failure::Lasting(why));
    }
    if breaks_http2(&status) {
        let or_tls = match server {
            ServerAddress::Tcp(_) => ", or --tls if that is what it speaks",
            ServerAddress::Tls(_) | ServerAddress::Unix(_) => "",
        };
        return Err(Failure::Lasting(format!(
            "what listens at {server} does not speak gRPC; give the address of a `hashfinder serve`{or_tls}"
        )));
    }
    // Any other status, UNIMPLEMENTED for one, is a server's.
    if is_transports || status.code() == Code::Unavailable {
        return Err(Failure::Passing(status.message().to_owned()));
    }
    Ok(channel)
}

/// Whether a status is the transport's own word: none that a server sent has a source.
fn is_transports(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether what came was not HTTP/2, as from a web server or one that wants TLS.
fn breaks_http2(status: &Status) -> bool {
    is_transports(status) && status.code() == Code::Internal
}

/// What a server says, for a terminal: nothing in it may be more than text.
pub(crate) fn as_text(message: &str) -> String {
    let mut text = String::new();
    for character in message.chars() {
        match character {
            '\'' | '"' | '\\' => text.push(character),
            _ => text.extend(character.escape_debug()),
        }
    }
    text
}

/// Runs a connection's tasks where they can be waited for.
#[derive(Clone)]
struct Spawner(TaskTracker);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Spawner {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }
}

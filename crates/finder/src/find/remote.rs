//! A search that a server does, ours or any other that speaks the reference contract.

use std::{
    pin::{Pin, pin},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::{Cursor, Index, Query, Secret};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_cancel::{Call, CallOptions, StreamingCall};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Ending, Source, Stopper, Told, output::Finding, status::Status as Stderr};
use crate::{
    cli::{FindArguments, ServerAddress},
    rpc::{
        Details, SERVER_NAME,
        pb::{HashNameRequest, HashNameResponse, hash_finder_client::HashFinderClient},
    },
};

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
pub(super) struct Connection {
    channel: Channel,
    tasks: TaskTracker,
    /// Whether the server is a hashfinder.
    is_ours: bool,
}

/// Connects, waiting for a server that is not there yet. Dropping the future gives it up.
pub(super) async fn connect(
    server: &ServerAddress,
    timeout: Duration,
    stderr: &Stderr,
) -> Result<Connection> {
    let last_error = Mutex::new(SILENT.to_owned());
    let why = || last_error.lock().map(|why| why.clone()).unwrap_or_default();
    let mut reached = pin!(reach(server, &last_error));
    let shown = humantime::format_duration(timeout);
    let notice = NOTICE_AFTER.min(timeout);
    if let Ok(connection) = tokio::time::timeout(notice, &mut reached).await {
        return connection;
    }
    if notice < timeout {
        stderr.say(format_args!(
            "waiting up to {shown} for a server at {server}: {}",
            why()
        ));
    }
    match tokio::time::timeout(timeout - notice, reached).await {
        Ok(connection) => connection,
        Err(_) => bail!("no server at {server} within {shown}: {}", why()),
    }
}

/// Tries until it is there.
async fn reach(server: &ServerAddress, last_error: &Mutex<String>) -> Result<Connection> {
    let (after, interval, retries) = KEEPALIVE;
    let tasks = TaskTracker::new();
    let endpoint = Endpoint::from_shared(server.uri())
        .with_context(|| format!("{server} is not a server's address"))?
        .executor(Spawner(tasks.clone()))
        .tcp_keepalive(Some(after))
        .tcp_keepalive_interval(Some(interval))
        .tcp_keepalive_retries(Some(retries));
    let mut pause = FIRST_RETRY;
    loop {
        let error = match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt(&endpoint)).await {
            Ok(Ok((channel, is_ours))) => {
                return Ok(Connection {
                    channel,
                    tasks,
                    is_ours,
                });
            }
            // The part of the chain that says something is the innermost.
            Ok(Err(error)) => error.root_cause().to_string(),
            Err(_) => SILENT.to_owned(),
        };
        if let Ok(mut last_error) = last_error.lock() {
            *last_error = error;
        }
        sleep(pause).await;
        pause = (2 * pause).min(LAST_RETRY);
    }
}

/// Connects and asks for a sign of life, for a connection alone may be anybody's.
async fn attempt(endpoint: &Endpoint) -> Result<(Channel, bool)> {
    let channel = endpoint.connect().await?;
    let request = Request::new(HealthCheckRequest::default());
    let metadata = match HealthClient::new(channel.clone()).check(request).await {
        Ok(response) => response.metadata().clone(),
        // The transport's own word; any other status, UNIMPLEMENTED for one, is a server's.
        Err(status) if status.code() == Code::Unavailable => bail!(status.message().to_owned()),
        Err(status) => status.metadata().clone(),
    };
    let is_ours = metadata
        .get("server")
        .is_some_and(|name| name == SERVER_NAME);
    Ok((channel, is_ours))
}

/// What a server says, for a terminal: nothing in it may be more than text.
fn as_text(message: &str) -> String {
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

pub(super) struct RemoteSearch {
    query: Query,
    call: Either,
    /// The secret that the server told last, from which we know how far it came.
    last: Option<Secret>,
    tasks: TaskTracker,
    is_ours: bool,
}

/// Find, or FindRange where candidates are to be shown.
enum Either {
    Unary(Call<HashNameResponse>),
    Stream(StreamingCall<HashNameResponse>),
}

impl RemoteSearch {
    pub(super) fn start(
        connection: Connection,
        query: &Query,
        arguments: &FindArguments,
    ) -> RemoteSearch {
        let Connection {
            channel,
            tasks,
            is_ours,
        } = connection;
        let request = Request::new(HashNameRequest {
            desired_name: query.name().as_str().to_owned(),
            ideal_hamming_distance: i32::from(query.ideal_distance().get()),
            interesting_hamming_distance: i32::from(query.interesting_distance().get()),
        });
        let options = arguments
            .maximum_time
            .map_or(CallOptions::new(), |timeout| {
                CallOptions::new().timeout(timeout)
            });
        let mut client = HashFinderClient::new(channel);
        let call = if arguments.show_inferior.is_none() {
            Either::Unary(Call::start(request, options, |request| async move {
                client.find(request).await
            }))
        } else {
            Either::Stream(StreamingCall::start(
                request,
                options,
                |request| async move { client.find_range(request).await },
            ))
        };
        RemoteSearch {
            query: query.clone(),
            call,
            last: None,
            tasks,
            is_ours,
        }
    }

    /// Reads an answer and checks it: what a server says is not yet so.
    fn read(&mut self, response: &HashNameResponse) -> Result<Finding> {
        let secret = BASE64_STANDARD
            .decode(&response.secret)
            .context("the server's secret is not base64")?;
        let finding = Finding::of(secret, self.query.name());
        let hashed_name = finding.hashed_name;
        if hashed_name.as_str() != response.hashed_name {
            bail!("the server's answer is wrong: {hashed_name} is what its secret spells");
        }
        self.last = Secret::from_bytes(&finding.secret).or(self.last);
        Ok(finding)
    }

    fn end(&self, status: &Status) -> Ending {
        let details = Details::of(status);
        let cursor = details.cursor.filter(|cursor| self.concerns(cursor));
        let cursor = cursor.unwrap_or_else(|| Cursor::new(&self.query, self.known_frontier()));
        let message = as_text(status.message());
        match status.code() {
            Code::Cancelled if self.cancelled() => Ending::Stopped(cursor),
            _ if details.limit_reached => Ending::Limit(message, cursor),
            // The reference server says no more than this when its budget is spent.
            Code::Cancelled => {
                let why = format!("the server cancelled the search: {message}");
                Ending::Limit(why, cursor)
            }
            // The server, or what this client may have of it, is full.
            Code::ResourceExhausted => Ending::Limit(message, cursor),
            Code::DeadlineExceeded => {
                Ending::Limit("the maximum time has passed".to_owned(), cursor)
            }
            Code::NotFound => Ending::Exhausted,
            code => Ending::Failed(format!("the server failed: {message} ({code:?})"), cursor),
        }
    }

    /// Whether a cursor is one of this search.
    fn concerns(&self, cursor: &Cursor) -> bool {
        let again = self.query.clone().starting_at(cursor.frontier());
        cursor.frontier() >= self.query.start() && *cursor == Cursor::new(&again, again.start())
    }

    /// How far the server came, from what it has told. Ours tells its candidates in enumeration
    /// order and leaves nothing out; of another we cannot know.
    fn known_frontier(&self) -> Index {
        match self.last {
            Some(secret) if self.is_ours => secret.index() + 1,
            _ => self.query.start(),
        }
    }

    fn cancelled(&self) -> bool {
        match &self.call {
            Either::Unary(call) => call.cancelled(),
            Either::Stream(call) => call.cancelled(),
        }
    }
}

impl Source for RemoteSearch {
    async fn next(&mut self) -> Result<Told> {
        let told = match &mut self.call {
            Either::Unary(call) => call.await.map(Response::into_inner).map(Some),
            Either::Stream(call) => call.message().await,
        };
        match told {
            Err(status) => Ok(Told::Ended(self.end(&status))),
            Ok(Some(response)) => {
                let finding = self.read(&response)?;
                if finding.distance <= self.query.ideal_distance().get() {
                    return Ok(Told::Ended(Ending::Found(finding)));
                }
                match self.call {
                    Either::Stream(_) => Ok(Told::Candidate(finding)),
                    Either::Unary(_) => bail!(
                        "the server's answer is wrong: {} is {} from the name",
                        finding.hashed_name,
                        finding.distance
                    ),
                }
            }
            Ok(None) => {
                let status = Status::internal("the stream ended without an answer");
                Ok(Told::Ended(self.end(&status)))
            }
        }
    }

    fn stopper(&self) -> Stopper {
        let canceller = match &self.call {
            Either::Unary(call) => call.canceller(),
            Either::Stream(call) => call.canceller(),
        };
        Box::new(move || {
            canceller.cancel();
        })
    }

    fn frontier(&mut self) -> Option<Index> {
        // The contract does not tell how far a server is.
        None
    }

    fn summary(&self) -> Option<String> {
        // Nor what it took.
        None
    }

    /// Waits until the connection is closed, so that a cancellation has been sent when we leave.
    async fn close(self) {
        let tasks = self.tasks.clone();
        drop(self);
        tasks.close();
        // If it takes longer, the server notices by the connection's end.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await;
    }
}

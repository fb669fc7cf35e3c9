//! A search that a server does, ours or any other that speaks the reference contract.

use std::{pin::Pin, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::{Cursor, HashedName, Query, Secret};
use http::uri::Authority;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_cancel::{Call, CallOptions, StreamingCall};

use super::{Ending, Source, Stopper, Told, output::Finding};
use crate::rpc::{
    Details,
    pb::{HashNameRequest, HashNameResponse, hash_finder_client::HashFinderClient},
};

/// The pause after the first attempt to connect that failed; each one after it is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// The longest pause, so that a server that comes up is found soon.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How long we wait, at the end, for the connection to tell the server what there is left to tell.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection, and the tasks behind it.
pub(super) struct Connection {
    channel: Channel,
    tasks: TaskTracker,
}

/// Connects, waiting for a server that is not there yet. Dropping the future gives it up.
pub(super) async fn connect(server: &Authority, timeout: Duration) -> Result<Connection> {
    let tasks = TaskTracker::new();
    let spawner = tasks.clone();
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .with_context(|| format!("{server} is not a server's address"))?
        .executor(Spawner(spawner));
    let give_up = Instant::now() + timeout;
    let mut pause = FIRST_RETRY;
    loop {
        let error = match timeout_at(give_up, endpoint.connect()).await {
            Ok(Ok(channel)) => return Ok(Connection { channel, tasks }),
            Ok(Err(error)) => anyhow::Error::from(error),
            Err(_) => anyhow::anyhow!("it does not answer"),
        };
        if Instant::now() + pause >= give_up {
            let timeout = humantime::format_duration(timeout);
            bail!(
                "no server at {server} within {timeout}: {}",
                innermost(&error)
            );
        }
        if pause == FIRST_RETRY {
            let timeout = humantime::format_duration(timeout);
            eprintln!(
                "hashfinder: waiting up to {timeout} for a server at {server}: {}",
                innermost(&error)
            );
        }
        sleep(pause).await;
        pause = (2 * pause).min(LAST_RETRY);
    }
}

/// The part of a chain of errors that says something.
fn innermost(error: &anyhow::Error) -> String {
    error.root_cause().to_string()
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
        timeout: Option<Duration>,
    ) -> RemoteSearch {
        let Connection { channel, tasks } = connection;
        let request = Request::new(HashNameRequest {
            desired_name: query.name().as_str().to_owned(),
            ideal_hamming_distance: i32::from(query.ideal_distance().get()),
            interesting_hamming_distance: i32::from(query.interesting_distance().get()),
        });
        let options = timeout.map_or(CallOptions::new(), |timeout| {
            CallOptions::new().timeout(timeout)
        });
        let mut client = HashFinderClient::new(channel);
        let call = if query.interesting_distance().get() == 0 {
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
        }
    }

    /// Reads an answer and checks it: what a server says is not yet so.
    fn read(&mut self, response: &HashNameResponse) -> Result<Finding> {
        let secret = BASE64_STANDARD
            .decode(&response.secret)
            .context("the server's secret is not base64")?;
        let hashed_name = HashedName::of(&secret);
        if hashed_name.as_str() != response.hashed_name {
            bail!("the server's answer is wrong: {hashed_name} is what its secret spells");
        }
        let nearest = self.query.name().nearest(&secret);
        self.last = Secret::from_bytes(&secret).or(self.last);
        Ok(Finding {
            secret,
            hashed_name,
            distance: nearest.distance,
            window: nearest.window,
        })
    }

    fn end(&self, status: &Status) -> Ending {
        let details = Details::of(status);
        // A server tells its candidates in order, so what comes before the last one was tried.
        let known = self
            .last
            .map_or(self.query.start(), |secret| secret.index() + 1);
        let cursor = details
            .cursor
            .unwrap_or_else(|| Cursor::new(&self.query, known));
        // It goes to a terminal, so nothing in it may be more than text.
        let message = status.message().escape_debug();
        match status.code() {
            Code::Cancelled if self.cancelled() => Ending::Stopped(cursor),
            _ if details.budget_spent => Ending::Limit(message.to_string(), cursor),
            // The reference server says no more than this when its budget is spent.
            Code::Cancelled => {
                let why = format!("the server cancelled the search: {message}");
                Ending::Limit(why, cursor)
            }
            Code::DeadlineExceeded => Ending::Limit("the timeout has passed".to_owned(), cursor),
            Code::NotFound => Ending::Exhausted,
            code => Ending::Failed(format!("the server failed: {message} ({code:?})"), cursor),
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
                let ideal = finding.distance <= self.query.ideal_distance().get();
                Ok(if ideal {
                    Told::Ended(Ending::Found(finding))
                } else {
                    Told::Candidate(finding)
                })
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

    fn summary(&self) -> Option<String> {
        // The contract does not tell.
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

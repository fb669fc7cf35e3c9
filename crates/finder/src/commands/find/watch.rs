//! Watches an operation of a server, as if it were a search of this command.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hashfinder_client::{Connection, ServerAddress, advice};
use hashfinder_proto::{
    Details, Reason,
    google::longrunning::{GetOperationRequest, operations_client::OperationsClient},
    v1::{
        self, EndReason, OperationState, SearchEnded, SearchMetadata, SearchState,
        WatchOperationRequest, WatchOperationResponse, finder_client::FinderClient, search_event,
    },
};
use hashfinder_search::{Cursor, Distance, Index, Query};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_cancel::{Call, CallOptions, Canceller, StreamingCall};

use super::{
    arguments::Color,
    call_end::{is_lost, is_restarting},
    finding::Finding,
    follow::follow,
    output::Output,
    progress::REDRAW_EVERY,
    rate::hashes,
    report::report,
    result::CommandResult,
    source::{SearchEnd, SearchEvent, Source, Stopper},
    status::Status as Stderr,
    stop::Stops,
};
use crate::{
    arguments::{ANSWER_TIMEOUT, ConnectionArguments},
    exit::Exit,
    terminal::{as_text, quoted},
};

/// Pause before another connection attempt if the last connection was lost without progress.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Which operation to watch, and how.
pub(crate) struct WatchRequest {
    /// Name of the operation.
    pub(crate) name: String,
    pub(crate) server: ServerAddress,
    pub(crate) connection: ConnectionArguments,
    /// Maximum time to wait for the server, at first and after each lost connection.
    pub(crate) connect_timeout: Duration,
    /// Whether to print candidates, or only the result.
    pub(crate) shows_candidates: bool,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) color: Color,
}

/// What became of a watched operation.
pub(crate) struct Watched {
    pub(crate) exit: Exit,
    /// Why the operation ended; `None` if it has not, as far as this command knows.
    pub(crate) reason: Option<EndReason>,
    /// The secret that it found, if it did.
    pub(crate) found: Option<Finding>,
}

/// Watches an operation until it ends, or a signal stops this command. Prints what `find` prints.
///
/// Dropping the future does not stop the operation.
pub(crate) async fn watch_operation(request: WatchRequest) -> Result<Watched> {
    let stderr = Arc::new(Stderr::new(request.quiet));
    let mut stops = Stops::new(None)?;
    let again = format!(
        "hashfinder operations watch {} {}",
        quoted(&request.name),
        request
            .connection
            .flags(&request.connection.address(&request.server))
    );
    let request = Arc::new(request);
    let opened = open(Arc::clone(&request), Arc::clone(&stderr));
    let (connection, metadata) = match stops.unless_stopped(opened).await {
        Ok(opened) => match opened? {
            Some(opened) => opened,
            None => {
                stderr.fail(format_args!(
                    "{} has no operation {}, or it belongs to another client; see `hashfinder \
                     operations list`",
                    request.server, request.name
                ));
                return Ok(Watched {
                    exit: Exit::No,
                    reason: None,
                    found: None,
                });
            }
        },
        Err(cause) => {
            let stopped = CommandResult::stopped(cause, "; the operation is not affected");
            report(&stopped, None, &stderr);
            return Ok(Watched {
                exit: stopped.exit,
                reason: None,
                found: None,
            });
        }
    };
    let cursor: Cursor = metadata.start_cursor.parse().with_context(|| {
        format!(
            "the server at {} sent a cursor that this version cannot read",
            request.server
        )
    })?;
    let query = cursor.query();
    let shown = match request.shows_candidates {
        true => query.interesting_distance(),
        false => Distance::ZERO,
    };
    let (json, color) = (request.json, request.color);
    let mut output = Output::watching(&query, shown, json, color, Arc::clone(&stderr));
    let end = Arc::default();
    // Rates are those since this command has begun, and the hashes those of the whole operation.
    let tried = query.start()..metadata.frontier.max(query.start());
    let source = OperationSource::new(
        request,
        connection,
        query.clone(),
        tried.end,
        Arc::clone(&end),
        Arc::clone(&stderr),
    );
    let result = follow(source, &query, tried, stops, None, &mut output, &stderr).await;
    stderr.clear();
    let mut result = match result {
        Ok(result) => result,
        Err(error) => {
            let failed = CommandResult::new("failed", format!("{error:#}"), Exit::Failed);
            let _ = output.end(&failed);
            return Err(error);
        }
    };
    let (reason, found) = match end.get() {
        Some(WatchEnd::Ended(reason, found)) => (Some(*reason), found.as_deref().cloned()),
        Some(WatchEnd::Lost | WatchEnd::Rejected) | None => (None, None),
    };
    if reason.is_none() {
        // The search continues, so it must not be resumed.
        result.cursor = None;
        result.how_to_resume = match end.get() {
            Some(WatchEnd::Rejected) => None,
            Some(WatchEnd::Lost) => Some(format!(
                "the server resumes the operation when it runs again; watch it then with: {again}"
            )),
            _ => Some(format!("watch it again with: {again}")),
        };
        if result.how == "stopped" {
            let why = result.why.unwrap_or_default();
            result.why = Some(format!("{why}; the operation continues"));
        }
    }
    let best = output.best_row();
    let nearest = best.as_deref().ok_or("no candidate so far");
    report(&result, Some(nearest), &stderr);
    let printed = output.end(&result);
    if result.exit != Exit::Failed {
        printed?;
    }
    Ok(Watched {
        exit: result.exit,
        reason,
        found,
    })
}

/// Connects to the server, and returns what it knows about the operation; `None` if it has none.
/// Waits for a server that is stopping or starting.
async fn open(
    request: Arc<WatchRequest>,
    stderr: Arc<Stderr>,
) -> Result<Option<(Connection, SearchMetadata)>> {
    let server = &request.server;
    let began = Instant::now();
    let mut is_said = false;
    let mut left = request.connect_timeout;
    loop {
        let connection = connect(&request, left, &stderr).await?;
        let get = Request::new(GetOperationRequest {
            name: request.name.clone(),
        });
        let mut client = OperationsClient::new(connection.channel());
        let options = CallOptions::new().timeout(ANSWER_TIMEOUT);
        let call = Call::start(get, options, |get| async move {
            client.get_operation(get).await
        });
        let status = match call.await {
            Ok(operation) => {
                let metadata = operation.get_ref().search_metadata();
                let metadata = metadata.context("invalid answer from the server: no metadata")?;
                return Ok(Some((connection, metadata)));
            }
            Err(status) => status,
        };
        if Details::of(&status).has(Reason::OperationNotFound) {
            return Ok(None);
        }
        let may_return = is_restarting(&status) || is_lost(&status);
        if !may_return || began.elapsed() >= request.connect_timeout {
            return Err(failure(&status, server));
        }
        if !is_said {
            stderr.say(format_args!(
                "waiting for the server at {server}: {}",
                as_text(status.message())
            ));
            is_said = true;
        }
        sleep(RETRY_PAUSE).await;
        left = request.connect_timeout.saturating_sub(began.elapsed());
    }
}

async fn connect(request: &WatchRequest, timeout: Duration, stderr: &Stderr) -> Result<Connection> {
    let server = request.connection.address(&request.server);
    let options = (&request.connection).into();
    Connection::open(&server, &options, timeout, timeout, |note| stderr.say(note)).await
}

fn failure(status: &Status, server: &ServerAddress) -> anyhow::Error {
    let message = as_text(status.message());
    match status.code() {
        Code::Unimplemented => anyhow!("the server at {server} supports no operations"),
        _ => {
            anyhow!(advice(status, server).unwrap_or_else(|| format!(
                "the server at {server} rejected the request: {message}"
            )))
        }
    }
}

/// Why a watch has ended, unless this command ended it.
enum WatchEnd {
    /// The operation has ended, and what it found.
    Ended(EndReason, Option<Box<Finding>>),
    /// The server cannot be reached.
    Lost,
    /// The server rejected the call, or its answer was not valid.
    Rejected,
}

/// The events of an operation, across lost connections and restarts of the server.
struct OperationSource {
    request: Arc<WatchRequest>,
    connection: Connection,
    query: Query,
    call: StreamingCall<WatchOperationResponse>,
    /// Index of the first secret that was not reported yet.
    next: Index,
    /// The frontier that the server reported last.
    frontier: Index,
    answer: Option<Finding>,
    ended: Option<SearchEnded>,
    /// Set when the watch has ended.
    end: Arc<OnceLock<WatchEnd>>,
    /// The latest state in which the server reported the operation.
    state: SearchState,
    /// Asks the server why the operation is queued or paused.
    asking: Option<Pin<Box<dyn Future<Output = Option<String>>>>>,
    /// What was said last about that.
    said: String,
    reconnecting: Option<Pin<Box<dyn Future<Output = Result<Connection>>>>>,
    /// When the connection was lost.
    lost: Option<Instant>,
    stop: Arc<Stop>,
    began: Instant,
    resumes_at: String,
    stderr: Arc<Stderr>,
}

struct Stop {
    is_requested: CancellationToken,
    canceller: Mutex<Canceller>,
}

impl Stop {
    fn canceller(&self) -> MutexGuard<'_, Canceller> {
        self.canceller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(
    connection: &Connection,
    name: &str,
    from: Index,
) -> StreamingCall<WatchOperationResponse> {
    let request = Request::new(WatchOperationRequest {
        name: name.to_owned(),
        from_index: from,
        progress_interval: prost_types::Duration::try_from(REDRAW_EVERY).ok(),
    });
    let mut client = FinderClient::new(connection.channel());
    StreamingCall::start(request, CallOptions::new(), |request| async move {
        client.watch_operation(request).await
    })
}

impl OperationSource {
    fn new(
        request: Arc<WatchRequest>,
        connection: Connection,
        query: Query,
        frontier: Index,
        end: Arc<OnceLock<WatchEnd>>,
        stderr: Arc<Stderr>,
    ) -> OperationSource {
        let call = watch(&connection, &request.name, query.start());
        let stop = Stop {
            is_requested: CancellationToken::new(),
            canceller: Mutex::new(call.canceller()),
        };
        let server = request.connection.address(&request.server);
        OperationSource {
            resumes_at: format!("--detach {}", request.connection.flags(&server)),
            next: query.start(),
            frontier,
            request,
            connection,
            query,
            call,
            answer: None,
            ended: None,
            end,
            state: SearchState::Running,
            asking: None,
            said: String::new(),
            reconnecting: None,
            lost: None,
            stop: Arc::new(stop),
            began: Instant::now(),
            stderr,
        }
    }

    fn read(&mut self, response: WatchOperationResponse) -> Result<Option<SearchEvent>> {
        match response.event.and_then(|event| event.event) {
            Some(search_event::Event::Candidate(candidate)) => self.candidate(&candidate),
            Some(search_event::Event::Progress(progress)) => {
                self.lost = None;
                self.frontier = self.frontier.max(progress.frontier);
                if self.state != progress.state() {
                    self.state = progress.state();
                    self.asking = (self.state != SearchState::Running).then(|| self.ask());
                }
                Ok(None)
            }
            Some(search_event::Event::Ended(ended)) => {
                self.frontier = self.frontier.max(ended.frontier);
                self.ended = Some(ended);
                Ok(None)
            }
            // The start of the stream, and events of later versions.
            _ => Ok(None),
        }
    }

    fn candidate(&mut self, candidate: &v1::Candidate) -> Result<Option<SearchEvent>> {
        let (secret, hashed_name) = (&candidate.secret, &candidate.hashed_name);
        let (finding, index) = Finding::checked(secret, hashed_name, &self.query)?;
        let is_ideal = finding.distance <= self.query.ideal_distance().get();
        // An answer that an agent of a fleet has hidden at first comes after what follows it, and
        // again if the connection was lost.
        if is_ideal && (self.answer.as_ref()).is_some_and(|answer| answer.secret == finding.secret)
        {
            return Ok(None);
        }
        let is_late = is_ideal && index >= self.query.start();
        if self.answer.is_some() || (index < self.next && !is_late) {
            bail!(
                "invalid answer from the server: {} is out of order",
                finding.hashed_name
            );
        }
        self.next = self.next.max(index.saturating_add(1));
        self.frontier = self.frontier.max(self.next);
        if is_ideal {
            self.answer = Some(finding);
            return Ok(None);
        }
        Ok(Some(SearchEvent::Candidate(finding)))
    }

    /// Returns the end of the operation, as the server reported it.
    fn end_of_operation(&mut self, ended: &SearchEnded) -> Result<SearchEnd> {
        let reason = ended.reason();
        if reason == EndReason::Found {
            let answer = self.answer.take();
            let answer = answer.context("invalid answer: no secret was sent")?;
            let _ = self
                .end
                .set(WatchEnd::Ended(reason, Some(Box::new(answer.clone()))));
            return Ok(SearchEnd::Found(answer));
        }
        let _ = self.end.set(WatchEnd::Ended(reason, None));
        if reason == EndReason::KeyspaceExhausted {
            return Ok(SearchEnd::Exhausted);
        }
        let cursor: Cursor = ended
            .cursor
            .parse()
            .context("invalid cursor from the server")?;
        ensure!(
            cursor.is_of(&self.query),
            "the server sent the cursor of another search"
        );
        let message = as_text(&ended.message);
        let because = match message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        let why = match reason {
            EndReason::HashBudgetSpent => {
                format!("hash budget spent after {}", hashes(ended.hashes))
            }
            EndReason::CancelledByClient => {
                format!("the operation was cancelled by its client{because}")
            }
            EndReason::CancelledByOperator => {
                format!("the operation was cancelled by an operator of the server{because}")
            }
            EndReason::KeyRevoked => {
                "the operation was cancelled because its API key was revoked".to_owned()
            }
            EndReason::TooManyCandidates => format!("the operation has ended: {message}"),
            _ => {
                let why = format!("the operation failed: {message}");
                return Ok(SearchEnd::Failed(why, cursor));
            }
        };
        Ok(SearchEnd::Limit(why, cursor))
    }

    /// Handles the end of the call. Returns the end to report; `None` if another call will
    /// continue.
    fn call_ended(&mut self, status: &Status) -> Option<SearchEnd> {
        if let Some(ended) = self.ended.take() {
            let end = self.end_of_operation(&ended);
            return Some(end.unwrap_or_else(|error| self.rejected(format!("{error:#}"))));
        }
        if self.call.cancelled() {
            return Some(SearchEnd::Stopped(Cursor::new(&self.query, self.frontier)));
        }
        let details = Details::of(status);
        if details.has(Reason::TooManyWatches) {
            // Other commands of this client watch, too. This one waits until one of them ends.
            self.say_once(format!("waiting: {}", as_text(status.message())));
            self.reconnect_after(RETRY_PAUSE);
            return None;
        }
        let is_restarting = is_restarting(status);
        if is_lost(status) || is_restarting || status.code() == Code::Ok {
            let since = *self.lost.get_or_insert_with(|| {
                self.stderr.say(format_args!(
                    "lost the connection to the server at {}; reconnecting",
                    self.request.server
                ));
                Instant::now()
            });
            if since.elapsed() < self.request.connect_timeout {
                let pause = if is_restarting {
                    RETRY_PAUSE
                } else {
                    RETRY_PAUSE / 4
                };
                self.reconnect_after(pause);
                return None;
            }
            let _ = self.end.set(WatchEnd::Lost);
        }
        Some(self.rejected(format!("{:#}", failure(status, &self.request.server))))
    }

    fn rejected(&self, why: String) -> SearchEnd {
        let _ = self.end.set(WatchEnd::Rejected);
        SearchEnd::Failed(why, Cursor::new(&self.query, self.frontier))
    }

    fn reconnect_after(&mut self, pause: Duration) {
        let (request, stderr) = (Arc::clone(&self.request), Arc::clone(&self.stderr));
        self.reconnecting = Some(Box::pin(async move {
            sleep(pause).await;
            connect(&request, request.connect_timeout, &stderr).await
        }));
    }

    /// Asks the server why the operation is queued or paused. The result is `None` if it is neither
    /// any more, or the server does not answer.
    fn ask(&self) -> Pin<Box<dyn Future<Output = Option<String>>>> {
        let mut client = OperationsClient::new(self.connection.channel());
        let get = Request::new(GetOperationRequest {
            name: self.request.name.clone(),
        });
        Box::pin(async move {
            let options = CallOptions::new().timeout(ANSWER_TIMEOUT);
            let call = Call::start(get, options, |get| async move {
                client.get_operation(get).await
            });
            let operation = call.await.ok()?.into_inner();
            let metadata = operation.search_metadata().ok()?;
            let state = match metadata.state() {
                OperationState::Queued => "queued",
                OperationState::Paused => "paused",
                _ => return None,
            };
            let why = as_text(&metadata.state_message);
            Some(format!("the operation is {state}: {why}"))
        })
    }

    fn say_once(&mut self, text: String) {
        if self.said != text {
            self.stderr.say(&text);
            self.said = text;
        }
    }

    /// Replaces a lost connection, and calls again. Returns the end if that fails.
    async fn reconnect(&mut self) -> Option<SearchEnd> {
        let reconnecting = self.reconnecting.as_mut()?;
        let connection = tokio::select! {
            biased;
            () = self.stop.is_requested.cancelled() => {
                return Some(SearchEnd::Stopped(Cursor::new(&self.query, self.frontier)));
            }
            connection = reconnecting => connection,
        };
        self.reconnecting = None;
        match connection {
            Ok(connection) => self.connection = connection,
            Err(error) => {
                let _ = self.end.set(WatchEnd::Lost);
                return Some(self.rejected(format!("{error:#}")));
            }
        }
        // The lock is held throughout, as for a search.
        let mut canceller = self.stop.canceller();
        self.call = watch(&self.connection, &self.request.name, self.next);
        *canceller = self.call.canceller();
        drop(canceller);
        if self.stop.is_requested.is_cancelled() {
            self.stop.canceller().cancel();
        }
        None
    }
}

impl Source for OperationSource {
    async fn next(&mut self) -> Result<SearchEvent> {
        loop {
            if let Some(end) = self.reconnect().await {
                self.reconnecting = None;
                return Ok(SearchEvent::Ended(end));
            }
            let asking = self.asking.as_mut();
            let message = tokio::select! {
                answer = async { asking?.await }, if asking.is_some() => {
                    self.asking = None;
                    if let Some(text) = answer {
                        self.say_once(text);
                    }
                    continue;
                }
                message = self.call.message() => message,
            };
            let reported = match message {
                Ok(Some(response)) => self.read(response).unwrap_or_else(|wrong| {
                    Some(SearchEvent::Ended(self.rejected(format!("{wrong:#}"))))
                }),
                Ok(None) => self.call_ended(&Status::ok("")).map(SearchEvent::Ended),
                Err(status) => self.call_ended(&status).map(SearchEvent::Ended),
            };
            if let Some(event) = reported {
                return Ok(event);
            }
        }
    }

    fn stopper(&self) -> Stopper {
        let stop = Arc::clone(&self.stop);
        Box::new(move || {
            stop.is_requested.cancel();
            stop.canceller().cancel();
        })
    }

    fn frontier(&mut self) -> Option<Index> {
        Some(self.frontier)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn summary(&self) -> Option<String> {
        let tried = self.frontier - self.query.start();
        Some(format!(
            "{} (operation at {})",
            hashes(tried),
            self.request.server
        ))
    }

    fn resumes_at(&self) -> Option<&str> {
        Some(&self.resumes_at)
    }

    async fn close(self) {
        drop(self.call);
        self.connection.close().await;
    }
}

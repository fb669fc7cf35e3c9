//! A search at a server: through `hashfinder.v1` or, if the server does not offer that, through the
//! reference contract.

use std::{
    num::NonZeroU64,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use hashfinder_client::{Connection, ServerAddress};
use hashfinder_proto::{
    Details, Reason,
    v1::{
        self, EndReason, SearchEnded, SearchRequest, finder_client::FinderClient, search_event,
        search_request,
    },
};
use hashfinder_search::{Cursor, Index, Keyspace, Query, Spelling};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_cancel::{CallOptions, Canceller, StreamingCall};

use super::{
    arguments::FindArguments,
    call_end::{is_lost, search_end},
    finding::Finding,
    progress::REDRAW_EVERY,
    rate::{hashes, summarize},
    reference::ReferenceSearch,
    source::{SearchEnd, SearchEvent, Source, Stopper},
    status::Status as Stderr,
    stop::TimeLimit,
};
use crate::terminal::as_text;

/// Pause before another connection attempt if the last connection was lost without progress.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A search at a server, by the contract that the server offers.
pub(super) enum RemoteSearch {
    Finder(Box<FinderSearch>),
    Reference(Box<ReferenceSearch>),
}

impl RemoteSearch {
    /// Connects, waits for a server that does not answer yet, and begins a search that ends with
    /// the last of `wanted` answers.
    ///
    /// The search enforces the limit, but connecting does not. Dropping the future cancels the
    /// attempt to connect.
    ///
    /// # Errors
    ///
    /// If no server answers, or if its contract does not support an option that was given.
    pub(super) async fn start(
        server: &ServerAddress,
        query: &Query,
        wanted: u64,
        arguments: &Arc<FindArguments>,
        limit: Option<TimeLimit>,
        stderr: &Arc<Stderr>,
    ) -> Result<RemoteSearch> {
        let server = &arguments.connection.address(server);
        let connecting = connect(
            server.clone(),
            Arc::clone(arguments),
            limit,
            Arc::clone(stderr),
        );
        let connection = connecting.await?;
        let began = Instant::now();
        let options = limit.map_or(CallOptions::new(), |limit| {
            CallOptions::new().deadline(limit.deadline)
        });
        let budget = arguments.maximum_hashes;
        let mut call = search(&connection, query, query.start(), budget, options);
        let first = call.message().await;
        if let Err(status) = &first
            && status.code() == Code::Unimplemented
        {
            if let Some(option) = beyond_reference(query, arguments) {
                bail!(
                    "the server at {server} supports only the reference contract, which has no \
                     {option}; leave it out, or search without --server"
                );
            }
            let shows_candidates = arguments.show_inferior.is_some();
            let search =
                ReferenceSearch::start(connection, query, shows_candidates, options, server);
            return Ok(RemoteSearch::Reference(Box::new(search)));
        }
        let stop = Stop {
            is_requested: CancellationToken::new(),
            canceller: Mutex::new(call.canceller()),
        };
        Ok(RemoteSearch::Finder(Box::new(FinderSearch {
            query: query.clone(),
            wanted,
            budget,
            options,
            from: query.start(),
            progressed: query.start(),
            reported: query.start(),
            frontier: query.start(),
            call,
            first: Some(first),
            answer: None,
            ended: None,
            next: None,
            reconnecting: None,
            lost: None,
            stop: Arc::new(stop),
            began,
            server: server.clone(),
            resumes_at: arguments.connection.flags(server),
            connection,
            limit,
            arguments: Arc::clone(arguments),
            stderr: Arc::clone(stderr),
        })))
    }
}

/// Connects to a server. Waits up to `--connect-timeout` for a server that does not answer yet.
///
/// `limit` does not end the attempt: it is only for the note that says how long the command waits.
/// Dropping the future cancels the attempt.
async fn connect(
    server: ServerAddress,
    arguments: Arc<FindArguments>,
    limit: Option<TimeLimit>,
    stderr: Arc<Stderr>,
) -> Result<Connection> {
    let timeout = arguments.connect_timeout;
    let shown = limit.map_or(timeout, |limit| timeout.min(limit.left()));
    let say = |notice| stderr.say(notice);
    Connection::open(
        &server,
        &(&arguments.connection).into(),
        timeout,
        shown,
        say,
    )
    .await
}

/// Returns the first option that was given and that the reference contract does not support.
fn beyond_reference(query: &Query, arguments: &FindArguments) -> Option<&'static str> {
    let given = [
        (query.names().len() > 1, "more than one name"),
        (
            query.spelling() != Spelling::default(),
            "--algorithm, --encoding, --anchor or --case-sensitive",
        ),
        (
            *query.keyspace() != Keyspace::default(),
            "--secret-prefix, --secret-suffix or --alphabet",
        ),
        (arguments.resume.is_some(), "--resume"),
        (arguments.session.is_some(), "--session"),
        (arguments.count.get() > 1, "--count"),
        (arguments.maximum_hashes.is_some(), "--maximum-hashes"),
    ];
    given
        .into_iter()
        .find_map(|(given, option)| given.then_some(option))
}

/// Calls Search for the query, starting at the index `from`.
fn search(
    connection: &Connection,
    query: &Query,
    from: Index,
    budget: Option<NonZeroU64>,
    options: CallOptions,
) -> StreamingCall<v1::SearchEvent> {
    // A cursor contains the whole query. So the server searches for exactly the query with which
    // the cursors that it sends are compared.
    let cursor = Cursor::new(query, from).to_string();
    let request = Request::new(SearchRequest {
        from: Some(search_request::From::Cursor(cursor)),
        maximum_hashes: budget.map_or(0, NonZeroU64::get),
        progress_interval: prost_types::Duration::try_from(REDRAW_EVERY).ok(),
    });
    let mut client = FinderClient::new(connection.channel());
    StreamingCall::start(request, options, |request| async move {
        client.search(request).await
    })
}

/// A search through `hashfinder.v1`: a call for each answer that is wanted, and another call after
/// each lost connection.
pub(super) struct FinderSearch {
    /// The query of the command, with its start.
    query: Query,
    /// Number of answers that are still wanted.
    wanted: u64,
    /// The budget of all calls together.
    budget: Option<NonZeroU64>,
    options: CallOptions,
    /// Index at which the call under way began, and the last frontier that the call reported.
    from: Index,
    progressed: Index,
    /// According to the server's reports, every index below it was tried, and everything found
    /// there was reported.
    frontier: Index,
    /// Candidates below this index were reported before.
    reported: Index,
    /// The call under way. After an answer that is not the last, another begins at the next secret.
    call: StreamingCall<v1::SearchEvent>,
    /// The call's first message, until it is processed.
    first: Option<Result<Option<v1::SearchEvent>, Status>>,
    /// The answer, until its call has ended.
    answer: Option<Finding>,
    /// The end that the server reported, until the call's status arrives.
    ended: Option<SearchEnded>,
    /// Index at which to continue after an answer or a lost connection.
    next: Option<Index>,
    /// The attempt to replace a lost connection, while it is under way.
    reconnecting: Option<Pin<Box<dyn Future<Output = Result<Connection>>>>>,
    /// The frontier at which the connection was lost, and when it was first lost there.
    lost: Option<(Index, Instant)>,
    stop: Arc<Stop>,
    limit: Option<TimeLimit>,
    arguments: Arc<FindArguments>,
    began: Instant,
    server: ServerAddress,
    /// Flags that select this server when the search is resumed.
    resumes_at: String,
    connection: Connection,
    stderr: Arc<Stderr>,
}

/// State shared with stoppers: whether a stop was requested (no other call may then begin), and the
/// canceller of the call under way.
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

impl FinderSearch {
    /// Reads the server's event and checks it. Returns the event to report, if any.
    fn read(&mut self, event: v1::SearchEvent) -> Result<Option<SearchEvent>> {
        match event.event {
            Some(search_event::Event::Candidate(candidate)) => self.candidate(&candidate),
            Some(search_event::Event::Progress(progress)) if self.answer.is_none() => {
                let frontier = progress.frontier;
                // The frontier may be lower than `self.frontier`, because candidates beyond it may
                // have been reported before. `hashes` counts every index that was tried since the
                // call began.
                let possible = self.progressed..=self.end_of_search();
                ensure!(
                    possible.contains(&frontier) && frontier - self.from <= progress.hashes,
                    "invalid answer from the server: index {frontier} is out of range"
                );
                self.progressed = frontier;
                self.frontier = self.frontier.max(frontier);
                Ok(None)
            }
            Some(search_event::Event::Ended(ended)) => {
                self.ended = Some(ended);
                Ok(None)
            }
            // The start of the search, progress after the answer, and events of later versions.
            _ => Ok(None),
        }
    }

    fn candidate(&mut self, candidate: &v1::Candidate) -> Result<Option<SearchEvent>> {
        let (finding, index) =
            Finding::checked(&candidate.secret, &candidate.hashed_name, &self.query)?;
        let is_ideal = finding.distance <= self.query.ideal_distance().get();
        // An answer that an agent of a fleet has hidden at first comes after what follows it.
        let is_late = is_ideal && (self.from..self.frontier).contains(&index);
        let turn = self.frontier..self.end_of_search();
        if self.answer.is_some() || !(turn.contains(&index) || is_late) {
            // If this were accepted, a resumed search would miss candidates or report some twice.
            bail!(
                "invalid answer from the server: {} is out of order",
                finding.hashed_name
            );
        }
        if is_late {
            // The search for another answer begins after it. What is not an answer was reported.
            self.reported = self.reported.max(self.frontier);
        }
        if is_ideal {
            self.frontier = index;
            self.answer = Some(finding);
            return Ok(None);
        }
        self.frontier = index + 1;
        Ok((index >= self.reported).then_some(SearchEvent::Candidate(finding)))
    }

    /// Returns the event to report when the call has ended; `None` if the connection was lost and
    /// another call will continue the search.
    fn end(&mut self, status: &Status) -> Option<SearchEvent> {
        if let Some(finding) = self.answer.take() {
            self.frontier += 1;
            if self.wanted == 1 {
                return Some(SearchEvent::Ended(SearchEnd::Found(finding)));
            }
            self.wanted -= 1;
            self.next = Some(self.frontier);
            return Some(SearchEvent::Answer(finding));
        }
        let cancelled = self.call.cancelled();
        if is_lost(status) && !cancelled && self.ended.is_none() && self.reconnect_later() {
            self.next = Some(self.frontier);
            return None;
        }
        let ended = self.ended.take().unwrap_or_default();
        let details = Details::of(status);
        let cursor = ended.cursor.parse().ok();
        let cursor = cursor.or_else(|| details.cursor.as_ref()?.parse().ok());
        if let Some(cursor) = cursor.filter(|cursor| self.concerns(cursor)) {
            self.frontier = cursor.frontier();
        }
        let cursor = Cursor::new(&self.query, self.frontier);
        Some(SearchEvent::Ended(match ended.reason() {
            EndReason::HashBudgetSpent => self.budget_spent(),
            EndReason::KeyspaceExhausted => self.exhausted(),
            _ if details.has(Reason::KeyspaceExhausted) => self.exhausted(),
            // The search was cancelled through CancelSearch. The status says by which client, and
            // why.
            EndReason::CancelledByClient | EndReason::CancelledByOperator if !cancelled => {
                SearchEnd::Limit(as_text(status.message()), cursor)
            }
            _ => search_end(status, cancelled, cursor, &self.server),
        }))
    }

    /// Prepares another connection in place of a lost one, and returns true. Returns false, and
    /// prepares none, if the frontier has not advanced since the first loss and `--connect-timeout`
    /// has passed since then.
    fn reconnect_later(&mut self) -> bool {
        let now = Instant::now();
        let again = self.lost.filter(|(frontier, _)| *frontier == self.frontier);
        if again.is_some_and(|(_, since)| now - since >= self.arguments.connect_timeout) {
            return false;
        }
        if again.is_none() {
            self.stderr.say(format_args!(
                "lost the connection to the server at {}; reconnecting",
                self.server
            ));
            self.lost = Some((self.frontier, now));
        }
        let pause = again.map_or(Duration::ZERO, |_| RETRY_PAUSE);
        let (server, arguments) = (self.server.clone(), Arc::clone(&self.arguments));
        let (limit, stderr) = (self.limit, Arc::clone(&self.stderr));
        self.reconnecting = Some(Box::pin(async move {
            sleep(pause).await;
            connect(server, arguments, limit, stderr).await
        }));
        true
    }

    /// Returns the index after the last one that the search may try.
    fn end_of_search(&self) -> Index {
        let end = self.query.keyspace().end();
        let budget = self.budget.map_or(u64::MAX, NonZeroU64::get);
        end.min(self.query.start().saturating_add(budget))
    }

    fn exhausted(&mut self) -> SearchEnd {
        self.frontier = self.query.keyspace().end();
        SearchEnd::Exhausted
    }

    /// Returns whether a cursor is one of this search, and is neither behind the frontier nor
    /// beyond the end of the search.
    fn concerns(&self, cursor: &Cursor) -> bool {
        let frontier = cursor.frontier();
        cursor.is_of(&self.query) && (self.frontier..=self.end_of_search()).contains(&frontier)
    }

    fn budget_spent(&self) -> SearchEnd {
        let tried = self.frontier - self.query.start();
        let why = format!("hash budget spent after {}", hashes(tried));
        SearchEnd::Limit(why, Cursor::new(&self.query, self.frontier))
    }

    /// Begins another call, at the index `from`. Returns the end of the search instead if its
    /// budget is spent or a stop was requested.
    fn continue_from(&mut self, from: Index) -> Option<SearchEnd> {
        let mut left = None;
        if let Some(budget) = self.budget {
            left = NonZeroU64::new(budget.get().saturating_sub(from - self.query.start()));
            if left.is_none() {
                return Some(self.budget_spent());
            }
        }
        // The lock is held throughout. Otherwise a stopper could cancel the old call after the new
        // one has begun.
        let mut canceller = self.stop.canceller();
        if self.stop.is_requested.is_cancelled() {
            return Some(SearchEnd::Stopped(Cursor::new(&self.query, from)));
        }
        self.call = search(&self.connection, &self.query, from, left, self.options);
        (self.from, self.progressed) = (from, from);
        self.ended = None;
        *canceller = self.call.canceller();
        None
    }

    /// Waits until a lost connection is replaced, if that is under way. Returns the end of the
    /// search if the attempt fails, the search is stopped or the time limit is reached. Dropping
    /// the future loses nothing.
    async fn reconnect(&mut self) -> Option<SearchEnd> {
        let reconnecting = self.reconnecting.as_mut()?;
        let cursor = Cursor::new(&self.query, self.frontier);
        let connection = tokio::select! {
            biased;
            () = self.stop.is_requested.cancelled() => return Some(SearchEnd::Stopped(cursor)),
            connection = reconnecting => connection,
            limit = TimeLimit::passed(self.limit) => {
                return Some(SearchEnd::Limit(limit.to_string(), cursor));
            }
        };
        self.reconnecting = None;
        match connection {
            Ok(connection) => self.connection = connection,
            Err(error) => {
                let server = &self.server;
                let why = format!("lost the connection to the server at {server}: {error:#}");
                return Some(SearchEnd::Failed(why, cursor));
            }
        }
        None
    }
}

impl Source for FinderSearch {
    async fn next(&mut self) -> Result<SearchEvent> {
        loop {
            if let Some(end) = self.reconnect().await {
                self.reconnecting = None;
                return Ok(SearchEvent::Ended(end));
            }
            if let Some(from) = self.next.take()
                && let Some(end) = self.continue_from(from)
            {
                return Ok(SearchEvent::Ended(end));
            }
            let event = match self.first.take() {
                Some(first) => first,
                None => self.call.message().await,
            };
            let reported = match event {
                Ok(Some(event)) => self.read(event).unwrap_or_else(|wrong| {
                    // The frontier stays valid, because earlier events were checked.
                    let cursor = Cursor::new(&self.query, self.frontier);
                    Some(SearchEvent::Ended(SearchEnd::Failed(
                        wrong.to_string(),
                        cursor,
                    )))
                }),
                Ok(None) => self.end(&Status::ok("")),
                Err(status) => self.end(&status),
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
        // The server continues to search while this process is stopped.
        self.began.elapsed()
    }

    fn summary(&self) -> Option<String> {
        let tried = self.frontier - self.query.start();
        let server = format!("at {}", self.server);
        Some(summarize(tried, self.elapsed(), &server))
    }

    fn resumes_at(&self) -> Option<&str> {
        Some(&self.resumes_at)
    }

    async fn close(self) {
        drop(self.call);
        self.connection.close().await;
    }
}

//! The methods of `hashfinder.v1.Finder` for operations: StartSearch, WatchOperation and
//! ListCandidates.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hashfinder_operations::{Name, Operations, Phase, Record, Request, Snapshot, now};
use hashfinder_proto::{
    google::longrunning::Operation,
    v1::{
        Accepted, ListCandidatesRequest, ListCandidatesResponse, Progress, SearchEvent,
        SearchState, StartSearchRequest, WatchOperationRequest, WatchOperationResponse,
        search_event::Event,
    },
};
use hashfinder_search::{Index, Odds};
use prost::Message;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::Stream;
use tonic::Status;

use super::{
    estimates::{self, Estimates},
    events::OddsFuture,
    frames::padding,
    pace::{ODDS_PATIENCE, interval as requested},
    watch::Watch,
};
use crate::{
    errors::CallError,
    operations::LONGEST_KEEP,
    searches::{answer::FULL_FRAME, query, shared::Caller},
    services::operations::{Access, candidate, ended, operation},
};

/// Maximum length of a request id, in characters.
const REQUEST_ID_LEN: usize = 64;

/// Maximum length of a display name, in bytes.
const DISPLAY_NAME_LEN: usize = 128;

/// Minimum time for which an operation is kept after its end: enough for a client that waits for
/// it.
const SHORTEST_KEEP: Duration = Duration::from_secs(60);

/// Number of candidates that are read from the store at a time for a watching call.
const READ_AT_ONCE: usize = 64;

/// Number of events that wait for the reader of a watching call.
const QUEUE: usize = 64;

/// Interval at which a watching call checks whether the store works again.
const REOPENED_AFTER: Duration = Duration::from_secs(1);

/// Default and maximum number of candidates on a page.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// Starts an operation.
pub(super) async fn start(
    access: &Access,
    caller: &Caller,
    maximum_hashes: u64,
    request: &StartSearchRequest,
) -> Result<Operation, CallError> {
    let operations = access.operations()?;
    let client = access.owner(caller).client;
    let client = client.ok_or(CallError::OperationNeedsOwner)?;
    let query = query::of_start(request)?;
    let id = &request.request_id;
    if id.len() > REQUEST_ID_LEN || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!(
            "a request id has up to {REQUEST_ID_LEN} visible ASCII characters; use a UUID, for \
             example"
        );
        return Err(CallError::wrong("request_id", message));
    }
    let name = &request.display_name;
    if name.len() > DISPLAY_NAME_LEN || name.chars().any(char::is_control) {
        let message = format!(
            "a display name has up to {DISPLAY_NAME_LEN} bytes and no control characters, such as \
             line breaks"
        );
        return Err(CallError::wrong("display_name", message));
    }
    let keep = match request.keep {
        None => LONGEST_KEEP,
        Some(keep) => Duration::try_from(keep).unwrap_or_default(),
    };
    if !(SHORTEST_KEEP..=LONGEST_KEEP).contains(&keep) {
        let message = "an operation is kept for 1 minute to 30 days after its end";
        return Err(CallError::wrong("keep", message));
    }
    let budget = match request.maximum_hashes {
        0 => maximum_hashes,
        wished => wished.min(maximum_hashes),
    };
    let mut random = [0; 16];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| {
        CallError::StoreUnavailable("the system provides no random numbers".to_owned())
    })?;
    let record = Record::new(
        Name::new(u128::from_ne_bytes(random)),
        Request {
            client,
            request_id: id.clone(),
            display_name: name.clone(),
            query,
            maximum_hashes: request.maximum_hashes,
            keep,
        },
        budget,
        now(),
    );
    let new = record.name.clone();
    let snapshot = operations.start(record).await?;
    let record = &snapshot.record;
    // Otherwise the same request started it before.
    if record.name == new {
        tracing::info!(
            operation = %record.name,
            peer = caller.peer().map(tracing::field::display),
            client = %record.request.client,
            // Only the number of the names is logged: the names are private.
            names = record.query().names().len(),
            maximum_hashes = record.budget,
            "operation started"
        );
    }
    Ok(operation(&snapshot))
}

/// Returns a page of an operation's candidates.
pub(super) async fn list(
    access: &Access,
    caller: &Caller,
    request: &ListCandidatesRequest,
) -> Result<ListCandidatesResponse, CallError> {
    let size = match usize::try_from(request.page_size) {
        Ok(0) => PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
        Err(_) => {
            let message = format!(
                "page size {} is negative; give 0 or more",
                request.page_size
            );
            return Err(CallError::wrong("page_size", message));
        }
    };
    let from: Index = match &request.page_token[..] {
        "" => 0,
        token => token.parse().map_err(|_| {
            let message = "unknown page token; start with the first page";
            CallError::wrong("page_token", message)
        })?,
    };
    let found = access.find(caller, &request.name).await?;
    let record = &found.record;
    let _read = access.read(caller).await;
    let indices = access.operations()?.candidates(record, from, size + 1);
    let indices = indices.await?;
    let next = indices.get(size).map(Index::to_string);
    let late = match next {
        Some(_) => None,
        None => late_result(access.operations()?, record).await?,
    };
    let candidates = indices.into_iter().take(size).chain(late);
    Ok(ListCandidatesResponse {
        candidates: candidates
            .map(|index| candidate(record.query(), index))
            .collect(),
        next_page_token: next.unwrap_or_default(),
    })
}

/// Returns the result of an operation if it is not among the candidates. An agent of a fleet had
/// hidden it, so that it was found after candidates with higher indices.
async fn late_result(operations: &Operations, record: &Record) -> Result<Option<Index>, CallError> {
    let Some(found) = record.found() else {
        return Ok(None);
    };
    let at = operations.candidates(record, found, 1).await?;
    Ok((at.first() != Some(&found)).then_some(found))
}

/// The response stream of a WatchOperation.
pub(crate) struct OperationEvents {
    events: Receiver<Result<WatchOperationResponse, Status>>,
    _watch: Watch,
}

impl Stream for OperationEvents {
    type Item = Result<WatchOperationResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

/// Watches an operation. A task sends the events, until the stream is dropped.
pub(super) async fn watch(
    access: &Access,
    caller: &Caller,
    estimates: Arc<Estimates>,
    watch: Watch,
    request: &WatchOperationRequest,
) -> Result<OperationEvents, CallError> {
    let found = access.find(caller, &request.name).await?;
    let query = found.record.query().clone();
    let of_odds = caller.clone();
    let mut odds: OddsFuture = Box::pin(async move { estimates.odds(&of_odds, &query).await.ok() });
    let known = timeout(ODDS_PATIENCE, &mut odds).await.ok();
    let (sender, events) = mpsc::channel(QUEUE);
    let watcher = Watcher {
        operations: access.operations()?.clone(),
        name: found.record.name.clone(),
        next: request.from_index,
        read: None,
        odds: known.flatten(),
        last_progress: None,
        began: (Instant::now(), found.record.hashes()),
        sender,
    };
    let odds = known.is_none().then_some(odds);
    let time = requested(request.progress_interval.as_ref());
    let caller = caller.clone();
    tokio::spawn(async move {
        let sender = watcher.sender.clone();
        let error = tokio::select! {
            ended = watcher.run(found, odds, time) => ended.err(),
            () = sender.closed() => None,
            // Only a drain lets the stream send anything after a cancellation.
            _ = caller.context.cancelled() => Some(CallError::Draining(None)),
        };
        if let Some(error) = error {
            // The receiver is gone if the client is.
            let _ = sender.send(Err(Status::from(error))).await;
        }
    });
    Ok(OperationEvents {
        events,
        _watch: watch,
    })
}

/// Sends the events of an operation to one watching call.
struct Watcher {
    operations: Operations,
    name: Name,
    /// Index of the first secret to report.
    next: Index,
    /// Number of candidates of the operation when they were last read.
    read: Option<u64>,
    odds: Option<Odds>,
    /// When progress was last reported, and the number of hashes.
    last_progress: Option<(Instant, u64)>,
    /// When the call began, and the number of hashes.
    began: (Instant, u64),
    sender: Sender<Result<WatchOperationResponse, Status>>,
}

impl Watcher {
    /// Sends events until the operation has ended.
    async fn run(
        mut self,
        first: Snapshot,
        mut odds: Option<OddsFuture>,
        time: Duration,
    ) -> Result<(), CallError> {
        let accepted = Event::Accepted(Accepted {
            search_id: first.search.as_deref().unwrap_or_default().to_owned(),
            odds: self.odds.as_ref().map(estimates::odds),
            maximum_hashes: first.record.budget,
        });
        self.send(vec![accepted]).await?;
        let mut ticks = interval(time);
        // A slow reader receives the current state, and not the ones that it missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.operations.watch(&self.name);
        let mut checks = interval(REOPENED_AFTER);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let snapshot = match &mut changes {
                Some(changes) => changes.borrow_and_update().clone(),
                None => match self.operations.get(&self.name).await? {
                    Some(snapshot) => snapshot,
                    None => return Err(CallError::NoSuchOperation),
                },
            };
            self.send_candidates(&snapshot.record).await?;
            if snapshot.phase == Phase::Ended {
                let late = late_result(&self.operations, &snapshot.record).await?;
                let late = late.map(|index| candidate(snapshot.record.query(), index));
                self.send(late.into_iter().map(Event::Candidate).collect())
                    .await?;
                return self.send(vec![Event::Ended(ended(&snapshot.record))]).await;
            }
            let changed = async {
                match &mut changes {
                    Some(changes) => changes.changed().await.is_ok(),
                    None => {
                        // The store failed, and is being opened again.
                        checks.tick().await;
                        false
                    }
                }
            };
            let known = async {
                match &mut odds {
                    Some(odds) => odds.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                is_open = changed => {
                    if !is_open {
                        changes = self.operations.watch(&self.name);
                    }
                }
                known = known => {
                    self.odds = known;
                    odds = None;
                }
                _ = ticks.tick() => {
                    let progress = self.progress(&snapshot);
                    self.send(vec![Event::Progress(progress)]).await?;
                }
            }
        }
    }

    /// Sends the candidates that were saved since the last time.
    async fn send_candidates(&mut self, record: &Record) -> Result<(), CallError> {
        if self.read == Some(record.candidates) {
            return Ok(());
        }
        loop {
            let indices = self.operations.candidates(record, self.next, READ_AT_ONCE);
            let indices = indices.await?;
            let Some(last) = indices.last() else {
                break;
            };
            self.next = last.saturating_add(1);
            let is_last = indices.len() < READ_AT_ONCE;
            let events = indices.iter();
            let events = events.map(|index| Event::Candidate(candidate(record.query(), *index)));
            let events: Vec<Event> = events.collect();
            self.send(events).await?;
            if is_last {
                break;
            }
        }
        self.read = Some(record.candidates);
        Ok(())
    }

    /// Sends events that belong together, in frames that are not small.
    async fn send(&self, events: Vec<Event>) -> Result<(), CallError> {
        let mut events: Vec<SearchEvent> = events.into_iter().map(SearchEvent::from).collect();
        if events.len() < FULL_FRAME {
            let bytes = events.iter().map(Message::encoded_len).sum();
            if let Some(last) = events.last_mut() {
                last.padding = padding(bytes);
            }
        }
        for event in events {
            let response = WatchOperationResponse { event: Some(event) };
            // The receiver is gone if the client is; then this task ends.
            let _ = self.sender.send(Ok(response)).await;
        }
        Ok(())
    }

    fn progress(&mut self, snapshot: &Snapshot) -> Progress {
        let (now, hashes) = (Instant::now(), snapshot.record.hashes());
        let (last_at, last) = self
            .last_progress
            .replace((now, hashes))
            .unwrap_or(self.began);
        let rate = |(since, before): (Instant, u64)| {
            let seconds = now.saturating_duration_since(since).as_secs_f64();
            if seconds > 0.0 {
                hashes.saturating_sub(before) as f64 / seconds
            } else {
                0.0
            }
        };
        let chance = self.odds.as_ref();
        let chance = chance.map(|odds| estimates::bounds(&odds.chance_after(hashes)));
        let state = match snapshot.phase {
            Phase::Queued(_) => SearchState::Queued,
            Phase::Running => SearchState::Running,
            Phase::Paused(_) => SearchState::Parked,
            Phase::Ended => SearchState::Ended,
        };
        Progress {
            hashes,
            hashes_per_second: rate((last_at, last)),
            average_hashes_per_second: rate(self.began),
            frontier: snapshot.record.checkpoint.frontier(),
            chance_by_now: chance,
            state: state.into(),
        }
    }
}

//! The operations of a fleet. They are saved at the broker, the leader runs them, and every server
//! serves them.
//!
//! Each server has a [`replica`] of the saved operations, which answers reads. Requests that change
//! something go to the leader. When a server becomes the leader, it opens the bucket as a store of
//! `hashfinder-operations`, and continues what its predecessor has saved.

mod bucket;
mod image;
mod replica;
mod store;
mod values;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use async_nats::{Message, RequestErrorKind, Subject, Subscriber};
use hashfinder_fleet::Term;
use hashfinder_operations::{
    Command, Error, Health, Host, Limits, Metrics, Name, OpenReader, Operations, Pace, Phase,
    Replied, Reply, StoreOptions,
};
use hashfinder_proto::fleet::v1 as pb;
use tokio::{
    runtime::Handle,
    sync::{
        Semaphore,
        mpsc::{self, UnboundedReceiver},
    },
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::StreamExt;

use self::{
    replica::{Replica, ReplicaReader},
    store::FleetStore,
};
use crate::{broker::Broker, fleet::Fleet, wire};

/// Most candidates of an operation: their indices have to fit into one value of the bucket, of at
/// most a megabyte.
const MOST_CANDIDATES: u64 = 50_000;

/// How often progress is saved at a broker, and for how long agents work without that. When brokers
/// elect a new leader of the bucket's stream, which takes up to seven seconds, nothing pauses.
const PACE: Pace = Pace {
    save_every: Duration::from_secs(1),
    pause_after: Duration::from_secs(10),
    slow: "the fleet's broker is slow",
};

/// Time that the leader has to reply to a request before it is repeated.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Time after which a request fails. An election takes up to four seconds, and the broker may have
/// to elect, too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// Time after which a request fails without a connection. A broker that is restarted takes a second
/// or two.
const AWAY_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// Maximum number of requests that the leader handles at a time. Further ones are rejected as
/// unavailable.
const REQUESTS_AT_ONCE: usize = 1000;

/// Interval of checks whether operations have begun to wait or to run.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// Interval at which the leader says which operations wait, even if nothing has changed.
const PHASES_EVERY: Duration = Duration::from_secs(1);

/// Time without such a message after which the fleet counts as being without a leader.
const SILENT_AFTER: Duration = Duration::from_secs(4);

/// Why operations do not run yet when a leader begins.
const LOADING: &str = "the fleet's leader is loading it";

/// Maximum number of operations in such a message. Others are shown as running.
const MOST_WAITING: usize = 4096;

impl Fleet {
    /// Returns the operations of the fleet. `host` makes what runs their searches, each time when
    /// this server becomes the leader. Call this once.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    ///
    /// # Panics
    ///
    /// If this is called outside of a tokio runtime.
    pub fn operations<H: Host + 'static>(
        &self,
        limits: Limits,
        host: impl Fn() -> H + Clone + Send + Sync + 'static,
    ) -> io::Result<Operations> {
        let replica = Arc::new(Replica::new());
        let (commands, to_do) = mpsc::unbounded_channel();
        let runtime = Handle::current();
        let commands = move |command| commands.send(command).is_ok();
        let read = reader(Arc::clone(&replica), runtime.clone());
        let (operations, relay) = Operations::elsewhere(commands, read)?;
        replica.set_relay(Some(relay));
        let (of_store, server) = (Arc::clone(&replica), self.id());
        let leads = self.leads();
        let begin = move |term: Term| {
            let (replica, runtime) = (Arc::clone(&of_store), runtime.clone());
            let read = reader(Arc::clone(&of_store), runtime.clone());
            let (server, leads) = (Arc::clone(&server), leads.clone());
            let open = move || -> Result<Box<dyn hashfinder_operations::Store>, _> {
                let (runtime, replica) = (runtime.clone(), Arc::clone(&replica));
                let (leads, limits) = (leads.clone(), limits.of_client);
                let store = FleetStore::open(runtime, replica, &server, term, leads, limits)?;
                Ok(Box::new(store))
            };
            let store = StoreOptions {
                place: "the fleet's broker".to_owned(),
                pace: PACE,
                open: Box::new(open),
                read,
            };
            let candidates = limits.candidates.min(MOST_CANDIDATES);
            Operations::on_store(store, candidates, host.clone())
        };
        let task = Task {
            fleet: self.clone(),
            replica,
            begin: Box::new(begin),
            led: None,
            closing: JoinSet::new(),
            requests: JoinSet::new(),
            room: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
            is_draining: false,
            last_phases: None,
            heard_phases: None,
        };
        tokio::spawn(task.run(to_do));
        Ok(operations)
    }
}

/// Returns what opens a reader of a server's copy of the saved operations.
fn reader(replica: Arc<Replica>, runtime: Handle) -> OpenReader {
    Box::new(move || {
        let reader = ReplicaReader::new(Arc::clone(&replica), runtime.clone());
        Ok(Box::new(reader))
    })
}

/// Starts the operations that this server runs as the leader of a term.
type Begin = Box<dyn Fn(Term) -> io::Result<Operations> + Send>;

/// The task of a server that passes on commands, and runs the operations while it leads.
struct Task {
    fleet: Fleet,
    replica: Arc<Replica>,
    begin: Begin,
    led: Option<Led>,
    /// Operations of an earlier term that are being closed.
    closing: JoinSet<()>,
    /// Requests that are being passed on or handled.
    requests: JoinSet<()>,
    room: Arc<Semaphore>,
    is_draining: bool,
    /// The operations that waited at the last message about them, and when it was sent.
    last_phases: Option<(Instant, Vec<(Name, Phase)>)>,
    /// When the last message about them came, and the number of its term.
    heard_phases: Option<(Instant, u64)>,
}

/// The operations of the fleet, at the leader.
struct Led {
    term: Term,
    operations: Operations,
    requests: Subscriber,
}

impl Task {
    /// Passes on commands until the operations are closed.
    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let broker = broker_of(&self.fleet, &self.replica, &mut commands).await;
        if let Some(broker) = broker {
            self.serve(&mut commands, &broker).await;
        }
        // Now the operations are closed.
        self.replica.set_relay(None);
    }

    async fn serve(&mut self, commands: &mut UnboundedReceiver<Command>, broker: &Broker) {
        let phases = broker.client.subscribe(broker.subject("phases")).await;
        let Ok(mut phases) = phases else { return };
        let mut leads = self.fleet.leads();
        leads.mark_changed();
        let (of_follow, to_follow) = (Arc::clone(&self.replica), broker.clone());
        let mut follow = JoinSet::new();
        follow.spawn(async move { of_follow.follow(&to_follow).await });
        let mut checks = interval(CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Close) => break,
                    Some(Command::Drain(reply)) => {
                        self.is_draining = true;
                        self.step_down();
                        while self.closing.join_next().await.is_some() {}
                        // The next leader resumes the operations, while this server ends its calls.
                        self.fleet.leave().await;
                        let _ = reply.send(Ok(Replied::Done));
                    }
                    Some(command) => self.pass_on(command, broker),
                },
                changed = leads.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let term = *leads.borrow_and_update();
                    self.lead(term, broker).await;
                }
                Some(_) = self.closing.join_next(), if !self.closing.is_empty() => {
                    let term = *leads.borrow();
                    self.lead(term, broker).await;
                }
                Some(request) = next(&mut self.led) => self.handle(request, broker),
                Some(message) = phases.next() => self.receive_phases(&message),
                Some(_) = self.requests.join_next(), if !self.requests.is_empty() => {}
                _ = checks.tick() => {
                    // If an earlier attempt to begin has failed.
                    let term = *leads.borrow();
                    self.lead(term, broker).await;
                    self.publish_phases(broker);
                    let is_silent =
                        self.heard_phases.is_none_or(|(at, _)| at.elapsed() > SILENT_AFTER);
                    if is_silent {
                        self.replica.set_phases(None);
                    }
                    self.show_metrics(broker);
                }
            }
        }
        self.step_down();
        while self.closing.join_next().await.is_some() {}
    }

    fn show_metrics(&self, broker: &Broker) {
        let unavailable = |why: &str| Metrics::new(Health::Unavailable(why.into()));
        self.replica
            .show(match (&self.led, self.replica.problem()) {
                (Some(led), _) => led.operations.metrics(),
                (None, Some(problem)) => unavailable(&problem),
                (None, None) if self.replica.bucket().is_some() => Metrics::new(Health::Working),
                (None, None) if broker.is_connected() => Metrics::new(Health::Loading),
                (None, None) => unavailable("the connection to the fleet's broker is lost"),
            });
    }

    /// Begins to run the operations if this server leads, and stops if it does not.
    async fn lead(&mut self, term: Option<Term>, broker: &Broker) {
        let led = self.led.as_ref();
        // After a panic, they begin again.
        let led = led.filter(|led| !led.operations.is_broken());
        if led.map(|led| led.term) == term {
            return;
        }
        self.step_down();
        let Some(term) = term.filter(|_| !self.is_draining) else {
            return;
        };
        if !self.closing.is_empty() {
            // Their last progress is being saved.
            return;
        }
        let requests = broker.client.subscribe(broker.subject("operation"));
        let Ok(Ok(requests)) = timeout(REPLY_TIMEOUT, requests).await else {
            return;
        };
        match (self.begin)(term) {
            Ok(operations) => {
                self.led = Some(Led {
                    term,
                    operations,
                    requests,
                });
            }
            Err(error) => tracing::error!("this server cannot run the operations: {error}"),
        }
    }

    /// Stops the searches of the operations that this server runs, and saves their progress,
    /// unless another server leads already. Servers repeat the requests that arrive from now on.
    fn step_down(&mut self) {
        let Some(led) = self.led.take() else { return };
        self.last_phases = None;
        self.closing.spawn(async move {
            drop(led.requests);
            led.operations.close().await;
            drop(led.operations);
        });
    }

    /// Passes a command on to the leader.
    fn pass_on(&mut self, command: Command, broker: &Broker) {
        let request = match &command {
            Command::Start(record, _) => {
                pb::operation_request::Request::Start(values::operation(record, 0))
            }
            Command::Cancel(name, by, message, _) => {
                pb::operation_request::Request::Cancel(pb::CancelOperation {
                    id: name.id().to_owned(),
                    by: values::canceller(*by).into(),
                    message: message.clone(),
                })
            }
            Command::Delete(name, _) => {
                pb::operation_request::Request::Delete(name.id().to_owned())
            }
            Command::Drain(_) | Command::Close => return,
        };
        let request = pb::OperationRequest {
            request: Some(request),
        };
        let (broker, replica) = (broker.clone(), Arc::clone(&self.replica));
        self.requests.spawn(async move {
            let reply = ask(&broker, &replica, &request, &command).await;
            reply_to(command, reply);
        });
    }

    /// Handles a request of a server to the leader.
    fn handle(&mut self, request: Message, broker: &Broker) {
        let Some(led) = &self.led else { return };
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            let error = Error::Unavailable("too many requests are waiting; try again".into());
            reply_with(broker, request.reply, 0, Err(error));
            return;
        };
        let (operations, broker) = (led.operations.clone(), broker.clone());
        let replica = Arc::clone(&self.replica);
        self.requests.spawn(async move {
            let result = match wire::decode::<pb::OperationRequest>(&request.payload) {
                Ok(request) => carry_out(&operations, request).await,
                Err(error) => Err(Error::Unavailable(error.to_string().into())),
            };
            let revision = replica.image().seen();
            // Another server may have begun to lead, and may know better.
            let result = if replica.leads().await {
                result
            } else {
                Err(Error::Draining)
            };
            reply_with(&broker, request.reply, revision, result);
            drop((place, operations));
        });
    }

    /// Publishes which operations wait or are paused, if this server leads.
    fn publish_phases(&mut self, broker: &Broker) {
        let Some(led) = &self.led else { return };
        let mut waiting = match led.operations.metrics().health {
            Health::Working | Health::Full(_) => led.operations.waiting(),
            Health::Loading => self.replica.all_wait(&Phase::Queued(LOADING.into())),
            Health::Unavailable(why) | Health::Damaged(why) => {
                self.replica.all_wait(&Phase::Paused(why))
            }
        };
        waiting.sort_by(|a, b| a.0.cmp(&b.0));
        waiting.truncate(MOST_WAITING);
        if let Some((at, before)) = &self.last_phases
            && at.elapsed() < PHASES_EVERY
            && *before == waiting
        {
            return;
        }
        let message = pb::Phases {
            term: Some(wire::term(led.term)),
            waiting: waiting.iter().map(phase).collect(),
        };
        broker.publish("phases", wire::encode(&message));
        self.last_phases = Some((Instant::now(), waiting));
    }

    fn receive_phases(&mut self, message: &Message) {
        let Ok(message) = wire::decode::<pb::Phases>(&message.payload) else {
            return;
        };
        let term = wire::read_term(message.term).number;
        let is_old = |(at, latest): (Instant, u64)| term < latest && at.elapsed() < SILENT_AFTER;
        if self.heard_phases.is_some_and(is_old) {
            return;
        }
        self.heard_phases = Some((Instant::now(), term));
        let waiting = message.waiting.into_iter().filter_map(|waiting| {
            let name = values::name(&waiting.id).ok()?;
            let phase = match waiting.is_paused {
                true => Phase::Paused(waiting.why.into()),
                false => Phase::Queued(waiting.why.into()),
            };
            Some((name, phase))
        });
        let waiting: HashMap<Name, Phase> = waiting.collect();
        self.replica.set_phases(Some(waiting));
    }
}

/// Replies to a request of a server.
fn reply_with(
    broker: &Broker,
    to: Option<Subject>,
    revision: u64,
    result: Result<pb::operation_reply::Result, Error>,
) {
    let result =
        result.unwrap_or_else(|error| pb::operation_reply::Result::Error(values::error(&error)));
    let reply = pb::OperationReply {
        revision,
        result: Some(result),
    };
    if let Some(to) = to {
        broker.send(to, wire::encode(&reply));
    }
}

/// Waits for the connection. Returns `None` once the operations are closed.
async fn broker_of(
    fleet: &Fleet,
    replica: &Replica,
    commands: &mut UnboundedReceiver<Command>,
) -> Option<Broker> {
    let mut brokers = fleet.broker();
    loop {
        if let Some(broker) = brokers.borrow_and_update().clone() {
            return Some(broker);
        }
        tokio::select! {
            changed = brokers.changed() => changed.ok()?,
            command = commands.recv() => match command {
                None | Some(Command::Close) => return None,
                Some(command) => reply_to(command, Err(away())),
            },
            () = sleep(PACE.save_every) => {
                let health = Health::Unavailable("the fleet's broker cannot be reached".into());
                replica.show(Metrics::new(health));
            }
        }
    }
}

/// Writes what an operation does that is not being searched.
fn phase((name, phase): &(Name, Phase)) -> pb::Waiting {
    let (is_paused, why) = match phase {
        Phase::Paused(why) => (true, why.to_string()),
        Phase::Queued(why) => (false, why.to_string()),
        Phase::Running | Phase::Ended => (false, String::new()),
    };
    pb::Waiting {
        id: name.id().to_owned(),
        is_paused,
        why,
    }
}

/// Returns the next request to the leader; waits forever if this server does not lead.
async fn next(led: &mut Option<Led>) -> Option<Message> {
    match led {
        Some(led) => led.requests.next().await,
        None => std::future::pending().await,
    }
}

fn away() -> Error {
    Error::Unavailable("the fleet's broker cannot be reached".into())
}

/// Carries out a request of a server.
async fn carry_out(
    operations: &Operations,
    request: pb::OperationRequest,
) -> Result<pb::operation_reply::Result, Error> {
    use pb::{operation_reply::Result as Done, operation_request::Request};
    let invalid = |error: wire::Invalid| Error::Unavailable(error.to_string().into());
    match request.request {
        Some(Request::Start(saved)) => {
            let record = values::read_operation(saved).map_err(invalid)?;
            let name = record.name.clone();
            let snapshot = operations.start(record).await?;
            let started = &snapshot.record.name;
            Ok(match *started == name {
                true => Done::Started(true),
                false => Done::Existing(started.id().to_owned()),
            })
        }
        Some(Request::Cancel(cancel)) => {
            let name = values::name(&cancel.id).map_err(invalid)?;
            let by = values::read_canceller(cancel.by());
            let by = by
                .ok_or_else(|| Error::Unavailable("the request does not say who cancels".into()))?;
            operations.cancel(&name, by, cancel.message).await?;
            Ok(Done::Done(true))
        }
        Some(Request::Delete(id)) => {
            let name = values::name(&id).map_err(invalid)?;
            operations.delete(&name).await?;
            Ok(Done::Done(true))
        }
        None => Err(Error::Unavailable("the request is empty".into())),
    }
}

/// Sends a request to the leader. Repeats it until the leader replies, or for up to
/// [`REQUEST_TIMEOUT`]. Repeating a request whose reply was lost has no further effect.
async fn ask(
    broker: &Broker,
    replica: &Replica,
    request: &pb::OperationRequest,
    command: &Command,
) -> Reply {
    use pb::operation_reply::Result as Done;
    let begun = Instant::now();
    let mut why = away();
    let reply = loop {
        if begun.elapsed() >= REQUEST_TIMEOUT {
            return Err(why);
        }
        if !broker.is_connected() {
            if begun.elapsed() >= AWAY_TIMEOUT {
                return Err(away());
            }
            sleep(PAUSE).await;
            continue;
        }
        let subject = broker.subject("operation");
        let reply = broker.client.request(subject, wire::encode(request));
        match timeout(REPLY_TIMEOUT, reply).await {
            Ok(Ok(reply)) => match wire::decode::<pb::OperationReply>(&reply.payload) {
                Ok(reply) => match &reply.result {
                    // Another server is about to lead.
                    Some(Done::Error(error)) if values::read_error(error) == Error::Draining => {
                        why = Error::Unavailable("the fleet elects a leader".into());
                    }
                    _ => break reply,
                },
                Err(error) => why = Error::Unavailable(error.to_string().into()),
            },
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                why = Error::Unavailable("the fleet has no leader at the moment".into());
            }
            Ok(Err(_)) | Err(_) => {
                why = Error::Unavailable("the fleet's leader does not answer".into());
            }
        }
        sleep(PAUSE).await;
    };
    let name = match &command {
        Command::Start(record, _) => Some(&record.name),
        _ => None,
    };
    match (reply.result, name) {
        (Some(Done::Error(error)), _) => Err(values::read_error(&error)),
        (None, _) => Err(Error::Unavailable("the leader's reply is empty".into())),
        (Some(Done::Existing(id)), _) => {
            replica.reaches(reply.revision).await;
            let name = values::name(&id);
            name.map(Replied::Existing)
                .map_err(|error| Error::Unavailable(error.to_string().into()))
        }
        (Some(Done::Started(_) | Done::Done(_)), None) => {
            replica.reaches(reply.revision).await;
            Ok(Replied::Done)
        }
        (Some(Done::Started(_) | Done::Done(_)), Some(name)) => {
            replica.reaches(reply.revision).await;
            Ok(match replica.snapshot(name) {
                Some(snapshot) => Replied::Started(snapshot),
                None => Replied::Existing(name.clone()),
            })
        }
    }
}

fn reply_to(command: Command, reply: Reply) {
    match command {
        Command::Start(_, to) | Command::Cancel(_, _, _, to) | Command::Delete(_, to) => {
            // The receiver is gone if its call has ended.
            let _ = to.send(reply);
        }
        Command::Drain(to) => {
            let _ = to.send(Ok(Replied::Done));
        }
        Command::Close => {}
    }
}

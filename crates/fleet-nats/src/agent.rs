//! An agent: the threads of this machine, for a fleet.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::Message;
use bytes::Bytes;
use hashfinder_fleet::{Agent, AgentId, Command, Order, Orders, Report, Term, Work};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::{Crew, Kernel, QuerySet, Tried};
use hashfinder_system::threads::with_low_priority;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::StreamExt;

use crate::{
    broker::{Broker, BrokerOptions, ConnectError},
    wire,
};

/// Time between two checks of what is due.
const TICK: Duration = Duration::from_millis(100);

/// Time that a reply may take. One that is lost is not missed: the next message repeats all.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two questions for the leader.
const ASKS_EVERY: Duration = Duration::from_secs(1);

/// Number of sets of queries, and so of planned filters, that an agent keeps.
const MOST_SETS: usize = 16;

/// Time that an agent has to hand back its leases when it ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before another attempt to reach a broker.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// How to connect.
    pub broker: BrokerOptions,
    /// Name of this machine: the beginning of the agent's name.
    pub machine: String,
    /// Number of threads that search.
    pub workers: usize,
    /// The hash kernel.
    pub kernel: Kernel,
    /// Hashes of a fast kernel per second that all threads together compute.
    pub rate: f64,
    /// Version of the program, for people.
    pub version: &'static str,
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be part of the fleet.
    #[error(transparent)]
    Broker(#[from] ConnectError),
    /// The system does not start its threads.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The connection does not work.
    #[error("the connection to the broker does not work: {0}")]
    Connection(async_nats::Error),
}

/// Tries leases until `shutdown` is ready. Then hands back what is left of them, and returns.
///
/// It reconnects by itself, and looks for a new leader if the current one is silent. Dropping the
/// future ends the agent at once; the leader gives its leases to others after 3 seconds.
///
/// # Errors
///
/// If it cannot begin: an option, the broker or a file is wrong. A broker that cannot be reached is
/// tried again and again.
pub async fn run_agent(
    options: AgentOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let mut shutdown = pin!(shutdown);
    let id: AgentId = agent_id(&options.machine).into();
    let broker = loop {
        match Broker::connect(&options.broker, &format!("agent-{id}")).await {
            Ok(broker) => break broker,
            Err(error) if error.is_temporary() => tracing::warn!("{error}; trying again"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = sleep(RETRY_PAUSE) => {}
            () = &mut shutdown => return Ok(()),
        }
    };
    let (done, to_report) = mpsc::unbounded_channel();
    let report = move |tried: Tried| {
        // The receiver is dropped only when the agent ends.
        let _ = done.send(tried);
    };
    let (workers, kernel) = (options.workers, options.kernel);
    let crew = with_low_priority(move || Crew::start(workers, kernel, clock, report));
    let crew = crew.flatten().map_err(AgentError::Thread)?;
    let boot = SystemTime::now().duration_since(UNIX_EPOCH);
    let boot = boot.map_or(0, |time| time.as_millis() as u64);
    tracing::info!(
        agent = %id,
        workers = crew.workers(),
        kernel = options.kernel.name(),
        broker = %broker.address,
        pool = %broker.address.pool(),
        "ready"
    );
    let machine = Machine {
        agent: Agent::new(Arc::clone(&id), boot, options.rate, options.version.into()),
        id,
        broker,
        crew,
        sets: Vec::new(),
        requests: JoinSet::new(),
        asked: None,
        rejected: String::new(),
    };
    machine.run(to_report, shutdown).await
}

/// Returns a name that no other agent has.
fn agent_id(machine: &str) -> String {
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '_';
    let machine: String = machine.chars().filter(is_allowed).take(40).collect();
    format!("{machine}-{:06x}", fastrand::u32(..1 << 24))
}

/// The time since the system's start, including the time for which it was suspended.
fn clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

struct Machine {
    agent: Agent,
    id: AgentId,
    broker: Broker,
    crew: Crew,
    /// Sets of queries of this term, the latest one last.
    sets: Vec<(u64, QuerySet)>,
    requests: JoinSet<Reply>,
    /// When the leader was looked for.
    asked: Option<Duration>,
    /// Why the leader gives no leases, as it was logged last.
    rejected: String,
}

/// What has become of a request.
enum Reply {
    Orders(Box<Work>, Option<pb::Orders>),
    Leader(Term),
    /// The leader of this term has ended, or is slow.
    Lost,
}

impl Machine {
    async fn run(
        mut self,
        mut done: mpsc::UnboundedReceiver<Tried>,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), AgentError> {
        let subscribe = async |subject: String| {
            let subscriber = self.broker.client.subscribe(self.broker.subject(&subject));
            let subscriber = subscriber.await;
            subscriber.map_err(|error| AgentError::Connection(error.into()))
        };
        let mut terms = subscribe("term".to_owned()).await?;
        let mut wakes = subscribe("wake".to_owned()).await?;
        let mut recalls = subscribe(format!("recall.{}", self.id)).await?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_since = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => self.agent.tick(clock()),
                Some(message) = terms.next() => self.heard(&message),
                Some(_) = wakes.next() => self.agent.wake(),
                Some(message) = recalls.next() => self.recall(&message),
                Some(tried) = done.recv() => self.done(tried),
                Some(Ok(reply)) = self.requests.join_next(), if !self.requests.is_empty() =>
                    self.replied(reply),
                () = &mut shutdown, if draining_since.is_none() => {
                    tracing::info!("handing back what is left");
                    self.agent.drain();
                    draining_since = Some(clock());
                }
            }
            self.act();
            if let Some(since) = draining_since
                && (self.agent.is_drained() || clock().saturating_sub(since) >= DRAIN_TIMEOUT)
            {
                let _ = timeout(DRAIN_TIMEOUT, self.broker.client.flush()).await;
                return Ok(());
            }
        }
    }

    fn heard(&mut self, message: &Message) {
        if let Ok(beat) = wire::decode::<pb::Beat>(&message.payload) {
            self.follow(wire::read_beat(beat).term);
        }
    }

    fn follow(&mut self, term: Term) {
        let before = self.agent.term();
        self.agent.heard(term, clock());
        if self.agent.term() != before {
            self.sets.clear();
            tracing::info!(term = term.number, "following the leader");
        }
    }

    fn recall(&mut self, message: &Message) {
        if let Ok(recall) = wire::decode::<pb::Recall>(&message.payload)
            && wire::read_term(recall.term) == self.agent.term()
        {
            self.agent.recall(&recall.leases);
        }
    }

    fn done(&mut self, tried: Tried) {
        let was_idle = self.agent.is_idle();
        let report = Report {
            lease: tried.lease,
            tried: tried.tried,
            hits: tried.hits,
            took: tried.took,
            failed: tried.failed,
        };
        self.agent.done(report, clock());
        if self.agent.is_idle() && !was_idle {
            tracing::debug!("no lease is left");
        }
    }

    /// Does what the state of the agent requires.
    fn act(&mut self) {
        for command in self.agent.take_commands() {
            match command {
                Command::Try(order) => self.begin(&order),
                Command::Stop(lease) => self.crew.stop(lease),
            }
        }
        let now = clock();
        if !self.broker.is_connected() {
            return;
        }
        let has_leader = self.agent.term() != Term::default();
        if has_leader && self.agent.is_due(now) {
            self.speak(now);
        }
        let is_asked = |at: Duration| now.saturating_sub(at) < ASKS_EVERY;
        if self.agent.is_lost(now) && !self.asked.is_some_and(is_asked) {
            self.ask(now);
        }
    }

    fn begin(&mut self, order: &Order) {
        let (lease, range) = (order.lease, order.range.clone());
        let place = self.sets.iter().position(|(set, _)| *set == order.set);
        let Some(place) = place else {
            // It was dropped since the message that this order replies to.
            let report = Report {
                lease,
                tried: range.start,
                hits: Vec::new(),
                took: Duration::ZERO,
                failed: false,
            };
            self.agent.done(report, clock());
            return;
        };
        tracing::debug!(lease, "trying a lease");
        let used = self.sets.remove(place);
        self.crew
            .begin(lease, used.1.clone(), range, order.hit_limit);
        self.sets.push(used);
    }

    /// Sends the next message to the leader.
    fn speak(&mut self, now: Duration) {
        let work = self.agent.work(now);
        let knows = self.sets.iter().map(|(set, _)| *set).collect();
        let message = wire::encode(&wire::work(&work, knows));
        let subject = format!("{}.work.{}", work.term, self.id);
        let subject = self.broker.subject(&subject);
        let client = self.broker.client.clone();
        self.requests.spawn(async move {
            match timeout(REPLY_TIMEOUT, client.request(subject, message)).await {
                Ok(Ok(reply)) => {
                    let orders = wire::decode::<pb::Orders>(&reply.payload);
                    Reply::Orders(Box::new(work), orders.ok())
                }
                Ok(Err(_)) | Err(_) => Reply::Lost,
            }
        });
    }

    /// Looks for the leader.
    fn ask(&mut self, now: Duration) {
        self.asked = Some(now);
        let subject = self.broker.subject("any.leader");
        let client = self.broker.client.clone();
        self.requests.spawn(async move {
            match timeout(REPLY_TIMEOUT, client.request(subject, Bytes::new())).await {
                Ok(Ok(reply)) => match wire::decode::<pb::Beat>(&reply.payload) {
                    Ok(beat) => Reply::Leader(wire::read_beat(beat).term),
                    Err(_) => Reply::Lost,
                },
                Ok(Err(_)) | Err(_) => Reply::Lost,
            }
        });
    }

    fn replied(&mut self, reply: Reply) {
        match reply {
            Reply::Orders(work, Some(orders)) => {
                if orders.rejected != self.rejected {
                    if !orders.rejected.is_empty() {
                        tracing::error!("no leases: {}", orders.rejected);
                    }
                    self.rejected.clone_from(&orders.rejected);
                }
                match self.read(orders) {
                    Ok(orders) => self.agent.orders(&work, orders, clock()),
                    Err(error) => tracing::warn!("a message of the leader is wrong: {error}"),
                }
            }
            Reply::Leader(term) => self.follow(term),
            // The next leader makes itself known, or is looked for.
            Reply::Orders(_, None) | Reply::Lost => {}
        }
    }

    fn read(&mut self, orders: pb::Orders) -> Result<Orders, wire::Invalid> {
        let term = wire::read_term(orders.term);
        if term == self.agent.term() {
            for set in &orders.sets {
                let queries = wire::read_set(set)?;
                self.sets.retain(|(known, _)| *known != set.id);
                self.sets.push((set.id, queries));
            }
        }
        let mut leases = Vec::new();
        for lease in &orders.leases {
            leases.push(wire::read_lease(lease)?);
        }
        let is_used = |set: u64| leases.iter().any(|lease: &Order| lease.set == set);
        while self.sets.len() > MOST_SETS
            && let Some(place) = self.sets.iter().position(|(set, _)| !is_used(*set))
        {
            self.sets.remove(place);
        }
        Ok(Orders {
            term,
            leases,
            recalls: orders.recalls,
            over: orders.over,
        })
    }
}

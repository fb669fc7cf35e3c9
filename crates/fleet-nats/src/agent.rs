//! An agent: the threads of this machine, for a fleet.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use async_nats::Message;
use bytes::Bytes;
use hashfinder_fleet::{Agent, AgentId, Command, Orders, SILENT_AFTER, Task, Term, Work};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::{Crew, Kernel, Tried};
use hashfinder_system::threads::with_low_priority;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::StreamExt;

use crate::{
    broker::{Broker, BrokerOptions, ConnectError, Role},
    id::agent_id,
    wire,
};

/// Time between two checks of what is due.
const TICK: Duration = Duration::from_millis(100);

/// Timeout of a reply. A lost reply does no harm: the next message repeats everything.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two questions for the leader.
const ASKS_EVERY: Duration = Duration::from_secs(1);

/// Time that an agent has to hand back its leases when it ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before another attempt to reach a broker.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// How to connect.
    pub broker: BrokerOptions,
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
    let id: AgentId = agent_id(&options.broker.identity()?).into();
    let broker = tokio::select! {
        broker = connect(&options.broker, &id) => broker?,
        () = &mut shutdown => return Ok(()),
    };
    let (done, to_report) = mpsc::unbounded_channel();
    let report = move |tried: Tried| {
        // The receiver is dropped only when the agent ends.
        let _ = done.send(tried);
    };
    let (workers, kernel) = (options.workers, options.kernel);
    let crew = with_low_priority(move || Crew::start(workers, kernel, clock, report));
    let crew = crew.flatten().map_err(AgentError::Thread)?;
    tracing::info!(
        agent = %id,
        workers = crew.workers(),
        kernel = options.kernel.name(),
        broker = %broker.address,
        pool = %broker.address.pool(),
        "ready"
    );
    let machine = Machine {
        agent: Agent::new(Arc::clone(&id), options.rate, options.version.into()),
        id,
        broker,
        crew,
        requests: JoinSet::new(),
        asked: None,
        rejected: String::new(),
        began: clock(),
        shown: Activity::Idle,
    };
    machine.run(to_report, shutdown).await
}

/// Connects to the broker, however long that takes.
async fn connect(options: &BrokerOptions, id: &str) -> Result<Broker, ConnectError> {
    loop {
        match Broker::connect(options, Role::Agent(id)).await {
            Err(error) if error.is_temporary() => tracing::warn!("{error}; trying again"),
            connected => return connected,
        }
        sleep(RETRY_PAUSE).await;
    }
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
    requests: JoinSet<Reply>,
    /// When the leader was looked for.
    asked: Option<Duration>,
    /// Why the leader gives no leases, as it was logged last.
    rejected: String,
    /// When the agent began, and what was logged last of what it does.
    began: Duration,
    shown: Activity,
}

/// What an agent does, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Searching,
    /// The leader has no work for it.
    Idle,
    /// No leader answers.
    Leaderless,
}

/// What has become of a request.
enum Reply {
    Orders(Box<Work>, Option<pb::Orders>),
    Leader(Term),
    /// No reply has arrived in time.
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
        let mut notices = subscribe(format!("notice.{}", self.id)).await?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_since = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => self.agent.tick(clock()),
                Some(message) = terms.next() => self.heard(&message),
                Some(message) = notices.next() => self.notice(&message),
                Some(tried) = done.recv() => self.agent.done(tried, clock()),
                Some(Ok(reply)) = self.requests.join_next(), if !self.requests.is_empty() =>
                    self.replied(reply),
                () = &mut shutdown, if draining_since.is_none() => {
                    tracing::info!("returning unfinished leases");
                    self.agent.drain();
                    draining_since = Some(clock());
                }
            }
            self.act();
            self.show();
            if self.agent.is_draining() && draining_since.is_none() {
                tracing::info!("an operator ends this agent; returning unfinished leases");
                draining_since = Some(clock());
            }
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
        self.note_term(before);
    }

    fn notice(&mut self, message: &Message) {
        if let Ok(notice) = wire::decode::<pb::Notice>(&message.payload)
            && wire::read_term(notice.term) == self.agent.term()
        {
            self.agent.notice(&notice.recalls);
        }
    }

    /// Does what the state of the agent requires.
    fn act(&mut self) {
        for command in self.agent.take_commands() {
            match command {
                Command::Try(task) => {
                    tracing::debug!(task = task.id, "trying a lease");
                    let Task {
                        id,
                        set,
                        range,
                        hit_limit,
                    } = task;
                    self.crew.begin(id, set, range, hit_limit);
                }
                Command::Stop(task) => self.crew.stop(task),
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

    /// Logs what the agent does, if that has changed.
    fn show(&mut self) {
        let now = clock();
        let is_new = now.saturating_sub(self.began) < SILENT_AFTER;
        let activity = if self.agent.is_lost(now) && !is_new {
            Activity::Leaderless
        } else if self.agent.is_idle() {
            Activity::Idle
        } else {
            Activity::Searching
        };
        let before = std::mem::replace(&mut self.shown, activity);
        match (before, activity) {
            _ if before == activity => {}
            (_, Activity::Leaderless) => tracing::warn!("no leader answers; looking for one"),
            (Activity::Leaderless, Activity::Idle) => {
                tracing::info!("a leader answers; it has no work for this agent");
            }
            (Activity::Leaderless, Activity::Searching) => tracing::info!("a leader answers"),
            // These change often.
            (_, Activity::Idle) => tracing::debug!("no lease is left"),
            (_, Activity::Searching) => tracing::debug!("searching"),
        }
    }

    /// Sends the next message to the leader.
    fn speak(&mut self, now: Duration) {
        let work = self.agent.work(now);
        let message = wire::encode(&wire::work(&work));
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
                match wire::read_orders(orders) {
                    Ok(orders) => self.reply(&work, orders),
                    Err(error) => tracing::warn!("a message of the leader is wrong: {error}"),
                }
            }
            Reply::Leader(term) => self.follow(term),
            // The next leader makes itself known, or is looked for.
            Reply::Orders(_, None) | Reply::Lost => {}
        }
    }

    /// Takes the leader's reply.
    fn reply(&mut self, work: &Work, orders: Orders) {
        let before = self.agent.term();
        self.agent.orders(work, orders, clock());
        self.note_term(before);
    }

    fn note_term(&self, before: Term) {
        let term = self.agent.term();
        if term != before {
            tracing::info!(term = term.number, "following the leader");
        }
    }
}

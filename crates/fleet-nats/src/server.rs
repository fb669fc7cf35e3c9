//! A server's part in a fleet.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use hashfinder_fleet::{
    Beat, CallId, Election, KeyAction, Leader, LeaderSettings, RENEWED_FOR, RemoteSearch, ServerId,
    Term,
};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::{Checkpoint, Client, Ended as Ends, Outcome, Query};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        oneshot,
    },
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::{StreamExt, adapters::Merge};

use crate::{
    broker::{Broker, BrokerOptions, ConnectError},
    call::{Call, Calls, Ended, FleetSearch, FleetStopper, OnRelease, Request},
    key::{Key, KeyResult},
    wire::{self, News},
};

/// Time between two checks of what is due.
const TICK: Duration = Duration::from_millis(100);

/// Time without a beat after which new searches stay with their server.
const LEADER_GONE_AFTER: Duration = Duration::from_secs(3);

/// Time without agents after which a server continues its searches itself. Agents that have lost
/// their leader look for it for up to three seconds.
const AGENTS_GONE_AFTER: Duration = Duration::from_secs(6);

/// Pause before another attempt to reach a broker, or to open the bucket there.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Time that the leader has to confirm the end of a call before the message is repeated.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum size of a message: what a broker accepts by default.
const MOST_BYTES: usize = 1 << 20;

/// Why an agent gets no leases that has reported too much that is not true.
const DISTRUSTED: &str = "it has reported hits that are none, or secrets that it did not have; its \
                          machine may be broken; it is tried again when it is restarted";

/// A server's part in a fleet: it passes searches to the leader and, if it is elected, leads.
/// Clones share it. When the last one and all its searches are dropped, the server leaves the
/// fleet.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
    requests: UnboundedSender<Request>,
}

struct Shared {
    calls: Arc<Calls>,
    state: Mutex<State>,
    started: Instant,
}

#[derive(Default)]
struct State {
    /// The last beat, and when it came.
    beat: Option<(Beat, Duration)>,
    /// When there were agents last.
    had_agents: Option<Duration>,
    metrics: FleetMetrics,
}

/// What a server knows of its fleet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetMetrics {
    /// Whether this server has a connection to a broker.
    pub is_connected: bool,
    /// Whether this server leads.
    pub leads: bool,
    /// Number of the leader's term; 0 without a leader.
    pub term: u64,
    /// Number of agents that take leases.
    pub agents: u32,
    /// Hashes of a fast kernel per second, of all agents together.
    pub rate: f64,
    /// Number of this server's searches that the fleet works on.
    pub calls: usize,
    /// Number of leases that agents have, if this server leads.
    pub leases: usize,
    /// Number of leaders that this server has heard of.
    pub leaders: u64,
    /// Number of this server's searches that the fleet gave back, because it had no agents, no
    /// leader or no room.
    pub stranded: u64,
    /// Number of secrets that the fleet has covered for this server's searches.
    pub secrets: u64,
    /// This server's searches that have ended in the fleet, by outcome.
    pub ended: Ends,
}

impl Fleet {
    /// Joins the fleet at a broker. If the broker cannot be reached now, it is tried again and
    /// again in the background.
    ///
    /// Dropping the future ends the attempt.
    ///
    /// # Errors
    ///
    /// If the options, the broker or a file is wrong, so that trying again does not help.
    pub async fn join(
        options: BrokerOptions,
        settings: LeaderSettings,
    ) -> Result<Fleet, ConnectError> {
        let id: ServerId = format!("{:016x}", fastrand::u64(..)).into();
        let name = format!("server-{id}");
        let broker = match Broker::connect(&options, &name).await {
            Ok(broker) => {
                // A broker without JetStream is an error now, not a line in the log later.
                let key = Key::open(&broker).await?;
                Some((broker, key))
            }
            Err(error) if error.is_temporary() => {
                tracing::warn!("{error}; trying again");
                None
            }
            Err(error) => return Err(error),
        };
        let (requests, to_do) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            calls: Arc::default(),
            state: Mutex::default(),
            started: Instant::now(),
        });
        let fleet = Fleet {
            shared: Arc::clone(&shared),
            requests,
        };
        tokio::spawn(async move {
            let (broker, key) = match broker {
                Some(both) => both,
                None => connect(&options, &name).await,
            };
            let server = Server::new(id, shared, broker, key, settings);
            server.run(to_do).await;
        });
        Ok(fleet)
    }

    /// Whether a search would be worked on by agents now.
    #[must_use]
    pub fn has_agents(&self) -> bool {
        let now = self.shared.started.elapsed();
        let state = self.shared.lock();
        let beat = state.beat.as_ref();
        beat.is_some_and(|(beat, at)| {
            beat.agents > 0 && now.saturating_sub(*at) < LEADER_GONE_AFTER
        })
    }

    /// Whether a query is small enough for messages to agents.
    #[must_use]
    pub fn takes(&self, query: &Query) -> bool {
        wire::size(query) <= MOST_BYTES / 4
    }

    /// Passes a search to the fleet. `query` must be one that it [takes](Self::takes), and
    /// the one that the checkpoint belongs to.
    ///
    /// `on_release` is called once, when the search was stopped or dropped *and* the leader has
    /// recalled its leases, or has heard nothing of it for so long that it did.
    pub fn search(
        &self,
        client: Client,
        query: Query,
        checkpoint: Checkpoint,
        on_release: OnRelease,
    ) -> FleetSearch {
        let id: CallId = format!("{:032x}", fastrand::u128(..)).into();
        let now = self.shared.started.elapsed();
        let search = RemoteSearch::new(Arc::clone(&id), client, query, checkpoint, now);
        let call = Arc::new(Call::new(Arc::clone(&id), search, on_release));
        let mut calls = lock(&self.shared.calls);
        calls.insert(Arc::clone(&id), Arc::clone(&call));
        drop(calls);
        // If the task has ended, the call is stranded after a while.
        let _ = self.requests.send(Request::Due(id));
        FleetSearch(FleetStopper {
            call,
            calls: Arc::clone(&self.shared.calls),
            requests: self.requests.clone(),
            started: self.shared.started,
        })
    }

    /// Returns what this server knows of its fleet.
    #[must_use]
    pub fn metrics(&self) -> FleetMetrics {
        let calls = lock(&self.shared.calls).len();
        let metrics = self.shared.lock().metrics.clone();
        FleetMetrics { calls, ..metrics }
    }

    /// Leaves the fleet. If this server leads, another one does within a second.
    ///
    /// Dropping the future does not stop this.
    pub async fn leave(&self) {
        let (left, has_left) = oneshot::channel();
        if self.requests.send(Request::Leave(left)).is_ok() {
            let _ = timeout(Duration::from_secs(1), has_left).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to a broker and opens the key, however long that takes.
async fn connect(options: &BrokerOptions, name: &str) -> (Broker, Key) {
    loop {
        let connected = async {
            let broker = Broker::connect(options, name).await?;
            let key = Key::open(&broker).await?;
            Ok::<_, ConnectError>((broker, key))
        };
        match connected.await {
            Ok(both) => return both,
            Err(error) => tracing::warn!("{error}; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// The task of a server.
struct Server {
    id: ServerId,
    shared: Arc<Shared>,
    broker: Broker,
    key: Key,
    settings: LeaderSettings,
    election: Election,
    leading: Option<Leading>,
    /// Actions on the key, one at a time.
    actions: JoinSet<KeyResult>,
    ends: JoinSet<()>,
}

/// What a server has while it leads.
struct Leading {
    leader: Leader,
    /// Messages of agents and servers of this term, and questions of anyone.
    messages: Merge<Subscriber, Subscriber>,
}

/// What the task of a server waits for.
enum Happens {
    Tick,
    Beat(Message),
    Told(Message),
    Message(Message),
    Key(KeyResult),
    Request(Option<Request>),
}

impl Server {
    fn new(
        id: ServerId,
        shared: Arc<Shared>,
        broker: Broker,
        key: Key,
        settings: LeaderSettings,
    ) -> Server {
        let now = shared.started.elapsed();
        Server {
            election: Election::new(Arc::clone(&id), fastrand::u64(..), now),
            id,
            shared,
            broker,
            key,
            settings,
            leading: None,
            actions: JoinSet::new(),
            ends: JoinSet::new(),
        }
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    async fn run(mut self, mut requests: UnboundedReceiver<Request>) {
        let subscriptions = async {
            let beats = self.broker.client.subscribe(self.broker.subject("beat"));
            let beats = beats.await?;
            let told = self.broker.subject(&format!("told.{}", self.id));
            let told = self.broker.client.subscribe(told).await?;
            Ok::<_, async_nats::SubscribeError>((beats, told))
        };
        let (mut beats, mut told) = match subscriptions.await {
            Ok(subscriptions) => subscriptions,
            Err(error) => {
                tracing::error!("this server cannot be part of the fleet: {error}");
                return;
            }
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let happens = tokio::select! {
                _ = ticks.tick() => Happens::Tick,
                Some(beat) = beats.next() => Happens::Beat(beat),
                Some(news) = told.next() => Happens::Told(news),
                Some(message) = next(&mut self.leading) => Happens::Message(message),
                Some(Ok(result)) = self.actions.join_next(), if !self.actions.is_empty() =>
                    Happens::Key(result),
                Some(_) = self.ends.join_next(), if !self.ends.is_empty() => continue,
                request = requests.recv() => Happens::Request(request),
            };
            match happens {
                Happens::Tick => self.tick().await,
                Happens::Beat(message) => self.beat(&message).await,
                Happens::Told(message) => self.told(&message).await,
                Happens::Message(message) => self.message(message).await,
                Happens::Key(result) => self.key(result).await,
                Happens::Request(Some(Request::Due(call))) => self.ask(Some(&call)).await,
                Happens::Request(Some(Request::Ended(ended))) => self.end(ended).await,
                Happens::Request(Some(Request::Leave(left))) => {
                    self.resign().await;
                    let _ = left.send(());
                }
                Happens::Request(None) => {
                    self.resign().await;
                    return;
                }
            }
        }
    }

    async fn tick(&mut self) {
        let now = self.now();
        let is_connected = self.broker.is_connected();
        self.election.connection(is_connected, now);
        if let Some(action) = self.election.tick(now) {
            self.carry_out(action);
        }
        if let Some(leading) = &mut self.leading {
            leading.leader.tick(now);
        }
        self.show_life(now).await;
        self.leads_on().await;
        self.note(now, is_connected);
        let has_agents = {
            let state = self.shared.lock();
            let since = state.had_agents.map(|at| now.saturating_sub(at));
            since.is_some_and(|since| since < AGENTS_GONE_AFTER)
        };
        let calls: Vec<Arc<Call>> = lock(&self.shared.calls).values().cloned().collect();
        for call in calls {
            if call.change(|search| search.check(has_agents, now)) && !call.has_ended() {
                self.shared.lock().metrics.stranded += 1;
            }
            self.end_if_over(&call).await;
        }
        self.ask(None).await;
    }

    /// Sends a beat if one is due.
    async fn show_life(&mut self, now: Duration) {
        let Some(leading) = &self.leading else { return };
        if !self.election.take_beat(now) {
            return;
        }
        let beat = leading.beat(&self.id, now);
        self.broker
            .publish("beat", wire::encode(&wire::beat(&beat)))
            .await;
        self.heard(beat, now);
    }

    /// Notes a beat, of this server or of another one.
    fn heard(&mut self, beat: Beat, now: Duration) {
        let mut state = self.shared.lock();
        let known = state.beat.as_ref().map(|(beat, _)| beat.term);
        if known != Some(beat.term) {
            state.metrics.leaders += 1;
        }
        if beat.agents > 0 {
            state.had_agents = Some(now);
        }
        state.beat = Some((beat, now));
        drop(state);
    }

    /// Updates the metrics.
    fn note(&mut self, now: Duration, is_connected: bool) {
        let mut state = self.shared.lock();
        let heard = state.beat.as_ref();
        let heard = heard.filter(|(_, at)| now.saturating_sub(*at) < LEADER_GONE_AFTER);
        let (term, agents, rate) = heard.map_or((0, 0, 0.0), |(beat, _)| {
            (beat.term.number, beat.agents, beat.rate)
        });
        let leases = self.leading.as_ref().map_or(0, |leading| {
            let agents = leading.leader.agents(now);
            agents.iter().map(|agent| agent.leases).sum()
        });
        let metrics = &mut state.metrics;
        metrics.is_connected = is_connected;
        metrics.leads = self.leading.is_some();
        (metrics.term, metrics.agents, metrics.rate) = (term, agents, rate);
        metrics.leases = leases;
    }

    async fn beat(&mut self, message: &Message) {
        let Ok(beat) = wire::decode::<pb::Beat>(&message.payload) else {
            return;
        };
        let beat = wire::read_beat(beat);
        if beat.server == self.id {
            return;
        }
        let now = self.now();
        let before = self.election.leader(now);
        self.election.heard(&beat, now);
        if self.election.leader(now) != Some(beat.term) {
            // That of a leader that is about to step down.
            return;
        }
        self.leads_on().await;
        let is_new = before != Some(beat.term);
        self.heard(beat, now);
        if is_new {
            self.follow_new().await;
        }
    }

    /// Tells a new leader of all calls.
    async fn follow_new(&mut self) {
        for call in lock(&self.shared.calls).values() {
            call.change(|search| {
                search.ask_at_once();
                false
            });
        }
        self.ask(None).await;
    }

    /// Begins or ends to lead, as the election says.
    async fn leads_on(&mut self) {
        let term = self.election.term();
        if self.leading.as_ref().map(|leading| leading.leader.term()) == term {
            return;
        }
        if let Some(leading) = self.leading.take() {
            tracing::info!(
                term = leading.leader.term().number,
                "another server leads the fleet"
            );
        }
        let Some(term) = term else { return };
        match Leading::begin(&self.broker, term, self.settings).await {
            Ok(leading) => {
                tracing::info!(term = term.number, "this server leads the fleet");
                let now = self.now();
                let beat = leading.beat(&self.id, now);
                let bytes = wire::encode(&wire::beat(&beat));
                self.leading = Some(leading);
                // Only now, so that the agents' first messages arrive.
                self.broker.publish("term", bytes.clone()).await;
                self.broker.publish("beat", bytes).await;
                self.heard(beat, now);
                self.follow_new().await;
            }
            Err(error) => tracing::error!("this server cannot lead the fleet: {error}"),
        }
    }

    fn carry_out(&mut self, action: KeyAction) {
        self.actions.spawn(self.key.clone().carry_out(action));
    }

    async fn key(&mut self, result: KeyResult) {
        let now = self.now();
        let next = match result {
            KeyResult::Read(stored) => self.election.has_read(stored, now),
            KeyResult::Written(revision) => self.election.has_written(revision, now),
            KeyResult::Released => None,
        };
        if let Some(action) = next {
            self.carry_out(action);
        }
        self.leads_on().await;
    }

    /// Handles what a leader says about one of this server's calls.
    async fn told(&mut self, message: &Message) {
        let Ok(told) = wire::decode::<pb::Told>(&message.payload) else {
            return;
        };
        let call = lock(&self.shared.calls).get(&told.call[..]).cloned();
        let Some(call) = call else { return };
        match wire::read_told(call.query(), &told) {
            Ok(news) => self.hear(&call, news).await,
            Err(error) => tracing::warn!("a message of the leader is wrong: {error}"),
        }
    }

    /// Passes what a leader says to a call.
    async fn hear(&mut self, call: &Call, news: News) {
        let now = self.now();
        let mut covered = 0;
        call.change(|search| match news {
            News::Told(told) => {
                let before = search.progress().tests;
                let is_news = search.hear(told, now);
                covered = search.progress().tests.saturating_sub(before);
                is_news
            }
            News::Refused => search.is_refused(),
        });
        self.shared.lock().metrics.secrets += covered;
        self.end_if_over(call).await;
    }

    /// Ends a call whose search is over, whether or not its reader looks.
    async fn end_if_over(&mut self, call: &Call) {
        if call.has_ended()
            && let Some(ended) = call.end()
        {
            lock(&self.shared.calls).remove(&ended.call);
            self.end(ended).await;
        }
    }

    /// Sends the messages about calls that are due, or about one call.
    async fn ask(&mut self, only: Option<&str>) {
        let now = self.now();
        let Some(term) = self.election.leader(now) else {
            return;
        };
        let calls: Vec<Arc<Call>> = {
            let calls = lock(&self.shared.calls);
            match only {
                Some(only) => calls.get(only).cloned().into_iter().collect(),
                None => calls.values().cloned().collect(),
            }
        };
        for call in calls {
            let Some(ask) = call.ask(&self.id, now) else {
                continue;
            };
            if self.leading.is_some() {
                self.asked(&ask, now).await;
            } else {
                let bytes = wire::encode(&wire::ask(&ask, term));
                self.broker.publish(&format!("{term}.ask"), bytes).await;
            }
        }
        self.tell().await;
    }

    /// Answers a server, or this one, about a call.
    async fn asked(&mut self, ask: &hashfinder_fleet::Ask, now: Duration) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let term = leading.leader.term();
        let told = match leading.leader.ask(ask, now) {
            Ok(Some(told)) => wire::told(&ask.call, term, &told),
            Ok(None) => return,
            Err(over) => wire::refused(ask, term, over),
        };
        self.say(&ask.server, told).await;
    }

    /// Sends what is new of a call to its server.
    async fn say(&mut self, server: &ServerId, told: pb::Told) {
        if *server == self.id {
            let call = lock(&self.shared.calls).get(&told.call[..]).cloned();
            if let Some(call) = call
                && let Ok(news) = wire::read_told(call.query(), &told)
            {
                self.hear(&call, news).await;
            }
        } else {
            let subject = format!("told.{server}");
            self.broker.publish(&subject, wire::encode(&told)).await;
        }
    }

    /// Handles a message to the leader.
    async fn message(&mut self, message: Message) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if message.subject.split('.').nth(2) == Some("any") {
            self.question(message).await;
            return;
        }
        let now = self.shared.started.elapsed();
        let mut parts = message.subject.split('.').skip(3);
        match (parts.next(), parts.next()) {
            (Some("work"), Some(agent)) => {
                let Ok(work) = wire::decode::<pb::Work>(&message.payload) else {
                    return;
                };
                let reply = if work.protocol == wire::PROTOCOL {
                    let Ok((work, knows)) = wire::read_work(work) else {
                        return;
                    };
                    if *work.agent != *agent {
                        return;
                    }
                    let may_deal = self.election.may_deal(now);
                    let was_trusted = leading.leader.trusts(agent);
                    let orders = leading.leader.work(&work, may_deal, now);
                    let mut orders = wire::orders(&orders, &knows);
                    if !leading.leader.trusts(agent) {
                        orders.rejected = DISTRUSTED.to_owned();
                        if was_trusted {
                            tracing::error!(agent, "the agent gets no more leases: {DISTRUSTED}");
                        }
                    }
                    orders
                } else {
                    wire::rejected(leading.leader.term(), work.protocol)
                };
                if let Some(to) = message.reply {
                    self.broker.reply(to, wire::encode(&reply)).await;
                }
            }
            (Some("ask"), None) => match wire::decode(&message.payload).and_then(wire::read_ask) {
                Ok((ask, known)) => {
                    self.election.knows(known);
                    self.asked(&ask, now).await;
                }
                Err(error) => tracing::warn!("a message of a server is wrong: {error}"),
            },
            (Some("end"), None) => {
                let Ok(end) = wire::decode::<pb::End>(&message.payload) else {
                    return;
                };
                leading.leader.end(&end.call, now);
                self.recall().await;
                if let Some(to) = message.reply {
                    self.broker.reply(to, Bytes::new()).await;
                }
            }
            _ => {}
        }
        self.tell().await;
    }

    /// Answers a question to the leader.
    async fn question(&mut self, message: Message) {
        let Some(leading) = &self.leading else { return };
        let Some(to) = message.reply else { return };
        let now = self.now();
        let beat = leading.beat(&self.id, now);
        let answer = match message.subject.rsplit('.').next() {
            Some("leader") => wire::encode(&wire::beat(&beat)),
            Some("status") => {
                let (leader, agents) = (&leading.leader, leading.leader.agents(now));
                wire::encode(&wire::status(&beat, leader.calls(), &agents))
            }
            _ => return,
        };
        self.broker.reply(to, answer).await;
    }

    /// Sends all that the leader has to say: recalls, news, and that there is work.
    async fn tell(&mut self) {
        let now = self.now();
        let Some(leading) = &mut self.leading else {
            return;
        };
        let term = leading.leader.term();
        let (news, wake) = (leading.leader.take_news(now), leading.leader.take_wake());
        for (server, call, told) in news {
            self.say(&server, wire::told(&call, term, &told)).await;
        }
        self.recall().await;
        if wake {
            self.broker.publish("wake", Bytes::new()).await;
        }
    }

    async fn recall(&mut self) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let term = wire::term(leading.leader.term());
        for (agent, leases) in leading.leader.take_recalls() {
            let recall = pb::Recall {
                term: Some(term),
                leases,
            };
            let subject = format!("recall.{agent}");
            self.broker.publish(&subject, wire::encode(&recall)).await;
        }
    }

    /// Tells the leader that a call has ended.
    async fn end(&mut self, ended: Ended) {
        let now = self.now();
        let call = Arc::clone(&ended.call);
        // A search that was stopped may continue at its server.
        if !matches!(ended.outcome, Outcome::Stopped(_)) {
            self.shared.lock().metrics.ended.count(&ended.outcome);
        }
        if let Some(leading) = &mut self.leading {
            leading.leader.end(&call, now);
            self.recall().await;
            ended.release();
            return;
        }
        let term = self.election.leader(now);
        let broker = self.broker.clone();
        self.ends.spawn(async move {
            let begun = Instant::now();
            let message = wire::encode(&pb::End {
                call: call.to_string(),
            });
            if let Some(term) = term {
                let subject = broker.subject(&format!("{term}.end"));
                // A leader that does not answer ends the call when it is not renewed.
                while begun.elapsed() < RENEWED_FOR {
                    let request = broker.client.request(subject.clone(), message.clone());
                    match timeout(END_TIMEOUT, request).await {
                        Ok(Ok(_)) => break,
                        Ok(Err(_)) => sleep(END_TIMEOUT / 4).await,
                        Err(_) => {}
                    }
                }
            }
            ended.release();
        });
    }

    /// Leads no more, and takes part in no election.
    async fn resign(&mut self) {
        let Some((beat, action)) = self.election.resign() else {
            return;
        };
        self.broker
            .publish("beat", wire::encode(&wire::beat(&beat)))
            .await;
        let _ = timeout(END_TIMEOUT, self.key.clone().carry_out(action)).await;
        let _ = timeout(END_TIMEOUT, self.broker.client.flush()).await;
        self.leading = None;
        tracing::info!(
            term = beat.term.number,
            "this server has resigned as the leader"
        );
    }
}

impl Leading {
    async fn begin(
        broker: &Broker,
        term: Term,
        settings: LeaderSettings,
    ) -> Result<Leading, async_nats::Error> {
        let messages = broker.subject(&format!("{term}.>"));
        let messages = broker.client.subscribe(messages).await?;
        let questions = broker.client.subscribe(broker.subject("any.*")).await?;
        // The broker handles what follows on this connection only after it has subscribed.
        Ok(Leading {
            leader: Leader::new(term, settings),
            messages: messages.merge(questions),
        })
    }

    fn beat(&self, server: &ServerId, now: Duration) -> Beat {
        let (agents, rate) = self.leader.capacity(now);
        Beat {
            term: self.leader.term(),
            server: Arc::clone(server),
            resigns: false,
            agents,
            rate,
        }
    }
}

/// Returns the next message to the leader; waits forever if this server does not lead.
async fn next(leading: &mut Option<Leading>) -> Option<Message> {
    match leading {
        Some(leading) => leading.messages.next().await,
        None => pending().await,
    }
}

//! The task by which a server takes part in a fleet: it passes searches to the leader and, if it is
//! elected, is the leader.
//!
//! The task never waits for the broker, which may be away: messages that cannot be sent are
//! dropped, because each is repeated. Only actions on the key, in tasks of their own, wait.

use std::{
    future::pending,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_nats::{Message, SubscribeError, Subscriber};
use hashfinder_fleet::{Beat, Election, KeyAction, LeaderSettings, RENEWED_FOR, ServerId, Term};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::Outcome;
use tokio::{
    sync::{mpsc::UnboundedReceiver, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::{StreamExt, adapters::Merge};

use crate::{
    bans::{self, Saver},
    broker::Broker,
    call::{Call, Ended, Request},
    key::{Key, KeyResult},
    leading::{Incoming, Leading, Outgoing},
    shared::{Shared, lock},
    wire::{self, Answer},
};

/// Time between two checks of what is due.
const TICK: Duration = Duration::from_millis(100);

/// Time without agents after which a server continues its searches itself. Agents that have lost
/// their leader look for it for up to three seconds.
const AGENTS_GONE_AFTER: Duration = Duration::from_secs(6);

/// Time that the leader has to confirm the end of a call before the message is repeated.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that a broker has to accept subscriptions, and to return the bans.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that agents have to report their leases to a leader that hands over. They need
/// milliseconds.
const RECALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Number of messages that a leader handles before it looks at the time again.
const MOST_AT_ONCE: usize = 4096;

/// The state of the task.
pub(crate) struct Member {
    id: ServerId,
    shared: Arc<Shared>,
    broker: Broker,
    key: Key,
    settings: LeaderSettings,
    election: Election,
    leading: Option<(Leading, Messages, Saver)>,
    /// Since when this server hands over to another leader, and whom to tell when that is done.
    leaving: Option<(Duration, oneshot::Sender<()>)>,
    /// Number of agents that the leader has banned, as far as it is counted.
    banned: u64,
    /// Actions on the key, one at a time.
    actions: JoinSet<KeyResult>,
    ends: JoinSet<()>,
}

/// Messages to the leader of this term, and questions to any leader.
type Messages = Merge<Subscriber, Subscriber>;

/// What the task waits for.
enum Happens {
    Tick,
    Beat(Message),
    Update(Message),
    Message(Message),
    Key(KeyResult),
    Request(Option<Request>),
}

impl Member {
    pub(crate) fn new(
        id: ServerId,
        shared: Arc<Shared>,
        broker: Broker,
        key: Key,
        settings: LeaderSettings,
    ) -> Member {
        let now = shared.now();
        Member {
            election: Election::new(Arc::clone(&id), fastrand::u64(..), now),
            id,
            shared,
            broker,
            key,
            settings,
            leading: None,
            leaving: None,
            banned: 0,
            actions: JoinSet::new(),
            ends: JoinSet::new(),
        }
    }

    fn now(&self) -> Duration {
        self.shared.now()
    }

    /// Takes part in the fleet until all handles are dropped.
    pub(crate) async fn run(
        mut self,
        requests: &mut UnboundedReceiver<Request>,
    ) -> Result<(), SubscribeError> {
        let beats = self.broker.subject("beat");
        let mut beats = self.broker.client.subscribe(beats).await?;
        let updates = self.broker.subject(&format!("update.{}", self.id));
        let mut updates = self.broker.client.subscribe(updates).await?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let happens = tokio::select! {
                _ = ticks.tick() => Happens::Tick,
                Some(beat) = beats.next() => Happens::Beat(beat),
                Some(update) = updates.next() => Happens::Update(update),
                Some(message) = next(&mut self.leading) => Happens::Message(message),
                Some(Ok(result)) = self.actions.join_next(), if !self.actions.is_empty() =>
                    Happens::Key(result),
                Some(_) = self.ends.join_next(), if !self.ends.is_empty() => continue,
                request = requests.recv() => Happens::Request(request),
            };
            match happens {
                Happens::Tick => self.tick().await,
                Happens::Beat(message) => self.beat(&message).await,
                Happens::Update(message) => self.update(&message),
                Happens::Message(message) => self.message(&message),
                Happens::Key(result) => self.key(result).await,
                Happens::Request(Some(Request::Due(call))) => self.renew(Some(&call)),
                Happens::Request(Some(Request::Ended(ended))) => self.end(ended),
                Happens::Request(Some(Request::Leave(left))) => self.hand_over(left).await,
                Happens::Request(None) => {
                    self.resign().await;
                    // Each ends within seconds.
                    while self.ends.join_next().await.is_some() {}
                    return Ok(());
                }
            }
            self.send_outgoing();
            self.leave_if_ready().await;
        }
    }

    async fn tick(&mut self) {
        let now = self.now();
        let is_connected = self.broker.is_connected();
        self.election.connection(is_connected, now);
        if let Some(action) = self.election.tick(now) {
            self.carry_out(action);
        }
        self.receive_waiting();
        if let Some((leading, ..)) = &mut self.leading {
            leading.tick(now);
        }
        self.show_life(now);
        self.follow_election().await;
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
            self.end_if_over(&call);
        }
        self.renew(None);
    }

    /// Handles the messages that have arrived. Otherwise a leader that is slow would take agents
    /// for silent whose messages wait.
    fn receive_waiting(&mut self) {
        for _ in 0..MOST_AT_ONCE {
            let Some((_, messages, _)) = &mut self.leading else {
                return;
            };
            let next = pin!(messages.next());
            match next.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(message)) => self.message(&message),
                _ => return,
            }
        }
    }

    /// Sends a beat if one is due.
    fn show_life(&mut self, now: Duration) {
        let Some((leading, ..)) = &self.leading else {
            return;
        };
        if self.election.take_beat(now)
            && let Some(beat) = leading.beat(&self.election, now)
        {
            self.broker
                .publish("beat", wire::encode(&wire::beat(&beat)));
            self.heard(beat, now);
        }
    }

    /// Notes a beat, of this server or of another one.
    fn heard(&self, beat: Beat, now: Duration) {
        let mut state = self.shared.lock();
        let known = state.beat.as_ref().map(|(beat, _)| beat.term);
        if known != Some(beat.term) {
            state.metrics.leaders += 1;
        }
        if beat.agents > 0 {
            state.had_agents = Some(now);
        }
        state.beat = Some((beat, now));
    }

    /// Updates the metrics.
    fn note(&mut self, now: Duration, is_connected: bool) {
        let mut state = self.shared.lock();
        let leader = state.leader(now);
        let (term, agents, rate) = leader.map_or((0, 0, 0.0), |beat| {
            (beat.term.number, beat.agents, beat.rate)
        });
        let metrics = &mut state.metrics;
        metrics.is_connected = is_connected;
        metrics.leads = self.leading.is_some();
        (metrics.term, metrics.agents, metrics.rate) = (term, agents, rate);
        let leading = self.leading.as_ref();
        metrics.leases = leading.map_or(0, |(leading, ..)| leading.leases());
        metrics.bans = leading.map_or(0, |(leading, ..)| leading.bans());
        let banned = leading.map_or(0, |(leading, ..)| leading.banned());
        metrics.banned += banned.saturating_sub(self.banned);
        self.banned = banned;
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
        self.follow_election().await;
        let is_new = before != Some(beat.term);
        if is_new {
            tracing::info!(
                server = %beat.server,
                term = beat.term.number,
                "another server leads the fleet"
            );
        }
        self.heard(beat, now);
        if is_new {
            self.renew_all();
        }
    }

    /// Sends all calls to a new leader.
    fn renew_all(&mut self) {
        for call in lock(&self.shared.calls).values() {
            call.change(|search| {
                search.renew_at_once();
                false
            });
        }
        self.renew(None);
    }

    /// Starts or stops leading, as the election requires.
    async fn follow_election(&mut self) {
        let term = self.election.term();
        if self.leading.as_ref().map(|(leading, ..)| leading.term()) == term {
            return;
        }
        if let Some((leading, ..)) = self.leading.take() {
            self.shared.leads.send_replace(None);
            tracing::info!(
                term = leading.term().number,
                "this server leads the fleet no longer"
            );
        }
        let Some(term) = term else { return };
        let beginning = async {
            let messages = subscribe(&self.broker, term).await;
            let messages = messages.map_err(|error| error.to_string())?;
            let (bans, saver) = bans::open(&self.broker, &self.key, term).await?;
            Ok::<_, String>((messages, bans, saver))
        };
        let (messages, bans, saver) = match timeout(BEGIN_TIMEOUT, beginning).await {
            Ok(Ok(begun)) => begun,
            // The next tick tries again.
            Ok(Err(error)) => {
                tracing::warn!("this server cannot lead the fleet yet: {error}");
                return;
            }
            // Without a connection.
            Err(_) => return,
        };
        tracing::info!(server = %self.id, term = term.number, "this server leads the fleet");
        let now = self.now();
        let id = Arc::clone(&self.id);
        let leading = Leading::new(term, id, self.settings, bans, now);
        let beat = leading.beat(&self.election, now);
        self.leading = Some((leading, messages, saver));
        self.shared.leads.send_replace(Some(term));
        if let Some(beat) = beat {
            let bytes = wire::encode(&wire::beat(&beat));
            // Only now, so that the agents' first messages arrive.
            self.broker.publish("term", bytes.clone());
            self.broker.publish("beat", bytes);
            self.heard(beat, now);
        }
        self.renew_all();
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
        self.follow_election().await;
    }

    /// Handles a message of another server's leader about one of this server's calls.
    fn update(&mut self, message: &Message) {
        let Ok(update) = wire::decode::<pb::CallUpdate>(&message.payload) else {
            return;
        };
        let call = lock(&self.shared.calls).get(&update.call[..]).cloned();
        let Some(call) = call else { return };
        match wire::read_answer(call.query(), call.from(), &update) {
            Ok(Some(answer)) => self.apply(&call, answer),
            Ok(None) => {
                let now = self.now();
                call.change(|search| {
                    search.heard(now);
                    false
                });
            }
            Err(error) => tracing::warn!("a message of the leader is wrong: {error}"),
        }
    }

    /// Applies a leader's answer to a call.
    fn apply(&mut self, call: &Call, answer: Answer) {
        let now = self.now();
        let (mut covered, mut stranded) = (0, 0);
        call.change(|search| match answer {
            Answer::Update(update) => {
                let before = search.progress().tests;
                let is_news = search.update(update, now);
                covered = search.progress().tests.saturating_sub(before);
                is_news
            }
            Answer::Full => {
                let is_stranded = search.strand();
                stranded = u64::from(is_stranded);
                is_stranded
            }
        });
        let mut state = self.shared.lock();
        state.metrics.secrets += covered;
        state.metrics.stranded += stranded;
        drop(state);
        self.end_if_over(call);
    }

    /// Ends a call whose search is over, even if its reader does not poll.
    fn end_if_over(&mut self, call: &Call) {
        if call.has_ended()
            && let Some(ended) = call.end()
        {
            lock(&self.shared.calls).remove(&ended.call);
            self.end(ended);
        }
    }

    /// Renews the calls that are due, or one of them.
    fn renew(&mut self, only: Option<&str>) {
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
            let Some(renewal) = call.renewal(&self.id, now) else {
                continue;
            };
            match &mut self.leading {
                Some((leading, ..)) => leading.renew(&renewal, now),
                None => {
                    let bytes = wire::encode(&wire::renewal(&renewal, term));
                    self.broker.publish(&format!("{term}.renew"), bytes);
                }
            }
        }
    }

    /// Handles a message to the leader.
    fn message(&mut self, message: &Message) {
        let now = self.now();
        let prefix = self.broker.subject("");
        if let Some((leading, ..)) = &mut self.leading
            && let Some(subject) = message.subject.strip_prefix(&prefix)
        {
            let incoming = Incoming {
                subject,
                reply: message.reply.as_ref(),
                payload: &message.payload,
            };
            leading.receive(incoming, &mut self.election, now);
        }
    }

    /// Sends the leader's pending messages.
    fn send_outgoing(&mut self) {
        let now = self.now();
        // An answer to a call of this server may end it, which makes more messages.
        while let Some((leading, _, saver)) = &mut self.leading {
            let outgoing = leading.take_outgoing(now);
            let saver = saver.clone();
            if outgoing.is_empty() {
                return;
            }
            for message in outgoing {
                match message {
                    Outgoing::Save(save) => {
                        // The receiver ends only with the runtime.
                        let _ = saver.send(save);
                    }
                    Outgoing::Publish(subject, bytes) => self.broker.publish(&subject, bytes),
                    Outgoing::Reply(subject, bytes) => self.broker.send(subject, bytes),
                    Outgoing::Local(call, answer) => {
                        let call = lock(&self.shared.calls).get(&call).cloned();
                        if let Some(call) = call {
                            self.apply(&call, answer);
                        }
                    }
                }
            }
        }
    }

    /// Reports the end of a call to the leader.
    fn end(&mut self, ended: Ended) {
        let now = self.now();
        // A search that was stopped may continue at its server.
        if !matches!(ended.outcome, Outcome::Stopped(_)) {
            self.shared.lock().metrics.ended.count(&ended.outcome);
        }
        if let Some((leading, ..)) = &mut self.leading {
            leading.end(&ended.call, now);
            self.send_outgoing();
            return;
        }
        let term = self.election.leader(now);
        let broker = self.broker.clone();
        self.ends.spawn(async move {
            // The call is released with `ended`, at the end.
            let Some(term) = term else { return };
            let call = ended.call.to_string();
            let message = wire::encode(&pb::End { call });
            let subject = broker.subject(&format!("{term}.end"));
            let begun = Instant::now();
            // A leader that does not answer ends the call when it is not renewed.
            while begun.elapsed() < RENEWED_FOR {
                let request = broker.client.request(subject.clone(), message.clone());
                match timeout(END_TIMEOUT, request).await {
                    Ok(Ok(_)) => return,
                    Ok(Err(_)) => sleep(END_TIMEOUT / 4).await,
                    Err(_) => {}
                }
            }
        });
    }

    /// Hands over to another leader, so that no work is repeated: first recalls all leases. If this
    /// server does not lead, it leaves at once.
    async fn hand_over(&mut self, left: oneshot::Sender<()>) {
        let now = self.now();
        match &mut self.leading {
            Some((leading, ..)) => {
                leading.close(now);
                self.leaving = Some((now, left));
            }
            None => {
                self.resign().await;
                let _ = left.send(());
            }
        }
    }

    /// Resigns once all leases are reported, or after a while.
    async fn leave_if_ready(&mut self) {
        let now = self.now();
        let is_ready = self.leaving.as_ref().is_some_and(|(since, _)| {
            let leases = self
                .leading
                .as_ref()
                .map_or(0, |(leading, ..)| leading.leases());
            leases == 0 || now.saturating_sub(*since) >= RECALL_TIMEOUT
        });
        if is_ready && let Some((_, left)) = self.leaving.take() {
            if let Some((leading, ..)) = &mut self.leading {
                leading.tell_all();
                self.send_outgoing();
            }
            self.resign().await;
            let _ = left.send(());
        }
    }

    /// Stops leading, and leaves the election.
    async fn resign(&mut self) {
        let Some((beat, action)) = self.election.resign() else {
            return;
        };
        self.broker
            .publish("beat", wire::encode(&wire::beat(&beat)));
        let _ = timeout(END_TIMEOUT, self.key.clone().carry_out(action)).await;
        let _ = timeout(END_TIMEOUT, self.broker.client.flush()).await;
        self.leading = None;
        self.shared.leads.send_replace(None);
        tracing::info!(
            term = beat.term.number,
            "this server has resigned as the leader"
        );
    }
}

/// Subscribes to the messages to the leader of a term.
async fn subscribe(broker: &Broker, term: Term) -> Result<Messages, SubscribeError> {
    let messages = broker.subject(&format!("{term}.>"));
    let messages = broker.client.subscribe(messages).await?;
    let questions = broker.client.subscribe(broker.subject("any.*")).await?;
    // The broker handles what follows on this connection only after it has subscribed.
    Ok(messages.merge(questions))
}

/// Returns the next message to the leader; waits forever if this server does not lead.
async fn next(leading: &mut Option<(Leading, Messages, Saver)>) -> Option<Message> {
    match leading {
        Some((_, messages, _)) => messages.next().await,
        None => pending().await,
    }
}

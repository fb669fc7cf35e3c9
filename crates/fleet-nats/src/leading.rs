//! A leader: handles the messages that it gets, and makes those that it sends.

use std::{sync::Arc, time::Duration};

use async_nats::Subject;
use bytes::Bytes;
use hashfinder_fleet::{
    Banned, Beat, CallId, CallRenewal, Election, Leader, LeaderSettings, ServerId, Term, means,
};
use hashfinder_proto::fleet::v1 as pb;

use crate::{
    bans::{self, MOST_AUTOMATIC_BANS, MOST_BANS, Save},
    broker::INBOX,
    warnings::Warnings,
    wire::{self, Answer},
};

/// Prefix of the subjects to which the leader replies. A request can name any subject for its
/// reply, and the leader has the right to publish on all of them: without this check, an agent
/// could have it send to servers, or overwrite what the broker stores.
const AGENTS: &str = "agent.";

/// Reason sent to an agent after too many panics.
const DISTRUSTED: &str = "trying its leases has panicked 3 times, and no other machine has confirmed \
                          this; check its machine, then restart it";

/// A server's leader, without a connection.
pub(crate) struct Leading {
    leader: Leader,
    server: ServerId,
    outgoing: Vec<Outgoing>,
    warnings: Warnings,
    bans: Vec<pb::Ban>,
    /// Number of agents that were banned because of what they did.
    banned: u64,
}

/// A message of the leader.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// To a subject of the pool.
    Publish(String, Bytes),
    /// To the sender of a request.
    Reply(Subject, Bytes),
    /// About a call of the server that leads.
    Local(CallId, Answer),
    /// To be saved at the broker.
    Save(Save),
}

/// A message that has arrived for the leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    /// What follows the name of the pool in its subject.
    pub(crate) subject: &'a str,
    pub(crate) reply: Option<&'a Subject>,
    pub(crate) payload: &'a [u8],
}

impl Incoming<'_> {
    /// Returns where the reply goes, if that is a place for replies to this kind of machine.
    fn reply_to(&self, kind: &str) -> Option<Subject> {
        let place = self.reply?.strip_prefix(INBOX)?;
        place.starts_with(kind).then(|| self.reply.cloned())?
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Leading {
    pub(crate) fn new(
        term: Term,
        server: ServerId,
        settings: LeaderSettings,
        bans: Vec<pb::Ban>,
        now: Duration,
    ) -> Leading {
        let mut leader = Leader::new(term, settings, rand::random());
        for ban in &bans {
            leader.ban((*ban.name).into(), (*ban.reason).into(), now);
        }
        Leading {
            leader,
            server,
            outgoing: Vec::new(),
            warnings: Warnings::default(),
            bans,
            banned: 0,
        }
    }

    pub(crate) fn term(&self) -> Term {
        self.leader.term()
    }

    /// Returns how many leases agents have.
    pub(crate) fn leases(&self) -> usize {
        self.leader.leases()
    }

    /// Returns the messages to send, in this order.
    pub(crate) fn take_outgoing(&mut self, now: Duration) -> Vec<Outgoing> {
        for (server, call, update) in self.leader.take_updates(now) {
            self.answer(&server, call, Answer::Update(update));
        }
        self.notify();
        std::mem::take(&mut self.outgoing)
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        self.leader.tick(now);
    }

    /// Returns the number of bans.
    pub(crate) fn bans(&self) -> usize {
        self.bans.len()
    }

    /// Recalls all leases and deals no more, because another server is about to lead.
    pub(crate) fn close(&mut self, now: Duration) {
        self.leader.close(now);
    }

    /// Tells all servers what became of their calls, before another server leads.
    pub(crate) fn tell_all(&mut self) {
        for (server, call, update) in self.leader.all_updates() {
            self.answer(&server, call, Answer::Update(update));
        }
    }

    /// Returns the number of agents that were banned because of what they did.
    pub(crate) fn banned(&self) -> u64 {
        self.banned
    }

    /// Returns the leader's beat.
    pub(crate) fn beat(&self, election: &Election, now: Duration) -> Option<Beat> {
        election.beat(self.leader.capacity(now), now)
    }

    /// Handles a message. One that cannot be read is logged, and changes nothing.
    pub(crate) fn receive(
        &mut self,
        message: Incoming<'_>,
        election: &mut Election,
        now: Duration,
    ) {
        let mut parts = message.subject.splitn(3, '.');
        let read = match (parts.next(), parts.next(), parts.next()) {
            (Some("any"), Some(what @ ("leader" | "status")), None) => {
                self.question(what == "status", message, election, now);
                Ok(())
            }
            (Some("any"), Some("manage"), None) => self.manage(message, now),
            (_, Some("work"), Some(agent)) => self.work(agent, message, election, now),
            (_, Some("renew"), None) => self.renewal(message, election, now),
            (_, Some("end"), None) => self.end_of_call(message, now),
            _ => return,
        };
        if let Err(error) = read {
            self.warn(message.subject, &error.to_string());
        }
    }

    /// Logs a warning about a message, but only some of many.
    fn warn(&self, subject: &str, why: &str) {
        if self.warnings.may_warn() {
            tracing::warn!(subject, "a message was rejected: {why}");
        }
    }

    fn reply(&mut self, message: Incoming<'_>, bytes: Bytes) {
        if let Some(to) = message.reply_to("") {
            self.outgoing.push(Outgoing::Reply(to, bytes));
        }
    }

    /// Answers a question to any leader: who it is or, with `with_status`, which agents it has.
    fn question(
        &mut self,
        with_status: bool,
        message: Incoming<'_>,
        election: &Election,
        now: Duration,
    ) {
        let Some(beat) = self.beat(election, now) else {
            return;
        };
        let answer = if with_status {
            let agents = self.leader.agents(now);
            wire::encode(&wire::status(
                &beat,
                self.leader.calls(),
                &agents,
                &self.bans,
            ))
        } else {
            wire::encode(&wire::beat(&beat))
        };
        self.reply(message, answer);
    }

    /// Handles a message of an agent.
    fn work(
        &mut self,
        agent: &str,
        message: Incoming<'_>,
        election: &Election,
        now: Duration,
    ) -> Result<(), wire::Invalid> {
        let work: pb::Work = wire::decode(message.payload)?;
        if let Some(why) = wire::unfit(&work) {
            self.warn(message.subject, &why);
            let rejected = wire::rejected(self.term(), why);
            self.reply(message, wire::encode(&rejected));
            return Ok(());
        }
        let work = wire::read_work(work)?;
        let user = agent.split('.').next().unwrap_or_default();
        let reply = message.reply_to(&format!("{AGENTS}{user}."));
        let is_agent = *work.agent == *agent && bans::is_name(agent);
        let (Some(reply), true) = (reply, is_agent) else {
            return Err(wire::invalid("its agent is not the one of its subjects"));
        };
        if !self.leader.has_room_for(agent) {
            let why = "the fleet has its maximum number of agents, or that of this user";
            let rejected = wire::rejected(self.term(), why.to_owned());
            self.outgoing
                .push(Outgoing::Reply(reply, wire::encode(&rejected)));
            return Ok(());
        }
        let orders = self.leader.work(&work, election.may_deal(now), now);
        let mut orders = wire::orders(&orders);
        for Banned {
            agent,
            name,
            reason,
        } in self.leader.take_banned()
        {
            tracing::error!(%agent, %name, "the fleet has banned an agent: {reason}");
            self.banned += 1;
            self.bans.retain(|ban| *ban.name != *name);
            if self.bans.len() < MOST_AUTOMATIC_BANS {
                self.bans.push(bans::new(&name, &reason));
                self.save(None);
            } else {
                tracing::error!(
                    %name,
                    "too many bans: this one ends when another server leads; end some of them"
                );
            }
        }
        for agent in self.leader.take_distrusted() {
            tracing::error!(%agent, "the agent gets no more leases: {DISTRUSTED}");
        }
        if let Some((name, reason)) = self.leader.ban_of(agent) {
            orders.rejected =
                format!("{name} is banned: {reason}; to end this: hashfinder fleet unban {name}");
        } else if !self.leader.trusts(agent) {
            orders.rejected = DISTRUSTED.to_owned();
        }
        self.outgoing
            .push(Outgoing::Reply(reply, wire::encode(&orders)));
        Ok(())
    }

    /// Handles an order of an operator.
    fn manage(&mut self, message: Incoming<'_>, now: Duration) -> Result<(), wire::Invalid> {
        use pb::manage::Action;
        let order: pb::Manage = wire::decode(message.payload)?;
        let action = order
            .action
            .ok_or_else(|| wire::invalid("it has no action"))?;
        let (mut done, mut is_changed) = (pb::Managed::default(), false);
        match action {
            Action::Drain(name) => {
                done.count = count(self.leader.end_agents(&name));
                if done.count == 0 {
                    done.error = format!("no agent has the name {name}");
                }
            }
            Action::Ban(ban) if !bans::is_name(&ban.name) => {
                done.error = "expected the name of an agent, or its first parts".to_owned();
            }
            Action::Ban(ban) => {
                let is_other = |other: &pb::Ban| other.name != ban.name;
                if self.bans.iter().filter(|other| is_other(other)).count() >= MOST_BANS {
                    done.error =
                        format!("there are {MOST_BANS} bans, the maximum; end some of them");
                } else {
                    let agents = self.leader.agents(now);
                    let meant = agents.iter().filter(|agent| means(&ban.name, &agent.agent));
                    done.count = count(meant.count());
                    let new = bans::new(&ban.name, &ban.reason);
                    tracing::info!(
                        name = new.name,
                        reason = new.reason,
                        "an operator bans agents"
                    );
                    self.leader
                        .ban((*new.name).into(), (*new.reason).into(), now);
                    self.bans.retain(is_other);
                    self.bans.push(new);
                    is_changed = true;
                }
            }
            Action::Unban(name) => {
                if self.leader.unban(&name) {
                    tracing::info!(name, "an operator ends a ban");
                    self.bans.retain(|ban| ban.name != name);
                    done.count = 1;
                    is_changed = true;
                } else {
                    done.error = format!("no ban has the name {name}");
                }
            }
        }
        if is_changed {
            let reply = message.reply_to("");
            self.save(reply.map(|to| (to, done)));
        } else {
            self.reply(message, wire::encode(&done));
        }
        self.notify();
        Ok(())
    }

    /// Has the bans saved, and an answer sent after that.
    fn save(&mut self, reply: Option<(Subject, pb::Managed)>) {
        let bans = self.bans.clone();
        self.outgoing.push(Outgoing::Save(Save { bans, reply }));
    }

    /// Handles a message of another server about one of its calls.
    fn renewal(
        &mut self,
        message: Incoming<'_>,
        election: &mut Election,
        now: Duration,
    ) -> Result<(), wire::Invalid> {
        let (renewal, known) = wire::read_renewal(wire::decode(message.payload)?)?;
        election.knows(known);
        self.renew(&renewal, now);
        Ok(())
    }

    /// Renews a call, or begins it.
    pub(crate) fn renew(&mut self, renewal: &CallRenewal, now: Duration) {
        let answer = match self.leader.renew(renewal, now) {
            Ok(Some(update)) => Answer::Update(update),
            Ok(None) => return,
            Err(over) => wire::over_limit(renewal, over),
        };
        self.answer(&renewal.server, Arc::clone(&renewal.call), answer);
    }

    fn end_of_call(&mut self, message: Incoming<'_>, now: Duration) -> Result<(), wire::Invalid> {
        let end: pb::End = wire::decode(message.payload)?;
        self.end(&end.call, now);
        self.reply(message, Bytes::new());
        Ok(())
    }

    /// Ends a call. Its leases are recalled before anything else is sent.
    pub(crate) fn end(&mut self, call: &str, now: Duration) {
        self.leader.end(call, now);
        self.notify();
    }

    /// Answers a server about one of its calls.
    fn answer(&mut self, server: &ServerId, call: CallId, answer: Answer) {
        self.outgoing.push(if *server == self.server {
            Outgoing::Local(call, answer)
        } else {
            let bytes = wire::encode(&wire::answer(&call, self.term(), &answer));
            Outgoing::Publish(format!("update.{server}"), bytes)
        });
    }

    /// Notifies agents that should act at once.
    fn notify(&mut self) {
        let term = wire::term(self.term());
        for (agent, recalls) in self.leader.take_notices() {
            let notice = pb::Notice {
                term: Some(term),
                recalls,
            };
            let bytes = wire::encode(&notice);
            self.outgoing
                .push(Outgoing::Publish(format!("notice.{agent}"), bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use hashfinder_fleet::{KeyAction, Stored};
    use hashfinder_search::{Cursor, Distance, Query};
    use prost::Message;

    use super::*;

    /// Lets an election lead, with a broker that always answers.
    fn lead(election: &mut Election, revision: &mut u64, now: Duration) {
        election.connection(true, now);
        let mut action = election.tick(now);
        while let Some(next) = action.take() {
            action = match next {
                KeyAction::Read => election.has_read(Some(Stored::default()), now),
                KeyAction::Write { .. } | KeyAction::Release { .. } => {
                    *revision += 1;
                    election.has_written(Some(*revision), now)
                }
            };
        }
    }

    fn number(rng: &mut Rng) -> u64 {
        match rng.u8(..6) {
            0 => u64::MAX - rng.u64(..3),
            1 => 1 << rng.u8(..64),
            2 => rng.u64(..),
            _ => rng.u64(..40),
        }
    }

    fn index(rng: &mut Rng) -> Option<pb::Index> {
        let high = if rng.u8(..10) == 0 { number(rng) } else { 0 };
        let low = number(rng);
        (rng.u8(..10) > 0).then_some(pb::Index { low, high })
    }

    fn duration(rng: &mut Rng) -> Option<prost_types::Duration> {
        let seconds = number(rng) as i64;
        let nanos = number(rng) as i32;
        (rng.u8(..10) > 0).then_some(prost_types::Duration { seconds, nanos })
    }

    fn work(rng: &mut Rng, term: Term, sequence: u64) -> pb::Work {
        let report = |rng: &mut Rng| pb::Report {
            lease: rng.u64(..sequence + 2),
            tried: index(rng),
            hits: (0..rng.u8(..3)).filter_map(|_| index(rng)).collect(),
            took: duration(rng),
            failed: rng.u8(..10) == 0,
        };
        pb::Work {
            protocol: if rng.u8(..20) == 0 { 0 } else { wire::PROTOCOL },
            agent: "agent".to_owned(),
            sequence,
            answered: number(rng),
            term: Some(wire::term(term)),
            rate: [1e6, 0.0, -1.0, f64::NAN, f64::INFINITY, 1e300][rng.usize(..6)],
            is_draining: rng.u8(..20) == 0,
            holds: (0..rng.u8(..4)).map(|_| rng.u64(..sequence + 2)).collect(),
            reports: (0..rng.u8(..3)).map(|_| report(rng)).collect(),
            knows: (0..rng.u8(..3)).map(|_| number(rng)).collect(),
            version: "1".to_owned(),
            oldest_protocol: if rng.u8(..20) == 0 { 9 } else { 0 },
            features: wire::FEATURES.map(str::to_owned).into(),
        }
    }

    fn renewal(rng: &mut Rng, query: &str) -> pb::CallRenewal {
        let range = |rng: &mut Rng| pb::Range {
            start: index(rng),
            end: index(rng),
        };
        if rng.bool() {
            let start = Some(wire::index(rng.u64(..40)));
            let end = Some(wire::index(u64::MAX));
            return pb::CallRenewal {
                call: rng.u8(..3).to_string(),
                server: ["server", "other"][rng.usize(..2)].to_owned(),
                client: Some(pb::Client::default()),
                query: query.to_owned(),
                checkpoint: Some(pb::Checkpoint {
                    to_cover: vec![pb::Range { start, end }],
                    held: Vec::new(),
                    end,
                }),
                from: start,
                ..pb::CallRenewal::default()
            };
        }
        pb::CallRenewal {
            call: rng.u8(..3).to_string(),
            server: ["server", "other"][rng.usize(..2)].to_owned(),
            client: (rng.u8(..10) > 0).then(|| pb::Client {
                name: "client".to_owned(),
                weight: number(rng) as u32,
                hashes_per_second: number(rng),
            }),
            query: query.to_owned(),
            checkpoint: (rng.u8(..10) > 0).then(|| pb::Checkpoint {
                to_cover: (0..=rng.u8(..3)).map(|_| range(rng)).collect(),
                held: (0..rng.u8(..2)).filter_map(|_| index(rng)).collect(),
                end: index(rng),
            }),
            from: index(rng),
            term: Some(pb::Term {
                number: number(rng),
                nonce: number(rng),
            }),
            stops: rng.u8(..10) == 0,
        }
    }

    /// A leader survives what broken or hostile machines send, and still deals leases.
    #[test]
    fn no_message_makes_a_leader_panic() {
        let query = Query::new("hashfinder".parse().unwrap(), Distance::ZERO).unwrap();
        let text = Cursor::new(&query, 0).to_string();
        for seed in 0..20 {
            let mut rng = Rng::with_seed(seed);
            let (mut now, mut revision) = (Duration::ZERO, 0);
            let mut election = Election::new("server".into(), seed, now);
            while election.term().is_none() {
                now += Duration::from_millis(100);
                lead(&mut election, &mut revision, now);
            }
            let term = election.term().unwrap();
            let settings = LeaderSettings {
                is_untrusted: rng.bool(),
                ..LeaderSettings::default()
            };
            let mut leading = Leading::new(term, "server".into(), settings, Vec::new(), now);
            let mut leases = 0;
            for sequence in 1..500 {
                now += Duration::from_millis(rng.u64(..200));
                lead(&mut election, &mut revision, now);
                let (kind, mut payload) = match rng.u8(..8) {
                    0..5 => {
                        let mut work = work(&mut rng, term, sequence);
                        // One that has lied too often gets no leases.
                        work.agent = format!("agent.a.{}", sequence / 10);
                        let kind = format!("{term}.work.{}", work.agent);
                        (kind, work.encode_to_vec())
                    }
                    5 if rng.bool() => {
                        let name = format!("agent.a.{}", rng.u64(..50));
                        let ban = pb::Ban {
                            name: name.clone(),
                            ..pb::Ban::default()
                        };
                        let action = match rng.u8(..3) {
                            0 => pb::manage::Action::Ban(ban),
                            1 => pb::manage::Action::Unban(name),
                            _ => pb::manage::Action::Drain(name),
                        };
                        let order = pb::Manage {
                            action: Some(action),
                        };
                        ("any.manage".to_owned(), order.encode_to_vec())
                    }
                    5..7 => {
                        let message = renewal(&mut rng, &text).encode_to_vec();
                        (format!("{term}.renew"), message)
                    }
                    _ => {
                        let call = rng.u8(..3).to_string();
                        (format!("{term}.end"), pb::End { call }.encode_to_vec())
                    }
                };
                if rng.u8(..5) == 0 && !payload.is_empty() {
                    let place = rng.usize(..payload.len());
                    payload[place] = rng.u8(..);
                }
                let to = ["_INBOX.agent.agent.1", "$KV.hf_default.leader"][rng.usize(..2)];
                let reply = Subject::from_static(to);
                let incoming = Incoming {
                    subject: &kind,
                    reply: Some(&reply),
                    payload: &payload,
                };
                leading.receive(incoming, &mut election, now);
                leading.tick(now);
                leases += leading.leases();
                for outgoing in leading.take_outgoing(now) {
                    // An agent decides where a reply goes.
                    if let Outgoing::Reply(to, _) = outgoing {
                        assert!(to.starts_with("_INBOX."), "{to}");
                    }
                }
            }
            assert!(leases > 0, "seed {seed}");
        }
    }
}

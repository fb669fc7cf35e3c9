//! The bans of a fleet, in its bucket.
//!
//! Only the leader changes them. They are the value of one key, so that a new leader reads all of
//! them before it deals a lease.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use hashfinder_fleet::Term;
use hashfinder_proto::fleet::v1 as pb;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};

use crate::{
    broker::Broker,
    bucket,
    key::Key,
    wire::{self, Invalid},
};

/// Name of the key.
const NAME: &str = "bans";

/// Maximum number of bans: they have to fit into a message.
pub(crate) const MOST_BANS: usize = 512;

/// From this number of bans on, the leader does not save those that it makes itself. So there is
/// always room for those of operators.
pub(crate) const MOST_AUTOMATIC_BANS: usize = 448;

/// Time between two checks whether the broker still has the bans.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Maximum length of the name and of the reason of a ban, in bytes.
pub(crate) const MOST_TEXT: usize = 150;

/// Pause before a write is repeated.
const PAUSE: Duration = Duration::from_millis(500);

/// Number of attempts to save the bans. The brokers may be electing.
const ATTEMPTS: usize = 6;

/// Sends bans to be saved. When it is dropped, those that were sent are still saved.
pub(crate) type Saver = UnboundedSender<Save>;

/// Bans to be saved, and what to answer when that is done.
#[derive(Debug)]
pub(crate) struct Save {
    pub(crate) bans: Vec<pb::Ban>,
    pub(crate) reply: Option<(async_nats::Subject, pb::Managed)>,
}

/// Reads the bans. Returns them with what saves later ones.
pub(crate) async fn open(
    broker: &Broker,
    key: &Key,
    term: Term,
) -> Result<(Vec<pb::Ban>, Saver), String> {
    let (revision, bans) = read(key).await?;
    let bans = bans.bans;
    let (saver, to_save) = unbounded_channel();
    let saving = save_all(
        broker.clone(),
        key.clone(),
        revision,
        bans.clone(),
        term,
        to_save,
    );
    tokio::spawn(saving);
    Ok((bans, saver))
}

/// Reads the bans from the leader of the bucket's stream.
async fn read(key: &Key) -> Result<(u64, pb::Bans), String> {
    let latest = bucket::latest(key.store(), NAME).await;
    match latest.map_err(|error| format!("the bans cannot be read: {error}"))? {
        None => Ok((0, pb::Bans::default())),
        Some((revision, None)) => Ok((revision, pb::Bans::default())),
        Some((revision, Some(value))) => {
            let bans: Result<pb::Bans, Invalid> = wire::decode(&value);
            let bans = bans.map_err(|error| {
                let subject = bucket::subject(key.store(), NAME);
                format!(
                    "the bans cannot be read; remove the value of {subject} to end all: {error}"
                )
            })?;
            Ok((revision, bans))
        }
    }
}

/// What is saved.
struct Saved {
    key: Key,
    revision: u64,
    bans: Vec<pb::Ban>,
    /// The term of this leader. A later one knows better.
    term: Term,
    /// Whether the broker has these bans.
    is_saved: bool,
    /// Names of all bans of this leader, also of those that have ended.
    names: BTreeSet<String>,
    /// Bans of an earlier leader, which were written after this one has begun. They are kept for
    /// the next leader.
    others: Vec<pb::Ban>,
}

async fn save_all(
    broker: Broker,
    key: Key,
    revision: u64,
    bans: Vec<pb::Ban>,
    term: Term,
    mut to_save: UnboundedReceiver<Save>,
) {
    let mut saved = Saved {
        key,
        revision,
        names: bans.iter().map(|ban| ban.name.clone()).collect(),
        bans,
        term,
        is_saved: true,
        others: Vec::new(),
    };
    loop {
        let Ok(received) = timeout(CHECK_EVERY, to_save.recv()).await else {
            saved.check().await;
            continue;
        };
        let Some(Save { bans, reply }) = received else {
            return;
        };
        saved.names.extend(bans.iter().map(|ban| ban.name.clone()));
        saved.bans = bans;
        let done = saved.write().await;
        if let Err(why) = &done {
            tracing::error!("the bans are not saved; the next leader will not know them: {why}");
        }
        if let Some((to, mut answer)) = reply {
            if let Err(why) = done {
                answer.error = format!(
                    "done, but only until another server leads: the broker did not save it: {why}"
                );
            }
            broker.send(to, wire::encode(&answer));
        }
    }
}

impl Saved {
    /// Writes the bans again if the broker has lost them.
    async fn check(&mut self) {
        let Ok((latest, _)) = read(&self.key).await else {
            return;
        };
        if latest != self.revision || !self.is_saved {
            // What fails now is tried again at the next check.
            let _ = self.write().await;
        }
    }

    async fn write(&mut self) -> Result<(), String> {
        let mut attempt = 0;
        self.is_saved = false;
        loop {
            let bans = self.bans.iter().chain(&self.others);
            let value = wire::encode(&pb::Bans {
                bans: bans.take(MOST_BANS).cloned().collect(),
                term: Some(wire::term(self.term)),
            });
            let written = self.key.store().update(NAME, value, self.revision).await;
            let why = match written {
                Ok(revision) => {
                    self.revision = revision;
                    self.is_saved = true;
                    return Ok(());
                }
                Err(error) => error.to_string(),
            };
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(why);
            }
            sleep(PAUSE).await;
            // This write, or one of an earlier leader that was late, may have changed the value, or
            // the broker has lost it. A ban is never lost by that; one that was ended may come
            // back.
            if let Ok((latest, others)) = read(&self.key).await
                && latest != self.revision
            {
                if wire::read_term(others.term) > self.term {
                    return Err("another server leads".to_owned());
                }
                self.revision = latest;
                let names = &self.names;
                let others = others.bans.into_iter();
                self.others = others.filter(|ban| !names.contains(&ban.name)).collect();
            }
        }
    }
}

/// Returns a ban that begins now. Texts that are too long are cut.
pub(crate) fn new(name: &str, reason: &str) -> pb::Ban {
    let cut = |text: &str| {
        let mut end = text.len().min(MOST_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    pb::Ban {
        name: name.to_owned(),
        reason: cut(reason),
        since: Some(SystemTime::now().into()),
    }
}

/// Whether a text can be the name of a ban: the ID of an agent, or its first parts.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= MOST_TEXT && text.split('.').all(crate::credentials::is_name)
}

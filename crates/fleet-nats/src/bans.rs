//! The bans of a fleet, in its bucket.
//!
//! Only the leader changes them. They are the value of one key, so that a new leader reads all of
//! them before it deals a lease.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use hashfinder_proto::fleet::v1 as pb;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::sleep,
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
pub(crate) async fn open(broker: &Broker, key: &Key) -> Result<(Vec<pb::Ban>, Saver), String> {
    let (revision, bans) = read(key).await?;
    let (saver, to_save) = unbounded_channel();
    tokio::spawn(save_all(broker.clone(), key.clone(), revision, to_save));
    Ok((bans, saver))
}

/// Reads the bans from the leader of the bucket's stream.
async fn read(key: &Key) -> Result<(u64, Vec<pb::Ban>), String> {
    let subject = key.subject(NAME);
    let message = key.store().stream.get_last_raw_message_by_subject(&subject);
    match message.await {
        Ok(message) if message.headers.get(bucket::OPERATION).is_some() => {
            Ok((message.sequence, Vec::new()))
        }
        Ok(message) => {
            let bans: Result<pb::Bans, Invalid> = wire::decode(&message.payload);
            let bans = bans.map_err(|error| format!("the bans cannot be read: {error}"))?;
            Ok((message.sequence, bans.bans))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Ok((0, Vec::new()))
        }
        Err(error) => Err(format!("the bans cannot be read: {error}")),
    }
}

async fn save_all(
    broker: Broker,
    key: Key,
    mut revision: u64,
    mut to_save: UnboundedReceiver<Save>,
) {
    while let Some(Save { bans, reply }) = to_save.recv().await {
        let saved = save(&key, &mut revision, bans).await;
        if let Err(why) = &saved {
            tracing::error!("the bans are not saved; the next leader will not know them: {why}");
        }
        if let Some((to, mut answer)) = reply {
            if let Err(why) = saved {
                answer.error = format!(
                    "done, but only until another server leads: the broker did not save it: {why}"
                );
            }
            broker.send(to, wire::encode(&answer));
        }
    }
}

async fn save(key: &Key, revision: &mut u64, mut bans: Vec<pb::Ban>) -> Result<(), String> {
    let mut attempt = 0;
    loop {
        let value = wire::encode(&pb::Bans { bans: bans.clone() });
        let why = match key.store().update(NAME, value, *revision).await {
            Ok(written) => {
                *revision = written;
                return Ok(());
            }
            Err(error) => error.to_string(),
        };
        attempt += 1;
        if attempt == ATTEMPTS {
            return Err(why);
        }
        sleep(PAUSE).await;
        // This write, or one of an earlier leader that was late, may have changed the value. A ban
        // is never lost by that; one that was ended may come back.
        if let Ok((latest, others)) = read(key).await
            && latest != *revision
        {
            *revision = latest;
            let is_new = |other: &pb::Ban| bans.iter().all(|ban| ban.name != other.name);
            let new: Vec<pb::Ban> = others.into_iter().filter(is_new).collect();
            bans.extend(new);
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

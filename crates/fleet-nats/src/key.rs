//! The key by which the leader is elected.

use async_nats::jetstream::kv::{self, Store};
use hashfinder_fleet::{KeyAction, Stored};
use hashfinder_proto::fleet::v1 as pb;

use crate::{
    broker::{Broker, ConnectError},
    bucket, wire,
};

/// Name of the key.
const NAME: &str = "leader";

/// The key.
#[derive(Clone)]
pub(crate) struct Key {
    broker: Broker,
    store: Store,
}

/// Result of a [`KeyAction`].
#[derive(Debug)]
pub(crate) enum KeyResult {
    Read(Option<Stored>),
    Written(Option<u64>),
    Released,
}

impl Key {
    /// Opens the bucket, and creates it if there is none.
    pub(crate) async fn open(broker: &Broker) -> Result<Key, ConnectError> {
        let bucket = format!("hf_{}", broker.address.pool());
        let config = kv::Config {
            bucket: bucket.clone(),
            description: "hashfinder: the leader of a fleet".to_owned(),
            history: 1,
            ..kv::Config::default()
        };
        let store = bucket::open(broker, config).await?;
        Ok(Key {
            broker: broker.clone(),
            store,
        })
    }

    /// Returns the bucket. Other keys are in it, too.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Carries out an action of the election.
    pub(crate) async fn carry_out(self, action: KeyAction) -> KeyResult {
        match action {
            KeyAction::Read => KeyResult::Read(self.read().await),
            KeyAction::Write { expected, claim } => {
                let value = wire::encode(&wire::claim(&claim));
                let written = self.store.update(NAME, value, expected).await;
                if let Err(error) = &written {
                    tracing::debug!(%error, "the key of the leader was not written");
                }
                KeyResult::Written(written.ok())
            }
            KeyAction::Release { expected } => {
                let removed = self.store.delete_expect_revision(NAME, Some(expected));
                if let Err(error) = removed.await {
                    tracing::debug!(%error, "the key of the leader was not removed");
                }
                KeyResult::Released
            }
        }
    }

    /// Reads the key from the leader of its stream. Other copies may be behind. If the broker has
    /// lost the bucket, creates it, and the next attempt reads it.
    async fn read(&self) -> Option<Stored> {
        match bucket::latest(&self.store, NAME).await {
            Ok(Some((revision, value))) => {
                let claim = value.and_then(|value| wire::decode::<pb::Claim>(&value).ok());
                Some(Stored {
                    revision,
                    claim: claim.map(wire::read_claim),
                })
            }
            Ok(None) => Some(Stored::default()),
            Err(error) => {
                tracing::debug!(%error, "the key of the leader was not read");
                if let Err(error) = Key::open(&self.broker).await {
                    tracing::debug!("{error}");
                }
                None
            }
        }
    }
}

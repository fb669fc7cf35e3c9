//! The key by which the leader is elected.

use async_nats::jetstream::{
    self, ErrorCode,
    context::{
        CreateKeyValueError, CreateKeyValueErrorKind, CreateStreamError, CreateStreamErrorKind,
    },
    kv::{self, Store},
    stream::LastRawMessageErrorKind,
};
use hashfinder_fleet::{KeyAction, Stored};
use hashfinder_proto::fleet::v1 as pb;

use crate::{
    broker::{Broker, ConnectError},
    wire,
};

/// Name of the key.
const NAME: &str = "leader";

/// Number of copies of the bucket, if the brokers are a cluster.
const REPLICAS: usize = 3;

/// Header of a message that removes a value.
const OPERATION: &str = "KV-Operation";

/// The key.
#[derive(Clone)]
pub(crate) struct Key {
    broker: Broker,
    store: Store,
    subject: String,
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
        let context = jetstream::new(broker.client.clone());
        let bucket = format!("hf_{}", broker.address.pool());
        let unfit = |why: String| ConnectError::Unfit {
            address: broker.address.clone(),
            why,
        };
        let store = match context.get_key_value(&bucket).await {
            Ok(store) => store,
            Err(_) => {
                let create = |num_replicas| {
                    context.create_key_value(kv::Config {
                        bucket: bucket.clone(),
                        description: "hashfinder: the leader of a fleet".to_owned(),
                        history: 1,
                        num_replicas,
                        ..kv::Config::default()
                    })
                };
                let created = match create(REPLICAS).await {
                    Err(error) if is_not_clustered(&error) => create(1).await,
                    created => created,
                };
                created.map_err(|error| match error.kind() {
                    CreateKeyValueErrorKind::JetStream => unfit(
                        "has no JetStream, which elections need; start it with -js".to_owned(),
                    ),
                    _ => unfit(format!("cannot create the bucket {bucket}: {error}")),
                })?
            }
        };
        Ok(Key {
            broker: broker.clone(),
            subject: format!("$KV.{bucket}.{NAME}"),
            store,
        })
    }

    /// Carries out what the election says.
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
        let message = self
            .store
            .stream
            .get_last_raw_message_by_subject(&self.subject);
        match message.await {
            Ok(message) => {
                let is_removed = message.headers.get(OPERATION).is_some();
                let claim = wire::decode::<pb::Claim>(&message.payload);
                Some(Stored {
                    revision: message.sequence,
                    claim: claim.ok().filter(|_| !is_removed).map(wire::read_claim),
                })
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Some(Stored::default())
            }
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

/// Whether a bucket with several copies cannot be created because there is only one broker.
fn is_not_clustered(error: &CreateKeyValueError) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<CreateStreamError>());
    source.is_some_and(|source| {
        let unsupported = ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED;
        matches!(source.kind(), CreateStreamErrorKind::JetStream(why) if why.error_code() == unsupported)
    })
}

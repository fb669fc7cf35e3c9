//! The key by which the leader is elected.

use std::error::Error as _;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{
        AccountError, AccountErrorKind, CreateKeyValueError, CreateKeyValueErrorKind,
        CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
        KeyValueError,
    },
    kv::{self, Store},
    stream::LastRawMessageErrorKind,
};
use hashfinder_fleet::{KeyAction, Stored};
use hashfinder_proto::fleet::v1 as pb;

use crate::{
    broker::{Broker, BrokerAddress, ConnectError},
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
        let address = || broker.address.clone();
        let store = match context.get_key_value(&bucket).await {
            Ok(store) => store,
            Err(error) if is_missing(&error) => {
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
                    Err(error)
                        if code(&error) == Some(ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED) =>
                    {
                        create(1).await
                    }
                    created => created,
                };
                created.map_err(|error| why_not_created(&error, &bucket, address()))?
            }
            // JetStream is not there, or has no leader now.
            Err(_) => {
                let why = match context.query_account().await {
                    Ok(_) => "its JetStream has no leader at the moment".to_owned(),
                    Err(error) => return Err(why_no_jetstream(&error, address())),
                };
                let address = address();
                return Err(ConnectError::Unreachable { address, why });
            }
        };
        Ok(Key {
            broker: broker.clone(),
            subject: format!("$KV.{bucket}.{NAME}"),
            store,
        })
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

/// Whether the bucket does not exist.
fn is_missing(error: &KeyValueError) -> bool {
    let source = error.source();
    let source = source.and_then(|source| source.downcast_ref::<GetStreamError>());
    let source = source.map(GetStreamError::kind);
    matches!(source, Some(GetStreamErrorKind::JetStream(why))
        if why.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Returns the code by which JetStream says why it cannot create a bucket.
fn code(error: &CreateKeyValueError) -> Option<ErrorCode> {
    let source = error.source()?.downcast_ref::<CreateStreamError>()?;
    match source.kind() {
        CreateStreamErrorKind::JetStream(why) => Some(why.error_code()),
        _ => None,
    }
}

fn why_not_created(
    error: &CreateKeyValueError,
    bucket: &str,
    address: BrokerAddress,
) -> ConnectError {
    let account = error.source();
    let account = account.and_then(|source| source.downcast_ref::<AccountError>());
    if let Some(account) = account {
        return why_no_jetstream(account, address);
    }
    let why = format!("cannot create the bucket {bucket}: {error}");
    match (error.kind(), code(error)) {
        (CreateKeyValueErrorKind::TimedOut, _) => ConnectError::Unreachable { address, why },
        (_, Some(ErrorCode::CLUSTER_NO_PEERS | ErrorCode::INSUFFICIENT_RESOURCES)) => {
            let why = format!(
                "cannot keep {REPLICAS} copies of the bucket {bucket}: a cluster needs three brokers \
                 that are up"
            );
            ConnectError::Unfit { address, why }
        }
        _ => ConnectError::Unfit { address, why },
    }
}

fn why_no_jetstream(error: &AccountError, address: BrokerAddress) -> ConnectError {
    let why = match error.kind() {
        AccountErrorKind::JetStreamUnavailable => {
            "has no JetStream, which elections need; start it with -js"
        }
        AccountErrorKind::JetStream(why)
            if why.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
        {
            "has no JetStream for this user's account; enable it in the account's settings"
        }
        AccountErrorKind::TimedOut => {
            let why = "its JetStream does not answer; if it never does, the user may lack the right \
                       to publish to $JS.API.>";
            let why = why.to_owned();
            return ConnectError::Unreachable { address, why };
        }
        AccountErrorKind::JetStream(_) | AccountErrorKind::Other => {
            let why = format!("its JetStream does not work now: {error}");
            return ConnectError::Unreachable { address, why };
        }
    };
    let why = why.to_owned();
    ConnectError::Unfit { address, why }
}

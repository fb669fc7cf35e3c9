//! Opens buckets at a broker.

use std::error::Error as _;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{
        AccountError, AccountErrorKind, CreateKeyValueError, CreateKeyValueErrorKind,
        CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
        KeyValueError,
    },
    kv::{Config, Store},
    stream::{LastRawMessageError, LastRawMessageErrorKind},
};

use bytes::Bytes;

use crate::broker::{Broker, BrokerAddress, ConnectError};

/// Number of copies of a bucket, if the brokers are a cluster.
const REPLICAS: usize = 3;

/// Header of a message that removes a value, and of one with which the broker itself does.
pub(crate) const OPERATION: &str = "KV-Operation";
pub(crate) const MARKER: &str = "Nats-Marker-Reason";

/// The latest value of a key: its revision, and the value unless the key was deleted.
pub(crate) type Latest = Option<(u64, Option<Bytes>)>;

/// Returns the subject of a key.
pub(crate) fn subject(store: &Store, key: &str) -> String {
    format!("{}{key}", store.prefix)
}

/// Reads the latest value of a key from the leader of its stream. Other copies may be behind.
pub(crate) async fn latest(store: &Store, key: &str) -> Result<Latest, LastRawMessageError> {
    let subject = subject(store, key);
    match store.stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => {
            let is_mark = |header| message.headers.get(header).is_some();
            let is_deleted = is_mark(OPERATION) || is_mark(MARKER);
            Ok(Some((
                message.sequence,
                (!is_deleted).then_some(message.payload),
            )))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a bucket. If there is none with this name, creates it, with three copies if the brokers
/// are a cluster.
pub(crate) async fn open(broker: &Broker, config: Config) -> Result<Store, ConnectError> {
    let context = jetstream::new(broker.client.clone());
    let bucket = config.bucket.clone();
    let address = || broker.address.clone();
    match context.get_key_value(&bucket).await {
        Ok(store) => Ok(store),
        Err(error) if is_missing(&error) => {
            let create = |num_replicas| {
                context.create_key_value(Config {
                    num_replicas,
                    ..config.clone()
                })
            };
            let created = match create(REPLICAS).await {
                Err(error) if code(&error) == Some(ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED) => {
                    create(1).await
                }
                created => created,
            };
            created.map_err(|error| why_not_created(&error, &bucket, address()))
        }
        // JetStream is not there, or has no leader now.
        Err(_) => {
            let why = match context.query_account().await {
                Ok(_) => "its JetStream has no leader at the moment".to_owned(),
                Err(error) => return Err(why_no_jetstream(&error, address())),
            };
            let address = address();
            Err(ConnectError::Unreachable { address, why })
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

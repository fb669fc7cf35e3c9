//! The bucket of a fleet's operations.

use std::time::Duration;

use async_nats::{
    HeaderMap, header,
    jetstream::{self, Context, kv},
};
use bytes::Bytes;
use hashfinder_operations::StoreError;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    broker::{Broker, ConnectError},
    bucket::{self, Latest},
};

/// Number of values of each key that the broker keeps. If it loses the latest, for example because
/// its machine lost power, an earlier one is still true.
const HISTORY: i64 = 8;

/// Time that the broker has to confirm a write before it is repeated.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Time after which a write has failed. When brokers elect a new leader of the bucket's stream,
/// which takes up to seven seconds, writes wait.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a write is repeated.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the broker keeps the mark of a deleted key. Servers that were disconnected for longer
/// read the bucket anew anyway.
pub(crate) const MARK_KEPT: Duration = Duration::from_secs(60 * 60);

/// The bucket.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) store: kv::Store,
    context: Context,
}

/// The latest revision of a key that a write replaces; 0 if there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) revision: u64,
    /// Whether it is a value, and not the mark of a deletion.
    pub(crate) has_value: bool,
}

impl Bucket {
    /// Opens the bucket, and creates it if there is none.
    pub(crate) async fn open(broker: &Broker) -> Result<Bucket, ConnectError> {
        let pool = broker.address.pool();
        let store = bucket::open(
            broker,
            kv::Config {
                // No name of a leader's bucket begins like this.
                bucket: format!("hfops_{pool}"),
                description: "hashfinder: the operations of a fleet".to_owned(),
                history: HISTORY,
                limit_markers: Some(MARK_KEPT),
                ..kv::Config::default()
            },
        );
        Ok(Bucket {
            context: jetstream::new(broker.client.clone()),
            store: store.await?,
        })
    }

    fn subject(&self, key: &str) -> String {
        bucket::subject(&self.store, key)
    }

    /// Reads the latest value of a key from the leader of the stream.
    pub(crate) async fn latest(&self, key: &str) -> Result<Latest, StoreError> {
        match timeout(CONFIRM_TIMEOUT, bucket::latest(&self.store, key)).await {
            Ok(Ok(latest)) => Ok(latest),
            Ok(Err(error)) => Err(unavailable(&error.to_string())),
            Err(_) => Err(unavailable("it does not answer")),
        }
    }

    /// Writes a value if the latest revision of its key is the expected one. Returns the new
    /// revision. A value is different from all others, by its nonce.
    pub(crate) async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> Result<u64, StoreError> {
        let written = |latest: &Latest| match latest {
            Some((revision, Some(latest))) if *latest == value => Some(*revision),
            _ => None,
        };
        self.write(expected, key, written, |expected| {
            let update = self.store.update(key, value.clone(), expected);
            async { update.await.map_err(|error| error.to_string()) }
        })
        .await
    }

    /// Deletes a key if its latest revision is this one. Returns that of the mark.
    pub(crate) async fn delete(&self, key: &str, revision: u64) -> Result<u64, StoreError> {
        let deleted = |latest: &Latest| match latest {
            Some((mark, None)) if *mark > revision => Some(*mark),
            _ => None,
        };
        let expected = Expected {
            revision,
            has_value: true,
        };
        self.write(expected, key, deleted, |expected| async move {
            // As `kv::Store::purge_expect_revision_with_ttl` does, which returns no revision.
            let mut headers = HeaderMap::new();
            headers.insert(bucket::OPERATION, "PURGE");
            headers.insert("Nats-Rollup", "sub");
            headers.insert(
                header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
                expected.to_string(),
            );
            if self.store.stream.cached_info().config.allow_message_ttl {
                headers.insert(header::NATS_MESSAGE_TTL, MARK_KEPT.as_secs().to_string());
            }
            let subject = self.subject(key);
            let sent = self
                .context
                .publish_with_headers(subject, headers, Bytes::new());
            let confirmed = sent.await.map_err(|error| error.to_string())?.await;
            let confirmed = confirmed.map_err(|error| error.to_string())?;
            Ok(confirmed.sequence)
        })
        .await
    }

    /// Repeats a write until it is confirmed. Its acknowledgement may be lost, so after each
    /// attempt that was not confirmed, the latest value shows whether it was written.
    async fn write<F: Future<Output = Result<u64, String>>>(
        &self,
        expected: Expected,
        key: &str,
        written: impl Fn(&Latest) -> Option<u64>,
        attempt: impl Fn(u64) -> F,
    ) -> Result<u64, StoreError> {
        let begun = Instant::now();
        let mut revision = expected.revision;
        loop {
            let why = match timeout(CONFIRM_TIMEOUT, attempt(revision)).await {
                Ok(Ok(revision)) => return Ok(revision),
                Ok(Err(why)) => why,
                Err(_) => "it does not answer".to_owned(),
            };
            if let Ok(latest) = self.latest(key).await {
                if let Some(revision) = written(&latest) {
                    return Ok(revision);
                }
                match latest {
                    // The broker forgets the mark of a deletion after a while.
                    None if !expected.has_value => revision = 0,
                    Some((latest, _)) if latest == revision => {}
                    _ => return Err(conflict()),
                }
            }
            if begun.elapsed() >= WRITE_TIMEOUT {
                return Err(unavailable(&why));
            }
            sleep(PAUSE).await;
        }
    }
}

/// Returns the error for a key whose latest revision is not the expected one.
pub(crate) fn conflict() -> StoreError {
    unavailable("a saved value was changed by another writer; reading all operations again")
}

/// Returns why the bucket cannot be used.
pub(crate) fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(format!("the fleet's broker: {why}"))
}

//! Keeps a machine's image of the saved operations up to date, and reads it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_nats::jetstream::kv::{Entry, Operation};
use hashfinder_operations::{
    Metrics, Name, Phase, Reader, Record, Relay, Selection, Snapshot, StoreError,
};
use hashfinder_search::Index;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::{interval, timeout},
};
use tokio_stream::StreamExt;

use super::{
    bucket::{Bucket, MARK_KEPT, unavailable},
    image::{self, Applied, Image, WRITER, operation_key},
};
use crate::{broker::Broker, shared::lock, wire::Invalid};

/// Interval of checks whether the connection was lost, and whether the bucket is the same.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Time that a value has to arrive here that the broker has. It takes milliseconds.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why an operation does not run whose state cannot be read.
const UNREADABLE: &str = "its saved state cannot be read; a later version may have written it";

/// Why an operation does not run while the servers elect a leader.
const NO_LEADER: &str = "the fleet has no leader at the moment";

/// A server's copy of the saved operations of its fleet.
pub(crate) struct Replica {
    image: Mutex<Image>,
    /// Operations that are not being searched, and what they do instead; `None` without a leader.
    phases: Mutex<Option<HashMap<Name, Phase>>>,
    relay: Mutex<Option<Relay>>,
    /// The latest revision that has arrived; `None` before the bucket was read.
    seen: watch::Sender<Option<u64>>,
    /// Why the bucket was not opened, if it was not.
    problem: Mutex<Option<Arc<str>>>,
    /// Whether to read the bucket anew.
    reads_anew: Notify,
    /// The bucket, while the machine is connected.
    bucket: watch::Sender<Option<Bucket>>,
}

impl Replica {
    pub(crate) fn new() -> Replica {
        Replica {
            image: Mutex::default(),
            phases: Mutex::default(),
            relay: Mutex::default(),
            problem: Mutex::default(),
            reads_anew: Notify::new(),
            seen: watch::Sender::new(None),
            bucket: watch::Sender::new(None),
        }
    }

    /// Sets what is notified of changes; `None` closes the operations.
    pub(crate) fn set_relay(&self, relay: Option<Relay>) {
        *lock(&self.relay) = relay;
    }

    /// Shows the metrics of the operations.
    pub(crate) fn show(&self, metrics: Metrics) {
        if let Some(relay) = &*lock(&self.relay) {
            relay.set_metrics(metrics);
        }
    }

    /// Returns why the bucket was not opened, if it was not.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        lock(&self.problem).clone()
    }

    /// Reads the bucket anew, soon.
    pub(crate) fn read_anew(&self) {
        self.reads_anew.notify_one();
    }

    /// Whether the leader on this machine is the latest one that has begun to write, by the leader
    /// of the bucket's stream.
    pub(crate) async fn leads(&self) -> bool {
        let instance = self.image().instance();
        let Some(bucket) = self.bucket() else {
            return false;
        };
        let latest = bucket.latest(WRITER).await;
        let Ok(Some((_, Some(writer)))) = latest else {
            return false;
        };
        let nonce = image::nonce(&writer);
        instance.is_some() && nonce.map(|nonce| (nonce >> 32) as u32) == instance
    }

    pub(crate) fn image(&self) -> MutexGuard<'_, Image> {
        lock(&self.image)
    }

    /// Returns the bucket, while this machine has a connection and an image.
    pub(crate) fn bucket(&self) -> Option<Bucket> {
        self.bucket.borrow().clone()
    }

    /// Applies a value that this machine has written.
    pub(crate) fn wrote(&self, key: &str, revision: u64, value: Option<&[u8]>) {
        let Applied { changed, problem } = self.image().apply(key, revision, value);
        warn(key, problem);
        self.publish(&changed);
    }

    /// Applies a value that has arrived, as all earlier ones have.
    fn arrived(&self, entry: &Entry) {
        self.wrote(&entry.key, entry.revision, value(entry));
        self.seen.send_replace(Some(entry.revision));
    }

    /// Waits until the image has this revision. Returns whether it came in time.
    ///
    /// Dropping the future changes nothing.
    pub(crate) async fn reaches(&self, revision: u64) -> bool {
        let mut seen = self.seen.subscribe();
        let reached = seen.wait_for(|seen| seen.is_some_and(|seen| seen >= revision));
        matches!(timeout(ARRIVAL_TIMEOUT, reached).await, Ok(Ok(_)))
    }

    /// Returns an operation as clients see it.
    pub(crate) fn snapshot(&self, name: &Name) -> Option<Snapshot> {
        let saved = self.image().get(name).cloned()?;
        let (record, is_unreadable) = (saved.record, saved.is_unreadable);
        let phase = match is_unreadable {
            true => Phase::Paused(UNREADABLE.into()),
            false => self.phase(&record),
        };
        Some(Snapshot {
            record,
            phase,
            search: None,
        })
    }

    /// Returns all operations that have not ended, with this phase.
    pub(crate) fn all_wait(&self, phase: &Phase) -> Vec<(Name, Phase)> {
        let image = self.image();
        let names = image.unfinished().map(|saved| saved.record.name.clone());
        names.map(|name| (name, phase.clone())).collect()
    }

    fn phase(&self, record: &Record) -> Phase {
        if record.end.is_some() {
            return Phase::Ended;
        }
        match &*lock(&self.phases) {
            None => Phase::Queued(NO_LEADER.into()),
            Some(phases) => phases.get(&record.name).cloned().unwrap_or(Phase::Running),
        }
    }

    /// Sets what operations do that are not being searched; `None` without a leader.
    pub(crate) fn set_phases(&self, phases: Option<HashMap<Name, Phase>>) {
        let before = std::mem::replace(&mut *lock(&self.phases), phases.clone());
        if before == phases {
            return;
        }
        let changed: Vec<Name> = match (before, phases) {
            (Some(mut before), Some(mut now)) => {
                before.retain(|name, phase| now.get(name) != Some(phase));
                now.retain(|name, _| !before.contains_key(name));
                before.into_keys().chain(now.into_keys()).collect()
            }
            _ => self.image().names().cloned().collect(),
        };
        self.publish(&changed);
    }

    /// Notifies watchers of these operations. Holds the lock throughout, so that watchers see the
    /// latest state last.
    fn publish(&self, names: &[Name]) {
        let relay = lock(&self.relay);
        let Some(relay) = &*relay else { return };
        for name in names {
            let snapshot = self.snapshot(name);
            let has_ended = snapshot
                .as_ref()
                .is_none_or(|snapshot| snapshot.phase == Phase::Ended);
            relay.changed(name, snapshot);
            if has_ended {
                relay.changed(name, None);
            }
        }
    }

    /// Keeps the image up to date, until the future is dropped.
    pub(crate) async fn follow(&self, broker: &Broker) {
        let mut checks = interval(CHECK_EVERY);
        loop {
            checks.tick().await;
            if !broker.is_connected() {
                continue;
            }
            let bucket = match Bucket::open(broker).await {
                Ok(bucket) => bucket,
                Err(error) => {
                    let why: Arc<str> = error.to_string().into();
                    let before = lock(&self.problem).replace(Arc::clone(&why));
                    // It is tried every second, and the same problem is logged once.
                    if before.as_ref() != Some(&why) {
                        tracing::warn!("operations: {why}");
                    }
                    continue;
                }
            };
            if let Err(error) = self.follow_bucket(&bucket, broker).await {
                tracing::warn!("reading all operations again: {error}");
            }
            self.bucket.send_replace(None);
        }
    }

    /// Reads the bucket anew, and follows it while the connection lasts and the bucket is the same.
    async fn follow_bucket(
        &self,
        bucket: &Bucket,
        broker: &Broker,
    ) -> Result<(), async_nats::Error> {
        let begun = bucket.store.stream.get_info().await?;
        let mut values = bucket.store.watch_with_history(">").await?;
        let mut image = Image::default();
        let mut is_read = begun.state.messages == 0;
        let known = self.image().seen();
        // If the broker has less than this machine knows, it has lost something.
        let known = known.min(begun.state.last_sequence);
        while !is_read || image.seen() < known {
            let Some(entry) = timeout(ARRIVAL_TIMEOUT, values.next()).await? else {
                return Ok(());
            };
            let entry = entry?;
            let applied = image.apply(&entry.key, entry.revision, value(&entry));
            warn(&entry.key, applied.problem);
            is_read |= entry.delta == 0;
        }
        let seen = image.seen();
        let changed = self.image().replace(image);
        self.seen.send_replace(Some(seen));
        self.bucket.send_replace(Some(bucket.clone()));
        *lock(&self.problem) = None;
        self.publish(&changed);
        let mut checks = interval(CHECK_EVERY);
        let mut forgets = interval(MARK_KEPT);
        forgets.reset();
        loop {
            tokio::select! {
                entry = values.next() => {
                    let Some(entry) = entry else { return Ok(()) };
                    self.arrived(&entry?);
                }
                () = self.reads_anew.notified() => {
                    return Err("a saved value was changed by another writer".into());
                }
                _ = forgets.tick() => self.image().forget_marks(),
                _ = checks.tick() => {
                    if !broker.is_connected() {
                        return Err("the connection was lost".into());
                    }
                    let seen = self.seen.borrow().unwrap_or(0);
                    let now = bucket.store.stream.get_info();
                    let now = timeout(ARRIVAL_TIMEOUT, now).await??;
                    if now.created != begun.created || now.state.last_sequence < seen {
                        return Err("the broker has lost or replaced the bucket".into());
                    }
                }
            }
        }
    }
}

fn warn(key: &str, problem: Option<Invalid>) {
    if let Some(error) = problem {
        tracing::error!(key, "a saved value cannot be read: {error}");
    }
}

fn value(entry: &Entry) -> Option<&[u8]> {
    (entry.operation == Operation::Put).then_some(&entry.value[..])
}

/// Reads the image for calls.
pub(crate) struct ReplicaReader {
    replica: Arc<Replica>,
    runtime: Handle,
}

impl ReplicaReader {
    pub(crate) fn new(replica: Arc<Replica>, runtime: Handle) -> ReplicaReader {
        ReplicaReader { replica, runtime }
    }

    fn check(&self) -> Result<(), StoreError> {
        match *self.replica.seen.borrow() {
            Some(_) => Ok(()),
            None => Err(unavailable("this server has not read the operations yet")),
        }
    }
}

impl Reader for ReplicaReader {
    /// Before an operation counts as missing, this asks the leader of the stream: another
    /// server may have started the operation a moment ago.
    fn get(&mut self, name: &Name) -> Result<Option<Record>, StoreError> {
        self.check()?;
        let get = || {
            let image = self.replica.image();
            image.get(name).map(|saved| (*saved.record).clone())
        };
        if let Some(record) = get() {
            return Ok(Some(record));
        }
        let bucket = self.replica.bucket();
        let bucket = bucket.ok_or_else(|| unavailable("the connection to it is lost"))?;
        let latest = self.runtime.block_on(bucket.latest(&operation_key(name)))?;
        let Some((revision, Some(_))) = latest else {
            return Ok(None);
        };
        if !self.runtime.block_on(self.replica.reaches(revision)) {
            return Err(unavailable("its latest values do not arrive here"));
        }
        Ok(get())
    }

    fn list(&mut self, selection: &Selection, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.check()?;
        Ok(self.replica.image().list(selection, limit))
    }

    fn candidates(
        &mut self,
        name: &Name,
        from: Index,
        limit: usize,
    ) -> Result<Vec<Index>, StoreError> {
        self.check()?;
        let image = self.replica.image();
        let Some(saved) = image.get(name) else {
            return Ok(Vec::new());
        };
        let first = saved.candidates.partition_point(|index| *index < from);
        let rest = saved.candidates[first..].iter();
        Ok(rest.take(limit).copied().collect())
    }
}

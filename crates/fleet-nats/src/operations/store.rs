//! The store of the leader's runner.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use hashfinder_fleet::{ServerId, Term};
use hashfinder_operations::{
    Change, ClientLimits, ClockReading, Creation, Millis, Name, Record, Rejection, Store,
    StoreError,
};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::Index;
use prost::Message;
use tokio::{runtime::Handle, sync::watch};

use super::{
    bucket::{Bucket, Expected, conflict, unavailable},
    image::{Count, PROGRESS, WRITER, operation_key, request_key, state_key},
    replica::Replica,
    values,
};
use crate::wire;

/// How long a request id is remembered after its operation was deleted, so that a delayed duplicate
/// of the request does not start the work again.
const REMEMBER_REQUEST: Millis = 24 * 60 * 60 * 1000;

/// Maximum number of expired operations to delete at a time.
const EXPIRED_AT_ONCE: usize = 20;

/// Number of writes under way at a time. The broker confirms each after a millisecond or so.
const WRITES_AT_ONCE: usize = 64;

/// Maximum size of the progress of an operation that is saved together with that of others. It has
/// a few ranges and candidates beyond them.
const MOST_PROGRESS: usize = 2048;

/// Maximum size of the progress of all operations that is saved together, with thousands of them.
/// Brokers take messages of a megabyte.
const MOST_PROGRESS_OF_ALL: usize = 512 << 10;

/// The operations of a fleet, as its leader writes them.
pub(crate) struct FleetStore {
    runtime: Handle,
    replica: Arc<Replica>,
    bucket: Bucket,
    term: Term,
    leads: watch::Receiver<Option<Term>>,
    limits: ClientLimits,
    /// The upper half of the nonces of this store's values.
    instance: u32,
    /// Number of its values.
    written: u32,
    /// Progress since the states were written.
    progress: HashMap<Name, pb::SavedProgress>,
}

/// A value to write.
struct Write {
    key: String,
    value: Option<Bytes>,
}

impl FleetStore {
    /// Opens the store: notes in the bucket that this leader writes, and waits until everything
    /// that was written before has arrived here.
    pub(crate) fn open(
        runtime: Handle,
        replica: Arc<Replica>,
        server: &ServerId,
        term: Term,
        leads: watch::Receiver<Option<Term>>,
        limits: ClientLimits,
    ) -> Result<FleetStore, StoreError> {
        let bucket = replica.bucket();
        let bucket = bucket.ok_or_else(|| unavailable("the connection to it is lost"))?;
        let mut store = FleetStore {
            runtime,
            replica,
            bucket,
            term,
            leads,
            limits,
            instance: fastrand::u32(..),
            written: 0,
            progress: HashMap::new(),
        };
        store.check_term()?;
        let writer = pb::Writer {
            nonce: store.nonce(),
            term: Some(wire::term(term)),
            server: server.to_string(),
        };
        let runtime = store.runtime.clone();
        let since = runtime.block_on(store.announce(&wire::encode(&writer)))?;
        if !runtime.block_on(store.replica.reaches(since)) {
            return Err(unavailable("its latest values do not arrive here"));
        }
        let mut image = store.replica.image();
        image.lead(store.instance, since);
        for name in image.names() {
            if let Some(progress) = image.progress(name) {
                store.progress.insert(name.clone(), progress.clone());
            }
        }
        // A crash came between the writes of a deletion, for example.
        let left = image.leftovers();
        drop(image);
        store.remove(&left)?;
        Ok(store)
    }

    /// Notes in the bucket that this leader writes. Returns the revision.
    async fn announce(&self, writer: &Bytes) -> Result<u64, StoreError> {
        let latest = self.bucket.latest(WRITER).await?;
        let expected = Expected {
            revision: latest.as_ref().map_or(0, |(revision, _)| *revision),
            has_value: latest.is_some_and(|(_, value)| value.is_some()),
        };
        self.bucket.put(WRITER, writer.clone(), expected).await
    }

    fn nonce(&mut self) -> u64 {
        self.written = self.written.wrapping_add(1);
        u64::from(self.instance) << 32 | u64::from(self.written)
    }

    fn check_term(&self) -> Result<(), StoreError> {
        if *self.leads.borrow() == Some(self.term) {
            return Ok(());
        }
        Err(unavailable("another server leads the fleet"))
    }

    /// Checks that only this leader writes.
    fn check(&self) -> Result<(), StoreError> {
        self.check_term()?;
        if self.replica.image().is_foreign() {
            return Err(conflict());
        }
        Ok(())
    }

    /// Writes these values, in any order. When this returns `Ok`, the broker has confirmed all of
    /// them.
    fn write_all(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let mut under_way = tokio::task::JoinSet::new();
            let mut writes = writes.into_iter();
            loop {
                while under_way.len() < WRITES_AT_ONCE
                    && let Some(write) = writes.next()
                {
                    let (bucket, replica) = (self.bucket.clone(), Arc::clone(&self.replica));
                    under_way.spawn(async move { write.carry_out(&bucket, &replica).await });
                }
                match under_way.join_next().await {
                    Some(Ok(written)) => written?,
                    Some(Err(_)) => return Err(unavailable("a write has panicked")),
                    None => return Ok(()),
                }
            }
        })
    }

    fn create(
        &self,
        record: &Record,
        started: &mut HashMap<String, Record>,
        counts: &mut HashMap<Arc<str>, Count>,
    ) -> Creation {
        let request = &record.request;
        let image = self.replica.image();
        // A server repeats a request whose reply it missed.
        let is_repeated = image.get(&record.name).is_some()
            || started.values().any(|other| other.name == record.name);
        if is_repeated {
            return Creation::Existing(record.name.clone());
        }
        if !request.request_id.is_empty() {
            let key = request_key(&request.client, &request.request_id);
            let is_same = |text: &str, maximum_hashes: u64| {
                text == request.text() && maximum_hashes == request.maximum_hashes
            };
            let of_record = |earlier: &Record| {
                let earlier_request = &earlier.request;
                match is_same(&earlier_request.text(), earlier_request.maximum_hashes) {
                    true => Creation::Existing(earlier.name.clone()),
                    false => Creation::Rejected(Rejection::RequestIdReused),
                }
            };
            if let Some(earlier) = started.get(&key) {
                return of_record(earlier);
            }
            let earlier = image.by_request(&key).and_then(|name| image.get(name));
            if let Some(earlier) = earlier {
                return of_record(&earlier.record);
            }
            // A request without its operation was never acknowledged, unless it says when to forget
            // it.
            let earlier = image.requests().get(&key);
            if let Some(earlier) = earlier.filter(|earlier| earlier.forget_ms != 0) {
                let is_same = is_same(&earlier.query, earlier.maximum_hashes);
                return Creation::Rejected(match is_same {
                    true => Rejection::Deleted,
                    false => Rejection::RequestIdReused,
                });
            }
        }
        let count = counts.entry(Arc::clone(&request.client));
        let count = count.or_insert_with(|| image.count(&request.client));
        if count.unfinished >= self.limits.running {
            let limit = self.limits.running;
            return Creation::Rejected(Rejection::TooManyRunning { limit });
        }
        if count.all >= self.limits.saved {
            let limit = self.limits.saved;
            return Creation::Rejected(Rejection::TooManySaved { limit });
        }
        count.unfinished += 1;
        count.all += 1;
        let key = match &request.request_id[..] {
            "" => record.name.id().to_owned(),
            id => request_key(&request.client, id),
        };
        started.insert(key, record.clone());
        Creation::New
    }

    /// Returns the values of a new operation: first its request, so that a duplicate finds it.
    fn creation(&mut self, record: &Record, now: Millis) -> (Option<Write>, Write) {
        let request = &record.request;
        let saved_request = (!request.request_id.is_empty()).then(|| {
            let value = pb::SavedRequest {
                nonce: self.nonce(),
                operation: record.name.id().to_owned(),
                query: request.text(),
                maximum_hashes: request.maximum_hashes,
                created_ms: now,
                forget_ms: 0,
            };
            let key = request_key(&request.client, &request.request_id);
            Write::new(key, &value)
        });
        let operation = values::operation(record, self.nonce());
        (
            saved_request,
            Write::new(operation_key(&record.name), &operation),
        )
    }

    /// Returns the request of an operation that is to be deleted, as it is remembered.
    fn remembered(&mut self, name: &Name, now: Millis) -> Option<Write> {
        let record = self.replica.image().get(name)?.record.clone();
        let request = &record.request;
        if request.request_id.is_empty() {
            return None;
        }
        let value = pb::SavedRequest {
            nonce: self.nonce(),
            operation: name.id().to_owned(),
            query: request.text(),
            maximum_hashes: request.maximum_hashes,
            created_ms: record.created,
            forget_ms: now.saturating_add(REMEMBER_REQUEST),
        };
        let key = request_key(&request.client, &request.request_id);
        Some(Write::new(key, &value))
    }

    /// Deletes these operations. Their requests are remembered first.
    fn delete(&mut self, names: &[Name], now: Millis) -> Result<(), StoreError> {
        let requests = names.iter().filter_map(|name| self.remembered(name, now));
        let requests = requests.collect();
        self.write_all(requests)?;
        for name in names {
            self.progress.remove(name);
        }
        self.remove(names)
    }

    /// Removes the values of operations. A state without its operation is nothing, but an operation
    /// without its state would begin again, so the state is removed last.
    fn remove(&self, names: &[Name]) -> Result<(), StoreError> {
        for key in [operation_key, state_key] {
            let keys = names.iter().map(key);
            self.write_all(keys.map(|key| Write { key, value: None }).collect())?;
        }
        Ok(())
    }

    /// Returns the state of an operation with new candidates.
    fn state(&mut self, record: &Record, candidates: &[Index]) -> Result<Write, StoreError> {
        let image = self.replica.image();
        let saved = image.get(&record.name);
        let mut all = saved.map_or(Vec::new(), |saved| saved.candidates.to_vec());
        drop(image);
        all.extend(candidates);
        if all.len() as u64 != record.candidates {
            return Err(conflict());
        }
        self.progress.remove(&record.name);
        let state = values::state(record, &all, self.nonce());
        Ok(Write::new(state_key(&record.name), &state))
    }

    /// Returns whether only the progress of an operation has changed.
    fn is_progress(&self, record: &Record, candidates: &[Index]) -> bool {
        let image = self.replica.image();
        let Some(saved) = image.get(&record.name) else {
            return false;
        };
        let saved = &saved.record;
        candidates.is_empty()
            && saved.candidates == record.candidates
            && saved.cancel == record.cancel
            && record.end.is_none()
            && saved.end.is_none()
    }
}

impl Write {
    fn new(key: String, value: &impl Message) -> Write {
        Write {
            key,
            value: Some(wire::encode(value)),
        }
    }

    /// Writes the value. Fails if another writer has changed the bucket: either the image already
    /// shows that, or the broker rejects the write because the key has another revision.
    async fn carry_out(self, bucket: &Bucket, replica: &Replica) -> Result<(), StoreError> {
        let key = &self.key;
        let expected = {
            let mut image = replica.image();
            if image.is_foreign() {
                return Err(conflict());
            }
            if self.value.is_none() {
                if !image.has(key) {
                    return Ok(());
                }
                image.deletes(key);
            }
            Expected {
                revision: image.revision(key),
                has_value: image.has(key),
            }
        };
        let written = match &self.value {
            Some(value) => bucket.put(key, value.clone(), expected).await,
            None => bucket.delete(key, expected.revision).await,
        };
        match written {
            Ok(revision) => replica.wrote(key, revision, self.value.as_deref()),
            // The broker may have lost what this machine knows.
            Err(_) => {
                replica.image().keeps(key);
                replica.read_anew();
            }
        }
        written.map(drop)
    }
}

impl Store for FleetStore {
    /// Each creation and each update is written completely or not at all. The next leader deletes
    /// what is left of a deletion that was not completed.
    fn commit(
        &mut self,
        changes: &[Change],
        now: ClockReading,
    ) -> Result<Vec<Creation>, StoreError> {
        self.check()?;
        let (mut started, mut counts) = (HashMap::new(), HashMap::new());
        let (mut creations, mut first, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        let mut deleted = Vec::new();
        // An empty commit saves the clock.
        let mut has_progress = changes.is_empty();
        for change in changes {
            match change {
                Change::Create(record) => {
                    let creation = self.create(record, &mut started, &mut counts);
                    if creation == Creation::New {
                        let (request, operation) = self.creation(record, now.wall);
                        first.extend(request);
                        writes.push(operation);
                    }
                    creations.push(creation);
                }
                Change::Update { record, candidates } => {
                    let progress = values::progress(record);
                    let is_progress = self.is_progress(record, candidates)
                        && progress.encoded_len() <= MOST_PROGRESS;
                    if is_progress {
                        has_progress = true;
                        self.progress.insert(record.name.clone(), progress);
                    } else {
                        writes.push(self.state(record, candidates)?);
                    }
                }
                Change::Delete(name) => deleted.push(name.clone()),
            }
        }
        let mut size: usize = self.progress.values().map(Message::encoded_len).sum();
        for change in changes {
            // With more operations than one value can hold, some are written on their own.
            if let Change::Update { record, candidates } = change
                && size > MOST_PROGRESS_OF_ALL
                && let Some(progress) = self.progress.get(&record.name)
            {
                size -= progress.encoded_len();
                writes.push(self.state(record, candidates)?);
            }
        }
        self.write_all(first)?;
        self.write_all(writes)?;
        self.delete(&deleted, now.wall)?;
        if has_progress {
            let progress = pb::ProgressOfAll {
                nonce: self.nonce(),
                operations: self.progress.values().cloned().collect(),
                clock_ms: now.wall,
                doubtful_until_ms: now.doubtful_until,
            };
            self.write_all(vec![Write::new(PROGRESS.to_owned(), &progress)])?;
        }
        Ok(creations)
    }

    fn unfinished(&mut self) -> Result<Vec<Record>, StoreError> {
        let image = self.replica.image();
        let records = image.unfinished().map(|saved| (*saved.record).clone());
        Ok(records.collect())
    }

    fn expire(&mut self, now: Millis) -> Result<u64, StoreError> {
        self.check()?;
        let image = self.replica.image();
        let saved = image.names().filter_map(|name| image.get(name));
        let is_over = |record: &&Record| record.expires().is_some_and(|at| at <= now);
        let expired = saved.map(|saved| &*saved.record).filter(is_over);
        let expired = expired.map(|record| record.name.clone());
        let expired: Vec<Name> = expired.take(EXPIRED_AT_ONCE).collect();
        let is_forgotten = |request: &pb::SavedRequest| match request.forget_ms {
            // A request whose operation was not created, or is lost.
            0 => request.created_ms.saturating_add(REMEMBER_REQUEST) <= now,
            forget => forget <= now,
        };
        let present: HashSet<&str> = image.names().map(Name::id).collect();
        let requests = image.requests().iter().filter(|(_, request)| {
            is_forgotten(request)
                && (request.forget_ms != 0 || !present.contains(&request.operation[..]))
        });
        let forgotten: Vec<Write> = requests
            .take(EXPIRED_AT_ONCE)
            .map(|(key, _)| Write {
                key: key.clone(),
                value: None,
            })
            .collect();
        drop(image);
        self.delete(&expired, now)?;
        self.write_all(forgotten)?;
        Ok(expired.len() as u64)
    }

    fn last_reading(&mut self) -> Result<Option<ClockReading>, StoreError> {
        Ok(self.replica.image().clock())
    }
}

//! The saved operations of a fleet, as one machine knows them: a copy of the bucket in memory.
//!
//! An operation's record is put together from three values: what its client requested, its state,
//! and its progress since that state was written. Every value is true, so their order does not
//! matter, and one that the broker has lost or set back makes the fleet search again. Progress
//! counts only for a state with as many candidates: otherwise a candidate could be left out that
//! the broker has forgotten.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use hashfinder_operations::{ClockReading, Millis, Name, Record, Selection};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::Index;
use prost::Message;

use super::values;
use crate::wire::{self, Invalid, invalid};

/// Key of the leader that writes.
pub(crate) const WRITER: &str = "writer";

/// Key of the progress of all operations.
pub(crate) const PROGRESS: &str = "progress";

/// Returns the key of an operation as it was requested.
pub(crate) fn operation_key(name: &Name) -> String {
    format!("op.{}", name.id())
}

/// Returns the key of an operation's state.
pub(crate) fn state_key(name: &Name) -> String {
    format!("state.{}", name.id())
}

/// Returns the key of a client's request with this id. Both may contain any characters, and a key
/// only some.
pub(crate) fn request_key(client: &str, id: &str) -> String {
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    format!("request.{}.{}", hex(client), hex(id))
}

/// Tag of the field `nonce` of each value: number 1, a `fixed64`.
const NONCE_TAG: u8 = 1 << 3 | 1;

/// A saved operation.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    /// The record without the progress since its state was written.
    base: Arc<Record>,
    pub(crate) record: Arc<Record>,
    pub(crate) candidates: Arc<[Index]>,
    /// Whether it has a state that this version cannot read. It may have ended.
    pub(crate) is_unreadable: bool,
}

/// What a value has changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Applied {
    /// The operations that have changed.
    pub(crate) changed: Vec<Name>,
    /// Why the value could not be read, if it could not.
    pub(crate) problem: Option<Invalid>,
}

/// Number of a client's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) unfinished: u64,
    pub(crate) all: u64,
}

/// A state as it was read, without its candidates, and these.
#[derive(Debug)]
struct State {
    value: pb::SavedState,
    candidates: Result<Arc<[Index]>, Invalid>,
}

/// A value of the bucket.
#[derive(Clone, Debug)]
struct At<T> {
    revision: u64,
    value: T,
}

/// The latest value of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Key {
    revision: u64,
    /// Whether it was not deleted.
    has_value: bool,
    nonce: u64,
}

impl Key {
    /// Whether a leader has written this value after another one. An older one that
    /// comes back was restored by something else.
    fn is_by(self, instance: u32, before: Key) -> bool {
        let instance_of = |nonce: u64| (nonce >> 32) as u32;
        let is_later = instance_of(before.nonce) != instance || before.nonce < self.nonce;
        self.has_value && instance_of(self.nonce) == instance && is_later
    }
}

/// The saved operations.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// The latest revision that was read.
    seen: u64,
    keys: HashMap<String, Key>,
    requested: HashMap<Name, Arc<Record>>,
    states: HashMap<Name, At<State>>,
    progress: At<HashMap<Name, pb::SavedProgress>>,
    clock: Option<ClockReading>,
    saved: HashMap<Name, Saved>,
    order: BTreeSet<(Millis, Name)>,
    counts: HashMap<Arc<str>, Count>,
    requests: HashMap<String, pb::SavedRequest>,
    /// Operations by the keys of their requests.
    by_request: HashMap<String, Name>,
    /// The upper half of the nonces of the leader on this machine, if it leads, and the revision
    /// from which on it alone should write.
    own: Option<(u32, u64)>,
    /// Keys that this leader is about to delete.
    deleting: HashSet<String>,
    /// Whether another one has written since.
    is_foreign: bool,
    /// Keys that were deleted a while ago.
    old_marks: Vec<String>,
}

impl<T: Default> Default for At<T> {
    fn default() -> At<T> {
        At {
            revision: 0,
            value: T::default(),
        }
    }
}

impl Image {
    /// Records that only this leader should write after this revision.
    pub(crate) fn lead(&mut self, instance: u32, since: u64) {
        self.own = Some((instance, since));
        self.is_foreign = false;
    }

    /// Whether a writer other than this leader has changed a value since.
    pub(crate) fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Notes that this leader is about to delete a key.
    pub(crate) fn deletes(&mut self, key: &str) {
        self.deleting.insert(key.to_owned());
    }

    /// Notes that a deletion may have failed.
    pub(crate) fn keeps(&mut self, key: &str) {
        self.deleting.remove(key);
    }

    /// Replaces the image by one that was read anew. Returns all operations of both.
    pub(crate) fn replace(&mut self, image: Image) -> Vec<Name> {
        let before = std::mem::replace(self, image);
        self.own = before.own;
        self.is_foreign = before.is_foreign;
        self.deleting = before.deleting;
        if let Some((instance, _)) = self.own {
            let is_expected = |(key, now): (&String, &Key)| {
                let before = before.keys.get(key).copied().unwrap_or_default();
                *now == before
                    || now.is_by(instance, before)
                    || !now.has_value && (!before.has_value || self.deleting.contains(key))
            };
            let is_lost =
                |(key, before): (&String, &Key)| before.has_value && !self.keys.contains_key(key);
            self.is_foreign |=
                !self.keys.iter().all(is_expected) || before.keys.iter().any(is_lost);
        }
        let mut names: HashSet<Name> = before.saved.into_keys().collect();
        names.extend(self.saved.keys().cloned());
        names.into_iter().collect()
    }

    /// Returns the latest revision that was read.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// Returns the latest revision of a key; 0 if it was never written.
    pub(crate) fn revision(&self, key: &str) -> u64 {
        self.keys.get(key).map_or(0, |key| key.revision)
    }

    /// Whether a key has a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|key| key.has_value)
    }

    pub(crate) fn get(&self, name: &Name) -> Option<&Saved> {
        self.saved.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.order.iter().map(|(_, name)| name)
    }

    /// Returns the names of operations that are deleted, but not completely, and of those whose
    /// requests have started others: a leader that was paused has written them too late.
    pub(crate) fn leftovers(&self) -> Vec<Name> {
        // One that cannot be read is not deleted: a later version may have written it.
        let is_orphan = |name: &&Name| !self.has(&operation_key(name));
        let orphans = self.states.keys().filter(is_orphan);
        let is_over = |name: &&Name| {
            let request = self.saved.get(name).map(|saved| &saved.record.request);
            let request = request.filter(|request| !request.request_id.is_empty());
            let key = request.map(|request| request_key(&request.client, &request.request_id));
            let saved = key.and_then(|key| self.requests.get(&key));
            saved.is_some_and(|saved| {
                let is_own = saved.operation == name.id();
                let other = values::name(&saved.operation);
                let other_exists = other.is_ok_and(|other| self.saved.contains_key(&other));
                if is_own {
                    saved.forget_ms != 0
                } else {
                    other_exists
                }
            })
        };
        orphans
            .chain(self.names().filter(is_over))
            .cloned()
            .collect()
    }

    /// Returns the operations that have not ended and can be read.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = &Saved> {
        let saved = self.names().filter_map(|name| self.saved.get(name));
        saved.filter(|saved| saved.record.end.is_none() && !saved.is_unreadable)
    }

    /// Returns the upper half of the nonces of the leader on this machine, if it leads.
    pub(crate) fn instance(&self) -> Option<u32> {
        self.own.map(|(instance, _)| instance)
    }

    /// Forgets the marks of keys that were deleted before the last call. The broker has forgotten
    /// them, too, if that was long ago.
    pub(crate) fn forget_marks(&mut self) {
        for key in std::mem::take(&mut self.old_marks) {
            if !self.has(&key) {
                self.keys.remove(&key);
            }
        }
        let marks = self.keys.iter().filter(|(_, key)| !key.has_value);
        self.old_marks = marks.map(|(key, _)| key.clone()).collect();
        self.counts.retain(|_, count| count.all > 0);
    }

    pub(crate) fn requests(&self) -> &HashMap<String, pb::SavedRequest> {
        &self.requests
    }

    /// Returns the operation of the request with this key: the one that the saved request names or,
    /// if the request is lost, one that was started by it.
    pub(crate) fn by_request(&self, key: &str) -> Option<&Name> {
        let request = self.requests.get(key);
        let named = request.and_then(|request| values::name(&request.operation).ok());
        let named = named.and_then(|name| self.saved.get_key_value(&name));
        named
            .map(|(name, _)| name)
            .or_else(|| self.by_request.get(key))
    }

    pub(crate) fn count(&self, client: &str) -> Count {
        self.counts.get(client).copied().unwrap_or_default()
    }

    pub(crate) fn clock(&self) -> Option<ClockReading> {
        self.clock
    }

    /// Returns the saved progress of an operation, if its state is older.
    pub(crate) fn progress(&self, name: &Name) -> Option<&pb::SavedProgress> {
        let state = self.states.get(name).map_or(0, |state| state.revision);
        let progress = self.progress.value.get(name)?;
        (self.progress.revision > state).then_some(progress)
    }

    /// Returns up to `limit` operations, ordered by creation time and name.
    pub(crate) fn list(&self, selection: &Selection, limit: usize) -> Vec<Record> {
        let after = selection.after.as_ref();
        let from = after.and_then(|(created, id)| Some((*created, values::name(id).ok()?)));
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.order.range((from, Bound::Unbounded));
        let records = records.filter_map(|(_, name)| self.saved.get(name));
        let records = records.map(|saved| &*saved.record).filter(|record| {
            let client = selection.client.as_deref();
            client.is_none_or(|client| *record.request.client == *client)
                && selection
                    .ended
                    .is_none_or(|ended| record.end.is_some() == ended)
        });
        records.take(limit).cloned().collect()
    }

    /// Applies a value, or its deletion. An older or repeated revision changes nothing. A value
    /// that cannot be read counts as missing, but an operation whose state cannot be read is marked
    /// as unreadable.
    pub(crate) fn apply(&mut self, key: &str, revision: u64, value: Option<&[u8]>) -> Applied {
        self.seen = self.seen.max(revision);
        if revision <= self.revision(key) {
            return Applied::default();
        }
        let deletes = self.deleting.remove(key) || !self.has(key);
        let now = Key {
            revision,
            has_value: value.is_some(),
            nonce: value.and_then(nonce).unwrap_or_default(),
        };
        let before = self.keys.insert(key.to_owned(), now).unwrap_or_default();
        if let Some((instance, since)) = self.own
            && revision > since
        {
            let is_own = match now.has_value {
                true => now.is_by(instance, before),
                false => deletes,
            };
            self.is_foreign |= !is_own;
        }
        let (changed, problem) = match key.split_once('.') {
            Some(("op", id)) => self.apply_operation(id, value),
            Some(("state", id)) => self.apply_state(id, revision, value),
            Some(("request", _)) => {
                let (request, problem) = read(value);
                match request {
                    Some(request) => self.requests.insert(key.to_owned(), request),
                    None => self.requests.remove(key),
                };
                (Vec::new(), problem)
            }
            None if key == PROGRESS => self.apply_progress(revision, value),
            // The writer's, or that of a later version.
            _ => (Vec::new(), Ok(())),
        };
        Applied {
            changed,
            problem: problem.err(),
        }
    }

    fn apply_operation(
        &mut self,
        id: &str,
        value: Option<&[u8]>,
    ) -> (Vec<Name>, Result<(), Invalid>) {
        let name = match values::name(id) {
            Ok(name) => name,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let (saved, mut problem) = read(value);
        let record = saved.map(values::read_operation).transpose();
        let is_named = |record: &Record| record.name == name;
        match record {
            Ok(Some(record)) if is_named(&record) => {
                self.requested.insert(name.clone(), Arc::new(record));
            }
            other => {
                self.requested.remove(&name);
                let unnamed = other.and_then(|record| match record {
                    Some(_) => Err(invalid("it has the name of another operation")),
                    None => Ok(()),
                });
                problem = problem.and(unnamed);
            }
        }
        let together = self.put_together(&name);
        (vec![name], problem.and(together))
    }

    fn apply_state(
        &mut self,
        id: &str,
        revision: u64,
        value: Option<&[u8]>,
    ) -> (Vec<Name>, Result<(), Invalid>) {
        let name = match values::name(id) {
            Ok(name) => name,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let (state, problem) = read::<pb::SavedState>(value);
        let value = match (state, &problem) {
            (Some(mut value), _) => Some(State {
                candidates: values::take_candidates(&mut value),
                value,
            }),
            (None, Err(error)) => Some(State {
                candidates: Err(error.clone()),
                value: pb::SavedState::default(),
            }),
            (None, Ok(())) => None,
        };
        match value {
            Some(value) => self.states.insert(name.clone(), At { revision, value }),
            None => self.states.remove(&name),
        };
        let together = self.put_together(&name);
        (vec![name], problem.and(together))
    }

    fn apply_progress(
        &mut self,
        revision: u64,
        value: Option<&[u8]>,
    ) -> (Vec<Name>, Result<(), Invalid>) {
        let (all, mut problem) = read::<pb::ProgressOfAll>(value);
        if let Some(all) = &all {
            self.clock = Some(values::clock(all));
        }
        let mut value = HashMap::new();
        for progress in all.unwrap_or_default().operations {
            match values::name(&progress.id) {
                Ok(name) => drop(value.insert(name, progress)),
                Err(error) => problem = Err(error),
            }
        }
        let before = std::mem::replace(&mut self.progress, At { revision, value });
        let mut names: HashSet<Name> = before.value.into_keys().collect();
        names.extend(self.progress.value.keys().cloned());
        let mut changed = Vec::new();
        for name in names {
            let Some(saved) = self.saved.get(&name) else {
                continue;
            };
            let (record, error) = self.with_progress(&name, &saved.base);
            problem = problem.and(error);
            if record != saved.record {
                if let Some(saved) = self.saved.get_mut(&name) {
                    saved.record = record;
                }
                changed.push(name);
            }
        }
        (changed, problem)
    }

    /// Combines an operation's values into its record. If its state cannot be read, marks it as
    /// unreadable.
    fn put_together(&mut self, name: &Name) -> Result<(), Invalid> {
        if let Some(before) = self.saved.remove(name) {
            let record = &before.record;
            self.order.remove(&(record.created, name.clone()));
            let request = &record.request;
            let key = request_key(&request.client, &request.request_id);
            if self.by_request.get(&key) == Some(name) {
                self.by_request.remove(&key);
            }
            if let Some(count) = self.counts.get_mut(&request.client) {
                count.all -= 1;
                count.unfinished -= u64::from(record.end.is_none());
            }
        }
        let Some(requested) = self.requested.get(name) else {
            return Ok(());
        };
        let mut base = (**requested).clone();
        let state = self.states.get(name);
        let state = state.map(|state| {
            let candidates = Arc::clone(state.value.candidates.as_ref().map_err(Invalid::clone)?);
            values::apply_state(&mut base, &state.value.value, candidates.len())?;
            Ok(candidates)
        });
        let (candidates, problem) = split(state.transpose());
        let base = match problem {
            Ok(()) => Arc::new(base),
            Err(_) => Arc::clone(requested),
        };
        let (record, error) = self.with_progress(name, &base);
        let request = &record.request;
        if !request.request_id.is_empty() {
            let key = request_key(&request.client, &request.request_id);
            self.by_request.insert(key, name.clone());
        }
        self.order.insert((record.created, name.clone()));
        let count = self.counts.entry(Arc::clone(&request.client)).or_default();
        count.all += 1;
        count.unfinished += u64::from(record.end.is_none());
        let saved = Saved {
            base,
            record,
            candidates: candidates.unwrap_or_default(),
            is_unreadable: problem.is_err(),
        };
        self.saved.insert(name.clone(), saved);
        problem.and(error)
    }

    /// Returns the record of an operation with the progress since its state was written.
    fn with_progress(&self, name: &Name, base: &Arc<Record>) -> (Arc<Record>, Result<(), Invalid>) {
        let progress = self.progress(name);
        let holds = |progress: &&pb::SavedProgress| {
            progress.candidates == base.candidates && base.end.is_none()
        };
        let Some(progress) = progress.filter(holds) else {
            return (Arc::clone(base), Ok(()));
        };
        let mut record = (**base).clone();
        match values::apply_progress(&mut record, progress) {
            Ok(()) => (Arc::new(record), Ok(())),
            Err(error) => (Arc::clone(base), Err(error)),
        }
    }
}

/// Returns the nonce of a value: the first field of each.
pub(crate) fn nonce(value: &[u8]) -> Option<u64> {
    let value = value.strip_prefix(&[NONCE_TAG])?;
    Some(u64::from_le_bytes(*value.first_chunk()?))
}

/// Reads a value, if there is one that can be read.
fn read<M: Message + Default>(value: Option<&[u8]>) -> (Option<M>, Result<(), Invalid>) {
    split(value.map(wire::decode).transpose())
}

fn split<T>(result: Result<Option<T>, Invalid>) -> (Option<T>, Result<(), Invalid>) {
    match result {
        Ok(value) => (value, Ok(())),
        Err(error) => (None, Err(error)),
    }
}

#[cfg(test)]
mod tests;

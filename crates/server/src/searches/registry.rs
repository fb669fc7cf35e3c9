//! The list of the searches that have not ended, or ended recently.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashfinder_search::Outcome;
use hashfinder_transport::ClientName;

use crate::searches::{
    owner_client::{LOCAL, client_of},
    record::Record,
};

/// Maximum number of ended searches that are kept of one client: enough to find a recent one, and
/// few enough that a client with thousands of short calls does not fill the memory.
const ENDED_OF_CLIENT: usize = 100;

/// Maximum number of ended searches that are kept in total. Beyond it, the client with the most
/// ended searches loses its oldest one, so that it does not push out those of clients with fewer. A
/// search takes about a kilobyte, or five with the longest names and the longest cursor, so all
/// together take at most ten megabytes.
const ENDED: usize = 2000;

const _: () = assert!(ENDED_OF_CLIENT < ENDED);

/// Place of a search in the list, which has the order in which searches were added.
pub(crate) type Place = u64;

/// The caller that a list is for.
#[derive(Clone, Debug)]
pub(crate) struct Viewer {
    pub(crate) client: ClientName,
    /// Sees and cancels all searches.
    pub(crate) is_operator: bool,
    /// Owns the operations of [`LOCAL`].
    pub(crate) is_local: bool,
}

impl Viewer {
    /// Whether the search is one of this caller, or of an operation of this caller.
    pub(crate) fn owns(&self, record: &Record) -> bool {
        let is_local = || record.operation().is_some() && *record.client() == client_of(LOCAL);
        *record.client() == self.client || self.is_local && is_local()
    }

    fn sees(&self, record: &Record) -> bool {
        self.is_operator || self.owns(record)
    }
}

/// The list. It keeps every search that has not ended; the limit on RPCs limits their number.
#[derive(Default)]
pub(crate) struct Registry {
    /// A hasher with random keys, which differ in every process.
    random: RandomState,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    next: Place,
    records: BTreeMap<Place, Arc<Record>>,
    places: HashMap<Arc<str>, Place>,
    /// The places of the ended searches of each client, in the order of their ends.
    ended: HashMap<ClientName, VecDeque<Place>>,
    ended_count: usize,
}

impl Registry {
    /// Adds a search to the list and returns its new id. A search that is already listed keeps its
    /// id.
    pub(crate) fn add(&self, record: &Arc<Record>) -> Arc<str> {
        if let Some(id) = record.id() {
            return id;
        }
        let mut list = self.lock();
        let place = list.next;
        list.next += 1;
        let id = self.id(place);
        // Under the lock, so that a search that ends from now on is found in the list.
        let has_ended = record.set_id(Arc::clone(&id));
        list.records.insert(place, Arc::clone(record));
        list.places.insert(Arc::clone(&id), place);
        if has_ended {
            list.retire(place, record.client());
        }
        id
    }

    /// Records how a search ended. Its reader and its last worker may both report the end; only the
    /// first report counts.
    pub(crate) fn ended(&self, record: &Record, outcome: &Outcome, hashes: u64) {
        if record.ended(outcome, hashes)
            && let Some(id) = record.id()
        {
            let mut list = self.lock();
            if let Some(place) = list.places.get(&id).copied() {
                list.retire(place, record.client());
            }
        }
    }

    /// Returns the search with this id, if the viewer may see it.
    pub(crate) fn find(&self, viewer: &Viewer, id: &str) -> Option<Arc<Record>> {
        let list = self.lock();
        let record = list.records.get(list.places.get(id)?)?;
        viewer.sees(record).then(|| Arc::clone(record))
    }

    /// Returns the searches that the viewer may see, oldest first. `client` limits them to those of
    /// one client, and `after` to those after a place.
    pub(crate) fn seen_by(
        &self,
        viewer: &Viewer,
        client: Option<&str>,
        after: Option<Place>,
    ) -> Vec<(Place, Arc<Record>)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let list = self.lock();
        let records = list.records.range((after, Bound::Unbounded));
        records
            .filter(|(_, record)| viewer.sees(record))
            .filter(|(_, record)| client.is_none_or(|client| **record.client().as_str() == *client))
            .map(|(place, record)| (*place, Arc::clone(record)))
            .collect()
    }

    /// Returns a token with which a list continues after a place. Only this process can create or
    /// read it.
    pub(crate) fn page_token(&self, place: Place) -> String {
        let seal = self.random.hash_one(("page", place));
        let hidden = place ^ self.random.hash_one(("hide", seal));
        format!("{seal:016x}{hidden:016x}")
    }

    /// Returns the place that a token stands for, if this process has created the token.
    pub(crate) fn place_of(&self, token: &str) -> Option<Place> {
        let (seal, hidden) = token.split_at_checked(16)?;
        let seal = u64::from_str_radix(seal, 16).ok()?;
        let hidden = u64::from_str_radix(hidden, 16).ok()?;
        let place = hidden ^ self.random.hash_one(("hide", seal));
        (self.page_token(place) == token).then_some(place)
    }

    /// Returns an id of 128 bits that cannot be guessed, and that neither this process nor a later
    /// one uses again.
    fn id(&self, place: Place) -> Arc<str> {
        let halves = [("id", place), ("di", place)].map(|half| self.random.hash_one(half));
        format!("{:016x}{:016x}", halves[0], halves[1]).into()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // No code under this lock panics in the middle of a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// Adds a search to the ended ones. If there are too many of them, forgets one.
    fn retire(&mut self, place: Place, client: &ClientName) {
        let of_client = self.ended.entry(client.clone()).or_default();
        of_client.push_back(place);
        self.ended_count += 1;
        if of_client.len() > ENDED_OF_CLIENT {
            self.forget_one_of(client);
        } else if self.ended_count > ENDED {
            let most = self.ended.iter();
            let most = most.max_by_key(|(_, places)| places.len());
            if let Some(client) = most.map(|(client, _)| client.clone()) {
                self.forget_one_of(&client);
            }
        }
    }

    fn forget_one_of(&mut self, client: &ClientName) {
        let Some(places) = self.ended.get_mut(client) else {
            return;
        };
        let oldest = places.pop_front();
        if places.is_empty() {
            self.ended.remove(client);
        }
        if let Some(record) = oldest.and_then(|place| self.records.remove(&place)) {
            self.ended_count -= 1;
            if let Some(id) = record.id() {
                self.places.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call_info::MethodName;
    use hashfinder_search::{Distance, Query};
    use std::collections::HashSet;

    fn name(number: usize) -> ClientName {
        format!("10.0.0.{number}").parse().unwrap()
    }

    fn record(client: usize) -> Arc<Record> {
        let query = Query::new("aa".parse().unwrap(), Distance::ZERO).unwrap();
        let method = MethodName::new("a.Service", "Method");
        Arc::new(Record::new(method, name(client), &query))
    }

    fn ids(registry: &Registry, viewer: &Viewer) -> Vec<Arc<str>> {
        let seen = registry.seen_by(viewer, None, None).into_iter();
        seen.map(|(_, record)| record.id().unwrap()).collect()
    }

    fn viewer(client: usize) -> Viewer {
        Viewer {
            client: name(client),
            is_operator: false,
            is_local: false,
        }
    }

    #[test]
    fn ended_searches_are_bounded_and_a_client_pushes_out_only_its_own() {
        let registry = Registry::default();
        let end = |record: &Record| registry.ended(record, &Outcome::Exhausted, 0);
        let add = |client| {
            let record = record(client);
            registry.add(&record);
            record
        };
        let running = add(0);
        let few: Vec<Arc<str>> = (0..3)
            .map(|_| {
                let record = add(0);
                end(&record);
                // A second report of the end changes nothing.
                end(&record);
                record.id().unwrap()
            })
            .collect();
        // Each of these clients ends more searches than are kept for it, and all together more than
        // are kept in total.
        for _ in 0..2 * ENDED_OF_CLIENT {
            for client in 1..=2 * ENDED / ENDED_OF_CLIENT {
                end(&add(client));
            }
        }
        let operator = Viewer {
            is_operator: true,
            is_local: false,
            ..viewer(0)
        };
        let all = ids(&registry, &operator);
        assert_eq!(all.len(), ENDED + 1);
        let mut own = vec![running.id().unwrap()];
        own.extend(few);
        assert_eq!(ids(&registry, &viewer(0)), own);
        let most = ids(&registry, &viewer(1));
        assert!(most.len() <= ENDED_OF_CLIENT && !most.is_empty());
        // A forgotten search leaves nothing behind.
        let list = registry.lock();
        assert_eq!((list.places.len(), list.ended_count), (ENDED + 1, ENDED));
        let ended: usize = list.ended.values().map(VecDeque::len).sum();
        assert_eq!(ended, ENDED);
        drop(list);
        // A search that had ended when it was listed counts as ended.
        let late = record(0);
        end(&late);
        registry.add(&late);
        assert_eq!(registry.lock().ended[&name(0)].len(), 4);
    }

    #[test]
    fn only_its_client_and_operators_find_a_search() {
        let registry = Registry::default();
        let id = registry.add(&record(1));
        assert!(registry.find(&viewer(1), &id).is_some());
        assert!(registry.find(&viewer(2), &id).is_none());
        let operator = Viewer {
            is_operator: true,
            is_local: false,
            ..viewer(2)
        };
        assert!(registry.find(&operator, &id).is_some());
        assert!(registry.find(&operator, &id[1..]).is_none());
        assert_eq!(
            registry.seen_by(&operator, Some("ip:10.0.0.1"), None).len(),
            1
        );
        assert_eq!(
            registry.seen_by(&operator, Some("ip:10.0.0.2"), None).len(),
            0
        );
        assert_eq!(registry.seen_by(&operator, None, Some(0)).len(), 0);
    }

    #[test]
    fn ids_are_unique_and_page_tokens_belong_to_their_registry() {
        let (registry, other) = (Registry::default(), Registry::default());
        let places = 0..1000;
        let all = [&registry, &other];
        let ids: HashSet<_> = all
            .iter()
            .flat_map(|registry| places.clone().map(|place| registry.id(place)))
            .collect();
        assert_eq!(ids.len(), 2000);
        for place in places.chain([u64::MAX]) {
            let token = registry.page_token(place);
            assert_eq!(registry.place_of(&token), Some(place));
            assert_eq!(other.place_of(&token), None);
            assert_eq!(registry.place_of(&token[1..]), None);
        }
    }
}

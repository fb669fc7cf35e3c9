//! The list of the searches that are going on, and of those that have ended lately.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashfinder_search::{Outcome, Stopper};

use super::call::Call;
use crate::listener::ClientName;

/// How many of one client's ended searches are kept: enough to find the one that somebody asks about,
/// and so few that who makes thousands of short calls fills no memory.
const ENDED_OF_CLIENT: usize = 100;

/// How many ended searches are kept in all. Beyond that the client with most of them loses its oldest, so
/// that nobody pushes out those of others who have fewer. Each takes about a kilobyte.
const ENDED: usize = 2000;

const _: () = assert!(ENDED_OF_CLIENT < ENDED);

/// A search's place in the list: the order in which they came.
pub(super) type Place = u64;

/// Who asks what there is.
#[derive(Clone, Debug)]
pub(super) struct Viewer {
    pub(super) client: ClientName,
    /// Sees and cancels all searches.
    pub(super) is_operator: bool,
}

impl Viewer {
    fn sees(&self, call: &Call) -> bool {
        self.is_operator || *call.client() == self.client
    }
}

/// The list. One that is going on is in it until it ends; how many these are is limited elsewhere.
#[derive(Default)]
pub(super) struct Registry {
    /// Its keys are as random as the system's, and other ones in every process.
    random: RandomState,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    next: Place,
    calls: BTreeMap<Place, Arc<Call>>,
    places: HashMap<Arc<str>, Place>,
    /// The places of those that have ended, in the order of their ends.
    ended: HashMap<ClientName, VecDeque<Place>>,
    ended_count: usize,
}

impl Registry {
    /// Lists a call, and gives the id by which it is known. One that is listed keeps its id.
    pub(super) fn add(&self, call: &Arc<Call>, stopper: Stopper) -> Arc<str> {
        if let Some(id) = call.id() {
            return id;
        }
        let mut list = self.lock();
        let place = list.next;
        list.next += 1;
        let id = self.id(place);
        // With the lock held, so that whoever ends it from now on finds it in the list.
        let has_ended = call.list(Arc::clone(&id), stopper);
        list.calls.insert(place, Arc::clone(call));
        list.places.insert(Arc::clone(&id), place);
        if has_ended {
            list.retire(place, call.client());
        }
        id
    }

    /// A search has ended, as its reader was told, or with its last worker: whichever comes first.
    pub(super) fn ended(&self, call: &Call, outcome: &Outcome, hashes: u64) {
        if call.search_ended(outcome, hashes)
            && let Some(id) = call.id()
        {
            let mut list = self.lock();
            if let Some(place) = list.places.get(&id).copied() {
                list.retire(place, call.client());
            }
        }
    }

    /// The search with this id, if the viewer may see it.
    pub(super) fn find(&self, viewer: &Viewer, id: &str) -> Option<Arc<Call>> {
        let list = self.lock();
        let call = list.calls.get(list.places.get(id)?)?;
        viewer.sees(call).then(|| Arc::clone(call))
    }

    /// The searches that the viewer sees, the oldest first: all of them, or those behind a place, and of
    /// all clients or of one.
    pub(super) fn seen_by(
        &self,
        viewer: &Viewer,
        client: Option<&str>,
        after: Option<Place>,
    ) -> Vec<(Place, Arc<Call>)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let list = self.lock();
        let calls = list.calls.range((after, Bound::Unbounded));
        calls
            .filter(|(_, call)| viewer.sees(call))
            .filter(|(_, call)| client.is_none_or(|client| *call.client().0 == *client))
            .map(|(place, call)| (*place, Arc::clone(call)))
            .collect()
    }

    /// A text from which a list goes on behind a place; nobody can read or make one but this process.
    pub(super) fn page_token(&self, place: Place) -> String {
        let seal = self.random.hash_one(("page", place));
        let hidden = place ^ self.random.hash_one(("hide", seal));
        format!("{seal:016x}{hidden:016x}")
    }

    /// The place that a token stands for, if it is one.
    pub(super) fn place_of(&self, token: &str) -> Option<Place> {
        let (seal, hidden) = token.split_at_checked(16)?;
        let seal = u64::from_str_radix(seal, 16).ok()?;
        let hidden = u64::from_str_radix(hidden, 16).ok()?;
        let place = hidden ^ self.random.hash_one(("hide", seal));
        (self.page_token(place) == token).then_some(place)
    }

    /// 128 bits that nobody can guess, and that come again neither here nor after a restart.
    fn id(&self, place: Place) -> Arc<str> {
        let halves = [("id", place), ("di", place)].map(|half| self.random.hash_one(half));
        format!("{:016x}{:016x}", halves[0], halves[1]).into()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // Nothing in here panics half-way through a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// Puts a search among those that have ended, and forgets one of these if there are too many.
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
        if let Some(call) = oldest.and_then(|place| self.calls.remove(&place)) {
            self.ended_count -= 1;
            if let Some(id) = call.id() {
                self.places.remove(&id);
            }
        }
    }
}

//! Whose turn it is: fair between clients, then between one client's connections, then between one
//! connection's searches.
//!
//! Clients are served by stride scheduling (Waldspurger and Weihl, 1995): each has a *pass*, the core
//! time it was given divided by its weight, and whoever has the least is next. A client that was away
//! begins where the others are: it neither saves time up nor loses its debts.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use crate::scheduler::SearchId;

/// For whom a search is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Who shares what one client may have: an address, a user, or whoever was authenticated.
    pub name: Arc<str>,
    /// Which of the client's connections asks. Between these its share is divided evenly.
    pub connection: u64,
    /// How much the client's share is, compared with other clients'.
    pub weight: NonZeroU32,
}

impl Default for Client {
    /// The only client of a process that searches for itself.
    fn default() -> Client {
        Client {
            name: Arc::from(""),
            connection: 0,
            weight: NonZeroU32::MIN,
        }
    }
}

#[derive(Default)]
pub(crate) struct Turns {
    clients: HashMap<Arc<str>, Queue>,
    /// The clients that have a search in their queue.
    order: BTreeSet<(u64, Arc<str>)>,
    /// The pass of whoever was served last, which never goes back.
    now: u64,
    /// With how many clients those are looked through that may be forgotten.
    next_look: usize,
}

/// One client's searches that want a slice.
#[derive(Default)]
struct Queue {
    pass: u64,
    /// The new ones. They take every other turn at most, so that a client that never stops beginning
    /// searches still comes to the end of one.
    new: VecDeque<SearchId>,
    was_new: bool,
    /// The connections that have others, the next one in front.
    connections: VecDeque<(u64, VecDeque<SearchId>)>,
}

/// How many clients are remembered for their debts before they are looked through.
const REMEMBERED: usize = 1000;

impl Queue {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.connections.is_empty()
    }

    fn push(&mut self, connection: u64, search: SearchId) {
        let known = self
            .connections
            .iter_mut()
            .find(|(number, _)| *number == connection);
        match known {
            Some((_, searches)) => searches.push_back(search),
            None => self
                .connections
                .push_back((connection, VecDeque::from([search]))),
        }
    }

    fn pop(&mut self) -> Option<SearchId> {
        self.was_new = !self.was_new && !self.new.is_empty() || self.connections.is_empty();
        if self.was_new {
            return self.new.pop_front();
        }
        let (number, mut searches) = self.connections.pop_front()?;
        let search = searches.pop_front();
        if !searches.is_empty() {
            self.connections.push_back((number, searches));
        }
        search
    }
}

impl Turns {
    /// Queues a search: behind its connection's others, or before them if it is new.
    pub(crate) fn push(&mut self, client: &Client, search: SearchId, new: bool) {
        let queue = self.clients.entry(Arc::clone(&client.name)).or_default();
        if queue.is_empty() {
            queue.pass = queue.pass.max(self.now);
            self.order.insert((queue.pass, Arc::clone(&client.name)));
        }
        if new {
            queue.new.push_back(search);
        } else {
            queue.push(client.connection, search);
        }
    }

    /// The search whose turn it is, which leaves the queue.
    pub(crate) fn pop(&mut self) -> Option<SearchId> {
        let (pass, name) = self.order.first()?.clone();
        self.now = self.now.max(pass);
        let queue = self.clients.get_mut(&name)?;
        let search = queue.pop();
        if queue.is_empty() {
            self.order.remove(&(pass, name));
            self.forget();
        }
        search
    }

    /// Counts core time that a client was given; or gives it back, if less was needed after all.
    pub(crate) fn charge(&mut self, client: &Client, given: Duration, back: Duration) {
        let Some(queue) = self.clients.get_mut(&client.name) else {
            return;
        };
        let share = |time: Duration| time.as_nanos() as u64 / u64::from(client.weight.get());
        let pass = (queue.pass + share(given)).saturating_sub(share(back));
        if self.order.remove(&(queue.pass, Arc::clone(&client.name))) {
            self.order.insert((pass, Arc::clone(&client.name)));
        }
        queue.pass = pass;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Forgets clients that have neither searches nor debts.
    fn forget(&mut self) {
        if self.clients.len() > self.next_look {
            let now = self.now;
            self.clients
                .retain(|_, queue| !queue.is_empty() || queue.pass > now);
            self.next_look = REMEMBERED + 2 * self.clients.len();
        }
    }
}

//! Decides whose turn it is: fairly between clients, then between a client's connections, then
//! between a connection's searches.
//!
//! Clients, and the connections of each, are served by stride scheduling (Waldspurger and Weihl,
//! 1995). Each member has a *pass*: the core time that it was given, divided by its weight. The
//! member with the smallest pass is next. A member that returns starts at the others' pass: it
//! cannot save up time while it is away, and its debts remain.
//!
//! A member that has something new and owes at most one slice does not have to wait for all others,
//! of which there may be thousands. It is served out of turn and pays for that. At most every other
//! turn is out of turn, so neither a client that keeps starting searches nor a stream of new
//! clients can starve the waiting members.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use crate::{client::Client, ids::SearchId, pacing::SLICE_TIME};

/// Maximum time by which a member may exceed its share and still be served out of turn: the advance
/// charge for one slice.
const MAX_LEAD: u64 = SLICE_TIME.as_nanos() as u64;

/// Number of members above which idle ones are swept. After a sweep, twice the number of those left
/// is added to it. It also applies to each client's connections, which change all the time: with a
/// limit of 1,000, idle connections accumulated over hours and took megabytes.
const SWEEP_AFTER: usize = 16;

/// Maximum number of idle members that are kept because they owe time. Those that owe most are
/// kept. While nothing waits, no debt is ever paid, so without this limit every connection would be
/// kept forever.
const MAX_DEBTORS: usize = 100;

/// The searches that wait for a slice.
#[derive(Default)]
pub(crate) struct FairQueue {
    clients: StrideQueue<Arc<str>, StrideQueue<u64, Searches>>,
    /// Number of tickets issued.
    tickets: u64,
}

/// A search's place in the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    number: u64,
    new: bool,
}

impl FairQueue {
    /// Queues a search: behind the connection's other searches, or before those that are not new if
    /// it is new itself.
    pub(crate) fn push(&mut self, client: &Client, search: SearchId, new: bool) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket {
            number: self.tickets,
            new,
        };
        self.clients.push(&client.name, |connections| {
            connections.push(&client.connection, |searches| {
                searches.queue(new).insert(ticket.number, search);
            });
        });
        ticket
    }

    /// Removes a search that needs no turn any more, without using up a turn.
    pub(crate) fn remove(&mut self, client: &Client, ticket: Ticket) {
        self.clients.remove(&client.name, |connections| {
            connections.remove(&client.connection, |searches| {
                searches.queue(ticket.new).remove(&ticket.number);
            });
        });
    }

    /// Removes the search whose turn it is, and returns it.
    pub(crate) fn pop(&mut self) -> Option<SearchId> {
        self.clients.pop(false, |connections, new| {
            connections.pop(new, Searches::pop)
        })
    }

    /// Charges a client for core time, less `refund`, which it was charged in advance.
    pub(crate) fn charge(&mut self, client: &Client, given: Duration, refund: Duration) {
        let (given, refund) = (given.as_nanos() as u64, refund.as_nanos() as u64);
        let weight = u64::from(client.weight.get());
        // Rounded up, so that no time is free even for the greatest weight.
        let share = |time: u64| time.div_ceil(weight);
        self.clients.sweep();
        let connections = (self.clients).charge(&client.name, share(given), share(refund));
        connections.sweep();
        connections.charge(&client.connection, given, refund);
    }

    /// Returns how many clients have a search that waits, or most of them.
    pub(crate) fn waiting_clients(&self) -> usize {
        (self.clients.order.len()).max(self.clients.newcomers.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.clients.has_new() && !self.clients.has_others()
    }
}

/// What a member has waiting for a turn.
trait Backlog: Default {
    /// Whether it has something new, which may be served out of turn.
    fn has_new(&self) -> bool;
    /// Whether it has anything else.
    fn has_others(&self) -> bool;
}

/// Members that share time by stride scheduling, and the backlog of each.
struct StrideQueue<K, T> {
    members: HashMap<K, Member<T>>,
    /// Members that wait for their turn, by their pass.
    order: BTreeSet<(u64, K)>,
    /// Members that may be served out of turn, in the order of their arrival.
    newcomers: BTreeMap<u64, K>,
    arrivals: u64,
    /// Whether the member that was served last was served out of turn.
    was_new: bool,
    /// The pass of the member that was last served in turn. It never decreases.
    now: u64,
    /// Number of members that triggers the next sweep.
    next_sweep: usize,
}

#[derive(Default)]
struct Member<T> {
    pass: u64,
    in_order: bool,
    /// Its key in `newcomers`, if it may be served out of turn.
    arrival: Option<u64>,
    backlog: T,
}

impl<K, T> Default for StrideQueue<K, T> {
    fn default() -> StrideQueue<K, T> {
        StrideQueue {
            members: HashMap::new(),
            order: BTreeSet::new(),
            newcomers: BTreeMap::new(),
            arrivals: 0,
            was_new: false,
            now: 0,
            next_sweep: SWEEP_AFTER,
        }
    }
}

impl<K, T> Backlog for StrideQueue<K, T> {
    fn has_new(&self) -> bool {
        !self.newcomers.is_empty()
    }

    fn has_others(&self) -> bool {
        !self.order.is_empty()
    }
}

impl<K: Clone + Ord + Hash, T: Backlog> StrideQueue<K, T> {
    /// Adds to a member's backlog by calling `put`.
    fn push(&mut self, key: &K, put: impl FnOnce(&mut T)) {
        let member = self.members.entry(key.clone()).or_default();
        if !member.waits() {
            // A member that returns starts at the others' pass.
            member.pass = member.pass.max(self.now);
        }
        put(&mut member.backlog);
        self.requeue(key);
    }

    /// Removes from a member's backlog by calling `take`, without using up a turn.
    fn remove(&mut self, key: &K, take: impl FnOnce(&mut T)) {
        if let Some(member) = self.members.get_mut(key) {
            take(&mut member.backlog);
            self.requeue(key);
        }
    }

    /// Removes members that neither wait nor owe much, once there are many more than after the last
    /// sweep.
    fn sweep(&mut self) {
        if self.members.len() <= self.next_sweep {
            return;
        }
        let idle = self.members.values().filter(|member| !member.waits());
        let mut debts: Vec<u64> = idle
            .map(|member| member.pass)
            .filter(|pass| *pass > self.now)
            .collect();
        let mut forgiven = self.now;
        if let Some(least) = debts.len().checked_sub(MAX_DEBTORS + 1) {
            forgiven = *debts.select_nth_unstable(least).1;
        }
        self.members
            .retain(|_, member| member.waits() || member.pass > forgiven);
        self.next_sweep = SWEEP_AFTER + 2 * self.members.len();
    }

    /// Takes from the backlog of the member whose turn it is, by calling `take`. If `new` is set,
    /// takes something new if there is any.
    fn pop<R>(&mut self, new: bool, take: impl FnOnce(&mut T, bool) -> Option<R>) -> Option<R> {
        let mut out_of_turn = None;
        if new || !self.was_new || self.order.is_empty() {
            out_of_turn = self.newcomers.pop_first();
        }
        self.was_new = out_of_turn.is_some();
        let key = match out_of_turn {
            Some((_, key)) => {
                // If the member has more that is new, it queues behind the other newcomers.
                self.members.get_mut(&key)?.arrival = None;
                key
            }
            None => {
                let (pass, key) = self.order.first()?.clone();
                self.now = self.now.max(pass);
                key
            }
        };
        let member = self.members.get_mut(&key)?;
        let taken = take(&mut member.backlog, self.was_new);
        self.requeue(&key);
        taken
    }

    /// Charges a member for time, less a refund. Returns its backlog, whose members pay, too.
    fn charge(&mut self, key: &K, given: u64, refund: u64) -> &mut T {
        let StrideQueue { members, order, .. } = self;
        let member = members.entry(key.clone()).or_default();
        if !member.waits() {
            member.pass = member.pass.max(self.now);
        }
        let pass = (member.pass + given).saturating_sub(refund);
        if member.in_order {
            order.remove(&(member.pass, key.clone()));
            order.insert((pass, key.clone()));
        }
        member.pass = pass;
        &mut member.backlog
    }

    /// Updates where a member waits after its backlog or its pass has changed.
    fn requeue(&mut self, key: &K) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let (has_new, has_others) = (member.backlog.has_new(), member.backlog.has_others());
        match member.arrival {
            None if has_new && member.pass <= self.now + MAX_LEAD => {
                self.arrivals += 1;
                member.arrival = Some(self.arrivals);
                self.newcomers.insert(self.arrivals, key.clone());
            }
            Some(arrival) if !has_new => {
                member.arrival = None;
                self.newcomers.remove(&arrival);
            }
            _ => {}
        }
        // What is new does not wait in both queues, or it would get a second turn.
        let in_order = has_others || has_new && member.arrival.is_none();
        if in_order != member.in_order {
            member.in_order = in_order;
            let position = (member.pass, key.clone());
            if in_order {
                self.order.insert(position);
            } else {
                self.order.remove(&position);
            }
        }
    }
}

impl<T> Member<T> {
    fn waits(&self) -> bool {
        self.in_order || self.arrival.is_some()
    }
}

/// One connection's searches. Here, too, new ones take at most every other turn, except when the
/// queue above asks for a new one.
#[derive(Default)]
struct Searches {
    new: BTreeMap<u64, SearchId>,
    others: BTreeMap<u64, SearchId>,
    was_new: bool,
}

impl Searches {
    fn queue(&mut self, new: bool) -> &mut BTreeMap<u64, SearchId> {
        if new { &mut self.new } else { &mut self.others }
    }

    fn pop(&mut self, new: bool) -> Option<SearchId> {
        let new = new || !self.was_new || self.others.is_empty();
        self.was_new = new && !self.new.is_empty();
        let was_new = self.was_new;
        self.queue(was_new).pop_first().map(|(_, search)| search)
    }
}

impl Backlog for Searches {
    fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    fn has_others(&self) -> bool {
        !self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    const SLICE: Duration = SLICE_TIME;

    fn client(name: &str, connection: u64) -> Client {
        Client {
            name: name.into(),
            connection,
            ..Client::default()
        }
    }

    /// Serves `count` turns of one slice each, and queues each of `searches` again when it was
    /// served. Returns how many turns each of them had.
    fn serve(
        queue: &mut FairQueue,
        searches: &[Client],
        count: usize,
        mut before: impl FnMut(&mut FairQueue, usize),
    ) -> Vec<usize> {
        let mut served = vec![0; searches.len()];
        for turn in 0..count {
            before(queue, turn);
            let id = queue.pop().unwrap();
            let known = searches.get(id as usize);
            if let Some(client) = known {
                served[id as usize] += 1;
                queue.charge(client, SLICE, Duration::ZERO);
                queue.push(client, id, false);
            }
        }
        served
    }

    /// Regression: a stream of new clients was always served first.
    #[test]
    fn a_stream_of_new_clients_takes_half_of_the_turns_at_most() {
        let mut queue = FairQueue::default();
        let old: Vec<Client> = (0..4)
            .map(|number| client(&format!("old {number}"), 0))
            .collect();
        for (id, client) in old.iter().enumerate() {
            queue.push(client, id as SearchId, true);
        }
        let served = serve(&mut queue, &old, 1000, |queue, turn| {
            queue.push(
                &client(&format!("new {turn}"), 0),
                1000 + turn as SearchId,
                true,
            );
        });
        for count in &served {
            assert!((120..=130).contains(count), "{served:?}");
        }
    }

    /// Regression: the connection that starts searches took half of its client's time.
    #[test]
    fn a_connection_that_keeps_starting_searches_gets_no_more_than_others() {
        let mut queue = FairQueue::default();
        let old: Vec<Client> = (0..9).map(|connection| client("a", connection)).collect();
        for (id, client) in old.iter().enumerate() {
            queue.push(client, id as SearchId, false);
        }
        let busy = client("a", 9);
        let mut served = [0; 10];
        for next in 1000..4000 {
            queue.push(&busy, next, true);
            let id = queue.pop().unwrap();
            let (client, slot) = old
                .get(id as usize)
                .map_or((&busy, 9), |of| (of, id as usize));
            served[slot] += 1;
            queue.charge(client, SLICE, Duration::ZERO);
            if slot < 9 {
                queue.push(client, id, false);
            }
        }
        for count in served {
            assert!((290..=310).contains(&count), "{served:?}");
        }
    }

    #[test]
    fn connections_share_by_time_and_not_by_turns() {
        let mut queue = FairQueue::default();
        let (slow, fast) = (client("a", 1), client("a", 2));
        queue.push(&slow, 1, false);
        queue.push(&fast, 2, false);
        let mut given = [Duration::ZERO; 3];
        for _ in 0..1100 {
            let id = queue.pop().unwrap();
            let (client, time) = if id == 1 {
                (&slow, SLICE * 10)
            } else {
                (&fast, SLICE)
            };
            given[id as usize] += time;
            queue.charge(client, time, Duration::ZERO);
            queue.push(client, id, false);
        }
        let ratio = given[1].as_secs_f64() / given[2].as_secs_f64();
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_newcomer_is_next_among_thousands() {
        let mut queue = FairQueue::default();
        let old: Vec<Client> = (0..5000)
            .map(|number| client(&format!("{number}"), number))
            .collect();
        for (id, client) in old.iter().enumerate() {
            queue.push(client, id as SearchId, false);
        }
        serve(&mut queue, &old, 7000, |_, _| ());
        // A new client, and a client that has waited long enough to owe nothing.
        queue.push(&client("new", 0), 10_000, true);
        queue.push(&old[4000], 10_001, true);
        let next: Vec<SearchId> = (0..4).map(|_| queue.pop().unwrap()).collect();
        assert_eq!((next[0], next[2]), (10_000, 10_001), "{next:?}");
    }

    #[test]
    fn a_removed_search_uses_up_no_turn() {
        let mut queue = FairQueue::default();
        let (a, b) = (client("a", 0), client("b", 0));
        let tickets: Vec<Ticket> = (0..1000).map(|id| queue.push(&a, id, true)).collect();
        queue.push(&b, 2000, false);
        for ticket in tickets {
            queue.remove(&a, ticket);
        }
        queue.push(&a, 1000, true);
        assert_eq!(queue.pop(), Some(1000));
        assert_eq!(queue.pop(), Some(2000));
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    /// A client is given such time if, for example, all its searches end within their first
    /// secrets.
    #[test]
    fn time_given_outside_of_turns_is_owed() {
        let mut queue = FairQueue::default();
        let (idle, busy) = (client("idle", 0), client("busy", 0));
        queue.charge(&busy, 3 * SLICE, Duration::ZERO);
        let searches = [busy, idle];
        queue.push(&searches[0], 0, true);
        queue.push(&searches[1], 1, false);
        let served = serve(&mut queue, &searches, 5, |_, _| ());
        assert_eq!(served, [1, 4]);
    }

    #[test]
    fn the_heaviest_client_does_not_starve_others() {
        let mut queue = FairQueue::default();
        let heavy = Client {
            weight: NonZeroU32::MAX,
            ..client("heavy", 0)
        };
        let searches = [heavy, client("light", 0)];
        queue.push(&searches[0], 0, false);
        queue.push(&searches[1], 1, false);
        // After its first slice, the light client waits for as many slices of the heavy one as a
        // slice has nanoseconds.
        let served = serve(
            &mut queue,
            &searches,
            2 * SLICE.as_nanos() as usize,
            |_, _| (),
        );
        assert!(served[1] >= 2, "{served:?}");
    }

    /// Returns the number of connections that are kept, of all clients.
    fn connections(queue: &FairQueue) -> usize {
        let clients = queue.clients.members.values();
        clients.map(|client| client.backlog.members.len()).sum()
    }

    #[test]
    fn idle_members_are_removed_unless_they_owe_time() {
        let mut queue = FairQueue::default();
        let indebted = client("indebted", 0);
        queue.push(&indebted, 0, true);
        queue.pop();
        queue.charge(&indebted, Duration::from_secs(1000), Duration::ZERO);
        for number in 0..10_000 {
            let passing = client(&format!("{number}"), number);
            queue.push(&passing, number, true);
            assert_eq!(queue.pop(), Some(number));
            queue.charge(&passing, Duration::ZERO, Duration::ZERO);
        }
        assert!(queue.clients.members.len() <= 2 * SWEEP_AFTER);
        queue.push(&indebted, 0, true);
        queue.push(&client("other", 0), 1, false);
        assert_eq!(queue.pop(), Some(1));
    }

    /// Regression: a thousand connections were kept for each client.
    #[test]
    fn closed_connections_are_removed_for_each_client() {
        let mut queue = FairQueue::default();
        for number in 0..10_000 {
            let passing = client(&format!("{}", number % 40), number);
            for new in [true, false] {
                queue.push(&passing, number, new);
                assert_eq!(queue.pop(), Some(number));
                queue.charge(&passing, SLICE, Duration::ZERO);
            }
        }
        let connections = connections(&queue);
        assert!(connections <= 40 * 4 * SWEEP_AFTER, "{connections}");
    }

    /// Debts remain unpaid if, for example, all clients' searches end at once: the pass never
    /// advances.
    #[test]
    fn the_greatest_unpaid_debts_are_kept() {
        let mut queue = FairQueue::default();
        for number in 1..=10_000 {
            let passing = client(&format!("{}", number % 10), number);
            queue.charge(&passing, SLICE, Duration::ZERO);
            queue.charge(
                &client(&format!("client {number}"), 0),
                SLICE,
                Duration::ZERO,
            );
        }
        let most = SWEEP_AFTER + 2 * MAX_DEBTORS + 1;
        let clients = queue.clients.members.len();
        assert!(clients <= most, "{clients}");
        let connections = connections(&queue);
        assert!(connections <= 10 * most + clients, "{connections}");
        // These clients were charged a thousand times, the others once.
        for number in 0..10 {
            let name: Arc<str> = format!("{number}").into();
            assert!(queue.clients.members.contains_key(&name), "{name}");
        }
    }
}

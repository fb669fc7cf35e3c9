//! Whose turn it is: fair between clients, then between one client's connections, then between one
//! connection's searches.
//!
//! Clients, and within each its connections, are served by stride scheduling (Waldspurger and Weihl,
//! 1995): each has a *pass*, the core time it was given divided by its weight, and whoever has the least
//! is next. Whoever was away begins where the others are: nobody saves time up, and nobody loses its
//! debts.
//!
//! Whoever has something new and owes nothing does not wait until all others had their turn, of which there
//! may be thousands. It is served out of turn, but pays, and at most every other turn goes that way; so
//! neither a client that never stops beginning searches nor a stream of new clients can keep those
//! waiting that were there before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use crate::{client::Client, ids::SearchId, slice::SLICE_TIME};

/// By how much somebody may be ahead of its share and still be served out of turn: what it is charged
/// for a slice before it is known how long that took.
const LEAD: u64 = SLICE_TIME.as_nanos() as u64;

/// How many new members there may be before all are looked through for whom to forget. There are so many for each
/// client, and clients come from ever new connections: a thousand took hours to come together, and megabytes.
const LOOKED_THROUGH: usize = 16;

/// How many members are remembered for nothing but their debts: those who owe most. Whoever is let off owes
/// little beside them; without an end, where nobody waits and so no debt is ever paid, each connection that
/// ever was would be remembered.
const REMEMBERED: usize = 100;

/// The searches that want a slice.
#[derive(Default)]
pub(crate) struct Turns {
    clients: Shares<Arc<str>, Shares<u64, Searches>>,
    places: u64,
}

/// Where a search waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    number: u64,
    new: bool,
}

impl Turns {
    /// Queues a search: behind its connection's others, or before them if it is new.
    pub(crate) fn push(&mut self, client: &Client, search: SearchId, new: bool) -> Place {
        self.places += 1;
        let place = Place {
            number: self.places,
            new,
        };
        self.clients.push(&client.name, |connections| {
            connections.push(&client.connection, |searches| {
                searches.queue(new).insert(place.number, search);
            });
        });
        place
    }

    /// Takes a search out that wants no turn any more. It must not cost anybody one.
    pub(crate) fn remove(&mut self, client: &Client, place: Place) {
        self.clients.remove(&client.name, |connections| {
            connections.remove(&client.connection, |searches| {
                searches.queue(place.new).remove(&place.number);
            });
        });
    }

    /// The search whose turn it is, which leaves the queue.
    pub(crate) fn pop(&mut self) -> Option<SearchId> {
        self.clients.pop(false, |connections, new| {
            connections.pop(new, Searches::pop)
        })
    }

    /// Counts core time that a client was given; or gives it back, if less was needed after all.
    pub(crate) fn charge(&mut self, client: &Client, given: Duration, back: Duration) {
        let (given, back) = (given.as_nanos() as u64, back.as_nanos() as u64);
        let weight = u64::from(client.weight.get());
        // However much its weight is, no time is nothing.
        let share = |time: u64| time.div_ceil(weight);
        self.clients.forget();
        let connections = (self.clients).charge(&client.name, share(given), share(back));
        connections.forget();
        connections.charge(&client.connection, given, back);
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.clients.has_new() && !self.clients.has_others()
    }
}

/// What waits for a turn.
trait Waiting: Default {
    /// Whether there is something new, that may be served out of turn.
    fn has_new(&self) -> bool;
    /// Whether there is something else.
    fn has_others(&self) -> bool;
}

/// Members that share time, and what each of them has waiting.
struct Shares<K, T> {
    members: HashMap<K, Member<T>>,
    /// Those that wait for their turn, by their pass.
    order: BTreeSet<(u64, K)>,
    /// Those that may be served out of turn, in the order in which they came.
    new: BTreeMap<u64, K>,
    tickets: u64,
    /// Whether the last turn was out of turn.
    was_new: bool,
    /// The pass of whoever was last served in turn, which never goes back.
    now: u64,
    /// With how many members those are looked through that may be forgotten.
    next_look: usize,
}

#[derive(Default)]
struct Member<T> {
    pass: u64,
    in_order: bool,
    /// Its place among those that may be served out of turn.
    ticket: Option<u64>,
    queue: T,
}

impl<K, T> Default for Shares<K, T> {
    fn default() -> Shares<K, T> {
        Shares {
            members: HashMap::new(),
            order: BTreeSet::new(),
            new: BTreeMap::new(),
            tickets: 0,
            was_new: false,
            now: 0,
            next_look: LOOKED_THROUGH,
        }
    }
}

impl<K, T> Waiting for Shares<K, T> {
    fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    fn has_others(&self) -> bool {
        !self.order.is_empty()
    }
}

impl<K: Clone + Ord + Hash, T: Waiting> Shares<K, T> {
    /// Has `put` put something into a member's queue.
    fn push(&mut self, key: &K, put: impl FnOnce(&mut T)) {
        let member = self.members.entry(key.clone()).or_default();
        if !member.waits() {
            // Whoever was away begins where the others are.
            member.pass = member.pass.max(self.now);
        }
        put(&mut member.queue);
        self.place(key);
    }

    /// Has `take` take something out of a member's queue, for which it is not its turn.
    fn remove(&mut self, key: &K, take: impl FnOnce(&mut T)) {
        if let Some(member) = self.members.get_mut(key) {
            take(&mut member.queue);
            self.place(key);
        }
    }

    /// Forgets whoever neither waits for something nor owes much, when there are many more than last time.
    fn forget(&mut self) {
        if self.members.len() <= self.next_look {
            return;
        }
        let away = self.members.values().filter(|member| !member.waits());
        let mut debts: Vec<u64> = away
            .map(|member| member.pass)
            .filter(|pass| *pass > self.now)
            .collect();
        let mut let_off = self.now;
        if let Some(least) = debts.len().checked_sub(REMEMBERED + 1) {
            let_off = *debts.select_nth_unstable(least).1;
        }
        self.members
            .retain(|_, member| member.waits() || member.pass > let_off);
        self.next_look = LOOKED_THROUGH + 2 * self.members.len();
    }

    /// Has `take` take something from the queue of the member whose turn it is, something new if there
    /// is any and that is asked for.
    fn pop<R>(&mut self, new: bool, take: impl FnOnce(&mut T, bool) -> Option<R>) -> Option<R> {
        let mut out_of_turn = None;
        if new || !self.was_new || self.order.is_empty() {
            out_of_turn = self.new.pop_first();
        }
        self.was_new = out_of_turn.is_some();
        let key = match out_of_turn {
            Some((_, key)) => {
                // If it has more that is new, it comes behind the others.
                self.members.get_mut(&key)?.ticket = None;
                key
            }
            None => {
                let (pass, key) = self.order.first()?.clone();
                self.now = self.now.max(pass);
                key
            }
        };
        let member = self.members.get_mut(&key)?;
        let taken = take(&mut member.queue, self.was_new);
        self.place(&key);
        taken
    }

    /// Counts time that a member was given, or gave back. Its queue is returned, to count there too.
    fn charge(&mut self, key: &K, given: u64, back: u64) -> &mut T {
        let Shares { members, order, .. } = self;
        let member = members.entry(key.clone()).or_default();
        if !member.waits() {
            member.pass = member.pass.max(self.now);
        }
        let pass = (member.pass + given).saturating_sub(back);
        if member.in_order {
            order.remove(&(member.pass, key.clone()));
            order.insert((pass, key.clone()));
        }
        member.pass = pass;
        &mut member.queue
    }

    /// Lets a member wait for what it has in its queue now.
    fn place(&mut self, key: &K) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let (has_new, has_others) = (member.queue.has_new(), member.queue.has_others());
        match member.ticket {
            None if has_new && member.pass <= self.now + LEAD => {
                self.tickets += 1;
                member.ticket = Some(self.tickets);
                self.new.insert(self.tickets, key.clone());
            }
            Some(ticket) if !has_new => {
                member.ticket = None;
                self.new.remove(&ticket);
            }
            _ => {}
        }
        // Newcomers do not wait in both queues: they would take those turns too that are not theirs.
        let in_order = has_others || has_new && member.ticket.is_none();
        if in_order != member.in_order {
            member.in_order = in_order;
            let place = (member.pass, key.clone());
            if in_order {
                self.order.insert(place);
            } else {
                self.order.remove(&place);
            }
        }
    }
}

impl<T> Member<T> {
    fn waits(&self) -> bool {
        self.in_order || self.ticket.is_some()
    }
}

/// One connection's searches. The new ones take every other turn at most here too.
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

impl Waiting for Searches {
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

    /// Serves turns of one slice each, puts the served search back (as no new one), and counts for whom
    /// `of` says it was.
    fn serve(
        turns: &mut Turns,
        searches: &[Client],
        count: usize,
        mut before: impl FnMut(&mut Turns, usize),
    ) -> Vec<usize> {
        let mut served = vec![0; searches.len()];
        for turn in 0..count {
            before(turns, turn);
            let id = turns.pop().unwrap();
            let known = searches.get(id as usize);
            if let Some(client) = known {
                served[id as usize] += 1;
                turns.charge(client, SLICE, Duration::ZERO);
                turns.push(client, id, false);
            }
        }
        served
    }

    /// Once such a stream was always served first.
    #[test]
    fn a_stream_of_new_clients_takes_half_of_the_turns_at_most() {
        let mut turns = Turns::default();
        let old: Vec<Client> = (0..4)
            .map(|number| client(&format!("old {number}"), 0))
            .collect();
        for (id, client) in old.iter().enumerate() {
            turns.push(client, id as SearchId, true);
        }
        let served = serve(&mut turns, &old, 1000, |turns, turn| {
            turns.push(
                &client(&format!("new {turn}"), 0),
                1000 + turn as SearchId,
                true,
            );
        });
        for turns in &served {
            assert!((120..=130).contains(turns), "{served:?}");
        }
    }

    /// Once the connection that begins searches took half of its client's time.
    #[test]
    fn a_connection_that_keeps_beginning_searches_gets_no_more_than_others() {
        let mut turns = Turns::default();
        let old: Vec<Client> = (0..9).map(|connection| client("a", connection)).collect();
        for (id, client) in old.iter().enumerate() {
            turns.push(client, id as SearchId, false);
        }
        let busy = client("a", 9);
        let mut served = [0; 10];
        for next in 1000..4000 {
            turns.push(&busy, next, true);
            let id = turns.pop().unwrap();
            let (client, place) = old
                .get(id as usize)
                .map_or((&busy, 9), |of| (of, id as usize));
            served[place] += 1;
            turns.charge(client, SLICE, Duration::ZERO);
            if place < 9 {
                turns.push(client, id, false);
            }
        }
        for turns in served {
            assert!((290..=310).contains(&turns), "{served:?}");
        }
    }

    #[test]
    fn connections_share_by_time_and_not_by_turns() {
        let mut turns = Turns::default();
        let (slow, fast) = (client("a", 1), client("a", 2));
        turns.push(&slow, 1, false);
        turns.push(&fast, 2, false);
        let mut given = [Duration::ZERO; 3];
        for _ in 0..1100 {
            let id = turns.pop().unwrap();
            let (client, time) = if id == 1 {
                (&slow, SLICE * 10)
            } else {
                (&fast, SLICE)
            };
            given[id as usize] += time;
            turns.charge(client, time, Duration::ZERO);
            turns.push(client, id, false);
        }
        let ratio = given[1].as_secs_f64() / given[2].as_secs_f64();
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_newcomer_is_next_beside_thousands() {
        let mut turns = Turns::default();
        let old: Vec<Client> = (0..5000)
            .map(|number| client(&format!("{number}"), number))
            .collect();
        for (id, client) in old.iter().enumerate() {
            turns.push(client, id as SearchId, false);
        }
        serve(&mut turns, &old, 7000, |_, _| ());
        // A new client, and a client that has waited long enough to owe nothing.
        turns.push(&client("new", 0), 10_000, true);
        turns.push(&old[4000], 10_001, true);
        let next: Vec<SearchId> = (0..4).map(|_| turns.pop().unwrap()).collect();
        assert_eq!((next[0], next[2]), (10_000, 10_001), "{next:?}");
    }

    #[test]
    fn what_was_removed_costs_nobody_a_turn() {
        let mut turns = Turns::default();
        let (a, b) = (client("a", 0), client("b", 0));
        let places: Vec<Place> = (0..1000).map(|id| turns.push(&a, id, true)).collect();
        turns.push(&b, 2000, false);
        for place in places {
            turns.remove(&a, place);
        }
        turns.push(&a, 1000, true);
        assert_eq!(turns.pop(), Some(1000));
        assert_eq!(turns.pop(), Some(2000));
        assert!(turns.is_empty() && turns.pop().is_none());
    }

    /// As by a client whose searches are all over with what is tried for them at once.
    #[test]
    fn time_given_outside_of_turns_is_owed() {
        let mut turns = Turns::default();
        let (idle, busy) = (client("idle", 0), client("busy", 0));
        turns.charge(&busy, 3 * SLICE, Duration::ZERO);
        let searches = [busy, idle];
        turns.push(&searches[0], 0, true);
        turns.push(&searches[1], 1, false);
        let served = serve(&mut turns, &searches, 5, |_, _| ());
        assert_eq!(served, [1, 4]);
    }

    #[test]
    fn the_heaviest_client_starves_nobody() {
        let mut turns = Turns::default();
        let heavy = Client {
            weight: NonZeroU32::MAX,
            ..client("heavy", 0)
        };
        let searches = [heavy, client("light", 0)];
        turns.push(&searches[0], 0, false);
        turns.push(&searches[1], 1, false);
        // After its first slice the light one waits for as many of the other's as it has nanoseconds.
        let served = serve(
            &mut turns,
            &searches,
            2 * SLICE.as_nanos() as usize,
            |_, _| (),
        );
        assert!(served[1] >= 2, "{served:?}");
    }

    /// How many connections are remembered, of all clients.
    fn connections(turns: &Turns) -> usize {
        let clients = turns.clients.members.values();
        clients.map(|client| client.queue.members.len()).sum()
    }

    #[test]
    fn those_who_owe_nothing_are_forgotten_and_debts_are_not() {
        let mut turns = Turns::default();
        let indebted = client("indebted", 0);
        turns.push(&indebted, 0, true);
        turns.pop();
        turns.charge(&indebted, Duration::from_secs(1000), Duration::ZERO);
        for number in 0..10_000 {
            let passing = client(&format!("{number}"), number);
            turns.push(&passing, number, true);
            assert_eq!(turns.pop(), Some(number));
            turns.charge(&passing, Duration::ZERO, Duration::ZERO);
        }
        assert!(turns.clients.members.len() <= 2 * LOOKED_THROUGH);
        turns.push(&indebted, 0, true);
        turns.push(&client("other", 0), 1, false);
        assert_eq!(turns.pop(), Some(1));
    }

    /// Once each client had a thousand of its connections remembered, whoever they were.
    #[test]
    fn connections_that_are_gone_are_forgotten_for_each_client() {
        let mut turns = Turns::default();
        for number in 0..10_000 {
            let passing = client(&format!("{}", number % 40), number);
            for new in [true, false] {
                turns.push(&passing, number, new);
                assert_eq!(turns.pop(), Some(number));
                turns.charge(&passing, SLICE, Duration::ZERO);
            }
        }
        let connections = connections(&turns);
        assert!(connections <= 40 * 4 * LOOKED_THROUGH, "{connections}");
    }

    /// As of those whose searches all end before anybody waits: no time passes in which they would pay.
    #[test]
    fn of_debts_that_nobody_pays_the_greatest_are_remembered() {
        let mut turns = Turns::default();
        for number in 1..=10_000 {
            let passing = client(&format!("{}", number % 10), number);
            turns.charge(&passing, SLICE, Duration::ZERO);
            turns.charge(
                &client(&format!("client {number}"), 0),
                SLICE,
                Duration::ZERO,
            );
        }
        let most = LOOKED_THROUGH + 2 * REMEMBERED + 1;
        let clients = turns.clients.members.len();
        assert!(clients <= most, "{clients}");
        let connections = connections(&turns);
        assert!(connections <= 10 * most + clients, "{connections}");
        // Those have been charged a thousand times, and others once.
        for number in 0..10 {
            let name: Arc<str> = format!("{number}").into();
            assert!(turns.clients.members.contains_key(&name), "{name}");
        }
    }
}

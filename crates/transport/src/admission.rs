//! Limits the number of a server's connections, in total and for each address.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::{
    counts::Closed,
    meter::{FloodLimits, Shared},
    peer::Origin,
    rate::{Bucket, Rate},
};

/// Cost, in new connections, of a connection that ended because its client broke a rule or a limit
/// of HTTP/2. A client that does so with one connection after another makes the server start and
/// discard work. By default, this cost limits it to 20 such connections per second.
const BROKEN: f64 = 10.0;

/// The address table is swept for idle entries only once it holds at least this many.
const SWEPT_FROM: usize = 1000;

/// Counts the connections of a server, and decides which are accepted. Clones share the counts.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    connections: NonZeroUsize,
    of_address: NonZeroUsize,
    new_of_address: Rate,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: usize,
    addresses: HashMap<Origin, Address>,
    /// Connections that have not spoken yet, by number, so the oldest come first.
    silent: BTreeMap<u64, Silent>,
    next: u64,
    /// Number of addresses that triggers the next sweep of idle ones.
    next_sweep: usize,
}

/// A connection that has not spoken yet.
struct Silent {
    address: Origin,
    /// Notified when the connection loses its place.
    made_room: Arc<Notify>,
}

struct Address {
    connections: usize,
    /// Numbers of those of its connections that have not spoken yet.
    silent: BTreeSet<u64>,
    /// New connections that the address may still open. This bucket and those in `shared` are kept
    /// until they are full again, so that a client cannot reset them by connecting again.
    new: Bucket,
    /// Buckets that the address's connections share. The first connection that is metered creates
    /// them.
    shared: Option<Arc<Mutex<Shared>>>,
}

/// A connection's place within the limits. Dropping it frees the place.
pub struct Place {
    admission: Admission,
    address: Origin,
    number: u64,
    made_room: Arc<Notify>,
}

impl Admission {
    /// Creates limits: at most `connections` at a time, and at most `of_address` from one address.
    /// An address may begin connections at the rate `new_of_address`.
    #[must_use]
    pub fn new(
        connections: NonZeroUsize,
        of_address: NonZeroUsize,
        new_of_address: Rate,
    ) -> Admission {
        Admission(Arc::new(Inner {
            connections,
            of_address,
            new_of_address,
            state: Mutex::new(State {
                next_sweep: SWEPT_FROM,
                ..State::default()
            }),
        }))
    }

    /// Takes a place for a new connection of this address. If the address has no place left, its
    /// longest silent connection loses its place. If the server has none left, the longest silent
    /// connection of all addresses does. An honest client speaks as soon as it is connected.
    ///
    /// # Errors
    ///
    /// Returns why the connection gets no place.
    pub fn admit(&self, address: Origin, now: Instant) -> Result<Place, Closed> {
        let rate = self.0.new_of_address;
        let mut state = self.lock();
        let state = &mut *state;
        state.sweep(rate, now);
        let new = || Address {
            connections: 0,
            silent: BTreeSet::new(),
            new: Bucket::new(rate, now),
            shared: None,
        };
        let entry = state.addresses.entry(address).or_insert_with(new);
        let is_full = entry.connections >= self.0.of_address.get();
        if is_full && entry.silent.is_empty() {
            return Err(Closed::TooManyOfAddress);
        }
        if entry.new.try_take(rate, now).is_err() {
            return Err(Closed::TooFast);
        }
        let loser = if is_full {
            entry.silent.first().copied()
        } else if state.connections >= self.0.connections.get() {
            let longest = state.silent.first_key_value().ok_or(Closed::TooMany)?;
            Some(*longest.0)
        } else {
            None
        };
        if let Some(silent) = loser.and_then(|loser| state.end_silence(loser)) {
            silent.notify_one();
        }
        let number = state.next;
        state.next += 1;
        let made_room = Arc::new(Notify::new());
        let silent = Silent {
            address,
            made_room: Arc::clone(&made_room),
        };
        state.silent.insert(number, silent);
        state.connections += 1;
        let entry = state.addresses.entry(address).or_insert_with(new);
        entry.connections += 1;
        entry.silent.insert(number);
        Ok(Place {
            admission: self.clone(),
            address,
            number,
            made_room,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics in the middle of a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes a connection from the silent ones, because it has spoken, loses its place, or is
    /// closed. Returns its notifier if it was silent.
    fn end_silence(&mut self, number: u64) -> Option<Arc<Notify>> {
        let Silent { address, made_room } = self.silent.remove(&number)?;
        if let Some(address) = self.addresses.get_mut(&address) {
            address.silent.remove(&number);
        }
        Some(made_room)
    }

    /// Removes addresses that have no connection and owe nothing, once the table has `next_sweep`
    /// addresses. Sets `next_sweep` to twice the addresses that are left, and `SWEPT_FROM` more.
    fn sweep(&mut self, rate: Rate, now: Instant) {
        if self.addresses.len() < self.next_sweep {
            return;
        }
        self.addresses.retain(|_, address| {
            let owes_nothing = |shared: &Arc<Mutex<Shared>>| {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared.is_full(now)
            };
            address.connections > 0
                || !address.new.is_full(rate, now)
                || !address.shared.as_ref().is_none_or(owes_nothing)
        });
        self.next_sweep = SWEPT_FROM + 2 * self.addresses.len();
    }
}

impl Place {
    /// Returns the limits that all connections of its address share.
    pub(crate) fn shared(&self, limits: FloodLimits, now: Instant) -> Arc<Mutex<Shared>> {
        let new = || Arc::new(Mutex::new(Shared::new(limits, now)));
        match self.admission.lock().addresses.get_mut(&self.address) {
            Some(address) => Arc::clone(address.shared.get_or_insert_with(new)),
            // Not reached: an address is in the table as long as one of its connections has a
            // place.
            None => new(),
        }
    }

    /// Records that the connection has spoken, so that it keeps its place.
    pub fn spoke(&self) {
        self.admission.lock().end_silence(self.number);
    }

    /// Charges the address more for a connection that broke HTTP/2's rules, so that it may begin
    /// fewer connections afterwards.
    pub(crate) fn broke(&self, now: Instant) {
        let rate = self.admission.0.new_of_address;
        if let Some(address) = self.admission.lock().addresses.get_mut(&self.address) {
            address.new.take(rate, BROKEN - 1.0, now);
        }
    }

    /// Waits until another connection takes the place. Dropping the future changes nothing.
    pub async fn lost(&self) {
        self.made_room.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.connections -= 1;
        state.end_silence(self.number);
        if let Some(address) = state.addresses.get_mut(&self.address) {
            address.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{pin::pin, task};

    const NEW: Rate = Rate {
        per_second: 5.0,
        burst: 5.0,
    };

    fn admission(connections: usize, of_address: usize) -> Admission {
        let count = |count| NonZeroUsize::new(count).unwrap();
        Admission::new(count(connections), count(of_address), NEW)
    }

    fn address(last: u8) -> Origin {
        Origin::Network([127, 0, 0, last].into())
    }

    fn has_lost(place: &Place) -> bool {
        let mut context = task::Context::from_waker(task::Waker::noop());
        pin!(place.lost()).poll(&mut context).is_ready()
    }

    #[test]
    fn an_address_is_limited_to_its_share_until_a_connection_closes() {
        let admission = admission(10, 2);
        let now = Instant::now();
        let first = admission.admit(address(1), now).unwrap();
        let second = admission.admit(address(1), now).unwrap();
        first.spoke();
        second.spoke();
        let third = admission.admit(address(1), now);
        assert_eq!(third.err(), Some(Closed::TooManyOfAddress));
        let _other = admission.admit(address(2), now).unwrap();
        drop(first);
        assert!(admission.admit(address(1), now).is_ok());
    }

    #[test]
    fn a_full_address_loses_its_longest_silent_connection() {
        let admission = admission(10, 3);
        let now = Instant::now();
        let other = admission.admit(address(2), now).unwrap();
        let places = [(); 3].map(|()| admission.admit(address(1), now).unwrap());
        places[0].spoke();
        let fourth = admission.admit(address(1), now).unwrap();
        let lost = [&other, &places[0], &places[1], &places[2]].map(has_lost);
        assert_eq!(lost, [false, false, true, false]);
        fourth.spoke();
        places[2].spoke();
        let fifth = admission.admit(address(1), now);
        assert_eq!(fifth.err(), Some(Closed::TooManyOfAddress));
    }

    #[test]
    fn a_full_server_loses_its_longest_silent_connection() {
        let admission = admission(3, 3);
        let now = Instant::now();
        let places = [1, 2, 3].map(|last| admission.admit(address(last), now).unwrap());
        places[0].spoke();
        let fourth = admission.admit(address(4), now).unwrap();
        let lost = [&places[0], &places[1], &places[2]].map(has_lost);
        assert_eq!(lost, [false, true, false]);
        // The connection that lost its place has not closed yet.
        places[2].spoke();
        fourth.spoke();
        let fifth = admission.admit(address(5), now);
        assert_eq!(fifth.err(), Some(Closed::TooMany));
        drop(places);
        assert!(admission.admit(address(5), now).is_ok());
    }

    #[test]
    fn new_connections_of_an_address_are_rate_limited() {
        let admission = admission(100, 100);
        let now = Instant::now();
        let connect = |last, now| admission.admit(address(last), now).map(drop);
        for _ in 0..5 {
            assert_eq!(connect(1, now), Ok(()));
        }
        assert_eq!(connect(1, now), Err(Closed::TooFast));
        assert_eq!(connect(2, now), Ok(()));
        let later = now + std::time::Duration::from_millis(201);
        assert_eq!(connect(1, later), Ok(()));
        assert_eq!(connect(1, later), Err(Closed::TooFast));
    }

    #[test]
    fn a_client_that_breaks_the_rules_waits_longer() {
        let admission = admission(100, 100);
        let now = Instant::now();
        let after = |seconds| now + std::time::Duration::from_secs(seconds);
        admission.admit(address(1), now).unwrap().broke(now);
        let admits = |at| admission.admit(address(1), at).is_ok();
        assert!(!admits(now) && !admits(after(1)) && admits(after(2)));
    }

    #[test]
    fn idle_addresses_are_forgotten() {
        let admission = admission(1, 1);
        let mut now = Instant::now();
        for number in 0..10_000_u32 {
            let origin = Origin::Network(std::net::Ipv4Addr::from_bits(number).into());
            drop(admission.admit(origin, now).unwrap());
            // Each address owes nothing after 200 ms.
            now += std::time::Duration::from_millis(1);
        }
        assert!(admission.lock().addresses.len() <= SWEPT_FROM + 1);
    }
}

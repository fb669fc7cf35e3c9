//! Odds of queries, and the speed of this server. Separate threads determine both, with pauses, so
//! that they hardly slow the searches.

use std::{
    collections::HashMap,
    hash::Hash,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hashfinder_proto::v1::{Bounds, EstimateResponse, Odds as WireOdds};
use hashfinder_search::{
    Algorithm, Anchor, DesiredName, Distance, Encoding, Kernel, Odds, Query, Spelling,
    throughput::{MEASURING_TIME, search_rate},
};
use hashfinder_system::{running_time::RunningTime, threads};
use hashfinder_transport::ClientName;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::Status;

use crate::{errors::CallError, searches::shared::Caller};

/// Maximum number of threads that compute odds at a time. Each computation takes a core from the
/// searches for up to some tens of milliseconds.
const ODDS_AT_ONCE: usize = 2;

/// Maximum number of rates that are measured at a time. Two at once would slow each other.
const RATES_AT_ONCE: usize = 1;

/// Cooldown of a place, as a multiple of the time for which it was used. So all places together
/// take less than one core from the searches, and those of one client half a core.
const COOLDOWN: u32 = 3;

/// Maximum number of open Estimates of one client. A client that reads the responses needs far
/// fewer.
const ESTIMATES_OF_CLIENT: usize = 64;

/// Time for which a measured rate is used. It is limited because other load may have slowed the
/// measurement.
const RATE_LASTS: Duration = Duration::from_secs(600);

/// Maximum number of rates in the cache. A full cache is emptied.
const RATES: usize = 1024;

/// Maximum number of odds in the cache, for clients that search for the same names again and again.
/// A full cache is emptied. With its names, an entry takes up to two kilobytes.
const ODDS: usize = 256;

/// Length of the searched part of a secret for which rates are measured, in bytes.
const USUAL_LENGTH: usize = 4;

/// Computes odds, and measures rates.
pub(super) struct Estimates {
    kernel: Kernel,
    workers: usize,
    all: Places,
    /// A client's requests first wait for its own place, so that a client takes at most one place
    /// of each kind.
    clients: Mutex<HashMap<ClientName, Weak<OwnPlaces>>>,
    odds: Arc<Cache<OddsKey, Odds>>,
    rates: Arc<Cache<Kind, (f64, Instant)>>,
}

/// Places for computing odds, and for measuring rates. A request for odds does not wait for a
/// measurement, and vice versa.
struct Places {
    odds: Arc<Semaphore>,
    rates: Arc<Semaphore>,
}

/// The places of one client.
struct OwnPlaces {
    places: Places,
    estimates: Arc<Semaphore>,
}

/// Cache key for odds: everything that determines them, and the client. Without the client in the
/// key, a fast response would show a client that another one has searched for the same names.
#[derive(PartialEq, Eq, Hash)]
struct OddsKey {
    client: ClientName,
    names: Box<[Box<str>]>,
    spelling: Spelling,
    ideal: u8,
}

/// Cache key for measured rates: the parts of a query that determine its speed, rounded so that few
/// keys exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    algorithm: Algorithm,
    encoding: Encoding,
    is_anchored: bool,
    /// Base-2 logarithms, rounded up: of the number of blocks that are hashed for each secret, of
    /// the number of names, and of one more than the greatest distance that makes a difference.
    blocks: u32,
    names: u32,
    distance: u32,
    /// Base-16 logarithm of the number of secrets per hit, rounded down, and at most 3. Each hit is
    /// examined again, which takes time; hits that are rarer than one in 4,096 make no difference.
    hits: u32,
}

/// An Estimate of a client. It counts until this is dropped.
pub(super) struct Estimating {
    _place: OwnedSemaphorePermit,
    // Keeps the client's count alive.
    _own: Arc<OwnPlaces>,
}

impl Estimates {
    pub(super) fn new(kernel: Kernel, workers: usize) -> Estimates {
        Estimates {
            kernel,
            workers,
            all: Places::new(ODDS_AT_ONCE, RATES_AT_ONCE),
            clients: Mutex::default(),
            odds: Arc::new(Cache::new(ODDS)),
            rates: Arc::new(Cache::new(RATES)),
        }
    }

    /// Counts an Estimate of the caller's client.
    ///
    /// # Errors
    ///
    /// If the client has too many open Estimates.
    pub(super) fn admit(&self, caller: &Caller) -> Result<Estimating, CallError> {
        let own = self.places_of(&caller.client());
        let place = Arc::clone(&own.estimates).try_acquire_owned();
        Ok(Estimating {
            _place: place.map_err(|_| CallError::TooManyEstimates {
                limit: ESTIMATES_OF_CLIENT,
            })?,
            _own: own,
        })
    }

    /// Returns the odds of a query.
    ///
    /// Dropping the future ends the wait for a place; a computation that has begun is completed and
    /// cached.
    pub(super) async fn odds(&self, caller: &Caller, query: &Query) -> Result<Odds, CallError> {
        let key = || OddsKey {
            client: caller.client(),
            names: query
                .names()
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            spelling: query.spelling(),
            ideal: query.ideal_distance().get(),
        };
        if let Some(odds) = self.odds.get(&key()) {
            return Ok(odds);
        }
        let (cache, key, query) = (Arc::clone(&self.odds), key(), query.clone());
        let odds = move || {
            // The request before this one may have computed the same odds.
            cache.get(&key).unwrap_or_else(|| {
                let odds = Odds::any(query.names(), query.ideal_distance());
                cache.put(key, odds);
                odds
            })
        };
        self.compute(caller, |places| &places.odds, odds).await
    }

    /// Returns how many secrets per second this server hashes for a query of this kind.
    ///
    /// It measures one thread for a quarter of a second and multiplies the result by the number of
    /// search threads: measuring on all cores would take them from the searches. Dropping the
    /// future ends the wait for a place; a measurement that has begun is completed and cached.
    pub(super) async fn rate(&self, caller: &Caller, query: &Query) -> Result<f64, CallError> {
        // The rate does not include the cost of reporting candidates.
        let query = query.clone().interesting(Distance::ZERO);
        let kind = Kind::of(&query);
        if let Some(rate) = self.rates.fresh(kind) {
            return Ok(rate);
        }
        let rates = Arc::clone(&self.rates);
        let (kernel, workers) = (self.kernel, self.workers as f64);
        let measure = move || {
            rates.fresh(kind).unwrap_or_else(|| {
                let mut running = RunningTime::start();
                let clock = || running.read();
                let rate = search_rate(kernel, &query, 1, MEASURING_TIME, clock) * workers;
                rates.put(kind, (rate, Instant::now()));
                rate
            })
        };
        self.compute(caller, |places| &places.rates, measure).await
    }

    /// Runs work that takes a core for a while, once the client has a place for it.
    async fn compute<T: Send + 'static>(
        &self,
        caller: &Caller,
        place: impl Fn(&Places) -> &Arc<Semaphore>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let own = self.places_of(&caller.client());
        let turn = async {
            let of_client = Arc::clone(place(&own.places)).acquire_owned().await;
            let of_all = Arc::clone(place(&self.all)).acquire_owned().await;
            (of_client, of_all)
        };
        let turn = tokio::select! {
            biased;
            // Only a drain lets this future continue after a cancellation.
            _ = caller.context.cancelled() => return Err(CallError::Draining(None)),
            turn = turn => (turn, Arc::clone(&own)),
        };
        let runtime = Handle::current();
        // The runtime's own pool panics if it cannot start a thread. Here, the job is dropped
        // instead, and the call ends with UNAVAILABLE.
        let pool = |job| drop(threads::start("estimate", job));
        let work = move |_stop| {
            let cooldown = Cooldown {
                turn: Some(turn),
                began: Instant::now(),
                runtime,
            };
            let done = work();
            drop(cooldown);
            done
        };
        let done = caller.context.run_on(pool, work);
        done.await.map_err(|status: Status| {
            if caller.context.is_cancelled() {
                CallError::Draining(None)
            } else {
                CallError::Broken {
                    code: status.code(),
                    message: status.message().to_owned(),
                }
            }
        })
    }

    /// Returns the client's own places. Creates them if the client has no open request.
    fn places_of(&self, client: &ClientName) -> Arc<OwnPlaces> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(client).and_then(Weak::upgrade) {
            return own;
        }
        // Requests hold their client's places while they wait, run and cool down. Places that no
        // request holds are dropped.
        clients.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(OwnPlaces {
            places: Places::new(1, 1),
            estimates: Arc::new(Semaphore::new(ESTIMATES_OF_CLIENT)),
        });
        clients.insert(client.clone(), Arc::downgrade(&own));
        own
    }
}

impl Places {
    fn new(odds: usize, rates: usize) -> Places {
        Places {
            odds: Arc::new(Semaphore::new(odds)),
            rates: Arc::new(Semaphore::new(rates)),
        }
    }
}

/// Returns the places of a piece of work after a cooldown. The cooldown begins when the work ends,
/// even if it panics.
struct Cooldown<T: Send + 'static> {
    turn: Option<T>,
    began: Instant,
    runtime: Handle,
}

impl<T: Send + 'static> Drop for Cooldown<T> {
    fn drop(&mut self) {
        let (turn, time) = (self.turn.take(), self.began.elapsed() * COOLDOWN);
        self.runtime.spawn(async move {
            sleep(time).await;
            drop(turn);
        });
    }
}

/// A cache with a maximum number of entries. It is emptied when it is full.
struct Cache<K, V> {
    capacity: usize,
    entries: Mutex<HashMap<K, V>>,
}

impl<K: Eq + Hash, V: Copy> Cache<K, V> {
    fn new(capacity: usize) -> Cache<K, V> {
        Cache {
            capacity,
            entries: Mutex::default(),
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.lock().get(key).copied()
    }

    fn put(&self, key: K, value: V) {
        let mut entries = self.lock();
        if entries.len() >= self.capacity {
            entries.clear();
        }
        entries.insert(key, value);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache<Kind, (f64, Instant)> {
    /// Returns the rate in the cache, unless it is too old.
    fn fresh(&self, kind: Kind) -> Option<f64> {
        let (rate, measured_at) = self.get(&kind)?;
        (measured_at.elapsed() < RATE_LASTS).then_some(rate)
    }
}

impl Kind {
    fn of(query: &Query) -> Kind {
        let spelling = query.spelling();
        let lengths = query.names().iter().map(DesiredName::character_count);
        // Distances beyond the length of the longest name make no difference.
        let furthest = usize::from(query.ideal_distance().get()).min(lengths.max().unwrap_or(0));
        let power = |number: usize| number.next_power_of_two().ilog2();
        Kind {
            algorithm: spelling.algorithm,
            encoding: spelling.encoding,
            is_anchored: spelling.anchor != Anchor::Anywhere,
            blocks: power(blocks(query)),
            names: power(query.names().len()),
            // One is added, so that the distances 0 and 1 differ.
            distance: power(furthest + 1),
            hits: (-query.hit_rate().log2() / 4.0).clamp(0.0, 3.0) as u32,
        }
    }
}

/// Returns how many blocks are hashed for each secret. Blocks before the end of the searched part
/// are hashed only once for many secrets.
fn blocks(query: &Query) -> usize {
    let (block, padding) = match query.spelling().algorithm {
        Algorithm::Sha512 => (128, 17),
        Algorithm::Blake3 => (64, 0),
        _ => (64, 9),
    };
    let keyspace = query.keyspace();
    let searched = keyspace.prefix().len() % block + USUAL_LENGTH;
    let all = (searched + keyspace.suffix().len() + padding).div_ceil(block);
    match query.spelling().algorithm {
        Algorithm::Sha1 => all - (searched - 1) / block,
        _ => all,
    }
}

/// Returns the response to an Estimate.
pub(super) fn estimate(chances: &Odds, rate: f64) -> EstimateResponse {
    let seconds =
        |hashes: &RangeInclusive<f64>| Some(bounds(&(hashes.start() / rate..=hashes.end() / rate)));
    EstimateResponse {
        odds: Some(odds(chances)),
        hashes_per_second: rate,
        expected_seconds: seconds(&chances.expected_hashes()),
        median_seconds: seconds(&chances.hashes_for(0.5)),
        p90_seconds: seconds(&chances.hashes_for(0.9)),
        p99_seconds: seconds(&chances.hashes_for(0.99)),
    }
}

/// Converts odds to their message.
pub(super) fn odds(odds: &Odds) -> WireOdds {
    WireOdds {
        chance: Some(bounds(&odds.chance())),
        expected_hashes: Some(bounds(&odds.expected_hashes())),
        median_hashes: Some(bounds(&odds.hashes_for(0.5))),
        p90_hashes: Some(bounds(&odds.hashes_for(0.9))),
        p99_hashes: Some(bounds(&odds.hashes_for(0.99))),
    }
}

pub(super) fn bounds(range: &RangeInclusive<f64>) -> Bounds {
    Bounds {
        low: *range.start(),
        high: *range.end(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashfinder_search::{Alphabet, Keyspace};
    use std::collections::HashSet;

    #[test]
    fn queries_have_few_kinds() {
        let mut kinds = HashSet::new();
        let long: String = "hashfinderhashfinder".to_owned();
        for suffix in 0..1024 {
            let suffix = vec![b'x'; suffix];
            let keyspace = Keyspace::new(b"", Alphabet::bytes(), &suffix).unwrap();
            for distance in [0, 1, 5, 20, 21, 100, 255] {
                let query = Query::new(long.parse().unwrap(), Distance::from(distance)).unwrap();
                kinds.insert(Kind::of(&query.among(keyspace.clone())));
            }
        }
        // Six numbers of blocks with five distances each.
        assert!(kinds.len() <= 6 * 5, "{}", kinds.len());
    }

    #[test]
    fn much_slower_queries_have_another_kind() {
        let query = || Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
        let mut kinds = vec![Kind::of(&query())];
        let among = |prefix: &[u8], suffix: &[u8]| {
            let keyspace = Keyspace::new(prefix, Alphabet::bytes(), suffix).unwrap();
            Kind::of(&query().among(keyspace))
        };
        // A prefix is hashed once.
        assert_eq!(among(b"a", b""), among(&[b'a'; 1024], b""));
        assert_eq!(among(b"a", b""), kinds[0]);
        // A suffix of a block is hashed with each secret, and part of a block before it is not.
        assert_eq!(among(&[b'a'; 62], b""), kinds[0]);
        kinds.push(among(b"", &[b'a'; 60]));
        let hex = Spelling {
            encoding: Encoding::Hex,
            ..Spelling::default()
        };
        for anchor in [Anchor::Anywhere, Anchor::Prefix] {
            let name = DesiredName::new("c0ffee", Spelling { anchor, ..hex }).unwrap();
            kinds.push(Kind::of(&Query::new(name, Distance::ZERO).unwrap()));
        }
        let short = Query::new("a".parse().unwrap(), Distance::ZERO);
        kinds.push(Kind::of(&short.unwrap()));
        kinds.push(among(b"", &[b'a'; 1000]));
        let near = Query::new("doctor".parse().unwrap(), Distance::from(3));
        kinds.push(Kind::of(&near.unwrap()));
        let names = ["doctor", "tardis", "dalek"].map(|name| name.parse().unwrap());
        kinds.push(Kind::of(&Query::any(names, Distance::ZERO).unwrap()));
        let all: HashSet<Kind> = kinds.iter().copied().collect();
        assert_eq!(all.len(), kinds.len(), "{kinds:?}");
    }
}

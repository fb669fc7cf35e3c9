//! How likely a match is, and how fast this server is: reckoned off the threads that serve, and never so
//! much of it that the searches would notice.

use std::{
    collections::HashMap,
    hash::Hash,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hashfinder_search::{
    Algorithm, DesiredName, Distance, Kernel, Odds, Query, Spelling,
    throughput::{MEASURING_TIME, search_rate},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::Status;

use crate::{
    clock::RunningTime,
    rpc::{
        searches::Caller,
        status::CallError,
        v1pb::{Bounds, EstimateResponse, Odds as WireOdds},
    },
    threads,
    transport::ClientName,
};

/// How many odds are reckoned at a time. They take up to some tens of milliseconds of one core, which is
/// the searches' too.
const ODDS_AT_ONCE: usize = 2;

/// How many rates are measured at a time: two at once would measure each other.
const RATES_AT_ONCE: usize = 1;

/// How many times as long as it was used a place stays empty. So all places together take less than one
/// core of the searches, whatever is asked for, and one client a half.
const REST: u32 = 3;

/// How many Estimates of one client may wait: far more than somebody asks for who reads the answers.
const ESTIMATES_OF_CLIENT: usize = 64;

/// For how long a rate that was measured is believed: what else the machine did then is over some time.
const RATE_LASTS: Duration = Duration::from_secs(600);

/// How many kinds of query a rate is kept for; beyond that all are measured anew.
const RATES: usize = 1024;

/// How many odds are kept, for those who ask for one answer after another; beyond that all are reckoned
/// anew. With the names each takes up to two kilobytes.
const ODDS: usize = 256;

/// The length of the searched part for which rates are measured.
const USUAL_LENGTH: usize = 4;

/// Reckons odds, and measures rates.
pub(super) struct Figures {
    kernel: Kernel,
    workers: usize,
    all: Places,
    /// Each client waits for itself first, so that it takes one of the places of a kind at most.
    clients: Mutex<HashMap<ClientName, Weak<Own>>>,
    odds: Arc<Kept<Asked, Odds>>,
    rates: Arc<Kept<Kind, (f64, Instant)>>,
}

/// Where odds are reckoned and rates measured. Who waits for the ones is not held up by the others.
struct Places {
    odds: Arc<Semaphore>,
    rates: Arc<Semaphore>,
}

/// What a client has for itself.
struct Own {
    places: Places,
    estimates: Arc<Semaphore>,
}

/// What decides the odds, and who asks: how soon they are there tells what was asked for before, which is
/// nobody else's business.
#[derive(PartialEq, Eq, Hash)]
struct Asked {
    client: ClientName,
    names: Box<[Box<str>]>,
    spelling: Spelling,
    ideal: u8,
}

/// What of a query decides how fast it is, roughly: there are so few of them that they are soon all known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    algorithm: Algorithm,
    has_fast_filter: bool,
    /// How many blocks are hashed for each secret, how many names there are, and the greatest distance
    /// that tells anything: each as the power of two that it does not exceed.
    blocks: u32,
    names: u32,
    distance: u32,
    /// How often they hit, for each hit is looked at again: as a power of sixteen, down to one in 4,096,
    /// beyond which it does not matter.
    hits: u32,
}

/// One of a client's Estimates, until it is dropped.
pub(super) struct Estimating {
    _place: OwnedSemaphorePermit,
    // The count is the client's as long as somebody has a part of it.
    _own: Arc<Own>,
}

impl Figures {
    pub(super) fn new(kernel: Kernel, workers: usize) -> Figures {
        Figures {
            kernel,
            workers,
            all: Places::new(ODDS_AT_ONCE, RATES_AT_ONCE),
            clients: Mutex::default(),
            odds: Arc::new(Kept::new(ODDS)),
            rates: Arc::new(Kept::new(RATES)),
        }
    }

    /// Counts an Estimate; refuses one of a client that has very many.
    pub(super) fn begin(&self, caller: &Caller) -> Result<Estimating, CallError> {
        let own = self.own(&caller.client());
        let place = Arc::clone(&own.estimates).try_acquire_owned();
        Ok(Estimating {
            _place: place.map_err(|_| CallError::TooManyEstimates {
                limit: ESTIMATES_OF_CLIENT,
            })?,
            _own: own,
        })
    }

    /// The odds of a query. Dropping the future gives up the place that it waits for; what has begun is
    /// reckoned to its end, and kept.
    pub(super) async fn odds(&self, caller: &Caller, query: &Query) -> Result<Odds, CallError> {
        let asked = || Asked {
            client: caller.client(),
            names: query
                .names()
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            spelling: query.spelling(),
            ideal: query.ideal_distance().get(),
        };
        if let Some(odds) = self.odds.get(&asked()) {
            return Ok(odds);
        }
        let (kept, asked, query) = (Arc::clone(&self.odds), asked(), query.clone());
        let odds = move || {
            // Whoever was before this one may have asked for the same.
            kept.get(&asked).unwrap_or_else(|| {
                let odds = Odds::any(query.names(), query.ideal_distance());
                kept.put(asked, odds);
                odds
            })
        };
        self.reckon(caller, |places| &places.odds, odds).await
    }

    /// How many secrets this server hashes in a second for such a query. One thread is measured, for a
    /// quarter of a second, and counted as often as there are threads that search: to measure all of them
    /// would take their cores from the searches. Dropping the future gives up the place that it waits for;
    /// what has begun is measured to its end, and kept.
    pub(super) async fn rate(&self, caller: &Caller, query: &Query) -> Result<f64, CallError> {
        // Of one that tells nothing on the way.
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
        self.reckon(caller, |places| &places.rates, measure).await
    }

    /// Does what takes a core for a while, when it is this client's turn.
    async fn reckon<T: Send + 'static>(
        &self,
        caller: &Caller,
        place: impl Fn(&Places) -> &Arc<Semaphore>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let own = self.own(&caller.client());
        let turn = async {
            let of_client = Arc::clone(place(&own.places)).acquire_owned().await;
            let of_all = Arc::clone(place(&self.all)).acquire_owned().await;
            (of_client, of_all)
        };
        let turn = tokio::select! {
            biased;
            // Where it is told for another reason, nobody waits for the answer any more.
            _ = caller.context.cancelled() => return Err(CallError::Draining(None)),
            turn = turn => (turn, Arc::clone(&own)),
        };
        let runtime = Handle::current();
        // Not the runtime's threads for blocking work: where none can be started, these panic.
        // Without a thread the job is dropped, and the call ends with UNAVAILABLE.
        let pool = |job| drop(threads::start("estimate", job));
        let work = move |_stop| {
            let resting = Resting {
                turn: Some(turn),
                began: Instant::now(),
                runtime,
            };
            let done = work();
            drop(resting);
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

    /// The client's own places.
    fn own(&self, client: &ClientName) -> Arc<Own> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(client).and_then(Weak::upgrade) {
            return own;
        }
        // Those who are waiting, at work or at rest hold theirs.
        clients.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Own {
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

/// A turn at work. When the work has ended, whether or not anybody waits for it and also by a panic, the
/// places rest, and then go back.
struct Resting<T: Send + 'static> {
    turn: Option<T>,
    began: Instant,
    runtime: Handle,
}

impl<T: Send + 'static> Drop for Resting<T> {
    fn drop(&mut self) {
        let (turn, rest) = (self.turn.take(), self.began.elapsed() * REST);
        self.runtime.spawn(async move {
            sleep(rest).await;
            drop(turn);
        });
    }
}

/// What was found out before, so much of it and no more.
struct Kept<K, V> {
    most: usize,
    known: Mutex<HashMap<K, V>>,
}

impl<K: Eq + Hash, V: Copy> Kept<K, V> {
    fn new(most: usize) -> Kept<K, V> {
        Kept {
            most,
            known: Mutex::default(),
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.lock().get(key).copied()
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.lock();
        if known.len() >= self.most {
            known.clear();
        }
        known.insert(key, value);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, V>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept<Kind, (f64, Instant)> {
    /// A rate that was measured lately.
    fn fresh(&self, kind: Kind) -> Option<f64> {
        let (rate, measured_at) = self.get(&kind)?;
        (measured_at.elapsed() < RATE_LASTS).then_some(rate)
    }
}

impl Kind {
    fn of(query: &Query) -> Kind {
        let spelling = query.spelling();
        let lengths = query.names().iter().map(DesiredName::character_count);
        // Nothing is further away than a name is long.
        let furthest = usize::from(query.ideal_distance().get()).min(lengths.max().unwrap_or(0));
        let power = |number: usize| number.next_power_of_two().ilog2();
        Kind {
            algorithm: spelling.algorithm,
            has_fast_filter: query.sought().filter().is_some(),
            blocks: power(blocks(query)),
            names: power(query.names().len()),
            // One more, so that none and one are different.
            distance: power(furthest + 1),
            hits: (-query.hit_rate().log2() / 4.0).clamp(0.0, 3.0) as u32,
        }
    }
}

/// How many blocks are hashed for each secret: whole blocks of the prefix are hashed once for all.
fn blocks(query: &Query) -> usize {
    let (block, padding) = match query.spelling().algorithm {
        Algorithm::Sha512 => (128, 17),
        Algorithm::Blake3 => (64, 0),
        _ => (64, 9),
    };
    let keyspace = query.keyspace();
    let around = keyspace.prefix().len() % block + keyspace.suffix().len();
    (around + USUAL_LENGTH + padding).div_ceil(block)
}

/// All that Estimate tells.
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

/// Odds, as the wire has them.
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
    fn there_are_few_kinds_whatever_is_asked_for() {
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
        // Six numbers of blocks, five distances, and one kind that has a fast filter for each of these.
        assert!(kinds.len() <= 6 * 5 + 5, "{}", kinds.len());
    }

    #[test]
    fn what_is_slower_by_much_is_another_kind() {
        let query = || Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
        let mut kinds = vec![Kind::of(&query())];
        let among = |prefix: &[u8], suffix: &[u8]| {
            let keyspace = Keyspace::new(prefix, Alphabet::bytes(), suffix).unwrap();
            Kind::of(&query().among(keyspace))
        };
        // A prefix is hashed once.
        assert_eq!(among(b"a", b""), among(&[b'a'; 1024], b""));
        kinds.push(among(b"a", b""));
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

//! How likely a match is, and how fast this server is: reckoned off the threads that serve, and never so
//! much of it at once that the searches would notice.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hashfinder_search::{DesiredName, Kernel, Keyspace, Odds, Query, Spelling};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::{
    bench,
    estimate::MEASURED_FOR,
    listener::ClientName,
    rpc::{
        searches::Caller,
        status::CallError,
        v1pb::{Bounds, EstimateResponse, Odds as WireOdds},
    },
};

/// How many odds are reckoned at a time. They take up to some tens of milliseconds of one core, which is
/// the searches' too.
const AT_ONCE: usize = 2;

/// For how long a rate that was measured is believed: what else the machine did then is over some time.
const RATE_LASTS: Duration = Duration::from_secs(600);

/// How many kinds of query a rate is kept for; beyond that all are measured anew.
const RATES: usize = 1024;

/// Reckons odds, and measures rates.
pub(super) struct Figures {
    kernel: Kernel,
    workers: usize,
    all: Arc<Semaphore>,
    /// Each client waits for itself first, so that it takes one of the places at most.
    clients: Mutex<HashMap<ClientName, Weak<Semaphore>>>,
    rates: Arc<Rates>,
}

#[derive(Default)]
struct Rates {
    known: Mutex<HashMap<Kind, (f64, Instant)>>,
}

/// What of a query decides how fast it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    spelling: Spelling,
    /// Whether secrets are all byte strings, and how many more bytes are hashed with each.
    among: (bool, usize),
    names: usize,
    characters: usize,
    distances: (u8, u8),
}

impl Figures {
    pub(super) fn new(kernel: Kernel, workers: usize) -> Figures {
        Figures {
            kernel,
            workers,
            all: Arc::new(Semaphore::new(AT_ONCE)),
            clients: Mutex::default(),
            rates: Arc::default(),
        }
    }

    /// The odds of a query. Dropping the future gives up the place that it waits for; what has begun is
    /// reckoned to its end.
    pub(super) async fn odds(&self, caller: &Caller, query: &Query) -> Result<Odds, CallError> {
        let query = query.clone();
        let odds = move || Odds::any(query.names(), query.ideal_distance());
        self.reckon(caller, odds).await
    }

    /// How many secrets this server hashes in a second for such a query. One thread is measured, for a
    /// quarter of a second, and counted as often as there are threads that search: to measure all of them
    /// would take their cores from the searches. Dropping the future gives up the place that it waits for;
    /// what has begun is measured to its end, and kept.
    pub(super) async fn rate(&self, caller: &Caller, query: &Query) -> Result<f64, CallError> {
        let kind = kind_of(query);
        if let Some(rate) = self.rates.get(kind) {
            return Ok(rate);
        }
        let (rates, query) = (Arc::clone(&self.rates), query.clone());
        let (kernel, workers) = (self.kernel, self.workers as f64);
        let measure = move || {
            // Whoever was before this one may have asked for the same.
            rates.get(kind).unwrap_or_else(|| {
                let rate = bench::search_rate(kernel, &query, 1, MEASURED_FOR) * workers;
                rates.put(kind, rate);
                rate
            })
        };
        self.reckon(caller, measure).await
    }

    /// Does what takes a core for a while, when it is this client's turn.
    async fn reckon<T: Send + 'static>(
        &self,
        caller: &Caller,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let own = self.own(&caller.client());
        let turn = async {
            let own = own.acquire_owned().await;
            (own, Arc::clone(&self.all).acquire_owned().await)
        };
        let turn = tokio::select! {
            biased;
            // Where it is told for another reason, nobody waits for the answer any more.
            _ = caller.context.cancelled() => return Err(CallError::Draining(None)),
            turn = turn => turn,
        };
        let done = caller.context.run_blocking(move |_stop| {
            // They go back when the work has ended, whether or not anybody waits for it.
            let _turn = turn;
            work()
        });
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

    /// The client's own place.
    fn own(&self, client: &ClientName) -> Arc<Semaphore> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(client).and_then(Weak::upgrade) {
            return own;
        }
        // Those who are waiting, or at work, hold theirs.
        clients.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(1));
        clients.insert(client.clone(), Arc::downgrade(&own));
        own
    }
}

impl Rates {
    fn get(&self, kind: Kind) -> Option<f64> {
        let known = self.lock();
        let (rate, measured_at) = known.get(&kind)?;
        (measured_at.elapsed() < RATE_LASTS).then_some(*rate)
    }

    fn put(&self, kind: Kind, rate: f64) {
        let mut known = self.lock();
        if known.len() >= RATES {
            known.clear();
        }
        known.insert(kind, (rate, Instant::now()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kind, (f64, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind_of(query: &Query) -> Kind {
    let (ideal, interesting) = (query.ideal_distance(), query.interesting_distance());
    let lengths = query.names().iter().map(DesiredName::character_count);
    let keyspace = query.keyspace();
    Kind {
        spelling: query.spelling(),
        among: (*keyspace == Keyspace::default(), keyspace.suffix().len()),
        names: query.names().len(),
        characters: lengths.sum(),
        distances: (ideal.get(), interesting.get()),
    }
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

//! A client that behaves well, and measurements of its calls.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hashfinder_proto::hash_name::{HashNameRequest, hash_finder_client::HashFinderClient};
use tokio::{
    sync::oneshot,
    task::LocalSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

/// Deadline of each call in trials that judge response times.
pub(crate) const DEADLINE: Duration = Duration::from_secs(4);

/// How long after its deadline a call may still receive its response.
const LATE: Duration = Duration::from_secs(1);

/// How often a newcomer connects and makes one call.
const NEWCOMERS: Duration = Duration::from_secs(1);

/// How a healthy client calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Number of calls to begin per second.
    pub(crate) a_second: u32,
    /// The deadline of each call.
    pub(crate) deadline: Duration,
    /// Maximum number of open calls. Without a maximum, a late response does not delay the next
    /// call.
    pub(crate) most_open: Option<usize>,
}

/// A client that repeats `Find("doc")` on one connection. Beside it, newcomers connect, make one
/// call and disconnect.
pub(crate) struct Healthy {
    samples: Arc<Mutex<Vec<Sample>>>,
    newcomers: Arc<Mutex<Vec<Sample>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

/// A call: when it should have begun, the time from then to its response, and its failure. A call
/// that has not ended counts as failed, with the maximum time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    pub(crate) failure: Option<String>,
}

/// Statistics of a set of calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) calls: usize,
    pub(crate) failed: usize,
    pub(crate) failure: Option<String>,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) longest: Duration,
}

impl Healthy {
    /// Connects from 127.0.0.1 and starts calling.
    pub(crate) fn start(address: SocketAddr, pace: Pace) -> Result<Healthy> {
        let (samples, newcomers) = (Arc::default(), Arc::default());
        let (stop, stopped) = oneshot::channel();
        let calls = run(
            address,
            pace,
            Arc::clone(&samples),
            Arc::clone(&newcomers),
            stopped,
        );
        let thread = thread::Builder::new().name("healthy".to_owned());
        let thread = thread.spawn(move || block_on(calls)?)?;
        Ok(Healthy {
            samples,
            newcomers,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the statistics of the calls that should have begun within a period.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Figures {
        figures(&self.samples, from, to)
    }

    /// Returns the statistics of the newcomers that should have connected within a period.
    pub(crate) fn newcomers_between(&self, from: Instant, to: Instant) -> Figures {
        figures(&self.newcomers, from, to)
    }

    /// Returns the time from `from` to the first of `in_a_row` consecutive calls that all succeeded
    /// in less than `than`.
    pub(crate) fn well_after(
        &self,
        from: Instant,
        in_a_row: usize,
        than: Duration,
    ) -> Option<Duration> {
        let samples = lock(&self.samples);
        let mut samples: Vec<&Sample> = samples.iter().filter(|one| one.at >= from).collect();
        samples.sort_by_key(|one| one.at);
        let is_well = |one: &&Sample| one.failure.is_none() && one.took < than;
        let mut all = samples.windows(in_a_row);
        let well = all.find(|calls| calls.iter().all(is_well))?;
        Some(well.first()?.at - from)
    }

    /// Begins no more calls, and waits for the open ones. Only after that can all calls be judged.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.stop.take();
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(ended)) => ended,
            _ => bail!("the healthy client panicked"),
        }
    }
}

/// Runs a future on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start a runtime")?;
    Ok(LocalSet::new().block_on(&runtime, future))
}

/// Connects as an ordinary gRPC client.
pub(crate) async fn connect(address: SocketAddr) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(DEADLINE);
    endpoint.connect().await.context("cannot connect")
}

/// Connects, makes one call and disconnects. Returns how long that took.
pub(crate) fn newcomer(address: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    block_on(visit(address, DEADLINE))??;
    Ok(began.elapsed())
}

async fn visit(address: SocketAddr, deadline: Duration) -> Result<()> {
    ask(HashFinderClient::new(connect(address).await?), deadline).await
}

async fn run(
    address: SocketAddr,
    pace: Pace,
    samples: Arc<Mutex<Vec<Sample>>>,
    newcomers: Arc<Mutex<Vec<Sample>>>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let Pace {
        a_second,
        deadline,
        most_open,
    } = pace;
    let client = HashFinderClient::new(connect(address).await?);
    let mut calls = interval(Duration::from_secs(1) / a_second);
    let mut visits = interval(NEWCOMERS);
    if most_open.is_some() {
        calls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        visits.set_missed_tick_behavior(MissedTickBehavior::Delay);
    } else {
        // Missed ticks are made up for, so that a delay counts for every call that it affects.
        calls.set_missed_tick_behavior(MissedTickBehavior::Burst);
    }
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let has_room = most_open.is_none_or(|most| under_way.len() < most);
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = under_way.join_next(), if !has_room => {}
            at = calls.tick(), if has_room => {
                let call = ask(client.clone(), deadline);
                under_way.spawn_local(measured(at.into_std(), call, Arc::clone(&samples)));
            }
            at = visits.tick(), if has_room => {
                let call = visit(address, deadline);
                under_way.spawn_local(measured(at.into_std(), call, Arc::clone(&newcomers)));
            }
        }
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

async fn measured(
    at: Instant,
    call: impl Future<Output = Result<()>>,
    samples: Arc<Mutex<Vec<Sample>>>,
) {
    let number = {
        let mut samples = lock(&samples);
        samples.push(Sample {
            at,
            took: Duration::MAX,
            failure: Some("no answer yet".to_owned()),
        });
        samples.len() - 1
    };
    let failure = call.await.err().map(|error| format!("{error:#}"));
    let took = at.elapsed();
    if let Some(sample) = lock(&samples).get_mut(number) {
        *sample = Sample { at, took, failure };
    }
}

async fn ask(mut client: HashFinderClient<Channel>, deadline: Duration) -> Result<()> {
    let mut request = Request::new(HashNameRequest {
        desired_name: "doc".to_owned(),
        ideal_hamming_distance: 0,
        interesting_hamming_distance: 0,
    });
    request.set_timeout(deadline);
    let answer = timeout(deadline + LATE, client.find(request)).await;
    let answer = answer.context("no answer")??.into_inner();
    if answer.hamming_distance != 0 {
        bail!("a wrong answer: {answer:?}");
    }
    Ok(())
}

fn figures(samples: &Mutex<Vec<Sample>>, from: Instant, to: Instant) -> Figures {
    let samples = lock(samples);
    let these = samples.iter().filter(|one| (from..to).contains(&one.at));
    let these: Vec<&Sample> = these.collect();
    let failed = || these.iter().filter_map(|one| one.failure.as_ref());
    let mut took: Vec<Duration> = these.iter().map(|one| one.took).collect();
    took.sort_unstable();
    let quantile = |share: f64| {
        let at = (took.len() as f64 * share) as usize;
        let at = at.min(took.len().saturating_sub(1));
        took.get(at).copied().unwrap_or_default()
    };
    Figures {
        calls: these.len(),
        failed: failed().count(),
        failure: failed().next().cloned(),
        p50: quantile(0.5),
        p99: quantile(0.99),
        longest: quantile(1.0),
    }
}

fn lock(samples: &Mutex<Vec<Sample>>) -> std::sync::MutexGuard<'_, Vec<Sample>> {
    // No code panics while it changes the samples.
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::process::PATIENCE;

    /// Regression: calls that hung at the end of an attack were missing from the statistics, which
    /// were read before these calls had ended.
    #[test]
    fn calls_that_hang_at_the_end_are_judged() -> Result<()> {
        let deadline = Duration::from_millis(200);
        let pace = Pace {
            a_second: 20,
            deadline,
            most_open: None,
        };
        let silent = TcpListener::bind("127.0.0.1:0")?;
        let began = Instant::now();
        let mut healthy = Healthy::start(silent.local_addr()?, pace)?;
        let has_called = || {
            let now = Instant::now();
            healthy.between(began, now).calls > 0 && healthy.newcomers_between(began, now).calls > 0
        };
        while !has_called() {
            assert!(began.elapsed() < PATIENCE, "the client makes no calls");
            thread::sleep(Duration::from_millis(10));
        }
        let ended = Instant::now();
        assert_eq!(healthy.well_after(began, 1, Duration::MAX), None);
        healthy.finish()?;
        let figures = healthy.between(began, ended);
        assert!(figures.calls > 0);
        assert_eq!(figures.failed, figures.calls);
        assert!(figures.p99 >= deadline);
        let newcomers = healthy.newcomers_between(began, ended);
        assert!(newcomers.calls > 0);
        assert_eq!(newcomers.failed, newcomers.calls);
        Ok(())
    }
}

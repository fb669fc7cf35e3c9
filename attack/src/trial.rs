//! Runs one attack beside a healthy client, and judges both.

use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    attack::Attack,
    connection::Source,
    healthy::{DEADLINE, Figures, Healthy, Pace, newcomer},
    process::{Other, PATIENCE, Server, core_time},
    report::{Row, ms},
    seen::Seen,
};

/// Calls per second of the healthy client. It is a busy client, whose calls take a twentieth of a
/// core.
const CALLS_A_SECOND: u32 = 200;

/// Maximum number of RPCs that search at a time, in total and per client. These are the server's
/// defaults.
const SEARCHES: u64 = 1000;
const SEARCHES_OF_CLIENT: u64 = 750;

/// Maximum number of searches of the healthy client that are counted in addition.
const HEALTHY_SEARCHES: u64 = 20;

/// Maximum growth of the server's memory, in bytes.
pub(crate) const GROWTH: u64 = 64 << 20;

/// Maximum ratio of the healthy client's p99 response time to that in the control run.
const SLOWER: u32 = 2;

/// Number of successful calls in a row that show a recovery, and the time limit for it.
const RECOVERED: usize = 20;
const RECOVERY: Duration = Duration::from_secs(1);

/// Maximum CPU use after the attack, in cores, beyond the use before it. More would be work that
/// was left behind.
const BUSY_AFTER: f64 = 0.2;

/// Maximum number of open calls of the healthy client in the short form.
const SHORT_OPEN: usize = 10;

/// How long to try to make a call on a new connection.
const NEWCOMER: Duration = Duration::from_secs(8);

/// How often memory and metrics are read. Metrics may be up to a second old.
const LOOK: Duration = Duration::from_millis(50);
const SCRAPE: Duration = Duration::from_millis(500);

/// Settings of the trials.
pub(crate) struct Setting {
    /// Path of the server's program.
    pub(crate) server: PathBuf,
    pub(crate) time: Duration,
    pub(crate) is_short: bool,
    /// Addresses of the attackers. The default is [`Source::One`].
    pub(crate) source: Option<Source>,
    /// Number of connections, if not as in the attack's plan.
    pub(crate) connections: Option<usize>,
    /// Additional arguments for the server.
    pub(crate) server_arguments: Vec<String>,
}

impl Setting {
    /// Returns the pace of the healthy client. In the short form, its deadline is generous, because
    /// response times depend on what else runs on the machine. It also keeps few calls open,
    /// because an HTTP/2 library that gets no core may close a connection on which many small
    /// frames wait to be read.
    pub(crate) fn pace(&self, a_second: u32) -> Pace {
        Pace {
            a_second,
            deadline: if self.is_short { PATIENCE } else { DEADLINE },
            most_open: self.is_short.then_some(SHORT_OPEN),
        }
    }

    /// Returns how long to try to make a call on a new connection.
    pub(crate) fn newcomer_patience(&self) -> Duration {
        if self.is_short { PATIENCE } else { NEWCOMER }
    }

    /// Starts a server for a trial, with `more` arguments and these `limits`.
    pub(crate) fn server(&self, more: &[&str], limits: &[(&str, &str)]) -> Result<Server> {
        let mut arguments = self.server_arguments.clone();
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        Server::start(&self.server, &arguments, limits)
    }

    /// Starts an attack that runs for `time`.
    pub(crate) fn attack(
        &self,
        attack: Attack,
        server: &Server,
        source: Source,
        connections: usize,
        time: Duration,
    ) -> Result<Other> {
        let arguments = self.attack_arguments(attack, server, source, connections, time);
        Other::start(&arguments, time)
    }

    /// Starts an attack that does not reopen streams, and that runs until the caller finishes it.
    pub(crate) fn attack_until_finished(
        &self,
        attack: Attack,
        server: &Server,
        source: Source,
        connections: usize,
    ) -> Result<Other> {
        // Longer than any wait in a trial.
        let time = 10 * PATIENCE;
        let mut arguments = self.attack_arguments(attack, server, source, connections, time);
        arguments.extend(["--once", "--until-stdin-ends"].map(str::to_owned));
        Other::listening(&arguments, time)
    }

    fn attack_arguments(
        &self,
        attack: Attack,
        server: &Server,
        source: Source,
        connections: usize,
        time: Duration,
    ) -> Vec<String> {
        let source = match source {
            Source::One => "one",
            Source::Many => "many",
        };
        vec![
            "attack".to_owned(),
            attack.name(),
            format!("--target={}", server.address),
            format!("--seconds={}", time.as_secs_f64()),
            format!("--connections={connections}"),
            format!("--source={source}"),
        ]
    }
}

/// Maxima over a period.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    memory: u64,
    searches: u64,
    calls: u64,
}

/// Runs an attack and, in the long form, the control, and judges the result.
pub(crate) fn run(setting: &Setting, attack: Attack, connections: usize) -> Result<Row> {
    let source = setting.source.unwrap_or(Source::One);
    let calm = Duration::from_millis(if setting.is_short { 300 } else { 2000 });
    let mut server = setting.server(&[], &[])?;
    let mut healthy = Healthy::start(server.address, setting.pace(CALLS_A_SECOND))?;
    let (calm_began, calm_took) = (Instant::now(), core_time(server.id())?);
    thread::sleep(calm);
    let calm_rate = cores(core_time(server.id())? - calm_took, calm_began.elapsed());
    let memory_before = server.memory()?;
    let started_before = server.metrics()?.started();

    let began = Instant::now();
    let took_before = core_time(server.id())?;
    let attacker = setting.attack(attack, &server, source, connections, setting.time)?;
    let (peaks, finished) = watched(&server, || attacker.finish());
    let (said, attackers) = finished?;
    let ended = Instant::now();
    let seen = Seen::from_json(&said)?;
    let length = ended - began;
    let took = core_time(server.id()).unwrap_or(took_before) - took_before;
    let attack_cores = cores(attackers, length);
    let server_cores = (cores(took, length) - calm_rate).max(0.0);

    let first = first_newcomer(&server, ended, setting.newcomer_patience());
    if setting.is_short {
        // The short form does not limit the response times, because it has no control run to
        // compare with.
        let is_well = || {
            healthy
                .well_after(ended, RECOVERED, Duration::MAX)
                .is_some()
        };
        while !is_well() && ended.elapsed() < PATIENCE {
            thread::sleep(LOOK);
        }
    } else {
        thread::sleep(2 * RECOVERY);
    }
    let memory_after = server.memory().unwrap_or_default();
    let idle = (Instant::now(), core_time(server.id()).unwrap_or_default());
    let busy_after = if setting.is_short {
        0.0
    } else {
        thread::sleep(RECOVERY);
        let took = core_time(server.id()).unwrap_or(idle.1) - idle.1;
        (cores(took, idle.0.elapsed()) - calm_rate).max(0.0)
    };
    // Calls that hang can be judged only after they have ended.
    healthy.finish()?;
    // Calls of the healthy clients do not count as the attack's.
    let started = server.metrics().map_or(0, |metrics| metrics.started());
    let ours = [Healthy::between, Healthy::newcomers_between];
    let ours = ours.map(|calls| calls(&healthy, began, Instant::now()).calls as u64);
    let started = started.saturating_sub(started_before + ours.iter().sum::<u64>());
    let figures = healthy.between(began, ended);
    let newcomers = healthy.newcomers_between(began, ended);

    let control = if setting.is_short {
        None
    } else {
        Some(control(setting, attack_cores + server_cores)?)
    };
    let well = control
        .as_ref()
        .map_or(Duration::MAX, |control| SLOWER * control.p99);
    let recovered = healthy.well_after(ended, RECOVERED, well);
    let recovery = recovered.zip(first).map(|(calls, first)| calls.max(first));

    let mut failures = attack.failures(&seen);
    failures.extend(server.failures());
    let mut expect = |is_so: bool, what: String| {
        if !is_so {
            failures.push(what);
        }
    };
    let (failed, calls) = (figures.failed, figures.calls);
    let failure = figures.failure.as_deref().unwrap_or_default();
    expect(
        failed == 0,
        format!(
            "expected no healthy call to fail, {failed} of {calls} did, the first with: {failure}"
        ),
    );
    expect(calls > 0, "expected healthy calls, saw none".to_owned());
    if let Some(control) = &control {
        let (p99, most) = (figures.p99, SLOWER * control.p99);
        expect(
            p99 < most,
            format!(
                "expected a healthy p99 under twice the control's, {} ms, saw {} ms",
                ms(most),
                ms(p99)
            ),
        );
    }
    expect(
        busy_after < BUSY_AFTER,
        format!("expected the server to be idle again afterwards, it takes {busy_after:.2} cores"),
    );
    let growth = peaks.memory.saturating_sub(memory_before);
    expect(
        growth < GROWTH,
        format!(
            "expected the memory to grow by less than {} MiB, saw {}",
            GROWTH >> 20,
            growth >> 20
        ),
    );
    let limit = match source {
        Source::One => SEARCHES_OF_CLIENT + HEALTHY_SEARCHES,
        Source::Many => SEARCHES,
    };
    let most = peaks.searches;
    expect(
        most <= limit,
        format!("expected at most {limit} searches at a time, saw {most}"),
    );
    let in_time = if setting.is_short { PATIENCE } else { RECOVERY };
    let shown = recovery.map_or("none".to_owned(), |time| format!("{} ms", ms(time)));
    expect(
        recovery.is_some_and(|time| time < in_time),
        format!(
            "expected {RECOVERED} healthy calls in a row{}, and one on a new connection, within {} ms of the \
             end, saw {shown}",
            control
                .as_ref()
                .map_or(String::new(), |_| format!(" under {} ms", ms(well))),
            ms(in_time)
        ),
    );
    Ok(Row {
        name: attack.name(),
        connections,
        source,
        figures,
        control,
        newcomers,
        growth,
        memory_after: memory_after.saturating_sub(memory_before),
        searches: peaks.searches,
        calls: peaks.calls,
        recovery,
        attack_cores,
        server_cores,
        busy_after,
        started,
        seen,
        failures,
    })
}

/// Measures the healthy client beside a harmless load on `cores` cores, which is the CPU use of the
/// attack and the server together.
fn control(setting: &Setting, cores: f64) -> Result<Figures> {
    let server = setting.server(&[], &[])?;
    let mut healthy = Healthy::start(server.address, setting.pace(CALLS_A_SECOND))?;
    thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    let burner = Other::start(
        &[
            "burn".to_owned(),
            format!("--cores={cores}"),
            format!("--seconds={}", setting.time.as_secs_f64()),
        ],
        setting.time,
    )?;
    // Watch the server as in the attack, because watching takes CPU time, too.
    let (_, finished) = watched(&server, || burner.finish());
    finished?;
    let ended = Instant::now();
    healthy.finish()?;
    Ok(healthy.between(began, ended))
}

/// Calls `act`, and watches the server meanwhile.
fn watched<T>(server: &Server, act: impl FnOnce() -> T) -> (Peaks, T) {
    let peaks = Mutex::new(Peaks::default());
    let is_over = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let mut scraped: Option<Instant> = None;
            loop {
                let was_over = is_over.load(Ordering::Relaxed);
                let memory = server.memory().unwrap_or_default();
                let is_due = scraped.is_none_or(|at| at.elapsed() >= SCRAPE);
                let metrics = if is_due || was_over {
                    scraped = Some(Instant::now());
                    // A failed scrape is ignored.
                    server.metrics().ok()
                } else {
                    None
                };
                let mut peaks = peaks.lock().unwrap_or_else(PoisonError::into_inner);
                peaks.memory = peaks.memory.max(memory);
                if let Some(metrics) = metrics {
                    peaks.searches = peaks.searches.max(metrics.searches());
                    peaks.calls = peaks.calls.max(metrics.calls());
                }
                drop(peaks);
                if was_over {
                    break;
                }
                thread::sleep(LOOK);
            }
        });
        let done = act();
        is_over.store(true, Ordering::Relaxed);
        done
    });
    (
        peaks.into_inner().unwrap_or_else(PoisonError::into_inner),
        done,
    )
}

/// Returns the time from `since` to the first successful call on a new connection, or `None` after
/// `patience`.
pub(crate) fn first_newcomer(
    server: &Server,
    since: Instant,
    patience: Duration,
) -> Option<Duration> {
    while since.elapsed() < patience {
        if newcomer(server.address).is_ok() {
            return Some(since.elapsed());
        }
        thread::sleep(LOOK);
    }
    None
}

fn cores(took: Duration, of: Duration) -> f64 {
    took.as_secs_f64() / of.as_secs_f64().max(f64::EPSILON)
}

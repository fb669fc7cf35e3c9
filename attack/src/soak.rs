//! A soak: unruly clients come and go for half an hour after a warm-up, and some of them are
//! killed. Their searches keep most of the machine's cores busy. Then the soak checks that the
//! server holds nothing for them.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};

use crate::{
    process::{Metrics, Other, PATIENCE, Server, core_time},
    report::{cpu, write_section},
    slope::{Slope, median},
    trial::first_newcomer,
    unruly::VISITORS,
};

/// Heading of the section that has the table.
const SECTION: &str = "## Soak";

/// Number of client processes, each with several connections.
const CLIENTS: usize = 4;

/// Mean time from one restart to the next; each restarts one random process. The short form
/// restarts more often, so that most processes are restarted even in a short time.
const RESTART: Duration = Duration::from_secs(15);
const SHORT_RESTART: Duration = Duration::from_secs(2);

/// Rate of long searches, which use all cores, per second: the initial rate, and the minimum and
/// maximum.
const RATE: f64 = 8.0;
const RATES: std::ops::RangeInclusive<f64> = 0.1..=100.0;

/// Control of this rate: the weight of the last second in the smoothed load, and the change of the
/// rate's logarithm per second if the load is off by all cores.
const SMOOTHING: f64 = 0.2;
const GAIN: f64 = 0.3;

/// Maximum deviation of the average load from the planned one. Beyond it, the run measured
/// something else.
const LOAD_OFF: f64 = 0.1;

/// Maximum growth of memory after the warm-up, in MiB per hour.
const GROWTH: f64 = 1.0;

/// Time span of each point of the regression. The point is the median of the samples in this span.
const POINT: Duration = Duration::from_secs(10);

/// Maximum time until the server holds nothing for the clients that have left. It notices closed
/// connections at once, so nearly all of this time is a reserve for a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

/// Maximum age of the server's metrics, with a margin.
const STALE: Duration = Duration::from_millis(1200);

/// How often progress is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_secs(1);

/// Names of what the server holds for clients.
const HELD: [&str; 7] = [
    "descriptors",
    "tasks",
    "work permits",
    "searches",
    "active calls",
    "open calls",
    "connections",
];

/// Settings of a soak.
pub(crate) struct Plan {
    pub(crate) server: PathBuf,
    pub(crate) server_arguments: Vec<String>,
    pub(crate) time: Duration,
    /// First part of `time`, in which memory may still grow to its bounds.
    pub(crate) warm_up: Duration,
    /// Share of all cores that the server should use.
    pub(crate) load: f64,
    pub(crate) seed: u64,
    /// Whether to skip checks that could fail on a busy machine, and those that need a long run.
    pub(crate) is_short: bool,
}

/// State of the server at a point in time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    memory: u64,
    heap: u64,
    held: [u64; HELD.len()],
}

impl Sample {
    fn of(server: &Server, at: Duration) -> Result<(Sample, Metrics)> {
        // Count the descriptors first, because the request for the metrics opens one.
        let descriptors = server.descriptors()? as u64;
        let metrics = server.metrics().context("the server shows no metrics")?;
        let sample = Sample {
            at,
            memory: server.memory()?,
            heap: server.heap()?,
            held: [
                descriptors,
                metrics.value("hashfinder_tasks"),
                metrics.value("hashfinder_active_work"),
                metrics.searches(),
                metrics.calls(),
                metrics.value("hashfinder_open_calls"),
                metrics.value("hashfinder_connections"),
            ],
        };
        Ok((sample, metrics))
    }
}

/// The client processes, which are restarted at random.
struct Clients {
    server: std::net::SocketAddr,
    time: Duration,
    random: Rng,
    processes: Vec<Other>,
    ended: usize,
    killed: usize,
}

impl Clients {
    fn start(&mut self) -> Result<()> {
        let arguments = [
            "unruly".to_owned(),
            format!("--target={}", self.server),
            format!("--seed={}", self.random.u64(..)),
        ];
        self.processes
            .push(Other::listening(&arguments, self.time)?);
        Ok(())
    }

    /// Replaces a random process. Three times in four, the process is killed without warning.
    fn restart(&mut self) -> Result<()> {
        let at = self.random.usize(..self.processes.len());
        let is_killed = self.random.u8(..4) > 0;
        self.end(at, is_killed)?;
        self.start()
    }

    fn end(&mut self, at: usize, is_killed: bool) -> Result<()> {
        let one = self.processes.swap_remove(at);
        if is_killed {
            drop(one);
            self.killed += 1;
        } else {
            one.finish()?;
            self.ended += 1;
        }
        Ok(())
    }

    /// Sends each process the rate at which each of its connections should start long searches.
    /// `rate` is the total for all connections, per second.
    fn send_rate(&mut self, rate: f64) -> Result<()> {
        let each = rate / (CLIENTS * VISITORS) as f64;
        for one in &mut self.processes {
            one.send_line(&each.to_string())?;
        }
        Ok(())
    }
}

/// Result of a soak.
pub(crate) struct Soak {
    time: Duration,
    warm_up: Duration,
    seed: u64,
    workers: usize,
    load: f64,
    ended: usize,
    killed: usize,
    calls: u64,
    codes: Vec<(String, u64)>,
    ends: Vec<(String, u64)>,
    before: Sample,
    samples: Vec<Sample>,
    after: Sample,
    settled: Duration,
    memory: Option<Slope>,
    heap: Option<Slope>,
    pub(crate) failures: Vec<String>,
}

/// Runs the soak and judges it.
pub(crate) fn run(plan: &Plan) -> Result<Soak> {
    let mut server = Server::start(&plan.server, &plan.server_arguments, &[])?;
    thread::sleep(STALE);
    let (before, metrics) = Sample::of(&server, Duration::ZERO)?;
    let workers = metrics.value("hashfinder_workers").max(1) as usize;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut clients = Clients {
        server: server.address,
        time: plan.time,
        random: Rng::with_seed(plan.seed),
        processes: Vec::new(),
        ended: 0,
        killed: 0,
    };
    for _ in 0..CLIENTS {
        clients.start()?;
    }
    let mut failures = Vec::new();
    let (mut samples, mut rate, mut load) = (Vec::new(), RATE, plan.load);
    let (mut restart, mut next_progress) = (Duration::ZERO, Duration::ZERO);
    let began = Instant::now();
    let first_took = core_time(server.id())?;
    let (mut looked, mut took) = (began, first_took);
    let mut warm = None;
    while began.elapsed() < plan.time {
        thread::sleep(LOOK.saturating_sub(looked.elapsed()));
        let (now, now_took) = match core_time(server.id()) {
            Ok(took) => (Instant::now(), took),
            // The server has ended, which is reported below.
            Err(_) => break,
        };
        let at = now - began;
        let seconds = (now - looked).as_secs_f64() * cores as f64;
        load += SMOOTHING * ((now_took - took).as_secs_f64() / seconds - load);
        (looked, took) = (now, now_took);
        rate *= (GAIN * (plan.load - load)).exp();
        rate = rate.clamp(*RATES.start(), *RATES.end());
        if at >= plan.warm_up && warm.is_none() {
            warm = Some((now, now_took));
        }
        // If a scrape fails, only this sample is missing.
        if let Ok((sample, _)) = Sample::of(&server, at) {
            samples.push(sample);
        }
        if at >= restart {
            let every = if plan.is_short {
                SHORT_RESTART
            } else {
                RESTART
            };
            restart = at + every.mul_f64(2.0 * clients.random.f64());
            clients.restart()?;
        }
        if let Err(error) = clients.send_rate(rate) {
            failures.push(format!("a client ended by itself: {error:#}"));
            break;
        }
        if at >= next_progress
            && let Some(sample) = samples.last()
        {
            next_progress = at + PROGRESS_EVERY;
            progress(sample, load, rate);
        }
    }
    let (warm, warm_took) = warm.unwrap_or((began, first_took));
    let load = (took - warm_took).as_secs_f64() / (looked - warm).as_secs_f64().max(f64::EPSILON);
    let load = load / cores as f64;
    // Every other process is killed without warning.
    while !clients.processes.is_empty() {
        let is_killed = clients.processes.len().is_multiple_of(2);
        clients.end(0, is_killed)?;
    }
    let over = Instant::now();
    if first_newcomer(&server, over, PATIENCE).is_none() {
        failures.push("expected a new client to be answered afterwards, none was".to_owned());
    }
    let (after, metrics) = loop {
        let (after, metrics) = Sample::of(&server, began.elapsed())?;
        if after.held == before.held || over.elapsed() > SETTLE {
            break (after, metrics);
        }
        thread::sleep(STALE / 4);
    };
    let settled = over.elapsed();
    for (what, (before, after)) in HELD.iter().zip(before.held.iter().zip(after.held)) {
        if *before != after {
            failures.push(format!(
                "expected {before} {what} as before the first client, saw {after} {} s after the last",
                settled.as_secs()
            ));
        }
    }
    failures.extend(server.failures());
    let calls = metrics.started();
    if calls == 0 || samples.is_empty() {
        failures.push(format!(
            "expected calls, saw {calls}, and looked {} times",
            samples.len()
        ));
    }
    let (memory, heap) = if plan.is_short {
        (None, None)
    } else {
        judge(plan, &samples, load, &mut failures)
    };
    Ok(Soak {
        time: plan.time,
        warm_up: plan.warm_up,
        seed: plan.seed,
        workers,
        load,
        ended: clients.ended,
        killed: clients.killed,
        calls,
        codes: most(&metrics, "grpc_server_handled_total", "grpc_code"),
        ends: most(&metrics, "hashfinder_searches_ended_total", "how"),
        before,
        samples,
        after,
        settled,
        memory,
        heap,
        failures,
    })
}

fn judge(
    plan: &Plan,
    samples: &[Sample],
    load: f64,
    failures: &mut Vec<String>,
) -> (Option<Slope>, Option<Slope>) {
    let off = (load - plan.load).abs();
    if off > LOAD_OFF {
        failures.push(format!(
            "expected a load of about {}, saw {load:.2}",
            plan.load
        ));
    }
    let warm: Vec<Sample> = samples
        .iter()
        .filter(|one| one.at >= plan.warm_up)
        .copied()
        .collect();
    let slope = |of: fn(&Sample) -> u64| {
        let points = warm.chunk_by(|one, next| {
            one.at.as_secs() / POINT.as_secs() == next.at.as_secs() / POINT.as_secs()
        });
        let points = points.filter_map(|these| {
            let value = median(these.iter().map(|one| mib(of(one))).collect())?;
            Some((these.first()?.at.as_secs_f64() / 3600.0, value))
        });
        Slope::of(&points.collect::<Vec<_>>())
    };
    let (memory, heap) = (slope(|one| one.memory), slope(|one| one.heap));
    match memory {
        Some(slope) if slope.estimate < GROWTH => {}
        Some(slope) => failures.push(format!(
            "expected memory to grow by less than {GROWTH} MiB an hour, saw {}",
            shown(slope)
        )),
        None => failures.push("the run was too short to measure how memory grows".to_owned()),
    }
    (memory, heap)
}

fn progress(sample: &Sample, load: f64, rate: f64) {
    let held: Vec<String> = HELD
        .iter()
        .zip(sample.held)
        .map(|(what, value)| format!("{what} {value}"))
        .collect();
    eprintln!(
        "{:5.0} s: {:.2} MiB, {:.2} of it no file's; load {load:.2} with {rate:.1} long searches a second; {}",
        sample.at.as_secs_f64(),
        mib(sample.memory),
        mib(sample.heap),
        held.join(", ")
    );
}

/// Returns the counts by label, the largest first.
fn most(metrics: &Metrics, metric: &str, label: &str) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = metrics.by_label(metric, label).into_iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn shown(slope: Slope) -> String {
    let Slope {
        estimate,
        low,
        high,
    } = slope;
    format!("{estimate:.2} MiB an hour (95%: {low:.2} to {high:.2})")
}

fn listed(all: &[(String, u64)]) -> String {
    let all: Vec<String> = all
        .iter()
        .map(|(what, count)| format!("{what} {count}"))
        .collect();
    all.join(", ")
}

impl Soak {
    /// Returns the results in Markdown.
    pub(crate) fn table(&self) -> String {
        let warm = || self.samples.iter().filter(|one| one.at >= self.warm_up);
        let memory = |of: fn(&Sample) -> u64, slope: Option<Slope>| {
            let [first, last] = [warm().next(), warm().next_back()].map(|one| one.map_or(0, of));
            format!(
                "{:.1} MiB before, {:.1} after the warm-up, {:.1} at the end, {:.1} with no clients; {}",
                mib(of(&self.before)),
                mib(first),
                mib(last),
                mib(of(&self.after)),
                slope.map_or("too short for a slope".to_owned(), shown)
            )
        };
        let rows = [
            ("seed", self.seed.to_string()),
            ("threads that search", self.workers.to_string()),
            (
                "load after the warm-up",
                format!("{:.1}% of all cores", self.load * 100.0),
            ),
            ("calls", format!("{}: {}", self.calls, listed(&self.codes))),
            ("searches that ended", listed(&self.ends)),
            (
                "client processes",
                format!(
                    "{CLIENTS} at a time, of which {} were killed and {} ended",
                    self.killed, self.ended
                ),
            ),
            ("memory", memory(|one| one.memory, self.memory)),
            ("of it no file's", memory(|one| one.heap, self.heap)),
            (
                "back to the start",
                format!("after {:.1} s", self.settled.as_secs_f64()),
            ),
        ];
        let mut text = "| | |\n| --- | --- |\n".to_owned();
        for (what, value) in rows {
            text += &format!("| {what} | {value} |\n");
        }
        text += "\n| | before | median | most | after |\n| --- | ---: | ---: | ---: | ---: |\n";
        for (at, what) in HELD.iter().enumerate() {
            let of = |sample: &Sample| sample.held.get(at).copied().unwrap_or_default();
            let all: Vec<f64> = self.samples.iter().map(|one| of(one) as f64).collect();
            let most = self.samples.iter().map(of).max().unwrap_or_default();
            text += &format!(
                "| {what} | {} | {} | {most} | {} |\n",
                of(&self.before),
                median(all).unwrap_or_default(),
                of(&self.after)
            );
        }
        if self.failures.is_empty() {
            text += "\nIt passed.\n";
        } else {
            text += "\nWhat failed:\n\n";
            for failure in &self.failures {
                text += &format!("- {failure}\n");
            }
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let slope = |slope: Option<Slope>| {
            slope.map(
                |slope| json!({"estimate": slope.estimate, "low": slope.low, "high": slope.high}),
            )
        };
        let sample = |one: &Sample| {
            let held = HELD.iter().zip(one.held);
            let held: serde_json::Map<String, Value> = held
                .map(|(what, value)| ((*what).to_owned(), value.into()))
                .collect();
            json!({"seconds": one.at.as_secs_f64(), "memory": one.memory, "heap": one.heap, "held": held})
        };
        json!({
            "seed": self.seed,
            "workers": self.workers,
            "load": self.load,
            "calls": self.calls,
            "killed": self.killed,
            "ended": self.ended,
            "memory_mib_an_hour": slope(self.memory),
            "heap_mib_an_hour": slope(self.heap),
            "settled_seconds": self.settled.as_secs_f64(),
            "before": sample(&self.before),
            "after": sample(&self.after),
            "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }

    /// Writes the tables into a file, replacing those of the last run.
    pub(crate) fn write(&self, file: &std::path::Path) -> Result<()> {
        let intro = format!(
            "`cargo xtask long soak`, {} minutes on {}.\n\n\
             {CLIENTS} processes with {VISITORS} clients each. A controller keeps the server's cores at the load \
             with long searches. Memory is\njudged after {} minutes, when every bounded list is full: by the \
             median slope between medians of ten seconds, with an\ninterval from blocks of their residuals. It \
             passes below {GROWTH} MiB an hour.",
            self.time.as_secs() / 60,
            cpu(),
            self.warm_up.as_secs() / 60,
        );
        write_section(file, SECTION, &format!("{intro}\n\n{}", self.table()))
    }
}

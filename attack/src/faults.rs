//! Faults that can occur without malice: exhausted descriptors, readers that stall, and a drain
//! with such readers.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::TcpStream,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use hashfinder_proto::v1::{SearchState, WatchSearchesRequest, finder_client::FinderClient};
use prost_types::Duration as WireDuration;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    attack::Attack,
    connection::{Connection, Event, Source, dial},
    healthy::{Healthy, block_on, connect},
    process::{PATIENCE, Server, core_time},
    report::{FaultReport, ms},
    seen::{CLOSED, CONNECTIONS, REFUSED, Seen},
    trial::{Setting, first_newcomer},
    wire::{FIND_RANGE, WINDOW_MAX, call, endless_search},
};

/// Calls per second of the healthy client: too few to matter for the server's CPU time.
const CALLS_A_SECOND: u32 = 5;

/// Maximum CPU use of an idle server, in cores.
const IDLE: f64 = 0.05;

/// Number of connections, and the limit of descriptors that the server gets once the connections
/// are open. With this limit from the start, the server would accept fewer connections, and make
/// room before it runs out of descriptors.
const TOO_MANY: usize = 400;
const DESCRIPTORS: usize = 256;

/// Number of connections that are opened after the limit is set.
const WAITING: usize = 16;

/// How often a condition is checked.
const LOOK: Duration = Duration::from_millis(50);

/// Log messages of the server when descriptors run out, and when some are free again.
const PAUSED: &str = "cannot accept connections";
const RESUMED: &str = "accepting connections again";

/// Number of stalled readers, number of their connections, and the server's stall timeout. With a
/// shorter timeout, a server that gets few cores would mistake the healthy client for a stalled
/// one.
const READERS: usize = 1000;
const CONNECTIONS_OF_READERS: usize = 20;
const BUDGET: Duration = Duration::from_secs(10);

/// Maximum number of secrets tested for a stalled reader. Every secret is a candidate, and the
/// search has to stop once a few thousand candidates wait to be read.
const TESTS_OF_READER: u64 = 100_000;

/// Number of streams per connection, and number of connections, in the drain. The streams of the
/// last connection are not read.
const STREAMS: usize = 10;
const DRAINED: usize = 10;

/// Maximum duration of a drain on an idle machine.
const DRAIN: Duration = Duration::from_secs(10);

/// A fault that the server has to withstand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// No descriptors left for new connections
    Descriptors,
    /// A thousand readers that stall and answer PINGs
    StalledReaders,
    /// A drain with a hundred streams, of which ten are not read
    Drain,
}

impl Fault {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn run(self, setting: &Setting) -> Result<FaultReport> {
        match self {
            Fault::Descriptors => descriptors(setting),
            Fault::StalledReaders => stalled_readers(setting),
            Fault::Drain => drain(setting),
        }
    }
}

/// The observations and failures of a fault.
struct Account(FaultReport);

impl Account {
    fn of(fault: Fault) -> Account {
        Account(FaultReport {
            name: fault.name(),
            observed: Vec::new(),
            failures: Vec::new(),
        })
    }

    fn note(&mut self, what: &'static str, value: impl Into<String>) {
        self.0.observed.push((what, value.into()));
    }

    fn expect(&mut self, is_so: bool, what: impl Into<String>) {
        if !is_so {
            self.0.failures.push(what.into());
        }
    }

    /// Adds the failures of the server and of its healthy client.
    fn finish(
        mut self,
        mut server: Server,
        mut healthy: Healthy,
        began: Instant,
    ) -> Result<FaultReport> {
        healthy.finish()?;
        let figures = healthy.between(began, Instant::now());
        let failure = figures.failure.unwrap_or_default();
        let (failed, calls) = (figures.failed, figures.calls);
        self.note("healthy calls failed", format!("{failed} of {calls}"));
        let what = format!(
            "expected no healthy call to fail, {failed} of {calls} did, the first with: {failure}"
        );
        self.expect(failed == 0 && calls > 0, what);
        self.0.failures.extend(server.failures());
        Ok(self.0)
    }
}

/// Returns the CPU use of the server in cores, measured for `time`. The short form measures until
/// the CPU use is low: whatever else runs on the machine, only a server that never becomes idle
/// stays above the limit.
fn idle_cores(server: &Server, setting: &Setting, time: Duration) -> Result<f64> {
    if !setting.is_short {
        return cores(server, time);
    }
    let began = Instant::now();
    loop {
        let cores = cores(server, Duration::from_secs(1))?;
        if cores < IDLE || began.elapsed() > PATIENCE {
            return Ok(cores);
        }
    }
}

/// Measures the CPU use of the server in cores for `time`.
fn cores(server: &Server, time: Duration) -> Result<f64> {
    let (began, before) = (Instant::now(), core_time(server.id())?);
    thread::sleep(time);
    let took = core_time(server.id())? - before;
    Ok(took.as_secs_f64() / began.elapsed().as_secs_f64())
}

fn descriptors(setting: &Setting) -> Result<FaultReport> {
    let mut account = Account::of(Fault::Descriptors);
    let time = setting.time.max(Duration::from_secs(4));
    // Idle connections must stay open: a closed one would make room for the next.
    let server = setting.server(&[], &[("handshake-timeout", "1h")])?;
    let began = Instant::now();
    let healthy = Healthy::start(server.address, setting.pace(CALLS_A_SECOND))?;
    // From many addresses, so that the limit of descriptors is reached before the server's limit
    // per address.
    let attack = Attack::SilentConnections;
    let attacker = setting.attack_until_finished(attack, &server, Source::Many, TOO_MANY)?;
    let has_all = || server.descriptors().is_ok_and(|used| used >= TOO_MANY);
    ensure!(
        soon(PATIENCE, has_all),
        "the server does not take {TOO_MANY} connections"
    );
    server.limit_descriptors(DESCRIPTORS as u64)?;
    // The system accepts these connections and queues them for the server.
    let waiting: io::Result<Vec<TcpStream>> = (0..WAITING)
        .map(|_| TcpStream::connect_timeout(&server.address, PATIENCE))
        .collect();
    let waiting = waiting?;
    let is_out = || is_paused(&server) == Some(true);
    let was_out = soon(PATIENCE, is_out);
    let idle = idle_cores(&server, setting, time / 4)?;
    let used = server.descriptors()?;
    let was_paused = was_out && is_out();
    let (said, _) = attacker.finish()?;
    drop(waiting);
    let ended = Instant::now();
    // The limit stays, but descriptors are free again.
    let recovery = first_newcomer(&server, ended, setting.newcomer_patience());
    let has_resumed = soon(PATIENCE, || is_paused(&server) == Some(false));
    let seen = Seen::from_json(&said)?;
    let shown = recovery.map_or("never".to_owned(), |time| format!("after {} ms", ms(time)));
    account.note("descriptors", format!("{used} of {DESCRIPTORS}"));
    account.note("of a core meanwhile", format!("{:.1}%", idle * 100.0));
    account.note("a new connection was good", shown.as_str());
    account.note(
        "connections",
        format!(
            "{}, closed {}, refused {}",
            seen.count(CONNECTIONS),
            seen.count(CLOSED),
            seen.count(REFUSED)
        ),
    );
    account.expect(
        used >= DESCRIPTORS,
        format!("expected all {DESCRIPTORS} descriptors to be used, saw {used}"),
    );
    account.expect(was_paused, format!("expected {PAUSED:?} in the log"));
    account.expect(
        idle < IDLE,
        format!("expected under {IDLE} cores while descriptors are exhausted, saw {idle:.3}"),
    );
    account.expect(
        recovery.is_some_and(|time| time < recovery_limit(setting)),
        format!("expected a new connection to be good soon after, it was {shown}"),
    );
    account.expect(has_resumed, format!("expected {RESUMED:?} in the log"));
    account.finish(server, healthy, began)
}

/// Whether a condition becomes true within `time`.
fn soon(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > time {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

/// Whether the server has paused accepting connections, by the last such line in its log. `None` if
/// the log has no such line.
fn is_paused(server: &Server) -> Option<bool> {
    let log = server.log();
    let mut lines = log.lines().rev();
    lines.find_map(|line| {
        let is_paused = line.contains(PAUSED);
        (is_paused || line.contains(RESUMED)).then_some(is_paused)
    })
}

/// Maximum time until a call on a new connection succeeds again.
fn recovery_limit(setting: &Setting) -> Duration {
    if setting.is_short {
        PATIENCE
    } else {
        Duration::from_secs(1)
    }
}

fn stalled_readers(setting: &Setting) -> Result<FaultReport> {
    let mut account = Account::of(Fault::StalledReaders);
    let budget = format!("{}s", BUDGET.as_secs());
    // The connections stay open, however long the test takes.
    let mut limits = vec![
        ("stream-stall-timeout", &*budget),
        ("connection-grace", "1h"),
    ];
    if setting.is_short {
        // On a busy machine, the readers may answer keepalive PINGs late.
        limits.push(("keepalive-timeout", "1h"));
    }
    // Room for all readers.
    let server = setting.server(&["--maximum-concurrent-rpcs", "4000"], &limits)?;
    let began = Instant::now();
    let healthy = Healthy::start(server.address, setting.pace(CALLS_A_SECOND))?;
    let in_time = if setting.is_short {
        BUDGET + PATIENCE
    } else {
        2 * BUDGET
    };
    let attack = Attack::ZeroWindowReaders;
    let connections = CONNECTIONS_OF_READERS;
    let attacker = setting.attack_until_finished(attack, &server, Source::Many, connections)?;
    let stalled = Instant::now();
    // Metrics may be up to a second old.
    thread::sleep(Duration::from_millis(1200));
    let most = server.metrics()?.searches();
    let mut busy = None;
    if !setting.is_short {
        busy = Some(cores(&server, Duration::from_secs(5))?);
    }
    let mut freed = None;
    let (mut unread, mut tests) = (0, 0);
    while stalled.elapsed() < in_time && freed.is_none() {
        let metrics = server.metrics()?;
        (unread, tests) = (metrics.unread(), metrics.tests());
        if metrics.searches() == 0 && unread >= READERS as u64 {
            freed = Some(stalled.elapsed());
        }
        thread::sleep(Duration::from_millis(100));
    }
    // The short form measures only now: on a busy machine, the first searches are freed before the
    // last ones have stalled. The streams still wait for their readers.
    let busy = match busy {
        Some(busy) => busy,
        None => idle_cores(&server, setting, Duration::ZERO)?,
    };
    let (said, _) = attacker.finish()?;
    let seen = Seen::from_json(&said)?;
    let closed = seen.count(CLOSED);
    let shown = freed.map_or("never".to_owned(), |time| format!("after {} ms", ms(time)));
    account.note("searches", most.to_string());
    account.note("of a core after a second", format!("{:.1}%", busy * 100.0));
    account.note("budget", budget);
    account.note("freed", shown.as_str());
    account.note(
        "connections closed",
        format!("{closed} of {}", seen.count(CONNECTIONS)),
    );
    // In the short form, the searches may never all exist at the same time, so those that have
    // ended as unread are counted instead.
    let readers = if setting.is_short { unread } else { most };
    account.expect(
        readers >= READERS as u64,
        format!("expected {READERS} stalled searches, saw {readers}"),
    );
    let most_tests = READERS as u64 * TESTS_OF_READER;
    account.expect(
        tests < most_tests,
        format!(
            "expected the searches of stalled readers to stop, with fewer than {most_tests} secrets tested, \
             saw {tests}"
        ),
    );
    account.expect(
        busy < IDLE,
        format!("expected under {IDLE} cores for stalled readers, saw {busy:.3}"),
    );
    account.expect(
        freed.is_some(),
        format!(
            "expected the searches to be freed within {} s, {} s of which they may stall, it was {shown}",
            in_time.as_secs(),
            BUDGET.as_secs()
        ),
    );
    account.expect(
        closed == 0,
        format!("expected the connections to stay, the server closed {closed}"),
    );
    account.finish(server, healthy, began)
}

/// What the readers have received when their connections end.
#[derive(Clone, Copy, Debug, Default)]
struct Drained {
    /// Connections that received a GOAWAY.
    goaways: usize,
    /// Streams that ended with a cursor.
    cursors: usize,
}

fn drain(setting: &Setting) -> Result<FaultReport> {
    let mut account = Account::of(Fault::Drain);
    let grace = if setting.is_short { "1s" } else { "5s" };
    let mut server = setting.server(&["--drain-grace", grace, "--operator", "127.0.0.1"], &[])?;
    let address = server.address;
    let seen = Rc::new(RefCell::new(Seen::default()));
    let limit = if setting.is_short { PATIENCE } else { DRAIN };
    let (drained, listed, took) = block_on(async {
        let mut readers = JoinSet::new();
        let mut begun = Vec::new();
        for number in 0..DRAINED {
            let socket = dial(address, Source::One, number, None, &seen).await?;
            let is_stalled = number == DRAINED - 1;
            let window = if is_stalled { 0 } else { WINDOW_MAX };
            let mut connection = Connection::begin(socket, window, Rc::clone(&seen));
            // Searches that are read have no candidates. Those that are not read have more than a
            // reader could read.
            let search = endless_search(if is_stalled { 28 } else { 0 });
            let streams: BTreeSet<u32> = (0..STREAMS)
                .map(|_| connection.open(&call(FIND_RANGE), Some(&search), true))
                .collect();
            let mut answered = BTreeSet::new();
            while answered.len() < STREAMS {
                if let Event::Headers {
                    stream, end: false, ..
                } = timeout(PATIENCE, connection.next()).await??
                {
                    answered.insert(stream);
                }
            }
            begun.push((connection, streams));
        }
        // A stalled stream cannot send the cursor of its search. The watcher receives the cursor
        // instead.
        let mut watcher = FinderClient::new(connect(address).await?);
        let request = WatchSearchesRequest {
            interval: Some(WireDuration {
                seconds: 0,
                nanos: 100_000_000,
            }),
            ..WatchSearchesRequest::default()
        };
        let mut changes = watcher.watch_searches(request).await?.into_inner();
        // Wait until the searches that are not read are parked. Their queues are then full, and the
        // status would come after the queued candidates.
        let mut states = BTreeMap::new();
        let parked = i32::from(SearchState::Parked);
        while states.len() < DRAINED * STREAMS
            || states.values().filter(|state| **state == parked).count() < STREAMS
        {
            let change = timeout(PATIENCE, changes.message()).await??;
            let searches = change.into_iter().flat_map(|change| change.searches);
            states.extend(searches.map(|one| (one.search_id, one.state)));
        }
        let signalled = Instant::now();
        server.terminate()?;
        for (connection, streams) in begun {
            readers.spawn_local(timeout(limit, last_words(connection, streams)));
        }
        let mut listed = BTreeSet::new();
        while let Ok(Ok(Some(change))) = timeout(limit, changes.message()).await {
            let ended = change
                .searches
                .into_iter()
                .filter(|one| !one.cursor.is_empty());
            listed.extend(ended.map(|one| one.search_id));
        }
        let mut drained = Drained::default();
        while let Some(one) = readers.join_next().await {
            // A reader whose connection does not end in time counts as having received nothing.
            let one = one?.unwrap_or_default();
            drained.goaways += one.goaways;
            drained.cursors += one.cursors;
        }
        ensure!(
            server.ended_within(limit.saturating_sub(signalled.elapsed()))?,
            "the server does not end within {limit:?}"
        );
        Ok((drained, listed.len(), signalled.elapsed()))
    })??;
    let (all, read) = (DRAINED * STREAMS, (DRAINED - 1) * STREAMS);
    account.note("streams", format!("{all}, {} of them not read", all - read));
    account.note("took", format!("{} ms, with a grace of {grace}", ms(took)));
    account.note(
        "connections that got a GOAWAY",
        format!("{} of {DRAINED}", drained.goaways),
    );
    account.note(
        "readers that got a cursor",
        format!("{} of {read}", drained.cursors),
    );
    account.note("cursors sent to the watcher", format!("{listed} of {all}"));
    account.expect(
        took < limit,
        format!("expected a drain under {limit:?}, it took {took:?}"),
    );
    account.expect(
        drained.goaways == DRAINED,
        format!(
            "expected a GOAWAY on each of {DRAINED} connections, saw {}",
            drained.goaways
        ),
    );
    account.expect(
        drained.cursors == read,
        format!(
            "expected a cursor for each of {read} streams that are read, saw {}",
            drained.cursors
        ),
    );
    account.expect(
        listed == all,
        format!("expected the watcher to receive the cursors of all {all} searches, saw {listed}"),
    );
    account.0.failures.extend(server.failures());
    Ok(account.0)
}

/// Reads until the connection ends. Counts the GOAWAY, and the cursors with which `streams` end.
async fn last_words(mut connection: Connection, mut streams: BTreeSet<u32>) -> Drained {
    let mut drained = Drained::default();
    while let Ok(event) = connection.next().await {
        match event {
            Event::GoAway => drained.goaways = 1,
            Event::Headers {
                stream,
                fields,
                end: true,
            } => {
                let mut answer = crate::connection::Answer::default();
                answer.take(&fields);
                if streams.remove(&stream) && holds_cursor(&answer.details) {
                    drained.cursors += 1;
                }
            }
            _ => {}
        }
    }
    drained
}

/// Whether a status's details contain a cursor, which begins with the name of its format.
fn holds_cursor(details: &str) -> bool {
    ["hf1_", "hf2_"]
        .iter()
        .any(|format| details.contains(format))
}

//! The log: lines on stderr. No call waits until a line is written.
//!
//! The reader of stderr may be slow or gone. So lines are collected in memory, and a separate
//! thread writes them, at most a few hundred times per second. To wake that thread for each line
//! would, at 50,000 lines per second, reduce the number of calls by a fifth.

use std::{
    backtrace::Backtrace,
    io::{self, ErrorKind, IsTerminal, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Maximum length of the lines that wait to be written, in bytes: about 5,000 lines. Further lines
/// are dropped and counted.
const MOST_WAITING: usize = 1 << 20;

/// Time for which lines are collected before they are written.
const PACE: Duration = Duration::from_millis(3);

/// Maximum time to write the last lines when the log is dropped. If stderr is not read, they are
/// lost.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Crates that log no secrets. Of other crates, only warnings and errors are logged.
const OURS: [&str; 11] = [
    "hashfinder",
    "hashfinder_client",
    "hashfinder_fleet",
    "hashfinder_fleet_nats",
    "hashfinder_operations",
    "hashfinder_search",
    "hashfinder_server",
    "hashfinder_system",
    "hashfinder_tls",
    "hashfinder_transport",
    "tonic_cancel",
];

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain text, for people.
    #[default]
    Text,
    /// A JSON object on each line, for programs.
    Json,
}

/// Reads the filter of the log from the variable HASHFINDER_LOG. Default: `info`.
///
/// # Errors
///
/// If the value is not a filter.
pub fn filter() -> Result<Targets> {
    // An empty variable counts as unset, like all variables of this program.
    let text = std::env::var("HASHFINDER_LOG").ok();
    let text = text.filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| "info".to_owned());
    // A word that is not a level would be taken for the name of a target, and nothing would be
    // logged. Users do not mean that.
    let mut words = text.split(',').filter(|part| !part.contains('='));
    let has_levels = words.all(|word| word.parse::<LevelFilter>().is_ok());
    // Filters of spans and fields, which other programs have, would also be taken for names of
    // targets.
    let has_targets = !text.contains('[');
    let filter = text.parse().ok().filter(|_| has_levels && has_targets);
    filter.with_context(|| {
        format!(
            "invalid HASHFINDER_LOG={text}: expected off, error, warn, info, debug, trace or \
             TARGET=LEVEL, separated by commas"
        )
    })
}

/// Whether a line of this target and level may be logged at all, whatever the filter says. Below
/// warnings, libraries may log what is sent over a connection, including credentials.
fn may_be_logged(target: &str, level: Level) -> bool {
    let from = target.split_once("::").map_or(target, |(from, _)| from);
    OURS.contains(&from) || level <= Level::WARN
}

/// Returns the most verbose level that the filter allows for any target. `tracing` rejects lines
/// beyond it with its cheapest check.
fn most_verbose(filter: &Targets) -> LevelFilter {
    let levels = filter.iter().map(|(_, level)| level);
    let most = levels.chain(filter.default_level()).max();
    most.unwrap_or(LevelFilter::OFF)
}

/// Returns a duration in milliseconds, for a log field whose name ends in `_ms`. It is a number, so
/// that programs need not parse text, and has at most three decimals, so that people can read it.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Starts to write the lines that pass the filter to stderr, until the result is dropped.
///
/// # Errors
///
/// If the log's thread cannot be started.
///
/// # Panics
///
/// If this process already has a log.
pub fn to_stderr(filter: Targets, format: LogFormat) -> Result<Log> {
    let lines = Lines(Arc::default());
    let writer = lines.clone();
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || writer.write_to(io::stderr()))?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(most_verbose(&filter))
        .with_writer(lines.clone())
        .log_internal_errors(false);
    let cap = filter_fn(|line| may_be_logged(line.target(), *line.level()));
    match format {
        LogFormat::Text => {
            let subscriber = subscriber.with_ansi(io::stderr().is_terminal());
            subscriber.finish().with(filter).with(cap).init();
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().flatten_event(true);
            subscriber.finish().with(filter).with(cap).init();
        }
    }
    // A panic is logged like any other line, without waiting for the reader.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        // A message that was formatted at run time may quote a request, so it is not logged.
        let fixed = panic.payload().downcast_ref::<&'static str>();
        let location = panic.location().map(tracing::field::display);
        tracing::error!(panic = fixed, location, %backtrace, "panic");
    }));
    Ok(Log(lines))
}

/// The log. Dropping it waits up to a second for the last lines to be written.
pub struct Log(Lines);

impl Log {
    /// Returns the counter of lost lines.
    #[must_use]
    pub fn lost_lines(&self) -> LostLines {
        LostLines(self.0.clone())
    }
}

/// Counts lost lines. Clones share the count.
#[derive(Clone)]
pub struct LostLines(Lines);

impl LostLines {
    /// Returns how many lines were lost because stderr was not read.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.lock().lost
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        self.0.0.changed.notify_all();
        let waiting = self
            .0
            .0
            .written
            .wait_timeout_while(state, LAST_WORDS, |state| {
                state.is_writing || !state.waiting.is_empty()
            });
        drop(waiting);
    }
}

/// Lines that wait to be written. Clones share them.
#[derive(Clone)]
struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when a line is added to an empty buffer, and when the log is closed.
    changed: Condvar,
    /// Signalled when a batch of lines was written or lost.
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    lost: u64,
    is_writing: bool,
    is_closed: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines as they arrive, until the log is closed.
    fn write_to(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            let state = self.lock();
            let nothing = |state: &mut State| state.waiting.is_empty() && !state.is_closed;
            let state = self.0.changed.wait_while(state, nothing);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            let waited = (self.0.changed).wait_timeout_while(state, PACE, |state| !state.is_closed);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.waiting.is_empty() {
                return;
            }
            lines.clear();
            std::mem::swap(&mut lines, &mut state.waiting);
            state.is_writing = true;
            drop(state);
            let written = self.write(&lines, &mut sink);
            let lost = lines[written..].iter().filter(|byte| **byte == b'\n');
            let mut state = self.lock();
            state.lost += lost.count() as u64;
            state.is_writing = false;
            drop(state);
            self.0.written.notify_all();
        }
    }

    /// Writes as much as possible. Returns the number of bytes written. A failure cannot be
    /// reported.
    fn write(&self, lines: &[u8], sink: &mut impl Write) -> usize {
        let mut written = 0;
        while written < lines.len() {
            match sink.write(&lines[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A full pipe that another process has made non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let open = |state: &mut State| !state.is_closed;
                    let waited = self.0.changed.wait_timeout_while(self.lock(), PACE, open);
                    if waited.is_ok_and(|(state, _)| state.is_closed) {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        written
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

impl Write for Lines {
    /// Adds a line. The subscriber writes each line with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > MOST_WAITING {
            state.lost += 1;
            return Ok(line.len());
        }
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if is_first {
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A sink whose writes wait until the test receives them.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn library_lines_about_connections_are_left_out() {
        for (target, level, is_logged) in [
            ("hashfinder", Level::TRACE, true),
            ("hashfinder_client", Level::TRACE, true),
            ("hashfinder_search::engine", Level::DEBUG, true),
            ("hashfinder_server::searches::call", Level::TRACE, true),
            ("hashfinder_system::files", Level::TRACE, true),
            ("hashfinder_tls", Level::TRACE, true),
            ("hashfinder_transport::server", Level::TRACE, true),
            ("tonic_cancel::client", Level::TRACE, true),
            ("h2::codec::framed_read", Level::TRACE, false),
            ("hyper::proto", Level::DEBUG, false),
            ("tower::buffer", Level::INFO, false),
            ("hashfinder_else", Level::TRACE, false),
            ("h2::hpack", Level::WARN, true),
        ] {
            assert_eq!(may_be_logged(target, level), is_logged, "{target} {level}");
        }
    }

    #[test]
    fn lines_are_whole_and_in_order_and_lost_ones_are_counted() {
        let lines = Lines(Arc::default());
        // The test reads nothing before it has logged all lines, so the log keeps only a part of
        // them.
        let (sender, read) = mpsc::sync_channel(0);
        let writer = lines.clone();
        let thread = thread::spawn(move || writer.write_to(Slow(sender)));
        let line = |number: usize| format!("{number:0>99}\n");
        let mut to = lines.clone();
        let count = 2 * MOST_WAITING / 100 + 10_000;
        for number in 0..count {
            to.write_all(line(number).as_bytes()).unwrap();
        }
        let lost = lines.lock().lost as usize;
        assert!(lost > 0);
        drop(thread::spawn(move || drop(Log(lines))));
        let text: Vec<u8> = read.iter().flatten().collect();
        thread.join().unwrap();
        let kept = text.len() / 100;
        assert_eq!(kept + lost, count);
        let text = String::from_utf8(text).unwrap();
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers[0] == 0);
    }
}

//! Reads the system's clocks: the date, which can be beyond the last one that the program can represent, and how long
//! the process has run, without the time for which it was stopped.

use std::{
    env, fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use jiff::{Timestamp, tz::TimeZone};
use signal_hook::{SigId, consts::SIGCONT, flag, low_level::unregister};
use tokio::time::{MissedTickBehavior, interval};

use crate::threads;

/// How often a [`Stopwatch`] reads the clock. With a stop of the process, up to as much of the time before it is lost.
const READ_EVERY: Duration = Duration::from_millis(100);

/// The process was stopped, even if no signal says so, if there is more time than this between two readings. Other
/// processes that keep every core busy delay a reading by a fraction of it.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// Returns the time on the system's clock.
///
/// # Errors
///
/// If that is the end of the year 9999 or later.
pub(crate) fn now() -> Result<Timestamp> {
    timestamp(SystemTime::now())
}

/// Returns a time of the system's clock as one that can be computed with and written.
///
/// # Errors
///
/// If it is the end of the year 9999 or later.
pub(crate) fn timestamp(time: SystemTime) -> Result<Timestamp> {
    Timestamp::try_from(time)
        .ok()
        .context("the system's clock shows a time after 9999-12-30T22:00Z; set the clock")
}

/// Begins to read the user's time zone from its file, which can block, on a thread of its own. The result is
/// empty until it has been read, and stays so if there is no thread for it or its file is not a regular one.
pub(crate) fn time_zone() -> Arc<OnceLock<TimeZone>> {
    let zone = Arc::new(OnceLock::new());
    let read = Arc::clone(&zone);
    let work = move || {
        // `TZ` can be a path, after a colon or not.
        let named = env::var_os("TZ").unwrap_or_default();
        let named = named.as_bytes();
        let path = Path::new(std::ffi::OsStr::from_bytes(
            named.strip_prefix(b":").unwrap_or(named),
        ));
        let is_wrong = path.is_absolute() && fs::metadata(path).is_ok_and(|file| !file.is_file());
        if !is_wrong {
            let _ = read.set(TimeZone::system());
        }
    };
    // Without it, times are shown as durations.
    let _ = threads::start("time-zone", work);
    zone
}

/// Measures for how long the process runs, without the time for which it is stopped, by ctrl-Z or SIGSTOP for example.
/// The system's own clock includes that time.
///
/// SIGCONT says that the process was stopped, but not since when. So the whole time between two readings does not
/// count, and the clock must be read often. A container that is paused, for example, continues without a signal, which this infers from
/// a long time between two readings.
pub(crate) struct RunningTime {
    last: Instant,
    /// Whether the last reading came long after the one before.
    was_late: bool,
    elapsed: Duration,
    /// Set by SIGCONT.
    is_continued: Arc<AtomicBool>,
    handler: Option<SigId>,
}

impl RunningTime {
    /// Starts the time.
    pub(crate) fn start() -> RunningTime {
        RunningTime::starting_at(Instant::now())
    }

    fn starting_at(last: Instant) -> RunningTime {
        let is_continued = Arc::new(AtomicBool::new(false));
        RunningTime {
            last,
            was_late: false,
            elapsed: Duration::ZERO,
            // Without it, short stops count.
            handler: flag::register(SIGCONT, Arc::clone(&is_continued)).ok(),
            is_continued,
        }
    }

    /// Reads the clock. Returns for how long the process has run.
    pub(crate) fn read(&mut self) -> Duration {
        self.read_at(Instant::now())
    }

    fn read_at(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        let is_continued = self.is_continued.swap(false, Ordering::Relaxed);
        let is_late = passed > STOPPED_AFTER;
        // Late twice in a row, it is slow work that delays the readings.
        let was_stopped = is_continued || is_late && !self.was_late;
        if !was_stopped {
            self.elapsed += passed;
        }
        self.was_late = is_late;
        self.elapsed
    }
}

impl Drop for RunningTime {
    fn drop(&mut self) {
        if let Some(handler) = self.handler {
            unregister(handler);
        }
    }
}

/// A [`RunningTime`] that is read by a task of its own.
pub(crate) struct Stopwatch(Mutex<RunningTime>);

impl Stopwatch {
    /// Starts the time, and the task, which ends when the result is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub(crate) fn start() -> Arc<Stopwatch> {
        let stopwatch = Arc::new(Stopwatch(Mutex::new(RunningTime::start())));
        let weak = Arc::downgrade(&stopwatch);
        tokio::spawn(async move {
            let mut ticks = interval(READ_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match weak.upgrade() {
                    Some(stopwatch) => stopwatch.elapsed(),
                    None => return,
                };
            }
        });
        stopwatch
    }

    /// Returns for how long the process has run since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        let mut time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        time.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// The last reading of a clock that is read at these times.
    fn ran(readings: impl IntoIterator<Item = u64>) -> Duration {
        let start = Instant::now();
        let mut time = RunningTime::starting_at(start);
        let readings = readings.into_iter();
        let elapsed = readings.map(|reading| time.read_at(start + ms(reading)));
        elapsed.last().unwrap()
    }

    /// A search that was stopped for a night by ctrl-Z had tried a few thousand secrets a second.
    #[test]
    fn time_while_the_process_was_stopped_does_not_count() {
        assert_eq!(ran([100, 200, 300]), ms(300));
        // Late, as on a busy machine.
        assert_eq!(ran([100, 900, 1_000, 2_000]), ms(2_000));
        // Stopped twice.
        assert_eq!(ran([100, 200, 60_200, 60_300, 99_000, 99_100]), ms(400));
        // A short stop is known by its signal.
        let start = Instant::now();
        let mut time = RunningTime::starting_at(start);
        assert_eq!(time.read_at(start + ms(100)), ms(100));
        time.is_continued.store(true, Ordering::Relaxed);
        assert_eq!(time.read_at(start + ms(700)), ms(100));
        assert_eq!(time.read_at(start + ms(800)), ms(200));
    }

    /// A measurement must end also where each of its steps takes longer than a process may be silent.
    #[test]
    fn time_passes_however_slow_the_readings_are() {
        assert!(ran((1..10).map(|reading| 3_000 * reading)) >= ms(24_000));
    }

    /// With the clock at the end of the year 9999, `keys create` panicked.
    #[test]
    fn a_time_that_the_calendar_does_not_have_is_an_error() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0).unwrap(), Timestamp::UNIX_EPOCH);
        let last = Timestamp::MAX.as_second().cast_unsigned();
        assert!(at(last).is_ok());
        // 9999-12-31T23:59:59Z is among them.
        for late in [last + 1, 253_402_300_799, 253_402_300_800, 1 << 40] {
            let error = at(late).unwrap_err().to_string();
            assert!(error.contains("set the clock"), "{error}");
        }
    }
}

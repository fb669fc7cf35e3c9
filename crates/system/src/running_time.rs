//! Measures how long the process has run, without the time for which it was stopped.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::{SigId, consts::SIGCONT, flag, low_level::unregister};
use tokio::time::{MissedTickBehavior, interval};

/// Interval at which a [`Stopwatch`] reads the clock. If the process is stopped, up to this much of
/// the time before the stop is not counted.
const READ_EVERY: Duration = Duration::from_millis(100);

/// The process was stopped, even if no signal says so, if there is more time than this between two
/// readings. Other processes that keep every core busy delay a reading by a fraction of it.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// Measures for how long the process runs, without the time for which it is stopped, by ctrl-Z or
/// SIGSTOP for example. The system's own clock includes that time.
///
/// SIGCONT says that the process was stopped, but not since when. So the whole time between two
/// readings does not count, and the clock must be read often. A container that is paused, for
/// example, continues without a signal, which this infers from a long time between two readings.
pub struct RunningTime {
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
    #[must_use]
    pub fn start() -> RunningTime {
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
    pub fn read(&mut self) -> Duration {
        self.read_at(Instant::now())
    }

    fn read_at(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        let is_continued = self.is_continued.swap(false, Ordering::Relaxed);
        let is_late = passed > STOPPED_AFTER;
        // If two readings in a row are late, slow work delays them.
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

/// A [`RunningTime`] that a separate task reads.
pub struct Stopwatch(Mutex<RunningTime>);

impl Stopwatch {
    /// Starts the time, and the task, which ends when the result is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    pub fn start() -> Arc<Stopwatch> {
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
    pub fn elapsed(&self) -> Duration {
        let mut time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        time.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Returns the last reading of a clock that is read at these times.
    fn ran(readings: impl IntoIterator<Item = u64>) -> Duration {
        let start = Instant::now();
        let mut time = RunningTime::starting_at(start);
        let readings = readings.into_iter();
        let elapsed = readings.map(|reading| time.read_at(start + ms(reading)));
        elapsed.last().unwrap()
    }

    /// Regression: a search that was stopped for a night by ctrl-Z reported a few thousand secrets
    /// a second.
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

    /// A measurement must end even if each of its steps takes longer than [`STOPPED_AFTER`].
    #[test]
    fn time_passes_however_slow_the_readings_are() {
        assert!(ran((1..10).map(|reading| 3_000 * reading)) >= ms(24_000));
    }
}

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
/// the time before the stop is lost.
const READ_EVERY: Duration = Duration::from_millis(100);

/// Time between two readings above which the process is assumed to have been stopped, even without
/// a signal. Other processes that keep every core busy delay a reading by only a fraction of this.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// Measures how long the process runs, without the time for which it is stopped, for example by
/// ctrl-Z or SIGSTOP. The system's own clock includes that time.
///
/// SIGCONT shows that the process was stopped, but not since when. So the whole time between the
/// readings before and after SIGCONT is not counted, and the clock must be read often. A container
/// that was paused, for example, continues without a signal; a long time between two readings
/// reveals that.
pub struct RunningTime {
    last: Instant,
    /// Whether the last reading came more than [`STOPPED_AFTER`] after the one before.
    was_late: bool,
    elapsed: Duration,
    /// Set by SIGCONT.
    is_continued: Arc<AtomicBool>,
    handler: Option<SigId>,
}

impl RunningTime {
    /// Starts to measure.
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
            // Without a handler, the time of short stops is counted.
            handler: flag::register(SIGCONT, Arc::clone(&is_continued)).ok(),
            is_continued,
        }
    }

    /// Reads the clock. Returns how long the process has run since the start.
    pub fn read(&mut self) -> Duration {
        self.read_at(Instant::now())
    }

    fn read_at(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        let is_continued = self.is_continued.swap(false, Ordering::Relaxed);
        let is_late = passed > STOPPED_AFTER;
        // If two readings in a row are late, slow work delays them, and the time counts.
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

/// A [`RunningTime`] that a background task reads regularly.
pub struct Stopwatch(Mutex<RunningTime>);

impl Stopwatch {
    /// Starts to measure, and starts the task. The task ends when the result is dropped.
    ///
    /// # Panics
    ///
    /// If called outside of a tokio runtime.
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

    /// Returns how long the process has run since the start.
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

    /// Returns the last reading of a clock that is read at these times, in milliseconds.
    fn ran(readings: impl IntoIterator<Item = u64>) -> Duration {
        let start = Instant::now();
        let mut time = RunningTime::starting_at(start);
        let readings = readings.into_iter();
        let elapsed = readings.map(|reading| time.read_at(start + ms(reading)));
        elapsed.last().unwrap()
    }

    /// Regression test: a search that was stopped for a night by ctrl-Z reported a few thousand
    /// secrets a second.
    #[test]
    fn time_while_the_process_was_stopped_does_not_count() {
        assert_eq!(ran([100, 200, 300]), ms(300));
        // Late, as on a busy machine.
        assert_eq!(ran([100, 900, 1_000, 2_000]), ms(2_000));
        // Stopped twice.
        assert_eq!(ran([100, 200, 60_200, 60_300, 99_000, 99_100]), ms(400));
        // A short stop is detected by its signal.
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

//! Decides whether the clock can be trusted enough to delete operations whose time is over.

use std::time::Duration;

use crate::{record::Millis, store::ClockReading};

/// Time after a start within which nothing is deleted, so that an operator can still set a wrong
/// clock.
const AFTER_START: Duration = Duration::from_secs(60 * 60);

/// A difference between two readings of the clock, beyond the time between them, that makes it
/// doubtful. No result is worth less than a month.
const JUMP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Time in milliseconds after a jump of the clock, on the clock itself, within which nothing is
/// deleted.
const AFTER_JUMP: Millis = 24 * 60 * 60 * 1000;

/// Compares the system's clock with a clock that runs steadily.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// Time of the last reading, on the steady clock.
    running: Duration,
    last: ClockReading,
    /// Nothing is deleted before this time.
    not_before: Duration,
}

impl Expiry {
    /// Starts at this time. `last` is the last reading before, which was saved: the jump that made
    /// the clock doubtful may have been seen by an earlier process.
    pub(crate) fn new(running: Duration, wall: Millis, last: Option<ClockReading>) -> Expiry {
        let mut expiry = Expiry {
            running,
            last: last.unwrap_or(ClockReading {
                wall,
                doubtful_until: 0,
            }),
            not_before: running + AFTER_START,
        };
        expiry.read(running, wall);
        expiry
    }

    /// Reads the clock. Returns whether operations may be deleted now.
    pub(crate) fn read(&mut self, running: Duration, wall: Millis) -> bool {
        let passed = running.saturating_sub(self.running).as_millis();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        let difference = i128::from(wall) - i128::from(self.last.wall) - passed;
        let doubtful_until = if difference.unsigned_abs() > JUMP.as_millis() {
            wall.saturating_add(AFTER_JUMP)
        } else {
            self.last.doubtful_until
        };
        self.running = running;
        self.last = ClockReading {
            wall,
            doubtful_until,
        };
        running >= self.not_before && wall >= doubtful_until
    }

    /// Returns the last reading.
    pub(crate) fn last(&self) -> ClockReading {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn hours(hours: i64) -> Millis {
        hours * 3_600_000
    }

    fn days(days: i64) -> Millis {
        hours(24 * days)
    }

    /// A reading by a clock that is not doubtful.
    fn at(wall: Millis) -> Option<ClockReading> {
        Some(ClockReading {
            wall,
            doubtful_until: 0,
        })
    }

    #[test]
    fn nothing_is_deleted_soon_after_a_start_or_a_jump_of_the_clock() {
        let mut expiry = Expiry::new(Duration::ZERO, days(1_000), at(days(999)));
        assert!(!expiry.read(HOUR / 2, days(1_000)));
        assert!(expiry.read(HOUR, days(1_000)));
        // A jump to the future, and one back.
        for jump in [days(2_000), days(1_000)] {
            let running = expiry.running;
            assert!(!expiry.read(running + HOUR, jump));
            assert!(!expiry.read(running + 24 * HOUR, jump + hours(23)));
            assert!(expiry.read(running + 25 * HOUR, jump + hours(24)));
        }
        // After a start, the clock is far from where it was.
        for start in [days(1_000), days(0)] {
            let mut expiry = Expiry::new(Duration::ZERO, start, at(days(500)));
            assert!(!expiry.read(23 * HOUR, start + hours(23)));
            assert!(expiry.read(24 * HOUR, start + hours(24)));
        }
    }

    /// Otherwise, nothing would ever be deleted by a server that is restarted every day.
    #[test]
    fn a_day_after_a_jump_can_span_several_processes() {
        let mut last = at(days(500));
        for start in [0, 8, 16] {
            let start = days(1_000) + hours(start);
            let mut expiry = Expiry::new(Duration::ZERO, start, last);
            assert!(!expiry.read(7 * HOUR, start + hours(7)));
            last = Some(expiry.last());
        }
        let mut expiry = Expiry::new(Duration::ZERO, days(1_001), last);
        assert!(expiry.read(HOUR, days(1_001)));
    }
}

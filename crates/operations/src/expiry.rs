//! Decides whether the clock can be trusted enough to delete operations whose time is over.

use std::time::Duration;

use crate::record::Millis;

/// Time after a start within which nothing is deleted, so that an operator can still set a wrong
/// clock.
const AFTER_START: Duration = Duration::from_secs(60 * 60);

/// A difference between two readings of the clock, beyond the time between them, that makes it
/// doubtful. No result is worth less than a month.
const JUMP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Time after a jump of the clock within which nothing is deleted.
const AFTER_JUMP: Duration = Duration::from_secs(24 * 60 * 60);

/// Compares the system's clock with a clock that runs steadily.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// The last reading: the time since some moment, and the system's clock.
    last: (Duration, Millis),
    /// Nothing is deleted before this time.
    not_before: Duration,
    /// Until when the clock is doubtful, because it has jumped.
    doubtful_until: Duration,
}

impl Expiry {
    /// Starts at this time. `last_commit` is when the store was last written while the clock could
    /// be [trusted](Self::trusts).
    pub(crate) fn new(running: Duration, wall: Millis, last_commit: Option<Millis>) -> Expiry {
        let mut expiry = Expiry {
            last: (running, last_commit.unwrap_or(wall)),
            not_before: running + AFTER_START,
            doubtful_until: Duration::ZERO,
        };
        expiry.read(running, wall);
        expiry
    }

    /// Reads the clock. Returns whether operations may be deleted now.
    pub(crate) fn read(&mut self, running: Duration, wall: Millis) -> bool {
        let (last_running, last_wall) = self.last;
        let passed = running.saturating_sub(last_running).as_millis();
        let expected = i128::from(last_wall) + i128::try_from(passed).unwrap_or(i128::MAX);
        if (i128::from(wall) - expected).unsigned_abs() > JUMP.as_millis() {
            self.doubtful_until = running + AFTER_JUMP;
            self.not_before = self.not_before.max(self.doubtful_until);
        }
        self.last = (running, wall);
        running >= self.not_before
    }

    /// Returns whether the clock has not jumped in the last day, at the time of the last reading.
    /// Only such a time may be saved: after a restart, the clock is compared with it.
    pub(crate) fn trusts(&self) -> bool {
        self.last.0 >= self.doubtful_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn days(days: i64) -> Millis {
        days * 24 * 3_600_000
    }

    #[test]
    fn nothing_is_deleted_soon_after_a_start_or_a_jump_of_the_clock() {
        let mut expiry = Expiry::new(Duration::ZERO, days(1_000), Some(days(999)));
        assert!(!expiry.read(HOUR / 2, days(1_000)));
        assert!(expiry.read(HOUR, days(1_000)));
        // A jump to the future, and one back.
        for jump in [days(2_000), days(1_000)] {
            let running = expiry.last.0;
            assert!(!expiry.read(running + HOUR, jump));
            assert!(!expiry.read(running + 24 * HOUR, jump));
            assert!(expiry.read(running + 25 * HOUR, jump));
        }
        assert!(expiry.trusts());
        expiry.read(expiry.last.0 + HOUR, days(3_000));
        assert!(!expiry.trusts());
        // After a start, the clock is far from where it was.
        for start in [days(1_000), days(0)] {
            let mut expiry = Expiry::new(Duration::ZERO, start, Some(days(500)));
            assert!(!expiry.read(23 * HOUR, start) && !expiry.trusts());
            assert!(expiry.read(24 * HOUR, start));
        }
    }
}

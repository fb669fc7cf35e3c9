//! How often something may happen: a token bucket.

use std::time::{Duration, Instant};

/// What may happen: so many times a second on average, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// How many each second.
    pub per_second: f64,
    /// How many at once, when nothing has happened for long.
    pub burst: f64,
}

/// What is left of a [`Rate`]. It may be overdrawn: what has happened cannot be undone, and is paid back.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Bucket {
        Bucket {
            tokens: rate.burst,
            at: now,
        }
    }

    /// Takes what has happened, however much is left.
    pub fn take(&mut self, rate: Rate, cost: f64, now: Instant) {
        self.refill(rate, now);
        self.tokens = (self.tokens - cost).min(rate.burst);
    }

    /// When nothing is overdrawn any more, if something is.
    pub fn wait(&mut self, rate: Rate, now: Instant) -> Option<Duration> {
        self.refill(rate, now);
        let wait = || Duration::try_from_secs_f64(-self.tokens / rate.per_second);
        (self.tokens < 0.0).then(|| wait().unwrap_or(Duration::MAX))
    }

    /// Takes one where there is one.
    ///
    /// # Errors
    ///
    /// After how long there will be one, where there is none.
    pub fn try_take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.tokens) / rate.per_second);
        Err(wait.unwrap_or(Duration::MAX))
    }

    /// Whether it is as a new one would be, so that it may be forgotten.
    pub fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        // Threads read the clock before they come here, so it may seem to go back.
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10.0,
        burst: 3.0,
    };

    #[test]
    fn so_many_at_once_and_then_so_many_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(RATE, start);
        for _ in 0..3 {
            assert!(bucket.try_take(RATE, start).is_ok());
        }
        let wait = bucket.try_take(RATE, start).unwrap_err();
        assert!((wait.as_secs_f64() - 0.1).abs() < 1e-9, "{wait:?}");
        assert!(bucket.try_take(RATE, at(99)).is_err());
        assert!(bucket.try_take(RATE, at(101)).is_ok());
        // A clock that goes back gives nothing twice.
        assert!(bucket.try_take(RATE, start).is_err());
        assert!(!bucket.is_full(RATE, at(300)));
        assert!(bucket.is_full(RATE, at(1000)));
    }

    #[test]
    fn what_is_overdrawn_is_paid_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        bucket.take(RATE, 3.0, start);
        assert_eq!(bucket.wait(RATE, start), None);
        bucket.take(RATE, 20.0, start);
        let wait = bucket.wait(RATE, start).unwrap();
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-9, "{wait:?}");
        assert_eq!(bucket.wait(RATE, start + wait), None);
        // What is given back does not fill it beyond its brim.
        bucket.take(RATE, -100.0, start + wait);
        for _ in 0..3 {
            assert!(bucket.try_take(RATE, start + wait).is_ok());
        }
        assert!(bucket.try_take(RATE, start + wait).is_err());
    }
}

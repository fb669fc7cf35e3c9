//! Rate limits: a token bucket.

use std::time::{Duration, Instant};

/// A rate limit: an average rate, and a burst after a rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Average number of events per second.
    pub per_second: f64,
    /// Maximum number of events at once, after a long rest.
    pub burst: f64,
}

/// Tokens left of a [`Rate`]. Their number may be negative: events that have already happened are
/// charged even if there were too few tokens, and the debt is paid off over time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Returns a full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Bucket {
        Bucket {
            tokens: rate.burst,
            at: now,
        }
    }

    /// Takes `cost` tokens, even if fewer are left.
    pub fn take(&mut self, rate: Rate, cost: f64, now: Instant) {
        self.refill(rate, now);
        self.tokens = (self.tokens - cost).min(rate.burst);
    }

    /// Returns the time until the debt is paid off, if there is one.
    pub fn wait(&mut self, rate: Rate, now: Instant) -> Option<Duration> {
        self.refill(rate, now);
        let wait = || Duration::try_from_secs_f64(-self.tokens / rate.per_second);
        (self.tokens < 0.0).then(|| wait().unwrap_or(Duration::MAX))
    }

    /// Takes one token if one is left.
    ///
    /// # Errors
    ///
    /// Returns the time until a token is available.
    pub fn try_take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.tokens) / rate.per_second);
        Err(wait.unwrap_or(Duration::MAX))
    }

    /// Whether the bucket is full. Then it equals a new one, so it can be dropped.
    pub fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        // Threads read the clock before they get here, so time may appear to go backwards.
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
    fn a_burst_passes_and_then_the_rate_applies() {
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
        // If time goes backwards, no token is added twice.
        assert!(bucket.try_take(RATE, start).is_err());
        assert!(!bucket.is_full(RATE, at(300)));
        assert!(bucket.is_full(RATE, at(1000)));
    }

    #[test]
    fn debts_are_paid_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        bucket.take(RATE, 3.0, start);
        assert_eq!(bucket.wait(RATE, start), None);
        bucket.take(RATE, 20.0, start);
        let wait = bucket.wait(RATE, start).unwrap();
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-9, "{wait:?}");
        assert_eq!(bucket.wait(RATE, start + wait), None);
        // A negative cost does not fill the bucket beyond its burst.
        bucket.take(RATE, -100.0, start + wait);
        for _ in 0..3 {
            assert!(bucket.try_take(RATE, start + wait).is_ok());
        }
        assert!(bucket.try_take(RATE, start + wait).is_err());
    }
}

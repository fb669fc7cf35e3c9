//! Rates of searches.

use std::{collections::VecDeque, time::Duration};

use hashfinder_search::Index;

use crate::terminal::figures::grouped;

/// Shortest time for which a rate is shown, in seconds. Over a few milliseconds, a rate is noise.
const SHORTEST_RATE: f64 = 0.1;

/// Returns a summary of a search: its hashes, time and rate, and `means`. That is the kernel or the
/// algorithm that computed the hashes, or the server.
pub(super) fn summarize(tried: u64, took: Duration, means: &str) -> String {
    let rate = rate(tried, took).map(|rate| format!(", {:.1} million per second", rate / 1e6));
    let rate = rate.unwrap_or_default();
    format!("{} in {took:.2?}{rate} ({means})", hashes(tried))
}

/// Formats a number of hashes.
pub(super) fn hashes(number: u64) -> String {
    match number {
        1 => "1 hash".to_owned(),
        many => format!("{} hashes", grouped(many)),
    }
}

/// Returns the hashes per second; `None` if the time is too short for a rate.
pub(super) fn rate(hashes: u64, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64();
    (seconds >= SHORTEST_RATE).then(|| hashes as f64 / seconds)
}

/// Measures the current rate of a search in hashes per second: the average over the last `over`.
pub(super) struct CurrentRate {
    over: Duration,
    /// Times and frontiers: those within the last `over`, and one before them, if any.
    readings: VecDeque<(Duration, Index)>,
}

impl CurrentRate {
    pub(super) fn new(over: Duration, start: Index) -> CurrentRate {
        let readings = VecDeque::from([(Duration::ZERO, start)]);
        CurrentRate { over, readings }
    }

    /// Adds a reading, and returns the rate; `None` if the time is too short for one.
    pub(super) fn update(&mut self, now: Duration, frontier: Index) -> Option<f64> {
        self.readings.push_back((now, frontier));
        while let Some((second, _)) = self.readings.get(1)
            && *second + self.over <= now
        {
            self.readings.pop_front();
        }
        let (then, before) = *self.readings.front()?;
        rate(frontier.saturating_sub(before), now.saturating_sub(then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_rate_is_shown_from_a_tenth_of_a_second_on() {
        let summary = |ms, tried| summarize(tried, Duration::from_millis(ms), "avx512");
        assert_eq!(summary(3, 1_000), "1,000 hashes in 3.00ms (avx512)");
        assert_eq!(summary(99, 1), "1 hash in 99.00ms (avx512)");
        assert_eq!(
            summary(100, 30_000_000),
            "30,000,000 hashes in 100.00ms, 300.0 million per second (avx512)"
        );
        assert_eq!(summary(0, 0), "0 hashes in 0.00ns (avx512)");
    }

    #[test]
    fn the_rate_covers_the_last_seconds() {
        let mut rate = CurrentRate::new(seconds(2), 0);
        assert_eq!(rate.update(seconds(0), 0), None);
        assert_eq!(rate.update(seconds(1), 100), Some(100.0));
        assert_eq!(rate.update(seconds(2), 200), Some(100.0));
        assert_eq!(rate.update(seconds(3), 1200), Some(550.0));
        assert_eq!(rate.update(seconds(4), 2200), Some(1000.0));
        // The last reading was ten seconds before.
        assert_eq!(rate.update(seconds(14), 2210), Some(1.0));
    }
}

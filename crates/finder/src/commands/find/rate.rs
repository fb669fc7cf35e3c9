//! Rates of searches.

use std::time::Duration;

use crate::terminal::figures::grouped;

/// Shortest time for which a rate is shown, in seconds: that of a few milliseconds is noise.
const SHORTEST_RATE: f64 = 0.1;

/// Returns a summary of a search: its hashes, time and rate, and `means`, which is what it was
/// hashed with or where.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

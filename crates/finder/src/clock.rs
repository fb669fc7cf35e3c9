//! Reads the system's clock, which can show a time that no calendar here has.

use std::time::SystemTime;

use anyhow::{Context, Result};
use jiff::Timestamp;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

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

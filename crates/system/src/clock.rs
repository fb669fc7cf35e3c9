//! Reads the date and the user's time zone. The system's clock can show a date beyond the last one
//! that the program can represent.

use std::{
    env, fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use anyhow::{Context, Result};
use jiff::{Timestamp, tz::TimeZone};

use crate::threads;

/// Returns the time on the system's clock.
///
/// # Errors
///
/// If the clock shows a time after 9999-12-30T22:00Z.
pub fn now() -> Result<Timestamp> {
    timestamp(SystemTime::now())
}

/// Converts a time of the system's clock to a timestamp, for calculations and output.
///
/// # Errors
///
/// If the time is after 9999-12-30T22:00Z.
pub fn timestamp(time: SystemTime) -> Result<Timestamp> {
    Timestamp::try_from(time)
        .ok()
        .context("the system clock shows a time after 9999-12-30T22:00Z; set the clock")
}

/// Starts to read the user's time zone, on a separate thread because its file can block. The result
/// is empty until the time zone has been read. It stays empty if the thread cannot be started or
/// the file is not a regular one.
#[must_use]
pub fn time_zone() -> Arc<OnceLock<TimeZone>> {
    let zone = Arc::new(OnceLock::new());
    let read = Arc::clone(&zone);
    let work = move || {
        // `TZ` can be a path, with or without a colon before it.
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
    // Without a time zone, times are shown as durations.
    let _ = threads::start("time-zone", work);
    zone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// Regression test: with the clock at the end of the year 9999, `keys create` panicked.
    #[test]
    fn a_time_beyond_the_calendar_is_an_error() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0).unwrap(), Timestamp::UNIX_EPOCH);
        let last = Timestamp::MAX.as_second().cast_unsigned();
        assert!(at(last).is_ok());
        // The second of these is 9999-12-31T23:59:59Z.
        for late in [last + 1, 253_402_300_799, 253_402_300_800, 1 << 40] {
            let error = at(late).unwrap_err().to_string();
            assert!(error.contains("set the clock"), "{error}");
        }
    }
}

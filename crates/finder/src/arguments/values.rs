//! Parsers of the values of flags.

use std::{fmt, num::NonZeroUsize, ops::RangeInclusive, str::FromStr, time::Duration};

use hashfinder_search::{Distance, Kernel};
use http::uri::Authority;

use crate::server_address::ServerAddress;

/// Maximum number of threads that search: more than any machine has cores, and few enough for any machine.
const MAXIMUM_THREADS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Longest duration; longer ones are shortened to it. Libraries can add it to the clock's time without a panic.
pub(crate) const LONGEST_DURATION: Duration = Duration::from_secs(1000 * 31_557_600);

/// Parses a number of threads.
pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    number(NonZeroUsize::MIN..=MAXIMUM_THREADS)(text)
}

/// Returns a parser of numbers in a range.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: Clone + fmt::Display + FromStr + PartialOrd,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("give a whole number from {least} to {most}")
        })
    }
}

/// Parses a number above 0.
pub(crate) fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|_| "give a whole number from 1 on".to_owned())
}

/// Parses the name of a kernel that this machine runs.
pub(crate) fn kernel(text: &str) -> Result<Kernel, String> {
    Kernel::named(text).ok_or_else(|| {
        let names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
        format!("this machine runs the kernels {}", names.join(", "))
    })
}

/// Parses a distance.
pub(crate) fn distance(text: &str) -> Result<Distance, String> {
    let number = i64::from_str(text).map_err(|_| "give a number of characters".to_owned())?;
    Distance::try_from(number).map_err(|error| error.to_string())
}

/// Parses a duration, for instance `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text);
    duration
        .map(|duration| duration.min(LONGEST_DURATION))
        .map_err(|_| "give a time, for instance 90s, 5m or 1h30m".to_owned())
}

/// Parses a duration above zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        return Err(
            "give a time that is longer than none, for instance 90s, 5m or 1h30m".to_owned(),
        );
    }
    Ok(duration)
}

/// Parses the address of a server.
pub(crate) fn server(text: &str) -> Result<ServerAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(ServerAddress::Unix(path.to_owned()));
    }
    let (kind, text): (fn(Authority) -> ServerAddress, &str) = match text.strip_prefix("https://") {
        Some(rest) => (ServerAddress::Tls, rest),
        None => (ServerAddress::Tcp, text),
    };
    let authority = Authority::from_str(text).ok();
    authority
        .filter(|authority| {
            let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
            plain && authority.port_u16().is_some()
        })
        .map(kind)
        .ok_or_else(|| {
            "give HOST:PORT, for instance localhost:50051, https://HOST:PORT for TLS, or unix:PATH"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h30m", 5400),
            ("0", 0),
            ("1000years", 31_557_600_000),
            // Longer than that is shortened.
            ("400000000000years", 31_557_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "5", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn servers() {
        for right in [
            "localhost:50051",
            "127.0.0.1:1",
            "[::1]:50051",
            "a.example:80",
            "https://a.example:443",
            "https://[::1]:50051",
            "unix:/run/a.sock",
        ] {
            assert!(server(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "localhost",
            ":1",
            "localhost:",
            "host:99999",
            "http://host:1",
            "https://host",
            "https://host:1/",
            "https://u@h:1",
            "u@h:1",
            "unix:",
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }
}

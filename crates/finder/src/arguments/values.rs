//! Parsers for the values of flags.

use std::{fmt, num::NonZeroUsize, ops::RangeInclusive, str::FromStr, time::Duration};

use hashfinder_search::{Distance, Kernel};

/// Maximum number of threads that search: more than the cores of almost any machine, and far fewer
/// than would overload one.
const MAXIMUM_THREADS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Maximum duration: 1,000 years. Longer durations are cut to it.
///
/// It is practically forever, but libraries can still add it to the current time. They panic if the
/// sum cannot be represented.
pub(crate) const LONGEST_DURATION: Duration = Duration::from_secs(1000 * 31_557_600);

pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    number(NonZeroUsize::MIN..=MAXIMUM_THREADS)(text)
}

/// Returns a parser that accepts the whole numbers in a range.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: Clone + fmt::Display + FromStr + PartialOrd,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("expected a whole number from {least} to {most}")
        })
    }
}

pub(crate) fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|_| "expected a positive whole number".to_owned())
}

pub(crate) fn kernel(text: &str) -> Result<Kernel, String> {
    Kernel::named(text).ok_or_else(|| {
        let names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
        format!(
            "expected one of this machine's kernels: {}",
            names.join(", ")
        )
    })
}

pub(crate) fn distance(text: &str) -> Result<Distance, String> {
    let number = i64::from_str(text).map_err(|_| "expected a number of characters".to_owned())?;
    Distance::try_from(number).map_err(|error| error.to_string())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text);
    duration
        .map(|duration| duration.min(LONGEST_DURATION))
        .map_err(|_| "expected a time such as 90s, 5m or 1h30m".to_owned())
}

pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        return Err("expected a time above zero, such as 90s, 5m or 1h30m".to_owned());
    }
    Ok(duration)
}

/// Formats a duration in the format that flags accept.
pub(crate) fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h30m", 5400),
            ("0", 0),
            ("1000years", 31_557_600_000),
            // Cut to a duration that is practically forever and that a clock can represent.
            ("400000000000years", 31_557_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "5", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(positive_duration("0s").is_err());
    }
}

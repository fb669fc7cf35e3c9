//! Formats numbers and times for people.

use std::{fmt, ops::RangeInclusive};

use jiff::{SignedDuration, Zoned};

/// Lower and upper bound of a number. They are equal if the number is known exactly.
pub(crate) type Bounds = RangeInclusive<f64>;

/// Formats both bounds with `number`. If the two texts are equal, returns only one of them.
pub(crate) fn show(bounds: &Bounds, number: impl Fn(f64) -> String) -> String {
    let (low, high) = (number(*bounds.start()), number(*bounds.end()));
    if low == high {
        low
    } else {
        format!("{low} to {high}")
    }
}

/// Formats a probability with four decimals or, below 0.001, in scientific notation.
pub(crate) fn probability(chance: f64) -> String {
    if chance < 1e-3 {
        format!("{chance:.3e}")
    } else {
        format!("{chance:.4}")
    }
}

/// Formats a number of at least 1 with up to three digits and a word for its magnitude. From about
/// 10^15 on, the format is scientific.
pub(crate) fn number(number: f64) -> String {
    let units = [
        (1.0, ""),
        (1e3, " thousand"),
        (1e6, " million"),
        (1e9, " billion"),
    ];
    // Not 1000: a number from 999.5 on would be shown as 1000 of a unit.
    match units.into_iter().find(|(unit, _)| number < 999.5 * unit) {
        Some((unit, name)) => format!("{}{name}", digits(number / unit)),
        None if number < 999.5e12 => format!("{} trillion", digits(number / 1e12)),
        None => format!("{number:.1e}"),
    }
}

/// Formats a whole number with commas between groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Formats a duration, given in seconds, in a suitable unit.
pub(crate) fn time(seconds: f64) -> String {
    let (minute, hour, day, year) = (60.0, 3600.0, 86_400.0, 365.25 * 86_400.0);
    let (unit, name) = match seconds {
        _ if seconds < 1e-3 => return "less than a millisecond".to_owned(),
        _ if seconds < 0.9995 => (1e-3, "ms"),
        _ if seconds < 2.0 * minute => (1.0, "s"),
        _ if seconds < 2.0 * hour => (minute, "minutes"),
        _ if seconds < 2.0 * day => (hour, "hours"),
        _ if seconds < 2.0 * year => (day, "days"),
        _ => return format!("{} years", number(seconds / year)),
    };
    format!("{} {name}", digits(seconds / unit))
}

/// Formats a number with one decimal if it has only one digit before the point, otherwise without
/// decimals. A decimal of 0 is left out.
fn digits(number: f64) -> String {
    if number < 9.95 {
        let text = format!("{number:.1}");
        text.strip_suffix(".0").unwrap_or(&text).to_owned()
    } else {
        format!("{number:.0}")
    }
}

// Units of time, in seconds.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const YEAR: f64 = 365.25 * DAY;

/// Formats the point in time that is `seconds` from now, rounded up.
///
/// It is a duration up to a minute and from a year on, and if `now` is `None` or the calendar ends
/// before that time. Otherwise it is a time of day or a date.
pub(crate) fn when(seconds: f64, now: Option<&Zoned>) -> String {
    if seconds <= MINUTE {
        return format!("in {}s", seconds.ceil().max(1.0));
    }
    if seconds >= YEAR {
        return match number(seconds / YEAR).as_str() {
            "1" => "in a year".to_owned(),
            years => format!("in {years} years"),
        };
    }
    // Rounded up to a whole minute, because seconds are not shown.
    let begun_minute = SignedDuration::from_nanos(59_999_999_999);
    let wait = SignedDuration::from_secs_f64(seconds) + begun_minute;
    let Some((now, at)) = now.and_then(|now| Some((now, now.checked_add(wait).ok()?))) else {
        return match seconds {
            ..HOUR => format!("in {} min", (seconds / MINUTE).ceil()),
            ..DAY => format!("in {} h", (seconds / HOUR).ceil()),
            _ => format!("in {} days", (seconds / DAY).ceil()),
        };
    };
    let days = at.date().duration_since(now.date()).as_hours() / 24;
    let form = match days {
        0 => "%H:%M",
        // In seven days, the day of the week is the same as today.
        1..=6 => "%a %H:%M",
        _ if at.year() == now.year() => "%-d %b",
        _ => "%-d %b %Y",
    };
    format!("by {}", at.strftime(form))
}

/// Displays a chance as a percentage, but never as 0% or 100%.
pub(crate) struct Percent(pub(crate) f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match 100.0 * self.0 {
            percent if percent < 0.01 => f.write_str("under 0.01%"),
            percent if percent > 99.99 => f.write_str("over 99.99%"),
            percent => write!(f, "{percent:.2}%"),
        }
    }
}

/// Displays a number as a whole number or, from a million on, with one decimal and a word for its
/// magnitude.
pub(crate) struct Scaled(pub(crate) f64);

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let scales = [(1e12, "trillion"), (1e9, "billion"), (1e6, "million")];
        match scales.iter().find(|(scale, _)| number >= *scale) {
            Some((scale, name)) => write!(f, "{:.1} {name}", number / scale),
            None => write!(f, "{number:.0}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz::TimeZone};

    use super::*;

    #[test]
    fn numbers_are_shown_with_a_magnitude() {
        for (value, text) in [
            (1.0, "1"),
            (1.46, "1.5"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1 thousand"),
            (51_130_562.0, "51 million"),
            (2.4e12, "2.4 trillion"),
            (999.6e12, "1.0e15"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn groups_of_digits() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (10_874_376, "10,874,376"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn times_are_shown_in_a_suitable_unit() {
        for (seconds, text) in [
            (0.000_9, "less than a millisecond"),
            (0.180_4, "180 ms"),
            (0.999_9, "1 s"),
            (119.0, "119 s"),
            (121.0, "2 minutes"),
            (86_400.0, "24 hours"),
            (864_000.0, "10 days"),
            (1e10, "317 years"),
            (1e30, "3.2e22 years"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    /// A Wednesday in Berlin, 90.5 seconds before 14:00.
    fn now() -> Zoned {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let time = date(2024, 11, 20).at(13, 58, 29, 500_000_000);
        time.to_zoned(berlin).unwrap()
    }

    #[test]
    fn times_are_rounded_up_for_people() {
        for (seconds, text) in [
            (0.0, "in 1s"),
            (11.2, "in 12s"),
            (60.0, "in 60s"),
            // Rounded up, never down.
            (90.5, "by 14:00"),
            (90.6, "by 14:01"),
            (10.0 * HOUR, "by 23:59"),
            (10.1 * HOUR, "by Thu 00:05"),
            (6.0 * DAY, "by Tue 13:59"),
            (7.0 * DAY, "by 27 Nov"),
            (41.0 * DAY, "by 31 Dec"),
            (42.0 * DAY, "by 1 Jan 2025"),
            // Summer time moves it past midnight.
            (180.0 * DAY + 9.5 * HOUR, "by 20 May 2025"),
            (366.0 * DAY, "in a year"),
            (3.0 * 365.25 * DAY, "in 3 years"),
            (1e15, "in 32 million years"),
            (1e300, "in 3.2e292 years"),
        ] {
            assert_eq!(when(seconds, Some(&now())), text, "{seconds}");
        }
    }

    /// Regression: a time after the year 9999 caused a panic.
    #[test]
    fn times_beyond_the_calendar_are_shown_as_durations() {
        let last = jiff::Timestamp::MAX.to_zoned(TimeZone::UTC);
        for now in [None, Some(&last)] {
            for (seconds, text) in [
                (60.0, "in 60s"),
                (61.0, "in 2 min"),
                (10.0 * HOUR, "in 10 h"),
                (41.5 * DAY, "in 42 days"),
                (366.0 * DAY, "in a year"),
            ] {
                assert_eq!(when(seconds, now), text, "{seconds}");
            }
        }
    }

    #[test]
    fn chances_are_never_rounded_to_0_or_1() {
        for (chance, text) in [
            (0.0, "under 0.01%"),
            (0.000_123, "0.01%"),
            (0.5, "50.00%"),
            (0.999_95, "over 99.99%"),
            (1.0, "over 99.99%"),
        ] {
            assert_eq!(Percent(chance).to_string(), text);
        }
    }

    #[test]
    fn large_numbers_are_scaled() {
        for (number, text) in [
            (0.0, "0"),
            (999_999.0, "999999"),
            (1e6, "1.0 million"),
            (273_100_000.0, "273.1 million"),
            (2e9, "2.0 billion"),
            (1.5e13, "15.0 trillion"),
        ] {
            assert_eq!(Scaled(number).to_string(), text);
        }
    }
}

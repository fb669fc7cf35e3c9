//! Formats numbers and times for people.

use std::ops::RangeInclusive;

/// A number, by its bounds, which are equal if it is known exactly.
pub(crate) type Bounds = RangeInclusive<f64>;

/// Formats a number: exactly, or by its bounds.
pub(crate) fn show(bounds: &Bounds, number: impl Fn(f64) -> String) -> String {
    let (low, high) = (number(*bounds.start()), number(*bounds.end()));
    if low == high {
        low
    } else {
        format!("{low} to {high}")
    }
}

/// Formats a probability with four digits.
pub(crate) fn probability(chance: f64) -> String {
    if chance < 1e-3 {
        format!("{chance:.3e}")
    } else {
        format!("{chance:.4}")
    }
}

/// Formats a number of at least 1 with two or three digits and a word for its magnitude.
pub(crate) fn number(number: f64) -> String {
    let units = [
        (1.0, ""),
        (1e3, " thousand"),
        (1e6, " million"),
        (1e9, " billion"),
    ];
    // So that nothing is rounded to 1000 of a unit.
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

/// Formats a time in seconds, in a suitable unit.
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

/// Formats a number with one digit after the point if there is only one before it.
fn digits(number: f64) -> String {
    if number < 9.95 {
        let text = format!("{number:.1}");
        text.strip_suffix(".0").unwrap_or(&text).to_owned()
    } else {
        format!("{number:.0}")
    }
}

#[cfg(test)]
mod tests {
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
}

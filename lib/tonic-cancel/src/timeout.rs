//! The `grpc-timeout` header.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tonic::Status;

const HEADER: &str = "grpc-timeout";

/// Maximum number of digits in the header (gRPC over HTTP/2, "Requests").
const MAX_DIGITS: usize = 8;

/// Returns the timeout in the header, if there is one, or INVALID_ARGUMENT if the header is
/// malformed.
pub(crate) fn parse(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(parse_value);
    timeout.map(Some).ok_or_else(|| {
        Status::invalid_argument(format!(
            "the header {HEADER} is {value:?}; give 1 to {MAX_DIGITS} digits and a unit, one of \
             H, M, S, m, u and n"
        ))
    })
}

/// Writes `timeout` into the header, rounded up to a value that the header can represent, so that
/// the receiver does not end the call before the caller does. A timeout that is too long for the
/// header is not written.
pub(crate) fn write(headers: &mut HeaderMap, timeout: Duration) {
    if let Some(value) = value(timeout) {
        headers.insert(HEADER, value);
    }
}

fn value(timeout: Duration) -> Option<HeaderValue> {
    const UNITS: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60 * 1_000_000_000, 'M'),
        (60 * 60 * 1_000_000_000, 'H'),
    ];
    let amounts = UNITS.map(|(nanos, unit)| (timeout.as_nanos().div_ceil(nanos), unit));
    let most = 10_u128.pow(MAX_DIGITS as u32);
    let (amount, unit) = amounts.into_iter().find(|(amount, _)| *amount < most)?;
    // Digits and a letter are always valid in a header.
    HeaderValue::from_str(&format!("{amount}{unit}")).ok()
}

fn parse_value(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 60 * 60),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_written_timeout_is_never_shorter_and_hardly_longer() {
        let day = Duration::from_secs(24 * 60 * 60);
        for timeout in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_nanos(99_999_999),
            Duration::from_nanos(100_000_001),
            Duration::from_millis(300),
            Duration::from_micros(120_000_700),
            day + Duration::from_millis(1),
            400 * day,
            100_000 * day,
        ] {
            let encoded = value(timeout).unwrap();
            let encoded = parse_value(encoded.to_str().unwrap()).unwrap();
            assert!(encoded >= timeout, "{timeout:?} is written as {encoded:?}");
            assert!(
                encoded - timeout <= timeout / 50_000,
                "{timeout:?} is written as {encoded:?}"
            );
        }
        assert_eq!(value(Duration::MAX), None);
    }

    #[test]
    fn values_are_parsed() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("0m", Some(Duration::ZERO)),
            ("50u", Some(Duration::from_micros(50))),
            ("7n", Some(Duration::from_nanos(7))),
            ("100000000n", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("+1S", None),
            (" 1S", None),
            ("1.5S", None),
            ("1s", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(parse_value(value), expected, "{value:?}");
        }
    }
}

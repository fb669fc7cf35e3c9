//! The `grpc-timeout` header.

use std::time::Duration;

use http::HeaderMap;
use tonic::Status;

const HEADER: &str = "grpc-timeout";

/// The longest value, without its unit (gRPC over HTTP/2, "Requests").
const MAX_DIGITS: usize = 8;

/// How long the client gives the call; an error if it says so in a way that nobody can read.
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
    fn values() {
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

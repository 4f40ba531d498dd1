//! The `grpc-timeout` of a call.

use std::time::{Duration, Instant};

use stillhouse_runtime::clock;
use tonic::metadata::MetadataMap;

use crate::error::ServeError;

/// When the call's client stops waiting; none: never.
///
/// A tenth of the time, at most 10 ms, is kept back for the reply's way, so that the client reads
/// DEADLINE_EXCEEDED from the server rather than from its own timer.
pub(super) fn of(metadata: &MetadataMap) -> Result<Option<Instant>, ServeError> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let timeout = parse(text).ok_or_else(|| {
        let expected = "1 to 8 digits and one of H, M, S, m, u, n";
        ServeError::invalid("grpc-timeout", format!("{text:?}"), expected)
    })?;
    let reply = (timeout / 10).min(Duration::from_millis(10));
    Ok(clock::now().checked_add(timeout.saturating_sub(reply)))
}

/// `TimeoutValue TimeoutUnit` of the gRPC over HTTP/2 protocol.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_and_nothing_else() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1 S", None),
            ("1é", None),
            ("1s", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}

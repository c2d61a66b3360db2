//! The clock of the GitHub client, and the forms in which GitHub writes a time.

use crate::date::days_from_civil;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the client needs of time, so that tests need not wait.
pub trait Clock: Send + Sync {
    /// Time for measuring: never goes back.
    fn now(&self) -> Instant;
    /// Time of day, which may be set by hand: for comparing with GitHub's and for showing.
    fn utc(&self) -> SystemTime;
    /// Waits.
    fn sleep(&self, time: Duration);
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn utc(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// `HH:MM:SS` in UTC.
pub(super) fn time_of_day(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// A time as GitHub's JSON has it: RFC 3339, such as
/// `2020-01-22T12:13:35.123-08:00`. A fraction of a second is dropped.
pub(super) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let offset = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match offset.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            offset_seconds(sign, hours, minutes)?
        }
    };
    parse_date_time(date_time, offset)
}

/// A time as the header `github-authentication-token-expiration` has it:
/// `2026-12-24 10:00:00 UTC` or `2026-12-24 10:00:00 +0100`.
pub(super) fn parse_token_expiration(text: &str) -> Option<SystemTime> {
    let (date_time, zone) = text.split_at_checked(19)?;
    let offset = match zone.strip_prefix(' ')? {
        "UTC" => 0,
        offset => {
            let (sign, offset) = offset.split_at_checked(1)?;
            let (hours, minutes) = offset.split_at_checked(2)?;
            offset_seconds(sign, hours, minutes)?
        }
    };
    parse_date_time(date_time, offset)
}

/// From `2020-01-22T12:13:35` or `2020-01-22 12:13:35`.
fn parse_date_time(text: &str, offset: i64) -> Option<SystemTime> {
    let mut parts = text.split(['-', 'T', 't', ' ', ':']);
    let mut next = || digits(parts.next()?);
    let (year, month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?, next()?);
    at(year, month, day, hour, minute, second, offset)
}

fn offset_seconds(sign: &str, hours: &str, minutes: &str) -> Option<i64> {
    let seconds = digits(hours)? * 3600 + digits(minutes)? * 60;
    match sign {
        "+" => Some(seconds),
        "-" => Some(-seconds),
        _ => None,
    }
}

/// A time as the HTTP header `Date` has it: `Sun, 06 Nov 1994 08:49:37 GMT`
/// (RFC 9110, section 5.6.7).
pub(super) fn parse_http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date_time) = text.split_once(", ")?;
    let mut parts = date_time.strip_suffix(" GMT")?.split([' ', ':']);
    let mut next = || parts.next();
    let day = digits(next()?)?;
    let name = next()?;
    let month = MONTHS.iter().position(|m| *m == name)? as i64 + 1;
    let (year, hour, minute, second) =
        (digits(next()?)?, digits(next()?)?, digits(next()?)?, digits(next()?)?);
    at(year, month, day, hour, minute, second, 0)
}

fn digits(text: &str) -> Option<i64> {
    let ok = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if ok { text.parse().ok() } else { None }
}

fn at(
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    offset: i64,
) -> Option<SystemTime> {
    // A leap second (60) is let through: it is one second late, no more.
    let in_range = year >= 1970
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let days = days_from_civil(year, month, day);
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(time: Option<SystemTime>) -> Option<u64> {
        time.map(|t| t.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn githubs_times_are_read_with_their_offset() {
        assert_eq!(unix(parse_rfc3339("1970-01-01T00:00:00Z")), Some(0));
        assert_eq!(unix(parse_rfc3339("2000-02-29T12:00:00Z")), Some(951_825_600));
        assert_eq!(unix(parse_rfc3339("2020-01-22T12:13:35.123-08:00")), Some(1_579_724_015));
        assert_eq!(unix(parse_rfc3339("2020-01-22T21:13:35+01:00")), Some(1_579_724_015));
        assert_eq!(unix(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT")), Some(784_111_777));
        assert_eq!(unix(parse_http_date("Thu, 29 Feb 2024 23:59:60 GMT")), Some(1_709_251_200));
    }

    #[test]
    fn a_tokens_expiration_is_read_in_both_forms() {
        assert_eq!(unix(parse_token_expiration("2026-12-24 10:00:00 UTC")), Some(1_798_106_400));
        assert_eq!(unix(parse_token_expiration("2026-12-24 10:00:00 +0000")), Some(1_798_106_400));
        assert_eq!(unix(parse_token_expiration("2026-12-24 02:30:00 -0730")), Some(1_798_106_400));
        for text in [
            "",
            "never",
            "2026-12-24",
            "2026-12-24 10:00:00",
            "2026-12-24 10:00:00 CET",
            "2026-12-24 10:00:00 +1",
        ] {
            assert_eq!(parse_token_expiration(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2020-01-22",
            "2020-01-22T12:13:35",
            "2020-13-22T12:13:35Z",
            "2020-01-22T25:13:35Z",
            "2020-01-22T12:13:35+0100",
            "2020-01-22T12:13:3\u{e9}Z",
            "-020-01-22T12:13:35Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        for text in ["", "Sun, 06 Nov 1994", "Sun, 06 Xyz 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET"]
        {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_of_day_is_shown_in_utc() {
        assert_eq!(time_of_day(UNIX_EPOCH + Duration::from_secs(1_579_724_015)), "20:13:35");
    }
}

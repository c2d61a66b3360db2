//! Days and times, in UTC. All that is needed of a calendar is these few
//! lines; a date crate would be larger than the rest of the binary's own code.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Days since 1970-01-01 of a day of the Gregorian calendar. Does not check that the month has the day.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years from March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (year_of_era + era * 400 + year, month, day)
}

/// A time as GitHub's JSON has it (RFC 3339, such as `2020-01-22T12:13:35.123-08:00`), or as its header
/// `github-authentication-token-expiration` does (`2026-12-24 10:00:00 UTC` or `2026-12-24 10:00:00 +0100`).
/// A fraction of a second is dropped.
pub(crate) fn parse_time(text: &str) -> Option<SystemTime> {
    let (date_time, zone) = text.split_at_checked(19)?;
    let zone = zone.trim_start_matches(|c: char| " .".contains(c) || c.is_ascii_digit()).replace(':', "");
    let offset_minutes = match zone.as_str() {
        "Z" | "z" | "UTC" => 0,
        // Such as +0130 or -0800.
        _ if zone.len() == 5 => {
            let hours_and_minutes: i64 = zone.parse().ok()?;
            hours_and_minutes / 100 * 60 + hours_and_minutes % 100
        }
        _ => return None,
    };
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let numbers: Vec<i64> = date_time.split(['-', 'T', 't', ' ', ':']).map(number).collect::<Option<_>>()?;
    let [year, month, day, hour, minute, second] = numbers[..] else { return None };
    let days = days_from_civil(year, month, day);
    // The 31st of June would come back as the 1st of July. A leap second (60) is one second late, no more.
    if civil_from_days(days) != (year, month, day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + (minute - offset_minutes) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// A time as the HTTP header `Date` has it: `Sun, 06 Nov 1994 08:49:37 GMT`
/// (RFC 9110, section 5.6.7).
pub(crate) fn parse_http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    parse_time(&format!("{year}-{month:02}-{day} {time} UTC"))
}

/// A day written `yyyy-mm-dd`, in days since 1970-01-01.
pub fn parse_day(day: &str) -> Option<i64> {
    parse_time(&format!("{day}T00:00:00Z")).map(days_since_1970)
}

/// Today, in days since 1970-01-01.
pub fn today() -> i64 {
    days_since_1970(SystemTime::now())
}

/// A moment as `2026-01-31T12:34:56.789Z` (RFC 3339).
pub fn timestamp(time: SystemTime) -> String {
    let millis = millis_since_1970(time);
    let (year, month, day) = civil_from_days(days_since_1970(time));
    let (hour, minute, second) = (millis / 3_600_000 % 24, millis / 60_000 % 60, millis / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", millis % 1000)
}

/// The day of a moment, in days since 1970-01-01.
pub fn days_since_1970(time: SystemTime) -> i64 {
    (millis_since_1970(time) / 86_400_000) as i64
}

fn millis_since_1970(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        assert_eq!(parse_day("1970-01-01"), Some(0));
        assert_eq!(parse_day("2000-03-01"), Some(11_017));
        assert_eq!(parse_day("2026-11-24"), Some(20_781));
    }

    #[test]
    fn a_day_that_is_not_in_the_calendar_is_refused() {
        for day in
            ["2026-1-1", "2026-13-01", "2026-02-29", "2026-06-31", "2026-00-10", "tomorrow", "2026-11-24T00"]
        {
            assert_eq!(parse_day(day), None, "{day}");
        }
        assert!(parse_day("2028-02-29").is_some());
    }

    #[test]
    fn every_day_leads_to_its_number_and_back() {
        for days in -200_000..200_000 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn a_timestamp_is_in_utc_to_the_millisecond() {
        let time = UNIX_EPOCH + Duration::from_millis(1_795_480_496_789);
        assert_eq!(timestamp(time), "2026-11-24T00:34:56.789Z");
    }

    fn unix(time: Option<SystemTime>) -> Option<u64> {
        time.map(|t| t.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn githubs_times_are_read_with_their_offset() {
        assert_eq!(unix(parse_time("1970-01-01T00:00:00Z")), Some(0));
        assert_eq!(unix(parse_time("2000-02-29T12:00:00Z")), Some(951_825_600));
        assert_eq!(unix(parse_time("2020-01-22T12:13:35.123-08:00")), Some(1_579_724_015));
        assert_eq!(unix(parse_time("2020-01-22T21:13:35+01:00")), Some(1_579_724_015));
        assert_eq!(unix(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT")), Some(784_111_777));
        assert_eq!(unix(parse_http_date("Thu, 29 Feb 2024 23:59:60 GMT")), Some(1_709_251_200));
    }

    #[test]
    fn a_tokens_expiration_is_read_in_both_forms() {
        assert_eq!(unix(parse_time("2026-12-24 10:00:00 UTC")), Some(1_798_106_400));
        assert_eq!(unix(parse_time("2026-12-24 10:00:00 +0000")), Some(1_798_106_400));
        assert_eq!(unix(parse_time("2026-12-24 02:30:00 -0730")), Some(1_798_106_400));
        for text in [
            "",
            "never",
            "2026-12-24",
            "2026-12-24 10:00:00",
            "2026-12-24 10:00:00 CET",
            "2026-12-24 10:00:00 +1",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
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
            "2020-01-22T12:13:3\u{e9}Z",
            "-020-01-22T12:13:35Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
        for text in ["", "Sun, 06 Nov 1994", "Sun, 06 Xyz 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET"]
        {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }
}

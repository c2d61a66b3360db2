//! Days and timestamps, in UTC. All that is needed of a calendar is these few
//! lines; a date crate would be larger than the rest of the binary's own code.

use std::time::{SystemTime, UNIX_EPOCH};

/// Days since 1970-01-01 of a day of the Gregorian calendar. Does not check that the month has the day.
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years from March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day counted from 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
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

/// A day written `yyyy-mm-dd`, in days since 1970-01-01.
pub fn parse_day(day: &str) -> Option<i64> {
    let mut parts = day.splitn(3, '-');
    let mut number = |length: usize| -> Option<i64> {
        let part = parts.next()?;
        (part.len() == length && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    let days = days_from_civil(year, month, day);
    // The 31st of June would come back as the 1st of July.
    (civil_from_days(days) == (year, month, day)).then_some(days)
}

/// Today, in days since 1970-01-01.
pub fn today() -> i64 {
    (since_1970(SystemTime::now()) / 86_400_000) as i64
}

/// A moment as `2026-01-31T12:34:56.789Z` (RFC 3339).
pub fn timestamp(time: SystemTime) -> String {
    let millis = since_1970(time);
    let (year, month, day) = civil_from_days((millis / 86_400_000) as i64);
    let (hour, minute, second) = (millis / 3_600_000 % 24, millis / 60_000 % 60, millis / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", millis % 1000)
}

fn since_1970(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
}

//! Text that came from outside, and times, as they are shown.

/// On one line, without control characters, and cut after `most` characters.
pub fn one_line(text: &str, most: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ").replace(char::is_control, "\u{fffd}");
    if let Some((end, _)) = line.char_indices().nth(most) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// A time to read: `0.4 s`, `41 s`, `5 min 3 s`, `2 h 5 min`.
pub fn time(millis: i64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..=9 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_is_shown_short_and_on_one_line() {
        assert_eq!(one_line(" a\r\n\t b\u{7} ", 600), "a b\u{fffd}");
        assert_eq!(one_line("\u{e4}\u{e4}", 2), "\u{e4}\u{e4}");
        assert_eq!(one_line("\u{e4}\u{e4}\u{e4}", 2), "\u{e4}\u{e4}...");
    }

    #[test]
    fn a_time_is_shown_in_the_units_that_a_person_would_use() {
        let shown = [400, 9_999, 41_000, 303_000, 7_500_000].map(time);
        assert_eq!(shown, ["0.4 s", "9.9 s", "41 s", "5 min 3 s", "2 h 5 min"]);
    }
}

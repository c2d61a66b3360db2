//! Text that came from outside, as it may be shown.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_is_shown_short_and_on_one_line() {
        assert_eq!(one_line(" a\r\n\t b\u{7} ", 600), "a b\u{fffd}");
        assert_eq!(one_line("\u{e4}\u{e4}", 2), "\u{e4}\u{e4}");
        assert_eq!(one_line("\u{e4}\u{e4}\u{e4}", 2), "\u{e4}\u{e4}...");
    }
}

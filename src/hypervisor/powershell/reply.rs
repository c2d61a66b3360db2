//! The input of a script as it is written, and its output as it is read: the
//! answer, and what may be shown of the rest.

use crate::secret::Secret;
use crate::text::one_line;
use serde_json::Value;

/// How much of either is quoted in an error, in characters.
const QUOTE_LIMIT: usize = 600;

/// Compact JSON in ASCII, so that the code page in which PowerShell reads its
/// input does not matter.
pub(super) fn ascii_json(value: &Value) -> String {
    let mut ascii = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            // Outside of strings JSON is all ASCII, so this is inside of one.
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

/// The last line that is an answer, and all other text.
pub fn find_answer(stdout: &str) -> Option<(Value, String)> {
    let mut lines: Vec<&str> = stdout.lines().collect();
    let answer_in = |line: &str| -> Option<Value> {
        let line = line.trim().trim_start_matches('\u{feff}');
        let answer: Value = serde_json::from_str(line).ok()?;
        answer.get("ok")?.as_bool()?;
        Some(answer)
    };
    let (index, answer) =
        lines.iter().enumerate().rev().find_map(|(index, line)| Some((index, answer_in(line)?)))?;
    lines.remove(index);
    Some((answer, lines.join("\n")))
}

/// The beginning of a text, on one line.
pub fn quote(text: &str) -> String {
    one_line(text, QUOTE_LIMIT)
}

/// The text without these secrets.
pub(super) fn redact(text: String, secrets: &[&Secret]) -> String {
    secrets.iter().fold(text, |text, secret| secret.redact(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_among_noise() {
        let (answer, noise) =
            find_answer("WARNING: x\r\n\u{feff}{\"ok\":true,\"n\":1}\r\n\r\n{not json\r\n").unwrap();
        assert_eq!(answer["n"], 1);
        assert!(noise.contains("WARNING: x") && noise.contains("{not json") && !noise.contains("\"ok\""));
    }

    #[test]
    fn the_last_of_several_answers_counts() {
        let (answer, _) = find_answer("{\"ok\":true,\"n\":1}\n{\"ok\":false,\"n\":2}\n").unwrap();
        assert_eq!(answer["n"], 2);
    }

    #[test]
    fn json_that_is_not_an_answer_is_noise() {
        for text in ["", "\n\n", "[]", "{}", "{\"ok\":1}", "\"ok\"", "{\"ok\":true"] {
            assert!(find_answer(text).is_none(), "{text}");
        }
    }

    #[test]
    fn input_is_ascii_whatever_it_says() {
        let json = ascii_json(&serde_json::json!({ "switch": "Büro \u{1f600} \"x\"" }));
        assert!(json.is_ascii(), "{json}");
        let back: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back["switch"], "Büro \u{1f600} \"x\"");
    }
}

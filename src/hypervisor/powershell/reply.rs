//! The input of a script as it is written, and its output as it is read: the
//! answer, and what may be shown of the rest.

use crate::secret::Secret;
use crate::text::one_line;
use serde::Serialize;
use serde_json::Value;

/// How much of either is quoted in an error, in characters.
const QUOTE_LIMIT: usize = 600;

/// What reads a script's output, without a script.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{Secret, Value};

    /// The answer in what a script wrote, and the rest of it.
    pub fn read(stdout: &str) -> Option<(Value, String)> {
        super::find_answer(stdout)
    }

    /// How a script's words are shown to a reader who may not know `secret`.
    pub fn shown(output: &str, secret: &Secret) -> String {
        super::quote(&super::redact(super::readable_stderr(output), &[secret]))
    }
}

/// Compact JSON in ASCII, so that the code page in which PowerShell reads its
/// input does not matter.
pub(super) fn ascii_json(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            // Outside of strings JSON is all ASCII, so this is inside of one.
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(ascii)
}

/// The last line that is an answer, and all other text.
pub(super) fn find_answer(stdout: &str) -> Option<(Value, String)> {
    let lines: Vec<&str> = stdout.lines().collect();
    lines.iter().enumerate().rev().find_map(|(index, line)| {
        let line = line.trim().trim_start_matches('\u{feff}');
        if !line.starts_with('{') {
            return None;
        }
        let answer: Value = serde_json::from_str(line).ok()?;
        answer.get("ok")?.as_bool()?;
        let noise: Vec<&str> =
            lines.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, text)| *text).collect();
        Some((answer, noise.join("\n")))
    })
}

/// The beginning of a text, on one line.
pub(super) fn quote(text: &str) -> String {
    one_line(text, QUOTE_LIMIT)
}

/// The text without these secrets.
pub(super) fn redact(text: String, secrets: &[&Secret]) -> String {
    secrets.iter().fold(text, |text, secret| secret.redact(&text))
}

/// Standard error as a person would write it. Windows PowerShell writes it as
/// XML when its output is redirected (`#< CLIXML`): of that only the errors
/// and warnings, without progress records and the like.
pub(super) fn readable_stderr(stderr: &str) -> String {
    let Some((before, xml)) = stderr.split_once("#< CLIXML") else {
        return stderr.to_owned();
    };
    let mut text = before.to_owned();
    let mut rest = xml;
    while let Some(at) = rest.find("<S S=\"") {
        rest = &rest[at + "<S S=\"".len()..];
        let Some((stream, after)) = rest.split_once("\">") else { break };
        let (content, after) = after.split_once("</S>").unwrap_or((after, ""));
        if matches!(stream, "Error" | "Warning" | "error" | "warning") {
            text.push_str(&decode_clixml(content));
        }
        rest = after;
    }
    text
}

/// Undoes XML's entities and the `_x000D_` escapes of CLIXML.
fn decode_clixml(content: &str) -> String {
    let mut text = String::new();
    let mut rest = content;
    while let Some(at) = rest.find("_x") {
        text.push_str(&rest[..at]);
        let escape = rest.get(at + 2..at + 7).and_then(|escape| escape.strip_suffix('_'));
        match escape.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32) {
            Some(c) => {
                text.push(c);
                rest = &rest[at + 7..];
            }
            None => {
                text.push_str("_x");
                rest = &rest[at + 2..];
            }
        }
    }
    text.push_str(rest);
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
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
        let json = ascii_json(&serde_json::json!({ "switch": "Büro \u{1f600} \"x\"" })).unwrap();
        assert!(json.is_ascii(), "{json}");
        let back: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back["switch"], "Büro \u{1f600} \"x\"");
    }

    #[test]
    fn clixml_becomes_the_text_of_its_errors() {
        let text = readable_stderr(concat!(
            "#< CLIXML\r\n<Objs Version=\"1.1.0.1\" xmlns=\"http://schemas.microsoft.com/powershell/2004/04\">",
            "<Obj S=\"progress\" RefId=\"0\"><MS><I64 N=\"SourceId\">1</I64></MS></Obj>",
            "<S S=\"debug\">hidden</S>",
            "<S S=\"Error\">Get-VM : it&apos;s &lt;gone&gt;_x000D__x000A_</S><S S=\"Error\">a_xyz_b</S></Objs>",
        ));
        assert_eq!(text, "Get-VM : it's <gone>\r\na_xyz_b");
        assert_eq!(readable_stderr("plain"), "plain");
        assert_eq!(readable_stderr("#< CLIXML\r\n<Objs><S S=\"Error\">cut of"), "cut of");
    }
}

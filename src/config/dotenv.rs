//! Reads `.env` files.
//!
//! Not the `dotenvy` crate, because it takes a backslash in an unquoted or
//! double-quoted value as an escape: `C:\vms\templates` is an error there, and
//! `"C:\new"` gets a line break in it (<https://github.com/allan2/dotenvy/issues/82>).
//! Here a backslash is always just a backslash, because this file mostly
//! contains Windows paths and secrets. The rest is as usual in such files:
//!
//! - `NAME=value`, optionally with `export ` before it and spaces around the
//!   `=`; lines that are blank or begin with `#` are skipped
//! - an unquoted value ends at the end of the line or at a space followed by `#`
//! - `'...'` and `"..."` contain everything up to the next such quote, on one
//!   line; only a comment may follow. There are no escapes: a value that
//!   contains a `"` goes in single quotes, and the other way round
//! - a `$` is just a `$`: nothing is expanded
//!
//! The bytes may be UTF-8 with or without byte-order mark, or UTF-16, which
//! is what `>` in Windows PowerShell 5.1 writes. Line ends are LF or CRLF.

use crate::secret::Secret;

/// What a `.env` file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The settings in the order of the file, repeated names included.
    pub entries: Vec<Entry>,
    /// The lines that cannot be read.
    pub faults: Vec<Fault>,
}

/// One `NAME=value` line.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Left of the `=`.
    pub name: String,
    /// Right of it, without quotes and comment. Any value may be a secret, so
    /// all of them are kept as one.
    pub value: Secret,
    /// Counted from 1.
    pub line: usize,
}

/// A line that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    /// The name that the line would set, if that much can be read.
    pub name: Option<String>,
    /// What is wrong and how to fix it; never any part of the value.
    pub problem: &'static str,
}

/// Reads a whole `.env` file. Never fails as a whole: each line that cannot
/// be read is a fault of its own.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    for (index, text) in decode(bytes).lines().enumerate() {
        let line = index + 1;
        match parse_line(text) {
            Ok(None) => {}
            Ok(Some((name, value))) => {
                parsed.entries.push(Entry { name: name.into(), value: Secret::new(value), line });
            }
            Err((name, problem)) => {
                parsed.faults.push(Fault { line, name: name.map(str::to_owned), problem });
            }
        }
    }
    parsed
}

/// The file's text, with U+FFFD in place of what cannot be decoded.
fn decode(bytes: &[u8]) -> String {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        // Without a byte-order mark: no text begins with a NUL character, nor
        // has one in second place, but UTF-16 of an ASCII character does.
        [first, 0, ..] if *first != 0 => utf16(bytes, u16::from_le_bytes),
        [0, second, ..] if *second != 0 => utf16(bytes, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The name, if that much can be read, and what is wrong.
type LineFault<'a> = (Option<&'a str>, &'static str);

/// The name and value that a line sets; `None` for a blank line or a comment.
fn parse_line(line: &str) -> Result<Option<(&str, &str)>, LineFault<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let Some((left, value)) = line.split_once('=') else {
        return Err((None, "there is no `=`; write NAME=value, or put a `#` before a comment"));
    };
    let left = left.trim();
    let name = match left.strip_prefix("export") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => left,
    };
    let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err((
            None,
            "the text before the `=` is not a name; write NAME=value, with a name of letters, digits and `_`",
        ));
    }
    let value = parse_value(value).map_err(|problem| (Some(name), problem))?;
    Ok(Some((name, value)))
}

fn parse_value(text: &str) -> Result<&str, &'static str> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("a character here is not valid UTF-8; save the file as UTF-8");
    }
    let trimmed = text.trim_start();
    for quote in ['\'', '"'] {
        let Some(quoted) = trimmed.strip_prefix(quote) else { continue };
        let Some((value, after)) = quoted.split_once(quote) else {
            return Err("the quote is not closed; close it on the same line");
        };
        let after = after.trim_start();
        if !after.is_empty() && !after.starts_with('#') {
            return Err("there is text after the closing quote; there are no escapes, so put a value that \
                        contains a double quote in single quotes, and the other way round");
        }
        return Ok(value);
    }
    let mut hashes = text.match_indices('#').map(|(at, _)| at);
    let comment = hashes.find(|at| text[..*at].ends_with(char::is_whitespace));
    Ok(text[..comment.unwrap_or(text.len())].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that `X` has after parsing `X=text`.
    fn value(text: &str) -> Result<String, &'static str> {
        let parsed = parse(format!("X={text}").as_bytes());
        match (&parsed.entries[..], &parsed.faults[..]) {
            ([entry], []) => Ok(entry.value.expose().to_owned()),
            ([], [fault]) => Err(fault.problem),
            _ => panic!("{parsed:?}"),
        }
    }

    /// `name=value` for each entry, to compare whole files.
    fn entries(bytes: &[u8]) -> Vec<String> {
        let parsed = parse(bytes);
        assert_eq!(parsed.faults, [], "{bytes:?}");
        parsed.entries.iter().map(|e| format!("{}: {}={}", e.line, e.name, e.value.expose())).collect()
    }

    fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn a_windows_path_is_kept_as_written_quoted_or_not() {
        for path in [r"C:\vms\templates", r"\\server\share\new", r"C:\with space\t", r"C:\dir\", r"C:\$x\#1"]
        {
            assert_eq!(value(path).as_deref(), Ok(path));
            assert_eq!(value(&format!("'{path}'")).as_deref(), Ok(path));
            assert_eq!(value(&format!("\"{path}\"")).as_deref(), Ok(path));
        }
    }

    #[test]
    fn nothing_is_expanded() {
        assert_eq!(value(r#""$HOME ${PATH} %TEMP% $env:X \$""#).unwrap(), r"$HOME ${PATH} %TEMP% $env:X \$");
        assert_eq!(value("a$b").unwrap(), "a$b");
    }

    #[test]
    fn an_unquoted_value_is_trimmed_and_ends_at_a_comment() {
        assert_eq!(value("  a b \t ").unwrap(), "a b");
        assert_eq!(value("a # comment").unwrap(), "a");
        assert_eq!(value("a\t#comment").unwrap(), "a");
        assert_eq!(value(" # only a comment").unwrap(), "");
        assert_eq!(value("").unwrap(), "");
    }

    #[test]
    fn a_hash_without_a_space_before_it_belongs_to_the_value() {
        assert_eq!(value("a#b").unwrap(), "a#b");
        assert_eq!(value("#a").unwrap(), "#a");
    }

    #[test]
    fn quotes_keep_spaces_hashes_and_the_other_quote() {
        assert_eq!(value(r#"' a # "b" '  # comment"#).unwrap(), r#" a # "b" "#);
        assert_eq!(value(r#"" it's # ""#).unwrap(), " it's # ");
        assert_eq!(value("''").unwrap(), "");
    }

    #[test]
    fn quotes_inside_an_unquoted_value_belong_to_it() {
        assert_eq!(value(r#"a'b"c"#).unwrap(), r#"a'b"c"#);
    }

    #[test]
    fn an_open_quote_is_a_fault() {
        assert!(value("'abc").unwrap_err().contains("not closed"));
        assert!(value("\"abc'").unwrap_err().contains("not closed"));
    }

    #[test]
    fn an_escaped_quote_is_a_fault_and_not_silently_another_value() {
        assert!(value(r#""a\"b""#).unwrap_err().contains("single quotes"));
        assert!(value("'a'b").unwrap_err().contains("after the closing quote"));
    }

    #[test]
    fn a_value_may_hold_equals_signs() {
        assert_eq!(value("YWJj==").unwrap(), "YWJj==");
    }

    #[test]
    fn export_and_spaces_around_the_equals_sign_are_accepted() {
        assert_eq!(entries(b"export A=1\n  B = 2 \nexport=3\n"), ["1: A=1", "2: B=2", "3: export=3"]);
    }

    #[test]
    fn blank_lines_and_comments_count_as_lines_only() {
        assert_eq!(entries(b"# A=1\n\n   # B=2\nC=3"), ["4: C=3"]);
        assert_eq!(entries(b""), [""; 0]);
    }

    #[test]
    fn both_kinds_of_line_end_separate() {
        assert_eq!(entries(b"A=1\r\nB=2\nC=3\r\n"), ["1: A=1", "2: B=2", "3: C=3"]);
    }

    #[test]
    fn every_encoding_that_windows_writes_is_read() {
        let text = "A=ä€🦀\r\nB=2\r\n";
        let expected = ["1: A=ä€🦀", "2: B=2"];
        assert_eq!(entries(text.as_bytes()), expected);
        let with_mark = format!("\u{feff}{text}");
        assert_eq!(entries(with_mark.as_bytes()), expected, "UTF-8 with mark");
        assert_eq!(entries(&utf16(&with_mark, u16::to_le_bytes)), expected, "UTF-16LE with mark");
        assert_eq!(entries(&utf16(&with_mark, u16::to_be_bytes)), expected, "UTF-16BE with mark");
        assert_eq!(entries(&utf16(text, u16::to_le_bytes)), expected, "UTF-16LE");
        assert_eq!(entries(&utf16(text, u16::to_be_bytes)), expected, "UTF-16BE");
    }

    #[test]
    fn a_line_in_another_encoding_is_a_fault_with_its_number_and_spares_the_others() {
        let parsed = parse(b"A=1\nB=M\xfcnchen\nC=3\n");
        assert_eq!(parsed.entries.iter().map(|e| &e.name[..]).collect::<Vec<_>>(), ["A", "C"]);
        assert_eq!((parsed.faults[0].line, parsed.faults[0].name.as_deref()), (2, Some("B")));
        assert!(parsed.faults[0].problem.contains("UTF-8"));
    }

    #[test]
    fn broken_utf16_is_a_fault_with_its_line() {
        let mut lone_surrogate = utf16("\u{feff}A=1\nB=", u16::to_le_bytes);
        lone_surrogate.extend([0x00, 0xd8]);
        assert_eq!(parse(&lone_surrogate).faults[0].line, 2);
    }

    #[test]
    fn a_line_that_sets_nothing_is_a_fault_that_does_not_repeat_it() {
        let parsed = parse(b"A=1\nhunter2\n$env:B = 'hunter2'\n=hunter2\n1A=hunter2\nset A=hunter2\n");
        assert_eq!(parsed.faults.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!(!format!("{parsed:?}").contains("hunter2"));
    }

    #[test]
    fn a_fault_in_the_value_names_the_setting_but_not_the_value() {
        let parsed = parse(b"GITHUB_PAT='hunter2");
        assert_eq!(parsed.faults[0].name.as_deref(), Some("GITHUB_PAT"));
        assert!(!format!("{parsed:?}").contains("hunter2"));
    }

    /// Every file of up to four of the characters that have a meaning.
    #[test]
    fn no_short_file_makes_it_panic() {
        let alphabet: &[u8] = b"A=#'\" \\\r\n\0\xff\xfe\xef\xbb\xbf";
        let mut files: Vec<Vec<u8>> = vec![vec![]];
        for _ in 0..4 {
            files = files
                .iter()
                .flat_map(|file| alphabet.iter().map(move |&byte| [&file[..], &[byte]].concat()))
                .collect();
            for file in &files {
                let parsed = parse(file);
                assert!(parsed.entries.len() + parsed.faults.len() <= file.len() + 1, "{file:?}");
            }
        }
    }
}

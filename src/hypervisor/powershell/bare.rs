//! The embedded scripts without their comments and their indentation, a third of their bytes.

/// The text of a script in a file. Each line keeps its number, so that PowerShell's errors name the right one.
macro_rules! bare {
    ($file:literal) => {{
        const TEXT: &str = include_str!($file);
        const LENGTH: usize = bare::copy::<0>(TEXT).1;
        const BARE: [u8; LENGTH] = bare::copy(TEXT).0;
        match str::from_utf8(&BARE) {
            Ok(text) => text,
            Err(_) => panic!("only whole lines and spaces are left out"),
        }
    }};
}
pub(super) use bare;

/// The first bytes of a script without lines that are comments alone, and without indentation; and how many bytes
/// that is. Of anything else that spans lines, such as here-strings, a script has none.
pub(super) const fn copy<const N: usize>(text: &str) -> ([u8; N], usize) {
    let text = text.as_bytes();
    let (mut bare, mut length) = ([0; N], 0);
    let (mut line_begins, mut is_comment) = (true, false);
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        at += 1;
        if byte == b'\n' {
            (line_begins, is_comment) = (true, false);
        } else if line_begins {
            is_comment = byte == b'#';
            line_begins = byte == b' ';
        }
        if !line_begins && !is_comment || byte == b'\n' {
            if length < N {
                bare[length] = byte;
            }
            length += 1;
        }
    }
    (bare, length)
}

#[cfg(test)]
mod tests {
    use super::super::Script;
    use std::fs;
    use std::path::Path;

    fn file_of(script: Script) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hypervisor/scripts");
        fs::read_to_string(folder.join(script.file_name())).unwrap()
    }

    #[test]
    fn a_script_loses_its_indentation_and_its_comments_and_each_line_keeps_its_number() {
        for script in Script::ALL {
            let file = file_of(script);
            let lines = file.lines().map(|line| line.trim_start_matches(' '));
            let lines = lines.map(|line| if line.starts_with('#') { "" } else { line });
            assert!(script.text.lines().eq(lines), "{}", script.name);
        }
    }

    #[test]
    fn no_script_has_text_or_a_comment_that_spans_lines_nor_a_comment_that_is_an_order() {
        for script in Script::ALL {
            let file = file_of(script).to_lowercase();
            for what in ["@'\n", "@\"\n", "<#", "#requires"] {
                assert!(!file.contains(what), "{} has {what:?}", script.name);
            }
        }
    }
}

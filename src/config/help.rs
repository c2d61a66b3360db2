//! What people read about the settings: `--help`, `.env.example` and
//! `docs/configuration.md`.

use super::settings::{Fallback, SETTINGS, Setting};

/// The part of `--help` about the settings.
pub fn help() -> String {
    let mut help = String::new();
    for (group, settings) in groups() {
        help.push_str(&format!("\n{}\n", group.to_uppercase()));
        for setting in settings {
            help.push_str(&heading(setting));
            for line in wrap(setting.about, 90) {
                help.push_str(&format!("      {line}\n"));
            }
        }
    }
    help
}

/// The text of `.env.example`: every setting with its default, commented out
/// unless it is required.
pub fn example() -> String {
    let mut example = String::from(
        r#"# Settings of hyperv-runner-pool. Copy this file to .env and fill in the lines that are not
# commented out. The others show the defaults. Environment variables override .env.
#
# A value ends at the end of the line, or at a space followed by `#`. Quotes, '...' or "...", keep
# spaces and `#`. Put a value that contains one kind of quote in the other kind. Backslashes and `$`
# have no special meaning, so write Windows paths as they are.
"#,
    );
    for (group, settings) in groups() {
        example.push_str(&format!("\n\n# {group}\n"));
        for setting in settings {
            let (mark, value, unset) = match setting.fallback {
                Fallback::Required { .. } | Fallback::RequiredUnless { .. } => ("", "", None),
                Fallback::Default(value) => ("# ", value, None),
                Fallback::Unset(meaning) => ("# ", "", Some(format!("Default: {meaning}."))),
            };
            let values = setting.lists_values().then(|| format!("Values: {}.", setting.syntax()));
            let facts: Vec<String> = values.into_iter().chain(unset).collect();
            example.push('\n');
            for line in wrap(setting.about, 98).into_iter().chain(wrap(&facts.join(" "), 98)) {
                example.push_str(&format!("# {line}\n"));
            }
            example.push_str(&format!("{mark}{}={value}\n", setting.name));
        }
    }
    example
}

/// The text of `docs/configuration.md`.
pub fn reference() -> String {
    let mut reference = String::from(
        "# Configuration

Settings come from environment variables and from the file `.env` in the pool's folder. That is the
folder of the installed service; without one, the working directory if it has a `.env`, else the
program's folder. Relative paths start there. The service sees the machine's environment variables
only, and changes to them after the next start of Windows.

Environment variables override `.env`. An empty value counts as not set. The pool reports all faults
at once when it starts, and `hyperv-runner-pool check` reports them without starting it.

[.env.example](../.env.example) is a file to copy, with every setting and its default.
",
    );
    for (group, settings) in groups() {
        reference.push_str(&format!("\n## {group}\n"));
        for setting in settings {
            let fallback = match setting.fallback {
                Fallback::Required { in_mock: None, .. } => "Required, except with `USE_MOCK`".into(),
                Fallback::Required { in_mock: Some(value), .. } => {
                    format!("Required; with `USE_MOCK`, default: `{value}`")
                }
                Fallback::RequiredUnless { other, in_mock: None } => {
                    format!("Required, except with `USE_MOCK` or if {other}")
                }
                Fallback::RequiredUnless { other, in_mock: Some(value) } => {
                    format!("Required unless {other}; with `USE_MOCK`, default: `{value}`")
                }
                Fallback::Default(value) => format!("Default: `{value}`"),
                Fallback::Unset(meaning) => format!("Default: {meaning}"),
            };
            let (name, syntax, about) = (setting.name, setting.syntax(), wrap(setting.about, 100).join("\n"));
            reference.push_str(&format!("\n### {name}\n\n{about}\n\n- Values: `{syntax}`\n- {fallback}\n"));
        }
    }
    reference
}

/// The settings by group.
fn groups() -> impl Iterator<Item = (&'static str, &'static [Setting])> {
    SETTINGS.chunk_by(|a, b| a.group == b.group).map(|settings| (settings[0].group, settings))
}

/// A setting's name, values and default: on one line if they fit.
fn heading(setting: &Setting) -> String {
    let value = format!("  {}={}", setting.name, setting.syntax());
    let line = format!("{value} {}", setting.fallback);
    if line.len() <= 100 { format!("{line}\n") } else { format!("{value}\n      {}\n", setting.fallback) }
}

/// Breaks a text at spaces into lines of at most `width` characters (a longer
/// word gets a line of its own).
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

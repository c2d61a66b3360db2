//! What users read about the settings (`.env.example` and `--help`) agrees
//! with what the program does with them.
use hyperv_runner_pool::config::{self, Config, Fallback, Loaded, SETTINGS};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn example_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example")
}

/// The file, with the line ends that it has in the repository.
fn example_file() -> String {
    std::fs::read_to_string(example_path()).expect(".env.example is there").replace("\r\n", "\n")
}

fn filled_in(example: &str) -> String {
    example
        .replace("GITHUB_PAT=\n", "GITHUB_PAT=ghp_0123456789abcdef\n")
        .replace("GITHUB_ORG=\n", "GITHUB_ORG=acme\n")
        .replace("WEBHOOK_SECRET=\n", "WEBHOOK_SECRET=0123456789abcdef\n")
}

fn load(dotenv: &str) -> Result<Loaded, config::Faults> {
    Config::load(|_| None, Some(dotenv.as_bytes()), &std::env::current_dir().unwrap())
}

#[test]
fn env_example_is_what_the_table_of_settings_makes() {
    if std::env::var_os("UPDATE_ENV_EXAMPLE").is_some() {
        std::fs::write(example_path(), config::example()).unwrap();
    }
    assert!(
        example_file() == config::example(),
        ".env.example is out of date: run `UPDATE_ENV_EXAMPLE=1 cargo test --test it settings`"
    );
}

#[test]
fn env_example_sets_every_setting_once_and_nothing_else() {
    let mut names: Vec<String> = example_file()
        .lines()
        .filter_map(|line| line.strip_prefix("# ").unwrap_or(line).split_once('='))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect();
    names.sort();
    let mut expected: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn an_untouched_env_example_lacks_exactly_what_is_required() {
    let faults = load(&example_file()).unwrap_err();
    let required = SETTINGS.iter().filter(|s| matches!(s.fallback, Fallback::Required { .. }));
    let faults = faults.to_string();
    let lacking: Vec<_> = faults.lines().map(|line| line.split_once(": not set").unwrap().0).collect();
    assert_eq!(lacking, required.map(|s| s.name).collect::<Vec<_>>());
}

#[test]
fn a_filled_in_env_example_loads_without_a_warning() {
    let loaded = load(&filled_in(&example_file())).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn uncommenting_every_line_of_env_example_changes_nothing() {
    let example = filled_in(&example_file());
    let is_setting =
        |line: &str| line.split_once('=').is_some_and(|(name, _)| SETTINGS.iter().any(|s| s.name == name));
    let uncommented: String = example
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line))
        // The defaults of paths are written for Windows.
        .map(
            |line| if cfg!(windows) { format!("{line}\n") } else { format!("{}\n", line.replace('\\', "/")) },
        )
        .collect();
    assert_ne!(uncommented, example);
    assert_eq!(load(&uncommented).unwrap().config, load(&example).unwrap().config);
}

#[test]
fn every_setting_of_the_table_is_read_and_no_other() {
    let asked = RefCell::new(BTreeSet::new());
    let ask = |name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        None
    };
    let _ = Config::load(ask, None, &std::env::current_dir().unwrap());
    assert_eq!(*asked.borrow(), SETTINGS.iter().map(|s| s.name.to_owned()).collect());
}

#[test]
fn help_shows_every_setting_under_its_group_with_its_default() {
    let help = config::help();
    for setting in SETTINGS {
        let heading = format!("\n{}\n", setting.group.to_uppercase());
        let group = help.split_once(&heading).unwrap_or_else(|| panic!("no heading {heading:?}")).1;
        let group = group.split_once("\n\n").unwrap().0;
        let name = format!("  {}={}", setting.name, setting.syntax());
        let entry = group.split_once(&name).unwrap_or_else(|| panic!("{} is missing", setting.name)).1;
        assert!(entry.trim_start().starts_with(&setting.fallback.to_string()), "{}", setting.name);
    }
}

#[test]
fn help_and_env_example_fit_a_hundred_columns_in_plain_ascii() {
    for text in [config::help(), example_file()] {
        for line in text.lines() {
            assert!(line.len() <= 100 && line.is_ascii() && line.trim_end() == line, "{line:?}");
        }
    }
}

#[test]
fn help_names_the_two_commands_and_the_version() {
    let help = config::help();
    for text in ["hyperv-runner-pool check", "--help", "--version", "USE_MOCK", env!("CARGO_PKG_VERSION")] {
        assert!(help.contains(text), "{text}");
    }
}

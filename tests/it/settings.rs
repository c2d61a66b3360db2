//! What users read about the settings (`--help`, `.env.example` and
//! `docs/configuration.md`) agrees with what the program does with them.

use hyperv_runner_pool::commands::{self, COMMANDS};
use hyperv_runner_pool::config::{self, Fallback, Faults, Loaded, SETTINGS, Setting, Source};
use std::fs;
use std::path::Path;
use std::process::Command;

fn filled_in() -> String {
    config::example()
        .replace("GITHUB_PAT=\n", "GITHUB_PAT=ghp_0123456789abcdef\n")
        .replace("GITHUB_ORG=\n", "GITHUB_ORG=acme\n")
        .replace("WEBHOOK_SECRET=\n", "WEBHOOK_SECRET=0123456789abcdef\n")
}

fn load(dotenv: &str) -> Result<Loaded, Faults> {
    Source::new([], std::env::current_dir().unwrap()).load_with(dotenv.as_bytes())
}

#[test]
fn the_files_about_the_settings_are_what_the_rows_make() {
    for (name, text) in [(".env.example", config::example()), ("docs/configuration.md", config::reference())]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap().replace("\r\n", "\n");
        assert!(committed == text, "{name} is out of date: run `UPDATE=1 cargo test --test it settings`");
    }
}

#[test]
fn env_example_sets_every_setting_once_and_nothing_else() {
    let example = config::example();
    let names: Vec<_> = example
        .lines()
        .filter_map(|line| line.strip_prefix("# ").unwrap_or(line).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect();
    assert_eq!(names, SETTINGS.iter().map(|s| s.name).collect::<Vec<_>>());
}

#[test]
fn an_untouched_env_example_lacks_exactly_what_is_required() {
    let faults = load(&config::example()).unwrap_err().to_string();
    let is_required =
        |s: &&Setting| matches!(s.fallback, Fallback::Required { .. } | Fallback::RequiredUnless { .. });
    let mut required: Vec<_> = SETTINGS.iter().filter(is_required).map(|s| s.name).collect();
    let mut lacking: Vec<_> = faults.lines().map(|line| line.split_once(": not set").unwrap().0).collect();
    required.sort();
    lacking.sort();
    assert_eq!(lacking, required);
}

#[test]
fn a_filled_in_env_example_loads_without_a_warning() {
    assert_eq!(load(&filled_in()).unwrap().warnings, [""; 0]);
}

#[test]
fn uncommenting_every_line_of_env_example_changes_nothing() {
    let example = filled_in();
    let is_setting =
        |line: &str| line.split_once('=').is_some_and(|(name, _)| SETTINGS.iter().any(|s| s.name == name));
    let uncommented: String = example
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line))
        // The defaults of paths are written for Windows.
        .map(|line| format!("{}\n", line.replace('\\', std::path::MAIN_SEPARATOR_STR)))
        .collect();
    assert_ne!(uncommented, example);
    assert_eq!(load(&uncommented).unwrap().config, load(&example).unwrap().config);
}

#[test]
fn help_shows_every_setting_under_its_group_with_its_default() {
    let help = commands::help();
    for setting in SETTINGS {
        let heading = format!("\n{}\n", setting.group.to_uppercase());
        let group = help.split_once(&heading).unwrap_or_else(|| panic!("no heading {heading:?}")).1;
        let group = group.split_once("\n\n").unwrap_or((group, "")).0;
        let name = format!("  {}={}", setting.name, setting.syntax());
        let entry = group.split_once(&name).unwrap_or_else(|| panic!("{} is missing", setting.name)).1;
        assert!(entry.trim_start().starts_with(&setting.fallback.to_string()), "{}", setting.name);
    }
}

#[test]
fn what_users_read_fits_a_hundred_columns_in_plain_ascii() {
    for text in [commands::help(), config::example(), config::reference()] {
        for line in text.lines() {
            assert!(line.len() <= 100 && line.is_ascii() && line.trim_end() == line, "{line:?}");
        }
    }
}

#[test]
fn help_names_the_commands_the_version_and_the_exit_codes() {
    let help = commands::help();
    // Only Windows calls `service run`.
    for command in COMMANDS.iter().filter(|command| command.name != "service run") {
        assert!(help.contains(&format!("\n  {}", command.name)), "{}", command.name);
    }
    for text in ["(none)", "USE_MOCK", env!("CARGO_PKG_VERSION")] {
        assert!(help.contains(text), "{text}");
    }
    let codes = help.split_once("EXIT CODES\n").unwrap().1.split_once("\n\n").unwrap().0;
    let codes: Vec<_> = codes.lines().map(|line| line.trim().split_once("  ").unwrap().0).collect();
    assert_eq!(codes, ["0", "1", "2"]);
}

#[test]
fn without_settings_in_the_working_directory_those_beside_the_program_count() {
    let folder = std::env::temp_dir().join(format!("pool-folder-{}", std::process::id()));
    let (programs, working) = (folder.join("program"), folder.join("working"));
    fs::create_dir_all(&programs).unwrap();
    fs::create_dir_all(&working).unwrap();
    let program = programs.join("hyperv-runner-pool");
    fs::copy(env!("CARGO_BIN_EXE_hyperv-runner-pool"), &program).unwrap();
    let check = || {
        let output = Command::new(&program).arg("check").current_dir(&working).env_clear().output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    fs::write(programs.join(".env"), "USE_MOCK=true\nPORT=beside").unwrap();
    assert!(check().contains("PORT (.env line 2): `beside`"), "{}", check());
    fs::write(working.join(".env"), "USE_MOCK=true\nPORT=here").unwrap();
    assert!(check().contains("PORT (.env line 2): `here`"), "{}", check());
    fs::remove_dir_all(&folder).unwrap();
}

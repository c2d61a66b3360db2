use super::settings::Kind;
use super::*;

const REQUIRED: [(&str, &str); 3] =
    [("GITHUB_PAT", "ghp_hunter2hunter2"), ("GITHUB_ORG", "acme"), ("WEBHOOK_SECRET", "swordfish-swordfish")];

fn work() -> PathBuf {
    std::env::current_dir().unwrap()
}

fn source(environment: &[(&str, &str)], folder: PathBuf) -> Source {
    Source::new(environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))), folder)
}

fn load_both(environment: &[(&str, &str)], dotenv: &str) -> Result<Loaded, Faults> {
    let result = source(environment, work()).load_with(dotenv.as_bytes());
    if let Err(faults) = &result {
        assert!(!faults.faults.is_empty(), "an error without a word");
    }
    result
}

/// With the required settings, and these besides (or instead).
fn load(settings: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load_both(&[&REQUIRED, settings].concat(), "")
}

fn config(settings: &[(&str, &str)]) -> Config {
    load(settings).unwrap_or_else(|faults| panic!("{faults}")).config
}

fn mock(settings: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load_both(&[&[("USE_MOCK", "true")], settings].concat(), "")
}

/// All faults, one per line.
fn faults(settings: &[(&str, &str)]) -> String {
    load(settings).err().unwrap_or_else(|| panic!("{settings:?} is accepted")).to_string()
}

/// The one fault that this value of a setting is.
fn fault(name: &str, value: &str) -> String {
    let faults = faults(&[(name, value)]);
    assert_eq!(faults.lines().count(), 1, "{faults}");
    assert!(faults.starts_with(name) && faults.ends_with('.'), "{faults}");
    faults
}

fn assert_fault(name: &str, value: &str, words: &str) {
    let fault = fault(name, value);
    assert!(fault.contains(words), "{name}={value}: {fault:?} lacks {words:?}");
}

#[test]
fn the_three_required_settings_are_enough() {
    let loaded = load(&[]).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    let config = loaded.config;
    assert_eq!(
        config.github,
        GitHubConfig {
            api_url: "https://api.github.com".into(),
            pat: Some(Secret::new("ghp_hunter2hunter2")),
            app_id: None,
            app_key: None,
            org: "acme".into(),
            repo: None,
            registration: RegistrationMode::Jit,
            runner_group: "Default".into(),
            labels: ["self-hosted", "Windows", "X64", "ephemeral"].map(String::from).into(),
            intake: Intake::Webhook,
            scale_set: "runner".into(),
        }
    );
    assert_eq!(
        config.hyperv,
        HyperVConfig {
            template_path: work().join("vms").join("templates").join("runner-template.vhdx"),
            storage_path: work().join("vms").join("storage"),
            disk_mode: DiskMode::Differencing,
            memory_mb: 4096,
            memory_max_mb: None,
            cpu_count: 2,
            switch: "Default Switch".into(),
            isolation: Isolation::Auto,
            allow: Vec::new(),
            github_server: None,
            secure_boot: "MicrosoftWindows".into(),
            nested_virtualization: false,
            orchestrator_ip: None,
            port: 8080,
        }
    );
    assert_eq!(
        config.pool,
        PoolConfig {
            name_prefix: "runner-".into(),
            size: 4,
            warm: 4,
            surplus_after: Duration::from_secs(600),
            max_idle: Duration::from_secs(86_400),
            max_concurrent_creates: 2,
            min_free_bytes: 10 * 1024 * 1024 * 1024,
            keep_failed: false,
            boot_timeout: Duration::from_secs(600),
            job_timeout: Duration::from_secs(21_600),
            poll: Duration::from_secs(30),
            shutdown: Shutdown::Keep,
        }
    );
    assert_eq!(config.http, HttpConfig { bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 8080 });
    assert_eq!(config.webhook_secret, Some(Secret::new("swordfish-swordfish")));
    assert!(!config.mock);
    assert_eq!(
        config.log,
        LogConfig {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
            dir: None,
            keep_days: 14,
            event_log: false
        }
    );
}

#[test]
fn a_simulation_needs_nothing() {
    let config = mock(&[]).unwrap().config;
    assert!(config.mock);
    assert_eq!(config.github.pat, None);
    assert_eq!(config.github.org, "mock-org");
    assert_eq!(config.webhook_secret, Some(Secret::new("mock-secret")));
    let ms = Duration::from_millis;
    assert_eq!(config.mock_timing, MockTiming { create: ms(500), boot: ms(1500), job: ms(3000) });
}

#[test]
fn simulated_vms_on_the_real_github_need_the_real_organization() {
    let faults = mock(&[("GITHUB_PAT", "ghp_x1")]).unwrap_err().to_string();
    assert!(faults.starts_with("GITHUB_ORG: not set") && faults.lines().count() == 1, "{faults}");
    let config = mock(&[("GITHUB_PAT", "ghp_x1"), ("GITHUB_ORG", "acme")]).unwrap().config;
    assert_eq!((config.github.org.as_str(), config.mock), ("acme", true));
}

/// A GitHub App in place of the token.
fn load_app(settings: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load_both(&[&REQUIRED[1..], settings].concat(), "")
}

fn app_key() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/github-app/pkcs1.pem");
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_github_app_takes_the_place_of_the_token() {
    for id in ["123456", "Iv1.0123456789abcdef", "Iv23liAbCdEfGhIjKlMn"] {
        let app = [("GITHUB_APP_ID", id), ("GITHUB_APP_PRIVATE_KEY_PATH", &app_key())];
        let github = load_app(&app).unwrap_or_else(|faults| panic!("{faults}")).config.github;
        let Some(Credential::App { id: read, key }) = github.credential() else { panic!("{github:?}") };
        assert_eq!((read.as_str(), format!("{key:?}")), (id, "***".to_owned()));
    }
}

#[test]
fn the_key_is_found_from_the_folder_of_the_settings() {
    let folder = Folder::new("app-key");
    std::fs::copy(app_key(), folder.0.join("app.pem")).unwrap();
    folder.write("GITHUB_APP_ID=123456\nGITHUB_APP_PRIVATE_KEY_PATH=app.pem\n");
    let source = source(&[], folder.0.clone());
    assert!(matches!(source.credential(), Ok(Some(Credential::App { .. }))));
    std::fs::remove_file(folder.0.join("app.pem")).unwrap();
    let fault = source.credential().unwrap_err();
    assert!(fault.starts_with("GITHUB_APP_PRIVATE_KEY_PATH (.env line 2)"), "{fault}");
    assert!(fault.contains("app.pem") && fault.contains("cannot be read"), "{fault}");
}

#[test]
fn a_token_and_an_app_neither_or_half_an_app_are_one_fault_each() {
    let key = app_key();
    let (id, key) = (("GITHUB_APP_ID", "123456"), ("GITHUB_APP_PRIVATE_KEY_PATH", &*key));
    for (settings, begin, words) in [
        (&[][..], "GITHUB_PAT: not set;", "GITHUB_APP_PRIVATE_KEY_PATH"),
        (&[id], "GITHUB_APP_PRIVATE_KEY_PATH: not set,", "GITHUB_APP_ID"),
        (&[key], "GITHUB_APP_ID: not set,", "GITHUB_APP_PRIVATE_KEY_PATH"),
        (&[REQUIRED[0], id], "GITHUB_PAT: set, but GITHUB_APP_ID is too", "remove one"),
        (&[REQUIRED[0], key], "GITHUB_PAT: set, but GITHUB_APP_PRIVATE_KEY_PATH is too", "remove one"),
        (&[REQUIRED[0], id, key], "GITHUB_PAT: set, but GITHUB_APP_ID is too", "remove one"),
        (&[("GITHUB_PAT", "ghp_1 2")], "GITHUB_PAT (in the environment): the value contains a space", "copy"),
        (&[("GITHUB_APP_ID", "my app"), key], "GITHUB_APP_ID (in the environment): `my app`", "Client ID"),
        (&[("GITHUB_APP_ID", "<id>"), key], "GITHUB_APP_ID (in the environment): `<id>`", "Client ID"),
    ] {
        let faults = load_app(settings).unwrap_err().to_string();
        assert_eq!(faults.lines().count(), 1, "{faults}");
        assert!(faults.starts_with(begin) && faults.contains(words), "{faults}");
    }
}

#[test]
fn simulated_vms_on_the_real_github_take_an_app_too() {
    let key = app_key();
    let app = [("GITHUB_APP_ID", "123456"), ("GITHUB_APP_PRIVATE_KEY_PATH", &*key)];
    let faults = mock(&app).unwrap_err().to_string();
    assert!(
        faults.starts_with("GITHUB_ORG: not set; GITHUB_APP_ID") && faults.lines().count() == 1,
        "{faults}"
    );
    let config = mock(&[&app[..], &[("GITHUB_ORG", "acme")]].concat()).unwrap().config;
    assert!(matches!(config.github.credential(), Some(Credential::App { .. })));
}

#[test]
fn a_key_in_the_place_of_its_path_is_not_shown() {
    let key = std::fs::read_to_string(app_key()).unwrap();
    for value in [key.clone(), key.replace('\n', " "), key.lines().next().unwrap().to_owned()] {
        let faults = load_app(&[("GITHUB_APP_ID", "123456"), ("GITHUB_APP_PRIVATE_KEY_PATH", &value)]);
        let faults = faults.unwrap_err().to_string();
        assert!(faults.contains("does not belong here; use PATH") && !faults.contains("MII"), "{faults}");
    }
    let dotenv = format!("GITHUB_APP_ID=123456\nGITHUB_APP_PRIVATE_KEY_PATH={key}");
    let faults = load_both(&REQUIRED[1..], &dotenv).unwrap_err();
    let shown = format!("{faults}{:?}", faults.warnings());
    assert!(key.lines().skip(1).all(|line| !shown.contains(line) || line.starts_with("---")), "{shown}");
}

#[test]
fn all_faults_come_at_once_each_on_its_line() {
    let faults = load_both(&[("POOL_SIZE", "0"), ("PORT", "x"), ("LOG_LEVEL", "loud")], "SHUTDOWN='keep\n")
        .unwrap_err()
        .to_string();
    let mut names: Vec<_> = faults.lines().map(|line| line.split([':', ' ']).next().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        ["GITHUB_ORG", "GITHUB_PAT", "LOG_LEVEL", "POOL_SIZE", "PORT", "SHUTDOWN", "WEBHOOK_SECRET"]
    );
}

#[test]
fn a_wrong_use_mock_is_one_fault_and_not_four() {
    let faults = load_both(&[("USE_MOCK", "ture")], "").unwrap_err().to_string();
    assert_eq!(faults, "USE_MOCK (in the environment): `ture` must be true or false.");
}

#[test]
fn the_environment_comes_before_dotenv_and_an_empty_value_is_none() {
    let dotenv = "POOL_SIZE=7\nVM_SWITCH=LAN\nLOG_LEVEL=\n";
    let env = [&REQUIRED[..], &[("POOL_SIZE", "5"), ("VM_SWITCH", "  "), ("PORT", "")]].concat();
    let config = load_both(&env, dotenv).unwrap().config;
    assert_eq!((config.pool.size, config.hyperv.switch.as_str()), (5, "LAN"));
    assert_eq!((config.http.port, config.log.level), (8080, log::LevelFilter::Info));
}

#[test]
fn a_fault_says_where_the_value_is_set() {
    assert_fault("POOL_SIZE", "0", "POOL_SIZE (in the environment): `0` is not a whole number from 1 to");
    let faults = load_both(&REQUIRED, "\r\nPOOL_SIZE=0\r\n").unwrap_err().to_string();
    assert!(faults.starts_with("POOL_SIZE (.env line 2): `0` is not a whole number"), "{faults}");
}

#[test]
fn an_unreadable_line_of_dotenv_is_not_also_a_missing_setting() {
    let faults = load_both(&REQUIRED[1..], "GITHUB_PAT='ghp_hunter2").unwrap_err().to_string();
    assert!(faults.starts_with("GITHUB_PAT (.env line 1): the quote is not closed"), "{faults}");
    assert_eq!(faults.lines().count(), 1, "{faults}");
}

#[test]
fn a_name_set_twice_in_dotenv_warns_and_the_last_counts() {
    let loaded = load_both(&REQUIRED, "POOL_SIZE=2\nPOOL_SIZE=3\n").unwrap();
    assert_eq!(loaded.config.pool.size, 3);
    assert!(loaded.warnings[0].contains(".env line 1 sets it, and line 2 again"), "{:?}", loaded.warnings);
}

#[test]
fn an_unknown_name_in_dotenv_warns_with_the_nearest_one() {
    let warnings = load_both(&REQUIRED, "POOLSIZE=3\nHTTP_PROXY=x\n").unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "POOLSIZE (.env line 1) is not a setting; did you mean POOL_SIZE?",
            ".env line 2 sets something that is not a setting; --help lists them all."
        ]
    );
}

#[test]
fn warnings_come_with_faults_too() {
    let faults = load_both(&REQUIRED[..2], "WEBHOOK_SECRT=x\n").unwrap_err();
    assert!(faults.to_string().starts_with("WEBHOOK_SECRET: not set"));
    assert!(faults.warnings()[0].contains("did you mean WEBHOOK_SECRET?"));
}

#[test]
fn no_message_shows_a_secret() {
    let dotenv = "
        GITHUB_PAT=ghp_hunter2 hunter2
        WEBHOOK_SECRET=hunter2\thunter2
        hunter2hunter2==
        hunter2
        GITHUB_ORG=ghp_hunter2hunter2hunter2
        GITHUB_REPO=github_pat_hunter2hunter2
        GITHUB_API_URL=https://me:hunter2@example.com
        RUNNER_NAME_PREFIX=hunter2\thunter2
        POOL_SIZE='hunter2
        RUNNER_GROUP=ghp_hunter2hunter2hunter2
    ";
    let faults = load_both(&[("PORT", "hunter2\thunter2")], dotenv).unwrap_err();
    assert!(faults.faults.len() > 8, "{faults}");
    assert!(!format!("{faults} {faults:?}").contains("hunter2"), "{faults}");
    let loaded = load(&[("WEBHOOK_SECRET", "hunter2")]).unwrap();
    assert!(loaded.warnings[0].contains("shorter than 16"));
    assert!(!format!("{loaded:?}").contains("hunter2"));
}

#[test]
fn a_token_in_the_wrong_setting_is_refused_even_where_it_would_fit() {
    assert_fault("GITHUB_REPO", "github_pat_0123456789", "does not belong here");
    assert_fault("VM_SWITCH", "ghp_0123456789abcdef", "does not belong here");
}

#[test]
fn a_value_is_shown_short_and_on_one_line() {
    let fault = fault("VM_SWITCH", &format!("a\n{}", "b".repeat(500)));
    assert!(fault.len() < 250, "{fault}");
}

#[test]
fn a_value_that_is_not_unicode_is_a_fault() {
    #[cfg(unix)]
    let broken: OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![b'4', 0xff]);
    #[cfg(windows)]
    let broken: OsString = std::os::windows::ffi::OsStringExt::from_wide(&[0x34, 0xd800]);
    let environment = [("USE_MOCK".into(), "1".into()), ("POOL_SIZE".into(), broken)];
    let faults = Source::new(environment, work()).load_with(b"").unwrap_err().to_string();
    assert!(
        faults.starts_with("POOL_SIZE (in the environment): `4\u{fffd}` is not a whole number"),
        "{faults}"
    );
}

#[test]
fn quotes_that_cmd_leaves_around_a_value_are_a_fault() {
    assert_fault("VM_SWITCH", "\"LAN\"", "`set VM_SWITCH=value`");
    assert_fault("GITHUB_PAT", "\"ghp_x1\"", "double quotes");
    let config = load_both(&REQUIRED, "VM_SWITCH=\"LAN\"").unwrap().config;
    assert_eq!(config.hyperv.switch, "LAN");
}

#[test]
fn a_token_has_no_spaces_and_only_ascii() {
    for (value, words) in [
        ("ghp_a b", "a space"),
        ("ghp_a\n", "a line break"),
        (" ghp_a", "a space"),
        ("ghp_\u{e9}", "is not ASCII"),
        ("'ghp_a'", "quotes"),
        ("ghp_xxxxxxxxxxxxxxxx", "placeholder"),
        ("your-token", "placeholder"),
        ("<token>", "placeholder"),
    ] {
        assert_fault("GITHUB_PAT", value, words);
    }
}

#[test]
fn a_guessable_webhook_secret_is_refused_and_a_short_one_warned_about() {
    for value in ["changeme", "Change-Me", "your-webhook-secret", "secret", "mock-secret", "xxx", "<secret>"]
    {
        assert_fault("WEBHOOK_SECRET", value, "placeholder");
    }
    assert_fault("WEBHOOK_SECRET", "0123456789\nabcdef", "line break");
    assert_fault("WEBHOOK_SECRET", "0123456789\u{fffd}abcdef", "not Unicode");
    let warnings = |value| load(&[("WEBHOOK_SECRET", value)]).unwrap().warnings.len();
    assert_eq!(warnings("0123456789abcdef"), 0);
    assert_eq!(warnings("0123456789abcde"), 1);
    assert_eq!(warnings("0123456789abcdef "), 1);
    assert_eq!(mock(&[("WEBHOOK_SECRET", "secret")]).unwrap().warnings, [""; 0]);
}

#[test]
fn an_organization_given_as_something_else_is_told_what_to_write() {
    for value in ["https://github.com/acme", "@acme", "acme/widgets", "Acme Ltd", "-acme"] {
        assert_fault("GITHUB_ORG", value, "write only the name, such as acme for https://github.com/acme");
    }
    assert_eq!(config(&[("GITHUB_ORG", "mona-cat_acme")]).github.org, "mona-cat_acme");
}

#[test]
fn a_repository_is_its_name_alone() {
    assert_eq!(config(&[("GITHUB_REPO", ".github")]).github.repo.as_deref(), Some(".github"));
    for value in ["acme/widgets", "https://github.com/acme/widgets", "widgets.git", "..", "my widgets"] {
        assert_fault("GITHUB_REPO", value, "write only the name, such as widgets");
    }
}

#[test]
fn a_repository_has_no_runner_groups() {
    let faults = faults(&[("GITHUB_REPO", "widgets"), ("RUNNER_GROUP", "builders")]);
    assert!(faults.starts_with("RUNNER_GROUP: it is `builders`, but GITHUB_REPO is `widgets`"), "{faults}");
    assert_eq!(faults.lines().count(), 1);
    let config_of_repo = config(&[("GITHUB_REPO", "widgets"), ("RUNNER_GROUP", "default")]);
    assert_eq!(config_of_repo.github.runner_group, "Default");
    assert_eq!(config(&[("RUNNER_GROUP", "builders")]).github.runner_group, "builders");
}

#[test]
fn the_api_url_is_encrypted_or_on_this_machine() {
    for (value, url) in [
        ("https://ghe.example.com/api/v3", "https://ghe.example.com/api/v3"),
        ("https://ghe.example.com/api/v3//", "https://ghe.example.com/api/v3"),
        ("HTTPS://GHE.example.com:8443/api/v3", "https://ghe.example.com:8443/api/v3"),
        ("https://api.acme.ghe.com/", "https://api.acme.ghe.com"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://localhost/x", "http://localhost/x"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
    ] {
        let loaded = load(&[("GITHUB_API_URL", value)]).unwrap();
        assert_eq!((loaded.config.github.api_url.as_str(), loaded.warnings.len()), (url, 0), "{value}");
    }
    for (value, words) in [
        ("http://ghe.example.com/api/v3", "write https://"),
        ("http://127.0.0.1.example.com", "write https://"),
        ("http://localhost.example.com", "write https://"),
        ("ghe.example.com/api/v3", "not the URL of an API"),
        ("ftp://ghe.example.com", "not the URL of an API"),
        ("https://", "not the URL of an API"),
        ("https:///api/v3", "not the URL of an API"),
        ("https://a:b:c", "not the URL of an API"),
        ("https://a:", "not the URL of an API"),
        ("https://[::1", "not the URL of an API"),
        ("https://a b", "not the URL of an API"),
        ("https://a/\u{e9}", "not the URL of an API"),
        ("https://a/b?c", "not the URL of an API"),
        ("https://github.com/acme", "https://api.github.com"),
        ("https://me@example.com", "a password"),
    ] {
        assert_fault("GITHUB_API_URL", value, words);
    }
    let warnings = load(&[("GITHUB_API_URL", "https://ghe.example.com")]).unwrap().warnings;
    assert!(warnings[0].contains("/api/v3"), "{warnings:?}");
}

#[test]
fn a_name_prefix_is_fit_for_file_names_and_for_github() {
    for value in ["a b", "a/b", "\u{e4}-", ".a", &"a".repeat(41)] {
        assert_fault("RUNNER_NAME_PREFIX", value, "at most 40");
    }
    for value in ["a", "Build_01.x-", &"a".repeat(40)] {
        assert_eq!(config(&[("RUNNER_NAME_PREFIX", value)]).pool.name_prefix, value);
    }
}

#[test]
fn labels_are_added_once_each() {
    let labels = config(&[("RUNNER_LABELS", " gpu , windows,GPU,Visual Studio ")]).github.labels;
    assert_eq!(labels, ["self-hosted", "Windows", "X64", "ephemeral", "gpu", "Visual Studio"]);
    assert_fault("RUNNER_LABELS", "a,,b", "an empty label");
    assert_fault("RUNNER_LABELS", "a,", "an empty label");
    assert_fault("RUNNER_LABELS", &"a".repeat(257), "256");
    let many = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(config(&[("RUNNER_LABELS", &many(96))]).github.labels.len(), 100);
    assert_fault("RUNNER_LABELS", &many(97), "at most 96");
}

#[test]
fn every_number_is_held_to_the_range_of_the_table() {
    for setting in SETTINGS {
        let Kind::Number(min, max, _) = setting.kind else { continue };
        for bad in [max + 1, max + 2, min.saturating_sub(1)] {
            if !(min..=max).contains(&bad) {
                assert_fault(setting.name, &bad.to_string(), &format!("from {min} to {max}"));
            }
        }
        for bad in ["-1", "4.5", "4 GB", "0x10", "four", "99999999999999999999999"] {
            assert_fault(setting.name, bad, "is not a whole number");
        }
    }
}

#[test]
fn every_choice_and_flag_takes_its_words_in_any_case_and_no_other() {
    for setting in SETTINGS {
        let (good, listed): (Vec<&str>, _) = match setting.kind {
            Kind::Choice(choices, _) => (choices.to_vec(), choices.join(", ")),
            Kind::Flag(_) => ("true 1 yes on false 0 no off".split(' ').collect(), "true or false".into()),
            _ => continue,
        };
        for value in good {
            let upper = value.to_uppercase();
            assert_eq!(config(&[(setting.name, &upper)]), config(&[(setting.name, value)]));
        }
        assert_fault(setting.name, "maybe", &listed);
    }
}

#[test]
fn choices_and_flags_mean_what_they_say() {
    let config = config(&[
        ("RUNNER_REGISTRATION", "token"),
        ("SHUTDOWN", "Destroy"),
        ("VM_DISK_MODE", "copy"),
        ("VM_SECURE_BOOT", "microsoftueficertificateauthority"),
        ("VM_NESTED_VIRTUALIZATION", "Yes"),
        ("VM_ISOLATION", "ON"),
        ("LOG_LEVEL", "trace"),
        ("LOG_FORMAT", "json"),
        ("LOG_DIR", "logs"),
        ("LOG_KEEP_DAYS", "30"),
    ]);
    assert_eq!(config.github.registration, RegistrationMode::Token);
    assert_eq!(config.pool.shutdown, Shutdown::Destroy);
    assert_eq!(config.hyperv.disk_mode, DiskMode::Copy);
    assert_eq!(config.hyperv.secure_boot, "MicrosoftUEFICertificateAuthority");
    assert!(config.hyperv.nested_virtualization);
    assert_eq!(config.hyperv.isolation, Isolation::On);
    let dir = Some(work().join("logs"));
    let (level, format) = (log::LevelFilter::Trace, LogFormat::Json);
    assert_eq!(config.log, LogConfig { level, format, dir, keep_days: 30, event_log: false });
}

#[test]
fn every_default_of_the_table_is_a_value_that_it_would_accept() {
    for setting in SETTINGS {
        if let Fallback::Default(value) = setting.fallback {
            let same = config(&[(setting.name, &value.replace('\\', std::path::MAIN_SEPARATOR_STR))]);
            assert_eq!(same, config(&[]), "{}", setting.name);
        }
    }
}

#[test]
fn the_pool_is_warm_as_a_whole_unless_told_otherwise() {
    assert_eq!(config(&[("POOL_SIZE", "9")]).pool.warm, 9);
    assert_eq!(config(&[("POOL_WARM", "0")]).pool.warm, 0);
    let conflict = faults(&[("POOL_SIZE", "2"), ("POOL_WARM", "3")]);
    assert_eq!(conflict, "POOL_WARM: 3 is more than POOL_SIZE, which is 2; lower it, or raise POOL_SIZE.");
}

#[test]
fn without_webhooks_there_need_be_no_webhook_secret() {
    let without = |intake: &[(&str, &str)]| load(&[&[("WEBHOOK_SECRET", "")], intake].concat());
    let faults = without(&[]).unwrap_err().to_string();
    assert!(faults.starts_with("WEBHOOK_SECRET: not set; put the secret of GitHub's webhook"), "{faults}");
    for (word, intake) in [("ScaleSet", Intake::ScaleSet), ("none", Intake::None)] {
        let loaded = without(&[("INTAKE", word)]).unwrap();
        assert_eq!((loaded.config.github.intake, loaded.config.webhook_secret), (intake, None));
        assert_eq!(loaded.warnings, [""; 0]);
    }
}

#[test]
fn a_scale_set_is_called_as_its_runners_are_unless_it_has_a_name_of_its_own() {
    let name = |settings: &[(&str, &str)]| config(settings).github.scale_set;
    assert_eq!(name(&[("RUNNER_NAME_PREFIX", "build-a_")]), "build-a");
    assert_eq!(name(&[("RUNNER_NAME_PREFIX", "build")]), "build");
    assert_eq!(name(&[("RUNNER_NAME_PREFIX", "build-"), ("SCALE_SET_NAME", "win 1")]), "win 1");
}

#[test]
fn what_a_way_to_learn_of_jobs_does_not_go_with_is_named() {
    let faults = faults(&[("INTAKE", "scaleset"), ("RUNNER_REGISTRATION", "token")]);
    assert!(faults.starts_with("RUNNER_REGISTRATION: it is `token`, but INTAKE is `scaleset`"), "{faults}");
    let faults = mock(&[("INTAKE", "scaleset")]).unwrap_err().to_string();
    assert!(faults.starts_with("INTAKE: `scaleset` needs the real GitHub; set GITHUB_PAT"), "{faults}");
    mock(&[("INTAKE", "scaleset"), ("GITHUB_PAT", "ghp_hunter2hunter2"), ("GITHUB_ORG", "acme")]).unwrap();

    let none = |warm| load(&[("INTAKE", "none"), ("POOL_WARM", warm)]);
    let faults = none("0").unwrap_err().to_string();
    assert!(
        faults.starts_with("POOL_WARM: 0 with INTAKE `none` is a pool that never creates a VM"),
        "{faults}"
    );
    let warnings = none("3").unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("never more than 3 VMs"), "{warnings:?}");
    let of_repo = [("INTAKE", "none"), ("POOL_WARM", "0"), ("GITHUB_REPO", "app")];
    assert_eq!(load(&of_repo).unwrap().warnings, [""; 0]);
}

#[test]
fn a_setting_that_is_wrong_itself_is_not_also_in_conflict() {
    let faults =
        faults(&[("POOL_SIZE", "x"), ("POOL_WARM", "9"), ("VM_MEMORY_MB", "x"), ("VM_MEMORY_MAX_MB", "512")]);
    assert_eq!(faults.lines().count(), 2, "{faults}");
}

#[test]
fn memory_is_even_and_its_maximum_no_less_than_its_start() {
    assert_fault("VM_MEMORY_MB", "4097", "use 4096");
    assert_fault("VM_MEMORY_MAX_MB", "8193", "use 8192");
    assert_fault("VM_MEMORY_MAX_MB", "2048", "less than VM_MEMORY_MB");
    assert_eq!(config(&[("VM_MEMORY_MAX_MB", "4096")]).hyperv.memory_max_mb, Some(4096));
}

#[test]
fn times_are_seconds_or_have_a_unit() {
    for (value, seconds) in
        [("90", 90), ("90s", 90), ("5m", 300), ("2 H", 7200), ("1.5h", 5400), ("24h", 86_400)]
    {
        assert_eq!(config(&[("BOOT_TIMEOUT", value)]).pool.boot_timeout, Duration::from_secs(seconds));
    }
    for value in ["10", "25h", "99999999999999999999h", "6d", "m", "-5m", "nan"] {
        assert_fault("BOOT_TIMEOUT", value, "is not a time from 30s to 24h");
    }
    assert_eq!(mock(&[("BOOT_TIMEOUT", "1")]).unwrap().config.pool.boot_timeout, Duration::from_secs(1));
    assert!(mock(&[("BOOT_TIMEOUT", "0")]).is_err());
}

#[test]
fn simulated_times_take_decimals() {
    let timing =
        mock(&[("MOCK_JOB_SECONDS", "0.05"), ("MOCK_BOOT_SECONDS", "0")]).unwrap().config.mock_timing;
    assert_eq!((timing.job, timing.boot), (Duration::from_millis(50), Duration::ZERO));
    for value in ["-1", "nan", "inf", "86401", "1e99"] {
        assert_fault("MOCK_JOB_SECONDS", value, "is not a time from 0s to 24h");
    }
}

#[test]
fn paths_become_absolute_and_lose_a_separator_at_the_end() {
    let config = config(&[("VM_STORAGE_PATH", "my disks/"), ("VM_TEMPLATE_PATH", "./t/x.VHDX")]);
    assert_eq!(config.hyperv.storage_path.as_os_str(), work().join("my disks").as_os_str());
    assert_eq!(config.hyperv.template_path.as_os_str(), work().join("t").join("x.VHDX").as_os_str());
}

#[cfg(windows)]
#[test]
fn windows_paths_are_kept_or_completed() {
    let storage = |value| config(&[("VM_STORAGE_PATH", value)]).hyperv.storage_path;
    assert_eq!(storage(r"D:\vms\new\").as_os_str(), r"D:\vms\new");
    assert_eq!(storage(r"D:/vms/../new").as_os_str(), r"D:\new");
    assert_eq!(storage(r"\\server\share\vms").as_os_str(), r"\\server\share\vms");
    assert_fault("VM_STORAGE_PATH", "Q:vms", "a drive's current folder");
}

#[test]
fn a_path_that_windows_cannot_have_is_refused() {
    assert_fault("VM_STORAGE_PATH", r"C:\a*b", "no Windows path");
    assert_fault("VM_STORAGE_PATH", "C:\\a\tb", "no Windows path");
    assert_fault("VM_STORAGE_PATH", r"\\?\C:\vms", "device path");
    assert_fault("VM_TEMPLATE_PATH", r"C:\vms\template.vhd", ".vhdx");
    assert_fault("VM_TEMPLATE_PATH", r"C:\vms", ".vhdx");
}

#[test]
fn the_orchestrators_address_is_one_that_a_vm_can_use() {
    let ip = config(&[("ORCHESTRATOR_IP", "192.168.1.10")]).hyperv.orchestrator_ip;
    assert_eq!(ip, Some(IpAddr::from([192, 168, 1, 10])));
    for (value, words) in [
        ("0.0.0.0", "not a host's address"),
        ("255.255.255.255", "not a host's address"),
        ("224.0.0.1", "not a host's address"),
        ("127.0.0.1", "would mean the VM itself"),
        ("http://10.0.0.1:8080", "not an IPv4 address alone"),
        ("10.0.0.1:8080", "belongs in PORT"),
        ("my-host", "not an IPv4 address alone"),
        ("10.0.0.256", "not an IPv4 address alone"),
        ("fe80::1", "not an IPv4 address alone"),
    ] {
        assert_fault("ORCHESTRATOR_IP", value, words);
    }
    assert!(mock(&[("ORCHESTRATOR_IP", "127.0.0.1")]).is_ok());
}

#[test]
fn what_walled_off_vms_may_reach_are_addresses_with_ports() {
    let allow = config(&[("VM_ALLOW", "10.0.0.5:3128, 192.168.1.20:8443,10.0.0.5:3128")]).hyperv.allow;
    assert_eq!(
        allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.5:3128", "192.168.1.20:8443"]
    );
    for value in [
        "proxy:3128",
        "10.0.0.5",
        "10.0.0.5:0",
        "10.0.0.5:70000",
        "10.0.0.0/8:443",
        "[fd00::1]:443",
        "127.0.0.1:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "10.0.0.5:80,",
        "10.0.0.5:80;10.0.0.6:80",
    ] {
        assert_fault(
            "VM_ALLOW",
            value,
            "which is not a host's IPv4 address with a port; write pairs such as",
        );
    }
}

#[test]
fn walled_off_vms_may_reach_a_github_that_is_not_on_the_internet() {
    let server = |url| config(&[("GITHUB_API_URL", url)]).hyperv.github_server;
    assert_eq!(server("https://ghes.corp/api/v3").as_deref(), Some("ghes.corp:443"));
    assert_eq!(server("https://10.0.0.9:8443/api/v3").as_deref(), Some("10.0.0.9:8443"));
    for url in ["https://api.github.com", "http://127.0.0.1:8080", "https://[fd00::1]/api/v3"] {
        assert_eq!(server(url), None, "{url}");
    }
}

#[test]
fn only_a_simulation_may_take_any_port() {
    assert_fault("PORT", "0", "only for USE_MOCK");
    assert_eq!(mock(&[("PORT", "0")]).unwrap().config.http.port, 0);
    assert_eq!(config(&[("PORT", "65535")]).http.port, 65_535);
}

#[test]
fn listening_where_no_vm_can_reach_warns() {
    let loaded = load(&[("BIND", "127.0.0.1")]).unwrap();
    assert!(loaded.warnings[0].starts_with("BIND: VMs cannot reach 127.0.0.1"));
    assert_eq!(mock(&[("BIND", "127.0.0.1")]).unwrap().warnings, [""; 0]);
    assert_fault("BIND", "localhost", "not an IP address");
}

#[test]
fn an_ipv6_address_to_listen_on_is_only_for_a_simulation() {
    for ip in ["::", "::1", "fd00::1"] {
        assert_fault("BIND", ip, "VMs reach the pool over IPv4");
    }
    assert_eq!(mock(&[("BIND", "::1")]).unwrap().config.http.bind.to_string(), "::1");
}

#[test]
fn limits_have_the_units_of_their_names() {
    let pool = config(&[
        ("SURPLUS_MINUTES", "3"),
        ("MAX_IDLE_HOURS", "2"),
        ("MIN_FREE_GB", "0"),
        ("MAX_CONCURRENT_CREATES", "5"),
    ])
    .pool;
    assert_eq!((pool.surplus_after.as_secs(), pool.max_idle.as_secs()), (180, 7200));
    assert_eq!((pool.min_free_bytes, pool.max_concurrent_creates), (0, 5));
}

#[test]
fn a_misspelled_environment_variable_warns_and_another_programs_does_not() {
    let other = [("PATH", "/bin"), ("GITHUB_TOKEN", "ghp_x"), ("GITHUB_PATH", "/x"), ("LOG_FILE", "x")];
    assert_eq!(load(&other).unwrap().warnings, [""; 0]);
    assert_eq!(
        load(&[("POOL_SIZ", "9")]).unwrap().warnings,
        ["POOL_SIZ (in the environment) is not a setting; did you mean POOL_SIZE?"]
    );
    assert!(load_both(&[("GITHUB_PATT", "ghp_x")], "").unwrap_err().warnings()[0].contains("GITHUB_PAT?"));
}

/// A folder that is removed with its content at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("hyperv-runner-pool-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, dotenv: &str) {
        std::fs::write(self.0.join(".env"), dotenv).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_token_and_the_template_are_read_anew() {
    let folder = Folder::new("read-anew");
    let source = source(&[], folder.0.clone());
    folder.write("GITHUB_PAT=ghp_old\nVM_TEMPLATE_PATH=old.vhdx\n");
    assert_eq!(source.credential(), Ok(Some(Credential::Pat(Secret::new("ghp_old")))));
    assert_eq!(source.template_path(), Ok(folder.0.join("old.vhdx")));
    folder.write("GITHUB_PAT=ghp_new\nVM_TEMPLATE_PATH=new.vhdx\n");
    assert_eq!(source.credential(), Ok(Some(Credential::Pat(Secret::new("ghp_new")))));
    assert_eq!(source.template_path(), Ok(folder.0.join("new.vhdx")));
}

#[test]
fn a_value_from_the_environment_stays() {
    let folder = Folder::new("environment-stays");
    folder.write("GITHUB_PAT=ghp_new\nVM_TEMPLATE_PATH=new.vhdx\n");
    let environment = [("GITHUB_PAT", "ghp_env"), ("VM_TEMPLATE_PATH", "env.vhdx")];
    let source = source(&environment, folder.0.clone());
    assert_eq!(source.credential(), Ok(Some(Credential::Pat(Secret::new("ghp_env")))));
    assert_eq!(source.template_path(), Ok(folder.0.join("env.vhdx")));
}

#[test]
fn a_setting_read_anew_has_only_its_own_faults() {
    let folder = Folder::new("own-faults");
    let source = source(&[], folder.0.clone());
    folder.write("POOL_SIZE=many\nVM_TEMPLATE_PATH='x.vhdx\nGITHUB_PAT=ghp_1\nnonsense\n");
    assert_eq!(source.credential(), Ok(Some(Credential::Pat(Secret::new("ghp_1")))));
    let fault = source.template_path().unwrap_err();
    assert!(fault.starts_with("VM_TEMPLATE_PATH (.env line 2): the quote is not closed"), "{fault}");
    folder.write("VM_TEMPLATE_PATH=x.vhd\nGITHUB_PAT=ghp_hunter2 hunter2\n");
    assert!(source.template_path().unwrap_err().contains("`x.vhd` is not the path of a .vhdx file"));
    let fault = source.credential().unwrap_err();
    assert!(fault.contains("contains a space") && !fault.contains("hunter2"), "{fault}");
    folder.write("");
    assert_eq!(source.credential(), Ok(None));
}

#[test]
fn a_folder_called_dotenv_is_a_fault_with_a_way_out() {
    let folder = Folder::new("dotenv-folder");
    let source = source(&REQUIRED, folder.0.clone());
    assert!(source.load().is_ok(), "without .env");
    let dotenv = folder.0.join(".env");
    std::fs::create_dir(&dotenv).unwrap();
    let fault = source.load().unwrap_err().to_string();
    assert!(fault.starts_with(&format!("{} is a folder: remove or rename it", dotenv.display())), "{fault}");
    assert_eq!(source.template_path().unwrap_err(), fault);
}

#[test]
fn a_source_does_not_print_its_environment() {
    assert!(!format!("{:?}", source(&[("GITHUB_PAT", "hunter2")], work())).contains("hunter2"));
}

//! The settings: environment and `.env` become a [`Config`].
//!
//! Every setting stands once in the table [`SETTINGS`]: name, group, what
//! values it takes, default and explanation. Reading, `--help` and
//! `.env.example` all follow that table.
//!
//! All faults are reported at once ([`Faults`]), each with the setting's
//! name, the value's problem and the mend. The value of a secret is never
//! shown, nor is another value that looks as if a secret had slipped into it.

use crate::dotenv;
use crate::github::scope::Scope;
use crate::secret::Secret;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything the program has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How GitHub is reached and what the runners are there.
    pub github: GitHubConfig,
    /// What the VMs are made of.
    pub hyperv: HyperVConfig,
    /// How many VMs, and how long for what.
    pub pool: PoolConfig,
    /// Where the pool listens.
    pub http: HttpConfig,
    /// The secret shared with GitHub's webhook, from which the VMs' secrets
    /// are derived too.
    pub webhook_secret: Secret,
    /// Whether the VMs are simulated; GitHub too, if `github.pat` is `None`.
    pub mock: bool,
    /// How long simulated VMs take.
    pub mock_timing: MockTiming,
    /// What is logged, and where.
    pub log: LogConfig,
}

/// How GitHub is reached and what the runners are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitHubConfig {
    /// Base of the REST API, without a slash at its end.
    pub api_url: String,
    /// The personal access token. `None` only with simulated VMs: then GitHub
    /// is simulated too.
    pub pat: Option<Secret>,
    /// The organization, or the user if `repo` is set.
    pub org: String,
    /// The repository, if the runners serve one only.
    pub repo: Option<String>,
    /// How runners are registered.
    pub registration: RegistrationMode,
    /// The runner group's name. `Default` if `repo` is set.
    pub runner_group: String,
    /// [`FIXED_LABELS`] and then the further ones, without repetition.
    pub labels: Vec<String>,
}

impl GitHubConfig {
    /// Where new runners are registered.
    pub fn scope(&self) -> Scope {
        Scope { api_url: self.api_url.clone(), owner: self.org.clone(), repository: self.repo.clone() }
    }
}

/// How runners are registered with GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationMode {
    /// With a just-in-time configuration: the VM gets a credential that is
    /// good for one runner and one job.
    Jit,
    /// With a registration token, good for an hour and any number of runners.
    Token,
}

/// What the VMs are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HyperVConfig {
    /// The template disk, a `.vhdx` file. Absolute.
    pub template_path: PathBuf,
    /// The folder of the VMs' disks. Absolute, without a separator at its end.
    pub storage_path: PathBuf,
    /// How a VM's disk is made from the template.
    pub disk_mode: DiskMode,
    /// Memory of a VM in MiB (at start, if it is dynamic).
    pub memory_mb: u64,
    /// Up to which size in MiB memory grows. `None`: it is static.
    pub memory_max_mb: Option<u64>,
    /// Virtual processors of a VM.
    pub cpu_count: u32,
    /// Name of the virtual switch.
    pub switch: String,
    /// Name of the secure boot template, or `off`.
    pub secure_boot: String,
    /// Whether VMs may run VMs.
    pub nested_virtualization: bool,
    /// The address at which VMs reach the pool, always IPv4. `None`: the
    /// host's own address on the switch.
    pub orchestrator_ip: Option<IpAddr>,
    /// The port at which VMs reach the pool: [`HttpConfig::port`].
    pub port: u16,
}

/// How a VM's disk is made from the template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// A differencing disk: made in a moment, grows with what the VM writes,
    /// needs the template for as long as it lives.
    Differencing,
    /// A whole copy of the template.
    Copy,
}

/// How many VMs, and how long for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// What comes before the slot number in a VM's name.
    pub name_prefix: String,
    /// The number of slots: the most VMs there are at a time.
    pub size: u32,
    /// How many of them are kept ready without a job waiting. At most `size`.
    pub warm: u32,
    /// How long a VM may take from its start until it fetches its configuration.
    pub boot_timeout: Duration,
    /// How long a job may take.
    pub job_timeout: Duration,
    /// How often Hyper-V and GitHub are asked.
    pub poll: Duration,
    /// What happens to VMs that are running a job when the pool stops.
    pub shutdown: Shutdown,
    /// How long a VM may be idle beyond `warm` before it is retired.
    pub surplus_after: Duration,
    /// How long a VM may be idle before it is replaced by a fresh one.
    pub max_idle: Duration,
    /// With fewer bytes free where the disks are, no VM is made.
    pub min_free_bytes: u64,
    /// How many VMs may be in the making at a time.
    pub max_concurrent_creates: u32,
}

/// What becomes of VMs with a job when the pool stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They keep running; the next start adopts them.
    Keep,
    /// They are destroyed.
    Destroy,
}

/// Where the pool listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// The address to listen on.
    pub bind: IpAddr,
    /// The port to listen on; 0 (any free one) only with simulated VMs.
    pub port: u16,
}

/// How long simulated VMs take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MockTiming {
    /// To be created.
    pub create: Duration,
    /// To boot.
    pub boot: Duration,
    /// To run a job.
    pub job: Duration,
}

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important records that are still logged.
    pub level: log::LevelFilter,
    /// How a record is written.
    pub format: LogFormat,
    /// The folder of the log files. Absolute. `None`: standard error.
    pub dir: Option<PathBuf>,
}

/// How a log record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line to read.
    Text,
    /// A line of JSON.
    Json,
}

/// The labels that every runner bears.
pub const FIXED_LABELS: [&str; 4] = ["self-hosted", "Windows", "X64", "ephemeral"];

/// How many characters GitHub allows in a runner's name.
const RUNNER_NAME_MAX: usize = 64;
const NAME_PREFIX_MAX: usize = 40;
const POOL_SIZE_MAX: u64 = 256;
// The longest name: prefix, a slot number of three digits, `-`, an incarnation of 16 digits.
const _: () = assert!(NAME_PREFIX_MAX + 3 + 1 + 16 <= RUNNER_NAME_MAX && POOL_SIZE_MAX < 1000);

/// The longest that GitHub lets a job run on a self-hosted runner, in seconds: 5 days.
/// <https://docs.github.com/en/actions/reference/limits>
const JOB_TIME_MAX: u64 = 5 * 86_400;

/// How many labels GitHub takes in one JIT configuration.
/// <https://docs.github.com/en/rest/actions/self-hosted-runners>
const LABELS_MAX: usize = 100;

/// One setting, as the table has it.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the environment and in `.env`.
    pub name: &'static str,
    /// The heading under which `--help` and `.env.example` show it.
    pub group: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What holds when it is not set.
    pub fallback: Fallback,
    /// What it is for.
    pub about: &'static str,
}

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A text that is never shown.
    Secret,
    /// A text with rules of its own; the word stands for it in `--help`.
    Text(&'static str),
    /// A file or folder; relative to the working directory if not absolute.
    Path,
    /// true or false.
    Flag,
    /// One of these words, in upper or lower case.
    Choice(&'static [&'static str]),
    /// A whole number from the first to the second.
    Number(u64, u64),
    /// A time in whole seconds, or with `s`, `m` or `h` behind it; from so
    /// many seconds to so many. With simulated VMs, from one second.
    Time(u64, u64),
    /// Seconds, also with a decimal point, from 0 to so many.
    Seconds(u32),
}

/// What holds when a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This value.
    Default(&'static str),
    /// No value, which means this.
    Unset(&'static str),
    /// It has to be set, unless the VMs are simulated.
    Required {
        /// The value with simulated VMs; empty for none.
        in_mock: &'static str,
        /// What to do when it is missing.
        mend: &'static str,
    },
}

impl Setting {
    /// Whether its value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// What a value looks like, in a word: `TOKEN`, `jit|token`, `1..256`.
    pub fn syntax(&self) -> String {
        match self.kind {
            Kind::Secret => "SECRET".into(),
            Kind::Text(word) => word.into(),
            Kind::Path => "PATH".into(),
            Kind::Flag => "true|false".into(),
            Kind::Choice(choices) => choices.join("|"),
            Kind::Number(min, max) => format!("{min}..{max}"),
            Kind::Time(min, max) => format!("{}..{}", show_time(min), show_time(max)),
            Kind::Seconds(max) => format!("0..{max}"),
        }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fallback::Default(value) => write!(f, "[default: {value}]"),
            Fallback::Unset(meaning) => write!(f, "[default: {meaning}]"),
            Fallback::Required { .. } => f.write_str("[required]"),
        }
    }
}

macro_rules! settings {
    ($($group:literal { $($name:ident $kind:expr, $fallback:expr, $about:literal;)* })*) => {
        /// The settings by name, so that a misspelt one does not compile.
        mod setting {
            use super::{Fallback::*, Kind::*, Setting, POOL_SIZE_MAX, JOB_TIME_MAX};
            $($(pub(super) const $name: &Setting = &Setting {
                name: stringify!($name), group: $group, kind: $kind, fallback: $fallback, about: $about,
            };)*)*
        }

        /// Every setting there is, in the order of `--help` and `.env.example`.
        pub const SETTINGS: &[&Setting] = &[$($(setting::$name),*),*];
    };
}

settings! {
    "GitHub" {
        GITHUB_PAT Secret, Required { in_mock: "", mend: "make a token at https://github.com/settings/tokens and put it in .env" },
            "Personal access token that may manage self-hosted runners. For an organization: fine-grained with \
             \"Self-hosted runners: read and write\", or classic with admin:org. For a repository: fine-grained with \
             \"Administration: read and write\", or classic with repo.";
        GITHUB_ORG Text("NAME"), Required { in_mock: "mock-org", mend: "put the organization's name in .env \
             (or the user's, together with GITHUB_REPO)" },
            "The organization that the runners serve; with GITHUB_REPO, the repository's owner.";
        GITHUB_REPO Text("NAME"), Unset("the whole organization"),
            "Serve this repository only: its name, without the owner. A personal account needs it.";
        WEBHOOK_SECRET Secret, Required { in_mock: "mock-secret", mend: "put the secret that GitHub's webhook has in \
             .env, at least 16 random characters" },
            "The secret of the webhook at GitHub. Use at least 16 random characters. After a change, VMs made before \
             can no longer report to the pool.";
        GITHUB_API_URL Text("URL"), Default("https://api.github.com"),
            "Where GitHub's REST API is. GitHub Enterprise Server: https://HOST/api/v3.";
    }
    "Runners" {
        RUNNER_REGISTRATION Choice(&["jit", "token"]), Default("jit"),
            "How a VM registers: with a just-in-time configuration, good for one runner, or with a registration \
             token, good for any number of runners for an hour.";
        RUNNER_NAME_PREFIX Text("TEXT"), Default("runner-"),
            "What comes before the number in the name of a VM and its runner. Letters, digits, `-`, `_` and `.`, at \
             most 40. Each host that serves the same organization needs its own.";
        RUNNER_LABELS Text("LABEL,..."), Unset("no further ones"),
            "Labels besides self-hosted, Windows, X64 and ephemeral, separated by commas.";
        RUNNER_GROUP Text("NAME"), Default("Default"),
            "The organization's runner group. A repository has none.";
    }
    "Pool" {
        POOL_SIZE Number(1, POOL_SIZE_MAX), Default("4"),
            "The most VMs at a time.";
        POOL_WARM Number(0, POOL_SIZE_MAX), Unset("POOL_SIZE"),
            "How many VMs are kept ready while no job waits; the others are made when jobs are queued. At most \
             POOL_SIZE.";
        BOOT_TIMEOUT Time(30, 86_400), Default("10m"),
            "How long a VM may take to boot and fetch its configuration; then it is replaced. Seconds, or with s, m \
             or h.";
        JOB_TIMEOUT Time(60, JOB_TIME_MAX), Default("6h"),
            "How long a job may take; then its VM is destroyed. Seconds, or with s, m or h.";
        POLL_SECONDS Number(1, 3600), Default("30"),
            "How often, in seconds, Hyper-V and GitHub are asked how things are.";
        SHUTDOWN Choice(&["keep", "destroy"]), Default("keep"),
            "What becomes of VMs with a job when the pool stops: drain lets them go on and adopts them at the next \
             start; destroy destroys them.";
    }
    "Virtual machines" {
        VM_TEMPLATE_PATH Path, Default(r"vms\templates\runner-template.vhdx"),
            "The disk that all VMs start from. Relative paths start at the working directory.";
        VM_STORAGE_PATH Path, Default(r"vms\storage"),
            "The folder of the VMs' disks. It also tells pools on one host apart: each needs its own.";
        VM_DISK_MODE Choice(&["differencing", "copy"]), Default("differencing"),
            "Whether a VM's disk holds only its differences from the template, or is a whole copy.";
        VM_MEMORY_MB Number(512, 12_582_912), Default("4096"),
            "Memory of each VM in MiB, an even number; with VM_MEMORY_MAX_MB, what it starts with.";
        VM_MEMORY_MAX_MB Number(512, 12_582_912), Unset("static memory"),
            "Makes memory dynamic, up to this many MiB.";
        VM_CPU_COUNT Number(1, 240), Default("2"),
            "Virtual processors of each VM.";
        VM_SWITCH Text("NAME"), Default("Default Switch"),
            "The virtual switch that VMs are connected to.";
        VM_SECURE_BOOT Choice(&["MicrosoftWindows", "MicrosoftUEFICertificateAuthority", "OpenSourceShieldedVM", "off"]),
            Default("MicrosoftWindows"),
            "The secure boot template, or off.";
        VM_NESTED_VIRTUALIZATION Flag, Default("false"),
            "Whether jobs may run VMs themselves (Docker with Hyper-V isolation, WSL 2, emulators).";
    }
    "Network" {
        ORCHESTRATOR_IP Text("IPv4"), Unset("this host's address on VM_SWITCH"),
            "The address at which VMs reach this host.";
        PORT Number(1, 65_535), Default("8080"),
            "The port for GitHub's webhooks and the VMs. With USE_MOCK, 0 takes any free one.";
        BIND Text("IP"), Default("0.0.0.0"),
            "The address to listen on. The VMs must be able to reach it.";
    }
    "Log" {
        LOG_LEVEL Choice(&["error", "warn", "info", "debug", "trace"]), Default("info"),
            "How much is logged.";
        LOG_FORMAT Choice(&["text", "json"]), Default("text"),
            "Lines to read, or one JSON object per line.";
        LOG_DIR Path, Unset("standard error"),
            "Log into files in this folder.";
    }
    "Simulation" {
        USE_MOCK Flag, Default("false"),
            "Simulate the VMs, and GitHub too unless GITHUB_PAT is set. Nothing else is required then: the webhook \
             secret is `mock-secret` and the organization `mock-org`.";
        MOCK_CREATE_SECONDS Seconds(86_400), Default("0.5"),
            "How long a simulated VM takes to be created.";
        MOCK_BOOT_SECONDS Seconds(86_400), Default("1.5"),
            "How long a simulated VM takes to boot.";
        MOCK_JOB_SECONDS Seconds(86_400), Default("3"),
            "How long a simulated job takes.";
    }
}

/// A configuration without faults.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What is allowed but likely not meant; one sentence each.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with the settings. Prints one line for each fault.
#[derive(Debug, Default)]
pub struct Faults {
    faults: Vec<String>,
    warnings: Vec<String>,
}

impl Faults {
    /// What is not a fault but may be the cause of one, such as a misspelt
    /// name in `.env`; one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.faults.join("\n"))
    }
}

impl std::error::Error for Faults {}

impl Config {
    /// Reads the environment, and `.env` in the working directory if there is one.
    ///
    /// # Errors
    /// All faults of [`Config::load`], or that `.env` or the working directory
    /// cannot be read.
    pub fn from_environment() -> Result<Loaded, Faults> {
        let cannot = |fault: String| Faults { faults: vec![fault], warnings: Vec::new() };
        let current_dir = std::env::current_dir()
            .map_err(|e| cannot(format!("The working directory cannot be read: {e}")))?;
        let dotenv = match std::fs::read(current_dir.join(".env")) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(cannot(format!(".env cannot be read: {e}"))),
        };
        Config::load(|name| std::env::var_os(name), dotenv.as_deref(), &current_dir)
    }

    /// Makes the configuration out of the environment (`env` gives a
    /// variable's value), the bytes of `.env` for what the environment lacks,
    /// and the working directory (absolute) for relative paths. An empty value
    /// counts as none.
    ///
    /// # Errors
    /// If any setting is missing, wrong, or in conflict with another one, or a
    /// line of `.env` cannot be read: all such faults together.
    pub fn load(
        env: impl Fn(&str) -> Option<OsString>,
        dotenv: Option<&[u8]>,
        current_dir: &Path,
    ) -> Result<Loaded, Faults> {
        let mut reader = Reader::new(&env, dotenv.unwrap_or_default());
        let config = reader.config(current_dir);
        let Reader { faults, warnings, .. } = reader;
        match config {
            Some(config) if faults.is_empty() => Ok(Loaded { config, warnings }),
            _ => Err(Faults { faults, warnings }),
        }
    }
}

/// Where a value was found, for the messages.
#[derive(Clone, Copy)]
enum Source {
    Environment,
    DotEnv { line: usize },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Environment => f.write_str("in the environment"),
            Source::DotEnv { line } => write!(f, ".env line {line}"),
        }
    }
}

/// Looks up and parses settings, and collects what is wrong with them.
///
/// Its methods return `None` for a setting whose fault has been reported, so
/// that rules between two settings are left alone when one of them is wrong.
struct Reader<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    dotenv: HashMap<String, (usize, Secret)>,
    /// Names whose line in `.env` is a fault already.
    unreadable: HashSet<String>,
    /// The secrets' values, to recognise them in other settings.
    secrets: Vec<Secret>,
    mock: bool,
    faults: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(env: &'a dyn Fn(&str) -> Option<OsString>, dotenv: &[u8]) -> Reader<'a> {
        let parsed = dotenv::parse(dotenv);
        let mut reader = Reader {
            env,
            dotenv: HashMap::new(),
            unreadable: HashSet::new(),
            secrets: Vec::new(),
            mock: false,
            faults: Vec::new(),
            warnings: Vec::new(),
        };
        for fault in parsed.faults {
            let known = fault.name.filter(|name| SETTINGS.iter().any(|s| s.name == name));
            let what = known.as_deref().map(|name| format!("{name} (.env line {})", fault.line));
            let what = what.unwrap_or_else(|| format!(".env line {}", fault.line));
            reader.faults.push(format!("{what}: {}.", fault.problem));
            reader.unreadable.extend(known);
        }
        for entry in parsed.entries {
            if !SETTINGS.iter().any(|s| s.name == entry.name) {
                reader.warnings.push(unknown_name(&entry.name, entry.line));
            } else if let Some((earlier, _)) =
                reader.dotenv.insert(entry.name.clone(), (entry.line, entry.value))
            {
                reader.warnings.push(format!(
                    "{}: .env sets it in line {earlier} and again in line {}, which counts; remove one.",
                    entry.name, entry.line
                ));
            }
        }
        for setting in SETTINGS.iter().filter(|s| s.is_secret()) {
            let everywhere = [
                env(setting.name).map(|value| Secret::new(value.to_string_lossy())),
                reader.dotenv.get(setting.name).map(|(_, value)| value.clone()),
            ];
            reader.secrets.extend(everywhere.into_iter().flatten().filter(|s| s.expose().len() >= 8));
        }
        reader
    }

    /// The value of a setting; `Ok(None)` if it has none, `Err(())` if its
    /// fault has been reported.
    fn raw(&mut self, setting: &Setting) -> Result<Option<(String, Source)>, ()> {
        let name = setting.name;
        // Blanks around a value are never meant (`set NAME=value && ...` in cmd
        // leaves one), except perhaps in a secret.
        let tidy = |value: &str| if setting.is_secret() { value.to_owned() } else { value.trim().to_owned() };
        if let Some(value) = (self.env)(name) {
            let Some(value) = value.to_str() else {
                self.faults.push(format!(
                    "{name} (in the environment): the value is not valid Unicode; set it again, in plain characters."
                ));
                return Err(());
            };
            let value = tidy(value);
            if value.len() > 1 && value.starts_with('"') && value.ends_with('"') {
                self.faults.push(format!(
                    "{name} (in the environment): the value has double quotes around it; leave them out (in cmd: \
                     `set {name}=value`)."
                ));
                return Err(());
            }
            if !value.is_empty() {
                return Ok(Some((value, Source::Environment)));
            }
        }
        if self.unreadable.contains(name) {
            return Err(());
        }
        let found =
            self.dotenv.get(name).map(|(line, value)| (tidy(value.expose()), Source::DotEnv { line: *line }));
        Ok(found.filter(|(value, _)| !value.is_empty()))
    }

    /// The parsed value of a setting, or what its fallback says: outer `None`
    /// if its fault has been reported, inner `None` if it has no value.
    fn optional<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let (value, source) = match self.raw(setting) {
            Err(()) => return None,
            Ok(Some((value, source))) => (value, Some(source)),
            Ok(None) => match setting.fallback {
                Fallback::Default(value) if matches!(setting.kind, Kind::Path) && !cfg!(windows) => {
                    (value.replace('\\', "/"), None)
                }
                Fallback::Default(value) => (value.to_owned(), None),
                Fallback::Required { in_mock, .. } if self.mock && !in_mock.is_empty() => {
                    (in_mock.to_owned(), None)
                }
                Fallback::Required { mend, .. } if !self.mock => {
                    self.faults.push(format!("{}: not set; {mend}.", setting.name));
                    return None;
                }
                Fallback::Unset(_) | Fallback::Required { .. } => return Some(None),
            },
        };
        // A token in the wrong place would be shown by the first message that names the value.
        let misplaced = !setting.is_secret() && is_token(&value);
        match parse(&value) {
            Ok(parsed) if !misplaced => Some(Some(parsed)),
            parsed => {
                let problem = parsed.err().unwrap_or_default();
                let what = match source {
                    Some(source) => format!("{} ({source})", setting.name),
                    None => setting.name.to_owned(),
                };
                let fault = if setting.is_secret() {
                    format!("{what}: the value {problem}.")
                } else if self.looks_secret(&value) {
                    format!(
                        "{what}: the value looks as if it holds a token, a secret or a password, which does not \
                         belong here; give {}.",
                        setting.syntax()
                    )
                } else {
                    format!("{what}: `{}` {problem}.", shown(&value))
                };
                self.faults.push(fault);
                None
            }
        }
    }

    /// The parsed value of a setting that always has one.
    fn get<T>(&mut self, setting: &Setting, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.optional(setting, parse).flatten()
    }

    fn flag(&mut self, setting: &Setting) -> Option<bool> {
        self.get(setting, parse_flag)
    }

    /// The chosen word, spelt as in the table.
    fn choice(&mut self, setting: &Setting) -> Option<&'static str> {
        let Kind::Choice(choices) = setting.kind else { return None };
        self.get(setting, |value| parse_choice(value, choices))
    }

    fn number(&mut self, setting: &Setting) -> Option<u64> {
        self.optional_number(setting).flatten()
    }

    fn optional_number(&mut self, setting: &Setting) -> Option<Option<u64>> {
        let Kind::Number(min, max) = setting.kind else { return None };
        self.optional(setting, |value| parse_number(value, min..=max))
    }

    fn time(&mut self, setting: &Setting) -> Option<Duration> {
        let Kind::Time(min, max) = setting.kind else { return None };
        let min = if self.mock { 1 } else { min };
        self.get(setting, |value| parse_time(value, min..=max))
    }

    fn seconds(&mut self, setting: &Setting) -> Option<Duration> {
        let Kind::Seconds(max) = setting.kind else { return None };
        self.get(setting, |value| parse_seconds(value, max))
    }

    /// Reads every setting. `None` if there is a fault.
    fn config(&mut self, current_dir: &Path) -> Option<Config> {
        // If USE_MOCK itself is wrong, that alone is reported, and not all
        // that would be missing without it.
        let mock = self.flag(setting::USE_MOCK);
        self.mock = mock.unwrap_or(true);

        let github = self.github();
        let webhook_secret = self.webhook_secret();
        let pool = self.pool();
        let http = self.http();
        let port = http.as_ref().map_or(0, |http| http.port);
        let hyperv = self.hyperv(current_dir, port);
        let mock_timing = self.mock_timing();
        let log = self.log(current_dir);
        Some(Config {
            github: github?,
            hyperv: hyperv?,
            pool: pool?,
            http: http?,
            webhook_secret: webhook_secret?,
            mock: mock?,
            mock_timing: mock_timing?,
            log: log?,
        })
    }

    fn github(&mut self) -> Option<GitHubConfig> {
        let pat = self.optional(setting::GITHUB_PAT, parse_pat);
        // A token means the real GitHub, where `mock-org` is somebody else.
        let simulated_vms = self.mock;
        self.mock &= pat == Some(None);
        let org = self.get(setting::GITHUB_ORG, parse_org);
        self.mock = simulated_vms;
        let repo = self.optional(setting::GITHUB_REPO, parse_repo);
        let api_url = self.get(setting::GITHUB_API_URL, parse_api_url);
        let registration = self.choice(setting::RUNNER_REGISTRATION);
        let labels = match self.optional(setting::RUNNER_LABELS, parse_labels) {
            Some(None) => Some(with_fixed_labels(Vec::new())),
            Some(labels) => labels,
            None => None,
        };
        let runner_group = self.get(setting::RUNNER_GROUP, |value| {
            let is_default = value.eq_ignore_ascii_case("Default");
            one_line(value).map(|name| if is_default { "Default" } else { name }.to_owned())
        });

        if let Some(url) = &api_url
            && url != "https://api.github.com"
            && let Ok(parts) = split_url(url)
            && parts.path != "/api/v3"
            && !parts.host.starts_with("api.")
            && !is_loopback(parts.host)
        {
            self.warnings.push(format!(
                "GITHUB_API_URL: {url} does not end in /api/v3, as that of a GitHub Enterprise Server does."
            ));
        }
        if let (Some(Some(repo)), Some(group)) = (&repo, &runner_group)
            && group != "Default"
        {
            self.faults.push(format!(
                "RUNNER_GROUP: it is `{}` but GITHUB_REPO is `{}`, and a repository has no runner groups; remove \
                 one of the two.",
                shown(group),
                shown(repo)
            ));
        }
        Some(GitHubConfig {
            api_url: api_url?,
            pat: pat?,
            org: org?,
            repo: repo?,
            registration: if registration? == "jit" {
                RegistrationMode::Jit
            } else {
                RegistrationMode::Token
            },
            runner_group: runner_group?,
            labels: labels?,
        })
    }

    fn webhook_secret(&mut self) -> Option<Secret> {
        let mock = self.mock;
        let secret = self.get(setting::WEBHOOK_SECRET, |value| parse_webhook_secret(value, mock))?;
        if !mock && secret.expose().chars().count() < 16 {
            self.warnings.push(
                "WEBHOOK_SECRET: the value is shorter than 16 characters and may be guessed; use a longer one, at \
                 GitHub too."
                    .into(),
            );
        }
        if secret.expose().trim() != secret.expose() {
            self.warnings.push(
                "WEBHOOK_SECRET: the value begins or ends with a blank; remove it unless GitHub's has it too.".into(),
            );
        }
        Some(secret)
    }

    fn hyperv(&mut self, current_dir: &Path, port: u16) -> Option<HyperVConfig> {
        let template_path = self.get(setting::VM_TEMPLATE_PATH, |value| {
            let path = parse_path(value, current_dir)?;
            match path.extension() {
                Some(extension) if extension.eq_ignore_ascii_case("vhdx") => Ok(path),
                _ => Err("is not the name of a .vhdx file; give the template disk's whole path".into()),
            }
        });
        let storage_path = self.get(setting::VM_STORAGE_PATH, |value| parse_path(value, current_dir));
        let disk_mode = self.choice(setting::VM_DISK_MODE);
        let [memory_mb, memory_max_mb] = [setting::VM_MEMORY_MB, setting::VM_MEMORY_MAX_MB].map(|setting| {
            let Kind::Number(min, max) = setting.kind else { return None };
            self.optional(setting, |value| match parse_number(value, min..=max)? {
                odd if odd % 2 == 1 => {
                    Err(format!("is odd, and Hyper-V takes only even numbers of MiB; give {}", odd - 1))
                }
                even => Ok(even),
            })
        });
        let memory_mb = memory_mb.flatten();
        if let (Some(memory), Some(Some(max))) = (memory_mb, memory_max_mb)
            && max < memory
        {
            self.faults.push(format!(
                "VM_MEMORY_MAX_MB: it is {max}, less than VM_MEMORY_MB, which is {memory}; raise it, or leave it out \
                 for static memory."
            ));
        }
        let cpu_count = self.number(setting::VM_CPU_COUNT);
        let switch = self.get(setting::VM_SWITCH, |value| one_line(value).map(str::to_owned));
        let secure_boot = self.choice(setting::VM_SECURE_BOOT);
        let nested_virtualization = self.flag(setting::VM_NESTED_VIRTUALIZATION);
        let mock = self.mock;
        let orchestrator_ip =
            self.optional(setting::ORCHESTRATOR_IP, |value| parse_orchestrator_ip(value, mock));
        Some(HyperVConfig {
            template_path: template_path?,
            storage_path: storage_path?,
            disk_mode: if disk_mode? == "copy" { DiskMode::Copy } else { DiskMode::Differencing },
            memory_mb: memory_mb?,
            memory_max_mb: memory_max_mb?,
            cpu_count: narrow(cpu_count?),
            switch: switch?,
            secure_boot: secure_boot?.to_owned(),
            nested_virtualization: nested_virtualization?,
            orchestrator_ip: orchestrator_ip?,
            port,
        })
    }

    fn pool(&mut self) -> Option<PoolConfig> {
        let name_prefix = self.get(setting::RUNNER_NAME_PREFIX, parse_name_prefix);
        let size = self.number(setting::POOL_SIZE);
        let warm = self.optional_number(setting::POOL_WARM);
        if let (Some(size), Some(Some(warm))) = (size, warm)
            && warm > size
        {
            self.faults.push(format!(
                "POOL_WARM: it is {warm}, more than POOL_SIZE, which is {size}; lower it, or raise POOL_SIZE."
            ));
        }
        let boot_timeout = self.time(setting::BOOT_TIMEOUT);
        let job_timeout = self.time(setting::JOB_TIMEOUT);
        let poll = self.number(setting::POLL_SECONDS);
        let shutdown = self.choice(setting::SHUTDOWN);
        Some(PoolConfig {
            name_prefix: name_prefix?,
            size: narrow(size?),
            warm: narrow(warm?.unwrap_or(size?)),
            boot_timeout: boot_timeout?,
            job_timeout: job_timeout?,
            poll: Duration::from_secs(poll?),
            shutdown: if shutdown? == "destroy" { Shutdown::Destroy } else { Shutdown::Keep },
            surplus_after: Duration::from_secs(600),
            max_idle: Duration::from_secs(24 * 3600),
            min_free_bytes: 10 << 30,
            max_concurrent_creates: 2,
        })
    }

    fn http(&mut self) -> Option<HttpConfig> {
        let min = if self.mock { 0 } else { 1 };
        let port = self.get(setting::PORT, |value| {
            let port = parse_number(value, min..=65_535)?;
            u16::try_from(port).map_err(|_| "is no port".to_owned())
        });
        let bind = self.get(setting::BIND, |value| {
            value.parse::<IpAddr>().map_err(|_| {
                "is not an IP address; give one of this host's addresses, or 0.0.0.0 for all".to_owned()
            })
        });
        if let Some(bind) = bind
            && bind.is_loopback()
            && !self.mock
        {
            self.warnings
                .push(format!("BIND: VMs cannot reach {bind}; give an address on VM_SWITCH, or 0.0.0.0."));
        }
        Some(HttpConfig { bind: bind?, port: port? })
    }

    fn mock_timing(&mut self) -> Option<MockTiming> {
        let create = self.seconds(setting::MOCK_CREATE_SECONDS);
        let boot = self.seconds(setting::MOCK_BOOT_SECONDS);
        let job = self.seconds(setting::MOCK_JOB_SECONDS);
        Some(MockTiming { create: create?, boot: boot?, job: job? })
    }

    fn log(&mut self, current_dir: &Path) -> Option<LogConfig> {
        let level = self.choice(setting::LOG_LEVEL);
        let format = self.choice(setting::LOG_FORMAT);
        let dir = self.optional(setting::LOG_DIR, |value| parse_path(value, current_dir));
        Some(LogConfig {
            level: match level? {
                "error" => log::LevelFilter::Error,
                "warn" => log::LevelFilter::Warn,
                "debug" => log::LevelFilter::Debug,
                "trace" => log::LevelFilter::Trace,
                _ => log::LevelFilter::Info,
            },
            format: if format? == "json" { LogFormat::Json } else { LogFormat::Text },
            dir: dir?,
        })
    }

    /// Whether a value that should hold no secret seems to hold one, so that
    /// it must not be shown.
    fn looks_secret(&self, value: &str) -> bool {
        let has_password = value.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
        has_password
            || TOKEN_PREFIXES.iter().any(|prefix| value.contains(prefix))
            || self.secrets.iter().any(|secret| value.contains(secret.expose()))
    }
}

/// How GitHub's tokens begin.
/// <https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/>
const TOKEN_PREFIXES: [&str; 6] = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"];

/// Whether this can only be a token of GitHub's.
fn is_token(value: &str) -> bool {
    value.len() >= 20 && TOKEN_PREFIXES.iter().any(|prefix| value.starts_with(prefix))
}

/// A number that the table's range keeps far below `u32::MAX`.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A value as a message may show it: not too long, on one line.
fn shown(value: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String =
        value.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if value.chars().count() > MOST {
        shown.push_str("...");
    }
    shown
}

fn parse_flag(value: &str) -> Result<bool, String> {
    match &value.to_ascii_lowercase()[..] {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false; give one of them".into()),
    }
}

fn parse_choice(value: &str, choices: &[&'static str]) -> Result<&'static str, String> {
    let chosen = choices.iter().find(|choice| choice.eq_ignore_ascii_case(value));
    chosen.copied().ok_or_else(|| format!("is none of its values; give one of {}", choices.join(", ")))
}

fn parse_number(value: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let (min, max) = range.clone().into_inner();
    let all_digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    if !all_digits {
        return Err(format!("is not a whole number; give one from {min} to {max}, without a unit"));
    }
    // Digits that do not fit are a number that is far too large.
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        Ok(number) if number < min => Err(format!("is too small; give a number from {min} to {max}")),
        _ => Err(format!("is too large; give a number from {min} to {max}")),
    }
}

fn parse_time(value: &str, range: RangeInclusive<u64>) -> Result<Duration, String> {
    let (min, max) = (show_time(*range.start()), show_time(*range.end()));
    let lower = value.to_ascii_lowercase();
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let (digits, unit) = units
        .iter()
        .find_map(|&(suffix, seconds)| Some((lower.strip_suffix(suffix)?.trim_end(), seconds)))
        .unwrap_or((&lower, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "is not a time; give seconds, or a whole number with s, m or h, from {min} to {max}"
        ));
    }
    let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).unwrap_or(u64::MAX);
    if range.contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let problem = if seconds < *range.start() { "short" } else { "long" };
    Err(format!("is too {problem}; give a time from {min} to {max} (a number alone means seconds)"))
}

/// Seconds in the largest unit that divides them.
fn show_time(seconds: u64) -> String {
    match seconds {
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

fn parse_seconds(value: &str, max: u32) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| (0.0..=f64::from(max)).contains(seconds));
    // The filter has shut out all that `try_from_secs_f64` refuses: negative, too large, not a number.
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("is not a number of seconds from 0 to {max}; give one, such as 1.5"))
}

fn parse_path(value: &str, current_dir: &Path) -> Result<PathBuf, String> {
    if value.starts_with(r"\\?\") || value.starts_with(r"\\.\") {
        return Err(r"is a device path; write the plain path, such as C:\vms".into());
    }
    if value.chars().any(|c| c.is_control() || r#""*?<>|"#.contains(c)) {
        return Err(
            r#"has a character that no Windows path may have (one of " * ? < > | or a control character); remove it"#
                .into(),
        );
    }
    let joined = current_dir.join(value);
    if !joined.is_absolute() {
        return Err(r"is relative to a drive's current folder; write the whole path, such as C:\vms".into());
    }
    // On Windows this also resolves `..` and turns `/` into `\`; the parts then
    // lose a separator at the end.
    let absolute = std::path::absolute(&joined).map_err(|e| format!("is not a usable path: {e}"))?;
    Ok(absolute.components().collect())
}

/// A name that may hold anything that fits on a line.
fn one_line(value: &str) -> Result<&str, String> {
    if value.chars().any(char::is_control) {
        return Err("has a line break or another control character in it; remove it".into());
    }
    Ok(value)
}

/// Whether someone left in place what an example shows.
fn is_placeholder(value: &str) -> bool {
    const KNOWN: [&str; 11] = [
        "changeme",
        "changethis",
        "replaceme",
        "secret",
        "mysecret",
        "webhooksecret",
        "mocksecret",
        "password",
        "token",
        "example",
        "itsasecrettoeverybody",
    ];
    let word: String =
        value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let is_run_of_x = |text: &str| text.len() > 2 && text.bytes().all(|b| b == b'x');
    KNOWN.contains(&&word[..])
        || word.starts_with("your")
        || (value.starts_with('<') && value.ends_with('>'))
        || is_run_of_x(&word)
        || is_run_of_x(word.strip_prefix("ghp").or(word.strip_prefix("githubpat")).unwrap_or_default())
}

fn parse_pat(value: &str) -> Result<Secret, String> {
    if value.starts_with(['"', '\'']) {
        return Err("has quotes around it, which do not belong to a token; remove them".into());
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(
            "has a blank, a line break or a control character in it, which no token has; copy the token \
                    again"
                .into(),
        );
    }
    if !value.is_ascii() {
        return Err(
            "has a character in it that is not ASCII, which no token has; copy the token again".into()
        );
    }
    if is_placeholder(value) {
        return Err("is only a placeholder; make a token at https://github.com/settings/tokens".into());
    }
    Ok(Secret::new(value))
}

fn parse_webhook_secret(value: &str, mock: bool) -> Result<Secret, String> {
    if value.chars().any(char::is_control) {
        return Err("has a line break or another control character in it; remove it".into());
    }
    if !mock && (is_placeholder(value) || value.trim().is_empty()) {
        return Err(
            "is only a placeholder that anyone can guess; use at least 16 random characters, at GitHub too"
                .into(),
        );
    }
    Ok(Secret::new(value))
}

/// The names of owner and repository in what should be one name: a URL, or
/// `owner/repository`.
fn names_in(value: &str) -> Vec<&str> {
    let path = match value.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => value.strip_prefix("github.com/").unwrap_or(value),
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    // Web addresses of organizations' pages are /orgs/NAME/...
    let mut names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    if value.contains("://") && matches!(names.first(), Some(&("orgs" | "organizations"))) {
        names.remove(0);
        names.truncate(1);
    }
    names.truncate(2);
    if let Some(last) = names.last_mut() {
        *last = last.strip_suffix(".git").unwrap_or(last);
    }
    let usable = |name: &&str| is_org(name) || is_repo(name);
    if names.iter().all(usable) { names } else { Vec::new() }
}

fn is_org(name: &str) -> bool {
    // `_` comes before the short code of an enterprise with managed users.
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    letters && !name.is_empty() && !name.starts_with('-') && name.len() <= 100
}

fn is_repo(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    letters && !matches!(name, "" | "." | "..") && !name.ends_with(".git") && name.len() <= 100
}

fn parse_org(value: &str) -> Result<String, String> {
    if is_org(value) {
        return Ok(value.into());
    }
    Err(match names_in(value.trim_start_matches('@'))[..] {
        [org, repo] => {
            format!(
                "names a repository too; write GITHUB_ORG={org} and, for that repository only, GITHUB_REPO={repo}"
            )
        }
        [org] if is_org(org) => format!("is not just the name; write GITHUB_ORG={org}"),
        _ => {
            "is not the name of an organization or user; give the name alone, in letters, digits and hyphens"
                .into()
        }
    })
}

fn parse_repo(value: &str) -> Result<String, String> {
    if is_repo(value) {
        return Ok(value.into());
    }
    Err(match names_in(value)[..] {
        [org, repo] => format!("names the owner too; write GITHUB_ORG={org} and GITHUB_REPO={repo}"),
        [repo] => format!("is not just the name; write GITHUB_REPO={repo}"),
        _ => "is not the name of a repository; give the name alone, in letters, digits, `-`, `_` and `.`"
            .into(),
    })
}

/// The parts of an http or https URL.
struct UrlParts<'a> {
    https: bool,
    /// With the port, if there is one.
    authority: &'a str,
    /// Without port and brackets.
    host: &'a str,
    /// Empty, or with a slash at its start and none at its end.
    path: &'a str,
}

fn split_url(url: &str) -> Result<UrlParts<'_>, String> {
    let no_url = || "is not a URL of https://HOST; give such a one".to_owned();
    let (scheme, rest) = url
        .split_once("://")
        .ok_or("does not begin with https://; write the whole URL, such as https://HOST/api/v3")?;
    let https = scheme.eq_ignore_ascii_case("https");
    if !https && !scheme.eq_ignore_ascii_case("http") {
        return Err("is neither an https nor an http URL; write https://HOST/api/v3".into());
    }
    if rest.chars().any(|c| !c.is_ascii_graphic() || r#""<>\^`{|}"#.contains(c)) {
        return Err("has a character that no URL has; remove it".into());
    }
    if rest.contains(['?', '#']) {
        return Err("has a `?` or `#` in it; give the URL without that and what follows".into());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("has a user name in it; give the URL without, and the token in GITHUB_PAT".into());
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']').ok_or_else(no_url)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| no_url())?;
        (host, port.strip_prefix(':').or(port.is_empty().then_some("1")).ok_or_else(no_url)?)
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, "1"));
        let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if host.is_empty() || !is_name {
            return Err(no_url());
        }
        (host, port)
    };
    parse_number(port, 1..=65_535)
        .map_err(|_| "has a port that is no number from 1 to 65535; mend it".to_owned())?;
    Ok(UrlParts { https, authority, host, path: path.trim_end_matches('/') })
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn parse_api_url(value: &str) -> Result<String, String> {
    let url = split_url(value)?;
    if !url.https && !is_loopback(url.host) {
        return Err("is not encrypted and would show the token to the network; write https://".into());
    }
    if ["github.com", "www.github.com"].iter().any(|host| host.eq_ignore_ascii_case(url.host)) {
        return Err(
            "is GitHub's web site and not its API; write https://api.github.com, or leave it out".into()
        );
    }
    let scheme = if url.https { "https" } else { "http" };
    Ok(format!("{scheme}://{}{}", url.authority.to_ascii_lowercase(), url.path))
}

fn parse_name_prefix(value: &str) -> Result<String, String> {
    if let Some(bad) = value.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        let bad = shown(&bad.to_string());
        return Err(format!("has `{bad}` in it; use only letters, digits, `-`, `_` and `.`"));
    }
    if value.starts_with('.') {
        return Err("begins with a dot; begin it with a letter or digit".into());
    }
    if value.len() > NAME_PREFIX_MAX {
        return Err(format!("is too long; give at most {NAME_PREFIX_MAX} characters"));
    }
    Ok(value.into())
}

fn parse_labels(value: &str) -> Result<Vec<String>, String> {
    let mut labels = Vec::new();
    for label in value.split(',').map(str::trim) {
        if label.is_empty() {
            return Err(
                "has an empty label in it; write single commas between labels and none at the ends".into()
            );
        }
        if label.chars().count() > 256 {
            return Err("has a label of more than 256 characters in it; shorten it".into());
        }
        labels.push(one_line(label)?.to_owned());
    }
    let labels = with_fixed_labels(labels);
    if labels.len() > LABELS_MAX {
        let most = LABELS_MAX - FIXED_LABELS.len();
        return Err(format!("has too many labels in it; GitHub takes {LABELS_MAX}, so give at most {most}"));
    }
    Ok(labels)
}

/// The fixed labels and then these, each once; upper and lower case make no
/// difference to GitHub.
fn with_fixed_labels(further: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let all = FIXED_LABELS.map(str::to_owned).into_iter().chain(further);
    all.filter(|label| seen.insert(label.to_lowercase())).collect()
}

fn parse_orchestrator_ip(value: &str, mock: bool) -> Result<IpAddr, String> {
    const MEND: &str = "give the IPv4 address alone, such as 192.168.1.10, or leave it out";
    let Ok(ip) = value.parse::<Ipv4Addr>() else {
        return Err(if value.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok() {
            format!("is an IPv6 address; {MEND}")
        } else if value.contains("://") {
            format!("is a URL; {MEND}")
        } else if value.parse::<std::net::SocketAddrV4>().is_ok() {
            format!("has a port in it, which belongs in PORT; {MEND}")
        } else if value.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            format!("is not an IPv4 address; {MEND}")
        } else {
            format!(
                "is not an IPv4 address (a host name will not do, since a VM may be unable to look it up); {MEND}"
            )
        });
    };
    if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() {
        return Err(format!("is not the address of a host; {MEND}"));
    }
    if ip.is_loopback() && !mock {
        return Err(format!("means the VM itself when a VM uses it; {MEND}"));
    }
    Ok(IpAddr::V4(ip))
}

/// What other tools call some settings, where spelling alone would lead to
/// the wrong one.
const ALSO_CALLED: [(&str, &str); 5] = [
    ("GITHUB_TOKEN", "GITHUB_PAT"),
    ("GH_TOKEN", "GITHUB_PAT"),
    ("GITHUB_OWNER", "GITHUB_ORG"),
    ("GITHUB_URL", "GITHUB_API_URL"),
    ("VM_CPUS", "VM_CPU_COUNT"),
];

/// The setting that was probably meant by a name that is none.
fn nearest(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    if let Some((_, meant)) = ALSO_CALLED.iter().find(|(other, _)| *other == upper) {
        return Some(meant);
    }
    let nearest = SETTINGS.iter().map(|s| (edit_distance(&upper, s.name), s.name)).min()?;
    (nearest.0 <= nearest.1.len() / 3).then_some(nearest.1)
}

/// How many characters have to be put in, taken out or replaced (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The warning about a name in `.env` that is no setting. What stands before
/// an `=` may be a piece of a secret that was broken over two lines, so the
/// name is repeated only if it looks like one.
fn unknown_name(name: &str, line: usize) -> String {
    let looks_like_a_name =
        name.len() <= 40 && name.contains('_') && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    match nearest(name) {
        Some(meant) => format!("{name} (.env line {line}) is not a setting; did you mean {meant}?"),
        None if looks_like_a_name => {
            format!("{name} (.env line {line}) is not a setting; see --help for those there are.")
        }
        None => {
            format!(".env line {line} sets something that is not a setting; see --help for those there are.")
        }
    }
}

/// The text for `--help`.
pub fn help() -> String {
    let mut help = format!(
        "hyperv-runner-pool {}
A fixed pool of Hyper-V VMs as ephemeral GitHub Actions runners: each VM runs one job, is
destroyed, and is replaced by a fresh one.

USAGE
  hyperv-runner-pool              run the pool until Ctrl+C
  hyperv-runner-pool check        check this host and the settings, change nothing
  hyperv-runner-pool --help       show this text
  hyperv-runner-pool --version    show the version

With simulated VMs and nothing to set up:
  USE_MOCK=true hyperv-runner-pool                        (sh)
  $env:USE_MOCK='true'; hyperv-runner-pool                (PowerShell)

Settings come from the environment, and from the file .env in the working directory for what
the environment lacks. An empty value counts as none. .env.example lists all settings.
",
        env!("CARGO_PKG_VERSION")
    );
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            help.push_str(&format!("\n{}\n", group.to_uppercase()));
        }
        help.push_str(&heading(setting));
        for line in wrap(setting.about, 90) {
            help.push_str(&format!("      {line}\n"));
        }
    }
    help.push_str(
        "
EXIT STATUS
  0  stopped as asked
  1  the pool could not start or go on
  2  a setting or argument is wrong; every fault is listed
",
    );
    help
}

/// The text of `.env.example`: every setting with its default, commented out
/// unless it has to be filled in.
pub fn example() -> String {
    let mut example = String::from(
        r#"# Settings of hyperv-runner-pool. Copy this file to .env and fill in the lines that are not
# commented out; the others show the defaults. A variable of the environment counts more than .env.
#
# A value ends at the line's end or at a blank followed by `#`. Quotes, '...' or "...", keep blanks
# and `#`; a value with a quote in it goes between the other ones. A backslash is always just a
# backslash and a `$` just a `$`, quoted or not: write Windows paths as they are.
"#,
    );
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            example.push_str(&format!("\n\n# {group}\n"));
        }
        let values = match setting.kind {
            Kind::Secret | Kind::Text(_) | Kind::Path => None,
            _ => Some(format!("Values: {}.", setting.syntax())),
        };
        let (mark, value, unset) = match setting.fallback {
            Fallback::Required { .. } => ("", "", None),
            Fallback::Default(value) => ("# ", value, None),
            Fallback::Unset(meaning) => ("# ", "", Some(format!("Default: {meaning}."))),
        };
        let facts: Vec<String> = values.into_iter().chain(unset).collect();
        example.push('\n');
        for line in wrap(setting.about, 98).into_iter().chain(wrap(&facts.join(" "), 98)) {
            example.push_str(&format!("# {line}\n"));
        }
        example.push_str(&format!("{mark}{}={value}\n", setting.name));
    }
    example
}

/// A setting's name, values and default: on one line if they fit.
fn heading(setting: &Setting) -> String {
    let value = format!("  {}={}", setting.name, setting.syntax());
    let line = format!("{value} {}", setting.fallback);
    if line.len() <= 100 { format!("{line}\n") } else { format!("{value}\n      {}\n", setting.fallback) }
}

/// Breaks a text at blanks into lines of at most `width` characters (a
/// longer word gets a line of its own).
fn wrap(text: &str, width: usize) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] = [
        ("GITHUB_PAT", "ghp_hunter2hunter2"),
        ("GITHUB_ORG", "acme"),
        ("WEBHOOK_SECRET", "swordfish-swordfish"),
    ];

    fn work() -> PathBuf {
        std::env::current_dir().unwrap()
    }

    fn load_both(env: &[(&str, &str)], dotenv: &str) -> Result<Loaded, Faults> {
        let get =
            |name: &str| env.iter().rev().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        let result = Config::load(get, Some(dotenv.as_bytes()), &work());
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
                org: "acme".into(),
                repo: None,
                registration: RegistrationMode::Jit,
                runner_group: "Default".into(),
                labels: ["self-hosted", "Windows", "X64", "ephemeral"].map(String::from).into(),
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
                boot_timeout: Duration::from_secs(600),
                job_timeout: Duration::from_secs(21_600),
                poll: Duration::from_secs(30),
                shutdown: Shutdown::Keep,
                surplus_after: Duration::from_secs(600),
                max_idle: Duration::from_secs(24 * 3600),
                min_free_bytes: 10 << 30,
                max_concurrent_creates: 2,
            }
        );
        assert_eq!(config.http, HttpConfig { bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 8080 });
        assert_eq!(config.webhook_secret, Secret::new("swordfish-swordfish"));
        assert!(!config.mock);
        assert_eq!(
            config.log,
            LogConfig { level: log::LevelFilter::Info, format: LogFormat::Text, dir: None }
        );
    }

    #[test]
    fn a_simulation_needs_nothing() {
        let config = mock(&[]).unwrap().config;
        assert!(config.mock);
        assert_eq!(config.github.pat, None);
        assert_eq!(config.github.org, "mock-org");
        assert_eq!(config.webhook_secret, Secret::new("mock-secret"));
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

    #[test]
    fn all_faults_come_at_once_each_on_its_line() {
        let faults =
            load_both(&[("POOL_SIZE", "0"), ("PORT", "x"), ("LOG_LEVEL", "loud")], "SHUTDOWN='drain\n")
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
        assert_eq!(
            faults,
            "USE_MOCK (in the environment): `ture` is neither true nor false; give one of them."
        );
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
    fn a_fault_says_where_the_value_stands() {
        assert_fault("POOL_SIZE", "0", "POOL_SIZE (in the environment): `0` is too small");
        let faults = load_both(&REQUIRED, "\r\nPOOL_SIZE=0\r\n").unwrap_err().to_string();
        assert!(faults.starts_with("POOL_SIZE (.env line 2): `0` is too small"), "{faults}");
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
        assert!(loaded.warnings[0].contains("line 1 and again in line 2"), "{:?}", loaded.warnings);
    }

    #[test]
    fn an_unknown_name_in_dotenv_warns_with_the_nearest_one() {
        for (unknown, meant) in [
            ("POOLSIZE", "POOL_SIZE"),
            ("VM_MEMORY", "VM_MEMORY_MB"),
            ("github_pat", "GITHUB_PAT"),
            ("GITHUB_TOKEN", "GITHUB_PAT"),
        ] {
            assert_eq!(nearest(unknown), Some(meant), "{unknown}");
        }
        assert_eq!(nearest("HTTP_PROXY"), None, "too far off to be a slip of the finger");
        let warnings = load_both(&REQUIRED, "POOLSIZE=3\nHTTP_PROXY=x\n").unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "POOLSIZE (.env line 1) is not a setting; did you mean POOL_SIZE?",
                "HTTP_PROXY (.env line 2) is not a setting; see --help for those there are."
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
        let env = |name: &str| match name {
            "USE_MOCK" => Some("1".into()),
            "POOL_SIZE" => Some(broken.clone()),
            _ => None,
        };
        let faults = Config::load(env, None, &work()).unwrap_err().to_string();
        assert!(
            faults.starts_with("POOL_SIZE (in the environment): the value is not valid Unicode"),
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
    fn a_token_has_no_blanks_and_only_ascii() {
        for (value, words) in [
            ("ghp_a b", "a blank"),
            ("ghp_a\n", "a line break"),
            (" ghp_a", "a blank"),
            ("ghp_\u{e9}", "not ASCII"),
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
        for value in [
            "changeme",
            "Change-Me",
            "your-webhook-secret",
            "secret",
            "mock-secret",
            "xxx",
            "   ",
            "<secret>",
        ] {
            assert_fault("WEBHOOK_SECRET", value, "placeholder");
        }
        assert_fault("WEBHOOK_SECRET", "0123456789\nabcdef", "line break");
        let warnings = |value| load(&[("WEBHOOK_SECRET", value)]).unwrap().warnings.len();
        assert_eq!(warnings("0123456789abcdef"), 0);
        assert_eq!(warnings("0123456789abcde"), 1);
        assert_eq!(warnings("0123456789abcdef "), 1);
        assert_eq!(mock(&[("WEBHOOK_SECRET", "secret")]).unwrap().warnings, [""; 0]);
    }

    #[test]
    fn an_organization_given_as_something_else_is_told_what_to_write() {
        for (value, words) in [
            ("https://github.com/acme", "write GITHUB_ORG=acme."),
            ("https://github.com/acme/", "write GITHUB_ORG=acme."),
            ("github.com/acme", "write GITHUB_ORG=acme."),
            ("@acme", "write GITHUB_ORG=acme."),
            ("https://github.com/orgs/acme/people", "write GITHUB_ORG=acme."),
            ("acme/widgets", "GITHUB_ORG=acme and, for that repository only, GITHUB_REPO=widgets"),
            ("https://github.com/acme/widgets.git", "GITHUB_REPO=widgets."),
            ("https://github.com/acme/widgets/actions?query=1", "GITHUB_REPO=widgets."),
            ("Acme Ltd", "letters, digits and hyphens"),
            ("-acme", "letters, digits and hyphens"),
            ("https://github.com/", "letters, digits and hyphens"),
        ] {
            assert_fault("GITHUB_ORG", value, words);
        }
        assert_eq!(config(&[("GITHUB_ORG", "mona-cat_acme")]).github.org, "mona-cat_acme");
    }

    #[test]
    fn a_repository_is_its_name_alone() {
        assert_eq!(config(&[("GITHUB_REPO", ".github")]).github.repo.as_deref(), Some(".github"));
        for (value, words) in [
            ("acme/widgets", "write GITHUB_ORG=acme and GITHUB_REPO=widgets."),
            ("https://github.com/acme/widgets", "write GITHUB_ORG=acme and GITHUB_REPO=widgets."),
            ("widgets.git", "write GITHUB_REPO=widgets."),
            ("..", "not the name of a repository"),
            ("my widgets", "not the name of a repository"),
        ] {
            assert_fault("GITHUB_REPO", value, words);
        }
    }

    #[test]
    fn a_repository_has_no_runner_groups() {
        let faults = faults(&[("GITHUB_REPO", "widgets"), ("RUNNER_GROUP", "builders")]);
        assert!(
            faults.starts_with("RUNNER_GROUP: it is `builders` but GITHUB_REPO is `widgets`"),
            "{faults}"
        );
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
            ("ghe.example.com/api/v3", "write the whole URL"),
            ("ftp://ghe.example.com", "neither an https"),
            ("https://", "not a URL"),
            ("https:///api/v3", "not a URL"),
            ("https://a:b:c", "a port"),
            ("https://a:0", "a port"),
            ("https://a:", "a port"),
            ("https://[::1", "not a URL"),
            ("https://[x]", "not a URL"),
            ("https://a b", "a character that no URL has"),
            ("https://a/\u{e9}", "a character that no URL has"),
            ("https://a/b?c", "`?`"),
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
        for (value, words) in [
            ("a b", "has ` ` in it"),
            ("a/b", "has `/` in it"),
            ("\u{e4}-", "use only letters"),
            (".a", "begins with a dot"),
            (&"a".repeat(41), "at most 40"),
        ] {
            assert_fault("RUNNER_NAME_PREFIX", value, words);
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
            let Kind::Number(min, max) = setting.kind else { continue };
            for bad in [max + 1, max + 2, min.saturating_sub(1)] {
                if !(min..=max).contains(&bad) {
                    assert_fault(
                        setting.name,
                        &bad.to_string(),
                        &format!("give a number from {min} to {max}"),
                    );
                }
            }
            for bad in ["-1", "4.5", "4 GB", "0x10", "+4", "four"] {
                assert_fault(setting.name, bad, "is not a whole number");
            }
            assert_fault(setting.name, "99999999999999999999999", "is too large");
        }
    }

    #[test]
    fn every_choice_and_flag_takes_its_words_in_any_case_and_no_other() {
        for setting in SETTINGS {
            let (good, listed): (Vec<&str>, _) = match setting.kind {
                Kind::Choice(choices) => (choices.to_vec(), choices.join(", ")),
                Kind::Flag => {
                    ("true 1 yes on false 0 no off".split(' ').collect(), "neither true nor false".into())
                }
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
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", "json"),
            ("LOG_DIR", "logs"),
        ]);
        assert_eq!(config.github.registration, RegistrationMode::Token);
        assert_eq!(config.pool.shutdown, Shutdown::Destroy);
        assert_eq!(config.hyperv.disk_mode, DiskMode::Copy);
        assert_eq!(config.hyperv.secure_boot, "MicrosoftUEFICertificateAuthority");
        assert!(config.hyperv.nested_virtualization);
        let dir = Some(work().join("logs"));
        assert_eq!(config.log, LogConfig { level: log::LevelFilter::Trace, format: LogFormat::Json, dir });
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
        assert_eq!(
            conflict,
            "POOL_WARM: it is 3, more than POOL_SIZE, which is 2; lower it, or raise POOL_SIZE."
        );
    }

    #[test]
    fn a_setting_that_is_wrong_itself_is_not_also_in_conflict() {
        let faults = faults(&[
            ("POOL_SIZE", "x"),
            ("POOL_WARM", "9"),
            ("VM_MEMORY_MB", "x"),
            ("VM_MEMORY_MAX_MB", "512"),
        ]);
        assert_eq!(faults.lines().count(), 2, "{faults}");
    }

    #[test]
    fn memory_is_even_and_its_maximum_no_less_than_its_start() {
        assert_fault("VM_MEMORY_MB", "4097", "give 4096");
        assert_fault("VM_MEMORY_MAX_MB", "4097", "give 4096");
        assert_fault("VM_MEMORY_MAX_MB", "2048", "less than VM_MEMORY_MB");
        assert_eq!(config(&[("VM_MEMORY_MAX_MB", "4096")]).hyperv.memory_max_mb, Some(4096));
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (value, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("2 H", 7200), ("24h", 86_400)] {
            assert_eq!(config(&[("BOOT_TIMEOUT", value)]).pool.boot_timeout, Duration::from_secs(seconds));
        }
        for (value, words) in [
            ("10", "too short; give a time from 30s to 24h"),
            ("25h", "too long"),
            ("99999999999999999999h", "too long"),
            ("1.5h", "is not a time"),
            ("6d", "is not a time"),
            ("m", "is not a time"),
            ("-5m", "is not a time"),
        ] {
            assert_fault("BOOT_TIMEOUT", value, words);
        }
        assert_eq!(mock(&[("BOOT_TIMEOUT", "1")]).unwrap().config.pool.boot_timeout, Duration::from_secs(1));
        assert!(mock(&[("BOOT_TIMEOUT", "0")]).is_err());
    }

    #[test]
    fn simulated_times_take_decimals() {
        let timing =
            mock(&[("MOCK_JOB_SECONDS", "0.05"), ("MOCK_BOOT_SECONDS", "0")]).unwrap().config.mock_timing;
        assert_eq!((timing.job, timing.boot), (Duration::from_millis(50), Duration::ZERO));
        for value in ["-1", "nan", "inf", "86401", "1s", "1e99"] {
            assert_fault("MOCK_JOB_SECONDS", value, "is not a number of seconds from 0 to 86400");
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
            ("0.0.0.0", "not the address of a host"),
            ("255.255.255.255", "not the address of a host"),
            ("224.0.0.1", "not the address of a host"),
            ("127.0.0.1", "means the VM itself"),
            ("http://10.0.0.1:8080", "a URL"),
            ("10.0.0.1:8080", "belongs in PORT"),
            ("my-host", "a host name will not do"),
            ("10.0.0", "not an IPv4 address"),
            ("10.0.0.256", "not an IPv4 address"),
            ("fe80::1", "an IPv6 address"),
        ] {
            assert_fault("ORCHESTRATOR_IP", value, words);
        }
        assert!(mock(&[("ORCHESTRATOR_IP", "127.0.0.1")]).is_ok());
    }

    #[test]
    fn only_a_simulation_may_take_any_port() {
        assert_fault("PORT", "0", "too small");
        assert_eq!(mock(&[("PORT", "0")]).unwrap().config.http.port, 0);
        assert_eq!(config(&[("PORT", "65535")]).http.port, 65_535);
    }

    #[test]
    fn listening_where_no_vm_can_reach_warns() {
        let loaded = load(&[("BIND", "127.0.0.1")]).unwrap();
        assert!(loaded.warnings[0].starts_with("BIND: VMs cannot reach 127.0.0.1"));
        assert_eq!(mock(&[("BIND", "127.0.0.1")]).unwrap().warnings, [""; 0]);
        assert_eq!(config(&[("BIND", "::")]).http.bind.to_string(), "::");
        assert_fault("BIND", "localhost", "not an IP address");
    }
}

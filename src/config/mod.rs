//! The settings: environment and `.env` become a [`Config`].
//!
//! Each setting is one row of [`SETTINGS`]: name, values, default, explanation
//! and where the value goes. Reading, `--help`, `.env.example` and
//! `docs/configuration.md` all come from those rows.
//!
//! All faults are reported at once ([`Faults`]). Each names the setting, what
//! is wrong and how to fix it. The value of a secret is never shown, nor any
//! other value that seems to contain one.

pub mod dotenv;
mod help;
mod parse;
mod settings;
mod suggest;

pub(crate) use help::wrap;
pub use help::{example, help, reference};
pub(crate) use parse::is_loopback;
pub use settings::{Fallback, SETTINGS, Setting};
pub(crate) use suggest::closest_of;

use crate::private_key::PrivateKey;
use crate::secret::Secret;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All that the program is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How GitHub is reached and what the runners are there.
    pub github: GitHubConfig,
    /// What the VMs are made of.
    pub hyperv: HyperVConfig,
    /// How many VMs, and how long they may take for what.
    pub pool: PoolConfig,
    /// Where the pool listens.
    pub http: HttpConfig,
    /// The secret shared with GitHub's webhook. The VMs' secrets are derived
    /// from it too, if there is one.
    pub webhook_secret: Option<Secret>,
    /// Whether VMs are simulated; GitHub too, if there is nothing to sign in with.
    pub mock: bool,
    /// How long simulated VMs take.
    pub mock_timing: MockTiming,
    /// What is logged, and where.
    pub log: LogConfig,
}

/// How GitHub is reached and what the runners are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitHubConfig {
    /// Base of the REST API, without a slash at its end.
    pub api_url: String,
    /// The personal access token, if it is what the pool signs in with.
    pub pat: Option<Secret>,
    /// The client ID or the number of the GitHub App, if that is it.
    pub app_id: Option<String>,
    /// The GitHub App's private key.
    pub app_key: Option<PrivateKey>,
    /// The organization, or the user if `repo` is set.
    pub org: String,
    /// The repository, if the runners serve only one.
    pub repo: Option<String>,
    /// How runners are registered.
    pub registration: RegistrationMode,
    /// The runner group's name. `Default` if `repo` is set.
    pub runner_group: String,
    /// The labels of each runner, without repetition: 4 to 100.
    pub labels: Vec<String>,
    /// How the pool learns of queued jobs.
    pub intake: Intake,
    /// The name of the runner scale set, for [`Intake::ScaleSet`].
    pub scale_set: String,
}

/// How the pool learns of queued jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intake {
    /// GitHub delivers a webhook for each.
    #[default]
    Webhook,
    /// From the message queue of a runner scale set.
    ScaleSet,
    /// Not at all.
    None,
}

impl Intake {
    /// Its word in the settings, in the order of the variants.
    pub(super) const WORDS: [&str; 3] = ["webhook", "scaleset", "none"];

    /// Its word in the settings.
    pub fn word(self) -> &'static str {
        Intake::WORDS[self as usize]
    }
}

/// What the pool signs in to GitHub with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A personal access token.
    Pat(Secret),
    /// A GitHub App.
    App {
        /// Its client ID or its number.
        id: String,
        /// One of its private keys.
        key: PrivateKey,
    },
}

impl GitHubConfig {
    /// What the pool signs in with. `None` only with simulated VMs: then GitHub
    /// is simulated too.
    pub fn credential(&self) -> Option<Credential> {
        let app = || Some(Credential::App { id: self.app_id.clone()?, key: self.app_key.clone()? });
        self.pat.clone().map(Credential::Pat).or_else(app)
    }
}

/// How runners are registered with GitHub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegistrationMode {
    /// With a just-in-time configuration: the VM gets a credential that is
    /// valid for one runner and one job.
    #[default]
    Jit,
    /// With a registration token, valid for an hour and any number of runners.
    Token,
}

/// What the VMs are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HyperVConfig {
    /// The template disk, a `.vhdx` file, as it was at the start
    /// ([`Source::template_path`] reads it again). Absolute.
    pub template_path: PathBuf,
    /// The folder of the VMs' disks. Absolute, without a separator at its end.
    pub storage_path: PathBuf,
    /// How a VM's disk is made from the template.
    pub disk_mode: DiskMode,
    /// Memory of a VM in MiB (at startup, if it is dynamic). Even.
    pub memory_mb: u64,
    /// The maximum of dynamic memory in MiB, even. `None`: memory is static.
    pub memory_max_mb: Option<u64>,
    /// Virtual processors of a VM.
    pub cpu_count: u32,
    /// Name of the virtual switch.
    pub switch: String,
    /// Whether VMs are walled off.
    pub isolation: Isolation,
    /// What walled-off VMs may reach too, over TCP.
    pub allow: Vec<SocketAddrV4>,
    /// Host and port of a GitHub other than github.com, which walled-off VMs
    /// may reach too. The host may be a name.
    pub github_server: Option<String>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// A differencing disk: made in a moment, grows with what the VM writes,
    /// needs the template for as long as it exists.
    #[default]
    Differencing,
    /// A full copy of the template.
    Copy,
}

/// Whether VMs are walled off from each other, the host, its networks and all
/// private addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// If their switch is behind a NAT of this host.
    #[default]
    Auto,
    /// On any switch.
    On,
    /// On none.
    Off,
}

/// How many VMs, and how long they may take for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolConfig {
    /// What precedes the slot number in a VM's name.
    pub name_prefix: String,
    /// The number of slots: the maximum number of VMs at a time.
    pub size: u32,
    /// How many VMs are kept ready while no job is queued. At most `size`.
    pub warm: u32,
    /// How long a ready VM beyond `warm` is kept while no job waits.
    pub surplus_after: Duration,
    /// How long a VM may run without a job, by its uptime, until it is replaced.
    pub max_idle: Duration,
    /// How many VMs may be created at the same time. At least 1.
    pub max_concurrent_creates: u32,
    /// With fewer free bytes than this on the volume of the VMs' disks, no VM
    /// is created. 0: no limit.
    pub min_free_bytes: u64,
    /// Whether the newest VM that failed without a job is kept, turned off, for inspection.
    pub keep_failed: bool,
    /// How long a VM may take from its start until it fetches its configuration.
    pub boot_timeout: Duration,
    /// How long a job may take.
    pub job_timeout: Duration,
    /// How often Hyper-V and GitHub are asked.
    pub poll: Duration,
    /// What happens to VMs that are running a job when the pool stops.
    pub shutdown: Shutdown,
}

/// What happens to VMs that are running a job when the pool stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shutdown {
    /// They keep running; the next start adopts them.
    #[default]
    Keep,
    /// They are destroyed.
    Destroy,
}

/// Where the pool listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// The address to listen on. IPv6 only with simulated VMs.
    pub bind: IpAddr,
    /// The port to listen on; 0 (any free one) only with simulated VMs.
    pub port: u16,
}

/// How long simulated VMs take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// For how many days the files of earlier days are kept.
    pub keep_days: u32,
    /// Whether warnings and errors also go to Windows' event log. No setting: the service turns it on.
    pub event_log: bool,
}

/// How a log record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line to read.
    Text,
    /// A line of JSON.
    Json,
}

/// A configuration without faults.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What is allowed but probably not intended; one sentence each.
    pub warnings: Vec<String>,
}

/// All that is wrong with the settings. Prints one line for each fault.
#[derive(Debug)]
pub struct Faults {
    faults: Vec<String>,
    warnings: Vec<String>,
}

impl Faults {
    /// What is not a fault but may be the cause of one, such as a misspelled
    /// name; one sentence each.
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

/// Where the settings of a process come from: its environment, and `.env` in
/// one folder for what the environment lacks. `.env` is read anew each time.
#[derive(Clone)]
pub struct Source {
    environment: BTreeMap<String, OsString>,
    folder: PathBuf,
}

impl Source {
    /// The environment's variables, and the folder (absolute) of `.env`, where
    /// relative paths start too.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>, folder: PathBuf) -> Source {
        let name = |name: OsString| {
            let name = name.to_string_lossy();
            // Windows takes a variable's name in upper or lower case.
            if cfg!(windows) { name.to_ascii_uppercase() } else { name.into_owned() }
        };
        let environment = environment.into_iter().map(|(key, value)| (name(key), value)).collect();
        Source { environment, folder }
    }

    /// Reads all settings.
    ///
    /// # Errors
    /// If a setting is missing, wrong, or in conflict with another one, or a
    /// line of `.env` cannot be read: all such faults together. Or if `.env`
    /// itself cannot be read.
    pub fn load(&self) -> Result<Loaded, Faults> {
        match self.dotenv() {
            Ok(dotenv) => self.load_with(&dotenv),
            Err(fault) => Err(Faults { faults: vec![fault], warnings: Vec::new() }),
        }
    }

    /// Reads all settings, with these bytes instead of the file `.env`.
    ///
    /// # Errors
    /// As [`Source::load`].
    pub fn load_with(&self, dotenv: &[u8]) -> Result<Loaded, Faults> {
        let mut reader = Reader::new(self, dotenv);
        let mut config = Config::blank();
        let (mock, others): (Vec<_>, Vec<_>) = SETTINGS.iter().partition(|s| s.name == "USE_MOCK");
        for setting in mock.into_iter().chain(others) {
            reader.read(setting, &mut config);
        }
        let valid = |name: &str| !reader.is_faulty(name);
        let conflicts = settings::conflicts(&config, valid);
        let cautions = settings::cautions(&config, valid);
        let mut warnings = reader.warnings;
        warnings.extend(cautions);
        let faults: Vec<_> = reader.faults.into_iter().map(|(_, fault)| fault).chain(conflicts).collect();
        if faults.is_empty() { Ok(Loaded { config, warnings }) } else { Err(Faults { faults, warnings }) }
    }

    /// What the pool signs in to GitHub with as it is set now. `None` if it is
    /// not set.
    ///
    /// # Errors
    /// One sentence, if it is wrong now, or `.env` or the key's file cannot be read.
    pub fn credential(&self) -> Result<Option<Credential>, String> {
        let names = ["GITHUB_PAT", "GITHUB_APP_ID", "GITHUB_APP_PRIVATE_KEY_PATH"];
        self.current(&names).map(|config| config.github.credential())
    }

    /// The path of the template disk as it is set now.
    ///
    /// # Errors
    /// One sentence, if it is wrong now or `.env` cannot be read.
    pub fn template_path(&self) -> Result<PathBuf, String> {
        self.current(&["VM_TEMPLATE_PATH"]).map(|config| config.hyperv.template_path)
    }

    /// The storage folder as it is set now, and whether VMs are simulated.
    ///
    /// # Errors
    /// One sentence, if it is wrong now or `.env` cannot be read.
    pub fn storage_path(&self) -> Result<(PathBuf, bool), String> {
        self.current(&["VM_STORAGE_PATH"]).map(|config| (config.hyperv.storage_path, config.mock))
    }

    /// A configuration in which only these settings and `USE_MOCK` are set.
    fn current(&self, names: &[&str]) -> Result<Config, String> {
        let dotenv = self.dotenv()?;
        let mut reader = Reader::new(self, &dotenv);
        let mut config = Config::blank();
        for name in ["USE_MOCK"].iter().chain(names) {
            SETTINGS.iter().filter(|s| s.name == *name).for_each(|s| reader.read(s, &mut config));
        }
        let fault =
            reader.faults.into_iter().find(|(faulty, _)| faulty.is_some_and(|name| names.contains(&name)));
        fault.map_or(Ok(config), |(_, fault)| Err(fault))
    }

    /// The bytes of `.env`; none if there is no such file.
    fn dotenv(&self) -> Result<Vec<u8>, String> {
        let path = self.folder.join(".env");
        let problem = match std::fs::read(&path) {
            Ok(bytes) => return Ok(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            // Windows calls this "access denied".
            Err(_) if path.is_dir() => {
                "is a folder: remove or rename it, and put the settings in a file of that name".into()
            }
            Err(e) => format!("cannot be read ({e}): let this account read it, or remove it"),
        };
        Err(format!("{} {problem}.", path.display()))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may contain secrets, also of other programs.
        f.debug_struct("Source").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Config {
    /// What the settings are put into. All of it is overwritten, except what
    /// is optional. If `USE_MOCK` itself is wrong, `mock` stays true, so that
    /// not all that would be missing without it is reported too.
    fn blank() -> Config {
        Config {
            github: GitHubConfig { labels: parse::fixed_labels(), ..GitHubConfig::default() },
            hyperv: HyperVConfig::default(),
            pool: PoolConfig::default(),
            http: HttpConfig { bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 0 },
            webhook_secret: None,
            mock: true,
            mock_timing: MockTiming::default(),
            log: LogConfig {
                level: log::LevelFilter::Info,
                format: LogFormat::Text,
                dir: None,
                keep_days: 14,
                event_log: false,
            },
        }
    }
}

/// Looks settings up, and collects what is wrong with them.
struct Reader<'a> {
    folder: &'a Path,
    /// Each setting's value, and where it is set.
    values: HashMap<&'static str, (Secret, String)>,
    /// With the setting's name, if it is known.
    faults: Vec<(Option<&'static str>, String)>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source, dotenv: &[u8]) -> Reader<'a> {
        let (mut values, mut faults, mut warnings) = (HashMap::new(), Vec::new(), Vec::new());
        let known = |name: &str| SETTINGS.iter().find(|s| s.name == name).map(|s| s.name);
        let parsed = dotenv::parse(dotenv);
        for dotenv::Fault { line, name, problem } in parsed.faults {
            let name = name.as_deref().and_then(known);
            let what = name.map_or(format!(".env line {line}"), |name| format!("{name} (.env line {line})"));
            faults.push((name, format!("{what}: {problem}.")));
        }
        for dotenv::Entry { name, value, line } in parsed.entries {
            let Some(name) = known(&name) else {
                warnings.push(unknown_name(&name, line));
                continue;
            };
            if let Some((_, earlier)) = values.insert(name, (value, format!(".env line {line}"))) {
                warnings.push(format!(
                    "{name}: {earlier} sets it, and line {line} again, which applies; remove one."
                ));
            }
        }
        for (name, value) in &source.environment {
            let value = value.to_string_lossy();
            match known(name) {
                None => warnings.extend(suggest::misspelled(name).map(|meant| {
                    format!("{name} (in the environment) is not a setting; did you mean {meant}?")
                })),
                Some(name) if value.len() > 1 && value.starts_with('"') && value.ends_with('"') => {
                    let fault = format!(
                        "{name} (in the environment): the value has double quotes around it; remove them (in cmd: \
                         `set {name}=value`)."
                    );
                    faults.push((Some(name), fault));
                }
                Some(_) if value.trim().is_empty() => {}
                Some(name) => {
                    values.insert(name, (Secret::new(value), "in the environment".to_owned()));
                }
            }
        }
        Reader { folder: &source.folder, values, faults, warnings }
    }

    fn is_faulty(&self, name: &str) -> bool {
        self.faults.iter().any(|(faulty, _)| *faulty == Some(name))
    }

    /// Puts a setting's value, or its default, into the configuration.
    fn read(&mut self, setting: &'static Setting, config: &mut Config) {
        if let Err(fault) = self.try_read(setting, config) {
            self.faults.push((Some(setting.name), fault));
        }
    }

    fn try_read(&self, setting: &Setting, config: &mut Config) -> Result<(), String> {
        let (value, what) = match self.find(setting) {
            Some(found) => found,
            // What is set cannot be read, which has been reported.
            None if self.is_faulty(setting.name) => return Ok(()),
            None => match setting.default(config.mock)? {
                Some(default) => (default, setting.name.to_owned()),
                None => return Ok(()),
            },
        };
        // A token in the wrong place would be shown by the first message that contains the value.
        let misplaced = !setting.is_secret() && parse::is_token(&value);
        let outcome = if misplaced { Err(String::new()) } else { setting.set(config, &value, self.folder) };
        outcome.map_err(|problem| {
            if setting.is_secret() {
                format!("{what}: the value {problem}.")
            } else if self.looks_secret(&value) {
                format!(
                    "{what}: the value seems to contain a token, a secret or a password, which does not belong here; \
                     use {}.",
                    setting.syntax()
                )
            } else {
                format!("{what}: `{}` {problem}.", parse::shown(&value))
            }
        })
    }

    /// A setting's value, and its name with where the value is set. An empty
    /// value counts as none.
    fn find(&self, setting: &Setting) -> Option<(String, String)> {
        let (value, place) = self.values.get(setting.name)?;
        // Spaces around a value are never intended (`set NAME=value && ...` in
        // cmd leaves one), except perhaps in a secret.
        let value = if setting.is_secret() { value.expose() } else { value.expose().trim() };
        (!value.is_empty()).then(|| (value.to_owned(), format!("{} ({place})", setting.name)))
    }

    /// Whether a value that should not be secret seems to be or to contain a
    /// secret, so that it must not be shown.
    fn looks_secret(&self, value: &str) -> bool {
        let has_password = value.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
        let contains = |secret: &str| secret.len() >= 8 && value.contains(secret);
        let secrets = SETTINGS.iter().filter(|setting| setting.is_secret());
        has_password
            // A key in the place of its path.
            || value.contains("PRIVATE KEY")
            || parse::TOKEN_PREFIXES.iter().any(|prefix| value.contains(prefix))
            || secrets.filter_map(|s| self.values.get(s.name)).any(|(secret, _)| contains(secret.expose()))
    }
}

/// The warning about a name in `.env` that is not a setting. What precedes an
/// `=` may be a piece of a secret that was broken over two lines, so the name
/// is repeated only if it is nearly a setting's.
fn unknown_name(name: &str, line: usize) -> String {
    match suggest::nearest(name) {
        Some(meant) => format!("{name} (.env line {line}) is not a setting; did you mean {meant}?"),
        None => format!(".env line {line} sets something that is not a setting; --help lists them all."),
    }
}

#[cfg(test)]
mod tests;

//! The settings: one row each, with all that belongs to it, and the rules
//! between two of them.

use super::parse;
use super::{Config, DiskMode, Intake, Isolation, LogFormat, RegistrationMode, Shutdown};
use crate::private_key::PrivateKey;
use log::LevelFilter;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the environment and in `.env`.
    pub name: &'static str,
    /// The heading under which it is documented.
    pub group: &'static str,
    /// What applies when it is not set.
    pub fallback: Fallback,
    /// What it is for.
    pub about: &'static str,
    pub(super) kind: Kind,
}

/// What applies when a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This value.
    Default(&'static str),
    /// No value, which means this.
    Unset(&'static str),
    /// It must be set, unless VMs are simulated.
    Required {
        /// The value with simulated VMs.
        in_mock: Option<&'static str>,
        /// What to do when it is missing.
        fix: &'static str,
    },
    /// It must be set, unless VMs are simulated or this setting says otherwise.
    RequiredUnless {
        /// Such as `GITHUB_APP_ID is set`.
        other: &'static str,
        /// The value with simulated VMs.
        in_mock: Option<&'static str>,
    },
}

/// The values that a setting takes, and where a parsed one goes.
///
/// `USE_MOCK` is set before all others, so that [`Config::mock`] can be asked.
#[derive(Debug)]
pub(super) enum Kind {
    /// Text that is never shown.
    Secret(fn(&mut Config, &str) -> Result<(), String>),
    /// Text; the word stands for it in the documentation.
    Text(&'static str, fn(&mut Config, &str) -> Result<(), String>),
    /// A file or folder; made absolute.
    Path(fn(&mut Config, PathBuf) -> Result<(), String>),
    Flag(fn(&mut Config, bool)),
    /// The index of one of these words, in upper or lower case.
    Choice(&'static [&'static str], fn(&mut Config, usize)),
    /// A whole number from the first to the second.
    Number(u32, u32, fn(&mut Config, u32)),
    /// A time in seconds, or with `s`, `m` or `h` after it; from and to this
    /// many seconds. With simulated VMs, from one second at most.
    Time(u32, u32, fn(&mut Config, Duration)),
}
use Fallback::*;
use Kind::*;

impl Setting {
    /// Whether its value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Secret(_))
    }

    /// What a value looks like: `SECRET`, `jit|token`, `1..256`.
    pub fn syntax(&self) -> String {
        match self.kind {
            Secret(_) => "SECRET".into(),
            Text(word, _) => word.into(),
            Path(_) => "PATH".into(),
            Flag(_) => "true|false".into(),
            Choice(words, _) => words.join("|"),
            Number(min, max, _) => format!("{min}..{max}"),
            Time(min, max, _) => format!("{}..{}", parse::show_time(min), parse::show_time(max)),
        }
    }

    /// Whether [`Setting::syntax`] lists the values, and is not a word for them.
    pub(super) fn lists_values(&self) -> bool {
        !matches!(self.kind, Secret(_) | Text(..) | Path(_))
    }

    /// The value that applies when the setting has none.
    pub(super) fn default(&self, mock: bool) -> Result<Option<String>, String> {
        match self.fallback {
            // Defaults of paths are written for Windows.
            Default(value) if matches!(self.kind, Path(_)) && !cfg!(windows) => {
                Ok(Some(value.replace('\\', "/")))
            }
            Default(value) => Ok(Some(value.into())),
            Unset(_) => Ok(None),
            Required { in_mock, .. } | RequiredUnless { in_mock, .. } if mock => {
                Ok(in_mock.map(str::to_owned))
            }
            // [`conflicts`] tells when it is missing.
            RequiredUnless { .. } => Ok(None),
            Required { fix, .. } => Err(format!("{}: not set; {fix}.", self.name)),
        }
    }

    /// Puts a value into the configuration. Paths are relative to `folder`.
    pub(super) fn set(
        &self,
        config: &mut Config,
        value: &str,
        folder: &std::path::Path,
    ) -> Result<(), String> {
        match self.kind {
            Secret(set) | Text(_, set) => return set(config, value),
            Path(set) => return set(config, parse::path(value, folder)?),
            Flag(set) => set(config, parse::flag(value)?),
            Choice(words, set) => set(config, parse::choice(value, words)?),
            Number(min, max, set) => set(config, parse::number(value, min..=max)?),
            Time(min, max, set) => {
                let min = if config.mock { min.min(1) } else { min };
                set(config, parse::time(value, min..=max)?);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Default(value) => write!(f, "[default: {value}]"),
            Unset(meaning) => write!(f, "[default: {meaning}]"),
            Required { .. } => f.write_str("[required]"),
            RequiredUnless { other, .. } => write!(f, "[required unless {other}]"),
        }
    }
}

/// How many characters GitHub allows in a runner's name.
const RUNNER_NAME_MAX: usize = 64;
const POOL_SIZE_MAX: u32 = 256;
// The longest name: prefix, a slot number of three digits, `-`, an incarnation of 16 digits.
const _: () = assert!(parse::NAME_PREFIX_MAX + 3 + 1 + 16 <= RUNNER_NAME_MAX && POOL_SIZE_MAX < 1000);

/// The longest that GitHub lets a job run on a self-hosted runner, in seconds: 5 days.
/// <https://docs.github.com/en/actions/reference/limits>
const JOB_TIME_MAX: u32 = 5 * 86_400;

const GIB: u64 = 1 << 30;

macro_rules! settings {
    ($($group:literal { $($name:ident $fallback:expr, $kind:expr, $about:literal;)* })*) => {
        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            name: stringify!($name), group: $group, fallback: $fallback, kind: $kind, about: $about,
        }),*),*];
    };
}

settings! {
    "GitHub" {
        GITHUB_PAT RequiredUnless { other: "GITHUB_APP_ID is set", in_mock: None },
            Secret(|c, value| parse::pat(value).map(|pat| c.github.pat = Some(pat))),
            "Personal access token that can manage self-hosted runners. For an organization: fine-grained with \
             \"Self-hosted runners: read and write\", or classic with admin:org. For a repository: fine-grained with \
             \"Administration: read and write\", or classic with repo.";
        GITHUB_APP_ID Unset("GITHUB_PAT is used"),
            Text("ID", |c, value| parse::app_id(value).map(|id| c.github.app_id = Some(id))),
            "Client ID or App ID of a GitHub App, to be used in place of GITHUB_PAT. The App must be installed for \
             GITHUB_ORG. For an organization it needs \"Self-hosted runners: read and write\"; for a repository \
             \"Administration: read and write\" and, to list queued jobs, \"Actions: read\".";
        GITHUB_APP_PRIVATE_KEY_PATH Unset("GITHUB_PAT is used"),
            Path(|c, path| PrivateKey::read(&path).map(|key| c.github.app_key = Some(key))),
            "The .pem file with the App's private key, as GitHub made it. It is read again for each token, about once \
             an hour, so a new key needs no restart.";
        GITHUB_ORG Required { in_mock: Some("mock-org"), fix: "put the organization's name in .env (or the user's, together \
             with GITHUB_REPO)" },
            Text("NAME", |c, value| parse::org(value).map(|org| c.github.org = org)),
            "The organization whose jobs the runners take. With GITHUB_REPO, the repository's owner.";
        GITHUB_REPO Unset("the whole organization"),
            Text("NAME", |c, value| parse::repo(value).map(|repo| c.github.repo = Some(repo))),
            "Take jobs of this repository only. The name without the owner. Required for a personal account.";
        INTAKE Default("webhook"),
            Choice(&Intake::WORDS, |c, i| {
                c.github.intake = [Intake::Webhook, Intake::ScaleSet, Intake::None][i];
            }),
            "How the pool learns of queued jobs. webhook: GitHub sends a webhook for each to this host. scaleset: the \
             pool asks GitHub's queue of its runner scale set, so GitHub need not reach this host. none: not at all, \
             which is enough for a pool that keeps POOL_SIZE VMs ready; the queued jobs of a repository \
             (GITHUB_REPO) are still listed every 5 minutes.";
        WEBHOOK_SECRET RequiredUnless { other: "INTAKE is scaleset or none", in_mock: Some("mock-secret") },
            Secret(|c, value| parse::webhook_secret(value, c.mock).map(|secret| c.webhook_secret = Some(secret))),
            "The secret of the webhook at GitHub, at least 16 random characters. The VMs' secrets are made from it \
             too, so after a change, VMs that were created before can no longer report to the pool. If it is not \
             set, they are made from a key that the pool keeps in VM_STORAGE_PATH.";
        GITHUB_API_URL Default("https://api.github.com"),
            Text("URL", |c, value| parse::api_url(value).map(|url| {
                c.hyperv.github_server = parse::server_of(&url);
                c.github.api_url = url;
            })),
            "The address of GitHub's REST API. GitHub Enterprise Server: https://HOST/api/v3.";
    }
    "Runners" {
        RUNNER_REGISTRATION Default("jit"),
            Choice(&["jit", "token"], |c, i| c.github.registration = [RegistrationMode::Jit, RegistrationMode::Token][i]),
            "How a VM registers as a runner. jit: with a just-in-time configuration, which is valid for one runner. \
             token: with a registration token, which is valid for any number of runners for an hour, and reaches the VM over the network.";
        RUNNER_NAME_PREFIX Default("runner-"),
            // SCALE_SET_NAME comes later, and overrides it here.
            Text("TEXT", |c, value| parse::name_prefix(value).map(|prefix| {
                c.github.scale_set = prefix.strip_suffix(['-', '_', '.']).unwrap_or(&prefix).to_owned();
                c.pool.name_prefix = prefix;
            })),
            "What precedes the number in the name of a VM and its runner. Letters, digits, `-`, `_` and `.`, at \
             most 40. Give each host of an organization its own, so that you can tell their runners apart.";
        RUNNER_LABELS Unset("no more labels"),
            Text("LABEL,...", |c, value| parse::labels(value).map(|labels| c.github.labels = labels)),
            "Labels besides self-hosted, Windows, X64 and ephemeral, separated by commas.";
        RUNNER_GROUP Default("Default"),
            Text("NAME", |c, value| {
                let value = if value.eq_ignore_ascii_case("Default") { "Default" } else { value };
                parse::line(value).map(|name| c.github.runner_group = name)
            }),
            "The organization's runner group. A repository has none.";
        SCALE_SET_NAME Unset("RUNNER_NAME_PREFIX without its last `-`, `_` or `.`"),
            Text("NAME", |c, value| parse::line(value).map(|name| c.github.scale_set = name)),
            "The name of the pool's runner scale set, with INTAKE=scaleset. If GitHub has none of that name, the pool \
             creates it, with its labels and in RUNNER_GROUP. Each host needs its own.";
    }
    "Pool" {
        POOL_SIZE Default("4"),
            // POOL_WARM comes later, and overrides it here.
            Number(1, POOL_SIZE_MAX, |c, n| (c.pool.size, c.pool.warm) = (n, n)),
            "The maximum number of VMs at a time.";
        POOL_WARM Unset("POOL_SIZE"),
            Number(0, POOL_SIZE_MAX, |c, n| c.pool.warm = n),
            "How many VMs are kept ready while no job is queued. The others are created when jobs are queued. At \
             most POOL_SIZE.";
        SURPLUS_MINUTES Default("10"),
            Number(1, 1440, |c, n| c.pool.surplus_after = Duration::from_secs(u64::from(n) * 60)),
            "After how many minutes with no job waiting a ready VM beyond POOL_WARM is removed.";
        MAX_IDLE_HOURS Default("24"),
            Number(1, 720, |c, n| c.pool.max_idle = Duration::from_secs(u64::from(n) * 3600)),
            "After how many hours of running a VM that has had no job is replaced by a fresh one.";
        MAX_CONCURRENT_CREATES Default("2"),
            Number(1, POOL_SIZE_MAX, |c, n| c.pool.max_concurrent_creates = n),
            "How many VMs may be created at the same time. More of them put more load on the disk.";
        MIN_FREE_GB Default("10"),
            Number(0, 1_048_576, |c, n| c.pool.min_free_bytes = u64::from(n) * GIB),
            "Create no VM while the volume of VM_STORAGE_PATH has less free space than this many GiB. 0 turns this off.";
        BOOT_TIMEOUT Default("10m"),
            Time(30, 86_400, |c, time| c.pool.boot_timeout = time),
            "How long a VM may take to boot and fetch its configuration. Then it is replaced. Seconds, or a number \
             with s, m or h.";
        JOB_TIMEOUT Default("6h"),
            Time(60, JOB_TIME_MAX, |c, time| c.pool.job_timeout = time),
            "How long a job may take. Then its VM is destroyed. Seconds, or a number with s, m or h.";
        POLL_SECONDS Default("30"),
            Number(1, 3600, |c, n| c.pool.poll = Duration::from_secs(n.into())),
            "How often, in seconds, the pool asks Hyper-V and GitHub for the state of VMs and runners.";
        KEEP_FAILED Default("false"),
            Flag(|c, on| c.pool.keep_failed = on),
            "Whether the newest VM that failed without a job is kept, turned off, for inspection, under the name \
             failed- and its incarnation. It is no slot's, takes no memory, and goes with the next one or by the \
             command cleanup.";
        SHUTDOWN Default("keep"),
            Choice(&["keep", "destroy"], |c, i| c.pool.shutdown = [Shutdown::Keep, Shutdown::Destroy][i]),
            "What happens to VMs that are running a job when the pool stops. keep: they keep running, and the next \
             start adopts them. destroy: they are destroyed, and their jobs fail.";
    }
    "Virtual machines" {
        VM_TEMPLATE_PATH Default(r"vms\templates\runner-template.vhdx"),
            Path(|c, path| parse::vhdx(path).map(|path| c.hyperv.template_path = path)),
            "The disk that all VMs start from, a .vhdx file. It is read again for each new VM, so a new template \
             needs no restart. Relative paths start at the folder of .env.";
        VM_STORAGE_PATH Default(r"vms\storage"),
            Path(|c, path| { c.hyperv.storage_path = path; Ok(()) }),
            "The folder of the VMs' disks. It also identifies the pool: give each pool on a host its own.";
        VM_DISK_MODE Default("differencing"),
            Choice(&["differencing", "copy"], |c, i| c.hyperv.disk_mode = [DiskMode::Differencing, DiskMode::Copy][i]),
            "Whether a VM's disk is a differencing disk on the template or a full copy of it.";
        VM_MEMORY_MB Default("4096"),
            Number(512, 12_582_912, |c, n| c.hyperv.memory_mb = n.into()),
            "Memory of each VM in MiB, an even number. With VM_MEMORY_MAX_MB, the memory at startup.";
        VM_MEMORY_MAX_MB Unset("static memory"),
            Number(512, 12_582_912, |c, n| c.hyperv.memory_max_mb = Some(n.into())),
            "Makes memory dynamic, with at most this many MiB, an even number.";
        VM_CPU_COUNT Default("2"),
            Number(1, 240, |c, n| c.hyperv.cpu_count = n),
            "Virtual processors of each VM.";
        VM_SWITCH Default("Default Switch"),
            Text("NAME", |c, value| parse::line(value).map(|name| c.hyperv.switch = name)),
            "The virtual switch that VMs are connected to.";
        VM_ISOLATION Default("auto"),
            Choice(&["auto", "on", "off"], |c, i| c.hyperv.isolation = [Isolation::Auto, Isolation::On, Isolation::Off][i]),
            "Whether VMs are walled off from each other, the host, its networks and all private addresses. They still \
             reach the pool, DNS, the internet and VM_ALLOW. auto: on if VM_SWITCH is behind a NAT of this host \
             (New-NetNat).";
        VM_ALLOW Unset("nothing more"),
            Text("IPv4:PORT,...", |c, value| parse::endpoints(value).map(|allow| c.hyperv.allow = allow)),
            "What VMs that are walled off may reach too, over TCP, separated by commas: a proxy or a package server, \
             such as 192.168.1.20:8443. The host of GITHUB_API_URL is always allowed.";
        VM_SECURE_BOOT Default("MicrosoftWindows"),
            Choice(SECURE_BOOT, |c, i| c.hyperv.secure_boot = SECURE_BOOT[i].into()),
            "The secure boot template, or off.";
        VM_NESTED_VIRTUALIZATION Default("false"),
            Flag(|c, on| c.hyperv.nested_virtualization = on),
            "Whether jobs can run VMs themselves (Docker with Hyper-V isolation, WSL 2, emulators).";
    }
    "Network" {
        ORCHESTRATOR_IP Unset("this host's address on VM_SWITCH"),
            Text("IPv4", |c, value| parse::orchestrator_ip(value, c.mock).map(|ip| c.hyperv.orchestrator_ip = Some(ip))),
            "The address at which VMs reach this host.";
        PORT Default("8080"),
            Number(0, 65_535, |c, n| (c.http.port, c.hyperv.port) = (n as u16, n as u16)),
            "The port for GitHub's webhooks and for the VMs. 0, with USE_MOCK only, means any free port.";
        BIND Default("0.0.0.0"),
            Text("IPv4", |c, value| parse::bind(value, c.mock).map(|ip| c.http.bind = ip)),
            "The address to listen on. VMs must be able to reach it.";
    }
    "Log" {
        LOG_LEVEL Default("info"),
            Choice(&["error", "warn", "info", "debug", "trace"], |c, i| {
                use LevelFilter::*;
                c.log.level = [Error, Warn, Info, Debug, Trace][i];
            }),
            "How much is logged.";
        LOG_FORMAT Default("text"),
            Choice(&["text", "json"], |c, i| c.log.format = [LogFormat::Text, LogFormat::Json][i]),
            "text: lines to read. json: one JSON object per line, with slot, VM, incarnation, repository, run, job and \
             cause as fields.";
        LOG_DIR Unset("standard error; for the service, `logs` in its folder"),
            Path(|c, path| { c.log.dir = Some(path); Ok(()) }),
            "Log to files in this folder, a new one each day.";
        LOG_KEEP_DAYS Default("14"),
            Number(1, 3650, |c, n| c.log.keep_days = n),
            "For how many days the files of earlier days are kept in LOG_DIR.";
    }
    "Simulation" {
        USE_MOCK Default("false"),
            Flag(|c, on| c.mock = on),
            "Simulate the VMs, and GitHub too unless GITHUB_PAT or GITHUB_APP_ID is set. Nothing else is required then: the webhook \
             secret is `mock-secret` and the organization `mock-org`.";
        MOCK_CREATE_SECONDS Default("0.5"),
            Time(0, 86_400, |c, time| c.mock_timing.create = time),
            "How long it takes to create a simulated VM.";
        MOCK_BOOT_SECONDS Default("1.5"),
            Time(0, 86_400, |c, time| c.mock_timing.boot = time),
            "How long a simulated VM takes to boot.";
        MOCK_JOB_SECONDS Default("3"),
            Time(0, 86_400, |c, time| c.mock_timing.job = time),
            "How long a simulated job takes.";
    }
}

/// <https://learn.microsoft.com/en-us/powershell/module/hyper-v/set-vmfirmware>
const SECURE_BOOT: &[&str] =
    &["MicrosoftWindows", "MicrosoftUEFICertificateAuthority", "OpenSourceShieldedVM", "off"];

/// What is wrong with settings that are right by themselves. `valid` tells
/// whether a setting's own value is.
pub(super) fn conflicts(c: &Config, valid: impl Fn(&str) -> bool + Copy) -> Vec<String> {
    let (size, warm, group) = (c.pool.size, c.pool.warm, &c.github.runner_group);
    let (memory, max) = (c.hyperv.memory_mb, c.hyperv.memory_max_mb);
    let odd = |name, memory: Option<u64>| {
        let odd = memory.filter(|memory| memory % 2 == 1)?;
        Some(format!("{name}: {odd} is odd, but Hyper-V takes only an even number of MiB; use {}.", odd - 1))
    };
    let group_of_repo = || {
        let repo = c.github.repo.as_ref().filter(|_| valid("RUNNER_GROUP") && group != "Default")?;
        let (group, repo) = (parse::shown(group), parse::shown(repo));
        Some(format!(
            "RUNNER_GROUP: it is `{group}`, but GITHUB_REPO is `{repo}`, and a repository has no runner groups; \
             remove one of the two."
        ))
    };
    let faults = [
        (valid("POOL_SIZE") && warm > size).then(|| {
            format!("POOL_WARM: {warm} is more than POOL_SIZE, which is {size}; lower it, or raise POOL_SIZE.")
        }),
        odd("VM_MEMORY_MB", Some(memory)),
        odd("VM_MEMORY_MAX_MB", max),
        max.filter(|max| *max < memory).map(|max| {
            format!(
                "VM_MEMORY_MAX_MB: {max} is less than VM_MEMORY_MB, which is {memory}; raise it, or remove it for \
                 static memory."
            )
        }),
        group_of_repo(),
        credential_fault(c, valid),
        intake_fault(c, valid),
        (c.mock && c.github.credential().is_some() && c.github.org == "mock-org").then(|| {
            let set = if c.github.pat.is_some() { "GITHUB_PAT" } else { "GITHUB_APP_ID" };
            format!("GITHUB_ORG: not set; {set} is for the real GitHub, so set the organization's name too.")
        }),
        (!c.mock && valid("PORT") && c.http.port == 0)
            .then(|| "PORT: 0 is only for USE_MOCK; use a number from 1 to 65535.".into()),
    ];
    faults.into_iter().flatten().collect()
}

/// What is wrong with how the pool learns of jobs.
fn intake_fault(c: &Config, valid: impl Fn(&str) -> bool) -> Option<String> {
    let idle = c.pool.warm == 0 && c.github.repo.is_none() && valid("POOL_WARM") && valid("GITHUB_REPO");
    match c.github.intake {
        _ if !valid("INTAKE") => None,
        Intake::Webhook => (!c.mock && c.webhook_secret.is_none() && valid("WEBHOOK_SECRET")).then(|| {
            "WEBHOOK_SECRET: not set; put the secret of GitHub's webhook in .env, at least 16 random characters, or \
             set INTAKE to scaleset, which needs no webhook."
                .into()
        }),
        Intake::ScaleSet if c.github.registration == RegistrationMode::Token => Some(
            "RUNNER_REGISTRATION: it is `token`, but INTAKE is `scaleset`, and the runners of a scale set have JIT \
             configurations; remove RUNNER_REGISTRATION, or set it to jit."
                .into(),
        ),
        Intake::ScaleSet if c.mock && c.github.credential().is_none() => Some(
            "INTAKE: `scaleset` needs the real GitHub; set GITHUB_PAT or GITHUB_APP_ID too, or remove INTAKE.".into(),
        ),
        Intake::None if idle => Some(
            "POOL_WARM: 0 with INTAKE `none` is a pool that never creates a VM; raise POOL_WARM, or set INTAKE to \
             webhook or scaleset."
                .into(),
        ),
        Intake::ScaleSet | Intake::None => None,
    }
}

/// What is wrong with the choice between a personal access token and a GitHub App.
fn credential_fault(c: &Config, valid: impl Fn(&str) -> bool) -> Option<String> {
    let missing = |name: &str, other: &str| {
        format!("{name}: not set, but {other} is; a GitHub App takes both, so set it too, or remove {other}.")
    };
    let (id, key) = ("GITHUB_APP_ID", "GITHUB_APP_PRIVATE_KEY_PATH");
    // One that is wrong is set.
    let is_set = |there, name| there || !valid(name);
    let app = (is_set(c.github.app_id.is_some(), id), is_set(c.github.app_key.is_some(), key));
    match (is_set(c.github.pat.is_some(), "GITHUB_PAT"), app) {
        (true, (true, _) | (_, true)) => Some(format!(
            "GITHUB_PAT: set, but {} is too; the pool uses either a token or a GitHub App, so remove one of them.",
            if app.0 { id } else { key }
        )),
        (false, (false, false)) if !c.mock => Some(
            "GITHUB_PAT: not set; create a token at https://github.com/settings/tokens and put it in .env, or set \
             GITHUB_APP_ID and GITHUB_APP_PRIVATE_KEY_PATH for a GitHub App."
                .into(),
        ),
        (false, (false, true)) => Some(missing(id, key)),
        (false, (true, false)) => Some(missing(key, id)),
        _ => None,
    }
}

/// What is allowed but probably not intended.
pub(super) fn cautions(c: &Config, valid: impl Fn(&str) -> bool) -> Vec<String> {
    let (url, bind) = (&c.github.api_url, c.http.bind);
    let secret = c.webhook_secret.as_ref().map_or("", |secret| secret.expose());
    let warnings = [
        (valid("GITHUB_API_URL") && !parse::is_usual_api_url(url)).then(|| {
            format!("GITHUB_API_URL: {url} does not end in /api/v3, as a GitHub Enterprise Server's does.")
        }),
        (c.webhook_secret.is_some() && !c.mock && secret.chars().count() < 16).then(|| {
            "WEBHOOK_SECRET: the value is shorter than 16 characters and can be guessed; use a longer one, at \
             GitHub too."
                .into()
        }),
        (secret.trim() != secret).then(|| {
            "WEBHOOK_SECRET: the value begins or ends with a space; remove it unless GitHub's has it too.".into()
        }),
        (c.github.intake == Intake::None && c.github.repo.is_none() && c.pool.warm < c.pool.size).then(|| {
            format!(
                "POOL_WARM: with INTAKE=none nothing tells of an organization's queued jobs, so there are never more \
                 than {} VMs; set POOL_SIZE to that, or INTAKE to webhook or scaleset.",
                c.pool.warm
            )
        }),
        (!c.mock && bind.is_loopback())
            .then(|| format!("BIND: VMs cannot reach {bind}; use an address on VM_SWITCH, or 0.0.0.0.")),
    ];
    warnings.into_iter().flatten().collect()
}

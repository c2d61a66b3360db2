//! The program's parts, put together: what `main` runs and tests drive.

use crate::config::RegistrationMode;
use crate::config::{Config, GitHubConfig, Shutdown};
use crate::github::client::Client;
use crate::github::{GitHub, client};
use crate::http::gate::{self, Gate, Limits};
use crate::http::{Api, RunnerFacts};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::host_check::{self, Finding, Severity};
use crate::hypervisor::hyperv::{self, Deadlines, HyperV};
use crate::hypervisor::powershell::PowerShell;
use crate::pool::slot::Stop;
use crate::pool::{self, Pool};
use crate::secret::Keys;
use crate::sim::github::MockGitHub;
use crate::sim::hypervisor::{MockHypervisor, Timing};
use log::{error, info, warn};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

/// The running program: its pool and its HTTP server.
#[derive(Debug)]
pub struct App {
    pool: Arc<Pool>,
    gate: Gate,
    stop: Stop,
    /// Held as long as the pool runs: two pools on one storage folder would destroy each other's VMs.
    _lock: Option<File>,
}

impl App {
    /// Takes the port and starts the pool.
    ///
    /// # Errors
    /// One sentence for the user, when the port or the storage folder cannot
    /// be had. Everything that may mend itself (GitHub, Hyper-V) is retried
    /// by the running pool instead.
    pub fn start(config: &Config) -> Result<App, String> {
        let listener = listen(config.http.bind, config.http.port)?;
        let address =
            listener.local_addr().map_err(|err| format!("cannot tell the port's address: {err}"))?;
        let here = format!("http://{}", reachable_here(address));
        let keys = Keys::new(&config.webhook_secret);

        let simulated_github = config.github.pat.is_none().then(|| {
            let webhook = format!("{here}/webhook");
            Arc::new(MockGitHub::new(&config.github.labels, webhook, keys.clone()))
        });
        let github: Arc<dyn GitHub> = match (&simulated_github, client_settings(&config.github)) {
            (None, Some(settings)) => Arc::new(Client::new(settings)),
            (Some(simulated), _) => Arc::clone(simulated) as Arc<dyn GitHub>,
            (None, None) => return Err("GITHUB_PAT is not set".into()),
        };

        let (hypervisor, lock): (Arc<dyn Hypervisor>, _) = if config.mock {
            let timing = Timing {
                create: config.mock_timing.create,
                boot: config.mock_timing.boot,
                job: config.mock_timing.job,
            };
            (Arc::new(MockHypervisor::new(timing, here, simulated_github.clone())), None)
        } else {
            let lock = lock_storage(&config.hyperv.storage_path)?;
            let powershell = powershell()?;
            let settings = config.hyperv.clone();
            let deadline = Deadlines::default().check;
            host_check::run(&powershell, &settings, config.pool.size, deadline).iter().for_each(log_finding);
            let hyperv = HyperV::new(settings, powershell).map_err(|err| err.to_string())?;
            (Arc::new(hyperv), Some(lock))
        };

        let settings = pool::Settings {
            name_prefix: config.pool.name_prefix.clone(),
            size: config.pool.size,
            warm: config.pool.warm,
            labels: config.github.labels.clone(),
            boot_timeout: config.pool.boot_timeout,
            job_timeout: config.pool.job_timeout,
            poll: config.pool.poll,
            jit: config.github.registration == RegistrationMode::Jit || simulated_github.is_some(),
            identity: hyperv::pool_identity(&config.hyperv.storage_path).map_err(|err| err.to_string())?,
        };
        let pool = Pool::start(settings, github, hypervisor, keys.clone())
            .map_err(|err| format!("cannot start the pool's threads: {err}"))?;
        let pool = Arc::new(pool);
        let facts = runner_facts(&config.github);
        let api = Api::new(Arc::clone(&pool), keys, facts, simulated_github);
        let gate = gate::serve(
            listener,
            Limits::default(),
            Arc::new(move |request: &gate::Request| api.answer(request)),
        )
        .map_err(|err| format!("cannot start the HTTP server: {err}"))?;
        let stop = match config.pool.shutdown {
            Shutdown::Keep => Stop::Drain,
            Shutdown::Destroy => Stop::Destroy,
        };
        let kind = if config.mock { "simulated VMs" } else { "VMs" };
        info!("pool of {} {kind} for {}, listening on {address}", config.pool.size, scope(&config.github));
        Ok(App { pool, gate, stop, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.gate.local_addr()
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Stops as `SHUTDOWN` says, and returns when all is done that can be done now.
    pub fn stop(self) {
        self.pool.stop(self.stop);
        self.pool.join();
        self.gate.stop();
    }
}

/// What stands in the way of a pool on this host, and what does not.
///
/// # Errors
/// One sentence for the user, when the checks themselves cannot be made.
pub fn check(config: &Config) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    if !config.mock {
        let settings = &config.hyperv;
        let deadline = Deadlines::default().check;
        findings = match powershell() {
            Ok(powershell) => host_check::run(&powershell, settings, config.pool.size, deadline),
            Err(why) => vec![Finding::fault(why)],
        };
    }
    if let Some(settings) = client_settings(&config.github) {
        findings.push(match Client::new(settings).runners() {
            Ok(_) => Finding {
                severity: Severity::Ok,
                text: format!("GitHub lists the runners of {} with GITHUB_PAT.", scope(&config.github)),
            },
            Err(err) => Finding { severity: Severity::Fault, text: format!("GitHub cannot be used: {err}") },
        });
    }
    Ok(findings)
}

fn powershell() -> Result<PowerShell, String> {
    PowerShell::locate().and_then(PowerShell::new).map_err(|err| err.to_string())
}

fn listen(bind: IpAddr, port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((bind, port)).map_err(|err| match err.kind() {
        ErrorKind::AddrInUse => format!(
            "Port {port} on {bind} is in use by another program (another pool?): stop it, or set PORT to a free port"
        ),
        ErrorKind::PermissionDenied => {
            format!("Port {port} on {bind} may not be used by this account ({err}): set PORT to another, such as 8080")
        }
        ErrorKind::AddrNotAvailable => {
            format!("BIND={bind} is not an address of this host: set it to one of its addresses, or to 0.0.0.0 for all")
        }
        _ => format!("Port {port} on {bind} cannot be listened on: {err}"),
    })
}

fn reachable_here(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

fn lock_storage(folder: &Path) -> Result<File, String> {
    let path = folder.join("pool.lock");
    fs::create_dir_all(folder)
        .map_err(|err| format!("VM_STORAGE_PATH {} cannot be made: {err}", folder.display()))?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|err| format!("{} cannot be opened: {err}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!(
            "Another pool uses VM_STORAGE_PATH {}: stop it, or give this one a folder of its own",
            folder.display()
        )),
        Err(TryLockError::Error(err)) => Err(format!("{} cannot be locked: {err}", path.display())),
    }
}

fn log_finding(finding: &Finding) {
    match finding.severity {
        Severity::Ok => info!("{}", finding.text),
        Severity::Warning => warn!("{}", finding.text),
        // The pool starts all the same: much of it mends itself, such as a service that starts later than this.
        Severity::Fault => error!("{}", finding.text),
    }
}

fn client_settings(github: &GitHubConfig) -> Option<client::Settings> {
    Some(client::Settings {
        api_url: github.api_url.clone(),
        pat: github.pat.clone()?,
        org: github.org.clone(),
        repo: github.repo.clone(),
        registration: github.registration,
        runner_group: github.runner_group.clone(),
        labels: github.labels.clone(),
    })
}

fn scope(github: &GitHubConfig) -> String {
    match &github.repo {
        Some(repo) => format!("{}/{repo}", github.org),
        None => github.org.clone(),
    }
}

fn runner_facts(github: &GitHubConfig) -> RunnerFacts {
    RunnerFacts {
        organization: github.org.clone(),
        repository: github.repo.clone(),
        labels: github.labels.clone(),
        registration: match github.registration {
            RegistrationMode::Jit => "jit",
            RegistrationMode::Token => "token",
        },
        url: format!("{}/{}", web_url(&github.api_url), scope(github)),
        runner_group: github.runner_group.clone(),
    }
}

/// Where people, and `config.cmd`, find what the API at `api_url` serves.
///
/// <https://docs.github.com/en/enterprise-server@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>
fn web_url(api_url: &str) -> String {
    match api_url.strip_suffix("/api/v3") {
        Some(server) => server.into(),
        // Also GitHub Enterprise Cloud with data residency: https://api.SUBDOMAIN.ghe.com
        None => api_url.replacen("://api.", "://", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_an_organisation_follows_from_the_apis_address() {
        assert_eq!(web_url("https://api.github.com"), "https://github.com");
        assert_eq!(web_url("https://api.octo.ghe.com"), "https://octo.ghe.com");
        assert_eq!(web_url("https://github.example.com/api/v3"), "https://github.example.com");
    }

    #[test]
    fn a_port_in_use_is_named_with_its_mend() {
        let taken = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), port).unwrap_err();
        assert!(error.contains(&port.to_string()) && error.contains("in use"), "{error}");
    }
}

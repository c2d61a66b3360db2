//! The program's parts, put together: what `main` runs and tests drive.

use crate::config::{Config, Intake, Loaded, Shutdown, Source};
use crate::control::{self, ControlFile};
use crate::github::GitHub;
use crate::github::client::Client;
use crate::github::queue::JobQueue;
use crate::http::operator::Operator;
use crate::http::server::{self, Limits, Server};
use crate::http::{Api, JobListener};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::host_check::{self, Finding, Severity};
use crate::hypervisor::hyperv::HyperV;
use crate::hypervisor::identity;
use crate::hypervisor::powershell::PowerShell;
use crate::logging;
use crate::pool::slot::types::Stop;
use crate::secret::{Keys, Secret};
use crate::sim::github::MockGitHub;
use crate::sim::hypervisor::MockHypervisor;
use crate::vm_key;
use crate::workers::{HOST_SHUTDOWN_LIMIT, Pool, STOP_LIMIT};
use log::{Level, error, info, log, warn};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The name of the file in the storage folder that a running pool has locked.
pub(crate) const LOCK: &str = "pool.lock";

/// Why the program does not run. The texts are for the user.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The settings are wrong, all that is wrong with them: somebody has to correct them.
    Refused(String),
    /// Something else, which may be over at another try.
    Failed(String),
}

/// Reads the settings.
///
/// # Errors
/// All that is wrong with them, after what is worth a warning.
pub fn load(source: &Source) -> Result<Loaded, Failure> {
    source.load().map_err(|faults| {
        // A misspelled name, of which only a warning tells, is often the cause of a missing setting.
        let warnings = faults.warnings().iter().map(|warning| format!("warning: {warning}\n"));
        Failure::Refused(warnings.chain([faults.to_string()]).collect())
    })
}

/// Starts the log, and then the pool. A command that stops it calls `stop`, and
/// says whether at once.
///
/// # Errors
/// When there can be no log, and as [`App::start`].
pub fn launch(
    loaded: Loaded,
    source: Source,
    stop: impl Fn(bool) + Send + Sync + 'static,
) -> Result<(logging::Guard, App), Failure> {
    let Loaded { config, warnings } = loaded;
    // A failure that may pass: LOG_DIR can be on a volume that comes later, or its file be open elsewhere for a moment.
    let guard = logging::start(&config.log).map_err(Failure::Failed)?;
    // Nobody reads the standard error of a pool that runs unattended.
    std::panic::set_hook(Box::new(|panic| {
        error!("a defect of this program: {panic}");
        log::logger().flush();
    }));
    warnings.iter().for_each(|warning| warn!("{warning}"));
    App::start(&config, source, Box::new(stop)).map(|app| (guard, app)).map_err(Failure::Failed)
}

/// The running program: its pool and its HTTP server.
#[derive(Debug)]
pub struct App {
    pool: Arc<Pool>,
    server: Server,
    stop: Stop,
    control: Option<Arc<ControlFile>>,
    /// Held as long as the pool runs: two pools on one storage folder would destroy each other's VMs.
    _lock: Option<File>,
}

impl App {
    /// Takes the port and starts the pool.
    ///
    /// # Errors
    /// One sentence for the user, when the port or the storage folder cannot
    /// be had. What may recover by itself (GitHub, Hyper-V) is retried
    /// by the running pool instead.
    pub fn start(
        config: &Config,
        source: Source,
        stop: Box<dyn Fn(bool) + Send + Sync>,
    ) -> Result<App, String> {
        let listener = listen(config.http.bind, config.http.port)?;
        let address =
            listener.local_addr().map_err(|err| format!("cannot tell the port's address: {err}"))?;
        let reachable = reachable_here(address);
        let here = format!("http://{reachable}");
        let again = source.clone();
        let read = Box::new(move || {
            again.credential().unwrap_or_else(|why| {
                warn!("{why}");
                None
            })
        });

        let host = if config.mock {
            None
        } else {
            // First, since elsewhere than on Windows it fails, and nothing is to be left there.
            let powershell = powershell()?;
            let lock =
                lock_storage(&config.hyperv.storage_path, "stop it, or give this one a folder of its own")?;
            Some((powershell, lock))
        };
        let keys = Keys::new(&secret_of_keys(config)?);

        let mut queue = None;
        let (github, simulated_github): (Arc<dyn GitHub>, _) = match Client::new(&config.github, read) {
            Some(client) => {
                let client = Arc::new(client);
                if config.github.intake == Intake::ScaleSet {
                    queue = Some(Arc::clone(&client) as Arc<dyn JobQueue>);
                }
                (client, None)
            }
            None => {
                let webhook = format!("{here}/webhook");
                let simulated = Arc::new(MockGitHub::new(
                    config.github.scope(),
                    &config.github.labels,
                    webhook,
                    keys.clone(),
                ));
                (Arc::clone(&simulated) as Arc<dyn GitHub>, Some(simulated))
            }
        };

        let (hypervisor, lock): (Arc<dyn Hypervisor>, _) = match host {
            None => {
                let timing = config.mock_timing.clone();
                (Arc::new(MockHypervisor::new(timing, here.clone(), simulated_github.clone())), None)
            }
            Some((powershell, lock)) => {
                look_at_host(config, Arc::clone(&powershell));
                let mut hyperv =
                    HyperV::new(config.hyperv.clone(), powershell).map_err(|err| err.to_string())?;
                hyperv.template_path = Box::new(move || source.template_path());
                (Arc::new(hyperv), Some(lock))
            }
        };

        let identity = identity::pool_identity(&config.hyperv.storage_path).map_err(|err| err.to_string())?;
        let tag = identity::pool_tag(&config.hyperv.storage_path).map_err(|err| err.to_string())?;
        let log_dir = config.log.dir.as_deref();
        let pool = Pool::start(
            &config.pool,
            &config.github,
            (tag, identity),
            (github, queue),
            hypervisor,
            keys.clone(),
            log_dir,
        )
        .map_err(|err| format!("cannot start the pool's threads: {err}"))?;
        let pool = Arc::new(pool);
        let jobs = simulated_github.map(|github| -> Box<JobListener> {
            Box::new(move |action, job_id, labels| match action {
                "queued" => github.offer(job_id, labels.to_vec()),
                _ => github.withdraw(job_id),
            })
        });
        let control = control::path(&config.hyperv.storage_path, config.mock);
        let control = ControlFile::write(control.clone(), &here).map(Arc::new).map_err(|err| {
            warn!("no command will reach this pool, since {} cannot be written: {err}", control.display());
        });
        let control = control.ok();
        let mut api = Api::new(Arc::clone(&pool), keys, config.github.clone(), jobs);
        let address = reachable.ip();
        api.operator =
            control.as_ref().map(|control| Operator { token: control.token().clone(), address, stop });
        let server = server::serve(
            listener,
            Limits::default(),
            Arc::new(move |request: &server::Request| api.answer(request)),
        )
        .map_err(|err| format!("cannot start the HTTP server: {err}"))?;
        let stop = match config.pool.shutdown {
            Shutdown::Keep => Stop::Keep,
            Shutdown::Destroy => Stop::Destroy,
        };
        let kind = if config.mock { "simulated VMs" } else { "VMs" };
        let address = server.local_addr();
        info!("pool of {} {kind} for {}, listening on {address}", config.pool.size, config.github.scope());
        Ok(App { pool, server, stop, control, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The file by which commands find the pool, for who ends the process without [`App::stop`].
    pub fn control(&self) -> Option<Arc<ControlFile>> {
        self.control.clone()
    }

    /// Stops as `SHUTDOWN` says, and returns when all is done that can be done now.
    pub fn stop(self) {
        let stop = self.stop;
        self.end(stop, STOP_LIMIT);
    }

    /// Stops while Windows shuts down: removes the registrations of idle runners, and leaves
    /// the VMs to Hyper-V, which turns them off.
    pub fn stop_for_host_shutdown(self) {
        self.end(Stop::HostShutdown, HOST_SHUTDOWN_LIMIT);
    }

    fn end(self, stop: Stop, limit: Duration) {
        self.pool.stop(stop);
        self.pool.join(limit);
        self.server.stop();
        // Before the lock is given up, after which it may be another's.
        self.control.inspect(|control| control.remove());
    }
}

/// What stands in the way of a pool on this host, and what does not.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = match (!config.mock).then(powershell) {
        None => vec![Finding::ok("USE_MOCK is set: the VMs are simulated, so this host was not looked at.")],
        Some(Ok(powershell)) => host_check::run(&powershell, &config.hyperv, &config.pool),
        Some(Err(why)) => vec![Finding::fault(why)],
    };
    findings.push(port(config.http.bind, config.http.port));
    // A token is not renewed while it is checked.
    if let Some(client) = Client::new(&config.github, Box::new(|| None)) {
        match client.check() {
            Ok(checked) => {
                let app = config.github.app_id.as_ref().map(|id| format!("The GitHub App {id}"));
                let who = app.unwrap_or_else(|| "GITHUB_PAT".into());
                let text = format!("{who} may register runners for {}.", config.github.scope());
                findings.push(Finding::ok(text));
                findings.extend(checked.facts.into_iter().map(Finding::ok));
                findings.extend(checked.warnings.into_iter().map(Finding::warning));
            }
            Err(err) => findings.push(Finding::fault(format!("GitHub cannot be used: {err}"))),
        }
    }
    findings
}

pub(crate) fn powershell() -> Result<Arc<PowerShell>, String> {
    PowerShell::locate().and_then(PowerShell::new).map(Arc::new).map_err(|err| err.to_string())
}

/// What the VMs' secrets are made from.
fn secret_of_keys(config: &Config) -> Result<Secret, String> {
    if let Some(secret) = &config.webhook_secret {
        return Ok(secret.clone());
    }
    let storage = &config.hyperv.storage_path;
    vm_key::load_or_make(storage)
        .map_err(|err| format!("the VMs' key in {} cannot be kept: {err}", vm_key::folder(storage).display()))
}

/// Whether the pool could listen there now.
fn port(bind: IpAddr, port: u16) -> Finding {
    match try_to_listen(bind, port) {
        Ok(_) => Finding::ok(format!("Port {port} on {bind} is free.")),
        // Not a fault: a pool that runs may be checked too.
        Err(err) if err.kind() == ErrorKind::AddrInUse => Finding::warning(format!(
            "Port {port} on {bind} is in use: if that is not this pool, stop the other program, or set PORT to a free port."
        )),
        Err(err) => Finding::fault(format!("{}.", cannot_listen(bind, port, &err))),
    }
}

fn listen(bind: IpAddr, port: u16) -> Result<TcpListener, String> {
    try_to_listen(bind, port).map_err(|err| cannot_listen(bind, port, &err))
}

fn try_to_listen(bind: IpAddr, port: u16) -> io::Result<TcpListener> {
    // On Windows a port can be had for all addresses while another program has it for one, which then gets what comes.
    // https://learn.microsoft.com/en-us/windows/win32/winsock/using-so-reuseaddr-and-so-exclusiveaddruse
    if cfg!(windows) && bind.is_unspecified() {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    }
    TcpListener::bind((bind, port))
}

fn cannot_listen(bind: IpAddr, port: u16, err: &io::Error) -> String {
    match err.kind() {
        ErrorKind::AddrInUse => format!(
            "Port {port} on {bind} is in use by another program (another pool?): stop it, or set PORT to a free port"
        ),
        // What Windows says of a port in a reserved range, and of one that another program has for itself alone:
        // https://learn.microsoft.com/en-us/windows/win32/winsock/windows-sockets-error-codes-2
        ErrorKind::PermissionDenied => format!(
            "Port {port} on {bind} cannot be had ({err}): this account may not use it, another program has it, or it \
             lies in a range that Windows has reserved, as Hyper-V does (`netsh int ipv4 show excludedportrange \
             protocol=tcp` lists them): set PORT to another, such as 8080"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "BIND={bind} is not an address of this host: set it to one of its addresses, or to 0.0.0.0 for all"
        ),
        _ => format!("Port {port} on {bind} cannot be listened on: {err}"),
    }
}

fn reachable_here(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

/// Locks the storage folder, which one pool at a time may use. `remedy` says what to do if another has it.
///
/// # Errors
/// One sentence for the user.
pub(crate) fn lock_storage(folder: &Path, remedy: &str) -> Result<File, String> {
    let path = folder.join(LOCK);
    fs::create_dir_all(folder)
        .map_err(|err| format!("VM_STORAGE_PATH {} cannot be made: {err}", folder.display()))?;
    // Windows locks no file that is open for appending alone.
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&path)
        .map_err(|err| format!("{} cannot be opened: {err}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("Another pool uses VM_STORAGE_PATH {}: {remedy}", folder.display()))
        }
        Err(TryLockError::Error(err)) => Err(format!("{} cannot be locked: {err}", path.display())),
    }
}

/// Logs what stands in the way of a pool on this host, beside the pool's
/// start: it can take minutes, and a pool that cannot make VMs yet can still
/// look after those that run.
fn look_at_host(config: &Config, powershell: Arc<PowerShell>) {
    let (hyperv, pool) = (config.hyperv.clone(), config.pool.clone());
    let look = move || host_check::run(&powershell, &hyperv, &pool).iter().for_each(log_finding);
    if let Err(err) = std::thread::Builder::new().name("host-check".into()).spawn(look) {
        warn!("the host is not checked: {err}");
    }
}

fn log_finding(finding: &Finding) {
    let level = match finding.severity {
        Severity::Ok => Level::Info,
        Severity::Warning => Level::Warn,
        // The pool starts all the same: much of it clears up by itself, such as a service that starts later.
        Severity::Fault => Level::Error,
    };
    log!(level, "{}", finding.text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let taken = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), port).unwrap_err();
        assert!(error.contains(&port.to_string()) && error.contains("in use"), "{error}");
    }

    #[test]
    fn a_port_that_windows_has_reserved_is_named_with_how_to_see_the_ranges() {
        let reserved = io::Error::from(ErrorKind::PermissionDenied);
        let error = cannot_listen(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080, &reserved);
        assert!(error.contains("Port 8080"), "{error}");
        assert!(error.contains("netsh int ipv4 show excludedportrange protocol=tcp"), "{error}");
    }

    #[test]
    fn the_check_tells_whether_the_port_is_free() {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let taken = listen(here, 0).unwrap();
        let number = taken.local_addr().unwrap().port();
        assert_eq!(port(here, number).severity, Severity::Warning);
        drop(taken);
        assert_eq!(port(here, number).severity, Severity::Ok);
        // Set aside for documentation, so no host has it: RFC 5737.
        assert_eq!(port("192.0.2.1".parse().unwrap(), 0).severity, Severity::Fault);
    }
}

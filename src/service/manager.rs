//! What the commands ask of the service manager and the registry.

use super::{FOLDER, Failure, NAME, PARAMETERS, PROGRAM, folder_with_settings, has_settings};
use crate::app;
use crate::config::Source;
use crate::registry;
use crate::workers::{HOST_SHUTDOWN_LIMIT, STOP_LIMIT};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use windows_service::Error;
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceExitCode,
    ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState,
    ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

/// Where the event log finds the texts of this source.
/// <https://learn.microsoft.com/en-us/windows/win32/eventlog/event-sources>
const EVENT_SOURCE: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application\hyperv-runner-pool";
/// Part of each Windows that has Hyper-V; its texts are nothing but what the event brings.
const EVENT_TEXTS: &str = r"%SystemRoot%\Microsoft.NET\Framework64\v4.0.30319\EventLogMessages.dll";

/// Under [`PARAMETERS`] while a stop is wanted at once. Only administrators can write there,
/// while any user may send a service a control code of its own.
const STOP_NOW: &str = "StopNow";

/// After the first failure, the second, and each further one.
const RESTART_AFTER: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];
/// After so much time without a failure the next one counts as the first.
const FAILURES_FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// How long its start may take: it does not wait for Hyper-V or GitHub.
const START_LIMIT: Duration = Duration::from_secs(120);

const ACCESS_DENIED: i32 = 5;
/// Of a setting that this version of Windows, or Wine, does not have.
const UNKNOWN_LEVEL: i32 = 124;
const RUNS_ALREADY: i32 = 1056;
const NO_SUCH_SERVICE: i32 = 1060;
const TAKES_NO_CONTROL_NOW: i32 = 1061;
const NOT_STARTED: i32 = 1062;
const MARKED_FOR_DELETION: i32 = 1072;
const EXISTS: i32 = 1073;
const NEVER_STARTED: u32 = 1077;

pub(super) fn install(folder: Option<PathBuf>) -> Result<String, Failure> {
    let program = std::env::current_exe()
        .map_err(|err| Failure::Failed(format!("the path of this program cannot be read: {err}")))?;
    let folder = match folder {
        Some(folder) => {
            let absolute = std::path::absolute(&folder).ok().filter(|folder| folder.is_dir());
            absolute.ok_or_else(|| {
                Failure::Failed(format!("--folder {}: there is no such folder", folder.display()))
            })?
        }
        None => {
            let folder = folder_with_settings().map_err(Failure::Failed)?;
            if !has_settings(&folder) {
                return Err(Failure::Failed(format!(
                    "there is no .env here, nor in {}: name the pool's folder with --folder",
                    folder.display()
                )));
            }
            folder
        }
    };
    if self::folder().is_some_and(|installed| !is_same(&installed, &folder)) {
        assert_own("installed")?;
    }
    // A service that would end at once is not worth installing.
    app::load(&Source::new(std::env::vars_os(), folder.clone()))?;

    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "Hyper-V runner pool".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program.clone(),
        launch_arguments: ["service", "run"].map(OsString::from).into(),
        // None on vmms either: the pool waits for Hyper-V by itself, and a service that depends
        // on another is stopped with it, and is not started again where that one fails.
        dependencies: Vec::new(),
        account_name: None,
        account_password: None,
    };
    let failed = |err| failed("installing the service", err);
    let manager =
        manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE).map_err(failed)?;
    // A restart by the service manager needs the right to start.
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let service = match manager.create_service(&info, access) {
        Err(err) if code(&err) == Some(EXISTS) => {
            let service = manager.open_service(NAME, access).map_err(failed)?;
            service.change_config(&info).map_err(failed)?;
            service
        }
        created => created.map_err(failed)?,
    };
    let shown = folder.display();
    registry::set_text(PARAMETERS, FOLDER, &shown.to_string())
        .and_then(|()| registry::set_text(PARAMETERS, PROGRAM, &program.display().to_string()))
        .and_then(|()| registry::set_expandable(EVENT_SOURCE, "EventMessageFile", EVENT_TEXTS))
        // Errors, warnings and information.
        .and_then(|()| registry::set_number(EVENT_SOURCE, "TypesSupported", 7))
        .map_err(|err| failed(Error::Winapi(err)))?;
    let restart = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    let restarts = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FAILURES_FORGOTTEN_AFTER),
        reboot_msg: None,
        command: None,
        actions: Some(RESTART_AFTER.map(restart).into()),
    };
    let mut lacking = String::new();
    for (what, set) in [
        ("description", service.set_description("Keeps a pool of Hyper-V VMs as GitHub Actions runners.")),
        ("restart after a failure", service.update_failure_actions(restarts)),
        ("restart after an exit with an error", service.set_failure_actions_on_non_crash_failures(true)),
        ("time at a shutdown of Windows", service.set_preshutdown_timeout(2 * HOST_SHUTDOWN_LIMIT)),
    ] {
        match set {
            Err(err) if code(&err) == Some(UNKNOWN_LEVEL) => {
                lacking.push_str(&format!("warning: this Windows knows no {what} of a service\n"));
            }
            set => set.map_err(failed)?,
        }
    }
    Ok(format!(
        "The service {NAME} is installed and starts with Windows; `service start` starts it now.\n\
         It reads {shown}\\.env, and logs to {shown}\\logs unless LOG_DIR is set.\n\
         It runs as LocalSystem: let nobody but administrators write to {shown} and to {}.\n{lacking}",
        program.display()
    ))
}

/// The folder that the service works in, if it is installed.
pub(super) fn folder() -> Option<PathBuf> {
    registry::text(PARAMETERS, FOLDER).map(PathBuf::from)
}

/// The program that the service runs, if it is installed.
fn program() -> Option<PathBuf> {
    registry::text(PARAMETERS, PROGRAM).map(PathBuf::from)
}

/// Whether the service runs a program in another place than this one.
pub(super) fn is_of_another_program() -> bool {
    let this = std::env::current_exe();
    program().is_some_and(|program| !this.is_ok_and(|this| is_same(&this, &program)))
}

/// Whether two paths are the same to Windows.
fn is_same(one: &Path, other: &Path) -> bool {
    one.as_os_str().eq_ignore_ascii_case(other.as_os_str())
}

/// Refuses to change the service of another pool on this host.
fn assert_own(done: &str) -> Result<(), Failure> {
    match program() {
        Some(program) if is_of_another_program() && program.exists() => Err(Failure::Failed(format!(
            "the service {NAME} runs {}, which is another pool's, so nothing was {done}: a host has one such service. \
             Uninstall it with that program first",
            program.display()
        ))),
        _ => Ok(()),
    }
}

pub(super) fn uninstall() -> Result<String, Failure> {
    assert_own("removed")?;
    let failed = |err| failed("removing the service", err);
    let access = ServiceAccess::QUERY_STATUS | ServiceAccess::STOP | ServiceAccess::DELETE;
    let service = open(access).map_err(failed)?;
    stop_and_wait(&service, false)?;
    service.delete().map_err(failed)?;
    for key in [EVENT_SOURCE, PARAMETERS] {
        match registry::delete(key) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(Error::Winapi(err))),
            _ => {}
        }
    }
    Ok(format!(
        "The service {NAME} is stopped and removed. VMs with a job go on; the pool's next start adopts them.\n"
    ))
}

pub(super) fn start() -> Result<String, Failure> {
    let failed = |err| failed("starting the service", err);
    let service = open(ServiceAccess::QUERY_STATUS | ServiceAccess::START).map_err(failed)?;
    match service.start::<&OsStr>(&[]) {
        Err(err) if code(&err) == Some(RUNS_ALREADY) => {}
        started => started.map_err(failed)?,
    }
    match wait_until(&service, has_started, START_LIMIT)? {
        ServiceState::Running => Ok(format!("The service {NAME} runs.\n")),
        state => Err(Failure::Failed(format!(
            "the service {NAME} is {}: its log and the event log say why (`Get-WinEvent -ProviderName {NAME} \
             -MaxEvents 1 | Format-List`)",
            named(state)
        ))),
    }
}

pub(super) fn stop(now: bool) -> Result<String, Failure> {
    let service = open(ServiceAccess::QUERY_STATUS | ServiceAccess::STOP)
        .map_err(|err| failed("stopping the service", err))?;
    let ran = stop_and_wait(&service, now)?;
    Ok(format!("The service {NAME} {}.\n", if ran { "is stopped" } else { "was not running" }))
}

pub(super) fn status() -> Result<String, Failure> {
    let failed = |err| failed("asking for the service's state", err);
    let service = open(ServiceAccess::QUERY_STATUS).map_err(failed)?;
    let status = service.query_status().map_err(failed)?;
    let state = named(status.current_state);
    let folder = folder().unwrap_or_default();
    let (ServiceExitCode::Win32(code) | ServiceExitCode::ServiceSpecific(code)) = status.exit_code;
    match status.current_state {
        ServiceState::Running => Ok(format!("The service {NAME} is {state} in {}.\n", folder.display())),
        ServiceState::Stopped if code == NEVER_STARTED => Err(Failure::Failed(format!(
            "the service {NAME} is {state}; it was not started since Windows was"
        ))),
        ServiceState::Stopped => {
            Err(Failure::Failed(format!("the service {NAME} is {state}; its exit code was {code}")))
        }
        _ => Err(Failure::Failed(format!("the service {NAME} is {state}"))),
    }
}

pub(super) fn is_running() -> bool {
    let status = open(ServiceAccess::QUERY_STATUS).and_then(|service| service.query_status());
    status.is_ok_and(|status| status.current_state != ServiceState::Stopped)
}

/// Answers whether it ran.
fn stop_and_wait(service: &Service, now: bool) -> Result<bool, Failure> {
    let failed = |err| failed("stopping the service", err);
    // While it starts it takes no control.
    if wait_until(service, has_started, START_LIMIT)? == ServiceState::Stopped {
        return Ok(false);
    }
    if now {
        registry::set_text(PARAMETERS, STOP_NOW, "1").map_err(|err| failed(Error::Winapi(err)))?;
    }
    match service.stop() {
        // It is stopping already, or has stopped meanwhile.
        Err(err) if matches!(code(&err), Some(TAKES_NO_CONTROL_NOW | NOT_STARTED)) => {}
        stopping => drop(stopping.map_err(failed)?),
    }
    // It may still be called running for a moment.
    match wait_until(service, |state| state == ServiceState::Stopped, STOP_LIMIT + Duration::from_secs(30))? {
        ServiceState::Stopped => Ok(true),
        state => Err(Failure::Failed(format!(
            "the service {NAME} is still {}: end it with `hyperv-runner-pool service stop --now`",
            named(state)
        ))),
    }
}

/// Whether a stop is wanted at once.
pub(super) fn is_stop_now_wished() -> bool {
    registry::text(PARAMETERS, STOP_NOW).is_some_and(|wish| wish == "1")
}

/// Forgets the wish of an earlier stop.
pub(super) fn forget_stop_now() {
    if is_stop_now_wished() {
        let _ = registry::set_text(PARAMETERS, STOP_NOW, "");
    }
}

/// Why a call failed, in a sentence for whoever gave the command.
pub(super) fn failed(what: &str, err: Error) -> Failure {
    Failure::Failed(match code(&err) {
        Some(ACCESS_DENIED) => format!("{what} needs an elevated prompt: run it as administrator"),
        Some(NO_SUCH_SERVICE) => {
            format!("there is no service {NAME}: install it with `hyperv-runner-pool service install`")
        }
        Some(MARKED_FOR_DELETION) => format!(
            "the service {NAME} is removed once no program has it open: close the Services window and Event Viewer, \
             and try again"
        ),
        _ => format!("{what} failed: {}", why(&err)),
    })
}

/// The cause, which the error's own text does not name.
pub(super) fn why(err: &Error) -> String {
    if let Error::Winapi(cause) = err { cause.to_string() } else { err.to_string() }
}

fn code(err: &Error) -> Option<i32> {
    if let Error::Winapi(cause) = err { cause.raw_os_error() } else { None }
}

fn manager(access: ServiceManagerAccess) -> windows_service::Result<ServiceManager> {
    ServiceManager::local_computer(None::<&OsStr>, access)
}

fn open(access: ServiceAccess) -> windows_service::Result<Service> {
    manager(ServiceManagerAccess::CONNECT)?.open_service(NAME, access)
}

/// Whether it runs, or has ended.
fn has_started(state: ServiceState) -> bool {
    state != ServiceState::StartPending
}

/// Waits for a state, or until `limit` is over, and answers the state then.
fn wait_until(
    service: &Service,
    is_awaited: fn(ServiceState) -> bool,
    limit: Duration,
) -> Result<ServiceState, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let status = service.query_status().map_err(|err| failed("asking for the service's state", err))?;
        if is_awaited(status.current_state) || Instant::now() >= deadline {
            return Ok(status.current_state);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn named(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::StartPending => "starting",
        ServiceState::StopPending => "stopping",
        ServiceState::Running => "running",
        _ => "paused",
    }
}

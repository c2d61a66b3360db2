//! The process that the service manager starts.

use super::{Failure, NAME, exit_code, folder_with_settings, manager};
use crate::app;
use crate::config::Source;
use crate::event_log;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use log::{Level, LevelFilter, error, info, warn};
use std::ffi::OsString;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::{define_windows_service, service_dispatcher};

/// How often a stop tells that it goes on.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// After how long without a checkpoint the service manager may take the service for stuck.
const WAIT_HINT: Duration = Duration::from_secs(30);
/// "The service process could not connect to the service controller."
const NOT_STARTED_BY_MANAGER: i32 = 1063;

/// What the service manager, or an operator's command, asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    Stop,
    StopNow,
    HostShutdown,
}

/// Not captured by the handler: `windows-service` frees what the handler captures after the
/// first stop, and Windows may call it once more.
static CONTROLS: OnceLock<Sender<Control>> = OnceLock::new();

define_windows_service!(ffi_service_main, service_main);

/// Runs the service until it is stopped.
pub(super) fn run() -> Result<String, Failure> {
    service_dispatcher::start(NAME, ffi_service_main).map(|()| String::new()).map_err(|err| match err {
        windows_service::Error::Winapi(err) if err.raw_os_error() == Some(NOT_STARTED_BY_MANAGER) => {
            Failure::Failed("only Windows calls `service run`; use `service start`".into())
        }
        err => manager::failed("running as a service", err),
    })
}

fn service_main(_: Vec<OsString>) {
    let (sender, controls) = unbounded();
    let _ = CONTROLS.set(sender);
    // Without it there is nobody to report to.
    let Ok(handle) = service_control_handler::register(NAME, on_control) else { return };
    report(handle, ServiceState::StartPending, 1, 0);
    let end = serve(handle, &controls);
    if let Err(Failure::Refused(why) | Failure::Failed(why)) = &end {
        if log::max_level() == LevelFilter::Off {
            // There is no log yet, which would write it there too.
            event_log::write(Level::Error, why);
        }
        error!("{why}");
    }
    log::logger().flush();
    report(handle, ServiceState::Stopped, 0, exit_code(&end));
}

fn on_control(control: ServiceControl) -> ServiceControlHandlerResult {
    let control = match control {
        ServiceControl::Stop => Control::Stop,
        ServiceControl::Preshutdown => Control::HostShutdown,
        ServiceControl::Interrogate => return ServiceControlHandlerResult::NoError,
        _ => return ServiceControlHandlerResult::NotImplemented,
    };
    send(control);
    ServiceControlHandlerResult::NoError
}

fn send(control: Control) {
    if let Some(controls) = CONTROLS.get() {
        let _ = controls.send(control);
    }
}

fn serve(handle: ServiceStatusHandle, controls: &Receiver<Control>) -> Result<(), Failure> {
    // Of a stop that was not awaited to its end.
    manager::forget_stop_now();
    let folder = manager::folder().map_or_else(folder_with_settings, Ok).map_err(Failure::Failed)?;
    let source = Source::new(std::env::vars_os(), folder.clone());
    let mut loaded = app::load(&source)?;
    // A service's standard error leads nowhere.
    loaded.config.log.dir.get_or_insert_with(|| folder.join("logs"));
    loaded.config.log.event_log = true;
    let by_command = |now| send(if now { Control::StopNow } else { Control::Stop });
    let (_logging, app) = app::launch(loaded, source, by_command)?;
    report(handle, ServiceState::Running, 0, 0);

    let control = controls.recv().unwrap_or(Control::Stop);
    report(handle, ServiceState::StopPending, 1, 0);
    if control == Control::StopNow || manager::is_stop_now_wished() {
        return stopped_now();
    }
    let control_file = app.control();
    let (done, stopped) = bounded::<()>(0);
    let stop = move || {
        match control {
            Control::Stop | Control::StopNow => app.stop(),
            Control::HostShutdown => app.stop_for_host_shutdown(),
        }
        drop(done);
    };
    info!("stopping: no new VMs (`service stop --now` stops at once and leaves all to the next start)");
    thread::Builder::new()
        .name("stop".into())
        .spawn(stop)
        .map_err(|err| Failure::Failed(format!("cannot stop in order: {err}")))?;
    for checkpoint in 2.. {
        match stopped.recv_timeout(CHECKPOINT_EVERY) {
            Err(RecvTimeoutError::Timeout) if is_stop_now_wished(controls) => {
                control_file.inspect(|file| file.remove());
                return stopped_now();
            }
            Err(RecvTimeoutError::Timeout) => report(handle, ServiceState::StopPending, checkpoint, 0),
            _ => break,
        }
    }
    info!("stopped");
    Ok(())
}

fn is_stop_now_wished(controls: &Receiver<Control>) -> bool {
    manager::is_stop_now_wished() || controls.try_iter().any(|control| control == Control::StopNow)
}

fn stopped_now() -> Result<(), Failure> {
    warn!("stopped at once");
    Ok(())
}

fn report(handle: ServiceStatusHandle, state: ServiceState, checkpoint: u32, code: u32) {
    let pending = checkpoint > 0;
    let controls_accepted = match state {
        ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN,
        _ => ServiceControlAccept::empty(),
    };
    let exit_code =
        if code == 0 { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(code) };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code,
        checkpoint,
        wait_hint: if pending { WAIT_HINT } else { Duration::ZERO },
        process_id: None,
    };
    if let Err(err) = handle.set_service_status(status) {
        warn!("the service manager cannot be told the state {state:?}: {}", manager::why(&err));
    }
}

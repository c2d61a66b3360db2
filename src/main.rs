//! Arguments, configuration and logging; runs the program. Exit codes: 0 when
//! it was stopped or its checks found no fault, 1 when it could not run or
//! they did, 2 for wrong arguments or settings.

use crossbeam_channel::Sender;
use hyperv_runner_pool::app::{self, Failure};
use hyperv_runner_pool::config::{self, Loaded, Source};
use hyperv_runner_pool::hypervisor::host_check::{Finding, Severity};
use hyperv_runner_pool::service::{self, Command};
use log::{info, warn};
use std::io::{self, Write};
use std::process::ExitCode;

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // glibc keeps every large block for reuse once one was freed. A webhook's body is to be given back.
    // SAFETY: a plain call, made before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1024 * 1024);
    }
    let arguments: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => with_config(run),
        ["check"] => with_config(check),
        ["service", command @ ..] => match Command::parse(command) {
            Ok(command) => command.perform().map_or_else(|failure| failed(&failure), |text| print(&text)),
            Err(why) => {
                eprintln!("hyperv-runner-pool: {why} (see --help)");
                ExitCode::from(WRONG_USAGE)
            }
        },
        ["--help" | "-h" | "help"] => print(&config::help()),
        ["--version" | "-V"] => print(concat!("hyperv-runner-pool ", env!("CARGO_PKG_VERSION"), "\n")),
        ["check", unknown, ..] | [unknown, ..] => {
            eprintln!(
                "hyperv-runner-pool: {unknown:?} is not an argument; settings come from the environment and .env (see --help)"
            );
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn with_config(go: impl FnOnce(Loaded, Source) -> ExitCode) -> ExitCode {
    let folder = match service::folder() {
        Ok(folder) => folder,
        Err(why) => return fail(&why),
    };
    let source = Source::new(std::env::vars_os(), folder);
    match app::load(&source) {
        Ok(mut loaded) => {
            if let Some(folder) = service::installed_folder()
                && std::env::current_dir().ok().as_ref() != Some(&folder)
            {
                let folder = folder.display();
                loaded
                    .warnings
                    .push(format!("The settings are those of the installed service, in {folder}."));
            }
            go(loaded, source)
        }
        Err(failure) => failed(&failure),
    }
}

fn run(loaded: Loaded, source: Source) -> ExitCode {
    let (interrupt, interrupted) = crossbeam_channel::unbounded();
    if let Err(why) = on_interrupt(interrupt) {
        return fail(&format!("Ctrl+C cannot be caught: {why}"));
    }
    let (_flushed_at_the_end, app) = match app::launch(loaded, source) {
        Ok(running) => running,
        Err(failure) => return failed(&failure),
    };
    if interrupted.recv().is_ok() {
        info!("stopping: no new VMs (a second Ctrl+C stops at once and leaves all to the next start)");
    }
    let impatient = std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if interrupted.recv().is_ok() {
            warn!("stopped at once");
            log::logger().flush();
            std::process::exit(i32::from(FAILED));
        }
    });
    if let Err(err) = impatient {
        warn!("a second Ctrl+C will not be heard: {err}");
    }
    app.stop();
    info!("stopped");
    ExitCode::SUCCESS
}

/// Has Ctrl+C, a closed console, a logoff, a shutdown and SIGTERM tell `interrupt`.
fn on_interrupt(interrupt: Sender<()>) -> Result<(), String> {
    #[cfg(windows)]
    console::on_close(interrupt.clone())?;
    // The handler runs on a thread of its own, not in a signal's context.
    let handler = move || {
        // Nobody listens any more once the program is past stopping.
        let _ = interrupt.send(());
    };
    ctrlc::set_handler(handler).map_err(|err| err.to_string())
}

#[cfg(windows)]
mod console {
    //! Windows ends a program as soon as its handler of a closed console, a
    //! logoff or a shutdown returns, so that handler must wait for the pool.

    use crossbeam_channel::Sender;
    use std::sync::OnceLock;
    use windows_sys::Win32::System::Console::{
        CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT, SetConsoleCtrlHandler,
    };

    static CLOSED: OnceLock<Sender<()>> = OnceLock::new();

    /// Has the console's end tell `closed`. Windows gives 5 s after it (20 s at a shutdown).
    ///
    /// <https://learn.microsoft.com/en-us/windows/console/handlerroutine>
    pub fn on_close(closed: Sender<()>) -> Result<(), String> {
        let _ = CLOSED.set(closed);
        // SAFETY: `handler` has the documented signature and lives as long as the program.
        match unsafe { SetConsoleCtrlHandler(Some(handler), 1) } {
            0 => Err(std::io::Error::last_os_error().to_string()),
            _ => Ok(()),
        }
    }

    unsafe extern "system" fn handler(event: u32) -> windows_sys::core::BOOL {
        if !matches!(event, CTRL_CLOSE_EVENT | CTRL_LOGOFF_EVENT | CTRL_SHUTDOWN_EVENT) {
            return 0;
        }
        if let Some(closed) = CLOSED.get() {
            let _ = closed.send(());
        }
        loop {
            // Until `main` returns, or Windows has waited long enough.
            std::thread::park();
        }
    }
}

fn check(Loaded { config, warnings }: Loaded, _: Source) -> ExitCode {
    let mut findings: Vec<Finding> = warnings.into_iter().map(Finding::warning).collect();
    findings.extend(app::check(&config));
    let printed = print(&findings.iter().map(|finding| format!("{finding}\n")).collect::<String>());
    let faults = findings.iter().any(|finding| finding.severity == Severity::Fault);
    if faults { ExitCode::from(FAILED) } else { printed }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has read enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Refused(why) => {
            eprintln!("{why}");
            ExitCode::from(WRONG_USAGE)
        }
        Failure::Failed(why) => fail(why),
    }
}

fn fail(why: &str) -> ExitCode {
    // What was logged on the way here comes first.
    log::logger().flush();
    eprintln!("hyperv-runner-pool: {why}");
    ExitCode::from(FAILED)
}

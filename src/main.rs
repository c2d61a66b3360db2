//! Arguments, configuration and logging; runs the program. Exit codes: 0 when
//! it was stopped or its checks found no fault, 1 when it could not run or
//! they did, 2 for wrong arguments or settings.

use hyperv_runner_pool::app::{self, App};
use hyperv_runner_pool::config::{self, Config, Source};
use hyperv_runner_pool::hypervisor::host_check::Severity;
use hyperv_runner_pool::logging;
use log::{info, warn};
use std::io::{self, Write};
use std::process::ExitCode;

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => with_config(run),
        ["check"] => with_config(check),
        ["--help" | "-h" | "help"] => print(&config::help()),
        ["--version" | "-V"] => print(concat!("hyperv-runner-pool ", env!("CARGO_PKG_VERSION"), "\n")),
        [unknown, ..] => {
            eprintln!(
                "hyperv-runner-pool: {unknown:?} is not an argument; settings come from the environment and .env (see --help)"
            );
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn with_config(go: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    let folder = match std::env::current_dir() {
        Ok(folder) => folder,
        Err(err) => return fail(&format!("the working directory cannot be read: {err}")),
    };
    let loaded = match Source::new(std::env::vars_os(), folder).load() {
        Ok(loaded) => loaded,
        Err(faults) => {
            // A misspelled name, which is only warned of, is often the cause of a missing setting.
            faults.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
            eprintln!("{faults}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let log = &loaded.config.log;
    if let Err(err) = logging::start(log.level, log.format, log.dir.as_deref()) {
        let dir = log.dir.as_deref().map(|dir| dir.display().to_string()).unwrap_or_default();
        eprintln!("LOG_DIR {dir}: no log can be written there: {err}");
        return ExitCode::from(WRONG_USAGE);
    }
    loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
    go(&loaded.config)
}

fn run(config: &Config) -> ExitCode {
    let (interrupt, interrupted) = crossbeam_channel::unbounded();
    // The handler runs on a thread of its own, not in a signal's context.
    let told = ctrlc::set_handler(move || {
        // Nobody listens any more once the program is past stopping.
        let _ = interrupt.send(());
    });
    if let Err(err) = told {
        return fail(&format!("Ctrl+C cannot be caught: {err}"));
    }
    let app = match App::start(config) {
        Ok(app) => app,
        Err(why) => return fail(&why),
    };
    if interrupted.recv().is_ok() {
        info!("stopping: no new VMs (a second Ctrl+C stops at once and leaves all to the next start)");
    }
    let impatient = std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if interrupted.recv().is_ok() {
            warn!("stopped at once");
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

fn check(config: &Config) -> ExitCode {
    let findings = match app::check(config) {
        Ok(findings) => findings,
        Err(why) => return fail(&why),
    };
    let mut text = String::new();
    for finding in &findings {
        let mark = match finding.severity {
            Severity::Ok => "ok     ",
            Severity::Warning => "warning",
            Severity::Fault => "fault  ",
        };
        text.push_str(&format!("{mark}  {}\n", finding.text));
    }
    if config.mock {
        text.push_str("ok       USE_MOCK is set: the VMs are simulated, so this host was not looked at.\n");
    }
    print(&text);
    let faults = findings.iter().any(|finding| finding.severity == Severity::Fault);
    if faults { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has read enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("hyperv-runner-pool: {why}");
    ExitCode::from(FAILED)
}

//! The pool in a window, until Ctrl+C or a command stops it.

use super::{Done, FAILED};
use crate::app::{self, Failure};
use crate::config::{Loaded, Source};
use crossbeam_channel::Sender;
use log::{info, warn};
use std::process::ExitCode;

/// What ends the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Ctrl+C and its like: the first stops in order, the second at once.
    Interrupt,
    /// The command `stop`, however often.
    Stop,
    /// The command `stop --now`.
    StopNow,
}

pub(super) fn run(loaded: Loaded, source: Source) -> Done {
    let (wish, wishes) = crossbeam_channel::unbounded();
    on_interrupt(wish.clone()).map_err(|why| Failure::Failed(format!("Ctrl+C cannot be caught: {why}")))?;
    let by_command = move |now| {
        // Nobody listens any more once the program is past stopping.
        let _ = wish.send(if now { Wish::StopNow } else { Wish::Stop });
    };
    let (_flushed_at_the_end, app) = app::launch(loaded, source, by_command)?;
    if wishes.recv() == Ok(Wish::StopNow) {
        warn!("stopped at once");
        return Ok(ExitCode::from(FAILED));
    }
    info!("stopping: no new VMs (a second Ctrl+C stops at once and leaves all to the next start)");
    let control = app.control();
    let impatient = std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if wishes.iter().any(|wish| wish != Wish::Stop) {
            warn!("stopped at once");
            control.inspect(|control| control.remove());
            log::logger().flush();
            std::process::exit(i32::from(FAILED));
        }
    });
    if let Err(err) = impatient {
        warn!("a second Ctrl+C will not be heard: {err}");
    }
    app.stop();
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Has Ctrl+C, a closed console, a logoff, a shutdown and SIGTERM tell `interrupt`.
fn on_interrupt(interrupt: Sender<Wish>) -> Result<(), String> {
    #[cfg(windows)]
    let closed = interrupt.clone();
    // The handler runs on a thread of its own, not in a signal's context.
    let handler = move || {
        // Nobody listens any more once the program is past stopping.
        let _ = interrupt.send(Wish::Interrupt);
    };
    ctrlc::set_handler(handler).map_err(|err| err.to_string())?;
    // After it: Windows asks the newest handler first, and that one of ctrlc keeps every event to itself.
    #[cfg(windows)]
    console::on_close(closed)?;
    Ok(())
}

#[cfg(windows)]
mod console {
    //! Windows ends a program as soon as its handler of a closed console, a
    //! logoff or a shutdown returns, so that handler must wait for the pool.

    use super::Wish;
    use crossbeam_channel::Sender;
    use std::sync::OnceLock;
    use windows_sys::Win32::System::Console::{
        CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT, SetConsoleCtrlHandler,
    };

    static CLOSED: OnceLock<Sender<Wish>> = OnceLock::new();

    /// Has the console's end tell `closed`. Windows gives 5 s after it (20 s at a shutdown).
    ///
    /// <https://learn.microsoft.com/en-us/windows/console/handlerroutine>
    pub fn on_close(closed: Sender<Wish>) -> Result<(), String> {
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
            let _ = closed.send(Wish::Interrupt);
        }
        loop {
            // Until `main` returns, or Windows has waited long enough.
            std::thread::park();
        }
    }
}

//! The pool as a Windows service: the commands that install and control it,
//! the folder that it works in, and what the service manager is told.

#[cfg(windows)]
mod manager;
#[cfg(windows)]
mod process;

use crate::app::Failure;
use std::path::{Path, PathBuf};

/// The name of the service.
pub const NAME: &str = "hyperv-runner-pool";

/// Where the service's own values are in the registry.
#[cfg(windows)]
const PARAMETERS: &str = r"SYSTEM\CurrentControlSet\Services\hyperv-runner-pool\Parameters";
/// Names the folder that the service works in.
#[cfg(windows)]
const FOLDER: &str = "Folder";
/// Names the program that the service runs.
#[cfg(windows)]
const PROGRAM: &str = "Program";

/// What is asked of the service.
#[derive(Debug)]
pub enum Command {
    /// Install the service, or change what is installed.
    Install {
        /// The folder of `.env`. `None`: where `.env` is.
        folder: Option<PathBuf>,
    },
    /// Stop the service in order and remove it.
    Uninstall,
    /// Start it, and wait until it runs.
    Start,
    /// Stop it, and wait until it has stopped.
    Stop {
        /// Leave all VMs as they are.
        now: bool,
    },
    /// Tell whether it runs.
    Status,
    /// Be the service: only the service manager calls this.
    Run,
}

impl Command {
    /// Does it, and answers what there is to print.
    ///
    /// # Errors
    /// Why it cannot be done, or that the service does not run ([`Command::Status`]).
    #[cfg(windows)]
    pub fn perform(self) -> Result<String, Failure> {
        match self {
            Command::Install { folder } => manager::install(folder),
            Command::Uninstall => manager::uninstall(),
            Command::Start => manager::start(),
            Command::Stop { now } => manager::stop(now),
            Command::Status => manager::status(),
            Command::Run => process::run(),
        }
    }

    /// Does nothing: there are Windows services on Windows only.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(windows))]
    pub fn perform(self) -> Result<String, Failure> {
        Err(Failure::Failed("a Windows service can be installed and controlled on Windows only".into()))
    }
}

/// Whether this program's service runs, or is about to.
pub fn is_running() -> bool {
    #[cfg(windows)]
    return installed_folder().is_some() && manager::is_running();
    #[cfg(not(windows))]
    false
}

/// The folder of `.env`, from which relative paths start: that of the service
/// that this program is installed as; without one, the working directory if it
/// has a `.env`; else the program's own folder.
///
/// # Errors
/// One sentence, if the working directory or the program's path cannot be read.
pub fn folder() -> Result<PathBuf, String> {
    installed_folder().map_or_else(folder_with_settings, Ok)
}

/// The folder of the installed service, if it runs this program: another pool's
/// program has nothing to do with it.
pub fn installed_folder() -> Option<PathBuf> {
    #[cfg(windows)]
    return if manager::is_of_another_program() { None } else { manager::folder() };
    #[cfg(not(windows))]
    None
}

fn folder_with_settings() -> Result<PathBuf, String> {
    let working =
        std::env::current_dir().map_err(|err| format!("the working directory cannot be read: {err}"))?;
    let program =
        std::env::current_exe().map_err(|err| format!("the path of this program cannot be read: {err}"))?;
    let programs = program.parent().unwrap_or(&working).to_owned();
    Ok(if has_settings(&working) { working } else { programs })
}

fn has_settings(folder: &Path) -> bool {
    folder.join(".env").exists()
}

/// What the service manager is told at the end. It starts the service again
/// after any code but 0, so that 0 stands for a stop and for settings that
/// stay wrong until somebody corrects them.
#[cfg_attr(not(windows), allow(dead_code))]
fn exit_code(end: &Result<(), Failure>) -> u32 {
    match end {
        Ok(()) | Err(Failure::Refused(_)) => 0,
        Err(Failure::Failed(_)) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_that_may_pass_has_the_service_started_again() {
        assert_eq!(exit_code(&Ok(())), 0);
        assert_eq!(exit_code(&Err(Failure::Refused("PORT: `x` is wrong.".into()))), 0);
        assert_eq!(exit_code(&Err(Failure::Failed("Port 8080 is in use".into()))), 1);
    }

    #[test]
    #[cfg(not(windows))]
    fn elsewhere_than_on_windows_every_command_says_so() {
        let Failure::Failed(why) = Command::Status.perform().unwrap_err() else { panic!("refused") };
        assert_eq!(why, "a Windows service can be installed and controlled on Windows only");
    }
}

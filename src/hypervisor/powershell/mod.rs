//! Runs one of the embedded scripts in one PowerShell process: a JSON object
//! on standard input, one line of JSON on standard output, a deadline.
//!
//! Whatever the process does:
//! - [`PowerShell::run`] returns within a few seconds of its deadline or of its
//!   cancellation, and by then nothing of the process tree is alive. A job
//!   object ensures that on Windows, the process group on Unix.
//! - No value is ever part of a command line or of script text.
//! - No value given as a secret is part of an error or a log line.
//!
//! When the pool itself dies, Windows closes the job's last handle and so
//! kills the PowerShell process with it (`JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`).
//! That is wanted: an orphan that goes on creating would race the next start's
//! cleanup. It is safe because a half-made VM is marked from the start (Notes,
//! or its disk's name), destroy works from every half-made state, and a script
//! that has not received its whole input does nothing. Hyper-V's own service
//! may still finish a little later what it was asked for at the last moment, so
//! every round of the monitor cleans up.

mod bare;
mod process;
#[cfg(not(fuzzing))]
mod reply;
#[cfg(fuzzing)]
pub mod reply;
mod script_dir;

use super::{Error, NOT_WINDOWS};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use bare::bare;
use process::{STDOUT_LIMIT, run_process};
use reply::{ascii_json, find_answer, quote, redact};
use script_dir::ScriptDir;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Settings of the pool that no script has any business to inherit.
const SECRET_VARIABLES: [&str; 2] = ["GITHUB_PAT", "WEBHOOK_SECRET"];

/// An embedded script.
#[derive(Clone, Copy)]
pub struct Script {
    /// As errors and the log have it.
    name: &'static str,
    text: &'static str,
    /// After how long it is killed.
    pub deadline: Duration,
}

impl Script {
    const ALL: [Script; 11] = [
        Script::CREATE_VM,
        Script::DESTROY_VM,
        Script::EXAMINE_VM,
        Script::LIST_VMS,
        Script::CHECK_HOST,
        Script::KEY_VALUES,
        Script::NETWORK,
        Script::OWNERSHIP,
        Script::REQUEST,
        Script::SCREEN,
        Script::TEMPLATE_ACCESS,
    ];
    // What others dot-source. Not run by themselves.
    const KEY_VALUES: Script = Script::new("key-values", bare!("../scripts/key-values.ps1"), 0);
    const NETWORK: Script = Script::new("network", bare!("../scripts/network.ps1"), 0);
    const OWNERSHIP: Script = Script::new("ownership", bare!("../scripts/ownership.ps1"), 0);
    const REQUEST: Script = Script::new("request", bare!("../scripts/request.ps1"), 0);
    const SCREEN: Script = Script::new("screen", bare!("../scripts/screen.ps1"), 0);
    const TEMPLATE_ACCESS: Script =
        Script::new("template-access", bare!("../scripts/template-access.ps1"), 0);
    /// Makes and starts a VM.
    pub const CREATE_VM: Script = Script::new("create-vm", bare!("../scripts/create-vm.ps1"), 300);
    /// Removes a VM and its disk. That takes seconds, but a disk may stay locked for a while.
    pub const DESTROY_VM: Script = Script::new("destroy-vm", bare!("../scripts/destroy-vm.ps1"), 300);
    /// Finds out what can be seen of a VM from outside. Its destruction waits for that, so not for long.
    pub const EXAMINE_VM: Script = Script::new("examine-vm", bare!("../scripts/examine-vm.ps1"), 60);
    /// Lists all VMs of the host, and the disks in the storage folder.
    pub const LIST_VMS: Script = Script::new("list-vms", bare!("../scripts/list-vms.ps1"), 60);
    /// Gathers facts about the host. Reading all rules of its firewall can take a minute.
    pub const CHECK_HOST: Script = Script::new("check-host", bare!("../scripts/check-host.ps1"), 180);

    const fn new(name: &'static str, text: &'static str, seconds: u64) -> Script {
        Script { name, text, deadline: Duration::from_secs(seconds) }
    }

    fn file_name(self) -> String {
        format!("{}.ps1", self.name)
    }

    fn failed(self, why: &str, secrets: &[&Secret]) -> Error {
        Error(redact(format!("{} failed: {why}", self.name), secrets))
    }
}

/// A PowerShell program and a private folder with the scripts it runs.
pub struct PowerShell {
    program: PathBuf,
    scripts: Mutex<ScriptDir>,
    /// The longest that any script may take, for tests.
    pub longest: Duration,
}

impl PowerShell {
    /// Writes the scripts into a fresh folder under the system's temporary
    /// folder (not under the storage folder, which may not be there yet when
    /// the host is checked). The folder is removed when this is dropped.
    ///
    /// # Errors
    /// When the scripts cannot be written.
    pub fn new(program: PathBuf) -> Result<PowerShell, Error> {
        Ok(PowerShell { program, scripts: Mutex::new(ScriptDir::new()?), longest: Duration::MAX })
    }

    /// Where PowerShell is: on Windows,
    /// `%SystemRoot%\System32\WindowsPowerShell\v1.0\powershell.exe` and
    /// nothing else, because the pool runs with an administrator's rights and
    /// a search of `PATH` would run whatever somebody put there. Elsewhere the
    /// first `powershell` in `PATH`.
    ///
    /// # Errors
    /// When there is none.
    pub fn locate() -> Result<PathBuf, Error> {
        if cfg!(windows) {
            let root = std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
            let program = Path::new(&root).join(r"System32\WindowsPowerShell\v1.0\powershell.exe");
            if program.is_file() {
                return Ok(program);
            }
            return Err(Error(format!(
                "Windows PowerShell is not at {}: set the environment variable SystemRoot to the folder of Windows",
                program.display()
            )));
        }
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|folder| folder.join("powershell"))
            .find(|program| program.is_file())
            .ok_or_else(|| Error(NOT_WINDOWS.into()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-NoProfile", "-NonInteractive"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in SECRET_VARIABLES {
            command.env_remove(name);
        }
        if cfg!(windows) {
            // A pool that was started from PowerShell 7 has inherited its
            // module path, on which Windows PowerShell finds modules that it
            // cannot load. Without the variable it makes its own.
            // https://github.com/PowerShell/PowerShell/issues/27774
            command.env_remove("PSModulePath");
        }
        command
    }

    /// The group policy that forbids the scripts, such as
    /// `MachinePolicy=AllSigned`, if there is one: it goes before
    /// `-ExecutionPolicy Bypass`. Asked without a script, which it would forbid.
    ///
    /// <https://learn.microsoft.com/en-us/powershell/module/microsoft.powershell.core/about/about_execution_policies>
    pub(super) fn forbidding_policy(&self) -> Option<String> {
        let mut command = self.command();
        command.args([
            "-Command",
            "foreach ($one in @(Get-ExecutionPolicy -List)) { \"$($one.Scope)=$($one.ExecutionPolicy)\" }",
        ]);
        let deadline = Script::LIST_VMS.deadline.min(self.longest);
        let output = run_process(command, String::new(), deadline, None).ok()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let of_group_policy =
            |line: &&str| line.starts_with("MachinePolicy=") || line.starts_with("UserPolicy=");
        // The first that is defined decides.
        let decides = stdout
            .lines()
            .map(str::trim)
            .filter(of_group_policy)
            .find(|line| !line.ends_with("=Undefined"))?;
        (decides.ends_with("=AllSigned") || decides.ends_with("=Restricted")).then(|| decides.to_owned())
    }

    /// Runs `script` with `request` as its input, and returns its answer. Once
    /// `cancel` is true, the script is killed as at its deadline.
    ///
    /// # Errors
    /// When the script answers `"ok":false`; when it does not answer in JSON,
    /// or not by the deadline; when it is canceled; when the process cannot be
    /// started. The text names the script, and has `***` in place of every
    /// value of `secrets`.
    pub fn run<A: DeserializeOwned>(
        &self,
        script: Script,
        request: &Value,
        secrets: &[&Secret],
        cancel: Option<&AtomicBool>,
    ) -> Result<A, Error> {
        let answer = self.answer(script, request, secrets, cancel)?;
        serde_json::from_value(answer)
            .map_err(|e| script.failed(&format!("its answer is not as agreed: {e}"), secrets))
    }

    /// What is the same whatever the answer's type, so that there is one of it in the program.
    fn answer(
        &self,
        script: Script,
        request: &Value,
        secrets: &[&Secret],
        cancel: Option<&AtomicBool>,
    ) -> Result<Value, Error> {
        let failed = |why: String| script.failed(&why, secrets);
        let path = unpoisoned(&self.scripts).verified(script)?;

        let mut command = self.command();
        command.args(["-ExecutionPolicy", "Bypass", "-File"]).arg(&path);
        let deadline = script.deadline.min(self.longest);
        let started = Instant::now();
        let output = run_process(command, ascii_json(request), deadline, cancel)
            .map_err(|e| failed(format!("{} cannot be run: {e}", self.program.display())))?;
        log::debug!("{} took {} ms", script.name, started.elapsed().as_millis());
        let stdout = redact(String::from_utf8_lossy(&output.stdout).into_owned(), secrets);
        let stderr = redact(String::from_utf8_lossy(&output.stderr).into_owned(), secrets);

        if output.stdout_overflow {
            return Err(failed(format!("it wrote more than {} MiB", STDOUT_LIMIT >> 20)));
        }
        // An answer counts even if the process then failed to end in time:
        // the work that it reports is done.
        let Some((answer, noise)) = find_answer(&stdout) else {
            let mut why = output.ended;
            for (stream, text) in [("standard output", &stdout), ("standard error", &stderr)] {
                if !text.trim().is_empty() {
                    why.push_str(&format!("; {stream}: {}", quote(text)));
                }
            }
            return Err(failed(why));
        };
        for (stream, text) in [("standard output", &noise), ("standard error", &stderr)] {
            if !text.trim().is_empty() {
                log::debug!("{} also wrote to {stream}: {}", script.name, quote(text));
            }
        }

        if answer.get("ok") == Some(&Value::Bool(true)) {
            return Ok(answer);
        }
        let text = |key| answer.get(key).and_then(Value::as_str);
        let error = quote(text("error").unwrap_or("no reason given"));
        Err(match text("at") {
            Some(step) => Error(format!("{} failed at {step}: {error}", script.name)),
            None => failed(error),
        })
    }
}

impl std::fmt::Debug for PowerShell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerShell").field("program", &self.program).finish_non_exhaustive()
    }
}

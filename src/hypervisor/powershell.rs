//! Runs one of the embedded scripts in one PowerShell process: a JSON object
//! on standard input, one line of JSON on standard output, a deadline.
//!
//! What holds, whatever the process does:
//! - [`PowerShell::run`] returns by its deadline and a few seconds of grace,
//!   and by then nothing of the process tree lives. On Windows a job object
//!   sees to that, on Unix the process group.
//! - No value is ever part of a command line or of script text.
//! - No value given as a secret is part of an error or a log line.
//!
//! When the pool itself dies, Windows closes the job's last handle and so
//! kills the PowerShell process with it (`JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`).
//! That is wanted: an orphan that goes on creating would race the next start's
//! clean-up. It is safe because a half-made VM bears its mark from the start
//! (Notes, or its disk's name), destroy works from every half-made state, and
//! a script that has not received its whole input does nothing. What Hyper-V's
//! own service was asked for in the last moment may still come to pass a
//! little later, so clean-up belongs into every round of the monitor.

use super::Error;
use crate::secret::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much of a script's standard output is kept; more is a fault.
const STDOUT_LIMIT: usize = 16 * 1024 * 1024;
/// How much of its standard error is kept; the rest is dropped.
const STDERR_LIMIT: usize = 64 * 1024;
/// How much of either is quoted in an error, in characters.
const QUOTE_LIMIT: usize = 600;
/// How long after the end of a process its pipes may stay open. They stay
/// open only when something that it started has inherited them.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// Settings of the pool that no script has any business to inherit.
const SECRET_VARIABLES: [&str; 2] = ["GITHUB_PAT", "WEBHOOK_SECRET"];

/// An embedded script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Makes and starts a VM.
    CreateVm,
    /// Removes a VM and its disk.
    DestroyVm,
    /// Lists all VMs of the host, and the disks in the storage folder.
    ListVms,
    /// Gathers facts about the host.
    CheckHost,
}

impl Script {
    const ALL: [Script; 4] = [Script::CreateVm, Script::DestroyVm, Script::ListVms, Script::CheckHost];

    /// The script's name, as errors and the log have it.
    pub fn name(self) -> &'static str {
        match self {
            Script::CreateVm => "create-vm",
            Script::DestroyVm => "destroy-vm",
            Script::ListVms => "list-vms",
            Script::CheckHost => "check-host",
        }
    }

    fn file_name(self) -> &'static str {
        match self {
            Script::CreateVm => "create-vm.ps1",
            Script::DestroyVm => "destroy-vm.ps1",
            Script::ListVms => "list-vms.ps1",
            Script::CheckHost => "check-host.ps1",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Script::CreateVm => include_str!("scripts/create-vm.ps1"),
            Script::DestroyVm => include_str!("scripts/destroy-vm.ps1"),
            Script::ListVms => include_str!("scripts/list-vms.ps1"),
            Script::CheckHost => include_str!("scripts/check-host.ps1"),
        }
    }
}

/// A PowerShell program and a private folder with the scripts it runs.
pub struct PowerShell {
    program: PathBuf,
    scripts: Mutex<ScriptFolder>,
    processes: AtomicU64,
}

impl PowerShell {
    /// Writes the scripts into a fresh folder under the system's temporary
    /// folder (not under the storage folder, which may not be there yet when
    /// the host is checked). The folder is removed when this is dropped.
    ///
    /// # Errors
    /// When the scripts cannot be written.
    pub fn new(program: PathBuf) -> Result<PowerShell, Error> {
        Ok(PowerShell { program, scripts: Mutex::new(ScriptFolder::new()?), processes: AtomicU64::new(0) })
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
            .ok_or_else(|| Error(super::host_check::NOT_WINDOWS.into()))
    }

    /// How many processes have been started so far.
    pub fn processes(&self) -> u64 {
        self.processes.load(Ordering::Relaxed)
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
        request: &impl Serialize,
        secrets: &[&Secret],
        deadline: Duration,
        cancel: Option<&AtomicBool>,
    ) -> Result<A, Error> {
        let failed = |why: String| Error(redact(&format!("{} failed: {why}", script.name()), secrets));
        let input = ascii_json(request).map_err(|e| failed(format!("its input cannot be written: {e}")))?;
        let path = self.scripts.lock().unwrap_or_else(PoisonError::into_inner).verified(script)?;

        let mut command = Command::new(&self.program);
        command
            .args(["-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File"])
            .arg(&path)
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

        self.processes.fetch_add(1, Ordering::Relaxed);
        let output = run_process(command, input, deadline, cancel)
            .map_err(|e| failed(format!("{} cannot be run: {e}", self.program.display())))?;
        let stdout = redact(&String::from_utf8_lossy(&output.stdout), secrets);
        let stderr = redact(&readable_stderr(&String::from_utf8_lossy(&output.stderr)), secrets);

        if output.stdout_overflow {
            return Err(failed(format!("it wrote more than {} MiB", STDOUT_LIMIT >> 20)));
        }
        // An answer counts even if the process then failed to end in time:
        // the work that it reports is done.
        let Some((answer, noise)) = find_answer(&stdout) else {
            let mut why = match output.ended {
                Ended::Deadline => format!("it did not end within {} and was killed", seconds(deadline)),
                Ended::Canceled => "it was killed because the pool is stopping".to_owned(),
                Ended::Exit(status) => format!("it ended without an answer ({status})"),
            };
            for (stream, text) in [("standard output", &stdout), ("standard error", &stderr)] {
                if !text.trim().is_empty() {
                    why.push_str(&format!("; {stream}: {}", quote(text)));
                }
            }
            return Err(failed(why));
        };
        if !noise.trim().is_empty() {
            log::debug!("{} also wrote: {}", script.name(), quote(&noise));
        }
        if !stderr.trim().is_empty() {
            log::debug!("{} wrote to standard error: {}", script.name(), quote(&stderr));
        }

        if answer.get("ok") == Some(&Value::Bool(true)) {
            return serde_json::from_value(answer)
                .map_err(|e| failed(format!("its answer is not as agreed: {e}")));
        }
        let text = |key| answer.get(key).and_then(Value::as_str);
        let error = quote(text("error").unwrap_or("no reason given"));
        Err(match text("at") {
            Some(step) => Error(format!("{} failed at {step}: {error}", script.name())),
            None => failed(error),
        })
    }
}

impl std::fmt::Debug for PowerShell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerShell").field("program", &self.program).finish_non_exhaustive()
    }
}

/// The scripts on disk, for `-File`.
///
/// The pool runs with an administrator's rights, so nobody may slip in other
/// text: the folder is new (creating it fails if anybody made it before), on
/// Windows every file is kept open without sharing it for writing or deletion,
/// and before every run the text is compared. A cleaner of temporary files can
/// thus do no worse (where it can at all) than cause a new folder.
struct ScriptFolder {
    folder: PathBuf,
    /// Kept open for the locks on them; see above.
    files: Vec<fs::File>,
}

/// What the name of such a folder begins with.
const FOLDER_PREFIX: &str = "hyperv-runner-pool-";
/// A file in the folder that is locked for as long as the folder is in use.
const IN_USE: &str = "in-use";

impl ScriptFolder {
    fn new() -> Result<ScriptFolder, Error> {
        let parent = std::env::temp_dir();
        Self::new_in(&parent)
            .map_err(|e| Error(format!("the scripts cannot be written under {}: {e}", parent.display())))
    }

    fn new_in(parent: &Path) -> io::Result<ScriptFolder> {
        remove_abandoned(parent);
        let folder = parent.join(format!("{FOLDER_PREFIX}{}-{:016x}", std::process::id(), unique()));
        create_private_folder(&folder)?;
        let mut scripts = ScriptFolder { folder, files: Vec::new() };
        let in_use = fs::File::create_new(scripts.folder.join(IN_USE))?;
        in_use.lock()?;
        scripts.files.push(in_use);
        for script in Script::ALL {
            let path = scripts.folder.join(script.file_name());
            fs::write(&path, script.text())?;
            let mut options = fs::OpenOptions::new();
            options.read(true);
            #[cfg(windows)]
            {
                const FILE_SHARE_READ: u32 = 1;
                std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, FILE_SHARE_READ);
            }
            scripts.files.push(options.open(&path)?);
        }
        Ok(scripts)
    }

    /// The path of a script whose text is right.
    fn verified(&mut self, script: Script) -> Result<PathBuf, Error> {
        for _ in 0..2 {
            let path = self.folder.join(script.file_name());
            if fs::read(&path).is_ok_and(|text| text == script.text().as_bytes()) {
                return Ok(path);
            }
            log::warn!("{} is gone or was changed; writing the scripts anew", path.display());
            *self = ScriptFolder::new()?;
        }
        Err(Error(format!("{} does not keep its text", self.folder.join(script.file_name()).display())))
    }
}

impl Drop for ScriptFolder {
    fn drop(&mut self) {
        self.files.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the folders of pools that were killed.
fn remove_abandoned(parent: &Path) {
    // A folder this young may be one whose maker is about to lock it.
    const YOUNG: Duration = Duration::from_secs(60);
    let abandoned = |folder: &Path| -> io::Result<bool> {
        let in_use = fs::File::open(folder.join(IN_USE))?;
        let age = in_use.metadata()?.modified()?.elapsed().unwrap_or_default();
        Ok(age > YOUNG && in_use.try_lock().is_ok())
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX);
        if ours && abandoned(&entry.path()).unwrap_or(false) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(unix)]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// On Windows the rights are those of the temporary folder: a user's own, or
/// SYSTEM's, where others may add files at most.
#[cfg(not(unix))]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)
}

/// A number that no other call has returned, nor is likely to return in
/// another process.
fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Every RandomState has keys of its own, from the system's randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// How a process ended.
enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// It was killed at its deadline.
    Deadline,
    /// It was killed because it was canceled.
    Canceled,
}

/// What a process left.
struct Output {
    ended: Ended,
    stdout: Vec<u8>,
    stdout_overflow: bool,
    stderr: Vec<u8>,
}

fn run_process(
    mut command: Command,
    input: String,
    deadline: Duration,
    cancel: Option<&AtomicBool>,
) -> io::Result<Output> {
    let started = Instant::now();
    tree::prepare(&mut command);
    let mut child = command.spawn()?;
    let mut tree = match tree::Tree::of(&mut child) {
        Ok(tree) => tree,
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(e);
        }
    };
    let result = converse(&mut child, &tree, input, || {
        if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Some(Ended::Canceled);
        }
        (started.elapsed() >= deadline).then_some(Ended::Deadline)
    });
    // Also ends what a process left behind that ended by itself.
    tree.kill();
    let _ = child.kill();
    let exit = child.wait();
    let (cut_off, stdout, stderr) = result?;
    let ended = match cut_off {
        Some(cut_off) => cut_off,
        None => Ended::Exit(exit?),
    };
    // With the tree dead the pipes are at their end, unless something got out
    // of its process group (Unix only). That must not hold up the pool.
    let limit = Instant::now() + PIPE_GRACE;
    let (stdout, stdout_overflow) = stdout.take_by(limit);
    let (stderr, _) = stderr.take_by(limit);
    Ok(Output { ended, stdout, stdout_overflow, stderr })
}

/// Feeds the process and reads from it until it ends (`None`) or `cut_off`
/// says that it must. Input and both outputs have a thread each, so that no
/// full pipe can stop another.
fn converse(
    child: &mut Child,
    tree: &tree::Tree,
    input: String,
    cut_off: impl Fn() -> Option<Ended>,
) -> io::Result<(Option<Ended>, Capture, Capture)> {
    let missing = || io::Error::other("a standard stream is missing");
    let stdout = Capture::start(child.stdout.take().ok_or_else(missing)?, STDOUT_LIMIT)?;
    let stderr = Capture::start(child.stderr.take().ok_or_else(missing)?, STDERR_LIMIT)?;
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    thread::Builder::new().name("powershell-input".into()).spawn(move || {
        // A process that ends without reading its input says why by itself.
        let _ = stdin.write_all(input.as_bytes()).and_then(|()| stdin.flush());
    })?;

    // std can wait for a process, but not until a time; PowerShell takes
    // longer than any of these pauses to start.
    let mut pause = Duration::from_millis(1);
    let mut ended_at = None;
    loop {
        if ended_at.is_none() && tree.root_has_ended(child)? {
            ended_at = Some(Instant::now());
        }
        if let Some(at) = ended_at
            && (at.elapsed() >= PIPE_GRACE || stdout.at_end() && stderr.at_end())
        {
            return Ok((None, stdout, stderr));
        }
        if ended_at.is_none()
            && let Some(ended) = cut_off()
        {
            return Ok((Some(ended), stdout, stderr));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What a thread has read from a pipe so far.
struct Capture(Arc<Mutex<Captured>>);

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    overflow: bool,
    end: bool,
}

impl Capture {
    /// Reads to the end whatever comes, so that the writer never blocks, but
    /// keeps only the first `limit` bytes.
    fn start(mut pipe: impl Read + Send + 'static, limit: usize) -> io::Result<Capture> {
        let shared = Arc::new(Mutex::new(Captured::default()));
        let capture = Capture(shared.clone());
        thread::Builder::new().name("powershell-output".into()).spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = match pipe.read(&mut buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(read) => read,
                    Err(_) => 0,
                };
                let mut captured = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let kept = read.min(limit - captured.bytes.len());
                captured.bytes.extend_from_slice(&buffer[..kept]);
                captured.overflow |= kept < read;
                if read == 0 {
                    captured.end = true;
                    return;
                }
            }
        })?;
        Ok(capture)
    }

    fn at_end(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).end
    }

    fn take_by(self, limit: Instant) -> (Vec<u8>, bool) {
        while !self.at_end() && Instant::now() < limit {
            thread::sleep(Duration::from_millis(5));
        }
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut captured.bytes), captured.overflow)
    }
}

#[cfg(unix)]
mod tree {
    //! A process and its descendants, as a process group.

    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    /// Puts the process into a group of its own, which also keeps the
    /// terminal's Ctrl+C from it: a drain must not interrupt a creation.
    pub(super) fn prepare(command: &mut Command) {
        command.process_group(0);
    }

    pub(super) struct Tree(libc::pid_t);

    impl Tree {
        pub(super) fn of(child: &mut Child) -> io::Result<Tree> {
            libc::pid_t::try_from(child.id()).map(Tree).map_err(io::Error::other)
        }

        /// Does not reap the process, so that its id, which is also the
        /// group's, cannot go to another before [`Tree::kill`].
        pub(super) fn root_has_ended(&self, _child: &mut Child) -> io::Result<bool> {
            // SAFETY: siginfo_t is plain data, for which zeroes are valid;
            // waitid writes only to it.
            let (result, info) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
                (libc::waitid(libc::P_PID, self.0 as libc::id_t, &mut info, options), info)
            };
            if result != 0 {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
            }
            // Still zero when there was nothing to report.
            Ok(info.si_signo != 0)
        }

        /// To be called before the process is reaped.
        pub(super) fn kill(&mut self) {
            // SAFETY: sends a signal; touches no memory.
            unsafe { libc::killpg(self.0, libc::SIGKILL) };
        }
    }
}

#[cfg(windows)]
mod tree {
    //! A process and its descendants, as a job object.
    //!
    //! The process is put into its job right after its start and before it is
    //! given any input. Every script begins by reading its input to the end,
    //! so nothing that it starts can come before the job. (Starting it
    //! suspended would need its main thread's handle, which std keeps.)

    use std::io;
    use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
    use std::os::windows::process::CommandExt;
    use std::process::{Child, Command};
    use windows_sys::Win32::System::JobObjects::{
        AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
        JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
        TerminateJobObject,
    };
    use windows_sys::Win32::System::Threading::{CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW};

    /// Gives the process no window, and neither our console nor our group, so
    /// that Ctrl+C does not reach it: a drain must not interrupt a creation.
    pub(super) fn prepare(command: &mut Command) {
        command.creation_flags(CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP);
    }

    /// Closing the job's only handle, which the end of this process also does,
    /// kills everything in it.
    pub(super) struct Tree(OwnedHandle);

    impl Tree {
        pub(super) fn of(child: &mut Child) -> io::Result<Tree> {
            // SAFETY: no security attributes and no name are allowed; the
            // handle, once checked, is ours alone.
            let job = unsafe {
                let job = CreateJobObjectW(std::ptr::null(), std::ptr::null());
                if job.is_null() {
                    return Err(io::Error::last_os_error());
                }
                OwnedHandle::from_raw_handle(job)
            };
            let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
            limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
            // SAFETY: `limits` is what this information class wants, and its
            // size is given; both handles are open.
            let assigned = unsafe {
                SetInformationJobObject(
                    job.as_raw_handle(),
                    JobObjectExtendedLimitInformation,
                    (&raw const limits).cast(),
                    size_of_val(&limits) as u32,
                ) != 0
                    && AssignProcessToJobObject(job.as_raw_handle(), child.as_raw_handle()) != 0
            };
            if !assigned {
                let error = io::Error::last_os_error();
                // A process that has ended already cannot be put into a job;
                // what it has to say is worth hearing.
                if child.try_wait()?.is_none() {
                    return Err(error);
                }
            }
            Ok(Tree(job))
        }

        pub(super) fn root_has_ended(&self, child: &mut Child) -> io::Result<bool> {
            Ok(child.try_wait()?.is_some())
        }

        pub(super) fn kill(&mut self) {
            // SAFETY: the handle is open.
            unsafe { TerminateJobObject(self.0.as_raw_handle(), 1) };
        }
    }
}

/// What reads a script's output, without a script.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{Secret, Value};

    /// The answer in what a script wrote, and the rest of it.
    pub fn read(stdout: &str) -> Option<(Value, String)> {
        super::find_answer(stdout)
    }

    /// How a script's words are shown to a reader who may not know `secret`.
    pub fn shown(output: &str, secret: &Secret) -> String {
        super::quote(&super::redact(&super::readable_stderr(output), &[secret]))
    }
}

/// Compact JSON in ASCII, so that the code page in which PowerShell reads its
/// input does not matter.
fn ascii_json(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            // Outside of strings JSON is all ASCII, so this is inside of one.
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(ascii)
}

/// The last line that is an answer, and all other text.
fn find_answer(stdout: &str) -> Option<(Value, String)> {
    let lines: Vec<&str> = stdout.lines().collect();
    lines.iter().enumerate().rev().find_map(|(index, line)| {
        let line = line.trim().trim_start_matches('\u{feff}');
        if !line.starts_with('{') {
            return None;
        }
        let answer: Value = serde_json::from_str(line).ok()?;
        answer.get("ok")?.as_bool()?;
        let noise: Vec<&str> =
            lines.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, text)| *text).collect();
        Some((answer, noise.join("\n")))
    })
}

/// The beginning of a text, on one line.
fn quote(text: &str) -> String {
    let mut quoted = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if length > 0 {
            quoted.push(' ');
        }
        for c in word.chars() {
            length += 1;
            if length > QUOTE_LIMIT {
                quoted.push_str("...");
                return quoted;
            }
            quoted.push(if c.is_control() { '\u{fffd}' } else { c });
        }
        length += 1;
    }
    quoted
}

/// Replaces every secret by `***`, also where PowerShell has broken it over
/// lines, as it does with error texts at the width of its console.
fn redact(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.expose().is_empty()) {
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            match after_secret(rest, secret.expose()) {
                Some(after) => {
                    redacted.push_str("***");
                    rest = after;
                }
                None => {
                    redacted.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        text = redacted;
    }
    text
}

/// What follows the secret with which `text` begins.
fn after_secret<'a>(text: &'a str, secret: &str) -> Option<&'a str> {
    let mut rest = text;
    for (index, c) in secret.chars().enumerate() {
        if index > 0 {
            rest = rest.trim_start();
        }
        rest = rest.strip_prefix(c)?;
    }
    Some(rest)
}

/// Standard error as a person would write it. Windows PowerShell writes it as
/// XML when its output is redirected (`#< CLIXML`): of that only the errors
/// and warnings, without progress records and the like.
fn readable_stderr(stderr: &str) -> String {
    let Some((before, xml)) = stderr.split_once("#< CLIXML") else {
        return stderr.to_owned();
    };
    let mut text = before.to_owned();
    let mut rest = xml;
    while let Some(at) = rest.find("<S S=\"") {
        rest = &rest[at + "<S S=\"".len()..];
        let Some((stream, after)) = rest.split_once("\">") else { break };
        let (content, after) = after.split_once("</S>").unwrap_or((after, ""));
        if matches!(stream, "Error" | "Warning" | "error" | "warning") {
            text.push_str(&decode_clixml(content));
        }
        rest = after;
    }
    text
}

/// Undoes XML's entities and the `_x000D_` escapes of CLIXML.
fn decode_clixml(content: &str) -> String {
    let mut text = String::new();
    let mut rest = content;
    while let Some(at) = rest.find("_x") {
        text.push_str(&rest[..at]);
        let escape = rest.get(at + 2..at + 7).and_then(|escape| escape.strip_suffix('_'));
        match escape.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32) {
            Some(c) => {
                text.push(c);
                rest = &rest[at + 7..];
            }
            None => {
                text.push_str("_x");
                rest = &rest[at + 2..];
            }
        }
    }
    text.push_str(rest);
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn seconds(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_among_noise() {
        let (answer, noise) =
            find_answer("WARNING: x\r\n\u{feff}{\"ok\":true,\"n\":1}\r\n\r\n{not json\r\n").unwrap();
        assert_eq!(answer["n"], 1);
        assert!(noise.contains("WARNING: x") && noise.contains("{not json") && !noise.contains("\"ok\""));
    }

    #[test]
    fn the_last_of_several_answers_counts() {
        let (answer, _) = find_answer("{\"ok\":true,\"n\":1}\n{\"ok\":false,\"n\":2}\n").unwrap();
        assert_eq!(answer["n"], 2);
    }

    #[test]
    fn json_that_is_not_an_answer_is_noise() {
        for text in ["", "\n\n", "[]", "{}", "{\"ok\":1}", "\"ok\"", "{\"ok\":true"] {
            assert!(find_answer(text).is_none(), "{text}");
        }
    }

    #[test]
    fn input_is_ascii_whatever_it_says() {
        let json = ascii_json(&serde_json::json!({ "switch": "Büro \u{1f600} \"x\"" })).unwrap();
        assert!(json.is_ascii(), "{json}");
        let back: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back["switch"], "Büro \u{1f600} \"x\"");
    }

    #[test]
    fn a_secret_is_cut_out_even_if_broken_over_lines() {
        let secret = Secret::new("0123456789abcdef");
        let text = redact("a 0123456789abcdef b 01234567\r\n  89abcdef c 0123456789abcdeX", &[&secret]);
        assert_eq!(text, "a *** b *** c 0123456789abcdeX");
        assert_eq!(redact("text", &[&Secret::new("")]), "text");
    }

    #[test]
    fn clixml_becomes_the_text_of_its_errors() {
        let text = readable_stderr(concat!(
            "#< CLIXML\r\n<Objs Version=\"1.1.0.1\" xmlns=\"http://schemas.microsoft.com/powershell/2004/04\">",
            "<Obj S=\"progress\" RefId=\"0\"><MS><I64 N=\"SourceId\">1</I64></MS></Obj>",
            "<S S=\"debug\">hidden</S>",
            "<S S=\"Error\">Get-VM : it&apos;s &lt;gone&gt;_x000D__x000A_</S><S S=\"Error\">a_xyz_b</S></Objs>",
        ));
        assert_eq!(text, "Get-VM : it's <gone>\r\na_xyz_b");
        assert_eq!(readable_stderr("plain"), "plain");
        assert_eq!(readable_stderr("#< CLIXML\r\n<Objs><S S=\"Error\">cut of"), "cut of");
    }

    #[test]
    fn a_quotation_is_one_short_line() {
        assert_eq!(quote(" a\r\n\t b\u{7} "), "a b\u{fffd}");
        let long = quote(&"x".repeat(QUOTE_LIMIT * 2));
        assert_eq!(long.len(), QUOTE_LIMIT + 3);
    }

    #[test]
    fn a_script_that_was_removed_or_changed_is_written_anew() {
        let mut folder = ScriptFolder::new().unwrap();
        let first = folder.verified(Script::ListVms).unwrap();
        assert_eq!(folder.verified(Script::ListVms).unwrap(), first, "and otherwise stays");
        let script = Script::CreateVm;
        // On Windows both are impossible while the pool holds the files.
        if fs::remove_file(folder.verified(script).unwrap()).is_ok() {
            assert_eq!(fs::read_to_string(folder.verified(script).unwrap()).unwrap(), script.text());
        }
        if fs::write(folder.verified(script).unwrap(), "evil").is_ok() {
            assert_eq!(fs::read_to_string(folder.verified(script).unwrap()).unwrap(), script.text());
        }
        let last = folder.verified(script).unwrap();
        drop(folder);
        assert!(!last.parent().unwrap().exists());
    }

    #[test]
    fn the_folder_of_a_killed_pool_goes_at_the_next_start_and_that_of_a_living_one_stays() {
        let parent = std::env::temp_dir().join(format!("scripts {:016x}", unique()));
        fs::create_dir(&parent).unwrap();
        let living = ScriptFolder::new_in(&parent).unwrap();
        let mut killed = ScriptFolder::new_in(&parent).unwrap();
        let left = killed.folder.clone();
        for folder in [&killed, &living] {
            folder.files[0].set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        killed.files.clear();
        std::mem::forget(killed);

        let next = ScriptFolder::new_in(&parent).unwrap();
        assert!(!left.exists());
        assert!(living.folder.join(Script::CreateVm.file_name()).exists());
        drop((living, next));
        fs::remove_dir(&parent).unwrap();
    }
}

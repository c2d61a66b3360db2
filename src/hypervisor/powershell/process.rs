//! One process with its descendants: what it is fed, what it writes, and its
//! end.

use crossbeam_channel::Receiver;
use std::io::{self, Read, Write};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How much of a script's standard output is kept; more is a fault.
pub(super) const STDOUT_LIMIT: u64 = 16 * 1024 * 1024;
/// How much of its standard error is kept; the rest is dropped.
const STDERR_LIMIT: u64 = 64 * 1024;
/// How long the pipes of a dead process are waited for. They stay open only
/// for something that got out of its process group (Unix only), which must not
/// hold up the pool.
const PIPE_GRACE: Duration = Duration::from_secs(5);

/// What a process left.
pub(super) struct Output {
    /// How it ended, as an error says it.
    pub(super) ended: String,
    pub(super) stdout: Vec<u8>,
    pub(super) stdout_overflow: bool,
    pub(super) stderr: Vec<u8>,
}

/// Runs a process to its end, its deadline, or until `cancel` is true. By the
/// time this returns nothing of its process tree lives. Input and both outputs
/// have a thread each, so that no full pipe can stop another.
pub(super) fn run_process(
    command: Command,
    input: String,
    deadline: Duration,
    cancel: Option<&AtomicBool>,
) -> io::Result<Output> {
    let started = Instant::now();
    let mut process = Process::start(command)?;
    let child = &mut process.child;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other("a standard stream is missing"));
    };
    let stdout = read_to_end(stdout, STDOUT_LIMIT)?;
    let stderr = read_to_end(stderr, STDERR_LIMIT)?;
    thread::Builder::new().name("powershell-input".into()).spawn(move || {
        // A process that ends without reading its input says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    })?;

    // std can wait for a process, but not until a time; PowerShell takes
    // longer than any of these pauses to start.
    let mut pause = Duration::from_millis(1);
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break format!("it ended without an answer ({status})");
        }
        if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            break "it was killed because the pool is stopping".to_owned();
        }
        if started.elapsed() >= deadline {
            break format!("it did not end within {deadline:?} and was killed");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    // Also ends what a process left behind that ended by itself.
    drop(process);
    let (stdout, stdout_overflow) = stdout.recv_timeout(PIPE_GRACE).unwrap_or_default();
    let (stderr, _) = stderr.recv_timeout(PIPE_GRACE).unwrap_or_default();
    Ok(Output { ended, stdout, stdout_overflow, stderr })
}

/// Reads whatever comes to its end, so that the writer never blocks, but keeps
/// only the first `limit` bytes. Sends those, and whether there were more.
fn read_to_end(mut pipe: impl Read + Send + 'static, limit: u64) -> io::Result<Receiver<(Vec<u8>, bool)>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    thread::Builder::new().name("powershell-output".into()).spawn(move || {
        let mut kept = Vec::new();
        // A pipe that breaks has been read as far as it goes.
        let _ = pipe.by_ref().take(limit).read_to_end(&mut kept);
        let dropped = io::copy(&mut pipe, &mut io::sink()).unwrap_or(0);
        let _ = sender.send((kept, dropped > 0));
    })?;
    Ok(receiver)
}

/// A process that is killed with all it has started when this is dropped.
struct Process {
    child: Child,
    tree: Option<tree::Tree>,
}

impl Process {
    fn start(mut command: Command) -> io::Result<Process> {
        tree::prepare(&mut command);
        let mut process = Process { child: command.spawn()?, tree: None };
        process.tree = Some(tree::Tree::of(&mut process.child)?);
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(tree) = &self.tree {
            tree.kill();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
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

        /// The system gives ids out in turn, so that of a process that has just been reaped is no other's yet.
        pub(super) fn kill(&self) {
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

        pub(super) fn kill(&self) {
            // SAFETY: the handle is open.
            unsafe { TerminateJobObject(self.0.as_raw_handle(), 1) };
        }
    }
}

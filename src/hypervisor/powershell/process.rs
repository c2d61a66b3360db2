//! One process with its descendants: what it is fed, what it writes, and its
//! end.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much of a script's standard output is kept; more is a fault.
pub(super) const STDOUT_LIMIT: usize = 16 * 1024 * 1024;
/// How much of its standard error is kept; the rest is dropped.
const STDERR_LIMIT: usize = 64 * 1024;
/// How long after the end of a process its pipes may stay open. They stay
/// open only when something that it started has inherited them.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// How a process ended.
pub(super) enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// It was killed at its deadline.
    Deadline,
    /// It was killed because it was canceled.
    Canceled,
}

/// What a process left.
pub(super) struct Output {
    pub(super) ended: Ended,
    pub(super) stdout: Vec<u8>,
    pub(super) stdout_overflow: bool,
    pub(super) stderr: Vec<u8>,
}

/// Runs a process to its end, its deadline, or until `cancel` is true. By the
/// time this returns nothing of its process tree lives.
pub(super) fn run_process(
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

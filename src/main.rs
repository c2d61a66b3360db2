//! The process: all of it is `commands`, in the library.

use hyperv_runner_pool::commands;
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // glibc keeps every large block for reuse once one was freed. A webhook's body is to be given back.
    // SAFETY: a plain call, made before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1024 * 1024);
    }
    let arguments = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    commands::perform(&arguments.collect::<Vec<_>>())
}

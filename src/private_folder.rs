//! A folder that nobody but administrators and the pool's own account may open.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

/// Writes a file that is alone in such a folder, which is made anew: who made
/// one that was there may have kept it open. Nobody ever reads half of the file.
///
/// # Errors
/// When the old folder cannot be removed, or the new one or the file not be made.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    match unless_held(|| fs::remove_dir_all(folder)) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
        _ => create(folder)?,
    }
    let whole = path.with_extension("new");
    fs::write(&whole, text)?;
    unless_held(|| fs::rename(&whole, path))
}

/// Tries for up to a second: on Windows a virus scanner keeps a new file to itself for a moment.
fn unless_held(change: impl Fn() -> io::Result<()>) -> io::Result<()> {
    const SHARING_VIOLATION: i32 = 32;
    for _ in 0..10 {
        match change() {
            Err(err)
                if cfg!(windows)
                    && (err.kind() == ErrorKind::PermissionDenied
                        || err.raw_os_error() == Some(SHARING_VIOLATION)) => {}
            changed => return changed,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    change()
}

/// Makes a folder that is open to its owner alone.
///
/// # Errors
/// Also when it exists: whoever made it may have kept it open.
#[cfg(unix)]
pub(crate) fn create(folder: &Path) -> io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(folder)
}

/// Makes a folder that is open to SYSTEM, administrators and its owner alone:
/// elsewhere any user may make and read files.
///
/// # Errors
/// Also when it exists: whoever made it may have kept it open.
#[cfg(windows)]
pub(crate) fn create(folder: &Path) -> io::Result<()> {
    use std::os::windows::ffi::OsStrExt;
    use windows_sys::Win32::Foundation::LocalFree;
    use windows_sys::Win32::Security::Authorization::{
        ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
    };
    use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
    use windows_sys::Win32::Storage::FileSystem::CreateDirectoryW;

    // P: nothing is inherited from above. OICI: all that is made in it inherits. S-1-3-4: the owner.
    // https://learn.microsoft.com/en-us/windows/win32/secauthz/security-descriptor-string-format
    let rights = crate::registry::wide("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;S-1-3-4)");
    let path: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut descriptor = std::ptr::null_mut();
    // SAFETY: both texts end with NUL; the descriptor is what Windows made, and freed once.
    unsafe {
        let (rights, no_size) = (rights.as_ptr(), std::ptr::null_mut());
        if ConvertStringSecurityDescriptorToSecurityDescriptorW(
            rights,
            SDDL_REVISION_1,
            &raw mut descriptor,
            no_size,
        ) == 0
        {
            return Err(io::Error::last_os_error());
        }
        let attributes = SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: descriptor,
            bInheritHandle: 0,
        };
        let made = match CreateDirectoryW(path.as_ptr(), &raw const attributes) {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        LocalFree(descriptor);
        made
    }
}

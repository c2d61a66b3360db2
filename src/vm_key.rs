//! The key from which the secrets of VMs are made where there is no
//! `WEBHOOK_SECRET`: made once, and kept in the storage folder in a file that
//! only administrators and the pool's own account can read.

use crate::private_folder;
use crate::secret::Secret;
use log::warn;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The folder with the key.
pub fn folder(storage: &Path) -> PathBuf {
    storage.join("key")
}

/// The pool's key, made at the first call.
///
/// # Errors
/// When it can be neither read nor written, or the system has no randomness.
pub fn load_or_make(storage: &Path) -> io::Result<Secret> {
    let path = folder(storage).join("vm.key");
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            return Ok(Secret::new(text));
        }
        Err(err) if err.kind() != ErrorKind::NotFound && err.kind() != ErrorKind::InvalidData => {
            return Err(err);
        }
        Err(err) if err.kind() == ErrorKind::NotFound => {}
        _ => warn!(
            "{} is damaged, so the pool makes another key: VMs that were created before can no longer report to it",
            path.display()
        ),
    }
    let key = Secret::random()?;
    private_folder::write(&path, key.expose())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pool-key-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn it_is_made_once_and_differs_for_each_pool() {
        let (one, other) = (storage("one"), storage("other"));
        let key = load_or_make(&one).unwrap();
        assert_eq!(key.expose().len(), 64);
        assert_eq!(load_or_make(&one).unwrap(), key);
        assert_ne!(load_or_make(&other).unwrap(), key);
        fs::remove_dir_all(one).unwrap();
        fs::remove_dir_all(other).unwrap();
    }

    #[test]
    fn a_damaged_one_is_replaced() {
        let storage = storage("damaged");
        let key = load_or_make(&storage).unwrap();
        let path = folder(&storage).join("vm.key");
        for damaged in [&b""[..], b"short", &[0xff; 64]] {
            fs::write(&path, damaged).unwrap();
            let other = load_or_make(&storage).unwrap();
            assert_ne!(other, key);
            assert_eq!(load_or_make(&storage).unwrap(), other);
        }
        fs::remove_dir_all(storage).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn nobody_but_its_owner_can_open_its_folder() {
        use std::os::unix::fs::PermissionsExt;
        let storage = storage("rights");
        load_or_make(&storage).unwrap();
        assert_eq!(fs::metadata(folder(&storage)).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir_all(storage).unwrap();
    }
}

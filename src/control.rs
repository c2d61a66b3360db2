//! How a command finds the running pool, and shows that it may command it: a
//! file with the pool's address and a token, both of this start alone.
//!
//! It lies in the storage folder, which is what tells one pool from another,
//! and only administrators and the pool's own account can read it.

use crate::private_folder;
use crate::secret::Secret;
use serde::Deserialize;
use serde_json::json;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file, for as long as the pool runs.
#[derive(Debug)]
pub struct ControlFile {
    path: PathBuf,
    token: Secret,
}

/// What a command finds in the file.
#[derive(Debug)]
pub struct Control {
    /// Where the pool listens, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// What it must be shown.
    pub token: Secret,
}

/// The path of the file. A simulated pool never comes into the way of a real one.
pub fn path(storage: &Path, simulated: bool) -> PathBuf {
    storage.join(if simulated { "control-simulated" } else { "control" }).join("pool.json")
}

impl ControlFile {
    /// Writes the file with a new token. What a killed pool has left goes first.
    ///
    /// # Errors
    /// When the folder or the file cannot be made, or the system has no randomness.
    pub fn write(path: PathBuf, url: &str) -> io::Result<ControlFile> {
        let token = Secret::random()?;
        if let Some(storage) = path.parent().and_then(Path::parent) {
            fs::create_dir_all(storage)?;
        }
        private_folder::write(&path, &json!({ "url": url, "token": token.expose() }).to_string())?;
        Ok(ControlFile { path, token })
    }

    /// What a command must show.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// Removes the file, unless another pool has put its own in its place.
    pub fn remove(&self) {
        let is_ours = read(&self.path).is_ok_and(|control| control.token == self.token);
        if let Some(folder) = self.path.parent().filter(|_| is_ours) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Drop for ControlFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Reads the file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when no pool runs, [`io::ErrorKind::PermissionDenied`] for lack of rights.
pub fn read(path: &Path) -> io::Result<Control> {
    #[derive(Deserialize)]
    struct File {
        url: String,
        token: String,
    }
    let File { url, token } = serde_json::from_slice(&fs::read(path)?)?;
    Ok(Control { url, token: Secret::new(token) })
}

/// An HTTP client for this host alone.
pub(crate) fn loopback_agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        // Nothing here redirects, and https would need roots of trust.
        .max_redirects(0)
        .proxy(None)
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pool-control-{}-{name}", std::process::id()))
    }

    #[test]
    fn each_start_writes_a_token_of_its_own_and_takes_it_away_at_the_end() {
        let storage = folder("life");
        let path = path(&storage, false);
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let first = ControlFile::write(path.clone(), "http://127.0.0.1:1").unwrap();
        let read_back = read(&path).unwrap();
        assert_eq!((read_back.url.as_str(), &read_back.token), ("http://127.0.0.1:1", first.token()));
        assert_eq!(first.token().expose().len(), 64);

        // The one before was killed, or ends late: it leaves the new one's file alone.
        let second = ControlFile::write(path.clone(), "http://127.0.0.1:2").unwrap();
        assert_ne!(second.token(), first.token());
        drop(first);
        assert_eq!(read(&path).unwrap().url, "http://127.0.0.1:2");
        drop(second);
        assert_eq!(fs::read_dir(&storage).unwrap().count(), 0);
        fs::remove_dir(&storage).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn nobody_but_its_owner_can_open_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let storage = folder("rights");
        let file = ControlFile::write(path(&storage, false), "").unwrap();
        let rights = fs::metadata(file.path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(rights & 0o777, 0o700);
        drop(file);
        fs::remove_dir(&storage).unwrap();
    }

    #[test]
    fn the_token_is_never_shown() {
        let storage = folder("debug");
        let file = ControlFile::write(path(&storage, true), "").unwrap();
        let shown = format!("{file:?} {:?}", read(&file.path).unwrap());
        assert!(!shown.contains(file.token().expose()) && shown.contains("***"), "{shown}");
        drop(file);
        fs::remove_dir(&storage).unwrap();
    }
}

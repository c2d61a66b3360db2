//! The folder in which the scripts lie while the pool runs.

use super::super::Error;
use super::Script;
use crate::private_folder;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The scripts on disk, for `-File`.
///
/// The pool runs with an administrator's rights, so nobody may slip in other
/// text: the folder is new (creating it fails if anybody made it before), on
/// Windows every file is kept open without sharing it for writing or deletion,
/// and before every run the text is compared. A cleaner of temporary files can
/// thus do no worse (where it can at all) than cause a new folder.
pub(super) struct ScriptDir {
    folder: PathBuf,
    /// Kept open for the locks on them; see above.
    files: Vec<fs::File>,
}

/// What the name of such a folder begins with.
const FOLDER_PREFIX: &str = "hyperv-runner-pool-";
/// A file in the folder that is locked for as long as the folder is in use.
const IN_USE: &str = "in-use";

impl ScriptDir {
    pub(super) fn new() -> Result<ScriptDir, Error> {
        let parent = std::env::temp_dir();
        Self::new_in(&parent)
            .map_err(|e| Error(format!("the scripts cannot be written under {}: {e}", parent.display())))
    }

    fn new_in(parent: &Path) -> io::Result<ScriptDir> {
        remove_abandoned(parent);
        let folder = parent.join(format!("{FOLDER_PREFIX}{}-{:016x}", std::process::id(), unique()));
        private_folder::create(&folder)?;
        let mut scripts = ScriptDir { folder, files: Vec::new() };
        let in_use = fs::File::create_new(scripts.folder.join(IN_USE))?;
        in_use.lock()?;
        scripts.files.push(in_use);
        for script in Script::ALL {
            let path = scripts.folder.join(script.file_name());
            fs::write(&path, script.text)?;
            let mut options = fs::OpenOptions::new();
            options.read(true);
            #[cfg(windows)]
            {
                const FILE_SHARE_READ: u32 = 1;
                std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, FILE_SHARE_READ);
            }
            scripts.files.push(options.open(&path)?);
        }
        log::info!("the scripts are in {}", scripts.folder.display());
        Ok(scripts)
    }

    /// The path of a script. Its text is right, and so is that of all others: it may use them.
    pub(super) fn verified(&mut self, script: Script) -> Result<PathBuf, Error> {
        for _ in 0..2 {
            let is_wrong = |script: &Script| {
                let text = fs::read(self.folder.join(script.file_name()));
                !text.is_ok_and(|text| text == script.text.as_bytes())
            };
            let Some(wrong) = Script::ALL.into_iter().find(is_wrong) else {
                return Ok(self.folder.join(script.file_name()));
            };
            let path = self.folder.join(wrong.file_name());
            log::warn!("{} is gone or was changed; writing the scripts anew", path.display());
            *self = ScriptDir::new()?;
        }
        Err(Error(format!("{} does not keep its text", self.folder.join(script.file_name()).display())))
    }
}

impl Drop for ScriptDir {
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

/// A number that no other call has returned, nor is likely to return in
/// another process.
fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Every RandomState has keys of its own, from the system's randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_was_removed_or_changed_is_written_anew() {
        let mut folder = ScriptDir::new().unwrap();
        let first = folder.verified(Script::LIST_VMS).unwrap();
        assert_eq!(folder.verified(Script::LIST_VMS).unwrap(), first, "and otherwise stays");
        let script = Script::CREATE_VM;
        // On Windows both are impossible while the pool holds the files.
        if fs::remove_file(folder.verified(script).unwrap()).is_ok() {
            assert_eq!(fs::read_to_string(folder.verified(script).unwrap()).unwrap(), script.text);
        }
        if fs::write(folder.verified(script).unwrap(), "evil").is_ok() {
            assert_eq!(fs::read_to_string(folder.verified(script).unwrap()).unwrap(), script.text);
        }
        let last = folder.verified(script).unwrap();
        drop(folder);
        assert!(!last.parent().unwrap().exists());
    }

    #[test]
    #[cfg(windows)]
    fn only_system_administrators_and_the_owner_may_open_the_folder() {
        let scripts = ScriptDir::new().unwrap();
        let look = format!("(Get-Acl -LiteralPath '{}').Sddl", scripts.folder.display());
        let shown = std::process::Command::new("powershell")
            .args(["-NoProfile", "-Command", &look])
            // PowerShell 7's modules, if the tests run there.
            .env_remove("PSModulePath")
            .output()
            .unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let (_, rights) = shown.trim().split_once("D:P").expect("nothing is inherited");
        let mut whose: Vec<&str> =
            rights.split(['(', ')']).filter_map(|rule| rule.strip_prefix("A;OICI;FA;;;")).collect();
        whose.sort_unstable();
        assert_eq!(whose, ["BA", "OW", "SY"], "{shown}");
    }

    #[test]
    fn the_folder_of_a_killed_pool_goes_at_the_next_start_and_that_of_a_living_one_stays() {
        let parent = std::env::temp_dir().join(format!("scripts {:016x}", unique()));
        fs::create_dir(&parent).unwrap();
        let living = ScriptDir::new_in(&parent).unwrap();
        let mut killed = ScriptDir::new_in(&parent).unwrap();
        let left = killed.folder.clone();
        for folder in [&killed, &living] {
            folder.files[0].set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        killed.files.clear();
        std::mem::forget(killed);

        let next = ScriptDir::new_in(&parent).unwrap();
        assert!(!left.exists());
        assert!(living.folder.join(Script::CREATE_VM.file_name()).exists());
        drop((living, next));
        fs::remove_dir(&parent).unwrap();
    }
}

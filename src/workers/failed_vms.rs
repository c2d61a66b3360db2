//! What is known of the VMs that failed last: a JSON file each in `LOG_DIR`, and a picture of the
//! screen of those that did not boot. So a restart forgets none of it.

use crate::date;
use crate::hypervisor::{GuestWord, Heartbeat};
use crate::pool::history::{FAILURES_REMEMBERED, Failure};
use crate::pool::slot::types::{Findings, LastHeard};
use crate::pool::{Millis, wall_time};
use log::warn;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The folder in `LOG_DIR`.
const FOLDER: &str = "failed-vms";

/// A failure as its file and `/api/status` have it.
#[derive(Debug, Serialize, Deserialize)]
pub struct FailureRecord {
    at: String,
    slot: u32,
    vm: String,
    incarnation: Option<String>,
    reason: String,
    heartbeat: Option<Heartbeat>,
    guest_stage: Option<String>,
    guest_error: Option<String>,
    uptime_seconds: Option<i64>,
    addresses: Vec<String>,
    /// The file with its screen, in `LOG_DIR`.
    picture: Option<String>,
    /// What could not be found out, and why.
    missing: Option<String>,
}

impl FailureRecord {
    /// Of a failure whose time is by a clock that shows `now`.
    pub fn new(failure: &Failure, now: Millis) -> FailureRecord {
        let Failure { at, slot, vm, incarnation, reason, heard, findings } = failure.clone();
        let guest = heard.guest;
        FailureRecord {
            at: date::timestamp(wall_time(at, now, SystemTime::now())),
            slot,
            vm,
            incarnation,
            reason,
            heartbeat: heard.heartbeat,
            guest_stage: guest.as_ref().map(|guest| guest.stage.clone()),
            guest_error: guest.and_then(|guest| guest.last_error),
            uptime_seconds: findings.uptime.or(heard.uptime).map(|uptime| uptime / 1000),
            addresses: findings.addresses,
            picture: findings.picture,
            missing: findings.missing,
        }
    }

    /// By a clock that shows 0 now.
    fn into_failure(self) -> Option<Failure> {
        let ago = SystemTime::now().duration_since(date::parse_time(&self.at)?).unwrap_or_default();
        let uptime = self.uptime_seconds.map(|seconds| seconds.saturating_mul(1000));
        let last_error = self.guest_error;
        let guest = self.guest_stage.map(|stage| GuestWord { stage, last_error, worker: false });
        Some(Failure {
            at: -(ago.as_millis() as Millis),
            slot: self.slot,
            vm: self.vm,
            incarnation: self.incarnation,
            reason: self.reason,
            heard: LastHeard { heartbeat: self.heartbeat, guest, uptime },
            findings: Findings {
                uptime,
                addresses: self.addresses,
                picture: self.picture,
                missing: self.missing,
            },
        })
    }
}

/// The files. Without `LOG_DIR` there are none.
#[derive(Debug)]
pub(super) struct FailedVms {
    folder: Option<PathBuf>,
}

impl FailedVms {
    pub(super) fn new(log_dir: Option<&Path>) -> FailedVms {
        FailedVms { folder: log_dir.map(|dir| dir.join(FOLDER)) }
    }

    pub(super) fn are_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// What earlier starts have kept, the newest last.
    pub(super) fn load(&self) -> Vec<Failure> {
        let read = |path: PathBuf| {
            let record: FailureRecord = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            let own_name = path.file_stem()?.to_str() == record.incarnation.as_deref();
            record.into_failure().filter(|_| own_name)
        };
        let mut failures: Vec<Failure> = self.files().into_iter().filter_map(read).collect();
        failures.sort_by_key(|failure| failure.at);
        failures
    }

    /// Keeps what is known of a VM that failed, once, and removes what is older than the last 20.
    pub(super) fn save(&self, failure: &Failure, now: Millis) {
        let Some(path) = failure.incarnation.as_ref().and_then(|id| self.path(id, "json")) else { return };
        if path.exists() {
            return;
        }
        let json = serde_json::to_vec_pretty(&FailureRecord::new(failure, now)).unwrap_or_default();
        write(&path, &json);
        let written = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        let mut files = self.files();
        files.sort_by_key(|path| std::cmp::Reverse(written(path)));
        for path in files.into_iter().skip(FAILURES_REMEMBERED) {
            // A picture that stays because its record does is removed with it the next time.
            let _ = fs::remove_file(path.with_extension("png"));
            let _ = fs::remove_file(path);
        }
    }

    /// Keeps a VM's screen. Answers with the file's name in `LOG_DIR`, if there is one now.
    pub(super) fn save_picture(&self, incarnation: &str, png: &[u8]) -> Option<String> {
        let path = self.path(incarnation, "png")?;
        write(&path, png).then(|| format!("{FOLDER}/{incarnation}.png"))
    }

    /// The screen of this VM.
    pub(super) fn picture(&self, incarnation: &str) -> Option<Vec<u8>> {
        fs::read(self.path(incarnation, "png")?).ok()
    }

    fn path(&self, incarnation: &str, extension: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{incarnation}.{extension}")))
    }

    /// The files of all records.
    fn files(&self) -> Vec<PathBuf> {
        let entries = self.folder.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .collect()
    }
}

/// Answers whether it is written. A full disk must end nothing.
fn write(path: &Path, content: &[u8]) -> bool {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(path, content))
        .inspect_err(|err| warn!("{} cannot be written: {err}", path.display()))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn failure(number: i64) -> Failure {
        let guest = GuestWord {
            stage: "waits for its configuration".into(),
            last_error: Some("no route".into()),
            worker: false,
        };
        Failure {
            at: number * 1000,
            slot: 2,
            vm: "runner-2".into(),
            incarnation: Some(format!("0a1b2c3d{number:08x}")),
            reason: "ended".into(),
            heard: LastHeard { heartbeat: Some(Heartbeat::Ok), guest: Some(guest), uptime: Some(590_000) },
            findings: Findings {
                uptime: Some(600_000),
                addresses: vec!["172.20.0.9".into()],
                picture: None,
                missing: None,
            },
        }
    }

    fn folder() -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::env::temp_dir().join(format!("failed vms {} {count}", std::process::id()))
    }

    #[test]
    fn a_restart_knows_the_last_twenty_failures_and_no_file_is_left_of_older_ones() {
        let dir = folder();
        let files = FailedVms::new(Some(&dir));
        let last = FAILURES_REMEMBERED as i64 + 3;
        for number in 0..=last {
            let mut failure = failure(number);
            failure.findings.picture = files.save_picture(failure.incarnation.as_ref().unwrap(), b"png");
            files.save(&failure, last * 1000);
            let path = files.path(failure.incarnation.as_ref().unwrap(), "json").unwrap();
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + number as u64);
            fs::File::options().append(true).open(path).unwrap().set_modified(written).unwrap();
        }
        fs::write(dir.join(FOLDER).join("half.json"), "{\"at\":").unwrap();

        let loaded = FailedVms::new(Some(&dir)).load();
        let numbers: Vec<i64> = loaded.iter().map(|known| known.at / 1000).collect();
        let newest = loaded.last().unwrap();
        assert!(numbers.is_sorted() && (-5..=0).contains(numbers.last().unwrap()), "{numbers:?}");
        let mut expected = failure(last);
        (expected.at, expected.heard.uptime) = (newest.at, Some(600_000));
        expected.findings.picture = Some("failed-vms/0a1b2c3d00000017.png".into());
        assert_eq!(*newest, expected);
        assert_eq!(files.picture("0a1b2c3d00000017"), Some(b"png".to_vec()));
        assert_eq!(files.picture("0a1b2c3d00000000"), None, "the oldest is gone");
        assert_eq!(loaded.len(), FAILURES_REMEMBERED);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn without_a_folder_nothing_is_kept_and_nothing_fails() {
        let files = FailedVms::new(None);
        files.save(&failure(1), 0);
        assert_eq!(files.save_picture("0a1b2c3d00000001", b"png"), None);
        assert_eq!(files.load(), []);
    }
}

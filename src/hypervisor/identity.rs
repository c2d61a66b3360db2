//! Which pool this is, and whether a VM or a disk is this pool's.
//!
//! Everything that touches a VM asks this one question. `destroy-vm.ps1` asks
//! it once more before it removes anything, and must answer the same way:
//! `tests/data/ownership.json` has the cases to which both are held.

use super::{Error, Notes, VmId, machine};
use crate::secret::encode_hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// What `pool` is in the Notes of this pool's VMs: the path of the storage
/// folder, with one kind of separator (on Windows it is compared without case).
///
/// # Errors
/// When the path is not Unicode: two such paths could look the same.
pub fn pool_identity(storage_path: &Path) -> Result<String, Error> {
    Ok(normal_path(&text(storage_path)?, cfg!(windows)))
}

/// The first half of every incarnation that the pool with this storage folder
/// makes: 8 hex digits by which its registrations at GitHub are told from those
/// of other pools.
///
/// # Errors
/// When the path is not Unicode.
pub fn pool_tag(storage_path: &Path) -> Result<String, Error> {
    Ok(tag(&machine::id_and_name(), &pool_identity(storage_path)?, cfg!(windows)))
}

fn tag([id, name]: &[String; 2], pool: &str, windows: bool) -> String {
    let pool = if windows { pool.to_lowercase() } else { pool.to_owned() };
    // NUL can be in none of the three.
    hash(format!("{id}\0{name}\0{pool}").as_bytes(), 8)
}

/// The MAC address of a slot's VMs, the same for each of them, so that a DHCP
/// server keeps one lease for a slot.
///
/// It begins with 0A: locally administered, for one receiver. So it never meets
/// an address that a maker gave, or one of 00-15-5D, of which each Hyper-V host
/// gives 256 to its other VMs, and leaves 40 bits for the hash.
pub(super) fn mac_address(pool_tag: &str, slot: u32) -> String {
    format!("0A{}", hash(format!("{pool_tag}\0{slot}").as_bytes(), 10).to_uppercase())
}

/// The part of the Notes that says whose a VM is.
#[derive(Deserialize)]
struct Mark {
    pool: String,
    incarnation: String,
    /// `true` on a failed VM that is kept for inspection.
    #[serde(default)]
    kept: serde_json::Value,
}

/// Which VM of the pool this is, and its Notes if they are complete; `None` if
/// it is not the pool's. Never decided by the name alone:
///
/// - Notes that name a pool and an incarnation decide. A failed VM that is kept is
///   no slot's: see [`kept_by`].
/// - Without those a VM is the pool's if it was interrupted between getting
///   its disk and getting its Notes: it is attached to a disk that lies
///   directly in the storage folder and bears the name that this VM's disk
///   would have.
pub(super) fn owned_by(
    pool: &str,
    name: &str,
    notes: &str,
    disks: &[String],
    windows: bool,
) -> Option<(VmId, Option<Notes>)> {
    if let Ok(mark) = serde_json::from_str::<Mark>(notes) {
        let id = VmId { name: name.to_owned(), incarnation: mark.incarnation };
        let ours = same_path(&mark.pool, pool, windows) && mark.kept != true;
        return ours.then(|| (id, serde_json::from_str(notes).ok()));
    }
    let mut of_disks = disks.iter().filter_map(|disk| vm_of_disk(pool, disk, windows));
    of_disks.find(|id| id.name == name).map(|id| (id, None))
}

/// The failed VM that this is, under the name that it has now, if it is one that the pool keeps for
/// inspection.
pub(super) fn kept_by(pool: &str, notes: &str, windows: bool) -> Option<VmId> {
    let mark: Mark = serde_json::from_str(notes).ok()?;
    let kept = mark.kept == true && same_path(&mark.pool, pool, windows);
    kept.then(|| VmId { name: format!("failed-{}", mark.incarnation), incarnation: mark.incarnation })
}

/// The VM for which a disk was made, if it lies directly in the storage folder.
fn vm_of_disk(pool: &str, disk: &str, windows: bool) -> Option<VmId> {
    let separators: &[char] = if windows { &['\\', '/'] } else { &['/'] };
    let (folder, file) = disk.rsplit_once(separators)?;
    same_path(folder, pool, windows).then(|| VmId::from_disk_file_name(file))?
}

/// The first `digits` hex digits of a SHA-256.
pub(super) fn hash(bytes: &[u8], digits: usize) -> String {
    encode_hex(&Sha256::digest(bytes))[..digits].to_owned()
}

/// Whether two absolute paths name the same file or folder, by their text.
pub(super) fn same_path(a: &str, b: &str, windows: bool) -> bool {
    let (a, b) = (normal_path(a, windows), normal_path(b, windows));
    if windows { a.to_lowercase() == b.to_lowercase() } else { a == b }
}

/// A path with one kind of separator, and none at its end unless it is a root.
fn normal_path(path: &str, windows: bool) -> String {
    let separator = if windows { '\\' } else { '/' };
    let path = if windows { path.replace('/', r"\") } else { path.to_owned() };
    let mut normal = path.trim_end_matches(separator).to_owned();
    if normal.is_empty() || windows && normal.ends_with(':') {
        normal.push(separator);
    }
    normal
}

pub(super) fn text(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error(format!("the path {} is not valid Unicode: use another", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        about: String,
        name: String,
        notes: serde_json::Value,
        disks: Vec<String>,
        ours: bool,
    }

    /// The cases to which `destroy-vm.ps1` is held too, by tests/powershell/checks.ps1.
    #[test]
    fn whose_a_vm_is_follows_from_its_notes_and_else_from_its_disk() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/data/ownership.json")).unwrap();
        let storage = r"C:\pools\Storage";
        let fill = |text: &str| {
            text.replace("{storage}", storage)
                .replace("{STORAGE}", &storage.to_uppercase())
                .replace("{storage/}", &storage.replace('\\', "/"))
        };
        let expected = VmId { name: "runner-1".into(), incarnation: "0123456789abcdef".into() };
        for case in cases {
            let mut notes = case.notes.clone();
            if let Some(pool) = notes.get_mut("pool")
                && let Some(path) = pool.as_str().map(fill)
            {
                *pool = path.into();
            }
            let notes = notes.as_str().map_or_else(|| notes.to_string(), str::to_owned);
            let disks: Vec<String> = case.disks.iter().map(|disk| fill(disk)).collect();
            let found = owned_by(storage, &case.name, &notes, &disks, true).map(|(id, _)| id);
            assert_eq!(found.as_ref() == Some(&expected), case.ours, "{}: {found:?}", case.about);
        }
    }

    #[test]
    fn windows_paths_are_compared_without_case() {
        assert!(same_path(r"C:\P\vms\Storage", r"c:/p/VMS/storage/", true));
        assert!(!same_path(r"C:\p\vms\storage2", r"C:\p\vms\storage", true));
        assert!(same_path("/p/vms/", "/p/vms", false));
        assert!(!same_path("/P/vms", "/p/vms", false));
    }

    #[test]
    fn each_slot_has_a_mac_address_of_its_own_that_no_maker_and_no_hyper_v_gives() {
        let first = mac_address("0a1b2c3d", 1);
        assert_eq!(mac_address("0a1b2c3d", 1), first);
        assert!(first.len() == 12 && first.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase()));
        // The second lowest bit of the first byte: locally administered. The lowest: for many receivers.
        assert_eq!(u8::from_str_radix(&first[..2], 16).unwrap() & 3, 2, "{first}");
        assert_ne!(mac_address("0a1b2c3d", 2), first);
        assert_ne!(mac_address("0a1b2c3e", 1), first);
    }

    #[test]
    fn a_tag_is_the_same_at_every_start_and_differs_by_machine_and_folder() {
        let first = tag(&["id", "HOST"].map(String::from), r"C:\p\storage", true);
        assert!(first.len() == 8 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
        assert_eq!(tag(&["id", "HOST"].map(String::from), r"c:\P\Storage", true), first);
        for (machine, pool, windows) in [
            (["other", "HOST"], r"C:\p\storage", true),
            // A clone of the host's disk, renamed.
            (["id", "HOST2"], r"C:\p\storage", true),
            (["id", "HOST"], r"C:\p\storage2", true),
            (["id", "HOST"], r"C:\p\storage", false),
        ] {
            assert_ne!(tag(&machine.map(String::from), pool, windows), first, "{machine:?} {pool} {windows}");
        }

        let tag_of = |path: &str| pool_tag(Path::new(path)).unwrap();
        assert_eq!(tag_of("/p/storage/"), tag_of("/p/storage"));
        assert_ne!(tag_of("/p/storage"), tag_of("/p/storage2"));
        assert!(!machine::id_and_name()[1].is_empty());
    }

    #[test]
    fn a_pool_has_one_identity_however_its_folder_is_written() {
        let identity = |path: &str, windows| normal_path(path, windows);
        assert_eq!(identity(r"C:/p\vms/storage/", true), r"C:\p\vms\storage");
        assert_eq!(identity("/p/vms/storage/", false), "/p/vms/storage");
        assert_eq!((identity(r"D:\", true), identity("D:", true)), (r"D:\".into(), r"D:\".into()));
        assert_eq!(identity("/", false), "/");
        assert_eq!(identity(r"/p/a\b", false), r"/p/a\b", "elsewhere a backslash is a letter");
    }
}

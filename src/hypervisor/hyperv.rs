//! Hyper-V, through the embedded PowerShell scripts: one process to create a
//! VM, one to destroy it, one to list them all.
//!
//! - A VM belongs to the pool only by its Notes, or, while it has none yet, by
//!   a disk that the pool made and that is attached to it; never by its name.
//! - Every file that this module asks a script to write or delete lies directly
//!   in the storage folder, under a name that [`VmId::disk_file_name`] gives.
//!
//! Nothing here limits how many scripts run at once: at most one per slot and
//! one for the monitor. A queue would make the time of a call depend on the
//! other slots; `MAX_CONCURRENT_CREATES` is the pool's affair.

use super::machine;
use super::powershell::{PowerShell, Script};
use super::{Error, Heartbeat, Hypervisor, Inventory, Notes, Power, Vm, VmId, VmSpec, VmWrite};
use crate::config::{DiskMode, HyperVConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

impl HyperVConfig {
    /// The address for the scripts, which make it part of a URL; empty to have
    /// it looked up.
    pub(super) fn host(&self) -> String {
        self.orchestrator_ip.map(|ip| ip.to_string()).unwrap_or_default()
    }
}

/// After how long an operation is cut off and its processes are killed.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Create, with a differencing disk.
    pub create: Duration,
    /// Create, copying the template: tens of gigabytes.
    pub create_copy: Duration,
    /// Destroy. Turning a VM off and deleting a disk take seconds; a disk may
    /// stay locked for a while.
    pub destroy: Duration,
    /// List.
    pub list: Duration,
    /// The check of the host. Reading all rules of its firewall can take a
    /// minute.
    pub check: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            create: Duration::from_secs(300),
            create_copy: Duration::from_secs(1800),
            destroy: Duration::from_secs(300),
            list: Duration::from_secs(60),
            check: Duration::from_secs(180),
        }
    }
}

/// Returns the template's present path, or why it is unknown.
pub type TemplatePath = dyn Fn() -> Result<PathBuf, String> + Send + Sync;

/// The Hyper-V of this machine.
pub struct HyperV {
    settings: HyperVConfig,
    template_path: Box<TemplatePath>,
    pool: String,
    powershell: PowerShell,
    deadlines: Deadlines,
    creating_stopped: AtomicBool,
}

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
    Ok(tag([&machine::id(), &machine::name()], &pool_identity(storage_path)?, cfg!(windows)))
}

fn tag(machine: [&str; 2], pool: &str, windows: bool) -> String {
    let pool = if windows { pool.to_lowercase() } else { pool.to_owned() };
    // NUL can be in none of the three.
    hash(format!("{}\0{}\0{pool}", machine[0], machine[1]).as_bytes(), 8)
}

impl HyperV {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// When a path of the settings is not Unicode.
    pub fn new(settings: HyperVConfig, powershell: PowerShell) -> Result<HyperV, Error> {
        text(&settings.template_path)?;
        let pool = pool_identity(&settings.storage_path)?;
        let configured = settings.template_path.clone();
        Ok(HyperV {
            settings,
            template_path: Box::new(move || Ok(configured.clone())),
            pool,
            powershell,
            deadlines: Deadlines::default(),
            creating_stopped: AtomicBool::new(false),
        })
    }

    /// The same, but asks `template_path` before each creation where the
    /// template is, so that a new one is taken without a restart.
    pub fn with_template_path(self, template_path: Box<TemplatePath>) -> HyperV {
        HyperV { template_path, ..self }
    }

    /// The same with other deadlines.
    pub fn with_deadlines(self, deadlines: Deadlines) -> HyperV {
        HyperV { deadlines, ..self }
    }

    /// How many PowerShell processes have been started: one for each call.
    pub fn processes(&self) -> u64 {
        self.powershell.processes()
    }

    /// The path of a VM's disk.
    fn disk_path(&self, vm: &VmId) -> Result<String, Error> {
        // Notes can be edited and VMs be given any name by hand: neither may
        // lead out of the storage folder.
        let file = vm.disk_file_name();
        let plain =
            !vm.name.contains(['/', '\\', ':']) && VmId::from_disk_file_name(&file).as_ref() == Some(vm);
        if !plain {
            return Err(Error(format!("{vm} is not a VM of a pool: {file} cannot be the name of its disk")));
        }
        text(&Path::new(&self.pool).join(file))
    }

    /// Whether a VM of the host is the pool's, and which.
    fn recognize(&self, fact: VmFact) -> Option<Vm> {
        let notes: Option<Notes> = serde_json::from_str(&fact.notes).ok();
        let (id, notes) = match notes {
            Some(notes) if same_path(&notes.pool, &self.pool, cfg!(windows)) => {
                (VmId { name: fact.name, incarnation: notes.incarnation.clone() }, Some(notes))
            }
            // Another pool's.
            Some(_) => return None,
            // No Notes, or somebody's own: ours only if it was cut off between
            // getting its disk, which has its name, and getting its Notes.
            None => {
                let mut disks = fact.disks.iter().filter_map(|disk| self.disk_of_ours(disk));
                (disks.find(|disk| disk.name == fact.name)?, None)
            }
        };
        if let Err(e) = self.disk_path(&id) {
            log::warn!("a VM is left alone although it is marked as this pool's: {e}");
            return None;
        }
        Some(Vm {
            id,
            power: power(&fact.state),
            uptime: Duration::from_secs(fact.uptime_seconds),
            heartbeat: match fact.heartbeat.as_deref() {
                Some("ok") => Heartbeat::Ok,
                Some("lost") => Heartbeat::Lost,
                _ => Heartbeat::Unknown,
            },
            // Jobs can write what a guest says: nonsense there fails no list.
            guest: serde_json::from_value(fact.guest).ok(),
            notes,
        })
    }

    /// The pool's part of what is on the host.
    fn inventory(&self, facts: Facts) -> Inventory {
        Inventory {
            vms: facts.vms.into_iter().filter_map(|fact| self.recognize(fact)).collect(),
            disks: facts.disks.iter().filter_map(|file| VmId::from_disk_file_name(file)).collect(),
            free_bytes: facts.free_bytes,
        }
    }

    /// For fuzzing: what [`Hypervisor::list`] makes of the output of its script.
    #[cfg(fuzzing)]
    pub fn inventory_of(&self, stdout: &str) -> Option<Inventory> {
        let (answer, _) = super::powershell::fuzzing::read(stdout)?;
        serde_json::from_value(answer).ok().map(|facts| self.inventory(facts))
    }

    /// The VM for which a disk was made, if it lies directly in the storage folder.
    fn disk_of_ours(&self, disk: &str) -> Option<VmId> {
        let separators: &[char] = if cfg!(windows) { &['\\', '/'] } else { &['/'] };
        let (folder, file) = disk.rsplit_once(separators)?;
        same_path(folder, &self.pool, cfg!(windows)).then(|| VmId::from_disk_file_name(file))?
    }
}

impl Hypervisor for HyperV {
    fn create(&self, vm: &VmSpec) -> Result<(), Error> {
        // A VM marked otherwise would never be found again.
        if !same_path(&vm.notes.pool, &self.pool, cfg!(windows)) || vm.notes.incarnation != vm.id.incarnation
        {
            return Err(Error(format!("the Notes for {} are another VM's: not created", vm.id)));
        }
        if self.creating_stopped.load(Ordering::Relaxed) {
            return Err(Error(format!("{} is not created, because the pool is stopping", vm.id)));
        }
        let settings = &self.settings;
        let template_path = (self.template_path)().map_err(|e| {
            Error(format!("{} is not created, because the path of the template is unknown: {e}", vm.id))
        })?;
        let request = CreateVm {
            name: &vm.id.name,
            incarnation: &vm.id.incarnation,
            notes: serde_json::to_string(&vm.notes)
                .map_err(|e| Error(format!("the Notes for {} cannot be written: {e}", vm.id)))?,
            template_path: text(&template_path)?,
            disk_path: self.disk_path(&vm.id)?,
            disk_mode: settings.disk_mode,
            memory_mb: settings.memory_mb,
            memory_maximum_mb: settings.memory_max_mb.unwrap_or(0),
            cpu_count: settings.cpu_count,
            switch: &settings.switch,
            secure_boot_template: &settings.secure_boot,
            nested_virtualization: settings.nested_virtualization,
            host: settings.host(),
            port: settings.port,
            secret: vm.secret.expose(),
        };
        let deadline = match settings.disk_mode {
            DiskMode::Differencing => self.deadlines.create,
            DiskMode::Copy => self.deadlines.create_copy,
        };
        let created: Created = self.powershell.run(
            Script::CreateVm,
            &request,
            &[&vm.secret],
            deadline,
            Some(&self.creating_stopped),
        )?;
        log::debug!("{} is to reach the pool at {}", vm.id, created.url);
        Ok(())
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        let request = DestroyVm {
            name: &vm.name,
            incarnation: &vm.incarnation,
            pool: &self.pool,
            disk_path: self.disk_path(vm)?,
        };
        let Done {} = self.powershell.run(Script::DestroyVm, &request, &[], self.deadlines.destroy, None)?;
        Ok(())
    }

    fn fingerprint(&self) -> Option<String> {
        let path = (self.template_path)().ok()?;
        let template = fs::metadata(&path).ok()?;
        let written = template.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        // Names every field, so that whoever adds a setting decides whether it counts.
        let HyperVConfig {
            disk_mode,
            memory_mb,
            memory_max_mb,
            cpu_count,
            switch,
            secure_boot,
            nested_virtualization,
            template_path: _,
            storage_path: _,
            orchestrator_ip: _,
            port: _,
        } = &self.settings;
        let made_of = serde_json::to_vec(&(
            (path, template.len(), written),
            (disk_mode, memory_mb, memory_max_mb, cpu_count),
            (switch, secure_boot, nested_virtualization),
        ));
        Some(hash(&made_of.ok()?, 16))
    }

    fn stop_creating(&self) {
        self.creating_stopped.store(true, Ordering::Relaxed);
    }

    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error> {
        let request =
            ListVms { storage_path: &self.pool, writes: writes.iter().map(WriteVm::from).collect() };
        let facts = self.powershell.run(Script::ListVms, &request, &[], self.deadlines.list, None)?;
        Ok(self.inventory(facts))
    }
}

/// Reads a value of `Microsoft.HyperV.PowerShell.VMState`.
///
/// Saved and hibernated VMs count as off: the pool saves none, so somebody or
/// the host's shutdown did, and its runner has lost its connection and its job.
/// The host pauses VMs when their disk's volume is full, and they go on later.
/// All else counts as on, including the states on the way to another and any
/// state unknown here: taking a VM that works for dead would cost a job, the
/// reverse costs a time-out. Each state has a form with `Critical`, for a VM
/// whose storage the host cannot reach.
///
/// The states: <https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-computersystem>
fn power(state: &str) -> Power {
    match state.strip_suffix("Critical").unwrap_or(state) {
        "Off" | "Saved" | "FastSaved" | "Hibernated" => Power::Off,
        "Paused" => Power::Paused,
        _ => Power::On,
    }
}

/// The first `digits` hex digits of a SHA-256.
fn hash(bytes: &[u8], digits: usize) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..digits].to_owned()
}

/// Whether two absolute paths name the same file or folder, by their text.
fn same_path(a: &str, b: &str, windows: bool) -> bool {
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

fn text(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error(format!("the path {} is not valid Unicode: use another", path.display())))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreateVm<'a> {
    name: &'a str,
    incarnation: &'a str,
    notes: String,
    template_path: String,
    disk_path: String,
    disk_mode: DiskMode,
    #[serde(rename = "memoryMB")]
    memory_mb: u64,
    #[serde(rename = "memoryMaximumMB")]
    memory_maximum_mb: u64,
    cpu_count: u32,
    switch: &'a str,
    secure_boot_template: &'a str,
    nested_virtualization: bool,
    host: String,
    port: u16,
    secret: &'a str,
}

#[derive(Deserialize)]
struct Created {
    url: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DestroyVm<'a> {
    name: &'a str,
    incarnation: &'a str,
    pool: &'a str,
    disk_path: String,
}

#[derive(Deserialize)]
struct Done {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListVms<'a> {
    storage_path: &'a str,
    writes: Vec<WriteVm<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WriteVm<'a> {
    name: &'a str,
    incarnation: &'a str,
    job_started: Option<u64>,
    retire: bool,
    forget_jit_config: bool,
}

impl<'a> From<&'a VmWrite> for WriteVm<'a> {
    fn from(write: &'a VmWrite) -> WriteVm<'a> {
        WriteVm {
            name: &write.vm.name,
            incarnation: &write.vm.incarnation,
            job_started: write.job_started,
            retire: write.retire,
            forget_jit_config: write.forget_jit_config,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    vms: Vec<VmFact>,
    disks: Vec<String>,
    free_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VmFact {
    name: String,
    state: String,
    uptime_seconds: u64,
    notes: String,
    disks: Vec<String>,
    heartbeat: Option<String>,
    /// A [`GuestWord`](super::GuestWord), if it is in order.
    #[serde(default)]
    guest: Value,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn only_states_that_a_vm_does_not_leave_by_itself_are_off() {
        for state in ["Off", "OffCritical", "Saved", "SavedCritical", "FastSaved", "FastSavedCritical"] {
            assert_eq!(power(state), Power::Off, "{state}");
        }
        for state in [
            "Running",
            "RunningCritical",
            "Starting",
            "Stopping",
            "Saving",
            "Reset",
            "Resuming",
            "Other",
            "Unheard",
        ] {
            assert_eq!(power(state), Power::On, "{state}");
        }
        for state in ["Paused", "PausedCritical"] {
            assert_eq!(power(state), Power::Paused, "{state}");
        }
    }

    #[test]
    fn windows_paths_are_compared_without_case() {
        assert!(same_path(r"C:\P\vms\Storage", r"c:/p/VMS/storage/", true));
        assert!(!same_path(r"C:\p\vms\storage2", r"C:\p\vms\storage", true));
        assert!(same_path("/p/vms/", "/p/vms", false));
        assert!(!same_path("/P/vms", "/p/vms", false));
    }

    pub fn settings() -> HyperVConfig {
        HyperVConfig {
            template_path: "/p/template.vhdx".into(),
            storage_path: "/p/storage".into(),
            disk_mode: DiskMode::Differencing,
            memory_mb: 4096,
            memory_max_mb: None,
            cpu_count: 2,
            switch: "Default Switch".into(),
            secure_boot: "MicrosoftWindows".into(),
            nested_virtualization: false,
            orchestrator_ip: None,
            port: 8080,
        }
    }

    fn hyperv() -> HyperV {
        HyperV::new(settings(), PowerShell::new("powershell".into()).unwrap()).unwrap()
    }

    #[test]
    fn a_name_or_incarnation_that_leads_out_of_the_storage_folder_is_refused() {
        let hyperv = hyperv();
        for (name, incarnation) in [
            ("../runner-1", "0123456789abcdef"),
            (r"..\runner-1", "0123456789abcdef"),
            ("c:runner-1", "0123456789abcdef"),
            ("runner-1", "../../../../../x"),
            ("runner-1", ""),
            ("", "0123456789abcdef"),
        ] {
            let vm = VmId { name: name.into(), incarnation: incarnation.into() };
            assert!(hyperv.disk_path(&vm).is_err(), "{vm}");
            let notes = format!(
                r#"{{"pool":"/p/storage","slot":1,"incarnation":"{incarnation}","runner_name":"x","created":1}}"#
            );
            let fact = VmFact {
                name: name.into(),
                state: "Off".into(),
                uptime_seconds: 0,
                notes,
                disks: Vec::new(),
                heartbeat: None,
                guest: Value::Null,
            };
            assert_eq!(hyperv.recognize(fact), None, "{vm}");
        }
        assert_eq!(hyperv.processes(), 0);
    }

    #[test]
    fn a_tag_is_the_same_at_every_start_and_differs_by_machine_and_folder() {
        let first = tag(["id", "HOST"], r"C:\p\storage", true);
        assert!(first.len() == 8 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
        assert_eq!(tag(["id", "HOST"], r"c:\P\Storage", true), first);
        for (machine, pool, windows) in [
            (["other", "HOST"], r"C:\p\storage", true),
            // A clone of the host's disk, renamed.
            (["id", "HOST2"], r"C:\p\storage", true),
            (["id", "HOST"], r"C:\p\storage2", true),
            (["id", "HOST"], r"C:\p\storage", false),
        ] {
            assert_ne!(tag(machine, pool, windows), first, "{machine:?} {pool} {windows}");
        }

        let tag_of = |path: &str| pool_tag(Path::new(path)).unwrap();
        assert_eq!(tag_of("/p/storage/"), tag_of("/p/storage"));
        assert_ne!(tag_of("/p/storage"), tag_of("/p/storage2"));
        assert!(!machine::name().is_empty());
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

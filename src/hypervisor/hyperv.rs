//! Hyper-V, through the embedded PowerShell scripts: one process to create a
//! VM, one to destroy it, one to list them all.
//!
//! - Whether a VM belongs to the pool, `identity` decides, for every VM listed here.
//! - Every file that this module asks a script to write or delete lies directly
//!   in the storage folder, under a name that [`VmId::disk_file_name`] gives.
//!
//! Nothing here limits how many scripts run at once: at most one per slot and
//! one for the monitor. A queue would make the time of a call depend on the
//! other slots; `MAX_CONCURRENT_CREATES` is the pool's affair.

use super::identity::{hash, kept_by, mac_address, owned_by, pool_identity, pool_tag, same_path, text};
use super::powershell::{PowerShell, Script};
use super::{
    Error, Examination, GuestWord, Heartbeat, Hypervisor, Inventory, Power, Vm, VmId, VmSpec, VmWrite,
};
use crate::config::{DiskMode, HyperVConfig};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use crate::text::one_line;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

impl HyperVConfig {
    /// The address for the scripts, which make it part of a URL; empty to have
    /// it looked up.
    pub(super) fn host(&self) -> String {
        self.orchestrator_ip.map(|ip| ip.to_string()).unwrap_or_default()
    }
}

/// After how long copying a template of tens of gigabytes is cut off.
const COPY_DEADLINE: Duration = Duration::from_secs(1800);

/// How many seconds each step of a VM's removal may take. With all steps at
/// their limit, [`Script::DESTROY_VM`] still ends before its deadline.
const DESTROY_PATIENCE: u32 = 30;

/// Returns the template's present path, or why it is unknown.
pub type TemplatePath = dyn Fn() -> Result<PathBuf, String> + Send + Sync;

/// The Hyper-V of this machine.
pub struct HyperV {
    settings: HyperVConfig,
    /// Asked before each creation, so that a new template is taken without a
    /// restart. At first, what the settings say.
    pub template_path: Box<TemplatePath>,
    pool: String,
    tag: String,
    powershell: Arc<PowerShell>,
    creating_stopped: AtomicBool,
    /// Held while a VM is being kept.
    keeping: Mutex<()>,
}

impl HyperV {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// When the path of the storage folder is not Unicode.
    pub fn new(settings: HyperVConfig, powershell: Arc<PowerShell>) -> Result<HyperV, Error> {
        let pool = pool_identity(&settings.storage_path)?;
        let tag = pool_tag(&settings.storage_path)?;
        let configured = settings.template_path.clone();
        let template_path = Box::new(move || Ok(configured.clone()));
        Ok(HyperV {
            settings,
            template_path,
            pool,
            tag,
            powershell,
            creating_stopped: AtomicBool::new(false),
            keeping: Mutex::default(),
        })
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

    /// Destroys a VM, or keeps it in the place of another.
    fn remove(&self, vm: &VmId, keep: bool) -> Result<(), Error> {
        let request = json!({
            "name": vm.name,
            "incarnation": vm.incarnation,
            "pool": self.pool,
            "diskPath": self.disk_path(vm)?,
            "patience": DESTROY_PATIENCE,
            "keep": keep,
        });
        self.powershell.run(Script::DESTROY_VM, &request, &[], None).map(|_: IgnoredAny| ())
    }

    /// Whether a VM of the host is the pool's, and which.
    fn recognize(&self, fact: VmFact) -> Option<Vm> {
        let (id, notes) = owned_by(&self.pool, &fact.name, &fact.notes, &fact.disks, cfg!(windows))?;
        if let Err(e) = self.disk_path(&id) {
            log::warn!("a VM is left alone although it is marked as this pool's: {e}");
            return None;
        }
        Some(Vm {
            id,
            power: power(&fact.state),
            uptime: Duration::from_secs(fact.uptime_seconds),
            heartbeat: fact.heartbeat.unwrap_or(Heartbeat::Unknown),
            guest: guest_word(fact.guest),
            holds_jit_config: fact.holds_jit_config,
            notes,
        })
    }

    /// The pool's part of what is on the host.
    fn inventory(&self, facts: Facts) -> Inventory {
        facts.unwritten.iter().for_each(|why| log::debug!("not written: {}", one_line(why, 200)));
        let kept = facts.vms.iter().filter_map(|fact| kept_by(&self.pool, &fact.notes, cfg!(windows)));
        let kept: Vec<VmId> = kept.collect();
        let is_kept = |disk: &VmId| kept.iter().any(|vm| vm.incarnation == disk.incarnation);
        let disks = facts.disks.iter().filter_map(|file| VmId::from_disk_file_name(file));
        Inventory {
            vms: facts.vms.into_iter().filter_map(|fact| self.recognize(fact)).collect(),
            disks: disks.filter(|disk| !is_kept(disk)).collect(),
            kept,
            free_bytes: facts.free_bytes,
        }
    }

    /// For fuzzing: what [`Hypervisor::list`] makes of the output of its script.
    #[cfg(fuzzing)]
    pub fn inventory_of(&self, stdout: &str) -> Option<Inventory> {
        let (answer, _) = super::powershell::reply::find_answer(stdout)?;
        serde_json::from_value(answer).ok().map(|facts| self.inventory(facts))
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
        let allow: Vec<_> =
            settings.allow.iter().map(ToString::to_string).chain(settings.github_server.clone()).collect();
        let request = json!({
            "name": vm.id.name,
            "incarnation": vm.id.incarnation,
            "slot": vm.notes.slot,
            "macAddress": mac_address(&self.tag, vm.notes.slot),
            "notes": json!(vm.notes).to_string(),
            "templatePath": text(&template_path)?,
            "diskPath": self.disk_path(&vm.id)?,
            "diskMode": settings.disk_mode,
            "memoryMB": settings.memory_mb,
            "memoryMaximumMB": settings.memory_max_mb.unwrap_or(0),
            "cpuCount": settings.cpu_count,
            "switch": settings.switch,
            "isolation": settings.isolation,
            "allow": allow,
            "secureBootTemplate": settings.secure_boot,
            "nestedVirtualization": settings.nested_virtualization,
            "host": settings.host(),
            "port": settings.port,
            "secret": vm.secret.expose(),
            "jitConfig": vm.jit_config.as_ref().map_or("", Secret::expose),
        });
        let secrets: Vec<&Secret> = [&vm.secret].into_iter().chain(&vm.jit_config).collect();
        let mut script = Script::CREATE_VM;
        if settings.disk_mode == DiskMode::Copy {
            script.deadline = COPY_DEADLINE;
        }
        let created: Value = self.powershell.run(script, &request, &secrets, Some(&self.creating_stopped))?;
        log::debug!("{} is to reach the pool at {}", vm.id, created["url"]);
        if let Some(warning) = created["warning"].as_str() {
            log::warn!("{}: {}", vm.id, one_line(warning, 400));
        }
        Ok(())
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        self.remove(vm, false)
    }

    fn keep(&self, vm: &VmId) -> Result<(), Error> {
        // One after the other: two at a time would each find that none is kept yet.
        let _alone = unpoisoned(&self.keeping);
        self.remove(vm, true)
    }

    fn examine(&self, vm: &VmId) -> Result<Examination, Error> {
        let request = json!({
            "name": vm.name,
            "incarnation": vm.incarnation,
            "pool": self.pool,
            "diskPath": self.disk_path(vm)?,
        });
        let found: Examined = self.powershell.run(Script::EXAMINE_VM, &request, &[], None)?;
        let missing = found.missing.join("; ");
        Ok(Examination {
            uptime: found.uptime_seconds.map(Duration::from_secs),
            addresses: found.addresses.iter().map(|address| one_line(address, 50)).collect(),
            picture: found.picture.and_then(|picture| STANDARD.decode(picture).ok()),
            missing: (!missing.is_empty()).then(|| one_line(&missing, 600)),
        })
    }

    fn fingerprint(&self) -> Option<String> {
        let path = (self.template_path)().ok()?;
        let template = fs::metadata(&path).ok()?;
        let written = template.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        // A setting that is added counts too, unless it is left out here.
        let made_of = HyperVConfig {
            template_path: path,
            storage_path: PathBuf::new(),
            orchestrator_ip: None,
            port: 0,
            ..self.settings.clone()
        };
        let made_of = serde_json::to_vec(&(made_of, template.len(), written)).ok()?;
        Some(hash(&made_of, 16))
    }

    fn stop_creating(&self) {
        self.creating_stopped.store(true, Ordering::Relaxed);
    }

    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error> {
        let request = json!({ "storagePath": self.pool, "writes": writes });
        let facts = self.powershell.run(Script::LIST_VMS, &request, &[], None)?;
        Ok(self.inventory(facts))
    }
}

/// What a guest says of itself. A job with an administrator's rights can make
/// its guest say anything: nonsense fails no list, and what it says fits in one
/// place in one line of the log.
fn guest_word(fact: Value) -> Option<GuestWord> {
    let word: GuestWord = serde_json::from_value(fact).ok()?;
    Some(GuestWord {
        stage: one_line(&word.stage, 200),
        last_error: word.last_error.map(|error| one_line(&error, 200)).filter(|error| !error.is_empty()),
        worker: word.worker,
    })
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    vms: Vec<VmFact>,
    disks: Vec<String>,
    free_bytes: Option<u64>,
    unwritten: Vec<String>,
}

/// What the script for [`Hypervisor::examine`] answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Examined {
    uptime_seconds: Option<u64>,
    #[serde(default)]
    addresses: Vec<String>,
    /// In base64.
    picture: Option<String>,
    missing: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VmFact {
    name: String,
    state: String,
    uptime_seconds: u64,
    notes: String,
    disks: Vec<String>,
    heartbeat: Option<Heartbeat>,
    /// A [`GuestWord`], if it is in order.
    #[serde(default)]
    guest: Value,
    holds_jit_config: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

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
    fn a_guest_that_says_nonsense_has_said_nothing_and_a_long_word_is_cut() {
        for fact in
            [json!(null), json!("x"), json!({}), json!({"stage": 1, "worker": true}), json!({"stage": "x"})]
        {
            assert_eq!(guest_word(fact.clone()), None, "{fact}");
        }
        let word =
            guest_word(json!({"stage": "a\nb", "lastError": "e".repeat(5000), "worker": false})).unwrap();
        assert_eq!((word.stage.as_str(), word.last_error.unwrap().len()), ("a b", 203));
    }

    fn hyperv() -> HyperV {
        let source = Source::new([], std::env::current_dir().unwrap());
        let usual = source.load_with(b"USE_MOCK=true").unwrap().config.hyperv;
        let settings = HyperVConfig { storage_path: "/p/storage".into(), ..usual };
        HyperV::new(settings, Arc::new(PowerShell::new("powershell".into()).unwrap())).unwrap()
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
                holds_jit_config: None,
            };
            assert_eq!(hyperv.recognize(fact), None, "{vm}");
        }
    }
}

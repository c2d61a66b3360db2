//! The machine that runs the VMs.
//!
//! [`Hypervisor`] is everything the pool asks of it: make a VM, remove it, say
//! what is there. `hyperv` is the real one; `mock` simulates VMs.

pub mod host_check;
pub mod hyperv;
pub mod identity;
mod machine;
pub mod powershell;

use crate::github::scope::Scope;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What to say where there is no Windows.
const NOT_WINDOWS: &str = "This is not Windows, and Hyper-V runs on Windows only: \
     run the pool on a Windows host, or set USE_MOCK=true to try it with simulated VMs.";

/// What the pool asks of a hypervisor. Every call blocks until done and must
/// itself end within a bounded time.
pub trait Hypervisor: Send + Sync {
    /// Makes and starts a VM. If anything fails, what was made is undone
    /// before the error returns; if the undoing fails too, or the process
    /// dies, [`Hypervisor::destroy`] clears the rest.
    ///
    /// # Errors
    /// When the VM could not be made or started, also because of
    /// [`Hypervisor::stop_creating`].
    fn create(&self, vm: &VmSpec) -> Result<(), Error>;

    /// Removes a VM and its disk, from whatever half-made state they are in.
    /// Idempotent: succeeds when nothing of that incarnation is there.
    ///
    /// # Errors
    /// When something of it is still there.
    fn destroy(&self, vm: &VmId) -> Result<(), Error>;

    /// Turns a VM that failed off and keeps it for inspection, instead of the one that was kept
    /// before: it is the pool's no more, but for [`Inventory::kept`]. Idempotent.
    ///
    /// # Errors
    /// When it is not kept: [`Hypervisor::destroy`] then clears what is left of it.
    fn keep(&self, vm: &VmId) -> Result<(), Error>;

    /// What can be seen of a VM from outside. What cannot be had is left out.
    ///
    /// # Errors
    /// When nothing can be had.
    fn examine(&self, vm: &VmId) -> Result<Examination, Error>;

    /// Everything on the host that this pool made. The same round writes what
    /// the pool has to tell its VMs, each only while the VM's Notes bear that
    /// incarnation; a write that fails is due again, and fails no list.
    ///
    /// # Errors
    /// When the list cannot be had whole.
    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error>;

    /// Identifies what a VM made now would be made of: the template (path,
    /// size and time of its last write) and the settings of a VM. `None` while
    /// the template cannot be read.
    fn fingerprint(&self) -> Option<String>;

    /// Cuts off every creation under way, and refuses further ones: the pool
    /// stops.
    fn stop_creating(&self);
}

/// What the pool has to write to a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmWrite {
    /// To which VM.
    #[serde(flatten)]
    pub vm: VmId,
    /// Into its Notes: its uptime in seconds at the first sign of its job.
    pub job_started: Option<u64>,
    /// The key-value by which its guest is asked to retire.
    pub retire: bool,
    /// Remove the JIT configuration from its key-values: its guest has it.
    pub forget_jit_config: bool,
}

/// Names one VM that a slot made: the VM's name (which its successor will
/// bear again) and the incarnation (which never comes again).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmId {
    /// The VM's name in Hyper-V and `{vmName}` in the HTTP API.
    pub name: String,
    /// Unique for every VM ever made; part of the disk's file name.
    pub incarnation: String,
}

impl VmId {
    /// The file name of the VM's disk: `<name>-<incarnation>.vhdx`.
    pub fn disk_file_name(&self) -> String {
        format!("{}-{}.vhdx", self.name, self.incarnation)
    }

    /// The VM whose disk bears this file name, if it is one that a pool
    /// would give: an incarnation is 16 lower-case hex digits.
    pub fn from_disk_file_name(file_name: &str) -> Option<VmId> {
        let (name, incarnation) = file_name.strip_suffix(".vhdx")?.rsplit_once('-')?;
        let well_formed = incarnation.len() == 16
            && incarnation.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && !name.is_empty();
        well_formed.then(|| VmId { name: name.into(), incarnation: incarnation.into() })
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.incarnation)
    }
}

/// What a new VM is to be.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Name and incarnation.
    pub id: VmId,
    /// What the VM's Notes say of it.
    pub notes: Notes,
    /// With what the guest proves to the pool that it is this VM.
    pub secret: Secret,
    /// The JIT configuration of its runner, if GitHub made one.
    pub jit_config: Option<Secret>,
}

/// The mark that the pool leaves on a VM, as JSON in its Notes, and by which
/// a restarted pool knows what it made. A failed VM that is kept for inspection bears
/// `"kept":true` besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// The pool that made the VM: its storage folder. Two pools on one host
    /// need two folders.
    pub pool: String,
    /// The slot that made the VM, counted from 1.
    pub slot: u32,
    /// The incarnation, as in [`VmId`].
    pub incarnation: String,
    /// Where its runner is registered.
    pub scope: Scope,
    /// The name under which the runner is registered with GitHub.
    pub runner_name: String,
    /// GitHub's id of the registration. Unknown with registration tokens,
    /// where the runner registers itself.
    pub runner_id: Option<u64>,
    /// What the VM was made of: see [`Hypervisor::fingerprint`].
    pub fingerprint: Option<String>,
    /// When the VM was made, in seconds since 1970.
    pub created: u64,
    /// The VM's uptime in seconds at the first sign of its job.
    #[serde(default)]
    pub job_started: Option<u64>,
}

/// What the hypervisor holds of this pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The pool's VMs.
    pub vms: Vec<Vm>,
    /// The disks in the storage folder that bear a name the pool gives,
    /// attached or not. (Files of any other name are not the pool's.)
    pub disks: Vec<VmId>,
    /// The failed VM that is kept for inspection, under the name that it has now. It is not among
    /// the VMs, nor its disk among the disks.
    pub kept: Vec<VmId>,
    /// Bytes free on the storage folder's volume, if the host told.
    pub free_bytes: Option<u64>,
}

/// A VM of this pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Name and incarnation.
    pub id: VmId,
    /// Whether it runs.
    pub power: Power,
    /// How long it has been running.
    pub uptime: Duration,
    /// Whether Hyper-V hears its guest.
    pub heartbeat: Heartbeat,
    /// What its guest says of itself. `None` until it has said something.
    pub guest: Option<GuestWord>,
    /// Whether a JIT configuration is in its key-values, if the list told.
    pub holds_jit_config: Option<bool>,
    /// What its Notes say. `None` for a VM that was cut off in the making,
    /// known only by its disk.
    pub notes: Option<Notes>,
}

/// Whether Hyper-V hears the guest's heartbeat service.
///
/// <https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-heartbeatcomponent>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heartbeat {
    /// It does.
    Ok,
    /// It did, and does no more.
    Lost,
    /// It has not yet, or the host did not tell.
    #[serde(other)]
    Unknown,
}

/// What a guest says of itself through its key-values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestWord {
    /// How far it has come.
    pub stage: String,
    /// What failed last in it, if anything did.
    pub last_error: Option<String>,
    /// Whether a Runner.Worker process runs, which is what runs a job.
    pub worker: bool,
}

/// What can be seen of a VM from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// How long it has been running.
    pub uptime: Option<Duration>,
    /// Its IP addresses, as its guest tells Hyper-V.
    pub addresses: Vec<String>,
    /// Its screen, as a PNG.
    pub picture: Option<Vec<u8>>,
    /// What could not be had, and why.
    pub missing: Option<String>,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Running, or on its way there (starting, resuming).
    On,
    /// Paused by the host, for want of disk space or storage. Its job goes on
    /// once that is over.
    Paused,
    /// Off.
    Off,
}

/// Why the hypervisor did not do it: one sentence for the log and the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_name_leads_back_to_its_vm() {
        let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        assert_eq!(VmId::from_disk_file_name(&vm.disk_file_name()), Some(vm));
    }

    #[test]
    fn a_file_that_no_pool_would_name_so_is_nobodys_disk() {
        for name in [
            "runner-1.vhdx",
            "backup.vhdx",
            "runner-1-00FF00FF00FF00FF.vhdx",
            "-00ff00ff00ff00ff.vhdx",
            "x-00ff00ff00ff00ff.vhd",
        ] {
            assert_eq!(VmId::from_disk_file_name(name), None, "{name}");
        }
    }
}

//! A fake Hyper-V host, and the stand-in for `powershell` that acts on it.
//!
//! For a pool in its own process, start it with [`FakeHost::env`]. For
//! `HyperV` in the test's process, give it [`FakeHost::program`].

#[path = "../../standin/host.rs"]
pub mod host;

use super::fake_guest::FakeGuest;
use host::{Fault, FaultKind, Host, Invocation, Vm};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The host, and the template and storage folder on it. Its folder goes when
/// this is dropped.
pub struct FakeHost {
    folder: PathBuf,
    host: Host,
    borrowed: bool,
}

impl FakeHost {
    /// A host with no VMs, a template, an empty storage folder, and the
    /// switches `Default Switch` (127.0.0.1) and `Isolated` (no address).
    pub fn new() -> FakeHost {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // The space is there to be got wrong.
        let folder =
            std::env::temp_dir().join(format!("standin {} {count} {}", std::process::id(), host::now()));
        for part in ["host", "vms/templates", "vms/storage"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let fake = FakeHost { host: Host::create(&folder.join("host")), folder, borrowed: false };
        host::make_disk(&fake.template(), None);
        let built = env!("CARGO_BIN_EXE_powershell-standin");
        #[cfg(unix)]
        std::os::unix::fs::symlink(built, fake.program()).unwrap();
        #[cfg(windows)]
        fs::copy(built, fake.program()).unwrap();
        fake
    }

    /// The host of another [`FakeHost`], with its [`FakeHost::folder`]; left
    /// alone when this is dropped.
    pub fn borrowed(folder: &Path) -> FakeHost {
        FakeHost { host: Host::open(&folder.join("host")), folder: folder.into(), borrowed: true }
    }

    /// The folder of all this.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The `powershell` of this host.
    pub fn program(&self) -> PathBuf {
        self.host.file(if cfg!(windows) { "powershell.exe" } else { "powershell" })
    }

    /// What a pool's process needs in its environment to run on this host (on
    /// Windows it must also be led to [`FakeHost::program`], since it looks for
    /// PowerShell in the system's folder only).
    pub fn env(&self) -> Vec<(&'static str, OsString)> {
        let mut path = vec![self.host.file("")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        vec![
            ("STANDIN_HOST", self.host.file("").into()),
            ("PATH", std::env::join_paths(path).unwrap()),
            ("VM_TEMPLATE_PATH", self.template().into()),
            ("VM_STORAGE_PATH", self.storage().into()),
        ]
    }

    /// The template's path.
    pub fn template(&self) -> PathBuf {
        self.folder.join("vms").join("templates").join("runner-template.vhdx")
    }

    /// The storage folder.
    pub fn storage(&self) -> PathBuf {
        self.folder.join("vms").join("storage")
    }

    /// The names of the files in the storage folder, sorted.
    pub fn disks(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.storage())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// All VMs of the host.
    pub fn vms(&self) -> Vec<Vm> {
        self.host.state().vms
    }

    /// The one VM of this name; panics if there are none or several.
    pub fn vm(&self, name: &str) -> Vm {
        let mut vms: Vec<Vm> = self.vms().into_iter().filter(|vm| vm.name == name).collect();
        assert_eq!(vms.len(), 1, "VMs called {name}");
        vms.remove(0)
    }

    /// A key-value item of a VM, as its guest sees it.
    pub fn kvp(&self, name: &str, key: &str) -> String {
        self.vm(name).kvp.get(key).cloned().unwrap_or_else(|| panic!("{name} has no item {key}"))
    }

    /// The JIT configuration in a VM's key-values; `None` if there is none.
    pub fn jit_config(&self, name: &str) -> Option<String> {
        jit_config_of(&self.vm(name))
    }

    /// Adds a VM of somebody else.
    pub fn add_vm(&self, vm: Vm) {
        self.host.change(|state| state.add(vm));
    }

    /// Changes every VM of this name.
    pub fn change_vm(&self, name: &str, change: impl Fn(&mut Vm)) {
        self.host.change(|state| state.vms.iter_mut().filter(|vm| vm.name == name).for_each(change));
    }

    /// Turns a VM off, as its guest does in the end.
    pub fn power_off(&self, name: &str) {
        self.set_state(name, "Off");
    }

    /// Turns off the VM with this id, if it is still there.
    pub fn power_off_vm(&self, id: u64) {
        self.host.change(|state| {
            for vm in state.vms.iter_mut().filter(|vm| vm.id == id) {
                (vm.state, vm.started) = ("Off".into(), 0);
            }
        });
    }

    /// Puts a VM into any state.
    pub fn set_state(&self, name: &str, state: &str) {
        self.change_vm(name, |vm| {
            vm.state = state.into();
            vm.started = if state == "Running" { host::now() } else { 0 };
        });
    }

    /// Sets what is free on the volume of the storage folder.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.host.change(|state| state.free_bytes = bytes);
    }

    /// Makes a VM vanish; its disk stays.
    pub fn lose(&self, name: &str) {
        self.host.change(|state| state.vms.retain(|vm| vm.name != name));
    }

    /// Lets something go wrong with every run of a script from now on.
    pub fn set_fault(&self, script: &str, kind: FaultKind) {
        self.add_fault(script, None, None, None, kind);
    }

    /// Lets a step of a script go wrong, every time.
    pub fn set_fault_at(&self, script: &str, step: &str, kind: FaultKind) {
        self.add_fault(script, None, Some(step), None, kind);
    }

    /// Lets something go wrong with a script: for one VM or any, before a step
    /// or at the beginning, so many times or for ever.
    pub fn add_fault(
        &self,
        script: &str,
        vm: Option<&str>,
        step: Option<&str>,
        times: Option<u32>,
        kind: FaultKind,
    ) {
        self.host.add_fault(Fault {
            script: script.into(),
            vm: vm.map(str::to_owned),
            step: step.map(str::to_owned),
            times,
            kind,
        });
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        self.host.clear_faults();
    }

    /// Every run of a script so far.
    pub fn invocations(&self) -> Vec<Invocation> {
        self.host.invocations()
    }

    /// The process that a fault has started, once it is there.
    pub fn grandchild(&self) -> Option<u32> {
        fs::read_to_string(self.host.file("grandchild.pid")).ok()?.parse().ok()
    }

    /// The guest of a VM, with what its key-value items tell it.
    pub fn guest(&self, name: &str) -> FakeGuest {
        guest_of(&self.vm(name)).expect("the VM has its key-values")
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        if !self.borrowed {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The JIT configuration in the key-values of a VM, put together from its parts.
pub fn jit_config_of(vm: &Vm) -> Option<String> {
    let parts: usize = vm.kvp.get("RunnerPoolJitConfigParts")?.parse().unwrap();
    Some((1..=parts).map(|n| vm.kvp[&format!("RunnerPoolJitConfig{n}")].as_str()).collect())
}

/// The guest of a VM; `None` while its key-values are not all there.
pub fn guest_of(vm: &Vm) -> Option<FakeGuest> {
    let value = |key: &str| vm.kvp.get(key);
    let (url, name) = (value("RunnerPoolUrl")?, value("RunnerPoolVmName")?);
    Some(FakeGuest::new(url, name, value("RunnerPoolVmSecret")?))
}

//! A fake Hyper-V host, kept in a folder: used by the stand-in for
//! `powershell` (which acts on it as the scripts would) and by the tests (which
//! look at it, and do to it what fate and people do to hosts).
//!
//! `state.json` is only ever replaced as a whole, under a lock on
//! `state.lock`, so any process may be killed at any time.

#![allow(dead_code, reason = "two crates use this, each a part of it")]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// With this every VHDX file begins: MS-VHDX, section 2.2.1, File Type Identifier.
pub const VHDX_SIGNATURE: &str = "vhdxfile";

/// The whole state of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub vms: Vec<Vm>,
    pub switches: Vec<Switch>,
    /// Free space that `check-host` tells of.
    pub free_bytes: u64,
    next_id: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Switch {
    pub name: String,
    /// The host's IPv4 address on it; empty if it has none.
    pub address: String,
}

/// A VM as Hyper-V has it. Names need not be unique; ids are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vm {
    pub id: u64,
    pub name: String,
    /// A value of `VMState`.
    pub state: String,
    /// Milliseconds since 1970; 0 when not running.
    pub started: u64,
    pub notes: String,
    pub disks: Vec<PathBuf>,
    /// The host-to-guest key-value items.
    pub kvp: BTreeMap<String, String>,
    /// What `create-vm` was told about memory, processors and so on.
    pub settings: BTreeMap<String, serde_json::Value>,
}

impl Vm {
    pub fn new(name: &str) -> Vm {
        Vm {
            id: 0,
            name: name.into(),
            state: "Off".into(),
            started: 0,
            notes: String::new(),
            disks: Vec::new(),
            kvp: BTreeMap::new(),
            settings: BTreeMap::new(),
        }
    }
}

/// What is to go wrong with a script.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The script's name without `.ps1`.
    pub script: String,
    /// Only for this VM; for any if `None`.
    pub vm: Option<String>,
    /// How often; for ever if `None`.
    pub times: Option<u32>,
    /// Before which step; before the first if `None`.
    pub step: Option<String>,
    pub kind: FaultKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// Takes this many milliseconds longer.
    Slow(u64),
    /// Never ends.
    Hang,
    /// Never ends, and has started a process that holds its outputs and writes
    /// its id to `grandchild.pid`.
    HangWithGrandchild,
    /// Answers and ends, but a process that it has started holds its outputs.
    LeaveGrandchild,
    /// Ends at once, without undoing anything and without an answer.
    Crash,
    /// The step fails: answers `"ok":false` with this text, having undone what
    /// came before, unless `leave`.
    Fail { error: String, leave: bool },
    /// Writes this to standard output first.
    Noise(String),
    /// Writes as much to standard output before reading its input.
    Flood(usize),
    /// Writes this to standard output instead of an answer. `{secret}` in it
    /// becomes the VM's secret.
    NoJson(String),
    /// Writes this to standard error first; `{secret}` as above.
    Stderr(String),
}

/// One run of the stand-in, as `log.jsonl` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invocation {
    pub script: String,
    /// The VM's name; empty for scripts that are about none.
    pub vm: String,
    pub incarnation: String,
    pub pid: u32,
    /// The command line.
    pub args: Vec<String>,
    /// Milliseconds since 1970.
    pub time: u64,
    /// Which of the pool's secret settings the process has inherited.
    pub inherited_secrets: Vec<String>,
}

pub struct Host {
    folder: PathBuf,
}

impl Host {
    /// Makes a new host with two switches in an existing folder.
    pub fn create(folder: &Path) -> Host {
        let host = Host { folder: folder.into() };
        let switches = vec![
            Switch { name: "Default Switch".into(), address: "127.0.0.1".into() },
            Switch { name: "Isolated".into(), address: String::new() },
        ];
        host.write("state.json", &State { vms: Vec::new(), switches, free_bytes: 1 << 40, next_id: 1 });
        host
    }

    pub fn open(folder: &Path) -> Host {
        Host { folder: folder.into() }
    }

    /// Changes the state, alone.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let _lock = self.lock();
        let mut state = self.read();
        let result = change(&mut state);
        self.write("state.json", &state);
        result
    }

    pub fn state(&self) -> State {
        let _lock = self.lock();
        self.read()
    }

    pub fn add_fault(&self, fault: Fault) {
        let _lock = self.lock();
        let mut faults = self.faults();
        faults.push(fault);
        self.write("faults.json", &faults);
    }

    pub fn clear_faults(&self) {
        let _lock = self.lock();
        self.write("faults.json", &Vec::<Fault>::new());
    }

    /// The faults for this run; counts them down.
    pub fn take_faults(&self, script: &str, vm: &str) -> Vec<Fault> {
        let _lock = self.lock();
        let mut faults = self.faults();
        let mut taken = Vec::new();
        for fault in &mut faults {
            let meant = fault.script == script && fault.vm.as_deref().is_none_or(|name| name == vm);
            if meant && fault.times != Some(0) {
                fault.times = fault.times.map(|times| times - 1);
                taken.push(fault.clone());
            }
        }
        if !taken.is_empty() {
            self.write("faults.json", &faults);
        }
        taken
    }

    pub fn log(&self, invocation: &Invocation) {
        let _lock = self.lock();
        let line = serde_json::to_string(invocation).unwrap() + "\n";
        let path = self.folder.join("log.jsonl");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    pub fn invocations(&self) -> Vec<Invocation> {
        let _lock = self.lock();
        let log = fs::read_to_string(self.folder.join("log.jsonl")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn lock(&self) -> fs::File {
        let file = fs::File::create(self.folder.join("state.lock")).unwrap();
        file.lock().unwrap();
        file
    }

    fn read(&self) -> State {
        serde_json::from_slice(&fs::read(self.folder.join("state.json")).unwrap()).unwrap()
    }

    fn faults(&self) -> Vec<Fault> {
        fs::read(self.folder.join("faults.json"))
            .map(|json| serde_json::from_slice(&json).unwrap())
            .unwrap_or_default()
    }

    fn write(&self, name: &str, value: &impl Serialize) {
        let new = self.folder.join(format!("{name}.new"));
        fs::write(&new, serde_json::to_vec_pretty(value).unwrap()).unwrap();
        fs::rename(&new, self.folder.join(name)).unwrap();
    }
}

impl State {
    /// Adds a VM under an id of its own, which it returns.
    pub fn add(&mut self, vm: Vm) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.vms.push(Vm { id, ..vm });
        id
    }

    pub fn vm(&mut self, id: u64) -> Option<&mut Vm> {
        self.vms.iter_mut().find(|vm| vm.id == id)
    }
}

/// Writes the file of a disk.
pub fn make_disk(path: &Path, parent: Option<&Path>) {
    let parent = parent.map(|parent| parent.display().to_string()).unwrap_or_default();
    fs::write(path, format!("{VHDX_SIGNATURE}{parent}")).unwrap();
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

//! Stands in for `powershell.exe` in tests: acts on a fake Hyper-V host,
//! as the pool's scripts act on a real one, and goes wrong in the ways that the
//! host's `faults.json` asks for. The host is the folder that `STANDIN_HOST`
//! names, or else the folder in which this program (or a link to it) lies: so
//! tests that run in one process can have a host each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod host;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use host::{Fault, FaultKind, Host, Invocation, VHDX_SIGNATURE, Vm};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};
use std::thread;
use std::time::Duration;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let program = PathBuf::from(args.next().unwrap());
    let args: Vec<String> = args.collect();
    let folder = match std::env::var_os("STANDIN_HOST") {
        Some(folder) => PathBuf::from(folder),
        None => program.parent().unwrap().to_owned(),
    };
    let host = Host::open(&folder);
    if args == ["--grandchild"] {
        return grandchild(&host);
    }
    if args.iter().any(|arg| arg == "-Command") {
        // The pool asks only one thing in this way: the execution policies.
        print_now(&fs::read_to_string(host.file("policies")).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let ["-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", script] =
        args.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        eprintln!("not the arguments that production passes: {args:?}");
        return ExitCode::from(64);
    };
    let script = Path::new(script);
    if fs::read_to_string(script).is_ok_and(|text| text.trim().is_empty()) || !script.is_absolute() {
        eprintln!("{} is not a script", script.display());
        return ExitCode::from(64);
    }
    die_with_parent();
    run(host, script.file_stem().unwrap().to_str().unwrap())
}

fn run(host: Host, script: &str) -> ExitCode {
    // What the input names is not known before it has been read.
    let flood: usize = host.take_faults(&format!("{script} before input"), "").iter().map(flood).sum();
    if flood > 0 {
        print_now(&("x".repeat(flood) + "\n"));
    }

    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    let Ok(input) = serde_json::from_str::<Value>(&input) else {
        return answer(&json!({ "ok": false, "error": "the input is not JSON", "at": "input" }));
    };
    let of = |key: &str| input[key].as_str().unwrap_or_default().to_owned();
    host.log(&Invocation {
        script: script.into(),
        vm: of("name"),
        incarnation: of("incarnation"),
        pid: std::process::id(),
        args: std::env::args().collect(),
        time: host::now(),
        inherited_secrets: ["GITHUB_PAT", "WEBHOOK_SECRET"]
            .iter()
            .filter(|name| std::env::var_os(name).is_some())
            .map(|name| name.to_string())
            .collect(),
    });

    let faults = host.take_faults(script, &of("name"));
    let mut run = Run { host, input, faults, made: Vec::new() };
    run.strike(None);
    let result = match script {
        "create-vm" => run.create(),
        "destroy-vm" => run.destroy(),
        "examine-vm" => run.examine(),
        "list-vms" => run.list(),
        "check-host" => run.check(),
        other => panic!("no script is called {other}"),
    };
    let reply = match result {
        Ok(reply) => reply,
        Err(Failure { at, error, leave }) => {
            if !leave {
                run.undo();
            }
            json!({ "ok": false, "error": error, "at": at })
        }
    };
    for fault in &run.faults {
        if let FaultKind::NoJson(text) = &fault.kind {
            print_now(&run.with_secret(text));
            return ExitCode::SUCCESS;
        }
    }
    answer(&reply)
}

struct Run {
    host: Host,
    input: Value,
    faults: Vec<Fault>,
    made: Vec<Made>,
}

enum Made {
    Disk(PathBuf),
    Vm(u64),
}

struct Failure {
    at: &'static str,
    error: String,
    leave: bool,
}

fn failure(at: &'static str, error: impl Into<String>) -> Failure {
    Failure { at, error: error.into(), leave: false }
}

impl Run {
    fn create(&mut self) -> Result<Value, Failure> {
        let template = PathBuf::from(self.text("templatePath"));
        let disk = PathBuf::from(self.text("diskPath"));

        self.step("template")?;
        match fs::read(&template) {
            Err(e) => return Err(failure("template", format!("{} cannot be read: {e}", template.display()))),
            Ok(bytes) if !bytes.starts_with(VHDX_SIGNATURE.as_bytes()) => {
                return Err(failure("template", format!("{} is not a VHDX", template.display())));
            }
            Ok(_) => {}
        }
        let mut permissions = fs::metadata(&template).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&template, permissions).unwrap();

        self.step("disk")?;
        if disk.exists() {
            return Err(failure("disk", format!("{} exists", disk.display())));
        }
        if !disk.parent().unwrap().is_dir() {
            return Err(failure("disk", format!("the folder of {} is missing", disk.display())));
        }
        match self.text("diskMode").as_str() {
            "differencing" => host::make_disk(&disk, Some(&template)),
            "copy" => host::make_disk(&disk, None),
            other => return Err(failure("disk", format!("no disk mode {other}"))),
        }
        self.made.push(Made::Disk(disk.clone()));

        self.step("vm")?;
        let switch = self.text("switch");
        let Some(switch) = self.host.state().switches.into_iter().find(|there| there.name == switch) else {
            return Err(failure("vm", format!("there is no switch {switch}")));
        };
        let vm = Vm { disks: vec![disk], ..Vm::new(&self.text("name")) };
        let id = self.host.change(|state| state.add(vm));
        self.made.push(Made::Vm(id));

        self.step("notes")?;
        let notes = self.text("notes");
        self.set(id, |vm| vm.notes = notes);

        self.step("settings")?;
        let mut settings = BTreeMap::new();
        for key in ["memoryMB", "memoryMaximumMB", "cpuCount"] {
            let number = self.input[key].as_u64().unwrap_or_else(|| panic!("{key} is a number"));
            settings.insert(key.to_owned(), json!(number));
        }
        settings.insert("secureBootTemplate".into(), json!(self.text("secureBootTemplate")));
        let nested =
            self.input["nestedVirtualization"].as_bool().expect("nestedVirtualization is true or false");
        settings.insert("nestedVirtualization".into(), json!(nested));
        settings.insert("switch".into(), json!(switch.name));
        self.set(id, |vm| vm.settings = settings);

        self.step("network")?;
        let mut host = self.text("host");
        if host.is_empty() {
            host = switch.address;
        }
        if host.is_empty() {
            return Err(failure("network", format!("the host has no address on {}", switch.name)));
        }
        assert_eq!(self.text("macAddress").len(), 12);
        assert!(self.input["slot"].is_u64(), "slot is a number");
        for key in ["isolation", "allow"] {
            let value = self.input[key].clone();
            assert!(!value.is_null(), "{key} is in the input");
            self.set(id, |vm| vm.settings.extend([(key.to_owned(), value)]));
        }

        self.step("key-values")?;
        if host.contains(':') {
            host = format!("[{host}]");
        }
        let url = format!("http://{host}:{}", self.input["port"].as_u64().expect("port is a number"));
        let mut kvp = BTreeMap::from([
            ("RunnerPoolUrl".to_owned(), url.clone()),
            ("RunnerPoolVmName".to_owned(), self.text("name")),
            ("RunnerPoolVmSecret".to_owned(), self.text("secret")),
        ]);
        let jit_config = self.text("jitConfig");
        let parts = jit_config.as_bytes().chunks(900);
        if !jit_config.is_empty() {
            kvp.insert("RunnerPoolJitConfigParts".into(), parts.len().to_string());
        }
        for (number, part) in (1..).zip(parts) {
            kvp.insert(format!("RunnerPoolJitConfig{number}"), String::from_utf8(part.into()).unwrap());
        }
        self.set(id, |vm| vm.kvp = kvp);

        self.step("start")?;
        self.set(id, |vm| {
            vm.state = "Running".into();
            vm.started = host::now();
        });
        Ok(json!({ "ok": true, "url": url }))
    }

    fn destroy(&mut self) -> Result<Value, Failure> {
        let disk = PathBuf::from(self.text("diskPath"));
        let (name, pool, incarnation) = (self.text("name"), self.text("pool"), self.text("incarnation"));

        let keep = self.input["keep"].as_bool().expect("keep is true or false");
        self.step("find")?;
        if disk != Path::new(&pool).join(format!("{name}-{incarnation}.vhdx")) {
            return Err(failure("find", format!("{} is not the disk of {name}", disk.display())));
        }
        let ours = |vm: &Vm| match serde_json::from_str::<Value>(&vm.notes) {
            Ok(mark) if mark["pool"].is_string() && mark["incarnation"].is_string() => {
                let is_kept = mark["kept"] == true;
                mark["pool"] == *pool
                    && mark["incarnation"] == *incarnation
                    && is_kept == name.starts_with("failed-")
            }
            _ => vm.name == name && vm.disks.contains(&disk),
        };
        let found: Vec<u64> = self.host.state().vms.iter().filter(|vm| ours(vm)).map(|vm| vm.id).collect();
        let is_kept = |vm: &Vm| vm.notes.contains(r#""kept":true"#);
        let kept: Vec<Vm> = self.host.state().vms.into_iter().filter(is_kept).collect();
        if found.is_empty() && kept.iter().any(|vm| vm.notes.contains(&incarnation)) {
            return Ok(json!({ "ok": true }));
        }
        if keep {
            let [id] = found[..] else { return Err(failure("find", format!("{name} is not there"))) };
            for before in kept {
                self.host.change(|state| state.vms.retain(|vm| vm.id != before.id));
                before.disks.iter().for_each(|disk| fs::remove_file(disk).unwrap());
            }
            self.step("keep")?;
            self.set(id, |vm| {
                let mut notes: Value = serde_json::from_str(&vm.notes).unwrap();
                notes["kept"] = true.into();
                (vm.state, vm.started, vm.notes) = ("Off".into(), 0, notes.to_string());
                vm.name = format!("failed-{incarnation}");
            });
            return Ok(json!({ "ok": true }));
        }
        let disks: Vec<PathBuf> =
            kept.into_iter().filter(|vm| found.contains(&vm.id)).flat_map(|vm| vm.disks).collect();
        for &id in &found {
            self.step("stop")?;
            self.set(id, |vm| {
                vm.state = "Off".into();
                vm.started = 0;
            });
            self.step("remove")?;
            self.host.change(|state| state.vms.retain(|vm| vm.id != id));
        }
        self.step("disk")?;
        disks.iter().for_each(|disk| fs::remove_file(disk).unwrap());
        match fs::remove_file(&disk) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(failure("disk", format!("{} cannot be deleted: {e}", disk.display())))
            }
            _ => Ok(json!({ "ok": true })),
        }
    }

    /// Every VM shows the same.
    fn examine(&mut self) -> Result<Value, Failure> {
        let (name, incarnation) = (self.text("name"), self.text("incarnation"));
        self.step("find")?;
        let state = self.host.state();
        let vm = state.vms.iter().find(|vm| vm.name == name && vm.notes.contains(&incarnation));
        let vm = vm.ok_or_else(|| failure("find", format!("{name} is not there")))?;
        Ok(json!({
            "ok": true,
            "uptimeSeconds": (host::now() - vm.started) / 1000,
            "addresses": ["192.0.2.7"],
            "picture": STANDARD.encode(include_bytes!("../../src/sim/screen.png")),
            "missing": [],
        }))
    }

    fn list(&mut self) -> Result<Value, Failure> {
        let storage = self.text("storagePath");
        for write in self.input["writes"].as_array().expect("writes is a list") {
            self.host.change(|state| state.vms.iter_mut().for_each(|vm| write_to(vm, write)));
        }
        let state = self.host.state();
        let vms: Vec<Value> = state
            .vms
            .iter()
            .map(|vm| {
                let uptime = if vm.started == 0 { 0 } else { (host::now() - vm.started) / 1000 };
                json!({
                    "name": vm.name, "state": vm.state, "uptimeSeconds": uptime,
                    "notes": vm.notes, "disks": vm.disks, "heartbeat": vm.heartbeat, "guest": vm.guest,
                    "holdsJitConfig": vm.kvp.contains_key("RunnerPoolJitConfigParts"),
                })
            })
            .collect();
        let disks: Vec<String> = fs::read_dir(&storage)
            .map_err(|e| failure("disks", format!("{storage} cannot be listed: {e}")))?
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".vhdx") || name.ends_with(".avhdx"))
            .collect();
        Ok(json!({ "ok": true, "vms": vms, "disks": disks, "freeBytes": state.free_bytes, "unwritten": [] }))
    }

    fn check(&mut self) -> Result<Value, Failure> {
        let template = PathBuf::from(self.text("templatePath"));
        let read = fs::read(&template);
        let found = match &read {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => "missing",
            Err(_) => "unreadable",
            Ok(bytes) if !bytes.starts_with(VHDX_SIGNATURE.as_bytes()) => "not-vhdx",
            Ok(_) => "ok",
        };
        let state = self.host.state();
        let switch = self.text("switch");
        let address =
            state.switches.iter().find(|there| there.name == switch).map(|there| there.address.as_str());
        Ok(json!({
            "ok": true,
            "windows": "Windows Server 2022 Standard (stand-in)",
            "elevated": true,
            "hyperVModule": true,
            "hyperVService": "Running",
            "template": found,
            "templateBytes": read.map(|bytes| bytes.len()).unwrap_or_default(),
            "templateReadOnly": fs::metadata(&template).is_ok_and(|meta| meta.permissions().readonly()),
            "storage": if Path::new(&self.text("storagePath")).is_dir() { "ok" } else { "missing" },
            "freeBytes": state.free_bytes,
            "switches": state.switches.iter().map(|switch| &switch.name).collect::<Vec<_>>(),
            "switchAddress": address.unwrap_or_default(),
            "switchType": "Internal",
            "ownSwitch": true,
            "macMinimum": "00155D000700",
            "macMaximum": "00155D0007FF",
            "hypervisorPresent": true,
            "firewall": "allowed",
            "memoryBytes": 1_u64 << 36,
            "processors": 32,
        }))
    }

    fn text(&self, key: &str) -> String {
        self.input[key].as_str().unwrap_or_else(|| panic!("{key} is a string in the input")).to_owned()
    }

    /// Changes a VM that should be there; somebody may have taken it away.
    fn set(&self, id: u64, change: impl FnOnce(&mut Vm)) {
        self.host.change(|state| state.vm(id).map(change));
    }

    fn step(&mut self, step: &'static str) -> Result<(), Failure> {
        self.strike(Some(step));
        for fault in &self.faults {
            if let FaultKind::Fail { error, leave } = &fault.kind
                && fault.step.as_deref() == Some(step)
            {
                return Err(Failure { at: step, error: self.with_secret(error), leave: *leave });
            }
        }
        Ok(())
    }

    /// Lets the faults happen that come before this step.
    fn strike(&self, step: Option<&str>) {
        for fault in self.faults.iter().filter(|fault| fault.step.as_deref() == step) {
            match &fault.kind {
                FaultKind::Slow(millis) => thread::sleep(Duration::from_millis(*millis)),
                FaultKind::Hang => hang(),
                FaultKind::HangWithGrandchild => {
                    start_grandchild(&self.host);
                    hang();
                }
                FaultKind::LeaveGrandchild => start_grandchild(&self.host),
                FaultKind::Crash => exit(-1_i32),
                FaultKind::Noise(text) => print_now(&self.with_secret(text)),
                FaultKind::Stderr(text) => eprintln!("{}", self.with_secret(text)),
                FaultKind::Fail { .. } | FaultKind::NoJson(_) | FaultKind::Flood(_) => {}
            }
        }
    }

    fn with_secret(&self, text: &str) -> String {
        text.replace("{secret}", self.input["secret"].as_str().unwrap_or_default())
    }

    fn undo(&mut self) {
        for made in self.made.drain(..).rev() {
            match made {
                Made::Vm(id) => self.host.change(|state| state.vms.retain(|vm| vm.id != id)),
                Made::Disk(path) => fs::remove_file(path).unwrap(),
            }
        }
    }
}

/// Writes to a VM what the pool has for it, if its Notes bear that incarnation.
fn write_to(vm: &mut Vm, write: &Value) {
    let mut notes: Value = serde_json::from_str(&vm.notes).unwrap_or_default();
    if vm.name != write["name"] || notes["incarnation"] != write["incarnation"] {
        return;
    }
    if let Some(uptime) = write["jobStarted"].as_u64() {
        notes["job_started"] = json!(uptime);
        vm.notes = notes.to_string();
    }
    if write["retire"].as_bool().expect("retire is true or false") {
        vm.kvp.insert("RunnerPoolRetire".into(), "1".into());
    }
    if write["forgetJitConfig"].as_bool().expect("forgetJitConfig is true or false") {
        vm.kvp.retain(|name, _| !name.starts_with("RunnerPoolJitConfig"));
    }
}

fn answer(reply: &Value) -> ExitCode {
    print_now(&format!("{reply}\n"));
    ExitCode::SUCCESS
}

fn print_now(text: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).unwrap();
    stdout.flush().unwrap();
}

fn flood(fault: &Fault) -> usize {
    match fault.kind {
        FaultKind::Flood(bytes) => bytes,
        _ => 0,
    }
}

/// Bounded, so that a test that fails to kill it does not leave it for ever.
fn hang() {
    thread::sleep(Duration::from_secs(120));
    exit(1);
}

/// Starts a process that holds this one's outputs, and waits for it to be there.
#[allow(clippy::zombie_processes, reason = "it is to outlive this process")]
fn start_grandchild(host: &Host) {
    Command::new(std::env::current_exe().unwrap())
        .arg("--grandchild")
        .env("STANDIN_HOST", host.file(""))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    while !host.file("grandchild.pid").exists() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn grandchild(host: &Host) -> ExitCode {
    let new = host.file("grandchild.new");
    fs::write(&new, std::process::id().to_string()).unwrap();
    fs::rename(new, host.file("grandchild.pid")).unwrap();
    hang();
    ExitCode::FAILURE
}

/// On Windows a job object kills this process when the pool dies. Elsewhere
/// there is none, but tests kill pools there too: so it watches by itself.
fn die_with_parent() {
    #[cfg(unix)]
    {
        let parent = std::os::unix::process::parent_id();
        thread::spawn(move || {
            while std::os::unix::process::parent_id() == parent {
                thread::sleep(Duration::from_millis(2));
            }
            exit(1);
        });
    }
}

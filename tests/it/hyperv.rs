//! Hyper-V through PowerShell: what is made, what is recognized as the pool's,
//! what is left when anything fails, and what is said about it. The scripts
//! themselves are not run here: a stand-in for `powershell` acts on a fake host
//! in their stead.

use crate::support::fake_host::FakeHost;
use crate::support::fake_host::host::{FaultKind, VHDX_SIGNATURE, Vm, make_disk};
use crate::support::process::wait_until_dead;
use crate::support::wait_until;
use hyperv_runner_pool::config::{DiskMode, HyperVConfig, Isolation, PoolConfig, Source};
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::hypervisor::host_check::{self, Severity};
use hyperv_runner_pool::hypervisor::hyperv::HyperV;
use hyperv_runner_pool::hypervisor::identity::pool_identity;
use hyperv_runner_pool::hypervisor::powershell::PowerShell;
use hyperv_runner_pool::hypervisor::{GuestWord, Heartbeat, Hypervisor, Notes, Power, VmId, VmSpec, VmWrite};
use hyperv_runner_pool::secret::Secret;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECRET: &str = "5ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4";
const CREATE_STEPS: [&str; 8] =
    ["template", "disk", "vm", "notes", "settings", "network", "key-values", "start"];
const JIT_CONFIG: &str = "eyJqaXQiOiJub3QgcmVhbCJ9";

fn settings(host: &FakeHost) -> HyperVConfig {
    let source = Source::new([], host.folder().into());
    let usual = source.load_with(b"USE_MOCK=true").unwrap().config.hyperv;
    HyperVConfig { template_path: host.template(), storage_path: host.storage(), ..usual }
}

fn pool(size: u32) -> PoolConfig {
    PoolConfig { size, min_free_bytes: 10 << 30, ..PoolConfig::default() }
}

fn powershell(host: &FakeHost) -> Arc<PowerShell> {
    Arc::new(PowerShell::new(host.program()).unwrap())
}

fn hyperv(host: &FakeHost) -> HyperV {
    HyperV::new(settings(host), powershell(host)).unwrap()
}

/// With so little time that a test can wait for its end.
fn impatient(host: &FakeHost, seconds: u64) -> Arc<PowerShell> {
    let mut powershell = PowerShell::new(host.program()).unwrap();
    powershell.longest = Duration::from_secs(seconds);
    Arc::new(powershell)
}

fn vm(name: &str, incarnation: &str) -> VmId {
    VmId { name: name.into(), incarnation: incarnation.into() }
}

fn runner_1() -> VmId {
    vm("runner-1", "0123456789abcdef")
}

fn spec(host: &FakeHost, id: VmId) -> VmSpec {
    let notes = Notes {
        pool: pool_identity(&host.storage()).unwrap(),
        slot: 1,
        incarnation: id.incarnation.clone(),
        scope: Scope { api_url: "https://api.github.com".into(), owner: "octo".into(), repository: None },
        runner_name: id.name.clone(),
        runner_id: Some(7),
        fingerprint: None,
        created: 1_700_000_000,
        job_started: None,
    };
    VmSpec { id, notes, secret: Secret::new(SECRET), jit_config: Some(Secret::new(JIT_CONFIG)) }
}

fn create(host: &FakeHost, hyperv: &HyperV, id: VmId) -> Result<(), String> {
    hyperv.create(&spec(host, id)).map_err(|e| {
        assert!(!e.0.contains(SECRET) && !e.0.contains(JIT_CONFIG), "{e}");
        e.0
    })
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} in {text:?}");
    }
}

#[test]
fn a_created_vm_runs_from_a_differencing_disk_and_knows_the_pool() {
    let host = FakeHost::new();
    create(&host, &hyperv(&host), runner_1()).unwrap();

    let made = host.vm("runner-1");
    assert_eq!(made.state, "Running");
    let disk = host.storage().join("runner-1-0123456789abcdef.vhdx");
    assert_eq!(made.disks, std::slice::from_ref(&disk));
    let disk = fs::read_to_string(disk).unwrap();
    assert!(disk.ends_with(host.template().to_str().unwrap()), "{disk}");
    assert_eq!(serde_json::from_str::<Notes>(&made.notes).unwrap(), spec(&host, runner_1()).notes);

    assert_eq!(host.kvp("runner-1", "RunnerPoolUrl"), "http://127.0.0.1:8080");
    assert_eq!(host.kvp("runner-1", "RunnerPoolVmName"), "runner-1");
    assert_eq!(host.kvp("runner-1", "RunnerPoolVmSecret"), SECRET);
    assert_eq!(host.jit_config("runner-1").as_deref(), Some(JIT_CONFIG));
}

#[test]
fn the_settings_of_the_pool_are_those_of_the_vm() {
    let host = FakeHost::new();
    let settings = HyperVConfig {
        disk_mode: DiskMode::Copy,
        memory_mb: 2048,
        memory_max_mb: Some(8192),
        cpu_count: 6,
        switch: "Isolated".into(),
        isolation: Isolation::On,
        allow: vec!["10.0.0.5:3128".parse().unwrap()],
        github_server: Some("ghes.corp:443".into()),
        secure_boot: "off".into(),
        nested_virtualization: true,
        orchestrator_ip: Some("10.1.2.3".parse().unwrap()),
        port: 9090,
        ..settings(&host)
    };
    let hyperv = HyperV::new(settings, powershell(&host)).unwrap();
    create(&host, &hyperv, runner_1()).unwrap();

    let made = host.vm("runner-1");
    assert_eq!(
        serde_json::to_value(&made.settings).unwrap(),
        serde_json::json!({
            "memoryMB": 2048, "memoryMaximumMB": 8192, "cpuCount": 6, "switch": "Isolated",
            "secureBootTemplate": "off", "nestedVirtualization": true,
            "isolation": "on", "allow": ["10.0.0.5:3128", "ghes.corp:443"],
        })
    );
    assert_eq!(made.kvp["RunnerPoolUrl"], "http://10.1.2.3:9090");
    let disk = fs::read_to_string(&made.disks[0]).unwrap();
    assert_eq!(disk, VHDX_SIGNATURE, "a whole disk has no parent");
}

#[test]
fn a_new_template_path_is_taken_without_a_restart() {
    let host = FakeHost::new();
    let path = Arc::new(Mutex::new(Ok(host.template())));
    let now = Arc::clone(&path);
    let mut hyperv = hyperv(&host);
    hyperv.template_path = Box::new(move || now.lock().unwrap().clone());
    let first = hyperv.fingerprint().unwrap();

    let newer = host.template().with_file_name("newer.vhdx");
    make_disk(&newer, None);
    *path.lock().unwrap() = Ok(newer.clone());
    assert_ne!(hyperv.fingerprint().unwrap(), first);
    create(&host, &hyperv, runner_1()).unwrap();
    let disk = fs::read_to_string(&host.vm("runner-1").disks[0]).unwrap();
    assert!(disk.ends_with(newer.to_str().unwrap()), "{disk}");

    *path.lock().unwrap() = Err("VM_TEMPLATE_PATH is empty".into());
    assert_eq!(hyperv.fingerprint(), None);
    let error = create(&host, &hyperv, vm("runner-2", "0123456789abcdef")).unwrap_err();
    has(&error, &["runner-2", "VM_TEMPLATE_PATH is empty"]);
}

#[test]
fn the_fingerprint_changes_with_the_template_and_what_a_vm_is_made_of() {
    let host = FakeHost::new();
    let fingerprint = |settings| HyperV::new(settings, powershell(&host)).unwrap().fingerprint();
    let first = fingerprint(settings(&host)).unwrap();
    assert!(first.len() == 16 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    assert_eq!(fingerprint(settings(&host)), Some(first.clone()));

    let port = HyperVConfig { port: 9090, ..settings(&host) };
    assert_eq!(fingerprint(port), Some(first.clone()), "which a VM is told, not made of");
    let disk_mode = DiskMode::Copy;
    for changed in [
        HyperVConfig { disk_mode, ..settings(&host) },
        HyperVConfig { memory_mb: 8192, ..settings(&host) },
        HyperVConfig { memory_max_mb: Some(8192), ..settings(&host) },
        HyperVConfig { cpu_count: 4, ..settings(&host) },
        HyperVConfig { switch: "Isolated".into(), ..settings(&host) },
        HyperVConfig { secure_boot: "off".into(), ..settings(&host) },
        HyperVConfig { nested_virtualization: true, ..settings(&host) },
    ] {
        assert_ne!(fingerprint(changed.clone()), Some(first.clone()), "{changed:?}");
    }

    let template = fs::File::options().write(true).open(host.template()).unwrap();
    template.set_modified(std::time::UNIX_EPOCH).unwrap();
    let rebuilt = fingerprint(settings(&host));
    assert_ne!(rebuilt, Some(first));
    template.set_len(100).unwrap();
    template.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_ne!(fingerprint(settings(&host)), rebuilt);
    drop(template);
    fs::remove_file(host.template()).unwrap();
    assert_eq!(fingerprint(settings(&host)), None);
}

#[test]
fn an_ipv6_address_of_the_pool_becomes_a_url() {
    let host = FakeHost::new();
    let settings = HyperVConfig { orchestrator_ip: Some("fd00::1".parse().unwrap()), ..settings(&host) };
    create(&host, &HyperV::new(settings, powershell(&host)).unwrap(), runner_1()).unwrap();
    assert_eq!(host.kvp("runner-1", "RunnerPoolUrl"), "http://[fd00::1]:8080");
}

#[test]
fn notes_that_are_another_vms_are_refused_before_anything_is_made() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    let mut wrong = spec(&host, runner_1());
    wrong.notes.pool = "/elsewhere".into();
    assert!(hyperv.create(&wrong).is_err());
    let mut wrong = spec(&host, runner_1());
    wrong.notes.incarnation = "fedcba9876543210".into();
    assert!(hyperv.create(&wrong).is_err());
    assert_eq!(host.invocations().len(), 0);
}

#[test]
fn a_create_that_fails_at_any_step_says_where_and_leaves_nothing() {
    for step in CREATE_STEPS {
        let host = FakeHost::new();
        let error = "it broke with {secret} in hand".to_owned();
        host.set_fault_at("create-vm", step, FaultKind::Fail { error, leave: false });
        let error = create(&host, &hyperv(&host), runner_1()).unwrap_err();
        assert_eq!(error, format!("create-vm failed at {step}: it broke with *** in hand"));
        assert_eq!((host.vms().len(), host.disks().len()), (0, 0), "{step}");
    }
}

#[test]
fn destroy_clears_what_a_create_left_at_any_step() {
    for step in CREATE_STEPS {
        for fault in [FaultKind::Crash, FaultKind::Fail { error: "no".into(), leave: true }] {
            let host = FakeHost::new();
            host.set_fault_at("create-vm", step, fault);
            let hyperv = hyperv(&host);
            create(&host, &hyperv, runner_1()).unwrap_err();

            // A restarted pool can see what is there, and so destroy it.
            let inventory = hyperv.list(&[]).unwrap();
            assert_eq!(inventory.vms.len(), host.vms().len(), "{step}");
            assert_eq!(inventory.disks.len(), host.disks().len(), "{step}");
            assert!(inventory.vms.iter().all(|vm| vm.id == runner_1()));
            assert!(inventory.disks.iter().all(|disk| *disk == runner_1()));

            hyperv.destroy(&runner_1()).unwrap();
            assert_eq!((host.vms().len(), host.disks().len()), (0, 0), "{step}");
        }
    }
}

#[test]
fn destroy_works_in_any_state_and_when_there_is_nothing() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    hyperv.destroy(&runner_1()).unwrap();
    for state in ["Running", "Off", "Saved", "Paused"] {
        create(&host, &hyperv, runner_1()).unwrap();
        host.set_state("runner-1", state);
        hyperv.destroy(&runner_1()).unwrap();
        assert_eq!((host.vms().len(), host.disks().len()), (0, 0), "{state}");
    }
    create(&host, &hyperv, runner_1()).unwrap();
    host.lose("runner-1");
    assert_eq!(hyperv.list(&[]).unwrap().disks, [runner_1()]);
    hyperv.destroy(&runner_1()).unwrap();
    assert_eq!(host.disks().len(), 0);
}

#[test]
fn a_destroy_that_fails_at_any_step_says_where_and_succeeds_when_repeated() {
    for step in ["find", "stop", "remove", "disk"] {
        let host = FakeHost::new();
        let hyperv = hyperv(&host);
        create(&host, &hyperv, runner_1()).unwrap();
        let fault = FaultKind::Fail { error: "locked".into(), leave: true };
        host.add_fault("destroy-vm", Some("runner-1"), Some(step), Some(1), fault);
        assert_eq!(
            hyperv.destroy(&runner_1()).unwrap_err().0,
            format!("destroy-vm failed at {step}: locked")
        );
        hyperv.destroy(&runner_1()).unwrap();
        assert_eq!((host.vms().len(), host.disks().len()), (0, 0), "{step}");
    }
}

#[test]
fn vms_that_the_pool_did_not_make_are_neither_listed_nor_destroyed() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    let elsewhere = host.storage().parent().unwrap().join("runner-1-0123456789abcdef.vhdx");
    let own_disk = host.storage().join("database.vhdx");
    for disk in [&elsewhere, &own_disk] {
        make_disk(disk, None);
    }
    let other_pool = Notes { pool: "/another/pool".into(), ..spec(&host, runner_1()).notes };
    // The same name, and in turn: nothing else; somebody's remark; the disk's
    // name in another folder; another name in the storage folder; the Notes of
    // another pool, even on a disk like ours.
    let ours_in_name = host.storage().join("runner-1-00000000000000ff.vhdx");
    for (notes, disks) in [
        (String::new(), vec![]),
        ("do not delete".to_owned(), vec![]),
        (String::new(), vec![elsewhere.clone()]),
        (String::new(), vec![own_disk.clone()]),
        (serde_json::to_string(&other_pool).unwrap(), vec![ours_in_name]),
    ] {
        host.add_vm(Vm { notes, disks, ..Vm::new("runner-1") });
    }
    // Somebody's VM, by its name, on a disk that was ours.
    let disks = vec![host.storage().join("runner-2-00000000000000ff.vhdx")];
    host.add_vm(Vm { disks, ..Vm::new("build server") });
    let foreign = host.vms();
    let inventory = hyperv.list(&[]).unwrap();
    assert_eq!((inventory.vms, inventory.disks), (vec![], vec![]));

    create(&host, &hyperv, runner_1()).unwrap();
    let inventory = hyperv.list(&[]).unwrap();
    assert_eq!(inventory.vms.len(), 1);
    hyperv.destroy(&runner_1()).unwrap();
    assert_eq!(format!("{:?}", host.vms()), format!("{foreign:?}"));
    assert!(elsewhere.exists() && own_disk.exists());
}

#[test]
fn list_tells_power_uptime_and_notes() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    let second = vm("runner-2", "fedcba9876543210");
    create(&host, &hyperv, runner_1()).unwrap();
    create(&host, &hyperv, second.clone()).unwrap();
    host.change_vm("runner-1", |vm| vm.started -= 90_000);
    host.power_off("runner-2");
    // A person has written over the Notes; the disk still tells.
    host.change_vm("runner-2", |vm| vm.notes = "my remark".into());

    let mut inventory = hyperv.list(&[]).unwrap();
    inventory.vms.sort_by(|a, b| a.id.name.cmp(&b.id.name));
    let [one, two] = &inventory.vms[..] else { panic!("{inventory:?}") };
    assert_eq!((&one.id, one.power), (&runner_1(), Power::On));
    assert!((90..300).contains(&one.uptime.as_secs()), "{:?}", one.uptime);
    assert_eq!(one.notes, Some(spec(&host, runner_1()).notes));
    assert_eq!((&two.id, two.power, &two.notes), (&second, Power::Off, &None));
    inventory.disks.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(inventory.disks, [runner_1(), second]);
}

#[test]
fn list_tells_what_is_free_and_how_the_guests_are() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    host.set_free_bytes(5 << 30);
    create(&host, &hyperv, runner_1()).unwrap();
    let listed = || {
        let inventory = hyperv.list(&[]).unwrap();
        assert_eq!(inventory.free_bytes, Some(5 << 30));
        (inventory.vms[0].heartbeat, inventory.vms[0].guest.clone())
    };
    assert_eq!(listed(), (Heartbeat::Unknown, None));

    for (heartbeat, expected) in
        [("ok", Heartbeat::Ok), ("lost", Heartbeat::Lost), ("paused", Heartbeat::Unknown)]
    {
        host.change_vm("runner-1", |vm| vm.heartbeat = heartbeat.into());
        assert_eq!(listed().0, expected);
    }

    host.change_vm("runner-1", |vm| {
        vm.guest = Some(serde_json::json!({ "stage": "listening", "lastError": null, "worker": true }));
    });
    let word = GuestWord { stage: "listening".into(), last_error: None, worker: true };
    assert_eq!(listed().1, Some(word));
    // A job with administrator's rights can write anything there.
    host.change_vm("runner-1", |vm| vm.guest = Some(serde_json::json!({ "worker": "?" })));
    assert_eq!(listed().1, None);
}

#[test]
fn list_writes_to_the_vms_of_those_incarnations_alone() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    let second = vm("runner-2", "fedcba9876543210");
    for id in [runner_1(), second.clone()] {
        create(&host, &hyperv, id).unwrap();
    }
    for name in ["runner-1", "runner-2"] {
        host.change_vm(name, |vm| {
            for key in ["RunnerPoolJitConfigParts", "RunnerPoolJitConfig1"] {
                vm.kvp.insert(key.into(), "1".into());
            }
        });
    }
    let nothing = VmWrite { vm: second, job_started: None, retire: false, forget_jit_config: false };
    let all = VmWrite { vm: runner_1(), job_started: Some(77), retire: true, forget_jit_config: true };
    let earlier = VmWrite { vm: vm("runner-2", "00000000000000ff"), ..all.clone() };
    let inventory = hyperv.list(&[nothing, all, earlier]).unwrap();

    let one = host.vm("runner-1");
    assert_eq!(one.kvp["RunnerPoolRetire"], "1");
    assert!(one.kvp.keys().all(|key| !key.starts_with("RunnerPoolJitConfig")), "{:?}", one.kvp);
    let two = host.vm("runner-2");
    assert_eq!(two.kvp.get("RunnerPoolRetire"), None);
    assert!(two.kvp.contains_key("RunnerPoolJitConfig1"));
    let started = |name| {
        let vm = inventory.vms.iter().find(|vm| vm.id.name == name).unwrap();
        vm.notes.as_ref().unwrap().job_started
    };
    assert_eq!((started("runner-1"), started("runner-2")), (Some(77), None));
}

#[test]
fn files_of_other_names_in_the_storage_folder_are_not_the_pools() {
    let host = FakeHost::new();
    for name in ["database.vhdx", "runner-1-0123456789abcdef_AB12.avhdx", "runner-1-0123456789abcdef.vhdx"] {
        make_disk(&host.storage().join(name), None);
    }
    assert_eq!(hyperv(&host).list(&[]).unwrap().disks, [runner_1()]);
}

#[test]
fn at_its_deadline_a_hanging_script_dies_with_all_it_has_started() {
    let host = FakeHost::new();
    host.set_fault_at("create-vm", "key-values", FaultKind::HangWithGrandchild);
    let started = Instant::now();
    // Enough for a stand-in on a busy machine to do what it does first.
    let hyperv = HyperV::new(settings(&host), impatient(&host, 15)).unwrap();
    let error = create(&host, &hyperv, runner_1()).unwrap_err();
    has(&error, &["create-vm failed", "did not end within 15s", "killed"]);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());

    let pid = host.invocations()[0].pid;
    let grandchild = host.grandchild().expect("it was started before the deadline");
    for pid in [pid, grandchild] {
        wait_until_dead(pid);
    }
    // What it had made is still there, and can be cleared.
    assert_eq!(host.vms().len(), 1);
    self::hyperv(&host).destroy(&runner_1()).unwrap();
    assert_eq!((host.vms().len(), host.disks().len()), (0, 0));
}

#[test]
fn a_creation_under_way_is_cut_off_when_the_pool_stops_and_no_other_begins() {
    let host = FakeHost::new();
    host.set_fault_at("create-vm", "start", FaultKind::HangWithGrandchild);
    let hyperv = hyperv(&host);
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&host, &hyperv, runner_1()).unwrap_err());
        wait_until("the creation has come far", || host.grandchild().is_some());
        let stopped = Instant::now();
        hyperv.stop_creating();
        has(&creating.join().unwrap(), &["create-vm failed", "killed", "the pool is stopping"]);
        assert!(stopped.elapsed() < Duration::from_secs(50), "{:?}", stopped.elapsed());
    });
    for pid in [host.invocations()[0].pid, host.grandchild().unwrap()] {
        wait_until_dead(pid);
    }

    has(&create(&host, &hyperv, runner_1()).unwrap_err(), &["runner-1", "not created", "stopping"]);
    assert_eq!(host.invocations().len(), 1);

    assert_eq!((host.vms().len(), host.disks().len()), (1, 1), "the remains are still listed and removed");
    assert_eq!(hyperv.list(&[]).unwrap().vms[0].id, runner_1());
    hyperv.destroy(&runner_1()).unwrap();
    assert_eq!((host.vms().len(), host.disks().len()), (0, 0));
}

#[test]
fn a_process_left_behind_with_the_outputs_open_neither_delays_the_answer_nor_survives() {
    let host = FakeHost::new();
    host.set_fault("list-vms", FaultKind::LeaveGrandchild);
    let started = Instant::now();
    hyperv(&host).list(&[]).unwrap();
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
    let grandchild = host.grandchild().unwrap();
    wait_until_dead(grandchild);
}

#[test]
fn every_operation_ends_at_its_deadline() {
    let host = FakeHost::new();
    for script in ["create-vm", "destroy-vm", "list-vms", "check-host"] {
        host.set_fault(script, FaultKind::Hang);
    }
    let powershell = impatient(&host, 3);
    let hyperv = HyperV::new(settings(&host), Arc::clone(&powershell)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| has(&create(&host, &hyperv, runner_1()).unwrap_err(), &["create-vm", "3s"]));
        scope.spawn(|| has(&hyperv.destroy(&runner_1()).unwrap_err().0, &["destroy-vm", "3s"]));
        scope.spawn(|| has(&hyperv.list(&[]).unwrap_err().0, &["list-vms", "3s"]));
        scope.spawn(|| {
            let findings = host_check::run(&powershell, &settings(&host), &pool(1));
            assert_eq!(findings.len(), 1);
            has(&findings[0].text, &["cannot be checked", "check-host", "3s"]);
        });
    });
}

#[test]
fn a_slow_script_is_waited_for() {
    let host = FakeHost::new();
    host.set_fault_at("create-vm", "vm", FaultKind::Slow(300));
    create(&host, &hyperv(&host), runner_1()).unwrap();
}

#[test]
fn noise_before_the_answer_is_passed_over() {
    let host = FakeHost::new();
    let noise = "WARNING: something\r\n{\"not\":\"the answer\"}\r\n\r\n{secret}\n";
    host.set_fault("create-vm", FaultKind::Noise(noise.into()));
    host.set_fault("create-vm", FaultKind::Stderr("a remark".into()));
    create(&host, &hyperv(&host), runner_1()).unwrap();
}

#[test]
fn output_that_is_no_answer_is_quoted_without_secrets() {
    let host = FakeHost::new();
    let text = "At line:1 char:7\r\n+ oops {secret}\r\n";
    host.set_fault("create-vm", FaultKind::NoJson(text.into()));
    let broken = format!("and on two lines {}\r\n{}", &SECRET[..40], &SECRET[40..]);
    host.set_fault("create-vm", FaultKind::Stderr(broken));
    let error = create(&host, &hyperv(&host), runner_1()).unwrap_err();
    has(
        &error,
        &["create-vm failed", "without an answer", "At line:1 char:7 + oops ***", "on two lines ***"],
    );
    assert!(!error.contains(&SECRET[..40]), "{error}");

    let host = FakeHost::new();
    host.set_fault("list-vms", FaultKind::NoJson("x".repeat(1 << 20)));
    let error = hyperv(&host).list(&[]).unwrap_err().0;
    assert!(error.len() < 1000, "{} characters", error.len());
}

#[test]
fn a_flood_of_output_is_an_error_and_blocks_nothing() {
    let host = FakeHost::new();
    host.set_fault("list-vms before input", FaultKind::Flood(20 << 20));
    has(&hyperv(&host).list(&[]).unwrap_err().0, &["list-vms failed", "more than 16 MiB"]);
}

#[test]
fn big_input_and_big_output_do_not_wait_for_each_other() {
    let host = FakeHost::new();
    // Both are far more than a pipe holds, and the output comes first.
    host.set_fault("create-vm before input", FaultKind::Flood(1 << 20));
    let mut big = spec(&host, runner_1());
    big.notes.runner_name = "x".repeat(1 << 20);
    hyperv(&host).create(&big).unwrap();
}

#[test]
fn characters_outside_of_ascii_arrive() {
    let host = FakeHost::new();
    let mut odd = spec(&host, runner_1());
    odd.notes.runner_name = "Läufer \u{1f3c3} \"'`$(1)".into();
    let hyperv = hyperv(&host);
    hyperv.create(&odd).unwrap();
    assert_eq!(hyperv.list(&[]).unwrap().vms[0].notes, Some(odd.notes));
}

#[test]
fn a_template_or_switch_that_is_not_there_is_named() {
    let host = FakeHost::new();
    for (settings, words) in [
        (HyperVConfig { switch: "Wan".into(), ..settings(&host) }, ["create-vm failed at", "Wan"]),
        (
            HyperVConfig { template_path: host.storage().join("none.vhdx"), ..settings(&host) },
            ["create-vm failed at template", "none.vhdx"],
        ),
    ] {
        let hyperv = HyperV::new(settings, powershell(&host)).unwrap();
        has(&create(&host, &hyperv, runner_1()).unwrap_err(), &words);
        assert_eq!((host.vms().len(), host.disks().len()), (0, 0));
    }
}

#[test]
fn a_powershell_that_is_not_there_is_named() {
    let host = FakeHost::new();
    let missing = PowerShell::new(Path::new("/nowhere/powershell").into()).unwrap();
    let hyperv = HyperV::new(settings(&host), Arc::new(missing)).unwrap();
    has(&hyperv.list(&[]).unwrap_err().0, &["list-vms", "powershell", "cannot be run"]);
}

#[test]
fn vms_are_made_and_removed_side_by_side() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    std::thread::scope(|scope| {
        for number in 1..=6 {
            let (host, hyperv) = (&host, &hyperv);
            scope.spawn(move || {
                let id = vm(&format!("runner-{number}"), &format!("{number:016x}"));
                create(host, hyperv, id.clone()).unwrap();
                if number % 2 == 0 {
                    hyperv.destroy(&id).unwrap();
                }
            });
        }
    });
    let mut names: Vec<String> = host.vms().into_iter().map(|vm| vm.name).collect();
    names.sort();
    assert_eq!(names, ["runner-1", "runner-3", "runner-5"]);
    assert_eq!(host.disks().len(), 3);
}

/// This test program again, running one test with other variables.
fn another_process(test: &str, variables: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored"]).envs(variables.iter().copied());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The part of the next two tests that is a process of its own.
#[test]
#[ignore = "only other tests run this"]
fn create_on_the_host_of_the_environment() {
    let path = |name| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    let host = FakeHost::borrowed(&path("TEST_STANDIN"));
    create(&host, &hyperv(&host), runner_1()).unwrap();
}

#[test]
fn the_scripts_do_not_inherit_the_pools_secrets() {
    let host = FakeHost::new();
    let variables = [
        ("TEST_STANDIN", host.folder()),
        ("GITHUB_PAT", Path::new("ghp_x")),
        ("WEBHOOK_SECRET", Path::new("hook_x")),
    ];
    let status =
        another_process("hyperv::create_on_the_host_of_the_environment", &variables).status().unwrap();
    assert!(status.success());
    let invocations = host.invocations();
    assert_eq!(invocations.len(), 1);
    assert_eq!(invocations[0].inherited_secrets, [""; 0]);
}

#[test]
fn when_the_pool_is_killed_its_script_dies_and_the_next_start_can_clear_the_rest() {
    for step in ["vm", "notes", "start"] {
        let host = FakeHost::new();
        host.add_fault("create-vm", None, Some(step), Some(1), FaultKind::Hang);
        let mut pool = another_process(
            "hyperv::create_on_the_host_of_the_environment",
            &[("TEST_STANDIN", host.folder())],
        )
        .spawn()
        .unwrap();
        wait_until("the disk is made", || host.disks().len() == 1);
        if step != "vm" {
            wait_until("the VM is made", || host.vms().len() == 1);
        }
        pool.kill().unwrap();
        pool.wait().unwrap();
        let script = host.invocations()[0].pid;
        wait_until_dead(script);

        let hyperv = hyperv(&host);
        for vm in hyperv.list(&[]).unwrap().vms {
            assert_eq!(vm.id, runner_1());
        }
        for disk in hyperv.list(&[]).unwrap().disks {
            hyperv.destroy(&disk).unwrap();
        }
        assert_eq!((host.vms().len(), host.disks().len()), (0, 0), "{step}");
    }
}

/// Ctrl+C in a terminal goes to every process of its foreground group.
#[cfg(unix)]
#[test]
fn ctrl_c_on_the_pool_does_not_reach_a_script() {
    let host = FakeHost::new();
    host.set_fault("list-vms", FaultKind::Hang);
    let hyperv = hyperv(&host);
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| hyperv.list(&[]).unwrap_err());
        wait_until("the script runs", || host.invocations().len() == 1);
        let script = host.invocations()[0].pid as libc::pid_t;
        // SAFETY: two only ask, and the script hangs, so its id is its own.
        let (theirs, ours, killed) =
            unsafe { (libc::getpgid(script), libc::getpgid(0), libc::kill(script, libc::SIGKILL)) };
        assert_eq!(killed, 0);
        assert!(theirs > 0 && theirs != ours, "{theirs} {ours}");
        listing.join().unwrap();
    });
}

#[test]
fn the_check_of_a_good_host_finds_no_fault() {
    let host = FakeHost::new();
    let findings = host_check::run(&powershell(&host), &settings(&host), &pool(4));
    assert!(findings.len() > 5);
    for finding in findings {
        assert_eq!(finding.severity, Severity::Ok, "{finding}");
    }
}

#[test]
fn the_check_names_a_group_policy_that_forbids_scripts() {
    let host = FakeHost::new();
    for (policies, forbids) in [
        ("MachinePolicy=AllSigned\r\nUserPolicy=Undefined\r\nProcess=Bypass\r\n", true),
        ("MachinePolicy=Undefined\nUserPolicy=Restricted\n", true),
        ("MachinePolicy=RemoteSigned\nUserPolicy=AllSigned\n", false),
        ("MachinePolicy=Undefined\nUserPolicy=Undefined\nLocalMachine=AllSigned\n", false),
        ("", false),
    ] {
        host.set_fault("check-host", FaultKind::Crash);
        fs::write(host.folder().join("host").join("policies"), policies).unwrap();
        let findings = host_check::run(&powershell(&host), &settings(&host), &pool(4));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].severity, Severity::Fault);
        assert_eq!(
            findings[0].text.contains("RemoteSigned for this host"),
            forbids,
            "{policies}: {}",
            findings[0]
        );
    }
}

#[test]
fn the_fingerprint_covers_whether_vms_are_walled_off() {
    let host = FakeHost::new();
    let of = |settings| HyperV::new(settings, powershell(&host)).unwrap().fingerprint().unwrap();
    let usual = of(settings(&host));
    assert_ne!(of(HyperVConfig { isolation: Isolation::On, ..settings(&host) }), usual);
    let allow = vec!["10.0.0.5:3128".parse().unwrap()];
    assert_ne!(of(HyperVConfig { allow, ..settings(&host) }), usual);
}

#[test]
fn the_check_finds_what_is_missing_on_the_host() {
    let host = FakeHost::new();
    let settings = HyperVConfig {
        template_path: host.storage().join("none.vhdx"),
        storage_path: host.storage().join("none"),
        switch: "Isolated".into(),
        ..settings(&host)
    };
    let faults: Vec<String> = host_check::run(&powershell(&host), &settings, &pool(4))
        .into_iter()
        .filter(|finding| finding.severity == Severity::Fault)
        .map(|finding| finding.text)
        .collect();
    assert_eq!(faults.len(), 3, "{faults:?}");
    has(&faults[0], &["template", "VM_TEMPLATE_PATH"]);
    has(&faults[1], &["storage folder", "VM_STORAGE_PATH"]);
    has(&faults[2], &["'Isolated'", "ORCHESTRATOR_IP"]);
}

// --- keep ---

#[test]
fn a_kept_vm_is_no_slots_and_goes_under_the_name_that_it_has_now() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    create(&host, &hyperv, runner_1()).unwrap();
    hyperv.keep(&runner_1()).unwrap();
    let kept = vm("failed-0123456789abcdef", "0123456789abcdef");
    let inventory = hyperv.list(&[]).unwrap();
    assert_eq!((inventory.vms, inventory.disks), (vec![], vec![]));
    assert_eq!(inventory.kept, std::slice::from_ref(&kept));
    assert_eq!(host.vm(&kept.name).state, "Off");
    hyperv.destroy(&runner_1()).unwrap();
    hyperv.keep(&runner_1()).unwrap();
    assert_eq!(host.disks(), ["runner-1-0123456789abcdef.vhdx"], "it is kept with its disk");
    // A slot's next VM has nothing to do with it.
    create(&host, &hyperv, vm("runner-1", "fedcba9876543210")).unwrap();
    hyperv.destroy(&kept).unwrap();
    assert_eq!(hyperv.list(&[]).unwrap().kept, []);
    assert_eq!(host.disks(), ["runner-1-fedcba9876543210.vhdx"]);
}

#[test]
fn of_two_vms_that_fail_at_once_one_is_kept() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    let both = [runner_1(), vm("runner-2", "fedcba9876543210")];
    both.iter().for_each(|id| create(&host, &hyperv, id.clone()).unwrap());
    host.set_fault_at("destroy-vm", "keep", FaultKind::Slow(500));
    std::thread::scope(|scope| {
        both.iter().for_each(|id| drop(scope.spawn(|| hyperv.keep(id).unwrap())));
    });
    assert_eq!(hyperv.list(&[]).unwrap().kept.len(), 1);
    assert_eq!(host.disks().len(), 1);
}

// --- examine ---

#[test]
fn a_vm_that_is_examined_brings_its_screen_and_one_that_is_not_there_an_error() {
    let host = FakeHost::new();
    let hyperv = hyperv(&host);
    create(&host, &hyperv, runner_1()).unwrap();
    let found = hyperv.examine(&runner_1()).unwrap();
    assert_eq!(found.picture.as_deref(), Some(&include_bytes!("../../src/sim/screen.png")[..]));
    assert_eq!((found.addresses, found.missing), (vec!["192.0.2.7".to_owned()], None));
    assert!(found.uptime.is_some());
    let error = hyperv.examine(&vm("runner-1", "fedcba9876543210")).unwrap_err();
    assert!(error.0.contains("examine-vm failed at find"), "{error}");
}

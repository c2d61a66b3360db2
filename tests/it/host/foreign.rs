//! What is not this pool's is never touched.

use crate::support::fake_host::host::{self, Vm};
use crate::support::host_pool::HostWorld;
use crate::support::process::Process;
use crate::support::{free_port, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn vms_disks_and_runners_of_others_are_never_touched() {
    let world = HostWorld::new();
    let elsewhere = world.host.folder().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    let storage = world.host.storage();
    let vm = |name: &str, disk: &Path, notes: &str| {
        host::make_disk(disk, None);
        Vm {
            state: "Running".into(),
            started: host::now(),
            notes: notes.into(),
            disks: vec![disk.to_owned()],
            ..Vm::new(name)
        }
    };
    let other_pools = |name: &str| {
        let pool = elsewhere.display();
        format!(
            r#"{{"pool":"{pool}","slot":1,"incarnation":"00ff00ff00ff00ff","runner_name":"{name}","runner_id":1,"created":1}}"#
        )
    };
    let foreign = [
        // Somebody's own VM with a slot's name, and with what looks like a pool's disk.
        vm("runner-1", &elsewhere.join("runner-1.vhdx"), ""),
        vm("runner-1", &elsewhere.join("runner-1-00ff00ff00ff00ff.vhdx"), "do not touch"),
        // Another pool's.
        vm("runner-2", &elsewhere.join("runner-2-00ff00ff00ff00ff.vhdx"), &other_pools("runner-2")),
        // Somebody's own, which keeps its disk in the pool's folder.
        vm("builder", &storage.join("builder.vhdx"), "{}"),
    ];
    foreign.iter().for_each(|vm| world.host.add_vm(vm.clone()));
    fs::write(storage.join("notes.txt"), "mine").unwrap();
    let of_others = || -> BTreeSet<String> {
        let theirs = |vm: &Vm| foreign.iter().any(|other| other.disks == vm.disks);
        world.host.vms().iter().filter(|vm| theirs(vm)).map(|vm| format!("{vm:?}")).collect()
    };
    let before = of_others();
    assert_eq!(before.len(), 4);
    // Another host's runner with a slot's name, one that merely looks alike, and a person's.
    let runners = [
        world.github.register_itself("runner-1", &["self-hosted", "Windows"]),
        world.github.register_itself("runner-x", &["self-hosted", "ephemeral"]),
        world.github.add_runner("mac-mini", false, false),
    ];

    let pool = world.start(&[]);
    let serving = |pool: &Process| wait_until("two VMs are ready", || pool.health()["ready"] == 2);
    serving(&pool);
    let mut pool = pool;
    pool.kill();
    let pool = world.start(&[]);
    serving(&pool);
    let ours: Vec<String> = world
        .host
        .vms()
        .into_iter()
        .filter(|vm| !foreign.iter().any(|other| other.disks == vm.disks))
        .map(|vm| vm.name)
        .collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    pool.stop();
    let pool = world.start(&[("SHUTDOWN", "destroy")]);
    serving(&pool);
    pool.stop();

    assert_eq!(of_others(), before);
    assert_eq!(world.host.vms().len(), 4);
    assert!(foreign.iter().all(|vm| vm.disks[0].exists()));
    assert_eq!(world.host.disks(), ["builder.vhdx", "notes.txt", "pool.lock"]);
    let left: Vec<u64> = world.github.runners().into_iter().map(|runner| runner.id).collect();
    assert_eq!(left, runners);
}

#[test]
fn two_pools_on_one_host_leave_each_other_alone() {
    let world = HostWorld::new();
    let second_storage = world.host.folder().join("second storage");
    let (second_port, second_storage) =
        (free_port().to_string(), second_storage.to_str().unwrap().to_owned());
    let second =
        [("VM_STORAGE_PATH", &*second_storage), ("PORT", &*second_port), ("RUNNER_NAME_PREFIX", "other-")];
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    let before = (world.incarnation("runner-1"), world.incarnation("runner-2"));
    let mut other = world.spawn(&second);
    wait_until("its VMs boot", || world.host.vms().len() == 4);
    other.interrupt();
    assert_eq!(other.wait(), 0, "{}", other.log());
    wait_until("its VMs are gone", || world.host.vms().len() == 2);
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!((world.incarnation("runner-1"), world.incarnation("runner-2")), before);
    pool.stop();
}

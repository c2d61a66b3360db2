//! The program on a Hyper-V host: as a process with its settings in the
//! environment, over a simulated host behind a stand-in for `powershell`, with
//! a fake GitHub and guests that speak HTTP. What is there when all is well;
//! what is there again after it was killed, or the host or GitHub failed; what
//! it never touches and never tells.
//!
//! On Windows the program runs PowerShell from the system's folder only, where
//! no test can put a stand-in.
use crate::support::fake_github::{Fault, Reply, TOKEN};
use crate::support::fake_host::host::{self, FaultKind, Vm};
use crate::support::host_pool::{News, Process, WEBHOOK_SECRET, World, free_port, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

const CREATE_STEPS: [&str; 7] = ["template", "disk", "vm", "notes", "settings", "key-values", "start"];
const DESTROY_STEPS: [&str; 4] = ["find", "stop", "remove", "disk"];

/// Longer than any test: whoever is this slow is killed first.
const FOR_EVER: FaultKind = FaultKind::Slow(100_000);

/// Runs cases side by side, since each of them mostly waits.
fn each<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| run(case));
        }
    });
}

// --- a VM's life ---

#[test]
fn every_vm_serves_one_job_and_is_replaced_however_the_pool_learns_of_it() {
    each(&[News::Webhook, News::Callback, News::Silence], |&news| {
        let world = World::new();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        let (first, other) = (world.incarnation("runner-1"), world.incarnation("runner-2"));

        world.start_job(&pool, "runner-1", 7, news);
        pool.wait_for_state("runner-1", "running");
        assert_eq!(world.guest("runner-1").fetch_config().0, 409, "a second job for this VM");
        world.end_job(&pool, "runner-1", 7, news);
        wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
        world.wait_until_whole(&pool, 2, 0);
        assert_eq!(world.incarnation("runner-2"), other, "{news:?}");
        assert_eq!(pool.status()["jobs_completed"], 1);
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn runners_that_register_themselves_live_the_same_life() {
    let world = World::new();
    let pool = world.start(&[("RUNNER_REGISTRATION", "token")]);
    world.wait_until_whole(&pool, 2, 0);
    let first = world.incarnation("runner-1");
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    world.end_job(&pool, "runner-1", 7, News::Webhook);
    wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_vm_without_its_secret_changes_nothing() {
    let world = World::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    let stranger = crate::support::fake_host::Guest {
        secret: world.guest("runner-2").secret,
        ..world.guest("runner-1")
    };
    assert_eq!(stranger.fetch_config().0, 401);
    assert_eq!(stranger.report_started("{}").0, 401);
    assert_eq!(stranger.report_complete().0, 401);
    assert_eq!(pool.state("runner-1"), "ready");
    pool.stop();
}

#[test]
fn a_vm_that_goes_off_or_vanishes_is_replaced_idle_or_not() {
    type Fate = (&'static str, fn(&World));
    let happens: [Fate; 3] = [
        ("off", |world| world.standin.power_off("runner-1")),
        ("saved", |world| {
            world.standin.change_vm("runner-1", |vm| {
                vm.state = "Saved".into();
                vm.started = 0;
            });
        }),
        ("vanished", |world| world.standin.lose("runner-1")),
    ];
    let cases: Vec<_> =
        happens.into_iter().flat_map(|(what, how)| [(what, how, false), (what, how, true)]).collect();
    each(&cases, |(what, how, busy)| {
        let world = World::new();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        let (first, other) = (world.incarnation("runner-1"), world.incarnation("runner-2"));
        if *busy {
            world.start_job(&pool, "runner-1", 7, News::Webhook);
            pool.wait_for_state("runner-1", "running");
        }
        how(&world);
        wait(&format!("{what}: replaced"), || {
            world.incarnation("runner-1").is_some_and(|i| Some(i) != first)
        });
        world.wait_until_whole(&pool, 2, 0);
        assert_eq!(world.incarnation("runner-2"), other);
        pool.stop();
        world.assert_empty();
    });
}

// --- stopping and starting again ---

#[test]
fn ctrl_c_removes_idle_vms_and_the_next_start_adopts_the_one_with_a_job() {
    let world = World::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    let running = world.incarnation("runner-1");
    pool.stop();
    assert_eq!(world.vms().len(), 1);
    assert_eq!((world.incarnation("runner-1"), world.disks().len()), (running.clone(), 1));
    let runners = world.github.runners();
    assert!(runners.len() == 1 && runners[0].busy, "{runners:?}");

    let made_before = world.runs("create-vm");
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!(pool.state("runner-1"), "running");
    assert_eq!((world.incarnation("runner-1"), world.runs("create-vm")), (running.clone(), made_before + 1));
    world.end_job(&pool, "runner-1", 7, News::Callback);
    wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != running));
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_job_that_github_gave_out_at_the_last_moment_outlives_the_stop() {
    let world = World::new();
    let pool = world.start(&[("POLL_SECONDS", "3600")]);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Silence);
    pool.stop();
    let left: Vec<String> = world.vms().into_iter().map(|vm| vm.name).collect();
    assert_eq!(left, ["runner-1"]);
}

#[test]
fn a_forced_stop_destroys_vms_with_jobs_too() {
    let world = World::new();
    let pool = world.start(&[("SHUTDOWN", "destroy")]);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    pool.stop();
    assert_eq!((world.vms().len(), world.disks().len()), (0, 0));
}

#[test]
fn a_service_managers_stop_is_a_stop_like_ctrl_c() {
    let world = World::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    pool.terminate();
    assert_eq!(pool.wait(), 0, "{}", pool.log());
    world.assert_empty();
}

#[test]
fn a_vm_in_the_making_is_removed_by_the_stop_once_it_is_made() {
    let world = World::new();
    world.standin.set_fault_at("create-vm", "start", FaultKind::Slow(1500));
    let pool = world.start(&[]);
    wait("two VMs are almost made", || {
        is_being_created(&world, "runner-1", "start") && is_being_created(&world, "runner-2", "start")
    });
    pool.stop();
    assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 2));
    world.assert_empty();
}

#[test]
fn what_cannot_be_removed_at_the_stop_is_left_to_the_next_start() {
    type Trouble = fn(&World);
    let troubles: [Trouble; 3] = [
        |world| world.github.misbehave("/actions/", usize::MAX, Fault::Cut),
        |world| {
            world.github.misbehave("DELETE", usize::MAX, Fault::Answer(Reply::refusal(502, "Bad Gateway")))
        },
        |world| {
            let error = "the host says no".into();
            world.standin.set_fault("destroy-vm", FaultKind::Noise("odd".into()));
            world.standin.set_fault_at("destroy-vm", "remove", FaultKind::Fail { error, leave: true });
        },
    ];
    each(&troubles, |trouble| {
        let world = World::new();
        let pool = world.start(&[("POLL_SECONDS", "3600")]);
        world.wait_until_whole(&pool, 2, 0);
        trouble(&world);
        pool.stop();
        assert_eq!((world.vms().len(), world.disks().len()), (2, 2));
        world.github.behave();
        world.standin.clear_faults();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn killed_while_it_stops_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.standin.add_fault("destroy-vm", Some("runner-2"), Some("disk"), None, FOR_EVER),
        |world, pool| {
            world.wait_until_whole(pool, 2, 0);
            pool.interrupt();
            wait("one VM is gone, of the other the disk is left", || {
                world.vms().is_empty() && world.disks().len() == 1
            });
        },
        |_, _| {},
    );
}

#[test]
fn another_pool_size_at_the_next_start_is_what_counts() {
    let world = World::new();
    let mut pool = world.start(&[("POOL_SIZE", "3")]);
    world.wait_until_whole(&pool, 3, 0);
    world.start_job(&pool, "runner-3", 7, News::Webhook);
    pool.wait_for_state("runner-3", "running");
    let at_work = world.incarnation("runner-3");
    pool.kill();
    // Fewer: the job goes on, and of the idle ones one is too many.
    let mut pool = world.start(&[("POOL_SIZE", "1")]);
    wait("one VM works", || {
        let health = pool.health().unwrap().1;
        health["vms"] == 1 && health["running"] == 1
    });
    assert_eq!(world.incarnation("runner-3"), at_work);
    wait("the others are gone", || world.vms().len() == 1);
    pool.kill();
    world.forget_most_vms();
    let pool = world.start(&[("POOL_SIZE", "2")]);
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!(world.incarnation("runner-3"), at_work);
    world.end_job(&pool, "runner-3", 7, News::Callback);
    wait("the VM is gone", || world.incarnation("runner-3") != at_work);
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn after_a_change_of_the_webhook_secret_old_vms_cannot_report_but_are_replaced_all_the_same() {
    let world = World::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Silence);
    pool.wait_for_state("runner-1", "running");
    let first = world.incarnation("runner-1");
    pool.kill();
    let pool = world.start(&[("WEBHOOK_SECRET", "another-webhook-secret-of-these-tests")]);
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!(world.guest("runner-1").report_complete().0, 401);
    assert_eq!((pool.state("runner-1").as_str(), world.incarnation("runner-1")), ("running", first.clone()));
    world.end_job(&pool, "runner-1", 7, News::Silence);
    wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_second_ctrl_c_stops_at_once_and_the_next_start_clears_up() {
    let world = World::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    world.standin.set_fault("destroy-vm", FaultKind::Hang);
    pool.interrupt();
    wait("destroying has begun", || world.runs("destroy-vm") >= 1);
    assert_eq!(pool.ended(), None);
    pool.interrupt();
    assert_eq!(pool.wait(), 1);
    assert!(pool.log().contains("stopped at once"));

    world.standin.clear_faults();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn what_the_next_start_finds_of_no_use_it_clears_away() {
    let world = World::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    let mut pool = pool;
    pool.kill();
    // While it is down: one VM goes off, and a disk is left that belongs to no VM.
    world.standin.power_off("runner-2");
    let stray = world.standin.storage().join("runner-9-00ff00ff00ff00ff.vhdx");
    host::make_disk(&stray, None);
    let (kept, dead) = (world.incarnation("runner-1"), world.incarnation("runner-2"));

    let pool = world.start(&[]);
    wait("the VM that is off is replaced", || world.incarnation("runner-2").is_some_and(|i| Some(i) != dead));
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!(world.incarnation("runner-1"), kept);
    assert!(!stray.exists());
    pool.stop();
    world.assert_empty();
}

// --- kill -9 ---

/// Starts a pool, kills it where `until` has led it, starts it again with all
/// faults gone, and sees that it becomes whole and that `then` holds.
fn killed_and_whole_again(
    settings: &[(&str, &str)],
    prepare: impl FnOnce(&World),
    until: impl FnOnce(&World, &Process),
    then: impl FnOnce(&World, &Process),
) {
    let world = World::new();
    prepare(&world);
    let mut pool = world.start(settings);
    until(&world, &pool);
    pool.kill();
    world.standin.clear_faults();
    world.github.behave();
    world.guests_sleep(false);
    // Long enough for whatever does not wait until the old VM is gone to be seen.
    world.standin.set_fault("destroy-vm", FaultKind::Slow(300));
    let pool = world.start(settings);
    world.wait_until_whole(&pool, 2, 0);
    then(&world, &pool);
    pool.stop();
}

#[test]
fn killed_at_any_step_of_creating_a_vm_the_next_start_is_whole() {
    each(&CREATE_STEPS, |&step| {
        killed_and_whole_again(
            &[],
            |world| world.standin.add_fault("create-vm", Some("runner-2"), Some(step), None, FOR_EVER),
            |world, pool| {
                wait(&format!("runner-2 is at {step} while runner-1 is ready"), || {
                    pool.state("runner-1") == "ready" && is_being_created(world, "runner-2", step)
                });
            },
            |world, pool| {
                // What the kill cut off was cleared away; what was whole was kept.
                assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
                assert!(pool.log().contains("adopting runner-1"), "{}", pool.log());
            },
        );
    });
}

/// Whether the making of a VM has come as far as this step.
fn is_being_created(world: &World, name: &str, step: &str) -> bool {
    let vm = world.vms().into_iter().find(|vm| vm.name == name);
    match step {
        "template" | "disk" => {
            world.standin.invocations().iter().any(|run| run.script == "create-vm" && run.vm == name)
        }
        "vm" => world.disks().iter().any(|disk| disk.starts_with(name)),
        "notes" => vm.is_some(),
        "settings" => vm.is_some_and(|vm| !vm.notes.is_empty()),
        "key-values" => vm.is_some_and(|vm| !vm.settings.is_empty()),
        "start" => vm.is_some_and(|vm| !vm.kvp.is_empty()),
        _ => unreachable!(),
    }
}

#[test]
fn killed_while_github_registers_a_runner_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.github.misbehave("generate-jitconfig", 2, Fault::Slow(Duration::from_secs(1))),
        |world, _| wait("GitHub was asked", || world.github.count("generate-jitconfig") == 2),
        |_, _| {},
    );
}

#[test]
fn killed_while_a_guest_boots_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.guests_sleep(true),
        |_, pool| {
            pool.wait_for_state("runner-1", "booting");
            pool.wait_for_state("runner-2", "booting");
        },
        |_, _| {},
    );
}

#[test]
fn killed_with_ready_vms_the_next_start_adopts_them_all() {
    killed_and_whole_again(
        &[],
        |_| {},
        |world, pool| world.wait_until_whole(pool, 2, 0),
        |world, _| assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0)),
    );
}

#[test]
fn killed_with_runners_that_register_themselves_the_next_start_knows_them_by_name() {
    let token = [("RUNNER_REGISTRATION", "token")];
    killed_and_whole_again(
        &token,
        |world| world.standin.add_fault("create-vm", Some("runner-2"), Some("start"), None, FOR_EVER),
        |world, pool| {
            wait("runner-1 is ready and runner-2 is not", || {
                pool.state("runner-1") == "ready"
                    && world.github.runners().iter().any(|runner| runner.online)
                    && is_being_created(world, "runner-2", "start")
            });
        },
        |world, pool| {
            assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
            assert!(pool.log().contains("adopting runner-1"), "{}", pool.log());
        },
    );
}

#[test]
fn killed_again_and_again_at_any_moment_the_last_start_is_whole_and_the_job_still_runs() {
    each(&[1_u64, 2], |&seed| {
        let world = World::new();
        let size = [("POOL_SIZE", "4")];
        let mut pool = world.start(&size);
        world.wait_until_whole(&pool, 4, 0);
        world.start_job(&pool, "runner-3", 7, News::Callback);
        pool.wait_for_state("runner-3", "running");
        let at_work = world.incarnation("runner-3");
        // Slow enough that most kills come in the middle of something.
        for script in ["create-vm", "destroy-vm", "list-vms"] {
            world.standin.set_fault(script, FaultKind::Slow(60));
        }
        for step in ["notes", "key-values"] {
            world.standin.set_fault_at("create-vm", step, FaultKind::Slow(60));
        }
        for step in ["remove", "disk"] {
            world.standin.set_fault_at("destroy-vm", step, FaultKind::Slow(60));
        }
        let mut random = seed;
        for _ in 0..8 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let idle = ["runner-1", "runner-2", "runner-4"][(random >> 60) as usize % 3];
            world.standin.power_off(idle);
            std::thread::sleep(Duration::from_millis((random >> 33) % 1200));
            pool.kill();
            pool = world.start(&size);
        }
        world.standin.clear_faults();
        world.wait_until_whole(&pool, 4, 0);
        assert_eq!((pool.state("runner-3").as_str(), world.incarnation("runner-3")), ("running", at_work));
        pool.interrupt();
        assert_eq!(pool.wait(), 0);
        assert_eq!(world.vms().len(), 1);
    });
}

#[test]
fn killed_with_a_job_running_the_next_start_sees_it_to_its_end() {
    each(&[News::Webhook, News::Callback, News::Silence], |&news| {
        killed_and_whole_again(
            &[],
            |_| {},
            |world, pool| {
                world.wait_until_whole(pool, 2, 0);
                world.start_job(pool, "runner-1", 7, News::Callback);
                pool.wait_for_state("runner-1", "running");
            },
            |world, pool| {
                assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0));
                let running = world.incarnation("runner-1");
                assert_eq!(pool.state("runner-1"), "running");
                world.end_job(pool, "runner-1", 7, news);
                wait("the VM is replaced", || {
                    world.incarnation("runner-1").is_some_and(|i| Some(i) != running)
                });
                world.wait_until_whole(pool, 2, 0);
            },
        );
    });
}

#[test]
fn a_job_that_ends_while_no_pool_runs_leaves_no_vm_behind() {
    let world = World::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    let ran = world.incarnation("runner-1");
    pool.kill();
    world.end_job(&pool, "runner-1", 7, News::Silence);
    let pool = world.start(&[]);
    wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != ran));
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn killed_at_any_step_of_destroying_a_vm_the_next_start_is_whole() {
    each(&DESTROY_STEPS, |&step| {
        killed_and_whole_again(
            &[],
            |world| world.standin.add_fault("destroy-vm", None, Some(step), None, FOR_EVER),
            |world, pool| {
                world.wait_until_whole(pool, 2, 0);
                let before = world.incarnation("runner-2").unwrap();
                world.start_job(pool, "runner-2", 7, News::Callback);
                pool.wait_for_state("runner-2", "running");
                world.end_job(pool, "runner-2", 7, News::Callback);
                wait(&format!("runner-2 is at {step}"), || {
                    let vm = world.vms().into_iter().find(|vm| vm.name == "runner-2");
                    let disk_is_there = world.disks().iter().any(|disk| disk.contains(&before));
                    world.runs("destroy-vm") == 1
                        && match step {
                            "find" | "stop" => true,
                            "remove" => vm.is_some_and(|vm| vm.state == "Off"),
                            _ => vm.is_none() && disk_is_there,
                        }
                });
            },
            |world, pool| {
                assert!(pool.log().contains("adopting runner-1"), "{}", pool.log());
                assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
            },
        );
    });
}

#[test]
fn killed_between_destroying_a_vm_and_removing_its_runner_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.github.misbehave("DELETE", 1000, Fault::Answer(Reply::refusal(500, "Server Error"))),
        |world, pool| {
            world.wait_until_whole(pool, 2, 0);
            world.standin.power_off("runner-2");
            wait("the VM is gone and its runner is not", || {
                world.vms().len() == 1 && world.github.runners().len() == 2
            });
        },
        |_, _| {},
    );
}

// --- what is not the pool's ---

#[test]
fn vms_disks_and_runners_of_others_are_never_touched() {
    let world = World::new();
    let elsewhere = world.standin.folder().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    let storage = world.standin.storage();
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
    foreign.iter().for_each(|vm| world.standin.add_vm(vm.clone()));
    fs::write(storage.join("notes.txt"), "mine").unwrap();
    let of_others = || -> BTreeSet<String> {
        let theirs = |vm: &Vm| foreign.iter().any(|other| other.disks == vm.disks);
        world.standin.vms().iter().filter(|vm| theirs(vm)).map(|vm| format!("{vm:?}")).collect()
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
    let serving = |pool: &Process| wait("two VMs are ready", || pool.health().unwrap().1["ready"] == 2);
    serving(&pool);
    let mut pool = pool;
    pool.kill();
    let pool = world.start(&[]);
    serving(&pool);
    let ours: Vec<String> = world
        .standin
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
    assert_eq!(world.standin.vms().len(), 4);
    assert!(foreign.iter().all(|vm| vm.disks[0].exists()));
    assert_eq!(world.standin.disks(), ["builder.vhdx", "notes.txt", "pool.lock"]);
    let left: Vec<u64> = world.github.runners().into_iter().map(|runner| runner.id).collect();
    assert_eq!(left, runners);
}

#[test]
fn two_pools_on_one_host_leave_each_other_alone() {
    let world = World::new();
    let second_storage = world.standin.folder().join("second storage");
    let (second_port, second_storage) =
        (free_port().to_string(), second_storage.to_str().unwrap().to_owned());
    let second =
        [("VM_STORAGE_PATH", &*second_storage), ("PORT", &*second_port), ("RUNNER_NAME_PREFIX", "other-")];
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    let before = (world.incarnation("runner-1"), world.incarnation("runner-2"));
    let mut other = world.spawn(&second);
    wait("its VMs boot", || world.standin.vms().len() == 4);
    other.interrupt();
    assert_eq!(other.wait(), 0, "{}", other.log());
    wait("its VMs are gone", || world.standin.vms().len() == 2);
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!((world.incarnation("runner-1"), world.incarnation("runner-2")), before);
    pool.stop();
}

// --- faults ---

#[test]
fn a_step_that_fails_or_crashes_is_made_up_for_by_the_next_try() {
    let fail = |leave| FaultKind::Fail { error: "the host says no".into(), leave };
    let kinds = [fail(false), fail(true), FaultKind::Crash];
    let steps = CREATE_STEPS
        .iter()
        .map(|step| ("create-vm", *step))
        .chain(DESTROY_STEPS.iter().map(|step| ("destroy-vm", *step)));
    let cases: Vec<_> =
        steps.flat_map(|(script, step)| kinds.iter().map(move |kind| (script, step, kind.clone()))).collect();
    each(&cases, |(script, step, kind)| {
        let world = World::new();
        world.standin.add_fault(script, None, Some(step), Some(1), kind.clone());
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        world.start_job(&pool, "runner-1", 7, News::Callback);
        pool.wait_for_state("runner-1", "running");
        let first = world.incarnation("runner-1");
        world.end_job(&pool, "runner-1", 7, News::Callback);
        wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
        world.wait_until_whole(&pool, 2, 0);
        let log = pool.log();
        let said = if *kind == FaultKind::Crash { "it ended without an answer" } else { "the host says no" };
        assert!(log.contains(script) && log.contains(said), "{script} at {step}: {log}");
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn a_powershell_that_is_slow_or_talks_too_much_is_no_failure() {
    let kinds = [
        FaultKind::Slow(700),
        FaultKind::Noise("WARNING: Something { was \"odd\"\r\n".into()),
        FaultKind::Stderr("a warning nobody asked for".into()),
    ];
    each(&kinds, |kind| {
        let world = World::new();
        for script in ["create-vm", "destroy-vm", "list-vms", "check-host"] {
            world.standin.set_fault(script, kind.clone());
        }
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        world.start_job(&pool, "runner-1", 7, News::Silence);
        pool.wait_for_state("runner-1", "running");
        world.end_job(&pool, "runner-1", 7, News::Silence);
        world.wait_until_whole(&pool, 2, 0);
        assert!(!pool.log().contains(" WARN "), "{}", pool.log());
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn a_powershell_that_answers_no_json_is_reported_and_tried_again() {
    each(&["create-vm", "destroy-vm", "list-vms"], |&script| {
        let world = World::new();
        world.standin.add_fault(script, None, None, Some(1), FaultKind::NoJson("What is this?".into()));
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2, 0);
        world.standin.power_off("runner-1");
        wait("the fault has struck", || pool.log().contains("What is this?"));
        world.wait_until_whole(&pool, 2, 0);
        assert!(pool.log().contains(&format!("{script} failed")), "{}", pool.log());
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn one_slots_hanging_powershell_holds_up_nothing_else() {
    let world = World::new();
    world.standin.add_fault("create-vm", Some("runner-2"), None, Some(1), FaultKind::Hang);
    let mut pool = world.start(&[]);
    wait("runner-2 hangs", || pool.state("runner-2") == "creating");
    pool.wait_for_state("runner-1", "ready");
    let first = world.incarnation("runner-1");
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    world.end_job(&pool, "runner-1", 7, News::Webhook);
    wait("runner-1 is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    pool.wait_for_state("runner-1", "ready");
    assert_eq!(pool.state("runner-2"), "creating");
    // Whoever does not want to wait for the deadline can stop at once.
    pool.interrupt();
    wait("runner-1 is removed", || world.vms().is_empty());
    pool.interrupt();
    assert_eq!(pool.wait(), 1);
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_host_that_fails_every_creation_degrades_health_with_the_reason_and_recovers() {
    let world = World::new();
    let error = "the disk is full".to_owned();
    world.standin.set_fault_at("create-vm", "disk", FaultKind::Fail { error, leave: false });
    let pool = world.start(&[]);
    wait("health is degraded", || pool.health().is_some_and(|(code, _)| code == 503));
    let health = pool.health().unwrap().1;
    assert_eq!(health["status"], "degraded");
    let reason = health["reason"].as_str().unwrap();
    assert!(reason.contains("the disk is full") && reason.contains("disk"), "{reason}");
    world.standin.clear_faults();
    world.wait_until_whole(&pool, 2, 0);
    assert_eq!(pool.health().unwrap().1["status"], "healthy");
    pool.stop();
    world.assert_empty();
}

#[test]
fn what_is_missing_on_the_host_is_named_until_it_is_there() {
    type Change = fn(&World);
    let cases: [(Change, Change, &str); 3] = [
        (
            |world| fs::remove_file(world.standin.template()).unwrap(),
            |world| host::make_disk(&world.standin.template(), None),
            "runner-template.vhdx",
        ),
        (
            |world| fs::rename(world.standin.storage(), world.standin.folder().join("aside")).unwrap(),
            |world| fs::rename(world.standin.folder().join("aside"), world.standin.storage()).unwrap(),
            "storage",
        ),
        (
            |world| fs::rename(world.standin.program(), world.standin.folder().join("aside")).unwrap(),
            |world| fs::rename(world.standin.folder().join("aside"), world.standin.program()).unwrap(),
            "powershell",
        ),
    ];
    each(&cases, |(take, give_back, named)| {
        let world = World::new();
        let pool = world.start(&[("POOL_WARM", "0")]);
        wait("the pool knows its host", || pool.health().unwrap().1["empty"] == 2);
        take(&world);
        world.queue_job(&pool, 1);
        let reason = || pool.health().unwrap().1["reason"].as_str().unwrap_or_default().to_owned();
        wait(&format!("{named} is named"), || reason().contains(named));
        assert_eq!(pool.health().unwrap().0, 503);
        give_back(&world);
        wait("a VM is ready", || {
            let (code, health) = pool.health().unwrap();
            code == 200 && health["ready"] == 1 && health["reason"].is_null()
        });
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn a_failure_that_nothing_waits_for_any_more_does_not_degrade_health_for_ever() {
    let world = World::new();
    let error = "the disk is full".to_owned();
    // Both slots fail at the only job, and one of them gets it done in the end.
    world.standin.add_fault(
        "create-vm",
        None,
        Some("disk"),
        Some(2),
        FaultKind::Fail { error, leave: false },
    );
    let pool = world.start(&[("POOL_WARM", "0")]);
    wait("the pool knows its host", || pool.health().unwrap().1["empty"] == 2);
    world.queue_job(&pool, 7);
    wait("a VM is ready", || pool.health().unwrap().1["ready"] == 1);
    assert!(pool.log().contains("the disk is full"));
    let vm = world.vms().remove(0).name;
    world.start_job(&pool, &vm, 7, News::Webhook);
    world.end_job(&pool, &vm, 7, News::Webhook);
    wait("all is done", || pool.health().unwrap().1["empty"] == 2);
    let (code, health) = pool.health().unwrap();
    assert_eq!((code, &health["reason"]), (200, &Value::Null), "{health}");
    assert!(pool.get("/metrics").contains("hyperv_runner_pool_failing_slots 0\n"));
    pool.stop();
    world.assert_empty();
}

#[test]
fn while_vms_cannot_be_listed_nothing_is_destroyed_and_at_the_start_nothing_made() {
    let world = World::new();
    world.standin.set_fault("list-vms", FaultKind::NoJson("the service is starting".into()));
    let mut pool = world.start(&[]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("list-vms") && reason.contains("the service is starting"), "{reason}");
    assert_eq!(world.runs("create-vm"), 0);
    world.standin.clear_faults();
    world.wait_until_whole(&pool, 2, 0);

    world.standin.set_fault("list-vms", FaultKind::NoJson("the service is starting".into()));
    let listed = world.runs("list-vms");
    wait("it was asked four times", || world.runs("list-vms") >= listed + 4);
    assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0));
    assert_eq!(pool.health().unwrap().0, 200, "the VMs serve on");
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_vm_that_goes_off_before_its_guest_reports_is_replaced() {
    let world = World::new();
    world.guests_sleep(true);
    let pool = world.start(&[]);
    pool.wait_for_state("runner-1", "booting");
    let first = world.incarnation("runner-1");
    world.standin.power_off("runner-1");
    wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    assert!(pool.log().contains("went off before its guest fetched"), "{}", pool.log());
    world.guests_sleep(false);
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

// --- GitHub out of reach ---

/// The reason that health gives once it is degraded. The process is still there.
fn degraded_because(pool: &mut Process) -> String {
    wait("health is degraded", || pool.health().is_some_and(|(code, _)| code == 503));
    let health = pool.health().unwrap().1;
    assert_eq!((health["status"].as_str(), health["vms"].as_u64()), (Some("degraded"), Some(0)));
    assert_eq!(pool.ended(), None);
    health["reason"].as_str().unwrap().to_owned()
}

#[test]
fn without_github_the_pool_waits_says_why_and_begins_when_it_is_back() {
    let world = World::new();
    world.github.misbehave("/actions/", usize::MAX, Fault::Cut);
    let mut pool = world.start(&[]);
    let reason = degraded_because(&mut pool);
    let said = reason.matches("cannot list the runners").count();
    assert!(said == 1 && reason.contains("was cut"), "{reason}");
    world.github.behave();
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_github_address_where_nobody_listens_is_named() {
    let world = World::new();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut pool = world.start(&[("GITHUB_API_URL", &nobody)]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("127.0.0.1 is refused") && reason.contains("GITHUB_API_URL"), "{reason}");
    pool.stop();
}

#[test]
fn a_pat_that_github_refuses_is_named_and_the_pool_stays_up() {
    let world = World::new();
    let mut pool = world.start(&[("GITHUB_PAT", "ghp_wrongwrongwrongwrongwrongwrongwrong1")]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("401") && reason.contains("GITHUB_PAT"), "{reason}");
    assert!(!pool.log().contains("wrongwrong"));
    pool.stop();
}

// --- starts that cannot be ---

#[test]
fn a_storage_folder_that_another_pool_uses_is_refused() {
    let world = World::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2, 0);
    let port = free_port().to_string();
    let mut second = world.spawn(&[("PORT", &port)]);
    assert_eq!(second.wait(), 1);
    let said = second.log();
    assert!(said.contains("Another pool uses VM_STORAGE_PATH"), "{said}");
    assert!(said.contains(world.standin.storage().to_str().unwrap()), "{said}");
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_begun() {
    let world = World::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut pool = world.spawn(&[("PORT", &port)]);
    assert_eq!(pool.wait(), 1);
    assert!(pool.log().contains(&format!("Port {port} ")), "{}", pool.log());
    assert!(world.standin.invocations().is_empty());
}

#[test]
fn wrong_settings_are_all_named_at_once_without_their_secrets() {
    let world = World::new();
    let mut pool =
        world.spawn(&[("POOL_SIZE", "many"), ("PORT", "0"), ("GITHUB_ORG", ""), ("VM_MEMORY_MB", "1")]);
    assert_eq!(pool.wait(), 2);
    let said = pool.log();
    for name in ["POOL_SIZE", "PORT", "GITHUB_ORG", "VM_MEMORY_MB"] {
        assert!(said.lines().any(|line| line.starts_with(name)), "{name} in {said}");
    }
    assert!(!said.contains(TOKEN) && !said.contains(WEBHOOK_SECRET), "{said}");
    assert!(world.standin.invocations().is_empty());
}

// --- check ---

fn check(world: &World, settings: &[(&str, &str)]) -> (i32, Vec<String>) {
    let output = world.command(settings).arg("check").output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

#[test]
fn check_tells_what_it_found_and_changes_nothing() {
    let world = World::new();
    let (code, lines) = check(&world, &[]);
    assert_eq!(code, 0, "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("ok       ")), "{lines:#?}");
    for part in [
        "Windows Server",
        "template",
        "storage folder",
        "Default Switch",
        "firewall",
        "GitHub lists the runners of acme",
    ] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part} in {lines:#?}");
    }
    let runs: Vec<String> = world.standin.invocations().into_iter().map(|run| run.script).collect();
    assert_eq!(runs, ["check-host"]);
    world.assert_empty();
}

#[test]
fn check_names_every_fault_with_its_mend_and_fails() {
    let world = World::new();
    fs::remove_file(world.standin.template()).unwrap();
    let (code, lines) =
        check(&world, &[("VM_SWITCH", "LAN"), ("GITHUB_PAT", "ghp_wrongwrongwrongwrongwrongwrongwrong1")]);
    assert_eq!(code, 1, "{lines:#?}");
    let faults: Vec<&String> = lines.iter().filter(|line| line.starts_with("fault  ")).collect();
    assert_eq!(faults.len(), 3, "{lines:#?}");
    for parts in [["template", "VM_TEMPLATE_PATH"], ["'LAN'", "VM_SWITCH"], ["401", "GITHUB_PAT"]] {
        assert!(
            faults.iter().any(|line| parts.iter().all(|part| line.contains(part))),
            "{parts:?} in {faults:#?}"
        );
    }
    assert!(lines.iter().all(|line| !line.contains("wrongwrong")));
}

#[test]
fn check_on_a_host_without_powershell_says_so() {
    let world = World::new();
    let (code, lines) = check(&world, &[("PATH", "/nonexistent")]);
    assert_eq!(code, 1);
    assert!(lines.iter().any(|line| line.starts_with("fault    This is not Windows")), "{lines:#?}");
}

// --- secrets ---

#[test]
fn no_secret_is_in_any_output_whatever_powershell_and_github_say() {
    let world = World::new();
    // Both repeat in their errors what they were told.
    let error = "cannot use {secret}".to_owned();
    world.standin.add_fault(
        "create-vm",
        None,
        Some("key-values"),
        Some(1),
        FaultKind::Fail { error, leave: false },
    );
    world.standin.add_fault("create-vm", None, None, Some(3), FaultKind::Stderr("told {secret}".into()));
    world.standin.add_fault("create-vm", None, None, Some(1), FaultKind::NoJson("got {secret}".into()));
    world.github.misbehave(
        "generate-jitconfig",
        1,
        Fault::Answer(Reply::refusal(403, &format!("no: {TOKEN}"))),
    );

    let mut shown = String::new();
    let pool = world.start(&[("LOG_LEVEL", "trace")]);
    #[cfg(target_os = "linux")]
    shown.push_str(&fs::read_to_string(format!("/proc/{}/cmdline", pool.pid())).unwrap().replace('\0', " "));
    wait("something has failed", || pool.health().unwrap().1["reason"].is_string());
    let look = |shown: &mut String| {
        for path in ["/api/status", "/metrics"] {
            shown.push_str(&pool.get(path));
        }
        shown.push_str(&pool.request("GET", "/health", &[], "").1);
        shown.push_str(&pool.request("GET", "/", &[], "").1);
    };
    look(&mut shown);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    look(&mut shown);
    world.end_job(&pool, "runner-1", 7, News::Callback);
    world.wait_until_whole(&pool, 2, 0);
    world.standin.vms().iter().for_each(|vm| shown.push_str(&vm.notes));
    let (log, output) = (pool.log(), pool.output());
    pool.stop();

    let runs = world.standin.invocations();
    assert!(runs.iter().all(|run| run.inherited_secrets.is_empty() && run.args.len() == 7), "{runs:?}");
    shown.push_str(&format!("{runs:?}{log}{output}"));
    let vm_secrets = world.vm_secrets();
    assert!(vm_secrets.len() >= 3 && log.contains("***"), "{vm_secrets:?}");
    let secrets = [TOKEN, WEBHOOK_SECRET, "eyJqaXQ"].into_iter().chain(vm_secrets.iter().map(String::as_str));
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

// --- how much it costs ---

#[test]
fn a_vms_life_takes_two_powershell_processes() {
    let world = World::new();
    // So that the monitor asks once, at the start.
    let pool = world.start(&[("POLL_SECONDS", "3600")]);
    world.wait_until_whole(&pool, 2, 0);
    for job in 1..=3 {
        let before = world.incarnation("runner-1");
        world.start_job(&pool, "runner-1", job, News::Webhook);
        pool.wait_for_state("runner-1", "running");
        world.end_job(&pool, "runner-1", job, News::Webhook);
        wait("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != before));
        world.wait_until_whole(&pool, 2, 0);
    }
    pool.stop();
    world.assert_empty();
    let vms: BTreeSet<String> = world
        .standin
        .invocations()
        .into_iter()
        .map(|run| run.incarnation)
        .filter(|i| !i.is_empty())
        .collect();
    assert_eq!(vms.len(), 5);
    let runs = |script| world.runs(script);
    assert_eq!((runs("create-vm"), runs("destroy-vm")), (5, 5));
    assert_eq!((runs("list-vms"), runs("check-host")), (1, 1));
    assert_eq!(world.standin.invocations().len(), 12);
}

#[test]
fn a_round_of_the_monitor_takes_one_powershell_process_whatever_the_pools_size() {
    each(&[1, 12], |&size: &usize| {
        let world = World::new();
        let pool = world.start(&[("POOL_SIZE", &size.to_string())]);
        world.wait_until_whole(&pool, size, 0);
        // One listing of all runners belongs to each round, after the one of all VMs.
        let rounds = || world.github.count("GET /orgs/acme/actions/runners?");
        let (rounds_before, runs_before) = (rounds(), world.standin.invocations().len());
        wait("four rounds", || rounds() >= rounds_before + 4);
        let (rounds, runs) = (rounds() - rounds_before, world.standin.invocations().len() - runs_before);
        assert!(runs.abs_diff(rounds) <= 1, "{runs} processes in {rounds} rounds of {size} VMs");
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn the_status_names_every_slot_of_the_pool() {
    let world = World::new();
    let pool = world.start(&[("POOL_SIZE", "3"), ("POOL_WARM", "2")]);
    wait("two VMs are ready", || pool.health().unwrap().1["ready"] == 2);
    let status = pool.status();
    let states: Vec<&str> =
        status["slots"].as_array().unwrap().iter().map(|slot| slot["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ready", "ready", "empty"]);
    assert_eq!(status["slots"][0]["incarnation"].as_str(), world.incarnation("runner-1").as_deref());
    assert_eq!(status["slots"][2]["vm"], Value::Null);
    pool.stop();
    world.assert_empty();
}

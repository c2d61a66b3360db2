//! The pool is killed at any moment, and whole again after the next start.

use super::{CREATE_STEPS, DESTROY_STEPS, each, is_being_created};
use crate::support::fake_github::Fault;
use crate::support::fake_host::host::FaultKind;
use crate::support::host_pool::{HostWorld, News};
use crate::support::process::Process;
use crate::support::wait_until;
use std::time::Duration;

/// Longer than any test: whoever is this slow is killed first.
const FOR_EVER: FaultKind = FaultKind::Slow(100_000);

/// Starts a pool, kills it where `until` has led it, starts it again with all
/// faults gone, and sees that it becomes whole and that `then` holds.
fn killed_and_whole_again(
    settings: &[(&str, &str)],
    prepare: impl FnOnce(&HostWorld),
    until: impl FnOnce(&HostWorld, &Process),
    then: impl FnOnce(&HostWorld, &Process),
) {
    let world = HostWorld::new();
    prepare(&world);
    let mut pool = world.start(settings);
    until(&world, &pool);
    pool.kill();
    world.host.clear_faults();
    world.github.behave();
    world.guests_sleep(false);
    // Long enough for whatever does not wait until the old VM is gone to be seen.
    world.host.set_fault("destroy-vm", FaultKind::Slow(300));
    let pool = world.start(settings);
    world.wait_until_whole(&pool, 2);
    then(&world, &pool);
    pool.stop();
}

#[test]
fn killed_at_any_step_of_creating_a_vm_the_next_start_is_whole() {
    each(&CREATE_STEPS, |&step| {
        killed_and_whole_again(
            &[],
            |world| world.host.add_fault("create-vm", Some("runner-2"), Some(step), None, FOR_EVER),
            |world, pool| {
                wait_until(&format!("runner-2 is at {step} while runner-1 is ready"), || {
                    // Its runner is online once its guest has the pool's answer: one that missed it gets no
                    // other from the next start, and powers off.
                    pool.state("runner-1") == "ready"
                        && world.github.runners().iter().any(|runner| runner.online)
                        && is_being_created(world, "runner-2", step)
                });
            },
            |world, pool| {
                // What the kill cut off was cleared away; what was whole was kept.
                assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
                assert!(pool.log().contains(": adopted"), "{}", pool.log());
            },
        );
    });
}

#[test]
fn killed_while_github_registers_a_runner_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.github.misbehave("generate-jitconfig", 2, Fault::Slow(Duration::from_secs(1))),
        |world, _| wait_until("GitHub was asked", || world.github.count("generate-jitconfig") == 2),
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
        |world, pool| world.wait_until_whole(pool, 2),
        |world, _| assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0)),
    );
}

#[test]
fn killed_with_runners_that_register_themselves_the_next_start_knows_them_by_name() {
    let token = [("RUNNER_REGISTRATION", "token")];
    killed_and_whole_again(
        &token,
        |world| world.host.add_fault("create-vm", Some("runner-2"), Some("start"), None, FOR_EVER),
        |world, pool| {
            wait_until("runner-1 is ready and runner-2 is not", || {
                pool.state("runner-1") == "ready"
                    && world.github.runners().iter().any(|runner| runner.online)
                    && is_being_created(world, "runner-2", "start")
            });
        },
        |world, pool| {
            assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
            assert!(pool.log().contains(": adopted"), "{}", pool.log());
        },
    );
}

#[test]
fn killed_again_and_again_at_any_moment_the_last_start_is_whole_and_the_job_still_runs() {
    each(&[1_u64, 2], |&seed| {
        let world = HostWorld::new();
        let size = [("POOL_SIZE", "4")];
        let mut pool = world.start(&size);
        world.wait_until_whole(&pool, 4);
        world.start_job(&pool, "runner-3", 7, News::Callback);
        pool.wait_for_state("runner-3", "running");
        let at_work = world.incarnation("runner-3");
        // Slow enough that most kills come in the middle of something.
        for script in ["create-vm", "destroy-vm", "list-vms"] {
            world.host.set_fault(script, FaultKind::Slow(60));
        }
        for step in ["notes", "key-values"] {
            world.host.set_fault_at("create-vm", step, FaultKind::Slow(60));
        }
        for step in ["remove", "disk"] {
            world.host.set_fault_at("destroy-vm", step, FaultKind::Slow(60));
        }
        let mut random = seed;
        for _ in 0..8 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let idle = ["runner-1", "runner-2", "runner-4"][(random >> 60) as usize % 3];
            world.host.power_off(idle);
            std::thread::sleep(Duration::from_millis((random >> 33) % 1200));
            pool.kill();
            pool = world.start(&size);
        }
        world.host.clear_faults();
        world.wait_until_whole(&pool, 4);
        pool.wait_for_state("runner-3", "running");
        assert_eq!(world.incarnation("runner-3"), at_work);
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
                world.wait_until_whole(pool, 2);
                world.start_job(pool, "runner-1", 7, News::Callback);
                pool.wait_for_state("runner-1", "running");
            },
            |world, pool| {
                assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0));
                let running = world.incarnation("runner-1");
                pool.wait_for_state("runner-1", "running");
                world.end_job(pool, "runner-1", 7, news);
                wait_until("the VM is replaced", || {
                    world.incarnation("runner-1").is_some_and(|i| Some(i) != running)
                });
                world.wait_until_whole(pool, 2);
            },
        );
    });
}

#[test]
fn a_job_that_ends_while_no_pool_runs_leaves_no_vm_behind() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    let ran = world.incarnation("runner-1");
    pool.kill();
    world.end_job(&pool, "runner-1", 7, News::Silence);
    let pool = world.start(&[]);
    wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != ran));
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn killed_at_any_step_of_destroying_a_vm_the_next_start_is_whole() {
    each(&DESTROY_STEPS, |&step| {
        killed_and_whole_again(
            &[],
            |world| world.host.add_fault("destroy-vm", None, Some(step), None, FOR_EVER),
            |world, pool| {
                world.wait_until_whole(pool, 2);
                let before = world.incarnation("runner-2").unwrap();
                world.start_job(pool, "runner-2", 7, News::Callback);
                pool.wait_for_state("runner-2", "running");
                world.end_job(pool, "runner-2", 7, News::Callback);
                wait_until(&format!("runner-2 is at {step}"), || {
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
                assert!(pool.log().contains(": adopted"), "{}", pool.log());
                assert_eq!(world.runs("create-vm"), 3, "{}", pool.log());
            },
        );
    });
}

#[test]
fn killed_between_destroying_a_vm_and_removing_its_runner_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        // Longer than the pool waits for an answer.
        |world| world.github.misbehave("DELETE", 1000, Fault::Slow(Duration::from_secs(100))),
        |world, pool| {
            world.wait_until_whole(pool, 2);
            world.host.power_off("runner-2");
            wait_until("the VM is gone and its runner is not", || {
                world.vms().len() == 1 && world.github.runners().len() == 2
            });
        },
        |_, _| {},
    );
}

#[test]
fn killed_while_it_stops_the_next_start_is_whole() {
    killed_and_whole_again(
        &[],
        |world| world.host.add_fault("destroy-vm", Some("runner-2"), Some("disk"), None, FOR_EVER),
        |world, pool| {
            world.wait_until_whole(pool, 2);
            pool.interrupt();
            wait_until("one VM is gone, of the other the disk is left", || {
                world.vms().is_empty() && world.disks().len() == 1
            });
        },
        |_, _| {},
    );
}

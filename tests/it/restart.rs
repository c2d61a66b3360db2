//! A restarted pool finds out what is there, takes over what is of use, and
//! clears away the rest.
use crate::support::mock_pool::{MockWorld, Phase, Stop, TAG, settings};
use crate::support::wait_until;
use hyperv_runner_pool::config::PoolConfig;
use std::time::Duration;

#[test]
fn a_vm_with_a_job_is_adopted_and_its_guest_is_still_known() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.slot_in(Phase::Running).instance.unwrap();
    pool.stop(Stop::Keep);

    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Running, 1);
    let adopted = pool.slot_in(Phase::Running);
    assert_eq!(adopted.instance, Some(vm.clone()));
    let guest = pool.guest(adopted.number);
    // It has had its configuration, so it gets none again, but it may report.
    assert_eq!(guest.fetch_config().status, 409);
    assert_eq!(guest.report_complete().status, 200);
    wait_until("the VM is replaced", || !world.vms().contains(&vm.vm));
    pool.stop(Stop::Keep);
}

#[test]
fn after_the_hosts_shutdown_only_the_lost_jobs_runner_is_registered_and_the_next_start_clears_the_vms() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let with_job = pool.slot_in(Phase::Running).instance.unwrap();
    let vms = world.vms();
    pool.stop(Stop::HostShutdown);
    assert_eq!(world.vms(), vms, "Hyper-V turns them off by itself");
    let registered: Vec<String> = world.runners().into_iter().map(|runner| runner.name).collect();
    assert_eq!(registered, [with_job.runner_name]);

    vms.iter().for_each(|vm| world.power_off(&vm.name));
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    assert!(!world.vms().iter().any(|vm| vms.contains(vm)));
    pool.stop(Stop::Keep);
}

#[test]
fn a_first_list_that_leaves_vms_out_costs_no_running_job() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.slot(1).instance;
    pool.stop(Stop::Keep);

    world.leave_vms_out_of_lists(1);
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 1);
    assert_eq!(pool.slot(1).instance, vm);
    pool.stop(Stop::Keep);
}

#[test]
fn jobs_past_a_shrunk_pools_size_end_in_peace_and_are_not_replaced() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    (1..=3).for_each(|job| drop(pool.queue_job(job)));
    pool.wait_for(Phase::Running, 3);
    pool.stop(Stop::Keep);

    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 3);
    for slot in pool.slots() {
        world.power_off(&slot.instance.unwrap().vm.name);
    }
    pool.wait_for(Phase::Ready, 1);
    wait_until("one VM is left", || world.vms().len() == 1);
    pool.stop(Stop::Keep);
}

#[test]
fn a_registration_that_an_earlier_start_left_is_removed_once_it_was_offline_for_boot_timeout() {
    let world = MockWorld::new();
    let left = world.register(&format!("runner-1-{TAG}00ff00ff"));
    let of_another_pool = world.register("runner-1-7a9e000200ff00ff");
    let somebodys = world.register("runner-1");
    let pool = world.start(PoolConfig { boot_timeout: Duration::from_secs(1), ..settings(1, 0) });
    let has = |id| world.runners().iter().any(|runner| runner.id == id);
    wait_until("it is removed", || !has(left));
    assert!(has(of_another_pool) && has(somebodys));
    pool.stop(Stop::Keep);
}

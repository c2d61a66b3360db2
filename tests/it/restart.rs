//! A restarted pool finds out what is there, takes over what is of use, and
//! clears away the rest.
use crate::support::fake_guest::FakeGuest;
use crate::support::mock_pool::{MockWorld, Phase, Stop, settings};
use crate::support::wait_until;

#[test]
fn a_vm_with_a_job_is_adopted_and_its_guest_is_still_known() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.slot_in(Phase::Running).made.unwrap();
    pool.stop(Stop::Drain);

    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Running, 1);
    let adopted = pool.slot_in(Phase::Running);
    assert_eq!(adopted.made, Some(vm.clone()));
    let guest = FakeGuest::new(&pool.url, &vm.vm.name, &pool.vm_secret(adopted.number));
    // It has had its configuration, so it gets none again, but it may report.
    assert_eq!(guest.fetch_config().status, 409);
    assert_eq!(guest.report_complete().status, 200);
    wait_until("the VM is replaced", || !world.vms().contains(&vm.vm));
    pool.stop(Stop::Drain);
}

#[test]
fn a_first_list_that_leaves_vms_out_costs_no_running_job() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.slot(1).made;
    pool.stop(Stop::Drain);

    world.leave_vms_out_of_lists(1);
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 1);
    assert_eq!(pool.slot(1).made, vm);
    pool.stop(Stop::Drain);
}

#[test]
fn jobs_past_a_shrunk_pools_size_end_in_peace_and_are_not_replaced() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    (1..=3).for_each(|job| drop(pool.queue_job(job)));
    pool.wait_for(Phase::Running, 3);
    pool.stop(Stop::Drain);

    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 3);
    for slot in pool.slots() {
        world.power_off(&slot.made.unwrap().vm.name);
    }
    pool.wait_for(Phase::Ready, 1);
    wait_until("one VM is left", || world.vms().len() == 1);
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_whose_runner_github_does_not_know_is_destroyed_with_its_disk() {
    let world = MockWorld::new();
    let runner = world.register("runner-1");
    world.remove_runner(runner);
    let id = world.create_vm("runner-1", runner);
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    let left = world.vms();
    assert!(left.len() == 1 && left[0] != id, "{left:?}");
    pool.stop(Stop::Drain);
}

#[test]
fn a_stale_registration_of_a_slots_name_is_removed() {
    let world = MockWorld::new();
    let stale = world.register("runner-1");
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    assert!(world.runners().iter().all(|runner| runner.id != stale));
    wait_until("the slot's own runner is online", || world.runner("runner-1").is_some_and(|r| r.online));
    pool.stop(Stop::Drain);
}

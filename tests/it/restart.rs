//! A restarted pool finds out what is there, takes over what is of use, and
//! clears away the rest.
use crate::support::mock_pool::{settings, world, world_with_jobs_of};
use crate::support::wait_until;
use hyperv_runner_pool::github::{GitHub, Removal};
use hyperv_runner_pool::hypervisor::{Hypervisor, Notes, VmId, VmSpec};
use hyperv_runner_pool::pool::slot::{Phase, Stop};
use hyperv_runner_pool::secret::Secret;
use hyperv_runner_pool::sim::hypervisor::Faults;
use std::time::Duration;

#[test]
fn a_vm_with_a_job_is_adopted_and_its_guest_is_still_known() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.snapshot().slots.into_iter().find(|s| s.phase == Phase::Running).unwrap().made.unwrap();
    pool.stop(Stop::Drain);

    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Running, 1);
    let adopted = pool.snapshot().slots.into_iter().find(|s| s.phase == Phase::Running).unwrap();
    assert_eq!(adopted.made, Some(vm.clone()));
    let secret = format!("Bearer {}", pool.vm_secret(adopted.number));
    let headers = [("Authorization", &*secret)];
    // It has had its configuration, so it gets none again, but it may report.
    assert_eq!(pool.get(&format!("/api/runner-config/{}", vm.vm.name), &headers).status, 409);
    assert_eq!(pool.post(&format!("/api/runner-complete/{}", vm.vm.name), &headers, b"{}").status, 200);
    wait_until("the VM is replaced", || {
        world.hypervisor.list(&[]).unwrap().vms.iter().all(|v| v.id != vm.vm)
    });
    pool.stop(Stop::Drain);
}

#[test]
fn a_first_list_that_leaves_vms_out_costs_no_running_job() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    let vm = pool.slot(1).made;
    pool.stop(Stop::Drain);

    world.hypervisor.set_faults(Faults { lists_without_vms: 1, ..Faults::default() });
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 1);
    assert_eq!(pool.slot(1).made, vm);
    pool.stop(Stop::Drain);
}

#[test]
fn jobs_past_a_shrunk_pools_size_end_in_peace_and_are_not_replaced() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    (1..=3).for_each(|job| drop(pool.queue_job(job)));
    pool.wait_for(Phase::Running, 3);
    pool.stop(Stop::Drain);

    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Running, 3);
    for view in pool.snapshot().slots {
        let name = view.made.unwrap().vm.name;
        world.hypervisor.power_off(&name);
    }
    pool.wait_for(Phase::Ready, 1);
    wait_until("one VM is left", || world.hypervisor.list(&[]).unwrap().vms.len() == 1);
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_whose_runner_github_does_not_know_is_destroyed_with_its_disk() {
    let world = world();
    let id = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
    let registration = world.github.register("runner-1").unwrap();
    assert_eq!(
        world.github.remove(world.github.scope(), registration.runner_id.unwrap()),
        Ok(Removal::Removed)
    );
    let notes = Notes {
        pool: "test".into(),
        slot: 1,
        incarnation: id.incarnation.clone(),
        scope: world.github.scope().clone(),
        runner_name: "runner-1".into(),
        runner_id: registration.runner_id,
        fingerprint: None,
        created: 0,
        job_started: None,
    };
    world.hypervisor.create(&VmSpec { id: id.clone(), notes, secret: Secret::new("wrong") }).unwrap();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    let left = world.hypervisor.list(&[]).unwrap();
    assert!(left.vms.len() == 1 && left.vms[0].id != id, "{left:?}");
    pool.stop(Stop::Drain);
}

#[test]
fn a_stale_registration_of_a_slots_name_is_removed() {
    let world = world();
    let stale = world.github.register("runner-1").unwrap().runner_id.unwrap();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(world.github.runner_by_id(world.github.scope(), stale), Ok(None));
    wait_until("the slot's own runner is online", || {
        world.github.runner_by_name(world.github.scope(), "runner-1").unwrap().is_some_and(|r| r.online)
    });
    pool.stop(Stop::Drain);
}

//! A VM's life: made, ready, one job, gone, replaced.
use crate::support::delivery::workflow_job;
use crate::support::http::Connection;
use crate::support::mock_pool::{MockWorld, Phase, Stop, settings};
use crate::support::{random, wait_until};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn the_pool_comes_up_with_a_ready_vm_in_every_slot() {
    let world = MockWorld::new();
    let pool = world.start(settings(4, 4));
    pool.wait_for(Phase::Ready, 4);
    assert_eq!(world.vms().len(), 4);
    let health = pool.get("/health");
    assert_eq!(health.status, 200);
    assert!(
        health.body.starts_with(r#"{"status":"healthy","vms":4,"ready":4,"running":0"#),
        "{}",
        health.body
    );
    pool.stop(Stop::Drain);
}

#[test]
fn a_queued_job_is_run_by_one_vm_which_is_then_replaced() {
    let world = MockWorld::new();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let before: Vec<_> = [1, 2].map(|n| pool.incarnation(n)).to_vec();
    assert_eq!(pool.queue_job(7).status, 200);
    wait_until("the job has ended", || pool.jobs_completed() == 1);
    pool.wait_for(Phase::Ready, 2);
    let replaced = [1, 2].iter().filter(|&&n| !before.contains(&pool.incarnation(n))).count();
    assert_eq!(replaced, 1);
    assert_eq!(world.vms().len(), 2);
    pool.stop(Stop::Drain);
}

#[test]
fn a_slot_past_pool_warm_is_filled_by_a_queued_job_and_not_refilled_without_one() {
    let world = MockWorld::new();
    let pool = world.start(settings(2, 0));
    wait_until("the pool knows what is there", || pool.count(Phase::Empty) == 2);
    pool.queue_job(1);
    wait_until("the job has ended", || pool.jobs_completed() == 1);
    wait_until("no VM is left", || world.vms().is_empty());
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_that_powers_off_or_disappears_is_replaced() {
    let world = MockWorld::new();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let before = [pool.incarnation(1), pool.incarnation(2)];
    world.power_off("runner-1");
    world.lose("runner-2");
    wait_until("both are replaced", || {
        [1, 2].iter().all(|&n| pool.phase(n) == Phase::Ready && !before.contains(&pool.incarnation(n)))
    });
    pool.stop(Stop::Drain);
}

#[test]
fn one_slots_failure_is_retried_and_touches_no_other() {
    let world = MockWorld::new();
    world.fail_creates(1);
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 1);
    let failing = pool.slots().into_iter().find(|s| s.phase != Phase::Ready).unwrap();
    assert!(failing.reason.unwrap().contains("a simulated fault"));
    pool.wait_for(Phase::Ready, 2);
    assert_eq!(pool.reason(), None);
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_is_destroyed_before_its_slot_makes_another_however_often_that_fails() {
    let world = MockWorld::new();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    world.fail_destroys(1);
    world.power_off("runner-1");
    wait_until("destroying fails", || pool.phase(1) == Phase::Destroying && pool.slot(1).reason.is_some());
    assert_eq!(world.vms().len(), 1);
    pool.wait_for(Phase::Ready, 1);
    pool.stop(Stop::Drain);
}

#[test]
fn a_stop_removes_idle_vms_with_their_registrations_and_leaves_jobs_running_and_a_forced_one_does_not() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    pool.stop(Stop::Drain);
    assert_eq!(world.vms().len(), 1);
    let runners = world.runners();
    assert!(runners.len() == 1 && runners[0].busy, "{runners:?}");

    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Running, 1);
    pool.stop(Stop::Destroy);
    assert!(world.vms().is_empty());
}

#[test]
fn a_pool_of_64_slots_serves_200_jobs_once_each_under_random_webhooks_and_callbacks() {
    let world = MockWorld::new();
    let pool = world.start(settings(64, 64));
    for job in 1..=200u64 {
        pool.queue_job(job);
        // Deliveries about runners of whatever id, as another pool in the organization causes them.
        let other = (job + 5_000_000, &*format!("runner-{}", job % 64 + 1));
        let foreign = workflow_job("completed", job + 100_000, Some(other));
        pool.deliver(&format!("foreign-{job}"), &foreign);
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Guests that ask twice, and what is left of earlier ones that still talk.
        for thread in 0..4u64 {
            let (pool, over) = (&pool, &over);
            scope.spawn(move || {
                let mut connection = Connection::open(&pool.url);
                let mut seed = thread + 1;
                while !over.load(Ordering::Relaxed) {
                    let number = random(&mut seed);
                    let slot = pool.slot(number as u32 % 64 + 1);
                    let Some(vm) = slot.made.map(|made| made.vm) else { continue };
                    let present = number >> 40 & 1 == 1;
                    let incarnation = if present { &*vm.incarnation } else { "00ff00ff00ff00ff" };
                    let secret = format!("Bearer {}", pool.keys.vm_secret(&vm.name, incarnation).expose());
                    let headers = [("Authorization", &*secret)];
                    if present {
                        let path = format!("/api/runner-config/{}", vm.name);
                        let status = connection.request("GET", &path, &headers, b"").status;
                        assert!([200, 401, 404, 409].contains(&status), "{status}");
                    } else {
                        let path = format!("/api/runner-complete/{}", vm.name);
                        let status = connection.request("POST", &path, &headers, b"{}").status;
                        assert!([401, 404].contains(&status), "{status}");
                    }
                }
            });
        }
        // So that the threads end when it fails, too.
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| {
            wait_until("200 jobs have run", || pool.jobs_completed() >= 200);
        }));
        over.store(true, Ordering::Relaxed);
        served.unwrap_or_else(|failure| resume_unwind(failure));
    });
    pool.wait_for(Phase::Ready, 64);
    assert_eq!(pool.jobs_completed(), 200);
    assert_eq!(world.vms().len(), 64);
    pool.stop(Stop::Drain);
}

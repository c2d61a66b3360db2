//! A VM's life: made, ready, one job, gone, replaced.
use crate::support::delivery::workflow_job;
use crate::support::fake_guest::FakeGuest;
use crate::support::http::Connection;
use crate::support::mock_pool::{MockWorld, Phase, Stop, settings};
use crate::support::{random, wait_until};
use hyperv_runner_pool::config::PoolConfig;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    pool.stop(Stop::Keep);
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
    pool.stop(Stop::Keep);
}

#[test]
fn a_queued_job_is_filled_by_shortage_alone_so_that_jobs_in_turn_take_no_more_vms_than_idle_ones_replace() {
    let world = MockWorld::new();
    let pool = world.start(settings(6, 1));
    pool.wait_for(Phase::Ready, 1);
    let mut most = 0;
    for job in 1..=12 {
        pool.queue_job(job);
        wait_until("the job has ended and a VM is idle", || {
            most = most.max(world.vms().len());
            pool.jobs_completed() == job && pool.count(Phase::Ready) == 1 && world.vms().len() == 1
        });
    }
    assert!(most <= 2, "{most} VMs at one time");
    pool.stop(Stop::Keep);
}

#[test]
fn vms_that_canceled_jobs_called_for_retire_after_surplus_minutes() {
    let world = MockWorld::without_jobs();
    let pool = world.start(PoolConfig { surplus_after: Duration::from_millis(5), ..settings(4, 0) });
    pool.wait_for(Phase::Empty, 4);
    for job in 1..=4 {
        pool.queue_job(job);
    }
    wait_until("VMs are made", || pool.count(Phase::Ready) > 0);
    for job in 1..=4 {
        pool.deliver(&format!("canceled-{job}"), &workflow_job("completed", job, None));
    }
    wait_until("no VM is left", || world.vms().is_empty() && pool.count(Phase::Empty) == 4);
    assert_eq!((pool.jobs_waiting(), pool.jobs_completed()), (0, 0));
    assert!(world.runners().is_empty(), "{:?}", world.runners());
    pool.stop(Stop::Keep);
}

#[test]
fn a_vm_that_powers_off_is_replaced() {
    let world = MockWorld::new();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let before = [pool.incarnation(1), pool.incarnation(2)];
    world.power_off("runner-1");
    wait_until("it is replaced", || pool.phase(1) == Phase::Ready && pool.incarnation(1) != before[0]);
    assert_eq!(pool.incarnation(2), before[1]);
    pool.stop(Stop::Keep);
}

#[test]
fn a_new_template_replaces_idle_vms_one_at_a_time() {
    let world = MockWorld::new();
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    let old = world.vms();
    world.replace_template();
    wait_until("every VM is replaced", || {
        let slots = pool.slots();
        let serving =
            slots.iter().filter(|slot| slot.phase == Phase::Ready && slot.retiring.is_none()).count();
        assert!(serving >= 2, "{slots:?}");
        serving == 3 && !world.vms().iter().any(|vm| old.contains(vm))
    });
    assert_eq!(world.runners().len(), 3);
    pool.stop(Stop::Keep);
}

#[test]
fn on_a_full_host_no_vm_is_made_and_the_pool_goes_on_by_itself_when_there_is_room() {
    let world = MockWorld::new();
    let settings = settings(1, 1);
    world.set_free_bytes(settings.min_free_bytes - 1);
    let pool = world.start(settings);
    wait_until("health is degraded", || pool.get("/health").status == 503);
    let health = pool.get("/health").json();
    assert_eq!(health["status"], "degraded");
    assert!(health["reasons"].to_string().contains("too little free disk space"), "{health}");
    assert!(world.vms().is_empty() && world.runners().is_empty());
    world.set_free_bytes(1 << 40);
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(pool.get("/health").status, 200);
    // A VM that is there stays, and a job on it is not disturbed.
    world.set_free_bytes(0);
    wait_until("the host is full", || pool.get("/api/status").json()["free_bytes"] == 0);
    assert_eq!((pool.phase(1), pool.get("/health").status), (Phase::Ready, 200));
    pool.queue_job(1);
    wait_until("the job has ended", || pool.jobs_completed() == 1);
    wait_until("its VM is not replaced", || world.vms().is_empty() && pool.get("/health").status == 503);
    pool.stop(Stop::Keep);
}

#[test]
fn one_slots_failure_is_retried_and_touches_no_other() {
    let world = MockWorld::new();
    world.fail_creates(1);
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let failed: Vec<String> = pool.slots().into_iter().filter_map(|slot| slot.reason).collect();
    assert!(failed.len() == 1 && failed[0].contains("a simulated fault"), "{failed:?}");
    assert_eq!(pool.get("/health").status, 200);
    pool.stop(Stop::Keep);
}

#[test]
fn a_vm_is_destroyed_before_its_slot_makes_another_however_often_that_fails() {
    let world = MockWorld::new();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    let before = world.vms();
    world.fail_destroys(u32::MAX);
    world.power_off("runner-1");
    wait_until("destroying fails", || pool.phase(1) == Phase::Destroying && pool.slot(1).reason.is_some());
    assert_eq!(world.vms(), before);
    world.fail_destroys(0);
    pool.wait_for(Phase::Ready, 1);
    pool.stop(Stop::Keep);
}

#[test]
fn a_stop_removes_idle_vms_with_their_registrations_and_leaves_jobs_running_and_a_forced_one_does_not() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    pool.stop(Stop::Keep);
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
                    let Some(vm) = slot.instance.map(|instance| instance.vm) else { continue };
                    let present = number >> 40 & 1 == 1;
                    let incarnation = if present { &*vm.incarnation } else { "00ff00ff00ff00ff" };
                    let secret = pool.keys.vm_secret(&vm.name, incarnation);
                    let guest = FakeGuest::new(&pool.url, &vm.name, secret.expose());
                    if present {
                        let path = format!("/api/runner-config/{}", vm.name);
                        let headers = [("Authorization", &*guest.bearer("GET", &path))];
                        let status = connection.request("GET", &path, &headers, b"").status;
                        // 503 while its VM is still being made.
                        assert!([200, 401, 404, 409, 503].contains(&status), "{status}");
                    } else {
                        let path = format!("/api/runner-complete/{}", vm.name);
                        let headers = [("Authorization", &*guest.bearer("POST", &path))];
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
    pool.stop(Stop::Keep);
}

//! A VM's life: made, ready, one job, gone, replaced.
use crate::support::http::Connection;
use crate::support::mock_pool::{settings, world, world_with_jobs_of};
use crate::support::wait_until;
use hyperv_runner_pool::github::GitHub;
use hyperv_runner_pool::hypervisor::Hypervisor;
use hyperv_runner_pool::pool::slot::{Phase, Stop};
use hyperv_runner_pool::sim::hypervisor::Faults;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn the_pool_comes_up_with_a_ready_vm_in_every_slot() {
    let world = world();
    let pool = world.start(settings(4, 4));
    pool.wait_for(Phase::Ready, 4);
    assert_eq!(world.hypervisor.list(&[]).unwrap().vms.len(), 4);
    let health = pool.get("/health", &[]);
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
    let world = world();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let before: Vec<_> = [1, 2].map(|n| pool.incarnation(n)).to_vec();
    assert_eq!(pool.queue_job(7).status, 200);
    wait_until("the job has ended", || {
        pool.snapshot().slots.iter().map(|s| s.jobs_completed).sum::<u64>() == 1
    });
    pool.wait_for(Phase::Ready, 2);
    let replaced = [1, 2].iter().filter(|&&n| !before.contains(&pool.incarnation(n))).count();
    assert_eq!(replaced, 1);
    assert_eq!(world.hypervisor.list(&[]).unwrap().vms.len(), 2);
    pool.stop(Stop::Drain);
}

#[test]
fn a_slot_past_pool_warm_is_filled_by_a_queued_job_and_not_refilled_without_one() {
    let world = world();
    let pool = world.start(settings(2, 0));
    wait_until("the pool knows what is there", || pool.snapshot().count(Phase::Empty) == 2);
    pool.queue_job(1);
    wait_until("the job has ended", || {
        pool.snapshot().slots.iter().map(|s| s.jobs_completed).sum::<u64>() == 1
    });
    wait_until("no VM is left", || world.hypervisor.list(&[]).unwrap().vms.is_empty());
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_that_powers_off_or_disappears_is_replaced() {
    let world = world();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let before = [pool.incarnation(1), pool.incarnation(2)];
    assert!(world.hypervisor.power_off("runner-1"));
    assert!(world.hypervisor.lose("runner-2"));
    wait_until("both are replaced", || {
        [1, 2].iter().all(|&n| pool.slot(n).phase == Phase::Ready && !before.contains(&pool.incarnation(n)))
    });
    pool.stop(Stop::Drain);
}

#[test]
fn one_slots_failure_is_retried_and_touches_no_other() {
    let world = world();
    world.hypervisor.set_faults(Faults { failing_creates: 1, ..Faults::default() });
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 1);
    let failing = pool.snapshot().slots.into_iter().find(|s| s.phase != Phase::Ready).unwrap();
    assert!(failing.reason.unwrap().contains("a simulated fault"));
    pool.wait_for(Phase::Ready, 2);
    assert_eq!(pool.snapshot().reason(), None);
    pool.stop(Stop::Drain);
}

#[test]
fn health_is_degraded_while_every_slot_fails_and_says_why() {
    let world = world();
    world.hypervisor.set_faults(Faults { failing_creates: 1000, ..Faults::default() });
    let pool = world.start(settings(1, 1));
    wait_until("health is degraded", || pool.get("/health", &[]).status == 503);
    let health = pool.get("/health", &[]).json();
    assert_eq!(health["status"], "degraded");
    assert!(health["reason"].as_str().unwrap().contains("a simulated fault"));
    pool.stop(Stop::Drain);
}

#[test]
fn a_vm_is_destroyed_before_its_slot_makes_another_however_often_that_fails() {
    let world = world();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    world.hypervisor.set_faults(Faults { failing_destroys: 1, ..Faults::default() });
    world.hypervisor.power_off("runner-1");
    wait_until("destroying fails", || {
        pool.slot(1).phase == Phase::Destroying && pool.slot(1).reason.is_some()
    });
    assert_eq!(world.hypervisor.list(&[]).unwrap().vms.len(), 1);
    pool.wait_for(Phase::Ready, 1);
    pool.stop(Stop::Drain);
}

#[test]
fn stopping_removes_idle_vms_with_their_registrations_and_leaves_jobs_running() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(3, 3));
    pool.wait_for(Phase::Ready, 3);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    pool.stop(Stop::Drain);
    assert_eq!(world.hypervisor.list(&[]).unwrap().vms.len(), 1);
    let runners = world.github.runners().unwrap();
    assert!(runners.len() == 1 && runners[0].busy, "{runners:?}");
}

#[test]
fn a_forced_stop_destroys_every_vm() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(1);
    pool.wait_for(Phase::Running, 1);
    pool.stop(Stop::Destroy);
    assert!(world.hypervisor.list(&[]).unwrap().vms.is_empty());
}

#[test]
fn a_pool_of_64_slots_serves_200_jobs_once_each_under_random_webhooks_and_callbacks() {
    let world = world();
    let pool = world.start(settings(64, 64));
    for job in 1..=200u64 {
        pool.queue_job(job);
        // Deliveries about runners of whatever id, as another pool in the organisation causes them.
        let foreign = format!(
            r#"{{"action":"completed","workflow_job":{{"id":{},"labels":[],"runner_id":{},"runner_name":"runner-{}"}}}}"#,
            job + 100_000,
            job + 5_000_000,
            job % 64 + 1
        );
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
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let view = pool.slot((seed >> 40) as u32 % 64 + 1);
                    let Some(vm) = view.made.map(|made| made.vm) else { continue };
                    let present = seed >> 63 == 1;
                    let incarnation = if present { &*vm.incarnation } else { "00ff00ff00ff00ff" };
                    let secret = format!("Bearer {}", pool.keys.vm_secret(&vm.name, incarnation).expose());
                    let headers = [("Authorization", &*secret)];
                    if present {
                        let path = format!("/api/runner-config/{}", vm.name);
                        let status = connection.request("GET", &path, &headers, b"").status;
                        assert!([200, 401, 404, 409].contains(&status), "{status}");
                    } else {
                        let path = format!("/api/runner-complete/{}", vm.name);
                        let status = connection.post(&path, &headers, b"{}").status;
                        assert!([401, 404].contains(&status), "{status}");
                    }
                }
            });
        }
        let served = || pool.snapshot().slots.iter().map(|s| s.jobs_completed).sum::<u64>() >= 200;
        let began = Instant::now();
        while !served() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(2));
        }
        over.store(true, Ordering::Relaxed);
        assert!(served(), "200 jobs have run");
    });
    pool.wait_for(Phase::Ready, 64);
    assert_eq!(pool.snapshot().slots.iter().map(|s| s.jobs_completed).sum::<u64>(), 200);
    assert_eq!(world.hypervisor.list(&[]).unwrap().vms.len(), 64);
    pool.stop(Stop::Drain);
}

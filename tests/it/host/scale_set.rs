//! A pool that learns of its jobs from a runner scale set's queue, and has no webhook.

use super::degraded_because;
use crate::support::fake_github::{Fault, Reply};
use crate::support::host_pool::HostWorld;
use crate::support::process::{Process, said};
use crate::support::wait_until;
use std::fs;

const NO_WARM: [(&str, &str); 3] = [("INTAKE", "scaleset"), ("WEBHOOK_SECRET", ""), ("POOL_WARM", "0")];

/// Waits until so many runners are idle, and names them.
#[track_caller]
fn idle_runners(world: &HostWorld, count: usize) -> Vec<String> {
    let idle = || -> Vec<String> {
        let runners = world.github.runners().into_iter().filter(|runner| runner.online && !runner.busy);
        runners.map(|runner| runner.name).collect()
    };
    wait_until(&format!("{count} runners are idle"), || idle().len() == count);
    idle()
}

/// The name of the VM of a runner.
fn vm_of(runner: &str) -> &str {
    runner.rsplit_once('-').unwrap().0
}

fn wait_for_session(world: &HostWorld) {
    wait_until("the queue is open", || world.github.session_owner("runner").is_some());
}

/// The queued job of a pool with none warm, on its runner.
fn running_job(world: &HostWorld, pool: &Process) -> (u64, String) {
    wait_for_session(world);
    let job = world.github.queue_job("runner");
    let runner = idle_runners(world, 1).remove(0);
    world.github.take_job(job, &runner, true);
    pool.wait_for_state(vm_of(&runner), "running");
    (job, runner)
}

#[test]
fn queued_jobs_get_vms_without_a_webhook_and_each_vm_serves_one() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    wait_for_session(&world);
    assert_eq!(world.vms().len(), 0);
    let jobs = [world.github.queue_job("runner"), world.github.queue_job("runner")];
    let runners = idle_runners(&world, 2);
    assert_eq!(world.github.announced_capacity().as_deref(), Some("2"));
    for (job, runner) in jobs.into_iter().zip(&runners) {
        world.github.take_job(job, runner, true);
        pool.wait_for_state(vm_of(runner), "running");
    }
    assert_eq!(pool.health()["jobs_waiting"], 0);
    let named =
        |slot: &serde_json::Value| slot["job"]["name"] == "build" && slot["job"]["repository"] == "acme/app";
    assert!(pool.status()["slots"].as_array().unwrap().iter().all(named), "{}", pool.status());

    // A third one waits until a slot is free.
    let third = world.github.queue_job("runner");
    wait_until("the pool knows of it", || pool.health()["jobs_waiting"] == 1);
    let guest = world.guest(vm_of(&runners[0]));
    world.github.end_queued_job(jobs[0], "succeeded", true);
    assert_eq!(guest.report_complete().status, 200);
    let next = idle_runners(&world, 1).remove(0);
    assert!(!runners.contains(&next), "{next} has had a job");
    world.github.take_job(third, &next, true);
    wait_until("everything is read", || world.github.unread("runner") == 0);
    assert_eq!(world.github.count("generate-jitconfig"), 0);

    let log = pool.log();
    for secret in ["queue-1", "AABF3JGZDX3P", "eyJhbGciOiJub25l", "eyJqaXQ"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    let status = pool.status();
    assert_eq!((&status["jobs_completed"], status["github_error"].as_str()), (&1.into(), None));
    pool.stop();
    assert_eq!(world.github.session_owner("runner"), None, "another start can open it at once");
}

#[test]
fn a_killed_pool_is_followed_by_one_that_adopts_its_vms_and_waits_for_the_queue() {
    let world = HostWorld::new();
    let mut pool = world.start(&NO_WARM);
    let (job, runner) = running_job(&world, &pool);
    pool.kill();

    let pool = world.start(&NO_WARM);
    pool.wait_for_state(vm_of(&runner), "running");
    wait_until("the other session is told", || {
        pool.log().contains("already has an active session for owner")
    });
    let guest = world.guest(vm_of(&runner));
    // Its proof comes from a key that the start before has made.
    world.github.end_queued_job(job, "succeeded", true);
    assert_eq!(guest.report_complete().status, 200);
    wait_until("its VM is gone", || world.vms().is_empty());
    world.github.end_session("runner");
    wait_for_session(&world);
    wait_until("what came meanwhile is read", || world.github.unread("runner") == 0);
    running_job(&world, &pool);
}

#[test]
fn a_vm_outlives_a_completed_that_comes_while_its_job_runs() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    let (job, runner) = running_job(&world, &pool);
    let incarnation = world.incarnation(vm_of(&runner));
    world.github.tell_completed(job, "succeeded");
    wait_until("it is read", || world.github.unread("runner") == 0);
    let rounds = world.runs("list-vms");
    wait_until("the monitor has looked", || world.runs("list-vms") >= rounds + 3);
    assert_eq!(world.incarnation(vm_of(&runner)), incarnation);
    assert_eq!(pool.state(vm_of(&runner)), "running");
}

#[test]
fn jobs_whose_start_and_end_no_message_tells_are_seen_by_the_monitor() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    wait_for_session(&world);
    let job = world.github.queue_job("runner");
    let runner = idle_runners(&world, 1).remove(0);
    world.github.take_job(job, &runner, false);
    pool.wait_for_state(vm_of(&runner), "running");
    let guest = world.guest(vm_of(&runner));
    world.github.end_queued_job(job, "succeeded", false);
    assert_eq!(guest.report_complete().status, 200);
    wait_until("its VM is gone", || world.runs("destroy-vm") == 1);
}

#[test]
fn the_queue_goes_on_after_every_fault_of_the_service() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    wait_for_session(&world);
    let mut jobs = 0;
    let mut serve = |what: &str| {
        let job = world.github.queue_job("runner");
        let idle = || world.github.runners().into_iter().find(|runner| runner.online && !runner.busy);
        wait_until(&format!("a runner after {what}"), || idle().is_some());
        let runner = idle().unwrap().name;
        world.github.take_job(job, &runner, true);
        let guest = world.guest(vm_of(&runner));
        world.github.end_queued_job(job, "succeeded", true);
        guest.report_complete();
        jobs += 1;
        wait_until(&format!("its VM is gone after {what}"), || world.runs("destroy-vm") >= jobs);
    };
    serve("the start");
    world.github.expire_queue_token("runner");
    serve("an expired access");
    world.github.wish(|wishes| wishes.refuses_renewal = true);
    world.github.expire_queue_token("runner");
    serve("a renewal that is refused");
    world.github.wish(|wishes| wishes.refuses_renewal = false);
    world.github.expire_admin_token();
    serve("an expired sign-in");
    world.github.end_session("runner");
    serve("a session that ended");
    for fault in [Fault::Answer(Reply::refusal(502, "Bad gateway")), Fault::Cut, Fault::HalfTheJson] {
        world.github.misbehave("GET /queue/", 1, fault);
        serve("an answer that is none");
    }
    world.github.remove_scale_set("runner");
    let made_again = || world.github.scale_sets().first().is_some_and(|set| set.name == "runner");
    wait_until("the scale set is made again", made_again);
    wait_for_session(&world);
    serve("the scale set was removed");
    wait_until("the pool is healthy", || pool.health()["status"] == "healthy");
}

#[test]
fn idle_vms_of_a_scale_set_that_was_removed_are_replaced_since_no_job_reaches_them() {
    let world = HostWorld::new();
    let settings = [NO_WARM[0], NO_WARM[1], ("POOL_WARM", "1")];
    let pool = world.start(&settings);
    wait_for_session(&world);
    let before = idle_runners(&world, 1).remove(0);
    world.github.remove_scale_set("runner");
    wait_until("its VM is replaced", || idle_runners(&world, 1).remove(0) != before);
    assert!(pool.log().contains("asked to retire"), "{}", pool.log());
}

#[test]
fn a_scale_set_of_somebody_else_degrades_health_and_stays_as_it_is() {
    let world = HostWorld::new();
    let id = world.github.add_scale_set("runner", 1, &["self-hosted", "gpu"]);
    let mut pool = world.spawn(&[("INTAKE", "scaleset"), ("WEBHOOK_SECRET", "")]);
    wait_until("the pool answers", || pool.try_get("/health").is_some());
    let why = degraded_because(&mut pool);
    assert!(why.contains("is not this pool's"), "{why}");
    let sets = world.github.scale_sets();
    assert_eq!((sets.len(), sets[0].id, sets[0].labels.len()), (1, id, 2));
    assert_eq!((world.vms().len(), world.github.runners().len()), (0, 0));
}

#[test]
fn a_drain_gives_the_queue_up_until_the_pool_is_resumed() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    wait_for_session(&world);
    assert_eq!(said(world.command(&NO_WARM).arg("drain")).code, 0);
    wait_until("the queue is closed", || world.github.session_owner("runner").is_none());
    assert_eq!(said(world.command(&NO_WARM).arg("resume")).code, 0);
    wait_for_session(&world);
    running_job(&world, &pool);
}

#[test]
fn the_key_of_the_vms_is_the_pools_alone_and_goes_with_the_pool() {
    use std::os::unix::fs::PermissionsExt;
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    let folder = world.host.storage().join("key");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let key = fs::read_to_string(folder.join("vm.key")).unwrap();
    running_job(&world, &pool);
    assert!(!pool.log().contains(&key));
    drop(pool);
    world.github.end_session("runner");
    world.github.runners().iter().for_each(|runner| world.github.forget_runner(runner.id));
    assert_eq!(said(world.command(&NO_WARM).args(["cleanup", "--yes"])).code, 0);
    assert_eq!(fs::read_dir(world.host.storage()).unwrap().count(), 0);
}

#[test]
fn cleanup_deletes_the_pools_scale_set_and_nobody_elses() {
    let world = HostWorld::new();
    let pool = world.start(&NO_WARM);
    wait_for_session(&world);
    drop(pool);
    let cleanup = || said(world.command(&NO_WARM).args(["cleanup", "--yes"]));
    let first = cleanup();
    assert_eq!(first.code, 0, "{first:?}");
    for text in ["\n  the runner scale set runner\n", "\nremoved: the runner scale set runner\n"] {
        assert!(first.out.contains(text), "{first:?}");
    }
    assert!(world.github.scale_sets().is_empty());
    let again = cleanup();
    assert_eq!((again.code, again.out.as_str()), (0, "Nothing of this pool is left.\n"), "{again:?}");

    world.github.add_scale_set("runner", 1, &["somebody-elses"]);
    let other = cleanup();
    assert!(other.out.starts_with("No runner scale set is removed: "), "{other:?}");
    assert!(other.out.contains("is not this pool's: it has labels"), "{other:?}");
    assert_eq!((other.code, world.github.scale_sets().len()), (0, 1), "{other:?}");
}

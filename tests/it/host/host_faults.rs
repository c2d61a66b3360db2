//! The host fails: what the pool says, and how it recovers.

use super::{CREATE_STEPS, DESTROY_STEPS, each, errors};
use crate::support::fake_host::host::{self, FaultKind};
use crate::support::host_pool::{HostWorld, News};
use crate::support::wait_until;
use serde_json::Value;
use std::fs;

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
        let world = HostWorld::new();
        world.host.add_fault(script, None, Some(step), Some(1), kind.clone());
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        world.start_job(&pool, "runner-1", 7, News::Callback);
        pool.wait_for_state("runner-1", "running");
        let first = world.incarnation("runner-1");
        world.end_job(&pool, "runner-1", 7, News::Callback);
        wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
        world.wait_until_whole(&pool, 2);
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
        let world = HostWorld::new();
        for script in ["create-vm", "destroy-vm", "list-vms", "check-host"] {
            world.host.set_fault(script, kind.clone());
        }
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        world.start_job(&pool, "runner-1", 7, News::Silence);
        pool.wait_for_state("runner-1", "running");
        world.end_job(&pool, "runner-1", 7, News::Silence);
        world.wait_until_whole(&pool, 2);
        assert!(!pool.log().contains(" WARN "), "{}", pool.log());
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn what_a_creation_warns_of_is_in_the_log_and_the_vm_is_taken() {
    let world = HostWorld::new();
    let answer = r#"{"ok":true,"url":"http://10.0.0.1:1","warning":"The list is\nalmost full."}"#;
    world.host.set_fault("create-vm", FaultKind::NoJson(answer.into()));
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    let log = pool.log();
    let told = log.lines().find(|line| line.contains("The list is almost full.")).unwrap_or_default();
    assert!(told.contains(" WARN ") && told.contains("runner-"), "{log}");
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_powershell_that_answers_no_json_is_reported_and_tried_again() {
    each(&["create-vm", "destroy-vm", "list-vms"], |&script| {
        let world = HostWorld::new();
        world.host.add_fault(script, None, None, Some(1), FaultKind::NoJson("What is this?".into()));
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        world.host.power_off("runner-1");
        let what = format!("{script} failed");
        wait_until("the fault has struck and is told", || {
            let told = pool.log() + &errors(&pool);
            told.contains("What is this?") && told.contains(&what)
        });
        world.wait_until_whole(&pool, 2);
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn one_slots_hanging_powershell_holds_up_nothing_else() {
    let world = HostWorld::new();
    world.host.add_fault("create-vm", Some("runner-2"), None, Some(1), FaultKind::Hang);
    let mut pool = world.start(&[]);
    wait_until("runner-2 hangs", || pool.state("runner-2") == "creating");
    pool.wait_for_state("runner-1", "ready");
    let first = world.incarnation("runner-1");
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    world.end_job(&pool, "runner-1", 7, News::Webhook);
    wait_until("runner-1 is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    pool.wait_for_state("runner-1", "ready");
    assert_eq!(pool.state("runner-2"), "creating");
    // Whoever does not want to wait for what hangs can stop at once.
    world.host.add_fault("destroy-vm", Some("runner-2"), None, None, FaultKind::Hang);
    pool.interrupt();
    wait_until("runner-1 is removed", || world.vms().is_empty());
    pool.interrupt();
    assert_eq!(pool.wait(), 1);
    world.host.clear_faults();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    pool.stop();
    assert_eq!((world.vms().len(), world.disks().len()), (0, 0));
}

#[test]
fn a_host_that_fails_every_creation_degrades_health_with_the_reason_and_recovers() {
    let world = HostWorld::new();
    let error = "the disk is full".to_owned();
    world.host.set_fault_at("create-vm", "disk", FaultKind::Fail { error, leave: false });
    let pool = world.start(&[]);
    wait_until("health is degraded", || pool.get("/health").status == 503);
    assert_eq!(pool.health()["status"], "degraded");
    let why = errors(&pool);
    assert!(why.contains("the disk is full") && why.contains("create-vm"), "{why}");
    assert!(!pool.get("/health").body.contains("the disk is full"), "anyone may read it");
    world.host.clear_faults();
    world.wait_until_whole(&pool, 2);
    assert_eq!(pool.health()["status"], "healthy");
    pool.stop();
    world.assert_empty();
}

#[test]
fn what_is_missing_on_the_host_is_named_until_it_is_there() {
    type Change = fn(&HostWorld);
    let cases: [(Change, Change, &str); 3] = [
        (
            |world| fs::remove_file(world.host.template()).unwrap(),
            |world| host::make_disk(&world.host.template(), None),
            "runner-template.vhdx",
        ),
        (
            |world| fs::rename(world.host.storage(), world.host.folder().join("aside")).unwrap(),
            |world| fs::rename(world.host.folder().join("aside"), world.host.storage()).unwrap(),
            "storage",
        ),
        (
            |world| fs::rename(world.host.program(), world.host.folder().join("aside")).unwrap(),
            |world| fs::rename(world.host.folder().join("aside"), world.host.program()).unwrap(),
            "powershell",
        ),
    ];
    each(&cases, |(take, give_back, named)| {
        let world = HostWorld::new();
        let pool = world.start(&[("POOL_WARM", "0")]);
        wait_until("the pool knows its host", || pool.health()["empty"] == 2);
        take(&world);
        world.queue_job(&pool, 1);
        wait_until(&format!("{named} is named"), || errors(&pool).contains(named));
        assert_eq!(pool.get("/health").status, 503);
        give_back(&world);
        wait_until("a VM is ready", || {
            let answer = pool.get("/health");
            let (code, health) = (answer.status, answer.json());
            code == 200 && health["ready"] == 1
        });
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn a_failure_that_nothing_waits_for_any_more_does_not_degrade_health_for_ever() {
    let world = HostWorld::new();
    let error = "the disk is full".to_owned();
    // Both slots fail at the only job, and one of them gets it done in the end.
    world.host.add_fault("create-vm", None, Some("disk"), Some(2), FaultKind::Fail { error, leave: false });
    let pool = world.start(&[("POOL_WARM", "0")]);
    wait_until("the pool knows its host", || pool.health()["empty"] == 2);
    world.queue_job(&pool, 7);
    wait_until("a VM is ready", || pool.health()["ready"] == 1);
    assert!(pool.log().contains("the disk is full"));
    let vm = world.vms().remove(0).name;
    world.start_job(&pool, &vm, 7, News::Webhook);
    world.end_job(&pool, &vm, 7, News::Webhook);
    wait_until("all is done", || pool.health()["empty"] == 2);
    let answer = pool.get("/health");
    let (code, health) = (answer.status, answer.json());
    assert_eq!((code, &health["status"]), (200, &Value::from("healthy")), "{health}");
    pool.stop();
    world.assert_empty();
}

#[test]
fn while_vms_cannot_be_listed_nothing_is_destroyed_and_at_the_start_nothing_made() {
    let world = HostWorld::new();
    world.host.set_fault("list-vms", FaultKind::NoJson("the service is starting".into()));
    let pool = world.start(&[]);
    wait_until("it was asked twice", || world.runs("list-vms") >= 2);
    let why = errors(&pool);
    assert!(why.contains("list-vms") && why.contains("the service is starting"), "{why}");
    assert_eq!((world.runs("create-vm"), pool.health()["recovering"].as_u64()), (0, Some(2)));
    world.host.clear_faults();
    world.wait_until_whole(&pool, 2);

    world.host.set_fault("list-vms", FaultKind::NoJson("the service is starting".into()));
    let listed = world.runs("list-vms");
    wait_until("it was asked four times", || world.runs("list-vms") >= listed + 4);
    assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0));
    assert_eq!(pool.get("/health").status, 200, "the VMs serve on");
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_vm_that_goes_off_before_its_guest_reports_is_replaced() {
    let world = HostWorld::new();
    world.guests_sleep(true);
    let pool = world.start(&[]);
    pool.wait_for_state("runner-1", "booting");
    let first = world.incarnation("runner-1");
    world.host.power_off("runner-1");
    wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    assert!(
        pool.log().contains("ended before its guest fetched its configuration: it powered off"),
        "{}",
        pool.log()
    );
    world.guests_sleep(false);
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

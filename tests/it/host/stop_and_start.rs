//! What a stop leaves behind, and what the next start makes of it.

use super::{each, is_being_created};
use crate::support::fake_github::{Fault, Reply};
use crate::support::fake_host::host::{self, FaultKind};
use crate::support::host_pool::{HostWorld, News};
use crate::support::process::said;
use crate::support::wait_until;

#[test]
fn ctrl_c_removes_idle_vms_and_the_next_start_adopts_the_one_with_a_job() {
    let world = HostWorld::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
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
    world.wait_until_whole(&pool, 2);
    pool.wait_for_state("runner-1", "running");
    assert_eq!((world.incarnation("runner-1"), world.runs("create-vm")), (running.clone(), made_before + 1));
    world.end_job(&pool, "runner-1", 7, News::Callback);
    wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != running));
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_job_that_github_gave_out_at_the_last_moment_outlives_the_stop() {
    let world = HostWorld::new();
    let pool = world.start(&[("POLL_SECONDS", "3600")]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Silence);
    pool.stop();
    let left: Vec<String> = world.vms().into_iter().map(|vm| vm.name).collect();
    assert_eq!(left, ["runner-1"]);
}

#[test]
fn a_forced_stop_destroys_vms_with_jobs_too() {
    let world = HostWorld::new();
    let pool = world.start(&[("SHUTDOWN", "destroy")]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    pool.stop();
    assert_eq!((world.vms().len(), world.disks().len()), (0, 0));
}

#[test]
fn a_restart_ends_a_drain_and_no_job_notices_either() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Callback);
    pool.wait_for_state("runner-1", "running");
    let running = world.incarnation("runner-1");
    let drain = said(world.command(&[]).arg("drain"));
    assert_eq!(drain.code, 0, "{drain:?}");
    wait_until("the idle VM has retired", || world.vms().len() == 1 && world.disks().len() == 1);
    assert_eq!(pool.health()["status"], "draining");
    pool.kill();

    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    assert_eq!(world.incarnation("runner-1"), running);
    pool.wait_for_state("runner-1", "running");
    // The file of the killed pool is gone, and this one's in its place.
    let stop = said(world.command(&[]).arg("stop"));
    assert_eq!((stop.code, stop.out.as_str()), (0, "The pool has stopped.\n"), "{stop:?}");
    assert_eq!(world.incarnation("runner-1"), running);
}

#[test]
fn a_service_managers_stop_is_a_stop_like_ctrl_c() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    pool.terminate();
    assert_eq!(pool.wait(), 0, "{}", pool.log());
    world.assert_empty();
}

#[test]
fn a_vm_in_the_making_is_cut_off_by_the_stop_and_removed() {
    let world = HostWorld::new();
    world.host.set_fault_at("create-vm", "start", FaultKind::Hang);
    let pool = world.start(&[]);
    wait_until("two VMs are almost made", || {
        is_being_created(&world, "runner-1", "start") && is_being_created(&world, "runner-2", "start")
    });
    pool.stop();
    // Each is looked for once more: Hyper-V may finish what PowerShell began.
    assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 4));
    world.assert_empty();
}

#[test]
fn vms_that_cannot_be_destroyed_at_the_stop_are_left_to_the_next_start() {
    let world = HostWorld::new();
    let pool = world.start(&[("POLL_SECONDS", "3600")]);
    world.wait_until_whole(&pool, 2);
    let error = "the host says no".into();
    world.host.set_fault_at("destroy-vm", "remove", FaultKind::Fail { error, leave: true });
    pool.stop();
    assert_eq!((world.vms().len(), world.disks().len()), (2, 2));
    world.host.clear_faults();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_stop_that_github_holds_up_can_be_cut_short_and_the_next_start_adopts_what_is_left() {
    let troubles = [("/actions/", Fault::Cut), ("DELETE", Fault::Answer(Reply::refusal(502, "Bad Gateway")))];
    each(&troubles, |(matching, fault)| {
        let world = HostWorld::new();
        let mut pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        world.github.misbehave(matching, usize::MAX, fault.clone());
        pool.interrupt();
        wait_until("its VMs are asked to retire", || pool.log().matches("asked to retire").count() == 2);
        let lists = world.runs("list-vms");
        wait_until("it has looked again and again", || world.runs("list-vms") >= lists + 3);
        assert_eq!((pool.ended(), world.vms().len()), (None, 2));
        assert_eq!(pool.health()["status"], "stopping");
        pool.interrupt();
        assert_eq!(pool.wait(), 1);
        world.github.behave();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        assert_eq!((world.runs("create-vm"), world.runs("destroy-vm")), (2, 0));
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn another_pool_size_at_the_next_start_is_what_counts() {
    let world = HostWorld::new();
    let mut pool = world.start(&[("POOL_SIZE", "3")]);
    world.wait_until_whole(&pool, 3);
    world.start_job(&pool, "runner-3", 7, News::Webhook);
    pool.wait_for_state("runner-3", "running");
    let at_work = world.incarnation("runner-3");
    pool.kill();
    // Fewer: the job goes on, and the idle ones serve on, but are not replaced.
    let mut pool = world.start(&[("POOL_SIZE", "1")]);
    pool.wait_for_state("runner-3", "running");
    world.host.power_off("runner-1");
    world.host.power_off("runner-2");
    wait_until("the others are gone", || world.vms().len() == 1 && world.github.runners().len() == 1);
    assert_eq!(world.incarnation("runner-3"), at_work);
    pool.kill();
    world.forget_most_vms();
    let pool = world.start(&[("POOL_SIZE", "2")]);
    world.wait_until_whole(&pool, 2);
    assert_eq!(world.incarnation("runner-3"), at_work);
    world.end_job(&pool, "runner-3", 7, News::Callback);
    wait_until("the VM is gone", || world.incarnation("runner-3") != at_work);
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn after_a_change_of_the_webhook_secret_old_vms_cannot_report_but_are_replaced_all_the_same() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Silence);
    pool.wait_for_state("runner-1", "running");
    let first = world.incarnation("runner-1");
    pool.kill();
    let pool = world.start(&[("WEBHOOK_SECRET", "another-webhook-secret-of-these-tests")]);
    world.wait_until_whole(&pool, 2);
    pool.wait_for_state("runner-1", "running");
    assert_eq!(world.guest("runner-1").report_complete().status, 401);
    assert_eq!((pool.state("runner-1").as_str(), world.incarnation("runner-1")), ("running", first.clone()));
    world.end_job(&pool, "runner-1", 7, News::Silence);
    wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_second_ctrl_c_stops_at_once_and_the_next_start_clears_up() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    world.host.set_fault("destroy-vm", FaultKind::Hang);
    pool.interrupt();
    wait_until("destroying has begun", || world.runs("destroy-vm") >= 1);
    assert_eq!(pool.ended(), None);
    pool.interrupt();
    assert_eq!(pool.wait(), 1);
    assert!(pool.log().contains("stopped at once"));

    world.host.clear_faults();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn what_the_next_start_finds_of_no_use_it_clears_away() {
    let world = HostWorld::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    let mut pool = pool;
    pool.kill();
    // While it is down: one VM goes off, and a disk is left that belongs to no VM.
    world.host.power_off("runner-2");
    let stray = world.host.storage().join("runner-9-00ff00ff00ff00ff.vhdx");
    host::make_disk(&stray, None);
    let (kept, dead) = (world.incarnation("runner-1"), world.incarnation("runner-2"));

    let pool = world.start(&[]);
    wait_until("the VM that is off is replaced", || {
        world.incarnation("runner-2").is_some_and(|i| Some(i) != dead)
    });
    world.wait_until_whole(&pool, 2);
    assert_eq!(world.incarnation("runner-1"), kept);
    assert!(!stray.exists());
    pool.stop();
    world.assert_empty();
}

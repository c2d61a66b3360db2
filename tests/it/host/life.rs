//! A VM's life: made, ready, one job, gone, replaced.

use super::each;
use crate::support::host_pool::{HostWorld, News};
use crate::support::wait_until;
use serde_json::Value;

#[test]
fn every_vm_serves_one_job_and_is_replaced_however_the_pool_learns_of_it() {
    each(&[News::Webhook, News::Callback, News::Silence], |&news| {
        let world = HostWorld::new();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        let (first, other) = (world.incarnation("runner-1"), world.incarnation("runner-2"));

        world.start_job(&pool, "runner-1", 7, news);
        pool.wait_for_state("runner-1", "running");
        assert_eq!(world.guest("runner-1").fetch_config().status, 409, "a second job for this VM");
        world.end_job(&pool, "runner-1", 7, news);
        wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
        world.wait_until_whole(&pool, 2);
        assert_eq!(world.incarnation("runner-2"), other, "{news:?}");
        assert_eq!(pool.status()["jobs_completed"], 1);
        pool.stop();
        world.assert_empty();
    });
}

#[test]
fn a_log_in_json_says_of_each_line_which_slot_vm_and_job_it_is_about() {
    let world = HostWorld::new();
    let pool = world.start(&[("LOG_FORMAT", "json")]);
    world.wait_until_whole(&pool, 2);
    let incarnation = world.incarnation("runner-2").unwrap();
    world.start_job(&pool, "runner-2", 7, News::Webhook);
    pool.wait_for_state("runner-2", "running");
    world.guest("runner-2").report_complete();
    wait_until("the VM is replaced", || world.incarnation("runner-2").is_some_and(|new| new != incarnation));
    world.wait_until_whole(&pool, 2);
    let log = pool.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_vm: Vec<Value> = lines.filter(|line| line["incarnation"] == incarnation.as_str()).collect();
    let told = |what: &str| {
        let says = |line: &&Value| line["message"].as_str().unwrap().contains(what);
        of_vm.iter().find(says).unwrap_or_else(|| panic!("no line {what:?} in {of_vm:#?}"))
    };
    for what in ["made in", "ready after", "job ", "ended after", "destroyed in"] {
        let line = told(what);
        assert_eq!(
            (&line["slot"], &line["vm"], &line["level"]),
            (&2.into(), &"runner-2".into(), &"INFO".into())
        );
    }
    let ended = told("ended after");
    assert_eq!(ended["cause"], "runner_ended");
    assert_eq!(ended["job_id"], 7);
    assert_eq!(told("made in")["job_id"], Value::Null);
    pool.stop();
}

#[test]
fn runners_that_register_themselves_live_the_same_life() {
    let world = HostWorld::new();
    let pool = world.start(&[("RUNNER_REGISTRATION", "token")]);
    world.wait_until_whole(&pool, 2);
    let first = world.incarnation("runner-1");
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    world.end_job(&pool, "runner-1", 7, News::Webhook);
    wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != first));
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_vm_that_goes_off_or_is_saved_is_replaced_idle_or_not() {
    type Fate = (&'static str, fn(&HostWorld));
    let happens: [Fate; 2] = [
        ("off", |world| world.host.power_off("runner-1")),
        ("saved", |world| {
            world.host.change_vm("runner-1", |vm| {
                vm.state = "Saved".into();
                vm.started = 0;
            });
        }),
    ];
    let cases: Vec<_> =
        happens.into_iter().flat_map(|(what, how)| [(what, how, false), (what, how, true)]).collect();
    each(&cases, |(what, how, busy)| {
        let world = HostWorld::new();
        let pool = world.start(&[]);
        world.wait_until_whole(&pool, 2);
        let (first, other) = (world.incarnation("runner-1"), world.incarnation("runner-2"));
        if *busy {
            world.start_job(&pool, "runner-1", 7, News::Webhook);
            pool.wait_for_state("runner-1", "running");
        }
        how(&world);
        wait_until(&format!("{what}: replaced"), || {
            world.incarnation("runner-1").is_some_and(|i| Some(i) != first)
        });
        world.wait_until_whole(&pool, 2);
        assert_eq!(world.incarnation("runner-2"), other);
        pool.stop();
        world.assert_empty();
    });
}

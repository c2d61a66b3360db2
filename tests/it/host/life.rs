//! A VM's life: made, ready, one job, gone, replaced.

use super::each;
use crate::support::host_pool::{HostWorld, News};
use crate::support::wait_until;

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

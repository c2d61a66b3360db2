//! GitHub cannot be reached, or refuses.

use super::{degraded_because, errors};
use crate::support::fake_github::Fault;
use crate::support::free_port;
use crate::support::host_pool::HostWorld;
use crate::support::wait_until;

#[test]
fn without_github_the_pool_waits_says_why_and_begins_when_it_is_back() {
    let world = HostWorld::new();
    world.github.misbehave("/actions/", usize::MAX, Fault::Cut);
    let mut pool = world.start(&[]);
    degraded_because(&mut pool);
    wait_until("both calls are named", || {
        let why = errors(&pool);
        ["cannot list the runners", "cannot register the runner", "no answer from 127.0.0.1"]
            .iter()
            .all(|part| why.contains(part))
    });
    assert!(!pool.get("/health").body.contains("no answer"), "anyone may read it");
    world.github.behave();
    world.wait_until_whole(&pool, 2);
    pool.stop();
    world.assert_empty();
}

#[test]
fn without_github_at_the_start_the_vms_that_are_there_are_served() {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    pool.kill();
    world.github.misbehave("/actions/", usize::MAX, Fault::Cut);
    let pool = world.start(&[]);
    wait_until("both are adopted", || pool.health()["ready"] == 2);
    let first = world.incarnation("runner-1");
    let guest = world.guest("runner-1");
    assert_eq!(guest.report_started().status, 200);
    assert_eq!(pool.state("runner-1"), "running");
    assert_eq!(guest.report_complete().status, 200);
    wait_until("its VM is removed", || world.incarnation("runner-1") != first);
    assert_eq!(pool.get("/health").status, 200, "the other one serves");
    world.github.behave();
    world.wait_until_whole(&pool, 2);
    pool.stop();
}

#[test]
fn a_github_address_where_nobody_listens_is_named() {
    let world = HostWorld::new();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut pool = world.start(&[("GITHUB_API_URL", &nobody)]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("no answer from 127.0.0.1") && reason.contains("GITHUB_API_URL"), "{reason}");
    pool.stop();
}

#[test]
fn a_pat_that_github_refuses_is_named_and_the_pool_stays_up() {
    let world = HostWorld::new();
    let mut pool = world.start(&[("GITHUB_PAT", "ghp_wrongwrongwrongwrongwrongwrongwrong1")]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("401") && reason.contains("GITHUB_PAT"), "{reason}");
    assert!(!pool.log().contains("wrongwrong"));
    pool.stop();
}

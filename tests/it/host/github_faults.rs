//! GitHub cannot be reached, or refuses.

use super::degraded_because;
use crate::support::fake_github::Fault;
use crate::support::free_port;
use crate::support::host_pool::HostWorld;

#[test]
fn without_github_the_pool_waits_says_why_and_begins_when_it_is_back() {
    let world = HostWorld::new();
    world.github.misbehave("/actions/", usize::MAX, Fault::Cut);
    let mut pool = world.start(&[]);
    let reason = degraded_because(&mut pool);
    let said = reason.matches("cannot list the runners").count();
    assert!(said == 1 && reason.contains("was cut"), "{reason}");
    world.github.behave();
    world.wait_until_whole(&pool, 2, 0);
    pool.stop();
    world.assert_empty();
}

#[test]
fn a_github_address_where_nobody_listens_is_named() {
    let world = HostWorld::new();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut pool = world.start(&[("GITHUB_API_URL", &nobody)]);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("127.0.0.1 is refused") && reason.contains("GITHUB_API_URL"), "{reason}");
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

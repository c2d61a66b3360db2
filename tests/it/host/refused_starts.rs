//! Starts that cannot be: what is said, and that nothing was begun.

use crate::support::fake_github::TOKEN;
use crate::support::free_port;
use crate::support::host_pool::{HostWorld, WEBHOOK_SECRET};
use std::net::TcpListener;

#[test]
fn a_storage_folder_that_another_pool_uses_is_refused() {
    let world = HostWorld::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    let port = free_port().to_string();
    let mut second = world.spawn(&[("PORT", &port)]);
    assert_eq!(second.wait(), 1);
    let said = second.log();
    assert!(said.contains("Another pool uses VM_STORAGE_PATH"), "{said}");
    assert!(said.contains(world.host.storage().to_str().unwrap()), "{said}");
    world.wait_until_whole(&pool, 2);
    pool.stop();
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_begun() {
    let world = HostWorld::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut pool = world.spawn(&[("PORT", &port)]);
    assert_eq!(pool.wait(), 1);
    assert!(pool.log().contains(&format!("Port {port} ")), "{}", pool.log());
    assert!(world.host.invocations().is_empty());
}

#[test]
fn wrong_settings_are_all_named_at_once_without_their_secrets() {
    let world = HostWorld::new();
    let mut pool =
        world.spawn(&[("POOL_SIZE", "many"), ("PORT", "0"), ("GITHUB_ORG", ""), ("VM_MEMORY_MB", "1")]);
    assert_eq!(pool.wait(), 2);
    let said = pool.log();
    for name in ["POOL_SIZE", "PORT", "GITHUB_ORG", "VM_MEMORY_MB"] {
        assert!(said.lines().any(|line| line.starts_with(name)), "{name} in {said}");
    }
    assert!(!said.contains(TOKEN) && !said.contains(WEBHOOK_SECRET), "{said}");
    assert!(world.host.invocations().is_empty());
}

#[test]
fn a_host_without_hyper_v_is_left_as_it_was() {
    let world = HostWorld::new();
    let mut pool = world.spawn(&[("PATH", "/nonexistent")]);
    assert_eq!(pool.wait(), 1);
    assert!(pool.log().contains("This is not Windows"), "{}", pool.log());
    assert!(world.host.disks().is_empty(), "it left something behind");
}

//! How many PowerShell processes the pool takes.

use super::each;
use crate::support::host_pool::{HostWorld, News};
use crate::support::wait_until;

#[test]
fn a_vms_life_takes_two_powershell_processes() {
    let world = HostWorld::new();
    // So that the monitor asks at the start only.
    let pool = world.start(&[("POLL_SECONDS", "3600")]);
    world.wait_until_whole(&pool, 2);
    for job in 1..=3 {
        let before = world.incarnation("runner-1");
        world.start_job(&pool, "runner-1", job, News::Webhook);
        pool.wait_for_state("runner-1", "running");
        world.end_job(&pool, "runner-1", job, News::Callback);
        wait_until("the VM is replaced", || world.incarnation("runner-1").is_some_and(|i| Some(i) != before));
        world.wait_until_whole(&pool, 2);
    }
    let runs = |script| world.runs(script);
    assert_eq!((runs("create-vm"), runs("destroy-vm")), (5, 3));
    // Of the start, which looks twice.
    assert_eq!((runs("list-vms"), runs("check-host")), (2, 1));
    assert_eq!(world.host.invocations().len(), 11);
    pool.stop();
    world.assert_empty();
    assert_eq!((runs("create-vm"), runs("destroy-vm")), (5, 5));
}

#[test]
fn a_round_of_the_monitor_takes_one_powershell_process_whatever_the_pools_size() {
    each(&[1, 12], |&size: &usize| {
        let world = HostWorld::new();
        let pool = world.start(&[("POOL_SIZE", &size.to_string())]);
        world.wait_until_whole(&pool, size);
        // One listing of all runners belongs to each round, after the one of all VMs.
        let rounds = || world.github.count("GET /orgs/acme/actions/runners?");
        // Both at one time.
        let counts = || loop {
            let (round, run) = (rounds(), world.host.invocations().len());
            if rounds() == round {
                return (round, run);
            }
        };
        let (rounds_before, runs_before) = counts();
        wait_until("four rounds", || rounds() >= rounds_before + 4);
        let (rounds, runs) = counts();
        let (rounds, runs) = (rounds - rounds_before, runs - runs_before);
        assert!(runs.abs_diff(rounds) <= 1, "{runs} processes in {rounds} rounds of {size} VMs");
        pool.stop();
        world.assert_empty();
    });
}

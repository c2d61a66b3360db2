//! `cleanup` takes away all that a pool has made, and nothing else.

use crate::support::fake_github::{Fault, Reply};
use crate::support::fake_host::host::{self, FaultKind, Vm};
use crate::support::host_pool::{HostWorld, News};
use crate::support::process::{Said, said};
use std::io::Write;
use std::process::Stdio;

fn cleanup(world: &HostWorld, words: &[&str]) -> Said {
    said(world.command(&[]).arg("cleanup").args(words))
}

/// A pool that was killed with an idle VM, one with a job and a disk that it had lost.
fn left_behind() -> HostWorld {
    let world = HostWorld::new();
    let mut pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Callback);
    pool.wait_for_state("runner-1", "running");
    pool.kill();
    // GitHub takes a job for running until it has missed its runner for a while: a case of its own, below.
    world.github.change_runner(&world.notes("runner-1").runner_name, |runner| runner.busy = false);
    host::make_disk(&world.host.storage().join("runner-9-00ff00ff00ff00ff.vhdx"), None);
    world
}

#[test]
fn what_a_pool_has_left_is_listed_and_removed_and_nothing_else() {
    let world = left_behind();
    let foreign = world.host.folder().join("runner-1.vhdx");
    host::make_disk(&foreign, None);
    world.host.add_vm(Vm { disks: vec![foreign.clone()], ..Vm::new("runner-3") });
    let others = world.github.register_itself("runner-1", &["self-hosted"]);

    let cleanup = cleanup(&world, &["--yes"]);
    assert_eq!(cleanup.code, 0, "{cleanup:?}");
    for text in ["the VM runner-1 (", "the VM runner-2 (", "the disk runner-9-00ff00ff00ff00ff.vhdx"] {
        assert!(cleanup.out.contains(&format!("\n  {text}")), "{text} is not listed: {}", cleanup.out);
        assert!(
            cleanup.out.contains(&format!("\nremoved: {text}")),
            "{text} is not removed: {}",
            cleanup.out
        );
    }
    assert_eq!(cleanup.out.matches("removed: the registration ").count(), 2, "{}", cleanup.out);
    assert!(cleanup.out.ends_with("\nNothing of this pool is left.\n"), "{}", cleanup.out);
    assert_eq!((world.vms().len(), world.disks().len()), (0, 0));
    assert_eq!(std::fs::read_dir(world.host.storage()).unwrap().count(), 0);
    assert!(foreign.exists() && world.host.vms().len() == 1, "somebody's own VM");
    let runners: Vec<u64> = world.github.runners().iter().map(|runner| runner.id).collect();
    assert_eq!(runners, [others]);

    let again = self::cleanup(&world, &[]);
    assert_eq!((again.code, again.out.as_str()), (0, "Nothing of this pool is left.\n"), "{again:?}");
}

#[test]
fn nothing_is_removed_before_somebody_says_yes() {
    let world = left_behind();
    let silent = cleanup(&world, &[]);
    assert_eq!(silent.code, 0, "{silent:?}");
    assert!(silent.out.contains(", which runs a job") || silent.out.contains(", which is on"), "{silent:?}");
    assert!(silent.out.ends_with("Remove all of this? Jobs that run fail. [y/N] Nothing is removed.\n"));
    assert_eq!((world.vms().len(), world.github.runners().len()), (2, 2));

    let mut asked = world.command(&[]);
    let asked = asked.arg("cleanup").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = asked.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"y\n").unwrap();
    assert!(child.wait().unwrap().success());
    world.assert_empty();
}

#[test]
fn a_pool_that_runs_is_left_alone() {
    let world = HostWorld::new();
    let pool = world.start(&[]);
    world.wait_until_whole(&pool, 2);
    let refused = cleanup(&world, &["--yes"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("stop it first, with `hyperv-runner-pool stop`"), "{refused:?}");
    world.wait_until_whole(&pool, 2);
    pool.stop();
}

#[test]
fn what_cannot_be_removed_is_named_and_the_rest_goes() {
    let world = left_behind();
    let error = "the host says no".into();
    world.host.add_fault(
        "destroy-vm",
        Some("runner-2"),
        Some("remove"),
        None,
        FaultKind::Fail { error, leave: true },
    );
    world.github.misbehave("DELETE", 1, Fault::Answer(Reply::refusal(422, "is currently running a job")));
    let some = cleanup(&world, &["--yes"]);
    assert_eq!(some.code, 1, "{some:?}");
    assert!(
        some.out.contains("left: the VM runner-2 (") && some.out.contains("the host says no"),
        "{some:?}"
    );
    assert!(some.out.contains("GitHub still takes its job for running"), "{some:?}");
    assert!(some.err.contains("run `hyperv-runner-pool cleanup` again"), "{some:?}");
    world.host.clear_faults();
    assert_eq!(cleanup(&world, &["--yes"]).code, 0);
    world.assert_empty();
}

#[test]
fn where_github_does_not_answer_the_host_is_cleaned_all_the_same() {
    let world = left_behind();
    world.github.misbehave("/actions/", usize::MAX, Fault::Answer(Reply::refusal(401, "Bad credentials")));
    let some = cleanup(&world, &["--yes"]);
    assert_eq!(some.code, 1, "{some:?}");
    assert!(some.out.starts_with("Registrations are left, since GitHub does not list them: "), "{some:?}");
    assert_eq!((world.vms().len(), world.disks().len()), (0, 0));
}

//! No secret is ever shown.

use crate::support::fake_github::{Fault, Reply, TOKEN};
use crate::support::fake_host::host::FaultKind;
use crate::support::host_pool::{HostWorld, News, WEBHOOK_SECRET};
use crate::support::wait_until;
use std::fs;

#[test]
fn no_secret_is_in_any_output_whatever_powershell_and_github_say() {
    let world = HostWorld::new();
    // Both repeat in their errors what they were told.
    let error = "cannot use {secret}".to_owned();
    world.host.add_fault(
        "create-vm",
        None,
        Some("key-values"),
        Some(1),
        FaultKind::Fail { error, leave: false },
    );
    world.host.add_fault("create-vm", None, None, Some(3), FaultKind::Stderr("told {secret}".into()));
    world.host.add_fault("create-vm", None, None, Some(1), FaultKind::NoJson("got {secret}".into()));
    world.github.misbehave(
        "generate-jitconfig",
        1,
        Fault::Answer(Reply::refusal(403, &format!("no: {TOKEN}"))),
    );

    let mut shown = String::new();
    let pool = world.start(&[("LOG_LEVEL", "trace")]);
    #[cfg(target_os = "linux")]
    shown.push_str(&fs::read_to_string(format!("/proc/{}/cmdline", pool.id())).unwrap().replace('\0', " "));
    wait_until("something has failed", || pool.health()["reason"].is_string());
    let look = |shown: &mut String| {
        for path in ["/api/status", "/metrics"] {
            shown.push_str(&pool.get(path).body);
        }
        shown.push_str(&pool.get("/health").body);
        shown.push_str(&pool.get("/").body);
    };
    look(&mut shown);
    world.wait_until_whole(&pool, 2, 0);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    look(&mut shown);
    world.end_job(&pool, "runner-1", 7, News::Callback);
    world.wait_until_whole(&pool, 2, 0);
    world.host.vms().iter().for_each(|vm| shown.push_str(&vm.notes));
    let (log, output) = (pool.log(), pool.output());
    pool.stop();

    let runs = world.host.invocations();
    assert!(runs.iter().all(|run| run.inherited_secrets.is_empty() && run.args.len() == 7), "{runs:?}");
    shown.push_str(&format!("{runs:?}{log}{output}"));
    let vm_secrets = world.vm_secrets();
    assert!(vm_secrets.len() >= 3 && log.contains("***"), "{vm_secrets:?}");
    let secrets = [TOKEN, WEBHOOK_SECRET, "eyJqaXQ"].into_iter().chain(vm_secrets.iter().map(String::as_str));
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

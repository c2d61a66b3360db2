//! The program on a Hyper-V host: the real process in production mode, over a
//! fake host with the stand-in for `powershell`, a fake GitHub and fake guests.

mod check;
mod cleanup;
mod cost;
mod foreign;
mod github_app;
mod github_faults;
mod host_faults;
mod killed;
mod life;
mod refused_starts;
mod scale_set;
mod secrets;
mod stop_and_start;

use crate::support::host_pool::HostWorld;
use crate::support::process::Process;
use crate::support::wait_until;

const CREATE_STEPS: [&str; 8] =
    ["template", "disk", "vm", "notes", "settings", "network", "key-values", "start"];
const DESTROY_STEPS: [&str; 4] = ["find", "stop", "remove", "disk"];

/// Runs cases side by side, since each of them mostly waits.
fn each<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| run(case));
        }
    });
}

/// Whether the making of a VM has come as far as this step.
fn is_being_created(world: &HostWorld, name: &str, step: &str) -> bool {
    let vm = world.vms().into_iter().find(|vm| vm.name == name);
    match step {
        "template" | "disk" => {
            world.host.invocations().iter().any(|run| run.script == "create-vm" && run.vm == name)
        }
        "vm" => world.disks().iter().any(|disk| disk.starts_with(name)),
        "notes" => vm.is_some(),
        "settings" => vm.is_some_and(|vm| !vm.notes.is_empty()),
        "network" => vm.is_some_and(|vm| !vm.settings.is_empty()),
        "key-values" => vm.is_some_and(|vm| vm.settings.contains_key("isolation")),
        "start" => vm.is_some_and(|vm| !vm.kvp.is_empty()),
        _ => unreachable!(),
    }
}

/// The errors in the status, to which health adds no detail: of GitHub, of Hyper-V and of each slot.
fn errors(pool: &Process) -> String {
    let status = pool.status();
    let of_slots = status["slots"].as_array().unwrap().iter().map(|slot| &slot["reason"]);
    let errors = [&status["github_error"], &status["hypervisor_error"]].into_iter().chain(of_slots);
    errors.filter_map(|error| error.as_str()).collect::<Vec<_>>().join("\n")
}

/// The errors in the status once health is degraded. The process is still there.
fn degraded_because(pool: &mut Process) -> String {
    wait_until("health is degraded", || pool.get("/health").status == 503);
    let health = pool.health();
    assert_eq!((health["status"].as_str(), health["ready"].as_u64()), (Some("degraded"), Some(0)));
    assert!(!health["reasons"].as_array().unwrap().is_empty(), "{health}");
    assert_eq!(pool.ended(), None);
    errors(pool)
}

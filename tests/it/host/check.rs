//! `hyperv-runner-pool check`.

use crate::support::host_pool::HostWorld;
use std::fs;
use std::net::TcpListener;

fn check(world: &HostWorld, settings: &[(&str, &str)]) -> (i32, Vec<String>) {
    let output = world.command(settings).arg("check").output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

#[test]
fn check_tells_what_it_found_and_changes_nothing() {
    let world = HostWorld::new();
    let (code, lines) = check(&world, &[]);
    assert_eq!(code, 0, "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("ok       ")), "{lines:#?}");
    for part in [
        "Windows Server",
        "template",
        "storage folder",
        "Default Switch",
        "firewall",
        "of memory",
        "logical processors",
        "on 0.0.0.0 is free",
        "GITHUB_PAT may register runners for organization acme",
    ] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part} in {lines:#?}");
    }
    let runs: Vec<String> = world.host.invocations().into_iter().map(|run| run.script).collect();
    assert_eq!(runs, ["check-host"]);
    world.assert_empty();
}

#[test]
fn check_names_every_fault_with_what_to_fix_and_fails() {
    let world = HostWorld::new();
    fs::remove_file(world.host.template()).unwrap();
    let (code, lines) =
        check(&world, &[("VM_SWITCH", "LAN"), ("GITHUB_PAT", "ghp_wrongwrongwrongwrongwrongwrongwrong1")]);
    assert_eq!(code, 1, "{lines:#?}");
    let faults: Vec<&String> = lines.iter().filter(|line| line.starts_with("fault  ")).collect();
    assert_eq!(faults.len(), 3, "{lines:#?}");
    for parts in [["template", "VM_TEMPLATE_PATH"], ["'LAN'", "VM_SWITCH"], ["401", "GITHUB_PAT"]] {
        assert!(
            faults.iter().any(|line| parts.iter().all(|part| line.contains(part))),
            "{parts:?} in {faults:#?}"
        );
    }
    assert!(lines.iter().all(|line| !line.contains("wrongwrong")));
}

#[test]
fn check_on_a_host_without_powershell_says_so() {
    let world = HostWorld::new();
    let (code, lines) = check(&world, &[("PATH", "/nonexistent")]);
    assert_eq!(code, 1);
    assert!(lines.iter().any(|line| line.starts_with("fault    This is not Windows")), "{lines:#?}");
    assert!(world.host.disks().is_empty(), "it left something behind");
}

#[test]
fn a_port_in_use_is_a_warning_since_it_may_be_the_pool_itself() {
    let world = HostWorld::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, lines) = check(&world, &[("PORT", &port)]);
    assert_eq!(code, 0, "{lines:#?}");
    let warning = format!("warning  Port {port} on 0.0.0.0 is in use");
    assert!(lines.iter().any(|line| line.starts_with(&warning)), "{lines:#?}");
}

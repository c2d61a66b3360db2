//! Commands to a running pool: the real program, twice.

use crate::support::http::{self, Response};
use crate::support::process::{Process, command, said};
use crate::support::{free_port, wait_until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const FAST: [(&str, &str); 3] =
    [("POOL_SIZE", "2"), ("MOCK_CREATE_SECONDS", "0.01"), ("MOCK_BOOT_SECONDS", "0.05")];

/// A pool of two simulated VMs, which are ready.
fn ready() -> Process {
    let pool = Process::start_mock(&FAST);
    wait_until("two VMs are ready", || pool.health()["ready"] == 2);
    pool
}

/// Asks the pool as a command would, with this token.
fn post(pool: &Process, path: &str, headers: &[(&str, &str)]) -> Response {
    http::try_request(&pool.url, "POST", path, headers, b"").expect("an answer")
}

#[test]
fn status_is_a_table_in_plain_text_where_nobody_looks() {
    let pool = ready();
    let status = pool.command(&["status"]);
    assert_eq!((status.code, status.err.as_str()), (0, ""));
    let lines: Vec<&str> = status.out.lines().collect();
    assert_eq!(
        lines[0],
        format!("healthy: 2 VMs, 2 ready, 0 running, POOL_SIZE 2, 0 jobs waiting ({})", pool.url)
    );
    assert!(lines[1].starts_with("SLOT  VM        STATE"), "{}", status.out);
    assert!(lines[2].starts_with("   1  runner-1  ready"), "{}", status.out);
    assert_eq!(lines.len(), 4);
    assert!(!status.out.contains('\x1b'));
}

#[test]
fn status_as_json_is_what_the_pool_says() {
    let pool = ready();
    let json: Value = serde_json::from_str(&pool.command(&["status", "--json"]).out).unwrap();
    assert_eq!((&json["size"], &json["slots"][1]["vm"]), (&2.into(), &"runner-2".into()));
}

#[test]
fn stop_ends_the_pool_in_order_and_waits_until_it_has_ended() {
    let mut pool = ready();
    let stop = pool.command(&["stop"]);
    assert_eq!((stop.code, stop.out.as_str()), (0, "The pool has stopped.\n"), "{stop:?}");
    assert_eq!(pool.wait(), 0);
    assert!(pool.log().contains("asked to retire, since the pool stops"), "{}", pool.log());
    let again = pool.command(&["stop"]);
    assert!(again.err.contains("no pool runs"), "{again:?}");
}

#[test]
fn stop_now_leaves_every_vm_as_it_is() {
    let mut pool = ready();
    let stop = pool.command(&["stop", "--now"]);
    assert_eq!((stop.code, stop.out.as_str()), (0, "The pool has stopped.\n"), "{stop:?}");
    assert_eq!(pool.wait(), 1, "as after a second Ctrl+C");
    assert!(pool.log().contains("stopped at once") && !pool.log().contains("destroyed"), "{}", pool.log());
}

#[test]
fn without_a_pool_every_command_says_so() {
    let folder = std::env::temp_dir().join(format!("pool-none-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".env"), "").unwrap();
    for words in [&["status"][..], &["stop"], &["stop", "--now"]] {
        let said = said(command(&folder, &[("USE_MOCK", "true")]).args(words));
        assert_eq!(said.code, 1, "{words:?}: {said:?}");
        assert!(said.err.starts_with("hyperv-runner-pool: no pool runs with VM_STORAGE_PATH "), "{said:?}");
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is made there");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_killed_pool_is_told_from_one_that_never_ran() {
    let mut pool = ready();
    pool.kill();
    let status = pool.command(&["status"]);
    assert_eq!(status.code, 1);
    assert!(status.err.contains("does not answer on") && status.err.contains("killed"), "{status:?}");
}

#[test]
fn a_command_finds_the_pool_though_the_port_was_changed_since() {
    let pool = ready();
    let elsewhere = free_port().to_string();
    let status = said(command(pool.folder(), &[("USE_MOCK", "true"), ("PORT", &elsewhere)]).arg("status"));
    assert!(status.out.contains(&pool.url), "{status:?}");
}

#[test]
fn nobody_commands_without_the_token_of_this_start() {
    let pool = ready();
    let token = pool.token();
    let bearer = format!("Bearer {token}");
    let wrong = format!("Bearer {}", "0".repeat(64));
    assert_eq!(post(&pool, "/api/stop", &[]).status, 401);
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &wrong)]).status, 401);
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &token)]).status, 401);
    let proxied = [("Authorization", &*bearer), ("X-Forwarded-For", "192.0.2.1")];
    assert_eq!(post(&pool, "/api/stop", &proxied).status, 403);
    assert_eq!(pool.get("/api/stop").status, 405);
    let other_pool = http::try_request(&pool.url, "GET", "/api/status", &[("Authorization", &wrong)], b"");
    assert_eq!(other_pool.unwrap().status, 401, "it means another pool");
    assert_eq!(pool.health()["status"], "healthy");
    assert!(!pool.log().contains(&token));
    pool.stop();
}

#[test]
fn a_misspelled_command_is_led_to_the_nearest() {
    let folder = std::env::temp_dir();
    let misspelled = said(command(&folder, &[]).arg("staus"));
    assert_eq!(misspelled.code, 2);
    assert!(misspelled.err.contains("\"staus\" is not a command; did you mean status?"), "{misspelled:?}");
    let help = said(command(&folder, &[]).args(["stop", "--help"]));
    assert_eq!(help.code, 0);
    assert!(help.out.starts_with("hyperv-runner-pool stop [--now]\n"), "{help:?}");
}

#[test]
fn check_as_json_has_each_finding_with_its_severity() {
    let folder = std::env::temp_dir();
    let port = free_port().to_string();
    let check = said(command(&folder, &[("USE_MOCK", "true"), ("PORT", &port)]).args(["check", "--json"]));
    assert_eq!(check.code, 0, "{check:?}");
    let json: Value = serde_json::from_str(&check.out).unwrap();
    let findings = json["findings"].as_array().unwrap();
    let free = format!("Port {port} on 0.0.0.0 is free.");
    assert!(findings.iter().any(|f| f["severity"] == "ok" && f["text"] == *free), "{check:?}");
}

impl Process {
    fn control_file(&self) -> PathBuf {
        self.folder().join("vms/storage/control-simulated/pool.json")
    }

    fn token(&self) -> String {
        let control: Value = serde_json::from_slice(&fs::read(self.control_file()).unwrap()).unwrap();
        control["token"].as_str().unwrap().to_owned()
    }
}

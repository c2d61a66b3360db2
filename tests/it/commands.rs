//! Commands to a running pool: the real program, twice.

use crate::support::delivery;
use crate::support::http::{self, Response};
use crate::support::process::{Process, command, said};
use crate::support::{free_port, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

/// A pool of two simulated VMs, which are ready, and whose jobs last.
fn ready() -> Process {
    let pool = Process::start_mock(&[
        ("POOL_SIZE", "2"),
        ("POLL_SECONDS", "1"),
        ("MOCK_CREATE_SECONDS", "0.01"),
        ("MOCK_BOOT_SECONDS", "0.05"),
        ("MOCK_JOB_SECONDS", "3600"),
    ]);
    are_ready(&pool, 2);
    pool
}

#[track_caller]
fn are_ready(pool: &Process, count: u32) {
    wait_until(&format!("{count} VMs are ready"), || pool.health()["ready"] == count);
}

/// A job comes, and one of the VMs takes it.
fn job_runs(pool: &Process) {
    let queued = delivery::workflow_job("queued", 7, None);
    assert_eq!(delivery::deliver(&mut pool.connect(), &pool.keys, "queued-7", &queued).status, 200);
    wait_until("the job runs", || pool.health()["running"] == 1);
}

/// Which VM each slot has.
fn incarnations(pool: &Process) -> Vec<Value> {
    let status = pool.status();
    status["slots"].as_array().unwrap().iter().map(|slot| slot["incarnation"].clone()).collect()
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
fn drain_with_wait_returns_when_the_last_job_has_ended() {
    let pool = ready();
    job_runs(&pool);
    let mut drain = command(pool.folder(), &[("USE_MOCK", "true")]);
    let mut drain = drain.args(["drain", "--wait"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(drain.stdout.take().unwrap()).lines().map(Result::unwrap);
    let draining = "The pool is draining: idle VMs retire, none is made, and jobs go on.";
    assert_eq!(said.next().as_deref(), Some(draining));
    assert!(said.any(|line| line == "VMs with a job: 1; without: 0"), "{}", pool.log());
    let slots = pool.status()["slots"].as_array().unwrap().clone();
    let busy = slots.iter().position(|slot| slot["state"] == "running").unwrap();
    assert_eq!(pool.guest(busy + 1).report_complete().status, 200);
    assert_eq!(said.last().as_deref(), Some("No VM has a job, and none will get one."));
    assert_eq!(drain.wait().unwrap().code(), Some(0));
    let health = pool.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (503, &"draining".into()));
    assert_eq!(pool.status()["jobs_completed"], 1, "{}", pool.log());
    assert!(pool.command(&["status"]).out.starts_with("draining: 0 VMs, "));

    let resume = pool.command(&["resume"]);
    assert_eq!((resume.code, resume.out.as_str()), (0, "The pool makes VMs again.\n"));
    are_ready(&pool, 2);
    assert_eq!(pool.health()["status"], "healthy");
}

#[test]
fn drain_with_wait_says_so_when_somebody_ends_the_drain() {
    let pool = ready();
    job_runs(&pool);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| pool.command(&["drain", "--wait"]));
        wait_until("the pool drains", || pool.health()["status"] == "draining");
        assert_eq!(pool.command(&["resume"]).code, 0);
        let drain = waits.join().unwrap();
        assert_eq!(drain.code, 1, "{drain:?}");
        assert!(drain.err.contains("the drain was ended"), "{drain:?}");
    });
    assert_eq!(pool.health()["running"], 1, "the job goes on");
}

#[test]
fn recycle_replaces_every_idle_vm_and_leaves_the_job() {
    let pool = ready();
    job_runs(&pool);
    are_ready(&pool, 1);
    let before = incarnations(&pool);
    let recycle = pool.command(&["recycle"]);
    assert_eq!((recycle.code, recycle.out.as_str()), (0, "1 idle VM is replaced.\n"), "{recycle:?}");
    let busy = pool.status()["slots"].as_array().unwrap().iter().position(|s| s["state"] == "running");
    let (busy, idle) = (busy.unwrap(), 1 - busy.unwrap());
    wait_until("it is replaced", || pool.health()["ready"] == 1 && incarnations(&pool)[idle] != before[idle]);
    assert_eq!(incarnations(&pool)[busy], before[busy]);
    assert!(pool.log().contains("asked to retire, since an operator wants it replaced"), "{}", pool.log());

    let refused = pool.command(&["recycle", &format!("runner-{}", busy + 1)]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("has a job, after which it is replaced anyway"), "{refused:?}");
    let unknown = pool.command(&["recycle", "runner-9"]);
    assert!(unknown.code == 1 && unknown.err.contains("No slot has a VM named runner-9"), "{unknown:?}");
    assert_eq!(pool.command(&["recycle", "../stop"]).code, 2);
}

#[test]
fn recycle_has_a_slot_that_fails_try_again_at_once() {
    let pool = ready();
    // GitHub accepts its runner's version no longer: the next try would be in five minutes.
    assert_eq!(pool.guest(1).report_exit(7).status, 200);
    wait_until("the slot waits", || pool.slot(1)["state"] == "empty");
    let status = pool.command(&["status"]);
    assert!(status.out.contains("GitHub no longer accepts its version"), "{status:?}");
    let recycle = pool.command(&["recycle", "runner-1"]);
    assert_eq!((recycle.code, recycle.out.as_str()), (0, "1 slot tries again now.\n"), "{recycle:?}");
    are_ready(&pool, 2);
}

#[test]
fn without_a_pool_every_command_says_so() {
    let folder = std::env::temp_dir().join(format!("pool-none-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".env"), "").unwrap();
    for words in
        [&["status"][..], &["stop"], &["stop", "--now"], &["drain", "--wait"], &["resume"], &["recycle", "x"]]
    {
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
    for command in ["stop", "stop/now", "drain", "resume", "recycle", "recycle/runner-1"] {
        let path = format!("/api/{command}");
        assert_eq!(post(&pool, &path, &[]).status, 401, "{command}");
        assert_eq!(pool.get(&path).status, 405, "{command}");
    }
    let guest = pool.guest(1).bearer("POST", "/api/stop");
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &guest)]).status, 401);
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &wrong)]).status, 401);
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &token)]).status, 401);
    let proxied = [("Authorization", &*bearer), ("X-Forwarded-For", "192.0.2.1")];
    assert_eq!(post(&pool, "/api/stop", &proxied).status, 403);
    let other_pool = http::try_request(&pool.url, "GET", "/api/status", &[("Authorization", &wrong)], b"");
    assert_eq!(other_pool.unwrap().status, 401, "it means another pool");
    assert_eq!(pool.health()["status"], "healthy");
    assert!(!pool.log().contains(&token));
    assert_eq!(post(&pool, "/api/stop", &[("Authorization", &bearer)]).status, 200);
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

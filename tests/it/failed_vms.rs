//! VMs that failed: what is kept of them, and who may see it.

use crate::support::http;
use crate::support::mock_pool::{MockPool, MockWorld, Phase, Stop, settings};
use crate::support::wait_until;
use hyperv_runner_pool::config::PoolConfig;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What every simulated VM shows.
const SCREEN: &[u8] = include_bytes!("../../src/sim/screen.png");

/// A folder that goes when this is dropped.
struct LogDir(PathBuf);

impl LogDir {
    fn new() -> LogDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        LogDir(std::env::temp_dir().join(format!("logs {} {count}", std::process::id())))
    }
}

impl Drop for LogDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn impatient() -> PoolConfig {
    PoolConfig { boot_timeout: Duration::from_millis(200), ..settings(1, 1) }
}

/// The failures of VMs, the newest first.
fn failures(pool: &MockPool) -> Vec<Value> {
    pool.get("/api/status").json()["failures"].as_array().unwrap().clone()
}

/// The first failure whose VM was looked at.
fn examined(pool: &MockPool) -> Value {
    let find = || failures(pool).into_iter().rfind(|failure| !failure["addresses"][0].is_null());
    wait_until("a VM that did not boot was looked at", || find().is_some());
    find().unwrap()
}

#[test]
fn a_vm_that_did_not_boot_leaves_its_screen_and_what_was_seen_of_it_also_past_a_restart() {
    let (world, logs) = (MockWorld::with_silent_guests(), LogDir::new());
    let pool = world.start_with_logs(impatient(), Some(&logs.0));
    let failure = examined(&pool);
    let incarnation = failure["incarnation"].as_str().unwrap();
    assert_eq!(failure["picture"], format!("failed-vms/{incarnation}.png"));
    assert_eq!((&failure["vm"], &failure["addresses"][0]), (&"runner-1".into(), &"192.0.2.1".into()));
    assert!(failure["uptime_seconds"].is_u64() && failure["missing"].is_null(), "{failure}");
    assert_eq!(fs::read(logs.0.join(failure["picture"].as_str().unwrap())).unwrap(), SCREEN);
    let record = logs.0.join(format!("failed-vms/{incarnation}.json"));
    wait_until("its record is written", || record.exists());
    pool.stop(Stop::Destroy);

    let pool = world.start_with_logs(PoolConfig { size: 1, warm: 0, ..impatient() }, Some(&logs.0));
    let known = failures(&pool);
    let known = known.iter().find(|known| known["incarnation"] == incarnation).expect("it is known");
    for field in ["slot", "vm", "reason", "heartbeat", "uptime_seconds", "addresses", "picture"] {
        assert_eq!(known[field], failure[field], "{field}");
    }
    pool.stop(Stop::Destroy);
}

#[test]
fn the_screen_of_a_vm_that_failed_is_shown_on_the_host_itself_and_no_other_file() {
    let (world, logs) = (MockWorld::with_silent_guests(), LogDir::new());
    let pool = world.start_with_logs(impatient(), Some(&logs.0));
    let failure = examined(&pool);
    let path = format!("/api/failed-vms/{}", failure["incarnation"].as_str().unwrap());
    let shown = pool.get(&path);
    assert_eq!(shown.status, 200);
    assert!(shown.head.contains("Content-Type: image/png"), "{}", shown.head);
    assert_eq!(shown.body, String::from_utf8_lossy(SCREEN));

    fs::write(logs.0.join("failed-vms/0000000000000000.png"), "of nobody").unwrap();
    for name in ["0000000000000000", "", "..%2fsecret", "..\\secret", &format!("{}.png", &path[17..])] {
        assert_eq!(pool.get(&format!("/api/failed-vms/{name}")).status, 404, "{name}");
    }
    for header in [("Host", "attacker.example"), ("X-Forwarded-For", "192.0.2.9")] {
        let request =
            format!("GET {path} HTTP/1.1\r\n{}: {}\r\nConnection: close\r\n\r\n", header.0, header.1);
        assert_eq!(http::status(&http::talk(&pool.url, request)), 403, "{header:?}");
    }
    pool.stop(Stop::Destroy);
}

#[test]
fn where_failed_vms_are_kept_the_slot_goes_on_and_a_restart_leaves_the_kept_one_alone() {
    let world = MockWorld::with_silent_guests();
    let pool = world.start(PoolConfig { keep_failed: true, ..impatient() });
    let first = examined(&pool)["incarnation"].clone();
    wait_until("another VM is kept", || {
        world.kept().first().is_some_and(|kept| first != *kept.incarnation.as_str())
    });
    wait_until("the slot has a VM", || pool.incarnation(1).is_some());
    assert_eq!(world.kept().len(), 1);
    pool.stop(Stop::Destroy);

    let kept = world.kept();
    assert_eq!(kept[0].name, format!("failed-{}", kept[0].incarnation));
    let pool = world.start(settings(1, 0));
    wait_until("it has looked", || pool.phase(1) == Phase::Empty);
    assert_eq!((world.kept(), pool.count(Phase::Empty)), (kept, 1));
    pool.stop(Stop::Destroy);
}

#[test]
fn without_a_folder_for_logs_a_failure_is_known_without_its_screen() {
    let world = MockWorld::with_silent_guests();
    let pool = world.start_with_logs(impatient(), None);
    let failure = examined(&pool);
    assert_eq!(
        (&failure["picture"], &failure["missing"]),
        (&Value::Null, &"its screen, since LOG_DIR is not set".into())
    );
    pool.stop(Stop::Destroy);
}

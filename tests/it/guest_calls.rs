//! What a VM's guest may ask of the pool and tell it, and that nobody else may.

use crate::support::fake_guest::{FakeGuest, Image};
use crate::support::mock_pool::{MockPool, MockWorld, Phase, Stop, settings};
use crate::support::process::Process;
use crate::support::wait_until;
use hyperv_runner_pool::pool::slot::types::Instance;
use serde_json::Value;

/// A pool of two VMs whose guests are silent, so that the test speaks for them.
fn silent_guests() -> (MockWorld, MockPool) {
    let world = MockWorld::with_silent_guests();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Booting, 2);
    (world, pool)
}

#[test]
fn a_guest_gets_its_configuration_with_its_proof_and_may_ask_again_until_a_job_runs() {
    let (world, pool) = silent_guests();
    let guest = pool.guest(1);
    let answer = guest.fetch_config();
    assert_eq!(answer.status, 200);
    let config: Value = serde_json::from_str(&answer.body).unwrap();
    let Instance { vm, runner_name, .. } = pool.instance(1);
    // Its JIT configuration is in its key-values.
    assert_eq!(config["token"], "");
    assert_eq!(config["organization"], "octo");
    assert_eq!(config["repository"], "");
    assert_eq!(config["name"], runner_name);
    assert_eq!(runner_name, format!("runner-1-{}", vm.incarnation));
    assert!(world.runners().iter().any(|runner| runner.name == runner_name));
    assert_eq!(config["labels"], "self-hosted,Windows,X64,ephemeral");
    assert_eq!(config["registration"], "jit");
    assert_eq!(config["url"], "https://github.com/octo");
    assert_eq!(config["runner_group"], "Default");
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(guest.fetch_config().status, 200);
    assert_eq!(guest.report_started().status, 200);
    assert_eq!(guest.fetch_config().status, 409);
    pool.wait_for(Phase::Running, 1);
    assert_eq!(guest.fetch_config().status, 409);
    pool.stop(Stop::Destroy);
}

#[test]
fn without_the_vms_own_proof_for_this_route_nothing_is_answered_or_changed() {
    let (_world, pool) = silent_guests();
    let other_vm = pool.vm_secret(2);
    let older = pool.keys.vm_secret("runner-1", "00ff00ff00ff00ff").expose().to_string();
    for secret in ["", "00", &other_vm, &older, &pool.vm_secret(1)[1..]] {
        let stranger = FakeGuest::new(&pool.url, "runner-1", secret);
        let statuses = [stranger.fetch_config(), stranger.report_started(), stranger.report_complete()];
        assert_eq!(statuses.map(|answer| answer.status), [401; 3], "{secret:?}");
    }
    let guest = pool.guest(1);
    for (method, route) in [("GET", "config"), ("POST", "started"), ("POST", "complete")] {
        let path = format!("/api/runner-{route}/runner-1");
        let bare = format!("Bearer {}", guest.secret);
        let others = [guest.bearer(method, "/api/status"), guest.bearer("PUT", &path)];
        for proof in others.iter().chain([&bare]) {
            let headers = [("Authorization", &**proof)];
            assert_eq!(pool.request(method, &path, &headers, b"{}").status, 401, "{method} {path}: {proof}");
        }
        assert_eq!(pool.request(method, &path, &[], b"").status, 401);
        let basic = [("Authorization", "Basic cnVubmVyOng=")];
        assert_eq!(pool.request(method, &path, &basic, b"").status, 401);
    }
    assert_eq!(pool.count(Phase::Booting), 2);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_guest_is_answered_from_boot_to_replacement_and_its_late_report_does_not_reach_the_next_vm() {
    let (_world, pool) = silent_guests();
    let first = pool.incarnation(1);
    let guest = pool.guest(1);
    assert_eq!(guest.fetch_config().status, 200);
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(guest.report_started().status, 200);
    pool.wait_for(Phase::Running, 1);
    assert_eq!(guest.report_complete().body, "OK");
    wait_until("it is replaced", || pool.phase(1) == Phase::Booting && pool.incarnation(1) != first);
    // The guest takes a 401 for an end: the pool has given its VM up.
    assert_eq!(guest.report_complete().status, 401);
    assert_eq!(pool.phase(1), Phase::Booting);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_job_that_says_again_and_again_that_it_starts_fills_no_log() {
    let pool = Process::start_mock(&[("POOL_SIZE", "1"), ("MOCK_BOOT_SECONDS", "3600")]);
    pool.wait_for_state("runner-1", "booting");
    let guest = pool.guest(1);
    assert_eq!(guest.fetch_config().status, 200);
    let bearer = guest.bearer("POST", "/api/runner-started/runner-1");
    let mut connection = pool.connect();
    for number in 0..10_000 {
        let job = format!(r#"{{"run_id":"{number}","job":"job {number}","repository":"acme/r{number}"}}"#);
        let headers = [("Authorization", &*bearer)];
        let answer = connection.request("POST", "/api/runner-started/runner-1", &headers, job.as_bytes());
        assert_eq!(answer.status, 200);
    }
    let lines = || pool.log().matches("job 0").count();
    wait_until("the job is told", || lines() > 0);
    assert_eq!((lines(), pool.log().matches(" job ").count()), (1, 1), "{}", pool.log());
}

#[test]
fn the_status_says_how_old_the_image_of_the_guests_is() {
    let (_world, pool) = silent_guests();
    let today = hyperv_runner_pool::date::timestamp(std::time::SystemTime::now())[..10].to_string();
    let image = Image {
        runner_version: "2.338.0".into(),
        built: "2026-01-31".into(),
        windows_evaluation_end: Some(today.clone()),
    };
    assert_eq!(FakeGuest { image, ..pool.guest(1) }.fetch_config().status, 200);
    let status = pool.get("/api/status").json();
    assert_eq!(status["image"]["runner_version"], "2.338.0");
    assert_eq!(status["image"]["built"], "2026-01-31");
    let warnings = status["image"]["warnings"].to_string();
    assert!(warnings.contains(&format!("ended on {today}")), "{warnings}");
    pool.stop(Stop::Destroy);
}

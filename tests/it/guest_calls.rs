//! What the VMs may ask and tell, and who else may not.
use crate::support::http::Connection;
use crate::support::mock_pool::{MockPool, World, settings, world, world_with_jobs_of};
use crate::support::wait_until;
use hyperv_runner_pool::github::GitHub;
use hyperv_runner_pool::pool::slot::{Phase, Stop};
use hyperv_runner_pool::sim::hypervisor::Faults;
use std::time::Duration;

/// A pool of two VMs whose guests are silent, so that the test speaks for them.
fn silent_guests() -> (World, MockPool) {
    let world = world();
    world.hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Booting, 2);
    (world, pool)
}

fn bearer(secret: &str) -> [(&'static str, String); 1] {
    [("Authorization", format!("Bearer {secret}"))]
}

fn call(pool: &MockPool, method: &str, path: &str, secret: &str) -> (u16, String) {
    let headers = bearer(secret);
    let headers = [(headers[0].0, &*headers[0].1)];
    let answer = if method == "GET" { pool.get(path, &headers) } else { pool.post(path, &headers, b"{}") };
    (answer.status, answer.body)
}

#[test]
fn a_guest_gets_its_configuration_with_its_secret_and_may_ask_again_until_a_job_runs() {
    let (world, pool) = silent_guests();
    let secret = pool.vm_secret(1);
    let (status, body) = call(&pool, "GET", "/api/runner-config/runner-1", &secret);
    assert_eq!(status, 200);
    let config: serde_json::Value = serde_json::from_str(&body).unwrap();
    let id = world.github.runner_by_name(world.github.scope(), "runner-1").unwrap().unwrap().id;
    assert_eq!(config["token"], format!("simulated-jit-{id}"));
    assert_eq!(config["organization"], "octo");
    assert_eq!(config["repository"], "");
    assert_eq!(config["name"], "runner-1");
    assert_eq!(config["labels"], "self-hosted,Windows,X64,ephemeral");
    assert_eq!(config["registration"], "jit");
    assert_eq!(config["url"], "https://github.com/octo");
    assert_eq!(config["runner_group"], "Default");
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(call(&pool, "GET", "/api/runner-config/runner-1", &secret).0, 200);
    assert_eq!(call(&pool, "POST", "/api/runner-started/runner-1", &secret).0, 200);
    assert_eq!(call(&pool, "GET", "/api/runner-config/runner-1", &secret).0, 409);
    pool.wait_for(Phase::Running, 1);
    assert_eq!(call(&pool, "GET", "/api/runner-config/runner-1", &secret).0, 409);
    pool.stop(Stop::Destroy);
}

#[test]
fn without_the_vms_own_secret_of_this_incarnation_nothing_is_answered_or_changed() {
    let (_world, pool) = silent_guests();
    let other_vm = pool.vm_secret(2);
    let older = pool.keys.vm_secret("runner-1", "00ff00ff00ff00ff").expose().to_string();
    for (method, route) in [("GET", "config"), ("POST", "started"), ("POST", "complete")] {
        let path = format!("/api/runner-{route}/runner-1");
        for secret in ["", "00", &other_vm, &older, &pool.vm_secret(1)[1..]] {
            assert_eq!(call(&pool, method, &path, secret).0, 401, "{path} with {secret:?}");
        }
        let bare = if method == "GET" { pool.get(&path, &[]) } else { pool.post(&path, &[], b"") };
        assert_eq!(bare.status, 401);
        let basic = pool.get("/api/runner-config/runner-1", &[("Authorization", "Basic cnVubmVyOng=")]);
        assert_eq!(basic.status, 401);
    }
    assert_eq!(pool.snapshot().count(Phase::Booting), 2);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_vm_that_the_pool_does_not_have_is_not_found_whatever_its_name() {
    let (_world, pool) = silent_guests();
    let secret = pool.vm_secret(1);
    for name in ["runner-9", "RUNNER-1", "..", "%2e%2e", "runner-1%00", "..%2f..%2fetc%2fpasswd", ""] {
        let (status, _) = call(&pool, "GET", &format!("/api/runner-config/{name}"), &secret);
        assert_eq!(status, 404, "{name:?}");
    }
    let mut raw = Connection::open(&pool.url);
    for path in
        ["/api/runner-config/../../health", "/api/runner-config/runner-1/x", "//health", "/health/", "/"]
    {
        let response = raw.request("GET", path, &[("Authorization", &format!("Bearer {secret}"))], b"");
        assert_eq!(response.status, 404, "{path}");
    }
    pool.stop(Stop::Destroy);
}

#[test]
fn a_complete_callback_destroys_the_vm_and_a_repeated_one_does_not_reach_the_next() {
    let (world, pool) = silent_guests();
    let first = pool.incarnation(1);
    let secret = pool.vm_secret(1);
    assert_eq!(call(&pool, "GET", "/api/runner-config/runner-1", &secret).0, 200);
    assert_eq!(call(&pool, "POST", "/api/runner-started/runner-1", &secret).0, 200);
    assert_eq!(call(&pool, "POST", "/api/runner-complete/runner-1", &secret).1, "OK");
    wait_until("it is replaced", || pool.slot(1).phase == Phase::Booting && pool.incarnation(1) != first);
    assert_eq!(call(&pool, "POST", "/api/runner-complete/runner-1", &secret).0, 401);
    assert_eq!(pool.slot(1).phase, Phase::Booting);
    drop(world);
    pool.stop(Stop::Destroy);
}

#[test]
fn what_came_through_a_proxy_reaches_the_webhook_and_health_alone() {
    let (_world, pool) = silent_guests();
    let secret = format!("Bearer {}", pool.vm_secret(1));
    for header in [
        "X-Forwarded-For",
        "x-forwarded-proto",
        "Forwarded",
        "Tailscale-User-Login",
        "CF-Connecting-IP",
        "Cf-Ray",
        "Via",
        "X-Real-IP",
    ] {
        for path in ["/api/runner-config/runner-1", "/metrics", "/api/status", "/"] {
            let answer = pool.get(path, &[(header, "203.0.113.9"), ("Authorization", &secret)]);
            assert_eq!(answer.status, 403, "{path} with {header}");
        }
        for path in ["/api/runner-started/runner-1", "/api/runner-complete/runner-1"] {
            assert_eq!(pool.post(path, &[(header, "x"), ("Authorization", &secret)], b"{}").status, 403);
        }
        assert_eq!(pool.get("/health", &[(header, "203.0.113.9")]).status, 200);
        assert_eq!(pool.post("/webhook", &[(header, "203.0.113.9")], b"{}").status, 401);
    }
    assert_eq!(pool.snapshot().count(Phase::Booting), 2);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_wrong_method_says_which_is_right() {
    let (_world, pool) = silent_guests();
    let mut raw = Connection::open(&pool.url);
    let response = raw.request("GET", "/webhook", &[], b"");
    assert_eq!(response.status, 405);
    assert!(response.head.contains("Allow: POST"), "{}", response.head);
    assert_eq!(raw.request("DELETE", "/health", &[], b"").status, 405);
    assert_eq!(raw.request("POST", "/api/runner-config/runner-1", &[], b"").status, 405);
    pool.stop(Stop::Destroy);
}

#[test]
fn status_and_metrics_show_the_slots_and_no_secret() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(42);
    pool.wait_for(Phase::Running, 1);
    wait_until("the job is named", || pool.snapshot().slots.iter().any(|s| s.job_id == Some(42)));
    let status = pool.get("/api/status", &[]);
    let json = status.json();
    assert_eq!(json["slots"].as_array().unwrap().len(), 2);
    let running = json["slots"].as_array().unwrap().iter().find(|s| s["state"] == "running").unwrap();
    assert_eq!(running["job_id"], 42);
    assert!(running["vm"].as_str().unwrap().starts_with("runner-"));
    let metrics = pool.get("/metrics", &[]).body;
    assert!(metrics.contains("hyperv_runner_pool_slots{state=\"running\"} 1\n"), "{metrics}");
    assert!(metrics.contains("hyperv_runner_pool_slots{state=\"ready\"} 1\n"), "{metrics}");
    let health = pool.get("/health", &[]).body;
    for text in [&status.body, &metrics, &health] {
        for secret in
            [&pool.vm_secret(1), &pool.vm_secret(2), "simulated-jit", crate::support::mock_pool::SECRET]
        {
            assert!(!text.contains(secret), "{text}");
        }
    }
    pool.stop(Stop::Destroy);
}

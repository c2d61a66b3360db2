//! `/api/status`, `/metrics` and `/health`: what they show, and that they show no secret.

use crate::support::mock_pool::{MockWorld, Phase, SECRET, Stop, settings};
use crate::support::wait_until;
use serde_json::Value;

#[test]
fn the_status_names_every_slot_of_the_pool() {
    let world = MockWorld::new();
    let pool = world.start(settings(3, 2));
    pool.wait_for(Phase::Ready, 2);
    let status = pool.get("/api/status").json();
    let states: Vec<&str> =
        status["slots"].as_array().unwrap().iter().map(|slot| slot["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ready", "ready", "empty"]);
    assert_eq!(status["slots"][0]["incarnation"].as_str(), pool.incarnation(1).as_deref());
    assert_eq!(status["slots"][2]["vm"], Value::Null);
    pool.stop(Stop::Drain);
}

#[test]
fn status_and_metrics_show_the_slots_and_no_secret() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    pool.queue_job(42);
    pool.wait_for(Phase::Running, 1);
    wait_until("the job is named", || pool.slots().iter().any(|slot| slot.job_id == Some(42)));
    let status = pool.get("/api/status");
    let json = status.json();
    assert_eq!(json["slots"].as_array().unwrap().len(), 2);
    let running = json["slots"].as_array().unwrap().iter().find(|s| s["state"] == "running").unwrap();
    assert_eq!(running["job_id"], 42);
    assert!(running["vm"].as_str().unwrap().starts_with("runner-"));
    let metrics = pool.get("/metrics").body;
    assert!(metrics.contains("hyperv_runner_pool_slots{state=\"running\"} 1\n"), "{metrics}");
    assert!(metrics.contains("hyperv_runner_pool_slots{state=\"ready\"} 1\n"), "{metrics}");
    let health = pool.get("/health").body;
    for text in [&status.body, &metrics, &health] {
        for secret in [&pool.vm_secret(1), &pool.vm_secret(2), "simulated-jit", SECRET] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    pool.stop(Stop::Destroy);
}

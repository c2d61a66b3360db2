//! `/metrics` and the recent past in `/api/status`; and that docs/ knows every metric and no other.

use crate::support::mock_pool::{MockPool, MockWorld, Phase, Stop, settings};
use crate::support::wait_until_or;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PREFIX: &str = "hyperv_runner_pool_";

#[track_caller]
fn wait_for_metrics(pool: &MockPool, samples: &[&str]) {
    let mut metrics = String::new();
    wait_until_or(
        || {
            metrics = pool.get("/metrics").body;
            let has = |sample: &&str| metrics.contains(&format!("\n{PREFIX}{sample}\n"));
            samples.iter().all(has)
        },
        || format!("{samples:?} in\n{}", pool.get("/metrics").body),
    );
}

#[test]
fn a_job_from_its_queue_to_the_end_of_its_vm_is_counted_and_timed() {
    let world = MockWorld::new();
    let pool = world.start(settings(2, 2));
    pool.wait_for(Phase::Ready, 2);
    let counted = ["jobs_ended_total{outcome=\"ended\"} 0", "webhook_last_timestamp_seconds"];
    let before = pool.get("/metrics").body;
    assert!(before.contains(counted[0]), "every value of a label is there from the start: {before}");
    assert!(!before.contains(&format!("\n{PREFIX}{} ", counted[1])), "none has come: {before}");

    assert_eq!(pool.queue_job(42).body, "OK");
    wait_for_metrics(
        &pool,
        &[
            "jobs_ended_total{outcome=\"ended\"} 1",
            "jobs_concluded_total{conclusion=\"success\"} 1",
            "jobs_concluded_total{conclusion=\"failure\"} 0",
            "job_queue_duration_seconds_count 1",
            "job_duration_seconds_count 1",
            "job_duration_seconds_bucket{le=\"300\"} 1",
            "job_duration_seconds_bucket{le=\"+Inf\"} 1",
            "vms_ended_total{cause=\"runner_ended\"} 1",
            "vm_create_duration_seconds_count 3",
            "vm_boot_duration_seconds_count 3",
            "vm_destroy_duration_seconds_count 1",
            // Queued, in progress and completed.
            "webhooks_total{result=\"accepted\"} 3",
            "slot_failures_total{step=\"create\"} 0",
        ],
    );
    let metrics = pool.get("/metrics").body;
    assert!(metrics.contains(&format!("\n{PREFIX}webhook_last_timestamp_seconds ")), "{metrics}");

    let status = pool.get("/api/status").json();
    let job = &status["jobs"][0];
    for (what, is) in [
        ("id", json!(42)),
        ("run_id", json!(42)),
        ("name", json!("simulated")),
        ("repository", json!("octo/simulated")),
        ("url", json!("https://github.com/octo/simulated/actions/runs/42/job/42")),
        ("outcome", json!("success")),
    ] {
        assert_eq!(job[what], is, "{what}: {job}");
    }
    assert!(["wait_seconds", "run_seconds"].iter().all(|time| job[time].as_u64().unwrap() < 300), "{job}");
    let slot = job["slot"].as_u64().unwrap();
    assert_eq!(job["vm"], format!("runner-{slot}"));
    assert_eq!(job["incarnation"].as_str().unwrap().len(), 16);
    let times = ["queued_at", "started_at", "ended_at"].map(|time| job[time].as_str().unwrap().to_owned());
    assert!(times.is_sorted() && times[2].as_str() <= status["now"].as_str().unwrap(), "{times:?}");
    assert_eq!(status["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(status["failures"], json!([]));
    assert!(status["slots"][0]["boot_seconds"].is_f64(), "{status}");
    assert!(status["slots"][0]["create_seconds"].is_f64(), "{status}");
    pool.stop(Stop::Keep);
}

#[test]
fn what_fails_is_counted_by_step_and_told_with_its_reason() {
    let world = MockWorld::new();
    world.fail_creates(u32::MAX);
    let pool = world.start(settings(1, 1));
    wait_for_metrics(&pool, &["slots{state=\"empty\"} 1", "backing_off_slots 1", "failing_slots 1"]);
    let metrics = pool.get("/metrics").body;
    assert!(!metrics.contains(&format!("{PREFIX}slot_failures_total{{step=\"create\"}} 0")), "{metrics}");
    let status = pool.get("/api/status").json();
    let failure = &status["failures"][0];
    assert_eq!((&failure["slot"], &failure["vm"]), (&json!(1), &json!("runner-1")));
    assert!(failure["reason"].as_str().unwrap().starts_with("cannot create its VM: "), "{failure}");
    assert!(failure["at"].as_str() <= status["now"].as_str(), "{failure}");
    pool.stop(Stop::Destroy);
}

#[test]
fn a_webhook_counts_by_what_came_of_it() {
    let world = MockWorld::without_jobs();
    let pool = world.start(settings(1, 0));
    assert_eq!(pool.get("/api/status").json()["webhooks"]["last_at"], Value::Null);
    pool.queue_job(1);
    pool.queue_job(1);
    pool.deliver("broken", "{");
    let last = |pool: &MockPool| pool.get("/api/status").json()["webhooks"]["last_result"].take();
    assert_eq!(last(&pool), "invalid body");
    pool.request("POST", "/webhook", &[], b"{}");
    pool.request("POST", "/webhook", &[("X-Hub-Signature-256", "sha256=00")], b"{}");
    wait_for_metrics(
        &pool,
        &[
            "webhooks_total{result=\"accepted\"} 1",
            "webhooks_total{result=\"ignored\"} 0",
            "webhooks_total{result=\"invalid_body\"} 1",
            "webhooks_total{result=\"invalid_signature\"} 1",
            "webhooks_total{result=\"missing_signature\"} 1",
            "webhooks_total{result=\"repeated\"} 1",
        ],
    );
    let webhooks = pool.get("/api/status").json()["webhooks"].take();
    assert_eq!(webhooks["accepted"], 2, "a repeated one is no refusal");
    assert_eq!(
        webhooks["refused"],
        json!({ "invalid body": 1, "invalid signature": 1, "missing signature": 1 })
    );
    assert_eq!(last(&pool), "invalid signature");
    pool.queue_job(2);
    assert_eq!(last(&pool), "accepted");
    pool.stop(Stop::Keep);
}

/// The metrics' names, without their prefix.
fn metrics() -> BTreeSet<String> {
    let world = MockWorld::without_jobs();
    let pool = world.start(settings(1, 0));
    let text = pool.get("/metrics").body;
    pool.stop(Stop::Keep);
    let helped = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.strip_prefix(PREFIX));
    helped.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// The names that a text uses with their prefix. Those of a histogram's series count as its own.
fn used_in(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = &rest[..end];
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|series| name.strip_suffix(series));
        histogram.unwrap_or(name).to_owned()
    };
    text.split(PREFIX).skip(1).map(name).collect()
}

#[test]
fn the_documentation_explains_every_metric_and_no_other() {
    let text = include_str!("../../docs/monitoring.md");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let rows = cells.filter(|(_, rest)| {
        ["gauge", "counter", "histogram"].iter().any(|kind| rest.starts_with(&format!(" | {kind} |")))
    });
    let documented: BTreeSet<String> =
        rows.map(|(name, _)| name.split('{').next().unwrap().to_owned()).collect();
    assert_eq!(documented, metrics());
}

#[test]
fn the_dashboard_and_the_alerts_use_metrics_that_exist_and_each_alert_is_explained() {
    let metrics = metrics();
    let alerts = include_str!("../../docs/alerts.yml");
    let dashboard = include_str!("../../docs/grafana-dashboard.json");
    serde_json::from_str::<Value>(dashboard).expect("the dashboard is JSON");
    for text in [alerts, dashboard, include_str!("../data/alerts.yml")] {
        let used = used_in(text);
        assert!(used.len() > 5, "{used:?}");
        let unknown: Vec<_> = used.difference(&metrics).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    let explained = include_str!("../../docs/monitoring.md");
    let named: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")).collect();
    assert!(named.len() > 5, "{named:?}");
    for alert in &named {
        assert!(explained.contains(&format!("| `{alert}` |")), "{alert} is not explained");
    }
    assert_eq!(explained.matches("| `RunnerPool").count(), named.len(), "no alert that is gone");
}

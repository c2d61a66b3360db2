//! Webhook deliveries as GitHub sends them.

use super::http::{Connection, Response};
use hyperv_runner_pool::secret::Keys;
use serde_json::json;

/// The labels that the pools of these tests give to their runners.
pub const LABELS: [&str; 4] = ["self-hosted", "Windows", "X64", "ephemeral"];

/// The body of a `workflow_job` event for a job that these pools serve. `runner` is the id
/// and the name of the runner that has the job.
pub fn workflow_job(action: &str, job: u64, runner: Option<(u64, &str)>) -> String {
    json!({
        "action": action,
        "workflow_job": {
            "id": job,
            "labels": LABELS,
            "runner_id": runner.map(|(id, _)| id),
            "runner_name": runner.map(|(_, name)| name),
        },
        "repository": {"name": "widgets"},
    })
    .to_string()
}

/// Delivers a `workflow_job` event, signed.
pub fn deliver(connection: &mut Connection, keys: &Keys, delivery: &str, body: &str) -> Response {
    let headers = [
        ("X-GitHub-Event", "workflow_job"),
        ("X-GitHub-Delivery", delivery),
        ("X-Hub-Signature-256", &keys.sign_webhook(body.as_bytes())),
    ];
    connection.request("POST", "/webhook", &headers, body.as_bytes())
}

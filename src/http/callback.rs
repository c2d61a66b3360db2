//! What the VMs ask and tell: their configuration, a job's start, the runner's end.

use super::server::{Reply, Request};
use super::{Api, bearer};
use crate::config::RegistrationMode;
use crate::pool::Refusal;
use crate::pool::slot::types::Job;
use crate::secret::Proof;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Serialize)]
struct Config<'a> {
    token: &'a str,
    organization: &'a str,
    repository: &'a str,
    name: &'a str,
    labels: String,
    registration: &'a str,
    url: &'a str,
    runner_group: &'a str,
}

/// What the guest's hook says of the job.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Started {
    run_id: Value,
    job: Value,
    repository: Value,
}

/// What the guest says of its runner's end.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ended {
    exit_code: Value,
}

pub(super) fn config(api: &Api, request: &Request, vm_name: &str) -> Reply {
    let agent = request.headers.get("user-agent").unwrap_or_default();
    let config = match api.pool.runner_config(vm_name, proof(request), agent) {
        Ok(config) => config,
        Err(refusal) => return refused(api, refusal, vm_name),
    };
    let github = &api.github;
    let body = Config {
        token: config.token.expose(),
        organization: &github.org,
        repository: github.repo.as_deref().unwrap_or(""),
        name: &config.runner_name,
        labels: github.labels.join(","),
        registration: match github.registration {
            RegistrationMode::Jit => "jit",
            RegistrationMode::Token => "token",
        },
        url: &github.scope().web_url(),
        runner_group: &github.runner_group,
    };
    match serde_json::to_string(&body) {
        Ok(body) => Reply::json(200, body).with_header("Cache-Control", "no-store"),
        Err(_) => Reply::text(500, "The configuration cannot be written as JSON"),
    }
}

pub(super) fn started(api: &Api, request: &Request, vm_name: &str) -> Reply {
    // A job that no longer says what it is has still started.
    let started: Started = serde_json::from_slice(request.body).unwrap_or_default();
    let job = Job {
        run_id: printable(&started.run_id).and_then(|id| id.parse().ok()),
        name: printable(&started.job),
        repository: printable(&started.repository),
        ..Job::default()
    };
    match api.pool.job_started(vm_name, proof(request), job) {
        Ok(()) => Reply::text(200, "OK"),
        Err(refusal) => refused(api, refusal, vm_name),
    }
}

pub(super) fn complete(api: &Api, request: &Request, vm_name: &str) -> Reply {
    let ended: Ended = serde_json::from_slice(request.body).unwrap_or_default();
    match api.pool.runner_ended(vm_name, proof(request), ended.exit_code.as_i64()) {
        Ok(()) => Reply::text(200, "OK"),
        Err(refusal) => refused(api, refusal, vm_name),
    }
}

fn proof<'a>(request: &Request<'a>) -> Option<Proof<'a>> {
    let digest = bearer(request)?.as_bytes();
    Some(Proof { method: request.method.as_str(), path: request.path, digest })
}

fn refused(api: &Api, refusal: Refusal, vm_name: &str) -> Reply {
    match refusal {
        Refusal::NotFound => Reply::text(404, "VM not found"),
        Refusal::Unauthorized => {
            api.note_refusal(format!("wrong or missing proof for {}", vm_name.escape_debug()));
            Reply::text(401, "Missing or wrong proof of the VM").with_header("WWW-Authenticate", "Bearer")
        }
        Refusal::Answered => Reply::text(409, "This VM gets no second configuration"),
        Refusal::NotReady => Reply::text(503, "This VM is not ready to be configured: try again")
            .with_header("Retry-After", "2"),
    }
}

/// A value that a job made up, fit for one place in one line of the log; `None` if nothing is left of it.
fn printable(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_./ ".contains(*c);
    Some(text.chars().take(100).filter(is_plain).collect::<String>()).filter(|text| !text.trim().is_empty())
}

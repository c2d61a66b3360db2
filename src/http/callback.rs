//! What the VMs ask and tell: their configuration, a job's start, the runner's end.

use super::Api;
use super::gate::{Reply, Request};
use crate::pool::Refusal;
use log::{info, warn};
use serde::{Deserialize, Serialize};

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

/// What the guest's hook says of the job. For the log alone.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Started {
    run_id: serde_json::Value,
    job: serde_json::Value,
    repository: serde_json::Value,
}

pub(super) fn config(api: &Api, request: &Request, vm_name: &str) -> Reply {
    let config = match api.pool.runner_config(vm_name, bearer(request)) {
        Ok(config) => config,
        Err(refusal) => return refused(api, refusal, vm_name, request),
    };
    if let Some(agent) = request.headers.get("user-agent") {
        api.pool.image_seen(&String::from_utf8_lossy(agent));
    }
    let facts = &api.facts;
    let body = Config {
        token: config.credential.expose(),
        organization: &facts.organization,
        repository: facts.repository.as_deref().unwrap_or(""),
        name: &config.runner_name,
        labels: facts.labels.join(","),
        registration: facts.registration,
        url: &facts.url,
        runner_group: &facts.runner_group,
    };
    match serde_json::to_string(&body) {
        Ok(body) => Reply::json(200, body).with_header("Cache-Control", "no-store"),
        Err(_) => Reply::text(500, "The configuration cannot be written as JSON"),
    }
}

pub(super) fn started(api: &Api, request: &Request, vm_name: &str) -> Reply {
    match api.pool.runner_started(vm_name, bearer(request)) {
        Ok(()) => {
            // A job that no longer says what it is has still started.
            let job: Started = serde_json::from_slice(request.body).unwrap_or_default();
            info!(
                "{vm_name}: job {} of run {} in {}",
                tame(&job.job),
                tame(&job.run_id),
                tame(&job.repository)
            );
            Reply::text(200, "OK")
        }
        Err(refusal) => refused(api, refusal, vm_name, request),
    }
}

pub(super) fn complete(api: &Api, request: &Request, vm_name: &str) -> Reply {
    match api.pool.runner_complete(vm_name, bearer(request)) {
        Ok(()) => Reply::text(200, "OK"),
        Err(refusal) => refused(api, refusal, vm_name, request),
    }
}

fn bearer<'a>(request: &Request<'a>) -> Option<&'a [u8]> {
    let value = request.headers.get("authorization")?;
    let (scheme, secret) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| secret.trim_ascii())
}

fn refused(api: &Api, refusal: Refusal, vm_name: &str, request: &Request) -> Reply {
    match refusal {
        Refusal::NotFound => Reply::text(404, "VM not found"),
        Refusal::Unauthorized => {
            api.note_refusal(|| {
                warn!("{}: wrong or missing secret for {}", request.peer, vm_name.escape_debug())
            });
            Reply::text(401, "Missing or wrong VM secret").with_header("WWW-Authenticate", "Bearer")
        }
        Refusal::JobRuns => Reply::text(409, "This VM has had its job: it gets no second configuration"),
        Refusal::NotReady => {
            Reply::text(503, "The pool is starting: try again").with_header("Retry-After", "2")
        }
    }
}

/// A value that a job made up, fit for one place in one line of the log.
fn tame(value: &serde_json::Value) -> String {
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let tame: String =
        text.chars().take(100).filter(|c| c.is_ascii_alphanumeric() || "-_./ ".contains(*c)).collect();
    if tame.is_empty() { "(unnamed)".into() } else { tame }
}

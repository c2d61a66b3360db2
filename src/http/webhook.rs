//! `POST /webhook`: GitHub's deliveries, from signature to pool event.

use super::Api;
use super::server::{Reply, Request};
use crate::pool::history::{Counts, zeros};
use crate::pool::slot::types::{Job, JobEvent};
use crate::sync::unpoisoned;
use crate::text::one_line;
use log::{debug, info};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// How many deliveries are remembered as seen.
const REMEMBERED: usize = 8192;

/// The part of a `workflow_job` delivery that the pool acts on.
///
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job>
#[derive(Debug, Deserialize)]
struct Delivery {
    action: String,
    workflow_job: WorkflowJob,
    repository: Option<Repository>,
}

#[derive(Debug, Deserialize)]
struct WorkflowJob {
    id: u64,
    run_id: Option<u64>,
    name: Option<String>,
    html_url: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
    runner_id: Option<u64>,
    runner_name: Option<String>,
    conclusion: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    name: Option<String>,
    full_name: Option<String>,
}

/// What can come of a webhook.
const RESULTS: [&str; 6] =
    ["accepted", "ignored", "repeated", "missing_signature", "invalid_signature", "invalid_body"];

/// The webhooks since the start.
#[derive(Clone, Debug)]
pub(super) struct Webhooks {
    pub by_result: Counts,
    /// When the last one came, and what came of it.
    pub last: Option<(SystemTime, &'static str)>,
    /// When the last one with a valid signature came.
    pub last_valid: Option<SystemTime>,
}

impl Default for Webhooks {
    fn default() -> Webhooks {
        Webhooks { by_result: zeros(&RESULTS), last: None, last_valid: None }
    }
}

impl Webhooks {
    /// The results of webhooks that were not refused.
    pub const ACCEPTED: [&str; 3] = ["accepted", "ignored", "repeated"];

    fn note(&mut self, result: &'static str, is_valid: bool) {
        let now = SystemTime::now();
        *self.by_result.entry(result).or_default() += 1;
        self.last = Some((now, result));
        if is_valid {
            self.last_valid = Some(now);
        }
    }
}

/// The deliveries seen last, by a hash of their ids, so that ids of any length cost the same.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    hasher: RandomState,
    seen: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Deliveries {
    /// Whether this id has not been seen, which it has from now on.
    fn is_new(&mut self, id: &str) -> bool {
        let hash = self.hasher.hash_one(id);
        if !self.seen.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

pub(super) fn handle(api: &Api, request: &Request) -> Reply {
    let Some(signature) = request.headers.get("x-hub-signature-256") else {
        return refuse(api, 401, "missing_signature", "Missing signature");
    };
    if !api.keys.webhook_signature_is_valid(request.body, signature.as_bytes()) {
        return refuse(api, 401, "invalid_signature", "Invalid signature");
    }
    let Some(json) = payload(request.body) else {
        return refuse(api, 400, "invalid_body", "The form has no payload");
    };
    // GitHub names the event in a header. A sender that leaves it out is taken at its body.
    let event = request.headers.get("x-github-event").unwrap_or("workflow_job");
    if event != "workflow_job" {
        return match serde_json::from_slice::<IgnoredAny>(&json) {
            Ok(_) => {
                if event == "ping" {
                    info!("webhook: GitHub's ping came through, with the right signature");
                }
                debug!("webhook: ignoring event {}", event.escape_debug());
                accept(api, "ignored", "Ignored")
            }
            Err(_) => refuse(api, 400, "invalid_body", "The body is not valid JSON"),
        };
    }
    let delivery: Delivery = match serde_json::from_slice(&json) {
        Ok(delivery) => delivery,
        Err(error) if error.is_data() => {
            refuse(api, 400, "invalid_body", "Not a workflow_job payload");
            return Reply::text(400, format!("Not a workflow_job payload: {error}"));
        }
        Err(_) => return refuse(api, 400, "invalid_body", "The body is not valid JSON"),
    };
    if let Some(id) = request.headers.get("x-github-delivery") {
        // Nothing after this can fail, so a delivery that GitHub sends again because of an error is not taken for a repeat.
        let mut deliveries = unpoisoned(&api.deliveries);
        if !deliveries.is_new(id) {
            return accept(api, "repeated", "Repeated delivery, ignored");
        }
    }
    dispatch(api, delivery);
    accept(api, "accepted", "OK")
}

fn accept(api: &Api, result: &'static str, text: &'static str) -> Reply {
    unpoisoned(&api.webhooks).note(result, true);
    Reply::text(200, text)
}

fn refuse(api: &Api, status: u16, result: &'static str, why: &'static str) -> Reply {
    // A body is read only after its signature.
    unpoisoned(&api.webhooks).note(result, result == "invalid_body");
    api.note_refusal(format!("webhook: {why}"));
    Reply::text(status, why)
}

/// The JSON of a delivery: the body itself, or the field `payload` of a form,
/// GitHub's other content type. `None` if the form has none.
///
/// <https://docs.github.com/en/webhooks/using-webhooks/creating-webhooks#creating-a-repository-webhook>
fn payload(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    let is_form = body.first().is_some_and(u8::is_ascii_alphabetic) && body.contains(&b'=');
    // No JSON object or array begins with a letter.
    if !is_form {
        return Some(Cow::Borrowed(body));
    }
    let field = body.split(|&b| b == b'&').find_map(|field| field.strip_prefix(b"payload="))?;
    let mut json = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        let mut hex = || Some((*bytes.next()? as char).to_digit(16)? as u8);
        json.push(match byte {
            b'+' => b' ',
            b'%' => hex()? << 4 | hex()?,
            other => other,
        });
    }
    Some(Cow::Owned(json))
}

fn dispatch(api: &Api, delivery: Delivery) {
    let job = delivery.workflow_job;
    let job_id = job.id;
    let (repository, full_name) = delivery.repository.map_or((None, None), |r| (r.name, r.full_name));
    if delivery.action == "queued" {
        let here = match (&api.github.repo, &repository) {
            (Some(ours), Some(theirs)) => ours.eq_ignore_ascii_case(theirs),
            _ => true,
        };
        if here && api.pool.job_queued(job_id, &job.labels) {
            debug!("job {job_id} is queued");
            api.listen("queued", job_id, &job.labels);
        }
        return;
    }
    api.listen(&delivery.action, job_id, &job.labels);
    let event = JobEvent {
        job: Job {
            id: Some(job_id),
            run_id: job.run_id,
            name: job.name.map(|name| one_line(&name, 200)),
            repository: full_name.or(repository).map(|name| one_line(&name, 200)),
            url: job.html_url.map(|url| one_line(&url, 400)),
            queued_at: None,
            conclusion: job.conclusion.as_deref().map(Job::conclusion),
        },
        runner_id: job.runner_id.filter(|&id| id != 0),
        runner_name: job.runner_name.filter(|name| !name.is_empty()),
    };
    match delivery.action.as_str() {
        "in_progress" => api.pool.job_in_progress(event),
        "completed" => api.pool.job_completed(event),
        // A job that waits for a deployment's approval needs no runner yet.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_new_once_and_the_oldest_is_forgotten_first() {
        let mut deliveries = Deliveries::default();
        assert!(deliveries.is_new("first"));
        assert!(!deliveries.is_new("first"));
        for i in 0..REMEMBERED {
            assert!(deliveries.is_new(&i.to_string()));
        }
        assert!(deliveries.is_new("first"));
        assert_eq!(deliveries.seen.len(), deliveries.order.len());
    }

    #[test]
    fn a_forms_payload_is_decoded_and_json_is_left_as_it_is() {
        assert_eq!(payload(br#"{"a":"x=%7B"}"#).as_deref(), Some(&br#"{"a":"x=%7B"}"#[..]));
        assert_eq!(payload(b"payload=%7B%22a%22%3A+1%7D").as_deref(), Some(&br#"{"a": 1}"#[..]));
        assert_eq!(payload(b"x=1&payload=%5b%5D").as_deref(), Some(&b"[]"[..]));
        assert_eq!(payload(b"x=1"), None);
        assert_eq!(payload(b"payload=%7"), None);
    }
}

//! `POST /webhook`: GitHub's deliveries, from signature to pool event.

use super::Api;
use super::gate::{Reply, Request};
use crate::pool::slot::JobNotice;
use log::{debug, info};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::PoisonError;

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
    #[serde(default)]
    labels: Vec<String>,
    runner_id: Option<u64>,
    runner_name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    name: Option<String>,
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
    fn is_new(&mut self, id: &[u8]) -> bool {
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
        return Reply::text(401, "Missing signature");
    };
    if !api.keys.webhook_signature_is_valid(request.body, signature) {
        return Reply::text(401, "Invalid signature");
    }
    // GitHub names the event in a header. A sender that leaves it out is taken at its body.
    let event = request.headers.get("x-github-event").unwrap_or(b"workflow_job");
    if event != b"workflow_job" {
        return match serde_json::from_slice::<IgnoredAny>(request.body) {
            Ok(_) => {
                debug!("webhook: ignoring event {}", String::from_utf8_lossy(event).escape_debug());
                Reply::text(200, "Ignored")
            }
            Err(_) => bad_json(request.body),
        };
    }
    let delivery: Delivery = match serde_json::from_slice(request.body) {
        Ok(delivery) => delivery,
        Err(error) if error.is_data() => {
            return Reply::text(400, format!("Not a workflow_job payload: {error}"));
        }
        Err(_) => return bad_json(request.body),
    };
    if let Some(id) = request.headers.get("x-github-delivery") {
        // Nothing after this can fail, so a delivery that GitHub sends again because of an error is not taken for a repeat.
        let mut deliveries = api.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        if !deliveries.is_new(id) {
            return Reply::text(200, "Repeated delivery, ignored");
        }
    }
    dispatch(api, delivery);
    Reply::text(200, "OK")
}

fn dispatch(api: &Api, delivery: Delivery) {
    let job = delivery.workflow_job;
    let job_id = job.id;
    let notice = JobNotice {
        job_id,
        runner_id: job.runner_id.filter(|&id| id != 0),
        runner_name: job.runner_name.filter(|name| !name.is_empty()),
    };
    match delivery.action.as_str() {
        "queued" => {
            let here = match (&api.facts.repository, delivery.repository.and_then(|r| r.name)) {
                (Some(ours), Some(theirs)) => ours.eq_ignore_ascii_case(&theirs),
                _ => true,
            };
            if here && api.pool.job_queued(job_id, &job.labels) {
                info!("job {job_id} is queued");
                if let Some(simulation) = &api.simulation {
                    simulation.offer(job_id, job.labels);
                }
            } else {
                debug!("job {job_id} is queued for other runners, or was before");
            }
        }
        "in_progress" => {
            if let Some(simulation) = &api.simulation {
                simulation.withdraw(job_id);
            }
            api.pool.job_in_progress(notice);
        }
        "completed" => {
            if let Some(simulation) = &api.simulation {
                simulation.withdraw(job_id);
            }
            api.pool.job_completed(notice);
        }
        // A job that waits for a deployment's approval needs no runner yet.
        _ => {}
    }
}

fn bad_json(body: &[u8]) -> Reply {
    if body.starts_with(b"payload=") {
        return Reply::text(
            400,
            "The body is a form: set the webhook's content type to application/json in GitHub's settings",
        );
    }
    Reply::text(400, "The body is not valid JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_new_once_and_the_oldest_is_forgotten_first() {
        let mut deliveries = Deliveries::default();
        assert!(deliveries.is_new(b"first"));
        assert!(!deliveries.is_new(b"first"));
        for i in 0..REMEMBERED {
            assert!(deliveries.is_new(&i.to_le_bytes()));
        }
        assert!(deliveries.is_new(b"first"));
        assert_eq!(deliveries.seen.len(), deliveries.order.len());
    }
}

//! `/health` and `/api/status`: the pool's snapshot for machines.

use super::Api;
use super::server::Reply;
use super::webhook::Webhooks;
use crate::config::Intake;
use crate::date;
use crate::pool::health::{Reach, Trouble};
use crate::pool::history::{Counts, EndedJob};
use crate::pool::slot::types::{Phase, SlotSnapshot};
use crate::pool::{Millis, Snapshot, image_age, wall_time};
use crate::sync::unpoisoned;
use crate::workers::failed_vms::FailureRecord;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Public through a tunnel, so it says nothing of the host: no path, no name, no error's text.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    vms: usize,
    ready: usize,
    running: usize,
    size: u32,
    creating: usize,
    booting: usize,
    destroying: usize,
    empty: usize,
    recovering: usize,
    jobs_waiting: usize,
    failing: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<&'static str>,
    version: &'static str,
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    health: Health,
    jobs_completed: u64,
    vms_ended: &'a Counts,
    github_error: Option<&'a str>,
    hypervisor_error: Option<&'a str>,
    free_bytes: Option<u64>,
    token_expires: Option<String>,
    image: image_age::Report,
    intake: &'static str,
    /// With `INTAKE=webhook`.
    webhooks: Option<WebhooksStatus>,
    /// With `INTAKE=scaleset`.
    queue: Option<QueueStatus<'a>>,
    slots: Vec<SlotStatus<'a>>,
    /// Those that ended last, the newest first.
    jobs: Vec<EndedJobStatus>,
    /// Those that came last, the newest first.
    failures: Vec<FailureRecord>,
    now: String,
}

#[derive(Serialize)]
struct WebhooksStatus {
    accepted: u64,
    /// By reason.
    refused: BTreeMap<String, u64>,
    last_at: Option<String>,
    /// `accepted`, or the reason of the refusal.
    last_result: Option<String>,
}

/// A scale set's queue.
#[derive(Serialize)]
struct QueueStatus<'a> {
    /// The scale set's name.
    name: &'a str,
    connected_since: Option<String>,
    last_message_at: Option<String>,
    /// Jobs as GitHub counts them, those that run among them.
    assigned: u32,
    running: u32,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct SlotStatus<'a> {
    slot: u32,
    state: &'static str,
    /// How long it has been in this state, in seconds.
    for_seconds: i64,
    vm: Option<&'a str>,
    incarnation: Option<&'a str>,
    runner: Option<&'a str>,
    runner_id: Option<u64>,
    create_seconds: Option<f64>,
    boot_seconds: Option<f64>,
    job: Option<JobStatus<'a>>,
    retiring: Option<&'static str>,
    paused: bool,
    guest_stage: Option<&'a str>,
    guest_error: Option<&'a str>,
    failures: u32,
    /// In how many seconds it tries again what failed.
    retry_seconds: Option<i64>,
    reason: Option<&'a str>,
    jobs_completed: u64,
}

#[derive(Serialize)]
struct JobStatus<'a> {
    id: Option<u64>,
    run_id: Option<u64>,
    name: Option<&'a str>,
    repository: Option<&'a str>,
    url: Option<&'a str>,
    /// How long it has been running, in seconds of the VM's own clock.
    for_seconds: Option<i64>,
}

#[derive(Serialize)]
struct EndedJobStatus {
    id: Option<u64>,
    run_id: Option<u64>,
    name: Option<String>,
    repository: Option<String>,
    url: Option<String>,
    slot: u32,
    vm: String,
    incarnation: String,
    /// When it was first heard of as queued, if it was.
    queued_at: Option<String>,
    started_at: String,
    ended_at: String,
    wait_seconds: Option<i64>,
    run_seconds: i64,
    /// How it ended by GitHub's word; until that comes, how its VM ended for it.
    outcome: &'static str,
}

pub(super) fn health(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let status = if snapshot.health.troubles.is_empty() { 200 } else { 503 };
    json(status, &health_of(&snapshot))
}

pub(super) fn status(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let (jobs, failures) = api.pool.history();
    let utc = SystemTime::now();
    let time_of = |at: Millis| date::timestamp(wall_time(at, snapshot.now, utc));
    json(
        200,
        &Status {
            health: health_of(&snapshot),
            jobs_completed: snapshot.jobs_completed(),
            vms_ended: &snapshot.tally.vms_ended,
            github_error: error(&snapshot.github),
            hypervisor_error: error(&snapshot.hypervisor),
            free_bytes: snapshot.free_bytes,
            token_expires: api.pool.token_expires().map(date::timestamp),
            image: api.pool.image_report(),
            intake: api.github.intake.word(),
            webhooks: (api.github.intake == Intake::Webhook)
                .then(|| webhooks_status(&unpoisoned(&api.webhooks))),
            queue: snapshot.queue.as_ref().map(|queue| QueueStatus {
                name: &api.github.scale_set,
                connected_since: queue.connected_since.map(time_of),
                last_message_at: queue.last_message.map(time_of),
                assigned: queue.statistics.assigned,
                running: queue.statistics.running,
                error: error(&queue.reach),
            }),
            slots: snapshot.slots.iter().map(|slot| slot_status(slot, snapshot.now)).collect(),
            jobs: jobs.into_iter().map(|ended| ended_job_status(ended, time_of)).collect(),
            failures: failures.iter().map(|failure| FailureRecord::new(failure, snapshot.now)).collect(),
            now: date::timestamp(utc),
        },
    )
}

/// The screen of a VM that is among the last failures.
pub(super) fn picture(api: &Api, incarnation: &str) -> Reply {
    match api.pool.picture(incarnation) {
        // It never changes, and the page shows it anew every few seconds.
        Some(png) => Reply::png(png).with_header("Cache-Control", "private, max-age=3600"),
        None => Reply::text(404, "No picture is kept of this VM"),
    }
}

fn webhooks_status(webhooks: &Webhooks) -> WebhooksStatus {
    let reason = |result: &str| result.replace('_', " ");
    let accepted = |result: &str| Webhooks::ACCEPTED.contains(&result);
    let (accepted_counts, refused): (Vec<_>, Vec<_>) =
        webhooks.by_result.iter().partition(|(result, _)| accepted(result));
    WebhooksStatus {
        accepted: accepted_counts.into_iter().map(|(_, count)| count).sum(),
        refused: refused.into_iter().map(|(result, count)| (reason(result), *count)).collect(),
        last_at: webhooks.last.map(|(at, _)| date::timestamp(at)),
        last_result: webhooks.last.map(|(_, r)| if accepted(r) { "accepted".into() } else { reason(r) }),
    }
}

fn ended_job_status(ended: EndedJob, time_of: impl Fn(Millis) -> String) -> EndedJobStatus {
    let outcome = ended.job.conclusion.unwrap_or(ended.outcome);
    let EndedJob { job, slot, vm, started, ended, .. } = ended;
    EndedJobStatus {
        id: job.id,
        run_id: job.run_id,
        name: job.name,
        repository: job.repository,
        url: job.url,
        slot,
        vm: vm.name,
        incarnation: vm.incarnation,
        queued_at: job.queued_at.map(&time_of),
        started_at: time_of(started),
        ended_at: time_of(ended),
        wait_seconds: job.queued_at.map(|queued| (started - queued).max(0) / 1000),
        run_seconds: (ended - started) / 1000,
        outcome,
    }
}

fn slot_status(slot: &SlotSnapshot, now: i64) -> SlotStatus<'_> {
    let instance = slot.instance.as_ref();
    SlotStatus {
        slot: slot.number,
        state: slot.phase.name(),
        for_seconds: (now - slot.since) / 1000,
        vm: instance.map(|instance| instance.vm.name.as_str()),
        incarnation: instance.map(|instance| instance.vm.incarnation.as_str()),
        runner: instance.map(|instance| instance.runner_name.as_str()),
        runner_id: instance.and_then(|instance| instance.runner_id),
        create_seconds: slot.created_in.map(seconds),
        boot_seconds: slot.booted_in.map(seconds),
        job: slot.job.as_ref().map(|job| JobStatus {
            id: job.id,
            run_id: job.run_id,
            name: job.name.as_deref(),
            repository: job.repository.as_deref(),
            url: job.url.as_deref(),
            for_seconds: slot.job_time.map(|time| time / 1000),
        }),
        retiring: slot.retiring.map(|reason| reason.text()),
        paused: slot.paused,
        guest_stage: slot.guest.as_ref().map(|guest| guest.stage.as_str()),
        guest_error: slot.guest.as_ref().and_then(|guest| guest.last_error.as_deref()),
        failures: slot.failures,
        retry_seconds: slot.retry_at.map(|at| (at - now + 999) / 1000),
        reason: slot.reason.as_deref(),
        jobs_completed: slot.jobs_completed,
    }
}

fn seconds(time: Millis) -> f64 {
    time as f64 / 1000.0
}

fn error(reach: &Reach) -> Option<&str> {
    reach.failing.as_ref().map(|(_, why)| why.as_str())
}

fn health_of(snapshot: &Snapshot) -> Health {
    Health {
        status: snapshot.health.name(),
        vms: snapshot.vms(),
        ready: snapshot.count(Phase::Ready),
        running: snapshot.count(Phase::Running),
        size: snapshot.size,
        creating: snapshot.count(Phase::Creating),
        booting: snapshot.count(Phase::Booting),
        destroying: snapshot.count(Phase::Destroying),
        empty: snapshot.count(Phase::Empty),
        recovering: snapshot.count(Phase::Recovering),
        jobs_waiting: snapshot.jobs_waiting,
        failing: snapshot.failing().count(),
        reasons: snapshot.health.troubles.iter().map(|trouble: &Trouble| trouble.text()).collect(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

fn json(status: u16, value: &impl Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(text) => Reply::json(status, text).with_header("Cache-Control", "no-store"),
        Err(_) => Reply::text(500, "The answer cannot be written as JSON"),
    }
}

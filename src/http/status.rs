//! `/health`, `/metrics` and `/api/status`: the pool's snapshot for machines.

use super::Api;
use super::server::Reply;
use crate::date;
use crate::pool::health::{Reach, Trouble};
use crate::pool::slot::types::{Phase, SlotSnapshot};
use crate::pool::{Snapshot, image_age};
use crate::sync::unpoisoned;
use serde::Serialize;
use std::fmt::Write;
use std::time::UNIX_EPOCH;

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
    vms_ended: &'a std::collections::BTreeMap<&'static str, u64>,
    github_error: Option<&'a str>,
    hypervisor_error: Option<&'a str>,
    free_bytes: Option<u64>,
    token_expires: Option<String>,
    image: image_age::Report,
    webhooks: super::Webhooks,
    slots: Vec<SlotStatus<'a>>,
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
    job: Option<JobStatus<'a>>,
    retiring: Option<&'static str>,
    paused: bool,
    guest_stage: Option<&'a str>,
    guest_error: Option<&'a str>,
    failures: u32,
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

pub(super) fn health(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let status = if snapshot.health.troubles.is_empty() { 200 } else { 503 };
    json(status, &health_of(&snapshot))
}

pub(super) fn status(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    json(
        200,
        &Status {
            health: health_of(&snapshot),
            jobs_completed: snapshot.jobs_completed(),
            vms_ended: &snapshot.ended,
            github_error: error(&snapshot.github),
            hypervisor_error: error(&snapshot.hypervisor),
            free_bytes: snapshot.free_bytes,
            token_expires: api.pool.token_expires().map(date::timestamp),
            image: api.pool.image_report(),
            webhooks: unpoisoned(&api.webhooks).clone(),
            slots: snapshot.slots.iter().map(|slot| slot_status(slot, snapshot.now)).collect(),
        },
    )
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
        reason: slot.reason.as_deref(),
        jobs_completed: slot.jobs_completed,
    }
}

fn error(reach: &Reach) -> Option<&str> {
    reach.failing.as_ref().map(|(_, why)| why.as_str())
}

/// The Prometheus text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>
pub(super) fn metrics(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let webhooks = unpoisoned(&api.webhooks).clone();
    let mut text = String::with_capacity(4096);
    use Phase::{Booting, Creating, Destroying, Empty, Ready, Recovering, Running};
    let phases = [Recovering, Empty, Creating, Booting, Ready, Running, Destroying];
    let phases = phases.map(|phase| (phase.name(), snapshot.count(phase) as u64));
    series(&mut text, "slots", "gauge", "Slots by state.", "state", phases);
    let ended = snapshot.ended.iter().map(|(cause, count)| (*cause, *count));
    series(&mut text, "vms_ended_total", "counter", "VMs that ended, by cause.", "cause", ended);
    let refused = webhooks.refused.iter().map(|(why, count)| (*why, *count));
    series(&mut text, "webhooks_refused_total", "counter", "Webhooks refused, by reason.", "reason", refused);
    let expires = api.pool.token_expires().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let values = [
        ("size", "gauge", "POOL_SIZE.", u64::from(snapshot.size)),
        (
            "degraded",
            "gauge",
            "Whether /health answers 503.",
            u64::from(!snapshot.health.troubles.is_empty()),
        ),
        (
            "failing_slots",
            "gauge",
            "Slots that do not serve and whose last try failed.",
            snapshot.failing().count() as u64,
        ),
        (
            "jobs_waiting",
            "gauge",
            "Queued jobs that this pool serves and no runner has.",
            snapshot.jobs_waiting as u64,
        ),
        (
            "jobs_completed_total",
            "counter",
            "Jobs seen to their end since the start.",
            snapshot.jobs_completed(),
        ),
        ("webhooks_accepted_total", "counter", "Webhooks with a valid signature.", webhooks.accepted),
        (
            "broken_invariants_total",
            "counter",
            "Defects of this program that it has noticed.",
            snapshot.broken,
        ),
        (
            "github_reachable",
            "gauge",
            "Whether the last call to GitHub succeeded.",
            u64::from(snapshot.github.failing.is_none()),
        ),
        (
            "hypervisor_reachable",
            "gauge",
            "Whether the last list of VMs succeeded.",
            u64::from(snapshot.hypervisor.failing.is_none()),
        ),
    ];
    let optional = [
        ("free_bytes", "gauge", "Bytes free where the VMs' disks are.", snapshot.free_bytes),
        (
            "token_expires_seconds",
            "gauge",
            "When the token expires, in seconds since 1970.",
            expires.map(|at| at.as_secs()),
        ),
    ];
    let optional =
        optional.into_iter().filter_map(|(name, kind, help, value)| Some((name, kind, help, value?)));
    for (name, kind, help, value) in values.into_iter().chain(optional) {
        metric(&mut text, name, kind, help);
        let _ = writeln!(text, "hyperv_runner_pool_{name} {value}");
    }
    Reply::new(200, "text/plain; version=0.0.4", text)
}

fn series<'a>(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'a str, u64)>,
) {
    metric(text, name, kind, help);
    for (value, count) in values {
        let _ = writeln!(text, "hyperv_runner_pool_{name}{{{label}=\"{value}\"}} {count}");
    }
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "# HELP hyperv_runner_pool_{name} {help}\n# TYPE hyperv_runner_pool_{name} {kind}");
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

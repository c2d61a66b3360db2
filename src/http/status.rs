//! `/health`, `/metrics` and `/api/status`: the pool's snapshot for machines.

use super::Api;
use super::gate::Reply;
use crate::pool::Snapshot;
use crate::pool::slot::Phase;
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    vms: usize,
    ready: usize,
    running: usize,
    size: u32,
    creating: usize,
    booting: usize,
    destroying: usize,
    empty: usize,
    jobs_waiting: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    version: &'static str,
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    health: Health<'a>,
    jobs_completed: u64,
    github_error: Option<&'a str>,
    hypervisor_error: Option<&'a str>,
    image: crate::pool::freshness::Report,
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
    job_id: Option<u64>,
    failures: u32,
    reason: Option<&'a str>,
    jobs_completed: u64,
}

pub(super) fn health(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let status = if snapshot.is_degraded() { 503 } else { 200 };
    json(status, &health_of(&snapshot))
}

pub(super) fn status(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let slots = snapshot
        .slots
        .iter()
        .map(|view| {
            let made = view.made.as_ref();
            SlotStatus {
                slot: view.number,
                state: view.phase.name(),
                for_seconds: (snapshot.now - view.since) / 1000,
                vm: made.map(|made| made.vm.name.as_str()),
                incarnation: made.map(|made| made.vm.incarnation.as_str()),
                runner: made.map(|made| made.runner_name.as_str()),
                runner_id: made.and_then(|made| made.runner_id),
                job_id: view.job_id,
                failures: view.failures,
                reason: view.reason.as_deref(),
                jobs_completed: view.jobs_completed,
            }
        })
        .collect();
    json(
        200,
        &Status {
            health: health_of(&snapshot),
            jobs_completed: jobs_completed(&snapshot),
            github_error: snapshot.github_error.as_deref(),
            hypervisor_error: snapshot.hypervisor_error.as_deref(),
            image: api.pool.image_report(),
            slots,
        },
    )
}

/// The Prometheus text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>
pub(super) fn metrics(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let mut text = String::with_capacity(2048);
    metric(&mut text, "slots", "gauge", "Slots by state.");
    for phase in
        [Phase::Empty, Phase::Creating, Phase::Booting, Phase::Ready, Phase::Running, Phase::Destroying]
    {
        let _ = writeln!(
            text,
            "hyperv_runner_pool_slots{{state=\"{}\"}} {}",
            phase.name(),
            snapshot.count(phase)
        );
    }
    let failing = snapshot.slots.iter().filter(|view| view.reason.is_some()).count();
    let values = [
        ("size", "gauge", "POOL_SIZE.", u64::from(snapshot.size)),
        ("failing_slots", "gauge", "Slots whose last try failed.", failing as u64),
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
            jobs_completed(&snapshot),
        ),
        (
            "github_reachable",
            "gauge",
            "Whether the last listing of runners succeeded.",
            u64::from(snapshot.github_error.is_none()),
        ),
        (
            "hypervisor_reachable",
            "gauge",
            "Whether the last listing of VMs succeeded.",
            u64::from(snapshot.hypervisor_error.is_none()),
        ),
    ];
    for (name, kind, help, value) in values {
        metric(&mut text, name, kind, help);
        let _ = writeln!(text, "hyperv_runner_pool_{name} {value}");
    }
    Reply::new(200, "text/plain; version=0.0.4", text)
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "# HELP hyperv_runner_pool_{name} {help}\n# TYPE hyperv_runner_pool_{name} {kind}");
}

fn jobs_completed(snapshot: &Snapshot) -> u64 {
    snapshot.slots.iter().map(|view| view.jobs_completed).sum()
}

fn health_of(snapshot: &Snapshot) -> Health<'_> {
    Health {
        status: if snapshot.is_degraded() { "degraded" } else { "healthy" },
        vms: snapshot.vms(),
        ready: snapshot.count(Phase::Ready),
        running: snapshot.count(Phase::Running),
        size: snapshot.size,
        creating: snapshot.count(Phase::Creating),
        booting: snapshot.count(Phase::Booting),
        destroying: snapshot.count(Phase::Destroying),
        empty: snapshot.count(Phase::Empty),
        jobs_waiting: snapshot.jobs_waiting,
        reason: snapshot.reason(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

fn json(status: u16, value: &impl Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(text) => Reply::json(status, text).with_header("Cache-Control", "no-store"),
        Err(_) => Reply::text(500, "The answer cannot be written as JSON"),
    }
}

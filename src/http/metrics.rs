//! `/metrics`: what Prometheus reads.
//!
//! Each metric's `HELP` and `TYPE` are there from the start, also of one that has no value yet, and so is
//! every value of a label: a counter that begins with 1 would hide its first increase. docs/monitoring.md
//! explains them.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>, <https://prometheus.io/docs/practices/naming/>

use super::Api;
use super::server::Reply;
use crate::config::Intake;
use crate::date;
use crate::pool::history::{Counts, Histogram};
use crate::pool::slot::types::Phase;
use crate::pool::{Millis, wall_time};
use crate::sync::unpoisoned;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

pub(super) fn metrics(api: &Api) -> Reply {
    let snapshot = api.pool.snapshot();
    let traffic = api.pool.github_traffic();
    let image = api.pool.image_report();
    let webhooks = unpoisoned(&api.webhooks).clone();
    let tally = &snapshot.tally;
    let m = &mut Metrics(String::with_capacity(16 * 1024));

    m.info("build_info", "The program's version.", &[("version", env!("CARGO_PKG_VERSION"))]);
    let started = SystemTime::now().checked_sub(api.started.elapsed());
    m.single("start_timestamp_seconds", "When the pool started.", started.and_then(since_1970));
    m.single("size", "POOL_SIZE.", Some(u64::from(snapshot.size)));
    m.single("degraded", "Whether /health answers 503.", flag(!snapshot.health.troubles.is_empty()));
    m.single("broken_invariants_total", "Defects of this program that it has noticed.", Some(tally.broken));

    use Phase::{Booting, Creating, Destroying, Empty, Ready, Recovering, Running};
    let phases = [Recovering, Empty, Creating, Booting, Ready, Running, Destroying];
    let slots = phases.iter().map(|&phase| (phase.name(), snapshot.count(phase) as u64)).collect();
    m.family("slots", "gauge", "Slots by state.");
    m.samples("slots", "state", &slots);
    let failing = snapshot.failing().count() as u64;
    m.single("failing_slots", "Slots that do not serve and whose last try failed.", Some(failing));
    let backing_off = snapshot.slots.iter().filter(|slot| slot.retry_at.is_some()).count() as u64;
    m.single("backing_off_slots", "Slots that wait before they try again what failed.", Some(backing_off));
    m.counters("slot_failures_total", "What failed in a slot, by step.", "step", &tally.failures);

    m.counters("vms_ended_total", "VMs that ended, by cause.", "cause", &tally.vms_ended);
    m.histogram("vm_create_duration_seconds", "Making a VM, with its registration.", &tally.create);
    m.histogram("vm_boot_duration_seconds", "From a VM's start to its runner's.", &tally.boot);
    m.histogram("vm_destroy_duration_seconds", "Removing a VM and its disk.", &tally.destroy);

    let waiting = snapshot.jobs_waiting as u64;
    m.single("jobs_waiting", "Queued jobs that this pool serves and no runner has.", Some(waiting));
    m.counters("jobs_ended_total", "Jobs whose VM ended, by outcome.", "outcome", &tally.jobs_ended);
    m.counters(
        "jobs_concluded_total",
        "Jobs that GitHub called completed, by conclusion.",
        "conclusion",
        &tally.jobs_concluded,
    );
    m.histogram("job_queue_duration_seconds", "From a job's queued to its in_progress.", &tally.queue);
    m.histogram("job_duration_seconds", "From a job's first sign to its VM's end.", &tally.job);

    // Where no webhook can come, no alert must miss one.
    let takes_webhooks = api.github.intake == Intake::Webhook;
    let results = if takes_webhooks { &webhooks.by_result } else { &Counts::default() };
    m.counters("webhooks_total", "Webhooks, by result.", "result", results);
    m.single(
        "webhook_last_timestamp_seconds",
        "When the last webhook with a valid signature came.",
        webhooks.last_valid.and_then(since_1970),
    );

    let queue = snapshot.queue.as_ref();
    let utc = SystemTime::now();
    let time = |at: Option<Millis>| at.and_then(|at| since_1970(wall_time(at, snapshot.now, utc)));
    m.single(
        "scale_set_queue_reachable",
        "Whether the scale set's queue answered last.",
        queue.and_then(|queue| flag(queue.reach.failing.is_none())),
    );
    m.single(
        "scale_set_queue_connected_timestamp_seconds",
        "Since when the scale set's queue has been open.",
        queue.and_then(|queue| time(queue.connected_since)),
    );
    m.single(
        "scale_set_queue_last_message_timestamp_seconds",
        "When the last message of the scale set's queue came.",
        queue.and_then(|queue| time(queue.last_message)),
    );
    m.single(
        "scale_set_jobs_assigned",
        "Jobs of the scale set by GitHub's count, those that run among them.",
        queue.map(|queue| queue.statistics.assigned.into()),
    );
    m.single(
        "scale_set_jobs_running",
        "Jobs of the scale set that run, by GitHub's count.",
        queue.map(|queue| queue.statistics.running.into()),
    );

    m.single(
        "github_reachable",
        "Whether the last list of runners came.",
        flag(snapshot.github.failing.is_none()),
    );
    m.counters("github_requests_total", "Requests to GitHub, by result.", "result", &traffic.requests);
    let limit = traffic.rate_limit;
    m.single("github_rate_limit", "Requests that GitHub allows in an hour.", limit.map(|left| left.limit));
    m.single(
        "github_rate_limit_remaining",
        "Requests that are left of github_rate_limit.",
        limit.map(|left| left.remaining),
    );
    m.single(
        "github_rate_limit_reset_timestamp_seconds",
        "When GitHub's rate limit begins anew.",
        limit.map(|left| left.reset),
    );
    m.single(
        "token_expiry_timestamp_seconds",
        "When the personal access token expires.",
        api.pool.token_expires().and_then(since_1970),
    );

    m.single(
        "hypervisor_reachable",
        "Whether the last list of VMs came.",
        flag(snapshot.hypervisor.failing.is_none()),
    );
    m.single("storage_free_bytes", "Free bytes where the VMs' disks are.", snapshot.free_bytes);
    m.single(
        "storage_min_free_bytes",
        "MIN_FREE_GB: with less, no VM is made.",
        Some(snapshot.min_free_bytes),
    );
    let built = image.image.built.as_deref().and_then(date::parse_day);
    m.single(
        "image_built_timestamp_seconds",
        "The day on which the image was built.",
        built.and_then(|day| u64::try_from(day * DAY).ok()),
    );
    m.info(
        "image_info",
        "The image's runner, and the newest.",
        &[
            ("runner_version", image.image.runner_version.as_deref().unwrap_or("")),
            ("newest_runner_version", image.newest_runner_version.as_deref().unwrap_or("")),
        ],
    );
    m.single(
        "image_warnings",
        "What is about to be too old in the image.",
        Some(image.warnings.len() as u64),
    );
    Reply::new(200, "text/plain; version=0.0.4", std::mem::take(&mut m.0))
}

fn since_1970(time: SystemTime) -> Option<u64> {
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn flag(holds: bool) -> Option<u64> {
    Some(u64::from(holds))
}

/// The text as it grows. Writing to a String cannot fail.
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP hyperv_runner_pool_{name} {help}\n# TYPE hyperv_runner_pool_{name} {kind}"
        );
    }

    fn samples(&mut self, name: &str, label: &str, counts: &Counts) {
        for (value, count) in counts {
            let _ = writeln!(self.0, "hyperv_runner_pool_{name}{{{label}=\"{value}\"}} {count}");
        }
    }

    /// A gauge, or by its name a counter, without labels.
    fn single(&mut self, name: &str, help: &str, value: Option<u64>) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.family(name, kind, help);
        if let Some(value) = value {
            let _ = writeln!(self.0, "hyperv_runner_pool_{name} {value}");
        }
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, counts: &Counts) {
        self.family(name, "counter", help);
        self.samples(name, label, counts);
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.family(name, "gauge", help);
        let quoted = |(label, value): &(&str, &str)| {
            format!("{label}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        };
        let labels: Vec<String> = labels.iter().map(quoted).collect();
        let _ = writeln!(self.0, "hyperv_runner_pool_{name}{{{}}} 1", labels.join(","));
    }

    fn histogram(&mut self, name: &str, help: &str, times: &Histogram) {
        self.family(name, "histogram", help);
        let name = format!("hyperv_runner_pool_{name}");
        for (bound, count) in times.buckets() {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {count}", seconds(bound));
        }
        let (count, sum) = (times.count(), seconds(times.sum()));
        let _ =
            writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

/// A time in seconds, as Prometheus writes whole ones: `1`, `0.25`.
fn seconds(time: Millis) -> String {
    let text = format!("{}.{:03}", time / 1000, time % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_written_without_needless_digits() {
        assert_eq!([0, 1_000, 10_000, 250, 21_600_001].map(seconds), ["0", "1", "10", "0.25", "21600.001"]);
    }

    #[test]
    fn what_comes_from_outside_cannot_end_a_label() {
        let mut metrics = Metrics(String::new());
        metrics.info("x_info", "X.", &[("a", "1\"} 2\n\\"), ("b", "")]);
        let sample = metrics.0.lines().last().unwrap();
        assert_eq!(sample, r#"hyperv_runner_pool_x_info{a="1\"} 2\n\\",b=""} 1"#);
    }
}

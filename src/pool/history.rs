//! What has happened since the start: counted, timed, and the jobs that ended last.
//!
//! Everything here is fed by facts and bounded, whatever happens and for however long.

use super::Millis;
use super::slot::types::{Cause, Findings, Job, JobEvent, LastHeard, News, end_text};
use crate::hypervisor::VmId;
use std::collections::{BTreeMap, VecDeque};

/// How many ended jobs are remembered.
const JOBS_REMEMBERED: usize = 100;

/// How many failures are remembered.
pub const FAILURES_REMEMBERED: usize = 20;

const SECOND: Millis = 1_000;
const MINUTE: Millis = 60 * SECOND;
const HOUR: Millis = 60 * MINUTE;

/// The buckets of what is done to a VM.
const OF_VMS: [Millis; 10] = [
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    20 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
];

/// The buckets of what a job takes, in the queue and on its VM.
const OF_JOBS: [Millis; 12] = [
    SECOND,
    5 * SECOND,
    15 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    6 * HOUR,
];

/// What may fail in a slot.
const STEPS: [&str; 6] = ["register", "create", "boot", "wait", "keep", "destroy"];

/// How many, by a word of a fixed set. Each word is there from the start.
pub type Counts = BTreeMap<&'static str, u64>;

/// None of each.
pub fn zeros(words: &[&'static str]) -> Counts {
    words.iter().map(|word| (*word, 0)).collect()
}

/// Times, counted in buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [Millis],
    /// How many were in each bucket alone, those over the last bound at the end.
    counts: Vec<u64>,
    sum: Millis,
}

impl Histogram {
    fn new(bounds: &'static [Millis]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0 }
    }

    fn observe(&mut self, time: Millis) {
        self.counts[self.bounds.partition_point(|bound| *bound < time)] += 1;
        self.sum = self.sum.saturating_add(time.max(0));
    }

    /// For each bound: how many times were not over it.
    pub fn buckets(&self) -> impl Iterator<Item = (Millis, u64)> {
        let up_to = |sum: &mut u64, (bound, count): (&Millis, &u64)| {
            *sum += count;
            Some((*bound, *sum))
        };
        self.bounds.iter().zip(&self.counts).scan(0, up_to)
    }

    /// How many times there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All times together.
    pub fn sum(&self) -> Millis {
        self.sum
    }
}

/// A job whose VM has ended.
#[derive(Clone, Debug)]
pub struct EndedJob {
    /// What is known of it.
    pub job: Job,
    /// The slot's number.
    pub slot: u32,
    /// The VM that it ran on.
    pub vm: VmId,
    /// When its first sign was seen.
    pub started: Millis,
    /// When its VM ended.
    pub ended: Millis,
    /// How that ended for the job ([`Cause::outcome`]).
    pub outcome: &'static str,
}

impl EndedJob {
    /// Whether a webhook is about it.
    fn is_of(&self, event: &JobEvent) -> bool {
        let runs_on = |name: &String| {
            let incarnation = name.strip_prefix(&self.vm.name).and_then(|rest| rest.strip_prefix('-'));
            incarnation == Some(self.vm.incarnation.as_str())
        };
        match self.job.id {
            Some(id) => event.job.id == Some(id),
            None => event.runner_name.as_ref().is_some_and(runs_on),
        }
    }
}

/// A failure of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Millis,
    /// The slot's number.
    pub slot: u32,
    /// The name of its VM.
    pub vm: String,
    /// Which VM that was, if there was one.
    pub incarnation: Option<String>,
    /// What failed, as the log says it.
    pub reason: String,
    /// What was heard of that VM last.
    pub heard: LastHeard,
    /// What was found of it, if it was looked at.
    pub findings: Findings,
}

/// What has been counted since the start.
#[derive(Clone, Debug)]
pub struct Tally {
    /// VMs that ended, by [`Cause::name`].
    pub vms_ended: Counts,
    /// Jobs whose VM ended, by [`Cause::outcome`].
    pub jobs_ended: Counts,
    /// Jobs that ran here, by GitHub's word for how they ended.
    pub jobs_concluded: Counts,
    /// What failed in a slot, each time followed by a back-off.
    pub failures: Counts,
    /// From the beginning of a creation, with its registration, to the start of the VM.
    pub create: Histogram,
    /// From the start of a VM until its guest had its configuration.
    pub boot: Histogram,
    /// From a job's `queued` to its `in_progress`.
    pub queue: Histogram,
    /// From the first sign of a job to its VM's end.
    pub job: Histogram,
    /// From a VM's end until it and its disk were gone.
    pub destroy: Histogram,
    /// Invariants that were found broken: defects of this program.
    pub broken: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            vms_ended: zeros(&Cause::NAMES),
            jobs_ended: zeros(&Cause::OUTCOMES),
            jobs_concluded: zeros(&Job::CONCLUSIONS),
            failures: zeros(&STEPS),
            create: Histogram::new(&OF_VMS),
            boot: Histogram::new(&OF_VMS),
            queue: Histogram::new(&OF_JOBS),
            job: Histogram::new(&OF_JOBS),
            destroy: Histogram::new(&OF_VMS),
            broken: 0,
        }
    }
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct History {
    /// The counts.
    pub tally: Tally,
    jobs: VecDeque<EndedJob>,
    failures: VecDeque<Failure>,
}

impl History {
    /// The failures that came last, the newest first.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failures.iter().rev()
    }

    /// The jobs that ended last, the newest first.
    pub fn jobs(&self) -> impl Iterator<Item = &EndedJob> {
        self.jobs.iter().rev()
    }

    /// Something happened to a slot.
    pub fn note(&mut self, slot: u32, happened: &News, now: Millis) {
        self.remember(failure(slot, happened, now));
        let tally = &mut self.tally;
        match happened {
            News::Made(_, took) => tally.create.observe(*took),
            News::Ready(_, took) => tally.boot.observe(*took),
            News::Destroyed(_, took) => tally.destroy.observe(*took),
            News::Failed { what, .. } => *tally.failures.entry(what).or_default() += 1,
            News::Examined(vm, findings) => {
                if let Some(failure) = self.failure_of(&vm.incarnation) {
                    failure.findings = findings.clone();
                }
            }
            News::Ended { vm, was_ready, cause, job, .. } => {
                *tally.vms_ended.entry(cause.name()).or_default() += 1;
                match job {
                    Some((job, took)) => {
                        let (job, vm, outcome) = (job.clone(), vm.clone(), cause.outcome());
                        self.job_ended(EndedJob { job, slot, vm, started: now - took, ended: now, outcome });
                    }
                    None if cause.is_failure(false) => {
                        let step = if *was_ready { "wait" } else { "boot" };
                        *tally.failures.entry(step).or_default() += 1;
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// Adds failures, the newest last.
    pub fn remember(&mut self, failures: impl IntoIterator<Item = Failure>) {
        self.failures.extend(failures);
        let surplus = self.failures.len().saturating_sub(FAILURES_REMEMBERED);
        self.failures.drain(..surplus);
    }

    /// The failure that ended this VM, if it is among the last.
    pub fn failure_of(&mut self, incarnation: &str) -> Option<&mut Failure> {
        self.failures.iter_mut().rev().find(|failure| failure.incarnation.as_deref() == Some(incarnation))
    }

    fn job_ended(&mut self, ended: EndedJob) {
        self.tally.job.observe(ended.ended - ended.started);
        *self.tally.jobs_ended.entry(ended.outcome).or_default() += 1;
        if let Some(conclusion) = ended.job.conclusion {
            *self.tally.jobs_concluded.entry(conclusion).or_default() += 1;
        }
        self.jobs.push_back(ended);
        if self.jobs.len() > JOBS_REMEMBERED {
            self.jobs.pop_front();
        }
    }

    /// A slot's job left the queue that it entered at `queued_at`.
    pub fn job_left_queue(&mut self, queued_at: Millis, now: Millis) {
        self.tally.queue.observe(now - queued_at);
    }

    /// GitHub says how a job ended. That mostly comes after the VM's own end.
    pub fn job_completed(&mut self, event: &JobEvent) {
        let Some(conclusion) = event.job.conclusion else { return };
        let ended = self.jobs.iter_mut().rev().find(|ended| ended.is_of(event));
        if let Some(ended) = ended.filter(|ended| ended.job.conclusion.is_none()) {
            ended.job.learn(event.job.clone());
            *self.tally.jobs_concluded.entry(conclusion).or_default() += 1;
        }
    }
}

/// The failure in what happened to a slot, if it is one.
fn failure(slot: u32, happened: &News, now: Millis) -> Option<Failure> {
    let (vm, incarnation, reason, heard) = match happened {
        News::Failed { whose, why, .. } => (whose, None, why.clone(), LastHeard::default()),
        News::Ended { vm, was_ready, cause, job, heard } if cause.is_failure(job.is_some()) => {
            let reason = end_text(*was_ready, cause, job.as_ref());
            (&vm.name, Some(vm.incarnation.clone()), reason, heard.clone())
        }
        _ => return None,
    };
    let findings = Findings::default();
    Some(Failure { at: now, slot, vm: vm.clone(), incarnation, reason, heard, findings })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(incarnation: &str) -> VmId {
        VmId { name: "runner-1".into(), incarnation: incarnation.into() }
    }

    fn ended(id: Option<u64>, cause: Cause, took: Millis) -> News {
        let job = Job { id, ..Job::default() };
        let heard = LastHeard::default();
        News::Ended { vm: vm("ab"), was_ready: true, cause, job: Some((job, took)), heard }
    }

    fn completed(id: u64, runner_name: &str, conclusion: &'static str) -> JobEvent {
        let job =
            Job { id: Some(id), conclusion: Some(conclusion), name: Some("build".into()), ..Job::default() };
        JobEvent { job, runner_id: Some(7), runner_name: Some(runner_name.into()) }
    }

    #[test]
    fn a_time_is_counted_in_the_first_bucket_that_it_is_not_over() {
        let mut times = Histogram::new(&[10, 20]);
        [10, 11, 20, 21].into_iter().for_each(|time| times.observe(time));
        assert_eq!(times.buckets().collect::<Vec<_>>(), [(10, 1), (20, 3)]);
        assert_eq!((times.count(), times.sum()), (4, 62));
    }

    #[test]
    fn how_a_vm_ended_says_how_its_job_did() {
        let mut history = History::default();
        let ends = [
            (Cause::RunnerEnded { exit_code: Some(0) }, "ended"),
            (Cause::RunnerEnded { exit_code: None }, "ended"),
            (Cause::RunnerEnded { exit_code: Some(1) }, "runner_failed"),
            (Cause::PoweredOff, "powered_off"),
            (Cause::Vanished, "lost"),
            (Cause::RunnerGone, "lost"),
            (Cause::JobTimeout, "job_timeout"),
            (Cause::Stop, "stopped"),
        ];
        for (id, (cause, outcome)) in ends.into_iter().enumerate() {
            history.note(1, &ended(Some(id as u64), cause, 5_000), 9_000);
            let newest = history.jobs().next().unwrap();
            assert_eq!((newest.outcome, newest.started, newest.ended), (outcome, 4_000, 9_000));
        }
        assert_eq!(history.tally.jobs_ended["ended"], 2);
        assert_eq!(history.tally.jobs_ended.values().sum::<u64>(), 8);
        assert_eq!(history.tally.job.count(), 8);
        assert_eq!(history.tally.vms_ended.values().sum::<u64>(), 8);
        assert_eq!(history.tally.failures.values().sum::<u64>(), 0, "a VM with a job has served");
    }

    #[test]
    fn githubs_word_on_a_job_counts_once_even_if_it_comes_late_or_twice() {
        let mut history = History::default();
        history.note(1, &ended(Some(1), Cause::Stop, 0), 0);
        history.note(1, &ended(None, Cause::Stop, 0), 0);
        history.job_completed(&completed(1, "another", "failure"));
        history.job_completed(&completed(1, "another", "success"));
        history.job_completed(&completed(2, "runner-1-ab", "success"));
        history.job_completed(&completed(3, "runner-1-cd", "success"));
        let jobs: Vec<_> = history.jobs().map(|ended| (ended.job.id, ended.job.conclusion)).collect();
        assert_eq!(jobs, [(Some(2), Some("success")), (Some(1), Some("failure"))]);
        assert_eq!(history.jobs().next().unwrap().job.name.as_deref(), Some("build"));
        assert_eq!(history.tally.jobs_concluded["failure"], 1);
        assert_eq!(history.tally.jobs_concluded.values().sum::<u64>(), 2);
    }

    #[test]
    fn only_the_last_hundred_jobs_are_remembered() {
        let mut history = History::default();
        for id in 0..250 {
            history.note(1, &ended(Some(id), Cause::Stop, 0), 0);
        }
        let ids: Vec<_> = history.jobs().map(|ended| ended.job.id.unwrap()).collect();
        assert_eq!(ids, (150..250).rev().collect::<Vec<_>>());
        assert_eq!(history.tally.jobs_ended["stopped"], 250);
    }

    #[test]
    fn the_last_twenty_failures_are_remembered_with_their_reasons() {
        let mut history = History::default();
        for number in 0..30 {
            let why = format!("cannot create its VM: {number}");
            history.note(2, &News::Failed { whose: "runner-2".into(), what: "create", why }, number);
        }
        history.note(1, &ended(Some(1), Cause::Stop, 5), 40);
        history.note(1, &ended(Some(1), Cause::JobTimeout, 7_000), 50);
        let newest = history.failures().next().unwrap();
        assert_eq!((newest.at, newest.slot, newest.incarnation.as_deref()), (50, 1, Some("ab")));
        assert_eq!(
            newest.reason,
            "ended after 7.0 s of job (not named): its job ran for longer than JOB_TIMEOUT"
        );
        assert_eq!(history.failures().count(), FAILURES_REMEMBERED);
        let oldest = history.failures().last().unwrap();
        assert_eq!((oldest.at, oldest.reason.as_str()), (11, "cannot create its VM: 11"));
    }

    #[test]
    fn a_failure_counts_for_the_step_that_failed() {
        let mut history = History::default();
        let failed = |what| News::Failed { whose: "runner-1".into(), what, why: String::new() };
        let without_job = |was_ready, cause| {
            let heard = LastHeard::default();
            News::Ended { vm: vm("ab"), was_ready, cause, job: None, heard }
        };
        for happened in [
            failed("register"),
            failed("create"),
            failed("keep"),
            failed("destroy"),
            without_job(false, Cause::BootTimeout),
            without_job(true, Cause::PoweredOff),
            without_job(false, Cause::Stop),
        ] {
            history.note(1, &happened, 0);
        }
        assert!(history.tally.failures.values().all(|count| *count == 1), "{:?}", history.tally.failures);
    }
}

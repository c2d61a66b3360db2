//! The words of a slot: what it is told, what it asks for, what it shows.

use crate::github::scope::Scope;
use crate::github::{self, Registration, Removal, Runner};
use crate::hypervisor::{self, GuestWord, Heartbeat, Notes, Power, Vm, VmId};
use crate::pool::Millis;
use crate::secret::Secret;
use crate::text::time;
use std::fmt;

/// A blocking call that whoever drives the slot has to make. The matching
/// [`Event`] brings back what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Register a runner. Brings [`Event::Registered`].
    Register {
        /// The name to register.
        runner_name: String,
    },
    /// Remove the registration of a VM's runner, which is looked up by its name
    /// if its id is not known. Brings [`Event::RunnerRemoved`].
    RemoveRunner {
        /// Whose.
        instance: Instance,
        /// Not to be sent after this moment: what was known of the VM is too old by then.
        not_after: Option<Millis>,
    },
    /// Make and start a VM. Brings [`Event::Created`].
    CreateVm {
        /// Which.
        instance: Instance,
        /// The JIT configuration of its runner, if GitHub made one.
        jit_config: Option<Secret>,
    },
    /// Remove a VM and its disk. Brings [`Event::Destroyed`].
    DestroyVm(VmId),
    /// Turn a VM off and keep it for inspection, as nobody's. Brings [`Event::Destroyed`].
    KeepVm(VmId),
    /// Find out what can be seen of a VM that did not boot. Brings [`Event::Examined`].
    ExamineVm(VmId),
}

/// A VM that a slot makes, made or adopted, with its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Name and incarnation.
    pub vm: VmId,
    /// Where its runner is registered.
    pub scope: Scope,
    /// The name under which its runner is registered.
    pub runner_name: String,
    /// GitHub's id of the registration, once known.
    pub runner_id: Option<u64>,
}

impl Instance {
    /// A VM that is not registered. The name of its runner is unique, so that
    /// it is free and tells by itself whose runner it is.
    pub fn new(vm: VmId, scope: Scope) -> Instance {
        let runner_name = format!("{}-{}", vm.name, vm.incarnation);
        Instance { vm, scope, runner_name, runner_id: None }
    }

    /// What the Notes of a VM say of it.
    pub fn of_notes(vm: &VmId, notes: &Notes) -> Instance {
        Instance {
            vm: vm.clone(),
            scope: notes.scope.clone(),
            runner_name: notes.runner_name.clone(),
            runner_id: notes.runner_id,
        }
    }
}

/// A workflow job, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// GitHub's id of the job.
    pub id: Option<u64>,
    /// GitHub's id of the workflow run.
    pub run_id: Option<u64>,
    /// The job's name.
    pub name: Option<String>,
    /// `owner/name` of the repository.
    pub repository: Option<String>,
    /// The job's page.
    pub url: Option<String>,
    /// When it was first heard of as queued.
    pub queued_at: Option<Millis>,
    /// How it ended, as GitHub says: one of [`Job::CONCLUSIONS`].
    pub conclusion: Option<&'static str>,
}

impl Job {
    /// GitHub's words for how a job ended, and one for those that it may add.
    /// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job>
    pub const CONCLUSIONS: [&str; 8] = [
        "success",
        "failure",
        "cancelled",
        "timed_out",
        "skipped",
        "neutral",
        "action_required",
        Job::OTHER_CONCLUSION,
    ];
    const OTHER_CONCLUSION: &str = "other";

    /// GitHub's word for how a job ended, as one of [`Job::CONCLUSIONS`].
    pub fn conclusion(word: &str) -> &'static str {
        Job::CONCLUSIONS.into_iter().find(|known| *known == word).unwrap_or(Job::OTHER_CONCLUSION)
    }

    /// Takes from `other` what is not known yet.
    pub fn learn(&mut self, other: Job) {
        let Job { id, run_id, name, repository, url, queued_at, conclusion } = other;
        self.id = self.id.or(id);
        self.run_id = self.run_id.or(run_id);
        self.name = self.name.take().or(name);
        self.repository = self.repository.take().or(repository);
        self.url = self.url.take().or(url);
        self.queued_at = self.queued_at.or(queued_at);
        self.conclusion = self.conclusion.or(conclusion);
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or("(not named)"))?;
        if let Some(repository) = &self.repository {
            write!(f, " of {repository}")?;
        }
        self.run_id.map_or(Ok(()), |run| write!(f, ", run {run}"))
    }
}

/// A job as a `workflow_job` webhook tells of it, with the runner that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobEvent {
    /// The job.
    pub job: Job,
    /// GitHub's id of the runner.
    pub runner_id: Option<u64>,
    /// The runner's name.
    pub runner_name: Option<String>,
}

/// A VM or disk of this pool that no slot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanVm {
    /// Its identity.
    pub vm: VmId,
    /// What its Notes say of it.
    pub notes: Option<Notes>,
    /// Whether it runs. `None` if only a disk is left of it.
    pub power: Option<Power>,
}

impl OrphanVm {
    /// Whether it may have a job, so that it is adopted and not destroyed.
    pub fn may_have_job(&self) -> bool {
        self.notes.is_some() && matches!(self.power, Some(Power::On | Power::Paused))
    }
}

/// How the pool is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Idle VMs are retired; those with a job keep running for the next start to adopt.
    Keep,
    /// Every VM is destroyed, whatever runs on it.
    Destroy,
    /// The host shuts down, and Hyper-V turns every VM off. Only registrations are removed;
    /// the hypervisor is asked for nothing more.
    HostShutdown,
}

/// Why an idle VM is asked to retire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetireReason {
    /// More VMs are idle than are wanted.
    Surplus,
    /// It was made of another template or of other settings than VMs are now.
    Outdated,
    /// It has been waiting for longer than `MAX_IDLE_HOURS`.
    Aged,
    /// It serves another organization or repository than the pool does now.
    Moved,
    /// An operator wants it replaced.
    Recycle,
    /// An operator drains the pool.
    Drain,
    /// The pool stops.
    Stop,
}

impl RetireReason {
    /// For the log and the status page.
    pub fn text(self) -> &'static str {
        match self {
            RetireReason::Surplus => "more VMs are idle than POOL_WARM asks for",
            RetireReason::Outdated => "the template or the settings have changed since it was made",
            RetireReason::Aged => "it has been idle for MAX_IDLE_HOURS",
            RetireReason::Moved => "the pool serves another organization or repository now",
            RetireReason::Recycle => "an operator wants it replaced",
            RetireReason::Drain => "the pool drains",
            RetireReason::Stop => "the pool stops",
        }
    }

    /// Whether its replacement must be ready before the next VM is retired for it.
    pub fn one_at_a_time(self) -> bool {
        matches!(self, RetireReason::Outdated | RetireReason::Aged | RetireReason::Recycle)
    }
}

/// What a slot is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pool knows what was there before it, and what of it is this slot's:
    /// a VM to adopt at most, and what to destroy first.
    Recovered(Vec<OrphanVm>),
    /// Make a VM now. Holds the incarnation to give it.
    Provision(String),
    /// The clock has reached [`Slot::deadline`](super::Slot::deadline).
    Tick,
    /// What came of [`Action::Register`].
    Registered(Result<Registration, github::Error>),
    /// What came of [`Action::RemoveRunner`].
    RunnerRemoved(Result<Removal, github::Error>),
    /// What came of [`Action::CreateVm`].
    Created(Result<(), hypervisor::Error>),
    /// What came of [`Action::DestroyVm`] or [`Action::KeepVm`].
    Destroyed(Result<(), hypervisor::Error>),
    /// What came of [`Action::ExamineVm`].
    Examined(Findings),
    /// The guest was given its configuration.
    Answered,
    /// The guest says that a job starts.
    JobStarted(Job),
    /// The guest says that its runner has ended.
    RunnerEnded {
        /// With which exit code, if it said so.
        exit_code: Option<i64>,
    },
    /// GitHub's webhook says that this slot's runner has a job.
    JobInProgress(JobEvent),
    /// GitHub's webhook says that the job of this slot's runner has ended.
    JobCompleted(JobEvent),
    /// What a list of VMs, asked for at this time, says of this slot's VM. `None`
    /// if it names no such VM. A list older than the VM says nothing about it.
    VmObserved(Option<Box<Vm>>, Millis),
    /// What GitHub, asked at this time, says of this slot's runner.
    RunnerObserved(Runner, Millis),
    /// GitHub, asked for this slot's registration, does not know it.
    RunnerGone,
    /// GitHub does not let the token see this slot's registration.
    RunnerHidden,
    /// Something of this pool was found that no slot has.
    Orphan(OrphanVm),
    /// The VM is to retire: asked to if it is idle, at once if it boots and so can have no job.
    Retire(RetireReason),
    /// An operator wants the VM replaced, when its turn comes, or the slot to try again now.
    Recycle,
    /// A job waits for it after all: it retires only if it was told already.
    StayIfNotTold,
    /// The VM is being told that it is to retire.
    ToldToRetire,
    /// The pool stops.
    Stop(Stop),
}

/// The state's name, as the design, `/health` and the status page use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The pool does not know yet what was there before it.
    Recovering,
    /// No VM.
    Empty,
    /// A registration and a VM are being made.
    Creating,
    /// The guest has not fetched its configuration.
    Booting,
    /// The runner waits for a job.
    Ready,
    /// A job is on it.
    Running,
    /// VM, disk and registration are being removed.
    Destroying,
    /// Over: nothing more will happen here.
    Stopped,
}

impl Phase {
    /// The lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Recovering => "recovering",
            Phase::Empty => "empty",
            Phase::Creating => "creating",
            Phase::Booting => "booting",
            Phase::Ready => "ready",
            Phase::Running => "running",
            Phase::Destroying => "destroying",
            Phase::Stopped => "stopped",
        }
    }
}

/// Why a VM is destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its guest reported the end of its runner.
    RunnerEnded {
        /// The listener's exit code, if the guest told.
        exit_code: Option<i64>,
    },
    /// It powered off.
    PoweredOff,
    /// It is no longer on the host.
    Vanished,
    /// GitHub does not know its runner any more, or does not hear it, and no job runs on it.
    RunnerGone,
    /// The guest did not fetch its configuration in time.
    BootTimeout,
    /// The job took too long.
    JobTimeout,
    /// It retired.
    Retired(RetireReason),
    /// The pool stops.
    Stop,
}

impl Cause {
    /// Every [`Cause::name`].
    pub const NAMES: [&str; 8] = [
        "runner_ended",
        "powered_off",
        "vanished",
        "runner_gone",
        "boot_timeout",
        "job_timeout",
        "retired",
        "stop",
    ];

    /// Every [`Cause::outcome`].
    pub const OUTCOMES: [&str; 6] =
        ["ended", "runner_failed", "powered_off", "lost", "job_timeout", "stopped"];

    /// How it ended for the job on the VM, in one word for metrics. What the job itself says of its
    /// success only GitHub knows.
    pub fn outcome(&self) -> &'static str {
        match self {
            Cause::RunnerEnded { exit_code: None | Some(0) } => "ended",
            Cause::RunnerEnded { .. } => "runner_failed",
            Cause::PoweredOff => "powered_off",
            Cause::Vanished | Cause::RunnerGone | Cause::BootTimeout => "lost",
            Cause::JobTimeout => "job_timeout",
            Cause::Retired(_) | Cause::Stop => "stopped",
        }
    }

    /// One word for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Cause::RunnerEnded { .. } => "runner_ended",
            Cause::PoweredOff => "powered_off",
            Cause::Vanished => "vanished",
            Cause::RunnerGone => "runner_gone",
            Cause::BootTimeout => "boot_timeout",
            Cause::JobTimeout => "job_timeout",
            Cause::Retired(_) => "retired",
            Cause::Stop => "stop",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::RunnerEnded { exit_code: Some(code) } => {
                write!(f, "its runner ended with exit code {code}")?;
                match exit_code_text(*code) {
                    "" => Ok(()),
                    text => write!(f, " ({text})"),
                }
            }
            Cause::RunnerEnded { exit_code: None } => f.write_str("its runner ended"),
            Cause::PoweredOff => f.write_str("it powered off"),
            Cause::Vanished => f.write_str("it is no longer on the host"),
            Cause::RunnerGone => f.write_str("its runner is gone from GitHub"),
            Cause::BootTimeout => {
                f.write_str("its guest did not fetch its configuration within BOOT_TIMEOUT")
            }
            Cause::JobTimeout => f.write_str("its job ran for longer than JOB_TIMEOUT"),
            Cause::Retired(reason) => write!(f, "it retired: {}", reason.text()),
            Cause::Stop => f.write_str("the pool stops"),
        }
    }
}

/// The listener's exit code when GitHub no longer accepts its version. It comes
/// as 7 because the guest asks for it; it would be 1 otherwise.
pub(in crate::pool) const EXIT_OUTDATED: i64 = 7;

/// What an exit code of GitHub's runner means, where that helps. Empty for success and for unknown ones.
///
/// <https://github.com/actions/runner/blob/main/src/Runner.Common/Constants.cs>
fn exit_code_text(code: i64) -> &'static str {
    match code {
        1 => "GitHub did not let it in, or its guest failed: see the guest's log",
        2 => "GitHub's service failed, time after time",
        3 | 4 => "it updated itself, time after time",
        5 => "GitHub has another session of the same runner",
        EXIT_OUTDATED => "GitHub no longer accepts its version: build a new image (packer/rebuild.ps1)",
        _ => "",
    }
}

/// How a VM ended, for the log and the status page.
pub fn end_text(was_ready: bool, cause: &Cause, job: Option<&(Job, Millis)>) -> String {
    match job {
        Some((job, took)) => format!("ended after {} of job {job}: {cause}", time(*took)),
        None if was_ready => format!("ended without a job: {cause}"),
        None => format!("ended before its guest fetched its configuration: {cause}"),
    }
}

/// What the lists of VMs said last of a VM while it was on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastHeard {
    /// Whether Hyper-V heard its guest.
    pub heartbeat: Option<Heartbeat>,
    /// What its guest said of itself.
    pub guest: Option<GuestWord>,
    /// How long it had been running.
    pub uptime: Option<Millis>,
}

impl fmt::Display for LastHeard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.heartbeat {
            Some(Heartbeat::Ok) => "heartbeat ok",
            Some(Heartbeat::Lost) => "heartbeat lost",
            Some(Heartbeat::Unknown) | None => "no heartbeat",
        })?;
        match &self.guest {
            None => f.write_str(", its guest said nothing")?,
            Some(GuestWord { stage, last_error: None, .. }) => write!(f, ", its guest's stage: {stage}")?,
            Some(GuestWord { stage, last_error: Some(error), .. }) => {
                write!(f, ", its guest's stage: {stage}, last error: {error}")?;
            }
        }
        self.uptime.map_or(Ok(()), |uptime| write!(f, ", on for {}", time(uptime)))
    }
}

/// What was found of a VM that did not boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How long it had been running.
    pub uptime: Option<Millis>,
    /// Its IP addresses.
    pub addresses: Vec<String>,
    /// The name of the file with its screen.
    pub picture: Option<String>,
    /// What could not be had, and why.
    pub missing: Option<String>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses.join(", ");
        let parts = [
            self.uptime.map(|uptime| format!("on for {}", time(uptime))),
            Some(if addresses.is_empty() { "no IP address".into() } else { format!("at {addresses}") }),
            self.picture.as_ref().map(|file| format!("its screen is in {file}")),
            self.missing.as_ref().map(|missing| format!("could not be had: {missing}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// Something that happened to a slot, for the log and for counting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A VM was made and started, in so many milliseconds.
    Made(VmId, Millis),
    /// Its guest has its configuration, so many milliseconds after the start.
    Ready(VmId, Millis),
    /// A VM of an earlier start is this pool's again.
    Adopted(VmId),
    /// The first sign of a job.
    Job(VmId, Job),
    /// More is known of the job.
    JobNamed(VmId, Job),
    /// A job was canceled before the runner took it: the VM is ready again.
    JobNotTaken(VmId),
    /// It is asked to retire.
    Retiring(VmId, RetireReason),
    /// It is of no further use.
    Ended {
        /// Which VM.
        vm: VmId,
        /// Whether its guest had fetched its configuration.
        was_ready: bool,
        /// Why.
        cause: Cause,
        /// The job that it had, and for how many milliseconds.
        job: Option<(Job, Millis)>,
        /// What was heard of it last.
        heard: LastHeard,
    },
    /// It did not boot, and was looked at before its end.
    Examined(VmId, Findings),
    /// VM and disk are gone, after so many milliseconds.
    Destroyed(VmId, Millis),
    /// It failed, and is kept for inspection.
    Kept(VmId),
    /// Something of an earlier start, or of a failed creation, is destroyed.
    ClearingAway(VmId),
    /// The host has paused the VM.
    Paused(VmId),
    /// The pool stops and leaves it, or what is left of it, to the next start.
    LeftToNextStart(VmId),
    /// The host shuts down, which turns the VM off with this job on it.
    JobLost(VmId, Job),
    /// A try failed.
    Failed {
        /// Whose: a slot, by its VM's name, or GitHub, or Hyper-V.
        whose: String,
        /// What it was that failed, in a word.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// What failed works again.
    Works(String),
    /// The scale set's queue is open, with what is worth a warning.
    QueueOpened(Vec<String>),
    /// An invariant does not hold: a defect of this program.
    Broken(String),
}

/// What the rest of the program may know of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSnapshot {
    /// The slot's number, from 1.
    pub number: u32,
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Millis,
    /// The VM that it has or is making.
    pub instance: Option<Instance>,
    /// How long making its VM took, with the registration.
    pub created_in: Option<Millis>,
    /// How long its VM took from its start until its guest had its configuration.
    pub booted_in: Option<Millis>,
    /// The job on its VM.
    pub job: Option<Job>,
    /// How long that has been running, in milliseconds of the VM's own clock.
    pub job_time: Option<Millis>,
    /// Why its VM has been asked to retire, if it has.
    pub retiring: Option<RetireReason>,
    /// Whether the host has paused its VM.
    pub paused: bool,
    /// What its guest said last.
    pub guest: Option<GuestWord>,
    /// Until when it waits before it tries again what failed.
    pub retry_at: Option<Millis>,
    /// Failures in a row.
    pub failures: u32,
    /// Why the last of them failed.
    pub reason: Option<String>,
    /// Jobs that this slot has seen to their end.
    pub jobs_completed: u64,
}

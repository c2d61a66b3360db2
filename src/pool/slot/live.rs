//! A VM that was started: what is heard of it, its job, and when it is of no further use.

use super::evidence::{Evidence, LEASE};
use super::types::{Action, Cause, Instance, Job, LastHeard, News, Phase, RetireReason};
use super::{Context, Slot, State};
use crate::github::Runner;
use crate::hypervisor::{Power, Vm};
use crate::pool::{Millis, Refusal, Rules, RunnerConfig, millis};
use crate::secret::Secret;

/// How long a guest may take to obey when it is asked to retire.
const RETIRE_TIMEOUT: Millis = 5 * 60_000;

/// How old a list may be on whose word a registration is removed.
const FRESH: Millis = 10_000;

/// After this time of a VM's life an earlier failure of its slot is over.
const HEALED_AFTER: Millis = 3_600_000;

/// A VM that was started, from its boot to the end of its use.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) instance: Instance,
    /// When it was made or adopted.
    pub(super) since: Millis,
    pub(super) created_in: Option<Millis>,
    pub(super) booted_in: Option<Millis>,
    pub(super) evidence: Evidence,
    /// The first sign of a job has been seen: what is known of the job.
    pub(super) job: Option<Job>,
    /// The guest itself has said that a job starts, so that one did.
    pub(super) job_certain: bool,
    /// The VM's uptime at the first sign, in milliseconds.
    pub(super) job_started: Option<Millis>,
    /// When the first sign was seen, by the pool's clock.
    pub(super) job_seen_at: Millis,
    /// The uptime at the first sign as its Notes have it, in seconds.
    pub(super) noted: Option<u64>,
    /// What it was made of, by its Notes.
    pub(super) made_of: Option<String>,
    /// The registration token that its guest gets, empty with a JIT
    /// configuration. `None` if it gets no configuration (any more).
    pub(super) token: Option<Secret>,
    pub(super) retire: Option<Retirement>,
    /// An operator wants it replaced.
    pub(super) to_recycle: bool,
    /// A JIT configuration may be in its key-values.
    pub(super) holds_jit_config: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Retirement {
    pub(super) reason: RetireReason,
    /// When the guest was first told.
    pub(super) told_at: Option<Millis>,
    /// Its registration was removed.
    pub(super) deregistered: bool,
    /// On the word of which list its removal was tried last.
    pub(super) tried_on: Option<Millis>,
}

impl Slot {
    /// What its guest gets when it asks for its configuration.
    pub(in crate::pool) fn runner_config(&mut self, jit: bool) -> Result<RunnerConfig, Refusal> {
        let live = match &mut self.state {
            State::Creating { .. } => return Err(Refusal::NotReady),
            State::Booting(live) | State::Ready(live) => live,
            _ => return Err(Refusal::Answered),
        };
        // A token makes a runner each time it is used, so that it is given once.
        let token = if jit { live.token.clone() } else { live.token.take() };
        let token = token.ok_or(Refusal::Answered)?;
        Ok(RunnerConfig { runner_name: live.instance.runner_name.clone(), token })
    }

    /// A runner that registers itself is known by its name, which is unique.
    pub(super) fn learn_runner_id(&mut self, runner_id: Option<u64>) {
        if let Some(live) = self.live_mut() {
            live.instance.runner_id = live.instance.runner_id.or(runner_id);
        }
    }

    /// A job starts: what was said of the VM before does not know of it.
    pub(super) fn job_starts(&mut self, job: Job, cx: &mut Context) {
        if let Some(live) = self.live_mut() {
            live.evidence.job_sign(cx.now);
        }
        self.job_runs(job, cx);
    }

    /// A job is, or was, on the VM.
    pub(super) fn job_runs(&mut self, job: Job, cx: &mut Context) {
        if let Some(live) = self.live_mut() {
            let vm = live.instance.vm.clone();
            match &mut live.job {
                Some(known) if known.id.is_some() && job.id.is_some() && known.id != job.id => {
                    // The one before was not taken. If the guest has said that its job runs, that is this one.
                    *known = job.clone();
                    if !live.job_certain {
                        (live.job_started, live.job_seen_at) = (live.uptime(cx.now), cx.now);
                    }
                    cx.news.push(News::JobNamed(vm, job));
                }
                Some(known) => {
                    let nameless = known.name.is_none();
                    known.learn(job);
                    if nameless && known.name.is_some() {
                        cx.news.push(News::JobNamed(vm, known.clone()));
                    }
                }
                None => {
                    if live.job_started.is_none() {
                        (live.job_started, live.job_seen_at) = (live.uptime(cx.now), cx.now);
                    }
                    live.job = Some(job.clone());
                    live.retire = None;
                    cx.news.push(News::Job(vm, job));
                }
            }
        }
        if matches!(self.phase(), Phase::Booting | Phase::Ready)
            && let Some(mut live) = self.take_live()
        {
            live.token = None;
            self.enter(State::Running(live), cx.now);
        }
    }

    pub(super) fn vm_observed(&mut self, vm: Option<&Vm>, asked_at: Millis, cx: &mut Context) {
        let Some(live) = self.live_mut().filter(|live| asked_at > live.since) else { return };
        // Of a VM that is off a list has no uptime, and no word of its guest's.
        if vm.is_some_and(|vm| vm.power == Power::Off) {
            return self.end(Cause::PoweredOff, cx);
        }
        let was_paused = live.evidence.paused;
        if live.evidence.vm_observed(vm, asked_at) {
            return self.end(Cause::Vanished, cx);
        }
        let Some(vm) = vm else { return };
        let uptime = millis(vm.uptime);
        if vm.power == Power::Paused && !was_paused {
            cx.news.push(News::Paused(live.instance.vm.clone()));
        }
        if let Some(notes) = &vm.notes {
            live.noted = notes.job_started;
            live.made_of.clone_from(&notes.fingerprint);
        }
        live.holds_jit_config = vm.holds_jit_config.unwrap_or(live.holds_jit_config);
        // A clock that was off can have put the job's start into the VM's future.
        if live.job.is_some() && asked_at > live.job_seen_at {
            live.job_started = Some(live.job_started.map_or(uptime, |started| started.min(uptime)));
        }
        if live.job_started.is_some_and(|started| uptime - started >= cx.rules.job_timeout()) {
            return self.end(Cause::JobTimeout, cx);
        }
        if live.evidence.names_worker() {
            let first = live.job.is_none();
            live.job_certain = true;
            if first {
                self.job_starts(Job::default(), cx);
            }
        }
        self.judge(cx);
    }

    pub(super) fn runner_observed(&mut self, runner: &Runner, asked_at: Millis, cx: &mut Context) {
        let Some(live) = self.live_mut().filter(|live| asked_at > live.since) else { return };
        live.instance.runner_id.get_or_insert(runner.id);
        live.evidence.runner_observed(runner, asked_at);
        if runner.busy && live.job.is_none() {
            self.job_starts(Job::default(), cx);
        }
        self.judge(cx);
    }

    /// What follows from all that is known of a VM, now that more is known or time has passed.
    pub(super) fn judge(&mut self, cx: &mut Context) {
        match &self.state {
            State::Booting(_) if cx.now >= self.since + cx.rules.boot_timeout() => {
                self.end(Cause::BootTimeout, cx);
            }
            State::Ready(live) if live.evidence.runner_is_dead(live.idle_patience(cx.rules)) => {
                self.end(Cause::RunnerGone, cx);
            }
            State::Running(live) if live.evidence.runner_is_dead(live.evidence.patience_with_job()) => {
                self.end(Cause::RunnerGone, cx);
            }
            State::Ready(live) if live.is_given_up(cx.rules, cx.now) => self.end(Cause::RunnerGone, cx),
            State::Running(live) if !live.job_certain && live.evidence.job_was_not_taken() => {
                if let Some(mut live) = self.take_live() {
                    (live.job, live.job_started) = (None, None);
                    cx.news.push(News::JobNotTaken(live.instance.vm.clone()));
                    self.enter(State::Ready(live), cx.now);
                }
            }
            _ => {}
        }
        // An hour of life clears a failure, and so does an hour without need of a VM.
        let calm = self.live().map_or(self.failed_at, |live| live.since.max(self.failed_at));
        if self.reason.is_some() && cx.now - calm >= HEALED_AFTER {
            self.clear_failure();
        }
    }

    pub(super) fn retire(&mut self, reason: RetireReason, cx: &mut Context) {
        if matches!(self.state, State::Booting(_)) {
            return self.end(Cause::Retired(reason), cx);
        }
        if let State::Ready(live) = &mut self.state {
            if live.retire.is_none() {
                cx.news.push(News::Retiring(live.instance.vm.clone(), reason));
            }
            live.retire
                .get_or_insert(Retirement { reason, told_at: None, deregistered: false, tried_on: None })
                .reason = reason;
        }
    }
}

impl Live {
    pub(super) fn new(instance: Instance, now: Millis) -> Live {
        Live {
            instance,
            since: now,
            created_in: None,
            booted_in: None,
            evidence: Evidence::default(),
            job: None,
            job_certain: false,
            job_started: None,
            job_seen_at: now,
            noted: None,
            made_of: None,
            token: None,
            retire: None,
            to_recycle: false,
            holds_jit_config: true,
        }
    }

    /// What the lists said last of it.
    pub(super) fn last_heard(&self) -> LastHeard {
        let Evidence { heartbeat, word, uptime, .. } = &self.evidence;
        LastHeard { heartbeat: *heartbeat, guest: word.clone(), uptime: *uptime }
    }

    /// How long the VM has been running, in milliseconds, once that is known.
    pub(super) fn uptime(&self, now: Millis) -> Option<Millis> {
        self.evidence.started_at.map(|started| now - started)
    }

    /// For how long GitHub must miss the runner of a VM without a job.
    pub(super) fn idle_patience(&self, rules: &Rules) -> Millis {
        let deregistered = self.retire.as_ref().is_some_and(|retire| retire.deregistered);
        if deregistered { 0 } else { rules.boot_timeout() }
    }

    /// Whether a guest that does not retire is ended although GitHub does not
    /// let the pool see its runner: when it has named no Worker for as long as
    /// GitHub would hold a job, or cannot be heard and has had the time of any job.
    pub(super) fn is_given_up(&self, rules: &Rules, now: Millis) -> bool {
        let told_at = self.retire.as_ref().and_then(|retire| retire.told_at);
        self.evidence.hidden
            && told_at.is_some_and(|at| match self.evidence.has_been_idle() {
                Some(idle) => idle && now - at >= LEASE,
                None => now - at >= rules.job_timeout(),
            })
    }

    /// The removal of the registration of a guest that has not obeyed, on the
    /// word of a list that is seconds old; once for each list. A guest that was
    /// never heard cannot hear either, so that it is not waited for.
    pub(super) fn deregistration_due(&mut self, now: Millis) -> Option<Action> {
        let overdue_at = if self.evidence.is_mute() { 0 } else { RETIRE_TIMEOUT };
        let idle_at = self.evidence.found_idle_at()?;
        self.instance.runner_id?;
        let retire = self.retire.as_mut().filter(|retire| !retire.deregistered)?;
        let due =
            now - retire.told_at? >= overdue_at && now <= idle_at + FRESH && retire.tried_on < Some(idle_at);
        due.then(|| {
            retire.tried_on = Some(idle_at);
            Action::RemoveRunner { instance: self.instance.clone(), not_after: Some(idle_at + FRESH) }
        })
    }
}

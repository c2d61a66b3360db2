//! One slot of the pool, as a pure state machine.
//!
//! [`Slot::step`] takes an event and the time, changes the state, and answers
//! with at most one [`Action`]: a single blocking call to GitHub or to the
//! hypervisor. Whoever drives the slot performs it and steps again with what
//! came of it. There is no I/O, no clock and no thread here, so that a
//! six-hour limit is tested in microseconds and every interleaving can be
//! tried.
//!
//! What holds at every moment:
//! - A slot has one VM at most. The next is made only once the last VM and its
//!   disk are gone, and the removal of its registration has been tried.
//! - A VM is named by its incarnation, a registration by scope and id.
//! - A guest that was not answered has no job: it starts its listener only
//!   after the answer. A VM that was answered and is on ends only when its
//!   guest says so, by `JOB_TIMEOUT`, by a forced stop, or when
//!   [`evidence`] says that its runner is dead.
//! - Destroying is final: nothing leads back.

pub mod evidence;
pub mod types;

use super::back_off::{self, Random};
use super::{Millis, Rules};
use crate::github::Removal;
use crate::hypervisor::{VmId, VmWrite};
use evidence::{Evidence, LEASE};
use std::collections::VecDeque;
use types::{
    Action, Assignment, Cause, Event, Failure, Instance, Job, News, ObservedPower, ObservedRunner,
    ObservedVm, OrphanVm, Phase, RetireReason, SlotSnapshot, Stop,
};

/// How long a guest may take to obey when it is asked to retire.
pub const RETIRE_TIMEOUT: Millis = 5 * 60_000;

/// How old a list may be on whose word a registration is removed.
pub const FRESH: Millis = 10_000;

/// After this time of a VM's life an earlier failure of its slot is over.
const HEALED_AFTER: Millis = 3_600_000;

/// How long after a creation was cut off Hyper-V may still finish it.
const SECOND_LOOK_AFTER: Millis = 5_000;

/// How often a destruction is tried when the pool stops.
const TRIES_AT_STOP: u32 = 3;

/// A VM that was started, from its boot to the end of its use.
#[derive(Clone, Debug)]
struct Live {
    instance: Instance,
    /// When it was made or adopted.
    since: Millis,
    evidence: Evidence,
    /// The first sign of a job has been seen: what is known of the job.
    job: Option<Job>,
    /// The guest itself has said that a job starts, so that one did.
    job_certain: bool,
    /// The VM's uptime at the first sign, in milliseconds.
    job_started: Option<Millis>,
    /// When the first sign was seen, by the pool's clock.
    job_seen_at: Millis,
    /// The uptime at the first sign as its Notes have it, in seconds.
    noted: Option<u64>,
    retire: Option<Retirement>,
    /// Its JIT configuration was removed from its key-values.
    jit_config_forgotten: bool,
}

#[derive(Clone, Debug)]
struct Retirement {
    reason: RetireReason,
    /// When the guest was first told.
    told_at: Option<Millis>,
    /// Its registration was removed.
    deregistered: bool,
    /// On the word of which list its removal was tried last.
    tried_on: Option<Millis>,
}

#[derive(Clone, Debug)]
struct Destroying {
    instance: Instance,
    /// What to make of it once it is over: how long to wait before the next VM.
    retry_after: Millis,
    vm_gone: bool,
    /// The removal of the registration was tried, or there is none.
    deregistered: bool,
    /// Look once more: Hyper-V may finish a creation that was cut off.
    look_again: bool,
    attempts: u32,
    retry_at: Millis,
}

#[derive(Clone, Debug)]
enum State {
    Recovering,
    Empty { retry_at: Millis },
    Creating { instance: Instance, registered: bool },
    Booting(Live),
    Ready(Live),
    Running(Live),
    Destroying(Destroying),
    Stopped { left: Option<Instance> },
}

/// What an action that is out was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaiting {
    /// The state.
    State,
    /// An orphan's destruction, beside a state that goes on.
    Orphan,
}

/// One slot of the pool. See the module's head.
#[derive(Clone, Debug)]
pub struct Slot {
    number: u32,
    vm_name: String,
    past_size: bool,
    random: Random,
    state: State,
    /// When the state was entered.
    since: Millis,
    awaiting: Option<Awaiting>,
    orphans: VecDeque<OrphanVm>,
    failures: u32,
    reason: Option<String>,
    failed_at: Millis,
    stop: Option<Stop>,
    jobs_completed: u64,
}

impl Slot {
    /// A slot that waits for [`Event::Recovered`]. One past the pool's size
    /// sees what it is given to its end and never makes another VM. `seed`
    /// feeds the jitter.
    pub fn new(number: u32, vm_name: String, past_size: bool, seed: u64) -> Slot {
        Slot {
            number,
            vm_name,
            past_size,
            random: Random(seed),
            state: State::Recovering,
            since: 0,
            awaiting: None,
            orphans: VecDeque::new(),
            failures: 0,
            reason: None,
            failed_at: 0,
            stop: None,
            jobs_completed: 0,
        }
    }

    /// What the rest of the program may know, at this time.
    pub fn snapshot(&self, now: Millis) -> SlotSnapshot {
        let live = self.live();
        SlotSnapshot {
            number: self.number,
            phase: self.phase(),
            since: self.since,
            instance: self.instance().cloned(),
            job: live.and_then(|live| live.job.clone()),
            job_time: live.and_then(|live| Some(now - live.evidence.started_at? - live.job_started?)),
            retiring: self.retiring(),
            paused: live.is_some_and(|live| live.evidence.paused),
            guest: live.and_then(|live| live.evidence.word.clone()),
            failures: self.failures,
            reason: self.reason.clone(),
            past_size: self.past_size,
            jobs_completed: self.jobs_completed,
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Recovering => Phase::Recovering,
            State::Empty { .. } => Phase::Empty,
            State::Creating { .. } => Phase::Creating,
            State::Booting(_) => Phase::Booting,
            State::Ready(_) => Phase::Ready,
            State::Running(_) => Phase::Running,
            State::Destroying(_) => Phase::Destroying,
            State::Stopped { .. } => Phase::Stopped,
        }
    }

    /// Whether it may be told to make a VM, once its back-off is over: it has none, and nothing to destroy.
    pub fn is_free(&self) -> bool {
        matches!(&self.state, State::Empty { .. })
            && !self.past_size
            && self.stop.is_none()
            && !self.has_orphans()
    }

    /// When a free slot may try again.
    pub fn retry_at(&self) -> Millis {
        match &self.state {
            State::Empty { retry_at } => *retry_at,
            _ => 0,
        }
    }

    /// Whether a VM of an earlier start, or of a failed creation, is still to be destroyed by this slot.
    pub fn has_orphans(&self) -> bool {
        !self.orphans.is_empty() || self.awaiting == Some(Awaiting::Orphan)
    }

    /// Whether it knows of this orphan.
    pub fn has_orphan(&self, vm: &VmId) -> bool {
        self.orphans.iter().any(|orphan| orphan.vm == *vm)
    }

    /// The slot's number, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The name that its VMs bear.
    pub fn vm_name(&self) -> &str {
        &self.vm_name
    }

    /// Since when it has been in its present state.
    pub fn since(&self) -> Millis {
        self.since
    }

    /// Why its VM has been asked to retire, if it has.
    pub fn retiring(&self) -> Option<RetireReason> {
        self.live()?.retire.as_ref().map(|retire| retire.reason)
    }

    /// How long its VM has been running, by the last list.
    pub fn uptime(&self, now: Millis) -> Option<Millis> {
        self.live()?.uptime(now)
    }

    /// The VM that it has or is making.
    pub fn instance(&self) -> Option<&Instance> {
        match &self.state {
            State::Creating { instance, .. } => Some(instance),
            State::Booting(live) | State::Ready(live) | State::Running(live) => Some(&live.instance),
            State::Destroying(d) => Some(&d.instance),
            State::Stopped { left } => left.as_ref(),
            State::Recovering | State::Empty { .. } => None,
        }
    }

    /// Whether the job with this id was seen in progress on its VM.
    pub fn has_job(&self, id: u64) -> bool {
        self.live().and_then(|live| live.job.as_ref()?.id) == Some(id)
    }

    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Booting(live) | State::Ready(live) | State::Running(live) => Some(live),
            _ => None,
        }
    }

    fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Booting(live) | State::Ready(live) | State::Running(live) => Some(live),
            _ => None,
        }
    }

    /// What the next list of VMs has to write to its VM.
    pub fn write_due(&self) -> Option<VmWrite> {
        let live = self.live()?;
        let job_started = live.job_started.map(|at| (at / 1000) as u64).filter(|at| live.noted != Some(*at));
        let retire = matches!(self.state, State::Ready(_)) && live.retire.is_some();
        let forget_jit_config = !live.jit_config_forgotten && !matches!(self.state, State::Booting(_));
        (job_started.is_some() || retire || forget_jit_config).then(|| VmWrite {
            vm: live.instance.vm.clone(),
            job_started,
            retire,
            forget_jit_config,
        })
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn deadline(&self, rules: &Rules) -> Option<Millis> {
        if self.awaiting.is_some() {
            return None;
        }
        match &self.state {
            State::Empty { retry_at } if self.past_size || self.has_orphans() => Some(*retry_at),
            State::Booting(_) => Some(self.since + rules.boot_timeout()),
            State::Destroying(d) => Some(d.retry_at),
            _ => None,
        }
    }

    /// Takes in what happened and says what to do next. While an action is
    /// out, further events are taken in, but the next action comes only after
    /// its answer. What happened is added to `news`.
    pub fn step(&mut self, event: Event, rules: &Rules, now: Millis, news: &mut Vec<News>) -> Option<Action> {
        match event {
            Event::Recovered(assignment) => self.recovered(assignment, now, news),
            Event::Provision(incarnation) => {
                if self.is_free() && now >= self.retry_at() {
                    let vm = VmId { name: self.vm_name.clone(), incarnation };
                    // Unique, so that the name is free and tells by itself whose runner it is.
                    let runner_name = format!("{}-{}", vm.name, vm.incarnation);
                    let scope = rules.scope.clone();
                    let instance = Instance { vm, scope, runner_name, runner_id: None };
                    self.enter(State::Creating { instance, registered: false }, now);
                }
            }
            Event::Tick => self.judge(rules, now, news),
            Event::Registered(answer) => {
                self.awaiting = None;
                let State::Creating { instance, registered } = &mut self.state else { return None };
                match answer {
                    Ok(registration) => {
                        instance.runner_id = registration.runner_id;
                        *registered = true;
                    }
                    Err(failure) => {
                        let wait = self.failed(failure, now, news);
                        self.enter(State::Empty { retry_at: now + wait }, now);
                    }
                }
            }
            Event::Created(answer) => self.created(answer, now, news),
            Event::Destroyed(answer) => self.destroyed(answer, now, news),
            Event::Found(answer) => {
                self.awaiting = None;
                if let State::Destroying(d) = &mut self.state {
                    match answer {
                        Ok(Some(id)) => d.instance.runner_id = Some(id),
                        // What cannot be asked or removed now is swept later.
                        Ok(None) | Err(_) => d.deregistered = true,
                    }
                    self.finish_if_gone(now);
                }
            }
            Event::RunnerRemoved(answer) => self.runner_removed(answer, now, news),
            Event::Answered => {
                if matches!(self.state, State::Booting(_))
                    && let State::Booting(mut live) = self.take_state()
                {
                    live.evidence.answered();
                    news.push(News::Ready(live.instance.vm.clone(), now - self.since));
                    self.enter(State::Ready(live), now);
                }
            }
            Event::JobStarted(job) => {
                if let Some(live) = self.live_mut()
                    && !std::mem::replace(&mut live.job_certain, true)
                {
                    // An earlier sign may have been of a job that was not taken.
                    (live.job_started, live.job_seen_at) = (live.uptime(now), now);
                }
                self.job_starts(job, now, news);
            }
            Event::RunnerEnded { exit_code } => {
                if self.live().is_some() {
                    self.end(Cause::RunnerEnded { exit_code }, rules, now, news);
                }
            }
            Event::JobInProgress(event) => {
                self.learn_runner_id(event.runner_id);
                self.job_starts(event.job, now, news);
            }
            Event::JobCompleted(event) => {
                // A reason to look, which the monitor does at once; no evidence.
                self.learn_runner_id(event.runner_id);
                if self.live().is_some_and(|live| live.job.is_none()) {
                    self.job_runs(event.job, now, news);
                }
            }
            Event::VmObserved(vm) => self.vm_observed(&vm, rules, now, news),
            Event::RunnerObserved(runner) => self.runner_observed(runner, rules, now, news),
            Event::RunnerGone => {
                if let Some(live) = self.live_mut() {
                    live.evidence.runner_gone();
                }
                self.judge(rules, now, news);
            }
            Event::RunnerHidden => {
                if let Some(live) = self.live_mut() {
                    live.evidence.hidden = true;
                }
                self.judge(rules, now, news);
            }
            Event::Orphan(orphan) => {
                if !matches!(self.state, State::Stopped { .. }) {
                    news.push(News::ClearingAway(orphan.vm.clone()));
                    self.orphans.push_back(orphan);
                }
            }
            Event::Retire(reason) => self.retire(reason, news),
            Event::StayIfNotTold => {
                if let State::Ready(live) = &mut self.state
                    && live.retire.as_ref().is_some_and(|retire| retire.told_at.is_none())
                {
                    live.retire = None;
                }
            }
            Event::Written { retire, forgot_jit_config, at } => {
                if let Some(live) = self.live_mut() {
                    live.jit_config_forgotten |= forgot_jit_config;
                    if let Some(retirement) = live.retire.as_mut().filter(|_| retire) {
                        retirement.told_at.get_or_insert(at);
                    }
                }
            }
            Event::Stop(stop) => {
                self.stop = Some(stop);
                // A stop does not wait out a back-off, nor a rate limit of an hour.
                if let State::Destroying(d) = &mut self.state {
                    d.retry_at = now;
                }
            }
        }
        self.next(rules, now, news)
    }

    /// The next action, which follows from the state alone.
    fn next(&mut self, rules: &Rules, now: Millis, news: &mut Vec<News>) -> Option<Action> {
        if self.awaiting.is_some() {
            return None;
        }
        self.obey_stop(rules, now, news);
        if let State::Empty { retry_at } = self.state {
            if now < retry_at {
                return None;
            }
            if let Some(orphan) = self.orphans.pop_front() {
                self.clear_away(orphan, now);
            } else if self.past_size {
                self.enter(State::Stopped { left: None }, now);
            }
        }
        let action = match &mut self.state {
            State::Creating { instance, registered: false } => {
                Some(Action::Register { runner_name: instance.runner_name.clone() })
            }
            State::Creating { instance, registered: true } => Some(Action::CreateVm(instance.clone())),
            State::Ready(live) => live.deregistration_due(now),
            State::Destroying(d) if now >= d.retry_at => Some(d.next_action()),
            _ => None,
        };
        if action.is_some() {
            self.awaiting = Some(Awaiting::State);
            return action;
        }
        self.live()?;
        let orphan = self.orphans.pop_front()?;
        self.awaiting = Some(Awaiting::Orphan);
        Some(Action::DestroyVm(orphan.vm))
    }

    // --- the beginning ---

    fn recovered(&mut self, assignment: Assignment, now: Millis, news: &mut Vec<News>) {
        if !matches!(self.state, State::Recovering) {
            return;
        }
        news.extend(assignment.orphans.iter().map(|orphan| News::ClearingAway(orphan.vm.clone())));
        self.orphans = assignment.orphans.into();
        let Some(OrphanVm { vm, notes: Some(notes) }) = assignment.adopt else {
            return self.enter(State::Empty { retry_at: now }, now);
        };
        news.push(News::Adopted(vm.clone()));
        let live = Live {
            job_started: notes.job_started.map(|seconds| seconds as Millis * 1000),
            noted: notes.job_started,
            job: notes.job_started.map(|_| Job::default()),
            ..Live::new(Instance::of_notes(&vm, &notes), now)
        };
        // It counts as answered: whether it has a job, the first lists tell.
        let state = if live.job.is_some() { State::Running(live) } else { State::Ready(live) };
        self.enter(state, now);
    }

    fn created(&mut self, answer: Result<(), Failure>, now: Millis, news: &mut Vec<News>) {
        self.awaiting = None;
        let State::Creating { instance, .. } = &self.state else { return };
        let instance = instance.clone();
        match answer {
            Ok(()) => {
                news.push(News::Made(instance.vm.clone(), now - self.since));
                // It started since then. Too early a start only makes JOB_TIMEOUT a little longer.
                let evidence = Evidence::of_new_vm(self.since);
                let live = Live { evidence, ..Live::new(instance, now) };
                self.enter(State::Booting(live), now);
            }
            Err(failure) => {
                // The creation has undone itself as far as it could; this makes sure.
                let retry_after = self.failed(failure, now, news);
                self.destroy(instance, self.stop.is_some(), retry_after, now);
            }
        }
    }

    // --- what happens to a VM ---

    /// A runner that registers itself is known by its name, which is unique.
    fn learn_runner_id(&mut self, runner_id: Option<u64>) {
        if let Some(live) = self.live_mut() {
            live.instance.runner_id = live.instance.runner_id.or(runner_id);
        }
    }

    /// A job starts: what was said of the VM before does not know of it.
    fn job_starts(&mut self, job: Job, now: Millis, news: &mut Vec<News>) {
        if let Some(live) = self.live_mut() {
            live.evidence.job_sign(now);
        }
        self.job_runs(job, now, news);
    }

    /// A job is, or was, on the VM.
    fn job_runs(&mut self, job: Job, now: Millis, news: &mut Vec<News>) {
        if let Some(live) = self.live_mut() {
            let vm = live.instance.vm.clone();
            match &mut live.job {
                Some(known) if known.id.is_some() && job.id.is_some() && known.id != job.id => {
                    // The one before was not taken.
                    *known = job.clone();
                    (live.job_started, live.job_seen_at) = (live.uptime(now), now);
                    news.push(News::JobNamed(vm, job));
                }
                Some(known) => {
                    let nameless = known.name.is_none();
                    known.learn(job);
                    if nameless && known.name.is_some() {
                        news.push(News::JobNamed(vm, known.clone()));
                    }
                }
                None => {
                    if live.job_started.is_none() {
                        (live.job_started, live.job_seen_at) = (live.uptime(now), now);
                    }
                    live.job = Some(job.clone());
                    live.retire = None;
                    news.push(News::Job(vm, job));
                }
            }
        }
        if matches!(self.state, State::Booting(_) | State::Ready(_))
            && let State::Booting(live) | State::Ready(live) = self.take_state()
        {
            self.enter(State::Running(live), now);
        }
    }

    fn vm_observed(&mut self, vm: &ObservedVm, rules: &Rules, now: Millis, news: &mut Vec<News>) {
        let Some(live) = self.live_mut().filter(|live| vm.asked_at > live.since) else { return };
        let was_paused = live.evidence.paused;
        if live.evidence.vm_observed(vm) {
            return self.end(Cause::Vanished, rules, now, news);
        }
        match vm.power {
            ObservedPower::Missing => return,
            ObservedPower::Off => return self.end(Cause::PoweredOff, rules, now, news),
            ObservedPower::Paused if !was_paused => news.push(News::Paused(live.instance.vm.clone())),
            _ => {}
        }
        if let Some(notes) = &vm.notes {
            live.noted = notes.job_started;
        }
        // A clock that was off can have put the job's start into the VM's future.
        if live.job.is_some() && vm.asked_at > live.job_seen_at {
            live.job_started = Some(live.job_started.map_or(vm.uptime, |started| started.min(vm.uptime)));
        }
        if live.job_started.is_some_and(|started| vm.uptime - started >= rules.job_timeout()) {
            return self.end(Cause::JobTimeout, rules, now, news);
        }
        if live.evidence.names_worker() {
            let first = live.job.is_none();
            live.job_certain = true;
            if first {
                self.job_starts(Job::default(), now, news);
            }
        }
        self.judge(rules, now, news);
    }

    fn runner_observed(&mut self, runner: ObservedRunner, rules: &Rules, now: Millis, news: &mut Vec<News>) {
        let Some(live) = self.live_mut().filter(|live| runner.asked_at > live.since) else { return };
        live.instance.runner_id.get_or_insert(runner.id);
        live.evidence.runner_observed(&runner);
        if runner.busy && live.job.is_none() {
            self.job_starts(Job::default(), now, news);
        }
        self.judge(rules, now, news);
    }

    /// What follows from all that is known of a VM, now that more is known or time has passed.
    fn judge(&mut self, rules: &Rules, now: Millis, news: &mut Vec<News>) {
        match &self.state {
            State::Booting(_) if now >= self.since + rules.boot_timeout() => {
                self.end(Cause::BootTimeout, rules, now, news);
            }
            State::Ready(live) if live.evidence.runner_is_dead(live.idle_patience(rules)) => {
                self.end(Cause::RunnerGone, rules, now, news);
            }
            State::Ready(live) if live.is_given_up(rules, now) => {
                self.end(Cause::RunnerGone, rules, now, news)
            }
            State::Running(live) if live.evidence.runner_is_dead(live.evidence.patience_with_job()) => {
                self.end(Cause::RunnerGone, rules, now, news);
            }
            State::Running(live) if !live.job_certain && live.evidence.job_was_not_taken() => {
                if let State::Running(mut live) = self.take_state() {
                    (live.job, live.job_started) = (None, None);
                    news.push(News::JobNotTaken(live.instance.vm.clone()));
                    self.enter(State::Ready(live), now);
                }
            }
            _ => {}
        }
        // An hour of life clears a failure, and so does an hour without need of a VM.
        let calm = self.live().map_or(self.failed_at, |live| live.since.max(self.failed_at));
        if self.reason.is_some() && now - calm >= HEALED_AFTER {
            self.clear_failure();
        }
    }

    fn retire(&mut self, reason: RetireReason, news: &mut Vec<News>) {
        if let State::Ready(live) = &mut self.state {
            if live.retire.is_none() {
                news.push(News::Retiring(live.instance.vm.clone(), reason));
            }
            live.retire
                .get_or_insert(Retirement { reason, told_at: None, deregistered: false, tried_on: None })
                .reason = reason;
        }
    }

    // --- removing a VM ---

    /// The VM is of no further use.
    fn end(&mut self, cause: Cause, rules: &Rules, now: Millis, news: &mut Vec<News>) {
        let from = self.phase();
        if self.live().is_none() {
            return;
        }
        let (State::Booting(live) | State::Ready(live) | State::Running(live)) = self.take_state() else {
            return;
        };
        // A guest that ends when asked to retire does as it is told.
        let cause = match live.retire.as_ref().filter(|retire| retire.told_at.is_some()) {
            Some(retire) if from == Phase::Ready && cause != Cause::Vanished => Cause::Retired(retire.reason),
            _ => cause,
        };
        let had_job = live.job.is_some();
        let job = live.job.map(|job| {
            let started = live.evidence.started_at.unwrap_or(live.since) + live.job_started.unwrap_or(0);
            (job, (now - started).max(0))
        });
        news.push(News::Ended { vm: live.instance.vm.clone(), cause: cause.clone(), job });
        let retry_after = match &cause {
            Cause::Retired(_) | Cause::Stop => 0,
            _ if had_job => {
                self.jobs_completed += u64::from(cause != Cause::JobTimeout);
                self.clear_failure();
                0
            }
            cause => {
                let why = match (cause, from) {
                    (Cause::BootTimeout, _) => format!(
                        "the guest did not fetch its configuration within {} s of starting (see C:\\actions-runner\\pool-guest.log in the image)",
                        rules.boot_timeout() / 1000
                    ),
                    (Cause::PoweredOff, Phase::Booting) => {
                        "the VM powered off before its guest fetched its configuration".into()
                    }
                    (Cause::RunnerGone, _) => {
                        "the runner was removed from GitHub, or did not stay online".into()
                    }
                    (cause, _) => format!("the VM ended without a job: {cause}"),
                };
                self.failed(Failure { why, retry_after: None }, now, news)
            }
        };
        self.destroy(live.instance, false, retry_after, now);
    }

    fn destroy(&mut self, instance: Instance, look_again: bool, retry_after: Millis, now: Millis) {
        let destroying = Destroying {
            deregistered: false,
            instance,
            retry_after,
            vm_gone: false,
            look_again,
            attempts: 0,
            retry_at: now,
        };
        self.enter(State::Destroying(destroying), now);
    }

    /// Destroys an orphan as this slot's own VM, so that nothing is created before it is gone.
    fn clear_away(&mut self, orphan: OrphanVm, now: Millis) {
        let known = orphan.notes.as_ref().map(|notes| Instance::of_notes(&orphan.vm, notes));
        let deregistered = known.is_none();
        let instance = known.unwrap_or_else(|| Instance {
            vm: orphan.vm,
            scope: crate::github::scope::Scope {
                api_url: String::new(),
                owner: String::new(),
                repository: None,
            },
            runner_name: String::new(),
            runner_id: None,
        });
        self.destroy(instance, false, 0, now);
        if let State::Destroying(d) = &mut self.state {
            d.deregistered = deregistered;
        }
    }

    fn destroyed(&mut self, answer: Result<(), Failure>, now: Millis, news: &mut Vec<News>) {
        if self.awaiting.take() == Some(Awaiting::Orphan) {
            // The monitor finds it again if it is still there.
            return;
        }
        let since = self.since;
        let State::Destroying(d) = &mut self.state else { return };
        match answer {
            Ok(()) if d.look_again => {
                d.look_again = false;
                d.retry_at = now + SECOND_LOOK_AFTER;
            }
            Ok(()) => {
                d.vm_gone = true;
                news.push(News::Destroyed(d.instance.vm.clone(), now - since));
                self.finish_if_gone(now);
            }
            Err(failure) => {
                d.attempts = d.attempts.saturating_add(1);
                let attempts = d.attempts;
                news.push(News::Failed(self.vm_name.clone(), failure.why.clone()));
                self.reason = Some(failure.why);
                self.failed_at = now;
                let wait = back_off::SLOT.wait(attempts, &mut self.random);
                if let State::Destroying(d) = &mut self.state {
                    d.retry_at = now + wait;
                }
            }
        }
    }

    fn runner_removed(&mut self, answer: Result<Removal, Failure>, now: Millis, news: &mut Vec<News>) {
        self.awaiting = None;
        match (&mut self.state, answer) {
            // What cannot be removed now is swept later.
            (State::Destroying(d), _) => {
                d.deregistered = true;
                self.finish_if_gone(now);
            }
            (State::Ready(live), Ok(Removal::Removed | Removal::NotThere)) => {
                if let Some(retire) = &mut live.retire {
                    retire.deregistered = true;
                }
                live.evidence.runner_gone();
            }
            (State::Ready(_), Ok(Removal::Busy)) => self.job_starts(Job::default(), now, news),
            // The next list is the occasion for the next try.
            _ => {}
        }
    }

    fn finish_if_gone(&mut self, now: Millis) {
        let State::Destroying(d) = &self.state else { return };
        if d.vm_gone && d.deregistered {
            // What could not be destroyed before is destroyed now.
            if d.attempts > 0 && self.failures == 0 {
                self.reason = None;
            }
            let retry_at = now + d.retry_after;
            self.enter(State::Empty { retry_at }, now);
        }
    }

    // --- stopping ---

    fn obey_stop(&mut self, rules: &Rules, now: Millis, news: &mut Vec<News>) {
        let Some(stop) = self.stop else { return };
        match (&mut self.state, stop) {
            (State::Stopped { .. }, _) => {}
            (State::Recovering | State::Empty { .. }, _) => self.enter(State::Stopped { left: None }, now),
            (State::Creating { registered: false, .. }, _) => {
                self.enter(State::Stopped { left: None }, now);
            }
            (State::Creating { instance, registered: true }, _) => {
                // No VM was begun for this registration.
                let instance = instance.clone();
                self.destroy(instance, false, 0, now);
                if let State::Destroying(d) = &mut self.state {
                    d.vm_gone = true;
                    d.deregistered = d.instance.runner_id.is_none();
                    if d.deregistered {
                        self.enter(State::Stopped { left: None }, now);
                    }
                }
            }
            (State::Booting(_), _) | (State::Ready(_) | State::Running(_), Stop::Destroy) => {
                self.end(Cause::Stop, rules, now, news);
            }
            (State::Ready(_), Stop::Keep) => self.retire(RetireReason::Stop, news),
            (State::Running(live), Stop::Keep) => {
                let left = Some(live.instance.clone());
                self.enter(State::Stopped { left }, now);
            }
            // What cannot be removed now, the next start finds and removes.
            (State::Destroying(d), _) if d.attempts >= TRIES_AT_STOP => {
                let left = (!d.vm_gone).then(|| d.instance.clone());
                self.enter(State::Stopped { left }, now);
            }
            (State::Destroying(_), _) => {}
        }
    }

    // --- small parts ---

    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Recovering)
    }

    fn enter(&mut self, state: State, now: Millis) {
        self.state = state;
        self.since = now;
    }

    /// Counts a failure. Answers how long to wait before the next try.
    fn failed(&mut self, failure: Failure, now: Millis, news: &mut Vec<News>) -> Millis {
        news.push(News::Failed(self.vm_name.clone(), failure.why.clone()));
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(failure.why);
        self.failed_at = now;
        back_off::SLOT.wait_at_least(self.failures, failure.retry_after.unwrap_or(0), &mut self.random)
    }

    fn clear_failure(&mut self) {
        self.failures = 0;
        self.reason = None;
    }
}

impl Live {
    fn new(instance: Instance, now: Millis) -> Live {
        Live {
            instance,
            since: now,
            evidence: Evidence::default(),
            job: None,
            job_certain: false,
            job_started: None,
            job_seen_at: now,
            noted: None,
            retire: None,
            jit_config_forgotten: false,
        }
    }

    /// How long the VM has been running, in milliseconds, once that is known.
    fn uptime(&self, now: Millis) -> Option<Millis> {
        self.evidence.started_at.map(|started| now - started)
    }

    /// For how long GitHub must miss the runner of a VM without a job.
    fn idle_patience(&self, rules: &Rules) -> Millis {
        let deregistered = self.retire.as_ref().is_some_and(|retire| retire.deregistered);
        if deregistered { 0 } else { rules.boot_timeout() }
    }

    /// Whether a guest that does not retire is ended although GitHub does not
    /// let the pool see its runner: when it has named no Worker for as long as
    /// GitHub would hold a job, or cannot be heard and has had the time of any job.
    fn is_given_up(&self, rules: &Rules, now: Millis) -> bool {
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
    fn deregistration_due(&mut self, now: Millis) -> Option<Action> {
        let overdue_at = if self.evidence.is_mute() { 0 } else { RETIRE_TIMEOUT };
        let idle_at = self.evidence.found_idle_at()?;
        let runner_id = self.instance.runner_id?;
        let retire = self.retire.as_mut().filter(|retire| !retire.deregistered)?;
        let due =
            now - retire.told_at? >= overdue_at && now <= idle_at + FRESH && retire.tried_on < Some(idle_at);
        due.then(|| {
            retire.tried_on = Some(idle_at);
            let scope = self.instance.scope.clone();
            Action::RemoveRunner { scope, runner_id, not_after: Some(idle_at + FRESH) }
        })
    }
}

impl Destroying {
    fn next_action(&self) -> Action {
        if !self.vm_gone {
            return Action::DestroyVm(self.instance.vm.clone());
        }
        let scope = self.instance.scope.clone();
        match self.instance.runner_id {
            Some(runner_id) => Action::RemoveRunner { scope, runner_id, not_after: None },
            None => Action::FindRunner { scope, runner_name: self.instance.runner_name.clone() },
        }
    }
}

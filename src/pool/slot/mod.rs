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

mod ending;
pub mod evidence;
mod live;
pub mod types;

use super::back_off::{self, Random};
use super::{Millis, Rules, millis};
use crate::github;
use crate::hypervisor::{self, VmId, VmWrite};
use crate::secret::Secret;
use ending::Destroying;
use evidence::Evidence;
use live::Live;
use std::collections::VecDeque;
use types::{Action, Cause, Event, Instance, Job, News, OrphanVm, Phase, RetireReason, SlotSnapshot, Stop};

#[derive(Clone, Debug)]
enum State {
    Recovering,
    Empty { retry_at: Millis },
    Creating { instance: Instance, credential: Option<Secret> },
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

/// What a step goes by, and where it tells what happened.
#[derive(Debug)]
pub struct Context<'a> {
    /// What the pool goes by.
    pub rules: &'a Rules,
    /// When it happens.
    pub now: Millis,
    /// What happened.
    pub news: &'a mut Vec<News>,
}

/// One slot of the pool. See the module's head.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The slot's number, from 1.
    pub number: u32,
    vm_name: String,
    past_size: bool,
    random: Random,
    state: State,
    /// When the state was entered.
    pub since: Millis,
    awaiting: Option<Awaiting>,
    orphans: VecDeque<OrphanVm>,
    /// Failures in a row.
    pub failures: u32,
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
            created_in: live.and_then(|live| live.created_in),
            booted_in: live.and_then(|live| live.booted_in),
            job: live.and_then(|live| live.job.clone()),
            job_time: live.and_then(|live| Some(now - live.evidence.started_at? - live.job_started?)),
            retiring: self.retiring(),
            paused: live.is_some_and(|live| live.evidence.paused),
            guest: live.and_then(|live| live.evidence.word.clone()),
            retry_at: self.retry_at().filter(|at| *at > now),
            failures: self.failures,
            reason: self.reason.clone(),
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

    /// From when on it may be told to make a VM. `None` while it has one, or
    /// something to destroy, or is to make none.
    pub fn free_at(&self) -> Option<Millis> {
        match self.state {
            State::Empty { retry_at } if !self.past_size && self.stop.is_none() && !self.has_orphans() => {
                Some(retry_at)
            }
            _ => None,
        }
    }

    /// Until when it waits before it goes on.
    fn retry_at(&self) -> Option<Millis> {
        match &self.state {
            State::Empty { retry_at } => Some(*retry_at),
            State::Destroying(d) if self.awaiting.is_none() => Some(d.retry_at),
            _ => None,
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

    /// The name of the VMs that it makes.
    pub fn vm_name(&self) -> &str {
        &self.vm_name
    }

    /// Whether an operator wants its VM replaced.
    pub(super) fn is_to_recycle(&self) -> bool {
        self.live().is_some_and(|live| live.to_recycle)
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

    /// What its VM was made of, by the last list.
    pub(super) fn made_of(&self) -> Option<&String> {
        self.live()?.made_of.as_ref()
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
        let forget_jit_config = live.holds_jit_config && !matches!(self.state, State::Booting(_));
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
    /// its answer.
    pub fn step(&mut self, event: Event, cx: &mut Context) -> Option<Action> {
        match event {
            Event::Recovered(found) => self.recovered(found, cx),
            Event::Provision(incarnation) => {
                if self.free_at().is_some_and(|at| at <= cx.now) {
                    let vm = VmId { name: self.vm_name.clone(), incarnation };
                    let instance = Instance::new(vm, cx.rules.scope.clone());
                    self.enter(State::Creating { instance, credential: None }, cx.now);
                }
            }
            Event::Tick => self.judge(cx),
            Event::Registered(answer) => {
                self.awaiting = None;
                let State::Creating { instance, credential } = &mut self.state else { return None };
                match answer {
                    Ok(registration) => {
                        instance.runner_id = registration.runner_id;
                        *credential = Some(registration.credential);
                    }
                    Err(error) => {
                        let retry_after = match &error {
                            github::Error::RateLimited { retry_after, .. } => millis(*retry_after),
                            _ => 0,
                        };
                        // GitHub's errors say themselves what was not done.
                        let why = error.to_string();
                        self.tell_failure("register", &why, cx.news);
                        let wait = self.count_failure(why, retry_after, cx.now);
                        self.enter(State::Empty { retry_at: cx.now + wait }, cx.now);
                    }
                }
            }
            Event::Created(answer) => self.created(answer, cx),
            Event::Destroyed(answer) => self.destroyed(answer, cx),
            Event::Examined(findings) => self.examined(findings, cx),
            Event::RunnerRemoved(answer) => self.runner_removed(answer, cx),
            Event::Answered => {
                if self.phase() == Phase::Booting
                    && let Some(mut live) = self.take_live()
                {
                    live.evidence.forget_away();
                    live.booted_in = Some(cx.now - self.since);
                    cx.news.push(News::Ready(live.instance.vm.clone(), cx.now - self.since));
                    self.enter(State::Ready(live), cx.now);
                }
            }
            Event::JobStarted(job) => {
                if let Some(live) = self.live_mut()
                    && !std::mem::replace(&mut live.job_certain, true)
                {
                    // An earlier sign may have been of a job that was not taken.
                    (live.job_started, live.job_seen_at) = (live.uptime(cx.now), cx.now);
                }
                self.job_starts(job, cx);
            }
            Event::RunnerEnded { exit_code } => {
                self.end(Cause::RunnerEnded { exit_code }, cx);
            }
            Event::JobInProgress(event) => {
                self.learn_runner_id(event.runner_id);
                self.job_starts(event.job, cx);
            }
            Event::JobCompleted(event) => {
                // A reason to look, which the monitor does at once; no evidence.
                self.learn_runner_id(event.runner_id);
                if let Some(live) = self.live_mut() {
                    match &mut live.job {
                        None => {
                            live.evidence.forget_away();
                            self.job_runs(event.job, cx);
                        }
                        Some(known) if known.id.is_none() || known.id == event.job.id => {
                            known.learn(event.job);
                        }
                        // One before it, which the runner did not take.
                        Some(_) => {}
                    }
                }
            }
            Event::VmObserved(vm, asked_at) => self.vm_observed(vm.as_deref(), asked_at, cx),
            Event::RunnerObserved(runner, asked_at) => self.runner_observed(&runner, asked_at, cx),
            Event::RunnerGone => {
                if let Some(live) = self.live_mut() {
                    live.evidence.runner_gone();
                }
                self.judge(cx);
            }
            Event::RunnerHidden => {
                if let Some(live) = self.live_mut() {
                    live.evidence.hidden = true;
                }
                self.judge(cx);
            }
            Event::Orphan(orphan) => {
                if !matches!(self.state, State::Stopped { .. }) {
                    cx.news.push(News::ClearingAway(orphan.vm.clone()));
                    self.orphans.push_back(orphan);
                }
            }
            Event::Retire(reason) => self.retire(reason, cx),
            Event::Recycle => self.recycle(cx.now),
            Event::StayIfNotTold => {
                if self.stop.is_none()
                    && let State::Ready(live) = &mut self.state
                    && live.retire.as_ref().is_some_and(|retire| retire.told_at.is_none())
                {
                    live.retire = None;
                }
            }
            Event::ToldToRetire => {
                if let Some(retire) = self.live_mut().and_then(|live| live.retire.as_mut()) {
                    retire.told_at.get_or_insert(cx.now);
                }
            }
            Event::Stop(stop) => {
                self.stop = Some(stop);
                // A stop does not wait out a back-off, nor a rate limit of an hour.
                if let State::Destroying(d) = &mut self.state {
                    d.retry_at = cx.now;
                }
            }
        }
        self.next(cx)
    }

    /// The next action, which follows from the state alone.
    fn next(&mut self, cx: &mut Context) -> Option<Action> {
        if self.awaiting.is_some() {
            return None;
        }
        self.finish_if_gone(cx.now);
        self.obey_stop(cx);
        if let State::Empty { retry_at } = self.state {
            if cx.now < retry_at {
                return None;
            }
            if let Some(orphan) = self.orphans.pop_front() {
                self.clear_away(orphan, cx.rules, cx.now);
            } else if self.past_size {
                self.enter(State::Stopped { left: None }, cx.now);
            }
        }
        let action = match &mut self.state {
            State::Creating { instance, credential: None } => {
                Some(Action::Register { runner_name: instance.runner_name.clone() })
            }
            State::Creating { instance, credential } => Some(Action::CreateVm {
                instance: instance.clone(),
                jit_config: credential.clone().filter(|_| cx.rules.jit),
            }),
            State::Ready(live) => live.deregistration_due(cx.now),
            State::Destroying(d) if cx.now >= d.retry_at => Some(d.next_action()),
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

    fn recovered(&mut self, found: Vec<OrphanVm>, cx: &mut Context) {
        if !matches!(self.state, State::Recovering) {
            return;
        }
        let (mut to_adopt, orphans): (Vec<_>, Vec<_>) = found.into_iter().partition(OrphanVm::may_have_job);
        self.orphans = orphans.into();
        cx.news.extend(self.orphans.iter().map(|orphan| News::ClearingAway(orphan.vm.clone())));
        let Some(OrphanVm { vm, notes: Some(notes), .. }) = to_adopt.pop() else {
            return self.enter(State::Empty { retry_at: cx.now }, cx.now);
        };
        cx.news.push(News::Adopted(vm.clone()));
        let live = Live {
            job_started: notes.job_started.map(|seconds| seconds as Millis * 1000),
            noted: notes.job_started,
            job: notes.job_started.map(|_| Job::default()),
            ..Live::new(Instance::of_notes(&vm, &notes), cx.now)
        };
        // It counts as answered: whether it has a job, the first lists tell.
        let state = if live.job.is_some() { State::Running(live) } else { State::Ready(live) };
        self.enter(state, cx.now);
    }

    fn created(&mut self, answer: Result<(), hypervisor::Error>, cx: &mut Context) {
        self.awaiting = None;
        let State::Creating { instance, credential } = &mut self.state else { return };
        let (instance, credential) = (instance.clone(), credential.take());
        match answer {
            Ok(()) => {
                cx.news.push(News::Made(instance.vm.clone(), cx.now - self.since));
                // It started since then. Too early a start only makes JOB_TIMEOUT a little longer.
                let evidence = Evidence::of_new_vm(self.since);
                let token = if cx.rules.jit { Some(Secret::new("")) } else { credential };
                let created_in = Some(cx.now - self.since);
                let live = Live { created_in, evidence, token, ..Live::new(instance, cx.now) };
                self.enter(State::Booting(live), cx.now);
            }
            Err(error) => {
                // The creation has undone itself as far as it could; this makes sure.
                let why = format!("cannot create its VM: {error}");
                self.tell_failure("create", &why, cx.news);
                let retry_after = self.count_failure(why, 0, cx.now);
                let look_again = self.stop.is_some();
                let remains = Destroying { retry_after, look_again, ..Destroying::new(instance, cx.now) };
                self.enter(State::Destroying(remains), cx.now);
            }
        }
    }

    // --- small parts ---

    /// Takes the VM out of its state, which has to be entered anew.
    fn take_live(&mut self) -> Option<Live> {
        self.live()?;
        match std::mem::replace(&mut self.state, State::Recovering) {
            State::Booting(live) | State::Ready(live) | State::Running(live) => Some(live),
            _ => None,
        }
    }

    fn enter(&mut self, state: State, now: Millis) {
        self.state = state;
        self.since = now;
    }

    fn tell_failure(&self, what: &'static str, why: &str, news: &mut Vec<News>) {
        news.push(News::Failed { whose: self.vm_name.clone(), what, why: why.into() });
    }

    /// A try failed. Answers how long to wait before the next.
    fn count_failure(&mut self, why: String, retry_after: Millis, now: Millis) -> Millis {
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(why);
        self.failed_at = now;
        back_off::wait_at_least(self.failures, retry_after, &mut self.random)
    }

    /// What has failed is tried again now, and waits as after a first failure if it fails again.
    fn recycle(&mut self, now: Millis) {
        match &mut self.state {
            State::Ready(live) => live.to_recycle = true,
            State::Empty { retry_at } => *retry_at = now.min(*retry_at),
            State::Destroying(d) => (d.retry_at, d.retry_after) = (now.min(d.retry_at), 0),
            _ => return,
        }
        self.failures = self.failures.min(1);
    }

    fn clear_failure(&mut self) {
        self.failures = 0;
        self.reason = None;
    }
}

//! The truth: what exists on the host and at GitHub, what guests and jobs do.

use super::plan::{Config, DAY, Fault, HOUR, MINUTE, SECOND};
use super::process::{Brought, Call, Process};
use super::{Action, Bug, Ev, Hook, Sim, VmEv};
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::github::{Error, QueuedJob, Registration, Removal, Runner};
use hyperv_runner_pool::hypervisor::{
    self, GuestWord, Heartbeat, Inventory, Notes, Power, Vm, VmId, VmWrite,
};
use hyperv_runner_pool::pool::monitor::Answer;
use hyperv_runner_pool::pool::slot::types::{Event, Findings, Instance, Stop};
use hyperv_runner_pool::pool::{Millis, Refusal};
use hyperv_runner_pool::secret::Secret;
use std::rc::Rc;
use std::time::Duration;

/// The mark in the Notes of this pool's VMs.
pub const IDENTITY: &str = "pool";

/// The pool's tag, and that of a pool on another host.
pub const TAG: &str = "7a9e0001";
const OTHER_TAG: &str = "7a9e0002";

const CREATE_DEADLINE: Millis = 5 * MINUTE;
const DESTROY_DEADLINE: Millis = 3 * MINUTE;

/// How long GitHub holds a job for a runner that it does not hear.
const LEASE: Millis = 10 * MINUTE;

/// How late a guest's word may be, at most.
const MOST_LAG: Millis = 50 * SECOND;

/// What a guest was given to start its runner with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Jit(u64),
    Token,
}

/// A VM on the host.
#[derive(Debug)]
pub struct SimVm {
    pub id: Rc<VmId>,
    /// The incarnation.
    pub number: u64,
    pub scope: Scope,
    pub fingerprint: u64,
    pub notes: Option<Notes>,
    pub on: bool,
    /// When it was turned on.
    on_since: Millis,
    /// How often it has been started or restarted. Events of an earlier start are void.
    pub started: u32,
    /// It came into being after its creation had been given up.
    pub ghost: bool,
    /// The slot that made or adopted it: process and index.
    pub owner: (u32, usize),
    pub job: Option<u64>,
    pub jobs: u32,
    /// The registration of the runner that it runs.
    pub runner: Option<u64>,
    /// In its key-values: the JIT configuration of this registration.
    jit: Option<u64>,
    /// What its guest read of it before it asked for the rest.
    jit_read: Option<u64>,
    /// What it got as its configuration.
    pub config: Option<(String, Credential)>,
    /// Its guest never says anything by key-values.
    mute: bool,
    /// Its guest has booted, and so is heard by Hyper-V.
    booted: bool,
    /// Since when its guest hangs.
    hangs: Option<Millis>,
    /// How late its word is, when its Worker came or went last, and what was before.
    lag: Millis,
    worker_changed: Millis,
    worker_before: bool,
    /// It has seen a Worker, and so obeys no wish to retire.
    had_worker: bool,
    told_to_retire: bool,
    /// When it was given a job first, whether or not it took that.
    first_given: Option<Millis>,
    /// Its listener has ended, or is not to start any more.
    over: bool,
}

impl SimVm {
    /// What the guest says by now of its Worker.
    fn says_worker(&self, now: Millis) -> bool {
        if now - self.worker_changed >= self.lag { self.job.is_some() } else { self.worker_before }
    }

    fn worker_changes(&mut self, now: Millis) {
        self.worker_before = self.says_worker(now);
        self.worker_changed = now;
    }
}

/// A registration at GitHub.
#[derive(Clone, Debug)]
pub struct SimRunner {
    pub id: u64,
    pub scope: Scope,
    pub name: String,
    pub online: bool,
    pub job: Option<u64>,
    /// It has had its one job.
    pub spent: bool,
    pub ephemeral: bool,
    pub foreign: bool,
    /// GitHub has called it offline although it was not.
    lied: bool,
    /// Since when it is offline.
    away_since: Millis,
    /// Until when lists show that status instead.
    pub lag: Option<(Millis, bool, bool)>,
}

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    pub takes: Millis,
    pub began: Millis,
    pub runner: Option<(u64, String)>,
    /// Whether it is the scale set's.
    pub assigned: bool,
    pub over: bool,
}

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Act {
    Register(String, Scope),
    Remove(u64, Scope),
    RemoveByName(String, Scope),
    /// The VM, its slot, and the registration whose JIT configuration it gets.
    Create(Instance, u32, Option<u64>),
    Destroy(VmId),
    Keep(VmId),
    Examine(VmId),
    ListVms(Vec<VmWrite>),
    ListRunners(Scope),
    ById(u64, Scope),
    QueuedJobs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// Fails before this stage; creation undoes what it has done.
    FailsClean(u8),
    /// Fails before this stage and leaves what it has done.
    FailsDirty(u8),
    /// Stays before this stage until the deadline.
    Hangs(u8),
    /// It is done, but the answer is lost.
    AnswerLost,
    RateLimited,
    /// GitHub refuses the token.
    Refused,
}

/// A call of the pool to the world, under way.
#[derive(Debug)]
pub struct Op {
    pub generation: u32,
    /// The slot's index, or none for the monitor.
    pub slot: Option<usize>,
    pub act: Act,
    pub stage: u8,
    pub outcome: Outcome,
    pub began: Millis,
    /// When the pool decided on it.
    pub decided: Millis,
    /// Somebody waits for the answer.
    pub awaited: bool,
    /// It does nothing any more.
    pub dead: bool,
    pub answer: Option<Brought>,
    pub forced: bool,
    pub job_timeout: Millis,
    pub jit: bool,
}

/// Whether the host does it, and not GitHub.
fn is_local(act: &Act) -> bool {
    matches!(act, Act::Create(..) | Act::Destroy(_) | Act::Keep(_) | Act::Examine(_) | Act::ListVms(_))
}

/// The incarnation as a number.
pub fn number_of(vm: &VmId) -> u64 {
    u64::from_str_radix(&vm.incarnation, 16).unwrap_or(0)
}

impl Sim {
    /// What is there before the pool, and must never be touched.
    pub(crate) fn populate(&mut self) {
        self.foreign_vms = vec!["runner-1".into(), "database".into()];
        let own = super::process::rules(&self.plan.config).scope;
        let elsewhere = ["octo", "acme"].map(|owner| (owner, None)).into_iter();
        let elsewhere = elsewhere.chain(["octo", "acme"].map(|owner| (owner, Some("app"))));
        for (owner, repository) in elsewhere {
            let scope = Scope {
                api_url: own.api_url.clone(),
                owner: owner.into(),
                repository: repository.map(str::to_owned),
            };
            self.foreign(&scope, "build-box", true, false);
            self.foreign(&scope, "runner-9", false, false);
            self.foreign(&scope, "runner-1-old", false, true);
            self.foreign(&scope, &format!("runner-1-{OTHER_TAG}00000001"), false, true);
            if scope != own {
                // Ids count per scope, so that those of this pool's runners are others' elsewhere.
                (0..60).for_each(|i| self.foreign(&scope, &format!("prod-{i}"), i % 2 == 0, i % 2 == 1));
                self.last_runner.insert(scope, 104 + 60);
            } else if self.plan.other_host {
                self.foreign(&scope, &format!("runner-1-{OTHER_TAG}00000002"), true, true);
                self.foreign(&scope, &format!("runner-3-{OTHER_TAG}00000003"), true, true);
            }
        }
    }

    fn foreign(&mut self, scope: &Scope, name: &str, online: bool, ephemeral: bool) {
        let id = self.next_runner_id(scope);
        self.runners.push(SimRunner {
            id,
            scope: scope.clone(),
            name: name.into(),
            online,
            job: None,
            spent: false,
            ephemeral,
            foreign: true,
            lied: false,
            away_since: 0,
            lag: None,
        });
    }

    fn next_runner_id(&mut self, scope: &Scope) -> u64 {
        let last = self.last_runner.entry(scope.clone()).or_insert(100);
        *last += 1;
        *last
    }

    pub(crate) fn clock(&self) -> Millis {
        self.now + self.jumped
    }

    /// What a VM made now is made of.
    pub(crate) fn fingerprint(&self, config: &Config) -> u64 {
        let owner = if config.owner == "octo" { 0 } else { 1 };
        self.template * 8 + owner * 4 + u64::from(config.repository) * 2 + u64::from(config.jit)
    }

    pub(crate) fn runner_online(&self, vm: &SimVm) -> bool {
        self.runner_of(vm).is_some_and(|at| self.runners[at].online)
    }

    fn runner_of(&self, vm: &SimVm) -> Option<usize> {
        self.runner_at(vm.runner?, &vm.scope)
    }

    fn runner_at(&self, id: u64, scope: &Scope) -> Option<usize> {
        self.runners.iter().position(|r| r.id == id && r.scope == *scope)
    }

    // --- operations ---

    pub(crate) fn begin_op(&mut self, slot: Option<usize>, act: Act, decided: Millis, forced: bool) {
        let local = is_local(&act);
        let own_scope = super::process::rules(&self.known.config).scope;
        let elsewhere = match &act {
            Act::Register(_, scope)
            | Act::Remove(_, scope)
            | Act::RemoveByName(_, scope)
            | Act::ById(_, scope) => *scope != own_scope,
            _ => false,
        };
        let outcome = match &act {
            Act::Create(..) if self.now < self.disk_full_until => {
                if self.rng.one_in(2) {
                    Outcome::FailsClean(0)
                } else {
                    Outcome::FailsDirty(1)
                }
            }
            Act::Create(..) => {
                let at = self.rng.below(5) as u8;
                if self.fault(Fault::CreateFails) {
                    // The start is the last step: once it is done, nothing is undone.
                    Outcome::FailsClean(at.min(3))
                } else if self.fault(Fault::CreateHalf) {
                    Outcome::FailsDirty(at)
                } else if self.fault(Fault::CreateHangs) {
                    Outcome::Hangs(at)
                } else {
                    Outcome::Good
                }
            }
            Act::Destroy(_) | Act::Keep(_) => {
                let at = self.rng.below(4) as u8;
                if self.fault(Fault::DestroyFails) {
                    Outcome::FailsDirty(at)
                } else if self.fault(Fault::DestroyHangs) {
                    Outcome::Hangs(at)
                } else {
                    Outcome::Good
                }
            }
            Act::Examine(_) if self.fault(Fault::ExamineHangs) => Outcome::Hangs(0),
            Act::Examine(_) => Outcome::Good,
            Act::ListVms(_) if self.fault(Fault::ListFails) => Outcome::FailsClean(0),
            Act::ListVms(_) => Outcome::Good,
            _ if self.now < self.github_down_until => Outcome::FailsClean(0),
            _ if self.now < self.refused_until || (elsewhere && self.scope_refused) => Outcome::Refused,
            _ if self.now < self.rate_limited_until => Outcome::RateLimited,
            _ => {
                if self.fault(Fault::GitHubFails) {
                    Outcome::FailsClean(0)
                } else if self.fault(Fault::AnswerLost) {
                    Outcome::AnswerLost
                } else if self.fault(Fault::RateLimited) {
                    self.rate_limited_until = self.now + self.rng.between(10 * SECOND, HOUR);
                    Outcome::RateLimited
                } else {
                    Outcome::Good
                }
            }
        };
        let slow = !local && self.fault(Fault::GitHubSlow);
        let op = Op {
            generation: self.generation,
            slot,
            act,
            stage: 0,
            outcome,
            began: self.now,
            decided,
            awaited: true,
            dead: false,
            answer: None,
            forced,
            job_timeout: self.known.config.job_timeout,
            jit: self.known.config.jit,
        };
        let key = match self.free_ops.pop() {
            Some(key) => {
                self.ops[key] = Some(op);
                key
            }
            None => {
                self.ops.push(Some(op));
                self.ops.len() - 1
            }
        };
        if self.fault(Fault::KilledInEffect) {
            let wait = self.rng.between(0, if local { 8 * SECOND } else { 800 });
            self.after(wait, Ev::Kill(self.generation));
        }
        let wait = if slow { self.rng.between(SECOND, 30 * SECOND) } else { self.stage_takes(local) };
        self.after(wait, Ev::Op(key));
    }

    fn stage_takes(&mut self, local: bool) -> Millis {
        if local { self.rng.between(50, 2 * SECOND) } else { self.rng.between(20, 400) }
    }

    /// The pool kills the process that performs it.
    pub(crate) fn cut_off(&mut self, key: usize) {
        if let Some(op) = self.ops[key].as_mut() {
            op.outcome = Outcome::Hangs(op.stage);
            op.began = self.now - CREATE_DEADLINE;
        }
    }

    pub(crate) fn op_goes_on(&mut self, key: usize) {
        let Some(mut op) = self.ops[key].take() else { return };
        if op.dead {
            self.free_ops.push(key);
            return;
        }
        let stages = match op.act {
            Act::Create(..) => 4,
            Act::Destroy(_) | Act::Keep(_) => 3,
            _ => 1,
        };
        let local = is_local(&op.act);
        let broke = || Error::Failed("it broke".into());
        let mut failed = None;
        match op.outcome {
            Outcome::FailsClean(at) if op.stage == at => {
                if let Act::Create(made, ..) = &op.act {
                    let made = made.vm.clone();
                    self.remove_vm(&op, &made, 0..3);
                }
                failed = Some(broke());
            }
            Outcome::FailsDirty(at) if op.stage == at => failed = Some(broke()),
            Outcome::Refused => failed = Some(Error::Refused("no".into())),
            Outcome::RateLimited => {
                let wait = (self.rate_limited_until - self.now).max(0) + SECOND;
                let retry_after = Duration::from_millis(wait as u64);
                failed = Some(Error::RateLimited { retry_after, why: "too many".into() });
            }
            Outcome::Hangs(at) if op.stage == at => {
                let deadline = match op.act {
                    Act::Create(..) => CREATE_DEADLINE,
                    _ => DESTROY_DEADLINE,
                };
                let left = op.began + deadline - self.now;
                if left > 0 {
                    self.ops[key] = Some(op);
                    self.after(left, Ev::Op(key));
                    return;
                }
                self.answer(&mut op, Some(broke()));
                // The process was killed at its deadline. What it had asked of the hypervisor may go on.
                if op.stage < stages && self.fault(Fault::CreateGoesOn) {
                    op.outcome = Outcome::Good;
                    self.ops[key] = Some(op);
                    let wait = self.rng.between(0, 3 * MINUTE);
                    self.after(wait, Ev::Op(key));
                } else {
                    self.free_ops.push(key);
                }
                return;
            }
            _ => {}
        }
        if failed.is_some() {
            self.answer(&mut op, failed);
            self.free_ops.push(key);
            return;
        }
        if op.stage == stages {
            let lost = (op.outcome == Outcome::AnswerLost).then(broke);
            self.answer(&mut op, lost);
            self.free_ops.push(key);
            return;
        }
        if !self.op_stage(&mut op) {
            self.answer(&mut op, Some(broke()));
            self.free_ops.push(key);
            return;
        }
        op.stage += 1;
        let last = op.stage == stages;
        self.ops[key] = Some(op);
        // What the answer says can be old by the time that the pool looks at it.
        let held_up = last && self.fault(Fault::Preempted);
        let wait = if held_up { self.held_up() } else { self.stage_takes(local) };
        self.after(wait, Ev::Op(key));
    }

    fn answer(&mut self, op: &mut Op, failed: Option<Error>) {
        if !std::mem::replace(&mut op.awaited, false) {
            return;
        }
        let broke = || hypervisor::Error("it broke".into());
        let brought = match (&op.act, failed) {
            (Act::Register(..), Some(error)) => Brought::ToSlot(Event::Registered(Err(error))),
            (Act::Remove(..) | Act::RemoveByName(..), Some(error)) if op.slot.is_some() => {
                Brought::ToSlot(Event::RunnerRemoved(Err(error)))
            }
            (Act::Create(..), Some(_)) => Brought::ToSlot(Event::Created(Err(broke()))),
            (Act::Destroy(_) | Act::Keep(_), Some(_)) => Brought::ToSlot(Event::Destroyed(Err(broke()))),
            (Act::Examine(_), _) => Brought::ToSlot(Event::Examined(Findings::default())),
            (Act::ListVms(_), Some(error)) => Brought::ToMonitor(Answer::Vms(Err(error.to_string()))),
            (Act::ListRunners(_), Some(error)) => Brought::ToMonitor(Answer::Runners(Err(error))),
            (Act::ById(..), Some(error)) => Brought::ToMonitor(Answer::Runner(Err(error))),
            (Act::Remove(..) | Act::RemoveByName(..), Some(error)) => {
                Brought::ToMonitor(Answer::Removed(Err(error)))
            }
            (Act::QueuedJobs, Some(error)) => Brought::ToMonitor(Answer::QueuedJobs(Err(error))),
            (Act::Create(..), None) => Brought::ToSlot(Event::Created(Ok(()))),
            (Act::Destroy(_) | Act::Keep(_), None) => Brought::ToSlot(Event::Destroyed(Ok(()))),
            (_, None) => match op.answer.take() {
                Some(brought) => brought,
                None => return,
            },
        };
        self.deliver(op.generation, op.slot, brought);
    }

    /// One stage takes effect. Returns whether it could.
    fn op_stage(&mut self, op: &mut Op) -> bool {
        match &op.act {
            Act::Create(made, slot, jit) => {
                let (made, slot, jit) = (made.clone(), *slot, *jit);
                return self.create_stage(op, &made, slot, jit);
            }
            Act::Destroy(vm) => {
                let vm = vm.clone();
                let stage = usize::from(op.stage);
                self.remove_vm(op, &vm, stage..stage + 1);
            }
            Act::Keep(vm) => {
                let vm = vm.clone();
                self.keep_stage(op, &vm);
            }
            Act::Examine(vm) => {
                let number = number_of(vm);
                if self.vms.iter().any(|vm| vm.number == number && (vm.jobs > 0 || vm.job.is_some())) {
                    self.violate(6, format!("the screen of {vm} was kept although it had a job"));
                }
            }
            Act::Register(name, scope) => {
                let (name, scope) = (name.clone(), scope.clone());
                let registered = if !op.jit {
                    Ok(Registration { runner_id: None, credential: Secret::new("token") })
                } else if self.runners.iter().any(|r| r.name == name && r.scope == scope) {
                    Err(Error::NameTaken)
                } else {
                    let id = self.register(name, scope);
                    Ok(Registration { runner_id: Some(id), credential: Secret::new(format!("jit-{id}")) })
                };
                op.answer = Some(Brought::ToSlot(Event::Registered(registered)));
            }
            Act::RemoveByName(name, scope) => {
                let (scope, found) =
                    (scope.clone(), self.runners.iter().find(|r| r.name == *name && r.scope == *scope));
                let removal = match found.map(|runner| runner.id) {
                    Some(id) => self.remove_runner(id, &scope, true),
                    None => Removal::NotThere,
                };
                op.answer = Some(Brought::ToSlot(Event::RunnerRemoved(Ok(removal))));
            }
            Act::Remove(id, scope) => {
                let (id, scope) = (*id, scope.clone());
                let removal = self.remove_runner(id, &scope, true);
                op.answer = Some(match op.slot {
                    Some(_) => Brought::ToSlot(Event::RunnerRemoved(Ok(removal))),
                    None => Brought::ToMonitor(Answer::Removed(Ok(removal))),
                });
            }
            Act::ListVms(writes) => {
                let writes = writes.clone();
                writes.iter().for_each(|write| self.write(write));
                let listed = (self.inventory(), Some(self.fingerprint(&self.known.config).to_string()));
                op.answer = Some(Brought::ToMonitor(Answer::Vms(Ok(listed))));
            }
            Act::ListRunners(scope) => {
                let mut listed: Vec<Runner> =
                    self.runners.iter().filter(|r| r.scope == *scope).map(|r| self.listed(r)).collect();
                if !listed.is_empty() && self.fault(Fault::RunnerUnlisted) {
                    let at = self.rng.below(listed.len() as u64) as usize;
                    listed.remove(at);
                }
                op.answer = Some(Brought::ToMonitor(Answer::Runners(Ok(listed))));
            }
            Act::ById(id, scope) => {
                let found = self.runner_at(*id, scope).map(|at| self.listed(&self.runners[at]));
                op.answer = Some(Brought::ToMonitor(Answer::Runner(Ok(found))));
            }
            Act::QueuedJobs => {
                let labels: Vec<String> = vec!["self-hosted".into()];
                let jobs = self.waiting.iter().map(|&id| QueuedJob { id, labels: labels.clone() }).collect();
                op.answer = Some(Brought::ToMonitor(Answer::QueuedJobs(Ok(jobs))));
            }
        }
        true
    }

    // --- the hypervisor ---

    fn create_stage(&mut self, op: &Op, made: &Instance, slot: u32, jit: Option<u64>) -> bool {
        let number = number_of(&made.vm);
        let at = self.vms.iter().position(|vm| vm.number == number);
        match op.stage {
            0 => {
                if !self.used_disks.insert((op.generation, made.vm.disk_file_name())) {
                    self.violate(1, format!("disk {} is used twice", made.vm.disk_file_name()));
                }
                self.disks.push(made.vm.clone());
            }
            1 => {
                // The disk may have been cleared away if its maker was given up.
                if !self.disks.iter().any(|disk| disk.incarnation == made.vm.incarnation) {
                    return false;
                }
                let owner = (op.generation, op.slot.unwrap_or(usize::MAX));
                if op.awaited {
                    let others = self.vms.iter().filter(|vm| !vm.ghost);
                    let size = self.known.config.size;
                    if others.clone().count() >= size as usize {
                        self.violate(2, format!("{} is one VM more than POOL_SIZE {size}", made.vm));
                    }
                    let other = self.vms.iter().find(|vm| !vm.ghost && vm.owner == owner);
                    if let Some(other) = other {
                        self.violate(2, format!("{} and {} at a time, of one slot", made.vm, other.id));
                    }
                }
                self.report.vms_made += 1;
                let mute = self.plan.mute || self.fault(Fault::GuestMute);
                let lag = if self.fault(Fault::WordLate) { self.rng.between(SECOND, MOST_LAG) } else { 0 };
                self.vms.push(SimVm {
                    id: Rc::new(made.vm.clone()),
                    number,
                    scope: made.scope.clone(),
                    fingerprint: self.fingerprint(&self.known.config),
                    notes: None,
                    on: false,
                    on_since: 0,
                    started: 0,
                    ghost: !op.awaited,
                    owner,
                    job: None,
                    jobs: 0,
                    runner: None,
                    jit,
                    jit_read: None,
                    config: None,
                    mute,
                    booted: false,
                    hangs: None,
                    lag,
                    worker_changed: 0,
                    worker_before: false,
                    had_worker: false,
                    told_to_retire: false,
                    over: false,
                    first_given: None,
                });
            }
            2 => {
                let Some(at) = at else { return false };
                self.vms[at].notes = Some(Notes {
                    pool: IDENTITY.into(),
                    slot,
                    incarnation: made.vm.incarnation.clone(),
                    scope: made.scope.clone(),
                    runner_name: made.runner_name.clone(),
                    runner_id: made.runner_id,
                    fingerprint: Some(self.vms[at].fingerprint.to_string()),
                    created: (self.clock() / 1000) as u64,
                    job_started: None,
                });
            }
            _ => {
                let Some(at) = at else { return false };
                self.vms[at].ghost |= !op.awaited;
                self.vms[at].on = true;
                self.vms[at].on_since = self.now;
                self.guest_starts(at);
            }
        }
        self.world_version += 1;
        true
    }

    /// Whether the VM's job may be ended now: only for the design's reasons.
    fn may_end_job(&self, op: &Op, vm: &SimVm, job: u64) -> bool {
        let forced =
            op.forced || (self.known.stop == Some(Stop::Destroy) && op.generation == self.generation);
        let since = vm.first_given.unwrap_or(self.jobs[job as usize].began);
        let timed_out = self.now - since >= op.job_timeout;
        // GitHub itself has given the runner up, and the guest cannot be heard.
        let lost = |since: Millis| self.now - since >= LEASE;
        let given_up = self.runner_of(vm).is_none_or(|at| {
            let runner = &self.runners[at];
            !runner.online && lost(runner.away_since)
        });
        let unheard = vm.mute || vm.hangs.is_some_and(lost);
        // Nobody can tell anything of a mute guest where the token has no access.
        let own = super::process::rules(&self.known.config).scope;
        let unknowable = unheard && vm.told_to_retire && vm.scope != own && self.scope_refused;
        // GitHub lied of a runner without a job, which got one when its VM's end was decided, or while that failed.
        let began = self.jobs[job as usize].began;
        let lied =
            self.runner_of(vm).is_some_and(|at| self.runners[at].lied) && began >= op.decided - 5 * SECOND;
        lied || unknowable || forced || timed_out || (unheard && given_up)
    }

    /// Turns a VM off (0), removes it (1), deletes its disk (2).
    fn remove_vm(&mut self, op: &Op, vm: &VmId, stages: std::ops::Range<usize>) {
        self.world_version += 1;
        if self.options.bug == Some(Bug::DestroyByName)
            && let Some(at) = self.foreign_vms.iter().position(|name| *name == vm.name)
        {
            self.foreign_vms.remove(at);
            self.violate(5, format!("{} is not the pool's and was destroyed", vm.name));
        }
        let number = number_of(vm);
        let at = self.vms.iter().position(|vm| vm.number == number);
        for stage in stages {
            match (stage, at) {
                (0, Some(at)) => {
                    if let Some(job) = self.vms[at].job
                        && !self.may_end_job(op, &self.vms[at], job)
                    {
                        self.violate(3, format!("{vm} was destroyed while job {job} ran on it"));
                    }
                    self.power_off(at);
                }
                (1, Some(at)) => {
                    if self.vms[at].on {
                        self.power_off(at);
                    }
                    self.vms.remove(at);
                }
                (2, _) => self.disks.retain(|disk| disk.incarnation != vm.incarnation),
                _ => {}
            }
        }
    }

    /// Turns a VM off (0) and, in the end (2), marks it as kept in the place of the one before: no
    /// two do that at a time.
    fn keep_stage(&mut self, op: &Op, vm: &VmId) {
        self.world_version += 1;
        let number = number_of(vm);
        let Some(at) = self.vms.iter().position(|vm| vm.number == number) else { return };
        match op.stage {
            0 => self.remove_vm(op, vm, 0..1),
            1 => {}
            _ => {
                if self.vms[at].on {
                    self.violate(3, format!("{vm} was kept although it was on"));
                }
                self.vms.remove(at);
                self.disks.retain(|disk| disk.incarnation != vm.incarnation);
                self.kept = vec![vm.clone()];
            }
        }
    }

    /// What the pool writes to a VM, while its Notes bear that incarnation.
    fn write(&mut self, write: &VmWrite) {
        let number = number_of(&write.vm);
        let Some(at) = self.vms.iter().position(|vm| vm.number == number && vm.notes.is_some()) else {
            return;
        };
        self.world_version += 1;
        let vm = &mut self.vms[at];
        if let Some(notes) = vm.notes.as_mut().filter(|_| write.job_started.is_some()) {
            notes.job_started = write.job_started;
        }
        if write.forget_jit_config {
            vm.jit = None;
        }
        if write.retire && !vm.told_to_retire {
            vm.told_to_retire = true;
            let (number, started, mute) = (vm.number, vm.started, vm.mute);
            if !mute && !self.fault(Fault::RetireIgnored) {
                let wait = self.rng.between(SECOND, 10 * SECOND);
                self.after(wait, Ev::Vm(number, started, VmEv::Retires));
            }
        }
    }

    fn inventory(&mut self) -> Inventory {
        // Not two lists in a row.
        let may = !self.known.left_out && !self.vms.is_empty();
        self.known.left_out = may && self.fault(Fault::VmUnlisted);
        let skip = self.known.left_out.then(|| self.rng.below(self.vms.len() as u64) as usize);
        let now = self.now;
        let full = now < self.disk_full_until;
        let vms = self.vms.iter().enumerate().filter(|(i, _)| Some(*i) != skip).map(|(_, vm)| Vm {
            id: (*vm.id).clone(),
            power: match vm.on {
                true if full && vm.number % 2 == 0 => Power::Paused,
                true => Power::On,
                false => Power::Off,
            },
            uptime: Duration::from_millis(if vm.on { (now - vm.on_since) as u64 } else { 0 }),
            heartbeat: match vm.hangs {
                Some(since) if now - since >= 10 * SECOND => Heartbeat::Lost,
                _ if vm.booted && vm.on => Heartbeat::Ok,
                _ => Heartbeat::Unknown,
            },
            guest: (vm.booted && !vm.mute).then(|| GuestWord {
                stage: "listening".into(),
                last_error: None,
                worker: vm.says_worker(vm.hangs.unwrap_or(now)),
            }),
            holds_jit_config: Some(vm.jit.is_some()),
            notes: vm.notes.clone(),
        });
        let free_bytes = Some(if full { 1 << 30 } else { 100 << 30 });
        Inventory { vms: vms.collect(), disks: self.disks.clone(), kept: self.kept.clone(), free_bytes }
    }

    fn power_off(&mut self, at: usize) {
        let vm = &mut self.vms[at];
        if !vm.on {
            return;
        }
        vm.on = false;
        vm.started += 1;
        self.world_version += 1;
        self.runner_process_ends(at);
    }

    /// Whatever runner runs in the VM is gone, and its job with it.
    fn runner_process_ends(&mut self, at: usize) {
        let now = self.now;
        let vm = &mut self.vms[at];
        vm.worker_changes(now);
        let job = vm.job.take();
        let scope = vm.scope.clone();
        if let Some(runner) = vm.runner.take() {
            let wait = self.rng.between(SECOND, MINUTE);
            self.after(wait, Ev::Offline(Box::new((runner, scope))));
        }
        if let Some(job) = job {
            let stuck = self.fault(Fault::StuckBusy);
            let (low, high) = if stuck { (HOUR, 3 * HOUR) } else { (MINUTE, 15 * MINUTE) };
            let wait = self.rng.between(low, high);
            self.after(wait, Ev::GiveUp(job));
        }
    }

    // --- guests ---

    fn guest_starts(&mut self, at: usize) {
        self.vms[at].started += 1;
        self.vms[at].booted = false;
        let (number, started) = (self.vms[at].number, self.vms[at].started);
        let bad_template = self.now < self.bad_template_until;
        if self.fault(Fault::PowerOff) {
            let mean = [MINUTE, 10 * MINUTE, HOUR][self.rng.below(3) as usize];
            let wait = self.rng.wait(mean);
            self.after(wait, Ev::Vm(number, started, VmEv::PowersOff));
        }
        if self.fault(Fault::VmVanishes) {
            let wait = self.rng.wait(30 * MINUTE);
            self.after(wait, Ev::Vm(number, started, VmEv::Vanishes));
        }
        if self.fault(Fault::GuestReboots) {
            let wait = self.rng.wait(15 * MINUTE);
            self.after(wait, Ev::Vm(number, started, VmEv::Reboots));
        }
        if self.fault(Fault::GuestHangs) {
            let wait = self.rng.wait(15 * MINUTE);
            self.after(wait, Ev::Vm(number, started, VmEv::Hangs));
        }
        if bad_template || self.fault(Fault::NeverBoots) || self.fault(Fault::GuestSilent) {
            return;
        }
        let late = self.fault(Fault::BootsLate);
        let wait = if late {
            // About when the pool gives it up.
            let limit = self.plan.config.boot_timeout;
            if self.rng.one_in(2) {
                self.rng.between(limit / 2, limit * 2)
            } else {
                self.rng.between(limit - 6 * SECOND, limit + 2 * SECOND)
            }
        } else {
            self.rng.between(10 * SECOND, 90 * SECOND)
        };
        self.after(wait, Ev::Vm(number, started, VmEv::Ask(0)));
    }

    pub(crate) fn vm_event(&mut self, number: u64, started: u32, what: VmEv) {
        let Some(at) = self.vms.iter().position(|vm| vm.number == number) else { return };
        let vm = &self.vms[at];
        if what == VmEv::Vanishes {
            self.power_off(at);
            self.vms.remove(at);
            if self.rng.one_in(2) {
                self.disks.retain(|disk| number_of(disk) != number);
            }
            return;
        }
        let works = vm.hangs.is_none() || matches!(what, VmEv::PowersOff);
        if vm.started != started || !vm.on || !works {
            return;
        }
        let id = Rc::clone(&vm.id);
        match what {
            VmEv::Ask(tries) => self.guest_asks(at, &id, started, tries),
            VmEv::RunnerStarts => self.runner_starts(at, started),
            VmEv::JobEnds(job) => self.job_ends(at, job),
            VmEv::SaysComplete(tries) => {
                let told = self.tell(&id, Call::Ended).is_some();
                let (next, wait) = if told || tries >= 4 {
                    if self.fault(Fault::StaysOn) {
                        return;
                    }
                    (VmEv::PowersOff, self.rng.between(SECOND, 20 * SECOND))
                } else {
                    (VmEv::SaysComplete(tries + 1), 10 * SECOND)
                };
                self.after(wait, Ev::Vm(number, started, next));
            }
            VmEv::RunnerDies => {
                self.vms[at].over = true;
                self.runner_process_ends(at);
                self.after(SECOND, Ev::Vm(number, started, VmEv::SaysComplete(0)));
            }
            VmEv::Retires => {
                // An idle listener that is interrupted ends at once; one that has had a Worker is left alone.
                if vm.job.is_none() && !vm.had_worker && !vm.over {
                    self.vms[at].over = true;
                    self.runner_process_ends(at);
                    self.after(SECOND, Ev::Vm(number, started, VmEv::SaysComplete(0)));
                }
            }
            VmEv::Hangs => {
                self.world_version += 1;
                self.vms[at].hangs = Some(self.now);
                self.runner_is_lost(at);
            }
            VmEv::Reboots => {
                self.runner_process_ends(at);
                // A guest that finds its marker powers off: no second job.
                if self.vms[at].config.is_some() {
                    let wait = self.rng.between(10 * SECOND, 90 * SECOND);
                    self.vms[at].started += 1;
                    self.vms[at].booted = false;
                    self.after(wait, Ev::Vm(number, started + 1, VmEv::PowersOff));
                } else {
                    self.guest_starts(at);
                }
            }
            VmEv::PowersOff => self.power_off(at),
            VmEv::Vanishes => {}
        }
    }

    /// GitHub does not hear the VM's runner any more, while the VM is on.
    fn runner_is_lost(&mut self, at: usize) {
        let (runner, scope) = (self.vms[at].runner, self.vms[at].scope.clone());
        if let Some(runner) = runner {
            let wait = self.rng.between(SECOND, MINUTE);
            self.after(wait, Ev::Offline(Box::new((runner, scope))));
        }
        if let Some(job) = self.vms[at].job {
            let wait = self.rng.between(LEASE, LEASE + MINUTE);
            self.after(wait, Ev::GiveUp(job));
        }
    }

    /// A guest calls the pool. `None` if it got no answer.
    fn tell(
        &mut self,
        id: &Rc<VmId>,
        call: Call,
    ) -> Option<Result<Option<hyperv_runner_pool::pool::RunnerConfig>, Refusal>> {
        if self.fault(Fault::CallForged) {
            let forged = VmId { name: id.name.clone(), incarnation: format!("{:016x}", self.rng.next()) };
            let call = [Call::Config, Call::Started, Call::Ended][self.rng.below(3) as usize];
            self.call(&forged, call, true);
        }
        // What is asked late or twice only looks like the guest's: its answer reaches nobody.
        if call != Call::Config && self.fault(Fault::CallTwice) {
            let wait = self.rng.between(0, 30 * SECOND);
            self.after(wait, Ev::Call(Rc::clone(id), call, false));
        }
        if call != Call::Config && self.fault(Fault::CallLate) {
            let wait = self.rng.between(SECOND, 30 * MINUTE);
            self.after(wait, Ev::Call(Rc::clone(id), call, false));
            return None;
        }
        if self.fault(Fault::CallLost) {
            if self.rng.one_in(2) {
                self.call(id, call, false);
            }
            return None;
        }
        self.call(id, call, false)
    }

    fn guest_asks(&mut self, at: usize, id: &Rc<VmId>, started: u32, tries: u16) {
        let vm = &mut self.vms[at];
        if tries == 0 {
            vm.jit_read = vm.jit;
        }
        let (number, jit) = (vm.number, vm.jit_read);
        vm.booted = true;
        match self.tell(id, Call::Config) {
            Some(Ok(Some(config))) => {
                let credential = match (jit, config.token.expose()) {
                    (Some(id), "") => Credential::Jit(id),
                    (None, "token") => Credential::Token,
                    // It has rebooted, and the pool has removed what it had before.
                    _ => return self.after(SECOND, Ev::Vm(number, started, VmEv::PowersOff)),
                };
                let Some(vm) = self.vms.iter_mut().find(|vm| vm.number == number) else { return };
                vm.config = Some((config.runner_name, credential));
                if self.fault(Fault::RunnerHangs) {
                    return;
                }
                let wait = self.rng.between(SECOND, 15 * SECOND);
                self.after(wait, Ev::Vm(number, started, VmEv::RunnerStarts));
            }
            Some(Err(refusal)) if refusal != Refusal::NotReady => {
                let wait = self.rng.between(SECOND, 10 * SECOND);
                self.after(wait, Ev::Vm(number, started, VmEv::PowersOff));
            }
            _ if tries < 90 => self.after(10 * SECOND, Ev::Vm(number, started, VmEv::Ask(tries + 1))),
            _ => self.power_off(at),
        }
    }

    fn runner_starts(&mut self, at: usize, started: u32) {
        let (number, scope) = (self.vms[at].number, self.vms[at].scope.clone());
        let Some((name, credential)) = self.vms[at].config.clone().filter(|_| !self.vms[at].over) else {
            return;
        };
        let runner = match credential {
            Credential::Jit(id) => self.runner_at(id, &scope).filter(|&at| !self.runners[at].spent),
            Credential::Token if self.runners.iter().any(|r| r.name == name && r.scope == scope) => None,
            Credential::Token => {
                self.register(name, scope);
                Some(self.runners.len() - 1)
            }
        };
        let Some(runner) = runner else {
            // The runner ends at once.
            self.after(2 * SECOND, Ev::Vm(number, started, VmEv::SaysComplete(0)));
            return;
        };
        self.vms[at].runner = Some(self.runners[runner].id);
        self.set_status(runner, |r| r.online = true);
        if self.fault(Fault::RunnerDies) {
            let wait = self.rng.wait(20 * MINUTE);
            self.after(wait, Ev::Vm(number, started, VmEv::RunnerDies));
        }
        self.assign_jobs();
    }

    // --- GitHub ---

    fn register(&mut self, name: String, scope: Scope) -> u64 {
        let id = self.next_runner_id(&scope);
        self.world_version += 1;
        self.after(DAY, Ev::Expire(Box::new((id, scope.clone()))));
        let away_since = self.now;
        self.runners.push(SimRunner {
            id,
            scope,
            name,
            online: false,
            job: None,
            spent: false,
            ephemeral: true,
            foreign: false,
            lied: false,
            away_since,
            lag: None,
        });
        id
    }

    fn listed(&self, runner: &SimRunner) -> Runner {
        let (online, busy) = match runner.lag {
            Some((until, online, busy)) if self.now < until => (online, busy),
            _ => (runner.online, runner.job.is_some()),
        };
        let labels = if runner.ephemeral {
            vec!["self-hosted".into(), "Windows".into(), "ephemeral".into()]
        } else {
            vec!["self-hosted".into(), "Windows".into()]
        };
        Runner { id: runner.id, name: runner.name.clone(), online, busy, labels }
    }

    fn set_status(&mut self, at: usize, change: impl FnOnce(&mut SimRunner)) {
        self.world_version += 1;
        let now = self.now;
        let before = (self.runners[at].online, self.runners[at].job.is_some());
        change(&mut self.runners[at]);
        let runner = &mut self.runners[at];
        if before.0 && !runner.online {
            runner.away_since = now;
        }
        let (foreign, got_job) = (runner.foreign, !before.1 && runner.job.is_some());
        if !foreign && got_job && self.fault(Fault::BusyWrong) {
            self.runners[at].lag = Some((now + 12 * HOUR, true, false));
        } else if !foreign && got_job && self.fault(Fault::OfflineWrong) {
            self.runners[at].lied = true;
            self.runners[at].lag = Some((now + self.rng.between(MINUTE, LEASE - MINUTE), false, false));
        } else if !foreign && self.fault(Fault::StatusLags) {
            self.runners[at].lag = Some((now + self.rng.between(SECOND, MINUTE), before.0, before.1));
        } else if self.runners[at].job.is_none() || !self.runners[at].online {
            self.runners[at].lag = None;
        }
    }

    /// Removes a registration, as the pool asks (or, not by the pool, a script or GitHub itself).
    pub(crate) fn remove_runner(&mut self, id: u64, scope: &Scope, by_pool: bool) -> Removal {
        let Some(at) = self.runner_at(id, scope) else { return Removal::NotThere };
        if self.runners[at].foreign && by_pool {
            let name = self.runners[at].name.clone();
            self.violate(5, format!("runner {name} is not the pool's and was removed"));
        }
        let vm = self.vms.iter().position(|vm| vm.runner == Some(id) && vm.scope == *scope);
        if let Some(job) = self.runners[at].job {
            if !self.fault(Fault::DeleteOnBusy) {
                return Removal::Busy;
            }
            // GitHub removes it all the same, and the listener cancels its job.
            if let Some(vm) = vm.map(|vm| &self.vms[vm]) {
                let young = self.now - self.jobs[job as usize].began <= 3 * MINUTE;
                if by_pool && vm.job.is_some() && !vm.mute && !young {
                    self.violate(3, format!("the runner of {} was removed while job {job} ran on it", vm.id));
                }
            }
            self.report.jobs_failed += 1;
            self.job_over(job);
        }
        self.runners.remove(at);
        self.world_version += 1;
        // The listener notices at its next poll, cancels its job if it has one, and ends.
        if let Some(vm) = vm {
            let (number, started) = (self.vms[vm].number, self.vms[vm].started);
            self.vms[vm].runner = None;
            let wait = self.rng.between(SECOND, 50 * SECOND);
            self.after(wait, Ev::Vm(number, started, VmEv::RunnerDies));
        }
        Removal::Removed
    }

    pub(crate) fn runner_offline(&mut self, id: u64, scope: &Scope) {
        // It may have connected again.
        let works = |vm: &SimVm| vm.on && vm.hangs.is_none() && vm.runner == Some(id) && vm.scope == *scope;
        if self.vms.iter().any(works) {
            return;
        }
        if let Some(at) = self.runner_at(id, scope) {
            self.set_status(at, |r| r.online = false);
        }
    }

    /// GitHub removes an ephemeral runner that has not been connected for a day:
    /// <https://docs.github.com/en/actions/hosting-your-own-runners/managing-self-hosted-runners/removing-self-hosted-runners>
    pub(crate) fn expire(&mut self, id: u64, scope: &Scope) {
        let Some(at) = self.runner_at(id, scope) else { return };
        if self.runners[at].online || self.runners[at].job.is_some() {
            self.after(DAY, Ev::Expire(Box::new((id, scope.clone()))));
        } else {
            self.deregister(id, scope);
        }
    }

    pub(crate) fn deregister(&mut self, id: u64, scope: &Scope) {
        self.runners.retain(|r| r.id != id || r.scope != *scope);
        self.world_version += 1;
    }

    // --- jobs ---

    pub(crate) fn job_arrives(&mut self) {
        if self.quiet {
            return;
        }
        let wait = self.rng.wait(self.plan.job_every);
        self.after(wait, Ev::Job);
        if !self.plan.config.scale_set && self.fault(Fault::HookForeign) {
            self.foreign_hook();
        }
        if self.waiting.len() > 50 {
            return;
        }
        let (least, most) = self.plan.job_takes;
        let takes = if self.fault(Fault::JobTooLong) { 2 * DAY } else { self.rng.between(least, most) };
        let id = self.jobs.len() as u64;
        self.jobs.push(Job { takes, began: 0, runner: None, assigned: false, over: false });
        self.waiting.push_back(id);
        self.send_hook(Hook { action: Action::Queued, job_id: id, ours: true, runner: None });
        if self.fault(Fault::JobCanceled) {
            let wait = self.rng.between(SECOND, 5 * MINUTE);
            self.after(wait, Ev::Cancel(id));
        }
        self.assign_jobs();
    }

    /// Somebody cancels a job that still waits.
    pub(crate) fn cancel(&mut self, job: u64) {
        if let Some(at) = self.waiting.iter().position(|&id| id == job) {
            self.waiting.remove(at);
            self.job_over(job);
        }
    }

    /// GitHub gives waiting jobs to runners that are connected and idle.
    pub(crate) fn assign_jobs(&mut self) {
        let scope = super::process::rules(&self.plan.config).scope;
        let is_given = |sim: &Sim, job: u64| !sim.plan.config.scale_set || sim.jobs[job as usize].assigned;
        while self.waiting.front().is_some_and(|&job| is_given(self, job)) {
            let idle = |r: &SimRunner| {
                r.scope == scope
                    && r.online
                    && r.job.is_none()
                    && !r.spent
                    && r.ephemeral
                    && (!r.foreign || !self.quiet)
            };
            let count = self.runners.iter().filter(|r| idle(r)).count();
            if count == 0 {
                return;
            }
            let nth = self.rng.below(count as u64) as usize;
            let Some(at) = (0..self.runners.len()).filter(|&i| idle(&self.runners[i])).nth(nth) else {
                return;
            };
            let Some(job) = self.waiting.pop_front() else { return };
            self.assign(job, at);
        }
    }

    fn assign(&mut self, job: u64, at: usize) {
        let (runner, scope) =
            ((self.runners[at].id, self.runners[at].name.clone()), self.runners[at].scope.clone());
        let now = self.now;
        let state = &mut self.jobs[job as usize];
        state.began = now;
        state.runner = Some(runner.clone());
        let takes = state.takes;
        self.set_status(at, |r| r.job = Some(job));
        self.trace(|_| format!("job {job} goes to runner {} ({})", runner.0, runner.1));
        let action = Action::InProgress;
        self.send_hook(Hook { action, job_id: job, ours: true, runner: Some(runner.clone()) });
        if self.runners[at].foreign {
            let wait = takes.min(HOUR);
            self.after(wait, Ev::GiveUp(job));
            return;
        }
        let its = |vm: &&mut SimVm| vm.runner == Some(runner.0) && vm.scope == scope;
        if let Some(vm) = self.vms.iter_mut().find(its) {
            vm.first_given.get_or_insert(now);
        }
        if self.fault(Fault::JobNotTaken) {
            // It is canceled before the runner acquires it: the listener goes on listening.
            let wait = self.rng.between(10 * SECOND, 3 * MINUTE);
            self.after(wait, Ev::NotTaken(job));
            return;
        }
        let its =
            |vm: &&mut SimVm| vm.on && vm.hangs.is_none() && vm.runner == Some(runner.0) && vm.scope == scope;
        let Some(vm) = self.vms.iter_mut().find(its) else {
            // It has just gone, and GitHub does not know yet.
            let wait = self.rng.between(MINUTE, 15 * MINUTE);
            self.after(wait, Ev::GiveUp(job));
            return;
        };
        vm.worker_changes(now);
        vm.job = Some(job);
        vm.had_worker = true;
        vm.jobs += 1;
        let (number, started, jobs, id) = (vm.number, vm.started, vm.jobs, Rc::clone(&vm.id));
        if jobs > 1 {
            self.violate(1, format!("{id} gets its job number {jobs}"));
        }
        self.after(takes, Ev::Vm(number, started, VmEv::JobEnds(job)));
        if !self.fault(Fault::CallLost) {
            let late = self.fault(Fault::CallLate);
            let wait = self.rng.between(100, if late { 30 * MINUTE } else { 5 * SECOND });
            self.after(wait, Ev::Call(id, Call::Started, false));
        }
    }

    /// A job that was given to a runner and canceled before it began is over, and the runner idle again.
    pub(crate) fn not_taken(&mut self, job: u64) {
        let Some((id, name)) = self.jobs[job as usize].runner.clone() else { return };
        if self.jobs[job as usize].over {
            return;
        }
        self.job_over(job);
        let at = self.runners.iter().position(|r| r.id == id && r.name == name && r.job == Some(job));
        if let Some(at) = at {
            self.set_status(at, |r| r.job = None);
            self.assign_jobs();
        }
    }

    fn job_ends(&mut self, at: usize, job: u64) {
        let now = self.now;
        let vm = &mut self.vms[at];
        if vm.job != Some(job) {
            return;
        }
        vm.worker_changes(now);
        vm.job = None;
        let (number, started, runner, scope) = (vm.number, vm.started, vm.runner.take(), vm.scope.clone());
        self.report.jobs_completed += 1;
        self.job_over(job);
        if let Some(id) = runner
            && let Some(runner) = self.runner_at(id, &scope)
        {
            // GitHub forgets it now, or soon.
            self.runners[runner].spent = true;
            self.set_status(runner, |r| {
                r.job = None;
                r.online = false;
            });
            let wait = if self.rng.one_in(4) { self.rng.between(0, MINUTE) } else { 0 };
            if wait == 0 {
                self.deregister(id, &scope);
            } else {
                self.after(wait, Ev::Deregister(Box::new((id, scope))));
            }
        }
        let wait = self.rng.between(SECOND, 5 * SECOND);
        // Some jobs end with a restart of their machine.
        let next = if self.fault(Fault::GuestReboots) { VmEv::Reboots } else { VmEv::SaysComplete(0) };
        self.after(wait, Ev::Vm(number, started, next));
    }

    /// GitHub gives a job up whose runner has gone; or a job on another pool's runner ends.
    pub(crate) fn give_up(&mut self, job: u64) {
        let Some((id, name)) = self.jobs[job as usize].runner.clone() else { return };
        if self.jobs[job as usize].over {
            return;
        }
        self.job_over(job);
        let at = self.runners.iter().position(|r| r.id == id && r.name == name && r.job == Some(job));
        let Some(at) = at else { return };
        let foreign = self.runners[at].foreign;
        if !foreign {
            self.report.jobs_failed += 1;
            self.runners[at].spent = true;
        }
        self.set_status(at, |r| r.job = None);
        if !foreign && self.runners[at].online {
            let scope = self.runners[at].scope.clone();
            self.deregister(id, &scope);
        }
    }

    pub(crate) fn job_over(&mut self, job: u64) {
        let state = &mut self.jobs[job as usize];
        state.over = true;
        let runner = state.runner.clone();
        self.send_hook(Hook { action: Action::Completed, job_id: job, ours: true, runner });
    }

    // --- webhooks ---

    fn send_hook(&mut self, hook: Hook) {
        if self.plan.config.scale_set {
            return self.tell_queue_of(hook);
        }
        let twice = self.fault(Fault::HookTwice);
        for _ in 0..=usize::from(twice) {
            if self.fault(Fault::HookLost) {
                continue;
            }
            let wait = if self.fault(Fault::HookHoursLate) {
                self.rng.between(HOUR, 6 * HOUR)
            } else if self.fault(Fault::HookDelayed) {
                self.rng.between(SECOND, 10 * MINUTE)
            } else {
                self.rng.between(100, 3 * SECOND)
            };
            self.after(wait, Ev::Hook(Box::new(hook.clone())));
        }
    }

    /// A webhook about a runner of another pool: another tag, perhaps an id that is this pool's elsewhere.
    fn foreign_hook(&mut self) {
        let prefix = self.plan.config.prefix.clone();
        let name = format!("{prefix}{}-{OTHER_TAG}0000000{}", 1 + self.rng.below(4), self.rng.below(9));
        let runner = self.rng.one_in(2).then(|| (100 + self.rng.below(100), name));
        let action = [Action::Queued, Action::InProgress, Action::Completed][self.rng.below(3) as usize];
        // A job of its own, that is: no runner of this pool has it.
        let job_id = 1_000_000 + self.rng.below(100);
        let ours = self.rng.one_in(4);
        self.send_hook(Hook { action, job_id, ours, runner });
    }

    // --- faults on their own clock ---

    pub(crate) fn disturb(&mut self) {
        if self.quiet {
            return;
        }
        let wait = self.rng.wait(self.plan.disturbed_every);
        self.after(wait, Ev::Disturb);
        match self.rng.below(18) {
            0 => {
                self.count(Fault::DiskFull);
                self.world_version += 1;
                self.disk_full_until = self.now + self.rng.between(MINUTE, HOUR);
            }
            1 => {
                self.count(Fault::GitHubDown);
                self.github_down_until = self.now + self.rng.between(MINUTE, 2 * HOUR);
            }
            2 => {
                self.count(Fault::HostReboots);
                self.kill();
                for op in self.ops.iter_mut().flatten() {
                    op.dead = true;
                }
                for at in 0..self.vms.len() {
                    self.power_off(at);
                }
            }
            3 => {
                self.count(Fault::ClockJumps);
                let jump = if self.rng.one_in(3) { 7 * HOUR } else { 20 * MINUTE };
                self.jumped += self.rng.between(SECOND, jump);
                self.wake_all();
            }
            4 => {
                self.count(Fault::TokenRefused);
                self.refused_until = self.now + self.rng.between(MINUTE, 2 * HOUR);
            }
            5 => {
                self.count(Fault::TemplateReplaced);
                self.world_version += 1;
                self.template += 1;
                if self.rng.one_in(3) {
                    self.count(Fault::TemplateBad);
                    self.bad_template_until = self.now + self.rng.between(10 * MINUTE, 2 * HOUR);
                }
            }
            6 => {
                // A script that cleans up, or GitHub itself.
                let own: Vec<(u64, Scope)> =
                    self.runners.iter().filter(|r| !r.foreign).map(|r| (r.id, r.scope.clone())).collect();
                if !own.is_empty() {
                    self.count(Fault::RunnerRemoved);
                    let (id, scope) = own[self.rng.below(own.len() as u64) as usize].clone();
                    self.remove_runner(id, &scope, false);
                }
            }
            7..=9 => {
                self.count(Fault::Killed);
                self.kill();
            }
            10 | 11 => self.stop(Stop::Keep),
            12 => self.stop(Stop::Destroy),
            13 => self.scope_refused = !self.scope_refused,
            14 | 15 => self.drain(),
            _ => self.recycle(),
        }
    }

    /// Why registrations of this pool are left over, if they are.
    pub(crate) fn runners_not_whole(&self, p: &Process) -> Option<String> {
        let scope = super::process::rules(&p.config).scope;
        let lost = self.runners.iter().find(|r| {
            // Those of an earlier scope are left to GitHub's own clean-up.
            !r.foreign
                && r.scope == scope
                && !p.state.slots().any(|s| s.instance().is_some_and(|i| i.runner_name == r.name))
        });
        lost.map(|r| format!("runner {} ({}) is nobody's", r.id, r.name))
    }
}

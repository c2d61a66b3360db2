//! The truth: what exists on the host and at GitHub, what guests and jobs do.

use super::plan::{DAY, Fault, HOUR, MINUTE, SECOND};
use super::process::{Answer, Credential};
use super::{Action, Bug, Ev, Hook, Sim, VmEv};
use hyperv_runner_pool::github::{Removal, Runner};
use hyperv_runner_pool::hypervisor::{Inventory, Notes, Power, Vm, VmId};
use hyperv_runner_pool::pool::book::Call;
use hyperv_runner_pool::pool::slot::{Event, Failure, Found, Made, Millis, Registered, Stop};
use std::rc::Rc;
use std::time::Duration;

/// The mark in the Notes of this pool's VMs.
pub const IDENTITY: &str = "pool";

const CREATE_DEADLINE: Millis = 5 * MINUTE;
const DESTROY_DEADLINE: Millis = 3 * MINUTE;

/// A VM on the host.
#[derive(Debug)]
pub struct SimVm {
    pub id: Rc<VmId>,
    /// The incarnation.
    pub number: u64,
    pub notes: Option<Notes>,
    pub on: bool,
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
    /// What it got as its configuration.
    pub config: Option<(String, Credential)>,
}

impl SimVm {
    pub fn runner_online(&self, runners: &[SimRunner]) -> bool {
        runners.iter().any(|r| Some(r.id) == self.runner && r.online)
    }
}

/// A registration at GitHub.
#[derive(Clone, Debug)]
pub struct SimRunner {
    pub id: u64,
    pub name: String,
    pub online: bool,
    pub job: Option<u64>,
    /// It has had its one job.
    pub spent: bool,
    pub ephemeral: bool,
    pub foreign: bool,
    /// The process that was told its id when it registered it.
    pub learnt_by: u32,
    /// Until when lists show that status instead.
    pub lag: Option<(Millis, bool, bool)>,
}

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    pub takes: Millis,
    /// When it began by the host's clock.
    pub clock_began: Millis,
    pub began: Millis,
    pub runner: Option<(u64, String)>,
    pub over: bool,
}

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Act {
    Register(String),
    Find(String),
    Remove(u64),
    Create(Made, u32),
    Destroy(VmId),
    ListVms,
    ListRunners,
    ById(u64),
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
    /// Somebody waits for the answer.
    pub awaited: bool,
    /// It does nothing any more.
    pub dead: bool,
    pub answer: Option<Answer>,
    /// When GitHub last said that the VM had no runner, if it said so.
    pub no_runner_at: Option<Millis>,
    pub forced: bool,
    pub job_timeout: Millis,
    pub jit: bool,
}

/// The incarnation as a number.
pub fn number_of(vm: &VmId) -> u64 {
    u64::from_str_radix(&vm.incarnation, 16).unwrap_or(0)
}

impl Sim {
    /// What is there before the pool, and must never be touched.
    pub(crate) fn populate(&mut self) {
        self.foreign_vms = vec!["runner-1".into(), "database".into()];
        let mut foreign = |name: &str, online, ephemeral| {
            self.last_runner += 1;
            self.runners.push(SimRunner {
                id: self.last_runner,
                name: name.into(),
                online,
                job: None,
                spent: false,
                ephemeral,
                foreign: true,
                learnt_by: 0,
                lag: None,
            });
        };
        foreign("build-box", true, false);
        foreign("runner-9", false, false);
        foreign("runner-1-old", false, true);
        foreign("other-1", false, true);
        if self.plan.shared_prefix {
            foreign("runner-1", true, true);
            foreign("runner-3", true, true);
        }
    }

    pub(crate) fn clock(&self) -> Millis {
        self.now + self.jumped
    }

    // --- operations ---

    pub(crate) fn begin_op(
        &mut self,
        slot: Option<usize>,
        act: Act,
        no_runner_at: Option<Millis>,
        stop: bool,
    ) {
        let local = matches!(act, Act::Create(..) | Act::Destroy(_) | Act::ListVms);
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
            Act::Destroy(_) => {
                let at = self.rng.below(4) as u8;
                if self.fault(Fault::DestroyFails) {
                    Outcome::FailsDirty(at)
                } else if self.fault(Fault::DestroyHangs) {
                    Outcome::Hangs(at)
                } else {
                    Outcome::Good
                }
            }
            Act::ListVms => {
                if self.fault(Fault::ListFails) {
                    Outcome::FailsClean(0)
                } else {
                    Outcome::Good
                }
            }
            _ if self.now < self.github_down_until => Outcome::FailsClean(0),
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
            awaited: true,
            dead: false,
            answer: None,
            no_runner_at,
            forced: stop,
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

    pub(crate) fn op_goes_on(&mut self, key: usize) {
        let Some(mut op) = self.ops[key].take() else { return };
        if op.dead {
            self.free_ops.push(key);
            return;
        }
        let stages = match op.act {
            Act::Create(..) => 4,
            Act::Destroy(_) => 3,
            _ => 1,
        };
        let local = matches!(op.act, Act::Create(..) | Act::Destroy(_) | Act::ListVms);
        let mut failed = None;
        match op.outcome {
            Outcome::FailsClean(at) if op.stage == at => {
                if let Act::Create(made, _) = &op.act {
                    let made = made.vm.clone();
                    self.remove_vm(&mut op, &made, 0..3);
                }
                failed = Some(0);
            }
            Outcome::FailsDirty(at) if op.stage == at => failed = Some(0),
            Outcome::RateLimited => failed = Some(self.rate_limited_until - self.now + SECOND),
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
                self.answer(&mut op, Some(0));
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
        if let Some(retry_after) = failed {
            self.answer(&mut op, Some(retry_after));
            self.free_ops.push(key);
            return;
        }
        if op.stage == stages {
            let lost = (op.outcome == Outcome::AnswerLost).then_some(0);
            self.answer(&mut op, lost);
            self.free_ops.push(key);
            return;
        }
        if !self.op_stage(&mut op) {
            self.answer(&mut op, Some(0));
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

    fn answer(&mut self, op: &mut Op, failed: Option<Millis>) {
        if !std::mem::replace(&mut op.awaited, false) {
            return;
        }
        let failure = failed.map(|retry_after| Failure { why: "it broke".into(), retry_after });
        let answer = match (&op.act, failure) {
            (Act::Register(_), Some(f)) => Answer::Event(Event::Registered(Err(f))),
            (Act::Find(_), Some(f)) => Answer::Event(Event::Found(Err(f))),
            (Act::Remove(_), Some(f)) if op.slot.is_some() => Answer::Event(Event::RunnerRemoved(Err(f))),
            (Act::Create(..), Some(f)) => Answer::Event(Event::Created(Err(f))),
            (Act::Destroy(_), Some(f)) => Answer::Event(Event::Destroyed(Err(f))),
            (Act::ListVms, Some(_)) => Answer::Vms(None),
            (Act::ListRunners, Some(_)) => Answer::Runners(None),
            (Act::ById(_), Some(_)) => Answer::ById(None),
            (Act::Remove(_), Some(_)) => Answer::Cleared,
            (Act::Create(..), None) => Answer::Event(Event::Created(Ok(()))),
            (Act::Destroy(_), None) => Answer::Event(Event::Destroyed(Ok(()))),
            (_, None) => op.answer.take().unwrap_or(Answer::Cleared),
        };
        self.deliver(op.generation, op.slot, answer, op.no_runner_at);
    }

    /// One stage takes effect. Returns whether it could.
    fn op_stage(&mut self, op: &mut Op) -> bool {
        match &op.act {
            Act::Create(made, slot) => {
                let (made, slot) = (made.clone(), *slot);
                self.create_stage(op, &made, slot)
            }
            Act::Destroy(vm) => {
                let vm = vm.clone();
                let stage = usize::from(op.stage);
                self.remove_vm(op, &vm, stage..stage + 1);
                true
            }
            Act::Register(name) => {
                let taken = self.runners.iter().any(|r| r.name == *name);
                op.answer = Some(if !op.jit {
                    Answer::Registered(Registered::Done(None), Credential::Token)
                } else if taken {
                    Answer::Event(Event::Registered(Ok(Registered::NameTaken)))
                } else {
                    let name = name.clone();
                    let id = self.register(name);
                    Answer::Registered(Registered::Done(Some(id)), Credential::Jit(id))
                });
                true
            }
            Act::Find(name) => {
                let found = self.runners.iter().find(|r| r.name == *name);
                if found.is_none() {
                    op.no_runner_at = Some(self.now);
                }
                let listed = found.map(|r| self.listed(r));
                op.answer = Some(Answer::Found(listed));
                true
            }
            Act::Remove(id) => {
                let removal = self.remove_runner(*id);
                op.answer = Some(match op.slot {
                    Some(_) => Answer::Event(Event::RunnerRemoved(Ok(removal))),
                    None => Answer::Cleared,
                });
                true
            }
            Act::ListVms => {
                op.answer = Some(Answer::Vms(Some(self.inventory())));
                true
            }
            Act::ListRunners => {
                let mut listed: Vec<Runner> = self.runners.iter().map(|r| self.listed(r)).collect();
                if !listed.is_empty() && self.fault(Fault::RunnerUnlisted) {
                    let at = self.rng.below(listed.len() as u64) as usize;
                    listed.remove(at);
                }
                op.answer = Some(Answer::Runners(Some(listed)));
                true
            }
            Act::ById(id) => {
                op.answer = Some(Answer::ById(Some(self.runners.iter().any(|r| r.id == *id))));
                true
            }
        }
    }

    // --- the hypervisor ---

    fn create_stage(&mut self, op: &Op, made: &Made, slot: u32) -> bool {
        let number = number_of(&made.vm);
        let at = self.vms.iter().position(|vm| vm.number == number);
        match op.stage {
            0 => {
                if !self.used_disks.insert(number) {
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
                self.vms.push(SimVm {
                    id: Rc::new(made.vm.clone()),
                    number,
                    notes: None,
                    on: false,
                    started: 0,
                    ghost: !op.awaited,
                    owner,
                    job: None,
                    jobs: 0,
                    runner: None,
                    config: None,
                });
            }
            2 => {
                let Some(at) = at else { return false };
                self.vms[at].notes = Some(Notes {
                    pool: IDENTITY.into(),
                    slot,
                    incarnation: made.vm.incarnation.clone(),
                    runner_name: made.runner_name.clone(),
                    runner_id: made.runner_id,
                    created: (self.clock() / 1000) as u64,
                });
            }
            _ => {
                let Some(at) = at else { return false };
                self.vms[at].ghost |= !op.awaited;
                self.vms[at].on = true;
                self.guest_starts(at);
            }
        }
        self.world_version += 1;
        true
    }

    /// Turns a VM off (0), removes it (1), deletes its disk (2).
    fn remove_vm(&mut self, op: &mut Op, vm: &VmId, stages: std::ops::Range<usize>) {
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
                    let may = op.forced
                        || (self.known.stop == Some(Stop::Destroy) && op.generation == self.generation);
                    if let Some(job) = self.vms[at].job
                        && !may
                    {
                        let began = self.jobs[job as usize].began;
                        let timed_out = self.clock() - self.jobs[job as usize].clock_began >= op.job_timeout;
                        // A runner that registers itself can do so after GitHub has said that it is not there.
                        let unknowable = op.no_runner_at.is_some_and(|at| began >= at);
                        if !timed_out && !unknowable {
                            self.violate(3, format!("{vm} was destroyed while job {job} ran on it"));
                        }
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

    fn inventory(&mut self) -> Inventory {
        // Not the first list of a process, and not two lists in a row.
        let may = self.known.stocked && !self.known.left_out && !self.vms.is_empty();
        self.known.left_out = may && self.fault(Fault::VmUnlisted);
        let skip = self.known.left_out.then(|| self.rng.below(self.vms.len() as u64) as usize);
        let vms = self.vms.iter().enumerate().filter(|(i, _)| Some(*i) != skip).map(|(_, vm)| Vm {
            id: (*vm.id).clone(),
            power: if vm.on { Power::On } else { Power::Off },
            uptime: Duration::ZERO,
            notes: vm.notes.clone(),
        });
        Inventory { vms: vms.collect(), disks: self.disks.clone() }
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
        let vm = &mut self.vms[at];
        let job = vm.job.take();
        let Some(runner) = vm.runner.take() else { return };
        let wait = self.rng.between(SECOND, MINUTE);
        self.after(wait, Ev::Offline(runner));
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
        let (number, started) = (self.vms[at].number, self.vms[at].started);
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
        if self.fault(Fault::NeverBoots) || self.fault(Fault::GuestSilent) {
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
        if vm.started != started || !vm.on {
            return;
        }
        let id = Rc::clone(&vm.id);
        match what {
            VmEv::Ask(tries) => self.guest_asks(at, &id, started, tries),
            VmEv::RunnerStarts => self.runner_starts(at, started),
            VmEv::JobEnds(job) => self.job_ends(at, job),
            VmEv::SaysComplete(tries) => {
                let (next, wait) = if self.tell(&id, Call::Completed) || tries >= 4 {
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
                self.runner_process_ends(at);
                self.after(SECOND, Ev::Vm(number, started, VmEv::SaysComplete(0)));
            }
            VmEv::Reboots => {
                self.runner_process_ends(at);
                self.guest_starts(at);
            }
            VmEv::PowersOff => self.power_off(at),
            VmEv::Vanishes => {}
        }
    }

    /// A guest calls the pool. Returns whether it got an answer.
    fn tell(&mut self, id: &Rc<VmId>, call: Call) -> bool {
        if self.fault(Fault::CallForged) {
            let forged = VmId { name: id.name.clone(), incarnation: format!("{:016x}", self.rng.next()) };
            let call = [Call::Config, Call::Started, Call::Completed][self.rng.below(3) as usize];
            self.call(&Rc::new(forged), call, true);
        }
        if self.fault(Fault::CallTwice) {
            let wait = self.rng.between(0, 30 * SECOND);
            self.after(wait, Ev::Call(Rc::clone(id), call, false));
        }
        if self.fault(Fault::CallLate) {
            let wait = self.rng.between(SECOND, 30 * MINUTE);
            self.after(wait, Ev::Call(Rc::clone(id), call, false));
            return self.rng.one_in(2);
        }
        if self.fault(Fault::CallLost) {
            if self.rng.one_in(2) {
                self.call(id, call, false);
            }
            return false;
        }
        self.call(id, call, false)
    }

    fn guest_asks(&mut self, at: usize, id: &Rc<VmId>, started: u32, tries: u16) {
        let number = self.vms[at].number;
        (self.known.granted, self.known.refused_for_good) = (None, false);
        let answered = self.tell(id, Call::Config);
        let got = self.known.granted.take();
        if let Some(config) = got.filter(|_| answered) {
            let Some(vm) = self.vms.iter_mut().find(|vm| vm.number == number) else { return };
            vm.config = Some(config);
            if self.fault(Fault::RunnerHangs) {
                return;
            }
            let wait = self.rng.between(SECOND, 15 * SECOND);
            self.after(wait, Ev::Vm(number, started, VmEv::RunnerStarts));
        } else if answered && self.known.refused_for_good {
            let wait = self.rng.between(SECOND, 10 * SECOND);
            self.after(wait, Ev::Vm(number, started, VmEv::PowersOff));
        } else if tries < 120 {
            self.after(10 * SECOND, Ev::Vm(number, started, VmEv::Ask(tries + 1)));
        } else {
            self.power_off(at);
        }
    }

    fn runner_starts(&mut self, at: usize, started: u32) {
        let number = self.vms[at].number;
        let Some((name, credential)) = self.vms[at].config.clone() else { return };
        let runner = match credential {
            Credential::Jit(id) => self.runners.iter().position(|r| r.id == id && !r.spent),
            Credential::Token if self.runners.iter().any(|r| r.name == name) => None,
            Credential::Token => {
                self.register(name);
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

    fn register(&mut self, name: String) -> u64 {
        self.last_runner += 1;
        self.world_version += 1;
        self.after(DAY, Ev::Expire(self.last_runner));
        self.runners.push(SimRunner {
            id: self.last_runner,
            name,
            online: false,
            job: None,
            spent: false,
            ephemeral: true,
            foreign: false,
            learnt_by: 0,
            lag: None,
        });
        self.last_runner
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
        if !self.runners[at].foreign && self.fault(Fault::StatusLags) {
            let until = self.now + self.rng.between(SECOND, MINUTE);
            let runner = &mut self.runners[at];
            runner.lag = Some((until, runner.online, runner.job.is_some()));
        }
        change(&mut self.runners[at]);
    }

    fn remove_runner(&mut self, id: u64) -> Removal {
        let Some(at) = self.runners.iter().position(|r| r.id == id) else { return Removal::NotThere };
        if self.runners[at].foreign {
            let name = self.runners[at].name.clone();
            self.violate(5, format!("runner {name} is not the pool's and was removed"));
        }
        if self.runners[at].job.is_some() {
            return Removal::Busy;
        }
        self.runners.remove(at);
        self.world_version += 1;
        // The runner notices, and ends.
        if let Some(vm) = self.vms.iter_mut().find(|vm| vm.runner == Some(id)) {
            vm.runner = None;
            let (number, started) = (vm.number, vm.started);
            let wait = self.rng.between(SECOND, 30 * SECOND);
            self.after(wait, Ev::Vm(number, started, VmEv::SaysComplete(0)));
        }
        Removal::Removed
    }

    pub(crate) fn runner_offline(&mut self, id: u64) {
        // It may have connected again.
        if self.vms.iter().any(|vm| vm.on && vm.runner == Some(id)) {
            return;
        }
        if let Some(at) = self.runners.iter().position(|r| r.id == id) {
            self.set_status(at, |r| r.online = false);
        }
    }

    /// GitHub removes an ephemeral runner that has not been connected for a day:
    /// <https://docs.github.com/en/actions/hosting-your-own-runners/managing-self-hosted-runners/removing-self-hosted-runners>
    pub(crate) fn expire(&mut self, id: u64) {
        let Some(at) = self.runners.iter().position(|r| r.id == id) else { return };
        if self.runners[at].online || self.runners[at].job.is_some() {
            self.after(DAY, Ev::Expire(id));
        } else {
            self.deregister(id);
        }
    }

    pub(crate) fn deregister(&mut self, id: u64) {
        self.runners.retain(|r| r.id != id);
        self.world_version += 1;
    }

    // --- jobs ---

    pub(crate) fn job_arrives(&mut self) {
        if self.quiet {
            return;
        }
        let wait = self.rng.wait(self.plan.job_every);
        self.after(wait, Ev::Job);
        if self.fault(Fault::HookForeign) {
            self.foreign_hook();
        }
        if self.waiting.len() > 50 {
            return;
        }
        let (least, most) = self.plan.job_takes;
        let takes = if self.fault(Fault::JobTooLong) { 2 * DAY } else { self.rng.between(least, most) };
        let id = self.jobs.len() as u64;
        self.jobs.push(Job { takes, clock_began: 0, began: 0, runner: None, over: false });
        self.waiting.push_back(id);
        self.send_hook(Hook { action: Action::Queued, job_id: id, ours: true, runner: None });
        self.assign_jobs();
    }

    /// GitHub gives waiting jobs to runners that are connected and idle.
    pub(crate) fn assign_jobs(&mut self) {
        while !self.waiting.is_empty() {
            let idle = |r: &SimRunner| {
                r.online && r.job.is_none() && !r.spent && r.ephemeral && (!r.foreign || !self.quiet)
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
        let runner = (self.runners[at].id, self.runners[at].name.clone());
        let clock = self.clock();
        let state = &mut self.jobs[job as usize];
        (state.began, state.clock_began) = (self.now, clock);
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
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.on && vm.runner == Some(runner.0)) else {
            // It has just gone, and GitHub does not know yet.
            let wait = self.rng.between(MINUTE, 15 * MINUTE);
            self.after(wait, Ev::GiveUp(job));
            return;
        };
        vm.job = Some(job);
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

    fn job_ends(&mut self, at: usize, job: u64) {
        let vm = &mut self.vms[at];
        if vm.job != Some(job) {
            return;
        }
        vm.job = None;
        let (number, started, runner) = (vm.number, vm.started, vm.runner.take());
        self.report.jobs_completed += 1;
        self.job_over(job);
        if let Some(id) = runner
            && let Some(runner) = self.runners.iter().position(|r| r.id == id)
        {
            // GitHub forgets it now, or soon.
            self.runners[runner].spent = true;
            self.set_status(runner, |r| {
                r.job = None;
                r.online = false;
            });
            let wait = if self.rng.one_in(4) { self.rng.between(0, MINUTE) } else { 0 };
            if wait == 0 {
                self.deregister(id);
            } else {
                self.after(wait, Ev::Deregister(id));
            }
        }
        let wait = self.rng.between(SECOND, 5 * SECOND);
        // Some jobs end with a restart of their machine.
        let next = if self.fault(Fault::GuestReboots) { VmEv::Reboots } else { VmEv::SaysComplete(0) };
        self.after(wait, Ev::Vm(number, started, next));
    }

    /// GitHub gives a job up whose runner has gone; or a job on another pool's runner ends.
    pub(crate) fn give_up(&mut self, job: u64) {
        let Some((id, _)) = self.jobs[job as usize].runner.clone() else { return };
        if self.jobs[job as usize].over {
            return;
        }
        self.job_over(job);
        let Some(at) = self.runners.iter().position(|r| r.id == id && r.job == Some(job)) else { return };
        let foreign = self.runners[at].foreign;
        if !foreign {
            self.report.jobs_failed += 1;
            self.runners[at].spent = true;
        }
        self.set_status(at, |r| r.job = None);
        if !foreign && self.runners[at].online {
            self.deregister(id);
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

    /// A webhook about a runner of another pool: another id, perhaps a name that is this pool's too.
    fn foreign_hook(&mut self) {
        let prefix = self.plan.config.prefix.clone();
        let name = format!("{prefix}{}", 1 + self.rng.below(4));
        let runner = self.rng.one_in(2).then(|| (1_000_000 + self.rng.below(100), name));
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
        match self.rng.below(10) {
            0 => {
                self.count(Fault::DiskFull);
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
            4..=6 => {
                self.count(Fault::Killed);
                self.kill();
            }
            7 | 8 => self.stop(Stop::Drain),
            _ => self.stop(Stop::Destroy),
        }
    }

    pub(crate) fn found(&self, runner: &Runner, shared: bool) -> Found {
        let ephemeral = runner.labels.iter().any(|label| label == "ephemeral");
        Found { runner_id: runner.id, stale: ephemeral && !runner.online && !runner.busy && !shared }
    }
}

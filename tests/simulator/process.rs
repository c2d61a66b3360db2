//! The pool's process: the real `Slot`s and `Book`, and around them the same
//! steps in the same order as `worker.rs`, `monitor.rs` and `mod.rs`. Whatever
//! another thread could get in between is an event of its own, and the process
//! can die between any two.

use super::plan::{Config, Fault, MINUTE, SECOND};
use super::world::{Act, number_of};
use super::{Action, Bug, Ev, Hook, STOP_BOUND, Sim};
use hyperv_runner_pool::github::Runner;
use hyperv_runner_pool::hypervisor::{Inventory, VmId};
use hyperv_runner_pool::pool::book::{Book, Call, Mail};
use hyperv_runner_pool::pool::slot::{
    Assignment, Effect, Event, JobNotice, Leftover, Millis, Phase, Registered, Rules, Slot, Stop,
};
use std::collections::VecDeque;

/// What a guest gets to start its runner with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    Jit(u64),
    Token,
}

/// What an operation brought.
#[derive(Debug)]
pub enum Answer {
    Event(Event),
    Registered(Registered, Credential),
    Found(Option<Runner>),
    Vms(Option<Inventory>),
    Runners(Option<Vec<Runner>>),
    /// Whether the runner is there, if GitHub said.
    ById(Option<bool>),
    /// The monitor has tried to remove a registration.
    Cleared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Waiting,
    /// A step is done and not published yet.
    Publishing,
    Performing,
    Ended,
}

/// The thread of one slot.
#[derive(Debug)]
pub struct Worker {
    slot: Slot,
    queue: VecDeque<Event>,
    effect: Option<Effect>,
    at: At,
    credential: Option<Credential>,
    told_to_stop: bool,
    timer: Option<Millis>,
    no_runner_at: Option<Millis>,
    last_disk: Option<VmId>,
}

#[derive(Debug)]
enum Monitor {
    StockVms,
    StockRunners(Option<Inventory>),
    Pause { stocked: bool },
    Vms { asked_at: Millis },
    Runners { asked_at: Millis },
    Unlisted { left: Vec<(usize, u64)>, asked: (usize, u64), orphans: Vec<u64> },
    Orphans { left: Vec<u64> },
    Ended,
}

/// A start of the pool.
#[derive(Debug)]
pub struct Process {
    pub generation: u32,
    pub config: Config,
    pub book: Book,
    pub stop: Option<Stop>,
    epoch: Millis,
    workers: Vec<Worker>,
    credentials: Vec<Option<Credential>>,
    monitor: Monitor,
    retry: Millis,
    /// Faults so far and the world's version when the present round began.
    round_began: (u64, u64),
    /// Slots that have mail and are not performing anything.
    runnable: Vec<usize>,
}

/// What the world has to know of the process, whether or not it is there.
#[derive(Clone, Debug)]
pub struct Known {
    pub config: Config,
    pub stop: Option<Stop>,
    pub stocked: bool,
    /// What a guest got by its last call.
    pub granted: Option<(String, Credential)>,
    pub refused_for_good: bool,
    /// The last list of VMs left one out.
    pub left_out: bool,
}

impl Sim {
    // --- start and end ---

    pub(crate) fn start_process(&mut self) {
        self.generation += 1;
        self.report.restarts += u64::from(self.generation > 1);
        let config = self.plan.config.clone();
        let labels: Vec<String> = vec!["self-hosted".into(), "Windows".into(), "ephemeral".into()];
        let book = Book::new(&config.prefix, &labels, config.size, config.warm, config.boot_timeout);
        let known = &mut self.known;
        (known.config, known.stop, known.stocked) = (config.clone(), None, false);
        let mut process = Box::new(Process {
            generation: self.generation,
            book,
            stop: None,
            epoch: self.clock(),
            workers: Vec::new(),
            credentials: Vec::new(),
            monitor: Monitor::StockVms,
            retry: SECOND,
            round_began: (0, 0),
            runnable: Vec::new(),
            config,
        });
        for number in 1..=process.config.size {
            let name = format!("{}{number}", process.config.prefix);
            let slot = Slot::new(number, name, rules(&process.config), self.rng.next());
            self.start_slot(&mut process, slot);
        }
        self.begin_op(None, Act::ListVms, None, false);
        self.process = Some(process);
        // A stop is at its most delicate while the pool does not know yet what is there.
        if !self.quiet && self.plan.disturbed_every > 0 && self.rng.one_in(10) {
            let stop = if self.rng.one_in(4) { Stop::Destroy } else { Stop::Drain };
            let wait = self.rng.between(0, 5 * SECOND);
            self.after(wait, Ev::Stop(self.generation, stop));
        }
    }

    fn start_slot(&mut self, p: &mut Process, slot: Slot) {
        let index = p.book.add(slot.view());
        p.credentials.push(None);
        p.workers.push(Worker {
            slot,
            queue: VecDeque::new(),
            effect: None,
            at: At::Publishing,
            credential: None,
            told_to_stop: false,
            timer: None,
            no_runner_at: None,
            last_disk: None,
        });
        if let Some(stop) = p.stop {
            p.workers[index].queue.push_back(Event::Stop(stop));
        }
        self.publish(p, index);
    }

    /// The process dies. What it was doing is cut off, or goes on without it.
    pub(crate) fn kill(&mut self) {
        let Some(process) = self.process.take() else { return };
        self.known.stop = None;
        for key in 0..self.ops.len() {
            let ours = self.ops[key].as_ref().is_some_and(|op| op.generation == process.generation);
            let cut_off = ours && (self.quiet || self.fault(Fault::EffectCutOff));
            if let Some(op) = self.ops[key].as_mut().filter(|_| ours) {
                op.awaited = false;
                op.dead |= cut_off;
            }
        }
        self.restart_later();
    }

    fn restart_later(&mut self) {
        let wait = match self.rng.below(4) {
            0 => self.rng.between(0, SECOND),
            1 => self.rng.between(MINUTE, 30 * MINUTE),
            _ => self.rng.between(SECOND, MINUTE),
        };
        if !self.quiet && self.plan.disturbed_every > 0 && self.rng.one_in(4) {
            self.count(Fault::SettingsChange);
            let config = &mut self.plan.config;
            match self.rng.below(5) {
                0 => config.size = (config.size + 1 + self.rng.below(2) as u32).min(8),
                1 => config.size = (config.size / 2).max(1),
                2 => config.warm = self.rng.below(u64::from(config.size) + 1) as u32,
                3 => config.jit = !config.jit,
                _ => {
                    if !self.former_prefixes.contains(&config.prefix) {
                        self.former_prefixes.push(config.prefix.clone());
                    }
                    config.prefix = format!("pool{}-", self.rng.below(3));
                    let now = &config.prefix;
                    self.former_prefixes.retain(|p| p != now);
                }
            }
            config.warm = config.warm.min(config.size);
        }
        self.after(wait, Ev::Restart);
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let Some(mut p) = self.process.take() else { return };
        if p.stop.is_none() {
            let fault = if stop == Stop::Drain { Fault::Drained } else { Fault::StopDestroys };
            self.count(fault);
            p.stop = Some(stop);
            self.known.stop = Some(stop);
            let deaf = self.options.bug == Some(Bug::DeafToStop);
            let mail = (0..p.workers.len()).filter(|_| !deaf).map(|slot| (slot, Event::Stop(stop))).collect();
            self.send(&mut p, mail);
            // The main thread drops the monitor's sender right after.
            if matches!(p.monitor, Monitor::Pause { .. }) {
                p.monitor = Monitor::Ended;
            }
            self.after(STOP_BOUND, Ev::MustHaveStopped(p.generation));
            if self.rng.one_in(8) {
                // A second Ctrl+C.
                let wait = self.rng.between(0, MINUTE);
                self.after(wait, Ev::Kill(p.generation));
            }
        }
        self.put_back(p);
    }

    /// The process is there again, unless all its threads have ended.
    fn put_back(&mut self, p: Box<Process>) {
        let ended = p.stop.is_some() && p.workers.iter().all(|w| w.at == At::Ended);
        if ended && !matches!(p.monitor, Monitor::Ended) {
            // The monitor is in the midst of a call, and is not waited for long.
            self.after(SECOND, Ev::Kill(p.generation));
        }
        if ended && matches!(p.monitor, Monitor::Ended) {
            self.known.stop = None;
            self.trace(|_| "the pool has stopped".into());
            self.restart_later();
        } else {
            self.process = Some(p);
        }
    }

    // --- workers ---

    fn send(&mut self, p: &mut Process, mail: Mail) {
        for (slot, event) in mail {
            let Some(worker) = p.workers.get_mut(slot) else { continue };
            if worker.at == At::Ended {
                continue;
            }
            worker.queue.push_back(event);
            if worker.at == At::Waiting {
                p.runnable.push(slot);
            }
        }
    }

    /// Lets the slots that have mail take it in.
    pub(crate) fn run_runnable(&mut self) {
        let Some(mut p) = self.process.take() else { return };
        while !p.runnable.is_empty() && self.violation.is_none() {
            let at = self.rng.below(p.runnable.len() as u64) as usize;
            let index = p.runnable.swap_remove(at);
            if self.fault(Fault::Preempted) {
                let wait = self.held_up();
                self.after(wait, Ev::Wake(p.generation, index));
            } else {
                self.take_in(&mut p, index);
            }
        }
        self.put_back(p);
    }

    pub(crate) fn process_event(&mut self, ev: Ev) {
        let Some(mut p) = self.process.take() else { return };
        match ev {
            Ev::Wake(generation, index) if generation == p.generation => {
                let worker = &mut p.workers[index];
                if worker.timer.is_some_and(|at| at <= self.now) {
                    worker.timer = None;
                }
                self.take_in(&mut p, index);
            }
            Ev::Publish(generation, index) if generation == p.generation => self.publish(&mut p, index),
            Ev::Monitor(generation) if generation == p.generation => self.monitor_wakes(&mut p),
            _ => {}
        }
        self.put_back(p);
    }

    /// The clock has jumped: every thread that waits looks again.
    pub(crate) fn wake_all(&mut self) {
        let Some(p) = &mut self.process else { return };
        let (generation, count) = (p.generation, p.workers.len());
        p.workers.iter_mut().for_each(|worker| worker.timer = None);
        (0..count).for_each(|index| self.after(0, Ev::Wake(generation, index)));
    }

    /// A waiting worker takes its next message, or a tick at its deadline.
    fn take_in(&mut self, p: &mut Process, index: usize) {
        let now = self.clock() - p.epoch;
        let worker = &mut p.workers[index];
        if worker.at != At::Waiting {
            return;
        }
        let event = match worker.queue.pop_front() {
            Some(event) => event,
            None if worker.slot.deadline().is_some_and(|deadline| deadline <= now) => Event::Tick,
            None => return self.arm(p, index),
        };
        if self.options.trace {
            self.trace(|_| format!("slot {index} takes in {event:?}"));
        }
        worker.effect = worker.slot.step(event, now);
        self.stepped(p, index);
    }

    /// Mostly milliseconds; on a host that is short of memory, up to a minute.
    pub(crate) fn held_up(&mut self) -> Millis {
        let most = if self.rng.one_in(16) { MINUTE } else { 2 * SECOND };
        self.rng.between(1, most)
    }

    fn stepped(&mut self, p: &mut Process, index: usize) {
        p.workers[index].at = At::Publishing;
        if self.fault(Fault::Preempted) {
            let wait = self.held_up();
            self.after(wait, Ev::Publish(p.generation, index));
        } else {
            self.publish(p, index);
        }
    }

    fn publish(&mut self, p: &mut Process, index: usize) {
        let worker = &mut p.workers[index];
        if worker.at != At::Publishing {
            return;
        }
        let view = worker.slot.view();
        if view.made.is_none() {
            worker.credential = None;
        }
        p.credentials[index] = worker.credential;
        let stopped = view.phase == Phase::Stopped;
        let before = p.book.publish(index, view);
        if self.options.trace {
            let worker = &p.workers[index];
            let (after, cause) = (worker.slot.view().phase, worker.slot.cause());
            let effect = &worker.effect;
            self.trace(|_| format!("slot {index}: {before:?} -> {after:?} {cause:?}, {effect:?}"));
        }
        self.fill(p);
        let worker = &mut p.workers[index];
        if stopped {
            worker.at = At::Ended;
            return;
        }
        match worker.effect.take() {
            Some(effect) => {
                worker.at = At::Performing;
                self.perform(p, index, effect);
            }
            None => {
                worker.at = At::Waiting;
                if worker.queue.is_empty() {
                    self.arm(p, index);
                } else {
                    p.runnable.push(index);
                }
            }
        }
    }

    fn arm(&mut self, p: &mut Process, index: usize) {
        let worker = &mut p.workers[index];
        let Some(deadline) = worker.slot.deadline() else { return };
        let at = (deadline + p.epoch - self.jumped).max(self.now);
        if worker.timer.is_none_or(|timer| at < timer) {
            worker.timer = Some(at);
            self.after(at - self.now, Ev::Wake(p.generation, index));
        }
    }

    fn perform(&mut self, p: &mut Process, index: usize, effect: Effect) {
        let number = p.workers[index].slot.view().number;
        let worker = &mut p.workers[index];
        let act = match effect {
            Effect::Register { runner_name } => Act::Register(runner_name),
            Effect::FindRunner { runner_name } => Act::Find(runner_name),
            Effect::RemoveRunner { runner_id } => Act::Remove(runner_id),
            Effect::CreateVm(mut made) => {
                worker.no_runner_at = None;
                if self.options.bug == Some(Bug::DiskAgain)
                    && let Some(last) = &worker.last_disk
                {
                    made.vm = last.clone();
                }
                worker.last_disk = Some(made.vm.clone());
                Act::Create(made, number)
            }
            Effect::DestroyVm(vm) => {
                if self.options.bug == Some(Bug::DestroyLater) {
                    return self.lie(p, index);
                }
                Act::Destroy(vm)
            }
        };
        let no_runner_at = worker.no_runner_at;
        let forced = p.stop == Some(Stop::Destroy);
        self.begin_op(Some(index), act, no_runner_at, forced);
    }

    /// The planted bug of [`Bug::DestroyLater`]: what the slot is told has not been done.
    fn lie(&mut self, p: &mut Process, index: usize) {
        let now = self.clock() - p.epoch;
        let worker = &mut p.workers[index];
        worker.effect = worker.slot.step(Event::Destroyed(Ok(())), now);
        worker.at = At::Publishing;
        self.after(SECOND, Ev::Publish(p.generation, index));
    }

    pub(crate) fn deliver(
        &mut self,
        generation: u32,
        slot: Option<usize>,
        answer: Answer,
        no_runner_at: Option<Millis>,
    ) {
        let Some(mut p) = self.process.take_if(|p| p.generation == generation) else { return };
        match slot {
            Some(index) => self.slot_answer(&mut p, index, answer, no_runner_at),
            None => self.monitor_answer(&mut p, answer),
        }
        self.put_back(p);
    }

    fn slot_answer(&mut self, p: &mut Process, index: usize, answer: Answer, no_runner_at: Option<Millis>) {
        let now = self.clock() - p.epoch;
        let shared = p.book.prefix_is_shared();
        let worker = &mut p.workers[index];
        worker.no_runner_at = no_runner_at;
        let event = match answer {
            Answer::Event(event) => event,
            Answer::Registered(registered, credential) => {
                worker.credential = Some(credential);
                let runner = self.runners.iter_mut().find(|r| credential == Credential::Jit(r.id));
                if let Some(runner) = runner {
                    runner.learnt_by = p.generation;
                }
                Event::Registered(Ok(registered))
            }
            Answer::Found(runner) => Event::Found(Ok(runner.map(|r| self.found(&r, shared)))),
            Answer::Vms(_) | Answer::Runners(_) | Answer::ById(_) | Answer::Cleared => return,
        };
        if self.options.trace {
            self.trace(|_| format!("slot {index} is answered {event:?}"));
        }
        if let Some(stop) = p.stop
            && !std::mem::replace(&mut worker.told_to_stop, true)
        {
            worker.slot.step(Event::Stop(stop), now);
        }
        worker.effect = worker.slot.step(event, now);
        self.stepped(p, index);
    }

    fn fill(&mut self, p: &mut Process) {
        if p.stop.is_none() {
            let now = self.clock() - p.epoch;
            let mail = p.book.fill(now);
            self.send(p, mail);
        }
    }

    // --- the monitor ---

    fn monitor_wakes(&mut self, p: &mut Process) {
        let Monitor::Pause { stocked } = p.monitor else { return };
        if p.stop.is_some() {
            p.monitor = Monitor::Ended;
            return;
        }
        let idle = if stocked { self.idle_rounds(p) } else { 0 };
        if idle > 0 {
            self.after(idle * p.config.poll, Ev::Monitor(p.generation));
            return;
        }
        let asked_at = self.clock() - p.epoch;
        p.round_began = (self.report.faults.iter().sum(), self.world_version);
        p.monitor = if stocked { Monitor::Vms { asked_at } } else { Monitor::StockVms };
        self.begin_op(None, Act::ListVms, None, false);
    }

    fn monitor_answer(&mut self, p: &mut Process, answer: Answer) {
        let now = self.clock() - p.epoch;
        match (std::mem::replace(&mut p.monitor, Monitor::Ended), answer) {
            (Monitor::StockVms, Answer::Vms(inventory)) => {
                p.monitor = Monitor::StockRunners(inventory);
                self.begin_op(None, Act::ListRunners, None, false);
            }
            (Monitor::StockRunners(Some(inventory)), Answer::Runners(Some(runners))) => {
                self.known.stocked = true;
                let assignments = p.book.take_stock(&inventory, &runners);
                self.reconciled(p, assignments);
                self.pause(p, true);
            }
            (Monitor::StockRunners(_), _) => self.pause(p, false),
            (Monitor::Vms { asked_at }, Answer::Vms(inventory)) => {
                if let Some(inventory) = inventory {
                    let mail = p.book.vms_listed(&inventory, asked_at);
                    self.send(p, mail);
                }
                p.monitor = Monitor::Runners { asked_at: now };
                self.begin_op(None, Act::ListRunners, None, false);
            }
            (Monitor::Runners { asked_at }, Answer::Runners(Some(runners))) => {
                let round = p.book.runners_listed(&runners, asked_at, now);
                self.send(p, round.mail);
                let mut orphans = round.orphans;
                match self.options.bug {
                    Some(Bug::NoOrphans) => orphans.clear(),
                    Some(Bug::OrphansByOffline) => {
                        let offline = runners.iter().filter(|r| !r.online && !r.busy).map(|r| r.id);
                        let known = |id| {
                            p.book.views().any(|v| v.made.as_ref().is_some_and(|m| m.runner_id == Some(id)))
                        };
                        orphans.extend(offline.filter(|&id| !known(id)));
                    }
                    _ => {}
                }
                self.ask_unlisted(p, round.unlisted, orphans);
            }
            (Monitor::Runners { .. }, _) => self.pause(p, true),
            (Monitor::Unlisted { left, asked: (slot, runner_id), orphans }, Answer::ById(there)) => {
                if there == Some(false) {
                    self.send(p, vec![(slot, Event::RunnerGone { runner_id })]);
                }
                self.ask_unlisted(p, left, orphans);
            }
            (Monitor::Orphans { left }, _) => self.remove_orphans(p, left),
            _ => self.pause(p, true),
        }
    }

    fn ask_unlisted(&mut self, p: &mut Process, mut left: Vec<(usize, u64)>, orphans: Vec<u64>) {
        let Some(asked) = left.pop() else { return self.remove_orphans(p, orphans) };
        p.monitor = Monitor::Unlisted { left, asked, orphans };
        self.begin_op(None, Act::ById(asked.1), None, false);
    }

    fn remove_orphans(&mut self, p: &mut Process, mut left: Vec<u64>) {
        let Some(runner) = left.pop() else { return self.pause(p, true) };
        p.monitor = Monitor::Orphans { left };
        self.begin_op(None, Act::Remove(runner), None, false);
    }

    fn pause(&mut self, p: &mut Process, stocked: bool) {
        if p.stop.is_some() || (stocked && self.options.bug == Some(Bug::NoMonitor)) {
            p.monitor = Monitor::Ended;
            return;
        }
        p.monitor = Monitor::Pause { stocked };
        let wait = if stocked {
            p.config.poll
        } else {
            let wait = p.retry;
            p.retry = (p.retry * 2).min(MINUTE);
            wait
        };
        self.after(wait, Ev::Monitor(p.generation));
    }

    /// How many rounds from now on cannot change anything, since nothing has
    /// since the last one and nothing happens before: only with `Plan::skip_idle`.
    fn idle_rounds(&mut self, p: &Process) -> Millis {
        if !self.plan.skip_idle || p.round_began != (self.report.faults.iter().sum(), self.world_version) {
            return 0;
        }
        let Some(next) = self.next_due() else { return 0 };
        let settled = p.workers.iter().zip(p.book.views()).enumerate().all(|(index, (w, view))| {
            let owned = self.vms.iter().find(|vm| vm.owner == (p.generation, index));
            w.at == At::Waiting
                && w.queue.is_empty()
                && match view.phase {
                    Phase::Empty => owned.is_none(),
                    Phase::Ready => {
                        owned.is_some_and(|vm| vm.job.is_none() && vm.runner_online(&self.runners))
                    }
                    Phase::Running => owned.is_some_and(|vm| vm.job.is_some()),
                    _ => false,
                }
        });
        let plain = self.runners.iter().all(|r| {
            r.foreign || (r.online && r.lag.is_none_or(|(until, ..)| until <= self.now) && !r.spent)
        });
        if !settled || !plain || self.runners.iter().filter(|r| !r.foreign).count() != self.vms.len() {
            return 0;
        }
        // A fault of listing ends the idleness as well.
        use Fault::{AnswerLost, GitHubFails, GitHubSlow, KilledInEffect, ListFails, RateLimited};
        use Fault::{RunnerUnlisted, VmUnlisted};
        let kinds = [ListFails, VmUnlisted, RunnerUnlisted, GitHubFails, AnswerLost, GitHubSlow, RateLimited];
        let rate: u32 = kinds.iter().map(|&f| self.plan.rates[f as usize]).sum::<u32>()
            + 2 * self.plan.rates[KilledInEffect as usize];
        let rounds = (next - self.now) / p.config.poll;
        if rate == 0 || self.quiet || rounds <= 0 {
            return rounds.max(0);
        }
        rounds.min(self.rng.wait(Millis::from(1_000_000 / rate.max(1))) - 1)
    }

    fn reconciled(&mut self, p: &mut Process, mut assignments: Vec<Assignment>) {
        if self.options.bug == Some(Bug::NoAdoption) {
            for assignment in &mut assignments {
                if let Some((made, _)) = assignment.adopt.take() {
                    assignment.leftovers.push(Leftover { vm: made.vm, runner: None, on: false });
                }
            }
        }
        // Who owns what from now on, for the second invariant.
        for (index, assignment) in assignments.iter().enumerate() {
            let adopted = assignment.adopt.iter().map(|(made, _)| &made.vm);
            for vm in adopted.chain(assignment.leftovers.iter().map(|l| &l.vm)) {
                let number = number_of(vm);
                if let Some(vm) = self.vms.iter_mut().find(|vm| vm.number == number) {
                    vm.owner = (p.generation, index);
                }
            }
        }
        let size = p.config.size as usize;
        let retired = assignments.split_off(size.min(assignments.len()));
        for (i, assignment) in retired.into_iter().enumerate() {
            let number = p.config.size + 1 + i as u32;
            let slot = Slot::retired(number, rules(&p.config), self.rng.next());
            self.start_slot(p, slot);
            self.send(p, vec![(size + i, Event::Reconciled(assignment))]);
        }
        for (slot, assignment) in assignments.into_iter().enumerate() {
            self.send(p, vec![(slot, Event::Reconciled(assignment))]);
        }
    }

    // --- HTTP ---

    /// A guest's call arrives. Returns whether there was anyone to answer.
    pub(crate) fn call(&mut self, vm: &VmId, call: Call, forged: bool) -> bool {
        (self.known.granted, self.known.refused_for_good) = (None, false);
        let Some(mut p) = self.process.take() else { return false };
        let answered = self.call_to(&mut p, vm, call, forged);
        self.put_back(p);
        answered
    }

    fn call_to(&mut self, p: &mut Process, vm: &VmId, call: Call, forged: bool) -> bool {
        let unchecked = self.options.bug == Some(Bug::SecretUnchecked);
        let always = self.options.bug == Some(Bug::ConfigAlways);
        // The secret is a keyed hash of name and incarnation, so whoever has it is that VM.
        let its = |view: &hyperv_runner_pool::pool::slot::View| {
            view.made.as_ref().is_some_and(|made| {
                made.vm.name == vm.name && (unchecked || made.vm.incarnation == vm.incarnation)
            })
        };
        let Some(slot) = p.book.views().position(its) else {
            let starting = p.book.views().any(|view| view.phase == Phase::Unreconciled);
            self.known.refused_for_good = !starting && self.rng.one_in(4);
            return true;
        };
        let made = p.book.views().nth(slot).and_then(|view| view.made.clone());
        let right = made.as_ref().is_some_and(|made| made.vm.incarnation == vm.incarnation) && !forged;
        let mail = match call {
            Call::Config => {
                let granted = match (&made, p.credentials[slot]) {
                    (Some(made), Some(credential)) => Some((made.runner_name.clone(), credential)),
                    _ => None,
                };
                let mail = granted.as_ref().and_then(|_| p.book.guest_calls(slot, call));
                if granted.is_none() || (mail.is_none() && !always) {
                    self.known.refused_for_good = true;
                    return true;
                }
                self.known.granted = granted;
                mail.unwrap_or_default()
            }
            _ => p.book.guest_calls(slot, call).unwrap_or_default(),
        };
        if !right {
            self.violate(7, format!("a call in the name of {} with a wrong secret counts", vm.name));
        }
        self.send(p, mail);
        true
    }

    pub(crate) fn hook_arrives(&mut self, hook: Hook) {
        let Some(mut p) = self.process.take() else { return };
        let (runner_id, runner_name) = hook.runner.map_or((None, None), |(id, name)| (Some(id), Some(name)));
        let mut notice = JobNotice { job_id: hook.job_id, runner_id, runner_name };
        let now = self.clock() - p.epoch;
        match hook.action {
            Action::Queued => {
                let labels: &[String] =
                    &if hook.ours { vec!["self-hosted".into()] } else { vec!["gpu".into()] };
                if p.book.job_queued(hook.job_id, labels, now) {
                    self.fill(&mut p);
                }
            }
            Action::InProgress => {
                let mail = p.book.job_in_progress(notice);
                self.send(&mut p, mail);
            }
            Action::Completed => {
                if self.options.bug == Some(Bug::CompletedByName) {
                    let named = p.book.views().filter_map(|v| v.made.as_ref());
                    let named = named.filter(|m| Some(&m.runner_name) == notice.runner_name.as_ref());
                    notice.runner_id = named.last().map_or(notice.runner_id, |m| m.runner_id);
                }
                let mail = p.book.job_completed(notice);
                self.send(&mut p, mail);
            }
        }
        self.put_back(p);
    }
}

fn rules(config: &Config) -> Rules {
    Rules { boot_timeout: config.boot_timeout, job_timeout: config.job_timeout, jit: config.jit }
}

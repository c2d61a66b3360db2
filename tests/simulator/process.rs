//! The pool's process: the production `PoolState` and `Monitor`, and in the
//! place of their threads events in simulated time. An action waits, is
//! performed, and its answer is held up, as a thread's can be; and the process
//! can die between any two.

use super::plan::{Config, Fault, HOUR, MINUTE, SECOND};
use super::scale_set::Client;
use super::world::{Act, number_of};
use super::{Action as HookAction, Bug, Ev, Hook, Sim};
use hyperv_runner_pool::config::{GitHubConfig, Intake, PoolConfig, RegistrationMode, Shutdown};
use hyperv_runner_pool::github::{Error, Runner};
use hyperv_runner_pool::hypervisor::{self, VmId};
use hyperv_runner_pool::pool::monitor::{Answer, Ask, Monitor};
use hyperv_runner_pool::pool::queue::{self, Queue};
use hyperv_runner_pool::pool::slot::types::{Action, Event, Job, JobEvent, News, Phase, Stop};
use hyperv_runner_pool::pool::state::{Outcome, PoolState};
use hyperv_runner_pool::pool::{Millis, Refusal, Rules, RunnerConfig};
use hyperv_runner_pool::workers::STOP_LIMIT;
use std::collections::VecDeque;
use std::time::Duration;

/// What a guest has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Config,
    Started,
    Ended,
}

/// What an operation brought.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are few at a time")]
pub enum Brought {
    ToSlot(Event),
    ToMonitor(Answer),
}

/// The thread of one slot.
#[derive(Debug, Default)]
struct Worker {
    /// Each with the time when it was decided.
    queue: VecDeque<(Action, Millis)>,
    performing: bool,
    timer: Option<Millis>,
    /// The VM that it destroys, and when that was decided.
    destroying: Option<(VmId, Millis)>,
    last_disk: Option<VmId>,
}

/// A start of the pool.
#[derive(Debug)]
pub struct Process {
    pub generation: u32,
    pub config: Config,
    pub state: PoolState,
    monitor: Monitor,
    pub(super) queue: Queue,
    pub(super) client: Client,
    /// The end of the monitor's pause, if it pauses.
    pause_ends: Option<Millis>,
    epoch: Millis,
    workers: Vec<Worker>,
    stop_creating: bool,
    /// Faults so far and the world's version when the present round began.
    round_began: (u64, u64),
}

/// What the world has to know of the process, whether or not it is there.
#[derive(Clone, Debug)]
pub struct Known {
    pub config: Config,
    pub stop: Option<Stop>,
    /// The last list of VMs left one out.
    pub left_out: bool,
}

/// The pool's configuration as the production code takes it.
pub fn rules(config: &Config) -> Rules {
    let time = |millis: Millis| Duration::from_millis(millis as u64);
    let pool = PoolConfig {
        name_prefix: config.prefix.clone(),
        size: config.size,
        warm: config.warm,
        boot_timeout: time(config.boot_timeout),
        job_timeout: time(config.job_timeout),
        poll: time(config.poll),
        shutdown: Shutdown::Keep,
        surplus_after: time(config.surplus_after),
        max_idle: time(config.max_idle),
        min_free_bytes: 10 << 30,
        keep_failed: config.keep_failed,
        max_concurrent_creates: 2,
    };
    let github = GitHubConfig {
        api_url: "https://api.github.com".into(),
        org: config.owner.into(),
        repo: config.repository.then(|| "app".into()),
        registration: if config.jit { RegistrationMode::Jit } else { RegistrationMode::Token },
        runner_group: "Default".into(),
        labels: vec!["self-hosted".into(), "Windows".into(), "ephemeral".into()],
        intake: if config.scale_set { Intake::ScaleSet } else { Intake::Webhook },
        ..GitHubConfig::default()
    };
    Rules::new(&pool, &github, super::world::TAG.into())
}

impl Sim {
    // --- start and end ---

    pub(crate) fn start_process(&mut self) {
        self.generation += 1;
        self.report.restarts += u64::from(self.generation > 1);
        let config = self.plan.config.clone();
        (self.known.config, self.known.stop, self.known.left_out) = (config.clone(), None, false);
        let mut rules = rules(&config);
        if self.options.bug == Some(Bug::NoRetire) {
            rules.pool.surplus_after = Duration::from_secs(1_000_000_000);
        }
        let state = PoolState::new(rules, self.rng.next(), 0);
        let mut p = Box::new(Process {
            generation: self.generation,
            monitor: Monitor::new(self.rng.next()),
            queue: Queue::new(self.rng.next()),
            client: Client::default(),
            pause_ends: None,
            state,
            epoch: self.clock(),
            workers: Vec::new(),
            stop_creating: false,
            round_began: (0, 0),
            config,
        });
        self.monitor_goes_on(&mut p, Answer::Paused);
        if p.config.scale_set {
            self.queue_goes_on(&mut p, queue::Answer::Paused);
        }
        self.process = Some(p);
        // A stop is at its most delicate while the pool does not know yet what is there.
        if !self.quiet && self.plan.disturbed_every > 0 && self.rng.one_in(10) {
            let stop = if self.rng.one_in(4) { Stop::Destroy } else { Stop::Keep };
            let wait = self.rng.between(0, 5 * SECOND);
            self.after(wait, Ev::Stop(self.generation, stop));
        }
    }

    /// The process dies. What it was doing is cut off, or goes on without it.
    pub(crate) fn kill(&mut self) {
        let Some(process) = self.process.take() else { return };
        self.known.stop = None;
        self.leave_session(process.generation);
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
            match self.rng.below(6) {
                0 => config.size = (config.size + 1 + self.rng.below(2) as u32).min(8),
                1 => config.size = (config.size / 2).max(1),
                2 => config.warm = self.rng.below(u64::from(config.size) + 1) as u32,
                3 => config.jit = !config.jit || config.scale_set,
                4 => {
                    config.owner = ["octo", "acme"][self.rng.below(2) as usize];
                    config.repository = self.rng.one_in(2);
                    self.report.faults[Fault::ScopeChange as usize] += 1;
                }
                _ => config.prefix = format!("pool{}-", self.rng.below(3)),
            }
            config.warm = config.warm.min(config.size);
            self.world_version += 1;
        }
        self.after(wait, Ev::Restart);
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let Some(mut p) = self.process.take() else { return };
        if p.state.stopping().is_none() {
            self.count(if stop == Stop::Keep { Fault::Stopped } else { Fault::StopDestroys });
            self.known.stop = Some(stop);
            if self.options.bug != Some(Bug::DeafToStop) {
                self.apply(&mut p, |state| state.stop(stop));
            }
            p.stop_creating = true;
            if !self.fault(Fault::QueueFails) {
                self.close_session(&mut p);
            }
            for key in 0..self.ops.len() {
                // Its PowerShell is killed. Hyper-V may finish what that began.
                let creating = self.ops[key].as_ref().is_some_and(|op| {
                    op.generation == p.generation && op.awaited && matches!(op.act, Act::Create(..))
                });
                if creating {
                    self.cut_off(key);
                }
            }
            let limit = STOP_LIMIT.as_millis() as Millis;
            self.after(limit, Ev::StopLimit(p.generation));
            if self.rng.one_in(8) {
                // A second Ctrl+C.
                let wait = self.rng.between(0, MINUTE);
                self.after(wait, Ev::Kill(p.generation));
            }
        }
        self.put_back(p);
    }

    pub(crate) fn drain(&mut self) {
        let Some(mut p) = self.process.take() else { return };
        self.count(Fault::Drained);
        self.apply(&mut p, PoolState::drain);
        let wait = self.rng.between(SECOND, HOUR);
        self.after(wait, Ev::Resume(p.generation));
        self.put_back(p);
    }

    pub(crate) fn resume(&mut self) {
        let Some(mut p) = self.process.take() else { return };
        if self.options.bug != Some(Bug::DeafToResume) {
            self.apply(&mut p, PoolState::resume);
        }
        self.put_back(p);
    }

    pub(crate) fn recycle(&mut self) {
        let Some(mut p) = self.process.take() else { return };
        self.count(Fault::Recycled);
        let slots: Vec<String> = p.state.slots().map(|slot| slot.vm_name().to_owned()).collect();
        let vm = self.rng.one_in(2).then(|| &slots[self.rng.below(slots.len() as u64) as usize]);
        // What cannot be recycled now is left as it is.
        let _ = self.apply(&mut p, |state| state.recycle(vm.map(String::as_str)));
        self.put_back(p);
    }

    /// The process is there again, unless all its slots have stopped.
    pub(crate) fn put_back(&mut self, p: Box<Process>) {
        let ended = p.state.stopping().is_some() && p.state.has_stopped();
        self.process = Some(p);
        if ended {
            self.trace(|_| "the pool has stopped".into());
            // The monitor may be in the midst of a call, and is not waited for.
            self.kill();
        }
    }

    // --- facts ---

    /// Lets a fact take effect, as `workers` does.
    fn apply<T>(&mut self, p: &mut Process, fact: impl FnOnce(&mut PoolState) -> T) -> T {
        let now = self.clock() - p.epoch;
        let (answer, out) = p.state.apply(now, fact);
        self.follow(p, out);
        answer
    }

    fn follow(&mut self, p: &mut Process, out: Outcome) {
        for (_, happened) in out.news {
            if let News::Broken(what) = &happened {
                self.violate(2, what.clone());
            }
            if let News::Adopted(vm) = &happened {
                self.adopted(vm, p);
            }
            if self.options.trace {
                self.trace(|_| format!("    {happened:?}"));
            }
        }
        let now = self.clock() - p.epoch;
        p.workers.resize_with(p.state.slots().count(), Worker::default);
        for (slot, action) in out.actions {
            if p.state.draining() && matches!(action, Action::Register { .. }) {
                self.violate(2, format!("slot {slot} makes a VM while the pool drains"));
            }
            self.trace(|_| format!("    slot {slot}: {action:?}"));
            let worker = &mut p.workers[slot];
            let mut decided = self.now;
            if let Action::DestroyVm(vm) | Action::KeepVm(vm) = &action {
                // To destroy is final: another try is not a new decision.
                match &worker.destroying {
                    Some((same, first)) if same == vm => decided = *first,
                    _ => worker.destroying = Some((vm.clone(), decided)),
                }
            }
            worker.queue.push_back((action, decided));
            self.perform_next(p, slot);
        }
        for slot in 0..p.workers.len() {
            let Some(deadline) = p.state.deadline(slot, now) else { continue };
            let at = (deadline + p.epoch - self.jumped).max(self.now);
            if p.workers[slot].timer.is_none_or(|timer| at < timer) {
                p.workers[slot].timer = Some(at);
                self.after(at - self.now, Ev::Tick(p.generation, slot));
            }
        }
        if out.look_now
            && let Some(end) = &mut p.pause_ends
            && *end > self.now + 500
        {
            *end = self.now + 500;
            self.after(500, Ev::Monitor(p.generation));
        }
    }

    /// Who owns an adopted VM from now on.
    fn adopted(&mut self, vm: &VmId, p: &Process) {
        let slot = p.state.slots().position(|s| s.instance().is_some_and(|i| i.vm == *vm));
        let number = number_of(vm);
        if let (Some(slot), Some(vm)) = (slot, self.vms.iter_mut().find(|vm| vm.number == number)) {
            vm.owner = (p.generation, slot);
        }
    }

    pub(crate) fn process_event(&mut self, ev: Ev) {
        let Some(mut p) = self.process.take() else { return };
        match ev {
            Ev::Tick(generation, slot) if generation == p.generation => {
                p.workers[slot].timer = None;
                let due = p.state.deadline(slot, self.clock() - p.epoch);
                if due.is_some_and(|at| at <= self.clock() - p.epoch) {
                    self.apply(&mut p, |state| state.tell(slot, Event::Tick));
                } else {
                    self.follow(&mut p, Outcome::default());
                }
            }
            Ev::Perform(generation, slot) if generation == p.generation => self.perform(&mut p, slot),
            Ev::Monitor(generation)
                if generation == p.generation && p.pause_ends.is_some_and(|end| end <= self.now) =>
            {
                p.pause_ends = None;
                if self.options.bug != Some(Bug::NoMonitor) || !p.state.has_recovered() {
                    self.monitor_goes_on(&mut p, Answer::Paused);
                }
            }
            _ => {}
        }
        self.put_back(p);
    }

    /// The clock has jumped: every thread that waits looks again.
    pub(crate) fn wake_all(&mut self) {
        let Some(mut p) = self.process.take() else { return };
        p.workers.iter_mut().for_each(|worker| worker.timer = None);
        self.follow(&mut p, Outcome::default());
        self.put_back(p);
    }

    // --- workers ---

    /// Mostly milliseconds; on a host that is short of memory, up to a minute.
    pub(crate) fn held_up(&mut self) -> Millis {
        let most = if self.rng.one_in(16) { MINUTE } else { 2 * SECOND };
        self.rng.between(1, most)
    }

    fn perform_next(&mut self, p: &mut Process, slot: usize) {
        if p.workers[slot].performing || p.workers[slot].queue.is_empty() {
            return;
        }
        p.workers[slot].performing = true;
        if self.fault(Fault::Preempted) {
            let wait = self.held_up();
            self.after(wait, Ev::Perform(p.generation, slot));
        } else {
            self.perform(p, slot);
        }
    }

    fn perform(&mut self, p: &mut Process, slot: usize) {
        let Some((action, decided)) = p.workers[slot].queue.pop_front() else { return };
        let now = self.clock() - p.epoch;
        let act = match action {
            Action::Register { runner_name } => Act::Register(runner_name, p.state.rules().scope.clone()),
            Action::RemoveRunner { not_after: Some(limit), .. } if now > limit => {
                let late = Brought::ToSlot(Event::RunnerRemoved(Err(Error::Failed("too old".into()))));
                return self.bring(p, Some(slot), late);
            }
            Action::RemoveRunner { instance, .. } => match instance.runner_id {
                Some(id) => Act::Remove(id, instance.scope),
                None => Act::RemoveByName(instance.runner_name, instance.scope),
            },
            Action::CreateVm { .. } if p.stop_creating => {
                let error = hypervisor::Error("the pool stops".into());
                return self.bring(p, Some(slot), Brought::ToSlot(Event::Created(Err(error))));
            }
            Action::CreateVm { mut instance, jit_config } => {
                let worker = &mut p.workers[slot];
                if self.options.bug == Some(Bug::DiskAgain)
                    && let Some(last) = &worker.last_disk
                {
                    instance.vm = last.clone();
                }
                worker.last_disk = Some(instance.vm.clone());
                let jit = jit_config.and_then(|jit| jit.expose().strip_prefix("jit-")?.parse().ok());
                Act::Create(instance, slot as u32 + 1, jit)
            }
            Action::DestroyVm(_) if self.options.bug == Some(Bug::DestroyLater) => {
                return self.bring(p, Some(slot), Brought::ToSlot(Event::Destroyed(Ok(()))));
            }
            Action::DestroyVm(vm) => Act::Destroy(vm),
            Action::KeepVm(vm) => Act::Keep(vm),
            Action::ExamineVm(vm) => Act::Examine(vm),
        };
        let forced = p.state.stopping() == Some(Stop::Destroy);
        self.begin_op(Some(slot), act, decided, forced);
    }

    /// An operation's answer comes.
    pub(crate) fn deliver(&mut self, generation: u32, slot: Option<usize>, brought: Brought) {
        let Some(mut p) = self.process.take() else { return };
        if p.generation == generation {
            self.bring(&mut p, slot, brought);
        }
        self.put_back(p);
    }

    fn bring(&mut self, p: &mut Process, slot: Option<usize>, brought: Brought) {
        match (slot, brought) {
            (Some(slot), Brought::ToSlot(event)) => {
                self.trace(|_| format!("    slot {slot} brings {event:?}"));
                p.workers[slot].performing = false;
                self.apply(p, |state| state.tell(slot, event));
                self.perform_next(p, slot);
            }
            (None, Brought::ToMonitor(answer)) => self.monitor_goes_on(p, answer),
            _ => {}
        }
    }

    // --- the queue ---

    /// Lets what the queue answered take effect, and says what it is asked next.
    pub(crate) fn ask_of_queue(&mut self, p: &mut Process, answer: queue::Answer) -> queue::Ask {
        let now = self.clock() - p.epoch;
        let answer = self.planted_in_queue(answer);
        let Process { queue, state, .. } = &mut *p;
        let (ask, out) = state.apply(now, |state| queue.next(answer, state));
        self.follow(p, out);
        ask
    }

    // --- the monitor ---

    fn monitor_goes_on(&mut self, p: &mut Process, answer: Answer) {
        let now = self.clock() - p.epoch;
        let answer = self.planted(p, answer);
        let Process { monitor, state, .. } = &mut *p;
        let (ask, out) = state.apply(now, |state| {
            let mut ask = monitor.next(answer, state);
            while let Ask::NewestRunner = ask {
                ask = monitor.next(Answer::NewestRunner(Ok(None), 0), state);
            }
            ask
        });
        self.follow(p, out);
        let act = match ask {
            Ask::Vms(writes) => {
                p.round_began = (self.report.faults.iter().sum(), self.world_version);
                Act::ListVms(writes)
            }
            Ask::Runners => Act::ListRunners(p.state.rules().scope.clone()),
            Ask::Runner(asked) => Act::ById(asked.id, asked.scope),
            Ask::Remove(id) => Act::Remove(id, p.state.rules().scope.clone()),
            Ask::QueuedJobs => Act::QueuedJobs,
            Ask::Pause(wait) => {
                let wait = wait + self.idle_rounds(p) * wait;
                p.pause_ends = Some(self.now + wait);
                return self.after(wait, Ev::Monitor(p.generation));
            }
            Ask::End | Ask::NewestRunner => return,
        };
        self.begin_op(None, act, self.now, false);
    }

    /// Plants a bug into what the monitor is told.
    fn planted(&mut self, p: &Process, answer: Answer) -> Answer {
        let bug = self.options.bug;
        match answer {
            Answer::Vms(Ok((mut inventory, fingerprint))) => {
                for vm in &mut inventory.vms {
                    if bug == Some(Bug::NoAdoption) && !p.state.has_recovered() {
                        vm.power = hyperv_runner_pool::hypervisor::Power::Off;
                    }
                    if bug == Some(Bug::DeafToHost) {
                        // As if every guest had said that it runs no Worker.
                        if let Some(word) = &mut vm.guest {
                            word.worker = false;
                        }
                    }
                }
                Answer::Vms(Ok((inventory, fingerprint)))
            }
            Answer::Runners(Ok(mut runners)) => {
                if bug == Some(Bug::NoOrphans) {
                    runners.retain(|runner| runner.online || runner.busy);
                }
                if bug == Some(Bug::OrphansByOffline) {
                    let tag = super::world::TAG;
                    runners.iter_mut().for_each(|runner: &mut Runner| {
                        if !runner.online && !runner.name.contains(tag) {
                            runner.name = format!("runner-1-{tag}{:08x}", runner.id);
                        }
                    });
                }
                Answer::Runners(Ok(runners))
            }
            other => other,
        }
    }

    /// How many rounds from now on cannot change anything, since nothing has
    /// since the last one and nothing happens before: only with `Plan::skip_idle`.
    fn idle_rounds(&mut self, p: &Process) -> Millis {
        if !self.plan.skip_idle || p.round_began != (self.report.faults.iter().sum(), self.world_version) {
            return 0;
        }
        let Some(next) = self.next_due() else { return 0 };
        let settled = p.state.slots().enumerate().all(|(index, slot)| {
            let owned = self.vms.iter().find(|vm| vm.owner == (p.generation, index));
            !p.workers[index].performing
                && match slot.phase() {
                    Phase::Empty => owned.is_none(),
                    Phase::Ready => {
                        slot.retiring().is_none()
                            && owned.is_some_and(|vm| vm.job.is_none() && self.runner_online(vm))
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
        // What is retired for its age is so within an hour of its time.
        let rounds = ((next - self.now).min(60 * MINUTE)) / p.config.poll;
        // A fault of listing ends the idleness as well.
        use Fault::{AnswerLost, GitHubFails, GitHubSlow, KilledInEffect, ListFails, RateLimited};
        use Fault::{RunnerUnlisted, VmUnlisted};
        let kinds = [ListFails, VmUnlisted, RunnerUnlisted, GitHubFails, AnswerLost, GitHubSlow, RateLimited];
        let rate: u32 = kinds.iter().map(|&f| self.plan.rates[f as usize]).sum::<u32>()
            + 2 * self.plan.rates[KilledInEffect as usize];
        if rate == 0 || self.quiet || rounds <= 0 {
            return rounds.max(0);
        }
        rounds.min(self.rng.wait(Millis::from(1_000_000 / rate.max(1))) - 1)
    }

    // --- HTTP ---

    /// A guest's call arrives. `None` if there is nobody to answer.
    pub(crate) fn call(
        &mut self,
        vm: &VmId,
        call: Call,
        forged: bool,
    ) -> Option<Result<Option<RunnerConfig>, Refusal>> {
        let mut p = self.process.take()?;
        let unchecked = self.options.bug == Some(Bug::SecretUnchecked);
        // The secret is a keyed hash of name and incarnation, so whoever has it is that VM.
        let is_proven = |its: &VmId| unchecked || its.incarnation == vm.incarnation;
        let answer = match call {
            Call::Config => self.apply(&mut p, |state| state.runner_config(&vm.name, is_proven)).map(Some),
            Call::Started => self
                .apply(&mut p, |state| {
                    state.guest_tells(&vm.name, is_proven, Event::JobStarted(Job::default()))
                })
                .map(|()| None),
            Call::Ended => self
                .apply(&mut p, |state| {
                    state.guest_tells(&vm.name, is_proven, Event::RunnerEnded { exit_code: Some(0) })
                })
                .map(|()| None),
        };
        if forged && answer.is_ok() {
            self.violate(7, format!("a call in the name of {} with a wrong proof counts", vm.name));
        }
        self.put_back(p);
        Some(answer)
    }

    pub(crate) fn hook_arrives(&mut self, hook: Hook) {
        let Some(mut p) = self.process.take() else { return };
        let (runner_id, runner_name) = hook.runner.map_or((None, None), |(id, name)| (Some(id), Some(name)));
        let event = JobEvent { job: Job { id: Some(hook.job_id), ..Job::default() }, runner_id, runner_name };
        match hook.action {
            HookAction::Queued => {
                let label = if hook.ours { "self-hosted" } else { "gpu" };
                self.apply(&mut p, |state| state.job_queued(hook.job_id, &[label.into()]));
            }
            HookAction::InProgress => {
                self.apply(&mut p, |state| state.job_in_progress(event));
            }
            HookAction::Completed => {
                self.apply(&mut p, |state| state.job_completed(event));
            }
        }
        self.put_back(p);
    }

    /// Why the pool is not as it should be, without its registrations.
    pub(crate) fn slots_not_whole(&self, p: &Process) -> Option<String> {
        let config = &p.config;
        let odd = p.state.slots().find(|slot| {
            let phase = slot.phase();
            !matches!(phase, Phase::Empty | Phase::Ready | Phase::Stopped) || slot.retiring().is_some()
        });
        if let Some(slot) = odd {
            return Some(format!("slot {} is {:?} {:?}", slot.number, slot.phase(), slot.retiring()));
        }
        let ready = p.state.slots().filter(|slot| slot.phase() == Phase::Ready).count();
        // Jobs whose end it has not heard of may keep one VM ready for a day.
        let most = if p.state.jobs_waiting() > 0 { config.warm.max(1) } else { config.warm } as usize;
        if !(config.warm as usize..=most).contains(&ready) || self.vms.len() != ready {
            return Some(format!(
                "{ready} slots are ready of POOL_WARM {}, {} VMs",
                config.warm,
                self.vms.len()
            ));
        }
        let stale = self.vms.iter().find(|vm| vm.fingerprint != self.fingerprint(config));
        stale.map(|vm| format!("{} is outdated", vm.id))
    }
}

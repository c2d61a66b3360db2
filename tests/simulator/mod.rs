//! A simulator that drives the pool's own `PoolState` and `Monitor` through
//! simulated years of faults, from one seed, without a thread or a wait.
//!
//! - [`plan`]: what a seed decides in advance: settings, load, which faults.
//! - [`world`]: the truth: hypervisor, GitHub, guests, jobs, the network.
//! - [`scale_set`]: the runner scale set, its queue, and who asks it: for half of the seeds, in the place of webhooks.
//! - [`process`]: the pool's process: the production code, with events in
//!   simulated time in the place of its threads. It decides nothing.
//!
//! Each invariant of the design is checked where it can break:
//! 1. One job for each VM, no disk used twice: when a job reaches a VM, when a disk is made.
//! 2. One VM for each slot, no more than `POOL_SIZE`: when a VM is made.
//! 3. A VM with a running job ends only for the design's reasons: when it is
//!    turned off, and when its registration is removed.
//! 4. When faults have ended, the pool is whole within [`Sim::bound`]: as many
//!    ready VMs as configured and no idle surplus, none outdated, nothing left
//!    over; and a stopping pool ends in time.
//! 5. Nothing that is not the pool's is touched: when anything is removed.
//! 6. Secrets in output: tests of the whole program look at that.
//! 7. A guest's call with a wrong proof changes nothing: when a call is accepted.
//! 8. A job that is the scale set's has a VM, or the pool is full, within
//!    [`Sim::soon`] of the last fault: at every look after that.
//!
//! Not modeled: HTTP, PowerShell and the client of GitHub (they have tests of
//! their own); a clock that goes back (the pool's is monotonic).

pub mod plan;
pub mod process;
pub mod scale_set;
pub mod world;

use hyperv_runner_pool::github::queue::Message;
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::hypervisor::VmId;
use hyperv_runner_pool::pool::Millis;
use hyperv_runner_pool::pool::back_off::Random;
use hyperv_runner_pool::pool::slot::types::{Phase, Stop};
use plan::{FAULT_KINDS, FAULTS, Fault, HOUR, MINUTE, Plan, Rng, SECOND};
use process::{Call, Process};
use scale_set::SimSet;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use world::{Job, Op, SimRunner, SimVm};

/// A fault planted between the pool and its world, to show that the simulator catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A new VM gets the disk of the slot's last one.
    DiskAgain,
    /// A destruction is reported done, and the next VM made, while the old one is there.
    DestroyLater,
    /// The pool hears every guest say that it runs no Worker.
    DeafToHost,
    /// A restarted pool takes what is there for off, and destroys it.
    NoAdoption,
    /// The monitor ends after its first look.
    NoMonitor,
    /// Registrations without a slot stay.
    NoOrphans,
    /// An idle VM is never asked to retire.
    NoRetire,
    /// A stop is not told to the pool.
    DeafToStop,
    /// The end of a drain is not told to the pool.
    DeafToResume,
    /// A VM is destroyed by its name.
    DestroyByName,
    /// Every runner that is offline and has no slot is removed.
    OrphansByOffline,
    /// A guest's proof is not looked at.
    SecretUnchecked,
    /// What the queue says of how many jobs wait is not told to the pool.
    DeafToQueue,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Instead of what the seed would plan.
    pub plan: Option<Plan>,
    pub bug: Option<Bug>,
    /// Print every event.
    pub trace: bool,
}

impl Options {
    pub fn seed(seed: u64) -> Options {
        Options { seed, plan: None, bug: None, trace: false }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub faults: Vec<u64>,
    pub jobs_completed: u64,
    pub jobs_failed: u64,
    pub vms_made: u64,
    pub restarts: u64,
    pub events: u64,
    pub simulated: Millis,
    /// From the end of faults until the pool was whole.
    pub recovery: Millis,
}

impl Report {
    pub fn add(&mut self, other: &Report) {
        self.faults.resize(FAULT_KINDS, 0);
        self.faults.iter_mut().zip(&other.faults).for_each(|(sum, n)| *sum += n);
        self.jobs_completed += other.jobs_completed;
        self.jobs_failed += other.jobs_failed;
        self.vms_made += other.vms_made;
        self.restarts += other.restarts;
        self.events += other.events;
        self.simulated += other.simulated;
        self.recovery = self.recovery.max(other.recovery);
    }

    pub fn faults_by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FAULTS.iter().zip(&self.faults).map(|((name, _), &n)| (*name, n))
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub seed: u64,
    /// By its number in the design.
    pub invariant: u8,
    /// When, in simulated milliseconds.
    pub at: Millis,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Violation { seed, invariant, at, what } = self;
        write!(f, "seed {seed}: invariant {invariant} at {}: {what}", clock_time(*at))
    }
}

/// Something that is due at some time.
#[derive(Clone, Debug)]
pub enum Ev {
    /// A slot's deadline. (process, slot)
    Tick(u32, usize),
    /// A worker gets to its next action. (process, slot)
    Perform(u32, usize),
    /// The monitor's pause is over. (process)
    Monitor(u32),
    /// An operation goes on.
    Op(usize),
    /// Something happens in a VM. (incarnation, how often it has been started)
    Vm(u64, u32, VmEv),
    /// A guest's call arrives, or that of someone who pretends to be it. (VM, call, forged)
    Call(Rc<VmId>, Call, bool),
    /// A webhook arrives.
    Hook(Box<Hook>),
    /// A job is queued.
    Job,
    /// GitHub notices that a runner is not connected.
    Offline(Box<(u64, Scope)>),
    /// GitHub gives up a job whose runner has gone. (job)
    GiveUp(u64),
    /// GitHub forgets an ephemeral runner that has had its job. (runner)
    Deregister(Box<(u64, Scope)>),
    /// GitHub looks whether an ephemeral runner has been offline for a day. (runner)
    Expire(Box<(u64, Scope)>),
    /// A fault on its own clock.
    Disturb,
    /// The process dies, if it is still this one.
    Kill(u32),
    Restart,
    /// The pool is told to stop, if it is still this process.
    Stop(u32, Stop),
    /// An operator ends a drain, if it is still this process.
    Resume(u32),
    /// An orderly stop lasts no longer: what is left is the next start's.
    StopLimit(u32),
    /// Somebody cancels a job that waits.
    Cancel(u64),
    /// A job that was given to a runner is canceled before it began.
    NotTaken(u64),
    /// Something may have come of what the queue was asked. (process, turn)
    Queue(u32, u64),
    /// A message reaches the queue.
    Message(Box<(Scope, Message)>),
    /// An assignment to the scale set is canceled and made again. (job)
    Reassign(u64),
}

/// What happens in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEv {
    /// The guest asks for its configuration; so many times before without success.
    Ask(u16),
    /// It has it and starts its runner. (credential, number of the runner)
    RunnerStarts,
    JobEnds(u64),
    /// It says that its runner has ended; so many times before without success.
    SaysComplete(u16),
    RunnerDies,
    /// It obeys the wish that it retire.
    Retires,
    Hangs,
    Reboots,
    PowersOff,
    Vanishes,
}

/// A webhook on its way.
#[derive(Clone, Debug)]
pub struct Hook {
    pub action: Action,
    pub job_id: u64,
    pub ours: bool,
    pub runner: Option<(u64, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Queued,
    InProgress,
    Completed,
}

#[derive(Debug)]
struct Due {
    at: Millis,
    order: u64,
    ev: Ev,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    /// The earliest is the greatest, as `BinaryHeap` wants it.
    fn cmp(&self, other: &Due) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// One run.
pub struct Sim {
    pub(crate) options: Options,
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) now: Millis,
    /// How far the host's clock has jumped ahead.
    pub(crate) jumped: Millis,
    /// Faults have ended.
    pub(crate) quiet: bool,
    heap: BinaryHeap<Due>,
    order: u64,
    pub(crate) report: Report,
    pub(crate) violation: Option<Violation>,

    pub(crate) process: Option<Box<Process>>,
    pub(crate) generation: u32,
    pub(crate) ops: Vec<Option<Op>>,
    pub(crate) free_ops: Vec<usize>,

    pub(crate) vms: Vec<SimVm>,
    pub(crate) disks: Vec<VmId>,
    /// The failed VM that is kept.
    pub(crate) kept: Vec<VmId>,
    pub(crate) foreign_vms: Vec<String>,
    /// By start of the pool and file name: at another start, chance can give the same 32 bits to a slot again.
    pub(crate) used_disks: std::collections::HashSet<(u32, String)>,
    pub(crate) runners: Vec<SimRunner>,
    /// By scope.
    pub(crate) last_runner: std::collections::HashMap<Scope, u64>,
    pub(crate) scale_sets: Vec<SimSet>,
    pub(crate) jobs: Vec<Job>,
    /// Jobs without a runner, by index in `jobs`.
    pub(crate) waiting: VecDeque<u64>,
    pub(crate) disk_full_until: Millis,
    pub(crate) github_down_until: Millis,
    pub(crate) rate_limited_until: Millis,
    /// Changed by whatever a list of VMs or runners would show.
    pub(crate) world_version: u64,
    pub(crate) refused_until: Millis,
    /// The token has no access to other scopes than the pool's.
    pub(crate) scope_refused: bool,
    /// How often the template was replaced.
    pub(crate) template: u64,
    pub(crate) bad_template_until: Millis,
    pub(crate) known: process::Known,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> (Report, Option<Violation>) {
    let mut rng = Rng(Random(options.seed ^ 0x5eed_0000_0000_0000));
    let drawn = Plan::from_seed(&mut rng);
    let plan = options.plan.clone().unwrap_or(drawn);
    let known = process::Known { config: plan.config.clone(), stop: None, left_out: false };
    let mut sim = Sim {
        options,
        plan,
        rng,
        now: 0,
        jumped: 0,
        quiet: false,
        heap: BinaryHeap::new(),
        order: 0,
        report: Report { faults: vec![0; FAULT_KINDS], ..Report::default() },
        violation: None,
        process: None,
        generation: 0,
        ops: Vec::new(),
        free_ops: Vec::new(),
        vms: Vec::new(),
        disks: Vec::new(),
        kept: Vec::new(),
        foreign_vms: Vec::new(),
        used_disks: std::collections::HashSet::new(),
        runners: Vec::new(),
        last_runner: std::collections::HashMap::new(),
        scale_sets: Vec::new(),
        jobs: Vec::new(),
        waiting: VecDeque::new(),
        disk_full_until: 0,
        github_down_until: 0,
        rate_limited_until: 0,
        world_version: 0,
        refused_until: 0,
        scope_refused: false,
        template: 0,
        bad_template_until: 0,
        known,
    };
    sim.simulate();
    sim.report.simulated = sim.now;
    (sim.report, sim.violation)
}

impl Sim {
    fn simulate(&mut self) {
        self.trace(|sim| format!("{:?}", sim.plan));
        self.populate();
        self.start_process();
        self.after(SECOND, Ev::Job);
        if self.plan.disturbed_every > 0 {
            let wait = self.rng.wait(self.plan.disturbed_every);
            self.after(wait, Ev::Disturb);
        }
        while let Some(due) = self.next_before(self.plan.length) {
            self.handle(due);
        }
        if self.violation.is_some() {
            return;
        }
        // The faults have ended.
        self.now = self.now.max(self.plan.length);
        self.quiet = true;
        (self.disk_full_until, self.github_down_until, self.rate_limited_until) = (0, 0, 0);
        (self.refused_until, self.bad_template_until) = (0, 0);
        self.runners.iter_mut().for_each(|runner| runner.lag = None);
        self.world_version += 1;
        // What would take a small pool more than a few hours is withdrawn.
        let most = 4 * self.plan.config.warm.max(1) as usize;
        for job in self.waiting.split_off(most.min(self.waiting.len())) {
            self.job_over(job);
        }
        for &job in &self.waiting {
            let takes = &mut self.jobs[job as usize].takes;
            *takes = (*takes).min(self.plan.job_takes.1);
        }
        let began = self.now;
        let mut why = String::new();
        let mut left_waiting = 0;
        while self.now < began + self.bound() {
            let until = self.now + 2 * MINUTE;
            while let Some(due) = self.next_before(until) {
                self.handle(due);
            }
            if self.violation.is_some() {
                return;
            }
            self.now = until;
            left_waiting = if self.leaves_a_job_waiting() { left_waiting + 1 } else { 0 };
            if self.now > began + self.soon() && left_waiting >= 5 {
                let waits = self.waiting.len();
                return self.violate(8, format!("{waits} jobs wait, and the pool makes no VM for them"));
            }
            match self.not_whole() {
                None => {
                    self.report.recovery = self.now - began;
                    return;
                }
                Some(reason) => why = reason,
            }
        }
        self.violate(4, format!("not whole {} after the last fault: {why}", clock_time(self.bound())));
    }

    /// How long after the last fault the pool must be whole: a job may run as
    /// long as it may, a dead runner's registration stay busy for hours, one
    /// that only looks like the pool's must be offline for the boot time-out.
    pub fn bound(&self) -> Millis {
        let longest_job = self.jobs.last().map_or(0, |_| self.plan.config.job_timeout);
        // A webhook that comes hours late can name the job of a mute guest anew.
        let late = if self.plan.rates[Fault::HookHoursLate as usize] > 0 { 6 * HOUR } else { 0 };
        longest_job + late + self.plan.config.boot_timeout * 2 + 4 * HOUR
    }

    /// How long after the last fault a job that is the scale set's may go without a VM: an old message can come, and a
    /// rate limit last, for an hour more; GitHub's count is asked for every 10 minutes; a failure is retried within 5.
    pub fn soon(&self) -> Millis {
        let rate = |fault: Fault| self.plan.rates[fault as usize];
        let late = if rate(Fault::MessageLate) > 0 { HOUR } else { 0 };
        // Slots come back from it spread out.
        let limited = if rate(Fault::RateLimited) > 0 { HOUR + HOUR / 10 } else { 0 };
        self.plan.config.boot_timeout * 2 + late + limited + 30 * MINUTE
    }

    /// Whether a job of the scale set waits, the pool is not full, and no VM is idle or in the making.
    fn leaves_a_job_waiting(&self) -> bool {
        let makes_vms = |p: &&Process| !p.state.draining() && p.state.stopping().is_none();
        let process = self.process.as_deref().filter(|p| p.config.scale_set).filter(makes_vms);
        let Some(process) = process else { return false };
        let phases = || process.state.slots().map(|slot| slot.phase());
        let serves = |phase| matches!(phase, Phase::Creating | Phase::Booting | Phase::Ready);
        let assigned = self.waiting.iter().any(|&job| self.jobs[job as usize].assigned);
        let taken = phases().filter(|phase| !matches!(phase, Phase::Empty | Phase::Stopped)).count();
        assigned && !phases().any(serves) && taken < process.config.size as usize
    }

    fn next_before(&mut self, end: Millis) -> Option<Ev> {
        if self.violation.is_some() || self.heap.peek()?.at > end {
            return None;
        }
        let due = self.heap.pop()?;
        self.now = due.at;
        Some(due.ev)
    }

    fn handle(&mut self, ev: Ev) {
        self.report.events += 1;
        if self.options.trace {
            println!("{} {ev:?}", clock_time(self.now));
        }
        match ev {
            Ev::Tick(..) | Ev::Perform(..) | Ev::Monitor(..) => self.process_event(ev),
            Ev::Op(op) => self.op_goes_on(op),
            Ev::Vm(incarnation, started, what) => self.vm_event(incarnation, started, what),
            Ev::Call(vm, call, forged) => {
                self.call(&vm, call, forged);
            }
            Ev::Hook(hook) => self.hook_arrives(*hook),
            Ev::Job => self.job_arrives(),
            Ev::Offline(runner) => self.runner_offline(runner.0, &runner.1),
            Ev::GiveUp(job) => self.give_up(job),
            Ev::Deregister(runner) => self.deregister(runner.0, &runner.1),
            Ev::Expire(runner) => self.expire(runner.0, &runner.1),
            Ev::Cancel(job) => self.cancel(job),
            Ev::NotTaken(job) => self.not_taken(job),
            Ev::Queue(generation, turn) => self.queue_event(generation, turn),
            Ev::Message(message) => self.message_arrives(&message.0, message.1),
            Ev::Reassign(job) => self.reassign(job),
            Ev::Disturb => self.disturb(),
            Ev::Kill(generation) => {
                if self.process.as_ref().is_some_and(|p| p.generation == generation) {
                    self.kill();
                }
            }
            Ev::Restart => {
                if self.process.is_none() {
                    self.start_process();
                }
            }
            Ev::Stop(generation, stop) => {
                if self.process.as_ref().is_some_and(|p| p.generation == generation) && !self.quiet {
                    self.stop(stop);
                }
            }
            Ev::Resume(generation) => {
                if self.process.as_ref().is_some_and(|p| p.generation == generation) {
                    self.resume();
                }
            }
            Ev::StopLimit(generation) => {
                if self.process.as_ref().is_some_and(|p| p.generation == generation) {
                    self.stop_is_late();
                }
            }
        }
    }

    pub(crate) fn after(&mut self, wait: Millis, ev: Ev) {
        self.order += 1;
        self.heap.push(Due { at: self.now + wait.max(0), order: self.order, ev });
    }

    /// When the next thing is due.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.heap.peek().map(|due| due.at)
    }

    /// Whether a fault of this kind happens on this occasion.
    pub(crate) fn fault(&mut self, fault: Fault) -> bool {
        if self.quiet || !self.rng.ppm(self.plan.rates[fault as usize]) {
            return false;
        }
        self.count(fault);
        true
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        self.report.faults[fault as usize] += 1;
        self.trace(|_| format!("fault: {}", FAULTS[fault as usize].0));
    }

    pub(crate) fn trace(&self, line: impl FnOnce(&Sim) -> String) {
        if self.options.trace {
            println!("{}   {}", clock_time(self.now), line(self));
        }
    }

    pub(crate) fn violate(&mut self, invariant: u8, what: String) {
        self.trace(|_| format!("VIOLATION of {invariant}: {what}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { seed: self.options.seed, invariant, at: self.now, what });
        }
    }

    /// A stop has lasted as long as it may. Only what cannot be ended, or was not told, is left by then.
    fn stop_is_late(&mut self) {
        let stopping = self.process.as_ref().is_some_and(|p| p.state.stopping().is_some());
        if stopping {
            self.kill();
        } else {
            self.violate(4, "the pool was told to stop and does not".into());
        }
    }

    /// Why the pool is not whole, if it is not.
    fn not_whole(&self) -> Option<String> {
        let Some(process) = &self.process else { return Some("the pool does not run".into()) };
        if process.state.stopping().is_some() {
            return Some("the pool is stopping".into());
        }
        if process.state.draining() {
            return Some("the pool drains".into());
        }
        // Without a warm slot, a job whose webhook is lost waits for ever, unless queued jobs can be listed.
        let config = &process.config;
        let lossy = [Fault::HookLost, Fault::HookHoursLate, Fault::KilledInEffect];
        let heard = config.scale_set
            || self.plan.disturbed_every == 0 && lossy.iter().all(|&f| self.plan.rates[f as usize] == 0);
        let unserved = self.waiting.len();
        if (config.warm > 0 || config.repository || heard) && unserved > 0 {
            let phases: Vec<_> = process.state.slots().map(|slot| slot.phase().name()).collect();
            self.trace(|_| format!("{:?}", process.state));
            let known = process.state.jobs_waiting();
            return Some(format!("{unserved} jobs wait, the pool knows of {known}: {phases:?}"));
        }
        let of_slot = |incarnation: &str| {
            process.state.slots().any(|s| s.instance().is_some_and(|i| i.vm.incarnation == incarnation))
        };
        if let Some(vm) = self.vms.iter().find(|vm| !of_slot(&vm.id.incarnation)) {
            return Some(format!("{} is nobody's", vm.id));
        }
        if let Some(disk) = self.disks.iter().find(|disk| !of_slot(&disk.incarnation)) {
            return Some(format!("disk {} is nobody's", disk.disk_file_name()));
        }
        if let Some(vm) = self.vms.iter().find(|vm| !vm.on || !self.runner_online(vm)) {
            return Some(format!("{} does not serve", vm.id));
        }
        self.slots_not_whole(process).or_else(|| self.runners_not_whole(process))
    }
}

/// Simulated time as days and time of day.
pub fn clock_time(at: Millis) -> String {
    let (s, ms) = (at / 1000, at % 1000);
    format!("{}d {:02}:{:02}:{:02}.{ms:03}", s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60)
}

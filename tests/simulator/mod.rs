//! A simulator that drives the pool's own `Slot` and `Book` through simulated
//! years of faults, from one seed, without a thread or a wait.
//!
//! - [`plan`]: what a seed decides in advance: settings, load, which faults.
//! - [`world`]: the truth: hypervisor, GitHub, guests, jobs, the network.
//! - [`process`]: the pool's process: the same steps in the same order as
//!   `worker.rs`, `monitor.rs` and `mod.rs` of `src/pool`, with every place
//!   where threads can interleave, or the process can die, as an event of its own.
//!
//! Each invariant of the design is checked where it can break:
//! 1. One job for each VM, no disk used twice: when a job reaches a VM, when a disk is made.
//! 2. One VM for each slot, no more than `POOL_SIZE`: when a VM is made.
//! 3. No VM with a running job destroyed, except by time-out or a forced stop: when a VM is turned off.
//! 4. When faults have ended, the pool is whole within [`Sim::bound`], with
//!    nothing left over; and a stopping pool ends within [`STOP_BOUND`].
//! 5. Nothing that is not the pool's is touched: when anything is removed.
//! 6. Secrets in output: nothing to check. No event, effect or view has a place for a secret.
//! 7. A guest's call with a wrong secret changes nothing: when a call is accepted.
//!
//! Not modelled: HTTP, PowerShell and the client of GitHub (they have tests of
//! their own); a list of VMs that leaves one out at the very start; another
//! host of the same prefix whose runners are offline; a clock that goes back
//! (the pool's is monotonic).

pub mod plan;
pub mod process;
pub mod world;

use hyperv_runner_pool::hypervisor::VmId;
use hyperv_runner_pool::pool::book::Call;
use hyperv_runner_pool::pool::slot::{Millis, Phase, Stop};
use plan::{FAULT_KINDS, FAULTS, Fault, HOUR, MINUTE, Plan, Rng, SECOND};
use process::Process;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use world::{Job, Op, SimRunner, SimVm};

/// How long a pool that was told to stop may take, whatever fails.
pub const STOP_BOUND: Millis = 20 * MINUTE;

/// A fault planted in the simulated pool's glue, to show that the simulator catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A guest gets its configuration however often it asks.
    ConfigAlways,
    /// A new VM gets the disk of the slot's last one.
    DiskAgain,
    /// A destruction is reported done, and the next VM made, while the old one is there.
    DestroyLater,
    /// A `completed` counts for the slot whose runner bears the name.
    CompletedByName,
    /// A restarted pool destroys what is there instead of adopting it.
    NoAdoption,
    /// The monitor ends after its first look.
    NoMonitor,
    /// Registrations without a slot stay.
    NoOrphans,
    /// A stop is not told to slots that wait.
    DeafToStop,
    /// A VM is destroyed by its name.
    DestroyByName,
    /// Every runner that is offline and has no slot is removed.
    OrphansByOffline,
    /// A guest's secret is not looked at.
    SecretUnchecked,
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
    /// A worker's deadline, or a message that it sees late. (process, slot)
    Wake(u32, usize),
    /// A worker publishes its step. (process, slot)
    Publish(u32, usize),
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
    Offline(u64),
    /// GitHub gives up a job whose runner has gone. (job)
    GiveUp(u64),
    /// GitHub forgets an ephemeral runner that has had its job. (runner)
    Deregister(u64),
    /// GitHub looks whether an ephemeral runner has been offline for a day. (runner)
    Expire(u64),
    /// A fault on its own clock.
    Disturb,
    /// The process dies, if it is still this one.
    Kill(u32),
    Restart,
    /// The pool is told to stop, if it is still this process.
    Stop(u32, Stop),
    /// A process that was told to stop should have ended.
    MustHaveStopped(u32),
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
    pub(crate) foreign_vms: Vec<String>,
    pub(crate) used_disks: std::collections::HashSet<u64>,
    pub(crate) runners: Vec<SimRunner>,
    pub(crate) last_runner: u64,
    pub(crate) jobs: Vec<Job>,
    /// Jobs without a runner, by index in `jobs`.
    pub(crate) waiting: VecDeque<u64>,
    pub(crate) disk_full_until: Millis,
    pub(crate) github_down_until: Millis,
    pub(crate) rate_limited_until: Millis,
    /// Changed by whatever a list of VMs or runners would show.
    pub(crate) world_version: u64,
    /// Prefixes of earlier settings, whose registrations only GitHub's own clean-up removes.
    pub(crate) former_prefixes: Vec<String>,
    pub(crate) known: process::Known,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> (Report, Option<Violation>) {
    let mut rng = Rng(options.seed ^ 0x5eed_0000_0000_0000);
    let drawn = Plan::from_seed(&mut rng);
    let plan = options.plan.clone().unwrap_or(drawn);
    let known = process::Known {
        config: plan.config.clone(),
        stop: None,
        stocked: false,
        granted: None,
        refused_for_good: false,
        left_out: false,
    };
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
        foreign_vms: Vec::new(),
        used_disks: std::collections::HashSet::new(),
        runners: Vec::new(),
        last_runner: 100,
        jobs: Vec::new(),
        waiting: VecDeque::new(),
        disk_full_until: 0,
        github_down_until: 0,
        rate_limited_until: 0,
        world_version: 0,
        former_prefixes: Vec::new(),
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
        while self.now < began + self.bound() {
            let until = self.now + 2 * MINUTE;
            while let Some(due) = self.next_before(until) {
                self.handle(due);
            }
            if self.violation.is_some() {
                return;
            }
            self.now = until;
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
        longest_job + self.plan.config.boot_timeout * 2 + 4 * HOUR
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
            Ev::Wake(..) | Ev::Publish(..) | Ev::Monitor(..) => self.process_event(ev),
            Ev::Op(op) => self.op_goes_on(op),
            Ev::Vm(incarnation, started, what) => self.vm_event(incarnation, started, what),
            Ev::Call(vm, call, forged) => {
                self.call(&vm, call, forged);
            }
            Ev::Hook(hook) => self.hook_arrives(*hook),
            Ev::Job => self.job_arrives(),
            Ev::Offline(runner) => self.runner_offline(runner),
            Ev::GiveUp(job) => self.give_up(job),
            Ev::Deregister(runner) => self.deregister(runner),
            Ev::Expire(runner) => self.expire(runner),
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
            Ev::MustHaveStopped(generation) => {
                if self.process.as_ref().is_some_and(|p| p.generation == generation) {
                    self.violate(4, "the pool was told to stop and does not end".into());
                }
            }
        }
        self.run_runnable();
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

    /// Why the pool is not whole, if it is not.
    fn not_whole(&self) -> Option<String> {
        let Some(process) = &self.process else { return Some("the pool does not run".into()) };
        if process.stop.is_some() {
            return Some("the pool is stopping".into());
        }
        let config = &process.config;
        let views: Vec<_> = process.book.views().collect();
        for view in &views {
            let vm = view.made.as_ref().and_then(|made| {
                let incarnation = world::number_of(&made.vm);
                self.vms.iter().find(|vm| vm.number == incarnation && vm.on)
            });
            let serves = matches!(view.phase, Phase::Ready | Phase::Running)
                && vm.is_some_and(|vm| vm.job.is_some() || vm.runner_online(&self.runners));
            let spare = view.number > config.warm && view.phase == Phase::Empty;
            if !serves && !spare && view.phase != Phase::Stopped {
                let made = view.made.as_ref().map(|made| &made.vm);
                return Some(format!("slot {} is {} ({made:?})", view.number, view.phase.name()));
            }
        }
        let made = |incarnation: &str| {
            views.iter().any(|v| v.made.as_ref().is_some_and(|m| m.vm.incarnation == incarnation))
        };
        if let Some(vm) = self.vms.iter().find(|vm| !made(&vm.id.incarnation)) {
            return Some(format!("{} is nobody's", vm.id));
        }
        if let Some(disk) = self.disks.iter().find(|disk| !made(&disk.incarnation)) {
            return Some(format!("disk {} is nobody's", disk.disk_file_name()));
        }
        // With a prefix that is shared, or that was changed, GitHub's own clean-up has to do it.
        let known = |runner: &SimRunner| {
            runner.learnt_by == process.generation
                || (!self.plan.shared_prefix
                    && !self.former_prefixes.iter().any(|p| runner.name.starts_with(p.as_str())))
        };
        let slots = |runner: &SimRunner| {
            views.iter().filter_map(|v| v.made.as_ref()).any(|made| match made.runner_id {
                Some(id) => id == runner.id,
                None => made.runner_name == runner.name,
            })
        };
        let lost = self.runners.iter().find(|r| !r.foreign && !slots(r) && known(r));
        if let Some(runner) = lost {
            return Some(format!("runner {} ({}) is nobody's", runner.id, runner.name));
        }
        // Without a warm slot, a job whose webhook is lost waits for ever.
        let lossy = [Fault::HookLost, Fault::HookHoursLate, Fault::KilledInEffect];
        let heard = self.plan.disturbed_every == 0 && lossy.iter().all(|&f| self.plan.rates[f as usize] == 0);
        let unserved = self.waiting.len();
        ((config.warm > 0 || heard) && unserved > 0).then(|| format!("{unserved} jobs wait"))
    }
}

/// Simulated time as days and time of day.
pub fn clock_time(at: Millis) -> String {
    let (s, ms) = (at / 1000, at % 1000);
    format!("{}d {:02}:{:02}:{:02}.{ms:03}", s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60)
}

//! The pool: its slots, and the way of every event to the slot that it is for.
//!
//! Each slot's state machine ([`slot`]) belongs to one thread ([`worker`]).
//! After every step the worker publishes a [`View`] here; whoever else wants
//! to know about a slot reads that. Messages to a slot go down its channel and
//! are never waited for, so that an HTTP handler costs microseconds whatever
//! the hypervisor is doing.
//!
//! There is one lock, held for no call that blocks, and nothing else is taken
//! while it is held. A slot's state is touched by its own thread alone. That
//! is why the order in which threads run cannot matter beyond the order in
//! which events reach a slot, and every such order is tried by driving
//! [`slot`] directly.

pub mod demand;
pub mod monitor;
pub mod reconcile;
pub mod slot;
pub mod worker;

use crate::github::GitHub;
use crate::hypervisor::Hypervisor;
use crate::secret::{Keys, Secret};
use crossbeam_channel::Sender;
use demand::Demand;
use log::{error, info};
use reconcile::Orphans;
use slot::{Assignment, Event, JobNotice, Millis, Phase, Rules, Slot, Stop, View};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the pool goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What every VM's name begins with.
    pub name_prefix: String,
    /// The number of slots.
    pub size: u32,
    /// How many of them always have a VM.
    pub warm: u32,
    /// The runners' labels.
    pub labels: Vec<String>,
    /// How long a guest may take to fetch its configuration, and a runner to come online after that.
    pub boot_timeout: Duration,
    /// How long a job may run.
    pub job_timeout: Duration,
    /// How often the monitor asks the hypervisor and GitHub.
    pub poll: Duration,
    /// Whether GitHub makes the registrations (JIT).
    pub jit: bool,
    /// The mark in the VMs' Notes by which the pool knows its own.
    pub identity: String,
}

/// The running pool.
pub struct Pool {
    shared: Arc<Shared>,
    monitor: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

/// What the pool's threads share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) github: Arc<dyn GitHub>,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) keys: Keys,
    epoch: Instant,
    stop: OnceLock<Stop>,
    inner: Mutex<Inner>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// Everything under the lock.
pub(crate) struct Inner {
    pub(crate) slots: Vec<Entry>,
    pub(crate) demand: Demand,
    pub(crate) orphans: Orphans,
    /// Why GitHub could not be listed the last time, if it could not.
    pub(crate) github_error: Option<String>,
    /// Why the hypervisor could not be listed the last time, if it could not.
    pub(crate) hypervisor_error: Option<String>,
}

/// A slot, as the rest of the pool sees it.
pub(crate) struct Entry {
    pub(crate) view: View,
    pub(crate) channel: Sender<Event>,
    credential: Option<Secret>,
    /// What the guest has told: each is passed on to the slot once.
    told: Told,
    /// The slot has been told to make a VM, and has not shown yet that it knows.
    filling: bool,
}

#[derive(Clone, Copy, Default)]
struct Told {
    fetched: bool,
    started: bool,
    completed: bool,
}

/// Why a guest's request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pool has no VM of that name.
    NotFound,
    /// The secret is missing, or not this VM's.
    Unauthorized,
    /// A job runs, or has run, on this VM: it gets no second configuration.
    JobRuns,
    /// The pool does not know its VMs yet. Worth a retry.
    NotReady,
}

/// What a guest needs to start its runner.
#[derive(Debug)]
pub struct RunnerConfig {
    /// The name under which the runner is, or is to be, registered.
    pub runner_name: String,
    /// The JIT configuration or registration token.
    pub credential: Secret,
}

/// The pool at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The slots in order, retired ones last.
    pub slots: Vec<View>,
    /// `POOL_SIZE`.
    pub size: u32,
    /// Queued jobs that this pool serves and no runner has.
    pub jobs_waiting: usize,
    /// Why GitHub could not be listed the last time, if it could not.
    pub github_error: Option<String>,
    /// Why the hypervisor could not be listed the last time, if it could not.
    pub hypervisor_error: Option<String>,
    /// The pool's clock at this moment, to which every `since` belongs.
    pub now: Millis,
}

impl Snapshot {
    /// How many slots are in this phase.
    pub fn count(&self, phase: Phase) -> usize {
        self.slots.iter().filter(|view| view.phase == phase).count()
    }

    /// How many slots have, are making, or are destroying a VM.
    pub fn vms(&self) -> usize {
        use Phase::{Booting, Creating, Destroying, Ready, Running};
        [Creating, Booting, Ready, Running, Destroying].iter().map(|&phase| self.count(phase)).sum()
    }

    /// Whether no slot serves jobs and one has been failing.
    pub fn is_degraded(&self) -> bool {
        self.count(Phase::Ready) + self.count(Phase::Running) == 0 && self.reason().is_some()
    }

    /// Why something fails, if something does: the worst slot's reason, or
    /// why GitHub or the hypervisor cannot be listed.
    pub fn reason(&self) -> Option<&str> {
        let slot = self.slots.iter().filter(|view| view.reason.is_some()).max_by_key(|view| view.failures);
        slot.and_then(|view| view.reason.as_deref())
            .or(self.github_error.as_deref())
            .or(self.hypervisor_error.as_deref())
    }
}

impl Pool {
    /// Starts the pool's threads. It first finds out what is there, and keeps
    /// trying until both the hypervisor and GitHub have told.
    pub fn start(
        settings: Settings,
        github: Arc<dyn GitHub>,
        hypervisor: Arc<dyn Hypervisor>,
        keys: Keys,
    ) -> std::io::Result<Pool> {
        let grace = settings.boot_timeout.as_millis() as Millis + 60_000;
        let inner = Inner {
            slots: Vec::new(),
            demand: Demand::new(&settings.labels, settings.size, settings.warm),
            orphans: Orphans::new(&settings.name_prefix, grace),
            github_error: None,
            hypervisor_error: None,
        };
        let shared = Arc::new(Shared {
            settings,
            github,
            hypervisor,
            keys,
            epoch: Instant::now(),
            stop: OnceLock::new(),
            inner: Mutex::new(inner),
            workers: Mutex::new(Vec::new()),
        });
        let pool = Pool { shared, monitor: Mutex::new(None) };
        for number in 1..=pool.shared.settings.size {
            let name = format!("{}{number}", pool.shared.settings.name_prefix);
            let slot = Slot::new(number, name, pool.shared.rules(), random_seed());
            pool.shared.start_slot(slot)?;
        }
        *lock(&pool.monitor) = Some(monitor::start(Arc::clone(&pool.shared))?);
        Ok(pool)
    }

    /// Tells every slot to stop. Returns at once; [`Pool::join`] waits.
    pub fn stop(&self, stop: Stop) {
        if self.shared.stop.set(stop).is_err() {
            return;
        }
        for entry in &self.shared.lock().slots {
            // A slot whose thread has ended has stopped already.
            let _ = entry.channel.send(Event::Stop(stop));
        }
    }

    /// Waits until every thread of the pool has ended, after [`Pool::stop`].
    pub fn join(&self) {
        if let Some((quit, thread)) = lock(&self.monitor).take() {
            drop(quit);
            report_panic(thread.join());
        }
        let workers = std::mem::take(&mut *lock(&self.shared.workers));
        workers.into_iter().for_each(|worker| report_panic(worker.join()));
    }

    /// The pool as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.shared.lock();
        Snapshot {
            slots: inner.slots.iter().map(|entry| entry.view.clone()).collect(),
            size: self.shared.settings.size,
            jobs_waiting: inner.demand.waiting(),
            github_error: inner.github_error.clone(),
            hypervisor_error: inner.hypervisor_error.clone(),
            now: self.shared.now(),
        }
    }

    /// A guest asks for its configuration.
    pub fn runner_config(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<RunnerConfig, Refusal> {
        let mut inner = self.shared.lock();
        let entry = self.authenticate(&mut inner, vm_name, secret)?;
        let may_start = matches!(entry.view.phase, Phase::Creating | Phase::Booting | Phase::Ready)
            && !entry.told.started;
        let (Some(made), Some(credential), true) = (&entry.view.made, &entry.credential, may_start) else {
            return Err(Refusal::JobRuns);
        };
        let config = RunnerConfig { runner_name: made.runner_name.clone(), credential: credential.clone() };
        let incarnation = made.vm.incarnation.clone();
        if !std::mem::replace(&mut entry.told.fetched, true) {
            entry.send(Event::ConfigFetched { incarnation });
        }
        Ok(config)
    }

    /// A guest says that its runner starts a job.
    pub fn runner_started(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<(), Refusal> {
        let mut inner = self.shared.lock();
        let entry = self.authenticate(&mut inner, vm_name, secret)?;
        if !std::mem::replace(&mut entry.told.started, true)
            && let Some(incarnation) = entry.incarnation()
        {
            entry.send(Event::JobStarted { incarnation });
        }
        Ok(())
    }

    /// A guest says that its runner has ended.
    pub fn runner_complete(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<(), Refusal> {
        let mut inner = self.shared.lock();
        let entry = self.authenticate(&mut inner, vm_name, secret)?;
        if !std::mem::replace(&mut entry.told.completed, true)
            && let Some(incarnation) = entry.incarnation()
        {
            entry.send(Event::Completed { incarnation });
        }
        Ok(())
    }

    /// A job waits for a runner with these labels. Returns whether this pool serves it.
    pub fn job_queued(&self, job_id: u64, labels: &[String]) -> bool {
        let mut inner = self.shared.lock();
        if !inner.demand.serves(labels) {
            return false;
        }
        inner.demand.queued(job_id, self.shared.now());
        inner.fill(&self.shared);
        true
    }

    /// A runner, of this pool or another, has got a job.
    pub fn job_in_progress(&self, notice: JobNotice) {
        let mut inner = self.shared.lock();
        inner.demand.taken(notice.job_id);
        if let Some(entry) = inner.entry_of(&notice) {
            entry.send(Event::JobInProgress(notice));
        }
    }

    /// A job has ended, wherever it ran.
    pub fn job_completed(&self, notice: JobNotice) {
        let mut inner = self.shared.lock();
        inner.demand.taken(notice.job_id);
        if let Some(entry) = inner.entry_of(&notice) {
            entry.send(Event::JobCompleted(notice));
        }
    }

    /// The slot whose VM bears this name and has this secret.
    fn authenticate<'a>(
        &self,
        inner: &'a mut Inner,
        vm_name: &str,
        secret: Option<&[u8]>,
    ) -> Result<&'a mut Entry, Refusal> {
        let named = |entry: &Entry| entry.view.made.as_ref().is_some_and(|made| made.vm.name == vm_name);
        if !inner.slots.iter().any(named) {
            let reconciling = inner.slots.iter().any(|entry| entry.view.phase == Phase::Unreconciled);
            return Err(if reconciling { Refusal::NotReady } else { Refusal::NotFound });
        }
        let secret = secret.ok_or(Refusal::Unauthorized)?;
        let keys = &self.shared.keys;
        // Two VMs can bear one name for a while: one adopted, one new. The secret tells them apart.
        inner
            .slots
            .iter_mut()
            .find(|entry| {
                entry.view.made.as_ref().is_some_and(|made| {
                    made.vm.name == vm_name && keys.vm_secret_is_valid(vm_name, &made.vm.incarnation, secret)
                })
            })
            .ok_or(Refusal::Unauthorized)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Entry {
    fn send(&self, event: Event) {
        // A slot whose thread has ended has nothing to do with it any more.
        let _ = self.channel.send(event);
    }

    fn incarnation(&self) -> Option<String> {
        Some(self.view.made.as_ref()?.vm.incarnation.clone())
    }
}

impl Inner {
    /// The slot that a webhook is about, by its runner's id; by name only
    /// while the id is unknown; or by the job, once the slot knows it.
    fn entry_of(&self, notice: &JobNotice) -> Option<&Entry> {
        self.slots.iter().find(|entry| {
            let Some(made) = &entry.view.made else { return false };
            match made.runner_id {
                Some(id) => notice.runner_id == Some(id) || entry.view.job_id == Some(notice.job_id),
                None => {
                    notice.runner_name.as_ref() == Some(&made.runner_name)
                        || entry.view.job_id == Some(notice.job_id)
                }
            }
        })
    }

    pub(crate) fn views(&self) -> Vec<&View> {
        self.slots.iter().map(|entry| &entry.view).collect()
    }

    /// Tells the slots that are to have a VM. (Their views say so at once, so
    /// that the next decision does not count them twice.)
    fn fill(&mut self, shared: &Shared) {
        if shared.stop.get().is_some() {
            return;
        }
        let views: Vec<&View> = self.slots.iter().map(|entry| &entry.view).collect();
        for slot in self.demand.fills(&views, shared.now()) {
            self.slots[slot].filling = true;
            self.slots[slot].view.wanted = true;
            self.slots[slot].send(Event::Fill);
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(crate) fn now(&self) -> Millis {
        self.epoch.elapsed().as_millis() as Millis
    }

    pub(crate) fn stopping(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    fn rules(&self) -> Rules {
        Rules {
            boot_timeout: self.settings.boot_timeout.as_millis() as Millis,
            job_timeout: self.settings.job_timeout.as_millis() as Millis,
            jit: self.settings.jit,
        }
    }

    fn start_slot(self: &Arc<Shared>, slot: Slot) -> std::io::Result<()> {
        let (channel, events) = crossbeam_channel::unbounded();
        let view = slot.view();
        let mut inner = self.lock();
        let index = inner.slots.len();
        inner.slots.push(Entry { view, channel, credential: None, told: Told::default(), filling: false });
        drop(inner);
        let shared = Arc::clone(self);
        let worker = std::thread::Builder::new()
            .name(format!("slot-{}", index + 1))
            .stack_size(512 * 1024)
            .spawn(move || worker::run(slot, index, &events, &shared))?;
        lock(&self.workers).push(worker);
        Ok(())
    }

    /// Gives every slot what it begins with, and starts a retired slot for each assignment past the pool's size.
    pub(crate) fn reconciled(self: &Arc<Shared>, mut assignments: Vec<Assignment>) {
        let size = self.settings.size as usize;
        let retired = assignments.split_off(size.min(assignments.len()));
        for (i, assignment) in retired.into_iter().enumerate() {
            let number = self.settings.size + 1 + i as u32;
            let slot = Slot::retired(number, self.rules(), random_seed());
            match self.start_slot(slot) {
                Ok(()) => self.tell(size + i, Event::Reconciled(assignment)),
                Err(err) => error!("cannot start a thread to watch over a VM of an earlier start: {err}"),
            }
        }
        for (slot, assignment) in assignments.into_iter().enumerate() {
            self.tell(slot, Event::Reconciled(assignment));
        }
    }

    pub(crate) fn tell(&self, slot: usize, event: Event) {
        if let Some(entry) = self.lock().slots.get(slot) {
            entry.send(event);
        }
    }

    /// A worker shows what has become of its slot, before it acts on it.
    pub(crate) fn publish(&self, index: usize, view: View, credential: Option<&Secret>) {
        let mut inner = self.lock();
        let entry = &mut inner.slots[index];
        let new_vm = entry.incarnation() != view.made.as_ref().map(|made| made.vm.incarnation.clone());
        if new_vm {
            entry.told = Told::default();
        }
        let (before, name) = (entry.view.phase, view_name(&self.settings.name_prefix, &view));
        if before != view.phase {
            match &view.reason {
                Some(why) if view.failures > 0 => {
                    info!("{name}: {} -> {} ({why})", before.name(), view.phase.name())
                }
                _ => info!("{name}: {} -> {}", before.name(), view.phase.name()),
            }
        }
        let runner_id = view.made.as_ref().and_then(|made| made.runner_id);
        entry.view = view;
        if entry.view.phase != Phase::Empty || entry.view.wanted {
            entry.filling = false;
        }
        entry.view.wanted |= entry.filling;
        entry.credential = credential.cloned();
        if let Some(id) = runner_id {
            inner.orphans.made(id);
        }
        inner.fill(self);
    }
}

/// How a slot is called in the log: by its VM's name.
pub(crate) fn view_name(prefix: &str, view: &View) -> String {
    match &view.made {
        Some(made) => made.vm.name.clone(),
        None => format!("{prefix}{}", view.number),
    }
}

/// Locks a mutex. A thread that panicked while it held the lock leaves plain
/// values behind that are still whole, so its panic is not spread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report_panic(result: std::thread::Result<()>) {
    if result.is_err() {
        error!("a thread of the pool has panicked");
    }
}

/// 64 bits that no other slot has had, from the operating system's randomness
/// (with which the standard library seeds its hash maps).
fn random_seed() -> u64 {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    RandomState::new().hash_one(nanos)
}

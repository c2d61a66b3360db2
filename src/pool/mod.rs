//! The pool: its slots, and the way of every event to the slot that it is for.
//!
//! Each slot's state machine ([`slot`]) belongs to one thread ([`worker`]).
//! After every step the worker publishes a [`View`] here; whoever else wants
//! to know about a slot reads that. Messages to a slot go down its channel and
//! are never waited for, so that an HTTP handler costs microseconds whatever
//! the hypervisor is doing.
//!
//! # Why no schedule of the threads has to be tried
//!
//! What the threads share is small enough to be gone through:
//!
//! - A slot's state machine is its worker's own. Others know only the [`View`]
//!   that the worker published, before it began what follows from it; it can be
//!   out of date, so every message names the incarnation, runner or job that it
//!   is about, and the slot ignores one that is about another. What a message
//!   does thus depends on the order in which messages are received, and on
//!   nothing else; any order is right, and they are tried by driving [`slot`]
//!   and [`book`] directly, from seeds.
//! - `Inner` is under one lock. No other lock of the pool is taken, nothing
//!   blocks, and nobody else's code runs while it is held (a channel without a
//!   bound takes a message at once). So there is no deadlock, and each use of
//!   it is one step. Where a decision and the messages that follow from it must
//!   be one step, as in filling slots, both are under it.
//! - `stop` is set before [`Pool::stop`] takes the lock to tell the slots, and a
//!   slot that begins looks at it under the same lock: it is told either way, or
//!   twice. A worker looks at it again after every call that may have taken
//!   long, since its channel is not read in between.
//! - The HTTP server's deliveries and its note of refusals, and the simulated
//!   GitHub's and hypervisor's locks, are taken with no other lock held, and
//!   none is taken under them.
//!
//! A model checker of schedules (loom, shuttle) would try the orders of lock
//! and channel, and of those the above leaves only orders of messages. Orders of
//! effects in the world outside, such as a callback that comes while its VM is
//! being made, are the simulator's to try. The gate's connections do not fit
//! this: their state is one atomic word, changed by compare-and-swap alone, see
//! [`gate`](crate::http::gate).

pub mod book;
pub mod demand;
pub mod freshness;
pub mod monitor;
pub mod reconcile;
pub mod slot;
pub mod worker;

use crate::date;
use crate::github::GitHub;
use crate::hypervisor::Hypervisor;
use crate::secret::{Keys, Secret};
use book::{Book, Call, Mail};
use crossbeam_channel::Sender;
use log::{error, info};
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
    monitor: Mutex<Option<monitor::Monitor>>,
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
    pub(crate) book: Book,
    /// By slot, as in the book.
    channels: Vec<Sender<Event>>,
    /// What each slot's guest gets as its credential. An adopted VM's is not known, nor needed.
    credentials: Vec<Option<Secret>>,
    /// Why GitHub could not be listed the last time, if it could not.
    pub(crate) github_error: Option<String>,
    /// Why the hypervisor could not be listed the last time, if it could not.
    pub(crate) hypervisor_error: Option<String>,
    image: freshness::Image,
    newest_runner: Option<NewestRunner>,
}

/// The newest version of the runner, and the earliest day on which it can have come out.
struct NewestRunner {
    version: String,
    since: Option<i64>,
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
        let boot_timeout = settings.boot_timeout.as_millis() as Millis;
        let inner = Inner {
            book: Book::new(
                &settings.name_prefix,
                &settings.labels,
                settings.size,
                settings.warm,
                boot_timeout,
            ),
            channels: Vec::new(),
            credentials: Vec::new(),
            github_error: None,
            hypervisor_error: None,
            image: freshness::Image::default(),
            newest_runner: None,
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
        let inner = self.shared.lock();
        inner.send((0..inner.channels.len()).map(|slot| (slot, Event::Stop(stop))).collect());
    }

    /// Waits until every slot has stopped, after [`Pool::stop`].
    pub fn join(&self) {
        if let Some(monitor) = lock(&self.monitor).take() {
            monitor.quit();
        }
        let workers = std::mem::take(&mut *lock(&self.shared.workers));
        workers.into_iter().for_each(|worker| report_panic(worker.join()));
    }

    /// The pool as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.shared.lock();
        Snapshot {
            slots: inner.book.views().cloned().collect(),
            size: self.shared.settings.size,
            jobs_waiting: inner.book.jobs_waiting(),
            github_error: inner.github_error.clone(),
            hypervisor_error: inner.hypervisor_error.clone(),
            now: self.shared.now(),
        }
    }

    /// A guest asks for its configuration.
    pub fn runner_config(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<RunnerConfig, Refusal> {
        let mut inner = self.shared.lock();
        let slot = self.authenticate(&inner, vm_name, secret)?;
        let made = inner.book.views().nth(slot).and_then(|view| view.made.as_ref());
        let (Some(made), Some(credential)) = (made, &inner.credentials[slot]) else {
            return Err(Refusal::JobRuns);
        };
        let config = RunnerConfig { runner_name: made.runner_name.clone(), credential: credential.clone() };
        let mail = inner.book.guest_calls(slot, Call::Config).ok_or(Refusal::JobRuns)?;
        inner.send(mail);
        Ok(config)
    }

    /// A guest says that its runner starts a job.
    pub fn runner_started(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<(), Refusal> {
        self.guest_tells(vm_name, secret, Call::Started)
    }

    /// A guest says that its runner has ended.
    pub fn runner_complete(&self, vm_name: &str, secret: Option<&[u8]>) -> Result<(), Refusal> {
        self.guest_tells(vm_name, secret, Call::Completed)
    }

    fn guest_tells(&self, vm_name: &str, secret: Option<&[u8]>, call: Call) -> Result<(), Refusal> {
        let mut inner = self.shared.lock();
        let slot = self.authenticate(&inner, vm_name, secret)?;
        let mail = inner.book.guest_calls(slot, call).unwrap_or_default();
        inner.send(mail);
        Ok(())
    }

    /// A job waits for a runner with these labels. Answers whether this pool serves it and had not heard of it before.
    pub fn job_queued(&self, job_id: u64, labels: &[String]) -> bool {
        let mut inner = self.shared.lock();
        let news = inner.book.job_queued(job_id, labels, self.shared.now());
        if news {
            inner.fill(&self.shared);
        }
        news
    }

    /// A runner, of this pool or another, has got a job.
    pub fn job_in_progress(&self, notice: JobNotice) {
        let mut inner = self.shared.lock();
        let mail = inner.book.job_in_progress(notice);
        inner.send(mail);
    }

    /// A job has ended, wherever it ran.
    pub fn job_completed(&self, notice: JobNotice) {
        let mut inner = self.shared.lock();
        let mail = inner.book.job_completed(notice);
        inner.send(mail);
    }

    /// A guest has said in its User-Agent what its image is made of.
    pub fn image_seen(&self, user_agent: &str) {
        if let Some(image) = freshness::Image::from_user_agent(user_agent) {
            self.shared.lock().image = image;
        }
    }

    /// How fresh the image is.
    pub fn image_report(&self) -> freshness::Report {
        self.shared.lock().image_report()
    }

    /// The slot whose VM bears this name and has this secret.
    fn authenticate(&self, inner: &Inner, vm_name: &str, secret: Option<&[u8]>) -> Result<usize, Refusal> {
        let named = |view: &View| view.made.as_ref().is_some_and(|made| made.vm.name == vm_name);
        if !inner.book.views().any(named) {
            let reconciling = inner.book.views().any(|view| view.phase == Phase::Unreconciled);
            return Err(if reconciling { Refusal::NotReady } else { Refusal::NotFound });
        }
        let secret = secret.ok_or(Refusal::Unauthorized)?;
        let keys = &self.shared.keys;
        // Two VMs can bear one name for a while: one adopted, one new. The secret tells them apart.
        let its_secret = |view: &View| {
            view.made.as_ref().is_some_and(|made| {
                made.vm.name == vm_name && keys.vm_secret_is_valid(vm_name, &made.vm.incarnation, secret)
            })
        };
        inner.book.views().position(its_secret).ok_or(Refusal::Unauthorized)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn send(&self, mail: Mail) {
        for (slot, event) in mail {
            if let Some(channel) = self.channels.get(slot) {
                // A slot whose thread has ended has nothing to do with it any more.
                let _ = channel.send(event);
            }
        }
    }

    /// GitHub has named the newest version of the runner.
    pub(crate) fn newest_runner_is(&mut self, version: String) {
        let today = date::today();
        let since = match &self.newest_runner {
            Some(known) if known.version == version => return,
            Some(_) => Some(today),
            // It may have come out at any time before this start, but the image was built with what was newest then.
            None => None,
        };
        self.newest_runner = Some(NewestRunner { version, since });
    }

    pub(crate) fn image_report(&self) -> freshness::Report {
        let newest = self.newest_runner.as_ref();
        let built = self.image.built.as_deref().and_then(date::parse_day);
        let since = newest.and_then(|newest| newest.since.or(built));
        let version = newest.map(|newest| newest.version.clone());
        freshness::Report {
            image: self.image.clone(),
            warnings: self.image.warnings(version.as_deref(), since, date::today()),
            newest_runner_version: version,
        }
    }

    /// Tells the slots that are to have a VM.
    fn fill(&mut self, shared: &Shared) {
        if shared.stopping().is_none() {
            let mail = self.book.fill(shared.now());
            self.send(mail);
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
        let mut inner = self.lock();
        let index = inner.book.add(slot.view());
        inner.channels.push(channel);
        inner.credentials.push(None);
        // `Pool::stop` tells those that are there. This one may have come too late for it.
        if let Some(stop) = self.stopping() {
            inner.send(vec![(index, Event::Stop(stop))]);
        }
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
        self.lock().send(vec![(slot, event)]);
    }

    /// A worker shows what has become of its slot, before it acts on it.
    pub(crate) fn publish(&self, slot: usize, view: View, credential: Option<&Secret>) {
        let name = view_name(&self.settings.name_prefix, &view);
        let (phase, why) = (view.phase, view.reason.clone());
        let mut inner = self.lock();
        let before = inner.book.publish(slot, view);
        inner.credentials[slot] = credential.cloned();
        inner.fill(self);
        drop(inner);
        if before != phase {
            // A failure is told when it happens, and not again at every step of what makes up for it.
            let because =
                why.filter(|_| phase == Phase::Empty).map(|why| format!(" ({why})")).unwrap_or_default();
            info!("{name}: {} -> {}{because}", before.name(), phase.name());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{Error, Inventory, Notes, Power, Vm, VmId, VmSpec};
    use crate::sim::github::MockGitHub;
    use crossbeam_channel::{Receiver, bounded};

    /// A host that takes its time to say what is there: two VMs, of which one is past the pool's size.
    struct Slow {
        asked: Sender<()>,
        answer: Receiver<()>,
    }

    impl Hypervisor for Slow {
        fn create(&self, _: &VmSpec) -> Result<(), Error> {
            Ok(())
        }

        fn destroy(&self, _: &VmId) -> Result<(), Error> {
            Ok(())
        }

        fn list(&self) -> Result<Inventory, Error> {
            self.asked.send(()).unwrap();
            self.answer.recv().unwrap();
            let vm = |slot: u32| {
                let id =
                    VmId { name: format!("runner-{slot}"), incarnation: format!("00ff00ff00ff00f{slot}") };
                let notes = Notes {
                    pool: "test".into(),
                    slot,
                    incarnation: id.incarnation.clone(),
                    runner_name: id.name.clone(),
                    runner_id: Some(1_000_000 + u64::from(slot)),
                    created: 0,
                };
                Vm { id, power: Power::On, uptime: Duration::from_secs(60), notes: Some(notes) }
            };
            let vms = vec![vm(1), vm(2)];
            Ok(Inventory { disks: vms.iter().map(|vm| vm.id.clone()).collect(), vms })
        }
    }

    #[test]
    fn a_stop_while_the_first_stock_is_taken_also_stops_the_slots_that_come_of_it() {
        let (asked, was_asked) = bounded(1);
        let (answer, answers) = bounded(1);
        let keys = Keys::new(&Secret::new("s"));
        let github = Arc::new(MockGitHub::new(&[], String::new(), keys.clone()));
        // Both runners have a job, so that their VMs are adopted and left alone.
        for (job, name) in [(1, "runner-1"), (2, "runner-2")] {
            let runner = github.register(name).unwrap();
            let id = github.connect(runner.credential.expose()).unwrap();
            github.offer(job, Vec::new());
            assert_eq!(github.take_job(id, Duration::ZERO), Some(job));
        }
        let settings = Settings {
            name_prefix: "runner-".into(),
            size: 1,
            warm: 1,
            labels: Vec::new(),
            boot_timeout: Duration::from_secs(600),
            job_timeout: Duration::from_secs(600),
            poll: Duration::from_secs(600),
            jit: true,
            identity: "test".into(),
        };
        let pool =
            Arc::new(Pool::start(settings, github, Arc::new(Slow { asked, answer: answers }), keys).unwrap());
        was_asked.recv().unwrap();
        pool.stop(Stop::Drain);
        answer.send(()).unwrap();
        let (done, joined) = bounded(1);
        let joining = Arc::clone(&pool);
        std::thread::spawn(move || {
            joining.join();
            done.send(()).unwrap();
        });
        joined.recv_timeout(Duration::from_secs(10)).expect("the pool stops");
    }
}

//! The threads around what decides.
//!
//! [`Pool`] is the handle that routes and `main` hold. One worker per slot
//! performs that slot's actions, one call at a time; the monitor asks what the
//! pure monitor wants to know. Whatever any thread learns takes effect on the
//! [`PoolState`] at once, under one lock. The actions that follow are handed to
//! the slots' workers under the same lock: a slot never has a second one before
//! it was told what came of the first.
//!
//! Nothing blocks while the lock is held: the state has no I/O, and the one
//! lock taken under it, that of the failures told, is never held by who waits for
//! it. So there is no deadlock, and each use of the state is one step. What is
//! left to chance is the order of these steps, which the simulator tries.

pub mod failed_vms;
mod monitor;
mod queue;
mod slot;
mod story;

use crate::config::{GitHubConfig, PoolConfig};
use crate::date;
use crate::github::GitHub;
use crate::github::queue::JobQueue;
use crate::github::traffic::Traffic;
use crate::hypervisor::{Hypervisor, VmId};
use crate::pool::history::{EndedJob, Failure};
use crate::pool::operator::{NotRecycled, Recycled};
use crate::pool::slot::types::{Action, Event, Job, JobEvent, News, Phase, Stop};
use crate::pool::state::{Outcome, PoolState};
use crate::pool::{Millis, Refusal, Rules, RunnerConfig, Snapshot, image_age};
use crate::repeats::Repeats;
use crate::secret::{Keys, Proof};
use crate::sync::unpoisoned;
use crossbeam_channel::{Receiver, Sender};
use failed_vms::FailedVms;
use log::warn;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an orderly stop may last. What is not done by then is left to the next start.
pub const STOP_LIMIT: Duration = Duration::from_secs(180);

/// How long the pool may take when the host shuts down.
pub const HOST_SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// The running pool.
pub struct Pool {
    shared: Arc<Shared>,
    /// Ends when the queue is closed, once the pool stops.
    closing: Mutex<Option<Receiver<()>>>,
}

/// What the pool's threads share.
struct Shared {
    github: Arc<dyn GitHub>,
    /// A scale set's, if that is how the pool learns of jobs.
    queue: Option<Arc<dyn JobQueue>>,
    hypervisor: Arc<dyn Hypervisor>,
    failed_vms: FailedVms,
    keys: Keys,
    /// The mark in the Notes of this pool's VMs.
    identity: String,
    /// What a runner is registered with besides its scope: group and labels.
    registered_with: String,
    epoch: Instant,
    inner: Mutex<Inner>,
    /// Told when every slot has stopped.
    stopped: Condvar,
    /// Told when the monitor is to look now.
    look: Condvar,
    /// The failures that the log has told.
    told_failures: Mutex<Repeats>,
}

/// Everything under the lock.
struct Inner {
    state: PoolState,
    workers: Vec<Worker>,
    look_now: bool,
}

/// The thread of a slot, as others see it.
struct Worker {
    /// What it is to do next; `None` to look at its slot again.
    work: Sender<Option<Action>>,
    /// The deadline that it waits for, as far as it knows.
    waits_for: Option<Millis>,
}

impl Pool {
    /// Starts the pool's threads. It first finds out what is there, and keeps
    /// trying until the hypervisor has told. `tag` is how incarnations begin,
    /// `identity` the mark in the Notes of the pool's VMs. What is known of failed
    /// VMs is kept in `log_dir`, if there is one.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        pool: &PoolConfig,
        github_config: &GitHubConfig,
        (tag, identity): (String, String),
        (github, queue): (Arc<dyn GitHub>, Option<Arc<dyn JobQueue>>),
        hypervisor: Arc<dyn Hypervisor>,
        keys: Keys,
        log_dir: Option<&Path>,
    ) -> std::io::Result<Pool> {
        let rules = Rules::new(pool, github_config, tag);
        let failed_vms = FailedVms::new(log_dir);
        let mut state = PoolState::new(rules, random_seed(), 0);
        state.history.remember(failed_vms.load());
        let shared = Arc::new(Shared {
            github,
            queue,
            hypervisor,
            failed_vms,
            keys,
            identity,
            registered_with: format!("{}/{}", github_config.runner_group, github_config.labels.join(",")),
            epoch: Instant::now(),
            inner: Mutex::new(Inner { state, workers: Vec::new(), look_now: false }),
            stopped: Condvar::new(),
            look: Condvar::new(),
            told_failures: Mutex::default(),
        });
        let mut inner = shared.lock();
        for slot in 0..inner.state.slots().count() {
            inner.start_worker(&shared, slot)?;
        }
        drop(inner);
        monitor::start(Arc::clone(&shared))?;
        queue::start(&shared)?;
        Ok(Pool { shared, closing: Mutex::default() })
    }

    /// Tells every slot to stop. Returns at once; [`Pool::join`] waits.
    pub fn stop(&self, stop: Stop) {
        self.shared.apply(|state| state.stop(stop));
        self.shared.hypervisor.stop_creating();
        *unpoisoned(&self.closing) = queue::close(&self.shared);
    }

    /// Takes no more jobs until [`Pool::resume`]. Returns at once.
    pub fn drain(&self) {
        self.shared.apply(PoolState::drain);
        // At once, and not when the next message comes: jobs that GitHub gives the pool meanwhile would wait in vain.
        let _ = queue::close(&self.shared);
    }

    /// Ends a drain.
    pub fn resume(&self) {
        self.shared.apply(PoolState::resume);
    }

    /// Replaces this VM, or every idle one after the other, and has slots that
    /// failed try again now.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn recycle(&self, vm: Option<&str>) -> Result<Recycled, NotRecycled> {
        self.shared.apply(|state| state.recycle(vm))
    }

    /// Waits until every slot has stopped, or `limit` is over. Answers whether all have.
    pub fn join(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        if let Some(closing) = unpoisoned(&self.closing).take() {
            // It may have to sign in first, with every try as long as a request may take.
            let _ = closing.recv_deadline(until);
        }
        let left = until.saturating_duration_since(Instant::now());
        let (inner, _) = self
            .shared
            .stopped
            .wait_timeout_while(self.shared.lock(), left, |inner| !inner.state.has_stopped())
            .unwrap_or_else(PoisonError::into_inner);
        let left = inner.state.slots().filter(|slot| slot.phase() != Phase::Stopped).count();
        drop(inner);
        if left > 0 {
            warn!(
                "{left} slots have not stopped within {} s: the next start clears what they leave",
                limit.as_secs()
            );
        }
        left == 0
    }

    /// The pool as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut inner = self.shared.lock();
        inner.state.snapshot(self.shared.now())
    }

    /// When the token expires, if GitHub has told.
    pub fn token_expires(&self) -> Option<std::time::SystemTime> {
        self.shared.github.token_expires()
    }

    /// The requests to GitHub since the start.
    pub fn github_traffic(&self) -> Traffic {
        self.shared.github.traffic()
    }

    /// The jobs and the failures that came last, the newest first.
    pub fn history(&self) -> (Vec<EndedJob>, Vec<Failure>) {
        let history = &self.shared.lock().state.history;
        (history.jobs().cloned().collect(), history.failures().cloned().collect())
    }

    /// The screen of a VM that did not boot, as a PNG, if it is among the last failures.
    pub fn picture(&self, incarnation: &str) -> Option<Vec<u8>> {
        let is_known = self.shared.lock().state.history.failures().any(|failure| {
            failure.incarnation.as_deref() == Some(incarnation) && failure.findings.picture.is_some()
        });
        is_known.then(|| self.shared.failed_vms.picture(incarnation)).flatten()
    }

    /// How old the image is.
    pub fn image_report(&self) -> image_age::Report {
        self.shared.lock().state.image.report(date::today())
    }

    /// A guest asks for its configuration, with its proof and what it says of its image.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn runner_config(
        &self,
        vm_name: &str,
        proof: Option<Proof>,
        user_agent: &str,
    ) -> Result<RunnerConfig, Refusal> {
        self.shared.apply(|state| {
            let config = state.runner_config(vm_name, |vm| self.is_proven(vm, proof))?;
            state.image.seen(user_agent);
            Ok(config)
        })
    }

    /// A guest says that its runner starts a job.
    ///
    /// # Errors
    /// When it is not a VM of the pool.
    pub fn job_started(&self, vm_name: &str, proof: Option<Proof>, job: Job) -> Result<(), Refusal> {
        self.shared
            .apply(|state| state.guest_tells(vm_name, |vm| self.is_proven(vm, proof), Event::JobStarted(job)))
    }

    /// A guest says that its runner has ended, with which exit code if it knows it.
    ///
    /// # Errors
    /// When it is not a VM of the pool.
    pub fn runner_ended(
        &self,
        vm_name: &str,
        proof: Option<Proof>,
        exit_code: Option<i64>,
    ) -> Result<(), Refusal> {
        self.shared.apply(|state| {
            state.guest_tells(vm_name, |vm| self.is_proven(vm, proof), Event::RunnerEnded { exit_code })
        })
    }

    /// A job waits for a runner with these labels. Answers whether this pool
    /// serves it and had not heard of it before.
    pub fn job_queued(&self, job_id: u64, labels: &[String]) -> bool {
        self.shared.apply(|state| state.job_queued(job_id, labels))
    }

    /// A runner, of this pool or another, has got a job.
    pub fn job_in_progress(&self, event: JobEvent) {
        self.shared.apply(|state| state.job_in_progress(event));
    }

    /// A job has ended, wherever it ran.
    pub fn job_completed(&self, event: JobEvent) {
        self.shared.apply(|state| state.job_completed(event));
    }

    fn is_proven(&self, vm: &VmId, proof: Option<Proof>) -> bool {
        proof.is_some_and(|proof| self.shared.keys.vm_is_proven(&vm.name, &vm.incarnation, &proof))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("identity", &self.shared.identity).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        unpoisoned(&self.inner)
    }

    /// What a VM made now would be made of, and registered with.
    fn fingerprint(&self) -> Option<String> {
        // No job reaches the runners of a scale set that was removed, though it be made again.
        let scale_set = match &self.queue {
            Some(queue) => format!("/{}", queue.scale_set()?),
            None => String::new(),
        };
        Some(format!("{}/{}{scale_set}", self.hypervisor.fingerprint()?, self.registered_with))
    }

    fn now(&self) -> Millis {
        self.epoch.elapsed().as_millis() as Millis
    }

    /// Lets a fact take effect: hands the actions that follow to the workers,
    /// and tells what happened in the log.
    fn apply<T>(self: &Arc<Shared>, fact: impl FnOnce(&mut PoolState) -> T) -> T {
        let mut inner = self.lock();
        let now = self.now();
        let (answer, out) = inner.state.apply(now, fact);
        self.follow(inner, now, out);
        answer
    }

    /// What is the same whatever the fact was, so that there is one of it in the program.
    fn follow(self: &Arc<Shared>, mut inner: MutexGuard<'_, Inner>, now: Millis, mut out: Outcome) {
        for slot in inner.workers.len()..inner.state.slots().count() {
            if let Err(err) = inner.start_worker(self, slot) {
                let what = format!("no thread for slot {}: {err}", slot + 1);
                out.news.push((None, News::Broken(what)));
                break;
            }
        }
        for (slot, action) in out.actions {
            if let Some(worker) = inner.workers.get(slot) {
                // It ends only with its slot, which then has nothing to do.
                let _ = worker.work.send(Some(action));
            }
        }
        inner.wake_workers(now);
        if inner.state.has_stopped() {
            self.stopped.notify_all();
        }
        if out.look_now {
            inner.look_now = true;
            self.look.notify_all();
        }
        // Taken before the state is let go, so that the log tells things in their order.
        let mut told_failures = unpoisoned(&self.told_failures);
        drop(inner);
        story::tell(&mut told_failures, out.news, now);
    }
}

impl Inner {
    fn start_worker(&mut self, shared: &Arc<Shared>, slot: usize) -> std::io::Result<()> {
        let (work, to_do) = crossbeam_channel::unbounded();
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(format!("slot-{}", slot + 1)).stack_size(512 * 1024);
        thread.spawn(move || slot::run(slot, &to_do, &shared))?;
        self.workers.push(Worker { work, waits_for: None });
        Ok(())
    }

    /// Wakes the workers whose deadline has become another, or that are to end.
    fn wake_workers(&mut self, now: Millis) {
        for slot in 0..self.workers.len() {
            let deadline = self.state.deadline(slot, now);
            let stopped = self.state.slot(slot).phase() == Phase::Stopped;
            let worker = &mut self.workers[slot];
            if stopped || (deadline.is_some() && deadline != worker.waits_for) {
                worker.waits_for = deadline;
                let _ = worker.work.send(None);
            }
        }
    }
}

/// 64 bits that no other start has had, from the operating system's randomness
/// (with which the standard library seeds its hash maps).
fn random_seed() -> u64 {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    RandomState::new().hash_one(nanos)
}

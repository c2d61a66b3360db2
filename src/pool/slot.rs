//! One slot of the pool, as a pure state machine.
//!
//! [`Slot::step`] takes an event and the time, changes the state, and answers
//! with at most one [`Effect`]: a single blocking call to GitHub or to the
//! hypervisor. Whoever drives the slot performs it and steps again with what
//! came of it. There is no I/O, no clock and no thread here, so that a
//! six-hour limit is tested in microseconds and every interleaving can be
//! tried.
//!
//! What holds at every moment:
//! - A slot has one VM at most. The next is made only once the last VM, its
//!   disk and its registration are gone.
//! - A VM is named by its incarnation, a registration by GitHub's id. Names
//!   come again, so no event acts by name alone.
//! - A VM that may be taking a job is destroyed only after GitHub has agreed
//!   to remove its runner, which it refuses while a job runs.
//! - A `CreateVm` goes out only after the registration, so whatever exists is
//!   known to this slot before it exists.

use crate::github::Removal;
use crate::hypervisor::{Power, VmId};
use std::collections::VecDeque;

/// Milliseconds on a clock that never goes back. Where it starts does not matter.
pub type Millis = i64;

/// What a slot goes by. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long a guest may take to fetch its configuration, and a runner to come online after it.
    pub boot_timeout: Millis,
    /// How long a job may run.
    pub job_timeout: Millis,
    /// Whether GitHub makes the registration (JIT), so that the runner's id is
    /// known before its VM exists. Otherwise the runner registers itself.
    pub jit: bool,
}

/// How long one retry waits at least and at most, in milliseconds.
pub const BACK_OFF: (Millis, Millis) = (1_000, 300_000);

/// A call that whoever drives the slot has to make. The matching [`Event`]
/// brings back what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Register a runner. Brings [`Event::Registered`].
    Register {
        /// The name to register.
        runner_name: String,
    },
    /// Look a runner up by its name. Brings [`Event::Found`].
    FindRunner {
        /// The exact name.
        runner_name: String,
    },
    /// Remove a registration. Brings [`Event::RunnerRemoved`].
    RemoveRunner {
        /// GitHub's id.
        runner_id: u64,
    },
    /// Make and start a VM. Brings [`Event::Created`].
    CreateVm(Made),
    /// Remove a VM and its disk. Brings [`Event::Destroyed`].
    DestroyVm(VmId),
}

/// Why an effect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One sentence, for the log and the status page.
    pub why: String,
    /// The earliest sensible retry, in milliseconds from now; 0 if unknown.
    pub retry_after: Millis,
}

/// What [`Effect::Register`] brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// GitHub's id of the runner, if GitHub made it (JIT).
    Done(Option<u64>),
    /// A runner of that name exists.
    NameTaken,
}

/// A runner found by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// GitHub's id.
    pub runner_id: u64,
    /// Whether it is beyond doubt what an earlier VM of this pool left
    /// behind: ephemeral, offline, without a job.
    pub stale: bool,
}

/// A workflow job as a webhook tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobNotice {
    /// GitHub's id of the job.
    pub job_id: u64,
    /// GitHub's id of the runner that has it.
    pub runner_id: Option<u64>,
    /// The runner's name.
    pub runner_name: Option<String>,
}

/// What the hypervisor's list says of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmSight {
    /// It is there and on.
    On,
    /// It is there and off.
    Off,
    /// It is not there.
    Missing,
}

impl From<Power> for VmSight {
    fn from(power: Power) -> VmSight {
        match power {
            Power::On | Power::Paused => VmSight::On,
            Power::Off => VmSight::Off,
        }
    }
}

/// A VM or disk of this pool that no slot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What to destroy.
    pub vm: VmId,
    /// Its registration, if it has one: the id, if known, and the name.
    pub runner: Option<(Option<u64>, String)>,
    /// Whether it is a VM that is on, and so might yet take a job.
    pub on: bool,
}

/// What a restarted pool gives a slot to begin with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The VM to take over, and whether a job runs on it.
    pub adopt: Option<(Made, bool)>,
    /// What to clear away first.
    pub leftovers: Vec<Leftover>,
}

/// How the pool is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Idle VMs are destroyed and deregistered; those with a job keep running for the next start to adopt.
    Drain,
    /// Every VM is destroyed, whatever runs on it.
    Destroy,
}

/// What a slot is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pool knows what was there before it.
    Reconciled(Assignment),
    /// The slot is to have a VM.
    Fill,
    /// The clock has reached [`Slot::deadline`].
    Tick,
    /// What came of [`Effect::Register`].
    Registered(Result<Registered, Failure>),
    /// What came of [`Effect::FindRunner`].
    Found(Result<Option<Found>, Failure>),
    /// What came of [`Effect::RemoveRunner`].
    RunnerRemoved(Result<Removal, Failure>),
    /// What came of [`Effect::CreateVm`].
    Created(Result<(), Failure>),
    /// What came of [`Effect::DestroyVm`].
    Destroyed(Result<(), Failure>),
    /// The guest has its configuration.
    ConfigFetched {
        /// Of which VM.
        incarnation: String,
    },
    /// The guest says that a job starts.
    JobStarted {
        /// Of which VM.
        incarnation: String,
    },
    /// The guest says that its runner has ended.
    Completed {
        /// Of which VM.
        incarnation: String,
    },
    /// A `workflow_job` webhook with action `in_progress`.
    JobInProgress(JobNotice),
    /// A `workflow_job` webhook with action `completed`.
    JobCompleted(JobNotice),
    /// The hypervisor's list about this slot's VM.
    VmObserved {
        /// The VM that was looked for.
        incarnation: String,
        /// What the list says.
        sight: VmSight,
        /// When the list was asked for: a list older than the VM says nothing about it.
        asked_at: Millis,
    },
    /// GitHub's list about this slot's runner.
    RunnerObserved {
        /// GitHub's id.
        runner_id: u64,
        /// The runner's name.
        runner_name: String,
        /// Whether it is connected.
        online: bool,
        /// Whether it has a job.
        busy: bool,
        /// When the list was asked for.
        asked_at: Millis,
    },
    /// GitHub does not know this registration any more.
    RunnerGone {
        /// GitHub's id.
        runner_id: u64,
    },
    /// Something of this pool was found that no slot has.
    Leftover(Leftover),
    /// The pool stops.
    Stop(Stop),
}

/// A VM that this slot makes, or has made or adopted, with its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Name and incarnation.
    pub vm: VmId,
    /// The name under which its runner is registered.
    pub runner_name: String,
    /// GitHub's id of the registration, once known.
    pub runner_id: Option<u64>,
}

/// The state's name, as the design, `/health` and the status page use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The pool does not know yet what was there before it.
    Unreconciled,
    /// No VM.
    Empty,
    /// A registration and a VM are being made.
    Creating,
    /// The guest has not fetched its configuration.
    Booting,
    /// The runner waits for a job.
    Ready,
    /// A job is on it.
    Running,
    /// VM, disk and registration are being removed.
    Destroying,
    /// Over: nothing more will happen here.
    Stopped,
}

impl Phase {
    /// The lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Unreconciled => "unreconciled",
            Phase::Empty => "empty",
            Phase::Creating => "creating",
            Phase::Booting => "booting",
            Phase::Ready => "ready",
            Phase::Running => "running",
            Phase::Destroying => "destroying",
            Phase::Stopped => "stopped",
        }
    }
}

/// Why a VM is destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its job, or its runner, has ended.
    Completed,
    /// It is off or gone.
    Ended(VmSight),
    /// GitHub does not know its runner any more.
    RunnerGone,
    /// The guest did not fetch its configuration in time.
    BootTimeout,
    /// The job took too long.
    JobTimeout,
    /// It could not be made.
    CreateFailed,
    /// Its runner has been offline for too long.
    Offline,
    /// An earlier pool, or a failed creation, left it behind.
    Leftover,
    /// The pool stops.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreateStep {
    FindTaken,
    RemoveTaken(u64),
    Register,
    CreateVm,
}

#[derive(Clone, Debug)]
struct Destroying {
    made: Made,
    cause: Cause,
    /// The phase before, if it tells whether a job ran.
    from: Phase,
    /// GitHub is asked first, since a job might be starting on the VM.
    ask_first: bool,
    vm_gone: bool,
    runner_gone: bool,
    removal: Option<Removal>,
    attempts: u32,
    retry_at: Millis,
}

#[derive(Clone, Debug)]
enum State {
    Unreconciled,
    Empty { wanted: bool, retry_at: Millis },
    Creating { made: Made, step: CreateStep, name_conflicts: u8 },
    Booting { made: Made },
    Ready { made: Made, offline_since: Option<Millis> },
    Running { made: Made, job: Option<u64> },
    Destroying(Destroying),
    Stopped { left: Option<Made> },
}

/// What is awaited of the effect that went out last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Awaiting {
    /// The answer belongs to the state.
    Own,
    /// A leftover's destruction, beside a state that goes on.
    Leftover,
    /// The id of a runner that a webhook named, to see whether it is ours.
    Identity { notice: JobNotice, completed: bool },
}

/// One slot of the pool. See the module's head.
#[derive(Clone, Debug)]
pub struct Slot {
    number: u32,
    vm_name: String,
    rules: Rules,
    retired: bool,
    random: u64,
    state: State,
    /// When the state was entered.
    since: Millis,
    /// When the present VM was made or adopted.
    made_at: Millis,
    awaiting: Option<Awaiting>,
    identify: Option<(JobNotice, bool)>,
    leftovers: VecDeque<Leftover>,
    missing_in_a_row: u8,
    failures: u32,
    reason: Option<String>,
    stop: Option<Stop>,
    jobs_completed: u64,
}

/// What the rest of the pool may know of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The slot's number, from 1.
    pub number: u32,
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Millis,
    /// The VM that it has or is making.
    pub made: Option<Made>,
    /// Whether an empty slot has been told to make a VM.
    pub wanted: bool,
    /// The job, if a webhook has named it.
    pub job_id: Option<u64>,
    /// Failures in a row.
    pub failures: u32,
    /// Why the last of them failed.
    pub reason: Option<String>,
    /// Whether it never makes another VM.
    pub retired: bool,
    /// Jobs that this slot has seen to their end.
    pub jobs_completed: u64,
}

impl Slot {
    /// A slot that waits for [`Event::Reconciled`]. `seed` feeds jitter and
    /// incarnations and must differ from every other slot's, ever.
    pub fn new(number: u32, vm_name: String, rules: Rules, seed: u64) -> Slot {
        Slot {
            number,
            vm_name,
            rules,
            retired: false,
            random: seed,
            state: State::Unreconciled,
            since: 0,
            made_at: 0,
            awaiting: None,
            identify: None,
            leftovers: VecDeque::new(),
            missing_in_a_row: 0,
            failures: 0,
            reason: None,
            stop: None,
            jobs_completed: 0,
        }
    }

    /// A slot past `POOL_SIZE` that sees what it is given to its end and never makes another VM.
    pub fn retired(number: u32, rules: Rules, seed: u64) -> Slot {
        Slot { retired: true, ..Slot::new(number, String::new(), rules, seed) }
    }

    /// What the rest of the pool may know.
    pub fn view(&self) -> View {
        let (made, wanted, job_id) = match &self.state {
            State::Unreconciled => (None, false, None),
            State::Empty { wanted, .. } => (None, *wanted, None),
            State::Creating { made, .. } | State::Booting { made } | State::Ready { made, .. } => {
                (Some(made.clone()), false, None)
            }
            State::Running { made, job } => (Some(made.clone()), false, *job),
            State::Destroying(d) => (Some(d.made.clone()), false, None),
            State::Stopped { left } => (left.clone(), false, None),
        };
        let failures = match &self.state {
            State::Destroying(d) => self.failures.max(d.attempts),
            _ => self.failures,
        };
        View {
            number: self.number,
            phase: self.phase(),
            since: self.since,
            made,
            wanted,
            job_id,
            failures,
            reason: self.reason.clone(),
            retired: self.retired,
            jobs_completed: self.jobs_completed,
        }
    }

    /// Why the VM is being destroyed, if it is.
    pub fn cause(&self) -> Option<&Cause> {
        match &self.state {
            State::Destroying(d) => Some(&d.cause),
            _ => None,
        }
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Unreconciled => Phase::Unreconciled,
            State::Empty { .. } => Phase::Empty,
            State::Creating { .. } => Phase::Creating,
            State::Booting { .. } => Phase::Booting,
            State::Ready { .. } => Phase::Ready,
            State::Running { .. } => Phase::Running,
            State::Destroying(_) => Phase::Destroying,
            State::Stopped { .. } => Phase::Stopped,
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn deadline(&self) -> Option<Millis> {
        if self.awaiting.is_some() {
            return None;
        }
        match &self.state {
            State::Empty { wanted, retry_at } if *wanted || !self.leftovers.is_empty() => Some(*retry_at),
            State::Booting { .. } => Some(self.since + self.rules.boot_timeout),
            // A runner that registers itself and is in no list: none will show it offline.
            State::Ready { made, offline_since: Some(since) } if made.runner_id.is_none() => {
                Some(since + self.rules.boot_timeout)
            }
            State::Running { .. } => Some(self.since + self.rules.job_timeout),
            State::Destroying(d) => Some(d.retry_at),
            _ => None,
        }
    }

    /// Takes in what happened and says what to do next. While an effect is
    /// out, further events are taken in, but the next effect comes only after
    /// its answer.
    pub fn step(&mut self, event: Event, now: Millis) -> Option<Effect> {
        match event {
            Event::Reconciled(assignment) => self.reconciled(assignment, now),
            Event::Fill => {
                if let State::Empty { wanted, .. } = &mut self.state {
                    *wanted = true;
                }
            }
            Event::Tick => self.tick(now),
            Event::Registered(answer) => self.registered(answer, now),
            Event::Found(answer) => self.found(answer, now),
            Event::RunnerRemoved(answer) => self.runner_removed(answer, now),
            Event::Created(answer) => self.created(answer, now),
            Event::Destroyed(answer) => self.destroyed(answer, now),
            Event::ConfigFetched { incarnation } => {
                if self.has_incarnation(&incarnation)
                    && let State::Booting { made } = &self.state
                {
                    let made = made.clone();
                    self.enter(State::Ready { made, offline_since: Some(now) }, now);
                    self.reason = None;
                }
            }
            Event::JobStarted { incarnation } => {
                if self.has_incarnation(&incarnation) {
                    self.job_runs(None, now);
                }
            }
            Event::Completed { incarnation } => {
                if self.has_incarnation(&incarnation) {
                    self.vm_is_done(Cause::Completed, now);
                }
            }
            Event::JobInProgress(notice) => self.job_notice(notice, false, now),
            Event::JobCompleted(notice) => self.job_notice(notice, true, now),
            Event::VmObserved { incarnation, sight, asked_at } => {
                self.vm_observed(&incarnation, sight, asked_at, now);
            }
            Event::RunnerObserved { runner_id, runner_name, online, busy, asked_at } => {
                self.runner_observed(runner_id, &runner_name, online, busy, asked_at, now);
            }
            Event::RunnerGone { runner_id } => {
                let ours = self.made().is_some_and(|made| made.runner_id == Some(runner_id));
                if ours && matches!(self.phase(), Phase::Ready | Phase::Running) {
                    self.vm_is_done(Cause::RunnerGone, now);
                }
            }
            Event::Leftover(leftover) => {
                let known = self.has_incarnation(&leftover.vm.incarnation)
                    || self.leftovers.iter().any(|l| l.vm == leftover.vm);
                if !known && !matches!(self.state, State::Stopped { .. }) {
                    self.leftovers.push_back(leftover);
                }
            }
            Event::Stop(stop) => {
                self.stop = Some(stop);
                // A stop does not wait out a back-off, nor a rate limit of an hour.
                if let State::Destroying(d) = &mut self.state {
                    d.retry_at = now;
                }
            }
        }
        self.next(now)
    }

    /// The next effect, which follows from the state alone.
    fn next(&mut self, now: Millis) -> Option<Effect> {
        if self.awaiting.is_some() {
            return None;
        }
        self.obey_stop(now);
        if let State::Empty { wanted, retry_at } = self.state {
            if now < retry_at {
                return None;
            }
            if let Some(leftover) = self.leftovers.pop_front() {
                self.clear_away(leftover, now);
            } else if self.retired {
                self.enter(State::Stopped { left: None }, now);
            } else if wanted {
                self.begin_creating(now);
            }
        }
        let effect = match &mut self.state {
            State::Creating { made, step, .. } => Some(match step {
                CreateStep::FindTaken => Effect::FindRunner { runner_name: made.runner_name.clone() },
                CreateStep::RemoveTaken(runner_id) => Effect::RemoveRunner { runner_id: *runner_id },
                CreateStep::Register => Effect::Register { runner_name: made.runner_name.clone() },
                CreateStep::CreateVm => Effect::CreateVm(made.clone()),
            }),
            State::Destroying(d) if now >= d.retry_at => {
                let remove = if d.runner_gone {
                    None
                } else {
                    Some(match d.made.runner_id {
                        Some(runner_id) => Effect::RemoveRunner { runner_id },
                        None => Effect::FindRunner { runner_name: d.made.runner_name.clone() },
                    })
                };
                let destroy = (!d.vm_gone).then(|| Effect::DestroyVm(d.made.vm.clone()));
                if d.ask_first { remove.or(destroy) } else { destroy.or(remove) }
            }
            _ => None,
        };
        if effect.is_some() {
            self.awaiting = Some(Awaiting::Own);
            return effect;
        }
        if !matches!(self.state, State::Booting { .. } | State::Ready { .. } | State::Running { .. }) {
            return None;
        }
        if let Some((notice, completed)) = self.identify.take() {
            let runner_name = self.made()?.runner_name.clone();
            self.awaiting = Some(Awaiting::Identity { notice, completed });
            return Some(Effect::FindRunner { runner_name });
        }
        let leftover = self.leftovers.pop_front()?;
        self.awaiting = Some(Awaiting::Leftover);
        Some(Effect::DestroyVm(leftover.vm))
    }

    // --- restart ---

    fn reconciled(&mut self, assignment: Assignment, now: Millis) {
        if !matches!(self.state, State::Unreconciled) {
            return;
        }
        self.leftovers = assignment.leftovers.into();
        match assignment.adopt {
            Some((made, busy)) => {
                self.made_at = now;
                let state = if busy {
                    State::Running { made, job: None }
                } else {
                    State::Ready { made, offline_since: None }
                };
                self.enter(state, now);
            }
            None => self.enter(State::Empty { wanted: false, retry_at: now }, now),
        }
    }

    /// Destroys a leftover as this slot's own VM, so that nothing is created before it is gone.
    fn clear_away(&mut self, leftover: Leftover, now: Millis) {
        let runner_gone = leftover.runner.is_none();
        let (runner_id, runner_name) = leftover.runner.unwrap_or_default();
        self.made_at = now;
        let made = Made { vm: leftover.vm, runner_name, runner_id };
        self.enter(
            State::Destroying(Destroying {
                made,
                cause: Cause::Leftover,
                from: Phase::Unreconciled,
                ask_first: leftover.on,
                vm_gone: false,
                runner_gone,
                removal: None,
                attempts: 0,
                retry_at: now,
            }),
            now,
        );
    }

    // --- making a VM ---

    fn begin_creating(&mut self, now: Millis) {
        let incarnation = format!("{:016x}", self.next_random());
        let made = Made {
            vm: VmId { name: self.vm_name.clone(), incarnation },
            runner_name: self.vm_name.clone(),
            runner_id: None,
        };
        // A runner that registers itself meets no 409, so the name is looked up first.
        let step = if self.rules.jit { CreateStep::Register } else { CreateStep::FindTaken };
        self.enter(State::Creating { made, step, name_conflicts: 0 }, now);
    }

    fn registered(&mut self, answer: Result<Registered, Failure>, now: Millis) {
        self.awaiting = None;
        let State::Creating { made, step, name_conflicts } = &mut self.state else { return };
        match answer {
            Ok(Registered::Done(runner_id)) => {
                made.runner_id = runner_id;
                *step = CreateStep::CreateVm;
            }
            Ok(Registered::NameTaken) if *name_conflicts < 3 => {
                *name_conflicts += 1;
                *step = CreateStep::FindTaken;
            }
            Ok(Registered::NameTaken) => {
                let why = format!("GitHub keeps saying that a runner named {} exists", made.runner_name);
                self.creating_failed(Failure { why, retry_after: 0 }, now);
            }
            Err(failure) => self.creating_failed(failure, now),
        }
    }

    fn found(&mut self, answer: Result<Option<Found>, Failure>, now: Millis) {
        let awaiting = self.awaiting.take();
        if let Some(Awaiting::Identity { notice, completed }) = awaiting {
            if let (Ok(Some(found)), Some(made)) = (answer, self.made_mut())
                && made.runner_id.is_none()
                && notice.runner_id == Some(found.runner_id)
            {
                made.runner_id = Some(found.runner_id);
                self.job_notice(notice, completed, now);
            }
            return;
        }
        match &mut self.state {
            State::Creating { made, step, .. } => match answer {
                Ok(None) => *step = CreateStep::Register,
                Ok(Some(found)) if found.stale => *step = CreateStep::RemoveTaken(found.runner_id),
                Ok(Some(_)) => {
                    made.runner_name = format!("{}-{}", made.vm.name, made.vm.incarnation);
                    *step = CreateStep::Register;
                }
                Err(failure) => self.creating_failed(failure, now),
            },
            State::Destroying(d) => match answer {
                Ok(Some(found)) => d.made.runner_id = Some(found.runner_id),
                Ok(None) => self.runner_removed(Ok(Removal::NotThere), now),
                Err(failure) => self.runner_removed(Err(failure), now),
            },
            _ => {}
        }
    }

    fn created(&mut self, answer: Result<(), Failure>, now: Millis) {
        self.awaiting = None;
        let State::Creating { made, .. } = &self.state else { return };
        let made = made.clone();
        // Lists asked for while it was being made may show it off, or not at all.
        self.made_at = now;
        match answer {
            Ok(()) => {
                self.enter(State::Booting { made }, now);
            }
            Err(failure) => {
                // The creation has undone itself as far as it could; this makes sure.
                self.failed(&failure);
                self.destroy(made, Cause::CreateFailed, Phase::Creating, now);
            }
        }
    }

    fn creating_failed(&mut self, failure: Failure, now: Millis) {
        self.failed(&failure);
        let retry_at = now + self.back_off(self.failures).max(failure.retry_after);
        self.enter(State::Empty { wanted: false, retry_at }, now);
    }

    // --- what happens to a VM ---

    fn job_notice(&mut self, notice: JobNotice, completed: bool, now: Millis) {
        let Some(made) = self.made() else { return };
        let by_runner = made.runner_id.is_some() && made.runner_id == notice.runner_id;
        let by_job = matches!(self.state, State::Running { job: Some(job), .. } if job == notice.job_id);
        if by_runner || by_job {
            if completed {
                self.vm_is_done(Cause::Completed, now);
            } else {
                self.job_runs(Some(notice.job_id), now);
            }
        } else if made.runner_id.is_none() && notice.runner_name.as_ref() == Some(&made.runner_name) {
            // The name is only a hint. Whose it is, GitHub must say.
            self.identify = Some((notice, completed));
        }
    }

    /// A job is on the VM.
    fn job_runs(&mut self, job_id: Option<u64>, now: Millis) {
        match &mut self.state {
            State::Booting { made } | State::Ready { made, .. } => {
                let made = made.clone();
                self.enter(State::Running { made, job: job_id }, now);
                self.failures = 0;
                self.reason = None;
            }
            State::Running { job, .. } => *job = job.or(job_id),
            // GitHub had not agreed to remove the runner yet, and it got a job instead.
            State::Destroying(d) if d.ask_first && !d.runner_gone && self.stop != Some(Stop::Destroy) => {
                let made = d.made.clone();
                self.enter(State::Running { made, job: job_id }, now);
            }
            _ => {}
        }
    }

    /// The VM has no further use.
    fn vm_is_done(&mut self, cause: Cause, now: Millis) {
        match &mut self.state {
            State::Booting { made } | State::Ready { made, .. } | State::Running { made, .. } => {
                let (made, from) = (made.clone(), self.phase());
                self.destroy(made, cause, from, now);
            }
            State::Destroying(d) => d.ask_first = false,
            _ => {}
        }
    }

    fn vm_observed(&mut self, incarnation: &str, sight: VmSight, asked_at: Millis, now: Millis) {
        if asked_at <= self.made_at || !self.has_incarnation(incarnation) {
            return;
        }
        if sight == VmSight::Missing {
            // A list that leaves a VM out once is not worth a job.
            self.missing_in_a_row = self.missing_in_a_row.saturating_add(1);
            if self.missing_in_a_row < 2 {
                return;
            }
        } else {
            self.missing_in_a_row = 0;
        }
        if sight != VmSight::On {
            self.vm_is_done(Cause::Ended(sight), now);
        }
    }

    fn runner_observed(
        &mut self,
        runner_id: u64,
        runner_name: &str,
        online: bool,
        busy: bool,
        asked_at: Millis,
        now: Millis,
    ) {
        if asked_at <= self.made_at {
            return;
        }
        let boot_timeout = self.rules.boot_timeout;
        let Some(made) = self.made_mut() else { return };
        match made.runner_id {
            Some(id) if id == runner_id => {}
            // A runner that registers itself: the name was free before its VM existed.
            None if made.runner_name == runner_name && (online || busy) => made.runner_id = Some(runner_id),
            _ => return,
        }
        if busy {
            self.job_runs(None, now);
        } else if let State::Ready { made, offline_since } = &mut self.state {
            if online {
                *offline_since = None;
            } else if now - *offline_since.get_or_insert(now) >= boot_timeout {
                let made = made.clone();
                self.destroy(made, Cause::Offline, Phase::Ready, now);
            }
        }
    }

    fn tick(&mut self, now: Millis) {
        match &self.state {
            State::Booting { made } if now >= self.since + self.rules.boot_timeout => {
                let made = made.clone();
                self.destroy(made, Cause::BootTimeout, Phase::Booting, now);
            }
            State::Ready { made, offline_since: Some(since) }
                if made.runner_id.is_none() && now >= since + self.rules.boot_timeout =>
            {
                let made = made.clone();
                self.destroy(made, Cause::Offline, Phase::Ready, now);
            }
            State::Running { made, .. } if now >= self.since + self.rules.job_timeout => {
                let made = made.clone();
                self.destroy(made, Cause::JobTimeout, Phase::Running, now);
            }
            _ => {}
        }
    }

    // --- removing a VM ---

    fn destroy(&mut self, made: Made, cause: Cause, from: Phase, now: Millis) {
        let idle = matches!(from, Phase::Booting | Phase::Ready);
        let ask_first = match cause {
            // A guest that is given up on time can still have got its
            // configuration, and by now a job: a creation can hang after the VM
            // has started, and a guest can ask between this step and its publication.
            Cause::Offline | Cause::BootTimeout | Cause::CreateFailed => true,
            Cause::Stop => idle && self.stop == Some(Stop::Drain),
            _ => false,
        };
        self.enter(
            State::Destroying(Destroying {
                made,
                cause,
                from,
                ask_first,
                vm_gone: false,
                runner_gone: false,
                removal: None,
                attempts: 0,
                retry_at: now,
            }),
            now,
        );
    }

    fn runner_removed(&mut self, answer: Result<Removal, Failure>, now: Millis) {
        self.awaiting = None;
        match &mut self.state {
            State::Creating { made, step, .. } => match answer {
                Ok(Removal::Removed | Removal::NotThere) => *step = CreateStep::Register,
                Ok(Removal::Busy) => {
                    made.runner_name = format!("{}-{}", made.vm.name, made.vm.incarnation);
                    *step = CreateStep::Register;
                }
                Err(failure) => self.creating_failed(failure, now),
            },
            State::Destroying(d) => match answer {
                Ok(Removal::Busy) if d.ask_first && !d.vm_gone => {
                    let made = d.made.clone();
                    self.enter(State::Running { made, job: None }, now);
                }
                // Its VM is gone, so GitHub will give the job up; the monitor removes the registration then.
                Ok(removal) => {
                    d.runner_gone = true;
                    d.removal = Some(removal);
                    self.finish_if_gone(now);
                }
                Err(failure) => self.retry_destroying(failure, now),
            },
            _ => {}
        }
    }

    fn destroyed(&mut self, answer: Result<(), Failure>, now: Millis) {
        if self.awaiting.take() == Some(Awaiting::Leftover) {
            // The monitor will report it again if it is still there.
            return;
        }
        let State::Destroying(d) = &mut self.state else { return };
        match answer {
            Ok(()) => {
                d.vm_gone = true;
                self.finish_if_gone(now);
            }
            Err(failure) => self.retry_destroying(failure, now),
        }
    }

    fn retry_destroying(&mut self, failure: Failure, now: Millis) {
        self.reason = Some(failure.why);
        let State::Destroying(d) = &mut self.state else { return };
        d.attempts = d.attempts.saturating_add(1);
        let attempts = d.attempts;
        let retry_after = if self.stop.is_some() { 0 } else { failure.retry_after };
        let wait = self.back_off(attempts).max(retry_after);
        if let State::Destroying(d) = &mut self.state {
            d.retry_at = now + wait;
        }
    }

    fn finish_if_gone(&mut self, now: Millis) {
        let State::Destroying(d) = &self.state else { return };
        if !d.vm_gone || !d.runner_gone {
            return;
        }
        // An ephemeral runner leaves GitHub by itself after its job. (One that nobody ever saw was never there.)
        let left = d.made.runner_id.is_some() && d.removal == Some(Removal::NotThere);
        let job_ran = d.from == Phase::Running || (d.from == Phase::Ready && left);
        let wait = match &d.cause {
            Cause::CreateFailed => self.back_off(self.failures),
            Cause::Leftover | Cause::Stop => {
                // What could not be destroyed before is destroyed now.
                if self.failures == 0 {
                    self.reason = None;
                }
                0
            }
            _ if job_ran => {
                self.failures = 0;
                self.reason = None;
                self.jobs_completed += 1;
                0
            }
            cause => {
                let why = match cause {
                    Cause::BootTimeout => format!(
                        "the guest did not fetch its configuration within {} s of starting (see C:\\actions-runner\\pool-guest.log in the image)",
                        self.rules.boot_timeout / 1000
                    ),
                    Cause::Ended(_) if d.from == Phase::Booting => {
                        "the VM went off before its guest fetched its configuration".into()
                    }
                    Cause::Offline => "the runner did not stay online".into(),
                    _ => "the runner ended without a job".into(),
                };
                self.failed(&Failure { why, retry_after: 0 });
                self.back_off(self.failures)
            }
        };
        self.enter(State::Empty { wanted: false, retry_at: now + wait }, now);
    }

    // --- stopping ---

    fn obey_stop(&mut self, now: Millis) {
        let Some(stop) = self.stop else { return };
        let tries = if stop == Stop::Destroy { 3 } else { 1 };
        match &self.state {
            State::Stopped { .. } => {}
            State::Unreconciled | State::Empty { .. } => self.enter(State::Stopped { left: None }, now),
            State::Creating { made, step, .. } => {
                let made = made.clone();
                if *step == CreateStep::CreateVm {
                    self.destroy(made, Cause::Stop, Phase::Creating, now);
                    if let State::Destroying(d) = &mut self.state {
                        d.vm_gone = true;
                        d.runner_gone = d.made.runner_id.is_none();
                        if d.runner_gone {
                            self.enter(State::Stopped { left: None }, now);
                        }
                    }
                } else {
                    self.enter(State::Stopped { left: None }, now);
                }
            }
            State::Booting { made } | State::Ready { made, .. } => {
                let (made, from) = (made.clone(), self.phase());
                self.destroy(made, Cause::Stop, from, now);
            }
            State::Running { made, .. } => {
                let made = made.clone();
                match stop {
                    Stop::Drain => self.enter(State::Stopped { left: Some(made) }, now),
                    Stop::Destroy => self.destroy(made, Cause::Stop, Phase::Running, now),
                }
            }
            // What cannot be removed now, the next start finds and removes.
            State::Destroying(d) if d.attempts >= tries => {
                let left = (!d.vm_gone).then(|| d.made.clone());
                self.enter(State::Stopped { left }, now);
            }
            State::Destroying(_) => {}
        }
    }

    // --- small parts ---

    fn enter(&mut self, state: State, now: Millis) {
        self.state = state;
        self.since = now;
        self.missing_in_a_row = 0;
        if self.made().is_none() {
            self.identify = None;
        }
    }

    fn made(&self) -> Option<&Made> {
        match &self.state {
            State::Creating { made, .. }
            | State::Booting { made }
            | State::Ready { made, .. }
            | State::Running { made, .. } => Some(made),
            State::Destroying(d) => Some(&d.made),
            _ => None,
        }
    }

    fn made_mut(&mut self) -> Option<&mut Made> {
        match &mut self.state {
            State::Booting { made } | State::Ready { made, .. } | State::Running { made, .. } => Some(made),
            State::Destroying(d) => Some(&mut d.made),
            _ => None,
        }
    }

    fn has_incarnation(&self, incarnation: &str) -> bool {
        self.made().is_some_and(|made| made.vm.incarnation == incarnation)
    }

    fn failed(&mut self, failure: &Failure) {
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(failure.why.clone());
    }

    /// How long to wait after this many failures in a row: doubling from 1 s
    /// to 5 min, with up to half as much again, so that slots that failed
    /// together do not retry together.
    fn back_off(&mut self, failures: u32) -> Millis {
        let (least, most) = BACK_OFF;
        let wait = least.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
        let jitter = (self.next_random() % (wait as u64 / 2 + 1)) as Millis;
        (wait + jitter).min(most)
    }

    /// SplitMix64: statistically sound and three lines, where a crate would be too much.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Millis = 600_000;
    const JOB: Millis = 21_600_000;

    /// A slot and the clock that a test moves.
    struct Rig {
        slot: Slot,
        now: Millis,
    }

    impl Rig {
        fn new(jit: bool) -> Rig {
            let rules = Rules { boot_timeout: BOOT, job_timeout: JOB, jit };
            let mut rig = Rig { slot: Slot::new(1, "runner-1".into(), rules, 42), now: 1000 };
            assert_eq!(rig.tell(Event::Reconciled(Assignment::default())), None);
            rig
        }

        fn tell(&mut self, event: Event) -> Option<Effect> {
            self.now += 1;
            self.slot.step(event, self.now)
        }

        /// Lets time pass up to the slot's deadline.
        fn tick(&mut self) -> Option<Effect> {
            self.now = self.slot.deadline().expect("a deadline").max(self.now);
            self.slot.step(Event::Tick, self.now)
        }

        fn phase(&self) -> Phase {
            self.slot.view().phase
        }

        fn made(&self) -> Made {
            self.slot.view().made.expect("a VM")
        }

        fn incarnation(&self) -> String {
            self.made().vm.incarnation
        }

        fn creating() -> Rig {
            let mut rig = Rig::new(true);
            assert_eq!(rig.tell(Event::Fill), Some(Effect::Register { runner_name: "runner-1".into() }));
            let create = rig.tell(Event::Registered(Ok(Registered::Done(Some(7)))));
            assert_eq!(create, Some(Effect::CreateVm(rig.made())));
            rig
        }

        fn booting() -> Rig {
            let mut rig = Rig::creating();
            assert_eq!(rig.tell(Event::Created(Ok(()))), None);
            rig
        }

        fn ready() -> Rig {
            let mut rig = Rig::booting();
            let incarnation = rig.incarnation();
            assert_eq!(rig.tell(Event::ConfigFetched { incarnation }), None);
            assert_eq!(rig.phase(), Phase::Ready);
            rig
        }

        fn running() -> Rig {
            let mut rig = Rig::ready();
            assert_eq!(rig.tell(Event::JobInProgress(notice(7, 100))), None);
            assert_eq!(rig.phase(), Phase::Running);
            rig
        }

        /// Answers the destruction that `effect` begins, runner and VM, and says in which order they went.
        fn finish(&mut self, mut effect: Option<Effect>, removal: Removal) -> Vec<&'static str> {
            let mut order = Vec::new();
            while let Some(next) = effect {
                effect = match next {
                    Effect::DestroyVm(_) => {
                        order.push("vm");
                        self.tell(Event::Destroyed(Ok(())))
                    }
                    Effect::RemoveRunner { .. } => {
                        order.push("runner");
                        self.tell(Event::RunnerRemoved(Ok(removal)))
                    }
                    other => panic!("{other:?} while destroying"),
                };
            }
            order
        }
    }

    fn notice(runner_id: u64, job_id: u64) -> JobNotice {
        JobNotice { job_id, runner_id: Some(runner_id), runner_name: Some("runner-1".into()) }
    }

    fn failure() -> Failure {
        Failure { why: "it broke".into(), retry_after: 0 }
    }

    #[test]
    fn a_vm_lives_for_one_job_and_is_gone_with_disk_and_registration_before_the_next() {
        let mut rig = Rig::running();
        let first = rig.incarnation();
        let effect = rig.tell(Event::Completed { incarnation: first.clone() });
        assert_eq!(rig.finish(effect, Removal::NotThere), ["vm", "runner"]);
        assert_eq!(rig.phase(), Phase::Empty);
        assert_eq!(rig.slot.view().jobs_completed, 1);
        assert!(rig.tell(Event::Fill).is_some());
        assert_ne!(rig.incarnation(), first);
    }

    #[test]
    fn what_an_earlier_vm_says_or_is_said_of_it_changes_nothing() {
        let mut rig = Rig::ready();
        let old = "ffffffffffffffff".to_string();
        for event in [
            Event::Completed { incarnation: old.clone() },
            Event::JobStarted { incarnation: old.clone() },
            Event::VmObserved { incarnation: old, sight: VmSight::Off, asked_at: 1_000_000 },
            Event::JobCompleted(notice(6, 100)),
            Event::JobInProgress(notice(6, 100)),
            Event::RunnerGone { runner_id: 6 },
        ] {
            assert_eq!(rig.tell(event), None);
            assert_eq!(rig.phase(), Phase::Ready);
        }
    }

    #[test]
    fn a_list_asked_for_before_the_vm_was_made_says_nothing_about_it() {
        let mut rig = Rig::booting();
        let (incarnation, asked_at) = (rig.incarnation(), 900);
        for _ in 0..3 {
            let sight = VmSight::Missing;
            rig.tell(Event::VmObserved { incarnation: incarnation.clone(), sight, asked_at });
        }
        assert_eq!(rig.phase(), Phase::Booting);
    }

    #[test]
    fn a_vm_that_is_off_is_replaced_at_once_and_a_missing_one_when_two_lists_agree() {
        let mut rig = Rig::running();
        let observed =
            |rig: &Rig, sight| Event::VmObserved { incarnation: rig.incarnation(), sight, asked_at: rig.now };
        let event = observed(&rig, VmSight::Missing);
        assert_eq!(rig.tell(event), None);
        let event = observed(&rig, VmSight::On);
        rig.tell(event);
        let event = observed(&rig, VmSight::Missing);
        assert_eq!(rig.tell(event), None);
        let event = observed(&rig, VmSight::Missing);
        assert!(rig.tell(event).is_some());
        assert_eq!(rig.phase(), Phase::Destroying);

        let mut rig = Rig::running();
        let event = observed(&rig, VmSight::Off);
        assert!(rig.tell(event).is_some());
    }

    #[test]
    fn a_guest_that_never_fetches_its_configuration_is_replaced_after_the_boot_timeout() {
        let mut rig = Rig::booting();
        assert_eq!(rig.slot.deadline(), Some(rig.slot.since + BOOT));
        let effect = rig.tick();
        assert_eq!(rig.finish(effect, Removal::Removed), ["runner", "vm"]);
        assert!(rig.slot.view().reason.unwrap().contains("within 600 s"));
        assert_eq!(rig.slot.view().failures, 1);
    }

    #[test]
    fn a_job_ends_at_the_job_timeout_and_not_before() {
        let mut rig = Rig::running();
        rig.now = rig.slot.since + JOB - 10;
        assert_eq!(rig.tell(Event::Tick), None);
        assert!(rig.tick().is_some());
        assert_eq!(rig.phase(), Phase::Destroying);
    }

    #[test]
    fn a_name_that_a_stale_runner_holds_is_freed_and_used() {
        let mut rig = Rig::new(true);
        rig.tell(Event::Fill);
        let find = rig.tell(Event::Registered(Ok(Registered::NameTaken)));
        assert_eq!(find, Some(Effect::FindRunner { runner_name: "runner-1".into() }));
        let remove = rig.tell(Event::Found(Ok(Some(Found { runner_id: 3, stale: true }))));
        assert_eq!(remove, Some(Effect::RemoveRunner { runner_id: 3 }));
        let register = rig.tell(Event::RunnerRemoved(Ok(Removal::Removed)));
        assert_eq!(register, Some(Effect::Register { runner_name: "runner-1".into() }));
    }

    #[test]
    fn a_name_that_a_live_or_busy_runner_holds_is_left_to_it() {
        for busy in [false, true] {
            let mut rig = Rig::new(true);
            rig.tell(Event::Fill);
            rig.tell(Event::Registered(Ok(Registered::NameTaken)));
            let mut effect = rig.tell(Event::Found(Ok(Some(Found { runner_id: 3, stale: busy }))));
            if busy {
                effect = rig.tell(Event::RunnerRemoved(Ok(Removal::Busy)));
            }
            let runner_name = format!("runner-1-{}", rig.incarnation());
            assert_eq!(effect, Some(Effect::Register { runner_name }));
            assert_eq!(rig.made().vm.name, "runner-1");
        }
    }

    #[test]
    fn failures_are_retried_for_ever_from_one_second_to_five_minutes() {
        let mut rig = Rig::new(true);
        let mut waits = Vec::new();
        for _ in 0..20 {
            rig.tell(Event::Fill);
            if rig.phase() == Phase::Empty {
                rig.tick();
            }
            rig.tell(Event::Registered(Err(failure())));
            rig.tell(Event::Fill);
            waits.push(rig.slot.deadline().unwrap() - rig.now + 1);
        }
        assert!((1000..=1500).contains(&waits[0]), "{waits:?}");
        assert!((2000..=3000).contains(&waits[1]), "{waits:?}");
        assert!(waits.iter().all(|&wait| wait <= BACK_OFF.1));
        assert_eq!(waits.last(), Some(&BACK_OFF.1));
        assert_eq!(rig.slot.view().reason.as_deref(), Some("it broke"));
    }

    #[test]
    fn a_rate_limit_is_waited_out() {
        let mut rig = Rig::new(true);
        rig.tell(Event::Fill);
        rig.tell(Event::Registered(Err(Failure { why: "slow down".into(), retry_after: 1_800_000 })));
        rig.tell(Event::Fill);
        assert!(rig.slot.deadline().unwrap() - rig.now >= 1_799_000);
    }

    #[test]
    fn a_creation_that_fails_is_cleared_away_before_the_next() {
        let mut rig = Rig::creating();
        let effect = rig.tell(Event::Created(Err(failure())));
        assert_eq!(rig.finish(effect, Removal::Removed), ["runner", "vm"]);
        assert_eq!(rig.slot.view().failures, 1);
    }

    #[test]
    fn a_vm_given_up_while_its_guest_got_a_job_is_left_to_the_job() {
        let mut creating = Rig::creating();
        let mut booting = Rig::booting();
        let given_up = [creating.tell(Event::Created(Err(failure()))), booting.tick()];
        for (mut rig, effect) in [creating, booting].into_iter().zip(given_up) {
            assert_eq!(effect, Some(Effect::RemoveRunner { runner_id: 7 }));
            assert_eq!(rig.tell(Event::RunnerRemoved(Ok(Removal::Busy))), None);
            assert_eq!(rig.phase(), Phase::Running);
        }
    }

    #[test]
    fn nothing_is_created_while_the_old_vm_cannot_be_destroyed() {
        let mut rig = Rig::running();
        let incarnation = rig.incarnation();
        let mut effect = rig.tell(Event::Completed { incarnation: incarnation.clone() });
        for _ in 0..5 {
            assert!(matches!(effect, Some(Effect::DestroyVm(_))));
            assert_eq!(rig.tell(Event::Destroyed(Err(failure()))), None);
            assert_eq!(rig.tell(Event::Fill), None);
            assert_eq!(rig.incarnation(), incarnation);
            effect = rig.tick();
        }
        rig.finish(effect, Removal::NotThere);
        assert_eq!(rig.phase(), Phase::Empty);
        assert_eq!(rig.slot.view().reason, None);
    }

    #[test]
    fn a_runner_that_ends_again_and_again_without_a_job_backs_off() {
        let mut rig = Rig::ready();
        let incarnation = rig.incarnation();
        let effect = rig.tell(Event::Completed { incarnation });
        rig.finish(effect, Removal::Removed);
        assert_eq!(rig.slot.view().failures, 1);
        assert_eq!(rig.slot.view().jobs_completed, 0);
    }

    #[test]
    fn a_job_whose_webhooks_and_callbacks_were_all_lost_counts_since_its_runner_has_left_github() {
        let mut rig = Rig::ready();
        let event =
            Event::VmObserved { incarnation: rig.incarnation(), sight: VmSight::Off, asked_at: rig.now };
        let effect = rig.tell(event);
        rig.finish(effect, Removal::NotThere);
        assert_eq!((rig.slot.view().failures, rig.slot.view().jobs_completed), (0, 1));
    }

    #[test]
    fn draining_asks_github_before_an_idle_vm_goes() {
        let mut rig = Rig::ready();
        let effect = rig.tell(Event::Stop(Stop::Drain));
        assert_eq!(rig.finish(effect, Removal::Removed), ["runner", "vm"]);
        assert_eq!(rig.phase(), Phase::Stopped);
        assert_eq!(rig.slot.view().made, None);
    }

    #[test]
    fn a_vm_that_gets_a_job_while_draining_is_left_to_it() {
        let mut rig = Rig::ready();
        assert_eq!(rig.tell(Event::Stop(Stop::Drain)), Some(Effect::RemoveRunner { runner_id: 7 }));
        assert_eq!(rig.tell(Event::RunnerRemoved(Ok(Removal::Busy))), None);
        assert_eq!(rig.phase(), Phase::Stopped);
        assert!(rig.slot.view().made.is_some());
    }

    #[test]
    fn draining_leaves_a_running_job_alone_and_destroying_does_not() {
        let mut rig = Rig::running();
        assert_eq!(rig.tell(Event::Stop(Stop::Drain)), None);
        assert_eq!(rig.phase(), Phase::Stopped);

        let mut rig = Rig::running();
        let effect = rig.tell(Event::Stop(Stop::Destroy));
        assert_eq!(rig.finish(effect, Removal::Busy), ["vm", "runner"]);
        assert_eq!(rig.phase(), Phase::Stopped);
    }

    #[test]
    fn a_stop_waits_out_no_rate_limit() {
        let limited = || Failure { why: "slow down".into(), retry_after: 3_600_000 };
        for stop_first in [false, true] {
            let mut rig = Rig::running();
            let incarnation = rig.incarnation();
            if stop_first {
                rig.tell(Event::Stop(Stop::Destroy));
            } else {
                rig.tell(Event::Completed { incarnation });
            }
            rig.tell(Event::Destroyed(Ok(())));
            assert_eq!(rig.tell(Event::RunnerRemoved(Err(limited()))), None);
            if !stop_first {
                assert!(rig.tell(Event::Stop(Stop::Destroy)).is_some());
                assert_eq!(rig.tell(Event::RunnerRemoved(Err(limited()))), None);
            }
            while rig.phase() != Phase::Stopped {
                assert!(rig.slot.deadline().unwrap() - rig.now < 10_000);
                assert!(rig.tick().is_some());
                rig.tell(Event::RunnerRemoved(Err(limited())));
            }
        }
    }

    #[test]
    fn a_list_from_before_a_failed_creation_says_nothing_about_the_vm_that_came_of_it() {
        let mut rig = Rig::creating();
        let asked_at = rig.now;
        rig.tell(Event::Created(Err(failure())));
        rig.tell(Event::RunnerRemoved(Ok(Removal::Busy)));
        let incarnation = rig.incarnation();
        assert_eq!(rig.tell(Event::VmObserved { incarnation, sight: VmSight::Off, asked_at }), None);
        assert_eq!(rig.phase(), Phase::Running);
    }

    #[test]
    fn a_leftover_that_is_on_and_registers_itself_is_looked_up_by_its_name_first() {
        let rules = Rules { boot_timeout: BOOT, job_timeout: JOB, jit: false };
        let mut rig = Rig { slot: Slot::new(1, "runner-1".into(), rules, 1), now: 0 };
        let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        let leftovers = vec![Leftover { vm, runner: Some((None, "runner-1".into())), on: true }];
        let find = rig.tell(Event::Reconciled(Assignment { adopt: None, leftovers }));
        assert_eq!(find, Some(Effect::FindRunner { runner_name: "runner-1".into() }));
        let remove = rig.tell(Event::Found(Ok(Some(Found { runner_id: 9, stale: false }))));
        assert_eq!(remove, Some(Effect::RemoveRunner { runner_id: 9 }));
        rig.tell(Event::RunnerRemoved(Ok(Removal::Busy)));
        assert_eq!(rig.phase(), Phase::Running);
    }

    #[test]
    fn a_stop_while_registering_makes_no_vm_and_leaves_no_registration() {
        let mut rig = Rig::new(true);
        rig.tell(Event::Fill);
        assert_eq!(rig.tell(Event::Stop(Stop::Drain)), None);
        let effect = rig.tell(Event::Registered(Ok(Registered::Done(Some(7)))));
        assert_eq!(rig.finish(effect, Removal::Removed), ["runner"]);
        assert_eq!(rig.phase(), Phase::Stopped);
    }

    #[test]
    fn a_runner_offline_for_the_boot_timeout_is_replaced_unless_it_turns_out_busy() {
        let mut rig = Rig::ready();
        let observed = |rig: &Rig, online, busy| Event::RunnerObserved {
            runner_id: 7,
            runner_name: "runner-1".into(),
            online,
            busy,
            asked_at: rig.now,
        };
        rig.now += BOOT;
        let event = observed(&rig, false, false);
        assert_eq!(rig.tell(event), Some(Effect::RemoveRunner { runner_id: 7 }));
        assert_eq!(rig.tell(Event::RunnerRemoved(Ok(Removal::Busy))), None);
        assert_eq!(rig.phase(), Phase::Running);
    }

    #[test]
    fn a_runner_that_never_registers_itself_is_replaced_after_the_boot_timeout() {
        let mut rig = Rig::new(false);
        rig.tell(Event::Fill);
        rig.tell(Event::Found(Ok(None)));
        rig.tell(Event::Registered(Ok(Registered::Done(None))));
        rig.tell(Event::Created(Ok(())));
        let incarnation = rig.incarnation();
        rig.tell(Event::ConfigFetched { incarnation });
        assert_eq!(rig.slot.deadline(), Some(rig.now + BOOT));
        assert_eq!(rig.tick(), Some(Effect::FindRunner { runner_name: "runner-1".into() }));
        let effect = rig.tell(Event::Found(Ok(None)));
        assert_eq!(rig.finish(effect, Removal::NotThere), ["vm"]);
        assert_eq!((rig.slot.view().failures, rig.slot.view().jobs_completed), (1, 0));
    }

    #[test]
    fn an_adopted_job_runs_on_and_an_adopted_idle_vm_waits_on() {
        let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        let made = Made { vm, runner_name: "runner-1".into(), runner_id: Some(9) };
        for (busy, phase) in [(true, Phase::Running), (false, Phase::Ready)] {
            let rules = Rules { boot_timeout: BOOT, job_timeout: JOB, jit: true };
            let mut slot = Slot::new(1, "runner-1".into(), rules, 1);
            let assignment = Assignment { adopt: Some((made.clone(), busy)), leftovers: vec![] };
            assert_eq!(slot.step(Event::Reconciled(assignment), 5), None);
            assert_eq!(slot.view().phase, phase);
            assert!(slot.step(Event::JobCompleted(notice(9, 1)), 6).is_some());
        }
    }

    #[test]
    fn leftovers_are_gone_before_anything_is_created() {
        let rules = Rules { boot_timeout: BOOT, job_timeout: JOB, jit: true };
        let mut rig = Rig { slot: Slot::new(1, "runner-1".into(), rules, 1), now: 0 };
        let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        let runner = Some((Some(9), "runner-1".into()));
        let leftovers = vec![Leftover { vm: vm.clone(), runner, on: true }];
        let effect = rig.tell(Event::Reconciled(Assignment { adopt: None, leftovers }));
        assert_eq!(rig.tell(Event::Fill), None);
        assert_eq!(rig.finish(effect, Removal::Removed), ["runner", "vm"]);
        assert_eq!(rig.phase(), Phase::Empty);
        assert!(matches!(rig.tell(Event::Fill), Some(Effect::Register { .. })));
    }

    #[test]
    fn a_leftover_that_turns_out_busy_is_adopted() {
        let rules = Rules { boot_timeout: BOOT, job_timeout: JOB, jit: true };
        let mut rig = Rig { slot: Slot::retired(5, rules, 1), now: 0 };
        let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        let leftovers = vec![Leftover { vm, runner: Some((Some(9), "runner-1".into())), on: true }];
        rig.tell(Event::Reconciled(Assignment { adopt: None, leftovers }));
        rig.tell(Event::RunnerRemoved(Ok(Removal::Busy)));
        assert_eq!(rig.phase(), Phase::Running);
        let effect = rig.tell(Event::JobCompleted(notice(9, 1)));
        rig.finish(effect, Removal::NotThere);
        assert_eq!(rig.phase(), Phase::Stopped);
    }

    #[test]
    fn with_registration_tokens_a_webhooks_name_is_only_a_hint_that_github_must_confirm() {
        let mut rig = Rig::new(false);
        assert_eq!(rig.tell(Event::Fill), Some(Effect::FindRunner { runner_name: "runner-1".into() }));
        assert_eq!(
            rig.tell(Event::Found(Ok(None))),
            Some(Effect::Register { runner_name: "runner-1".into() })
        );
        rig.tell(Event::Registered(Ok(Registered::Done(None))));
        rig.tell(Event::Created(Ok(())));
        let incarnation = rig.incarnation();
        rig.tell(Event::ConfigFetched { incarnation });

        // A late delivery about an earlier runner of the same name.
        assert!(matches!(rig.tell(Event::JobCompleted(notice(3, 99))), Some(Effect::FindRunner { .. })));
        assert_eq!(rig.tell(Event::Found(Ok(Some(Found { runner_id: 4, stale: false })))), None);
        assert_eq!(rig.phase(), Phase::Ready);

        assert!(matches!(rig.tell(Event::JobInProgress(notice(4, 100))), Some(Effect::FindRunner { .. })));
        assert_eq!(rig.tell(Event::Found(Ok(Some(Found { runner_id: 4, stale: false })))), None);
        assert_eq!(rig.phase(), Phase::Running);
        assert!(matches!(rig.tell(Event::JobCompleted(notice(4, 100))), Some(Effect::DestroyVm(_))));
    }
}

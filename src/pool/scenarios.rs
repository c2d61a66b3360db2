//! The pool's promises, each as one scenario over the state and the monitor,
//! in a world that does at once what is asked of it.

use super::health::{PATIENCE, Trouble};
use super::monitor::{Answer, Ask, Monitor};
use super::operator::{NotRecycled, Recycled};
use super::slot::evidence::LEASE;
use super::slot::types::{Action, Event, Findings, Job, JobEvent, News, Phase, RetireReason, Stop};
use super::state::{Outcome, PoolState};
use super::tests::{notes, rules, vm};
use super::{Millis, Refusal, Rules};
use crate::github::{Error, QueuedJob, Registration, Removal, Runner};
use crate::hypervisor::{self, GuestWord, Heartbeat, Inventory, Notes, Power, Vm, VmId, VmWrite};
use crate::secret::Secret;
use std::time::Duration;

const MINUTE: Millis = 60_000;

/// A host and a GitHub that never fail unless told, and a pool between them.
struct World {
    state: PoolState,
    monitor: Monitor,
    now: Millis,
    vms: Vec<Vm>,
    made_at: Vec<(VmId, Millis)>,
    runners: Vec<Runner>,
    fingerprint: String,
    free_bytes: u64,
    github_error: Option<Error>,
    /// Whether guests speak by key-values.
    heard: bool,
    /// How many more times the JIT configuration cannot be removed.
    failing_removals: u32,
    removed: Vec<u64>,
    /// The VMs that were looked at before their end.
    examined: Vec<VmId>,
    kept: Option<VmId>,
    lookups: usize,
    queued: Vec<QueuedJob>,
    /// Disks without a VM that cannot be deleted.
    locked_disks: Vec<VmId>,
    pending: Vec<(usize, Action)>,
    /// Creations that are under way, when they take time.
    slow_creates: bool,
    creating: Vec<(usize, Action)>,
    news: Vec<News>,
    most_vms: usize,
    last_id: u64,
}

impl World {
    fn new(rules: Rules) -> World {
        World {
            state: PoolState::new(rules, 1, 0),
            monitor: Monitor::new(1),
            now: 0,
            vms: Vec::new(),
            made_at: Vec::new(),
            runners: Vec::new(),
            fingerprint: "f".into(),
            free_bytes: 100 << 30,
            github_error: None,
            heard: true,
            failing_removals: 0,
            removed: Vec::new(),
            examined: Vec::new(),
            kept: None,
            lookups: 0,
            queued: Vec::new(),
            locked_disks: Vec::new(),
            pending: Vec::new(),
            slow_creates: false,
            creating: Vec::new(),
            news: Vec::new(),
            most_vms: 0,
            last_id: 100,
        }
    }

    /// A pool that has looked, made its VMs, and has them ready.
    fn ready(rules: Rules) -> World {
        let mut world = World::new(rules);
        world.round();
        world.boot_all();
        world.round();
        world
    }

    fn fact<T>(&mut self, fact: impl FnOnce(&mut PoolState) -> T) -> T {
        let (answer, out) = self.state.apply(self.now, fact);
        self.follow(out);
        answer
    }

    fn follow(&mut self, out: Outcome) {
        self.news.extend(out.news.into_iter().map(|(_, happened)| happened));
        self.pending.extend(out.actions);
        while !self.pending.is_empty() {
            let (slot, action) = self.pending.remove(0);
            if self.slow_creates && matches!(action, Action::CreateVm { .. }) {
                self.creating.push((slot, action));
                continue;
            }
            let answer = self.perform(action);
            let ((), out) = self.state.apply(self.now, |state| state.tell(slot, answer));
            self.news.extend(out.news.into_iter().map(|(_, happened)| happened));
            self.pending.extend(out.actions);
        }
    }

    fn finish_creates(&mut self) {
        for (slot, action) in std::mem::take(&mut self.creating) {
            let answer = self.perform(action);
            self.fact(|state| state.tell(slot, answer));
        }
    }

    fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Register { runner_name } => {
                self.last_id += 1;
                let id = self.last_id;
                let labels = Vec::new();
                self.runners.push(Runner { id, name: runner_name, online: false, busy: false, labels });
                Event::Registered(Ok(Registration { runner_id: Some(id), credential: Secret::new("jit") }))
            }
            Action::RemoveRunner { instance, .. } => {
                let found = self.runners.iter().find(|r| r.name == instance.runner_name).map(|r| r.id);
                let id = instance.runner_id.or(found);
                Event::RunnerRemoved(Ok(id.map_or(Removal::NotThere, |id| self.remove(id))))
            }
            Action::CreateVm { instance, .. } => {
                let notes = Notes {
                    pool: "pool".into(),
                    slot: 1,
                    incarnation: instance.vm.incarnation.clone(),
                    scope: instance.scope,
                    runner_name: instance.runner_name,
                    runner_id: instance.runner_id,
                    fingerprint: Some(self.fingerprint.clone()),
                    created: 0,
                    job_started: None,
                };
                self.made_at.push((instance.vm.clone(), self.now));
                self.vms.push(Vm {
                    id: instance.vm,
                    power: Power::On,
                    uptime: Duration::ZERO,
                    heartbeat: Heartbeat::Unknown,
                    guest: None,
                    holds_jit_config: Some(true),
                    notes: Some(notes),
                });
                self.most_vms = self.most_vms.max(self.vms.len());
                Event::Created(Ok(()))
            }
            Action::KeepVm(id) if self.locked_disks.contains(&id) => {
                Event::Destroyed(Err(hypervisor::Error("it cannot be renamed".into())))
            }
            Action::KeepVm(id) => {
                self.vms.retain(|vm| vm.id != id);
                self.kept = Some(id);
                Event::Destroyed(Ok(()))
            }
            Action::ExamineVm(id) => {
                self.examined.push(id);
                Event::Examined(Findings { uptime: Some(600_000), ..Findings::default() })
            }
            Action::DestroyVm(id) if self.locked_disks.contains(&id) => {
                Event::Destroyed(Err(hypervisor::Error("the disk is in use".into())))
            }
            Action::DestroyVm(id) => {
                self.vms.retain(|vm| vm.id != id);
                Event::Destroyed(Ok(()))
            }
        }
    }

    fn remove(&mut self, id: u64) -> Removal {
        self.removed.push(id);
        match self.runners.iter().position(|runner| runner.id == id) {
            Some(at) if self.runners[at].busy => Removal::Busy,
            Some(at) => {
                self.runners.remove(at);
                Removal::Removed
            }
            None => Removal::NotThere,
        }
    }

    /// Time passes, with a round of the monitor every half minute.
    fn pass(&mut self, time: Millis) {
        let end = self.now + time;
        while self.now + 30_000 <= end {
            self.now += 30_000;
            self.ticks();
            self.round();
        }
        self.now = end;
        self.ticks();
    }

    fn ticks(&mut self) {
        for slot in 0..self.state.slots().count() {
            if self.state.deadline(slot, self.now).is_some_and(|at| at <= self.now) {
                self.fact(|state| state.tell(slot, Event::Tick));
            }
        }
    }

    /// One round of the monitor, from pause to pause.
    fn round(&mut self) {
        let mut answer = Answer::Paused;
        loop {
            let (ask, out) = self.state.apply(self.now, |state| self.monitor.next(answer, state));
            self.follow(out);
            answer = match ask {
                Ask::Vms(writes) => {
                    writes.iter().for_each(|write| self.write(write));
                    Answer::Vms(Ok((self.inventory(), Some(self.fingerprint.clone()))))
                }
                Ask::Runners => match &self.github_error {
                    Some(error) => Answer::Runners(Err(error.clone())),
                    None => Answer::Runners(Ok(self.runners.clone())),
                },
                Ask::Runner(asked) => {
                    self.lookups += 1;
                    Answer::Runner(Ok(self.runners.iter().find(|r| r.id == asked.id).cloned()))
                }
                Ask::Remove(id) => Answer::Removed(Ok(self.remove(id))),
                Ask::QueuedJobs => Answer::QueuedJobs(Ok(self.queued.clone())),
                Ask::NewestRunner => Answer::NewestRunner(Ok(None), 0),
                Ask::Pause(_) | Ask::End => return,
            };
        }
    }

    fn inventory(&mut self) -> Inventory {
        for vm in &mut self.vms {
            if let Some((_, at)) = self.made_at.iter().find(|(id, _)| *id == vm.id) {
                vm.uptime = Duration::from_millis((self.now - at) as u64);
            }
        }
        let disks = self.vms.iter().map(|vm| vm.id.clone()).chain(self.locked_disks.clone()).collect();
        Inventory { vms: self.vms.clone(), disks, free_bytes: Some(self.free_bytes), ..Inventory::default() }
    }

    fn write(&mut self, write: &VmWrite) {
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.id == write.vm) else { return };
        let Some(notes) = &mut vm.notes else { return };
        notes.job_started = write.job_started.or(notes.job_started);
        if write.forget_jit_config {
            vm.holds_jit_config = Some(self.failing_removals > 0);
            self.failing_removals = self.failing_removals.saturating_sub(1);
        }
    }

    // --- guests ---

    /// Every guest that boots gets its configuration, and its runner comes online.
    fn boot_all(&mut self) {
        for vm in self.vms.clone() {
            if self.config(&vm.id).is_ok() {
                let heard = self.heard;
                self.says_worker(&vm.id, false);
                self.vm(&vm.id).heartbeat = if heard { Heartbeat::Ok } else { Heartbeat::Unknown };
                self.runner_of(&vm.id).online = true;
            }
        }
    }

    fn config(&mut self, vm: &VmId) -> Result<super::RunnerConfig, Refusal> {
        let is_proven = |its: &VmId| its == vm;
        self.fact(|state| state.runner_config(&vm.name, is_proven))
    }

    fn vm(&mut self, id: &VmId) -> &mut Vm {
        self.vms.iter_mut().find(|vm| vm.id == *id).unwrap()
    }

    fn says_worker(&mut self, id: &VmId, worker: bool) {
        if self.heard {
            self.vm(id).guest = Some(GuestWord { stage: "listening".into(), last_error: None, worker });
        }
    }

    fn runner_of(&mut self, id: &VmId) -> &mut Runner {
        let name = self.vm(id).notes.as_ref().unwrap().runner_name.clone();
        self.runners.iter_mut().find(|runner| runner.name == name).unwrap()
    }

    fn job_starts(&mut self, id: &VmId) {
        self.says_worker(id, true);
        self.runner_of(id).busy = true;
        let is_proven = |its: &VmId| its == id;
        self.fact(|state| state.guest_tells(&id.name, is_proven, Event::JobStarted(Job::default()))).unwrap();
    }

    /// The guest reports the end of its runner, whose registration is gone by then.
    fn job_ends(&mut self, id: &VmId) {
        let name = self.vm(id).notes.as_ref().unwrap().runner_name.clone();
        self.runners.retain(|runner| runner.name != name);
        self.report_end(id);
    }

    fn report_end(&mut self, id: &VmId) {
        self.report_exit_code(id, 0);
    }

    fn report_exit_code(&mut self, id: &VmId, exit_code: i64) {
        let is_proven = |its: &VmId| its == id;
        let ended = Event::RunnerEnded { exit_code: Some(exit_code) };
        self.fact(|state| state.guest_tells(&id.name, is_proven, ended)).unwrap();
    }

    fn queue(&mut self, job: u64) -> bool {
        self.fact(|state| state.job_queued(job, &["self-hosted".into()]))
    }

    fn hook(&mut self, job: u64, runner: Option<(u64, String)>, completed: bool) {
        let (runner_id, runner_name) = runner.map_or((None, None), |(id, name)| (Some(id), Some(name)));
        let conclusion = completed.then_some("failure");
        let job = Job { id: Some(job), conclusion, ..Job::default() };
        let event = JobEvent { job, runner_id, runner_name };
        self.fact(|state| {
            if completed {
                state.job_completed(event);
            } else {
                state.job_in_progress(event);
            }
        });
    }

    // --- what there is to see ---

    fn count(&self, phase: Phase) -> usize {
        self.state.slots().filter(|slot| slot.phase() == phase).count()
    }

    fn phase(&self, number: usize) -> Phase {
        self.state.slots().nth(number - 1).unwrap().phase()
    }

    fn ids(&self) -> Vec<VmId> {
        self.vms.iter().map(|vm| vm.id.clone()).collect()
    }

    fn troubles(&mut self) -> Vec<Trouble> {
        self.state.snapshot(self.now).health.troubles
    }
}

// --- POOL_WARM holds ---

#[test]
fn twelve_jobs_one_after_the_other_never_make_a_third_vm() {
    let mut world = World::ready(rules(6, 1));
    for job in 1..=12 {
        assert!(world.queue(job));
        let idle = world.state.slots().find(|slot| slot.phase() == Phase::Ready).unwrap();
        let id = idle.instance().unwrap().vm.clone();
        world.hook(job, None, false);
        world.job_starts(&id);
        world.boot_all();
        world.pass(5 * MINUTE);
        world.job_ends(&id);
        world.boot_all();
        world.pass(MINUTE);
    }
    assert_eq!((world.most_vms, world.count(Phase::Ready)), (2, 1));
}

#[test]
fn jobs_that_are_queued_and_canceled_leave_no_vm() {
    let mut world = World::ready(rules(4, 0));
    (1..=4).for_each(|job| assert!(world.queue(job)));
    world.boot_all();
    assert_eq!(world.count(Phase::Ready), 4);
    (1..=4).for_each(|job| world.hook(job, None, true));
    world.pass(11 * MINUTE);
    assert!(world.state.slots().all(|slot| slot.retiring() == Some(RetireReason::Surplus)));
    world.ids().iter().for_each(|id| world.report_end(id));
    world.pass(MINUTE);
    assert!(world.vms.is_empty() && world.runners.is_empty());
}

#[test]
fn a_restart_in_repository_mode_forgets_no_queued_job() {
    let mut rules = rules(2, 0);
    rules.scope.repository = Some("app".into());
    let mut world = World::new(rules);
    world.queued = vec![
        QueuedJob { id: 1, labels: vec!["self-hosted".into()] },
        QueuedJob { id: 2, labels: vec!["gpu".into()] },
    ];
    world.round();
    assert_eq!(world.vms.len(), 1, "for the job whose labels are served");
}

#[test]
fn a_retire_that_was_not_told_yet_is_dropped_when_a_job_is_queued() {
    let mut world = World::ready(rules(2, 0));
    world.queue(1);
    world.boot_all();
    world.hook(1, None, true);
    // The surplus is seen in this round, and told in the next.
    world.pass(10 * MINUTE + 30_000);
    assert_eq!(world.count(Phase::Ready), 1);
    assert!(world.state.slots().any(|slot| slot.retiring().is_some()));
    world.queue(2);
    assert!(world.state.slots().all(|slot| slot.retiring().is_none()));
}

#[test]
fn after_a_new_template_idle_vms_are_replaced_one_at_a_time() {
    let mut world = World::ready(rules(3, 3));
    world.fingerprint = "g".into();
    for replaced in 0..3 {
        world.pass(2 * MINUTE);
        let retiring: Vec<VmId> = world
            .state
            .slots()
            .filter(|slot| slot.retiring() == Some(RetireReason::Outdated))
            .filter_map(|slot| Some(slot.instance()?.vm.clone()))
            .collect();
        assert_eq!(retiring.len(), 1, "after {replaced}");
        world.report_end(&retiring[0]);
        world.pass(2 * MINUTE);
        assert_eq!(world.count(Phase::Ready), 2, "the next waits until the replacement is ready");
        assert!(world.state.slots().all(|slot| slot.retiring().is_none()));
        world.boot_all();
    }
    world.pass(5 * MINUTE);
    assert!(world.state.slots().all(|slot| slot.phase() == Phase::Ready && slot.retiring().is_none()));
}

#[test]
fn an_idle_vm_is_replaced_by_a_fresh_one_after_a_day() {
    let mut world = World::ready(rules(1, 1));
    world.pass(24 * 60 * MINUTE + MINUTE);
    assert_eq!(world.state.slots().next().unwrap().retiring(), Some(RetireReason::Aged));
}

// --- retire ---

#[test]
fn a_guest_that_does_not_retire_is_deregistered_on_the_word_of_a_fresh_list() {
    let mut world = World::ready(rules(1, 0));
    world.queue(1);
    world.boot_all();
    world.hook(1, None, true);
    world.pass(15 * MINUTE);
    assert!(world.removed.is_empty(), "it has five minutes to obey");
    world.pass(2 * MINUTE);
    assert!(!world.removed.is_empty());
    // It ends like any other: GitHub does not know it, and a later list names no Worker.
    world.pass(2 * MINUTE);
    assert!(world.vms.is_empty());
}

#[test]
fn a_guest_that_names_a_worker_is_not_deregistered() {
    let mut world = World::ready(rules(1, 0));
    world.queue(1);
    world.boot_all();
    world.hook(1, None, true);
    world.pass(12 * MINUTE);
    let id = world.ids()[0].clone();
    world.says_worker(&id, true);
    world.pass(60 * MINUTE);
    assert!(world.removed.is_empty());
    assert_eq!(world.phase(1), Phase::Running);
}

#[test]
fn a_mute_guest_cannot_be_told_and_is_deregistered_when_github_calls_it_idle() {
    let mut world = World::new(rules(1, 1));
    world.heard = false;
    world.round();
    world.boot_all();
    world.round();
    world.pass(MINUTE);
    world.fact(|state| state.stop(Stop::Keep));
    world.pass(MINUTE);
    assert_eq!(world.removed.len(), 1);
}

// --- a running job is sacred ---

#[test]
fn a_job_outlives_whatever_github_says_while_its_worker_is_named() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    world.job_starts(&id);
    let runner = world.runner_of(&id).clone();
    world.hook(7, Some((runner.id, runner.name)), true);
    world.runners.clear();
    world.pass(3 * 60 * MINUTE);
    assert_eq!((world.phase(1), world.ids()), (Phase::Running, vec![id]));
}

#[test]
fn a_job_that_is_over_ends_its_vm_even_if_the_guests_report_is_lost() {
    let mut world = World::ready(rules(1, 0));
    world.queue(1);
    world.boot_all();
    let id = world.ids()[0].clone();
    world.job_starts(&id);
    world.hook(1, None, false);
    world.pass(30 * MINUTE);
    world.runners.clear();
    world.says_worker(&id, false);
    world.pass(2 * MINUTE);
    assert!(world.vms.is_empty());
}

#[test]
fn a_jobs_time_runs_on_the_vms_clock_and_over_a_restart() {
    let mut world = World::new(rules(1, 1));
    let mut running = vm(1, Power::On);
    running.notes = Some(Notes { job_started: Some(3600), ..notes(1) });
    running.uptime = Duration::from_secs(3600 + 6 * 3600 - 60);
    running.heartbeat = Heartbeat::Ok;
    running.guest = Some(GuestWord { stage: "running".into(), last_error: None, worker: true });
    world.made_at.push((running.id.clone(), -(running.uptime.as_millis() as Millis)));
    world.vms.push(running);
    world.round();
    assert_eq!(world.phase(1), Phase::Running);
    world.pass(MINUTE / 2);
    assert_eq!(world.phase(1), Phase::Running);
    world.pass(MINUTE);
    assert!(world.vms.iter().all(|vm| vm.id.incarnation != notes(1).incarnation));
}

#[test]
fn a_jump_of_the_pools_clock_does_not_shorten_a_job() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    world.job_starts(&id);
    world.round();
    // Seven hours in which the host was suspended: the VM's uptime has not moved.
    world.now += 7 * 60 * MINUTE;
    world.made_at.iter_mut().for_each(|(_, at)| *at += 7 * 60 * MINUTE);
    world.ticks();
    world.round();
    assert_eq!(world.phase(1), Phase::Running);
}

#[test]
fn the_jit_configuration_is_removed_once_the_guest_was_answered_however_often_that_fails() {
    let mut world = World::new(rules(1, 1));
    world.failing_removals = 2;
    world.pass(MINUTE);
    assert_eq!((world.failing_removals, world.vms[0].holds_jit_config), (2, Some(true)));
    world.boot_all();
    for left in [Some(true), Some(true), Some(false)] {
        world.pass(30_000);
        assert_eq!(world.vms[0].holds_jit_config, left);
    }
    assert_eq!(world.state.take_writes(), []);
}

#[test]
fn the_first_sign_of_a_job_is_written_into_the_vms_notes() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    world.pass(10 * MINUTE);
    world.job_starts(&id);
    world.round();
    let noted = world.vm(&id).notes.as_ref().unwrap().job_started;
    assert_eq!(noted, Some(600));
}

#[test]
fn a_job_that_was_canceled_before_the_runner_took_it_leaves_the_vm_ready() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    let runner = world.runner_of(&id).clone();
    world.hook(7, Some((runner.id, runner.name)), false);
    assert_eq!(world.phase(1), Phase::Running);
    world.pass(3 * MINUTE);
    assert_eq!((world.phase(1), world.ids()), (Phase::Ready, vec![id.clone()]));
    assert_eq!(world.config(&id).unwrap_err(), Refusal::Answered, "a job was on it");
}

#[test]
fn a_runner_that_was_unknown_before_its_canceled_job_is_not_taken_for_dead() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    let runner = world.runner_of(&id).clone();
    // GitHub did not know it yet in these rounds, as with a runner that registers itself.
    world.runners.clear();
    world.pass(MINUTE);
    world.runners.push(runner.clone());
    world.hook(7, Some((runner.id, runner.name)), true);
    world.pass(MINUTE);
    assert_eq!(world.ids(), [id]);
}

#[test]
fn a_dead_guest_does_not_hold_its_slot_longer_than_githubs_lease() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    world.job_starts(&id);
    world.pass(5 * MINUTE);
    world.vm(&id).heartbeat = Heartbeat::Lost;
    (world.runner_of(&id).online, world.runner_of(&id).busy) = (false, false);
    world.pass(LEASE - 2 * MINUTE);
    assert_eq!(world.phase(1), Phase::Running);
    world.pass(4 * MINUTE);
    assert!(!world.ids().contains(&id));
}

// --- what is not the pool's ---

#[test]
fn after_a_move_to_another_scope_a_runner_with_the_same_id_is_somebody_elses() {
    let mut rules = rules(1, 1);
    rules.scope.owner = "acme".into();
    let mut world = World::new(rules);
    let mut old = vm(1, Power::On);
    old.guest = Some(GuestWord { stage: "running".into(), last_error: None, worker: true });
    old.heartbeat = Heartbeat::Ok;
    world.vms.push(old);
    // In the new scope the old VM's runner id is that of a busy, then an offline stranger.
    let stranger =
        Runner { id: 1, name: "prod-linux-1".into(), online: true, busy: true, labels: Vec::new() };
    world.runners.push(stranger);
    world.round();
    world.pass(60 * MINUTE);
    (world.runners[0].online, world.runners[0].busy) = (false, false);
    world.pass(60 * MINUTE);
    assert!(world.removed.is_empty() && world.phase(1) == Phase::Running);
}

#[test]
fn only_registrations_with_the_pools_tag_are_removed_and_only_after_boot_timeout() {
    let mut world = World::ready(rules(1, 0));
    let offline =
        |id, name: &str| Runner { id, name: name.into(), online: false, busy: false, labels: Vec::new() };
    world.runners.push(offline(1, "runner-1-7a9e000100000001"));
    world.runners.push(offline(2, "runner-1-7a9e000200000001"));
    world.runners.push(offline(3, "runner-1"));
    world.pass(9 * MINUTE);
    assert!(world.removed.is_empty());
    world.pass(2 * MINUTE);
    assert_eq!(world.removed, [1]);
}

#[test]
fn a_runner_that_somebody_removes_is_a_failure_with_a_back_off() {
    let mut world = World::ready(rules(1, 1));
    for failures in 1..=3 {
        let id = world.ids()[0].clone();
        world.runners.clear();
        world.report_end(&id);
        assert_eq!(world.state.slots().next().unwrap().failures, failures);
        world.pass(MINUTE);
        world.boot_all();
    }
    assert_eq!(world.state.snapshot(world.now).jobs_completed(), 0);
}

// --- what is remembered ---

#[test]
fn a_job_is_remembered_with_its_wait_its_time_and_githubs_conclusion_in_whatever_order_that_comes() {
    for told_late in [false, true] {
        let mut world = World::ready(rules(1, 1));
        let vm = world.ids()[0].clone();
        let runner = world.runner_of(&vm);
        let runner = Some((runner.id, runner.name.clone()));
        let queued_at = world.now;
        world.queue(7);
        world.pass(2 * MINUTE);
        world.job_starts(&vm);
        world.hook(7, runner.clone(), false);
        world.pass(5 * MINUTE);
        if told_late {
            world.report_end(&vm);
            world.hook(7, runner, true);
        } else {
            world.hook(7, runner, true);
            world.report_end(&vm);
        }
        let history = &world.state.history;
        let job = history.jobs().next().unwrap();
        assert_eq!((job.slot, &job.vm, job.outcome), (1, &vm, "ended"), "{told_late}");
        assert_eq!((job.job.id, job.job.conclusion), (Some(7), Some("failure")), "{told_late}");
        assert_eq!(job.job.queued_at, Some(queued_at));
        assert_eq!((job.started - queued_at, job.ended - queued_at), (2 * MINUTE, 7 * MINUTE));
        assert_eq!((history.tally.queue.count(), history.tally.queue.sum()), (1, 2 * MINUTE));
        assert_eq!((history.tally.job.count(), history.tally.job.sum()), (1, 5 * MINUTE));
        assert_eq!(history.tally.jobs_concluded["failure"], 1, "{told_late}");
    }
}

// --- why a runner ended ---

/// A pool of one whose idle runner has just ended with this exit code, and the
/// VM and registration that it had.
fn ended_with(exit_code: i64) -> (World, VmId, u64) {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    let runner = world.runner_of(&id).id;
    world.report_exit_code(&id, exit_code);
    (world, id, runner)
}

#[test]
fn a_runner_that_github_did_not_let_in_is_registered_anew_with_a_new_vm() {
    let (mut world, vm, runner) = ended_with(1);
    assert!(world.removed.contains(&runner));
    world.pass(MINUTE);
    let next = world.ids()[0].clone();
    assert_ne!(next, vm);
    assert_ne!(world.runner_of(&next).id, runner);
}

#[test]
fn an_outdated_runner_is_warned_of_and_tried_again_every_few_minutes() {
    let (mut world, _, _) = ended_with(7);
    let reason = world.state.snapshot(world.now).slots[0].reason.clone().unwrap();
    assert!(reason.contains("exit code 7 (GitHub no longer accepts its version"), "{reason}");
    assert!(world.state.image.refused);
    world.pass(4 * MINUTE);
    assert_eq!(world.ids(), []);
    world.pass(3 * MINUTE);
    let next = world.ids()[0].clone();
    // A new image: its runner is let in.
    world.boot_all();
    world.job_starts(&next);
    assert!(!world.state.image.refused);
}

// --- care for the host ---

#[test]
fn no_vm_is_made_on_a_full_host_and_it_goes_on_when_there_is_room() {
    let mut world = World::new(rules(2, 2));
    world.free_bytes = 5 << 30;
    world.round();
    world.pass(MINUTE);
    assert!(world.vms.is_empty());
    assert!(world.troubles().contains(&Trouble::HostFull));
    world.free_bytes = 50 << 30;
    world.pass(MINUTE);
    assert_eq!(world.vms.len(), 2);
}

#[test]
fn a_leftover_disk_that_cannot_be_deleted_does_not_hold_its_slot() {
    let mut world = World::new(rules(1, 1));
    world.locked_disks.push(vm(1, Power::Off).id);
    world.round();
    world.boot_all();
    world.pass(5 * MINUTE);
    assert_eq!(world.count(Phase::Ready), 1);
}

#[test]
fn creations_take_turns() {
    let mut rules = rules(5, 5);
    rules.pool.max_concurrent_creates = 2;
    let mut world = World::new(rules);
    world.slow_creates = true;
    world.round();
    for made in [0, 2, 4] {
        assert_eq!(world.vms.len(), made);
        assert_eq!(world.count(Phase::Creating), (5 - made).min(2));
        world.finish_creates();
    }
    assert_eq!(world.vms.len(), 5);
}

#[test]
fn a_stop_leaves_a_slot_that_waits_for_its_turn_without_a_registration() {
    let mut rules = rules(3, 3);
    rules.pool.max_concurrent_creates = 1;
    let mut world = World::new(rules);
    world.slow_creates = true;
    world.round();
    world.fact(|state| state.stop(Stop::Keep));
    assert_eq!(world.runners.len(), 1, "that of the one whose turn it was");
    assert_eq!(world.count(Phase::Stopped), 2);
}

// --- the host shuts down ---

#[test]
fn when_the_host_shuts_down_idle_runners_are_deregistered_lost_jobs_are_named_and_no_vm_is_touched() {
    let mut rules = rules(4, 3);
    rules.pool.max_concurrent_creates = 3;
    let mut world = World::ready(rules);
    let ids = world.ids();
    world.slow_creates = true;
    world.job_starts(&ids[0]);
    world.pass(MINUTE);
    assert_eq!(world.count(Phase::Creating), 1);
    // GitHub has given it a job of which the pool has not heard yet.
    world.runner_of(&ids[1]).busy = true;

    world.fact(|state| state.stop(Stop::HostShutdown));
    let next = world.fact(|state| Monitor::new(1).next(Answer::Paused, state));
    assert_eq!(next, Ask::End, "Hyper-V is not asked for a list");
    assert_eq!(world.count(Phase::Stopped), 3);
    // The creation that was under way ends as it may.
    world.finish_creates();
    assert!(world.state.has_stopped());

    assert_eq!((world.ids().len(), &world.ids()[..3]), (4, &ids[..]), "the VMs are left as they are");
    let mut left: Vec<VmId> = Vec::new();
    for vm in world.vms.clone() {
        let name = vm.notes.unwrap().runner_name;
        left.extend(world.runners.iter().any(|runner| runner.name == name).then_some(vm.id));
    }
    assert_eq!(left, ids[..2], "only runners with a job are still registered");
    let lost: Vec<&VmId> = world
        .news
        .iter()
        .filter_map(|news| if let News::JobLost(vm, _) = news { Some(vm) } else { None })
        .collect();
    assert_eq!(lost, [&ids[0], &ids[1]]);
}

#[test]
fn when_the_host_shuts_down_a_vm_that_is_being_destroyed_is_left_to_the_next_start() {
    let mut world = World::ready(rules(1, 1));
    let id = world.ids()[0].clone();
    world.locked_disks = vec![id.clone()];
    world.report_end(&id);
    assert_eq!(world.phase(1), Phase::Destroying);
    world.fact(|state| state.stop(Stop::HostShutdown));
    assert_eq!((world.phase(1), world.ids(), world.runners.len()), (Phase::Stopped, vec![id], 0));
}

// --- the operator ---

/// Every guest that was asked to retire does so.
fn retire_all(world: &mut World) -> usize {
    let told = |state: &PoolState, id: &VmId| {
        state
            .slots()
            .any(|slot| slot.retiring().is_some() && slot.instance().is_some_and(|its| its.vm == *id))
    };
    let obey: Vec<VmId> = world.ids().into_iter().filter(|id| told(&world.state, id)).collect();
    world.round();
    obey.iter().for_each(|id| world.report_end(id));
    obey.len()
}

#[test]
fn a_drain_retires_idle_vms_makes_none_and_lets_jobs_end() {
    let mut world = World::ready(rules(3, 3));
    let ids = world.ids();
    world.job_starts(&ids[0]);
    world.fact(PoolState::drain);
    assert_eq!(world.troubles(), [Trouble::Draining]);
    // A job that waits now is another pool's: it keeps no VM here.
    world.queue(7);
    assert_eq!(retire_all(&mut world), 2);
    world.pass(30 * MINUTE);
    assert_eq!((world.ids(), world.count(Phase::Running)), (ids[..1].to_vec(), 1));
    world.job_ends(&ids[0]);
    world.pass(30 * MINUTE);
    assert_eq!((world.ids(), world.count(Phase::Empty)), (Vec::new(), 3));
    assert!(world.runners.is_empty());
    assert_eq!(world.troubles(), [Trouble::Draining], "it is no failure that nothing serves");

    world.fact(PoolState::resume);
    world.boot_all();
    world.round();
    assert_eq!(world.count(Phase::Ready), 3);
    assert_eq!(world.troubles(), []);
}

#[test]
fn a_drain_ends_vms_that_boot_or_are_being_made_and_what_else_becomes_ready() {
    let mut world = World::new(rules(2, 2));
    world.slow_creates = true;
    world.round();
    world.fact(PoolState::drain);
    assert_eq!(world.count(Phase::Creating), 2);
    world.finish_creates();
    assert_eq!((world.ids(), world.count(Phase::Empty)), (Vec::new(), 2));
    let ended = world.news.iter().filter(|news| matches!(news, News::Failed { .. })).count();
    assert_eq!(ended, 0, "it is no failure");
}

#[test]
fn a_vm_that_was_not_told_yet_stays_when_the_drain_ends_and_one_that_was_told_is_replaced() {
    let mut world = World::ready(rules(2, 2));
    let ids = world.ids();
    world.fact(PoolState::drain);
    world.fact(PoolState::resume);
    world.pass(10 * MINUTE);
    assert_eq!((world.ids(), world.count(Phase::Ready)), (ids.clone(), 2));

    world.fact(PoolState::drain);
    world.round();
    world.fact(PoolState::resume);
    assert_eq!(retire_all(&mut world), 2);
    world.boot_all();
    world.round();
    assert_eq!(world.count(Phase::Ready), 2);
    assert!(ids.iter().all(|id| !world.ids().contains(id)));
}

#[test]
fn a_stop_ends_a_drained_pool() {
    let mut world = World::ready(rules(1, 1));
    world.fact(PoolState::drain);
    retire_all(&mut world);
    world.fact(|state| state.stop(Stop::Keep));
    assert_eq!(world.troubles(), [Trouble::Stopping]);
    assert!(world.state.has_stopped());
}

#[test]
fn recycling_replaces_idle_vms_one_after_the_other_and_none_with_a_job() {
    let mut world = World::ready(rules(3, 3));
    let old = world.ids();
    world.job_starts(&old[0]);
    let recycled = world.fact(|state| state.recycle(None));
    assert_eq!(recycled, Ok(Recycled { vms: 2, retries: 0 }));
    for replaced in 1..=2 {
        world.round();
        assert_eq!(retire_all(&mut world), 1, "one at a time");
        world.pass(5 * MINUTE);
        let left = old.iter().filter(|id| world.ids().contains(id)).count();
        assert_eq!((left, world.count(Phase::Booting)), (3 - replaced, 1), "the next waits for it");
        world.boot_all();
        world.round();
    }
    world.pass(30 * MINUTE);
    assert_eq!((world.count(Phase::Ready), world.count(Phase::Running)), (2, 1));
    assert!(world.ids().contains(&old[0]));
    assert_eq!(retire_all(&mut world), 0, "those are new");
}

#[test]
fn a_vm_recycled_by_name_does_not_wait_for_others() {
    let mut world = World::ready(rules(3, 3));
    let ids = world.ids();
    world.job_starts(&ids[2]);
    world.report_exit_code(&ids[0], 1);
    world.pass(MINUTE);
    assert_eq!(world.count(Phase::Booting), 1);
    let recycle = |world: &mut World, vm: &str| world.fact(|state| state.recycle(Some(vm)));
    let one = Ok(Recycled { vms: 1, retries: 0 });
    assert_eq!(recycle(&mut world, &ids[1].name), one);
    assert_eq!(retire_all(&mut world), 1);
    // One that boots can have no job, and is not waited for.
    let booting = world.ids().into_iter().find(|id| id.name == ids[0].name).unwrap();
    assert_eq!(recycle(&mut world, &booting.name), one);
    assert!(!world.ids().contains(&booting) && world.ids().iter().any(|id| id.name == booting.name));

    assert_eq!(recycle(&mut world, &ids[2].name), Err(NotRecycled::HasJob));
    assert_eq!(recycle(&mut world, "runner-9"), Err(NotRecycled::NotFound));
    world.fact(PoolState::drain);
    assert_eq!(recycle(&mut world, &ids[2].name), Err(NotRecycled::NoVmsMade));
}

#[test]
fn a_slot_that_fails_tries_again_at_once_when_it_is_recycled() {
    for name in [None, Some("runner-1")] {
        // The next try would be in five minutes.
        let (mut world, _, _) = ended_with(7);
        assert_eq!((world.phase(1), world.ids()), (Phase::Empty, Vec::new()));
        let recycled = world.fact(|state| state.recycle(name));
        assert_eq!(recycled, Ok(Recycled { vms: 0, retries: 1 }));
        assert_eq!((world.phase(1), world.ids().len()), (Phase::Booting, 1));
    }
}

// --- failures ---

#[test]
fn a_vm_that_does_not_boot_is_looked_at_once_before_it_goes_and_its_failure_tells_what_was_seen() {
    let mut world = World::new(rules(1, 1));
    world.pass(MINUTE);
    let id = world.vms[0].id.clone();
    world.locked_disks = vec![id.clone()];
    world.pass(world.state.rules().boot_timeout() + 2 * MINUTE);
    assert_eq!(world.examined, std::slice::from_ref(&id), "once, although its destruction is tried again");
    let failure = world.state.history.failure_of(&id.incarnation).unwrap().clone();
    assert_eq!(failure.findings.uptime, Some(600_000));
    assert_eq!(failure.heard.heartbeat, Some(Heartbeat::Unknown));
}

#[test]
fn a_vm_that_powers_off_while_it_boots_is_not_looked_at_and_its_last_word_is_kept() {
    let mut world = World::new(rules(1, 1));
    world.pass(MINUTE);
    let id = world.vms[0].id.clone();
    let word = GuestWord { stage: "fetching".into(), last_error: Some("no route".into()), worker: false };
    (world.vm(&id).guest, world.vm(&id).heartbeat) = (Some(word.clone()), Heartbeat::Ok);
    world.pass(MINUTE);
    (world.vm(&id).power, world.vm(&id).guest, world.vm(&id).heartbeat) =
        (Power::Off, None, Heartbeat::Unknown);
    world.pass(MINUTE);
    let failure = world.state.history.failure_of(&id.incarnation).unwrap().clone();
    assert_eq!((failure.heard.guest, failure.heard.heartbeat), (Some(word), Some(Heartbeat::Ok)));
    assert!(failure.heard.uptime.is_some_and(|uptime| uptime >= MINUTE), "{:?}", failure.heard.uptime);
    assert_eq!(world.examined, []);
}

#[test]
fn the_screen_of_a_vm_that_may_have_had_a_job_is_never_looked_at() {
    let mut world = World::ready(rules(1, 1));
    let id = world.vms[0].id.clone();
    world.job_starts(&id);
    world.pass(world.state.rules().job_timeout() + 2 * MINUTE);
    assert!(world.state.history.failure_of(&id.incarnation).is_some());
    let idle = world.vms[0].id.clone();
    world.boot_all();
    world.vm(&idle).power = Power::Off;
    world.pass(2 * MINUTE);
    assert!(world.state.history.failure_of(&idle.incarnation).is_some());
    world.fact(|state| state.stop(Stop::Destroy));
    assert_eq!(world.examined, []);
}

fn keeping(size: u32) -> Rules {
    let mut rules = rules(size, size);
    rules.pool.keep_failed = true;
    rules
}

#[test]
fn the_newest_vm_that_failed_is_kept_and_its_slot_goes_on() {
    let mut world = World::new(keeping(1));
    world.pass(MINUTE);
    let first = world.vms[0].id.clone();
    world.pass(world.state.rules().boot_timeout() + MINUTE);
    assert_eq!(world.kept, Some(first.clone()));
    assert_eq!(world.examined, std::slice::from_ref(&first), "it was looked at while it was on");
    world.boot_all();
    let second = world.vms[0].id.clone();
    world.vm(&second).power = Power::Off;
    world.pass(2 * MINUTE);
    assert_eq!(world.kept, Some(second));
    assert_eq!(world.vms.len(), 1, "the slot has a VM of its own");
}

#[test]
fn a_vm_that_cannot_be_kept_is_destroyed() {
    let mut world = World::new(keeping(1));
    world.pass(MINUTE);
    let first = world.vms[0].id.clone();
    world.locked_disks = vec![first.clone()];
    world.pass(world.state.rules().boot_timeout());
    world.locked_disks.clear();
    world.pass(5 * MINUTE);
    assert_eq!(world.kept, None);
    assert!(world.vms.iter().all(|vm| vm.id != first));
    let failure = world.state.history.failures().find(|failure| failure.reason.contains("cannot keep"));
    assert!(failure.is_some_and(|failure| failure.reason.contains("it cannot be renamed")));
}

#[test]
fn a_vm_that_ended_in_order_or_had_a_job_is_not_kept() {
    let mut world = World::ready(keeping(1));
    let id = world.vms[0].id.clone();
    world.job_starts(&id);
    world.job_ends(&id);
    world.boot_all();
    let id = world.vms[0].id.clone();
    world.job_starts(&id);
    world.pass(world.state.rules().job_timeout() + MINUTE);
    assert!(world.state.history.failure_of(&id.incarnation).is_some());
    world.fact(|state| state.stop(Stop::Destroy));
    world.pass(MINUTE);
    assert_eq!(world.kept, None);
}

// --- health ---

#[test]
fn degraded_means_degraded() {
    let mut world = World::ready(rules(1, 1));
    assert!(world.troubles().is_empty());
    world.github_error = Some(Error::Refused("401".into()));
    world.pass(MINUTE);
    assert_eq!(world.troubles(), [Trouble::TokenRefused], "even while a VM is ready");
    world.github_error = Some(Error::Failed("no route".into()));
    world.pass(MINUTE);
    world.pass(PATIENCE);
    assert_eq!(world.troubles(), [Trouble::GitHubLost]);
    world.github_error = None;
    world.pass(MINUTE);
    assert!(world.troubles().is_empty());
    world.fact(|state| state.stop(Stop::Keep));
    assert_eq!(world.troubles(), [Trouble::Stopping]);
}

#[test]
fn a_pool_that_cannot_look_at_its_host_says_so_after_five_minutes() {
    let mut world = World::new(rules(1, 1));
    assert!(world.troubles().is_empty());
    world.now = PATIENCE;
    assert_eq!(world.troubles(), [Trouble::NotRecovered]);
}

// --- a large organization ---

#[test]
fn where_there_are_thousands_of_runners_the_pool_asks_for_its_own() {
    let mut world = World::ready(rules(2, 2));
    let stranger = |id| Runner { id, name: format!("x{id}"), online: true, busy: false, labels: Vec::new() };
    world.runners.extend((10_000..14_000).map(stranger));
    world.pass(MINUTE);
    let before = world.lookups;
    world.pass(5 * MINUTE);
    assert_eq!(world.lookups - before, 2 * 10);
}

//! Every slot's record, and the only way to change one.
//!
//! [`PoolState::apply`] lets a fact take effect at a time. What follows from it
//! is an [`Outcome`]: the actions to perform, each for one slot, and what
//! happened. Whoever holds the state sees each fact take effect at once and
//! whole: what a guest is told and what its slot decides can never differ.

use super::demand::Demand;
use super::health::{Health, Reach, Trouble};
use super::history::History;
use super::image_age::ImageAge;
use super::queue::QueueReport;
use super::slot::types::{Action, Cause, EXIT_OUTDATED, Event, JobEvent, News, OrphanVm, Phase, Stop};
use super::slot::{Context, Slot};
use super::{Millis, Refusal, Rules, RunnerConfig, Snapshot};
use crate::config::Intake;
use crate::hypervisor::VmId;
use crate::pool::back_off::Random;
use std::collections::{BTreeMap, VecDeque};

/// How many of the incarnations made last are remembered.
const REMEMBERED: usize = 1024;

/// What follows from a fact.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What to do, each with the index of the slot whose worker does it.
    pub actions: Vec<(usize, Action)>,
    /// What happened, with the number of the slot where it did.
    pub news: Vec<(Option<u32>, News)>,
    /// The monitor is to look now, and not at its next round.
    pub look_now: bool,
}

/// The pool's knowledge of its slots, and of what is around them.
#[derive(Debug)]
pub struct PoolState {
    pub(super) rules: Rules,
    /// When the present fact takes effect.
    pub(super) now: Millis,
    /// What follows from it.
    pub(super) out: Outcome,
    pub(super) slots: Vec<Slot>,
    pub(super) demand: Demand,
    pub(super) surplus_since: Option<Millis>,
    /// How old the image is that guests run.
    pub image: ImageAge,
    /// Since when each registration without a slot has been offline.
    pub(super) offline_since: BTreeMap<u64, Millis>,
    random: Random,
    started_at: Millis,
    pub(super) recovered: bool,
    stop: Option<Stop>,
    /// An operator wants no VM made.
    pub(super) draining: bool,
    /// What a VM made now would be made of.
    pub(super) fingerprint: Option<String>,
    pub(super) free_bytes: Option<u64>,
    /// Whether the host has room for more VMs.
    pub(super) room: Reach,
    /// Incarnations that a slot of this process had: such a VM without a slot was given up, and is not adopted.
    pub(super) had: VecDeque<String>,
    pub(super) github: Reach,
    pub(super) hypervisor: Reach,
    /// The scale set's queue, where there is one.
    pub(super) queue: QueueReport,
    /// What has happened since the start.
    pub history: History,
}

impl PoolState {
    /// A pool that does not know yet what there is. `seed` feeds jitter and
    /// incarnations, and must differ at every start.
    pub fn new(rules: Rules, seed: u64, now: Millis) -> PoolState {
        let mut state = PoolState {
            rules,
            now,
            out: Outcome::default(),
            slots: Vec::new(),
            demand: Demand::default(),
            surplus_since: None,
            image: ImageAge::default(),
            offline_since: BTreeMap::new(),
            random: Random(seed),
            started_at: now,
            recovered: false,
            stop: None,
            draining: false,
            fingerprint: None,
            free_bytes: None,
            room: Reach::default(),
            had: VecDeque::new(),
            github: Reach::default(),
            hypervisor: Reach::default(),
            queue: QueueReport::default(),
            history: History::default(),
        };
        (0..state.rules.pool.size).for_each(|_| state.add_slot());
        state
    }

    pub(super) fn add_slot(&mut self) {
        let number = self.slots.len() as u32 + 1;
        let name = format!("{}{number}", self.rules.pool.name_prefix);
        let past_size = number > self.rules.pool.size;
        self.slots.push(Slot::new(number, name, past_size, self.random.bits()));
    }

    /// Lets a fact take effect. Answers what the fact answers, and what follows from it.
    pub fn apply<T>(&mut self, now: Millis, fact: impl FnOnce(&mut PoolState) -> T) -> (T, Outcome) {
        self.now = now;
        let answer = fact(self);
        self.settle();
        (answer, std::mem::take(&mut self.out))
    }

    // --- what can be read ---

    /// What the pool goes by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The slots, those past the pool's size last.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// A slot, by its index in [`PoolState::slots`].
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// Whether the pool knows what was there before it.
    pub fn has_recovered(&self) -> bool {
        self.recovered
    }

    /// How many queued jobs the pool knows of.
    pub fn jobs_waiting(&self) -> usize {
        self.demand.waiting()
    }

    /// How the pool is being stopped, if it is.
    pub fn stopping(&self) -> Option<Stop> {
        self.stop
    }

    /// Whether every slot has stopped.
    pub fn has_stopped(&self) -> bool {
        self.slots().all(|slot| slot.phase() == Phase::Stopped)
    }

    /// Whether a list said that free space is below `MIN_FREE_GB`.
    pub fn host_is_full(&self) -> bool {
        self.room.failing.is_some()
    }

    /// When [`Event::Tick`] is due for a slot, if nothing else happens before.
    pub fn deadline(&mut self, slot: usize, now: Millis) -> Option<Millis> {
        self.now = now;
        match self.slots[slot].free_at() {
            None => self.slots[slot].deadline(&self.rules),
            // A free slot in its back-off is waited for while a VM is short.
            Some(at) => (at > now && !self.host_is_full() && self.balance().shortage() > 0).then_some(at),
        }
    }

    /// The pool as it is now.
    pub fn snapshot(&mut self, now: Millis) -> Snapshot {
        self.now = now;
        Snapshot {
            slots: self.slots().map(|slot| slot.snapshot(now)).collect(),
            size: self.rules.pool.size,
            jobs_waiting: self.jobs_waiting(),
            health: Health { troubles: self.troubles() },
            github: self.github.clone(),
            hypervisor: self.hypervisor.clone(),
            queue: (self.rules.intake == Intake::ScaleSet).then(|| self.queue.clone()),
            tally: self.history.tally.clone(),
            free_bytes: self.free_bytes,
            min_free_bytes: self.rules.pool.min_free_bytes,
            now,
        }
    }

    fn troubles(&mut self) -> Vec<Trouble> {
        let serves = self.slots().any(|slot| matches!(slot.phase(), Phase::Ready | Phase::Running));
        let fails = self.slots().any(|slot| slot.failures > 0);
        let wanted = self.recovered && self.balance().wants_vms();
        let late = !self.recovered && self.now - self.started_at >= super::health::PATIENCE;
        [
            (Trouble::Stopping, self.stop.is_some()),
            (Trouble::Draining, self.draining && self.stop.is_none()),
            (Trouble::NotRecovered, late),
            (Trouble::TokenRefused, self.github.refused),
            (Trouble::GitHubLost, self.github.is_lost(self.now) && !self.github.refused),
            (Trouble::QueueRefused, self.queue.reach.refused),
            (Trouble::QueueLost, self.queue.reach.is_lost(self.now) && !self.queue.reach.refused),
            (Trouble::HypervisorLost, self.hypervisor.is_lost(self.now)),
            (Trouble::HostFull, self.host_is_full() && !serves),
            (Trouble::NothingServes, wanted && !serves && (fails || self.host_is_full())),
        ]
        .into_iter()
        .filter_map(|(trouble, holds)| holds.then_some(trouble))
        .collect()
    }

    // --- what guests ask and tell ---

    /// A guest asks for its configuration. `is_proven` says whether the guest
    /// has proven to be this VM.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn runner_config(
        &mut self,
        vm_name: &str,
        is_proven: impl Fn(&VmId) -> bool,
    ) -> Result<RunnerConfig, Refusal> {
        let index = self.authenticate(vm_name, is_proven)?;
        let config = self.slots[index].runner_config(self.rules.jit)?;
        self.tell(index, Event::Answered);
        Ok(config)
    }

    /// A guest says that its runner starts a job ([`Event::JobStarted`]) or has
    /// ended ([`Event::RunnerEnded`]).
    ///
    /// # Errors
    /// When it is not a VM of the pool.
    pub fn guest_tells(
        &mut self,
        vm_name: &str,
        is_proven: impl Fn(&VmId) -> bool,
        event: Event,
    ) -> Result<(), Refusal> {
        let slot = self.authenticate(vm_name, is_proven)?;
        self.tell(slot, event);
        Ok(())
    }

    /// The slot whose VM bears this name and has proven itself. Two VMs can
    /// bear one name for a while, one adopted and one new.
    fn authenticate(&self, vm_name: &str, is_proven: impl Fn(&VmId) -> bool) -> Result<usize, Refusal> {
        let of_slots = || self.slots().enumerate().filter_map(|(i, slot)| Some((i, &slot.instance()?.vm)));
        if !of_slots().any(|(_, vm)| vm.name == vm_name) {
            return Err(if self.recovered { Refusal::NotFound } else { Refusal::NotReady });
        }
        of_slots()
            .find(|(_, vm)| vm.name == vm_name && is_proven(vm))
            .map(|(index, _)| index)
            .ok_or(Refusal::Unauthorized)
    }

    // --- what GitHub's webhooks tell ---

    /// A job waits for a runner with these labels. Answers whether this pool
    /// serves it and had not heard of it before.
    pub fn job_queued(&mut self, job_id: u64, labels: &[String]) -> bool {
        if !self.rules.serves(labels) || !self.demand.queued(job_id, self.now) {
            return false;
        }
        self.keep_idle_vms();
        true
    }

    /// A runner, of this pool or another, has got a job.
    pub fn job_in_progress(&mut self, mut event: JobEvent) {
        if let Some(slot) = self.slot_of_job(&mut event) {
            if let Some(queued_at) = event.job.queued_at {
                self.history.job_left_queue(queued_at, self.now);
            }
            self.tell(slot, Event::JobInProgress(event));
        }
    }

    /// A job has ended, wherever it ran.
    pub fn job_completed(&mut self, mut event: JobEvent) {
        let slot = self.slot_of_job(&mut event);
        self.history.job_completed(&event);
        if let Some(slot) = slot {
            self.tell(slot, Event::JobCompleted(event));
            self.out.look_now = true;
        }
    }

    /// The slot that a webhook is about: by the runner's name, which is
    /// unique, together with its id; or by a job that was seen on it. Wherever
    /// the job is, it waits no more; the event learns since when it did.
    fn slot_of_job(&mut self, event: &mut JobEvent) -> Option<usize> {
        if let Some(queued_at) = event.job.id.and_then(|id| self.demand.over(id)) {
            event.job.queued_at = Some(queued_at);
        }
        self.slots().position(|slot| {
            let by_runner = slot.instance().is_some_and(|instance| {
                event.runner_name.as_ref() == Some(&instance.runner_name)
                    && event.runner_id.is_some()
                    && (instance.runner_id.is_none() || instance.runner_id == event.runner_id)
            });
            by_runner || event.job.id.is_some_and(|id| slot.has_job(id))
        })
    }

    // --- stopping ---

    /// The pool stops. A second call changes nothing.
    pub fn stop(&mut self, stop: Stop) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(stop);
        self.out.look_now = true;
        for slot in 0..self.slots.len() {
            self.tell(slot, Event::Stop(stop));
        }
    }

    // --- small parts ---

    /// Gives a slot what it begins with. A stop that came before holds for it too.
    pub(super) fn begin_slot(&mut self, slot: usize, found: Vec<OrphanVm>) {
        self.tell(slot, Event::Recovered(found));
        if let Some(stop) = self.stop {
            self.tell(slot, Event::Stop(stop));
        }
    }

    /// Tells a slot what came of its action, that its deadline has come
    /// ([`Event::Tick`]), or what else there is to tell.
    pub fn tell(&mut self, slot: usize, event: Event) {
        let mut news = Vec::new();
        let cx = &mut Context { rules: &self.rules, now: self.now, news: &mut news };
        let action = self.slots[slot].step(event, cx);
        self.out.actions.extend(action.map(|action| (slot, action)));
        let number = self.slots[slot].number;
        for happened in news {
            self.history.note(number, &happened, self.now);
            match &happened {
                News::Job(..) => {
                    self.image.refused = false;
                    self.demand.vm_taken(self.now);
                }
                News::Adopted(vm) => remember(&mut self.had, &vm.incarnation),
                News::Ended { cause, .. } => self.image.refused |= cause.is_outdated(),
                _ => {}
            }
            self.out.news.push((Some(number), happened));
        }
    }

    /// Has as many slots make a VM as are short, or VMs retire when the pool drains.
    fn settle(&mut self) {
        if self.stop.is_some() || !self.recovered {
            return;
        }
        if self.draining {
            return self.retire_all();
        }
        let balance = self.balance();
        for slot in self.slots_to_provision(balance) {
            let mut incarnation = self.new_incarnation();
            // Chance gives 32 bits again, in years.
            while self.had.contains(&incarnation) {
                incarnation = self.new_incarnation();
            }
            remember(&mut self.had, &incarnation);
            self.assert_room();
            self.tell(slot, Event::Provision(incarnation));
        }
    }

    fn new_incarnation(&mut self) -> String {
        format!("{}{:08x}", self.rules.tag, self.random.bits() as u32)
    }

    /// No VM is made while POOL_SIZE or more exist. Cheap to check, so it is
    /// checked in production too: a defect is logged and counted, and never
    /// ends the process.
    fn assert_room(&mut self) {
        let vms = self.slots().filter(|slot| slot.instance().is_some()).count();
        if vms >= self.rules.pool.size as usize {
            self.history.tally.broken += 1;
            let what = format!("a VM is made beside {vms}, and POOL_SIZE is {}", self.rules.pool.size);
            self.out.news.push((None, News::Broken(what)));
        }
    }
}

fn remember(had: &mut VecDeque<String>, incarnation: &str) {
    had.push_back(incarnation.to_owned());
    if had.len() > REMEMBERED {
        had.pop_front();
    }
}

impl Cause {
    /// Whether the VM did not end as it should.
    pub fn is_failure(&self, had_job: bool) -> bool {
        match self {
            Cause::JobTimeout | Cause::BootTimeout | Cause::Vanished => true,
            Cause::RunnerEnded { .. } | Cause::PoweredOff | Cause::RunnerGone => !had_job,
            Cause::Retired(_) | Cause::Stop => false,
        }
    }

    /// Whether GitHub no longer accepts its runner's version, so that the next is as outdated.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Cause::RunnerEnded { exit_code: Some(EXIT_OUTDATED) })
    }
}

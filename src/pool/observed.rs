//! What the monitor brings to the state: lists of VMs and of runners.

use super::orphans;
use super::slot::types::{
    Assignment, Event, Instance, News, ObservedPower, ObservedRunner, ObservedVm, OrphanVm, Phase,
};
use super::state::{Outcome, PoolState};
use super::{Millis, millis, recovery};
use crate::github::Runner;
use crate::github::scope::Scope;
use crate::hypervisor::{Heartbeat, Inventory, Power, VmWrite};
use std::collections::{HashSet, VecDeque};

/// A registration to ask GitHub for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where it is registered.
    pub scope: Scope,
    /// GitHub's id.
    pub id: u64,
}

impl PoolState {
    /// What an earlier start left: the two first lists as one.
    pub fn recover(&mut self, inventory: &Inventory, now: Millis, out: &mut Outcome) {
        if self.recovered {
            return;
        }
        let assignments = recovery::recover(inventory, self.rules.pool.size);
        while self.records.len() < assignments.len() {
            self.add_slot();
        }
        self.recovered = true;
        self.free_bytes = inventory.free_bytes;
        for (slot, assignment) in assignments.into_iter().enumerate() {
            self.begin_slot(slot, assignment, now, out);
        }
        self.settle(now, out);
    }

    /// What the next list of VMs has to write. From now on these VMs count as told.
    pub fn take_writes(&mut self, now: Millis, out: &mut Outcome) -> Vec<VmWrite> {
        let due: Vec<(usize, VmWrite)> =
            self.slots().enumerate().filter_map(|(index, slot)| Some((index, slot.write_due()?))).collect();
        for (slot, write) in &due {
            let written = Event::Written { retire: write.retire, forgot_jit_config: false, at: now };
            self.tell(*slot, written, now, out);
        }
        due.into_iter().map(|(_, write)| write).collect()
    }

    /// The hypervisor's list, asked for at `asked_at` together with `writes`.
    /// `fingerprint` is that of a VM made now.
    pub fn vms_listed(
        &mut self,
        inventory: &Inventory,
        fingerprint: Option<String>,
        writes: &[VmWrite],
        asked_at: Millis,
        now: Millis,
        out: &mut Outcome,
    ) {
        if fingerprint.is_some() {
            self.fingerprint = fingerprint;
        }
        self.note_free_space(inventory.free_bytes, out);
        for slot in 0..self.records.len() {
            let Some(instance) = self.records[slot].slot.instance() else {
                // An hour without need of a VM clears a failure.
                self.tell(slot, Event::Tick, now, out);
                continue;
            };
            let vm = inventory.vms.iter().find(|vm| vm.id.incarnation == instance.vm.incarnation);
            if writes.iter().any(|write| write.forget_jit_config && write.vm == instance.vm) {
                let written = Event::Written { retire: false, forgot_jit_config: true, at: asked_at };
                self.tell(slot, written, now, out);
            }
            let made_of = vm.and_then(|vm| vm.notes.as_ref()?.fingerprint.as_ref());
            self.records[slot].outdated = made_of.is_some() && made_of != self.fingerprint.as_ref();
            let observed = vm.map_or_else(
                || ObservedVm {
                    power: ObservedPower::Missing,
                    uptime: 0,
                    heartbeat: Heartbeat::Unknown,
                    guest: None,
                    notes: None,
                    asked_at,
                },
                |vm| ObservedVm {
                    power: match vm.power {
                        Power::On => ObservedPower::On,
                        Power::Paused => ObservedPower::Paused,
                        Power::Off => ObservedPower::Off,
                    },
                    uptime: millis(vm.uptime),
                    heartbeat: vm.heartbeat,
                    guest: vm.guest.clone(),
                    notes: vm.notes.clone(),
                    asked_at,
                },
            );
            self.tell(slot, Event::VmObserved(Box::new(observed)), now, out);
        }
        self.take_in_orphans(inventory, now, out);
        self.settle(now, out);
        self.retire_idle(now, out);
    }

    /// VMs and disks that no slot has. One that is on, and that this process
    /// did not make, is one that the first lists left out: it may have a job.
    fn take_in_orphans(&mut self, inventory: &Inventory, now: Millis, out: &mut Outcome) {
        let known: HashSet<&str> =
            self.slots().filter_map(|slot| Some(slot.instance()?.vm.incarnation.as_str())).collect();
        let mut found = orphans::orphan_vms(inventory, &known);
        found.retain(|orphan| !self.slots().any(|slot| slot.has_orphan(&orphan.vm)));
        for orphan in found {
            let is_on = |orphan: &OrphanVm| {
                orphan.notes.is_some()
                    && inventory.vms.iter().any(|vm| vm.id == orphan.vm && vm.power != Power::Off)
            };
            if is_on(&orphan) && !self.had.contains(&orphan.vm.incarnation) {
                self.add_slot();
                let assignment = Assignment { adopt: Some(orphan), orphans: Vec::new() };
                self.begin_slot(self.records.len() - 1, assignment, now, out);
            } else {
                let home = recovery::home_of(&orphan.vm, self.rules.pool.size);
                self.tell(home, Event::Orphan(orphan), now, out);
            }
        }
    }

    fn note_free_space(&mut self, free_bytes: Option<u64>, out: &mut Outcome) {
        let was_full = self.host_is_full();
        self.free_bytes = free_bytes;
        let subject = || "The host".to_owned();
        match (was_full, self.host_is_full()) {
            (_, true) => {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                let why = format!(
                    "{:.1} GB are free where the VMs' disks are, less than MIN_FREE_GB ({:.0}): no VM is made until there is room",
                    gib(free_bytes.unwrap_or(0)),
                    gib(self.rules.pool.min_free_bytes)
                );
                out.news.push(News::Failed(subject(), why));
            }
            (true, false) => out.news.push(News::Works(subject())),
            (false, false) => {}
        }
    }

    /// GitHub's list of the runners in the pool's scope. Answers with the
    /// registrations to remove.
    pub fn runners_listed(
        &mut self,
        runners: &[Runner],
        asked_at: Millis,
        now: Millis,
        out: &mut Outcome,
    ) -> Vec<u64> {
        for slot in 0..self.records.len() {
            let Some(instance) = self.records[slot].slot.instance() else { continue };
            if instance.scope != self.rules.scope {
                // Without its id, a runner that registered itself elsewhere cannot be asked for.
                if instance.runner_id.is_none() {
                    self.tell(slot, Event::RunnerHidden, now, out);
                }
                continue;
            }
            let its = |runner: &&Runner| {
                runner.name == instance.runner_name && instance.runner_id.is_none_or(|id| id == runner.id)
            };
            let event = match runners.iter().find(its) {
                Some(runner) => Event::RunnerObserved(observed(runner, asked_at)),
                // A runner that registers itself cannot be asked for by its id.
                None if instance.runner_id.is_none() => Event::RunnerGone,
                None => continue,
            };
            self.tell(slot, event, now, out);
        }
        let of_slots: HashSet<&str> =
            self.records.iter().filter_map(|r| Some(r.slot.instance()?.runner_name.as_str())).collect();
        let orphans = self.orphan_runners.find(runners, &of_slots, &self.rules, now);
        self.settle(now, out);
        orphans
    }

    /// Slots with a VM that was answered, whose runner is not in this list, so
    /// that GitHub has to be asked for each by its id: a list in pages can miss
    /// one. With no list, all of them.
    pub fn unlisted(&self, runners: &[Runner]) -> VecDeque<(usize, Asked)> {
        let listed: HashSet<u64> = runners.iter().map(|runner| runner.id).collect();
        self.slots()
            .enumerate()
            .filter(|(_, slot)| matches!(slot.phase(), Phase::Ready | Phase::Running))
            .filter_map(|(index, slot)| {
                let instance = slot.instance()?;
                let id = instance.runner_id?;
                let is_listed = instance.scope == self.rules.scope && listed.contains(&id);
                (!is_listed).then(|| (index, Asked { scope: instance.scope.clone(), id }))
            })
            .collect()
    }

    /// GitHub was asked for a slot's runner by its id.
    pub fn runner_looked_up(
        &mut self,
        slot: usize,
        asked: &Asked,
        runner: Option<&Runner>,
        asked_at: Millis,
        now: Millis,
        out: &mut Outcome,
    ) {
        let Some(instance) = self.instance_asked_for(slot, asked) else { return };
        let event = match runner {
            Some(runner) if runner.name == instance.runner_name => {
                Event::RunnerObserved(observed(runner, asked_at))
            }
            // An id that bears another name is somebody else's: ours is gone.
            _ => Event::RunnerGone,
        };
        self.tell(slot, event, now, out);
        self.settle(now, out);
    }

    /// GitHub does not let the token see a slot's runner.
    pub fn runner_hidden(&mut self, slot: usize, asked: &Asked, now: Millis, out: &mut Outcome) {
        if self.instance_asked_for(slot, asked).is_some() {
            self.tell(slot, Event::RunnerHidden, now, out);
            self.settle(now, out);
        }
    }

    /// What GitHub was asked about, if the slot still has it.
    fn instance_asked_for(&self, slot: usize, asked: &Asked) -> Option<&Instance> {
        let instance = self.slot(slot).instance()?;
        (instance.runner_id == Some(asked.id) && instance.scope == asked.scope).then_some(instance)
    }

    /// A call to GitHub succeeded.
    pub fn github_works(&mut self, out: &mut Outcome) {
        if self.github.works() {
            out.news.push(News::Works("GitHub".into()));
        }
    }

    /// A call to GitHub failed; `refused` if because of the token.
    pub fn github_fails(&mut self, why: String, refused: bool, now: Millis, out: &mut Outcome) {
        out.news.push(News::Failed("GitHub".into(), why.clone()));
        self.github.fails(why, refused, now);
    }

    /// A list of VMs came.
    pub fn hypervisor_works(&mut self, out: &mut Outcome) {
        if self.hypervisor.works() {
            out.news.push(News::Works("Hyper-V".into()));
        }
    }

    /// No list of VMs came.
    pub fn hypervisor_fails(&mut self, why: String, now: Millis, out: &mut Outcome) {
        let why = format!("cannot list the VMs: {why}");
        out.news.push(News::Failed("Hyper-V".into(), why.clone()));
        self.hypervisor.fails(why, false, now);
    }
}

fn observed(runner: &Runner, asked_at: Millis) -> ObservedRunner {
    ObservedRunner { id: runner.id, online: runner.online, busy: runner.busy, asked_at }
}

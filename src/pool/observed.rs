//! What the monitor brings to the state: lists of VMs and of runners.

use super::orphans;
use super::slot::types::{Event, Instance, Phase};
use super::state::PoolState;
use super::{Millis, recovery};
use crate::github::scope::Scope;
use crate::github::{Error, Runner};
use crate::hypervisor::{Inventory, VmWrite};
use std::collections::HashSet;

/// A slot's registration, to ask GitHub for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The slot's index.
    slot: usize,
    /// Where it is registered.
    pub scope: Scope,
    /// GitHub's id.
    pub id: u64,
}

impl PoolState {
    /// What an earlier start left: the two first lists as one.
    pub fn recover(&mut self, inventory: &Inventory) {
        if self.recovered {
            return;
        }
        self.recovered = true;
        self.note_free_space(inventory.free_bytes);
        let found = recovery::recover(inventory, self.rules.pool.size);
        while self.slots.len() < found.len() {
            self.add_slot();
        }
        for (slot, found) in found.into_iter().enumerate() {
            self.begin_slot(slot, found);
        }
    }

    /// What the next list of VMs has to write. From now on these VMs count as told.
    pub fn take_writes(&mut self) -> Vec<VmWrite> {
        let mut writes = Vec::new();
        for slot in 0..self.slots.len() {
            let Some(write) = self.slots[slot].write_due() else { continue };
            if write.retire {
                self.tell(slot, Event::ToldToRetire);
            }
            writes.push(write);
        }
        writes
    }

    /// The hypervisor's list, asked for at `asked_at`.
    /// `fingerprint` is that of a VM made now.
    pub fn vms_listed(&mut self, inventory: &Inventory, fingerprint: Option<String>, asked_at: Millis) {
        if fingerprint.is_some() {
            self.fingerprint = fingerprint;
        }
        self.note_free_space(inventory.free_bytes);
        for slot in 0..self.slots.len() {
            let Some(instance) = self.slots[slot].instance() else {
                // An hour without need of a VM clears a failure.
                self.tell(slot, Event::Tick);
                continue;
            };
            let vm = inventory.vms.iter().find(|vm| vm.id.incarnation == instance.vm.incarnation);
            self.tell(slot, Event::VmObserved(vm.cloned().map(Box::new), asked_at));
        }
        self.take_in_orphans(inventory);
        if self.stopping().is_none() {
            self.retire_idle();
        }
    }

    /// VMs and disks that no slot has. One that is on, and that this process
    /// did not make, is one that the first lists left out: it may have a job.
    fn take_in_orphans(&mut self, inventory: &Inventory) {
        let known: HashSet<&str> =
            self.slots().filter_map(|slot| Some(slot.instance()?.vm.incarnation.as_str())).collect();
        let mut found = orphans::orphan_vms(inventory, &known);
        found.retain(|orphan| !self.slots().any(|slot| slot.has_orphan(&orphan.vm)));
        for orphan in found {
            if orphan.may_have_job() && !self.had.contains(&orphan.vm.incarnation) {
                self.add_slot();
                self.begin_slot(self.slots.len() - 1, vec![orphan]);
            } else {
                let home = recovery::home_of(&orphan.vm, self.rules.pool.size);
                self.tell(home, Event::Orphan(orphan));
            }
        }
    }

    fn note_free_space(&mut self, free_bytes: Option<u64>) {
        self.free_bytes = free_bytes;
        let least = self.rules.pool.min_free_bytes;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let answer = match free_bytes {
            Some(free) if free < least => Err(format!(
                "{:.1} GB are free where the VMs' disks are, less than MIN_FREE_GB ({:.0}): no VM is made until there is room",
                gib(free),
                gib(least)
            )),
            _ => Ok(()),
        };
        self.room.note("The host", answer, false, self.now, &mut self.out.news);
    }

    /// GitHub's list of the runners in the pool's scope. Answers with the
    /// registrations to remove.
    pub fn runners_listed(&mut self, runners: &[Runner], asked_at: Millis) -> Vec<u64> {
        for slot in 0..self.slots.len() {
            let Some(instance) = self.slots[slot].instance() else { continue };
            if instance.scope != self.rules.scope {
                // Without its id, a runner that registered itself elsewhere cannot be asked for.
                if instance.runner_id.is_none() {
                    self.tell(slot, Event::RunnerHidden);
                }
                continue;
            }
            let its = |runner: &&Runner| {
                runner.name == instance.runner_name && instance.runner_id.is_none_or(|id| id == runner.id)
            };
            let event = match runners.iter().find(its) {
                Some(runner) => Event::RunnerObserved(runner.clone(), asked_at),
                // A runner that registers itself cannot be asked for by its id.
                None if instance.runner_id.is_none() => Event::RunnerGone,
                None => continue,
            };
            self.tell(slot, event);
        }
        self.orphan_runners(runners)
    }

    /// Slots with a VM that was answered, whose runner is not in this list, so
    /// that GitHub has to be asked for each by its id: a list in pages can miss
    /// one. With no list, all of them.
    pub fn unlisted(&self, runners: &[Runner]) -> Vec<Asked> {
        let listed: HashSet<u64> = runners.iter().map(|runner| runner.id).collect();
        self.slots()
            .enumerate()
            .filter(|(_, slot)| matches!(slot.phase(), Phase::Ready | Phase::Running))
            .filter_map(|(slot, its)| {
                let instance = its.instance()?;
                let id = instance.runner_id?;
                let is_listed = instance.scope == self.rules.scope && listed.contains(&id);
                (!is_listed).then(|| Asked { slot, scope: instance.scope.clone(), id })
            })
            .collect()
    }

    /// What GitHub said of a slot's runner, for which it was asked by its id.
    pub fn runner_looked_up(
        &mut self,
        asked: &Asked,
        answer: Result<Option<Runner>, Error>,
        asked_at: Millis,
    ) {
        let elsewhere = asked.scope != self.rules.scope;
        let still_has_it = |its: &&Instance| its.runner_id == Some(asked.id) && its.scope == asked.scope;
        if let Some(instance) = self.slot(asked.slot).instance().filter(still_has_it) {
            let event = match &answer {
                Ok(Some(runner)) if runner.name == instance.runner_name => {
                    Some(Event::RunnerObserved(runner.clone(), asked_at))
                }
                // An id that bears another name is somebody else's: ours is gone.
                Ok(_) => Some(Event::RunnerGone),
                // Access to another scope than the pool's may have ended with its settings.
                Err(Error::Refused(_)) if elsewhere => Some(Event::RunnerHidden),
                Err(_) => None,
            };
            if let Some(event) = event {
                self.tell(asked.slot, event);
            }
        }
        if !elsewhere {
            self.github_answers(answer);
        }
    }

    /// What GitHub answered, after noting whether it can be reached.
    pub fn github_answers<T>(&mut self, answer: Result<T, Error>) -> Option<T> {
        let refused = matches!(answer, Err(Error::Refused(_)));
        let answer = answer.map_err(|error| error.to_string());
        self.github.note("GitHub", answer, refused, self.now, &mut self.out.news)
    }

    /// What the hypervisor answered, after noting whether it can be reached.
    pub fn hypervisor_answers<T>(&mut self, answer: Result<T, String>) -> Option<T> {
        let answer = answer.map_err(|why| format!("cannot list the VMs: {why}"));
        self.hypervisor.note("Hyper-V", answer, false, self.now, &mut self.out.news)
    }
}

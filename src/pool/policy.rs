//! How many VMs there should be, which slots make them, and which idle VMs retire.

use super::slot::Slot;
use super::slot::types::{Phase, RetireReason};
use super::state::PoolState;
use super::{Millis, millis};

/// What the pool lacks, or has too much of, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// How many idle VMs there should be.
    target: usize,
    /// How many there are: creating, booting, or ready and not retiring.
    idle: usize,
    /// How many more VMs the pool may have.
    room: usize,
}

impl Balance {
    /// How many VMs are to be made.
    pub fn shortage(self) -> usize {
        self.target.saturating_sub(self.idle).min(self.room)
    }

    /// How many idle VMs are not wanted.
    pub fn surplus(self) -> usize {
        self.idle.saturating_sub(self.target)
    }

    /// Whether any VM is wanted at all.
    pub fn wants_vms(self) -> bool {
        self.target > 0
    }
}

impl PoolState {
    pub(super) fn balance(&mut self) -> Balance {
        let is_idle = |slot: &Slot| match slot.phase() {
            Phase::Creating | Phase::Booting => true,
            Phase::Ready => slot.retiring().is_none() && self.is_ours(slot),
            _ => false,
        };
        // A slot that has not looked yet, or has something to destroy, may turn out to have a VM.
        let is_taken =
            |slot: &Slot| slot.has_orphans() || !matches!(slot.phase(), Phase::Empty | Phase::Stopped);
        let ready = |slot: &&Slot| slot.phase() == Phase::Ready && is_idle(slot);
        let ready_since = self.slots().filter(ready).map(|slot| slot.since).min();
        let idle = self.slots().filter(|slot| is_idle(slot)).count();
        let taken = self.slots().filter(|slot| is_taken(slot)).count();
        let patience = millis(self.rules.pool.surplus_after);
        let called_for = self.demand.vms_called_for(ready_since, patience, self.now);
        let target = called_for.max(self.rules.pool.warm as usize).min(self.rules.pool.size as usize);
        let room = (self.rules.pool.size as usize).saturating_sub(taken);
        Balance { target, idle, room }
    }

    /// The slots, by index, that make a VM now: as many as are short, in as
    /// many turns as are free. One whose back-off lasts has its turn after it.
    pub(super) fn slots_to_provision(&self, balance: Balance) -> Vec<usize> {
        if self.host_is_full() {
            return Vec::new();
        }
        let creating = self.slots().filter(|slot| slot.phase() == Phase::Creating).count();
        let turns = (self.rules.pool.max_concurrent_creates as usize).saturating_sub(creating);
        let wanted = balance.shortage().min(turns);
        if wanted == 0 {
            return Vec::new();
        }
        let mut free: Vec<(u32, u32, usize)> = self
            .slots()
            .enumerate()
            .filter(|(_, slot)| slot.is_free() && slot.retry_at() <= self.now)
            .map(|(index, slot)| (slot.failures, slot.number, index))
            .collect();
        // A slot that has just failed comes last.
        free.sort_unstable();
        free.into_iter().take(wanted).map(|(_, _, index)| index).collect()
    }

    /// Idle VMs that are too many for `SURPLUS_MINUTES`, while no job is queued that might want them.
    pub(super) fn surplus_to_retire(&mut self, balance: Balance) -> Vec<usize> {
        let patience = millis(self.rules.pool.surplus_after);
        if balance.surplus() == 0 || self.demand.is_fresh(patience, self.now) {
            self.surplus_since = None;
            return Vec::new();
        }
        if self.now - *self.surplus_since.get_or_insert(self.now) < patience {
            return Vec::new();
        }
        let mut idle: Vec<(Millis, usize)> = self.ready_to_retire().collect();
        idle.sort_unstable();
        idle.into_iter().take(balance.surplus()).map(|(_, index)| index).collect()
    }

    /// Idle VMs that serve another scope than the pool does now.
    pub(super) fn moved_to_retire(&self) -> Vec<usize> {
        self.ready_to_retire()
            .map(|(_, index)| index)
            .filter(|&index| !self.is_ours(self.slot(index)))
            .collect()
    }

    /// The next VM to retire because it is outdated or has idled for too long:
    /// one at a time, and only while every replacement before it is ready.
    pub(super) fn stale_to_retire(&self, balance: Balance) -> Option<(usize, RetireReason)> {
        let one_leaves = self.slots().any(|slot| slot.retiring().is_some_and(RetireReason::one_at_a_time));
        let ready = self.ready_to_retire().count();
        let missing = balance.idle > ready || balance.shortage() > 0;
        if one_leaves || missing || self.slots().any(|slot| slot.phase() == Phase::Destroying) {
            return None;
        }
        let max_idle = millis(self.rules.pool.max_idle);
        self.ready_to_retire().find_map(|(_, index)| {
            let slot = self.slot(index);
            if slot.made_of().is_some_and(|made_of| self.fingerprint.as_ref() != Some(made_of)) {
                return Some((index, RetireReason::Outdated));
            }
            let aged = slot.uptime(self.now).is_some_and(|uptime| uptime >= max_idle);
            aged.then_some((index, RetireReason::Aged))
        })
    }

    /// Whether a slot's VM takes this pool's jobs: one of another scope takes none.
    fn is_ours(&self, slot: &Slot) -> bool {
        slot.instance().is_some_and(|instance| instance.scope == self.rules.scope)
    }

    /// Ready VMs that are not retiring, with the time since when they are ready.
    fn ready_to_retire(&self) -> impl Iterator<Item = (Millis, usize)> {
        self.slots()
            .enumerate()
            .filter(|(_, slot)| slot.phase() == Phase::Ready && slot.retiring().is_none())
            .map(|(index, slot)| (slot.since, index))
    }
}

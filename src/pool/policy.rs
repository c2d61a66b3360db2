//! How many VMs there should be, which slots make them, and which idle VMs retire.

use super::millis;
use super::slot::Slot;
use super::slot::types::{Event, Phase, RetireReason};
use super::state::PoolState;

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
        let wanted = called_for.max(self.rules.pool.warm as usize).min(self.rules.pool.size as usize);
        let target = if self.draining { 0 } else { wanted };
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
            .filter(|(_, slot)| slot.free_at().is_some_and(|at| at <= self.now))
            .map(|(index, slot)| (slot.failures, slot.number, index))
            .collect();
        // A slot that has just failed comes last.
        free.sort_unstable();
        free.into_iter().take(wanted).map(|(_, _, index)| index).collect()
    }

    /// Asks idle VMs to retire: those of another scope than the pool's now, those
    /// that are too many, and stale ones one at a time.
    pub(super) fn retire_idle(&mut self) {
        for slot in self.ready_to_retire() {
            if !self.is_ours(self.slot(slot)) {
                self.tell(slot, Event::Retire(RetireReason::Moved));
            }
        }
        let surplus = self.lasting_surplus();
        for slot in self.ready_to_retire().into_iter().take(surplus) {
            self.tell(slot, Event::Retire(RetireReason::Surplus));
        }
        if let Some((slot, reason)) = self.stale_to_retire() {
            self.tell(slot, Event::Retire(reason));
        }
    }

    /// Idle VMs that were to retire stay, since a job waits, unless they were told already.
    pub(super) fn keep_idle_vms(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slot(slot).retiring() != Some(RetireReason::Drain) {
                self.tell(slot, Event::StayIfNotTold);
            }
        }
    }

    /// How many idle VMs have been too many for `SURPLUS_MINUTES`, while no job is queued that might want them.
    fn lasting_surplus(&mut self) -> usize {
        let patience = millis(self.rules.pool.surplus_after);
        let Balance { target, idle, .. } = self.balance();
        if idle <= target || self.demand.is_fresh(patience, self.now) {
            self.surplus_since = None;
            return 0;
        }
        let since = *self.surplus_since.get_or_insert(self.now);
        if self.now - since >= patience { idle - target } else { 0 }
    }

    /// The next VM to retire because an operator wants it replaced, it is outdated or has idled for too long:
    /// one at a time, and only while every replacement before it is ready.
    fn stale_to_retire(&mut self) -> Option<(usize, RetireReason)> {
        let balance = self.balance();
        let ready = self.ready_to_retire();
        let leaves = |slot: &Slot| {
            slot.phase() == Phase::Destroying || slot.retiring().is_some_and(RetireReason::one_at_a_time)
        };
        if balance.idle > ready.len() || balance.shortage() > 0 || self.slots().any(leaves) {
            return None;
        }
        let max_idle = millis(self.rules.pool.max_idle);
        ready.into_iter().find_map(|index| {
            let slot = self.slot(index);
            if slot.is_to_recycle() {
                return Some((index, RetireReason::Recycle));
            }
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

    /// Ready VMs that are not retiring, the longest ready first.
    fn ready_to_retire(&self) -> Vec<usize> {
        let ready = |slot: &Slot| slot.phase() == Phase::Ready && slot.retiring().is_none();
        let mut found: Vec<usize> = (0..self.slots.len()).filter(|&at| ready(&self.slots[at])).collect();
        found.sort_by_key(|&slot| self.slots[slot].since);
        found
    }
}

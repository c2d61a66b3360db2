//! What an operator asks of the running pool: drain, resume, recycle.

use super::slot::Slot;
use super::slot::types::{Event, Phase, RetireReason};
use super::state::PoolState;

/// What comes of recycling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recycled {
    /// So many VMs without a job are replaced.
    pub vms: usize,
    /// So many slots that failed try again now.
    pub retries: usize,
}

/// Why nothing is recycled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRecycled {
    /// No slot has a VM of that name, or makes one.
    NotFound,
    /// It has a job, after which it is replaced anyway.
    HasJob,
    /// It is being made, or the pool has not looked at it yet.
    NotYet,
    /// The pool drains or stops, so that no VM would take its place.
    NoVmsMade,
}

impl PoolState {
    /// Takes no more jobs: VMs without one retire, and none is made, until
    /// [`PoolState::resume`] or the end of the process.
    pub fn drain(&mut self) {
        self.draining = true;
        self.out.look_now = true;
    }

    /// Ends a drain. A guest that was told to retire does so, and is replaced.
    pub fn resume(&mut self) {
        self.draining = false;
        for slot in 0..self.slots.len() {
            if self.slot(slot).retiring() == Some(RetireReason::Drain) {
                self.tell(slot, Event::StayIfNotTold);
            }
        }
    }

    /// Whether the pool drains.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Has every VM without a job retire that does not yet, also one that boots.
    pub(super) fn retire_all(&mut self) {
        for slot in 0..self.slots.len() {
            let its = self.slot(slot);
            if matches!(its.phase(), Phase::Booting | Phase::Ready) && its.retiring().is_none() {
                self.tell(slot, Event::Retire(RetireReason::Drain));
            }
        }
    }

    /// Replaces this VM, or every idle one after the other, and has slots that
    /// failed try again now.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn recycle(&mut self, vm: Option<&str>) -> Result<Recycled, NotRecycled> {
        if self.draining || self.stopping().is_some() {
            return Err(NotRecycled::NoVmsMade);
        }
        self.out.look_now = true;
        match vm {
            Some(vm) => self.recycle_one(vm),
            None => {
                let mut recycled = Recycled::default();
                for slot in 0..self.slots.len() {
                    let its = self.slot(slot);
                    let (phase, fails) = (its.phase(), its.failures > 0);
                    recycled.vms += usize::from(phase == Phase::Ready);
                    recycled.retries +=
                        usize::from(fails && matches!(phase, Phase::Empty | Phase::Destroying));
                    self.tell(slot, Event::Recycle);
                }
                Ok(recycled)
            }
        }
    }

    fn recycle_one(&mut self, vm: &str) -> Result<Recycled, NotRecycled> {
        // An adopted VM can have the name that another slot would give.
        let has_it = |slot: &Slot| slot.instance().is_some_and(|its| its.vm.name == vm);
        let slot = self.slots().position(has_it);
        let slot = slot.or_else(|| self.slots().position(|slot| slot.vm_name() == vm));
        let slot = slot.ok_or(NotRecycled::NotFound)?;
        let its = self.slot(slot);
        match its.phase() {
            // Whoever names a VM means it: it does not wait for others.
            Phase::Booting | Phase::Ready => {
                let retires = its.retiring().is_some();
                self.tell(slot, Event::Recycle);
                if !retires {
                    self.tell(slot, Event::Retire(RetireReason::Recycle));
                }
                Ok(Recycled { vms: 1, retries: 0 })
            }
            Phase::Empty | Phase::Destroying => {
                self.tell(slot, Event::Recycle);
                Ok(Recycled { vms: 0, retries: 1 })
            }
            Phase::Running => Err(NotRecycled::HasJob),
            Phase::Recovering | Phase::Creating => Err(NotRecycled::NotYet),
            Phase::Stopped => Err(NotRecycled::NotFound),
        }
    }
}

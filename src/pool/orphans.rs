//! What is this pool's and belongs to no slot: VMs and disks on the host,
//! registrations at GitHub.
//!
//! One rule each says whose they are. A VM or disk is the pool's by its Notes
//! or its disk's folder and name, which the hypervisor decides before it lists
//! it. A registration is the pool's by the tag in its name: see
//! [`Rules::owns_runner`](super::Rules::owns_runner).

use super::slot::types::OrphanVm;
use super::state::PoolState;
use crate::github::Runner;
use crate::hypervisor::Inventory;
use std::collections::HashSet;

/// VMs and disks whose incarnation is in none of the slots.
pub fn orphan_vms(inventory: &Inventory, known: &HashSet<&str>) -> Vec<OrphanVm> {
    let vms = inventory.vms.iter().map(|vm| OrphanVm {
        vm: vm.id.clone(),
        notes: vm.notes.clone(),
        power: Some(vm.power),
    });
    let with_vm: HashSet<&str> = inventory.vms.iter().map(|vm| vm.id.incarnation.as_str()).collect();
    let disks = inventory
        .disks
        .iter()
        .filter(|disk| !with_vm.contains(disk.incarnation.as_str()))
        .map(|disk| OrphanVm { vm: disk.clone(), notes: None, power: None });
    vms.chain(disks).filter(|orphan| !known.contains(orphan.vm.incarnation.as_str())).collect()
}

impl PoolState {
    /// The registrations to remove: of this pool, of no slot, offline and not
    /// busy for `BOOT_TIMEOUT`. To be asked once the slots know of `runners`.
    pub(super) fn orphan_runners(&mut self, runners: &[Runner]) -> Vec<u64> {
        let of_slots: HashSet<&str> =
            self.slots().filter_map(|slot| Some(slot.instance()?.runner_name.as_str())).collect();
        let of_nobody = runners.iter().filter(|runner| {
            self.rules.owns_runner(&runner.name)
                && !runner.online
                && !runner.busy
                && !of_slots.contains(runner.name.as_str())
        });
        self.offline_since = of_nobody
            .map(|runner| (runner.id, *self.offline_since.get(&runner.id).unwrap_or(&self.now)))
            .collect();
        let overdue = self.now - self.rules.boot_timeout();
        self.offline_since.iter().filter(|(_, since)| **since <= overdue).map(|(id, _)| *id).collect()
    }
}

//! What is this pool's and belongs to no slot: VMs and disks on the host,
//! registrations at GitHub.
//!
//! One rule each says whose they are. A VM or disk is the pool's by its Notes
//! or its disk's folder and name, which the hypervisor decides before it lists
//! it. A registration is the pool's by the tag in its name: see
//! [`Rules::owns_runner`].

use super::slot::types::OrphanVm;
use super::{Millis, Rules};
use crate::github::Runner;
use crate::hypervisor::Inventory;
use std::collections::{HashMap, HashSet};

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

/// Finds registrations of this pool that no slot has.
#[derive(Debug, Default)]
pub struct OrphanRunners {
    /// Since when each has been offline without a slot.
    offline_since: HashMap<u64, Millis>,
}

impl OrphanRunners {
    /// The registrations to remove: of this pool, of no slot, offline and not
    /// busy for `BOOT_TIMEOUT`. `of_slots` are the names of all slots' runners,
    /// as they are after `runners` was listed.
    pub fn find(
        &mut self,
        runners: &[Runner],
        of_slots: &HashSet<&str>,
        rules: &Rules,
        now: Millis,
    ) -> Vec<u64> {
        let of_nobody = runners.iter().filter(|runner| {
            rules.owns_runner(&runner.name)
                && !runner.online
                && !runner.busy
                && !of_slots.contains(runner.name.as_str())
        });
        self.offline_since = of_nobody
            .map(|runner| (runner.id, *self.offline_since.get(&runner.id).unwrap_or(&now)))
            .collect();
        let mut orphans: Vec<u64> = self
            .offline_since
            .iter()
            .filter(|(_, since)| now - **since >= rules.boot_timeout())
            .map(|(id, _)| *id)
            .collect();
        orphans.sort_unstable();
        orphans
    }
}

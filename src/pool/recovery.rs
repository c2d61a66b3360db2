//! What a starting pool makes of what it finds on the host.
//!
//! The truth lives in the hypervisor and in GitHub, not in a file. A VM that is
//! on is adopted, whatever its settings: it may have a job, and the first
//! lists will tell. Everything else is destroyed.

use super::orphans::orphan_vms;
use super::slot::types::OrphanVm;
use crate::hypervisor::{Inventory, VmId};
use std::collections::HashSet;

/// What each slot begins with: a VM to adopt, or VMs and disks to destroy. One
/// for each of the pool's slots, and more for slots past its size, if more VMs
/// exist than the pool has slots.
pub fn recover(inventory: &Inventory, size: u32) -> Vec<Vec<OrphanVm>> {
    let mut slots = vec![Vec::new(); size as usize];
    let found = orphan_vms(inventory, &HashSet::new()).into_iter();
    let (on, others): (Vec<_>, Vec<_>) = found.partition(OrphanVm::may_have_job);
    for orphan in on.into_iter().chain(others) {
        let home = home_of(&orphan.vm, size);
        // A slot that has a VM to destroy counts as taken, so that no new VM is
        // made while there are too many.
        let slot = if orphan.power.is_some() { free_slot(&mut slots, home) } else { home };
        slots[slot].push(orphan);
    }
    slots
}

/// The two first lists of a process as one: what either shows is there. A list
/// can leave a VM out, whose disk would then be cleared away under its job.
pub fn union(mut first: Inventory, second: Inventory) -> Inventory {
    let missed: Vec<_> =
        second.vms.into_iter().filter(|vm| !first.vms.iter().any(|known| known.id == vm.id)).collect();
    first.vms.extend(missed);
    first
}

/// The slot, by index, whose name a VM bears: it makes no other before this one is gone.
pub fn home_of(vm: &VmId, size: u32) -> usize {
    let digits = vm.name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let number: u32 = vm.name[vm.name.len() - digits..].parse().unwrap_or(1);
    (number.saturating_sub(1) % size.max(1)) as usize
}

/// The index of `home` if it has nothing yet, or of another slot, or of a new one past the pool's size.
fn free_slot(slots: &mut Vec<Vec<OrphanVm>>, home: usize) -> usize {
    let found = std::iter::once(home).chain(0..slots.len()).find(|&slot| slots[slot].is_empty());
    found.unwrap_or_else(|| {
        slots.push(Vec::new());
        slots.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::Power;
    use crate::pool::tests::{notes, vm};

    #[test]
    fn vms_that_are_on_are_adopted_in_their_slots_and_the_others_destroyed() {
        let vms = vec![vm(1, Power::On), vm(2, Power::Off), vm(3, Power::Paused)];
        let slots = recover(&Inventory { vms, ..Inventory::default() }, 3);
        let adopted: Vec<Vec<bool>> =
            slots.iter().map(|slot| slot.iter().map(OrphanVm::may_have_job).collect()).collect();
        assert_eq!(adopted, [[true], [false], [true]]);
    }

    #[test]
    fn a_pool_that_has_shrunk_gives_every_vm_a_slot_so_that_none_is_made_before_enough_are_gone() {
        let vms = vec![vm(1, Power::On), vm(2, Power::Off), vm(3, Power::On), vm(4, Power::Off)];
        let slots = recover(&Inventory { vms, ..Inventory::default() }, 2);
        assert_eq!(slots.len(), 4);
        assert!(slots.iter().all(|slot| slot.len() == 1));
    }

    #[test]
    fn a_vm_without_notes_was_cut_off_in_the_making_and_is_destroyed() {
        let mut cut_off = vm(1, Power::On);
        cut_off.notes = None;
        let slots = recover(&Inventory { vms: vec![cut_off], ..Inventory::default() }, 1);
        assert!(!slots[0][0].may_have_job());
    }

    #[test]
    fn a_vm_that_one_of_the_two_first_lists_leaves_out_is_there_all_the_same() {
        let disks = vec![vm(1, Power::On).id];
        let first = Inventory { disks: disks.clone(), ..Inventory::default() };
        let second = Inventory { vms: vec![vm(1, Power::On)], disks, ..Inventory::default() };
        let slots = recover(&union(first, second), 1);
        let found = OrphanVm { vm: vm(1, Power::On).id, notes: Some(notes(1)), power: Some(Power::On) };
        assert_eq!(slots[0], [found]);
    }
}

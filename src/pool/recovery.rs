//! What a starting pool makes of what it finds on the host.
//!
//! The truth lives in the hypervisor and in GitHub, not in a file. A VM that is
//! on is adopted, whatever its settings: it may have a job, and the first
//! lists will tell. Everything else is destroyed.

use super::slot::types::{Assignment, OrphanVm};
use crate::hypervisor::{Inventory, Power, Vm, VmId};
use std::collections::HashSet;

/// What each slot begins with: one assignment for each of the pool's slots,
/// and more for slots past its size, if more VMs exist than the pool has slots.
pub fn recover(inventory: &Inventory, size: u32) -> Vec<Assignment> {
    let mut slots: Vec<Assignment> = (0..size).map(|_| Assignment::default()).collect();
    let (on, off): (Vec<_>, Vec<_>) =
        inventory.vms.iter().partition(|vm| vm.power != Power::Off && vm.notes.is_some());
    for vm in on {
        let slot = free_slot(&mut slots, home_of(&vm.id, size));
        slots[slot].adopt = Some(orphan(vm));
    }
    for vm in off {
        // A slot that has one to destroy counts as taken, so that no new VM is
        // made while there are too many.
        let slot = free_slot(&mut slots, home_of(&vm.id, size));
        slots[slot].orphans.push(orphan(vm));
    }
    let with_vm: HashSet<&str> = inventory.vms.iter().map(|vm| vm.id.incarnation.as_str()).collect();
    for disk in inventory.disks.iter().filter(|disk| !with_vm.contains(disk.incarnation.as_str())) {
        slots[home_of(disk, size)].orphans.push(OrphanVm { vm: disk.clone(), notes: None, is_disk: true });
    }
    slots
}

fn orphan(vm: &Vm) -> OrphanVm {
    OrphanVm { vm: vm.id.clone(), notes: vm.notes.clone(), is_disk: false }
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
fn free_slot(slots: &mut Vec<Assignment>, home: usize) -> usize {
    let free = |slot: &Assignment| slot.adopt.is_none() && slot.orphans.is_empty();
    let found = std::iter::once(home).chain(0..slots.len()).find(|&slot| free(&slots[slot]));
    found.unwrap_or_else(|| {
        slots.push(Assignment::default());
        slots.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::{notes, vm};

    #[test]
    fn vms_that_are_on_are_adopted_in_their_slots_and_the_others_destroyed() {
        let vms = vec![vm(1, Power::On), vm(2, Power::Off), vm(3, Power::Paused)];
        let slots = recover(&Inventory { vms, ..Inventory::default() }, 3);
        let adopted: Vec<bool> = slots.iter().map(|slot| slot.adopt.is_some()).collect();
        assert_eq!(adopted, [true, false, true]);
        assert_eq!(slots[1].orphans.len(), 1);
    }

    #[test]
    fn a_pool_that_has_shrunk_gives_every_vm_a_slot_so_that_none_is_made_before_enough_are_gone() {
        let vms = vec![vm(1, Power::On), vm(2, Power::Off), vm(3, Power::On), vm(4, Power::Off)];
        let slots = recover(&Inventory { vms, ..Inventory::default() }, 2);
        assert_eq!(slots.len(), 4);
        assert!(slots.iter().all(|slot| usize::from(slot.adopt.is_some()) + slot.orphans.len() == 1));
    }

    #[test]
    fn a_vm_without_notes_was_cut_off_in_the_making_and_is_destroyed() {
        let mut cut_off = vm(1, Power::On);
        cut_off.notes = None;
        let slots = recover(&Inventory { vms: vec![cut_off], ..Inventory::default() }, 1);
        assert!(slots[0].adopt.is_none() && slots[0].orphans.len() == 1);
    }

    #[test]
    fn a_vm_that_one_of_the_two_first_lists_leaves_out_is_there_all_the_same() {
        let disks = vec![vm(1, Power::On).id];
        let first = Inventory { disks: disks.clone(), ..Inventory::default() };
        let second = Inventory { vms: vec![vm(1, Power::On)], disks, ..Inventory::default() };
        let slots = recover(&union(first, second), 1);
        assert_eq!(slots[0].adopt.as_ref().map(|vm| vm.notes.clone()), Some(Some(notes(1))));
        assert!(slots[0].orphans.is_empty());
    }
}

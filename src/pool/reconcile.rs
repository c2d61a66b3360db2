//! What is there against what should be there: pure decisions at start and in
//! every round of the monitor.
//!
//! The truth lives in the hypervisor and in GitHub, not in a file. At start
//! the pool lists both, adopts each VM whose runner is busy or waits for a
//! job, and destroys every other. Later it clears away whatever of its own no
//! slot has.

use super::slot::{Assignment, Leftover, Made, Millis, Phase, View};
use crate::github::Runner;
use crate::hypervisor::{Inventory, Power, Vm, VmId};
use std::collections::{HashMap, HashSet};

/// What every slot begins with: one assignment for each of the pool's slots,
/// and more for retired slots if more VMs must be seen to their end than the
/// pool has slots.
pub fn assign(inventory: &Inventory, runners: &[Runner], size: u32) -> Vec<Assignment> {
    let mut slots: Vec<Assignment> = (0..size).map(|_| Assignment::default()).collect();
    let mut busy = Vec::new();
    let mut idle = Vec::new();
    let mut rest = Vec::new();
    for vm in &inventory.vms {
        let runner = runner_of(vm, runners);
        match runner {
            Some(runner) if vm.power == Power::On && runner.busy => busy.push((vm, runner)),
            Some(runner) if vm.power == Power::On && runner.online => idle.push((vm, runner)),
            _ => rest.push((vm, runner)),
        }
    }
    for (vm, runner) in busy {
        let slot = free_slot(&slots, vm).unwrap_or_else(|| {
            slots.push(Assignment::default());
            slots.len() - 1
        });
        slots[slot].adopt = Some((made(vm, runner), true));
    }
    for (vm, runner) in idle {
        let free = free_slot(&slots, vm).filter(|&slot| slot < size as usize);
        match free {
            Some(slot) => slots[slot].adopt = Some((made(vm, runner), false)),
            None => rest.push((vm, Some(runner))),
        }
    }
    for (vm, runner) in rest {
        let on = vm.power == Power::On;
        let leftover = Leftover {
            vm: vm.id.clone(),
            runner: runner.map(|r| (Some(r.id), r.name.clone())).or_else(|| {
                let notes = vm.notes.as_ref()?;
                // A runner that registers itself may be doing so now, or a page
                // of the list have missed it: while its VM is on, its name is looked up.
                let registers = on || notes.runner_id.is_some();
                registers.then(|| (notes.runner_id, notes.runner_name.clone()))
            }),
            on,
        };
        // One VM for each slot, beyond the pool's size if need be: a slot that has
        // one counts as taken, so that no new VM is made while there are too many.
        // And a VM that turns out to be getting a job needs a slot of its own.
        let home = home_of(vm, size);
        let free = |slot: &Assignment| slot.adopt.is_none() && slot.leftovers.is_empty();
        let slot = std::iter::once(home).chain(0..slots.len()).find(|&slot| free(&slots[slot]));
        let slot = slot.unwrap_or_else(|| {
            slots.push(Assignment::default());
            slots.len() - 1
        });
        slots[slot].leftovers.push(leftover);
    }
    let with_vm: HashSet<&str> = inventory.vms.iter().map(|vm| vm.id.incarnation.as_str()).collect();
    for disk in inventory.disks.iter().filter(|d| !with_vm.contains(d.incarnation.as_str())) {
        let home = slot_of_name(disk, size);
        slots[home].leftovers.push(Leftover { vm: disk.clone(), runner: None, on: false });
    }
    slots
}

/// VMs and disks of this pool that no slot has, with the slot (by index) that is to destroy each.
///
/// `views` must have been taken after the list came back: a slot announces an
/// incarnation before it makes it, so whatever is listed and not announced is
/// nobody's.
pub fn leftovers(inventory: &Inventory, views: &[&View], size: u32) -> Vec<(usize, Leftover)> {
    let known: HashSet<&str> =
        views.iter().filter_map(|v| v.made.as_ref()).map(|made| made.vm.incarnation.as_str()).collect();
    let mut found: Vec<(usize, Leftover)> = Vec::new();
    let mut seen = HashSet::new();
    for vm in &inventory.vms {
        if !known.contains(vm.id.incarnation.as_str()) && seen.insert(&vm.id) {
            let leftover = Leftover { vm: vm.id.clone(), runner: None, on: vm.power == Power::On };
            found.push((home_of(vm, size), leftover));
        }
    }
    for disk in &inventory.disks {
        if !known.contains(disk.incarnation.as_str()) && seen.insert(disk) {
            let leftover = Leftover { vm: disk.clone(), runner: None, on: false };
            found.push((slot_of_name(disk, size), leftover));
        }
    }
    found
}

fn made(vm: &Vm, runner: &Runner) -> Made {
    Made { vm: vm.id.clone(), runner_name: runner.name.clone(), runner_id: Some(runner.id) }
}

fn runner_of<'a>(vm: &Vm, runners: &'a [Runner]) -> Option<&'a Runner> {
    let notes = vm.notes.as_ref()?;
    match notes.runner_id {
        Some(id) => runners.iter().find(|r| r.id == id),
        None => runners.iter().find(|r| r.name == notes.runner_name),
    }
}

/// The slot that made a VM: it makes no other before this one is gone.
fn home_of(vm: &Vm, size: u32) -> usize {
    match &vm.notes {
        Some(notes) => index_of(notes.slot, size),
        None => slot_of_name(&vm.id, size),
    }
}

/// The slot that made a VM or disk, by the number in its name: all that is
/// known of what was cut off in the making.
fn slot_of_name(vm: &VmId, size: u32) -> usize {
    let digits = vm.name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let number = vm.name[vm.name.len() - digits..].parse().unwrap_or(1);
    index_of(number, size)
}

fn index_of(slot: u32, size: u32) -> usize {
    (slot.saturating_sub(1) % size.max(1)) as usize
}

fn free_slot(slots: &[Assignment], vm: &Vm) -> Option<usize> {
    let own = vm.notes.as_ref().map(|notes| notes.slot.saturating_sub(1) as usize);
    own.filter(|&slot| slots.get(slot).is_some_and(|s| s.adopt.is_none()))
        .or_else(|| slots.iter().position(|slot| slot.adopt.is_none()))
}

/// A list in pages can miss a runner. One that this many lists in a row leave out is gone.
const MISSED_AT_MOST: u8 = 3;

/// Finds registrations that no slot has.
#[derive(Debug)]
pub struct Orphans {
    prefix: String,
    /// Registrations of this pool, made in this process or read from a VM's
    /// Notes, and how many lists in a row have left each out.
    ours: HashMap<u64, u8>,
    /// Since when other registrations that look like this pool's have been offline.
    offline_since: HashMap<u64, Millis>,
    grace: Millis,
    shared: bool,
}

impl Orphans {
    /// For a pool whose VM names begin with `prefix`. A registration that only
    /// looks like the pool's must have been offline for `grace` milliseconds:
    /// longer than any VM takes to boot.
    pub fn new(prefix: &str, grace: Millis) -> Orphans {
        Orphans {
            prefix: prefix.into(),
            ours: HashMap::new(),
            offline_since: HashMap::new(),
            grace,
            shared: false,
        }
    }

    /// This pool has made the registration.
    pub fn made(&mut self, runner_id: u64) {
        self.ours.insert(runner_id, 0);
    }

    /// Whether another pool seems to use the same prefix in the same
    /// organisation or repository. Then no registration is taken for this
    /// pool's by its name.
    pub fn prefix_is_shared(&self) -> bool {
        self.shared
    }

    /// The registrations to remove. `views` must have been taken after `runners` came back.
    pub fn find(&mut self, runners: &[Runner], views: &[&View], now: Millis) -> Vec<u64> {
        let ids: HashSet<u64> = views.iter().filter_map(|v| v.made.as_ref()?.runner_id).collect();
        let names: HashSet<&str> =
            views.iter().filter_map(|v| v.made.as_ref()).map(|made| made.runner_name.as_str()).collect();
        let of_nobody: Vec<&Runner> =
            runners.iter().filter(|r| !ids.contains(&r.id) && !names.contains(r.name.as_str())).collect();
        let listed: HashSet<u64> = runners.iter().map(|r| r.id).collect();
        self.ours.retain(|id, missed| {
            *missed = if listed.contains(id) || ids.contains(id) { 0 } else { *missed + 1 };
            *missed < MISSED_AT_MOST
        });
        self.shared =
            of_nobody.iter().any(|r| r.online && !self.ours.contains_key(&r.id) && self.looks_like_ours(r));

        let mut still_offline = HashMap::new();
        let mut orphans = Vec::new();
        for runner in of_nobody.into_iter().filter(|r| !r.online && !r.busy) {
            if self.ours.contains_key(&runner.id) {
                orphans.push(runner.id);
            } else if self.looks_like_ours(runner) {
                let since = *self.offline_since.get(&runner.id).unwrap_or(&now);
                still_offline.insert(runner.id, since);
                if now - since >= self.grace && !self.shared {
                    orphans.push(runner.id);
                }
            }
        }
        self.offline_since = still_offline;
        orphans
    }

    /// An ephemeral runner under a name that this pool would give.
    fn looks_like_ours(&self, runner: &Runner) -> bool {
        let is_hex =
            |s: &str| s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let Some(rest) = runner.name.strip_prefix(&self.prefix) else { return false };
        let number = rest
            .split_once('-')
            .map_or(rest, |(number, incarnation)| if is_hex(incarnation) { number } else { "" });
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && runner.labels.iter().any(|label| label.eq_ignore_ascii_case("ephemeral"))
    }
}

/// Slots whose runner a list of all runners leaves out, with the runner's id.
/// (A list in pages can miss one when another goes away in between, so that
/// each has to be asked for by its id before anything is done.)
pub fn unlisted(runners: &[Runner], views: &[&View]) -> Vec<(usize, u64)> {
    let listed: HashSet<u64> = runners.iter().map(|r| r.id).collect();
    views
        .iter()
        .enumerate()
        .filter(|(_, v)| matches!(v.phase, Phase::Ready | Phase::Running))
        .filter_map(|(i, v)| Some((i, v.made.as_ref()?.runner_id?)))
        .filter(|(_, id)| !listed.contains(id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{Notes, VmId};
    use std::time::Duration;

    fn vm(slot: u32, runner_id: Option<u64>, power: Power) -> Vm {
        let id = VmId { name: format!("runner-{slot}"), incarnation: format!("{slot:016x}") };
        let notes = Notes {
            pool: "pool".into(),
            slot,
            incarnation: id.incarnation.clone(),
            runner_name: id.name.clone(),
            runner_id,
            created: 0,
        };
        Vm { id, power, uptime: Duration::ZERO, notes: Some(notes) }
    }

    fn runner(id: u64, busy: bool) -> Runner {
        Runner { id, name: format!("runner-{id}"), online: true, busy, labels: Vec::new() }
    }

    #[test]
    fn a_pool_that_has_shrunk_gives_every_vm_a_slot_so_that_none_is_made_before_enough_are_gone() {
        let vms = vec![
            vm(1, Some(1), Power::On),
            vm(2, Some(2), Power::Off),
            vm(3, Some(3), Power::On),
            vm(4, Some(4), Power::Off),
        ];
        let inventory = Inventory { vms, disks: Vec::new() };
        let slots = assign(&inventory, &[runner(1, true)], 2);
        assert_eq!(slots.len(), 4);
        assert!(slots[0].adopt.is_some() && slots[0].leftovers.is_empty());
        assert!(slots[1..].iter().all(|slot| slot.adopt.is_none() && slot.leftovers.len() == 1));
    }

    #[test]
    fn a_registration_that_one_list_left_out_is_still_known_as_the_pools() {
        let mut orphans = Orphans::new("runner-", 1_000_000);
        orphans.made(7);
        let offline = Runner { online: false, ..runner(7, false) };
        assert!(orphans.find(&[], &[], 0).is_empty());
        assert_eq!(orphans.find(&[offline], &[], 1), [7]);
    }

    #[test]
    fn a_vm_that_is_on_and_whose_runner_registers_itself_is_cleared_away_by_the_runners_name() {
        let vms = vec![vm(1, None, Power::On), vm(2, None, Power::Off), vm(3, Some(3), Power::Off)];
        let slots = assign(&Inventory { vms, disks: Vec::new() }, &[], 3);
        let runner = |slot: usize| slots[slot].leftovers[0].runner.clone();
        assert_eq!(runner(0), Some((None, "runner-1".into())));
        assert_eq!(runner(1), None);
        assert_eq!(runner(2), Some((Some(3), "runner-3".into())));
    }
}

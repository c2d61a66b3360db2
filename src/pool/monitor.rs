//! One thread that asks the hypervisor about all VMs at once and GitHub about
//! all runners at once, and tells each slot what changed.
//!
//! The pool is right with the monitor alone: callbacks and webhooks only make
//! it faster. The first round of all finds out what an earlier start left.

use super::slot::{Event, VmSight};
use super::{Shared, reconcile};
use crate::github::{Removal, Runner};
use crate::hypervisor::Inventory;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{debug, info, warn};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long to wait between tries to find out what is there at the start: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Starts the thread. It ends when the returned sender is dropped.
pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<(Sender<()>, JoinHandle<()>)> {
    let (quit, quitting) = crossbeam_channel::bounded(0);
    let thread = std::thread::Builder::new()
        .name("monitor".into())
        .stack_size(512 * 1024)
        .spawn(move || run(&shared, &quitting))?;
    Ok((quit, thread))
}

fn run(shared: &Arc<Shared>, quitting: &Receiver<()>) {
    let mut retry = FIRST_RETRY;
    loop {
        if shared.stopping().is_some() {
            return;
        }
        if let (Some((inventory, _)), Some((runners, _))) = (list_vms(shared), list_runners(shared)) {
            take_stock(shared, &inventory, &runners);
            break;
        }
        if pause(quitting, retry) {
            return;
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
    while !pause(quitting, shared.settings.poll) {
        if shared.stopping().is_some() {
            return;
        }
        if let Some((inventory, asked_at)) = list_vms(shared) {
            tell_of_vms(shared, &inventory, asked_at);
        }
        if let Some((runners, asked_at)) = list_runners(shared) {
            tell_of_runners(shared, &runners, asked_at);
        }
    }
}

/// Waits. Returns whether the pool stops.
fn pause(quitting: &Receiver<()>, time: Duration) -> bool {
    !matches!(quitting.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn list_vms(shared: &Shared) -> Option<(Inventory, i64)> {
    let asked_at = shared.now();
    let result = shared.hypervisor.list();
    let error = result.as_ref().err().map(|error| format!("cannot list the VMs: {error}"));
    note_error(&mut shared.lock().hypervisor_error, error);
    result.ok().map(|inventory| (inventory, asked_at))
}

fn list_runners(shared: &Shared) -> Option<(Vec<Runner>, i64)> {
    let asked_at = shared.now();
    let result = shared.github.runners();
    let error = result.as_ref().err().map(|error| format!("cannot list the runners: {error}"));
    note_error(&mut shared.lock().github_error, error);
    result.ok().map(|runners| (runners, asked_at))
}

/// Logs an error when it is new, and its end.
fn note_error(last: &mut Option<String>, error: Option<String>) {
    match (&last, &error) {
        (None, Some(why)) => warn!("{why}"),
        (Some(before), Some(why)) if before != why => warn!("{why}"),
        (Some(before), None) => info!("no longer: {before}"),
        _ => {}
    }
    *last = error;
}

fn take_stock(shared: &Arc<Shared>, inventory: &Inventory, runners: &[Runner]) {
    let assignments = reconcile::assign(inventory, runners, shared.settings.size);
    let mut inner = shared.lock();
    for (i, assignment) in assignments.iter().enumerate() {
        if let Some((made, busy)) = &assignment.adopt {
            info!("adopting {} in slot {}{}", made.vm, i + 1, if *busy { ", with a job on it" } else { "" });
        }
        for leftover in &assignment.leftovers {
            info!("clearing away {}, left by an earlier start", leftover.vm);
            if let Some((id, _)) = leftover.runner {
                inner.orphans.made(id);
            }
        }
    }
    drop(inner);
    shared.reconciled(assignments);
}

fn tell_of_vms(shared: &Shared, inventory: &Inventory, asked_at: i64) {
    let inner = shared.lock();
    for entry in &inner.slots {
        let Some(made) = &entry.view.made else { continue };
        let vm = inventory.vms.iter().find(|vm| vm.id.incarnation == made.vm.incarnation);
        let sight = vm.map_or(VmSight::Missing, |vm| vm.power.into());
        let incarnation = made.vm.incarnation.clone();
        entry.send(Event::VmObserved { incarnation, sight, asked_at });
    }
    for (slot, leftover) in reconcile::leftovers(inventory, &inner.views(), shared.settings.size) {
        debug!("{} is nobody's and is cleared away", leftover.vm);
        if let Some(entry) = inner.slots.get(slot) {
            entry.send(Event::Leftover(leftover));
        }
    }
}

fn tell_of_runners(shared: &Shared, runners: &[Runner], asked_at: i64) {
    let mut inner = shared.lock();
    for runner in runners {
        let slot = inner.slots.iter().find(|entry| {
            entry.view.made.as_ref().is_some_and(|made| match made.runner_id {
                Some(id) => id == runner.id,
                None => made.runner_name == runner.name,
            })
        });
        if let Some(entry) = slot {
            entry.send(Event::RunnerObserved {
                runner_id: runner.id,
                runner_name: runner.name.clone(),
                online: runner.online,
                busy: runner.busy,
                asked_at,
            });
        }
    }
    let views: Vec<_> = inner.slots.iter().map(|entry| entry.view.clone()).collect();
    let views: Vec<_> = views.iter().collect();
    let orphans = inner.orphans.find(runners, &views, shared.now());
    let unlisted = reconcile::unlisted(runners, &views);
    drop(inner);

    for (slot, runner_id) in unlisted {
        match shared.github.runner_by_id(runner_id) {
            Ok(None) => shared.tell(slot, Event::RunnerGone { runner_id }),
            Ok(Some(_)) => {}
            Err(error) => debug!("cannot look runner {runner_id} up: {error}"),
        }
    }
    for runner_id in orphans {
        match shared.github.remove(runner_id) {
            Ok(Removal::Removed) => info!("removed runner {runner_id}, which had no VM any more"),
            Ok(Removal::NotThere | Removal::Busy) => {}
            Err(error) => warn!("cannot remove runner {runner_id}, which has no VM any more: {error}"),
        }
    }
}

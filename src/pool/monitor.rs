//! One thread that asks the hypervisor about all VMs at once and GitHub about
//! all runners at once, and tells each slot what changed.
//!
//! The pool is right with the monitor alone: callbacks and webhooks only make
//! it faster. The first round of all finds out what an earlier start left.

use super::Shared;
use super::slot::{Event, Millis};
use crate::github::{Removal, Runner};
use crate::hypervisor::{Inventory, VmId};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{debug, info, warn};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait between tries to find out what is there at the start: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// How often the image's freshness is checked.
const IMAGE_CHECK: Duration = Duration::from_secs(24 * 3600);

/// How long the monitor's end is waited for. A listing can take minutes, and nothing is lost by leaving it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running thread.
pub(crate) struct Monitor {
    quit: Sender<()>,
    ended: Receiver<()>,
}

impl Monitor {
    /// Ends the thread, and waits a moment for it.
    pub(crate) fn quit(self) {
        drop(self.quit);
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

/// Starts the thread.
pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<Monitor> {
    let (quit, quitting) = crossbeam_channel::bounded(0);
    let (running, ended) = crossbeam_channel::bounded(0);
    std::thread::Builder::new().name("monitor".into()).stack_size(512 * 1024).spawn(move || {
        run(&shared, &quitting);
        drop(running);
    })?;
    Ok(Monitor { quit, ended })
}

fn run(shared: &Arc<Shared>, quitting: &Receiver<()>) {
    let mut retry = FIRST_RETRY;
    loop {
        if shared.stopping().is_some() {
            return;
        }
        if let (Some(inventory), Some((runners, _))) = (list_vms_surely(shared), list_runners(shared)) {
            take_stock(shared, &inventory, &runners);
            break;
        }
        if pause(quitting, retry) {
            return;
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
    let mut image_checked: Option<Instant> = None;
    while !pause(quitting, shared.settings.poll) {
        if shared.stopping().is_some() {
            return;
        }
        if image_checked.is_none_or(|at| at.elapsed() >= IMAGE_CHECK) {
            image_checked = Some(Instant::now());
            check_image(shared);
        }
        if let Some((inventory, asked_at)) = list_vms(shared) {
            tell_of_vms(shared, &inventory, asked_at);
        }
        if let Some((runners, asked_at)) = list_runners(shared) {
            tell_of_runners(shared, &runners, asked_at);
        }
    }
}

fn check_image(shared: &Shared) {
    match shared.github.newest_runner_version() {
        Ok(Some(version)) => shared.lock().newest_runner_is(version),
        Ok(None) => {}
        Err(error) => debug!("{error}"),
    }
    let report = shared.lock().image_report();
    report.warnings.iter().for_each(|warning| warn!("{warning}"));
}

/// Waits. Returns whether the pool stops.
fn pause(quitting: &Receiver<()>, time: Duration) -> bool {
    !matches!(quitting.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn list_vms(shared: &Shared) -> Option<(Inventory, Millis)> {
    let asked_at = shared.now();
    let result = shared.hypervisor.list(&[]);
    let error = result.as_ref().err().map(|error| format!("cannot list the VMs: {error}"));
    let before = std::mem::replace(&mut shared.lock().hypervisor_error, error.clone());
    note_change(before, error);
    result.ok().map(|inventory| (inventory, asked_at))
}

/// The list that decides what becomes of everything an earlier start left. A list can leave a VM out, whose disk is
/// then a disk without a VM and would be cleared away under a running job: so what lacks its VM is looked at twice.
fn list_vms_surely(shared: &Shared) -> Option<Inventory> {
    let (mut inventory, _) = list_vms(shared)?;
    let lacks_its_vm = |disk: &VmId| !inventory.vms.iter().any(|vm| vm.id == *disk);
    if inventory.disks.iter().any(lacks_its_vm) {
        let (second, _) = list_vms(shared)?;
        let missed = second.vms.into_iter().filter(|vm| !inventory.vms.iter().any(|known| known.id == vm.id));
        let missed: Vec<_> = missed.collect();
        inventory.vms.extend(missed);
    }
    Some(inventory)
}

fn list_runners(shared: &Shared) -> Option<(Vec<Runner>, Millis)> {
    let asked_at = shared.now();
    let result = shared.github.runners();
    let error = result.as_ref().err().map(ToString::to_string);
    let before = std::mem::replace(&mut shared.lock().github_error, error.clone());
    note_change(before, error);
    result.ok().map(|runners| (runners, asked_at))
}

/// Logs an error when it is new, and its end. Not under the lock: a log can be slow.
fn note_change(before: Option<String>, now: Option<String>) {
    match (before, now) {
        (None, Some(why)) => warn!("{why}"),
        (Some(before), Some(why)) if before != why => warn!("{why}"),
        (Some(before), None) => info!("no longer: {before}"),
        _ => {}
    }
}

fn take_stock(shared: &Arc<Shared>, inventory: &Inventory, runners: &[Runner]) {
    let assignments = shared.lock().book.take_stock(inventory, runners);
    for (i, assignment) in assignments.iter().enumerate() {
        if let Some((made, busy)) = &assignment.adopt {
            info!("adopting {} in slot {}{}", made.vm, i + 1, if *busy { ", with a job on it" } else { "" });
        }
        for leftover in &assignment.leftovers {
            info!("clearing away {}, left by an earlier start", leftover.vm);
        }
    }
    shared.reconciled(assignments);
}

fn tell_of_vms(shared: &Shared, inventory: &Inventory, asked_at: Millis) {
    let inner = shared.lock();
    inner.send(inner.book.vms_listed(inventory, asked_at));
}

fn tell_of_runners(shared: &Shared, runners: &[Runner], asked_at: Millis) {
    let mut inner = shared.lock();
    let round = inner.book.runners_listed(runners, asked_at, shared.now());
    inner.send(round.mail);
    drop(inner);

    for (slot, runner_id) in round.unlisted {
        match shared.github.runner_by_id(shared.github.scope(), runner_id) {
            Ok(None) => shared.tell(slot, Event::RunnerGone { runner_id }),
            Ok(Some(_)) => {}
            Err(error) => debug!("{error}"),
        }
    }
    for runner_id in round.orphans {
        match shared.github.remove(shared.github.scope(), runner_id) {
            Ok(Removal::Removed) => info!("removed runner {runner_id}, which had no VM any more"),
            Ok(Removal::NotThere | Removal::Busy) => {}
            Err(error) => warn!("{error} (it has no VM any more)"),
        }
    }
}

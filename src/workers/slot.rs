//! The thread of one slot: performs its actions, one call at a time, and feeds
//! back what came of each.

use super::{Shared, Work};
use crate::github::{self, Removal};
use crate::hypervisor::{Notes, VmSpec};
use crate::pool::millis;
use crate::pool::slot::types::{Action, Event, Failure, Phase};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::{debug, info};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs a slot's worker until the slot has stopped.
pub(super) fn run(index: usize, works: &Receiver<Work>, shared: &Arc<Shared>) {
    loop {
        let mut inner = shared.lock();
        let now = shared.now();
        let slot = inner.state.slot(index);
        if slot.phase() == Phase::Stopped {
            if let Some(left) = slot.instance() {
                info!("{}: left as it is for the next start", left.vm);
            }
            inner.workers[index].ended = true;
            drop(inner);
            shared.slot_stopped.notify_all();
            return;
        }
        let deadline = inner.state.deadline(index, now);
        inner.workers[index].waits_for = deadline;
        drop(inner);
        let work = match deadline {
            None => works.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => works.recv_timeout(Duration::from_millis(u64::try_from(at - now).unwrap_or(0))),
        };
        match work {
            Ok(Work::Perform(action)) => {
                let answer = perform(shared, index, action);
                shared.apply(|state| state.performed(index, answer));
            }
            Ok(Work::Look) => {}
            Err(RecvTimeoutError::Timeout) => {
                shared.apply(|state| state.tick(index));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn perform(shared: &Shared, index: usize, action: Action) -> Event {
    let Shared { github, hypervisor, .. } = shared;
    match action {
        Action::Register { runner_name } => {
            Event::Registered(github.register(&runner_name).map_err(github_failure))
        }
        Action::FindRunner { scope, runner_name } => {
            let found = github.runner_by_name(&scope, &runner_name);
            Event::Found(found.map(|runner| runner.map(|runner| runner.id)).map_err(github_failure))
        }
        Action::RemoveRunner { not_after: Some(limit), .. } if shared.now() > limit => {
            let why = "what was known of the VM is too old".into();
            Event::RunnerRemoved(Err(Failure { why, retry_after: None }))
        }
        Action::RemoveRunner { scope, runner_id, .. } => {
            let removal: Result<Removal, _> = github.remove(&scope, runner_id);
            debug!("removing runner {runner_id} of the {scope}: {removal:?}");
            Event::RunnerRemoved(removal.map_err(github_failure))
        }
        Action::CreateVm(instance) => {
            let notes = Notes {
                pool: shared.identity.clone(),
                slot: index as u32 + 1,
                incarnation: instance.vm.incarnation.clone(),
                scope: instance.scope,
                runner_name: instance.runner_name,
                runner_id: instance.runner_id,
                fingerprint: shared.fingerprint(),
                created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
                job_started: None,
            };
            let secret = shared.keys.vm_secret(&instance.vm.name, &instance.vm.incarnation);
            let created = hypervisor.create(&VmSpec { id: instance.vm, notes, secret });
            Event::Created(created.map_err(|error| vm_failure(format!("cannot create its VM: {error}"))))
        }
        Action::DestroyVm(vm) => {
            let destroyed = hypervisor.destroy(&vm);
            Event::Destroyed(destroyed.map_err(|error| vm_failure(format!("cannot destroy {vm}: {error}"))))
        }
    }
}

/// GitHub's errors say themselves what was not done.
fn github_failure(error: github::Error) -> Failure {
    let retry_after = match &error {
        github::Error::RateLimited { retry_after, .. } => Some(millis(*retry_after)),
        _ => None,
    };
    Failure { why: error.to_string(), retry_after }
}

fn vm_failure(why: String) -> Failure {
    Failure { why, retry_after: None }
}

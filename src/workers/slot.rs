//! The thread of one slot: performs its actions, one call at a time, and feeds
//! back what came of each.

use super::Shared;
use crate::github::{self, Removal};
use crate::hypervisor::{Notes, VmSpec};
use crate::pool::millis;
use crate::pool::slot::types::{Action, Event, Failure, Phase};
use log::debug;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs a slot's worker until the slot has stopped.
pub(super) fn run(index: usize, wake: &Condvar, shared: &Arc<Shared>) {
    let mut inner = shared.lock();
    loop {
        if let Some(action) = inner.workers[index].action.take() {
            drop(inner);
            let answer = perform(shared, index, action);
            shared.apply(|state| state.performed(index, answer));
            inner = shared.lock();
            continue;
        }
        if inner.state.slot(index).phase() == Phase::Stopped {
            return;
        }
        let now = shared.now();
        let deadline = inner.state.deadline(index, now);
        inner.workers[index].waits_for = deadline;
        inner = match deadline {
            None => wake.wait(inner).unwrap_or_else(PoisonError::into_inner),
            Some(at) if at > now => {
                let wait = Duration::from_millis((at - now) as u64);
                wake.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                drop(inner);
                shared.apply(|state| state.tick(index));
                shared.lock()
            }
        };
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

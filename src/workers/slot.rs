//! The thread of one slot: performs its actions, one call at a time, and feeds
//! back what came of each.

use super::Shared;
use crate::github::{self, Removal};
use crate::hypervisor::{Examination, Notes, VmId, VmSpec};
use crate::pool::millis;
use crate::pool::slot::types::{Action, Event, Findings, Instance, Phase};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs a slot's worker until the slot has stopped.
pub(super) fn run(index: usize, work: &Receiver<Option<Action>>, shared: &Arc<Shared>) {
    loop {
        let mut inner = shared.lock();
        let now = shared.now();
        let deadline = inner.state.deadline(index, now);
        inner.workers[index].waits_for = deadline;
        if inner.state.slot(index).phase() == Phase::Stopped && work.is_empty() {
            return;
        }
        drop(inner);
        let next = match deadline {
            None => work.recv().map_err(RecvTimeoutError::from),
            Some(at) => work.recv_timeout(Duration::from_millis(at.saturating_sub(now).max(0) as u64)),
        };
        let event = match next {
            Ok(Some(action)) => perform(shared, index, action),
            Ok(None) => continue,
            Err(RecvTimeoutError::Timeout) => Event::Tick,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        shared.apply(|state| state.tell(index, event));
    }
}

fn perform(shared: &Shared, index: usize, action: Action) -> Event {
    let Shared { github, hypervisor, .. } = shared;
    match action {
        Action::Register { runner_name } => Event::Registered(github.register(&runner_name)),
        Action::RemoveRunner { not_after: Some(limit), .. } if shared.now() > limit => {
            let why = "what was known of the VM is too old".into();
            Event::RunnerRemoved(Err(github::Error::Failed(why)))
        }
        Action::RemoveRunner { instance: Instance { scope, runner_name, runner_id, .. }, .. } => {
            let runner_id = match runner_id {
                Some(id) => Ok(Some(id)),
                None => github.runner_by_name(&scope, &runner_name).map(|found| Some(found?.id)),
            };
            let removal = runner_id.and_then(|id| match id {
                Some(id) => github.remove(&scope, id),
                None => Ok(Removal::NotThere),
            });
            debug!("removing {runner_name} of the {scope}: {removal:?}");
            Event::RunnerRemoved(removal)
        }
        Action::CreateVm { instance, jit_config } => {
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
            Event::Created(hypervisor.create(&VmSpec { id: instance.vm, notes, secret, jit_config }))
        }
        Action::DestroyVm(vm) => {
            save_failure(shared, &vm);
            Event::Destroyed(hypervisor.destroy(&vm))
        }
        Action::KeepVm(vm) => {
            save_failure(shared, &vm);
            Event::Destroyed(hypervisor.keep(&vm))
        }
        Action::ExamineVm(vm) => {
            let Examination { uptime, addresses, picture: png, missing } =
                hypervisor.examine(&vm).unwrap_or_else(|error| Examination {
                    missing: Some(error.to_string()),
                    ..Examination::default()
                });
            let picture = png.as_ref().and_then(|png| shared.failed_vms.save_picture(&vm.incarnation, png));
            let lost = "its screen, since LOG_DIR is not set";
            let missing = missing.or((png.is_some() && !shared.failed_vms.are_kept()).then(|| lost.into()));
            Event::Examined(Findings { uptime: uptime.map(millis), addresses, picture, missing })
        }
    }
}

/// Writes down what is known of a VM that failed. By its end that is all that will be known, and
/// here a slow disk makes nobody else wait.
fn save_failure(shared: &Shared, vm: &VmId) {
    let failure = shared.lock().state.history.failure_of(&vm.incarnation).cloned();
    if let Some(failure) = failure {
        shared.failed_vms.save(&failure, shared.now());
    }
}

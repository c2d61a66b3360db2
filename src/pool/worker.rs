//! The thread of one slot: performs what [`slot`](super::slot) decides, one
//! call at a time, and feeds back what came of it.

use super::slot::{Effect, Event, Failure, Found, Millis, Registered, Slot, View};
use super::{Shared, view_name};
use crate::github;
use crate::hypervisor::{self, Notes, VmSpec};
use crate::secret::Secret;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::{debug, info, warn};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs a slot until it has stopped.
pub(crate) fn run(mut slot: Slot, index: usize, events: &Receiver<Event>, shared: &Arc<Shared>) {
    let mut worker = Worker { index, shared, credential: None, told_to_stop: false };
    let mut effect = None;
    loop {
        worker.publish(&slot);
        if slot.view().phase == super::Phase::Stopped {
            break;
        }
        let event = match effect {
            Some(effect) => {
                let answer = worker.perform(effect, &slot.view());
                // A call can take minutes. What it leads to must not be begun if the pool stops by now.
                worker.stop_unless_told(&mut slot);
                answer
            }
            None => match next_event(events, slot.deadline(), shared.now()) {
                Some(event) => event,
                // Every sender is gone with the pool.
                None => break,
            },
        };
        effect = slot.step(event, shared.now());
    }
    let view = slot.view();
    if let Some(made) = &view.made {
        info!("{}: left as it is for the next start", made.vm);
    }
}

/// The next message, or a tick at the deadline.
fn next_event(events: &Receiver<Event>, deadline: Option<Millis>, now: Millis) -> Option<Event> {
    match deadline {
        None => events.recv().ok(),
        Some(deadline) => {
            let wait = Duration::from_millis(u64::try_from(deadline - now).unwrap_or(0));
            match events.recv_timeout(wait) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => Some(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => None,
            }
        }
    }
}

struct Worker<'a> {
    index: usize,
    shared: &'a Arc<Shared>,
    /// Of the VM being made, or made. An adopted VM's is not known, nor needed.
    credential: Option<Secret>,
    told_to_stop: bool,
}

impl Worker<'_> {
    fn publish(&mut self, slot: &Slot) {
        let view = slot.view();
        if view.made.is_none() {
            self.credential = None;
        }
        if let (Some(cause), Some(made)) = (slot.cause(), &view.made) {
            debug!("{}: destroying because of {cause:?}", made.vm);
        }
        self.shared.publish(self.index, view, self.credential.as_ref());
    }

    /// Tells the slot, whose call has just ended, of a stop that came meanwhile. (What to do is said once it has the
    /// call's answer.)
    fn stop_unless_told(&mut self, slot: &mut Slot) {
        if let Some(stop) = self.shared.stopping()
            && !std::mem::replace(&mut self.told_to_stop, true)
        {
            slot.step(Event::Stop(stop), self.shared.now());
        }
    }

    fn perform(&mut self, effect: Effect, view: &View) -> Event {
        let Shared { github, hypervisor, settings, .. } = &**self.shared;
        let name = view_name(&settings.name_prefix, view);
        match effect {
            Effect::Register { runner_name } => Event::Registered(match github.register(&runner_name) {
                Ok(registration) => {
                    self.credential = Some(registration.credential);
                    Ok(Registered::Done(registration.runner_id))
                }
                Err(github::Error::NameTaken) => Ok(Registered::NameTaken),
                Err(error) => Err(github_failure(&name, error)),
            }),
            Effect::FindRunner { runner_name } => {
                Event::Found(match github.runner_by_name(github.scope(), &runner_name) {
                    Ok(runner) => {
                        Ok(runner.map(|runner| Found { runner_id: runner.id, stale: self.is_stale(&runner) }))
                    }
                    Err(error) => Err(github_failure(&name, error)),
                })
            }
            Effect::RemoveRunner { runner_id } => Event::RunnerRemoved(
                github
                    .remove(github.scope(), runner_id)
                    .inspect(|removal| debug!("{name}: removing runner {runner_id}: {removal:?}"))
                    .map_err(|error| github_failure(&name, error)),
            ),
            Effect::CreateVm(made) => {
                let notes = Notes {
                    pool: settings.identity.clone(),
                    slot: view.number,
                    incarnation: made.vm.incarnation.clone(),
                    scope: github.scope().clone(),
                    fingerprint: hypervisor.fingerprint(),
                    job_started: None,
                    runner_name: made.runner_name,
                    runner_id: made.runner_id,
                    created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
                };
                let secret = self.shared.keys.vm_secret(&made.vm.name, &made.vm.incarnation);
                let spec = VmSpec { id: made.vm, notes, secret };
                let began = self.shared.now();
                let created = hypervisor.create(&spec);
                if created.is_ok() {
                    info!("{}: created in {:.1} s", spec.id, seconds(self.shared.now() - began));
                }
                Event::Created(created.map_err(|error| vm_failure(&name, "cannot create its VM", error)))
            }
            Effect::DestroyVm(vm) => {
                let began = self.shared.now();
                let destroyed = hypervisor.destroy(&vm);
                if destroyed.is_ok() {
                    info!("{vm}: destroyed in {:.1} s", seconds(self.shared.now() - began));
                }
                Event::Destroyed(
                    destroyed.map_err(|error| vm_failure(&name, &format!("cannot destroy {vm}"), error)),
                )
            }
        }
    }

    /// Whether the runner is what an earlier VM of this pool left behind.
    fn is_stale(&self, runner: &github::Runner) -> bool {
        let ephemeral = runner.labels.iter().any(|label| label.eq_ignore_ascii_case("ephemeral"));
        ephemeral && !runner.online && !runner.busy && !self.shared.lock().book.prefix_is_shared()
    }
}

/// GitHub's errors say themselves what was not done.
fn github_failure(name: &str, error: github::Error) -> Failure {
    let retry_after = match &error {
        github::Error::RateLimited { retry_after, .. } => {
            Millis::try_from(retry_after.as_millis()).unwrap_or(0)
        }
        _ => 0,
    };
    warn!("{name}: {error}");
    Failure { why: error.to_string(), retry_after }
}

fn vm_failure(name: &str, what: &str, error: hypervisor::Error) -> Failure {
    warn!("{name}: {what}: {error}");
    Failure { why: format!("{what}: {error}"), retry_after: 0 }
}

fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1000.0
}

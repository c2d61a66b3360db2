//! The end of a VM: what is made of it, and how VM, disk and registration go.

use super::types::{Action, Cause, Findings, Instance, Job, News, OrphanVm, Phase, RetireReason, Stop};
use super::{Awaiting, Context, Slot, State};
use crate::github::{self, Removal};
use crate::hypervisor;
use crate::pool::back_off;
use crate::pool::{Millis, Rules};

/// How long after a creation was cut off Hyper-V may still finish it.
const SECOND_LOOK_AFTER: Millis = 5_000;

/// How often a destruction is tried when the pool stops.
const TRIES_AT_STOP: u32 = 3;

#[derive(Clone, Debug)]
pub(super) struct Destroying {
    pub(super) instance: Instance,
    /// What to make of it once it is over: how long to wait before the next VM.
    pub(super) retry_after: Millis,
    pub(super) vm_gone: bool,
    /// The removal of the registration was tried, or there is none.
    pub(super) deregistered: bool,
    /// Look at it first, since it runs and nobody knows why it did not boot.
    pub(super) examine: bool,
    /// Keep it for inspection. If that fails, it is destroyed as any other.
    pub(super) keep: bool,
    /// Look once more: Hyper-V may finish a creation that was cut off.
    pub(super) look_again: bool,
    /// Only a disk is left: one that cannot be deleted must not hold the slot forever.
    pub(super) may_stay: bool,
    pub(super) attempts: u32,
    pub(super) retry_at: Millis,
}

impl Slot {
    /// The VM, if there is one, is of no further use.
    pub(super) fn end(&mut self, cause: Cause, cx: &mut Context) {
        let from = self.phase();
        let Some(live) = self.take_live() else { return };
        // A guest that ends when asked to retire does as it is told.
        let cause = match live.retire.as_ref().filter(|retire| retire.told_at.is_some()) {
            Some(retire) if from == Phase::Ready && cause != Cause::Vanished => Cause::Retired(retire.reason),
            _ => cause,
        };
        let had_job = live.job.is_some();
        let heard = live.last_heard();
        let job = live.job.map(|job| {
            let started = live.evidence.started_at.unwrap_or(live.since) + live.job_started.unwrap_or(0);
            (job, (cx.now - started).max(0))
        });
        cx.news.push(News::Ended {
            vm: live.instance.vm.clone(),
            was_ready: from != Phase::Booting,
            cause: cause.clone(),
            job,
            heard,
        });
        // A guest that was not answered has had no job, so that its screen shows nothing of one.
        let examine = from == Phase::Booting && cause == Cause::BootTimeout;
        // What a job left on its disk goes with the job.
        let keep =
            cx.rules.pool.keep_failed && !had_job && cause != Cause::Vanished && cause.is_failure(false);
        let retry_after = match &cause {
            Cause::Retired(_) | Cause::Stop => 0,
            _ if had_job => {
                self.jobs_completed += u64::from(cause != Cause::JobTimeout);
                self.clear_failure();
                0
            }
            cause => {
                let why = match (cause, from) {
                    (Cause::BootTimeout, _) => format!(
                        "the guest did not fetch its configuration within {} s of starting (see C:\\actions-runner\\pool-guest.log in the image)",
                        cx.rules.boot_timeout() / 1000
                    ),
                    (Cause::PoweredOff, Phase::Booting) => {
                        "the VM powered off before its guest fetched its configuration".into()
                    }
                    (Cause::RunnerGone, _) => {
                        "the runner was removed from GitHub, or did not stay online".into()
                    }
                    (cause, _) => format!("the VM ended without a job: {cause}"),
                };
                // The next VM is as outdated, until there is a new image or a new answer.
                let retry_after = if cause.is_outdated() { back_off::MOST } else { 0 };
                self.count_failure(why, retry_after, cx.now)
            }
        };
        self.enter(
            State::Destroying(Destroying {
                retry_after,
                examine,
                keep,
                ..Destroying::new(live.instance, cx.now)
            }),
            cx.now,
        );
    }

    /// It was looked at, or could not be: either way it goes now.
    pub(super) fn examined(&mut self, findings: Findings, cx: &mut Context) {
        self.awaiting = None;
        let State::Destroying(d) = &mut self.state else { return };
        d.examine = false;
        cx.news.push(News::Examined(d.instance.vm.clone(), findings));
    }

    /// Destroys an orphan as this slot's own VM, so that nothing is created before it is gone.
    pub(super) fn clear_away(&mut self, orphan: OrphanVm, rules: &Rules, now: Millis) {
        let (deregistered, may_stay) = (orphan.notes.is_none(), orphan.power.is_none());
        let instance = match &orphan.notes {
            Some(notes) => Instance::of_notes(&orphan.vm, notes),
            None => Instance::new(orphan.vm, rules.scope.clone()),
        };
        self.enter(
            State::Destroying(Destroying { deregistered, may_stay, ..Destroying::new(instance, now) }),
            now,
        );
    }

    pub(super) fn destroyed(&mut self, answer: Result<(), hypervisor::Error>, cx: &mut Context) {
        if self.awaiting.take() == Some(Awaiting::Orphan) {
            // The monitor finds it again if it is still there.
            return;
        }
        let since = self.since;
        let State::Destroying(d) = &mut self.state else { return };
        match answer {
            Ok(()) if d.look_again => {
                d.look_again = false;
                d.retry_at = cx.now + SECOND_LOOK_AFTER;
            }
            Ok(()) if d.keep => {
                d.vm_gone = true;
                cx.news.push(News::Kept(d.instance.vm.clone()));
            }
            Ok(()) => {
                d.vm_gone = true;
                cx.news.push(News::Destroyed(d.instance.vm.clone(), cx.now - since));
            }
            Err(error) if d.keep => {
                d.keep = false;
                let why = format!("cannot keep {}, so it is destroyed: {error}", d.instance.vm);
                self.tell_failure("keep", &why, cx.news);
            }
            Err(error) if d.may_stay => {
                // The monitor finds it again, and it is tried again then.
                d.vm_gone = true;
                let why = format!("cannot destroy it: {error}");
                cx.news.push(News::Failed { whose: d.instance.vm.to_string(), what: "destroy", why });
            }
            Err(error) => {
                d.attempts = d.attempts.saturating_add(1);
                d.retry_at = cx.now + back_off::wait(d.attempts, &mut self.random);
                let why = format!("cannot destroy {}: {error}", d.instance.vm);
                self.tell_failure("destroy", &why, cx.news);
                self.reason = Some(why);
                self.failed_at = cx.now;
            }
        }
    }

    pub(super) fn runner_removed(&mut self, answer: Result<Removal, github::Error>, cx: &mut Context) {
        self.awaiting = None;
        match (&mut self.state, answer) {
            (State::Destroying(d), Ok(Removal::Busy)) if self.stop == Some(Stop::HostShutdown) => {
                d.deregistered = true;
                cx.news.push(News::JobLost(d.instance.vm.clone(), Job::default()));
            }
            // What cannot be removed now is swept later.
            (State::Destroying(d), _) => {
                d.deregistered = true;
            }
            (State::Ready(live), Ok(Removal::Removed | Removal::NotThere)) => {
                if let Some(retire) = &mut live.retire {
                    retire.deregistered = true;
                }
                live.evidence.runner_gone();
            }
            (State::Ready(_), Ok(Removal::Busy)) => self.job_starts(Job::default(), cx),
            // The next list is the occasion for the next try.
            _ => {}
        }
    }

    pub(super) fn finish_if_gone(&mut self, now: Millis) {
        let State::Destroying(d) = &mut self.state else { return };
        // Its VM and disk are left to the next start.
        d.vm_gone |= self.stop == Some(Stop::HostShutdown);
        d.examine &= self.stop.is_none();
        if d.vm_gone && d.deregistered {
            // What could not be destroyed before is destroyed now.
            if d.attempts > 0 && self.failures == 0 {
                self.reason = None;
            }
            let retry_at = now + d.retry_after;
            self.enter(State::Empty { retry_at }, now);
        }
    }

    // --- stopping ---

    pub(super) fn obey_stop(&mut self, cx: &mut Context) {
        let Some(stop) = self.stop else { return };
        let left = match (&self.state, stop) {
            (State::Stopped { .. }, _) => return,
            // No VM was begun for this registration.
            (State::Creating { instance, credential: Some(_) }, _) if instance.runner_id.is_some() => {
                return self.deregister(instance.clone(), cx.now);
            }
            (State::Booting(live) | State::Ready(live), Stop::HostShutdown) => {
                return self.deregister(live.instance.clone(), cx.now);
            }
            (State::Running(live), Stop::HostShutdown) => {
                let left = live.instance.clone();
                cx.news.push(News::JobLost(left.vm.clone(), live.job.clone().unwrap_or_default()));
                return self.enter(State::Stopped { left: Some(left) }, cx.now);
            }
            (State::Recovering | State::Empty { .. } | State::Creating { .. }, _) => None,
            (State::Booting(_), _) | (State::Ready(_) | State::Running(_), Stop::Destroy) => {
                return self.end(Cause::Stop, cx);
            }
            (State::Ready(_), Stop::Keep) => return self.retire(RetireReason::Stop, cx),
            (State::Running(live), Stop::Keep) => Some(live.instance.clone()),
            // What cannot be removed now, the next start finds and removes.
            (State::Destroying(d), _) if d.attempts >= TRIES_AT_STOP => {
                (!d.vm_gone).then(|| d.instance.clone())
            }
            (State::Destroying(_), _) => return,
        };
        cx.news.extend(left.iter().map(|left| News::LeftToNextStart(left.vm.clone())));
        self.enter(State::Stopped { left }, cx.now);
    }

    /// Only its registration is to be removed.
    fn deregister(&mut self, instance: Instance, now: Millis) {
        let gone = Destroying { vm_gone: true, ..Destroying::new(instance, now) };
        self.enter(State::Destroying(gone), now);
    }
}

impl Destroying {
    pub(super) fn new(instance: Instance, now: Millis) -> Destroying {
        Destroying {
            instance,
            retry_after: 0,
            vm_gone: false,
            deregistered: false,
            examine: false,
            keep: false,
            look_again: false,
            may_stay: false,
            attempts: 0,
            retry_at: now,
        }
    }

    pub(super) fn next_action(&self) -> Action {
        if self.examine {
            return Action::ExamineVm(self.instance.vm.clone());
        }
        if !self.vm_gone && self.keep {
            return Action::KeepVm(self.instance.vm.clone());
        }
        if !self.vm_gone {
            return Action::DestroyVm(self.instance.vm.clone());
        }
        Action::RemoveRunner { instance: self.instance.clone(), not_after: None }
    }
}

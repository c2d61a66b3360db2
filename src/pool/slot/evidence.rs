//! What is known of a VM that runs, and what follows from it.
//!
//! GitHub gives reasons, never evidence: `busy` is late and sometimes wrong, a
//! DELETE has succeeded on a runner with a job, and a listener whose
//! registration is gone cancels its running job. So what GitHub says of a
//! runner counts only together with the host's word (Hyper-V's heartbeat, and
//! whether the guest names a Runner.Worker), or after GitHub itself has given
//! up the runner's job.

use crate::github::Runner;
use crate::hypervisor::{GuestWord, Heartbeat, Power, Vm};
use crate::pool::{Millis, millis};

const MINUTE: Millis = 60_000;

/// After this time without a runner GitHub has given up its job: the lease of
/// a job lasts ten minutes.
pub const LEASE: Millis = 11 * MINUTE;

/// How late a guest's word may be: a Worker that started this long ago is named.
pub const WORD_LAG: Millis = MINUTE;

/// For how long GitHub must call the runner of a running VM offline: shorter is a network's hiccup.
const HICCUP: Millis = 2 * MINUTE;

/// A VM that so many lists in a row, over so long a time, leave out is gone.
const MISSING_LISTS: u8 = 3;
const MISSING_TIME: Millis = MINUTE;

/// What the host and GitHub have said of one VM. Its times are the VM's own
/// uptimes at the lists that brought them, which no clock's jump and no
/// suspended host can stretch.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Lists in a row that left the VM out, and when the first of them was asked for (by the pool's clock).
    missing: Option<(u8, Millis)>,
    pub(super) paused: bool,
    /// What Hyper-V said of it at the last list.
    pub(super) heartbeat: Option<Heartbeat>,
    pub(super) word: Option<GuestWord>,
    word_seen: bool,
    /// The uptime at the last list. `None` before the first list of an adopted VM.
    pub(super) uptime: Option<Millis>,
    /// The same by the pool's clock: when it started.
    pub(super) started_at: Option<Millis>,
    /// The first and the last list that name no Worker, without one between that does.
    no_worker: Option<(Millis, Millis)>,
    /// When GitHub was first and last asked that calls the runner offline, or
    /// does not know it, without an answer between that says otherwise.
    away: Option<(Millis, Millis)>,
    /// GitHub was asked by the runner's id and does not know it.
    gone: bool,
    /// GitHub does not let the token see the runner.
    pub(super) hidden: bool,
    /// When GitHub last called the runner online and idle.
    idle: Option<Millis>,
    /// When the VM was last found idle, by the pool's clock: by a list that
    /// names no Worker, or, of a mute guest, by GitHub.
    found_idle_at: Option<Millis>,
    /// When a job was last heard of, and that by the pool's clock.
    last_sign: Option<(Millis, Millis)>,
}

impl Evidence {
    /// Of a VM that has just been started.
    pub fn of_new_vm(now: Millis) -> Evidence {
        Evidence { uptime: Some(0), started_at: Some(now), ..Evidence::default() }
    }

    /// Takes in what a list says of the VM, if it names it. Answers whether the VM is gone from the host.
    pub fn vm_observed(&mut self, vm: Option<&Vm>, asked_at: Millis) -> bool {
        let Some(vm) = vm else {
            let (lists, first) = self.missing.unwrap_or((0, asked_at));
            let lists = lists.saturating_add(1);
            self.missing = Some((lists, first));
            return lists >= MISSING_LISTS && asked_at - first >= MISSING_TIME;
        };
        let uptime = millis(vm.uptime);
        self.missing = None;
        self.paused = vm.power == Power::Paused;
        self.heartbeat = Some(vm.heartbeat);
        self.word.clone_from(&vm.guest);
        self.uptime = Some(uptime);
        self.started_at = Some(asked_at - uptime);
        // A clock that was off can have put it into the VM's future.
        if let Some((sign, at)) = &mut self.last_sign
            && asked_at > *at
        {
            *sign = uptime.min(*sign);
        }
        let Some(word) = &vm.guest else { return false };
        self.word_seen = true;
        if word.worker {
            (self.no_worker, self.found_idle_at) = (None, None);
        } else if !self.heartbeat_lost() {
            // (What a guest said before its heartbeat was lost may no longer hold.)
            self.no_worker = Some((self.no_worker.map_or(uptime, |(first, _)| first), uptime));
            self.found_idle_at = Some(asked_at);
        }
        false
    }

    /// Takes in what GitHub, asked at this time, says.
    pub fn runner_observed(&mut self, runner: &Runner, asked_at: Millis) {
        (self.gone, self.hidden) = (false, false);
        if !runner.online && !runner.busy {
            return self.is_away();
        }
        self.away = None;
        if !runner.busy {
            self.idle = self.uptime;
            if self.is_mute() {
                self.found_idle_at = Some(asked_at);
            }
        }
    }

    /// GitHub does not know the runner.
    pub fn runner_gone(&mut self) {
        self.gone = true;
        self.is_away();
    }

    fn is_away(&mut self) {
        if let Some(uptime) = self.uptime {
            self.away = Some((self.away.map_or(uptime, |(first, _)| first), uptime));
        }
    }

    /// What GitHub said of the runner before says nothing any more: its guest
    /// has only now got its configuration, or it has had a job since.
    pub fn forget_away(&mut self) {
        self.away = None;
        self.gone = false;
    }

    /// A job was heard of: what was said before does not know of it.
    pub fn job_sign(&mut self, now: Millis) {
        self.last_sign = Some((self.started_at.map_or(Millis::MAX, |started| now - started), now));
        (self.no_worker, self.idle, self.found_idle_at, self.away) = (None, None, None, None);
    }

    fn heartbeat_lost(&self) -> bool {
        self.heartbeat == Some(Heartbeat::Lost)
    }

    /// Whether the guest runs a job by its own word, and Hyper-V hears it.
    pub fn names_worker(&self) -> bool {
        !self.heartbeat_lost() && self.word.as_ref().is_some_and(|word| word.worker)
    }

    /// Whether the guest has never said anything, so that only GitHub can judge it.
    pub fn is_mute(&self) -> bool {
        !self.word_seen
    }

    /// Whether nothing can be learned from the guest at present.
    fn is_unheard(&self) -> bool {
        self.heartbeat_lost() || self.word.is_none()
    }

    /// When the VM was last found idle, by the pool's clock.
    pub fn found_idle_at(&self) -> Option<Millis> {
        self.found_idle_at.filter(|_| !self.heartbeat_lost())
    }

    /// Whether every list for as long as GitHub would hold a job has named no
    /// Worker. `None` where the guest cannot be heard.
    pub fn has_been_idle(&self) -> Option<bool> {
        let (first, last) = self.no_worker.filter(|_| !self.is_unheard())?;
        Some(last - first >= LEASE)
    }

    /// Whether the runner is dead: GitHub has called it away for `patience`,
    /// and a list asked for since names no Worker. Where the guest cannot be
    /// heard, GitHub alone is believed, once it has given up the job.
    pub fn runner_is_dead(&self, patience: Millis) -> bool {
        let Some((since, last)) = self.away else { return false };
        if self.names_worker() {
            return false;
        }
        let stood = last - since;
        let settled = self.last_sign.map_or(since, |(sign, _)| since.max(sign.saturating_add(WORD_LAG)));
        let no_worker = self.no_worker.is_some_and(|(_, last)| last > settled);
        (stood >= patience && no_worker) || (stood >= patience.max(LEASE) && self.is_unheard())
    }

    /// How long GitHub must call the runner away where a job is on the VM.
    pub fn patience_with_job(&self) -> Millis {
        if self.gone { 0 } else { HICCUP }
    }

    /// Whether the job that was heard of never reached the runner: two lists a
    /// minute apart name no Worker, and GitHub calls the runner online and idle.
    pub fn job_was_not_taken(&self) -> bool {
        self.no_worker.is_some_and(|(first, last)| {
            last - first >= WORD_LAG && self.idle.is_some_and(|idle| idle >= first)
        }) && self.away.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn vm(uptime: Millis, worker: Option<bool>, heartbeat: Heartbeat) -> Vm {
        let guest = worker.map(|worker| GuestWord { stage: "listening".into(), last_error: None, worker });
        let uptime = Duration::from_millis(uptime as u64);
        Vm { uptime, heartbeat, guest, ..crate::pool::tests::vm(1, Power::On) }
    }

    fn list(evidence: &mut Evidence, at: Millis, worker: Option<bool>, heartbeat: Heartbeat) {
        assert!(!evidence.vm_observed(Some(&vm(at, worker, heartbeat)), at));
    }

    fn heard(evidence: &mut Evidence, worker: bool, at: Millis) {
        list(evidence, at, Some(worker), Heartbeat::Ok);
    }

    fn runner(online: bool) -> Runner {
        Runner { id: 1, name: "runner-1".into(), online, busy: false, labels: Vec::new() }
    }

    /// GitHub says it in the round of a list at this time.
    fn away_at(evidence: &mut Evidence, at: Millis, heartbeat: Heartbeat, worker: Option<bool>) {
        list(evidence, at, worker, heartbeat);
        evidence.runner_observed(&runner(false), at);
    }

    #[test]
    fn no_reason_of_githubs_counts_while_the_guest_names_a_worker() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.job_sign(10);
        evidence.runner_gone();
        heard(&mut evidence, true, 5 * LEASE);
        evidence.runner_gone();
        assert!(!evidence.runner_is_dead(0));
    }

    #[test]
    fn a_list_counts_only_if_it_was_asked_for_after_the_reason_arose() {
        let mut evidence = Evidence::of_new_vm(0);
        heard(&mut evidence, false, MINUTE);
        evidence.runner_gone();
        assert!(!evidence.runner_is_dead(0));
        heard(&mut evidence, false, 2 * MINUTE);
        assert!(evidence.runner_is_dead(0));
    }

    #[test]
    fn a_word_that_may_not_know_of_the_job_yet_does_not_count() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.job_sign(10_000);
        evidence.runner_gone();
        heard(&mut evidence, false, 30_000);
        assert!(!evidence.runner_is_dead(0));
        heard(&mut evidence, false, 10_001 + WORD_LAG);
        assert!(evidence.runner_is_dead(0));
    }

    #[test]
    fn a_guest_that_is_not_heard_is_given_up_once_github_has_given_up_its_job() {
        for (heartbeat, worker) in [(Heartbeat::Lost, Some(true)), (Heartbeat::Unknown, None)] {
            let mut evidence = Evidence::of_new_vm(0);
            for at in [MINUTE, MINUTE + LEASE - 1] {
                away_at(&mut evidence, at, heartbeat, worker);
                assert!(!evidence.runner_is_dead(0));
            }
            away_at(&mut evidence, MINUTE + LEASE, heartbeat, worker);
            assert!(evidence.runner_is_dead(0));
        }
    }

    #[test]
    fn a_jump_of_the_pools_clock_stretches_nothing() {
        let mut evidence = Evidence::of_new_vm(0);
        away_at(&mut evidence, MINUTE, Heartbeat::Unknown, None);
        // Seven hours later by the pool's clock, a minute by the VM's.
        let jumped = 7 * 60 * MINUTE;
        evidence.vm_observed(Some(&vm(2 * MINUTE, None, Heartbeat::Unknown)), jumped);
        evidence.runner_observed(&runner(false), jumped);
        assert!(!evidence.runner_is_dead(0));
    }

    #[test]
    fn a_lost_heartbeat_alone_ends_nothing() {
        let mut evidence = Evidence::of_new_vm(0);
        for at in [MINUTE, 100 * LEASE] {
            list(&mut evidence, at, Some(false), Heartbeat::Lost);
            evidence.runner_observed(&runner(true), at);
        }
        assert!(!evidence.runner_is_dead(0));
    }

    #[test]
    fn a_vm_is_gone_when_three_lists_over_a_minute_leave_it_out() {
        let mut evidence = Evidence::of_new_vm(0);
        assert!(!evidence.vm_observed(None, 0));
        assert!(!evidence.vm_observed(None, 1_000));
        assert!(!evidence.vm_observed(None, 2_000), "three lists within two seconds");
        assert!(evidence.vm_observed(None, MINUTE));
        heard(&mut evidence, false, 2 * MINUTE);
        assert!(!evidence.vm_observed(None, 9 * MINUTE), "it was there in between");
    }

    #[test]
    fn a_job_that_no_worker_ever_ran_was_not_taken() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.job_sign(0);
        heard(&mut evidence, false, 1_000);
        evidence.runner_observed(&runner(true), 2_000);
        assert!(!evidence.job_was_not_taken());
        heard(&mut evidence, false, 1_000 + WORD_LAG);
        assert!(evidence.job_was_not_taken());
        heard(&mut evidence, true, 200_000);
        assert!(!evidence.job_was_not_taken());
    }
}

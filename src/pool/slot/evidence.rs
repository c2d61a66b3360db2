//! What is known of a VM that runs, and what follows from it.
//!
//! GitHub gives reasons, never evidence: `busy` is late and sometimes wrong, a
//! DELETE has succeeded on a runner with a job, and a listener whose
//! registration is gone cancels its running job. So what GitHub says of a
//! runner counts only together with the host's word (Hyper-V's heartbeat, and
//! whether the guest names a Runner.Worker), or after GitHub itself has given
//! up the runner's job.

use super::types::{ObservedPower, ObservedRunner, ObservedVm};
use crate::hypervisor::{GuestWord, Heartbeat};
use crate::pool::Millis;

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

/// What the host and GitHub have said of one VM.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Lists in a row that left the VM out, and when the first of them was asked for.
    missing: Option<(u8, Millis)>,
    pub(super) paused: bool,
    heartbeat_lost: bool,
    pub(super) word: Option<GuestWord>,
    word_seen: bool,
    /// When the first and the last list were asked for that name no Worker, without one between that does.
    no_worker: Option<(Millis, Millis)>,
    /// Since when GitHub calls the runner offline, or does not know it.
    away_since: Option<Millis>,
    /// GitHub was asked by the runner's id and does not know it.
    gone: bool,
    /// When GitHub last called the runner online and idle.
    idle_at: Option<Millis>,
    /// When a job was last heard of.
    last_sign: Option<Millis>,
    /// When the VM started, by the pool's clock.
    pub(super) started_at: Option<Millis>,
}

impl Evidence {
    /// Of a VM whose runner is not online yet.
    pub fn of_new_vm(now: Millis) -> Evidence {
        Evidence { started_at: Some(now), ..Evidence::default() }
    }

    /// Takes in a list. Answers whether it says that the VM is gone from the host.
    pub fn vm_observed(&mut self, vm: &ObservedVm) -> bool {
        if vm.power == ObservedPower::Missing {
            let (lists, first) = self.missing.unwrap_or((0, vm.asked_at));
            let lists = lists.saturating_add(1);
            self.missing = Some((lists, first));
            return lists >= MISSING_LISTS && vm.asked_at - first >= MISSING_TIME;
        }
        self.missing = None;
        self.paused = vm.power == ObservedPower::Paused;
        self.heartbeat_lost = vm.heartbeat == Heartbeat::Lost;
        self.word.clone_from(&vm.guest);
        self.started_at = Some(vm.asked_at - vm.uptime);
        if let Some(word) = &vm.guest {
            self.word_seen = true;
            // What a guest said before its heartbeat was lost may no longer hold.
            self.no_worker = match (word.worker, self.heartbeat_lost, self.no_worker) {
                (true, ..) => None,
                (false, true, earlier) => earlier,
                (false, false, earlier) => {
                    Some((earlier.map_or(vm.asked_at, |(first, _)| first), vm.asked_at))
                }
            };
        }
        false
    }

    /// Takes in what GitHub says.
    pub fn runner_observed(&mut self, runner: &ObservedRunner) {
        self.gone = false;
        if runner.online || runner.busy {
            self.away_since = None;
        } else {
            self.away_since.get_or_insert(runner.asked_at);
        }
        if runner.online && !runner.busy {
            self.idle_at = Some(runner.asked_at);
        }
    }

    /// GitHub does not know the runner.
    pub fn runner_gone(&mut self, asked_at: Millis) {
        self.gone = true;
        self.away_since.get_or_insert(asked_at);
    }

    /// The guest has got its configuration; its runner is yet to come online.
    pub fn answered(&mut self, now: Millis) {
        self.away_since.get_or_insert(now);
    }

    /// A job was heard of.
    pub fn job_sign(&mut self, now: Millis) {
        self.last_sign = Some(now);
        (self.no_worker, self.idle_at) = (None, None);
    }

    /// Whether the guest runs a job by its own word, and Hyper-V hears it.
    pub fn names_worker(&self) -> bool {
        !self.heartbeat_lost && self.word.as_ref().is_some_and(|word| word.worker)
    }

    /// Whether the guest has never said anything, so that only GitHub can judge it.
    pub fn is_mute(&self) -> bool {
        !self.word_seen
    }

    /// When the last list was asked for that names no Worker; of a mute guest,
    /// that calls its runner idle at GitHub.
    pub fn idle_at(&self) -> Option<Millis> {
        let at = if self.is_mute() { self.idle_at } else { self.no_worker.map(|(_, last)| last) };
        at.filter(|_| !self.heartbeat_lost)
    }

    /// Whether the runner is dead: GitHub has had a reason to say so for
    /// `patience`, and a list asked for since names no Worker. Where the guest
    /// cannot be heard, GitHub alone is believed, once it has given up the job.
    pub fn runner_is_dead(&self, now: Millis, patience: Millis) -> bool {
        let Some(since) = self.away_since else { return false };
        if self.names_worker() {
            return false;
        }
        let stood = now - since;
        let settled = self.last_sign.map_or(since, |sign| since.max(sign + WORD_LAG));
        let no_worker = self.no_worker.is_some_and(|(_, last)| last > settled);
        let unheard = self.heartbeat_lost || self.word.is_none();
        (stood >= patience && no_worker) || (stood >= patience.max(LEASE) && unheard)
    }

    /// How long the reason must have stood for a VM with a job on it.
    pub fn patience_with_job(&self) -> Millis {
        if self.gone { 0 } else { HICCUP }
    }

    /// When [`Evidence::runner_is_dead`] may come true by time alone.
    pub fn dead_by(&self, patience: Millis) -> Option<Millis> {
        let unheard = self.heartbeat_lost || self.word.is_none();
        self.away_since.filter(|_| unheard).map(|since| since + patience.max(LEASE))
    }

    /// Whether the job that was heard of never reached the runner: two lists a
    /// minute apart name no Worker, and GitHub calls the runner online and idle.
    pub fn job_was_not_taken(&self) -> bool {
        self.no_worker.is_some_and(|(first, last)| {
            last - first >= WORD_LAG && self.idle_at.is_some_and(|at| at >= first)
        }) && self.away_since.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(asked_at: Millis, worker: Option<bool>, heartbeat: Heartbeat) -> ObservedVm {
        let guest = worker.map(|worker| GuestWord { stage: "listening".into(), last_error: None, worker });
        let power = ObservedPower::On;
        ObservedVm { power, uptime: asked_at, heartbeat, guest, notes: None, asked_at }
    }

    fn heard(worker: bool, asked_at: Millis) -> ObservedVm {
        list(asked_at, Some(worker), Heartbeat::Ok)
    }

    fn offline(asked_at: Millis) -> ObservedRunner {
        ObservedRunner { id: 1, online: false, busy: false, asked_at }
    }

    #[test]
    fn no_reason_of_githubs_counts_while_the_guest_names_a_worker() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.job_sign(10);
        evidence.runner_gone(20);
        evidence.vm_observed(&heard(true, 5 * LEASE));
        assert!(!evidence.runner_is_dead(10 * LEASE, 0));
    }

    #[test]
    fn a_list_counts_only_if_it_was_asked_for_after_the_reason_arose() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.vm_observed(&heard(false, MINUTE));
        evidence.runner_gone(2 * MINUTE);
        assert!(!evidence.runner_is_dead(2 * MINUTE, 0));
        evidence.vm_observed(&heard(false, 3 * MINUTE));
        assert!(evidence.runner_is_dead(3 * MINUTE, 0));
    }

    #[test]
    fn a_word_that_may_not_know_of_the_job_yet_does_not_count() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.runner_gone(0);
        evidence.job_sign(10_000);
        evidence.vm_observed(&heard(false, 30_000));
        assert!(!evidence.runner_is_dead(30_000, 0));
        evidence.vm_observed(&heard(false, 10_001 + WORD_LAG));
        assert!(evidence.runner_is_dead(10_001 + WORD_LAG, 0));
    }

    #[test]
    fn a_guest_that_is_not_heard_is_given_up_once_github_has_given_up_its_job() {
        for heartbeat in [Heartbeat::Lost, Heartbeat::Unknown] {
            let worker = (heartbeat == Heartbeat::Lost).then_some(true);
            let mut evidence = Evidence::of_new_vm(0);
            evidence.vm_observed(&list(MINUTE, worker, heartbeat));
            evidence.runner_observed(&offline(2 * MINUTE));
            assert!(!evidence.runner_is_dead(2 * MINUTE + LEASE - 1, 0));
            assert!(evidence.runner_is_dead(2 * MINUTE + LEASE, 0));
        }
    }

    #[test]
    fn a_lost_heartbeat_alone_ends_nothing() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.vm_observed(&list(MINUTE, Some(false), Heartbeat::Lost));
        evidence.runner_observed(&ObservedRunner { online: true, ..offline(MINUTE) });
        assert!(!evidence.runner_is_dead(100 * LEASE, 0));
    }

    #[test]
    fn a_vm_is_gone_when_three_lists_over_a_minute_leave_it_out() {
        let missing = |at| ObservedVm { power: ObservedPower::Missing, ..heard(false, at) };
        let mut evidence = Evidence::of_new_vm(0);
        assert!(!evidence.vm_observed(&missing(0)));
        assert!(!evidence.vm_observed(&missing(1_000)));
        assert!(!evidence.vm_observed(&missing(2_000)), "three lists within two seconds");
        assert!(evidence.vm_observed(&missing(MINUTE)));
        evidence.vm_observed(&heard(false, 2 * MINUTE));
        assert!(!evidence.vm_observed(&missing(9 * MINUTE)), "it was there in between");
    }

    #[test]
    fn a_job_that_no_worker_ever_ran_was_not_taken() {
        let mut evidence = Evidence::of_new_vm(0);
        evidence.job_sign(0);
        evidence.vm_observed(&heard(false, 1_000));
        evidence.runner_observed(&ObservedRunner { online: true, ..offline(2_000) });
        assert!(!evidence.job_was_not_taken());
        evidence.vm_observed(&heard(false, 1_000 + WORD_LAG));
        assert!(evidence.job_was_not_taken());
        evidence.vm_observed(&heard(true, 200_000));
        assert!(!evidence.job_was_not_taken());
    }
}

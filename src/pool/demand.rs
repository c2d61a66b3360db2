//! The jobs that wait for this pool.
//!
//! A job counts until it starts, completes, or is a day old. One that an idle
//! runner leaves untaken is most likely gone: jobs that are canceled in time
//! send no `completed` that can be relied on.

use super::Millis;
use std::collections::{HashMap, HashSet, VecDeque};

/// GitHub gives a queued job up after 24 hours.
///
/// <https://docs.github.com/en/actions/reference/limits>
const FORGET_AFTER: Millis = 24 * 3600 * 1000;

/// How many queued jobs are remembered. More than any pool serves within [`FORGET_AFTER`].
const MOST_REMEMBERED: usize = 100_000;

/// How many jobs are remembered as waiting no more. GitHub's deliveries come in any order, but not hours apart.
const MOST_OVER: usize = 8192;

/// The jobs that wait.
#[derive(Debug, Default)]
pub struct Demand {
    /// Since when each has counted.
    waiting: HashMap<u64, Millis>,
    /// The same in order of arrival. May name jobs that are gone from `waiting`.
    arrivals: VecDeque<(Millis, u64)>,
    /// Jobs that a runner has had or that have ended, so that a `queued` that comes late does not revive them.
    over: HashSet<u64>,
    /// The same, the oldest first.
    over_in_order: VecDeque<u64>,
    /// Since when each has counted that GitHub counts without a name, the oldest first.
    counted: VecDeque<Millis>,
    /// When a job was last taken: only since then can a job have been left untaken.
    taken_at: Millis,
}

impl Demand {
    /// A job waits for a runner. Answers whether it was not heard of before; if it was, nothing changes.
    pub fn queued(&mut self, job_id: u64, now: Millis) -> bool {
        self.forget_old(now);
        let known = self.waiting.contains_key(&job_id) || self.over.contains(&job_id);
        if self.waiting.len() < MOST_REMEMBERED && !known {
            self.waiting.insert(job_id, now);
            self.arrivals.push_back((now, job_id));
        }
        !known
    }

    /// A job waits no more: a runner has it, or it was canceled. Answers since when it had been waiting.
    pub fn over(&mut self, job_id: u64) -> Option<Millis> {
        let arrived = self.waiting.remove(&job_id);
        if self.over.insert(job_id) {
            self.over_in_order.push_back(job_id);
            if self.over_in_order.len() > MOST_OVER
                && let Some(oldest) = self.over_in_order.pop_front()
            {
                self.over.remove(&oldest);
            }
        }
        arrived
    }

    /// One of this pool's VMs has been taken: jobs do come through.
    pub fn vm_taken(&mut self, now: Millis) {
        self.taken_at = now;
    }

    /// So many jobs wait by GitHub's count. Answers whether there are more than before.
    pub fn counted(&mut self, jobs: usize, now: Millis) -> bool {
        let more = jobs > self.counted.len();
        while self.counted.len() > jobs {
            self.counted.pop_front();
        }
        self.counted.resize(jobs.min(MOST_REMEMBERED), now);
        more
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.counted.len()
    }

    /// Since when each has counted.
    fn arrivals(&self) -> impl Iterator<Item = Millis> {
        self.waiting.values().chain(&self.counted).copied()
    }

    /// How many VMs the waiting jobs call for. Those that a VM, ready since
    /// `ready_since`, has left untaken for `patience` count together as one.
    pub fn vms_called_for(&mut self, ready_since: Option<Millis>, patience: Millis, now: Millis) -> usize {
        self.forget_old(now);
        let waiting = self.waiting();
        let Some(ready_since) = ready_since else { return waiting };
        let from = ready_since.max(self.taken_at);
        if now - from < patience {
            return waiting;
        }
        let untaken = self.arrivals().filter(|arrived| now - from.max(*arrived) >= patience).count();
        waiting - untaken + usize::from(untaken > 0)
    }

    /// Whether a job waits that arrived within `patience`.
    pub fn is_fresh(&self, patience: Millis, now: Millis) -> bool {
        let fresh = |arrived: Millis| now - arrived < patience;
        self.counted.back().is_some_and(|arrived| fresh(*arrived))
            || self
                .arrivals
                .iter()
                .rev()
                .take_while(|(arrived, _)| fresh(*arrived))
                .any(|(_, job)| self.waiting.contains_key(job))
    }

    fn forget_old(&mut self, now: Millis) {
        while let Some(&(arrived, job_id)) = self.arrivals.front() {
            let gone = self.waiting.get(&job_id) != Some(&arrived);
            if !gone && now - arrived < FORGET_AFTER {
                break;
            }
            self.arrivals.pop_front();
            if !gone {
                self.waiting.remove(&job_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waiting_job_calls_for_one_vm_and_counts_once() {
        let mut demand = Demand::default();
        assert!(demand.queued(7, 0));
        assert!(!demand.queued(7, 0));
        demand.queued(8, 0);
        assert_eq!(demand.vms_called_for(None, 10, 0), 2);
        demand.over(7);
        assert_eq!(demand.vms_called_for(None, 10, 0), 1);
    }

    #[test]
    fn jobs_that_a_ready_vm_leaves_untaken_count_together_as_one_until_a_vm_is_taken() {
        let mut demand = Demand::default();
        (1..=4).for_each(|job| assert!(demand.queued(job, 0)));
        assert_eq!(demand.vms_called_for(Some(0), 10, 9), 4);
        demand.queued(5, 9);
        assert_eq!(demand.vms_called_for(Some(0), 10, 10), 2, "four as one, and the fifth");
        assert_eq!(demand.vms_called_for(None, 10, 10), 5, "nothing is ready that could have taken them");
        demand.vm_taken(11);
        assert_eq!(demand.vms_called_for(Some(0), 10, 12), 5);
    }

    #[test]
    fn githubs_own_count_calls_for_vms_too_and_what_an_idle_vm_leaves_untaken_counts_as_one() {
        let mut demand = Demand::default();
        assert!(demand.counted(3, 0));
        assert!(!demand.counted(3, 5) && !demand.counted(2, 5));
        assert_eq!((demand.waiting(), demand.vms_called_for(Some(0), 10, 9)), (2, 2));
        assert!(demand.is_fresh(10, 9) && !demand.is_fresh(10, 10));
        assert_eq!(demand.vms_called_for(Some(0), 10, 10), 1);
        demand.counted(0, 11);
        assert_eq!(demand.vms_called_for(None, 10, 11), 0);
    }

    #[test]
    fn a_job_is_forgotten_a_day_after_it_came_even_if_it_is_heard_of_again() {
        let mut demand = Demand::default();
        demand.queued(1, 0);
        demand.queued(1, 5);
        assert_eq!(demand.vms_called_for(None, 10, FORGET_AFTER), 0);
        assert_eq!(demand.waiting(), 0);
    }

    #[test]
    fn a_queued_that_comes_after_the_jobs_start_or_end_asks_for_nothing() {
        let mut demand = Demand::default();
        demand.over(1);
        assert!(!demand.queued(1, 0));
        assert_eq!(demand.waiting(), 0);
        for job in 2..3 + MOST_OVER as u64 {
            demand.over(job);
        }
        assert_eq!((demand.over.len(), demand.over_in_order.len()), (MOST_OVER, MOST_OVER));
    }
}

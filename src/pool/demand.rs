//! Which empty slots are to have a VM: a pure decision.
//!
//! Slots up to `POOL_WARM` always have one. The others get one when a job is
//! queued that this pool serves, and are not refilled once demand is gone.

use super::slot::{Millis, Phase, View};
use std::collections::{HashMap, HashSet, VecDeque};

/// A job that no webhook speaks of again within this time is taken to be gone:
/// GitHub itself gives a queued job up after 24 hours.
///
/// <https://docs.github.com/en/actions/reference/limits>
const FORGET_AFTER: Millis = 24 * 3600 * 1000;

/// How many queued jobs are remembered. More than any pool serves within [`FORGET_AFTER`].
const MOST_REMEMBERED: usize = 100_000;

/// How many jobs are remembered as waiting no more. GitHub's deliveries come in any order, but not hours apart.
const MOST_OVER: usize = 8192;

/// The jobs that wait, and what they mean for the pool.
#[derive(Debug)]
pub struct Demand {
    labels: Vec<String>,
    size: u32,
    warm: u32,
    waiting: HashMap<u64, Millis>,
    /// The same in order of arrival. May name jobs that are gone from `waiting`.
    arrivals: VecDeque<(Millis, u64)>,
    /// Jobs that have arrived and for which no slot has been filled yet.
    new: usize,
    /// Jobs that a runner has had or that have ended, so that a `queued` that comes late does not revive them.
    over: HashSet<u64>,
    /// The same, the oldest first.
    over_in_order: VecDeque<u64>,
}

impl Demand {
    /// A pool of `size` slots, of which `warm` always have a VM, with runners that bear `labels`.
    pub fn new(labels: &[String], size: u32, warm: u32) -> Demand {
        let labels = labels.iter().map(|l| l.to_lowercase()).collect();
        Demand {
            labels,
            size,
            warm,
            waiting: HashMap::new(),
            arrivals: VecDeque::new(),
            new: 0,
            over: HashSet::new(),
            over_in_order: VecDeque::new(),
        }
    }

    /// Whether a job that asks for these labels can run here: every one of
    /// them must be one of the runners', whatever its case.
    pub fn serves(&self, labels: &[String]) -> bool {
        labels.iter().all(|label| self.labels.contains(&label.to_lowercase()))
    }

    /// A job waits for a runner. Answers whether it was not heard of before; if it was, nothing changes.
    pub fn queued(&mut self, job_id: u64, now: Millis) -> bool {
        self.forget_old(now);
        let known = self.waiting.contains_key(&job_id) || self.over.contains(&job_id);
        if self.waiting.len() < MOST_REMEMBERED && !known {
            self.waiting.insert(job_id, now);
            self.arrivals.push_back((now, job_id));
            self.new += 1;
        }
        !known
    }

    /// A job waits no more: a runner has it, or it was cancelled.
    pub fn taken(&mut self, job_id: u64) {
        if self.waiting.remove(&job_id).is_some() {
            self.new = self.new.min(self.waiting.len());
        }
        if self.over.insert(job_id) {
            self.over_in_order.push_back(job_id);
            if self.over_in_order.len() > MOST_OVER
                && let Some(oldest) = self.over_in_order.pop_front()
            {
                self.over.remove(&oldest);
            }
        }
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The slots to fill now, by their index in `views`.
    pub fn fills(&mut self, views: &[&View], now: Millis) -> Vec<usize> {
        self.forget_old(now);
        let empty = |view: &View| view.phase == Phase::Empty && !view.wanted;
        // A slot that has not looked yet may turn out to have a VM.
        let occupied = views.iter().filter(|v| !empty(v) && v.phase != Phase::Stopped).count();
        let mut room = (self.size as usize).saturating_sub(occupied);
        let mut fills = Vec::new();
        if room == 0 {
            self.new = 0;
            return fills;
        }

        let mut candidates: Vec<usize> =
            (0..views.len()).filter(|&i| empty(views[i]) && !views[i].retired).collect();
        // A slot that has just failed comes last.
        candidates.sort_by_key(|&i| (views[i].failures, views[i].number));
        let (warm, surplus): (Vec<usize>, Vec<usize>) =
            candidates.into_iter().partition(|&i| views[i].number <= self.warm);
        for slot in warm {
            if room > 0 {
                fills.push(slot);
                room -= 1;
            }
        }

        let idle = views
            .iter()
            .filter(|v| {
                matches!(v.phase, Phase::Creating | Phase::Booting | Phase::Ready)
                    || (v.phase == Phase::Empty && v.wanted)
            })
            .count();
        let short = self.waiting.len().saturating_sub(idle + fills.len());
        fills.extend(surplus.into_iter().take(room.min(short.max(self.new))));
        self.new = 0;
        fills
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
        self.new = self.new.min(self.waiting.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(number: u32, phase: Phase) -> View {
        View {
            number,
            phase,
            since: 0,
            made: None,
            wanted: false,
            job_id: None,
            failures: 0,
            reason: None,
            retired: false,
            jobs_completed: 0,
        }
    }

    fn fills(demand: &mut Demand, views: &[View]) -> Vec<u32> {
        let views: Vec<&View> = views.iter().collect();
        demand.fills(&views, 0).into_iter().map(|i| views[i].number).collect()
    }

    fn demand(size: u32, warm: u32) -> Demand {
        Demand::new(&["self-hosted".into(), "Windows".into()], size, warm)
    }

    #[test]
    fn warm_slots_are_always_filled_and_the_others_are_not() {
        let views: Vec<View> = (1..=4).map(|n| view(n, Phase::Empty)).collect();
        assert_eq!(fills(&mut demand(4, 2), &views), [1, 2]);
        assert_eq!(fills(&mut demand(4, 4), &views), [1, 2, 3, 4]);
        assert!(fills(&mut demand(4, 0), &views).is_empty());
    }

    #[test]
    fn each_queued_job_fills_one_surplus_slot_and_only_once() {
        let mut demand = demand(4, 1);
        let views =
            [view(1, Phase::Ready), view(2, Phase::Empty), view(3, Phase::Empty), view(4, Phase::Empty)];
        demand.queued(7, 0);
        demand.queued(7, 0);
        assert_eq!(fills(&mut demand, &views), [2]);
        let views =
            [view(1, Phase::Ready), view(2, Phase::Creating), view(3, Phase::Empty), view(4, Phase::Empty)];
        assert!(fills(&mut demand, &views).is_empty());
    }

    #[test]
    fn the_surplus_is_refilled_while_more_jobs_wait_than_vms_are_idle() {
        let mut demand = demand(2, 0);
        (1..=5).for_each(|job| assert!(demand.queued(job, 0)));
        assert_eq!(fills(&mut demand, &[view(1, Phase::Empty), view(2, Phase::Empty)]), [1, 2]);
        demand.taken(1);
        demand.taken(2);
        assert_eq!(fills(&mut demand, &[view(1, Phase::Empty), view(2, Phase::Running)]), [1]);
        (3..=5).for_each(|job| demand.taken(job));
        assert!(fills(&mut demand, &[view(1, Phase::Empty), view(2, Phase::Running)]).is_empty());
    }

    #[test]
    fn a_job_is_forgotten_after_a_day() {
        let mut demand = demand(1, 0);
        demand.queued(1, 0);
        let empty = view(1, Phase::Empty);
        assert!(demand.fills(&[&empty], FORGET_AFTER).is_empty());
        assert_eq!(demand.waiting(), 0);
    }

    #[test]
    fn a_job_that_is_heard_of_again_is_still_forgotten_a_day_after_it_came() {
        let mut demand = demand(1, 0);
        demand.queued(1, 0);
        demand.queued(1, 5);
        assert!(demand.fills(&[&view(1, Phase::Empty)], FORGET_AFTER + 10).is_empty());
        assert_eq!(demand.waiting(), 0);
    }

    #[test]
    fn a_queued_that_comes_after_the_jobs_start_or_end_asks_for_nothing() {
        let mut demand = demand(2, 0);
        demand.taken(1);
        demand.queued(1, 0);
        assert_eq!(demand.waiting(), 0);
        assert!(fills(&mut demand, &[view(1, Phase::Empty), view(2, Phase::Empty)]).is_empty());
        (2..3 + MOST_OVER as u64).for_each(|job| demand.taken(job));
        assert_eq!((demand.over.len(), demand.over_in_order.len()), (MOST_OVER, MOST_OVER));
    }

    #[test]
    fn vms_past_the_pools_size_keep_slots_empty_until_they_are_gone() {
        let retired = View { retired: true, ..view(3, Phase::Running) };
        let slots = [view(1, Phase::Running), view(2, Phase::Empty), retired];
        assert!(fills(&mut demand(2, 2), &slots).is_empty());
        let slots = [view(1, Phase::Running), view(2, Phase::Empty), view(3, Phase::Stopped)];
        assert_eq!(fills(&mut demand(2, 2), &slots), [2]);
    }

    #[test]
    fn labels_are_compared_without_case_and_all_must_be_served() {
        let demand = demand(1, 1);
        assert!(demand.serves(&["WINDOWS".into(), "self-hosted".into()]));
        assert!(demand.serves(&[]));
        assert!(!demand.serves(&["self-hosted".into(), "gpu".into()]));
    }
}

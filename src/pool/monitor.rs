//! What to ask the host and GitHub next, and what their answers mean.
//!
//! The pool is right with the monitor alone: callbacks and webhooks only make
//! it faster. A round is one list of all VMs, which also writes what the pool
//! has to tell them, and one list of all runners. Pure: `workers::monitor` asks
//! and waits, the simulator does the same in simulated time.

use super::back_off::{self, Random};
use super::observed::Asked;
use super::slot::types::Stop;
use super::state::PoolState;
use super::{Millis, millis, recovery};
use crate::config::Intake;
use crate::github::{Error, QueuedJob, Removal, Runner};
use crate::hypervisor::{Inventory, VmWrite};
use std::collections::VecDeque;

const MINUTE: Millis = 60_000;

/// How often queued jobs are listed, in case their webhooks were lost.
const QUEUED_JOBS_EVERY: Millis = 5 * MINUTE;
/// How often the newest version of the runner is asked for.
const NEWEST_RUNNER_EVERY: Millis = 24 * 60 * MINUTE;
/// The pause between two rounds while the pool stops.
const PAUSE_AT_STOP: Millis = 2_000;
/// The least pause between two rounds, however often one is asked for.
const LEAST_PAUSE: Millis = 1_000;
/// Where GitHub has more runners than this, a list of all takes too many of
/// the 5,000 requests that it allows in an hour.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
const MANY_RUNNERS: usize = 1_000;
/// How often all are listed where there are many; between, each of the pool's own is asked for.
const MANY_LISTED_EVERY: Millis = 30 * MINUTE;

/// What to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// The hypervisor for all VMs, writing this. Brings [`Answer::Vms`].
    Vms(Vec<VmWrite>),
    /// GitHub for all runners. Brings [`Answer::Runners`].
    Runners,
    /// GitHub for one runner. Brings [`Answer::Runner`].
    Runner(Asked),
    /// GitHub to remove a registration of no slot. Brings [`Answer::Removed`].
    Remove(u64),
    /// GitHub for the queued jobs of the repository. Brings [`Answer::QueuedJobs`].
    QueuedJobs,
    /// GitHub for the newest version of the runner. Brings [`Answer::NewestRunner`].
    NewestRunner,
    /// Nothing, for so many milliseconds, or until the pool wants a look. Brings [`Answer::Paused`].
    Pause(Millis),
    /// Nothing more: every slot has stopped.
    #[default]
    End,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The list, and the fingerprint of a VM made now.
    Vms(Result<(Inventory, Option<String>), String>),
    /// All runners.
    Runners(Result<Vec<Runner>, Error>),
    /// One runner.
    Runner(Result<Option<Runner>, Error>),
    /// What came of the removal.
    Removed(Result<Removal, Error>),
    /// The queued jobs.
    QueuedJobs(Result<Vec<QueuedJob>, Error>),
    /// The newest version, and today in days since 1970.
    NewestRunner(Result<Option<String>, Error>, i64),
    /// The pause is over, or the monitor has just started.
    Paused,
}

/// The monitor's own memory.
#[derive(Debug, Default)]
pub struct Monitor {
    /// What is asked, and when that began.
    asked: (Ask, Millis),
    /// What else this round asks for.
    rest: VecDeque<Ask>,
    first_list: Option<Inventory>,
    failures: u32,
    random: Random,
    queued_jobs_at: Option<Millis>,
    newest_runner_at: Option<Millis>,
    many_listed_at: Option<Millis>,
}

impl Monitor {
    /// A monitor that has not looked yet. `seed` feeds its jitter.
    pub fn new(seed: u64) -> Monitor {
        Monitor { random: Random(seed), ..Monitor::default() }
    }

    /// Takes in what came of the last question and says what to ask next.
    pub fn next(&mut self, answer: Answer, state: &mut PoolState) -> Ask {
        if state.stopping() == Some(Stop::HostShutdown) {
            return Ask::End;
        }
        let (asked, asked_at) = std::mem::take(&mut self.asked);
        let ask = match answer {
            Answer::Paused if state.has_stopped() => Ask::End,
            Answer::Paused => Ask::Vms(state.take_writes()),
            Answer::Vms(answer) => match (state.hypervisor_answers(answer), state.has_recovered()) {
                (None, false) if state.has_stopped() => Ask::End,
                (None, false) => {
                    self.failures += 1;
                    Ask::Pause(back_off::wait(self.failures, &mut self.random).min(MINUTE))
                }
                (None, true) => Ask::Runners,
                (Some((list, _)), false) => match self.first_list.take() {
                    // A list can leave a VM out, so that nothing is concluded from the first alone.
                    None => {
                        self.first_list = Some(list);
                        Ask::Vms(Vec::new())
                    }
                    Some(first) => {
                        state.recover(&recovery::union(first, list));
                        self.ask_github(state)
                    }
                },
                (Some((inventory, fingerprint)), true) => {
                    state.vms_listed(&inventory, fingerprint, asked_at);
                    self.ask_github(state)
                }
            },
            Answer::Runners(answer) => {
                if let Some(runners) = state.github_answers(answer) {
                    self.many_listed_at = (runners.len() > MANY_RUNNERS).then_some(state.now);
                    let orphans = state.runners_listed(&runners, asked_at);
                    self.rest = state.unlisted(&runners).into_iter().map(Ask::Runner).collect();
                    self.rest.extend(orphans.into_iter().rev().map(Ask::Remove));
                }
                self.ask_for_the_rest(state)
            }
            Answer::Runner(answer) => {
                if let Ask::Runner(asked) = asked {
                    state.runner_looked_up(&asked, answer, asked_at);
                }
                self.ask_for_the_rest(state)
            }
            Answer::Removed(answer) => {
                state.github_answers(answer);
                self.ask_for_the_rest(state)
            }
            Answer::QueuedJobs(answer) => {
                // A token that may manage runners need not be allowed to read jobs.
                for job in answer.unwrap_or_default() {
                    state.job_queued(job.id, &job.labels);
                }
                self.ask_for_the_rest(state)
            }
            Answer::NewestRunner(answer, today) => {
                if let Ok(Some(version)) = answer {
                    state.image.newest_runner_is(version, today);
                }
                self.ask_for_the_rest(state)
            }
        };
        self.asked = (ask.clone(), state.now);
        ask
    }

    fn ask_github(&mut self, state: &PoolState) -> Ask {
        if self.many_listed_at.is_some_and(|at| state.now - at < MANY_LISTED_EVERY) {
            self.rest = state.unlisted(&[]).into_iter().map(Ask::Runner).collect();
            return self.ask_for_the_rest(state);
        }
        Ask::Runners
    }

    fn ask_for_the_rest(&mut self, state: &PoolState) -> Ask {
        let stopping = state.stopping();
        if let Some(ask) = self.rest.pop_front() {
            return ask;
        }
        let is_due = |at: Option<Millis>, every: Millis| at.is_none_or(|at| state.now - at >= every);
        if stopping.is_none()
            && state.rules().scope.repository.is_some()
            // Its queue tells of them: they would count twice.
            && state.rules().intake != Intake::ScaleSet
            && is_due(self.queued_jobs_at, QUEUED_JOBS_EVERY)
        {
            self.queued_jobs_at = Some(state.now);
            return Ask::QueuedJobs;
        }
        if stopping.is_none() && is_due(self.newest_runner_at, NEWEST_RUNNER_EVERY) {
            self.newest_runner_at = Some(state.now);
            return Ask::NewestRunner;
        }
        let poll = millis(state.rules().pool.poll);
        match stopping {
            Some(_) if state.has_stopped() => Ask::End,
            Some(_) => Ask::Pause(PAUSE_AT_STOP.min(poll)),
            None => Ask::Pause(poll.max(LEAST_PAUSE)),
        }
    }
}

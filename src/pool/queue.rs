//! What to ask a scale set's queue next, and what its answers mean.
//!
//! Messages only make the pool faster and tell it how many jobs wait: no VM
//! ends on a message alone, since GitHub has said of jobs that still ran that
//! they were completed (<https://github.com/actions/runner/issues/4492>). How
//! many VMs are wanted follows from GitHub's count, never from messages that
//! were counted here: these come late, twice or not at all.
//!
//! Pure, as the monitor: `workers::queue` asks and waits, the simulator does the
//! same in simulated time.

use super::Millis;
use super::back_off::{self, Random};
use super::health::Reach;
use super::slot::types::{Job, JobEvent, News};
use super::state::PoolState;
use crate::github::Error;
use crate::github::queue::{Message, Opened, QueueError, QueueEvent, ScaleSetJob, Statistics};
use crate::pool::millis;
use crate::text::one_line;
use std::collections::VecDeque;

const SECOND: Millis = 1_000;

/// How long to wait while another session lasts. GitHub ends that of a killed pool after about 50 s.
const WHILE_IN_USE: Millis = 10 * SECOND;

/// The longest wait after a failure.
const MOST: Millis = 60 * SECOND;

/// An answer without a message that comes sooner is followed by a pause: GitHub
/// holds a request for about 50 s until there is one.
const LEAST_BETWEEN: Millis = SECOND;

/// How often a message is tried to be acquired from or acknowledged, until the next is asked for.
const TRIES: u32 = 3;

/// A session in which so many tries in a row have failed is given up for another: the address that it has of its queue
/// can be dead for good, and GitHub's own client starts anew after each failure.
const TRIES_IN_A_SESSION: u32 = 5;

/// How often GitHub's count is asked for while no message brings one: messages can be lost.
const RECOUNT_EVERY: Millis = 10 * 60 * SECOND;

/// The most handled messages that are remembered until they are acknowledged.
const MOST_UNACKNOWLEDGED: usize = 64;

/// What to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// For a session. Brings [`Answer::Opened`].
    Open,
    /// For the next message. Brings [`Answer::Next`].
    Next {
        /// The message handled last; 0: none.
        after: u64,
        /// How many jobs the pool can run at a time.
        capacity: u32,
    },
    /// To renew the session. Brings [`Answer::Refreshed`].
    Refresh,
    /// For jobs that are offered. Brings [`Answer::Done`].
    Acquire(Vec<i64>),
    /// To forget a message. Brings [`Answer::Done`].
    Acknowledge(u64),
    /// To close the session. Brings [`Answer::Done`].
    Close,
    /// Nothing, for so many milliseconds. Brings [`Answer::Paused`].
    Pause(Millis),
    /// Nothing more: the pool stops.
    #[default]
    End,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of opening a session.
    Opened(Result<Opened, QueueError>),
    /// The next message, if there is one.
    Next(Result<Option<Message>, QueueError>),
    /// Of renewing the session.
    Refreshed(Result<Option<Statistics>, QueueError>),
    /// Of what has no answer.
    Done(Result<(), QueueError>),
    /// The pause is over, or the thread has just started.
    Paused,
}

/// What the rest of the program may know of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueReport {
    /// Since when there has been a session.
    pub connected_since: Option<Millis>,
    /// When the last message came.
    pub last_message: Option<Millis>,
    /// The jobs, as GitHub counted them last.
    pub statistics: Statistics,
    /// Whether it can be reached.
    pub reach: Reach,
}

/// The memory of who asks.
#[derive(Debug, Default)]
pub struct Queue {
    /// What is asked, and when that began.
    asked: (Ask, Millis),
    scale_set: u64,
    /// Messages that were handled, of which GitHub does not know it yet.
    unacknowledged: VecDeque<u64>,
    /// The last message of this session.
    after: u64,
    /// When GitHub's count came last.
    counted_at: Millis,
    /// Whether the session was renewed since anything came through.
    refreshed: bool,
    /// What is asked again once the session is renewed.
    again: Option<Ask>,
    failures: u32,
    random: Random,
}

impl Queue {
    /// One that has no session yet. `seed` feeds its jitter.
    pub fn new(seed: u64) -> Queue {
        Queue { random: Random(seed), ..Queue::default() }
    }

    /// Takes in what came of the last question and says what to ask next.
    pub fn next(&mut self, answer: Answer, state: &mut PoolState) -> Ask {
        let asked = std::mem::take(&mut self.asked);
        let ask = self.take_in(answer, asked, state);
        let ask = match ask {
            // Jobs that come now would wait for VMs that are not made. Without a session GitHub keeps them.
            _ if state.stopping().is_some() || state.draining() => self.leave(state),
            // Adopted VMs come first: a job of theirs that ends is theirs.
            Ask::Open if !state.has_recovered() => Ask::Pause(SECOND),
            ask => ask,
        };
        self.asked = (ask.clone(), state.now);
        ask
    }

    fn leave(&mut self, state: &mut PoolState) -> Ask {
        if state.queue_closed() {
            return Ask::Close;
        }
        if state.stopping().is_some() { Ask::End } else { Ask::Pause(SECOND) }
    }

    fn take_in(&mut self, answer: Answer, asked: (Ask, Millis), state: &mut PoolState) -> Ask {
        let error = match answer {
            Answer::Paused if state.queue.connected_since.is_some() => {
                return self.again.take().unwrap_or_else(|| self.ask_next(state));
            }
            Answer::Paused => return Ask::Open,
            Answer::Opened(Ok(opened)) => {
                // Not the end of failures: a session can be of no use.
                (self.refreshed, self.after) = (false, 0);
                if std::mem::replace(&mut self.scale_set, opened.scale_set) != opened.scale_set {
                    self.unacknowledged.clear();
                }
                self.counted_at = state.now;
                state.queue_opened(opened);
                return self.ask_next(state);
            }
            Answer::Next(Ok(message)) => {
                self.refreshed = false;
                // One that can be read but not acknowledged, in this session or any, is no end of failures.
                if message.is_none() {
                    self.failures = 0;
                }
                state.queue_answers(Ok(()));
                return match message {
                    Some(message) => self.handle(message, state),
                    None if state.now - self.counted_at >= RECOUNT_EVERY => Ask::Refresh,
                    None if state.now - asked.1 < LEAST_BETWEEN => Ask::Pause(LEAST_BETWEEN),
                    None => self.ask_next(state),
                };
            }
            Answer::Refreshed(Ok(statistics)) => {
                self.counted_at = state.now;
                // Without a count, what the last message said still holds.
                if let Some(statistics) = statistics {
                    state.queue_counts(statistics);
                }
                return self.again.take().unwrap_or_else(|| self.ask_next(state));
            }
            Answer::Done(Ok(())) => {
                self.refreshed = false;
                return match asked.0 {
                    Ask::Acquire(_) => Ask::Acknowledge(self.after),
                    Ask::Close => Ask::Pause(SECOND),
                    Ask::Acknowledge(message) => {
                        self.failures = 0;
                        self.unacknowledged.retain(|id| *id != message);
                        self.ask_next(state)
                    }
                    _ => self.ask_next(state),
                };
            }
            Answer::Opened(Err(error))
            | Answer::Next(Err(error))
            | Answer::Refreshed(Err(error))
            | Answer::Done(Err(error)) => error,
        };
        match (error, asked.0) {
            // It expires by itself.
            (_, Ask::Close) => Ask::Pause(SECOND),
            (QueueError::Expired, asked) if !self.refreshed && asked != Ask::Refresh => {
                self.refreshed = true;
                self.again = Some(asked);
                Ask::Refresh
            }
            (QueueError::Other(error), asked) if state.queue.connected_since.is_some() => {
                let is_limit = matches!(error, Error::RateLimited { .. });
                let wait = self.fails(error, state);
                let reads = matches!(asked, Ask::Next { .. } | Ask::Refresh);
                if self.failures >= TRIES_IN_A_SESSION && reads && !is_limit {
                    self.again = None;
                    state.queue_closed();
                    return Ask::Pause(wait);
                }
                let is_last = self.failures >= TRIES;
                self.again = match asked {
                    // GitHub offers again what was not acquired, and repeats what was not acknowledged, in a new
                    // session at the latest.
                    Ask::Acquire(_) if is_last => Some(Ask::Acknowledge(self.after)),
                    Ask::Acknowledge(_) if is_last => None,
                    asked => Some(asked),
                };
                Ask::Pause(wait)
            }
            (QueueError::Other(error), _) => Ask::Pause(self.fails(error, state)),
            (QueueError::InUse(why), _) => {
                state.queue_answers(Err(Error::Failed(why)));
                Ask::Pause(WHILE_IN_USE)
            }
            (error, _) => {
                let was_open = state.queue_closed();
                self.again = None;
                // A first time is in the nature of sessions. What repeats has a cause.
                if was_open && self.failures == 0 {
                    self.failures = 1;
                    return Ask::Open;
                }
                Ask::Pause(self.fails(Error::Failed(error.to_string()), state))
            }
        }
    }

    /// Notes a failure, and answers how long to wait.
    fn fails(&mut self, error: Error, state: &mut PoolState) -> Millis {
        self.failures += 1;
        let mut wait = back_off::wait(self.failures, &mut self.random).min(MOST);
        if let Error::RateLimited { retry_after, .. } = &error {
            wait = wait.max(millis(*retry_after));
        }
        state.queue_answers(Err(error));
        wait
    }

    fn ask_next(&self, state: &PoolState) -> Ask {
        // All that the pool can run, and not what is free just now: a job that
        // is queued while a scale set has no capacity is never offered to it again.
        Ask::Next { after: self.after, capacity: state.rules().pool.size }
    }

    fn handle(&mut self, message: Message, state: &mut PoolState) -> Ask {
        self.after = message.id;
        let offer = |event: &QueueEvent| match event {
            QueueEvent::Available(request) => Some(*request),
            _ => None,
        };
        let offered: Vec<i64> = message.events.iter().filter_map(offer).collect();
        // GitHub repeats a message until it is acknowledged.
        if !self.unacknowledged.contains(&message.id) {
            self.unacknowledged.push_back(message.id);
            if self.unacknowledged.len() > MOST_UNACKNOWLEDGED {
                self.unacknowledged.pop_front();
            }
            if message.statistics.is_some() {
                self.counted_at = state.now;
            }
            state.queue_said(message);
        }
        if offered.is_empty() { Ask::Acknowledge(self.after) } else { Ask::Acquire(offered) }
    }
}

impl PoolState {
    fn queue_opened(&mut self, opened: Opened) {
        self.queue_answers(Ok(()));
        self.queue.connected_since = Some(self.now);
        self.out.news.push((None, News::QueueOpened(opened.warnings)));
        self.queue_counts(opened.statistics);
    }

    /// There is no session any more: jobs wait at GitHub. Answers whether there was one.
    fn queue_closed(&mut self) -> bool {
        self.queue.connected_since.take().is_some()
    }

    fn queue_answers(&mut self, answer: Result<(), Error>) {
        let refused = matches!(answer, Err(Error::Refused(_)));
        let answer = answer.map_err(|error| format!("cannot be read: {error}"));
        self.queue.reach.note("The scale set's queue", answer, refused, self.now, &mut self.out.news);
    }

    fn queue_said(&mut self, message: Message) {
        self.queue.last_message = Some(self.now);
        for event in message.events {
            match event {
                QueueEvent::Started(job) => self.job_in_progress(self.event_of(job)),
                QueueEvent::Completed(job) => self.job_completed(self.event_of(job)),
                QueueEvent::Available(_) | QueueEvent::Assigned(_) => {}
            }
        }
        if let Some(statistics) = message.statistics {
            self.queue_counts(statistics);
        }
    }

    /// GitHub's count of the jobs that are the scale set's.
    fn queue_counts(&mut self, statistics: Statistics) {
        self.queue.statistics = statistics;
        let waiting = statistics.assigned.saturating_sub(statistics.running) as usize;
        if self.demand.counted(waiting, self.now) {
            self.keep_idle_vms();
        }
    }

    fn event_of(&self, job: ScaleSetJob) -> JobEvent {
        // The Actions service's words: https://learn.microsoft.com/en-us/dotnet/api/microsoft.teamfoundation.distributedtask.webapi.taskresult
        let conclusion = |result: &str| match result.to_ascii_lowercase().as_str() {
            "succeeded" | "succeededwithissues" => "success",
            "failed" | "abandoned" => "failure",
            "canceled" => "cancelled",
            "skipped" => "skipped",
            _ => Job::conclusion(result),
        };
        JobEvent {
            runner_id: job.runner_id,
            runner_name: job.runner_name,
            job: Job {
                run_id: job.run_id,
                name: job.name.map(|name| one_line(&name, 200)),
                repository: job.repository.map(|name| one_line(&name, 200)),
                queued_at: job.waited.map(|waited| self.now - millis(waited)),
                conclusion: job.result.as_deref().map(conclusion),
                ..Job::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Intake;
    use crate::hypervisor::{Inventory, Power};
    use crate::pool::health::Trouble;
    use crate::pool::slot::types::{Phase, Stop};
    use crate::pool::tests::{notes, rules, vm};
    use std::time::Duration;

    const ONE_WAITS: Statistics = Statistics { assigned: 1, running: 0 };

    /// The queue beside a pool with one idle VM, `runner-1`, that keeps none warm.
    struct World {
        queue: Queue,
        state: PoolState,
        now: Millis,
    }

    impl World {
        fn starting() -> World {
            let mut rules = rules(4, 0);
            rules.intake = Intake::ScaleSet;
            World { queue: Queue::new(1), state: PoolState::new(rules, 1, 0), now: 0 }
        }

        fn recovered() -> World {
            let mut world = World::starting();
            let vms = vec![vm(1, Power::On)];
            world.state.apply(0, |state| state.recover(&Inventory { vms, ..Inventory::default() }));
            world
        }

        /// With a session.
        fn open() -> World {
            let mut world = World::recovered();
            assert_eq!(world.bring(Answer::Paused), Ask::Open);
            assert_eq!(world.bring(opened(5, Statistics::default())), next(0));
            world
        }

        fn bring(&mut self, answer: Answer) -> Ask {
            self.now += 50;
            self.bring_now(answer)
        }

        fn bring_now(&mut self, answer: Answer) -> Ask {
            let queue = &mut self.queue;
            self.state.apply(self.now, |state| queue.next(answer, state)).0
        }

        /// Brings what comes of waiting.
        fn pass(&mut self, time: Millis, answer: Answer) -> Ask {
            self.now += time;
            self.bring_now(answer)
        }

        fn waiting(&self) -> usize {
            self.state.jobs_waiting()
        }

        fn troubles(&mut self) -> Vec<Trouble> {
            self.state.snapshot(self.now).health.troubles
        }
    }

    fn opened(scale_set: u64, statistics: Statistics) -> Answer {
        Answer::Opened(Ok(Opened { scale_set, warnings: Vec::new(), statistics }))
    }

    fn next(after: u64) -> Ask {
        Ask::Next { after, capacity: 4 }
    }

    fn message(id: u64, events: Vec<QueueEvent>, statistics: Statistics) -> Answer {
        Answer::Next(Ok(Some(Message { id, events, statistics: Some(statistics) })))
    }

    fn job_on(slot: u32) -> ScaleSetJob {
        let notes = notes(slot);
        ScaleSetJob {
            runner_id: notes.runner_id,
            runner_name: Some(notes.runner_name),
            ..ScaleSetJob::default()
        }
    }

    fn failed() -> QueueError {
        Error::Failed("no answer".into()).into()
    }

    fn pause(ask: Ask) -> Millis {
        let Ask::Pause(wait) = ask else { panic!("{ask:?} is no pause") };
        wait
    }

    #[test]
    fn the_queue_is_opened_once_the_vms_that_are_there_are_adopted() {
        let mut world = World::starting();
        pause(world.bring(Answer::Paused));
        world.state.apply(world.now, |state| state.recover(&Inventory::default()));
        assert_eq!(world.bring(Answer::Paused), Ask::Open);
    }

    #[test]
    fn githubs_count_says_how_many_jobs_wait_however_many_messages_came() {
        let mut world = World::open();
        let assigned = QueueEvent::Assigned(ScaleSetJob::default());
        let two = Statistics { assigned: 2, running: 0 };
        assert_eq!(world.bring(message(1, vec![assigned.clone()], two)), Ask::Acknowledge(1));
        assert_eq!(world.waiting(), 2);
        assert_eq!(world.bring(Answer::Done(Ok(()))), next(1));
        // An assignment that was not served is canceled and made again.
        world.bring(message(2, vec![assigned.clone(), assigned], Statistics { assigned: 2, running: 1 }));
        assert_eq!(world.waiting(), 1);
        assert_eq!(world.state.snapshot(world.now).jobs_waiting, 1);
    }

    #[test]
    fn a_waiting_job_has_a_vm_made_and_an_idle_one_stay() {
        let mut world = World::open();
        // The adopted VM serves the first job, so that nothing is made.
        let queue = &mut world.queue;
        let two = Statistics { assigned: 2, running: 0 };
        let (_, out) = world.state.apply(100, |state| queue.next(message(1, vec![], two), state));
        assert_eq!(out.actions.len(), 1, "{:?}", out.actions);
    }

    #[test]
    fn a_job_that_starts_makes_its_vm_running_and_its_end_alone_ends_no_vm() {
        let mut world = World::open();
        let started = ScaleSetJob { waited: Some(Duration::from_secs(9)), ..job_on(1) };
        let running = Statistics { assigned: 1, running: 1 };
        world.bring(message(1, vec![QueueEvent::Started(started)], running));
        assert_eq!(world.state.slot(0).phase(), Phase::Running);
        assert_eq!(world.state.snapshot(world.now).tally.queue.count(), 1);
        world.bring(Answer::Done(Ok(())));
        let completed = ScaleSetJob { result: Some("succeeded".into()), ..job_on(1) };
        world.bring(message(2, vec![QueueEvent::Completed(completed)], Statistics::default()));
        assert_eq!(world.state.slot(0).phase(), Phase::Running);
    }

    #[test]
    fn a_job_of_another_runner_is_no_sign_for_a_slot() {
        let mut world = World::open();
        let elsewhere = ScaleSetJob { runner_name: Some("runner-1-ffff0000ffff0000".into()), ..job_on(1) };
        world.bring(message(1, vec![QueueEvent::Started(elsewhere)], ONE_WAITS));
        assert_eq!(world.state.slot(0).phase(), Phase::Ready);
    }

    #[test]
    fn a_message_that_comes_again_changes_nothing_and_is_acknowledged() {
        let mut world = World::open();
        world.bring(message(7, vec![QueueEvent::Started(job_on(1))], Statistics::default()));
        // Its acknowledgment does not get through, and the session ends.
        assert_eq!(world.bring(Answer::Done(Err(QueueError::SessionGone))), Ask::Open);
        assert_eq!(world.bring(opened(5, ONE_WAITS)), next(0));
        assert_eq!(world.bring(message(7, vec![], Statistics::default())), Ask::Acknowledge(7));
        assert_eq!(world.waiting(), 1, "an old count");
        world.bring(Answer::Done(Ok(())));
        world.bring(message(7, vec![], Statistics::default()));
        assert_eq!(world.waiting(), 0, "GitHub has begun to count anew");
    }

    #[test]
    fn a_scale_set_that_is_made_again_counts_its_messages_from_the_start() {
        let mut world = World::open();
        world.bring(message(1, vec![], ONE_WAITS));
        assert_eq!(world.bring(Answer::Done(Err(QueueError::ScaleSetGone))), Ask::Open);
        assert_eq!(world.bring(opened(6, Statistics::default())), next(0));
        world.bring(message(1, vec![], ONE_WAITS));
        assert_eq!(world.waiting(), 1);
    }

    #[test]
    fn offered_jobs_are_acquired_before_their_message_is_acknowledged() {
        let mut world = World::open();
        let offers = vec![QueueEvent::Available(3), QueueEvent::Available(4)];
        assert_eq!(world.bring(message(1, offers, Statistics::default())), Ask::Acquire(vec![3, 4]));
        pause(world.bring(Answer::Done(Err(failed()))));
        assert_eq!(world.bring(Answer::Paused), Ask::Acquire(vec![3, 4]));
        assert_eq!(world.bring(Answer::Done(Ok(()))), Ask::Acknowledge(1));
    }

    #[test]
    fn what_cannot_be_acquired_or_acknowledged_does_not_hold_up_the_queue_for_ever() {
        let mut world = World::open();
        let offers = vec![QueueEvent::Available(3)];
        let mut ask = world.bring(message(1, offers, Statistics::default()));
        for _ in 0..40 {
            if ask == next(1) {
                return;
            }
            ask = match ask {
                Ask::Pause(wait) => world.pass(wait, Answer::Paused),
                _ => world.bring(Answer::Done(Err(failed()))),
            };
        }
        panic!("still {ask:?}");
    }

    #[test]
    fn an_expired_access_is_renewed_once_and_the_call_made_again() {
        let mut world = World::open();
        assert_eq!(world.bring(Answer::Next(Err(QueueError::Expired))), Ask::Refresh);
        assert_eq!(world.bring(Answer::Refreshed(Ok(Some(ONE_WAITS)))), next(0));
        assert_eq!(world.waiting(), 1, "a renewal brings a count");
        world.pass(50 * SECOND, Answer::Next(Ok(None)));
        world.bring(Answer::Next(Err(QueueError::Expired)));
        assert_eq!(world.bring(Answer::Refreshed(Ok(None))), next(0));
        assert_eq!(world.waiting(), 1, "or none");
        assert_eq!(world.bring(Answer::Next(Err(QueueError::Expired))), Ask::Open, "and no second one");
    }

    #[test]
    fn a_renewal_that_is_refused_leads_to_a_new_session() {
        let mut world = World::open();
        world.bring(Answer::Next(Err(QueueError::Expired)));
        assert_eq!(world.bring(Answer::Refreshed(Err(QueueError::SessionGone))), Ask::Open);
        assert_eq!(world.state.snapshot(world.now).queue.unwrap().connected_since, None);
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again() {
        let mut world = World::open();
        world.bring(Answer::Next(Err(QueueError::Expired)));
        pause(world.bring(Answer::Refreshed(Err(failed()))));
        assert_eq!(world.bring(Answer::Paused), Ask::Refresh);
    }

    #[test]
    fn a_session_in_which_nothing_comes_through_is_given_up_for_another() {
        // The queue's address is dead, say, or the renewal is refused in words that nobody has heard before.
        for ask in [next(0), Ask::Refresh] {
            let mut world = World::open();
            if ask == Ask::Refresh {
                assert_eq!(world.bring(Answer::Next(Err(QueueError::Expired))), Ask::Refresh);
            }
            let fail = |error| match &ask {
                Ask::Refresh => Answer::Refreshed(Err(error)),
                _ => Answer::Next(Err(error)),
            };
            for _ in 1..TRIES_IN_A_SESSION {
                let wait = pause(world.bring(fail(failed())));
                assert_eq!(world.pass(wait, Answer::Paused), ask);
            }
            let wait = pause(world.bring(fail(failed())));
            assert_eq!(world.state.snapshot(world.now).queue.unwrap().connected_since, None);
            assert_eq!(world.pass(wait, Answer::Paused), Ask::Open);
            // The failures go on counting: another session that is of no use is not asked in a hot loop.
            assert_eq!(world.bring(opened(5, ONE_WAITS)), next(0));
            assert!(pause(world.bring(Answer::Next(Err(failed())))) >= 30 * SECOND);
            assert_eq!(world.waiting(), 1);
        }
    }

    #[test]
    fn sessions_that_end_again_and_again_are_not_opened_in_a_hot_loop() {
        let mut world = World::open();
        assert_eq!(world.bring(Answer::Next(Err(QueueError::SessionGone))), Ask::Open);
        let mut wait = pause(world.bring(Answer::Opened(Err(QueueError::SessionGone))));
        for _ in 0..10 {
            assert_eq!(world.pass(wait, Answer::Paused), Ask::Open);
            wait = pause(world.bring(Answer::Opened(Err(QueueError::SessionGone))));
        }
        assert!(wait >= 30 * SECOND, "{wait}");
    }

    #[test]
    fn sessions_that_are_of_no_use_are_not_opened_in_a_hot_loop_either() {
        let mut world = World::open();
        assert_eq!(world.bring(Answer::Next(Err(QueueError::SessionGone))), Ask::Open);
        for _ in 0..10 {
            assert_eq!(world.bring(opened(5, ONE_WAITS)), next(0));
            let wait = pause(world.bring(Answer::Next(Err(QueueError::SessionGone))));
            assert_eq!(world.pass(wait, Answer::Paused), Ask::Open);
        }
        assert!(world.now >= 3 * 60 * SECOND, "{}", world.now);
    }

    #[test]
    fn a_message_that_ends_every_session_is_not_asked_for_in_a_hot_loop() {
        for ends in [Ask::Acquire(vec![3]), Ask::Acknowledge(1)] {
            let mut world = World::open();
            for _ in 0..10 {
                let offers =
                    if ends == Ask::Acknowledge(1) { vec![] } else { vec![QueueEvent::Available(3)] };
                assert_eq!(world.bring(message(1, offers, Statistics::default())), ends);
                let mut ask = world.bring(Answer::Done(Err(QueueError::SessionGone)));
                if let Ask::Pause(wait) = ask {
                    ask = world.pass(wait, Answer::Paused);
                }
                assert_eq!(ask, Ask::Open);
                assert_eq!(world.bring(opened(5, ONE_WAITS)), next(0));
            }
            assert!(world.now >= 3 * 60 * SECOND, "{}", world.now);
        }
    }

    #[test]
    fn another_session_is_waited_for_and_told_after_minutes() {
        let mut world = World::recovered();
        world.bring(Answer::Paused);
        let in_use = || Answer::Opened(Err(QueueError::InUse("already has an active session".into())));
        for _ in 0..40 {
            assert_eq!(pause(world.bring(in_use())), WHILE_IN_USE);
            assert_eq!(world.pass(WHILE_IN_USE, Answer::Paused), Ask::Open);
        }
        assert_eq!(world.troubles(), [Trouble::QueueLost]);
        world.bring(opened(5, Statistics::default()));
        assert_eq!(world.troubles(), []);
    }

    #[test]
    fn a_scale_set_that_is_somebody_elses_degrades_health_at_once() {
        let mut world = World::recovered();
        world.bring(Answer::Paused);
        let refused = QueueError::Other(Error::Refused("it is not this pool's".into()));
        pause(world.bring(Answer::Opened(Err(refused))));
        assert_eq!(world.troubles(), [Trouble::QueueRefused]);
    }

    #[test]
    fn empty_answers_are_asked_again_without_a_hot_loop_and_a_lost_message_is_made_up_for() {
        let mut world = World::open();
        assert_eq!(pause(world.bring(Answer::Next(Ok(None)))), LEAST_BETWEEN);
        assert_eq!(world.bring(Answer::Paused), next(0));
        for _ in 0..11 {
            assert_eq!(world.pass(50 * SECOND, Answer::Next(Ok(None))), next(0));
        }
        assert_eq!(world.pass(50 * SECOND, Answer::Next(Ok(None))), Ask::Refresh);
        assert_eq!(world.bring(Answer::Refreshed(Ok(Some(ONE_WAITS)))), next(0));
        assert_eq!(world.waiting(), 1);
    }

    #[test]
    fn a_pool_that_drains_gives_its_session_up_and_takes_it_again_when_it_is_resumed() {
        let mut world = World::open();
        world.state.apply(world.now, PoolState::drain);
        assert_eq!(world.bring(Answer::Next(Ok(None))), Ask::Close);
        pause(world.bring(Answer::Done(Ok(()))));
        pause(world.bring(Answer::Paused));
        world.state.apply(world.now, PoolState::resume);
        assert_eq!(world.bring(Answer::Paused), Ask::Open);
    }

    #[test]
    fn a_pool_that_stops_closes_what_it_was_opening() {
        let mut world = World::recovered();
        world.bring(Answer::Paused);
        world.state.apply(world.now, |state| state.stop(Stop::Keep));
        assert_eq!(world.bring(opened(5, ONE_WAITS)), Ask::Close);
        assert_eq!(world.bring(Answer::Done(Err(failed()))), Ask::End);
    }

    #[test]
    fn a_rate_limit_is_waited_for() {
        let mut world = World::open();
        let limited = Error::RateLimited { retry_after: Duration::from_secs(120), why: "slow down".into() };
        assert!(pause(world.bring(Answer::Next(Err(limited.into())))) >= 120 * SECOND);
    }
}

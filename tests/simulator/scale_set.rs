//! The runner scale set at GitHub, its queue, and the pool's thread that asks it.

use super::plan::{Fault, HOUR, MINUTE, SECOND};
use super::process::Process;
use super::{Action, Bug, Ev, Hook, Sim};
use hyperv_runner_pool::github::Error;
use hyperv_runner_pool::github::queue::{Message, Opened, QueueError, QueueEvent, ScaleSetJob, Statistics};
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::pool::Millis;
use hyperv_runner_pool::pool::queue::{Answer, Ask};

/// How long GitHub holds a request for the next message.
const HOLD: Millis = 50 * SECOND;

/// How long the session of a killed pool lasts.
const SESSION_LASTS: Millis = 50 * SECOND;

/// A scale set of a scope, which GitHub makes when the pool asks for it.
#[derive(Clone, Debug)]
pub struct SimSet {
    scope: Scope,
    id: u64,
    session: Option<SimSession>,
    messages: Vec<Message>,
    last_message: u64,
}

#[derive(Clone, Debug)]
struct SimSession {
    number: u64,
    /// The start of the pool that holds it.
    generation: u32,
    token_is_good: bool,
    /// When it ends, once nobody holds it any more.
    ends: Option<Millis>,
}

/// What the pool's client holds, and its thread does.
#[derive(Clone, Debug, Default)]
pub struct Client {
    scale_set: Option<u64>,
    session: Option<u64>,
    asked: Option<(Ask, Millis)>,
    /// Which answer is waited for.
    turn: u64,
}

impl Sim {
    /// The thread of the queue goes on with what came of its last question.
    pub(crate) fn queue_goes_on(&mut self, p: &mut Process, answer: Answer) {
        let ask = self.ask_of_queue(p, answer);
        if ask == Ask::End {
            return;
        }
        let slow = self.fault(Fault::GitHubSlow);
        let wait = match &ask {
            Ask::Pause(wait) => *wait,
            _ if slow => self.rng.between(SECOND, MINUTE),
            _ => self.rng.between(20, 2 * SECOND),
        };
        p.client.asked = Some((ask, self.now + HOLD));
        p.client.turn += 1;
        self.after(wait, Ev::Queue(p.generation, p.client.turn));
    }

    /// Something may have come of what the thread asks.
    pub(crate) fn queue_event(&mut self, generation: u32, turn: u64) {
        let Some(mut p) = self.process.take() else { return };
        if p.generation == generation
            && p.client.turn == turn
            && let Some((ask, until)) = p.client.asked.take()
        {
            match self.answer_of_queue(&mut p, &ask) {
                // Nothing yet: GitHub holds the request.
                Some(Answer::Next(Ok(None))) if self.now < until => {
                    p.client.asked = Some((ask, until));
                    self.after(until - self.now, Ev::Queue(generation, turn));
                }
                Some(answer) => self.queue_goes_on(&mut p, answer),
                None => {}
            }
        }
        self.put_back(p);
    }

    fn answer_of_queue(&mut self, p: &mut Process, ask: &Ask) -> Option<Answer> {
        let scope = p.state.rules().scope.clone();
        let fails = self.queue_fails();
        let down = fails.is_some();
        let failed = QueueError::from(fails.unwrap_or(Error::Failed("no answer".into())));
        Some(match ask {
            Ask::Pause(_) => Answer::Paused,
            Ask::Open if down => Answer::Opened(Err(failed)),
            Ask::Open => Answer::Opened(self.open_session(p, &scope)),
            Ask::Next { .. } if down => Answer::Next(Err(failed)),
            Ask::Next { after, capacity } => {
                if *capacity != p.config.size {
                    self.violate(8, format!("a capacity of {capacity} is announced"));
                }
                if self.fault(Fault::QueueTokenExpires)
                    && let Some(session) = self.session_of(p, &scope)
                {
                    session.token_is_good = false;
                }
                let lost = self.fault(Fault::SessionLost);
                if lost || self.fault(Fault::ScaleSetRemoved) {
                    self.end_session(&scope, !lost);
                }
                Answer::Next(self.next_message(p, &scope, *after))
            }
            Ask::Refresh if down => Answer::Refreshed(Err(failed)),
            Ask::Refresh => {
                if self.fault(Fault::RenewalRefused) {
                    self.end_session(&scope, false);
                }
                let statistics = self.statistics(&scope);
                let session = self.session_of(p, &scope).ok_or(QueueError::SessionGone);
                Answer::Refreshed(session.map(|session| {
                    session.token_is_good = true;
                    Some(statistics)
                }))
            }
            // The pool's own client does not offer what it cannot acquire.
            Ask::Acquire(_) => Answer::Done(Ok(())),
            Ask::Acknowledge(_) if down => Answer::Done(Err(failed)),
            Ask::Acknowledge(message) => Answer::Done(self.acknowledge(p, &scope, *message)),
            Ask::Close => {
                if !down {
                    self.close_session(p);
                }
                Answer::Done(Ok(()))
            }
            Ask::End => return None,
        })
    }

    fn queue_fails(&mut self) -> Option<Error> {
        if self.now < self.refused_until {
            return Some(Error::Refused("the token is refused".into()));
        }
        let down = self.now < self.github_down_until || self.now < self.rate_limited_until;
        (down || self.fault(Fault::QueueFails)).then(|| Error::Failed("no answer".into()))
    }

    fn set_of(&mut self, scope: &Scope) -> &mut SimSet {
        let at = self.scale_sets.iter().position(|set| set.scope == *scope).unwrap_or_else(|| {
            let id = self.rng.next();
            let scope = scope.clone();
            self.scale_sets.push(SimSet { scope, id, session: None, messages: Vec::new(), last_message: 0 });
            self.scale_sets.len() - 1
        });
        &mut self.scale_sets[at]
    }

    /// The session that the process holds, if it lasts.
    fn session_of(&mut self, p: &Process, scope: &Scope) -> Option<&mut SimSession> {
        let (held, now) = (p.client.session, self.now);
        let set = self.scale_sets.iter_mut().find(|set| set.scope == *scope)?;
        set.session
            .as_mut()
            .filter(|session| Some(session.number) == held && session.ends.is_none_or(|ends| now < ends))
    }

    fn open_session(&mut self, p: &mut Process, scope: &Scope) -> Result<Opened, QueueError> {
        let (now, number, generation) = (self.now, self.rng.next(), p.generation);
        self.close_session(p);
        let set = self.set_of(scope);
        if p.client.scale_set.is_some_and(|known| known != set.id) {
            p.client.scale_set = None;
            return Err(QueueError::ScaleSetGone);
        }
        let scale_set = set.id;
        if set.session.as_ref().is_some_and(|session| session.ends.is_none_or(|ends| now < ends)) {
            return Err(QueueError::InUse("it has an active session".into()));
        }
        if self.fault(Fault::NoQueueAddress) {
            return Err(Error::Failed("no address".into()).into());
        }
        self.set_of(scope).session = Some(SimSession { number, generation, token_is_good: true, ends: None });
        (p.client.scale_set, p.client.session) = (Some(scale_set), Some(number));
        self.give_to_scale_set(scope);
        self.assign_jobs();
        Ok(Opened { scale_set, warnings: Vec::new(), statistics: self.statistics(scope) })
    }

    /// The pool closes its session, if it has one.
    pub(crate) fn close_session(&mut self, p: &mut Process) {
        let held = p.client.session.take();
        for set in &mut self.scale_sets {
            set.session.take_if(|session| Some(session.number) == held);
        }
    }

    /// The process is dead: its session lasts for a while.
    pub(crate) fn leave_session(&mut self, generation: u32) {
        let ends = self.now + SESSION_LASTS;
        let sessions = self.scale_sets.iter_mut().filter_map(|set| set.session.as_mut());
        sessions.filter(|session| session.generation == generation).for_each(|session| {
            session.ends.get_or_insert(ends);
        });
    }

    /// A session ends by itself, or with its scale set, which takes its idle runners along.
    fn end_session(&mut self, scope: &Scope, with_scale_set: bool) {
        let id = self.rng.next();
        let set = self.set_of(scope);
        set.session = None;
        if with_scale_set {
            (set.id, set.last_message) = (id, 0);
            set.messages.clear();
            self.world_version += 1;
            for job in &self.waiting {
                self.jobs[*job as usize].assigned = false;
            }
            let idle = self.runners.iter().filter(|r| !r.foreign && r.scope == *scope && r.job.is_none());
            for id in idle.map(|r| r.id).collect::<Vec<_>>() {
                self.remove_runner(id, scope, false);
            }
        }
    }

    fn next_message(
        &mut self,
        p: &Process,
        scope: &Scope,
        after: u64,
    ) -> Result<Option<Message>, QueueError> {
        let session = self.session_of(p, scope).ok_or(QueueError::SessionGone)?;
        if !session.token_is_good {
            return Err(QueueError::Expired);
        }
        Ok(self.set_of(scope).messages.iter().find(|message| message.id > after).cloned())
    }

    fn acknowledge(&mut self, p: &Process, scope: &Scope, message: u64) -> Result<(), QueueError> {
        let session = self.session_of(p, scope).ok_or(QueueError::SessionGone)?;
        if !session.token_is_good {
            return Err(QueueError::Expired);
        }
        if !self.fault(Fault::AnswerLost) {
            self.set_of(scope).messages.retain(|its| its.id != message);
            return Ok(());
        }
        // It is forgotten, or not, and the pool does not hear of it.
        if self.rng.one_in(2) {
            self.set_of(scope).messages.retain(|its| its.id != message);
        }
        Err(Error::Failed("no answer".into()).into())
    }

    /// GitHub's count of the jobs of a scope's scale set.
    fn statistics(&self, scope: &Scope) -> Statistics {
        let running = self.runners.iter().filter(|runner| {
            let runs = |job: u64| !self.jobs[job as usize].over;
            !runner.foreign && runner.scope == *scope && runner.job.is_some_and(runs)
        });
        let running = running.count() as u32;
        let waiting = self.waiting.iter().filter(|job| self.jobs[**job as usize].assigned).count() as u32;
        Statistics { assigned: waiting + running, running }
    }

    /// Jobs that wait are the scale set's, while a pool listens to its queue.
    pub(crate) fn give_to_scale_set(&mut self, scope: &Scope) {
        if !self.scale_sets.iter().any(|set| set.scope == *scope && set.session.is_some()) {
            return;
        }
        let unassigned = |sim: &Sim, job: &u64| !sim.jobs[*job as usize].assigned;
        let jobs: Vec<u64> = self.waiting.iter().copied().filter(|job| unassigned(self, job)).collect();
        for job in jobs {
            self.jobs[job as usize].assigned = true;
            self.tell_queue(scope, vec![QueueEvent::Assigned(ScaleSetJob::default())]);
            if self.fault(Fault::AssignmentCanceled) {
                let wait = self.rng.between(5 * MINUTE, 15 * MINUTE);
                self.after(wait, Ev::Reassign(job));
            }
        }
    }

    /// An assignment that was not served is canceled and made again.
    pub(crate) fn reassign(&mut self, job: u64) {
        if self.jobs[job as usize].assigned && self.waiting.contains(&job) {
            let canceled = ScaleSetJob { result: Some("canceled".into()), ..ScaleSetJob::default() };
            let again = QueueEvent::Assigned(ScaleSetJob::default());
            let scope = super::process::rules(&self.plan.config).scope;
            self.tell_queue(&scope, vec![QueueEvent::Completed(canceled), again]);
        }
    }

    /// What a webhook would have told, by the queue.
    pub(crate) fn tell_queue_of(&mut self, hook: Hook) {
        let scope = super::process::rules(&self.plan.config).scope;
        let (runner_id, runner_name) = hook.runner.map_or((None, None), |(id, name)| (Some(id), Some(name)));
        let job = ScaleSetJob { runner_id, runner_name, ..ScaleSetJob::default() };
        let event = match hook.action {
            Action::Queued => return self.give_to_scale_set(&scope),
            Action::InProgress => QueueEvent::Started(job),
            Action::Completed => QueueEvent::Completed(job),
        };
        // GitHub has said so of jobs that ran on.
        if hook.action == Action::InProgress && self.fault(Fault::CompletedEarly) {
            let QueueEvent::Started(job) = event.clone() else { return };
            self.tell_queue(&scope, vec![QueueEvent::Completed(job)]);
        }
        self.tell_queue(&scope, vec![event]);
    }

    /// A message, with the count as it is now: it may come late, without its events, or not at all.
    fn tell_queue(&mut self, scope: &Scope, events: Vec<QueueEvent>) {
        if self.fault(Fault::MessageLost) {
            return;
        }
        let events = if self.fault(Fault::MessageEmpty) { Vec::new() } else { events };
        let message = Message { id: 0, events, statistics: Some(self.statistics(scope)) };
        let wait = if self.fault(Fault::MessageLate) {
            self.rng.between(SECOND, HOUR)
        } else {
            self.rng.between(20, 2 * SECOND)
        };
        self.after(wait, Ev::Message(Box::new((scope.clone(), message))));
    }

    /// A message reaches the queue, and the pool if it waits for one.
    pub(crate) fn message_arrives(&mut self, scope: &Scope, message: Message) {
        let set = self.set_of(scope);
        set.last_message += 1;
        let id = set.last_message;
        set.messages.push(Message { id, ..message });
        let waits = self.process.as_ref().and_then(|p| {
            let (ask, _) = p.client.asked.as_ref()?;
            matches!(ask, Ask::Next { .. }).then_some((p.generation, p.client.turn))
        });
        if let Some((generation, turn)) = waits {
            self.after(20, Ev::Queue(generation, turn));
        }
    }

    /// Plants a bug into what the queue tells.
    pub(crate) fn planted_in_queue(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Next(Ok(Some(message))) if self.options.bug == Some(Bug::DeafToQueue) => {
                Answer::Next(Ok(Some(Message { id: message.id, ..Message::default() })))
            }
            Answer::Opened(Ok(opened)) if self.options.bug == Some(Bug::DeafToQueue) => {
                Answer::Opened(Ok(Opened { statistics: Statistics::default(), ..opened }))
            }
            Answer::Refreshed(Ok(_)) if self.options.bug == Some(Bug::DeafToQueue) => {
                Answer::Refreshed(Ok(Some(Statistics::default())))
            }
            other => other,
        }
    }
}

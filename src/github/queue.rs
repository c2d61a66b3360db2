//! The message queue of a runner scale set: how GitHub tells of jobs where no
//! webhook reaches.
//!
//! As GitHub's own client speaks it: <https://github.com/actions/scaleset>.
//! Nothing of this is documented as an API.

use super::Error;
use std::fmt;
use std::time::Duration;

/// What the pool asks of the queue. Every call blocks and ends within a bounded
/// time, [`JobQueue::next`] within two minutes. One thread makes all calls but
/// [`JobQueue::close`], which can come from another at any time.
pub trait JobQueue: Send + Sync {
    /// The scale set's id, once it is known. Never waits for GitHub.
    fn scale_set(&self) -> Option<u64>;

    /// Finds the pool's scale set, makes it if there is none, and opens a
    /// session: one scale set has one at a time.
    ///
    /// # Errors
    /// [`QueueError::InUse`] while another session lasts; [`Error::Refused`]
    /// when the scale set of that name is somebody else's.
    fn open(&self) -> Result<Opened, QueueError>;

    /// Waits for the message that follows `after` (0: the first), up to about a
    /// minute. `capacity` is how many jobs the pool can run at a time in all.
    /// GitHub repeats a message until it is acknowledged.
    ///
    /// # Errors
    /// [`QueueError::Expired`] when the session must be refreshed.
    fn next(&self, after: u64, capacity: u32) -> Result<Option<Message>, QueueError>;

    /// Renews the session's access to the queue. Answers with the jobs as they
    /// are now, if GitHub says it.
    ///
    /// # Errors
    /// [`QueueError::SessionGone`] when it cannot be renewed.
    fn refresh(&self) -> Result<Option<Statistics>, QueueError>;

    /// Takes jobs that GitHub offers: only GitHub Enterprise Server asks first.
    ///
    /// # Errors
    /// [`QueueError::Expired`] when the session must be refreshed.
    fn acquire(&self, requests: &[i64]) -> Result<(), QueueError>;

    /// Tells that a message has been handled.
    ///
    /// # Errors
    /// [`QueueError::Expired`] when the session must be refreshed.
    fn acknowledge(&self, message: u64) -> Result<(), QueueError>;

    /// Closes the session, so that another can be opened at once. Without one, does nothing.
    ///
    /// # Errors
    /// When GitHub cannot be told: then the session expires by itself, within a minute or so.
    fn close(&self) -> Result<(), QueueError>;
}

/// A session that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The scale set's id, which is another when it had to be made again.
    pub scale_set: u64,
    /// What is worth a warning: labels that GitHub has dropped, say. One sentence each.
    pub warnings: Vec<String>,
    /// As it is now.
    pub statistics: Statistics,
}

/// The scale set's jobs, as GitHub counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Jobs that are the scale set's, those that run among them.
    pub assigned: u32,
    /// Jobs that run.
    pub running: u32,
}

/// A message of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its number, which rises.
    pub id: u64,
    /// What has happened, in order.
    pub events: Vec<QueueEvent>,
    /// The jobs at the moment when the message was made, if it says.
    pub statistics: Option<Statistics>,
}

/// What a message tells of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueEvent {
    /// It waits to be acquired, by this request id.
    Available(i64),
    /// It is the scale set's, and waits for a runner.
    Assigned(ScaleSetJob),
    /// A runner has it.
    Started(ScaleSetJob),
    /// It has ended, or so GitHub says.
    Completed(ScaleSetJob),
}

/// A job, as far as a message tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScaleSetJob {
    /// GitHub's id of the runner, once it has one.
    pub runner_id: Option<u64>,
    /// The runner's name, once it has one.
    pub runner_name: Option<String>,
    /// GitHub's id of the workflow run.
    pub run_id: Option<u64>,
    /// The job's name.
    pub name: Option<String>,
    /// `owner/name` of the repository.
    pub repository: Option<String>,
    /// How long it waited until a runner took it.
    pub waited: Option<Duration>,
    /// How it ended, in GitHub's word.
    pub result: Option<String>,
}

/// Why the queue does not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The access to the queue has ended (401): refresh the session.
    Expired,
    /// Another session is open (409). GitHub's words name its owner.
    InUse(String),
    /// The session is over, or cannot be renewed: open another.
    SessionGone,
    /// GitHub has removed the scale set: open a session, which makes it again.
    ScaleSetGone,
    /// Anything else.
    Other(Error),
}

impl From<Error> for QueueError {
    fn from(error: Error) -> QueueError {
        QueueError::Other(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueueError::Expired => f.write_str("the access to the queue has expired"),
            QueueError::InUse(why) => f.write_str(why),
            QueueError::SessionGone => f.write_str("the queue's session is over"),
            QueueError::ScaleSetGone => f.write_str("GitHub has removed the runner scale set"),
            QueueError::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for QueueError {}

//! GitHub, as far as the pool needs it: register a runner, see which there
//! are, remove one.

mod app_tokens;
mod auth;
pub mod client;
pub mod clock;
mod http;
mod pat;
pub mod queue;
mod rate_limit;
mod refusal;
mod scale_set;
pub mod scope;
pub mod traffic;
mod wire;

use crate::secret::Secret;
use scope::Scope;
use std::fmt;
use std::time::{Duration, SystemTime};
use traffic::Traffic;

/// How many items, such as runners, GitHub lists in one response at most. It
/// allows a token 5,000 requests an hour:
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
pub const PER_PAGE: usize = 100;

/// What the pool asks of GitHub. Every call blocks and ends within a bounded time.
pub trait GitHub: Send + Sync {
    /// The scope in which new runners are registered.
    fn scope(&self) -> &Scope;

    /// Registers a runner in the pool's scope (JIT), or gets a token with
    /// which it registers itself.
    ///
    /// # Errors
    /// [`Error::NameTaken`] when a runner of that name exists (JIT only).
    fn register(&self, name: &str) -> Result<Registration, Error>;

    /// Every runner in the pool's scope, at the cost of one request for each
    /// [`PER_PAGE`] of them.
    ///
    /// # Errors
    /// When the list is not complete.
    fn runners(&self) -> Result<Vec<Runner>, Error>;

    /// The runner of exactly this name.
    ///
    /// # Errors
    /// [`Error::Refused`] when the token has no access to the scope.
    fn runner_by_name(&self, scope: &Scope, name: &str) -> Result<Option<Runner>, Error>;

    /// The runner with this id. (A listing in pages can miss a runner when
    /// another one goes away between two pages; this cannot.)
    ///
    /// # Errors
    /// [`Error::Refused`] when the token has no access to the scope.
    fn runner_by_id(&self, scope: &Scope, id: u64) -> Result<Option<Runner>, Error>;

    /// Removes a registration.
    ///
    /// # Errors
    /// [`Error::Refused`] when the token has no access to the scope.
    fn remove(&self, scope: &Scope, id: u64) -> Result<Removal, Error>;

    /// The jobs that are queued in the pool's repository: those of its newest
    /// 50 queued and newest 50 running workflow runs, at the cost of a request
    /// for each run. Empty for an organization, whose queued jobs no REST call
    /// lists.
    ///
    /// # Errors
    /// [`Error::Refused`] when the token may not read Actions.
    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, Error>;

    /// The newest version of the runner application for 64-bit Windows, such
    /// as `2.328.0`; `None` when GitHub offers none.
    ///
    /// # Errors
    /// When GitHub does not answer.
    fn newest_runner_version(&self) -> Result<Option<String>, Error>;

    /// When the personal access token expires, as GitHub said in its last
    /// answer. `None` when it did not say, and with a GitHub App, whose tokens
    /// are made anew in time.
    fn token_expires(&self) -> Option<SystemTime>;

    /// The requests since the start. None where there is nobody to send them to.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// A job that waits for a runner, as GitHub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// GitHub's id of the job.
    pub id: u64,
    /// The labels in its `runs-on`.
    pub labels: Vec<String>,
}

/// What a new VM needs to become a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// GitHub's id of the runner; unknown with a registration token.
    pub runner_id: Option<u64>,
    /// The encoded JIT configuration, or the registration token.
    pub credential: Secret,
}

/// A self-hosted runner as GitHub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// GitHub's id of the registration.
    pub id: u64,
    /// The runner's name, unique in its organization or repository.
    pub name: String,
    /// Whether it is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
    /// Its labels.
    pub labels: Vec<String>,
}

/// What came of removing a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It was there and is gone (204).
    Removed,
    /// It was not there (404): an ephemeral runner leaves by itself after its job.
    NotThere,
    /// GitHub refuses because a job runs on it (422).
    Busy,
}

/// Why GitHub did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A runner of that name is registered already (409).
    NameTaken,
    /// GitHub's rate limit is used up. No request of any slot is sent before
    /// the time is over.
    RateLimited {
        /// How long until requests are sent again.
        retry_after: Duration,
        /// The same in one sentence.
        why: String,
    },
    /// GitHub refuses the token (401), or does not let it do this (403, or 404
    /// for the scope itself), or the scope is at another GitHub, to which the
    /// token is not sent. Waiting does not help; a change of settings does.
    Refused(String),
    /// Anything else, in one sentence for the log, `/health` and the status page.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NameTaken => f.write_str("a runner of that name is registered already"),
            Error::RateLimited { why, .. } | Error::Refused(why) | Error::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

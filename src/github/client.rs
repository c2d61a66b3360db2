//! GitHub's REST API for self-hosted runners, of an organisation or of a
//! repository.
//!
//! <https://docs.github.com/en/rest/actions/self-hosted-runners> and
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>, API
//! version 2022-11-28.

use super::auth::Auth;
pub use super::http::Timeouts;
use super::http::{Answer, Call, Transport, one_line};
use super::scope::{Scope, encode};
use super::single_flight::SingleFlight;
use super::time::{Clock, SystemClock, parse_rfc3339};
use super::wire::{Download, GroupsPage, JitConfig, Page, RegistrationToken, RunnerItem, RunnersPage};
use super::{Error, GitHub, QueuedJob, Registration, Removal, Runner};
use crate::config::RegistrationMode;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use ureq::http::Method;

/// Items on a page: the most that GitHub gives.
const PER_PAGE: usize = 100;
/// The most pages of a listing. A runner group holds 10,000 runners at most:
/// <https://docs.github.com/en/actions/reference/limits>
const MAX_PAGES: usize = 200;
/// The id of the runner group "Default", and of the only one a repository has.
const DEFAULT_GROUP: u64 = 1;
/// A registration token is replaced this long before it expires, so that the
/// VM that gets it has the time to start and register.
const TOKEN_MARGIN: Duration = Duration::from_secs(5 * 60);

/// Which runners of which GitHub, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Such as `https://api.github.com`, or `https://HOST/api/v3` of a GitHub
    /// Enterprise Server.
    pub api_url: String,
    /// The personal access token.
    pub pat: Secret,
    /// The organisation, or the owner of the repository.
    pub org: String,
    /// The repository, for runners of one repository only.
    pub repo: Option<String>,
    /// How a VM becomes a runner.
    pub registration: RegistrationMode,
    /// The runner group of JIT runners. A repository has only `Default`.
    pub runner_group: String,
    /// The labels of JIT runners: 1 to 100.
    pub labels: Vec<String>,
}

/// The REST client. One for the whole pool: its slots share the rate limit,
/// the registration token and the connections.
pub struct Client {
    transport: Transport,
    scope: Scope,
    registration: RegistrationMode,
    runner_group: String,
    labels: Vec<String>,
    group_id: SingleFlight<u64>,
    token: SingleFlight<Token>,
}

impl Client {
    /// Makes a client; nothing is sent yet. A proxy is taken from the
    /// environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), except to this
    /// machine itself.
    pub fn new(settings: Settings) -> Client {
        Client::with(settings, Timeouts::default(), Arc::new(SystemClock))
    }

    /// The same with other time-outs and another clock, for tests.
    pub fn with(settings: Settings, timeouts: Timeouts, clock: Arc<dyn Clock>) -> Client {
        Client {
            transport: Transport::new(&settings.api_url, Auth::Pat(settings.pat), timeouts, clock),
            scope: Scope {
                api_url: settings.api_url.clone(),
                owner: settings.org,
                repository: settings.repo,
            },
            registration: settings.registration,
            runner_group: settings.runner_group,
            labels: settings.labels,
            group_id: SingleFlight::default(),
            token: SingleFlight::default(),
        }
    }

    /// A call about the runners of the organisation or repository. `suffix` is
    /// what follows `/orgs/ORG/actions` in the path.
    fn call(&self, what: String, method: Method, suffix: &str) -> Call {
        Call { what, method, path: format!("{}/actions{suffix}", self.scope.path()), body: None }
    }

    /// Sends a call and reads its answer, which must be a success.
    fn ask<T: for<'de> Deserialize<'de>>(&self, call: &Call, deadline: Instant) -> Result<T, Error> {
        let answer = self.transport.send(call, deadline)?;
        self.read(call, &answer)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, call: &Call, answer: &Answer) -> Result<T, Error> {
        match answer.status {
            200..300 => self.transport.json(call, answer),
            _ => Err(self.transport.refusal(call, answer, &self.scope)),
        }
    }

    /// All items of a listing in pages.
    ///
    /// # Errors
    /// Also when the end is not reached: a runner missing from the listing
    /// would be taken for gone.
    fn list<P: Page>(&self, what: &str, suffix: &str) -> Result<Vec<P::Item>, Error> {
        let deadline = self.transport.listing_deadline();
        let joint = if suffix.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        for page in 1..=MAX_PAGES {
            let paged = format!("{suffix}{joint}per_page={PER_PAGE}&page={page}");
            let call = self.call(what.to_owned(), Method::GET, &paged);
            let (total, found) = self.ask::<P>(&call, deadline)?.take();
            let over = found.is_empty();
            items.extend(found);
            // A page may be short of items that went away meanwhile, so only
            // the total, or an empty page, says that this was the last.
            if over || items.len() as u64 >= total {
                return Ok(items);
            }
        }
        Err(Error::Failed(format!("{what}: the list is longer than {} entries", MAX_PAGES * PER_PAGE)))
    }

    fn list_runners(&self, what: &str, suffix: &str) -> Result<Vec<Runner>, Error> {
        let mut runners: Vec<Runner> =
            self.list::<RunnersPage>(what, suffix)?.into_iter().map(Runner::from).collect();
        // One that slid to the next page while another was added came twice.
        let mut seen = std::collections::HashSet::new();
        runners.retain(|runner| seen.insert(runner.id));
        Ok(runners)
    }

    /// Registers a JIT runner.
    fn register_jit(&self, name: &str) -> Result<Registration, Error> {
        let what = format!("cannot register the runner {}", one_line(name));
        let group = self.group_id(&what)?;
        let (mut call, mut answer) = self.post_jit(&what, name, group)?;
        // GitHub does not document how it refuses a group that is gone (deleted
        // and made again, say); 404 and 422 are what it can be.
        if matches!(answer.status, 404 | 422) && group != DEFAULT_GROUP {
            self.group_id.forget(|id| *id == group);
            let present = self.group_id(&what)?;
            if present != group {
                (call, answer) = self.post_jit(&what, name, present)?;
            }
        }
        if answer.status == 409 {
            return Err(Error::NameTaken);
        }
        let jit: JitConfig = self.read(&call, &answer)?;
        let credential = self.credential(&call, jit.encoded_jit_config)?;
        Ok(Registration { runner_id: Some(jit.runner.id), credential })
    }

    fn post_jit(&self, what: &str, name: &str, group: u64) -> Result<(Call, Answer), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            name: &'a str,
            runner_group_id: u64,
            labels: &'a [String],
            work_folder: &'a str,
        }
        let body = Body { name, runner_group_id: group, labels: &self.labels, work_folder: "_work" };
        let mut call = self.call(what.to_owned(), Method::POST, "/runners/generate-jitconfig");
        call.body = Some(serde_json::to_vec(&body).map_err(|e| Error::Failed(format!("{what}: {e}")))?);
        let answer = self.transport.send(&call, self.transport.request_deadline())?;
        Ok((call, answer))
    }

    /// The id of the runner group, looked up once.
    fn group_id(&self, what: &str) -> Result<u64, Error> {
        if self.scope.repository.is_some() || self.runner_group.eq_ignore_ascii_case("Default") {
            return Ok(DEFAULT_GROUP);
        }
        self.group_id.get(
            |_| true,
            || {
                let groups = self.list::<GroupsPage>(what, "/runner-groups")?;
                if let Some(group) = groups.iter().find(|group| group.name == self.runner_group) {
                    return Ok(group.id);
                }
                let names: Vec<String> = groups.iter().take(10).map(|group| one_line(&group.name)).collect();
                Err(Error::Failed(format!(
                    "{what}: the {} has no runner group {:?}: make it, or set RUNNER_GROUP to one that it \
                     has ({})",
                    self.scope,
                    self.runner_group,
                    names.join(", ")
                )))
            },
        )
    }

    /// A registration token: the one that all slots share, or a new one when
    /// that is about to expire.
    fn registration_token(&self) -> Result<Registration, Error> {
        let clock = self.transport.clock();
        let fetch = || {
            let what = "cannot get a registration token".to_owned();
            let call = self.call(what, Method::POST, "/runners/registration-token");
            let answer = self.transport.send(&call, self.transport.request_deadline())?;
            let token: RegistrationToken = self.read(&call, &answer)?;
            // Its life is measured by GitHub's clock, if it told: ours may be wrong.
            let life =
                token.expires_at.as_deref().and_then(parse_rfc3339).and_then(|expires| {
                    expires.duration_since(answer.date.unwrap_or_else(|| clock.utc())).ok()
                });
            let shared_until = life.and_then(|life| life.checked_sub(TOKEN_MARGIN)).map(|l| clock.now() + l);
            Ok(Token { value: self.credential(&call, token.token)?, shared_until })
        };
        let fresh = |token: &Token| token.shared_until.is_some_and(|until| clock.now() < until);
        let token = self.token.get(fresh, fetch)?;
        Ok(Registration { runner_id: None, credential: token.value })
    }

    fn credential(&self, call: &Call, value: String) -> Result<Secret, Error> {
        if value.is_empty() {
            return Err(Error::Failed(format!("{}: GitHub's answer holds an empty credential", call.what)));
        }
        Ok(Secret::new(value))
    }

    /// Makes sure that a 404 for one runner is about that runner. GitHub
    /// answers the same when the token has lost its access to the
    /// organisation, and then nothing is known about the runner.
    fn confirm_access(&self, what: &str, deadline: Instant) -> Result<(), Error> {
        let call = self.call(what.to_owned(), Method::GET, "/runners?per_page=1");
        self.ask::<RunnersPage>(&call, deadline).map(|_| ())
    }
}

impl GitHub for Client {
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, Error> {
        Ok(Vec::new())
    }

    fn token_expires(&self) -> Option<SystemTime> {
        None
    }

    fn register(&self, name: &str) -> Result<Registration, Error> {
        match self.registration {
            RegistrationMode::Jit => self.register_jit(name),
            RegistrationMode::Token => self.registration_token(),
        }
    }

    fn runners(&self) -> Result<Vec<Runner>, Error> {
        self.list_runners("cannot list the runners", "/runners")
    }

    fn runner_by_name(&self, _scope: &Scope, name: &str) -> Result<Option<Runner>, Error> {
        let what = format!("cannot look up the runner {}", one_line(name));
        let found = self.list_runners(&what, &format!("/runners?name={}", encode(name)))?;
        Ok(found.into_iter().find(|runner| runner.name == name))
    }

    fn runner_by_id(&self, _scope: &Scope, id: u64) -> Result<Option<Runner>, Error> {
        let deadline = self.transport.request_deadline();
        let call = self.call(
            format!("cannot look up the runner with id {id}"),
            Method::GET,
            &format!("/runners/{id}"),
        );
        let answer = self.transport.send(&call, deadline)?;
        if answer.status == 404 {
            self.confirm_access(&call.what, deadline)?;
            return Ok(None);
        }
        self.read::<RunnerItem>(&call, &answer).map(|runner| Some(runner.into()))
    }

    fn remove(&self, _scope: &Scope, id: u64) -> Result<Removal, Error> {
        let deadline = self.transport.request_deadline();
        let call = self.call(
            format!("cannot remove the runner with id {id}"),
            Method::DELETE,
            &format!("/runners/{id}"),
        );
        let answer = self.transport.send(&call, deadline)?;
        match answer.status {
            200..300 => Ok(Removal::Removed),
            404 => self.confirm_access(&call.what, deadline).map(|()| Removal::NotThere),
            422 => Ok(Removal::Busy),
            _ => Err(self.transport.refusal(&call, &answer, &self.scope)),
        }
    }

    fn newest_runner_version(&self) -> Result<Option<String>, Error> {
        let what = "cannot learn the newest version of the runner".to_owned();
        let call = self.call(what, Method::GET, "/runners/downloads");
        let downloads: Vec<Download> = self.ask(&call, self.transport.request_deadline())?;
        Ok(downloads.iter().find(|d| d.os == "win" && d.architecture == "x64").and_then(Download::version))
    }
}

#[derive(Clone)]
struct Token {
    value: Secret,
    /// `None`: for this once, since its life is not known.
    shared_until: Option<Instant>,
}

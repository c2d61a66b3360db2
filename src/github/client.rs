//! The client of GitHub's REST API for self-hosted runners, of an organization
//! or of a repository.
//!
//! <https://docs.github.com/en/rest/actions/self-hosted-runners>,
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>,
//! <https://docs.github.com/en/rest/actions/workflow-runs> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs>, API version
//! 2022-11-28.

pub use super::http::Timeouts;
use super::http::{Http, Request, Response, one_line};
use super::pat::CurrentPat;
pub use super::pat::ReadPat;
use super::refusal::refusal;
use super::scope::{Scope, encode};
use super::single_flight::SingleFlight;
use super::time::{Clock, SystemClock, parse_rfc3339};
use super::wire::{
    Download, GroupsPage, JitConfig, JobsPage, Page, RegistrationToken, RunnerItem, RunnersPage, RunsPage,
};
use super::{Error, GitHub, PER_PAGE, QueuedJob, Registration, Removal, Runner};
use crate::config::{GitHubConfig, RegistrationMode};
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use ureq::http::Method;

/// The most pages of a listing. A runner group holds 10,000 runners at most:
/// <https://docs.github.com/en/actions/reference/limits>
const MAX_PAGES: usize = 200;
/// The id of the runner group "Default", and of the only one a repository has.
const DEFAULT_GROUP: u64 = 1;
/// A registration token is replaced this long before it expires, so that the
/// VM that gets it has the time to start and register.
const TOKEN_MARGIN: Duration = Duration::from_secs(5 * 60);

/// The most workflow runs of each status whose jobs [`Client::queued_jobs`]
/// lists: each costs a request.
const MAX_RUNS: usize = 50;

/// The REST client. One for the whole pool: its slots share the rate limit,
/// the registration token and the connections.
pub struct Client {
    http: Http,
    scope: Scope,
    registration: RegistrationMode,
    runner_group: String,
    labels: Vec<String>,
    group_id: SingleFlight<u64>,
    token: SingleFlight<Token>,
}

impl Client {
    /// Makes a client; nothing is sent yet. `None` without a token in `config`.
    /// When GitHub refuses the token, `read_pat` is asked for another.
    ///
    /// A proxy is taken from the environment (`HTTPS_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY`), except to this machine itself.
    pub fn new(config: &GitHubConfig, read_pat: ReadPat) -> Option<Client> {
        Client::with(config, read_pat, Timeouts::default(), Arc::new(SystemClock))
    }

    /// The same with other timeouts and another clock, for tests.
    pub fn with(
        config: &GitHubConfig,
        read_pat: ReadPat,
        timeouts: Timeouts,
        clock: Arc<dyn Clock>,
    ) -> Option<Client> {
        let pat = CurrentPat::new(config.pat.clone()?, read_pat);
        Some(Client {
            http: Http::new(&config.api_url, pat, timeouts, clock),
            scope: config.scope(),
            registration: config.registration,
            runner_group: config.runner_group.clone(),
            labels: config.labels.clone(),
            group_id: SingleFlight::default(),
            token: SingleFlight::default(),
        })
    }

    /// Checks that the token may register runners and that the runner group
    /// exists. Nothing is left behind but a registration token, which expires.
    /// Returns a sentence for each thing that the pool can do without.
    ///
    /// # Errors
    /// When runners cannot be registered.
    pub fn check(&self) -> Result<Vec<String>, Error> {
        // The same right as for a JIT configuration, which would leave a runner.
        self.registration_token()?;
        self.group_id("cannot find the runner group")?;
        let mut warnings = Vec::new();
        if self.scope.repository.is_some()
            && let Err(error) = self.workflow_runs("queued", 1, self.http.request_deadline())
        {
            warnings.push(format!(
                "Queued jobs cannot be read, so the pool knows of a job only by its webhook and forgets it at a \
                 restart: {error}"
            ));
        }
        Ok(warnings)
    }

    /// Sends a request and reads its response, which must be a success.
    fn ask<T: for<'de> Deserialize<'de>>(&self, request: &Request, deadline: Instant) -> Result<T, Error> {
        let response = self.http.send(request, deadline)?;
        self.read(request, &response)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, request: &Request, response: &Response) -> Result<T, Error> {
        match response.status {
            200..300 => self.http.json(request, response),
            _ => Err(refusal(request, response, &self.http.host)),
        }
    }

    /// All items of a listing in pages.
    ///
    /// # Errors
    /// Also when the end is not reached: a runner missing from the listing
    /// would be taken for gone.
    fn list<P: Page>(
        &self,
        scope: &Scope,
        what: &str,
        path: &str,
        deadline: Instant,
    ) -> Result<Vec<P::Item>, Error> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        for page in 1..=MAX_PAGES {
            let paged = format!("{path}{joint}per_page={PER_PAGE}&page={page}");
            let request = Request::new(scope, what, Method::GET, paged);
            let (total, found) = self.ask::<P>(&request, deadline)?.take();
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

    fn list_runners(&self, scope: &Scope, what: &str, path: &str) -> Result<Vec<Runner>, Error> {
        let mut runners: Vec<Runner> = self
            .list::<RunnersPage>(scope, what, path, self.http.listing_deadline())?
            .into_iter()
            .map(Runner::from)
            .collect();
        // One that slid to the next page while another was added came twice.
        let mut seen = HashSet::new();
        runners.retain(|runner| seen.insert(runner.id));
        Ok(runners)
    }

    /// The newest workflow runs of a status.
    /// <https://docs.github.com/en/rest/actions/workflow-runs#list-workflow-runs-for-a-repository>
    fn workflow_runs(&self, status: &str, most: usize, deadline: Instant) -> Result<Vec<u64>, Error> {
        let path = format!("/runs?status={status}&per_page={most}");
        let request = Request::new(&self.scope, "cannot list the workflow runs", Method::GET, path);
        let page: RunsPage = self.ask(&request, deadline)?;
        Ok(page.workflow_runs.iter().map(|run| run.id).collect())
    }

    /// The queued jobs of a workflow run.
    /// <https://docs.github.com/en/rest/actions/workflow-jobs#list-jobs-for-a-workflow-run>
    fn queued_jobs_of(&self, run: u64, deadline: Instant) -> Result<Vec<QueuedJob>, Error> {
        let what = format!("cannot list the jobs of the workflow run {run}");
        match self.list::<JobsPage>(&self.scope, &what, &format!("/runs/{run}/jobs?filter=latest"), deadline)
        {
            Ok(jobs) => Ok(jobs
                .into_iter()
                .filter(|job| job.status == "queued")
                .map(|job| QueuedJob { id: job.id, labels: job.labels })
                .collect()),
            // Runs can be deleted. Whether it is that, or the access that is
            // gone, a list of runs tells, since it takes the same right.
            Err(Error::Refused(_)) => self.workflow_runs("queued", 1, deadline).map(|_| Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Registers a JIT runner.
    fn register_jit(&self, name: &str) -> Result<Registration, Error> {
        let what = format!("cannot register the runner {}", one_line(name));
        let group = self.group_id(&what)?;
        let (mut request, mut response) = self.post_jit(&what, name, group)?;
        // GitHub does not document how it refuses a group that is gone (deleted
        // and made again, say); 404 and 422 are what it can be.
        if matches!(response.status, 404 | 422) && group != DEFAULT_GROUP {
            self.group_id.forget(|id| *id == group);
            let present = self.group_id(&what)?;
            if present != group {
                (request, response) = self.post_jit(&what, name, present)?;
            }
        }
        if response.status == 409 {
            return Err(Error::NameTaken);
        }
        let jit: JitConfig = self.read(&request, &response)?;
        let credential = credential(&request, jit.encoded_jit_config)?;
        Ok(Registration { runner_id: Some(jit.runner.id), credential })
    }

    fn post_jit(&self, what: &str, name: &str, group: u64) -> Result<(Request<'_>, Response), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            name: &'a str,
            runner_group_id: u64,
            labels: &'a [String],
            work_folder: &'a str,
        }
        let body = Body { name, runner_group_id: group, labels: &self.labels, work_folder: "_work" };
        let mut request = Request::new(&self.scope, what, Method::POST, "/runners/generate-jitconfig");
        request.body = Some(serde_json::to_vec(&body).map_err(|e| Error::Failed(format!("{what}: {e}")))?);
        let response = self.http.send(&request, self.http.request_deadline())?;
        Ok((request, response))
    }

    /// The id of the runner group, looked up once.
    fn group_id(&self, what: &str) -> Result<u64, Error> {
        if self.scope.repository.is_some() || self.runner_group.eq_ignore_ascii_case("Default") {
            return Ok(DEFAULT_GROUP);
        }
        self.group_id.get(
            |_| true,
            || {
                let groups = self.list::<GroupsPage>(
                    &self.scope,
                    what,
                    "/runner-groups",
                    self.http.listing_deadline(),
                )?;
                if let Some(group) = groups.iter().find(|group| group.name == self.runner_group) {
                    return Ok(group.id);
                }
                let names: Vec<String> = groups.iter().take(10).map(|group| one_line(&group.name)).collect();
                Err(Error::Failed(format!(
                    "{what}: the {} has no runner group {:?}: create it, or set RUNNER_GROUP to one that it \
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
        let clock = self.http.clock();
        let fetch = || {
            let what = "cannot get a registration token";
            let request = Request::new(&self.scope, what, Method::POST, "/runners/registration-token");
            let response = self.http.send(&request, self.http.request_deadline())?;
            let token: RegistrationToken = self.read(&request, &response)?;
            // Its life is measured by GitHub's clock, if it told: ours may be wrong.
            let life = token.expires_at.as_deref().and_then(parse_rfc3339).and_then(|expires| {
                expires.duration_since(response.date.unwrap_or_else(|| clock.utc())).ok()
            });
            let shared_until = life.and_then(|life| life.checked_sub(TOKEN_MARGIN)).map(|l| clock.now() + l);
            Ok(Token { value: credential(&request, token.token)?, shared_until })
        };
        let fresh = |token: &Token| token.shared_until.is_some_and(|until| clock.now() < until);
        let token = self.token.get(fresh, fetch)?;
        Ok(Registration { runner_id: None, credential: token.value })
    }

    /// Makes sure that a 404 for one runner is about that runner. GitHub
    /// answers the same when the token has lost its access to the scope, and
    /// then nothing is known about the runner.
    fn confirm_access(&self, scope: &Scope, what: &str, deadline: Instant) -> Result<(), Error> {
        let request = Request::new(scope, what, Method::GET, "/runners?per_page=1");
        self.ask::<RunnersPage>(&request, deadline).map(|_| ())
    }
}

fn credential(request: &Request, value: String) -> Result<Secret, Error> {
    if value.is_empty() {
        return Err(Error::Failed(format!("{}: GitHub's answer holds an empty credential", request.what)));
    }
    Ok(Secret::new(value))
}

impl GitHub for Client {
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn register(&self, name: &str) -> Result<Registration, Error> {
        match self.registration {
            RegistrationMode::Jit => self.register_jit(name),
            RegistrationMode::Token => self.registration_token(),
        }
    }

    fn runners(&self) -> Result<Vec<Runner>, Error> {
        self.list_runners(&self.scope, "cannot list the runners", "/runners")
    }

    fn runner_by_name(&self, scope: &Scope, name: &str) -> Result<Option<Runner>, Error> {
        let what = format!("cannot look up the runner {}", one_line(name));
        let found = self.list_runners(scope, &what, &format!("/runners?name={}", encode(name)))?;
        Ok(found.into_iter().find(|runner| runner.name == name))
    }

    fn runner_by_id(&self, scope: &Scope, id: u64) -> Result<Option<Runner>, Error> {
        let deadline = self.http.request_deadline();
        let what = format!("cannot look up the runner with id {id}");
        let request = Request::new(scope, what, Method::GET, format!("/runners/{id}"));
        let response = self.http.send(&request, deadline)?;
        if response.status == 404 {
            self.confirm_access(scope, &request.what, deadline)?;
            return Ok(None);
        }
        self.read::<RunnerItem>(&request, &response).map(|runner| Some(runner.into()))
    }

    fn remove(&self, scope: &Scope, id: u64) -> Result<Removal, Error> {
        let deadline = self.http.request_deadline();
        let what = format!("cannot remove the runner with id {id}");
        let request = Request::new(scope, what, Method::DELETE, format!("/runners/{id}"));
        let response = self.http.send(&request, deadline)?;
        match response.status {
            200..300 => Ok(Removal::Removed),
            404 => self.confirm_access(scope, &request.what, deadline).map(|()| Removal::NotThere),
            422 => Ok(Removal::Busy),
            _ => Err(refusal(&request, &response, &self.http.host)),
        }
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, Error> {
        if self.scope.repository.is_none() {
            return Ok(Vec::new());
        }
        let deadline = self.http.listing_deadline();
        let mut jobs = Vec::new();
        let mut seen = HashSet::new();
        // A run is in progress as soon as one of its jobs is, with others still queued.
        for status in ["queued", "in_progress"] {
            for run in self.workflow_runs(status, MAX_RUNS, deadline)? {
                // It may have changed its status between the two lists.
                if seen.insert(run) {
                    jobs.extend(self.queued_jobs_of(run, deadline)?);
                }
            }
        }
        Ok(jobs)
    }

    fn newest_runner_version(&self) -> Result<Option<String>, Error> {
        let what = "cannot find out the newest version of the runner";
        let request = Request::new(&self.scope, what, Method::GET, "/runners/downloads");
        let downloads: Vec<Download> = self.ask(&request, self.http.request_deadline())?;
        Ok(downloads.iter().find(|d| d.os == "win" && d.architecture == "x64").and_then(Download::version))
    }

    fn token_expires(&self) -> Option<SystemTime> {
        self.http.pat.expires()
    }
}

#[derive(Clone)]
struct Token {
    value: Secret,
    /// `None`: for this once, since its life is not known.
    shared_until: Option<Instant>,
}

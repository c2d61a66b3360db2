//! The client of GitHub's REST API for self-hosted runners, of an organization
//! or of a repository.
//!
//! <https://docs.github.com/en/rest/actions/self-hosted-runners>,
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>,
//! <https://docs.github.com/en/rest/actions/workflow-runs> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs>, API version
//! 2022-11-28.

use super::auth::Auth;
pub use super::auth::ReadCredential;
use super::clock::{Clock, SystemClock};
pub use super::http::REQUEST_TIMEOUT;
use super::http::{Http, Request, Response};
use super::refusal::refusal;
use super::scale_set::ScaleSet;
use super::scope::{Scope, encode, with_query};
use super::traffic::Traffic;
use super::wire::{Download, Group, Id, JitConfig, Job, Page, RunnerItem, Token};
use super::{Error, GitHub, PER_PAGE, QueuedJob, Registration, Removal, Runner};
use crate::config::{GitHubConfig, Intake, RegistrationMode};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use crate::text::one_line;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use ureq::http::Method;

/// The most pages of a listing. A runner group holds 10,000 runners at most:
/// <https://docs.github.com/en/actions/reference/limits>
const MAX_PAGES: usize = 200;
/// The id of the runner group "Default", and of the only one a repository has.
pub(super) const DEFAULT_GROUP: u64 = 1;

/// The most workflow runs of each status whose jobs [`Client::queued_jobs`]
/// lists: each costs a request.
const MAX_RUNS: usize = 50;

/// The REST client. One for the whole pool: its slots share the rate limit,
/// the registration token and the connections.
pub struct Client {
    pub(super) http: Http,
    pub(super) config: GitHubConfig,
    pub(super) scope: Scope,
    pub(super) scale_set: ScaleSet,
    /// The id of the runner group, once it was looked up.
    group_id: Mutex<Option<u64>>,
    /// The last registration token, and until when it is shared.
    token: Mutex<Option<(Secret, Instant)>>,
}

/// What [`Client::check`] found. One sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is as it should be.
    pub facts: Vec<String>,
    /// What the pool can do without.
    pub warnings: Vec<String>,
}

impl Client {
    /// Makes a client; nothing is sent yet. `None` if `config` has nothing to
    /// sign in with. `read` is asked when GitHub refuses the personal access
    /// token, and before each token of a GitHub App.
    ///
    /// A proxy is taken from the environment (`HTTPS_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY`), except to this machine itself.
    pub fn new(config: &GitHubConfig, read: ReadCredential) -> Option<Client> {
        Client::with(config, read, REQUEST_TIMEOUT, Arc::new(SystemClock))
    }

    /// The same with another timeout and another clock, for tests.
    pub fn with(
        config: &GitHubConfig,
        read: ReadCredential,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Option<Client> {
        let auth = Auth::new(config.credential()?, read);
        Some(Client {
            http: Http::new(&config.api_url, auth, timeout, clock),
            config: config.clone(),
            scope: config.scope(),
            scale_set: ScaleSet::default(),
            group_id: Mutex::default(),
            token: Mutex::default(),
        })
    }

    /// Checks that the token may register runners, that the runner group exists,
    /// and how the scale set is. Nothing is left behind but a registration token,
    /// which expires.
    ///
    /// # Errors
    /// When runners cannot be registered.
    pub fn check(&self) -> Result<Checked, Error> {
        // The same right as for a JIT configuration, which would leave a runner.
        self.registration_token()?;
        if self.config.intake == Intake::ScaleSet {
            let (text, warnings) = self.check_scale_set()?;
            return Ok(Checked { facts: vec![text], warnings });
        }
        self.group_id("cannot find the runner group")?;
        let mut checked = Checked::default();
        if self.scope.repository.is_some()
            && let Err(error) = self.workflow_runs("queued", 1, self.http.request_deadline())
        {
            checked.warnings.push(format!(
                "Queued jobs cannot be read, so the pool knows of a job only by its webhook and forgets it at a \
                 restart: {error}"
            ));
        }
        Ok(checked)
    }

    /// Sends a request and reads its response, which must be a success.
    fn ask<T: DeserializeOwned>(&self, request: &Request, deadline: Instant) -> Result<T, Error> {
        let response = self.http.send(request, deadline)?;
        self.http.json(request, &response)
    }

    /// All items of a listing in pages.
    ///
    /// # Errors
    /// Also when the end is not reached: a runner missing from the listing
    /// would be taken for gone.
    fn list<T: DeserializeOwned>(
        &self,
        scope: &Scope,
        what: &str,
        path: &str,
        deadline: Instant,
    ) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        for page in 1..=MAX_PAGES {
            let paged = with_query(path, &format!("per_page={PER_PAGE}&page={page}"));
            let found: Page<T> = self.ask(&Request::new(scope, what, Method::GET, paged), deadline)?;
            let over = found.items.is_empty();
            items.extend(found.items);
            // A page may be short of items that went away meanwhile, so only
            // the total, or an empty page, says that this was the last.
            if over || items.len() as u64 >= found.total_count {
                return Ok(items);
            }
        }
        Err(Error::Failed(format!("{what}: the list is longer than {} entries", MAX_PAGES * PER_PAGE)))
    }

    fn list_runners(&self, scope: &Scope, what: &str, path: &str) -> Result<Vec<Runner>, Error> {
        let mut items: Vec<RunnerItem> = self.list(scope, what, path, self.http.listing_deadline())?;
        // One that slid to the next page while another was added came twice.
        let mut seen = HashSet::new();
        items.retain(|runner| seen.insert(runner.id));
        Ok(items.into_iter().map(Runner::from).collect())
    }

    /// The newest workflow runs of a status.
    /// <https://docs.github.com/en/rest/actions/workflow-runs#list-workflow-runs-for-a-repository>
    fn workflow_runs(&self, status: &str, most: usize, deadline: Instant) -> Result<Vec<u64>, Error> {
        let path = format!("/runs?status={status}&per_page={most}");
        let request = Request::new(&self.scope, "cannot list the workflow runs", Method::GET, path);
        let page: Page<Id> = self.ask(&request, deadline)?;
        Ok(page.items.iter().map(|run| run.id).collect())
    }

    /// The queued jobs of a workflow run.
    /// <https://docs.github.com/en/rest/actions/workflow-jobs#list-jobs-for-a-workflow-run>
    fn queued_jobs_of(&self, run: u64, deadline: Instant) -> Result<Vec<QueuedJob>, Error> {
        let what = format!("cannot list the jobs of the workflow run {run}");
        let path = format!("/runs/{run}/jobs?filter=latest");
        let queued = |job: &Job| job.status == "queued";
        match self.list(&self.scope, &what, &path, deadline) {
            Ok(jobs) => Ok(jobs
                .into_iter()
                .filter(queued)
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
        let what = format!("cannot register the runner {}", one_line(name, 100));
        let group = self.group_id(&what)?;
        let (mut request, mut response) = self.post_jit(&what, name, group)?;
        // GitHub does not document how it refuses a group that is gone (deleted
        // and made again, say); 404 and 422 are what it can be.
        if matches!(response.status, 404 | 422) && group != DEFAULT_GROUP {
            *unpoisoned(&self.group_id) = None;
            let present = self.group_id(&what)?;
            if present != group {
                (request, response) = self.post_jit(&what, name, present)?;
            }
        }
        if response.status == 409 {
            return Err(Error::NameTaken);
        }
        let jit: JitConfig = self.http.json(&request, &response)?;
        let credential = Secret::new(jit.encoded_jit_config);
        Ok(Registration { runner_id: Some(jit.runner.id), credential })
    }

    fn post_jit(&self, what: &str, name: &str, group: u64) -> Result<(Request<'_>, Response), Error> {
        let mut request = Request::new(&self.scope, what, Method::POST, "/runners/generate-jitconfig");
        let labels = &self.config.labels;
        request.body =
            Some(json!({ "name": name, "runner_group_id": group, "labels": labels, "work_folder": "_work" }));
        let response = self.http.send(&request, self.http.request_deadline())?;
        Ok((request, response))
    }

    /// The id of the runner group, looked up once.
    fn group_id(&self, what: &str) -> Result<u64, Error> {
        let name = &self.config.runner_group;
        if self.scope.repository.is_some() || name.eq_ignore_ascii_case("Default") {
            return Ok(DEFAULT_GROUP);
        }
        if let Some(id) = *unpoisoned(&self.group_id) {
            return Ok(id);
        }
        let groups: Vec<Group> =
            self.list(&self.scope, what, "/runner-groups", self.http.listing_deadline())?;
        if let Some(group) = groups.iter().find(|group| group.name == *name) {
            *unpoisoned(&self.group_id) = Some(group.id);
            return Ok(group.id);
        }
        let names: Vec<&str> = groups.iter().take(10).map(|group| group.name.as_str()).collect();
        let names = one_line(&names.join(", "), 300);
        let scope = &self.scope;
        Err(Error::Failed(format!(
            "{what}: the {scope} has no runner group {name:?}: create it, or set RUNNER_GROUP to one that it has \
             ({names})"
        )))
    }

    /// A registration token: the one that all slots share, or a new one when
    /// that is about to expire.
    fn registration_token(&self) -> Result<Registration, Error> {
        let now = self.http.clock().now();
        let shared = unpoisoned(&self.token).clone().filter(|(_, until)| now < *until);
        if let Some((credential, _)) = shared {
            return Ok(Registration { runner_id: None, credential });
        }
        let (credential, good_until) = self.new_registration_token()?;
        *unpoisoned(&self.token) = good_until.map(|until| (credential.clone(), until));
        Ok(Registration { runner_id: None, credential })
    }

    /// A registration token, and until when it may be shared.
    pub(super) fn new_registration_token(&self) -> Result<(Secret, Option<Instant>), Error> {
        let what = "cannot get a registration token";
        let request = Request::new(&self.scope, what, Method::POST, "/runners/registration-token");
        let response = self.http.send(&request, self.http.request_deadline())?;
        let token: Token = self.http.json(&request, &response)?;
        let good_until = self.http.good_until(&token);
        Ok((Secret::new(token.token), good_until))
    }

    /// Makes sure that a 404 for one runner is about that runner. GitHub
    /// answers the same when the token has lost its access to the scope, and
    /// then nothing is known about the runner.
    fn confirm_access(&self, scope: &Scope, what: &str, deadline: Instant) -> Result<(), Error> {
        let request = Request::new(scope, what, Method::GET, "/runners?per_page=1");
        self.ask::<Page<Id>>(&request, deadline).map(|_| ())
    }
}

impl GitHub for Client {
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn register(&self, name: &str) -> Result<Registration, Error> {
        match self.config.registration {
            RegistrationMode::Jit if self.config.intake == Intake::ScaleSet => {
                self.register_in_scale_set(name)
            }
            RegistrationMode::Jit => self.register_jit(name),
            RegistrationMode::Token => self.registration_token(),
        }
    }

    fn runners(&self) -> Result<Vec<Runner>, Error> {
        self.list_runners(&self.scope, "cannot list the runners", "/runners")
    }

    fn runner_by_name(&self, scope: &Scope, name: &str) -> Result<Option<Runner>, Error> {
        let what = format!("cannot look up the runner {}", one_line(name, 100));
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
        self.http.json::<RunnerItem>(&request, &response).map(|runner| Some(runner.into()))
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
            _ => Err(refusal(&request, &response, &self.http)),
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
        Ok(downloads.iter().find_map(Download::version).map(str::to_owned))
    }

    fn token_expires(&self) -> Option<SystemTime> {
        self.http.auth.pat_expires()
    }

    fn traffic(&self) -> Traffic {
        self.http.traffic()
    }
}

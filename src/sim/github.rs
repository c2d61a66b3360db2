//! A simulated GitHub for `USE_MOCK=true`: it registers runners, gives the jobs
//! of `queued` webhooks to those that wait, and tells of it in signed webhooks
//! as GitHub does.

use crate::github::scope::Scope;
use crate::github::{Error, GitHub, QueuedJob, Registration, Removal, Runner};
use crate::secret::{Keys, Secret};
use crate::sync::unpoisoned;
use log::debug;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The simulated GitHub.
pub struct MockGitHub {
    scope: Scope,
    labels: Vec<String>,
    webhook_url: String,
    keys: Keys,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    last_id: u64,
    runners: Vec<Runner>,
    waiting: VecDeque<(u64, Vec<String>)>,
}

impl MockGitHub {
    /// A GitHub without runners, whose runners will be `scope`'s and bear
    /// `labels`, and which delivers its webhooks to `webhook_url`, signed with `keys`.
    pub fn new(scope: Scope, labels: &[String], webhook_url: String, keys: Keys) -> MockGitHub {
        MockGitHub {
            scope,
            labels: labels.to_vec(),
            webhook_url,
            keys,
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A job waits for a runner.
    pub fn offer(&self, job_id: u64, labels: Vec<String>) {
        let mut inner = self.lock();
        if inner.waiting.iter().all(|(id, _)| *id != job_id) {
            inner.waiting.push_back((job_id, labels));
            self.changed.notify_all();
        }
    }

    /// A job waits no more.
    pub fn withdraw(&self, job_id: u64) {
        self.lock().waiting.retain(|(id, _)| *id != job_id);
    }

    /// A runner starts with its credential and comes online. `None` if it is not registered.
    pub fn connect(&self, credential: &str) -> Option<u64> {
        let id = credential.strip_prefix("simulated-jit-")?.parse().ok()?;
        self.lock().runners.iter_mut().find(|r| r.id == id)?.online = true;
        Some(id)
    }

    /// Gives the runner a job if there is one that asks for no label it lacks,
    /// waiting at most `wait` for one.
    pub fn take_job(&self, runner_id: u64, wait: Duration) -> Option<u64> {
        let suits = |wanted: &[String]| {
            wanted.iter().all(|wanted| self.labels.iter().any(|label| label.eq_ignore_ascii_case(wanted)))
        };
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), wait, |inner| !inner.waiting.iter().any(|(_, w)| suits(w)))
            .unwrap_or_else(PoisonError::into_inner);
        let job = inner.waiting.iter().position(|(_, wanted)| suits(wanted))?;
        inner.runners.iter_mut().find(|r| r.id == runner_id)?.busy = true;
        inner.waiting.remove(job).map(|(job_id, _)| job_id)
    }

    /// The runner has ended its job. Being ephemeral, it is registered no more.
    pub fn end_job(&self, runner_id: u64) {
        self.lock().runners.retain(|r| r.id != runner_id);
    }

    /// Delivers a `workflow_job` webhook. One that does not arrive is lost, as GitHub's can be.
    pub fn deliver(&self, action: &str, job_id: u64, runner_id: u64, runner_name: &str) {
        let repository = self.scope.repository.as_deref().unwrap_or("simulated");
        let full_name = format!("{}/{repository}", self.scope.owner);
        let body = serde_json::json!({
            "action": action,
            "workflow_job": {
                "id": job_id,
                "run_id": job_id,
                "name": "simulated",
                "html_url": format!("https://github.com/{full_name}/actions/runs/{job_id}/job/{job_id}"),
                "labels": self.labels,
                "conclusion": (action == "completed").then_some("success"),
                "runner_id": runner_id,
                "runner_name": runner_name,
            },
            "repository": {"name": repository, "full_name": full_name},
        });
        let body = body.to_string();
        let request = crate::control::loopback_agent()
            .post(&self.webhook_url)
            .header("X-GitHub-Event", "workflow_job")
            .header("X-GitHub-Delivery", format!("simulated-{action}-{job_id}-{runner_id}"))
            .header("X-Hub-Signature-256", self.keys.sign_webhook(body.as_bytes()))
            .content_type("application/json");
        if let Err(error) = request.send(&body) {
            debug!("a simulated webhook was lost: {error}");
        }
    }

    /// Whether the registration is still there: a listener whose is not ends.
    pub fn is_registered(&self, runner_id: u64) -> bool {
        self.lock().runners.iter().any(|runner| runner.id == runner_id)
    }

    /// The runner's machine is gone, and with it its job, if it had one.
    pub fn disconnect(&self, runner_id: u64) {
        if let Some(runner) = self.lock().runners.iter_mut().find(|r| r.id == runner_id) {
            runner.online = false;
            runner.busy = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        unpoisoned(&self.inner)
    }
}

impl GitHub for MockGitHub {
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, Error> {
        let inner = self.lock();
        let waiting = inner.waiting.iter().filter(|_| self.scope.repository.is_some());
        Ok(waiting.map(|(id, labels)| QueuedJob { id: *id, labels: labels.clone() }).collect())
    }

    fn token_expires(&self) -> Option<SystemTime> {
        None
    }

    fn register(&self, name: &str) -> Result<Registration, Error> {
        let mut inner = self.lock();
        if inner.runners.iter().any(|r| r.name == name) {
            return Err(Error::NameTaken);
        }
        inner.last_id += 1;
        // Far from the small ids of example payloads, which are nobody's here.
        let id = 1_000_000 + inner.last_id;
        let labels = self.labels.clone();
        inner.runners.push(Runner { id, name: name.into(), online: false, busy: false, labels });
        Ok(Registration { runner_id: Some(id), credential: Secret::new(format!("simulated-jit-{id}")) })
    }

    fn runners(&self) -> Result<Vec<Runner>, Error> {
        Ok(self.lock().runners.clone())
    }

    fn runner_by_name(&self, _scope: &Scope, name: &str) -> Result<Option<Runner>, Error> {
        Ok(self.lock().runners.iter().find(|r| r.name == name).cloned())
    }

    fn runner_by_id(&self, _scope: &Scope, id: u64) -> Result<Option<Runner>, Error> {
        Ok(self.lock().runners.iter().find(|r| r.id == id).cloned())
    }

    fn remove(&self, _scope: &Scope, id: u64) -> Result<Removal, Error> {
        let mut inner = self.lock();
        let Some(i) = inner.runners.iter().position(|r| r.id == id) else { return Ok(Removal::NotThere) };
        if inner.runners[i].busy {
            return Ok(Removal::Busy);
        }
        inner.runners.remove(i);
        Ok(Removal::Removed)
    }

    fn newest_runner_version(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn github(labels: &[&str]) -> MockGitHub {
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        let scope = Scope { api_url: "mock".into(), owner: "mock-org".into(), repository: None };
        MockGitHub::new(scope, &labels, String::new(), Keys::new(&Secret::new("s")))
    }

    #[test]
    fn a_job_goes_to_one_waiting_runner_with_its_labels() {
        let github = github(&["self-hosted", "Windows"]);
        let registration = github.register("runner-1").unwrap();
        let id = github.connect(registration.credential.expose()).unwrap();
        github.offer(1, vec!["gpu".into()]);
        assert_eq!(github.take_job(id, Duration::ZERO), None);
        github.offer(2, vec!["windows".into()]);
        assert_eq!(github.take_job(id, Duration::ZERO), Some(2));
        assert_eq!(github.remove(&github.scope, id), Ok(Removal::Busy));
        github.end_job(id);
        assert_eq!(github.remove(&github.scope, id), Ok(Removal::NotThere));
    }

    #[test]
    fn only_a_repositorys_queued_jobs_can_be_listed() {
        let organization = github(&[]);
        let scope = Scope { repository: Some("app".into()), ..organization.scope.clone() };
        let repository = MockGitHub::new(scope, &[], String::new(), Keys::new(&Secret::new("s")));
        for github in [&organization, &repository] {
            github.offer(1, vec!["Windows".into()]);
        }
        assert_eq!(organization.queued_jobs(), Ok(Vec::new()));
        let queued = QueuedJob { id: 1, labels: vec!["Windows".into()] };
        assert_eq!(repository.queued_jobs(), Ok(vec![queued]));
    }

    #[test]
    fn a_name_can_be_registered_once() {
        let github = github(&[]);
        let id = github.register("runner-1").unwrap().runner_id.unwrap();
        assert_eq!(github.register("runner-1").unwrap_err(), Error::NameTaken);
        assert_eq!(github.remove(&github.scope, id), Ok(Removal::Removed));
        assert!(github.register("runner-1").is_ok());
    }
}

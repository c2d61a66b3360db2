//! The pool's runner scale set: found or made, its queue, and its runners.
//!
//! As GitHub's own client does: <https://github.com/actions/scaleset>.

mod message;
mod service;

use super::client::{Client, DEFAULT_GROUP};
use super::queue::{JobQueue, Message, Opened, QueueError, Statistics};
use super::scope::encode;
use super::{Error, Registration};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use crate::text::one_line;
use message::{message, statistics};
use serde_json::{Value, json};
use service::{Call, Connection, SCALE_SETS, is_because, read, refused};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use ureq::http::Method;

/// How long a request for the next message may take. GitHub holds it for about 50 s.
const NEXT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long closing a session may take: a stopping pool waits for it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the client holds of the scale set.
#[derive(Default)]
pub(super) struct ScaleSet {
    /// Locked while the pool signs in, so that one thread does it for all.
    connection: Mutex<Option<Connection>>,
    /// Locked while the scale set is looked up or made.
    found: Mutex<Option<Found>>,
    session: Mutex<Option<Session>>,
    /// How often the session was closed, so that one that is being opened meanwhile is closed too.
    closes: AtomicU32,
}

/// The scale set at GitHub.
#[derive(Clone)]
struct Found {
    id: u64,
    /// What is not as the settings want it.
    warnings: Vec<String>,
}

/// A session of the queue.
#[derive(Clone)]
struct Session {
    scale_set: u64,
    id: String,
    queue_url: String,
    queue_token: Secret,
}

impl Session {
    fn path(&self) -> String {
        format!("{SCALE_SETS}/{}/sessions/{}", self.scale_set, encode(&self.id))
    }
}

impl Client {
    /// What `check` tells of the scale set, which it neither makes nor changes:
    /// a sentence on how it is, and one for each thing worth a warning.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn check_scale_set(&self) -> Result<(String, Vec<String>), Error> {
        let name = &self.config.scale_set;
        let group = self.scale_set_group()?;
        let Some(found) = self.find_scale_set(group)? else {
            return Ok((format!("The runner scale set {name} is made when the pool starts."), Vec::new()));
        };
        let session = self.open_session(&found);
        let text = match &session {
            Ok((session, _)) => {
                self.close_session(session)?;
                format!("The runner scale set {name} is there, and no pool listens to its queue.")
            }
            Err(QueueError::InUse(who)) => {
                format!("The runner scale set {name} is there, and a pool listens to its queue: {who}")
            }
            Err(QueueError::Other(error)) => return Err(error.clone()),
            Err(error) => return Err(Error::Failed(error.to_string())),
        };
        Ok((text, found.warnings))
    }

    /// Registers a runner of the scale set.
    pub(super) fn register_in_scale_set(&self, name: &str) -> Result<Registration, Error> {
        let what = format!("cannot register the runner {}", one_line(name, 100));
        let Found { id, .. } = self.find_or_make_scale_set()?;
        let response = self.call(&Call {
            what: &what,
            method: Method::POST,
            path: format!("{SCALE_SETS}/{id}/generatejitconfig"),
            body: Some(json!({ "name": name, "workFolder": "_work" })),
            token: None,
            deadline: self.http.request_deadline(),
        })?;
        if is_because(&response, "AgentExistsException") {
            return Err(Error::NameTaken);
        }
        if response.status == 404 {
            self.forget_scale_set(id);
        }
        let answer = read(&what, &response)?;
        match (answer["runner"]["id"].as_u64(), answer["encodedJITConfig"].as_str()) {
            (runner_id @ Some(_), Some(config)) => {
                Ok(Registration { runner_id, credential: Secret::new(config) })
            }
            _ => Err(Error::Failed(format!("{what}: the answer has no runner or no configuration"))),
        }
    }

    /// The scale set, looked up or made once.
    fn find_or_make_scale_set(&self) -> Result<Found, Error> {
        let mut found = unpoisoned(&self.scale_set.found);
        if let Some(found) = &*found {
            return Ok(found.clone());
        }
        let group = self.scale_set_group()?;
        let set = match self.find_scale_set(group)? {
            Some(set) => set,
            None => self.make_scale_set(group)?,
        };
        *found = Some(set.clone());
        Ok(set)
    }

    fn forget_scale_set(&self, id: u64) {
        unpoisoned(&self.scale_set.found).take_if(|found| found.id == id);
    }

    /// The Actions service's id of the runner group.
    fn scale_set_group(&self) -> Result<u64, Error> {
        let name = &self.config.runner_group;
        if self.scope.repository.is_some() || name == "Default" {
            return Ok(DEFAULT_GROUP);
        }
        let what = "cannot find the runner group";
        let path = format!("/_apis/runtime/runnergroups/?groupName={}", encode(name));
        let answer = read(what, &self.get(what, path)?)?;
        items(&answer)
            .iter()
            .find(|group| group["name"].as_str().is_some_and(|its| its.eq_ignore_ascii_case(name)))
            .and_then(|group| group["id"].as_u64())
            .ok_or_else(|| {
                Error::Failed(format!(
                    "{what}: the {} has no runner group {name:?}: create it, or set RUNNER_GROUP to one that it has",
                    self.scope
                ))
            })
    }

    fn get(&self, what: &str, path: String) -> Result<super::http::Response, Error> {
        let deadline = self.http.request_deadline();
        self.call(&Call { what, method: Method::GET, path, body: None, token: None, deadline })
    }

    /// The scale set of the pool's name, if there is one.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not this pool's to use.
    fn find_scale_set(&self, group: u64) -> Result<Option<Found>, Error> {
        let name = &self.config.scale_set;
        let what = "cannot look up the runner scale set";
        let path = format!("{SCALE_SETS}?name={}", encode(name));
        let listed = read(what, &self.get(what, format!("{path}&runnerGroupId={group}"))?)?;
        let is_it = |set: &&Value| set["name"].as_str() == Some(name);
        if let Some(set) = items(&listed).iter().find(is_it) {
            return self.examine(set, group).map(Some);
        }
        // In another group it is in nobody's way at GitHub, but is another pool's that is called the same.
        let everywhere = self.get(what, path)?;
        let listed = if everywhere.is_success() { read(what, &everywhere)? } else { Value::Null };
        items(&listed).iter().find(is_it).map(|set| self.examine(set, group)).transpose()
    }

    fn make_scale_set(&self, group: u64) -> Result<Found, Error> {
        let what = "cannot make the runner scale set";
        let labels: Vec<Value> =
            self.config.labels.iter().map(|name| json!({ "type": "System", "name": name })).collect();
        let response = self.call(&Call {
            what,
            method: Method::POST,
            path: SCALE_SETS.into(),
            // With updates off: the image brings its runner, and a runner that updates itself in each new VM is slow.
            body: Some(json!({
                "name": self.config.scale_set,
                "runnerGroupId": group,
                "labels": labels,
                "RunnerSetting": { "disableUpdate": true },
            })),
            token: None,
            deadline: self.http.request_deadline(),
        })?;
        if is_because(&response, "RunnerScaleSetExistsException")
            && let Some(found) = self.find_scale_set(group)?
        {
            return Ok(found);
        }
        let found = self.examine(&read(what, &response)?, group)?;
        log::info!("the runner scale set {} is made", self.config.scale_set);
        Ok(found)
    }

    /// Whether a scale set of the pool's name is the pool's to use.
    fn examine(&self, set: &Value, group: u64) -> Result<Found, Error> {
        let name = &self.config.scale_set;
        let no_id = || Error::Failed("GitHub's answer about the runner scale set has no id".into());
        let id = set["id"].as_u64().ok_or_else(no_id)?;
        let foreign = |what: String| {
            Error::Refused(format!(
                "the runner scale set {name:?} of the {} is not this pool's: {what}: set SCALE_SET_NAME to another \
                 name, or delete the scale set at GitHub if nobody uses it",
                self.scope
            ))
        };
        if set["runnerGroupId"].as_u64().is_some_and(|its| its != group) {
            let its = one_line(set["runnerGroupName"].as_str().unwrap_or("another one"), 100);
            return Err(foreign(format!(
                "it is in the runner group {its:?}, and RUNNER_GROUP is {:?}",
                self.config.runner_group
            )));
        }
        let labels = set["labels"].as_array().map_or(&[][..], Vec::as_slice);
        let labels: Vec<&str> = labels.iter().filter_map(|label| label["name"].as_str()).collect();
        let ours = &self.config.labels;
        let more: Vec<&str> = labels
            .iter()
            .copied()
            .filter(|its| !ours.iter().any(|our| our.eq_ignore_ascii_case(its)))
            .collect();
        if !more.is_empty() {
            let more = one_line(&more.join(", "), 200);
            return Err(foreign(format!("it has labels that RUNNER_LABELS does not have ({more})")));
        }
        let mut warnings = Vec::new();
        let missing: Vec<&str> = ours
            .iter()
            .map(String::as_str)
            .filter(|our| !labels.iter().any(|its| its.eq_ignore_ascii_case(our)))
            .collect();
        if !missing.is_empty() {
            warnings.push(format!(
                "the runner scale set {name:?} lacks the labels {}, so no job that asks for one of them comes: GitHub \
                 has not taken them, or they are newer than the scale set; delete it at GitHub, and the pool makes it \
                 anew",
                missing.join(", ")
            ));
        }
        let setting = &set["RunnerSetting"]["disableUpdate"];
        if setting == false || set["runnerSetting"]["disableUpdate"] == false {
            warnings.push(format!(
                "the runners of the runner scale set {name:?} update themselves, each in its VM before its job: \
                 delete it at GitHub, and the pool makes it anew without that"
            ));
        }
        Ok(Found { id, warnings })
    }

    fn open_session(&self, found: &Found) -> Result<(Session, Statistics), QueueError> {
        let what = "cannot open the runner scale set's queue";
        let response = self.call(&Call {
            what,
            method: Method::POST,
            path: format!("{SCALE_SETS}/{}/sessions", found.id),
            body: Some(json!({ "sessionId": NIL, "ownerName": owner() })),
            token: None,
            deadline: self.http.request_deadline(),
        })?;
        match response.status {
            404 => {
                self.forget_scale_set(found.id);
                return Err(QueueError::ScaleSetGone);
            }
            409 => return Err(QueueError::InUse(response.message)),
            _ => {}
        }
        self.read_session(what, found.id, &response)
    }

    fn read_session(
        &self,
        what: &str,
        scale_set: u64,
        response: &super::http::Response,
    ) -> Result<(Session, Statistics), QueueError> {
        let answer = read(what, response)?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default();
        let session = Session {
            scale_set,
            id: text("sessionId").to_owned(),
            queue_url: text("messageQueueUrl").to_owned(),
            queue_token: Secret::new(text("messageQueueAccessToken")),
        };
        if session.queue_url.is_empty() {
            let _ = self.close_session(&session);
            return Err(Error::Failed(format!("{what}: GitHub gives no address of it yet")).into());
        }
        self.assert_safe(what, &session.queue_url)?;
        Ok((session, statistics(&answer["statistics"]).unwrap_or_default()))
    }

    fn close_session(&self, session: &Session) -> Result<(), Error> {
        let what = "cannot close the runner scale set's queue";
        let response = self.call(&Call {
            what,
            method: Method::DELETE,
            path: session.path(),
            body: None,
            token: None,
            deadline: self.http.clock().now() + CLOSE_TIMEOUT,
        })?;
        let is_over = response.status == 404 || is_because(&response, "SessionExpiredException");
        if response.is_success() || is_over { Ok(()) } else { Err(refused(what, &response)) }
    }

    fn session(&self) -> Result<Session, QueueError> {
        unpoisoned(&self.scale_set.session).clone().ok_or(QueueError::SessionGone)
    }

    /// What a response of the queue means, if it is a refusal.
    fn judge(&self, what: &str, response: &super::http::Response) -> Result<(), QueueError> {
        match response.status {
            200..300 => Ok(()),
            401 => Err(QueueError::Expired),
            // Whether the scale set is gone too, opening another session tells.
            404 => Err(QueueError::SessionGone),
            _ if is_because(response, "SessionExpiredException") => Err(QueueError::SessionGone),
            _ => Err(refused(what, response).into()),
        }
    }
}

impl JobQueue for Client {
    fn scale_set(&self) -> Option<u64> {
        // It is locked while it is looked up.
        self.scale_set.found.try_lock().ok()?.as_ref().map(|found| found.id)
    }

    fn open(&self) -> Result<Opened, QueueError> {
        // One that lasts would be in the way of the next.
        if let Err(error) = self.close() {
            log::debug!("{error}");
        }
        let closes = self.scale_set.closes.load(Ordering::Acquire);
        let found = self.find_or_make_scale_set()?;
        let (session, statistics) = self.open_session(&found)?;
        let mut held = unpoisoned(&self.scale_set.session);
        if self.scale_set.closes.load(Ordering::Acquire) != closes {
            drop(held);
            self.close_session(&session)?;
            return Err(QueueError::SessionGone);
        }
        *held = Some(session);
        Ok(Opened { scale_set: found.id, warnings: found.warnings, statistics })
    }

    fn next(&self, after: u64, capacity: u32) -> Result<Option<Message>, QueueError> {
        let what = "cannot read the runner scale set's queue";
        let session = self.session()?;
        let mut url = session.queue_url;
        if after > 0 {
            let joint = if url.contains('?') { '&' } else { '?' };
            url.push_str(&format!("{joint}lastMessageId={after}"));
        }
        let deadline = self.http.clock().now() + NEXT_TIMEOUT;
        let (target, capacity) = ((&*url, &session.queue_token), capacity.to_string());
        let response = self.call_queue(what, &Method::GET, target, Some(&capacity), deadline)?;
        if response.status == 202 {
            return Ok(None);
        }
        self.judge(what, &response)?;
        let read = message(&read(what, &response)?);
        read.map(Some).ok_or_else(|| Error::Failed(format!("{what}: a message has no number")).into())
    }

    fn refresh(&self) -> Result<Statistics, QueueError> {
        let what = "cannot renew the runner scale set's queue";
        let session = self.session()?;
        let response = self.call(&Call {
            what,
            method: Method::PATCH,
            path: session.path(),
            body: None,
            token: None,
            deadline: self.http.request_deadline(),
        })?;
        if response.status != 401 {
            self.judge(what, &response)?;
        }
        let (renewed, statistics) = self.read_session(what, session.scale_set, &response)?;
        // Not one that was closed meanwhile.
        let mut held = unpoisoned(&self.scale_set.session);
        if let Some(held) = held.as_mut().filter(|held| held.id == session.id) {
            *held = renewed;
        }
        Ok(statistics)
    }

    fn acquire(&self, requests: &[i64]) -> Result<(), QueueError> {
        let what = "cannot acquire jobs of the runner scale set";
        let session = self.session()?;
        let response = self.call(&Call {
            what,
            method: Method::POST,
            path: format!("{SCALE_SETS}/{}/acquirejobs", session.scale_set),
            body: Some(json!(requests)),
            token: Some(&session.queue_token),
            deadline: self.http.request_deadline(),
        })?;
        self.judge(what, &response)
    }

    fn acknowledge(&self, message: u64) -> Result<(), QueueError> {
        let what = "cannot acknowledge a message of the runner scale set's queue";
        let session = self.session()?;
        let (path, query) = session.queue_url.split_once('?').unwrap_or((&session.queue_url, ""));
        let joint = if query.is_empty() { "" } else { "?" };
        let url = format!("{}/{message}{joint}{query}", path.trim_end_matches('/'));
        let target = (&*url, &session.queue_token);
        let response = self.call_queue(what, &Method::DELETE, target, None, self.http.request_deadline())?;
        self.judge(what, &response)
    }

    fn close(&self) -> Result<(), QueueError> {
        let mut held = unpoisoned(&self.scale_set.session);
        self.scale_set.closes.fetch_add(1, Ordering::AcqRel);
        let session = held.take();
        drop(held);
        session.map_or(Ok(()), |session| self.close_session(&session).map_err(QueueError::from))
    }
}

/// What a session that is to be opened has as its id.
const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// Who holds the session, in the words with which GitHub refuses another.
fn owner() -> String {
    let host = ["COMPUTERNAME", "HOSTNAME"].iter().find_map(|name| std::env::var(name).ok());
    format!("hyperv-runner-pool on {}", host.as_deref().unwrap_or("an unnamed host"))
}

fn items(answer: &Value) -> &[Value] {
    answer["value"].as_array().map_or(&[], Vec::as_slice)
}

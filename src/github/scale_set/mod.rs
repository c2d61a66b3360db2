//! The pool's runner scale set: found or made, and its runners. [`session`] reads its queue.
//!
//! As GitHub's own client does: <https://github.com/actions/scaleset>.

mod message;
mod service;
mod session;

use super::client::{Client, DEFAULT_GROUP};
use super::http::Response;
use super::queue::QueueError;
use super::scope::encode;
use super::{Error, Registration};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use crate::text::one_line;
use serde_json::{Value, json};
use service::{Call, Connection, SCALE_SETS, is_because, read, refused};
use session::Session;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use ureq::http::Method;

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

    /// The id of the pool's scale set, if there is one.
    ///
    /// # Errors
    /// [`Error::Refused`] when one of that name is somebody else's, or GitHub refuses to say.
    pub(crate) fn present_scale_set(&self) -> Result<Option<u64>, Error> {
        Ok(self.find_scale_set(self.scale_set_group()?)?.map(|found| found.id))
    }

    /// Deletes the scale set, which the next start would make anew.
    ///
    /// # Errors
    /// When GitHub does not do it.
    pub(crate) fn delete_scale_set(&self, id: u64) -> Result<(), Error> {
        let what = "cannot delete the runner scale set";
        let response = self.call(&Call::new(what, Method::DELETE, format!("{SCALE_SETS}/{id}")))?;
        if response.is_success() || response.status == 404 { Ok(()) } else { Err(refused(what, &response)) }
    }

    /// Registers a runner of the scale set.
    pub(super) fn register_in_scale_set(&self, name: &str) -> Result<Registration, Error> {
        let what = format!("cannot register the runner {}", one_line(name, 100));
        let Found { id, .. } = self.find_or_make_scale_set()?;
        let response = self.call(&Call {
            body: Some(json!({ "name": name, "workFolder": "_work" })),
            ..Call::new(&what, Method::POST, format!("{SCALE_SETS}/{id}/generatejitconfig"))
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

    fn get(&self, what: &str, path: String) -> Result<Response, Error> {
        self.call(&Call::new(what, Method::GET, path))
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
            // With updates off: the image brings its runner, and a runner that updates itself in each new VM is slow.
            body: Some(json!({
                "name": self.config.scale_set,
                "runnerGroupId": group,
                "labels": labels,
                "RunnerSetting": { "disableUpdate": true },
            })),
            ..Call::new(what, Method::POST, SCALE_SETS.into())
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
        // A server that takes one label for a scale set gives it its own name for that.
        // https://github.com/actions/scaleset/issues/75
        let is_its_name = |label: &&str| label.eq_ignore_ascii_case(name);
        let more: Vec<&str> = labels
            .iter()
            .copied()
            .filter(|its| !is_its_name(its) && !ours.iter().any(|our| our.eq_ignore_ascii_case(its)))
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
            let why = if !labels.is_empty() && labels.iter().all(is_its_name) {
                format!("it has its own name alone, as where GitHub takes one label: set runs-on to {name}")
            } else {
                "GitHub has not taken them, or they are newer than the scale set; delete it at GitHub, and the pool \
                 makes it anew"
                    .into()
            };
            warnings.push(format!(
                "the runner scale set {name:?} lacks the labels {}, so no job that asks for one of them comes: {why}",
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
}

fn items(answer: &Value) -> &[Value] {
    answer["value"].as_array().map_or(&[], Vec::as_slice)
}

//! A session of the scale set's queue: opened, read, renewed, closed.

use super::Found;
use super::message::{message, statistics};
use super::service::{Call, SCALE_SETS, is_because, read, refused};
use crate::github::Error;
use crate::github::client::Client;
use crate::github::http::Response;
use crate::github::queue::{JobQueue, Message, Opened, QueueError, Statistics};
use crate::github::scope::{encode, with_query};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ureq::http::Method;

/// How long a request for the next message may take. GitHub holds it for about 50 s.
const NEXT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long closing a session may take: a stopping pool waits for it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a session that is to be opened has as its id.
const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// Who holds the session, in the words with which GitHub refuses another.
fn owner() -> String {
    let host = ["COMPUTERNAME", "HOSTNAME"].iter().find_map(|name| std::env::var(name).ok());
    format!("hyperv-runner-pool on {}", host.as_deref().unwrap_or("an unnamed host"))
}

/// A session of the queue.
#[derive(Clone)]
pub(super) struct Session {
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
    pub(super) fn open_session(&self, found: &Found) -> Result<(Session, Option<Statistics>), QueueError> {
        let what = "cannot open the runner scale set's queue";
        let response = self.call(&Call {
            body: Some(json!({ "sessionId": NIL, "ownerName": owner() })),
            ..Call::new(what, Method::POST, format!("{SCALE_SETS}/{}/sessions", found.id))
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
        response: &Response,
    ) -> Result<(Session, Option<Statistics>), QueueError> {
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
        Ok((session, statistics(&answer["statistics"])))
    }

    pub(super) fn close_session(&self, session: &Session) -> Result<(), Error> {
        let what = "cannot close the runner scale set's queue";
        let response = self.call(&Call {
            deadline: Some(self.http.clock().now() + CLOSE_TIMEOUT),
            ..Call::new(what, Method::DELETE, session.path())
        })?;
        let is_over = response.status == 404 || is_because(&response, "SessionExpiredException");
        if response.is_success() || is_over { Ok(()) } else { Err(refused(what, &response)) }
    }

    fn session(&self) -> Result<Session, QueueError> {
        unpoisoned(&self.scale_set.session).clone().ok_or(QueueError::SessionGone)
    }

    /// What a response of the queue means, if it is a refusal.
    fn judge(&self, what: &str, response: &Response) -> Result<(), QueueError> {
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
        let statistics = statistics.unwrap_or_default();
        Ok(Opened { scale_set: found.id, warnings: found.warnings, statistics })
    }

    fn next(&self, after: u64, capacity: u32) -> Result<Option<Message>, QueueError> {
        let what = "cannot read the runner scale set's queue";
        let session = self.session()?;
        let mut url = session.queue_url;
        if after > 0 {
            url = with_query(&url, &format!("lastMessageId={after}"));
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

    fn refresh(&self) -> Result<Option<Statistics>, QueueError> {
        let what = "cannot renew the runner scale set's queue";
        let session = self.session()?;
        let response = self.call(&Call::new(what, Method::PATCH, session.path()))?;
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
            body: Some(json!(requests)),
            token: Some(&session.queue_token),
            ..Call::new(what, Method::POST, format!("{SCALE_SETS}/{}/acquirejobs", session.scale_set))
        })?;
        // It may be the jobs that are not there any more. Of a session that is over, the next message tells.
        if response.status == 404 && !is_because(&response, "RunnerScaleSetNotFoundException") {
            return Err(refused(what, &response).into());
        }
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

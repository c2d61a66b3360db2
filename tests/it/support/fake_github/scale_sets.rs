//! GitHub's runner scale sets, with their jobs and their queues, as
//! <https://github.com/actions/scaleset> knows them.

use super::{FakeGitHub, Reply, Seen, State, jit_config_for};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::UNIX_EPOCH;

const SETS: &str = "/service/_apis/runtime/runnerscalesets";

/// A runner scale set.
#[derive(Clone, Debug)]
pub struct FakeScaleSet {
    pub id: u64,
    pub name: String,
    pub group: u64,
    pub labels: Vec<String>,
    pub disable_update: bool,
    session: Option<Session>,
    /// What the next message tells.
    pending: Vec<Value>,
    /// Messages that were not acknowledged.
    messages: Vec<(u64, Vec<Value>)>,
    last_message: u64,
}

#[derive(Clone, Debug)]
struct Session {
    id: u64,
    owner: String,
    token: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Available,
    Assigned,
    Running,
    Over,
}

#[derive(Clone, Debug)]
struct FakeJob {
    id: u64,
    set: u64,
    stage: Stage,
    runner: Option<(u64, String)>,
}

/// All of them, and how they misbehave.
#[derive(Debug, Default)]
pub(super) struct ScaleSets {
    sets: Vec<FakeScaleSet>,
    jobs: Vec<FakeJob>,
    admin_token: Option<String>,
    made: u64,
    wishes: Wishes,
    /// The capacity that was announced last.
    capacity: Option<String>,
}

/// What a test wants to be so.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Jobs have to be acquired, as on GitHub Enterprise Server.
    pub offers: bool,
    /// Labels that are not taken.
    pub drops: Vec<String>,
    /// A scale set has one label, its name, as on GitHub Enterprise Server before 3.21.
    pub only_the_name: bool,
    /// Sessions that have no address of their queue.
    pub without_address: u32,
    /// A session that is opened or renewed comes without the count of its jobs.
    pub hides_count: bool,
    /// A session is not renewed.
    pub refuses_renewal: bool,
    /// How long admin tokens last, in seconds; an hour if 0.
    pub admin_token_life: u64,
    /// The address of the service, in place of its own.
    pub address: Option<String>,
}

fn exception(status: u16, name: &str, message: &str) -> Reply {
    let mut reply = Reply::json(status, &json!({"typeName": format!("GitHub.{name}"), "message": message}));
    // As the service does before some of them.
    reply.body.insert(0, '\u{feff}');
    reply
}

impl FakeGitHub {
    /// Changes what a test wants of the scale sets.
    pub fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.state().scale_sets.wishes);
    }

    pub fn scale_sets(&self) -> Vec<FakeScaleSet> {
        self.state().scale_sets.sets.clone()
    }

    /// Somebody makes a scale set.
    pub fn add_scale_set(&self, name: &str, group: u64, labels: &[&str]) -> u64 {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.state().scale_sets.add(name, group, labels, true)
    }

    /// GitHub removes a scale set, with its runners and jobs.
    pub fn remove_scale_set(&self, name: &str) {
        let sets = &mut self.state().scale_sets;
        let set = sets.named(name).id;
        sets.remove(set);
    }

    /// Who holds the session of a scale set.
    pub fn session_owner(&self, name: &str) -> Option<String> {
        let mut state = self.state();
        let set = state.scale_sets.sets.iter_mut().find(|set| set.name == name)?;
        set.session.as_ref().map(|session| session.owner.clone())
    }

    /// Somebody else opens the session.
    pub fn take_session(&self, name: &str, owner: &str) {
        let session = Session { id: 0, owner: owner.to_owned(), token: None };
        self.state().scale_sets.named(name).session = Some(session);
    }

    /// The session ends, as that of a killed pool does after a while.
    pub fn end_session(&self, name: &str) {
        self.state().scale_sets.named(name).session = None;
    }

    pub fn expire_queue_token(&self, name: &str) {
        self.state().scale_sets.named(name).session.as_mut().unwrap().token = None;
    }

    pub fn expire_admin_token(&self) {
        self.state().scale_sets.admin_token = Some("another".into());
    }

    /// The capacity that was announced last.
    pub fn announced_capacity(&self) -> Option<String> {
        self.state().scale_sets.capacity.clone()
    }

    /// Messages that were not acknowledged, or not sent.
    pub fn unread(&self, name: &str) -> usize {
        let mut state = self.state();
        let set = state.scale_sets.named(name);
        set.messages.len() + usize::from(!set.pending.is_empty())
    }

    /// A workflow job that the scale set may take.
    pub fn queue_job(&self, name: &str) -> u64 {
        let mut state = self.state();
        let set = state.scale_sets.named(name).id;
        let id = state.scale_sets.number();
        let offers = state.scale_sets.wishes.offers;
        let stage = if offers { Stage::Available } else { Stage::Assigned };
        state.scale_sets.jobs.push(FakeJob { id, set, stage, runner: None });
        let kind = if offers { "JobAvailable" } else { "JobAssigned" };
        state.scale_sets.tell(id, kind, json!({"runnerRequestId": if offers { id } else { 0 }}));
        id
    }

    /// A runner takes the job, of which the queue tells, or not.
    pub fn take_job(&self, job: u64, runner: &str, told: bool) {
        let mut state = self.state();
        let its = state.runners.iter_mut().find(|its| its.name == runner).unwrap();
        its.busy = true;
        let id = its.id;
        let found = state.scale_sets.jobs.iter_mut().find(|its| its.id == job).unwrap();
        assert_eq!(found.stage, Stage::Assigned, "job {job}");
        (found.stage, found.runner) = (Stage::Running, Some((id, runner.to_owned())));
        if told {
            state.scale_sets.tell(job, "JobStarted", json!({"runnerId": id, "runnerName": runner}));
        }
    }

    /// The queue tells that the job is completed, whether or not it is.
    pub fn tell_completed(&self, job: u64, result: &str) {
        let mut state = self.state();
        let runner =
            state.scale_sets.jobs.iter().find(|its| its.id == job).and_then(|its| its.runner.clone());
        let (id, name) = runner.unwrap_or_default();
        let what = json!({"result": result, "runnerId": id, "runnerName": name});
        state.scale_sets.tell(job, "JobCompleted", what);
    }

    /// The job is over, and its runner gone from GitHub. The queue tells, or not.
    pub fn end_queued_job(&self, job: u64, result: &str, told: bool) {
        let mut state = self.state();
        let found = state.scale_sets.jobs.iter_mut().find(|its| its.id == job).unwrap();
        found.stage = Stage::Over;
        if let Some((id, _)) = found.runner.clone() {
            state.runners.retain(|runner| runner.id != id);
        }
        drop(state);
        if told {
            self.tell_completed(job, result);
        }
    }
}

impl ScaleSets {
    fn number(&mut self) -> u64 {
        self.made += 1;
        1000 + self.made
    }

    fn named(&mut self, name: &str) -> &mut FakeScaleSet {
        self.sets.iter_mut().find(|set| set.name == name).unwrap_or_else(|| panic!("no scale set {name}"))
    }

    fn add(&mut self, name: &str, group: u64, labels: Vec<String>, disable_update: bool) -> u64 {
        let id = self.number();
        self.sets.push(FakeScaleSet {
            id,
            name: name.to_owned(),
            group,
            labels,
            disable_update,
            session: None,
            pending: Vec::new(),
            messages: Vec::new(),
            last_message: 0,
        });
        id
    }

    fn remove(&mut self, id: u64) {
        self.sets.retain(|set| set.id != id);
        self.jobs.retain(|job| job.set != id);
    }

    fn tell(&mut self, job: u64, kind: &str, what: Value) {
        let mut event = json!({
            "messageType": kind, "jobId": format!("a0000000-0000-0000-0000-{job:012}"), "jobDisplayName": "build",
            "ownerName": "acme", "repositoryName": "app", "workflowRunId": 70, "requestLabels": ["self-hosted"],
            "queueTime": "2026-01-02T03:04:05Z", "runnerAssignTime": "2026-01-02T03:04:12Z",
        });
        event.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        let set = self.jobs.iter().find(|its| its.id == job).unwrap().set;
        self.sets.iter_mut().find(|its| its.id == set).unwrap().pending.push(event);
    }

    fn statistics(&self, set: u64) -> Value {
        let count = |wanted: &[Stage]| {
            self.jobs.iter().filter(|job| job.set == set && wanted.contains(&job.stage)).count()
        };
        json!({
            "totalAvailableJobs": count(&[Stage::Available]),
            "totalAcquiredJobs": count(&[Stage::Assigned, Stage::Running]),
            "totalAssignedJobs": count(&[Stage::Assigned, Stage::Running]),
            "totalRunningJobs": count(&[Stage::Running]),
            "totalRegisteredRunners": 0, "totalBusyRunners": 0, "totalIdleRunners": 0,
        })
    }

    fn to_json(&self, set: &FakeScaleSet) -> Value {
        let labels: Vec<Value> =
            set.labels.iter().map(|label| json!({"type": "System", "name": label})).collect();
        json!({"id": set.id, "name": set.name, "runnerGroupId": set.group, "runnerGroupName": format!("group {}", set.group),
            "labels": labels, "RunnerSetting": {"disableUpdate": set.disable_update}, "statistics": self.statistics(set.id)})
    }
}

impl State {
    /// The answer, if the request is about scale sets. 202: nothing yet.
    pub(super) fn answer_scale_sets(&mut self, seen: &Seen, base: &str) -> Option<Reply> {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let token = |scheme: &str| seen.headers.get("authorization")?.strip_prefix(scheme);
        if path == "/actions/runner-registration" {
            if !token("RemoteAuth ").is_some_and(|token| token.starts_with("AABF3JGZDX3P")) {
                return Some(Reply::refusal(401, "Bad credentials"));
            }
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            assert_eq!(
                (&body["url"], &body["runner_event"]),
                (&json!(format!("{base}/acme")), &json!("register"))
            );
            let life = match self.scale_sets.wishes.admin_token_life {
                0 => 3600,
                life => life,
            };
            let expires = self.now().duration_since(UNIX_EPOCH).unwrap().as_secs() + life;
            let number = self.scale_sets.number();
            let claims = URL_SAFE_NO_PAD.encode(json!({"exp": expires, "nonce": number}).to_string());
            let token = format!("eyJhbGciOiJub25lIn0.{claims}.admin");
            self.scale_sets.admin_token = Some(token.clone());
            let url = self.scale_sets.wishes.address.clone().unwrap_or(format!("{base}/service/"));
            return Some(Reply::json(200, &json!({"url": url, "token": token})));
        }
        let query = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(its, _)| *its == name).map(|(_, value)| super::decode(value))
        };
        let bearer = token("Bearer ");
        if let Some(rest) = path.strip_prefix("/queue/") {
            assert_eq!(query("key").as_deref(), Some("a"), "the queue's own query");
            return Some(self.answer_queue(seen, rest, bearer, query("lastMessageId")));
        }
        let rest = path.strip_prefix("/service")?;
        assert_eq!(query("api-version").as_deref(), Some("6.0-preview"), "{path}");
        assert_eq!(seen.headers.get("content-type").map(String::as_str), Some("application/json"), "{path}");
        let acquires = rest.ends_with("/acquirejobs");
        if !acquires && bearer.map(str::to_owned) != self.scale_sets.admin_token {
            return Some(exception(401, "VssUnauthorizedException", "Bad credentials"));
        }
        if rest == "/_apis/runtime/runnergroups/" {
            let wanted = query("groupName");
            let groups = self.groups.iter().filter(|(_, name)| Some(*name) == wanted.as_ref());
            let groups: Vec<Value> = groups.map(|(id, name)| json!({"id": id, "name": name})).collect();
            return Some(Reply::json(200, &json!({"count": groups.len(), "value": groups})));
        }
        let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        let rest = path.strip_prefix(SETS)?;
        let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
        let sets = &mut self.scale_sets;
        let Ok(id) = parts[0].parse::<u64>() else {
            if seen.method == "GET" {
                let group = query("runnerGroupId").map(|group| group.parse::<u64>().unwrap());
                let wanted = |set: &&FakeScaleSet| {
                    Some(&set.name) == query("name").as_ref() && group.is_none_or(|group| group == set.group)
                };
                let found: Vec<Value> =
                    sets.sets.iter().filter(wanted).map(|set| sets.to_json(set)).collect();
                return Some(Reply::json(200, &json!({"count": found.len(), "value": found})));
            }
            let name = body["name"].as_str().unwrap();
            let group = body["runnerGroupId"].as_u64().unwrap();
            if sets.sets.iter().any(|set| set.name == name && set.group == group) {
                return Some(exception(400, "RunnerScaleSetExistsException", "it exists"));
            }
            let labels = body["labels"].as_array().unwrap().iter().map(|label| {
                assert_eq!(label["type"], "System");
                label["name"].as_str().unwrap().to_owned()
            });
            let mut labels: Vec<_> = labels.filter(|label| !sets.wishes.drops.contains(label)).collect();
            if sets.wishes.only_the_name {
                labels = vec![name.to_owned()];
            }
            sets.add(name, group, labels, body["RunnerSetting"]["disableUpdate"] == true);
            let set = sets.sets.last().unwrap();
            return Some(Reply::json(200, &sets.to_json(set)));
        };
        if !sets.sets.iter().any(|set| set.id == id) {
            return Some(exception(404, "RunnerScaleSetNotFoundException", "no such scale set"));
        }
        Some(match (seen.method.as_str(), parts.get(1).copied(), parts.get(2)) {
            ("DELETE", None, None) => {
                sets.remove(id);
                Reply { status: 204, headers: Vec::new(), body: String::new() }
            }
            ("POST", Some("sessions"), None) => self.open_session(id, &body, base),
            (_, Some("sessions"), Some(session)) => self.change_session(seen, id, session, base),
            ("POST", Some("generatejitconfig"), None) => {
                let name = body["name"].as_str().unwrap();
                assert_eq!(body["workFolder"], "_work");
                if self.runners.iter().any(|runner| runner.name == name) {
                    return Some(exception(409, "AgentExistsException", "it exists"));
                }
                let labels = sets.sets.iter().find(|set| set.id == id).unwrap().labels.clone();
                let runner = self.add_runner(name, false, false, labels, 1);
                let reply = json!({"runner": {"id": runner, "name": name, "runnerScaleSetId": id},
                    "encodedJITConfig": jit_config_for(runner)});
                Reply::json(200, &reply)
            }
            ("POST", Some("acquirejobs"), None) => self.acquire(id, &body, bearer),
            other => panic!("{other:?} of a scale set"),
        })
    }

    fn open_session(&mut self, id: u64, body: &Value, base: &str) -> Reply {
        assert_eq!(body["sessionId"], "00000000-0000-0000-0000-000000000000");
        let session = self.scale_sets.number();
        let set = self.scale_sets.sets.iter_mut().find(|set| set.id == id).unwrap();
        if let Some(held) = &set.session {
            let message = format!(
                "The runner scale set {} already has an active session for owner {}.",
                set.name, held.owner
            );
            return exception(409, "RunnerScaleSetSessionConflictException", &message);
        }
        let owner = body["ownerName"].as_str().unwrap().to_owned();
        set.session = Some(Session { id: session, owner, token: Some(format!("queue-{session}")) });
        self.show_session(id, base)
    }

    fn show_session(&mut self, id: u64, base: &str) -> Reply {
        let sets = &mut self.scale_sets;
        let session = sets.sets.iter().find(|set| set.id == id).unwrap().session.clone().unwrap();
        let mut address = format!("{base}/queue/{id}/{}?key=a", session.id);
        if sets.wishes.without_address > 0 {
            sets.wishes.without_address -= 1;
            address.clear();
        }
        Reply::json(
            200,
            &json!({"sessionId": session.id.to_string(), "ownerName": session.owner, "messageQueueUrl": address,
                "messageQueueAccessToken": session.token,
                "statistics": if sets.wishes.hides_count { Value::Null } else { sets.statistics(id) }}),
        )
    }

    fn change_session(&mut self, seen: &Seen, id: u64, session: &str, base: &str) -> Reply {
        let renewed = format!("queue-{}", self.scale_sets.number());
        let refuses = self.scale_sets.wishes.refuses_renewal;
        let set = self.scale_sets.sets.iter_mut().find(|set| set.id == id).unwrap();
        let Some(held) = set.session.as_mut().filter(|held| held.id.to_string() == session) else {
            return exception(400, "RunnerScaleSetSessionExpiredException", "the session has expired");
        };
        if seen.method == "DELETE" {
            set.session = None;
            return Reply { status: 204, headers: Vec::new(), body: String::new() };
        }
        assert_eq!(seen.method, "PATCH");
        if refuses {
            set.session = None;
            return exception(404, "RunnerAdminException", "no");
        }
        held.token = Some(renewed);
        self.show_session(id, base)
    }

    fn acquire(&mut self, id: u64, body: &Value, bearer: Option<&str>) -> Reply {
        let set = self.scale_sets.sets.iter().find(|set| set.id == id).unwrap();
        let token = set.session.as_ref().and_then(|session| session.token.clone());
        if token.is_none() || bearer != token.as_deref() {
            return exception(401, "VssUnauthorizedException", "Bad credentials");
        }
        let wanted: Vec<u64> = body.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        for job in &wanted {
            let its = self.scale_sets.jobs.iter_mut().find(|its| its.id == *job).unwrap();
            its.stage = Stage::Assigned;
            self.scale_sets.tell(*job, "JobAssigned", json!({"runnerRequestId": job}));
        }
        Reply::json(200, &json!({"count": wanted.len(), "value": wanted}))
    }

    fn answer_queue(
        &mut self,
        seen: &Seen,
        rest: &str,
        bearer: Option<&str>,
        after: Option<String>,
    ) -> Reply {
        let numbers: Vec<u64> = rest.split('/').map(|number| number.parse().unwrap()).collect();
        if let Some(capacity) = seen.headers.get("x-scalesetmaxcapacity") {
            self.scale_sets.capacity = Some(capacity.clone());
        }
        let statistics = self.scale_sets.statistics(numbers[0]);
        let set = self.scale_sets.sets.iter_mut().find(|set| set.id == numbers[0]);
        let Some((set, session)) = set.and_then(|set| {
            let session = set.session.clone().filter(|session| session.id == numbers[1])?;
            Some((set, session))
        }) else {
            return Reply::refusal(404, "session not found");
        };
        if session.token.is_none() || bearer != session.token.as_deref() {
            return Reply::refusal(401, "Bad credentials");
        }
        if let (Some(message), "DELETE") = (numbers.get(2), seen.method.as_str()) {
            set.messages.retain(|(id, _)| id != message);
            return Reply { status: 204, headers: Vec::new(), body: String::new() };
        }
        assert_eq!(seen.headers["accept"], "application/json; api-version=6.0-preview");
        let after: u64 = after.map_or(0, |after| after.parse().unwrap());
        if !set.pending.is_empty() {
            set.last_message += 1;
            set.messages.push((set.last_message, std::mem::take(&mut set.pending)));
        }
        match set.messages.iter().find(|(id, _)| *id > after) {
            None => Reply { status: 202, headers: Vec::new(), body: String::new() },
            Some((id, events)) => Reply::json(
                200,
                &json!({"messageId": id, "messageType": "RunnerScaleSetJobMessages",
                    "body": json!(events).to_string(), "statistics": statistics}),
            ),
        }
    }
}

//! A GitHub with runners in memory, for as much of its REST API as the pool
//! uses, which misbehaves on demand.
//!
//! It speaks HTTP by hand, since no server library cuts a connection in the
//! middle of an answer.

mod scale_sets;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyperv_runner_pool::private_key::PrivateKey;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use scale_sets::ScaleSets;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The token that it takes at first.
pub const TOKEN: &str = "ghp_0123456789abcdefghijABCDEFGHIJ012345";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Still percent-encoded, with the query.
    pub target: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// A runner as GitHub holds it.
#[derive(Clone, Debug)]
pub struct FakeRunner {
    pub id: u64,
    pub name: String,
    pub online: bool,
    pub busy: bool,
    pub labels: Vec<String>,
    pub group: u64,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply { status, headers: Vec::new(), body: body.to_string() }
    }

    /// A refusal in GitHub's form.
    pub fn refusal(status: u16, message: &str) -> Reply {
        Reply::json(
            status,
            &json!({"message": message, "documentation_url": "https://docs.github.com/rest", "status": status.to_string()}),
        )
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A GitHub App, and what it may do in the scope.
#[derive(Clone, Debug)]
pub struct FakeApp {
    pub id: String,
    pub key: PrivateKey,
    pub installed: bool,
    pub suspended: bool,
    pub permissions: Value,
    pub token_life: Duration,
    /// Token, end and permissions of each.
    tokens: Vec<(String, SystemTime, Value)>,
}

impl FakeApp {
    /// No token that was given is good any more.
    pub fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }
}

/// How it can misbehave.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this, and does nothing.
    Answer(Reply),
    /// Waits first.
    Slow(Duration),
    /// Sends the answer's body byte by byte, with this wait before each.
    Trickle(Duration),
    /// Closes the connection, and does nothing.
    Cut,
    /// Does what was asked, and closes the connection instead of answering.
    CutAfterwards,
    /// Does what was asked, and closes the connection in the middle of the answer's body.
    CutInBody,
    /// Does what was asked, and answers with half of the JSON as if it were all.
    HalfTheJson,
}

struct State {
    /// `/orgs/acme` or `/repos/acme/widgets`.
    scope: String,
    runners: Vec<FakeRunner>,
    groups: BTreeMap<u64, String>,
    /// Workflow runs: id, status, jobs as JSON.
    runs: Vec<(u64, String, Vec<Value>)>,
    token: String,
    /// Then no personal access token is taken.
    app: Option<FakeApp>,
    /// What it says of the token's end.
    token_expiration: Option<String>,
    next_id: u64,
    tokens_made: u64,
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<Seen>,
    time: Option<SystemTime>,
    scale_sets: ScaleSets,
}

/// The server; it stops when dropped.
pub struct FakeGitHub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl FakeGitHub {
    /// With the organization `acme` and no runner.
    pub fn start() -> FakeGitHub {
        FakeGitHub::start_for("/orgs/acme")
    }

    /// With one organization or repository, such as `/repos/acme/widgets`.
    pub fn start_for(scope: &str) -> FakeGitHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            scope: scope.to_owned(),
            runners: Vec::new(),
            groups: BTreeMap::from([(1, "Default".to_owned())]),
            runs: Vec::new(),
            token: TOKEN.to_owned(),
            app: None,
            token_expiration: None,
            next_id: 1,
            tokens_made: 0,
            faults: Vec::new(),
            requests: Vec::new(),
            time: None,
            scale_sets: ScaleSets::default(),
        }));
        let stopped = Arc::new(AtomicBool::new(false));
        let (its_state, its_stopped) = (Arc::clone(&state), Arc::clone(&stopped));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if its_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&its_state);
                std::thread::spawn(move || stream.map(|s| serve(s, &state, &format!("http://{address}"))));
            }
        });
        FakeGitHub { address, state, stopped }
    }

    /// Its base URL, for `GITHUB_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Misbehaves in the next so many requests whose `METHOD /path?query`
    /// contains the text.
    pub fn misbehave(&self, matching: &str, times: usize, fault: Fault) {
        self.state().faults.push((matching.to_owned(), times, fault));
    }

    /// Misbehaves no more.
    pub fn behave(&self) {
        self.state().faults.clear();
    }

    pub fn add_runner(&self, name: &str, online: bool, busy: bool) -> u64 {
        self.state().add_runner(name, online, busy, vec!["self-hosted".to_owned()], 1)
    }

    pub fn runners(&self) -> Vec<FakeRunner> {
        self.state().runners.clone()
    }

    /// The runner of that name connects, gets a job, or goes.
    pub fn change_runner(&self, name: &str, change: impl FnOnce(&mut FakeRunner)) {
        change(self.state().runners.iter_mut().find(|r| r.name == name).unwrap());
    }

    /// As [`FakeGitHub::change_runner`], for one that may be gone by now, by its id.
    pub fn change_runner_if_there(&self, id: u64, change: impl Fn(&mut FakeRunner)) {
        self.state().runners.iter_mut().filter(|r| r.id == id).for_each(change);
    }

    /// A runner registers itself, as `config.cmd` does. Returns its id.
    pub fn register_itself(&self, name: &str, labels: &[&str]) -> u64 {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.state().add_runner(name, true, false, labels, 1)
    }

    pub fn forget_runner(&self, id: u64) {
        self.state().runners.retain(|r| r.id != id);
    }

    pub fn add_group(&self, id: u64, name: &str) {
        self.state().groups.insert(id, name.to_owned());
    }

    pub fn remove_group(&self, id: u64) {
        self.state().groups.remove(&id);
    }

    /// A workflow run with its jobs: id, status, label.
    pub fn add_run(&self, id: u64, status: &str, jobs: &[(u64, &str, &str)]) {
        let jobs = jobs
            .iter()
            .map(|(job, status, label)| json!({"id": job, "run_id": id, "status": status, "labels": [label]}))
            .collect();
        self.state().runs.push((id, status.to_owned(), jobs));
    }

    /// Takes the tokens of this GitHub App only from now on.
    pub fn add_app(&self, id: &str, key: PrivateKey, permissions: Value) {
        let (id, token_life) = (id.to_owned(), Duration::from_secs(3600));
        self.state().app = Some(FakeApp {
            id,
            key,
            installed: true,
            suspended: false,
            permissions,
            token_life,
            tokens: Vec::new(),
        });
    }

    pub fn change_app(&self, change: impl FnOnce(&mut FakeApp)) {
        change(self.state().app.as_mut().unwrap());
    }

    /// Takes this token only from now on.
    pub fn renew_token(&self, token: &str) {
        self.state().token = token.to_owned();
    }

    /// What it sends as `github-authentication-token-expiration` from now on.
    pub fn set_token_expiration(&self, text: &str) {
        self.state().token_expiration = Some(text.to_owned());
    }

    /// Stops its clock at this time; before, it is that of the machine.
    pub fn set_time(&self, time: SystemTime) {
        self.state().time = Some(time);
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.state().requests.clone()
    }

    /// How many requests' `METHOD /path?query` contained the text.
    pub fn count(&self, matching: &str) -> usize {
        self.state()
            .requests
            .iter()
            .filter(|r| format!("{} {}", r.method, r.target).contains(matching))
            .count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeGitHub {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers the requests of one connection, one after the other.
fn serve(mut stream: TcpStream, state: &Mutex<State>, base: &str) -> Option<()> {
    // Head and body are written apart.
    stream.set_nodelay(true).ok()?;
    let mut received = Vec::new();
    loop {
        let seen = receive(&mut stream, &mut received)?;
        let line = format!("{} {}", seen.method, seen.target);
        let fault = {
            let mut state = state.lock().unwrap();
            state.requests.push(seen.clone());
            state.take_fault(&line)
        };
        if let Some(Fault::Slow(time)) = fault {
            std::thread::sleep(time);
        }
        let reply = match &fault {
            Some(Fault::Cut) => return None,
            Some(Fault::Answer(reply)) => reply.clone(),
            _ => answer(state, &seen, base),
        };
        if matches!(fault, Some(Fault::CutAfterwards)) {
            return None;
        }
        let (length, body) = match fault {
            Some(Fault::CutInBody) => (reply.body.len(), &reply.body[..reply.body.len() / 2]),
            Some(Fault::HalfTheJson) => (reply.body.len() / 2, &reply.body[..reply.body.len() / 2]),
            _ => (reply.body.len(), &reply.body[..]),
        };
        let date = http_date(state.lock().unwrap().now());
        let mut answer = format!("HTTP/1.1 {} Some Reason\r\nDate: {date}\r\n", reply.status);
        for (name, value) in &reply.headers {
            answer.push_str(&format!("{name}: {value}\r\n"));
        }
        if reply.status != 204 {
            answer.push_str(&format!(
                "Content-Type: application/json; charset=utf-8\r\nContent-Length: {length}\r\n"
            ));
        }
        stream.write_all(format!("{answer}\r\n").as_bytes()).ok()?;
        match fault {
            Some(Fault::Trickle(wait)) => {
                for byte in body.bytes() {
                    std::thread::sleep(wait);
                    stream.write_all(&[byte]).ok()?;
                }
            }
            _ => stream.write_all(body.as_bytes()).ok()?,
        }
        if length > body.len() {
            return None;
        }
    }
}

/// How long a request for the next message of a queue is held.
const HOLD: Duration = Duration::from_millis(300);

fn answer(state: &Mutex<State>, seen: &Seen, base: &str) -> Reply {
    let began = Instant::now();
    loop {
        let mut state = state.lock().unwrap();
        let Some(reply) = state.answer_scale_sets(seen, base) else { return state.answer(seen) };
        drop(state);
        if reply.status != 202 || began.elapsed() >= HOLD {
            return reply;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn receive(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<Seen> {
    loop {
        if let Some((seen, used)) = parse(received) {
            received.drain(..used);
            return Some(seen);
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).ok()? {
            0 => return None,
            count => received.extend_from_slice(&piece[..count]),
        }
    }
}

/// The first request in the bytes received, and how many of them it takes.
fn parse(received: &[u8]) -> Option<(Seen, usize)> {
    let head = received.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&received[..head]);
    let mut lines = text.lines();
    let mut request_line = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
    let body = received.get(head..head + length)?.to_vec();
    let (method, target) = (request_line.next().unwrap(), request_line.next().unwrap());
    Some((Seen { method, target, headers, body }, head + length))
}

impl State {
    fn now(&self) -> SystemTime {
        self.time.unwrap_or_else(SystemTime::now)
    }

    fn take_fault(&mut self, line: &str) -> Option<Fault> {
        let index =
            self.faults.iter().position(|(matching, times, _)| *times > 0 && line.contains(matching))?;
        let (_, times, fault) = &mut self.faults[index];
        *times -= 1;
        Some(fault.clone())
    }

    fn add_runner(&mut self, name: &str, online: bool, busy: bool, labels: Vec<String>, group: u64) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.runners.push(FakeRunner { id, name: name.to_owned(), online, busy, labels, group });
        id
    }

    /// <https://docs.github.com/en/rest/apps/apps>
    fn answer_app(&mut self, app: &mut FakeApp, seen: &Seen) -> Reply {
        let (now, scope) = (self.now(), self.scope.clone());
        let path = seen.target.split('?').next().unwrap();
        let bearer = seen.headers.get("authorization").and_then(|v| v.strip_prefix("Bearer ")).unwrap_or("");
        if path.ends_with("/installation") || path.starts_with("/app/") {
            if let Err(refusal) = verify_jwt(app, bearer, now) {
                return refusal;
            }
            let here = path == format!("{scope}/installation");
            return match seen.method.as_str() {
                "GET" if here && app.installed => {
                    let suspended = app.suspended.then(|| rfc3339(now));
                    Reply::json(
                        200,
                        &json!({"id": 7, "permissions": app.permissions, "suspended_at": suspended}),
                    )
                }
                "POST" if path == "/app/installations/7/access_tokens" => {
                    let body: Value = serde_json::from_slice(&seen.body).unwrap();
                    let asked = body["permissions"].clone();
                    let granted = |(name, access): (&String, &Value)| {
                        app.permissions[name] == *access || app.permissions[name] == "write"
                    };
                    if !asked.as_object().unwrap().iter().all(granted) {
                        return Reply::refusal(
                            422,
                            "The permissions requested are not granted to this installation.",
                        );
                    }
                    self.tokens_made += 1;
                    let token = format!("ghs_{:036}", self.tokens_made);
                    let expires = now + app.token_life;
                    let reply = json!({"token": token, "expires_at": rfc3339(expires), "permissions": asked});
                    app.tokens.push((token, expires, asked));
                    Reply::json(201, &reply)
                }
                _ => Reply::refusal(404, "Not Found"),
            };
        }
        let Some((_, _, may)) = app.tokens.iter().find(|(token, end, _)| token == bearer && now < *end)
        else {
            return Reply::refusal(401, "Bad credentials");
        };
        let needed = match scope.starts_with("/orgs/") {
            true => "organization_self_hosted_runners",
            false if path.contains("/actions/runs") => "actions",
            false => "administration",
        };
        if may[needed].is_null() {
            return Reply::refusal(403, "Resource not accessible by integration");
        }
        self.answer_authorized(seen)
    }

    fn answer(&mut self, seen: &Seen) -> Reply {
        if let Some(mut app) = self.app.take() {
            let reply = self.answer_app(&mut app, seen);
            self.app = Some(app);
            return reply;
        }
        if seen.headers.get("authorization") != Some(&format!("Bearer {}", self.token)) {
            return Reply::refusal(401, "Bad credentials");
        }
        let reply = self.answer_authorized(seen);
        match &self.token_expiration {
            Some(time) => reply.header("GitHub-Authentication-Token-Expiration", time),
            None => reply,
        }
    }

    fn answer_authorized(&mut self, seen: &Seen) -> Reply {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let Some(path) = path.strip_prefix(&format!("{}/actions", self.scope)) else {
            return Reply::refusal(404, "Not Found");
        };
        let query = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(n, _)| *n == name)
                .map(|(_, v)| decode(v))
        };
        let of_page = |items: &[Value]| -> Vec<Value> {
            let per_page = query("per_page").map_or(30, |v| v.parse::<usize>().unwrap().min(100));
            let page = query("page").map_or(1, |v| v.parse::<usize>().unwrap());
            items.iter().skip((page - 1) * per_page).take(per_page).cloned().collect()
        };
        match (seen.method.as_str(), path) {
            ("GET", "/runners") => {
                let named = query("name");
                let found: Vec<Value> = self
                    .runners
                    .iter()
                    .filter(|r| named.as_ref().is_none_or(|name| r.name == *name))
                    .map(FakeRunner::to_json)
                    .collect();
                Reply::json(200, &json!({"total_count": found.len(), "runners": of_page(&found)}))
            }
            ("GET", "/runner-groups") if self.scope.starts_with("/orgs/") => {
                let groups: Vec<Value> = self
                    .groups
                    .iter()
                    .map(|(id, name)| {
                        json!({"id": id, "name": name, "visibility": "all", "default": *id == 1, "inherited": false,
                            "runners_url": "https://api.github.com/x", "allows_public_repositories": false})
                    })
                    .collect();
                Reply::json(200, &json!({"total_count": groups.len(), "runner_groups": of_page(&groups)}))
            }
            ("GET", "/runners/downloads") => {
                let item = |os: &str, end: &str| {
                    let filename = format!("actions-runner-{os}-x64-2.328.0.{end}");
                    let url =
                        format!("https://github.com/actions/runner/releases/download/v2.328.0/{filename}");
                    json!({"os": os, "architecture": "x64", "download_url": url, "filename": filename})
                };
                Reply::json(200, &json!([item("osx", "tar.gz"), item("linux", "tar.gz"), item("win", "zip")]))
            }
            ("GET", "/runs") if self.scope.starts_with("/repos/") => {
                let status = query("status");
                let runs: Vec<Value> = self
                    .runs
                    .iter()
                    .filter(|(_, s, _)| status.as_ref().is_none_or(|status| s == status))
                    .map(|(id, status, _)| json!({"id": id, "status": status}))
                    .collect();
                Reply::json(200, &json!({"total_count": runs.len(), "workflow_runs": of_page(&runs)}))
            }
            ("GET", path) if path.ends_with("/jobs") => {
                let run = path.strip_prefix("/runs/").and_then(|rest| rest.strip_suffix("/jobs"));
                match self.runs.iter().find(|(id, ..)| Some(&*id.to_string()) == run) {
                    Some((_, _, jobs)) => {
                        Reply::json(200, &json!({"total_count": jobs.len(), "jobs": of_page(jobs)}))
                    }
                    None => Reply::refusal(404, "Not Found"),
                }
            }
            ("POST", "/runners/generate-jitconfig") => self.generate_jitconfig(&seen.body),
            ("POST", "/runners/registration-token") => {
                self.tokens_made += 1;
                let expires = rfc3339(self.now() + Duration::from_secs(3600));
                Reply::json(
                    201,
                    &json!({"token": format!("AABF3JGZDX3P{}", self.tokens_made), "expires_at": expires}),
                )
            }
            (method, path) => {
                let id = path.strip_prefix("/runners/").and_then(|id| id.parse::<u64>().ok());
                let Some(index) = self.runners.iter().position(|r| Some(r.id) == id) else {
                    return Reply::refusal(404, "Not Found");
                };
                let runner = &self.runners[index];
                match method {
                    "GET" => Reply::json(200, &runner.to_json()),
                    "DELETE" if runner.busy => Reply::refusal(
                        422,
                        &format!(
                            "Bad request - Runner \"{}\" is currently running a job and cannot be deleted.",
                            runner.name
                        ),
                    ),
                    "DELETE" => {
                        self.runners.remove(index);
                        Reply { status: 204, headers: Vec::new(), body: String::new() }
                    }
                    _ => Reply::refusal(404, "Not Found"),
                }
            }
        }
    }

    fn generate_jitconfig(&mut self, body: &[u8]) -> Reply {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return Reply::refusal(400, "Problems parsing JSON");
        };
        let labels: Option<Vec<String>> = body["labels"]
            .as_array()
            .and_then(|labels| labels.iter().map(|label| label.as_str().map(str::to_owned)).collect());
        let (Some(name), Some(group), Some(labels)) =
            (body["name"].as_str(), body["runner_group_id"].as_u64(), labels)
        else {
            return Reply::refusal(422, "Invalid request");
        };
        if labels.is_empty() || labels.len() > 100 {
            return Reply::refusal(422, "Invalid labels");
        }
        if !self.groups.contains_key(&group) {
            return Reply::refusal(404, "Not Found");
        }
        if self.runners.iter().any(|r| r.name == name) {
            return Reply::refusal(
                409,
                &format!("Already exists - A runner with the name {name} already exists."),
            );
        }
        let id = self.add_runner(name, false, false, labels, group);
        let runner = self.runners[self.runners.len() - 1].to_json();
        Reply::json(201, &json!({"runner": runner, "encoded_jit_config": jit_config_for(id)}))
    }
}

/// Whether a JSON web token is what GitHub takes of an App.
/// <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>
fn verify_jwt(app: &FakeApp, jwt: &str, now: SystemTime) -> Result<(), Reply> {
    let undecodable = || Reply::refusal(401, "A JSON web token could not be decoded");
    let (signed, signature) = jwt.rsplit_once('.').ok_or_else(undecodable)?;
    let (head, claims) = signed.split_once('.').ok_or_else(undecodable)?;
    let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| undecodable());
    let json = |part: &str| serde_json::from_slice::<Value>(&bytes(part)?).map_err(|_| undecodable());
    if json(head)? != json!({"alg": "RS256", "typ": "JWT"}) {
        return Err(undecodable());
    }
    let claims = json(claims)?;
    if claims["iss"] != *app.id {
        return Err(Reply::refusal(404, "Integration not found"));
    }
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, app.key.public())
        .verify(signed.as_bytes(), &bytes(signature)?)
        .map_err(|_| undecodable())?;
    let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = |claim: &str| claims[claim].as_u64().unwrap();
    if time("iat") > now {
        return Err(Reply::refusal(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time",
        ));
    }
    if time("exp") <= now || time("exp") > now + 600 {
        return Err(Reply::refusal(401, "'Expiration time' claim ('exp') is too far in the future"));
    }
    Ok(())
}

/// The JIT configuration of a registration: as long as GitHub's, and no real one.
pub fn jit_config_for(id: u64) -> String {
    format!("eyJqaXQiOiAi{id}In0{}=", "A".repeat(3000))
}

impl FakeRunner {
    fn to_json(&self) -> Value {
        let labels: Vec<Value> = self
            .labels
            .iter()
            .enumerate()
            .map(|(i, l)| json!({"id": i, "name": l, "type": "custom"}))
            .collect();
        json!({"id": self.id, "name": self.name, "os": "Windows", "status": if self.online { "online" } else { "offline" },
            "busy": self.busy, "labels": labels, "runner_group_id": self.group, "ephemeral": true})
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Year, month, day and second of the day.
fn civil(time: SystemTime) -> (i64, i64, i64, i64) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut days = seconds / 86_400;
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let mut year = 1970;
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as i64 + 1, days + 1, seconds % 86_400)
}

fn rfc3339(time: SystemTime) -> String {
    let (year, month, day, second) = civil(time);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

fn http_date(time: SystemTime) -> String {
    let (year, month, day, second) = civil(time);
    let name = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        [month as usize - 1];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // The day of the week is not looked at by anyone.
    format!("Mon, {day:02} {name} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

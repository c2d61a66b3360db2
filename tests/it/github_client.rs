//! What the GitHub client asks of GitHub, and what it makes of its answers,
//! of its faults, and of its silence.

use crate::support::fake_github::{FakeGitHub, Fault, Reply, TOKEN, jit_config_for};
use crate::support::wait_until;
use hyperv_runner_pool::config::{Credential, GitHubConfig, Intake, RegistrationMode};
use hyperv_runner_pool::github::client::{Checked, Client, REQUEST_TIMEOUT};
use hyperv_runner_pool::github::clock::Clock;
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::github::{Error, GitHub, QueuedJob, Removal, Runner};
use hyperv_runner_pool::secret::Secret;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// 2020-01-22, 20:13:35 UTC.
const START: u64 = 1_579_724_015;

/// A clock that stands still but for sleeping and being put forward.
pub struct TestClock {
    start: Instant,
    passed: Mutex<Duration>,
    slept: Mutex<Vec<Duration>>,
}

impl TestClock {
    pub fn new() -> Arc<TestClock> {
        let (passed, slept) = (Mutex::default(), Mutex::default());
        Arc::new(TestClock { start: Instant::now(), passed, slept })
    }

    pub fn forward(&self, time: Duration) {
        *self.passed.lock().unwrap() += time;
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.start + *self.passed.lock().unwrap()
    }

    fn utc(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(START) + *self.passed.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        self.slept.lock().unwrap().push(time);
        self.forward(time);
    }
}

pub fn settings(url: &str) -> GitHubConfig {
    GitHubConfig {
        api_url: url.to_owned(),
        pat: Some(Secret::new(TOKEN)),
        app_id: None,
        app_key: None,
        org: "acme".to_owned(),
        repo: None,
        registration: RegistrationMode::Jit,
        runner_group: "Default".to_owned(),
        labels: vec!["self-hosted".to_owned(), "Windows".to_owned()],
        intake: Intake::Webhook,
        scale_set: "runner".to_owned(),
    }
}

fn client(settings: GitHubConfig) -> Client {
    client_with(settings, TestClock::new())
}

fn client_with(settings: GitHubConfig, clock: Arc<TestClock>) -> Client {
    Client::with(&settings, Box::new(|| None), REQUEST_TIMEOUT, clock).unwrap()
}

/// The sentence of an error, after a look that it gives no secret away.
pub fn sentence<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    let text = outcome.unwrap_err().to_string();
    assert!(!text.contains(TOKEN) && !text.contains("eyJqaXQ") && !text.contains("AABF3JGZ"), "{text}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    text
}

#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Registering.

#[test]
fn a_jit_registration_sends_what_github_documents() {
    let github = FakeGitHub::start();
    let registration = client(settings(&github.url())).register("runner-1").unwrap();

    let runner = &github.runners()[0];
    assert_eq!((registration.runner_id, &*runner.name), (Some(runner.id), "runner-1"));
    assert_eq!(registration.credential.expose(), jit_config_for(runner.id));
    let request = &github.requests()[0];
    assert_eq!(
        (&*request.method, &*request.target),
        ("POST", "/orgs/acme/actions/runners/generate-jitconfig")
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&request.body).unwrap(),
        json!({"name": "runner-1", "runner_group_id": 1, "labels": ["self-hosted", "Windows"], "work_folder": "_work"})
    );
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    assert_eq!(header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!(header("accept"), Some("application/vnd.github+json"));
    assert_eq!(header("x-github-api-version"), Some("2022-11-28"));
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("user-agent"), Some(concat!("hyperv-runner-pool/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(github.requests().len(), 1);
}

#[test]
fn a_repository_has_its_own_path_and_only_the_default_group() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    let repo = Some("widgets".to_owned());
    let client = client(GitHubConfig { repo, runner_group: "Windows".to_owned(), ..settings(&github.url()) });
    let id = client.register("runner-1").unwrap().runner_id.unwrap();
    assert_eq!(github.runners()[0].group, 1);
    assert_eq!(client.runners().unwrap().len(), 1);
    assert_eq!(client.remove(client.scope(), id), Ok(Removal::Removed));
    assert!(github.requests().iter().all(|r| r.target.starts_with("/repos/acme/widgets/actions/runners")));
}

#[test]
fn names_are_percent_encoded_in_paths_and_queries() {
    let github = FakeGitHub::start_for("/repos/a%2Fb/c%20d");
    let id = github.add_runner("r&d=1?#\u{e9}", true, false);
    let client = client(GitHubConfig {
        org: "a/b".to_owned(),
        repo: Some("c d".to_owned()),
        ..settings(&github.url())
    });
    assert_eq!(client.runner_by_name(client.scope(), "r&d=1?#\u{e9}").unwrap().unwrap().id, id);
}

#[test]
fn the_runner_group_is_looked_up_by_name_on_all_pages_and_only_once() {
    let github = FakeGitHub::start();
    for id in 2..250 {
        github.add_group(id, &format!("group {id}"));
    }
    let client = client(GitHubConfig { runner_group: "group 249".to_owned(), ..settings(&github.url()) });
    client.register("runner-1").unwrap();
    client.register("runner-2").unwrap();
    assert!(github.runners().iter().all(|runner| runner.group == 249));
    assert_eq!(github.count("GET /orgs/acme/actions/runner-groups"), 3);
}

#[test]
fn a_runner_group_that_was_deleted_and_made_again_is_looked_up_again() {
    let github = FakeGitHub::start();
    github.add_group(7, "Windows");
    let client = client(GitHubConfig { runner_group: "Windows".to_owned(), ..settings(&github.url()) });
    client.register("runner-1").unwrap();
    github.remove_group(7);
    github.add_group(8, "Windows");
    client.register("runner-2").unwrap();
    let groups: Vec<u64> = github.runners().iter().map(|runner| runner.group).collect();
    assert_eq!(groups, [7, 8]);
}

#[test]
fn a_runner_group_that_does_not_exist_is_named_with_those_that_do() {
    let github = FakeGitHub::start();
    github.add_group(7, "Linux\u{1b}[31m");
    let client = client(GitHubConfig { runner_group: "Windows".to_owned(), ..settings(&github.url()) });
    let why = sentence(client.register("runner-1"));
    assert_says(&why, &["runner-1", "organization acme", "\"Windows\"", "RUNNER_GROUP", "Default", "Linux"]);
    github.add_group(8, "Windows");
    client.register("runner-1").unwrap();
}

#[test]
fn a_name_that_is_taken_is_told_apart() {
    let github = FakeGitHub::start();
    github.add_runner("runner-1", false, false);
    assert_eq!(client(settings(&github.url())).register("runner-1").unwrap_err(), Error::NameTaken);
}

#[test]
fn a_registration_token_serves_all_slots_until_five_minutes_before_it_expires() {
    let github = FakeGitHub::start();
    let clock = TestClock::new();
    // This machine's clock is a day behind GitHub's: only the difference of
    // GitHub's own two times counts.
    github.set_time(clock.utc() + seconds(86_400));
    let client = client_with(
        GitHubConfig { registration: RegistrationMode::Token, ..settings(&github.url()) },
        Arc::clone(&clock),
    );
    let token = |name: &str| client.register(name).unwrap().credential.expose().to_owned();

    let first = token("runner-1");
    let rest: Vec<String> = std::thread::scope(|scope| {
        let slots: Vec<_> =
            (2..6).map(|slot| scope.spawn(move || token(&format!("runner-{slot}")))).collect();
        slots.into_iter().map(|slot| slot.join().unwrap()).collect()
    });
    assert!(rest.iter().all(|token| *token == first));
    clock.forward(seconds(54 * 60 + 59));
    assert_eq!(token("runner-1"), first);
    assert_eq!(github.requests().len(), 1);

    clock.forward(seconds(1));
    assert_ne!(token("runner-1"), first);
    assert_eq!(github.count("POST /orgs/acme/actions/runners/registration-token"), 2);
    assert_eq!(github.runners().len(), 0, "the VM registers itself");
}

#[test]
fn a_registration_token_of_unknown_life_is_not_shared() {
    let github = FakeGitHub::start();
    let bare = Reply::json(201, &json!({"token": "ONCE"}));
    github.misbehave("registration-token", 1, Fault::Answer(bare));
    let client = client(GitHubConfig { registration: RegistrationMode::Token, ..settings(&github.url()) });
    let first = client.register("runner-1").unwrap();
    assert_eq!((first.credential.expose(), first.runner_id), ("ONCE", None));
    assert_ne!(client.register("runner-2").unwrap().credential.expose(), "ONCE");
}

// Looking up and removing.

#[test]
fn the_listing_holds_the_runners_of_all_pages() {
    let github = FakeGitHub::start();
    for number in 0..250 {
        github.add_runner(&format!("r{number}"), number % 2 == 0, number == 4);
    }
    let runners = client(settings(&github.url())).runners().unwrap();
    assert_eq!(runners.len(), 250);
    let labels = vec!["self-hosted".to_owned()];
    assert_eq!(runners[4], Runner { id: 5, name: "r4".to_owned(), online: true, busy: true, labels });
    assert!(!runners[3].online && !runners[3].busy);
    assert_eq!(github.requests().len(), 3);
}

#[test]
fn a_listing_without_runners_is_empty() {
    let github = FakeGitHub::start();
    assert_eq!(client(settings(&github.url())).runners(), Ok(vec![]));
}

#[test]
fn a_runner_that_slides_to_the_next_page_is_listed_once() {
    let github = FakeGitHub::start();
    for number in 0..101 {
        github.add_runner(&format!("r{number}"), true, false);
    }
    let slid: Vec<Value> = (0..2)
        .map(|n| json!({"id": 100 + n, "name": format!("r{}", 99 + n), "os": "Windows", "status": "online", "busy": false, "labels": []}))
        .collect();
    let reply = Reply::json(200, &json!({"total_count": 102, "runners": slid}));
    github.misbehave("page=2", 1, Fault::Answer(reply));
    assert_eq!(client(settings(&github.url())).runners().unwrap().len(), 101);
}

#[test]
fn a_listing_that_does_not_end_is_an_error_rather_than_a_short_list() {
    let github = FakeGitHub::start();
    let runner = json!({"id": 1, "name": "r", "os": "x", "status": "online", "busy": false, "labels": []});
    let reply = Reply::json(200, &json!({"total_count": 1_000_000, "runners": [runner]}));
    github.misbehave("GET", usize::MAX, Fault::Answer(reply));
    assert_says(
        &sentence(client(settings(&github.url())).runners()),
        &["cannot list the runners", "longer than"],
    );
}

#[test]
fn a_runner_is_found_by_its_exact_name() {
    let github = FakeGitHub::start();
    let id = github.add_runner("runner-1", true, true);
    let client = client(settings(&github.url()));
    let found = client.runner_by_name(client.scope(), "runner-1").unwrap().unwrap();
    assert_eq!((found.id, found.busy, found.online), (id, true, true));
    assert_eq!(github.count("name=runner-1"), 1);
    assert_eq!(client.runner_by_name(client.scope(), "runner-2"), Ok(None));

    // Should the filter ever take parts of names, or none at all.
    let other =
        json!({"id": 9, "name": "runner-10", "os": "x", "status": "online", "busy": false, "labels": []});
    let reply = Reply::json(200, &json!({"total_count": 1, "runners": [other]}));
    github.misbehave("name=runner-1", 1, Fault::Answer(reply));
    assert_eq!(client.runner_by_name(client.scope(), "runner-1"), Ok(None));
}

#[test]
fn a_runner_is_found_by_its_id_or_known_to_be_gone() {
    let github = FakeGitHub::start();
    let id = github.add_runner("runner-1", false, false);
    let client = client(settings(&github.url()));
    assert_eq!(client.runner_by_id(client.scope(), id).unwrap().unwrap().name, "runner-1");
    assert_eq!(client.runner_by_id(client.scope(), id + 1), Ok(None));
}

#[test]
fn lost_access_is_not_taken_for_a_runner_that_is_gone() {
    let github = FakeGitHub::start();
    let id = github.add_runner("runner-1", true, true);
    let client = client(settings(&github.url()));
    github.misbehave("", usize::MAX, Fault::Answer(Reply::refusal(404, "Not Found")));
    assert_says(&sentence(client.runner_by_id(client.scope(), id)), &["organization acme", "404"]);
    assert_says(&sentence(client.remove(client.scope(), id)), &["organization acme", "404"]);
}

#[test]
fn removing_tells_removed_gone_and_busy_apart() {
    let github = FakeGitHub::start();
    let idle = github.add_runner("runner-1", true, false);
    let busy = github.add_runner("runner-2", true, true);
    let client = client(settings(&github.url()));
    assert_eq!(client.remove(client.scope(), idle), Ok(Removal::Removed));
    assert_eq!(client.remove(client.scope(), idle), Ok(Removal::NotThere));
    assert_eq!(client.remove(client.scope(), busy), Ok(Removal::Busy));
    assert_eq!(github.runners().len(), 1);
}

#[test]
fn the_newest_runner_for_windows_is_known() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    assert_eq!(client.newest_runner_version(), Ok(Some("2.328.0".to_owned())));
    github.misbehave("downloads", 1, Fault::Answer(Reply::json(200, &json!([]))));
    assert_eq!(client.newest_runner_version(), Ok(None));
}

// Faults of the network and of GitHub.

#[test]
fn reading_and_removing_are_tried_three_times() {
    let github = FakeGitHub::start();
    let id = github.add_runner("runner-1", true, false);
    let clock = TestClock::new();
    let client = client_with(settings(&github.url()), Arc::clone(&clock));
    for fault in [Fault::Cut, Fault::CutInBody, Fault::Answer(Reply::refusal(502, "Server Error"))] {
        github.misbehave("GET", 2, fault.clone());
        assert_eq!(client.runners().unwrap().len(), 1, "{fault:?}");
    }
    assert_eq!(*clock.slept.lock().unwrap(), [500, 1000, 500, 1000, 500, 1000].map(Duration::from_millis));

    github.misbehave("DELETE", 1, Fault::CutAfterwards);
    assert_eq!(client.remove(client.scope(), id), Ok(Removal::NotThere), "the first try removed it");
}

#[test]
fn a_fault_that_stays_is_reported_after_three_tries() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    github.misbehave("GET", usize::MAX, Fault::Answer(Reply::refusal(503, "No server is available")));
    assert_says(&sentence(client.runners()), &["cannot list the runners", "503", "No server is available"]);
    assert_eq!(github.requests().len(), 3);
    github.behave();
    github.misbehave("GET", usize::MAX, Fault::Cut);
    assert_says(&sentence(client.runners()), &["cannot list the runners", "no answer from 127.0.0.1"]);
    assert_eq!(github.requests().len(), 6);
}

#[test]
fn a_registration_whose_answer_is_lost_is_not_sent_again() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    for (name, fault) in [
        ("runner-1", Fault::CutAfterwards),
        ("runner-2", Fault::CutInBody),
        ("runner-3", Fault::Answer(Reply::refusal(502, "Server Error"))),
    ] {
        let before = github.requests().len();
        github.misbehave("POST", 1, fault);
        assert_says(&sentence(client.register(name)), &["cannot register", name]);
        assert_eq!(github.requests().len(), before + 1);
    }
    assert_eq!(client.register("runner-1").unwrap_err(), Error::NameTaken);
}

#[test]
fn a_server_that_does_not_answer_or_trickles_is_given_up() {
    // The whole body would take more than ten times 200 ms.
    for fault in [Fault::Slow(seconds(100)), Fault::Trickle(Duration::from_millis(80))] {
        let github = FakeGitHub::start();
        github.misbehave("GET", 1, fault);
        let timeout = Duration::from_millis(200);
        let client =
            Client::with(&settings(&github.url()), Box::new(|| None), timeout, TestClock::new()).unwrap();
        let before = Instant::now();
        assert_says(&sentence(client.runners()), &["cannot list the runners", "no answer from 127.0.0.1"]);
        assert!(before.elapsed() < seconds(60));
        wait_until("the server has read it", || !github.requests().is_empty());
        assert_eq!(github.requests().len(), 1, "there was no time for a second try");
    }
}

#[test]
fn an_answer_that_is_not_the_documented_json_is_an_error_that_shows_nothing_of_it() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    github.misbehave("POST", 1, Fault::HalfTheJson);
    assert_says(&sentence(client.register("runner-1")), &["runner-1", "not the JSON that GitHub documents"]);
    let html = Reply { status: 200, headers: vec![], body: "<html>eyJqaXQ log in".to_owned() };
    github.misbehave("GET", 1, Fault::Answer(html));
    assert_says(&sentence(client.runners()), &["cannot list the runners", "not the JSON", "GITHUB_API_URL"]);
    let strange = json!({"runner": {"id": "eyJqaXQ"}, "encoded_jit_config": "eyJqaXQ"});
    github.misbehave("POST", 1, Fault::Answer(Reply::json(201, &strange)));
    assert_says(&sentence(client.register("runner-2")), &["runner-2", "not the JSON"]);
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    let github = FakeGitHub::start();
    let huge = Reply { status: 200, headers: vec![], body: " ".repeat(5 << 20) };
    github.misbehave("GET", usize::MAX, Fault::Answer(huge));
    assert_says(&sentence(client(settings(&github.url())).runners()), &["larger than request limit"]);
}

#[test]
fn a_host_that_cannot_be_reached_is_named_with_what_to_check() {
    let nobody = format!("http://127.0.0.1:{}", crate::support::free_port());
    let refused = sentence(client(settings(&nobody)).runners());
    assert_says(
        &refused,
        &["cannot list the runners", "no answer from 127.0.0.1", "refused", "GITHUB_API_URL"],
    );

    let nowhere = sentence(client(settings("http://no-such-host.invalid")).runners());
    assert_says(&nowhere, &["no answer from no-such-host.invalid", "check", "DNS"]);

    let nonsense = sentence(client(settings("not a url")).runners());
    assert_says(&nonsense, &["GITHUB_API_URL"]);
}

#[test]
fn a_server_without_tls_is_reported_as_no_secure_connection() {
    let github = FakeGitHub::start();
    github.misbehave("", usize::MAX, Fault::Cut);
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in plain.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    assert_says(&sentence(client(settings(&url)).runners()), &["no secure connection to 127.0.0.1", "trust"]);
}

// Refusals.

fn refusal_of(repo: Option<&str>, reply: Reply) -> String {
    let github = FakeGitHub::start();
    github.misbehave("", usize::MAX, Fault::Answer(reply));
    let repo = repo.map(str::to_owned);
    sentence(client(GitHubConfig { repo, ..settings(&github.url()) }).register("runner-1"))
}

#[test]
fn a_refused_token_is_to_be_renewed() {
    let github = FakeGitHub::start();
    let pat = Some(Secret::new("ghp_expired"));
    let why = sentence(client(GitHubConfig { pat, ..settings(&github.url()) }).runners());
    assert_says(&why, &["GITHUB_PAT", "(401)", "renew", "Bad credentials"]);
    assert!(!why.contains("ghp_"), "{why}");
}

#[test]
fn a_missing_permission_is_named() {
    let reply = Reply::refusal(403, "Resource not accessible by personal access token");
    let org = refusal_of(None, reply.clone());
    assert_says(&org, &["runner-1", "403", "Self-hosted runners: write", "admin:org", "organization acme"]);
    assert_says(&org, &["Resource not accessible by personal access token"]);
    let repo = refusal_of(Some("widgets"), reply);
    assert_says(&repo, &["403", "Administration: write", "scope repo", "repository acme/widgets"]);
}

#[test]
fn a_token_without_single_sign_on_is_to_be_authorized() {
    let reply = Reply::refusal(403, "Resource protected by organization SAML enforcement.")
        .header("X-GitHub-SSO", "required; url=https://github.com/orgs/acme/sso?authorization_request=A1");
    let why = refusal_of(None, reply);
    assert_says(&why, &["single sign-on", "authorize", "SAML"]);
    assert!(!why.contains("authorization_request"), "{why}");
}

#[test]
fn an_organization_or_repository_that_is_not_found_is_named() {
    let reply = Reply::refusal(404, "Not Found");
    assert_says(&refusal_of(None, reply.clone()), &["organization acme", "404", "GITHUB_ORG", "no access"]);
    assert_says(&refusal_of(Some("widgets"), reply), &["repository acme/widgets", "404", "GITHUB_REPO"]);
}

#[test]
fn githubs_reason_is_shown_short_clean_and_without_the_token() {
    let long = format!("bad {TOKEN}\u{1b}[31m\r\nlabel {}", "x".repeat(5000));
    let body = json!({"message": long, "errors": ["not shown: too far"]});
    let why = refusal_of(None, Reply::json(422, &body));
    assert_says(&why, &["422", "bad ***", "label xxx"]);
    assert!(why.len() < 600, "{why}");
    let body = json!({"message": "Validation Failed", "errors": ["no such label", {"message": "nor this"}]});
    assert_says(&refusal_of(None, Reply::json(422, &body)), &["Validation Failed; no such label; nor this"]);
}

// Redirections.

#[test]
fn a_renamed_repository_is_followed() {
    let github = FakeGitHub::start_for("/repositories/7");
    let client = client(GitHubConfig { repo: Some("old".to_owned()), ..settings(&github.url()) });
    let to = |path: &str| {
        Fault::Answer(
            Reply::refusal(307, "Temporary Redirect").header("Location", format!("{}{path}", github.url())),
        )
    };
    github.misbehave("POST /repos/acme/old/", 1, to("/repositories/7/actions/runners/generate-jitconfig"));
    client.register("runner-1").unwrap();
    github.misbehave("GET /repos/acme/old/", 1, to("/repositories/7/actions/runners"));
    assert_eq!(client.runners().unwrap().len(), 1);
}

#[test]
fn the_token_is_not_sent_to_another_host() {
    let (github, other) = (FakeGitHub::start(), FakeGitHub::start());
    let location = format!("{}/orgs/acme/actions/runners", other.url());
    let reply = Reply::refusal(301, "Moved Permanently").header("Location", location);
    github.misbehave("GET", 1, Fault::Answer(reply));
    assert_says(
        &sentence(client(settings(&github.url())).runners()),
        &["redirects", "301", "GITHUB_API_URL"],
    );
    assert_eq!(other.requests().len(), 0);
}

// The rate limit.

fn wait_of<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Duration {
    match outcome.unwrap_err() {
        Error::RateLimited { retry_after, .. } => retry_after,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_request_is_counted_by_its_result_and_what_is_left_of_the_rate_limit_is_known() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    assert_eq!(client.traffic().rate_limit, None);
    let broken = Reply::refusal(502, "Server Error")
        .header("X-RateLimit-Limit", 5000)
        .header("X-RateLimit-Remaining", 4321)
        .header("X-RateLimit-Reset", START + 60);
    github.misbehave("GET /orgs/acme/actions/runners", 1, Fault::Answer(broken));
    client.runners().unwrap();
    assert_eq!(client.runner_by_id(client.scope(), 7).unwrap(), None);
    let traffic = client.traffic();
    let counted: Vec<_> = traffic.requests.iter().filter(|(_, count)| **count > 0).collect();
    // The list, and that the token sees the scope of the runner that is gone.
    assert_eq!(counted, [(&"not_found", &1), (&"server_error", &1), (&"success", &2)]);
    let left = traffic.rate_limit.unwrap();
    assert_eq!((left.limit, left.remaining, left.reset), (5000, 4321, START + 60));
}

#[test]
fn a_used_up_rate_limit_holds_back_every_request_until_it_is_over() {
    let github = FakeGitHub::start();
    let clock = TestClock::new();
    let client = client_with(settings(&github.url()), Arc::clone(&clock));
    let reply = Reply::refusal(403, "You have exceeded a secondary rate limit").header("Retry-After", 42);
    github.misbehave("GET", 1, Fault::Answer(reply));

    let why = "GitHub's rate limit is used up until 20:14:17 UTC".to_owned();
    let limited = Error::RateLimited { retry_after: seconds(42), why };
    assert_eq!(client.runners(), Err(limited.clone()));
    assert_eq!(client.register("runner-1").unwrap_err(), limited);
    clock.forward(seconds(41));
    let refused = client.remove(client.scope(), 1).unwrap_err();
    assert_eq!(refused.to_string(), limited.to_string(), "the log is not flooded with a countdown");
    assert_eq!(wait_of(client.remove(client.scope(), 1)), seconds(1));
    assert_eq!(github.requests().len(), 1, "nothing was sent meanwhile");

    clock.forward(seconds(1));
    client.register("runner-1").unwrap();
}

#[test]
fn the_primary_limit_is_over_when_githubs_own_clock_says_so() {
    for status in [403, 429] {
        let github = FakeGitHub::start();
        let clock = TestClock::new();
        let githubs_time = clock.utc() - seconds(7200);
        github.set_time(githubs_time);
        let reset = githubs_time.duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
        let reply = Reply::refusal(status, "API rate limit exceeded for user ID 1.")
            .header("X-RateLimit-Remaining", 0)
            .header("X-RateLimit-Reset", reset);
        github.misbehave("POST", 1, Fault::Answer(reply));
        let client = client_with(settings(&github.url()), clock);
        assert_eq!(wait_of(client.register("runner-1")), seconds(601));
    }
}

#[test]
fn the_last_request_within_the_limit_succeeds_and_the_next_waits() {
    let github = FakeGitHub::start();
    let clock = TestClock::new();
    github.set_time(clock.utc());
    let reply = Reply::json(200, &json!({"total_count": 0, "runners": []}))
        .header("X-RateLimit-Remaining", 0)
        .header("X-RateLimit-Reset", START + 10);
    github.misbehave("GET", 1, Fault::Answer(reply));
    let client = client_with(settings(&github.url()), clock);
    assert_eq!(client.runners(), Ok(vec![]));
    assert_eq!(wait_of(client.runners()), seconds(11));
    assert_eq!(github.requests().len(), 1);
}

#[test]
fn a_secondary_limit_without_a_time_waits_a_minute_and_longer_each_time() {
    let github = FakeGitHub::start();
    let clock = TestClock::new();
    let client = client_with(settings(&github.url()), Arc::clone(&clock));
    let plain = Reply { status: 429, headers: vec![], body: String::new() };
    let worded = Reply::refusal(403, "You have exceeded a secondary rate limit. Please wait a few minutes.");
    for wait in [60, 120, 240, 480, 960, 960] {
        let reply = if wait == 120 { &plain } else { &worded };
        github.misbehave("GET", 1, Fault::Answer(reply.clone()));
        assert_eq!(wait_of(client.runners()), seconds(wait));
        clock.forward(seconds(wait));
    }
    client.runners().unwrap();
    github.misbehave("GET", 1, Fault::Answer(worded));
    assert_eq!(wait_of(client.runners()), seconds(60), "a success in between begins anew");
}

#[test]
fn an_absurd_wait_is_cut_to_an_hour() {
    let github = FakeGitHub::start();
    let reply = Reply::refusal(429, "later").header("Retry-After", u64::MAX);
    github.misbehave("GET", 1, Fault::Answer(reply));
    assert_eq!(wait_of(client(settings(&github.url())).runners()), seconds(3600));
}

#[test]
fn a_missing_permission_holds_nothing_back() {
    let github = FakeGitHub::start();
    let reply = Reply::refusal(403, "Must have admin rights to Repository.")
        .header("X-RateLimit-Remaining", 4000)
        .header("X-RateLimit-Reset", START + 600);
    github.misbehave("GET", 1, Fault::Answer(reply));
    let client = client(settings(&github.url()));
    assert_says(&sentence(client.runners()), &["403", "admin:org"]);
    assert_eq!(client.runners(), Ok(vec![]));
}

// Scopes.

#[test]
fn a_call_goes_to_the_scope_that_it_is_given() {
    let github = FakeGitHub::start_for("/repos/acme/old");
    let id = github.add_runner("runner-1", true, false);
    let client = client(settings(&github.url()));
    let scope = Scope { api_url: github.url(), owner: "acme".to_owned(), repository: Some("old".to_owned()) };
    assert_eq!(client.runner_by_id(&scope, id).unwrap().unwrap().name, "runner-1");
    assert_eq!(client.runner_by_name(&scope, "runner-1").unwrap().unwrap().id, id);
    assert_eq!(client.remove(&scope, id), Ok(Removal::Removed));
    assert_eq!(client.remove(&scope, id), Ok(Removal::NotThere));
    assert!(github.requests().iter().all(|r| r.target.starts_with("/repos/acme/old/actions/runners")));
}

#[test]
fn the_token_is_not_sent_to_the_github_of_another_scope() {
    let (github, other) = (FakeGitHub::start(), FakeGitHub::start());
    let id = other.add_runner("runner-1", true, false);
    let client = client(settings(&github.url()));
    let scope = Scope { api_url: other.url(), ..client.scope().clone() };
    let refused = client.remove(&scope, id).unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert_says(&sentence(Err::<(), _>(refused)), &["organization acme", "another GitHub", &other.url()]);
    assert!(matches!(client.runner_by_id(&scope, id), Err(Error::Refused(_))));
    assert!(matches!(client.runner_by_name(&scope, "runner-1"), Err(Error::Refused(_))));
    assert_eq!((github.requests().len(), other.requests().len()), (0, 0));
}

#[test]
fn a_refusal_is_told_apart_from_other_errors() {
    for (status, refused) in [(401, true), (403, true), (404, true), (422, false), (500, false), (302, false)]
    {
        let github = FakeGitHub::start();
        github.misbehave("", usize::MAX, Fault::Answer(Reply::refusal(status, "no")));
        let client = client(settings(&github.url()));
        for error in [
            client.runners().map(|_| ()).unwrap_err(),
            client.register("runner-1").map(|_| ()).unwrap_err(),
            client.runner_by_id(client.scope(), 1).map(|_| ()).unwrap_err(),
        ] {
            assert_eq!(matches!(error, Error::Refused(_)), refused, "{error:?}");
            assert_eq!(matches!(error, Error::Failed(_)), !refused, "{error:?}");
        }
    }
}

// The token.

/// A client of a GitHub whose token was renewed, and how often it read `GITHUB_PAT` again.
fn client_that_reads(github: &FakeGitHub, pat: &'static str) -> (Client, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let read_pat = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Some(Credential::Pat(Secret::new(pat)))
    });
    let client = Client::with(&settings(&github.url()), read_pat, REQUEST_TIMEOUT, TestClock::new());
    (client.unwrap(), reads)
}

#[test]
fn a_token_that_was_renewed_is_taken_without_a_restart() {
    let github = FakeGitHub::start();
    github.renew_token("ghp_new");
    let (client, reads) = client_that_reads(&github, "ghp_new");
    let registration = client.register("runner-1").unwrap();
    assert_eq!(registration.runner_id, Some(github.runners()[0].id));
    assert_eq!((github.requests().len(), reads.load(Ordering::SeqCst)), (2, 1), "refused, read, repeated");
    client.runners().unwrap();
    assert_eq!((github.requests().len(), reads.load(Ordering::SeqCst)), (3, 1), "and used from then on");
}

#[test]
fn a_call_is_repeated_only_once_and_only_with_another_token() {
    let github = FakeGitHub::start();
    github.renew_token("ghp_new");
    let (same, _) = client_that_reads(&github, TOKEN);
    assert_says(&sentence(same.runners()), &["GITHUB_PAT", "(401)", "Bad credentials"]);
    assert_eq!(github.requests().len(), 1, "the token is the same");

    let (wrong, _) = client_that_reads(&github, "ghp_wrong");
    let why = sentence(wrong.runners());
    assert_says(&why, &["GITHUB_PAT", "(401)"]);
    assert!(!why.contains("ghp_"), "{why}");
    assert_eq!(github.requests().len(), 3, "the other one is wrong too");
}

#[test]
fn calls_that_are_refused_together_read_the_token_once() {
    let github = FakeGitHub::start();
    github.renew_token("ghp_new");
    // All of them are on their way before the first is refused.
    github.misbehave("", 4, Fault::Slow(Duration::from_millis(300)));
    let (client, reads) = client_that_reads(&github, "ghp_new");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| client.runners().unwrap());
        }
    });
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[test]
fn the_end_of_the_token_is_known_from_githubs_answers() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    client.runners().unwrap();
    assert_eq!(client.token_expires(), None, "a token without an end");
    for (text, expires) in
        [("2020-01-22 20:13:35 UTC", START), ("2020-01-22 22:13:36 +0200", START + 1), ("soon", START + 1)]
    {
        github.set_token_expiration(text);
        client.runners().unwrap();
        assert_eq!(client.token_expires(), Some(UNIX_EPOCH + seconds(expires)), "{text}");
    }
}

#[test]
fn the_end_of_an_old_token_is_not_that_of_the_new_one() {
    let github = FakeGitHub::start();
    let (client, _) = client_that_reads(&github, "ghp_new");
    github.set_token_expiration("2020-01-22 20:13:35 UTC");
    client.runners().unwrap();
    github.renew_token("ghp_new");
    github.misbehave("GET", 2, Fault::Answer(Reply::refusal(401, "Bad credentials")));
    client.runners().unwrap_err();
    assert_eq!(client.token_expires(), None);
}

// Checking.

#[test]
fn a_check_proves_the_right_to_register_and_leaves_no_runner() {
    let github = FakeGitHub::start();
    github.add_group(7, "Windows");
    let runner_group = "Windows".to_owned();
    let client = client(GitHubConfig { runner_group, ..settings(&github.url()) });
    assert_eq!(client.check(), Ok(Checked::default()));
    assert_eq!(github.runners().len(), 0);
    assert_eq!(github.count("POST /orgs/acme/actions/runners/registration-token"), 1);

    github.remove_group(7);
    let client = self::client(GitHubConfig { runner_group: "Windows".to_owned(), ..settings(&github.url()) });
    assert_says(&sentence(client.check()), &["\"Windows\"", "RUNNER_GROUP", "Default"]);
}

#[test]
fn a_check_names_a_read_only_token_a_missing_authorization_and_a_wrong_scope() {
    let github = FakeGitHub::start();
    let client = client(settings(&github.url()));
    let read_only = Reply::refusal(403, "Resource not accessible by personal access token");
    github.misbehave("POST", 1, Fault::Answer(read_only));
    assert_says(&sentence(client.check()), &["Self-hosted runners: write", "organization acme"]);
    let sso = Reply::refusal(403, "SAML").header("X-GitHub-SSO", "required; url=https://github.com/sso");
    github.misbehave("POST", 1, Fault::Answer(sso));
    assert_says(&sentence(client.check()), &["single sign-on"]);
    let client = self::client(GitHubConfig { org: "acmee".to_owned(), ..settings(&github.url()) });
    assert_says(&sentence(client.check()), &["organization acmee", "GITHUB_ORG"]);
}

#[test]
fn a_check_warns_when_the_queued_jobs_of_a_repository_cannot_be_read() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    let repo = Some("widgets".to_owned());
    let client = client(GitHubConfig { repo, ..settings(&github.url()) });
    assert_eq!(client.check(), Ok(Checked::default()));
    github.misbehave("/actions/runs", 1, Fault::Answer(Reply::refusal(403, "Resource not accessible")));
    let warnings = client.check().unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert_says(&warnings[0], &["Queued jobs", "\"Actions: read\"", "repository acme/widgets"]);
}

// Queued jobs.

fn repository_client(github: &FakeGitHub) -> Client {
    client(GitHubConfig { repo: Some("widgets".to_owned()), ..settings(&github.url()) })
}

#[test]
fn the_queued_jobs_of_a_repository_are_those_of_its_queued_and_running_runs() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    github.add_run(1, "queued", &[(11, "queued", "Windows"), (12, "waiting", "Windows")]);
    github.add_run(2, "in_progress", &[(21, "completed", "Windows"), (22, "queued", "gpu")]);
    github.add_run(3, "completed", &[(31, "completed", "Windows")]);
    let job = |id, label: &str| QueuedJob { id, labels: vec![label.to_owned()] };
    assert_eq!(repository_client(&github).queued_jobs(), Ok(vec![job(11, "Windows"), job(22, "gpu")]));
    assert_eq!(github.count("filter=latest"), 2);
}

#[test]
fn all_queued_jobs_of_a_large_run_are_listed() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    let jobs: Vec<_> = (0..250).map(|id| (id, "queued", "Windows")).collect();
    github.add_run(1, "queued", &jobs);
    assert_eq!(repository_client(&github).queued_jobs().unwrap().len(), 250);
}

#[test]
fn listing_queued_jobs_has_a_bounded_cost() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    (0..200).for_each(|run| github.add_run(run, "queued", &[(run, "queued", "Windows")]));
    assert_eq!(repository_client(&github).queued_jobs().unwrap().len(), 50);
    assert_eq!(github.requests().len(), 52);
}

#[test]
fn a_run_that_was_deleted_meanwhile_has_no_queued_jobs() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    github.add_run(1, "queued", &[(11, "queued", "Windows")]);
    github.add_run(2, "queued", &[(21, "queued", "Windows")]);
    github.misbehave("/runs/1/jobs", 1, Fault::Answer(Reply::refusal(404, "Not Found")));
    let jobs = repository_client(&github).queued_jobs().unwrap();
    assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [21]);
}

#[test]
fn a_token_that_may_not_read_actions_lists_no_jobs() {
    let github = FakeGitHub::start_for("/repos/acme/widgets");
    github.misbehave("/actions/runs", 1, Fault::Answer(Reply::refusal(403, "Resource not accessible")));
    let error = repository_client(&github).queued_jobs().unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert_says(&error.to_string(), &["\"Actions: read\"", "repository acme/widgets"]);
}

#[test]
fn an_organization_lists_no_queued_jobs() {
    let github = FakeGitHub::start();
    assert_eq!(client(settings(&github.url())).queued_jobs(), Ok(vec![]));
    assert_eq!(github.requests().len(), 0);
}

#[test]
fn a_server_error_is_called_one() {
    let github = FakeGitHub::start();
    github.misbehave("GET", usize::MAX, Fault::Answer(Reply::refusal(502, "Bad Gateway")));
    let why = sentence(client(settings(&github.url())).runners());
    assert_says(&why, &["127.0.0.1 returned a server error (502)"]);
}

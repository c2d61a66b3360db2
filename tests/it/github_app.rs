//! How the GitHub client signs in as a GitHub App.

use crate::github_client::{TestClock, assert_says, seconds, settings};
use crate::support::fake_github::{FakeGitHub, Fault, Reply};
use hyperv_runner_pool::config::{Credential, GitHubConfig};
use hyperv_runner_pool::github::client::{Checked, Client, REQUEST_TIMEOUT};
use hyperv_runner_pool::github::clock::Clock;
use hyperv_runner_pool::github::scope::Scope;
use hyperv_runner_pool::github::{Error, GitHub};
use hyperv_runner_pool::private_key::PrivateKey;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

const APP: &str = "Iv23liAbCdEfGhIjKlMn";
const SIGN_IN: &str = "acme/installation";
const NEW_TOKEN: &str = "/access_tokens";

fn key(name: &str) -> PrivateKey {
    PrivateKey::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/github-app").join(name)).unwrap()
}

/// A GitHub with the App, a client of it, and their clock.
struct World {
    github: FakeGitHub,
    clock: Arc<TestClock>,
    client: Client,
    /// What the settings hold by now.
    current: Arc<Mutex<Option<PrivateKey>>>,
}

impl World {
    fn of_organization() -> World {
        World::new(
            None,
            json!({"organization_self_hosted_runners": "write", "metadata": "read", "issues": "write"}),
        )
    }

    fn of_repository(permissions: Value) -> World {
        World::new(Some("widgets"), permissions)
    }

    fn new(repo: Option<&str>, permissions: Value) -> World {
        let github = FakeGitHub::start_for(repo.map_or("/orgs/acme", |_| "/repos/acme/widgets"));
        github.add_app(APP, key("pkcs1.pem"), permissions);
        let clock = TestClock::new();
        github.set_time(clock.utc());
        let config = GitHubConfig {
            pat: None,
            app_id: Some(APP.to_owned()),
            app_key: Some(key("pkcs1.pem")),
            repo: repo.map(str::to_owned),
            ..settings(&github.url())
        };
        let current = Arc::new(Mutex::new(None));
        let now = Arc::clone(&current);
        let read = move || now.lock().unwrap().clone().map(|key| Credential::App { id: APP.to_owned(), key });
        let client = Client::with(&config, Box::new(read), REQUEST_TIMEOUT, Arc::clone(&clock) as _).unwrap();
        World { github, clock, client, current }
    }

    fn pass(&self, time: Duration) {
        self.clock.forward(time);
        self.github.set_time(self.clock.utc());
    }

    fn tokens_made(&self) -> usize {
        self.github.count(NEW_TOKEN)
    }

    /// What was asked for with the last token.
    fn asked(&self) -> Value {
        let requests = self.github.requests();
        let request = requests.iter().rfind(|request| request.target.ends_with(NEW_TOKEN)).unwrap();
        serde_json::from_slice(&request.body).unwrap()
    }

    /// Why the runners cannot be listed.
    fn refusal(&self) -> String {
        let error = self.client.runners().unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains("ghs_") && !text.contains("eyJ"), "{text}");
        text
    }
}

#[test]
fn an_app_gets_a_token_for_the_runners_and_nothing_else_and_keeps_it() {
    let world = World::of_organization();
    let id = world.client.register("runner-1").unwrap().runner_id.unwrap();
    world.client.remove(world.client.scope(), id).unwrap();
    assert_eq!(world.client.runners(), Ok(vec![]));
    assert_eq!(world.asked(), json!({"permissions": {"organization_self_hosted_runners": "write"}}));
    assert_eq!((world.github.count(SIGN_IN), world.tokens_made()), (1, 1));
    assert_eq!(world.client.check(), Ok(Checked::default()));
    assert_eq!(world.client.token_expires(), None, "nobody has to renew it");
}

#[test]
fn a_token_for_a_repository_is_good_for_that_repository_only() {
    let world =
        World::of_repository(json!({"administration": "write", "actions": "write", "contents": "read"}));
    world.client.register("runner-1").unwrap();
    let permissions = json!({"administration": "write", "actions": "read"});
    assert_eq!(world.asked(), json!({"permissions": permissions, "repositories": ["widgets"]}));
    assert_eq!(world.client.check(), Ok(Checked::default()));
    assert_eq!(world.client.queued_jobs(), Ok(vec![]));
}

#[test]
fn an_app_that_may_not_read_actions_registers_runners_and_the_check_warns() {
    let world = World::of_repository(json!({"administration": "write"}));
    world.client.register("runner-1").unwrap();
    assert_eq!(world.asked()["permissions"], json!({"administration": "write"}));
    let warnings = world.client.check().unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert_says(&warnings[0], &["Queued jobs", "GitHub App", "\"Actions: read\"", "repository acme/widgets"]);
    assert!(!warnings[0].contains("fine-grained"), "{warnings:?}");
}

#[test]
fn a_token_is_replaced_five_minutes_before_it_expires_by_one_thread_for_all() {
    let world = World::of_organization();
    world.client.runners().unwrap();
    world.pass(seconds(54 * 60 + 59));
    world.client.runners().unwrap();
    assert_eq!(world.tokens_made(), 1);
    world.pass(seconds(1));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.client.runners().unwrap());
        }
    });
    assert_eq!((world.github.count(SIGN_IN), world.tokens_made()), (2, 2));
}

#[test]
fn a_sign_in_that_fails_leaves_the_token_that_is_still_good() {
    let world = World::of_organization();
    world.client.runners().unwrap();
    world.pass(seconds(56 * 60));
    world.github.misbehave(SIGN_IN, usize::MAX, Fault::Answer(Reply::refusal(502, "Bad Gateway")));
    for _ in 0..3 {
        assert_eq!(world.client.runners(), Ok(vec![]));
    }
    assert_eq!(
        (world.github.count(SIGN_IN), world.tokens_made()),
        (4, 1),
        "one sign-in, with its three tries"
    );
    world.pass(seconds(4 * 60));
    assert_says(
        &world.client.runners().unwrap_err().to_string(),
        &["cannot sign in as the GitHub App", "(502)"],
    );
    world.github.behave();
    assert_eq!(world.client.runners(), Ok(vec![]));
}

#[test]
fn the_life_of_a_token_is_measured_by_githubs_clock() {
    let world = World::of_organization();
    // Right enough for a sign-in, and wrong by more than a token's last minutes.
    world.github.change_app(|app| app.token_life = seconds(310));
    world.github.set_time(world.clock.utc() + seconds(50));
    world.client.runners().unwrap();
    world.client.runners().unwrap();
    assert_eq!(world.tokens_made(), 1);
}

#[test]
fn a_refused_token_is_replaced_once_and_a_young_one_not_at_all() {
    let world = World::of_organization();
    world.client.runners().unwrap();
    world.pass(seconds(60));
    world.github.change_app(|app| app.revoke_tokens());
    assert_eq!(world.client.runners(), Ok(vec![]));
    assert_eq!(world.tokens_made(), 2);

    world.github.misbehave("/actions/", usize::MAX, Fault::Answer(Reply::refusal(401, "Bad credentials")));
    let before = world.github.requests().len();
    assert_says(
        &world.refusal(),
        &["cannot list the runners", "the GitHub App Iv23", "(401)", "Bad credentials"],
    );
    assert_eq!((world.github.requests().len() - before, world.tokens_made()), (1, 2), "it is young");
    world.pass(seconds(60));
    world.refusal();
    assert_eq!(world.tokens_made(), 3, "the new one is refused too");
}

#[test]
fn tokens_that_are_refused_together_are_replaced_by_one() {
    let world = World::of_organization();
    world.client.runners().unwrap();
    world.pass(seconds(60));
    world.github.change_app(|app| app.revoke_tokens());
    // All of them are on their way before the first is refused.
    world.github.misbehave("/actions/", 4, Fault::Slow(Duration::from_millis(300)));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.client.runners().unwrap());
        }
    });
    assert_eq!(world.tokens_made(), 2);
}

#[test]
fn a_sign_in_that_fails_is_not_repeated_by_those_who_waited_for_it() {
    let world = World::of_organization();
    world.github.change_app(|app| app.installed = false);
    world.github.misbehave(SIGN_IN, 1, Fault::Slow(Duration::from_secs(5)));
    let together = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                world.refusal();
            });
        }
    });
    assert_eq!(world.github.requests().len(), 1);
    world.github.change_app(|app| app.installed = true);
    assert_eq!(world.client.runners(), Ok(vec![]), "the next call tries again");
}

#[test]
fn a_wrong_clock_does_not_keep_an_app_out() {
    for ahead in [true, false] {
        let world = World::of_organization();
        let (hour, time) = (seconds(3600), world.clock.utc());
        world.github.set_time(if ahead { time - hour } else { time + hour });
        assert_eq!(world.client.runners(), Ok(vec![]));
        assert_eq!((world.github.count(SIGN_IN), world.tokens_made()), (2, 1), "refused, and again");
        world.clock.forward(seconds(3300));
        world.github.set_time(if ahead { time - seconds(300) } else { time + seconds(6900) });
        assert_eq!(world.client.runners(), Ok(vec![]));
        assert_eq!(
            (world.github.count(SIGN_IN), world.tokens_made()),
            (3, 2),
            "GitHub's time is known by now"
        );
    }
}

#[test]
fn a_key_that_was_replaced_is_taken_without_a_restart() {
    let world = World::of_organization();
    world.client.runners().unwrap();
    world.github.change_app(|app| app.key = key("other.pem"));
    *world.current.lock().unwrap() = Some(key("other.pem"));
    world.pass(seconds(3600));
    assert_eq!(world.client.runners(), Ok(vec![]));
    *world.current.lock().unwrap() = None;
    world.pass(seconds(3600));
    assert_eq!(world.client.runners(), Ok(vec![]), "a file that cannot be read leaves the last key");
}

#[test]
fn an_app_that_is_not_installed_is_named_with_the_account() {
    let world = World::of_organization();
    world.github.change_app(|app| app.installed = false);
    let why = world.refusal();
    assert_says(&why, &[APP, "is not installed for the organization acme", "(404)", "GITHUB_ORG"]);
    let world = World::of_repository(json!({"administration": "write"}));
    world.github.change_app(|app| app.installed = false);
    assert_says(&world.refusal(), &[APP, "is not installed for acme", "repository widgets", "GITHUB_REPO"]);
    assert!(world.client.check().unwrap_err().to_string().contains("is not installed for acme"));
}

#[test]
fn a_missing_permission_is_named_as_githubs_settings_name_it() {
    let world =
        World::new(None, json!({"organization_self_hosted_runners": "read", "administration": "write"}));
    let why = world.refusal();
    assert_says(&why, &[APP, "\"Self-hosted runners: read and write\"", "organization acme", "accept"]);
    let world = World::of_repository(json!({"actions": "read"}));
    assert_says(&world.refusal(), &["\"Administration: read and write\"", "repository acme/widgets"]);
    assert_eq!(world.tokens_made(), 0);
}

#[test]
fn a_suspended_app_a_wrong_id_and_a_deleted_key_are_told_apart() {
    let world = World::of_organization();
    world.github.change_app(|app| app.suspended = true);
    assert_says(&world.refusal(), &[APP, "suspended for acme"]);

    world.github.change_app(|app| app.id = "12345".to_owned());
    assert_says(&world.refusal(), &[APP, "does not know it", "GITHUB_APP_ID", "Integration not found"]);

    world.github.change_app(|app| (app.id, app.key) = (APP.to_owned(), key("other.pem")));
    let why = world.refusal();
    assert_says(&why, &[APP, "private key", "(401)", "GITHUB_APP_PRIVATE_KEY_PATH", "could not be decoded"]);
}

#[test]
fn a_token_that_is_not_given_is_explained() {
    for (status, refused) in [(403, true), (404, true), (422, false), (500, false)] {
        let world = World::of_organization();
        world.github.misbehave(NEW_TOKEN, 9, Fault::Answer(Reply::refusal(status, "no token today")));
        let error = world.client.runners().unwrap_err();
        assert_says(
            &error.to_string(),
            &["cannot sign in as the GitHub App", &status.to_string(), "no token today"],
        );
        assert_eq!(matches!(error, Error::Refused(_)), refused, "{error:?}");
        assert_eq!(world.tokens_made(), 1, "a POST is sent once");
    }
}

#[test]
fn half_an_answer_to_a_sign_in_is_an_error_without_the_token() {
    for part in [SIGN_IN, NEW_TOKEN] {
        let world = World::of_organization();
        world.github.misbehave(part, 1, Fault::HalfTheJson);
        let error = world.client.runners().unwrap_err();
        assert_says(&error.to_string(), &["cannot sign in as the GitHub App", "not the JSON"]);
        assert!(!error.to_string().contains("ghs_"), "{error}");
        assert_eq!(world.client.runners(), Ok(vec![]), "the next call tries again");
    }
}

#[test]
fn a_used_up_rate_limit_holds_back_sign_ins_too() {
    let world = World::of_organization();
    let limit = Reply::refusal(403, "You have exceeded a secondary rate limit").header("Retry-After", 42);
    world.github.misbehave(SIGN_IN, 1, Fault::Answer(limit));
    for _ in 0..2 {
        assert!(matches!(world.client.runners(), Err(Error::RateLimited { .. })));
    }
    assert_eq!(world.github.requests().len(), 1);
    world.pass(seconds(42));
    assert_eq!(world.client.runners(), Ok(vec![]));
}

#[test]
fn each_scope_has_a_token_of_its_own() {
    let world = World::of_repository(json!({"administration": "write"}));
    let old = Scope { repository: Some("old".to_owned()), ..world.client.scope().clone() };
    world.client.runners().unwrap();
    let error = world.client.runner_by_id(&old, 1).unwrap_err();
    assert_says(&error.to_string(), &["is not installed for acme", "repository old"]);
    assert_eq!(world.client.runners(), Ok(vec![]));
    assert_eq!(world.tokens_made(), 1, "the pool's own token is kept");
}

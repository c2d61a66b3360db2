//! The pool signs in as a GitHub App.

use super::degraded_because;
use crate::support::host_pool::{HostWorld, News};
use crate::support::wait_until;
use hyperv_runner_pool::private_key::PrivateKey;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// What stands in the environment otherwise.
const NO_TOKEN: [(&str, &str); 1] = [("GITHUB_PAT", "")];

/// A host whose pool has the App's key beside its settings, and a GitHub with the App.
fn world(permissions: Value) -> HostWorld {
    let world = HostWorld::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/github-app/pkcs8.pem");
    std::fs::copy(&data, world.host.folder().join("app.pem")).unwrap();
    let dotenv = "GITHUB_APP_ID=123456\nGITHUB_APP_PRIVATE_KEY_PATH=app.pem\n";
    std::fs::write(world.host.folder().join(".env"), dotenv).unwrap();
    world.github.add_app("123456", PrivateKey::read(&data).unwrap(), permissions);
    world
}

#[test]
fn a_pool_lives_on_the_tokens_of_an_app_and_shows_none() {
    let world = world(json!({"organization_self_hosted_runners": "write"}));
    // Each is replaced after two seconds.
    world.github.change_app(|app| app.token_life = Duration::from_secs(302));
    let pool = world.start(&[NO_TOKEN[0], ("LOG_LEVEL", "trace")]);
    world.wait_until_whole(&pool, 2);
    world.start_job(&pool, "runner-1", 7, News::Webhook);
    pool.wait_for_state("runner-1", "running");
    world.end_job(&pool, "runner-1", 7, News::Callback);
    world.wait_until_whole(&pool, 2);
    wait_until("the token was replaced", || {
        world.github.count("POST /app/installations/7/access_tokens") >= 3
    });
    let shown = ["/", "/health", "/metrics", "/api/status"].map(|path| pool.get(path).body).concat();
    let shown = format!("{shown}{}{}", pool.log(), pool.output());
    pool.stop();
    world.assert_empty();
    for secret in ["ghs_", "eyJ", "PRIVATE KEY", "MIIE"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(!shown.contains("expires in"), "nobody has to renew it: {shown}");
}

#[test]
fn an_app_that_is_removed_is_named_and_used_again_when_it_is_back() {
    let world = world(json!({"organization_self_hosted_runners": "write"}));
    world.github.change_app(|app| app.installed = false);
    let mut pool = world.start(&NO_TOKEN);
    let reason = degraded_because(&mut pool);
    assert!(reason.contains("GitHub App 123456") && reason.contains("not installed"), "{reason}");
    world.github.change_app(|app| app.installed = true);
    world.wait_until_whole(&pool, 2);
    pool.stop();
}

#[test]
fn check_says_whether_the_app_may_register_runners() {
    let world = world(json!({"organization_self_hosted_runners": "write"}));
    let check = || {
        let output = world.command(&NO_TOKEN).arg("check").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = check();
    assert!(
        told.contains("ok       The GitHub App 123456 may register runners for organization acme"),
        "{told}"
    );
    world.github.change_app(|app| app.permissions = json!({"organization_self_hosted_runners": "read"}));
    let told = check();
    assert!(
        told.contains("fault    GitHub cannot be used: cannot sign in as the GitHub App 123456"),
        "{told}"
    );
    assert!(told.contains("Self-hosted runners: read and write"), "{told}");
}

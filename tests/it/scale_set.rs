//! What the client makes of GitHub's runner scale sets, and of their faults.

use crate::github_client::{sentence, settings};
use crate::support::fake_github::{FakeGitHub, Fault, Reply};
use hyperv_runner_pool::config::{GitHubConfig, Intake};
use hyperv_runner_pool::github::client::Client;
use hyperv_runner_pool::github::queue::{JobQueue, Opened, QueueError, QueueEvent, Statistics};
use hyperv_runner_pool::github::{Error, GitHub};
use serde_json::json;

fn config(github: &FakeGitHub) -> GitHubConfig {
    GitHubConfig { intake: Intake::ScaleSet, scale_set: "build".into(), ..settings(&github.url()) }
}

fn client(github: &FakeGitHub) -> Client {
    Client::new(&config(github), Box::new(|| None)).unwrap()
}

fn refused(outcome: Result<impl std::fmt::Debug, QueueError>) -> String {
    match outcome {
        Err(QueueError::Other(Error::Refused(why))) => why,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn the_first_start_makes_the_scale_set_with_the_pools_labels_and_no_updates_and_the_next_finds_it() {
    let github = FakeGitHub::start();
    let first = client(&github).open().unwrap();
    let sets = github.scale_sets();
    assert_eq!((sets.len(), sets[0].name.as_str(), sets[0].group), (1, "build", 1));
    assert_eq!((sets[0].labels.clone(), sets[0].disable_update), (config(&github).labels, true));
    assert_eq!((first.scale_set, first.warnings), (sets[0].id, vec![]));

    github.end_session("build");
    assert_eq!(client(&github).open().unwrap().scale_set, sets[0].id);
    assert_eq!(github.scale_sets().len(), 1);
}

#[test]
fn it_is_made_in_the_pools_runner_group() {
    let github = FakeGitHub::start();
    github.add_group(7, "Windows");
    let group = |name: &str| GitHubConfig { runner_group: name.into(), ..config(&github) };
    let missing = Client::new(&group("Linux"), Box::new(|| None)).unwrap().open();
    let QueueError::Other(why) = missing.unwrap_err() else { panic!() };
    assert!(why.to_string().contains("no runner group \"Linux\""), "{why}");
    Client::new(&group("Windows"), Box::new(|| None)).unwrap().open().unwrap();
    assert_eq!(github.scale_sets()[0].group, 7);
}

#[test]
fn a_scale_set_with_another_label_or_in_another_group_is_refused_and_left_as_it_is() {
    let github = FakeGitHub::start();
    let id = github.add_scale_set("build", 1, &["self-hosted", "gpu"]);
    let why = refused(client(&github).open());
    for part in
        ["\"build\"", "organization acme", "labels that RUNNER_LABELS does not have (gpu)", "SCALE_SET_NAME"]
    {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(github.session_owner("build"), None);

    github.remove_scale_set("build");
    github.add_scale_set("build", 9, &["self-hosted", "Windows"]);
    let why = refused(client(&github).open());
    assert!(why.contains("runner group \"group 9\", and RUNNER_GROUP is \"Default\""), "{why}");
    assert!(github.scale_sets().len() == 1 && github.scale_sets()[0].id != id);
}

#[test]
fn labels_that_github_drops_are_named_each_time() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.drops = vec!["Windows".into()]);
    for _ in 0..2 {
        let client = client(&github);
        let opened = client.open().unwrap();
        assert_eq!(opened.warnings.len(), 1);
        assert!(opened.warnings[0].contains("lacks the labels Windows"), "{:?}", opened.warnings);
        client.close().unwrap();
    }
}

#[test]
fn a_server_that_takes_the_sets_name_alone_for_a_label_gives_a_set_that_is_the_pools_and_lacks_labels() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.only_the_name = true);
    let lacks = format!("lacks the labels {}, so", config(&github).labels.join(", "));
    // The first makes it, the second finds it.
    for _ in 0..2 {
        let client = client(&github);
        let Opened { warnings, .. } = client.open().unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains(&lacks) && warnings[0].ends_with("set runs-on to build"),
            "{warnings:?}"
        );
        client.close().unwrap();
    }
    assert_eq!(github.scale_sets().len(), 1);
    assert_eq!(client(&github).check().unwrap().warnings.len(), 1);
}

#[test]
fn the_sets_own_name_beside_the_pools_labels_is_nobody_elses_and_hides_no_label_that_is() {
    let github = FakeGitHub::start();
    github.add_scale_set("build", 1, &["Build", "self-hosted", "Windows"]);
    assert_eq!(client(&github).open().unwrap().warnings, Vec::<String>::new());

    github.remove_scale_set("build");
    github.add_scale_set("build", 1, &["build", "gpu"]);
    assert!(refused(client(&github).open()).contains("does not have (gpu)"));
}

#[test]
fn two_pools_that_make_the_scale_set_at_once_have_one() {
    let github = FakeGitHub::start();
    github.add_scale_set("build", 1, &["self-hosted", "Windows"]);
    // Neither sees it yet.
    let none = Reply::json(200, &json!({"count": 0, "value": []}));
    github.misbehave("GET /service/_apis/runtime/runnerscalesets?name", 2, Fault::Answer(none));
    client(&github).open().unwrap();
    assert_eq!(github.scale_sets().len(), 1);
}

#[test]
fn a_job_is_told_of_from_assigned_to_completed_and_a_message_comes_until_it_is_acknowledged() {
    let github = FakeGitHub::start();
    let client = client(&github);
    assert_eq!(client.open().unwrap().statistics, Statistics::default());
    assert_eq!(client.next(0, 5), Ok(None), "after a while, nothing");
    assert_eq!(github.announced_capacity().as_deref(), Some("5"));

    let job = github.queue_job("build");
    let assigned = client.next(0, 5).unwrap().unwrap();
    assert!(
        matches!(&assigned.events[..], [QueueEvent::Assigned(job)] if job.name.as_deref() == Some("build"))
    );
    assert_eq!(assigned.statistics, Some(Statistics { assigned: 1, running: 0 }));
    assert_eq!(client.next(0, 5).unwrap().unwrap(), assigned);
    client.acknowledge(assigned.id).unwrap();
    assert_eq!(github.unread("build"), 0);

    let runner = client.register("runner-1-ab").unwrap().runner_id;
    github.take_job(job, "runner-1-ab", true);
    let started = client.next(assigned.id, 5).unwrap().unwrap();
    let [QueueEvent::Started(its)] = &started.events[..] else { panic!("{started:?}") };
    assert_eq!((its.runner_id, its.runner_name.as_deref()), (runner, Some("runner-1-ab")));
    assert_eq!((its.run_id, its.repository.as_deref()), (Some(70), Some("acme/app")));
    assert_eq!(its.waited.unwrap().as_secs(), 7);

    github.end_queued_job(job, "succeeded", true);
    let completed = client.next(started.id, 5).unwrap().unwrap();
    assert!(
        matches!(&completed.events[..], [QueueEvent::Completed(job)] if job.result.as_deref() == Some("succeeded"))
    );
}

#[test]
fn a_server_that_offers_jobs_assigns_those_that_are_acquired() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.offers = true);
    let client = client(&github);
    client.open().unwrap();
    let job = github.queue_job("build") as i64;
    let offer = client.next(0, 5).unwrap().unwrap();
    assert_eq!((offer.events, offer.statistics.unwrap().assigned), (vec![QueueEvent::Available(job)], 0));
    github.expire_queue_token("build");
    assert_eq!(client.acquire(&[job]), Err(QueueError::Expired));
    client.refresh().unwrap();
    client.acquire(&[job]).unwrap();
    assert_eq!(client.next(offer.id, 5).unwrap().unwrap().statistics.unwrap().assigned, 1);
}

#[test]
fn offered_jobs_that_are_not_there_any_more_end_no_session() {
    let github = FakeGitHub::start();
    let client = client(&github);
    client.open().unwrap();
    github.misbehave("acquirejobs", 1, Fault::Answer(Reply::refusal(404, "no such job")));
    assert!(matches!(client.acquire(&[7]), Err(QueueError::Other(Error::Failed(_)))));
    github.remove_scale_set("build");
    assert_eq!(client.acquire(&[7]), Err(QueueError::SessionGone));
}

#[test]
fn an_expired_access_to_the_queue_is_renewed_or_the_session_is_over() {
    let github = FakeGitHub::start();
    let client = client(&github);
    client.open().unwrap();
    github.expire_queue_token("build");
    assert_eq!(client.next(0, 5), Err(QueueError::Expired));
    assert_eq!(client.acknowledge(1), Err(QueueError::Expired));
    assert_eq!(client.refresh(), Ok(Some(Statistics::default())));
    assert_eq!(client.next(0, 5), Ok(None));

    github.wish(|wishes| wishes.hides_count = true);
    assert_eq!(client.refresh(), Ok(None), "a count that is not there is not zero");

    github.wish(|wishes| wishes.refuses_renewal = true);
    assert_eq!(client.refresh(), Err(QueueError::SessionGone));
    assert_eq!(client.next(0, 5), Err(QueueError::SessionGone));
    client.open().unwrap();
    assert_eq!(client.next(0, 5), Ok(None));
}

#[test]
fn a_session_that_another_holds_is_named_with_its_owner() {
    let github = FakeGitHub::start();
    client(&github).open().unwrap();
    let Err(QueueError::InUse(why)) = client(&github).open() else { panic!() };
    assert!(why.contains("already has an active session for owner hyperv-runner-pool on"), "{why}");
}

#[test]
fn a_closed_session_is_free_at_once_and_closing_one_that_is_over_is_no_error() {
    let github = FakeGitHub::start();
    let client = client(&github);
    client.close().unwrap();
    client.open().unwrap();
    client.close().unwrap();
    assert_eq!(github.session_owner("build"), None);
    assert_eq!(client.next(0, 5), Err(QueueError::SessionGone));

    client.open().unwrap();
    github.end_session("build");
    client.close().unwrap();
    self::client(&github).open().unwrap();
}

#[test]
fn a_scale_set_that_github_has_removed_is_made_again() {
    let github = FakeGitHub::start();
    let client = client(&github);
    let before = client.open().unwrap().scale_set;
    github.remove_scale_set("build");
    assert_eq!(client.next(3, 5), Err(QueueError::SessionGone));
    assert_eq!(client.open(), Err(QueueError::ScaleSetGone));
    let after = client.open().unwrap().scale_set;
    assert_ne!(after, before);

    github.remove_scale_set("build");
    assert!(matches!(client.register("runner-1-ab"), Err(Error::Failed(_))));
    client.register("runner-1-ab").unwrap();
    assert_eq!((github.scale_sets().len(), github.runners().len()), (1, 1));
}

#[test]
fn a_session_without_the_address_of_its_queue_is_closed_and_tried_again() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.without_address = 1);
    let client = client(&github);
    assert!(
        matches!(client.open(), Err(QueueError::Other(Error::Failed(why))) if why.contains("no address"))
    );
    assert_eq!(github.session_owner("build"), None);
    client.open().unwrap();
}

#[test]
fn runners_are_registered_by_the_scale_set_and_a_name_that_is_taken_is_told() {
    let github = FakeGitHub::start();
    let client = client(&github);
    let registered = client.register("runner-1-ab").unwrap();
    let listed = client.runners().unwrap();
    assert_eq!((listed.len(), Some(listed[0].id)), (1, registered.runner_id));
    assert_eq!(client.register("runner-1-ab"), Err(Error::NameTaken));
    assert_eq!(github.count("generate-jitconfig"), 0);
    assert_eq!(github.count("runner-registration"), 1, "one sign-in for all");
}

#[test]
fn the_pool_signs_in_again_before_its_token_ends_and_when_it_is_refused() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.admin_token_life = 30);
    let client = client(&github);
    client.register("runner-1-ab").unwrap();
    let before = github.count("runner-registration");
    client.register("runner-2-ab").unwrap();
    assert!(github.count("runner-registration") > before, "less than a minute was left");

    github.wish(|wishes| wishes.admin_token_life = 3600);
    client.register("runner-3-ab").unwrap();
    github.expire_admin_token();
    let before = github.count("runner-registration");
    client.register("runner-4-ab").unwrap();
    assert_eq!(github.count("runner-registration"), before + 1);
}

#[test]
fn a_registration_token_that_is_not_known_everywhere_yet_is_tried_again() {
    let github = FakeGitHub::start();
    github.misbehave("runner-registration", 1, Fault::Answer(Reply::refusal(401, "Bad credentials")));
    github.misbehave("runner-registration", 1, Fault::Answer(Reply::refusal(403, "not yet")));
    client(&github).open().unwrap();
}

#[test]
fn a_token_without_the_right_is_named_with_what_it_needs() {
    let github = FakeGitHub::start();
    let read_only = Reply::refusal(403, "Resource not accessible by personal access token");
    github.misbehave("registration-token", 9, Fault::Answer(read_only));
    assert!(refused(client(&github).open()).contains("Self-hosted runners: write"));
}

#[test]
fn an_address_where_nobody_listens_is_named_and_a_failure_shows_no_secret() {
    let github = FakeGitHub::start();
    github.wish(|wishes| wishes.address = Some("http://127.0.0.1:9/elsewhere".into()));
    let why = client(&github).open().unwrap_err().to_string();
    assert!(why.contains("no answer from 127.0.0.1"), "{why}");

    let github = FakeGitHub::start();
    let client = client(&github);
    client.open().unwrap();
    let token =
        github.requests().iter().rev().find_map(|seen| seen.headers.get("authorization").cloned()).unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    let reply = Reply::json(500, &json!({"typeName": "X", "message": format!("no, {token}")}));
    github.misbehave("generatejitconfig", 1, Fault::Answer(reply));
    let why = client.register("runner-1-ab").unwrap_err().to_string();
    assert!(why.contains("answered 500. GitHub says: no, ***"), "{why}");
}

#[test]
fn a_rate_limit_of_the_service_says_how_long_to_wait() {
    let github = FakeGitHub::start();
    let client = client(&github);
    for status in [429, 403] {
        let limited = Reply::refusal(status, "slow down").header("Retry-After", 90);
        github.misbehave("generatejitconfig", 1, Fault::Answer(limited));
        let Err(Error::RateLimited { retry_after, .. }) = client.register("runner-1-ab") else { panic!() };
        assert_eq!(retry_after.as_secs(), 90);
    }
    // A longer time than any window is a mistake somewhere, and must not stop the pool for good.
    let limited = Reply::refusal(429, "slow down").header("Retry-After", u64::MAX);
    github.misbehave("generatejitconfig", 1, Fault::Answer(limited));
    let Err(Error::RateLimited { retry_after, .. }) = client.register("runner-1-ab") else { panic!() };
    assert_eq!(retry_after.as_secs(), 3600);
}

#[test]
fn the_check_says_how_the_scale_set_is_and_makes_none() {
    let github = FakeGitHub::start();
    let client = client(&github);
    let fact = || client.check().unwrap().facts.remove(0);
    assert_eq!(fact(), "The runner scale set build is made when the pool starts.");
    assert_eq!(github.scale_sets().len(), 0);

    github.add_scale_set("build", 1, &["self-hosted"]);
    assert_eq!(fact(), "The runner scale set build is there, and no pool listens to its queue.");
    assert_eq!(github.session_owner("build"), None);
    assert!(client.check().unwrap().warnings[0].contains("lacks the labels Windows"));

    github.take_session("build", "hyperv-runner-pool on elsewhere");
    assert!(fact().ends_with("for owner hyperv-runner-pool on elsewhere."), "{}", fact());

    github.remove_scale_set("build");
    github.add_scale_set("build", 1, &["gpu"]);
    assert!(sentence(client.check()).contains("is not this pool's"));
}

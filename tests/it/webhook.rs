//! `POST /webhook`: which deliveries are taken, and what they do.

use crate::support::delivery::workflow_job;
use crate::support::http::{Connection, Response};
use crate::support::mock_pool::{MockPool, MockWorld, Phase, Stop, settings};
use crate::support::wait_until;

fn queued() -> String {
    workflow_job("queued", 1, None)
}

/// A pool that knows what is there, and makes a VM for a job only.
fn one_empty(world: &MockWorld) -> MockPool {
    let pool = world.start(settings(1, 0));
    pool.wait_for(Phase::Empty, 1);
    pool
}

fn signed(pool: &MockPool, event: &str, body: &[u8]) -> Response {
    let signature = pool.keys.sign_webhook(body);
    let headers = [("X-Hub-Signature-256", &*signature), ("X-GitHub-Event", event)];
    pool.request("POST", "/webhook", &headers, body)
}

#[test]
fn a_delivery_without_a_right_signature_is_refused_and_changes_nothing() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    let body = queued();
    let missing = pool.request("POST", "/webhook", &[("X-GitHub-Event", "workflow_job")], body.as_bytes());
    assert_eq!((missing.status, &*missing.body), (401, "Missing signature"));
    let right = pool.keys.sign_webhook(body.as_bytes());
    let other_body = pool.keys.sign_webhook(b"{}");
    let mut wrong = vec!["sha1=00".to_owned(), format!("{right}0"), other_body];
    // The right one, cut off or repeated.
    wrong.extend((0..right.len()).chain([72, 80, 100, 1000, 10_000]).map(|length| {
        let mut signature = right.repeat(length / right.len() + 1);
        signature.truncate(length);
        signature
    }));
    let mut connection = Connection::open(&pool.url);
    for signature in wrong {
        let headers = [("X-Hub-Signature-256", &*signature)];
        let answer = connection.request("POST", "/webhook", &headers, body.as_bytes());
        assert_eq!((answer.status, &*answer.body), (401, "Invalid signature"), "{signature:?}");
    }
    assert_eq!(pool.jobs_waiting(), 0);
    assert_eq!(pool.phase(1), Phase::Empty);
    assert_eq!(signed(&pool, "workflow_job", body.as_bytes()).status, 200);
    wait_until("the job is run", || pool.jobs_completed() == 1);
    pool.stop(Stop::Keep);
}

#[test]
fn a_signed_body_that_is_not_json_is_a_bad_request_that_says_what_to_do() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    assert_eq!(signed(&pool, "workflow_job", b"{\"action\":").status, 400);
    assert_eq!(signed(&pool, "ping", b"").status, 400);
    assert_eq!(signed(&pool, "workflow_job", b"[\xff]").status, 400);
    assert_eq!(signed(&pool, "workflow_job", b"other=%7B%7D").status, 400);
    assert_eq!(signed(&pool, "workflow_job", b"payload=%7B").status, 400);
    let Response { status, body: text, .. } = signed(&pool, "workflow_job", br#"{"action":"queued"}"#);
    assert_eq!(status, 400);
    assert!(text.contains("workflow_job"), "{text}");
    pool.stop(Stop::Keep);
}

#[test]
fn a_delivery_as_a_form_is_taken_with_the_signature_of_the_raw_body() {
    let world = MockWorld::with_silent_guests();
    let pool = one_empty(&world);
    let encoded: String = queued().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = format!("payload={encoded}");
    let of_the_json = [("X-Hub-Signature-256", &*pool.keys.sign_webhook(queued().as_bytes()))];
    assert_eq!(pool.request("POST", "/webhook", &of_the_json, form.as_bytes()).status, 401);
    assert_eq!(pool.jobs_waiting(), 0);
    assert_eq!(signed(&pool, "workflow_job", form.as_bytes()).body, "OK");
    assert_eq!(pool.jobs_waiting(), 1);
    pool.stop(Stop::Destroy);
}

#[test]
fn ping_and_other_events_are_taken_and_ignored() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    assert_eq!(signed(&pool, "ping", br#"{"zen":"Keep it logically awesome."}"#).status, 200);
    assert_eq!(signed(&pool, "push", queued().as_bytes()).status, 200);
    assert_eq!(pool.jobs_waiting(), 0);
    pool.stop(Stop::Keep);
}

#[test]
fn a_repeated_delivery_is_taken_and_ignored() {
    let world = MockWorld::with_endless_jobs();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(pool.deliver("same", &queued()).body, "OK");
    pool.wait_for(Phase::Running, 1);
    wait_until("the job waits no more", || pool.jobs_waiting() == 0);
    let repeated = pool.deliver("same", &queued());
    assert_eq!(repeated.status, 200);
    assert_ne!(repeated.body, "OK");
    assert_eq!(pool.jobs_waiting(), 0);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_bad_delivery_that_is_sent_again_mended_is_not_taken_for_a_repeat() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    assert_eq!(pool.deliver("once", r#"{"action":"queued"}"#).status, 400);
    assert_eq!(pool.deliver("once", &queued()).body, "OK");
    pool.stop(Stop::Keep);
}

#[test]
fn a_job_for_labels_that_the_pool_lacks_is_left_alone() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    let other = queued().replace("Windows", "ubuntu-latest");
    assert_eq!(pool.deliver("1", &other).body, "OK");
    assert_eq!(pool.jobs_waiting(), 0);
    pool.stop(Stop::Keep);
}

#[test]
fn a_delivery_is_about_a_vm_by_its_runners_id_and_name_and_ends_it_only_with_its_guests_word() {
    let world = MockWorld::with_silent_guests();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Booting, 1);
    let runner = pool.instance(1);
    let (id, name) = (runner.runner_id.unwrap(), &*runner.runner_name);
    let guest = pool.guest(1);
    assert_eq!(guest.fetch_config().status, 200);
    for (number, other) in
        [(id + 1, name), (id, "runner-1"), (id, "runner-1-7a9e000100ff00ff")].into_iter().enumerate()
    {
        for action in ["in_progress", "completed"] {
            pool.deliver(&format!("{action}-{number}"), &workflow_job(action, 5, Some(other)));
            assert_eq!(pool.phase(1), Phase::Ready, "{action} of {other:?}");
        }
    }
    pool.deliver("ours", &workflow_job("in_progress", 6, Some((id, name))));
    assert_eq!(pool.phase(1), Phase::Running);
    // Known by its id now.
    pool.deliver("over", &workflow_job("completed", 6, None));
    assert_eq!((pool.phase(1), pool.instance(1)), (Phase::Running, runner.clone()));
    assert_eq!(guest.report_complete().status, 200);
    wait_until("it is replaced", || pool.incarnation(1).is_some_and(|now| now != runner.vm.incarnation));
    pool.stop(Stop::Destroy);
}

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
    pool.stop(Stop::Drain);
}

#[test]
fn a_signed_body_that_is_not_json_is_a_bad_request_that_says_what_to_do() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    assert_eq!(signed(&pool, "workflow_job", b"{\"action\":").status, 400);
    assert_eq!(signed(&pool, "ping", b"").status, 400);
    assert_eq!(signed(&pool, "workflow_job", b"[\xff]").status, 400);
    let Response { status, body: text, .. } = signed(&pool, "workflow_job", b"payload=%7B%7D");
    assert_eq!(status, 400);
    assert!(text.contains("content type to application/json"), "{text}");
    let Response { status, body: text, .. } = signed(&pool, "workflow_job", br#"{"action":"queued"}"#);
    assert_eq!(status, 400);
    assert!(text.contains("workflow_job"), "{text}");
    pool.stop(Stop::Drain);
}

#[test]
fn ping_and_other_events_are_taken_and_ignored() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    assert_eq!(signed(&pool, "ping", br#"{"zen":"Keep it logically awesome."}"#).status, 200);
    assert_eq!(signed(&pool, "push", queued().as_bytes()).status, 200);
    assert_eq!(pool.jobs_waiting(), 0);
    pool.stop(Stop::Drain);
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
    pool.stop(Stop::Drain);
}

#[test]
fn a_job_for_labels_that_the_pool_lacks_is_left_alone() {
    let world = MockWorld::new();
    let pool = one_empty(&world);
    let other = queued().replace("Windows", "ubuntu-latest");
    assert_eq!(pool.deliver("1", &other).body, "OK");
    assert_eq!(pool.jobs_waiting(), 0);
    pool.stop(Stop::Drain);
}

#[test]
fn a_completed_job_of_this_vms_runner_replaces_it_and_a_late_one_of_an_earlier_vm_does_not() {
    let world = MockWorld::new();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    let first = pool.slot(1).made.unwrap();
    let completed = workflow_job("completed", 5, Some((first.runner_id.unwrap(), "runner-1")));
    pool.deliver("first", &completed);
    wait_until("it is replaced", || {
        pool.phase(1) == Phase::Ready && pool.incarnation(1).as_deref() != Some(&*first.vm.incarnation)
    });
    let second = pool.slot(1).made.unwrap();
    pool.deliver("late", &completed);
    // A slot takes its events in order: once it has seen this one, it has seen the late one.
    pool.deliver("next", &workflow_job("in_progress", 6, Some((second.runner_id.unwrap(), "runner-1"))));
    pool.wait_for(Phase::Running, 1);
    assert_eq!(pool.slot(1).made.map(|made| made.vm), Some(second.vm));
    pool.stop(Stop::Destroy);
}

//! `POST /webhook`: which deliveries are taken, and what they do.
use crate::support::mock_pool::{MockPool, settings, world, world_with_jobs_of};
use crate::support::wait_until;
use hyperv_runner_pool::pool::slot::{Phase, Stop};
use std::time::Duration;

const BODY: &str = r#"{"action":"queued","workflow_job":{"id":1,"labels":["windows"],"runner_id":null}}"#;

fn signed(pool: &MockPool, event: &str, body: &[u8]) -> (u16, String) {
    let signature = pool.keys.sign_webhook(body);
    let answer =
        pool.post("/webhook", &[("X-Hub-Signature-256", &signature), ("X-GitHub-Event", event)], body);
    (answer.status, answer.body)
}

#[test]
fn a_delivery_without_a_right_signature_is_refused_and_changes_nothing() {
    let world = world();
    let pool = world.start(settings(1, 0));
    wait_until("the pool knows what is there", || pool.snapshot().count(Phase::Empty) == 1);
    let missing = pool.post("/webhook", &[("X-GitHub-Event", "workflow_job")], BODY.as_bytes());
    assert_eq!((missing.status, &*missing.body), (401, "Missing signature"));
    let good = pool.keys.sign_webhook(BODY.as_bytes());
    let other_body = pool.keys.sign_webhook(b"{}");
    let wrong =
        ["", "sha256=", "sha256=00", "sha1=00", &good[..good.len() - 1], &format!("{good}0"), &other_body];
    for signature in wrong {
        let answer = pool.post("/webhook", &[("X-Hub-Signature-256", signature)], BODY.as_bytes());
        assert_eq!((answer.status, &*answer.body), (401, "Invalid signature"), "{signature:?}");
    }
    assert_eq!(pool.snapshot().jobs_waiting, 0);
    assert_eq!(pool.slot(1).phase, Phase::Empty);
    pool.stop(Stop::Drain);
}

#[test]
fn a_signed_body_that_is_not_json_is_a_bad_request_that_says_what_to_do() {
    let world = world();
    let pool = world.start(settings(1, 0));
    assert_eq!(signed(&pool, "workflow_job", b"{\"action\":").0, 400);
    assert_eq!(signed(&pool, "ping", b"").0, 400);
    assert_eq!(signed(&pool, "workflow_job", b"[\xff]").0, 400);
    let (status, text) = signed(&pool, "workflow_job", b"payload=%7B%7D");
    assert_eq!(status, 400);
    assert!(text.contains("content type to application/json"), "{text}");
    let (status, text) = signed(&pool, "workflow_job", br#"{"action":"queued"}"#);
    assert_eq!(status, 400);
    assert!(text.contains("workflow_job"), "{text}");
    pool.stop(Stop::Drain);
}

#[test]
fn ping_and_other_events_are_taken_and_ignored() {
    let world = world();
    let pool = world.start(settings(1, 0));
    assert_eq!(signed(&pool, "ping", br#"{"zen":"Keep it logically awesome."}"#).0, 200);
    assert_eq!(signed(&pool, "push", BODY.as_bytes()).0, 200);
    assert_eq!(pool.snapshot().jobs_waiting, 0);
    pool.stop(Stop::Drain);
}

#[test]
fn a_repeated_delivery_is_taken_and_ignored() {
    let world = world_with_jobs_of(Duration::from_secs(3600));
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    assert_eq!(pool.deliver("same", BODY).body, "OK");
    pool.wait_for(Phase::Running, 1);
    wait_until("the job waits no more", || pool.snapshot().jobs_waiting == 0);
    let repeated = pool.deliver("same", BODY);
    assert_eq!(repeated.status, 200);
    assert_ne!(repeated.body, "OK");
    assert_eq!(pool.snapshot().jobs_waiting, 0);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_bad_delivery_that_is_sent_again_mended_is_not_taken_for_a_repeat() {
    let world = world();
    let pool = world.start(settings(1, 0));
    assert_eq!(pool.deliver("once", r#"{"action":"queued"}"#).status, 400);
    assert_eq!(pool.deliver("once", BODY).body, "OK");
    pool.stop(Stop::Drain);
}

#[test]
fn a_job_for_labels_that_the_pool_lacks_is_left_alone() {
    let world = world();
    let pool = world.start(settings(1, 0));
    let other = BODY.replace("windows", "ubuntu-latest");
    assert_eq!(pool.deliver("1", &other).body, "OK");
    assert_eq!(pool.snapshot().jobs_waiting, 0);
    pool.stop(Stop::Drain);
}

#[test]
fn a_completed_job_of_this_vms_runner_replaces_it_and_a_late_one_of_an_earlier_vm_does_not() {
    let world = world();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Ready, 1);
    let first = pool.slot(1).made.unwrap();
    let completed = |runner_id: u64| {
        format!(
            r#"{{"action":"completed","workflow_job":{{"id":5,"labels":[],"runner_id":{runner_id},"runner_name":"runner-1"}}}}"#
        )
    };
    pool.deliver("first", &completed(first.runner_id.unwrap()));
    wait_until("it is replaced", || {
        pool.slot(1).phase == Phase::Ready && pool.incarnation(1) != Some(first.vm.incarnation.clone())
    });
    let second = pool.incarnation(1);
    pool.deliver("late", &completed(first.runner_id.unwrap()));
    // The slot's channel is in order: once it has seen the power-off, it has seen the late delivery.
    assert_eq!(pool.incarnation(1), second);
    assert_eq!(pool.slot(1).phase, Phase::Ready);
    pool.stop(Stop::Drain);
}

#[test]
fn a_burst_of_10_000_deliveries_loses_none() {
    let world = world();
    let pool = world.start(settings(1, 0));
    let labels = r#"["windows","x64"]"#;
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let pool = &pool;
            scope.spawn(move || {
                let mut connection = crate::support::http::Connection::open(&pool.url);
                for i in 0..2500 {
                    let id = thread * 2500 + i + 1_000_000;
                    let body =
                        format!(r#"{{"action":"queued","workflow_job":{{"id":{id},"labels":{labels}}}}}"#);
                    let signature = pool.keys.sign_webhook(body.as_bytes());
                    let headers =
                        [("X-Hub-Signature-256", &*signature), ("X-GitHub-Delivery", &*id.to_string())];
                    assert_eq!(connection.post("/webhook", &headers, body.as_bytes()).status, 200);
                }
            });
        }
    });
    let snapshot = pool.snapshot();
    let served: u64 = snapshot.slots.iter().map(|s| s.jobs_completed).sum();
    let running = snapshot.count(Phase::Running) as u64;
    let seen = snapshot.jobs_waiting as u64 + served + running;
    assert!((10_000..=10_002).contains(&seen), "{seen} of 10,000 jobs are known");
    pool.stop(Stop::Destroy);
}

//! What users see of a scale set's queue: `/api/status`, `/metrics`, `/health` and `/webhook`.

use crate::support::mock_pool::{MockPool, MockWorld, Stop, settings};
use crate::support::wait_until;
use hyperv_runner_pool::github::Error;
use hyperv_runner_pool::github::queue::{JobQueue, Message, Opened, QueueError, Statistics};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A queue that says this when it is opened. Its first message says that one job more is assigned.
struct Says(Result<Opened, QueueError>);

/// One whose closing takes longer than any test.
struct NeverCloses(Says);

const OPENED: Opened =
    Opened { scale_set: 1, warnings: Vec::new(), statistics: Statistics { assigned: 2, running: 1 } };

impl JobQueue for Says {
    fn scale_set(&self) -> Option<u64> {
        None
    }

    fn open(&self) -> Result<Opened, QueueError> {
        self.0.clone()
    }

    fn next(&self, after: u64, _: u32) -> Result<Option<Message>, QueueError> {
        let statistics = Some(Statistics { assigned: 3, running: 1 });
        Ok((after == 0).then(|| Message { id: 1, statistics, ..Message::default() }))
    }

    fn refresh(&self) -> Result<Option<Statistics>, QueueError> {
        Err(QueueError::SessionGone)
    }

    fn acquire(&self, _: &[i64]) -> Result<(), QueueError> {
        Ok(())
    }

    fn acknowledge(&self, _: u64) -> Result<(), QueueError> {
        Ok(())
    }

    fn close(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

impl JobQueue for NeverCloses {
    fn scale_set(&self) -> Option<u64> {
        self.0.scale_set()
    }

    fn open(&self) -> Result<Opened, QueueError> {
        self.0.open()
    }

    fn next(&self, after: u64, capacity: u32) -> Result<Option<Message>, QueueError> {
        self.0.next(after, capacity)
    }

    fn refresh(&self) -> Result<Option<Statistics>, QueueError> {
        self.0.refresh()
    }

    fn acquire(&self, requests: &[i64]) -> Result<(), QueueError> {
        self.0.acquire(requests)
    }

    fn acknowledge(&self, message: u64) -> Result<(), QueueError> {
        self.0.acknowledge(message)
    }

    fn close(&self) -> Result<(), QueueError> {
        std::thread::sleep(Duration::from_secs(3600));
        Ok(())
    }
}

fn status(pool: &MockPool) -> Value {
    pool.get("/api/status").json()
}

/// The samples of the queue's metrics, without what their names begin with.
fn samples(pool: &MockPool) -> Vec<(String, u64)> {
    let metrics = pool.get("/metrics").body;
    let of_queue = metrics.lines().filter_map(|line| line.strip_prefix("hyperv_runner_pool_scale_set_"));
    of_queue
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn a_queue_that_is_read_is_shown_with_its_times_and_github_s_count() {
    let world = MockWorld::with_queue(Says(Ok(OPENED)));
    let pool = world.start(settings(1, 0));
    wait_until("the message is there", || status(&pool)["queue"]["assigned"] == 3);
    let shown = status(&pool);
    assert_eq!((&shown["intake"], &shown["webhooks"]), (&json!("scaleset"), &Value::Null));
    let queue = &shown["queue"];
    for (what, is) in [("name", json!("runner")), ("running", json!(1)), ("error", Value::Null)] {
        assert_eq!(queue[what], is, "{queue}");
    }
    let times = [&queue["connected_since"], &queue["last_message_at"], &shown["now"]];
    assert!(times.map(|time| time.as_str().expect("a time")).is_sorted(), "{times:?}");

    let samples = samples(&pool);
    let names: Vec<&str> = samples.iter().map(|(name, _)| name.as_str()).collect();
    let times = ["queue_connected_timestamp_seconds", "queue_last_message_timestamp_seconds"];
    assert_eq!(names, ["queue_reachable", times[0], times[1], "jobs_assigned", "jobs_running"]);
    let value = |at: usize| samples[at].1;
    assert_eq!((value(0), value(3), value(4)), (1, 3, 1));
    assert!(value(1) > 1_700_000_000 && value(2) >= value(1), "{samples:?}");
    pool.stop(Stop::Keep);
}

#[test]
fn a_queue_that_cannot_be_read_is_shown_with_its_error_and_in_public_without() {
    let error = Error::Refused("the runner scale set \"runner\" is not this pool's".into());
    let world = MockWorld::with_queue(Says(Err(error.into())));
    let pool = world.start(settings(1, 0));
    wait_until("the error is there", || status(&pool)["queue"]["error"].is_string());
    let queue = status(&pool)["queue"].take();
    assert!(queue["error"].as_str().unwrap().contains("is not this pool's"), "{queue}");
    assert_eq!(
        (&queue["connected_since"], &queue["last_message_at"], &queue["assigned"]),
        (&Value::Null, &Value::Null, &json!(0))
    );
    let samples = samples(&pool);
    let expected = [("queue_reachable", 0), ("jobs_assigned", 0), ("jobs_running", 0)];
    assert_eq!(samples, expected.map(|(name, value)| (name.to_owned(), value)));
    let health = pool.get("/health");
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["reasons"], json!(["GitHub does not let the pool use its runner scale set"]));
    assert!(!health.body.contains("not this pool's"), "{}", health.body);
    pool.stop(Stop::Keep);
}

#[test]
fn a_pool_with_a_scale_set_takes_no_webhook_and_misses_none() {
    let world = MockWorld::with_queue(Says(Ok(OPENED)));
    let pool = world.start(settings(1, 0));
    let answer = pool.queue_job(1);
    assert_eq!((answer.status, &*answer.body), (404, "This pool takes no webhooks: INTAKE is scaleset"));
    assert_eq!(pool.get("/webhook").status, 404);
    let metrics = pool.get("/metrics").body;
    assert!(metrics.contains("# TYPE hyperv_runner_pool_webhooks_total counter\n"), "{metrics}");
    assert!(!metrics.contains("\nhyperv_runner_pool_webhooks_total{"), "no alert can miss one: {metrics}");
    pool.stop(Stop::Keep);
}

#[test]
fn a_queue_that_is_not_closed_in_time_does_not_hold_up_the_stop() {
    let pool = MockWorld::with_queue(NeverCloses(Says(Ok(OPENED)))).start(settings(1, 0));
    wait_until("it is open", || status(&pool)["queue"]["connected_since"] != Value::Null);
    let (begun, limit) = (Instant::now(), Duration::from_secs(5));
    pool.stop_within(Stop::Destroy, limit);
    assert!(begun.elapsed() < limit * 4, "{:?}", begun.elapsed());
}

#[test]
fn a_pool_with_webhooks_shows_no_queue() {
    let world = MockWorld::without_jobs();
    let pool = world.start(settings(1, 0));
    let shown = status(&pool);
    assert_eq!((&shown["intake"], &shown["queue"]), (&json!("webhook"), &Value::Null));
    assert!(shown["webhooks"].is_object(), "{shown}");
    assert_eq!(samples(&pool), []);
    let metrics = pool.get("/metrics").body;
    assert!(metrics.contains("# TYPE hyperv_runner_pool_scale_set_queue_reachable gauge\n"), "{metrics}");
    pool.stop(Stop::Keep);
}

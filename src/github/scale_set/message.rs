//! A message of the queue, as GitHub writes it.

use crate::date::parse_time;
use crate::github::queue::{Message, QueueEvent, ScaleSetJob, Statistics};
use serde_json::Value;

/// Reads a message. `None` if it has no number, without which it cannot be acknowledged. What else cannot be read is
/// left out: the rest of a message counts all the same.
pub(super) fn message(answer: &Value) -> Option<Message> {
    let events = answer["body"].as_str().and_then(|body| serde_json::from_str::<Vec<Value>>(body).ok());
    Some(Message {
        id: answer["messageId"].as_u64()?,
        events: events.unwrap_or_default().iter().filter_map(event).collect(),
        statistics: statistics(&answer["statistics"]),
    })
}

/// GitHub's count of a scale set's jobs, if that is what this is.
pub(super) fn statistics(counts: &Value) -> Option<Statistics> {
    let count = |name: &str| u32::try_from(counts[name].as_u64()?).ok();
    Some(Statistics { assigned: count("totalAssignedJobs")?, running: count("totalRunningJobs")? })
}

fn event(event: &Value) -> Option<QueueEvent> {
    match event["messageType"].as_str()? {
        "JobAvailable" => event["runnerRequestId"].as_i64().map(QueueEvent::Available),
        "JobAssigned" => Some(QueueEvent::Assigned(job(event))),
        "JobStarted" => Some(QueueEvent::Started(job(event))),
        "JobCompleted" => Some(QueueEvent::Completed(job(event))),
        _ => None,
    }
}

fn job(event: &Value) -> ScaleSetJob {
    // What GitHub does not know, it leaves out, or writes as an empty text or 0.
    let text = |name: &str| event[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let number = |name: &str| event[name].as_u64().filter(|number| *number != 0);
    let time = |name: &str| event[name].as_str().and_then(parse_time);
    let repository = text("repositoryName");
    ScaleSetJob {
        runner_id: number("runnerId"),
        runner_name: text("runnerName"),
        run_id: number("workflowRunId"),
        name: text("jobDisplayName"),
        repository: text("ownerName").zip(repository).map(|(owner, name)| format!("{owner}/{name}")),
        waited: time("queueTime")
            .zip(time("runnerAssignTime"))
            .and_then(|(queued, taken)| taken.duration_since(queued).ok()),
        result: text("result"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_message_tells_of_jobs_in_order_and_of_their_numbers() {
        let jobs = json!([
            {"messageType": "JobAvailable", "runnerRequestId": 7},
            {"messageType": "JobAssigned", "runnerRequestId": 0, "jobDisplayName": "build", "ownerName": "octo",
             "repositoryName": "app", "workflowRunId": 5},
            {"messageType": "JobStarted", "runnerId": 3, "runnerName": "runner-1-ab",
             "queueTime": "2026-01-02T03:04:05Z", "runnerAssignTime": "2026-01-02T03:04:15.25Z"},
            {"messageType": "JobCompleted", "runnerId": 0, "runnerName": "", "result": "canceled"},
        ]);
        let answer = json!({"messageId": 9, "messageType": "RunnerScaleSetJobMessages", "body": jobs.to_string(),
                            "statistics": {"totalAssignedJobs": 4, "totalRunningJobs": 1}});
        let Message { id, events, statistics } = message(&answer).unwrap();
        assert_eq!((id, statistics), (9, Some(Statistics { assigned: 4, running: 1 })));
        let assigned = ScaleSetJob {
            name: Some("build".into()),
            repository: Some("octo/app".into()),
            run_id: Some(5),
            ..ScaleSetJob::default()
        };
        let started = ScaleSetJob {
            runner_id: Some(3),
            runner_name: Some("runner-1-ab".into()),
            waited: Some(Duration::from_secs(10)),
            ..ScaleSetJob::default()
        };
        let canceled = ScaleSetJob { result: Some("canceled".into()), ..ScaleSetJob::default() };
        assert_eq!(
            events,
            [
                QueueEvent::Available(7),
                QueueEvent::Assigned(assigned),
                QueueEvent::Started(started),
                QueueEvent::Completed(canceled)
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_does_not_hide_the_rest() {
        let jobs = json!([{"messageType": "JobTeleported"}, 7, {"messageType": "JobAvailable"},
                          {"messageType": "JobAvailable", "runnerRequestId": 8}]);
        let answer = json!({"messageId": 1, "body": jobs.to_string()});
        let read = message(&answer).unwrap();
        assert_eq!((read.events, read.statistics), (vec![QueueEvent::Available(8)], None));
        for body in [json!(null), json!(""), json!("no JSON"), json!("{}")] {
            let read =
                message(&json!({"messageId": 1, "body": body, "statistics": {"totalAssignedJobs": -1}}));
            assert_eq!(read, Some(Message { id: 1, ..Message::default() }));
        }
        assert_eq!(message(&json!({"body": "[]"})), None);
    }
}

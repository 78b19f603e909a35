//! What SQS may answer and the servers of the other tests do not: a server that says what it is told to.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{ConnectOptions, Effect, ErrorKind, Settlement};
use anyqueue_testkit::{Sample, SystemClock};
use shared::stub::{Stub, message, ok, refused, usual, worked};
use shared::{consumer, incoming, one, queue, reserve, settle};

/// A send that SQS throttles is made again, less and less often, and nobody hears of it.
#[tokio::test]
async fn a_throttled_send_is_made_again() {
    let stub = Stub::start(|operation, number| match operation {
        "sendmessagebatch" if number < 4 => refused("RequestThrottled"),
        "sendmessagebatch" => ok(r#"{"Successful":[{"Id":"0","MessageId":"m","MD5OfMessageBody":"x"}],"Failed":[]}"#),
        _ => usual(operation),
    })
    .await;
    let sent = stub.connect().await.send(&queue("q"), &[Sample::new(1).envelope()]).await.remove(0);
    assert_eq!(sent.unwrap().native_id.as_deref(), Some("m"));
    assert_eq!(stub.count("sendmessagebatch"), 4);
}

/// A send whose outcome is not known is not made again here: that is for who knows the task's id.
#[tokio::test]
async fn a_send_that_may_have_worked_is_made_once() {
    let stub = Stub::start(|operation, _| match operation {
        "sendmessagebatch" => (503, "{}".into()),
        _ => usual(operation),
    })
    .await;
    let error = stub.connect().await.send(&queue("q"), &[Sample::new(1).envelope()]).await.remove(0).unwrap_err();
    assert!(error.is_retryable() && error.effect() == Effect::Unknown, "{error:?}");
    assert_eq!(stub.count("sendmessagebatch"), 1);
}

/// Each item of a batch has its own answer, and one that SQS says nothing of is no success.
#[tokio::test]
async fn a_batch_may_fail_in_part() {
    let stub = Stub::start(|operation, _| match operation {
        "sendmessagebatch" => ok(r#"{"Successful":[{"Id":"1","MessageId":"m","MD5OfMessageBody":"x"}],
                 "Failed":[{"Id":"0","Code":"InternalError","SenderFault":false},{"Id":"2","Code":"InvalidMessageContents","SenderFault":true}]}"#),
        _ => usual(operation),
    })
    .await;
    let tasks = Sample::many(4);
    let answers = stub.connect().await.send(&queue("q"), &tasks).await;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().map(drop).map_err(|e| (e.kind(), e.effect()))).collect();
    let expected = [
        Err((ErrorKind::Unavailable, Effect::Unknown)),
        Ok(()),
        Err((ErrorKind::Invalid, Effect::None)),
        Err((ErrorKind::Protocol, Effect::Unknown)),
    ];
    assert_eq!(kinds, expected);
}

/// More reserved tasks than SQS allows is an error that says so.
#[tokio::test]
async fn the_limit_of_reserved_tasks_is_named() {
    let stub =
        Stub::start(|operation, _| if operation == "receivemessage" { refused("OverLimit") } else { usual(operation) }).await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let error = consumer.reserve(1.try_into().unwrap(), Duration::from_secs(5)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Full && error.to_string().contains("120,000"), "{error}");
}

/// A worker that may not read attributes and tags works all the same, and an operator learns what is missing.
#[tokio::test]
async fn missing_rights_are_named_and_stop_nobody() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes" | "listqueuetags" => refused("AccessDeniedException"),
        "receivemessage" if number == 1 => ok(&message()),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(Sample::number(&one(&mut *consumer).await), Some(1));
    let findings = broker.diagnose().await.unwrap();
    for right in ["sqs:GetQueueAttributes", "sqs:ListQueueTags"] {
        assert!(findings.iter().any(|finding| finding.text.contains(right)), "{right}: {findings:?}");
    }
}

/// Who cannot be reached is named.
#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let options = ConnectOptions::new(&format!("sqs://{nobody}"), Arc::new(SystemClock)).unwrap();
    let error = anyqueue_sqs::DRIVER.open(options).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains(&nobody.to_string()), "{error}");
}

/// Who may not create queues uses those that are there, and never asks for one.
#[tokio::test]
async fn a_queue_that_is_there_needs_no_right_to_create_it() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&message()),
        "sendmessagebatch" | "deletemessagebatch" => worked(),
        operation if operation.starts_with("createqueue") => refused("AccessDeniedException"),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    assert!(!broker.declare(&queue).await.unwrap().created);
    broker.send(&queue, &[Sample::new(1).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let task = one(&mut *consumer).await;
    settle(&*consumer.settler(), &task, Settlement::Done).await.unwrap();
    let asked = stub.operations();
    assert!(!asked.iter().any(|operation| operation.starts_with("createqueue")), "{asked:?}");
}

/// A retry whose delete fails is settled by the next try, without a second copy.
#[tokio::test]
async fn a_copy_is_sent_once_however_often_its_settle_is_tried() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&message()),
        "sendmessagebatch" => ok(r#"{"Successful":[{"Id":"0","MessageId":"n","MD5OfMessageBody":"x"}],"Failed":[]}"#),
        "deletemessagebatch" if number == 1 => {
            ok(r#"{"Successful":[],"Failed":[{"Id":"0","Code":"InternalError","SenderFault":false}]}"#)
        }
        "deletemessagebatch" => ok(r#"{"Successful":[{"Id":"0"}],"Failed":[]}"#),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let task = one(&mut *consumer).await;
    let (settler, retry) = (consumer.settler(), Settlement::Retry(incoming(&task).failed(Duration::ZERO)));
    let error = settle(&*settler, &task, retry.clone()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    settle(&*settler, &task, retry.clone()).await.unwrap();
    assert_eq!((stub.count("sendmessagebatch"), stub.count("deletemessagebatch")), (1, 2));
    assert!(settle(&*settler, &task, retry).await.unwrap_err().is_lease_lost(), "it is settled");
}

/// A server that answers a waiting request at once is not asked all the time.
#[tokio::test]
async fn a_server_that_does_not_wait_is_not_asked_all_the_time() {
    let stub = Stub::start(|operation, _| usual(operation)).await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    assert!(reserve(&mut *consumer, 1, Duration::from_secs(2)).await.is_empty());
    assert!(stub.count("receivemessage") <= 13, "{} receives in 2 s", stub.count("receivemessage"));
}

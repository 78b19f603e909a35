//! Delays that are longer than SQS counts, and what an operator does to delayed tasks.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::time::Duration;

use anyqueue_core::{ErrorKind, State};
use anyqueue_testkit::Sample;
use aws_sdk_sqs::types::QueueAttributeName;
use shared::{Place, QUIET, consumer, eventually, millis, one, queue, reserve, send};

fn body(number: u64) -> String {
    String::from_utf8(Sample::new(number).envelope().body.to_vec()).unwrap()
}

/// A task that arrives where its first leg ends before it is due is sent on, and comes when it is due: not early, once,
/// and as one that nobody has had before.
#[tokio::test]
async fn a_task_that_is_not_due_is_sent_on() {
    let (place, queue) = (Place::new().await, queue("legs"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    let due = millis() + 3500;
    place.put("legs", &body(1), Some(&format!("p1024 t60 d{due} h"))).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let delivery = one(&mut *consumer).await;
    let now = millis();
    assert!(now >= due, "{} ms early", due.saturating_sub(now));
    assert!(now < due + 10_000, "{} ms late", now - due);
    assert_eq!((Sample::number(&delivery), delivery.native.redeliveries.value()), (Some(1), Some(0)));
    assert!(reserve(&mut *consumer, 5, QUIET).await.is_empty(), "the copy that was sent on is the only one");
}

/// A task that is due by the time that somebody looks is handed out at once, without a further leg.
#[tokio::test]
async fn a_task_that_is_overdue_comes_at_once() {
    let (place, queue) = (Place::new().await, queue("overdue"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    place.put("overdue", &body(1), Some(&format!("p1024 t60 d{} h", millis() - 1))).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let sent = broker.info().round_trips;
    assert_eq!(Sample::number(&one(&mut *consumer).await), Some(1));
    assert!(broker.info().round_trips - sent < 6, "{} requests for one task", broker.info().round_trips - sent);
}

/// A delay of hours is on SQS as one that SQS counts to the end of its first leg.
#[tokio::test]
async fn a_long_delay_begins_with_a_leg_of_fifteen_minutes() {
    let (place, queue) = (Place::new().await, queue("hours"));
    let broker = place.connect().await;
    send(&*broker, &queue, &[Sample::new(1).delay(Duration::from_secs(7200)).envelope()]).await.unwrap();
    let url = place.queue_url("hours").await;
    let count = QueueAttributeName::ApproximateNumberOfMessagesDelayed;
    let answer = place.raw.get_queue_attributes().queue_url(url).attribute_names(count.clone()).send().await.unwrap();
    assert_eq!(answer.attributes.unwrap().get(&count).map(String::as_str), Some("1"));
    assert_eq!(broker.admin().stats(&queue).await.unwrap().delayed.value(), Some(1));
}

/// A purge of delayed tasks drops what was delayed at that moment, on every worker, and nothing that comes later.
#[tokio::test]
async fn a_purge_of_delayed_tasks_reaches_those_that_sqs_hides() {
    let (place, queue) = (Place::new().await, queue("purged"));
    let (operator, worker) = (place.connect().await, place.connect().await);
    operator.declare(&queue).await.unwrap();
    let delay = Duration::from_secs(2);
    send(&*operator, &queue, &[Sample::new(1).delay(delay).envelope()]).await.unwrap();
    let mut consumer = consumer(&*worker, &queue).await;
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(10)).await.is_empty());
    let hidden = operator.admin().peek(&queue, State::Delayed, 1).await.unwrap_err();
    assert!(hidden.kind() == ErrorKind::Unsupported && hidden.to_string().contains("delayed"), "{hidden}");
    assert_eq!(operator.admin().purge(&queue, &[State::Delayed]).await.unwrap(), 1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    send(&*operator, &queue, &[Sample::new(2).delay(delay).envelope(), Sample::new(3).envelope()]).await.unwrap();
    let got = [one(&mut *consumer).await, one(&mut *consumer).await];
    assert_eq!(got.map(|delivery| Sample::number(&delivery).unwrap()), [3, 2]);
    assert!(reserve(&mut *consumer, 1, delay).await.is_empty(), "a purged task came");
    eventually("the purged task is gone", shared::SOON, || async {
        operator.admin().stats(&queue).await.unwrap().delayed.value() == Some(0)
    })
    .await;
}

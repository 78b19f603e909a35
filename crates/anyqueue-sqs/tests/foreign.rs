//! What other clients put on SQS, and what they find there.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use anyqueue_core::{Settlement, TaskId};
use anyqueue_core::{State, Which};
use anyqueue_testkit::Sample;
use shared::stub::{Stub, message, ok, usual, worked};
use shared::{Place, QUIET, consumer, incoming, one, queue, reserve, send, settle};
use std::time::{Duration, SystemTime};

const BODY: &str = r#"{"task":"test","store":"0","data":{"message":"hello"}}"#;

/// A payload of the first system, put by another client, runs; it has one id through give-backs, retries, holds and kicks.
#[tokio::test]
async fn a_foreign_payload_has_one_id_for_its_life() {
    let (place, queue) = (Place::new().await, queue("foreign"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    place.put("foreign", BODY, None).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let settler = consumer.settler();
    let first = one(&mut *consumer).await;
    let task = incoming(&first);
    assert_eq!((&first.raw[..], task.wire.store.as_str()), (BODY.as_bytes(), "0"));
    assert_eq!(task.id, TaskId::foreign("default", "foreign", first.native.id.as_deref().unwrap()));
    settle(&*settler, &first, Settlement::Release(task.unchanged(Duration::ZERO))).await.unwrap();
    let again = one(&mut *consumer).await;
    assert_eq!((incoming(&again).id, again.native.redeliveries.value()), (task.id, Some(0)), "given back");
    assert_eq!(&again.raw[..], BODY.as_bytes());
    settle(&*settler, &again, Settlement::Hold(incoming(&again).held("look", false, SystemTime::now()), "look".into()))
        .await
        .unwrap();
    assert_eq!(broker.admin().kick(&queue, &Which::Ids(vec![task.id])).await.unwrap(), 1);
    let kicked = one(&mut *consumer).await;
    assert_eq!(incoming(&kicked).id, task.id, "kicked");
    settle(&*settler, &kicked, Settlement::Done).await.unwrap();
}

/// What another client puts into a band has that band's priority, in a look and in a worker's hands.
#[tokio::test]
async fn a_foreign_payload_has_the_priority_of_its_band() {
    let (place, queue) = (Place::new().await, queue("bands"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    for (name, priority) in [("bands__p512", Some(512)), ("bands", None), ("bands__rest", Some(2048))] {
        place.put(name, BODY, None).await;
        let looked = broker.admin().peek(&queue, State::Ready, 1).await.unwrap();
        assert_eq!(looked[0].native.priority, priority, "a look into {name}");
        let mut consumer = consumer(&*broker, &queue).await;
        let task = one(&mut *consumer).await;
        assert_eq!(task.native.priority, priority, "{name}");
        settle(&*consumer.settler(), &task, Settlement::Done).await.unwrap();
    }
}

/// A purge of what is ready and delayed spares what is sent right after it, as SQS's own purge would not.
#[tokio::test]
async fn a_purge_spares_what_comes_after_it() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"1"}}"#),
        "receivemessage" if number == 1 => ok(&message()),
        "deletemessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    assert_eq!(broker.admin().purge(&queue, &[State::Ready, State::Delayed]).await.unwrap(), 1);
    assert_eq!((stub.count("purgequeue"), stub.count("deletemessagebatch"), stub.count("tagqueue")), (0, 1, 1));
    broker.admin().purge(&queue, &State::ALL).await.unwrap();
    assert_eq!(stub.count("purgequeue"), 1);
}

/// What another client put into the queue of held tasks is listed and kicked, whatever it is.
#[tokio::test]
async fn what_others_hold_is_listed_and_kicked() {
    let (place, queue) = (Place::new().await, queue("odd.name"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    place.put("odd__dname__held", BODY, None).await;
    place.put("odd__dname__held", "no JSON at all", None).await;
    let held = broker.admin().held(&queue, None, 10).await.unwrap().tasks;
    assert_eq!(held.len(), 2);
    assert!(held.iter().all(|task| task.state == State::Held));
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 2);
    let mut consumer = consumer(&*broker, &queue).await;
    let (first, second) = (one(&mut *consumer).await, one(&mut *consumer).await);
    let ids = [incoming(&first).id, incoming(&second).id];
    let listed = held.iter().map(|task| anyqueue_core::Incoming::peeked(task, "default", "odd.name", Default::default()).id);
    assert!(listed.into_iter().all(|id| ids.contains(&id)), "the id that was listed is the one that runs");
}

/// Tasks of the default priority are where other clients look, in the first system's form.
#[tokio::test]
async fn our_tasks_are_read_by_others() {
    let (place, queue) = (Place::new().await, queue("plain-name"));
    let broker = place.connect().await;
    send(&*broker, &queue, &[Sample::new(7).store("nl").envelope()]).await.unwrap();
    let url = place.queue_url("plain-name").await;
    let messages = place.raw.receive_message().queue_url(url).send().await.unwrap().messages.unwrap();
    assert!(messages[0].body().unwrap().starts_with(r#"{"task":"sample","store":"nl","data":7"#), "{messages:?}");
}

/// What SQS's own dead-letter queue takes is listed with the held ones, kicked, and reported as drift.
#[tokio::test]
async fn what_sqs_itself_takes_away_is_found() {
    let (place, queue) = (Place::new().await, queue("strict"));
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    place.raw.create_queue().queue_name("graveyard").send().await.unwrap();
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:graveyard","maxReceiveCount":"3"}"#;
    let change = place.raw.set_queue_attributes().queue_url(place.queue_url("strict").await);
    change.attributes(aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy, policy).send().await.unwrap();
    place.put("graveyard", BODY, None).await;
    let broker = place.connect().await;
    let drift = broker.declare(&queue).await.unwrap().drift;
    assert!(drift.len() == 1 && drift[0].what == "RedrivePolicy of `strict`" && drift[0].wanted == "none", "{drift:?}");
    let findings = broker.diagnose().await.unwrap();
    assert!(findings.iter().any(|finding| finding.text.contains("received often")), "{findings:?}");
    assert_eq!(broker.admin().held(&queue, None, 10).await.unwrap().tasks.len(), 1);
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(&one(&mut *consumer).await.raw[..], BODY.as_bytes());
    assert!(reserve(&mut *consumer, 1, QUIET).await.is_empty());
}

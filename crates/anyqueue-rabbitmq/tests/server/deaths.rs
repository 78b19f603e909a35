//! What counts as the death of a worker.

use std::time::SystemTime;

use anyqueue_core::Envelope;
use anyqueue_core::time::MIN_TTR;
use lapin::options::{BasicNackOptions, ConfirmSelectOptions};

use super::operator::{reader, ready};
use super::*;

/// All that a queue has is taken by a client that gives it back at once: so it looks when a worker ends consuming and the
/// server has sent it some already.
async fn bounce(node: &Node, queue: &QueueName, count: usize) {
    let (connection, channel) = other(node).await;
    let mut last = 0;
    for _ in 0..count {
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        last = got.unwrap().delivery.delivery_tag;
    }
    channel.basic_nack(last, BasicNackOptions { multiple: true, requeue: true }).await.unwrap();
    connection.close(200, "bye".into()).await.unwrap();
}

/// A queue with these tasks, all on probation.
async fn on_probation(node: &Node, label: &str, tasks: Vec<Envelope>) -> (Arc<dyn Broker>, QueueName) {
    let (broker, queue) = (connect(node, "").await, name(label));
    broker.declare(&queue).await.unwrap();
    let tasks: Vec<_> = tasks.into_iter().map(|task| Envelope { probation: true, ..task }).collect();
    assert!(broker.send(&queue, &tasks).await.iter().all(Result::is_ok));
    (broker, queue)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_and_not_begun_keeps_its_place_and_counts_as_no_death() {
    let node = node().await;
    // Where the notes are not read in two seconds, the tasks count as crashed.
    let _quiet = STARTS.lock().await;
    let (broker, queue) = (connect(&node, "").await, name("place"));
    broker.declare(&queue).await.unwrap();
    let sent: Vec<_> = broker.send(&queue, &Sample::many(40)).await;
    assert!(sent.iter().all(Result::is_ok));
    let mut first = consumer(&*broker, &queue).await;
    let got = first.reserve(NonZeroUsize::new(30).unwrap(), SOON).await.unwrap();
    assert!(!got.is_empty());
    for delivery in &got {
        settle(&*first, delivery, Settlement::Done).await;
    }
    first.close().await.unwrap();
    // Another process: it knows of the notes what the server has, and no more.
    let other = connect(&node, "").await;
    let mut second = consumer(&*other, &queue).await;
    for number in got.len() as u64..40 {
        let delivery = next(&mut *second).await;
        assert_eq!(Sample::number(&delivery), Some(number), "the place in line");
        assert_eq!(delivery.native.redeliveries.value(), Some(0), "a death that was none");
        settle(&*second, &delivery, Settlement::Done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_died_of_a_task_on_probation_that_nobody_had() {
    let node = node().await;
    let _quiet = STARTS.lock().await;
    let (broker, queue) = on_probation(&node, "alone", Sample::many(40)).await;
    bounce(&node, &queue, 40).await;
    let mut first = consumer(&*broker, &queue).await;
    let got = first.reserve(NonZeroUsize::new(30).unwrap(), SOON).await.unwrap();
    for delivery in &got {
        assert_eq!(delivery.native.redeliveries.value(), Some(0), "a worker that never had it");
        settle(&*first, delivery, Settlement::Done).await;
    }
    first.close().await.unwrap();
    bounce(&node, &queue, 40 - got.len()).await;
    let other = connect(&node, "").await;
    let mut second = consumer(&*other, &queue).await;
    for _ in got.len()..40 {
        let delivery = next(&mut *second).await;
        assert_eq!(delivery.native.redeliveries.value(), Some(0), "one gave it back, another never had it");
        settle(&*second, &delivery, Settlement::Done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_tasks_on_probation_a_worker_has_one_and_only_of_that_it_can_have_died() {
    let node = node().await;
    let (broker, queue) = on_probation(&node, "one", Sample::many(5)).await;
    let mut consumer = consumer(&*broker, &queue).await;
    for left in (0..5).rev() {
        let got = consumer.reserve(NonZeroUsize::new(5).unwrap(), SOON).await.unwrap();
        assert_eq!(got.len(), 1, "the others come when this one is done: {got:?}");
        let notes = ready(&other(&node).await.1, &format!("{queue};unharmed")).await;
        assert_eq!(notes, 5 - left, "one note for each that a worker had");
        settle(&*consumer, &got[0], Settlement::Done).await;
    }
    assert_eq!(consumer.reserve(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_gets_a_task_on_probation_too() {
    let node = node().await;
    let (broker, queue) = on_probation(&node, "asked", Sample::many(1)).await;
    let got = consumer(&*broker, &queue).await.reserve(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!(got.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_had_a_task_on_probation_and_said_nothing_more_died_of_it() {
    let node = node().await;
    let _quiet = STARTS.lock().await;
    let (broker, queue) = on_probation(&node, "died", vec![Sample::new(1).ttr(MIN_TTR).envelope()]).await;
    bounce(&node, &queue, 1).await;
    let delivery = next(&mut *consumer(&*broker, &queue).await).await;
    assert_eq!(delivery.native.redeliveries.value(), Some(0));
    // Another process: it knows of the notes what the server has, and no more.
    let other = connect(&node, "").await;
    let again = next(&mut *consumer(&*other, &queue).await).await;
    assert_eq!(again.native.redeliveries.value(), Some(1), "one of two had it");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_notes_were_thrown_out_a_task_that_came_back_may_have_crashed() {
    let node = node().await;
    let _quiet = STARTS.lock().await;
    let (broker, queue) = on_probation(&node, "crowded", vec![Sample::new(1).ttr(MIN_TTR).envelope()]).await;
    next(&mut *consumer(&*broker, &queue).await).await;
    // More notes than the server keeps push out the one that says so. They are not older than the task.
    let (connection, channel) = other(&node).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut confirms = Vec::new();
    for _ in 0..2000 {
        let properties = BasicProperties::default().with_timestamp(now);
        let notes = format!("{queue};unharmed").into();
        confirms.push(channel.basic_publish("".into(), notes, BasicPublishOptions::default(), b"x", properties).await.unwrap());
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    connection.close(200, "bye".into()).await.unwrap();
    let other = connect(&node, "").await;
    let again = next(&mut *consumer(&*other, &queue).await).await;
    assert_eq!(again.native.redeliveries.value(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn notes_that_cannot_be_read_keep_no_task_waiting() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("noted"));
    broker.declare(&queue).await.unwrap();
    if !counts_returns(&*broker) {
        return;
    }
    broker.send(&queue, &[Sample::new(1).envelope()]).await.remove(0).unwrap();
    bounce(&node, &queue, 1).await;
    let _somebody = reader(&node, &format!("{queue};unharmed")).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let began = Instant::now();
    let delivery = next(&mut *consumer).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(delivery.native.redeliveries.value(), Some(1), "it may have crashed");
}

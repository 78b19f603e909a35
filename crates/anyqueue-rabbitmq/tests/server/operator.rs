//! What operators do, while others look on, die or hesitate.

use lapin::options::{BasicNackOptions, ConfirmSelectOptions};

use super::*;

/// Somebody who looks through a queue: has the right to, and one of the messages.
pub(super) async fn reader(node: &Node, queue: &str) -> (Connection, Channel, u64) {
    let (connection, channel) = other(node).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(format!("anyqueue;walk;{queue}").into(), exclusive, FieldTable::default()).await.unwrap();
    let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
    let tag = got.map_or(0, |got| got.delivery.delivery_tag);
    (connection, channel, tag)
}

/// Ends the look a moment later: what was taken is back first.
fn leave_soon(reader: (Connection, Channel, u64), queue: &str) -> tokio::task::JoinHandle<()> {
    let lock = format!("anyqueue;walk;{queue}");
    tokio::spawn(async move {
        let (connection, channel, tag) = reader;
        tokio::time::sleep(Duration::from_millis(600)).await;
        channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
        channel.queue_delete(lock.into(), QueueDeleteOptions::default()).await.unwrap();
        connection.close(200, "bye".into()).await.unwrap();
    })
}

pub(super) async fn ready(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count()
}

/// Held tasks, as they come in a body.
async fn park(node: &Node, queue: &QueueName, count: usize) -> Vec<TaskId> {
    let (connection, channel) = other(node).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (mut ids, mut confirms) = (Vec::new(), Vec::new());
    for task in Sample::many(count) {
        let put = channel.basic_publish(
            "".into(),
            format!("{queue};held").into(),
            BasicPublishOptions::default(),
            &task.body,
            BasicProperties::default(),
        );
        confirms.push(put.await.unwrap());
        ids.push(task.id);
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    connection.close(200, "bye".into()).await.unwrap();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_somebody_is_reading_ends_when_it_is_resumed() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("resumed"));
    broker.declare(&queue).await.unwrap();
    broker.admin().pause(&queue, None).await.unwrap();
    let markers = format!("{queue};pause");
    let reading = reader(&node, &markers).await;
    assert!(ready(&reading.1, &markers).await > 0, "a marker that is read leaves workers at work");
    let left = leave_soon(reading, &markers);
    broker.admin().resume(&queue).await.unwrap();
    left.await.unwrap();
    assert_eq!(broker.admin().paused(&queue).await.unwrap(), Paused::No);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pause_takes_the_place_of_the_first() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("paused"));
    broker.declare(&queue).await.unwrap();
    broker.admin().pause(&queue, None).await.unwrap();
    let markers = format!("{queue};pause");
    let left = leave_soon(reader(&node, &markers).await, &markers);
    broker.admin().pause(&queue, Some(Duration::from_millis(1500))).await.unwrap();
    left.await.unwrap();
    let until = Instant::now() + SOON;
    while broker.admin().paused(&queue).await.unwrap() != Paused::No {
        assert!(Instant::now() < until, "the first pause goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let long = broker.admin().pause(&queue, Some(Duration::from_secs(50 * 86_400))).await.unwrap_err();
    assert!(long.to_string().contains("49 days"), "{long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_held_tasks_than_a_slice_has_are_kicked_deleted_and_listed() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("many"));
    broker.declare(&queue).await.unwrap();
    let ids = park(&node, &queue, 700).await;
    let admin = broker.admin();
    let page = admin.held(&queue, Some("598"), 3).await.unwrap();
    assert_eq!(page.tasks.len(), 3);
    assert_eq!(page.next.as_deref(), Some("601"));
    assert_eq!(admin.kick(&queue, &Which::Ids(vec![ids[690]])).await.unwrap(), 1, "one far behind");
    admin.delete(&queue, &[ids[600], ids[1]]).await.into_iter().for_each(Result::unwrap);
    assert_eq!(admin.kick(&queue, &Which::First(300)).await.unwrap(), 300, "no more than was asked");
    assert_eq!(admin.kick(&queue, &Which::All).await.unwrap(), 397);
    let (_connection, channel) = other(&node).await;
    let (held, plain) = (ready(&channel, &format!("{queue};held")).await, ready(&channel, queue.as_str()).await);
    assert_eq!((held, plain), (0, 698));
}

/// A queue that takes so many tasks and refuses more.
async fn small(node: &Node, channel: &Channel, most: i64) -> (Arc<dyn Broker>, QueueName) {
    let (broker, queue) = (connect(node, "bands=none").await, name("full"));
    let mut limits = FieldTable::default();
    limits.insert("x-max-length".into(), AMQPValue::LongLongInt(most));
    limits.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), limits).await.unwrap();
    broker.declare(&queue).await.unwrap();
    (broker, queue)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kick_that_is_refused_says_so_and_keeps_the_rest_held() {
    let node = node().await;
    let (_connection, channel) = other(&node).await;
    let (broker, queue) = small(&node, &channel, 20).await;
    park(&node, &queue, 400).await;
    let error = broker.admin().kick(&queue, &Which::All).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Full && error.to_string().contains("gone_before"), "{error}");
    // What was given back is counted a moment later.
    let until = Instant::now() + SOON;
    let mut all = 0;
    while all != 400 {
        assert!(Instant::now() < until, "{all}: some are lost, or there twice");
        tokio::time::sleep(Duration::from_millis(50)).await;
        all = ready(&channel, &format!("{queue};held")).await + ready(&channel, queue.as_str()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_those_tasks_fail_that_the_server_refused() {
    let node = node().await;
    let (_connection, channel) = other(&node).await;
    let (broker, queue) = small(&node, &channel, 5).await;
    let answers = broker.send(&queue, &Sample::many(50)).await;
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    let refused = |error: &anyqueue_core::Error| error.kind() == ErrorKind::Full && error.effect() == Effect::None;
    assert!((5..50).contains(&taken), "{taken} are taken");
    assert!(answers.iter().all(|answer| answer.as_ref().err().is_none_or(refused)), "{answers:?}");
    let mut consumer = consumer(&*broker, &queue).await;
    for _ in 0..taken {
        let task = next(&mut *consumer).await;
        assert!(answers[Sample::number(&task).unwrap() as usize].is_ok(), "one that was refused is there");
        settle(&*consumer, &task, Settlement::Done).await;
    }
    assert!(consumer.reserve(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_delayed_tasks_of_a_queue_are_purged_and_none_of_another() {
    let node = node().await;
    let (broker, queue, near) = (connect(&node, "").await, name("purged"), name("purged"));
    for (queue, count) in [(&queue, 600), (&near, 3)] {
        let delays = (0..count).map(|n| Sample::new(n).priority(n as u32 * 7).delay(Duration::from_secs(600 + n * 3)).envelope());
        let sent = broker.send(queue, &delays.collect::<Vec<_>>()).await;
        assert!(sent.iter().all(Result::is_ok));
    }
    let first = broker.admin().peek(&queue, State::Delayed, 2).await.unwrap();
    let numbers: Vec<_> = first.iter().map(|task| task.remaining.unwrap().as_secs().div_ceil(10)).collect();
    assert!(first.len() == 2 && numbers.iter().all(|left| (55..=61).contains(left)), "the first that are due: {numbers:?}");
    assert_eq!(broker.admin().purge(&queue, &[State::Delayed]).await.unwrap(), 600);
    assert_eq!(broker.admin().peek(&near, State::Delayed, 10).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_in_bands_of_other_settings_are_worked_on() {
    let node = node().await;
    let (sender, queue) = (connect(&node, "").await, name("bands"));
    let levels = [0, 500, 1024, 2000, 5000];
    let tasks: Vec<_> = levels.iter().enumerate().map(|(n, level)| Sample::new(n as u64).priority(*level).envelope()).collect();
    assert!(sender.send(&queue, &tasks).await.iter().all(Result::is_ok));
    let worker = connect(&node, "bands=none").await;
    let declared = worker.declare(&queue).await.unwrap();
    let named = |drift: &anyqueue_core::Drift| drift.what == format!("bands of {queue}") && drift.found.contains("1 tasks");
    assert_eq!(declared.drift.iter().filter(|drift| named(drift)).count(), 4, "{declared:?}");
    let mut consumer = consumer(&*worker, &queue).await;
    let mut numbers = Vec::new();
    for _ in levels {
        let delivery = next(&mut *consumer).await;
        numbers.extend(Sample::number(&delivery));
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_servers_own_is_refused_as_such() {
    let node = node().await;
    let broker = connect(&node, "").await;
    let queue = QueueName::new("amq.mail").unwrap();
    for error in [broker.declare(&queue).await.unwrap_err(), broker.send(&queue, &Sample::many(1)).await.remove(0).unwrap_err()] {
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("`amq.`"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_management_api_counts_what_workers_have() {
    let port = anyqueue_testkit::free_port().unwrap();
    let listener = [format!("management.tcp.port = {port}"), "management.tcp.ip = 127.0.0.1".into()];
    let node = start("rabbitmq_management", listener).await;
    let (broker, queue) = (connect(&node, &format!("management=http://127.0.0.1:{port}")).await, name("counted.x"));
    broker.declare(&queue).await.unwrap();
    assert!(broker.send(&queue, &Sample::many(3)).await.iter().all(Result::is_ok));
    let mut consumer = consumer(&*broker, &queue).await;
    let _held = next(&mut *consumer).await;
    let until = Instant::now() + SOON;
    while broker.admin().stats(&queue).await.unwrap().reserved != Figure::Approximate(1) {
        assert!(Instant::now() < until, "{:?}", broker.admin().stats(&queue).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(!format!("{:?}", broker.diagnose().await.unwrap()).contains("management"));
    let plain = connect(&node, "").await;
    assert_eq!(plain.admin().stats(&queue).await.unwrap().reserved, Figure::Unknown, "never nought");
    let wrong = connect(&node, &format!("management=http://guest:wr0ng@127.0.0.1:{port}")).await;
    assert_eq!(wrong.admin().stats(&queue).await.unwrap().reserved, Figure::Unknown);
    let said = format!("{:?}", wrong.diagnose().await.unwrap());
    assert!(said.contains("denies this user") && !said.contains("wr0ng"), "{said}");
    for says in ["the server is RabbitMQ ", "quorum, priorities in 5 queues", "heartbeats"] {
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_delivery_limit_takes_no_held_task_away() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("policy"));
    broker.declare(&queue).await.unwrap();
    if !counts_returns(&*broker) {
        return;
    }
    let ids = park(&node, &queue, 3).await;
    let held = format!("^{queue};held$");
    node.control(&["set_policy", queue.as_str(), &held, "{\"delivery-limit\":1}", "--apply-to", "queues"]).await.unwrap();
    let until = Instant::now() + SOON;
    // Each look counts, until the server throws them out.
    while !broker.admin().held(&queue, None, 10).await.unwrap().tasks.is_empty() {
        assert!(Instant::now() < until, "the policy does not hold");
    }
    let told = broker.diagnose().await.unwrap();
    assert!(told.iter().any(|finding| finding.text.contains("delivery limit")), "{told:?}");
    let next = connect(&node, "").await;
    // The server throws them to where they are found again, and answers others meanwhile.
    let (mut kicked, until) = (0, Instant::now() + SOON);
    while kicked < ids.len() as u64 {
        assert!(Instant::now() < until, "{kicked} came back");
        next.declare(&queue).await.unwrap();
        kicked += next.admin().kick(&queue, &Which::All).await.unwrap();
    }
    let (mut consumer, mut numbers) = (consumer(&*next, &queue).await, Vec::new());
    while numbers.len() < ids.len() {
        let delivery = super::next(&mut *consumer).await;
        numbers.extend(Sample::number(&delivery));
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_only_the_server_finds_too_large_is_certainly_not_sent() {
    let node = start("", ["max_message_size = 1000000"]).await;
    let (broker, queue) = (connect(&node, "").await, name("large"));
    broker.declare(&queue).await.unwrap();
    let mut large = Sample::new(1).envelope();
    large.body = vec![b'x'; 1_000_001].into();
    for _ in 0..2 {
        let error = broker.send(&queue, std::slice::from_ref(&large)).await.remove(0).unwrap_err();
        let size = ErrorKind::TooLarge { size: 1_000_001, limit: 1_000_000 };
        assert_eq!((error.kind(), error.effect()), (size, Effect::None), "{error}");
    }
    broker.send(&queue, &[Sample::new(2).envelope()]).await.remove(0).unwrap();
}

//! What the suite does not ask: other clients' tasks, drift, deleted queues, alarms, rights, the most urgent first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "server/addresses.rs"]
mod addresses;
#[path = "server/cluster.rs"]
mod cluster;
#[path = "server/deaths.rs"]
mod deaths;
#[path = "server/deleted.rs"]
mod deleted;
#[path = "server/idle.rs"]
mod idle;
#[path = "server/operator.rs"]
mod operator;

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyqueue_core::{
    Broker, ConnectOptions, ConsumeOptions, Consumer, Create, Defaults, Delivery, Effect, ErrorKind, Figure, Incoming, Paused,
    QueueName, Settlement, State, TaskId, Which,
};
use anyqueue_testkit::servers::rabbitmq::{self, Node};
use anyqueue_testkit::{Sample, Server, SystemClock};
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::Mutex;

static SHARED: Mutex<Weak<Node>> = Mutex::const_new(Weak::new());
/// A node that starts takes a processor for six seconds. Who goes by a patience of the adapter's has none start beside it.
static STARTS: Mutex<()> = Mutex::const_new(());
const SOON: Duration = Duration::from_secs(20);

async fn node() -> Arc<Node> {
    let mut shared = SHARED.lock().await;
    if let Some(node) = shared.upgrade() {
        return node;
    }
    let node = Arc::new(start("", [""; 0]).await);
    *shared = Arc::downgrade(&node);
    node
}

async fn start<T: AsRef<str>>(plugins: &str, settings: impl IntoIterator<Item = T>) -> Node {
    let _one = STARTS.lock().await;
    rabbitmq::start_with(plugins, settings).await.unwrap()
}

fn options(node: &Node, query: &str) -> ConnectOptions {
    ConnectOptions::new(&format!("amqp://{}?{query}", node.address()), Arc::new(SystemClock)).unwrap()
}

async fn connect(node: &Node, query: &str) -> Arc<dyn Broker> {
    anyqueue_rabbitmq::DRIVER.open(options(node, query)).await.unwrap()
}

/// Another client, of any language.
async fn other(node: &Node) -> (Connection, Channel) {
    let uri = format!("amqp://{}", node.address());
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

fn name(label: &str) -> QueueName {
    QueueName::new(format!("{label}-{:08x}", fastrand::u32(..))).unwrap()
}

async fn consumer(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    broker.consume(queue, ConsumeOptions::default()).await.unwrap()
}

async fn next(consumer: &mut dyn Consumer) -> Delivery {
    let until = Instant::now() + SOON;
    loop {
        let came = consumer.reserve(NonZeroUsize::MIN, Duration::from_secs(1)).await;
        assert!(Instant::now() < until, "no task came: {came:?}");
        if let Some(delivery) = came.ok().and_then(|mut got| got.pop()) {
            return delivery;
        }
    }
}

async fn settle(consumer: &dyn Consumer, delivery: &Delivery, what: Settlement) {
    consumer.settler().settle(&[(delivery.receipt.clone(), what)]).await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_other_clients_run_and_ours_are_plain_messages() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("foreign"));
    broker.declare(&queue).await.unwrap();
    let (_connection, channel) = other(&node).await;
    let body = br#"{"task":"test","store":"0","data":{"message":"hello"}}"#;
    let sent =
        channel.basic_publish("".into(), queue.as_str().into(), BasicPublishOptions::default(), body, BasicProperties::default());
    sent.await.unwrap().await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let delivery = next(&mut *consumer).await;
    let task = Incoming::read(&delivery, "default", Defaults::default());
    assert_eq!((task.wire.task.as_str(), task.wire.store.as_str(), task.priority), ("test", "0", 1024));
    assert_eq!(delivery.lease, ConsumeOptions::default().ttr, "the queue's TTR");
    settle(&*consumer, &delivery, Settlement::Done).await;
    consumer.close().await.unwrap();
    broker.send(&queue, &[Sample::new(7).envelope()]).await.remove(0).unwrap();
    let got = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    assert!(got.delivery.data.starts_with(br#"{"task":"sample""#), "{}", String::from_utf8_lossy(&got.delivery.data));
    assert_eq!(got.delivery.properties.delivery_mode(), &Some(2), "persistent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_used_and_reported() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("drift"));
    let (_connection, channel) = other(&node).await;
    let mut classic = FieldTable::default();
    classic.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), classic).await.unwrap();
    broker.declare(&queue).await.unwrap();
    for _ in 0..2 {
        let declared = broker.declare(&queue).await.unwrap();
        // The server names the first argument that differs.
        let [drift] = declared.drift.as_slice() else { panic!("{declared:?}") };
        assert!(drift.what.starts_with("x-") && drift.what.ends_with(queue.as_str()) && drift.found == "none", "{drift:?}");
        assert!(!declared.created);
    }
    broker.send(&queue, &[Sample::new(1).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(Sample::number(&next(&mut *consumer).await), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_made_anew_and_nothing_is_confirmed_into_the_void() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("deleted"));
    broker.declare(&queue).await.unwrap();
    let (_connection, channel) = other(&node).await;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    broker.send(&queue, &[Sample::new(1).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(Sample::number(&next(&mut *consumer).await), Some(1));
    let mut careful = options(&node, "");
    careful.create = Create::Never;
    let careful = anyqueue_rabbitmq::DRIVER.open(careful).await.unwrap();
    careful.declare(&queue).await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let error = careful.send(&queue, &[Sample::new(2).envelope()]).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("queue-runner init"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_more_urgent_task_that_comes_later_begins_before_those_that_wait() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("urgent"));
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &Sample::many(20)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    let mut consumer = consumer(&*broker, &queue).await;
    let delivery = next(&mut *consumer).await;
    settle(&*consumer, &delivery, Settlement::Done).await;
    let ready = async || broker.admin().stats(&queue).await.unwrap().ready.value().unwrap();
    let before = ready().await;
    let urgent: Vec<_> = (100..130).map(|number| Sample::new(number).priority(0).envelope()).collect();
    broker.send(&queue, &urgent).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    // The server counts, and hands out, a moment after it has confirmed.
    let until = Instant::now() + SOON;
    // Some may be fetched already, and some that were may be back.
    while ready().await < before + 25 {
        assert!(Instant::now() < until, "they are not ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 100..130 {
        let delivery = next(&mut *consumer).await;
        assert_eq!(Sample::number(&delivery), Some(number));
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
    assert_eq!(Sample::number(&next(&mut *consumer).await), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_hears_of_nothing_only_when_there_is_nothing() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("backlog"));
    broker.declare(&queue).await.unwrap();
    assert!(broker.send(&queue, &Sample::many(3000)).await.iter().all(Result::is_ok));
    let mut consumer = broker.consume(&queue, ConsumeOptions { prefetch: 1000, ..ConsumeOptions::default() }).await.unwrap();
    // First a few are asked for, then many.
    let (mut most, mut left) = (NonZeroUsize::new(10).unwrap(), 3000);
    while left > 0 {
        let got = consumer.reserve(most, Duration::ZERO).await.unwrap();
        assert!(!got.is_empty(), "{left} are there still");
        (most, left) = (NonZeroUsize::new(300).unwrap(), left - got.len());
        let died = got.iter().filter(|delivery| delivery.native.redeliveries != Figure::Exact(0)).count();
        assert_eq!(died, 0, "nobody died");
        let done: Vec<_> = got.iter().map(|delivery| (delivery.receipt.clone(), Settlement::Done)).collect();
        assert!(consumer.settler().settle(&done).await.iter().all(Result::is_ok));
    }
    assert!(consumer.reserve(most, Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttr_above_the_servers_is_refused_by_the_settings_name() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "consumer_timeout=10m").await, name("ttr"));
    broker.declare(&queue).await.unwrap();
    let error = broker.send(&queue, &[Sample::new(1).ttr(Duration::from_secs(481)).envelope()]).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TtrTooLong { limit: Duration::from_secs(480) });
    assert!(error.to_string().contains("`consumer_timeout`"), "{error}");
    let notes = broker.diagnose().await.unwrap();
    assert!(notes.iter().any(|finding| finding.text.contains("consumer_timeout") && finding.text.contains("8m")), "{notes:?}");
    assert!(broker.info().version.is_some_and(|version| version.starts_with("RabbitMQ ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_outlasts_the_servers_timeout_comes_again_and_its_worker_is_told() {
    // The server closes the channel with PRECONDITION_FAILED; it looks each minute, and here each second.
    let node = start("", ["consumer_timeout = 2000"]).await;
    node.control(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]).await.unwrap();
    let (broker, queue) = (connect(&node, "").await, name("outlasted"));
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &[Sample::new(1).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let first = next(&mut *consumer).await;
    let again = next(&mut *consumer).await;
    assert_eq!((Sample::number(&again), again.receipt == first.receipt), (Some(1), false));
    let late = consumer.settler().settle(&[(first.receipt, Settlement::Done)]).await.remove(0);
    assert_eq!(late.unwrap_err().kind(), ErrorKind::LeaseLost, "its channel is gone");
    settle(&*consumer, &again, Settlement::Done).await;
}

/// From 4.3 on, what is given back unharmed does not count.
fn counts_returns(broker: &dyn Broker) -> bool {
    let version = broker.info().version.expect("told once it is connected");
    let mut numbers = version.trim_start_matches("RabbitMQ ").split('.').map(|number| number.parse::<u32>().unwrap());
    let counts = [numbers.next().unwrap(), numbers.next().unwrap()] < [4, 3];
    if !counts {
        println!("{version} counts no returns: nothing to see");
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_delivery_limit_throws_out_is_held() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("limit"));
    let (_connection, channel) = other(&node).await;
    let mut limited = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-delivery-limit", AMQPValue::LongLongInt(1)),
        ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
        ("x-dead-letter-routing-key", AMQPValue::LongString(format!("{queue};held").into())),
    ] {
        limited.insert(key.into(), value);
    }
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), limited).await.unwrap();
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &[Sample::new(1).ttr(Duration::from_secs(1)).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    for _ in 0..2 {
        drop(next(&mut *consumer).await);
    }
    let until = Instant::now() + SOON;
    while broker.admin().peek(&queue, State::Held, 5).await.unwrap().is_empty() {
        assert!(Instant::now() < until, "the task is gone");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    assert_eq!(Sample::number(&next(&mut *consumer).await), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_alarm_refuses_sends_and_lets_workers_finish() {
    let node = Arc::new(start("", ["vm_memory_high_watermark.absolute = 1GB"]).await);
    let (broker, queue) = (connect(&node, "").await, name("alarm"));
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &Sample::many(2)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    let mut consumer = consumer(&*broker, &queue).await;
    let (first, second) = (next(&mut *consumer).await, next(&mut *consumer).await);
    node.control(&["set_vm_memory_high_watermark", "0.000001"]).await.unwrap();
    let until = Instant::now() + SOON;
    let refused = loop {
        match broker.send(&queue, &[Sample::new(3).envelope()]).await.remove(0) {
            Err(error) if error.kind() == ErrorKind::Full => break error,
            _ => assert!(Instant::now() < until, "the alarm is not noticed"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(refused.is_retryable() && refused.to_string().contains("alarm"), "{refused}");
    settle(&*consumer, &first, Settlement::Done).await;
    settle(&*consumer, &second, Settlement::Done).await;
    assert!(broker.diagnose().await.unwrap().iter().any(|finding| finding.text.contains("alarm")));
    node.control(&["set_vm_memory_high_watermark", "0.9"]).await.unwrap();
    let until = Instant::now() + SOON;
    while broker.send(&queue, &[Sample::new(4).envelope()]).await.remove(0).is_err() {
        assert!(Instant::now() < until, "the end of the alarm is not noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_queue_with_x_max_priority_keeps_all_bands_in_order() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "type=classic&x_max_priority=true").await, name("native"));
    broker.declare(&queue).await.unwrap();
    let priorities = [5000, 1024, 0, 2048, 512, 1024];
    let tasks: Vec<_> =
        (0..).zip(priorities).map(|(number, priority)| Sample::new(number).priority(priority).envelope()).collect();
    broker.send(&queue, &tasks).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    assert_eq!(broker.admin().stats(&queue).await.unwrap().ready.value(), Some(6), "all in one");
    let mut consumer = consumer(&*broker, &queue).await;
    for number in [2, 4, 1, 5, 3, 0] {
        let delivery = next(&mut *consumer).await;
        assert_eq!(Sample::number(&delivery), Some(number));
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
    let range = ConsumeOptions { priorities: 0..=512, ..ConsumeOptions::default() };
    assert_eq!(broker.consume(&queue, range).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let plain = connect(&node, "type=classic&bands=none").await;
    let declared = plain.declare(&queue).await.unwrap();
    assert!(declared.drift.iter().any(|drift| drift.what.contains("x-max-priority") && drift.found == "4"), "{declared:?}");
}

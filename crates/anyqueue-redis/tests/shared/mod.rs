//! What the tests on a server of their own share.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it, and fails where something fails")]

pub(crate) mod cluster;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue_core::{
    Broker, ConnectOptions, ConsumeOptions, Consumer, Delivery, Envelope, QueueName, Result, Settlement, Settler,
};
use anyqueue_testkit::{Sample, Server, SystemClock};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn options(url: &str) -> ConnectOptions {
    ConnectOptions::new(url, Arc::new(SystemClock)).unwrap()
}

pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Broker>> {
    anyqueue_redis::DRIVER.open(options(url)).await
}

pub(crate) fn url(server: &dyn Server) -> String {
    format!("redis://{}", server.address())
}

/// A plain connection, to do to a server what operators do.
pub(crate) async fn operator(server: &dyn Server) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
    client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
}

/// A command written as in `redis-cli`.
pub(crate) fn words(text: &str) -> Cmd {
    let mut command = Cmd::new();
    for word in text.split(' ') {
        command.arg(word);
    }
    command
}

pub(crate) async fn tell<T: FromRedisValue>(connection: &mut MultiplexedConnection, text: &str) -> T {
    words(text).query_async(connection).await.unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub(crate) async fn send(broker: &dyn Broker, queue: &QueueName, tasks: &[Envelope]) -> Result<()> {
    broker.send(queue, tasks).await.into_iter().try_for_each(|answer| answer.map(drop))
}

pub(crate) async fn send_one(broker: &dyn Broker, queue: &QueueName, number: u64) -> Result<()> {
    send(broker, queue, &[Sample::new(number).envelope()]).await
}

pub(crate) async fn consumer(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    broker.consume(queue, ConsumeOptions { prefetch: 1024, ..ConsumeOptions::default() }).await.unwrap()
}

pub(crate) async fn reserve(consumer: &mut dyn Consumer, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
    consumer.reserve(NonZeroUsize::new(max).unwrap(), wait).await
}

/// Asks until a task has come. Errors on the way are tried again.
pub(crate) async fn until_given(consumer: &mut dyn Consumer) -> Vec<Delivery> {
    loop {
        match reserve(consumer, 1, Duration::from_secs(14)).await {
            Ok(got) if !got.is_empty() => return got,
            answer => println!("{answer:?}"),
        }
    }
}

pub(crate) async fn settle_all(settler: &dyn Settler, deliveries: &[Delivery], what: Settlement) -> Result<()> {
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.receipt.clone(), what.clone())).collect();
    settler.settle(&batch).await.into_iter().collect()
}

/// Takes tasks and settles them as done until so many were; their numbers. Errors on the way are tried again.
pub(crate) async fn work(consumer: &mut dyn Consumer, count: usize, patience: Duration) -> Vec<u64> {
    let (began, settler, mut numbers) = (Instant::now(), consumer.settler(), Vec::new());
    while numbers.len() < count {
        assert!(began.elapsed() < patience, "{} of {count} tasks within {patience:?}", numbers.len());
        let deliveries = match reserve(consumer, 100, Duration::from_secs(1)).await {
            Ok(deliveries) => deliveries,
            Err(e) => {
                println!("tried again: {e:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if settle_all(&*settler, &deliveries, Settlement::Done).await.is_ok() {
            numbers.extend(deliveries.iter().map(|delivery| Sample::number(delivery).unwrap_or(u64::MAX)));
        }
    }
    numbers
}

/// Tries until it works.
pub(crate) async fn eventually<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(mut act: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match act().await {
            Ok(value) => return value,
            Err(e) => assert!(began.elapsed() < Duration::from_secs(60), "still failing: {e:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a consumer of a queue has left its mark: it found nothing, and wants to be rung.
pub(crate) async fn somebody_waits(server: &dyn Server, queue: &QueueName) {
    let (mut operator, question) = (operator(server).await, format!("HEXISTS anyqueue:{{{queue}}} bell"));
    let began = Instant::now();
    while !tell::<bool>(&mut operator, &question).await {
        assert!(began.elapsed() < SOON, "nobody waits for {queue}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until one connection is there on which consumers of a queue are rung.
pub(crate) async fn somebody_listens(server: &dyn Server, queue: &QueueName) {
    let (mut operator, question) = (operator(server).await, format!("PUBSUB NUMSUB anyqueue:{{{queue}}}"));
    let began = Instant::now();
    while tell::<(String, u64)>(&mut operator, &question).await.1 != 1 {
        assert!(began.elapsed() < SOON, "nobody listens for {queue}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

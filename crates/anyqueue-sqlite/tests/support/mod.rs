//! What the tests of this crate share: a file in a temp folder, tasks.

// Each test file is a program of its own and uses a part.
#![allow(dead_code, clippy::unwrap_used)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::{Broker, Bytes, ConnectOptions, ConsumeOptions, Consumer, Delivery, Envelope, QueueName, Result, TaskId};
use anyqueue_testkit::SystemClock;

pub(crate) const WAIT: Duration = Duration::from_secs(10);

pub(crate) fn options(path: &Path) -> ConnectOptions {
    ConnectOptions::new(&format!("sqlite:{}", path.display()), Arc::new(SystemClock)).unwrap()
}

/// A broker of its own: brokers share a writing thread only if they share a clock.
pub(crate) async fn open(path: &Path) -> Arc<dyn Broker> {
    anyqueue_sqlite::DRIVER.open(options(path)).await.unwrap()
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn task(body: &str) -> Envelope {
    Envelope {
        id: TaskId::new(SystemTime::now()),
        body: Bytes::copy_from_slice(body.as_bytes()),
        priority: 1024,
        delay: Duration::ZERO,
        ttr: Duration::from_secs(60),
        group: None,
        unique: None,
        probation: false,
    }
}

pub(crate) async fn send(broker: &dyn Broker, queue: &QueueName, tasks: &[Envelope]) {
    for answer in broker.send(queue, tasks).await {
        answer.unwrap();
    }
}

pub(crate) async fn consumer(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    broker.consume(queue, ConsumeOptions { prefetch: 1024, ..ConsumeOptions::default() }).await.unwrap()
}

pub(crate) async fn take(consumer: &mut dyn Consumer, max: usize) -> Result<Vec<Delivery>> {
    consumer.reserve(NonZeroUsize::new(max).unwrap(), WAIT).await
}

pub(crate) fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.raw.to_vec()).unwrap()).collect()
}

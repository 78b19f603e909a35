//! What the tests on a server of their own share.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it, and fails where something fails")]

pub(crate) mod stub;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyqueue_core::{
    Broker, ConnectOptions, ConsumeOptions, Consumer, Defaults, Delivery, Envelope, Incoming, QueueName, Result, Settlement,
    Settler,
};
use anyqueue_testkit::servers::sqs;
use anyqueue_testkit::{Process, Server, SystemClock};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::MessageAttributeValue;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const QUIET: Duration = Duration::from_millis(700);

/// A server, and a client that knows nothing of anyqueue.
pub(crate) struct Place {
    pub(crate) server: Process,
    pub(crate) raw: Client,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let server = sqs::start(sqs::ministack()).await.unwrap();
        let http = aws_smithy_http_client::Builder::new().build_http();
        let settings = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .endpoint_url(format!("http://{}", server.address()))
            .http_client(http);
        Self { raw: Client::from_conf(settings.build()), server }
    }

    pub(crate) fn url(&self) -> String {
        format!("sqs://{}", self.server.address())
    }

    pub(crate) fn options(&self) -> ConnectOptions {
        ConnectOptions::new(&self.url(), Arc::new(SystemClock)).unwrap()
    }

    pub(crate) async fn connect(&self) -> Arc<dyn Broker> {
        anyqueue_sqs::DRIVER.open(self.options()).await.unwrap()
    }

    pub(crate) async fn queue_url(&self, name: &str) -> String {
        self.raw.get_queue_url().queue_name(name).send().await.unwrap().queue_url.unwrap()
    }

    /// Sends a body as any other client would, or with a slip of ours.
    pub(crate) async fn put(&self, name: &str, body: &str, slip: Option<&str>) {
        let url = self.queue_url(name).await;
        let mut message = self.raw.send_message().queue_url(url).message_body(body);
        if let Some(slip) = slip {
            let value = MessageAttributeValue::builder().data_type("String").string_value(slip).build().unwrap();
            message = message.message_attributes("anyqueue", value);
        }
        message.send().await.unwrap();
    }
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub(crate) async fn send(broker: &dyn Broker, queue: &QueueName, tasks: &[Envelope]) -> Result<()> {
    broker.send(queue, tasks).await.into_iter().try_for_each(|answer| answer.map(drop))
}

pub(crate) async fn consumer(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    broker.consume(queue, ConsumeOptions::default()).await.unwrap()
}

pub(crate) async fn reserve(consumer: &mut dyn Consumer, max: usize, wait: Duration) -> Vec<Delivery> {
    consumer.reserve(NonZeroUsize::new(max).unwrap(), wait).await.unwrap()
}

pub(crate) async fn one(consumer: &mut dyn Consumer) -> Delivery {
    reserve(consumer, 1, SOON).await.pop().expect("a task comes soon")
}

pub(crate) fn incoming(delivery: &Delivery) -> Incoming {
    Incoming::read(delivery, "default", Defaults::default())
}

pub(crate) async fn settle(settler: &dyn Settler, delivery: &Delivery, what: Settlement) -> Result<()> {
    settler.settle(&[(delivery.receipt.clone(), what)]).await.remove(0)
}

/// Tries until it holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, patience: Duration, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

//! The least on RabbitMQ with lapin: persistent messages, mandatory and confirmed, 64 under way on one channel; consumed on
//! one channel with a prefetch of what 64 slots take, acknowledged 32 at a time in one word. What a task needs beside its body
//! is there: an id, by which it is known when it comes back, when it was sent, and headers with priority and TTR.

use std::time::Instant;

use anyqueue_testkit::Server;
use anyqueue_testkit::servers::rabbitmq;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};

use crate::load::{PICKED, Payload, Raw, SENDERS, SLOTS, now, pause, queues, rate, speed, text};

const BATCH: usize = 32;
const QUEUE: &str = "raw";
const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

struct RawRabbitMq {
    sending: Channel,
    working: Channel,
    feed: Option<Consumer>,
    _connection: Connection,
}

impl RawRabbitMq {
    async fn connect(url: &str, kind: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connects");
        let sending = connection.create_channel().await.expect("a channel");
        let working = connection.create_channel().await.expect("a channel");
        sending.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        working.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments).await.expect("a queue");
        working.basic_qos((SLOTS + BATCH) as u16, BasicQosOptions::default()).await.expect("a limit");
        Self { sending, working, feed: None, _connection: connection }
    }

    async fn send(&self, senders: usize, tasks: usize) -> f64 {
        let (start, each) = (Instant::now(), tasks / senders);
        let sending = (0..senders).map(|sender| {
            let channel = self.sending.clone();
            tokio::spawn(async move {
                let mut headers = FieldTable::default();
                headers.insert("priority".into(), AMQPValue::LongLongInt(1024));
                headers.insert("ttr".into(), AMQPValue::LongLongInt(60_000));
                let properties =
                    BasicProperties::default().with_delivery_mode(2).with_timestamp(1_700_000_000).with_headers(headers);
                for id in 0..each {
                    let (body, to) = (text(id as u64), ShortString::from(QUEUE));
                    let properties = properties.clone().with_message_id(format!("{sender:08x}-{id:028x}").into());
                    let put = channel.basic_publish("".into(), to, MANDATORY, body.as_bytes(), properties);
                    let confirmed = put.await.expect("sends").await.expect("confirms");
                    assert!(confirmed.is_ack() && confirmed.take_message().is_none());
                }
            })
        });
        for sender in sending.collect::<Vec<_>>() {
            sender.await.expect("no panic");
        }
        rate(each * senders, start.elapsed())
    }

    /// Takes so many off the queue.
    async fn work(&mut self, tasks: usize) {
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        if self.feed.is_none() {
            self.feed = Some(self.working.basic_consume(QUEUE.into(), "".into(), options, arguments).await.expect("consumes"));
        }
        let feed = self.feed.as_mut().expect("there is one now");
        for count in 1..=tasks {
            let delivery = feed.next().await.expect("goes on").expect("a delivery");
            drop(serde_json::from_slice::<Payload>(&delivery.data).expect("a payload"));
            if count.is_multiple_of(BATCH) || count == tasks {
                self.working.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.expect("acknowledges");
            }
        }
        // A backlog is to be drained the next time, not to be taken as it comes.
        let tag = feed.tag();
        self.working.basic_cancel(tag, lapin::options::BasicCancelOptions::default()).await.expect("cancels");
        self.feed = None;
    }
}

impl Raw for RawRabbitMq {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        let rate = self.send(1, tasks).await;
        self.work(tasks).await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let sent = self.send(SENDERS, tasks).await;
        let start = Instant::now();
        let tasks = tasks / SENDERS * SENDERS;
        self.work(tasks).await;
        [sent, rate(tasks, start.elapsed())]
    }
}

impl crate::PickUp for RawRabbitMq {
    async fn pick_up(&mut self) -> Option<Vec<u64>> {
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut feed = self.working.basic_consume(QUEUE.into(), "".into(), options, arguments).await.expect("consumes");
        let channel = self.sending.clone();
        let sending = tokio::spawn(async move {
            for n in 0..PICKED {
                tokio::time::sleep(pause(n)).await;
                let (to, persistent) = (ShortString::from(QUEUE), BasicProperties::default().with_delivery_mode(2));
                let sent = now().to_string();
                let put = channel.basic_publish("".into(), to, MANDATORY, sent.as_bytes(), persistent);
                assert!(put.await.expect("sends").await.expect("confirms").is_ack());
            }
        });
        let mut samples = Vec::new();
        while samples.len() < PICKED as usize {
            let delivery = feed.next().await.expect("goes on").expect("a delivery");
            samples.push(now() - std::str::from_utf8(&delivery.data).expect("text").parse::<u64>().expect("a time"));
            self.working.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("acknowledges");
        }
        sending.await.expect("no panic");
        self.working.basic_cancel(feed.tag(), lapin::options::BasicCancelOptions::default()).await.expect("cancels");
        Some(samples)
    }
}

/// Quorum and classic queues, each on a server of its own.
pub(crate) async fn run(tasks: usize) {
    for kind in ["quorum", "classic"] {
        let server = rabbitmq::start([""; 0]).await.expect("starts");
        let url = format!("amqp://{}", server.address());
        println!("rabbitmq, {kind}");
        let mut raw = RawRabbitMq::connect(&url, kind).await;
        let broker = format!("url = \"{url}?type={kind}\"");
        let (ours, other) = (queues(&broker, "").await, queues(&broker, "").await);
        let used = || server.id().map_or(0.0, crate::load::meter::cpu_of);
        speed(&ours, &mut raw, tasks, used).await;
        crate::latencies(&ours, &other, &mut raw).await;
    }
}

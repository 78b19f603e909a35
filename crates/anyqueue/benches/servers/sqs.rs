//! The least on SQS: the bare SDK, ten messages a request, as many tasks under way as anyqueue has. What a
//! message needs beside its body is there: an attribute with priority and TTR, and the count of its deliveries.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyqueue::{Queue, Runner, Task};
use anyqueue_testkit::{Process, Server, servers::sqs};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, MessageAttributeValue, MessageSystemAttributeName, SendMessageBatchRequestEntry,
};

use crate::load::{self, PICKED, Payload, Raw, now, quantiles, queues, rate, send_slowly, text, warm};

const BATCH: usize = 10;
/// As many requests as the tasks of all senders, or slots, fill.
const UNDER_WAY: usize = load::SLOTS.div_ceil(BATCH);
/// How long a request waits at the most. This server hands tasks to requests of consumers that have ended, too, and SQS takes
/// no request back.
pub(crate) const WAIT: Duration = Duration::from_secs(2);

/// A server that speaks SQS's protocol, with its messages in memory: the fastest there is, and the ceiling all the same.
pub(crate) async fn start() -> Process {
    sqs::start(sqs::fauxqs(false)).await.expect("`.ci/install` installs it")
}

pub(crate) struct RawSqs {
    client: Client,
    url: String,
}

impl RawSqs {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let settings = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "bench"))
            .endpoint_url(format!("http://{address}"))
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        let client = Client::from_conf(settings.build());
        let made = client.create_queue().queue_name("raw").send().await.expect("creates");
        Self { client, url: made.queue_url.expect("a URL") }
    }

    async fn send(client: Client, url: String, batches: usize) {
        for batch in 0..batches {
            let entry = |n: usize| {
                let entry = SendMessageBatchRequestEntry::builder().id(n.to_string());
                let beside = MessageAttributeValue::builder().data_type("String").string_value("p1024 t60").build();
                let entry = entry.message_attributes("beside", beside.expect("an attribute")).delay_seconds(0);
                entry.message_body(text((batch * BATCH + n) as u64)).build().expect("an entry")
            };
            let request = client.send_message_batch().queue_url(&url).set_entries(Some((0..BATCH).map(entry).collect()));
            assert!(request.send().await.expect("sends").failed.is_empty());
        }
    }

    async fn work(client: Client, url: String) -> usize {
        let mut count = 0;
        loop {
            let received = client.receive_message().queue_url(&url).max_number_of_messages(BATCH as i32).visibility_timeout(60);
            let counted = received.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
            let messages = counted.message_attribute_names("beside").send().await.expect("receives").messages.unwrap_or_default();
            if messages.is_empty() {
                return count;
            }
            count += messages.len();
            let entry = |(n, message): (usize, &aws_sdk_sqs::types::Message)| {
                drop(serde_json::from_str::<Payload>(message.body().expect("a body")).expect("a payload"));
                let entry = DeleteMessageBatchRequestEntry::builder().id(n.to_string());
                entry.receipt_handle(message.receipt_handle().expect("a handle")).build().expect("an entry")
            };
            let entries = messages.iter().enumerate().map(entry).collect();
            let request = client.delete_message_batch().queue_url(&url).set_entries(Some(entries));
            assert!(request.send().await.expect("deletes").failed.is_empty());
        }
    }

    async fn drain(&self) -> usize {
        let workers: Vec<_> = (0..UNDER_WAY).map(|_| tokio::spawn(Self::work(self.client.clone(), self.url.clone()))).collect();
        let mut count = 0;
        for worker in workers {
            count += worker.await.expect("no panic");
        }
        count
    }
}

impl Raw for RawSqs {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        let start = Instant::now();
        for id in 0..tasks {
            let request = self.client.send_message().queue_url(&self.url).message_body(text(id as u64));
            request.send().await.expect("sends");
        }
        let rate = rate(tasks, start.elapsed());
        self.drain().await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let (start, each) = (Instant::now(), tasks / BATCH / UNDER_WAY);
        let sending = (0..UNDER_WAY).map(|_| tokio::spawn(Self::send(self.client.clone(), self.url.clone(), each)));
        for sender in sending.collect::<Vec<_>>() {
            sender.await.expect("no panic");
        }
        let sent = rate(each * BATCH * UNDER_WAY, start.elapsed());
        let start = Instant::now();
        let count = self.drain().await;
        [sent, rate(count, start.elapsed())]
    }
}

/// The pick-up from one queue that is watched alone, and from one of fifty of which the others are empty, by turns.
pub(crate) async fn watching_many(server: &Process) {
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        alone.extend(pick_up(server, 1).await);
        among.extend(pick_up(server, 50).await);
    }
    quantiles("W4 watched alone", &alone);
    quantiles("W4 among 49 empty queues", &among);
    let [alone, among] = [alone, among].map(p99);
    println!("  p99 among 49 empty queues to alone: ratio {:.2}", among / alone);
}

fn p99(mut samples: Vec<u64>) -> f64 {
    samples.sort_unstable();
    samples[samples.len() * 99 / 100] as f64
}

/// The pick-up while so many queues are watched, in microseconds.
async fn pick_up(server: &Process, watched: usize) -> Vec<u64> {
    let names: Vec<String> = (1..watched).map(|n| format!("empty-{n}")).collect();
    let more: String = names.iter().map(|name| format!("[queues.{name}]\n")).collect();
    let broker = format!("url = \"sqs://{}?wait={}s\"", server.address(), WAIT.as_secs());
    let (worker, producer) = (queues(&broker, &more).await, queues(&broker, "").await);
    let samples = Arc::new(Mutex::new(Vec::new()));
    let noted = samples.clone();
    let busy = Queue::new("bench", ()).worker("noop", move |_, task: Task<u64>| {
        noted.lock().expect("no panic").push(now() - task.data);
        async {}
    });
    let runner = names.iter().fold(Runner::new(worker).queue(busy).slots(10), |runner, name| {
        runner.queue(Queue::new(name, ()).worker("noop", |_, _: Task<u64>| async {}))
    });
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    // Until all requests wait, and those of earlier consumers no more.
    tokio::time::sleep(WAIT * 2).await;
    send_slowly(&producer).await;
    while handle.progress().done < PICKED {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    handle.stop();
    run.await.expect("no panic").expect("stops");
    let samples = samples.lock().expect("no panic");
    warm(&samples)
}

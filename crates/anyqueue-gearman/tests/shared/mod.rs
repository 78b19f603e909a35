//! What the tests of this adapter share.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part, and fails where something fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue_core::{
    Broker, ConnectOptions, ConsumeOptions, Consumer, Defaults, Delivery, Envelope, Incoming, QueueName, Receipt, Result,
    Settlement, Settler,
};
use anyqueue_testkit::SystemClock;

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn queue() -> QueueName {
    QueueName::new("orders").unwrap()
}

pub(crate) async fn connect(address: SocketAddr, more: &str) -> Arc<dyn Broker> {
    connect_url(&format!("gearman://{address}?queue_type=libsqlite3{more}")).await
}

pub(crate) async fn connect_url(url: &str) -> Arc<dyn Broker> {
    anyqueue_gearman::DRIVER.open(ConnectOptions::new(url, Arc::new(SystemClock)).unwrap()).await.unwrap()
}

pub(crate) async fn consume(broker: &dyn Broker) -> Box<dyn Consumer> {
    broker.consume(&queue(), ConsumeOptions::default()).await.unwrap()
}

pub(crate) async fn send(broker: &dyn Broker, tasks: &[Envelope]) {
    broker.send(&queue(), tasks).await.into_iter().for_each(|answer| drop(answer.unwrap()));
}

pub(crate) async fn reserve(consumer: &mut dyn Consumer, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
    consumer.reserve(NonZeroUsize::new(max).unwrap(), wait).await
}

pub(crate) async fn one(consumer: &mut dyn Consumer) -> Delivery {
    reserve(consumer, 1, SOON).await.unwrap().pop().expect("a task in time")
}

/// Reserves until there are so many.
pub(crate) async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let (mut all, until) = (Vec::new(), Instant::now() + SOON * 3);
    while all.len() < count {
        assert!(Instant::now() < until, "{} of {count} tasks came", all.len());
        // A reserve fails while its server is away.
        all.extend(reserve(consumer, count - all.len(), SOON).await.unwrap_or_default());
    }
    all
}

pub(crate) async fn settle(settler: &dyn Settler, receipt: &Receipt, what: Settlement) -> Result<()> {
    settler.settle(&[(receipt.clone(), what)]).await.remove(0)
}

pub(crate) async fn done(consumer: &dyn Consumer, delivery: &Delivery) {
    settle(&*consumer.settler(), &delivery.receipt, Settlement::Done).await.unwrap();
}

pub(crate) fn read(delivery: &Delivery) -> Incoming {
    Incoming::read(delivery, "default", Defaults::default())
}

/// Asks a job server in its text protocol; the lines of the answer.
pub(crate) fn ask(address: SocketAddr, question: &str) -> Vec<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("{question}\r\n").as_bytes()).unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        if line == "." {
            break;
        }
        let single = line.starts_with("OK") || line.starts_with("ERR");
        lines.push(line);
        if single {
            break;
        }
    }
    lines
}

/// How many jobs a function has, running ones included, and how many run.
pub(crate) fn jobs(address: SocketAddr, function: &str) -> (u64, u64) {
    let line = ask(address, "status").into_iter().find(|line| line.split('\t').next() == Some(function));
    let numbers: Vec<u64> = line.iter().flat_map(|line| line.split('\t').skip(1)).map(|n| n.parse().unwrap()).collect();
    numbers.first().map_or((0, 0), |total| (*total, numbers[1]))
}

/// A foreign client or worker that says what it likes.
pub(crate) struct Raw(TcpStream);

pub(crate) const CAN_DO: u32 = 1;
pub(crate) const GRAB: u32 = 9;
pub(crate) const PROGRESS: u32 = 12;
pub(crate) const COMPLETE: u32 = 13;
pub(crate) const SUBMIT: u32 = 18;
pub(crate) const SUBMIT_LOW: u32 = 34;
pub(crate) const SUBMIT_LATER: u32 = 36;
const ECHO: u32 = 16;

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    pub(crate) fn say(&mut self, kind: u32, arguments: &[&str]) {
        let body = arguments.join("\0");
        let mut packet = b"\0REQ".to_vec();
        packet.extend(kind.to_be_bytes());
        packet.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        packet.extend(body.as_bytes());
        self.0.write_all(&packet).unwrap();
    }

    /// The arguments of the next answer.
    pub(crate) fn hear(&mut self) -> Vec<String> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes(head[8..].try_into().unwrap()) as usize];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8_lossy(&body).split('\0').map(ToOwned::to_owned).collect()
    }

    pub(crate) fn submit(&mut self, function: &str, unique: &str, data: &str) {
        self.say(SUBMIT, &[function, unique, data]);
        self.hear();
    }

    /// Waits until the server has done all that was said before.
    pub(crate) fn settle(&mut self) {
        self.say(ECHO, &["x"]);
        self.hear();
    }
}

/// A worker process that is killed: its connections end, and it makes no new ones.
pub(crate) fn kill(proxy: &anyqueue_testkit::Proxy) {
    proxy.refuse(true);
    proxy.cut();
}

pub(crate) async fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + SOON * 2;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

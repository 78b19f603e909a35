//! The least on beanstalkd: a connection per sender, and two that each delete 32 and reserve 32 in one write.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::load::{PICKED, Payload, Raw, SENDERS, SLOTS, now, pause, rate, text};

const BATCH: usize = 32;

pub(crate) struct RawBeanstalkd(pub(crate) SocketAddr);

struct Connection {
    input: BufReader<OwnedReadHalf>,
    output: OwnedWriteHalf,
    line: String,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("a socket");
        let (input, output) = stream.into_split();
        let mut connection = Self { input: BufReader::with_capacity(1 << 16, input), output, line: String::new() };
        connection.write(b"use raw\r\nwatch raw\r\n").await;
        connection.reply().await;
        connection.reply().await;
        connection
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.output.write_all(bytes).await.expect("writes");
    }

    async fn reply(&mut self) -> &str {
        self.line.clear();
        assert!(self.input.read_line(&mut self.line).await.expect("reads") > 0, "the server closed the connection");
        self.line.trim_end()
    }

    /// The answer to a reserve: the job's id; its body goes into `body`, with the end of its line.
    async fn reserved(&mut self, body: &mut Vec<u8>) -> Option<u64> {
        let (id, size) = self.reply().await.strip_prefix("RESERVED ")?.split_once(' ').expect("an id and a size");
        let (id, size): (_, usize) = (id.parse().expect("an id"), size.parse().expect("a size"));
        body.resize(size + 2, 0);
        self.input.read_exact(body).await.expect("reads");
        Some(id)
    }

    async fn put(&mut self, body: &str) {
        self.write(format!("put 1024 0 60 {}\r\n{body}\r\n", body.len()).as_bytes()).await;
        assert!(self.reply().await.starts_with("INSERTED"));
    }
}

async fn send(address: SocketAddr, tasks: usize) {
    let mut connection = Connection::open(address).await;
    for id in 0..tasks {
        connection.put(&text(id as u64)).await;
    }
}

/// Sends tasks that say when.
async fn send_slowly(address: SocketAddr) {
    let mut connection = Connection::open(address).await;
    for n in 0..PICKED {
        tokio::time::sleep(pause(n)).await;
        connection.put(&now().to_string()).await;
    }
}

async fn work(address: SocketAddr) -> usize {
    let mut connection = Connection::open(address).await;
    let (mut count, mut done, mut body) = (0, Vec::<u64>::new(), Vec::new());
    loop {
        let deletes: String = done.iter().map(|id| format!("delete {id}\r\n")).collect();
        connection.write((deletes + &"reserve-with-timeout 0\r\n".repeat(BATCH)).as_bytes()).await;
        for _ in done.drain(..) {
            assert_eq!(connection.reply().await, "DELETED");
        }
        for _ in 0..BATCH {
            let Some(id) = connection.reserved(&mut body).await else { continue };
            done.push(id);
            drop(serde_json::from_slice::<Payload>(&body).expect("a payload"));
        }
        if done.is_empty() {
            return count;
        }
        count += done.len();
    }
}

impl RawBeanstalkd {
    async fn send(&self, senders: usize, tasks: usize) -> f64 {
        let (start, each, address) = (Instant::now(), tasks / senders, self.0);
        let sending: Vec<_> = (0..senders).map(|_| tokio::spawn(send(address, each))).collect();
        for sender in sending {
            sender.await.expect("no panic");
        }
        rate(each * senders, start.elapsed())
    }
}

impl Raw for RawBeanstalkd {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        let rate = self.send(1, tasks).await;
        work(self.0).await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let sent = self.send(SENDERS, tasks).await;
        let start = Instant::now();
        let workers: Vec<_> = (0..SLOTS / BATCH).map(|_| tokio::spawn(work(self.0))).collect();
        let mut count = 0;
        for worker in workers {
            count += worker.await.expect("no panic");
        }
        [sent, rate(count, start.elapsed())]
    }
}

impl crate::PickUp for RawBeanstalkd {
    async fn pick_up(&mut self) -> Option<Vec<u64>> {
        let (mut waiting, mut body, mut samples) = (Connection::open(self.0).await, Vec::new(), Vec::new());
        let sending = tokio::spawn(send_slowly(self.0));
        while samples.len() < PICKED as usize {
            waiting.write(b"reserve\r\n").await;
            let id = waiting.reserved(&mut body).await.expect("a job");
            let sent = std::str::from_utf8(&body).expect("text").trim_end();
            samples.push(now() - sent.parse::<u64>().expect("a time"));
            waiting.write(format!("delete {id}\r\n").as_bytes()).await;
            assert_eq!(waiting.reply().await, "DELETED");
        }
        sending.await.expect("no panic");
        Some(samples)
    }
}

//! The least for at-least-once on a job server: the packets of the `gearman` crate on one connection with TCP_NODELAY, 64
//! submits or 32 grabs under way at once, each job ended after its data was read.

use std::net::SocketAddr;
use std::time::Instant;

use anyqueue_testkit::{Process, servers::gearmand};
use bytes::Bytes;
use gearman::Connection;
use gearman::protocol::{Packet, PacketType};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::load::{Payload, Raw, SENDERS, rate, text};

const GRABS: usize = 32;
const FUNCTION: &str = "raw";

/// A job server with its jobs in a file on the disk, in a file in memory, or in none.
pub(crate) async fn start(place: &str) -> (Process, TempDir) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
    let file = format!("--libsqlite3-db={}/queue.sqlite", folder.path().display());
    let server = match place {
        "disk" => gearmand::start(&[]).await,
        "memory" => gearmand::start(&["-q", "libsqlite3", &file]).await,
        _ => gearmand::start(gearmand::BUILTIN).await,
    };
    (server.expect("starts"), folder)
}

pub(crate) struct RawGearman {
    server: SocketAddr,
    sent: usize,
}

impl RawGearman {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self { server, sent: 0 }
    }

    async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.server).await.expect("connects");
        stream.set_nodelay(true).expect("a socket");
        Connection::from_stream(stream)
    }

    fn submit(&mut self) -> Packet {
        self.sent += 1;
        let (unique, data) = (format!("raw-{}", self.sent), text(self.sent as u64));
        Packet::request(PacketType::SubmitJobBg, vec![FUNCTION.into(), unique.into(), data.into()])
    }

    async fn send(&mut self, under_way: usize, tasks: usize) -> f64 {
        let (start, mut connection) = (Instant::now(), self.connect().await);
        let (mut sent, mut answered) = (0, 0);
        while answered < tasks {
            while sent < tasks && sent - answered < under_way {
                connection.send(self.submit()).await.expect("sends");
                sent += 1;
            }
            let answer = connection.recv().await.expect("reads").expect("lives");
            assert_eq!(answer.ptype, PacketType::JobCreated);
            answered += 1;
        }
        rate(tasks, start.elapsed())
    }

    async fn work(&self) -> usize {
        let (mut connection, mut count, mut under_way) = (self.connect().await, 0, GRABS);
        connection.send(Packet::request(PacketType::CanDo, vec![FUNCTION.into()])).await.expect("sends");
        let grab = || Packet::request(PacketType::GrabJobUniq, Vec::new());
        for _ in 0..GRABS {
            connection.send(grab()).await.expect("sends");
        }
        while under_way > 0 {
            let answer = connection.recv().await.expect("reads").expect("lives");
            if answer.ptype != PacketType::JobAssignUniq {
                under_way -= 1;
                continue;
            }
            drop(serde_json::from_slice::<Payload>(&answer.args[3]).expect("a payload"));
            count += 1;
            let done = Packet::request(PacketType::WorkComplete, vec![answer.args[0].clone(), Bytes::new()]);
            connection.send(done).await.expect("sends");
            connection.send(grab()).await.expect("sends");
        }
        connection.send(Packet::request(PacketType::EchoReq, vec![Bytes::new()])).await.expect("sends");
        while connection.recv().await.expect("reads").expect("lives").ptype != PacketType::EchoRes {}
        count
    }
}

impl Raw for RawGearman {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        let rate = self.send(1, tasks).await;
        self.work().await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let sent = self.send(SENDERS, tasks).await;
        let start = Instant::now();
        let count = self.work().await;
        [sent, rate(count, start.elapsed())]
    }
}

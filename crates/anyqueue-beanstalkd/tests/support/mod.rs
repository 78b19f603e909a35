//! Servers and clients for tests of single promises.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod gate;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyqueue_core::{
    Broker, ConnectOptions, ConsumeOptions, Consumer, Data, Delivery, Envelope, QueueName, Result, Settlement, Settler, TaskId,
    Wire,
};
use anyqueue_testkit::{Process, SystemClock};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const SOON: Duration = Duration::from_secs(3);

pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Broker>> {
    anyqueue_beanstalkd::DRIVER.open(ConnectOptions::new(url, Arc::new(SystemClock))?).await
}

pub(crate) async fn connect_to(address: SocketAddr) -> Arc<dyn Broker> {
    connect(&format!("beanstalkd://{address}")).await.unwrap()
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn task(number: u64) -> Envelope {
    anyqueue_testkit::Sample::new(number).envelope()
}

pub(crate) fn with_data(text: &str) -> Envelope {
    let id = TaskId::new(std::time::SystemTime::now());
    let wire = Wire { id: Some(id), ..Wire::new("test", Data::json(text).unwrap()) };
    Envelope { id, body: wire.write(), ..task(0) }
}

pub(crate) async fn consume(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    broker.consume(queue, ConsumeOptions::default()).await.unwrap()
}

pub(crate) async fn reserve(consumer: &mut dyn Consumer, wait: Duration) -> Vec<Delivery> {
    consumer.reserve(NonZeroUsize::new(64).unwrap(), wait).await.unwrap()
}

pub(crate) async fn done(settler: &dyn Settler, deliveries: &[Delivery]) {
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.receipt.clone(), Settlement::Done)).collect();
    settler.settle(&batch).await.into_iter().for_each(Result::unwrap);
}

/// Asks again and again until it is so.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < until, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Has a server take no more tasks.
pub(crate) fn drain(server: &Process) {
    let id = Pid::from_raw(server.id().unwrap() as i32).unwrap();
    kill_process(id, Signal::USR1).unwrap();
}

/// A client that knows nothing of ours: it speaks the protocol line by line.
pub(crate) struct Plain(BufReader<TcpStream>);

impl Plain {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a command and reads the answer: its line, and its body where it has one.
    pub(crate) fn ask(&mut self, command: &str) -> (String, String) {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let line = line.trim_end().to_owned();
        let mut body = String::new();
        if ["RESERVED", "FOUND", "OK"].iter().any(|word| line.starts_with(word)) {
            let size: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
            let mut bytes = vec![0; size + 2];
            self.0.read_exact(&mut bytes).unwrap();
            body = String::from_utf8_lossy(&bytes[..size]).into_owned();
        }
        (line, body)
    }

    pub(crate) fn put(&mut self, tube: &str, body: &str) -> u64 {
        assert_eq!(self.ask(&format!("use {tube}")).0, format!("USING {tube}"));
        let answer = self.ask(&format!("put 1024 0 60 {}\r\n{body}", body.len())).0;
        answer.strip_prefix("INSERTED ").unwrap().parse().unwrap()
    }

    /// Reserves from this tube alone.
    pub(crate) fn reserve(&mut self, tube: &str) -> (u64, String) {
        self.ask(&format!("watch {tube}"));
        self.ask("ignore default");
        let (line, body) = self.ask("reserve-with-timeout 5");
        (line.split(' ').nth(1).unwrap_or_else(|| panic!("{line}")).parse().unwrap(), body)
    }

    /// One figure of a job, a tube (after its name) or the server.
    pub(crate) fn figure(&mut self, of: &str, key: &str) -> String {
        let (line, body) = self.ask(of);
        let value = body.lines().find_map(|line| line.strip_prefix(&format!("{key}: ")));
        value.map_or(line, str::to_owned)
    }
}

/// A server that answers from a script: each command's first word has its answers, the last of which is repeated. One
/// that begins with `later: ` is given once `open` is called.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    heard: Arc<Heard>,
}

/// What a server heard, each line with its connection's number, and whether it may give the answers it keeps back.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<(usize, String)>>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Fake {
    pub(crate) fn start(script: &[(&str, &[&str])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::new(Heard::default()));
        let own = |(word, answers): &(&str, &[&str])| (word.to_string(), answers.iter().map(|a| a.to_string()).collect());
        let script: Vec<(String, VecDeque<String>)> = script.iter().map(own).collect();
        let (script, noted) = (Arc::new(Mutex::new(script)), heard.clone());
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (script, noted) = (script.clone(), noted.clone());
                std::thread::spawn(move || answer(number, stream, &script, &noted));
            }
        });
        Self { address, heard }
    }

    pub(crate) fn heard(&self, command: &str) -> bool {
        self.lines().iter().any(|(_, line)| line == command)
    }

    /// All that was heard, with the numbers of the connections.
    pub(crate) fn lines(&self) -> Vec<(usize, String)> {
        self.heard.lines.lock().unwrap().clone()
    }

    /// Gives the answers that were kept back.
    pub(crate) fn open(&self) {
        *self.heard.is_open.lock().unwrap() = true;
        self.heard.opened.notify_all();
    }
}

fn answer(number: usize, stream: TcpStream, script: &Mutex<Vec<(String, VecDeque<String>)>>, heard: &Heard) -> Option<()> {
    let mut input = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        let word = line.split(' ').next()?.to_owned();
        if word == "put" {
            let mut body = vec![0; line.rsplit(' ').next()?.parse::<usize>().ok()? + 2];
            input.read_exact(&mut body).ok()?;
        }
        let tube = line.split(' ').nth(1).unwrap_or("default");
        let scripted = script
            .lock()
            .unwrap()
            .iter_mut()
            .find(|(own, _)| *own == word)
            .map(|(_, answers)| if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() });
        let usual = match word.as_str() {
            "use" | "list-tube-used" => format!("USING {tube}"),
            "watch" | "ignore" => "WATCHING 1".into(),
            "stats" => with_body("---\nversion: \"1.12\"\nmax-job-size: 65535\nbinlog-current-index: 1\ndraining: false\n"),
            "reserve-with-timeout" => {
                // Not at once, or whoever waits would ask as fast as it can.
                std::thread::sleep(Duration::from_millis(if line.ends_with(" 0") { 0 } else { 10 }));
                "TIMED_OUT".into()
            }
            "delete" => "DELETED".into(),
            "release" => "RELEASED".into(),
            "touch" => "TOUCHED".into(),
            _ => "NOT_FOUND".into(),
        };
        heard.lines.lock().unwrap().push((number, line));
        let mut answer = scripted.unwrap_or(usual);
        if let Some(later) = answer.strip_prefix("later: ") {
            drop(heard.opened.wait_while(heard.is_open.lock().unwrap(), |open| !*open).unwrap());
            answer = later.to_owned();
        }
        input.get_mut().write_all(format!("{answer}\r\n").as_bytes()).ok()?;
    }
}

pub(crate) fn with_body(text: &str) -> String {
    format!("OK {}\r\n{text}", text.len())
}

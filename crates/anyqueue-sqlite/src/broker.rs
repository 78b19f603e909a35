//! Connecting, declaring and sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Declared, Durability, Envelope,
    Error, Finding, QueueName, Result, Severity, async_trait, time,
};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::consumer::{SqliteConsumer, spread};
use crate::error::Fault;
use crate::shared::{Shared, closed};
use crate::store::{self, Tx};
use crate::writer::Job;

/// Free room on the disk below which an operator is told.
const LITTLE_ROOM: u64 = 256 << 20;

/// A broker's share in an open file: what its consumers and settlers hold as well.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) shared: Arc<Shared>,
    closed: AtomicBool,
}

impl Gate {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, closed: AtomicBool::new(false) })
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// Does something inside a transaction, unless the broker has been closed.
    pub(crate) async fn write<T, F>(&self, weight: usize, durable: bool, run: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.check()?;
        self.shared.write(weight, durable, run).await
    }

    /// Writes tasks together with what others send.
    async fn send(&self, queue: QueueName, tasks: Vec<Envelope>, create: bool) -> Result<()> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        self.shared.submit(Box::new(SendJob { queue, tasks, create, reply }), self.shared.config.busy_timeout);
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// A send on its way through the writing thread.
struct SendJob {
    queue: QueueName,
    tasks: Vec<Envelope>,
    create: bool,
    reply: oneshot::Sender<Result<()>>,
}

impl Job for SendJob {
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        store::send(tx, &self.queue, &self.tasks, self.create)
    }

    fn answer(self: Box<Self>, outcome: Result<()>) {
        let _ = self.reply.send(outcome);
    }

    fn weight(&self) -> usize {
        self.tasks.len()
    }

    fn durable(&self) -> bool {
        true
    }

    fn only_sends(&self) -> bool {
        true
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.shared.leave();
        }
    }
}

/// An open file, as one `connect` sees it.
#[derive(Debug)]
pub(crate) struct SqliteBroker {
    pub(crate) gate: Arc<Gate>,
    pub(crate) create: bool,
    capabilities: Arc<Capabilities>,
}

impl SqliteBroker {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Arc<dyn Broker>> {
        let config = Config::read(&options)?;
        let create = config.create;
        let capabilities =
            Capabilities { durability: config.durability, max_payload: Some(config.max_payload), ..crate::DRIVER.capabilities };
        let clock = options.clock.clone();
        let shared = tokio::task::spawn_blocking(move || Shared::open(config, clock))
            .await
            .map_err(|e| Error::unavailable("the thread that opens the file ended").because(e))??;
        Ok(Arc::new(Self { gate: Gate::new(shared), create, capabilities: Arc::new(capabilities) }))
    }

    fn refuse(&self, task: &Envelope) -> Result<()> {
        let (size, limit) = (task.body.len() as u64, self.gate.shared.config.max_payload);
        if size > limit {
            return Err(Error::too_large(size, limit));
        }
        time::check_delay(task.delay)?;
        time::check_ttr(task.ttr, self.capabilities.ttr.limits().max, "the contract of all brokers").map(drop)
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    fn info(&self) -> BrokerInfo {
        let shared = &self.gate.shared;
        BrokerInfo {
            driver: crate::DRIVER.name,
            address: shared.path.display().to_string(),
            version: Some(format!("SQLite {}", rusqlite::version())),
            round_trips: shared.counted.commits.load(Ordering::Relaxed),
            connections: u64::from(self.gate.check().is_ok()),
            reconnects: shared.counted.reopened.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, _queue: &QueueName) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        let explain = |e: Error| e.during("declare").with("queue", queue);
        self.gate.check().map_err(explain)?;
        let name = queue.clone();
        // A look first: using a queue that exists must not wait for those who write.
        let found = self.gate.shared.read(move |db| Ok(store::find_queue(db, &name)?)).await.map_err(explain)?;
        if found.is_some() {
            return Ok(Declared::default());
        }
        let (name, create) = (queue.clone(), self.create);
        let write = self.gate.write(1, true, move |tx| Ok(tx.queue_or_create(&name, create)?.1));
        Ok(Declared { created: write.await.map_err(explain)?, drift: Vec::new() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let refused: Vec<_> = batch.iter().map(|task| self.refuse(task)).collect();
        let good = batch.iter().zip(&refused).filter(|(_, refused)| refused.is_ok());
        let good: Vec<Envelope> = good.map(|(task, _)| task.clone()).collect();
        let count = good.len();
        let (name, create) = (queue.clone(), self.create);
        let written = if good.is_empty() { Ok(()) } else { self.gate.send(name, good, create).await };
        let answers = written.map(|()| (0..count).map(|_| Ok(Accepted::default())).collect());
        let explain = |e: Error| e.during("send").with("queue", queue);
        let mut answers = spread(answers, count, explain).into_iter();
        let answer = |refused: Result<()>| match refused {
            Ok(()) => answers.next().expect("one answer per good task"),
            Err(error) => Err(explain(error)),
        };
        refused.into_iter().map(answer).collect()
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        self.declare(queue).await.map_err(|e| e.during("consume"))?;
        Ok(Box::new(SqliteConsumer::new(self.gate.clone(), queue.clone(), options)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.gate.check()?;
        let look = |db: &rusqlite::Connection| Ok(db.query_row(include_str!("sql/is_there.sql"), [], |_| Ok(()))?);
        self.gate.shared.read(look).await.map_err(|e| e.during("ping"))
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.ping().await.map_err(|e| e.during("diagnose"))?;
        Ok(findings(&self.gate.shared))
    }

    async fn close(&self) -> Result<()> {
        if self.gate.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if let Some(closed) = self.gate.shared.leave() {
            // Bounded: the file is in order without it, the next one to open it finishes the work.
            let _ = tokio::time::timeout(Duration::from_secs(5), closed).await;
        }
        Ok(())
    }
}

fn findings(shared: &Shared) -> Vec<Finding> {
    let file = shared.path.display();
    let mut findings = Vec::new();
    if shared.config.durability == Durability::Process {
        let text = "`durability = \"process\"`: a power loss may take the last sends; `power` keeps them".to_owned();
        findings.push(Finding { severity: Severity::Note, text });
    }
    let Ok(disk) = rustix::fs::statvfs(&shared.path) else { return findings };
    let room = disk.f_bavail * disk.f_frsize;
    if room < LITTLE_ROOM {
        let text = format!("only {} MiB are free where {file} lives; sends fail when none are left", room >> 20);
        findings.push(Finding { severity: Severity::Warning, text });
    }
    #[cfg(target_os = "linux")]
    if let Ok(disk) = rustix::fs::statfs(&shared.path)
        && [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42].contains(&(disk.f_type as u64 & 0xFFFF_FFFF))
    {
        let text = format!("{file} lives on a network file system, where SQLite's locks are not reliable; use a local disk");
        findings.push(Finding { severity: Severity::Problem, text });
    }
    findings
}

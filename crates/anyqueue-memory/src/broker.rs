//! Connecting, declaring, sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyqueue_core::time::{check_delay, check_ttr};
use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Declared, Envelope, Error,
    ErrorKind, Finding, Moment, QueueName, Result, async_trait,
};

use crate::DRIVER;
use crate::config::Config;
use crate::consumer::MemoryConsumer;
use crate::queue::Queue;
use crate::store::Store;

/// One connection to a store. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) store: Arc<Store>,
    config: Arc<Config>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    closed: AtomicBool,
    calls: AtomicU64,
}

impl Memory {
    pub(crate) fn connect(options: &ConnectOptions) -> Result<Self> {
        let config = Config::read(options, DRIVER.capabilities)?;
        let store = Store::open(&config.store, options.clock.clone());
        Ok(Self { store, config: Arc::new(config), shared: Arc::default() })
    }

    /// Counts a call and says what time it is.
    pub(crate) fn begin(&self) -> Result<Moment> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "this broker was closed; connect again"));
        }
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        Ok(self.store.clock.now())
    }

    pub(crate) fn queue(&self, name: &QueueName) -> Result<Arc<Queue>> {
        self.store.queue(name, self.config.create).map(|(queue, _)| queue)
    }

    fn check(capabilities: &Capabilities, envelope: &Envelope) -> Result<()> {
        check_delay(envelope.delay)?;
        check_ttr(envelope.ttr, capabilities.ttr.limits().max, "the memory broker")?;
        match (envelope.body.len() as u64, capabilities.max_payload) {
            (size, Some(limit)) if size > limit => Err(Error::too_large(size, limit)),
            _ => Ok(()),
        }
    }
}

/// One error for each item of a call that failed as a whole.
pub(crate) fn all_failed<T>(error: &Error, items: usize) -> Vec<Result<T>> {
    (0..items).map(|_| Err(error.duplicate())).collect()
}

#[async_trait]
impl Broker for Memory {
    fn info(&self) -> BrokerInfo {
        BrokerInfo {
            driver: DRIVER.name,
            address: format!("memory:{}", self.config.store),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            round_trips: self.shared.calls.load(Ordering::Relaxed),
            ..BrokerInfo::default()
        }
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        self.config.capabilities(queue).clone()
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        self.begin()?;
        let (_, created) = self.store.queue(queue, self.config.create)?;
        Ok(Declared { created, drift: Vec::new() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let (now, tasks) = match self.begin().and_then(|now| Ok((now, self.queue(queue)?))) {
            Ok(found) => found,
            Err(e) => return all_failed(&e.during("send").with("queue", queue), batch.len()),
        };
        let capabilities = self.config.capabilities(queue);
        let mut tasks = tasks.at(now);
        let mut one = |envelope| Self::check(capabilities, envelope).map(|()| tasks.send(envelope, now));
        let answers = batch.iter().map(|envelope| one(envelope).map_err(|e| e.during("send").with("queue", queue))).collect();
        tasks.ring();
        answers
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        self.begin()?;
        let queue = self.queue(queue)?;
        Ok(Box::new(MemoryConsumer::new(self.clone(), queue, options.priorities)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.begin().map(drop)
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.begin()?;
        Ok(Vec::new())
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.store(true, Ordering::Release);
        self.store.wake_all();
        Ok(())
    }
}

//! Connecting, declaring, asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyqueue_core::{
    Accepted, Admin, Bounds, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Declared, Envelope,
    ErrorKind, Finding, QueueName, Result, Support, async_trait,
};

use crate::config::Config;
use crate::consumer::SqsConsumer;
use crate::feed::WAITING;
use crate::folder;
use crate::hub::Hub;
use crate::names::{self, Part};
use crate::{CAPABILITIES, DRIVER, SECOND};

/// A connected broker: one region of one account.
#[derive(Debug)]
pub(crate) struct Sqs {
    pub(crate) hub: Arc<Hub>,
}

impl Sqs {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Self> {
        let hub = Hub::new(Config::read(&options)?, options.clock.clone()).await?;
        let broker = Self { hub };
        match broker.ask().await {
            // An answer is an answer: the rights may be for other names only.
            Err(e) if e.kind() == ErrorKind::Denied && broker.hub.api.answered.load(Ordering::Relaxed) > 0 => Ok(broker),
            answer => answer.map(|()| broker),
        }
    }

    /// Asks for a sign of life: whether there is a queue is of no interest.
    async fn ask(&self) -> Result<()> {
        let queue = QueueName::new("anyqueue-ping")?;
        self.hub.api.url(&names::name(&self.hub.config.prefix, &queue, Part::Plain, false)).await.map(drop)
    }
}

#[async_trait]
impl Broker for Sqs {
    fn info(&self) -> BrokerInfo {
        let api = &self.hub.api;
        BrokerInfo {
            driver: DRIVER.name,
            address: self.hub.config.address.clone(),
            version: None,
            round_trips: api.answered.load(Ordering::Relaxed),
            connections: api.open.load(Ordering::Relaxed),
            reconnects: api.broken.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        let kind = self.hub.config.kind(queue);
        let lines = self.hub.known(queue);
        let longest = lines.as_ref().map_or(crate::FIFO_LONGEST, |lines| lines.longest_delay());
        let largest = if self.hub.folder.is_some() { Some(folder::LARGEST) } else { CAPABILITIES.max_payload };
        let mut capabilities = Capabilities {
            priority: Support::Emulated(kind.levels(), crate::PRIORITY),
            max_payload: lines.map_or(largest, |lines| Some(self.hub.largest_task(&lines))),
            // Between its reception and the setting of its own TTR a task is hidden for the queue's.
            frozen_bound: self.hub.ttr(queue).max(std::time::Duration::from_secs(WAITING)),
            ..CAPABILITIES
        };
        if kind.bands.len() == 1 {
            capabilities.priority_ranges = Support::Needs((), "`bands = 3` or `bands = 5`");
        }
        if kind.fifo {
            capabilities.group = Support::Native(());
            capabilities.unique = Support::Emulated((), crate::FIFO_UNIQUE);
            capabilities.same_id = Support::Emulated((), crate::FIFO_SAME_ID);
            capabilities.delay = Support::Emulated(Bounds { max: longest, step: SECOND }, crate::FIFO_DELAY);
            capabilities.release = Support::Native(());
            capabilities.deaths = Support::Emulated((), crate::FIFO_DEATHS);
        }
        Arc::new(capabilities)
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        let named = |e: anyqueue_core::Error| e.during("declare");
        let lines = self.hub.declare(queue, self.hub.config.create).await.map_err(named)?;
        let strayed = self.hub.strayed(&lines).await.map_err(named)?;
        Ok(Declared { created: lines.created, drift: lines.drift.iter().cloned().chain(strayed).collect() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let lines = match self.hub.lines(queue).await {
            Ok(lines) => lines,
            Err(e) => return batch.iter().map(|_| Err(e.duplicate().during("send"))).collect(),
        };
        let named = |e: anyqueue_core::Error| {
            self.hub.noticed(queue, &e);
            e.during("send").with("queue", queue)
        };
        self.hub.send(&lines, batch).await.into_iter().map(|answer| answer.map_err(named)).collect()
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        let consumer = SqsConsumer::new(self.hub.clone(), queue, options).await;
        Ok(Box::new(consumer.map_err(|e| e.during("consume"))?))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.hub.check().map_err(|e| e.during("ping"))?;
        self.ask().await.map_err(|e| e.during("ping"))
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.hub.check().map_err(|e| e.during("diagnose"))?;
        self.hub.findings().await.map_err(|e| e.during("diagnose"))
    }

    async fn close(&self) -> Result<()> {
        self.hub.close();
        Ok(())
    }
}

//! Connecting, declaring, asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Create, Death, Declared,
    Envelope, Error, ErrorKind, Finding, Order, QueueName, Result, Support, async_trait,
};

use crate::config::{Config, Keeping};
use crate::consumer::GearmanConsumer;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::packet::{Reply, echo};
use crate::{CAPABILITIES, CONNECTION, DRIVER};

/// A connected broker: one job server or several.
#[derive(Debug)]
pub(crate) struct Gearman {
    pub(crate) hub: Arc<Hub>,
}

impl Gearman {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Self> {
        let broker = Self { hub: Hub::start(Config::read(&options)?, options.clock.clone()) };
        // With several servers the dead ones are left out, and taken back when they answer.
        broker.hub.live().await?;
        Ok(broker)
    }

    /// Checks that a queue may be used: where queues are not created when first used, it must be there.
    async fn known(&self, queue: &QueueName) -> Result<()> {
        self.hub.begin()?;
        if self.hub.config.create == Create::Auto || self.hub.is_declared(queue) {
            return Ok(());
        }
        self.hub.declare(queue, Create::Never).await.map(drop)
    }
}

#[async_trait]
impl Broker for Gearman {
    fn info(&self) -> BrokerInfo {
        let (hub, counters) = (&self.hub, &self.hub.counters);
        let mut versions: Vec<String> = hub.servers.iter().filter_map(|server| server.version()).collect();
        versions.dedup();
        BrokerInfo {
            driver: DRIVER.name,
            address: hub.config.address.clone(),
            version: (!versions.is_empty()).then(|| versions.join(", ")),
            round_trips: counters.round_trips.load(Ordering::Relaxed),
            connections: hub.servers.iter().map(|server| server.open()).sum(),
            reconnects: counters.reconnects.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        let (config, several) = (&self.hub.config, self.hub.servers.len() > 1);
        let settings = config.of(queue);
        let base = match settings.keeping {
            Keeping::Guard => CAPABILITIES,
            Keeping::Connection => CONNECTION,
        };
        let levels = settings.levels;
        Arc::new(Capabilities {
            durability: config.store.durability(),
            order: if several { Order::Loose } else { Order::Fifo },
            priority: if several {
                Support::Emulated(levels, "each job server has a line of its own, and workers take from all of them")
            } else {
                Support::Native(levels)
            },
            max_payload: Some(config.max_body),
            death: Death::AtOnce,
            ..base
        })
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        self.hub.begin()?;
        self.hub.declare(queue, self.hub.config.create).await.map_err(|e| e.during("declare").with("queue", queue))
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let named = |e: Error| e.during("send").with("queue", queue);
        match self.known(queue).await.map_err(named) {
            Ok(()) => {
                let sent = self.hub.send(&self.hub.queue(queue), batch).await;
                sent.into_iter().map(|answer| answer.map_err(named)).collect()
            }
            Err(e) => batch.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        let named = |e: Error| e.during("consume").with("queue", queue);
        self.known(queue).await.map_err(named)?;
        if let (Support::Needs((), what), true) = (CAPABILITIES.priority_ranges, options.priorities != (0..=u32::MAX)) {
            let text = format!("taking a range of priorities needs {what}");
            return Err(named(Error::new(ErrorKind::Unsupported, text)));
        }
        let feed = Feed::new(self.hub.queue(queue), options.ttr, self.hub.servers.len());
        Ok(Box::new(GearmanConsumer::new(self.hub.clone(), feed)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.hub.begin()?;
        let mut answer = Err(Error::unavailable("there is no job server to ask"));
        for server in &self.hub.servers {
            let asked = async { server.session().await?.call(vec![echo()]).await };
            match asked.await {
                Ok(replies) if matches!(replies.as_slice(), [Reply::Echo]) => answer = Ok(()),
                Ok(_) => {}
                Err(e) => answer = answer.or(Err(e)),
            }
        }
        answer.map_err(|e| e.during("ping"))
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.hub.begin()?;
        Ok(crate::diagnose::findings(&self.hub).await)
    }

    async fn close(&self) -> Result<()> {
        self.hub.close().await;
        Ok(())
    }
}

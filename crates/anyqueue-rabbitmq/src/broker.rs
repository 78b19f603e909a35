//! Connecting, declaring and sending.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Declared, Envelope, Error,
    ErrorKind, Finding, QueueName, Result, async_trait,
};
use tokio::sync::Mutex;

use crate::capabilities;
use crate::config::Config;
use crate::consumer::{self, RabbitConsumer};
use crate::diagnose;
use crate::hello::Version;
use crate::layout::Layout;
use crate::link;
use crate::shared::Shared;
use crate::withheld::{Fate, Withheld};

/// A connected broker.
#[derive(Debug)]
pub(crate) struct RabbitBroker {
    pub(crate) shared: Arc<Shared>,
    closing: Mutex<()>,
}

impl RabbitBroker {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Arc<dyn Broker>> {
        let config = Arc::new(Config::read(&options)?);
        let version = link::greet(&config).await?.unwrap_or_else(|| Version::read("unknown"));
        let shared = Shared::new(config, version, options.clock.clone());
        // A wrong password is told now, not when the first task is sent.
        shared.work.live().await?;
        Ok(Arc::new(Self { shared, closing: Mutex::default() }))
    }

    async fn send_good(&self, layout: &Layout, tasks: &[&Envelope]) -> Vec<Result<()>> {
        if let Err(e) = self.shared.ensure(layout).await {
            return tasks.iter().map(|_| Err(no_effect(&e))).collect();
        }
        let posts: Vec<_> = tasks.iter().map(|task| self.shared.post(layout, task)).collect();
        match self.shared.publishing().await {
            Ok(publishing) => publishing.to(layout, &posts).await,
            Err(e) => tasks.iter().map(|_| Err(no_effect(&e))).collect(),
        }
    }
}

/// An error of something that was done before anything was sent.
fn no_effect(e: &Error) -> Error {
    let same = Error::new(e.kind(), e.message().to_owned()).because(anyqueue_core::chain(e));
    e.context().iter().fold(same, |error, (key, value)| error.with(key, value))
}

#[async_trait]
impl Broker for RabbitBroker {
    fn info(&self) -> BrokerInfo {
        let Shared { config, tally, version, send, work, .. } = &*self.shared;
        BrokerInfo {
            driver: crate::DRIVER.name,
            address: config.url.clone(),
            version: Some(format!("RabbitMQ {}", version.text)),
            round_trips: tally.round_trips.load(Ordering::Relaxed),
            connections: u64::from(send.is_open()) + u64::from(work.is_open()),
            reconnects: tally.reconnects.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        Arc::new(capabilities::of(&self.shared.config, &self.shared.config.style(queue)))
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        let explain = |e: Error| e.during("declare").with("queue", queue);
        self.shared.check().map_err(explain)?;
        self.shared.declare(&self.shared.layout(queue)).await.map_err(explain)
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let explain = |e: Error| e.during("send").with("queue", queue);
        if let Err(e) = self.shared.check() {
            return batch.iter().map(|_| Err(explain(e.duplicate()))).collect();
        }
        let layout = self.shared.layout(queue);
        let refused: Vec<_> = batch.iter().map(|task| self.shared.refuse(&layout, task)).collect();
        let good: Vec<&Envelope> = batch.iter().zip(&refused).filter_map(|(task, no)| no.is_ok().then_some(task)).collect();
        let sent = if good.is_empty() { Vec::new() } else { self.send_good(&layout, &good).await };
        let mut sent = sent.into_iter();
        let strange = || Err(Error::new(ErrorKind::Protocol, "an answer is missing").effect_unknown());
        let answer = |refused: Result<()>| match refused {
            Ok(()) => sent.next().unwrap_or_else(strange).map(|()| Accepted::default()).map_err(explain),
            Err(error) => Err(explain(error)),
        };
        refused.into_iter().map(answer).collect()
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        let explain = |e: Error| e.during("consume").with("queue", queue);
        self.shared.check().map_err(explain)?;
        let layout = self.shared.layout(queue);
        self.shared.ensure(&layout).await.map_err(explain)?;
        capabilities::check_range(&layout.style, &options.priorities).map_err(explain)?;
        Ok(Box::new(RabbitConsumer::new(self.shared.clone(), layout, &options)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        let explain = |e: Error| e.during("ping");
        self.shared.check().map_err(explain)?;
        let channel = self.shared.asking().await.map_err(explain)?;
        let asked = channel.basic_qos(1, lapin::options::BasicQosOptions::default());
        self.shared.work.call("basic.qos", asked).await.map_err(explain)
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.shared.check().map_err(|e| e.during("diagnose"))?;
        diagnose::findings(&self.shared).await.map_err(|e| e.during("diagnose"))
    }

    async fn close(&self) -> Result<()> {
        let _one = self.closing.lock().await;
        if self.shared.is_closed() {
            return Ok(());
        }
        let lines = self.shared.lines(None);
        // To the end: who waits for a task would fetch some again while settles go on.
        let withheld = futures::future::join_all(lines.iter().map(|line| Withheld::begin(line, &self.shared, Fate::Back))).await;
        self.shared.settled().await;
        if self.shared.set_closed() {
            self.shared.lines(None).iter().for_each(|line| consumer::end(line));
            self.shared.work.close().await;
            self.shared.send.close().await;
        }
        drop(withheld);
        Ok(())
    }
}

impl Drop for RabbitBroker {
    fn drop(&mut self) {
        tracing::trace!(address = self.shared.config.url, "a broker was dropped");
    }
}

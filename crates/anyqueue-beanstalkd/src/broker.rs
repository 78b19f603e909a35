//! Connecting, declaring, asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Create, Declared, Durability,
    Envelope, Error, Finding, Order, QueueName, Result, Severity, Support, async_trait,
};

use futures::future::join_all;

use crate::config::Config;
use crate::consumer::BeanstalkdConsumer;
use crate::error;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::request::Request;
use crate::server::Server;
use crate::wire::{Command, Reply};
use crate::{CAPABILITIES, DRIVER};

/// A connected broker: one server or several.
#[derive(Debug)]
pub(crate) struct Beanstalkd {
    pub(crate) hub: Arc<Hub>,
}

impl Beanstalkd {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Self> {
        let hub = Hub::new(Config::read(&options)?, options.clock.clone());
        let asked = join_all(hub.servers.iter().map(Server::asking)).await;
        let mut failed: Vec<_> = asked.into_iter().filter_map(Result::err).collect();
        // With several servers the dead ones are left out, and taken back when they answer.
        if hub.servers.iter().any(|server| server.is_up()) {
            return Ok(Self { hub });
        }
        match failed.pop() {
            None => Ok(Self { hub }),
            Some(only) if failed.is_empty() => Err(only),
            Some(last) => {
                let all: Vec<_> = failed.iter().chain([&last]).map(|e| anyqueue_core::chain(e)).collect();
                Err(Error::new(last.kind(), format!("none of the servers answers: {}", all.join("; "))))
            }
        }
    }

    pub(crate) fn begin(&self) -> Result<()> {
        if self.hub.is_closed() { Err(error::closed()) } else { Ok(()) }
    }

    /// Checks that a queue may be used: where queues are not created when first used, it must be there.
    async fn known(&self, queue: &QueueName) -> Result<()> {
        self.begin()?;
        if self.hub.config.create == Create::Auto || self.hub.is_declared(queue) {
            return Ok(());
        }
        self.hub.declare(queue, Create::Never).await.map(drop)
    }
}

#[async_trait]
impl Broker for Beanstalkd {
    fn info(&self) -> BrokerInfo {
        let (hub, counters) = (&self.hub, &self.hub.counters);
        let mut versions: Vec<String> =
            hub.servers.iter().map(|server| server.facts().version).filter(|v| !v.is_empty()).collect();
        versions.dedup();
        BrokerInfo {
            driver: DRIVER.name,
            address: hub.config.address.clone(),
            version: (!versions.is_empty()).then(|| versions.join(", ")),
            round_trips: counters.round_trips.load(Ordering::Relaxed),
            connections: hub.servers.iter().map(|server| server.open() as u64).sum(),
            reconnects: counters.reconnects.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        let hub = &self.hub;
        let bands = hub.config.bands(queue).len() > 1;
        let durable = hub.servers.iter().all(|server| server.facts().binlog || !server.is_up());
        let several = hub.servers.len() > 1;
        Arc::new(Capabilities {
            priority_ranges: if bands { Support::Native(()) } else { CAPABILITIES.priority_ranges },
            durability: if durable { CAPABILITIES.durability } else { Durability::None },
            order: if several { Order::Loose } else { Order::Fifo },
            priority: match CAPABILITIES.priority {
                Support::Native(levels) if several => {
                    Support::Emulated(levels, "each server has a line of its own, and workers take from them in turn")
                }
                one => one,
            },
            max_payload: Some(hub.max_body()),
            ..CAPABILITIES
        })
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        self.begin()?;
        self.hub.declare(queue, self.hub.config.create).await.map_err(|e| e.during("declare").with("queue", queue))
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let named = |e: Error| e.during("send").with("queue", queue);
        match self.known(queue).await.map_err(named) {
            Ok(()) => self.hub.send(queue, batch).await.into_iter().map(|answer| answer.map_err(named)).collect(),
            Err(e) => batch.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        let named = |e: Error| e.during("consume").with("queue", queue);
        self.known(queue).await.map_err(named)?;
        let tubes = self.hub.tubes(queue);
        let range = match (CAPABILITIES.priority_ranges, self.hub.config.bands(queue).len()) {
            (Support::Needs((), what), 1) if options.priorities != (0..=u32::MAX) => {
                let text = format!("taking a range of priorities needs {what}");
                return Err(named(Error::new(anyqueue_core::ErrorKind::Unsupported, text)));
            }
            _ => tubes.range(&options.priorities).map_err(named)?,
        };
        Ok(Box::new(BeanstalkdConsumer::new(self.hub.clone(), Feed::new(tubes, range))))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.begin()?;
        let mut answer = Err(Error::unavailable("there is no server to ask"));
        for server in &self.hub.servers {
            let asked = async { self.hub.call(&*server.asking().await?, Request::of(&Command::ListTubeUsed)).await };
            match asked.await {
                Ok(replies) if matches!(replies.as_slice(), [Reply::Using(_)]) => answer = Ok(()),
                Ok(_) => {}
                Err(e) => {
                    self.hub.noticed(server, &e);
                    answer = answer.or(Err(e));
                }
            }
        }
        answer.map_err(|e| e.during("ping"))
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.begin()?;
        let mut findings = Vec::new();
        for server in &self.hub.servers {
            let address = &server.address;
            let mut add = |severity, text| findings.push(Finding { severity, text });
            if let Err(e) = server.asking().await {
                add(Severity::Problem, format!("beanstalkd at {address} does not answer: {}", anyqueue_core::chain(&e)));
                continue;
            }
            let facts = server.facts();
            if !facts.binlog {
                let text =
                    "keeps tasks in memory alone: they are lost when it ends; start it with `-b DIR`, a folder for its binlog";
                add(Severity::Warning, format!("beanstalkd at {address} {text}"));
            }
            if facts.draining {
                add(
                    Severity::Problem,
                    format!("beanstalkd at {address} is draining: it takes no tasks until it is started anew"),
                );
            }
            let frozen =
                "may keep the task of a frozen worker reserved until that worker goes on or ends (a dead one's is back at once)";
            add(Severity::Note, format!("beanstalkd {} at {address} {frozen}", facts.version));
            let text = format!("beanstalkd {} at {address} takes tasks of up to {} bytes", facts.version, facts.max_body);
            add(Severity::Note, text);
        }
        for queue in self.hub.config.queues.keys() {
            // What does not answer was told above.
            let drift = self.hub.drift(queue).await.unwrap_or_default().into_iter();
            findings
                .extend(drift.map(|drift| Finding { severity: Severity::Warning, text: format!("queue `{queue}`: {drift}") }));
        }
        Ok(findings)
    }

    async fn close(&self) -> Result<()> {
        self.hub.close().await;
        Ok(())
    }
}

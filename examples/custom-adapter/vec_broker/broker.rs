//! Connecting, declaring, sending.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyqueue::core::time::{check_delay, check_ttr};
use anyqueue::core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, ConnectOptions, ConsumeOptions, Consumer, Create, Declared, Envelope,
    Error, ErrorKind, Finding, Moment, QueueName, Result, async_trait,
};

use super::DRIVER;
use super::consumer::VecConsumer;
use super::tasks::Queue;

type Queues = Mutex<BTreeMap<QueueName, Arc<Queue>>>;

/// The stores by name. Each lives as long as somebody is connected to it.
static STORES: Mutex<BTreeMap<String, Weak<Queues>>> = Mutex::new(BTreeMap::new());

/// One connection to a store.
#[derive(Debug)]
pub(crate) struct VecBroker {
    options: ConnectOptions,
    queues: Arc<Queues>,
    /// Shared with the connection's consumers.
    pub(crate) link: Arc<Link>,
}

/// What tells whether a connection is still open.
#[derive(Debug, Default)]
pub(crate) struct Link {
    closed: AtomicBool,
    calls: AtomicU64,
}

impl Link {
    /// Every call begins here.
    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "this broker was closed; connect again"));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl VecBroker {
    pub(crate) fn connect(options: ConnectOptions) -> Result<Self> {
        if !options.url.hosts.is_empty() || options.url.path.is_empty() {
            return Err(Error::config(format!("`{}` is no name of a store; write `{}`", options.url, DRIVER.example)));
        }
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = stores.get(&options.url.path).and_then(Weak::upgrade).unwrap_or_default();
        stores.insert(options.url.path.clone(), Arc::downgrade(&queues));
        Ok(Self { options, queues, link: Arc::default() })
    }

    pub(crate) fn now(&self) -> Moment {
        self.options.clock.now()
    }

    /// The queue, and whether it was made just now.
    pub(crate) fn queue(&self, name: &QueueName) -> Result<(Arc<Queue>, bool)> {
        self.link.check()?;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(name) {
            return Ok((queue.clone(), false));
        }
        if self.options.create == Create::Never {
            let text = format!("there is no queue `{name}`, and the settings say create = \"never\"; run `queue-runner init`");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let queue = Arc::new(Queue::new(name.clone()));
        queues.insert(name.clone(), queue.clone());
        Ok((queue, true))
    }
}

/// Whether a task keeps within what the driver claims.
pub(crate) fn check(task: &Envelope) -> Result<()> {
    check_delay(task.delay)?;
    check_ttr(task.ttr, DRIVER.capabilities.ttr.limits().max, "the vec broker")?;
    match (task.body.len() as u64, DRIVER.capabilities.max_payload) {
        (size, Some(limit)) if size > limit => Err(Error::too_large(size, limit)),
        _ => Ok(()),
    }
}

#[async_trait]
impl Broker for VecBroker {
    fn info(&self) -> BrokerInfo {
        BrokerInfo {
            driver: DRIVER.name,
            address: self.options.url.to_string(),
            round_trips: self.link.calls.load(Ordering::Relaxed),
            ..BrokerInfo::default()
        }
    }

    fn capabilities(&self, _: &QueueName) -> Arc<Capabilities> {
        Arc::new(DRIVER.capabilities)
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        let (_, created) = self.queue(queue)?;
        Ok(Declared { created, drift: Vec::new() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let named = |e: Error| e.during("send").with("queue", queue);
        let found = match self.queue(queue).map_err(named) {
            Ok((found, _)) => found,
            Err(e) => return batch.iter().map(|_| Err(e.duplicate())).collect(),
        };
        let now = self.now();
        // One answer per task: a bad one does not spoil the others.
        found.change(now, |tasks| {
            let mut one = |task| check(task).map(|()| tasks.add(task, now)).map(|()| Accepted::default());
            batch.iter().map(|task| one(task).map_err(named)).collect()
        })
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        let (queue, _) = self.queue(queue)?;
        let clock = self.options.clock.clone();
        Ok(Box::new(VecConsumer { queue, clock, link: self.link.clone(), priorities: options.priorities }))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.link.check()
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.link.check().map(|()| Vec::new())
    }

    async fn close(&self) -> Result<()> {
        self.link.closed.store(true, Ordering::Release);
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.values().for_each(|queue| queue.changed.notify_waiters());
        Ok(())
    }
}

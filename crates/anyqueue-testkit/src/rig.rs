//! What trials work with: connections to the stage, tasks put and taken, time passing.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    BoxError, Broker, Capabilities, Clock, ConnectOptions, ConsumeOptions, Consumer, Create, Defaults, Delivery, Driver,
    Durability, Envelope, Incoming, Link, Moment, QueueName, Receipt, Result, Settlement, Settler, Touch, time::MIN_TTR,
};

use crate::child::Child;
use crate::harness::{Harness, Stage, Time};
use crate::sample::Sample;

/// One trial's stage, with what every trial needs to do on it.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) stage: Stage,
    pub(crate) driver: &'static Driver,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: Time,
    divisor: usize,
    mark: u32,
}

impl Rig {
    pub(crate) fn new(harness: &dyn Harness, stage: Stage) -> Self {
        let time = harness.time();
        let (divisor, mark) = (harness.divisor().max(1), fastrand::u32(..));
        Self { stage, driver: harness.driver(), clock: time.clock(), time, divisor, mark }
    }

    /// A size that the harness may have made smaller, or who runs the suite larger.
    pub(crate) fn size(&self, full: usize) -> usize {
        let scale = std::env::var("ANYQUEUE_TRIAL_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        (full * scale / self.divisor).max(1)
    }

    /// A queue that only this trial uses.
    pub(crate) fn queue(&self, label: &str) -> QueueName {
        QueueName::new(format!("t{:08x}.{label}", self.mark)).expect("labels of trials are short and plain")
    }

    pub(crate) fn options(&self, url: &str, create: Create) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new(url, self.clock.clone())?;
        options.create = create;
        Ok(options)
    }

    /// A fresh client of the stage's store.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn Broker>> {
        self.connect_with(&self.stage.url, Create::Auto).await
    }

    pub(crate) async fn connect_with(&self, url: &str, create: Create) -> Result<Arc<dyn Broker>> {
        self.driver.open(self.options(url, create)?).await
    }

    /// A client, a declared queue of this trial, and what the broker can do for it.
    pub(crate) async fn open(&self, label: &str) -> Result<(Arc<dyn Broker>, QueueName, Arc<Capabilities>)> {
        let broker = self.connect().await?;
        let queue = self.queue(label);
        broker.declare(&queue).await?;
        let capabilities = broker.capabilities(&queue);
        Ok((broker, queue, capabilities))
    }

    /// A child process that works on the same store.
    pub(crate) async fn child(&self) -> Result<Child, BoxError> {
        Child::start(self.driver.name, &self.stage.url).await
    }

    /// Why this stage has no place for other processes, if it has none.
    pub(crate) fn no_children(&self) -> Option<String> {
        match (self.time, self.driver.capabilities.link) {
            (Time::Movable, _) => Some("the clock is movable: other processes cannot share it".into()),
            (_, Link::Memory) => Some("link is memory: no other process can reach the broker".into()),
            _ => None,
        }
    }

    pub(crate) fn is_movable(&self) -> bool {
        matches!(self.time, Time::Movable)
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Lets time pass.
    pub(crate) async fn pass(&self, time: Duration) {
        self.clock.sleep_until(self.clock.now() + time).await;
    }

    /// By how much something may be late: a second and a step, and as much again on a machine that is busy with tests.
    pub(crate) fn slack(&self, step: Duration) -> Duration {
        let busy = if self.time == Time::System { Duration::from_secs(2) } else { Duration::ZERO };
        Duration::from_secs(1) + step + busy
    }

    /// Until when a task with the shortest TTR is back from a worker that says nothing any more. `Duration::MAX` as the
    /// declared bound means that the server may wait until the worker speaks or its connection ends.
    pub(crate) fn lease_bound(&self, capabilities: &Capabilities) -> Duration {
        let bound = Some(capabilities.frozen_bound).filter(|bound| *bound < Duration::MAX).unwrap_or_default();
        MIN_TTR.max(bound) + self.slack(capabilities.ttr.limits().step)
    }

    /// Whether tasks survive what a restart of the broker does to them.
    pub(crate) fn survives_restart(&self, capabilities: &Capabilities) -> bool {
        capabilities.durability > Durability::None
    }

    /// Restarts the broker with a kill, where there is one to kill; embedded brokers are closed. Clients of before are
    /// closed in any case, and a new one is returned.
    pub(crate) async fn restart(&self, clients: Vec<Arc<dyn Broker>>) -> Result<Arc<dyn Broker>, BoxError> {
        for client in clients {
            client.close().await?;
        }
        if let Some(server) = &self.stage.server {
            server.kill().await?;
            server.start().await?;
        }
        Ok(self.connect().await?)
    }
}

/// Sends all, in batches the broker takes, and fails if one is refused.
pub(crate) async fn send(broker: &dyn Broker, queue: &QueueName, tasks: &[Envelope]) -> Result<()> {
    let batch = broker.capabilities(queue).batch.send.clamp(1, 1024);
    for part in tasks.chunks(batch) {
        let answers = broker.send(queue, part).await;
        assert_eq!(answers.len(), part.len(), "send gives one answer per task");
        for answer in answers {
            answer?;
        }
    }
    Ok(())
}

/// A consumer of all priorities.
pub(crate) async fn consume(broker: &dyn Broker, queue: &QueueName) -> Result<Box<dyn Consumer>> {
    broker.consume(queue, ConsumeOptions::default()).await
}

/// One call of reserve.
pub(crate) async fn reserve(consumer: &mut dyn Consumer, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
    let max = NonZeroUsize::new(max).expect("trials reserve at least one");
    let deliveries = consumer.reserve(max, wait).await?;
    assert!(deliveries.len() <= max.get(), "reserve gave {} tasks when {max} were asked for", deliveries.len());
    Ok(deliveries)
}

/// Reserves exactly one, or fails.
pub(crate) async fn one(consumer: &mut dyn Consumer, wait: Duration) -> Result<Delivery, BoxError> {
    let mut deliveries = reserve(consumer, 1, wait).await?;
    deliveries.pop().ok_or_else(|| format!("no task within {wait:?}").into())
}

/// Reserves until there are `count`, or none has come for `wait`.
pub(crate) async fn take(consumer: &mut dyn Consumer, count: usize, wait: Duration) -> Result<Vec<Delivery>> {
    let mut all = Vec::new();
    while all.len() < count {
        let more = reserve(consumer, (count - all.len()).min(256), wait).await?;
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    Ok(all)
}

/// Takes and settles as done until nothing has come for `wait`; the numbers in the order in which they came.
pub(crate) async fn drain(consumer: &mut dyn Consumer, wait: Duration) -> Result<Vec<u64>> {
    let (settler, mut numbers) = (consumer.settler(), Vec::new());
    loop {
        let deliveries = reserve(consumer, 256, wait).await?;
        if deliveries.is_empty() {
            return Ok(numbers);
        }
        numbers.extend(deliveries.iter().filter_map(Sample::number));
        done(settler.as_ref(), &deliveries).await?;
    }
}

/// Settles all as done.
pub(crate) async fn done(settler: &dyn Settler, deliveries: &[Delivery]) -> Result<()> {
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.receipt.clone(), Settlement::Done)).collect();
    let answers = settler.settle(&batch).await;
    assert_eq!(answers.len(), batch.len(), "settle gives one answer per item");
    answers.into_iter().collect()
}

/// Settles one.
pub(crate) async fn settle(settler: &dyn Settler, receipt: &Receipt, what: Settlement) -> Result<()> {
    let mut answers = settler.settle(&[(receipt.clone(), what)]).await;
    assert_eq!(answers.len(), 1, "settle gives one answer per item");
    answers.remove(0)
}

/// Touches one.
pub(crate) async fn touch(settler: &dyn Settler, delivery: &Delivery, ttr: Duration) -> Result<Duration> {
    touch_all(settler, std::slice::from_ref(delivery), ttr).await.remove(0)
}

/// Touches many in one request, as a runner does.
pub(crate) async fn touch_all(settler: &dyn Settler, all: &[Delivery], ttr: Duration) -> Vec<Result<Duration>> {
    let touch = |one: &Delivery| Touch { receipt: one.receipt.clone(), ttr, task: incoming(one).unchanged(Duration::ZERO) };
    let answers = settler.touch(&all.iter().map(touch).collect::<Vec<_>>()).await;
    assert_eq!(answers.len(), all.len(), "touch gives one answer per item");
    answers
}

/// Reads a delivery as the facade does.
pub(crate) fn incoming(delivery: &Delivery) -> Incoming {
    Incoming::read(delivery, "default", Defaults::default())
}

/// The numbers of deliveries, sorted.
pub(crate) fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    let mut numbers: Vec<u64> = deliveries.iter().filter_map(Sample::number).collect();
    numbers.sort_unstable();
    numbers
}

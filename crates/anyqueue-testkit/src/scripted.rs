//! A broker that delivers what a test feeds and records what is done to it.

mod admin;
mod record;

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Bytes, Capabilities, Clock, ConsumeOptions, Consumer, Declared, Delivery, Drift,
    Envelope, Error, ErrorKind, Finding, Moment, NativeFacts, Peeked, QueueName, Receipt, Result, Settlement, Settler, Touch,
    async_trait,
};
use tokio::sync::Notify;

pub use self::record::{Record, Verb};

/// A broker for unit tests of what stands above brokers. Clones are the same broker.
#[derive(Clone)]
pub struct Scripted {
    shared: Arc<Shared>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<Script>,
    changed: Notify,
}

/// What becomes of a task that is sent; `None`: it is taken.
type Verdict = dyn Fn(&Envelope) -> Option<Error> + Send + Sync;

struct Script {
    judge: Option<Arc<Verdict>>,
    capabilities: Arc<Capabilities>,
    feed: VecDeque<Delivery>,
    failures: Vec<(Verb, Error)>,
    records: Vec<(Moment, Record)>,
    receipts: u64,
    latency: Duration,
    closing: Duration,
    peeked: Vec<Peeked>,
    drift: Vec<Drift>,
    hesitates: bool,
}

impl Scripted {
    /// A broker that can do everything and has nothing to deliver.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let script = Script {
            judge: None,
            capabilities: Arc::new(Capabilities::FULL),
            feed: VecDeque::new(),
            failures: Vec::new(),
            records: Vec::new(),
            receipts: 0,
            latency: Duration::ZERO,
            closing: Duration::ZERO,
            drift: Vec::new(),
            hesitates: false,
            peeked: Vec::new(),
        };
        Self { shared: Arc::new(Shared { clock, state: Mutex::new(script), changed: Notify::new() }) }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what it says it can do.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.script().capabilities = Arc::new(capabilities);
    }

    /// Sets what `declare` finds otherwise than wanted.
    pub fn set_drift(&self, drift: &[Drift]) {
        self.script().drift = drift.to_vec();
    }

    /// Sets how long each call takes.
    pub fn set_latency(&self, latency: Duration) {
        self.script().latency = latency;
    }

    /// Sets how long a consumer takes to close.
    pub fn set_closing(&self, closing: Duration) {
        self.script().closing = closing;
    }

    /// From now on nobody who does not wait is told whether there are tasks.
    pub fn hesitate(&self) {
        self.script().hesitates = true;
    }

    /// Sets what peek and the list of held tasks show.
    pub fn set_listing(&self, tasks: Vec<Peeked>) {
        self.script().peeked = tasks;
    }

    /// Feeds a task for the next reserve; its receipt. The lease is the envelope's TTR, from when it is delivered.
    pub fn feed(&self, queue: &QueueName, task: &Envelope) -> Receipt {
        let native = NativeFacts { redeliveries: anyqueue_core::Figure::Exact(0), ..NativeFacts::default() };
        self.feed_raw(queue, task.body.clone(), native, task.ttr)
    }

    /// Feeds a body of any kind with what the broker is to say of it; its receipt.
    pub fn feed_raw(&self, queue: &QueueName, raw: Bytes, native: NativeFacts, lease: Duration) -> Receipt {
        let mut script = self.script();
        script.receipts += 1;
        let receipt = Receipt::new(1, script.receipts);
        let deadline = Moment::default();
        script.feed.push_back(Delivery { receipt: receipt.clone(), queue: queue.clone(), raw, native, lease, deadline });
        drop(script);
        self.shared.changed.notify_waiters();
        receipt
    }

    /// Makes the next call of a verb fail with this error. Several failures of one verb come in the order given.
    pub fn fail_next(&self, verb: Verb, error: Error) {
        self.script().failures.push((verb, error));
        self.shared.changed.notify_waiters();
    }

    /// Judges each task that is sent from now on: one for which this gives an error fails, and it alone.
    pub fn judge(&self, judge: impl Fn(&Envelope) -> Option<Error> + Send + Sync + 'static) {
        self.script().judge = Some(Arc::new(judge));
    }

    /// Forgets the failures that have not happened yet.
    pub fn stop_failing(&self) {
        self.script().failures.clear();
    }

    /// All that was done so far, with the moment.
    pub fn records(&self) -> Vec<(Moment, Record)> {
        self.script().records.clone()
    }

    /// The settlements so far, in order.
    pub fn settled(&self) -> Vec<(Receipt, Settlement)> {
        let settled = |(_, record): &(Moment, Record)| match record {
            Record::Settled(receipt, what) => Some((receipt.clone(), what.clone())),
            _ => None,
        };
        self.script().records.iter().filter_map(settled).collect()
    }

    /// The tasks sent so far, in order.
    pub fn sent(&self) -> Vec<(QueueName, Envelope)> {
        let sent = |(_, record): &(Moment, Record)| match record {
            Record::Sent(queue, task) => Some((queue.clone(), task.clone())),
            _ => None,
        };
        self.script().records.iter().filter_map(sent).collect()
    }

    /// Waits until a condition on the records holds; the records.
    ///
    /// # Errors
    /// If it does not hold within `patience` of the broker's clock; the records so far are in the text.
    pub async fn until(&self, patience: Duration, holds: impl Fn(&[(Moment, Record)]) -> bool) -> Result<Vec<(Moment, Record)>> {
        let end = self.shared.clock.now() + patience;
        loop {
            let changed = self.shared.changed.notified();
            let records = self.records();
            if holds(&records) {
                return Ok(records);
            }
            tokio::select! {
                () = changed => {}
                () = self.shared.clock.sleep_until(end) => {
                    return Err(Error::new(ErrorKind::Timeout, format!("what was expected did not happen within {patience:?}: {records:?}")));
                }
            }
        }
    }

    fn record(&self, record: Record) {
        let now = self.shared.clock.now();
        self.script().records.push((now, record));
        self.shared.changed.notify_waiters();
    }

    async fn begin(&self, verb: Verb) -> Result<()> {
        let latency = self.script().latency;
        if !latency.is_zero() {
            self.shared.clock.sleep_until(self.shared.clock.now() + latency).await;
        }
        self.failure(verb)
    }

    fn failure(&self, verb: Verb) -> Result<()> {
        let mut script = self.script();
        let at = script.failures.iter().position(|(failing, _)| *failing == verb);
        at.map_or(Ok(()), |at| Err(script.failures.remove(at).1))
    }

    async fn admin_verb(&self, verb: &'static str, queue: &QueueName) -> Result<()> {
        self.record(Record::Admin(verb, queue.clone()));
        self.begin(Verb::Admin).await
    }

    fn take(&self, queue: &QueueName, max: usize, began: Moment) -> Vec<Delivery> {
        let mut script = self.script();
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(at) = script.feed.iter().position(|delivery| delivery.queue == *queue)
            && let Some(mut delivery) = script.feed.remove(at)
        {
            delivery.deadline = began + delivery.lease;
            taken.push(delivery);
        }
        taken
    }
}

fn failed<T>(error: &Error, items: usize) -> Vec<Result<T>> {
    (0..items).map(|_| Err(error.duplicate())).collect()
}

#[async_trait]
impl Broker for Scripted {
    fn info(&self) -> BrokerInfo {
        BrokerInfo { driver: "scripted", address: "scripted:".into(), ..BrokerInfo::default() }
    }

    fn capabilities(&self, _: &QueueName) -> Arc<Capabilities> {
        self.script().capabilities.clone()
    }

    async fn declare(&self, _: &QueueName) -> Result<Declared> {
        self.begin(Verb::Declare).await.map(|()| Declared { created: false, drift: self.script().drift.clone() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        if let Err(e) = self.begin(Verb::Send).await {
            return failed(&e, batch.len());
        }
        let judge = self.script().judge.clone();
        let one = |task: &Envelope| {
            if let Some(error) = judge.as_ref().and_then(|judge| judge(task)) {
                return Err(error);
            }
            self.record(Record::Sent(queue.clone(), task.clone()));
            Ok(Accepted::default())
        };
        batch.iter().map(one).collect()
    }

    async fn consume(&self, queue: &QueueName, _: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        self.begin(Verb::Consume).await?;
        Ok(Box::new(ScriptedConsumer { broker: self.clone(), queue: queue.clone() }))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.begin(Verb::Ping).await
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn close(&self) -> Result<()> {
        self.record(Record::Closed);
        Ok(())
    }
}

#[derive(Debug)]
struct ScriptedConsumer {
    broker: Scripted,
    queue: QueueName,
}

impl Drop for ScriptedConsumer {
    fn drop(&mut self) {
        self.broker.record(Record::ConsumerClosed(self.queue.clone()));
    }
}

#[async_trait]
impl Consumer for ScriptedConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let broker = &self.broker;
        broker.record(Record::Reserved(max.get(), wait));
        let began = broker.shared.clock.now();
        broker.begin(Verb::Reserve).await?;
        if wait.is_zero() && broker.script().hesitates {
            return Err(Error::new(ErrorKind::Timeout, "what there is was not said at once"));
        }
        loop {
            let changed = broker.shared.changed.notified();
            broker.failure(Verb::Reserve)?;
            let now = broker.shared.clock.now();
            let taken = broker.take(&self.queue, max.get(), now);
            if !taken.is_empty() || now.since(began) >= wait {
                return Ok(taken);
            }
            tokio::select! {
                () = changed => {}
                () = broker.shared.clock.sleep_until(began + wait) => {}
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(self.broker.clone())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let (clock, closing) = (&self.broker.shared.clock, self.broker.script().closing);
        clock.sleep_until(clock.now() + closing).await;
        Ok(())
    }
}

#[async_trait]
impl Settler for Scripted {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        if let Err(e) = self.begin(Verb::Settle).await {
            return failed(&e, batch.len());
        }
        batch.iter().for_each(|(receipt, what)| self.record(Record::Settled(receipt.clone(), what.clone())));
        batch.iter().map(|_| Ok(())).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        if let Err(e) = self.begin(Verb::Touch).await {
            return failed(&e, batch.len());
        }
        batch.iter().for_each(|touch| self.record(Record::Touched(touch.receipt.clone(), touch.ttr)));
        batch.iter().map(|touch| Ok(touch.ttr)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sample, TestClock};

    #[tokio::test(start_paused = true)]
    async fn it_delivers_what_is_fed_and_records_what_is_done() {
        let broker = Scripted::new(Arc::new(TestClock::start()));
        let queue = QueueName::new("q").unwrap();
        let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.unwrap();
        let one = NonZeroUsize::new(1).unwrap();
        let feeder = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            broker.feed(&queue, &Sample::new(3).envelope())
        };
        let (got, fed) = tokio::join!(consumer.reserve(one, Duration::from_secs(60)), feeder);
        let got = got.unwrap().remove(0);
        assert_eq!((&got.receipt, Sample::number(&got)), (&fed, Some(3)));
        assert!(got.deadline.elapsed_since_origin() >= Duration::from_secs(65), "the lease counts from the delivery");
        broker.fail_next(Verb::Settle, Error::unavailable("gone").effect_unknown());
        let settler = consumer.settler();
        let batch = [(fed.clone(), Settlement::Done)];
        assert!(settler.settle(&batch).await.remove(0).is_err());
        assert!(broker.settled().is_empty());
        assert!(settler.settle(&batch).await.remove(0).is_ok());
        assert_eq!(broker.settled(), batch);
        drop(consumer);
        let closed = |records: &[(Moment, Record)]| records.iter().any(|(_, r)| matches!(r, Record::ConsumerClosed(_)));
        broker.until(Duration::from_secs(1), closed).await.unwrap();
        let never = broker.until(Duration::from_secs(1), |records| records.is_empty()).await.unwrap_err();
        assert_eq!(never.kind(), ErrorKind::Timeout);
    }
}

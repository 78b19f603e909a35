//! A broker that misbehaves on demand, around one that does not.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, Clock, ConsumeOptions, Consumer, Declared, Delivery, Envelope, Error,
    Finding, QueueName, Receipt, Result, Settlement, Settler, Touch, async_trait,
};

/// How often what goes wrong: shares from 0 (never) to 1 (always).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Deliveries that come a second time, with the same receipt.
    pub duplicate: f64,
    /// Settle calls that answer `Ok` and do nothing: the lease will run out.
    pub lose_settle: f64,
    /// Settle calls that are carried out and answer an error whose effect is unknown.
    pub hide_settle: f64,
    /// Send calls that are carried out and answer an error whose effect is unknown.
    pub hide_send: f64,
    /// Calls of any verb but the operator's that fail without an effect.
    pub fail: f64,
    /// Touch calls that answer that the lease is lost.
    pub lose_touch: f64,
    /// By how much every call is later.
    pub slow: Duration,
}

/// Wraps a broker and injects faults, which can be changed at any time. Clones share them.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn Broker>,
    dice: Arc<Dice>,
}

#[derive(Debug)]
struct Dice {
    faults: Mutex<(Faults, fastrand::Rng)>,
    clock: Arc<dyn Clock>,
}

impl Dice {
    fn roll(&self, share: fn(&Faults) -> f64) -> bool {
        let mut locked = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let (faults, random) = &mut *locked;
        let share = share(faults);
        share > 0.0 && random.f64() < share
    }

    async fn begin(&self, verb: &'static str) -> Result<()> {
        let slow = self.faults.lock().unwrap_or_else(PoisonError::into_inner).0.slow;
        if !slow.is_zero() {
            self.clock.sleep_until(self.clock.now() + slow).await;
        }
        if self.roll(|faults| faults.fail) {
            return Err(Error::unavailable("injected: the broker cannot be reached").during(verb));
        }
        Ok(())
    }
}

fn hidden(verb: &'static str) -> Error {
    Error::unavailable("injected: the connection broke before the answer").during(verb).effect_unknown()
}

fn failed<T>(error: &Error, items: usize) -> Vec<Result<T>> {
    (0..items).map(|_| Err(error.duplicate())).collect()
}

impl Faulty {
    /// Wraps a broker, without faults at first. The seed makes a run repeatable.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let faults = Mutex::new((Faults::default(), fastrand::Rng::with_seed(seed)));
        Self { inner, dice: Arc::new(Dice { faults, clock }) }
    }

    /// Sets what goes wrong from now on, for consumers that exist already too.
    pub fn set(&self, faults: Faults) {
        self.dice.faults.lock().unwrap_or_else(PoisonError::into_inner).0 = faults;
    }
}

#[async_trait]
impl Broker for Faulty {
    fn info(&self) -> BrokerInfo {
        self.inner.info()
    }

    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities> {
        self.inner.capabilities(queue)
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        self.dice.begin("declare").await?;
        self.inner.declare(queue).await
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        if let Err(e) = self.dice.begin("send").await {
            return failed(&e, batch.len());
        }
        let answers = self.inner.send(queue, batch).await;
        if self.dice.roll(|faults| faults.hide_send) { failed(&hidden("send"), batch.len()) } else { answers }
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        self.dice.begin("consume").await?;
        let inner = self.inner.consume(queue, options).await?;
        Ok(Box::new(FaultyConsumer { inner, dice: self.dice.clone(), again: Vec::new() }))
    }

    fn admin(&self) -> &dyn Admin {
        self.inner.admin()
    }

    async fn ping(&self) -> Result<()> {
        self.dice.begin("ping").await?;
        self.inner.ping().await
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.inner.diagnose().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    dice: Arc<Dice>,
    again: Vec<Delivery>,
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.dice.begin("reserve").await?;
        if !self.again.is_empty() {
            let count = max.get().min(self.again.len());
            return Ok(self.again.drain(..count).collect());
        }
        let deliveries = self.inner.reserve(max, wait).await?;
        self.again.extend(deliveries.iter().filter(|_| self.dice.roll(|faults| faults.duplicate)).cloned());
        Ok(deliveries)
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(FaultySettler { inner: self.inner.settler(), dice: self.dice.clone() })
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct FaultySettler {
    inner: Arc<dyn Settler>,
    dice: Arc<Dice>,
}

#[async_trait]
impl Settler for FaultySettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        if let Err(e) = self.dice.begin("settle").await {
            return failed(&e, batch.len());
        }
        if self.dice.roll(|faults| faults.lose_settle) {
            return batch.iter().map(|_| Ok(())).collect();
        }
        let answers = self.inner.settle(batch).await;
        if self.dice.roll(|faults| faults.hide_settle) { failed(&hidden("settle"), batch.len()) } else { answers }
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        if let Err(e) = self.dice.begin("touch").await {
            return failed(&e, batch.len());
        }
        if self.dice.roll(|faults| faults.lose_touch) {
            return failed(&Error::lease_lost().during("touch"), batch.len());
        }
        self.inner.touch(batch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sample, Scripted, TestClock};
    use anyqueue_core::{Effect, ErrorKind};

    struct Setting {
        scripted: Scripted,
        faulty: Faulty,
        queue: QueueName,
        clock: Arc<TestClock>,
    }

    fn setting() -> Setting {
        let clock = Arc::new(TestClock::start());
        let scripted = Scripted::new(clock.clone());
        let faulty = Faulty::new(Arc::new(scripted.clone()), clock.clone(), 7);
        Setting { scripted, faulty, queue: QueueName::new("q").unwrap(), clock }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hidden_send_happens_and_a_failed_one_does_not() {
        let s = setting();
        s.faulty.set(Faults { hide_send: 1.0, ..Faults::default() });
        let error = s.faulty.send(&s.queue, &Sample::many(2)).await.remove(1).unwrap_err();
        assert_eq!((error.kind(), error.effect(), s.scripted.sent().len()), (ErrorKind::Unavailable, Effect::Unknown, 2));
        s.faulty.set(Faults { fail: 1.0, ..Faults::default() });
        let error = s.faulty.send(&s.queue, &Sample::many(2)).await.remove(1).unwrap_err();
        assert_eq!((error.effect(), s.scripted.sent().len()), (Effect::None, 2));
        s.faulty.set(Faults::default());
        assert!(s.faulty.send(&s.queue, &Sample::many(2)).await.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn settles_are_lost_or_hidden_and_deliveries_doubled() {
        let s = setting();
        let receipt = s.scripted.feed(&s.queue, &Sample::new(1).envelope());
        let mut consumer = s.faulty.consume(&s.queue, ConsumeOptions::default()).await.unwrap();
        s.faulty.set(Faults { duplicate: 1.0, lose_settle: 1.0, ..Faults::default() });
        let one = NonZeroUsize::new(5).unwrap();
        let first = consumer.reserve(one, Duration::ZERO).await.unwrap();
        let second = consumer.reserve(one, Duration::ZERO).await.unwrap();
        assert_eq!((first[0].receipt.clone(), second[0].receipt.clone()), (receipt.clone(), receipt.clone()));
        let batch = [(receipt, Settlement::Done)];
        assert!(consumer.settler().settle(&batch).await.remove(0).is_ok());
        assert!(s.scripted.settled().is_empty(), "the settle was dropped");
        s.faulty.set(Faults { hide_settle: 1.0, ..Faults::default() });
        let error = consumer.settler().settle(&batch).await.remove(0).unwrap_err();
        assert_eq!((error.effect(), s.scripted.settled().len()), (Effect::Unknown, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn shares_and_delays_are_kept() {
        let s = setting();
        s.faulty.set(Faults { fail: 0.3, slow: Duration::from_secs(1), ..Faults::default() });
        let began = s.clock.now();
        let mut failures = 0;
        for _ in 0..1000 {
            failures += usize::from(s.faulty.ping().await.is_err());
        }
        assert!((200..400).contains(&failures), "{failures} of 1000");
        assert!(s.clock.now().since(began) >= Duration::from_secs(1000));
    }
}

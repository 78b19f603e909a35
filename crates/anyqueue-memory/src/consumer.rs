//! Reserving, settling, touching.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::{check_delay, check_ttr};
use anyqueue_core::{Consumer, Delivery, Envelope, Moment, Receipt, Result, Settlement, Settler, Touch, async_trait};
use tokio::sync::Notify;

use crate::DRIVER;
use crate::broker::{Memory, all_failed};
use crate::queue::Queue;

/// Takes tasks from one queue. It fetches only what it hands out, so nothing is ever left in it to be given back.
#[derive(Debug)]
pub(crate) struct MemoryConsumer {
    broker: Memory,
    queue: Arc<Queue>,
    priorities: RangeInclusive<u32>,
}

impl MemoryConsumer {
    pub(crate) fn new(broker: Memory, queue: Arc<Queue>, priorities: RangeInclusive<u32>) -> Self {
        Self { broker, queue, priorities }
    }

    fn take(&self, max: usize, until: Moment) -> Result<Taken<'_>> {
        let now = self.broker.begin()?;
        let mut tasks = self.queue.at(now);
        let slots = if tasks.paused.is_none() { tasks.ready.take(&self.priorities, max) } else { Vec::new() };
        if !slots.is_empty() || now >= until {
            let deliveries = tasks.reserve(&self.queue.name, slots, now);
            tasks.ring();
            return Ok(Taken::Now(deliveries));
        }
        let (number, armed, bell) = tasks.wait(self.priorities.clone(), until);
        Ok(Taken::Later(Wait { consumer: self, number, armed, bell }))
    }
}

enum Taken<'a> {
    Now(Vec<Delivery>),
    Later(Wait<'a>),
}

/// A place in the list of those who wait. Giving it up passes on a wake-up that came too late to be used.
struct Wait<'a> {
    consumer: &'a MemoryConsumer,
    number: u64,
    armed: Moment,
    bell: Arc<Notify>,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut tasks = self.consumer.queue.at(self.consumer.broker.store.clock.now());
        tasks.waiters.leave(self.number);
        tasks.ring();
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let clock = self.broker.store.clock.clone();
        let until = clock.now() + wait;
        loop {
            match self.take(max.get(), until).map_err(|e| e.during("reserve").with("queue", &self.queue.name))? {
                Taken::Now(deliveries) => return Ok(deliveries),
                Taken::Later(wait) => tokio::select! {
                    () = wait.bell.notified() => {}
                    () = clock.sleep_until(wait.armed) => {}
                },
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(MemorySettler { broker: self.broker.clone(), queue: self.queue.clone() })
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Ends and renews leases of one queue.
#[derive(Debug)]
struct MemorySettler {
    broker: Memory,
    queue: Arc<Queue>,
}

impl MemorySettler {
    fn check(settlement: &Settlement) -> Result<()> {
        let next: &Envelope = match settlement {
            Settlement::Done => return Ok(()),
            Settlement::Release(next) | Settlement::Retry(next) | Settlement::Hold(next, _) => next,
        };
        check_delay(next.delay)?;
        check_ttr(next.ttr, DRIVER.capabilities.ttr.limits().max, "the memory broker")?;
        Ok(())
    }
}

#[async_trait]
impl Settler for MemorySettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        let now = match self.broker.begin() {
            Ok(now) => now,
            Err(e) => return all_failed(&e.during("settle").with("queue", &self.queue.name), batch.len()),
        };
        let mut tasks = self.queue.at(now);
        let mut one = |receipt, what| Self::check(what).and_then(|()| tasks.settle(receipt, what, now));
        let named = |e: anyqueue_core::Error| e.during("settle").with("queue", &self.queue.name);
        let answers = batch.iter().map(|(receipt, what)| one(receipt, what).map_err(named)).collect();
        tasks.ring();
        answers
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let now = match self.broker.begin() {
            Ok(now) => now,
            Err(e) => return all_failed(&e.during("touch").with("queue", &self.queue.name), batch.len()),
        };
        let mut tasks = self.queue.at(now);
        tasks.leases.begin();
        let limit = DRIVER.capabilities.ttr.limits().max;
        let mut one = |touch: &Touch| {
            check_ttr(touch.ttr, limit, "the memory broker")?;
            tasks.touch(touch, now)
        };
        let named = |e: anyqueue_core::Error| e.during("touch").with("queue", &self.queue.name);
        let answers = batch.iter().map(|touch| one(touch).map_err(named)).collect();
        tasks.ring();
        answers
    }
}

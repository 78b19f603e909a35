//! Reserving, settling, touching.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyqueue::core::time::check_ttr;
use anyqueue::core::{Clock, Consumer, Delivery, Error, Moment, Receipt, Result, Settlement, Settler, Touch, async_trait};

use super::DRIVER;
use super::broker::{Link, check};
use super::tasks::{Place, Queue, Tasks};

/// Takes tasks from one queue. Cheap to clone: the settler is the same thing.
#[derive(Debug, Clone)]
pub(crate) struct VecConsumer {
    pub(crate) queue: Arc<Queue>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) link: Arc<Link>,
    pub(crate) priorities: RangeInclusive<u32>,
}

#[async_trait]
impl Consumer for VecConsumer {
    // Tasks are taken and handed out in one step, without waiting in between: dropping the future loses nothing.
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let until = self.clock.now() + wait;
        loop {
            // Listen first and look second, or a change in between would be missed.
            let changed = self.queue.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.link.check().map_err(|e| self.named(e, "reserve"))?;
            let now = self.clock.now();
            let (found, next) = {
                let mut tasks = self.queue.at(now);
                (tasks.reserve(&self.queue.name, &self.priorities, max.get(), now), tasks.next_change())
            };
            if !found.is_empty() || now >= until {
                return Ok(found);
            }
            tokio::select! {
                () = &mut changed => {}
                () = self.clock.sleep_until(next.unwrap_or(until).min(until)) => {}
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(self.clone())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl VecConsumer {
    fn named(&self, error: Error, verb: &'static str) -> Error {
        error.during(verb).with("queue", &self.queue.name)
    }

    /// Does one thing to each item of a batch: one answer each, in order.
    fn each<I, T>(&self, batch: &[I], verb: &'static str, one: impl Fn(&mut Tasks, &I, Moment) -> Result<T>) -> Vec<Result<T>> {
        if let Err(e) = self.link.check() {
            return batch.iter().map(|_| Err(self.named(e.duplicate(), verb))).collect();
        }
        let now = self.clock.now();
        self.queue.change(now, |tasks| batch.iter().map(|item| one(tasks, item, now).map_err(|e| self.named(e, verb))).collect())
    }
}

#[async_trait]
impl Settler for VecConsumer {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        self.each(batch, "settle", |tasks, (receipt, settlement), now| settle(tasks, receipt, settlement, now))
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        self.each(batch, "touch", |tasks, touch, now| {
            check_ttr(touch.ttr, DRIVER.capabilities.ttr.limits().max, "the vec broker")?;
            let at = tasks.reserved(&touch.receipt)?;
            tasks.all[at].place = Place::Reserved { epoch: touch.receipt.epoch, until: now + touch.ttr };
            Ok(touch.ttr)
        })
    }
}

fn settle(tasks: &mut Tasks, receipt: &Receipt, settlement: &Settlement, now: Moment) -> Result<()> {
    let at = tasks.reserved(receipt)?;
    match settlement {
        Settlement::Done => {
            tasks.all.swap_remove(at);
        }
        // The same body, and the same place in line.
        Settlement::Release(next) => {
            check(next)?;
            let stored = &mut tasks.all[at];
            (stored.task.delay, stored.counts.releases) = (next.delay, stored.counts.releases + 1);
            stored.line_up(next.delay, now);
        }
        // A new body, whose counters have changed, behind those that were there first.
        Settlement::Retry(next) => {
            check(next)?;
            let number = tasks.next_number();
            let stored = &mut tasks.all[at];
            (stored.task, stored.number, stored.lost) = (next.clone(), number, 0);
            stored.counts.releases += 1;
            stored.line_up(next.delay, now);
        }
        // The reason is in the body too, so there is no need to keep it.
        Settlement::Hold(next, _) => {
            check(next)?;
            let number = tasks.next_number();
            let stored = &mut tasks.all[at];
            (stored.task, stored.number, stored.lost) = (next.clone(), number, 0);
            stored.counts.holds += 1;
            stored.place = Place::Held;
        }
    }
    Ok(())
}

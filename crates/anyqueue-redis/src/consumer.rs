//! Reserving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue_core::{
    ConsumeOptions, Consumer, Delivery, Effect, Error, ErrorKind, Moment, QueueName, Result, Settler, async_trait,
};
use tokio::sync::{oneshot, watch};

use crate::broker::Shared;
use crate::claim::{Busy, Claimed, Shelf};
use crate::layout::{Keys, Stored};
use crate::orphans::Orphans;
use crate::portion::Portion;
use crate::storm::Storm;
use crate::script::Script;
use crate::settler::RedisSettler;

/// How often who waits looks although nobody rang: the server may have forgotten who waits.
const LOOK: Duration = Duration::from_secs(15);
/// The same while nobody can ring.
const LOOK_UNRUNG: Duration = Duration::from_millis(200);
/// How long the answer to a claim may take although nobody wants to wait as long: without it nothing is known.
const ANSWER: Duration = Duration::from_secs(1);

/// Takes tasks of one queue.
#[derive(Debug)]
pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    queue: QueueName,
    keys: Arc<Keys>,
    options: ConsumeOptions,
    bell: watch::Receiver<u64>,
    /// A claim whose answer has not come yet, or has not been noticed: when to look again if it found nothing.
    pending: Option<oneshot::Receiver<Result<Option<Duration>>>>,
    /// What came and was not handed out yet.
    shelf: Arc<Shelf>,
    portion: Arc<Portion>,
    storm: Storm,
    orphans: Arc<Orphans>,
}

impl RedisConsumer {
    pub(crate) fn new(shared: Arc<Shared>, queue: QueueName, options: ConsumeOptions) -> Self {
        let keys = shared.keys(&queue);
        let bell = shared.bells.listen(keys.bell());
        let orphans = Arc::new(Orphans::new(keys.clone()));
        let shelf = shared.shelves.add();
        Self { shared, queue, keys, options, bell, pending: None, shelf, portion: Arc::default(), storm: Storm::default(), orphans }
    }

    /// Sends a claim on its way, in a task of its own: who waits for the answer may go away.
    fn ask(&self, max: NonZeroUsize) -> oneshot::Receiver<Result<Option<Duration>>> {
        let (first, end) = (*self.options.priorities.start(), self.options.priorities.end().checked_add(1));
        let (shared, keys, busy) = (self.shared.clone(), self.keys.clone(), Busy::new(&self.shared));
        let (tell, told) = oneshot::channel();
        let (orphans, number) = (self.orphans.clone(), self.orphans.next_claim());
        let (shelf, portion) = (self.shelf.clone(), self.portion.clone());
        let wanted = portion.of(max.get().min(self.options.prefetch));
        tokio::spawn(async move {
            let (began, asked) = (Instant::now(), shared.clock.now());
            let answer = shared.run(Script::Reserve, &keys, |request| {
                request.arg(wanted.tasks).arg(wanted.bytes);
                match (first, end) {
                    (0, None) => request.arg("").arg(""),
                    (first, None) => request.arg(first.to_be_bytes().as_slice()).arg(""),
                    (first, Some(end)) => request.arg(first.to_be_bytes().as_slice()).arg(end.to_be_bytes().as_slice()),
                };
                request.arg(number.to_be_bytes().as_slice());
            });
            let answer = answer.await.and_then(|answer| Claimed::read(answer, number, asked, &shared, &keys));
            let (took, limit) = (began.elapsed(), shared.config.timeout);
            let found = match answer {
                Ok(claimed) => {
                    portion.came(wanted, took, limit);
                    shelf.put(claimed)
                }
                Err(error) => {
                    if error.effect() == Effect::Unknown {
                        orphans.add(number, wanted.tasks == 1, &shared);
                    }
                    Err(portion.failed(wanted, error, limit))
                }
            };
            // Where nobody listens any more, what was claimed lies on the shelf, and goes back with it.
            drop(tell.send(found));
            drop(busy);
        });
        told
    }

    /// The answer to the claim under way. When it is late, the next call goes on waiting for it.
    async fn answer(&mut self, end: Moment) -> Result<Option<Duration>> {
        let Some(pending) = &mut self.pending else { return Err(given_up()) };
        let answer = tokio::select! {
            biased;
            answer = pending => answer,
            () = self.shared.clock.sleep_until(end) => {
                let text = "the server has not answered yet; the next call goes on waiting for what it finds";
                return Err(Error::new(ErrorKind::Timeout, text));
            }
        };
        self.pending = None;
        answer.unwrap_or_else(|_| Err(given_up()))
    }

    fn hand_out(&mut self, max: NonZeroUsize) -> Vec<Delivery> {
        let ready = self.shelf.take(max.get(), |claimed, task| delivery(task, claimed, &self.queue));
        if !ready.is_empty() {
            self.storm.over();
        }
        ready
    }

    /// Waits to be rung, at most until something changes by itself.
    async fn rest(&mut self, next: Option<Duration>, end: Moment) {
        let clock = &self.shared.clock;
        self.storm.vain(clock.now());
        let look = if self.shared.bells.listening() { LOOK } else { LOOK_UNRUNG };
        let most = clock.now() + next.unwrap_or(LOOK).min(look);
        tokio::select! {
            _ = self.bell.changed() => {
                let pause = self.storm.rung();
                if !pause.is_zero() {
                    clock.sleep_until((clock.now() + pause).min(end)).await;
                }
            }
            () = clock.sleep_until(most.min(end)) => {}
        }
    }
}

/// The error of a claim whose task ended with its runtime.
fn given_up() -> Error {
    Error::unavailable("the claim was given up half-way").effect_unknown()
}

fn delivery(task: Stored, claimed: &Claimed, queue: &QueueName) -> Delivery {
    Delivery {
        receipt: task.receipt(claimed.number),
        queue: queue.clone(),
        native: task.facts(claimed.now),
        lease: task.head.ttr,
        deadline: claimed.asked + task.head.ttr,
        raw: task.body,
    }
}

#[async_trait]
impl Consumer for RedisConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let end = self.shared.clock.now() + wait;
        loop {
            self.shared.check().map_err(|e| e.during("reserve"))?;
            let ready = self.hand_out(max);
            if !ready.is_empty() {
                return Ok(ready);
            }
            if self.pending.is_none() {
                // Before the claim: what comes after it must be noticed.
                self.bell.mark_unchanged();
                self.pending = Some(self.ask(max));
            }
            let next = self
                .answer(end.max(self.shared.clock.now() + ANSWER))
                .await
                .map_err(|e| e.during("reserve").with("queue", &self.queue))?;
            let ready = self.hand_out(max);
            if !ready.is_empty() || self.shared.clock.now() >= end {
                return Ok(ready);
            }
            self.rest(next, end).await;
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(RedisSettler::new(self.shared.clone(), self.queue.clone(), self.keys.clone()))
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if let Some(pending) = self.pending.take() {
            // What it found lies on the shelf; why it failed is nobody's concern any more.
            let _ = pending.await;
        }
        let answer = self.shelf.close().and_then(|mut claimed| claimed.give_back());
        match answer {
            Some(answer) => answer.await.unwrap_or_else(|_| Err(given_up())),
            None => Ok(()),
        }
        .map_err(|e| e.during("close").with("queue", &self.queue))
    }
}

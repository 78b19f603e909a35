//! Reserving.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{
    ConsumeOptions, Consumer, Delivery, Effect, Error, ErrorKind, Moment, QueueName, Result, Settler, async_trait,
};
use redis::Value;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::broker::Shared;
use crate::error::strange;
use crate::layout::{Answer, Keys, Lease, Stored, lease};
use crate::orphans::Orphans;
use crate::script::Script;
use crate::settler::RedisSettler;

/// Tasks that one claim takes at most.
const MOST: usize = 1024;
/// After how many bytes a claim takes no more.
const ENOUGH: usize = 8 << 20;
/// How often who waits looks although nobody rang: the server may have forgotten who waits.
const LOOK: Duration = Duration::from_secs(15);
/// The same while nobody can ring.
const LOOK_UNRUNG: Duration = Duration::from_millis(200);
/// How long the answer to a claim may take although nobody wants to wait as long: without it nothing is known.
const ANSWER: Duration = Duration::from_secs(1);

/// What a claim found. Dropped with tasks in it, it gives them back: wherever an answer gets lost, no task does.
#[derive(Debug)]
struct Claimed {
    number: u64,
    tasks: VecDeque<Stored>,
    /// The server's time, in milliseconds.
    now: u64,
    asked: Moment,
    /// Where nothing was found: when time alone brings something.
    next: Option<Duration>,
    keys: Arc<Keys>,
    shared: Arc<Shared>,
}

/// One claim or return under way.
pub(crate) struct Busy(Arc<Shared>);

impl Busy {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::AcqRel);
        Self(shared.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Claimed {
    /// Gives back what is left.
    async fn give_back(&mut self) -> Result<()> {
        let leases: Vec<_> = self.tasks.drain(..).filter_map(|task| lease(&task.receipt(self.number))).collect();
        return_leases(&self.shared, &self.keys, leases).await
    }
}

/// Makes tasks ready again as if they had never been claimed.
pub(crate) async fn return_leases(shared: &Shared, keys: &Keys, leases: Vec<Lease>) -> Result<()> {
    if leases.is_empty() {
        return Ok(());
    }
    let answer = shared.run_unchecked(Script::Settle, keys, |request| {
        for lease in &leases {
            request.arg("back").arg(lease.as_slice()).arg(0).arg("");
        }
    });
    answer.await.map(drop)
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let leases: Vec<_> = self.tasks.drain(..).filter_map(|task| lease(&task.receipt(self.number))).collect();
        let (shared, keys, busy) = (self.shared.clone(), self.keys.clone(), Busy::new(&self.shared));
        let count = leases.len();
        let runtime = Handle::try_current().unwrap_or_else(|_| self.shared.runtime.clone());
        runtime.spawn(async move {
            if let Err(error) = return_leases(&shared, &keys, leases).await {
                tracing::warn!(queue = keys.bell(), count, %error, "cannot give tasks back; they come again when their leases end");
            }
            drop(busy);
        });
    }
}

/// Takes tasks of one queue.
#[derive(Debug)]
pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    queue: QueueName,
    keys: Arc<Keys>,
    options: ConsumeOptions,
    bell: watch::Receiver<u64>,
    /// A claim whose answer has not come yet.
    pending: Option<oneshot::Receiver<Result<Claimed>>>,
    /// What came and was not handed out yet.
    buffer: Option<Claimed>,
    orphans: Arc<Orphans>,
}

impl RedisConsumer {
    pub(crate) fn new(shared: Arc<Shared>, queue: QueueName, options: ConsumeOptions) -> Self {
        let keys = shared.keys(&queue);
        let bell = shared.bells.listen(keys.bell());
        let orphans = Arc::new(Orphans::new(keys.clone()));
        Self { shared, queue, keys, options, bell, pending: None, buffer: None, orphans }
    }

    /// Sends a claim on its way, in a task of its own: who waits for the answer may go away.
    fn ask(&self, max: NonZeroUsize) -> oneshot::Receiver<Result<Claimed>> {
        let most = max.get().min(self.options.prefetch).clamp(1, MOST);
        let (first, end) = (*self.options.priorities.start(), self.options.priorities.end().checked_add(1));
        let (shared, keys, busy) = (self.shared.clone(), self.keys.clone(), Busy::new(&self.shared));
        let (tell, told) = oneshot::channel();
        let (orphans, number) = (self.orphans.clone(), self.orphans.next_claim());
        tokio::spawn(async move {
            let asked = shared.clock.now();
            let answer = shared.run(Script::Reserve, &keys, |request| {
                request.arg(most).arg(ENOUGH);
                match (first, end) {
                    (0, None) => request.arg("").arg(""),
                    (first, None) => request.arg(first.to_be_bytes().as_slice()).arg(""),
                    (first, Some(end)) => request.arg(first.to_be_bytes().as_slice()).arg(end.to_be_bytes().as_slice()),
                };
                request.arg(number.to_be_bytes().as_slice());
            });
            let claimed = answer.await.and_then(|answer| claimed(answer, number, asked, shared.clone(), keys));
            if claimed.as_ref().is_err_and(|e| e.effect() == Effect::Unknown) {
                orphans.add(number, &shared);
            }
            // Where nobody listens any more, what was claimed comes back with the error and is dropped.
            drop(tell.send(claimed));
            drop(busy);
        });
        told
    }

    /// The answer to the claim under way. When it is late, the next call goes on waiting for it.
    async fn answer(&mut self, end: Moment) -> Result<Claimed> {
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
        let Some(claimed) = &mut self.buffer else { return Vec::new() };
        let count = claimed.tasks.len().min(max.get());
        let (number, now, asked, queue) = (claimed.number, claimed.now, claimed.asked, &self.queue);
        let tasks = claimed.tasks.drain(..count).map(|task| delivery(task, number, now, asked, queue)).collect();
        if claimed.tasks.is_empty() {
            self.buffer = None;
        }
        tasks
    }

    /// Waits to be rung, at most until something changes by itself.
    async fn rest(&mut self, next: Option<Duration>, end: Moment) {
        let clock = &self.shared.clock;
        let look = if self.shared.bells.listening() { LOOK } else { LOOK_UNRUNG };
        let most = clock.now() + next.unwrap_or(LOOK).min(look);
        tokio::select! {
            _ = self.bell.changed() => {}
            () = clock.sleep_until(most.min(end)) => {}
        }
    }
}

/// The error of a claim whose task ended with its runtime.
fn given_up() -> Error {
    Error::unavailable("the claim was given up half-way").effect_unknown()
}

/// Reads the answer to a claim.
fn claimed(answer: Value, number: u64, asked: Moment, shared: Arc<Shared>, keys: Arc<Keys>) -> Result<Claimed> {
    let (now, tasks, next) = match Answer::read(answer).ok_or_else(|| strange("reserve").effect_unknown())? {
        Answer::Nothing(wait) => (0, Vec::new(), wait.map(Duration::from_millis)),
        Answer::Taken(now, tasks) => (now, tasks, Some(Duration::ZERO)),
    };
    Ok(Claimed { number, tasks: tasks.into(), now, asked, next, keys, shared })
}

fn delivery(task: Stored, number: u64, now: u64, asked: Moment, queue: &QueueName) -> Delivery {
    Delivery {
        receipt: task.receipt(number),
        queue: queue.clone(),
        native: task.facts(now),
        lease: task.head.ttr,
        deadline: asked + task.head.ttr,
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
            let claimed = self
                .answer(end.max(self.shared.clock.now() + ANSWER))
                .await
                .map_err(|e| e.during("reserve").with("queue", &self.queue))?;
            if !claimed.tasks.is_empty() {
                self.buffer = Some(claimed);
                continue;
            }
            if self.shared.clock.now() >= end {
                return Ok(Vec::new());
            }
            self.rest(claimed.next, end).await;
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(RedisSettler::new(self.shared.clone(), self.queue.clone(), self.keys.clone()))
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let pending = match self.pending.take() {
            Some(pending) => pending.await.ok().and_then(Result::ok),
            None => None,
        };
        for mut claimed in self.buffer.take().into_iter().chain(pending) {
            claimed.give_back().await.map_err(|e| e.during("close").with("queue", &self.queue))?;
        }
        Ok(())
    }
}

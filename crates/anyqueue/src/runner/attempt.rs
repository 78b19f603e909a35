//! One attempt at one task: its lease, its cancellation, its run.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyqueue_core::{BoxFuture, Bytes, Clock, Error, Incoming, Moment, NativeFacts, QueueName, Receipt, Result, Settler, Touch};
use futures::FutureExt;
use tokio::sync::Notify;

use crate::outcome::Outcome;
use crate::queue::Worker;
use crate::trace::{self, Traced};

/// A delivery on its way through the runner.
pub(crate) struct Attempt {
    pub(crate) incoming: Incoming,
    pub(crate) receipt: Receipt,
    pub(crate) native: NativeFacts,
    pub(crate) cancel: Cancel,
    pub(crate) checkpoint: Mutex<Option<Bytes>>,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Which of the runner's lanes it belongs to.
    pub(crate) lane: usize,
    /// Its place among the leases that the keeper looks after.
    pub(crate) lease: AtomicUsize,
    queue: QueueName,
    deadline: AtomicU64,
}

impl Attempt {
    #[allow(clippy::too_many_arguments, reason = "built in two places, each of which has exactly these")]
    pub(crate) fn new(
        incoming: Incoming,
        receipt: Receipt,
        native: NativeFacts,
        deadline: Moment,
        queue: QueueName,
        lane: usize,
        settler: Arc<dyn Settler>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let checkpoint = Mutex::new(incoming.wire.checkpoint.clone());
        let deadline = AtomicU64::new(nanos(deadline));
        let cancel = Cancel::default();
        Self {
            incoming,
            receipt,
            native,
            cancel,
            checkpoint,
            settler,
            clock,
            lane,
            lease: AtomicUsize::new(usize::MAX),
            queue,
            deadline,
        }
    }

    pub(crate) fn queue(&self) -> &str {
        self.queue.as_str()
    }

    /// When the lease ends, as far as this process knows.
    pub(crate) fn deadline(&self) -> Moment {
        Moment::since_origin(Duration::from_nanos(self.deadline.load(Ordering::Acquire)))
    }

    pub(crate) fn set_deadline(&self, deadline: Moment) {
        self.deadline.store(nanos(deadline), Ordering::Release);
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline().since(self.clock.now())
    }

    pub(crate) fn as_touch(&self) -> Touch {
        Touch { receipt: self.receipt.clone(), ttr: self.incoming.ttr, task: self.incoming.unchanged(Duration::ZERO) }
    }

    /// The handler's own touch.
    pub(crate) async fn touch(&self) -> Result<Duration> {
        let before = self.clock.now();
        if before >= self.deadline() || self.cancel.reason() == Some(Reason::LeaseLost) {
            return Err(Error::lease_lost().during("touch"));
        }
        let answer = self.settler.touch(&[self.as_touch()]).await.pop();
        let left = answer.unwrap_or_else(|| Err(Error::unavailable("no answer"))).map_err(|e| e.during("touch"))?;
        self.set_deadline(before + left);
        Ok(left)
    }

    /// The incoming task with what the handler saved, from which the next body is built.
    pub(crate) fn with_checkpoint(&self) -> std::borrow::Cow<'_, Incoming> {
        let saved = self.checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if saved == self.incoming.wire.checkpoint {
            return std::borrow::Cow::Borrowed(&self.incoming);
        }
        let mut incoming = self.incoming.clone();
        incoming.set_checkpoint(saved);
        std::borrow::Cow::Owned(incoming)
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.elapsed_since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// Why an attempt is over before its handler returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Another worker may have the task by now.
    LeaseLost = 1,
    /// The TTR is over and nobody touched.
    TtrOver = 2,
    /// `time_limit` is over.
    TimeLimit = 3,
    /// The runner stops and the grace time is over.
    Stop = 4,
}

/// A flag that can be waited for.
#[derive(Debug, Default)]
pub(crate) struct Cancel {
    reason: AtomicU8,
    waiting: Notify,
}

impl Cancel {
    /// Sets it, unless it is set.
    pub(crate) fn set(&self, reason: Reason) {
        if self.reason.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waiting.notify_waiters();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.reason.load(Ordering::Acquire) != 0
    }

    pub(crate) fn reason(&self) -> Option<Reason> {
        match self.reason.load(Ordering::Acquire) {
            1 => Some(Reason::LeaseLost),
            2 => Some(Reason::TtrOver),
            3 => Some(Reason::TimeLimit),
            4 => Some(Reason::Stop),
            _ => None,
        }
    }

    pub(crate) async fn wait(&self) -> Reason {
        loop {
            let notified = self.waiting.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(reason) = self.reason() {
                return reason;
            }
            notified.await;
        }
    }
}

/// How an attempt ended.
pub(crate) enum Ran {
    /// The handler returned, or panicked.
    Returned(Outcome),
    /// The data is not of the worker's type.
    Undecodable(String),
    /// It was cancelled. What is left cannot be stopped from outside and still needs its slot.
    Cancelled(Reason, Option<BoxFuture<'static, ()>>),
}

/// Runs a worker on a task until it returns or is cancelled.
pub(crate) async fn run(attempt: &Arc<Attempt>, worker: &dyn Worker) -> Ran {
    let started = std::panic::catch_unwind(AssertUnwindSafe(|| worker.start(attempt.clone())));
    let handler = match started {
        Ok(Ok(handler)) => handler,
        Ok(Err(why)) => return Ran::Undecodable(why),
        Err(panic) => return Ran::Returned(panicked(&*panic)),
    };
    let mut handler: BoxFuture<'static, Outcome> =
        match attempt.incoming.wire.header(trace::TRACEPARENT).and_then(trace::child_of) {
            Some(parent) => Box::pin(Traced::new(handler, Some(parent))),
            None => handler,
        };
    let mut caught = AssertUnwindSafe(&mut handler).catch_unwind();
    let reason = tokio::select! {
        biased;
        result = &mut caught => return match attempt.cancel.reason() {
            // A handler that saw the end coming and returned for that reason has no result of its own.
            Some(reason) => Ran::Cancelled(reason, None),
            None => Ran::Returned(result.unwrap_or_else(|panic| panicked(&*panic))),
        },
        reason = attempt.cancel.wait() => reason,
    };
    let rest = worker.blocks().then(|| Box::pin(AssertUnwindSafe(handler).catch_unwind().map(drop)) as BoxFuture<'static, ()>);
    Ran::Cancelled(reason, rest)
}

fn panicked(panic: &(dyn Any + Send)) -> Outcome {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Outcome::failed(format!("the worker panicked: {}", text.unwrap_or("without a message")))
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt")
            .field("queue", &self.queue)
            .field("id", &self.incoming.id)
            .field("receipt", &self.receipt)
            .finish()
    }
}

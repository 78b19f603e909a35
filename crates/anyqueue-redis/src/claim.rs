//! What claims took: on its way to a consumer, or back to the queue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{Moment, Result};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::broker::Shared;
use crate::error::{closed, strange};
use crate::layout::{Answer, Keys, Lease, Stored, lease};
use crate::script::Script;

/// The first pause after tasks could not be given back; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Tries that whoever closes the broker waits for.
const AWAITED: u32 = 4;

/// One claim or return under way: who closes the broker waits for it.
#[derive(Debug)]
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

/// What a claim found. Dropped with tasks in it, it gives them back: wherever an answer gets lost, no task does.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) number: u64,
    pub(crate) tasks: VecDeque<Stored>,
    /// The server's time, in milliseconds.
    pub(crate) now: u64,
    pub(crate) asked: Moment,
    /// Where nothing was found: when time alone brings something.
    pub(crate) next: Option<Duration>,
    keys: Arc<Keys>,
    shared: Arc<Shared>,
}

impl Claimed {
    /// Reads the answer to a claim.
    pub(crate) fn read(answer: redis::Value, number: u64, asked: Moment, shared: &Arc<Shared>, keys: &Arc<Keys>) -> Result<Self> {
        let (now, tasks, next) = match Answer::read(answer).ok_or_else(|| strange("reserve").effect_unknown())? {
            Answer::Nothing(wait) => (0, Vec::new(), wait.map(Duration::from_millis)),
            Answer::Taken(now, tasks) => (now, tasks, Some(Duration::ZERO)),
        };
        Ok(Self { number, tasks: tasks.into(), now, asked, next, keys: keys.clone(), shared: shared.clone() })
    }

    /// Gives back what is left, in a task of its own that goes on when nobody waits for it. What comes is the first answer.
    pub(crate) fn give_back(&mut self) -> Option<oneshot::Receiver<Result<()>>> {
        let end = self.tasks.iter().map(|task| self.asked + task.head.ttr).min()?;
        let leases: Vec<_> = self.tasks.drain(..).filter_map(|task| lease(&task.receipt(self.number))).collect();
        let (tell, told) = oneshot::channel();
        let runtime = Handle::try_current().unwrap_or_else(|_| self.shared.runtime.clone());
        let busy = Busy::new(&self.shared);
        runtime.spawn(go_back(Arc::downgrade(&self.shared), busy, self.keys.clone(), leases, end, tell));
        Some(told)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        drop(self.give_back());
    }
}

/// Makes tasks ready again as if they had never been claimed.
pub(crate) async fn return_leases(shared: &Shared, keys: &Keys, leases: &[Lease]) -> Result<()> {
    if leases.is_empty() {
        return Ok(());
    }
    let answer = shared.run_unchecked(Script::Settle, keys, |request| {
        for lease in leases {
            request.arg("back").arg(lease.as_slice()).arg(0).arg("");
        }
    });
    answer.await.map(drop)
}

/// The same, tried until it works, or the first of the leases ends, or nobody uses the broker any more.
async fn go_back(
    shared: Weak<Shared>,
    busy: Busy,
    keys: Arc<Keys>,
    leases: Vec<Lease>,
    end: Moment,
    tell: oneshot::Sender<Result<()>>,
) {
    let (mut tell, mut busy, mut pause, mut tries) = (Some(tell), Some(busy), FIRST_PAUSE, 0);
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let answer = return_leases(&shared, &keys, &leases).await;
        tries += 1;
        let error = answer.as_ref().err().map(ToString::to_string);
        if let Some(tell) = tell.take() {
            // Nobody need listen.
            let _ = tell.send(answer);
        }
        let Some(error) = error else { return };
        if tries == AWAITED {
            busy = None;
        }
        if shared.clock.now() >= end || (busy.is_none() && shared.check().is_err()) {
            let (queue, count) = (keys.bell(), leases.len());
            return tracing::warn!(queue, count, error, "cannot give tasks back; they come again when their leases end");
        }
        // Whoever gives back is no reason for the broker to live.
        drop(shared);
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Where a consumer's tasks lie until it hands them out. Who closes the broker clears it.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    claimed: Option<Claimed>,
    closed: bool,
}

impl Shelf {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a claim found, and says when to look again. What comes too late goes back.
    pub(crate) fn put(&self, claimed: Claimed) -> Result<Option<Duration>> {
        let next = claimed.next;
        let mut content = self.content();
        if content.closed {
            drop(content);
            drop(claimed);
            return Err(closed());
        }
        if !claimed.tasks.is_empty() {
            content.claimed = Some(claimed);
        }
        Ok(next)
    }

    /// Takes some tasks, with what is to be known of their claim.
    pub(crate) fn take<T>(&self, most: usize, mut read: impl FnMut(&Claimed, Stored) -> T) -> Vec<T> {
        let mut content = self.content();
        let Some(claimed) = &mut content.claimed else { return Vec::new() };
        let count = claimed.tasks.len().min(most);
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            if let Some(task) = claimed.tasks.pop_front() {
                taken.push(read(claimed, task));
            }
        }
        if claimed.tasks.is_empty() {
            content.claimed = None;
        }
        taken
    }

    /// Lets nothing in any more. What is there is the caller's.
    pub(crate) fn close(&self) -> Option<Claimed> {
        let mut content = self.content();
        content.closed = true;
        content.claimed.take()
    }
}

/// The shelves of all consumers of a broker.
#[derive(Debug, Default)]
pub(crate) struct Shelves(Mutex<Vec<Weak<Shelf>>>);

impl Shelves {
    pub(crate) fn add(&self) -> Arc<Shelf> {
        let shelf = Arc::default();
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.retain(|shelf| shelf.strong_count() > 0);
        shelves.push(Arc::downgrade(&shelf));
        shelf
    }

    /// Sends back what lies on any of them.
    pub(crate) fn close(&self) {
        let shelves = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        shelves.iter().filter_map(Weak::upgrade).for_each(|shelf| drop(shelf.close()));
    }
}

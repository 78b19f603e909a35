//! Reserving, settling and touching.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    ConsumeOptions, Consumer, Delivery, Error, Moment, QueueName, Receipt, Result, Settlement, Settler, Touch, async_trait,
    time::unix_millis,
};
use tokio::sync::{oneshot, watch};

use crate::broker::Gate;
use crate::error::Fault;
use crate::shared::closed;
use crate::store::{self, Claim, Taken, Tx};
use crate::writer::Job;

/// Tasks that one claim takes at most.
pub(crate) const MOST: usize = 1024;

/// How long a claim waits for a lock at least: without a wait too, a neighbour's transaction is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a claim found. Dropped with tasks in it, it gives them back: wherever an answer gets lost, no task does.
#[derive(Debug)]
struct Claimed {
    tasks: VecDeque<Taken>,
    /// Where nothing was found: when to look again.
    next: Option<i64>,
    queue: QueueName,
    gate: Arc<Gate>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let tasks: Vec<_> = self.tasks.drain(..).map(|task| (task.seq, task.reserves)).collect();
        let queue = self.queue.clone();
        self.gate.shared.write_unheard(tasks.len(), move |tx| store::give_back(tx, &queue, &tasks));
    }
}

/// A claim on its way through the writing thread.
struct ClaimJob {
    claim: Claim,
    taken: Vec<Taken>,
    next: Option<i64>,
    gate: Arc<Gate>,
    reply: oneshot::Sender<Result<Claimed>>,
}

impl Job for ClaimJob {
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        (self.taken, self.next) = self.claim.run(tx)?;
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<()>) {
        let Self { claim, taken, next, gate, reply } = *self;
        let claimed = || Claimed { tasks: taken.into(), next, queue: claim.queue, gate };
        let _ = reply.send(outcome.map(|()| claimed()));
    }

    fn weight(&self) -> usize {
        self.claim.max.get()
    }

    fn durable(&self) -> bool {
        false
    }

    fn nothing_to_do(&mut self, tx: &mut Tx<'_>) -> Result<bool, Fault> {
        // What an attempt took that was rolled back is not ours: another process may have it by now.
        self.taken.clear();
        let nothing = self.claim.nothing(tx)?;
        self.next = nothing.flatten();
        Ok(nothing.is_some())
    }
}

/// Takes tasks of one queue.
#[derive(Debug)]
pub(crate) struct SqliteConsumer {
    gate: Arc<Gate>,
    queue: QueueName,
    options: ConsumeOptions,
    changes: watch::Receiver<u64>,
    /// A claim whose answer has not come yet, and the moment before it was made.
    pending: Option<(oneshot::Receiver<Result<Claimed>>, Moment)>,
    /// What came and was not handed out yet.
    buffer: Option<(Claimed, Moment)>,
}

impl SqliteConsumer {
    pub(crate) fn new(gate: Arc<Gate>, queue: QueueName, options: ConsumeOptions) -> Self {
        let changes = gate.shared.signals.listen(&queue);
        Self { gate, queue, options, changes, pending: None, buffer: None }
    }

    /// Asks the writing thread. Where another process holds the lock, the answer comes little later than the wait allows.
    fn ask(&mut self, max: NonZeroUsize, wait: Duration) {
        let most = NonZeroUsize::new(self.options.prefetch.clamp(1, MOST)).expect("at least 1");
        let claim = Claim { queue: self.queue.clone(), max: max.min(most), priorities: self.options.priorities.clone() };
        let (reply, answer) = oneshot::channel();
        let asked = self.gate.shared.clock.now();
        let gate = self.gate.clone();
        let job = Box::new(ClaimJob { claim, taken: Vec::new(), next: None, gate, reply });
        self.gate.shared.submit(job, wait.max(PATIENCE));
        self.pending = Some((answer, asked));
    }

    fn hand_out(&mut self, max: NonZeroUsize) -> Vec<Delivery> {
        let Some((claimed, asked)) = &mut self.buffer else { return Vec::new() };
        let now = unix_millis(self.gate.shared.clock.wall()) as i64;
        let count = claimed.tasks.len().min(max.get());
        let tasks = claimed.tasks.drain(..count).map(|task| delivery(task, &self.queue, *asked, now)).collect();
        if claimed.tasks.is_empty() {
            self.buffer = None;
        }
        tasks
    }

    /// Waits for something new, at most until a moment.
    async fn rest(&mut self, next: Option<i64>, end: Moment) {
        let shared = &self.gate.shared;
        let clock = &shared.clock;
        let now = unix_millis(clock.wall()) as i64;
        let due = next.map(|next| clock.now() + Duration::from_millis((next - now).max(0) as u64));
        let _waiting = shared.wait(&self.queue, next);
        tokio::select! {
            _ = self.changes.changed() => {}
            () = clock.sleep_until(due.map_or(end, |due| due.min(end))) => {}
        }
    }
}

fn delivery(task: Taken, queue: &QueueName, asked: Moment, now: i64) -> Delivery {
    let lease = Duration::from_millis(task.ttr.max(0) as u64);
    Delivery {
        receipt: Receipt::new(task.reserves as u64, task.seq as u64),
        queue: queue.clone(),
        raw: task.body,
        native: store::facts(task.seq, task.priority, task.ttr, task.redelivered, now - task.sent_at),
        lease,
        deadline: asked + lease,
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let end = self.gate.shared.clock.now() + wait;
        loop {
            self.gate.check().map_err(|e| e.during("reserve"))?;
            let ready = self.hand_out(max);
            if !ready.is_empty() {
                return Ok(ready);
            }
            if self.pending.is_none() {
                // Before the claim: what comes after it must be noticed.
                self.changes.mark_unchanged();
                self.ask(max, wait);
            }
            let (answer, asked) = self.pending.as_mut().expect("asked above");
            let asked = *asked;
            let claimed = answer.await.unwrap_or_else(|_| Err(closed()));
            self.pending = None;
            let claimed = claimed.map_err(|e| e.during("reserve").with("queue", &self.queue))?;
            if !claimed.tasks.is_empty() {
                self.buffer = Some((claimed, asked));
                continue;
            }
            if self.gate.shared.clock.now() >= end {
                return Ok(Vec::new());
            }
            self.rest(claimed.next, end).await;
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(SqliteSettler { gate: self.gate.clone(), queue: self.queue.clone() })
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if let Some((answer, _)) = self.pending.take() {
            drop(answer.await);
        }
        self.buffer = None;
        // One more job, so that what was just given back is written.
        self.gate.shared.write(0, false, |_| Ok(())).await.map_err(|e| e.during("close"))
    }
}

#[derive(Debug)]
struct SqliteSettler {
    gate: Arc<Gate>,
    queue: QueueName,
}

impl SqliteSettler {
    fn explain(&self, error: Error, operation: &'static str) -> Error {
        error.during(operation).with("queue", &self.queue)
    }
}

#[async_trait]
impl Settler for SqliteSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        // What a retry or hold writes would otherwise be lost with the power; a lost `done` only makes a duplicate.
        let durable = batch.iter().any(|(_, settlement)| !matches!(settlement, Settlement::Done | Settlement::Release(_)));
        let (queue, items) = (self.queue.clone(), batch.to_vec());
        let write = self.gate.write(batch.len(), durable, move |tx| store::settle(tx, &queue, &items));
        spread(write.await, batch.len(), |e| self.explain(e, "settle"))
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let clock = &self.gate.shared.clock;
        let asked = clock.now();
        let items: Vec<_> = batch.iter().map(|touch| (touch.receipt.clone(), touch.ttr)).collect();
        let answers = self.gate.write(batch.len(), false, move |tx| store::touch(tx, &items)).await;
        let answers = spread(answers, batch.len(), |e| self.explain(e, "touch"));
        let now = clock.now();
        let left = |touch: &Touch| (asked + touch.ttr).since(now);
        answers.into_iter().zip(batch).map(|(answer, touch)| answer.map(|()| left(touch))).collect()
    }
}

/// One answer per item, whether the whole request failed or single items did.
pub(crate) fn spread<T>(answers: Result<Vec<Result<T>>>, count: usize, explain: impl Fn(Error) -> Error) -> Vec<Result<T>> {
    match answers {
        Ok(answers) => answers.into_iter().map(|answer| answer.map_err(&explain)).collect(),
        Err(error) => {
            let error = explain(error);
            (0..count).map(|_| Err(error.duplicate())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::{Bytes, ConnectOptions};
    use anyqueue_testkit::SystemClock;

    use super::*;
    use crate::config::Config;
    use crate::shared::Shared;
    use crate::store::Memory;

    /// Between two attempts another process may take the very tasks, and is given the same numbers for them.
    #[tokio::test]
    async fn what_a_rolled_back_claim_took_is_not_handed_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.db");
        let options = ConnectOptions::new(&format!("sqlite:{}", path.display()), Arc::new(SystemClock)).unwrap();
        let shared = Shared::open(Config::read(&options).unwrap(), options.clock.clone()).unwrap();
        let queue = QueueName::new("q").unwrap();
        let name = queue.clone();
        shared.write(1, true, move |tx| tx.queue_or_create(&name, true)).await.unwrap();
        let lost = Taken {
            seq: 1,
            reserves: 1,
            priority: 0,
            ttr: 60_000,
            redelivered: 0,
            sent_at: 0,
            body: Bytes::from_static(b"lost"),
        };
        let claim = Claim { queue, max: NonZeroUsize::MIN, priorities: 0..=u32::MAX };
        let (reply, mut answer) = oneshot::channel();
        let mut job = ClaimJob { claim, taken: vec![lost], next: None, gate: Gate::new(shared), reply };
        let connection = rusqlite::Connection::open(&path).unwrap();
        assert!(job.nothing_to_do(&mut Tx::new(&connection, 0, &mut Memory::default(), true)).unwrap());
        Box::new(job).answer(Ok(()));
        assert_eq!(answer.try_recv().unwrap().unwrap().tasks.len(), 0);
    }
}

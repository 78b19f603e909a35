//! Settling with group commit: what ends while a request is in flight is stored by the next one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, Receipt, Result, Settlement};
use tokio::sync::Notify;

use super::attempt::Attempt;
use super::decide::{Decision, Verdict};
use super::shared::{Shared, Watched};

type Item = (Arc<Attempt>, Decision);

/// The line of one queue's settlements to its broker.
#[derive(Default)]
pub(crate) struct SettleLine {
    waiting: Mutex<Vec<Item>>,
    /// Not stored yet: waiting or in flight.
    open: AtomicUsize,
    rung: Notify,
}

impl SettleLine {
    pub(crate) fn push(&self, attempt: Arc<Attempt>, decision: Decision) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let first = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push((attempt, decision));
            waiting.len() == 1
        };
        if first {
            self.rung.notify_one();
        }
    }

    /// How many settlements are not stored yet.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn take(&self) -> Vec<Item> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Stores the settlements of one queue for as long as the runner lives.
pub(crate) async fn run(shared: Arc<Shared>, watched: Arc<Watched>) {
    let mut again: Vec<Item> = Vec::new();
    let mut pause = Duration::ZERO;
    loop {
        let line = &watched.settle;
        tokio::task::yield_now().await;
        let mut items = std::mem::take(&mut again);
        items.append(&mut line.take());
        if items.is_empty() {
            line.rung.notified().await;
            continue;
        }
        let most = match watched.slot.if_connected() {
            Some(broker) => broker.capabilities(watched.name()).batch.settle.max(1),
            None => 1,
        };
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(most));
            let count = items.len();
            let mut unstored = store(&shared, items).await;
            line.open.fetch_sub(count - unstored.len(), Ordering::AcqRel);
            shared.ring_pump(&mut shared.state(), watched.lane);
            again.append(&mut unstored);
            items = rest;
        }
        let stored_all = again.is_empty();
        shared.activity.notify_one();
        if shared.drain {
            shared.ring_all_pumps();
        }
        if stored_all {
            pause = Duration::ZERO;
        } else {
            // The broker is not there: try again until the leases are over.
            pause = (pause * 2).clamp(Duration::from_millis(20), Duration::from_secs(1));
            shared.clock.sleep_until(shared.clock.now() + pause.mul_f64(0.5 + fastrand::f64())).await;
        }
    }
}

/// Stores a batch. Answers what has to be tried again.
async fn store(shared: &Shared, items: Vec<Item>) -> Vec<Item> {
    let now = shared.clock.now();
    let (alive, late): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|(attempt, _)| now < attempt.deadline());
    let mut settled = late.len() as u64;
    late.iter().for_each(|(attempt, _)| shared.settled(attempt, &Verdict::Late));
    let mut again = Vec::new();
    let mut alive = alive.into_iter().peekable();
    while let Some(first) = alive.next() {
        let settler = first.0.settler.clone();
        let mut group = vec![first];
        while let Some(item) = alive.next_if(|(attempt, _)| Arc::ptr_eq(&attempt.settler, &settler)) {
            group.push(item);
        }
        let (batch, verdicts): (Vec<(Receipt, Settlement)>, Vec<_>) = group
            .into_iter()
            .map(|(attempt, Decision { settlement, verdict })| ((attempt.receipt.clone(), settlement), (attempt, verdict)))
            .unzip();
        let mut answers = settler.settle(&batch).await;
        answers.resize_with(batch.len(), || Err(Error::unavailable("the adapter gave no answer").effect_unknown()));
        for (((attempt, verdict), (_, settlement)), answer) in verdicts.into_iter().zip(batch).zip(answers) {
            match outcome(&attempt, answer) {
                Stored::Yes => shared.settled(&attempt, &verdict),
                Stored::Late => shared.settled(&attempt, &Verdict::Late),
                Stored::Never => {
                    shared.counters.unstored.fetch_add(1, Ordering::Relaxed);
                }
                Stored::Again => {
                    again.push((attempt, Decision { settlement, verdict }));
                    continue;
                }
            }
            settled += 1;
        }
    }
    shared.state().settled += settled;
    again
}

enum Stored {
    Yes,
    Late,
    Again,
    Never,
}

fn outcome(attempt: &Attempt, answer: Result<()>) -> Stored {
    match answer {
        Ok(()) => Stored::Yes,
        Err(e) if e.is_lease_lost() => Stored::Late,
        Err(e) if e.is_retryable() => Stored::Again,
        Err(e) => {
            let (queue, id, error) = (attempt.queue(), attempt.incoming.id, anyqueue_core::chain(&e));
            tracing::error!(queue, %id, error, "the result cannot be stored; the task comes again when its lease ends");
            Stored::Never
        }
    }
}

//! Settling and touching.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Effect, Envelope, Error, QueueName, Receipt, Result, Settlement, Settler, Touch, async_trait, time};
use redis::Value;

use crate::broker::{REQUEST, Shared, all_failed};
use crate::error::strange;
use crate::layout::{Keys, Lease, Rest, lease, milliseconds};
use crate::script::Script;

/// Items that go into one request.
const MOST: usize = 1024;
/// Settlements without an answer that are remembered; when there are more, all are forgotten.
const UNANSWERED: usize = 16_384;

/// Ends and renews leases of one queue.
#[derive(Debug)]
pub(crate) struct RedisSettler {
    shared: Arc<Shared>,
    queue: QueueName,
    keys: Arc<Keys>,
    /// Leases that may have been settled already. If they have been, saying so again is no late settlement.
    unanswered: Mutex<HashSet<Lease>>,
}

/// What the server says of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It was there.
    Good,
    /// It has ended, and its task is where it was: others may have it.
    Lost,
    /// It has ended, and somebody has settled its task.
    Settled,
}

impl RedisSettler {
    pub(crate) fn new(shared: Arc<Shared>, queue: QueueName, keys: Arc<Keys>) -> Self {
        Self { shared, queue, keys, unanswered: Mutex::default() }
    }

    /// What becomes of a settlement, and what is remembered of it for the next try.
    fn settled(&self, lease: &Lease, answer: Result<Word>) -> Result<()> {
        let known = match &answer {
            Ok(_) => true,
            Err(e) if e.effect() == Effect::Unknown => false,
            Err(_) => return answer.map(drop),
        };
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if known {
            let asked_before = unanswered.remove(lease);
            return match answer {
                Ok(Word::Good) => Ok(()),
                Ok(Word::Settled) if asked_before => Ok(()),
                _ => Err(Error::lease_lost()),
            };
        }
        if unanswered.len() >= UNANSWERED {
            unanswered.clear();
        }
        unanswered.insert(*lease);
        answer.map(drop)
    }

    async fn done(&self, leases: Vec<&Lease>) -> Result<Value> {
        let run = self.shared.run(Script::Done, &self.keys, |request| {
            request.args(leases.into_iter().map(|lease| lease.as_slice()));
        });
        run.await
    }

    async fn others(&self, items: Vec<&(Lease, &Settlement)>) -> Result<Value> {
        let run = self.shared.run(Script::Settle, &self.keys, |request| {
            for (lease, what) in items {
                let (word, next) = word(what);
                request.arg(word).arg(lease.as_slice());
                match next {
                    Some(next) if word == "release" => request.arg(milliseconds(next.delay)).arg(""),
                    Some(next) => request.arg(milliseconds(next.delay)).arg(Rest::new(0, next)),
                    None => request.arg(0).arg(""),
                };
            }
        });
        run.await
    }

    fn check(&self, settlement: &Settlement) -> Result<()> {
        word(settlement).1.map_or(Ok(()), |next| self.shared.check_times(next))
    }

    /// Runs requests of up to [`MOST`] items and [`REQUEST`] bytes: the answers, with the items' places in the batch.
    async fn in_parts<'a, T, R: Future<Output = Result<Value>>>(
        &self,
        items: &'a [(usize, T)],
        size: impl Fn(&T) -> usize,
        run: impl Fn(Vec<&'a T>) -> R,
    ) -> Vec<(usize, Result<Word>)> {
        let mut answers = Vec::with_capacity(items.len());
        let mut left = items;
        while !left.is_empty() {
            let mut bytes = 0;
            let fits = |(_, item): &&(usize, T)| {
                bytes += size(item);
                bytes <= REQUEST
            };
            let (part, rest) = left.split_at(left.iter().take(MOST).take_while(fits).count().max(1));
            left = rest;
            let answer = run(part.iter().map(|(_, item)| item).collect()).await;
            answers.extend(part.iter().map(|(at, _)| *at).zip(spread(answer, part.len())));
        }
        answers
    }
}

/// How many bytes an item takes with it, about.
fn weight((_, what): &(Lease, &Settlement)) -> usize {
    word(what).1.map_or(0, |next| next.body.len())
}

/// What the script calls it, and what the task is to be.
fn word(settlement: &Settlement) -> (&'static str, Option<&Envelope>) {
    match settlement {
        Settlement::Done => ("done", None),
        Settlement::Release(next) => ("release", Some(next)),
        Settlement::Retry(next) => ("retry", Some(next)),
        Settlement::Hold(next, _) => ("hold", Some(next)),
    }
}

/// One answer per item: 0 is good for all, a text says it of each.
fn spread(answer: Result<Value>, items: usize) -> Vec<Result<Word>> {
    let read = |letter| match letter {
        b'1' => Ok(Word::Good),
        b'x' => Ok(Word::Settled),
        _ => Ok(Word::Lost),
    };
    match answer {
        Ok(Value::Int(_)) => (0..items).map(|_| Ok(Word::Good)).collect(),
        Ok(Value::BulkString(text)) if text.len() == items => text.into_iter().map(read).collect(),
        Ok(_) => all_failed(&strange("settle"), items).collect(),
        Err(e) => all_failed(&e, items).collect(),
    }
}

#[async_trait]
impl Settler for RedisSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        let (mut dones, mut others) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut answers: Vec<Result<()>> = Vec::with_capacity(batch.len());
        for (at, (receipt, what)) in batch.iter().enumerate() {
            let lease = self.check(what).and_then(|()| lease(receipt).ok_or_else(Error::lease_lost));
            match (&lease, what) {
                (Ok(lease), Settlement::Done) => dones.push((at, *lease)),
                (Ok(lease), _) => others.push((at, (*lease, what))),
                (Err(_), _) => {}
            }
            answers.push(lease.map(drop));
        }
        let (answered_dones, answered_others) = tokio::join!(
            self.in_parts(&dones, |_| 0, |part| self.done(part)),
            self.in_parts(&others, weight, |part| self.others(part)),
        );
        let leases = dones.iter().map(|(_, lease)| lease).chain(others.iter().map(|(_, (lease, _))| lease));
        for (lease, (at, answer)) in leases.zip(answered_dones.into_iter().chain(answered_others)) {
            answers[at] = self.settled(lease, answer);
        }
        answers.into_iter().map(|answer| answer.map_err(|e| e.during("settle").with("queue", &self.queue))).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let limit = crate::DRIVER.capabilities.ttr.limits().max;
        let mut items = Vec::with_capacity(batch.len());
        let mut answers: Vec<Result<()>> = Vec::with_capacity(batch.len());
        for (at, touch) in batch.iter().enumerate() {
            let lease = time::check_ttr(touch.ttr, limit, "the contract of all brokers")
                .and_then(|_| lease(&touch.receipt).ok_or_else(Error::lease_lost));
            if let Ok(lease) = &lease {
                items.push((at, (*lease, milliseconds(touch.ttr))));
            }
            answers.push(lease.map(drop));
        }
        let touched = self.in_parts(
            &items,
            |_| 0,
            |part| {
                self.shared.run(Script::Touch, &self.keys, move |request| {
                    for (lease, ttr) in part {
                        request.arg(lease.as_slice()).arg(*ttr);
                    }
                })
            },
        );
        for (at, answer) in touched.await {
            answers[at] = answer.and_then(|word| if word == Word::Good { Ok(()) } else { Err(Error::lease_lost()) });
        }
        let named = |e: Error| e.during("touch").with("queue", &self.queue);
        answers.into_iter().zip(batch).map(|(answer, touch)| answer.map(|()| touch.ttr).map_err(named)).collect()
    }
}

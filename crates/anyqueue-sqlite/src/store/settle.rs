//! Ending and renewing reservations. Every statement compares the reservation, so a stale receipt changes nothing.

use anyqueue_core::{Envelope, Error, QueueName, Receipt, Result, Settlement};
use rusqlite::OptionalExtension;
use std::time::Duration;

use super::many::Many;
use super::{Tx, lease, millis, state};
use crate::error::Fault;

static DONE: Many = Many::new(include_str!("../sql/done.sql"));

/// One answer per item.
type Answers = Vec<Result<()>>;

/// The task and the number of its reservation.
pub(crate) fn key(receipt: &Receipt) -> (i64, i64) {
    (receipt.tag as i64, receipt.epoch as i64)
}

/// Ends reservations of a queue.
pub(crate) fn settle(tx: &mut Tx<'_>, queue: &QueueName, batch: &[(Receipt, Settlement)]) -> Result<Answers, Fault> {
    let mut answers = Vec::with_capacity(batch.len());
    while let [(receipt, settlement), ..] = &batch[answers.len()..] {
        let (seq, reserves) = key(receipt);
        let changed = match settlement {
            Settlement::Done => {
                let alike = |(other, settlement): &&(Receipt, Settlement)| {
                    matches!(settlement, Settlement::Done) && key(other).1 == reserves
                };
                let most = if tx.quick { usize::MAX } else { 1 };
                let seqs: Vec<i64> =
                    batch[answers.len()..].iter().take_while(alike).take(most).map(|(receipt, _)| key(receipt).0).collect();
                answers.extend(done(tx, &seqs, reserves)?);
                continue;
            }
            Settlement::Release(task) => release(tx, queue, (seq, reserves), task)?,
            Settlement::Retry(task) => retry(tx, queue, (seq, reserves), task)?,
            Settlement::Hold(task, _) => hold(tx, (seq, reserves), task)?,
        };
        if changed == 1 {
            tx.changes.ended.push(seq);
        }
        answers.push(if changed == 1 { Ok(()) } else { Err(Error::lease_lost()) });
    }
    Ok(answers)
}

/// Removes tasks of one number of reservations. Where a statement for many did not find all of them, the transaction
/// has to be done again, one by one.
fn done(tx: &mut Tx<'_>, seqs: &[i64], reserves: i64) -> Result<Answers, Fault> {
    let mut found = 0;
    DONE.each(tx.db, seqs, |statement, seqs| {
        statement.raw_bind_parameter(1, tx.now)?;
        statement.raw_bind_parameter(2, reserves)?;
        seqs.iter().enumerate().try_for_each(|(n, seq)| statement.raw_bind_parameter(n + 3, seq))?;
        found += statement.raw_execute()?;
        Ok::<_, rusqlite::Error>(())
    })?;
    if found == seqs.len() {
        tx.changes.ended.extend_from_slice(seqs);
        return Ok(seqs.iter().map(|_| Ok(())).collect());
    }
    if seqs.len() > 1 { Err(Fault::OneByOne) } else { Ok(vec![Err(Error::lease_lost())]) }
}

fn put(now: i64, task: &Envelope) -> (i64, i64, i64) {
    let delay = millis(task.delay);
    let state = if delay == 0 { state::READY } else { state::DELAYED };
    (state, now + delay, delay)
}

fn release(tx: &mut Tx<'_>, queue: &QueueName, (seq, reserves): (i64, i64), task: &Envelope) -> rusqlite::Result<usize> {
    let (state, due, delay) = put(tx.now, task);
    let mut release = tx.db.prepare_cached(include_str!("../sql/release.sql"))?;
    let changed = release.execute((seq, reserves, tx.now, state, due, delay))?;
    tx.woke(queue);
    Ok(changed)
}

/// Puts a task back at the end of its line, with a new body.
fn retry(tx: &mut Tx<'_>, queue: &QueueName, (seq, reserves): (i64, i64), task: &Envelope) -> rusqlite::Result<usize> {
    let (state, due, delay) = put(tx.now, task);
    adopt(tx, (seq, reserves), task)?;
    let next = tx.seq()?;
    let mut retry = tx.db.prepare_cached(include_str!("../sql/retry.sql"))?;
    let changed =
        retry.execute((seq, reserves, tx.now, next, state, due, delay, task.priority, millis(task.ttr), &task.body[..]))?;
    tx.woke(queue);
    Ok(changed)
}

fn hold(tx: &mut Tx<'_>, (seq, reserves): (i64, i64), task: &Envelope) -> rusqlite::Result<usize> {
    adopt(tx, (seq, reserves), task)?;
    let mut hold = tx.db.prepare_cached(include_str!("../sql/hold.sql"))?;
    hold.execute((seq, reserves, tx.now, task.priority, millis(task.ttr), &task.body[..]))
}

/// A task whose body could not be read gets its id when it is written anew. All others keep theirs, and the index is
/// left alone.
fn adopt(tx: &Tx<'_>, (seq, reserves): (i64, i64), task: &Envelope) -> rusqlite::Result<()> {
    let mut read = tx.db.prepare_cached(include_str!("../sql/has_id.sql"))?;
    let same: Option<bool> = read.query_row((seq, reserves, &task.id.as_bytes()[..]), |row| row.get(0)).optional()?;
    if same == Some(false) {
        let mut set = tx.db.prepare_cached(include_str!("../sql/set_id.sql"))?;
        set.execute((seq, &task.id.as_bytes()[..]))?;
    }
    Ok(())
}

/// Gives back what was reserved and never handed out.
pub(crate) fn give_back(tx: &mut Tx<'_>, queue: &QueueName, tasks: &[(i64, i64)]) -> Result<(), Fault> {
    let mut give_back = tx.db.prepare_cached(include_str!("../sql/give_back.sql"))?;
    for (seq, reserves) in tasks {
        if give_back.execute((seq, reserves, tx.now))? == 1 {
            tx.changes.ended.push(*seq);
        }
    }
    tx.woke(queue);
    Ok(())
}

/// Starts leases anew.
pub(crate) fn touch(tx: &mut Tx<'_>, batch: &[(Receipt, Duration)]) -> Result<Answers, Fault> {
    let mut read = tx.db.prepare_cached(include_str!("../sql/queue_and_due.sql"))?;
    let mut touch = tx.db.prepare_cached(include_str!("../sql/touch.sql"))?;
    let mut answers = Vec::with_capacity(batch.len());
    for (receipt, ttr) in batch {
        let (seq, reserves) = key(receipt);
        let due = tx.now + millis(*ttr);
        let before: Option<(i64, i64)> = read.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let changed = touch.execute((seq, reserves, tx.now, due))?;
        if let Some((queue, _)) = before.filter(|(_, before)| changed == 1 && due < *before) {
            lease::shorten(tx, queue, due, (seq, reserves))?;
        }
        answers.push(if changed == 1 { Ok(()) } else { Err(Error::lease_lost()) });
    }
    Ok(answers)
}

//! Putting tasks on a queue.

use anyqueue_core::{Envelope, QueueName};
use bytes::Bytes;

use super::many::Many;
use super::{Tx, millis};
use crate::error::Fault;

static SEND: Many = Many::new(include_str!("../sql/send.sql"));

/// A task that waits for its neighbours, so that one statement writes them all.
#[derive(Debug)]
pub(super) struct Unwritten {
    queue: i64,
    priority: u32,
    /// In milliseconds, as `delay`.
    ttr: i64,
    delay: i64,
    id: [u8; 16],
    body: Bytes,
}

/// Takes tasks in, to be written with what else is sent in this transaction. One whose id the queue has already is left
/// as it is: it was sent before.
pub(crate) fn send(tx: &mut Tx<'_>, queue: &QueueName, batch: &[Envelope], create: bool) -> Result<(), Fault> {
    let (id, _) = tx.queue_or_create(queue, create)?;
    tx.unwritten.extend(batch.iter().map(|task| Unwritten {
        queue: id,
        priority: task.priority,
        ttr: millis(task.ttr),
        delay: millis(task.delay),
        id: *task.id.as_bytes(),
        body: task.body.clone(),
    }));
    tx.woke(queue);
    Ok(())
}

/// Writes what was taken in.
pub(super) fn write(tx: &mut Tx<'_>) -> rusqlite::Result<()> {
    if tx.unwritten.is_empty() {
        return Ok(());
    }
    let tasks = std::mem::take(&mut tx.unwritten);
    let (at_once, later): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.delay == 0);
    let mut seq = tx.numbers(at_once.len() + later.len())?;
    SEND.each(tx.db, &at_once, |statement, tasks| {
        statement.raw_bind_parameter(1, tx.now)?;
        let mut next = 2;
        for task in tasks {
            statement.raw_bind_parameter(next, seq)?;
            statement.raw_bind_parameter(next + 1, task.queue)?;
            statement.raw_bind_parameter(next + 2, task.priority)?;
            statement.raw_bind_parameter(next + 3, task.ttr)?;
            statement.raw_bind_parameter(next + 4, &task.id[..])?;
            statement.raw_bind_parameter(next + 5, &task.body[..])?;
            (seq, next) = (seq + 1, next + 6);
        }
        statement.raw_execute().map(drop)
    })?;
    if !later.is_empty() {
        let mut send = tx.db.prepare_cached(include_str!("../sql/send_later.sql"))?;
        for task in later {
            send.execute((tx.now, task.delay, seq, task.queue, task.priority, task.ttr, &task.id[..], &task.body[..]))?;
            seq += 1;
        }
    }
    Ok(())
}

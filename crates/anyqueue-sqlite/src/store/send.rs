//! Putting tasks on a queue.

use anyqueue_core::{Envelope, QueueName};

use super::{Tx, millis, state};
use crate::error::Fault;

/// Writes tasks. One whose id the queue has already is left as it is: it was sent before.
pub(crate) fn send(tx: &mut Tx<'_>, queue: &QueueName, batch: &[Envelope], create: bool) -> Result<(), Fault> {
    let (id, _) = tx.queue_or_create(queue, create)?;
    let mut insert = tx.db.prepare_cached(include_str!("../sql/send.sql"))?;
    for task in batch {
        let delay = millis(task.delay);
        let state = if delay == 0 { state::READY } else { state::DELAYED };
        let seq = tx.seq()?;
        insert.execute((
            seq,
            id,
            state,
            task.priority,
            tx.now + delay,
            millis(task.ttr),
            delay,
            tx.now,
            &task.id.as_bytes()[..],
            &task.body[..],
        ))?;
    }
    tx.woke(queue);
    Ok(())
}

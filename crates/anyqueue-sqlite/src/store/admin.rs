//! The operator's verbs that change something, in steps that are short enough not to hold up anybody.

use anyqueue_core::{Error, ErrorKind, QueueName, Result, State, TaskId};
use rusqlite::{Connection, OptionalExtension};

use super::{Tx, claim, find_queue, lease, missing, state};
use crate::error::Fault;

/// Makes up to `limit` held tasks ready, longest held first, of those that were held until a time. Says how many.
pub(crate) fn kick(tx: &mut Tx<'_>, name: &QueueName, held_until: i64, limit: u64) -> Result<u64, Fault> {
    let queue = tx.queue(name)?.ok_or_else(|| missing(name))?;
    let mut kick = tx.db.prepare_cached(include_str!("../sql/kick.sql"))?;
    let kicked = kick.execute((queue, tx.now, held_until, limit.min(i64::MAX as u64) as i64))?;
    tx.woke(name);
    Ok(kicked as u64)
}

/// Makes these tasks ready, those of them that are held. Says how many.
pub(crate) fn kick_ids(tx: &mut Tx<'_>, name: &QueueName, ids: &[TaskId]) -> Result<u64, Fault> {
    let queue = tx.queue(name)?.ok_or_else(|| missing(name))?;
    let mut kick = tx.db.prepare_cached(include_str!("../sql/kick_id.sql"))?;
    let mut kicked = 0;
    for id in ids {
        kicked += kick.execute((&id.as_bytes()[..], queue, tx.now))? as u64;
    }
    tx.woke(name);
    Ok(kicked)
}

/// Removes tasks that are not reserved.
pub(crate) fn delete(tx: &mut Tx<'_>, name: &QueueName, ids: &[TaskId]) -> Result<Vec<Result<()>>, Fault> {
    let queue = tx.queue(name)?.ok_or_else(|| missing(name))?;
    tx.count()?;
    let mut find = tx.db.prepare_cached(include_str!("../sql/find_id.sql"))?;
    let mut delete = tx.db.prepare_cached(include_str!("../sql/delete.sql"))?;
    let mut answers = Vec::with_capacity(ids.len());
    for id in ids {
        let row = find.query_row((&id.as_bytes()[..], queue), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
        answers.push(match row {
            None => Err(Error::new(ErrorKind::NotFound, format!("task {id} is not in queue `{name}`"))),
            Some((_, state::RESERVED, due)) if tx.now < due => {
                let text = format!("task {id} is reserved by a worker; delete it once it was given back");
                Err(Error::new(ErrorKind::Busy, text))
            }
            Some::<(i64, i64, i64)>((seq, ..)) => {
                delete.execute([seq])?;
                tx.changes.ended.push(seq);
                Ok(())
            }
        });
    }
    Ok(answers)
}

/// Removes up to `limit` tasks of a state, of those that were there at a time. Says how many.
pub(crate) fn purge(tx: &mut Tx<'_>, name: &QueueName, state: State, before: i64, limit: usize) -> Result<usize, Fault> {
    let queue = tx.queue(name)?.ok_or_else(|| missing(name))?;
    tx.count()?;
    let sql = match state {
        State::Ready => include_str!("../sql/purge_ready.sql"),
        State::Delayed => include_str!("../sql/purge_delayed.sql"),
        State::Held => include_str!("../sql/purge_held.sql"),
        State::Reserved => return purge_reserved(tx, queue, before, limit),
    };
    Ok(tx.db.prepare_cached(sql)?.execute((queue, before, limit as i64))?)
}

fn purge_reserved(tx: &mut Tx<'_>, queue: i64, before: i64, limit: usize) -> Result<usize, Fault> {
    let mut delete = tx.db.prepare_cached(include_str!("../sql/delete_below.sql"))?;
    let mut purged = 0;
    for (seq, _) in lease::reserved(tx.db, queue)?.into_iter().take(limit) {
        purged += delete.execute((seq, before))?;
        tx.changes.ended.push(seq);
    }
    Ok(purged)
}

/// Pauses a queue until a time of day, or ends its pause.
pub(crate) fn pause(tx: &mut Tx<'_>, name: &QueueName, until: Option<i64>) -> Result<(), Fault> {
    let queue = tx.queue(name)?.ok_or_else(|| missing(name))?;
    tx.db.prepare_cached(include_str!("../sql/pause.sql"))?.execute((queue, until))?;
    tx.woke(name);
    Ok(())
}

/// Until when a queue is paused.
pub(crate) fn paused(db: &Connection, name: &QueueName) -> Result<Option<i64>, Fault> {
    let queue = find_queue(db, name)?.ok_or_else(|| missing(name))?;
    Ok(claim::paused_until(db, queue)?)
}

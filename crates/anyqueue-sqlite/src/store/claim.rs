//! Reserving tasks.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;

use anyqueue_core::QueueName;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::many::Many;
use super::{Tx, find_queue, lease, missing};
use crate::error::Fault;

static TAKE: Many = Many::new(include_str!("../sql/claim_take.sql"));
/// Delayed tasks that one claim makes ready at most; the next claim goes on.
const PROMOTE: i64 = 4096;

/// What to reserve.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) queue: QueueName,
    pub(crate) max: NonZeroUsize,
    pub(crate) priorities: RangeInclusive<u32>,
}

/// A task as it was reserved.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) seq: i64,
    pub(crate) reserves: i64,
    pub(crate) priority: u32,
    /// In milliseconds.
    pub(crate) ttr: i64,
    pub(crate) redelivered: i64,
    pub(crate) sent_at: i64,
    pub(crate) body: Bytes,
}

/// When a claim could find something: a time of day in milliseconds.
type Due = Option<i64>;

impl Claim {
    /// Reserves tasks. Where there are none, says when to look again.
    pub(crate) fn run(&self, tx: &mut Tx<'_>) -> Result<(Vec<Taken>, Due), Fault> {
        let Some(queue) = tx.queue(&self.queue)? else { return Ok((Vec::new(), None)) };
        if let Some(until) = paused_until(tx.db, queue)?.filter(|until| *until > tx.now) {
            return Ok((Vec::new(), Some(until)));
        }
        promote(tx, queue)?;
        let found = self.find(tx, queue)?;
        if found.is_empty() {
            return Ok((found, find_due(tx.db, queue)?));
        }
        TAKE.each(tx.db, &found, |statement, tasks| {
            statement.raw_bind_parameter(1, tx.now)?;
            tasks.iter().enumerate().try_for_each(|(n, task)| statement.raw_bind_parameter(n + 2, task.seq))?;
            statement.raw_execute().map(drop)
        })?;
        lease::add(tx, queue, &found)?;
        Ok((found, None))
    }

    fn find(&self, tx: &Tx<'_>, queue: i64) -> rusqlite::Result<Vec<Taken>> {
        let mut find = tx.db.prepare_cached(include_str!("../sql/claim_find.sql"))?;
        let mut rows = find.query((queue, self.priorities.start(), self.priorities.end(), self.max.get() as i64))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(Taken {
                seq: row.get(0)?,
                reserves: row.get::<_, i64>(1)? + 1,
                priority: row.get(2)?,
                ttr: row.get(3)?,
                redelivered: row.get(4)?,
                sent_at: row.get(5)?,
                body: Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?),
            });
        }
        Ok(found)
    }

    /// Looks without a lock: whether there is nothing to reserve, and when to look again.
    pub(crate) fn nothing(&self, tx: &mut Tx<'_>) -> Result<Option<Due>, Fault> {
        let Some(queue) = tx.queue(&self.queue)? else { return Ok(Some(None)) };
        let (ready, due) = match paused_until(tx.db, queue)?.filter(|until| *until > tx.now) {
            Some(until) => (false, Some(until)),
            None => look(tx.db, queue, &self.priorities)?,
        };
        let waits = !ready && due.is_none_or(|due| due > tx.now);
        Ok(waits.then_some(due))
    }
}

/// Makes ready what is due: delayed tasks, and those whose lease has ended.
fn promote(tx: &mut Tx<'_>, queue: i64) -> Result<(), Fault> {
    lease::reap(tx, queue)?;
    if delayed_due(tx.db, queue)?.is_some_and(|due| due <= tx.now) {
        tx.db.prepare_cached(include_str!("../sql/promote.sql"))?.execute((queue, tx.now, PROMOTE))?;
    }
    Ok(())
}

/// Makes ready what is due, a step at a time.
pub(crate) fn advance(tx: &mut Tx<'_>, name: &QueueName) -> Result<(), Fault> {
    if let Some(queue) = tx.queue(name)? {
        promote(tx, queue)?;
        tx.woke(name);
    }
    Ok(())
}

/// Whether a delay or a lease of a queue is over and nobody has said so in the file yet.
pub(crate) fn is_due(db: &Connection, name: &QueueName, now: i64) -> Result<bool, Fault> {
    let queue = find_queue(db, name)?.ok_or_else(|| missing(name))?;
    Ok(find_due(db, queue)?.is_some_and(|due| due <= now))
}

/// Whether a queue has a ready task and is not paused; and when the next change comes by itself.
pub(crate) fn has_ready(db: &Connection, name: &QueueName, now: i64) -> rusqlite::Result<(bool, Due)> {
    let Some(queue) = find_queue(db, name)? else { return Ok((false, None)) };
    match paused_until(db, queue)?.filter(|until| *until > now) {
        Some(until) => Ok((false, Some(until))),
        None => look(db, queue, &(0..=u32::MAX)),
    }
}

fn look(db: &Connection, queue: i64, priorities: &RangeInclusive<u32>) -> rusqlite::Result<(bool, Due)> {
    let sql = include_str!("../sql/has_ready.sql");
    let ready = db.prepare_cached(sql)?.exists((queue, priorities.start(), priorities.end()))?;
    Ok((ready, find_due(db, queue)?))
}

/// When the first delay, lease or pause of a queue ends.
fn find_due(db: &Connection, queue: i64) -> rusqlite::Result<Due> {
    let leased = lease::due(db, queue)?;
    Ok([delayed_due(db, queue)?, leased].into_iter().flatten().min())
}

fn delayed_due(db: &Connection, queue: i64) -> rusqlite::Result<Due> {
    let sql = include_str!("../sql/delayed_due.sql");
    db.prepare_cached(sql)?.query_row([queue], |row| row.get(0)).optional()
}

pub(crate) fn paused_until(db: &Connection, queue: i64) -> rusqlite::Result<Due> {
    db.prepare_cached(include_str!("../sql/paused_until.sql"))?.query_row([queue], |row| row.get(0))
}

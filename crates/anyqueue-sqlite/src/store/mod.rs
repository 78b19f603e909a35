//! What happens inside a transaction: one file per verb, its SQL beside it in `src/sql`.

mod admin;
mod claim;
mod lease;
mod listing;
mod many;
mod send;
mod settle;

use std::collections::HashMap;

use anyqueue_core::{Error, ErrorKind, QueueName, Result};
use rusqlite::{Connection, OptionalExtension};

use crate::error::Fault;

pub(crate) use admin::{delete, kick, kick_ids, pause, paused, purge};
pub(crate) use claim::{Claim, Taken, advance, has_ready, is_due};
pub(crate) use lease::LeaseBook;
pub(crate) use listing::{facts, held, info, peek, stats};
pub(crate) use send::send;
pub(crate) use settle::{give_back, settle, touch};

/// The states as the file has them.
pub(crate) mod state {
    pub(crate) const READY: i64 = 2;
    pub(crate) const DELAYED: i64 = 3;
    pub(crate) const RESERVED: i64 = 4;
    pub(crate) const HELD: i64 = 5;
}

/// What the writing thread remembers between transactions.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    queues: HashMap<QueueName, i64>,
    leases: LeaseBook,
}

impl Memory {
    /// After a rollback: what was found or made in it may not be there.
    pub(crate) fn forget(&mut self) {
        self.queues.clear();
        self.leases.not_cleared();
    }

    /// After a commit.
    pub(crate) fn keep(&mut self, leased: Vec<(i64, Vec<i64>)>, ended: Vec<i64>) {
        self.leases.cleared();
        // What ended first: a claim may reserve again what it has just found to be over.
        for seq in ended {
            self.leases.end(seq);
        }
        for (lease, tasks) in leased {
            self.leases.add(lease, &tasks);
        }
    }
}

/// What a transaction changed, for those who wait and for the lease book.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Queues in which something became ready, or will earlier than was known.
    pub(crate) woken: Vec<QueueName>,
    /// Leases and the tasks in them.
    pub(crate) leased: Vec<(i64, Vec<i64>)>,
    /// Tasks whose reservation ended.
    pub(crate) ended: Vec<i64>,
}

/// A transaction under way.
pub(crate) struct Tx<'c> {
    pub(crate) db: &'c Connection,
    /// The time of day, in milliseconds.
    pub(crate) now: i64,
    /// Whether what comes may be done in one statement, of which it is not known whom it did not find.
    quick: bool,
    memory: &'c mut Memory,
    next_seq: Option<i64>,
    /// Whether the tasks alone do not show which numbers were used.
    counts: bool,
    unwritten: Vec<send::Unwritten>,
    changes: Changes,
}

impl<'c> Tx<'c> {
    pub(crate) fn new(db: &'c Connection, now: i64, memory: &'c mut Memory, quick: bool) -> Self {
        let changes = Changes::default();
        Self { db, now, quick, memory, next_seq: None, counts: false, unwritten: Vec::new(), changes }
    }

    /// As many numbers as are asked for, one after the other, that no task and no lease had before: the first of them.
    /// Each is for a task.
    fn numbers(&mut self, count: usize) -> rusqlite::Result<i64> {
        let seq = match self.next_seq {
            Some(seq) => seq,
            None => next_seq(self.db)?,
        };
        self.next_seq = Some(seq + count as i64);
        Ok(seq)
    }

    /// A number that no task and no lease had before, for either.
    fn seq(&mut self) -> rusqlite::Result<i64> {
        self.counts = true;
        self.numbers(1)
    }

    /// To be called before tasks are removed that were never reserved: afterwards nothing shows their numbers.
    fn count(&mut self) -> rusqlite::Result<()> {
        self.counts = true;
        self.numbers(0).map(drop)
    }

    /// Writes what was sent in this transaction, before something else looks at it.
    pub(crate) fn write_sent(&mut self) -> rusqlite::Result<()> {
        send::write(self)
    }

    /// The last statements before the commit.
    pub(crate) fn finish(mut self) -> rusqlite::Result<Changes> {
        self.write_sent()?;
        if let Some(next) = self.next_seq.filter(|_| self.counts) {
            self.db.prepare_cached(include_str!("../sql/set_next_seq.sql"))?.execute([next])?;
        }
        self.memory.leases.clear(self.db)?;
        Ok(self.changes)
    }

    /// The number of a queue, if it is there.
    pub(crate) fn queue(&mut self, name: &QueueName) -> rusqlite::Result<Option<i64>> {
        if let Some(id) = self.memory.queues.get(name) {
            return Ok(Some(*id));
        }
        let found = find_queue(self.db, name)?;
        if let Some(id) = found {
            self.memory.queues.insert(name.clone(), id);
        }
        Ok(found)
    }

    /// The number of a queue, which is made where that is allowed; and whether it was.
    pub(crate) fn queue_or_create(&mut self, name: &QueueName, create: bool) -> Result<(i64, bool), Fault> {
        if let Some(id) = self.queue(name)? {
            return Ok((id, false));
        }
        if !create {
            return Err(missing(name).into());
        }
        let mut insert = self.db.prepare_cached(include_str!("../sql/new_queue.sql"))?;
        let id = insert.insert((name.as_str(), self.now))?;
        self.memory.queues.insert(name.clone(), id);
        Ok((id, true))
    }

    fn woke(&mut self, queue: &QueueName) {
        if !self.changes.woken.contains(queue) {
            self.changes.woken.push(queue.clone());
        }
    }
}

/// The number that the next task will get: what is below was there before.
pub(crate) fn next_seq(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached(include_str!("../sql/next_seq.sql"))?.query_row([], |row| row.get(0))
}

pub(crate) fn find_queue(db: &Connection, name: &QueueName) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(include_str!("../sql/find_queue.sql"))?.query_row([name.as_str()], |row| row.get(0)).optional()
}

/// The error for a queue that is not in the file.
pub(crate) fn missing(name: &QueueName) -> Error {
    let text = format!("queue `{name}` is not in the file; create it with `queue-runner init`");
    Error::new(ErrorKind::NotFound, text)
}

/// Milliseconds, rounded up.
pub(crate) fn millis(duration: std::time::Duration) -> i64 {
    anyqueue_core::steps_up(duration, std::time::Duration::from_millis(1)).min(i64::MAX as u64 / 4) as i64
}

#[cfg(test)]
mod tests;

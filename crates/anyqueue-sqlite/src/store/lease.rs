//! Leases: one row for all that a claim reserved, walked when the first of them may have ended.

use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use super::claim::Taken;
use super::{Tx, state};
use crate::error::Fault;

/// Rows of leases that one claim walks at most; the next claim goes on.
const REAP: usize = 32;

/// One reservation: the number of the task, and how often it was reserved by then.
type Reservation = (i64, i64);

/// Which tasks of the leases made here are still reserved, so that a lease whose last task was settled is removed
/// and not walked. After the death of this process the leases are walked when they end: the book only saves work.
#[derive(Debug, Default)]
pub(crate) struct LeaseBook {
    lease_of: HashMap<i64, i64>,
    left: HashMap<i64, usize>,
    empty: Vec<i64>,
    clearing: usize,
}

impl LeaseBook {
    pub(super) fn add(&mut self, lease: i64, tasks: &[i64]) {
        self.left.insert(lease, tasks.len());
        for seq in tasks {
            // Another process may have found an earlier reservation to be over.
            self.end(*seq);
            self.lease_of.insert(*seq, lease);
        }
    }

    pub(super) fn end(&mut self, seq: i64) {
        let Some(lease) = self.lease_of.remove(&seq) else { return };
        if let Some(left) = self.left.get_mut(&lease) {
            *left -= 1;
            if *left == 0 {
                self.left.remove(&lease);
                self.empty.push(lease);
            }
        }
    }

    /// Removes the rows of empty leases; they are forgotten once that is committed.
    pub(super) fn clear(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut delete = db.prepare_cached(include_str!("../sql/lease_delete.sql"))?;
        for lease in &self.empty {
            delete.execute([lease])?;
        }
        self.clearing = self.empty.len();
        Ok(())
    }

    pub(super) fn cleared(&mut self) {
        self.empty.drain(..self.clearing);
        self.clearing = 0;
    }

    pub(super) fn not_cleared(&mut self) {
        self.clearing = 0;
    }
}

/// Writes the lease of what a claim took.
pub(super) fn add(tx: &mut Tx<'_>, queue: i64, taken: &[Taken]) -> rusqlite::Result<()> {
    let due = taken.iter().map(|task| tx.now + task.ttr).min().unwrap_or(tx.now);
    let tasks: Vec<Reservation> = taken.iter().map(|task| (task.seq, task.reserves)).collect();
    let lease = insert(tx, queue, due, &tasks)?;
    tx.changes.leased.push((lease, tasks.iter().map(|(seq, _)| *seq).collect()));
    Ok(())
}

/// Writes one more lease for a task whose lease ends earlier than it did before.
pub(super) fn shorten(tx: &mut Tx<'_>, queue: i64, due: i64, task: Reservation) -> rusqlite::Result<()> {
    insert(tx, queue, due, &[task]).map(drop)
}

/// When the first lease of a queue may end.
pub(super) fn due(db: &Connection, queue: i64) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(include_str!("../sql/lease_due.sql"))?.query_row([queue], |row| row.get(0)).optional()
}

/// Makes tasks ready whose lease has ended. Says whether there may be more.
pub(super) fn reap(tx: &mut Tx<'_>, queue: i64) -> Result<bool, Fault> {
    if due(tx.db, queue)?.is_none_or(|due| due > tx.now) {
        return Ok(false);
    }
    let mut find = tx.db.prepare_cached(include_str!("../sql/lease_ended.sql"))?;
    let ended = find
        .query_map((queue, tx.now, REAP as i64), |row| Ok((row.get(0)?, row.get_ref(1)?.as_blob().map(unpack)?)))?
        .collect::<rusqlite::Result<Vec<(i64, Vec<Reservation>)>>>()?;
    let more = ended.len() == REAP;
    for (lease, tasks) in ended {
        walk(tx, lease, tasks)?;
    }
    Ok(more)
}

/// Looks at each task of a lease. Those that were touched keep it, with the moment when the first of them ends.
fn walk(tx: &mut Tx<'_>, lease: i64, tasks: Vec<Reservation>) -> rusqlite::Result<()> {
    let mut look = tx.db.prepare_cached(include_str!("../sql/lease_look.sql"))?;
    let mut expire = tx.db.prepare_cached(include_str!("../sql/expire.sql"))?;
    let mut left = Vec::new();
    let mut next = i64::MAX;
    for (seq, reserves) in tasks {
        match reserved_until(&mut look, (seq, reserves))? {
            Some(due) if due > tx.now => {
                left.push((seq, reserves));
                next = next.min(due);
            }
            Some(_) => {
                expire.execute((seq, tx.now))?;
                tx.changes.ended.push(seq);
            }
            None => {}
        }
    }
    if left.is_empty() {
        tx.db.prepare_cached(include_str!("../sql/lease_delete.sql"))?.execute([lease])?;
    } else {
        let mut keep = tx.db.prepare_cached(include_str!("../sql/lease_keep.sql"))?;
        keep.execute((lease, next, pack(&left)))?;
    }
    Ok(())
}

/// When a reservation ends, if it is still in force.
fn reserved_until(look: &mut CachedStatement<'_>, (seq, reserves): Reservation) -> rusqlite::Result<Option<i64>> {
    look.query_row((seq, state::RESERVED, reserves), |row| row.get(0)).optional()
}

/// All reservations of a queue that are still in force: task and when its lease ends, the first to end first.
pub(super) fn reserved(db: &Connection, queue: i64) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut leases = db.prepare_cached(include_str!("../sql/leases.sql"))?;
    let mut look = db.prepare_cached(include_str!("../sql/lease_look.sql"))?;
    let mut found = Vec::new();
    let mut rows = leases.query([queue])?;
    while let Some(row) = rows.next()? {
        for (seq, reserves) in unpack(row.get_ref(0)?.as_blob()?) {
            if let Some(due) = reserved_until(&mut look, (seq, reserves))? {
                found.push((due, seq));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found.into_iter().map(|(due, seq)| (seq, due)).collect())
}

/// The number of a lease is never used again: a book may still be about to clear the row that had it.
fn insert(tx: &mut Tx<'_>, queue: i64, due: i64, tasks: &[Reservation]) -> rusqlite::Result<i64> {
    let id = tx.seq()?;
    let mut insert = tx.db.prepare_cached(include_str!("../sql/lease_new.sql"))?;
    insert.execute((id, queue, due, pack(tasks)))?;
    Ok(id)
}

fn pack(tasks: &[Reservation]) -> Vec<u8> {
    tasks.iter().flat_map(|(seq, reserves)| [seq.to_le_bytes(), reserves.to_le_bytes()].concat()).collect()
}

fn unpack(blob: &[u8]) -> Vec<Reservation> {
    let number = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
    blob.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_empty_once_all_its_tasks_have_ended_and_not_before() {
        let mut book = LeaseBook::default();
        book.add(1, &[10, 11]);
        book.end(10);
        // Task 11 was reserved anew under lease 2 without this process having seen the end of its first reservation.
        book.add(2, &[11, 12]);
        assert_eq!(book.empty, [1]);
        book.end(12);
        assert_eq!(book.empty, [1], "task 11 is still reserved under lease 2");
        book.end(11);
        assert_eq!(book.empty, [1, 2]);
        assert!(book.lease_of.is_empty() && book.left.is_empty());
    }
}

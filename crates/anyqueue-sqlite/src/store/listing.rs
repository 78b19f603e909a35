//! Looking without touching: figures, listings, facts of one task.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, Figure, NativeFacts, Page, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{find_queue, lease, missing, state};
use crate::error::Fault;

/// Up to so many ready tasks the age of the oldest is found by looking at all of them.
const LOOK_AT_ALL: u64 = 100_000;
/// Levels of priority that are looked at where there are more tasks than that.
const LEVELS: usize = 1000;

const FACTS: &str = "seq, state, priority, due, ttr, redelivered, sent_at, body";

fn found(db: &Connection, name: &QueueName) -> Result<i64, Fault> {
    find_queue(db, name)?.ok_or_else(|| missing(name).into())
}

/// The figures of a queue.
pub(crate) fn stats(db: &Connection, name: &QueueName, now: i64) -> Result<Stats, Fault> {
    let queue = found(db, name)?;
    let count = |state: i64| -> rusqlite::Result<u64> {
        // The state is written out, since a partial index serves only what is known when the statement is prepared.
        let sql = format!("SELECT count(*) FROM task WHERE queue = ?1 AND state = {state}");
        Ok(db.prepare_cached(&sql)?.query_row([queue], |row| row.get::<_, i64>(0))? as u64)
    };
    let ready = count(state::READY)?;
    Ok(Stats {
        ready: Figure::Exact(ready),
        delayed: Figure::Exact(count(state::DELAYED)?),
        reserved: Figure::Exact(lease::reserved(db, queue)?.len() as u64),
        held: Figure::Exact(count(state::HELD)?),
        oldest: oldest(db, queue, ready, now)?,
    })
}

fn oldest(db: &Connection, queue: i64, ready: u64, now: i64) -> rusqlite::Result<Figure> {
    let age = |since: i64| (now - since).max(0) as u64 / 1000;
    if ready <= LOOK_AT_ALL {
        let sql = include_str!("../sql/oldest.sql");
        let since: Option<i64> = db.prepare_cached(sql)?.query_row([queue], |row| row.get(0))?;
        return Ok(Figure::Exact(since.map_or(0, age)));
    }
    let mut first = db.prepare_cached(include_str!("../sql/first_above.sql"))?;
    let (mut above, mut since) = (-1_i64, now);
    for _ in 0..LEVELS {
        let next = first.query_row((queue, above), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).optional()?;
        let Some((priority, due)) = next else { break };
        (above, since) = (priority, since.min(due));
    }
    Ok(Figure::Approximate(age(since)))
}

fn read(row: &Row<'_>, now: i64) -> rusqlite::Result<Peeked> {
    let state = match row.get(1)? {
        state::DELAYED => State::Delayed,
        state::RESERVED => State::Reserved,
        state::HELD => State::Held,
        _ => State::Ready,
    };
    let due: i64 = row.get(3)?;
    let timed = matches!(state, State::Delayed | State::Reserved);
    Ok(Peeked {
        raw: Bytes::copy_from_slice(row.get_ref(7)?.as_blob()?),
        native: facts(row.get(0)?, row.get(2)?, row.get(4)?, row.get(5)?, now - row.get::<_, i64>(6)?),
        state,
        remaining: timed.then(|| span(due - now)),
    })
}

/// What we know of a task beside its body; times in milliseconds.
pub(crate) fn facts(seq: i64, priority: u32, ttr: i64, redelivered: i64, age: i64) -> NativeFacts {
    NativeFacts {
        id: Some(Arc::from(seq.to_string())),
        priority: Some(priority),
        ttr: Some(span(ttr)),
        redeliveries: Figure::Exact(redelivered.max(0) as u64),
        age: Some(span(age)),
    }
}

fn span(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0) as u64)
}

/// The next tasks of a state, in the order in which they will come.
pub(crate) fn peek(db: &Connection, name: &QueueName, wanted: State, limit: usize, now: i64) -> Result<Vec<Peeked>, Fault> {
    let queue = found(db, name)?;
    let (state, order) = match wanted {
        State::Ready => (state::READY, "priority, seq"),
        State::Delayed => (state::DELAYED, "due, seq"),
        State::Held => (state::HELD, "due, seq"),
        State::Reserved => return peek_reserved(db, queue, limit, now),
    };
    let sql = format!("SELECT {FACTS} FROM task WHERE queue = ?1 AND state = {state} ORDER BY {order} LIMIT ?2");
    let mut find = db.prepare_cached(&sql)?;
    let tasks = find.query_map((queue, limit as i64), |row| read(row, now))?.collect::<rusqlite::Result<_>>()?;
    Ok(tasks)
}

fn peek_reserved(db: &Connection, queue: i64, limit: usize, now: i64) -> Result<Vec<Peeked>, Fault> {
    let mut find = db.prepare_cached(&format!("SELECT {FACTS} FROM task WHERE seq = ?1"))?;
    let mut tasks = Vec::new();
    for (seq, _) in lease::reserved(db, queue)?.into_iter().take(limit) {
        tasks.push(find.query_row([seq], |row| read(row, now))?);
    }
    Ok(tasks)
}

/// Held tasks, longest held first. A page ends with the place of its last task, `due.seq`.
pub(crate) fn held(db: &Connection, name: &QueueName, after: Option<&str>, limit: usize, now: i64) -> Result<Page, Fault> {
    let queue = found(db, name)?;
    let (due, seq) = after.map(place).transpose()?.unwrap_or((0, 0));
    let sql = format!(
        "SELECT {FACTS} FROM task WHERE queue = ?1 AND state = {} AND (due, seq) > (?2, ?3) ORDER BY due, seq LIMIT ?4",
        state::HELD
    );
    let mut find = db.prepare_cached(&sql)?;
    let mut rows = find.query((queue, due, seq, limit as i64))?;
    let mut page = Page::default();
    let mut last = None;
    while let Some(row) = rows.next()? {
        last = Some((row.get::<_, i64>(3)?, row.get::<_, i64>(0)?));
        page.tasks.push(read(row, now)?);
    }
    page.next = last.filter(|_| page.tasks.len() == limit).map(|(due, seq)| format!("{due}.{seq}"));
    Ok(page)
}

fn place(text: &str) -> Result<(i64, i64), Error> {
    text.split_once('.')
        .and_then(|(due, seq)| Some((due.parse().ok()?, seq.parse().ok()?)))
        .ok_or_else(|| Error::invalid(format!("`{text}` is no page of a listing; pass what the page before gave as next")))
}

/// The twelve facts of one task.
pub(crate) fn info(db: &Connection, name: &QueueName, id: TaskId, now: i64) -> Result<Option<TaskInfo>, Fault> {
    let queue = found(db, name)?;
    let mut find = db.prepare_cached(include_str!("../sql/info.sql"))?;
    let read = |row: &Row<'_>| {
        let count = |column| row.get::<_, i64>(column).map(|n| Some(n.max(0) as u64));
        let seconds = |millis: i64| millis.max(0) as u64 / 1000;
        let state = match row.get(0)? {
            state::DELAYED => State::Delayed,
            state::RESERVED => State::Reserved,
            state::HELD => State::Held,
            _ => State::Ready,
        };
        let left = (row.get::<_, i64>(2)? - now).max(0) as u64;
        Ok(TaskInfo {
            queue: name.to_string(),
            state: Some(state),
            priority: row.get(1)?,
            age: Some(seconds(now - row.get::<_, i64>(3)?)),
            delay: Some(seconds(row.get(4)?)),
            ttr: Some(seconds(row.get(5)?)),
            expiration: matches!(state, State::Delayed | State::Reserved).then_some(left.div_ceil(1000)),
            reserves: count(6)?,
            timeouts: count(7)?,
            releases: count(8)?,
            holds: count(9)?,
            unholds: count(10)?,
        })
    };
    Ok(find.query_row((&id.as_bytes()[..], queue), read).optional()?)
}

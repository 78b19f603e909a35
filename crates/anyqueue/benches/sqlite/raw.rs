//! The ceiling: one table, one index, one writing thread, nothing else.

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::load::{PICKED, Payload, now, pause, text};

const SCHEMA: &str = "
    CREATE TABLE task(id INTEGER PRIMARY KEY, queue TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0,
        due INTEGER NOT NULL DEFAULT 0, lease INTEGER, payload TEXT NOT NULL);
    CREATE INDEX ready ON task(queue, due, id) WHERE state = 0;";
const INSERT: &str = "INSERT INTO task(queue, payload) VALUES ('bench', ?1)";
const CLAIM: &str = "UPDATE task SET state = 1, lease = unixepoch() + 60 WHERE id IN
    (SELECT id FROM task WHERE queue = 'bench' AND state = 0 AND due <= unixepoch() ORDER BY due, id LIMIT ?1) RETURNING id, payload";

pub(crate) struct Raw(Connection);

impl Raw {
    pub(crate) fn open(path: &Path, full: bool) -> Self {
        let connection = Connection::open(path).expect("a file in a temp folder opens");
        let synchronous = if full { "FULL" } else { "NORMAL" };
        let pragmas = format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};");
        connection.execute_batch(&pragmas).and_then(|()| connection.execute_batch(SCHEMA)).expect("a new file");
        Self(connection)
    }

    fn insert(&mut self, bodies: &[String]) {
        let transaction = self.0.transaction().expect("nobody else writes");
        let mut insert = transaction.prepare_cached(INSERT).expect("the schema is there");
        for body in bodies {
            insert.execute([body]).expect("inserts");
        }
        drop(insert);
        transaction.commit().expect("commits");
    }

    pub(crate) fn one_by_one(&mut self, count: usize) -> (usize, Duration) {
        let start = Instant::now();
        (0..count).for_each(|id| self.insert(&[text(id as u64)]));
        (count, start.elapsed())
    }

    /// From just before an insert until it is claimed, in microseconds, for as many tasks as a pick-up is measured with.
    pub(crate) fn pick_up_slowly(&mut self) -> Vec<u64> {
        let mut claim_and_time = |n| {
            std::thread::sleep(pause(n));
            let start = now();
            self.insert(&[text(n)]);
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate).expect("nobody else writes");
            let id: i64 = transaction.query_row(CLAIM, [1], |row| row.get(0)).expect("the one that was inserted");
            transaction.commit().expect("commits");
            let took = now() - start;
            assert_eq!(self.0.execute("DELETE FROM task WHERE id = ?1", [id]).expect("deletes"), 1);
            took
        };
        (0..PICKED).map(&mut claim_and_time).collect()
    }

    pub(crate) fn drain(&mut self, size: usize) -> (usize, Duration) {
        let start = Instant::now();
        let (mut total, mut done) = (0, Vec::<i64>::new());
        loop {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate).expect("nobody else writes");
            let mut got: Vec<(i64, String)> = Vec::new();
            {
                let mut delete = transaction.prepare_cached("DELETE FROM task WHERE id = ?1").expect("the schema is there");
                done.drain(..).for_each(|id| assert_eq!(delete.execute([id]).expect("deletes"), 1));
                let mut claim = transaction.prepare_cached(CLAIM).expect("the schema is there");
                let rows = claim.query_map([size as i64], |row| Ok((row.get(0)?, row.get(1)?))).expect("claims");
                got.extend(rows.map(|row| row.expect("reads")));
            }
            transaction.commit().expect("commits");
            if got.is_empty() {
                return (total, start.elapsed());
            }
            got.iter().for_each(|(_, body)| drop(serde_json::from_str::<Payload>(body).expect("a payload")));
            total += got.len();
            done.extend(got.iter().map(|(id, _)| *id));
        }
    }
}

type Task = (String, oneshot::Sender<()>);

/// A thread that commits what many send, in groups.
pub(crate) struct Group {
    inbox: SyncSender<Task>,
    thread: JoinHandle<Raw>,
}

impl Group {
    pub(crate) fn start(mut raw: Raw) -> Self {
        let (inbox, jobs) = sync_channel::<Task>(1024);
        let thread = std::thread::spawn(move || {
            while let Ok(first) = jobs.recv() {
                let mut group = vec![first];
                while group.len() < 64
                    && let Ok(next) = jobs.try_recv()
                {
                    group.push(next);
                }
                let (bodies, senders): (Vec<_>, Vec<_>) = group.into_iter().unzip();
                raw.insert(&bodies);
                senders.into_iter().for_each(|sender| sender.send(()).expect("the sender waits"));
            }
            raw
        });
        Self { inbox, thread }
    }

    pub(crate) async fn senders(&self, senders: usize, count: usize) -> (usize, Duration) {
        let start = Instant::now();
        let each = count / senders;
        let tasks: Vec<_> = (0..senders)
            .map(|_| {
                let inbox = self.inbox.clone();
                tokio::spawn(async move {
                    for id in 0..each {
                        let (done, committed) = oneshot::channel();
                        inbox.send((text(id as u64), done)).expect("the thread runs");
                        committed.await.expect("commits");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no sender panics");
        }
        (each * senders, start.elapsed())
    }

    pub(crate) fn end(self) -> Raw {
        drop(self.inbox);
        self.thread.join().expect("the thread ends")
    }
}

//! The one thread of a process that writes a file. What queues up while a transaction runs goes into the next one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyqueue_core::{Clock, Durability, Error, ErrorKind, Result, time::unix_millis};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::error::{Fault, explain, is_busy, is_of_the_file};
use crate::file::{self, Identity};
use crate::schema;
use crate::store::{Memory, Tx};
use crate::wake::Signals;

/// Tasks and receipts that go into one transaction at most, unless a single job has more.
const GROUP: usize = 1024;
/// How long the thread is idle before it tidies the file.
const IDLE: Duration = Duration::from_millis(500);

/// Something to do inside a transaction.
pub(crate) trait Job: Send {
    /// Does it. Called again, from the start, where the transaction had to be rolled back.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault>;
    /// Says how it ended, after the commit.
    fn answer(self: Box<Self>, outcome: Result<()>);
    /// How many tasks it is about.
    fn weight(&self) -> usize;
    /// Whether it may not be lost once it was answered.
    fn durable(&self) -> bool;
    /// Whether all that it does is to send tasks: then it need not see what its neighbours have sent.
    fn only_sends(&self) -> bool {
        false
    }
    /// Whether a look without a lock shows that there is nothing to do.
    fn nothing_to_do(&mut self, _tx: &mut Tx<'_>) -> Result<bool, Fault> {
        Ok(false)
    }
}

pub(crate) enum Message {
    /// A job, and until when it may wait for a lock.
    Job(Box<dyn Job>, Instant),
    Stop(oneshot::Sender<()>),
}

type Waiting = Vec<(Box<dyn Job>, Instant)>;

/// What the thread counts, for all to read.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) commits: AtomicU64,
    pub(crate) reopened: AtomicU64,
}

pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) counted: Arc<Counted>,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) open: Option<Open>,
    pub(crate) memory: Memory,
}

/// The connection, and the file it was opened on.
pub(crate) struct Open {
    connection: Connection,
    identity: Identity,
    syncs: bool,
}

impl Open {
    pub(crate) fn new(config: &Config, path: &std::path::Path) -> Result<Self> {
        let connection = schema::open_writer(path, config)?;
        Ok(Self { connection, identity: Identity::of(path)?, syncs: false })
    }

    /// `synchronous` cannot change inside a transaction, and a change costs a statement, so it is made only where it matters.
    fn sync(&mut self, wanted: bool) -> rusqlite::Result<()> {
        if self.syncs != wanted {
            self.connection.pragma_update(None, "synchronous", if wanted { "FULL" } else { "NORMAL" })?;
            self.syncs = wanted;
        }
        Ok(())
    }

    fn statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// Why a group of jobs was not committed.
enum Failure {
    /// Another process writes.
    Busy(rusqlite::Error),
    /// One of them, or the file.
    Sqlite(rusqlite::Error),
    /// Some of them have to be done one by one.
    OneByOne,
    /// The file could not be opened, or is not there any more.
    File(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        if is_busy(&error) { Self::Busy(error) } else { Self::Sqlite(error) }
    }
}

impl Writer {
    pub(crate) fn run(mut self) {
        loop {
            let first = match self.inbox.recv_timeout(IDLE) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    self.tidy();
                    match self.inbox.recv() {
                        Ok(message) => message,
                        Err(_) => break,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut jobs = Vec::new();
            let stop = self.gather(first, &mut jobs);
            self.work(jobs);
            if let Some(done) = stop {
                self.close();
                let _ = done.send(());
                return;
            }
        }
        self.close();
    }

    fn gather(&self, first: Message, jobs: &mut Waiting) -> Option<oneshot::Sender<()>> {
        let mut weight = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Stop(done) => return Some(done),
                Message::Job(job, until) => {
                    weight += job.weight();
                    jobs.push((job, until));
                }
            }
            next = if weight < GROUP { self.inbox.try_recv().ok() } else { None };
        }
        None
    }

    /// Brings a group to its end, with pauses where another process writes.
    fn work(&mut self, mut jobs: Waiting) {
        let mut pause = Duration::from_micros(100);
        let mut quick = true;
        while !jobs.is_empty() {
            match self.attempt(&mut jobs, quick) {
                Ok(()) => return,
                Err(Failure::OneByOne) => quick = false,
                Err(Failure::Busy(error)) => {
                    let now = Instant::now();
                    let error = explain(error, &self.path);
                    for (job, _) in jobs.extract_if(.., |(_, until)| *until <= now) {
                        job.answer(Err(error.duplicate()));
                    }
                    std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64()));
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                // One of the group is to blame, or all meet the same: each alone finds out.
                Err(Failure::Sqlite(_)) if jobs.len() > 1 => {
                    for job in std::mem::take(&mut jobs) {
                        self.work(vec![job]);
                    }
                }
                Err(Failure::Sqlite(error)) => self.fail(&mut jobs, explain(error, &self.path)),
                Err(Failure::File(error)) => self.fail(&mut jobs, error),
            }
        }
    }

    fn fail(&self, jobs: &mut Waiting, error: Error) {
        // Who asked is told, and says it where it matters.
        tracing::debug!(file = %self.path.display(), error = ?error, "a transaction failed");
        for (job, _) in jobs.drain(..) {
            job.answer(Err(error.duplicate()));
        }
    }

    /// One transaction. Answers the jobs if it was committed, leaves them where they are if not.
    fn attempt(&mut self, jobs: &mut Waiting, quick: bool) -> Result<(), Failure> {
        let result = self.transaction(jobs, quick);
        if let Err(failure) = &result {
            self.memory.forget();
            if let Some(open) = &self.open
                && !open.connection.is_autocommit()
            {
                let _ = open.connection.execute_batch("ROLLBACK");
            }
            if matches!(failure, Failure::File(_)) || matches!(failure, Failure::Sqlite(e) if is_of_the_file(e)) {
                self.open = None;
                // Another file may be there next, with the same numbers for other tasks.
                self.memory = Memory::default();
            }
        }
        result
    }

    fn transaction(&mut self, jobs: &mut Waiting, quick: bool) -> Result<(), Failure> {
        if self.open.is_none() {
            self.open = Some(Open::new(&self.config, &self.path).map_err(Failure::File)?);
            self.counted.reopened.fetch_add(1, Ordering::Relaxed);
        }
        let open = self.open.as_mut().expect("opened above");
        let now = unix_millis(self.clock.wall()) as i64;
        let mut idle = vec![false; jobs.len()];
        if jobs.iter().all(|(job, _)| !job.durable()) {
            let mut tx = Tx::new(&open.connection, now, &mut self.memory, quick);
            for ((job, _), idle) in jobs.iter_mut().zip(&mut idle) {
                *idle = matches!(job.nothing_to_do(&mut tx), Ok(true));
            }
        }
        let mut outcomes = Vec::with_capacity(jobs.len());
        if idle.iter().all(|idle| *idle) {
            outcomes.resize_with(jobs.len(), || Ok(()));
        } else {
            let durable = self.config.durability == Durability::Power && jobs.iter().any(|(job, _)| job.durable());
            open.sync(durable)?;
            open.statement("BEGIN IMMEDIATE")?;
            let now = unix_millis(self.clock.wall()) as i64;
            let mut tx = Tx::new(&open.connection, now, &mut self.memory, quick);
            for ((job, _), idle) in jobs.iter_mut().zip(idle) {
                if !job.only_sends() {
                    tx.write_sent()?;
                }
                outcomes.push(match if idle { Ok(()) } else { job.run(&mut tx) } {
                    Ok(()) => Ok(()),
                    Err(Fault::Refused(error)) => Err(error),
                    Err(Fault::Sqlite(error)) => return Err(error.into()),
                    Err(Fault::OneByOne) => return Err(Failure::OneByOne),
                });
            }
            let changes = tx.finish()?;
            open.statement("COMMIT")?;
            self.counted.commits.fetch_add(1, Ordering::Relaxed);
            self.memory.keep(changes.leased, changes.ended);
            if !changes.woken.is_empty() {
                file::ring(&self.path);
            }
            self.signals.wake(changes.woken);
        }
        if !open.identity.is_still(&self.path) {
            return Err(Failure::File(gone(&self.path)));
        }
        for ((job, _), outcome) in jobs.drain(..).zip(outcomes) {
            job.answer(outcome);
        }
        Ok(())
    }

    /// Nothing came for a while: gives the room of a drained backlog back. Where another process is at work, it can wait.
    fn tidy(&self) {
        if let Some(open) = &self.open {
            let _ = schema::shrink(&open.connection);
        }
    }

    /// Writes the log back into the file, so that a closed file is one file. Others may still use it: then they will do so.
    fn close(&mut self) {
        self.signals.stop();
        if let Some(open) = self.open.take() {
            let _ = open.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

fn gone(path: &std::path::Path) -> Error {
    let text =
        format!("{} was deleted or replaced while it was in use; the next request opens what is there then", path.display());
    Error::new(ErrorKind::Unavailable, text).effect_unknown()
}

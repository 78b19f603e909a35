//! One file as all brokers of this process share it: a thread that writes, one that watches, a connection for looking.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyqueue_core::{Clock, Error, ErrorKind, Result};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::error::Fault;
use crate::reader::Reader;
use crate::store::{Memory, Tx};
use crate::wake::{Signals, Waiting, Watch};
use crate::writer::{Counted, Job, Message, Open, Writer};

/// Files that are open in this process.
static OPEN: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// A file that is open.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) counted: Arc<Counted>,
    writer: Sender<Message>,
    reader: Mutex<Reader>,
    brokers: AtomicUsize,
}

impl Shared {
    /// Opens a file, or joins those who have it open with the same settings. Waits for the disk.
    pub(crate) fn open(mut config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let path = config.canonical()?;
        config.path.clone_from(&path);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|known| known.strong_count() > 0);
        let known = open
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| known.path == path && known.config == config && Arc::ptr_eq(&known.clock, &clock) && known.join());
        if let Some(known) = known {
            return Ok(known);
        }
        let file = Open::new(&config, &path)?;
        let shared = Arc::new(Self::start(path, config, clock, file)?);
        open.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    fn start(path: PathBuf, config: Config, clock: Arc<dyn Clock>, file: Open) -> Result<Self> {
        let (writer, inbox) = channel();
        let (signals, counted) = (Arc::new(Signals::new()), Arc::new(Counted::default()));
        let thread = Writer {
            path: path.clone(),
            config: config.clone(),
            clock: clock.clone(),
            signals: signals.clone(),
            counted: counted.clone(),
            inbox,
            open: Some(file),
            memory: Memory::default(),
        };
        spawn("sqlite-writer", move || thread.run())?;
        let reader = Mutex::new(Reader::new(path.clone(), config.clone()));
        Ok(Self { path, config, clock, signals, counted, writer, reader, brokers: AtomicUsize::new(1) })
    }

    /// One more broker; false if the last one has left already.
    fn join(&self) -> bool {
        let joined = |n: usize| (n > 0).then_some(n + 1);
        self.brokers.fetch_update(Ordering::AcqRel, Ordering::Acquire, joined).is_ok()
    }

    /// One broker less. The last one closes the file; what is returned says when that is done.
    pub(crate) fn leave(&self) -> Option<oneshot::Receiver<()>> {
        let left = |n: usize| n.checked_sub(1);
        let last = self.brokers.fetch_update(Ordering::AcqRel, Ordering::Acquire, left) == Ok(1);
        if last && let Ok(mut reader) = self.reader.try_lock() {
            reader.close();
        }
        let (done, closed) = oneshot::channel();
        (last && self.writer.send(Message::Stop(done)).is_ok()).then_some(closed)
    }

    /// Hands a job to the writing thread, to be given up after a time if another process keeps the lock. Where the
    /// thread has ended, the job is dropped, and its answer with it.
    pub(crate) fn submit(&self, job: Box<dyn Job>, patience: Duration) {
        let until = Instant::now() + patience.min(self.config.busy_timeout);
        let _ = self.writer.send(Message::Job(job, until));
    }

    /// Does something inside a transaction, together with whatever else waits to be written.
    pub(crate) async fn write<T, F>(&self, weight: usize, durable: bool, run: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.submit(Box::new(Call { run, value: None, weight, durable, reply }), self.config.busy_timeout);
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Does something inside a transaction, without waiting for it.
    pub(crate) fn write_unheard<F>(&self, weight: usize, run: F)
    where
        F: FnMut(&mut Tx<'_>) -> Result<(), Fault> + Send + 'static,
    {
        let (reply, _) = oneshot::channel();
        self.submit(Box::new(Call { run, value: None, weight, durable: false, reply }), self.config.busy_timeout);
    }

    /// Looks at the file, on a thread that may wait for the disk.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, look: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let shared = self.clone();
        let looking = move || shared.reader.lock().unwrap_or_else(PoisonError::into_inner).read(look);
        tokio::task::spawn_blocking(looking)
            .await
            .unwrap_or_else(|e| Err(Error::unavailable("the thread that reads the file ended").because(e)))
    }

    /// Says that somebody waits for a queue, so that what other processes write is watched.
    pub(crate) fn wait<'a>(&'a self, queue: &'a anyqueue_core::QueueName, next: Option<i64>) -> Waiting<'a> {
        self.signals.wait(queue, next, |bell| {
            let watch = Watch {
                path: self.path.clone(),
                clock: self.clock.clone(),
                signals: self.signals.clone(),
                reader: Reader::new(self.path.clone(), self.config.clone()),
                bell,
            };
            if let Err(error) = spawn("sqlite-watch", move || watch.run()) {
                tracing::warn!(error = ?error, "what other processes send is seen only when a wait ends");
            }
        })
    }
}

/// The error for all that is asked of a closed file.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the broker has been closed; connect anew")
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = thread::Builder::new().name(name.into()).spawn(run);
    spawned.map(drop).map_err(|e| Error::unavailable("the system gives no more threads").because(e))
}

/// A job made of a closure.
struct Call<T, F> {
    run: F,
    value: Option<T>,
    weight: usize,
    durable: bool,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Call<T, F>
where
    T: Send + 'static,
    F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        self.value = Some((self.run)(tx)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<()>) {
        let Self { value, reply, .. } = *self;
        // Nobody waits for what was written unheard.
        let _ = reply.send(outcome.and_then(|()| value.ok_or_else(closed)));
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn durable(&self) -> bool {
        self.durable
    }
}

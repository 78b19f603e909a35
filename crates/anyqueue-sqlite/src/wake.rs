//! Who waits for which queue, and how they learn that something came.
//!
//! In this process the writing thread knows what it made ready and tells it after each commit. For other processes it
//! sets the file's times to now, which inotify reports to one thread in each of them; that thread serves all queues,
//! sleeps while nobody waits, and asks the file once per report. (Writes to the log are no such sign: they come before
//! the commit can be seen.)

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Clock, QueueName, time::unix_millis};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use crate::reader::Reader;
use crate::reports::Reports;
use crate::store;

/// Reports that come closer together than this are answered together, so that a busy neighbour costs next to nothing.
const REST: Duration = Duration::from_millis(5);

/// One queue, as those who wait for it see it.
#[derive(Debug)]
struct Line {
    changes: watch::Sender<u64>,
    waiting: usize,
    /// When those who wait will look by themselves, in milliseconds of the time of day.
    next: i64,
}

/// The meeting place of those who wait and those who know.
#[derive(Debug)]
pub(crate) struct Signals {
    lines: Mutex<HashMap<QueueName, Line>>,
    /// Interrupts the watching thread; none until it was started, and after it was stopped.
    bell: Mutex<Bell>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
enum Bell {
    NotStarted,
    Rings(UnixStream),
    Stopped,
}

/// Somebody waits; dropped when the wait is over.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    signals: &'a Signals,
    queue: &'a QueueName,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.signals.lines().get_mut(self.queue) {
            line.waiting -= 1;
        }
        self.signals.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self { lines: Mutex::default(), bell: Mutex::new(Bell::NotStarted), waiting: AtomicUsize::new(0) }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<QueueName, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of a queue, from now on.
    pub(crate) fn listen(&self, queue: &QueueName) -> watch::Receiver<u64> {
        let fresh = || Line { changes: watch::Sender::new(0), waiting: 0, next: i64::MAX };
        self.lines().entry(queue.clone()).or_insert_with(fresh).changes.subscribe()
    }

    /// Says that somebody waits for a queue, and when he will look by himself.
    pub(crate) fn wait<'a>(&'a self, queue: &'a QueueName, next: Option<i64>, watch: impl FnOnce(UnixStream)) -> Waiting<'a> {
        if let Some(line) = self.lines().get_mut(queue) {
            line.waiting += 1;
            line.next = next.unwrap_or(i64::MAX);
        }
        let waiting = Waiting { signals: self, queue };
        if self.waiting.fetch_add(1, Ordering::AcqRel) > 0 {
            return waiting;
        }
        let mut bell = self.bell();
        if let Bell::NotStarted = *bell
            && let Ok((ours, theirs)) = UnixStream::pair()
            && ours.set_nonblocking(true).is_ok()
        {
            watch(theirs);
            *bell = Bell::Rings(ours);
        }
        if let Bell::Rings(stream) = &*bell {
            let _ = (&*stream).write(&[1]);
        }
        drop(bell);
        waiting
    }

    /// Something happened in these queues.
    pub(crate) fn wake(&self, queues: Vec<QueueName>) {
        let lines = self.lines();
        for line in queues.iter().filter_map(|queue| lines.get(queue)) {
            line.changes.send_modify(|n| *n += 1);
        }
    }

    /// Ends the watching thread, and wakes all that still wait.
    pub(crate) fn stop(&self) {
        *self.bell() = Bell::Stopped;
        for line in self.lines().values() {
            line.changes.send_modify(|n| *n += 1);
        }
    }

    fn waiting(&self) -> Vec<(QueueName, i64)> {
        let lines = self.lines();
        lines.iter().filter(|(_, line)| line.waiting > 0).map(|(queue, line)| (queue.clone(), line.next)).collect()
    }
}

/// The thread that sees what other processes write.
pub(crate) struct Watch {
    pub(crate) path: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) reader: Reader,
    pub(crate) bell: UnixStream,
}

impl Watch {
    /// Watches until the bell is gone.
    pub(crate) fn run(mut self) {
        if self.bell.set_nonblocking(true).is_err() {
            return;
        }
        let mut reports = Reports::new(&self.path);
        // What was written between the claim of the first who waits and this moment was not reported.
        let mut look = true;
        loop {
            let waiting = self.signals.waiting();
            if look && !waiting.is_empty() {
                self.look(waiting);
                std::thread::sleep(REST);
                look = false;
                continue;
            }
            let limit = if waiting.is_empty() { None } else { Some(reports.interval()) };
            let Some(heard) = self.listen(&reports, limit) else { return };
            if heard == Heard::Nothing {
                reports.renew(&self.path);
            }
            look = heard != Heard::Bell;
        }
    }

    /// Waits for the bell, a report, or the end of the time. None: the bell is gone.
    fn listen(&mut self, reports: &Reports, limit: Option<Duration>) -> Option<Heard> {
        let limit = limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos() as i64 });
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
        // While nobody waits reports gather in the kernel, where equal ones count as one.
        if let Some(source) = reports.source().filter(|_| limit.is_some()) {
            fds.push(PollFd::new(source, PollFlags::IN));
        }
        if poll(&mut fds, limit.as_ref()).is_err() {
            return Some(Heard::Bell);
        }
        let rang = !fds[0].revents().is_empty();
        let reported = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if rang {
            match (&self.bell).read(&mut [0; 64]) {
                Ok(0) => return None,
                Err(e) if e.kind() != ErrorKind::WouldBlock => return None,
                _ => {}
            }
        }
        if reported {
            reports.drain();
            return Some(Heard::Report);
        }
        Some(if rang { Heard::Bell } else { Heard::Nothing })
    }

    fn look(&mut self, waiting: Vec<(QueueName, i64)>) {
        let now = unix_millis(self.clock.wall()) as i64;
        let news = self.reader.read(|db| {
            let mut news = Vec::new();
            for (queue, next) in waiting {
                let (ready, due) = store::has_ready(db, &queue, now)?;
                if ready || due.is_some_and(|due| due < next) {
                    news.push(queue);
                }
            }
            Ok(news)
        });
        // A file that cannot be read is reported by the next claim, to those who can act on it.
        self.signals.wake(news.unwrap_or_default());
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Bell,
    Report,
    Nothing,
}

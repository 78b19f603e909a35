//! Guards: copies of reserved tasks that fall due when their leases end, so that a frozen worker's task comes back.
//!
//! A job server gives a job back when its worker's connection ends, and a frozen worker's does not. While the worker lives
//! it ends its leases by itself and cancels the guards. A guard that falls due is looked at by whoever moves the delayed
//! tasks: if its task still runs and the lease noted with it is over, the copy takes the task's place.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Moment, Result};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};

use crate::hub::{Hub, Queue};
use crate::lease::Guard;
use crate::names::guards;
use crate::packet::{Job, Reply, status, submit_at};
use crate::server::{Server, Session};

/// A guard falls due at the latest after this time, and is put again if the lease goes on. A job server keeps a cancelled
/// job in memory until it would have been due, and goes through all of those whenever it is asked for what is due.
pub(crate) const HOP: Duration = Duration::from_secs(20);

/// So many guards are written at once.
const PART: usize = 32;

/// What a guard or a mark says of the job that it is about: its unique id, its handle, and its data.
pub(crate) fn wrap(job: &Job) -> Bytes {
    let mut data = BytesMut::with_capacity(job.unique.len() + job.handle.len() + 2 + job.data.len());
    for name in [&job.unique, &job.handle] {
        data.put_slice(name.as_bytes());
        data.put_u8(0);
    }
    data.put_slice(&job.data);
    data.freeze()
}

/// Reads it. The job was in this function.
pub(crate) fn unwrap(data: &Bytes, function: &str) -> Option<Job> {
    let mut rest = data.clone();
    let mut name = || {
        let end = rest.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&rest[..end]).ok()?.to_owned();
        rest = rest.slice(end + 1..);
        Some(name)
    };
    let (unique, handle) = (name()?, name()?);
    Some(Job { handle, function: function.to_owned(), unique, data: rest })
}

/// A guard that was written, and whether one was there.
pub(crate) type Guarded = (Guard, bool);

impl Hub {
    /// Writes guards of jobs that were just reserved: of each, its guard, and whether one was there, left by a worker that
    /// ended without a word.
    pub(crate) async fn guard(&self, server: &Arc<Server>, queue: &Queue, jobs: &[(Job, Moment)]) -> Vec<Result<Guarded>> {
        let session = match server.session().await {
            Ok(session) => session,
            Err(e) => return jobs.iter().map(|_| Err(e.duplicate())).collect(),
        };
        // All are on their way before the first is answered.
        let parts = join_all(jobs.chunks(PART).map(|part| self.guard_part(&session, queue, part))).await;
        let mut guarded = Vec::with_capacity(jobs.len());
        for (part, written) in jobs.chunks(PART).zip(parts) {
            match written {
                Ok(some) => guarded.extend(some),
                Err(e) => guarded.extend(part.iter().map(|_| Err(e.duplicate()))),
            }
        }
        guarded
    }

    async fn guard_part(&self, session: &Arc<Session>, queue: &Queue, jobs: &[(Job, Moment)]) -> Result<Vec<Result<Guarded>>> {
        let packet = |(job, deadline): &(Job, Moment), name: &str| {
            let due = self.second_of(*deadline).min(self.second_after(HOP)) + 1;
            submit_at(due, &queue.functions.guard, name, wrap(job))
        };
        let names: Vec<_> = jobs.iter().map(|(job, _)| guards(&queue.functions, job)).collect();
        let of_one = |(names, job): (&[String; 3], &(Job, Moment))| {
            names.iter().map(|name| status(name)).chain([packet(job, &names[0])]).collect::<Vec<_>>()
        };
        let mut replies = session.call(names.iter().zip(jobs).flat_map(of_one).collect()).await?.into_iter();
        let mut written: Vec<_> = jobs.iter().map(|_| one(&mut replies)).collect();
        // One that was there falls due when it was to, or is cancelled already: another one is put beside it.
        let met = |(at, one): (usize, &Result<Written>)| Some((at, one.as_ref().ok()?.beside()?));
        let met: Vec<_> = written.iter().enumerate().filter_map(met).collect();
        if !met.is_empty() {
            let beside = session.call(met.iter().map(|(at, free)| packet(&jobs[*at], &names[*at][*free])).collect()).await?;
            for ((at, _), reply) in met.into_iter().zip(beside) {
                written[at] = handle(reply).map(|handle| Written { known: [true; 3], handle });
            }
        }
        let guarded = |one: Written| {
            let met = one.known.contains(&true);
            (Guard { session: session.clone(), handle: one.handle }, met)
        };
        Ok(written.into_iter().map(|one| one.map(guarded)).collect())
    }
}

/// A guard's handle, and which of its names were known before.
struct Written {
    known: [bool; 3],
    handle: String,
}

impl Written {
    /// The name under which another one can be put beside the first one, which was there.
    fn beside(&self) -> Option<usize> {
        self.known[0].then(|| self.known.iter().position(|known| !known)).flatten()
    }
}

fn one(replies: &mut impl Iterator<Item = Reply>) -> Result<Written> {
    let mut known = [false; 3];
    for known in &mut known {
        match replies.next() {
            Some(Reply::Status(status)) => *known = status.known,
            _ => return Err(Error::new(ErrorKind::Protocol, "the job server's answers are out of order")),
        }
    }
    replies.next().map_or_else(|| Err(crate::error::closed()), handle).map(|handle| Written { known, handle })
}

fn handle(reply: Reply) -> Result<String> {
    match reply {
        Reply::Created(handle) => Ok(handle),
        Reply::Refused { code, text } if text.contains("full") => {
            let help = "the function of the guards has as many jobs as `maxqueue` allows; raise it with `gearadmin`";
            Err(Error::new(ErrorKind::Full, format!("{help} ({code}, {text})")))
        }
        Reply::Refused { code, text } => {
            let help = "this job server takes no job for later, so nothing can be guarded or delayed on it; \
                        use its libsqlite3 or MySQL module, or `lease = \"connection\"`";
            Err(Error::new(ErrorKind::Unsupported, format!("{help} ({code}, {text})")))
        }
        other => Err(crate::error::unexpected(&other, "SUBMIT_JOB_EPOCH")),
    }
}

/// What the sweeper gets.
#[derive(Debug)]
pub(crate) enum Sweep {
    /// Cancel this guard.
    Guard(Guard),
    /// Say when all before have been.
    Flush(oneshot::Sender<()>),
}

/// Cancels guards of tasks that are settled. Nobody waits for it.
pub(crate) async fn sweep(mut swept: mpsc::UnboundedReceiver<Sweep>) {
    let mut items = Vec::new();
    while swept.recv_many(&mut items, 64).await > 0 {
        let mut sessions: Vec<(Arc<Session>, Vec<String>)> = Vec::new();
        let mut flushes = Vec::new();
        for item in items.drain(..) {
            match item {
                Sweep::Flush(tell) => flushes.push(tell),
                Sweep::Guard(guard) => match sessions.iter_mut().find(|(session, _)| Arc::ptr_eq(session, &guard.session)) {
                    Some((_, handles)) => handles.push(guard.handle),
                    None => sessions.push((guard.session, vec![guard.handle])),
                },
            }
        }
        for cancelled in join_all(sessions.iter().map(|(session, handles)| session.cancel(handles.clone()))).await {
            if let Err(e) = cancelled {
                tracing::debug!(
                    error = anyqueue_core::chain(&e),
                    "guards were not cancelled; they are dropped when they are due"
                );
            }
        }
        for tell in flushes {
            // Whoever closes may have stopped waiting.
            let _gone = tell.send(());
        }
    }
}

/// Waits until all guards that were to be cancelled are.
pub(crate) async fn flush(sweeping: &mpsc::UnboundedSender<Sweep>) {
    let (tell, told) = oneshot::channel();
    if sweeping.send(Sweep::Flush(tell)).is_ok() {
        // Nobody answers where the runtime has ended.
        drop(told.await);
    }
}

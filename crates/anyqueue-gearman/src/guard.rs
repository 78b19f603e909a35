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
use crate::names::{MAX_UNIQUE, guards};
use crate::packet::{Job, Reply, status, submit_at};
use crate::server::{Server, Session};

/// A guard falls due at the latest after this time, and is put again if the lease goes on. A job server keeps a cancelled
/// job's data in memory until it would have been due.
pub(crate) const HOP: Duration = Duration::from_secs(120);

/// So many guards are written at once.
const PART: usize = 32;

/// The data of a guard: the unique id of its task, and the task.
pub(crate) fn wrap(unique: &str, body: &Bytes) -> Bytes {
    let mut data = BytesMut::with_capacity(unique.len() + 1 + body.len());
    data.put_slice(unique.as_bytes());
    data.put_u8(0);
    data.put_slice(body);
    data.freeze()
}

/// Reads the data of a guard.
pub(crate) fn unwrap(data: &Bytes) -> Option<(String, Bytes)> {
    let end = data.iter().position(|byte| *byte == 0)?;
    let unique = std::str::from_utf8(&data[..end]).ok()?.to_owned();
    Some((unique, data.slice(end + 1..)))
}

/// Whether a job can be found again by its unique id: one without, with `-`, or with one that is cut off, cannot.
pub(crate) fn can_be_guarded(job: &Job) -> bool {
    !matches!(job.unique.as_str(), "" | "-") && job.unique.len() <= MAX_UNIQUE
}

impl Hub {
    /// Writes guards of jobs that were just reserved: of each, its guard, and whether one was there, left by a worker that
    /// ended without a word. Jobs that nobody could find again have none.
    pub(crate) async fn guard(
        &self,
        server: &Server,
        queue: &Queue,
        jobs: &[(Job, Moment)],
    ) -> Result<Vec<(Option<Guard>, bool)>> {
        let session = server.session().await?;
        let mut guarded = Vec::with_capacity(jobs.len());
        for part in jobs.chunks(PART) {
            let mut packets = Vec::with_capacity(part.len() * 3);
            for (job, deadline) in part.iter().filter(|(job, _)| can_be_guarded(job)) {
                let [first, second] = guards(&queue.functions, &job.unique);
                let due = self.second_of(*deadline).min(self.second_after(HOP)) + 1;
                packets.extend([status(&first), status(&second)]);
                packets.push(submit_at(due, &queue.functions.guard, &first, wrap(&job.unique, &job.data)));
            }
            let mut replies = session.call(packets).await?.into_iter();
            for (job, _) in part {
                let of_one = if can_be_guarded(job) { one(&mut replies, &session)? } else { (None, false) };
                guarded.push(of_one);
            }
        }
        Ok(guarded)
    }
}

fn one(replies: &mut impl Iterator<Item = Reply>, session: &Arc<Session>) -> Result<(Option<Guard>, bool)> {
    match (replies.next(), replies.next(), replies.next()) {
        (Some(Reply::Status(first)), Some(Reply::Status(second)), Some(Reply::Created(handle))) => {
            Ok((Some(Guard { session: session.clone(), handle }), first.known || second.known))
        }
        (_, _, Some(Reply::Refused { code, text })) => {
            let help = "this job server takes no job for later, so nothing can be guarded or delayed on it; \
                        use its libsqlite3 or MySQL module, or `lease = \"connection\"`";
            Err(Error::new(ErrorKind::Unsupported, format!("{help} ({code}, {text})")))
        }
        _ => Err(Error::new(ErrorKind::Protocol, "the job server's answers are out of order")),
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
        for cancelled in join_all(sessions.iter().map(|(session, handles)| session.cancel(handles))).await {
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

//! Moves what is due: delayed tasks to their queues, and tasks of frozen workers by their guards.
//!
//! gearmand 1.1 wakes nobody when a job for later falls due, so each process that takes tasks from a queue looks once a
//! second, just after the second has begun. Who dies half-way leaves a job that the next one moves: to the same unique
//! id, so that it is there once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use anyqueue_core::{Error, ErrorKind, Moment, Result, time::DEFAULT_TTR};
use bytes::Bytes;
use gearman::protocol::Packet;

use crate::error;
use crate::guard::{HOP, unwrap, wrap};
use crate::hub::{Hub, Queue};
use crate::link::Link;
use crate::names::{Kind, PROBE, is_first, is_foreign, next_guard, number};
use crate::packet::{Job, Reply, Status, can_do, cant_do, complete, echo, grab, status, status_of_handle, submit, submit_at};
use crate::server::{Server, Session};

/// So many jobs are grabbed at once.
const PART: usize = 64;

/// How long after a second has begun its jobs are looked for.
const LATE: Duration = Duration::from_millis(25);

/// A job that a worker has only just got may have no lease noted yet.
const MOMENT: Duration = Duration::from_secs(2);

/// How often it is looked whether a frozen worker still has a task whose place was taken.
const STILL: Duration = Duration::from_secs(4);

/// How long a function is left alone of which something could not be moved.
const SHUT: Duration = Duration::from_secs(2);

/// The connection of one mover, and the functions that it has announced.
#[derive(Default)]
struct Station {
    link: Option<Arc<Link>>,
    announced: usize,
    /// Functions that were taken back from the server, until when.
    shut: HashMap<String, Moment>,
}

/// Moves for as long as the broker lives.
pub(crate) async fn run(hub: Weak<Hub>, server: Arc<Server>) {
    let mut station = Station::default();
    loop {
        let Some(strong) = hub.upgrade() else { return };
        if strong.is_closed() {
            return;
        }
        let into_second = strong.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let wait = Duration::from_secs(1) - Duration::from_nanos(into_second.into()) + LATE;
        let mut queues = strong.moved.subscribe();
        let sleeping = strong.clock.sleep_until(strong.clock.now() + wait);
        drop(strong);
        tokio::select! {
            () = sleeping => {}
            // A new queue's due tasks have waited long enough.
            changed = queues.changed() => if changed.is_err() { return },
        }
        let Some(strong) = hub.upgrade() else { return };
        let queues = strong.moved.borrow().clone();
        if queues.is_empty() || strong.is_closed() {
            continue;
        }
        if let Err(e) = station.look(&strong, &server, &queues).await {
            // What it had grabbed goes back with the connection.
            station = Station::default();
            tracing::debug!(server = server.address, error = anyqueue_core::chain(&e), "due tasks cannot be moved now");
        }
    }
}

impl Station {
    async fn look(&mut self, hub: &Hub, server: &Arc<Server>, queues: &[Arc<Queue>]) -> Result<()> {
        if self.link.as_ref().is_none_or(|link| link.is_dead()) {
            *self = Self { link: Some(server.connect("anyqueue:due").await?), ..Self::default() };
        }
        let Some(link) = self.link.clone() else { return Err(error::closed()) };
        let new = queues.iter().skip(self.announced).flat_map(|queue| queue.functions.due());
        let now = hub.clock.now();
        let open_again: Vec<_> = self.shut.extract_if(|_, until| *until <= now).map(|(function, _)| function).collect();
        link.submit(new.chain(open_again.iter().map(String::as_str)).map(can_do).collect())?;
        self.announced = queues.len();
        // The server goes through all that is not due for each job that it does not find: one asks for few at first.
        let mut count = 1;
        loop {
            let replies = link.call(vec![grab(); count]).await?.replies;
            let jobs: Vec<Job> = replies.into_iter().filter_map(assigned).collect();
            let all = jobs.len() == count;
            for (function, e) in move_all(hub, server, &link, queues, jobs).await? {
                if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Closed) {
                    return Err(e);
                }
                // Those that were not moved go back, and others are not kept waiting by them.
                tracing::warn!(
                    server = server.address,
                    function,
                    error = anyqueue_core::chain(&e),
                    "a due task cannot be moved yet"
                );
                link.submit(vec![cant_do(&function)])?;
                self.shut.insert(function, hub.clock.now() + SHUT);
            }
            if !all {
                return Ok(());
            }
            count = (count * 2).min(PART);
        }
    }
}

pub(crate) fn assigned(reply: Reply) -> Option<Job> {
    match reply {
        Reply::Assigned(job) => Some(job),
        _ => None,
    }
}

/// Moves jobs that are due: each one that was accepted at its next place is removed. Of the others, their functions and why.
async fn move_all(
    hub: &Hub,
    server: &Arc<Server>,
    link: &Link,
    queues: &[Arc<Queue>],
    jobs: Vec<Job>,
) -> Result<HashMap<String, Error>> {
    let (mut done, mut copied, mut copies, mut refused) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
    for job in jobs {
        let own = queues.iter().find(|queue| queue.functions.due().contains(&job.function.as_str()));
        let Some(queue) = own else { continue };
        match next(hub, server, queue, &job).await {
            Ok(None) => done.push(job),
            Ok(Some(copy)) => (copied.push(job), copies.push(copy)).0,
            Err(e) => drop(refused.insert(job.function, e)),
        }
    }
    // Confirmed first, removed second.
    for (job, put) in copied.into_iter().zip(hub.put(server, copies).await) {
        match put {
            Ok(_) => done.push(job),
            Err(e) => drop(refused.insert(job.function, e)),
        }
    }
    if !done.is_empty() {
        link.call(done.iter().map(|job| complete(&job.handle)).chain([echo()]).collect()).await?;
    }
    Ok(refused)
}

/// What follows a job that is due.
async fn next(hub: &Hub, server: &Arc<Server>, queue: &Queue, job: &Job) -> Result<Option<Packet>> {
    if job.data == PROBE {
        Ok(None)
    } else if job.function == queue.functions.delay {
        hub.delayed_is_due(server, queue, job).await.map(Some)
    } else if job.function == queue.functions.late {
        hub.late_is_due(server, queue, job).await
    } else {
        hub.guard_is_due(server, queue, job).await
    }
}

impl Hub {
    /// A delayed task in its queue.
    async fn delayed_is_due(&self, server: &Arc<Server>, queue: &Queue, job: &Job) -> Result<Packet> {
        let unique = self.unique(queue, job, DEFAULT_TTR).moved(Kind::Ready);
        let keeps_its_key = is_foreign(&queue.functions, &job.unique) && !self.is_late(server, queue, &job.unique).await?;
        let name = if keeps_its_key { job.unique.clone() } else { unique.to_string() };
        Ok(self.named_job(queue, &unique, &name, Duration::ZERO, job.data.clone()))
    }

    /// What follows a guard that is due: nothing if its task is gone, itself again if the lease goes on or nobody has taken
    /// the task since its worker ended, and the task if the lease is over.
    async fn guard_is_due(&self, server: &Arc<Server>, queue: &Queue, guard: &Job) -> Result<Option<Packet>> {
        let Some(task) = unwrap(&guard.data, &queue.functions.ready) else { return Ok(None) };
        let again = |due: u64| {
            let due = due.min(self.second_after(HOP)) + 1;
            Ok(Some(submit_at(due, &queue.functions.guard, &next_guard(&guard.unique), guard.data.clone())))
        };
        let of_task = status_of(&*server.session().await?, queue, &task).await?;
        if !of_task.known {
            return Ok(None);
        }
        if !of_task.running {
            // Who reserves it next is to learn that a worker has died.
            return again(self.second_after(HOP));
        }
        if of_task.until == 0 {
            // Its worker has only just got it, or is none of ours.
            return if is_first(&guard.unique) { again(self.second_after(MOMENT)) } else { Ok(None) };
        }
        if of_task.number != number(&guard.unique) {
            return Ok(None);
        }
        let until = u64::from(of_task.until) + LEASE_EPOCH;
        if until > self.second_after(Duration::ZERO) - 1 {
            return again(until);
        }
        if self.is_replaced(server, queue, &task).await? {
            // By another guard: a worker died with the task before this one was frozen.
            return Ok(None);
        }
        self.take_over(server, queue, task).await?;
        Ok(None)
    }

    /// Puts a copy in the place of a task whose worker is frozen, and sees to it that the task does not come back when
    /// that worker ends.
    async fn take_over(&self, server: &Arc<Server>, queue: &Queue, mut task: Job) -> Result<()> {
        let next = self.unique(queue, &task, DEFAULT_TTR).after_loss();
        let copy = self.job(queue, &next, Duration::ZERO, self.body_of_copy(queue, &task, next.ttr));
        self.put_one(server, copy).await?;
        tracing::info!(queue = queue.name.as_str(), task = %next.id, "a task's lease has ended and its worker says nothing: it is ready again");
        if !is_foreign(&queue.functions, &task.unique) {
            // The server may have been restarted since, and has other handles now.
            task.handle = self.handle_of(server, &queue.functions.ready, &task.unique).await?;
        }
        // The old one is counted as running until its worker goes on or ends, and swallows what has its unique id.
        let name = &queue.functions.late_ids(&task.unique)[0];
        if let Err(e) = self.put_one(server, late_mark(self.second_after(MOMENT), queue, name, &task)).await {
            tracing::debug!(error = anyqueue_core::chain(&e), "a frozen worker's task is not marked: it is counted as reserved");
        }
        server.session().await?.cancel(vec![task.handle]).await
    }

    /// What follows a mark of a task whose place was taken: itself again while the server has the old one.
    async fn late_is_due(&self, server: &Arc<Server>, queue: &Queue, mark: &Job) -> Result<Option<Packet>> {
        let Some(task) = unwrap(&mark.data, &queue.functions.ready) else { return Ok(None) };
        let of_task = status_of(&*server.session().await?, queue, &task).await?;
        let ids = queue.functions.late_ids(&task.unique);
        let other = if ids[0] == mark.unique { &ids[1] } else { &ids[0] };
        Ok(of_task.known.then(|| late_mark(self.second_after(STILL), queue, other, &task)))
    }

    /// Whether a cancelled job has this unique id still: what is submitted with it would be taken for that one, and lost.
    pub(crate) async fn is_late(&self, server: &Arc<Server>, queue: &Queue, unique: &str) -> Result<bool> {
        let asked = self.statuses(server, &queue.functions.late_ids(unique)).await?;
        Ok(asked.iter().any(|status| status.known))
    }

    /// Whether another job has the place of this one, which its worker has still.
    pub(crate) async fn is_replaced(&self, server: &Arc<Server>, queue: &Queue, task: &Job) -> Result<bool> {
        let marked = self.is_late(server, queue, &task.unique).await?;
        // Several jobs of others may have one unique id, and so one mark.
        Ok(marked && (!is_foreign(&queue.functions, &task.unique) || self.is_cancelled(server, task).await?))
    }

    /// The same of a job whose mark may be missing. The server tells it of all its jobs, and of no single one.
    pub(crate) async fn is_cancelled(&self, server: &Arc<Server>, task: &Job) -> Result<bool> {
        Ok(server.session().await?.cancelled().await?.contains(&task.handle))
    }

    async fn put_one(&self, server: &Arc<Server>, packet: Packet) -> Result<()> {
        self.put(server, vec![packet]).await.into_iter().collect::<Result<Vec<_>>>().map(drop)
    }

    /// The handle of a job. The server tells it to who submits the same job again; if it is gone, it is that second one's.
    async fn handle_of(&self, server: &Arc<Server>, function: &str, unique: &str) -> Result<String> {
        let probe = submit(crate::names::Band::Low, function, unique, Bytes::from_static(PROBE));
        let mut handles = self.put(server, vec![probe]).await;
        handles.pop().unwrap_or_else(|| Err(error::closed()))
    }
}

/// Seconds are noted from here on: the server reads numbers of up to 31 bits.
pub(crate) const LEASE_EPOCH: u64 = 1_600_000_000;

fn late_mark(due: u64, queue: &Queue, name: &str, task: &Job) -> Packet {
    submit_at(due, &queue.functions.late, name, wrap(&Job { data: Bytes::new(), ..task.clone() }))
}

/// What the server knows of a task. Ours have unique ids that no other job has; of others the handle tells them apart.
async fn status_of(session: &Session, queue: &Queue, task: &Job) -> Result<Status> {
    let foreign = is_foreign(&queue.functions, &task.unique);
    let question = if foreign { status_of_handle(&task.handle) } else { status(&task.unique) };
    match session.call(vec![question]).await?.as_slice() {
        [Reply::Status(status)] => Ok(*status),
        _ => Err(Error::unavailable("the job server does not know its own jobs")),
    }
}

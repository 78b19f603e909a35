//! Moves what is due: delayed tasks to their queues, and tasks of frozen workers by their guards.
//!
//! gearmand 1.1 wakes nobody when a job for later falls due, so each process that takes tasks from a queue looks once a
//! second, just after the second has begun. Who dies half-way leaves a job that the next one moves: to the same unique
//! id, so that it is there once.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use anyqueue_core::{Error, Result, time::DEFAULT_TTR};
use bytes::Bytes;
use gearman::protocol::Packet;

use crate::error;
use crate::guard::{HOP, unwrap, wrap};
use crate::hub::{Hub, Queue};
use crate::link::Link;
use crate::names::{Kind, PROBE, Unique, late};
use crate::packet::{Job, Reply, Status, can_do, complete, echo, grab, status, submit, submit_at};
use crate::server::{Server, Session};

/// So many jobs are grabbed at once.
const PART: usize = 64;

/// How long after a second has begun its jobs are looked for.
const LATE: Duration = Duration::from_millis(25);

/// A job that a worker has only just got may have no lease noted yet.
const MOMENT: Duration = Duration::from_secs(2);

/// How often it is looked whether a frozen worker still has a task whose place was taken.
const STILL: Duration = Duration::from_secs(4);

/// The connection of one mover, and the functions that it has announced.
#[derive(Default)]
struct Station {
    link: Option<Arc<Link>>,
    announced: usize,
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
    async fn look(&mut self, hub: &Hub, server: &Server, queues: &[Arc<Queue>]) -> Result<()> {
        if self.link.as_ref().is_none_or(|link| link.is_dead()) {
            *self = Self { link: Some(server.connect("anyqueue:due").await?), announced: 0 };
        }
        let Some(link) = self.link.clone() else { return Err(error::closed()) };
        let new = queues.iter().skip(self.announced).flat_map(|queue| queue.functions.due());
        link.submit(new.map(can_do).collect())?;
        self.announced = queues.len();
        loop {
            let replies = link.call(vec![grab(); PART]).await?.replies;
            let jobs: Vec<Job> = replies.into_iter().filter_map(assigned).collect();
            if jobs.is_empty() {
                return Ok(());
            }
            let all = jobs.len() == PART;
            move_all(hub, server, &link, queues, jobs).await?;
            if !all {
                return Ok(());
            }
        }
    }
}

pub(crate) fn assigned(reply: Reply) -> Option<Job> {
    match reply {
        Reply::Assigned(job) => Some(job),
        _ => None,
    }
}

async fn move_all(hub: &Hub, server: &Server, link: &Link, queues: &[Arc<Queue>], jobs: Vec<Job>) -> Result<()> {
    let (mut copies, mut done) = (Vec::new(), Vec::new());
    for job in jobs {
        let own = queues.iter().find(|queue| queue.functions.due().contains(&job.function.as_str()));
        let Some(queue) = own else { continue };
        done.push(complete(&job.handle));
        if job.data == PROBE {
            continue;
        }
        if job.function == queue.functions.delay {
            copies.push(due(hub, queue, &job));
        } else if job.function == queue.functions.late {
            copies.extend(hub.late_is_due(server, queue, &job).await?);
        } else {
            copies.extend(hub.guard_is_due(server, queue, &job).await?);
        }
    }
    // Confirmed first, removed second.
    hub.put(server, copies).await.into_iter().collect::<Result<Vec<_>>>()?;
    done.push(echo());
    link.call(done).await.map(drop)
}

/// A delayed task in its queue.
fn due(hub: &Hub, queue: &Queue, job: &Job) -> Packet {
    let unique = hub.unique(queue, &job.unique, &job.data, DEFAULT_TTR).moved(Kind::Ready);
    let name = if Unique::read(&job.unique).is_some() { unique.to_string() } else { job.unique.clone() };
    hub.named_job(queue, &unique, &name, Duration::ZERO, job.data.clone())
}

impl Hub {
    /// What follows a guard that is due: nothing if its task is not running, itself again if the lease goes on, and the
    /// task if the lease is over.
    async fn guard_is_due(&self, server: &Server, queue: &Queue, guard: &Job) -> Result<Option<Packet>> {
        let Some((unique, body)) = unwrap(&guard.data) else { return Ok(None) };
        let session = server.session().await?;
        let of_task = status_of(&session, &unique).await?;
        if !of_task.known || !of_task.running {
            return Ok(None);
        }
        let again = |due: u64| {
            let name = other_guard(&guard.unique);
            Some(submit_at(due.min(self.second_after(HOP)) + 1, &queue.functions.guard, &name, wrap(&unique, &body)))
        };
        match self.lease_of(&of_task) {
            Some(until) if until > self.second_after(Duration::ZERO) - 1 => return Ok(again(until)),
            None if !is_second(&guard.unique) => return Ok(again(self.second_after(MOMENT))),
            _ => {}
        }
        self.take_over(server, queue, &unique, body).await?;
        Ok(None)
    }

    /// Puts a copy in the place of a task whose worker is frozen, and sees to it that the task does not come back when
    /// that worker ends.
    async fn take_over(&self, server: &Server, queue: &Queue, unique: &str, body: Bytes) -> Result<()> {
        let next = self.unique(queue, unique, &body, DEFAULT_TTR).after_loss();
        let copy = self.job(queue, &next, Duration::ZERO, body);
        // The old one is counted as running until its worker goes on or ends.
        let mark = late_mark(self.second_after(MOMENT), queue, unique);
        self.put(server, vec![copy, mark]).await.into_iter().collect::<Result<Vec<_>>>()?;
        tracing::info!(queue = queue.name.as_str(), task = %next.id, "a task's lease has ended and its worker says nothing: it is ready again");
        self.cancel(server, queue.functions.ready.as_str(), unique).await
    }

    /// What follows a mark of a task whose place was taken: itself again while the frozen worker has it.
    async fn late_is_due(&self, server: &Server, queue: &Queue, mark: &Job) -> Result<Option<Packet>> {
        let unique = String::from_utf8_lossy(&mark.data).into_owned();
        let running = status_of(&*server.session().await?, &unique).await?.running;
        Ok(running.then(|| late_mark(self.second_after(STILL), queue, &unique)))
    }

    /// Cancels a job by its unique id. The server cancels by handle only, and tells the handle to who submits the same
    /// job again; if it is gone, what is cancelled is that second one.
    pub(crate) async fn cancel(&self, server: &Server, function: &str, unique: &str) -> Result<()> {
        let session = server.session().await?;
        let probe = submit(crate::names::Band::Low, function, unique, Bytes::from_static(PROBE));
        match session.call(vec![probe]).await?.as_slice() {
            [Reply::Created(handle)] => session.cancel(std::slice::from_ref(handle)).await,
            [other] => Err(error::unexpected(other, "SUBMIT_JOB")),
            _ => Err(error::closed()),
        }
    }

    /// Until which second a job is leased, if its worker has noted it.
    fn lease_of(&self, status: &Status) -> Option<u64> {
        Some(u64::from(status.until)).filter(|until| *until > 0).map(|until| until + LEASE_EPOCH)
    }
}

/// Seconds are noted from here on: the server reads numbers of up to 31 bits.
pub(crate) const LEASE_EPOCH: u64 = 1_600_000_000;

fn late_mark(due: u64, queue: &Queue, unique: &str) -> Packet {
    submit_at(due, &queue.functions.late, &late(), Bytes::copy_from_slice(unique.as_bytes()))
}

async fn status_of(session: &Session, unique: &str) -> Result<Status> {
    match session.call(vec![status(unique)]).await?.as_slice() {
        [Reply::Status(status)] => Ok(*status),
        _ => Err(Error::unavailable("the job server does not know its own jobs")),
    }
}

fn is_second(guard: &str) -> bool {
    Unique::read(guard).map_or(guard.ends_with(".k"), |unique| unique.kind == Kind::NextGuard)
}

/// The unique id of the guard that follows a guard.
fn other_guard(guard: &str) -> String {
    match Unique::read(guard) {
        Some(unique) if unique.kind == Kind::Guard => unique.moved(Kind::NextGuard).to_string(),
        Some(unique) => unique.moved(Kind::Guard).to_string(),
        None => match guard.strip_suffix(".g") {
            Some(stem) => format!("{stem}.k"),
            None => format!("{}.g", guard.trim_end_matches(".k")),
        },
    }
}

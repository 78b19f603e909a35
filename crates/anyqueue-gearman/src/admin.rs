//! The operator's verbs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    Admin, Error, ErrorKind, Figure, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which, async_trait,
};
use bytes::Bytes;

use crate::broker::Gearman;
use crate::error;
use crate::hub::{Hub, Queue};
use crate::names::{Band, Kind, PROBE, Unique};
use crate::packet::{Reply, status, submit};
use crate::server::Server;
use crate::walk::{Walk, peeked};

/// So many jobs are asked for or cancelled at once.
const PART: usize = 64;

/// Up to so many delayed tasks, and so many jobs in all, are looked through for cancelled ones to be counted.
const FEW: u64 = 1000;
const FEW_IN_ALL: u64 = 100_000;

/// A waiting job, found by its unique id.
struct Found {
    unique: Unique,
    handle: String,
    running: bool,
}

impl Gearman {
    async fn on<T>(&self, queue: &QueueName, verb: &'static str, act: impl AsyncFnOnce(&Hub, &Queue) -> Result<T>) -> Result<T> {
        let done = async {
            self.hub.begin()?;
            act(&self.hub, &self.hub.queue(queue)).await
        };
        done.await.map_err(|e| e.during(verb).with("queue", queue))
    }
}

/// Does it also if who asked for it goes away: half of a pause is none, or two.
async fn to_the_end(hub: &Hub, verb: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    hub.runtime.spawn(verb).await.unwrap_or_else(|_| Err(error::closed().effect_unknown()))
}

async fn stats(hub: &Hub, queue: &Queue) -> Result<Stats> {
    let live = hub.live().await?;
    let mut listed = 0;
    let (mut ready, mut reserved, mut late, mut delayed, mut held) = (0_u64, 0_u64, 0, 0, 0);
    for server in &live {
        let status = server.session().await?.status().await?;
        let all: u64 = status.iter().map(|of| of.total).sum();
        for of in status {
            let functions = &queue.functions;
            if of.function == functions.ready {
                ready += of.total.saturating_sub(of.running);
                reserved += of.running;
            } else if of.function == functions.late {
                late += of.total;
            } else if of.function == functions.delay {
                delayed += of.total;
                let few = of.total > 0 && of.total <= FEW && all <= FEW_IN_ALL;
                listed += if few { cancelled_of(server, queue, of.total).await? } else { 0 };
            } else if of.function == functions.held {
                held += of.total;
            }
        }
    }
    let whole = live.len() == hub.servers.len();
    let exact = |n| if whole { Figure::Exact(n) } else { Figure::AtLeast(n) };
    Ok(Stats {
        // Cancelled jobs are counted until they would have been given out; of many nobody looks which ones those are.
        ready: Figure::Approximate(ready),
        delayed: Figure::Approximate(delayed.saturating_sub(listed)),
        // Those of frozen workers are counted by the server though others have their places.
        reserved: Figure::Approximate(reserved.saturating_sub(late)),
        held: exact(held),
        oldest: Figure::Unknown,
    })
}

/// How many of the delayed jobs that a server counts are cancelled.
async fn cancelled_of(server: &Arc<Server>, queue: &Queue, counted: u64) -> Result<u64> {
    if server.session().await?.cancelled().await?.is_empty() {
        return Ok(0);
    }
    let there = find(server, queue, |unique| unique.kind == Kind::Delayed).await?;
    Ok(counted.saturating_sub(there.len() as u64))
}

async fn peek(hub: &Hub, queue: &Queue, state: State, limit: usize) -> Result<Vec<Peeked>> {
    let mut all = Vec::new();
    match state {
        State::Held if limit > 0 => all = hub.page(queue, None, limit).await?.tasks,
        State::Ready => {
            for server in hub.live().await? {
                if all.len() < limit {
                    let walk = Walk::start(server, &queue.functions.ready, limit - all.len()).await?;
                    all.extend(walk.jobs.iter().map(|job| peeked(job, state)));
                    walk.end().await?;
                }
            }
        }
        State::Held => {}
        State::Delayed | State::Reserved => {
            let text = format!("a job server shows nobody {state} tasks; `stats` counts them");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    Ok(all)
}

/// Finds ready and delayed tasks of a queue. The server lists the unique ids of all jobs, tells a handle to who submits a
/// job again, and says by handle which ones are cancelled already.
async fn find(server: &Arc<Server>, queue: &Queue, wanted: impl Fn(&Unique) -> bool) -> Result<Vec<Found>> {
    let session = server.session().await?;
    let own = |unique: &Unique| queue.functions.owns(unique) && matches!(unique.kind, Kind::Ready | Kind::Delayed);
    let uniques = session.uniques().await?.into_iter().filter_map(|text| Unique::read(&text));
    let uniques: Vec<Unique> = uniques.filter(|unique| own(unique) && wanted(unique)).collect();
    let mut found = Vec::new();
    for part in uniques.chunks(PART) {
        let asked = session.call(part.iter().map(|unique| status(&unique.to_string())).collect()).await?;
        let known: Vec<_> = part.iter().zip(asked).filter_map(known).collect();
        let probe = |(unique, _): &(Unique, bool)| {
            submit(Band::Low, queue.functions.of(unique.kind), &unique.to_string(), Bytes::from_static(PROBE))
        };
        let handles = session.call(known.iter().map(probe).collect()).await?;
        for ((unique, running), reply) in known.into_iter().zip(handles) {
            match reply {
                Reply::Created(handle) => found.push(Found { unique, handle, running }),
                other => return Err(error::unexpected(&other, "SUBMIT_JOB")),
            }
        }
    }
    if !found.is_empty() {
        let cancelled = session.cancelled().await?;
        found.retain(|job| !cancelled.contains(&job.handle));
    }
    Ok(found)
}

fn known((unique, reply): (&Unique, Reply)) -> Option<(Unique, bool)> {
    match reply {
        Reply::Status(status) if status.known => Some((unique.clone(), status.running)),
        _ => None,
    }
}

async fn cancel(server: &Arc<Server>, found: &[&Found]) -> Result<()> {
    let (session, handles) = (server.session().await?, found.iter().map(|job| job.handle.clone()).collect::<Vec<_>>());
    for part in handles.chunks(PART) {
        session.cancel(part.to_vec()).await?;
    }
    Ok(())
}

fn waiting(found: &[Found]) -> Vec<&Found> {
    found.iter().filter(|job| !job.running).collect()
}

async fn delete(hub: &Hub, queue: &Queue, ids: &[TaskId]) -> Result<HashMap<TaskId, Result<()>>> {
    let (mut answers, wanted) = (HashMap::new(), ids.iter().copied().collect::<HashSet<_>>());
    for server in hub.live().await? {
        let mut found = find(server, queue, |unique| wanted.contains(&unique.id)).await?;
        cancel(server, &waiting(&found)).await?;
        if found.iter().any(|job| job.unique.kind == Kind::Delayed) {
            // One that fell due meanwhile is in the queue by now, and what was cancelled is what was left of it.
            let moved = |unique: &Unique| unique.kind == Kind::Ready && wanted.contains(&unique.id);
            let moved = find(server, queue, moved).await?;
            cancel(server, &waiting(&moved)).await?;
            found.retain(|job| moved.iter().all(|other| other.unique.id != job.unique.id));
            found.extend(moved);
        }
        let (running, waiting): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|job| job.running);
        let busy = || Error::new(ErrorKind::Busy, "the task is reserved; let its worker end first");
        answers.extend(running.iter().map(|job| (job.unique.id, Err(busy()))));
        answers.extend(waiting.iter().map(|job| (job.unique.id, Ok(()))));
        let missing: Vec<TaskId> = wanted.iter().filter(|id| !answers.contains_key(id)).copied().collect();
        if !missing.is_empty() {
            answers.extend(hub.delete_held(server, queue, &missing).await?.into_iter().map(|id| (id, Ok(()))));
        }
    }
    Ok(answers)
}

async fn purge(hub: &Hub, queue: &Queue, states: &[State]) -> Result<u64> {
    let mut purged = 0;
    for server in hub.live().await? {
        if states.contains(&State::Ready) {
            purged += hub.empty(server, &queue.functions.ready).await?;
        }
        if states.contains(&State::Held) {
            let _alone = queue.walking.lock().await;
            purged += hub.empty(server, &queue.functions.held).await?;
        }
        if states.contains(&State::Delayed) {
            let found = find(server, queue, |unique| unique.kind == Kind::Delayed).await?;
            cancel(server, &found.iter().collect::<Vec<_>>()).await?;
            purged += found.len() as u64;
        }
    }
    Ok(purged)
}

#[async_trait]
impl Admin for Gearman {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.on(queue, "stats", async |hub, queue| stats(hub, queue).await).await
    }

    async fn info(&self, queue: &QueueName, _: TaskId) -> Result<Option<TaskInfo>> {
        let text = "facts of one task by id need a task log: a job server tells none";
        self.on(queue, "info", async |_, _| Err(Error::new(ErrorKind::Unsupported, text))).await
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        self.on(queue, "peek", async |hub, queue| peek(hub, queue, state, limit).await).await
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        self.on(queue, "held", async |hub, queue| hub.page(queue, after, limit).await).await
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        if *which == Which::First(0) {
            return Ok(0);
        }
        self.on(queue, "kick", async |hub, queue| hub.kick(queue, which).await).await
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let gone = || Error::new(ErrorKind::NotFound, "there is no such task").during("delete").with("queue", queue);
        match self.on(queue, "delete", async |hub, queue| delete(hub, queue, ids).await).await {
            Ok(mut answers) => ids.iter().map(|id| answers.remove(id).unwrap_or_else(|| Err(gone()))).collect(),
            Err(e) => ids.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        self.on(queue, "purge", async |hub, queue| purge(hub, queue, states).await).await
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        self.on(queue, "pause", async |hub, queue| {
            let (own, queue) = (self.hub.clone(), hub.queue(&queue.name));
            to_the_end(hub, async move { own.pause(&queue, time).await }).await
        })
        .await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.on(queue, "resume", async |hub, queue| {
            let (own, queue) = (self.hub.clone(), hub.queue(&queue.name));
            to_the_end(hub, async move { own.resume(&queue).await }).await
        })
        .await
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.on(queue, "paused", async |hub, queue| hub.paused(queue).await).await
    }
}

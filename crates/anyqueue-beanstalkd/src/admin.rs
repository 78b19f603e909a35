//! The operator's verbs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::{
    Admin, Error, ErrorKind, Figure, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which, async_trait,
};

use crate::broker::Beanstalkd;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::tubes::Tubes;
use crate::walk::{Counts, Found, Walk};
use crate::wire::{Command, JobStats, Reply};

/// Jobs that are removed at once.
const PART: u64 = 256;

/// By how much a job may be older or younger than its task's id says, and still be the one that was sent first.
const SAME: Duration = Duration::from_secs(3);

impl Beanstalkd {
    async fn on<T>(
        &self,
        queue: &QueueName,
        verb: &'static str,
        act: impl AsyncFnOnce(&Arc<Hub>, &Arc<Tubes>) -> Result<T>,
    ) -> Result<T> {
        let done = async {
            self.begin()?;
            act(&self.hub, &self.hub.tubes(queue)).await
        };
        done.await.map_err(|e| e.during(verb).with("queue", queue))
    }
}

async fn stats(hub: &Hub, tubes: &Tubes) -> Result<Stats> {
    let live = hub.live().await?;
    let (mut sum, mut oldest) = (Counts::default(), 0);
    for (_, link) in &live {
        let counts = hub.counts(link, tubes).await?;
        sum = Counts { open: sum.open.plus(counts.open), companion: sum.companion.saturating_add(counts.companion) };
        oldest = oldest.max(age_of_next(hub, link, tubes).await?);
    }
    let whole = live.len() == hub.servers.len();
    let figure = |state| if whole { Figure::Exact(sum.of(Some(state))) } else { Figure::AtLeast(sum.of(Some(state))) };
    Ok(Stats {
        ready: figure(State::Ready),
        delayed: figure(State::Delayed),
        reserved: figure(State::Reserved),
        held: figure(State::Held),
        oldest: Figure::Approximate(oldest),
    })
}

/// The age of the ready tasks that come next, the oldest of them: the server tells no other.
async fn age_of_next(hub: &Hub, link: &Link, tubes: &Tubes) -> Result<u64> {
    let (mut first, mut facts) = (Request::default(), Request::default());
    for tube in tubes.open() {
        first.push_to(tube, &Command::PeekReady);
    }
    for reply in hub.call(link, first).await? {
        if let Reply::Found(id, _) = reply {
            facts.push(&Command::StatsJob(id));
        }
    }
    let age = |reply: &Reply| match reply {
        Reply::Ok(body) => JobStats::read(body).map(|job| job.age),
        _ => None,
    };
    Ok(hub.call(link, facts).await?.iter().filter_map(age).max().unwrap_or_default())
}

async fn peek(hub: &Hub, tubes: &Tubes, state: State, limit: usize) -> Result<Vec<Peeked>> {
    if state == State::Held || limit == 0 {
        return if limit == 0 { Ok(Vec::new()) } else { Ok(hub.page(tubes, None, limit).await?.tasks) };
    }
    let (live, missing) = hub.live_of_all().await?;
    let mut all: Vec<Peeked> = Vec::new();
    for (server, link) in live {
        let place = |job: &JobStats<'_>| {
            Some(if state == State::Ready { (u64::from(job.priority), job.id) } else { (job.time_left, job.id) })
        };
        let seen = Walk::start(hub, server, &link, tubes, Some(state)).await?.first(state, limit, place).await?;
        all.extend(hub.bodies(&link, seen).await?.into_iter().map(|found| hub.peeked(found)));
    }
    // Each server's are in order; of several servers' the more urgent or sooner ones come first.
    all.sort_by_key(|task| if state == State::Ready { (task.native.priority, None) } else { (None, task.remaining) });
    all.truncate(limit);
    if all.is_empty() { missing.map(|()| all) } else { Ok(all) }
}

fn facts(hub: &Hub, tubes: &Tubes, id: TaskId, found: Found) -> Option<TaskInfo> {
    let stats = found.seen.stats.clone();
    let (state, job) = (found.seen.state, JobStats::read(&stats)?);
    let task = hub.read(tubes, &hub.peeked(found));
    // A task that was retried, held or kicked is another job by now, whose counts are not the task's.
    let wire = &task.wire;
    let untouched = wire.failed == 0 && wire.crashed == 0 && wire.held.is_none() && !wire.probation;
    let own = untouched && sent_at(id).is_none_or(|sent| is_near(sent, hub.clock.wall(), job.age));
    let count = |n| Some(n).filter(|_| own);
    Some(TaskInfo {
        queue: tubes.queue.as_str().to_owned(),
        state: Some(state),
        priority: Some(task.priority),
        age: Some(job.age),
        delay: Some(job.delay),
        ttr: Some(job.ttr),
        expiration: Some(job.time_left).filter(|_| matches!(state, State::Delayed | State::Reserved)).or(Some(0)),
        reserves: count(job.reserves),
        timeouts: count(job.timeouts),
        releases: count(job.releases),
        holds: count(job.buries),
        unholds: count(job.kicks),
    })
}

/// When a task was sent, as its id says: the first 48 bits of a UUID of version 7 are milliseconds since 1970.
fn sent_at(id: TaskId) -> Option<SystemTime> {
    let bytes = id.as_bytes();
    let millis = bytes[..6].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    (bytes[6] >> 4 == 7).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
}

fn is_near(sent: SystemTime, now: SystemTime, age: u64) -> bool {
    let since = now.duration_since(sent).unwrap_or_default();
    since.abs_diff(Duration::from_secs(age)) <= SAME
}

async fn delete(hub: &Hub, tubes: &Tubes, ids: &[TaskId]) -> Result<Vec<Result<()>>> {
    let mut found: HashMap<TaskId, (Arc<Link>, Found)> = HashMap::new();
    let (live, mut unasked) = hub.live_of_all().await?;
    for (server, link) in live {
        let missing: HashSet<TaskId> = ids.iter().filter(|id| !found.contains_key(id)).copied().collect();
        match hub.find(server, &link, tubes, missing).await {
            Ok(jobs) => found.extend(jobs.into_iter().map(|(id, job)| (id, (link.clone(), job)))),
            // It may know those that are found nowhere else.
            Err(e) => unasked = Err(e),
        }
    }
    let busy = |id| Error::new(ErrorKind::Busy, format!("task {id} is reserved by a worker; delete it once its lease has ended"));
    let missing = |id| match &unasked {
        Ok(()) => Error::new(ErrorKind::NotFound, format!("there is no task {id}")),
        Err(e) => e.duplicate(),
    };
    let mut answers = Vec::with_capacity(ids.len());
    for id in ids {
        let answer = match found.remove(id) {
            None => Err(missing(id)),
            Some((_, job)) if job.seen.state == State::Reserved => Err(busy(id)),
            Some((link, job)) => match hub.call(&link, Request::of(&Command::Delete(job.seen.id))).await {
                Ok(replies) if matches!(replies.as_slice(), [Reply::Deleted]) => Ok(()),
                // It was there a moment ago.
                Ok(_) => Err(busy(id)),
                Err(e) => Err(e),
            },
        };
        answers.push(answer.map_err(|e| e.during("delete").with("queue", &tubes.queue)));
    }
    Ok(answers)
}

async fn purge(hub: &Hub, tubes: &Tubes, states: &[State]) -> Result<u64> {
    let (live, missing) = hub.live_of_all().await?;
    let mut removed = 0;
    for (server, link) in live {
        let counts = hub.count(&link, tubes.all()).await?;
        for (tube, count) in tubes.all().zip(&counts) {
            let companion = *tube == tubes.held;
            let wanted = |state| states.contains(&if companion { State::Held } else { state });
            if wanted(State::Ready) && count.ready > 0 {
                let own = server.connect().await?;
                let drained = drain(hub, &own, tube, count.ready).await?;
                // A paused tube gives nothing away, but its jobs can be deleted.
                let left = count.ready.saturating_sub(drained);
                removed += drained + hub.each_first(&link, tube, &Command::PeekReady, Command::Delete, left).await?;
            }
            if wanted(State::Delayed) {
                removed += hub.each_first(&link, tube, &Command::PeekDelayed, Command::Delete, count.delayed).await?;
            }
            if wanted(State::Held) {
                removed += hub.each_first(&link, tube, &Command::PeekBuried, Command::Delete, count.buried).await?;
            }
        }
    }
    if removed == 0 { missing.map(|()| 0) } else { Ok(removed) }
}

async fn drain(hub: &Hub, own: &Link, tube: &crate::tubes::Tube, most: u64) -> Result<u64> {
    let mut removed = 0;
    while removed < most {
        let jobs = hub.reserve_from(own, tube, PART.min(most - removed)).await?;
        let request = Request::all(jobs.iter().map(|(id, _)| Command::Delete(*id)));
        if request.is_empty() {
            break;
        }
        removed += request.len() as u64;
        hub.call(own, request).await?;
    }
    Ok(removed)
}

#[async_trait]
impl Admin for Beanstalkd {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.on(queue, "stats", async |hub, tubes| stats(hub, tubes).await).await
    }

    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>> {
        self.on(queue, "info", async |hub, tubes| {
            let (live, mut unasked) = hub.live_of_all().await?;
            for (server, link) in live {
                match hub.find(server, &link, tubes, HashSet::from([id])).await {
                    Err(e) => unasked = Err(e),
                    Ok(mut found) => {
                        if let Some(found) = found.remove(&id) {
                            return Ok(facts(hub, tubes, id, found));
                        }
                    }
                }
            }
            unasked.map(|()| None)
        })
        .await
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        self.on(queue, "peek", async |hub, tubes| peek(hub, tubes, state, limit).await).await
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        self.on(queue, "held", async |hub, tubes| hub.page(tubes, after, limit).await).await
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        self.on(queue, "kick", async |hub, tubes| hub.kick(tubes, which).await).await
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let answers = self.on(queue, "delete", async |hub, tubes| delete(hub, tubes, ids).await).await;
        answers.unwrap_or_else(|e| ids.iter().map(|_| Err(e.duplicate())).collect())
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        self.on(queue, "purge", async |hub, tubes| purge(hub, tubes, states).await).await
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        self.on(queue, "pause", async |hub, tubes| hub.pause(tubes, time).await).await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.on(queue, "resume", async |hub, tubes| hub.resume(tubes).await).await
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.on(queue, "paused", async |hub, tubes| hub.paused(tubes).await).await
    }
}

//! Looking at jobs: a job server shows a job's data to the worker that gets it, and to nobody else. So what is to be seen
//! is reserved on a connection of its own and given back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{NativeFacts, Page, Peeked, Result, State, TaskId, Which, Wire, time::DEFAULT_TTR};
use bytes::Bytes;
use gearman::protocol::Packet;

use crate::error;
use crate::hub::{Hub, Queue};
use crate::link::Link;
use crate::mover::assigned;
use crate::names::{Kind, PROBE, Unique};
use crate::packet::{Job, can_do, cant_do, complete, echo, grab};
use crate::server::Server;

/// So many jobs are grabbed at once.
const PART: usize = 64;

/// How often, and how long each time, somebody else who walks is waited for.
const TRIES: u32 = 40;
const BETWEEN: Duration = Duration::from_millis(25);

/// Jobs that are reserved to be looked at. Dropped, it gives them back.
pub(crate) struct Walk {
    link: Arc<Link>,
    function: String,
    pub(crate) jobs: Vec<Job>,
}

impl Walk {
    /// Reserves up to so many jobs of a function.
    pub(crate) async fn start(server: &Arc<Server>, function: &str, most: usize) -> Result<Self> {
        let link = server.connect("anyqueue:look").await?;
        let (mut jobs, mut announce) = (Vec::new(), Some(can_do(function)));
        while jobs.len() < most {
            let count = PART.min(most - jobs.len());
            let packets: Vec<Packet> = announce.take().into_iter().chain(vec![grab(); count]).collect();
            let got: Vec<Job> = link.call(packets).await?.replies.into_iter().filter_map(assigned).collect();
            let all = got.len() == count;
            jobs.extend(got);
            if !all {
                break;
            }
        }
        let mut walk = Self { link, function: function.to_owned(), jobs };
        let probes: Vec<Job> = walk.jobs.extract_if(.., |job| job.data == PROBE).collect();
        walk.remove(&probes).await?;
        Ok(walk)
    }

    /// Removes some of the jobs.
    pub(crate) async fn remove<'j>(&self, jobs: impl IntoIterator<Item = &'j Job>) -> Result<()> {
        let ends: Vec<Packet> = jobs.into_iter().map(|job| complete(&job.handle)).collect();
        for part in ends.chunks(PART) {
            self.link.call(part.iter().cloned().chain([echo()]).collect()).await?;
        }
        Ok(())
    }

    /// Gives the rest back, and waits until it is.
    pub(crate) async fn end(self) -> Result<()> {
        let ended = self.link.call(vec![cant_do(&self.function), echo()]).await;
        self.link.close(&error::closed());
        ended.map(drop)
    }
}

/// Whether two held tasks of one id are one task. Other clients may use a unique id again, and our id is made from it.
fn is_same(one: &Bytes, other: &Bytes) -> bool {
    match (Wire::read(one), Wire::read(other)) {
        (Ok(one), Ok(other)) => (one.task, one.store, one.data) == (other.task, other.store, other.data),
        _ => one == other,
    }
}

fn made(job: &Job) -> u64 {
    Unique::read(&job.unique).map_or(0, |unique| unique.made)
}

pub(crate) fn peeked(job: &Job, state: State) -> Peeked {
    let native = NativeFacts { id: Some(job.unique.as_str().into()), ..NativeFacts::default() };
    Peeked { raw: job.data.clone(), native, state, remaining: None }
}

impl Hub {
    /// All held tasks of one server, longest held first.
    async fn walk_held(&self, server: &Arc<Server>, queue: &Queue) -> Result<Walk> {
        for _ in 0..TRIES {
            let status = server.session().await?.status().await?;
            if status.iter().all(|of| of.function != queue.functions.held || of.running == 0) {
                break;
            }
            // Another process has some of them reserved to look at them.
            tokio::time::sleep(BETWEEN).await;
        }
        let mut walk = Walk::start(server, &queue.functions.held, usize::MAX).await?;
        walk.jobs.sort_by_key(made);
        // A worker that was killed while it held a task has left it in two places, and the next one held it again.
        let mut known: HashMap<TaskId, Vec<Bytes>> = HashMap::new();
        let is_again = |job: &mut Job| {
            let Some(unique) = Unique::read(&job.unique) else { return false };
            let bodies = known.entry(unique.id).or_default();
            let again = bodies.iter().any(|body| is_same(body, &job.data));
            bodies.push(job.data.clone());
            again
        };
        let again: Vec<Job> = walk.jobs.extract_if(.., is_again).collect();
        walk.remove(&again).await?;
        Ok(walk)
    }

    pub(crate) async fn page(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page> {
        let (first, last) = place(after)?;
        let _alone = queue.walking.lock().await;
        let mut page = Page::default();
        for server in self.live().await?.into_iter().filter(|server| server.place >= first) {
            let walk = self.walk_held(server, queue).await?;
            let after = if server.place == first { last } else { 0 };
            let mut seen = walk.jobs.iter().filter(|job| made(job) > after);
            let mut reached = after;
            for job in seen.by_ref().take(limit - page.tasks.len()) {
                reached = made(job);
                page.tasks.push(peeked(job, State::Held));
            }
            let more = seen.next().is_some();
            walk.end().await?;
            if more {
                page.next = Some(format!("{}/{reached}", server.place));
                break;
            }
        }
        Ok(page)
    }

    pub(crate) async fn kick(&self, queue: &Queue, which: &Which) -> Result<u64> {
        let _alone = queue.walking.lock().await;
        let mut kicked = 0;
        for server in self.live().await? {
            let walk = self.walk_held(server, queue).await?;
            let jobs: Vec<&Job> = match which {
                Which::Ids(ids) => self.of_ids(queue, &walk.jobs, ids).collect(),
                Which::First(most) => walk.jobs.iter().take((*most - kicked).try_into().unwrap_or(usize::MAX)).collect(),
                Which::All => walk.jobs.iter().collect(),
            };
            let packets = jobs.iter().map(|job| self.kicked(queue, job)).collect();
            let put = self.put(server, packets).await;
            let taken: Vec<&Job> = jobs.iter().zip(&put).filter(|(_, put)| put.is_ok()).map(|(job, _)| *job).collect();
            walk.remove(taken.iter().copied()).await?;
            kicked += taken.len() as u64;
            walk.end().await?;
            put.into_iter().collect::<Result<Vec<_>>>()?;
        }
        Ok(kicked)
    }

    /// A held task in its queue, with the priority and TTR that it carries.
    fn kicked(&self, queue: &Queue, job: &Job) -> Packet {
        let task = self.read(queue, &job.unique, &job.data, DEFAULT_TTR);
        let mut unique = Unique::sent(&queue.functions, task.id, Kind::Ready, queue.band(task.priority), task.ttr);
        unique.made = made(job);
        self.job(queue, &unique, Duration::ZERO, job.data.clone())
    }

    fn of_ids<'j>(&self, queue: &Queue, jobs: &'j [Job], ids: &[TaskId]) -> impl Iterator<Item = &'j Job> {
        let ids: HashSet<TaskId> = ids.iter().copied().collect();
        let own = |job: &Job| self.read(queue, &job.unique, &job.data, DEFAULT_TTR).id;
        let found: Vec<_> = jobs.iter().filter(|job| ids.contains(&own(job))).collect();
        found.into_iter()
    }

    /// Removes held tasks of these ids from one server: those that were there.
    pub(crate) async fn delete_held(&self, server: &Arc<Server>, queue: &Queue, ids: &[TaskId]) -> Result<HashSet<TaskId>> {
        let _alone = queue.walking.lock().await;
        let walk = self.walk_held(server, queue).await?;
        let jobs: Vec<&Job> = self.of_ids(queue, &walk.jobs, ids).collect();
        walk.remove(jobs.iter().copied()).await?;
        let removed = jobs.iter().map(|job| self.read(queue, &job.unique, &job.data, DEFAULT_TTR).id).collect();
        walk.end().await?;
        Ok(removed)
    }

    /// Removes all jobs of a function that nobody has reserved.
    pub(crate) async fn empty(&self, server: &Arc<Server>, function: &str) -> Result<u64> {
        let walk = Walk::start(server, function, usize::MAX).await?;
        walk.remove(&walk.jobs).await?;
        let count = walk.jobs.len() as u64;
        walk.end().await?;
        Ok(count)
    }
}

fn place(after: Option<&str>) -> Result<(usize, u64)> {
    let Some(text) = after else { return Ok((0, 0)) };
    let parts = text.split_once('/').and_then(|(server, made)| Some((server.parse().ok()?, made.parse().ok()?)));
    parts.ok_or_else(|| {
        anyqueue_core::Error::invalid(format!("`{text}` is no place in the list of held tasks; begin without one"))
    })
}

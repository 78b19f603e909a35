//! Looking at jobs one number after the other.
//!
//! beanstalkd shows the first job of a state and any job by its number, and lists nothing. Numbers are given out in
//! order, so all jobs are found between the newest number and 1; a walk ends as soon as it has seen as many as there are.
//! It reserves nothing: whoever walks may die at any moment, and no job has changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyqueue_core::{Defaults, Error, Incoming, NativeFacts, Peeked, Result, State, TaskId};
use bytes::Bytes;

use crate::error;
use crate::first::First;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::{Tube, Tubes};
use crate::wire::{Command, JobState, JobStats, Reply, Yaml};

/// Numbers asked for at once.
const PART: u64 = 1024;

/// After so many parts without a job of the queue its jobs are counted anew: those that were to come may be gone.
const RECOUNT: u32 = 4;

/// Bodies asked for at once by who looks for a task: they may be large.
const BODIES: usize = 64;

/// The tube of the job that is put, and deleted at once, to learn the newest number.
const PROBE: &str = "anyqueue;newest";

/// A job as a walk sees it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) state: State,
    pub(crate) native: NativeFacts,
    /// What the server said of it.
    pub(crate) stats: Bytes,
    /// In the companion tube of held tasks.
    pub(crate) in_held: bool,
}

/// A job with its body.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) seen: Seen,
    pub(crate) body: Bytes,
}

/// How many jobs a tube has, by state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) ready: u64,
    pub(crate) reserved: u64,
    pub(crate) delayed: u64,
    pub(crate) buried: u64,
}

impl Count {
    pub(crate) fn all(self) -> u64 {
        let waiting = self.ready.saturating_add(self.delayed);
        waiting.saturating_add(self.reserved).saturating_add(self.buried)
    }

    /// The sums of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            ready: self.ready.saturating_add(other.ready),
            reserved: self.reserved.saturating_add(other.reserved),
            delayed: self.delayed.saturating_add(other.delayed),
            buried: self.buried.saturating_add(other.buried),
        }
    }
}

/// How many jobs a queue has on one server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// In the tubes that workers take tasks from.
    pub(crate) open: Count,
    /// In the companion tube, where every job is held.
    pub(crate) companion: u64,
}

impl Counts {
    /// How many tasks are in a state, or in any.
    pub(crate) fn of(self, state: Option<State>) -> u64 {
        match state {
            Some(State::Ready) => self.open.ready,
            Some(State::Reserved) => self.open.reserved,
            Some(State::Delayed) => self.open.delayed,
            Some(State::Held) => self.companion.saturating_add(self.open.buried),
            None => self.open.all().saturating_add(self.companion),
        }
    }
}

/// A walk over the jobs of one queue on one server, newest first.
pub(crate) struct Walk<'a> {
    hub: &'a Hub,
    server: &'a Server,
    link: Arc<Link>,
    tubes: &'a Tubes,
    /// The next number to ask for; 0 at the end.
    next: u64,
    /// Jobs of this queue that have not been seen yet.
    left: u64,
    counts: Counts,
    /// Parts since the last one with a job of the queue in it.
    barren: u32,
    /// It is over once no job is in this state any more.
    state: Option<State>,
}

impl<'a> Walk<'a> {
    /// A walk that ends once all jobs of the queue have been seen, if any is in this state.
    pub(crate) async fn start(
        hub: &'a Hub,
        server: &'a Arc<Server>,
        link: &Arc<Link>,
        tubes: &'a Tubes,
        state: Option<State>,
    ) -> Result<Self> {
        let mut counts = hub.counts(link, tubes).await?;
        let mut next = 0;
        if counts.of(state) > 0 {
            next = hub.newest(link).await?;
            // Counted anew: a job that came meanwhile, and is met first, must not stand for an older one.
            counts = hub.counts(link, tubes).await?;
        }
        // A long walk keeps nobody's sends waiting behind it.
        let link = if next > PART && counts.of(state) > 0 { server.connect().await? } else { link.clone() };
        Ok(Self { hub, server, link, tubes, next, left: counts.of(None), counts, barren: 0, state })
    }

    /// The jobs of the queue among the next numbers; `None` at the end.
    pub(crate) async fn part(&mut self) -> Result<Option<Vec<Seen>>> {
        if self.barren >= RECOUNT {
            self.recount().await?;
        }
        if self.next == 0 || self.left == 0 {
            return Ok(None);
        }
        let last = self.next.saturating_sub(PART);
        let request = Request::all((last + 1..=self.next).rev().map(Command::StatsJob));
        self.next = last;
        let mut seen = Vec::new();
        for reply in self.hub.call(&self.link, request).await? {
            if let Reply::Ok(stats) = reply
                && let Some(job) = self.hub.seen(self.server, self.tubes, stats)
            {
                self.left = self.left.saturating_sub(1);
                seen.push(job);
            }
        }
        self.barren = if seen.is_empty() { self.barren + 1 } else { 0 };
        Ok(Some(seen))
    }

    /// There are no more jobs left to see than there are jobs.
    async fn recount(&mut self) -> Result<()> {
        let counts = self.hub.counts(&self.link, self.tubes).await?;
        self.barren = 0;
        self.left = if counts.of(self.state) == 0 { 0 } else { self.left.min(counts.of(None)) };
        Ok(())
    }

    /// The first jobs of the queue in one state, in the order of their places. Those without a place are left out.
    pub(crate) async fn first(
        mut self,
        state: State,
        most: usize,
        place: impl Fn(&JobStats<'_>) -> Option<(u64, u64)>,
    ) -> Result<Vec<Seen>> {
        let (mut first, mut left) = (First::new(most), self.counts.of(Some(state)));
        while left > 0 {
            let Some(part) = self.part().await? else { break };
            for job in part.into_iter().filter(|job| job.state == state) {
                left = left.saturating_sub(1);
                let at = JobStats::read(&job.stats).and_then(|stats| place(&stats));
                at.into_iter().for_each(|at| first.offer(at, job.clone()));
            }
        }
        Ok(first.into_jobs())
    }
}

impl Hub {
    /// The number of the newest job.
    async fn newest(&self, link: &Link) -> Result<u64> {
        let mut request = Request::of(&Command::Stats);
        let probe = Command::Put { priority: 0, delay: 0, ttr: 1, body: b"" };
        let place = request.push_to(&Tube::from(PROBE), &probe);
        let replies = self.call(link, request).await?;
        match (&replies[place], &replies[0]) {
            (Reply::Inserted(id), _) => {
                self.call(link, Request::of(&Command::Delete(*id))).await?;
                Ok(*id)
            }
            // A server that takes no jobs any more still says how many it took.
            (_, Reply::Ok(stats)) => Ok(Yaml::new(stats).number("total-jobs").unwrap_or_default()),
            (other, _) => Err(error::unexpected(other, "put")),
        }
    }

    /// Reads what the server said of a job, if it is one of this queue.
    fn seen(&self, server: &Server, tubes: &Tubes, stats: Bytes) -> Option<Seen> {
        let job = JobStats::read(&stats)?;
        let in_held = tubes.held.as_bytes() == job.tube;
        if !in_held && !tubes.open().any(|tube| tube.as_bytes() == job.tube) {
            return None;
        }
        let state = match job.state {
            _ if in_held => State::Held,
            JobState::Ready => State::Ready,
            JobState::Delayed => State::Delayed,
            JobState::Reserved => State::Reserved,
            JobState::Buried => State::Held,
        };
        let mut native = self.native(server, &job);
        if in_held {
            // All held tasks stand in one line; the priority that counts is in the body.
            native.priority = None;
        }
        Some(Seen { id: job.id, state, native, in_held, stats })
    }

    /// How many jobs each of these tubes has.
    pub(crate) async fn count(&self, link: &Link, tubes: impl Iterator<Item = &Tube>) -> Result<Vec<Count>> {
        let request = Request::all(tubes.map(|tube| Command::StatsTube(tube)));
        let one = |reply| match reply {
            Reply::Ok(body) => {
                let stats = Yaml::new(&body);
                let figure = |key| stats.number(key).unwrap_or_default();
                Ok(Count {
                    ready: figure("current-jobs-ready"),
                    reserved: figure("current-jobs-reserved"),
                    delayed: figure("current-jobs-delayed"),
                    buried: figure("current-jobs-buried"),
                })
            }
            Reply::NotFound => Ok(Count::default()),
            other => Err(error::unexpected(&other, "stats-tube")),
        };
        self.call(link, request).await?.into_iter().map(one).collect()
    }

    /// How many jobs a queue has on one server.
    pub(crate) async fn counts(&self, link: &Link, tubes: &Tubes) -> Result<Counts> {
        let mut counts = self.count(link, tubes.all()).await?;
        let companion = counts.pop().map_or(0, Count::all);
        Ok(Counts { open: counts.into_iter().fold(Count::default(), Count::plus), companion })
    }

    /// The bodies of jobs. One that has gone meanwhile is left out.
    pub(crate) async fn bodies(&self, link: &Link, jobs: Vec<Seen>) -> Result<Vec<Found>> {
        let request = Request::all(jobs.iter().map(|job| Command::Peek(job.id)));
        let replies = self.call(link, request).await?;
        let one = |(seen, reply)| match reply {
            Reply::Found(_, body) => Some(Found { seen, body }),
            _ => None,
        };
        Ok(jobs.into_iter().zip(replies).filter_map(one).collect())
    }

    /// A task as listings show it.
    pub(crate) fn peeked(&self, found: Found) -> Peeked {
        let left = JobStats::read(&found.seen.stats).map(|job| std::time::Duration::from_secs(job.time_left));
        let remaining = left.filter(|_| matches!(found.seen.state, State::Delayed | State::Reserved));
        Peeked { raw: found.body, native: found.seen.native, state: found.seen.state, remaining }
    }

    /// Reads a task as the facade does.
    pub(crate) fn read(&self, tubes: &Tubes, peeked: &Peeked) -> Incoming {
        Incoming::peeked(peeked, &self.config.name, tubes.queue.as_str(), Defaults::default())
    }

    /// Searches tasks of one server by their ids.
    pub(crate) async fn find(
        &self,
        server: &Arc<Server>,
        link: &Arc<Link>,
        tubes: &Tubes,
        mut ids: HashSet<TaskId>,
    ) -> Result<HashMap<TaskId, Found>, Error> {
        let (mut walk, mut found) = (Walk::start(self, server, link, tubes, None).await?, HashMap::new());
        while !ids.is_empty() {
            let Some(part) = walk.part().await? else { break };
            for some in part.chunks(BODIES) {
                for job in self.bodies(link, some.to_vec()).await? {
                    let id = self.read(tubes, &self.peeked(job.clone())).id;
                    if ids.remove(&id) {
                        found.insert(id, job);
                    }
                }
            }
        }
        Ok(found)
    }
}

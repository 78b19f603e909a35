//! Fetches from one server for one consumer, over a connection of their own: a job server cannot be asked for the jobs of
//! one function among several.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Delivery, Figure, Moment, NativeFacts, Result};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Keeping;
use crate::feed::{Bringing, Feed, Stage};
use crate::guard::Guarded;
use crate::hub::Hub;
use crate::lease::Lease;
use crate::link::Link;
use crate::mover::{LEASE_EPOCH, assigned};
use crate::names::{PROBE, Unique, guards, native_id, number};
use crate::packet::{Job, can_do, complete, echo, grab, lease, sleep};
use crate::server::Server;

/// So many jobs are asked for at once.
const MOST: usize = 64;

/// What was got at once should be guarded after this time: the leases run meanwhile, and those that are over when they are
/// guarded are of use to nobody.
const BRIEF: Duration = Duration::from_millis(200);

/// A sleeping line looks again after this time though nobody rang.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The same after an error, and while the queue is paused.
const SOON: Duration = Duration::from_millis(250);

/// What a look found.
enum Found {
    Tasks(Vec<Delivery>),
    Nothing,
    Paused,
}

/// A line that is woken this soon after it went to sleep, and finds nothing, may be woken for nothing at all.
const AT_ONCE: Duration = Duration::from_millis(50);

/// So often in a row that happens by chance. From then on the line sleeps on, longer each time.
const BY_CHANCE: u32 = 3;
const LONGEST: Duration = Duration::from_secs(1);

/// How a line waits after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// There is what was wanted: until more is.
    Taken,
    /// Until the server rings.
    Asleep,
    /// A little.
    Soon,
}

/// One line.
pub(crate) struct Line {
    hub: Weak<Hub>,
    server: Arc<Server>,
    feed: Arc<Feed>,
    link: Option<Arc<Link>>,
    /// What the last look found: as many again may be there.
    found: usize,
    /// So many are got at once, as the server's disk is fast.
    pace: usize,
    /// Jobs that we have and nobody may get yet, since their guards were not written.
    unguarded: Vec<Job>,
    /// How often in a row the server has woken us at once for nothing: with a foreign client's job for later beside one of
    /// low priority in one function it says that there is something, and gives nothing.
    for_nothing: u32,
}

impl Line {
    pub(crate) fn new(hub: &Arc<Hub>, server: Arc<Server>, feed: Arc<Feed>) -> Self {
        let hub = Arc::downgrade(hub);
        Self { hub, server, feed, link: None, found: 0, pace: MOST, unguarded: Vec::new(), for_nothing: 0 }
    }

    /// Fetches whenever somebody waits, until the consumer is closed.
    pub(crate) async fn run(mut self) {
        let mut stage = self.feed.stage.subscribe();
        loop {
            let Ok(now) = stage.wait_for(|stage| stage.waiting || stage.closed).await.map(|stage| *stage) else { return };
            let Some(hub) = self.hub.upgrade() else { return };
            if now.closed {
                return self.give_back(&hub).await;
            }
            let most = self.feed.claim(self.server.place, now.round);
            let wait = if most > 0 { self.fetch(&hub, most, now.round).await } else { Wait::Taken };
            drop(hub);
            self.rest(wait, now.round, &mut stage).await;
        }
    }

    /// Looks once.
    async fn fetch(&mut self, hub: &Arc<Hub>, most: usize, round: u64) -> Wait {
        let feed = self.feed.clone();
        let (found, bringing) = self.look(hub, &feed, most).await.map_or_else(|e| (Err(e), None), |(f, b)| (Ok(f), b));
        let (wait, found) = match found {
            Ok(Found::Tasks(tasks)) => (Wait::Taken, Ok(tasks)),
            Ok(Found::Nothing) => (Wait::Asleep, Ok(Vec::new())),
            Ok(Found::Paused) => (Wait::Soon, Ok(Vec::new())),
            Err(e) => (Wait::Soon, Err(e)),
        };
        let unused = most - found.as_ref().map_or(0, Vec::len).min(most);
        let refused = feed.end_look(self.server.place, round, unused, found);
        drop(bringing);
        if !refused.is_empty() {
            hub.take_back(refused).await;
        }
        wait
    }

    /// Waits until it is time to look again.
    async fn rest(&mut self, wait: Wait, round: u64, stage: &mut watch::Receiver<Stage>) {
        let (queue, asleep_at, taken) = (self.feed.queue.clone(), Instant::now(), wait == Wait::Taken);
        let (floor, most) = match wait {
            Wait::Asleep if self.for_nothing >= BY_CHANCE => {
                (SOON.saturating_mul(1 << (self.for_nothing - BY_CHANCE).min(2)).min(LONGEST), LOOK_AGAIN)
            }
            Wait::Asleep => (Duration::ZERO, LOOK_AGAIN),
            Wait::Taken | Wait::Soon => (Duration::ZERO, SOON),
        };
        let rung = async {
            match &self.link {
                Some(link) if wait == Wait::Asleep => {
                    link.rung().await;
                    let at_once = asleep_at.elapsed() < AT_ONCE;
                    tokio::time::sleep(floor.saturating_sub(asleep_at.elapsed())).await;
                    at_once
                }
                _ => {
                    queue.bell.notified().await;
                    false
                }
            }
        };
        let at_once = tokio::select! {
            at_once = rung => at_once,
            () = tokio::time::sleep(most) => false,
            _ = stage.wait_for(|stage| stage.round != round || stage.closed || (taken && !stage.waiting)) => false,
        };
        // A look that finds something sets it to zero.
        self.for_nothing = if at_once { self.for_nothing.saturating_add(1) } else { 0 };
    }

    /// Gives back what nobody could be given.
    async fn give_back(&mut self, hub: &Arc<Hub>) {
        let Some(link) = self.link.clone().filter(|link| !link.is_dead()) else { return };
        let (now, unguarded) = (hub.clock.now(), std::mem::take(&mut self.unguarded));
        let lease = |job: Job| {
            let unique = hub.unique(&self.feed.queue, &job, self.feed.ttr);
            self.lease(&link, job, unique, now, None)
        };
        let leases = unguarded.into_iter().map(lease).collect();
        hub.give_back(leases).await;
    }

    async fn link(&mut self) -> Result<Arc<Link>> {
        if let Some(link) = self.link.as_ref().filter(|link| !link.is_dead()) {
            return Ok(link.clone());
        }
        // The server has them again.
        self.unguarded.clear();
        let link = self.server.connect(&format!("anyqueue:{}", self.feed.queue.name)).await?;
        link.submit(vec![can_do(&self.feed.queue.functions.ready)])?;
        self.link = Some(link.clone());
        Ok(link)
    }

    async fn look<'f>(&mut self, hub: &Arc<Hub>, feed: &'f Feed, most: usize) -> Result<(Found, Option<Bringing<'f>>)> {
        let link = self.link().await?;
        // Who was asleep asks anew: a task that was sent after a pause must not be what wakes it.
        if hub.is_paused(&self.server, &self.feed.queue, self.found == 0).await? {
            return Ok((Found::Paused, None));
        }
        link.hush();
        if !self.unguarded.is_empty() {
            let (jobs, bringing) = (std::mem::take(&mut self.unguarded), feed.bring());
            return Ok((Found::Tasks(self.reserve(hub, &link, jobs, hub.clock.now()).await?), Some(bringing)));
        }
        let (asked, count) = (hub.clock.now(), most.min((self.found * 2).max(4)).min(self.pace));
        let replies = link.call(vec![grab(); count]).await?.replies;
        let mut jobs: Vec<Job> = replies.into_iter().filter_map(assigned).collect();
        self.found = jobs.len();
        let probes: Vec<_> = jobs.extract_if(.., |job| job.data == PROBE).map(|job| complete(&job.handle)).collect();
        if !probes.is_empty() {
            link.submit(probes.into_iter().chain([echo()]).collect())?;
        }
        if jobs.is_empty() {
            link.submit(vec![sleep()])?;
            return Ok((Found::Nothing, None));
        }
        self.for_nothing = 0;
        let bringing = feed.bring();
        Ok((Found::Tasks(self.reserve(hub, &link, jobs, asked).await?), Some(bringing)))
    }

    /// Makes jobs that the server gave us reservations. Nobody gets one that is not guarded: it is kept until it is, since
    /// a connection that ends takes the running tasks with it.
    async fn reserve(&mut self, hub: &Arc<Hub>, link: &Arc<Link>, jobs: Vec<Job>, asked: Moment) -> Result<Vec<Delivery>> {
        let (queue, ttr) = (&self.feed.queue, self.feed.ttr);
        let uniques: Vec<Unique> = jobs.iter().map(|job| hub.unique(queue, job, ttr)).collect();
        let jobs: Vec<(Job, Moment)> = jobs.into_iter().zip(&uniques).map(|(job, unique)| (job, asked + unique.ttr)).collect();
        let note = |(job, until): &(Job, Moment)| {
            lease(&job.handle, lease_number(hub.second_of(*until)), number(&guards(&queue.functions, job)[0]))
        };
        link.submit(jobs.iter().map(note).chain([echo()]).collect())?;
        let guarded = match queue.settings.keeping {
            Keeping::Connection => jobs.iter().map(|_| Ok(None)).collect(),
            Keeping::Guard => {
                let began = hub.clock.now();
                let guarded = hub.guard(&self.server, queue, &jobs).await;
                self.pace = pace(self.pace, jobs.len(), hub.clock.now().since(began));
                guarded.into_iter().map(|guarded| guarded.map(Some)).collect::<Vec<_>>()
            }
        };
        let (mut deliveries, mut unguarded, mut failed) = (Vec::new(), Vec::new(), None);
        for (((job, until), unique), guarded) in jobs.into_iter().zip(uniques).zip(guarded) {
            match guarded {
                Ok(guarded) => {
                    deliveries.push(self.deliver(hub, self.lease(link, job, unique, until, guarded.as_ref()), guarded))
                }
                Err(e) => (unguarded.push(job), failed.get_or_insert(e)).0,
            }
        }
        self.unguarded = unguarded;
        hub.leased.notify_one();
        match failed {
            Some(e) if deliveries.is_empty() => Err(e),
            _ => Ok(deliveries),
        }
    }

    fn lease(&self, link: &Arc<Link>, job: Job, unique: Unique, deadline: Moment, guarded: Option<&Guarded>) -> Lease {
        Lease {
            server: self.server.clone(),
            queue: self.feed.queue.clone(),
            link: link.clone(),
            number: number(&guards(&self.feed.queue.functions, &job)[0]),
            job,
            unique,
            deadline,
            guard: guarded.map(|(guard, _)| guard.clone()),
            met: guarded.is_some_and(|(_, met)| *met),
            handed_out: false,
            next: None,
            touching: 0,
        }
    }

    fn deliver(&self, hub: &Hub, reservation: Lease, guarded: Option<Guarded>) -> Delivery {
        let (unique, met) = (&reservation.unique, guarded.map(|(_, met)| met));
        let native = NativeFacts {
            id: Some(native_id(&reservation.job).into()),
            redeliveries: redeliveries(unique.lost, met),
            ttr: Some(unique.ttr),
            ..NativeFacts::default()
        };
        let (raw, lease, deadline) = (reservation.job.data.clone(), unique.ttr, reservation.deadline);
        let receipt = hub.leases().grant(reservation);
        Delivery { receipt, queue: self.feed.queue.name.clone(), raw, native, lease, deadline }
    }
}

/// How many jobs are to be got at once, after so many were guarded in so long.
fn pace(before: usize, count: usize, took: Duration) -> usize {
    match took.as_millis() {
        millis if millis > BRIEF.as_millis() => (count * BRIEF.as_millis() as usize / millis as usize).max(1),
        _ => (before * 2).min(MOST),
    }
}

/// Whether a guard was met; without guards nobody knows of workers whose connection ended.
fn redeliveries(lost: u32, met: Option<bool>) -> Figure {
    match (u64::from(lost), met) {
        (lost, Some(true)) => Figure::AtLeast(lost + 1),
        (lost, Some(false)) => Figure::Exact(lost),
        (0, None) => Figure::Unknown,
        (lost, None) => Figure::AtLeast(lost),
    }
}

/// The second until which a job is leased, as it is noted with it.
pub(crate) fn lease_number(second: u64) -> u32 {
    u32::try_from(second.saturating_sub(LEASE_EPOCH)).unwrap_or(u32::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 guards at 20 ms each take longer than the shortest lease: nobody would ever get a task.
    #[test]
    fn what_is_guarded_slowly_is_got_in_smaller_parts() {
        let each = Duration::from_millis(20);
        let now = pace(MOST, MOST, each * 64);
        assert!(each * now as u32 <= BRIEF && now > 1, "{now}");
        assert_eq!(pace(now, 1, Duration::from_secs(2)), 1);
        assert_eq!((0..7).fold(1, |pace_then, _| pace(pace_then, pace_then, Duration::from_millis(1))), MOST);
    }
}

//! Fetches from one server for one consumer, over a connection of their own: a job server cannot be asked for the jobs of
//! one function among several.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Delivery, Figure, Moment, NativeFacts, Result};

use crate::config::Keeping;
use crate::feed::{Bringing, Feed};
use crate::hub::Hub;
use crate::lease::{Guard, Lease};
use crate::link::Link;
use crate::mover::{LEASE_EPOCH, assigned};
use crate::names::{PROBE, Unique};
use crate::packet::{Job, can_do, complete, echo, grab, lease, sleep};
use crate::server::Server;

/// So many jobs are asked for at once.
const MOST: usize = 64;

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

/// One line.
pub(crate) struct Line {
    hub: Weak<Hub>,
    server: Arc<Server>,
    feed: Arc<Feed>,
    link: Option<Arc<Link>>,
    /// What the last look found: as many again may be there.
    found: usize,
}

impl Line {
    pub(crate) fn new(hub: &Arc<Hub>, server: Arc<Server>, feed: Arc<Feed>) -> Self {
        Self { hub: Arc::downgrade(hub), server, feed, link: None, found: 0 }
    }

    /// Fetches whenever somebody waits, until the consumer is closed.
    pub(crate) async fn run(mut self) {
        let mut stage = self.feed.stage.subscribe();
        loop {
            let Ok(now) = stage.wait_for(|stage| stage.waiting || stage.closed).await.map(|stage| *stage) else { return };
            let Some(hub) = self.hub.upgrade().filter(|_| !now.closed) else { return };
            let (feed, most) = (self.feed.clone(), self.feed.claim(self.server.place, now.round));
            let (found, bringing) = self.look(&hub, &feed, most).await.map_or_else(|e| (Err(e), None), |(f, b)| (Ok(f), b));
            let (wait, found) = match found {
                Ok(Found::Tasks(tasks)) => (Duration::ZERO, Ok(tasks)),
                Ok(Found::Nothing) => (LOOK_AGAIN, Ok(Vec::new())),
                Ok(Found::Paused) => (SOON, Ok(Vec::new())),
                Err(e) => (SOON, Err(e)),
            };
            let (asleep, came) = (wait == LOOK_AGAIN, wait == Duration::ZERO);
            let unused = most - found.as_ref().map_or(0, Vec::len).min(most);
            let refused = feed.end_look(self.server.place, now.round, unused, found);
            drop(bringing);
            if !refused.is_empty() {
                hub.take_back(refused).await;
            }
            drop(hub);
            let queue = self.feed.queue.clone();
            let rung = async {
                match &self.link {
                    Some(link) if asleep => link.rung().await,
                    _ => queue.bell.notified().await,
                }
            };
            tokio::select! {
                () = rung => {}
                () = tokio::time::sleep(if came { SOON } else { wait }) => {}
                _ = stage.wait_for(|stage| stage.round != now.round || stage.closed || (came && !stage.waiting)) => {}
            }
        }
    }

    async fn link(&mut self) -> Result<Arc<Link>> {
        if let Some(link) = self.link.as_ref().filter(|link| !link.is_dead()) {
            return Ok(link.clone());
        }
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
        let (asked, count) = (hub.clock.now(), most.min((self.found * 2).clamp(4, MOST)));
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
        let bringing = feed.bring();
        Ok((Found::Tasks(self.reserve(hub, &link, jobs, asked).await?), Some(bringing)))
    }

    /// Makes jobs that the server gave us reservations.
    async fn reserve(&self, hub: &Arc<Hub>, link: &Arc<Link>, jobs: Vec<Job>, asked: Moment) -> Result<Vec<Delivery>> {
        let (queue, ttr) = (&self.feed.queue, self.feed.ttr);
        let uniques: Vec<Unique> = jobs.iter().map(|job| hub.unique(queue, &job.unique, &job.data, ttr)).collect();
        let jobs: Vec<(Job, Moment)> = jobs.into_iter().zip(&uniques).map(|(job, unique)| (job, asked + unique.ttr)).collect();
        let mut notes: Vec<_> = jobs.iter().map(|(job, until)| lease(&job.handle, lease_number(hub.second_of(*until)))).collect();
        notes.push(echo());
        link.submit(notes)?;
        let guarded = match queue.settings.keeping {
            Keeping::Connection => jobs.iter().map(|_| (None, false)).collect(),
            Keeping::Guard => match hub.guard(&self.server, queue, &jobs).await {
                Ok(guarded) => guarded,
                Err(e) => {
                    // Nobody may have a task that is not guarded: the server takes them back.
                    link.close(&e);
                    return Err(e);
                }
            },
        };
        let deliveries = jobs
            .into_iter()
            .zip(uniques)
            .zip(guarded)
            .map(|(((job, until), unique), (guard, met))| self.deliver(hub, link, job, unique, until, guard, met));
        let deliveries = deliveries.collect();
        hub.leased.notify_one();
        Ok(deliveries)
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of one reservation")]
    fn deliver(
        &self,
        hub: &Hub,
        link: &Arc<Link>,
        job: Job,
        unique: Unique,
        deadline: Moment,
        guard: Option<Guard>,
        met: bool,
    ) -> Delivery {
        let queue = &self.feed.queue;
        let known = guard.is_some();
        let native = NativeFacts {
            id: Some(if job.unique.is_empty() { job.handle.as_str() } else { job.unique.as_str() }.into()),
            redeliveries: redeliveries(unique.lost, met, known),
            ttr: Some(unique.ttr),
            ..NativeFacts::default()
        };
        let (raw, lease) = (job.data.clone(), unique.ttr);
        let reservation = Lease {
            server: self.server.clone(),
            queue: queue.clone(),
            link: link.clone(),
            job,
            unique,
            deadline,
            guard,
            touching: 0,
        };
        let receipt = hub.leases().grant(reservation);
        Delivery { receipt, queue: queue.name.clone(), raw, native, lease, deadline }
    }
}

/// Without guards nobody knows of workers whose connection ended.
fn redeliveries(lost: u32, met: bool, guarded: bool) -> Figure {
    match (u64::from(lost), met, guarded) {
        (lost, true, _) => Figure::AtLeast(lost + 1),
        (lost, false, true) => Figure::Exact(lost),
        (0, false, false) => Figure::Unknown,
        (lost, false, false) => Figure::AtLeast(lost),
    }
}

/// The second until which a job is leased, as it is noted with it.
pub(crate) fn lease_number(second: u64) -> u32 {
    u32::try_from(second.saturating_sub(LEASE_EPOCH)).unwrap_or(u32::MAX >> 1)
}

//! Reserving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Consumer, Delivery, Error, Moment, Result, Settler, async_trait};

use crate::error;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::settle::BeanstalkdSettler;
use crate::wire::{Command, JobStats, Reply};

/// How long a wait lasts before servers that were down are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// By how much the server's end of a wait may be later than ours, and still be awaited.
const LATE: Duration = Duration::from_millis(250);

/// How long a look may take at the least, however short the wait is: whoever waits for tasks has no use for a longer one.
const LOOK: Duration = Duration::from_secs(1);

/// So many jobs are asked for in two parts.
const WORTH_HALVING: usize = 32;

/// Takes tasks from one queue. All I/O is in tasks of their own, so that a dropped `reserve` loses nothing.
#[derive(Debug)]
pub(crate) struct BeanstalkdConsumer {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
}

impl BeanstalkdConsumer {
    pub(crate) fn new(hub: Arc<Hub>, feed: Feed) -> Self {
        let feed = Arc::new(feed);
        hub.add_feed(feed.clone());
        Self { hub, feed }
    }

    /// Looks once, or waits until then for a look that is under way.
    async fn look(&self, max: usize, until: Moment) -> Looked {
        let looks = self.feed.looks();
        let begun = self.feed.begin_look(max);
        let seen = if begun.is_some() { Looked::Now } else { Looked::Before };
        if let Some(look) = begun {
            let hub = self.hub.clone();
            self.hub.runtime.spawn(async move {
                let _under_way = hub.settling.read().await;
                let result = fetch(&hub, &look.feed, look.asked).await;
                look.end(result);
            });
        }
        while self.feed.looks() == looks {
            if self.hub.clock.now() >= until {
                return Looked::NotYet;
            }
            self.rung(until).await;
        }
        seen
    }

    fn close(&self) -> Vec<Delivery> {
        self.hub.remove_feed(&self.feed);
        self.feed.close()
    }

    fn take(&self, max: usize) -> Result<Vec<Delivery>> {
        let now = self.hub.clock.now();
        self.feed.take(max, now, &self.hub.leases())
    }

    async fn reserve_some(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let until = self.hub.clock.now() + wait;
        // Who does not wait takes nothing for the end of the queue, and waits for the server to say so, or to fail.
        let at_least = if wait.is_zero() { self.hub.config.patience * 2 } else { LOOK };
        let mut heard = false;
        loop {
            if self.hub.is_closed() {
                return Err(error::closed());
            }
            let deliveries = self.take(max)?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            let now = self.hub.clock.now();
            self.hub.leases().sweep_at_times(now);
            let looked = self.look(max, until.max(now + at_least)).await;
            let deliveries = self.take(max)?;
            match looked {
                _ if !deliveries.is_empty() => return Ok(deliveries),
                Looked::NotYet if !heard || wait.is_zero() => return Err(error::unheard()),
                Looked::Before => {}
                Looked::Now if self.hub.clock.now() < until => self.wait(until).await,
                Looked::Now | Looked::NotYet => return Ok(deliveries),
            }
            heard = true;
        }
    }

    /// Waits until something came or failed, or the time is over.
    async fn wait(&self, until: Moment) {
        let _waiting = Waiting::begin(&self.feed, until);
        let clock = &self.hub.clock;
        loop {
            self.hub.arm();
            self.rung(until.min(clock.now() + LOOK_AGAIN)).await;
            if !self.feed.waits() {
                return;
            }
            if clock.now() >= until {
                break;
            }
        }
        // The server's wait goes by whole seconds. What it still gives is taken, unless that would take long.
        while let Some(end) = self.hub.wait_end(&self.feed).filter(|end| *end < until + LATE) {
            self.rung(end).await;
            if !self.feed.waits() || clock.now() >= end {
                break;
            }
        }
        self.hub.break_off(&self.feed);
    }

    async fn rung(&self, until: Moment) {
        tokio::select! {
            () = self.feed.bell.notified() => {}
            () = self.hub.clock.sleep_until(until) => {}
        }
    }
}

/// What a look has seen.
enum Looked {
    Now,
    /// It was under way already, and may have begun too early to see everything.
    Before,
    /// It is still under way; what it brings comes with the next reserve.
    NotYet,
}

/// A wait under way. However it ends, no job is taken for it any more.
struct Waiting<'a>(&'a Feed);

impl<'a> Waiting<'a> {
    fn begin(feed: &'a Feed, until: Moment) -> Self {
        feed.set_waits(Some(until));
        Self(feed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set_waits(None);
    }
}

#[async_trait]
impl Consumer for BeanstalkdConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.reserve_some(max.get(), wait).await.map_err(|e| e.during("reserve").with("queue", &self.feed.source.queue))
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(BeanstalkdSettler::new(self.hub.clone(), self.feed.source.clone()))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let left = Self::close(&self);
        self.hub.give_back(left).await;
        // A look may have taken tasks that nobody knows of yet, and a wait may be given one just now: they give them back.
        let until = self.hub.clock.now() + self.hub.config.patience;
        loop {
            let waited = self.hub.waited.notified();
            tokio::pin!(waited);
            waited.as_mut().enable();
            if !self.hub.break_off(&self.feed) && !self.feed.is_looking() || self.hub.clock.now() >= until {
                return Ok(());
            }
            tokio::select! {
                () = waited => {}
                () = self.rung(until) => {}
            }
        }
    }
}

impl Drop for BeanstalkdConsumer {
    fn drop(&mut self) {
        let left = Self::close(self);
        if !left.is_empty() {
            let hub = self.hub.clone();
            self.hub.runtime.spawn(async move {
                let _under_way = hub.settling.read().await;
                hub.give_back(left).await;
            });
        }
    }
}

/// Looks at the servers in turn until one has jobs. An error only if none could be asked.
async fn fetch(hub: &Arc<Hub>, feed: &Feed, asked: usize) -> Result<usize> {
    let mut outcome: Option<Result<usize>> = None;
    for server in hub.by_turn(&feed.turn) {
        match fetch_from(hub, server, feed, asked).await {
            Ok(0) => outcome = Some(Ok(0)),
            Ok(got) => return Ok(got),
            Err(e) => {
                hub.noticed(server, &e);
                outcome.get_or_insert(Err(e));
            }
        }
    }
    outcome.unwrap_or_else(|| Err(Error::unavailable("there is no server to ask")))
}

async fn fetch_from(hub: &Arc<Hub>, server: &Arc<Server>, feed: &Feed, asked: usize) -> Result<usize> {
    let busy = server.fetching().await?;
    hub.hear(std::slice::from_ref(&feed.source), server).await;
    // While the figures of one part are on their way the server reserves the other one: it is never idle.
    let second = if asked >= WORTH_HALVING { asked / 2 } else { 0 };
    let (first, second) = tokio::join!(
        fetch_part(hub, server, &busy.link, feed, asked - second),
        fetch_part(hub, server, &busy.link, feed, second)
    );
    let (mut deliveries, rest) = (first?, second?);
    deliveries.extend(rest);
    let got = deliveries.len();
    if got > 0 {
        hub.hand_in(feed, deliveries).await;
    }
    Ok(got)
}

async fn fetch_part(hub: &Hub, server: &Server, link: &Link, feed: &Feed, asked: usize) -> Result<Vec<Delivery>> {
    if asked == 0 {
        return Ok(Vec::new());
    }
    let mut request = Request::default().watching(feed.tubes.clone());
    request.push_to(&feed.source.pause, &Command::PeekReady);
    let asked = if hub.is_paused(&feed.source) { 0 } else { asked };
    for _ in 0..asked {
        request.push(&Command::ReserveWithTimeout(0));
    }
    let before = hub.clock.now();
    let mut jobs = Vec::new();
    let mut replies = hub.call(link, request).await?.into_iter();
    let paused = replies.next().is_some_and(|mark| hub.note(&feed.source, &mark));
    for reply in replies {
        match reply {
            Reply::Reserved(id, body) => jobs.push((id, body)),
            // Said in the last second of another job of this connection, and only if nothing is ready.
            Reply::TimedOut | Reply::DeadlineSoon => {}
            other => {
                // What it has given along with this would be reserved until its time is over.
                let odd = error::unexpected(&other, "reserve-with-timeout");
                link.close(&odd);
                return Err(odd);
            }
        }
    }
    let request = Request::all(jobs.iter().map(|(id, _)| Command::StatsJob(*id)));
    let mut deliveries = Vec::with_capacity(jobs.len());
    for ((_, body), reply) in jobs.into_iter().zip(hub.call(link, request).await?) {
        // A job without figures has run out of time meanwhile.
        if let Reply::Ok(stats) = reply
            && let Some(job) = JobStats::read(&stats)
        {
            deliveries.extend(hub.grant(link, server, &feed.source.queue, body, &job, before));
        }
    }
    if paused {
        hub.give_back(std::mem::take(&mut deliveries)).await;
    }
    Ok(deliveries)
}

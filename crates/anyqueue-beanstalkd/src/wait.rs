//! How a queue waits: one connection of each server waits for the tubes of all consumers that wait.
//!
//! A job that comes there tells its tube with its other figures, which are needed anyway. The connection keeps it and
//! another one waits in its place; where none is free, the job is passed on to one that holds jobs already.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{Error, Moment, Result};
use bytes::Bytes;

use crate::error;
use crate::feed::Feed;
use crate::hub::{Hub, seconds};
use crate::link::{Answers, Link, answered};
use crate::pool::{Busy, Wait};
use crate::request::Request;
use crate::server::Server;
use crate::tubes::{Tube, Tubes};
use crate::wire::{Command, JobStats, Reply};

/// How long one wait lasts before it begins anew: a dead connection must be noticed.
const WAIT: Duration = Duration::from_secs(2);

/// What an answer takes on its way, generously.
const ANSWER: Duration = Duration::from_millis(20);

/// How long a job that one connection passes to another is kept from everybody else, in seconds.
const HAND_OVER: u32 = 1;

impl Hub {
    /// Sees to it that every server has a connection that waits for what consumers wait for.
    pub(crate) fn arm(self: &Arc<Self>) {
        for server in &self.servers {
            let needed = self.feeds().iter().any(|feed| feed.waits() && !server.waits_for(&feed.tubes));
            if needed {
                let (hub, server) = (self.clone(), server.clone());
                self.runtime.spawn(async move { hub.wait_on(server).await });
            }
        }
    }

    /// What is to be awaited: the tubes of all consumers that wait now or will again soon, and for how many seconds.
    fn wanted(&self, server: &Server) -> Option<(Vec<Tube>, u32)> {
        let longest = {
            let feeds = self.feeds();
            let open: Vec<&Arc<Feed>> = feeds.iter().filter(|feed| !self.is_paused(&feed.source)).collect();
            open.iter().find(|feed| feed.waits() && !server.waits_for(&feed.tubes))?;
            open.iter().filter_map(|feed| feed.waits_until()).max()?
        };
        Some((self.open_tubes(), seconds(longest.since(self.clock.now()).min(WAIT)).max(1)))
    }

    /// The tubes of all consumers that wait now or will again soon, of queues that are not paused.
    fn open_tubes(&self) -> Vec<Tube> {
        let feeds = self.feeds();
        let open = feeds.iter().filter(|feed| feed.lingers() && !self.is_paused(&feed.source));
        let mut tubes: Vec<Tube> = open.flat_map(|feed| feed.tubes.iter().cloned()).collect();
        tubes.sort_unstable();
        tubes.dedup();
        tubes
    }

    /// When the server's last wait for this consumer ends.
    pub(crate) fn wait_end(&self, feed: &Feed) -> Option<Moment> {
        self.servers.iter().filter_map(|server| server.wait_end(&feed.tubes)).max()
    }

    /// Breaks off the waits for this consumer that serve no other one. Says whether any of those is not over yet.
    pub(crate) fn break_off(&self, over: &Feed) -> bool {
        over.set_waits(None);
        let waited: Vec<Arc<Feed>> = self.feeds().iter().filter(|feed| feed.waits()).cloned().collect();
        let needed = |wait: &Wait| {
            let serves = |feed: &Feed| feed.tubes.iter().any(|tube| wait.tubes.contains(tube));
            !serves(over) || waited.iter().any(|feed| serves(feed))
        };
        self.servers.iter().filter(|server| server.break_off(needed)).count() > 0
    }

    async fn wait_on(self: Arc<Self>, server: Arc<Server>) {
        let armed = {
            let _one = server.arming.lock().await;
            self.hear_all(&server).await;
            let Some((tubes, wait)) = self.wanted(&server) else { return };
            self.start_wait(&server, tubes, wait).await
        };
        match armed {
            Ok(Some((link, answers))) => self.wait_ended(&server, &link, answers).await,
            Ok(None) => self.arm(),
            Err(e) => self.wait_failed(&server, &e),
        }
    }

    /// Asks which of the queues that are waited for are paused.
    async fn hear_all(self: &Arc<Self>, server: &Arc<Server>) {
        let mut queues: Vec<Arc<Tubes>> =
            self.feeds().iter().filter(|feed| feed.lingers()).map(|feed| feed.source.clone()).collect();
        queues.sort_unstable_by_key(Arc::as_ptr);
        queues.dedup_by(|a, b| Arc::ptr_eq(a, b));
        self.hear(&queues, server).await;
    }

    /// Begins a wait. `None` if it was broken off before it began, or there is nothing to wait for any more.
    async fn start_wait(
        self: &Arc<Self>,
        server: &Arc<Server>,
        mut tubes: Vec<Tube>,
        wait: u32,
    ) -> Result<Option<(Arc<Link>, Answers)>> {
        let time = Duration::from_secs(wait.into());
        let until = self.clock.now() + time + ANSWER;
        let link = server.waiting(&Wait { tubes: tubes.clone(), until }).await?;
        // The connection may be new, and the server may have forgotten a pause. What it gives all the same is given back.
        self.hear_all(server).await;
        let open = self.open_tubes();
        tubes.retain(|tube| open.contains(tube));
        if !server.narrow(&link, &tubes) {
            self.end_wait(server, &link);
            return Ok(None);
        }
        self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
        match link.submit(Request::of(&Command::ReserveWithTimeout(wait)).watching(tubes).waiting(time)) {
            Ok(answers) => Ok(Some((link, answers))),
            // A wait that was broken off is no failure.
            Err(e) if self.end_wait(server, &link) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Notes that a wait is over. False if it had been broken off.
    fn end_wait(&self, server: &Server, link: &Link) -> bool {
        let known = server.waited(link);
        self.waited.notify_waiters();
        known
    }

    async fn wait_ended(self: &Arc<Self>, server: &Arc<Server>, link: &Arc<Link>, answers: Answers) {
        let answer = answered(answers).await;
        let (busy, keep) = server.awoke(link, self);
        if server.is_broken(link) {
            // It ends now, and the server has what it may have given it.
            tokio::select! {
                () = link.ended() => {}
                () = self.clock.sleep_until(self.clock.now() + self.config.patience) => {}
            }
        }
        let ended = match answer.map(|mut replies| replies.pop()) {
            Ok(Some(Reply::Reserved(id, body))) if keep => self.keep(server, link, id, body).await,
            Ok(Some(Reply::Reserved(id, _))) => self.pass_on(server, link, id).await,
            Ok(Some(Reply::TimedOut) | None) => Ok(()),
            // The server still counts a job to this connection whose time is over by our clock. That passes.
            Ok(Some(Reply::DeadlineSoon)) => {
                self.clock.sleep_until(self.clock.now() + ANSWER).await;
                Ok(())
            }
            Ok(Some(other)) => Err(error::unexpected(&other, "reserve-with-timeout")),
            Err(e) => Err(e),
        };
        let known = self.end_wait(server, link);
        drop(busy);
        match ended {
            // A wait that was broken off is no failure.
            Err(e) if known => self.wait_failed(server, &e),
            Ok(()) | Err(_) => self.arm(),
        }
    }

    /// Tells consumers that a wait failed, unless another server can still wake them.
    fn wait_failed(self: &Arc<Self>, server: &Server, error: &Error) {
        self.noticed(server, error);
        if self.servers.iter().any(|other| other.address != server.address && other.is_up()) {
            return;
        }
        self.feeds().iter().filter(|feed| feed.waits()).for_each(|feed| feed.fail(error));
    }

    /// Draws the conclusions from a failed request.
    pub(crate) fn noticed(&self, server: &Server, error: &Error) {
        if error.kind() == anyqueue_core::ErrorKind::Timeout {
            server.distrust(self);
        }
    }

    /// The consumer that gets what came from this tube. Nobody, if the queue was paused since the wait began.
    fn feed_for(&self, tube: &[u8]) -> Option<Arc<Feed>> {
        let feeds = self.feeds();
        let of_tube = |feed: &&Arc<Feed>| feed.tubes.iter().any(|own| own.as_bytes() == tube);
        let found = feeds.iter().filter(of_tube).find(|feed| feed.waits());
        if found.is_none() {
            feeds.iter().filter(of_tube).for_each(|feed| feed.linger_no_more());
        }
        found.filter(|feed| !self.is_paused(&feed.source)).cloned()
    }

    /// A job came to a connection that waited, and stays there. Its time starts anew: when it came is not known.
    async fn keep(&self, server: &Arc<Server>, link: &Arc<Link>, id: u64, body: Bytes) -> Result<()> {
        let mut request = Request::of(&Command::Touch(id));
        request.push(&Command::StatsJob(id));
        let before = self.clock.now();
        let replies = self.call(link, request).await?;
        let [Reply::Touched, Reply::Ok(stats)] = replies.as_slice() else { return Ok(()) };
        let Some(job) = JobStats::read(stats) else { return Ok(()) };
        match self.feed_for(job.tube) {
            Some(feed) => {
                let delivery = self.grant(link, server, &feed.source.queue, body, &job, before);
                self.hand_in(&feed, Vec::from_iter(delivery)).await;
            }
            None => {
                let release = Command::Release { id, priority: job.priority, delay: 0 };
                self.put_back(link, Request::of(&release), [id].into_iter()).await?;
            }
        }
        Ok(())
    }

    /// A job came to the only connection that can wait: one of those that hold jobs takes it over. Meanwhile it is
    /// delayed, so that no other client gets it, and comes back by itself if this process dies now.
    async fn pass_on(&self, server: &Arc<Server>, link: &Arc<Link>, id: u64) -> Result<()> {
        let replies = self.call(link, Request::of(&Command::StatsJob(id))).await?;
        let Some(Reply::Ok(stats)) = replies.first() else { return Ok(()) };
        let Some(job) = JobStats::read(stats) else { return Ok(()) };
        let feed = self.feed_for(job.tube);
        let delay = if feed.is_some() { HAND_OVER } else { 0 };
        let release = Request::of(&Command::Release { id, priority: job.priority, delay });
        let released = self.put_back(link, release, [id].into_iter()).await?;
        let (Some(feed), [Reply::Released]) = (feed, released.as_slice()) else { return Ok(()) };
        let other: Busy = server.fetching().await?;
        let mut request = Request::of(&Command::ReserveJob(id));
        request.push(&Command::StatsJob(id));
        let before = self.clock.now();
        let mut replies = self.call(&other.link, request).await?.into_iter();
        if let (Some(Reply::Reserved(_, body)), Some(Reply::Ok(stats))) = (replies.next(), replies.next())
            && let Some(job) = JobStats::read(&stats)
        {
            let delivery = self.grant(&other.link, server, &feed.source.queue, body, &job, before);
            self.hand_in(&feed, Vec::from_iter(delivery)).await;
        }
        Ok(())
    }
}

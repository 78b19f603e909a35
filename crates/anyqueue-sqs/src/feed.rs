//! Receiving: the urgent bands first without waiting, and only when all are empty all of them at once with a long wait.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Defaults, ErrorKind, Incoming, Moment, Paused, Peeked, Result, State, steps_up};
use futures::future::join_all;
use futures::stream::{self, StreamExt};

use crate::SECOND;
use crate::api::BATCH;
use crate::claim::Missing;
use crate::hub::Hub;
use crate::inbox::{Inbox, Ready};
use crate::lines::Lines;
use crate::marker::{FRESH, Marks};
use crate::message::{Arrived, Post};
use crate::send;
use crate::slip::Slip;

/// What a waiting request takes is hidden for so long until its TTR is set, which also shows whether it is still ours: if
/// the connection is dead, nobody learns that something was taken.
pub(crate) const WAITING: u64 = 3;
/// What came and nobody asks for is given back after this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// A request that waits is not made more often than this.
const SHORTEST: Duration = Duration::from_millis(200);
/// When a task is looked at again whose data cannot be read just now, in seconds.
const LATER: u64 = 15;
/// How often a paused queue's mark is read.
const PAUSED: Duration = Duration::from_secs(1);

/// Feeds the inbox of one consumer.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) hub: Arc<Hub>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) inbox: Arc<Inbox>,
    /// The bands that this consumer takes.
    pub(crate) bands: Vec<usize>,
    pub(crate) ttr: Duration,
}

impl Feed {
    /// Works until the consumer is closed, or its broker is.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut closing = self.hub.closing();
        let mut full = vec![false; self.lines.bands.len()];
        while !self.inbox.is_closed() && !*closing.borrow() {
            let lacking = self.inbox.lacking();
            if lacking > 0 {
                if let Err(e) = self.round(lacking, &mut full).await {
                    self.hub.noticed(&self.lines.queue, &e);
                    self.inbox.fail(e);
                }
                continue;
            }
            tokio::select! {
                () = self.inbox.wanted.notified() => {}
                () = self.stale() => {
                    // A purge waits for what is neither here nor there.
                    let _sorting = self.inbox.sorting.read().await;
                    self.give_back(self.inbox.unwanted(PATIENCE, self.hub.clock.now())).await;
                }
                _ = closing.changed() => {}
            }
        }
        self.inbox.close();
        let _sorting = self.inbox.sorting.read().await;
        self.give_back(self.inbox.take(usize::MAX, self.hub.clock.now())).await;
    }

    /// Ends when something may have lain in the inbox for too long; never while it is empty.
    async fn stale(&self) {
        if self.inbox.is_empty() {
            std::future::pending::<()>().await;
        }
        self.hub.clock.sleep_until(self.hub.clock.now() + PATIENCE).await;
    }

    async fn round(self: &Arc<Self>, lacking: usize, full: &mut [bool]) -> Result<()> {
        if self.hub.marks_at_all(&self.lines).await?.paused(self.hub.wall()) != Paused::No {
            return self.paused().await;
        }
        for &band in &self.bands {
            if !self.inbox.is_waiting(band) && self.look(band, lacking, full).await? > 0 {
                return Ok(());
            }
        }
        self.inbox.set_looked();
        self.wait().await;
        Ok(())
    }

    /// Waits out a pause, a step at a time.
    async fn paused(&self) -> Result<()> {
        self.inbox.set_looked();
        let changed = self.hub.markers.changed.notified();
        let step = match self.hub.marks(&self.lines, PAUSED).await?.paused(self.hub.wall()) {
            Paused::No => return Ok(()),
            Paused::Yes(left) => left.unwrap_or(PAUSED).min(PAUSED),
        };
        let mut closing = self.hub.closing();
        tokio::select! {
            () = changed => {}
            () = self.inbox.wanted.notified() => {}
            _ = closing.changed() => {}
            () = self.hub.clock.sleep_until(self.hub.clock.now() + step) => {}
        }
        self.hub.marks(&self.lines, PAUSED).await.map(drop)
    }

    /// What one request may take. SQS gives out several tasks of a group together, and they would run side by side; while
    /// one is reserved it gives out no other.
    fn batch(&self) -> usize {
        if self.lines.kind.fifo { 1 } else { BATCH }
    }

    /// Receives without waiting: one request, or as many as are wanted where the last one came back full.
    async fn look(&self, band: usize, lacking: usize, full: &mut [bool]) -> Result<usize> {
        let batch = self.batch();
        let requests = if full[band] { lacking.div_ceil(batch).min(self.hub.config.requests) } else { 1 };
        let visibility = steps_up(self.ttr, SECOND);
        let asked = self.hub.clock.now();
        let url = &self.lines.bands[band];
        // Each answer is taken in as it comes, so that work begins while others are on their way.
        let parts = join_all((0..requests).map(async |at| {
            let most = lacking.saturating_sub(at * batch).min(batch);
            let part = self.hub.api.receive(url, most, visibility, Duration::ZERO).await?;
            let count = part.len();
            self.take_in(band, part, asked, visibility).await.map(|()| count)
        }));
        let parts = parts.await;
        let count = parts.iter().flatten().sum();
        full[band] = count >= requests * batch;
        match parts.into_iter().find_map(Result::err) {
            Some(e) if count == 0 => Err(e),
            Some(error) => {
                let queue = self.lines.queue.as_str();
                tracing::debug!(queue, %error, "one of several requests for tasks failed");
                Ok(count)
            }
            None => Ok(count),
        }
    }

    /// Lets a request wait for each band that has none, each in a task of its own, and waits until something comes.
    async fn wait(self: &Arc<Self>) {
        for &band in &self.bands {
            if self.patience().is_some() && self.inbox.begin_waiting(band) {
                let feed = self.clone();
                self.hub.runtime.spawn(async move {
                    feed.wait_for(band).await;
                    feed.inbox.end_waiting(band);
                });
            }
        }
        let mut closing = self.hub.closing();
        tokio::select! {
            () = self.inbox.wanted.notified() => {}
            _ = closing.changed() => {}
        }
    }

    /// How long a request may wait: hardly longer than somebody does, since what comes for nobody has to be given back, and
    /// what comes for a process that has ended is hidden for a while. Who waits for about as long goes on to wait: a request
    /// as long as SQS lets it be costs less than a long one and a short one.
    fn patience(&self) -> Option<Duration> {
        let (left, most) = (self.inbox.until().since(self.hub.clock.now()), self.hub.config.wait);
        let fits = if left >= most / 3 { most } else { SECOND * steps_up(left, SECOND) as u32 };
        (left > Duration::from_millis(1)).then_some(fits)
    }

    /// Waits for tasks of one band for as long as some are wanted. It goes on to its end even if the consumer is closed:
    /// what SQS hands to a connection that is gone is hidden from everybody for a while.
    async fn wait_for(&self, band: usize) {
        loop {
            let Some(wait) = self.patience() else { return };
            let most = self.inbox.lacking().clamp(1, self.batch());
            let asked = self.hub.clock.now();
            let received = self.hub.api.receive(&self.lines.bands[band], most, WAITING, wait).await;
            let outcome = match received {
                Ok(none) if none.is_empty() => Ok(0),
                Ok(some) => self.take_in(band, some, asked, WAITING).await.map(|()| 1),
                Err(e) => Err(e),
            };
            match outcome {
                Ok(0) if self.inbox.lacking() > 0 && self.hub.check().is_ok() => {
                    // A server that does not wait, though asked to, is no reason to ask it all the time.
                    self.hub.clock.sleep_until(asked + SHORTEST).await;
                }
                Ok(_) => return,
                // A connection that went dead while it waited is made anew with the next request.
                Err(e) if e.kind() == ErrorKind::Timeout => return,
                Err(e) => {
                    self.hub.noticed(&self.lines.queue, &e);
                    return self.inbox.fail(e);
                }
            }
        }
    }

    /// Sorts what was received: what is not due goes on its way, what is not wanted any more goes, the rest gets its own TTR.
    async fn take_in(&self, band: usize, all: Vec<Arrived>, asked: Moment, visibility: u64) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let (url, _sorting) = (&self.lines.bands[band], self.inbox.sorting.read().await);
        if self.inbox.is_closed() {
            // The process may end at any moment: one step that can only be late, not two that may leave a duplicate.
            all.iter().for_each(|one| self.hub.looked(&one.id));
            let items: Vec<_> = all.iter().map(|one| (one.handle.clone(), 0)).collect();
            return self.hub.hide(url, &items).await.into_iter().collect();
        }
        let now = self.hub.wall();
        // What was delayed may have been purged a moment before it was due.
        let age = if all.iter().any(|one| one.slip.due.is_some()) { FRESH / 3 } else { FRESH };
        let (early, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| is_early(one, now));
        // Their leases do not wait for the marks: a wait has left them three seconds.
        let (ready, marks) = futures::join!(self.leased(url, kept, asked, visibility), self.hub.marks(&self.lines, age));
        // A round reads them before its first request, so they are known unless they were set just now.
        let marks = match marks {
            Ok(marks) => marks,
            Err(e) => {
                self.give_back(ready.into_iter().map(|ready| (band, ready)).collect()).await;
                return Err(e);
            }
        };
        let paused = marks.paused(self.hub.wall()) != Paused::No;
        let (dropped, early): (Vec<_>, Vec<_>) = early.into_iter().partition(|one| drops(&marks, one));
        let (over, ready): (Vec<_>, Vec<_>) = ready.into_iter().partition(|one| drops(&marks, &one.arrived));
        let gone: Vec<_> = dropped.iter().chain(over.iter().map(|one| &one.arrived)).collect();
        futures::join!(self.hub.delete_whole(url, &gone), send::send_on(&self.hub, &self.lines, url, early));
        let back = if paused { ready } else { self.inbox.put(band, self.whole(url, ready).await, self.hub.clock.now()) };
        self.give_back(back.into_iter().map(|ready| (band, ready)).collect()).await;
        Ok(())
    }

    /// Sets the visibility of what is to be leased for another time than it was received with, or was received long ago.
    async fn leased(&self, url: &str, all: Vec<Arrived>, asked: Moment, visibility: u64) -> Vec<Ready> {
        let now = self.hub.clock.now();
        let mut ready: Vec<Ready> = Vec::with_capacity(all.len());
        for arrived in all {
            let ttr = arrived.slip.ttr().unwrap_or(self.ttr).clamp(SECOND, anyqueue_core::time::MAX_TTR);
            let (looks, ttr) = (self.hub.looks(&arrived.id), SECOND * steps_up(ttr, SECOND) as u32);
            ready.push(Ready { arrived, fetched: None, looks, ttr, asked, deadline: asked + Duration::from_secs(visibility) });
        }
        let late = now.since(asked);
        let (differs, left) = (|one: &Ready| one.ttr.as_secs() != visibility || late > one.ttr / 10, self.hub.left(asked));
        let places: Vec<usize> = (0..ready.len()).filter(|at| differs(&ready[*at])).collect();
        let seconds = |one: &Ready| one.ttr.as_secs().min(left);
        let items: Vec<_> = places.iter().map(|at| (ready[*at].arrived.handle.clone(), seconds(&ready[*at]))).collect();
        if items.is_empty() {
            return ready;
        }
        let mut lost = Vec::new();
        for (at, answer) in places.into_iter().zip(self.hub.hide(url, &items).await) {
            match answer {
                Ok(()) => ready[at].deadline = now + Duration::from_secs(seconds(&ready[at])),
                Err(e) if e.is_lease_lost() => lost.push(at),
                // It stays hidden for as long as it was received with.
                Err(_) => {}
            }
        }
        let mut at = 0;
        ready.retain(|_| (!lost.contains(&at), at += 1).0);
        ready
    }

    /// Fetches data that is not in the messages. A task without its data is held, or comes again a little later.
    async fn whole(&self, url: &Arc<str>, all: Vec<Ready>) -> Vec<Ready> {
        let fetch = async |one: Ready| (self.hub.fetched(&one.arrived).await, one);
        let mut fetched = std::pin::pin!(stream::iter(all.into_iter().map(fetch)).buffered(send::FILES));
        let (mut ready, mut held, mut later) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((data, mut one)) = fetched.next().await {
            match data {
                Ok(fetched) => {
                    one.fetched = fetched;
                    ready.push(one);
                }
                Err(Missing::Hold(reason)) => held.push((one.arrived.handle.clone(), self.without_data(&one, &reason))),
                Err(Missing::Later) => later.push(one),
            }
        }
        let moved = self.hub.moved(&self.lines, url, &self.lines.held[0], held).await;
        if let Err(error) = moved.and(self.put_off(url, later).await) {
            let queue = self.lines.queue.as_str();
            tracing::warn!(queue, %error, "cannot hold or give back tasks without data; they come again when their leases end");
        }
        ready
    }

    /// The hold of a task whose data cannot be had.
    fn without_data(&self, one: &Ready, reason: &str) -> Post {
        let peeked = Peeked {
            raw: one.arrived.body.clone(),
            native: one.arrived.native(one.looks, self.hub.wall()),
            state: State::Reserved,
            remaining: None,
        };
        let defaults = Defaults { ttr: self.ttr, ..Defaults::default() };
        let task = Incoming::peeked(&peeked, &self.hub.config.name, self.lines.queue.as_str(), defaults);
        tracing::error!(queue = self.lines.queue.as_str(), id = %task.id, reason, "a task is held");
        let held = task.held(reason, false, self.hub.clock.wall());
        let Slip { group, native, claim, .. } = one.arrived.slip.clone();
        let slip = Slip { group, native, claim, held: Some(self.hub.held_at()), ..Slip::of(&held) };
        Post { body: held.body, slip, delay: 0, once: None }
    }

    /// Gives tasks back that nobody should have for a moment.
    async fn put_off(&self, url: &Arc<str>, all: Vec<Ready>) -> Result<()> {
        if self.lines.kind.fifo {
            all.iter().for_each(|one| self.hub.looked(&one.arrived.id));
            let items: Vec<_> = all.iter().map(|one| (one.arrived.handle.clone(), LATER)).collect();
            return self.hub.hide(url, &items).await.into_iter().collect();
        }
        let copy = |one: Ready| (one.arrived.handle.clone(), Post { delay: LATER, ..one.arrived.again(one.looks) });
        self.hub.moved(&self.lines, url, url, all.into_iter().map(copy).collect()).await.map(drop)
    }

    /// Gives tasks back as if they had never been received.
    pub(crate) async fn give_back(&self, tasks: Vec<(usize, Ready)>) {
        for band in 0..self.lines.bands.len() {
            let of_band: Vec<_> = tasks.iter().filter(|(of, _)| *of == band).map(|(_, task)| task).collect();
            if of_band.is_empty() {
                continue;
            }
            let url = &self.lines.bands[band];
            let done = if self.lines.kind.fifo {
                of_band.iter().for_each(|task| self.hub.looked(&task.arrived.id));
                let items: Vec<_> = of_band.iter().map(|task| (task.arrived.handle.clone(), 0)).collect();
                self.hub.hide(url, &items).await.into_iter().collect::<Result<()>>()
            } else {
                let items = of_band.iter().map(|task| (task.arrived.handle.clone(), task.arrived.again(task.looks))).collect();
                self.hub.moved(&self.lines, url, url, items).await.map(drop)
            };
            if let Err(error) = done {
                let queue = self.lines.queue.as_str();
                tracing::warn!(queue, %error, "cannot give tasks back; they come again when their leases end");
            }
        }
    }
}

fn drops(marks: &Marks, one: &Arrived) -> bool {
    marks.drops(one.slip.due, one.sent)
}

/// Whether a task has further to go than SQS itself counts, and is not there yet.
fn is_early(one: &Arrived, now: u64) -> bool {
    one.slip.hop && one.slip.due.is_some_and(|due| due > now)
}

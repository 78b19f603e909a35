//! The connections to one server that hold jobs or wait for them, and which of them is taken for what.
//!
//! A waiting reserve keeps every command behind it waiting, so a connection that holds jobs never waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyqueue_core::{Error, Moment, Result};

use crate::error;
use crate::hub::Hub;
use crate::lease::Leases;
use crate::link::Link;
use crate::server::Server;
use crate::tubes::Tube;

/// So many jobs on one connection before another one is opened.
const FEW: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Links>);

#[derive(Debug, Default)]
struct Links {
    links: Vec<Entry>,
    turn: usize,
}

/// A wait for jobs.
#[derive(Debug, Clone)]
pub(crate) struct Wait {
    pub(crate) tubes: Vec<Tube>,
    /// When the server ends it, at the latest.
    pub(crate) until: Moment,
}

#[derive(Debug)]
struct Entry {
    link: Arc<Link>,
    /// Requests under way that may bring jobs.
    busy: usize,
    /// What it waits for, while it waits and until what came has been handed in.
    waits: Option<Wait>,
    /// That wait was broken off, and the connection ends with it.
    broken: bool,
}

impl Entry {
    /// Whether a wait goes on until its time is over.
    fn will_wait(&self) -> bool {
        !self.broken && !self.link.is_dead()
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.lock().links.iter().map(|entry| entry.link.clone()).collect()
    }

    pub(crate) fn take_all(&self) -> Vec<Arc<Link>> {
        std::mem::take(&mut self.lock().links).into_iter().map(|entry| entry.link).collect()
    }

    /// Takes out one that has ended, unless somebody who uses it will.
    pub(crate) fn forget(&self, number: u64) {
        let over = |entry: &mut Entry| entry.link.number == number && entry.busy == 0 && entry.waits.is_none();
        // Dropped when the lock is open again.
        let _ended: Vec<Entry> = self.lock().links.extract_if(.., over).collect();
    }

    /// Takes out those that hold nothing.
    pub(crate) fn take_idle(&self, leases: &Leases) -> Vec<Arc<Link>> {
        let idle = |entry: &mut Entry| leases.held(entry.link.number) == 0;
        self.lock().links.extract_if(.., idle).map(|entry| entry.link).collect()
    }
}

impl Server {
    /// A connection to fetch jobs with: one that holds few, but not the last one that could wait.
    pub(crate) async fn fetching(self: &Arc<Self>) -> Result<Busy> {
        let hub = self.hub()?;
        match self.choose(&hub) {
            Some(busy) => Ok(busy),
            None => self.grow(&hub).await,
        }
    }

    fn choose(self: &Arc<Self>, hub: &Hub) -> Option<Busy> {
        let leases = hub.leases();
        let mut pool = self.pool.lock();
        pool.links.retain(|entry| !entry.link.is_dead());
        let (room, waits) = (pool.links.len() < self.connections, pool.links.iter().any(|entry| entry.waits.is_some()));
        let free = |entry: &Entry| entry.waits.is_none() && entry.busy == 0 && leases.held(entry.link.number) == 0;
        let spare = room || waits || pool.links.iter().filter(|entry| free(entry)).count() > 1;
        pool.turn = pool.turn.wrapping_add(1);
        let (turn, count) = (pool.turn, pool.links.len());
        let usable = pool.links.iter().enumerate().filter(|(_, entry)| entry.waits.is_none() && (spare || !free(entry)));
        let load = |at: usize, entry: &Entry| (entry.busy, leases.held(entry.link.number) / 64, (at + turn) % count);
        let (at, busy) = usable.map(|(at, entry)| (at, entry.busy)).min_by_key(|(at, _)| load(*at, &pool.links[*at]))?;
        // Deleting takes the server longer the more jobs a connection holds; one place is kept for one that waits.
        let full = busy > 0 || leases.held(pool.links[at].link.number) >= FEW;
        if full && count + usize::from(!waits) < self.connections {
            return None;
        }
        pool.links[at].busy += 1;
        Some(Busy { server: self.clone(), link: pool.links[at].link.clone() })
    }

    async fn grow(self: &Arc<Self>, hub: &Hub) -> Result<Busy> {
        let _one = self.opening.lock().await;
        // Somebody else may have opened one meanwhile.
        if let Some(busy) = self.choose(hub) {
            return Ok(busy);
        }
        let link = self.connect().await?;
        if hub.is_closed() {
            return Err(error::closed());
        }
        self.pool.lock().links.push(Entry { link: link.clone(), busy: 1, waits: None, broken: false });
        Ok(Busy { server: self.clone(), link })
    }

    /// A connection that holds nothing, set aside to wait for jobs of these tubes. If all hold jobs and one waits
    /// already, that one is given up for it.
    pub(crate) async fn waiting(self: &Arc<Self>, wait: &Wait) -> Result<Arc<Link>> {
        let hub = self.hub()?;
        if let Some(link) = self.set_aside(&hub, wait) {
            return Ok(link);
        }
        let _one = self.opening.lock().await;
        if let Some(link) = self.set_aside(&hub, wait) {
            return Ok(link);
        }
        let link = self.connect().await?;
        if hub.is_closed() {
            return Err(error::closed());
        }
        self.pool.lock().links.push(Entry { link: link.clone(), busy: 0, waits: Some(wait.clone()), broken: false });
        Ok(link)
    }

    fn set_aside(&self, hub: &Hub, wait: &Wait) -> Option<Arc<Link>> {
        let leases = hub.leases();
        let mut pool = self.pool.lock();
        pool.links.retain(|entry| !entry.link.is_dead());
        let room = pool.links.len() < self.connections;
        let free = |entry: &&mut Entry| entry.waits.is_none() && entry.busy == 0 && leases.held(entry.link.number) == 0;
        if let Some(entry) = pool.links.iter_mut().find(free) {
            entry.waits = Some(wait.clone());
            return Some(entry.link.clone());
        }
        if !room && let Some(at) = pool.links.iter().position(|entry| entry.waits.is_some() && entry.busy == 0) {
            pool.links.swap_remove(at).link.close(&Error::unavailable("the wait was broken off for a wider one"));
        }
        None
    }

    /// Whether a wait for all of these tubes is under way.
    pub(crate) fn waits_for(&self, tubes: &[Tube]) -> bool {
        let pool = self.pool.lock();
        let mut waits = pool.links.iter().filter(|entry| entry.will_wait()).filter_map(|entry| entry.waits.as_ref());
        waits.any(|wait| tubes.iter().all(|tube| wait.tubes.contains(tube)))
    }

    /// When the last wait for one of these tubes ends.
    pub(crate) fn wait_end(&self, tubes: &[Tube]) -> Option<Moment> {
        let pool = self.pool.lock();
        let waits = pool.links.iter().filter(|entry| entry.will_wait()).filter_map(|entry| entry.waits.as_ref());
        waits.filter(|wait| tubes.iter().any(|tube| wait.tubes.contains(tube))).map(|wait| wait.until).max()
    }

    /// Breaks off waits that nobody needs. Such a connection holds nothing, so nothing but the wait is lost. Says whether any
    /// of those is not over yet.
    pub(crate) fn break_off(&self, needed: impl Fn(&Wait) -> bool) -> bool {
        let mut pool = self.pool.lock();
        let over = |entry: &&mut Entry| !entry.link.is_dead() && entry.waits.as_ref().is_some_and(|wait| !needed(wait));
        let mut any = false;
        for entry in pool.links.iter_mut().filter(over) {
            any = true;
            if entry.busy == 0 && !std::mem::replace(&mut entry.broken, true) {
                entry.link.break_off();
            }
        }
        any
    }

    /// A job may have come. Whether the connection may keep it: another one can wait in its place.
    pub(crate) fn awoke(self: &Arc<Self>, link: &Arc<Link>, hub: &Hub) -> (Busy, bool) {
        let mut leases = hub.leases();
        leases.sweep(hub.clock.now());
        let mut pool = self.pool.lock();
        let mut keep = pool.links.len() < self.connections;
        for entry in &mut pool.links {
            if entry.link.number == link.number {
                entry.busy += 1;
            } else {
                keep |= entry.waits.is_some() || (entry.busy == 0 && leases.held(entry.link.number) == 0);
            }
        }
        (Busy { server: self.clone(), link: link.clone() }, keep)
    }

    /// Leaves a wait that has not begun with these tubes, and ends it if there are none. False if it is over or was broken off.
    pub(crate) fn narrow(&self, link: &Link, tubes: &[Tube]) -> bool {
        let mut pool = self.pool.lock();
        let Some(entry) = pool.links.iter_mut().find(|entry| entry.link.number == link.number) else { return false };
        if tubes.is_empty() {
            entry.waits = None;
        } else if let Some(wait) = &mut entry.waits {
            wait.tubes = tubes.to_vec();
        }
        entry.waits.is_some() && !entry.broken
    }

    /// Whether its wait was broken off.
    pub(crate) fn is_broken(&self, link: &Link) -> bool {
        self.pool.lock().links.iter().any(|entry| entry.link.number == link.number && entry.broken)
    }

    /// Ends a wait. False if it had been broken off.
    pub(crate) fn waited(&self, link: &Link) -> bool {
        let mut pool = self.pool.lock();
        let Some(at) = pool.links.iter().position(|entry| entry.link.number == link.number) else { return false };
        if pool.links[at].broken {
            pool.links.swap_remove(at);
            return false;
        }
        pool.links[at].waits = None;
        true
    }

    /// The connection of this number.
    pub(crate) fn link(&self, number: u64) -> Option<Arc<Link>> {
        self.pool.lock().links.iter().find(|entry| entry.link.number == number).map(|entry| entry.link.clone())
    }
}

/// A connection that is being fetched with. Until this is dropped nobody lets it wait.
#[derive(Debug)]
pub(crate) struct Busy {
    server: Arc<Server>,
    pub(crate) link: Arc<Link>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut pool = self.server.pool.lock();
        if let Some(entry) = pool.links.iter_mut().find(|entry| entry.link.number == self.link.number) {
            entry.busy = entry.busy.saturating_sub(1);
        }
    }
}

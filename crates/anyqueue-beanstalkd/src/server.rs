//! One server: its connections, and what becomes of it when it does not answer.
//!
//! A waiting reserve keeps every command behind it waiting, so a connection that holds jobs never waits: some hold, one
//! that holds nothing waits, and one more is for sends and questions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyqueue_core::{Error, Moment, Result};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::config::Host;
use crate::error;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::tubes::Tube;
use crate::wire::{Command, Reply, Yaml};

/// The longest time that a server which refused is left alone.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

/// So many jobs on one connection before another one is opened.
const FEW: usize = 64;

/// Numbers connections, over all brokers of the process.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) max_body: u64,
    pub(crate) binlog: bool,
    pub(crate) draining: bool,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    host: Host,
    pub(crate) address: String,
    connections: usize,
    patience: Duration,
    hub: Weak<Hub>,
    pool: Mutex<Pool>,
    /// One connection is made at a time.
    opening: tokio::sync::Mutex<()>,
    pub(crate) arming: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Those that hold jobs or wait for them.
    links: Vec<Entry>,
    asking: Option<Arc<Link>>,
    facts: Facts,
    failures: u32,
    /// Until when it is left alone.
    down: Option<Instant>,
    /// It is being tried in the background.
    probing: bool,
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
}

impl Server {
    pub(crate) fn new(host: Host, connections: usize, patience: Duration, hub: Weak<Hub>) -> Self {
        let address = host.address();
        let (pool, opening, arming) = Default::default();
        Self { host, address, connections, patience, hub, pool, opening, arming }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> Facts {
        self.pool().facts.clone()
    }

    /// Whether it answered when it was tried last.
    pub(crate) fn is_up(&self) -> bool {
        self.pool().failures == 0
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        let pool = self.pool();
        pool.links.iter().map(|entry| &entry.link).chain(&pool.asking).filter(|link| !link.is_dead()).count()
    }

    fn hub(&self) -> Result<Arc<Hub>> {
        self.hub.upgrade().filter(|hub| !hub.is_closed()).ok_or_else(error::closed)
    }

    /// Makes a connection. A server that refused is left alone for a while, longer each time.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Arc<Link>> {
        let hub = self.hub()?;
        self.leave_to_probe(&hub)?;
        if let Some(left) =
            self.pool().down.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
        {
            let text = format!("beanstalkd at {} did not answer; it is tried again in {} ms", self.address, left.as_millis());
            return Err(Error::unavailable(text));
        }
        // A task of its own, so that a failure is noted even if nobody waits for it any more.
        let server = self.clone();
        hub.runtime.spawn(async move { server.attempt().await }).await.map_err(|_| error::closed())?
    }

    async fn attempt(&self) -> Result<Arc<Link>> {
        let connecting = async {
            let stream = timeout(self.patience, TcpStream::connect((self.host.name.as_str(), self.host.port))).await??;
            stream.set_nodelay(true).map(|()| stream)
        };
        let stream = connecting.await.map_err(|e| self.failed(error::io(e, &self.address)))?;
        let (hub, weak) = (self.hub()?, self.hub.clone());
        hub.counters.connected();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let ended = move || {
            if let Some(hub) = weak.upgrade() {
                hub.leases().forget(number);
                hub.counters.lost();
            }
        };
        Ok(Arc::new(Link::new(&hub.runtime, number, self.address.clone(), stream, self.patience, ended)))
    }

    /// While another server answers, nobody waits for one that does not: it is tried in the background until it does.
    fn leave_to_probe(self: &Arc<Self>, hub: &Hub) -> Result<()> {
        if self.is_up() || !hub.servers.iter().any(|other| other.is_up()) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.pool().probing, true) {
            let server = self.clone();
            hub.runtime.spawn(async move { server.probe().await });
        }
        Err(Error::unavailable(format!("beanstalkd at {} did not answer; the other servers serve until it does", self.address)))
    }

    async fn probe(&self) {
        while self.hub().is_ok() && !self.is_up() {
            let until = self.pool().down.unwrap_or_else(Instant::now);
            tokio::time::sleep_until(until).await;
            if let Ok(link) = self.attempt().await
                && let Err(e) = self.introduce(link).await
            {
                tracing::debug!(server = self.address, error = anyqueue_core::chain(&e), "a server is not taken back yet");
            }
        }
        self.pool().probing = false;
    }

    /// Asks a server what it is, and from then on by this connection.
    async fn introduce(&self, link: Arc<Link>) -> Result<Arc<Link>> {
        let asked = link.call(Request::of(&Command::Stats)).await.and_then(read_facts);
        // Nothing but this question was sent: whatever was to follow had no effect, and may go to another server.
        let told =
            |e: Error| Error::new(e.kind(), format!("beanstalkd at {} gave no account of itself", self.address)).because(e);
        let facts = asked.map_err(|e| self.failed(told(e)))?;
        let mut pool = self.pool();
        (pool.failures, pool.down, pool.facts) = (0, None, facts);
        pool.asking = Some(link.clone());
        Ok(link)
    }

    /// Notes that the server does not answer.
    fn failed(&self, error: Error) -> Error {
        let mut pool = self.pool();
        pool.failures = pool.failures.saturating_add(1);
        let back_off = Duration::from_millis(25).saturating_mul(1 << pool.failures.min(8)).min(MAX_BACK_OFF);
        pool.down = Some(Instant::now() + back_off.mul_f64(0.5 + fastrand::f64() / 2.0));
        error
    }

    /// The connection for sends and questions.
    pub(crate) async fn asking(self: &Arc<Self>) -> Result<Arc<Link>> {
        let current = || self.pool().asking.clone().filter(|link| !link.is_dead());
        if let Some(link) = current() {
            self.hub()?;
            return Ok(link);
        }
        let hub = self.hub()?;
        self.leave_to_probe(&hub)?;
        let _one = self.opening.lock().await;
        if let Some(link) = current() {
            return Ok(link);
        }
        let (link, server) = (self.connect().await?, self.clone());
        let introducing = hub.runtime.spawn(async move { server.introduce(link).await });
        let link = introducing.await.map_err(|_| error::closed())??;
        self.hub()?;
        Ok(link)
    }

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
        let mut pool = self.pool();
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
        self.pool().links.push(Entry { link: link.clone(), busy: 1, waits: None });
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
        self.pool().links.push(Entry { link: link.clone(), busy: 0, waits: Some(wait.clone()) });
        Ok(link)
    }

    fn set_aside(&self, hub: &Hub, wait: &Wait) -> Option<Arc<Link>> {
        let leases = hub.leases();
        let mut pool = self.pool();
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
        let pool = self.pool();
        let mut waits = pool.links.iter().filter(|entry| !entry.link.is_dead()).filter_map(|entry| entry.waits.as_ref());
        waits.any(|wait| tubes.iter().all(|tube| wait.tubes.contains(tube)))
    }

    /// When the last wait for one of these tubes ends.
    pub(crate) fn wait_end(&self, tubes: &[Tube]) -> Option<Moment> {
        let pool = self.pool();
        let waits = pool.links.iter().filter(|entry| !entry.link.is_dead()).filter_map(|entry| entry.waits.as_ref());
        waits.filter(|wait| tubes.iter().any(|tube| wait.tubes.contains(tube))).map(|wait| wait.until).max()
    }

    /// Breaks off waits that nobody needs. Such a connection holds nothing, so nothing but the wait is lost.
    pub(crate) fn break_off(&self, needed: impl Fn(&Wait) -> bool) {
        let not_needed = |entry: &mut Entry| entry.waits.as_ref().is_some_and(|wait| entry.busy == 0 && !needed(wait));
        let over: Vec<Entry> = self.pool().links.extract_if(.., not_needed).collect();
        over.iter().for_each(|entry| entry.link.close(&Error::unavailable("the wait was broken off")));
    }

    /// A job may have come. Whether the connection may keep it: another one can wait in its place.
    pub(crate) fn awoke(self: &Arc<Self>, link: &Arc<Link>, hub: &Hub) -> (Busy, bool) {
        let mut leases = hub.leases();
        leases.sweep(hub.clock.now());
        let mut pool = self.pool();
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

    /// Ends a wait. False if it had been broken off.
    pub(crate) fn waited(&self, link: &Link) -> bool {
        let mut pool = self.pool();
        let entry = pool.links.iter_mut().find(|entry| entry.link.number == link.number);
        entry.map(|entry| entry.waits = None).is_some()
    }

    /// The connection of this number.
    pub(crate) fn link(&self, number: u64) -> Option<Arc<Link>> {
        self.pool().links.iter().find(|entry| entry.link.number == number).map(|entry| entry.link.clone())
    }

    /// A connection was found silent: the others that can be replaced at no cost are not trusted any more either.
    pub(crate) fn distrust(&self, hub: &Hub) {
        let leases = hub.leases();
        let mut pool = self.pool();
        let why = Error::unavailable("another connection to this server was found dead");
        let dead: Vec<Entry> = pool.links.extract_if(.., |entry| leases.held(entry.link.number) == 0).collect();
        let asking = pool.asking.take();
        drop((pool, leases));
        if hub.servers.len() > 1 && self.is_up() {
            self.failed(why.duplicate());
        }
        dead.iter().map(|entry| &entry.link).chain(&asking).for_each(|link| link.close(&why));
    }

    /// Closes all connections.
    pub(crate) fn close(&self) {
        let (links, asking) = {
            let mut pool = self.pool();
            (std::mem::take(&mut pool.links), pool.asking.take())
        };
        links.iter().map(|entry| &entry.link).chain(&asking).for_each(|link| link.close(&error::closed()));
    }
}

fn read_facts(mut replies: Vec<Reply>) -> Result<Facts> {
    let body = match replies.pop() {
        Some(Reply::Ok(body)) => body,
        Some(other) => return Err(error::unexpected(&other, "stats")),
        None => return Err(error::closed()),
    };
    let stats = Yaml::new(&body);
    Ok(Facts {
        version: stats.text("version").unwrap_or_default(),
        // A server that does not say has the default of all versions.
        max_body: stats.number("max-job-size").unwrap_or(65_535),
        binlog: stats.number("binlog-current-index").is_some_and(|index| index > 0),
        draining: stats.get("draining") == Some(b"true"),
    })
}

/// A connection that is being fetched with. Until this is dropped nobody lets it wait.
#[derive(Debug)]
pub(crate) struct Busy {
    server: Arc<Server>,
    pub(crate) link: Arc<Link>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut pool = self.server.pool();
        if let Some(entry) = pool.links.iter_mut().find(|entry| entry.link.number == self.link.number) {
            entry.busy = entry.busy.saturating_sub(1);
        }
    }
}

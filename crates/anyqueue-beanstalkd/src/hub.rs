//! What all parts of one broker share, and how a queue waits for a job.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Clock, Delivery, Error, Figure, Moment, NativeFacts, QueueName, Result, time};
use bytes::Bytes;
use futures::future::join_all;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::error;
use crate::feed::Feed;
use crate::lease::{Counted, Lease, Leases};
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::Tubes;
use crate::wire::{Command, JobStats, Reply};

/// The shared part of one broker.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) servers: Vec<Arc<Server>>,
    pub(crate) counters: Counters,
    /// The runtime that was there at connect: connections live on it.
    pub(crate) runtime: Handle,
    /// Queues that are known to exist.
    pub(crate) declared: Mutex<HashSet<QueueName>>,
    /// Read while something is under way that must be carried to its end: whoever closes waits for the copies' originals to
    /// be removed, and for what looks still bring.
    pub(crate) settling: tokio::sync::RwLock<()>,
    /// Rung when a wait is over.
    pub(crate) waited: tokio::sync::Notify,
    leases: Mutex<Leases>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    queues: Mutex<HashMap<QueueName, Arc<Tubes>>>,
    closed: AtomicBool,
    /// Which server comes first at the next send.
    pub(crate) turn: AtomicUsize,
}

/// What `info` tells.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) round_trips: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    /// Connections made so far.
    pub(crate) made: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    /// Notes a connection that was made: anew, if one had been lost before.
    pub(crate) fn connected(&self) {
        self.made.fetch_add(1, Ordering::Release);
        let lost = self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lost| lost.checked_sub(1));
        self.reconnects.fetch_add(u64::from(lost.is_ok()), Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        // Many short-lived processes must not all begin with the same server.
        let turn = AtomicUsize::new(fastrand::usize(..config.hosts.len().max(1)));
        Arc::new_cyclic(|hub| Self {
            servers: config
                .hosts
                .iter()
                .map(|host| Arc::new(Server::new(host.clone(), config.connections, config.patience, hub.clone())))
                .collect(),
            config,
            clock,
            counters: Counters::default(),
            runtime: Handle::current(),
            declared: Mutex::default(),
            settling: tokio::sync::RwLock::default(),
            waited: tokio::sync::Notify::new(),
            leases: Mutex::default(),
            feeds: Mutex::default(),
            queues: Mutex::default(),
            closed: AtomicBool::new(false),
            turn,
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        guard(&self.leases)
    }

    pub(crate) fn tubes(&self, queue: &QueueName) -> Arc<Tubes> {
        let mut queues = guard(&self.queues);
        match queues.get(queue) {
            Some(tubes) => tubes.clone(),
            None => {
                let tubes = Arc::new(Tubes::new(queue, self.config.bands(queue)));
                queues.insert(queue.clone(), tubes.clone());
                tubes
            }
        }
    }

    /// The servers, each time beginning with another one.
    pub(crate) fn by_turn(&self, turn: &AtomicUsize) -> impl Iterator<Item = &Arc<Server>> {
        let (count, turn) = (self.servers.len(), turn.fetch_add(1, Ordering::Relaxed));
        (0..count).map(move |at| &self.servers[(at + turn) % count])
    }

    /// The connection that a receipt belongs to.
    pub(crate) fn link(&self, number: u64) -> Option<Arc<Link>> {
        self.servers.iter().find_map(|server| server.link(number))
    }

    /// Sends a request and counts it.
    pub(crate) async fn call(&self, link: &Link, request: Request) -> Result<Vec<Reply>> {
        if request.is_empty() {
            return Ok(Vec::new());
        }
        self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
        link.call(request).await
    }

    /// The broker's own id of a job: which of several servers has it is part of it.
    pub(crate) fn native_id(&self, server: &Server, job: u64) -> String {
        if self.servers.len() == 1 { job.to_string() } else { format!("{}/{job}", server.address) }
    }

    /// What the server knows of a job.
    pub(crate) fn native(&self, server: &Server, job: &JobStats<'_>) -> NativeFacts {
        NativeFacts {
            id: Some(self.native_id(server, job.id).into()),
            priority: Some(job.priority),
            ttr: Some(Duration::from_secs(job.ttr)),
            redeliveries: Figure::Exact(job.lost()),
            age: Some(Duration::from_secs(job.age)),
        }
    }

    /// Notes a reservation and makes it a delivery, unless the connection has ended and lost it. `before` is a moment before
    /// the job's time began.
    pub(crate) fn grant(
        &self,
        link: &Link,
        server: &Server,
        queue: &QueueName,
        raw: Bytes,
        job: &JobStats<'_>,
        before: Moment,
    ) -> Option<Delivery> {
        let ttr = Duration::from_secs(job.ttr);
        let deadline = before + ttr;
        let lease = Lease { link: link.number, job: job.id, priority: job.priority, ttr, deadline, counted: Counted::default() };
        let mut leases = self.leases();
        // A connection that ends after this is forgotten after this.
        let receipt = if link.is_dead() { None } else { Some(leases.grant(lease)) }?;
        drop(leases);
        Some(Delivery { receipt, queue: queue.clone(), raw, native: self.native(server, job), lease: ttr, deadline })
    }

    /// Puts reserved jobs back at their places, uncounted, as far as they are still held.
    pub(crate) async fn give_back(&self, deliveries: Vec<Delivery>) {
        let now = self.clock.now();
        let leases: Vec<Lease> = {
            let mut leases = self.leases();
            deliveries.iter().filter_map(|delivery| leases.take(&delivery.receipt, now)).collect()
        };
        self.release(leases).await;
    }

    async fn release(&self, leases: Vec<Lease>) {
        let mut by_link: HashMap<u64, Vec<Lease>> = HashMap::new();
        leases.into_iter().for_each(|lease| by_link.entry(lease.link).or_default().push(lease));
        let release = |(link, leases): (u64, Vec<Lease>)| async move {
            if let Some(link) = self.link(link) {
                let mut request = Request::default();
                for lease in &leases {
                    request.push(&Command::Release { id: lease.job, priority: lease.priority, delay: 0 });
                    request.keep(lease.counted.clone());
                }
                // A connection that breaks gives back what it holds.
                drop(self.put_back(&link, request, leases.iter().map(|lease| lease.job)).await);
            }
        };
        join_all(by_link.into_iter().map(release)).await;
    }

    /// Has a connection release these jobs. One that the server had no memory to put in line again, and buried, is kicked.
    pub(crate) async fn put_back(&self, link: &Link, releases: Request, jobs: impl Iterator<Item = u64>) -> Result<Vec<Reply>> {
        let replies = self.call(link, releases).await?;
        let buried = jobs.zip(&replies).filter(|(_, reply)| matches!(reply, Reply::Buried(_)));
        let kicks = Request::all(buried.map(|(job, _)| Command::KickJob(job)));
        if !kicks.is_empty() {
            let (server, count) = (link.server(), kicks.len());
            tracing::warn!(
                server,
                count,
                "beanstalkd had no memory to put released jobs in line and buried them: they are kicked"
            );
            self.call(link, kicks).await?;
        }
        Ok(replies)
    }

    /// Carries something to its end, also when whoever asked has gone. Whoever closes waits for it.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let hub = self.clone();
        let acting = self.runtime.spawn(async move {
            let _under_way = hub.settling.read().await;
            if hub.is_closed() { Err(error::closed()) } else { act.await }
        });
        acting.await.unwrap_or_else(|_| Err(error::closed().effect_unknown()))
    }

    /// Gives everything back and closes all connections.
    pub(crate) async fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for feed in std::mem::take(&mut *guard(&self.feeds)) {
            // What it had is given back with all that is held.
            drop(feed.close());
            feed.fail(&error::closed());
        }
        // One that takes too long ends in a duplicate, as in a crash.
        drop(tokio::time::timeout(self.config.patience, self.settling.write()).await);
        let held = self.leases().take_all(self.clock.now());
        self.release(held).await;
        self.servers.iter().for_each(|server| server.close());
    }

    pub(crate) fn feeds(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        guard(&self.feeds)
    }

    pub(crate) fn add_feed(&self, feed: Arc<Feed>) {
        guard(&self.feeds).push(feed);
    }

    pub(crate) fn remove_feed(&self, feed: &Arc<Feed>) {
        guard(&self.feeds).retain(|other| !Arc::ptr_eq(other, feed));
    }

    /// Gives deliveries to a consumer; if it has gone, they go back.
    pub(crate) async fn hand_in(&self, feed: &Feed, deliveries: Vec<Delivery>) {
        let refused = feed.take_in(deliveries);
        if !refused.is_empty() {
            self.give_back(refused).await;
        }
    }
}

/// Seconds, rounded up: the server's step.
pub(crate) fn seconds(duration: Duration) -> u32 {
    u32::try_from(anyqueue_core::steps_up(duration, Duration::from_secs(1))).unwrap_or(u32::MAX)
}

/// Checks what a task asks for against what the server keeps.
pub(crate) fn check(envelope: &anyqueue_core::Envelope, max_body: u64) -> Result<()> {
    time::check_delay(envelope.delay)?;
    time::check_ttr(envelope.ttr, time::MAX_TTR, "anyqueue")?;
    match envelope.body.len() as u64 {
        size if size > max_body => Err(Error::too_large(size, max_body)),
        _ => Ok(()),
    }
}

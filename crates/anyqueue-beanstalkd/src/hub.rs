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
    /// Read while a settle is under way: whoever closes waits for the copies' originals to be removed.
    pub(crate) settling: tokio::sync::RwLock<()>,
    leases: Mutex<Leases>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    queues: Mutex<HashMap<QueueName, Arc<Tubes>>>,
    closed: AtomicBool,
    turn: AtomicUsize,
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
            leases: Mutex::default(),
            feeds: Mutex::default(),
            queues: Mutex::default(),
            closed: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
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
    pub(crate) fn by_turn(&self) -> impl Iterator<Item = &Arc<Server>> {
        let (count, turn) = (self.servers.len(), self.turn.fetch_add(1, Ordering::Relaxed));
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

    /// Notes a reservation and makes it a delivery. `before` is a moment before the job's time began.
    pub(crate) fn grant(
        &self,
        link: u64,
        server: &Server,
        queue: &QueueName,
        raw: Bytes,
        job: &JobStats<'_>,
        before: Moment,
    ) -> Delivery {
        let ttr = Duration::from_secs(job.ttr);
        let deadline = before + ttr;
        let lease = Lease { link, job: job.id, priority: job.priority, ttr, deadline, counted: Counted::default() };
        let receipt = self.leases().grant(lease);
        Delivery { receipt, queue: queue.clone(), raw, native: self.native(server, job), lease: ttr, deadline }
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
        let requests = releases(leases).into_iter();
        let release = |(link, request): (u64, Request)| async move {
            if let Some(link) = self.link(link) {
                // A connection that breaks gives back what it holds.
                drop(self.call(&link, request).await);
            }
        };
        join_all(requests.map(release)).await;
    }

    /// Gives everything back and closes all connections.
    pub(crate) async fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (now, feeds) = (self.clock.now(), std::mem::take(&mut *guard(&self.feeds)));
        feeds.iter().for_each(|feed| feed.fail(&error::closed()));
        // One that takes too long ends in a duplicate, as in a crash.
        drop(tokio::time::timeout(self.config.patience, self.settling.write()).await);
        let held = self.leases().take_all(now);
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
    pub(crate) fn hand_in(&self, feed: &Feed, deliveries: Vec<Delivery>) {
        let refused = feed.take_in(deliveries);
        if refused.is_empty() {
            return;
        }
        let now = self.clock.now();
        let leases: Vec<Lease> = {
            let mut leases = self.leases();
            refused.iter().filter_map(|delivery| leases.take(&delivery.receipt, now)).collect()
        };
        for (link, request) in releases(leases) {
            if let Some(link) = self.link(link) {
                // The answer changes nothing.
                drop(link.submit(request));
            }
        }
    }
}

/// What puts jobs back at their places, by connection.
fn releases(leases: Vec<Lease>) -> HashMap<u64, Request> {
    let mut requests: HashMap<u64, Request> = HashMap::new();
    for lease in leases {
        let request = requests.entry(lease.link).or_default();
        request.push(&Command::Release { id: lease.job, priority: lease.priority, delay: 0 });
        request.keep(lease.counted);
    }
    requests
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

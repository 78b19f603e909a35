//! What all parts of one broker share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyqueue_core::time::{MAX_TTR, check_delay, check_ttr};
use anyqueue_core::{
    Clock, Defaults, Envelope, Error, Incoming, Moment, NativeFacts, Peeked, QueueName, Result, State, steps_up,
};
use bytes::Bytes;
use gearman::protocol::Packet;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use crate::config::{Config, OfQueue};
use crate::error;
use crate::feed::Feed;
use crate::guard::Sweep;
use crate::lease::Leases;
use crate::mark::Pause;
use crate::names::{Band, Functions, Kind, Unique, made_by_others, native_id};
use crate::packet::{Job, Reply, submit, submit_at};
use crate::server::{Counters, Server};

/// So many jobs are submitted before their answers are awaited. A job server does all of it in one go, and with a slow
/// disk nobody else is heard meanwhile.
const PART: usize = 64;

/// One queue as this process knows it.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: QueueName,
    pub(crate) functions: Functions,
    pub(crate) settings: OfQueue,
    pub(crate) pause: Mutex<Pause>,
    /// Rung when this process has paused or resumed it.
    pub(crate) bell: Notify,
    /// Whoever walks through the held tasks has them reserved meanwhile.
    pub(crate) walking: tokio::sync::Mutex<()>,
}

impl Queue {
    pub(crate) fn band(&self, priority: u32) -> Band {
        Band::of(self.settings.levels.of(priority))
    }
}

/// The shared part of one broker.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) servers: Vec<Arc<Server>>,
    pub(crate) counters: Arc<Counters>,
    /// The runtime that was there at connect: connections live on it.
    pub(crate) runtime: Handle,
    /// Queues that are known to exist.
    pub(crate) declared: Mutex<HashSet<QueueName>>,
    /// Read while a settle is under way: whoever closes waits for the copies' originals to be removed.
    pub(crate) settling: tokio::sync::RwLock<()>,
    /// Rung when a first lease is there.
    pub(crate) leased: Notify,
    /// Queues whose delayed tasks and guards this process moves. Each change rings.
    pub(crate) moved: tokio::sync::watch::Sender<Vec<Arc<Queue>>>,
    pub(crate) sweeping: mpsc::UnboundedSender<Sweep>,
    leases: Mutex<Leases>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    queues: Mutex<HashMap<QueueName, Arc<Queue>>>,
    closed: AtomicBool,
    turn: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn start(config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (counters, (sweeping, swept)) = (Arc::new(Counters::default()), mpsc::unbounded_channel());
        let server = |(place, host): (usize, &crate::config::Host)| {
            Arc::new(Server::new(place, host.clone(), config.patience, counters.clone()))
        };
        let hub = Arc::new(Self {
            servers: config.hosts.iter().enumerate().map(server).collect(),
            config,
            clock,
            counters,
            runtime: Handle::current(),
            declared: Mutex::default(),
            settling: tokio::sync::RwLock::default(),
            leased: Notify::new(),
            moved: tokio::sync::watch::Sender::new(Vec::new()),
            sweeping,
            leases: Mutex::default(),
            feeds: Mutex::default(),
            queues: Mutex::default(),
            closed: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        });
        hub.runtime.spawn(crate::guard::sweep(swept));
        hub.runtime.spawn(crate::keeper::run(Arc::downgrade(&hub)));
        for server in &hub.servers {
            hub.runtime.spawn(crate::mover::run(Arc::downgrade(&hub), server.clone()));
        }
        hub
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn begin(&self) -> Result<()> {
        if self.is_closed() { Err(error::closed()) } else { Ok(()) }
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }

    pub(crate) fn queue(&self, name: &QueueName) -> Arc<Queue> {
        let make = || {
            Arc::new(Queue {
                name: name.clone(),
                functions: Functions::new(name),
                settings: self.config.of(name),
                pause: Mutex::default(),
                bell: Notify::new(),
                walking: tokio::sync::Mutex::default(),
            })
        };
        lock(&self.queues).entry(name.clone()).or_insert_with(make).clone()
    }

    pub(crate) fn add_feed(&self, feed: Arc<Feed>) {
        let queue = feed.queue.clone();
        lock(&self.feeds).push(feed);
        self.moved.send_if_modified(|queues| {
            let new = !queues.iter().any(|other| other.name == queue.name);
            if new {
                queues.push(queue);
            }
            new
        });
    }

    pub(crate) fn remove_feed(&self, feed: &Arc<Feed>) {
        lock(&self.feeds).retain(|other| !Arc::ptr_eq(other, feed));
    }

    /// The servers, each time beginning with another one.
    pub(crate) fn by_turn(&self) -> impl Iterator<Item = &Arc<Server>> {
        let (count, turn) = (self.servers.len(), self.turn.fetch_add(1, Ordering::Relaxed));
        (0..count).map(move |at| &self.servers[(at + turn) % count])
    }

    /// Checks what a task asks for.
    pub(crate) fn check(&self, task: &Envelope) -> Result<()> {
        check_delay(task.delay)?;
        check_ttr(task.ttr, MAX_TTR, "anyqueue")?;
        match task.body.len() as u64 {
            size if size > self.config.max_body => Err(Error::too_large(size, self.config.max_body)),
            _ => Ok(()),
        }
    }

    /// The second since 1970 in which a time from now is over.
    pub(crate) fn second_after(&self, time: Duration) -> u64 {
        let now = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        steps_up(now + time, Duration::from_secs(1))
    }

    /// The same second of a moment to come.
    pub(crate) fn second_of(&self, moment: Moment) -> u64 {
        self.second_after(moment.since(self.clock.now()))
    }

    /// A job: a task in the function of its unique id's kind.
    pub(crate) fn job(&self, queue: &Queue, unique: &Unique, delay: Duration, body: Bytes) -> Packet {
        self.named_job(queue, unique, &unique.to_string(), delay, body)
    }

    pub(crate) fn named_job(&self, queue: &Queue, unique: &Unique, name: &str, delay: Duration, body: Bytes) -> Packet {
        if unique.kind == Kind::Delayed {
            return submit_at(self.second_after(delay), &queue.functions.delay, name, body);
        }
        // All held tasks have one level: then they stand in the order in which they were held.
        let band = if unique.kind == Kind::Held { Band::Normal } else { unique.band };
        submit(band, queue.functions.of(unique.kind), name, body)
    }

    /// Submits jobs to one server: one handle per job, in order, once the server has stored it.
    pub(crate) async fn put(&self, server: &Arc<Server>, packets: Vec<Packet>) -> Vec<Result<String>> {
        let (count, mut answers) = (packets.len(), Vec::with_capacity(packets.len()));
        let session = match server.session().await {
            Ok(session) => session,
            Err(e) => return (0..count).map(|_| Err(e.duplicate())).collect(),
        };
        let mut rest = packets.into_iter();
        while answers.len() < count {
            let part: Vec<_> = rest.by_ref().take(PART).collect();
            let asked = part.len();
            match session.call(part).await {
                Ok(replies) => answers.extend(replies.into_iter().map(|reply| match reply {
                    Reply::Created(handle) => Ok(handle),
                    other => Err(error::unexpected(&other, "SUBMIT_JOB")),
                })),
                Err(e) => answers.extend((0..asked).map(|_| Err(e.duplicate()))),
            }
        }
        answers
    }

    /// What a body says, as the core reads it.
    pub(crate) fn read(&self, queue: &Queue, unique: &str, body: &Bytes, ttr: Duration) -> Incoming {
        let native = NativeFacts { id: Some(unique.into()), ..NativeFacts::default() };
        let peeked = Peeked { raw: body.clone(), native, state: State::Ready, remaining: None };
        let defaults = Defaults { ttr, ..Defaults::default() };
        Incoming::peeked(&peeked, &self.config.name, queue.name.as_str(), defaults)
    }

    /// What a job's unique id says; of a job that others made, what its body says.
    pub(crate) fn unique(&self, queue: &Queue, job: &Job, ttr: Duration) -> Unique {
        match Unique::read(&job.unique) {
            Some(own) if queue.functions.owns(&own) => own,
            _ => {
                let task = self.read(queue, native_id(job), &job.data, ttr);
                let own = Unique::sent(&queue.functions, task.id, Kind::Ready, queue.band(task.priority), task.ttr);
                // Two jobs that others made may say the same of themselves, and what follows them must not be one job.
                own.made_at(made_by_others(job))
            }
        }
    }

    /// The body of a copy: the next job has another unique id, so a task whose id was made from that now has it within.
    pub(crate) fn body_of_copy(&self, queue: &Queue, job: &Job, ttr: Duration) -> Bytes {
        let task = self.read(queue, native_id(job), &job.data, ttr);
        match (task.wire.id, &task.unreadable) {
            (None, None) => task.snoozed(Duration::ZERO).body,
            _ => job.data.clone(),
        }
    }

    /// Gives everything back and closes all connections.
    pub(crate) async fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let feeds = std::mem::take(&mut *lock(&self.feeds));
        feeds.iter().for_each(|feed| drop(feed.close(Some(error::closed()))));
        let tidying = async {
            drop(self.settling.write().await);
            let now = self.clock.now();
            let (over, held) = self.leases().take_all().into_iter().partition(|lease| lease.deadline <= now);
            // Who was frozen may be closed before it has seen that others have its tasks.
            tokio::join!(self.expire(over), self.give_back(held));
            crate::guard::flush(&self.sweeping).await;
        };
        // One that takes too long ends in a duplicate, as in a crash.
        drop(tokio::time::timeout(self.config.patience, tidying).await);
        self.leased.notify_one();
        self.moved.send_modify(Vec::clear);
        self.servers.iter().for_each(|server| server.close());
    }
}

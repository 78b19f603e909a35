//! What a broker, its consumers and its settlers share.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyqueue_core::{Clock, QueueName, Result};
use lapin::Channel;
use lapin::types::ShortString;
use tokio::runtime::Handle;

use crate::config::{Config, MOST_PAYLOAD, Style};
use crate::error::{self, closed};
use crate::hello::Version;
use crate::layout::Layout;
use crate::line::Line;
use crate::link::{Link, Tally};
use crate::notes::Notes;

/// See the module.
pub(crate) struct Shared {
    own: Weak<Self>,
    pub(crate) config: Arc<Config>,
    pub(crate) version: Version,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where tasks are worked on that must end whoever waits for them.
    pub(crate) runtime: Handle,
    pub(crate) tally: Arc<Tally>,
    /// Carries what is published, and nothing else: the server stops reading it while it has an alarm.
    pub(crate) send: Arc<Link>,
    /// Carries everything else.
    pub(crate) work: Arc<Link>,
    /// Channels to publish on that nobody uses now.
    pub(crate) publishers: Mutex<Vec<Channel>>,
    /// The largest message that the server takes, as far as it has said so.
    pub(crate) server_limit: AtomicU64,
    asking: Mutex<Option<Channel>>,
    /// The server's queues about which it gave no answer the last time.
    silent: Mutex<HashSet<ShortString>>,
    /// Taken by who makes what all queues share: the ladders.
    pub(crate) ladders: tokio::sync::Mutex<()>,
    /// Walks under way in this process, by the name of their lock.
    pub(crate) walks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) notes: Notes,
    epochs: AtomicU64,
    lines: Mutex<Vec<Weak<Line>>>,
    layouts: Mutex<HashMap<QueueName, Arc<Layout>>>,
    known: Mutex<HashSet<QueueName>>,
    /// Queues that were paused when it was looked last.
    marked: Mutex<HashSet<QueueName>>,
    closed: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).field("version", &self.version).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(config: Arc<Config>, version: Version, clock: Arc<dyn Clock>) -> Arc<Self> {
        let tally = Arc::new(Tally::default());
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            send: Arc::new(Link::new(config.clone(), "send", tally.clone())),
            work: Arc::new(Link::new(config.clone(), "work", tally.clone())),
            config,
            version,
            clock,
            runtime: Handle::current(),
            tally,
            publishers: Mutex::default(),
            server_limit: AtomicU64::new(MOST_PAYLOAD),
            asking: Mutex::default(),
            silent: Mutex::default(),
            ladders: tokio::sync::Mutex::default(),
            walks: Mutex::default(),
            notes: Notes::default(),
            // Receipts of two clients are never the same.
            epochs: AtomicU64::new(u64::from(fastrand::u32(..)) << 24),
            lines: Mutex::default(),
            layouts: Mutex::default(),
            known: Mutex::default(),
            marked: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// For what goes on though nobody waits for it.
    pub(crate) fn own(&self) -> Result<Arc<Self>> {
        self.own.upgrade().ok_or_else(closed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_closed() { Err(closed()) } else { Ok(()) }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether it was open until now.
    pub(crate) fn set_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// A number that no other run of reservations of this process has.
    pub(crate) fn epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn layout(&self, queue: &QueueName) -> Arc<Layout> {
        let mut layouts = lock(&self.layouts);
        let layout = || Arc::new(Layout::new(queue, self.style(queue)));
        layouts.entry(queue.clone()).or_insert_with(layout).clone()
    }

    /// What is set for a queue, as far as this server can have it.
    pub(crate) fn style(&self, queue: &QueueName) -> Style {
        let style = self.config.style(queue);
        Style { own_timeout: style.own_timeout.filter(|_| self.version.at_least(3, 12)), ..style }
    }

    pub(crate) fn is_known(&self, queue: &QueueName) -> bool {
        lock(&self.known).contains(queue)
    }

    pub(crate) fn know(&self, queue: &QueueName) {
        lock(&self.known).insert(queue.clone());
    }

    /// Something of a queue is missing: it is looked for again before it is used.
    pub(crate) fn reconsider(&self, queue: &QueueName) {
        lock(&self.known).remove(queue);
    }

    /// A queue was deleted: it is looked for again before it is used, and those who consumed it begin anew. A server tells
    /// consumers of a deleted quorum queue nothing if it is made anew before their channels have heard of the deletion.
    pub(crate) fn forget(&self, queue: &QueueName) {
        self.reconsider(queue);
        for line in self.lines(Some(queue)) {
            line.state().renew = true;
            line.wake.notify_one();
        }
    }

    /// Takes note of the largest size that the server takes, if it has refused one, so that it is refused here the next time,
    /// and alone.
    pub(crate) fn learn(&self, refusal: &lapin::Error) -> Option<u64> {
        let limit = error::size_limit(refusal)?;
        self.server_limit.fetch_min(limit, Ordering::Relaxed);
        Some(limit)
    }

    pub(crate) fn was_marked(&self, queue: &QueueName) -> bool {
        lock(&self.marked).contains(queue)
    }

    /// Keeps and gives back whether a queue is paused.
    pub(crate) fn set_marked(&self, queue: &QueueName, paused: bool) -> bool {
        let mut marked = lock(&self.marked);
        if paused {
            marked.insert(queue.clone());
        } else {
            marked.remove(queue);
        }
        paused
    }

    pub(crate) fn add_line(&self, line: &Arc<Line>) {
        let mut lines = lock(&self.lines);
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(line));
    }

    /// The consumers of this process, of one queue or of all.
    pub(crate) fn lines(&self, queue: Option<&QueueName>) -> Vec<Arc<Line>> {
        let all = lock(&self.lines).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        all.into_iter().filter(|line| queue.is_none_or(|queue| line.queue == *queue)).collect()
    }

    /// Waits until the settles under way are through, for as long as one may take.
    pub(crate) async fn settled(&self) {
        let give_up = self.clock.now() + self.config.timeout * 2;
        for line in self.lines(None) {
            while line.state().settling > 0 && self.clock.now() < give_up {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }

    pub(crate) fn is_silent(&self, queue: &ShortString) -> bool {
        lock(&self.silent).contains(queue)
    }

    pub(crate) fn set_silent(&self, queue: &ShortString, silent: bool) {
        let mut all = lock(&self.silent);
        if silent {
            all.insert(queue.clone());
        } else {
            all.remove(queue);
        }
    }

    /// Has the next ones ask on another channel than this one, on which the server answers nobody.
    pub(crate) fn ask_elsewhere(&self, silent: &Channel) {
        lock(&self.asking).take_if(|channel| channel.id() == silent.id());
    }

    /// A channel to ask on; one that the server has closed is replaced.
    pub(crate) async fn asking(&self) -> Result<Channel> {
        let current = |asking: &Option<Channel>| asking.clone().filter(|channel| channel.status().connected());
        if let Some(channel) = current(&lock(&self.asking)) {
            return Ok(channel);
        }
        let channel = self.work.channel().await?;
        // Nobody waits for another one who opens a channel, too: the second one's is closed as it falls.
        let mut asking = lock(&self.asking);
        let channel = current(&asking).unwrap_or(channel);
        *asking = Some(channel.clone());
        Ok(channel)
    }
}

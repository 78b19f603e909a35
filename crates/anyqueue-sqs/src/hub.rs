//! What all parts of one broker share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyqueue_core::{Clock, Create, Error, ErrorKind, Moment, QueueName, Result, time::unix_millis};
use futures::stream::{self, StreamExt};
use tokio::sync::watch;

use crate::api::{Api, BATCH};
use crate::claim;
use crate::config::Config;
use crate::error;
use crate::folder::Folder;
use crate::inbox::Inbox;
use crate::lease::Leases;
use crate::lines::Lines;
use crate::marker::Markers;
use crate::message::Post;
use crate::settle::LONGEST;
use crate::skew;
use crate::strays;
use crate::tend;
use crate::walk::Listings;

/// Looks at messages that are remembered; when there are more, all are forgotten.
const LOOKS: usize = 50_000;

/// What is received as a message and sent as another.
pub(crate) type Move = (Arc<str>, Post);

/// What all parts of one broker share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) api: Api,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) markers: Markers,
    pub(crate) listings: Listings,
    /// Where large data is.
    pub(crate) folder: Option<Arc<Folder>>,
    /// Whether the folder is swept already.
    sweeps: AtomicBool,
    closed: watch::Sender<bool>,
    lines: Mutex<HashMap<QueueName, Arc<Lines>>>,
    /// The TTR that each queue's receives ask for.
    ttrs: Mutex<HashMap<QueueName, Duration>>,
    /// Queues whose held tasks are renewed, and whether they were looked at yet.
    tended: Mutex<HashMap<QueueName, bool>>,
    leases: Mutex<Leases>,
    /// What lies at this process's consumers.
    inboxes: Mutex<Vec<(QueueName, Weak<Inbox>)>>,
    /// The moment of the last hold, in microseconds since 1970: those of one process never share one.
    held_at: AtomicU64,
    /// How often we received a message without giving it to a worker.
    looks: Mutex<HashMap<Arc<str>, u64>>,
}

impl Hub {
    pub(crate) async fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let folder = claim::folder(&config)?;
        Ok(Arc::new(Self {
            api: Api::new(&config, clock.clone()).await?,
            config,
            clock,
            runtime: tokio::runtime::Handle::current(),
            markers: Markers::default(),
            listings: Listings::default(),
            folder,
            sweeps: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            lines: Mutex::default(),
            ttrs: Mutex::default(),
            tended: Mutex::default(),
            leases: Mutex::new(Leases::new()),
            inboxes: Mutex::default(),
            held_at: AtomicU64::new(0),
            looks: Mutex::default(),
        }))
    }

    pub(crate) fn add_inbox(&self, queue: &QueueName, inbox: &Arc<Inbox>) {
        let mut inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|(_, inbox)| inbox.strong_count() > 0);
        inboxes.push((queue.clone(), Arc::downgrade(inbox)));
    }

    pub(crate) fn inboxes(&self, queue: &QueueName) -> Vec<Arc<Inbox>> {
        let inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.iter().filter(|(of, _)| of == queue).filter_map(|(_, inbox)| inbox.upgrade()).collect()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if *self.closed.borrow() { Err(error::closed()) } else { Ok(()) }
    }

    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// To be told of the end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of day, in milliseconds since 1970.
    pub(crate) fn wall(&self) -> u64 {
        unix_millis(self.clock.wall())
    }

    /// The time of day by SQS's clock, as far as its answers tell; in milliseconds since 1970.
    pub(crate) async fn server_wall(&self, url: &str) -> Result<u64> {
        let asked = self.wall();
        let date = self.api.date(url).await?;
        let now = self.wall();
        Ok(now.saturating_add_signed(date.map_or(0, |date| skew::skew(date, asked as i64, now as i64))))
    }

    /// A moment for a hold, in microseconds since 1970, later than that of any other hold of this process.
    pub(crate) fn held_at(&self) -> u64 {
        let now = self.wall() * 1000;
        let next = |last: u64| Some(now.max(last + 1));
        self.held_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(now, |last| now.max(last + 1))
    }

    /// For how many more seconds a message may be hidden that was asked for at this moment. SQS refuses one more, and the
    /// request takes some time.
    pub(crate) fn left(&self, asked: Moment) -> u64 {
        (asked + LONGEST).since(self.clock.now()).as_secs().saturating_sub(1)
    }

    /// A queue's own queues, if they are known already.
    pub(crate) fn known(&self, queue: &QueueName) -> Option<Arc<Lines>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(queue).cloned()
    }

    /// All queues that were used so far.
    pub(crate) fn all_known(&self) -> Vec<Arc<Lines>> {
        let mut all: Vec<_> = self.lines.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.queue.cmp(&b.queue));
        all
    }

    /// A queue's own queues; made where they are missing and the settings allow it.
    pub(crate) async fn lines(&self, queue: &QueueName) -> Result<Arc<Lines>> {
        self.check()?;
        match self.known(queue) {
            Some(lines) => Ok(lines),
            None => self.declare(queue, self.config.create).await,
        }
    }

    pub(crate) async fn declare(&self, queue: &QueueName, create: Create) -> Result<Arc<Lines>> {
        self.check()?;
        let lines = Arc::new(Lines::find(&self.api, &self.config, queue, create).await?);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), lines.clone());
        Ok(lines)
    }

    /// Looks for a queue anew at its next use, if it turned out to be gone.
    pub(crate) fn noticed(&self, queue: &QueueName, error: &Error) {
        if error.kind() == ErrorKind::NotFound {
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
        }
    }

    /// Sees to it that what is held outlives SQS's retention, and what other settings left comes too, for as long as this
    /// broker is open.
    pub(crate) fn tend(self: &Arc<Self>, lines: &Arc<Lines>) {
        if self.tended.lock().unwrap_or_else(PoisonError::into_inner).insert(lines.queue.clone(), false).is_none() {
            self.runtime.spawn(tend::run(Arc::downgrade(self), self.clock.clone(), lines.clone()));
            self.runtime.spawn(strays::run(Arc::downgrade(self), self.clock.clone(), lines.clone()));
        }
        if self.folder.is_some() && !self.sweeps.swap(true, Ordering::Relaxed) {
            self.runtime.spawn(tend::sweep(Arc::downgrade(self), self.clock.clone()));
        }
    }

    /// Notes that a queue's held tasks are looked at. Whether that is the first time.
    pub(crate) fn tended(&self, queue: &QueueName) -> bool {
        self.tended.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), true) != Some(true)
    }

    pub(crate) fn set_ttr(&self, queue: &QueueName, ttr: Duration) {
        self.ttrs.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), ttr);
    }

    pub(crate) fn ttr(&self, queue: &QueueName) -> Duration {
        let known = self.ttrs.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied();
        known.unwrap_or(anyqueue_core::time::DEFAULT_TTR)
    }

    /// Notes that we received a message for no worker.
    pub(crate) fn looked(&self, id: &Arc<str>) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= LOOKS {
            looks.clear();
        }
        *looks.entry(id.clone()).or_default() += 1;
    }

    pub(crate) fn looks(&self, id: &Arc<str>) -> u64 {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied().unwrap_or_default()
    }

    /// Sends messages, in requests of up to ten and as large as SQS takes, several under way: SQS's id of each, in order.
    pub(crate) async fn post(&self, lines: &Lines, url: &str, posts: &[Post]) -> Vec<Result<Box<str>>> {
        let fifo = url.ends_with(".fifo");
        self.in_use(posts.iter().filter_map(|post| post.slip.claim.as_ref())).await;
        let mut answers: Vec<Option<Result<Box<str>>>> = posts.iter().map(|_| None).collect();
        let (mut requests, mut request, mut size) = (Vec::new(), Vec::new(), 0);
        for (at, post) in posts.iter().enumerate() {
            if request.len() == BATCH || (size + post.size() > lines.max_request && !request.is_empty()) {
                requests.push(std::mem::take(&mut request));
                size = 0;
            }
            match post.entry(request.len(), fifo) {
                Ok(entry) => {
                    size += post.size();
                    request.push((at, entry));
                }
                Err(e) => answers[at] = Some(Err(e)),
            }
        }
        requests.push(request);
        let send = async |request: Vec<_>| {
            let (places, entries): (Vec<usize>, Vec<_>) = request.into_iter().unzip();
            places.into_iter().zip(self.api.send(url, entries).await).collect::<Vec<_>>()
        };
        let requests = requests.into_iter().filter(|request| !request.is_empty());
        if fifo {
            // The order of a FIFO queue is that in which requests arrive: what is sent again must not come behind others.
            for request in requests {
                let sent = send(request).await;
                let stop = sent.iter().any(|(_, answer)| answer.as_ref().is_err_and(Error::is_retryable));
                sent.into_iter().for_each(|(at, answer)| answers[at] = Some(answer));
                if stop {
                    break;
                }
            }
            return answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error::behind()))).collect();
        }
        let sent: Vec<_> = stream::iter(requests.map(send)).buffer_unordered(self.config.requests).collect().await;
        sent.into_iter().flatten().for_each(|(at, answer)| answers[at] = Some(answer));
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error::unanswered()))).collect()
    }

    /// Deletes messages of one SQS queue, several requests under way.
    pub(crate) async fn delete(&self, url: &str, handles: &[Arc<str>]) -> Vec<Result<()>> {
        let requests: Vec<_> = handles.chunks(BATCH).map(|part| self.api.delete(url, part)).collect();
        stream::iter(requests).buffered(self.config.requests).collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Hides messages of one SQS queue for so many seconds each, several requests under way.
    pub(crate) async fn hide(&self, url: &str, items: &[(Arc<str>, u64)]) -> Vec<Result<()>> {
        let requests: Vec<_> = items.chunks(BATCH).map(|part| self.api.hide(url, part)).collect();
        stream::iter(requests).buffered(self.config.requests).collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Sends messages anew and removes those that they were: what has no copy is shown again. How many were moved, and what
    /// went wrong first.
    pub(crate) async fn moved_or_shown(&self, lines: &Lines, from: &str, to: &str, items: Vec<Move>) -> (u64, Result<()>) {
        let (handles, posts): (Vec<Arc<str>>, Vec<Post>) = items.into_iter().unzip();
        let (mut sent, mut copied, mut left) = (Ok(()), Vec::new(), Vec::new());
        for (handle, answer) in handles.into_iter().zip(self.post(lines, to, &posts).await) {
            match answer {
                Ok(_) => copied.push(handle),
                Err(e) => {
                    left.push((handle, 0));
                    sent = sent.and(Err(e));
                }
            }
        }
        let (removed, _) = futures::join!(self.delete(from, &copied), self.hide(from, &left));
        let removed = removed.into_iter().filter(|answer| answer.as_ref().is_err_and(|e| !e.is_lease_lost()));
        (copied.len() as u64, sent.and(removed.collect()))
    }

    /// Sends messages anew and removes those that they were: what has no copy stays. How many were moved.
    pub(crate) async fn moved(&self, lines: &Lines, from: &str, to: &str, items: Vec<Move>) -> Result<u64> {
        let (handles, posts): (Vec<Arc<str>>, Vec<Post>) = items.into_iter().unzip();
        let sent = self.post(lines, to, &posts).await;
        let copied: Vec<Arc<str>> =
            handles.iter().zip(&sent).filter(|(_, sent)| sent.is_ok()).map(|(handle, _)| handle.clone()).collect();
        let moved = copied.len() as u64;
        for removed in self.delete(from, &copied).await {
            // One that is gone was settled by somebody else, or its lease had ended: its copy stays.
            removed.or_else(|e| if e.is_lease_lost() { Ok(()) } else { Err(e) })?;
        }
        sent.into_iter().collect::<Result<Vec<_>>>().map(|_| moved)
    }
}

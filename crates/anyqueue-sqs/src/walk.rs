//! Walking through a queue: SQS shows messages only by handing them out, so they are taken for a moment and put back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Defaults, ErrorKind, Incoming, Moment, Peeked, QueueName, Result, State};
use aws_sdk_sqs::types::QueueAttributeName;
use futures::future::join_all;

use crate::SECOND;
use crate::api::BATCH;
use crate::hub::Hub;
use crate::lines::Lines;
use crate::message::Arrived;

/// If a walk through held tasks dies, what it took is there again after so many seconds.
const HIDDEN: u64 = 60;
/// The same for a look at ready tasks, for which workers wait.
const HIDDEN_READY: u64 = 5;
/// Requests of a walk that are under way at once.
const WIDE: usize = 4;
/// A listing is kept so long for whoever asks for its next page.
const KEPT: Duration = Duration::from_secs(60);
/// The most that a walk takes: no more than that is kept in memory.
pub(crate) const MOST: usize = 20_000;

/// A held message, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) url: Arc<str>,
    pub(crate) arrived: Arrived,
}

impl Found {
    /// When it was held, in microseconds since 1970.
    pub(crate) fn held_at(&self) -> u64 {
        self.arrived.slip.held.unwrap_or(self.arrived.sent.saturating_mul(1000))
    }

    /// What held tasks are sorted by.
    fn key(&self) -> (u64, Arc<str>) {
        (self.held_at(), self.arrived.id.clone())
    }
}

/// Listings whose next pages somebody may ask for.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    kept: Mutex<HashMap<QueueName, Listing>>,
    /// One walk through held tasks at a time: two of them would see half each.
    walking: Mutex<HashMap<QueueName, Arc<tokio::sync::Mutex<()>>>>,
}

/// What was found, and when.
type Listing = (Moment, Arc<Vec<Found>>);

impl Listings {
    /// Waits until nobody of this process walks through a queue's held tasks, and keeps others from it.
    pub(crate) async fn walking(&self, queue: &QueueName) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.walking.lock().unwrap_or_else(PoisonError::into_inner).entry(queue.clone()).or_default().clone();
        lock.lock_owned().await
    }

    pub(crate) fn get(&self, queue: &QueueName, now: Moment) -> Option<Arc<Vec<Found>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (at, _)| now.since(*at) < KEPT);
        kept.get(queue).map(|(_, listing)| listing.clone())
    }

    pub(crate) fn keep(&self, queue: &QueueName, now: Moment, listing: Arc<Vec<Found>>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), (now, listing));
    }
}

impl Hub {
    /// One figure of an SQS queue, as good as SQS knows it.
    pub(crate) async fn figure(&self, url: &str, of: &QueueAttributeName) -> Result<u64> {
        let attributes = self.api.attributes(url).await?;
        Ok(attributes.get(of).and_then(|text| text.parse().ok()).unwrap_or_default())
    }

    /// Takes what is visible on an SQS queue, up to so many. `sure`: waits for what SQS's count may leave out. After an error,
    /// nothing is taken.
    pub(crate) async fn taken(&self, url: &Arc<str>, most: usize, sure: bool, hidden: u64) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        match self.take(url, most, sure, hidden, &mut found).await {
            Ok(()) => Ok(found),
            Err(e) => {
                self.put_back(&found).await;
                Err(e)
            }
        }
    }

    async fn take(&self, url: &Arc<str>, most: usize, sure: bool, hidden: u64, found: &mut Vec<Found>) -> Result<()> {
        let (attributes, sure) = match self.api.attributes(url).await {
            Ok(attributes) => (attributes, sure),
            // Nobody says how many there are: it goes on until none is left.
            Err(e) if e.kind() == ErrorKind::Denied => (HashMap::new(), true),
            Err(e) => return Err(e),
        };
        let number = |key| attributes.get(&key).and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
        let count = number(QueueAttributeName::ApproximateNumberOfMessages);
        let all = count + number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible);
        let (mut seen, mut patience) = (HashSet::new(), if sure { 5 } else { 3 });
        loop {
            let requests = (most - found.len()).div_ceil(BATCH).min(WIDE);
            let (wide, each) = (if found.is_empty() { 1 } else { requests }, (most - found.len()).min(BATCH));
            let parts = join_all((0..wide).map(|_| self.api.receive(url, each, hidden, Duration::ZERO))).await;
            let (mut came, mut failed): (Vec<Arrived>, _) = (Vec::new(), Ok(()));
            for part in parts {
                match part {
                    Ok(part) => came.extend(part),
                    Err(e) => failed = Err(e),
                }
            }
            if came.is_empty() && failed.is_ok() && (found.len() < count || sure) {
                // Without a wait SQS asks some of its servers only.
                came = self.api.receive(url, each, hidden, SECOND).await?;
            }
            let before = found.len();
            let came = came.into_iter().filter(|one| seen.insert(one.id.clone()));
            found.extend(came.map(|arrived| Found { url: url.clone(), arrived }));
            failed?;
            if found.len() == before && found.len() < all && patience > 0 && url.contains("__held") {
                // Somebody else walks through them just now.
                patience -= 1;
                self.clock.sleep_until(self.clock.now() + SECOND / 4).await;
            } else if found.len() == before || found.len() >= most {
                return Ok(());
            }
        }
    }

    /// Puts back what was taken.
    pub(crate) async fn put_back(&self, found: &[Found]) {
        let mut by_url: HashMap<&Arc<str>, Vec<(Arc<str>, u64)>> = HashMap::new();
        for one in found {
            self.looked(&one.arrived.id);
            by_url.entry(&one.url).or_default().push((one.arrived.handle.clone(), 0));
        }
        for (url, items) in by_url {
            for answer in self.hide(url, &items).await {
                if let Err(error) = answer {
                    tracing::warn!(%error, "a task that was looked at stays hidden for a while");
                }
            }
        }
    }

    /// Takes held tasks, up to so many of each SQS queue, longest held first. Who calls puts back what is to stay.
    pub(crate) async fn take_held(&self, lines: &Lines, sure: bool, most: usize) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        for url in &lines.held {
            match self.taken(url, most, sure, HIDDEN).await {
                Ok(found) => all.extend(found),
                Err(e) => {
                    self.put_back(&all).await;
                    return Err(e);
                }
            }
        }
        all.sort_by_cached_key(Found::key);
        Ok(all)
    }

    /// The first tasks of a queue that are ready. They are taken and put back.
    pub(crate) async fn look(&self, lines: &Lines, limit: usize) -> Result<Vec<Peeked>> {
        let (mut peeked, mut taken) = (Vec::new(), Vec::new());
        for (band, url) in lines.bands.iter().enumerate() {
            if peeked.len() >= limit {
                break;
            }
            let found = match self.taken(url, limit - peeked.len(), false, HIDDEN_READY).await {
                Ok(found) => found,
                Err(e) => {
                    self.put_back(&taken).await;
                    return Err(e);
                }
            };
            let now = self.wall();
            let due = |one: &&Found| !(one.arrived.slip.hop && one.arrived.slip.due.is_some_and(|due| due > now));
            peeked.extend(found.iter().filter(due).map(|one| {
                let mut peeked = self.peeked(one, State::Ready);
                peeked.native.priority = peeked.native.priority.or(lines.usual(band));
                peeked
            }));
            taken.extend(found);
        }
        self.put_back(&taken).await;
        peeked.truncate(limit);
        Ok(peeked)
    }

    /// A task as listings show it.
    pub(crate) fn peeked(&self, found: &Found, state: State) -> Peeked {
        let mut native = found.arrived.native(self.looks(&found.arrived.id), self.wall());
        if state == State::Held {
            // What counts for a held task is in its body.
            native.redeliveries = anyqueue_core::Figure::Exact(0);
        }
        Peeked { raw: found.arrived.body.clone(), native, state, remaining: None }
    }

    /// Reads a task as the facade does.
    pub(crate) fn incoming(&self, lines: &Lines, found: &Found) -> Incoming {
        Incoming::peeked(&self.peeked(found, State::Held), &self.config.name, lines.queue.as_str(), Defaults::default())
    }
}

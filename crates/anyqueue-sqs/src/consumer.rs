//! Reserving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{ConsumeOptions, Consumer, Delivery, Error, ErrorKind, QueueName, Result, Settler, async_trait};
use tokio::task::JoinHandle;

use crate::error;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::inbox::{Inbox, Ready};
use crate::lease::Lease;
use crate::lines::Lines;
use crate::settle::SqsSettler;

/// How long a close waits for answers that may be on their way.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// Takes tasks of one queue.
#[derive(Debug)]
pub(crate) struct SqsConsumer {
    hub: Arc<Hub>,
    lines: Arc<Lines>,
    inbox: Arc<Inbox>,
    prefetch: usize,
    feed: Option<JoinHandle<()>>,
}

impl SqsConsumer {
    pub(crate) async fn new(hub: Arc<Hub>, queue: &QueueName, options: ConsumeOptions) -> Result<Self> {
        let lines = hub.lines(queue).await?;
        let bands = bands(&lines, &options)?;
        hub.set_ttr(queue, options.ttr);
        hub.tend(&lines);
        let inbox = Arc::new(Inbox::new(lines.bands.len()));
        hub.add_inbox(queue, &inbox);
        let feed = Feed { hub: hub.clone(), lines: lines.clone(), inbox: inbox.clone(), bands, ttr: options.ttr };
        let feed = hub.runtime.spawn(Arc::new(feed).run());
        Ok(Self { hub, lines, inbox, prefetch: options.prefetch.max(1), feed: Some(feed) })
    }

    fn hand_out(&self, max: usize) -> Vec<Delivery> {
        let now = self.hub.clock.now();
        let taken = self.inbox.take(max, now);
        taken.into_iter().map(|(band, ready)| self.delivery(band, ready)).collect()
    }

    fn delivery(&self, band: usize, ready: Ready) -> Delivery {
        let Ready { arrived, fetched, looks, ttr, asked, deadline } = ready;
        let mut facts = arrived.native(looks, self.hub.wall());
        facts.priority = facts.priority.or(self.lines.usual(band));
        // A body without an id of ours has the one that SQS gave it first, whatever message it is in later.
        let native = arrived.slip.priority.is_none().then(|| arrived.id.clone());
        let native = arrived.slip.native.or(native);
        let (raw, owned) = fetched.map_or_else(|| (arrived.body.clone(), None), |(whole, owned)| (whole, Some(owned)));
        let lease = Lease {
            url: self.lines.bands[band].clone(),
            handle: arrived.handle,
            id: arrived.id,
            group: arrived.slip.group,
            body: (owned.is_some() || arrived.body.len() as u64 > self.lines.largest / 2).then_some(arrived.body),
            owned,
            native,
            redeliveries: facts.redeliveries.value().unwrap_or_default(),
            asked,
            deadline,
            copied: false,
        };
        let receipt = self.hub.leases().add(lease, self.hub.clock.now());
        Delivery { receipt, queue: self.lines.queue.clone(), raw, native: facts, lease: ttr, deadline }
    }
}

/// The bands that make up a range of priorities.
fn bands(lines: &Lines, options: &ConsumeOptions) -> Result<Vec<usize>> {
    let (first, last) = (*options.priorities.start(), *options.priorities.end());
    let ends = lines.kind.bands;
    let starts = std::iter::once(0).chain(ends.iter().map(|end| end.saturating_add(1)));
    let of_range = |(at, (start, end)): (usize, (u32, &u32))| (first <= start && *end <= last).then_some(at);
    let bands: Vec<usize> = starts.zip(ends).enumerate().filter_map(of_range).collect();
    let whole = bands.first().is_some_and(|at| *at == 0 && first == 0 || *at > 0 && ends[at - 1] + 1 == first)
        && bands.last().is_some_and(|at| ends[*at] == last);
    if whole {
        return Ok(bands);
    }
    let edges: Vec<String> = ends[..ends.len() - 1].iter().map(u32::to_string).collect();
    let edges =
        if edges.is_empty() { "one band for all; set `bands`".to_owned() } else { format!("bands end at {}", edges.join(", ")) };
    let text = format!("priorities {first}-{last} are not whole bands, and SQS keeps nothing finer; {edges}");
    Err(Error::new(ErrorKind::Unsupported, text).with("queue", &lines.queue))
}

#[async_trait]
impl Consumer for SqsConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let max = max.get().min(self.prefetch);
        let (began, mut closing) = (self.hub.clock.now(), self.hub.closing());
        // Without a wait, it takes as long as one look at each band does.
        let end = began + wait.max(Duration::from_millis(1));
        let mut demand = None;
        loop {
            self.hub.check().map_err(|e| e.during("reserve"))?;
            let ready = self.hand_out(max);
            if !ready.is_empty() {
                return Ok(ready);
            }
            if let Some(error) = self.inbox.failure() {
                return Err(error.during("reserve").with("queue", &self.lines.queue));
            }
            if self.inbox.is_closed() {
                return Err(error::closed().during("reserve"));
            }
            if demand.is_none() {
                demand = Some(self.inbox.demand(max, end));
            }
            tokio::select! {
                () = self.inbox.arrived.notified() => {}
                _ = closing.changed() => {}
                () = self.over(end) => return Ok(self.hand_out(max)),
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(SqsSettler::new(self.hub.clone(), self.lines.clone()))
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.inbox.close();
        if let Some(feed) = self.feed.take() {
            let late = self.hub.clock.sleep_until(self.hub.clock.now() + self.hub.config.timeout);
            let given_back = async {
                drop(feed.await);
                self.last_answers().await;
                drop(self.inbox.sorting.write().await);
                self.hub.tend_at_last(&self.lines).await;
            };
            tokio::select! {
                () = given_back => {}
                () = late => {}
            }
        }
        Ok(())
    }
}

impl Drop for SqsConsumer {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl SqsConsumer {
    /// Waits for answers that are on their way just now, so that what they bring is given back. Requests that wait cannot be
    /// taken back, and may wait for long.
    async fn last_answers(&self) {
        let until = self.hub.clock.now() + LAST_ANSWERS;
        while self.inbox.anything_waits() {
            tokio::select! {
                () = self.inbox.wanted.notified() => {}
                () = self.hub.clock.sleep_until(until) => return,
            }
        }
    }

    /// The end of a wait: the moment is there, and every band has been looked at.
    async fn over(&self, end: anyqueue_core::Moment) {
        self.hub.clock.sleep_until(end).await;
        self.inbox.looked().await;
    }
}

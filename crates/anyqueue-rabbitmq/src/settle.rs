//! Ending and renewing leases.
//!
//! Copies first, confirmed; then the word that the old ones are done; then a request whose answer says that the server has
//! heard it. Before a copy is written the channel that holds the delivery must answer: a worker that was cut off writes none.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Envelope, Error, ErrorKind, Moment, Receipt, Result, Settlement, Settler, Touch, async_trait, time};
use lapin::types::ShortString;

use crate::error::closed;
use crate::layout::Layout;
use crate::line::{Lease, Line, Session};
use crate::message::{carrying, properties};
use crate::publish::Post;
use crate::shared::Shared;

/// See the module.
#[derive(Debug)]
pub(crate) struct RabbitSettler {
    shared: Arc<Shared>,
    layout: Arc<Layout>,
    line: Arc<Line>,
}

/// One item that is being settled.
struct Item {
    at: usize,
    tag: u64,
    lease: Lease,
    what: Settlement,
}

/// A settle under way, whose channel must stay.
struct Settling<'a>(&'a Line);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.state().settling -= 1;
        self.0.wake.notify_one();
        self.0.bell.notify_waiters();
    }
}

impl RabbitSettler {
    pub(crate) fn new(shared: Arc<Shared>, layout: Arc<Layout>, line: Arc<Line>) -> Self {
        Self { shared, layout, line }
    }

    /// Takes the leases that still hold; the others are lost.
    fn claim(&self, batch: &[(Receipt, Settlement)], answers: &mut [Result<()>]) -> (Vec<Item>, Option<Session>) {
        let now = self.shared.clock.now();
        let mut state = self.line.state();
        let session = state.session.clone();
        let mut items = Vec::with_capacity(batch.len());
        for (at, (receipt, what)) in batch.iter().enumerate() {
            let here = session.as_ref().is_some_and(|session| session.epoch == receipt.epoch);
            let held = here && state.leases.get(&receipt.tag).is_some_and(|lease| now < lease.deadline);
            match held.then(|| state.leases.remove(&receipt.tag)).flatten() {
                Some(lease) => items.push(Item { at, tag: receipt.tag, lease, what: what.clone() }),
                None => answers[at] = Err(Error::lease_lost()),
            }
        }
        state.settling += usize::from(!items.is_empty());
        (items, session)
    }

    async fn settle_all(&self, batch: Vec<(Receipt, Settlement)>) -> Vec<Result<()>> {
        let mut answers: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        if self.shared.is_closed() {
            return batch.iter().map(|_| Err(closed())).collect();
        }
        let (items, session) = self.claim(&batch, &mut answers);
        let Some(session) = session.filter(|_| !items.is_empty()) else { return answers };
        let _settling = Settling(&self.line);
        let (good, failed) = self.copy(&session, items).await;
        for (item, error) in failed {
            answers[item.at] = Err(error);
            self.restore(session.epoch, item);
        }
        if let Err(e) = self.finish(&session, &good).await {
            for item in good {
                // A copy is confirmed: the task goes on, and perhaps a second time.
                if item.what == Settlement::Done {
                    answers[item.at] = Err(e.duplicate().effect_unknown());
                }
            }
        }
        answers
    }

    /// Publishes what must go on in another form. Says what may be removed, and what went wrong.
    async fn copy(&self, session: &Session, items: Vec<Item>) -> (Vec<Item>, Vec<(Item, Error)>) {
        let (mut good, copies): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.what == Settlement::Done);
        if copies.is_empty() {
            return (good, Vec::new());
        }
        // Before the barrier: nothing must be waited for behind it, a connection least of all.
        let publishing = match self.shared.publishing().await {
            Ok(publishing) => publishing,
            Err(e) => {
                let unsent = |item| (item, e.duplicate().without_effect());
                return (good, copies.into_iter().map(unsent).collect());
            }
        };
        let reached = self.line.barrier(&self.shared, &session.channel).await.is_ok();
        let now = self.shared.clock.now();
        let (copies, late): (Vec<_>, Vec<_>) = copies.into_iter().partition(|item| reached && now < item.lease.deadline);
        let late = late.into_iter().map(|item| (item, Error::lease_lost()));
        let (mut failed, mut posts, mut posted) = (late.collect::<Vec<_>>(), Vec::new(), Vec::new());
        for item in copies {
            match self.copy_of(&item) {
                Ok(post) => {
                    posts.push(post);
                    posted.push(item);
                }
                Err(e) => failed.push((item, e)),
            }
        }
        for (item, answer) in posted.into_iter().zip(publishing.to(&self.layout, &posts).await) {
            match answer {
                Ok(()) => good.push(item),
                Err(e) => failed.push((item, e)),
            }
        }
        (good, failed)
    }

    fn copy_of(&self, item: &Item) -> Result<Post> {
        match &item.what {
            Settlement::Hold(task, _) => {
                self.shared.refuse_copy(task)?;
                let task = Envelope { delay: Duration::ZERO, ..task.clone() };
                Ok(Post {
                    exchange: ShortString::default(),
                    key: self.layout.held.clone(),
                    properties: properties(&task, self.shared.clock.wall()),
                    body: task.body,
                })
            }
            Settlement::Release(task) | Settlement::Retry(task) => {
                // A task of another client may have come with a longer TTR: it is kept as it is.
                self.shared.refuse_copy(task)?;
                time::check_delay(task.delay)?;
                let post = self.shared.post(&self.layout, task);
                Ok(match &item.what {
                    Settlement::Release(_) if item.lease.deaths > 0 => {
                        Post { properties: carrying(post.properties, item.lease.deaths), ..post }
                    }
                    _ => post,
                })
            }
            Settlement::Done => Err(Error::new(ErrorKind::Protocol, "a task that is done has no copy")),
        }
    }

    /// Says what is done, and waits until the server has heard it.
    async fn finish(&self, session: &Session, items: &[Item]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let tags: Vec<u64> = items.iter().map(|item| item.tag).collect();
        {
            let _saying = self.line.saying.lock().await;
            self.line.acknowledge(session, &tags).await?;
        }
        self.line.state().open_no_more(session.epoch, items.iter().map(|item| (item.tag, item.lease.band, item.lease.run)));
        self.line.barrier(&self.shared, &session.channel).await
    }

    /// Takes back an end that did not come about.
    fn restore(&self, epoch: u64, item: Item) {
        let mut state = self.line.state();
        if state.session.as_ref().is_some_and(|session| session.epoch == epoch) {
            state.leases.insert(item.tag, item.lease);
        }
    }

    fn extend(&self, touch: &Touch, now: Moment) -> Result<Duration> {
        let mut state = self.line.state();
        let here = state
            .session
            .as_ref()
            .is_some_and(|session| session.epoch == touch.receipt.epoch && session.channel.status().connected());
        let lease = state.leases.get_mut(&touch.receipt.tag).filter(|lease| here && now < lease.deadline);
        let lease = lease.ok_or_else(Error::lease_lost)?;
        let (limit, end) = (self.line.max_ttr, lease.fetched + self.line.max_ttr);
        if now + touch.ttr > end {
            let text = "the server's `consumer_timeout` lets no task be reserved for longer, two minutes off; raise it there, \
                        and the option of that name here";
            return Err(Error::new(ErrorKind::TouchLimit { limit }, text));
        }
        lease.deadline = now + touch.ttr;
        Ok(touch.ttr)
    }
}

#[async_trait]
impl Settler for RabbitSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        if batch.is_empty() {
            return Vec::new();
        }
        // A settle that has begun is carried to its end, whoever waits for it: half of one leaves a task that nobody holds.
        let (owned, whole) = (batch.to_vec(), Self::new(self.shared.clone(), self.layout.clone(), self.line.clone()));
        let explain = |e: Error| e.during("settle").with("queue", &self.line.queue);
        match self.shared.runtime.spawn(async move { whole.settle_all(owned).await }).await {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(explain)).collect(),
            Err(e) => {
                let text = e.to_string();
                batch.iter().map(|_| Err(explain(Error::unavailable(text.clone()).effect_unknown()))).collect()
            }
        }
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let explain = |e: Error| e.during("touch").with("queue", &self.line.queue);
        if let Err(e) = self.shared.check() {
            return batch.iter().map(|_| Err(explain(e.duplicate()))).collect();
        }
        let now = self.shared.clock.now();
        let answers = batch.iter().map(|touch| self.extend(touch, now).map_err(explain)).collect();
        self.line.wake.notify_one();
        answers
    }
}

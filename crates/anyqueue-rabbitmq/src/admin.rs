//! The operator's verbs.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    Admin, Defaults, Error, ErrorKind, Figure, Incoming, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo,
    Which, async_trait,
};
use lapin::options::QueuePurgeOptions;
use lapin::types::ShortString;

use crate::broker::RabbitBroker;
use crate::layout::{Ladder, Layout, RUNGS};
use crate::message::Message;
use crate::publish::Post;
use crate::shared::Shared;
use crate::withheld::{Fate, Withheld};

/// By then a quorum queue has done what it was told before.
const OVERTAKEN: Duration = Duration::from_millis(50);
const KICKED_AT_ONCE: usize = 256;
/// The most that one walk takes from a queue.
const MOST: usize = 100_000;

fn needs_log(what: &str) -> Error {
    let text = format!("{what} needs a task log: RabbitMQ finds no task by its id");
    Error::new(ErrorKind::Unsupported, text)
}

impl Shared {
    fn incoming(&self, layout: &Layout, message: &Message) -> Incoming {
        let peeked = message.peeked(State::Held, self.clock.wall());
        let defaults = Defaults { ttr: message.ttr.unwrap_or(Defaults::default().ttr), ..Defaults::default() };
        Incoming::peeked(&peeked, &self.config.name, layout.queue.as_str(), defaults)
    }

    /// A held or stray task as it goes on: the same body.
    pub(crate) fn again(&self, layout: &Layout, message: &Message) -> Post {
        let task = self.incoming(layout, message).unchanged(Duration::ZERO);
        Post { body: message.raw.clone(), ..self.post(layout, &task) }
    }

    /// Has the consumers of this process put back what they fetched and have not handed out, and fetch nothing meanwhile.
    async fn withhold(&self, layout: &Layout, fate: Fate) -> Vec<Withheld> {
        let lines = self.lines(Some(&layout.queue));
        futures::future::join_all(lines.iter().map(|line| Withheld::begin(line, self, fate))).await
    }

    async fn purge_ready(&self, layout: &Layout) -> Result<u64> {
        let withheld = self.withhold(layout, Fate::Gone).await;
        let mut rounds = 1 + u32::from(!withheld.is_empty());
        let mut count = withheld.iter().map(Withheld::purged).sum();
        while rounds > 0 {
            for band in &layout.bands {
                count += self.purge_one(band).await?;
            }
            rounds -= 1;
            if rounds > 0 {
                // A quorum queue may put what comes back, since it was on its way here, behind what is asked later.
                tokio::time::sleep(OVERTAKEN).await;
            }
        }
        Ok(count)
    }

    async fn counted(&self, queue: &ShortString) -> Result<u64> {
        let channel = self.asking().await?;
        let missing = || Error::new(ErrorKind::NotFound, "the queue is not there").with("server_queue", queue);
        self.count(&channel, queue).await?.map(u64::from).ok_or_else(missing)
    }

    /// What the management API cannot tell now is unknown; `check` says why.
    async fn reserved(&self, layout: &Layout) -> Figure {
        let Some(management) = &self.config.management else { return Figure::Unknown };
        let mut reserved = 0;
        for band in &layout.bands {
            match management.reserved(&self.config.vhost, band.as_str(), self.config.timeout).await {
                Ok(count) => reserved += count.unwrap_or(0),
                Err(e) => {
                    tracing::debug!(error = anyqueue_core::chain(&e), "what is reserved is not known");
                    return Figure::Unknown;
                }
            }
        }
        Figure::Approximate(reserved)
    }

    async fn purge_one(&self, queue: &ShortString) -> Result<u64> {
        let channel = self.asking().await?;
        let purge = channel.queue_purge(queue.clone(), QueuePurgeOptions::default());
        self.work.call("queue.purge", purge).await.map(u64::from)
    }

    async fn peek_ready(&self, layout: &Layout, limit: usize) -> Result<Vec<Message>> {
        let _withheld = self.withhold(layout, Fate::Back).await;
        let walk = self.walk(layout.queue.as_str()).await?;
        let mut all = Vec::new();
        for band in &layout.bands {
            if all.len() < limit {
                all.extend(walk.take(band, limit - all.len()).await?);
            }
        }
        let names: Vec<_> = all.iter().filter_map(|message| message.name.clone()).collect();
        self.note(&names).await?;
        walk.end().await?;
        Ok(all)
    }

    async fn delayed(&self, layout: &Layout, limit: usize, remove: bool) -> Result<Vec<Message>> {
        let mut found = Vec::new();
        let walk = self.walk(layout.ladder.end().as_str()).await?;
        // Tasks only move down. What is looked at, the soonest first, may miss one; what is removed must not.
        let rungs: Vec<u32> = if remove { (0..RUNGS).rev().collect() } else { (0..RUNGS).collect() };
        for rung in rungs {
            for message in walk.take(&layout.ladder.rung(rung), MOST).await? {
                if layout.is_target(Ladder::target(message.key.as_str())) {
                    if remove {
                        walk.remove(&message).await?;
                    }
                    found.push(message);
                }
            }
            // What is due soon is on the low rungs, and must not be out of sight for longer than need be.
            walk.give_back().await?;
            if found.len() >= limit {
                break;
            }
        }
        walk.end().await?;
        found.sort_by_key(|message| message.due);
        found.truncate(limit);
        Ok(found)
    }

    async fn held(&self, layout: &Layout, skip: usize, limit: usize) -> Result<(Vec<Message>, bool)> {
        let walk = self.walk(layout.held.as_str()).await?;
        let mut all = walk.take(&layout.held, skip.saturating_add(limit).saturating_add(1).min(MOST)).await?;
        walk.end().await?;
        let more = all.len() > skip + limit;
        let end = all.len().min(skip + limit);
        let page = all.drain(skip.min(end)..end).collect();
        Ok((page, more))
    }

    async fn kick(&self, layout: &Layout, which: &Which) -> Result<u64> {
        let most = match which {
            Which::First(0) => return Ok(0),
            Which::First(count) => usize::try_from(*count).unwrap_or(MOST).min(MOST),
            Which::Ids(ids) if ids.is_empty() => return Ok(0),
            Which::Ids(_) | Which::All => MOST,
        };
        let walk = self.walk(layout.held.as_str()).await?;
        let mut chosen = walk.take(&layout.held, most).await?;
        if let Which::Ids(ids) = which {
            chosen.retain(|message| ids.contains(&self.incoming(layout, message).id));
        }
        let (mut kicked, mut failed) = (0, None);
        // What is confirmed is removed before more is copied: a crash doubles a few, not all.
        for part in chosen.chunks(KICKED_AT_ONCE) {
            let posts: Vec<_> = part.iter().map(|message| self.again(layout, message)).collect();
            for (message, answer) in part.iter().zip(self.publishing().await?.to(layout, &posts).await) {
                match answer {
                    Ok(()) => {
                        walk.remove(message).await?;
                        kicked += 1;
                    }
                    Err(e) => failed = Some(e),
                }
            }
            if failed.is_some() {
                break;
            }
        }
        walk.end().await?;
        failed.map_or(Ok(kicked), |e| Err(e.with("kicked", kicked)))
    }

    async fn delete_held(&self, layout: &Layout, ids: &[TaskId]) -> Result<Vec<bool>> {
        let walk = self.walk(layout.held.as_str()).await?;
        let mut found = vec![false; ids.len()];
        for message in walk.take(&layout.held, MOST).await? {
            let id = self.incoming(layout, &message).id;
            if let Some(at) = ids.iter().position(|wanted| *wanted == id) {
                walk.remove(&message).await?;
                found[at] = true;
            }
        }
        walk.end().await?;
        Ok(found)
    }
}

impl RabbitBroker {
    /// Carries a verb to its end, whoever waits for it: a walk that breaks off keeps others from walking.
    async fn verb<T, V, F>(&self, name: &'static str, queue: &QueueName, verb: V) -> Result<T>
    where
        T: Send + 'static,
        V: FnOnce(Arc<Shared>, Arc<Layout>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let explain = |e: Error| e.during(name).with("queue", queue);
        self.shared.check().map_err(explain)?;
        let (shared, layout) = (self.shared.clone(), self.shared.layout(queue));
        let whole = async move {
            shared.ensure(&layout).await?;
            verb(shared, layout).await
        };
        match self.shared.runtime.spawn(whole).await {
            Ok(answer) => answer.map_err(explain),
            Err(e) => Err(explain(Error::unavailable("the task was ended early").because(e))),
        }
    }
}

/// A verb as [`RabbitBroker::verb`] takes it.
macro_rules! verb {
    (|$shared:ident, $layout:ident| $body:expr) => {
        move |$shared: Arc<Shared>, $layout: Arc<Layout>| async move { $body }
    };
}

#[async_trait]
impl Admin for RabbitBroker {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let figures = verb!(|shared, layout| {
            let mut ready = 0;
            for band in &layout.bands {
                ready += shared.counted(band).await?;
            }
            Ok(Stats {
                ready: Figure::Approximate(ready),
                held: Figure::Approximate(shared.counted(&layout.held).await?),
                reserved: shared.reserved(&layout).await,
                ..Stats::default()
            })
        });
        self.verb("stats", queue, figures).await
    }

    async fn info(&self, queue: &QueueName, _id: TaskId) -> Result<Option<TaskInfo>> {
        self.shared.check()?;
        Err(needs_log("info").during("info").with("queue", queue))
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        let looked = verb!(|shared, layout| {
            let found = match state {
                State::Ready => shared.peek_ready(&layout, limit).await?,
                State::Delayed => shared.delayed(&layout, limit, false).await?,
                State::Held => shared.held(&layout, 0, limit).await?.0,
                State::Reserved => Vec::new(),
            };
            let now = shared.clock.wall();
            Ok(found.iter().map(|message| message.peeked(state, now)).collect())
        });
        self.verb("peek", queue, looked).await
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let skip = match after {
            None => 0,
            Some(text) => text.parse::<usize>().map_err(|_| Error::invalid(format!("`{text}` is no page of a listing")))?,
        };
        let listed = verb!(|shared, layout| {
            let (found, more) = shared.held(&layout, skip, limit).await?;
            let now = shared.clock.wall();
            let tasks: Vec<_> = found.iter().map(|message| message.peeked(State::Held, now)).collect();
            let next = (more && !tasks.is_empty()).then(|| (skip + tasks.len()).to_string());
            Ok(Page { tasks, next })
        });
        self.verb("held", queue, listed).await
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        let which = which.clone();
        self.verb("kick", queue, verb!(|shared, layout| shared.kick(&layout, &which).await)).await
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let wanted = ids.to_vec();
        let deleted = verb!(|shared, layout| shared.delete_held(&layout, &wanted).await);
        let absent = || {
            let text = "no task of this id is held; deleting one that is ready or delayed needs a task log";
            Error::new(ErrorKind::Unsupported, text).during("delete").with("queue", queue)
        };
        match self.verb("delete", queue, deleted).await {
            Ok(found) => found.into_iter().map(|found| if found { Ok(()) } else { Err(absent()) }).collect(),
            Err(e) => ids.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        let states = states.to_vec();
        let purged = verb!(|shared, layout| {
            let mut count = 0;
            // What falls due meanwhile is ready then.
            if states.contains(&State::Delayed) {
                count += shared.delayed(&layout, MOST, true).await?.len() as u64;
            }
            if states.contains(&State::Ready) {
                count += shared.purge_ready(&layout).await?;
            }
            if states.contains(&State::Held) {
                count += shared.purge_one(&layout.held).await?;
            }
            Ok(count)
        });
        self.verb("purge", queue, purged).await
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        let paused = verb!(|shared, layout| {
            shared.mark(&layout, time).await?;
            shared.set_marked(&layout.queue, true);
            drop(shared.withhold(&layout, Fate::Back).await);
            Ok(())
        });
        self.verb("pause", queue, paused).await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.verb("resume", queue, verb!(|shared, layout| shared.unmark(&layout).await)).await
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.verb("paused", queue, verb!(|shared, layout| shared.paused(&layout).await)).await
    }
}

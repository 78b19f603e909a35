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
use crate::layout::Layout;
use crate::message::Message;
use crate::notes::Word;
use crate::shared::Shared;
use crate::withheld::{Fate, Withheld};

/// By then a quorum queue has done what it was told before.
const OVERTAKEN: Duration = Duration::from_millis(50);

fn needs_log(what: &str) -> Error {
    let text = format!("{what} needs a task log: RabbitMQ finds no task by its id");
    Error::new(ErrorKind::Unsupported, text)
}

impl Shared {
    pub(crate) fn incoming(&self, layout: &Layout, message: &Message) -> Incoming {
        let peeked = message.peeked(State::Held, self.clock.wall());
        let defaults = Defaults { ttr: message.ttr.unwrap_or(Defaults::default().ttr), ..Defaults::default() };
        Incoming::peeked(&peeked, &self.config.name, layout.queue.as_str(), defaults)
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

    pub(crate) async fn counted(&self, queue: &ShortString) -> Result<u64> {
        let missing = || Error::new(ErrorKind::NotFound, "the queue is not there").with("server_queue", queue);
        self.how_many(queue).await?.map(u64::from).ok_or_else(missing)
    }

    /// What workers have, fetched ahead included. AMQP does not tell.
    async fn reserved(&self, layout: &Layout) -> Figure {
        let Some(management) = &self.config.management else { return Figure::Unknown };
        match management.queues(&self.config.vhost, &layout.queue, self.config.timeout).await {
            Ok(rows) => {
                let ours = |name: &str| layout.bands.iter().any(|band| band.as_str() == name);
                let counts = rows.iter().filter(|row| ours(&row.name)).map(|row| row.messages_unacknowledged);
                counts.sum::<Option<u64>>().map_or(Figure::Unknown, Figure::Approximate)
            }
            Err(e) => {
                tracing::debug!(
                    queue = layout.queue.as_str(),
                    error = anyqueue_core::chain(&e),
                    "reserved tasks are not counted"
                );
                Figure::Unknown
            }
        }
    }

    async fn purge_one(&self, queue: &ShortString) -> Result<u64> {
        let channel = self.work.channel().await?;
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
        let notes: Vec<_> = all.iter().filter_map(|message| Some((Word::Unharmed, message.name.clone()?))).collect();
        self.note(layout, &notes).await?;
        walk.end().await?;
        Ok(all)
    }

    async fn held(&self, layout: &Layout, skip: usize, limit: usize) -> Result<(Vec<Message>, bool)> {
        let walk = self.walk(layout.held.as_str()).await?;
        let mut slices = walk.slices(&layout.held, skip.saturating_add(limit).saturating_add(1));
        let (mut page, mut seen) = (Vec::new(), 0);
        loop {
            let slice = slices.next().await?;
            if slice.is_empty() {
                break;
            }
            let before = seen;
            seen += slice.len();
            page.extend(slice.into_iter().skip(skip.saturating_sub(before)));
        }
        walk.end().await?;
        let more = page.len() > limit;
        page.truncate(limit);
        Ok((page, more))
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
                State::Delayed => shared.peek_delayed(&layout, limit).await?,
                State::Held => shared.held(&layout, 0, limit).await?.0,
                State::Reserved => {
                    return Err(Error::new(ErrorKind::Unsupported, "RabbitMQ shows nobody the tasks that workers have"));
                }
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
            // What falls due meanwhile is ready, and that comes last.
            if states.contains(&State::Delayed) {
                count += shared.purge_delayed(&layout).await?;
            }
            if states.contains(&State::Held) {
                count += shared.purge_one(&layout.held).await?;
            }
            if states.contains(&State::Ready) {
                count += shared.purge_ready(&layout).await?;
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
        let resumed = verb!(|shared, layout| {
            shared.unmark(&layout).await?;
            shared.set_marked(&layout.queue, false);
            for line in shared.lines(Some(&layout.queue)) {
                line.state().resume();
                line.wake.notify_one();
            }
            Ok(())
        });
        self.verb("resume", queue, resumed).await
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.verb("paused", queue, verb!(|shared, layout| shared.paused(&layout).await)).await
    }
}

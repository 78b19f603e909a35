//! The operator's verbs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    Admin, Error, ErrorKind, Figure, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which, async_trait,
};
use aws_sdk_sqs::types::QueueAttributeName;
use futures::future::try_join_all;

use crate::api::BATCH;
use crate::broker::Sqs;
use crate::hub::Hub;
use crate::inbox::Ready;
use crate::lines::Lines;

/// What is purged one by one is hidden for so long, if we die on the way.
const HIDDEN: u64 = 30;

/// The sums of SQS's own figures over some of its queues.
#[derive(Debug, Default)]
struct Sums {
    visible: u64,
    delayed: u64,
    hidden: u64,
}

impl Sqs {
    async fn sums(&self, urls: &[Arc<str>]) -> Result<Sums> {
        let mut sums = Sums::default();
        for attributes in try_join_all(urls.iter().map(|url| self.hub.api.attributes(url))).await? {
            let number = |key| attributes.get(&key).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
            sums.visible += number(QueueAttributeName::ApproximateNumberOfMessages);
            sums.delayed += number(QueueAttributeName::ApproximateNumberOfMessagesDelayed);
            sums.hidden += number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible);
        }
        Ok(sums)
    }

    /// Goes on to its end even if nobody waits for it any more: what a walk took has to be put back.
    async fn undisturbed<T, F>(&self, lines: Arc<Lines>, work: impl FnOnce(Arc<Hub>, Arc<Lines>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let work = self.hub.runtime.spawn(work(self.hub.clone(), lines));
        work.await.unwrap_or_else(|e| Err(Error::unavailable("the walk through the queue was broken off").because(e)))
    }

    /// Receives and deletes what is visible, up to as much as there was at the beginning: others may go on sending.
    async fn drain(&self, url: &str, mut left: u64) -> Result<u64> {
        let mut removed = 0;
        while left > 0 {
            let some = self.hub.api.receive(url, BATCH, HIDDEN, Duration::ZERO).await?;
            let now = self.hub.wall();
            let (later, some): (Vec<_>, Vec<_>) =
                some.into_iter().partition(|one| one.slip.hop && one.slip.due.is_some_and(|due| due > now));
            if some.is_empty() && later.is_empty() {
                break;
            }
            for answer in self.hub.delete_whole(url, &some.iter().collect::<Vec<_>>()).await {
                answer?;
                removed += 1;
            }
            left = left.saturating_sub((some.len() + later.len()) as u64);
        }
        Ok(removed)
    }

    async fn empty_inboxes(&self, lines: &Arc<Lines>) -> Result<u64> {
        self.undisturbed(lines.clone(), |hub, lines| async move { empty_inboxes(&hub, &lines).await }).await
    }

    async fn page(&self, lines: Arc<Lines>, after: Option<String>, limit: usize) -> Result<Page> {
        self.undisturbed(lines, move |hub, lines| async move { hub.page(&lines, after.as_deref(), limit).await }).await
    }

    async fn purge_states(&self, lines: &Arc<Lines>, states: &[State]) -> Result<u64> {
        let has = |state| states.contains(&state);
        let (mut removed, sums) = (0, self.sums(&lines.bands).await?);
        if has(State::Reserved) && has(State::Ready) && has(State::Delayed) {
            // For the next minute SQS may delete what is sent, so it is asked only by who wants everything gone.
            try_join_all(lines.bands.iter().map(|url| self.hub.api.purge(url))).await?;
            tracing::warn!(queue = lines.queue.as_str(), "SQS purges the queue: what is sent within a minute may be deleted too");
            removed += sums.visible + sums.delayed + sums.hidden;
            self.empty_inboxes(lines).await?;
        } else if has(State::Reserved) {
            let text = "SQS takes reserved tasks from a queue only together with all that are ready and delayed; purge those too";
            return Err(Error::new(ErrorKind::Unsupported, text));
        } else {
            if has(State::Ready) {
                removed += self.empty_inboxes(lines).await?;
                for url in &lines.bands {
                    removed += self.drain(url, self.sums(std::slice::from_ref(url)).await?.visible).await?;
                }
            }
            if has(State::Delayed) {
                self.hub.purge_delayed(lines).await?;
                removed += sums.delayed;
            }
        }
        if has(State::Held) {
            for url in &lines.held {
                removed += self.drain(url, self.sums(std::slice::from_ref(url)).await?.visible).await?;
            }
        }
        Ok(removed)
    }
}

/// Deletes what consumers of this process received and have not handed out. What cannot be deleted lies there again.
async fn empty_inboxes(hub: &Hub, lines: &Lines) -> Result<u64> {
    let (mut removed, mut failed) = (0, Ok(()));
    for inbox in hub.inboxes(&lines.queue) {
        // What is being sorted lies there afterwards.
        let _sorted = inbox.sorting.write().await;
        let mut by_band: BTreeMap<usize, Vec<Ready>> = BTreeMap::new();
        for (band, task) in inbox.take(usize::MAX, hub.clock.now()) {
            by_band.entry(band).or_default().push(task);
        }
        for (band, tasks) in by_band {
            let url = &lines.bands[band];
            let answers = hub.delete_whole(url, &tasks.iter().map(|task| &task.arrived).collect::<Vec<_>>()).await;
            let mut left = Vec::new();
            for (task, answer) in tasks.into_iter().zip(answers) {
                match answer {
                    Ok(()) => removed += 1,
                    // It is on SQS again, where the purge meets it.
                    Err(e) if e.is_lease_lost() => {}
                    Err(e) => {
                        failed = failed.and(Err(e));
                        left.push(task);
                    }
                }
            }
            let shown: Vec<_> = inbox.put(band, left, hub.clock.now());
            shown.iter().for_each(|task| hub.looked(&task.arrived.id));
            drop(hub.hide(url, &shown.into_iter().map(|task| (task.arrived.handle, 0)).collect::<Vec<_>>()).await);
        }
    }
    failed.map(|()| removed)
}

/// Says which queue and which verb an error is of.
fn named<T>(answer: Result<T>, verb: &'static str, queue: &QueueName) -> Result<T> {
    answer.map_err(|e| e.during(verb).with("queue", queue))
}

#[async_trait]
impl Admin for Sqs {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let read = async {
            let lines = self.hub.lines(queue).await?;
            let (open, held) = futures::try_join!(self.sums(&lines.bands), self.sums(&lines.held))?;
            Ok(Stats {
                ready: Figure::Approximate(open.visible),
                delayed: Figure::Approximate(open.delayed),
                reserved: Figure::Approximate(open.hidden),
                held: Figure::Approximate(held.visible + held.hidden),
                oldest: Figure::Unknown,
            })
        };
        named(read.await, "stats", queue)
    }

    async fn info(&self, queue: &QueueName, _: TaskId) -> Result<Option<TaskInfo>> {
        self.hub.check().map_err(|e| e.during("info"))?;
        let text = "SQS finds no task by its id; that needs a task log, and held tasks are in the listing";
        Err(Error::new(ErrorKind::Unsupported, text).during("info").with("queue", queue))
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        let read = async {
            let lines = self.hub.lines(queue).await?;
            match state {
                State::Ready if limit > 0 => {
                    self.undisturbed(lines, move |hub, lines| async move { hub.look(&lines, limit).await }).await
                }
                State::Held if limit > 0 => self.page(lines, None, limit).await.map(|page| page.tasks),
                State::Ready | State::Held => Ok(Vec::new()),
                State::Delayed | State::Reserved => {
                    let text = format!("SQS shows nobody {state} tasks; `stats` counts them");
                    Err(Error::new(ErrorKind::Unsupported, text))
                }
            }
        };
        named(read.await, "peek", queue)
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let read = async { self.page(self.hub.lines(queue).await?, after.map(str::to_owned), limit).await };
        named(read.await, "list", queue)
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        let (lines, which) = (self.hub.lines(queue), which.clone());
        let kick = async {
            let kick = |hub: Arc<Hub>, lines: Arc<Lines>| async move { hub.kick(&lines, &which).await };
            self.undisturbed(lines.await?, kick).await
        };
        named(kick.await, "kick", queue)
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        if ids.is_empty() {
            return Vec::new();
        }
        let (lines, all) = (self.hub.lines(queue), ids.to_vec());
        let delete = async {
            let delete = |hub: Arc<Hub>, lines: Arc<Lines>| async move { hub.delete_held(&lines, &all).await };
            self.undisturbed(lines.await?, delete).await
        };
        match delete.await {
            Ok(answers) => answers.into_iter().map(|answer| named(answer, "delete", queue)).collect(),
            Err(e) => ids.iter().map(|_| named(Err(e.duplicate()), "delete", queue)).collect(),
        }
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        let purge = async { self.purge_states(&self.hub.lines(queue).await?, states).await };
        named(purge.await, "purge", queue)
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        let pause = async { self.hub.pause(&*self.hub.lines(queue).await?, time).await };
        named(pause.await, "pause", queue)
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        let resume = async { self.hub.resume(&*self.hub.lines(queue).await?).await };
        named(resume.await, "resume", queue)
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        let read = async {
            let lines = self.hub.lines(queue).await?;
            Ok(self.hub.marks_now(&lines).await?.paused(self.hub.wall()))
        };
        named(read.await, "paused", queue)
    }
}

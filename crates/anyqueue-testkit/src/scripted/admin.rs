//! The operator's verbs of a scripted broker: recorded, and answered from the listing that the test has set.

use std::time::Duration;

use anyqueue_core::{Admin, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which, async_trait};

use super::{Scripted, failed};

#[async_trait]
impl Admin for Scripted {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.admin_verb("stats", queue).await.map(|()| Stats::default())
    }

    async fn info(&self, queue: &QueueName, _: TaskId) -> Result<Option<TaskInfo>> {
        self.admin_verb("info", queue).await.map(|()| None)
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        self.admin_verb("peek", queue).await?;
        Ok(self.script().peeked.iter().filter(|task| task.state == state).take(limit).cloned().collect())
    }

    async fn held(&self, queue: &QueueName, _: Option<&str>, limit: usize) -> Result<Page> {
        self.admin_verb("held", queue).await?;
        let tasks = self.script().peeked.iter().filter(|task| task.state == State::Held).take(limit).cloned().collect();
        Ok(Page { tasks, next: None })
    }

    async fn kick(&self, queue: &QueueName, _: &Which) -> Result<u64> {
        self.admin_verb("kick", queue).await.map(|()| 0)
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        match self.admin_verb("delete", queue).await {
            Ok(()) => ids.iter().map(|_| Ok(())).collect(),
            Err(e) => failed(&e, ids.len()),
        }
    }

    async fn purge(&self, queue: &QueueName, _: &[State]) -> Result<u64> {
        self.admin_verb("purge", queue).await.map(|()| 0)
    }

    async fn pause(&self, queue: &QueueName, _: Option<Duration>) -> Result<()> {
        self.admin_verb("pause", queue).await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.admin_verb("resume", queue).await
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.admin_verb("paused", queue).await.map(|()| Paused::No)
    }
}

//! The operator's verbs.

use std::time::Duration;

use anyqueue_core::{
    Admin, Error, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which, async_trait, time::unix_millis,
};

use crate::broker::SqliteBroker;
use crate::consumer::spread;
use crate::store;

/// Tasks that one transaction of an operator changes at most, so that senders and workers wait for milliseconds only.
const STEP: usize = 2000;

impl SqliteBroker {
    fn now(&self) -> i64 {
        unix_millis(self.gate.shared.clock.wall()) as i64
    }

    /// Leases and delays that are over count as over, even while no worker looks.
    async fn settle_dues(&self, queue: &QueueName) -> Result<()> {
        self.gate.check()?;
        loop {
            let (name, now) = (queue.clone(), self.now());
            let due = self.gate.shared.read(move |db| store::is_due(db, &name, now)).await?;
            if !due {
                return Ok(());
            }
            let name = queue.clone();
            self.gate.write(STEP, false, move |tx| store::advance(tx, &name)).await?;
        }
    }
}

#[async_trait]
impl Admin for SqliteBroker {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let explain = |e: Error| e.during("stats");
        self.settle_dues(queue).await.map_err(explain)?;
        let (name, now) = (queue.clone(), self.now());
        self.gate.shared.read(move |db| store::stats(db, &name, now)).await.map_err(explain)
    }

    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>> {
        let explain = |e: Error| e.during("info");
        self.settle_dues(queue).await.map_err(explain)?;
        let (name, now) = (queue.clone(), self.now());
        self.gate.shared.read(move |db| store::info(db, &name, id, now)).await.map_err(explain)
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        let explain = |e: Error| e.during("peek");
        self.settle_dues(queue).await.map_err(explain)?;
        let (name, now) = (queue.clone(), self.now());
        self.gate.shared.read(move |db| store::peek(db, &name, state, limit, now)).await.map_err(explain)
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let explain = |e: Error| e.during("held");
        self.gate.check().map_err(explain)?;
        let (name, after, now) = (queue.clone(), after.map(str::to_owned), self.now());
        self.gate.shared.read(move |db| store::held(db, &name, after.as_deref(), limit, now)).await.map_err(explain)
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        let explain = |e: Error| e.during("kick");
        let (mut left, until) = match which {
            Which::Ids(ids) => {
                let (name, ids) = (queue.clone(), ids.clone());
                let kick = self.gate.write(ids.len(), true, move |tx| store::kick_ids(tx, &name, &ids));
                return kick.await.map_err(explain);
            }
            Which::First(count) => (*count, i64::MAX),
            Which::All => (u64::MAX, self.now()),
        };
        let mut kicked = 0;
        while left > 0 {
            let (name, limit) = (queue.clone(), left.min(STEP as u64));
            let step = self.gate.write(STEP, true, move |tx| store::kick(tx, &name, until, limit)).await.map_err(explain)?;
            kicked += step;
            left -= step;
            if step < limit {
                break;
            }
        }
        Ok(kicked)
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let (name, items) = (queue.clone(), ids.to_vec());
        let deleted = self.gate.write(ids.len(), true, move |tx| store::delete(tx, &name, &items)).await;
        spread(deleted, ids.len(), |e| e.during("delete"))
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        let explain = |e: Error| e.during("purge");
        self.settle_dues(queue).await.map_err(explain)?;
        // What is sent while the purge runs stays.
        let before = self.gate.shared.read(|db| Ok(store::next_seq(db)?)).await.map_err(explain)?;
        let mut purged = 0;
        for state in states.iter().copied() {
            loop {
                let name = queue.clone();
                let step = self.gate.write(STEP, true, move |tx| store::purge(tx, &name, state, before, STEP));
                let step = step.await.map_err(explain)?;
                purged += step as u64;
                if step < STEP {
                    break;
                }
            }
        }
        Ok(purged)
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        let until = time.map_or(i64::MAX, |time| self.now().saturating_add(store::millis(time)));
        let name = queue.clone();
        let pause = self.gate.write(1, true, move |tx| store::pause(tx, &name, Some(until)));
        pause.await.map_err(|e| e.during("pause"))
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        let name = queue.clone();
        let resume = self.gate.write(1, true, move |tx| store::pause(tx, &name, None));
        resume.await.map_err(|e| e.during("resume"))
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        let name = queue.clone();
        let until = self.gate.shared.read(move |db| store::paused(db, &name)).await.map_err(|e| e.during("paused"))?;
        Ok(match until {
            Some(i64::MAX) => Paused::Yes(None),
            Some(until) if until > self.now() => Paused::Yes(Some(Duration::from_millis((until - self.now()) as u64))),
            _ => Paused::No,
        })
    }
}

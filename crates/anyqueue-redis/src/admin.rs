//! The operator's verbs.

use std::time::Duration;

use anyqueue_core::{
    Admin, Bytes, Error, ErrorKind, Figure, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which,
    async_trait,
};
use redis::{Value, cmd, from_redis_value};

use crate::broker::{RedisBroker, all_failed};
use crate::error::strange;
use crate::layout::{CountsOf, Head, Keys, Stored, milliseconds};
use crate::script::Script;
use crate::servers::Request;

/// Tasks that one script lists, kicks, deletes or purges at most.
const STEP: usize = 500;
/// After how many bytes a listing takes no more.
const ENOUGH: usize = 8 << 20;

/// One entry of `list.lua`: its number, its place, itself and its counts.
type Entry = (String, Vec<u8>, Vec<u8>, Vec<u8>);

impl RedisBroker {
    async fn admin_script<T: redis::FromRedisValue>(
        &self,
        queue: &QueueName,
        (script, verb): (Script, &'static str),
        fill: impl FnOnce(&mut Request),
    ) -> Result<T> {
        let keys = self.shared.keys(queue);
        let answer =
            self.shared.run(script, &keys, fill).await.and_then(|answer| from_redis_value(answer).map_err(|_| strange(verb)));
        answer.map_err(|e| e.during(verb).with("queue", queue))
    }

    /// Lists up to a script's worth of tasks. Says whether there are more, and the number of the last one.
    async fn list(&self, queue: &QueueName, state: State, limit: usize, after: u64) -> Result<(Vec<Peeked>, Option<String>)> {
        let limit = limit.min(STEP);
        if limit == 0 {
            return Ok((Vec::new(), None));
        }
        let (now, more, entries) = self
            .admin_script::<(u64, bool, Vec<Entry>)>(queue, (Script::List, "peek"), |request| {
                request.arg(state.word()).arg(limit).arg(ENOUGH).arg(after);
            })
            .await?;
        let last = entries.last().filter(|_| more).map(|(number, ..)| number.clone());
        Ok((entries.into_iter().filter_map(|entry| peeked(entry, state, now)).collect(), last))
    }

    /// Until when a reserved task is leased: a walk through the leases, some at a time.
    async fn lease_end(&self, keys: &Keys, id: TaskId) -> Result<Option<u64>> {
        let mut cursor = "0".to_owned();
        loop {
            let mut walk = cmd("ZSCAN");
            walk.arg(keys.reserved()).arg(&cursor).arg("COUNT").arg(1000);
            let answer = self.shared.servers.command(keys, &walk).await?;
            let (next, found) = from_redis_value::<(String, Vec<Vec<u8>>)>(answer).map_err(|_| strange("ZSCAN"))?;
            let pairs = found.chunks_exact(2);
            if let Some(pair) = pairs.into_iter().find(|pair| pair[0].ends_with(id.as_bytes())) {
                return Ok(String::from_utf8_lossy(&pair[1]).parse::<f64>().ok().map(|end| end as u64));
            }
            if next == "0" {
                return Ok(None);
            }
            cursor = next;
        }
    }

    async fn kick_first(&self, queue: &QueueName, most: u64) -> Result<u64> {
        // What is held from now on is not meant.
        let up_to = match most {
            u64::MAX => self.last_held(queue).await?,
            _ => "+inf".to_owned(),
        };
        let mut kicked = 0;
        while kicked < most {
            let step = (most - kicked).min(STEP as u64);
            let (some, seen) = self
                .admin_script::<(u64, u64)>(queue, (Script::Kick, "kick"), |request| {
                    request.arg("first").arg(step).arg(&up_to);
                })
                .await?;
            kicked += some;
            if seen < step {
                break;
            }
        }
        Ok(kicked)
    }

    async fn last_held(&self, queue: &QueueName) -> Result<String> {
        let keys = self.shared.keys(queue);
        let mut last = cmd("ZRANGE");
        last.arg(keys.held()).arg(-1).arg(-1).arg("WITHSCORES");
        self.shared.check()?;
        let answer = self.shared.servers.command(&keys, &last).await.map_err(|e| e.during("kick").with("queue", queue))?;
        let number = |value: Value| value.into_sequence().ok()?.pop();
        let score = number(answer).map(|pair| match pair {
            Value::Array(mut pair) => pair.pop().unwrap_or(Value::Nil),
            other => other,
        });
        Ok(score.and_then(|score| from_redis_value::<f64>(score).ok()).map_or("-inf".to_owned(), |score| format!("{score:.0}")))
    }
}

fn peeked((number, place, task, counts): Entry, state: State, now: u64) -> Option<Peeked> {
    let stored = Stored::read(&place, Bytes::from(task), CountsOf::read(&counts).lost)?;
    let at = number.parse::<f64>().unwrap_or_default() as u64;
    let remaining = matches!(state, State::Delayed | State::Reserved).then(|| Duration::from_millis(at.saturating_sub(now)));
    Some(Peeked { native: stored.facts(now), raw: stored.body, state, remaining })
}

fn facts_of(queue: &QueueName, state: State, head: Head, counts: CountsOf, now: u64, end: u64) -> TaskInfo {
    let counted = |count: u32| Some(u64::from(count));
    let ended = counts.timeouts + counts.releases + counts.holds;
    TaskInfo {
        queue: queue.as_str().to_owned(),
        state: Some(state),
        priority: Some(head.priority),
        age: Some(now.saturating_sub(head.sent) / 1000),
        delay: Some(head.delay.as_secs()),
        ttr: Some(head.ttr.as_secs()),
        expiration: Some(end.saturating_sub(now) / 1000),
        // Each reservation has ended in one of these, or goes on.
        reserves: Some(u64::from(ended) + u64::from(state == State::Reserved)),
        timeouts: counted(counts.timeouts),
        releases: counted(counts.releases),
        holds: counted(counts.holds),
        unholds: counted(counts.unholds),
    }
}

#[async_trait]
impl Admin for RedisBroker {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let figures = self.admin_script::<[u64; 5]>(queue, (Script::Stats, "stats"), |_| {}).await?;
        let [ready, delayed, reserved, held] = [0, 1, 2, 3].map(|n| Figure::Exact(figures[n]));
        Ok(Stats { ready, delayed, reserved, held, oldest: Figure::Approximate(figures[4] / 1000) })
    }

    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>> {
        type Found = Option<(String, u64, u64, Vec<u8>, Vec<u8>)>;
        let found: Found = self
            .admin_script(queue, (Script::Info, "info"), |request| {
                request.arg(id.as_bytes().as_slice());
            })
            .await?;
        let Some((state, mut end, now, head, counts)) = found else { return Ok(None) };
        let explain = |e: Error| e.during("info").with("queue", queue);
        let state: State = state.parse().map_err(explain)?;
        let head = Head::read(&head).ok_or_else(|| explain(strange("info")))?;
        if state == State::Reserved {
            end = self.lease_end(&self.shared.keys(queue), id).await.map_err(explain)?.unwrap_or(now);
        }
        Ok(Some(facts_of(queue, state, head, CountsOf::read(&counts), now, end)))
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        let (mut tasks, mut after) = (Vec::new(), 0);
        while tasks.len() < limit {
            let (part, next) = self.list(queue, state, limit - tasks.len(), after).await?;
            tasks.extend(part);
            // Held ones are told apart by their numbers, others by how many come before them.
            after = match (next, state) {
                (None, _) => break,
                (Some(last), State::Held) => last.parse::<f64>().unwrap_or_default() as u64,
                (Some(_), _) => tasks.len() as u64,
            };
        }
        Ok(tasks)
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let after = after.unwrap_or("0").parse::<u64>().map_err(|_| {
            let text = format!("`{}` is no place in the list of held tasks; begin without one", after.unwrap_or_default());
            Error::invalid(text).during("held").with("queue", queue)
        })?;
        let (tasks, next) = self.list(queue, State::Held, limit, after).await?;
        Ok(Page { tasks, next })
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        let ids = match which {
            Which::All => return self.kick_first(queue, u64::MAX).await,
            Which::First(most) => return self.kick_first(queue, *most).await,
            Which::Ids(ids) => ids,
        };
        let mut kicked = 0;
        for part in ids.chunks(STEP) {
            let (some, _) = self
                .admin_script::<(u64, u64)>(queue, (Script::Kick, "kick"), |request| {
                    request.arg("ids");
                    request.args(part.iter().map(|id| id.as_bytes().as_slice()));
                })
                .await?;
            kicked += some;
        }
        Ok(kicked)
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let explain = |e: Error| e.during("delete").with("queue", queue);
        let mut answers = Vec::with_capacity(ids.len());
        for part in ids.chunks(STEP) {
            let found = self.admin_script::<Vec<u8>>(queue, (Script::Delete, "delete"), |request| {
                request.args(part.iter().map(|id| id.as_bytes().as_slice()));
            });
            match found.await {
                Ok(found) if found.len() == part.len() => {
                    answers.extend(part.iter().zip(found).map(|(id, word)| deleted(*id, word).map_err(explain)));
                }
                Ok(_) => answers.extend(all_failed(&explain(strange("delete")), part.len())),
                Err(e) => answers.extend(all_failed(&e, part.len())),
            }
        }
        answers
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        let mut removed = 0;
        for state in states {
            let stats = self.stats(queue).await?;
            // Not for ever, where others go on sending.
            let mut left = match state {
                State::Ready => stats.ready,
                State::Delayed => stats.delayed,
                State::Reserved => stats.reserved,
                State::Held => stats.held,
            }
            .value()
            .unwrap_or_default();
            while left > 0 {
                let step = left.min(STEP as u64);
                let some = self
                    .admin_script::<u64>(queue, (Script::Purge, "purge"), |request| {
                        request.arg(state.word()).arg(step);
                    })
                    .await?;
                removed += some;
                left = if some == 0 { 0 } else { left - some };
            }
        }
        Ok(removed)
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        let time = time.map_or(-1, |time| i64::try_from(milliseconds(time).max(1)).unwrap_or(-1));
        self.admin_script::<Value>(queue, (Script::Pause, "pause"), |request| request.args([time])).await.map(drop)
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.admin_script::<Value>(queue, (Script::Pause, "resume"), |request| request.args([0])).await.map(drop)
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        let left = self.admin_script::<i64>(queue, (Script::Paused, "paused"), |_| {}).await?;
        Ok(match left {
            0 => Paused::No,
            ..0 => Paused::Yes(None),
            left => Paused::Yes(Some(Duration::from_millis(left as u64))),
        })
    }
}

fn deleted(id: TaskId, word: u8) -> Result<()> {
    match word {
        b'1' => Ok(()),
        b'b' => {
            Err(Error::new(ErrorKind::Busy, format!("task {id} is reserved by a worker; delete it once its lease has ended")))
        }
        _ => Err(Error::new(ErrorKind::NotFound, format!("there is no task {id}"))),
    }
}

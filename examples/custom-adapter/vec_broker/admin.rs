//! The operator's verbs.

use std::time::Duration;

use anyqueue::core::{
    Admin, Error, ErrorKind, Figure, Moment, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which,
    async_trait,
};

use super::broker::VecBroker;
use super::tasks::{Place, Stored, Tasks};

impl VecBroker {
    fn on<T>(&self, queue: &QueueName, verb: &'static str, act: impl FnOnce(&mut Tasks, Moment) -> T) -> Result<T> {
        let (found, _) = self.queue(queue).map_err(|e| e.during(verb).with("queue", queue))?;
        let now = self.now();
        Ok(found.change(now, |tasks| act(tasks, now)))
    }
}

#[async_trait]
impl Admin for VecBroker {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.on(queue, "stats", |tasks, now| {
            let count = |state| Figure::Exact(tasks.of(state).len() as u64);
            let oldest = tasks.of(State::Ready).into_iter().map(|stored| now.since(stored.ready_since)).max();
            Stats {
                ready: count(State::Ready),
                delayed: count(State::Delayed),
                reserved: count(State::Reserved),
                held: count(State::Held),
                oldest: Figure::Exact(oldest.unwrap_or_default().as_secs()),
            }
        })
    }

    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>> {
        self.on(queue, "info", |tasks, now| {
            let stored = tasks.all.iter().find(|stored| stored.task.id == id)?;
            Some(TaskInfo {
                queue: queue.to_string(),
                state: Some(stored.state()),
                priority: Some(stored.task.priority),
                age: Some(now.since(stored.sent).as_secs()),
                delay: Some(stored.task.delay.as_secs()),
                ttr: Some(stored.task.ttr.as_secs()),
                expiration: Some(stored.remaining(now).unwrap_or_default().as_secs()),
                reserves: Some(stored.counts.reserves),
                timeouts: Some(stored.counts.timeouts),
                releases: Some(stored.counts.releases),
                holds: Some(stored.counts.holds),
                unholds: Some(stored.counts.unholds),
            })
        })
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        let seen = |tasks: &mut Tasks, now| tasks.of(state).into_iter().take(limit).map(|stored| stored.peeked(now)).collect();
        self.on(queue, "peek", seen)
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let wrong = |_| Error::invalid("this is no place in the list of held tasks; begin without one").during("held");
        let after: u64 = after.unwrap_or("0").parse().map_err(wrong)?;
        self.on(queue, "held", |tasks, now| {
            let mut rest = tasks.of(State::Held);
            rest.retain(|stored| stored.number > after);
            let page = &rest[..limit.min(rest.len())];
            let next = page.last().filter(|_| rest.len() > limit).map(|stored| stored.number.to_string());
            Page { tasks: page.iter().map(|stored| stored.peeked(now)).collect(), next }
        })
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        self.on(queue, "kick", |tasks, now| {
            let held = tasks.of(State::Held).into_iter().map(|stored| stored.task.id);
            let ids: Vec<TaskId> = match which {
                Which::All => held.collect(),
                Which::First(number) => held.take(usize::try_from(*number).unwrap_or(usize::MAX)).collect(),
                Which::Ids(ids) => held.filter(|id| ids.contains(id)).collect(),
            };
            for id in &ids {
                let number = tasks.next_number();
                for stored in tasks.all.iter_mut().filter(|stored| stored.task.id == *id) {
                    (stored.number, stored.counts.unholds) = (number, stored.counts.unholds + 1);
                    stored.line_up(Duration::ZERO, now);
                }
            }
            ids.len() as u64
        })
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let named = |e: Error| e.during("delete").with("queue", queue);
        let answers =
            self.on(queue, "delete", |tasks, _| ids.iter().map(|id| delete(tasks, *id).map_err(named)).collect::<Vec<_>>());
        answers.unwrap_or_else(|e| ids.iter().map(|_| Err(e.duplicate())).collect())
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        self.on(queue, "purge", |tasks, _| {
            let before = tasks.all.len();
            tasks.all.retain(|stored| !states.contains(&stored.state()));
            (before - tasks.all.len()) as u64
        })
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        self.on(queue, "pause", |tasks, now| tasks.paused = Some(time.map(|time| now + time)))
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.on(queue, "resume", |tasks, _| tasks.paused = None)
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        let left = |now: Moment| move |until: Option<Moment>| Paused::Yes(until.map(|until| until.since(now)));
        self.on(queue, "paused", |tasks, now| tasks.paused.map_or(Paused::No, left(now)))
    }
}

fn delete(tasks: &mut Tasks, id: TaskId) -> Result<()> {
    let found = tasks.all.iter().position(|stored: &Stored| stored.task.id == id);
    match found.map(|at| (at, tasks.all[at].place)) {
        None => Err(Error::new(ErrorKind::NotFound, format!("there is no task {id}"))),
        Some((_, Place::Reserved { .. })) => {
            Err(Error::new(ErrorKind::Busy, format!("task {id} is reserved by a worker; delete it once its lease has ended")))
        }
        Some((at, _)) => {
            tasks.all.swap_remove(at);
            Ok(())
        }
    }
}

//! The operator's verbs.

use std::time::Duration;

use anyqueue_core::{
    Admin, Error, ErrorKind, Figure, Moment, Page, Paused, Peeked, QueueName, Result, State, Stats, TaskId, TaskInfo, Which,
    async_trait,
};

use crate::broker::{Memory, all_failed};
use crate::queue::Tasks;
use crate::ready::Slot;
use crate::task::Place;

impl Memory {
    /// Runs one verb on a queue as it is now.
    fn on<T>(&self, queue: &QueueName, verb: &'static str, act: impl FnOnce(&mut Tasks, Moment) -> T) -> Result<T> {
        let run = || {
            let now = self.begin()?;
            let queue = self.queue(queue)?;
            let mut tasks = queue.at(now);
            let answer = act(&mut tasks, now);
            tasks.ring();
            Ok(answer)
        };
        run().map_err(|e: Error| e.during(verb).with("queue", queue))
    }
}

fn stats(tasks: &Tasks, now: Moment) -> Stats {
    let ages = tasks.ready.candidates_for_oldest().filter_map(|slot| tasks.task(slot));
    let oldest = ages.map(|task| now.since(task.ready_since)).max().unwrap_or_default();
    let exact = |count: usize| Figure::Exact(count as u64);
    Stats {
        ready: exact(tasks.ready.len()),
        delayed: exact(tasks.delayed.len()),
        reserved: exact(tasks.reserved),
        held: exact(tasks.held.len()),
        oldest: Figure::Exact(oldest.as_secs()),
    }
}

fn reserved(tasks: &Tasks) -> impl Iterator<Item = Slot> {
    let current = |key, slot| matches!(tasks.task(slot)?.place, Place::Reserved { lease, .. } if lease == key).then_some(slot);
    tasks.leases.members().filter_map(move |(key, slot)| current(key, slot))
}

/// The first tasks of a state, in the order in which they will come.
fn first(tasks: &Tasks, state: State, limit: usize) -> Vec<Slot> {
    match state {
        State::Ready => tasks.ready.first(limit),
        State::Delayed => tasks.delayed.values().take(limit).copied().collect(),
        State::Reserved => reserved(tasks).take(limit).collect(),
        State::Held => tasks.held.values().take(limit).copied().collect(),
    }
}

fn delete(tasks: &mut Tasks, id: TaskId) -> Result<()> {
    match tasks.by_id(id).map(|(slot, task)| (slot, task.place)) {
        None => Err(Error::new(ErrorKind::NotFound, format!("there is no task {id}"))),
        Some((_, Place::Reserved { .. })) => {
            Err(Error::new(ErrorKind::Busy, format!("task {id} is reserved by a worker; delete it once its lease has ended")))
        }
        Some((slot, _)) => {
            tasks.remove(slot);
            Ok(())
        }
    }
}

#[async_trait]
impl Admin for Memory {
    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.on(queue, "stats", |tasks, now| stats(tasks, now))
    }

    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>> {
        self.on(queue, "info", |tasks, now| Some(tasks.by_id(id)?.1.info(queue.as_str(), now)))
    }

    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>> {
        self.on(queue, "peek", |tasks, now| {
            first(tasks, state, limit).into_iter().filter_map(|slot| Some(tasks.task(slot)?.peeked(now))).collect()
        })
    }

    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page> {
        let after = after.unwrap_or("0").parse::<u64>().map_err(|_| {
            let text = format!("`{}` is no place in the list of held tasks; begin without one", after.unwrap_or_default());
            Error::invalid(text).during("held").with("queue", queue)
        })?;
        self.on(queue, "held", |tasks, now| {
            let mut rest = tasks.held.range(after + 1..).peekable();
            let (mut page, mut last) = (Page::default(), after);
            for (number, slot) in rest.by_ref().take(limit) {
                last = *number;
                page.tasks.extend(tasks.task(*slot).map(|task| task.peeked(now)));
            }
            page.next = rest.peek().map(|_| last.to_string());
            page
        })
    }

    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64> {
        self.on(queue, "kick", |tasks, now| {
            let slots = match which {
                Which::All => first(tasks, State::Held, usize::MAX),
                Which::First(number) => first(tasks, State::Held, usize::try_from(*number).unwrap_or(usize::MAX)),
                Which::Ids(ids) => ids.iter().filter_map(|id| tasks.by_id(*id)).map(|(slot, _)| slot).collect(),
            };
            let held = tasks.held.len();
            slots.into_iter().for_each(|slot| tasks.kick(slot, now));
            (held - tasks.held.len()) as u64
        })
    }

    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>> {
        let answers = self.on(queue, "delete", |tasks, _| {
            let named = |e: Error| e.during("delete").with("queue", queue);
            ids.iter().map(|id| delete(tasks, *id).map_err(named)).collect()
        });
        answers.unwrap_or_else(|e| all_failed(&e, ids.len()))
    }

    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64> {
        self.on(queue, "purge", |tasks, _| {
            let mut removed = 0;
            for state in states {
                for slot in first(tasks, *state, usize::MAX) {
                    removed += 1;
                    if *state == State::Reserved { tasks.remove_reserved(slot) } else { tasks.remove(slot) }
                }
            }
            removed
        })
    }

    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()> {
        self.on(queue, "pause", |tasks, now| tasks.paused = Some(time.map(|time| now + time)))
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.on(queue, "resume", |tasks, _| tasks.paused = None)
    }

    async fn paused(&self, queue: &QueueName) -> Result<Paused> {
        self.on(queue, "paused", |tasks, now| match tasks.paused {
            None => Paused::No,
            Some(until) => Paused::Yes(until.map(|until| until.since(now))),
        })
    }
}

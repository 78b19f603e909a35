//! The tasks of one queue, and what time does to them.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue::core::{Delivery, Envelope, Error, Figure, Moment, NativeFacts, Peeked, QueueName, Receipt, Result, State};
use tokio::sync::Notify;

/// A queue that every connection and consumer shares.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: QueueName,
    tasks: Mutex<Tasks>,
    /// Rung after every change: who waits looks again.
    pub(crate) changed: Notify,
}

impl Queue {
    pub(crate) fn new(name: QueueName) -> Self {
        Self { name, tasks: Mutex::default(), changed: Notify::new() }
    }

    /// Locks the queue as it is now: what is due is ready, leases that have ended are over.
    pub(crate) fn at(&self, now: Moment) -> MutexGuard<'_, Tasks> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.move_on(now);
        tasks
    }

    /// Changes the tasks and lets everybody know.
    pub(crate) fn change<T>(&self, now: Moment, change: impl FnOnce(&mut Tasks) -> T) -> T {
        let answer = change(&mut self.at(now));
        self.changed.notify_waiters();
        answer
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) all: Vec<Stored>,
    /// Until when, if it is paused; none inside: until it is resumed.
    pub(crate) paused: Option<Option<Moment>>,
    /// The last place in line that was given away.
    last: u64,
    /// The last reservation. Its number is never used again, so an old receipt fits nothing.
    epoch: u64,
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) task: Envelope,
    pub(crate) place: Place,
    /// Its place in line, among tasks of the same priority.
    pub(crate) number: u64,
    pub(crate) sent: Moment,
    pub(crate) ready_since: Moment,
    /// Leases that ended by themselves since the body was last written: each may be a death.
    pub(crate) lost: u64,
    pub(crate) counts: Counts,
}

/// What has happened to a task, for `info`.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reserves: u64,
    pub(crate) timeouts: u64,
    pub(crate) releases: u64,
    pub(crate) holds: u64,
    pub(crate) unholds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Ready,
    Delayed(Moment),
    Reserved { epoch: u64, until: Moment },
    Held,
}

impl Tasks {
    fn move_on(&mut self, now: Moment) {
        for stored in &mut self.all {
            match stored.place {
                Place::Reserved { until, .. } if until <= now => {
                    stored.lost += 1;
                    stored.counts.timeouts += 1;
                }
                Place::Delayed(due) if due <= now => {}
                _ => continue,
            }
            (stored.place, stored.ready_since) = (Place::Ready, now);
        }
        if self.paused.flatten().is_some_and(|until| until <= now) {
            self.paused = None;
        }
    }

    /// When time alone will change something.
    pub(crate) fn next_change(&self) -> Option<Moment> {
        let due = self.all.iter().filter_map(|stored| stored.ends()).min();
        due.into_iter().chain(self.paused.flatten()).min()
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes in a task. A repeated id is the same task, which is here already.
    pub(crate) fn add(&mut self, task: &Envelope, now: Moment) {
        if self.all.iter().any(|stored| stored.task.id == task.id) {
            return;
        }
        let (number, counts) = (self.next_number(), Counts::default());
        let place = waiting(task.delay, now);
        self.all.push(Stored { task: task.clone(), place, number, sent: now, ready_since: now, lost: 0, counts });
    }

    /// Reserves up to `max` tasks, most urgent first, within a level first in first out.
    pub(crate) fn reserve(&mut self, queue: &QueueName, wanted: &RangeInclusive<u32>, max: usize, now: Moment) -> Vec<Delivery> {
        if self.paused.is_some() {
            return Vec::new();
        }
        let fits = |stored: &Stored| stored.place == Place::Ready && wanted.contains(&stored.task.priority);
        let mut found: Vec<&mut Stored> = self.all.iter_mut().filter(|stored| fits(stored)).collect();
        found.sort_by_key(|stored| (stored.task.priority, stored.number));
        let deliver = |stored: &mut Stored| {
            self.epoch += 1;
            stored.counts.reserves += 1;
            let deadline = now + stored.task.ttr;
            stored.place = Place::Reserved { epoch: self.epoch, until: deadline };
            Delivery {
                receipt: Receipt::new(self.epoch, 0),
                queue: queue.clone(),
                raw: stored.task.body.clone(),
                native: stored.facts(now),
                lease: stored.task.ttr,
                deadline,
            }
        };
        found.into_iter().take(max).map(deliver).collect()
    }

    /// Where the reserved task of a receipt is, if the receipt still holds.
    pub(crate) fn reserved(&self, receipt: &Receipt) -> Result<usize> {
        let holds = |stored: &Stored| matches!(stored.place, Place::Reserved { epoch, .. } if epoch == receipt.epoch);
        self.all.iter().position(holds).ok_or_else(Error::lease_lost)
    }

    /// The tasks of a state, in the order in which they will come.
    pub(crate) fn of(&self, state: State) -> Vec<&Stored> {
        let mut found: Vec<&Stored> = self.all.iter().filter(|stored| stored.state() == state).collect();
        let priority = |stored: &Stored| if state == State::Ready { stored.task.priority } else { 0 };
        found.sort_by_key(|stored| (priority(stored), stored.ends(), stored.number));
        found
    }
}

impl Stored {
    pub(crate) fn state(&self) -> State {
        match self.place {
            Place::Ready => State::Ready,
            Place::Delayed(_) => State::Delayed,
            Place::Reserved { .. } => State::Reserved,
            Place::Held => State::Held,
        }
    }

    fn ends(&self) -> Option<Moment> {
        match self.place {
            Place::Delayed(at) | Place::Reserved { until: at, .. } => Some(at),
            Place::Ready | Place::Held => None,
        }
    }

    pub(crate) fn remaining(&self, now: Moment) -> Option<Duration> {
        self.ends().map(|at| at.since(now))
    }

    /// Puts it in line, or aside until it is due.
    pub(crate) fn line_up(&mut self, delay: Duration, now: Moment) {
        (self.place, self.ready_since) = (waiting(delay, now), now);
    }

    /// What the broker knows. It cannot look into a body, so it tells what it was given beside it.
    pub(crate) fn facts(&self, now: Moment) -> NativeFacts {
        NativeFacts {
            id: Some(self.task.id.to_string().into()),
            priority: Some(self.task.priority),
            ttr: Some(self.task.ttr),
            redeliveries: Figure::Exact(self.lost),
            age: Some(now.since(self.sent)),
        }
    }

    pub(crate) fn peeked(&self, now: Moment) -> Peeked {
        Peeked { raw: self.task.body.clone(), native: self.facts(now), state: self.state(), remaining: self.remaining(now) }
    }
}

fn waiting(delay: Duration, now: Moment) -> Place {
    if delay.is_zero() { Place::Ready } else { Place::Delayed(now + delay) }
}

//! A task as it is stored, and its leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Bytes, Envelope, Figure, Moment, NativeFacts, Peeked, State, TaskId, TaskInfo};

use crate::ready::Slot;

/// Names one batch of leases that end together.
pub(crate) type LeaseKey = (Moment, u64);

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Ready,
    Delayed(Moment),
    Reserved { epoch: u64, lease: LeaseKey },
    Held(u64),
}

/// A stored task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: TaskId,
    pub(crate) body: Bytes,
    pub(crate) priority: u32,
    pub(crate) ttr: Duration,
    pub(crate) order: u64,
    pub(crate) place: Place,
    pub(crate) ready_since: Moment,
    pub(crate) sent: Moment,
    pub(crate) delay: Duration,
    /// Lease ends since the task was last put, retried, held or kicked.
    pub(crate) lost: u32,
    pub(crate) reserves: u32,
    pub(crate) timeouts: u32,
    pub(crate) releases: u32,
    pub(crate) holds: u32,
    pub(crate) unholds: u32,
}

impl Task {
    pub(crate) fn new(envelope: &Envelope, order: u64, now: Moment) -> Self {
        Self {
            id: envelope.id,
            body: envelope.body.clone(),
            priority: envelope.priority,
            ttr: envelope.ttr,
            order,
            place: Place::Ready,
            ready_since: now,
            sent: now,
            delay: envelope.delay,
            lost: 0,
            reserves: 0,
            timeouts: 0,
            releases: 0,
            holds: 0,
            unholds: 0,
        }
    }

    /// Takes over what a settlement says the task is from now on.
    pub(crate) fn replace(&mut self, next: &Envelope) {
        self.body = next.body.clone();
        (self.priority, self.ttr, self.delay, self.lost) = (next.priority, next.ttr, next.delay, 0);
    }

    pub(crate) fn state(&self) -> State {
        match self.place {
            Place::Ready => State::Ready,
            Place::Delayed(_) => State::Delayed,
            Place::Reserved { .. } => State::Reserved,
            Place::Held(_) => State::Held,
        }
    }

    fn remaining(&self, now: Moment) -> Option<Duration> {
        match self.place {
            Place::Delayed(due) => Some(due.since(now)),
            Place::Reserved { lease, .. } => Some(lease.0.since(now)),
            Place::Ready | Place::Held(_) => None,
        }
    }

    pub(crate) fn facts(&self, now: Moment) -> NativeFacts {
        NativeFacts {
            id: Some(Arc::from(self.id.to_string())),
            priority: Some(self.priority),
            ttr: Some(self.ttr),
            redeliveries: Figure::Exact(self.lost.into()),
            age: Some(now.since(self.sent)),
        }
    }

    pub(crate) fn peeked(&self, now: Moment) -> Peeked {
        Peeked { raw: self.body.clone(), native: self.facts(now), state: self.state(), remaining: self.remaining(now) }
    }

    pub(crate) fn info(&self, queue: &str, now: Moment) -> TaskInfo {
        TaskInfo {
            queue: queue.to_owned(),
            state: Some(self.state()),
            priority: Some(self.priority),
            age: Some(now.since(self.sent).as_secs()),
            delay: Some(self.delay.as_secs()),
            ttr: Some(self.ttr.as_secs()),
            expiration: Some(self.remaining(now).unwrap_or_default().as_secs()),
            reserves: Some(self.reserves.into()),
            timeouts: Some(self.timeouts.into()),
            releases: Some(self.releases.into()),
            holds: Some(self.holds.into()),
            unholds: Some(self.unholds.into()),
        }
    }
}

/// Tasks whose leases end at the same moment.
#[derive(Debug, Default)]
struct Batch {
    members: Vec<(Slot, u64)>,
    live: usize,
}

/// The leases of a queue: one entry for all tasks of one call that share a TTR, gone with the last of them.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    batches: BTreeMap<LeaseKey, Batch>,
    /// The batch of the current call, one for each TTR in it.
    open: Vec<(Duration, LeaseKey)>,
    next: u64,
}

impl Leases {
    /// Starts a new call: what follows does not join earlier batches.
    pub(crate) fn begin(&mut self) {
        self.open.clear();
    }

    /// Adds a reservation.
    pub(crate) fn add(&mut self, slot: Slot, epoch: u64, ttr: Duration, now: Moment) -> LeaseKey {
        let key = match self.open.iter().find(|(open, _)| *open == ttr) {
            Some((_, key)) => *key,
            None => {
                self.next += 1;
                let key = (now + ttr, self.next);
                self.open.push((ttr, key));
                key
            }
        };
        let batch = self.batches.entry(key).or_default();
        batch.members.push((slot, epoch));
        batch.live += 1;
        key
    }

    /// One member has ended its lease or renewed it elsewhere.
    pub(crate) fn leave(&mut self, key: LeaseKey) {
        if let Some(batch) = self.batches.get_mut(&key) {
            batch.live -= 1;
            if batch.live == 0 {
                self.batches.remove(&key);
            }
        }
    }

    /// When the next one ends.
    pub(crate) fn next_end(&self) -> Option<Moment> {
        self.batches.first_key_value().map(|((end, _), _)| *end)
    }

    /// Takes out a batch that has ended. Members may have left it.
    pub(crate) fn pop_ended(&mut self, now: Moment) -> Option<(LeaseKey, Vec<(Slot, u64)>)> {
        let entry = self.batches.first_entry().filter(|entry| entry.key().0 <= now)?;
        let (key, batch) = entry.remove_entry();
        Some((key, batch.members))
    }

    /// All members, those that end first in front. Members may have left.
    pub(crate) fn members(&self) -> impl Iterator<Item = (LeaseKey, Slot)> {
        self.batches.iter().flat_map(|(key, batch)| batch.members.iter().map(|(slot, _)| (*key, *slot)))
    }
}

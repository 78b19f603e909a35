//! One queue: its tasks and every change of their state, each in one short critical section.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Accepted, Delivery, Envelope, Error, Moment, QueueName, Receipt, Result, Settlement, TaskId, Touch};
use tokio::sync::Notify;

use crate::ready::{Ready, Slot};
use crate::task::{Leases, Place, Task};
use crate::waiters::Waiters;

/// A queue that several brokers and consumers share.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: QueueName,
    state: Mutex<Tasks>,
}

impl Queue {
    pub(crate) fn new(name: QueueName) -> Self {
        Self { name, state: Mutex::default() }
    }

    /// Locks the queue as it is at this moment: what is due is ready, leases that have ended are over.
    pub(crate) fn at(&self, now: Moment) -> MutexGuard<'_, Tasks> {
        // Nothing in a critical section can panic half-way and leave the tasks inconsistent.
        let mut tasks = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.move_on(now);
        tasks
    }

    /// Lets every waiting consumer look again.
    pub(crate) fn wake_all(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiters.wake_all();
    }
}

/// The tasks of one queue.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    slots: Vec<Option<Task>>,
    free: Vec<Slot>,
    ids: HashMap<TaskId, Slot>,
    pub(crate) ready: Ready,
    pub(crate) delayed: BTreeMap<(Moment, u64), Slot>,
    pub(crate) leases: Leases,
    pub(crate) held: BTreeMap<u64, Slot>,
    pub(crate) reserved: usize,
    pub(crate) paused: Option<Option<Moment>>,
    pub(crate) waiters: Waiters,
    order: u64,
    epoch: u64,
}

impl Tasks {
    pub(crate) fn task(&self, slot: Slot) -> Option<&Task> {
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn by_id(&self, id: TaskId) -> Option<(Slot, &Task)> {
        let slot = *self.ids.get(&id)?;
        Some((slot, self.task(slot)?))
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn move_on(&mut self, now: Moment) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let slot = entry.remove();
            self.make_ready(slot, now);
        }
        while let Some((ended, members)) = self.leases.pop_ended(now) {
            for (slot, epoch) in members {
                let Some(task) = self.slots[slot].as_mut() else { continue };
                if task.place == (Place::Reserved { epoch, lease: ended }) {
                    (task.lost, task.timeouts) = (task.lost.saturating_add(1), task.timeouts.saturating_add(1));
                    self.reserved -= 1;
                    self.make_ready(slot, now);
                }
            }
        }
        if self.paused.flatten().is_some_and(|until| until <= now) {
            self.paused = None;
        }
        self.ring();
    }

    fn make_ready(&mut self, slot: Slot, now: Moment) {
        if let Some(task) = &mut self.slots[slot] {
            (task.place, task.ready_since) = (Place::Ready, now);
            self.ready.put(task.priority, task.order, slot);
        }
    }

    /// Puts a task in line, or aside until it is due.
    fn line_up(&mut self, slot: Slot, delay: Duration, now: Moment) {
        if delay.is_zero() {
            return self.make_ready(slot, now);
        }
        if let Some(task) = &mut self.slots[slot] {
            let due = now + delay;
            task.place = Place::Delayed(due);
            self.delayed.insert((due, task.order), slot);
        }
    }

    /// Wakes as many consumers as have something to take, and one to sleep until the next change that time brings.
    pub(crate) fn ring(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        if self.paused.is_none() {
            self.waiters.wake(&self.ready);
        }
        let next = self.next_change();
        self.waiters.cover(next);
    }

    /// When time alone will change something: a task is due, a lease ends, a pause is over.
    pub(crate) fn next_change(&self) -> Option<Moment> {
        let due = self.delayed.first_key_value().map(|((due, _), _)| *due);
        [due, self.leases.next_end(), self.paused.flatten()].into_iter().flatten().min()
    }

    pub(crate) fn send(&mut self, envelope: &Envelope, now: Moment) -> Accepted {
        if !self.ids.contains_key(&envelope.id) {
            let order = self.next_order();
            let task = Task::new(envelope, order, now);
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            self.ids.insert(task.id, slot);
            self.slots[slot] = Some(task);
            self.line_up(slot, envelope.delay, now);
        }
        Accepted::default()
    }

    pub(crate) fn reserve(&mut self, queue: &QueueName, taken: Vec<Slot>, now: Moment) -> Vec<Delivery> {
        self.leases.begin();
        self.reserved += taken.len();
        let mut deliveries = Vec::with_capacity(taken.len());
        for slot in taken {
            let Some(task) = &mut self.slots[slot] else { continue };
            self.epoch += 1;
            let lease = self.leases.add(slot, self.epoch, task.ttr, now);
            task.place = Place::Reserved { epoch: self.epoch, lease };
            task.reserves = task.reserves.saturating_add(1);
            deliveries.push(Delivery {
                receipt: Receipt::new(self.epoch, slot as u64),
                queue: queue.clone(),
                raw: task.body.clone(),
                native: task.facts(now),
                lease: task.ttr,
                deadline: lease.0,
            });
        }
        deliveries
    }

    /// The slot of a reservation that still holds; its lease is over from here on.
    fn end_lease(&mut self, receipt: &Receipt) -> Result<(Slot, &mut Task)> {
        let slot = receipt.tag as Slot;
        let Some(Some(task)) = self.slots.get_mut(slot) else { return Err(Error::lease_lost()) };
        match task.place {
            Place::Reserved { epoch, lease } if epoch == receipt.epoch => {
                self.leases.leave(lease);
                Ok((slot, task))
            }
            _ => Err(Error::lease_lost()),
        }
    }

    pub(crate) fn settle(&mut self, receipt: &Receipt, settlement: &Settlement, now: Moment) -> Result<()> {
        let (slot, task) = self.end_lease(receipt)?;
        match settlement {
            Settlement::Done => {
                self.remove(slot);
            }
            Settlement::Release(next) => {
                (task.releases, task.delay) = (task.releases.saturating_add(1), next.delay);
                self.line_up(slot, next.delay, now);
            }
            Settlement::Retry(next) => {
                task.replace(next);
                task.releases = task.releases.saturating_add(1);
                self.move_to_back(slot);
                self.line_up(slot, next.delay, now);
            }
            Settlement::Hold(next, _) => {
                task.replace(next);
                task.holds = task.holds.saturating_add(1);
                let order = self.move_to_back(slot);
                self.held.insert(order, slot);
                if let Some(task) = &mut self.slots[slot] {
                    task.place = Place::Held(order);
                }
            }
        }
        self.reserved -= 1;
        Ok(())
    }

    pub(crate) fn touch(&mut self, touch: &Touch, now: Moment) -> Result<Duration> {
        let (slot, _) = self.end_lease(&touch.receipt)?;
        let lease = self.leases.add(slot, touch.receipt.epoch, touch.ttr, now);
        if let Some(task) = &mut self.slots[slot] {
            task.place = Place::Reserved { epoch: touch.receipt.epoch, lease };
        }
        Ok(touch.ttr)
    }

    fn move_to_back(&mut self, slot: Slot) -> u64 {
        let order = self.next_order();
        if let Some(task) = &mut self.slots[slot] {
            task.order = order;
        }
        order
    }

    pub(crate) fn kick(&mut self, slot: Slot, now: Moment) {
        let order = self.next_order();
        let Some(task) = &mut self.slots[slot] else { return };
        if let Place::Held(number) = task.place {
            self.held.remove(&number);
            (task.order, task.lost, task.unholds) = (order, 0, task.unholds.saturating_add(1));
            self.make_ready(slot, now);
        }
    }

    /// Removes a task, whatever its state. The caller has ended its lease.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let Some(task) = self.slots[slot].take() else { return };
        match task.place {
            Place::Ready => self.ready.remove(task.priority, task.order),
            Place::Delayed(due) => drop(self.delayed.remove(&(due, task.order))),
            Place::Held(number) => drop(self.held.remove(&number)),
            Place::Reserved { .. } => {}
        }
        self.ids.remove(&task.id);
        self.free.push(slot);
    }

    /// Removes a reserved task, so that its holder's settle finds it gone.
    pub(crate) fn remove_reserved(&mut self, slot: Slot) {
        if let Some(Place::Reserved { lease, .. }) = self.task(slot).map(|task| task.place) {
            self.leases.leave(lease);
            self.reserved -= 1;
            self.remove(slot);
        }
    }

    /// A bell for a consumer that found nothing.
    pub(crate) fn wait(&mut self, priorities: std::ops::RangeInclusive<u32>, until: Moment) -> (u64, Moment, Arc<Notify>) {
        let armed = self.next_change().map_or(until, |next| next.min(until));
        let (number, bell) = self.waiters.add(priorities, armed);
        (number, armed, bell)
    }
}

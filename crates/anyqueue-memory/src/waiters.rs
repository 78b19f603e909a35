//! Consumers that wait for a task: each has a bell, and only as many are rung as can take something.

use std::ops::RangeInclusive;
use std::sync::Arc;

use anyqueue_core::Moment;
use tokio::sync::Notify;

use crate::ready::Ready;

#[derive(Debug)]
struct Waiter {
    number: u64,
    priorities: RangeInclusive<u32>,
    /// When it looks again by itself.
    armed: Moment,
    bell: Arc<Notify>,
}

/// The waiting consumers of one queue, longest waiting first. One that is rung is off the list.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    list: Vec<Waiter>,
    next: u64,
}

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn add(&mut self, priorities: RangeInclusive<u32>, armed: Moment) -> (u64, Arc<Notify>) {
        self.next += 1;
        let bell = Arc::new(Notify::new());
        self.list.push(Waiter { number: self.next, priorities, armed, bell: bell.clone() });
        (self.next, bell)
    }

    /// Takes one off the list, rung or not.
    pub(crate) fn leave(&mut self, number: u64) {
        self.list.retain(|waiter| waiter.number != number);
    }

    /// Rings for those that find a task of their priorities, one for each ready task at the most.
    pub(crate) fn wake(&mut self, ready: &Ready) {
        let mut left = ready.len();
        self.list.retain(|waiter| {
            let rung = left > 0 && ready.any(&waiter.priorities);
            if rung {
                left -= 1;
                waiter.bell.notify_one();
            }
            !rung
        });
    }

    /// Makes sure that somebody is awake when time brings a change.
    pub(crate) fn cover(&mut self, next: Option<Moment>) {
        if let Some(next) = next
            && !self.list.is_empty()
            && self.list.iter().all(|waiter| waiter.armed > next)
        {
            self.list.remove(0).bell.notify_one();
        }
    }

    pub(crate) fn wake_all(&mut self) {
        self.list.drain(..).for_each(|waiter| waiter.bell.notify_one());
    }
}

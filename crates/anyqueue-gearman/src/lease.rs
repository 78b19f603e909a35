//! The reservations that this process holds.

use std::collections::HashMap;
use std::sync::Arc;

use anyqueue_core::{Moment, Receipt};

use crate::hub::Queue;
use crate::link::Link;
use crate::names::Unique;
use crate::packet::Job;
use crate::server::{Server, Session};

/// The copy of a reserved task that falls due when its lease ends. Its handle is good on its own session only.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) session: Arc<Session>,
    pub(crate) handle: String,
}

/// One reservation.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) server: Arc<Server>,
    pub(crate) queue: Arc<Queue>,
    /// The connection that holds the job.
    pub(crate) link: Arc<Link>,
    pub(crate) job: Job,
    /// What the job's unique id says, or would say if we had made it.
    pub(crate) unique: Unique,
    /// Past it nothing is sent in the worker's name.
    pub(crate) deadline: Moment,
    pub(crate) guard: Option<Guard>,
    /// Whether the guard of a worker was there that ended without a word.
    pub(crate) met: bool,
    /// What is noted with the job, so that its guard knows it.
    pub(crate) number: u32,
    /// Whether a worker has it. One that is still on its way to one is lost by nobody.
    pub(crate) handed_out: bool,
    /// When the job that follows was made, once one was submitted whose answer did not come.
    pub(crate) next: Option<u64>,
    /// Touches that the server has not answered yet: a slow one must not cost the lease.
    pub(crate) touching: usize,
}

impl Lease {
    /// How many leases of its task ended without a word, as whoever comes after us is to know it too.
    pub(crate) fn lost(&self) -> u32 {
        if self.met { self.unique.after_loss().lost } else { self.unique.lost }
    }
}

/// All reservations, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_tag: HashMap<u64, Lease>,
    last: u64,
}

impl Leases {
    pub(crate) fn grant(&mut self, lease: Lease) -> Receipt {
        self.last += 1;
        let receipt = Receipt::new(lease.link.number, self.last);
        self.by_tag.insert(self.last, lease);
        receipt
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_tag.is_empty()
    }

    fn holds(&self, receipt: &Receipt, now: Moment) -> bool {
        self.by_tag
            .get(&receipt.tag)
            .is_some_and(|lease| lease.link.number == receipt.epoch && now < lease.deadline && !lease.link.is_dead())
    }

    /// Ends a reservation, if it still holds.
    pub(crate) fn take(&mut self, receipt: &Receipt, now: Moment) -> Option<Lease> {
        self.holds(receipt, now).then(|| self.by_tag.remove(&receipt.tag)).flatten()
    }

    /// Takes back an end that did not come about.
    pub(crate) fn restore(&mut self, receipt: &Receipt, lease: Lease) {
        self.by_tag.insert(receipt.tag, lease);
    }

    /// Notes that a worker gets it, if it still holds.
    pub(crate) fn hand_out(&mut self, receipt: &Receipt, now: Moment) -> bool {
        let lease = self.holds(receipt, now).then(|| self.by_tag.get_mut(&receipt.tag)).flatten();
        lease.map(|lease| lease.handed_out = true).is_some()
    }

    /// Looks at a reservation that is about to be touched, if it holds.
    pub(crate) fn begin_touch(&mut self, receipt: &Receipt, now: Moment) -> Option<Lease> {
        let lease = self.holds(receipt, now).then(|| self.by_tag.get_mut(&receipt.tag)).flatten()?;
        lease.touching += 1;
        Some(lease.clone())
    }

    /// Ends a touch: the reservation ends later if it came about.
    pub(crate) fn end_touch(&mut self, receipt: &Receipt, deadline: Option<Moment>) {
        if let Some(lease) = self.by_tag.get_mut(&receipt.tag) {
            lease.touching -= 1;
            lease.deadline = deadline.unwrap_or(lease.deadline);
        }
    }

    /// Takes out those whose time is over, and drops those whose connection has ended: the server has them again.
    pub(crate) fn ended(&mut self, now: Moment) -> Vec<Lease> {
        self.by_tag.retain(|_, lease| !lease.link.is_dead());
        self.by_tag.extract_if(|_, lease| lease.deadline <= now && lease.touching == 0).map(|(_, lease)| lease).collect()
    }

    pub(crate) fn take_all(&mut self) -> Vec<Lease> {
        self.by_tag.drain().map(|(_, lease)| lease).filter(|lease| !lease.link.is_dead()).collect()
    }
}

//! What is reserved: the way from a receipt to the message behind it.

use std::collections::HashMap;
use std::sync::Arc;

use anyqueue_core::{Bytes, Moment, Receipt};

use crate::claim::Owned;

/// One reservation.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// The SQS queue that the message is in.
    pub(crate) url: Arc<str>,
    pub(crate) handle: Arc<str>,
    /// SQS's id of the message.
    pub(crate) id: Arc<str>,
    pub(crate) group: Option<Arc<str>>,
    /// The body as it came, if it is so large that it may not grow.
    pub(crate) body: Option<Bytes>,
    /// The file with its data, which ends with the message.
    pub(crate) owned: Option<Owned>,
    /// SQS's first id, of a payload that came without one of ours.
    pub(crate) native: Option<Arc<str>>,
    /// Earlier reservations without an end.
    pub(crate) redeliveries: u64,
    /// Before the request that received it.
    pub(crate) asked: Moment,
    pub(crate) deadline: Moment,
    /// Its copy is sent already: what is left to do is to delete it.
    pub(crate) copied: bool,
}

/// All reservations of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    /// Tells receipts of this process from those of others.
    epoch: u64,
    last: u64,
    open: HashMap<u64, Lease>,
    /// When leases that have ended are to be forgotten next.
    sweep: usize,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self { epoch: fastrand::u64(..u64::MAX >> 1), last: 0, open: HashMap::new(), sweep: 1024 }
    }

    pub(crate) fn add(&mut self, lease: Lease, now: Moment) -> Receipt {
        if self.open.len() >= self.sweep {
            self.open.retain(|_, lease| lease.deadline > now);
            self.sweep = (self.open.len() * 2).max(1024);
        }
        self.last += 1;
        self.open.insert(self.last, lease);
        Receipt::new(self.epoch, self.last)
    }

    /// A reservation that has not ended.
    pub(crate) fn get(&self, receipt: &Receipt, now: Moment) -> Option<&Lease> {
        self.open.get(&receipt.tag).filter(|lease| receipt.epoch == self.epoch && lease.deadline > now)
    }

    /// Takes a reservation that has not ended, to be settled: nobody else can settle it meanwhile.
    pub(crate) fn take(&mut self, receipt: &Receipt, now: Moment) -> Option<Lease> {
        self.get(receipt, now)?;
        self.open.remove(&receipt.tag)
    }

    /// Puts back a reservation whose settlement failed.
    pub(crate) fn restore(&mut self, receipt: &Receipt, lease: Lease) {
        self.open.insert(receipt.tag, lease);
    }

    pub(crate) fn renew(&mut self, receipt: &Receipt, deadline: Moment) {
        if let Some(lease) = self.open.get_mut(&receipt.tag) {
            lease.deadline = deadline;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lease(deadline: u64) -> Lease {
        Lease {
            url: "u".into(),
            handle: "h".into(),
            id: "i".into(),
            group: None,
            body: None,
            owned: None,
            native: None,
            redeliveries: 0,
            asked: Moment::default(),
            deadline: at(deadline),
            copied: false,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::since_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn a_receipt_is_good_once_and_until_its_deadline() {
        let mut leases = Leases::new();
        let (first, second) = (leases.add(lease(10), at(0)), leases.add(lease(10), at(0)));
        assert!(leases.take(&first, at(9)).is_some() && leases.take(&first, at(9)).is_none());
        assert!(leases.get(&second, at(10)).is_none(), "its time is up");
        assert!(leases.get(&Receipt::new(first.epoch + 1, second.tag), at(0)).is_none(), "of another process");
    }

    #[test]
    fn leases_that_have_ended_are_forgotten() {
        let mut leases = Leases::new();
        for n in 0..10_000 {
            leases.add(lease(n / 100 + 1), at(n / 100));
        }
        assert!(leases.open.len() < 2000, "{} are kept", leases.open.len());
    }
}

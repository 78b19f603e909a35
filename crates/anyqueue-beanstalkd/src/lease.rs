//! The reservations that this process holds.
//!
//! A job belongs to the connection that reserved it. Each reservation has a number of its own, so that a job which a
//! connection reserves a second time cannot be settled with the receipt of the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Moment, Receipt};

/// One reservation.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) link: u64,
    pub(crate) job: u64,
    pub(crate) priority: u32,
    pub(crate) ttr: Duration,
    /// Past it nothing is sent any more.
    pub(crate) deadline: Moment,
    pub(crate) counted: Counted,
}

/// Counts one job to its connection. Whoever ends a reservation keeps this until the answer is there: a connection that
/// holds nothing may be let wait or closed at any moment, and neither must happen to a delete that is on its way.
#[derive(Debug, Clone, Default)]
#[allow(dead_code, reason = "it is there to be counted")]
pub(crate) struct Counted(Option<Arc<()>>);

/// All reservations, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_tag: HashMap<u64, Lease>,
    by_job: HashMap<(u64, u64), u64>,
    held: HashMap<u64, Arc<()>>,
    last: u64,
    swept: Moment,
}

impl Leases {
    /// Notes a reservation. An earlier one of the same job on the same connection has ended.
    pub(crate) fn grant(&mut self, mut lease: Lease) -> Receipt {
        self.last += 1;
        let (link, job, tag) = (lease.link, lease.job, self.last);
        if let Some(earlier) = self.by_job.insert((link, job), tag) {
            self.by_tag.remove(&earlier);
        }
        lease.counted = Counted(Some(self.held.entry(link).or_default().clone()));
        self.by_tag.insert(tag, lease);
        Receipt::new(link, tag)
    }

    /// Ends a reservation, if it still holds. Its job counts to the connection until the lease is dropped.
    pub(crate) fn take(&mut self, receipt: &Receipt, now: Moment) -> Option<Lease> {
        self.by_tag.get(&receipt.tag).filter(|lease| lease.link == receipt.epoch)?;
        self.remove(receipt.tag).filter(|lease| now < lease.deadline)
    }

    /// Takes back an end that did not come about.
    pub(crate) fn restore(&mut self, receipt: &Receipt, lease: Lease) {
        // Its connection may have ended meanwhile, or reserved the job anew.
        if self.held.contains_key(&lease.link) && !self.by_job.contains_key(&(lease.link, lease.job)) {
            self.by_job.insert((lease.link, lease.job), receipt.tag);
            self.by_tag.insert(receipt.tag, lease);
        }
    }

    /// A reservation, if it still holds.
    pub(crate) fn get(&self, receipt: &Receipt, now: Moment) -> Option<&Lease> {
        self.by_tag.get(&receipt.tag).filter(|lease| lease.link == receipt.epoch && now < lease.deadline)
    }

    /// Sets when a reservation ends. False if it is not there any more.
    pub(crate) fn extend(&mut self, receipt: &Receipt, deadline: Moment) -> bool {
        self.by_tag.get_mut(&receipt.tag).map(|lease| lease.deadline = deadline).is_some()
    }

    fn remove(&mut self, tag: u64) -> Option<Lease> {
        let lease = self.by_tag.remove(&tag)?;
        self.by_job.remove(&(lease.link, lease.job));
        Some(lease)
    }

    /// How many jobs a connection holds, those included that are being settled.
    pub(crate) fn held(&self, link: u64) -> usize {
        self.held.get(&link).map_or(0, |counted| Arc::strong_count(counted) - 1)
    }

    /// Forgets what a connection held that is no more.
    pub(crate) fn forget(&mut self, link: u64) {
        if self.held.remove(&link).is_some() {
            self.by_tag.retain(|_, lease| lease.link != link);
            self.by_job.retain(|(of, _), _| *of != link);
        }
    }

    /// Forgets what has run out of time, at most once a second.
    pub(crate) fn sweep_at_times(&mut self, now: Moment) {
        if now.since(self.swept) >= Duration::from_secs(1) {
            self.sweep(now);
        }
    }

    /// Forgets what has run out of time.
    pub(crate) fn sweep(&mut self, now: Moment) {
        self.swept = now;
        let over: Vec<u64> = self.by_tag.iter().filter(|(_, lease)| lease.deadline <= now).map(|(tag, _)| *tag).collect();
        for tag in over {
            self.remove(tag);
        }
    }

    /// Ends all reservations that still hold.
    pub(crate) fn take_all(&mut self, now: Moment) -> Vec<Lease> {
        let all = self.by_tag.drain().map(|(_, lease)| lease).filter(|lease| now < lease.deadline).collect();
        self.by_job.clear();
        self.held.clear();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::since_origin(Duration::from_secs(seconds))
    }

    fn lease(link: u64, job: u64) -> Lease {
        Lease { link, job, priority: 0, ttr: Duration::from_secs(10), deadline: at(10), counted: Counted::default() }
    }

    #[test]
    fn a_job_reserved_again_by_the_same_connection_has_a_new_receipt() {
        let mut leases = Leases::default();
        let first = leases.grant(lease(1, 7));
        let second = leases.grant(lease(1, 7));
        assert!(leases.take(&first, at(0)).is_none(), "the first reservation ended when the job was reserved again");
        assert_eq!(leases.held(1), 1);
        assert!(leases.get(&second, at(9)).is_some() && leases.get(&second, at(10)).is_none());
        assert_eq!(leases.take(&second, at(0)).map(|lease| lease.job), Some(7));
        assert_eq!((leases.take(&second, at(0)).is_some(), leases.held(1)), (false, 0));
    }

    #[test]
    fn a_job_counts_to_its_connection_until_its_end_is_answered() {
        let mut leases = Leases::default();
        let receipt = leases.grant(lease(1, 7));
        let settling = leases.take(&receipt, at(0)).unwrap();
        assert_eq!((leases.get(&receipt, at(0)).is_some(), leases.held(1)), (false, 1));
        leases.restore(&receipt, settling);
        assert_eq!((leases.get(&receipt, at(0)).is_some(), leases.held(1)), (true, 1));
        drop(leases.take(&receipt, at(0)));
        assert_eq!(leases.held(1), 0);
    }

    #[test]
    fn what_a_lost_connection_held_and_what_ran_out_of_time_is_gone() {
        let mut leases = Leases::default();
        let (lost, kept) = (leases.grant(lease(1, 7)), leases.grant(lease(2, 7)));
        leases.forget(1);
        assert!(leases.get(&lost, at(0)).is_none() && leases.get(&kept, at(0)).is_some());
        leases.sweep(at(20));
        assert_eq!((leases.held(2), leases.take_all(at(0)).len()), (0, 0));
    }
}

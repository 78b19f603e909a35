//! Touching.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::time::{MAX_TTR, check_ttr};
use anyqueue_core::{Error, Moment, Receipt, Result, Touch};

use futures::future::join_all;

use crate::error;
use crate::hub::Hub;
use crate::lease::Lease;
use crate::link::Link;
use crate::request::Request;
use crate::settle::BeanstalkdSettler;
use crate::wire::{Command, Reply};

impl BeanstalkdSettler {
    pub(crate) async fn touch_all(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let mut answers: Vec<Result<Duration>> = batch.iter().map(|_| Err(Error::lease_lost())).collect();
        let mut by_link = HashMap::<u64, Vec<(usize, &Touch, Lease)>>::new();
        {
            let (now, leases) = (self.hub.clock.now(), self.hub.leases());
            for (at, touch) in batch.iter().enumerate() {
                if self.hub.is_closed() {
                    answers[at] = Err(error::closed());
                } else if let Err(e) = check_ttr(touch.ttr, MAX_TTR, "anyqueue") {
                    answers[at] = Err(e);
                } else if let Some(lease) = leases.get(&touch.receipt, now) {
                    by_link.entry(lease.link).or_default().push((at, touch, lease.clone()));
                }
            }
        }
        let touch = async |(link, items): (&u64, &Vec<_>)| match self.hub.link(*link) {
            Some(link) => self.touch_on(&link, items).await,
            None => Vec::new(),
        };
        for (at, answer) in join_all(by_link.iter().map(touch)).await.into_iter().flatten() {
            answers[at] = answer;
        }
        answers
    }

    async fn touch_on(&self, link: &Link, items: &[(usize, &Touch, Lease)]) -> Vec<(usize, Result<Duration>)> {
        let before = self.hub.clock.now();
        // One whose time is over meanwhile is answered as lost by the caller.
        let items: Vec<_> = items.iter().filter(|(_, _, lease)| before < lease.deadline).collect();
        let request = Request::all(items.iter().map(|(_, _, lease)| Command::Touch(lease.job)));
        let replies = match self.hub.call(link, request).await {
            Ok(replies) => replies,
            Err(e) => return items.iter().map(|(at, _, _)| (*at, Err(e.duplicate()))).collect(),
        };
        let one = |((at, touch, lease), reply): (&&(usize, &Touch, Lease), Reply)| {
            let answer = match reply {
                Reply::Touched => self.touched(touch, lease, before).ok_or_else(Error::lease_lost),
                Reply::NotFound => Err(Error::lease_lost()),
                other => Err(error::unexpected(&other, "touch")),
            };
            (*at, answer)
        };
        items.iter().zip(replies).map(one).collect()
    }

    /// Notes a touch: how long the lease lasts now, if it was not given up meanwhile. The server renews a job's own TTR; a longer
    /// lease is kept by touching again in time.
    fn touched(&self, touch: &Touch, lease: &Lease, before: Moment) -> Option<Duration> {
        self.hub.leases().extend(&touch.receipt, before + lease.ttr).then_some(())?;
        if touch.ttr > lease.ttr {
            let (hub, receipt) = (Arc::downgrade(&self.hub), touch.receipt.clone());
            self.hub.runtime.spawn(keep_touching(hub, receipt, before + touch.ttr));
        }
        let left = (before + lease.ttr.max(touch.ttr)).since(self.hub.clock.now());
        Some(left.max(Duration::from_millis(1)))
    }
}

/// Touches a job three times in each of its TTRs until a moment has come or its reservation has ended.
async fn keep_touching(hub: Weak<Hub>, receipt: Receipt, until: Moment) {
    loop {
        let Some((clock, lease)) = hub.upgrade().and_then(|hub| {
            let now = hub.clock.now();
            let lease = hub.leases().get(&receipt, now).filter(|_| now < until).cloned()?;
            Some((hub.clock.clone(), lease))
        }) else {
            return;
        };
        clock.sleep_until(clock.now() + lease.ttr / 3).await;
        let Some(hub) = hub.upgrade() else { return };
        let (before, link) = (hub.clock.now(), hub.link(lease.link));
        let Some(link) = link.filter(|_| before < until && hub.leases().get(&receipt, before).is_some()) else { return };
        match hub.call(&link, Request::of(&Command::Touch(lease.job))).await.as_deref() {
            Ok([Reply::Touched]) if hub.leases().extend(&receipt, before + lease.ttr) => {}
            _ => return,
        }
    }
}

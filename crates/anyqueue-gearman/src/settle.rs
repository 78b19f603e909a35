//! Settling and touching.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::{MAX_TTR, check_delay, check_ttr};
use anyqueue_core::{Envelope, Error, Moment, Receipt, Result, Settlement, Settler, Touch, async_trait};
use gearman::protocol::{DEFAULT_MAX_PAYLOAD_SIZE, Packet};

use crate::error;
use crate::hub::{Hub, Queue};
use crate::keeper::Fate;
use crate::lease::Lease;
use crate::line::lease_number;
use crate::names::{Kind, Unique};
use crate::packet::{echo, lease};

/// What names and separators take of a packet at most.
const ROOM_FOR_NAMES: usize = 1024;

/// How often it is asked again what has become of a lease that was renewed late.
const AGAIN: Duration = Duration::from_millis(50);

/// Ends and renews leases of one queue.
#[derive(Debug, Clone)]
pub(crate) struct GearmanSettler {
    hub: Arc<Hub>,
    queue: Arc<Queue>,
}

impl GearmanSettler {
    pub(crate) fn new(hub: Arc<Hub>, queue: Arc<Queue>) -> Self {
        Self { hub, queue }
    }

    async fn settle_all(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        let hub = &self.hub;
        let _under_way = hub.settling.read().await;
        if let Err(e) = hub.begin() {
            return batch.iter().map(|_| Err(e.duplicate())).collect();
        }
        let mut answers: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut done, mut done_at, mut copied, mut copied_at) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        {
            let (now, mut leases) = (hub.clock.now(), hub.leases());
            for (at, (receipt, what)) in batch.iter().enumerate() {
                let taken = next(what).map_or(Ok(()), check);
                match taken.and_then(|()| leases.take(receipt, now).ok_or_else(Error::lease_lost)) {
                    Err(e) => answers[at] = Err(e),
                    Ok(lease) => match next(what) {
                        None => (done.push(lease), done_at.push(at)).0,
                        Some(envelope) => {
                            let (packet, made) = self.copy(&lease, what, envelope);
                            let lease = Lease { next: Some(made), ..lease };
                            // The handle tells an answer's item.
                            copied_at.push((at, lease.link.number, lease.job.handle.clone()));
                            copied.push((lease, packet));
                        }
                    },
                }
            }
        }
        let (finished, replaced) = tokio::join!(hub.finish(&done), hub.replace(copied));
        for (at, answer) in done_at.into_iter().zip(finished) {
            answers[at] = answer;
        }
        for (lease, answer) in replaced {
            let own = |(_, link, handle): &&(usize, u64, String)| *link == lease.link.number && *handle == lease.job.handle;
            let Some((at, ..)) = copied_at.iter().find(own) else { continue };
            let untouched = answer.as_ref().is_err_and(|e| !e.is_lease_lost());
            answers[*at] = answer;
            if untouched && !lease.link.is_dead() {
                // Its copy was not taken, or the answer got lost: it is reserved still, and can be settled again.
                hub.leases().restore(&batch[*at].0, lease);
            }
        }
        answers
    }

    /// What takes the place of a task. One that has grown beyond what a packet holds is held as it came.
    /// When it was made is told with it: who settles again because no answer came submits the same job.
    fn copy(&self, lease: &Lease, what: &Settlement, envelope: &Envelope) -> (Packet, u64) {
        let too_large = envelope.body.len() + ROOM_FOR_NAMES > DEFAULT_MAX_PAYLOAD_SIZE as usize;
        let (kind, lost) = match what {
            _ if too_large => (Kind::Held, 0),
            Settlement::Hold(..) => (Kind::Held, 0),
            Settlement::Release(_) => (kind_after(envelope), lease.lost()),
            _ => (kind_after(envelope), 0),
        };
        let band = self.queue.band(envelope.priority);
        let fresh = Unique::next(&self.queue.functions, envelope.id, kind, band, envelope.ttr, lost);
        let made = lease.next.unwrap_or(fresh.made);
        let unique = fresh.made_at(made);
        let body =
            if too_large { self.hub.body_of_copy(&self.queue, &lease.job, lease.unique.ttr) } else { envelope.body.clone() };
        if too_large {
            let (queue, size) = (self.queue.name.as_str(), envelope.body.len());
            tracing::warn!(queue, size, task = %envelope.id, "a task has grown beyond what a packet holds: it is held as it came");
        }
        (self.hub.job(&self.queue, &unique, envelope.delay, body), made)
    }

    async fn touch_all(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let mut answers: Vec<Result<Duration>> = batch.iter().map(|_| Err(Error::lease_lost())).collect();
        let mut items = Vec::new();
        {
            let (now, mut leases) = (self.hub.clock.now(), self.hub.leases());
            for (at, touch) in batch.iter().enumerate() {
                if let Err(e) = self.hub.begin().and_then(|()| check_ttr(touch.ttr, MAX_TTR, "anyqueue").map(drop)) {
                    answers[at] = Err(e);
                } else if let Some(lease) = leases.begin_touch(&touch.receipt, now) {
                    items.push((at, Touching { hub: &self.hub, touch, until: None }, lease));
                }
            }
        }
        // One by one: an answer does not say which of several jobs was not found. They are few, and go out together.
        let touched = items.into_iter().map(|(at, touching, lease)| async move { (at, self.touch_one(touching, &lease).await) });
        for (at, answer) in futures::future::join_all(touched).await {
            answers[at] = answer;
        }
        answers
    }

    async fn touch_one(&self, mut touching: Touching<'_>, of: &Lease) -> Result<Duration> {
        let (before, ttr) = (self.hub.clock.now(), touching.touch.ttr);
        let until = before + ttr;
        let noted = of.link.call(vec![lease(&of.job.handle, lease_number(self.hub.second_of(until)), of.number), echo()]).await?;
        if !noted.not_found.is_empty() {
            return Err(Error::lease_lost());
        }
        // It may have come to the server too late: when the lease was over, and somebody took us for frozen.
        while self.hub.clock.now() >= of.deadline {
            match self.hub.guarded_by(of).await {
                Fate::Ours => break,
                Fate::Taken => return Err(Error::lease_lost()),
                Fate::Open if self.hub.clock.now() >= until || of.link.is_dead() => return Err(Error::lease_lost()),
                Fate::Open => tokio::time::sleep(AGAIN).await,
            }
        }
        touching.until = Some(until);
        Ok(ttr)
    }
}

/// A touch under way. However it ends, the lease goes on or ends by its time from then on.
struct Touching<'a> {
    hub: &'a Hub,
    touch: &'a Touch,
    until: Option<Moment>,
}

impl Drop for Touching<'_> {
    fn drop(&mut self) {
        self.hub.leases().end_touch(&self.touch.receipt, self.until);
    }
}

fn kind_after(envelope: &Envelope) -> Kind {
    if envelope.delay.is_zero() { Kind::Ready } else { Kind::Delayed }
}

fn next(what: &Settlement) -> Option<&Envelope> {
    match what {
        Settlement::Done => None,
        Settlement::Release(next) | Settlement::Retry(next) | Settlement::Hold(next, _) => Some(next),
    }
}

fn check(envelope: &Envelope) -> Result<()> {
    check_delay(envelope.delay)?;
    check_ttr(envelope.ttr, MAX_TTR, "anyqueue").map(drop)
}

#[async_trait]
impl Settler for GearmanSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        // Whoever asked may go at any moment, also when a copy is written and the original is not removed yet.
        let (own, all) = (self.clone(), batch.to_vec());
        let settled = self.hub.runtime.spawn(async move { own.settle_all(&all).await }).await;
        let answers = settled.unwrap_or_else(|_| batch.iter().map(|_| Err(error::closed().effect_unknown())).collect());
        let named = |e: Error| e.during("settle").with("queue", &self.queue.name);
        answers.into_iter().map(|answer| answer.map_err(named)).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let named = |e: Error| e.during("touch").with("queue", &self.queue.name);
        self.touch_all(batch).await.into_iter().map(|answer| answer.map_err(named)).collect()
    }
}

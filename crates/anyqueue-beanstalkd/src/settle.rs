//! Settling and touching.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::time::{MAX_TTR, check_ttr};
use anyqueue_core::{Effect, Envelope, Error, Moment, Receipt, Result, Settlement, Settler, Touch, async_trait};

use futures::future::join_all;

use crate::error;
use crate::hub::{Hub, check, seconds};
use crate::lease::Lease;
use crate::link::Link;
use crate::request::Request;
use crate::tubes::Tubes;
use crate::wire::{Command, Refusal, Reply};

/// Ends and renews leases of one queue.
#[derive(Debug)]
pub(crate) struct BeanstalkdSettler {
    hub: Arc<Hub>,
    tubes: Arc<Tubes>,
}

/// One item of a batch, with the reservation that it ends.
struct Item<'a> {
    at: usize,
    lease: Lease,
    what: &'a Settlement,
    /// Its copy would be larger than the server takes.
    too_large: bool,
}

impl BeanstalkdSettler {
    pub(crate) fn new(hub: Arc<Hub>, tubes: Arc<Tubes>) -> Self {
        Self { hub, tubes }
    }

    /// Sorts a batch by connection. What cannot be settled has its answer already.
    fn by_link<'a>(&self, batch: &'a [(Receipt, Settlement)], answers: &mut [Result<()>]) -> HashMap<u64, Vec<Item<'a>>> {
        let (now, limit) = (self.hub.clock.now(), self.hub.max_body());
        let (mut leases, mut items) = (self.hub.leases(), HashMap::<u64, Vec<Item<'a>>>::new());
        for (at, (receipt, what)) in batch.iter().enumerate() {
            // A copy that is too large is no reason to refuse: the task would run again after each TTR, for ever.
            let taken = envelope(what).map_or(Ok(()), |next| check(next, u64::MAX));
            let too_large = copy(what).is_some_and(|next| next.body.len() as u64 > limit);
            let lease = taken.and_then(|()| leases.take(receipt, now).ok_or_else(Error::lease_lost));
            match lease {
                Ok(lease) => items.entry(lease.link).or_default().push(Item { at, lease, what, too_large }),
                Err(e) => answers[at] = Err(e),
            }
        }
        items
    }

    /// A task whose settlement the server refused is still reserved, and can be settled again.
    fn restore_failed(&self, batch: &[(Receipt, Settlement)], items: Vec<Item<'_>>, settled: &[(usize, Result<()>)]) {
        let failed = |at| settled.iter().any(|(of, answer)| *of == at && is_untouched(answer));
        if settled.iter().all(|(_, answer)| answer.is_ok()) {
            return;
        }
        let mut leases = self.hub.leases();
        for item in items.into_iter().filter(|item| failed(item.at)) {
            leases.restore(&batch[item.at].0, item.lease);
        }
    }

    /// What is asked of one connection: everything that needs no second step, and the first steps of the others. Items
    /// whose time is over have no place in it.
    fn first_steps(&self, items: &[Item<'_>]) -> (Request, Vec<Option<usize>>) {
        let (now, mut request) = (self.hub.clock.now(), Request::default());
        let mut place = |Item { lease, what, too_large, .. }: &Item<'_>| match what {
            _ if *too_large => request.push(&bury(lease)),
            Settlement::Done => request.push(&Command::Delete(lease.job)),
            Settlement::Release(next) => {
                request.push(&Command::Release { id: lease.job, priority: next.priority, delay: seconds(next.delay) })
            }
            Settlement::Retry(next) => request.push_to(self.tubes.of(next.priority), &put(next, next.priority)),
            // All held tasks have one priority: then they stand in the order in which they were held.
            Settlement::Hold(next, _) => request.push_to(&self.tubes.held, &put(next, 0)),
        };
        let places = items.iter().map(|item| (now < item.lease.deadline).then(|| place(item))).collect();
        items.iter().for_each(|item| request.keep(item.lease.counted.clone()));
        (request, places)
    }

    async fn settle_on(&self, link: &Link, items: &[Item<'_>]) -> Vec<(usize, Result<()>)> {
        let (request, places) = self.first_steps(items);
        let replies = match self.hub.call(link, request).await {
            Ok(replies) => replies,
            Err(e) => return items.iter().map(|item| (item.at, Err(e.duplicate()))).collect(),
        };
        let (mut answers, mut second) = (Vec::with_capacity(items.len()), Vec::new());
        for (item, place) in items.iter().zip(places) {
            let Some(reply) = place.map(|place| &replies[place]) else {
                answers.push((item.at, Err(Error::lease_lost())));
                continue;
            };
            match (item.what, reply) {
                (Settlement::Done, Reply::Deleted) | (Settlement::Release(_), Reply::Released) => answers.push((item.at, Ok(()))),
                (Settlement::Done | Settlement::Release(_), Reply::NotFound) => {
                    answers.push((item.at, Err(Error::lease_lost())));
                }
                (Settlement::Retry(_) | Settlement::Hold(..), Reply::Inserted(_)) => {
                    second.push((item, Command::Delete(item.lease.job)));
                }
                (Settlement::Retry(_) | Settlement::Hold(..), Reply::Buried(None)) => {
                    self.warn_of_bury(item);
                    answers.push((item.at, Ok(())));
                }
                // The server was restarted with another limit since it was asked.
                (Settlement::Retry(_) | Settlement::Hold(..), Reply::Refused(Refusal::JobTooBig)) => {
                    self.warn_of_bury(item);
                    second.push((item, bury(&item.lease)));
                }
                (Settlement::Retry(_) | Settlement::Hold(..), Reply::Buried(Some(copy))) => {
                    self.hub.unbury(link, *copy);
                    answers.push((item.at, Err(error::unexpected(reply, "put"))));
                }
                (_, other) => answers.push((item.at, Err(error::unexpected(other, "settle")))),
            }
        }
        answers.extend(self.second_steps(link, second).await);
        answers
    }

    /// Removes tasks whose copies are written, and buries those whose copies are too large. Confirmed first, removed second:
    /// a crash in between makes a duplicate, never a loss.
    async fn second_steps(&self, link: &Link, steps: Vec<(&Item<'_>, Command<'_>)>) -> Vec<(usize, Result<()>)> {
        let (now, mut request) = (self.hub.clock.now(), Request::default());
        let mut place = |item: &Item<'_>, step| {
            request.keep(item.lease.counted.clone());
            request.push(step)
        };
        let places: Vec<_> = steps.iter().map(|(item, step)| (now < item.lease.deadline).then(|| place(item, step))).collect();
        let ended = self.hub.call(link, request).await;
        steps.iter().zip(places).map(|((item, _), place)| (item.at, ended_one(&ended, place))).collect()
    }

    /// The body of a buried job cannot say why it is held.
    fn warn_of_bury(&self, item: &Item<'_>) {
        let (size, limit) = (copy(item.what).map_or(0, |next| next.body.len()), self.hub.max_body());
        let reason = match item.what {
            Settlement::Hold(_, reason) => reason.as_str(),
            _ => "a retry that has no room for its count",
        };
        let (queue, job) = (self.tubes.queue.as_str(), item.lease.job);
        tracing::warn!(queue, job, size, limit, reason, "a task has grown too large to be put again: it is buried as it is");
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
                Reply::Touched => Ok(self.touched(touch, lease, before)),
                Reply::NotFound => Err(Error::lease_lost()),
                other => Err(error::unexpected(&other, "touch")),
            };
            (*at, answer)
        };
        items.iter().zip(replies).map(one).collect()
    }

    /// Notes a touch. The server renews a job's own TTR; a longer lease is kept by touching again in time.
    fn touched(&self, touch: &Touch, lease: &Lease, before: Moment) -> Duration {
        self.hub.leases().extend(&touch.receipt, before + lease.ttr);
        if touch.ttr > lease.ttr {
            let (hub, receipt) = (Arc::downgrade(&self.hub), touch.receipt.clone());
            self.hub.runtime.spawn(keep_touching(hub, receipt, before + touch.ttr));
        }
        let left = (before + lease.ttr.max(touch.ttr)).since(self.hub.clock.now());
        left.max(Duration::from_millis(1))
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
            Ok([Reply::Touched]) => hub.leases().extend(&receipt, before + lease.ttr),
            _ => return,
        }
    }
}

fn is_untouched(answer: &Result<()>) -> bool {
    answer.as_ref().is_err_and(|e| !e.is_lease_lost() && e.effect() == Effect::None)
}

/// What became of a second step. If the task is not ours any more, its copy stays: better twice than not at all.
fn ended_one(ended: &Result<Vec<Reply>>, place: Option<usize>) -> Result<()> {
    match (ended, place) {
        (_, None) => Err(Error::lease_lost().effect_unknown()),
        (Ok(replies), Some(place)) => match &replies[place] {
            Reply::Deleted | Reply::Buried(None) => Ok(()),
            Reply::NotFound => Err(Error::lease_lost().effect_unknown()),
            other => Err(error::unexpected(other, "settle").effect_unknown()),
        },
        (Err(e), Some(_)) => Err(e.duplicate().effect_unknown()),
    }
}

fn bury(lease: &Lease) -> Command<'static> {
    Command::Bury { id: lease.job, priority: lease.priority }
}

/// What a settlement puts anew.
fn copy(what: &Settlement) -> Option<&Envelope> {
    match what {
        Settlement::Done | Settlement::Release(_) => None,
        Settlement::Retry(next) | Settlement::Hold(next, _) => Some(next),
    }
}

fn envelope(what: &Settlement) -> Option<&Envelope> {
    match what {
        Settlement::Done => None,
        Settlement::Release(next) | Settlement::Retry(next) | Settlement::Hold(next, _) => Some(next),
    }
}

/// A put of a task.
pub(crate) fn put(task: &Envelope, priority: u32) -> Command<'_> {
    Command::Put { priority, delay: seconds(task.delay), ttr: seconds(task.ttr), body: &task.body }
}

#[async_trait]
impl Settler for BeanstalkdSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        let mut answers: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        if self.hub.is_closed() {
            answers.iter_mut().for_each(|answer| *answer = Err(error::closed()));
        } else {
            let by_link: Vec<(u64, Vec<Item<'_>>)> = self.by_link(batch, &mut answers).into_iter().collect();
            let settle = async |(link, items): &(u64, Vec<Item<'_>>)| match self.hub.link(*link) {
                Some(link) => self.settle_on(&link, items).await,
                None => items.iter().map(|item| (item.at, Err(Error::lease_lost()))).collect(),
            };
            // All connections are written to before any answer is waited for: one that is slow costs the others no time.
            let settled = join_all(by_link.iter().map(settle)).await;
            for ((_, items), settled) in by_link.into_iter().zip(settled) {
                self.restore_failed(batch, items, &settled);
                settled.into_iter().for_each(|(at, answer)| answers[at] = answer);
            }
        }
        let named = |e: Error| e.during("settle").with("queue", &self.tubes.queue);
        answers.into_iter().map(|answer| answer.map_err(named)).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
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
        let named = |e: Error| e.during("touch").with("queue", &self.tubes.queue);
        answers.into_iter().map(|answer| answer.map_err(named)).collect()
    }
}

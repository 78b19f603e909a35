//! Settling.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Effect, Envelope, Error, ErrorKind, Receipt, Result, Settlement, Settler, Touch, async_trait};

use futures::future::join_all;

use crate::error;
use crate::hub::{Hub, check, seconds};
use crate::lease::Lease;
use crate::link::Link;
use crate::request::Request;
use crate::tubes::Tubes;
use crate::wire::{Command, Refusal, Reply};

/// Ends and renews leases of one queue.
#[derive(Debug, Clone)]
pub(crate) struct BeanstalkdSettler {
    pub(crate) hub: Arc<Hub>,
    pub(crate) tubes: Arc<Tubes>,
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

    async fn settle_all(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        let _under_way = self.hub.settling.read().await;
        if self.hub.is_closed() {
            return batch.iter().map(|_| Err(error::closed())).collect();
        }
        let mut answers: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
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
        answers
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
            Settlement::Retry(next) | Settlement::Hold(next, _) => self.push_copy(&mut request, what, next),
        };
        let places = items.iter().map(|item| (now < item.lease.deadline).then(|| place(item))).collect();
        items.iter().for_each(|item| request.keep(item.lease.counted.clone()));
        (request, places)
    }

    fn push_copy(&self, request: &mut Request, what: &Settlement, next: &Envelope) -> usize {
        match what {
            // All held tasks have one priority: then they stand in the order in which they were held.
            Settlement::Hold(..) => request.push_to(&self.tubes.held, &put(next, 0)),
            _ => request.push_to(self.tubes.of(next.priority), &put(next, next.priority)),
        }
    }

    async fn settle_on(&self, link: &Link, items: &[Item<'_>]) -> Vec<(usize, Result<()>)> {
        let (request, places) = self.first_steps(items);
        let replies = match self.hub.call(link, request).await {
            Ok(replies) => replies,
            Err(e) => return items.iter().map(|item| (item.at, Err(e.duplicate()))).collect(),
        };
        let (mut answers, mut second, mut refused) = (Vec::with_capacity(items.len()), Vec::new(), Vec::new());
        for (item, place) in items.iter().zip(places) {
            let Some(reply) = place.map(|place| &replies[place]) else {
                answers.push((item.at, Err(Error::lease_lost())));
                continue;
            };
            match (item.what, reply) {
                (Settlement::Done, Reply::Deleted) | (Settlement::Release(_), Reply::Released) => answers.push((item.at, Ok(()))),
                (_, Reply::NotFound) => answers.push((item.at, Err(Error::lease_lost()))),
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
                (Settlement::Retry(_) | Settlement::Hold(..), reply) => {
                    self.hub.unbury(link, reply);
                    refused.push((item, error::unexpected(reply, "put")));
                }
                (Settlement::Release(next), Reply::Buried(_)) => {
                    let (queue, job) = (self.tubes.queue.as_str(), item.lease.job);
                    tracing::warn!(queue, job, "beanstalkd had no memory to put a released job in line and buried it");
                    if next.delay.is_zero() {
                        second.push((item, Command::KickJob(job)));
                    } else {
                        // A kick would make it ready too early. It is held now.
                        answers.push((item.at, Err(error::unexpected(reply, "release").effect_unknown())));
                    }
                }
                (_, other) => answers.push((item.at, Err(error::unexpected(other, "settle")))),
            }
        }
        // At the same time: a server that is slow to take a copy must not keep those from being removed whose copies are put.
        let elsewhere = async {
            let mut answers = Vec::new();
            let copied = self.put_elsewhere(link, refused, &mut answers).await;
            let removes = copied.into_iter().map(|item| (item, Command::Delete(item.lease.job))).collect();
            answers.extend(self.second_steps(link, removes).await);
            answers
        };
        let (own, elsewhere) = tokio::join!(self.second_steps(link, second), elsewhere);
        answers.extend(own.into_iter().chain(elsewhere));
        answers
    }

    /// Puts copies that a task's own server has no room for on another one: those that it took.
    async fn put_elsewhere<'i>(
        &self,
        own: &Link,
        mut refused: Vec<(&'i Item<'i>, Error)>,
        answers: &mut Vec<(usize, Result<()>)>,
    ) -> Vec<&'i Item<'i>> {
        answers.extend(refused.extract_if(.., |(_, e)| e.kind() != ErrorKind::Full).map(|(item, e)| (item.at, Err(e))));
        let mut copied = Vec::new();
        for server in self.hub.by_turn(&self.hub.turn).filter(|server| server.link(own.number).is_none()) {
            if refused.is_empty() {
                break;
            }
            let Ok(link) = server.asking().await else { continue };
            // Without the connection the task is nobody's any more, and whoever has it by now writes its copy.
            let (now, lost) = (self.hub.clock.now(), own.is_dead());
            let late = refused.extract_if(.., |(item, _)| lost || now >= item.lease.deadline);
            answers.extend(late.map(|(item, _)| (item.at, Err(Error::lease_lost()))));
            if refused.is_empty() {
                break;
            }
            let mut request = Request::default();
            let mut place = |item: &Item<'_>| copy(item.what).map(|next| self.push_copy(&mut request, item.what, next));
            let places: Vec<_> = refused.iter().map(|(item, _)| place(item)).collect();
            match self.hub.call(&link, request).await {
                Ok(replies) => {
                    let mut places = places.into_iter();
                    let mut took = |_: &mut (&Item<'_>, Error)| {
                        let reply = places.next().flatten().map(|place| &replies[place]);
                        reply
                            .inspect(|reply| self.hub.unbury(&link, reply))
                            .is_some_and(|reply| matches!(reply, Reply::Inserted(_)))
                    };
                    copied.extend(refused.extract_if(.., |item| took(item)).map(|(item, _)| item));
                }
                Err(e) if e.effect() == Effect::None => self.hub.noticed(server, &e),
                Err(e) => {
                    self.hub.noticed(server, &e);
                    answers.extend(refused.drain(..).map(|(item, _)| (item.at, Err(e.duplicate()))));
                }
            }
        }
        let lost = own.is_dead();
        answers.extend(refused.into_iter().map(|(item, e)| (item.at, Err(if lost { Error::lease_lost() } else { e }))));
        copied
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
}

fn is_untouched(answer: &Result<()>) -> bool {
    answer.as_ref().is_err_and(|e| !e.is_lease_lost() && e.effect() == Effect::None)
}

/// What became of a second step. If the task is not ours any more, its copy stays: better twice than not at all.
fn ended_one(ended: &Result<Vec<Reply>>, place: Option<usize>) -> Result<()> {
    match (ended, place) {
        (_, None) => Err(Error::lease_lost().effect_unknown()),
        (Ok(replies), Some(place)) => match &replies[place] {
            Reply::Deleted | Reply::Buried(None) | Reply::Kicked(_) => Ok(()),
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
        let answers = if batch.iter().any(|(_, what)| copy(what).is_some()) {
            // Whoever asked may go at any moment, also when a copy is written and the original is not removed yet.
            let (own, all) = (self.clone(), batch.to_vec());
            let settled = self.hub.runtime.spawn(async move { own.settle_all(&all).await }).await;
            settled.unwrap_or_else(|_| batch.iter().map(|_| Err(error::closed().effect_unknown())).collect())
        } else {
            self.settle_all(batch).await
        };
        let named = |e: Error| e.during("settle").with("queue", &self.tubes.queue);
        answers.into_iter().map(|answer| answer.map_err(named)).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        let named = |e: Error| e.during("touch").with("queue", &self.tubes.queue);
        self.touch_all(batch).await.into_iter().map(|answer| answer.map_err(named)).collect()
    }
}

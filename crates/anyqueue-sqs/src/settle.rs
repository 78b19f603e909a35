//! Settling and touching.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    Effect, Envelope, Error, ErrorKind, Receipt, Result, Settlement, Settler, Touch, async_trait, steps_up, time,
};
use futures::future::join_all;
use futures::stream::{self, StreamExt};

use crate::SECOND;
use crate::claim::Content;
use crate::error;
use crate::hub::Hub;
use crate::lease::Lease;
use crate::lines::Lines;
use crate::message::Post;
use crate::send;
use crate::slip::Slip;

/// The longest that a message may be reserved in all (`VisibilityTimeout`).
pub(crate) const LONGEST: Duration = time::MAX_TTR;

/// Ends and renews leases of one queue.
#[derive(Debug)]
pub(crate) struct SqsSettler {
    hub: Arc<Hub>,
    lines: Arc<Lines>,
}

/// One item of a batch, with the reservation that it ends.
struct Item<'a> {
    at: usize,
    lease: Lease,
    what: &'a Settlement,
}

/// An item to end: it is removed, or shown again after so many seconds.
type Ending<'a> = (Item<'a>, Option<u64>);

/// What is asked of SQS for an item.
enum Step {
    /// Nothing is left but to delete.
    Delete,
    /// A message takes its place, on this SQS queue.
    Copy(Arc<str>, Box<Post>),
    /// It is there again after so many seconds.
    Show(u64),
}

impl SqsSettler {
    pub(crate) fn new(hub: Arc<Hub>, lines: Arc<Lines>) -> Self {
        Self { hub, lines }
    }

    async fn step(&self, item: &Item<'_>) -> Result<Step> {
        let (lease, fifo) = (&item.lease, self.lines.kind.fifo);
        let Some(task) = next(item.what).filter(|_| !lease.copied) else { return Ok(Step::Delete) };
        send::check_times(task, &self.lines)?;
        let after = steps_up(task.delay, SECOND);
        if matches!(item.what, Settlement::Release(_)) && fifo && after <= self.hub.left(lease.asked) {
            // A copy would go behind its group; only what waits longer than SQS hides it needs one.
            return Ok(Step::Show(after));
        }
        let Some(content) = self.hub.content(task, self.lines.largest, lease.owned.as_ref()).await? else {
            return self.as_it_came(task, lease);
        };
        let slip = Slip { group: lease.group.clone(), ..Slip::of(task) };
        Ok(match item.what {
            Settlement::Release(_) => {
                let slip = Slip { redeliveries: lease.redeliveries, native: lease.native.clone(), ..slip };
                let post = self.hub.post_of(task, content, slip, fifo).once("release", &lease.id);
                Step::Copy(lease.url.clone(), Box::new(post))
            }
            Settlement::Hold(..) => self.parked(content, slip),
            _ => {
                let post = self.hub.post_of(task, content, slip, fifo).once("retry", &lease.id);
                Step::Copy(self.lines.band(task.priority).clone(), Box::new(post))
            }
        })
    }

    fn parked(&self, (body, claim): Content, slip: Slip) -> Step {
        let slip = Slip { held: Some(self.hub.held_at()), claim, ..slip };
        Step::Copy(self.lines.held[0].clone(), Box::new(Post { body, slip, delay: 0, once: None }))
    }

    /// A hold of a task that has grown beyond what SQS takes, since it carries its history: it is held as it came, without
    /// its reason, but not lost and not run for ever.
    fn as_it_came(&self, task: &Envelope, lease: &Lease) -> Result<Step> {
        let (size, limit) = (task.body.len() as u64, self.lines.largest);
        let body = lease.body.clone().ok_or_else(|| self.hub.too_large(size, &self.lines))?;
        let (queue, id) = (self.lines.queue.as_str(), task.id.to_string());
        tracing::warn!(queue, id, size, limit, "a task has grown too large for SQS; it is held as it came, without a reason");
        let slip = Slip { group: lease.group.clone(), native: lease.native.clone(), ..Slip::of(task) };
        Ok(self.parked((body, lease.owned.as_ref().map(|owned| owned.word.clone())), slip))
    }

    /// Takes the reservations of a batch. What cannot be settled has its answer already.
    fn taken<'a>(&self, batch: &'a [(Receipt, Settlement)], answers: &mut [Result<()>]) -> Vec<Item<'a>> {
        let now = self.hub.clock.now();
        let mut leases = self.hub.leases();
        let mut items = Vec::with_capacity(batch.len());
        for (at, (receipt, what)) in batch.iter().enumerate() {
            match leases.take(receipt, now) {
                Some(lease) => items.push(Item { at, lease, what }),
                None => answers[at] = Err(Error::lease_lost()),
            }
        }
        items
    }

    /// Sends what takes the place of items. Those with a copy are to be deleted; the others have failed.
    async fn copied<'a>(&self, copies: Vec<(Item<'a>, Arc<str>, Post)>) -> Vec<(Item<'a>, Result<()>)> {
        let mut by_url: HashMap<Arc<str>, (Vec<Item<'a>>, Vec<Post>)> = HashMap::new();
        for (item, url, post) in copies {
            let (items, posts) = by_url.entry(url).or_default();
            items.push(item);
            posts.push(post);
        }
        let send = async |url: Arc<str>, items: Vec<Item<'a>>, posts: Vec<Post>| {
            let sent = self.hub.post(&self.lines, &url, &posts).await;
            let (mut answered, mut unused) = (Vec::with_capacity(sent.len()), Vec::new());
            for ((mut item, post), sent) in items.into_iter().zip(posts).zip(sent) {
                let kept = item.lease.owned.as_ref().is_some_and(|owned| Some(&owned.word) == post.slip.claim.as_ref());
                match &sent {
                    // The file is the copy's from now on.
                    Ok(_) if kept => item.lease.owned = None,
                    Err(e) if !kept && e.effect() == Effect::None => unused.extend(post.slip.claim),
                    _ => {}
                }
                item.lease.copied |= sent.is_ok();
                answered.push((item, sent.map(drop)));
            }
            self.hub.let_go(&unused).await;
            answered
        };
        join_all(by_url.into_iter().map(|(url, (items, posts))| send(url, items, posts))).await.into_iter().flatten().collect()
    }

    /// Removes messages, or shows them again.
    async fn ended<'a>(&self, items: Vec<Ending<'a>>) -> Vec<(Item<'a>, Result<()>)> {
        let mut by_url: HashMap<(Arc<str>, bool), Vec<Ending<'a>>> = HashMap::new();
        for (item, shown) in items {
            by_url.entry((item.lease.url.clone(), shown.is_some())).or_default().push((item, shown));
        }
        let end = async |url: Arc<str>, shown: bool, items: Vec<Ending<'a>>| {
            let answers = if shown {
                items.iter().for_each(|(item, _)| self.hub.looked(&item.lease.id));
                let items: Vec<_> = items.iter().map(|(item, after)| (item.lease.handle.clone(), after.unwrap_or(0))).collect();
                self.hub.hide(&url, &items).await
            } else {
                let handles: Vec<_> = items.iter().map(|(item, _)| item.lease.handle.clone()).collect();
                self.hub.delete(&url, &handles).await
            };
            let ended: Vec<_> = items.into_iter().map(|(item, _)| item).zip(answers).collect();
            let gone = ended.iter().filter(|(_, answer)| !shown && answer.is_ok());
            self.hub.let_go(gone.filter_map(|(item, _)| item.lease.owned.as_ref().map(|owned| &owned.word))).await;
            ended
        };
        let ended = by_url.into_iter().map(|((url, shown), items)| end(url, shown, items));
        join_all(ended).await.into_iter().flatten().collect()
    }
}

fn next(what: &Settlement) -> Option<&Envelope> {
    match what {
        Settlement::Done => None,
        Settlement::Release(task) | Settlement::Retry(task) | Settlement::Hold(task, _) => Some(task),
    }
}

/// Whether another try may settle it still.
fn is_open(answer: &Result<()>) -> bool {
    answer.as_ref().is_err_and(|e| !e.is_lease_lost())
}

#[async_trait]
impl Settler for SqsSettler {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        if self.hub.check().is_err() {
            return batch.iter().map(|_| Err(error::closed().during("settle"))).collect();
        }
        let mut answers: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut copies, mut ends, mut over) = (Vec::new(), Vec::new(), Vec::new());
        let items = self.taken(batch, &mut answers);
        let steps: Vec<_> = items.iter().map(|item| self.step(item)).collect();
        let steps: Vec<_> = stream::iter(steps).buffered(send::FILES).collect().await;
        for (item, step) in items.into_iter().zip(steps) {
            match step {
                Ok(Step::Delete) => ends.push((item, None)),
                Ok(Step::Show(after)) => ends.push((item, Some(after))),
                Ok(Step::Copy(url, post)) => copies.push((item, url, *post)),
                Err(e) => over.push((item, Err(e))),
            }
        }
        // Confirmed first, removed second: a crash in between makes a duplicate, never a loss. Plain ends need not wait.
        let (ended, copied) = futures::join!(self.ended(ends), self.copied(copies));
        over.extend(ended);
        let (good, bad): (Vec<_>, Vec<_>) = copied.into_iter().partition(|(_, sent)| sent.is_ok());
        over.extend(bad);
        over.extend(self.ended(good.into_iter().map(|(item, _)| (item, None)).collect()).await);
        for (item, answer) in over {
            if is_open(&answer) {
                self.hub.leases().restore(&batch[item.at].0, item.lease);
            }
            answers[item.at] = answer.map_err(|e| {
                self.hub.noticed(&self.lines.queue, &e);
                e.during("settle").with("queue", &self.lines.queue)
            });
        }
        answers
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        if self.hub.check().is_err() {
            return batch.iter().map(|_| Err(error::closed().during("touch"))).collect();
        }
        let before = self.hub.clock.now();
        let mut answers: Vec<Result<Duration>> = batch.iter().map(|_| Err(Error::lease_lost())).collect();
        let mut by_url: HashMap<Arc<str>, Vec<(usize, Arc<str>, u64)>> = HashMap::new();
        for (at, touch) in batch.iter().enumerate() {
            let Some(lease) = self.hub.leases().get(&touch.receipt, before).cloned() else { continue };
            match seconds(touch.ttr, self.hub.left(lease.asked)) {
                Ok(seconds) => by_url.entry(lease.url).or_default().push((at, lease.handle, seconds)),
                Err(e) => answers[at] = Err(e),
            }
        }
        let renew = async |url: Arc<str>, items: Vec<(usize, Arc<str>, u64)>| {
            let wanted: Vec<_> = items.iter().map(|(_, handle, seconds)| (handle.clone(), *seconds)).collect();
            items.into_iter().zip(self.hub.hide(&url, &wanted).await).collect::<Vec<_>>()
        };
        let renewed = join_all(by_url.into_iter().map(|(url, items)| renew(url, items))).await;
        for ((at, _, seconds), answer) in renewed.into_iter().flatten() {
            let lasts = Duration::from_secs(seconds);
            if answer.is_ok() {
                self.hub.leases().renew(&batch[at].receipt, before + lasts);
            }
            answers[at] = answer.map(|()| lasts).map_err(|e| e.during("touch").with("queue", &self.lines.queue));
        }
        answers
    }
}

/// For how long a lease can be renewed.
fn seconds(ttr: Duration, left: u64) -> Result<u64> {
    if ttr > LONGEST || left < 1 {
        let text =
            "SQS lets a task be reserved for 12 hours in all (`VisibilityTimeout`); split it, or let it go on from a checkpoint";
        return Err(Error::new(ErrorKind::TouchLimit { limit: LONGEST }, text).during("touch"));
    }
    Ok(steps_up(ttr, SECOND).min(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_gets_what_is_left_of_twelve_hours() {
        assert_eq!(seconds(Duration::from_millis(1500), 100).unwrap(), 2);
        assert_eq!(seconds(Duration::from_secs(60), 7).unwrap(), 7);
        for (ttr, left) in [(Duration::from_secs(60), 0), (LONGEST + SECOND, 43_200)] {
            assert!(matches!(seconds(ttr, left).unwrap_err().kind(), ErrorKind::TouchLimit { limit: LONGEST }));
        }
    }
}

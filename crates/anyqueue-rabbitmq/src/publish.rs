//! Putting tasks on queues: many under way, each with an answer of its own.
//!
//! A message that no queue takes comes back before its confirm, and the client crate hands it out with whichever confirm is
//! next. So a channel serves one call at a time, and what came back is told by its name.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use anyqueue_core::{Bytes, Create, Effect, Envelope, Error, ErrorKind, Result, time};
use futures::future::{MaybeDone, maybe_done};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::time::{Instant, timeout_at};

use crate::error;
use crate::layout::Layout;
use crate::message::properties;
use crate::shared::Shared;

/// What is published, and where to.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// So many are under way at once, and have the time of one request together.
const AT_ONCE: usize = 512;
/// How often a queue is made anew for what came back.
const TRIES: usize = 3;
/// A message that no queue took is a named error, not a loss.
const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

impl Shared {
    /// A task on its way to its band, through the ladder if it is delayed.
    pub(crate) fn post(&self, layout: &Layout, task: &Envelope) -> Post {
        let band = layout.band(task.priority);
        let (exchange, key) = match task.delay.is_zero() {
            true => (ShortString::default(), band.clone()),
            false => layout.ladder.entry(task.delay, band.as_str()),
        };
        let mut properties = properties(task, self.clock.wall());
        if let Some(priority) = layout.style.native_priority(task.priority) {
            properties = properties.with_priority(priority);
        }
        Post { exchange, key, properties, body: task.body.clone() }
    }

    /// Refuses what this broker cannot keep.
    pub(crate) fn refuse(&self, layout: &Layout, task: &Envelope) -> Result<()> {
        let (size, limit) = (task.body.len() as u64, self.config.max_payload);
        if size > limit {
            return Err(Error::too_large(size, limit));
        }
        self.refuse_copy(task)?;
        time::check_delay(task.delay)?;
        let setting = "the server's `consumer_timeout`, less two minutes; raise it there, and the option of that name here";
        time::check_ttr(task.ttr, layout.style.max_ttr, setting).map(drop)
    }

    /// Refuses what the server cannot take. A copy may be larger than a task that is sent: what a task gathers on its way must
    /// not keep it from being held.
    pub(crate) fn refuse_copy(&self, task: &Envelope) -> Result<()> {
        let (size, limit) = (task.body.len() as u64, self.server_limit.load(Ordering::Relaxed));
        if size > limit { Err(Error::too_large(size, limit)) } else { Ok(()) }
    }

    /// A channel that nobody else publishes on meanwhile.
    pub(crate) async fn publishing(&self) -> Result<Publishing<'_>> {
        let connection = self.send.live().await?;
        if connection.status().blocked() {
            return Err(Error::new(ErrorKind::Full, ALARM));
        }
        let kept = || self.publishers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        while let Some(channel) = kept() {
            if channel.status().connected() {
                return Ok(Publishing { shared: self, channel });
            }
        }
        let channel = self.send.channel().await?;
        self.send.call("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Publishing { shared: self, channel })
    }

    /// Sees to it that the queue is there and publishes once more what came back. False if that cannot help.
    async fn publish_again(&self, layout: &Layout, posts: &[Post], answers: &mut [Result<()>]) -> bool {
        let of_band = |(post, answer): (&Post, &Result<()>)| came_back(answer) && layout.bands.contains(&post.key);
        match posts.iter().zip(&*answers).any(of_band) {
            true => self.forget(&layout.queue),
            // What is consumed is still there, and its leases hold.
            false => self.reconsider(&layout.queue),
        }
        if self.config.create != Create::Auto {
            return false;
        }
        let again: Vec<usize> = (0..posts.len()).filter(|at| came_back(&answers[*at])).collect();
        if let Err(e) = self.ensure(layout).await {
            // What passes by is no reason to say that the queue is not there.
            for at in again.into_iter().filter(|_| e.is_retryable()) {
                answers[at] = Err(e.duplicate().without_effect());
            }
            return false;
        }
        let back: Vec<Post> = again.iter().map(|at| posts[*at].clone()).collect();
        for (at, answer) in again.into_iter().zip(self.publish(&back).await) {
            answers[at] = answer;
        }
        true
    }

    /// Publishes all and waits for the server's word on each.
    pub(crate) async fn publish(&self, posts: &[Post]) -> Vec<Result<()>> {
        if posts.is_empty() {
            return Vec::new();
        }
        match self.publishing().await {
            Ok(publishing) => publishing.all(posts).await,
            Err(e) => posts.iter().map(|_| Err(e.duplicate().without_effect())).collect(),
        }
    }
}

const ALARM: &str = "the server has raised an alarm, memory or disk, and takes no tasks until there is room";

/// A channel to publish on, for one call.
pub(crate) struct Publishing<'a> {
    shared: &'a Shared,
    channel: Channel,
}

impl Publishing<'_> {
    /// Publishes all to a queue's own queues. What comes back since one of them was deleted goes again, to a new one: up to
    /// `TRIES` times, since somebody here may have seen the old one a moment before it was deleted, and taken it for known.
    pub(crate) async fn to(self, layout: &Layout, posts: &[Post]) -> Vec<Result<()>> {
        let shared = self.shared;
        let mut answers = self.all(posts).await;
        for _ in 0..TRIES {
            if !answers.iter().any(came_back) || !shared.publish_again(layout, posts, &mut answers).await {
                break;
            }
        }
        answers
    }

    /// Publishes all and waits for the server's word on each.
    pub(crate) async fn all(self, posts: &[Post]) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(posts.len());
        let mut clean = true;
        for part in posts.chunks(AT_ONCE) {
            let (part, all) = self.some(part).await;
            answers.extend(part);
            clean &= all;
        }
        self.shared.tally.round_trips.fetch_add(posts.len() as u64, Ordering::Relaxed);
        // One that a queue refuses may go on to hear that: if it first sent to it while its leader was dead, a server of 3.10
        // never looks for the new one.
        let refused = answers.iter().any(|answer| answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::Full));
        // A channel that still waits for something would tell it to somebody else.
        if clean && !refused && self.channel.status().connected() {
            self.shared.publishers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(self.channel);
        }
        answers
    }

    /// Says also whether the server had a word for each.
    async fn some(&self, posts: &[Post]) -> (Vec<Result<()>>, bool) {
        let until = Instant::now() + self.shared.config.timeout;
        let mut under_way: Vec<_> = posts.iter().map(|post| Box::pin(maybe_done(self.put(post)))).collect();
        for putting in &mut under_way {
            // From here on it is in its place in line, and nobody has waited yet.
            let _ = futures::poll!(putting.as_mut());
        }
        let (mut answers, mut back, mut clean) = (Vec::with_capacity(posts.len()), HashSet::new(), true);
        for (putting, post) in under_way.into_iter().zip(posts) {
            let answer = timeout_at(until, confirmed(putting)).await;
            let word = match answer {
                Ok(Ok(word)) => word,
                Ok(Err(e)) => {
                    clean = false;
                    let size = post.body.len() as u64;
                    answers.push(Err(match self.shared.learn(&e) {
                        Some(limit) if size > limit => Error::too_large(size, limit),
                        _ => error::lost(e),
                    }));
                    continue;
                }
                Err(_) => {
                    clean = false;
                    answers.push(Err(self.late()));
                    continue;
                }
            };
            let (answer, message) = read(word);
            back.extend(message.map(|message| message.delivery.properties.message_id().clone()));
            answers.push(answer);
        }
        deal_out(posts, &mut answers, &back, clean);
        (answers, clean)
    }

    async fn put(&self, post: &Post) -> lapin::Result<PublisherConfirm> {
        let (exchange, key) = (post.exchange.clone(), post.key.clone());
        self.channel.basic_publish(exchange, key, MANDATORY, &post.body, post.properties.clone()).await
    }

    fn late(&self) -> Error {
        match self.shared.send.is_blocked() {
            true => Error::new(ErrorKind::Full, ALARM).effect_unknown(),
            false => error::late("basic.publish"),
        }
    }
}

type Putting<F> = Pin<Box<MaybeDone<F>>>;

async fn confirmed(mut putting: Putting<impl Future<Output = lapin::Result<PublisherConfirm>>>) -> lapin::Result<Confirmation> {
    putting.as_mut().await;
    match putting.as_mut().take_output() {
        Some(put) => put?.await,
        None => Ok(Confirmation::NotRequested),
    }
}

fn read(word: Confirmation) -> (Result<()>, Option<BasicReturnMessage>) {
    match word {
        Confirmation::Ack(message) => (Ok(()), message),
        Confirmation::Nack(message) => {
            let text = "the server refused the task: its queue is full, or has lost too many of its members";
            (Err(Error::new(ErrorKind::Full, text)), message)
        }
        Confirmation::NotRequested => {
            (Err(Error::new(ErrorKind::Protocol, "the server confirms nothing").effect_unknown()), None)
        }
    }
}

/// Tells those tasks that came back, whichever confirm brought the news.
fn deal_out(posts: &[Post], answers: &mut [Result<()>], back: &HashSet<Option<ShortString>>, clean: bool) {
    for (answer, post) in answers.iter_mut().zip(posts) {
        if back.contains(post.properties.message_id()) {
            *answer = Err(returned(post));
        } else if !clean && !back.is_empty() && answer.is_ok() {
            // It may have come back, and the news of that may wait for a word that never came.
            *answer = Err(error::late("basic.publish"));
        }
    }
}

fn returned(post: &Post) -> Error {
    let place = if post.exchange.as_str().is_empty() { &post.key } else { &post.exchange };
    let text = "the server has no queue for it and gave the task back; run `queue-runner init`";
    Error::new(ErrorKind::NotFound, text).with("server_queue", place)
}

/// Whether no queue took it, so that it may go again.
fn came_back(answer: &Result<()>) -> bool {
    answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound && e.effect() == Effect::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(name: &str) -> Post {
        let properties = BasicProperties::default().with_message_id(name.into());
        Post { exchange: "".into(), key: "q".into(), properties, body: Bytes::new() }
    }

    #[test]
    fn what_came_back_is_told_by_its_name() {
        let posts = [post("a"), post("b"), post("c")];
        let back: HashSet<_> = [Some(ShortString::from("b"))].into();
        let mut answers = vec![Ok(()), Ok(()), Ok(())];
        deal_out(&posts, &mut answers, &back, true);
        assert_eq!(answers.iter().map(came_back).collect::<Vec<_>>(), [false, true, false]);
        assert!(answers[0].is_ok() && answers[2].is_ok());
        let mut answers = vec![Ok(()), Ok(()), Err(error::late("basic.publish"))];
        deal_out(&posts, &mut answers, &back, false);
        assert_eq!(answers.iter().map(came_back).collect::<Vec<_>>(), [false, true, false]);
        assert!(answers[0].as_ref().is_err_and(|e| e.effect() == Effect::Unknown), "its return may still be on its way");
        let mut answers = vec![Ok(()), Err(error::late("basic.publish"))];
        deal_out(&posts[..2], &mut answers, &HashSet::new(), false);
        assert!(answers[0].is_ok(), "nothing has come back");
    }
}

//! Putting tasks on queues: many under way, each with an answer of its own.

use std::sync::atomic::Ordering;

use anyqueue_core::{Bytes, Envelope, Error, ErrorKind, Result, time};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::time::{Instant, timeout_at};

use crate::error;
use crate::layout::Layout;
use crate::message::properties;
use crate::shared::Shared;

/// What is published, and where to.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

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
        Post { exchange, key, properties: properties(task, self.clock.wall()), body: task.body.clone() }
    }

    /// Refuses what this broker cannot keep.
    pub(crate) fn refuse(&self, layout: &Layout, task: &Envelope) -> Result<()> {
        let (size, limit) = (task.body.len() as u64, self.config.max_payload);
        if size > limit {
            return Err(Error::too_large(size, limit));
        }
        time::check_delay(task.delay)?;
        let setting = "the server's `consumer_timeout`, less two minutes; raise it there, and the option of that name here";
        time::check_ttr(task.ttr, layout.style.max_ttr, setting).map(drop)
    }

    async fn publisher(&self) -> Result<Channel> {
        let mut publisher = self.publisher.lock().await;
        if let Some(channel) = publisher.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.send.channel().await?;
        self.send.call("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        *publisher = Some(channel.clone());
        Ok(channel)
    }

    /// Publishes all and waits for the server's word on each.
    pub(crate) async fn publish(&self, posts: &[Post]) -> Vec<Result<()>> {
        if posts.is_empty() {
            return Vec::new();
        }
        let blocked = async {
            let connection = self.send.live().await?;
            match connection.status().blocked() {
                true => Err(Error::new(
                    ErrorKind::Full,
                    "the server has raised an alarm, memory or disk, and takes no tasks until there is room",
                )),
                false => self.publisher().await,
            }
        };
        let channel = match blocked.await {
            Ok(channel) => channel,
            Err(e) => return posts.iter().map(|_| Err(without_effect(&e))).collect(),
        };
        let until = Instant::now() + self.config.timeout;
        let mut open = Vec::with_capacity(posts.len());
        for post in posts {
            open.push(put(&channel, post, until).await);
        }
        let mut answers = Vec::with_capacity(posts.len());
        for confirm in open {
            answers.push(match confirm {
                Ok(confirm) => confirmed(confirm, until).await,
                Err(e) => Err(e),
            });
        }
        self.tally.round_trips.fetch_add(posts.len() as u64, Ordering::Relaxed);
        answers
    }
}

/// A connection that could not be made, so that nothing was sent.
fn without_effect(e: &Error) -> Error {
    Error::new(e.kind(), e.message().to_owned()).because(anyqueue_core::chain(e))
}

async fn put(channel: &Channel, post: &Post, until: Instant) -> Result<PublisherConfirm> {
    let publishing =
        channel.basic_publish(post.exchange.clone(), post.key.clone(), MANDATORY, &post.body, post.properties.clone());
    match timeout_at(until, publishing).await {
        Ok(confirm) => confirm.map_err(error::lost),
        Err(_) => Err(error::late("basic.publish")),
    }
}

async fn confirmed(confirm: PublisherConfirm, until: Instant) -> Result<()> {
    match timeout_at(until, confirm).await {
        Ok(Ok(Confirmation::Ack(None))) => Ok(()),
        Ok(Ok(Confirmation::Ack(Some(_)))) => {
            Err(Error::new(ErrorKind::NotFound, "the server has no queue for it and gave the task back; run `queue-runner init`"))
        }
        Ok(Ok(Confirmation::Nack(_))) => Err(Error::new(
            ErrorKind::Full,
            "the server refused the task: its queue is full, or has lost too many of its members",
        )),
        Ok(Ok(Confirmation::NotRequested)) => {
            Err(Error::new(ErrorKind::Protocol, "the server confirms nothing").effect_unknown())
        }
        Ok(Err(e)) => Err(error::lost(e)),
        Err(_) => Err(error::late("basic.publish")),
    }
}

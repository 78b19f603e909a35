//! Looking through a queue: what is there is taken, and given back.
//!
//! RabbitMQ has no other way. Two walks at once would hide tasks from each other, so a queue of a connection's own, which the
//! server gives to one connection only, stands for the right to walk.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use crate::error;
use crate::layout::table;
use crate::message::Message;
use crate::shared::Shared;

/// What a queue said it has and does not send for this long has gone to somebody else.
const QUIET: Duration = Duration::from_millis(700);
/// A lock that a walk left behind is gone after this.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// Of more that come back in one word, a quorum queue loses the order: it keeps them in an Erlang map.
const IN_ORDER: usize = 32;
const LOCK: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: false, exclusive: true, auto_delete: false, nowait: false };

/// A walk under way, on a channel of its own. What it took is back when the channel ends, however that comes about.
pub(crate) struct Walk<'a> {
    shared: &'a Shared,
    channel: Channel,
    /// None: the user may not make one.
    lock: Option<ShortString>,
    /// What was taken and is neither removed nor back.
    open: Mutex<BTreeSet<u64>>,
    _here: OwnedMutexGuard<()>,
}

impl Shared {
    /// Begins a walk, once no other one of this name is under way anywhere.
    pub(crate) async fn walk(&self, name: &str) -> Result<Walk<'_>> {
        let lock = ShortString::from(format!("anyqueue;walk;{name}"));
        let here = {
            let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
            walks.retain(|_, lock| Arc::strong_count(lock) > 1);
            walks.entry(name.to_owned()).or_default().clone()
        };
        let here = here.lock_owned().await;
        let until = Instant::now() + self.config.timeout * 3;
        loop {
            let channel = self.work.channel().await?;
            let life = table(&[("x-expires", AMQPValue::LongLongInt(FORGOTTEN.as_millis() as i64))]);
            match channel.queue_declare(lock.clone(), LOCK, life).await {
                Ok(_) => return Ok(Walk { shared: self, channel, lock: Some(lock), open: Mutex::default(), _here: here }),
                Err(e) if error::code(&e) == Some(error::LOCKED) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20 + fastrand::u64(..20))).await;
                }
                // Who may not make queues looks without asking whether somebody else does.
                Err(e) if error::code(&e) == Some(error::DENIED) => {
                    let channel = self.work.channel().await?;
                    return Ok(Walk { shared: self, channel, lock: None, open: Mutex::default(), _here: here });
                }
                Err(e) if error::code(&e) == Some(error::LOCKED) => {
                    return Err(Error::new(ErrorKind::Busy, "another process looks through the same queue; try again"));
                }
                Err(e) => return Err(error::foreign(e)),
            }
        }
    }
}

impl Walk<'_> {
    /// The next messages of a queue, up to so many. Fewer: there are no more.
    pub(crate) async fn take(&self, queue: &ShortString, most: usize) -> Result<Vec<Message>> {
        let mut all = Vec::new();
        loop {
            let missing = || Error::new(ErrorKind::NotFound, "the queue is not there").with("server_queue", queue);
            let count = self.shared.count(&self.channel, queue).await?.ok_or_else(missing)?;
            let wanted = (count as usize).min(most.saturating_sub(all.len())).min(usize::from(u16::MAX));
            // A quorum queue that has not chosen its leader yet, after a restart of the server, counts nothing: it is asked.
            let more = match wanted {
                0 if all.len() < most => self.one(queue, &mut all).await?,
                0 => 0,
                wanted => self.some(queue, wanted, &mut all).await?,
            };
            if more == 0 {
                self.open.lock().unwrap_or_else(PoisonError::into_inner).extend(all.iter().map(|message| message.tag));
                return Ok(all);
            }
        }
    }

    /// Asks a queue that counts nothing. Its answer to a consumer comes from the leader, and so does what is counted then;
    /// a `basic.get` before there is one is never answered.
    async fn one(&self, queue: &ShortString, all: &mut Vec<Message>) -> Result<usize> {
        let before = all.len();
        let mut feed = self.feed(queue, 1).await?;
        self.shared.count(&self.channel, queue).await?;
        self.drain(&mut feed, all).await?;
        Ok(all.len() - before)
    }

    async fn feed(&self, queue: &ShortString, limit: u16) -> Result<Consumer> {
        let work = &self.shared.work;
        work.call("basic.qos", self.channel.basic_qos(limit, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let asked = self.channel.basic_consume(queue.clone(), ShortString::default(), options, arguments);
        work.call("basic.consume", asked).await
    }

    /// Ends a feed, and takes in what was on its way.
    async fn drain(&self, feed: &mut Consumer, all: &mut Vec<Message>) -> Result<()> {
        let ended = self.channel.basic_cancel(feed.tag(), BasicCancelOptions::default());
        self.shared.work.call("basic.cancel", ended).await?;
        let now = self.shared.clock.wall();
        while let Ok(Some(delivery)) = timeout(QUIET, feed.next()).await {
            all.push(Message::new(delivery.map_err(error::foreign)?, now));
        }
        Ok(())
    }

    async fn some(&self, queue: &ShortString, wanted: usize, all: &mut Vec<Message>) -> Result<usize> {
        let before = all.len();
        let mut feed = self.feed(queue, u16::try_from(wanted).unwrap_or(u16::MAX)).await?;
        let now = self.shared.clock.wall();
        while all.len() < before + wanted {
            match timeout(QUIET, feed.next()).await {
                Ok(Some(delivery)) => all.push(Message::new(delivery.map_err(error::foreign)?, now)),
                // Workers were quicker.
                Ok(None) | Err(_) => break,
            }
        }
        self.drain(&mut feed, all).await?;
        Ok(all.len() - before)
    }

    /// Removes one of the messages for good.
    pub(crate) async fn remove(&self, message: &Message) -> Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&message.tag);
        self.channel.basic_ack(message.tag, BasicAckOptions { multiple: false }).await.map_err(error::lost)
    }

    pub(crate) async fn remove_all(&self, messages: &[Message]) -> Result<()> {
        for message in messages {
            self.remove(message).await?;
        }
        Ok(())
    }

    /// Gives back what was not removed, and waits until the server has it.
    pub(crate) async fn give_back(&self) -> Result<()> {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        let tags: Vec<u64> = open.into_iter().collect();
        for part in tags.chunks(IN_ORDER) {
            let back = BasicNackOptions { multiple: true, requeue: true };
            let last = part.last().copied().unwrap_or_default();
            self.shared.work.call("basic.nack", self.channel.basic_nack(last, back)).await?;
        }
        self.shared.work.call("basic.qos", self.channel.basic_qos(1, BasicQosOptions::default())).await
    }

    /// Gives back the rest and lets others walk.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.give_back().await?;
        let work = &self.shared.work;
        if let Some(lock) = self.lock.take() {
            work.call("queue.delete", self.channel.queue_delete(lock, QueueDeleteOptions::default())).await?;
        }
        work.call("channel.close", self.channel.close(200, "the walk is over".into())).await
    }
}

/// A walk that broke off: its channel ends by itself, its lock does not, as long as the connection lives.
impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take().filter(|_| self.channel.status().connected()) {
            let channel = self.channel.clone();
            let unlocking = async move { drop(channel.queue_delete(lock, QueueDeleteOptions::default()).await) };
            self.shared.runtime.spawn(unlocking);
        }
    }
}

//! Looking through a queue: what is there is taken, and given back.
//!
//! RabbitMQ has no other way. Two walks at once would hide tasks from each other, so a queue of a connection's own, which the
//! server gives to one connection only, stands for the right to walk.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use futures::StreamExt;
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
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
const LOCK: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: false, exclusive: true, auto_delete: false, nowait: false };

/// A walk under way, on a channel of its own. What it took is back when the channel ends, however that comes about.
pub(crate) struct Walk<'a> {
    shared: &'a Shared,
    channel: Channel,
    lock: ShortString,
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
                Ok(_) => return Ok(Walk { shared: self, channel, lock, _here: here }),
                Err(e) if error::code(&e) == Some(error::LOCKED) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20 + fastrand::u64(..20))).await;
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
            let wanted = (count as usize).min(most - all.len());
            // A count may lag behind after a restart of the server, so it is asked until nothing is left.
            if wanted == 0 || self.some(queue, wanted, &mut all).await? == 0 {
                return Ok(all);
            }
        }
    }

    async fn some(&self, queue: &ShortString, wanted: usize, all: &mut Vec<Message>) -> Result<usize> {
        let (work, before) = (&self.shared.work, all.len());
        // Zero means no limit.
        let limit = u16::try_from(wanted).unwrap_or(0);
        work.call("basic.qos", self.channel.basic_qos(limit, BasicQosOptions::default())).await?;
        let asked = self.channel.basic_consume(
            queue.clone(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut feed = work.call("basic.consume", asked).await?;
        let now = self.shared.clock.wall();
        while all.len() < before + wanted {
            match timeout(QUIET, feed.next()).await {
                Ok(Some(delivery)) => all.push(Message::new(delivery.map_err(error::foreign)?, now)),
                // Workers were quicker.
                Ok(None) | Err(_) => break,
            }
        }
        work.call("basic.cancel", self.channel.basic_cancel(feed.tag(), BasicCancelOptions::default())).await?;
        while let Ok(Some(delivery)) = timeout(QUIET, feed.next()).await {
            all.push(Message::new(delivery.map_err(error::foreign)?, now));
        }
        Ok(all.len() - before)
    }

    /// Removes one of the messages for good.
    pub(crate) async fn remove(&self, message: &Message) -> Result<()> {
        self.channel.basic_ack(message.tag, BasicAckOptions { multiple: false }).await.map_err(error::lost)
    }

    /// Gives back what was not removed, and waits until the server has it.
    pub(crate) async fn give_back(&self) -> Result<()> {
        let all = BasicNackOptions { multiple: true, requeue: true };
        self.shared.work.call("basic.nack", self.channel.basic_nack(0, all)).await?;
        self.shared.work.call("basic.qos", self.channel.basic_qos(1, BasicQosOptions::default())).await
    }

    /// Gives back the rest and lets others walk.
    pub(crate) async fn end(self) -> Result<()> {
        self.give_back().await?;
        let work = &self.shared.work;
        work.call("queue.delete", self.channel.queue_delete(self.lock.clone(), QueueDeleteOptions::default())).await?;
        work.call("channel.close", self.channel.close(200, "the walk is over".into())).await
    }
}

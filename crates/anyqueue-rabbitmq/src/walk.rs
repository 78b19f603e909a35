//! Looking through a queue: what is there is taken, and given back.
//!
//! RabbitMQ has no other way. Two walks at once would hide tasks from each other, so a queue of a connection's own, which the
//! server gives to one connection only, stands for the right to walk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use futures::future::join_all;
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, ShortString};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::error;
use crate::layout::table;
use crate::message::Message;
use crate::shared::Shared;

/// How many messages are asked for at once.
const STRIDE: usize = 64;
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
        let until = Instant::now() + self.config.timeout;
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
        while all.len() < most {
            let stride = STRIDE.min(most - all.len());
            let asked = (0..stride).map(|_| self.channel.basic_get(queue.clone(), BasicGetOptions { no_ack: false }));
            let answers = tokio::time::timeout(self.shared.config.timeout, join_all(asked)).await;
            let answers = answers.map_err(|_| error::late("basic.get"))?;
            self.shared.tally.round_trips.fetch_add(stride as u64, Ordering::Relaxed);
            let before = all.len();
            for answer in answers {
                let now = self.shared.clock.wall();
                all.extend(answer.map_err(error::foreign)?.map(|got| Message::new(got.delivery, now)));
            }
            if all.len() < before + stride {
                break;
            }
        }
        Ok(all)
    }

    /// Removes one of the messages for good.
    pub(crate) async fn remove(&self, message: &Message) -> Result<()> {
        self.channel.basic_ack(message.tag, BasicAckOptions { multiple: false }).await.map_err(error::lost)
    }

    /// Gives the rest back, and waits until the server has it.
    pub(crate) async fn end(self) -> Result<()> {
        let work = &self.shared.work;
        let all = BasicNackOptions { multiple: true, requeue: true };
        work.call("basic.nack", self.channel.basic_nack(0, all)).await?;
        work.call("basic.qos", self.channel.basic_qos(1, BasicQosOptions::default())).await?;
        work.call("queue.delete", self.channel.queue_delete(self.lock.clone(), QueueDeleteOptions::default())).await?;
        work.call("channel.close", self.channel.close(200, "the walk is over".into())).await
    }
}

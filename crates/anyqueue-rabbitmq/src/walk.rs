//! Looking through a queue: what is there is taken, and given back.
//!
//! RabbitMQ has no other way. Two walks at once would hide tasks from each other, so a queue of a connection's own, which the
//! server gives to one connection only, stands for the right to walk.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error;
use crate::layout::table;
use crate::message::Message;
use crate::shared::Shared;

/// What a queue said it has and does not send for this long has gone to somebody else.
const QUIET: Duration = Duration::from_millis(700);
/// A lock that a walk left behind is gone after this.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// The most that is taken in one go, so that little of a queue is in memory at once.
pub(crate) const SLICE: usize = 250;
/// Of more that come back in one word, a quorum queue loses the order: it keeps them in an Erlang map.
const IN_ORDER: usize = 32;
/// Of more words than these, a channel keeps some back from a quorum queue until it has heard of the first ones, and forgets
/// them if it is closed before.
const HEARD: usize = 16;
const LOCK: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: false, exclusive: true, auto_delete: false, nowait: false };

/// A walk under way, on a channel of its own. What it took is back when the channel ends, however that comes about.
pub(crate) struct Walk<'a> {
    shared: &'a Shared,
    connection: Arc<Connection>,
    channel: Channel,
    /// None for who may not make queues: such a walk may miss what another one has taken.
    lock: Option<ShortString>,
    /// What was taken and is neither removed nor back.
    open: Mutex<BTreeSet<u64>>,
    /// The queue that is walked through, and how many were removed of it without a sign that it has heard.
    unheard: Mutex<(ShortString, usize)>,
    _here: OwnedMutexGuard<()>,
}

/// Goes through what a queue has when it is begun, a slice at a time.
pub(crate) struct Slices<'w, 'a> {
    walk: &'w Walk<'a>,
    queue: ShortString,
    /// How many are still to be taken; known once the queue has answered.
    left: Option<usize>,
    most: usize,
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
        let until = Instant::now() + self.config.timeout * 3;
        let here = timeout_at(until, here.lock_owned()).await.map_err(|_| busy())?;
        let connection = self.work.live().await?;
        let begun = |channel, lock| {
            let (open, unheard) = (Mutex::default(), Mutex::default());
            Walk { shared: self, connection, channel, lock, open, unheard, _here: here }
        };
        loop {
            let channel = self.work.channel().await?;
            let life = table(&[("x-expires", AMQPValue::LongLongInt(FORGOTTEN.as_millis() as i64))]);
            let asked = timeout(self.config.timeout, channel.queue_declare(lock.clone(), LOCK, life)).await;
            match asked.map_err(|_| error::late("queue.declare"))? {
                Ok(_) => return Ok(begun(channel, Some(lock))),
                // Whoever may only read looks without a lock.
                Err(e) if error::code(&e) == Some(error::DENIED) => return Ok(begun(self.work.channel().await?, None)),
                Err(e) if error::code(&e) == Some(error::LOCKED) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20 + fastrand::u64(..20))).await;
                }
                Err(e) if error::code(&e) == Some(error::LOCKED) => return Err(busy()),
                Err(e) => return Err(error::foreign(e)),
            }
        }
    }
}

fn busy() -> Error {
    Error::new(ErrorKind::Busy, "somebody else looks through the same queue; try again")
}

impl Slices<'_, '_> {
    /// The next ones; none: that was all.
    pub(crate) async fn next(&mut self) -> Result<Vec<Message>> {
        let wanted = self.left.unwrap_or(self.most).min(SLICE);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let slice = self.walk.take(&self.queue, wanted).await?;
        let left = match self.left {
            _ if slice.len() < wanted => 0,
            Some(left) => left - slice.len(),
            // What comes later is left for a later walk, or one that feeds the queue by what it does would never end.
            None => self.walk.count(&self.queue).await?.min(self.most - slice.len()),
        };
        self.left = Some(left);
        Ok(slice)
    }
}

impl<'a> Walk<'a> {
    /// What a queue has now, or the first so many of it.
    pub(crate) fn slices<'w>(&'w self, queue: &ShortString, most: usize) -> Slices<'w, 'a> {
        Slices { walk: self, queue: queue.clone(), left: None, most }
    }

    /// Whether nobody else looks through the same queue meanwhile and hides some of it.
    pub(crate) fn is_alone(&self) -> bool {
        self.lock.is_some()
    }

    async fn count(&self, queue: &ShortString) -> Result<usize> {
        let missing = || Error::new(ErrorKind::NotFound, "the queue is not there").with("server_queue", queue);
        self.shared.count(&self.channel, queue).await?.map(|count| count as usize).ok_or_else(missing)
    }

    /// The next messages of a queue, up to so many. Fewer: there are no more.
    pub(crate) async fn take(&self, queue: &ShortString, most: usize) -> Result<Vec<Message>> {
        if self.unheard().0 != *queue {
            self.be_heard().await?;
            self.unheard().0 = queue.clone();
        }
        let mut all = Vec::new();
        let give_up = Instant::now() + self.shared.config.timeout;
        while all.len() < most {
            let wanted = self.count(queue).await?.min(most - all.len());
            // A quorum queue that has not chosen its leader yet, after a restart of the server, counts nothing: it is asked.
            let more = match wanted {
                0 => self.one(queue, &mut all).await?,
                wanted => self.some(queue, wanted, &mut all).await?,
            };
            match (wanted, more) {
                (0, 0) => break,
                // Workers were quicker, or the server hesitates: the next count tells.
                (_, 0) if Instant::now() >= give_up => {
                    let text = format!("the server has {wanted} tasks more and does not send them; try again");
                    return Err(Error::new(ErrorKind::Timeout, text).with("server_queue", queue));
                }
                _ => {}
            }
        }
        self.open().extend(all.iter().map(|message| message.tag));
        Ok(all)
    }

    /// Waits until a queue has heard what was removed. Its answers to a consumer come after the words that it was sent before:
    /// the first ones, and the next time the ones that were kept back.
    async fn be_heard(&self) -> Result<()> {
        let (queue, removed) = std::mem::take(&mut *self.unheard());
        if removed > HEARD {
            let mut met = Vec::new();
            for _ in 0..2 {
                let mut feed = self.feed(&queue, 1).await?;
                self.drain(&mut feed, &mut met).await?;
            }
            self.open().extend(met.iter().map(|message| message.tag));
        }
        Ok(())
    }

    fn unheard(&self) -> MutexGuard<'_, (ShortString, usize)> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
                Ok(None) | Err(_) => break,
            }
        }
        self.drain(&mut feed, all).await?;
        Ok(all.len() - before)
    }

    /// Removes one of the messages for good.
    pub(crate) async fn remove(&self, message: &Message) -> Result<()> {
        self.open().remove(&message.tag);
        self.unheard().1 += 1;
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
        self.be_heard().await?;
        let open = std::mem::take(&mut *self.open());
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

impl Drop for Walk<'_> {
    /// A walk that broke off must not keep others from walking. What it took goes back first.
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let (connection, channel) = (self.connection.clone(), self.channel.clone());
        self.shared.runtime.spawn(async move {
            drop(channel.close(200, "the walk broke off".into()).await);
            if let Ok(channel) = connection.create_channel().await {
                drop(channel.queue_delete(lock, QueueDeleteOptions::default()).await);
                drop(channel.close(200, "bye".into()).await);
            }
        });
    }
}

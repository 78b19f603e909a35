//! Setting up: what is there, what is made, what differs.

use std::time::Duration;

use anyqueue_core::{Create, Declared, Drift, Error, ErrorKind, Result, chain};
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use crate::config::Kind;
use crate::error;
use crate::layout::{self, Ladder, Layout, RUNGS};
use crate::link::at;
use crate::message::Message;
use crate::names;
use crate::publish::Post;
use crate::shared::Shared;

const DURABLE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
const PASSIVE: QueueDeclareOptions =
    QueueDeclareOptions { passive: true, durable: false, exclusive: false, auto_delete: false, nowait: false };

/// Notes are worth no longer wait.
const PATIENCE_OF_NOTES: Duration = Duration::from_secs(2);
/// So many are looked through when a queue is made anew.
const STRAYS: usize = 10_000;
/// A queue that was deleted is not made anew sooner. A channel that consumed a quorum queue looks for it each 30 ms until it
/// hears that it is gone, and only then tells its client; if it finds a new one, it tells nothing and delivers nothing.
const MOURNING: Duration = Duration::from_millis(300);

impl Shared {
    /// How many ready messages a queue has; `None` if it is not there. A missing one costs the channel.
    pub(crate) async fn count(&self, channel: &Channel, queue: &ShortString) -> Result<Option<u32>> {
        let asked = channel.queue_declare(queue.clone(), PASSIVE, FieldTable::default());
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(Ok(found)) => Ok(Some(found.message_count())),
            Ok(Err(e)) if error::code(&e) == Some(error::NOT_FOUND) && !error::node_is_down(&e) => Ok(None),
            Ok(Err(e)) => Err(error::foreign(e)),
            Err(_) => Err(error::late("queue.declare")),
        }
    }

    /// The same of a queue that should be there, over the channel that all ask on. Who closes that one by asking for a missing
    /// queue gives all others its answer, so only a timeout and a count are believed at once.
    pub(crate) async fn how_many(&self, queue: &ShortString) -> Result<Option<u32>> {
        if self.is_silent(queue) {
            return self.how_many_alone(queue).await;
        }
        let channel = self.asking().await?;
        match self.count(&channel, queue).await {
            Ok(Some(count)) => Ok(Some(count)),
            Err(e) if e.kind() == ErrorKind::Timeout => {
                // It may have stood behind the question about another queue, which nobody answers.
                self.ask_elsewhere(&channel);
                self.set_silent(queue, true);
                self.how_many_alone(queue).await
            }
            Ok(None) | Err(_) => self.probe(queue).await,
        }
    }

    /// The same of one about which the server has said nothing: others wait no more for its answer.
    async fn how_many_alone(&self, queue: &ShortString) -> Result<Option<u32>> {
        let found = self.probe(queue).await;
        self.set_silent(queue, found.as_ref().is_err_and(|e| e.kind() == ErrorKind::Timeout));
        found
    }

    /// The same of a queue that may well be missing, over a channel of its own.
    pub(crate) async fn probe(&self, queue: &ShortString) -> Result<Option<u32>> {
        self.count(&self.work.channel().await?, queue).await
    }

    /// Sees to it that a queue is there, once per process and queue.
    pub(crate) async fn ensure(&self, layout: &Layout) -> Result<()> {
        if self.is_known(&layout.queue) {
            return Ok(());
        }
        self.set_up(layout).await.map(drop)
    }

    /// Makes what is missing, where that is allowed. Says whether something was.
    pub(crate) async fn set_up(&self, layout: &Layout) -> Result<bool> {
        names::check(&layout.queue)?;
        let (own, layout) = (self.own()?, self.layout(&layout.queue));
        at(&self.runtime, async move { own.set_up_here(&layout).await }).await
    }

    async fn set_up_here(&self, layout: &Layout) -> Result<bool> {
        let _one_at_a_time = layout.setting_up.lock().await;
        let mut made = self.ladder(layout.style.kind).await?;
        let mut channel = self.work.channel().await?;
        let (all, mut missing) = (layout.all(), Vec::new());
        for (name, arguments) in &all {
            let count = self.count(&channel, name);
            let is_notes = *name == layout.notes;
            let count = match is_notes {
                // Of a node that is down, newer servers say nothing for a minute.
                true => {
                    tokio::time::timeout(PATIENCE_OF_NOTES, count).await.unwrap_or_else(|_| Err(error::late("queue.declare")))
                }
                false => count.await,
            };
            match count {
                Ok(Some(_)) => continue,
                Ok(None) => missing.push((name, arguments)),
                // Notes are on one node. Without them what comes back unharmed costs a run alone, and no more.
                Err(e) if is_notes && matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                    let queue = layout.queue.as_str();
                    tracing::warn!(queue, error = chain(&e), "no notes can be had of tasks that come back unharmed");
                }
                Err(e) => return Err(e),
            }
            channel = self.work.channel().await?;
        }
        if !missing.is_empty() && self.config.create == Create::Never {
            return Err(error::missing(layout.queue.as_str()));
        }
        if layout.style.kind == Kind::Quorum && (1..all.len()).contains(&missing.len()) {
            tokio::time::sleep(MOURNING).await;
        }
        for (name, arguments) in missing {
            self.make(&channel, name, arguments.clone()).await?;
            made = true;
        }
        if made && layout.style.kind == Kind::Quorum {
            self.sacrifice(&channel).await?;
        }
        self.bind(&channel, layout).await?;
        match self.bring_in(layout).await {
            // Another process walks through them, for its own ones.
            Err(e) if e.kind() == ErrorKind::Busy => {
                let text = "what fell due while this queue was not there waits for the next start";
                tracing::warn!(queue = layout.queue.as_str(), error = chain(&e), "{text}");
            }
            brought => brought?,
        }
        self.know(&layout.queue);
        Ok(made)
    }

    /// Leads what comes off the ladder to its queues. Done again for queues that were there: whoever made them may have died.
    async fn bind(&self, channel: &Channel, layout: &Layout) -> Result<()> {
        if self.config.create == Create::Never {
            return Ok(());
        }
        for band in &layout.bands {
            let (end, address) = (layout.ladder.end(), Ladder::address(band.as_str()));
            let bound = channel.queue_bind(band.clone(), end, address, QueueBindOptions::default(), FieldTable::default());
            match self.work.call("queue.bind", bound).await {
                // Who may not bind uses what an operator has set up.
                Err(e) if e.kind() == ErrorKind::Denied => return Ok(()),
                bound => bound?,
            }
        }
        Ok(())
    }

    /// How many tasks fell due for queues that are not there.
    pub(crate) async fn strays(&self, ladder: Ladder) -> Result<u32> {
        Ok(self.probe(&ladder.stray()).await?.unwrap_or(0))
    }

    /// Puts what fell due while this queue was not there where it belongs, and what was thrown out of its held tasks back.
    async fn bring_in(&self, layout: &Layout) -> Result<()> {
        if self.strays(layout.ladder).await? == 0 {
            return Ok(());
        }
        let stray = layout.ladder.stray();
        let walk = self.walk(stray.as_str()).await?;
        let mut mine = walk.take(&stray, STRAYS).await?;
        let was_held = |message: &Message| message.key == layout.held;
        mine.retain(|message| was_held(message) || layout.is_target(Ladder::target(message.key.as_str())));
        let place = |message: &Message| match was_held(message) {
            true => Post { exchange: ShortString::default(), key: layout.held.clone(), ..self.again(layout, message) },
            false => self.again(layout, message),
        };
        let posts: Vec<_> = mine.iter().map(place).collect();
        for (message, answer) in mine.iter().zip(self.publish(&posts).await) {
            if answer.is_ok() {
                walk.remove(message).await?;
            }
        }
        walk.end().await
    }

    /// A quorum queue that was the last one made when its server is killed has no leader ever after, in 3.10 at least, and
    /// keeps whoever asks it waiting. So the last one is none of ours.
    async fn sacrifice(&self, channel: &Channel) -> Result<()> {
        let name = ShortString::from(format!("anyqueue;last;{:016x}", fastrand::u64(..)));
        let quorum = layout::table(&[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
        self.make(channel, &name, quorum).await?;
        self.work.call("queue.delete", channel.queue_delete(name, QueueDeleteOptions::default())).await.map(drop)
    }

    async fn make(&self, channel: &Channel, name: &ShortString, arguments: FieldTable) -> Result<()> {
        let made = channel.queue_declare(name.clone(), DURABLE, arguments);
        self.work.call("queue.declare", made).await.map(drop).map_err(|e| e.with("server_queue", name))
    }

    /// Makes the ladder, if it is not there. The last one made says that all is.
    async fn ladder(&self, kind: Kind) -> Result<bool> {
        let _one_at_a_time = self.ladders.lock().await;
        let ladder = Ladder(kind);
        let top = ladder.rung(RUNGS - 1);
        let channel = self.work.channel().await?;
        if self.count(&channel, &top).await?.is_some() {
            return Ok(false);
        }
        if self.config.create == Create::Never {
            return Err(error::missing(top.as_str()));
        }
        let channel = self.work.channel().await?;
        let stray = ladder.stray();
        self.make(&channel, &stray, ladder.stray_arguments()).await?;
        self.exchange(&channel, stray.clone(), ExchangeKind::Fanout, FieldTable::default()).await?;
        let bound = channel.queue_bind(
            stray.clone(),
            stray.clone(),
            ShortString::default(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.work.call("queue.bind", bound).await?;
        let else_stray = layout::table(&[("alternate-exchange", AMQPValue::LongString(stray.as_str().into()))]);
        self.exchange(&channel, ladder.end(), ExchangeKind::Topic, else_stray).await?;
        for rung in 0..RUNGS {
            let name = ladder.rung(rung);
            self.exchange(&channel, name.clone(), ExchangeKind::Topic, FieldTable::default()).await?;
            let past = channel.exchange_bind(
                ladder.below(rung),
                name.clone(),
                Ladder::pattern(rung, 0),
                ExchangeBindOptions::default(),
                FieldTable::default(),
            );
            self.work.call("exchange.bind", past).await?;
            self.make(&channel, &name, ladder.arguments(rung)).await?;
            let wait = channel.queue_bind(
                name.clone(),
                name,
                Ladder::pattern(rung, 1),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            self.work.call("queue.bind", wait).await?;
        }
        Ok(true)
    }

    async fn exchange(&self, channel: &Channel, name: ShortString, kind: ExchangeKind, arguments: FieldTable) -> Result<()> {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let made = channel.exchange_declare(name, kind, durable, arguments);
        self.work.call("exchange.declare", made).await
    }

    /// What `declare` answers: sets up, and compares what was there with what the settings ask for.
    pub(crate) async fn declare(&self, layout: &Layout) -> Result<Declared> {
        let created = self.set_up(layout).await?;
        let mut drift = Vec::new();
        if !created {
            for (name, arguments) in layout.all() {
                match self.compare(&name, arguments).await {
                    // Who may not make queues need not compare them.
                    Err(e) if e.kind() == ErrorKind::Denied => {
                        tracing::info!("this user may not make `{name}`: it and what follows it are not compared");
                        break;
                    }
                    found => drift.extend(found?),
                }
            }
            drift.extend(self.drift_of_bands(layout).await?);
        }
        Ok(Declared { created, drift })
    }

    /// Asks for a queue as it should be, on a channel that the server may close.
    async fn compare(&self, name: &ShortString, arguments: FieldTable) -> Result<Option<Drift>> {
        let channel = self.work.channel().await?;
        let asked = channel.queue_declare(name.clone(), DURABLE, arguments);
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(e)) if error::code(&e) == Some(error::OTHER_ARGUMENTS) => Ok(Some(drift(name, &error::said(&e)))),
            Ok(Err(e)) => Err(error::foreign(e)),
            Err(_) => Err::<_, Error>(error::late("queue.declare")),
        }
    }
}

/// Reads `PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current
/// is 'classic'`.
fn drift(name: &ShortString, said: &str) -> Drift {
    let quoted: Vec<&str> = said.split('\'').skip(1).step_by(2).collect();
    let value = |mark: &str| {
        let rest = said.split_once(mark)?.1.trim_start_matches("the value ");
        let rest = rest.trim_start();
        let text = rest
            .strip_prefix('\'')
            .and_then(|rest| rest.split_once('\''))
            .map_or_else(|| rest.split_whitespace().next().unwrap_or("unknown"), |(text, _)| text);
        Some(text.to_owned())
    };
    Drift {
        what: format!("{} of {name}", quoted.first().copied().unwrap_or("arguments")),
        wanted: value("received ").unwrap_or_else(|| "as set".into()),
        found: value("but current is ").unwrap_or_else(|| said.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_names_argument_and_both_values() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the value 'quorum' \
                    of type 'longstr' but current is the value 'classic' of type 'longstr'";
        let found = drift(&"q".into(), said);
        assert_eq!(
            (found.what.as_str(), found.wanted.as_str(), found.found.as_str()),
            ("x-queue-type of q", "quorum", "classic")
        );
        let said =
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'";
        let found = drift(&"q".into(), said);
        assert_eq!((found.wanted.as_str(), found.found.as_str()), ("true", "false"));
        let said = "x 'x-message-ttl' for queue 'q': received none but current is the value '5' of type 'signedint'";
        assert_eq!((drift(&"q".into(), said).wanted.as_str(), drift(&"q".into(), said).found.as_str()), ("none", "5"));
    }
}

//! Looks after one consumer: fetches while somebody asks, ends leases that are over, gives back what nobody takes.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Levels, Moment, Paused, Result, chain};
use futures::stream::{SelectAll, Stream};
use futures::{FutureExt, StreamExt};
use lapin::message::DeliveryResult;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::error;
use crate::layout::Layout;
use crate::line::{Band, IDLE, Line, STALE, Session};
use crate::message::Message;
use crate::shared::Shared;

/// How often it is looked whether a queue is paused.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_PAUSED: Duration = Duration::from_millis(300);
/// A server that cannot be reached is tried again after this, and twice as long each time.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);
/// How long it is looked for what a band says it has.
const PATIENCE: Duration = Duration::from_secs(2);

type Feeds = SelectAll<Pin<Box<dyn Stream<Item = (usize, DeliveryResult)> + Send + Sync>>>;

/// What to do next.
#[derive(Debug)]
enum Step {
    End,
    Lost,
    Expire(Vec<u64>),
    Start(usize),
    Stop,
    Verify,
    Look,
    Wait(Moment),
}

/// See the module.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    layout: Arc<Layout>,
    line: Arc<Line>,
    /// The bands that this consumer takes.
    bands: RangeInclusive<usize>,
    feeds: Feeds,
    tags: Vec<ShortString>,
    next_look: Moment,
    next_try: Moment,
    pause: Duration,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, layout: Arc<Layout>, line: Arc<Line>, priorities: &RangeInclusive<u32>) -> Self {
        let levels: Levels = layout.style.levels;
        let bands = levels.of(*priorities.start()) as usize..=levels.of(*priorities.end()) as usize;
        let (next_look, next_try) = (Moment::default(), Moment::default());
        Self { shared, layout, line, bands, feeds: Feeds::new(), tags: Vec::new(), next_look, next_try, pause: SHORTEST }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let now = self.shared.clock.now();
            let outcome = match self.plan(now) {
                Step::End => break,
                Step::Lost => {
                    self.lose();
                    Ok(())
                }
                Step::Expire(tags) => self.expire(&tags).await,
                Step::Start(window) => self.start(window).await,
                Step::Stop => self.stop().await,
                Step::Verify => self.verify().await,
                Step::Look => self.look().await,
                Step::Wait(until) => self.wait(until).await,
            };
            if let Err(e) = outcome {
                self.failed(e);
            }
        }
        let session = self.line.state().session.take();
        if let Some(session) = session.filter(|session| session.channel.status().connected()) {
            drop(self.shared.work.call("channel.close", session.channel.close(200, "bye".into())).await);
        }
        self.line.bell.notify_one();
    }

    fn plan(&self, now: Moment) -> Step {
        let state = self.line.state();
        if self.shared.is_closed() || state.left && state.leases.is_empty() && state.consuming.is_none() {
            return Step::End;
        }
        if state.session.as_ref().is_some_and(|session| !session.channel.status().connected()) {
            return Step::Lost;
        }
        let over: Vec<u64> = state.leases.iter().filter(|(_, lease)| lease.deadline <= now).map(|(tag, _)| *tag).collect();
        if !over.is_empty() {
            return Step::Expire(over);
        }
        let wanted = state.wanted(now);
        let window = state.window(self.line.prefetch);
        let mut until = state.leases.values().map(|lease| lease.deadline).min().unwrap_or(now + LOOK);
        let old = state.bands.iter().filter_map(|band| band.fetched.front()).map(|fetched| fetched.at + STALE).min();
        match state.consuming {
            Some(_) if !wanted || state.paused || old.is_some_and(|old| old <= now) => return Step::Stop,
            Some((_, current)) if window > current && state.waiting > 0 => return Step::Stop,
            Some(_) if state.waiting > 0 && !state.looked => return Step::Verify,
            Some((_, current)) if state.waiting > 0 && self.is_doubtful(&state.bands, current) => return Step::Verify,
            Some(_) if now >= self.next_look => return Step::Look,
            Some(_) => until = until.min(self.next_look).min(old.unwrap_or(until)),
            None if wanted && state.paused && now >= self.next_look => return Step::Look,
            None if wanted && state.paused => until = until.min(self.next_look),
            None if wanted && now >= self.next_try => return Step::Start(window),
            None if wanted => until = until.min(self.next_try),
            None => {}
        }
        if state.consuming.is_some() && state.waiting == 0 {
            until = until.min(state.asked + IDLE);
        }
        Step::Wait(until)
    }

    /// Whether a less urgent task lies here that a more urgent one at the server may have to precede.
    fn is_doubtful(&self, bands: &[Band], window: usize) -> bool {
        let first = bands.iter().position(|band| !band.fetched.is_empty());
        first.is_some_and(|first| bands[..first].iter().any(|band| band.precedes(window, self.line.prefetch)))
    }

    fn lose(&mut self) {
        self.feeds.clear();
        self.tags.clear();
        let session = self.line.state().session.take();
        if let Some(session) = session.filter(|session| session.channel.status().connected()) {
            // The server takes back at once what the channel holds.
            let closing = async move { drop(session.channel.close(200, "a request failed".into()).await) };
            self.shared.runtime.spawn(closing);
        }
        self.line.state().lose_session();
        self.line.bell.notify_one();
    }

    fn failed(&mut self, e: Error) {
        let now = self.shared.clock.now();
        tracing::debug!(queue = self.line.queue.as_str(), error = chain(&e), "reserving failed");
        if e.kind() == ErrorKind::NotFound {
            self.shared.forget(&self.line.queue);
        }
        self.lose();
        self.next_try = now + self.pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(LONGEST);
        self.line.state().fault = Some(e);
        self.line.bell.notify_one();
    }

    async fn session(&self) -> Result<Session> {
        let open = self.line.state().session.clone();
        if let Some(session) = open {
            return Ok(session);
        }
        let session = Session { channel: self.shared.work.channel().await?, epoch: self.shared.epoch() };
        self.line.state().session = Some(session.clone());
        Ok(session)
    }

    /// Begins to consume, unless the queue is paused.
    async fn start(&mut self, window: usize) -> Result<()> {
        self.shared.ensure(&self.layout).await?;
        let new = self.line.state().session.is_none();
        let Session { channel, .. } = self.session().await?;
        if new {
            // Just after a restart of the server a marker may be there and not be counted.
            let paused = matches!(self.shared.paused(&self.layout).await?, Paused::Yes(_));
            self.shared.set_marked(&self.layout.queue, paused);
        }
        if self.look_for_pause(&channel).await? {
            return Ok(());
        }
        let limited = channel.basic_qos(window as u16, BasicQosOptions { global: false });
        self.shared.work.call("basic.qos", limited).await?;
        {
            let mut state = self.line.state();
            state.last_run += 1;
            state.consuming = Some((state.last_run, window));
            state.looked = false;
            for band in &mut state.bands {
                (band.open, band.doubt) = (0, false);
            }
        }
        for band in self.bands.clone() {
            let name = self.layout.bands[band].clone();
            let asked =
                channel.basic_consume(name, ShortString::default(), BasicConsumeOptions::default(), FieldTable::default());
            let feed = self.shared.work.call("basic.consume", asked).await?;
            self.tags.push(feed.tag());
            // A feed ends when it is cancelled, by us or by the server.
            let feed = feed.map(|item| item.map(Some)).chain(futures::stream::once(async { Ok(None) }));
            self.feeds.push(Box::pin(feed.map(move |result| (band, result))));
        }
        self.pause = SHORTEST;
        Ok(())
    }

    /// Ends consuming and gives back what was fetched and not handed out.
    async fn stop(&mut self) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        for tag in std::mem::take(&mut self.tags) {
            let ended = channel.basic_cancel(tag, BasicCancelOptions::default());
            self.shared.work.call("basic.cancel", ended).await?;
        }
        // What came before the server's answer lies there.
        self.take_in().await?;
        self.feeds.clear();
        self.give_back(&channel).await?;
        let mut state = self.line.state();
        (state.consuming, state.looked) = (None, false);
        drop(state);
        self.line.bell.notify_one();
        Ok(())
    }

    async fn give_back(&self, channel: &lapin::Channel) -> Result<()> {
        let names: Vec<_> = {
            let state = self.line.state();
            state.bands.iter().flat_map(|band| &band.fetched).filter_map(|fetched| fetched.message.name.clone()).collect()
        };
        if !names.is_empty()
            && let Err(e) = self.shared.note(&self.layout, &names).await
        {
            // They come back as if their worker had died: that costs a run alone, no more.
            tracing::debug!(queue = self.line.queue.as_str(), error = chain(&e), "a note could not be written");
        }
        let _saying = self.line.saying.lock().await;
        let fetched = self.line.state().take_fetched();
        for one in fetched {
            let back = BasicNackOptions { multiple: false, requeue: true };
            channel.basic_nack(one.message.tag, back).await.map_err(error::foreign)?;
        }
        self.line.barrier(&self.shared, channel).await
    }

    /// Gives the tasks back whose holders said nothing in time.
    async fn expire(&self, tags: &[u64]) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let _saying = self.line.saying.lock().await;
        for tag in tags {
            let gone = {
                let mut state = self.line.state();
                let now = self.shared.clock.now();
                // It may have been touched or settled meanwhile.
                let over = state.leases.get(tag).filter(|lease| lease.deadline <= now).cloned();
                over.inspect(|lease| {
                    state.leases.remove(tag);
                    state.settled(*tag, lease.band, lease.run);
                })
            };
            if gone.is_some() {
                let back = BasicNackOptions { multiple: false, requeue: true };
                channel.basic_nack(*tag, back).await.map_err(error::foreign)?;
            }
        }
        Ok(())
    }

    /// Asks each doubtful band whether there is more, and waits for that.
    async fn verify(&mut self) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let give_up = self.shared.clock.now() + PATIENCE;
        let doubtful: Vec<usize> = {
            let state = self.line.state();
            self.bands.clone().filter(|band| !state.looked || state.bands[*band].doubt).collect()
        };
        for band in doubtful {
            loop {
                let name = &self.layout.bands[band];
                let count = self.shared.count(&channel, name).await?;
                let count =
                    count.ok_or_else(|| Error::new(ErrorKind::NotFound, "the queue was deleted").with("server_queue", name))?;
                // What the server had sent before it answers this is here afterwards.
                self.line.barrier(&self.shared, &channel).await?;
                self.take_in().await?;
                if self.line.is_sure(band, count) || self.shared.clock.now() >= give_up {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.line.state().looked = true;
        self.line.bell.notify_one();
        Ok(())
    }

    async fn look(&mut self) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        self.look_for_pause(&channel).await.map(drop)
    }

    async fn look_for_pause(&mut self, channel: &lapin::Channel) -> Result<bool> {
        let paused = self.shared.is_marked(channel, &self.layout).await?;
        self.next_look = self.shared.clock.now() + if paused { LOOK_PAUSED } else { LOOK };
        let mut state = self.line.state();
        state.paused = paused;
        if paused {
            state.looked = true;
        } else if state.consuming.is_none() {
            state.looked = false;
        }
        drop(state);
        self.line.bell.notify_one();
        Ok(paused)
    }

    async fn wait(&mut self, until: Moment) -> Result<()> {
        let line = self.line.clone();
        tokio::select! {
            Some(first) = self.feeds.next(), if !self.feeds.is_empty() => self.take(vec![first]).await,
            () = line.wake.notified() => Ok(()),
            () = self.shared.clock.sleep_until(until) => Ok(()),
        }
    }

    /// Takes in what has arrived.
    async fn take_in(&mut self) -> Result<()> {
        self.take(Vec::new()).await
    }

    async fn take(&mut self, mut items: Vec<(usize, DeliveryResult)>) -> Result<()> {
        while let Some(Some(item)) = self.feeds.next().now_or_never() {
            items.push(item);
        }
        if items.is_empty() {
            return Ok(());
        }
        let (at, now) = (self.shared.clock.now(), self.shared.clock.wall());
        let (mut bands, mut messages) = (Vec::new(), Vec::new());
        for (band, item) in items {
            match item.map_err(error::foreign)? {
                Some(delivery) => {
                    bands.push(band);
                    messages.push(Message::new(delivery, now));
                }
                None if self.tags.is_empty() => {}
                None => return Err(Error::new(ErrorKind::NotFound, "the queue was deleted while it was consumed")),
            }
        }
        self.shared.forgive(&self.layout, &mut messages).await;
        let mut state = self.line.state();
        for (band, message) in bands.into_iter().zip(messages) {
            state.add(band, message, at);
        }
        drop(state);
        self.line.bell.notify_one();
        Ok(())
    }
}

impl Line {
    /// Waits until the server has worked on all that was said on the channel before.
    pub(crate) async fn barrier(&self, shared: &Shared, channel: &lapin::Channel) -> Result<()> {
        let window = self.state().consuming.map_or(1, |(_, window)| window);
        shared.work.call("basic.qos", channel.basic_qos(window as u16, BasicQosOptions { global: false })).await
    }

    /// Tells the server that these are done, in as few words as possible.
    pub(crate) async fn acknowledge(&self, channel: &lapin::Channel, tags: &[u64]) -> lapin::Result<()> {
        for (tag, multiple) in self.words(tags) {
            channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
        }
        Ok(())
    }

    /// Everything open up to a tag can be said at once; the rest one by one.
    fn words(&self, tags: &[u64]) -> Vec<(u64, bool)> {
        let mut sorted = tags.to_vec();
        sorted.sort_unstable();
        let mut state = self.state();
        let together = state.unsettled.iter().zip(&sorted).take_while(|(open, tag)| open == tag).count();
        for tag in &sorted {
            state.unsettled.remove(tag);
        }
        let range = together.checked_sub(1).map(|last| (sorted[last], together > 1));
        range.into_iter().chain(sorted[together..].iter().map(|tag| (*tag, false))).collect()
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::QueueName;

    use super::*;

    #[test]
    fn what_is_open_up_to_a_tag_is_settled_in_one_word() {
        let second = Duration::from_secs(1);
        let line = Line::new(QueueName::new("q").unwrap(), 1, 8, second, second);
        line.state().unsettled.extend([2, 4, 5, 9, 12]);
        assert_eq!(line.words(&[5, 4, 2, 12]), [(5, true), (12, false)]);
        assert_eq!(line.words(&[9]), [(9, false)]);
        line.state().unsettled.extend([20, 21]);
        assert_eq!(line.words(&[21]), [(21, false)]);
    }
}

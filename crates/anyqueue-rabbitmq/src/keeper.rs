//! Looks after one consumer: fetches while somebody asks, ends leases that are over, gives back what nobody takes.

mod look;

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Moment, Paused, Result, chain};
use futures::stream::{SelectAll, Stream};
use futures::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::DeliveryResult;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::config::Kind;
use crate::error;
use crate::layout::{Layout, table};
use crate::line::{Band, IDLE, Line, STALE, Session, State};
use crate::message::Message;
use crate::notes::Word;
use crate::shared::Shared;

/// How often it is looked whether a queue is paused.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_PAUSED: Duration = Duration::from_millis(300);
/// A server that cannot be reached is tried again after this, and twice as long each time.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// A band of which nothing is heard for this long is consumed anew.
const SILENCE: Duration = Duration::from_secs(30);

type Feeds = SelectAll<Pin<Box<dyn Stream<Item = (usize, DeliveryResult)> + Send + Sync>>>;

/// What to do next.
#[derive(Debug)]
enum Step {
    End,
    Lost,
    Expire(Vec<u64>),
    Start(usize),
    Stop,
    /// Consume more beside what is consumed.
    Grow(usize),
    Renew,
    Verify,
    Note,
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
    /// Whether it was looked, and not only counted, whether the queue is paused.
    sure_of_pause: bool,
    next_look: Moment,
    next_try: Moment,
    pause: Duration,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, layout: Arc<Layout>, line: Arc<Line>, priorities: &RangeInclusive<u32>) -> Self {
        let bands = layout.style.place(*priorities.start())..=layout.style.place(*priorities.end());
        let (next_look, next_try) = (Moment::default(), Moment::default());
        Self {
            shared,
            layout,
            line,
            bands,
            feeds: Feeds::new(),
            tags: Vec::new(),
            sure_of_pause: false,
            next_look,
            next_try,
            pause: SHORTEST,
        }
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
                Step::Grow(window) => self.grow(window).await,
                Step::Renew => self.renew().await,
                Step::Verify => self.verify().await,
                Step::Note => self.note().await,
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
        let through = state.leases.is_empty() && state.settling == 0 && state.is_quiet();
        if self.shared.is_closed() || state.left && through {
            return Step::End;
        }
        if state.session.as_ref().is_some_and(|session| state.renew || !session.channel.status().connected()) {
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
            _ if !state.is_quiet() && (!wanted || state.paused || old.is_some_and(|old| old <= now)) => return Step::Stop,
            Some(_) if state.to_note.is_some() => return Step::Note,
            Some((_, current)) if window > current && state.waiting > 0 => return Step::Grow(window),
            Some(_) if self.is_strangely_silent(&state, now) => return Step::Renew,
            // Before what may be without success for long.
            Some(_) if now >= self.next_look => return Step::Look,
            Some(_) if state.waiting > 0 && !state.is_answered() => return Step::Verify,
            Some((_, current)) if state.waiting > 0 && self.is_doubtful(&state.bands, current) => return Step::Verify,
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

    /// Whether a queue may have been deleted and made anew without a word to us. A quorum queue in 3.10 keeps the consumers
    /// then and sends them nothing, so that the only sign is silence.
    fn is_strangely_silent(&self, state: &State, now: Moment) -> bool {
        let silent = || self.bands.clone().any(|band| state.bands[band].heard + SILENCE <= now);
        self.layout.style.kind == Kind::Quorum && state.is_empty_handed() && silent()
    }

    async fn renew(&mut self) -> Result<()> {
        self.stop().await?;
        // What came after all, and is worked on, keeps the channel.
        if self.line.state().is_empty_handed() {
            self.lose();
            // The server is the same.
            self.sure_of_pause = true;
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.feeds.clear();
        self.tags.clear();
        self.sure_of_pause = false;
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
        {
            let mut state = self.line.state();
            (state.session, state.epoch, state.renew) = (Some(session.clone()), session.epoch, false);
        }
        Ok(session)
    }

    /// Begins to consume, unless the queue is paused.
    async fn start(&mut self, window: usize) -> Result<()> {
        self.shared.ensure(&self.layout).await?;
        let Session { channel, .. } = self.session().await?;
        if !self.sure_of_pause {
            // Just after a restart of the server a marker may be there and not be counted.
            let paused = matches!(self.shared.paused(&self.layout).await?, Paused::Yes(_));
            self.shared.set_marked(&self.layout.queue, paused);
            self.sure_of_pause = true;
        }
        if self.look_for_pause().await? {
            return Ok(());
        }
        if !self.line.state().begin(&self.bands, window, self.shared.clock.now()) {
            return Ok(());
        }
        self.consume(&channel, window).await?;
        self.pause = SHORTEST;
        Ok(())
    }

    /// Allows each band more, by a further consumer of it. The one that is there is not ended for that: a quorum queue counts
    /// what it was sending meanwhile as come back, and then sends the next one a task at a time.
    async fn grow(&mut self, window: usize) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let more = self.line.state().widen(&self.bands, window);
        self.consume(&channel, more).await
    }

    /// Lets the server send so many of each band ahead.
    async fn consume(&mut self, channel: &Channel, window: usize) -> Result<()> {
        let line = self.line.clone();
        let _allowing = line.allowing.lock().await;
        self.shared.work.call("basic.qos", channel.basic_qos(window as u16, BasicQosOptions { global: false })).await?;
        for band in self.bands.clone() {
            let name = self.layout.bands[band].clone();
            let asked = channel.basic_consume(name, ShortString::default(), BasicConsumeOptions::default(), self.manner());
            let feed = self.shared.work.call("basic.consume", asked).await?;
            self.tags.push(feed.tag());
            // A feed ends when it is cancelled, by us or by the server.
            let feed = feed.map(|item| item.map(Some)).chain(futures::stream::once(async { Ok(None) }));
            self.feeds.push(Box::pin(feed.map(move |result| (band, result))));
        }
        Ok(())
    }

    /// A classic queue that is deleted says so, instead of consuming for us what is made anew under its name.
    fn manner(&self) -> FieldTable {
        match self.layout.style.kind {
            Kind::Classic => table(&[("x-cancel-on-ha-failover", AMQPValue::Boolean(true))]),
            Kind::Quorum => FieldTable::default(),
        }
    }

    /// Ends consuming and gives back what was fetched and not handed out.
    async fn stop(&mut self) -> Result<()> {
        self.until_nothing_is_sent().await?;
        let session = self.session().await?;
        for tag in std::mem::take(&mut self.tags) {
            let ended = session.channel.basic_cancel(tag, BasicCancelOptions::default());
            self.shared.work.call("basic.cancel", ended).await?;
        }
        // What came before the server's answer lies there.
        self.take_in().await?;
        self.feeds.clear();
        {
            let mut state = self.line.state();
            state.end_run();
            state.returning = true;
        }
        // Who fails here loses the session, and with it all that this stands for.
        self.give_back(&session).await?;
        self.line.state().returning = false;
        self.line.bell.notify_one();
        Ok(())
    }

    async fn give_back(&self, session: &Session) -> Result<()> {
        if self.line.state().purging > 0 {
            return self.throw_away(session).await;
        }
        let notes: Vec<_> = {
            let state = self.line.state();
            let lying = state.bands.iter().flat_map(|band| &band.fetched);
            lying.filter_map(|fetched| Some((Word::back(&fetched.message), fetched.message.name.clone()?))).collect()
        };
        if !notes.is_empty()
            && let Err(e) = self.shared.note(&self.layout, &notes).await
        {
            // They come back as if their worker had died: that costs a run alone, and what is on one comes closer to a hold.
            tracing::debug!(queue = self.line.queue.as_str(), error = chain(&e), "a note could not be written");
        }
        let there = self.counts().await;
        {
            let _saying = self.line.saying.lock().await;
            let tags = self.line.state().take_fetched();
            self.line.return_all(&session.channel, &tags).await?;
            self.line.barrier(&self.shared, &session.channel).await?;
        }
        self.until_counted(there).await;
        Ok(())
    }

    /// A purge is under way: what lies here goes with the rest.
    async fn throw_away(&self, session: &Session) -> Result<()> {
        let _saying = self.line.saying.lock().await;
        let tags = self.line.state().take_fetched();
        self.line.acknowledge(session, &tags).await?;
        self.line.state().purged += tags.len() as u64;
        self.line.barrier(&self.shared, &session.channel).await
    }

    /// Gives the tasks back whose holders said nothing in time.
    async fn expire(&self, tags: &[u64]) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let _saying = self.line.saying.lock().await;
        let over: Vec<u64> = {
            let (mut state, now) = (self.line.state(), self.shared.clock.now());
            tags.iter().copied().filter(|tag| state.end_lease(*tag, now)).collect()
        };
        self.line.return_harmed(&channel, &over).await
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

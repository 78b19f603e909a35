//! What a consumer's keeper asks the server: whether a band has more, whether the queue is paused.

use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result, chain};
use tokio::time::Instant;

use super::{Keeper, LOOK, LOOK_PAUSED};
use crate::line::Session;
use crate::notes::Word;

/// How long it is looked for what a band says it has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is waited for what is on its way to us, or back.
const ON_THE_WAY: Duration = Duration::from_millis(600);
/// What has not changed for this long is waited for no more: somebody else may have it already. A server under load is slow,
/// and what is given up here comes back out of line.
const STUCK: Duration = Duration::from_millis(300);
/// How soon the server is asked again, and how seldom if it hesitates.
const SOON: Duration = Duration::from_millis(2);
const SELDOM: Duration = Duration::from_millis(16);

/// Waiting for something to rise.
struct Rising<T> {
    most: Option<T>,
    stuck: Instant,
    give_up: Instant,
}

impl<T: PartialOrd> Rising<T> {
    fn until(give_up: Instant) -> Self {
        Self { most: None, stuck: Instant::now() + STUCK, give_up }
    }

    /// Whether it has risen of late, and may rise further.
    fn goes_on(&mut self, height: T) -> bool {
        let now = Instant::now();
        if self.most.as_ref().is_none_or(|most| height > *most) {
            (self.most, self.stuck) = (Some(height), now + STUCK);
        }
        now < self.stuck.min(self.give_up)
    }
}

impl Keeper {
    /// Asks each doubtful band whether there is more, and waits for that.
    pub(super) async fn verify(&mut self) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let give_up = self.shared.clock.now() + PATIENCE;
        let (question, doubtful): (u64, Vec<usize>) = {
            let state = self.line.state();
            (state.question, self.bands.clone().filter(|band| !state.looked || state.bands[*band].doubt).collect())
        };
        let mut sure = true;
        for band in doubtful {
            let mut pause = SOON;
            loop {
                let name = &self.layout.bands[band];
                let count = match self.unless_over(self.shared.how_many(name)).await {
                    // It is looked again once that is given back.
                    None => return Ok(()),
                    Some(count) => count,
                };
                let count = match count {
                    // What is worked on does not suffer when a question about it stays without an answer.
                    Err(e) if e.is_retryable() && channel.status().connected() => {
                        tracing::debug!(queue = self.line.queue.as_str(), error = chain(&e), "what is ready is not known");
                        match e.kind() {
                            // A server that says nothing has not said that there is nothing.
                            ErrorKind::Timeout => self.line.state().fault = Some(e),
                            _ => self.line.state().answer(question, false),
                        }
                        self.line.bell.notify_one();
                        // It may be asked again at once, and fail as soon.
                        tokio::time::sleep(SELDOM).await;
                        return Ok(());
                    }
                    count => count?,
                };
                let count =
                    count.ok_or_else(|| Error::new(ErrorKind::NotFound, "the queue was deleted").with("server_queue", name))?;
                // What the server had sent before it answers this is here afterwards.
                self.line.barrier(&self.shared, &channel).await?;
                self.take_in().await?;
                let clear = self.line.is_sure(band, count);
                if clear || self.shared.clock.now() >= give_up {
                    sure &= clear;
                    break;
                }
                if self.line.state().is_over(self.shared.clock.now()) {
                    // It is looked again once that is given back.
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SELDOM);
            }
        }
        self.line.state().answer(question, sure);
        self.line.bell.notify_one();
        Ok(())
    }

    /// The bands of which tasks lie here, and how many each should count when they are back. Nothing where that cannot be learnt.
    pub(super) async fn counts(&self) -> Vec<(usize, u32)> {
        let (mut counts, give_up) = (Vec::new(), Instant::now() + ON_THE_WAY);
        let lying: Vec<usize> = self.line.state().bands.iter().map(|band| band.fetched.len()).collect();
        for (band, lying) in lying.into_iter().enumerate().filter(|(_, lying)| *lying > 0) {
            if let Some(count) = self.counted(band, give_up).await {
                counts.push((band, count.saturating_add(lying as u32)));
            }
        }
        counts
    }

    /// Waits until the bands count so many. A quorum queue has what is given back a little later, and whoever consumed it in
    /// between would get what is behind that first, or nothing.
    pub(super) async fn until_counted(&self, counts: Vec<(usize, u32)>) {
        let (give_up, mut pause) = (Instant::now() + ON_THE_WAY, SOON);
        let mut missing: Vec<_> =
            counts.into_iter().map(|(band, wanted)| (band, wanted, 0_u32, Rising::until(give_up))).collect();
        loop {
            let mut still = Vec::new();
            for (band, mut wanted, last, mut back) in missing {
                let Some(count) = self.counted(band, give_up).await else { continue };
                // What somebody else has taken meanwhile is not waited for.
                wanted = wanted.saturating_sub(last.saturating_sub(count));
                if count < wanted && back.goes_on(count) {
                    still.push((band, wanted, count, back));
                }
            }
            if still.is_empty() {
                return;
            }
            missing = still;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SELDOM);
        }
    }

    /// Waits until the server has sent all that it may: what is on its way while consuming ends comes back as if its worker
    /// had died.
    pub(super) async fn until_nothing_is_sent(&mut self) -> Result<()> {
        if self.line.state().consuming.is_none() {
            return Ok(());
        }
        let (give_up, mut pause) = (Instant::now() + ON_THE_WAY, SOON);
        let mut coming: Vec<_> = self.bands.clone().map(|band| (band, Rising::until(give_up))).collect();
        loop {
            let mut counts = Vec::new();
            for (band, came) in coming {
                counts.extend(self.counted(band, give_up).await.filter(|count| *count > 0).map(|_| (band, came)));
            }
            if counts.is_empty() {
                return Ok(());
            }
            let Session { channel, .. } = self.session().await?;
            // What the server had sent before it answers this is here afterwards.
            self.line.barrier(&self.shared, &channel).await?;
            self.take_in().await?;
            coming = Vec::new();
            for (band, mut came) in counts {
                let (full, heard) = {
                    let state = self.line.state();
                    (state.is_full(band), state.bands[band].heard)
                };
                if !full && came.goes_on(heard) {
                    coming.push((band, came));
                }
            }
            if coming.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SELDOM);
        }
    }

    /// The server's answer, unless a lease ends before it is there.
    async fn unless_over<T>(&self, asked: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(asked);
        loop {
            let now = self.shared.clock.now();
            // A lease may be touched meanwhile, and others may begin.
            let first = self.line.state().leases.values().map(|lease| lease.deadline).min();
            let until = first.unwrap_or(now + LOOK).min(now + LOOK);
            tokio::select! {
                answer = &mut asked => return Some(answer),
                () = self.shared.clock.sleep_until(until) => {}
            }
            if self.line.state().is_over(self.shared.clock.now()) {
                return None;
            }
        }
    }

    /// How much a band has, if that can be learnt in time.
    async fn counted(&self, band: usize, give_up: Instant) -> Option<u32> {
        let asked = self.shared.how_many(&self.layout.bands[band]);
        tokio::time::timeout_at(give_up, asked).await.ok()?.ok()?
    }

    /// Writes down which task on probation a worker gets, before it does. One that cannot be noted does not wait for that.
    pub(super) async fn note(&mut self) -> Result<()> {
        let name = self.line.state().waits_for_note().and_then(|message| message.name.clone());
        let noted = match name {
            Some(name) => self.shared.note_in_time(&self.layout, &[(Word::Came, name)]).await,
            None => false,
        };
        let mut state = self.line.state();
        if let Some(message) = state.waits_for_note() {
            message.noted = Some(noted);
        }
        state.to_note = None;
        drop(state);
        self.line.bell.notify_one();
        Ok(())
    }

    /// What cannot be learnt now stays as it was: no task is given up for that.
    pub(super) async fn look(&mut self) -> Result<()> {
        if let Err(e) = self.look_for_pause().await {
            tracing::debug!(queue = self.line.queue.as_str(), error = chain(&e), "whether the queue is paused is not known");
            self.next_look = self.shared.clock.now() + LOOK;
        }
        Ok(())
    }

    pub(super) async fn look_for_pause(&mut self) -> Result<bool> {
        let resumed = self.line.state().resumed;
        let marked = self.shared.is_marked(&self.layout).await?;
        let mut state = self.line.state();
        // A marker that was seen while it was taken away is gone.
        let paused = marked && state.resumed == resumed;
        self.next_look = self.shared.clock.now() + if paused { LOOK_PAUSED } else { LOOK };
        (state.paused, state.paused_until) = (paused, self.next_look);
        if paused {
            state.looked = true;
        } else if state.consuming.is_none() {
            state.looked = false;
        }
        drop(state);
        self.line.bell.notify_one();
        Ok(paused)
    }
}

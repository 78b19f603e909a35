//! What a consumer's keeper asks the server: whether a band has more, whether the queue is paused.

use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result, chain};

use super::{Keeper, LOOK, LOOK_PAUSED};
use crate::line::Session;

/// How long it is looked for what a band says it has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is waited for what was given back: somebody else may have it already.
const ON_THE_WAY: Duration = Duration::from_millis(300);

impl Keeper {
    /// Asks each doubtful band whether there is more, and waits for that.
    pub(super) async fn verify(&mut self) -> Result<()> {
        let Session { channel, .. } = self.session().await?;
        let give_up = self.shared.clock.now() + PATIENCE;
        let doubtful: Vec<usize> = {
            let state = self.line.state();
            self.bands.clone().filter(|band| !state.looked || state.bands[*band].doubt).collect()
        };
        for band in doubtful {
            loop {
                let name = &self.layout.bands[band];
                let count = self.shared.count(&self.shared.asking().await?, name).await?;
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

    /// The bands of which tasks lie here, and how many each should count when they are back. Nothing where that cannot be learnt.
    pub(super) async fn counts(&self) -> Vec<(usize, u32)> {
        let mut counts = Vec::new();
        let lying: Vec<usize> = self.line.state().bands.iter().map(|band| band.fetched.len()).collect();
        for (band, lying) in lying.into_iter().enumerate().filter(|(_, lying)| *lying > 0) {
            if let Some(count) = self.counted(band).await {
                counts.push((band, count.saturating_add(lying as u32)));
            }
        }
        counts
    }

    /// Waits until the bands count so many. A quorum queue has what is given back a little later, and whoever consumed it in
    /// between would get what is behind that first, or nothing.
    pub(super) async fn until_counted(&self, counts: Vec<(usize, u32)>) {
        let give_up = self.shared.clock.now() + ON_THE_WAY;
        for (band, wanted) in counts {
            while self.counted(band).await.is_some_and(|count| count < wanted) && self.shared.clock.now() < give_up {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Waits until the server has sent all that it may: what is on its way while consuming ends comes back as if its worker
    /// had died.
    pub(super) async fn until_nothing_is_sent(&mut self) -> Result<()> {
        let give_up = self.shared.clock.now() + ON_THE_WAY;
        for band in self.bands.clone().filter(|_| self.line.state().consuming.is_some()).collect::<Vec<_>>() {
            while let Some(count) = self.counted(band).await {
                let Session { channel, .. } = self.session().await?;
                self.line.barrier(&self.shared, &channel).await?;
                self.take_in().await?;
                if count == 0 || self.line.state().is_full(band) || self.shared.clock.now() >= give_up {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    async fn counted(&self, band: usize) -> Option<u32> {
        let channel = self.shared.asking().await.ok()?;
        self.shared.count(&channel, &self.layout.bands[band]).await.ok()?
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
        let paused = self.shared.is_marked(&self.layout).await?;
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
}

//! Bands of other settings: what lies in them is brought to the bands that are worked on.
//!
//! The names of a queue's bands come from its settings. Where these were changed, or a sender has others, tasks lie in queues
//! that no worker of ours knows. The server lists no names to an AMQP client, so those of the default bands are tried.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Drift, Result, chain};
use lapin::types::ShortString;

use crate::layout::Layout;
use crate::line::Line;
use crate::shared::Shared;

/// How often workers look.
const EVERY: Duration = Duration::from_secs(60);
/// As long as there is none: each look at a queue that is not there costs a channel, and a line in the server's log.
const SELDOM: Duration = Duration::from_secs(600);

impl Layout {
    /// Bands that other settings have and these do not.
    fn foreign_bands(&self) -> Vec<ShortString> {
        let ours = |name: &ShortString| self.bands.contains(name);
        let named = ["0", "512", "2048", "rest"].map(|end| ShortString::from(format!("{};{end}", self.queue)));
        named.into_iter().filter(|name| !ours(name)).collect()
    }
}

impl Shared {
    /// The foreign bands that are there, and how many tasks are in them.
    pub(crate) async fn other_bands(&self, layout: &Layout) -> Result<Vec<(ShortString, u64)>> {
        let mut found = Vec::new();
        for band in layout.foreign_bands() {
            if let Some(count) = self.probe(&band).await? {
                found.push((band, count.into()));
            }
        }
        Ok(found)
    }

    pub(crate) async fn drift_of_bands(&self, layout: &Layout) -> Result<Vec<Drift>> {
        let ours = layout.bands.iter().map(ShortString::as_str).collect::<Vec<_>>().join(", ");
        let drift = |(band, count): (ShortString, u64)| Drift {
            what: format!("bands of {}", layout.queue),
            wanted: ours.clone(),
            found: format!("{band}, with {count} tasks; workers move them, delete it once no sender has such bands"),
        };
        Ok(self.other_bands(layout).await?.into_iter().map(drift).collect())
    }

    /// Brings what lies in foreign bands to ours. Says whether there are such bands.
    async fn gather(&self, layout: &Layout) -> Result<bool> {
        let bands = self.other_bands(layout).await?;
        for (band, _) in bands.iter().filter(|(_, count)| *count > 0) {
            let walk = self.walk(layout.queue.as_str()).await?;
            let mut slices = walk.slices(band, usize::MAX);
            let mut moved = 0;
            loop {
                let slice = slices.next().await?;
                if slice.is_empty() {
                    break;
                }
                let (went, failed) = self.carry(layout, &walk, &slice).await;
                moved += went;
                if let Some(e) = failed {
                    drop(walk.end().await);
                    return Err(e);
                }
            }
            walk.end().await?;
            tracing::warn!(
                queue = layout.queue.as_str(),
                band = band.as_str(),
                moved,
                "tasks lay in a band that these settings do not have; senders and workers should have the same `bands`"
            );
        }
        Ok(!bands.is_empty())
    }
}

/// Looks for them as long as there is a consumer.
pub(crate) async fn watch(shared: Arc<Shared>, layout: Arc<Layout>, line: Weak<Line>) {
    if layout.foreign_bands().is_empty() {
        return;
    }
    while line.upgrade().is_some_and(|line| !line.state().left) && !shared.is_closed() {
        let pause = match shared.gather(&layout).await {
            Ok(true) => EVERY,
            Ok(false) => SELDOM,
            Err(e) => {
                tracing::debug!(queue = layout.queue.as_str(), error = chain(&e), "bands of other settings cannot be looked at");
                EVERY
            }
        };
        // Not the broker's clock: nothing here is promised to the second.
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::{Levels, QueueName, priority};

    use super::*;
    use crate::config::{Kind, Style};

    fn foreign(ends: &'static [u32]) -> Vec<String> {
        let style = Style { kind: Kind::Quorum, levels: Levels::Bands(ends), max_ttr: EVERY, own_timeout: None, native: false };
        let layout = Layout::new(&QueueName::new("q").unwrap(), style);
        layout.foreign_bands().iter().map(|name| name.as_str().to_owned()).collect()
    }

    #[test]
    fn the_names_of_other_settings_are_known() {
        assert_eq!(foreign(priority::FIVE_BANDS), [""; 0]);
        assert_eq!(foreign(priority::ONE_BAND), ["q;0", "q;512", "q;2048", "q;rest"]);
        assert_eq!(foreign(priority::THREE_BANDS), ["q;0", "q;2048"]);
    }
}

//! Pausing: a marker in a queue of its own, which survives as tasks do, and vanishes by itself if the pause has an end.

use std::time::Duration;

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Bytes, Paused, Result};
use lapin::BasicProperties;
use lapin::types::ShortString;

use crate::layout::Layout;
use crate::publish::Post;
use crate::shared::Shared;

/// More markers than there are.
const MOST: usize = 100;
/// For so long a marker may be out of sight, while it is read or put anew.
const BLINK: Duration = Duration::from_millis(40);

impl Shared {
    /// Whether there is a marker.
    pub(crate) async fn is_marked(&self, layout: &Layout) -> Result<bool> {
        let mut before = self.was_marked(&layout.queue);
        loop {
            let Some(count) = self.count(&self.asking().await?, &layout.pause).await? else {
                // Somebody has deleted it, and what it said with it.
                self.reconsider(&layout.queue);
                return Ok(self.set_marked(&layout.queue, false));
            };
            match count {
                0 if before => before = false,
                0 => return Ok(self.set_marked(&layout.queue, false)),
                _ => return Ok(self.set_marked(&layout.queue, true)),
            }
            tokio::time::sleep(BLINK).await;
        }
    }

    pub(crate) async fn mark(&self, layout: &Layout, time: Option<Duration>) -> Result<()> {
        let now = self.clock.wall();
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into());
        let mut until = String::from("until it is resumed");
        if let Some(time) = time {
            let millis = time.as_nanos().div_ceil(1_000_000).min(u128::from(u32::MAX)) as u64;
            properties = properties.with_expiration(millis.to_string().into());
            until = (unix_millis(now) + millis).to_string();
        }
        let body = Bytes::from(until);
        let post = Post { exchange: ShortString::default(), key: layout.pause.clone(), properties, body };
        let walk = self.walk(layout.pause.as_str()).await?;
        let old = walk.take(&layout.pause, MOST).await?;
        self.publish(&[post]).await.remove(0)?;
        walk.remove_all(&old).await?;
        walk.end().await
    }

    /// Takes the markers away. A purge would not reach one that somebody is reading.
    pub(crate) async fn unmark(&self, layout: &Layout) -> Result<()> {
        let walk = self.walk(layout.pause.as_str()).await?;
        let old = walk.take(&layout.pause, MOST).await?;
        walk.remove_all(&old).await?;
        walk.end().await
    }

    pub(crate) async fn paused(&self, layout: &Layout) -> Result<Paused> {
        let walk = self.walk(layout.pause.as_str()).await?;
        let found = walk.take(&layout.pause, 1).await?.pop();
        walk.end().await?;
        let Some(marker) = found else { return Ok(Paused::No) };
        let until: Option<u64> = std::str::from_utf8(&marker.raw).ok().and_then(|text| text.parse().ok());
        let left = until.map(|until| Duration::from_millis(until.saturating_sub(unix_millis(self.clock.wall()))));
        Ok(if left == Some(Duration::ZERO) { Paused::No } else { Paused::Yes(left) })
    }
}

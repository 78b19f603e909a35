//! Pausing: a marker in a queue of its own, which survives as tasks do, and vanishes by itself if the pause has an end.

use std::time::Duration;

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Bytes, Error, ErrorKind, Paused, Result};
use lapin::options::QueuePurgeOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};

use crate::layout::Layout;
use crate::publish::Post;
use crate::shared::Shared;

/// For so long a marker may be out of sight, while it is read or put anew.
const BLINK: Duration = Duration::from_millis(40);

impl Shared {
    /// Whether there is a marker.
    pub(crate) async fn is_marked(&self, channel: &Channel, layout: &Layout) -> Result<bool> {
        let missing = || Error::new(ErrorKind::NotFound, "the queue was deleted").with("server_queue", &layout.pause);
        let mut before = self.was_marked(&layout.queue);
        loop {
            match self.count(channel, &layout.pause).await?.ok_or_else(missing)? {
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
        self.unmark(layout).await?;
        let body = Bytes::from(until);
        let post = Post { exchange: ShortString::default(), key: layout.pause.clone(), properties, body };
        self.publish(&[post]).await.remove(0)
    }

    pub(crate) async fn unmark(&self, layout: &Layout) -> Result<()> {
        let channel = self.asking().await?;
        let purge = channel.queue_purge(layout.pause.clone(), QueuePurgeOptions::default());
        self.work.call("queue.purge", purge).await.map(drop)
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
